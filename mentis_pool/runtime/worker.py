"""The process that runs cells and says what happens.

A worker waits on its socket for cells, runs them in its only thread, and
writes observations. Output goes to descriptors 1 and 2, which the supervisor
reads. It trusts nothing that it keeps itself to survive a cell, and the
supervisor trusts nothing that it says.
"""

from __future__ import annotations

import os
import pickle
import random
import resource
import signal
import socket
import sys
import tempfile
import time
from typing import Any, TextIO

import msgspec

from mentis_pool.observations import Cut, Display, End, Error, Result
from mentis_pool.runtime import isolation, posix, wire
from mentis_pool.runtime.cells import CellRun, CellShell, failure_of
from mentis_pool.text import to_text


def main(sock: socket.socket, stdout: int, stderr: int, directory: str, parent: int) -> None:
    """Run cells until ``sock`` is closed at the other end; never returns.

    Args:
        sock: to the supervisor.
        stdout, stderr: write ends of the pipes that the supervisor reads.
        directory: of the sandbox.
        parent: pid of the init, with whom this process ends.
    """
    os.setsid()
    posix.die_with_parent(parent)
    # Out of the way of descriptors that cells expect to be free or to be theirs.
    sock = _moved(sock)
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
    for fd in (null, stdout, stderr):
        os.close(fd)
    _seed()
    _Worker(sock, os.path.join(directory, isolation.WORK)).run()
    os._exit(0)


def maxrss_bytes(ru_maxrss: int) -> int:
    """The largest resident set of getrusage(2), which counts kilobytes but on macOS."""
    return ru_maxrss if sys.platform == "darwin" else ru_maxrss * 1024


def _moved(sock: socket.socket) -> socket.socket:
    import fcntl

    fd = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 200)
    sock.close()
    return socket.socket(fileno=fd)


def _seed() -> None:
    """Forked processes would all draw the same numbers."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        numpy.random.seed()
    tempfile.tempdir = None


class _Worker:
    def __init__(self, sock: socket.socket, work: str) -> None:
        self._sock = sock
        self._work = work
        self._pid = os.getpid()
        self._running = False
        self._shell = CellShell.instance()
        self._out = os.dup(1), os.dup(2)

    def run(self) -> None:
        """Take cells until end-of-file."""
        commands = wire.Unpacker(wire.RunCells)
        while data := self._sock.recv(262144):
            for command in commands.feed(data):
                self._obey(command)

    def _obey(self, command: wire.RunCells) -> None:
        begun = time.monotonic()
        cpu = _cpu_seconds()
        said: Result | Error
        try:
            try:
                signal.signal(signal.SIGINT, self._interrupt)
                self._prepare(command)
                # Not before: what the last cell held is only now given back.
                _reset_peak()
                self._running = True
                said = self._execute(command)
            finally:
                self._running = False
        except BaseException as exc:  # noqa: BLE001 - an interrupt, or what hostile code leaves behind
            said = Result(failure=failure_of(exc))
        if os.getpid() != self._pid:
            # A child that the cell forked, and that came to the cell's end as well.
            self._flush()
            os._exit(0)
        self._flush()
        used = End(time.monotonic() - begun, _cpu_seconds() - cpu, _peak())
        self._sock.sendall(self._pack(said) + wire.pack(used))

    def _interrupt(self, *_: object) -> None:
        if self._running:
            raise KeyboardInterrupt

    def _prepare(self, command: wire.RunCells) -> None:
        """Everything that a cell may have changed as it is for a new one."""
        os.chdir(self._work)
        for fd, number in zip(self._out, (1, 2), strict=True):
            os.dup2(fd, number)
        self._stdin(command.stdin)
        self._stdout = sys.stdout = sys.__stdout__ = _writer(1)
        self._stderr = sys.stderr = sys.__stderr__ = _writer(2)
        sys.argv = [""]
        self._shell.clear()

    def _stdin(self, text: bytes | None) -> None:
        if text is None:
            fd = os.open(os.devnull, os.O_RDONLY)
        else:
            with tempfile.TemporaryFile() as file:
                file.write(text)
                file.flush()
                fd = os.dup(file.fileno())
            os.lseek(fd, 0, os.SEEK_SET)
        os.dup2(fd, 0)
        os.close(fd)
        sys.stdin = sys.__stdin__ = open(  # noqa: SIM115 - as long-lived as the process
            0, encoding="utf-8", errors="surrogatepass", closefd=False
        )

    def _execute(self, command: wire.RunCells) -> Result | Error:
        run = CellRun(self._shell, self._show)
        sources = [to_text(source) for source in command.sources]
        for name, pickled in command.variables.items():
            try:
                self._shell.user_ns[name] = pickle.loads(pickled)
            except Exception as exc:  # noqa: BLE001 - unpickling runs any code
                text = failure_of(exc)
                return Error(
                    "payload",
                    f"the variable {name!r} cannot be rebuilt in the sandbox: "
                    f"{text.name}: {text.value}",
                )
        if command.argv is not None:
            return run.script(sources[0], command.argv)
        return run.cells(sources)

    def _show(self, shown: Display | Cut) -> None:
        if os.getpid() == self._pid:
            # What was printed before comes before.
            self._flush()
            self._sock.sendall(self._pack(shown))

    def _pack(self, message: msgspec.Struct) -> bytes:
        return wire.pack(message)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr, self._stdout, self._stderr):
            try:
                stream.flush()
            except Exception:  # noqa: BLE001, S112 - closed, or replaced by anything
                continue
        posix.flush_stdio()


def _writer(fd: int) -> TextIO:
    return open(
        fd, "w", encoding="utf-8", errors="surrogatepass", buffering=1, newline="\n", closefd=False
    )


def _cpu_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def _reset_peak() -> None:
    """Start counting the largest resident set anew (proc(5), clear_refs)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def _peak() -> int:
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return maxrss_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


