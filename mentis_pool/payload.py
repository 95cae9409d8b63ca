"""Callables, arguments and variables to bytes, on their way into a sandbox.

What is pickled here is rebuilt in a sandbox, where anything may be unpickled. The way back is
`mentis_pool.returned` in the sandbox and `mentis_pool.rebuild` here.
"""

from __future__ import annotations

import keyword
import pickle
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from io import BytesIO
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypeAlias

from mentis_pool.errors import PayloadError, in_words
from mentis_pool.pool_stream import MAX_RUN

Classes: TypeAlias = Mapping[tuple[str, str], type]
"""(module, qualified name) -> class."""

# Of these, pickle alone gives the same bytes as cloudpickle, sooner.
_SIMPLE = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray))


def pickle_variables(variables: dict[str, object]) -> dict[str, bytes]:
    """Each variable as a pickle of its own.

    Functions, lambdas and classes of ``__main__`` travel by value, what can be
    imported by its name.

    Raises:
        PayloadError: one cannot be pickled, is too large, or has no name of
            Python's; the message names it.
    """
    for name in variables:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise PayloadError(f"{name!r} cannot be the name of a variable")
    pickles = {name: _pickle(name, value) for name, value in variables.items()}
    total = sum(map(len, pickles.values()))
    if total > MAX_RUN:
        largest = max(pickles, key=lambda name: len(pickles[name]))
        raise PayloadError(
            f"the variables have {total} bytes, over the limit of {MAX_RUN}; "
            f"the largest is {largest!r} with {len(pickles[largest])}; write it to a file"
        )
    return pickles


def _pickle(name: str, value: object) -> bytes:
    if type(value) in _SIMPLE:
        return pickle.dumps(value, 5)
    import cloudpickle  # takes 20 ms to import, and most cells have no such variable

    try:
        return bytes(cloudpickle.dumps(value, 5))
    except Exception as exc:  # pickling runs any code of the value's class
        raise PayloadError(
            f"the variable {name!r} ({type(value).__name__}) cannot travel to a sandbox: {in_words(exc)}"
        ) from exc


# ── calls ───────────────────────────────────────────────────────────────────


class Call(NamedTuple):
    """A callable and its arguments as bytes, and whose classes may come back.

    Attributes:
        pickled: what `unpack_call` takes.
        packages: top-level packages of the classes and functions in it, without those of
            the standard library. Calls that have the same share one object.
        classes: the classes that went by value, by the names they come back under; None
            where there are none.
    """

    pickled: bytes
    packages: frozenset[str]
    classes: Classes | None


def pack_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Pickle a call: by name what the sandbox can import, and else by value.

    Raises:
        PayloadError: something cannot be pickled; the message says which argument, or that
            it is the callable. Or it is all too large.
    """
    call = _packed(fn, args, kwargs)
    if len(call.pickled) > MAX_RUN:
        raise PayloadError(
            f"the call has {len(call.pickled)} bytes, over the limit of {MAX_RUN}: "
            "write what is large to a file, and pass its absolute path"
        )
    return call


def _packed(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    call = (fn, args, kwargs)
    try:
        # With a function of __main__ it would be in vain.
        if type(fn) is not FunctionType or _can_be_imported(fn.__module__):
            return _of_plain(call) if _is_plain(fn, args, kwargs) else _by_name(call)
    except (Exception, SystemExit):  # noqa: BLE001 - pickling runs any code of the objects' classes
        # Something has no name in the sandbox; or it cannot be pickled at all, and then
        # the other way says why.
        pass
    try:
        return _by_value(call)
    except (Exception, SystemExit) as exc:  # pickling runs any code of the objects' classes
        raise _culprit(fn, args, kwargs, exc) from exc


def unpack_call(
    pickled: bytes | memoryview,
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Give what `pack_call` took. For sandboxes: it runs what the pickle says.

    Raises:
        BaseException: whatever the classes of the arguments raise.
    """
    fn, args, kwargs = pickle.loads(pickled)
    return fn, args, kwargs


def _culprit(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], exc: BaseException
) -> PayloadError:
    parts = [("the callable", fn)]
    parts += [(f"argument {position}", value) for position, value in enumerate(args)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for place, value in parts:
        try:
            _by_value(value)
        except (Exception, SystemExit) as own:  # noqa: BLE001 - as above
            return PayloadError(
                f"{place} ({type(value).__name__}) cannot travel to a sandbox: {in_words(own)}"
            )
    return PayloadError(f"the call cannot travel to a sandbox: {in_words(exc)}")


class _NotByNameError(pickle.PicklingError):
    """The sandbox could not import it."""


def _is_plain(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether but for a function that can be imported there is only what names nothing."""
    return (
        (type(fn) is FunctionType or (type(fn) is BuiltinFunctionType and _is_of_module(fn)))
        and _SIMPLE.issuperset(map(type, args))
        and (not kwargs or _SIMPLE.issuperset(map(type, kwargs.values())))
    )


def _is_of_module(fn: BuiltinFunctionType) -> bool:
    return type(fn.__self__) is ModuleType and _can_be_imported(fn.__module__)


def _of_plain(call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> Call:
    """As `_by_name`, in a third of the time."""
    # Whether the name leads to the function is asked by the pickler.
    return Call(pickle.dumps(call, 5), _shared_packages({call[0].__module__}), None)


def _by_name(value: object) -> Call:
    file = BytesIO()
    pickler = _ByName(file, 5)
    pickler.dump(value)
    return Call(file.getvalue(), _shared_packages(pickler.modules), None)


class _ByName(pickle.Pickler):
    """Pickles only what can be imported in a sandbox."""

    def __init__(self, file: BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.modules: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        # For all but plain data. Whether the name leads to the object is asked by the pickler.
        named = obj if isinstance(obj, _NAMED) else type(obj)
        module = named.__module__
        if module not in self.modules and module is not None:
            if not _can_be_imported(module):
                raise _NotByNameError
            self.modules.add(module)
        return NotImplemented


_NAMED = (type, FunctionType, BuiltinFunctionType)


def _by_value(value: object) -> Call:
    from mentis_pool.by_value import ByValue  # cloudpickle takes 20 ms to import

    file = BytesIO()
    pickler = ByValue(file, _can_be_imported)
    pickler.dump(value)
    return Call(
        file.getvalue(), _shared_packages(pickler.modules), _shared_classes(pickler.classes)
    )


# ── what the sandbox can import ─────────────────────────────────────────────

_found: dict[str, tuple[ModuleSpec | None, bool]] = {}


def _can_be_imported(module: str) -> bool:
    """Whether the name finds, in a new process, the module that has it here."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    known = _found.get(module)
    if known is None or known[0] is not spec:
        known = _found[module] = (spec, _is_found(module, spec))
    return known[1]


def _is_found(module: str, spec: ModuleSpec | None) -> bool:
    # python -m package.module runs it as __main__, with the spec of its other name.
    if spec is None or spec.name != module:
        return False
    parent = module.rpartition(".")[0]
    if parent and not _can_be_imported(parent):
        return False
    # importlib.util.find_spec() would answer with the spec that the module has already.
    path = sys.modules[parent].__path__ if parent else None
    for finder in sys.meta_path:
        found = finder.find_spec(module, path)
        if found is not None:
            return found.origin == spec.origin
    return False


# ── shared between calls ────────────────────────────────────────────────────

GOVERNED = frozenset((*sys.stdlib_module_names, "numpy", "pandas", "cloudpickle", "mentis_pool"))
"""Packages of which only what is on a list is rebuilt, whatever the call names."""

_packages_of: dict[frozenset[str], frozenset[str]] = {}
_packages: dict[frozenset[str], frozenset[str]] = {}


def _shared_packages(modules: set[str]) -> frozenset[str]:
    key = frozenset(modules)
    packages = _packages_of.get(key)
    if packages is None:
        packages = frozenset(module.partition(".")[0] for module in modules) - GOVERNED
        packages = _packages_of[key] = _packages.setdefault(packages, packages)
    return packages


_last_classes: Classes | None = None


def _shared_classes(classes: dict[tuple[str, str], type]) -> Classes | None:
    """The mapping of the call before, where it is the same: thousands of calls in a row are alike."""
    global _last_classes
    if not classes:
        return None
    last = _last_classes
    if (
        last is None
        or last.keys() != classes.keys()
        or any(last[name] is not cls for name, cls in classes.items())
    ):
        last = _last_classes = classes
    return last
