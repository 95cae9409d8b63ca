"""Text to bytes and back: nothing is lost, nothing raises."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mentis_pool.text import (
    first_character,
    for_terminal,
    printable,
    to_bytes,
    to_text,
    whole_characters,
)

any_text = st.text(st.characters(exclude_categories=()))
surrogates = st.text(st.characters(categories=("Cs",)))
# Random bytes are rarely near to UTF-8: these are.
pieces = st.sampled_from(
    [b"a", "é".encode(), "€".encode(), "😀".encode(), b"\xed\xa0\x80", b"\xed\xbf\xbf"]
    + [bytes((b,)) for b in (0x80, 0xBF, 0xC0, 0xC3, 0xE2, 0xED, 0xF0, 0xF4, 0xF8, 0xFF)]
)
any_bytes = st.binary() | st.lists(pieces).map(b"".join)


@given(any_text | surrogates)
@example("\ud83d\ude00")
@example("\U0001f600")
@example("\x00\udc80\udcff\ud800\udfff\uffff\U0010ffff")
def test_every_str_comes_back_as_it_was(text):
    assert to_text(to_bytes(text)) == text


@given(st.text())
def test_text_without_surrogates_is_plain_utf8(text):
    assert to_bytes(text) == text.encode()
    assert to_text(text.encode()) == text


@given(any_bytes)
def test_any_bytes_are_a_text(raw):
    text = to_text(raw)
    assert to_text(to_bytes(text)) == text
    assert len(text) <= len(raw)


@given(st.text(), st.sampled_from([b"\xff", b"\x80", b"\xf8", b"\xc0"]), st.text())
def test_what_is_text_among_other_bytes_stays_text(before, broken, after):
    raw = before.encode() + broken + after.encode()
    assert to_text(raw) == before + broken.decode("utf-8", "surrogateescape") + after


@pytest.mark.parametrize("byte", range(0x80, 0x100))
def test_a_byte_that_is_no_utf8_is_one_lone_surrogate_as_in_python(byte):
    raw = b"a" + bytes((byte,)) + b"z"
    assert to_text(raw) == raw.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("raw", [b"\xe2\x82", b"\xe2\x82A", b"\xf0\x9f\x98", b"\xed\xa0", b"\xed"])
def test_a_broken_character_is_a_lone_surrogate_for_each_byte(raw):
    assert to_text(raw) == raw.decode("utf-8", "surrogateescape")


@given(any_bytes.filter(bool), st.integers(1, 5))
def test_a_text_of_any_length_is_as_its_parts(raw, blocks):
    raw += b"a"  # a border
    text = to_text(raw)
    times = blocks * 65536 // len(raw) + 2
    assert to_text(raw * times) == text * times


def test_megabytes_of_what_is_no_text_take_no_longer_than_they_must():
    for raw in (b"\xff", b"\xed\xa0\x80\xff"):
        begun = time.process_time()
        to_text(raw * (4 * 1024 * 1024 // len(raw)))
        assert time.process_time() - begun < 3


@given(any_text | surrogates)
def test_printable_text_can_be_printed(text):
    shown = printable(text)
    assert shown.encode().decode() == shown
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert shown == text


def test_printable_text_shows_lone_surrogates_as_python_does():
    assert printable("a\udcff\ud800\n") == "a\\udcff\\ud800\n"


@given(any_text | surrogates, st.data())
def test_text_cut_anywhere_is_whole_up_to_the_last_character(text, data):
    raw = to_bytes(text)
    cut = data.draw(st.integers(0, len(raw)))
    borders = [0]
    for character in text:
        borders.append(borders[-1] + len(to_bytes(character)))
    assert whole_characters(raw[:cut]) == max(b for b in borders if b <= cut)


@given(any_text | surrogates, st.data())
def test_text_begun_anywhere_is_whole_from_the_next_character(text, data):
    raw = to_bytes(text)
    cut = data.draw(st.integers(0, len(raw)))
    borders = [0]
    for character in text:
        borders.append(borders[-1] + len(to_bytes(character)))
    assert cut + first_character(raw[cut:]) == min(b for b in borders if b >= cut)


@given(any_bytes, st.data())
def test_any_bytes_cut_between_characters_are_the_same_text(raw, data):
    cut = data.draw(st.integers(0, len(raw)))
    whole = whole_characters(raw[:cut])
    assert cut - 3 <= whole <= cut
    assert to_text(raw[:whole]) + to_text(raw[whole:]) == to_text(raw)


@given(any_bytes)
def test_at_most_three_bytes_are_before_the_first_character(raw):
    start = first_character(raw)
    assert 0 <= start <= min(3, len(raw))
    assert all(0x80 <= b < 0xC0 for b in raw[:start])


@pytest.mark.parametrize(
    ("raw", "whole"),
    [
        (b"", 0),
        (b"a", 1),
        (b"a\xc3", 1),
        (b"a\xc3\xa9", 3),
        (b"\xe2", 0),
        (b"\xe2\x82", 0),
        (b"\xe2\x82\xac", 3),
        (b"\xf0", 0),
        (b"\xf0\x9f", 0),
        (b"\xf0\x9f\x98", 0),
        (b"\xf0\x9f\x98\x80", 4),
        (b"\xff", 1),
        (b"a\xf8", 2),
        (b"\x80", 1),
        (b"\x80\x80\x80\x80\x80", 5),
        (b"\xed\xa0\x80", 3),
    ],
)
def test_what_is_whole_of_some_bytes(raw, whole):
    assert whole_characters(raw) == whole


@pytest.mark.parametrize(
    ("raw", "start"),
    [(b"", 0), (b"a", 0), (b"\x80", 1), (b"\x80\x80\x80a", 3), (b"\x80" * 5, 3), (b"\x80\xc3", 1)],
)
def test_where_some_bytes_begin(raw, start):
    assert first_character(raw) == start


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü \t\r\n\b", "plain ü \t\r\n\b"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("a\x1b[2Jb", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]8;;http://x\x1b\\b", "ab"),
        ("a\x1bPq#0\x1b\\b", "ab"),
        ("a\x1bcb", "ab"),
        ("a\x1b(0b", "ab"),
        ("a\x9b2Jb", "a2Jb"),
        ("a\x00\x07\x7fb", "ab"),
        ("a\x1b", "a"),
    ],
)
def test_only_colours_reach_a_terminal(text, shown):
    assert for_terminal(text) == shown


@given(st.text(st.sampled_from("\x1b[]PX^_0;:mJ\\\x07\x9b\x00a ")))
def test_no_escape_but_a_colour_is_left(text):
    left = for_terminal(text).split("\x1b")
    assert all(
        part.startswith("[") and part[1:].lstrip("0123456789;:")[:1] == "m" for part in left[1:]
    )
    assert for_terminal("".join(left)) == "".join(left)
