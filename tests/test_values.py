"""The value codec: what travels comes back exact; what is not plain, and what is no value, does not."""

from __future__ import annotations

import collections
import enum
import functools
import itertools
import math
import struct
import subprocess
import sys
import textwrap
import threading
import time as clock
import tracemalloc
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from mentis_pool import values
from mentis_pool.errors import ProtocolError
from mentis_pool.values import MAX_BYTES, MAX_DEPTH, decode, encode

pack = msgspec.msgpack.encode

NAMED = timezone(timedelta(hours=-3, seconds=7, microseconds=9), "caf\u00e9 \udc80")
TUPLE, SET, DICT = (Ext(code, b"") for code in (1, 2, 3))
BYTES, INT, STR, DATETIME, DATE, TIME, TIMEDELTA = range(4, 11)


def exact(value: Any) -> Any:
    """A picture of a value that is equal only for the same types, bits and order."""
    kind = type(value)
    if kind is float:
        return kind, "nan" if math.isnan(value) else struct.pack(">d", value)
    if kind in (list, tuple):
        return kind, [exact(item) for item in value]
    if kind is dict:
        return kind, [(exact(k), exact(v)) for k, v in value.items()]
    if kind is set:
        return kind, sorted(repr(exact(item)) for item in value)
    if kind in (datetime, time):
        return kind, value.replace(tzinfo=None), value.fold, exact(value.tzinfo)
    if kind is timezone:
        return kind, value.__getinitargs__()
    return kind, value


def travels(value: object) -> bytes:
    data = encode(value)
    assert type(data) is bytes
    assert exact(decode(data)) == exact(value)
    return data


def refuses(data: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert caught.value.payload == data[:1024]
    return caught.value


text = st.text(st.characters(exclude_categories=())) | st.text()
offsets = st.timedeltas(
    timedelta(hours=-24) + timedelta.resolution, timedelta(hours=24) - timedelta.resolution
)
zones = st.none() | st.builds(timezone, offsets) | st.builds(timezone, offsets, text)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([-(2**63), -(2**63) - 1, 2**63, 2**64 - 1, 2**64])
    | st.floats()
    | text
    | st.binary()
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times(timezones=zones)
    | st.builds(lambda t, fold: t.replace(fold=fold), st.datetimes(), st.integers(0, 1))
    | st.timedeltas()
)
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=6)
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.lists(inner, max_size=6).map(tuple)
        | st.dictionaries(keys, inner, max_size=6)
        | st.sets(keys, max_size=6)
    ),
    max_leaves=25,
)


# --- what travels ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=120)
@given(plain)
def test_any_plain_value_comes_back_exact(value: object) -> None:
    travels(value)


@settings(deadline=None, max_examples=40)
@given(plain)
def test_encoding_what_was_decoded_gives_the_same_size(value: object) -> None:
    data = travels(value)
    again = encode(decode(data))
    assert again is not None
    assert len(again) == len(data)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -0.0,
        math.nan,
        -math.inf,
        5e-324,
        "",
        "\ud800\udc00",  # two lone surrogates, not the one character they spell in UTF-16
        "\U00010000\0",
        b"",
        b"\xff" * 300,
        2**64,
        -(2**63) - 1,
        -(2**64),
        255 << 72,
        -(128 << 72),
        1 << 100_000,
        [],
        (),
        set(),
        {},
        [[]],
        [()],
        [b""],
        [b"", ()],
        [(), b"", 2**70],
        [1, True, 1.0, None, "a"],
        [1, 2**70],
        [1, "\udcff", "\u00fc"],
        ["a", "\udcff"],
        {"b": 1, "a": 2, "": {}},
        {1: "a", (1, (2.5, b"x")): [1], None: None, b"": 0, date.max: 1},
        {math.nan: 1, (math.nan,): 2},
        {(): ()},
        {1, "a", (2, b"b")},
        datetime.min,
        datetime.max.replace(tzinfo=timezone.utc),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=23))),
        datetime(2024, 10, 27, 2, 30, fold=1),
        datetime(2024, 10, 27, 2, 30, 0, 5, NAMED, fold=1),
        {datetime.min.replace(tzinfo=NAMED), datetime.max.replace(tzinfo=NAMED)},
        date.min,
        time.max,
        time(1, 2, 3, 4, timezone(timedelta(0), ""), fold=1),
        timedelta.min,
        timedelta.max,
        timedelta(microseconds=-1),
        [datetime(2024, 1, 1), date(2024, 1, 1)],
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_at_an_edge_comes_back_exact(value: object) -> None:
    travels(value)
    travels([value, value])
    travels({"key": (value,)})


def test_two_nans_are_two_keys() -> None:
    back = decode(encode({float("nan"): 1, float("nan"): 2}) or b"")
    assert type(back) is dict
    assert list(back.values()) == [1, 2]


def test_utc_is_the_same_object_again() -> None:
    back = decode(encode(datetime(2024, 1, 1, tzinfo=timezone.utc)) or b"")
    assert type(back) is datetime
    assert back.tzinfo is timezone.utc


def test_a_shared_part_arrives_as_often_as_it_is_used() -> None:
    part = [b"x", 1]
    travels([part, part, {"a": part}, (part, [part])])


def test_long_lists_are_quick() -> None:
    for value in ([*range(100_000)], ["text"] * 100_000, [1.5, "a", None] * 33_000):
        start = clock.perf_counter()
        travels_back = decode(encode(value) or b"")
        assert clock.perf_counter() - start < 0.5  # some 10 ms; the rest is for a busy machine
        assert travels_back == value


# --- what is not plain -------------------------------------------------------------------------


class Zone(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta:
        raise AssertionError("called")


class Touchy:
    """Complains when anything of it is used."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(name)

    __eq__ = __hash__ = __len__ = __iter__ = __bool__ = __getattribute__  # type: ignore


class TouchyMeta(type):
    def __eq__(cls, other: object) -> bool:
        raise AssertionError("compared")

    def __hash__(cls) -> int:
        raise AssertionError("hashed")

    def __instancecheck__(cls, instance: object) -> bool:
        raise AssertionError("asked")


def touchy(base: type) -> type:
    def complain(*args: object) -> Any:
        raise AssertionError("called")

    names = ("__iter__", "__len__", "__repr__", "__getattribute__", "__index__", "__str__", "items")
    return TouchyMeta("Sub", (base,), {**dict.fromkeys(names, complain), "__hash__": base.__hash__})


class Point(NamedTuple):
    x: int


class Colour(enum.IntEnum):
    RED = 1


class Fake:
    @property
    def __class__(self) -> Any:  # what isinstance() believes
        return int

    @__class__.setter
    def __class__(self, value: object) -> None: ...


class Struct(msgspec.Struct):
    x: int = 1


def cases_that_are_not_plain() -> list[object]:
    subclasses = (int, float, str, bytes, list, tuple, set, dict, date, datetime, time, timedelta)
    arguments = {date: (1, 1, 1), datetime: (1, 1, 1)}
    late = touchy(timedelta)
    return [
        *(touchy(base)(*arguments.get(base, ())) for base in subclasses),
        object(),
        Touchy(),
        Fake(),
        int,
        len,
        sys,
        ...,
        1j,
        range(3),
        frozenset({1}),
        bytearray(b"x"),
        memoryview(b"x"),
        collections.OrderedDict(a=1),
        collections.defaultdict(int),
        collections.deque([1]),
        Point(1),
        Colour.RED,
        Struct(),
        Ext(1, b""),
        msgspec.Raw(b"\x01"),
        (x for x in [1]),
        timezone.utc,
        datetime(2024, 1, 1, tzinfo=Zone()),
        time(1, tzinfo=Zone()),
        datetime(2024, 1, 1, tzinfo=timezone(late(hours=1))),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), touchy(str)("x"))),
        {}.keys(),
    ]


@pytest.mark.parametrize("number", range(len(cases_that_are_not_plain())))
def test_what_is_not_plain_does_not_travel_and_is_not_touched(number: int) -> None:
    value = cases_that_are_not_plain()[number]  # by number: pytest touches what it is given
    assert encode(value) is None
    assert encode([1, "a", value]) is None
    assert encode([1, 2**70, ["\udcff", (value,)]]) is None
    assert encode({"key": value}) is None


def test_a_key_or_element_that_is_not_plain_stops_the_whole() -> None:
    assert encode({frozenset({1}): 1}) is None
    assert encode({(1, Point(1)): 1}) is None
    assert encode({1, Colour.RED, len}) is None


def test_numpy_scalars_are_not_plain() -> None:
    numpy = pytest.importorskip("numpy")
    for value in (numpy.float64(1), numpy.int64(1), numpy.str_("x"), numpy.bool_(True)):
        assert encode(value) is None
        assert encode([value]) is None


# --- what does not fit -------------------------------------------------------------------------


def nest(levels: int, wrap: Any, inside: Any = None) -> Any:
    value = inside
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: [1, "a", [v]]]
)
def test_nesting_stops_at_max_depth(wrap: Any) -> None:
    deepest = MAX_DEPTH if wrap(0) != [1, "a", [0]] else MAX_DEPTH // 2
    for inside in (None, b"", 2**70, datetime(1, 1, 1, tzinfo=NAMED)):
        travels(nest(deepest, wrap, inside))
        assert encode(nest(deepest + 1, wrap, inside)) is None


def test_depth_counts_where_a_shared_part_is_deepest() -> None:
    part = nest(60, lambda v: [v])
    travels([part, nest(39, lambda v: [v], part)])
    assert encode([part, nest(40, lambda v: [v], part)]) is None


def test_nested_tuples_in_keys_and_sets() -> None:
    travels({nest(MAX_DEPTH - 1, lambda v: (v,))})
    travels({nest(MAX_DEPTH - 1, lambda v: (v,)): 1})
    assert encode({nest(MAX_DEPTH, lambda v: (v,))}) is None


def test_a_very_deep_value_does_not_travel() -> None:
    assert encode(nest(100_000, lambda v: [v])) is None


def test_cycles_do_not_travel() -> None:
    ring: list[Any] = []
    ring.append(ring)
    loop: dict[str, Any] = {}
    loop["self"] = [loop, loop]
    many: list[Any] = []
    many.extend([many] * 1000)
    assert encode(ring) is encode(loop) is encode(many) is None


@pytest.mark.parametrize(
    "value",
    [None, 7, 1.5, "abc", "\u00fc" * 9, "\udcff", b"abc", 2**90, [1, 2], ("a", b"b"), {1: 2}],
)
def test_the_limit_is_exact(value: object) -> None:
    size = len(travels(value))
    assert encode(value, size) == encode(value)
    assert encode(value, size - 1) is None
    assert encode(value, 0) is None


def test_dates_and_names_of_zones_count() -> None:
    moment = datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "x" * 1000))
    assert encode(moment, 900) is None
    assert encode(timedelta(1), 5) is None


@functools.cache
def bombs() -> dict[str, Any]:
    double: Any = []
    pairs: Any = ()
    for _ in range(50):
        double = [double, double]
        pairs = {"a": pairs, "b": (pairs, pairs)}
    fib: Any = [[b"x"]]
    before: Any = [b"x"]
    for _ in range(90):
        before, fib = fib, [before, fib]
    block = "x" * 1_000_000
    return {
        "doubled list": double,
        "doubled dict": pairs,
        "fibonacci": fib,
        "one str often": [block] * 100_000,
        "one str often, mixed": [block, 1] * 100_000,
        "one bytes often": [b"x" * 1_000_000] * 100_000,
        "one list often": [[block]] * 100_000,
        "wide sharing": nest(9, lambda v: [v] * 1000, 1),
        "huge list": [None] * (MAX_BYTES + 1),
        "big int": 1 << (8 * MAX_BYTES + 8),
        "big int often": [1 << 8_000_000] * 1000,
        "long name": [time(tzinfo=timezone(timedelta(0), block))] * 1000,
        "surrogates": ["\udcff" * 1_000_000] * 1000,
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_given_up_early(name: str) -> None:
    bomb = bombs()[name]
    tracemalloc.start()
    try:
        start = clock.perf_counter()
        assert encode(bomb) is None
        assert clock.perf_counter() - start < 2
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BYTES
    finally:
        tracemalloc.stop()


def test_a_dict_that_changes_meanwhile_raises_nothing() -> None:
    shared: dict[int, Any] = {}
    stop = threading.Event()

    def change() -> None:
        for i in itertools.count():
            shared[i % 5000] = (i,)
            shared.pop((i * 7) % 5000, None)
            if stop.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(20):
            encode([shared, shared])
    finally:
        stop.set()
        thread.join()


def test_a_nearly_used_up_stack_raises_nothing() -> None:
    value, data = nest(50, lambda v: (v,)), encode(nest(50, lambda v: (v,))) or b""
    outcomes = set()

    def descend() -> None:
        try:
            descend()
        except RecursionError:
            pass
        # On the way back up there is room for the call itself, then for its first steps, ...
        try:
            outcomes.add(encode(value))
        except RecursionError:
            outcomes.add("no room for the call")
        try:
            outcomes.add(decode(data) == value)
        except ProtocolError:
            outcomes.add("refused")
        except RecursionError:
            outcomes.add("no room for the answer")

    descend()
    assert {None, data, True} <= outcomes


def test_memory_that_runs_out_in_a_sandbox_raises_nothing() -> None:
    script = """
        import resource
        from mentis_pool import values
        value = ["\\xfc" * 1000 + str(i) for i in range(8000)]
        assert values.encode(value) is not None
        with open("/proc/self/statm") as f:
            size = int(f.read().split()[0]) * resource.getpagesize()
        value = [*value, 2**70]
        resource.setrlimit(resource.RLIMIT_AS, (size + 2_000_000, -1))
        assert values.encode([v + "x" for v in value[:10]]) is not None
        assert values.encode(value) is None
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)


# --- what is no value --------------------------------------------------------------------------


def fields(code: int, *parts: object) -> bytes:
    return pack(Ext(code, pack(parts)))


NOT_VALUES = {
    "nothing": b"",
    "cut": pack([1, 2])[:-1],
    "trailing": pack(1) + b"\0",
    "never used opcode": b"\xc1",
    "bad utf-8": b"\xa1\xff",
    "surrogate in a str": b"\xa3\xed\xa0\x80",
    "a map": pack({"a": 1}),
    "a map in a list": pack([1, {"a": 1}]),
    "bin": pack(b"x"),
    "timestamp": b"\xd6\xff\0\0\0\1",
    "unknown extension": pack(Ext(0, b"x")),
    "another": pack([1, Ext(11, b"x")]),
    "negative extension": pack([Ext(-2, b"")]),
    "a mark alone": pack(TUPLE),
    "a mark that is not first": pack([1, TUPLE, 2]),
    "two marks": pack([TUPLE, TUPLE]),
    "a mark with a payload": pack([Ext(1, b"x"), 1]),
    "odd dict": pack([DICT, 1]),
    "equal keys": pack([DICT, 1, 2, 1, 3]),
    "equal keys of two types": pack([DICT, 1, 2, True, 3]),
    "equal elements": pack([SET, "a", "a"]),
    "equal moments": pack(
        [
            SET,
            Ext(DATETIME, pack([2024, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0])),
            Ext(DATETIME, pack([2024, 1, 1, 13, 0, 0, 0, 0, 0, 3600, 0])),
        ]
    ),
    "list as key": pack([DICT, [1], 2]),
    "list in a set": pack([SET, [1]]),
    "list in a tuple in a set": pack([SET, [TUPLE, [1]]]),
    "set in a set": pack([SET, [SET]]),
    "str payload": pack(Ext(STR, b"\xff")),
    "no msgpack": pack(Ext(DATE, b"\xc1")),
    "fields are no list": pack(Ext(DATE, pack(1))),
    "fields are trailing": pack(Ext(DATE, pack([1, 1, 1]) + b"\0")),
    "a list as field": fields(DATE, 2024, 1, [1]),
    "float": fields(TIMEDELTA, 0.5, 0, 0),
    "bool": fields(DATE, True, 1, 1),
    "no month": fields(DATE, 2024, 13, 1),
    "no day": fields(DATE, 2023, 2, 29),
    "year 0": fields(DATE, 0, 1, 1),
    "year 2**40": fields(DATE, 2**40, 1, 1),
    "year 2**63": fields(DATETIME, 2**63, 1, 1, 0, 0, 0, 0, 0),
    "too few": fields(DATE, 2024, 1),
    "too many": fields(DATE, 2024, 1, 1, 1),
    "pickled date": fields(DATE, b"\x07\xe8\x01\xff"),
    "pickled datetime": fields(DATETIME, b"\x07\xe8\x01\xff\xff\xff\xff\0\0\0"),
    "pickled time": fields(TIME, b"\x17\xff\xff\0\0\0"),
    "bytes as year": fields(DATE, b"2024", 1, 1),
    "hour 24": fields(TIME, 24, 0, 0, 0, 0),
    "second 60": fields(DATETIME, 2024, 1, 1, 0, 0, 60, 0, 0),
    "fold 2": fields(TIME, 1, 0, 0, 0, 2),
    "zone of a day": fields(TIME, 1, 0, 0, 0, 0, 1, 0, 0),
    "half a zone": fields(TIME, 1, 0, 0, 0, 0, 0, 0),
    "zone with a number for a name": fields(TIME, 1, 0, 0, 0, 0, 0, 0, 0, 5),
    "zone with two names": fields(TIME, 1, 0, 0, 0, 0, 0, 0, 0, b"a", b"b"),
    "zone with a bad name": fields(TIME, 1, 0, 0, 0, 0, 0, 0, 0, b"\xff"),
    "too long a time": fields(TIMEDELTA, 10**10, 0, 0),
    "timedelta of bytes": fields(TIMEDELTA, b"x"),
    "too many days": fields(TIMEDELTA, 2**63, 0, 0),
}


@pytest.mark.parametrize("data", NOT_VALUES.values(), ids=NOT_VALUES)
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    error = refuses(data)
    assert error.__cause__ is not None
    assert error.__cause__.__traceback__ is None
    if data:
        refuses(b"\x92\x01" + data)


@pytest.mark.parametrize(
    "opener", [b"\x91", b"\x92\xc7\0\1", b"\x93\xc7\0\3\1", b"\x81\1", b"\x81"]
)
def test_deep_bytes_are_refused_whatever_the_recursion_limit(opener: bytes) -> None:
    limit = sys.getrecursionlimit()
    refuses(opener * (MAX_DEPTH + 1) + b"\1")
    sys.setrecursionlimit(10**6)
    try:
        refuses(opener * 1_000_000 + b"\1")
    finally:
        sys.setrecursionlimit(limit)


def test_depth_is_limited_to_the_same_as_for_encode() -> None:
    assert decode(b"\x91" * MAX_DEPTH + b"\1") == nest(MAX_DEPTH, lambda v: [v], 1)
    refuses(b"\x91" * MAX_DEPTH + b"\x90")


def flood(item: bytes, size: int = 40_000) -> bytes:
    count = size // len(item)
    return b"\xdd" + count.to_bytes(4, "big") + item * count


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (b"\xdd\xff\xff\xff\xff", 4000),
        (b"\xdb\xff\xff\xff\xff", 4000),
        (b"\xc9\xff\xff\xff\xff\5", 4000),
        (b"\xdf\xff\xff\xff\xff", 4000),
        (b"\x81\xdd\xff\xff\xff\xff", 4000),
        (pack(Ext(DATE, b"\xdd\xff\xff\xff\xff")), 6000),
        (b"\xdd\xff\xff\xff\xff" * MAX_DEPTH, 40_000),
        (flood(b"\x90"), 100),
        (flood(b"\x91\xc0"), 100),
        (flood(b"\x91" * 99 + b"\xc0"), 100),
        (flood(b"\x91\xc7\0\1"), 100),
        (flood(b"\x91\xc7\0\2"), 100),
        (flood(b"\x91\xc7\0\3"), 100),
        (flood(b"\x93\xc7\0\3\1\1"), 100),
        (flood(b"\xc7\0\4"), 100),
        (flood(b"\xa1a"), 100),
        (flood(b"\xcd\1\1"), 100),
        (flood(b"\xd4\5\1"), 100),
        (flood(b"\xd4\6a"), 100),
        (flood(fields(TIMEDELTA, 1, 1, 1)), 100),
    ],
    ids=lambda value: value[:12].hex() if type(value) is bytes else "",
)
def test_memory_is_bounded_by_the_bytes(data: bytes, most: int) -> None:
    """Up to 100 bytes for each byte, and for small messages ``most`` in all."""
    decode(b"\1")  # makes the decoder, once
    tracemalloc.start()
    try:
        value = None
        try:
            value = decode(data)
        except ProtocolError:
            assert len(data) < 1000
        peak = tracemalloc.get_traced_memory()[1]
        del value
    finally:
        tracemalloc.stop()
    assert peak < (most if most > 100 else most * len(data))


def only_plain(value: Any) -> bool:
    kind = type(value)
    if kind in (list, tuple, set):
        return all(map(only_plain, value))
    if kind is dict:
        return all(map(only_plain, itertools.chain.from_iterable(value.items())))
    if kind in (datetime, time):
        return value.tzinfo is None or type(value.tzinfo) is timezone
    return kind in (type(None), bool, int, float, str, bytes, date, timedelta)


def decodes_or_refuses(data: bytes) -> None:
    try:
        value = decode(data)
    except ProtocolError:
        return
    assert only_plain(value)
    travels(value)


@settings(deadline=None, max_examples=120)
@given(st.binary(max_size=60))
@example(b"\xc7\0\1")
def test_random_bytes_are_a_plain_value_or_refused(data: bytes) -> None:
    decodes_or_refuses(data)


@settings(deadline=None, max_examples=120)
@given(plain, st.data())
def test_a_damaged_value_is_a_plain_value_or_refused(value: object, data: st.DataObject) -> None:
    damaged = bytearray(encode(value) or b"")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        cut = data.draw(st.integers(0, 3))
        damaged[at : at + cut] = data.draw(st.binary(max_size=3))
    decodes_or_refuses(bytes(damaged))


wire = st.recursive(
    st.integers(-3, 300)
    | st.sampled_from(["", "a", TUPLE, SET, DICT, 1.5, None, True])
    | st.builds(Ext, st.integers(-2, 12), st.binary(max_size=4))
    | st.builds(
        lambda code, parts: Ext(code, pack(parts)),
        st.integers(DATETIME, TIMEDELTA),
        st.lists(st.integers(-1, 13) | st.integers(-(2**63), 2**64 - 1), max_size=12)
        | st.lists(st.integers(1, 12), min_size=3, max_size=11),
    ),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.tuples(st.sampled_from([TUPLE, SET, DICT]), inner, inner).map(list)
    ),
    max_leaves=15,
)


@settings(deadline=None, max_examples=120)
@given(wire)
def test_well_formed_wire_is_a_plain_value_or_refused(node: object) -> None:
    decodes_or_refuses(pack(node))


def test_the_codes_on_the_wire_stay() -> None:
    assert encode([1, "a", None]) == bytes.fromhex("9301a161c0")
    assert encode({"a": (b"b", {2})}) == bytes.fromhex("93c70003a16193c70001d4046292c7000202")
    assert encode(2**64) == bytes.fromhex("c70905000000000000000001")
    assert encode("\udcff") == bytes.fromhex("c70306edb3bf")
    assert encode(date(2, 3, 4)) == bytes.fromhex("d60893020304")
    assert encode(timedelta(1, 2, 3)) == bytes.fromhex("d60a93010203")
    assert values.MAX_BYTES == 16 * 2**20
