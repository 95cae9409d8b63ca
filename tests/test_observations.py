"""Observations: small arrays on the wire, the same after it."""

from __future__ import annotations

from typing import get_args

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
    ErrorKind,
    Failure,
    File,
    Left,
    LeftKind,
    Observation,
    Part,
    Result,
    Start,
    Stream,
    Wanted,
)

EACH = [
    Start(1700000000.25),
    Start(1700000000.25, 2**40),
    Stream("stdout", b"\xff\x00a"),
    Stream("stderr", b""),
    Cut("displays", 2**40),
    Display(Bundle({"text/plain": "é"}, {"image/png": b"\x89"}), "id", True),
    Display(Bundle({})),
    Result(),
    Result(b"\x01", "1", "int", Bundle({"text/html": "<b>"}), None),
    Result(failure=Failure("ValueError", "", "Traceback")),
    Result(pickled=b"\x80"),
    Result(exit_code=-9),
    Error("died", "killed", signal=9),
    Error("died", "exited", exit_code=0),
    End(0.5),
    End(0.5, 0.25, 2**40),
    Part(b"\x80" * 100),
    File("out/é", b"\x80" * 100, True),
    *(Left("out/é", kind) for kind in get_args(LeftKind)),
    Wanted(),
    *(Error(kind, "why") for kind in get_args(ErrorKind)),
]


@pytest.mark.parametrize("observation", EACH, ids=repr)
def test_an_observation_comes_back_the_same(observation):
    decoder = msgspec.msgpack.Decoder(Observation)
    back = decoder.decode(msgspec.msgpack.encode(observation))
    assert back == observation
    assert type(back) is type(observation)


def test_every_kind_of_observation_has_a_tag_of_its_own():
    kinds = get_args(Observation)
    tags = [kind.__struct_config__.tag for kind in kinds]
    assert tags == list(range(11)), "tags are the wire: they may be added to, not changed"
    assert {type(o) for o in EACH} == set(kinds)


@pytest.mark.parametrize("observation", EACH, ids=repr)
def test_an_observation_is_not_to_be_changed(observation):
    field = (*observation.__struct_fields__, "any")[0]
    with pytest.raises(AttributeError):
        setattr(observation, field, None)


@pytest.mark.parametrize(
    "message",
    [
        [8],
        [7],
        [7, "text"],
        [0],
        [0, 0.0, "sandbox"],
        [0, "now"],
        [1, "stdin", b""],
        [1, "stdout", 5],
        [2, "displays", "many"],
        [3, [{"a": b""}]],
        [4, 1],
        [4, None, None, None, None, ["name"]],
        [4, None, None, None, None, None, "text"],
        [4, None, None, None, None, None, None, "0"],
        [5, "other", "why"],
        [6, None],
    ],
    ids=repr,
)
def test_what_is_no_observation_is_refused(message):
    decoder = msgspec.msgpack.Decoder(Observation)
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(msgspec.msgpack.encode(message))


@given(st.text(st.characters(exclude_categories=())))
def test_output_is_the_text_that_was_written(text):
    stream = Stream("stdout", text.encode("utf-8", "surrogatepass"))
    assert stream.text == text
    assert str(stream) == text


def test_output_that_is_no_text_is_text_all_the_same():
    assert Stream("stderr", b"a\xff").text == "a\udcff"
    assert Stream("stderr", b"").text == ""


def test_bundles_do_not_share_their_bytes():
    Bundle({}).blobs["image/png"] = b""
    assert Bundle({}).blobs == {}


def test_the_size_of_a_bundle_is_in_bytes_of_what_it_shows():
    assert Bundle({}).size == 0
    assert (
        Bundle({"text/plain": "abc", "text/html": "é€"}, {"image/png": b"1234"}).size == 3 + 5 + 4
    )
