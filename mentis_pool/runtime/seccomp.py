"""Which system calls a sandbox may not make, as a BPF program (seccomp(2)).

Denied is what reaches the kernel's more dangerous parts and what Python code has no use for: a
list of what is denied, not of what is allowed, since libraries use most of the rest. What
capabilities guard already is denied here as well, so that neither wall stands alone. A denied
call fails with EPERM; calls newer than this file's knowledge (and those of x32, which have
high numbers) with ENOSYS, as on an older kernel. Denied as well is memory that no process need
have mapped, since no limit would see it: System V's, and files without a name (memfd_create).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import NamedTuple

# Instructions of BPF, and where `struct seccomp_data` has what they load.
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NEWEST = 469
"""The highest number that this file knows: file_setattr, of Linux 6.17."""

_Instruction = tuple[int, int, int, int]


class Numbers(NamedTuple):
    """What differs from one architecture to the other."""

    audit: int
    """How the kernel calls it in what is judged."""
    denied: dict[str, int]
    clone: int
    ioctl: int
    personality: int
    socket: int
    mknod: dict[int, int]
    """Those that make nodes, and which of their arguments is the mode."""
    of_others: dict[int, dict[int, int]]
    """Those that change another process by its number, and what their arguments are for one's own."""


# The same everywhere, from 424 on.
_NEW = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
    "open_tree_attr": 467,
}
_CLONE3 = 435

_X86_64 = Numbers(
    audit=0xC000003E,
    denied={
        "shmget": 29,
        "semget": 64,
        "msgget": 68,
        "ptrace": 101,
        "syslog": 103,
        "uselib": 134,
        "ustat": 136,
        "sysfs": 139,
        "vhangup": 153,
        "modify_ldt": 154,
        "pivot_root": 155,
        "_sysctl": 156,
        "adjtimex": 159,
        "chroot": 161,
        "acct": 163,
        "settimeofday": 164,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "swapoff": 168,
        "reboot": 169,
        "sethostname": 170,
        "setdomainname": 171,
        "iopl": 172,
        "ioperm": 173,
        "init_module": 175,
        "delete_module": 176,
        "quotactl": 179,
        "nfsservctl": 180,
        "lookup_dcookie": 212,
        "clock_settime": 227,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "migrate_pages": 256,
        "unshare": 272,
        "move_pages": 279,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "fanotify_mark": 301,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "clock_adjtime": 305,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "finit_module": 313,
        "memfd_create": 319,
        "kexec_file_load": 320,
        "bpf": 321,
        "userfaultfd": 323,
        **_NEW,
    },
    clone=56,
    ioctl=16,
    personality=135,
    socket=41,
    mknod={133: 1, 259: 2},
    of_others={
        **{key: {0: 0} for key in (142, 144, 203, 302, 314)},
        141: {0: 0, 1: 0},
        251: {0: 1, 1: 0},
    },
)
_AARCH64 = Numbers(
    audit=0xC00000B7,
    denied={
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "nfsservctl": 42,
        "chroot": 51,
        "vhangup": 58,
        "quotactl": 60,
        "lookup_dcookie": 18,
        "acct": 89,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "clock_settime": 112,
        "syslog": 116,
        "ptrace": 117,
        "reboot": 142,
        "msgget": 186,
        "semget": 190,
        "shmget": 194,
        "sethostname": 161,
        "setdomainname": 162,
        "settimeofday": 170,
        "adjtimex": 171,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "swapon": 224,
        "swapoff": 225,
        "migrate_pages": 238,
        "move_pages": 239,
        "perf_event_open": 241,
        "fanotify_init": 262,
        "fanotify_mark": 263,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "clock_adjtime": 266,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "finit_module": 273,
        "memfd_create": 279,
        "bpf": 280,
        "userfaultfd": 282,
        "kexec_file_load": 294,
        **_NEW,
    },
    clone=220,
    ioctl=29,
    personality=92,
    socket=198,
    mknod={33: 2},
    of_others={
        **{key: {0: 0} for key in (118, 119, 122, 261, 274)},
        140: {0: 0, 1: 0},
        30: {0: 1, 1: 0},
    },
)
ARCHITECTURES = {"x86_64": _X86_64, "aarch64": _AARCH64}
"""By what platform.machine() calls them."""

# The flags of clone(2) that make namespaces: time, mounts, cgroup, uts, ipc, user, pid, net.
_NAMESPACES = (
    0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
)
# To type into the terminal of another, and into the console's.
_TYPING = (0x5412, 0x541C)
# To ask, and to be as one is.
_PERSONALITIES = (0xFFFFFFFF, 0)
NOWHERE = (16,)
"""Families of sockets that lead nowhere: netlink, for the names of interfaces."""
INTERNET = (*NOWHERE, 2, 10)
"""And IPv4 and IPv6. Without Unix sockets: what has a path may be a way out, as those of D-Bus and
Docker are. Pairs of them are made by another call."""
NETWORK = (1, *INTERNET)
"""And these. The rest is seldom used and often broken, and VSOCK leads out of a virtual
machine whatever the network namespace."""

_TYPE_OF_NODE, _CHARACTER, _BLOCK = 0o170000, 0o020000, 0o060000


def program(
    architecture: str, families: Iterable[int] = NETWORK, sees_others: bool = False
) -> bytes:
    """The program for `kernel.filter_calls`.

    Args:
        architecture: what platform.machine() says.
        families: the kinds of sockets that may be made. Where no namespace holds what a
            sandbox sends, `NOWHERE` and `INTERNET` do.
        sees_others: where no namespace hides other processes: their limits (which can kill),
            CPUs and priorities are not to be changed.

    Raises:
        KeyError: nothing is known of this architecture.
    """
    numbers = ARCHITECTURES[architecture]
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        *_unless_equal(numbers.audit, [(_RETURN, 0, 0, _KILL)]),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER, 0, 1, _NEWEST),
        *_fail(errno.ENOSYS),
        # The C library then uses clone(2), whose flags can be seen from here.
        *_if_equal(_CLONE3, _fail(errno.ENOSYS)),
        *_if_equal(numbers.clone, [*_argument(0), (_JUMP_ANY_BIT, 0, 1, _NAMESPACES), *_fail()]),
        *_if_equal(numbers.ioctl, [*_argument(1), *_fail_if_any(_TYPING)]),
        *_if_equal(numbers.personality, [*_argument(0), *_fail_unless_any(_PERSONALITIES)]),
        *_if_equal(
            numbers.socket, [*_argument(0), *_fail_unless_any(families, errno.EAFNOSUPPORT)]
        ),
    ]
    for number, mode in numbers.mknod.items():
        kinds = [*_argument(mode), (_AND, 0, 0, _TYPE_OF_NODE), *_fail_if_any((_CHARACTER, _BLOCK))]
        instructions += _if_equal(number, kinds)
    for number in numbers.denied.values():
        instructions += _if_equal(number, _fail())
    for number, own in (numbers.of_others if sees_others else {}).items():
        instructions += _if_equal(number, _fail_unless_all(own))
    instructions.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *each) for each in instructions)


def _if_equal(value: int, then: list[_Instruction]) -> list[_Instruction]:
    """What is loaded is looked at; where ``then`` loads something else, the call is allowed after it."""
    if any(code == _LOAD for code, *_ in then):
        then = [*then, (_RETURN, 0, 0, _ALLOW)]
    return [(_JUMP_EQUAL, 0, len(then), value), *then]


def _unless_equal(value: int, then: list[_Instruction]) -> list[_Instruction]:
    return [(_JUMP_EQUAL, len(then), 0, value), *then]


def _argument(number: int) -> list[_Instruction]:
    """Load the lower half: the kernel takes no more of these, which are ints, or flags all below."""
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * number)]


def _fail(error: int = errno.EPERM) -> list[_Instruction]:
    return [(_RETURN, 0, 0, _ERROR | error)]


def _fail_if_any(values: Iterable[int]) -> list[_Instruction]:
    return [each for value in values for each in _if_equal(value, _fail())]


def _fail_unless_any(values: Iterable[int], error: int = errno.EPERM) -> list[_Instruction]:
    allow: list[_Instruction] = [(_RETURN, 0, 0, _ALLOW)]
    return [*(each for value in values for each in _if_equal(value, allow)), *_fail(error)]


def _fail_unless_all(arguments: dict[int, int]) -> list[_Instruction]:
    return [
        each
        for number, value in arguments.items()
        for each in (*_argument(number), *_unless_equal(value, _fail()))
    ]
