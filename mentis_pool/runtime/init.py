"""The first process of a sandbox: forks workers, kills and cleans up between them.

It runs no code of users. It stands by until a sandbox is wanted, or the zygote is gone. Then it
waits for two things only, a command of the supervisor and the end of a child; when the supervisor
is gone (end-of-file on its socket) it kills everything in the sandbox and exits.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import tempfile
import time
from typing import NoReturn

from mentis_pool.limits import Limits
from mentis_pool.runtime import grounds, posix, wire, worker

TRACKER_PATIENCE = 1.0
"""Seconds that a resource tracker has to unlink what was left in /dev/shm."""


class Init:
    """The workers of one sandbox: one that runs, and at times the next, already forked.

    Like what a worker does, it is made ready in the zygote.
    """

    def __init__(self, template: worker.Worker, ground: grounds.Ground) -> None:
        self._template = template
        self._ground = ground
        self._workers: list[int] = []
        self._commands: list[int] = []
        self._asked = wire.Unpacker[wire.NewSandbox](wire.NewSandbox)
        self._heard = wire.Unpacker[wire.ToInit](wire.ToInit)  # type: ignore[arg-type]

    def run(self, asked: socket.socket, log: int) -> None:
        """Be the init of the sandbox that is asked for by ``asked``, if any is, until its end.

        ``log`` is where its last words would go: it is not for its workers.

        With the one packet come, as descriptors, its socket, at whose end-of-file it leaves no
        process behind; where its stdout and its stderr go; and where known, what is read there.
        """
        os.setsid()
        self._log = log
        self._ground.stand_by()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Each page that is written to is copied now, and not when somebody waits.
        self._template.settle(map(os.dup, (1, 2)), "", Limits())
        data, fds, _ = posix.receive(asked, wire.PACKET, wire.SANDBOX_FDS)
        asked.close()
        if data:
            (request,) = self._asked.feed(data)
            self._be_of(request, *fds)

    def _be_of(self, request: wire.NewSandbox, fd: int, *pipes: int) -> None:
        # Its kind is given: to be asked for it is three calls more.
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        self._ground.settle(request.directory, request.limits)
        self._template.settle(pipes, os.environ["PWD"], request.limits)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        try:
            while True:
                ready = dict(poll.poll())
                if self._woken in ready:
                    self._reap()
                if self._sock.fileno() in ready:
                    data = self._sock.recv(65536)
                    if not data:
                        break
                    for command in self._heard.feed(data):
                        self._obey(command)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the supervisor is gone: the same as end-of-file
        finally:
            self._kill_all_but(())

    def _obey(self, command: wire.ToInit) -> None:
        if isinstance(command, wire.Fork):
            self._fork(command.initializer)
        elif isinstance(command, wire.Signal):
            # Only children that were not waited for: their pids cannot be anyone else's.
            if command.pid in self._workers:
                os.kill(command.pid, command.signal)
            elif command.pid in self._commands:
                os.killpg(command.pid, command.signal)
            self._sock.sendall(wire.pack(wire.Signalled(command.pid)))
        elif isinstance(command, wire.Execute):
            self._execute(command)
        else:
            self._retire(command)

    def _fork(self, initializer: bool) -> None:
        self._tell_of(*self._forked(initializer))

    def _tell_of(self, pid: int, fds: list[int]) -> None:
        """That a worker is there, for whom these descriptors are; they are closed here."""
        posix.send(self._sock, wire.pack(wire.Forked(pid)), fds)
        for fd in fds:
            os.close(fd)

    def _forked(self, initializer: bool) -> tuple[int, list[int]]:
        """Fork a worker: its pid, 0 where none could be had, and the descriptors to tell of."""
        ours, theirs = socket.socketpair()
        filled, taken = posix.packets()
        written = worker.moved_away(_unnamed_file()) if initializer else None
        # Where cells do not stumble over them.
        theirs, taken = (
            socket.socket(fileno=worker.moved_away(each.detach())) for each in (theirs, taken)
        )
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            # A cell that runs goes on; the supervisor decides what this means.
            for each in (ours, theirs, filled, taken):
                each.close()
            if written is not None:
                os.close(written)
            return 0, []
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                posix.die_with_parent(parent)
                for each in (ours, filled, self._sock):
                    each.close()
                for fd in (self._woken, self._wake, self._log):
                    os.close(fd)
                self._ground.give_up()
                self._template.run(theirs, taken, written)
            finally:
                os._exit(0)
        theirs.close()
        self._workers.append(pid)
        fds = [each.detach() for each in (ours, filled, taken)]
        return pid, fds if written is None else [*fds, written]

    def _execute(self, command: wire.Execute) -> None:
        readers: list[int] = []
        writers: list[int] = []
        parent = os.getpid()
        pid = 0
        try:
            for _ in range(2):
                reader, writer = os.pipe()
                readers.append(reader)
                writers.append(writer)
            pid = os.fork()
            if pid == 0:
                self._template.limit()
                _be_command(command, writers, parent, self._ground)
            # Before anybody may want to signal it; the child does the same.
            os.setpgid(pid, pid)
            self._commands.append(pid)
        except OSError:
            # None can be had; or it has gone its own way already, and leads its group.
            if pid > 0:
                self._commands.append(pid)
        sent = readers if pid > 0 else []
        posix.send(self._sock, wire.pack(wire.Executed(command.number, pid)), sent)
        for fd in (*readers, *writers):
            os.close(fd)

    def _reap(self) -> None:
        os.read(self._woken, 4096)
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            # Others are orphans of a worker; nobody asks for them.
            its = self._workers if pid in self._workers else self._commands
            if pid in its:
                its.remove(pid)
                died = wire.Died(
                    pid, status, used.ru_utime + used.ru_stime, worker.maxrss_bytes(used.ru_maxrss)
                )
                self._sock.sendall(wire.pack(died))

    def _retire(self, retire: wire.Retire) -> None:
        fork = retire.fork
        forked: tuple[int, list[int]] = (0, [])
        if not retire.files_stay and self._ground.end_all():
            for pid in self._commands:
                self._sock.sendall(wire.pack(wire.Died(pid, signal.SIGKILL, 0.0, 0)))
            self._workers.clear()
            self._commands.clear()
            # It need not wait until they are gone: that takes as long as the fork.
            if fork is not None and not fork.initializer:
                forked = self._forked(False)
            while left := set(posix.children()).difference(self._workers):
                for pid in left:
                    os.waitpid(pid, 0)
            self._ground.empty()
        else:
            others = [other for other in self._workers if other != retire.pid]
            self._kill_all_but([*others, *self._commands])
            if not retire.files_stay:
                self._ground.empty()
        if fork is not None and not forked[0]:
            # Now there is room for its file; and for it, where the others were as many as may be.
            forked = self._forked(fork.initializer)
        self._sock.sendall(wire.pack(wire.Retired(retire.pid)))
        if fork is not None:
            self._tell_of(*forked)

    def _kill_all_but(self, kept: list[int] | tuple[()]) -> None:
        """Kill every process of the sandbox except these children, and wait until they are gone."""
        ended = [pid for pid in (*self._workers, *self._commands) if pid not in kept]
        for pid in ended:
            (self._workers if pid in self._workers else self._commands).remove(pid)
            os.kill(pid, signal.SIGKILL)
            posix.await_end(pid)
        # What it had started is our child now, but for what that started in turn.
        known = set(posix.children())
        orphans = known - {*kept, *ended}
        if any(map(posix.is_tracker, orphans)):
            _let_trackers_end({*kept, *ended})
        for pid in ended:
            try:
                # It leads its process group: what is left of it goes at once.
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.waitpid(pid, 0)
        if known and not orphans:
            return
        # Whoever left the group became our child when its parent ended.
        while left := [pid for pid in posix.children() if pid not in kept]:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            for pid in left:
                os.waitpid(pid, 0)


def _let_trackers_end(kept: set[int]) -> None:
    """Kill all children but these and the resource trackers, which then end, and clean up first."""
    deadline = time.monotonic() + TRACKER_PATIENCE
    while time.monotonic() < deadline:
        orphans = set(posix.children()) - kept
        trackers = set(filter(posix.is_tracker, orphans))
        if not trackers:
            return
        for pid in orphans - trackers:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _unnamed_file() -> int:
    """A file of the sandbox, which its cells cannot find."""
    with tempfile.TemporaryFile(dir=os.environ["TMPDIR"]) as file:
        return os.dup(file.fileno())


def _be_command(
    command: wire.Execute, writers: list[int], parent: int, ground: grounds.Ground
) -> NoReturn:
    """In the forked child: become a shell that runs the command."""
    try:
        signal.set_wakeup_fd(-1)
        for its in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
            signal.signal(its, signal.SIG_DFL)
        os.setpgid(0, 0)
        posix.die_with_parent(parent)
        ground.give_up()
        posix.be_killed_first()
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, number in ((null, 0), (writers[0], 1), (writers[1], 2)):
            os.dup2(fd, number)
        os.chdir(os.path.join(os.fsencode(os.environ["PWD"]), command.directory))
        words = [b"sh", b"-c", command.command]
        os.execve("/bin/sh", words, {**os.environ, **command.environment})
    except BaseException as exc:  # noqa: BLE001 - its last words, where a shell's would be
        os.write(2, f"the command cannot be run: {exc}\n".encode())
    finally:
        os._exit(126)
