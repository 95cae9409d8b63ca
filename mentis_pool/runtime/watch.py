"""Looks at what the processes of one sandbox use while something runs in it, and says when it is too much.

A timer looks every 20 to 50 ms; rarer where looking takes long, as it does when many
processes come near the limit. Nothing runs: it looks once more, and goes on, four times in a
second, only where something was left that could go on by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mentis_pool.limits import Limits, Which
from mentis_pool.observations import Exceeded
from mentis_pool.runtime.groups import Group
from mentis_pool.runtime.meter import Files, Meter, Reading

SOON, LATE, IDLE = 0.02, 0.05, 0.25
"""Seconds between two looks: near the limit on memory, far from it, and while nothing runs."""
_RATE = 4 << 30
"""Bytes in a second that processes are taken to fill, at most."""
_REST = 2
"""So many times as long as a look took is it until the next, at least."""


class Watch:
    """The watch over one sandbox.

    Args:
        limits: what it may use.
        directory: where its files are.
        exceeded: called when it uses more, once for each time that something begins.
        spare: the pid of a worker that only waits, as its init calls it; 0 for none.
        group: in which the kernel holds it, too.
    """

    def __init__(
        self,
        limits: Limits,
        directory: str,
        exceeded: Callable[[Exceeded], None],
        spare: Callable[[], int],
        group: Group | None = None,
    ) -> None:
        self._limits = limits
        self._files = Files(directory)
        self._exceeded = exceeded
        self._spare = spare
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._meter: Meter | None = None
        self._running = 0
        self._said = False
        self._anew = False
        """Whether something has begun since the last look, of which most runs see none."""
        self._cpu_seconds = 0.0
        self._peak = 0

    def found(self, init: int) -> None:
        """The pid of its init is known."""
        if self._meter is None and init:
            self._meter = Meter(init)
            if self._group is not None:
                # One that is needed for a moment only does without.
                self._loop.call_later(SOON, self._group.hold, init)
            if self._running:
                # A command was given before the init had said anything.
                self._timer = self._loop.call_later(SOON, self._look)

    def begin(self) -> None:
        """A task begins: what it uses is counted from here on."""
        self._cpu_seconds, self._peak = 0.0, 0
        self._anew = True
        # What was killed before is not its business.
        self.struck()
        self.look_on()

    def look_on(self) -> None:
        """Something more runs."""
        self._running += 1
        self._said = False
        if self._timer is None and self._meter is not None:
            self._timer = self._loop.call_later(SOON, self._look)

    def finish(self) -> tuple[float, int]:
        """The task has ended: CPU seconds that were seen, and the most memory, in bytes."""
        self.rest()
        return self._cpu_seconds, self._peak

    def rest(self) -> None:
        """Something runs no more."""
        self._running -= 1

    def struck(self) -> Exceeded | None:
        """What the kernel has killed something in the sandbox for, if it was not asked before."""
        limit = self._limits.memory
        if self._group is None or limit is None or not self._group.struck():
            return None
        return Exceeded("memory", limit)

    def close(self) -> None:
        """Look no more."""
        if self._group is not None:
            self._group.close()
        self._meter = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def use(self) -> tuple[int, float, int]:
        """Bytes of memory now, CPU seconds since its start, processes and threads."""
        if self._meter is None:
            return 0, 0.0, 0
        now = self._read(self._meter)
        return now.memory, self._meter.total_cpu_seconds(), now.processes

    def _look(self) -> None:
        self._timer = None
        if self._meter is None:
            return
        begun = time.monotonic()
        limits = self._limits
        now = self._read(self._meter, limits.processes, limits.memory)
        self._cpu_seconds = now.cpu_seconds
        self._peak = max(self._peak, now.memory)
        over = (
            self.struck()
            or self._over("memory", now.memory)
            or self._over("processes", now.processes)
        )
        if over is None and self._running:
            over = self._over("cpu_seconds", now.cpu_seconds)
        if over is None and limits.disk is not None:
            over = self._over("disk", self._files.look())
        if self._running or now.processes > 1:
            wait = IDLE
            if self._running:
                left = _RATE if limits.memory is None else limits.memory - now.memory
                wait = min(LATE, max(SOON, left / _RATE))
            took = time.monotonic() - begun
            wait = max(wait, min(took * _REST, IDLE))
            self._timer = self._loop.call_later(wait, self._look)
        if over is not None and not self._said:
            self._said = True
            self._exceeded(over)

    def _read(self, meter: Meter, most: int | None = None, memory: int | None = None) -> Reading:
        if self._anew:
            self._anew = False
            meter.begin()
            self._files.forget()
        return meter.read(self._spare(), most, memory)

    def _over(self, which: Which, used: float) -> Exceeded | None:
        limit: float | None = getattr(self._limits, which)
        return Exceeded(which, limit, used) if limit is not None and used > limit else None
