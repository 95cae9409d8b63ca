"""The first process of a sandbox: what its workers are, and that nothing of them stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

import pytest

from mentis_pool import SandboxExecutor
from mentis_pool.limits import Limits
from mentis_pool.runtime import grounds, init, posix, wire


@pytest.fixture(scope="module")
def single():
    with SandboxExecutor(max_workers=1, timeout=60) as executor:
        yield executor


def test_without_walls_the_next_worker_is_forked_while_a_cell_runs():
    cell = (
        "import os, time\n"
        "path = '/proc/{0}/task/{0}/children'.format(os.getppid())\n"
        "end = time.monotonic() + 10\n"
        "while (n := len(open(path).read().split())) < 2 and time.monotonic() < end: pass\n"
        "n"
    )
    with SandboxExecutor(max_workers=1, timeout=60, isolation="process") as executor:
        executor.submit(cell).result()
        assert executor.submit(cell).result().value == 2


@pytest.mark.skipif(sys.platform != "linux", reason="there are walls on Linux only")
def test_behind_a_wall_no_worker_waits_where_a_cell_could_reach_it():
    cell = "import os, time\ntime.sleep(0.3)\nsorted(p for p in os.listdir('/proc') if p.isdigit())"
    with SandboxExecutor(max_workers=1, timeout=60, isolation="bubblewrap") as executor:
        executor.submit("1").result()
        assert len(executor.submit(cell).result().value) == 2


def test_a_worker_leads_its_own_session(single):
    assert single.submit("import os\nos.getsid(0) == os.getpid() == os.getpgrp()").result().value


def test_a_worker_is_killed_when_its_init_ends(single):
    cell = (
        "import ctypes\nnumber = ctypes.c_int()\n"
        "ctypes.CDLL(None).prctl(2, ctypes.byref(number))\n"  # PR_GET_PDEATHSIG
        "number.value"
    )
    assert single.submit(cell).result().value == 9


class EndsAll(grounds.Ground):
    """One that kills in one call, and says who is left when it is time to empty."""

    def __init__(self, said):
        self.said = said

    def stand_by(self):
        posix.adopt_orphans()

    def settle(self, directory, limits): ...

    def end_all(self):
        for pid in posix.children():
            os.killpg(pid, signal.SIGKILL)
        return True

    def empty(self):
        os.write(self.said, json.dumps(posix.children()).encode())


class Waits:
    """A worker that leaves a child, and waits."""

    def settle(self, *its): ...

    def run(self, sock, runs, written):
        os.setsid()
        if os.fork() == 0:
            signal.pause()
        sock.send(b"!")
        signal.pause()


@pytest.fixture
def an_init():
    """Our end of the socket of one, and what its ground says."""
    ours, theirs = socket.socketpair()
    reader, said = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            ours.close()
            by, asked = posix.packets()
            posix.send(by, wire.pack(wire.NewSandbox("")), [theirs.detach()])
            init.Init(Waits(), EndsAll(said)).run(asked, os.dup(2))
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    os.close(said)
    with ours, open(reader, "rb", buffering=0) as hears:
        yield ours, hears
        ours.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def told(sock, most=8):
    """What an init says next, and the descriptors that came along."""
    data, fds, _ = posix.receive(sock, 65536, most)
    assert data, "it is gone"
    return wire.Unpacker(wire.FromInit).feed(data), fds


@pytest.mark.skipif(not posix.lists_children(), reason="there are no walls then")
def test_the_next_worker_is_forked_beside_what_ends_and_told_of_when_all_that_is_gone(an_init):
    sock, hears = an_init
    sock.send(wire.pack(wire.Fork()))
    (first,), (worker, *others) = told(sock)
    # It has left an orphan by then, which is no child of the init yet.
    assert os.read(worker, 1) == b"!"
    sock.send(wire.pack(wire.Retire(first.pid, False, wire.Fork())))
    heard = []
    while len(heard) < 2:
        messages, fds = told(sock)
        heard += messages
        others += fds
    retired, second = heard
    assert retired == wire.Retired(first.pid)
    assert isinstance(second, wire.Forked)
    assert json.loads(hears.read(1000)) == [second.pid]
    for fd in (worker, *others):
        os.close(fd)


FILLS = """
import os
for what in range(10**6):
    try:
        os.close(os.open(f"/tmp/{what}", os.O_CREAT | os.O_WRONLY))
    except OSError:
        break
"""


@pytest.mark.parametrize("cell", ["import os\nos.chmod('/tmp', 0)", FILLS], ids=["locked", "full"])
def test_whatever_a_cell_made_of_its_files_the_next_worker_runs_the_initializer(cell):
    with SandboxExecutor(max_workers=1, initializer="left = 7", state="fresh") as executor:
        said = [future.result(60) for future in map(executor.submit, [cell, "left", cell, "left"])]
    assert [result.value for result in said] == [None, 7, None, 7]
    assert len({result.sandbox_id for result in said}) == 1


BOMB = """
import os, signal
while True:
    if os.fork() == 0:
        signal.pause()
"""


def test_where_a_cell_took_all_processes_the_next_has_one():
    limits = Limits(processes=50)
    with SandboxExecutor(max_workers=1, limits=limits, timeout=30) as executor:
        said = executor.run([BOMB, "1"] * 4)
    assert [result.value for result in said[1::2]] == [1] * 4
    assert len({result.sandbox_id for result in said}) == 1


# ── /dev/shm ────────────────────────────────────────────────────────────────

BLOCK = (
    "from multiprocessing.shared_memory import SharedMemory\n"
    "block = SharedMemory(create=True, size=1)\n"
)
IN_SHARED_MEMORY = {
    "a block": BLOCK,
    "a block of a process that exits": f"{BLOCK}import os\nos._exit(3)",
    "a block of a cell that takes too long": f"{BLOCK}import time\ntime.sleep(60)",
    "a block beside processes that stay": (
        f"{BLOCK}import subprocess\nsubprocess.Popen(['sleep', '1000'])\n"
        "subprocess.Popen(['setsid', 'sleep', '1000'])"
    ),
    "a pool of a fork server": (
        "import multiprocessing\npool = multiprocessing.get_context('forkserver').Pool(1)\n"
        "pool.map(abs, [1])"
    ),
}


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="shared memory is no file here")
@pytest.mark.parametrize("what", IN_SHARED_MEMORY)
@pytest.mark.parametrize("state", ["fresh", "reuse"])
def test_nothing_of_a_cell_stays_in_shared_memory(request, sharing, what, state, eventually):
    before = set(os.listdir("/dev/shm"))

    def is_clean():
        # Other programs of this machine have things there as well, for a while.
        return set(os.listdir("/dev/shm")) <= before

    # Long enough to make what is to be there.
    view = {"timeout": 1 if "too long" in what else 20}
    if state == "fresh":
        single = request.getfixturevalue("single")
        single.options(**view).run([IN_SHARED_MEMORY[what]])
        assert single.submit("1").result().value == 1  # begins when all that is gone
    else:
        with sharing(max_workers=1, state="reuse", **view) as executor:
            executor.run([IN_SHARED_MEMORY[what]])
    eventually(is_clean)
