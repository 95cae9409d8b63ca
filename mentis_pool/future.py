"""The futures of tasks: `concurrent.futures.Future`s that also let one listen, and stop what runs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mentis_pool.observations import Cut, Observation, Start, Stream, StreamName
from mentis_pool.results import CellResult
from mentis_pool.text import to_text

if TYPE_CHECKING:
    from mentis_pool.task import Task

T = TypeVar("T")
_LEAST = 0.05
"""Seconds; who waits no longer does nothing but wait."""


class Control(Protocol):
    """What a future asks of the engine that runs its task."""

    def cancelled(self, task: Task) -> None:
        """Its future was cancelled."""

    def lead(self, task: Task) -> None:
        """Somebody waits for it, and may as well read what comes, for a moment."""

    def interrupt(self, task: Task) -> bool: ...
    def kill(self, task: Task) -> bool: ...


class _Condition(threading.Condition):
    """As of any future, with a list of who waits only once somebody does.

    That list, and the methods that a Condition binds, are two thirds of what a task takes
    that waits in a queue.
    """

    _waiters: Any = ()

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        taken: bool = self._lock.acquire(*args, **kwargs)
        return taken

    def release(self) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._waiters and self._is_owned():
            self._waiters = deque()
        return super().wait(timeout)

    def notify_all(self) -> None:
        # Most are settled before anybody waits; who may not tell is refused by the one below.
        if self._waiters or not self._lock._is_owned():
            super().notify_all()

    # What threading.Condition takes from its lock.

    def _is_owned(self) -> bool:
        owned: bool = self._lock._is_owned()
        return owned

    def _release_save(self) -> Any:
        return self._lock._release_save()

    def _acquire_restore(self, state: Any) -> None:
        self._lock._acquire_restore(state)


class TaskFuture(Future[T]):
    """The outcome of a task, and what it says until then.

    Attributes:
        task_id: as given by ``options(task_id=…)``, or made up.
        action_id: names this run at the runtime; None until it began.
        sandbox_id: the sandbox that it runs in; None until then.
    """

    def __init__(self, task: Task, control: Control) -> None:
        # In the place of Future's own __init__, which makes a whole Condition first.
        self._condition = _Condition()
        self._state = "PENDING"
        self._result = None
        self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self.task_id = task.key
        self.action_id: str | None = None
        self.sandbox_id: str | None = None
        self._record = task.record
        self._task: Task | None = task
        self._control = control
        self._listeners = 0
        self.has_callbacks = False

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """As of any future."""
        self.has_callbacks = True
        super().add_done_callback(fn)

    def result(self, timeout: float | None = None) -> T:
        """As of any future."""
        task = self._task
        if task is not None and (timeout is None or timeout > _LEAST):
            self._control.lead(task)
        return super().result(timeout)

    def running(self) -> bool:
        """Whether it runs now; not while it waits to be run again."""
        task = self._task
        return super().running() and not (task is not None and task.waits and task.attempt)

    # ── what it says ────────────────────────────────────────────────────────

    def observations(self) -> Iterator[Observation]:
        """What the task says, live, from its beginning; ends when all was said.

        Start first; then Stream, Display and Cut as they come; Result or Error,
        and End. Of each stream there are ``max_output`` bytes at most: then a Cut
        that tells how much is missing, then the kept end. Any number of threads
        may iterate, at any time; each gets all of it. For a future that was
        cancelled there is nothing.
        """
        said = self._record.said
        at = 0
        while True:
            while at < len(said):
                yield said[at]
                at += 1
            # All was said: the record ends before the future is settled, and
            # what is done without it (cancelled) says nothing more.
            if (self._record.ended or self.done()) and at >= len(said):
                return
            with self._condition:
                self._listeners += 1
                while at >= len(said) and not self._record.ended and not self._settled():
                    self._condition.wait()
                self._listeners -= 1

    @property
    def stdout(self) -> str:
        """What it has written to stdout so far, within ``max_output``."""
        return self._written("stdout")

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far, within ``max_output``."""
        return self._written("stderr")

    def _written(self, stream: StreamName) -> str:
        pieces: list[bytes] = []
        for said in list(self._record.said):
            if isinstance(said, Start):
                pieces.clear()
            elif isinstance(said, Stream) and said.stream == stream:
                pieces.append(said.data)
            elif isinstance(said, Cut) and said.stream == stream:
                pieces.append(said.line)
        return to_text(b"".join(pieces))

    # ── stopping it ─────────────────────────────────────────────────────────

    def cancel(self) -> bool:
        """Cancel it, if it has not begun, also while it is on its way.

        Returns:
            True: it is cancelled, and no result will come. False: it runs, or is done.
        """
        task = self._task
        cancelled = super().cancel()
        if cancelled and task is not None:
            self._control.cancelled(task)
        return cancelled

    def interrupt(self) -> bool:
        """Raise KeyboardInterrupt in what runs; it may clean up, or go on.

        Returns:
            Whether it runs, as far as is known here.
        """
        task = self._task
        return task is not None and self._control.interrupt(task)

    def kill(self) -> bool:
        """Kill the process that runs it: the outcome is `SandboxDied`, and it is not run again.

        What waits to be run again is not, and ends with what it gave before; what waits
        for its first run is for `cancel`.

        Returns:
            Whether it has begun and not ended, as far as is known here.
        """
        task = self._task
        return task is not None and self._control.kill(task)

    # ── for the engine ──────────────────────────────────────────────────────

    def _settled(self) -> bool:
        """`done()`, for who holds the condition."""
        return self._state in ("CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED")

    def _heard(self) -> None:
        """Something was added to the record."""
        # A listener counts itself before it looks at the record, and this looks
        # after it was added to: one of the two sees the other.
        if self._listeners:
            with self._condition:
                self._condition.notify_all()


class CellFuture(TaskFuture[CellResult]):
    """The outcome of a cell, or of a shell command."""


class CallFuture(TaskFuture[Any]):
    """The outcome of a call: what the callable returns, or raises."""

    @property
    def files(self) -> dict[str, bytes]:
        """What ``fetch`` asked for, by name; all of it, once the future is done."""
        fetched = self._record.fetched
        return {} if fetched is None else fetched.files

    @property
    def files_left(self) -> dict[str, str]:
        """What it asked for that is not there, and why."""
        fetched = self._record.fetched
        return {} if fetched is None else fetched.left
