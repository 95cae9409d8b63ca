"""What a sandbox's bytes may become in the client.

The bytes are hostile until shown otherwise. They are loaded in two steps::

    bytes ──check──► C unpickler ──► plain data and boxes ──replay──► the value

- `mentis_pool.opcodes` passes only what can be loaded in time and memory that fit its length.
- The C unpickler gets one name, that of `mentis_pool.boxes.box`; whatever else a pickle names
  stops it. So all that there ever is on its stack is plain data, fresh and the sandbox's own, and
  boxes, which do nothing: called they make another box, and BUILD, APPEND and SETITEM on one
  write a line into a log. No class, module, function or shared object of the client is there to
  be called or changed, in whatever order the opcodes come. That holds by construction.
- The log is replayed in its order. Each line makes an object, or completes one that was made
  here: by a maker from the reviewed lists (`mentis_pool.standard_types`, `mentis_pool.array_types`)
  or by a class that `Trust`, or the call itself, lets in. Those classes' own code may run: that
  is what trust means. A state is only ever given to a fresh instance of such a class.

Plain data has no log, and takes the first two steps only. Where the opcode that names something is
nowhere in the bytes, pickle's own `loads` does the second.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from enum import Enum
from io import BytesIO
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

from mentis_pool import opcodes, standard_types
from mentis_pool.boxes import box
from mentis_pool.errors import PayloadError, in_words
from mentis_pool.payload import Call
from mentis_pool.returned import builtin_base
from mentis_pool.trust import INSTANCES, METHOD, Names, Trust, untrusted


def rebuild(pickled: bytes, call: Call, trust: Trust) -> object:
    """Rebuild what `mentis_pool.returned` pickled for a call.

    Raises:
        PayloadError: it may not be, or cannot be. Nothing else is raised, whatever the
            bytes, and whatever the classes in them do.
    """
    try:
        opcodes.check(pickled)
        if _NAME not in pickled:
            return pickle.loads(pickled)
        unpickler = _Unpickler(pickled)
        value = unpickler.load()
        if unpickler.boxes is None:
            return value
        return _Replay(call, trust).run(unpickler.boxes.log, value)
    except PayloadError:
        raise
    except BaseException as exc:  # noqa: BLE001 - a trusted class is code: it may even exit
        # Without the traceback: its frames keep what was half built, as long as the error lives.
        cause = exc.with_traceback(None)
        raise PayloadError(f"what the sandbox sent cannot be rebuilt: {in_words(cause)}") from cause


_NAME = b"\x93"
"""The one opcode that `opcodes.check` lets through and that takes something by its name."""


# ── loading: plain data and boxes ───────────────────────────────────────────


class _Box:
    """An object that was asked for. It writes down what the opcodes do to it."""

    __slots__ = ("log", "made", "parts")
    made: Any  # once replayed

    def __init__(self, log: list[_Line], parts: tuple[Any, ...]) -> None:
        self.log = log
        self.parts = parts
        log.append((_Replay.make, self, None, None))

    def __setstate__(self, state: object) -> None:
        self.log.append((_Replay.set_state, self, state, None))

    def extend(self, items: list[object]) -> None:
        self.log.append((_Replay.extend, self, items, None))

    def __setitem__(self, key: object, value: object) -> None:
        self.log.append((_Replay.set_item, self, key, value))


_Line = tuple[Callable[..., None], _Box, object, object]


class _MakesBoxes:
    """What stands for the name `box`. It has nothing that could be set."""

    __slots__ = ("log",)

    def __init__(self) -> None:
        self.log: list[_Line] = []

    def __call__(self, *parts: object) -> _Box:
        return _Box(self.log, parts)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a name has no state")


class _Whole(BytesIO):
    """All the bytes at once.

    Where the unpickler cannot peek, it reads one frame at a time, and forgets what is left of it when
    an opcode goes on beyond its end: it would then see other opcodes than `opcodes.check` did.
    """

    def peek(self, _: int) -> bytes:
        return self.getvalue()[self.tell() :]


class _Unpickler(pickle.Unpickler):
    boxes: _MakesBoxes | None = None

    def __init__(self, pickled: bytes) -> None:
        super().__init__(_Whole(pickled))

    def find_class(self, module: str, name: str) -> Any:
        if module != box.__module__ or name != box.__name__:
            raise untrusted(module, name)
        if self.boxes is None:
            self.boxes = _MakesBoxes()
        return self.boxes


# ── replay ──────────────────────────────────────────────────────────────────

MAX_DEPTH = 2000
"""Containers within each other that have objects in them: Python's own limit may have been raised to
where the C stack ends before it."""

_LEAVES = frozenset((type(None), bool, int, float, str, bytes, bytearray))
_UNCHANGING = frozenset((tuple, frozenset))
_CONTAINERS = _UNCHANGING | {list, dict, set}


class _Replay:
    """Makes the objects that one pickle asked for."""

    def __init__(self, call: Call, trust: Trust) -> None:
        self.names = Names(call, trust)
        self.real_of: dict[int, object] = {}  # id of a container: what became of it
        self.kept: list[object] = []  # so that no such id is given to another
        self.waiting = 0  # boxes that were met before their turn
        self.unfinished: list[Any] = []  # lists, dicts and sets that have such a box
        self.depth = 0  # of the container that is gone through

    def run(self, log: list[_Line], value: object) -> object:
        for act, box_, first, second in log:
            act(self, box_, first, second)
        value = self.real(value)
        unfinished, self.unfinished, self.waiting = self.unfinished, [], 0
        for container in unfinished:
            _IN_PLACE[type(container)](self, container)
        return value

    def make(self, box_: _Box, _first: None, _second: None) -> None:
        kind, *parts = box_.parts
        if type(kind) is not str:
            raise PayloadError("the sandbox sent a box of no kind")
        maker = standard_types.MAKERS.get(kind)
        if maker is None and kind.startswith(("numpy.", "pandas.", "pytz.")):
            from mentis_pool import array_types

            maker = array_types.MAKERS.get(kind)
        elif maker is None and kind in METHOD:
            maker = getattr(self.names, METHOD[kind])
        if maker is None:
            raise PayloadError(f"the sandbox sent a box of an unknown kind: {kind[:100]!r}")
        box_.made = maker(*self.all_real(parts))

    def set_state(self, box_: _Box, state: object, _: None) -> None:
        kind, before = box_.parts[0], self.waiting
        (state,) = self.all_real([state])
        if self.waiting != before:
            # Of these the values are handed on, not the dict.
            for part in state if type(state) is tuple else [state]:
                if type(part) is dict:
                    self.refuse_unmade(part.values())
        if kind in standard_types.WITH_ATTRIBUTES:
            box_.made.__dict__.update(_attributes(state))
        elif kind == "exception":
            _set_exception(box_.made, _attributes(_harmless(box_.made, state)))
        elif kind in INSTANCES:
            _set_state(_own(box_), _harmless(box_.made, state))
        else:
            raise PayloadError(f"the sandbox sent a state for what has none: {kind[:100]!r}")

    def extend(self, box_: _Box, items: list[object], _: None) -> None:
        kind, items = box_.parts[0], self.all_real(items)
        if kind in INSTANCES:
            _own(box_).extend(items)
        else:
            standard_types.EXTEND[kind](box_.made, items)

    def set_item(self, box_: _Box, key: object, value: object) -> None:
        kind, (key, value) = box_.parts[0], self.all_real([key, value])
        if kind in INSTANCES:
            _own(box_)[key] = value
        else:
            standard_types.SET_ITEM[kind](box_.made, key, value)

    def all_real(self, values: list[Any]) -> list[Any]:
        """Of what is handed to others: nothing may be left to be made, but in what can be filled."""
        if _LEAVES.issuperset(map(type, values)):
            return values
        before, real = self.waiting, list(map(self.real, values))
        if self.waiting != before:
            self.refuse_unmade(real)
        return real

    def refuse_unmade(self, values: Iterable[object]) -> None:
        if any(map(self.is_unmade, values)):
            raise PayloadError("the sandbox sent an object that is made of what comes later")

    def is_unmade(self, value: object) -> bool:
        """Whether it is a box still, or a tuple of some."""
        type_ = type(value)
        return type_ is _Box or (type_ in _UNCHANGING and id(value) not in self.real_of)

    def real(self, value: Any) -> Any:
        """Put objects where boxes are: in lists, dicts and sets in place, in tuples anew.

        A list may be met before all in it is made: it is in one of its own elements. So in
        a list, dict or set, boxes (and tuples of them) may stay until the end.
        """
        type_ = type(value)
        if type_ in _LEAVES:
            return value
        if type_ is _Box:
            try:
                return value.made
            except AttributeError:
                self.waiting += 1
                return value
        if type_ is _MakesBoxes:
            raise PayloadError("the sandbox sent a box that is not made")
        known = id(value)
        if type_ not in _CONTAINERS or known in self.real_of:
            return self.real_of.get(known, value)
        self.kept.append(value)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise PayloadError(f"the value has more than {MAX_DEPTH} containers in each other")
        made = self.container(value, type_)
        self.depth -= 1
        return made

    def container(self, value: Any, type_: type) -> object:
        known, before = id(value), self.waiting
        if type_ in _UNCHANGING:
            made = value
            if not _LEAVES.issuperset(map(type, value)):
                made = type_(map(self.real, value))
                if self.waiting != before and any(map(self.is_unmade, made)):
                    return value  # as it was, for another time
            # One in itself (by way of a list) was finished within.
            made = self.real_of.setdefault(known, made)
            self.real_of[id(made)] = made
            self.kept.append(made)
            return made
        self.real_of[known] = value
        _IN_PLACE[type_](self, value)
        if self.waiting != before:
            self.unfinished.append(value)
        return value

    def in_list(self, items: list[object]) -> None:
        if not _LEAVES.issuperset(map(type, items)):
            items[:] = map(self.real, items)

    def in_set(self, items: set[object]) -> None:
        if not _LEAVES.issuperset(map(type, items)):
            real = list(map(self.real, items))
            items.clear()
            items.update(real)

    def in_dict(self, pairs: dict[object, object]) -> None:
        if not _LEAVES.issuperset(map(type, pairs)):
            real = [(self.real(key), self.real(value)) for key, value in pairs.items()]
            pairs.clear()
            pairs.update(real)
        elif not _LEAVES.issuperset(map(type, pairs.values())):
            for key, value in pairs.items():
                pairs[key] = self.real(value)


_IN_PLACE: dict[type, Callable[[_Replay, Any], None]] = {
    list: _Replay.in_list,
    set: _Replay.in_set,
    dict: _Replay.in_dict,
}


# ── instances ───────────────────────────────────────────────────────────────


def _own(box_: _Box) -> Any:
    """The instance that was made for a box, which is nothing else of the client's.

    A class's ``__new__``, or a trusted function, may have given something that was there before.
    """
    made, by = box_.made, box_.parts[1].made
    if issubclass(type(made), _NOBODYS_OWN) or (isinstance(by, type) and type(made) is not by):
        raise PayloadError(f"the sandbox sent a state for a {type(made).__qualname__}")
    return made


_NOBODYS_OWN = (type, ModuleType, FunctionType, BuiltinFunctionType, Enum)

_TEXT = frozenset((str,))


def _attributes(state: Any) -> dict[str, Any]:
    if type(state) is not dict or not _TEXT.issuperset(map(type, state)):
        raise PayloadError("the sandbox sent attributes without names")
    return state


def _set_state(made: Any, state: Any) -> None:
    """Complete an instance as pickle does: by its class's own __setstate__, or as its attributes."""
    setstate = getattr(type(made), "__setstate__", None)
    if setstate is not None:
        setstate(made, state)
        return
    slots = None
    if type(state) is tuple and len(state) == 2:
        state, slots = state
    if state is not None:
        vars(made).update(_attributes(state))
    for name, value in _attributes({} if slots is None else slots).items():
        # Of a property, the setter would run; of __class__, the object would be another's.
        if not isinstance(getattr(type(made), name, None), MemberDescriptorType):
            raise PayloadError(f"{type(made).__qualname__} has no slot {name[:100]!r}")
        setattr(made, name, value)


def _harmless(made: object, state: Any) -> Any:
    """A state without what makes an ImportError import the module that it names, when it is printed."""
    if isinstance(made, ImportError) and type(state) is dict:
        return {name: value for name, value in state.items() if name != "name_from"}
    return state


def _set_exception(exc: Any, state: dict[str, Any]) -> None:
    base = builtin_base(type(exc))
    for name, value in state.items():
        if name == "args":
            if type(value) is not tuple:
                raise PayloadError("the sandbox sent an exception whose arguments are no tuple")
            exc.args = value
        elif name in vars(base) and not name.startswith("__"):
            setattr(exc, name, value)  # kept outside the instance's dict: ImportError.name, …
        else:
            vars(exc)[name] = value
