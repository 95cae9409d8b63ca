"""A slot: whatever an original runtime says, and in whatever order, its cell gets one true outcome."""

from __future__ import annotations

import itertools
import random
import signal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mentis_pool import mentis_v1
from mentis_pool.limits import Limits
from mentis_pool.mentis_v1 import (
    STILL_RUNS,
    EndObservation,
    ErrorObservation,
    ResultObservation,
    StartObservation,
    StreamObservation,
)
from mentis_pool.observations import End, Error, Result, Start, Stream
from mentis_pool.pool_stream import (
    Cells,
    Closed,
    Given,
    Open,
    Opened,
    PickledCall,
    Refused,
    Run,
    Said,
    Shell,
)
from mentis_pool.slot import (
    FIRST_PROBE,
    PROBE,
    SETTLE,
    Delete,
    LoseState,
    Make,
    Named,
    Post,
    Skip,
    Slot,
    Tell,
)

TOKEN = "token"
MARK = f"\x02{TOKEN}:1\x03\n"
LATE = f"Post: {STILL_RUNS} (Client.Timeout exceeded while awaiting headers)"


def a_run(action=7, timeout=None, **changes):
    return replace(Run(action, 1, Cells([b"1 + 1"]), timeout=timeout), **changes)


def said(action="A", **kind):
    [(name, value)] = kind.items()
    if name == "start":
        return StartObservation(action_id=action)
    if name in ("stdout", "stderr"):
        return StreamObservation(action_id=action, stream=name, line=value)
    if name == "result":
        if value == 0:
            return ResultObservation(action_id=action, exit_code=0, status="ok")
        return ResultObservation(action_id=action, exit_code=1, status="error", error_value=value)
    if name == "error":
        return ErrorObservation(action_id=action, data={"error": value})
    return EndObservation(action_id=action, data=value)


WHOLE = [
    said(start=True),
    said(stdout=MARK + f"hi\n\x02{TOKEN}=\x032\n\x02{TOKEN}.\x03"),
    said(stderr=MARK),
    said(result=0),
    said(end={"exit_code": 0}),
]


def events(orders):
    return [order.event for order in orders if isinstance(order, Tell)]


def told(orders, action=7):
    """What the engine is told of an action."""
    return [
        event.observation
        for event in events(orders)
        if isinstance(event, Said) and event.action == action
    ]


def of(kind, orders):
    return [order for order in orders if isinstance(order, kind)]


def outcome(observations):
    """The one thing that ended an action, and that it was told in order and once."""
    ends = [o for o in observations if isinstance(o, End)]
    outcomes = [o for o in observations if isinstance(o, (Result, Error))]
    assert len(ends) == len(outcomes) == 1
    assert observations[-2:] == [outcomes[0], ends[0]]
    return outcomes[0]


class Scene:
    """A slot with a sandbox, and all that it ordered."""

    def __init__(self, state="reuse"):
        self.slot = Slot(1, Open(1, state), 0.0)
        self.orders = []
        self.do(self.slot.open, 0.0)
        assert self.orders == [Make()]
        self.do(self.slot.made, "S1", 1.0)
        self.orders.clear()

    def do(self, decision, *args):
        orders = decision(*args)
        self.orders += orders
        return orders

    def run(self, now=2.0, **options):
        orders = self.do(self.slot.run, a_run(**options), TOKEN, now)
        return of(Post, orders)[0].number

    def begin(self, now=2.0, named="A", **options):
        self.do(self.slot.accepted, self.run(now, **options), named, now + 0.1, 1000.0)

    def hear(self, *observations, now=3.0, sandbox="S1"):
        for observation in observations:
            self.do(self.slot.heard, sandbox, observation, now)

    @property
    def told(self):
        return told(self.orders)


# ── the straight way ────────────────────────────────────────────────────────


def test_a_slot_makes_its_sandbox_before_there_is_a_cell():
    slot = Slot(4, Open(1, "fresh"), 10.0)
    assert slot.open(10.0) == [Make()]
    assert slot.made("S1", 11.5) == [Tell(Opened(4, 1.5))]


def test_a_cell_is_posted_accepted_heard_and_told():
    scene = Scene()
    number = scene.run()
    [post] = of(Post, scene.orders)
    assert post.sandbox_id == "S1"
    assert post.code.endswith("\n1 + 1")
    orders = scene.do(scene.slot.accepted, number, "A", 2.5, 1000.0)
    assert orders == [Tell(Named(7, "A", "S1")), Tell(Said(7, Start(1000.0)))]
    scene.hear(*WHOLE)
    assert scene.told == [
        Start(1000.0),
        Stream("stdout", b"hi\n"),
        Result(text="2", type_name="unknown"),
        End(1.0),
    ]
    assert of(Delete, scene.orders) == []


def test_a_cell_waits_for_the_sandbox():
    slot = Slot(1, Open(1, "reuse"), 0.0)
    assert slot.open(0.0) == [Make()]
    assert slot.run(a_run(), TOKEN, 0.0) == []
    orders = slot.made("S1", 1.0)
    assert [type(order) for order in orders] == [Tell, Post]


def test_reuse_keeps_the_sandbox_and_fresh_takes_a_new_one_made_ahead():
    scene = Scene("reuse")
    scene.begin()
    scene.hear(*WHOLE)
    scene.begin(4.0, "B", action=7)
    assert [post.sandbox_id for post in of(Post, scene.orders)] == ["S1", "S1"]
    assert of(Make, scene.orders) == []

    scene = Scene("fresh")
    scene.begin()
    assert of(Make, scene.orders) == [Make()], "while the cell runs"
    scene.do(scene.slot.made, "S2", 2.5)
    scene.hear(*WHOLE)
    assert of(Delete, scene.orders) == [Delete("S1")]
    scene.run(4.0)
    assert of(Post, scene.orders)[-1].sandbox_id == "S2"


def test_a_cell_at_fresh_waits_where_the_next_sandbox_is_not_there_yet():
    scene = Scene("fresh")
    scene.begin()
    scene.hear(*WHOLE)
    assert scene.slot.run(a_run(8), TOKEN, 4.0) == []
    orders = scene.slot.made("S2", 5.0)
    assert of(Post, orders)[0].sandbox_id == "S2"


# ── the traps, one by one ───────────────────────────────────────────────────


@pytest.mark.parametrize("before", range(len(WHOLE) + 1))
def test_observations_may_come_before_their_action_id(before):
    scene = Scene()
    number = scene.run()
    scene.hear(*WHOLE[:before])
    assert scene.told == []
    scene.do(scene.slot.accepted, number, "A", 2.5, 1000.0)
    scene.hear(*WHOLE[before:])
    assert outcome(scene.told) == Result(text="2", type_name="unknown")
    assert of(Skip, scene.orders) == []


@pytest.mark.parametrize("state", ["fresh", "reuse"])
def test_the_runtimes_ten_seconds_are_no_end(state):
    scene = Scene(state)
    scene.begin()
    scene.hear(said(start=True))
    scene.hear(said(error=LATE), said(end={"exit_code": -1, "error": LATE}), now=12.0)
    assert scene.told == [Start(1000.0)]
    scene.hear(*WHOLE[1:], now=14.0)
    assert outcome(scene.told) == Result(text="2", type_name="unknown")
    assert scene.told[-1] == End(12.0)


SUBSETS = [lost for count in range(1, 5) for lost in itertools.combinations(range(5), count)]


@pytest.mark.parametrize("lost", SUBSETS, ids=str)
def test_whatever_is_lost_the_outcome_is_true_or_unknown(lost):
    scene = Scene()
    scene.begin()
    scene.hear(*(said for i, said in enumerate(WHOLE) if i not in lost))
    now = 3.0
    for _ in range(10):
        if any(isinstance(o, End) for o in scene.told):
            break
        # Silence: the slot asks after the cell, and the answer comes.
        now = scene.slot.deadline
        assert now is not None, "somebody must ask"
        for post in of(Post, scene.do(scene.slot.passed, now)):
            assert post.code == PROBE
            scene.do(scene.slot.accepted, post.number, "P", now, 0.0)
            scene.hear(said("P", start=True), said("P", result=0), now=now)
    assert now < 60
    error = outcome(scene.told)
    if set(lost) <= {0, 4}:
        assert error == Result(text="2", type_name="unknown")
    else:
        assert error.kind == "unknown"
        assert of(Delete, scene.orders) == [Delete("S1")], "the cell may still run there"


def test_a_long_cell_is_asked_after_and_goes_on():
    scene = Scene()
    scene.begin()
    asked = []
    while scene.slot.deadline < 10_000:
        now = scene.slot.deadline
        [post] = scene.do(scene.slot.passed, now)
        asked.append(now)
        probe = f"P{now}"
        scene.do(scene.slot.accepted, post.number, probe, now, 0.0)
        # It waits behind the cell, and after 10 s the runtime waits no longer for it.
        scene.hear(said(probe, start=True))
        scene.hear(said(probe, error=LATE), said(probe, end={"exit_code": -1, "error": LATE}))
    gaps = [round(later - before, 6) for before, later in itertools.pairwise(asked)]
    assert asked[0] == pytest.approx(2.1 + FIRST_PROBE)
    assert gaps == sorted(gaps)
    assert max(gaps) == pytest.approx(600.0)
    scene.hear(*WHOLE[1:])
    assert outcome(scene.told) == Result(text="2", type_name="unknown")


def test_a_probe_of_an_earlier_cell_says_nothing_of_the_next():
    """Neither its answer, nor what is said of it, before the cell is over or after."""
    for answered in (True, False):
        scene = Scene()
        scene.begin()
        [probe] = scene.do(scene.slot.passed, scene.slot.deadline)
        if answered:
            scene.do(scene.slot.accepted, probe.number, "P", 20.0, 0.0)
        scene.hear(*WHOLE, now=20.0)
        scene.begin(20.0, "B", action=8)
        before = scene.slot.deadline
        scene.hear(said("P", start=True), said("P", result=0), now=21.0)
        if not answered:
            scene.do(scene.slot.accepted, probe.number, "P", 21.0, 0.0)
        scene.hear(said("P", result=0), said("P", error="EOF"), now=21.0)
        assert scene.slot.deadline == before
        assert told(scene.orders, 8) == [Start(1000.0)]
        assert of(Skip, scene.orders) == []


@pytest.mark.parametrize("refusal", ["gone", "unanswered", "rejected"])
def test_a_probe_of_an_earlier_cell_that_is_refused_fails_none(refusal):
    scene = Scene()
    scene.begin()
    [probe] = scene.do(scene.slot.passed, scene.slot.deadline)
    scene.hear(*WHOLE, now=20.0)
    assert scene.do(scene.slot.refused, probe.number, refusal, "why", 20.0) == []
    scene.begin(20.0, "B", action=8)
    assert told(scene.orders, 8) == [Start(1000.0)]


def test_a_stream_that_went_silent_is_found_out():
    scene = Scene()
    scene.begin()
    for _ in range(2):
        [post] = scene.do(scene.slot.passed, scene.slot.deadline)
        scene.do(scene.slot.accepted, post.number, f"P{post.number}", 20.0, 0.0)
    scene.do(scene.slot.passed, scene.slot.deadline)
    assert outcome(scene.told).kind == "unknown"


def test_a_sandbox_that_is_gone_when_it_is_asked_has_died():
    scene = Scene()
    scene.begin()
    [post] = scene.do(scene.slot.passed, scene.slot.deadline)
    scene.do(scene.slot.refused, post.number, "gone", "not found", 20.0)
    assert outcome(scene.told).kind == "died"


def test_a_probe_that_the_runtime_refuses_means_nothing():
    scene = Scene()
    scene.begin()
    [post] = scene.do(scene.slot.passed, scene.slot.deadline)
    assert scene.slot.refused(post.number, "rejected", "busy", 20.0) == []


def test_an_exception_has_its_true_name():
    scene = Scene()
    scene.begin()
    rule = "-" * 75
    text = f"{MARK}out\n{rule}\nKeyError    Traceback (most recent call last)\n…\nKeyError: 'k'\n"
    scene.hear(said(stdout=text), said(stderr=MARK), said(result="'k'"))
    assert scene.told[1] == Stream("stdout", b"out\n")
    assert outcome(scene.told).failure.name == "KeyError"


def test_a_kernel_that_dies_is_a_sandbox_that_died():
    scene = Scene()
    scene.begin()
    scene.hear(said(start=True), said(error='Post "http://…": EOF'))
    error = outcome(scene.told)
    assert (error.kind, "EOF" in error.message) == ("died", True)
    assert [type(order) for order in scene.orders if isinstance(order, (Delete, Make))] == [
        Delete,
        Make,
    ]
    scene.hear(said(end={"exit_code": -1, "error": "EOF"}))
    outcome(scene.told)


def test_an_end_with_minus_one_alone_is_its_death_as_well():
    scene = Scene()
    scene.begin()
    scene.hear(said(end={"exit_code": -1}))
    assert outcome(scene.told).kind == "died"


def test_a_gap_in_the_stream_is_an_unknown_outcome():
    scene = Scene()
    scene.begin()
    scene.hear(WHOLE[0])
    scene.do(scene.slot.cut, "S1", "reset", 3.0)
    error = outcome(scene.told)
    assert error.kind == "unknown"
    assert "reset" in error.message
    assert of(Delete, scene.orders) == [Delete("S1")]
    assert of(Make, scene.orders) == [Make()]


def test_a_gap_where_nothing_runs_costs_a_sandbox_and_no_cell():
    scene = Scene()
    assert scene.slot.cut("S1", "reset", 2.0) == [Delete("S1"), Make()]
    scene.slot.made("S2", 3.0)
    assert of(Post, scene.slot.run(a_run(), TOKEN, 3.0))[0].sandbox_id == "S2"
    assert scene.slot.cut("S1", "again", 3.0) == []


def test_the_next_sandbox_may_lose_its_stream_as_well():
    scene = Scene("fresh")
    scene.begin()
    scene.do(scene.slot.made, "S2", 2.5)
    assert scene.slot.cut("S2", "reset", 2.6) == [Delete("S2"), Make()]
    scene.hear(*WHOLE)
    outcome(scene.told)


def test_there_is_no_interrupt_so_a_timeout_takes_a_new_sandbox():
    scene = Scene()
    scene.begin(timeout=5.0)
    assert scene.slot.deadline == 7.0
    assert scene.slot.passed(6.9) == []
    scene.do(scene.slot.passed, 7.0)
    error = outcome(scene.told)
    assert (error.kind, error.message) == ("timeout", "the cell ran for more than 5 s")
    assert of(Delete, scene.orders) == [Delete("S1")]
    assert of(Make, scene.orders) == [Make()]
    assert scene.slot.deadline is None
    scene.hear(*WHOLE)
    outcome(scene.told)


def test_a_timeout_does_not_wait_for_the_answer_to_the_post():
    scene = Scene()
    number = scene.run(timeout=5.0)
    scene.hear(said(start=True))
    assert scene.slot.deadline == 7.0
    scene.do(scene.slot.passed, 7.0)
    assert outcome(scene.told).kind == "timeout"
    assert scene.told[-1] == End(5.0)
    assert of(Delete, scene.orders) == [Delete("S1")]
    # It comes all the same, and is for nobody any more.
    assert scene.do(scene.slot.accepted, number, "A", 9.0, 1000.0) == []
    outcome(scene.told)


def test_what_was_heard_before_a_timeout_is_in_the_partial_result():
    scene = Scene()
    scene.begin(timeout=5.0)
    scene.hear(said(stdout=MARK + "so far\n"))
    scene.do(scene.slot.passed, 8.0)
    assert scene.told[1] == Stream("stdout", b"so far\n")
    assert outcome(scene.told).kind == "timeout"


def test_what_means_nothing_is_skipped_and_told_to_the_log():
    scene = Scene()
    scene.begin()
    strange = StreamObservation(action_id="A", stream="stdlog", line="?")
    scene.hear(said("unknown", start=True), strange, *WHOLE)
    assert len(of(Skip, scene.orders)) == 2
    assert "'unknown'" in of(Skip, scene.orders)[0].reason
    assert outcome(scene.told) == Result(text="2", type_name="unknown")


def test_what_is_still_said_of_an_old_action_is_no_surprise():
    scene = Scene()
    scene.begin()
    scene.hear(*WHOLE)
    scene.hear(*WHOLE)
    outcome(scene.told)
    scene.begin(4.0, "B", action=8)
    scene.hear(*WHOLE)
    assert told(scene.orders, 8) == [Start(1000.0)]
    outcome(scene.told)
    assert of(Skip, scene.orders) == []


# ── what is not accepted ────────────────────────────────────────────────────


@pytest.mark.parametrize("refusal", ["unsent", "gone"])
def test_a_cell_that_was_never_sent_goes_elsewhere(refusal):
    scene = Scene("fresh")
    number = scene.run()
    scene.do(scene.slot.made, "S2", 2.5)
    scene.do(scene.slot.refused, number, refusal, "why", 3.0)
    assert scene.told == []
    assert events(scene.orders) == [Closed(1, "why")]
    assert set(of(Delete, scene.orders)) == {Delete("S1"), Delete("S2")}


def test_a_cell_that_may_run_is_not_sent_again():
    scene = Scene()
    scene.do(scene.slot.refused, scene.run(), "unanswered", "no answer", 3.0)
    error = outcome(scene.told)
    assert (error.kind, "no answer" in error.message) == ("unknown", True)


def test_a_cell_that_the_runtime_refuses_is_told_so():
    scene = Scene()
    scene.do(scene.slot.refused, scene.run(), "rejected", "too large", 3.0)
    error = outcome(scene.told)
    assert (error.kind, error.message) == ("rejected", "too large")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"stdin": b""}, "stdin="),
        ({"work": Cells([b""], argv=[b"a"])}, "argv="),
        ({"given": Given(["a"], {"A": "a"}, ["*"])}, "files="),
        ({"given": Given(env={"A": "a"}, fetch=["*"])}, "fetch="),
        ({"given": Given(env={"A": "a"})}, "env="),
        ({"work": Cells([b"", b""])}, "several"),
        ({"work": PickledCall(b"")}, "calls"),
        ({"work": Shell(b"ls")}, "shell"),
    ],
)
def test_what_v1_does_not_have_is_named(asked, name):
    scene = Scene()
    scene.do(scene.slot.run, a_run(**asked), TOKEN, 2.0)
    error = outcome(scene.told)
    assert error.kind == "rejected"
    assert name in error.message
    assert of(Post, scene.orders) == []
    scene.begin()
    scene.hear(*WHOLE)


def test_where_no_sandbox_can_be_had_the_pool_is_told():
    slot = Slot(3, Open(1, "reuse"), 0.0)
    slot.open(0.0)
    assert slot.not_made("no room", True) == [Tell(Refused(3, "no room"))]
    assert slot.made("S", 1.0) == [Delete("S")]


def test_where_no_sandbox_can_be_had_ahead_it_is_asked_for_when_it_is_needed():
    scene = Scene("fresh")
    scene.begin()
    assert scene.slot.not_made("busy", True) == []
    scene.hear(*WHOLE)
    assert scene.orders[-3:] != []
    assert of(Make, scene.orders) == [Make(), Make()]
    outcome(scene.told)


def test_an_answer_that_nobody_waits_for_means_nothing():
    scene = Scene()
    assert scene.slot.accepted(99, "A", 2.0, 1000.0) == []
    assert scene.slot.refused(99, "gone", "why", 2.0) == []
    number = scene.run(timeout=5.0)
    scene.do(scene.slot.cut, "S1", "reset", 3.0)
    assert scene.slot.accepted(number, "A", 4.0, 1000.0) == []
    assert scene.slot.refused(number, "gone", "why", 4.0) == []
    outcome(scene.told)


def test_an_unknown_action_is_not_judged_while_another_answer_is_awaited():
    scene = Scene()
    scene.begin()
    [first] = scene.do(scene.slot.passed, scene.slot.deadline)
    [second] = scene.do(scene.slot.passed, scene.slot.deadline)
    scene.hear(said("P2", start=True))
    scene.do(scene.slot.accepted, first.number, "P1", 20.0, 0.0)
    assert of(Skip, scene.orders) == []
    scene.hear(said("other", start=True))
    scene.do(scene.slot.accepted, second.number, "P2", 20.0, 0.0)
    assert "'other'" in of(Skip, scene.orders)[0].reason


@pytest.mark.parametrize(
    ("opened", "name"),
    [
        (Open(1, "reuse", tasks=3), "max_tasks_per_child="),
        (Open(1, "reuse", initializer=Cells([b"x"])), "initializer="),
        (Open(1, "reuse", limits=Limits("1G")), "limits="),
    ],
)
def test_what_a_lane_asks_for_that_v1_does_not_have_is_named(opened, name):
    slot = Slot(1, opened, 0.0)
    assert name in outcome(told(slot.run(a_run(), TOKEN, 1.0))).message


def test_limits_that_were_not_asked_for_are_not_missed():
    slot = Slot(1, Open(1, "reuse", limits=Limits()), 0.0)
    slot.open(0.0)
    slot.made("S1", 1.0)
    assert len(of(Post, slot.run(a_run(), TOKEN, 1.0))) == 1


# ── what is not wanted any more ─────────────────────────────────────────────


def test_a_cell_that_waits_for_its_sandbox_is_cancelled():
    slot = Slot(1, Open(1, "fresh"), 0.0)
    slot.open(0.0)
    slot.run(a_run(), TOKEN, 1.0)
    assert slot.cancel(8, 1.0) == []
    assert outcome(told(slot.cancel(7, 1.0))).kind == "cancelled"
    assert slot.made("S1", 2.0)[1:] == [], "nothing is posted"


def test_a_cell_that_was_posted_is_cancelled_by_the_end_of_its_sandbox():
    scene = Scene()
    scene.begin()
    scene.do(scene.slot.cancel, 7, 3.0)
    assert outcome(scene.told).kind == "cancelled"
    assert of(Delete, scene.orders) == [Delete("S1")]


def test_a_kill_is_the_end_of_its_sandbox_and_an_interrupt_is_not_to_be_had():
    scene = Scene()
    assert scene.slot.signal(7, signal.SIGKILL, 3.0) == []
    scene.begin()
    scene.do(scene.slot.signal, 7, signal.SIGINT, 3.0)
    assert "no interrupt" in of(Skip, scene.orders)[0].reason
    scene.do(scene.slot.signal, 7, signal.SIGKILL, 3.0)
    assert (outcome(scene.told).kind, outcome(scene.told).signal) == ("died", signal.SIGKILL)
    assert of(Delete, scene.orders) == [Delete("S1")]


def test_a_session_whose_sandbox_is_replaced_has_lost_its_state():
    scene = Scene("session")
    scene.begin()
    scene.hear(*WHOLE)
    assert of(LoseState, scene.orders) == []
    scene.do(scene.slot.cut, "S1", "reset", 3.0)
    assert len(of(LoseState, scene.orders)) == 1


@pytest.mark.parametrize("used", [True, False])
def test_a_session_whose_sandbox_had_begun_nothing_has_no_state_to_lose(used):
    scene = Scene("session")
    if used:
        scene.begin()
        scene.hear(*WHOLE)
    scene.do(scene.slot.refused, scene.run(), "rejected", "no", 3.0)
    assert len(of(LoseState, scene.orders)) == used
    scene.orders.clear()
    scene.do(scene.slot.made, "S2", 4.0)
    scene.do(scene.slot.cut, "S2", "reset", 5.0)
    assert of(LoseState, scene.orders) == []


@pytest.mark.parametrize("refusal", ["unsent", "gone"])
def test_a_cell_that_is_sent_elsewhere_hears_of_the_lost_state_itself(refusal):
    scene = Scene("session")
    scene.begin()
    scene.hear(*WHOLE)
    scene.orders.clear()
    scene.do(scene.slot.refused, scene.run(), refusal, "why", 3.0)
    # The lanes know that the slot is closed, and what it had run.
    assert of(LoseState, scene.orders) == []
    assert events(scene.orders) == [Closed(1, "why")]


# ── the end ─────────────────────────────────────────────────────────────────


def test_closing_deletes_what_there_is_and_what_comes():
    scene = Scene("fresh")
    scene.begin()
    died = Error("died", "the sandbox was lost: its session was closed")
    told = [Tell(Said(7, each)) for each in (died, End(2.0))]
    assert scene.slot.close("its session was closed", 4.0) == [Delete("S1"), *told]
    assert scene.slot.made("S2", 5.0) == [Delete("S2")]
    assert scene.slot.not_made("late", False) == []


def test_closing_deletes_what_was_made_ahead():
    scene = Scene("fresh")
    scene.begin()
    scene.do(scene.slot.made, "S2", 3.0)
    assert of(Delete, scene.slot.close("closed", 4.0)) == [Delete("S1"), Delete("S2")]


def test_closing_what_is_idle_tells_nobody():
    assert Scene().slot.close("closed", 2.0) == [Delete("S1")]


def test_a_runtime_that_is_lost_leaves_no_cell_without_an_outcome():
    scene = Scene()
    scene.run()
    scene.do(scene.slot.lose, "unreachable", 3.0)
    assert outcome(scene.told).kind == "unknown"
    assert Scene().slot.lose("unreachable", 3.0) == []


def test_a_cell_that_was_not_posted_did_not_get_there():
    slot = Slot(1, Open(1, "fresh"), 0.0)
    slot.run(a_run(), TOKEN, 1.0)
    assert outcome(told(slot.lose("no answer", 2.0))).kind == "unreachable"


@pytest.mark.parametrize("seed", range(300))
def test_in_any_order_a_cell_has_one_outcome_at_most_and_one_in_the_end(seed):
    """Whatever happens, in whatever order: told once, in order, and at last."""
    rng = random.Random(seed)
    scene = Scene(rng.choice(["fresh", "reuse"]))
    number = scene.run(timeout=rng.choice([None, 50.0]))
    now = 2.0
    sandboxes = ["S1", "S2", "S3"]
    noise = [
        *WHOLE,
        said(error=LATE),
        said(end={"exit_code": -1, "error": LATE}),
        said("X", start=True),
        said("X", result=0),
        said(stdout="more"),
        said(result="why"),
    ]
    moves = [
        lambda: scene.do(scene.slot.accepted, number, "A", now, 1000.0),
        lambda: scene.hear(rng.choice(noise), now=now, sandbox=rng.choice(sandboxes[:2])),
        lambda: scene.hear(rng.choice(WHOLE), now=now),
        lambda: scene.do(scene.slot.passed, now),
        lambda: (
            scene.do(scene.slot.made, rng.choice(sandboxes[1:]), now)
            if scene.slot._making
            else None
        ),
    ]
    rare = [
        lambda: scene.do(scene.slot.cut, rng.choice(sandboxes), "reset", now),
        lambda: scene.do(scene.slot.not_made, "busy", True) if scene.slot._making else None,
        lambda: scene.do(
            scene.slot.refused,
            number,
            rng.choice(["unsent", "gone", "rejected", "unanswered"]),
            "why",
            now,
        ),
    ]
    for _ in range(rng.randrange(40)):
        now += rng.random() * 5
        rng.choice(rare if rng.random() < 0.05 else moves)()
        for post in of(Post, scene.orders):
            if post.code == PROBE and rng.random() < 0.5:
                scene.do(scene.slot.accepted, post.number, f"P{post.number}", now, 0.0)
                scene.hear(said(f"P{post.number}", start=True), now=now)
    # Then silence, in which only time passes, and the POST has its answer.
    scene.do(scene.slot.refused, number, "unanswered", "no answer", now)
    for _ in range(20):
        deadline = scene.slot.deadline
        if deadline is None:
            break
        scene.do(scene.slot.passed, max(now, deadline))
    closed = any(isinstance(event, Closed) for event in events(scene.orders))
    if not closed:
        outcome(scene.told)
    else:
        assert not any(isinstance(o, (Result, Error, End)) for o in scene.told)
    assert SETTLE < FIRST_PROBE


# ── whatever else a runtime says ────────────────────────────────────────────

_LINE = st.text(max_size=6) | st.sampled_from(
    [MARK, f"\x02{TOKEN}=\x031", f"\x02{TOKEN}.\x03", STILL_RUNS, "\x02", "\x1b[0m", "Out[1]: 2\n"]
)
_ANY = st.none() | st.booleans() | st.integers() | st.floats() | _LINE | st.lists(_LINE)
_SAYS = st.one_of(
    *(
        st.builds(kind, action_id=st.sampled_from(["A", "B", ""]), **fields)
        for kind, fields in {
            StartObservation: {"data": st.dictionaries(_LINE, _ANY)},
            StreamObservation: {
                "stream": st.sampled_from(["stdout", "stderr", "x"]),
                "line": _LINE,
            },
            ResultObservation: {
                "exit_code": st.integers(),
                "status": st.none() | _LINE,
                "error": st.none() | _LINE,
                "error_name": st.none() | _LINE,
                "error_value": st.none() | _LINE,
                "traceback": st.none() | st.lists(_LINE, max_size=2),
            },
            ErrorObservation: {"data": st.dictionaries(st.just("error"), _ANY)},
            EndObservation: {
                "data": st.dictionaries(st.sampled_from(["exit_code", "error"]), _ANY)
            },
        }.items()
    )
)


@settings(deadline=None, max_examples=300)
@given(st.lists(_SAYS, max_size=12), st.integers(0, 12))
def test_whatever_a_runtime_says_a_cell_has_one_end_and_nothing_is_raised(said, accepted):
    slot = Slot(1, Open(1, "fresh"), 0.0)
    orders = [*slot.open(0.0), *slot.made("S", 0.0), *slot.run(a_run(), TOKEN, 0.0)]
    post = next(each for each in orders if isinstance(each, Post))
    for at, each in enumerate([*said, None]):
        if at == min(accepted, len(said)):
            orders += slot.accepted(post.number, "A", 1.0, 1.0)
        if each is not None:
            orders += slot.heard("S", mentis_v1._decoder.decode(_frame(each)), 1.0)
    orders += slot.cut("S", "the end", 2.0)
    ends = [
        each
        for each in orders
        if isinstance(each, Tell)
        and isinstance(each.event, Said)
        and isinstance(each.event.observation, End)
    ]
    assert len(ends) == 1


def _frame(said):
    return msgspec.json.encode(said)
