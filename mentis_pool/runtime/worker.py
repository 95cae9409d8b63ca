"""The process that runs cells and says what happens.

A worker waits on its socket for cells, runs them in its only thread, and
writes observations. Output goes to descriptors 1 and 2, which the supervisor
reads. It trusts nothing that it keeps itself to survive a cell, and the
supervisor trusts nothing that it says.
"""

from __future__ import annotations

# Not signal, which takes 6 µs to make enums of what goes in and out.
import _signal  # type: ignore[import-not-found]
import fcntl
import io
import os
import pickle
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import msgspec

from mentis_pool.limits import HEADROOM, Limits
from mentis_pool.observations import Cut, Display, End, Error, Failure, File, Left, Part, Result
from mentis_pool.pool_stream import Cells, Given, PickledCall, Put, Shell, Work
from mentis_pool.runtime import calls, forks, isolation, posix, wire
from mentis_pool.runtime.cells import (
    CellRun,
    CellShell,
    exit_code,
    failure_of,
    forget_sources,
)
from mentis_pool.runtime.task_files import Environment, Fetching, NotPut, Putting
from mentis_pool.text import to_text

_EXACT = 256
"""Kilobytes to which a peak is exact: the kernel itself counts in batches of pages."""


def maxrss_bytes(ru_maxrss: int) -> int:
    """The largest resident set of getrusage(2), which counts kilobytes but on macOS."""
    return ru_maxrss if sys.platform == "darwin" else ru_maxrss * 1024


_BRIEF = 0.002
"""Seconds of a run within which the supervisor has not begun to read what it writes, most often."""
_REHEARSALS = 20
_REHEARSED = Cells([b"print(end='')\n1"])


class Worker:
    """What a worker does, made ready in the zygote, settled in the init, run in the worker.

    Each page that a forked process writes to is copied, at 3 µs apiece: so all
    that can be the same for every sandbox is done once, and after the forks
    little more than the cell itself.
    """

    def __init__(self) -> None:
        self._limits: list[tuple[int, int]] = []
        """Of the kernel's: which, and how much."""
        self._work = ""
        self._out: tuple[int, ...] = ()
        """Where what is written to 1 and 2 goes."""
        self._ends: tuple[int, ...] = ()
        """Where it comes out, where others may be sent behind what runs."""
        self._written: int | None = None
        """The file for what the initializer writes."""
        self._pid = 0
        self._running = False
        self._idle = False
        """Whether it runs nothing and has said all."""
        self._missed = False
        """Whether an interrupt came while it said the last."""
        self._saying = threading.Lock()
        """Held for as long as a message is sent: a cell's threads say things as well."""
        self._asking = threading.Lock()
        """Held by who waits for a word, and while the end of a run is said."""
        self._asked = self._answered = 0
        """The last word that was asked for, and that came."""
        self._used = False
        self._has_stdin = False
        self._prepared = False
        """Whether all is as for a new process, but for what threads of the last cell do."""
        self._stuck = False
        """Whether the last run wrote what its own descriptors did not take."""
        self._peak = 0
        """The largest resident set in the last run, in the units of getrusage(2)."""
        self._low = 0
        """What that may have been without being counted anew."""
        self._shell = CellShell.instance()
        self._names: dict[str, Any] = {}
        """What an initializer cell leaves for every cell."""
        # From the supervisor, so as long as the client likes.
        self._commands: wire.Unpacker[wire.ToWorker] = wire.Unpacker(
            wire.ToWorker,  # type: ignore[arg-type]
            limit=1 << 32,
        )
        self._heard: deque[wire.ToWorker] = deque()
        self._open_streams()
        self._shell.clear()
        self._nothing = _open_nothing()
        self._empty_stdin: TextIO | None = None
        """What the last run read from, where there was nothing to be read."""
        self._stdin(None)

    def rehearse(self) -> None:
        """In the zygote: do all that comes with a cell, so that it was done before.

        Much is made when it is first needed, and CPython (3.11 and later) writes into the code
        of a function until it knows how that is used.
        """
        ours, self._sock = socket.socketpair()
        filled, self._runs = posix.packets()
        self._pid, self._work = os.getpid(), os.getcwd()
        with ours, self._sock, filled, self._runs:
            for number in range(_REHEARSALS):
                filled.send(wire.pack(wire.RunWork(number, _REHEARSED, None, "only")))
                run = self._next()
                assert isinstance(run, wire.RunWork)
                self._obey(run)
                ours.recv(wire.PACKET)
                self._used = False
        # None that is forked has to end them.
        del self._sock, self._runs
        forget_sources()
        self._renew_streams()
        self._shell.clear()

    def settle(self, pipes: Iterable[int], work: str, limits: Limits) -> None:
        """In an init: be of this sandbox, and no other from then on."""
        for fd in (*self._out, *self._ends, self._nothing):
            os.close(fd)
        memory = limits.memory
        if memory is not None:
            # What it has already is the zygote's.
            memory += HEADROOM + _data_size()
        self._limits = [
            (kind, most)
            for kind, most in (
                (resource.RLIMIT_DATA, memory),
                (resource.RLIMIT_NOFILE, limits.open_files),
                (resource.RLIMIT_FSIZE, limits.file_size),
            )
            if most is not None
        ]
        self._work = work
        self._shell.directory = Path(work)
        self._shell.clear()
        # Out of the way of descriptors that cells expect to be free or to be theirs.
        moved = tuple(map(moved_away, pipes))
        self._out, self._ends = moved[:2], moved[2:]
        self._nothing = _open_nothing()
        tempfile.tempdir = None
        self._connect()
        # Those of the zygote were made on what may be no pipe, and would seek in it.
        self._open_streams()

    def run(self, sock: socket.socket, runs: socket.socket, written: int | None) -> None:
        """Take ``runs`` until end-of-file, in the forked process; what happens is said to ``sock``."""
        os.setsid()
        self._pid = os.getpid()
        self._sock = sock
        posix.enlarge(sock)
        self._runs = runs
        self._written = written
        self.limit()
        posix.be_killed_first()
        forks.catch_up()
        numpy = sys.modules.get("numpy")
        if numpy is not None and "numpy.random" in sys.modules:
            numpy.random.seed()
        self._be_idle()
        while (command := self._next()) is not None:
            # Files come behind the run that they are for, which takes them, if it still can.
            if isinstance(command, wire.RunWork):
                self._obey(command)

    def limit(self) -> None:
        """In a forked process, for good: what the kernel itself can hold of the limits.

        What one process reserves of private memory (RLIMIT_DATA, which unlike RLIMIT_AS
        leaves out what is mapped and never can be written), its descriptors and the size
        of its files; the rest is for the supervisor to watch.
        """
        for kind, most in self._limits:
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))

    def _next(self) -> wire.ToWorker | None:
        """What comes next; None where nothing more will."""
        while not self._heard:
            room = self._commands.room()
            if room is not None:
                # Packets end where messages do.
                count = self._runs.recv_into(room)
                if not count:
                    return None
                self._heard += self._commands.came(count)
                continue
            data = self._runs.recv(wire.PACKET)
            if not data:
                return None
            self._heard += self._commands.feed(data)
        return self._heard.popleft()

    def _obey(self, command: wire.RunWork) -> None:
        begun = time.monotonic()
        cpu = _cpu_seconds(resource.getrusage(resource.RUSAGE_SELF))
        said: Result | Error
        code = 0
        around = None if command.given is None else _Around(command, self._work)
        try:
            try:
                self._make_ready(command)
                if around is not None:
                    around.begin(self._take_files)
                self._running = True
                self._idle = False
                if command.namespace == "initialize":
                    said = self._initialize(command.work)
                else:
                    said = self._execute(command.work)
            finally:
                # What is sent from now on is not to be interrupted.
                self._running = self._idle = False
        except NotPut as exc:
            said = Error("payload", str(exc))
        except BaseException as exc:  # noqa: BLE001 - an interrupt, or what hostile code leaves behind
            said = self._raised(command.work, exc)
            if os.getpid() != self._pid:
                code = exit_code(exc)
        if os.getpid() != self._pid:
            # A child that the cell forked, and that came to the cell's end as well.
            self._flush()
            os._exit(code)
        if not self._flush():
            # A cell may have had nothing wait for its reader.
            self._block()
            self._stuck = not self._flush()
        if around is not None:
            try:
                said = around.end(said, self._say, lambda: self._missed)
            except Exception as exc:  # noqa: BLE001 - what a cell leaves behind
                said = self._raised(command.work, exc)
        own = resource.getrusage(resource.RUSAGE_SELF)
        self._peak = own.ru_maxrss
        seconds = time.monotonic() - begun
        used = End(seconds, _cpu_seconds(own) - cpu, maxrss_bytes(own.ru_maxrss))
        with self._asking:
            self._end(command.number, said, used, self._output(seconds < _BRIEF))
        if command.namespace == "new" and not isinstance(command.work, PickledCall):
            self._prepare()

    def _end(
        self,
        number: int,
        said: Result | Error,
        used: End,
        wrote: tuple[bytes | None, bytes | None],
    ) -> None:
        # Which failures end the process with the run is not for it to judge.
        failed = isinstance(said, Result) and said.failure is not None
        word = None
        if self._ends and (failed or None in wrote or self._asked != self._answered):
            word = self._next_word()
        self._say(wire.Done(number, said, used, wrote, word))
        self._idle = True
        if self._missed:
            self._be_idle()
        if word is not None:
            self._await(word)

    def _output(self, brief: bool) -> tuple[bytes | None, bytes | None]:
        """What was written and has not been read: for `wire.Done`."""
        unread = self._unread()
        if unread is not None and not any(unread):
            return b"", b""
        # After a while the supervisor reads as well: what is taken here would come behind what
        # it reads later of a process that writes on.
        if unread is None or not (brief and self._ends):
            return None, None
        return _take_output(self._ends[0], unread[0]), _take_output(self._ends[1], unread[1])

    def _unread(self) -> list[int] | None:
        """How many bytes that were written may be in each pipe still, as far as that can be known."""
        if not posix.KEEPS_PACKETS:
            return None
        try:
            return [posix.unread(fd) for fd in self._out] or [0, 0]
        except OSError:  # a cell closed it
            return None

    def _next_word(self) -> int:
        self._asked = (self._asked + 1) % 256
        return self._asked

    def _await(self, word: int) -> None:
        """Wait for it, past those for which nobody waits any more: a handler of signals raised."""
        while (heard := self._sock.recv(1)) != bytes((word,)):
            if not heard:
                os._exit(0)
        self._answered = word

    def _make_ready(self, command: wire.RunWork) -> None:
        """What a run may expect; of calls in a kept process no more than that it goes on."""
        call = isinstance(command.work, PickledCall)
        plain = command.stdin is None and command.given is None
        if call and self._used and plain and not self._has_stdin:
            return
        prepared, self._prepared = self._prepared, False
        keep = self._used and command.namespace == "keep"
        if not keep:
            self._begin()
        if self._used:
            if not keep and not prepared:
                self._be_as_new()
            # Not before: what the last cell held is only then given back.
            self._reset_peak()
        if command.stdin is not None or (self._used and not prepared):
            self._stdin(command.stdin)
        self._has_stdin = command.stdin is not None
        self._used = True

    def _prepare(self) -> None:
        """Give back what a cell held, and have done what the next one needs, while nobody waits for it."""
        try:
            self._be_as_new()
            self._stdin(None)
        except BaseException:  # noqa: BLE001 - of what a cell leaves behind: no other shall meet it
            os._exit(1)
        self._prepared = True

    def _raised(self, work: Work, exc: BaseException) -> Result | Error:
        if isinstance(work, PickledCall):
            return calls.raised(work, exc, self._part)
        return Result(failure=failure_of(exc))

    def _begin(self) -> None:
        """What must hold for each cell, whatever the one before did to what they share."""
        self._block()
        try:
            os.chdir(self._work)
        except OSError:
            os.makedirs(self._work, mode=0o700, exist_ok=True)
            os.chdir(self._work)

    def _block(self) -> None:
        for fd in self._out:
            os.set_blocking(fd, True)

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
        while True:
            # Not idle yet: an interrupt while this is being sent would want to send it as well.
            self._idle = self._missed = False
            self._say(wire.Idle())
            self._idle = True
            if not self._missed:
                return

    def _reset_peak(self) -> None:
        """Start counting the largest resident set anew, where that has grown (proc(5), clear_refs)."""
        if self._peak <= self._low:
            return
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            return
        self._low = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + _EXACT

    def _connect(self) -> None:
        """What a cell may have changed of the process as it is for a new one."""
        _signal.signal(_signal.SIGINT, self._interrupt)
        self._point_out()

    def _point_out(self) -> None:
        """Have 1 and 2 lead to the supervisor."""
        for fd, number in zip(self._out, (1, 2), strict=True):
            os.dup2(fd, number)

    def _give_up_unwritten(self) -> None:
        """What one run could not write is not for the next one to have written."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(nowhere, number)
        if nowhere > 2:
            os.close(nowhere)
        self._flush()
        self._stuck = False

    def _be_as_new(self) -> None:
        """What a cell may have changed as it is for a new process."""
        if self._stuck:
            self._give_up_unwritten()
        # First: what it held may do anything as it ends.
        self._shell.clear()
        self._connect()
        self._renew_streams()

    def _renew_streams(self) -> None:
        if _is_as_made(self._stdout, 1) and _is_as_made(self._stderr, 2):
            self._show_streams()
        else:
            self._open_streams()

    def _open_streams(self) -> None:
        self._stdout, self._stderr = _writer(1), _writer(2)
        self._show_streams()

    def _show_streams(self) -> None:
        vars(sys).update(stdout=self._stdout, __stdout__=self._stdout)
        vars(sys).update(stderr=self._stderr, __stderr__=self._stderr)
        sys.argv = [""]

    def _stdin(self, text: bytes | None) -> None:
        fd = self._nothing
        if text is not None:
            with tempfile.TemporaryFile() as file:
                file.write(text)
                file.flush()
                fd = os.dup(file.fileno())
            os.lseek(fd, 0, os.SEEK_SET)
        try:
            os.dup2(fd, 0)
        except OSError:  # a cell closed that; under its number there may be something else
            fd = os.open(os.devnull, os.O_RDONLY)
            os.dup2(fd, 0)
        if fd not in (0, self._nothing):  # 0 as it is where a cell closed that
            os.close(fd)
        stdin, self._empty_stdin = self._empty_stdin, None
        if text is not None or stdin is None or not _is_as_made_to_read(stdin):
            stdin = open(0, **_AS_READ, closefd=False)
        if text is None:
            self._empty_stdin = stdin
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
            argv = [to_text(arg) for arg in work.argv]
            path = argv[0] if work.path is None else to_text(work.path)
            return run.script(sources[0], argv, path)
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
        # What comes now is of a task again, also where nothing else is made anew for it.
        self._point_out()
        if isinstance(said, Error):
            said = Result(failure=Failure("PayloadError", said.message, ""))
        names = self._shell.user_ns
        if isinstance(work, Cells):
            self._names = {name: names[name] for name in names.keys() - before}
        return Result(failure=said.failure, text=written)

    def _take_files(self) -> Put | wire.NoFiles:
        """The next files of this run, which is alone until it has them."""
        command = self._next()
        if command is None:
            os._exit(0)
        assert not isinstance(command, wire.RunWork)
        return command

    def _part(self, data: memoryview) -> None:
        # It is done, and nothing but its result may follow: it cannot be interrupted any more.
        self._running = False
        with self._saying:
            # It is bytes where it arrives.
            for piece in wire.pack_long(Part(data)):  # type: ignore[arg-type]
                self._sock.sendall(piece)

    def _show(self, shown: Display | Cut) -> None:
        if os.getpid() != self._pid:
            return
        # What was printed before comes before.
        self._flush()
        if threading.current_thread() is not threading.main_thread():
            self._say_behind_output(shown)
            return
        running, self._running = self._running, False
        try:
            self._say_behind_output(shown)
        finally:
            self._running = running
        if running and self._missed:
            self._missed = False
            raise KeyboardInterrupt

    def _say_behind_output(self, shown: Display | Cut) -> None:
        with self._asking:
            unread = self._unread()
            if unread is None or any(unread):
                word = self._next_word()
                self._say(wire.Drain(word))
                self._await(word)
            self._say(shown)

    def _say(self, message: msgspec.Struct) -> None:
        with self._saying:
            self._sock.sendall(wire.pack(message))

    def _flush(self) -> bool:
        """Write what is kept here; whether our own streams could."""
        could = True
        for stream in (sys.stdout, sys.stderr, self._stdout, self._stderr):
            try:
                stream.flush()
            except OSError:
                could = could and stream is not self._stdout and stream is not self._stderr
            except Exception:  # noqa: BLE001 - closed, or replaced by anything
                continue
        posix.flush_stdio()
        return could


class _Around:
    """What a run has besides: before it and after it."""

    def __init__(self, command: wire.RunWork, directory: str) -> None:
        assert command.given is not None
        self._given: Given = command.given
        self._directory = directory
        self._stay = command.namespace == "keep"
        self._putting = Putting(directory, self._given.files)
        self._environment: Environment | None = None
        self._begun = False

    def begin(self, take: Callable[[], Put | wire.NoFiles]) -> None:
        """Put the files, as they come, and set the variables.

        Raises:
            NotPut: they do not come, or cannot be put.
            KeyboardInterrupt: it is interrupted.
        """
        last = not self._given.files
        while not last:
            put = take()
            if isinstance(put, wire.NoFiles):
                raise KeyboardInterrupt
            if put.failed is not None:
                raise NotPut(put.failed)
            for piece in put.pieces:
                self._putting.take(piece)
            last = put.last
        self._environment = Environment(self._given.env)
        self._begun = True

    def end(
        self,
        said: Result | Error,
        say: Callable[[File | Left], None],
        stopped: Callable[[], bool],
    ) -> Result | Error:
        """Fetch what is asked for, and leave nothing that was the run's alone; how it ended."""
        if self._environment is not None:
            self._environment.restore()
        if self._begun:
            over = Fetching(say, stopped).fetch(self._directory, self._given.fetch)
            if over is not None and isinstance(said, Result) and said.failure is None:
                said = Error("payload", over)
        self._putting.close()
        if not self._stay:
            self._putting.remove()
        return said


def _take_output(end: int, count: int) -> bytes | None:
    try:
        return os.read(end, count) if count else b""
    except BlockingIOError:  # the supervisor was faster
        return b""
    except (OSError, MemoryError):  # a cell closed it, or has it all
        return None


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
    raw = io.FileIO(fd, "w", closefd=False)
    stream: Any = io.TextIOWrapper(io.BufferedWriter(raw), **_AS_WRITTEN)
    stream.mode = "w"
    made: TextIO = stream
    return made


_AS_WRITTEN: Any = {
    "encoding": "utf-8",
    "errors": "surrogatepass",
    "newline": "\n",
    "line_buffering": True,
}
"""How text is written: as Python does to a terminal, but for what no encoding has."""
_CHUNK = io.TextIOWrapper(io.BytesIO())._CHUNK_SIZE  # type: ignore[attr-defined]
"""Bytes of text that such a stream gathers."""


def _open_nothing() -> int:
    return moved_away(os.open(os.devnull, os.O_RDONLY))


_AS_READ: Any = {"encoding": "utf-8", "errors": "surrogatepass", "newline": None}


def _is_as_made(stream: TextIO, fd: int) -> bool:
    """Whether what `_writer` gave is as it was made, once this has set what can be set again."""
    made: Any = stream
    try:
        if not _is_whole(made, io.BufferedWriter, fd, "w"):
            return False
        made.reconfigure(**_AS_WRITTEN, write_through=False)
    except (OSError, ValueError, AttributeError):  # closed, taken apart, or made of no pipe
        return False
    return True


def _is_as_made_to_read(stdin: TextIO) -> bool:
    """The same of what reads nothing from 0, and has read nothing else that it keeps."""
    made: Any = stdin
    try:
        if not _is_whole(made, io.BufferedReader, 0, "r"):
            return False
        # Refused where something was read, be it nothing.
        made.reconfigure(**_AS_READ, line_buffering=False, write_through=False)
        return not made.buffer.peek(1)
    except (OSError, ValueError, AttributeError):
        return False


def _is_whole(stream: Any, kind: type, fd: int, mode: str) -> bool:
    """Whether a stream is made of what it was made of, and nothing was added to that."""
    buffer = stream.buffer
    raw = buffer.raw
    return (
        (type(stream), type(buffer), type(raw)) == (io.TextIOWrapper, kind, io.FileIO)
        and raw.fileno() == fd
        and (vars(stream), vars(buffer), vars(raw)) == ({"mode": mode}, {}, {"name": fd})
        and stream._CHUNK_SIZE == _CHUNK
    )


def _cpu_seconds(own: resource.struct_rusage) -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _data_size() -> int:
    """Bytes of private memory that this process has reserved (proc(5), statm); 0 where none says."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0
