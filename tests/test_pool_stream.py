"""The pool stream: every message travels, the frames are in order, and any bytes are only refused."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mentis_pool.errors import ProtocolError
from mentis_pool.limits import Limits, Which
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
    LeftKind,
    Part,
    Result,
    Start,
    Stream,
    Wanted,
)
from mentis_pool.pool_stream import (
    LONG,
    Begin,
    Broken,
    Cancel,
    Cells,
    Close,
    Closed,
    Command,
    Credit,
    Event,
    Given,
    InUse,
    Measure,
    Measured,
    Open,
    Opened,
    PickledCall,
    Piece,
    Put,
    Refused,
    Run,
    Said,
    Sender,
    Shell,
    Signal,
    Welcome,
    Work,
    commands,
    confirmation,
    events,
    frame_size,
    pieces,
)

pack = msgspec.msgpack.encode

numbers = st.integers(0, 2**63 - 1)
seconds = st.floats(allow_nan=False)
streams = st.sampled_from(["stdout", "stderr"])
bundles = st.builds(
    Bundle, st.dictionaries(st.text(), st.text()), st.dictionaries(st.text(), st.binary())
)
maybe_text = st.none() | st.text()
exceeded = st.builds(
    Exceeded, st.sampled_from(get_args(Which)), numbers | seconds, st.none() | numbers | seconds
)
observations = st.one_of(
    st.builds(Start, seconds, numbers),
    st.builds(Stream, streams, st.binary()),
    st.builds(Cut, streams | st.just("displays"), numbers),
    st.builds(Display, bundles, maybe_text, st.booleans()),
    st.builds(
        Result,
        st.none() | st.binary(),
        maybe_text,
        maybe_text,
        st.none() | bundles,
        st.none() | st.builds(Failure, st.text(), st.text(), st.text()),
        st.none() | st.binary(),
        st.none() | st.integers(-64, 255),
        st.none() | exceeded,
    ),
    st.builds(Part, st.binary()),
    st.builds(File, st.text(), st.binary(), st.booleans()),
    st.builds(Left, st.text(), st.sampled_from(get_args(LeftKind))),
    st.just(Wanted()),
    st.builds(
        Error,
        st.sampled_from(get_args(ErrorKind)),
        st.text(),
        st.none() | st.integers(0, 255),
        st.none() | st.integers(0, 255),
        st.none() | exceeded,
    ),
    st.builds(End, seconds, seconds, st.none() | numbers),
)
each_event = st.one_of(
    st.builds(Welcome, st.text(), st.text(), st.text(), st.text()),
    st.builds(Said, numbers, observations),
    st.builds(Opened, numbers, seconds),
    st.builds(Closed, numbers, st.text(), st.booleans()),
    st.builds(Refused, numbers, st.text()),
    st.builds(Broken, st.text(), st.text(), st.text()),
    st.builds(
        Measured,
        numbers,
        st.none()
        | st.lists(st.builds(InUse, numbers, numbers, seconds, numbers, st.none() | numbers)),
    ),
)
works = st.one_of(
    st.builds(
        Cells,
        st.lists(st.binary()),
        st.dictionaries(st.text(), st.binary()),
        st.none() | st.lists(st.binary()),
    ),
    st.builds(PickledCall, st.binary(), st.booleans()),
    st.builds(Shell, st.binary()),
)
texts = st.lists(st.text())
each_command = st.one_of(
    st.builds(Begin, numbers),
    st.builds(
        Open,
        numbers,
        st.sampled_from(["fresh", "reuse", "session"]),
        st.none() | numbers,
        st.none() | works,
        st.none() | st.just(Limits("1.5G", cpu_seconds=2, disk=None)),
    ),
    st.builds(
        Run,
        action=numbers,
        lane=numbers,
        work=works,
        stdin=st.none() | st.binary(),
        timeout=st.none() | seconds,
        deadline=st.none() | seconds,
        max_output=st.none() | numbers,
        window=st.none() | numbers,
        number=numbers,
        given=st.none() | st.builds(Given, texts, st.dictionaries(st.text(), st.text()), texts),
    ),
    st.builds(Credit, numbers, numbers),
    st.builds(Close, numbers, st.text()),
    st.builds(Cancel, numbers),
    st.builds(Signal, numbers, st.integers(0, 64)),
    st.builds(Measure, numbers),
    st.builds(
        Put,
        numbers,
        st.lists(st.builds(Piece, st.binary(), st.booleans())),
        st.booleans(),
        st.none() | st.text(),
    ),
)

CELLS = Cells([b"1"], {"x": b"p"}, [b"script.py"])
RUN = Run(1, 2, CELLS, b"in", 1.5, 2.5, 10, None)

# In the order of their tags.
COMMANDS = (Open, Run, Credit, Close, Cancel, Signal, Begin, Measure, Put)
EVENTS = (Welcome, Said, Opened, Closed, Refused, Broken, Measured)
WORKS = (Cells, PickledCall, Shell)


# ── messages ────────────────────────────────────────────────────────────────


@given(st.lists(each_command), numbers)
def test_every_command_travels(batch, ack):
    receiver = commands()
    assert receiver.messages(Sender().frame(batch, ack)) == batch
    assert (receiver.seq, receiver.acked) == (1, ack)


@given(st.lists(each_command), st.lists(each_event), numbers)
def test_every_message_travels_in_pieces(some_commands, some_events, ack):
    for receiver, batch in ((commands(), some_commands), (events(), some_events)):
        frame = b"".join(Sender().long_frame(batch, ack))
        assert receiver.messages(frame) == batch
        assert (receiver.seq, receiver.acked) == (1, ack)


@given(st.lists(each_event), numbers)
def test_every_event_travels(batch, ack):
    receiver = events()
    assert receiver.messages(Sender().frame(batch, ack)) == batch
    assert (receiver.seq, receiver.acked) == (1, ack)


def test_no_message_was_forgotten_here():
    assert set(get_args(Command)) == set(COMMANDS)
    assert set(get_args(Event)) == set(EVENTS)
    assert set(get_args(Work)) == set(WORKS)


def test_tags_are_the_wire():
    for kinds in (COMMANDS, EVENTS, WORKS):
        assert [kind.__struct_config__.tag for kind in kinds] == list(range(len(kinds)))


def test_a_frame_is_a_small_array():
    assert msgspec.msgpack.decode(Sender().frame([Cancel(5)], 7)) == [1, 7, [[4, 5]]]


def test_what_a_later_version_adds_to_a_message_is_ignored():
    frame = pack([1, 0, [[3, 5, "reason", False, "new"]]])
    assert events().messages(frame) == [Closed(5, "reason", lost=False)]


def test_what_an_earlier_version_did_not_say_is_as_it_was():
    assert events().messages(pack([1, 0, [[3, 5, "reason"]]])) == [Closed(5, "reason", lost=True)]
    assert commands().messages(pack([1, 0, [[0, 5, "fresh"]]])) == [Open(5, "fresh")]


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_batch_may_be_of_any_size(size):
    batch = [Credit(i, i) for i in range(size)]
    assert commands().messages(Sender().frame(batch, 0)) == batch


@pytest.mark.parametrize("long", [b"x" * (LONG + 1), memoryview(b"x" * (LONG + 1))])
def test_what_is_long_is_a_piece_by_itself_and_not_copied(long):
    run = Run(1, 1, PickledCall(long, path=["/a"]), number=3)
    first, other, last = pieces((1, 0, [run, Close(1)]))
    assert other is long
    receiver = commands()
    assert receiver.messages(b"".join((first, other, last))) == [run, Close(1)]


def test_what_ends_with_what_is_long_has_no_piece_after_it():
    assert [len(piece) for piece in pieces(Part(b"x" * (LONG + 1)))][1:] == [LONG + 1]


def test_what_is_as_long_as_may_be_copied_is_copied():
    assert len(pieces(Part(b"x" * LONG))) == 1


def test_a_call_is_part_of_what_it_came_in():
    frame = Sender().frame([Run(1, 1, PickledCall(b"x" * 1000))], 0)
    (run,) = commands().messages(frame)
    assert run.work.pickled.obj is frame


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**24])
def test_output_may_be_of_any_size(size):
    event = Said(1, Stream("stdout", b"\xff" * size))
    assert events().messages(Sender().frame([event], 0)) == [event]


def test_the_name_of_a_script_may_be_no_utf8():
    # sys.argv holds the bytes of a file's name that are no UTF-8 as lone surrogates.
    run = msgspec.structs.replace(RUN, work=Cells([b""], argv=[b"caf\xe9.py"]))
    assert commands().messages(Sender().frame([run], 0)) == [run]


def test_a_message_is_not_to_be_changed():
    with pytest.raises(AttributeError):
        RUN.action = 2


# ── frames ──────────────────────────────────────────────────────────────────


def test_frames_are_numbered_from_one():
    sender, receiver = Sender(), events()
    assert receiver.seq == 0
    for seq in range(1, 200):
        receiver.messages(sender.frame([Opened(seq, 0.0)], seq * 2))
        assert (receiver.seq, receiver.acked) == (seq, seq * 2)


def test_each_direction_counts_for_itself():
    one, other = Sender(), Sender()
    assert one.frame([], 0) == other.frame([], 0)
    assert one.frame([], 0) != one.frame([], 0)


def test_a_frame_that_comes_twice_is_heard_once():
    sender, receiver = Sender(), events()
    frames = [sender.frame([Opened(n, 0.0)], n) for n in (1, 2, 3)]
    heard = [receiver.messages(frame) for frame in (*frames, *frames, frames[1])]
    assert heard == [[Opened(1, 0.0)], [Opened(2, 0.0)], [Opened(3, 0.0)], [], [], [], []]
    assert (receiver.seq, receiver.acked) == (3, 3)


def test_a_confirmation_has_no_place_among_the_frames():
    sender, receiver = Sender(), events()
    receiver.messages(sender.frame([], 0))
    assert receiver.messages(confirmation(7)) == []
    assert (receiver.seq, receiver.acked) == (1, 7)
    # What came before it on another way takes nothing back.
    receiver.messages(confirmation(5))
    assert receiver.acked == 7


def test_what_is_not_confirmed_is_kept_and_sent_once_more():
    sender = Sender()
    frames = [sender.frame([Close(n)], 0) for n in range(1, 6)]
    assert sender.kept_bytes == sum(map(len, frames))
    sender.confirmed(2)
    sender.confirmed(1)
    assert sender.kept_bytes == sum(map(len, frames[2:]))
    assert sender.rest(2) == frames[2:]
    assert sender.rest(4) == frames[4:]
    assert sender.rest(5) == []
    assert sender.kept_bytes == 0
    more = sender.frame([Close(6)], 0)
    assert sender.rest(5) == [more]


def test_a_long_frame_is_kept_until_it_is_confirmed_as_any_other():
    sender = Sender()
    long = sender.long_frame([Run(1, 1, PickledCall(b"x" * (LONG + 1)))], 0)
    short = sender.frame([Close(1)], 0)
    assert sender.kept_bytes == sum(map(len, [*long, short])) == frame_size(long) + len(short)
    assert sender.rest(0) == [long, short]
    sender.confirmed(1)
    assert sender.kept_bytes == len(short)
    assert sender.rest(1) == [short]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have ways of their own")
def test_memory_of_what_was_long_is_used_again():
    program = (
        "import resource\n"
        "from mentis_pool.pool_stream import keep_memory\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "keep_memory()\n"
        "for _ in range(5):\n"
        "    before = faults()\n"
        "    one = b'x' * 10_000_000\n"
        "    two = bytearray(one)\n"
        "    del one, two\n"
        "print(faults() - before)"
    )
    ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert int(ran.stdout) < 100


@pytest.mark.parametrize("seen", [-1, 0, 1, 4])
def test_what_cannot_have_been_seen_is_refused(seen):
    sender = Sender()
    for n in range(3):
        sender.frame([Close(n)], 0)
    sender.confirmed(2)
    with pytest.raises(ProtocolError):
        sender.rest(seen)
    assert len(sender.rest(2)) == 1


def test_what_was_never_sent_cannot_be_confirmed():
    with pytest.raises(ProtocolError, match="frame 1 is confirmed, and 0 was the last"):
        Sender().confirmed(1)


@given(st.data())
def test_over_any_connections_each_message_is_heard_once_and_in_order(data):
    """Frames are lost from some point on, again and again, and the rest is sent once more."""
    sender, receiver = Sender(), commands()
    heard, sent = [], 0
    for _ in range(data.draw(st.integers(1, 6))):
        way = sender.rest(receiver.seq)
        for _ in range(data.draw(st.integers(0, 5))):
            sent += 1
            way.append(sender.frame([Close(sent)], 0))
        for frame in way[: data.draw(st.integers(0, len(way)))]:
            heard += receiver.messages(frame)
            if data.draw(st.booleans()):
                sender.confirmed(receiver.seq)
    for frame in sender.rest(receiver.seq):
        heard += receiver.messages(frame)
    assert heard == [Close(n) for n in range(1, sent + 1)]


@pytest.mark.parametrize("seq", [-1, 0, 4, 5, 2**64 - 1])
def test_a_frame_that_is_not_the_next_is_refused(seq):
    receiver = events()
    receiver.messages(pack([1, 0, []]))
    receiver.messages(pack([2, 0, []]))
    frame = pack([seq, 9, [Opened(1, 0.0)]])
    with pytest.raises(ProtocolError, match=f"frame {seq} came after frame 2") as caught:
        receiver.messages(frame)
    assert caught.value.payload == frame
    assert (receiver.seq, receiver.acked) == (2, 0)
    assert receiver.messages(pack([3, 0, []])) == []


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"text",
        pack(None),
        pack([]),
        pack([1, 0]),
        pack([1, 0, [], 0]),
        pack({"seq": 1}),
        pack(["1", 0, []]),
        pack([1.5, 0, []]),
        pack([True, 0, []]),
        pack([None, 0, []]),
        pack([1, None, []]),
        pack([1, 0, None]),
        pack([1, 0, [None]]),
        pack([1, 0, [[]]]),
        pack([1, 0, [[4, 1]]]),
        pack([1, 0, [["0", 1]]]),
        pack([1, 0, [[2, 1]]]),
        pack([1, 0, [[2, "1", 0.0]]]),
        pack([1, 0, [[1, 1, [9]]]]),
        pack([1, 0, [[1, 1, None]]]),
        pack([1, 0, []]) + b"\x00",
        b"\x91" * 100_000,
        b"\x93\x01\x00\x91\x95\x00\xa0\xa0\xa0" + b"\x91" * 100_000,
        b"\x93\x01\x00\xdd\xff\xff\xff\xff",
        b"\x93\x01\x00\xc6\xff\xff\xff\xff",
        b"\x93\x01\x00\x91\x93\x03\x01\xdb\xff\xff\xff\xff",
    ],
    ids=lambda frame: repr(frame[:24]),
)
def test_what_is_no_frame_is_refused_with_its_first_bytes(frame):
    receiver = events()
    with pytest.raises(ProtocolError) as caught:
        receiver.messages(frame)
    assert caught.value.payload == frame[:1024]
    assert (receiver.seq, receiver.acked) == (0, 0)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80"], ids=repr)
def test_text_that_is_no_utf8_is_refused(text):
    frame = pack([1, 0, [[3, 5, "why"]]]).replace(b"\xa3why", bytes((0xA0 + len(text),)) + text)
    with pytest.raises(ProtocolError):
        events().messages(frame)


def test_a_command_is_no_event():
    with pytest.raises(ProtocolError):
        events().messages(Sender().frame([RUN], 0))
    with pytest.raises(ProtocolError):
        commands().messages(Sender().frame([Welcome("s", "v", "p")], 0))


@settings(max_examples=300)
@given(st.binary())
@example(b"\x93\x01\x00\x91\x93\x03\x05\xa1\xff")
def test_any_bytes_are_refused_or_a_frame(data):
    for receiver in (events(), commands()):
        try:
            receiver.messages(data)
        except ProtocolError as error:
            assert receiver.seq == 0
            assert error.payload == data[:1024]


SAMPLE = Sender().frame(
    [
        Welcome("s", "v", "p"),
        Said(1, Display(Bundle({"text/plain": "x"}, {"image/png": b"y"}), "id")),
        Said(1, Result(b"v", "1", "int", None, Failure("E", "v", "t"))),
        Said(2, Part(b"p")),
        Closed(2, "why"),
        Broken("why", "t", "o"),
        Measured(3, [InUse(1, 2, 0.5, 3, 4)]),
    ],
    3,
)
RUN_SAMPLE = Sender().frame(
    [
        Begin(2),
        Open(2, "fresh", 5, PickledCall(b"c"), Limits()),
        RUN,
        Run(2, 2, Shell(b"ls")),
        Credit(1, 5),
        Signal(1, 2),
        Cancel(1),
        Measure(3),
    ],
    3,
)


@settings(max_examples=300)
@given(st.data())
def test_a_frame_with_wrong_bytes_is_refused_or_another_frame(data):
    make, sample = data.draw(st.sampled_from([(events, SAMPLE), (commands, RUN_SAMPLE)]))
    frame = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        make().messages(bytes(frame))
    except ProtocolError as error:
        assert error.payload == bytes(frame)


@pytest.mark.parametrize(("make", "sample"), [(events, SAMPLE), (commands, RUN_SAMPLE)])
def test_part_of_a_frame_is_none(make, sample):
    for end in range(len(sample)):
        with pytest.raises(ProtocolError):
            make().messages(sample[:end])
    assert make().messages(sample)


def test_what_is_for_several_runs_of_a_process_goes_ahead():
    goes = [
        (state, tasks)
        for state in ("fresh", "reuse", "new", "session")
        for tasks in (None, 5)
        if Open(1, state, tasks).goes_ahead
    ]
    assert goes == [("reuse", None)]
