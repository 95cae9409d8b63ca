"""Lock, pool and threads: decides under the lock, acts outside it.

::

    submit ──► pool.add ──► Send ──► outbox ──► stream          (the caller's thread)
    stream ──► drain ──► pool.said ──► Settle ──► Future        (the dispatcher)
                                   └─► Send(next) ──► outbox ──► stream
    Connect ──► start the runtime, connect ──► pool.connected   (a keeper)

Who waits, and what wakes it: the dispatcher in ``select()``, a byte; who reads in its
place, a moment's end (`Dispatcher.lead`); a keeper in
the start of a runtime, its time limit, and between two tries, `_ending`; a
follower in its queue, the end of its task, which the dispatcher gives it come
what may; a submit where the queue is full, whatever makes room in it or ends the
engine. The engine refers to no executor, so that a forgotten one is collected.
"""

from __future__ import annotations

import copy
import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Literal, NamedTuple

import msgspec
import tenacity

from mentis_pool.connection import Connection, backoff
from mentis_pool.dispatcher import AT_ONCE, Dispatcher
from mentis_pool.errors import (
    BrokenSandboxPool,
    CellTimeout,
    DeadlineExceeded,
    MentisPoolError,
    PayloadError,
    ProtocolError,
    QueueFull,
    QueueTimeout,
    RuntimeRejected,
    RuntimeUnavailable,
    in_words,
)
from mentis_pool.events import Level, log, wanted
from mentis_pool.follower import WINDOW, Follower
from mentis_pool.observations import Cut, Observation, Start, Stream, Wanted
from mentis_pool.pool import (
    Cancel,
    Cancelled,
    CloseLane,
    Connect,
    Judge,
    OpenLane,
    Order,
    Pool,
    Retried,
    Send,
    Settle,
    Started,
    Stop,
    Strike,
    Withdraw,
)
from mentis_pool.pool_stream import (
    Begin,
    Broken,
    Close,
    Closed,
    Command,
    Credit,
    Event,
    Measure,
    Measured,
    Open,
    Opened,
    Refused,
    Run,
    Said,
    Signal,
    Standing,
)
from mentis_pool.pool_stream import Cancel as CancelAction
from mentis_pool.results import CellResult, SandboxUsage
from mentis_pool.stream import StreamLost
from mentis_pool.task import ENDED, Task, call_outcome, outcome
from mentis_pool.text import to_bytes
from mentis_pool.threads import Threads
from mentis_pool.upload import Upload

MOST_KEEPERS = 64
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """What an executor and its views share.

    Args:
        connect: starts or reaches a runtime; called by a keeper, again after one is
            lost. Its arguments: an event that is set when nothing need be tried
            again, and threads for what blocks.
        lanes: how the lanes are opened that all tasks share.
        max_workers: as for `Pool`.
        rebuild: what a call returned or raised, from its bytes and what may be in them
            (``Task.call``).
        max_queue: how many tasks may wait; None for any number.
        when_full: whether `submit` waits then, or raises.
    """

    def __init__(
        self,
        connect: Callable[[threading.Event, Threads], Connection],
        lanes: dict[int, Open],
        max_workers: int,
        rebuild: Callable[[bytes, Any], Any],
        max_queue: int | None = None,
        when_full: Literal["block", "raise"] = "block",
    ) -> None:
        self._reach = connect
        self._lanes = dict(lanes)
        self._rebuild = rebuild
        self._max_workers = max_workers
        self._max_queue = max_queue
        self._when_full = when_full
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        """Told when a task has left the queue, where its length is bounded."""
        self._coming = 0
        """Tasks that were let in and are not in the pool yet."""
        self._pool = Pool(max_workers, [number for number, its in lanes.items() if its.goes_ahead])
        self._connection: Connection | None = None
        self._generation = 0
        """Of the connection, counted as the pool counts."""
        self._arrived: list[Connection | _Parted | Exception] = []
        """What keepers brought, for the dispatcher."""
        self._sandboxes: set[int] = set()
        """Those that have a worker, for the log."""
        self._outbox: list[Command] = []
        self._wire = threading.Lock()
        self._corked: int | None = None
        """The thread that hears events, and keeps what it has to send until it has heard all."""
        self._live: set[Task] = set()
        """Tasks whose futures are not settled."""
        self._followers: dict[Task, Follower] = {}
        self._asked: dict[int, Future[Measured]] = {}
        """Questions for what the sandboxes use, until they are answered."""
        self._questions = itertools.count(1)
        self._uploads: dict[Task, Upload] = {}
        self._ending = threading.Event()
        self._abandoned = False
        self._fault: BaseException | None = None
        self._broken: BrokenSandboxPool | None = None
        self._dispatcher: Dispatcher | None = None
        self._next_wake: float | None = None
        """When the dispatcher looks at the time, as far as other threads know."""
        self._keepers = Threads("mentis-pool-keeper", self._break, MOST_KEEPERS)
        self._outputs = Threads("mentis-pool-output", self._break)
        self._pid = os.getpid()
        self._left: Connection | None = None
        """The parent's connection, in a forked child: it is not closed there."""
        _engines.add(self)

    # ── for the executor ────────────────────────────────────────────────────

    def submit(self, task: Task) -> None:
        """Take a task; its future is settled, whatever happens.

        Raises:
            BrokenSandboxPool: the executor broke.
            QueueFull: so many wait already, and it is not to wait.
            RuntimeError: after `shutdown`, at the interpreter's exit, or in a
                forked child.
        """
        self._check_process()
        coming = False
        try:
            with self._lock:
                self._wait_for_room()
                self._check_open()
                self._start_threads(task.settings.on_output is not None)
                self._coming += 1
                coming = True
            if wanted("debug"):
                self._log("debug", "task_submitted", task)
        finally:
            if coming:
                self._decide_for_caller(self._add, task)

    def _add(self, task: Task) -> list[Order]:
        self._live.add(task)
        self._coming -= 1
        return self._pool.add(task)

    def refuse(self, task: Task, error: MentisPoolError) -> None:
        """Settle a task that cannot be sent.

        Raises:
            BrokenSandboxPool, RuntimeError: as `submit`.
        """
        self._check_process()
        with self._lock:
            self._check_open()
        task.refuse("payload", str(error))
        self._resolve(task, error)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this SandboxExecutor belongs to the parent process: make a new one after fork()"
            )

    def _check_open(self) -> None:
        if self._broken is not None:
            raise _copy(self._broken)
        # First: the exit shuts all executors down.
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._pool.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _wait_for_room(self) -> None:
        most = self._max_queue
        # A callback that waited here would wait for itself.
        if most is None or self._is_own():
            return

        def is_room() -> bool:
            few = self._pool.waiting + self._coming < most
            return few or self._pool.closing or self._broken is not None

        if self._when_full == "raise" and not is_room():
            raise QueueFull(f"{self._pool.waiting} tasks wait already (max_queue={most})")
        self._room.wait_for(is_room)

    def _start_threads(self, output: bool) -> None:
        """All that will be needed: at the interpreter's exit none can be started any more."""
        if self._dispatcher is None:
            dispatcher = Dispatcher(self._drain, self._wake, self._wait, self._end)
            try:
                self._keepers.start()
                dispatcher.start()
            except RuntimeError:  # no more threads can be had: the next submit tries again
                dispatcher.close()
                self._keepers.close()
                raise
            except BaseException:
                # An interrupt, and it may run already: the next submit starts another.
                dispatcher.dismiss()
                self._keepers.close()
                raise
            self._dispatcher = dispatcher
        if output:
            self._outputs.start()

    def _is_own(self) -> bool:
        """Whether this is a thread of the engine's, or does its work for the moment."""
        thread = threading.current_thread()
        return self._hears() or thread is self._dispatcher or thread in self._outputs

    def _hears(self) -> bool:
        """Whether this is the thread that hears events just now."""
        return self._corked == threading.get_ident()

    def shutdown(self, cancel: bool) -> None:
        """Take no more tasks, finish those that were taken (or cancel those that wait), stop."""
        if os.getpid() == self._pid:
            self._decide_for_caller(self._pool.shutdown, cancel)

    def kill_all(self, number: int) -> None:
        """Take no more tasks, cancel those that wait, and send a signal to what runs."""
        if os.getpid() == self._pid:
            self._decide_for_caller(self._pool.kill, number)

    # ── for futures (a Control) ─────────────────────────────────────────────

    def cancelled(self, task: Task) -> None:
        """A future was cancelled."""
        if os.getpid() == self._pid:
            self._decide_for_caller(self._pool.cancelled, task)

    def lead(self, task: Task) -> None:
        """Who waits for a task reads what comes, for a moment, where nothing else is to come.

        Wherever this stops, the dispatcher goes on; the end of the stream is for it alone.
        """
        dispatcher, connection = self._dispatcher, self._connection
        if dispatcher is None or connection is None or os.getpid() != self._pid:
            return
        if connection.near and self._may_lead(task):
            dispatcher.lead(self._drain_for_caller, lambda: not self._may_lead(task))

    def _may_lead(self, task: Task) -> bool:
        # Callbacks are for the dispatcher: nobody knows how long they take.
        future = task.future
        return future is not None and self._pool.is_alone(task) and not future.has_callbacks

    def _drain_for_caller(self) -> None:
        """As `_drain`, in a thread of the user's; see `_decide_for_caller`."""
        connection = self._connection
        if connection is None:
            return
        try:
            self._hear_all(connection.drain())
        except StreamLost:
            pass  # the dispatcher finds it as well, and decides what it means
        except BaseException as exc:
            self._break(exc)
            if not isinstance(exc, Exception):
                raise

    def interrupt(self, task: Task) -> bool:
        """Interrupt a task; whether it runs."""
        return self._strike(task, signal.SIGINT, False)

    def kill(self, task: Task) -> bool:
        """Kill the process of a task; whether it runs."""
        return self._strike(task, signal.SIGKILL, True)

    def _strike(self, task: Task, number: int, final: bool) -> bool:
        if os.getpid() != self._pid:
            return False
        return bool(self._decide_for_caller(self._pool.signal, task, number, final))

    def standing(self) -> Standing | None:
        """How the sandboxes of its runtime are isolated; None where it has none now."""
        with self._lock:
            connection = self._connection
        return None if connection is None else connection.standing()

    # ── for sessions ────────────────────────────────────────────────────────

    def open_session(self, opened: Open, most: int, wait: bool, timeout: float | None) -> int:
        """A lane for a session, once there are fewer than so many; its number.

        Raises:
            QueueFull: there are so many, and did not become fewer in time.
            BrokenSandboxPool, RuntimeError: as `submit`.
        """
        self._check_process()
        with self._lock:
            if wait:
                self._room.wait_for(
                    lambda: self._pool.sessions < most or self._pool.closing or bool(self._broken),
                    timeout,
                )
            self._check_open()
            if self._pool.sessions >= most:
                raise QueueFull(f"there are {most} sessions already, as many as workers")
            return self._new_session(opened)

    def replace_session(self, lane: int, opened: Open) -> int:
        """A new lane in the place of this one, which is closed; its number.

        Raises:
            BrokenSandboxPool, RuntimeError: as `submit`; the old one stays then.
        """
        self._check_process()
        with self._lock:
            self._check_open()
            # First, so that nobody who waits for one gets this place.
            new = self._new_session(opened)
        self.close_session(lane, "its session was restarted")
        return new

    def _new_session(self, opened: Open) -> int:
        lane = self._pool.open_session()
        self._lanes[lane] = msgspec.structs.replace(opened, lane=lane)
        return lane

    def interrupt_session(self, lane: int) -> bool:
        """Interrupt what runs in a session; whether anything does."""
        if os.getpid() != self._pid:
            return False
        with self._lock:
            task = self._pool.running_in(lane)
        return task is not None and self.interrupt(task)

    def close_session(self, lane: int, reason: str) -> None:
        """A session is of no more use; what runs in it is told why."""
        if os.getpid() == self._pid:
            self._decide_for_caller(self._pool.close_session, lane, reason)

    def leave(self) -> None:
        """In a forked child, which may be in a callback: all is the parent's, connection and tasks."""
        self._lock = threading.Lock()  # another thread may have held it
        self._room = threading.Condition(self._lock)
        self._left, self._connection = self._connection, None
        if self._dispatcher is not None:
            self._dispatcher.leave()

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
        if not self._is_own():
            dispatcher.join()

    def stats(self, timeout: float) -> dict[str, SandboxUsage]:
        """What each sandbox uses now; nothing while there is no runtime.

        Raises:
            RuntimeRejected: it is an original one.
            TimeoutError: it gave no answer in time.
            RuntimeUnavailable: it was lost meanwhile.
            RuntimeError: in a callback: the answer comes in the thread that it keeps.
        """
        self._check_process()
        if self._hears() or threading.current_thread() is self._dispatcher:
            raise RuntimeError("stats() cannot be called in a callback of a future")
        with self._lock:
            connection, generation = self._connection, self._generation
            if connection is None:
                return {}
            number = next(self._questions)
            answer = self._asked[number] = Future()
        try:
            self._post([Measure(number)], generation)
            measured = answer.result(timeout)
        except FutureTimeout:
            # Python 3.10 has one of its own.
            raise TimeoutError(f"the runtime did not answer within {timeout:g} s") from None
        finally:
            with self._lock:
                self._asked.pop(number, None)
        if measured.sandboxes is None:
            raise RuntimeRejected("an original runtime does not tell what its sandboxes use")
        used = {}
        for each in measured.sandboxes:
            with self._lock:
                task = None if each.action is None else self._pool.task_of(each.action)
            used[connection.names(0, each.sandbox)[1]] = SandboxUsage(
                each.memory, each.cpu_seconds, each.processes, task.key if task else None
            )
        return used

    def _no_answers(self, reason: str) -> None:
        """Whoever asked the runtime that was there is told that it is gone."""
        with self._lock:
            asked, self._asked = self._asked, {}
        for answer in asked.values():
            answer.set_exception(RuntimeUnavailable(reason))

    # ── deciding and acting ─────────────────────────────────────────────────

    def _decide(self, decision: Callable[..., list[Order]], *args: object) -> list[Order]:
        """Carry out what is decided under the lock; the orders."""
        with self._lock:
            # Whoever waits for the end of a session is there while there is one.
            expected = self._max_queue is not None or self._pool.sessions > 0
            orders = decision(*args)
            for order in orders:
                if type(order) is OpenLane:
                    # Before any task that another thread sends to it.
                    self._put([self._lanes[order.lane]], order.connection)
            if expected:
                self._room.notify_all()
            due = self._pool.deadline
            sooner = due is not None and (self._next_wake is None or due < self._next_wake)
            if sooner:
                self._next_wake = due
        if sooner and self._dispatcher is not None:
            self._dispatcher.wake()
        self._carry_out(orders)
        return orders

    def _decide_for_caller(
        self, decision: Callable[..., list[Order]], *args: object
    ) -> list[Order]:
        """As `_decide`, in a thread of the user's: what interrupts it there breaks the engine.

        A Ctrl-C may come between a decision and its orders. The frame that was
        being sent is then lost, and with it a task: better all fail than one hangs.
        """
        try:
            return self._decide(decision, *args)
        except BaseException as exc:
            self._break(exc)
            raise

    def _carry_out(self, orders: list[Order]) -> None:
        for order in orders:
            if type(order) is Settle:
                self._settle(order.task, order.error)
            elif type(order) is Send:
                self._send(order)
            elif type(order) is Started:
                self._started(order.task)
            elif type(order) is OpenLane:
                self._flush()
            elif type(order) is CloseLane:
                self._post([Close(order.lane, order.reason)], order.connection)
                self._lanes.pop(order.lane, None)
            elif type(order) is Withdraw:
                self._post([CancelAction(order.action)], order.connection)
            elif type(order) is Strike:
                self._post([Signal(order.action, order.signal)], order.connection)
            elif type(order) is Connect:
                self._keepers.do(lambda failures=order.failures: self._keep(failures))  # type: ignore[misc]
            elif type(order) is Retried:
                # What its user's policy asks for is nothing to be warned of.
                level: Level = "info" if order.task.judged else "warning"
                self._log(level, "task_retried", order.task, reason=order.reason)
            elif type(order) is Judge:
                self._judge(order.task)
            elif type(order) is Cancel:
                self._cancel(order.task)
            elif type(order) is Cancelled:
                self._forget(order.task)
            elif type(order) is Stop:
                self._ending.set()
                if self._dispatcher is not None:
                    self._dispatcher.stop()

    def _started(self, task: Task) -> None:
        if wanted("debug"):
            queued = task.queued(time.monotonic())
            self._log("debug", "task_started", task, queued=round(queued, 6))

    def _send(self, order: Send) -> None:
        task = order.task
        settings = task.settings
        left = None
        if settings.deadline is not None:
            left = max(0.001, task.submitted + settings.deadline - time.monotonic())
        run = Run(
            action=order.action,
            lane=task.lane,
            work=task.work,
            stdin=None if settings.stdin is None else to_bytes(settings.stdin),
            timeout=settings.timeout,
            deadline=left,
            max_output=task.max_output,
            window=None if settings.on_output is None else WINDOW,
            number=task.number,
            given=settings.given,
        )
        with self._lock:
            # It may have been lost meanwhile, and sent again by another thread; or be
            # unwanted, and then the order to withdraw it has gone before.
            unwanted = task.state is ENDED
            if not unwanted and task.action == order.action:
                self._put([run], order.connection)
        if unwanted:
            self._decide(self._pool.unsent, order.action)
        self._flush()

    def _credit(self, action: int, count: int) -> None:
        self._post([Credit(action, count)], self._generation)

    def _cancel(self, task: Task) -> None:
        # One that its user cancelled already stays so; either way its waiters are told.
        Future.cancel(task.future)
        with self._lock:
            task.claim()
        self._forget(task)

    def _forget(self, task: Task) -> None:
        """The task was cancelled."""
        if wanted("info"):
            queued = round(task.queued(time.monotonic()), 6)
            self._log("info", "task_cancelled", task, queued=queued, running=0.0, output_bytes=0)
        # Neither holds the other any longer.
        task.future._task = None
        self._live.discard(task)
        self._uploads.pop(task, None)
        follower = self._followers.pop(task, None)
        if follower is not None:
            follower.end(lambda: None)

    def _judge(self, task: Task) -> None:
        """Ask the policy that its user gave; where it cannot be asked, it is not run again."""
        _, value, failure = self._outcome(task, None)
        wait: float | None = None
        try:
            wait = _wait_of(task, value, failure)
        except Exception as exc:  # noqa: BLE001 - the user's policy
            log("warning", "retries_raised", task_id=task.key, error=in_words(exc))
        self._decide(self._pool.judged, task, wait, time.monotonic())

    # ── the wire ────────────────────────────────────────────────────────────

    def _post(self, commands: list[Command], generation: int) -> None:
        with self._lock:
            self._put(commands, generation)
        self._flush()

    def _put(self, commands: list[Command], generation: int) -> None:
        """To be sent; for who holds the lock."""
        # What was meant for a connection that is gone is not for the next.
        if generation == self._generation:
            self._outbox += commands

    def _flush(self) -> None:
        """Send, or leave it to the thread that is sending: it looks again before it stops."""
        if self._hears():
            return
        while self._outbox:
            mine: list[bool] = []
            try:
                mine.extend(map(self._wire.acquire, AT_ONCE))
                if not mine[0]:
                    return
                with self._lock:
                    commands, self._outbox = self._outbox, []
                    connection = self._connection
                if commands and connection is not None:
                    connection.send(commands)
            except StreamLost:
                # The dispatcher finds the end of the stream and decides what it means.
                return
            except BaseException as exc:
                # What was to be sent is lost, and a task with it, whoever's thread this is.
                self._break(exc)
                raise
            finally:
                if True in mine:
                    self._wire.release()

    def _drain(self) -> None:
        """The stream is readable."""
        connection = self._connection
        if connection is None:
            return
        try:
            events = connection.drain()
        except (StreamLost, MentisPoolError) as exc:
            assert self._dispatcher is not None
            self._dispatcher.unwatch(connection)
            if isinstance(exc, StreamLost) and connection.rejoins:
                log("warning", "runtime_interrupted", reason=str(exc))
                self._keepers.do(lambda reason=str(exc): self._rejoin(connection, reason))  # type: ignore[misc]
            else:
                self._lost(connection, str(exc))
            return
        self._hear_all(events)

    def _hear_all(self, events: Sequence[Event]) -> None:
        now = time.monotonic()
        # What these events have sent goes together.
        self._corked = threading.get_ident()
        try:
            for action, group in itertools.groupby(events, _action_of):
                said: list[Observation] = []
                for event in group:
                    if isinstance(event, Said):
                        said.append(event.observation)
                    else:
                        self._hear(event)
                if action is not None:
                    # What is said of one action at once is one decision.
                    self._hear_said(action, said, now)
        finally:
            self._corked = None
            self._flush()

    def _hear(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._sandboxes.discard(event.sandbox)
            name = self._name(event.sandbox)
            if event.lost:
                log("warning", "sandbox_lost", sandbox_id=name, reason=event.reason)
            else:
                log("debug", "sandbox_retired", sandbox_id=name)
        elif isinstance(event, Refused):
            name = self._name(event.sandbox)
            # Those that there are do the work.
            log("info", "sandbox_refused", sandbox_id=name, reason=event.reason)
        elif isinstance(event, Opened):
            self._sandboxes.add(event.sandbox)
            seconds = round(event.seconds, 6)
            log("debug", "sandbox_started", sandbox_id=self._name(event.sandbox), seconds=seconds)
        elif isinstance(event, Measured):
            with self._lock:
                answer = self._asked.pop(event.number, None)
            if answer is not None:
                answer.set_result(event)
        elif isinstance(event, Broken):
            raise BrokenSandboxPool(event.reason, event.traceback, event.output)

    def _hear_said(self, action: int, said: list[Observation], now: float) -> None:
        with self._lock:
            task = self._pool.task_of(action)
        if task is not None:
            future = task.future
            for observation in said:
                if type(observation) is Start:
                    assert self._connection is not None
                    names = self._connection.names(action, observation.sandbox)
                    future.action_id, future.sandbox_id = names
                elif type(observation) is Stream:
                    self._follow(task, action, observation)
                elif type(observation) is Wanted:
                    self._upload(task, action)
        self._decide(self._said, action, said, now)
        if task is not None:
            future._heard()

    def _said(self, action: int, said: list[Observation], now: float) -> list[Order]:
        return [order for each in said for order in self._pool.said(action, each, now)]

    def _follow(self, task: Task, action: int, piece: Stream) -> None:
        on_output = task.settings.on_output
        if on_output is None:
            return
        follower = self._followers.get(task)
        if follower is None:
            follower = Follower(task.key, on_output, self._credit)
            self._followers[task] = follower
            self._outputs.do(follower.run)
        follower.put(action, piece)

    def _upload(self, task: Task, action: int) -> None:
        """Have a keeper read the next of a task's files, and send it."""
        upload = self._uploads.get(task)
        if upload is None or upload.action != action:
            # It may be run again: then all of them once more.
            upload = self._uploads[task] = Upload(action, task.settings.files)
        generation = self._generation
        self._keepers.do(lambda: self._post([upload.next()], generation))

    def _name(self, sandbox: int) -> str:
        name = self._connection.names(0, sandbox)[1] if self._connection else None
        return name or str(sandbox)

    def _lost(self, connection: Connection, reason: str) -> None:
        with self._lock:
            self._connection = None
            self._outbox = []
        self._sandboxes.clear()
        words = connection.lose()
        self._no_answers(f"the runtime was lost: {words}")
        log("warning", "runtime_lost", reason=reason, last_words=words)
        self._decide(
            self._pool.disconnected,
            f"the runtime was lost: {words}",
            time.monotonic(),
            connection.lost_tasks,
        )

    # ── keepers ─────────────────────────────────────────────────────────────

    def _break(self, exc: BaseException) -> None:
        """A thread was stopped in the middle of what it did here: nothing is certain any more."""
        self._fault = exc
        if self._dispatcher is not None:
            self._dispatcher.wake()

    def _keep(self, failures: int) -> None:
        """Bring a connection, or the reason why there is none."""
        try:
            if failures:
                # It was lost before it ended anything.
                self._ending.wait(backoff(failures))
            self._arrived.append(self._reach(self._ending, self._keepers))
        except Exception as exc:  # noqa: BLE001 - every task that waits for it is told
            self._arrived.append(exc)
        assert self._dispatcher is not None
        self._dispatcher.wake()

    def _rejoin(self, connection: Connection, reason: str) -> None:
        """Go on with a connection that was lost, or say that this cannot be."""
        assert self._dispatcher is not None
        try:
            connection.rejoin(self._ending)
            self._arrived.append(connection)
        except MentisPoolError as exc:
            self._arrived.append(_Parted(connection, f"{reason}; {exc}"))
        self._dispatcher.wake()

    def _wake(self) -> None:
        """The dispatcher was woken: a keeper brought something, or the executor was forgotten."""
        if self._fault is not None:
            raise self._fault
        assert self._dispatcher is not None
        while self._arrived:
            brought = self._arrived.pop(0)
            if isinstance(brought, _Parted):
                self._lost(brought.connection, brought.reason)
            elif brought is self._connection:
                log("info", "runtime_rejoined")
                self._dispatcher.watch(brought)
                self._drain()
            elif isinstance(brought, Exception):
                log("warning", "runtime_unavailable", error=str(brought))
                self._decide(self._pool.unavailable, brought)
            else:
                with self._lock:
                    self._connection = brought
                    self._generation += 1
                    self._outbox = [Begin(self._max_workers)]
                self._dispatcher.watch(brought)
                self._decide(self._pool.connected)
                self._drain()
        if self._abandoned:
            self._abandoned = False
            self._decide(self._pool.shutdown, False)
        now = time.monotonic()
        if self._next_wake is not None and self._next_wake <= now:
            self._decide(self._pool.passed, now)

    def _wait(self) -> float | None:
        """Seconds until `_wake` wants to be called."""
        with self._lock:
            self._next_wake = self._pool.deadline
        return None if self._next_wake is None else max(0.0, self._next_wake - time.monotonic())

    # ── outcomes ────────────────────────────────────────────────────────────

    def _settle(self, task: Task, error: Exception | None) -> None:
        follower = self._followers.get(task)
        if follower is None:
            self._resolve(task, error)
        else:
            follower.end(lambda: self._resolve(task, error))

    def _resolve(self, task: Task, error: Exception | None) -> None:
        future = task.future
        if future is None:
            return  # its follower was sooner
        value: Any = None
        failure: BaseException | None
        try:
            failure = None
            returned = None if error or wanted("info") else self._returned(task)
            if returned is None:
                result, value, failure = self._outcome(task, error)
                self._log_end(task, result, failure)
            else:
                (value,) = returned
        except BaseException as exc:  # noqa: BLE001
            # A fault of ours, and the end of the executor: not before this one is told.
            failure = BrokenSandboxPool(f"the executor broke: {type(exc).__name__}: {exc}")
            failure.__cause__ = exc
            self._break(exc)
        with self._lock:
            # It may end before it began; or have been cancelled at this moment.
            live = task.claim()
        try:
            if not live:
                pass
            elif failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(value)
        except InvalidStateError:
            # Somebody else set it: their outcome stays.
            pass
        except BaseException as exc:
            if not future.done():
                raise  # an interrupt of who reads for itself: `_end` settles it
            # A callback's SystemExit.
            log("warning", "callback_raised", task_id=task.key, error=in_words(exc))
        # Neither holds the other any longer.
        future._task = task.future = task.rebuilt = None
        self._live.discard(task)
        self._followers.pop(task, None)
        self._uploads.pop(task, None)

    def _returned(self, task: Task) -> tuple[Any] | None:
        """What a call returned, where there is nothing else to tell of it: a short cut for most."""
        pickled = None if task.call is None or task.rebuilt else task.record.returned()
        if pickled is None:
            return None
        try:
            value = self._rebuild(pickled, task.call)
        except (PayloadError, ProtocolError):
            return None  # what is wrong with it is told the long way
        task.record.give_up_returned()
        return (value,)

    def _outcome(
        self, task: Task, error: Exception | None
    ) -> tuple[CellResult, Any, BaseException | None]:
        """What a task gave: as a cell's result, as a call's value, as what is to be raised."""
        future = task.future
        result = outcome(
            task.record.said,
            queued=task.queued(time.monotonic()),
            settings=task.settings,
            action_id=future.action_id,
            sandbox_id=future.sandbox_id,
            attempt=max(task.attempt, 1),
            fetched=task.record.fetched,
        )
        if error is not None:
            # Each future gets its own: raising an exception writes into it.
            failure = _copy(error)
            failure.result = result.with_error(failure)
            return result, None, failure
        if task.call is None:
            return result, result, result.error
        return result, *call_outcome(task.record, result, lambda got: self._rebuilt(task, got))

    def _rebuilt(self, task: Task, pickled: bytes) -> Any:
        """The object that a call gave: of one that was judged, the one that its policy saw."""
        if task.rebuilt is None:
            task.rebuilt = (self._rebuild(pickled, task.call),)
        return task.rebuilt[0]

    def _log_end(self, task: Task, result: CellResult, failure: BaseException | None) -> None:
        # Whatever it is, who holds the future is told: no need to warn as well.
        if not wanted("info"):
            return
        fields: dict[str, object] = {
            "queued": round(result.usage.queued, 6),
            "running": round(result.usage.running, 6),
            "cpu": round(result.usage.cpu, 6),
            "peak_memory": result.usage.peak_memory,
            "output_bytes": _output_bytes(task.record.said),
        }
        event = "task_finished"
        if isinstance(failure, (CellTimeout, QueueTimeout, DeadlineExceeded)):
            event = "task_timed_out"
        elif failure is not None:
            event = "task_failed"
            # What a call raised is of anybody's class: its words are those that the sandbox sent.
            raised = task.rebuilt is not None and failure is task.rebuilt[0]
            told = result.error if raised else failure
            fields["error"] = f"{type(told).__name__}: {told}"
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
        if os.getpid() != self._pid:
            return
        if broken is not None:
            error = broken
            if not isinstance(error, BrokenSandboxPool):
                error = BrokenSandboxPool(f"the executor broke: {type(broken).__name__}: {broken}")
                error.__cause__ = broken
            self._broken = error
            self._decide(self._pool.fail, error, time.monotonic())
            # Who decided on these was interrupted before it had carried that out.
            for task in list(self._live):
                self._live.discard(task)
                future = task.future
                if future is not None and not (task.claimed and future.done()):
                    self._settle(task, error)
        with self._lock:
            self._room.notify_all()
        self._ending.set()
        # What a keeper brings is brought before.
        self._keepers.drain()
        for sandbox in sorted(self._sandboxes):
            log("debug", "sandbox_retired", sandbox_id=self._name(sandbox))
        with self._lock:
            connection, self._connection = self._connection, None
        self._no_answers("the executor has ended")
        for brought in [connection, *self._arrived]:
            if brought is not None and not isinstance(brought, (Exception, _Parted)):
                brought.close()
        self._keepers.close()
        self._outputs.close()


class _Parted(NamedTuple):
    """A connection that was lost for good, and why."""

    connection: Connection
    reason: str


def _wait_of(task: Task, value: Any, failure: BaseException | None) -> float | None:
    """After how many seconds a task's own policy has it run again, or None."""
    retrying: tenacity.Retrying = task.settings.retries.copy()
    retrying.begin()
    state = tenacity.RetryCallState(retrying, None, (), {})
    state.attempt_number = task.attempt
    state.start_time = task.submitted
    if failure is None:
        state.set_result(value)
    else:
        state.set_exception((type(failure), failure, failure.__traceback__))
    try:
        verdict = retrying.iter(state)
    except BaseException:  # noqa: BLE001 - among others what the task raised
        # It has had enough, and says so in its own way: what the task gave stands.
        return None
    return float(verdict) if isinstance(verdict, tenacity.DoSleep) else None


def _copy(error: Exception) -> MentisPoolError:
    if not isinstance(error, MentisPoolError):
        copied: MentisPoolError = RuntimeUnavailable(f"{type(error).__name__}: {error}")
    else:
        copied = copy.copy(error)
    copied.__cause__ = error
    return copied


def _action_of(event: Event) -> int | None:
    return event.action if isinstance(event, Said) else None


def _output_bytes(said: list[Observation]) -> int:
    return sum(
        len(o.data) if isinstance(o, Stream) else o.bytes if isinstance(o, Cut) else 0 for o in said
    )


def _leave_all() -> None:
    """In a forked child: whatever the thread that forked was about to do here is the parent's."""
    for engine in list(_engines):
        engine.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)


_exiting = False


def _finish_all() -> None:
    """At the interpreter's exit, before threads may no longer be started: finish what was taken."""
    global _exiting
    _exiting = True
    for engine in list(_engines):
        engine.shutdown(False)
    for engine in list(_engines):
        engine.join()


# As concurrent.futures.thread does: atexit itself comes after the wait for
# non-daemon threads, and the dispatcher is one that waits to be told.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
