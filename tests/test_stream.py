"""The stream drains what is there without waiting, however it is cut into pieces."""

from __future__ import annotations

import select
import threading
import time

import pytest
from fakes import FakeRuntime, websocket_frame

from mentis_pool import ProtocolError, RuntimeUnavailable
from mentis_pool import stream as stream_module
from mentis_pool.observations import Start, Stream
from mentis_pool.pool_stream import (
    LONG,
    Close,
    Closed,
    Open,
    Opened,
    PickledCall,
    Run,
    Said,
)
from mentis_pool.stream import PoolStream, StreamLost, unix_link


@pytest.fixture
def fake():
    fake = FakeRuntime()
    yield fake
    fake.sock.close()
    fake.client.close()


@pytest.fixture
def stream(fake):
    fake.serve(fake.welcome())
    stream = PoolStream(unix_link(fake.client, 5))
    yield stream
    stream.close()


def drained(stream, count):
    """Drain until so many events have come."""
    events = []
    deadline = time.monotonic() + 5
    while len(events) < count:
        assert time.monotonic() < deadline
        events += stream.drain()
    return events


def test_the_first_event_is_the_welcome(stream):
    assert stream.welcome.session == "fake"
    assert stream.drain() == []


def test_events_that_come_with_the_welcome_are_not_lost(fake):
    fake.serve(fake.welcome(), Opened(1, 0.5))
    stream = PoolStream(unix_link(fake.client, 5))
    assert drained(stream, 1) == [Opened(1, 0.5)]


def test_a_frame_may_come_in_any_pieces_and_draining_never_waits(fake, stream):
    events = [Said(1, Stream("stdout", b"x" * size)) for size in (0, 10, 200, 70_000)]
    raw = b"".join(fake.frame(event) for event in events) + fake.frame(*events)
    got = []
    cuts = [1, 2, 3, 5, 9, 100, 220, 1000, 70_300, 70_301, len(raw)]
    for begin, end in zip([0, *cuts], cuts, strict=False):
        fake.sock.sendall(raw[begin:end])
        begun = time.monotonic()
        got += stream.drain()
        assert time.monotonic() - begun < 0.5
    got += drained(stream, 8 - len(got))
    assert got == events + events


def test_frames_of_every_form_are_read_whole_and_cut(fake, stream):
    # Their length is in the first two bytes, or in two or eight more.
    for size in (*range(105, 125), 65_520, 65_530, 65_540):
        event = Said(1, Stream("stdout", b"x" * size))
        for cut in (0, 1, 2, 3, 4, -1):
            raw = fake.frame(event)
            fake.sock.sendall(raw[:cut])
            assert stream.drain() == []
            fake.sock.sendall(raw[cut:])
            assert drained(stream, 1) == [event]


def test_many_small_frames_are_drained_at_once(fake, stream):
    fake.sock.sendall(b"".join(fake.frame(Said(i, Start(0.0))) for i in range(100)))
    assert [event.action for event in drained(stream, 100)] == list(range(100))


def test_commands_arrive_in_one_frame(fake, stream):
    stream.send([Open(1, "fresh"), Close(1)])
    assert fake.hear() == [Open(1, "fresh"), Close(1)]


def test_a_large_frame_is_sent_whole_while_the_other_side_reads_slowly(fake, stream):
    from mentis_pool.pool_stream import Cells

    run = Run(1, 1, Cells([b"x" * 3_000_000]))
    sender = threading.Thread(target=stream.send, args=([run],))
    sender.start()
    assert fake.hear() == [run]
    sender.join(5)
    assert not sender.is_alive()


@pytest.mark.parametrize("size", [LONG + 1, 262_144, 1_000_000])
def test_a_long_call_is_sent_whole_among_others(fake, stream, size):
    runs = [Run(i, 1, PickledCall(b"x" * each)) for i, each in enumerate((10, size, size))]
    sender = threading.Thread(target=stream.send, args=([*runs, Close(1)],))
    sender.start()
    assert fake.hear() == [*runs, Close(1)]
    sender.join(5)
    assert not sender.is_alive()


def test_the_end_in_the_middle_of_a_long_frame_is_told(fake, stream):
    fake.sock.sendall(fake.frame(Said(1, Stream("stdout", b"x" * 100_000)))[:90_000])
    assert stream.drain() == []
    fake.sock.close()
    with pytest.raises(StreamLost):
        drained(stream, 1)


def test_a_ping_is_answered_while_draining(fake, stream):
    fake.sock.sendall(websocket_frame(9, b"are you there") + fake.frame(Opened(1, 0.0)))
    assert drained(stream, 1) == [Opened(1, 0.0)]
    assert fake.sock.recv(2)[0] == 0x8A


def test_what_came_before_the_end_is_given_before_the_end_is_told(fake, stream):
    fake.sock.sendall(fake.frame(Closed(1, "why")))
    fake.sock.close()
    assert drained(stream, 1) == [Closed(1, "why")]
    for _ in range(2):
        with pytest.raises(StreamLost):
            stream.drain()


def test_a_close_frame_ends_the_stream_with_its_reason(fake, stream):
    fake.sock.sendall(
        fake.frame(Closed(1, "a")) + websocket_frame(8, (1002).to_bytes(2, "big") + b"no good")
    )
    assert drained(stream, 1) == [Closed(1, "a")]
    with pytest.raises(StreamLost, match="no good"):
        stream.drain()


@pytest.mark.parametrize(
    "raw",
    [
        websocket_frame(1, b"text"),
        websocket_frame(2, b"\xc1"),
        websocket_frame(2, b"\x93\x05\x00\x90"),
    ],
)
def test_what_is_no_pool_stream_is_a_protocol_error(fake, stream, raw):
    fake.sock.sendall(raw)
    with pytest.raises(ProtocolError):
        drained(stream, 1)


@pytest.mark.parametrize("opcode", [0, 1, 2])
def test_a_message_that_announces_itself_as_endless_ends_the_stream(fake, stream, opcode):
    fake.sock.sendall(fake.frame(Closed(1, "a")))
    fake.sock.sendall(bytes([0x80 | opcode, 0x7F]) + (1 << 62).to_bytes(8, "big") + b"x" * 100)
    assert drained(stream, 1) == [Closed(1, "a")]
    with pytest.raises(StreamLost, match=f"a message of {1 << 62} bytes"):
        drained(stream, 1)


def test_a_message_may_not_be_endless_in_pieces_either(fake, stream, monkeypatch):
    monkeypatch.setattr(stream_module, "LONGEST", 1000)
    # Each message is counted for itself, a ping not at all, in between or not.
    first, second = (fake.frame(Said(1, Stream("stdout", b"x" * 900))) for _ in range(2))
    fake.sock.sendall(first + websocket_frame(9, b"p" * 125) + second)
    assert len(drained(stream, 2)) == 2
    begin, more = b"\x02" + bytes([100]) + b"x" * 100, b"\x00" + bytes([100]) + b"x" * 100
    fake.sock.sendall(begin + more * 5)
    time.sleep(0.05)
    assert stream.drain() == []
    fake.sock.sendall(more * 5)
    with pytest.raises(StreamLost, match="a message of 1100 bytes"):
        drained(stream, 1)


def test_sending_to_a_runtime_that_is_gone_is_told_by_the_end(fake, stream):
    fake.sock.close()
    for _ in range(3):
        stream.send([Close(1)])
    with pytest.raises(StreamLost):
        stream.drain()


def test_sending_to_a_runtime_that_does_not_read_ends_in_time(fake, stream, monkeypatch):
    from mentis_pool.pool_stream import Cells

    monkeypatch.setattr(stream_module, "SEND_TIMEOUT", 0.2)
    began = time.monotonic()
    stream.send([Run(1, 1, Cells([b"x" * 10_000_000]))])
    assert time.monotonic() - began < 10
    with pytest.raises(StreamLost):
        stream.drain()


@pytest.mark.parametrize(
    ("fake_runtime", "message"),
    [
        (FakeRuntime(subprotocol=None), "Invalid WebSocket Header"),
        (FakeRuntime(status="404 Not Found"), "404"),
    ],
)
def test_what_is_no_runtime_is_said_to_be_none(fake_runtime, message):
    fake_runtime.serve(fake_runtime.welcome())
    with pytest.raises(RuntimeUnavailable, match=message):
        PoolStream(unix_link(fake_runtime.client, 5))
    fake_runtime.sock.close()


def test_a_runtime_that_says_nothing_is_given_up_in_time(fake):
    with pytest.raises(RuntimeUnavailable, match="timed out"):
        PoolStream(unix_link(fake.client, 0.2))


def test_a_runtime_that_says_something_else_first_is_none(fake):
    fake.serve(Opened(1, 0.0))
    with pytest.raises(RuntimeUnavailable, match="Welcome"):
        PoolStream(unix_link(fake.client, 5))


def test_an_end_that_comes_with_what_was_said_before_it_is_told_as_well(fake, stream, eventually):
    fake.sock.sendall(fake.frame(Closed(1, "gone")))
    fake.sock.close()
    eventually(lambda: select.select([stream], [], [], 0)[0])
    time.sleep(0.05)
    assert stream.drain() == [Closed(1, "gone")]
    # Whoever watches it looks again: it is readable still, or known to have ended.
    assert stream.wait() == 0.0 or select.select([stream], [], [], 0)[0]
    with pytest.raises(StreamLost):
        stream.drain()


def test_of_much_that_has_arrived_some_is_given_and_the_rest_is_known_of(
    fake, stream, monkeypatch, eventually
):
    monkeypatch.setattr(stream_module, "_DRAINED", 1000)
    for number in range(5):
        fake.sock.sendall(fake.frame(Closed(number, "x" * 600)))
    eventually(lambda: select.select([stream], [], [], 0)[0])
    time.sleep(0.05)
    counts = []
    while stream.wait() == 0.0 or not counts:
        counts.append(len(stream.drain()))
    assert counts == [2, 2, 1]
    assert stream.drain() == []


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"\xff", b"{}", b"5", b'{"message":' + b"9" * 9000]
)
def test_any_answer_that_refuses_has_words(body):
    assert stream_module.refused("http://x", 404, body).startswith("http://x refuses with HTTP 404")
