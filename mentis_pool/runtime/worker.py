"""The process that runs cells and says what happens.

A worker waits on its socket for cells, runs them in its only thread, and
writes observations. Output goes to descriptors 1 and 2, which the supervisor
reads. It trusts nothing that it keeps itself to survive a cell, and the
supervisor trusts nothing that it says.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from typing import Any, TextIO

from mentis_pool.observations import Cut, Display, End, Error, Failure, Part, Result
from mentis_pool.pool_stream import Cells, PickledCall, Shell, Work
from mentis_pool.runtime import calls, isolation, posix, wire
from mentis_pool.runtime.cells import CellRun, CellShell, exit_code, failure_of
from mentis_pool.text import to_text


def maxrss_bytes(ru_maxrss: int) -> int:
    """The largest resident set of getrusage(2), which counts kilobytes but on macOS."""
    return ru_maxrss if sys.platform == "darwin" else ru_maxrss * 1024


class Worker:
    """What a worker does, made ready in the init before any is forked.

    Each page that a forked process writes to is copied, at 3 µs apiece: so all
    that can be the same for every worker is done here, once, and after the fork
    little more than the cell itself.
    """

    def __init__(self, stdout: int, stderr: int, work: str) -> None:
        self._work = work
        self._written: int | None = None
        """The file for what the initializer writes."""
        self._pid = 0
        self._running = False
        self._idle = False
        """Whether it runs nothing and has said all."""
        self._missed = False
        """Whether an interrupt came while it said the last."""
        self._used = False
        self._has_stdin = False
        self._shell = CellShell.instance()
        self._names: dict[str, Any] = {}
        """What an initializer cell leaves for every cell."""
        # From the supervisor, so as long as the client likes.
        self._commands = wire.Unpacker(wire.RunWork, limit=1 << 32)
        # Out of the way of descriptors that cells expect to be free or to be theirs.
        self._out = tuple(moved_away(fd) for fd in (stdout, stderr))
        tempfile.tempdir = None
        signal.signal(signal.SIGINT, self._interrupt)
        self._prepare()
        self._stdin(None)

    def run(self, sock: socket.socket, runs: socket.socket, written: int | None) -> None:
        """Take ``runs`` until end-of-file, in the forked process; what happens is said to ``sock``."""
        os.setsid()
        self._pid = os.getpid()
        self._sock = sock
        self._written = written
        # Forked processes would all draw the same numbers; `random` sees to itself.
        numpy = sys.modules.get("numpy")
        if numpy is not None and "numpy.random" in sys.modules:
            numpy.random.seed()
        self._be_idle()
        while data := runs.recv(wire.PACKET):
            for command in self._commands.feed(data):
                self._obey(command)

    def _obey(self, command: wire.RunWork) -> None:
        begun = time.monotonic()
        cpu = _cpu_seconds(resource.getrusage(resource.RUSAGE_SELF))
        said: Result | Error
        code = 0
        try:
            try:
                self._make_ready(command)
                self._running = True
                self._idle = False
                if command.namespace == "initialize":
                    said = self._initialize(command.work)
                else:
                    said = self._execute(command.work)
            finally:
                self._running = False
        except BaseException as exc:  # noqa: BLE001 - an interrupt, or what hostile code leaves behind
            said = self._raised(command.work, exc)
            if os.getpid() != self._pid:
                code = exit_code(exc)
        if os.getpid() != self._pid:
            # A child that the cell forked, and that came to the cell's end as well.
            self._flush()
            os._exit(code)
        self._flush()
        own = resource.getrusage(resource.RUSAGE_SELF)
        used = End(time.monotonic() - begun, _cpu_seconds(own) - cpu, maxrss_bytes(own.ru_maxrss))
        unread = self._unread()
        self._sock.sendall(wire.pack(wire.Done(command.number, said, used, unread)))
        self._idle = True
        if self._missed:
            self._be_idle()
        if unread and not self._sock.recv(1):
            os._exit(0)

    def _unread(self) -> bool:
        """Whether something that was written may still have to be read by the supervisor."""
        if not posix.KEEPS_PACKETS:
            return True
        count = bytearray(4)
        for fd in self._out:
            try:
                # FIONREAD of pipe(7)
                fcntl.ioctl(fd, termios.FIONREAD, count)
            except OSError:  # the cell closed it
                return True
            if any(count):
                return True
        return False

    def _make_ready(self, command: wire.RunWork) -> None:
        """What a run may expect; of calls in a kept process no more than that it goes on."""
        call = isinstance(command.work, PickledCall)
        if call and self._used and command.stdin is None and not self._has_stdin:
            return
        keep = self._used and command.namespace == "keep"
        if not keep:
            self._begin()
        if self._used:
            if not keep:
                self._prepare()
            # Not before: what the last cell held is only now given back.
            _reset_peak()
        if self._used or command.stdin is not None:
            self._stdin(command.stdin)
        self._has_stdin = command.stdin is not None
        self._used = True

    def _raised(self, work: Work, exc: BaseException) -> Result | Error:
        if isinstance(work, PickledCall):
            return calls.raised(exc, self._part)
        return Result(failure=failure_of(exc))

    def _begin(self) -> None:
        """What must hold for each cell, whatever the one before did to what they share."""
        for fd in self._out:
            os.set_blocking(fd, True)
        try:
            os.chdir(self._work)
        except OSError:
            os.makedirs(self._work, mode=0o700, exist_ok=True)
            os.chdir(self._work)

    def _interrupt(self, *_: object) -> None:
        if self._running:
            raise KeyboardInterrupt
        if self._idle:
            # It came too late for the last cell, or too early for the next: only the
            # supervisor knows.
            self._be_idle()
        else:
            # Not in the middle of what is being sent.
            self._missed = True

    def _be_idle(self) -> None:
        self._idle = True
        self._missed = False
        self._sock.sendall(wire.pack(wire.Idle()))

    def _prepare(self) -> None:
        """Everything that a cell may have changed as it is for a new one."""
        signal.signal(signal.SIGINT, self._interrupt)
        for fd, number in zip(self._out, (1, 2), strict=True):
            os.dup2(fd, number)
        self._stdout, self._stderr = _writer(1), _writer(2)
        vars(sys).update(stdout=self._stdout, __stdout__=self._stdout)
        vars(sys).update(stderr=self._stderr, __stderr__=self._stderr)
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
        if fd != 0:  # as it is where a cell closed that
            os.dup2(fd, 0)
            os.close(fd)
        stdin = open(0, encoding="utf-8", errors="surrogatepass", closefd=False)
        vars(sys).update(stdin=stdin, __stdin__=stdin)

    def _execute(self, work: Work) -> Result | Error:
        if isinstance(work, PickledCall):
            return calls.call(work, self._part)
        if isinstance(work, Shell):
            return _shell(to_text(work.command))
        run = CellRun(self._shell, self._show)
        self._shell.user_ns.update(self._names)
        sources = [to_text(source) for source in work.sources]
        for name, pickled in work.variables.items():
            try:
                self._shell.user_ns[name] = pickle.loads(pickled)
            except Exception as exc:  # noqa: BLE001 - unpickling runs any code
                text = failure_of(exc)
                return Error(
                    "payload",
                    f"the variable {name!r} cannot be rebuilt in the sandbox: "
                    f"{text.name}: {text.value}",
                )
        if work.argv is not None:
            return run.script(sources[0], [to_text(arg) for arg in work.argv])
        return run.cells(sources)

    def _initialize(self, work: Work) -> Result:
        """Run the initializer; what it writes is of no task, and goes into its result."""
        # A file: where this process dies, the supervisor reads it.
        assert self._written is not None
        for number in (1, 2):
            os.dup2(self._written, number)
        before = set(self._shell.user_ns)
        try:
            said = self._execute(work)
        except BaseException as exc:  # noqa: BLE001 - whatever it raises, it failed
            said = Result(failure=failure_of(exc))
        self._flush()
        written = isolation.take_initializer_output(self._written)
        if isinstance(said, Error):
            said = Result(failure=Failure("PayloadError", said.message, ""))
        names = self._shell.user_ns
        if isinstance(work, Cells):
            self._names = {name: names[name] for name in names.keys() - before}
        return Result(failure=said.failure, text=written)

    def _part(self, data: bytes) -> None:
        self._sock.sendall(wire.pack(Part(data)))

    def _show(self, shown: Display | Cut) -> None:
        if os.getpid() == self._pid:
            # What was printed before comes before.
            self._flush()
            self._sock.sendall(wire.pack(shown))

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr, self._stdout, self._stderr):
            try:
                stream.flush()
            except Exception:  # noqa: BLE001 - closed, or replaced by anything
                continue
        posix.flush_stdio()


def _shell(command: str) -> Result:
    """Run a command in a shell, on the descriptors of this process."""
    process = subprocess.Popen(["/bin/sh", "-c", command])
    try:
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    # A shell's own way to say which signal it was.
    return Result(exit_code=code if code >= 0 else 128 - code)


def moved_away(fd: int) -> int:
    """The descriptor under a high number, closed on exec; the low one is closed."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200)
    os.close(fd)
    return moved


def _writer(fd: int) -> TextIO:
    return open(
        fd, "w", encoding="utf-8", errors="surrogatepass", buffering=1, newline="\n", closefd=False
    )


def _cpu_seconds(own: resource.struct_rusage) -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _reset_peak() -> None:
    """Start counting the largest resident set anew (proc(5), clear_refs)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
