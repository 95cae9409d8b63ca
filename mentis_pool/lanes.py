"""Which sandbox runs which action.

A lane has sandboxes of its own: of a shared lane any that is idle will do, a
session's lane has one, which keeps its state. What has the lowest number begins
first, whatever its lane and whenever it came; what waits behind a session's own cell
is passed over. A sandbox whose actions are done at once has a few of them given ahead.

Pure: every method returns the orders to carry out. Ours keeps the lanes of its
clients in the runtime; where an original runtime serves, the client keeps them.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections import deque
from typing import Any, Generic, Literal, NamedTuple, TypeVar

R = TypeVar("R")

DEATHS = 5
"""So many sandboxes in a row may be lost before one of them ran anything."""
AHEAD = 8
"""So many actions may be given to a sandbox besides the one that it runs."""
TRY_AGAIN = 50
"""After so many ends there may be more room than there was."""


# ── orders ──────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Make:
    """Start this sandbox, for this lane."""

    sandbox: int
    lane: int


@dataclasses.dataclass(frozen=True)
class Give(Generic[R]):
    """Have the sandbox run this."""

    sandbox: int
    action: int
    run: R


@dataclasses.dataclass(frozen=True)
class End:
    """End the action, which runs in this sandbox: it is not wanted any more."""

    sandbox: int
    action: int


@dataclasses.dataclass(frozen=True)
class Drop:
    """End this sandbox, with what runs in it."""

    sandbox: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Refuse:
    """The action will not run."""

    action: int
    kind: Literal["cancelled", "rejected", "state", "unreachable"]
    reason: str


@dataclasses.dataclass(frozen=True)
class Fail:
    """Sandboxes are lost as soon as they are started: none can work."""

    reason: str


Order = Make | Give[Any] | End | Drop | Refuse | Fail


class _Waiting(NamedTuple):
    """The lower begins first."""

    number: int
    action: int
    run: Any


class _Lane:
    def __init__(self, number: int, session: bool, once: bool) -> None:
        self.number = number
        self.session = session
        self.once = once
        self.waiting: deque[_Waiting] = deque()
        self.idle: deque[int] = deque()
        self.sandboxes: set[int] = set()
        self.begun = False
        """Whether a session has had anything run, so that it has state to lose."""
        self.renewed = False
        """Whether its state was lost while something runs that is not over yet."""
        self.lost: str | None = None
        """Why a session's state is lost, until somebody was told."""
        self.deaths = 0

    def wait(self, one: _Waiting) -> None:
        """In its place: it may have come before, and been lost."""
        if self.waiting and one < self.waiting[-1]:
            bisect.insort(self.waiting, one)
        else:
            self.waiting.append(one)


class Lanes(Generic[R]):
    """The lanes of one client.

    Args:
        most: how many actions run at once, at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lanes: dict[int, _Lane] = {}
        self._of: dict[int, _Lane] = {}
        """Lanes by sandbox, as long as it is not known to be gone."""
        self._given: dict[int, list[_Waiting]] = {}
        """What each busy sandbox has: what it runs first."""
        self._prompt: set[int] = set()
        """Sandboxes that take actions ahead."""
        self._at: dict[int, int] = {}
        """Sandboxes by action."""
        self._unwanted: set[int] = set()
        """Actions that were cancelled after a sandbox had them."""
        self._worked: set[int] = set()
        """Sandboxes that have run something."""
        self._room: int | None = None
        """How many sandboxes there is room for, as far as is known."""
        self._ended = 0
        """How many actions have ended."""
        self._try_at = 0
        """After so many ends there may be more room."""
        self._sandboxes = itertools.count(1)

    def open(self, lane: int, session: bool, once: bool = False) -> None:
        """A new lane; ``once``: each of its sandboxes is for one action."""
        self._lanes[lane] = _Lane(lane, session, once)

    def close(self, lane: int, reason: str) -> list[Order]:
        """A lane is of no more use."""
        closed = self._lanes.pop(lane, None)
        if closed is None:
            return []
        orders: list[Order] = [
            Refuse(waiting.action, "cancelled", reason) for waiting in closed.waiting
        ]
        closed.waiting.clear()
        orders += [Drop(sandbox, reason) for sandbox in sorted(closed.sandboxes)]
        return [*orders, *self._go_on()]

    def add(self, lane: int, action: int, run: R, number: int) -> list[Order]:
        """A new action; those of lower numbers begin before it, of the same one those of lower names."""
        its = self._lanes.get(lane)
        if its is None:
            return [Refuse(action, "rejected", f"there is no lane {lane}")]
        if its.lost is not None:
            reason, its.lost = its.lost, None
            return [Refuse(action, "state", reason)]
        its.wait(_Waiting(number, action, run))
        return self._go_on()

    def cancel(self, action: int) -> list[Order]:
        """An action is not wanted any more."""
        if action in self._at:
            self._unwanted.add(action)
            return [End(self._at[action], action)]
        for lane in self._lanes.values():
            for waiting in lane.waiting:
                if waiting.action == action:
                    lane.waiting.remove(waiting)
                    return [Refuse(action, "cancelled", "it was cancelled")]
        return []

    def sandbox_of(self, action: int) -> int | None:
        """The sandbox that has this action."""
        return self._at.get(action)

    @property
    def quiet(self) -> bool:
        """Whether no sandbox has anything to do."""
        return not self._given

    def ended(self, action: int, prompt: bool = False) -> list[Order]:
        """All was said of an action; ``prompt``: its sandbox takes others ahead."""
        sandbox = self._at.get(action)
        if sandbox is None:
            return []
        self._take(sandbox, action)
        self._unwanted.discard(action)
        lane = self._of[sandbox]
        lane.deaths = 0
        lane.begun, lane.renewed = not lane.renewed, False
        if prompt:
            self._prompt.add(sandbox)
        else:
            self._prompt.discard(sandbox)
        self._worked.add(sandbox)
        self._ended += 1
        if self._ended >= self._try_at:
            self._room = None
        orders: list[Order] = []
        if lane.once:
            self._remove(sandbox)
            orders.append(Drop(sandbox, "each action has a new one"))
        return [*orders, *self._go_on()]

    def returned(self, sandbox: int, actions: list[int]) -> list[Order]:
        """A sandbox does not begin these: what it runs takes longer."""
        self._prompt.discard(sandbox)
        orders: list[Order] = []
        for action in actions:
            if self._at.get(action) == sandbox:
                given = self._take(sandbox, action)
                orders += self._wait_again(self._of[sandbox], given, "its lane was closed")
        return [*orders, *self._go_on()]

    def ready(self, sandbox: int) -> None:
        """An idle sandbox has cleaned up after its last action, and can begin at once."""
        lane = self._of.get(sandbox)
        if lane is not None and sandbox in lane.idle:
            lane.idle.remove(sandbox)
            lane.idle.appendleft(sandbox)

    def state_lost(self, sandbox: int, reason: str) -> list[Order]:
        """What a session's sandbox knew is gone; to be told before its action's end."""
        lane = self._of.get(sandbox)
        if lane is None or not lane.session:
            return []
        lane.renewed = sandbox in self._given
        return self._lose_state(lane, reason)

    def lost(self, sandbox: int, reason: str) -> list[Order]:
        """A sandbox is gone. What it was given and did not end, it did not begin."""
        lane, given = self._remove(sandbox)
        worked = sandbox in self._worked
        self._worked.discard(sandbox)
        if lane is None:
            return []
        orders = [order for each in given for order in self._wait_again(lane, each, reason)]
        lane.renewed = False
        if self._lanes.get(lane.number) is not lane:
            # It was to end: that says nothing of how others would fare.
            return [*orders, *self._go_on()]
        if lane.session and lane.begun:
            orders += self._lose_state(lane, reason)
        if worked:
            pass
        elif self._given:
            # Others work: there may be too little of something for one more, just now.
            self._room = len(self._of)
            self._try_at = self._ended + 1
        else:
            lane.deaths += 1
        if lane.deaths >= DEATHS:
            lane.deaths = 0
            return [*orders, Fail(reason)]
        return [*orders, *self._go_on()]

    def refused(self, sandbox: int, reason: str) -> list[Order]:
        """There is no room for this sandbox: those that there are do the work."""
        lane, given = self._remove(sandbox)
        if lane is None:
            return []
        orders = [order for each in given for order in self._wait_again(lane, each, reason)]
        self._room = len(self._of)
        self._try_at = self._ended + TRY_AGAIN
        orders += self._give()
        if not self._given:
            # Nothing that runs will end, and so make room.
            orders += self._refuse_all(reason)
        return orders

    def unreachable(self, reason: str) -> list[Order]:
        """Nothing more can be done for what waits."""
        orders: list[Order] = []
        for lane in self._lanes.values():
            orders += [Refuse(each.action, "unreachable", reason) for each in lane.waiting]
            lane.waiting.clear()
        return orders

    # ── the rules ───────────────────────────────────────────────────────────

    def _take(self, sandbox: int, action: int) -> _Waiting:
        """Take an action from the sandbox that has it."""
        given = self._given[sandbox]
        (taken,) = (each for each in given if each.action == action)
        given.remove(taken)
        del self._at[action]
        if not given:
            del self._given[sandbox]
            self._of[sandbox].idle.append(sandbox)
        return taken

    def _remove(self, sandbox: int) -> tuple[_Lane | None, list[_Waiting]]:
        lane = self._of.pop(sandbox, None)
        if lane is None:
            return None, []
        lane.sandboxes.discard(sandbox)
        self._prompt.discard(sandbox)
        if sandbox in lane.idle:
            lane.idle.remove(sandbox)
        given = self._given.pop(sandbox, [])
        for each in given:
            del self._at[each.action]
        return lane, given

    def _wait_again(self, lane: _Lane, given: _Waiting, reason: str) -> list[Order]:
        """What a sandbox did not begin keeps its place, unless nobody wants it any more."""
        if given.action in self._unwanted:
            self._unwanted.remove(given.action)
            return [Refuse(given.action, "cancelled", "it was cancelled")]
        if self._lanes.get(lane.number) is not lane:
            return [Refuse(given.action, "cancelled", reason)]
        lane.wait(given)
        return []

    def _lose_state(self, lane: _Lane, reason: str) -> list[Order]:
        lane.begun = False
        if not lane.waiting:
            lane.lost = reason
            return []
        waiting, lane.waiting = lane.waiting, deque()
        return [Refuse(each.action, "state", reason) for each in waiting]

    def _refuse_all(self, reason: str) -> list[Order]:
        # Whoever comes next asks again.
        self._room = None
        orders: list[Order] = []
        for lane in self._lanes.values():
            orders += [Refuse(each.action, "rejected", reason) for each in lane.waiting]
            lane.waiting.clear()
        return orders

    def _go_on(self) -> list[Order]:
        """Whatever can be done now."""
        orders = self._give()
        if not self._given and any(lane.waiting for lane in self._lanes.values()):
            # Nothing runs that would make room by its end: it is asked for again.
            self._room = None
            orders += self._give()
        return orders

    def _give(self) -> list[Order]:
        """Whatever can be given now, the oldest first."""
        orders: list[Order] = []
        while len(self._given) < self._most:
            ready = [lane for lane in self._lanes.values() if lane.waiting and self._can_run(lane)]
            if not ready:
                break
            lane = min(ready, key=lambda lane: lane.waiting[0])
            if not lane.idle:
                orders += self._make(lane)
            # The first is one that is ready, where there is one.
            orders.append(self._give_next(lane, lane.idle.popleft()))
        return [*orders, *self._give_ahead()] if self._prompt else orders

    def _give_ahead(self) -> list[Order]:
        """What could not be given to a free sandbox goes to busy ones, the oldest first."""
        orders: list[Order] = []
        while (lane := self._held_up()) is not None:
            least, takes = AHEAD + 1, None
            for sandbox in self._prompt:
                given = self._given.get(sandbox)
                if given and len(given) < least and sandbox in lane.sandboxes:
                    least, takes = len(given), sandbox
            if takes is None:
                break
            orders.append(self._give_next(lane, takes))
        return orders

    def _held_up(self) -> _Lane | None:
        """The lane of the oldest that waits for more than its own session."""
        found: _Lane | None = None
        for lane in self._lanes.values():
            if (
                lane.waiting
                and (not lane.session or not lane.sandboxes or lane.idle)
                and (found is None or lane.waiting[0] < found.waiting[0])
            ):
                found = lane
        return found

    def _give_next(self, lane: _Lane, sandbox: int) -> Order:
        given = lane.waiting.popleft()
        self._given.setdefault(sandbox, []).append(given)
        self._at[given.action] = sandbox
        return Give(sandbox, given.action, given.run)

    def _can_run(self, lane: _Lane) -> bool:
        if lane.idle:
            return True
        if lane.session and lane.sandboxes:
            return False
        return self._room is None or len(self._of) < self._room or self._idle_other() is not None

    def _make(self, lane: _Lane) -> list[Order]:
        orders: list[Order] = []
        other = self._idle_other()
        if self._room is not None and len(self._of) >= self._room and other is not None:
            self._remove(other)
            orders.append(Drop(other, "it made way for another"))
        sandbox = next(self._sandboxes)
        self._of[sandbox] = lane
        lane.sandboxes.add(sandbox)
        lane.idle.append(sandbox)
        return [*orders, Make(sandbox, lane.number)]

    def _idle_other(self) -> int | None:
        """A sandbox that may make way for one of another lane."""
        for lane in self._lanes.values():
            if not lane.session and lane.idle:
                return lane.idle[0]
        return None
