"""Types of the standard library that may come out of a sandbox: to boxes, and back.

This is the reviewed list. Each type has a packer, which runs in the sandbox, and a maker, which runs
in the client and believes nothing: it takes a few numbers and texts, looks at their types, and
calls a public constructor that validates what it gets. No maker takes a size or iterates over
what may be endless.

Not on the list, though pickle carries them: what holds functions (`functools.partial`), and
compiled regular expressions, for a hostile one takes the compiler a millisecond per character
(``[\\0-\\uffff]``, ignoring case, again and again).
"""

from __future__ import annotations

import datetime
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from importlib import import_module
from io import BytesIO, StringIO
from types import SimpleNamespace
from typing import Any, TypeAlias

from mentis_pool.boxes import Boxed, boxed

Packer: TypeAlias = Callable[[Any], Boxed]
Maker: TypeAlias = Callable[..., object]

MAX_FRACTION_BITS = 200_000
"""Of a numerator or denominator: it is reduced again, which takes time in the square of it."""


def only(type_: type, *values: object) -> None:
    """Refuse a part of a box that is of another type."""
    for value in values:
        if not isinstance(value, type_):
            raise TypeError(f"{type(value).__name__} where a part of another type belongs")


# ── builtins ────────────────────────────────────────────────────────────────


def _make_complex(real: float, imaginary: float) -> complex:
    only(float, real, imaginary)
    return complex(real, imaginary)


def _make_range(start: int, stop: int, step: int) -> range:
    only(int, start, stop, step)
    return range(start, stop, step)


def _make_slice(start: object, stop: object, step: object) -> slice:
    return slice(start, stop, step)


# ── datetime ────────────────────────────────────────────────────────────────
# Their constructors take bytes too, as pickle gives them, and look at the month only.


def _make_date(year: int, month: int, day: int) -> datetime.date:
    only(int, year, month, day)
    return datetime.date(year, month, day)


def _pack_time(value: datetime.time) -> Boxed:
    clock = (value.hour, value.minute, value.second, value.microsecond)
    return boxed("time", *clock, value.tzinfo, value.fold)


def _make_time(
    hour: int, minute: int, second: int, microsecond: int, zone: datetime.tzinfo | None, fold: int
) -> datetime.time:
    only(int, hour, minute, second, microsecond)
    return datetime.time(hour, minute, second, microsecond, zone, fold=fold)


def _pack_datetime(value: datetime.datetime) -> Boxed:
    clock = (value.hour, value.minute, value.second, value.microsecond)
    return boxed("datetime", value.year, value.month, value.day, *clock, value.tzinfo, value.fold)


def _make_datetime(*parts: Any) -> datetime.datetime:
    *numbers, zone, fold = parts
    only(int, *numbers)
    year, month, day, hour, minute, second, microsecond = numbers
    return datetime.datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def _make_timedelta(days: int, seconds: int, microseconds: int) -> datetime.timedelta:
    only(int, days, seconds, microseconds)
    return datetime.timedelta(days, seconds, microseconds)


def _pack_timezone(value: datetime.timezone) -> Boxed:
    # Its pickle's arguments: the name only where one was given.
    return boxed("timezone", *value.__getinitargs__())  # type: ignore[attr-defined]


def _make_timezone(offset: datetime.timedelta, *name: str) -> datetime.timezone:
    made = datetime.timezone(offset, *name)
    return datetime.timezone.utc if made == datetime.timezone.utc and not name else made


def _make_zone(key: str) -> datetime.tzinfo:
    from zoneinfo import ZoneInfo

    only(str, key)
    return ZoneInfo(key)  # refuses what leads out of the directories of time zones


def _pack_zone(value: Any) -> Boxed:
    if value.key is None:
        raise TypeError("a ZoneInfo made from a file has no name to travel by")
    return boxed("zone", value.key)


# ── numbers and names ───────────────────────────────────────────────────────


def _make_decimal(text: str) -> object:
    from decimal import Decimal

    only(str, text)
    return Decimal(text)


def _make_fraction(numerator: int, denominator: int) -> object:
    from fractions import Fraction

    only(int, numerator, denominator)
    if max(numerator.bit_length(), denominator.bit_length()) > MAX_FRACTION_BITS:
        raise ValueError(f"a fraction of more than {MAX_FRACTION_BITS} bits")
    return Fraction(numerator, denominator)


def _make_uuid(number: int, safe: str) -> object:
    from uuid import UUID, SafeUUID

    only(int, number)
    only(str, safe)
    return UUID(int=number, is_safe=SafeUUID[safe])


_PATHS = ("PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath")


def _make_path(name: str, text: str) -> object:
    import pathlib

    only(str, text)
    return getattr(pathlib, _PATHS[_PATHS.index(name)])(text)


_ADDRESSES = tuple(
    f"IPv{version}{what}" for version in (4, 6) for what in ("Address", "Network", "Interface")
)


def _make_ip(name: str, text: str) -> object:
    import ipaddress

    only(str, text)
    return getattr(ipaddress, _ADDRESSES[_ADDRESSES.index(name)])(text)


# ── collections ─────────────────────────────────────────────────────────────
# They come empty. Their items follow, one by one.


def _make_deque(maxlen: int | None) -> deque[object]:
    return deque(maxlen=maxlen)


def _make_defaultdict(factory: Any) -> defaultdict[object, object]:
    if not (factory is None or isinstance(factory, type)):
        raise TypeError("a defaultdict whose factory is no class")
    return defaultdict(factory)


def _make_chain_map() -> ChainMap[Any, Any]:
    chain: ChainMap[Any, Any] = ChainMap()
    chain.maps.clear()  # the maps follow
    return chain


def _make_namespace() -> object:
    from argparse import Namespace

    return Namespace()


def _pack_completed(value: Any) -> Boxed:
    return boxed("CompletedProcess", value.args, value.returncode, value.stdout, value.stderr)


def _make_completed(args: Any, returncode: int, stdout: Any, stderr: Any) -> object:
    from subprocess import CompletedProcess

    return CompletedProcess(args, returncode, stdout, stderr)


def _make_array(typecode: str, content: bytes) -> object:
    from array import array

    only(str, typecode)
    only(bytes, content)
    made = array(typecode)
    made.frombytes(content)
    return made


# ── records ─────────────────────────────────────────────────────────────────
# Named tuples, and those of the operating system, of numbers and texts only.

_RECORDS = {
    "os": ("stat_result", "statvfs_result", "terminal_size"),
    "time": ("struct_time",),
    "urllib.parse": tuple(
        f"{what}Result{kind}" for what in ("Defrag", "Parse", "Split") for kind in ("", "Bytes")
    ),
}
_IN_RECORDS = frozenset((type(None), bool, int, float, str, bytes))


def _pack_record(value: Any) -> Boxed:
    cls = type(value)
    # Those of the operating system have more attributes than elements.
    hidden = () if hasattr(cls, "_fields") else value.__reduce__()[1][1:]
    return boxed("record", cls.__module__, cls.__name__, tuple(value), *hidden)


def _make_record(
    module: str, name: str, values: tuple[Any, ...], *hidden: dict[str, Any]
) -> object:
    cls: Any = getattr(import_module(module), name) if name in _RECORDS[module] else None
    if cls is None or type(values) is not tuple or not _IN_RECORDS.issuperset(map(type, values)):
        raise TypeError("a record that is not listed, or that is not made of numbers and texts")
    if hasattr(cls, "_fields"):
        return cls(*values)
    (attributes,) = hidden
    if type(attributes) is not dict or not _IN_RECORDS.issuperset(map(type, attributes.values())):
        raise TypeError("the attributes of a record are numbers and texts")
    return cls(values, attributes)


def _make_tuple(values: tuple[object, ...]) -> tuple[object, ...]:
    only(tuple, values)
    return values


# ── files in memory ─────────────────────────────────────────────────────────


def _pack_file(value: Any) -> Boxed:
    content, *newline, position, attributes = value.__getstate__()
    if attributes or newline not in ([], ["\n"]):
        raise TypeError("a file in memory that has attributes, or changes the ends of lines")
    return boxed("file", content, position)


def _make_file(content: bytes | str, position: int) -> BytesIO | StringIO:
    only(int, position)
    if not 0 <= position <= len(content):
        raise ValueError("a position beyond the end of a file")
    made = BytesIO(content) if isinstance(content, bytes) else StringIO(content)
    made.seek(position)
    return made


# ── the lists ───────────────────────────────────────────────────────────────

PACKERS: dict[str, dict[str, Packer]] = {
    "builtins": {
        "complex": lambda value: boxed("complex", value.real, value.imag),
        "range": lambda value: boxed("range", value.start, value.stop, value.step),
        "slice": lambda value: boxed("slice", value.start, value.stop, value.step),
    },
    "datetime": {
        "date": lambda value: boxed("date", value.year, value.month, value.day),
        "time": _pack_time,
        "datetime": _pack_datetime,
        "timedelta": lambda value: boxed(
            "timedelta", value.days, value.seconds, value.microseconds
        ),
        "timezone": _pack_timezone,
    },
    "zoneinfo": {"ZoneInfo": _pack_zone},
    "decimal": {"Decimal": lambda value: boxed("Decimal", str(value))},
    "fractions": {
        "Fraction": lambda value: boxed("Fraction", value.numerator, value.denominator),
    },
    "uuid": {"UUID": lambda value: boxed("UUID", value.int, value.is_safe.name)},
    "pathlib": {
        name: lambda value: boxed("path", type(value).__name__, str(value)) for name in _PATHS
    },
    "ipaddress": {
        name: lambda value: boxed("ip", type(value).__name__, str(value)) for name in _ADDRESSES
    },
    "collections": {
        "OrderedDict": lambda value: boxed(
            "OrderedDict", state=vars(value) or None, pairs=value.items()
        ),
        "Counter": lambda value: boxed("Counter", pairs=value.items()),
        "defaultdict": lambda value: boxed(
            "defaultdict", value.default_factory, pairs=value.items()
        ),
        "deque": lambda value: boxed("deque", value.maxlen, items=value),
        "ChainMap": lambda value: boxed("ChainMap", items=value.maps),
    },
    "types": {"SimpleNamespace": lambda value: boxed("SimpleNamespace", state=vars(value))},
    "subprocess": {"CompletedProcess": _pack_completed},
    "array": {"array": lambda value: boxed("array", value.typecode, value.tobytes())},
    "argparse": {"Namespace": lambda value: boxed("Namespace", state=vars(value))},
    "_io": {"BytesIO": _pack_file, "StringIO": _pack_file},
    **{module: dict.fromkeys(names, _pack_record) for module, names in _RECORDS.items()},
}
"""Module (or its package), name: packer."""

UNNAMED: dict[type, Packer] = {
    type(...): lambda value: boxed("Ellipsis"),
    type(NotImplemented): lambda value: boxed("NotImplemented"),
    # As in its own pickle.
    type(datetime.date.min.isocalendar()): lambda value: boxed("tuple", tuple(value)),
}
"""Packers of types that are not found under their names."""

MAKERS: dict[str, Maker] = {
    "complex": _make_complex,
    "range": _make_range,
    "slice": _make_slice,
    "Ellipsis": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "date": _make_date,
    "time": _make_time,
    "datetime": _make_datetime,
    "timedelta": _make_timedelta,
    "timezone": _make_timezone,
    "zone": _make_zone,
    "Decimal": _make_decimal,
    "Fraction": _make_fraction,
    "UUID": _make_uuid,
    "path": _make_path,
    "ip": _make_ip,
    "OrderedDict": lambda: OrderedDict(),
    "Counter": lambda: Counter(),
    "defaultdict": _make_defaultdict,
    "deque": _make_deque,
    "ChainMap": _make_chain_map,
    "SimpleNamespace": lambda: SimpleNamespace(),
    "CompletedProcess": _make_completed,
    "array": _make_array,
    "Namespace": _make_namespace,
    "record": _make_record,
    "tuple": _make_tuple,
    "file": _make_file,
}
"""Kind: maker."""


def _fill_chain_map(chain: ChainMap[Any, Any], maps: list[Any]) -> None:
    chain.maps.extend(maps)


EXTEND: dict[str, Callable[[Any, list[Any]], None]] = {
    "deque": deque.extend,
    "ChainMap": _fill_chain_map,
}
"""Kind: what adds the items that follow."""

SET_ITEM: dict[str, Callable[[Any, Any, Any], None]] = {
    "OrderedDict": OrderedDict.__setitem__,
    "Counter": dict.__setitem__,
    "defaultdict": dict.__setitem__,
}
"""Kind: what adds a pair that follows."""

WITH_ATTRIBUTES = frozenset(("OrderedDict", "SimpleNamespace", "Namespace"))
"""Kinds that may have attributes, in their state."""

VALUES: frozenset[type] = frozenset(
    (
        *(bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset),
        *(object, range, slice, type(None), type(...), type(NotImplemented)),
        *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone),
        *(OrderedDict, Counter, defaultdict, deque, SimpleNamespace),
    )
)
"""Classes that may come as values. (Nothing a sandbox sends calls them.)"""
