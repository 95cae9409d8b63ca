"""The first process of a sandbox: what its workers are, and that nothing of them stays."""

from __future__ import annotations

import os
import sys

import pytest

from mentis_pool import SandboxExecutor


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
