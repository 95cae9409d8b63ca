"""The warm process that sandboxes are forked from: single-threaded, runs no code of users.

It imports IPython and what is to be preloaded, builds the shell once, and then
has an init ready for each sandbox that the supervisor asks for: one stands by, and
when it has got its sandbox, the next one is forked. When the supervisor
is gone it waits for the sandboxes to end, kills what is left, and exits.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from mentis_pool.pool_stream import keep_memory
from mentis_pool.runtime import forks, grounds, posix, wire

STANDS = b"\n"
"""Said when the ground holds."""
_PATIENCE = 3.0
"""Seconds that the sandboxes have to end by themselves."""


def main(fd: int, log: int, plan: grounds.Plan, preload: list[str]) -> None:
    """Be the zygote.

    Args:
        fd: a socket, with the supervisor at the other end: it is told with one byte that the
            ground holds, and everything else as messages.
        log: where what is written goes, once the ground holds.
        plan: of the ground.
        preload: modules to import.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    posix.open_more()
    sock = socket.socket(fileno=fd)
    ground = grounds.of(plan)
    ground.enter()
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    sock.sendall(STANDS)
    # This takes long.
    from mentis_pool.runtime import init, worker
    from mentis_pool.runtime.cells import build_shell, warm_up

    name = None
    try:
        build_shell()
        for name in preload:
            importlib.import_module(name)
        name = None
        warm_up()
    except BaseException as exc:  # noqa: BLE001 - a module to be preloaded may raise anything
        what = traceback.format_exc() + _REINSTALL if name is None else _not_imported(name, exc)
        sock.sendall(wire.pack(wire.Failed(what)))
        return
    template = worker.Worker()
    template.rehearse()
    # Less than elsewhere: it is in each kept worker, beside what its memory is limited to.
    keep_memory(16 << 20)
    its = init.Init(template, ground)
    ground.loaded()
    forks.leave_out()
    # What lives now lives for ever: no collection in a child will touch (and so copy) its pages.
    gc.collect()
    gc.freeze()
    sock.sendall(wire.pack(wire.Ready()))
    _Zygote(sock, ground, its.run).run()


_REINSTALL = "Install mentis_pool and what it needs anew: pip install --force-reinstall mentis_pool"


def _not_imported(name: str, exc: BaseException) -> str:
    """Why a module is not preloaded, and what to do, in words for the user."""
    said = "".join(traceback.format_exception_only(type(exc), exc)).strip()
    if isinstance(exc, ModuleNotFoundError):
        remedy = f"Install {exc.name} where the client runs (for {sys.executable})"
    else:
        remedy = f"See that this works: {sys.executable} -c 'import {name}'"
    return (
        f"the module {name!r} of preload= cannot be imported: {said}\n"
        f"{remedy}, or take {name!r} out of preload="
    )


class _Zygote:
    def __init__(
        self,
        sock: socket.socket,
        ground: grounds.Ground,
        be_init: Callable[[socket.socket, int], None],
    ) -> None:
        self._sock = sock
        self._be_init = be_init
        self._ground = ground
        self._inits: dict[int, str] = {}
        """Directories of sandboxes, by the pid of their init."""
        self._standby: tuple[int, socket.socket] | None = None
        """The pid of an init that has no sandbox yet, and by what it is told of one."""
        self._woken, self._wake = os.pipe()
        # An init has its sandbox's pipes in the place of this.
        self._log = os.dup(2)

    def run(self) -> None:
        """Serve until end-of-file."""
        posix.adopt_orphans()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        requests = wire.Unpacker[wire.ToZygote](wire.ToZygote)  # type: ignore[arg-type]
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        self._have_standby()
        while True:
            ready = dict(poll.poll())
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._sock.fileno() in ready:
                data, fds, _, _ = socket.recv_fds(self._sock, 65536, wire.SANDBOX_FDS)
                if not data:
                    break
                # One request has one set of descriptors, and is read alone: the
                # kernel ends a read where descriptors came along.
                for request in requests.feed(data):
                    if isinstance(request, wire.NewSandbox):
                        self._begin(request, fds)
                        self._have_standby()
                    else:
                        self._kill_init(request.directory)
        self._end()

    def _begin(self, request: wire.NewSandbox, fds: list[int]) -> None:
        # The one that stands by may have been killed: then the next one gets it.
        for _ in range(2):
            why = self._have_standby(fds)
            if self._standby is None:
                break
            (pid, sock), self._standby = self._standby, None
            self._inits[pid] = request.directory
            try:
                with sock:
                    posix.send(sock, wire.pack(request), fds)
            except OSError as exc:
                why = exc
            else:
                why = None
                break
        if why is not None:
            # The supervisor sees the end of the socket: that sandbox is lost, and no other.
            os.write(self._log, f"no sandbox can be forked: {why}\n".encode())
        for fd in fds:
            os.close(fd)

    def _have_standby(self, held: Sequence[int] = ()) -> OSError | None:
        """Fork an init, if none stands by; why there is none.

        Args:
            held: descriptors of a sandbox, which it gets by its socket if at all.
        """
        if self._standby is not None:
            return None
        pair: tuple[socket.socket, ...] = ()
        try:
            pair = posix.packets()
            pid = self._ground.fork()
        except OSError as exc:
            for each in pair:
                each.close()
            return exc
        ours, theirs = pair
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                ours.close()
                self._sock.close()
                for fd in (self._woken, self._wake, *held):
                    os.close(fd)
                self._be_init(theirs, self._log)
                code = 0
            except BaseException:  # noqa: BLE001 - the last words of this process
                os.write(self._log, traceback.format_exc().encode())
            finally:
                os._exit(code)
        theirs.close()
        self._standby = pid, ours
        return None

    def _kill_init(self, directory: str) -> None:
        # Its workers are killed with it; what else it had becomes our child, and is killed as such.
        for pid, its in self._inits.items():
            if its == directory:
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                break
            self._inits.pop(pid, None)
            if self._standby is not None and self._standby[0] == pid:
                self._dismiss()
        # Whoever is our child and no init was left by one that was killed.
        standby = () if self._standby is None else self._standby[:1]
        for pid in posix.children():
            if pid not in self._inits and pid not in standby:
                os.kill(pid, signal.SIGKILL)

    def _dismiss(self) -> None:
        """None stands by any more."""
        if self._standby is not None:
            self._standby[1].close()
            self._standby = None

    def _end(self) -> None:
        self._dismiss()
        deadline = time.monotonic() + _PATIENCE
        while self._inits and time.monotonic() < deadline:
            select.select([self._woken], [], [], 0.1)
            self._reap()
        # Children of those that are killed become ours, so look again.
        while left := {*self._inits, *posix.children()}:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except (ProcessLookupError, ChildProcessError):
                    pass
                self._inits.pop(pid, None)
