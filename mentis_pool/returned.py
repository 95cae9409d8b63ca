"""What a call returned or raised, to bytes, in the sandbox.

Everything but plain data is written as a box (`mentis_pool.boxes`), a class by its name, however
it came into the sandbox. `mentis_pool.rebuild` reads it in the client, which trusts none of this:
what is careful here is so for exact results, not for safety.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections.abc import Callable
from enum import Enum
from io import BytesIO
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

from mentis_pool import standard_types
from mentis_pool.boxes import Boxed, box, boxed
from mentis_pool.errors import PayloadError, in_words
from mentis_pool.standard_types import Packer

_PLAIN = frozenset((type(None), bool, int, float, str, bytes, bytearray))


def pack_value(value: object) -> bytes:
    """Pickle what a call returned.

    Raises:
        PayloadError: it cannot be pickled, or is of no kind that travels.
    """
    if type(value) in _PLAIN:
        return pickle.dumps(value, 5)
    return _pack("the result", value)


def pack_exception(exc: BaseException) -> bytes:
    """Pickle what a call raised: class, arguments and attributes; no cause, no traceback.

    Raises:
        PayloadError: an argument or attribute cannot be pickled.
    """
    return _pack("the exception", exc)


def _pack(what: str, value: object) -> bytes:
    file = BytesIO()
    try:
        _Pickler(file, 5).dump(value)
    except Exception as exc:  # pickling runs any code of the value's class
        raise PayloadError(
            f"{what} ({type(value).__name__}) cannot travel from the sandbox: {in_words(exc)}"
        ) from exc
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Writes boxes. It is asked for everything that is no plain data."""

    def reducer_override(self, obj: Any) -> Any:
        type_ = type(obj)
        packer = _packers.get(type_)
        if packer is None:
            packer = _packers[type_] = _packer_of(type_)
        return packer(obj)


_packers: dict[type, Packer] = dict(standard_types.UNNAMED)


def _packer_of(type_: type) -> Packer:
    if issubclass(type_, type):
        return _pack_class
    if issubclass(type_, (FunctionType, BuiltinFunctionType)):
        return _pack_function
    if issubclass(type_, BaseException) and not _has_own_reduce(type_):
        return _pack_exception
    if issubclass(type_, Enum):
        return _pack_enum_member
    return _listed(type_) or _pack_instance


def _listed(type_: type) -> Packer | None:
    package = type_.__module__.partition(".")[0]
    if package in ("numpy", "pandas", "pytz"):
        from mentis_pool import array_types

        return array_types.PACKER_OF[package](type_)
    name = type_.__name__
    for home in (type_.__module__, package):
        packer = standard_types.PACKERS.get(home, {}).get(name)
        if packer is not None and getattr(sys.modules.get(home), name, None) is type_:
            return packer
    return None


def _pack_class(cls: type) -> Boxed:
    return boxed("class", cls.__module__, cls.__qualname__)


def _pack_function(function: Any) -> Any:
    if function is box:
        return NotImplemented  # the one thing that is written as pickle does
    if "<" in function.__qualname__:
        raise pickle.PicklingError(f"{function.__qualname__} has no name to travel by")
    module = function.__module__
    if module is None:
        raise pickle.PicklingError("a method of a builtin type has no name to travel by")
    return boxed("function", module, function.__qualname__)


def _pack_enum_member(member: Any) -> Boxed:
    cls = type(member)
    if cls.__members__.get(member.name) is member:
        return boxed("member", cls, member.name)
    return boxed("flags", cls, member.value)  # several members of a Flag in one


def _has_own_reduce(cls: type) -> bool:
    """Whether an exception class says itself how it is pickled."""
    # BaseException has it, if no other.
    says = next(b for b in cls.__mro__ if not vars(b).keys().isdisjoint(_REDUCE))
    package = says.__module__.partition(".")[0]
    return package != "mentis_pool" and package not in sys.stdlib_module_names


_REDUCE = frozenset(("__reduce__", "__reduce_ex__"))


def _pack_exception(exc: BaseException) -> Boxed:
    base = builtin_base(type(exc))
    # The builtin's own: OSError keeps its file name apart from args, ImportError its module's.
    reduced = cast(tuple[Any, ...], base.__reduce__(exc))
    state = reduced[2] if len(reduced) > 2 else None
    return boxed("exception", type(exc), reduced[1], state=state)


def builtin_base(cls: type[BaseException]) -> type[BaseException]:
    """The nearest builtin exception that a class of exceptions is made from."""
    return next(
        base
        for base in cls.__mro__
        if base.__module__ == "builtins" and issubclass(base, BaseException)
    )


def _pack_instance(obj: Any) -> Boxed:
    reduce = copyreg.dispatch_table.get(type(obj))
    reduced = obj.__reduce_ex__(5) if reduce is None else reduce(obj)
    if isinstance(reduced, str):
        raise pickle.PicklingError(f"{reduced} is known by its name only")
    if not isinstance(reduced, tuple) or not 2 <= len(reduced) <= 6:
        raise pickle.PicklingError("__reduce__ has to give a string, or a tuple of 2 to 6")
    made, args, state, items, pairs, setter = [*reduced, None, None, None, None][:6]
    if setter is not None:
        raise pickle.PicklingError("its state has a setter, and functions do not travel back")
    kind, parts = _creation(made, args)
    return boxed(kind, *parts, state=state, items=items, pairs=pairs)


def _creation(made: Callable[..., object], args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """How an object is made, from what its ``__reduce__`` says."""
    if made is copyreg.__newobj__:  # type: ignore[attr-defined]
        return "new", (args[0], args[1:], {})
    if made is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
        return "new", args
    if made is copyreg._reconstructor:  # type: ignore[attr-defined]
        # A __reduce__ that calls object's: as before protocol 2.
        cls, base, state = args
        return "new", (cls, () if base is object else (state,), {})
    return "call", (made, args)
