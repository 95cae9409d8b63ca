"""The policy: events in, orders out. Every rule and every race is a test of plain values."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import Future

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from mentis_pool import lanes
from mentis_pool import pool as module
from mentis_pool.errors import (
    BrokenSandboxPool,
    DeadlineExceeded,
    OutcomeUnknown,
    QueueTimeout,
    RuntimeUnavailable,
    SandboxDied,
    StateLost,
)
from mentis_pool.lanes import Lanes
from mentis_pool.observations import Bundle as ObservedBundle
from mentis_pool.observations import Cut, Display, End, Error, Result, Start, Stream
from mentis_pool.pool import (
    CALLS,
    CELLS,
    Cancel,
    Cancelled,
    CloseLane,
    Connect,
    Judge,
    OpenLane,
    Pool,
    Retried,
    Send,
    Settle,
    Started,
    Stop,
    Strike,
    Withdraw,
)
from mentis_pool.pool_stream import Cells
from mentis_pool.task import Settings, State, Task, outcome

NOW = 100.0
ERROR = RuntimeUnavailable("no runtime")
SHARED = (CELLS, CALLS)
LIMITS = module.AHEAD, module.AHEAD_BYTES, module.TIMES


def a_task(key="t", now=NOW, lane=CELLS, *, size=0, **settings):
    task = Task(key, lane, Cells([b""]), Settings(**settings), None, now, size=size)
    task.future = Future()
    return task


def error_of(task):
    said = task.record.said
    return outcome(said, queued=0.0, settings=task.settings).error


# ── whatever happens ────────────────────────────────────────────────────────


@dataclasses.dataclass
class Box:
    """A sandbox of the runtime in `Walk`."""

    lane: int
    given: int | None = None
    running: bool = False
    cells: set = dataclasses.field(default_factory=set)
    """What its process has run."""


class Walk(RuleBasedStateMachine):
    """Any order of events, with an engine of threads that are slow to carry out what they were told.

    The engine: the dispatcher decides once it has carried out what it decided before; what
    the user's threads decided is carried out at any time, as `Engine` does it. The runtime:
    `Lanes`, with sandboxes that die, are lost or refused at any moment; commands and
    events are under way for any time.
    """

    # ── the executor ──

    @initialize(
        max_workers=st.integers(1, 3), ahead=st.integers(0, 3), most_bytes=st.sampled_from([60, 200])
    )
    def begin(self, max_workers, ahead, most_bytes):
        module.AHEAD, module.AHEAD_BYTES, module.TIMES = ahead, most_bytes, 3
        self.max_workers = max_workers
        self.pool = Pool(max_workers)
        self.now = NOW
        self.ticks = itertools.count()
        self.tasks = []
        self.done = {}  # task -> the order that ended it
        self.added = {}  # task -> when, in ticks
        self.waits_for = {}  # task -> until when its policy has it wait
        self.heard = set()  # tasks whose beginning was heard
        self.out = {}  # action -> task: sent, and not back
        self.told = {}  # session -> when somebody was told that its state is lost
        self.begun = {}  # session -> {task: when it began}, of what was heard
        self.losses = {}  # session -> when its state was lost
        self.sessions = []
        self.threads = [[]]  # orders to be carried out; first the dispatcher's
        self.outbox, self.events = [], []
        self.connection = 0
        self.is_connected = self.connecting = False
        self.shut = self.failed = self.stopped = False
        self.legal = True
        self.new_runtime()

    def a_thread(self, orders):
        self.obey(orders)
        self.threads.append(orders)

    def dispatcher(self, orders):
        self.obey(orders)
        self.threads[0] += orders

    def obey(self, orders):
        """What must be true of orders when they are given."""
        for order in orders:
            assert not self.stopped, f"{order} after Stop"
            if type(order) is Connect:
                assert not self.connecting
                assert not self.is_connected
                self.connecting = True
            elif type(order) is OpenLane:
                assert (self.is_connected, order.connection) == (True, self.connection)
                # The engine must do so while it holds the lock.
                self.outbox.append(order)
            elif type(order) is Send:
                self.ordered_to_send(order)
            elif type(order) is Settle:
                self.ordered_to_settle(order)
            elif type(order) is Cancel:
                assert order.task.claimed is None
                self.ended(order)
            elif type(order) is Cancelled:
                assert order.task.future._state == "CANCELLED_AND_NOTIFIED"
                self.ended(order)
            elif type(order) in (Judge, Retried):
                assert order.task not in self.done
                assert not order.task.unwanted
            elif type(order) is Stop:
                assert self.shut or self.failed
                assert set(self.done) == set(self.tasks)
                self.stopped = True

    def ordered_to_send(self, order):
        task = order.task
        assert (self.is_connected, order.connection) == (True, self.connection)
        assert order.action not in self.out
        assert task not in self.done
        assert task.claimed is not False
        retries = task.settings.retries
        if task in self.heard:
            assert not isinstance(retries, int) or (
                task.settings.idempotent and task.lane in SHARED
            )
        if isinstance(retries, int):
            assert task.losses <= retries
            assert task.reruns <= retries
        for other in self.tasks:
            same = other.lane == task.lane or {other.lane, task.lane} <= set(SHARED)
            if same and other.state is State.QUEUED and other.number < task.number:
                assert other in self.waits_for, "one that was submitted before waits"
        ahead = [each for each in self.out.values() if each.lane in SHARED]
        if task.lane in SHARED and len(ahead) >= self.max_workers:
            assert len(ahead) < self.max_workers + module.AHEAD
            assert sum(each.size for each in self.out.values()) < module.AHEAD_BYTES
        self.out[order.action] = task
        assert len({id(each) for each in self.out.values()}) == len(self.out)

    def ordered_to_settle(self, order):
        task = order.task
        assert task.record.ended
        self.ended(order)
        said = task.record.said
        mine = [o for o in said if type(o) in (Stream, Result)]
        assert all((o.text if type(o) is Result else o.data.decode()) == task.key for o in mine)
        if order.error is None and type(error_of(task)) is StateLost:
            self.hears_of_loss(task)

    def hears_of_loss(self, task):
        if self.legal:
            losses = self.losses.get(task.lane, [])
            assert losses, "nothing was lost"
            told = self.told.get(task.lane, [])
            assert not any(losses[-1] < at < self.added[task] for at in told), "told twice"
        self.told.setdefault(task.lane, []).append(next(self.ticks))

    def ended(self, order):
        assert order.task not in self.done, "ended twice"
        assert order.task.ended
        self.waits_for.pop(order.task, None)
        self.done[order.task] = order

    # ── the engine's threads ──

    def carry_out(self, thread):
        order = thread.pop(0)
        if type(order) is Send:
            self.send(order, thread)
        elif type(order) is Settle:
            self.resolve(order)
        elif type(order) is Cancel:
            order.task.future.cancel()
            assert not order.task.claim()
        elif type(order) is Judge:
            task = order.task
            wait = next(self.verdicts)
            alive = task not in self.done
            orders = self.pool.judged(task, wait, self.now)
            assert alive or not orders
            if alive and wait is not None:
                self.waits_for[task] = self.now + wait
            self.obey(orders)
            thread[:0] = orders
        elif type(order) in (Withdraw, Strike, CloseLane) and order.connection == self.connection:
            self.outbox.append(order)

    def send(self, order, thread):
        task = order.task
        if task.ended:
            if self.out.get(order.action) is task:
                del self.out[order.action]
            orders = self.pool.unsent(order.action)
            self.obey(orders)
            thread[:0] = orders
        elif task.action == order.action and order.connection == self.connection:
            self.outbox.append(order)

    def resolve(self, order):
        future = order.task.future
        if order.task.claim():
            future.set_result(order)
        else:
            assert future.cancelled()

    # ── the runtime ──

    def new_runtime(self):
        self.lanes = Lanes(self.max_workers)
        self.boxes = {}
        self.opened = set()

    def reads(self):
        command = self.outbox.pop(0)
        if type(command) is OpenLane:
            self.opened.add(command.lane)
            self.lanes.open(command.lane, command.lane not in SHARED)
        elif type(command) is Send:
            lane = command.task.lane
            self.runtime(self.lanes.add(lane, command.action, command.task))
        elif type(command) is Withdraw:
            self.runtime(self.lanes.cancel(command.action))
        elif type(command) is CloseLane:
            self.runtime(self.lanes.close(command.lane))
        else:
            box = self.boxes.get(self.lanes.sandbox_of(command.action))
            if box is not None and box.running:
                self.dies(self.lanes.sandbox_of(command.action), Error("died", "m", command.signal))

    def runtime(self, orders):
        for order in orders:
            if type(order) is lanes.Make:
                if next(self.rooms):
                    self.boxes[order.sandbox] = Box(order.lane)
                else:
                    self.runtime(self.lanes.refused(order.sandbox, "no room"))
            elif type(order) is lanes.Give:
                if order.sandbox in self.boxes:
                    box = self.boxes[order.sandbox]
                    assert (box.given, box.running, box.lane) == (None, False, order.run.lane)
                    box.given = order.action
                    box.task = order.run
            elif type(order) is lanes.End:
                self.ends(order)
            elif type(order) is lanes.Drop:
                if order.sandbox in self.boxes:
                    self.is_lost(order.sandbox, "dropped")
            elif type(order) is lanes.Refuse:
                self.events += [(order.action, Error(order.kind, order.reason))]
                self.events += [(order.action, End(0.0))]
            else:
                self.events.append((None, order.reason))

    def ends(self, order):
        box = self.boxes.get(order.sandbox)
        if box is None or box.given != order.action:
            return
        if box.running:
            self.dies(order.sandbox, Error("cancelled", "m"))
        else:
            self.over(order.sandbox, Error("cancelled", "m"))

    def starts(self, sandbox):
        box = self.boxes[sandbox]
        box.running = True
        self.events.append((box.given, Start(0.0, sandbox)))
        assert sum(each.running for each in self.boxes.values()) <= self.max_workers
        task = box.task
        if task.lane not in SHARED and self.legal:
            begun = self.begun.get(task.lane, {})
            assert all(each.number <= task.number for each in begun), "not in order"
            lost = [at for each, at in begun.items() if each not in box.cells and each is not task]
            if lost:
                told = self.told.get(task.lane, [])
                assert any(max(lost) < at < self.added[task] for at in told), "state lost, untold"
        box.cells.add(task)

    def over(self, sandbox, said):
        box = self.boxes[sandbox]
        action, box.given, box.running = box.given, None, False
        self.events += [(action, said), (action, End(0.0))]
        self.runtime(self.lanes.ended(action))

    def dies(self, sandbox, said):
        """The process of a sandbox dies while it runs something."""
        self.loses_state(sandbox)
        self.runtime(self.lanes.state_lost(sandbox, "died"))
        self.over(sandbox, said)

    def is_lost(self, sandbox, reason):
        box = self.boxes[sandbox]
        if box.running:
            action, box.given, box.running = box.given, None, False
            self.events += [(action, Error("died", reason)), (action, End(0.0))]
            self.loses_state(sandbox)
            self.runtime(self.lanes.ended(action))
        else:
            self.loses_state(sandbox)
        del self.boxes[sandbox]
        self.runtime(self.lanes.lost(sandbox, reason))

    def loses_state(self, sandbox):
        box = self.boxes[sandbox]
        if box.cells and box.lane not in SHARED:
            self.losses.setdefault(box.lane, []).append(next(self.ticks))
        box.cells = set()

    # ── what may happen next ──

    def steps(self):
        steps = [(self.carry_out, thread) for thread in self.threads if thread]
        if self.outbox:
            steps.append((self.reads,))
        if self.events and not self.threads[0]:
            steps.append((self.hears,))
        if self.connecting and not self.threads[0]:
            steps.append((self.a_runtime_is_there,))
        for sandbox, box in self.boxes.items():
            if box.given is not None and not box.running:
                steps.append((self.starts, sandbox))
            elif box.running:
                result = Result(text=box.task.key)
                stream = Stream("stdout", box.task.key.encode())
                steps.append((self.over, sandbox, result))
                steps.append((self.events.append, (box.given, stream)))
        return steps

    def hears(self):
        action, observation = self.events.pop(0)
        if action is None:
            self.broken()
            return
        task = self.pool.task_of(action)
        if task is not None and type(observation) not in (Error, End):
            # It is heard now, or found cancelled.
            wanted = task.claimed is not None or not task.future.cancelled()
            if wanted and task not in self.heard:
                self.heard.add(task)
                self.begun.setdefault(task.lane, {})[task] = next(self.ticks)
        if type(observation) is End:
            self.out.pop(action, None)
        self.dispatcher(self.pool.said(action, observation, self.now))

    def a_runtime_is_there(self):
        self.connecting, self.is_connected = False, True
        self.connection += 1
        self.outbox = []
        self.new_runtime()
        self.dispatcher(self.pool.connected())

    def broken(self):
        self.failed = True
        error = BrokenSandboxPool("broken")
        self.out.clear()
        self.dispatcher(self.pool.fail(error, self.now))
        assert set(self.done) == set(self.tasks)

    verdicts = itertools.cycle([None, 0.0, 3.0, None, 0.0, None, None])
    rooms = itertools.repeat(True)

    # ── rules ──

    @rule(choices=st.lists(st.integers(0, 1000), min_size=1, max_size=12))
    def go_on(self, choices):
        for choice in choices:
            steps = self.steps()
            if not steps:
                return
            step, *arguments = steps[choice % len(steps)]
            step(*arguments)

    @precondition(lambda self: len(self.tasks) < 14)
    @rule(
        lane=st.integers(-2, 3),
        size=st.sampled_from([0, 0, 20, 70]),
        retries=st.sampled_from([0, 0, 1, 2, "policy"]),
        idempotent=st.booleans(),
        queue_timeout=st.sampled_from([None, None, 0.0, 2.0]),
        deadline=st.sampled_from([None, None, 1.0, 4.0]),
    )
    def add(self, lane, **settings):
        lane = self.sessions[lane % len(self.sessions)] if lane > 0 and self.sessions else CELLS
        if lane == CELLS and settings["idempotent"]:
            lane = CALLS
        late = self.pool.closing
        task = a_task(f"t{len(self.tasks)}", self.now, lane, **settings)
        self.added[task] = next(self.ticks)
        orders = self.pool.add(task)
        if late:
            assert orders == [Cancel(task)]
            return
        self.tasks.append(task)
        self.a_thread(orders)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel_a_future(self, data):
        task = data.draw(st.sampled_from(self.tasks))
        could = not task.claimed and not task.future.done()
        assert task.future.cancel() == (could or task.future.cancelled())
        if data.draw(st.booleans()):
            self.tell_of_cancelled(task)

    def tell_of_cancelled(self, task):
        if task.future.cancelled():
            self.a_thread(self.pool.cancelled(task))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def the_pool_hears_of_a_cancelled_future(self, data):
        self.tell_of_cancelled(data.draw(st.sampled_from(self.tasks)))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), final=st.booleans())
    def signal(self, data, final):
        task = data.draw(st.sampled_from(self.tasks))
        orders = self.pool.signal(task, 9 if final else 2, final)
        assert bool(orders) == (task.state is State.RUNNING and task in self.out.values())
        self.a_thread(orders)

    @precondition(lambda self: len(self.sessions) < 4)
    @rule()
    def open_session(self):
        self.sessions.append(self.pool.open_session())

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def close_session(self, data):
        number = data.draw(st.sampled_from(self.sessions))
        self.a_thread(self.pool.close_session(number))
        live = [t for t in self.tasks if t.lane == number and t not in self.done]
        assert all(t.state is State.RUNNING for t in live)

    @precondition(lambda self: self.is_connected and not self.threads[0])
    @rule(kind=st.sampled_from(["died", "unknown"]))
    def the_runtime_is_lost(self, kind):
        for sandbox in self.boxes:
            self.loses_state(sandbox)
        self.is_connected = False
        self.events, self.outbox = [], []
        self.out.clear()
        self.new_runtime()
        self.dispatcher(self.pool.disconnected("gone", self.now, kind))

    @precondition(lambda self: self.connecting and not self.threads[0])
    @rule()
    def there_is_no_runtime(self):
        self.connecting = False
        self.dispatcher(self.pool.unavailable(ERROR))

    @precondition(lambda self: self.boxes)
    @rule(data=st.data(), whole=st.booleans(), kind=st.sampled_from(["died", "protocol"]))
    def a_sandbox_or_its_process_is_lost(self, data, whole, kind):
        sandbox = data.draw(st.sampled_from(sorted(self.boxes)))
        if whole:
            self.is_lost(sandbox, "lost")
        elif self.boxes[sandbox].running:
            self.dies(sandbox, Error(kind, "m"))

    @rule(rooms=st.lists(st.booleans(), max_size=3))
    def there_is_room_or_not(self, rooms):
        self.rooms = itertools.chain(rooms, itertools.repeat(True))

    @precondition(lambda self: not self.threads[0])
    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def time_passes(self, seconds):
        self.now += seconds
        due = self.pool.deadline
        for task in [t for t, until in self.waits_for.items() if until <= self.now]:
            del self.waits_for[task]
        orders = self.pool.passed(self.now)
        assert not orders or (due is not None and due <= self.now)
        for order in orders:
            if type(order) is Settle and type(error_of(order.task)) in (QueueTimeout, DeadlineExceeded):
                assert late(order.task, self.now)
        self.dispatcher(orders)
        for task in self.tasks:
            assert not (task.waits and not task.known and late(task, self.now)), "forgotten"
        assert self.pool.deadline is None or self.pool.deadline > self.now

    @rule(data=st.data(), observation=st.sampled_from([Start(0.0), Result(), Error("state", "m"), End(0.0)]))
    def something_is_said_too_late(self, data, observation):
        action = data.draw(st.integers(0, 30))
        if action not in self.out:
            assert self.pool.said(action, observation, self.now) == []

    @precondition(lambda self: self.out and not self.threads[0])
    @rule(data=st.data(), kind=st.sampled_from([None, Start, End, "state", "cancelled", "died", "rejected"]))
    def a_runtime_says_what_it_must_not(self, data, kind):
        if data.draw(st.integers(0, 3)):
            return
        self.legal = False
        action = data.draw(st.sampled_from(sorted(self.out)))
        key = self.out[action].key
        said = {None: Result(text=key), Start: Start(0.0), End: End(0.0)}
        self.events.insert(0, (action, said[kind] if kind in said else Error(kind, "m")))
        self.hears()

    @precondition(lambda self: len(self.tasks) > 4)
    @rule(cancel=st.booleans())
    def shutdown(self, cancel):
        self.shut = True
        self.a_thread(self.pool.shutdown(cancel))
        if cancel:
            assert not [t for t in self.tasks if t.waits and t.claimed is None]

    @precondition(lambda self: len(self.tasks) > 6)
    @rule(really=st.integers(0, 2))
    def kill(self, really):
        if really == 0:
            self.shut = True
            self.a_thread(self.pool.kill(9))
            live = [t for t in self.tasks if t not in self.done]
            assert all(t.state is State.RUNNING and t.unwanted for t in live)

    @precondition(lambda self: len(self.tasks) > 6 and not self.threads[0])
    @rule(really=st.integers(0, 3))
    def fail(self, really):
        if really == 0 and not self.stopped:
            self.broken()

    # ── at every moment ──

    @invariant()
    def the_pool_counts_what_waits(self):
        if hasattr(self, "pool"):
            assert self.pool.waiting == sum(task.waits for task in self.tasks)

    @invariant()
    def what_has_ended_stays_ended(self):
        assert all(task.ended for task in getattr(self, "done", ()))

    def teardown(self):
        """Let all that is under way come to its end: nothing may be left."""
        module.AHEAD, module.AHEAD_BYTES, module.TIMES = LIMITS
        if not hasattr(self, "pool"):
            return
        self.rooms, self.verdicts = itertools.repeat(True), itertools.repeat(None)
        if not self.stopped and not self.shut:
            self.shutdown_at_last()
        for _ in range(3000):
            steps = self.steps()
            if steps:
                step, *arguments = steps[0]
                step(*arguments)
            elif self.pool.deadline is not None:
                self.now = max(self.now, self.pool.deadline)
                self.waits_for.clear()
                self.dispatcher(self.pool.passed(self.now))
            else:
                break
        assert set(self.done) == set(self.tasks), "a task was forgotten"
        assert self.stopped or self.failed
        for task, order in self.done.items():
            if type(order) is Settle and not task.future.cancelled():
                assert task.future.result(0) is order
            else:
                assert task.future.cancelled()

    def shutdown_at_last(self):
        self.shut = True
        self.a_thread(self.pool.shutdown(False))


def late(task, now):
    """Whether it is too late for a task that has not begun."""
    settings = task.settings
    queue = None if task.claimed else settings.queue_timeout
    return any(
        limit is not None and task.submitted + limit <= now for limit in (queue, settings.deadline)
    )


Walk.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class TestWhateverHappensEveryTaskEndsOnceAndThePoolStopsOnce(Walk.TestCase):
    pass
