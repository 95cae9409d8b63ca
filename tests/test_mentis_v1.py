"""v1: what the original says is understood, and what is said is what its clients expect."""

from __future__ import annotations

import datetime
import json

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mentis_pool import ProtocolError, mentis_v1
from mentis_pool.mentis_v1 import (
    CellEncoder,
    CommandEncoder,
    EndObservation,
    ErrorObservation,
    ResultObservation,
    StartObservation,
    StreamObservation,
    decode,
)
from mentis_pool.observations import (
    Bundle,
    Cut,
    Display,
    End,
    Error,
    Failure,
    Result,
    Start,
    Stream,
)

TIME = datetime.datetime(2026, 1, 2, 3, 4, 5, 123457, tzinfo=datetime.timezone.utc)
T = '"timestamp":"2026-01-02T03:04:05.123456789Z"'

# The messages of an original runtime, to the letter.
ORIGINAL = [
    (
        '{"observation_type":"start","action_id":"A",' + T + ',"data":{}}',
        StartObservation(action_id="A", timestamp=TIME),
    ),
    (
        '{"observation_type":"stream","action_id":"A",'
        + T
        + ',"stream":"stdout","line":"hi\\nOut[1]: 2\\n"}',
        StreamObservation(action_id="A", timestamp=TIME, stream="stdout", line="hi\nOut[1]: 2\n"),
    ),
    (
        '{"observation_type":"result","action_id":"A",' + T + ',"exit_code":0,"status":"ok"}',
        ResultObservation(action_id="A", timestamp=TIME, exit_code=0, status="ok"),
    ),
    (
        '{"observation_type":"result","action_id":"A",'
        + T
        + ',"exit_code":1,"status":"error","error_name":"UnknownError",'
        '"error_value":"division by zero","traceback":["…"]}',
        ResultObservation(
            action_id="A",
            timestamp=TIME,
            exit_code=1,
            status="error",
            error_name="UnknownError",
            error_value="division by zero",
            traceback=["…"],
        ),
    ),
    (
        '{"observation_type":"result","action_id":"A",' + T + ',"exit_code":3,"error":"b"}',
        ResultObservation(action_id="A", timestamp=TIME, exit_code=3, error="b"),
    ),
    (
        '{"observation_type":"error","action_id":"A",' + T + ',"data":{"error":"why"}}',
        ErrorObservation(action_id="A", timestamp=TIME, data={"error": "why"}),
    ),
    (
        '{"observation_type":"end","action_id":"A",' + T + ',"data":{"exit_code":-1,"error":"E"}}',
        EndObservation(action_id="A", timestamp=TIME, data={"exit_code": -1, "error": "E"}),
    ),
]


@pytest.mark.parametrize(("text", "observation"), ORIGINAL)
def test_what_an_original_says_is_understood(text, observation):
    assert decode(text.encode()) == ([observation], [])
    with_zone = text.replace("Z", "+00:00")
    assert decode(with_zone.encode()) == ([observation], [])
    with_more = text.replace('"A"', '"A","new_field":[1]')
    assert decode(with_more.encode()) == ([observation], [])


def test_an_observation_names_its_type_and_what_is_nested_is_at_hand():
    kinds = [observation.observation_type for _, observation in ORIGINAL]
    assert kinds == ["start", "stream", "result", "result", "result", "error", "end"]
    error, end = ORIGINAL[-2][1], ORIGINAL[-1][1]
    assert (error.error, end.error, end.exit_code) == ("why", "E", -1)
    assert EndObservation(action_id="A", data={"exit_code": "0"}).exit_code is None
    assert EndObservation(action_id="A").error is None
    assert ErrorObservation(action_id="A").error == ""


def test_one_frame_may_hold_several_a_line_each():
    frame = "\n".join(text for text, _ in ORIGINAL) + "\n"
    assert decode(frame.encode()) == ([observation for _, observation in ORIGINAL], [])


@pytest.mark.parametrize(
    "wrong",
    [
        b'{"observation_type":', b"[]", b"1", b"\xff", b'{"observation_type":"mood","action_id":"A"}',
        b'{"observation_type":"stream","action_id":"A"}', b"[" * 10_000,
        b'{"observation_type":"start","action_id":5}', b'{"action_id":"A"}',
        b'{"observation_type":"end","action_id":"A","data":[]}',
    ],
)  # fmt: skip
def test_what_is_no_observation_is_told_and_the_rest_is_understood(wrong):
    good = ORIGINAL[0][0].encode()
    observations, errors = decode(wrong + b"\n" + good)
    assert observations == [ORIGINAL[0][1]]
    [error] = errors
    assert "not an observation of v1" in str(error)
    assert error.payload == wrong[:1024]


# ── a cell, to clients of the original ──────────────────────────────────────


def said(*observations, count=2):
    encoder = CellEncoder("A", count)
    return [json.loads(frame) for o in observations for frame in encoder.encode(o, 1.5)]


def kinds(frames):
    return [frame["observation_type"] for frame in frames]


def lines(frames, stream="stdout"):
    return "".join(frame["line"] for frame in frames if frame.get("stream") == stream)


def test_a_cell_says_start_stream_result_end_and_nothing_but_what_the_original_does():
    assert said(Start(1.0), Stream("stdout", b"hi\n"), Result(text="2"), End(0.1)) == [
        {
            "observation_type": "start",
            "action_id": "A",
            "timestamp": "1970-01-01T00:00:01.500000Z",
            "data": {},
        },
        {
            "observation_type": "stream",
            "action_id": "A",
            "timestamp": "1970-01-01T00:00:01.500000Z",
            "stream": "stdout",
            "line": "hi\n",
        },
        {
            "observation_type": "stream",
            "action_id": "A",
            "timestamp": "1970-01-01T00:00:01.500000Z",
            "stream": "stdout",
            "line": "Out[2]: 2\n",
        },
        {
            "observation_type": "result",
            "action_id": "A",
            "timestamp": "1970-01-01T00:00:01.500000Z",
            "exit_code": 0,
            "status": "ok",
        },
        {
            "observation_type": "end",
            "action_id": "A",
            "timestamp": "1970-01-01T00:00:01.500000Z",
            "data": {"exit_code": 0},
        },
    ]


def test_a_value_stands_on_a_line_of_its_own():
    assert lines(said(Stream("stdout", b"hi"), Result(text="2"))) == "hi\nOut[2]: 2\n"
    assert lines(said(Stream("stderr", b"hi"), Result(text="2"))) == "Out[2]: 2\n"
    assert lines(said(Result(text="a\nb"))) == "Out[2]: \na\nb\n"
    assert kinds(said(Result())) == ["result"]


def test_an_exception_has_its_name_and_its_traceback_in_the_result_and_in_the_output():
    traceback = "Traceback…\nZeroDivisionError: division by zero\n"
    frames = said(
        Result(failure=Failure("ZeroDivisionError", "division by zero", traceback)), End(0)
    )
    assert kinds(frames) == ["stream", "result", "end"]
    assert frames[0]["line"] == traceback
    assert frames[1]["error_name"] == "ZeroDivisionError"
    assert frames[1]["error_value"] == "division by zero"
    assert frames[1]["traceback"] == traceback.splitlines()
    assert (frames[1]["exit_code"], frames[1]["status"]) == (1, "error")
    assert frames[2]["data"] == {"exit_code": 1}


@pytest.mark.parametrize(("kind", "name"), [("timeout", "TimeoutError"), ("died", "SandboxDied")])
def test_a_cell_that_does_not_end_by_itself_has_an_error_and_a_result_all_the_same(kind, name):
    frames = said(Error(kind, "why"), End(0))
    assert kinds(frames) == ["error", "result", "end"]
    assert frames[0]["data"] == {"error": "why"}
    assert (frames[1]["status"], frames[1]["error_name"]) == ("error", name)
    assert frames[2]["data"] == {"exit_code": -1, "error": "why"}


def test_a_display_is_its_text_and_a_cut_says_how_much():
    shown = Display(Bundle({"text/plain": "<A>", "text/html": "<b>A</b>"}))
    assert lines(said(Stream("stdout", b"x"), shown)) == "x\n<A>\n"
    assert said(Display(Bundle({}, {"image/png": b""}))) == []
    assert "5 bytes of displays cut" in lines(said(Cut("displays", 5)))
    assert "5 bytes of stderr cut" in lines(said(Cut("stderr", 5)), "stderr")


def test_text_that_no_encoding_can_hold_is_written_out():
    assert lines(said(Stream("stdout", b"\xff\xed\xa0\x80"))) == "\\udcff\\ud800"


# ── a shell command ─────────────────────────────────────────────────────────


def command(*pieces, code=0, failure=None):
    encoder = CommandEncoder("A")
    frames = [encoder.start(1.5)]
    for stream, data in pieces:
        frames += encoder.output(stream, data, 1.5)
    return [json.loads(frame) for frame in [*frames, *encoder.finish(code, failure, 1.5)]]


def test_a_command_says_a_line_at_a_time_without_its_end_and_loses_none():
    frames = command(("stdout", b"a\n\nb"), ("stderr", b"e\n"), ("stdout", b"c\r\nd"), code=3)
    assert kinds(frames) == ["start", *["stream"] * 5, "result", "end"]
    assert [f["line"] for f in frames if f.get("stream") == "stdout"] == ["a", "", "bc", "d"]
    assert [f["line"] for f in frames if f.get("stream") == "stderr"] == ["e"]
    assert (frames[-2]["exit_code"], frames[-2]["error"]) == (3, "e")
    assert "status" not in frames[-2]
    assert frames[-1]["data"] == {"exit_code": 3}


def test_a_command_that_went_well_has_no_error():
    assert "error" not in command(("stderr", b"only a warning\n"))[-2]


def test_a_character_may_be_cut_between_two_reads():
    frames = command(("stdout", b"\xc3"), ("stdout", b"\xbc\n"))
    assert lines(frames) == "ü"


def test_a_line_without_an_end_is_given_in_pieces():
    line = "ü".encode() * (1 << 19)
    frames = command(*[("stdout", line[i : i + 99_999]) for i in range(0, len(line), 99_999)])
    assert lines(frames).encode() == line
    assert len([f for f in frames if f.get("stream")]) < 5
    frames = command(("stdout", b"x" * (3 << 20)), ("stdout", b"y"))
    assert [len(f["line"]) for f in frames if f.get("stream")] == [3 << 20, 1]


def test_a_command_that_was_ended_has_an_error():
    frames = command(code=137, failure="it ran for more than 1 s")
    assert kinds(frames) == ["start", "error", "result", "end"]
    assert frames[1]["data"] == {"error": "it ran for more than 1 s"}
    assert frames[2]["error"] == "it ran for more than 1 s"
    assert frames[3]["data"] == {"exit_code": -1, "error": "it ran for more than 1 s"}


# ── whatever comes ──────────────────────────────────────────────────────────

FRAGMENTS = [
    *(b'{"observation_type":"', b"start", b"stream", b"result", b"error", b"end", b'",', b"}"),
    *(
        b'"action_id":"A",',
        T.encode() + b",",
        b'"data":{',
        b'"error":',
        b'"exit_code":',
        b'"line":',
    ),
    *(
        b"[" * 5000,
        b"9" * 5000,
        b"1e999",
        b"-1",
        b"null",
        b'"\\ud800"',
        b"\xff",
        b'"x"',
        b"\n",
        b",",
    ),
]
near_frames = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=4), max_size=14).map(
    b"".join
)


@st.composite
def spoilt_frames(draw):
    """A frame of the original with some of its bytes changed."""
    frame = bytearray(draw(st.sampled_from(ORIGINAL))[0].encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        put = draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=3))
        frame[at : at + draw(st.integers(0, 3))] = put
    return bytes(frame)


@settings(max_examples=300, deadline=None)
@given(st.binary() | near_frames | spoilt_frames())
@example(b'{"observation_type":"error","action_id":"A","data":{"error":' + b"[" * 100_000)
def test_any_bytes_are_observations_or_refused(frame):
    observations, wrong = decode(frame)
    assert len(observations) + len(wrong) == sum(bool(line.strip()) for line in frame.split(b"\n"))
    assert {type(each) for each in wrong} <= {ProtocolError}
    for each in observations:
        assert isinstance(getattr(each, "error", None), (str, type(None)))
        assert isinstance(getattr(each, "exit_code", None), (int, type(None)))


# ── paths and bodies ────────────────────────────────────────────────────────


def test_the_paths_are_those_of_the_original():
    assert mentis_v1.space_path("s") == "/v1/spaces/s"
    assert mentis_v1.sandboxes_path("s") == "/v1/spaces/s/sandboxes"
    assert mentis_v1.sandbox_path("s", "b") == "/v1/spaces/s/sandboxes/b"
    assert mentis_v1.sandbox_path("a/b", "c?d") == "/v1/spaces/a%2Fb/sandboxes/c%3Fd"
    assert mentis_v1.stream_path("b") == "/v1/sandboxes/b/stream"
    assert (
        mentis_v1.tool_path("s", "b", "run_shell_command")
        == "/v1/spaces/s/sandboxes/b/tools:run_shell_command"
    )


def test_a_body_holds_only_what_is_set():
    assert msgspec.json.encode(mentis_v1.RunCell("1")) == b'{"code":"1"}'
    assert msgspec.json.encode(mentis_v1.NewSandbox()) == b"{}"
    assert (
        msgspec.json.encode(mentis_v1.NewSpace("n", metadata={})) == b'{"name":"n","metadata":{}}'
    )
