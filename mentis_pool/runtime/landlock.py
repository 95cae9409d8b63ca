"""What a process may still reach of the file system and of others: Landlock (landlock(7)).

For where no wall can be built: it needs no privileges and no namespaces. The process still sees
that paths exist and who runs, but opens nothing that is not named, connects to no TCP port
(version 4 of the kernel's interface) and to no abstract socket, and signals no process (version 6),
but those that it starts itself. It does not hold UDP, nor sockets that have a path, nor changes of
another process's limits (the filter of system calls does: see `mentis_pool.runtime.seccomp`), nor
the mode and the times of files.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from mentis_pool.runtime import kernel

MISSING = "this kernel has none: Linux has it from 5.13 on, where its lsm= names landlock"
"""Why it cannot be had, where its version is 0."""

_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE = 1 << 4 | 1 << 5
_DEVICES = 1 << 6 | 1 << 11
_MAKE = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12  # directories, files, sockets, pipes, links
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15  # versions 2, 3, 5
_SINCE = {_REFER: 2, _TRUNCATE: 3, _IOCTL: 5}

_LOOK = _EXECUTE | _READ | _LIST
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_TCP = 1 << 0 | 1 << 1  # bind, connect
_SCOPES = 1 << 0 | 1 << 1  # abstract sockets, signals


def restrict(read_only: Iterable[str], read_write: Iterable[str], network: str = "none") -> None:
    """Leave this thread and its children no more than this, for ever.

    Args:
        read_only: paths below which files may be read and executed; those that are not there
            are passed over.
        read_write: paths below which anything may be done but to make device nodes.
        network: "none" for no TCP; "host" for all of it.

    Raises:
        OSError: this kernel has no Landlock (see `kernel.landlock_version`).
    """
    version = kernel.landlock_version()
    ruleset = kernel.landlock_create(attributes(version, network))
    try:
        for paths, writable in ((read_only, False), (read_write, True)):
            for path in paths:
                _allow(ruleset, path, version, writable)
        kernel.gain_no_privileges()
        kernel.landlock_restrict(ruleset)
    finally:
        os.close(ruleset)


def attributes(version: int, network: str) -> bytes:
    """What is forbidden unless a rule allows it (struct landlock_ruleset_attr), as far as this version can."""
    its = [_known(version, writable=True) | _DEVICES]
    if version >= 4:
        its.append(_TCP if network == "none" else 0)
    if version >= 6:
        its.append(_SCOPES)
    return struct.pack(f"={len(its)}Q", *its)


def rule(version: int, fd: int, mode: int, writable: bool) -> bytes:
    """What is allowed at and below an open path of this mode (struct landlock_path_beneath_attr)."""
    allowed = _known(version, writable)
    if not stat.S_ISDIR(mode):
        allowed &= _OF_FILES
    return struct.pack("=Qi", allowed, fd)


def _known(version: int, writable: bool) -> int:
    rights = _LOOK
    if writable:
        rights |= _WRITE | _REMOVE | _MAKE
        rights |= sum(right for right, since in _SINCE.items() if version >= since)
    return rights


def _allow(ruleset: int, path: str, version: int, writable: bool) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        kernel.landlock_allow(ruleset, rule(version, fd, os.fstat(fd).st_mode, writable))
    finally:
        os.close(fd)
