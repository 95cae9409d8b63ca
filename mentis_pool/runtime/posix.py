"""System calls that the standard library does not offer."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import sys
import termios
from collections.abc import Iterable
from typing import Any

from mentis_pool.pool_stream import ROOM

KEEPS_PACKETS = sys.platform == "linux"
"""Whether `packets` stay apart; macOS has no such sockets."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""

_libc = ctypes.CDLL(None, use_errno=True)


def packets() -> tuple[socket.socket, socket.socket]:
    """A socket to write packets to, and one where each is read by itself."""
    kind = socket.SOCK_SEQPACKET if KEEPS_PACKETS else socket.SOCK_STREAM
    return socket.socketpair(socket.AF_UNIX, kind)


def enlarge(sock: socket.socket, room: int = ROOM) -> int:
    """Have a Unix socket take so many bytes before its reader must read; how many it took before.

    SO_SNDBUF of socket(7); what Linux says of it has its own use of memory in it.
    """
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    return before // 2 if sys.platform == "linux" else before


def name_sender(sock: socket.socket) -> None:
    """Have the kernel say with each message from whom it is (SO_PASSCRED of unix(7), Linux)."""
    if sys.platform == "linux":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def send(sock: socket.socket, data: bytes | bytearray, fds: Iterable[int]) -> None:
    """socket.send_fds(), but for its import: a newly forked process copies what that touches."""
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def receive(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int], int]:
    """Bytes, the descriptors that came along (``most`` at most), and the pid of their sender.

    The pid is what the sender is called here, whatever pid namespace it is in; 0 where
    it is not known.
    """
    fds = array.array("i")
    pid = 0
    room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(most * fds.itemsize)
    data, ancillary, _, _ = sock.recvmsg(size, room)
    for level, kind, value in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
        elif sys.platform == "linux" and kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(value)[0]
    return data, list(fds), pid


class Listener(socket.socket):
    """Listens on a path for one process alone: others of its user have its path and may find it.

    Who connects is what the kernel says (SO_PEERCRED of unix(7), Linux).
    """

    def __init__(self, path: str, only: int) -> None:
        super().__init__(socket.AF_UNIX)
        self._only = only
        self.bind(path)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            ConnectionAbortedError: it was another's, and is closed: there may be more.
        """
        sock, address = super().accept()
        if sys.platform == "linux":
            said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(said)[0] != self._only:
                sock.close()
                raise ConnectionAbortedError
        return sock, address


def reopen(reader: int) -> int:
    """Another descriptor to read a pipe by, which never waits, whatever becomes of the first (Linux).

    Raises:
        OSError: there is no procfs.
    """
    # One that dup(2) gives shares the flags of the first: who has it could make that one wait.
    return os.open(f"/proc/self/fd/{reader}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def unread(source: socket.socket | int) -> int:
    """How many bytes there are to be read now in a socket or a pipe (FIONREAD).

    Raises:
        OSError, ValueError: it is closed.
    """
    count = array.array("i", [0])
    fcntl.ioctl(source, termios.FIONREAD, count)
    return count[0]


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent is gone (prctl(2), Linux); exit if it is already."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (prctl(2), Linux)."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def lists_children() -> bool:
    """Whether `children` knows any: with procfs, and a kernel with CONFIG_PROC_CHILDREN."""
    return os.path.exists(_children_file())


def _children_file() -> str:
    return f"/proc/self/task/{os.getpid()}/children"


def be_killed_first() -> None:
    """Where memory runs out, have this process and its children go before all others (proc(5), Linux)."""
    with contextlib.suppress(OSError):
        set_in("/proc/self/oom_score_adj", b"1000")


def set_in(path: str, value: bytes) -> None:
    """Write to a file by which the kernel is told something, in one call."""
    # Not open(), which has a hundred pages more to touch, and so to copy.
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def trim_memory() -> None:
    """Give back what was freed (malloc_trim(3), glibc): small things keep large ones that lie below."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def open_more() -> None:
    """Have as many descriptors as may be had: the soft limit is the hard one from now on.

    As many may also be on their way in sockets, of all processes of a user, before the kernel
    takes no more from this one (ETOOMANYREFS of unix(7)): a cell, which has fewer, cannot fill that.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS takes no infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def children() -> list[int]:
    """The pids of this single-threaded process's children, zombies included (Linux)."""
    try:
        with open(_children_file(), "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def await_end(pid: int) -> None:
    """Wait until a child is dead, and leave it a zombie: its number goes to nobody else (Linux)."""
    if sys.platform == "linux":
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def is_tracker(pid: int) -> bool:
    """Whether this is a resource tracker of multiprocessing, or of joblib, by its words (Linux).

    It unlinks what is left in /dev/shm when all that could use it are gone. One that
    is just being executed has no words yet, and may be one.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read()
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return b"resource_tracker import main" in words or (words == b"" and state not in b"ZX")


def flush_stdio() -> None:
    """Write out what C code left in its buffers (fflush(3))."""
    _libc.fflush(None)
