"""The value of a cell's last expression, as plain data: never pickled, never evaluated.

`encode` runs in the sandbox, after the cell; `decode` runs in the client and trusts no
byte. No I/O, no clock.

The wire is one msgpack value, of arrays and scalars only::

    None, bool, int (64 bit), float, str     themselves
    list                                     array
    tuple, set, dict                         array, its first element a mark: Ext(code, b"");
                                             a dict's elements are key, value, key, value, ...
    bytes, other int, str with surrogates,   Ext(code, payload)
    datetime, date, time, timedelta

So nothing nests but arrays, and the decoder's own type says how deep they may: neither
the interpreter's recursion limit nor the C stack is what stops a hostile sender.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from functools import cache
from itertools import chain
from typing import Any

import msgspec
from msgspec.msgpack import Ext

from mentis_pool.errors import ProtocolError

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 100
"""Containers within each other: 1 for a list of scalars."""

_TUPLE, _SET, _DICT = 1, 2, 3
_BYTES, _INT, _STR, _DATETIME, _DATE, _TIME, _TIMEDELTA = range(4, 11)

# A type of the cell may have a metaclass with __eq__ and __hash__ of its own, so types are
# told apart by their id: those of builtin types are never given to another.
_SCALARS = frozenset(map(id, (type(None), bool, int, float, str)))
_MARKS = {
    id(list): [],
    id(tuple): [Ext(_TUPLE, b"")],
    id(set): [Ext(_SET, b"")],
    id(dict): [Ext(_DICT, b"")],
}


def encode(value: object, limit: int = MAX_BYTES) -> bytes | None:
    """Encode a value, or give None where it is not plain data or does not fit.

    Plain are None, bool, int, float, str, bytes, list, tuple, dict, set, datetime, date,
    time and timedelta, and of these no subclass; a tzinfo is None or a
    `datetime.timezone`. No method that a cell may have written is called.

    Args:
        value: any object. Threads of the cell may change it meanwhile.
        limit: the most bytes to return. Time and memory are bounded by it and by the
            size of the value itself, however often a part of it is shared.

    Returns:
        What `decode` takes; None also for cycles and for more than `MAX_DEPTH` levels.
    """
    try:
        try:
            data = _pack(_Arrays(limit, whole_lists=True).build(value, 1))
        except (OverflowError, UnicodeEncodeError):
            # Among the scalars of some list is one that msgpack has not: look at each.
            data = _pack(_Arrays(limit, whole_lists=False).build(value, 1))
    except (_NotPlain, ValueError, MemoryError, RuntimeError):
        # ValueError: longer than msgpack can say (2**32). RuntimeError: the stack was nearly
        # used up, or a dict or set changed while it was read.
        return None
    return data if len(data) <= limit else None


def _pack(arrays: object) -> bytes:
    # Encoder.encode() crashes the process where memory runs out (msgspec 0.22); this raises.
    buffer = bytearray()
    _encoder.encode_into(arrays, buffer)
    return bytes(buffer)


_encoder = msgspec.msgpack.Encoder()


def decode(data: bytes) -> object:
    """Decode what `encode` gave: equal to the value in every type, order and sign.

    Whatever the bytes, memory stays within about 100 bytes for each of them (a list takes
    one on the wire, and some 80 in Python).

    Raises:
        ProtocolError: these bytes are no value.
    """
    try:
        return _value(_decoder().decode(data))
    except (
        msgspec.DecodeError,
        ValueError,  # no date, equal keys, ...
        TypeError,  # a key that has no hash, too few fields of a date
        OverflowError,  # numbers too large for a date
        RecursionError,  # the caller's stack was nearly used up
        MemoryError,
    ) as exc:
        # Without the traceback: its frames keep what was half built, as long as the error lives.
        cause = exc.with_traceback(None)
        raise ProtocolError(f"not the bytes of a value: {cause}", data) from cause


class _NotPlain(Exception):
    """The value cannot travel."""


class _Arrays:
    """Turns one value into what msgpack has, counting as it goes."""

    def __init__(self, limit: int, *, whole_lists: bool) -> None:
        self._left = limit  # bytes; each element counts for no more than it will take
        self._whole_lists = whole_lists
        # (id, depth) -> (object, kept so that its id stays its own; its array; its bytes)
        self._built: dict[tuple[int, int], tuple[object, list[Any], int]] = {}

    def build(self, value: object, depth: int) -> object:
        kind = id(type(value))
        if kind in _SCALARS:
            self._spend(1)
            return self._scalar(value)
        if kind not in _MARKS:
            return self._leaf(value)
        key = (id(value), depth)
        if key in self._built:
            _, array, size = self._built[key]
            self._spend(size)
            return array
        if depth > MAX_DEPTH:
            raise _NotPlain
        before = self._left
        array = self._array(value, kind, depth)
        self._built[key] = (value, array, before - self._left)
        return array

    def _array(self, value: Any, kind: int, depth: int) -> list[Any]:
        self._spend(1 + len(value))  # before a huge one is copied
        items = list(chain.from_iterable(value.items())) if kind == id(dict) else list(value)
        kinds = set(map(id, map(type, items)))
        if self._whole_lists and kinds <= _SCALARS:
            if kinds == {id(str)}:
                self._spend(sum(map(len, items)))
            elif id(str) in kinds:
                self._spend(sum(len(item) for item in items if type(item) is str))
        else:
            items = [self.build(item, depth + 1) for item in items]
        return _MARKS[kind] + items

    def _scalar(self, value: object) -> object:
        if type(value) is int and not -(2**63) <= value < 2**64:
            self._spend(value.bit_length() // 8)
            return Ext(_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
        if type(value) is str:
            self._spend(len(value))
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    return Ext(_STR, _utf8(value))
        return value

    def _leaf(self, value: object) -> Ext:
        if type(value) is bytes:
            self._spend(len(value))
            return Ext(_BYTES, value)
        if type(value) is datetime:
            day = (value.year, value.month, value.day)
            return self._fields(_DATETIME, chain(day, _clock(value)), value.tzinfo)
        if type(value) is date:
            return self._fields(_DATE, (value.year, value.month, value.day))
        if type(value) is time:
            return self._fields(_TIME, _clock(value), value.tzinfo)
        if type(value) is timedelta:
            return self._fields(_TIMEDELTA, _span(value))
        raise _NotPlain

    def _fields(self, code: int, numbers: Iterable[int], zone: object = None) -> Ext:
        fields: list[int | bytes] = list(numbers)
        if zone is not None:
            if type(zone) is not timezone:
                raise _NotPlain
            # What pickle asks for, too: the name only when it was given one.
            offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
            if type(offset) is not timedelta or any(type(n) is not str for n in name):
                raise _NotPlain
            self._spend(sum(map(len, name)))
            fields += [*_span(offset), *map(_utf8, name)]
        payload = _pack(fields)
        self._spend(len(payload))
        return Ext(code, payload)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _NotPlain


def _clock(value: datetime | time) -> tuple[int, ...]:
    return value.hour, value.minute, value.second, value.microsecond, value.fold


def _span(value: timedelta) -> tuple[int, ...]:
    return value.days, value.seconds, value.microseconds


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@cache
def _decoder() -> msgspec.msgpack.Decoder[Any]:
    """Made when first needed, in some milliseconds: a sandbox never needs it."""
    scalar: Any = None | bool | int | float | str | Ext
    kind = scalar
    for _ in range(MAX_DEPTH):
        kind = scalar | types.GenericAlias(list, (kind,))
    return msgspec.msgpack.Decoder(kind)


_fields_decoder = msgspec.msgpack.Decoder(list[int | bytes])


def _value(node: Any) -> object:
    if type(node) is Ext:
        return _leaf(node)
    if type(node) is not list:
        return node
    make: Callable[[list[Any]], object] | None = None
    kinds = set(map(type, node))
    if Ext in kinds and type(node[0]) is Ext and not node[0].data:
        make = _MAKE.get(node[0].code)
    if make is not None:
        del node[0]
    if Ext in kinds or list in kinds:
        for i, item in enumerate(node):
            if type(item) is Ext or type(item) is list:
                node[i] = _value(item)
    return node if make is None else make(node)


def _set(items: list[Any]) -> object:
    result = set(items)
    if len(result) < len(items):
        raise ValueError("equal elements in a set")
    return result


def _dict(items: list[Any]) -> object:
    result = dict(zip(items[::2], items[1::2], strict=True))
    if 2 * len(result) < len(items):
        raise ValueError("equal keys in a dict")
    return result


_MAKE: dict[int, Callable[[list[Any]], object]] = {_TUPLE: tuple, _SET: _set, _DICT: _dict}


def _leaf(ext: Ext) -> object:
    payload = bytes(ext.data)
    if ext.code == _BYTES:
        return payload
    if ext.code == _INT:
        return int.from_bytes(payload, "little", signed=True)
    if ext.code == _STR:
        return _text(payload)
    if ext.code in _FROM_FIELDS:
        return _FROM_FIELDS[ext.code](*_fields_decoder.decode(payload))
    raise ValueError(f"unknown extension {ext.code}")


def _text(payload: bytes) -> str:
    return str(payload, "utf-8", "surrogatepass")


# As many arguments as there are fields: with fewer, the classes of datetime take a pickle's
# state, and believe it.
def _datetime(
    y: int, mo: int, d: int, h: int, mi: int, s: int, us: int, fold: int, *zone: Any
) -> datetime:
    return datetime(y, mo, d, h, mi, s, us, _zone(*zone), fold=fold)


def _date(year: int, month: int, day: int) -> date:
    return date(year, month, day)


def _time(h: int, mi: int, s: int, us: int, fold: int, *zone: Any) -> time:
    return time(h, mi, s, us, _zone(*zone), fold=fold)


def _zone(*fields: Any) -> timezone | None:
    if not fields:
        return None
    days, seconds, microseconds, *name = fields
    return timezone(timedelta(days, seconds, microseconds), *map(_text, name))


_FROM_FIELDS: dict[int, Callable[..., object]] = {
    _DATETIME: _datetime,
    _DATE: _date,
    _TIME: _time,
    _TIMEDELTA: timedelta,
}
