"""The warm process: what all that is forked from it share, and what they must not."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys

import psutil
import pytest

from mentis_pool import SandboxExecutor
from mentis_pool.runtime import posix, wire, zygote

QUICKENED = """
import dis, sys
frame = sys._getframe()
while frame.f_code.co_name != "_obey":
    frame = frame.f_back
[i.opname for i in dis.get_instructions(frame.f_code, adaptive=True) if "LOAD_ATTR_" in i.opname] != []
"""


def test_no_collection_touches_what_was_there_before_the_cell(executor):
    assert executor.submit("import gc; gc.get_freeze_count()").result().value > 10_000


def test_random_numbers_of_numpy_differ_though_it_was_preloaded(own_temp):
    cell = "import numpy, random; (numpy.random.random(), random.random())"
    with SandboxExecutor(max_workers=1, preload=["numpy.random"]) as executor:
        drawn = [result.value for result in executor.map([cell] * 3)]
    assert len({number for numbers in drawn for number in numbers}) == 6


def test_it_has_one_thread_and_so_has_whatever_forks_from_it(own_temp, processes):
    with SandboxExecutor(max_workers=1) as executor:
        assert executor.submit("import threading; threading.active_count()").result().value == 1
        executor.submit("1").result()
        threads = {}
        for pid in processes(own_temp):
            with open(f"/proc/{pid}/cmdline") as words, open(f"/proc/{pid}/status") as status:
                if "mentis_pool.runtime.zygote" in words.read():
                    threads[pid] = next(line for line in status if line.startswith("Threads:"))
    assert len(threads) > 1, "it and the first process of a sandbox at least"
    assert set(threads.values()) == {"Threads:\t1\n"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no code is written into there")
def test_the_interpreter_knows_a_workers_code_before_its_first_cell(executor):
    assert executor.submit(QUICKENED).result().value


def test_a_first_cell_sees_nothing_of_what_was_done_before(executor):
    cell = (
        "import linecache\n_, len(In), sorted(n for n in linecache.cache if n.startswith('<cell'))"
    )
    assert executor.submit(cell).result().value == ("", 2, ["<cell 1>"])


# ── the init that stands by ─────────────────────────────────────────────────


class Forks:
    """A ground for inits in the place of sandboxes."""

    def __init__(self):
        self.refused = 0
        self.forked = []

    def fork(self):
        if self.refused:
            self.refused -= 1
            raise OSError(errno.EAGAIN, "too many processes")
        pid = os.fork()
        if pid:
            self.forked.append(pid)
        return pid


def be_init(asked, log):
    """Says its pid by what comes as its socket, and ends with it."""
    data, fds, _ = posix.receive(asked, wire.PACKET, wire.SANDBOX_FDS)
    if data:
        with socket.socket(fileno=fds[0]) as sock:
            sock.send(str(os.getpid()).encode())
            sock.recv(1)


@pytest.fixture
def scripted():
    """Start a zygote in a process of its own, after a change to it or to its ground; our end of its socket."""
    left = []

    def start(change):
        ours, theirs = socket.socketpair()
        if (pid := os.fork()) == 0:
            try:
                ours.close()
                ground = Forks()
                its = zygote._Zygote(theirs, ground, be_init)
                change(its, ground)
                its.run()
            finally:
                os._exit(0)
        theirs.close()
        left.append((pid, ours))
        return ours

    yield start
    for pid, sock in left:
        sock.close()
        assert os.waitpid(pid, 0)[1] == 0


def asked(zygote, name):
    """Our end of the socket of an init that this was asked for, and who that is, None for nobody."""
    ours, theirs = socket.socketpair()
    with theirs:
        posix.send(zygote, wire.pack(wire.NewSandbox(name)), [theirs.fileno()])
    return ours, int(ours.recv(100) or 0) or None


def children(of):
    return {process.pid for process in psutil.Process(of).children()}


def test_each_sandbox_has_an_init_of_its_own_and_one_stands_by(scripted, eventually):
    its = scripted(lambda *_: None)
    one, first = asked(its, "a")
    two, second = asked(its, "b")
    assert first != second
    parent = psutil.Process(first).ppid()
    assert {first, second} < eventually(lambda: len(children(parent)) == 3 and children(parent))
    one.close()
    eventually(lambda: first not in children(parent))
    assert len(children(parent)) == 2
    two.close()


def test_where_the_one_that_stands_by_was_killed_the_next_one_gets_the_sandbox(scripted):
    def kill_first(its, ground):
        # As it is asked for, before anybody hears that it is gone.
        real = its._begin

        def begin(request, fds):
            os.kill(its._standby[0], signal.SIGKILL)
            os.waitid(os.P_PID, its._standby[0], os.WEXITED | os.WNOWAIT)
            real(request, fds)

        its._begin = begin

    its = scripted(kill_first)
    for name in "abc":
        sock, pid = asked(its, name)
        assert pid is not None
        sock.close()


def test_one_that_is_killed_while_nobody_asks_is_followed_by_another(scripted, eventually):
    its = scripted(lambda *_: None)
    sock, pid = asked(its, "a")
    parent = psutil.Process(pid).ppid()
    (standby,) = eventually(lambda: children(parent) - {pid})
    os.kill(standby, signal.SIGKILL)
    eventually(lambda: standby not in children(parent))
    other, its_pid = asked(its, "b")
    assert its_pid not in (None, pid, standby)
    sock.close()
    other.close()


def test_where_none_can_be_forked_that_sandbox_is_lost_and_no_other(scripted, capfd):
    def refuse(its, ground):
        # At the start, and as the first one is asked for.
        ground.refused = 2

    its = scripted(refuse)
    lost, pid = asked(its, "a")
    lost.close()
    assert pid is None
    assert "no sandbox can be forked: [Errno 11] too many processes" in capfd.readouterr().err
    sock, pid = asked(its, "b")
    assert pid is not None
    sock.close()


@pytest.mark.parametrize(
    ("error", "times", "lost"),
    [(errno.ETOOMANYREFS, 1, False), (errno.ETOOMANYREFS, 2, True), (errno.EPIPE, 2, True)],
)
def test_where_none_can_be_told_of_its_sandbox_that_is_lost_and_no_other(
    scripted, capfd, error, times, lost
):
    def refuse(its, ground):
        # It is a process of its own.
        real, left = posix.send, [error] * times

        def send(*args):
            if left:
                raise OSError(left.pop(), "it cannot be sent")
            real(*args)

        posix.send = send

    its = scripted(refuse)
    first, pid = asked(its, "a")
    first.close()
    assert (pid is None) == lost
    assert ("no sandbox can be forked" in capfd.readouterr().err) == lost
    sock, pid = asked(its, "b")
    assert pid is not None
    sock.close()


def test_one_that_stands_by_ends_with_the_zygote(scripted, eventually):
    sock, pid = asked(its := scripted(lambda *_: None), "a")
    parent = psutil.Process(pid).ppid()
    both = eventually(lambda: len(children(parent)) == 2 and children(parent))
    sock.close()
    its.close()
    eventually(lambda: not any(map(psutil.pid_exists, both)))
