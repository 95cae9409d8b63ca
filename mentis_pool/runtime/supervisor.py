"""Owns the sandbox processes: start, deadlines, kill, replace.

Everything here runs on the runtime's event loop and never blocks: it answers
to readable sockets and pipes, and to timers. For each wait there is a timer or
an end-of-file that ends it::

    a worker to be ready      its word · its death
    initializer in a worker   its Done · its death, also by a limit or its time limit: the client is
                              told that it broke
    run sent to a worker      its Done · its death (told by the init) · its time limit
    files of a run            its worker took them · its death · its time limit · a signal · its client's end
    run sent ahead            the Done of what is before it · PROMPT passes and it is taken back
    output not watched        the Done of what wrote it · PROMPT passes and it is watched
    a word, by a worker       it is answered when it is read · the end of its socket, and it exits
    time limit passed         the interrupt works · grace passes and it is killed
    killed                    its death · patience passes and the sandbox is given up
    a command                 its death · its deadline, and it is killed
    a signal to be sent       Signalled · patience passes and the sandbox is given up
    retiring                  Retired · patience passes and the sandbox is given up
    a worker to be forked     Forked · patience passes and the sandbox is given up; the first one waits
                              for an init as well
    an init's socket          end-of-file: the sandbox is lost
    the zygote's socket       end-of-file: the runtime ends
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from mentis_pool import limits
from mentis_pool.errors import ProtocolError
from mentis_pool.limits import Limits
from mentis_pool.observations import (
    Cut,
    Display,
    End,
    Error,
    Exceeded,
    File,
    Left,
    Observation,
    Part,
    Result,
    StreamName,
    Wanted,
)
from mentis_pool.pool_stream import (
    LONG,
    Cells,
    InUse,
    Open,
    PickledCall,
    Put,
    Run,
    Shell,
    Standing,
    Work,
)
from mentis_pool.runtime import groups, isolation, posix, wire
from mentis_pool.runtime.action import Action, death
from mentis_pool.runtime.groups import Group, Groups
from mentis_pool.runtime.watch import Watch

GRACE = 0.5
"""Seconds that a cell has between the interrupt and the kill."""
PATIENCE = 10.0
"""Seconds within which the kernel kills a process and a directory is emptied."""
FORK_PATIENCE = 30.0
"""Seconds within which an init forks a worker, on a busy machine too."""
END_OF_FILE = "end of file"
PROMPT = 0.002
"""Seconds within which a run must be done for others to be sent to its worker meanwhile."""
_LARGE, _A_MOMENT = 32 << 20, 0.1
"""Bytes of a call, from which on their memory is given back, and seconds after its end."""
LAST_BREATH = 0.05
"""Seconds between the end of a worker's socket and the news of its death."""
_CLOSED = Error("protocol", "the cell closed the connection of its process to the runtime")
_CHUNK = 256 * 1024
_START_DEATHS = 5
"""So many workers in a row may die before they ran anything."""

M = TypeVar("M")


class NoRoom(Exception):
    """The runtime has as many sandboxes as it takes; the message says so."""


class Listener(Protocol):
    """Who hears of a sandbox."""

    def opened(self, sandbox: Sandbox, seconds: float) -> None:
        """It has its first worker."""

    def ready(self, sandbox: Sandbox) -> None:
        """It has nothing to do, and could begin at once."""

    def done(self, action: int, prompt: bool, more: bool = False) -> None:
        """All was said of an action.

        ``prompt``: others may be given to its sandbox ahead. ``more``: something is said
        of its sandbox at once.
        """

    def returned(self, sandbox: Sandbox, actions: list[int]) -> None:
        """These it has not begun, and will not: it is busy with another."""

    def closed(self, sandbox: Sandbox, reason: str) -> None:
        """It is no more: what it has not begun it will not run."""

    def said(self, action: int, observation: Observation, later: bool = False) -> None:
        """Something was observed of an action; ``later``: it may wait for what follows at once."""

    def state_lost(self, sandbox: Sandbox, reason: str) -> None:
        """What a session had in it is gone; said before the end of the action that lost it."""

    def broken(self, reason: str, traceback: str, output: str) -> None:
        """Its initializer failed."""

    def congested(self) -> bool:
        """Whether so much waits for the client that no more should come."""


class Channel(Generic[M]):
    """A socketpair's end on the event loop: whole messages in, messages out, never blocking."""

    def __init__(
        self,
        sock: socket.socket,
        messages: Any,
        heard: Callable[[M], None],
        closed: Callable[[str], None],
        with_fds: bool = False,
        heard_all: Callable[[], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        self._heard_all = heard_all
        self.reading = False
        """Whether what has come is being heard; ``heard_all`` is called behind it."""
        self._with_fds = with_fds
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._unpacker: wire.Unpacker[M] = wire.Unpacker(messages)
        self._heard = heard
        self._closed = closed
        self._unsent = bytearray()
        self._waits = False
        """Whether the other side has to read before more can be sent."""
        self.fds: deque[int] = deque()
        """Descriptors that came along, in their order."""
        self.sender = 0
        """The pid of the other side, where it is known."""
        self._paused = False
        self._loop.add_reader(sock, self.read)

    def pause(self) -> None:
        """Read no more until `resume`: whoever writes waits once the buffer is full."""
        if not self._paused and self._sock.fileno() != -1:
            self._paused = True
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Read again."""
        if self._paused and self._sock.fileno() != -1:
            self._paused = False
            self._loop.add_reader(self._sock, self.read)

    def read(self) -> int:
        """Take what has arrived, if anything has; how many bytes, if it goes on."""
        room = None if self._with_fds else self._unpacker.room()
        data = b""
        try:
            if room is not None:
                count = self._sock.recv_into(room)
            elif self._with_fds:
                data, fds, self.sender = posix.receive(self._sock, _CHUNK, 8)
                self.fds.extend(fds)
                count = len(data)
            else:
                data = self._sock.recv(_CHUNK)
                count = len(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._fail(END_OF_FILE)  # reset: the other side died with something unread
            return 0
        if not count:
            self._fail(END_OF_FILE)
            return 0
        try:
            messages = self._unpacker.feed(data) if room is None else self._unpacker.came(count)
        except ProtocolError as exc:
            self._fail(f"what the cell's process sent is no message: {exc}")
            return 0
        self.reading = True
        try:
            for message in messages:
                if self._sock.fileno() == -1:
                    return 0
                self._heard(message)
        finally:
            self.reading = False
            if self._heard_all is not None:
                self._heard_all()
        return count

    def read_on(self, wanted: Callable[[], bool]) -> None:
        """Take what is there already, as long as it is wanted; not what is written meanwhile."""
        try:
            left = posix.unread(self._sock)
        except (OSError, ValueError):  # it is closed
            return
        while left > 0 and wanted():
            took = self.read()
            if not took:
                return
            left -= took

    def send(self, message: Any, *fds: int) -> None:
        """Send, or keep until the other side reads."""
        self._unsent += wire.pack(message)
        self._write()

    def answer(self, word: int | None) -> None:
        """Send this byte, for who waits for it; not many for who does not."""
        if word is not None:
            self._unsent[:] = bytes((word & 0xFF,))
            self._write()

    def _write(self) -> None:
        if self._sock.fileno() == -1:
            return
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # The other side is gone; its end-of-file is read and tells.
            sent = len(self._unsent)
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._sock, self._write)
            self._waits = True
        elif self._waits:
            self._loop.remove_writer(self._sock)
            self._waits = False

    def _fail(self, reason: str) -> None:
        if self._sock.fileno() != -1:
            self.close()
            self._closed(reason)

    def close(self) -> None:
        """Close this end; nothing is heard any more."""
        if self._sock.fileno() != -1:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
        while self.fds:
            os.close(self.fds.popleft())


class _Runs:
    """What goes to a worker: runs, of which those can be taken back that it has not read; files.

    Args:
        filled: where packets are written.
        taken: where the worker reads them; with a copy of it in here as well.
    """

    def __init__(self, filled: socket.socket, taken: socket.socket) -> None:
        filled.setblocking(False)
        self._filled = filled
        self._taken = taken
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[memoryview] = deque()
        self._waits = False
        """Whether the worker has to read before more can be written."""
        self._apart = True
        """Whether all that may be unread are whole runs."""
        self._small: int | None = None
        """How much it takes ahead otherwise, while that is more for the sake of what is long."""
        self._sent_all: Callable[[], None] | None = None
        """Called once when nothing is left to be written."""
        self._held: deque[tuple[int, bytearray]] = deque()
        """What goes ahead and was not sent yet, by its number: with others it wakes the worker once."""
        self._full = False
        """Whether there was no room for all that is held."""
        self._soon = False
        """Whether it is to be sent soon."""

    def send(self, message: wire.ToWorker, then: Callable[[], None] | None = None) -> None:
        """Send this, or keep it until the worker reads; ``then`` is called when all was written."""
        packed = wire.pack_long(message) if _is_long(message) else [wire.pack(message)]
        fits = len(packed) == 1 and len(packed[0]) <= wire.PACKET
        self._apart = posix.KEEPS_PACKETS and fits and isinstance(message, wire.RunWork)
        self._sent_all = then
        if len(packed) > 1 and self._small is None:
            self._small = posix.enlarge(self._filled)
        for piece in packed:
            for at in range(0, len(piece), wire.PACKET):
                self._unsent.append(memoryview(piece)[at : at + wire.PACKET])
        self._write()

    def _write(self) -> None:
        while self._unsent and self._filled.fileno() != -1:
            first = self._unsent.popleft()
            left = first[self._sent(first) :]
            if left:
                self._unsent.appendleft(left)
                self._loop.add_writer(self._filled, self._write)
                self._waits = True
                return
        if self._waits:
            self._waits = False
            self._loop.remove_writer(self._filled)
        if self._small is not None and self._filled.fileno() != -1:
            posix.enlarge(self._filled, self._small)
            self._small = None
        then, self._sent_all = self._sent_all, None
        if then is not None and self._filled.fileno() != -1:
            then()
        self.send_held_soon()

    def hold(self, run: wire.RunWork) -> bool:
        """Have this go in one packet, which can be taken back, with `send_held`; whether it can."""
        if self._unsent or self._full or not self._apart or _is_long(run):
            return False
        packed = wire.pack(run)
        if len(packed) > wire.PACKET:
            return False
        self._held.append((run.number, packed))
        return True

    def send_held(self) -> None:
        """Send all that is held, as far as there is room."""
        while self._held and not self._unsent and self._filled.fileno() != -1:
            if not self._sent(self._held[0][1]):
                self._full = True
                return
            self._held.popleft()
        self._full = False

    def send_held_soon(self) -> None:
        """Send all that is held in the next round of the loop."""
        if self._held and not self._soon:
            self._soon = True
            self._loop.call_soon(self._send_now)

    def _send_now(self) -> None:
        self._soon = False
        self.send_held()

    def begin(self, number: int) -> None:
        """The worker is to begin this: if it was held, it has it now."""
        if self._held and self._held[0][0] == number:
            self.send_held()
            if self._held and self._held[0][0] == number:
                self._unsent.append(memoryview(self._held.popleft()[1]))
                self._write()

    def _sent(self, packet: bytearray | memoryview) -> int:
        """How much of it was sent: all or nothing, where packets stay apart."""
        try:
            return self._filled.send(packet)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return len(packet)  # the worker is gone: its death is heard of

    def take_back(self) -> set[int]:
        """Read what the worker has not read, which reads on meanwhile; the numbers of these runs."""
        numbers = {number for number, _ in self._held}
        self._held.clear()
        self._full = False
        with contextlib.suppress(OSError):
            # Never waiting by its own: the worker's end would not wait any more either.
            while self._apart and (packet := self._taken.recv(wire.PACKET, socket.MSG_DONTWAIT)):
                numbers.add(wire.unpack_run(packet).number)
        return numbers

    def close(self) -> None:
        """Nothing more comes: the worker sees the end."""
        if self._filled.fileno() != -1:
            self._loop.remove_writer(self._filled)
            self._filled.close()
            self._taken.close()


def _is_long(message: wire.ToWorker) -> bool:
    work = message.work if isinstance(message, wire.RunWork) else None
    return isinstance(work, PickledCall) and len(work.pickled) > LONG


class _Timer:
    """One call after some time, unless it is cancelled before or set anew."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return self._handle is not None

    def set(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        """Have this called so much later, and nothing that was to be called before."""
        self.cancel()
        self._handle = self._loop.call_later(seconds, self._call, call, args)

    def cancel(self) -> None:
        """Have nothing called."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _call(self, call: Callable[..., object], args: tuple[object, ...]) -> None:
        self._handle = None
        call(*args)


class CommandListener(Protocol):
    """Who hears of a shell command."""

    def started(self) -> None: ...
    def wrote(self, stream: StreamName, data: bytes) -> None: ...
    def congested(self) -> bool: ...
    def ended(self, status: int | None, reason: str) -> None:
        """With its status as ``os.wait`` gives it; None where it could not run or be heard."""


class _Command:
    """A shell command, from the order to its end."""

    def __init__(self, listener: CommandListener, timeout: float | None, sandbox: Sandbox) -> None:
        self.listener = listener
        self.pid = 0
        self.timed_out = False
        self.over = ""
        """What it used too much of, in words."""
        self._timeout = timeout
        self._sandbox = sandbox
        self._loop = asyncio.get_running_loop()
        self._pipes: dict[StreamName, int] = {}
        self._paused: set[StreamName] = set()
        self._timer = _Timer()

    def run(self, pid: int, stdout: int, stderr: int) -> None:
        """It runs, and these descriptors read what it writes."""
        self.pid = pid
        self._pipes = {"stdout": stdout, "stderr": stderr}
        for name, fd in self._pipes.items():
            os.set_blocking(fd, False)
            self._loop.add_reader(fd, self._readable, name)
        if self._timeout is not None:
            self._timer.set(self._timeout, self._time_out)
        self.listener.started()

    def _time_out(self) -> None:
        self.timed_out = True
        self._sandbox.kill_command(self)

    def _readable(self, name: StreamName) -> None:
        if self.listener.congested():
            self._loop.remove_reader(self._pipes[name])
            self._paused.add(name)
        else:
            self._read(name)

    def resume(self) -> None:
        """There may be room again for output."""
        if self._paused and not self.listener.congested():
            for name in self._paused:
                self._loop.add_reader(self._pipes[name], self._readable, name)
            self._paused.clear()

    def _read(self, name: StreamName) -> bool:
        """Take what is in a pipe; whether there was anything."""
        try:
            data = os.read(self._pipes[name], _CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        if data:
            self.listener.wrote(name, data)
        else:
            self._loop.remove_reader(self._pipes[name])
        return bool(data)

    def end(self, status: int | None, reason: str = "") -> None:
        """Nothing more of it; of what writes on without end, four pipes full are taken."""
        for name in self._pipes:
            for _ in range(4):
                if not self._read(name):
                    break
        for fd in self._pipes.values():
            self._loop.remove_reader(fd)
            os.close(fd)
        self._pipes.clear()
        self._timer.cancel()
        if self.timed_out:
            reason = f"the command ran for more than {self._timeout:g} s"
        self.listener.ended(status, self.over or reason)


class _Worker:
    """A worker that is ready, or runs."""

    def __init__(self, pid: int, fds: list[int], sandbox: Sandbox) -> None:
        sock, filled, taken = (socket.socket(fileno=fd) for fd in fds[:3])
        self.pid = pid
        self.written = fds[3] if len(fds) > 3 else None
        """The file with what the initializer writes."""
        self.runs = _Runs(filled, taken)
        self.ready = False
        """Whether it has said that it is there, and its initializer, if any, has run."""
        self.dead = False
        self.tasks = 0
        self.said: Error | None = None
        """What is to be said when it is dead."""
        self.timer = _Timer()
        """Ends its initializer."""
        self.cpu_seconds = 0.0
        """What its tasks have used, as far as they said."""
        self.signalled = False
        """Whether a signal was sent, which must not reach another cell."""
        self.broken = False
        """Whether it broke the protocol: nothing that it says counts any more."""
        self.channel: Channel[wire.FromWorker] = Channel(
            sock,
            wire.FromWorker,
            lambda message: sandbox.heard(self, message),
            self._closed,
            heard_all=self.runs.send_held,
        )
        self._sandbox = sandbox

    def close(self) -> None:
        """Hear it no more; it sees the end and goes."""
        self.timer.cancel()
        self.take_written()
        self.channel.close()
        self.runs.close()

    def take_written(self) -> str:
        """What its initializer wrote, at the end of it; once."""
        fd, self.written = self.written, None
        return "" if fd is None else isolation.take_initializer_output(fd)

    def _closed(self, reason: str) -> None:
        self._sandbox.unheard(self, reason)


class Sandbox:
    """One sandbox: its init, its worker and the next, and the runs that wait for them."""

    def __init__(
        self, supervisor: Supervisor, number: int, opened: Open, listener: Listener
    ) -> None:
        self.number = number
        self._supervisor = supervisor
        self._state = opened.state
        self._goes_ahead = posix.KEEPS_PACKETS and opened.goes_ahead
        """Whether runs may be sent to its worker before they are its turn."""
        self._most_tasks = 1 if opened.state == "fresh" else opened.tasks
        self._initializer = opened.initializer
        self._initializer_timeout = opened.initializer_timeout
        self._signals = 0
        """Signals that the init has not sent yet."""
        self._listener = listener
        self._limits = opened.limits or Limits.none()
        self._loop = asyncio.get_running_loop()
        self._opened = self._loop.time()
        self._directory = os.path.join(supervisor.directory, f"s-{secrets.token_hex(4)}")
        self._queue: deque[Run] = deque()
        self._ahead: deque[Run] = deque()
        """What the worker has besides, which it has not begun, as far as is known."""
        self._hurry = _Timer()
        """Looks whether what waits here waits for too long."""
        self._commands: dict[int, _Command] = {}
        self._numbers = itertools.count(1)
        self._action: Action | None = None
        self._worker: _Worker | None = None
        self._spare: _Worker | None = None
        self._forking = False
        self._retiring = False
        self._prompt = False
        """Whether its runs are done so soon that others may be sent meanwhile."""
        self._brief = False
        """Whether its last run was done so soon that all was said at its end."""
        self._drained = False
        """Whether nothing but what runs now can have written since the pipes were emptied."""
        self._recalling = False
        """Whether nothing goes ahead, since what did is being taken back."""
        self._ready = False
        self._closed = False
        self._start_deaths = 0
        self._timer = _Timer()
        self._fork_timer = _Timer()
        self._signal_timer = _Timer()
        self._pipes: dict[StreamName, int] = {}
        self._paused: set[StreamName] = set()
        self._glance = _Timer()
        """Looks whether it is time to watch the pipes, while nobody does."""
        self._usage = Watch(
            self._limits,
            self._directory,
            self._exceeded,
            self._spare_pid,
            supervisor.group(os.path.basename(self._directory), self._limits),
        )
        self._init = self._start()
        self._fork()

    # ── its life ────────────────────────────────────────────────────────────

    def _start(self) -> Channel[wire.FromInit]:
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            ours.callback(_remove, self._directory)
            if not self._supervisor.walled:
                os.mkdir(self._directory, mode=0o700)
                isolation.prepare(self._directory)
            sock, far = socket.socketpair()
            posix.name_sender(sock)
            ours.callback(sock.close)
            theirs.callback(far.close)
            fds = [far.fileno()]
            ends = []
            for name in ("stdout", "stderr"):
                reader, writer = os.pipe()
                ours.callback(os.close, reader)
                theirs.callback(os.close, writer)
                fds.append(writer)
                os.set_blocking(reader, False)
                try:
                    # F_SETPIPE_SZ (fcntl(2), Linux): fewer wake-ups
                    fcntl.fcntl(writer, 1031, _CHUNK)
                except OSError:
                    pass
                self._pipes[name] = reader
                try:
                    if self._goes_ahead:
                        ends.append(posix.reopen(reader))
                        theirs.callback(os.close, ends[-1])
                except OSError:
                    self._goes_ahead = False
            fds += ends if self._goes_ahead else []
            self._supervisor.fork_init(self._directory, self._limits, fds)
            ours.pop_all()
        self._watch_all()
        return Channel(sock, wire.FromInit, self._told, self._lost, with_fds=True)

    def close(self, reason: str = "closed") -> None:
        """End it, with all that runs in it; an action that runs gets its End first."""
        self._lost(reason)

    def _lost(self, reason: str) -> None:
        """The init is gone, or is to go: it kills everything when its socket closes."""
        if self._closed:
            return
        self._closed = True
        self._take_back()
        if self._worker is not None:
            # What it has given counts.
            self._worker.channel.read_on(lambda: self._action is not None)
        self._timer.cancel()
        self._fork_timer.cancel()
        self._signal_timer.cancel()
        self._hurry.cancel()
        self._glance.cancel()
        over = self._ends_over(self._worker) or self._struck()
        self._usage.close()
        action, self._action = self._action, None
        if action is not None:
            self._drain(action)
            said = over or Error("died", f"the sandbox was lost: {reason}")
            self._end(action, said, End(0.0))
        for worker in (self._worker, self._spare):
            if worker is not None:
                worker.close()
        commands, self._commands = self._commands, {}
        for command in commands.values():
            command.end(None, f"the sandbox was lost: {reason}")
        self._init.close()
        for name, fd in self._pipes.items():
            if name not in self._paused:
                self._loop.remove_reader(fd)
            os.close(fd)
        self._supervisor.discard(self, self._directory)
        self._listener.closed(self, reason)

    def _told(self, message: wire.FromInit) -> None:
        """The init says what became of a worker."""
        self._usage.found(self._init.sender)
        if isinstance(message, wire.Forked):
            self._forked(message.pid)
        elif isinstance(message, wire.Died):
            self._died(message)
        elif isinstance(message, wire.Executed):
            self._executed(message)
        elif isinstance(message, wire.Signalled):
            self._signalled()
        elif self._retiring:
            self._timer.cancel()
            self._drain(None)
            self._retiring = False
            self._worker, self._spare = self._spare, None
            if self._worker is None:
                self._fork()
            self._next()

    def _fork(self) -> None:
        order = self._order_fork()
        if order is not None:
            self._init.send(order)

    def _order_fork(self) -> wire.Fork | None:
        """What the init is to be told now, for there to be another worker; None: it was told."""
        if self._forking:
            return None
        self._forking = True
        self._fork_timer.set(FORK_PATIENCE, self._give_up_fork)
        return wire.Fork(self._initializer is not None)

    def _give_up_fork(self) -> None:
        self._supervisor.kill_init(self._directory)
        self._lost(f"no worker was there within {FORK_PATIENCE:g} s")

    def _forked(self, pid: int) -> None:
        self._forking = False
        self._fork_timer.cancel()
        fds = [self._init.fds.popleft() for _ in range(len(self._init.fds))]
        if len(fds) < 3:
            # No process could be forked, or the kernel had no descriptors to give us.
            for fd in fds:
                os.close(fd)
            if self._worker is None:
                self._lost("there are no processes or descriptors left for a worker")
            return
        worker = _Worker(pid, fds, self)
        if self._initializer is not None:
            self._initialize(worker, self._initializer)
        if not self._ready:
            self._ready = True
            self._listener.opened(self, self._loop.time() - self._opened)
        if self._worker is None and not self._retiring:
            self._worker = worker
            self._next()
        else:
            self._spare = worker

    # ── its initializer ─────────────────────────────────────────────────────

    def _initialize(self, worker: _Worker, work: Work) -> None:
        """Have a new worker run the initializer, which is bound as a task is; none runs meanwhile."""
        self._usage.begin()
        worker.runs.send(wire.RunWork(0, work, None, "initialize"))
        seconds = self._initializer_timeout
        if seconds is not None:
            late = Error("timeout", f"it ran for more than {seconds:g} s")
            worker.timer.set(seconds, self._end_initializer, worker, late)

    def _initializing(self) -> _Worker | None:
        """The worker that runs the initializer."""
        if self._initializer is not None:
            for worker in (self._worker, self._spare):
                if worker is not None and not worker.ready:
                    return worker
        return None

    def _end_initializer(self, worker: _Worker, why: Error) -> None:
        worker.said = why
        self._send_signal(worker.pid, signal.SIGKILL)

    def _initialized(self, worker: _Worker, message: wire.FromWorker) -> None:
        """What a worker says that runs the initializer."""
        if not isinstance(message, wire.Done):
            return
        self._usage.rest()
        worker.timer.cancel()
        if isinstance(message.said, Error):
            # Not of itself; but whatever it says, nobody is to wait for it any more.
            reason = f"the initializer failed: {message.said.message}"
            self._listener.broken(reason, "", worker.take_written())
            return
        failure = message.said.failure
        if failure is None:
            worker.ready = True
            worker.take_written()
            worker.channel.answer(message.word)
            self._next()
            return
        reason = f"the initializer failed: {failure.name}: {failure.value}"
        self._listener.broken(reason, failure.traceback, message.said.text or "")

    # ── commands ────────────────────────────────────────────────────────────

    def execute(
        self,
        command: bytes,
        directory: bytes,
        environment: dict[str, str],
        timeout: float | None,
        listener: CommandListener,
    ) -> None:
        """Run a shell command now, besides whatever else runs."""
        number = next(self._numbers)
        self._commands[number] = _Command(listener, timeout, self)
        self._usage.look_on()
        self._init.send(wire.Execute(number, command, directory, environment))

    def kill_command(self, command: _Command) -> None:
        """Kill it and all of its process group; its death is heard of."""
        self._send_signal(command.pid, signal.SIGKILL)

    def _send_signal(self, pid: int, number: int) -> None:
        self._signals += 1
        if not self._signal_timer:
            self._signal_timer.set(PATIENCE, self._give_up_all)
        self._init.send(wire.Signal(pid, number))

    def _signalled(self) -> None:
        self._signals -= 1
        if not self._signals:
            self._signal_timer.cancel()
            self._next()

    def _executed(self, message: wire.Executed) -> None:
        fds = self._init.fds
        if len(fds) < 2:
            self._usage.rest()
            self._commands.pop(message.number).end(
                None, "there are no processes or descriptors left for a command"
            )
            return
        self._commands[message.number].run(message.pid, fds.popleft(), fds.popleft())

    # ── running ─────────────────────────────────────────────────────────────

    def submit(self, run: Run) -> None:
        """Run this when what came before has ended."""
        self._queue.append(run)
        self._next()

    def cancel(self, action: int) -> None:
        """Do not run this action; if it runs, kill it."""
        for run in self._queue:
            if run.action == action:
                self._queue.remove(run)
                self._listener.said(action, Error("cancelled", "it was cancelled"))
                self._listener.said(action, End(0.0))
                self._listener.done(action, False)
                return
        # Now it is known what the worker has begun.
        self._recall()
        if self._action is not None and self._action.number == action:
            self._kill(Error("cancelled", "it was cancelled"))

    def signal(self, action: int, number: int) -> None:
        """Send a signal to the worker, if it runs this action."""
        self._recall()
        if self._action is None or self._action.number != action or self._worker is None:
            return
        if number == signal.SIGKILL:
            self._kill()
        else:
            self._strike(self._worker, number)

    def _strike(self, worker: _Worker, number: int) -> None:
        """Send a signal to what runs; one that still waits for files is interrupted without."""
        worker.signalled = True
        if number == signal.SIGINT and self._action is not None and self._action.awaits_files:
            self._action.awaits_files = False
            worker.runs.send(wire.NoFiles())
        else:
            self._send_signal(worker.pid, number)

    def put(self, put: Put) -> None:
        """The files of an action, as far as they were wanted."""
        action, worker = self._action, self._worker
        if action is None or action.number != put.action or worker is None:
            return
        if action.awaits_files:
            action.awaits_files = not put.last and put.failed is None
            worker.runs.send(put, lambda: self._want_files(action))

    def _want_files(self, action: Action) -> None:
        """There is room for what comes next of an action's files: the worker took what came before."""
        if action is self._action and action.awaits_files:
            self._listener.said(action.number, Wanted())

    def credit(self, action: int, count: int) -> None:
        """The reader of an action's output took so many bytes."""
        if self._action is not None and self._action.number == action:
            self._action.confirm(count)
            self.resume()

    def _next(self) -> None:
        worker = self._worker
        if self._closed or self._retiring or self._signals:
            return
        if worker is None or not worker.ready or worker.dead:
            return
        if self._action is not None:
            self._send_ahead(worker)
            return
        if not self._queue:
            self._listener.ready(self)
            return
        run = self._queue.popleft()
        if not (self._drained or (worker.tasks and isinstance(run.work, PickledCall))):
            # What was written between two cells belongs to none.
            self._drain(None)
        try:
            worker.runs.send(self._work(run))
        except (OverflowError, MemoryError) as exc:
            # What one run has is no trouble of anybody else's.
            why = f"it is too large for its process: {str(exc) or type(exc).__name__}"
            self._give_up(run, Error("payload", why))
            self._next()
            return
        self._begin(worker, run)
        self._send_ahead(worker)
        # Behind a wall one that waits could be traced by the cell, and all are killed at its end;
        # and what an initializer uses is told from what a cell does by its time alone.
        ahead = not self._supervisor.walled and self._initializer is None
        if ahead and self._is_last(worker) and self._spare is None:
            self._fork()

    def _work(self, run: Run) -> wire.RunWork:
        namespace: Literal["keep", "new", "only"] = "new"
        if self._state == "session":
            namespace = "keep"
        elif self._worker is not None and self._is_last(self._worker, 1):
            namespace = "only"
        return wire.RunWork(run.action, run.work, run.stdin, namespace, run.given)

    def _begin(self, worker: _Worker, run: Run) -> None:
        """The worker begins to run this."""
        worker.runs.begin(run.action)
        action = self._action = Action(run)
        worker.tasks += 1
        self._usage.begin()
        for observation in action.begin(self._loop.time(), time.time(), self.number):
            self._listener.said(action.number, observation, self._brief)
        self._want_files(action)
        self._limit(run)

    def _send_ahead(self, worker: _Worker) -> None:
        """What waits behind a run that will be done at once need not wait for us as well."""
        assert self._action is not None
        while (
            self._queue
            and self._prompt
            and _may_be_followed(self._action.run)
            and not self._action.awaits_files
            and _may_be_followed(self._queue[0])
            and worker.runs.hold(self._work(self._queue[0]))
        ):
            self._ahead.append(self._queue.popleft())
        if not worker.channel.reading:
            # It has something to do, and more may come with what is being read of the client's.
            worker.runs.send_held_soon()
        if (self._ahead or self._queue) and not self._hurry:
            self._hurry.set(PROMPT, self._hasten, self._action)

    def _hasten(self, before: Action | None) -> None:
        """What was sent ahead has waited for a while: if it is behind this still, it waits elsewhere."""
        if before is self._action:
            self._recall()
        elif self._ahead or self._queue:
            self._hurry.set(PROMPT, self._hasten, self._action)

    def _recall(self) -> None:
        """Take back what the worker has not begun; what it has begun is known afterwards."""
        worker = self._worker
        self._prompt = False
        self._recalling = True
        self._take_back()
        self._recalling = False
        if self._ahead and worker is not None and not (worker.dead or worker.signalled):
            self._break(worker, "it took a run before it said how the last one ended")
        # What waits for a session can run nowhere else.
        if self._action is not None and self._queue and self._state != "session":
            waiting, self._queue = self._queue, deque()
            self._listener.returned(self, [run.action for run in waiting])

    def _take_back(self) -> None:
        worker = self._worker
        if worker is None:
            return
        # What one did not begin that died by itself can begin in another, but without a
        # session's state.
        dead = worker.dead or self._closed
        dead = dead and not worker.signalled and self._state != "session"
        if not self._ahead and not dead:
            return
        taken = worker.runs.take_back()
        back = [run for run in self._ahead if run.action in taken]
        self._ahead = deque(run for run in self._ahead if run.action not in taken)
        if self._action is not None and self._action.number in taken:
            # It had not even read what it is to run now.
            if self._ahead or dead:
                # But read the next, when this one had just been taken back; or never will.
                back.insert(0, self._action.run)
                self._timer.cancel()
                self._usage.rest()
                self._action = None
                if self._ahead:
                    self._begin(worker, self._ahead.popleft())
            else:
                worker.runs.send(self._work(self._action.run))
        self._queue.extendleft(reversed(back))
        # Before it took another run, it said how the last one ended.
        worker.channel.read_on(lambda: bool(self._ahead))

    def _limit(self, run: Run) -> None:
        """Have what runs out of time first interrupt it."""
        left = None if run.deadline is None else max(0.0, run.deadline - self._loop.time())
        if run.timeout is not None and (left is None or run.timeout <= left):
            self._timer.set(run.timeout, lambda: self._time_out("timeout"))
        elif left is not None:
            self._timer.set(left, lambda: self._time_out("deadline"))

    def _is_last(self, worker: _Worker, more: int = 0) -> bool:
        """Whether the worker runs no more tasks after this, or after so many more."""
        return self._most_tasks is not None and worker.tasks + more >= self._most_tasks

    def heard(self, worker: _Worker, message: wire.FromWorker) -> None:
        """A worker says something: only the one that runs has a say, and only about its run."""
        if isinstance(message, wire.Idle):
            self._is_idle(worker)
            return
        if isinstance(message, wire.Drain):
            if worker is self._worker and self._action is not None:
                self._drain(self._action)
                self._judge_output(self._action)
            worker.channel.answer(message.word)
            return
        if not worker.ready:
            self._initialized(worker, message)
            return
        action = self._action
        if worker is not self._worker or action is None or worker.broken:
            return
        if isinstance(message, (Display, Cut)):
            self._say(action, action.shown(message))
        elif isinstance(message, Part):
            if not self._takes(action, worker, message):
                return
            self._say(action, [message])
            if self._listener.congested():
                worker.channel.pause()
        elif isinstance(message, (File, Left)):
            reason = action.fetched(message)
            if reason is not None:
                # Nothing more that it says counts, nor that it ended well.
                worker.channel.close()
                self._break(worker, f"what it sent is not what was asked for: {reason}")
                return
            self._say(action, [message])
            if self._listener.congested():
                worker.channel.pause()
        elif isinstance(message.said, Error) and message.said.kind != "payload":
            # How a task ended otherwise, and what that means for others, is not for it to say.
            self._break(worker, f"it sent an error that is not its own: {message.said.kind}")
        elif message.number != action.number:
            self._break(worker, "it sent the end of another run than its own")
        elif isinstance(message.said, Error) or self._takes(action, worker, message.said):
            self._finish(message)

    def _takes(self, action: Action, worker: _Worker, part: Part | Result) -> bool:
        """Whether this, of what a call gave, is passed on; else its worker is at its end."""
        work = action.run.work
        if isinstance(work, PickledCall):
            if action.take(part):
                return True
            worker.broken = True
            self._kill(Error("payload", _TOO_LARGE.format(work.max_result)))
        elif isinstance(part, Part) or part.pickled is not None:
            self._break(worker, "it sent what a call gives, and ran none")
        else:
            return True
        return False

    def _is_idle(self, worker: _Worker) -> None:
        """A worker runs nothing: it is ready; or an interrupt came before the run that it is for."""
        if not worker.ready:
            if self._initializer is None:
                worker.ready = True
                self._next()
        elif worker is self._worker and self._action is not None and worker.signalled:
            self._send_signal(worker.pid, signal.SIGINT)

    def unheard(self, worker: _Worker, reason: str) -> None:
        """A worker's socket is closed: if the worker still lives, it is of no use any more."""
        if worker is self._worker and self._action is not None:
            self._break(worker, reason)
        elif worker in (self._worker, self._spare):
            self._send_signal(worker.pid, signal.SIGKILL)

    def _break(self, worker: _Worker, reason: str) -> None:
        """The worker that runs cannot give a result any more."""
        worker.broken = True
        if reason == END_OF_FILE:
            if worker.said is not None:
                return  # it is being killed, and what is to be said of it is known
            # Most often it died, and the init will say how in a moment.
            self._timer.set(LAST_BREATH, lambda: self._kill(_CLOSED))
        else:
            self._kill(Error("protocol", reason))

    def _time_out(self, limit: Literal["timeout", "deadline"]) -> None:
        action = self._action
        self._recall()
        if action is not None and self._action is action and self._worker is not None:
            action.timed_out = limit
            self._strike(self._worker, signal.SIGINT)
            self._timer.set(GRACE, self._kill)

    def _kill(self, said: Error | None = None) -> None:
        if self._worker is not None:
            self._worker.said = said
            self._worker.signalled = True
            self._send_signal(self._worker.pid, signal.SIGKILL)
            self._timer.set(PATIENCE, self._give_up_all)

    def _give_up_all(self) -> None:
        self._supervisor.kill_init(self._directory)
        self._lost(f"its processes could not be ended within {PATIENCE:g} s")

    def _died(self, message: wire.Died) -> None:
        for number, command in list(self._commands.items()):
            if command.pid == message.pid:
                del self._commands[number]
                self._usage.rest()
                struck = self._struck()
                command.over = command.over or (struck.message if struck else "")
                command.end(message.status)
                return
        worker, spare = self._worker, self._spare
        if spare is not None and spare.pid == message.pid:
            self._spare = None
            self._close_worker(spare, message)
            return
        if worker is None or worker.pid != message.pid:
            return
        if not worker.ready:
            self._close_worker(worker, message)
        worker.dead = True
        self._recall()
        # Its last words may still be in the socket, and may be a result.
        worker.channel.read_on(lambda: True)
        # It died in one; of more than one it took what was not its turn.
        said = worker.said or self._death(message.status)
        if said is _CLOSED and not _was_killed(message.status):
            said = death(message.status)  # and the news of it was late
        while self._action is not None and self._worker is worker:
            cpu_seconds = max(0.0, message.cpu_seconds - worker.cpu_seconds)
            used = End(0.0, cpu_seconds, message.peak_memory)
            self._finish(wire.Done(self._action.number, said, used))
        if self._worker is not worker or self._closed:
            return
        how = said.message
        if self._state == "session" and worker.tasks:
            self._listener.state_lost(self, how)
        self._start_deaths += 1
        if self._start_deaths >= _START_DEATHS:
            self._lost(f"its workers die at once: {how}")
        else:
            self._retire(worker)

    def _close_worker(self, worker: _Worker, message: wire.Died) -> None:
        """A worker that ran nothing of anybody's is gone."""
        written = worker.take_written()
        worker.close()
        if not worker.ready and self._initializer is not None:
            self._usage.rest()
            said = worker.said or self._death(message.status)
            how = said.message.replace("the cell's process", "its process")
            self._listener.broken(f"the initializer failed: {how}", "", written)

    def _finish(self, done: wire.Done) -> None:
        worker, action = self._worker, self._action
        assert worker is not None
        assert action is not None
        self._start_deaths = 0
        self._timer.cancel()
        for name, data in zip(self._pipes, done.wrote, strict=True):
            if data is None:
                self._drain_one(name, action)
            elif data:
                self._say(action, action.output(name, data))
        self._action = None
        worker.cpu_seconds += done.used.cpu_seconds
        worker.channel.resume()
        session = self._state == "session"
        # A script has ended as a process does: its threads and exit handlers are through.
        script = isinstance(action.run.work, Cells) and action.run.work.argv is not None
        said = self._judged(action, done.said)
        # What reached a limit may hold what the next one needs; of output there is nothing to hold.
        full = said.exceeded is not None and said.exceeded.which != "output"
        spoiled = (worker.signalled or full) and not session
        # What a dead one has begun besides is said first to have ended.
        dead = worker.dead and not self._ahead
        renewed = script or spoiled or self._is_last(worker) or dead
        self._brief = self._loop.time() - action.started < PROMPT
        self._prompt = not renewed and self._is_prompt(action)
        if self._brief:
            self._look_away()
        if renewed and not self._closed:
            if session:
                self._listener.state_lost(self, "the session's process had to be replaced")
            self._take_back()
            self._retire(worker)
        else:
            worker.signalled = False
            worker.channel.answer(done.word)
        self._drained = not renewed
        # Only now: whoever hears of the end may give the next run.
        self._end(action, said, done.used, worker)
        if self._paused or self._commands:
            self.resume()
        self._next()
        self._drained = False

    def _is_prompt(self, action: Action) -> bool:
        """Whether others like it may be sent to the worker before they are its turn."""
        return (
            self._goes_ahead
            and not self._recalling
            and _may_be_followed(action.run)
            and self._brief
        )

    def _end(
        self, action: Action, said: Result | Error, used: End, worker: _Worker | None = None
    ) -> None:
        """All is said of an action; what the worker took next has begun."""
        cpu_seconds, peak = self._usage.finish()
        cpu_seconds = max(used.cpu_seconds, cpu_seconds)
        used = End(0.0, cpu_seconds, max(used.peak_memory or 0, peak) or None)
        self._say(action, action.finish(said, used, self._loop.time()))
        lost: deque[Run] = deque()
        if worker is None or worker is not self._worker:
            # Only hostile code takes what is not its turn.
            lost, self._ahead = self._ahead, lost
        elif self._ahead:
            self._begin(worker, self._ahead.popleft())
        self._listener.done(action.number, self._prompt, self._closed)
        for run in lost:
            self._give_up(run, Error("died", "the process that took it is gone"))
        work = action.run.work
        if isinstance(work, PickledCall) and len(work.pickled) > _LARGE:
            # Nobody has it any more then.
            self._loop.call_later(_A_MOMENT, posix.trim_memory)

    def _give_up(self, run: Run, why: Error) -> None:
        """It is not run."""
        self._listener.said(run.action, why)
        self._listener.said(run.action, End(0.0))
        self._listener.done(run.action, False)

    def _retire(self, worker: _Worker) -> None:
        """Nothing of this worker stays; the next one takes its place when it is gone."""
        self._retiring = True
        worker.close()
        self._worker = None
        over = worker.said and worker.said.exceeded
        # Files that are too many would end the next cell as well.
        files_stay = self._state == "session" and not (over and over.which == "disk")
        fork = self._order_fork() if self._spare is None else None
        self._init.send(wire.Retire(worker.pid, files_stay, fork))
        self._timer.set(PATIENCE, self._give_up_all)

    # ── limits ──────────────────────────────────────────────────────────────

    def in_use(self) -> InUse:
        """What it uses now."""
        memory, cpu_seconds, processes = self._usage.use()
        action = None if self._action is None else self._action.number
        return InUse(self.number, memory, cpu_seconds, processes, action)

    def _spare_pid(self) -> int:
        if self._spare is None or self._initializing() is not None:
            return 0
        return self._spare.pid

    def _exceeded(self, over: Exceeded) -> None:
        """It uses more than it may: all of it ends that is not the runtime's."""
        message = limits.message(over.which, over.limit, over.used)
        for command in self._commands.values():
            command.over = message
            self.kill_command(command)
        why = Error("limit", message, exceeded=over)
        initializing = self._initializing()
        if initializing is not None:
            self._end_initializer(initializing, why)
            return
        self._recall()
        self._kill(why)

    def _ends_over(self, worker: _Worker | None) -> Error | None:
        """What is to be said of a worker that is being killed, since a limit was exceeded."""
        said = None if worker is None else worker.said
        return said if said is not None and said.exceeded is not None else None

    def _struck(self) -> Error | None:
        """The kernel has killed something in it: what is to be said of that, once."""
        over = self._usage.struck()
        if over is None:
            return None
        return Error("limit", limits.message(over.which, over.limit, over.used), exceeded=over)

    def _death(self, status: int) -> Error:
        """Why a worker is gone."""
        return self._struck() or death(status)

    def _judged(self, action: Action, said: Result | Error) -> Result | Error:
        """How a run ended; where that tells of a limit, with its name, whatever the worker says."""
        if not isinstance(said, Result):
            return said
        known = self._ends_over(self._worker)
        if known is not None:
            return known  # it was sooner than the kill
        over = self._over_output(action)
        if over is None and self._loop.time() - action.started > PROMPT:
            over = self._usage.struck()
        if over is not None:
            # Nobody saw it before its end.
            message = limits.message(over.which, over.limit, over.used)
            return Error("limit", message, exceeded=over)
        if said.failure is not None:
            which = limits.told_by(self._limits, said.failure.name, said.failure.value)
            if which is not None:
                over = Exceeded(which, getattr(self._limits, which))
        return said if said.exceeded == over else msgspec.structs.replace(said, exceeded=over)

    # ── output ──────────────────────────────────────────────────────────────

    def _say(self, action: Action, observations: list[Observation]) -> None:
        for observation in observations:
            self._listener.said(action.number, observation)

    def _watch_all(self) -> None:
        self._paused.clear()
        for name in self._pipes:
            self._watch(name)

    def _watch(self, name: StreamName) -> None:
        self._loop.add_reader(self._pipes[name], self._readable, name)

    def _look_away(self) -> None:
        """Do not watch the pipes for the moment: what brief runs write is taken at their end."""
        if not self._glance and not self._closed:
            for fd in self._pipes.values():
                self._loop.remove_reader(fd)
            self._glance.set(PROMPT, self._look, self._action)

    def _look(self, before: Action | None) -> None:
        """Watch the pipes again, where what runs is no brief run, or nothing does."""
        if before is self._action:
            self._watch_all()
        else:
            self._glance.set(PROMPT, self._look, self._action)

    def _readable(self, name: StreamName) -> None:
        if self._ahead:
            # What it wrote is of the run that it is at now.
            self._recall()
        if self._action is not None and (not self._action.open or self._listener.congested()):
            # The pipe fills up, and whoever writes into it waits.
            self._loop.remove_reader(self._pipes[name])
            self._paused.add(name)
            return
        there = posix.unread(self._pipes[name])
        if self._worker is not None and self._worker.channel.read():
            # That may have been said before this was written, which is there again in a moment.
            return
        self._read(name, self._action, there or _CHUNK)
        if self._action is not None:
            self._judge_output(self._action)

    def _judge_output(self, action: Action) -> None:
        """End it, where it wrote more than it may."""
        over = self._over_output(action)
        if over is not None and not action.over:
            action.over = True
            self._exceeded(over)

    def _over_output(self, action: Action) -> Exceeded | None:
        """How it wrote more than it may."""
        most = self._limits.output
        if most is None or action.written <= most:
            return None
        return Exceeded("output", most, action.written)

    def resume(self) -> None:
        """There may be room again for output."""
        for command in self._commands.values():
            command.resume()
        if self._closed or self._listener.congested():
            return
        if self._worker is not None:
            self._worker.channel.resume()
        if self._action is None or self._action.open:
            for name in self._paused:
                self._watch(name)
            self._paused.clear()

    def _read(self, name: StreamName, action: Action | None, most: int = _CHUNK) -> int:
        """Take what is in a pipe, for this action; the number of bytes, 0 when it is empty."""
        try:
            data = os.read(self._pipes[name], most)
        except (BlockingIOError, InterruptedError):
            return 0
        if not data:
            # No writer is left, not even the init: its own end-of-file is near.
            self._loop.remove_reader(self._pipes[name])
            self._paused.add(name)
        elif action is not None:
            self._say(action, action.output(name, data))
        return len(data)

    def _drain(self, action: Action | None) -> None:
        """Take all that was written so far; of one who never stops, four pipes full."""
        for name in self._pipes:
            self._drain_one(name, action)

    def _drain_one(self, name: StreamName, action: Action | None) -> None:
        for _ in range(4):
            # A pipe that gives less is empty.
            if self._read(name, action) < _CHUNK:
                break


class Supervisor:
    """The zygote, and the sandboxes that were forked from it.

    Args:
        zygote: socket to the zygote.
        directory: where the sandboxes' directories go.
        lost: called once, with the reason, when the zygote is gone.
        standing: the level of isolation at which they are.
        groups: of which each sandbox has one.
        most: how many sandboxes there may be; None for no limit.
    """

    def __init__(
        self,
        zygote: socket.socket,
        directory: str,
        lost: Callable[[str], None],
        standing: Standing,
        groups: Groups,
        most: int | None = None,
    ) -> None:
        self.directory = directory
        self.standing = standing
        self.walled = standing.level == "bubblewrap"
        """Whether sandboxes have their files, and namespaces, for themselves."""
        self._groups = groups
        self._most = most
        self.ready = asyncio.Event()
        self.hopeless = False
        """Whether no other zygote would get warm either."""
        self._lost = lost
        self._sandboxes: set[Sandbox] = set()
        self._unborn: list[int] = []
        """Descriptors for sandboxes that will not be."""
        self._zygote_socket = zygote
        self._zygote: Channel[wire.FromZygote] = Channel(
            zygote, wire.FromZygote, self._told, self._lost
        )

    def _told(self, message: wire.FromZygote) -> None:
        if isinstance(message, wire.Ready):
            self.ready.set()
        else:
            self.hopeless = True
            self._zygote.close()
            self._lost(message.message)

    def open(self, number: int, opened: Open, listener: Listener) -> Sandbox:
        """Start a sandbox; runs may be given to it at once.

        Raises:
            NoRoom: there are as many as there may be.
            OSError: there are no descriptors or no room on the disk left for it.
        """
        if self._most is not None and len(self._sandboxes) >= self._most:
            raise NoRoom(f"the runtime has {self._most} sandboxes, and takes no more")
        sandbox = Sandbox(self, number, opened, listener)
        self._sandboxes.add(sandbox)
        return sandbox

    def group(self, name: str, its: Limits) -> Group | None:
        """A control group for a sandbox, where it has a limit that one can hold."""
        most = groups.most(its, files_in_memory=self.walled)
        return None if most is None else self._groups.group(name, most)

    def fork_init(self, directory: str, its: Limits, fds: list[int]) -> None:
        """Have the zygote fork an init with these descriptors."""
        request = wire.pack(wire.NewSandbox(directory, its))
        if self._zygote_socket.fileno() != -1:
            # The zygote does nothing but read this; it waits while its buffer of
            # some hundred requests is full.
            self._zygote_socket.setblocking(True)
            try:
                socket.send_fds(self._zygote_socket, [request], fds)
                return
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                self._zygote_socket.setblocking(False)
        # It is gone, and so is this runtime in a moment. That is no lack of room, and no
        # death of a sandbox: whoever waits for this one hears of the runtime's end.
        self._unborn += map(os.dup, fds)

    def kill_init(self, directory: str) -> None:
        """Have the zygote kill the init of this sandbox, which does not end by itself."""
        self._zygote.send(wire.EndSandbox(directory))

    def discard(self, sandbox: Sandbox, directory: str) -> None:
        """A sandbox has ended: its files go once its processes are gone."""
        self._sandboxes.discard(sandbox)
        if self.walled:
            return
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, lambda: loop.run_in_executor(None, _remove, directory))

    def close(self) -> None:
        """End all sandboxes, and the zygote."""
        for sandbox in list(self._sandboxes):
            sandbox.close("the runtime ends")
        self._zygote.close()


_TOO_LARGE = "the result has more than {} bytes: SandboxExecutor(max_result=…) allows more"


def _may_be_followed(run: Run) -> bool:
    """Whether its worker could take it, and run others, without a word from here between them."""
    script = isinstance(run.work, Cells) and run.work.argv is not None
    return run.given is None and not script and not isinstance(run.work, Shell)


def _was_killed(status: int) -> bool:
    """Whether it ended by SIGKILL; ``status`` as ``os.wait`` gives it."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _remove(directory: str) -> None:
    try:
        isolation.remove(directory)
    except OSError:
        # A process of the sandbox still writes there; the runtime removes it all at its end.
        pass
