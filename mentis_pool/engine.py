"""Lock, pool and threads: decides under the lock, acts outside it.

::

    submit ──► pool.add ──► Send ──► outbox ──► stream          (the caller's thread)
    stream ──► drain ──► pool.said ──► Settle ──► Future        (the dispatcher)
                                   └─► Send(next) ──► outbox ──► stream
    Connect ──► start the runtime, connect ──► pool.connected   (a keeper)

Who waits, and what wakes it: the dispatcher in ``select()``, a byte; a keeper in
the start of a runtime, its time limit, and between two tries, `_ending`; a
follower in its queue, the end of its task, which the dispatcher gives it come
what may. The engine refers to no executor, so that a forgotten one is collected.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import InvalidStateError

import tenacity

from mentis_pool.connection import Connection
from mentis_pool.dispatcher import Dispatcher
from mentis_pool.errors import (
    BrokenSandboxPool,
    CellTimeout,
    MentisPoolError,
    RuntimeRejected,
    RuntimeUnavailable,
)
from mentis_pool.events import Level, log, wanted
from mentis_pool.follower import WINDOW, Follower
from mentis_pool.observations import Cut, Observation, Stream
from mentis_pool.pool import (
    Cancel,
    Cancelled,
    Connect,
    OpenSandbox,
    Order,
    Pool,
    Retried,
    Send,
    Settle,
    Started,
    Stop,
)
from mentis_pool.pool_stream import Closed, Command, Credit, Event, Open, Opened, Refused, Run, Said
from mentis_pool.pool_stream import State as SandboxState
from mentis_pool.results import CellResult
from mentis_pool.slot import Named
from mentis_pool.stream import StreamLost
from mentis_pool.task import State, Task, outcome
from mentis_pool.text import to_bytes

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """What an executor and its views share.

    Args:
        connect: starts or reaches a runtime; called by a keeper, again after one is
            lost. Its argument is set when nothing need be tried again.
        state: of the sandboxes.
        max_workers, retries: as for `Pool`.
    """

    def __init__(
        self,
        connect: Callable[[threading.Event], Connection],
        state: SandboxState,
        max_workers: int,
        retries: int,
    ) -> None:
        self._reach = connect
        self._state = state
        self._retries = retries
        self._lock = threading.Lock()
        self._pool = Pool(max_workers, retries)
        self._connection: Connection | None = None
        self._generation = 0
        """Of the connection, counted as the pool counts."""
        self._arrived: list[Connection | Exception] = []
        """What keepers brought, for the dispatcher."""
        self._keeper: threading.Thread | None = None
        self._sandboxes: set[int] = set()
        """Those that have a worker, for the log."""
        self._outbox: list[Command] = []
        self._wire = threading.Lock()
        self._followers: dict[Task, Follower] = {}
        self._ending = threading.Event()
        self._abandoned = False
        self._over = False
        """Whether the dispatcher has cleaned up: what comes now cleans up itself."""
        self._fault: BaseException | None = None
        self._broken: BrokenSandboxPool | None = None
        self._dispatcher: Dispatcher | None = None
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._pid = os.getpid()
        _engines.add(self)

    # ── for the executor ────────────────────────────────────────────────────

    def submit(self, task: Task) -> None:
        """Take a task; its future is settled, whatever happens.

        Raises:
            BrokenSandboxPool: the executor broke.
            RuntimeError: after `shutdown`, at the interpreter's exit, or in a
                forked child.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this SandboxExecutor belongs to the parent process: make a new one after fork()"
            )
        with self._lock:
            if self._broken is not None:
                raise _copy(self._broken)
            if self._pool.closing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._dispatcher is None:
                dispatcher = Dispatcher(self._drain, self._wake, self._end)
                try:
                    dispatcher.start()
                except RuntimeError:  # no more threads can be had: the next submit tries again
                    dispatcher.close()
                    raise
                self._dispatcher = dispatcher
                self._threads.add(dispatcher)
        if wanted("debug"):
            self._log("debug", "task_submitted", task)
        self._decide_for_caller(self._pool.add, task)

    def shutdown(self, cancel: bool) -> None:
        """Take no more tasks, finish those that were taken (or cancel those that wait), stop."""
        if os.getpid() == self._pid:
            self._decide_for_caller(self._pool.shutdown, cancel)

    def abandon(self) -> None:
        """As `shutdown`, for a finalizer: takes no lock, since it may run inside any code."""
        dispatcher = self._dispatcher
        if dispatcher is not None and os.getpid() == self._pid:
            self._abandoned = True
            dispatcher.wake()

    def join(self) -> None:
        """Wait until all is stopped; in a thread of the engine's own (a callback) return at once."""
        dispatcher = self._dispatcher
        if dispatcher is None or os.getpid() != self._pid:
            return
        if threading.current_thread() not in self._threads:
            dispatcher.join()

    # ── deciding and acting ─────────────────────────────────────────────────

    def _decide(self, decision: Callable[..., list[Order]], *args: object) -> None:
        with self._lock:
            orders = decision(*args)
        self._carry_out(orders)

    def _decide_for_caller(self, decision: Callable[..., list[Order]], *args: object) -> None:
        """As `_decide`, in a thread of the user's: what interrupts it there breaks the engine.

        A Ctrl-C may come between a decision and its orders. The frame that was
        being sent is then lost, and with it a task: better all fail than one hangs.
        """
        try:
            self._decide(decision, *args)
        except BaseException as exc:
            self._fault = exc
            if self._dispatcher is not None:
                self._dispatcher.wake()
            raise

    def _carry_out(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, Settle):
                self._settle(order.task, order.error)
            elif isinstance(order, Send):
                self._send(order)
            elif isinstance(order, Started):
                if wanted("debug"):
                    queued = order.task.queued(time.monotonic())
                    self._log("debug", "task_started", order.task, queued=round(queued, 6))
            elif isinstance(order, OpenSandbox):
                self._post([Open(order.sandbox, self._state)], order.connection)
            elif isinstance(order, Connect):
                self._connect(order.failures)
            elif isinstance(order, Retried):
                self._log("warning", "task_retried", order.task, reason=order.reason)
            elif isinstance(order, Cancel):
                self._cancel(order.task)
            elif isinstance(order, Cancelled):
                self._log("info", "task_cancelled", order.task)
            elif isinstance(order, Stop):
                self._ending.set()
                if self._dispatcher is not None:
                    self._dispatcher.stop()

    def _send(self, order: Send) -> None:
        task = order.task
        settings = task.settings
        with self._lock:
            # It may have been lost meanwhile, and sent again by another thread, or settled.
            if task.action != order.action or task.state is State.ENDED:
                return
            if self._connection is not None:
                names = self._connection.names(order.action, order.sandbox)
                task.future.action_id, task.future.sandbox_id = names
            if settings.on_output is not None and task not in self._followers:
                self._followers[task] = self._follow(task, settings.on_output)
        run = Run(
            action=order.action,
            sandbox=order.sandbox,
            sources=task.sources,
            variables=task.variables,
            stdin=None if settings.stdin is None else to_bytes(settings.stdin),
            argv=None if settings.argv is None else [to_bytes(arg) for arg in settings.argv],
            timeout=settings.timeout,
            max_output=task.max_output,
            window=None if settings.on_output is None else WINDOW,
        )
        self._post([run], order.connection)

    def _follow(self, task: Task, on_output: Callable[[Stream], object]) -> Follower:
        follower = Follower(task.key, on_output, lambda count: self._credit(task, count))
        self._threads.add(follower.thread)
        return follower

    def _credit(self, task: Task, count: int) -> None:
        self._post([Credit(task.action, count)], self._generation)

    def _cancel(self, task: Task) -> None:
        # One that its user cancelled already stays so; either way its waiters are told.
        task.future.cancel()
        task.future.set_running_or_notify_cancel()
        self._log("info", "task_cancelled", task)

    # ── the wire ────────────────────────────────────────────────────────────

    def _post(self, commands: list[Command], generation: int) -> None:
        """Send, or leave it to the thread that is sending: it looks again before it stops."""
        with self._lock:
            # What was meant for a connection that is gone is not for the next.
            if generation != self._generation:
                return
            self._outbox += commands
        while self._outbox and self._wire.acquire(blocking=False):
            try:
                with self._lock:
                    commands, self._outbox = self._outbox, []
                    connection = self._connection
                if commands and connection is not None:
                    connection.send(commands)
            except StreamLost:
                # The dispatcher finds the end of the stream and decides what it means.
                return
            finally:
                self._wire.release()

    def _drain(self) -> None:
        """The stream is readable."""
        connection = self._connection
        if connection is None:
            return
        try:
            events = connection.drain()
        except (StreamLost, MentisPoolError) as exc:
            self._lost(connection, str(exc))
            return
        now = time.monotonic()
        for event in events:
            self._hear(event, now)

    def _hear(self, event: Event | Named, now: float) -> None:
        if isinstance(event, Named):
            task = self._pool.task_of(event.action)
            if task is not None:
                task.future.action_id = event.action_id
                task.future.sandbox_id = event.sandbox_id
        elif isinstance(event, Said):
            with self._lock:
                task = self._pool.task_of(event.action)
                orders = self._pool.said(event.action, event.observation, now)
            if task is not None:
                if isinstance(event.observation, Stream) and task in self._followers:
                    self._followers[task].put(event.observation)
                task.future._heard()
            self._carry_out(orders)
        elif isinstance(event, Closed):
            self._sandboxes.discard(event.sandbox)
            log(
                "warning", "sandbox_lost", sandbox_id=self._name(event.sandbox), reason=event.reason
            )
            self._decide(self._pool.closed, event.sandbox, event.reason, now)
        elif isinstance(event, Refused):
            name = self._name(event.sandbox)
            log("warning", "sandbox_refused", sandbox_id=name, reason=event.reason)
            self._decide(self._pool.refused, event.sandbox, event.reason)
        elif isinstance(event, Opened):
            self._sandboxes.add(event.sandbox)
            seconds = round(event.seconds, 6)
            log("debug", "sandbox_started", sandbox_id=self._name(event.sandbox), seconds=seconds)

    def _name(self, sandbox: int) -> str:
        name = self._connection.names(0, sandbox)[1] if self._connection else None
        return name or str(sandbox)

    def _lost(self, connection: Connection, reason: str) -> None:
        assert self._dispatcher is not None
        self._dispatcher.unwatch(connection)
        with self._lock:
            self._connection = None
            self._outbox = []
        self._sandboxes.clear()
        words = connection.lose()
        log("warning", "runtime_lost", reason=reason, last_words=words)
        self._decide(
            self._pool.disconnected,
            f"the runtime was lost: {words}",
            time.monotonic(),
            connection.lost_tasks,
        )

    # ── keepers ─────────────────────────────────────────────────────────────

    def _connect(self, failures: int) -> None:
        self._keeper = threading.Thread(
            target=self._keep, args=(failures,), name="mentis-pool-keeper"
        )
        self._threads.add(self._keeper)
        try:
            self._keeper.start()
        except RuntimeError as exc:  # no more threads can be had
            self._keeper = None
            self._bring(RuntimeUnavailable(f"no thread can be started: {exc}"))

    def _keep(self, failures: int) -> None:
        """Bring a connection, or the reason why there is none."""
        wait = tenacity.wait_exponential(multiplier=0.1, max=5.0) + tenacity.wait_random(0.0, 0.1)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(
                lambda exc: (
                    isinstance(exc, RuntimeUnavailable)
                    or (isinstance(exc, RuntimeRejected) and exc.passing)
                )
            ),
            stop=tenacity.stop_after_attempt(self._retries + 1)
            | tenacity.stop_when_event_set(self._ending),
            wait=wait,
            sleep=tenacity.sleep_using_event(self._ending),
            before_sleep=lambda state: log(
                "warning",
                "runtime_retried",
                attempt=state.attempt_number,
                error=str(state.outcome.exception()) if state.outcome else "",
            ),
            reraise=True,
        )
        brought: Connection | Exception
        try:
            if failures:
                # It was lost before it ended anything: the same wait as between two starts.
                state = tenacity.RetryCallState(retrying, None, (), {})
                state.attempt_number = failures
                self._ending.wait(wait(state))
            brought = retrying(self._reach, self._ending)
        except Exception as exc:  # noqa: BLE001 - every task that waits for it is told
            brought = exc
        self._bring(brought)

    def _bring(self, brought: Connection | Exception) -> None:
        with self._lock:
            late = self._over
            if not late:
                self._arrived.append(brought)
        if late and not isinstance(brought, Exception):
            brought.close()
        assert self._dispatcher is not None
        self._dispatcher.wake()

    def _wake(self) -> None:
        """The dispatcher was woken: a keeper brought something, or the executor was forgotten."""
        if self._fault is not None:
            raise self._fault
        assert self._dispatcher is not None
        while self._arrived:
            brought = self._arrived.pop(0)
            if isinstance(brought, Exception):
                log("warning", "runtime_unavailable", error=str(brought))
                self._decide(self._pool.unavailable, brought)
            else:
                with self._lock:
                    self._connection = brought
                    self._generation += 1
                self._dispatcher.watch(brought)
                self._decide(self._pool.connected)
                self._drain()
        if self._abandoned:
            self._abandoned = False
            self._decide(self._pool.shutdown, False)

    # ── outcomes ────────────────────────────────────────────────────────────

    def _settle(self, task: Task, error: Exception | None) -> None:
        follower = self._followers.get(task)
        if follower is None:
            self._resolve(task, error)
        else:
            follower.end(lambda: self._resolve(task, error))

    def _resolve(self, task: Task, error: Exception | None) -> None:
        future = task.future
        result = outcome(
            task.record.said,
            queued=task.queued(time.monotonic()),
            timeout=task.settings.timeout,
            action_id=future.action_id,
            sandbox_id=future.sandbox_id,
            attempt=max(task.attempt, 1),
        )
        failure: MentisPoolError | None = result.error
        if error is not None:
            # Each future gets its own: raising an exception writes into it.
            failure = _copy(error)
            failure.result = result.with_error(failure)
        self._log_end(task, result, failure)
        try:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
        except InvalidStateError:
            # Somebody else set it: their outcome stays.
            pass
        except BaseException as exc:  # noqa: BLE001 - a callback's SystemExit; the outcome is set
            log("warning", "callback_raised", task_id=task.key, error=repr(exc))
        finally:
            task.future = None
            self._followers.pop(task, None)

    def _log_end(self, task: Task, result: CellResult, failure: MentisPoolError | None) -> None:
        # Whatever it is, who holds the future is told: no need to warn as well.
        if not wanted("info"):
            return
        fields: dict[str, object] = {
            "queued": round(result.usage.queued, 6),
            "running": round(result.usage.running, 6),
            "output_bytes": _output_bytes(task.record.said),
        }
        event = "task_finished"
        if isinstance(failure, CellTimeout):
            event = "task_timed_out"
        elif failure is not None:
            event = "task_failed"
            fields["error"] = f"{type(failure).__name__}: {failure}"
        self._log("info", event, task, **fields)

    def _log(self, level: Level, event: str, task: Task, **fields: object) -> None:
        log(
            level,
            event,
            **{
                **(task.context or {}),
                "task_id": task.key,
                "action_id": task.future.action_id,
                "sandbox_id": task.future.sandbox_id,
                "attempt": task.attempt,
                **fields,
            },
        )

    # ── the end ─────────────────────────────────────────────────────────────

    def _end(self, broken: BaseException | None) -> None:
        """The dispatcher has left its loop: no future, thread or process may be left."""
        if broken is not None:
            error = BrokenSandboxPool(f"the executor broke: {type(broken).__name__}: {broken}")
            error.__cause__ = broken
            self._broken = error
            self._decide(self._pool.fail, error, time.monotonic())
        self._ending.set()
        if self._keeper is not None:
            self._keeper.join()
        for sandbox in sorted(self._sandboxes):
            log("debug", "sandbox_retired", sandbox_id=self._name(sandbox))
        with self._lock:
            self._over = True
            connection, self._connection = self._connection, None
        for brought in [connection, *self._arrived]:
            if brought is not None and not isinstance(brought, Exception):
                brought.close()
        for follower in list(self._followers.values()):
            follower.join()


def _copy(error: Exception) -> MentisPoolError:
    if not isinstance(error, MentisPoolError):
        copied: MentisPoolError = RuntimeUnavailable(f"{type(error).__name__}: {error}")
    else:
        copied = type(error)(*error.args)
        if isinstance(error, RuntimeRejected):
            copied.status = error.status  # type: ignore[attr-defined]
    copied.__cause__ = error
    return copied


def _output_bytes(said: list[Observation]) -> int:
    return sum(
        len(o.data) if isinstance(o, Stream) else o.bytes if isinstance(o, Cut) else 0 for o in said
    )


def _finish_all() -> None:
    """At the interpreter's exit, before threads may no longer be started: finish what was taken."""
    for engine in list(_engines):
        engine.shutdown(False)
    for engine in list(_engines):
        engine.join()


# As concurrent.futures.thread does: atexit itself comes after the wait for
# non-daemon threads, and the dispatcher is one that waits to be told.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
