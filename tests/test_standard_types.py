"""Each type of the standard library that may come back: exactly as it was, and no forgery of it."""

from __future__ import annotations

import argparse
import array
import collections
import datetime
import decimal
import fractions
import http
import io
import ipaddress
import os
import pathlib
import pickle
import re
import signal
import subprocess
import time
import types
import urllib.parse
import uuid
import zoneinfo

import pytest
from forged import Ask, cls, forge, read, there_and_back
from hypothesis import given
from hypothesis import strategies as st
from test_opcodes import unhurried

from mentis_pool.errors import PayloadError
from mentis_pool.standard_types import MAX_FRACTION_BITS

TIME_ZONE = zoneinfo.ZoneInfo("Europe/Berlin")
NAMED_ZONE = datetime.timezone(datetime.timedelta(hours=1), "one")

VALUES = [
    1 + 2j,
    complex(-0.0, float("inf")),
    range(3, 10**30, 7),
    slice(1, [2], None),
    ...,
    NotImplemented,
    datetime.date(2024, 2, 29),
    datetime.time(1, 2, 3, 4, fold=1),
    datetime.time(1, 2, 3, 4, datetime.timezone.utc),
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4, TIME_ZONE, fold=1),
    datetime.timedelta(-5, 3, 7),
    datetime.timezone.utc,
    NAMED_ZONE,
    datetime.timezone(datetime.timedelta(0), "zero"),
    TIME_ZONE,
    decimal.Decimal("1.50"),
    decimal.Decimal("-Infinity"),
    decimal.Decimal("1e999999999"),
    fractions.Fraction(-1, 3),
    uuid.UUID(int=5, is_safe=uuid.SafeUUID.safe),
    pathlib.Path("a", "b"),
    pathlib.PurePosixPath("//x/y"),
    pathlib.PureWindowsPath("c:\\x"),
    ipaddress.ip_address("1.2.3.4"),
    ipaddress.ip_network("1.2.3.0/24"),
    ipaddress.ip_interface("::1/64"),
    collections.OrderedDict([(2, 1), (1, 2)]),
    collections.Counter("abca"),
    collections.defaultdict(list, {1: [2]}),
    collections.defaultdict(None, {1: 2}),
    collections.deque([1, [2]], 5),
    collections.deque(),
    collections.ChainMap({1: 2}, {3: 4}),
    types.SimpleNamespace(a=1, b=[2]),
    subprocess.CompletedProcess(["ls"], 1, "out", b"err"),
    array.array("d", [1.5, -0.0]),
    argparse.Namespace(a=1, b=[2]),
    os.stat("/"),
    os.statvfs("/"),
    os.terminal_size((80, 24)),
    time.localtime(),
    time.struct_time(range(9)),
    urllib.parse.urlparse("http://a:1/b;c?d#e"),
    urllib.parse.urlsplit(b"http://a/b"),
    urllib.parse.urldefrag("http://a/b#c"),
    http.HTTPStatus.OK,
    signal.SIGTERM,
    re.IGNORECASE | re.MULTILINE,
    uuid.SafeUUID.unsafe,
    int,
    type(None),
    datetime.date,
    collections.OrderedDict,
]


ATTRIBUTES = ["fold", "tzinfo", "maxlen", "default_factory", "is_safe", "typecode"]
ATTRIBUTES += ["st_mtime_ns", "f_fsid", "tm_zone", "tm_gmtoff"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_it_comes_back_as_it_was(value):
    back = there_and_back(value)
    assert type(back) is type(value)
    assert repr(back) == repr(value)
    if not isinstance(value, subprocess.CompletedProcess):
        assert back == value
    for attribute in ATTRIBUTES:
        assert getattr(back, attribute, None) == getattr(value, attribute, None)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_it_comes_back_within_others(value):
    shared = [value]
    back = there_and_back({"k": (shared, {"deep": shared})})
    assert back["k"][0] is back["k"][1]["deep"]
    assert repr(back) == repr({"k": (shared, {"deep": shared})})


def test_as_keys_and_in_sets_too():
    day, path = datetime.date(2024, 1, 1), pathlib.PurePosixPath("x")
    value = {day: {path}, (path, (1j, day)): frozenset({day, (path,)}), 1: day}
    back = there_and_back(value)
    assert back == value
    assert list(back) == list(value)


@pytest.mark.parametrize("value", [io.BytesIO(b"a\r\n\xff"), io.StringIO("a\r\nü"), io.BytesIO()])
def test_a_file_in_memory_comes_back_where_it_was_read_to(value):
    value.read(1)
    back = there_and_back(value)
    assert type(back) is type(value)
    assert back.getvalue() == value.getvalue()
    assert back.tell() == value.tell()


def test_a_file_in_memory_that_is_more_than_its_content_does_not_travel():
    named, beyond = io.BytesIO(b"x"), io.BytesIO(b"x")
    named.name = "x"
    beyond.seek(5)
    for value in (named, beyond, io.StringIO(newline=None)):
        with pytest.raises(PayloadError):
            there_and_back(value)


def test_the_week_of_a_date_is_a_tuple_as_in_its_pickle():
    week = datetime.date(2024, 12, 30).isocalendar()
    assert repr(there_and_back([week])) == repr(pickle.loads(pickle.dumps([week])))


def test_a_regular_expression_is_not_compiled_here():
    with pytest.raises(PayloadError, match=r"re\._compile"):
        there_and_back(re.compile("a"), "re")
    assert there_and_back(re.compile("a"), trust=["re"]) == re.compile("a")


def test_one_timezone_stays_one():
    assert there_and_back(datetime.timezone.utc) is datetime.timezone.utc


def test_attributes_of_an_ordered_dict_stay():
    value = collections.OrderedDict(a=1)
    value.note = "x"
    assert there_and_back(value).note == "x"


def test_collections_may_hold_themselves():
    ordered = collections.OrderedDict()
    ordered["self"] = ordered
    assert (back := there_and_back(ordered))["self"] is back
    queue = collections.deque()
    queue.append(queue)
    assert (back := there_and_back(queue))[0] is back
    space = types.SimpleNamespace()
    space.me = [space]
    assert (back := there_and_back(space)).me[0] is back


def test_a_time_zone_of_a_file_has_no_name():
    with open(pathlib.Path(__import__("tzdata").__file__).parent / "zoneinfo/UTC", "rb") as file:
        zone = zoneinfo.ZoneInfo.from_file(file)
    with pytest.raises(PayloadError, match="no name to travel by"):
        there_and_back(zone)


@unhurried
@given(
    st.datetimes(timezones=st.none() | st.timezones())
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
)
def test_any_of_the_common_ones_comes_back(value):
    back = there_and_back([value])[0]
    assert repr(back) == repr(value)


@unhurried
@given(st.fractions() | st.complex_numbers() | st.dates() | st.times() | st.ip_addresses())
def test_any_of_the_others_comes_back(value):
    assert repr(there_and_back(value)) == repr(value)


LONG = Ask("range", 0, 10**10, 1)

FORGED = [
    Ask("complex", "1", "2"),
    Ask("range", 1.0, 2, 3),
    Ask("range", 1, 2, 0),
    Ask("date", b"\x07\xe8\x01\xff"),
    Ask("date", b"\x07", 1, 1),
    Ask("date", 0, 1, 1),
    Ask("datetime", b"\x07\xe8\x01\xff\xff\xff\xff\xff\xff\xff", None, 0),
    Ask("datetime", 2024, 1, 32, 0, 0, 0, 0, None, 0),
    Ask("datetime", 2024, 1, 1, 0, 0, 0, 0, "UTC", 0),
    Ask("time", b"\xff" * 6, 0, 0, 0, None, 0),
    Ask("timedelta", 10**12, 0, 0),
    Ask("timedelta", "1", 0, 0),
    Ask("timezone", Ask("timedelta", 5, 0, 0)),
    Ask("zone", "../../../etc/passwd"),
    Ask("zone", "/etc/passwd"),
    Ask("zone", b"UTC"),
    Ask("Decimal", 1.5),
    Ask("Decimal", "x"),
    Ask("Decimal", (0, (1,), 10**18)),
    Ask("Fraction", 1, 0),
    Ask("Fraction", "1/2", 1),
    Ask("Fraction", 1 << MAX_FRACTION_BITS, 3),
    Ask("UUID", -1, "safe"),
    Ask("UUID", "5", "safe"),
    Ask("UUID", 5, "__class__"),
    Ask("path", "Path", "x"),
    Ask("path", "os", "x"),
    Ask("path", "PurePosixPath", 5),
    Ask("ip", "v4_int_to_packed", "1"),
    Ask("ip", "IPv4Address", 5),
    Ask("deque", 1.5),
    Ask("deque", LONG),
    Ask("deque", None, LONG),
    Ask("defaultdict", Ask("function", "os", "system")),
    Ask("defaultdict", "list"),
    Ask("defaultdict", LONG),
    Ask("Counter", LONG),
    Ask("OrderedDict", LONG),
    Ask("array", "d", 10**10),
    Ask("array", "d", b"123"),
    Ask("array", "no", b""),
    Ask("CompletedProcess", 1),
    Ask("record", "os", "terminal_size", (1,), {}),
    Ask("record", "os", "terminal_size", (1, [2]), {}),
    Ask("record", "os", "terminal_size", [1, 2], {}),
    Ask("record", "os", "terminal_size", LONG, {}),
    Ask("record", "os", "terminal_size", (1, 2), {"columns": []}),
    Ask("record", "os", "terminal_size", (1, 2), [1]),
    Ask("record", "os", "terminal_size", (1, 2)),
    Ask("record", "os", "system", ("touch /tmp/forged",)),
    Ask("record", "os.path", "join", ("a", "b")),
    Ask("record", "subprocess", "Popen", ("touch /tmp/forged",)),
    Ask("record", ["os"], "system", ()),
    Ask("record", "urllib.parse", "SplitResult", ("a", "b")),
    Ask("record", "urllib.parse", "SplitResult", ("a", "b", "c", "d", cls("builtins", "int"))),
    Ask("record", "urllib.parse", "urlopen", ("http://localhost",)),
    Ask("record", "urllib.parse", "SplitResult", ("a", "b", "c", "d", "e"), state={"x": 1}),
    Ask("tuple", LONG),
    Ask("tuple", [1]),
    Ask("file", b"x", 2),
    Ask("file", "x", -1),
    Ask("file", "x", 1 << 62),
    Ask("file", "x", None),
    Ask("file", LONG, 0),
    Ask("file", 10**10, 0),
    Ask("file", b"x", 0, state={"x": 1}),
    Ask("Namespace", 1),
    Ask("Namespace", state=[1]),
    Ask("Namespace", state={1: 2}),
    Ask("call", cls("functools", "partial"), (cls("builtins", "int"),)),
    Ask("function", "functools", "partial"),
    Ask("function", "re", "_compile"),
    Ask("Ellipsis", 1),
    Ask("date", 2024, 1, 1, state={"year": 5}),
    Ask("deque", None, state={"x": 1}),
    Ask("OrderedDict", state=[1]),
    Ask("OrderedDict", state={1: 2}),
    Ask("date", 2024, 1, 1, items=[1]),
    Ask("date", 2024, 1, 1, pairs=[(1, 2)]),
    Ask("call", cls("collections", "deque"), (LONG,)),
    Ask("call", cls("builtins", "list"), (LONG,)),
    Ask("call", cls("builtins", "bytes"), (10**11,)),
    Ask("new", cls("builtins", "bytearray"), (10**11,), {}),
    Ask("new", cls("builtins", "object"), (), {}),
    Ask("call", cls(subprocess.Popen), (["touch", "/tmp/forged"],)),
    Ask("call", cls(subprocess.CompletedProcess), (["x"], 0)),
]


@pytest.mark.parametrize("value", FORGED, ids=lambda ask: str(ask.kind))
@pytest.mark.parametrize("around", [lambda value: value, lambda value: {(1,): [value]}])
def test_a_forged_one_is_refused(value, around):
    with pytest.raises(PayloadError):
        read(forge(around(value)), "subprocess", "collections", "builtins", "datetime")


def test_a_range_is_not_counted_out():
    assert read(forge(LONG)) == range(10**10)
