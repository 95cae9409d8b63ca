"""Which classes and functions a sandbox may name, and how an object of one is made.

A name is looked up in what is imported already; only for what the user trusts by name is anything
imported. Packages that have a reviewed list (`mentis_pool.payload.GOVERNED`: the standard
library, numpy, pandas) are governed by it alone, also when the callable is from there.
"""

from __future__ import annotations

import builtins
import sys
from collections import ChainMap, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, EnumMeta, Flag
from fractions import Fraction
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Literal, TypeAlias

from mentis_pool import standard_types
from mentis_pool.errors import PayloadError
from mentis_pool.payload import GOVERNED, Call
from mentis_pool.returned import builtin_base

REMEDY = "SandboxExecutor(trust=[…])"


@dataclass(frozen=True)
class Trust:
    """What may be rebuilt besides the lists and the classes of the call's own packages.

    Attributes:
        everything: every class and function that there is.
        packages: names of packages or modules: every class and function in them, which are
            imported for it.
        types: classes, by (module, qualified name), and nothing else of their packages.
    """

    everything: bool
    packages: frozenset[str]
    types: dict[tuple[str, str], type]

    @classmethod
    def of(cls, trust: Iterable[type | str] | Literal["all"]) -> Trust:
        """Read what the user gave: ``"all"``, or classes and names of packages or modules.

        Raises:
            TypeError: it is neither.
            ValueError: a name is none that could be imported.
        """
        if isinstance(trust, str):
            if trust == "all":
                return cls(True, frozenset(), {})
            raise ValueError(f'trust is "all" or a list; for one package: trust=[{trust!r}]')
        if isinstance(trust, type) or not isinstance(trust, Iterable):
            raise TypeError(f'trust is "all" or a list of classes and package names, not {trust!r}')
        packages: set[str] = set()
        types: dict[tuple[str, str], type] = {}
        for entry in trust:
            if isinstance(entry, type):
                types[entry.__module__, entry.__qualname__] = entry
            elif not isinstance(entry, str):
                raise TypeError(f"trust names classes and packages, not {entry!r}")
            elif all(part.isidentifier() for part in entry.split(".")):
                packages.add(entry)
            else:
                raise ValueError(f"trust names packages, and {entry!r} is no name of one")
        return cls(False, frozenset(packages), types)

    def in_package(self, module: str) -> bool:
        """Whether all of a module is trusted."""
        if self.everything:
            return True
        parts = module.split(".")
        return any(".".join(parts[: n + 1]) in self.packages for n in range(len(parts)))


def untrusted(module: str, name: str, remedy: str = "name it") -> PayloadError:
    if "<locals>" in name:
        return not_here(module, name)
    return PayloadError(
        f"{module[:200]}.{name[:200]} came out of the sandbox and is not trusted; "
        f"if it should be rebuilt here, {remedy}: {REMEDY}"
    )


def not_here(module: str, name: str) -> PayloadError:
    return PayloadError(
        f"{module[:200]}.{name[:200]} came out of the sandbox, and nothing here has that name: "
        "it was made there, or in a function. Return plain data in its place, or define it at the "
        "top level of a module that can be imported here too"
    )


class Names:
    """The classes (and, where a package is trusted, functions) that one pickle may name."""

    def __init__(self, call: Call, trust: Trust) -> None:
        self.call = call
        self.trust = trust
        # Id: class or function that may be called, and what refuses an argument of it. (By
        # id, for the metaclass of a class may have a hash of its own.)
        self.may_make: dict[int, tuple[object, _Refuses | None]] = {}

    def find(self, module: Any, name: Any) -> type:
        """What a box of a class stands for.

        It is looked up in dicts, never asked of a module or class, which may have a
        ``__getattr__``, and nothing is imported but what is trusted.
        """
        if type(module) is not str or type(name) is not str:
            raise PayloadError("the sandbox sent a name that is no text")
        classes = self.call.classes
        found: object = None
        if classes is not None and (module, name) in classes:
            found = classes[module, name]
        elif (module, name) in self.trust.types:
            found = self.trust.types[module, name]
        elif self.trust.in_package(module):
            import_module(module)
            found = _look_up(module, name)
        elif _package(module) in self.call.packages and _package(module) not in GOVERNED:
            found = _look_up(module, name)
        else:
            return _listed(module, name)
        if not _is_class(found):
            raise untrusted(module, name)
        self.may_make[id(found)] = found, _refused_by(found)  # type: ignore[arg-type]
        return found  # type: ignore[return-value]

    def find_function(self, module: Any, name: Any) -> object:
        if type(module) is not str or type(name) is not str or not self.trust.in_package(module):
            raise untrusted(str(module), str(name), "name its package (it is a function)")
        import_module(module)
        found = _look_up(module, name)
        if not isinstance(found, (FunctionType, BuiltinFunctionType)):
            raise untrusted(module, name)
        self.may_make[id(found)] = found, _refuse_nothing
        return found

    def new(self, cls: Any, args: Any, kwargs: Any) -> object:
        """An instance, by ``__new__`` alone."""
        self._only_trusted(cls, args, kwargs)
        return cls.__new__(cls, *args, **kwargs)

    def called(self, cls: Any, args: Any) -> object:
        """An instance as the class's ``__reduce__`` wants it: by calling the class."""
        self._only_trusted(cls, args, {})
        return cls(*args)

    def exception(self, cls: Any, args: Any) -> BaseException:
        """An exception without calling its class, whose arguments may be others."""
        if not _is_class(cls) or not issubclass(cls, BaseException):
            raise PayloadError("the sandbox sent an exception of no class of exceptions")
        if type(args) is not tuple:
            raise PayloadError("the sandbox sent an exception whose arguments are no tuple")
        base = builtin_base(cls)
        if issubclass(base, _UNPACKING) and any(map(_is_vast, args)):
            raise PayloadError(f"{cls.__qualname__} would get a range instead of its content")
        exc: BaseException = base.__new__(cls, *args)
        try:
            base.__init__(exc, *args)
        except (TypeError, ValueError):
            # A class of one's own put something else into args than its builtin takes.
            exc.args = args
        return exc

    def member(self, cls: Any, name: Any) -> object:
        """A member of an enum, by its name; no code of the class runs."""
        self._only_enum(cls)
        members = type.__getattribute__(cls, "_member_map_")
        if type(name) is not str or name not in members:
            raise PayloadError(f"the sandbox sent a member that {cls.__qualname__} does not have")
        return members[name]

    def flags(self, cls: Any, value: Any) -> object:
        """Members of a Flag together."""
        self._only_enum(cls)
        known = 0
        for member in type.__getattribute__(cls, "_member_map_").values():
            known |= member._value_
        if not issubclass(cls, Flag) or type(value) is not int or value & ~known:
            # What it is instead is not shown: that may take for ever.
            raise PayloadError(f"no members of {cls.__qualname__} together are what came")
        return cls(value)

    def _only_enum(self, cls: Any) -> None:
        if not isinstance(cls, EnumMeta):
            raise PayloadError("the sandbox sent a member of what is no enum")

    def _only_trusted(self, cls: Any, args: Any, kwargs: Any) -> None:
        known = self.may_make.get(id(cls))
        if known is None:
            if isinstance(cls, type):
                raise untrusted(cls.__module__, cls.__qualname__)
            raise PayloadError("the sandbox sent an object of no class")
        refuses = known[1]
        if refuses is None:
            raise PayloadError(f"{cls.__qualname__} came out of the sandbox in no way that is safe")
        if type(args) is not tuple or type(kwargs) is not dict:
            raise PayloadError("the sandbox sent arguments that are no tuple and no dict")
        if any(map(refuses, (*args, *kwargs.values()))):
            raise PayloadError(f"{cls.__qualname__} would get a size instead of its content")


METHOD = {
    "class": "find",
    "function": "find_function",
    "new": "new",
    "call": "called",
    "exception": "exception",
    "member": "member",
    "flags": "flags",
}
"""Kind: the method of `Names` that makes it."""

INSTANCES = frozenset(("new", "call"))
"""Kinds of instances, which may have a state and items."""


def _package(module: str) -> str:
    return module.partition(".")[0]


def _is_class(value: object) -> bool:
    """Whether it is a class, and none of classes. (isinstance() would believe its __class__.)"""
    return issubclass(type(value), type) and not issubclass(value, type)  # type: ignore[arg-type]


def _look_up(module: str, name: str) -> object:
    """What is defined under a name in a module that is imported already."""
    found: object = sys.modules.get(module)
    if not isinstance(found, ModuleType):
        raise untrusted(module, name)
    space = vars(found)
    for step in name.split("."):
        found = space.get(step)
        if not issubclass(type(found), (type, FunctionType, BuiltinFunctionType)):
            raise not_here(module, name)
        space = vars(found) if issubclass(type(found), type) else {}
    # Not what a module has merely imported.
    if found.__module__ != module or found.__qualname__ != name:  # type: ignore[union-attr]
        raise not_here(module, name)
    return found


def _listed(module: str, name: str) -> type:
    """A class of the standard library, numpy or pandas that may come as a value."""
    if module == "builtins" and name in _BUILTIN_VALUES:
        return _BUILTIN_VALUES[name]
    package = _package(module)
    # Of our own errors most say something about the sandbox, which it must not say itself.
    ours = package == "mentis_pool" and name != PayloadError.__qualname__
    if package in GOVERNED and not ours:
        found = _look_up(module, name)
        if _is_class(found) and (
            found in standard_types.VALUES
            or issubclass(found, (BaseException, Enum))  # type: ignore[arg-type]
            or _is_numpy_scalar(found)
        ):
            return found  # type: ignore[return-value]
    raise untrusted(module, name)


# Those of None, Ellipsis and NotImplemented are not found under their names.
_BUILTIN_VALUES = {
    cls.__name__: cls for cls in standard_types.VALUES if cls.__module__ == "builtins"
}


# They make tuples of what is among their arguments.
_UNPACKING: tuple[type, ...] = (SyntaxError, getattr(builtins, "BaseExceptionGroup", SyntaxError))


def _is_numpy_scalar(cls: Any) -> bool:
    np = sys.modules.get("numpy")
    return np is not None and issubclass(cls, np.generic)


_Refuses: TypeAlias = Callable[[object], bool]
"""Whether an argument is not given to a class's constructor."""

_TEXTS = frozenset((type(None), str, bytes, bytearray))
_SCALARS = _TEXTS | {bool, int, float, complex}
_PLAIN = frozenset((list, tuple, set, frozenset, deque))


def _refused_by(cls: type) -> _Refuses | None:
    """What the builtin constructor that a class has from its bases would believe too much.

    None where no instance may be made at all.
    """
    if issubclass(cls, Enum):
        return None  # members come by their name
    if any(_package(base.__module__) in ("numpy", "pandas") for base in cls.__mro__):
        return None  # a state is believed there, down to the memory
    if issubclass(cls, (bytes, bytearray)):
        return lambda arg: type(arg) not in _TEXTS  # a number is a size
    if issubclass(cls, (str, int, float, complex)):
        # As text a list in lists may be endless, and as an int Decimal("1e999999999").
        return lambda arg: type(arg) not in _SCALARS
    if issubclass(cls, Fraction):
        # So may a text with an exponent be.
        return lambda arg: type(arg) is not int and (type(arg) is not str or "e" in arg.lower())
    if issubclass(cls, dict):
        return _has_vast  # it takes pairs
    if issubclass(cls, (list, set, frozenset, deque)):
        return _is_vast
    if issubclass(cls, tuple):
        maker = next(base for base in cls.__mro__ if "__new__" in vars(base))
        # The fields of a named tuple are not gone through.
        return _refuse_nothing if "_fields" in vars(maker) else _is_vast
    return _refuse_nothing


def _refuse_nothing(arg: object) -> bool:
    return False


def _is_vast(arg: object) -> bool:
    """Whether it is small here, and as long as a sandbox likes for whoever goes through it."""
    return isinstance(arg, (range, ChainMap, *_vast_of("ipaddress"), *_vast_of("pandas")))


_VAST = {"ipaddress": ("IPv4Network", "IPv6Network"), "pandas": ("RangeIndex",)}


def _vast_of(package: str) -> list[type]:
    found = (getattr(sys.modules.get(package), name, None) for name in _VAST[package])
    return [cls for cls in found if cls is not None]


def _has_vast(arg: object) -> bool:
    return _is_vast(arg) or (type(arg) in _PLAIN and any(map(_is_vast, arg)))  # type: ignore[call-overload]
