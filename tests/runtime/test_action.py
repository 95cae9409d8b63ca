"""One run: whatever its worker says and writes, what comes out is in order and within limits."""

from __future__ import annotations

import math
import os
import signal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentis_pool.observations import (
    Bundle,
    Cut,
    Display,
    End,
    Error,
    Failure,
    File,
    Left,
    Part,
    Result,
    Start,
    Stream,
)
from mentis_pool.pool_stream import Cells, Given, PickledCall, Run
from mentis_pool.runtime.action import DISPLAY_LIMIT, Action, death


def a_run(**given):
    plain = Run(
        action=7,
        lane=1,
        work=Cells([b""]),
    )
    return msgspec.structs.replace(plain, **given)


def text_display(text, **given):
    return Display(Bundle({"text/plain": text}), **given)


def size(bundle):
    """Bytes of what a display shows."""
    return sum(len(t.encode()) for t in bundle.texts.values()) + sum(
        map(len, bundle.blobs.values())
    )


def test_it_starts_at_the_time_of_the_wall_clock():
    action = Action(a_run())
    assert action.number == 7
    assert action.begin(100.0, 1.7e9) == [Start(1.7e9)]
    assert action.begin(100.0, 1.7e9, 5) == [Start(1.7e9, 5)], "it names its sandbox"


def test_it_ends_with_its_outcome_and_what_it_used():
    action = Action(a_run())
    action.begin(100.0, 1.7e9)
    said = action.finish(Result(text="1"), End(99.0, 0.5, 1000), 102.5)
    # The seconds are the runtime's, not what the worker says.
    assert said == [Result(text="1"), End(2.5, 0.5, 1000)]


@pytest.mark.parametrize(
    ("cpu", "peak", "ends"),
    [
        (math.nan, None, End(0.0, 0.0, None)),
        (math.inf, -5, End(0.0, 0.0, 0)),
        (-1.0, 2**64 - 1, End(0.0, 0.0, 2**53)),
        (0.5, 7, End(0.0, 0.5, 7)),
    ],
)
def test_what_a_worker_says_it_used_is_a_number_all_the_same(cpu, peak, ends):
    assert Action(a_run()).finish(Result(), End(0.0, cpu, peak), 0.0)[-1] == ends


def test_an_outcome_may_be_an_exception_or_no_result_at_all():
    failure = Result(failure=Failure("E", "v", "T"))
    assert Action(a_run()).finish(failure, End(0.0), 0.0)[0] == failure
    died = Error("died", "killed", signal=9)
    assert Action(a_run()).finish(died, End(0.0), 0.0) == [died, End(0.0)]


@pytest.mark.parametrize("said", [Result(text="1"), Error("died", "killed", signal=9)])
@pytest.mark.parametrize(("timeout", "words"), [(1.5, "1.5 s"), (60.0, "60 s"), (0.001, "0.001 s")])
def test_a_run_that_was_too_long_is_a_timeout_whatever_its_worker_says(said, timeout, words):
    action = Action(a_run(timeout=timeout))
    action.begin(0.0, 0.0)
    action.timed_out = "timeout"
    error, end = action.finish(said, End(0.0, 0.5, 9), 2.0)
    assert error == Error("timeout", f"the cell ran for more than {words}")
    assert end == End(2.0, 0.5, 9)


@pytest.mark.parametrize("said", [Result(text="1"), Error("died", "killed", signal=9)])
def test_a_run_that_was_not_done_in_time_has_missed_its_deadline(said):
    action = Action(a_run(timeout=9.0, deadline=1.0))
    action.begin(0.0, 0.0)
    action.timed_out = "deadline"
    error, end = action.finish(said, End(0.0), 2.0)
    assert error == Error("deadline", "it was not done within its deadline")
    assert end == End(2.0)


def test_the_parts_of_a_result_have_a_limit_together():
    action = Action(a_run(work=PickledCall(b"", max_result=1_000_000)))
    assert action.take(Part(b"1" * 600_000))
    assert action.take(Part(b"1" * 400_000))
    assert not action.take(Part(b"1"))


def test_where_a_result_has_no_limit_any_number_of_parts_may_come():
    action = Action(a_run(work=PickledCall(b"", max_result=None)))
    assert all(action.take(Part(bytes(1 << 20))) for _ in range(5000))


def test_a_cell_has_no_part_of_a_result():
    assert not Action(a_run(work=Cells([b"1"]))).take(Part(b"1"))


def test_empty_parts_of_a_result_have_an_end():
    # Each costs its reader some hundred bytes, and time.
    action = Action(a_run(work=PickledCall(b"", max_result=1_000_000)))
    assert sum(action.take(Part(b"")) for _ in range(1000)) < 100


# ── output ──────────────────────────────────────────────────────────────────


def test_output_is_passed_on_at_once():
    action = Action(a_run())
    assert action.output("stdout", b"a") == [Stream("stdout", b"a")]
    assert action.output("stderr", b"b") == [Stream("stderr", b"b")]
    assert action.finish(Result(), End(0.0), 0.0) == [Result(), End(0.0)]


def test_each_stream_is_bounded_by_itself():
    action = Action(a_run(max_output=4))
    assert action.output("stdout", b"abcdefgh") == [Stream("stdout", b"ab")]
    assert action.output("stderr", b"1234") == [Stream("stderr", b"12")]
    assert action.finish(Result(), End(0.0), 0.0) == [
        Cut("stdout", 4),
        Stream("stdout", b"gh"),
        Stream("stderr", b"34"),
        Result(),
        End(0.0),
    ]


def test_with_a_window_all_output_is_passed_on():
    action = Action(a_run(max_output=4, window=10))
    assert action.output("stdout", b"x" * 100) == [Stream("stdout", b"x" * 100)]
    assert action.finish(Result(), End(0.0), 0.0) == [Result(), End(0.0)]


def test_without_a_window_output_may_always_be_read():
    action = Action(a_run(max_output=4))
    action.output("stdout", b"x" * 1000)
    assert action.open


def test_a_full_window_closes_and_opens_as_the_reader_takes():
    action = Action(a_run(window=10))
    assert action.open
    action.output("stdout", b"x" * 6)
    assert action.open
    action.output("stderr", b"x" * 6)
    assert not action.open, "both streams count"
    action.confirm(2)
    assert not action.open, "10 bytes are on their way"
    action.confirm(1)
    assert action.open


def test_a_reader_that_confirms_too_much_gets_no_more_than_its_window():
    action = Action(a_run(window=10))
    action.output("stdout", b"x" * 5)
    action.confirm(10**9)
    action.output("stdout", b"x" * 10)
    assert not action.open


# ── displays ────────────────────────────────────────────────────────────────


def test_a_display_is_passed_on_as_it_is():
    display = Display(Bundle({"text/html": "<b>"}, {"image/png": b"\x89"}), "id", True)
    assert Action(a_run()).shown(display) == [display]


def test_a_display_over_the_limit_is_left_out_and_its_bytes_are_told():
    action = Action(a_run(max_output=10))
    assert action.shown(text_display("123456")) == [text_display("123456")]
    assert action.shown(text_display("12345")) == []
    assert action.shown(text_display("1234")) == [text_display("1234")], "one that fits still goes"
    assert action.shown(text_display("1")) == []
    assert action.finish(Result(), End(0.0), 0.0) == [Cut("displays", 6), Result(), End(0.0)]


def test_what_the_worker_left_out_counts_too():
    action = Action(a_run(max_output=3))
    assert action.shown(Cut("displays", 1000)) == []
    action.shown(text_display("1234"))
    assert action.finish(Result(), End(0.0), 0.0)[0] == Cut("displays", 1004)


def test_text_and_bytes_of_a_display_both_count():
    action = Action(a_run(max_output=3))
    assert action.shown(Display(Bundle({"text/plain": "12"}, {"image/png": b"34"}))) == []
    assert action.finish(Result(), End(0.0), 0.0)[0] == Cut("displays", 4)


def test_the_limit_of_displays_is_in_bytes():
    action = Action(a_run(max_output=10))
    assert action.shown(text_display("é" * 10)) == []
    assert action.finish(Result(), End(0.0), 0.0)[0] == Cut("displays", 20)


def test_empty_displays_have_an_end():
    # Each costs its reader some hundred bytes, though it shows nothing.
    action = Action(a_run(max_output=1000))
    shown = sum(len(action.shown(Display(Bundle({"x" * 100: ""})))) for _ in range(1000))
    assert shown < 1000


def test_empty_displays_have_an_end_where_none_are_wanted():
    action = Action(a_run(max_output=0))
    assert action.shown(Display(Bundle({}))) == []


@pytest.mark.parametrize(
    "display",
    [
        Display(Bundle({"x" * 10_000: ""})),
        Display(Bundle({}, {"x" * 10_000: b""})),
        Display(Bundle({}), "x" * 10_000),
    ],
)
def test_what_a_display_is_called_counts_where_it_is_long(display):
    action = Action(a_run(max_output=6000))
    assert action.shown(display) == [display]
    assert action.shown(display) == []


def test_without_a_limit_displays_have_one_all_the_same():
    action = Action(a_run())
    big = Display(Bundle({}, {"image/png": bytes(DISPLAY_LIMIT // 2)}))
    assert [len(action.shown(big)) for _ in range(3)] == [1, 1, 0]
    assert action.finish(Result(), End(0.0), 0.0)[0] == Cut("displays", DISPLAY_LIMIT // 2)


events = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=20))
    | st.builds(text_display, st.text("ab", max_size=20))
    | st.builds(Cut, st.just("displays"), st.integers(1, 100)),
    max_size=30,
)


@given(
    events,
    st.none() | st.integers(0, 40),
    st.none() | st.integers(1, 40),
    st.sampled_from([None, "timeout", "deadline"]),
)
def test_whatever_comes_is_said_in_the_promised_order_within_the_limits(
    events, max_output, window, timed_out
):
    action = Action(a_run(max_output=max_output, window=window, timeout=1.0))
    said = action.begin(0.0, 0.0)
    for event in events:
        said += action.output(*event) if isinstance(event, tuple) else action.shown(event)
    action.timed_out = timed_out
    said += action.finish(Result(), End(0.0), 1.0)

    assert type(said[0]) is Start
    assert all(type(o) in (Stream, Cut, Display) for o in said[1:-2])
    assert type(said[-2]) is (Error if timed_out else Result)
    assert type(said[-1]) is End
    for name in ("stdout", "stderr"):
        wrote = b"".join(e[1] for e in events if isinstance(e, tuple) and e[0] == name)
        kept = [o.data for o in said if type(o) is Stream and o.stream == name]
        cut = sum(o.bytes for o in said if type(o) is Cut and o.stream == name)
        assert sum(map(len, kept)) + cut == len(wrote)
        if window is not None or max_output is None:
            assert b"".join(kept) == wrote
        else:
            assert sum(map(len, kept)) <= max_output
    came = sum(
        e.bytes if type(e) is Cut else size(e.bundle) for e in events if not isinstance(e, tuple)
    )
    kept = sum(size(o.bundle) for o in said if type(o) is Display)
    cut = sum(o.bytes for o in said if type(o) is Cut and o.stream == "displays")
    assert kept + cut == came
    assert max_output is None or kept <= max_output


# ── how a worker died ───────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
@pytest.mark.parametrize("dumped", [0, 0x80])
def test_a_death_by_signal_names_it(number, dumped):
    assert death(number | dumped) == Error(
        "died", f"the cell's process was killed by {number.name}", signal=int(number)
    )


def test_a_signal_without_a_name_is_told_by_its_number():
    assert death(126) == Error("died", "the cell's process was killed by signal 126", signal=126)


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_a_death_by_exit_names_its_code(code):
    assert death(code << 8) == Error(
        "died", f"the cell's process exited with code {code}", exit_code=code
    )


def test_a_death_is_told_as_the_system_tells_it():
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
    assert death(os.waitpid(pid, 0)[1]).exit_code == 7
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "kill -9 $$"], {})
    assert death(os.waitpid(pid, 0)[1]).signal == 9


def test_a_hostile_count_of_what_was_cut_still_fits_the_wire():
    action = Action(a_run())
    for count in (2**64 - 1, 2**64 - 1, 5, -(2**63)):
        assert action.shown(Cut("displays", count)) == []
    cut = [o for o in action.finish(Result(), End(0.0), 1.0) if isinstance(o, Cut)]
    assert cut == [Cut("displays", 2**53)]


# ── files ───────────────────────────────────────────────────────────────────


def test_a_run_without_files_waits_for_none_and_sends_none():
    action = Action(a_run())
    assert not action.awaits_files
    assert action.fetched(File("a", b"", True)) == "it sent a file"
    assert action.fetched(Left("a", "link")) == "it sent a file"


def test_a_run_waits_for_its_files_and_sends_those_that_are_asked_for():
    action = Action(a_run(given=Given(["data"], {}, ["a"])))
    assert action.awaits_files
    assert action.fetched(File("a", b"", True)) is None
    assert "not asked for" in action.fetched(File("b", b"", True))
    assert not Action(a_run(given=Given(env={"A": "a"}))).awaits_files
