"""The policy: events in, orders out. Every rule and every race is a test of plain values."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import Future

import pytest
import tenacity
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from walks import WALKS

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
AHEAD = module.AHEAD


def a_task(key="t", now=NOW, lane=CELLS, *, size=0, **settings):
    task = Task(key, lane, Cells([b""]), Settings(**settings), None, now, size=size)
    task.future = Future()
    return task


def error_of(task):
    said = task.record.said
    return outcome(said, queued=0.0, settings=task.settings).error


def tasks(count, lane=CELLS, **settings):
    return [a_task(f"t{i}", NOW + i, lane, **settings) for i in range(count)]


def connected(max_workers=1):
    """A pool that has a connection, the first, and has done nothing else."""
    pool = Pool(max_workers)
    assert pool.connected() == []
    return pool


def sent(task, connection=1):
    """The order to send what the task now is."""
    return Send(task, task.action, connection)


def withdrawn(task):
    """The order to have it not run."""
    return Withdraw(task.action, 1)


def running(pool, *some):
    """Add these, and let them begin."""
    for task in some:
        assert pool.add(task)[-1] == sent(task)
        assert pool.said(task.action, Start(0.0), NOW) == [Started(task)]


def end(pool, task):
    pool.said(task.action, Result(), NOW)
    return pool.said(task.action, End(1.0), NOW)


def fail(pool, task, kind, message="gone"):
    """The runtime says that the task ended by an error of this kind."""
    orders = pool.said(task.action, Error(kind, message), NOW)
    return [*orders, *pool.said(task.action, End(0.0), NOW)]


def a_session(pool, *some):
    """A session; its tasks."""
    number = pool.open_session()
    for task in some:
        task.lane = number
    return number


def sends(orders):
    return [order.task for order in orders if type(order) is Send]


def test_a_task_is_alone_when_the_runtime_has_nothing_else():
    pool, (first, second) = connected(2), tasks(2)
    running(pool, first)
    assert pool.is_alone(first)
    assert not pool.is_alone(second)
    running(pool, second)
    assert not pool.is_alone(first)
    end(pool, first)
    assert pool.is_alone(second)
    end(pool, second)
    assert not pool.is_alone(second)


# ── the way of a task ───────────────────────────────────────────────────────


def test_nothing_is_started_before_there_is_a_task():
    assert Pool(4).connected() == []


def test_the_first_task_needs_a_runtime_and_then_a_lane():
    pool, task = Pool(2), a_task()
    assert pool.add(task) == [Connect(0)]
    assert task.state is State.QUEUED
    assert pool.connected() == [OpenLane(CELLS, 1), sent(task)]
    assert (task.state, task.action, task.attempt) == (State.SENT, 1, 1)


def test_a_runtime_is_asked_for_once():
    pool = Pool(2)
    one, two = tasks(2)
    assert pool.add(one) == [Connect(0)]
    assert pool.add(two) == []
    assert pool.connected() == [OpenLane(CELLS, 1), sent(one), sent(two)]


def test_a_lane_is_opened_once_on_each_connection():
    pool = connected()
    one, two = tasks(2, CALLS, retries=1)
    assert pool.add(one) == [OpenLane(CALLS, 1), sent(one)]
    assert pool.add(two) == [sent(two)]
    assert pool.disconnected("gone", NOW)[-1] == Connect(1)
    assert pool.connected()[0] == OpenLane(CALLS, 2)


def test_any_call_that_was_sent_may_have_begun_when_the_runtime_is_lost():
    """They go to workers by the dozen; cells go one by one, whatever calls are older."""
    pool = connected(max_workers=2)
    calls, cells = tasks(3 * (1 + lanes.AHEAD), CALLS), tasks(4)
    for task in [*calls, *cells]:
        pool.add(task)
    pool.disconnected("gone", NOW)
    assert {type(error_of(task)) for task in [*calls, *cells[:2]]} == {OutcomeUnknown}
    assert sends(pool.connected()) == cells[2:]


@pytest.mark.parametrize("ahead", [(CELLS, CALLS), ()])
def test_so_may_cells_where_they_go_ahead_and_calls_do_not_where_they_do_not(ahead):
    pool = Pool(2, ahead)
    pool.connected()
    calls, cells = tasks(15, CALLS), tasks(15)
    for task in [*calls, *cells]:
        pool.add(task)
    pool.disconnected("gone", NOW)
    told = [task for task in [*calls, *cells] if task.ended]
    assert told == ([*calls, *cells] if ahead else calls[:2])
    assert {type(error_of(task)) for task in told} == {OutcomeUnknown}
    assert pool.waiting == 30 - len(told)


def test_what_only_waited_at_a_lost_runtime_is_sent_again_and_nothing_is_counted():
    pool = connected(max_workers=2)
    some = tasks(6)
    for task in some:
        pool.add(task)
    pool.said(some[0].action, Start(0.0), NOW)
    orders = pool.disconnected("gone", NOW)
    # One ran; of two more it is not known.
    assert orders == [Settle(some[0]), Settle(some[1]), Settle(some[2]), Connect(1)]
    assert type(error_of(some[1])) is OutcomeUnknown
    assert sends(pool.connected()) == some[3:]
    assert [task.attempt for task in some[3:]] == [1, 1, 1]
    assert pool.waiting == 3


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


def test_the_task_of_an_action_is_known_while_it_is_wanted():
    pool, task, other = connected(), a_task(), a_task()
    assert pool.task_of(1) is None
    pool.add(task)
    pool.add(other)
    assert pool.task_of(task.action) is task
    end(pool, task)
    assert pool.task_of(task.action) is None
    other.future.cancel()
    pool.cancelled(other)
    assert pool.task_of(other.action) is None


def test_a_pool_counts_what_has_not_begun():
    pool = connected()
    one, two, three = some = tasks(3)
    for task in some:
        pool.add(task)
    assert pool.waiting == 3
    pool.said(one.action, Start(0.0), NOW)
    assert pool.waiting == 2
    two.future.cancel()
    pool.cancelled(two)
    assert pool.waiting == 1
    pool.disconnected("gone", NOW)
    assert pool.waiting == 0
    assert three.ended


# ── how many go ahead ───────────────────────────────────────────────────────


@pytest.mark.parametrize("max_workers", [1, 2, 5])
def test_a_few_tasks_go_ahead_of_those_that_may_run(max_workers):
    pool = connected(max_workers)
    some = tasks(AHEAD + 20)
    orders = [order for task in some for order in pool.add(task)]
    assert sends(orders) == some[: max_workers + AHEAD]
    assert end(pool, some[3]) == [Settle(some[3]), sent(some[max_workers + AHEAD])]


def test_only_so_many_bytes_go_ahead_but_as_many_tasks_as_may_run_always_go():
    pool = connected(2)
    some = tasks(4, size=module.AHEAD_BYTES // 3 + 1)
    orders = [order for task in some for order in pool.add(task)]
    assert sends(orders) == some[:3]
    assert sends(end(pool, some[0])) == some[3:]
    huge = tasks(4, size=module.AHEAD_BYTES * 2)
    pool = connected(2)
    assert sends([order for task in huge for order in pool.add(task)]) == huge[:2]


def test_the_shared_lanes_take_turns_by_age():
    pool = Pool(1)
    one, two, three = tasks(3)
    two.lane = CALLS
    for task in (one, two, three):
        pool.add(task)
    assert sends(pool.connected()) == [one, two, three]


def test_a_sessions_task_does_not_overtake_what_waits_here():
    pool = connected()
    *older, one, younger = tasks(AHEAD + 5)
    a_session(pool, one)
    for task in older:
        pool.add(task)
    assert pool.add(one) == [], "sent now, it would begin before those"
    assert pool.add(younger) == []
    first, second, third, *_ = older
    assert sends(end(pool, first)) == older[-2:-1]
    assert sends(end(pool, second)) == [older[-1], one]
    assert sends(end(pool, third)) == [younger]


def test_what_is_younger_does_not_overtake_a_sessions_task():
    pool = Pool(1)
    some = tasks(4)
    a_session(pool, some[1])
    a_session(pool, some[2])
    for task in some:
        pool.add(task)
    assert sends(pool.connected()) == some


def test_a_task_that_waits_for_another_of_its_session_is_overtaken():
    pool = connected()
    one, two, other = tasks(3)
    a_session(pool, one, two)
    pool.add(one)
    assert pool.add(two) == []
    assert pool.add(other)[-1] == sent(other)


def test_a_task_that_is_run_again_goes_before_a_sessions_that_is_younger():
    pool = connected()
    *older, one = tasks(AHEAD + 4)
    first = older[0]
    first.settings = Settings(retries=1)
    a_session(pool, one)
    for task in [*older, one]:
        pool.add(task)
    pool.said(first.action, Error("unreachable", "gone"), NOW)
    assert sends(pool.said(first.action, End(0.0), NOW)) == [first]
    assert sends(end(pool, first)) == older[-2:-1]


def test_what_was_withdrawn_is_at_the_runtime_until_its_end():
    pool = connected()
    some = tasks(AHEAD + 2)
    for task in some:
        pool.add(task)
    one, last = some[1], some[-1]
    one.future.cancel()
    assert pool.cancelled(one) == [withdrawn(one), Cancelled(one)]
    assert last.state is State.QUEUED
    assert fail(pool, one, "cancelled") == [sent(last)]


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
    end(pool, one)
    said = list(one.record.said)
    assert pool.said(one.action, observation, NOW) == []
    assert one.record.said == said
    assert two.state is State.SENT


@pytest.mark.parametrize("observation", EACH, ids=lambda o: type(o).__name__)
def test_what_the_first_attempt_says_late_is_not_of_the_second(observation):
    pool, task = connected(), a_task(retries=1)
    pool.add(task)
    first = task.action
    assert fail(pool, task, "unreachable") == [Retried(task, "its sandbox failed"), sent(task)]
    assert task.action != first
    assert pool.said(first, observation, NOW) == []
    assert (task.state, task.record.said) == (State.SENT, [])


def test_an_end_without_a_start_ends_the_task():
    # A payload that cannot be rebuilt may end an action before its start.
    pool, task = connected(), a_task()
    pool.add(task)
    assert fail(pool, task, "payload") == [Settle(task)]


def test_a_task_that_says_anything_has_begun():
    # Its Start may be late or lost; to run it a second time is not what was asked for.
    pool, task = connected(), a_task(retries=3)
    pool.add(task)
    assert pool.said(task.action, Stream("stdout", b"x"), NOW) == []
    assert not task.future.cancel()
    assert fail(pool, task, "died") == [Settle(task)]


def test_what_was_not_sent_since_nobody_wants_it_is_not_at_the_runtime():
    pool, task = connected(), a_task()
    (_, send) = pool.add(task)
    task.future.cancel()
    pool.cancelled(task)
    pool.shutdown(False)
    assert pool.unsent(send.action) == [Stop()]
    assert pool.unsent(send.action) == []


# ── tasks that are run again ────────────────────────────────────────────────


def test_a_task_that_was_lost_before_it_began_is_sent_again():
    pool, task = connected(), a_task(retries=1)
    pool.add(task)
    orders = pool.disconnected("gone", NOW)
    assert orders == [Retried(task, "gone"), Connect(1)]
    assert pool.connected() == [OpenLane(CELLS, 2), sent(task, 2)]
    assert (task.attempt, task.action) == (2, 2)
    assert end(pool, task) == [Settle(task)]
    assert error_of(task) is None


def test_a_task_that_did_not_get_there_has_not_begun():
    # Of any other that is lost it is not known, whether its start was heard or not.
    pool = connected()
    for kind in ("died", "unknown", "protocol"):
        task = a_task(retries=1)
        pool.add(task)
        assert fail(pool, task, kind) == [Settle(task)]
    pool.add(task := a_task(retries=1))
    assert sends(fail(pool, task, "unreachable")) == [task]


@pytest.mark.parametrize("kind", ["died", "unknown", "protocol", "unreachable"])
def test_a_task_that_began_is_not_run_twice_unless_it_may_be(kind):
    pool = connected()
    one, two = a_task(retries=5), a_task(retries=1, idempotent=True)
    running(pool, one, two)
    assert fail(pool, one, kind) == [Settle(one)]
    assert fail(pool, two, kind) == [Retried(two, "its sandbox failed"), sent(two)]
    assert pool.waiting == 1
    pool.said(two.action, Start(0.0), NOW)
    assert fail(pool, two, kind) == [Settle(two)]


@pytest.mark.parametrize("kind", ["timeout", "payload", "rejected", "state", "deadline"])
def test_what_is_said_against_the_task_itself_is_its_outcome(kind):
    pool, task = connected(), a_task(retries=5, idempotent=True)
    running(pool, task)
    assert fail(pool, task, kind) == [Settle(task)]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_have_an_end(retries):
    pool, task = connected(), a_task(retries=retries)
    pool.add(task)
    for attempt in range(1, retries + 1):
        assert Retried(task, "gone") in pool.disconnected("gone", NOW)
        pool.connected()
        assert task.attempt == attempt + 1
    assert pool.disconnected("gone at last", NOW) == [Settle(task)]
    assert type(error_of(task)) is OutcomeUnknown
    assert str(error_of(task)) == "gone at last"


def test_a_result_that_was_said_is_not_taken_back_by_a_loss():
    pool, task = connected(), a_task(retries=5, idempotent=True)
    running(pool, task)
    pool.said(task.action, Result(text="3"), NOW)
    assert pool.disconnected("gone", NOW) == [Settle(task)]
    assert error_of(task) is None


def test_a_task_that_was_killed_between_its_error_and_its_end_is_not_run_again():
    pool, task = connected(), a_task(retries=1, idempotent=True)
    running(pool, task)
    pool.said(task.action, Error("died", "killed", signal=9), NOW)
    assert pool.signal(task, 9, True) == [Strike(task.action, 1, 9)]
    assert pool.said(task.action, End(0.0), NOW) == [Settle(task)]
    assert error_of(task).signal == 9


def test_a_task_that_is_sent_again_goes_before_those_that_wait():
    pool = connected()
    one, *others = tasks(AHEAD + 3, retries=1)
    for task in (one, *others):
        pool.add(task)
    assert sends(fail(pool, one, "unreachable")) == [one]
    assert others[-1].state is State.QUEUED


@pytest.mark.parametrize("count", [2, 3, 6])
def test_after_a_loss_tasks_are_sent_in_the_order_of_their_submission(count):
    pool = connected(max_workers=3)
    some = tasks(count, retries=5)
    for task in some:
        pool.add(task)
    fail(pool, some[0], "unreachable")
    assert some[0].action > some[-1].action
    for _ in range(3):
        pool.disconnected("gone", NOW)
        assert sends(pool.connected()) == some


def test_after_a_loss_whatever_may_have_begun_out_of_turn_is_not_sent_again():
    pool = connected()
    one, two, three = some = tasks(3)
    one.settings = Settings(retries=2, idempotent=True)
    for task in some:
        pool.add(task)
    pool.said(one.action, Start(0.0), NOW)
    assert sends(fail(pool, one, "died")) == [one]
    # Either that came before the second began, or after; but the third is younger than both.
    pool.disconnected("gone", NOW)
    assert type(error_of(two)) is OutcomeUnknown
    assert [task.state for task in some] == [State.QUEUED, State.ENDED, State.QUEUED]
    assert (one.losses, three.losses) == (2, 0)


def test_the_sends_of_two_attempts_can_be_told_apart():
    # A thread that was slow to carry out the first would send the second twice.
    pool, task = connected(), a_task(retries=1)
    first = pool.add(task)[-1]
    second = fail(pool, task, "unreachable")[-1]
    assert type(first) is type(second) is Send
    assert first != second


# ── tasks with a policy of their own ────────────────────────────────────────


def judging(pool, task, begun=True):
    """Have the task end, and its policy asked."""
    if begun:
        running(pool, task)
        assert end(pool, task) == [Judge(task)]
    else:
        pool.add(task)
        assert fail(pool, task, "died") == [Judge(task)]


@pytest.mark.parametrize("begun", [True, False])
def test_a_policy_says_that_it_was_enough(begun):
    pool, task = connected(), a_task(retries="policy")
    judging(pool, task, begun)
    assert pool.shutdown(False) == []
    assert pool.waiting == (not begun)
    assert pool.judged(task, None, NOW) == [Settle(task), Stop()]
    assert pool.judged(task, None, NOW) == []
    assert pool.waiting == 0


@pytest.mark.parametrize("begun", [True, False])
def test_a_policy_has_its_task_run_again_after_some_time(begun):
    pool, task = connected(), a_task(retries="policy")
    judging(pool, task, begun)
    assert pool.judged(task, 2.5, NOW) == [Retried(task, "its policy says so")]
    assert (pool.waiting, pool.deadline) == (1, NOW + 2.5)
    assert pool.passed(NOW + 2.4) == []
    assert pool.passed(NOW + 2.5) == [sent(task)]
    assert pool.deadline is None
    assert task.attempt == 2


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("how", ["cancel", "shutdown", "kill"])
def test_a_task_that_has_not_begun_is_cancelled_while_its_policy_is_asked_or_has_it_wait(
    delayed, how
):
    pool, task = connected(), a_task(retries="policy")
    judging(pool, task, begun=False)
    if delayed:
        pool.judged(task, 600.0, NOW)
    if how == "cancel":
        task.future.cancel()
        assert pool.cancelled(task) == [Cancelled(task)]
        assert pool.shutdown(False) == [Stop()]
    else:
        orders = pool.shutdown(True) if how == "shutdown" else pool.kill(9)
        assert orders == [Cancel(task), Stop()]
    assert pool.judged(task, 1.0, NOW) == []
    assert pool.passed(NOW + 1000) == []
    assert pool.waiting == 0


@pytest.mark.parametrize("delayed", [False, True])
def test_a_task_that_has_begun_once_and_is_killed_ends_with_what_it_gave(delayed):
    pool, task = connected(), a_task(retries="policy")
    judging(pool, task)
    if delayed:
        pool.judged(task, 600.0, NOW)
    assert pool.shutdown(True) == []
    assert pool.kill(9) == [Settle(task), Stop()]
    assert error_of(task) is None
    assert pool.judged(task, 1.0, NOW) == []


def test_the_limits_of_a_task_hold_while_it_waits_to_be_run_again():
    pool = connected()
    one = a_task(retries="policy", deadline=3.0)
    two = a_task(retries="policy", queue_timeout=5.0)
    judging(pool, one)
    judging(pool, two, begun=False)
    assert pool.deadline is None, "what its policy says, it says at once"
    pool.judged(one, 600.0, NOW)
    pool.judged(two, 600.0, NOW)
    assert pool.passed(NOW + 3) == [Settle(one)]
    assert type(error_of(one)) is DeadlineExceeded
    assert pool.passed(NOW + 5) == [Settle(two)]
    assert type(error_of(two)) is QueueTimeout


def test_a_task_that_was_killed_is_not_judged():
    pool, task = connected(), a_task(retries="policy")
    running(pool, task)
    pool.signal(task, 9, True)
    assert fail(pool, task, "died") == [Settle(task)]


# ── runtimes that are lost ──────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "error"), [("died", SandboxDied), ("unknown", OutcomeUnknown)])
def test_what_ran_in_a_lost_runtime_ends_with_it(kind, error):
    pool = connected(max_workers=2)
    one, two = tasks(2, retries=1)
    running(pool, one)
    pool.add(two)
    orders = pool.disconnected("gone", NOW + 2, kind)
    assert orders == [Settle(one), Retried(two, "gone"), Connect(1)]
    assert type(error_of(one)) is error
    assert error_of(one).result.usage.running == 2.0


def test_a_runtime_lost_while_idle_is_asked_for_with_the_next_task():
    pool = connected()
    one, two = tasks(2)
    running(pool, one)
    end(pool, one)
    assert pool.disconnected("gone", NOW) == []
    assert pool.add(two) == [Connect(1)]


def test_losses_in_a_row_are_counted_until_a_task_ends():
    pool, task = connected(), a_task(retries=9)
    pool.add(task)
    for failures in (1, 2, 3):
        assert pool.disconnected("gone", NOW)[-1] == Connect(failures)
        pool.connected()
    end(pool, task)
    pool.disconnected("gone", NOW)
    assert pool.add(a_task()) == [Connect(1)]


def test_a_runtime_that_cannot_be_had_is_the_error_of_all_that_wait():
    pool = Pool(2)
    some = tasks(3)
    for task in some:
        pool.add(task)
    assert pool.unavailable(ERROR) == [Settle(task, ERROR) for task in some]
    assert all(task.record.ended and task.state is State.ENDED for task in some)
    assert pool.waiting == 0


def test_after_a_runtime_could_not_be_had_the_next_task_tries_again():
    pool, task = Pool(2), a_task()
    pool.add(a_task())
    pool.unavailable(ERROR)
    assert pool.add(task) == [Connect(0)]
    assert pool.connected() == [OpenLane(CELLS, 1), sent(task)]


def test_what_was_withdrawn_from_a_lost_runtime_is_over():
    pool, task = connected(), a_task(retries=5)
    pool.add(task)
    task.future.cancel()
    pool.cancelled(task)
    pool.shutdown(False)
    assert pool.disconnected("gone", NOW) == [Stop()]


# ── tasks that are cancelled ────────────────────────────────────────────────


def test_a_task_that_waits_here_is_not_sent():
    pool = Pool(1)
    one, two = tasks(2)
    pool.add(one)
    pool.add(two)
    assert one.future.cancel()
    assert pool.cancelled(one) == [Cancelled(one)]
    assert sends(pool.connected()) == [two]


def test_a_cancelled_task_hears_of_nothing_more():
    pool = Pool(1)
    one, two = tasks(2)
    pool.add(one)
    pool.add(two)
    two.future.cancel()
    pool.cancelled(two)
    assert pool.unavailable(ERROR) == [Settle(one, ERROR)]


def test_a_task_that_is_on_its_way_is_withdrawn():
    pool, task = connected(), a_task()
    pool.add(task)
    assert task.future.cancel()
    assert pool.cancelled(task) == [withdrawn(task), Cancelled(task)]
    assert pool.said(task.action, Start(0.0), NOW) == []
    assert end(pool, task) == []
    assert task.record.said == []


def test_a_task_that_has_begun_cannot_be_cancelled():
    pool, task = connected(), a_task()
    running(pool, task)
    assert not task.future.cancel()
    assert task.future.running()
    assert pool.cancelled(task) == []


def test_a_task_may_begin_before_the_pool_hears_that_it_was_cancelled():
    pool, task = connected(), a_task()
    pool.add(task)
    task.future.cancel()
    orders = pool.said(task.action, Start(0.0), NOW)
    assert orders == [withdrawn(task), Cancelled(task)]
    assert pool.cancelled(task) == []
    assert end(pool, task) == []


def test_a_task_that_the_runtime_cancelled_is_cancelled():
    pool, task = connected(), a_task()
    pool.add(task)
    assert fail(pool, task, "cancelled") == [Cancel(task)]


def test_a_task_that_ended_before_it_was_cancelled_keeps_its_outcome():
    pool, task = connected(), a_task()
    pool.add(task)
    assert fail(pool, task, "rejected") == [Settle(task)]
    task.future.cancel()
    assert pool.cancelled(task) == []


# ── signals ─────────────────────────────────────────────────────────────────


def test_a_signal_is_for_what_runs():
    pool, task = connected(), a_task(retries=1, idempotent=True)
    pool.add(task)
    assert pool.signal(task, 2, False) == []
    pool.said(task.action, Start(0.0), NOW)
    assert pool.signal(task, 2, False) == [Strike(task.action, 1, 2)]
    assert fail(pool, task, "died")[0] == Retried(task, "its sandbox failed")
    assert pool.signal(task, 2, False) == []
    pool.said(task.action, Start(0.0), NOW)
    end(pool, task)
    assert pool.signal(task, 9, True) == []


def test_who_is_killed_while_it_waits_to_be_run_again_is_not():
    pool, task = connected(), a_task(retries=1, idempotent=True)
    pool.add(task)
    pool.said(task.action, Start(0.0), NOW)
    fail(pool, task, "died")
    # It has been sent again.
    assert pool.signal(task, 9, True) == [Withdraw(task.action, 1), Settle(task)]
    assert isinstance(error_of(task), SandboxDied)
    assert pool.signal(task, 9, True) == []


@pytest.mark.parametrize("delayed", [True, False])
def test_who_is_killed_while_its_policy_decides_or_makes_it_wait_is_not_run_again(delayed):
    pool, task = connected(), a_task(retries=tenacity.Retrying())
    other = a_task("u")
    judging(pool, task)
    pool.add(other)
    if delayed:
        pool.judged(task, 5.0, NOW)
    assert Settle(task) in pool.signal(task, 9, True)
    assert task.ended
    assert pool.judged(task, 5.0, NOW) == []
    assert pool.passed(NOW + 10) == []
    pool.said(other.action, Start(0.0), NOW)
    assert Settle(other) in end(pool, other)


def test_a_kill_ends_all():
    pool = connected()
    one, two, three, four = tasks(4, retries=3, idempotent=True)
    running(pool, one, two)
    fail(pool, two, "died")
    pool.add(three)
    pool.add(four)
    four.state = State.QUEUED
    orders = pool.kill(9)
    assert Strike(one.action, 1, 9) in orders
    assert [withdrawn(two), Settle(two), withdrawn(three), Cancel(three)] == orders[1:5]
    assert str(error_of(two)) == "its executor was killed"
    assert pool.closing
    assert fail(pool, one, "died") == [Settle(one)]


# ── limits of time ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_sent", [False, True])
@pytest.mark.parametrize(
    ("limit", "error"), [("queue_timeout", QueueTimeout), ("deadline", DeadlineExceeded)]
)
def test_a_task_that_waits_for_too_long_is_not_run(limit, error, is_sent):
    pool, task = connected() if is_sent else Pool(1), a_task(**{limit: 2.0})
    pool.add(task)
    assert pool.deadline == NOW + 2
    assert pool.passed(NOW + 1.9) == []
    orders = pool.passed(NOW + 2.0)
    assert orders == [*([withdrawn(task)] if is_sent else []), Settle(task)]
    assert type(error_of(task)) is error
    assert str(error_of(task)) == "it did not begin within 2 s"
    assert (pool.deadline, pool.waiting) == (None, 0)


def test_once_a_task_has_begun_the_runtime_minds_its_deadline():
    pool, task = connected(), a_task(queue_timeout=1.0, deadline=2.0)
    running(pool, task)
    assert pool.deadline is None
    assert pool.passed(NOW + 5) == []


def test_a_task_that_is_run_again_has_its_deadline_but_has_waited_enough():
    pool, task = connected(), a_task(retries=1, idempotent=True, queue_timeout=1.0, deadline=2.0)
    running(pool, task)
    assert pool.deadline is None
    pool.disconnected("gone", NOW)
    assert pool.deadline == NOW + 2
    assert pool.passed(NOW + 2) == [Settle(task)]


def test_what_became_of_a_task_was_said_in_time():
    pool, task = connected(), a_task(deadline=2.0)
    pool.add(task)
    pool.said(task.action, Error("payload", "m"), NOW)
    assert pool.passed(NOW + 3) == []
    assert pool.said(task.action, End(0.0), NOW) == [Settle(task)]


def test_what_ended_is_not_kept_until_its_limit_would_have_passed():
    pool = connected()
    for _ in range(5 * module.TIMES):
        task = a_task(deadline=3600.0)
        running(pool, task)
        end(pool, task)
    assert len(pool._times) <= module.TIMES


# ── sessions ────────────────────────────────────────────────────────────────


def test_a_session_has_a_lane_of_its_own():
    pool, task = connected(), a_task()
    assert pool.sessions == 0
    number = a_session(pool, task)
    assert number not in SHARED
    assert pool.sessions == 1
    assert pool.add(task) == [OpenLane(number, 1), sent(task)]
    assert pool.running_in(number) is None
    pool.said(task.action, Start(0.0), NOW)
    assert pool.running_in(number) is task
    assert pool.running_in(CELLS) is None


def test_one_goes_ahead_of_what_runs_in_a_session():
    pool = connected()
    one, two, three = some = tasks(3)
    a_session(pool, *some)
    pool.add(one)
    assert pool.add(two) == [], "the first may yet hear that the state is lost"
    assert pool.add(three) == []
    assert pool.said(one.action, Start(0.0), NOW) == [Started(one), sent(two)]
    assert end(pool, one) == [Settle(one)]
    pool.said(two.action, Start(0.0), NOW)
    assert three.state is State.SENT


def test_nothing_goes_ahead_of_what_may_be_run_again():
    pool = connected()
    one, two = tasks(2)
    one.settings = Settings(retries="policy")
    a_session(pool, one, two)
    pool.add(one)
    pool.add(two)
    assert pool.said(one.action, Start(0.0), NOW) == [Started(one)]
    assert end(pool, one) == [Judge(one)]
    assert pool.judged(one, 1.0, NOW) == [Retried(one, "its policy says so")]
    assert pool.passed(NOW + 1) == [sent(one)]
    assert end(pool, one) == [Judge(one)]
    assert pool.judged(one, None, NOW) == [Settle(one), sent(two)]


def test_the_sessions_tasks_do_not_count_as_ahead():
    pool = connected()
    some, one = tasks(AHEAD + 1), a_task()
    a_session(pool, one)
    for task in some:
        pool.add(task)
    assert sends(pool.add(one)) == [one]


def test_a_session_that_loses_its_state_tells_the_next_result():
    pool = connected()
    one, two, three, four = some = tasks(4)
    a_session(pool, *some)
    for task in some[:3]:
        pool.add(task)
    pool.said(one.action, Start(0.0), NOW)
    # As the runtime tells it: first those that wait there, then what ran.
    assert pool.said(two.action, Error("state", "lost"), NOW) == [Settle(three)]
    assert pool.said(two.action, End(0.0), NOW) == [Settle(two)]
    assert fail(pool, one, "died") == [Settle(one)]
    assert [type(error_of(task)) for task in some[:3]] == [SandboxDied, StateLost, StateLost]
    assert sends(pool.add(four)) == [four]


@pytest.mark.parametrize("late", [True, False])
def test_where_nothing_waits_the_next_task_hears_of_the_lost_state_and_no_other(late):
    pool = connected()
    one, two, three = some = tasks(3)
    a_session(pool, *some)
    running(pool, one)
    if late:
        # Its end is on its way.
        pool.add(two)
    assert fail(pool, one, "died") == [Settle(one)]
    if not late:
        pool.add(two)
    assert fail(pool, two, "state") == [Settle(two)]
    assert [type(error_of(task)) for task in (one, two)] == [SandboxDied, StateLost]
    running(pool, three)
    assert end(pool, three) == [Settle(three)]
    assert error_of(three) is None


@pytest.mark.parametrize("waiting", [0, 1, 2])
def test_a_session_that_loses_its_runtime_tells_the_next_result(waiting):
    pool = connected()
    one, *others = tasks(5, retries=3)
    a_session(pool, one, *others)
    running(pool, one)
    for task in others[:waiting]:
        pool.add(task)
    orders = pool.disconnected("gone", NOW)
    assert orders == [Settle(one), *map(Settle, others[:waiting])]
    if not waiting:
        assert pool.add(others[0]) == [Settle(others[0])]
        waiting = 1
    assert all(type(error_of(task)) is StateLost for task in others[:waiting])
    assert pool.add(others[waiting]) == [Connect(1)]
    assert sends(pool.connected()) == [others[waiting]]


def test_a_session_that_has_run_nothing_has_no_state_to_lose():
    pool = connected()
    one, two = tasks(2, retries=1)
    a_session(pool, one, two)
    pool.add(one)
    pool.add(two)
    assert pool.disconnected("gone", NOW) == [Retried(one, "gone"), Connect(1)]
    assert sends(pool.connected()) == [one]


def test_what_has_run_in_a_session_is_not_run_again_without_its_state():
    pool = connected()
    one = a_task(retries=5, idempotent=True)
    a_session(pool, one)
    running(pool, one)
    assert fail(pool, one, "died") == [Settle(one)]


def test_a_task_that_its_policy_has_run_again_hears_of_the_lost_state():
    pool = connected()
    one, two, three = some = tasks(3)
    one.settings = Settings(retries="policy")
    a_session(pool, *some)
    running(pool, one)
    pool.add(two)
    assert pool.disconnected("gone", NOW) == [Judge(one), Settle(two)]
    pool.judged(one, 1.0, NOW)
    assert sends([*pool.passed(NOW + 1), *pool.connected()]) == [one], "the state was told of"

    pool = connected()
    a_session(pool, one := a_task(retries="policy"), three)
    running(pool, one)
    assert pool.disconnected("gone", NOW) == [Judge(one)]
    pool.judged(one, 1.0, NOW)
    assert pool.passed(NOW + 1) == [Settle(one)]
    assert type(error_of(one)) is StateLost
    assert pool.add(three) == [Connect(1)]


def test_a_cancelled_task_does_not_hear_of_the_lost_state_for_the_next():
    pool = connected()
    one, two, three = some = tasks(3)
    a_session(pool, *some)
    running(pool, one)
    end(pool, one)
    pool.add(two)
    two.future.cancel()
    pool.cancelled(two)
    assert pool.said(two.action, Error("state", "lost"), NOW) == []
    assert pool.add(three) == [Settle(three)]
    assert type(error_of(three)) is StateLost


def test_what_was_cancelled_here_does_not_hear_of_the_lost_state():
    pool = connected()
    one, two, three, four = some = tasks(4)
    a_session(pool, *some)
    running(pool, one)
    for task in some[1:]:
        pool.add(task)
    four.future.cancel()
    pool.cancelled(four)
    assert pool.disconnected("gone", NOW) == [Settle(one), Settle(two), Settle(three)]


@pytest.mark.parametrize("where", ["at the runtime", "here"])
def test_a_task_that_was_cancelled_a_moment_ago_does_not_hear_of_the_lost_state(where):
    pool = connected()
    one, two, three = some = tasks(3)
    a_session(pool, *some)
    running(pool, one)
    if where == "at the runtime":
        end(pool, one)
    else:
        one.settings = Settings(retries="policy")
    pool.add(two)
    two.future.cancel()
    if where == "at the runtime":
        assert fail(pool, two, "state") == [Cancelled(two)]
    else:
        assert Cancelled(two) in pool.disconnected("gone", NOW)
    assert pool.cancelled(two) == []
    assert pool.add(three) == [Settle(three)]


def test_one_that_hears_of_the_lost_state_cannot_be_cancelled_any_more():
    pool = connected()
    one, two = tasks(2)
    a_session(pool, one, two)
    running(pool, one)
    end(pool, one)
    pool.add(two)
    pool.said(two.action, Error("state", "lost"), NOW)
    assert not two.future.cancel()


def test_a_session_that_is_closed_cancels_what_waits_and_ends_what_runs():
    pool = connected()
    one, two, three, four = some = tasks(4)
    number = a_session(pool, *some)
    running(pool, a_task("of no session"), one)
    pool.add(two)
    pool.add(three)
    orders = pool.close_session(number, "closed")
    assert orders == [Cancel(three), withdrawn(two), Cancel(two), CloseLane(number, 1, "closed")]
    assert pool.close_session(number, "closed") == []
    assert fail(pool, one, "died") == [Settle(one)]
    assert pool.add(four) == [Cancel(four)]
    assert pool.said(two.action, Error("state", "lost"), NOW) == []
    assert pool.said(two.action, End(0.0), NOW) == []
    assert pool.sessions == 0


def test_what_runs_in_a_closed_session_is_not_run_again():
    pool, task = connected(), a_task(retries=5, idempotent=True)
    number = a_session(pool, task)
    running(pool, task)
    pool.said(task.action, Error("died", "m"), NOW)
    pool.close_session(number, "closed")
    assert pool.said(task.action, End(0.0), NOW) == [Settle(task)]
    lost = a_task(retries=5)
    number = a_session(pool, lost)
    pool.add(lost)
    assert lost.claim()
    assert pool.close_session(number, "closed") == [
        withdrawn(lost),
        Settle(lost),
        CloseLane(number, 1, "closed"),
    ]


@pytest.mark.parametrize("delayed", [False, True])
def test_what_waits_to_be_run_again_ends_with_its_session(delayed):
    pool, task = connected(), a_task(retries="policy")
    number = a_session(pool, task)
    judging(pool, task)
    if delayed:
        pool.judged(task, 600.0, NOW)
    assert pool.close_session(number, "closed") == [Settle(task), CloseLane(number, 1, "closed")]
    assert pool.shutdown(False) == [Stop()]


def test_a_lost_state_of_a_closed_session_is_nobodys():
    pool = connected()
    one, two = tasks(2)
    number = a_session(pool, one, two)
    running(pool, one)
    pool.add(two)
    two.claim()
    pool.close_session(number, "closed")
    assert pool.said(two.action, Error("state", "lost"), NOW) == []


# ── shutdown ────────────────────────────────────────────────────────────────


def test_an_idle_pool_stops_at_once():
    for pool in (Pool(1), connected()):
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
    some = tasks(AHEAD + 2)
    for task in some:
        pool.add(task)
    assert pool.shutdown(False) == []
    assert sends(end(pool, some[0])) == some[-1:]
    for task in some[1:-1]:
        end(pool, task)
    assert end(pool, some[-1]) == [Settle(some[-1]), Stop()]


def test_tasks_that_wait_are_cancelled_by_a_shutdown_that_cancels():
    pool = connected()
    one, two = tasks(2)
    running(pool, one)
    pool.add(two)
    assert pool.shutdown(True) == [withdrawn(two), Cancel(two)]
    assert end(pool, one) == [Settle(one)]
    assert fail(pool, two, "cancelled") == [Stop()]


def test_a_shutdown_may_be_followed_by_one_that_cancels():
    pool = connected()
    one, two = tasks(2)
    running(pool, one)
    pool.add(two)
    assert pool.shutdown(False) == []
    assert pool.shutdown(True) == [withdrawn(two), Cancel(two)]
    assert pool.shutdown(True) == []


@pytest.mark.parametrize("cancel", [False, True])
def test_a_pool_stops_once(cancel):
    pool = connected()
    session = pool.open_session()
    assert pool.shutdown(cancel) == [Stop()]
    assert pool.shutdown(cancel) == []
    assert pool.kill(9) == []
    assert pool.disconnected("gone", NOW) == []
    assert pool.connected() == []
    assert pool.unavailable(ERROR) == []
    assert pool.close_session(session, "closed") == []


def test_a_shutdown_while_connecting_waits_for_the_runtime():
    pool, task = Pool(1), a_task()
    pool.add(task)
    assert pool.shutdown(False) == []
    assert sends(pool.connected()) == [task]
    assert end(pool, task) == [Settle(task), Stop()]


def test_a_shutdown_while_connecting_hears_that_there_is_no_runtime():
    pool, task = Pool(1), a_task()
    pool.add(task)
    pool.shutdown(False)
    assert pool.unavailable(ERROR) == [Settle(task, ERROR), Stop()]


def test_a_shutdown_that_cancels_leaves_what_a_worker_is_free_for():
    pool = Pool(2)
    one, two, three = tasks(3)
    for task in (one, two, three):
        pool.add(task)
    assert pool.shutdown(True) == [Cancel(three)]
    assert pool.shutdown(True) == []
    assert sends(pool.connected()) == [one, two]
    end(pool, one)
    assert end(pool, two) == [Settle(two), Stop()]


def test_a_kill_while_connecting_stops_at_once():
    pool, task = Pool(1), a_task()
    pool.add(task)
    assert pool.kill(9) == [Cancel(task), Stop()]
    assert pool.connected() == []


def test_a_shutdown_survives_the_loss_of_the_runtime():
    pool = connected()
    one, two = tasks(2, retries=1)
    running(pool, one)
    pool.add(two)
    pool.shutdown(False)
    assert pool.disconnected("gone", NOW)[-1] == Connect(1)
    assert pool.connected() == [OpenLane(CELLS, 2), sent(two, 2)]
    assert end(pool, two) == [Settle(two), Stop()]


def test_a_task_whose_future_runs_is_not_cancelled_by_a_shutdown():
    # Future.cancel() does nothing any more, and its waiters would wait for ever.
    pool, task = connected(), a_task(retries=1, idempotent=True)
    running(pool, task)
    fail(pool, task, "died")
    assert pool.shutdown(True) == []
    assert fail(pool, task, "cancelled") == [Settle(task), Stop()]
    assert type(error_of(task)) is OutcomeUnknown


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
    policy = a_task("p", retries="policy")
    judging(pool, policy)
    later = a_task("q", retries="policy")
    judging(pool, later)
    pool.judged(later, 600.0, NOW)
    one, *others = some = tasks(AHEAD + 5, retries=3, idempotent=True)
    running(pool, one)
    for task in others:
        pool.add(task)
    others[0].future.cancel()
    pool.cancelled(others[0])
    error = BrokenSandboxPool("broken")
    orders = pool.fail(error, NOW + 1)
    assert Settle(policy) in orders
    assert {o.task for o in orders if o.error is error} == {one, later, *others[1:]}
    assert len(orders) == len(some) + 1
    assert all(task.ended for task in some)
    assert str(error_of(one)) == "broken"
    assert pool.closing
    assert pool.waiting == 0
    assert pool.fail(error, NOW) == []


def test_what_comes_after_the_failure_changes_nothing():
    pool, task = connected(), a_task()
    running(pool, task)
    pool.add(a_task())
    pool.fail(ERROR, NOW)
    said = list(task.record.said)
    orders = pool.said(task.action, End(1.0), NOW)
    orders += pool.disconnected("gone", NOW)
    orders += pool.connected()
    orders += pool.shutdown(True)
    assert orders == [Stop()]
    assert task.record.said == said


def test_a_failure_while_connecting_fails_those_that_wait():
    pool, task = Pool(1), a_task()
    pool.add(task)
    assert pool.fail(ERROR, NOW) == [Settle(task, ERROR)]


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
        max_workers=st.integers(1, 3),
        ahead=st.integers(0, 3),
        most_bytes=st.sampled_from([60, 200]),
        sessions=st.integers(0, 2),
    )
    def begin(self, max_workers, ahead, most_bytes, sessions):
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
        self.sessions = [self.pool.open_session() for _ in range(sessions)]
        self.threads = [[]]  # orders to be carried out; first the dispatcher's
        self.outbox, self.events = [], []
        self.connection = 0
        self.is_connected = self.connecting = False
        self.shut = self.failed = self.stopped = False
        self.legal = True
        self.verdicts = itertools.cycle([None, 0.0, 3.0, None, 0.0, None, None])
        self.rooms = itertools.repeat(True)
        self.new_runtime()

    def a_thread(self, orders):
        self.obey(orders)
        self.threads.append(orders)

    def dispatcher(self, orders):
        self.obey(orders)
        self.threads[0] += orders

    def obey(self, orders):
        """What must be true of orders when they are given."""
        numbers = [order.task.number for order in orders if type(order) is Send]
        assert numbers == sorted(numbers), "not in the order of submission"
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
        for other in self.tasks:
            if other.state is State.QUEUED and other.number < task.number:
                assert self.may_not_go(other), "one that was submitted before waits"
        ahead = [each for each in self.out.values() if each.lane in SHARED]
        if task.lane in SHARED and len(ahead) >= self.max_workers:
            assert len(ahead) < self.max_workers + module.AHEAD
            assert sum(each.size for each in self.out.values()) < module.AHEAD_BYTES
        self.out[order.action] = task
        assert len({id(each) for each in self.out.values()}) == len(self.out)

    def may_not_go(self, task):
        """Whether it waits for its policy, or for another of its session."""
        if task in self.waits_for:
            return True
        live = [each for each in self.tasks if each.lane == task.lane and each not in self.done]
        # One that nobody wants any more may still be at the runtime.
        return task.lane not in SHARED and (
            any(each in self.waits_for or each.state is not State.QUEUED for each in live)
            or any(each.lane == task.lane for each in self.out.values())
        )

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
            again = not isinstance(task.settings.retries, int)
            assert again or task not in self.heard, "it is what lost the state"
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
            task = command.task
            self.runtime(self.lanes.add(lane, command.action, task, task.number))
        elif type(command) is Withdraw:
            self.runtime(self.lanes.cancel(command.action))
        elif type(command) is CloseLane:
            self.runtime(self.lanes.close(command.lane, command.reason))
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
        # Its end may have had it dropped.
        self.boxes.pop(sandbox, None)
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

    # ── rules ──

    @rule(choices=st.lists(st.integers(0, 1000), min_size=1, max_size=20))
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
        runs = task.state is State.RUNNING and task in self.out.values()
        waits = final and bool(task.claimed) and not task.ended
        orders = self.pool.signal(task, 9 if final else 2, final)
        assert bool(orders) == (runs or waits)
        self.a_thread(orders)

    @precondition(lambda self: len(self.sessions) < 4)
    @rule()
    def open_session(self):
        self.sessions.append(self.pool.open_session())

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def close_session(self, data):
        number = data.draw(st.sampled_from(self.sessions))
        self.a_thread(self.pool.close_session(number, "closed"))
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
        assert not orders or self.failed or (due is not None and due <= self.now)
        for order in orders:
            if type(order) is Settle and type(error_of(order.task)) in (
                QueueTimeout,
                DeadlineExceeded,
            ):
                assert late(order.task, self.now)
        self.dispatcher(orders)
        for task in self.tasks:
            assert not (task.waits and not task.known and late(task, self.now)), "forgotten"
        assert self.pool.deadline is None or self.pool.deadline > self.now

    @rule(
        data=st.data(),
        observation=st.sampled_from([Start(0.0), Result(), Error("state", "m"), End(0.0)]),
    )
    def something_is_said_too_late(self, data, observation):
        action = data.draw(st.integers(0, 30))
        if action not in self.out:
            assert self.pool.said(action, observation, self.now) == []

    @precondition(lambda self: self.out and not self.threads[0])
    @rule(
        data=st.data(),
        kind=st.sampled_from([None, Start, End, "state", "cancelled", "died", "rejected"]),
    )
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
            left = [t for t in self.tasks if t.waits and t.claimed is None]
            assert len(left) <= self.max_workers

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


Walk.TestCase.settings = WALKS


class TestWhateverHappensEveryTaskEndsOnceAndThePoolStopsOnce(Walk.TestCase):
    pass
