"""What the processes of a runtime say: whole messages from any pieces, and a limit for each."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mentis_pool.errors import ProtocolError
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
from mentis_pool.pool_stream import LONG, Cells, Given, PickledCall, Piece, Put, Shell
from mentis_pool.runtime.wire import (
    MAX_MESSAGE,
    Died,
    Done,
    Drain,
    EndSandbox,
    Execute,
    Executed,
    Failed,
    Fork,
    Forked,
    FromInit,
    FromWorker,
    FromZygote,
    Idle,
    NewSandbox,
    NoFiles,
    Ready,
    Retire,
    Retired,
    RunWork,
    Signal,
    Signalled,
    ToInit,
    ToWorker,
    ToZygote,
    Unpacker,
    pack,
    pack_long,
    unpack_run,
)

EACH = [
    (ToZygote, [NewSandbox("/tmp/é"), EndSandbox("/tmp/é")]),
    (FromZygote, [Ready(), Failed("no IPython")]),
    (ToInit, [Fork(), Retire(5, True), Signal(5, 9), Execute(7, b"ls", b"", {"A": "é"})]),
    (FromInit, [Forked(5), Died(5, 9, 0.5, 2**40), Retired(5), Executed(7, 5), Signalled(5)]),
    (
        ToWorker,
        [
            RunWork(3, Cells([b"1", b"\xff"], {"x": b"p"}, [b"a.py", b"\xff"]), b"in", "keep"),
            RunWork(3, Cells([]), None),
            RunWork(0, PickledCall(b"\x80", True), None, "initialize"),
            RunWork(3, Shell(b"ls \xff"), b"", given=Given(["é"], {"A": "é"}, ["*"])),
            Put(3, [Piece(b"\x80", False), Piece(b"", True)], True, "why"),
            NoFiles(),
        ],
    ),
    (
        FromWorker,
        [
            Display(Bundle({"text/plain": "é"}, {"image/png": b"\x89"}), "id", True),
            Cut("displays", 2**40),
            Done(
                3,
                Result(b"v", "1", "int", Bundle({}), Failure("E", "", "T")),
                End(0.5, 0.25, 2**40),
            ),
            Done(3, Result(pickled=b"\x80", exit_code=3), End(0.5), (b"\xff", None), 7),
            Drain(7),
            Done(3, Error("payload", "what"), End(0.5)),
            Part(b"\x80"),
            File("a/é", b"\x80", True),
            Left("é", "link"),
            Idle(),
        ],
    ),
]


@pytest.mark.parametrize(("kind", "messages"), EACH, ids=lambda v: getattr(v, "__name__", ""))
def test_every_message_travels(kind, messages):
    assert {type(m) for m in messages} == set(get_args(kind) or [kind])
    assert Unpacker(kind).feed(b"".join(map(pack, messages))) == messages


@pytest.mark.parametrize(("kind", "messages"), EACH, ids=lambda v: getattr(v, "__name__", ""))
def test_messages_may_be_cut_at_every_byte(kind, messages):
    data = b"".join(map(pack, messages))
    for at in range(len(data) + 1):
        unpacker = Unpacker(kind)
        assert unpacker.feed(data[:at]) + unpacker.feed(data[at:]) == messages
    unpacker = Unpacker(kind)
    assert [m for b in data for m in unpacker.feed(bytes((b,)))] == messages


@given(st.lists(st.integers(0, 2**31), max_size=20), st.data())
def test_a_message_is_there_with_its_last_byte_and_not_before(pids, data):
    stream = b"".join(pack(Retire(pid, False)) for pid in pids)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    unpacker = Unpacker(ToInit)
    got = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += unpacker.feed(stream[begin:end])
        whole = []
        for pid in pids:
            if sum(len(pack(Retire(p, False))) for p in [*whole, pid]) > end:
                break
            whole.append(pid)
        assert got == [Retire(pid, False) for pid in whole]


def test_a_run_that_is_whole_can_be_read_by_itself():
    run = RunWork(3, PickledCall(b"\x80"), None)
    assert unpack_run(pack(run)) == run


def test_nothing_is_no_message():
    assert Unpacker(ToInit).feed(b"") == []


def test_a_message_is_its_length_and_an_array():
    assert pack(Signal(5, 9)) == b"\x00\x00\x00\x04" + msgspec.msgpack.encode([12, 5, 9])


def test_what_was_read_is_not_kept():
    unpacker = Unpacker(ToInit)
    for _ in range(100):
        unpacker.feed(pack(Fork()) * 100 + b"\x00")
        unpacker.feed(pack(Fork())[1:])
    assert len(unpacker._pending) == 0


def test_a_message_of_some_megabytes_travels():
    message = Display(Bundle({}, {"image/png": b"\x89" * (8 << 20)}))
    data = pack(message)
    unpacker = Unpacker(FromWorker)
    got = [m for i in range(0, len(data), 1 << 18) for m in unpacker.feed(data[i : i + (1 << 18)])]
    assert got == [message]


@pytest.mark.parametrize("step", [1000, 1 << 16, 1 << 18])
@pytest.mark.parametrize("before", [0, 1, 300])
def test_long_messages_and_short_ones_come_in_any_pieces(step, before):
    messages = [Part(b"a" * size) for size in (10, LONG - 9, LONG, LONG + 1, 5, 300_000, 0, 70_000)]
    messages += [Idle()] * before
    data = b"".join(map(pack, [*messages[-before:], *messages] if before else messages))
    unpacker = Unpacker(FromWorker)
    got = [m for i in range(0, len(data), step) for m in unpacker.feed(data[i : i + step])]
    assert got[before:] == messages
    assert unpacker.room() is None


def test_what_comes_of_a_long_message_may_be_put_where_it_stays():
    run = RunWork(3, PickledCall(b"x" * 200_000), None)
    data = memoryview(pack(run))
    unpacker = Unpacker(ToWorker)
    assert unpacker.feed(data[:100]) == []
    at, got = 100, []
    while (room := unpacker.room()) is not None:
        assert len(room) == len(data) - at
        count = min(len(room), 1 << 16)
        room[:count] = data[at : at + count]
        got += unpacker.came(count)
        at += count
    assert got == [run]
    assert unpacker.feed(pack(run)) == [run]


@pytest.mark.parametrize("message", [Part(b"x" * 200_000), Part(b"x"), Idle()], ids=lambda m: "")
def test_a_message_in_pieces_is_the_same_message(message):
    packed = pack_long(message)
    assert Unpacker(FromWorker).feed(b"".join(packed)) == [message]
    assert len(packed) == 1 or packed[1] is message.data


def test_a_long_message_that_is_none_is_refused_once_it_is_whole():
    unpacker = Unpacker(FromWorker)
    data = framed(b"\xc1" * 100_000)
    assert unpacker.feed(data[:-1]) == []
    with pytest.raises(ProtocolError, match="not a message"):
        unpacker.feed(data[-1:])


# ── what a worker sends is not trusted ──────────────────────────────────────


@pytest.mark.parametrize("size", [MAX_MESSAGE + 1, 2**32 - 1])
def test_a_message_that_would_be_too_long_is_refused_with_its_length(size):
    unpacker = Unpacker(FromWorker)
    with pytest.raises(ProtocolError, match=str(size)):
        unpacker.feed(size.to_bytes(4, "big"))


def test_a_message_of_the_largest_size_is_waited_for():
    assert Unpacker(FromWorker).feed(MAX_MESSAGE.to_bytes(4, "big") + b"x" * 100) == []


@pytest.mark.parametrize(
    "message",
    [
        Start(0.0),
        Stream("stdout", b"forged"),
        Result(),
        End(0.0),
        Forked(1),
        Died(1, 0, 0.0, 0),
        RunWork(3, Cells([]), None),
        Ready(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_worker_may_say_only_what_a_worker_says(message):
    with pytest.raises(ProtocolError):
        Unpacker(FromWorker).feed(pack(message))


def framed(body):
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x91\x63",
        b"\xc0",
        b"\x91" * 100_000,
        b"\x93\x04\xc0\xc0" + b"\x00",
        b"\x92\x06\xa1a",
        b"\x92\x06\xcb",
        b"\x94\x04\xc6\xff\xff\xff\xff",
        b"\x96\x06\xca\x00\x00\x00\x00\x00\xc0" + b"\x91" * 100_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_message_is_refused_with_its_first_bytes(body):
    with pytest.raises(ProtocolError) as caught:
        Unpacker(FromWorker).feed(framed(body))
    assert caught.value.payload == body[:1024]


@pytest.mark.parametrize("text", [b"\xff\xfe\xfd", b"\xed\xa0\x80"], ids=repr)
def test_text_that_is_no_utf8_is_refused(text):
    with pytest.raises(ProtocolError):
        message = Done(3, Error("payload", "why"), End(0.0))
        Unpacker(FromWorker).feed(pack(message).replace(b"why", text))


@settings(max_examples=300)
@given(st.binary())
@example(b"\x95\x20\x03\x93\x05\xa7payload\xa1\xff\x92\x06\x00\xc2")
def test_any_bytes_are_refused_or_a_message(body):
    try:
        (message,) = Unpacker(FromWorker).feed(framed(body))
    except ProtocolError:
        return
    assert type(message) in get_args(FromWorker)


@settings(max_examples=300)
@given(st.data())
def test_a_message_with_wrong_bytes_is_refused_or_another_or_waited_for(data):
    stream = bytearray(b"".join(map(pack, EACH[-1][1])))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        Unpacker(FromWorker).feed(bytes(stream))
    except ProtocolError:
        pass
