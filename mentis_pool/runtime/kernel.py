"""System calls of Linux that walls are made of, one thin function each.

Each raises OSError, with the number of the error and the name of the call. Those that the C
library may not have (and those of Landlock, which none has) go by their number.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import stat
import struct
import sys

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = (
    *(0x20000, 0x8000000, 0x10000000),
    *(0x20000000, 0x40000000),
)
"""Flags of unshare(2): the kinds of namespaces."""

READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, REMOUNT, NO_ACCESS_TIMES, BIND, RECURSIVE, PRIVATE = (
    *(0x1, 0x2, 0x4, 0x8, 0x20, 0x400, 0x1000),
    *(0x4000, 0x40000),
)
"""Flags of mount(2)."""

_DETACH = 2

_SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 4, 22, 38
_FILTER = 2

_CAPSET = {"x86_64": 126, "aarch64": 91}.get(platform.machine(), -1)
_CAPABILITY_VERSION_3 = 0x20080522
_GET_FLAGS = 0x80086601
"""FS_IOC_GETFLAGS of ioctl_iflags(2)."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_CLONE_TREE, _EMPTY_PATH, _ALL_BELOW, _FROM_EMPTY_PATH, _HERE = 0x1, 0x1000, 0x8000, 0x4, -100
_MAPPED = 0x100000

_libc = ctypes.CDLL(None, use_errno=True)
# Made but once: a process that was just forked copies all that making them touches.
_NONE = (
    ctypes.byref((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)),
    ctypes.byref((ctypes.c_uint32 * 6)()),
)


def unshare(flags: int) -> None:
    """Leave namespaces of these kinds for new ones; of pids, for the children alone."""
    _check("unshare", _libc.unshare(ctypes.c_int(flags)))


def set_namespace(fd: int, kind: int) -> None:
    """Enter the namespace of this kind that the descriptor is of; of pids, for the children alone."""
    _check("setns", _libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount a file system, or change how one is mounted (mount(2))."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    done = _libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None)
    _check("mount", done, target)


def mount_at(fd: int, target: str) -> None:
    """Show what the descriptor is of at a path as well, which is made."""
    _make_like(fd, target)
    mount(f"/proc/self/fd/{fd}", target, None, BIND | RECURSIVE)


def mount_mapped_at(fd: int, target: str, users: int) -> None:
    """As `mount_at`, with its owners as a user namespace (a descriptor of it) maps them.

    Raises:
        OSError: also where one of the file systems, or this kernel, cannot do that.
    """
    tree = _syscall("open_tree", _OPEN_TREE, fd, b"", _CLONE_TREE | _EMPTY_PATH | _ALL_BELOW)
    try:
        attributes = struct.pack("=4Q", _MAPPED, 0, 0, users)
        flags = _EMPTY_PATH | _ALL_BELOW
        _syscall("mount_setattr", _MOUNT_SETATTR, tree, b"", flags, attributes, len(attributes))
        _make_like(fd, target)
        where = os.fsencode(target)
        _syscall("move_mount", _MOVE_MOUNT, tree, b"", _HERE, where, _FROM_EMPTY_PATH)
    finally:
        os.close(tree)


def _make_like(fd: int, target: str) -> None:
    """Make a directory or a file to mount on."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o400))


def unmount(target: str) -> None:
    """Take a mount out of sight, with what is mounted below it; it ends with its last user."""
    _check("umount2", _libc.umount2(os.fsencode(target), _DETACH), target)


def inode_flags(path: str) -> int | None:
    """What chattr(1) sets of a file or directory; None where its file system keeps no such flags."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int.from_bytes(fcntl.ioctl(fd, _GET_FLAGS, bytes(8)), sys.byteorder)
    except OSError as exc:
        if exc.errno != errno.ENOTTY:
            raise
        return None
    finally:
        os.close(fd)


def drop_capabilities() -> None:
    """Give up all capabilities, ambient ones too."""
    _syscall("capset", _CAPSET, *_NONE)


def gain_no_privileges() -> None:
    """Let no program that is executed from here on raise its privileges, for ever."""
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)


def set_dumpable(dumpable: bool) -> None:
    """Whether processes of the same user may look into this one, through /proc and ptrace(2)."""
    _prctl(_SET_DUMPABLE, int(dumpable))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def filter_calls(program: bytes) -> None:
    """Judge all system calls of this thread and its children by a BPF program, for ever (seccomp(2))."""
    its = _Program(len(program) // 8, program)
    _prctl(_SET_SECCOMP, _FILTER, ctypes.addressof(its))


def landlock_version() -> int:
    """The version of Landlock's interface; 0 where there is none."""
    return max(0, int(_libc.syscall(*_longs(_CREATE_RULESET, 0, 0, _VERSION))))


def landlock_create(attributes: bytes) -> int:
    """A descriptor of a new set of rules (landlock_create_ruleset(2))."""
    return _syscall("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)


def landlock_allow(ruleset: int, rule: bytes) -> None:
    """Add a rule for what lies beneath a path (landlock_add_rule(2))."""
    _syscall("landlock_add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)


def landlock_restrict(ruleset: int) -> None:
    """Bind this thread and its children to the rules, for ever (landlock_restrict_self(2))."""
    _syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)


def _prctl(*arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:5]
    _check("prctl", _libc.prctl(*_longs(*padded)))


def _syscall(name: str, number: int, *arguments: object) -> int:
    done = _libc.syscall(*_longs(number, *arguments))
    _check(name, done)
    return int(done)


def _longs(*arguments: object) -> list[object]:
    """For a function with a variable number of them, where nothing else makes an int wide enough."""
    return [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]


def _check(name: str, done: int, path: str | None = None) -> None:
    if done < 0:
        number = ctypes.get_errno()
        what = f"{name}: {os.strerror(number)}"
        raise OSError(number, what) if path is None else OSError(number, what, path)
