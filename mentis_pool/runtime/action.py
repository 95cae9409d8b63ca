"""One run, from Start to End: what is passed on of what its worker says and writes.

Pure: time is an argument. Whatever a worker sends, what comes out is in the
order that `mentis_pool.observations` promises, and within the limits.
"""

from __future__ import annotations

import math
import signal
from typing import Literal

from mentis_pool.files import Bound
from mentis_pool.observations import (
    Cut,
    Display,
    End,
    Error,
    File,
    Left,
    Observation,
    Part,
    Result,
    Start,
    StreamName,
)
from mentis_pool.output import StreamBound
from mentis_pool.pool_stream import PickledCall, Run

DISPLAY_LIMIT = 64 * 1024 * 1024
"""Bytes of displays of one action, where ``max_output`` sets no lower limit."""
_LEAST_PART = 64 * 1024
_NAMES = 4096
"""Characters that the mime types and the id of a display have, where nobody means harm."""
_MOST = 1 << 53


class Action:
    """What one run has said so far, and how much its reader still takes."""

    def __init__(self, run: Run) -> None:
        self.number = run.action
        self.run = run
        self.timed_out: Literal["timeout", "deadline"] | None = None
        work = run.work
        most = work.max_result if isinstance(work, PickledCall) else 0
        self._result_left = math.inf if most is None else most
        given = run.given
        self.awaits_files = given is not None and bool(given.files)
        """Whether it does not have all its files yet."""
        self._fetched = None if given is None else Bound(given.fetch)
        self.started = 0.0
        """When it began, on the monotonic clock."""
        self._bounds: dict[StreamName, StreamBound] = {}
        """Of streams that something was written to."""
        self._unconfirmed = 0
        self.written = 0
        """Bytes of output so far, whether passed on or not."""
        self.over = False
        """Whether that was more than it may write, and was said."""
        self._displays_left = DISPLAY_LIMIT if run.max_output is None else run.max_output
        self._least_cost = max(1, min(256, self._displays_left // 8))
        self._displays_cut = 0

    def begin(self, now: float, wall: float, sandbox: int = 0) -> list[Observation]:
        """It starts in this sandbox, at ``now`` on the monotonic clock and ``wall`` since the epoch."""
        self.started = now
        return [Start(wall, sandbox)]

    def take(self, part: Part | Result) -> bool:
        """Whether one more part of its result, or the end of it, is within the limit."""
        if isinstance(part, Result):
            self._result_left -= len(part.pickled or b"")
        else:
            # An empty one costs its reader memory as well.
            self._result_left -= max(len(part.data), _LEAST_PART)
        return self._result_left >= 0

    def fetched(self, said: File | Left) -> str | None:
        """It sends a file that it was asked for; why that cannot be, or None where it can."""
        return "it sent a file" if self._fetched is None else self._fetched.wrong(said)

    @property
    def open(self) -> bool:
        """Whether more of its output may be read now."""
        return self.run.window is None or self._unconfirmed < self.run.window

    def output(self, stream: StreamName, data: bytes) -> list[Observation]:
        """Its worker, or a child of that, wrote this."""
        self._unconfirmed += len(data)
        self.written += len(data)
        if stream not in self._bounds:
            # With a window every piece is passed on: the reader bounds what it keeps.
            limit = self.run.max_output if self.run.window is None else None
            self._bounds[stream] = StreamBound(stream, limit)
        return self._bounds[stream].feed(data)

    def confirm(self, count: int) -> None:
        """The reader took so many bytes."""
        self._unconfirmed = max(0, self._unconfirmed - count)

    def shown(self, shown: Display | Cut) -> list[Observation]:
        """Its worker displayed something, or had to leave it out."""
        if isinstance(shown, Cut):
            # A hostile worker's number: it must fit the wire, however often it is said.
            self._displays_cut = min(self._displays_cut + max(0, shown.bytes), _MOST)
            return []
        size = shown.bundle.size
        # One without content costs its reader memory as well, and so does what it is called.
        names = (*shown.bundle.texts, *shown.bundle.blobs, shown.display_id or "")
        named = max(0, sum(map(len, names)) - _NAMES)
        cost = max(size + named, self._least_cost)
        if cost > self._displays_left:
            self._displays_cut += size
            return []
        self._displays_left -= cost
        return [shown]

    def finish(self, said: Result | Error, used: End, now: float) -> list[Observation]:
        """It is over: the kept ends of its output, the outcome, the end."""
        observations: list[Observation] = []
        for bound in self._bounds.values():
            observations += bound.finish()
        if self._displays_cut:
            observations.append(Cut("displays", self._displays_cut))
        if self.timed_out == "timeout":
            said = Error("timeout", f"the cell ran for more than {self.run.timeout:g} s")
        elif self.timed_out == "deadline":
            said = Error("deadline", "it was not done within its deadline")
        # A hostile worker's numbers, too.
        cpu = used.cpu_seconds if 0 <= used.cpu_seconds < math.inf else 0.0
        peak = used.peak_memory and max(0, min(used.peak_memory, _MOST))
        end = End(now - self.started, cpu, peak)
        return [*observations, said, end]


def death(status: int) -> Error:
    """Why a worker is gone, from its wait status."""
    if status & 0x7F:
        number = status & 0x7F
        reason = f"the cell's process was killed by {signal_name(number)}"
        return Error("died", reason, signal=number)
    code = status >> 8 & 0xFF
    return Error("died", f"the cell's process exited with code {code}", exit_code=code)


def signal_name(number: int) -> str:
    """What a signal is called; not all have a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
