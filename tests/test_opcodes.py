"""Which pickles may be loaded: those that take no more than their length."""

from __future__ import annotations

import pickle
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mentis_pool.errors import PayloadError
from mentis_pool.opcodes import MAX_TUPLE_DEPTH, check

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([1 << 3000, -(1 << 70), "x" * 300, b"y" * 300])
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.binary(max_size=20).map(bytearray)
)
hashable = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.tuples(inner, inner)
        | st.lists(inner, max_size=5).map(tuple)
        | st.frozensets(inner, max_size=5)
    ),
    max_leaves=6,
)
plain = st.recursive(
    scalars | hashable | st.sets(hashable, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(hashable, inner, max_size=5)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)
# Examples take long to make where others use the processors too.
unhurried = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(plain)
def test_what_pickle_makes_of_plain_data_may_be_loaded(value):
    check(pickle.dumps(value, 5))


@unhurried
@given(plain, st.data())
def test_a_part_of_a_pickle_may_not(value, data):
    pickled = pickle.dumps(value, 5)
    end = data.draw(st.integers(0, len(pickled) - 1))
    try:
        check(pickled[:end])
    except PayloadError:
        return
    # Cut where a byte reads as the end: what remains to be said can do no harm.
    assert pickled[end - 1 : end] == b"."


def test_shared_and_recursive_values_may_be_loaded():
    shared = (1, "two")
    cycle: list[object] = [shared]
    cycle.append((cycle, {shared: cycle}))
    once = ([], {})
    once[0].append(once)
    for value in (cycle, once, [shared] * 5000, {"x": [shared] * 5000}, {shared: {shared}}):
        check(pickle.dumps(value, 5))


def test_long_strings_are_passed_over():
    long = ["x" * 300, b"y" * 300, bytearray(b"z" * 300), 1 << 3000]
    for value in (long, {"k": tuple(long)}):
        check(pickle.dumps(value, 5))
    check(b"\x80\x05\x8d" + (3).to_bytes(8, "little") + b"abc.")


TUPLES_AND_A_DICT = b"\x80\x05}(K\x01)\x85u0"

FORBIDDEN = {
    "PUT": b"Np1000000000\n.",
    "BINPUT": b"Nq\x01.",
    "LONG_BINPUT": b"Nr\xff\xff\xff\x7f.",
    "GET": b"N\x94g0\n.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "GLOBAL": b"cos\nsystem\n.",
    "INST": b"(ios\nsystem\n.",
    "OBJ": b"(\x8c\x02os\x8c\x06system\x93o.",
    "NEWOBJ": b"\x8c\x02os\x8c\x06system\x93)\x81.",
    "NEWOBJ_EX": b"\x8c\x02os\x8c\x06system\x93)}\x92.",
    "PERSID": b"Pa\n.",
    "BINPERSID": b"NQ.",
    "NEXT_BUFFER": b"\x97.",
    "READONLY_BUFFER": b"]\x98.",
    "DUP": b"N2.",
    "INT": b"I1\n.",
    "LONG": b"L1L\n.",
    "FLOAT": b"F1\n.",
    "STRING": b"S'a'\n.",
    "UNICODE": b"Va\n.",
    "BINSTRING": b"T\x01\x00\x00\x00a.",
    "SHORT_BINSTRING": b"U\x01a.",
    "DICT": b"(d.",
    "LIST": b"(l.",
    "unknown": b"\xff.",
}


@pytest.mark.parametrize("pickled", FORBIDDEN.values(), ids=FORBIDDEN)
@pytest.mark.parametrize("before", [b"", TUPLES_AND_A_DICT])
def test_an_opcode_that_no_result_needs_is_refused(pickled, before):
    with pytest.raises(PayloadError):
        check(before + pickled)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"N",
        b".N",
        b"B\xff\xff\xff\xff.",
        b"\x8e" + b"\xff" * 8 + b".",
        b"\x96" + b"\xff" * 7 + b"\x7f.",
        b"\x8c\xff.",
        b"\x95\x01.",
        TUPLES_AND_A_DICT + b"B\xff\xff\xff\xff.",
        TUPLES_AND_A_DICT + b"K.",
        TUPLES_AND_A_DICT + b"u.",
        TUPLES_AND_A_DICT + b"h\x05.",
        TUPLES_AND_A_DICT + b"t.",
        TUPLES_AND_A_DICT + b"0.0.",
    ],
)
def test_a_length_or_a_stack_that_lies_is_refused(pickled):
    with pytest.raises(PayloadError):
        check(pickled)


def bomb(levels, *, wide=2):
    """Tuples that share tuples: as a key, wide**levels of them."""
    memoized = b"".join(
        b"(" + b"".join(b"j" + n.to_bytes(4, "little") for _ in range(wide)) + b"t\x94"
        for n in range(levels)
    )
    return b"\x80\x05})\x94" + memoized + b"N"


@pytest.mark.parametrize(("levels", "wide"), [(40, 2), (60, 3), (4, 1000), (1000, 2)])
@pytest.mark.parametrize("end", [b"s.", b"\x90.", b"R.", b"\x91."])
def test_tuples_that_share_tuples_are_no_key(levels, wide, end):
    started = time.monotonic()
    with pytest.raises(PayloadError, match=r"share|broken"):
        check(bomb(levels, wide=wide) + end)
    assert time.monotonic() - started < 5


def test_shared_tuples_are_fine_where_nothing_hashes():
    check(bomb(40) + b".")


def test_tuples_within_each_other_are_counted():
    deep = b"\x80\x05}(" + b")" + b"\x85" * MAX_TUPLE_DEPTH
    check(deep + b"Nu.")
    with pytest.raises(PayloadError, match="more than 2000 tuples"):
        check(deep + b"\x85Nu.")


def test_a_mark_may_be_popped():
    check(TUPLES_AND_A_DICT + b"(0N(NN1.")
    check(TUPLES_AND_A_DICT + b"(NN\x91N\x86]Na(Ne\x8f(N\x90NNb\x93.")


def test_what_is_large_and_plain_is_read_about_as_fast_as_it_is_loaded():
    for value in (
        b"x" * 50_000_000,
        list(range(1_000_000)),
        [{"a": str(n)} for n in range(200_000)],
    ):
        pickled = pickle.dumps(value, 5)
        started = time.perf_counter()
        pickle.loads(pickled)
        loaded = time.perf_counter()
        check(pickled)
        assert time.perf_counter() - loaded < 10 * (loaded - started) + 0.2
