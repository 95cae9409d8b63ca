"""One task: its states, its record, and the result that its observations amount to."""

from __future__ import annotations

import datetime
import json
import sys
import threading
import time
from concurrent.futures import Future
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentis_pool import files, values
from mentis_pool.errors import (
    CellError,
    CellTimeout,
    DeadlineExceeded,
    OutcomeUnknown,
    PayloadError,
    ProtocolError,
    QueueTimeout,
    ResourceLimitExceeded,
    RuntimeRejected,
    RuntimeUnavailable,
    SandboxDied,
    SandboxError,
    StateLost,
)
from mentis_pool.observations import (
    Bundle,
    Cut,
    Display,
    End,
    Error,
    ErrorKind,
    Exceeded,
    Failure,
    File,
    Left,
    Part,
    Result,
    Start,
    Stream,
    Wanted,
)
from mentis_pool.pool_stream import Cells, Given
from mentis_pool.results import CellResult, Opaque, Usage
from mentis_pool.task import Record, Settings, State, Task, call_outcome, outcome

OUT, ERR = "stdout", "stderr"
LIMITS = Settings(timeout=2.0, deadline=3.0, queue_timeout=4.0)


def a_task(now=10.0, max_output=None, **settings):
    return Task("key", 1, Cells([b"1"]), Settings(**settings), max_output, now)


def result_of(*said, queued=0.0, **given):
    return outcome([Start(0.0), *said], queued=queued, **given)


def text_display(text, **given):
    return Display(Bundle({"text/plain": text}), **given)


# ── states ──────────────────────────────────────────────────────────────────


def test_a_task_waits_until_it_is_sent():
    task = a_task()
    assert task.state is State.QUEUED
    assert (task.attempt, task.started, task.record.said) == (0, None, [])


def test_a_task_that_was_claimed_cannot_be_cancelled():
    task = a_task()
    task.future = Future()
    assert task.claim()
    assert not task.future.cancel()
    assert task.claim(), "also for its second attempt"


def test_a_task_that_was_cancelled_is_not_claimed():
    task = a_task()
    task.future = Future()
    assert task.future.cancel()
    assert not task.claim()
    assert task.future._state == "CANCELLED_AND_NOTIFIED", "those who wait for it were told"


def test_a_task_moves_down_the_list_of_states():
    task = a_task(now=10.0)
    task.sent(5)
    assert (task.state, task.action, task.attempt) == (State.SENT, 5, 1)
    task.observe(Start(0.0), 12.0)
    assert (task.state, task.started) == (State.RUNNING, 12.0)
    task.observe(Stream(OUT, b"x"), 12.5)
    task.observe(Result(), 13.0)
    assert task.state is State.RUNNING
    assert not task.record.ended
    task.observe(End(1.0), 13.0)
    assert task.state is State.ENDED
    assert task.record.ended
    assert task.record.said == [Start(0.0), Stream(OUT, b"x"), Result(), End(1.0)]


def test_the_states_are_in_the_order_of_a_life():
    assert [s.name for s in State] == ["QUEUED", "SENT", "RUNNING", "ENDED"]


def test_a_task_that_goes_back_is_sent_again_under_another_number():
    task = a_task()
    task.sent(1)
    task.back()
    assert (task.state, task.attempt) == (State.QUEUED, 1)
    task.sent(2)
    assert (task.action, task.attempt) == (2, 2)


def test_a_task_has_waited_until_its_start_or_until_now():
    task = a_task(now=10.0)
    assert task.queued(13.0) == 3.0
    task.sent(1)
    assert task.queued(14.0) == 4.0
    task.observe(Start(0.0), 15.0)
    assert task.queued(99.0) == 5.0


def running(**settings):
    """A task that has begun."""
    task = a_task(**settings)
    task.sent(1)
    task.observe(Start(0.0), 12.0)
    return task


def lose(task, message, now, *kind):
    """All that is said of a task that is lost."""
    task.observe(task.lost(message, now, *kind), now)


def test_what_was_sent_in_vain_does_not_count():
    task = a_task()
    task.sent(1)
    task.unsent()
    assert task.waits
    task.sent(2)
    assert (task.attempt, task.losses) == (1, 0)


def test_what_an_attempt_gave_is_not_what_the_next_gives():
    task = running()
    task.rebuilt = ("object",)
    task.back()
    assert task.rebuilt is None


def test_a_task_waits_until_something_is_said_of_it():
    task = a_task()
    assert task.waits
    task.sent(1)
    assert task.waits
    task.observe(Stream(OUT, b"x"), 12.0)
    assert (task.waits, task.state, task.started) == (False, State.RUNNING, None)


def test_what_became_of_a_task_is_known_before_its_end():
    for last in (Result(), Error("timeout", "m")):
        task = running()
        assert not task.known
        task.observe(last, 13.0)
        assert (task.known, task.ended) == (True, False)


@pytest.mark.parametrize(("kind", "said"), [((), "died"), (("unknown",), "unknown")])
def test_a_task_that_ran_when_it_was_lost_has_died_or_is_unknown(kind, said):
    task = running()
    task.observe(Stream(OUT, b"x"), 12.0)
    lose(task, "gone", 14.5, *kind)
    assert task.state is State.ENDED
    assert task.record.said[-2:] == [Error(said, "gone"), End(2.5)]
    assert task.record.said[1] == Stream(OUT, b"x")


def test_what_became_of_a_task_that_was_only_sent_is_unknown():
    task = a_task()
    task.sent(1)
    lose(task, "gone", 14.5)
    assert task.record.said == [Error("unknown", "gone"), End(0.0)]
    assert task.state is State.ENDED


def test_a_result_that_was_said_is_not_taken_back_by_a_loss():
    task = a_task()
    task.sent(1)
    task.observe(Start(0.0), 12.0)
    task.observe(Result(values.encode(3), "3", "int"), 13.0)
    lose(task, "gone", 14.0)
    assert task.record.ended
    result = outcome(task.record.said, queued=0.0)
    assert result.error is None
    assert result.value == 3


def test_a_task_that_is_refused_was_never_sent():
    task = a_task()
    task.refuse("unknown", "no runtime")
    assert task.state is State.ENDED
    assert task.record.ended
    assert task.record.said == [Error("unknown", "no runtime"), End(0.0)]


# ── tasks that are run again ────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["died", "unknown", "protocol", "unreachable"])
def test_a_lost_task_is_to_be_run_again_as_often_as_it_may(kind):
    for begun in (False, True):
        task = a_task(retries=2, idempotent=True)
        for attempt in (1, 2):
            task.sent(attempt)
            if begun:
                task.observe(Start(0.0), 12.0)
            task.observe(Error(kind, "m"), 13.0)
            assert task.again == Error(kind, "m")
            task.back()
            assert (task.again, task.state, task.started) == (None, State.QUEUED, None)
        task.sent(3)
        if begun:
            task.observe(Start(0.0), 12.0)
        task.observe(Error(kind, "m"), 13.0)
        assert task.again is None
        assert task.losses == 2


@pytest.mark.parametrize(
    "kind", ["timeout", "deadline", "queue", "payload", "rejected", "cancelled", "state"]
)
def test_only_a_loss_has_a_task_run_again(kind):
    task = running(retries=5, idempotent=True)
    task.observe(Error(kind, "m"), 13.0)
    assert task.again is None
    assert task.record.said[-1] == Error(kind, "m")


def test_what_began_is_run_again_only_where_it_may_be():
    task = running(retries=5)
    task.observe(Error("died", "m"), 13.0)
    assert task.again is None
    task = running(retries=5, idempotent=True)
    task.stateful = True
    task.observe(Error("died", "m"), 13.0)
    assert task.again is None, "not without the state that it found"


@pytest.mark.parametrize("why", ["unwanted", "known", "policy"])
def test_what_is_not_to_be_run_again(why):
    task = running(retries="policy" if why == "policy" else 5, idempotent=True)
    if why == "unwanted":
        task.unwanted = True
    elif why == "known":
        task.observe(Result(), 13.0)
    task.observe(Error("died", "m"), 13.0)
    assert task.again is None


def test_a_task_that_nobody_wants_again_has_its_error_after_all():
    task = running(retries=1, idempotent=True)
    task.observe(Error("died", "m"), 13.0)
    assert task.record.said == [Start(0.0)]
    task.observe(End(1.0), 13.0)
    assert task.record.said == [Start(0.0), Error("died", "m"), End(1.0)]
    assert task.ended


def test_a_task_that_goes_on_after_its_loss_is_not_run_again():
    task = a_task(retries=1)
    task.sent(1)
    task.observe(Error("died", "m"), 13.0)
    task.observe(Start(0.0), 13.0)
    assert task.again is None
    assert task.state is State.RUNNING


def test_only_a_policy_judges_and_only_what_is_wanted():
    assert not a_task(retries=3).judged
    task = a_task(retries="policy")
    assert task.judged
    task.unwanted = True
    assert not task.judged


def test_settings_are_equal_by_what_they_set():
    assert Settings() == Settings(timeout=None, task_id=None, stdin=None, on_output=None, argv=None)
    assert Settings(retries=1) != Settings(idempotent=True)
    assert Settings(timeout=1.0) != Settings()


# ── the record ──────────────────────────────────────────────────────────────


def test_a_record_is_what_was_said():
    record = Record(limit=2)
    said = [Start(0.0), Stream(OUT, b"abcdef"), Cut(OUT, 1), text_display("d"), Result(), End(1.0)]
    for observation in said:
        assert not record.ended
        record.add(observation)
    assert record.said == said, "where the runtime bounds the output, the record does not"
    assert record.ended


def test_a_record_bounds_each_stream_where_the_runtime_does_not():
    record = Record(limit=4, bounded=False)
    for observation in [
        Start(0.0),
        Stream(OUT, b"abc"),
        Stream(ERR, b"1"),
        text_display("d"),
        Stream(OUT, b"defgh"),
        Stream(ERR, b"23"),
        Result(),
        End(1.0),
    ]:
        record.add(observation)
    assert record.said == [
        Start(0.0),
        Stream(OUT, b"ab"),
        Stream(ERR, b"1"),
        text_display("d"),
        Stream(ERR, b"2"),
        Cut(OUT, 4),
        Stream(OUT, b"gh"),
        Stream(ERR, b"3"),
        Result(),
        End(1.0),
    ]


@pytest.mark.parametrize("last", [Result(), Error("died", "gone")])
def test_the_kept_end_comes_before_the_outcome_whatever_it_is(last):
    record = Record(limit=2, bounded=False)
    for observation in [Start(0.0), Stream(OUT, b"abc"), last, End(1.0)]:
        record.add(observation)
    assert record.said == [
        Start(0.0),
        Stream(OUT, b"a"),
        Cut(OUT, 1),
        Stream(OUT, b"c"),
        last,
        End(1.0),
    ]


def test_the_record_of_a_lost_task_has_its_output_to_the_end():
    task = a_task(max_output=2, on_output=print)
    task.sent(1)
    task.observe(Start(0.0), 11.0)
    task.observe(Stream(OUT, b"abc"), 11.0)
    lose(task, "gone", 12.0)
    result = outcome(task.record.said, queued=0.0)
    assert result.stdout == "a\n[… 1 bytes cut …]\nc"


def test_only_a_task_with_a_callback_bounds_its_own_record():
    for settings, kept in ([{}, b"abcdef"], [{"on_output": print}, b"a"]):
        task = a_task(max_output=2, **settings)
        task.observe(Stream(OUT, b"abcdef"), 0.0)
        assert task.record.said == [Stream(OUT, kept)]


def test_a_record_without_a_limit_keeps_all():
    record = Record(limit=None, bounded=False)
    for _ in range(100):
        record.add(Stream(OUT, b"x" * 1000))
    assert sum(len(o.data) for o in record.said) == 100_000


@given(st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.binary(max_size=30))), st.integers(0, 40))
def test_a_record_holds_no_more_than_its_limit_of_each_stream(pieces, limit):
    record = Record(limit, bounded=False)
    for stream, data in pieces:
        record.add(Stream(stream, data))
    record.add(Result())
    for stream in (OUT, ERR):
        kept = sum(
            len(o.data) for o in record.said[:-1] if o.stream == stream and type(o) is Stream
        )
        cut = sum(o.bytes for o in record.said[:-1] if o.stream == stream and type(o) is Cut)
        assert kept <= limit
        assert kept + cut == sum(len(data) for s, data in pieces if s == stream)


def test_a_record_that_begins_again_bounds_what_comes_then():
    record = Record(limit=2, bounded=False)
    for observation in [Start(0.0), Stream(OUT, b"abc"), Start(1.0), Stream(OUT, b"de"), Result()]:
        record.add(observation)
    assert record.said == [
        Start(0.0),
        Stream(OUT, b"a"),
        Start(1.0),
        Stream(OUT, b"d"),
        Stream(OUT, b"e"),
        Result(),
    ]


# ── what a call gave ────────────────────────────────────────────────────────

FAILURE = Failure("E", "v", "Traceback")


def record_of(*said):
    record = Record()
    for observation in said:
        record.add(observation)
    return record


def test_what_a_call_gave_is_put_together_and_then_not_kept():
    said = [Start(0.0), Part(b"a"), Stream(OUT, b"x"), Part(b"b"), Result(pickled=b"c"), End(1.0)]
    record = record_of(*said)
    assert record.take_pickled() == (b"abc", None)
    assert record.said == [
        Start(0.0),
        Part(b""),
        Stream(OUT, b"x"),
        Part(b""),
        Result(),
        End(1.0),
    ]
    assert record.take_pickled() == (None, None)


def test_what_a_call_gave_is_kept_until_its_end():
    # Its policy looks at it before.
    record = record_of(Start(0.0), Part(b"a"), Result(pickled=b"b", failure=FAILURE))
    assert record.take_pickled() == (b"ab", FAILURE)
    record.add(End(1.0))
    assert record.take_pickled() == (b"ab", FAILURE)
    assert record.said[2] == Result(failure=FAILURE)


def test_what_a_call_gave_in_one_message_is_not_copied():
    pickled = b"x" * 1000
    assert record_of(Result(pickled=pickled), End(1.0)).take_pickled()[0] is pickled


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ([], None),
        ([Result()], None),
        ([Part(b"a")], None),
        ([Result(pickled=b"1"), Start(1.0)], None),
        ([Part(b"a"), Start(1.0), Result(pickled=b"1")], b"1"),
        ([Result(pickled=b"1"), Start(1.0), Part(b"2"), Result(pickled=b"3")], b"23"),
        ([Result(pickled=b"1"), Start(1.0), Error("died", "m")], None),
    ],
    ids=repr,
)
def test_only_the_last_attempt_of_a_call_counts(said, taken):
    assert record_of(Start(0.0), *said, End(1.0)).take_pickled()[0] == taken


def given_by(*said, rebuild=lambda pickled: pickled):
    """What a call gave, and the result that its future has besides."""
    record = record_of(Start(0.0), *said, End(1.0))
    result = outcome(record.said, queued=0.0, settings=Settings(deadline=1.0))
    return *call_outcome(record, result, rebuild), result


def test_what_a_call_returns_is_its_outcome():
    value, error, _ = given_by(Result(pickled=b"v"))
    assert (value, error) == (b"v", None)
    assert given_by(Result(pickled=b"v"), Error("died", "m"))[:2] == (b"v", None)


def test_what_a_call_raises_has_the_remote_traceback_as_its_cause():
    raised = KeyError("k")
    value, error, result = given_by(Result(pickled=b"v", failure=FAILURE), rebuild=lambda _: raised)
    assert value is None
    assert error is raised
    assert "Traceback" in str(error.__cause__)
    assert isinstance(result.error, CellError)


def test_the_remote_traceback_does_not_steer_the_terminal():
    failure = Failure("E", "v", "Trace\x1b]0;title\x07back")
    _, error, _ = given_by(Result(pickled=b"v", failure=failure), rebuild=lambda _: KeyError("k"))
    assert str(error.__cause__) == '\n"""\nTraceback"""'


def test_a_remote_traceback_can_be_had_when_the_interpreter_ends(monkeypatch):
    monkeypatch.delitem(sys.modules, "concurrent.futures.process", raising=False)
    monkeypatch.setattr(threading, "_SHUTTING_DOWN", True)
    error = result_of(Result(failure=FAILURE)).error
    assert "Traceback" in str(error.__cause__)


def test_what_may_not_be_rebuilt_is_an_error_that_has_the_result():
    def refuse(_):
        raise PayloadError("not this type")

    for failure in (None, FAILURE):
        value, error, result = given_by(Result(pickled=b"v", failure=failure), rebuild=refuse)
        assert value is None
        assert type(error) is PayloadError
        assert error.result is result
        assert (error.__cause__ is None) == (failure is None)


def test_what_is_raised_must_be_an_exception():
    value, error, result = given_by(Result(pickled=b"v", failure=FAILURE))
    assert value is None
    assert type(error) is ProtocolError
    assert error.result is result
    assert "Traceback" in str(error.__cause__)


def test_a_call_that_gave_nothing_has_the_error_of_that():
    assert type(given_by(Error("died", "m"))[1]) is SandboxDied
    assert type(given_by(Result())[1]) is ProtocolError
    # A failure whose exception could not be sent.
    assert isinstance(given_by(Result(failure=FAILURE))[1], CellError)


def test_a_call_that_was_not_run_once_more_in_time_has_the_error_of_that():
    value, error, _ = given_by(Result(pickled=b"v"), Error("deadline", "late"))
    assert value is None
    assert type(error) is DeadlineExceeded


# ── the outcome ─────────────────────────────────────────────────────────────


def test_a_cell_that_says_nothing_gives_an_empty_result():
    assert result_of(Result(), End(0.0)) == CellResult()


def test_output_is_put_together_by_stream():
    result = result_of(
        Stream(OUT, b"a"), Stream(ERR, b"1"), Stream(OUT, b"b\n"), Stream(ERR, b"2"), Result()
    )
    assert (result.stdout, result.stderr) == ("ab\n", "12")


def test_a_character_may_be_spread_over_observations():
    assert result_of(Stream(OUT, b"\xe2\x82"), Stream(OUT, b"\xac")).stdout == "€"


def test_output_that_is_no_text_is_text_all_the_same():
    assert result_of(Stream(OUT, b"a\xff\xed\xa0\x80\0")).stdout == "a\udcff\ud800\0"


def test_what_was_cut_is_told_in_the_text_and_by_number():
    result = result_of(
        Stream(OUT, b"begin"), Cut(OUT, 1000), Stream(OUT, b"end"), Cut(ERR, 5), Result()
    )
    assert result.stdout == "begin\n[… 1000 bytes cut …]\nend"
    assert result.stderr == "\n[… 5 bytes cut …]\n"
    assert (result.stdout_cut, result.stderr_cut) == (1000, 5)


def test_what_was_cut_in_two_places_is_added_up():
    result = result_of(Cut(OUT, 3), Stream(OUT, b"x"), Cut(OUT, 4))
    assert result.stdout_cut == 7


def test_displays_that_were_cut_are_no_output():
    result = result_of(text_display("d"), Cut("displays", 9), Result())
    assert result.stdout == result.stderr == ""
    assert result.displays == [{"text/plain": "d"}]


def test_a_plain_value_is_itself():
    value = [1, (2.5, None), {"a": b"\xff"}, {datetime.date(2024, 1, 2)}]
    result = result_of(Result(values.encode(value), "text", "list"))
    assert result.value == value
    assert result.text == "text"


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (Result(), None),
        (Result(values.encode(None), None, None), None),
        (
            Result(None, "<object object at 0x7f>", "object"),
            Opaque("<object object at 0x7f>", "object"),
        ),
        (Result(None, None, "object"), Opaque("", "object")),
        (Result(None, "text without a type", None), None),
    ],
)
def test_a_value_that_is_not_plain_is_opaque(said, value):
    result = result_of(said)
    assert result.value == value
    assert result.text == said.text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80\x04K\x01.",
        values.encode(1) + b"\x00",
        b"\x91" * 1000,
        b"\xa2\xff\xff",
        b"\xc7\x00\x63",
        bytes(values.MAX_BYTES + 1),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_a_value_of_wrong_bytes_is_a_protocol_error(data):
    result = result_of(Stream(OUT, b"o"), Result(data, "text", "T"), End(1.0))
    assert type(result.error) is ProtocolError
    assert result.error.result is result
    assert (result.value, result.text, result.stdout) == (None, "text", "o")


def test_what_the_cell_raised_goes_before_a_value_of_wrong_bytes():
    result = result_of(Result(b"\xc1", failure=Failure("KeyError", "'k'", "T", True)))
    assert isinstance(result.error, KeyError)


def test_displays_come_in_their_order_and_the_value_last():
    result = result_of(
        text_display("1"),
        Display(Bundle({}, {"image/png": b"\x89"})),
        Result(None, "3", "T", Bundle({"text/plain": "3", "text/html": "<b>3</b>"})),
    )
    assert result.displays == [
        {"text/plain": "1"},
        {"image/png": b"\x89"},
        {"text/plain": "3", "text/html": "<b>3</b>"},
    ]


def test_a_display_may_be_updated_where_it_is():
    result = result_of(
        text_display("a1", display_id="a"),
        text_display("b1", display_id="b"),
        text_display("a2", display_id="a", update=True),
        text_display("c"),
    )
    assert result.displays == [{"text/plain": "a2"}, {"text/plain": "b1"}, {"text/plain": "c"}]


def test_an_update_is_for_every_display_of_its_name():
    result = result_of(
        text_display("1", display_id="a"),
        text_display("2", display_id="a"),
        text_display("3", display_id="a", update=True),
    )
    assert result.displays == [{"text/plain": "3"}, {"text/plain": "3"}]


def test_what_is_shown_after_an_update_is_not_changed_by_it():
    result = result_of(
        text_display("1", display_id="a"),
        text_display("2", display_id="a", update=True),
        text_display("3", display_id="a"),
    )
    assert [shown["text/plain"] for shown in result.displays] == ["2", "3"]


def test_updates_take_no_longer_the_more_is_shown():
    shown = [text_display("1", display_id=str(n)) for n in range(20_000)]
    update = text_display("2", display_id="no", update=True)
    begun = time.process_time()
    assert len(result_of(*shown, *[update] * 20_000).displays) == 20_000
    assert time.process_time() - begun < 3


def test_an_update_of_what_was_never_shown_shows_nothing():
    result = result_of(text_display("1"), text_display("2", display_id="a", update=True))
    assert result.displays == [{"text/plain": "1"}]


def test_an_update_without_a_name_leaves_the_others_as_they_are():
    # IPython.display.publish_display_data(…, update=True) says so.
    result = result_of(text_display("1"), text_display("2"), text_display("3", update=True))
    assert result.displays[:2] == [{"text/plain": "1"}, {"text/plain": "2"}]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"a": [1, null]}', {"a": [1, None]}),
        ("3", 3),
        ("no json", "no json"),
        ("", ""),
        ("[" * 100_000, "[" * 100_000),
        ("NaN", "NaN"),
        ("[1, Infinity]", "[1, Infinity]"),
        ("9" * 5000, int("9" * 4000) * 10**1000 + int("9" * 1000)),
    ],
    ids=["object", "number", "text", "nothing", "too deep", "nan", "infinity", "long number"],
)
def test_json_in_a_display_is_what_it_says_or_its_text(text, form):
    for mime in ("application/json", "application/vnd.vega.v5+json"):
        (display,) = result_of(Display(Bundle({mime: text, "text/plain": "3"}))).displays
        # From Python 3.11 on a number may have too many digits to be read.
        assert display[mime] in (form, text)
        assert display["text/plain"] == "3"


def test_what_was_used_is_told():
    result = result_of(Result(), End(1.5, 0.25, 1000), queued=0.5)
    assert result.usage == Usage(queued=0.5, running=1.5, cpu=0.25, peak_memory=1000)
    assert result_of(Result(), queued=0.5).usage == Usage(queued=0.5)


def test_a_limit_is_an_error_of_its_own_with_all_until_then():
    over = Exceeded("memory", 100, 150)
    said = Error("limit", "it used too much", exceeded=over)
    result = result_of(Stream(OUT, b"until then"), said, End(1.0), sandbox_id="s")
    error = result.error
    assert isinstance(error, ResourceLimitExceeded)
    assert (error.which, error.limit, error.used) == ("memory", 100, 150)
    assert error.sandbox_id == "s"
    assert error.result.stdout == "until then"


def test_a_limit_that_an_exception_tells_of_is_both():
    failure = Failure("MemoryError", "", "Traceback…", True)
    result = result_of(Result(failure=failure, exceeded=Exceeded("memory", 100)), sandbox_id="s")
    assert isinstance(result.error, ResourceLimitExceeded)
    assert isinstance(result.error, MemoryError)
    assert (result.error.sandbox_id, result.error.traceback) == ("s", "Traceback…")


def test_a_call_over_a_limit_is_told_so_and_not_rebuilt():
    record = Record()
    failure = Failure("MemoryError", "", "Traceback…", True)
    record.add(Result(pickled=b"p", failure=failure, exceeded=Exceeded("memory", 100)))
    record.add(End(1.0))
    result = outcome(record.said, queued=0.0)
    value, error = call_outcome(record, result, lambda pickled: pytest.fail("it was rebuilt"))
    assert value is None
    assert error is result.error
    assert isinstance(error, ResourceLimitExceeded)


def test_a_task_over_a_limit_is_not_run_again():
    task = a_task(retries=2, idempotent=True)
    task.sent(1)
    task.observe(Start(1.0), 1.0)
    task.observe(Error("limit", "too much", exceeded=Exceeded("memory", 100, 150)), 2.0)
    assert task.again is None


def test_where_it_ran_is_told():
    result = result_of(Result(), action_id="a", sandbox_id="s", attempt=3)
    assert (result.action_id, result.sandbox_id, result.attempt) == ("a", "s", 3)


def test_what_a_cell_raised_is_the_error_with_all_until_then():
    result = result_of(
        Stream(OUT, b"until then"),
        Result(failure=Failure("ZeroDivisionError", "division by zero", "Traceback…", True)),
        End(1.0),
        sandbox_id="s",
    )
    error = result.error
    assert isinstance(error, CellError)
    assert isinstance(error, ZeroDivisionError)
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert error.traceback == "Traceback…"
    # Nobody may catch it, and then it shows where that was.
    assert str(error.__cause__) == '\n"""\nTraceback…"""'
    assert error.result is result
    assert result.stdout == "until then"
    assert result.usage.running == 1.0
    assert not result.ok


def test_a_class_of_the_cell_is_not_the_builtin_of_its_name():
    error = result_of(Result(failure=Failure("KeyError", "'k'", "T"))).error
    assert (type(error), error.name) == (CellError, "KeyError")


def test_the_bytes_of_displays_that_were_cut_are_told():
    result = result_of(text_display("1"), Cut("displays", 5), Result(), End(1.0))
    assert (len(result.displays), result.displays_cut) == (1, 5)


@pytest.mark.parametrize("name", ["MemoryError", "SyntaxError", "StopIteration", "Own", "\0", ""])
def test_a_cell_may_raise_anything(name):
    result = result_of(Result(failure=Failure(name, "", "", True)), End(1.0))
    assert isinstance(result.error, CellError)
    assert result.error.name == name


@pytest.mark.parametrize(
    ("said", "kind", "fields"),
    [
        (Error("timeout", "m"), CellTimeout, {"timeout": 2.0}),
        (Error("deadline", "m"), DeadlineExceeded, {}),
        (Error("queue", "m"), QueueTimeout, {}),
        (Error("unreachable", "m"), RuntimeUnavailable, {}),
        (Error("rejected", "m"), RuntimeRejected, {}),
        (Error("state", "m"), StateLost, {}),
        (Error("cancelled", "m"), OutcomeUnknown, {"sandbox_id": "s"}),
        (Error("died", "m", signal=9), SandboxDied, {"signal": 9, "exit_code": None}),
        (Error("died", "m", exit_code=3), SandboxDied, {"signal": None, "exit_code": 3}),
        (Error("payload", "m"), PayloadError, {}),
        (Error("protocol", "m"), SandboxError, {"sandbox_id": "s"}),
        (Error("unknown", "m"), OutcomeUnknown, {"sandbox_id": "s"}),
    ],
    ids=lambda v: getattr(v, "kind", ""),
)
def test_why_a_cell_did_not_end_by_itself_is_the_error(said, kind, fields):
    result = result_of(Stream(OUT, b"o"), said, End(1.0), settings=LIMITS, sandbox_id="s")
    error = result.error
    assert type(error) is kind
    assert str(error) == "m"
    assert {name: getattr(error, name) for name in fields} == fields
    assert error.result is result
    assert result.stdout == "o"


def test_a_shell_command_has_its_exit_code():
    assert result_of(Result(exit_code=3)).exit_code == 3
    assert result_of(Result()).exit_code is None


@pytest.mark.parametrize(("settings", "code"), [(Settings(argv=("a.py",)), 4), (Settings(), None)])
def test_a_script_whose_process_exits_has_that_exit_code(settings, code):
    result = result_of(Error("died", "gone", exit_code=4), End(1.0), settings=settings)
    assert result.exit_code == code
    assert result.error.exit_code == 4


def test_only_what_the_last_attempt_said_counts():
    result = result_of(
        Stream(OUT, b"1"), Error("died", "m"), Start(1.0), Stream(OUT, b"2"), Result()
    )
    assert (result.stdout, result.error) == ("2", None)


@pytest.mark.parametrize("first", [Result(values.encode(1)), Error("died", "m", signal=9)])
def test_what_ends_the_wait_for_another_attempt_is_the_outcome(first):
    for kind, error in (("deadline", DeadlineExceeded), ("state", StateLost)):
        assert type(result_of(Stream(OUT, b"o"), first, Error(kind, "m")).error) is error
    for kind in ("died", "unknown", "cancelled"):
        given = result_of(first, Error(kind, "later"))
        assert given.error == result_of(first).error or given.error.signal == 9


def test_a_sandbox_that_died_names_itself():
    assert result_of(Error("died", "m", signal=9), sandbox_id="s").error.sandbox_id == "s"


@pytest.mark.parametrize("said", [[], [Start(0.0)], [Start(0.0), Stream(OUT, b"o"), End(1.0)]])
def test_without_a_result_nothing_went_well(said):
    assert type(outcome(said, queued=0.0).error) is OutcomeUnknown


@given(
    st.lists(
        st.builds(Stream, st.sampled_from([OUT, ERR]), st.binary(max_size=9))
        | st.builds(Cut, st.sampled_from([OUT, ERR, "displays"]), st.integers(0, 2**62))
        | st.builds(
            Display,
            st.builds(Bundle, st.dictionaries(st.sampled_from(["a/json", "b"]), st.text())),
            st.sampled_from([None, "a"]),
            st.booleans(),
        )
        | st.builds(
            Result,
            st.none() | st.binary(),
            st.none() | st.text(),
            st.none() | st.text(),
            st.none(),
            st.none() | st.builds(Failure, st.text(), st.text(), st.text()),
        )
        | st.builds(Error, st.sampled_from(get_args(ErrorKind)), st.text())
        | st.builds(Part, st.binary(max_size=9))
    )
)
def test_whatever_was_said_amounts_to_a_result(said):
    # Said in any order, by somebody who may lie: an exception here would reach no future.
    result = result_of(*said, End(0.0))
    assert result.error is None or result.error.result is result
    json.dumps(result.to_dict())
    str(result), repr(result)


# ── files ───────────────────────────────────────────────────────────────────


def recorded(*said, fetch=("*",)):
    record = Record(fetch=fetch)
    for each in (Start(0.0), *said):
        record.add(each)
    return record


def test_files_are_on_record_apart_from_what_was_said():
    record = recorded(Wanted(), File("a", b"1", True), Left("b", "link"), Result(), End(0.0))
    assert record.said == [Start(0.0), Result(), End(0.0)]
    result = outcome(record.said, queued=0.0, fetched=record.fetched)
    assert result.ok
    assert (result.files, list(result.files_left)) == ({"a": b"1"}, ["b"])


def test_a_file_without_its_end_is_said_to_be_left_out_at_the_end():
    piece = File("a", bytes(files.PIECE), False)
    assert recorded(piece).fetched.left == {}
    assert recorded(piece, End(0.0)).fetched.left == {"a": files.LEFT["stopped"]}


def test_a_task_that_is_run_again_has_the_files_of_its_last_run():
    record = recorded(File("a", b"1", True), Start(1.0), File("b", b"2", True), Result())
    assert record.fetched.files == {"b": b"2"}


@pytest.mark.parametrize("fetch", [(), ("b",)])
def test_a_file_that_was_not_asked_for_is_an_error_of_the_protocol(fetch):
    record = recorded(File("a", b"1", True), Result(pickled=b"p"), End(0.0), fetch=fetch)
    result = outcome(record.said, queued=0.0, fetched=record.fetched)
    assert isinstance(result.error, ProtocolError)
    assert "'a' was not asked for" in str(result.error)
    assert result.files == {}
    assert record.returned() is None, "there is more to tell of it"


def test_what_a_call_returned_is_taken_the_short_way_with_files_as_well():
    record = recorded(File("a", b"1", True), Result(pickled=b"p"), End(0.0))
    assert record.returned() == b"p"


def test_the_runtime_is_told_of_files_patterns_and_variables_where_there_are_any():
    assert Settings(timeout=1.0).given is None
    assert Settings(files={"a": b"1", "b": "/b"}).given == Given(["a", "b"])
    assert Settings(fetch=("*",)).given == Given(fetch=["*"])
    assert Settings(env={"A": "1"}).given == Given(env={"A": "1"})
