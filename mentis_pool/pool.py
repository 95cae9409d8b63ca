"""Which sandbox runs which task.

Nothing here waits, sends, logs or reads a clock. Every method is called with
the engine's lock held and returns the orders to carry out once it is released.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections import deque
from typing import Literal

from mentis_pool.errors import RuntimeRejected
from mentis_pool.observations import End, Observation, Start
from mentis_pool.task import State, Task


@dataclasses.dataclass(frozen=True)
class Connect:
    """A runtime is needed; ``failures`` were lost in a row before they ended any task."""

    failures: int


@dataclasses.dataclass(frozen=True)
class OpenSandbox:
    """Start this sandbox, on the connection that has this number."""

    sandbox: int
    connection: int


@dataclasses.dataclass(frozen=True)
class Send:
    """Send the task to this sandbox, under this action's number."""

    task: Task
    action: int
    sandbox: int
    connection: int


@dataclasses.dataclass(frozen=True)
class Started:
    """The task began to run."""

    task: Task


@dataclasses.dataclass(frozen=True)
class Retried:
    """The task was lost, and waits again."""

    task: Task
    reason: str


@dataclasses.dataclass(frozen=True)
class Settle:
    """All was said about the task; ``error`` is its outcome where it never got to a runtime."""

    task: Task
    error: Exception | None = None


@dataclasses.dataclass(frozen=True)
class Cancel:
    """Cancel the task's future: it will not be sent."""

    task: Task


@dataclasses.dataclass(frozen=True)
class Cancelled:
    """The task's user cancelled it before it was sent; its waiters were told."""

    task: Task


@dataclasses.dataclass(frozen=True)
class Stop:
    """Nothing is left to do, and nothing more will come."""


Order = Connect | OpenSandbox | Send | Started | Retried | Settle | Cancel | Cancelled | Stop


class Pool:
    """The policy of one executor over one runtime.

    Args:
        max_workers: sandboxes at most, so tasks running at once at most.
        retries: how often a task is sent again that was lost before it began.
    """

    def __init__(self, max_workers: int, retries: int) -> None:
        self._max_workers = max_workers
        self._room = max_workers
        """How many sandboxes the runtime has room for, as far as is known."""
        self._retries = retries
        self._queue: deque[Task] = deque()
        self._running: dict[int, Task] = {}
        """Tasks by action, from Send to End."""
        self._idle: deque[int] = deque()
        self._busy: dict[int, Task] = {}
        """Tasks by sandbox."""
        self._numbers = itertools.count(1)
        self._sandboxes = itertools.count(1)
        self._actions = itertools.count(1)
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

    def add(self, task: Task) -> list[Order]:
        """A new task; one that comes after `shutdown` is cancelled."""
        if self._closing:
            return [Cancel(task)]
        task.number = next(self._numbers)
        self._queue.append(task)
        return self._go_on()

    def connected(self) -> list[Order]:
        """A runtime is there."""
        self._connecting = False
        self._connected = True
        self._connection += 1
        self._room = self._max_workers
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
        orders = [
            order
            for sandbox in [*self._idle, *self._busy]
            for order in self._lose(sandbox, reason, now, kind)
        ]
        return [*orders, *self._go_on()]

    def closed(self, sandbox: int, reason: str, now: float) -> list[Order]:
        """A sandbox is lost."""
        return [*self._lose(sandbox, reason, now), *self._go_on()]

    def refused(self, sandbox: int, reason: str) -> list[Order]:
        """The runtime has no room for this sandbox: those that there are do the work.

        Where there are none, whoever waits hears why. The next task tries again.
        """
        task = self._busy.pop(sandbox, None)
        if sandbox in self._idle:
            self._idle.remove(sandbox)
        if task is not None:
            del self._running[task.action]
            task.refused()
            bisect.insort(self._queue, task, key=_number)
        self._room = len(self._idle) + len(self._busy)
        if self._room:
            return self._go_on()
        self._room = self._max_workers
        return [*self._refuse(RuntimeRejected(reason)), *self._go_on()]

    def said(self, action: int, observation: Observation, now: float) -> list[Order]:
        """The runtime said something about an action; of one that has ended, it is ignored."""
        task = self._running.get(action)
        if task is None:
            return []
        task.observe(observation, now)
        if isinstance(observation, Start):
            return [Started(task)]
        if isinstance(observation, End):
            self._failures = 0
            self._free(task)
            if task.again:
                return [self._put_back(task, "its sandbox failed"), *self._go_on()]
            return [Settle(task), *self._go_on()]
        return []

    def task_of(self, action: int) -> Task | None:
        """The task that has this action, while it runs."""
        return self._running.get(action)

    def shutdown(self, cancel: bool) -> list[Order]:
        """Take no more tasks; with ``cancel`` those that were never sent are not run either."""
        self._closing = True
        orders: list[Order] = []
        if cancel:
            orders += [Cancel(task) for task in self._queue if task.attempt == 0]
            self._queue = deque(task for task in self._queue if task.attempt)
        return [*orders, *self._go_on()]

    def fail(self, error: Exception, now: float) -> list[Order]:
        """Nothing works any more: every task that has no outcome gets this one."""
        self._closing = True
        orders: list[Order] = []
        for task in list(self._running.values()):
            self._free(task)
            task.reruns = task.settings.retries
            task.lost(str(error), now)
            orders.append(Settle(task, error))
        return [*orders, *self._refuse(error)]

    # ── the rules ───────────────────────────────────────────────────────────

    def _go_on(self) -> list[Order]:
        """Whatever can be done now: send, open, connect, stop."""
        orders: list[Order] = []
        if self._connected:
            while self._queue and (self._idle or self._can_open()):
                task = self._queue.popleft()
                if not task.claim():
                    orders.append(Cancelled(task))
                    continue
                if not self._idle:
                    sandbox = next(self._sandboxes)
                    self._idle.append(sandbox)
                    orders.append(OpenSandbox(sandbox, self._connection))
                orders.append(self._send(task))
        elif self._queue and not self._connecting:
            self._connecting = True
            orders.append(Connect(self._failures))
        if self._closing and not self._queue and not self._busy and not self._stopped:
            self._stopped = True
            orders.append(Stop())
        return orders

    def _can_open(self) -> bool:
        return len(self._idle) + len(self._busy) < self._room

    def _send(self, task: Task) -> Send:
        # The one that has been idle longest: it has cleaned up after its last task.
        sandbox = self._idle.popleft()
        task.sent(next(self._actions), sandbox)
        self._busy[sandbox] = task
        self._running[task.action] = task
        return Send(task, task.action, sandbox, self._connection)

    def _free(self, task: Task) -> None:
        """The task has no more use for its sandbox."""
        del self._running[task.action]
        del self._busy[task.sandbox]
        self._idle.append(task.sandbox)

    def _lose(
        self, sandbox: int, reason: str, now: float, kind: Literal["died", "unknown"] = "died"
    ) -> list[Order]:
        if sandbox in self._idle:
            self._idle.remove(sandbox)
            return []
        task = self._busy.pop(sandbox, None)
        if task is None:
            return []
        del self._running[task.action]
        # One that may have begun is not run twice, unless its own settings say so.
        if task.state is State.SENT and task.attempt - task.reruns <= self._retries:
            return [self._put_back(task, reason)]
        task.lost(reason, now, kind)
        return [self._put_back(task, reason) if task.again else Settle(task)]

    def _put_back(self, task: Task, reason: str) -> Retried:
        task.back()
        bisect.insort(self._queue, task, key=_number)
        return Retried(task, reason)

    def _refuse(self, error: Exception) -> list[Order]:
        refused, self._queue = self._queue, deque()
        orders: list[Order] = []
        for task in refused:
            if task.claim():
                task.refuse(str(error))
                orders.append(Settle(task, error))
            else:
                orders.append(Cancelled(task))
        return orders


def _number(task: Task) -> int:
    return task.number
