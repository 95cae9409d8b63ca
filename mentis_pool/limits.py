"""How much of the machine a sandbox may use, and how an exceeded limit is told of.

Pure: values in, values out. What holds the limits is `mentis_pool.runtime`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

Which = Literal["memory", "cpu_seconds", "processes", "open_files", "file_size", "disk", "output"]
"""The names of the limits."""

_SIZES = ("memory", "file_size", "disk", "output")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T"))}
# Below these not even an empty cell runs.
_LEAST = {"memory": 16 << 20, "processes": 2, "open_files": 32}
_MOST = 1 << 62
HEADROOM = 1 << 30
"""Bytes that a process may reserve over what it may hold: stacks of threads, 32 MiB for each in BLAS."""
_STACK = 8 << 20


@dataclasses.dataclass(frozen=True, init=False)
class Limits:
    """What one sandbox may use; None for no limit.

    A size is a number of bytes, or text: ``"512M"``, ``"1.5G"`` (units of 1024).

    Args:
        memory: bytes that all its processes hold together: what they share with
            another is counted by halves, what they share with the runtime hardly. No
            one process may reserve more than this and 1 GiB: it gets a MemoryError.
        cpu_seconds: CPU time of one task, with all processes that it started.
        processes: its processes and threads, besides those of the runtime.
        open_files: descriptors that one process may have.
        file_size: bytes of one file.
        disk: bytes of all files that it wrote, ``/work``, ``/tmp`` and home together.
        output: bytes that one task may write to stdout and stderr, kept or not.

    Raises:
        ValueError, TypeError: one is none of these; it is named.
    """

    memory: int | None
    cpu_seconds: float | None
    processes: int | None
    open_files: int | None
    file_size: int | None
    disk: int | None
    output: int | None

    def __init__(
        self,
        memory: int | str | None = "512M",
        *,
        cpu_seconds: float | None = None,
        processes: int | None = 256,
        open_files: int | None = 1024,
        file_size: int | str | None = None,
        disk: int | str | None = "256M",
        output: int | str | None = "1G",
    ) -> None:
        given = {
            "memory": memory,
            "cpu_seconds": cpu_seconds,
            "processes": processes,
            "open_files": open_files,
            "file_size": file_size,
            "disk": disk,
            "output": output,
        }
        for name, value in given.items():
            object.__setattr__(self, name, _checked(name, value))

    @classmethod
    def none(cls) -> Limits:
        """No limit at all."""
        return cls(None, processes=None, open_files=None, disk=None, output=None)


def _checked(name: str, value: object) -> int | float | None:
    if value is None:
        return None
    if name in _SIZES:
        value = _size(name, value)
    elif name == "cpu_seconds":
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
        if not 0 < value < 1e9:
            raise ValueError(f"{name} must be more than 0 and less than 1e9 seconds, not {value!r}")
        return float(value)
    elif not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number or None, not {value!r}")
    least = _LEAST.get(name, 1)
    if value < least:
        needed = in_bytes(least) if name in _SIZES else str(least)
        raise ValueError(f"{name} must be at least {needed}, not {value}")
    if value > _MOST:
        raise ValueError(f"{name} must be less than 2**62, not {value}: None means no limit")
    return value


def _size(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    hint = 'a number of bytes, text like "512M" or "1.5G", or None'
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {hint}, not {value!r}")
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{name} must be {hint}, not {value!r}")
    number, unit = found.groups()
    return int(float(number) * _UNITS[unit.upper()])


def in_bytes(size: float) -> str:
    """A size in words: "512 MiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


_USED = {
    "memory": "its processes held {} of memory",
    "cpu_seconds": "its processes used {} of CPU time",
    "processes": "it had {} processes and threads",
    "open_files": "a process had {} files open",
    "file_size": "a file had {}",
    "disk": "its files took {}",
    "output": "it wrote {} of output",
}


def message(which: Which, limit: float, used: float | None) -> str:
    """What its user is told: what was used, the limit, and how to raise it.

    Without ``used`` the system said no to what would have gone over it.
    """
    if used is None:
        what = f"the system gave it no more than its {which} limit of {_amount(which, limit)}"
    else:
        what = f"{_USED[which].format(_amount(which, used))}, over its limit of {_amount(which, limit)}"
    return f"{what}: SandboxExecutor(limits=Limits({which}=…)) allows more"


def _amount(which: Which, amount: float) -> str:
    if which in _SIZES:
        return in_bytes(amount)
    return f"{amount:.4g} s" if which == "cpu_seconds" else f"{amount:g}"


_ERRNOS: dict[str, Which] = {
    "[Errno 11] ": "processes",
    "[Errno 24] ": "open_files",
    "[Errno 27] ": "file_size",
    "[Errno 28] ": "disk",
}
"""How OSErrors begin that the system raises where a limit is reached (errno(3), Linux)."""


def told_by(limits: Limits, name: str, value: str) -> Which | None:
    """The limit that an exception of this name and text tells of, if there is such a limit.

    Of numpy's own MemoryError, too, which has another name.
    """
    which: Which | None
    if name in ("MemoryError", "_ArrayMemoryError"):
        which = "memory"
    elif name == "RuntimeError" and value == "can't start new thread":
        # Whichever they reach first: each thread reserves its stack.
        memory, most = limits.memory, limits.processes
        stacks = None if memory is None else (memory + HEADROOM) // _STACK
        which = "memory" if stacks is not None and (most is None or stacks < most) else "processes"
    elif name in ("OSError", "BlockingIOError"):
        which = _ERRNOS.get(value[:11])
    else:
        which = None
    return None if which is None or getattr(limits, which) is None else which
