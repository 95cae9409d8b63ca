"""The bound of a stream: head, an exact number, tail."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mentis_pool.observations import Cut, Stream
from mentis_pool.output import StreamBound
from mentis_pool.text import to_text, whole_characters

characters = st.sampled_from(["a", "\n", "é", "€", "😀", "\ud800", "\udcff"]).map(
    lambda c: c.encode("utf-8", "surrogatepass")
)
any_bytes = st.binary(max_size=80) | st.lists(characters, max_size=30).map(b"".join)
limits = st.none() | st.integers(0, 40)


def chunked(data):
    """Some way of cutting these bytes into chunks, empty ones among them."""
    cuts = st.lists(st.integers(0, len(data)), max_size=12).map(sorted)
    return cuts.map(lambda at: [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)])


def ways(data):
    """Every way of cutting these few bytes into chunks."""
    for count in range(len(data) + 1):
        for at in itertools.combinations(range(1, len(data)), count):
            yield [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def bounded(chunks, limit):
    """What is passed on: the head's bytes, the number cut, the tail's bytes."""
    bound = StreamBound("stdout", limit)
    fed = [o for chunk in chunks for o in bound.feed(chunk)]
    assert all(type(o) is Stream and o.stream == "stdout" and o.data for o in fed)
    last = bound.finish()
    assert bound.finish() == []
    cut = sum(o.bytes for o in last if type(o) is Cut)
    assert [type(o) for o in last] in ([], [Stream], [Cut], [Cut, Stream])
    assert all(o.stream == "stdout" for o in last)
    assert all(o.bytes > 0 if type(o) is Cut else o.data for o in last)
    head = b"".join(o.data for o in fed)
    tail = b"".join(o.data for o in last if type(o) is Stream)
    return (head, cut, tail) if cut else (head + tail, 0, b"")


@given(any_bytes, limits, st.data())
def test_head_and_cut_and_tail_are_all_there_was(data, limit, draw):
    head, cut, tail = bounded(draw.draw(chunked(data)), limit)
    assert len(head) + cut + len(tail) == len(data)
    assert data.startswith(head)
    assert data.endswith(tail)
    if limit is not None:
        assert len(head) + len(tail) <= limit


@given(any_bytes, st.data())
def test_without_a_limit_nothing_is_cut(data, draw):
    assert bounded(draw.draw(chunked(data)), None) == (data, 0, b"")


@given(any_bytes, st.integers(0, 10), st.data())
def test_nothing_is_cut_that_is_not_over_the_limit(data, more, draw):
    assert bounded(draw.draw(chunked(data)), len(data) + more) == (data, 0, b"")


@given(any_bytes, limits, st.data())
def test_how_the_output_was_cut_into_chunks_does_not_matter(data, limit, draw):
    assert bounded(draw.draw(chunked(data)), limit) == bounded([data], limit)


@pytest.mark.parametrize("data", ["aé€", "😀b", "éé\udcff"])
def test_no_way_of_chunking_matters(data):
    data = data.encode("utf-8", "surrogatepass")
    for limit in range(len(data) + 2):
        assert {bounded(chunks, limit) for chunks in ways(data)} == {bounded([data], limit)}


@given(st.lists(characters, max_size=30).map(b"".join), st.integers(0, 40), st.data())
def test_characters_are_not_cut_apart(data, limit, draw):
    head, cut, tail = bounded(draw.draw(chunked(data)), limit)
    assert to_text(head) + to_text(data[len(head) : len(head) + cut]) + to_text(tail) == to_text(
        data
    )


@given(any_bytes, st.integers(8, 40), st.data())
def test_what_is_kept_is_nearly_all_that_may_be(data, limit, draw):
    head, cut, tail = bounded(draw.draw(chunked(data)), limit)
    if cut:
        assert len(head) >= limit // 2 - 3
        assert len(tail) >= limit // 2 - 3
        assert len(head) + len(tail) >= limit - 6


@given(any_bytes, limits, st.data())
def test_each_piece_passed_on_ends_with_a_whole_character(data, limit, draw):
    bound = StreamBound("stderr", limit)
    pieces = [piece for chunk in draw.draw(chunked(data)) for piece in bound.feed(chunk)]
    pieces += [piece for piece in bound.finish() if isinstance(piece, Stream)]
    if sum(len(piece.data) for piece in pieces) == len(data):
        assert "".join(piece.text for piece in pieces) == to_text(data)


@given(st.lists(characters, max_size=30).map(b"".join), st.data())
def test_output_is_passed_on_at_once_but_for_a_begun_character(data, draw):
    bound = StreamBound("stdout", None)
    written = passed = b""
    for chunk in draw.draw(chunked(data)):
        written += chunk
        passed += b"".join(piece.data for piece in bound.feed(chunk))
        assert passed == written[: whole_characters(written)]


@pytest.mark.parametrize(
    ("limit", "data", "kept"),
    [
        (0, b"", (b"", 0, b"")),
        (0, b"abc", (b"", 3, b"")),
        (1, b"abc", (b"a", 2, b"")),
        (2, b"abc", (b"a", 1, b"c")),
        (3, b"abcd", (b"ab", 1, b"d")),
        (3, b"abc", (b"abc", 0, b"")),
        (1, "é".encode(), (b"", 2, b"")),
    ],
)
def test_the_head_is_the_larger_half(limit, data, kept):
    assert bounded([data], limit) == kept


def test_a_character_across_the_end_of_the_head_is_kept_when_all_is_within_the_limit():
    data = "aéb".encode()
    assert bounded([data], len(data)) == (data, 0, b"")


def test_a_character_that_was_begun_and_never_ended_is_passed_on_at_the_end():
    bound = StreamBound("stdout", 100)
    assert bound.feed(b"a\xe2\x82") == [Stream("stdout", b"a")]
    assert bound.finish() == [Stream("stdout", b"\xe2\x82")]


def test_a_character_may_come_byte_by_byte():
    bound = StreamBound("stdout", 8)
    assert [bound.feed(bytes((b,))) for b in "😀".encode()] == [
        [],
        [],
        [],
        [Stream("stdout", "😀".encode())],
    ]


def test_a_silent_stream_says_nothing():
    bound = StreamBound("stdout", 5)
    assert bound.feed(b"") == []
    assert bound.finish() == []


@settings(max_examples=20)
@given(st.integers(0, 300_000), st.sampled_from([1, 1000, 65536, 262144]))
@example(0, 262144)
def test_what_is_held_does_not_grow_with_the_output(limit, size):
    bound = StreamBound("stdout", limit)
    total = 0
    passed = 0
    for _ in range(min(200, 8_000_000 // size)):
        passed += sum(len(o.data) for o in bound.feed(b"x" * size))
        total += size
        # The tail, as much again before it is cut, and some 64 kB.
        assert len(bound._tail) <= 2 * (limit // 2) + 65536
    *cut, tail = bound.finish() if total > limit > 1 else (*bound.finish(), Stream("stdout", b""))
    kept = passed + sum(len(o.data) for o in (*cut, tail) if type(o) is Stream)
    assert kept + sum(o.bytes for o in (*cut, tail) if type(o) is Cut) == total
    assert kept <= max(limit, 0)
    assert len(bound._tail) == 0
