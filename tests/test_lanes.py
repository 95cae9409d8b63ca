"""Which sandbox runs which action: events in, orders out."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from walks import WALKS

from mentis_pool.lanes import AHEAD, DEATHS, TRY_AGAIN, Drop, End, Fail, Give, Lanes, Make, Refuse

A, B, SESSION = 1, 2, 3


def lanes(most=2):
    """Two shared lanes and a session."""
    made = Lanes(most)
    made.open(A, False)
    made.open(B, False)
    made.open(SESSION, True)
    return made


def add(to, lane, *actions):
    """Add these; what each is to run is its name."""
    return [order for action in actions for order in to.add(lane, action, f"run {action}", action)]


def give(sandbox, action):
    return Give(sandbox, action, f"run {action}")


def worked(to, lane, *actions):
    """Have these begin and end."""
    add(to, lane, *actions)
    for action in actions:
        to.ended(action)


# ── the way of an action ────────────────────────────────────────────────────


def test_an_action_has_a_sandbox_made_and_is_given_to_it():
    one = lanes()
    assert add(one, A, 5) == [Make(1, A), give(1, 5)]
    assert one.sandbox_of(5) == 1
    assert one.ended(5) == []
    assert one.sandbox_of(5) is None


def test_it_is_quiet_when_no_sandbox_has_anything_to_do():
    one = lanes()
    assert one.quiet
    add(one, A, 1, 2)
    one.ended(1)
    assert not one.quiet
    one.ended(2)
    assert one.quiet


def test_an_idle_sandbox_is_taken_before_another_is_made():
    one = lanes()
    worked(one, A, 1)
    assert add(one, A, 2) == [give(1, 2)]


def test_the_sandbox_that_has_been_idle_longest_is_taken():
    one = lanes(3)
    add(one, A, 1, 2, 3)
    for action in (2, 3, 1):
        one.ended(action)
    assert add(one, A, 4, 5, 6) == [give(2, 4), give(3, 5), give(1, 6)]


def test_of_those_that_are_idle_one_that_is_ready_is_taken_first():
    one = lanes(3)
    add(one, A, 1, 2, 3)
    one.ended(1)
    one.ended(2)
    for sandbox in (2, 3, 99):
        one.ready(sandbox)
    assert add(one, A, 4, 5) == [give(2, 4), give(1, 5)]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_only_so_many_run_at_once(most):
    one = lanes(most)
    orders = add(one, A, *range(10))
    assert [o.action for o in orders if type(o) is Give] == list(range(most))
    for action in range(10 - most):
        assert one.ended(action) == [give(action % most + 1, action + most)]


def test_what_was_added_first_begins_first_whatever_its_lane():
    one = lanes(1)
    add(one, A, 1)
    add(one, B, 2)
    add(one, A, 3)
    assert one.ended(1) == [Make(2, B), give(2, 2)]
    assert one.ended(2) == [give(1, 3)]


@pytest.mark.parametrize(
    "arrival", [*itertools.permutations([(A, 2), (B, 3), (SESSION, 4), (A, 5), (SESSION, 6)])]
)
def test_of_what_waits_the_lowest_number_begins_first_whenever_it_came(arrival):
    one = lanes(1)
    add(one, A, 1)
    for lane, action in arrival:
        assert add(one, lane, action) == []
    for action in range(1, 6):
        given = one.ended(action)[-1]
        assert (type(given), given.action) == (Give, action + 1)


def test_an_action_that_is_sent_again_keeps_its_place():
    one = lanes(1)
    add(one, A, 1, 2)
    add(one, SESSION, 3)
    one.ended(1)
    assert one.add(A, 10, "run 10", number=1) == []
    assert one.ended(2) == [give(1, 10)]
    assert one.ended(10) == [Make(2, SESSION), give(2, 3)]


def test_of_one_number_the_lowest_name_begins_first():
    one = lanes(1)
    for lane, action in ((A, 1), (A, 3), (B, 2)):
        one.add(lane, action, f"run {action}", number=0)
    assert one.ended(1) == [Make(2, B), give(2, 2)]
    assert one.ended(2) == [give(1, 3)]


def test_what_a_session_could_not_begin_yet_begins_before_what_is_younger():
    one = lanes(2)
    add(one, SESSION, 1, 2)
    assert add(one, A, 3, 4) == [Make(2, A), give(2, 3)], "what waits there is passed over"
    assert one.ended(1) == [give(1, 2)]
    assert one.ended(2) == [Make(3, A), give(3, 4)]


def test_lanes_do_not_share_sandboxes():
    one = lanes()
    worked(one, A, 1)
    assert add(one, B, 2) == [Make(2, B), give(2, 2)]


def test_a_lane_that_nobody_opened_runs_nothing():
    assert add(lanes(), 9, 1) == [Refuse(1, "rejected", "there is no lane 9")]


def test_an_end_is_heard_once():
    one = lanes()
    worked(one, A, 1)
    assert one.ended(1) == []
    assert one.ended(99) == []


# ── actions that are cancelled ──────────────────────────────────────────────


def test_an_action_that_waits_is_not_run():
    one = lanes(1)
    add(one, A, 1)
    add(one, B, 2, 3)
    assert one.cancel(3) == [Refuse(3, "cancelled", "it was cancelled")]
    assert one.cancel(3) == []
    assert one.ended(1) == [Make(2, B), give(2, 2)]
    assert one.ended(2) == []


def test_an_action_that_a_sandbox_has_is_ended_there():
    one = lanes()
    add(one, A, 1)
    assert one.cancel(1) == [End(1, 1)]
    assert one.sandbox_of(1) == 1
    one.ended(1)
    assert one.cancel(1) == []


@pytest.mark.parametrize("how", ["lost", "refused"])
def test_a_cancelled_action_does_not_go_to_another_sandbox(how):
    one = lanes()
    add(one, A, 1, 2)
    one.cancel(1)
    assert getattr(one, how)(1, "gone") == [Refuse(1, "cancelled", "it was cancelled")]


# ── actions that are given ahead ────────────────────────────────────────────


def prompt(to, lane, first=0):
    """Have a sandbox of this lane take others ahead, which runs the second of two; the sandbox."""
    add(to, lane, first)
    sandbox = to.sandbox_of(first)
    assert to.ended(first, prompt=True) == []
    assert add(to, lane, first + 1) == [give(sandbox, first + 1)]
    return sandbox


def test_a_sandbox_whose_last_action_was_prompt_has_a_few_more_given_ahead():
    one = lanes(1)
    assert prompt(one, A) == 1
    some = range(2, AHEAD + 5)
    assert add(one, A, *some) == [give(1, i) for i in range(2, AHEAD + 2)]
    assert one.ended(1, prompt=True) == [give(1, AHEAD + 2)]


@pytest.mark.parametrize("ahead", [0, 1, AHEAD])
def test_one_whose_last_action_was_not_has_no_more_given_before_all_that_it_has_ended(ahead):
    one = lanes(1)
    prompt(one, A)
    add(one, A, *range(2, AHEAD + 4))
    for action in range(1, AHEAD + 1 - ahead):
        one.ended(action, prompt=True)
    for action in range(AHEAD + 1 - ahead, AHEAD + 1):
        assert one.ended(action) == []


def test_a_free_sandbox_goes_before_one_that_takes_actions_ahead():
    one = lanes(2)
    prompt(one, A)
    assert add(one, A, 2) == [Make(2, A), give(2, 2)]
    assert add(one, A, 3) == [give(1, 3)], "it is the one that takes them"
    assert one.ended(2, prompt=True) == []
    assert add(one, A, 4, 5) == [give(2, 4), give(2, 5)], "it has the fewest"


def test_what_is_ahead_of_its_turn_is_of_the_sandbox_s_own_lane():
    one = lanes(1)
    prompt(one, A)
    add(one, B, 2)
    assert add(one, A, 3) == [], "what is older goes before it, whatever its lane"
    assert one.cancel(2) == [Refuse(2, "cancelled", "it was cancelled")]
    assert add(one, A, 4) == [give(1, 3), give(1, 4)]


def test_what_waits_behind_a_session_s_own_action_holds_up_nothing():
    one = lanes(2)
    add(one, SESSION, 1, 2)
    prompt(one, A, 3)
    assert add(one, A, 5) == [give(2, 5)]


def test_what_a_sandbox_does_not_begin_goes_to_others_in_its_place():
    one = lanes(2)
    prompt(one, A)
    add(one, SESSION, 2)
    assert add(one, A, 3, 4) == [give(1, 3), give(1, 4)]
    add(one, B, 5)
    assert one.returned(1, [3, 4]) == []
    assert one.sandbox_of(3) is None
    assert one.ended(2) == [Make(3, A), give(3, 3)]
    assert one.ended(3) == [give(3, 4)]
    assert one.ended(1, prompt=True) == [Make(4, B), give(4, 5)]


def test_a_sandbox_that_gave_actions_back_takes_none_ahead_until_it_is_prompt_again():
    one = lanes(1)
    prompt(one, A)
    add(one, A, 2)
    assert one.returned(1, [2]) == []
    assert add(one, A, 3) == []
    assert one.ended(1, prompt=True) == [give(1, 2), give(1, 3)]


def test_what_was_given_back_too_late_changes_nothing():
    one = lanes(2)
    prompt(one, A)
    add(one, SESSION, 2)
    add(one, A, 3)
    one.returned(1, [3])
    one.ended(2)
    assert one.sandbox_of(3) == 3
    assert one.returned(1, [3, 99]) == []
    assert one.sandbox_of(3) == 3
    one.lost(1, "gone")
    assert one.returned(1, [1]) == []


@pytest.mark.parametrize("how", ["ended", "returned", "lost", "refused"])
def test_an_action_ahead_that_is_cancelled_is_ended_in_its_sandbox(how):
    one = lanes(1)
    prompt(one, A)
    add(one, A, 2, 3)
    assert one.cancel(2) == [End(1, 2)]
    told = Refuse(2, "cancelled", "it was cancelled")
    if how == "ended":
        assert one.ended(2) == []
    elif how == "returned":
        assert one.returned(1, [2, 3]) == [told]
    elif how == "lost":
        assert one.lost(1, "gone") == [told, Make(2, A), give(2, 1)]
    else:
        others = [Refuse(i, "rejected", "gone") for i in (1, 3)]
        assert one.refused(1, "gone") == [told, *others]
    assert one.cancel(2) == []


def test_all_that_a_lost_sandbox_had_and_did_not_begin_keeps_its_place():
    one = lanes(1)
    prompt(one, A)
    add(one, A, *range(2, AHEAD + 4))
    assert one.lost(1, "gone") == [Make(2, A), give(2, 1)], "the new one has not been prompt"
    for action in range(1, AHEAD + 3):
        assert one.ended(action) == [give(2, action + 1)]


def test_what_a_sandbox_of_a_closed_lane_had_ahead_is_cancelled():
    one = lanes(1)
    prompt(one, A)
    add(one, A, 2, 3)
    assert one.close(A, "closed") == [Drop(1, "closed")]
    told = [Refuse(i, "cancelled", "its lane was closed") for i in (2, 3)]
    assert one.returned(1, [2, 3]) == told
    assert one.ended(1, prompt=True) == []
    assert one.lost(1, "closed") == []


# ── sandboxes that are lost ─────────────────────────────────────────────────


def test_what_a_lost_sandbox_did_not_begin_goes_to_another_before_those_that_wait():
    one = lanes(1)
    worked(one, A, 1)
    add(one, A, 2, 3)
    assert one.lost(1, "gone") == [Make(2, A), give(2, 2)]
    assert one.sandbox_of(2) == 2
    assert one.ended(2) == [give(2, 3)]


def test_a_lost_idle_sandbox_is_not_used_again():
    one = lanes()
    worked(one, A, 1)
    assert one.lost(1, "gone") == []
    assert one.lost(1, "gone") == [], "it is heard once"
    assert add(one, A, 2) == [Make(2, A), give(2, 2)]


def test_sandboxes_that_are_lost_at_once_are_a_failure():
    one = lanes()
    add(one, A, 1)
    for sandbox in range(1, DEATHS):
        assert one.lost(sandbox, "gone") == [Make(sandbox + 1, A), give(sandbox + 1, 1)]
    assert one.lost(DEATHS, "gone") == [Fail("gone")]


def test_one_that_ran_something_makes_good_for_those_before():
    one = lanes()
    add(one, A, 1)
    for _ in range(3):
        for sandbox in range(one.sandbox_of(1), one.sandbox_of(1) + DEATHS - 1):
            assert Fail("gone") not in one.lost(sandbox, "gone")
        one.ended(1)
        assert one.lost(one._lanes[A].idle[0], "gone") == []
        add(one, A, 1)


def test_while_others_work_a_loss_may_be_for_want_of_room():
    one = lanes(3)
    worked(one, A, 1)
    add(one, A, 1, 2)
    assert one.lost(2, "gone") == [], "one works, and that is as many as there is room for"
    assert one.ended(1) == [give(1, 2)]


# ── room ────────────────────────────────────────────────────────────────────


def test_where_there_is_no_room_those_that_there_are_do_the_work():
    one = lanes(3)
    assert add(one, A, 1, 2) == [Make(1, A), give(1, 1), Make(2, A), give(2, 2)]
    assert one.refused(2, "full") == []
    assert add(one, A, 3) == []
    assert one.ended(1) == [give(1, 2)]
    assert one.ended(2) == [give(1, 3)]


def test_where_there_is_no_room_at_all_what_waits_is_refused():
    one = lanes()
    add(one, A, 1)
    assert one.refused(1, "full") == [Refuse(1, "rejected", "full")]
    assert one.refused(1, "full") == []
    assert add(one, A, 2) == [Make(2, A), give(2, 2)], "it is asked again"


def test_an_idle_sandbox_makes_way_for_one_of_another_lane():
    one = lanes(3)
    worked(one, A, 1)
    add(one, B, 2)
    assert one.refused(2, "full") == [Drop(1, "it made way for another"), Make(3, B), give(3, 2)]
    assert one.lost(1, "dropped") == []
    assert add(one, A, 3) == []
    assert one.ended(2) == [Drop(3, "it made way for another"), Make(4, A), give(4, 3)]


def test_a_session_makes_way_for_nobody():
    one = lanes()
    add(one, SESSION, 1)
    add(one, A, 2)
    assert one.refused(2, "full") == []
    # Nothing runs that would make room: it is asked for, and what waits is told.
    assert one.ended(1) == [Make(3, A), give(3, 2)]
    assert one.refused(3, "full") == [Refuse(2, "rejected", "full")]


def test_after_some_time_there_may_be_more_room():
    one = lanes()
    add(one, A, 1, 2)
    one.refused(2, "full")
    for action in range(1, TRY_AGAIN):
        add(one, A, action + 2)
        assert Make not in [type(order) for order in one.ended(action)]
    add(one, A, TRY_AGAIN + 2)
    assert Make in [type(order) for order in one.ended(TRY_AGAIN)]


def test_where_nothing_can_be_reached_what_waits_is_told():
    one = lanes(1)
    add(one, A, 1, 2)
    add(one, B, 3)
    told = [Refuse(2, "unreachable", "gone"), Refuse(3, "unreachable", "gone")]
    assert one.unreachable("gone") == told
    assert one.ended(1) == []


# ── lanes that are closed ───────────────────────────────────────────────────


def test_a_closed_lane_ends_all_that_it_had():
    one = lanes(2)
    add(one, A, 1, 2, 3)
    assert one.close(A, "closed") == [
        Refuse(3, "cancelled", "closed"),
        Drop(1, "closed"),
        Drop(2, "closed"),
    ]
    assert one.close(A, "closed") == []
    assert add(one, B, 4) == [], "what is to end still runs"
    assert one.ended(1) == [Make(3, B), give(3, 4)]
    assert one.lost(1, "closed") == []
    assert one.lost(2, "closed") == [Refuse(2, "cancelled", "closed")]


def test_what_waited_in_a_closed_lane_ends_once():
    one = lanes()
    add(one, SESSION, 1, 2)
    told = Refuse(2, "cancelled", "closed")
    assert one.close(SESSION, "closed") == [told, Drop(1, "closed")]
    # As its end at an original runtime comes about.
    assert one.state_lost(1, "closed") == []
    assert one.ended(1) == []
    assert one.lost(1, "closed") == []


def test_what_a_closed_lane_wanted_made_is_not_forgotten():
    one = lanes()
    add(one, A, 1)
    one.close(A, "closed")
    assert one.refused(1, "full") == [Refuse(1, "cancelled", "full")]


def test_the_end_of_a_closed_lane_says_nothing_of_room():
    one = lanes(3)
    add(one, A, 1)
    add(one, SESSION, 2)
    one.close(SESSION, "closed")
    one.lost(2, "closed")
    assert add(one, A, 3, 4) == [Make(3, A), give(3, 3), Make(4, A), give(4, 4)]


# ── sessions ────────────────────────────────────────────────────────────────


def test_a_session_has_one_sandbox_and_its_actions_in_order():
    one = lanes()
    assert add(one, SESSION, 1, 2, 3) == [Make(1, SESSION), give(1, 1)]
    assert add(one, A, 4) == [Make(2, A), give(2, 4)]
    assert one.ended(1) == [give(1, 2)]
    assert one.ended(2) == [give(1, 3)]


def test_a_session_that_loses_its_state_tells_those_that_wait():
    one = lanes()
    add(one, SESSION, 1, 2, 3)
    told = [Refuse(2, "state", "died"), Refuse(3, "state", "died")]
    assert one.state_lost(1, "died") == told
    assert one.ended(1) == []
    assert add(one, SESSION, 4) == [give(1, 4)]


def test_a_session_that_loses_its_state_tells_the_next_where_none_waits():
    one = lanes()
    add(one, SESSION, 1)
    assert one.state_lost(1, "died") == []
    assert one.ended(1) == []
    assert add(one, SESSION, 2) == [Refuse(2, "state", "died")]
    assert add(one, SESSION, 3) == [give(1, 3)]


def test_the_loss_of_a_session_s_sandbox_is_the_loss_of_its_state():
    one = lanes()
    worked(one, SESSION, 1)
    assert one.lost(1, "gone") == []
    assert add(one, SESSION, 2) == [Refuse(2, "state", "gone")]
    worked(one, SESSION, 3)
    add(one, SESSION, 4)
    assert one.lost(2, "gone") == [Refuse(4, "state", "gone")]


def test_a_session_that_has_run_nothing_has_no_state_to_lose():
    one = lanes()
    add(one, SESSION, 1)
    assert one.lost(1, "gone") == [Make(2, SESSION), give(2, 1)]


def test_the_loss_of_a_state_is_told_once():
    one = lanes()
    add(one, SESSION, 1, 2)
    assert one.state_lost(1, "died") == [Refuse(2, "state", "died")]
    one.ended(1)
    assert one.lost(1, "gone") == [], "nothing has run in it since"
    assert add(one, SESSION, 3) == [Make(2, SESSION), give(2, 3)]
    one.ended(3)
    assert one.lost(2, "gone") == []
    assert add(one, SESSION, 4) == [Refuse(4, "state", "gone")]


def test_what_ran_in_a_lost_sandbox_does_not_hear_of_the_lost_state():
    one = lanes()
    add(one, SESSION, 1)
    # As a sandbox tells its loss: first the end of what runs.
    assert one.ended(1) == []
    assert one.lost(1, "gone") == []
    assert add(one, SESSION, 2) == [Refuse(2, "state", "gone")]
    assert add(one, SESSION, 3) == [Make(2, SESSION), give(2, 3)], "it is told once"


def test_what_a_lost_sandbox_did_not_begin_hears_of_the_lost_state():
    one = lanes()
    add(one, SESSION, 1, 2, 3)
    assert one.ended(1) == [give(1, 2)]
    told = [Refuse(2, "state", "gone"), Refuse(3, "state", "gone")]
    assert one.lost(1, "gone") == told
    assert add(one, SESSION, 4) == [Make(2, SESSION), give(2, 4)]


def test_what_is_not_wanted_any_more_does_not_hear_of_the_lost_state_for_the_next():
    one = lanes()
    add(one, SESSION, 1, 2)
    one.ended(1)
    assert one.cancel(2) == [End(1, 2)]
    assert one.lost(1, "gone") == [Refuse(2, "cancelled", "it was cancelled")]
    assert add(one, SESSION, 3) == [Refuse(3, "state", "gone")]


def test_a_session_may_lose_its_state_while_it_is_idle():
    one = lanes()
    worked(one, SESSION, 1)
    assert one.state_lost(1, "cut") == []
    assert add(one, SESSION, 2) == [Refuse(2, "state", "cut")]
    worked(one, SESSION, 3)
    one.lost(1, "gone")
    assert add(one, SESSION, 4) == [Refuse(4, "state", "gone")]


def test_only_a_session_has_state():
    one = lanes()
    add(one, A, 1)
    assert one.state_lost(1, "died") == []
    assert one.state_lost(99, "died") == []
    one.ended(1)
    assert add(one, A, 2) == [give(1, 2)]


# ── whatever happens ────────────────────────────────────────────────────────


@dataclasses.dataclass
class Box:
    """A sandbox in `Walk`."""

    lane: int
    given: list = dataclasses.field(default_factory=list)
    """What it has, what it runs or will run next first."""
    running: bool = False
    prompt: bool = False
    """Whether it takes actions ahead."""
    new: bool = True
    ran: list = dataclasses.field(default_factory=list)
    """What its process has run to the end."""

    @property
    def action(self):
        """What it runs, or will run next."""
        return self.given[0] if self.given else None


class Walk(RuleBasedStateMachine):
    """Any order of events that sandboxes can give: they are refused, end, die and are lost at any moment."""

    @initialize(most=st.integers(1, 4))
    def begin(self, most):
        self.most = most
        self.lanes = Lanes(most)
        self.open = {}  # lane -> whether it is a session
        self.numbers = iter(range(1, 1000))
        self.boxes = {}
        self.made = set()
        self.dropped = set()
        self.waiting = {}  # action -> lane, in the order that they came
        self.of = {}  # action -> lane
        self.place = {}  # action -> by which it begins before others
        self.tight = False  # whether there may be too little room for one more sandbox
        self.newest = None  # the sandbox that was made last
        self.done = set()
        self.begun = set()
        self.cancelled = set()
        self.owed = {}  # session -> whether the next is to be told that its state is lost
        self.failed = False

    def obey(self, orders):
        for order in orders:
            if type(order) is Make:
                assert order.sandbox not in self.made
                assert order.lane in self.open
                self.made.add(order.sandbox)
                self.newest = order.sandbox
                self.boxes[order.sandbox] = Box(order.lane)
                if self.open[order.lane]:
                    assert sum(box.lane == order.lane for box in self.boxes.values()) == 1
            elif type(order) is Give:
                self.give(order)
            elif type(order) is Drop:
                box = self.boxes[order.sandbox]
                assert box.lane not in self.open or box.action is None
                assert order.sandbox not in self.dropped
                self.dropped.add(order.sandbox)
            elif type(order) is End:
                assert order.action in self.boxes[order.sandbox].given
            elif type(order) is Refuse:
                self.refused(order)
            else:
                self.failed = True
        if not self.failed:
            assert not self.waiting or any(box.action for box in self.boxes.values()), "stuck"

    def give(self, order):
        box = self.boxes[order.sandbox]
        assert order.sandbox not in self.dropped
        assert box.lane == self.of[order.action]
        assert not box.given or (box.prompt and len(box.given) <= AHEAD)
        assert order.run == f"run {order.action}"
        assert order.action not in self.cancelled
        assert not self.owed.get(box.lane), "it does not know that its state is lost"
        del self.waiting[order.action]
        for action, lane in self.waiting.items():
            if self.place[action] < self.place[order.action]:
                assert not self.could_begin(lane, order.sandbox), f"{action} was older"
        self.newest = None
        box.given.append(order.action)
        assert sum(box.action is not None for box in self.boxes.values()) <= self.most

    def could_begin(self, lane, taken):
        """Whether something of a lane could begin where this sandbox was given something."""
        if self.boxes[taken].given:
            # That one was busy: there is no other way for any that could begin where it is free.
            busy = sum(bool(box.given) for box in self.boxes.values())
            held_up = self.open[lane] and any(
                box.lane == lane and box.given for box in self.boxes.values()
            )
            return lane == self.boxes[taken].lane or (busy < self.most and not held_up)
        idle = {s for s, box in self.boxes.items() if not box.given} - self.dropped - {taken}
        mine = [s for s, box in self.boxes.items() if box.lane == lane]
        if lane == self.boxes[taken].lane or idle.intersection(mine):
            return True
        if self.open[lane] and mine:
            return False
        # It could have been made instead of that one, or in the place of another.
        return (
            not self.tight
            or taken == self.newest
            or not self.open[self.boxes[taken].lane]
            or any(not self.open.get(self.boxes[s].lane) for s in idle)
        )

    def refused(self, order):
        lane = self.of[order.action]
        self.waiting.pop(order.action, None)
        if order.kind == "state":
            assert self.owed[lane], "nothing was lost, or it was told"
            assert order.action not in self.begun, "it is what lost the state"
            if not any(of == lane for of in self.waiting.values()):
                self.owed[lane] = False
        elif order.kind == "cancelled":
            assert order.action in self.cancelled or lane not in self.open
        self.finish(order.action)

    def finish(self, action):
        assert action not in self.done, "ended twice"
        self.done.add(action)

    @precondition(lambda self: len(self.open) < 5)
    @rule(session=st.booleans())
    def a_lane_opens(self, session):
        lane = 100 + next(self.numbers)
        self.open[lane] = session
        self.lanes.open(lane, session)

    @precondition(lambda self: len(self.open) > 1)
    @rule(data=st.data())
    def a_lane_closes(self, data):
        lane = data.draw(st.sampled_from(sorted(self.open)))
        del self.open[lane]
        self.obey(self.lanes.close(lane, "closed"))
        assert lane not in self.waiting.values()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), count=st.integers(1, 4))
    def add(self, data, count):
        for _ in range(count):
            lane = data.draw(st.sampled_from(sorted(self.open)))
            action = next(self.numbers)
            number = data.draw(st.integers(0, 9))
            self.of[action] = self.waiting[action] = lane
            self.place[action] = number, action
            self.obey(self.lanes.add(lane, action, f"run {action}", number))

    @precondition(lambda self: self.of)
    @rule(data=st.data())
    def cancel(self, data):
        action = data.draw(st.sampled_from(sorted(self.of)))
        known = action not in self.done
        self.cancelled.add(action)
        orders = self.lanes.cancel(action)
        assert len(orders) == known
        self.obey(orders)

    def draw_box(self, data):
        return data.draw(st.sampled_from(sorted(self.boxes)))

    @precondition(lambda self: self.boxes)
    @rule(data=st.data(), dies=st.booleans(), prompt=st.booleans())
    def one_goes_on(self, data, dies, prompt):
        sandbox = self.draw_box(data)
        box = self.boxes[sandbox]
        if box.action is None:
            if not dies:
                self.lanes.ready(sandbox)
            elif box.lane in self.open and sandbox not in self.dropped:
                self.loses_state(sandbox)
        elif not box.running:
            box.running, box.new = True, False
            self.begun.add(box.action)
        else:
            if dies:
                self.loses_state(sandbox)
            else:
                box.ran.append(box.action)
            self.end(sandbox, prompt and not dies and not self.open.get(box.lane))

    def end(self, sandbox, prompt=False):
        box = self.boxes[sandbox]
        action = box.given.pop(0)
        box.running, box.prompt = False, prompt
        self.finish(action)
        self.obey(self.lanes.ended(action, prompt))

    @precondition(lambda self: any(len(box.given) > 1 for box in self.boxes.values()))
    @rule(data=st.data(), late=st.booleans())
    def a_sandbox_gives_back(self, data, late):
        busy = [s for s, box in sorted(self.boxes.items()) if len(box.given) > 1]
        sandbox = data.draw(st.sampled_from(busy))
        box = self.boxes[sandbox]
        # All that it has not begun, or what was sent to its process is not known to be unread.
        kept = data.draw(st.integers(1, len(box.given)))
        back, box.given = box.given[kept:], box.given[:kept]
        box.prompt = False
        for action in back:
            self.waiting[action] = box.lane
        told = (
            [*back, *data.draw(st.lists(st.sampled_from(sorted(self.done)), max_size=2))]
            if (late and self.done)
            else back
        )
        self.obey(self.lanes.returned(sandbox, told))

    def loses_state(self, sandbox):
        """Its process has died, and another takes its place."""
        box = self.boxes[sandbox]
        lost = self.open.get(box.lane) and (box.ran or box.running)
        box.ran = []
        if lost:
            self.owed[box.lane] = True
            self.obey(self.lanes.state_lost(sandbox, "died"))

    @precondition(lambda self: self.boxes)
    @rule(data=st.data())
    def a_sandbox_is_lost(self, data):
        sandbox = self.draw_box(data)
        box = self.boxes[sandbox]
        if box.running:
            box.ran.append(box.action)
            self.end(sandbox)
        self.is_gone(sandbox)
        self.tight = True
        self.obey(self.lanes.lost(sandbox, "gone"))

    def is_gone(self, sandbox):
        box = self.boxes.pop(sandbox)
        if self.open.get(box.lane) and box.ran and sandbox not in self.dropped:
            self.owed[box.lane] = True
        for action in box.given:
            self.waiting[action] = box.lane

    @precondition(lambda self: any(box.new for box in self.boxes.values()))
    @rule(data=st.data())
    def a_sandbox_is_refused(self, data):
        sandbox = data.draw(st.sampled_from([s for s, box in self.boxes.items() if box.new]))
        self.is_gone(sandbox)
        self.tight = True
        self.obey(self.lanes.refused(sandbox, "full"))

    @rule(
        data=st.data(), what=st.sampled_from(["ended", "lost", "refused", "cancel", "state_lost"])
    )
    def something_is_told_too_late(self, data, what):
        number = data.draw(st.integers(0, 60))
        if number not in self.boxes and (what != "ended" or number in self.done):
            if what == "cancel" and number not in self.done:
                return
            arguments = () if what in ("ended", "cancel") else ("late",)
            assert getattr(self.lanes, what)(number, *arguments) == []

    @rule(really=st.integers(0, 5))
    def nothing_can_be_reached(self, really):
        if really == 0:
            self.obey(self.lanes.unreachable("gone"))
            assert not self.waiting

    @invariant()
    def it_knows_where_each_action_is(self):
        for sandbox, box in getattr(self, "boxes", {}).items():
            for action in box.given:
                assert self.lanes.sandbox_of(action) == sandbox

    def teardown(self):
        """Let all run to its end: nothing may be left."""
        for _ in range(2000):
            busy = [s for s, box in getattr(self, "boxes", {}).items() if box.action is not None]
            dropped = [s for s in getattr(self, "boxes", ()) if s in self.dropped]
            if busy:
                self.boxes[busy[0]].ran.append(self.boxes[busy[0]].action)
                self.end(busy[0])
            elif dropped:
                self.is_gone(dropped[0])
                self.obey(self.lanes.lost(dropped[0], "dropped"))
            else:
                break
        if hasattr(self, "lanes") and not self.failed:
            assert self.done == set(self.of), "an action was forgotten"
            assert not self.lanes._given
            assert not self.lanes._unwanted
            assert self.lanes._prompt <= set(self.boxes)
            assert set(self.lanes._of) == set(self.boxes)
            assert self.lanes._worked <= set(self.boxes)


Walk.TestCase.settings = WALKS


class TestWhateverHappensEveryActionEndsOnce(Walk.TestCase):
    pass


# ── one for each ────────────────────────────────────────────────────────────


def test_a_sandbox_that_is_for_one_action_goes_with_it():
    one = Lanes(1)
    one.open(A, False, once=True)
    assert add(one, A, 1, 2) == [Make(1, A), give(1, 1)]
    why = "each action has a new one"
    assert one.ended(1) == [Drop(1, why), Make(2, A), give(2, 2)]
    assert one.ended(2) == [Drop(2, why)]
    assert one.lost(2, why) == []
    assert add(one, A, 3) == [Make(3, A), give(3, 3)]
