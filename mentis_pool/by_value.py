"""The pickler of what a sandbox could not import: cloudpickle's, which keeps a list.

Apart from `mentis_pool.payload`, because cloudpickle takes 20 ms to import and most calls need none
of it.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _code_reduce, _dynamic_class_reduce


class ByValue(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles by value what ``can_be_imported(module)`` denies.

    Attributes:
        modules: those that were named, and those of all classes and functions that were named
            or carried.
        classes: those that were carried, by the names that they have in the sandbox.
    """

    def __init__(self, file: BytesIO, can_be_imported: Callable[[str], bool]) -> None:
        super().__init__(file, 5)
        self.can_be_imported = can_be_imported
        self.modules: set[str] = set()
        self.classes: dict[tuple[str, str], type] = {}

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is FunctionType and obj in _CLOUDPICKLES:
            return NotImplemented
        if type(obj) is CodeType:
            return _of_code(obj)
        if isinstance(obj, ModuleType):
            self.modules.add(obj.__name__)
            return super().reducer_override(obj)
        is_class = isinstance(obj, type)
        if not is_class and not isinstance(obj, (FunctionType, BuiltinFunctionType)):
            return super().reducer_override(obj)
        module = obj.__module__
        if isinstance(module, str):
            self.modules.add(module)
        reduced = super().reducer_override(obj)
        if (
            reduced is NotImplemented
            and isinstance(module, str)
            and not self.can_be_imported(module)
        ):
            # cloudpickle takes for importable whatever is in sys.modules.
            carry = _dynamic_class_reduce if is_class else self._dynamic_function_reduce
            reduced = carry(obj)
        carried = isinstance(reduced, tuple) and len(reduced) == _WITH_SETTER
        if is_class and carried and isinstance(module, str):
            # cloudpickle leaves the class in the sandbox its last name alone. Others may have that,
            # and even the whole of it: those that a function made each time it was called.
            name = obj.__qualname__
            while self.classes.get((module, name), obj) is not obj:
                name += "'"
            reduced[2][0]["__qualname__"] = name
            self.classes[module, name] = obj
        return reduced


def _of_code(code: CodeType) -> tuple[Any, ...]:
    """As cloudpickle's, whose newer versions leave out the file that tracebacks name and show."""
    make, parts = _code_reduce(code)
    known = (code.co_filename if type(part) is str and part == _NO_FILE else part for part in parts)
    return make, tuple(known)


_NO_FILE = "<dynamic-code>"

# What its pickles call, several times in each: cloudpickle would ask of each whether it has a name.
_CLOUDPICKLES = frozenset(
    function
    for function in vars(cloudpickle.cloudpickle).values()
    if type(function) is FunctionType and function.__module__ == cloudpickle.cloudpickle.__name__
)

# What cloudpickle gives for a class by value has a function to set its state. (For the types of
# None and Ellipsis it has none: these are named.)
_WITH_SETTER = 6
