"""Which task goes to the runtime, and what becomes of it.

Tasks wait here, in the order of their submission; a few more than may run at once
are at the runtime, which has them ready for sandboxes that become free and begins
with the oldest. A session's tasks have a lane of their own, and go one ahead.

Nothing here waits, sends, logs or reads a clock. Every method is called with
the engine's lock held and returns the orders to carry out once it is released.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections import deque
from collections.abc import Collection
from typing import Literal

import msgspec

from mentis_pool.observations import End, Error, ErrorKind, Observation, Start
from mentis_pool.task import ENDED, QUEUED, RUNNING, SENT, Task

CELLS, CALLS = 1, 2
"""The lanes that all tasks share which are in no session."""
AHEAD = 32
"""Tasks at the runtime besides those that may run."""
AHEAD_BYTES = 64 * 1024 * 1024
"""Bytes of them, from which on no more go ahead."""
TIMES = 1000
"""So many reminders may be of no more use, besides as many as are."""


# ── orders ──────────────────────────────────────────────────────────────────


class _Order(msgspec.Struct, frozen=True):
    """Base: made in a sixth of the time that a dataclass takes, three for each task."""


class Connect(_Order, frozen=True):
    """A runtime is needed; ``failures`` were lost in a row before they ended any task."""

    failures: int


class OpenLane(_Order, frozen=True):
    """Open this lane, on the connection that has this number."""

    lane: int
    connection: int


class CloseLane(_Order, frozen=True):
    """Forget this lane, and close it if it is open on the connection that has this number."""

    lane: int
    connection: int
    reason: str


class Send(_Order, frozen=True):
    """Send the task, under this action's number."""

    task: Task
    action: int
    connection: int


class Withdraw(_Order, frozen=True):
    """Have the runtime not run this action, or end it."""

    action: int
    connection: int


class Strike(_Order, frozen=True):
    """Have the runtime send a signal to the process that runs this action."""

    action: int
    connection: int
    signal: int


class Started(_Order, frozen=True):
    """The task began to run."""

    task: Task


class Retried(_Order, frozen=True):
    """The task was lost, and waits again."""

    task: Task
    reason: str


class Judge(_Order, frozen=True):
    """Ask the task's own policy whether it is to run again; then `Pool.judged`."""

    task: Task


class Settle(_Order, frozen=True):
    """All was said about the task; ``error`` is its outcome where that says more."""

    task: Task
    error: Exception | None = None


class Cancel(_Order, frozen=True):
    """Cancel the task's future: it will not run."""

    task: Task


class Cancelled(_Order, frozen=True):
    """The task's user cancelled it before it began; its waiters were told."""

    task: Task


class Stop(_Order, frozen=True):
    """Nothing is left to do, and nothing more will come."""


Order = (
    Connect
    | OpenLane
    | CloseLane
    | Send
    | Withdraw
    | Strike
    | Started
    | Retried
    | Judge
    | Settle
    | Cancel
    | Cancelled
    | Stop
)


class _Lane:
    def __init__(self, number: int, session: bool) -> None:
        self.number = number
        self.session = session
        self.queue: deque[Task] = deque()
        self.last: Task | None = None
        """Of a session, what was sent last."""
        self.connection = 0
        """On which it is open."""
        self.begun = False
        """Whether a session has state to lose."""
        self.lost: str | None = None
        """Why that is lost, until somebody was told."""


class Pool:
    """The policy of one executor over one runtime.

    Args:
        max_workers: tasks running at once at most.
        ahead: the lanes whose tasks go to workers ahead of their turn.
    """

    def __init__(self, max_workers: int, ahead: Collection[int] = (CALLS,)) -> None:
        self._max_workers = max_workers
        self._ahead = ahead
        self._lanes = {number: _Lane(number, False) for number in (CELLS, CALLS)}
        self._at_runtime: dict[int, Task] = {}
        """Tasks by action, from Send to End."""
        self._shared = 0
        """How many of them are in no session."""
        self._bytes = 0
        self._judging: dict[Task, End] = {}
        self._delayed: dict[Task, None] = {}
        self._times: list[tuple[float, int, Literal["queue", "deadline", "again"], Task]] = []
        self._most_times = TIMES
        self._unstarted = 0
        self._numbers = itertools.count(1)
        self._actions = itertools.count(1)
        self._ticks = itertools.count(1)
        self._new_lanes = itertools.count(CALLS + 1)
        self._connection = 0
        self._connected = False
        self._connecting = False
        self._failures = 0
        self._closing = False
        self._stopped = False

    @property
    def closing(self) -> bool:
        """Whether no more tasks are taken."""
        return self._closing

    @property
    def waiting(self) -> int:
        """How many tasks have not begun."""
        return self._unstarted

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._lanes) - 2

    @property
    def deadline(self) -> float | None:
        """When `passed` wants to be called, or None."""
        while self._times and not self._still_due(*self._times[0][2:]):
            heapq.heappop(self._times)
        return self._times[0][0] if self._times else None

    # ── from the executor ───────────────────────────────────────────────────

    def add(self, task: Task) -> list[Order]:
        """A new task; one that comes after `shutdown`, or to a closed session, is cancelled."""
        lane = self._lanes.get(task.lane)
        if self._closing or lane is None:
            task.state = ENDED
            return [Cancel(task)]
        task.number = next(self._numbers)
        if lane.lost is not None:
            reason, lane.lost = lane.lost, None
            task.refuse("state", reason)
            return [Settle(task)]
        task.stateful = lane.session
        self._unstarted += 1
        lane.queue.append(task)
        self._remind_limits(task)
        return self._go_on()

    def cancelled(self, task: Task) -> list[Order]:
        """The task's future was cancelled."""
        if task.ended or task.claim():
            return []
        return [*self._give_up(task), Cancelled(task), *self._go_on()]

    def signal(self, task: Task, number: int, final: bool) -> list[Order]:
        """Send a signal to what runs; nothing, where it does not.

        ``final``: it is not run again, and where it waits for that it ends.
        """
        if task.state is RUNNING and task.action in self._at_runtime:
            task.unwanted = task.unwanted or final
            return [Strike(task.action, self._connection, number)]
        if not final or not task.claimed or task.ended:
            return []
        reason = "it was killed before it was run again"
        return [*self._drop(task, reason, "died"), *self._go_on()]

    def open_session(self) -> int:
        """A new lane, for a session."""
        number = next(self._new_lanes)
        self._lanes[number] = _Lane(number, True)
        return number

    def close_session(self, number: int, reason: str) -> list[Order]:
        """Its tasks that wait are cancelled, what runs is ended; whoever hears of that is told why."""
        lane = self._lanes.pop(number, None)
        if lane is None:
            return []
        orders: list[Order] = []
        for task in [*lane.queue, *self._elsewhere()]:
            if task.lane == number:
                orders += self._drop(task, reason)
        if not self._stopped:
            orders.append(CloseLane(number, lane.connection, reason))
        return [*orders, *self._go_on()]

    def shutdown(self, cancel: bool) -> list[Order]:
        """Take no more tasks; with ``cancel`` those are not run either that wait for others.

        As with the standard executors, what a worker was free for is not cancelled.
        """
        self._closing = True
        orders: list[Order] = []
        if cancel:
            tasks = [task for task in self._all() if not task.ended]
            apart = {*self._judging, *self._delayed}
            kept = [task for task in tasks if task not in apart][: self._max_workers]
            for task in tasks:
                if task not in kept:
                    orders += self._cancel(task)
        return [*orders, *self._go_on()]

    def kill(self, number: int) -> list[Order]:
        """`shutdown` that cancels, and a signal to all that runs."""
        self._closing = True
        orders: list[Order] = []
        for task in self._all():
            orders += self._drop(task, "its executor was killed")
            orders += self.signal(task, number, final=True)
        return [*orders, *self._go_on()]

    # ── from the runtime ────────────────────────────────────────────────────

    def connected(self) -> list[Order]:
        """A runtime is there."""
        self._connecting = False
        self._connected = True
        self._connection += 1
        return self._go_on()

    def unavailable(self, error: Exception) -> list[Order]:
        """No runtime can be had: whoever waits hears why. The next task tries again."""
        self._connecting = False
        return [*self._refuse(error), *self._go_on()]

    def disconnected(
        self, reason: str, now: float, kind: Literal["died", "unknown"] = "died"
    ) -> list[Order]:
        """The runtime is lost, with all sandboxes; ``kind`` is what became of what ran in them."""
        self._connected = False
        self._failures += 1
        orders: list[Order] = []
        # As many as there are workers may have begun, and not yet be known to: one had not
        # while so many waited there that were sent before it and are older. But what goes to
        # workers ahead of its turn may have ended by the dozen before a word of it is sent.
        doubtful: list[int] = []
        for task in list(self._at_runtime.values()):
            self._take_back(task)
            if task.ended:
                continue
            # None of a session that was closed while this ran.
            lane = self._lanes.get(task.lane)
            only_sent = lane is not None and task.waits and not task.known
            before = bisect.bisect(doubtful, task.number)
            only_waited = task.lane not in self._ahead and before >= self._max_workers
            if only_sent and lane is not None and (lane.begun or only_waited):
                # It only waited there; before those that wait here behind it.
                task.unsent()
                bisect.insort(lane.queue, task, key=_number)
            else:
                if only_sent and task.lane not in self._ahead:
                    doubtful.insert(before, task.number)
                orders += self._over(task, task.lost(reason, now, kind), reason)
        for lane in self._lanes.values():
            if lane.begun:
                orders += self._lose_state(lane.number, reason)
        return [*orders, *self._go_on()]

    def said(self, action: int, observation: Observation, now: float) -> list[Order]:
        """The runtime said something about an action; of one that has ended, it is ignored."""
        task = self._at_runtime.get(action)
        if task is None:
            return []
        if task.state is ENDED:
            # Nobody wants it any more, but its sandbox is busy until its end.
            if type(observation) is Error and observation.kind == "state":
                return self._lose_state(task.lane, observation.message)
            if type(observation) is not End:
                return []
            self._take_back(task)
            return self._go_on()
        if type(observation) is End:
            self._failures = 0
            self._take_back(task)
            return [*self._over(task, observation, "its sandbox failed"), *self._go_on()]
        orders: list[Order] = []
        if type(observation) is Error:
            orders = self._hear_error(task, observation)
        elif task.state is SENT:
            orders = self._begin(task)
        if task.state is not ENDED:
            task.observe(observation, now)
            if type(observation) is Start:
                orders.append(Started(task))
                if task.stateful:
                    orders += self._go_on()
        return orders

    def unsent(self, action: int) -> list[Order]:
        """What was to be sent under this action was not, since nobody wants it any more."""
        task = self._at_runtime.get(action)
        if task is not None:
            self._take_back(task)
        return self._go_on()

    def task_of(self, action: int) -> Task | None:
        """The task that has this action, while it is at the runtime and wanted."""
        task = self._at_runtime.get(action)
        return None if task is None or task.ended else task

    def is_alone(self, task: Task) -> bool:
        """Whether the runtime has this task, and nothing else."""
        return len(self._at_runtime) == 1 and task.action in self._at_runtime

    def running_in(self, lane: int) -> Task | None:
        """The task of a session that runs."""
        for task in self._at_runtime.values():
            if task.lane == lane and task.state is RUNNING:
                return task
        return None

    def judged(self, task: Task, wait: float | None, now: float) -> list[Order]:
        """A task's own policy says that it is to run again after so many seconds, or not (None)."""
        end = self._judging.pop(task, None)
        if end is None:
            return []
        if wait is None:
            return [*self._settle(task, end), *self._go_on()]
        self._unstarted += not task.waits
        task.back()
        self._delayed[task] = None
        self._remind(now + wait, "again", task)
        self._remind_limits(task)
        return [Retried(task, "its policy says so"), *self._go_on()]

    def passed(self, now: float) -> list[Order]:
        """It is this late."""
        orders: list[Order] = []
        while (due := self.deadline) is not None and due <= now:
            _, _, what, task = heapq.heappop(self._times)
            self._delayed.pop(task, None)
            if what == "again":
                orders += self._queue_again(task)
                continue
            seconds = getattr(task.settings, "queue_timeout" if what == "queue" else "deadline")
            orders += self._give_up(task)
            task.refuse(what, f"it did not begin within {seconds:g} s")
            orders.append(Settle(task))
        return [*orders, *self._go_on()]

    def fail(self, error: Exception, now: float) -> list[Order]:
        """Nothing works any more: every task that has no outcome gets this one."""
        self._closing = True
        orders: list[Order] = []
        for task in list(self._at_runtime.values()):
            self._take_back(task)
            if not task.ended:
                task.unwanted = True
                self._unstarted -= task.waits
                task.observe(task.lost(str(error), now), now)
                orders.append(Settle(task, error))
        for task, end in self._judging.items():
            orders += self._settle(task, end)
        self._judging.clear()
        return [*orders, *self._refuse(error)]

    # ── the rules ───────────────────────────────────────────────────────────

    def _go_on(self) -> list[Order]:
        """Whatever can be done now: send, connect, stop."""
        orders: list[Order] = []
        while (lane := self._next_lane()) is not None:
            if not self._connected:
                if not self._connecting:
                    self._connecting = True
                    orders.append(Connect(self._failures))
                break
            if lane.connection != self._connection:
                lane.connection = self._connection
                orders.append(OpenLane(lane.number, self._connection))
            orders.append(self._send(lane.queue.popleft(), lane))
        if self._closing and not self._stopped and self._is_empty():
            self._stopped = True
            orders.append(Stop())
        return orders

    def _is_empty(self) -> bool:
        return (
            not self._at_runtime
            and not self._judging
            and not self._delayed
            and not any(lane.queue for lane in self._lanes.values())
        )

    def _next_lane(self) -> _Lane | None:
        """The one whose first task goes next: the oldest, but for those that wait for their session.

        One that the lanes share which may not go yet holds up all that are younger: a
        session's task, sent now, would begin before it.
        """
        go_ahead = self._may_go_ahead()
        if not go_ahead and not self.sessions:
            return None
        found: _Lane | None = None
        for lane in self._lanes.values():
            while lane.queue and lane.queue[0].ended:
                lane.queue.popleft()
            if (
                lane.queue
                and (found is None or lane.queue[0].number < found.queue[0].number)
                and (not lane.session or self._may_follow(lane.last))
            ):
                found = lane
        if found is None or found.session or go_ahead:
            return found
        return None

    def _may_follow(self, last: Task | None) -> bool:
        """Whether a session's next task may go: it is to find what the last one left.

        It goes ahead of the end of one that runs. Before that it may turn out that the
        state is lost, or that its policy wants it to be run again: whatever comes after it
        is to hear of that, or to wait.
        """
        if last is None:
            return True
        if last in self._judging or last in self._delayed:
            return False
        return last.action not in self._at_runtime or (last.state is RUNNING and not last.judged)

    def _may_go_ahead(self) -> bool:
        ahead = self._shared - self._max_workers
        return ahead < 0 or (ahead < AHEAD and self._bytes < AHEAD_BYTES)

    def _send(self, task: Task, lane: _Lane) -> Send:
        task.sent(next(self._actions))
        self._at_runtime[task.action] = task
        lane.last = task
        self._shared += not lane.session
        self._bytes += task.size
        return Send(task, task.action, self._connection)

    def _take_back(self, task: Task) -> None:
        """The runtime has no more to do with the task."""
        del self._at_runtime[task.action]
        self._bytes -= task.size
        self._shared -= task.lane in (CELLS, CALLS)

    def _elsewhere(self) -> list[Task]:
        """Tasks that wait in no lane."""
        return [*self._at_runtime.values(), *self._judging, *self._delayed]

    def _all(self) -> list[Task]:
        """Every task, the oldest first."""
        queued = [task for lane in self._lanes.values() for task in lane.queue]
        return sorted([*queued, *self._elsewhere()], key=_number)

    def _begin(self, task: Task) -> list[Order]:
        """Whatever is said of it, it runs."""
        if not task.claim():
            # Its future was cancelled a moment ago.
            return [*self._give_up(task), Cancelled(task)]
        self._unstarted -= 1
        lane = self._lanes[task.lane]
        lane.begun = lane.session
        return []

    def _hear_error(self, task: Task, error: Error) -> list[Order]:
        if error.kind == "cancelled":
            return self._cancel(task, at_runtime=False)
        if error.kind != "state":
            return []
        if task.claim():
            # It hears of it, whatever its future is asked from now on.
            return self._lose_queued(task.lane, error.message)
        self._give_up(task)
        return [Cancelled(task), *self._lose_state(task.lane, error.message)]

    def _over(self, task: Task, end: End, reason: str) -> list[Order]:
        """The task's attempt is over: it is run again, or judged, or has its outcome."""
        if task.again is not None and not task.unwanted:
            self._unstarted += not task.waits
            task.back()
            self._remind_limits(task)
            return [Retried(task, reason), *self._queue_again(task)]
        if task.judged:
            self._judging[task] = end
            return [Judge(task)]
        return self._settle(task, end)

    def _settle(self, task: Task, end: End) -> list[Order]:
        self._unstarted -= task.waits
        task.observe(end, 0.0)
        return [Settle(task)]

    def _queue_again(self, task: Task) -> list[Order]:
        lane = self._lanes[task.lane]
        bisect.insort(lane.queue, task, key=_number)
        return [] if lane.lost is None else self._lose_state(lane.number, lane.lost)

    def _give_up(self, task: Task) -> list[Order]:
        """Nobody wants the task any more, which has not begun."""
        self._unstarted -= 1
        self._judging.pop(task, None)
        self._delayed.pop(task, None)
        task.state = ENDED
        there = task.action in self._at_runtime
        return [Withdraw(task.action, self._connection)] if there else []

    def _drop(self, task: Task, reason: str, kind: ErrorKind = "cancelled") -> list[Order]:
        """It will not be run any more: one that waits is cancelled, or ends with what it gave before."""
        task.unwanted = True
        end = self._judging.pop(task, None)
        if end is not None and task.claimed is not None:
            return self._settle(task, end)
        if not task.waits:
            return []
        if task.claimed is None:
            return self._cancel(task)
        withdraw = self._give_up(task)
        task.refuse(kind, reason)
        return [*withdraw, Settle(task)]

    def _cancel(self, task: Task, at_runtime: bool = True) -> list[Order]:
        """Cancel the task's future, unless it has begun."""
        if not task.waits or task.claimed is not None:
            return []
        withdraw = self._give_up(task)
        return [*(withdraw if at_runtime else []), Cancel(task)]

    def _lose_state(self, number: int, reason: str) -> list[Order]:
        """What a session knew is gone, and nobody was told: the next one is."""
        orders = self._lose_queued(number, reason)
        told = any(isinstance(order, Settle) for order in orders)
        if number in self._lanes:
            self._lanes[number].lost = None if told else reason
        return orders

    def _lose_queued(self, number: int, reason: str) -> list[Order]:
        """What a session knew is gone: whatever was submitted before that is known hears of it."""
        lane = self._lanes.get(number)
        if lane is None:
            return []
        lane.begun = False
        orders: list[Order] = []
        for task in lane.queue:
            if not task.waits:
                continue
            self._unstarted -= 1
            if task.claim():
                task.refuse("state", reason)
                orders.append(Settle(task))
            else:
                task.state = ENDED
                orders.append(Cancelled(task))
        lane.queue.clear()
        return orders

    def _refuse(self, error: Exception) -> list[Order]:
        refused = [task for lane in self._lanes.values() for task in lane.queue]
        refused += sorted(self._delayed, key=_number)
        self._delayed.clear()
        for lane in self._lanes.values():
            lane.queue.clear()
        orders: list[Order] = []
        for task in sorted(refused, key=_number):
            if task.state is QUEUED:
                self._unstarted -= 1
                task.refuse("unknown", str(error))
                orders.append(Settle(task, error))
        return orders

    # ── time ────────────────────────────────────────────────────────────────

    def _remind(self, at: float, what: Literal["queue", "deadline", "again"], task: Task) -> None:
        heapq.heappush(self._times, (at, next(self._ticks), what, task))
        if len(self._times) > self._most_times:
            # Of tasks that ended long before their limits.
            self._times = [each for each in self._times if self._still_due(*each[2:])]
            heapq.heapify(self._times)
            self._most_times = 2 * len(self._times) + TIMES

    def _remind_limits(self, task: Task) -> None:
        settings = task.settings
        if settings.queue_timeout is not None and not task.claimed:
            self._remind(task.submitted + settings.queue_timeout, "queue", task)
        if settings.deadline is not None:
            self._remind(task.submitted + settings.deadline, "deadline", task)

    def _still_due(self, what: str, task: Task) -> bool:
        if what == "again":
            return task in self._delayed
        waits = task.waits and not task.known
        return waits and (what == "deadline" or not task.claimed)


def _number(task: Task) -> int:
    return task.number
