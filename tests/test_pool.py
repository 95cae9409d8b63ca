"""The policy: events in, orders out. Every rule and every race is a test of plain values."""

from __future__ import annotations

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

from mentis_pool.errors import BrokenSandboxPool, OutcomeUnknown, RuntimeUnavailable, SandboxDied
from mentis_pool.observations import Bundle as ObservedBundle
from mentis_pool.observations import Cut, Display, End, Error, Result, Start, Stream
from mentis_pool.pool import (
    Cancel,
    Cancelled,
    Connect,
    OpenSandbox,
    Pool,
    Retried,
    Send,
    Settle,
    Started,
    Stop,
)
from mentis_pool.task import Settings, State, Task, outcome

NOW = 100.0
ERROR = RuntimeUnavailable("no runtime")


def a_task(key="t", now=NOW):
    return Task(key, [b""], {}, Settings(), None, now, Future())


def tasks(count):
    return [a_task(f"t{i}", NOW + i) for i in range(count)]


def connected(max_workers=1, retries=1):
    """A pool that has a connection, the first, and has done nothing else."""
    pool = Pool(max_workers, retries)
    assert pool.connected() == []
    return pool


def sent(task, connection):
    """The order to send what the task now is."""
    return Send(task, task.action, task.sandbox, connection)


def running(pool, *some):
    """Add these, and let them begin."""
    for task in some:
        assert pool.add(task)[-1] == sent(task, 1)
        assert pool.said(task.action, Start(0.0), NOW) == [Started(task)]


def end(pool, task):
    pool.said(task.action, Result(), NOW)
    return pool.said(task.action, End(1.0), NOW)


def error_of(task):
    return outcome(task.record.said, queued=0.0).error


# ── the way of a task ───────────────────────────────────────────────────────


def test_nothing_is_started_before_there_is_a_task():
    assert Pool(4, 1).connected() == []


def test_the_first_task_needs_a_runtime_and_then_a_sandbox():
    pool, task = Pool(2, 1), a_task()
    assert pool.add(task) == [Connect(0)]
    assert task.state is State.QUEUED
    assert pool.connected() == [OpenSandbox(1, 1), sent(task, 1)]
    assert (task.state, task.sandbox, task.action, task.attempt) == (State.SENT, 1, 1, 1)


def test_a_runtime_is_asked_for_once():
    pool = Pool(2, 1)
    one, two, three = tasks(3)
    assert pool.add(one) == [Connect(0)]
    assert pool.add(two) == []
    assert pool.add(three) == []
    assert pool.connected() == [
        OpenSandbox(1, 1),
        sent(one, 1),
        OpenSandbox(2, 1),
        sent(two, 1),
    ]
    assert three.state is State.QUEUED


def test_a_task_is_started_once_it_is_said_and_settled_at_its_end():
    pool, task = connected(), a_task()
    pool.add(task)
    assert pool.said(task.action, Start(0.0), NOW) == [Started(task)]
    assert (task.state, task.started) == (State.RUNNING, NOW)
    for observation in (
        Stream("stdout", b"x"),
        Cut("stdout", 1),
        Display(ObservedBundle({})),
        Result(),
    ):
        assert pool.said(task.action, observation, NOW) == []
    assert pool.said(task.action, End(1.0), NOW) == [Settle(task)]
    assert task.state is State.ENDED
    assert len(task.record.said) == 6


def test_a_sandbox_that_is_free_takes_the_next_task():
    pool = connected()
    one, two = tasks(2)
    running(pool, one)
    assert pool.add(two) == []
    assert end(pool, one) == [Settle(one), sent(two, 1)]
    assert two.sandbox == one.sandbox
    assert two.action != one.action


def test_an_idle_sandbox_is_taken_before_another_is_opened():
    pool = connected(max_workers=2)
    one, two = tasks(2)
    running(pool, one)
    end(pool, one)
    assert pool.add(two) == [sent(two, 1)]


@pytest.mark.parametrize("max_workers", [1, 2, 5])
def test_there_are_no_more_sandboxes_than_workers(max_workers):
    pool = connected(max_workers)
    some = tasks(12)
    orders = [order for task in some for order in pool.add(task)]
    assert sum(type(o) is OpenSandbox for o in orders) == max_workers
    assert [o.task for o in orders if type(o) is Send] == some[:max_workers]
    for i, task in enumerate(some):
        pool.said(task.action, Start(0.0), NOW)
        follower = i + max_workers
        orders = end(pool, task)
        following = [sent(some[follower], 1)] if follower < len(some) else []
        assert orders == [Settle(task), *following]


def test_the_task_of_an_action_is_known_while_it_runs():
    pool, task = connected(), a_task()
    assert pool.task_of(1) is None
    pool.add(task)
    assert pool.task_of(task.action) is task
    end(pool, task)
    assert pool.task_of(task.action) is None


# ── late, doubled, unknown ──────────────────────────────────────────────────

EACH = [Start(0.0), Stream("stdout", b"x"), Result(), Error("died", "m"), End(1.0)]


@pytest.mark.parametrize("observation", EACH, ids=lambda o: type(o).__name__)
def test_what_is_said_of_an_unknown_action_is_ignored(observation):
    pool = connected()
    running(pool, a_task())
    assert pool.said(0, observation, NOW) == []
    assert pool.said(99, observation, NOW) == []


@pytest.mark.parametrize("observation", EACH, ids=lambda o: type(o).__name__)
def test_what_is_said_after_the_end_is_ignored(observation):
    pool = connected()
    one, two = tasks(2)
    running(pool, one)
    pool.add(two)
    action, said = one.action, None
    end(pool, one)
    said = list(one.record.said)
    assert pool.said(action, observation, NOW) == []
    assert one.record.said == said
    assert two.state is State.SENT


def test_an_end_is_heard_once():
    pool = connected(max_workers=2)
    one, two, three, four = tasks(4)
    running(pool, one, two)
    pool.add(three)
    pool.add(four)
    assert end(pool, one) == [Settle(one), sent(three, 1)]
    assert pool.said(1, End(1.0), NOW) == [], "four has no sandbox yet"


@pytest.mark.parametrize("observation", EACH, ids=lambda o: type(o).__name__)
def test_what_the_first_attempt_says_late_is_not_of_the_second(observation):
    pool, task = connected(), a_task()
    pool.add(task)
    first = task.action
    pool.closed(task.sandbox, "gone", NOW)
    assert task.action != first
    assert pool.said(first, observation, NOW) == []
    assert (task.state, task.record.said) == (State.SENT, [])


def test_an_end_without_a_start_ends_the_task():
    # A payload that cannot be rebuilt may end an action before its start.
    pool, task = connected(), a_task()
    pool.add(task)
    pool.said(task.action, Error("payload", "x"), NOW)
    assert pool.said(task.action, End(0.0), NOW) == [Settle(task)]


def test_a_task_that_says_anything_has_begun():
    # Its Start may be late or lost; to run it a second time is not what was asked for.
    pool, task = connected(), a_task()
    pool.add(task)
    pool.said(task.action, Stream("stdout", b"x"), NOW)
    assert Settle(task) in pool.closed(task.sandbox, "gone", NOW)


# ── sandboxes that are lost ─────────────────────────────────────────────────


def test_a_task_that_was_lost_before_it_began_is_sent_again():
    pool, task = connected(), a_task()
    pool.add(task)
    assert pool.closed(1, "gone", NOW) == [
        Retried(task, "gone"),
        OpenSandbox(2, 1),
        sent(task, 1),
    ]
    assert (task.attempt, task.sandbox, task.action) == (2, 2, 2)
    assert end(pool, task) == [Settle(task)]
    assert error_of(task) is None


def test_a_task_that_began_is_not_run_twice():
    pool, task = connected(retries=5), a_task()
    running(pool, task)
    assert pool.closed(1, "gone", NOW + 2) == [Settle(task)]
    error = error_of(task)
    assert type(error) is SandboxDied
    assert str(error) == "gone"
    assert error.result.usage.running == 2.0


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_have_an_end(retries):
    pool, task = connected(retries=retries), a_task()
    pool.add(task)
    for attempt in range(1, retries + 1):
        assert Retried(task, "gone") in pool.closed(task.sandbox, "gone", NOW)
        assert task.attempt == attempt + 1
    assert pool.closed(task.sandbox, "gone at last", NOW) == [Settle(task)]
    assert type(error_of(task)) is OutcomeUnknown
    assert str(error_of(task)) == "gone at last"


def test_a_lost_sandbox_makes_room_for_another():
    pool = connected(max_workers=1, retries=0)
    one, two = tasks(2)
    running(pool, one)
    pool.add(two)
    assert pool.closed(1, "gone", NOW) == [Settle(one), OpenSandbox(2, 1), sent(two, 1)]


def test_a_lost_idle_sandbox_is_not_used_again():
    pool = connected()
    one, two = tasks(2)
    running(pool, one)
    end(pool, one)
    assert pool.closed(1, "gone", NOW) == []
    assert pool.add(two) == [OpenSandbox(2, 1), sent(two, 1)]


def test_the_loss_of_a_sandbox_is_heard_once():
    pool, task = connected(max_workers=2), a_task()
    running(pool, task)
    assert pool.closed(1, "gone", NOW) == [Settle(task)]
    assert pool.closed(1, "gone", NOW) == []
    assert pool.closed(99, "never was", NOW) == []


def test_a_loss_touches_no_other_sandbox():
    pool = connected(max_workers=2)
    one, two = tasks(2)
    running(pool, one, two)
    pool.closed(one.sandbox, "gone", NOW)
    assert two.state is State.RUNNING
    assert end(pool, two) == [Settle(two)]


def test_a_task_that_is_sent_again_goes_before_those_that_wait():
    pool = connected()
    one, two = tasks(2)
    pool.add(one)
    pool.add(two)
    assert pool.closed(1, "gone", NOW)[-1] == sent(one, 1)
    assert two.state is State.QUEUED


def test_the_sends_of_two_attempts_can_be_told_apart():
    # A thread that was slow to carry out the first would send the second twice.
    pool, task = connected(), a_task()
    first = pool.add(task)[-1]
    second = pool.closed(task.sandbox, "gone", NOW)[-1]
    assert type(first) is type(second) is Send
    assert first != second


# ── runtimes that are lost ──────────────────────────────────────────────────


def test_a_lost_runtime_is_asked_for_again():
    pool = connected(max_workers=2)
    one, two, three = tasks(3)
    running(pool, one)
    pool.add(two)
    pool.add(three)
    *orders, last = pool.disconnected("gone", NOW)
    assert Retried(two, "gone") in orders
    assert Settle(one) in orders
    assert (len(orders), last) == (2, Connect(1))
    assert type(error_of(one)) is SandboxDied
    assert pool.connected() == [
        OpenSandbox(3, 2),
        sent(two, 2),
        OpenSandbox(4, 2),
        sent(three, 2),
    ]


def test_a_runtime_lost_while_idle_is_asked_for_with_the_next_task():
    pool = connected()
    one, two = tasks(2)
    running(pool, one)
    end(pool, one)
    assert pool.disconnected("gone", NOW) == []
    assert pool.add(two) == [Connect(1)]
    assert pool.connected() == [OpenSandbox(2, 2), sent(two, 2)]


def test_losses_in_a_row_are_counted_until_a_task_ends():
    pool, task = connected(retries=9), a_task()
    pool.add(task)
    for failures in (1, 2, 3):
        assert pool.disconnected("gone", NOW)[-1] == Connect(failures)
        pool.connected()
    end(pool, task)
    pool.disconnected("gone", NOW)
    assert pool.add(a_task()) == [Connect(1)]


def test_a_runtime_that_is_lost_again_and_again_uses_up_the_retries():
    pool, task = connected(retries=2), a_task()
    pool.add(task)
    for _ in range(2):
        assert Retried(task, "gone") in pool.disconnected("gone", NOW)
        pool.connected()
    assert pool.disconnected("gone", NOW) == [Settle(task)]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_after_a_loss_tasks_are_sent_in_the_order_of_their_submission(count):
    pool = connected(max_workers=3, retries=5)
    some = tasks(count)
    for task in some:
        pool.add(task)
    for _ in range(3):
        pool.disconnected("gone", NOW)
        assert [o.task for o in pool.connected() if type(o) is Send] == some[:3]


def test_a_task_that_was_sent_again_keeps_its_place_after_a_loss_of_the_runtime():
    pool = connected(max_workers=2, retries=5)
    one, two = tasks(2)
    pool.add(one)
    pool.add(two)
    pool.closed(one.sandbox, "gone", NOW)
    pool.disconnected("gone", NOW)
    assert [o.task for o in pool.connected() if type(o) is Send] == [one, two]


def test_a_runtime_that_cannot_be_had_is_the_error_of_all_that_wait():
    pool = Pool(2, 1)
    some = tasks(3)
    for task in some:
        pool.add(task)
    assert pool.unavailable(ERROR) == [Settle(task, ERROR) for task in some]
    assert all(task.record.ended and task.state is State.ENDED for task in some)


def test_after_a_runtime_could_not_be_had_the_next_task_tries_again():
    pool, task = Pool(2, 1), a_task()
    pool.add(a_task())
    pool.unavailable(ERROR)
    assert pool.add(task) == [Connect(0)]
    assert pool.connected() == [OpenSandbox(1, 1), sent(task, 1)]


def test_a_task_that_was_lost_and_then_has_no_runtime_ends_with_that():
    pool, task = connected(), a_task()
    pool.add(task)
    pool.disconnected("gone", NOW)
    assert pool.unavailable(ERROR) == [Settle(task, ERROR)]


# ── tasks that are cancelled ────────────────────────────────────────────────


def test_a_task_that_was_cancelled_is_not_sent():
    pool = connected()
    one, two, three = tasks(3)
    running(pool, one)
    pool.add(two)
    pool.add(three)
    assert two.future.cancel()
    orders = end(pool, one)
    assert orders == [Settle(one), Cancelled(two), sent(three, 1)]
    assert (three.sandbox, three.action) == (1, 2)


def test_a_task_that_was_sent_cannot_be_cancelled():
    pool, task = connected(), a_task()
    pool.add(task)
    assert not task.future.cancel()
    assert task.future.running()


def test_no_sandbox_is_opened_for_a_task_that_was_cancelled():
    pool, task = Pool(1, 1), a_task()
    pool.add(task)
    task.future.cancel()
    assert pool.connected() == [Cancelled(task)]


def test_a_cancelled_task_that_has_no_runtime_stays_cancelled():
    pool, task = Pool(1, 1), a_task()
    pool.add(task)
    task.future.cancel()
    assert pool.unavailable(ERROR) == [Cancelled(task)]


# ── the order of submission ─────────────────────────────────────────────────


def test_a_task_that_is_lost_again_keeps_its_place():
    pool = connected(max_workers=3, retries=5)
    one, two, three = some = tasks(3)
    for task in some:
        pool.add(task)
    # Two is sent anew, so it has the highest action: still it is before three.
    pool.closed(two.sandbox, "gone", NOW)
    assert two.action > three.action
    pool.disconnected("gone", NOW)
    assert [o.task for o in pool.connected() if type(o) is Send] == [one, two, three]


# ── shutdown ────────────────────────────────────────────────────────────────


def test_an_idle_pool_stops_at_once():
    for pool in (Pool(1, 1), connected()):
        assert not pool.closing
        assert pool.shutdown(False) == [Stop()]
        assert pool.closing


@pytest.mark.parametrize("cancel", [False, True])
def test_a_busy_pool_stops_with_its_last_task(cancel):
    pool = connected(max_workers=2)
    one, two = tasks(2)
    running(pool, one, two)
    assert pool.shutdown(cancel) == []
    assert end(pool, two) == [Settle(two)]
    assert end(pool, one) == [Settle(one), Stop()]


def test_tasks_that_wait_are_run_after_a_shutdown():
    pool = connected()
    one, two, three = tasks(3)
    running(pool, one)
    pool.add(two)
    pool.add(three)
    assert pool.shutdown(False) == []
    assert end(pool, one) == [Settle(one), sent(two, 1)]
    assert end(pool, two) == [Settle(two), sent(three, 1)]
    assert end(pool, three) == [Settle(three), Stop()]


def test_tasks_that_wait_are_cancelled_by_a_shutdown_that_cancels():
    pool = connected()
    one, two, three = tasks(3)
    running(pool, one)
    pool.add(two)
    pool.add(three)
    assert pool.shutdown(True) == [Cancel(two), Cancel(three)]
    assert end(pool, one) == [Settle(one), Stop()]


def test_a_shutdown_may_be_followed_by_one_that_cancels():
    pool = connected()
    one, two = tasks(2)
    running(pool, one)
    pool.add(two)
    assert pool.shutdown(False) == []
    assert pool.shutdown(True) == [Cancel(two)]
    assert pool.shutdown(True) == []
    assert end(pool, one) == [Settle(one), Stop()]
    assert pool.shutdown(True) == []


@pytest.mark.parametrize("cancel", [False, True])
def test_a_pool_stops_once(cancel):
    pool = connected()
    assert pool.shutdown(cancel) == [Stop()]
    assert pool.shutdown(cancel) == []
    assert pool.disconnected("gone", NOW) == []
    assert pool.connected() == []
    assert pool.unavailable(ERROR) == []


def test_a_shutdown_while_connecting_waits_for_the_runtime():
    pool, task = Pool(1, 1), a_task()
    pool.add(task)
    assert pool.shutdown(False) == []
    assert pool.connected() == [OpenSandbox(1, 1), sent(task, 1)]
    assert end(pool, task) == [Settle(task), Stop()]


def test_a_shutdown_while_connecting_hears_that_there_is_no_runtime():
    pool, task = Pool(1, 1), a_task()
    pool.add(task)
    pool.shutdown(False)
    assert pool.unavailable(ERROR) == [Settle(task, ERROR), Stop()]


def test_a_shutdown_that_cancels_while_connecting_stops_at_once():
    pool, task = Pool(1, 1), a_task()
    pool.add(task)
    assert pool.shutdown(True) == [Cancel(task), Stop()]
    assert pool.connected() == []


def test_a_shutdown_survives_the_loss_of_the_runtime():
    pool = connected(max_workers=2)
    one, two = tasks(2)
    running(pool, one)
    pool.add(two)
    pool.shutdown(False)
    orders = pool.disconnected("gone", NOW)
    assert Settle(one) in orders
    assert orders[-1] == Connect(1)
    assert pool.connected() == [OpenSandbox(3, 2), sent(two, 2)]
    assert end(pool, two) == [Settle(two), Stop()]


def test_a_shutdown_ends_with_the_loss_of_the_last_sandbox():
    pool, task = connected(), a_task()
    running(pool, task)
    pool.shutdown(False)
    assert pool.closed(1, "gone", NOW) == [Settle(task), Stop()]


def test_a_shutdown_ends_with_a_cancelled_task():
    pool = connected()
    one, two = tasks(2)
    running(pool, one)
    pool.add(two)
    pool.shutdown(False)
    two.future.cancel()
    assert end(pool, one) == [Settle(one), Cancelled(two), Stop()]


def test_a_task_whose_future_runs_is_not_cancelled_by_a_shutdown():
    # It was sent once, so Future.cancel() does nothing any more and its waiters
    # would wait for ever: it is sent again, or its outcome is an error.
    pool, task = connected(), a_task()
    pool.add(task)
    assert pool.disconnected("gone", NOW) == [Retried(task, "gone"), Connect(1)]
    orders = pool.shutdown(True)
    assert Cancel(task) not in orders
    orders += pool.connected()
    if task.state is State.SENT:
        orders += end(pool, task)
    assert [type(o) for o in orders if type(o) in (Settle, Stop)] == [Settle, Stop]


@pytest.mark.parametrize("late", ["shutdown", "fail"])
def test_a_task_that_comes_too_late_is_not_forgotten(late):
    # Engine.submit looks at `closing` and adds in two steps: a shutdown may come between.
    pool, task = connected(), a_task()
    if late == "shutdown":
        pool.shutdown(False)
    else:
        pool.fail(ERROR, NOW)
    assert pool.add(task) == [Cancel(task)]


# ── when nothing works any more ─────────────────────────────────────────────


def test_all_that_live_fail_together_and_once():
    pool = connected(max_workers=2)
    one, two, three, four = some = tasks(4)
    running(pool, one)
    pool.add(two)
    pool.add(three)
    pool.add(four)
    error = BrokenSandboxPool("broken")
    orders = pool.fail(error, NOW + 1)
    assert sorted(orders, key=lambda o: o.task.key) == [Settle(task, error) for task in some]
    assert all(task.record.ended and task.state is State.ENDED for task in some)
    assert str(error_of(one)) == "broken"
    assert pool.closing
    assert not [o for o in pool.fail(error, NOW) if type(o) is not Stop]


def test_what_comes_after_the_failure_changes_nothing():
    pool, task = connected(), a_task()
    running(pool, task)
    pool.add(a_task())
    action = task.action
    pool.fail(ERROR, NOW)
    said = list(task.record.said)
    orders = pool.said(action, End(1.0), NOW)
    orders += pool.closed(1, "gone", NOW)
    orders += pool.disconnected("gone", NOW)
    orders += pool.connected()
    orders += pool.shutdown(True)
    assert [o for o in orders if type(o) is not Stop] == []
    assert task.record.said == said


def test_a_failure_while_connecting_fails_those_that_wait():
    pool, task = Pool(1, 1), a_task()
    pool.add(task)
    assert pool.fail(ERROR, NOW) == [Settle(task, ERROR)]


# ── whatever happens ────────────────────────────────────────────────────────


class Walk(RuleBasedStateMachine):
    """Any legal order of events, with an engine that may be slow to carry out what it was told.

    The engine: sends are carried out late, in any order, as threads would. The runtime: runs what reached it,
    one at a time in each sandbox, and may die, as its sandboxes may, at any time.
    """

    @initialize(max_workers=st.integers(1, 3), retries=st.integers(0, 2))
    def begin(self, max_workers, retries):
        self.max_workers, self.retries = max_workers, retries
        self.pool = Pool(max_workers, retries)
        self.tasks = []
        self.done = set()
        self.started = set()
        self.unsent = []  # ordered, not yet carried out
        self.sandboxes = set()
        self.used_sandboxes, self.used_actions = set(), set()
        self.runs = {}  # action -> sandbox: what the runtime has, in order of arrival
        self.begun = set()
        self.connection = 0
        self.is_connected = self.connecting = False
        self.shut = self.failed = self.stopped = False

    # ── the engine ──

    def obey(self, orders):
        for order in orders:
            assert not self.stopped, f"{order} after Stop"
            self.order(order)

    def order(self, order):
        if type(order) is Connect:
            assert not self.connecting
            assert not self.is_connected
            self.connecting = True
        elif type(order) is OpenSandbox:
            assert self.is_connected
            assert order.connection == self.connection
            assert order.sandbox not in self.used_sandboxes
            self.used_sandboxes.add(order.sandbox)
            self.sandboxes.add(order.sandbox)
            assert len(self.sandboxes) <= self.max_workers
        elif type(order) is Send:
            self.ordered_to_send(order)
        elif type(order) is Started:
            self.started.add(order.task)
        elif type(order) is Retried:
            assert order.task not in self.started
            assert order.task not in self.done
        elif type(order) is Settle:
            assert order.task.record.ended
            assert order.task.future.running()
            self.ended(order.task)
        elif type(order) is Cancel:
            assert not order.task.future.running()
            order.task.future.cancel()
            self.ended(order.task)
        elif type(order) is Cancelled:
            assert order.task.future.cancelled()
            self.ended(order.task)
        elif type(order) is Stop:
            assert self.shut or self.failed
            assert self.done == set(self.tasks)
            self.stopped = True

    def ordered_to_send(self, order):
        task = order.task
        assert self.is_connected
        assert order.connection == self.connection
        assert task.sandbox in self.sandboxes
        assert order == sent(task, self.connection)
        assert task.action not in self.used_actions
        assert task not in self.done
        assert task.future.running()
        assert task not in self.started
        assert task.attempt <= self.retries + 1
        live = [t for t in self.tasks if t.state in (State.SENT, State.RUNNING)]
        assert len(live) <= self.max_workers
        assert len({t.sandbox for t in live}) == len(live)
        waiting = [t for t in self.tasks if t.state is State.QUEUED and not t.future.cancelled()]
        assert all(self.tasks.index(t) > self.tasks.index(task) for t in waiting), (
            "one that was submitted before waits"
        )
        self.used_actions.add(task.action)
        self.unsent.append(order)

    def ended(self, task):
        assert task not in self.done, "ended twice"
        self.done.add(task)

    # ── its events ──

    @precondition(lambda self: not self.shut and not self.failed and len(self.tasks) < 12)
    @rule()
    def add(self):
        task = a_task(f"t{len(self.tasks)}", NOW + len(self.tasks))
        self.tasks.append(task)
        self.obey(self.pool.add(task))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel_a_future(self, data):
        task = data.draw(st.sampled_from(self.tasks))
        assert task.future.cancel() == (task.state is State.QUEUED and not task.claimed)

    @precondition(lambda self: self.unsent)
    @rule(data=st.data())
    def carry_out_a_send(self, data):
        self.carry_out(data.draw(st.integers(0, len(self.unsent) - 1)))

    def carry_out(self, i):
        order = self.unsent.pop(i)
        here = self.is_connected and order.connection == self.connection
        if here and order.sandbox in self.sandboxes:
            self.runs[order.action] = order.sandbox

    @precondition(lambda self: self.connecting)
    @rule(there=st.sampled_from([True, True, False]))
    def a_runtime_is_there_or_not(self, there):
        self.connecting = False
        if there:
            self.is_connected = True
            self.connection += 1
            self.obey(self.pool.connected())
        else:
            self.obey(self.pool.unavailable(ERROR))

    @precondition(lambda self: self.is_connected)
    @rule()
    def the_runtime_is_lost(self):
        self.is_connected = False
        self.sandboxes.clear()
        self.runs.clear()
        self.obey(self.pool.disconnected("gone", NOW))

    @precondition(lambda self: self.sandboxes)
    @rule(data=st.data())
    def a_sandbox_is_lost(self, data):
        sandbox = data.draw(st.sampled_from(sorted(self.sandboxes)))
        self.sandboxes.remove(sandbox)
        self.runs = {a: s for a, s in self.runs.items() if s != sandbox}
        self.obey(self.pool.closed(sandbox, "gone", NOW))

    def first_runs(self):
        """What the runtime may speak of: the first run of each sandbox."""
        firsts = {}
        for action, sandbox in self.runs.items():
            firsts.setdefault(sandbox, action)
        return sorted(firsts.values())

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), observation=st.sampled_from([Stream("stdout", b"x"), Result(), None]))
    def something_is_said(self, data, observation):
        action = data.draw(st.sampled_from(self.first_runs()))
        if action not in self.begun:
            self.begun.add(action)
            self.obey(self.pool.said(action, Start(0.0), NOW))
        elif observation is not None:
            self.obey(self.pool.said(action, observation, NOW))
        else:
            self.end_of(action)

    def end_of(self, action):
        del self.runs[action]
        self.obey(self.pool.said(action, End(0.0), NOW))

    @rule(data=st.data(), observation=st.sampled_from([Start(0.0), Result(), End(0.0)]))
    def something_is_said_too_late(self, data, observation):
        live = {t.action for t in self.tasks if t.state in (State.SENT, State.RUNNING)}
        action = data.draw(st.sampled_from(sorted(self.used_actions - live) or [0]))
        assert self.pool.said(action, observation, NOW) == []

    @precondition(lambda self: len(self.tasks) > 1 or self.connection)
    @rule(cancel=st.booleans())
    def shutdown(self, cancel):
        self.shut = True
        self.obey(self.pool.shutdown(cancel))

    @precondition(lambda self: len(self.tasks) > 3 and not self.stopped)
    @rule(really=st.integers(0, 3))
    def fail(self, really):
        if really == 0:
            self.failed = True
            self.obey(self.pool.fail(BrokenSandboxPool("broken"), NOW))
            assert self.done == set(self.tasks)

    @invariant()
    def an_ended_task_stays_ended(self):
        for task in getattr(self, "done", ()):
            assert task.state is State.ENDED or task.future.cancelled()

    def teardown(self):
        """Let all that is under way come to its end: nothing may be left."""
        if not hasattr(self, "pool"):
            return
        if not self.shut and not self.stopped:
            self.shut = True
            self.obey(self.pool.shutdown(False))
        for _ in range(1000):
            if self.unsent:
                self.carry_out(0)
            elif self.connecting:
                self.a_runtime_is_there()
            elif self.runs:
                self.end_of(self.first_runs()[0])
            else:
                break
        assert self.done == set(self.tasks), "a task was forgotten"
        assert self.stopped or self.failed

    def a_runtime_is_there(self):
        self.connecting, self.is_connected = False, True
        self.connection += 1
        self.obey(self.pool.connected())


Walk.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class TestWhateverHappensEveryTaskEndsOnceAndThePoolStopsOnce(Walk.TestCase):
    pass
