"""One sandbox of the pool at an original runtime: what to ask for next, what became of its cell.

To the lanes a slot is one sandbox for good. At the runtime it is a row of them: a
new one for each cell (``fresh``), one for all until something goes wrong
(``reuse``). One cell is in flight at a time::

    run ──► Post ──► accepted ──► heard: stream, result, end ──► Said…, End
             │            └─ the deadline passes: CellTimeout, the sandbox is deleted
             │            └─ a gap: OutcomeUnknown, the sandbox is deleted
             └─ never sent: Closed, and the pool sends the cell elsewhere

What ends each wait: a POST ends by its own time limit (`accepted`, `refused`); a
cell by its timeout; where it has none, by a probe: a cell of ours after it in the
same sandbox, whose result can only come when the cell is over.

Pure: time is an argument, and the edge carries out the orders.
"""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections import deque
from typing import Literal

from mentis_pool import original
from mentis_pool.limits import Limits
from mentis_pool.mentis_v1 import (
    STILL_RUNS,
    EndObservation,
    ErrorObservation,
    ResultObservation,
    StreamObservation,
    V1Observation,
)
from mentis_pool.observations import End, Error, Observation, Start
from mentis_pool.pool_stream import (
    Cells,
    Closed,
    Event,
    Open,
    Opened,
    PickledCall,
    Refused,
    Run,
    Said,
)
from mentis_pool.text import to_text

SETTLE = 1.0
"""Seconds within which a cell's last observations arrive, once one of them has."""
FIRST_PROBE = 15.0
"""Seconds of silence after which a cell is asked after: the runtime itself gives up at 10."""
LAST_PROBE = 600.0
"""Seconds between two probes, at most; they double."""
PROBE = "pass"


# ── orders ──────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Make:
    """Make a sandbox and connect its stream; then `Slot.made`, or `Slot.not_made`."""


@dataclasses.dataclass(frozen=True)
class Post:
    """Post this text to the sandbox; then `Slot.accepted`, or `Slot.refused`."""

    sandbox_id: str
    number: int
    code: str


@dataclasses.dataclass(frozen=True)
class Delete:
    """Close the sandbox's stream and delete it."""

    sandbox_id: str


@dataclasses.dataclass(frozen=True)
class Named:
    """The runtime's names for an action and its sandbox are known."""

    action: int
    action_id: str
    sandbox_id: str


@dataclasses.dataclass(frozen=True)
class Tell:
    """Tell the engine."""

    event: Event | Named


@dataclasses.dataclass(frozen=True)
class LoseState:
    """What a session had in its sandbox is gone, but the slot goes on; `Lanes.state_lost` is to know."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Skip:
    """Something was said that means nothing here; for the log."""

    sandbox_id: str
    reason: str


Order = Make | Post | Delete | Tell | LoseState | Skip

Refusal = Literal["unsent", "gone", "rejected", "unanswered"]
"""What became of a POST that was not accepted.

"unsent": it never reached the runtime. "gone": there is no such sandbox. "rejected":
the runtime refused the cell itself. "unanswered": it was sent, and may run.
"""


class _Cell:
    """The cell in flight."""

    def __init__(self, run: Run, token: str, now: float) -> None:
        self.run = run
        self.token = token
        self.started = now
        self.accepted = False
        self.output: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.result: ResultObservation | None = None
        self.settle_at: float | None = None
        self.probe_at: float | None = None
        self.unheard = 0
        """Probes since one of them was heard of."""

    @property
    def limit(self) -> int | None:
        """Bytes of each stream that are passed on; with a window, all are."""
        return self.run.max_output if self.run.window is None else None

    @property
    def times_out(self) -> float | None:
        """When it has run for too long; the answer to its POST may come later than that."""
        timeout = self.run.timeout
        return None if timeout is None else self.started + timeout

    @property
    def complete(self) -> bool:
        """Whether its result and all of its output are there."""
        return self.result is not None and original.is_complete(
            self.text("stdout"), self.text("stderr"), self.token, self.result
        )

    def text(self, stream: str) -> str:
        """All of a stream so far."""
        return "".join(self.output[stream])


@dataclasses.dataclass(frozen=True, eq=False)
class _Probe:
    """A cell of ours that asks after this one; what it says means nothing once that is over."""

    cell: _Cell


class Slot:
    """A sandbox of the pool.

    Args:
        number: its number there.
        opened: how its lane was opened.
        now: the time, for how long the first sandbox takes.
    """

    def __init__(self, number: int, opened: Open, now: float) -> None:
        self.number = number
        self._opened = opened
        self._fresh = opened.state in ("fresh", "new")
        self._opened_at: float | None = now
        self._sandbox: str | None = None
        self._used = False
        """Whether a cell may have begun in it."""
        self._next: str | None = None
        self._making = False
        self._waiting: tuple[Run, str] | None = None
        self._cell: _Cell | None = None
        self._numbers = itertools.count(1)
        self._posted: dict[int, _Cell | _Probe] = {}
        """POSTs without an answer."""
        self._actions: dict[str, _Cell | _Probe] = {}
        """Of the current sandbox: whose each action is."""
        self._early: dict[str, list[V1Observation]] = {}
        """What was said of actions that no answer has named yet."""
        self._old: deque[str] = deque(maxlen=256)
        """Actions that are over: what is still said of them means nothing."""
        self._closed = False

    # ── from the pool ───────────────────────────────────────────────────────

    def open(self, now: float) -> list[Order]:
        """Begin: a sandbox is made before there is a cell for it."""
        return self._go_on(now)

    def run(self, run: Run, token: str, now: float) -> list[Order]:
        """Run this; ``token`` is a word that nobody else knows."""
        missing = _missing(run, self._opened)
        if missing is not None:
            error = Error("rejected", f"this runtime speaks v1, which has no {missing}")
            return self._say(run.action, [error, End(0.0)])
        self._waiting = run, token
        return self._go_on(now)

    def cancel(self, action: int, now: float) -> list[Order]:
        """End this action, if it has it: nobody wants to hear of it any more."""
        error = Error("cancelled", "it was cancelled")
        if self._waiting is not None and self._waiting[0].action == action:
            self._waiting = None
            return self._say(action, [error, End(0.0)])
        if self._cell is not None and self._cell.run.action == action:
            return self._fail(error, now)
        return []

    def signal(self, action: int, number: int, now: float) -> list[Order]:
        """A signal for what runs: there is none here but the end of its sandbox."""
        if self._cell is None or self._cell.run.action != action:
            return []
        if number == signal.SIGINT:
            return [Skip(self._sandbox or "", "v1 has no interrupt: the cell goes on")]
        return self._fail(Error("died", "its sandbox was deleted", signal=number), now)

    def close(self, reason: str, now: float) -> list[Order]:
        """End: what is there is deleted, what comes later as well; a cell in flight is told why."""
        self._closed = True
        died = Error("died", f"the sandbox was lost: {reason}")
        told = self._fail(died, now) if self._cell is not None else []
        return [*told, *self._delete_all()]

    def lose(self, reason: str, now: float) -> list[Order]:
        """The runtime cannot be reached any more: what became of a cell in flight is not known."""
        self._closed = True
        if self._waiting is not None:
            action = self._waiting[0].action
            return self._say(action, [Error("unreachable", reason), End(0.0)])
        return self._fail(Error("unknown", reason), now) if self._cell is not None else []

    # ── from the edge ───────────────────────────────────────────────────────

    def made(self, sandbox_id: str, now: float) -> list[Order]:
        """A sandbox is there, and its stream."""
        self._making = False
        if self._closed:
            return [Delete(sandbox_id)]
        if self._sandbox is None:
            self._sandbox = sandbox_id
        else:
            self._next = sandbox_id
        orders: list[Order] = []
        if self._opened_at is not None:
            orders.append(Tell(Opened(self.number, now - self._opened_at)))
            self._opened_at = None
        return [*orders, *self._go_on(now)]

    def not_made(self, reason: str, full: bool) -> list[Order]:
        """No sandbox could be had; ``full``: since there is no room for one."""
        self._making = False
        if self._closed or self._cell is not None or self._sandbox is not None:
            # It was to be the next one: when that is needed, it is asked for again.
            return []
        self._closed = True
        told = Refused if full else Closed
        return [Tell(told(self.number, reason))]

    def accepted(self, number: int, action_id: str, now: float, wall: float) -> list[Order]:
        """A POST was accepted, under this id; ``wall`` is the time since the epoch."""
        if number not in self._posted:
            return []
        posted = self._posted.pop(number)
        orders: list[Order] = []
        if _cell_of(posted) is self._cell:
            self._actions[action_id] = posted
        else:
            self._old.append(action_id)
        if posted is self._cell:
            cell = self._cell
            assert self._sandbox is not None
            cell.accepted = True
            cell.probe_at = now + FIRST_PROBE
            orders.append(Tell(Named(cell.run.action, action_id, self._sandbox)))
            orders += self._say(cell.run.action, [Start(wall)])
        sandbox = self._sandbox
        for early in self._early.pop(action_id, []):
            # What is said after the cell is over means nothing any more.
            if _cell_of(posted) is self._cell:
                orders += self._hear(early, now)
        if not self._posted and sandbox is not None:
            orders += [
                Skip(sandbox, f"an observation of an unknown action {unknown!r}")
                for unknown, observations in self._early.items()
                for _ in observations
            ]
            self._early.clear()
        return orders

    def refused(self, number: int, refusal: Refusal, reason: str, now: float) -> list[Order]:
        """A POST was not accepted."""
        if number not in self._posted:
            return []
        posted = self._posted.pop(number)
        if _cell_of(posted) is not self._cell:
            return []
        if isinstance(posted, _Probe):
            if refusal == "rejected":
                return []
            kind: Literal["died", "unknown"] = "died" if refusal == "gone" else "unknown"
            return self._fail(Error(kind, f"its sandbox does not answer: {reason}"), now)
        if refusal in ("unsent", "gone"):
            # It has not begun: the pool sends it elsewhere.
            self._closed = True
            self._cell = None
            return [*self._delete_all(), Tell(Closed(self.number, reason))]
        if refusal == "rejected":
            return self._fail(Error("rejected", reason), now)
        return self._fail(Error("unknown", f"the runtime did not answer: {reason}"), now)

    def heard(self, sandbox_id: str, observation: V1Observation, now: float) -> list[Order]:
        """The stream of a sandbox says something."""
        return self._hear(observation, now) if sandbox_id == self._sandbox else []

    def cut(self, sandbox_id: str, reason: str, now: float) -> list[Order]:
        """The stream of a sandbox is gone: what was said meanwhile will not be said again."""
        if sandbox_id == self._next:
            self._next = None
            return [Delete(sandbox_id), *self._go_on(now)]
        if sandbox_id != self._sandbox:
            return []
        if self._cell is not None:
            lost = Error("unknown", f"its stream was cut, and what was said is lost: {reason}")
            return self._fail(lost, now)
        return [*self._replace(), *self._go_on(now)]

    @property
    def deadline(self) -> float | None:
        """When `passed` wants to be called, or None."""
        cell = self._cell
        if cell is None:
            return None
        times = (cell.times_out, cell.settle_at, cell.probe_at)
        return min((at for at in times if at is not None), default=None)

    def passed(self, now: float) -> list[Order]:
        """It is this late."""
        cell = self._cell
        if cell is None:
            return []
        if cell.settle_at is not None and now >= cell.settle_at:
            return self._settle(now)
        if cell.times_out is not None and now >= cell.times_out:
            message = f"the cell ran for more than {cell.run.timeout:g} s"
            return self._fail(Error("timeout", message), now)
        if cell.probe_at is not None and now >= cell.probe_at:
            if cell.unheard == 2:
                lost = Error("unknown", "its stream has gone silent, and what was said is lost")
                return self._fail(lost, now)
            cell.unheard += 1
            cell.probe_at = now + min(LAST_PROBE, now - cell.started)
            return [self._post(_Probe(cell), PROBE)]
        return []

    # ── the rules ───────────────────────────────────────────────────────────

    def _go_on(self, now: float) -> list[Order]:
        orders: list[Order] = []
        if self._closed:
            return orders
        if self._sandbox is None and self._next is not None:
            self._sandbox, self._next = self._next, None
        if self._waiting is not None and self._cell is None and self._sandbox is not None:
            (run, token), self._waiting = self._waiting, None
            self._cell = _Cell(run, token, now)
            assert isinstance(run.work, Cells)
            code = original.source(to_text(run.work.sources[0]), token, run.work.variables)
            orders.append(self._post(self._cell, code))
        ahead = self._fresh and self._cell is not None and self._next is None
        if (self._sandbox is None or ahead) and not self._making:
            self._making = True
            orders.append(Make())
        return orders

    def _post(self, posted: _Cell | _Probe, code: str) -> Post:
        assert self._sandbox is not None
        number = next(self._numbers)
        self._posted[number] = posted
        return Post(self._sandbox, number, code)

    def _hear(self, said: V1Observation, now: float) -> list[Order]:
        if said.action_id in self._old:
            return []
        if said.action_id not in self._actions:
            if self._posted:
                self._early.setdefault(said.action_id, []).append(said)
                return []
            assert self._sandbox is not None
            return [Skip(self._sandbox, f"an observation of an unknown action {said.action_id!r}")]
        whose = self._actions[said.action_id]
        if isinstance(whose, _Probe):
            return self._hear_probe(said, whose.cell, now)
        return self._hear_cell(said, whose, now)

    def _hear_cell(self, said: V1Observation, cell: _Cell, now: float) -> list[Order]:
        if isinstance(said, StreamObservation):
            if said.stream not in cell.output:
                return [Skip(self._sandbox or "", f"output of a stream {said.stream!r}")]
            cell.output[said.stream].append(said.line)
        elif isinstance(said, ResultObservation):
            cell.result = said
            cell.settle_at = now + SETTLE
        elif isinstance(said, ErrorObservation):
            return self._hear_error(said.error, now)
        elif isinstance(said, EndObservation):
            if said.exit_code == -1:
                return self._hear_error(said.error or "no reason was given", now)
            # Its result, and all else that was said of it, came before.
            return self._settle(now)
        if cell.complete:
            return self._settle(now)
        return []

    def _hear_error(self, error: str, now: float) -> list[Order]:
        if STILL_RUNS in error:
            return []  # the runtime waits no longer; the cell goes on, and its result comes
        return self._fail(Error("died", f"the runtime lost the cell: {error}"), now)

    def _hear_probe(self, said: V1Observation, cell: _Cell, now: float) -> list[Order]:
        cell.unheard = 0
        if isinstance(said, ResultObservation):
            # Cells of one sandbox run one after the other: this one is over.
            cell.settle_at = cell.settle_at or now + SETTLE
        elif isinstance(said, ErrorObservation):
            return self._hear_error(said.error, now)
        return []

    def _settle(self, now: float) -> list[Order]:
        """All that will be heard of the cell was heard."""
        cell = self._cell
        assert cell is not None
        if not cell.complete or cell.result is None:
            lost = Error("unknown", "some of what the runtime said of the cell was lost on the way")
            return self._fail(lost, now)
        said = original.outcome(
            cell.text("stdout"),
            cell.text("stderr"),
            cell.token,
            cell.result,
            cell.limit,
        )
        return self._finish(cell, said, now, spoiled=False)

    def _fail(self, error: Error, now: float) -> list[Order]:
        """The cell is over for us, and may still run: its sandbox is of no more use."""
        cell = self._cell
        assert cell is not None
        known = original.output(cell.text("stdout"), cell.text("stderr"), cell.token, cell.limit)
        return self._finish(cell, [*known, error], now, spoiled=True)

    def _finish(
        self, cell: _Cell, said: list[Observation], now: float, spoiled: bool
    ) -> list[Order]:
        self._cell = None
        # Its probes are over with it; those without an answer yet are found to be so then.
        self._old += self._actions
        self._actions = {}
        errors = [each.kind for each in said if isinstance(each, Error)]
        # What was rejected did not begin.
        self._used = self._used or "rejected" not in errors
        orders = self._replace() if spoiled or self._fresh else []
        timed_out = "timeout" in errors
        seconds = now - cell.started if cell.accepted or timed_out else 0.0
        # The next sandbox is on its way before the pool is told, and sends the next cell.
        return [
            *orders,
            *self._go_on(now),
            *self._say(cell.run.action, [*said, End(seconds)]),
        ]

    def _replace(self) -> list[Order]:
        """The current sandbox is not used again, and another takes its place."""
        lost: list[Order] = []
        if self._opened.state == "session" and self._used:
            lost = [LoseState("the session's sandbox had to be replaced")]
        return [*lost, *self._spoil()]

    def _spoil(self) -> list[Order]:
        """The current sandbox is not used again."""
        sandbox, self._sandbox = self._sandbox, None
        self._used = False
        self._actions.clear()
        self._early.clear()
        self._old.clear()
        self._posted.clear()
        return [] if sandbox is None else [Delete(sandbox)]

    def _delete_all(self) -> list[Order]:
        following, self._next = self._next, None
        return [*self._spoil(), *([] if following is None else [Delete(following)])]

    def _say(self, action: int, said: list[Observation]) -> list[Order]:
        return [Tell(Said(action, observation)) for observation in said]


def _cell_of(posted: _Cell | _Probe) -> _Cell:
    return posted.cell if isinstance(posted, _Probe) else posted


def _missing(run: Run, opened: Open) -> str | None:
    """What is asked for that an original runtime cannot give."""
    if opened.initializer is not None:
        return "initializer="
    if opened.tasks is not None:
        return "max_tasks_per_child="
    # Those that it was not asked for it need not have.
    if opened.limits not in (None, Limits()):
        return "limits="
    if not isinstance(run.work, Cells):
        return "calls" if isinstance(run.work, PickledCall) else "shell commands as tasks"
    if run.stdin is not None:
        return "stdin="
    if run.given is not None:
        return "files=" if run.given.files else "fetch=" if run.given.fetch else "env="
    if run.work.argv is not None:
        return "argv="
    return "several cells as one task" if len(run.work.sources) > 1 else None
