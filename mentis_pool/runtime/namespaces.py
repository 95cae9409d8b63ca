"""Namespaces of a sandbox's own, below the one warm zygote.

All of this happens inside the wall (see `mentis_pool.runtime.wall`), where the zygote has
CAP_SYS_ADMIN over what it sees, and no other capability but CAP_NET_ADMIN::

    enter()           the zygote goes into a pid namespace that it has made itself
    fork()            each init is pid 1 of another one,
    Rooms.settle()    and gives itself mounts, ipc and a network,
    Rooms.furnish()   and directories with its limit;
    Rooms.end_all()   between cells it ends what runs there,
    Rooms.renew()     and makes anew those of them that keep something
    Rooms.give_up()   a worker drops what its init still needs, and cannot come back

unshare(2) makes a pid namespace but once for a process; what lets the zygote make the
next is to go back to its own with setns(2). That is refused where the namespace is of a user
namespace above, as bubblewrap's own is with --disable-userns: hence `enter`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterable

from mentis_pool.runtime import kernel

_SAFE = kernel.NO_SUID | kernel.NO_DEVICES
_OWN = _SAFE | kernel.NO_ACCESS_TIMES
_SET_FLAGS, _UP = 0x8914, 0x1  # netdevice(7)
_RESERVED_PIDS = 300


def enter() -> int:
    """Go on as pid 1 of a new pid namespace; the process that was this one waits for its end.

    Returns:
        A descriptor of the namespace, for `fork`.
    """
    kernel.unshare(kernel.NEW_PIDS)
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    # Else it finds neither itself nor its children.
    kernel.unshare(kernel.NEW_MOUNTS)
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    _mount_proc()
    kernel.set_dumpable(False)
    return os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def fork(own: int) -> int:
    """os.fork(), whose child is pid 1 of a new pid namespace.

    Args:
        own: a descriptor of the pid namespace of this process; closed in the child.

    Raises:
        OSError: there is no child, and the next call may have one.
    """
    kernel.unshare(kernel.NEW_PIDS)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            kernel.set_namespace(own, kernel.NEW_PIDS)
    if pid == 0:
        os.close(own)
    return pid


class Rooms:
    """The directories that a sandbox has for itself, all in one tmpfs with one limit.

    Args:
        paths: where they are: each an empty directory of the wall, but for what is shown.
        shown: what the wall shows from the host below these paths, and is to be seen again.
        network: "none" for a loopback of its own, and no more; "host" for what the wall has.
    """

    def __init__(self, paths: Iterable[str], shown: Iterable[str], network: str) -> None:
        self._paths = tuple(paths)
        self._network = network
        self._shown = sorted(shown)
        self._opened: dict[str, int] = {}

    def settle(self) -> None:
        """As pid 1 of a new pid namespace: have mounts, ipc and a network of one's own."""
        kernel.set_dumpable(False)
        own_network = self._network == "none"
        kernel.unshare(kernel.NEW_MOUNTS | kernel.NEW_IPC | (kernel.NEW_NET if own_network else 0))
        if own_network:
            _bring_up_loopback()
        kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
        _mount_proc()
        # What will be covered is reached through a descriptor, of these very mounts.
        self._opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in self._shown}
        # Pseudo terminals are numbered, and could be opened by their number.
        options = "newinstance,ptmxmode=0666,mode=620"
        kernel.mount("devpts", "/dev/pts", "devpts", kernel.NO_SUID | kernel.NO_EXEC, options)

    def furnish(self, size: int, files: int) -> None:
        """Once settled: have the directories, which hold so many bytes, and files and directories."""
        self._options = f"size={size},nr_inodes={files},mode=700"
        self._mount()

    def end_all(self) -> None:
        """End everything else in the sandbox; none of it runs any more. Ipc is new from now on.

        All are killed in one call, beside which none can fork. They may take a while to be gone.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        kernel.unshare(kernel.NEW_IPC)

    def renew(self) -> None:
        """Once what had them is gone: have the directories empty, and as they were made."""
        with contextlib.suppress(OSError):  # such as one that may not even be read any more
            if not self._shown and self._is_untouched():
                return
        for path in (*self._paths, self._paths[0]):
            kernel.unmount(path)
        self._mount()

    def _mount(self) -> None:
        base = self._paths[0]
        kernel.mount("tmpfs", base, "tmpfs", _OWN, self._options)
        for number in reversed(range(len(self._paths))):
            inside = f"{base}/{number}"
            os.mkdir(inside, 0o700)
            # The base itself comes last, and covers the other ways in.
            kernel.mount(inside, self._paths[number], None, kernel.BIND)
        for path, fd in self._opened.items():
            kernel.mount_at(fd, path)
        self._made = [_looks(path) for path in self._paths]

    def _is_untouched(self) -> bool:
        """Whether nothing of all that there is to be changed of empty directories was changed.

        Times alone do not tell: the kernel's clock for them stands still for milliseconds.
        """
        space = os.statvfs(self._paths[0])
        # The root of the tmpfs is the one more.
        empty = space.f_files - space.f_ffree == len(self._paths) + 1
        return (
            empty
            and space.f_bfree == space.f_blocks
            and [_looks(path) for path in self._paths] == self._made
            and not any(os.listxattr(path) or kernel.inode_flags(path) for path in self._paths)
        )

    def give_up(self, program: bytes) -> None:
        """As a worker, before any cell: keep no capability, and be judged by this program (seccomp)."""
        for fd in self._opened.values():
            os.close(fd)
        kernel.gain_no_privileges()
        kernel.drop_capabilities()
        # Its own files in /proc are otherwise not its own.
        kernel.set_dumpable(True)
        kernel.filter_calls(program)


def _looks(path: str) -> tuple[int, ...]:
    its = os.stat(path)
    times = its.st_atime_ns, its.st_mtime_ns, its.st_ctime_ns
    return (its.st_mode, its.st_nlink, its.st_size, *times)


def limit_processes(most: int) -> bool:
    """As pid 1, once settled: let there be no more processes and threads than this, and 300, at a time.

    The kernel hands out pids below the limit, and once it has gone round none below 300: so it
    may be this many at least. RLIMIT_NPROC counts those of all sandboxes together.

    Returns:
        Whether this kernel keeps a limit for each pid namespace (Linux 6.14).
    """
    try:
        # Not open(), which has a hundred pages more to touch, and so to copy.
        fd = os.open("/proc/sys/kernel/pid_max", os.O_WRONLY | os.O_CLOEXEC)
    except PermissionError:
        # Elsewhere it is the machine's, which nobody here may change.
        return False
    try:
        os.write(fd, b"%d" % (_RESERVED_PIDS + most))
    finally:
        os.close(fd)
    return True


def _mount_proc() -> None:
    kernel.mount("proc", "/proc", "proc", _SAFE | kernel.NO_EXEC)


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))
