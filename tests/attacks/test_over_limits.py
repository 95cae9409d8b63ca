"""Cells that use too much: each ends in time with the name of its limit, and harms nobody else.

Each is shown to go through where the limit is taken away, so that it is the limit that holds it.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import pytest

from mentis_pool import (
    BrokenSandboxPool,
    CellError,
    Limits,
    MentisPoolError,
    ResourceLimitExceeded,
    SandboxExecutor,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the watch reads /proc")

MIB = 1 << 20
IN_TIME = 2.0
"""Seconds within which a cell ends that goes over a limit, on a machine that has the time."""
LIMITS = Limits(
    "200M",
    processes=40,
    open_files=128,
    file_size="20M",
    disk="60M",
    output="20M",
)

# Each is bounded: it does no harm where nothing holds it. It rests for so many seconds with what it
# has, and ends with the word "through".
ATTACKS = {
    "one allocation": ("memory", "import time\nb = bytearray(700 << 20)\ntime.sleep(rest)"),
    "many allocations": (
        "memory",
        "import time\nkept = [bytearray(4 << 20) for _ in range(100)]\ntime.sleep(rest)",
    ),
    "a private mapping": (
        "memory",
        "import mmap\n"
        "m = mmap.mmap(-1, 400 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "for i in range(0, len(m), 4096): m[i] = 1\n"
        "import time; time.sleep(rest)",
    ),
    "a shared mapping": (
        "memory",
        "import mmap, time\nm = mmap.mmap(-1, 600 << 20)\n"
        "for i in range(0, len(m), 4096): m[i] = 1\n"
        "time.sleep(rest)",
    ),
    "many processes together": (
        "memory",
        "import os, time\n"
        "pids = []\n"
        "for _ in range(6):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        b = bytearray(60 << 20)\n"
        "        time.sleep(rest)\n"
        "        os._exit(0)\n"
        "    pids.append(pid)\n"
        "for pid in pids: os.waitpid(pid, 0)",
    ),
    "processes that left the group": (
        "memory",
        "import os, time\n"
        "for _ in range(6):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            b = bytearray(60 << 20)\n"
        "            time.sleep(rest)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "time.sleep(rest)",
    ),
    "a process that lets nobody look": (
        "memory",
        "import ctypes, os, time\n"
        "pids = []\n"
        "for _ in range(6):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
        "        b = bytearray(60 << 20)\n"
        "        time.sleep(rest)\n"
        "        os._exit(0)\n"
        "    pids.append(pid)\n"
        "for pid in pids: os.waitpid(pid, 0)",
    ),
    "a fork bomb": (
        "processes",
        "import os, time\n"
        "for _ in range(80):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(rest)\n"
        "        os._exit(0)\n"
        "time.sleep(rest)",
    ),
    "a fork bomb of generations": (
        "processes",
        # 2**6 processes.
        "import os, time\nfor _ in range(6): os.fork()\ntime.sleep(rest)",
    ),
    "a thread bomb": (
        "processes",
        "import threading, time\n"
        "threading.stack_size(256 << 10)\n"
        "threads = [threading.Thread(target=time.sleep, args=(rest,)) for _ in range(80)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()",
    ),
    "a descriptor bomb": ("open_files", "import os\nkept = [os.dup(1) for _ in range(300)]"),
    "a large file": ("file_size", "open('f', 'wb').write(bytes(40 << 20))"),
    "many files": (
        "disk",
        "import time\nfor i in range(20): open(f'f{i}', 'wb').write(bytes(5 << 20))\ntime.sleep(rest)",
    ),
    "many empty files": (
        "disk",
        "import time\nfor i in range(20000): open(f'f{i}', 'wb').close()\ntime.sleep(rest)",
    ),
    "a flood of output": (
        "output",
        "import os\nfor _ in range(800): os.write(1, b'x' * 65536)",
    ),
    "a flood of a child's output": (
        "output",
        "import subprocess, sys\n"
        "subprocess.run(['head', '-c', str(50 << 20), '/dev/zero'], check=True)",
    ),
}


COMPUTES = {
    "one process that computes": "import time\nwhile time.process_time() < 0.8: pass",
    "processes that compute": (
        "import os, time\n"
        "pids = []\n"
        "for _ in range(4):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        while time.process_time() < 0.3: pass\n"
        "        os._exit(0)\n"
        "    pids.append(pid)\n"
        "for pid in pids: os.waitpid(pid, 0)"
    ),
    "processes that nobody waits for": (
        "import os, signal, time\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        while time.process_time() < 0.2: pass\n"
        "        os._exit(0)\n"
        # It waits until there is none left, and says that there is none.
        "try:\n"
        "    os.wait()\n"
        "except ChildProcessError:\n"
        "    pass"
    ),
}


@pytest.fixture(scope="module")
def limited(sharing):
    with sharing(2, limits=LIMITS, timeout=60) as executor:
        executor.run(["1"] * 2)
        yield executor


@pytest.fixture(scope="module")
def kept(sharing):
    with sharing(2, limits=LIMITS, timeout=60, state="reuse") as executor:
        executor.run(["1"] * 2)
        yield executor


@pytest.fixture(scope="module")
def computing(sharing):
    """On a busy machine other attacks take longer than this."""
    with sharing(2, limits=Limits(cpu_seconds=0.5), timeout=60) as executor:
        executor.run(["1"] * 2)
        yield executor


@pytest.fixture(scope="module")
def without(sharing):
    """A function that gives the executor without a limit; no other one is what held it."""
    executors: dict[str, SandboxExecutor] = {}

    def executor(which):
        if which not in executors:
            given = {f.name: getattr(LIMITS, f.name) for f in dataclasses.fields(LIMITS)}
            limits = Limits(**{**given, which: None})
            if which == "processes":
                # Many of them need memory as well.
                limits = Limits(None, processes=None)
            executors[which] = sharing(2, limits=limits, timeout=60)
        return executors[which]

    yield executor
    for each in executors.values():
        each.shutdown()


def attack(executor, code, rest=4):
    """What became of it; a neighbour runs meanwhile."""
    neighbour = executor.submit("import time\ntime.sleep(0.1)\nsum(range(1000))")
    cell = executor.submit(f"print('begun', flush=True)\n{code}\n'through'", rest=rest)
    error = cell.exception()
    assert neighbour.result().value == 499500
    assert executor.submit("6 * 7").result().value == 42
    return cell, error


@pytest.mark.parametrize("state", ["limited", "kept"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_cell_over_a_limit_ends_in_time_with_its_name(request, state, name):
    which, code = ATTACKS[name]
    cell, error = attack(request.getfixturevalue(state), code)
    assert isinstance(error, ResourceLimitExceeded), error
    assert (error.which, error.limit) == (which, getattr(LIMITS, which))
    assert error.used is None or error.used > error.limit
    assert "begun" in error.result.stdout
    assert error.sandbox_id == cell.sandbox_id
    if which != "disk":
        # How long it takes to write depends on the machine.
        assert error.result.usage.running < IN_TIME


@pytest.mark.parametrize("name", COMPUTES)
def test_a_cell_that_computes_for_too_long_ends_soon_after(computing, name):
    cell, error = attack(computing, COMPUTES[name])
    assert isinstance(error, ResourceLimitExceeded), error
    assert (error.which, error.limit) == ("cpu_seconds", 0.5)
    assert 0.5 < error.used < 1.0
    assert error.result.usage.cpu >= error.used
    assert "begun" in error.result.stdout
    assert error.sandbox_id == cell.sandbox_id


@pytest.mark.parametrize("name", [*ATTACKS, *COMPUTES])
def test_it_goes_through_where_there_is_no_such_limit(without, name):
    which, code = ATTACKS[name] if name in ATTACKS else ("cpu_seconds", COMPUTES[name])
    executor = without(which)
    if name == "a fork bomb of generations":
        # Each of them comes to the cell's end, and one is the cell.
        assert executor.submit(code, rest=0.5).result().ok
    else:
        # Long enough for a few looks.
        cell, error = attack(executor, code, rest=0.5)
        assert error is None
        assert cell.result().value == "through"


# ── what is the cell's own business ─────────────────────────────────────────


def test_a_memory_error_that_the_cell_handles_is_its_own(limited):
    code = "try:\n    b = bytearray(2 << 30)\nexcept MemoryError:\n    print('handled')\n1"
    result = limited.submit(code).result()
    assert (result.value, result.stdout) == (1, "handled\n")


def test_one_that_it_does_not_handle_is_a_limit_and_a_memory_error(limited):
    error = limited.submit("def f():\n    return bytearray(2 << 30)\nf()").exception()
    assert isinstance(error, ResourceLimitExceeded)
    assert isinstance(error, CellError)
    assert isinstance(error, MemoryError)
    assert "return bytearray(2 << 30)" in error.traceback


def test_a_call_is_told_of_its_limit_too(limited):
    error = limited.submit(bytearray, 2 << 30).exception()
    assert isinstance(error, ResourceLimitExceeded)
    assert isinstance(error, MemoryError)
    assert limited.submit(pow, 2, 3).result() == 8


def test_numpy_pandas_and_matplotlib_work_within_the_limits_that_nobody_named():
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    code = (
        "import numpy as np, pandas as pd\n"
        "import matplotlib.pyplot as plt\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "a = np.random.rand(100, 100)\n"
        "with ThreadPoolExecutor(4) as threads:\n"
        "    list(threads.map(lambda _: np.linalg.inv(a), range(8)))\n"
        "pd.DataFrame(a).groupby(0).sum()\n"
        "plt.plot(a[0]); plt.show()"
    )
    with SandboxExecutor(1) as executor:
        result = executor.submit(code).result(60)
    assert result.displays


# ── initializers ────────────────────────────────────────────────────────────

INITIALIZERS = {
    "memory": ("b = bytearray(400 << 20)\nimport time; time.sleep(30)", "memory"),
    "CPU time": ("while True: pass", "CPU time"),
    "processes": (ATTACKS["a fork bomb"][1], "processes"),
    "disk": (ATTACKS["many files"][1], "disk|No space left"),
    "time": ("import time; time.sleep(60)", "more than 2 s"),
}


@pytest.mark.parametrize(
    ("what", "level"), [*((each, "auto") for each in INITIALIZERS), ("memory", "process")]
)
def test_an_initializer_over_a_limit_breaks_the_pool_in_time(level, what, tmp_path):
    code, says = INITIALIZERS[what]
    # Not the first worker misbehaves: a later one is forked while the one before is ended.
    sign = tmp_path / "now"
    code = f"import os\nif os.path.exists({str(sign)!r}):\n    rest = 30\n    exec({code!r})"
    timeout = 2 if what == "time" else None
    limits = Limits("200M", cpu_seconds=0.6, processes=40, disk="60M")
    with SandboxExecutor(
        1,
        initializer=code,
        limits=limits,
        timeout=timeout,
        isolation=level,
        expose=[str(tmp_path)],
    ) as executor:
        assert executor.submit("1").result().value == 1
        sign.touch()
        began = time.monotonic()
        with pytest.raises(BrokenSandboxPool, match=f"the initializer failed: .*({says})"):
            while time.monotonic() < began + 20:
                executor.submit("1").result()
        assert time.monotonic() - began < 5


def test_an_initializer_within_its_limits_may_take_its_time(limited):
    code = "import time\ntime.sleep(0.3)\nb = bytearray(120 << 20)"
    with SandboxExecutor(1, initializer=code, limits=LIMITS, timeout=5) as executor:
        # What a worker has used before its task is not counted for it.
        assert [executor.submit("len(b)").result().value for _ in range(2)] == [120 << 20] * 2


# ── sessions, and what goes on between tasks ────────────────────────────────


def test_a_session_goes_on_after_a_limit(limited):
    with limited.session() as session:
        session.submit("x = 1").result()
        with pytest.raises(ResourceLimitExceeded):
            session.submit(ATTACKS["many processes together"][1], rest=3).result()
        with pytest.raises(MentisPoolError):
            session.submit("x").result()
        assert session.submit("2").result().value == 2


def test_files_that_were_too_many_do_not_end_the_next_cell_of_a_session(limited):
    with limited.session() as session:
        with pytest.raises(ResourceLimitExceeded):
            session.submit(ATTACKS["many files"][1], rest=1).result()
        # Its state is there, and its files: it may make room.
        cell = "[os.remove(f'f{i}') for i in range(9)]\nopen('f', 'wb').write(bytes(1 << 20))"
        assert session.submit(f"import os\n{cell}").result().value == 1 << 20


def test_what_a_session_left_running_is_watched(limited):
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    time.sleep(0.3)\n"
        "    for _ in range(60):\n"
        "        if os.fork() == 0: break\n"
        "    time.sleep(30)\n"
        "    os._exit(0)"
    )
    with limited.session() as session:
        session.submit(code).result()
        time.sleep(1.5)
        with pytest.raises(MentisPoolError, match="Limits\\(processes"):
            session.submit("1").result()
        assert session.submit("1").result().value == 1


# ── what is used ────────────────────────────────────────────────────────────


def test_what_a_cell_used_is_that_of_all_its_processes(limited):
    code = (
        "import os, time\n"
        "pids = []\n"
        "for _ in range(2):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        b = bytearray(60 << 20)\n"
        "        while time.process_time() < 0.2: pass\n"
        "        time.sleep(0.5)\n"
        "        os._exit(0)\n"
        "    pids.append(pid)\n"
        "for pid in pids: os.waitpid(pid, 0)"
    )
    usage = limited.submit(code).result().usage
    assert 0.35 < usage.cpu < 1.0
    assert 120 * MIB < usage.peak_memory < 200 * MIB


def test_the_executor_tells_what_its_sandboxes_use_now(limited):
    code = (
        "import threading, time\n"
        "b = bytearray(80 << 20)\n"
        "threading.Thread(target=time.sleep, args=(0.8,)).start()\n"
        "while time.process_time() < 0.2: pass\n"
        "print('ready', flush=True)\n"
        "time.sleep(0.8)"
    )
    future = limited.options(task_id="mine").submit(code)
    while "ready" not in future.stdout:
        time.sleep(0.01)
    used = limited.stats()
    future.result()
    assert set(used) >= {future.sandbox_id}
    its = used[future.sandbox_id]
    assert its.task_id == "mine"
    assert 80 * MIB < its.memory < 160 * MIB
    assert its.processes == 2
    # /proc counts in whole ticks of 10 ms, of user and system each.
    assert its.cpu > 0.15
    assert limited.stats()[future.sandbox_id].task_id is None


def test_nothing_is_used_before_the_first_submit():
    with SandboxExecutor(1) as executor:
        assert executor.stats() == {}


def test_a_callback_cannot_ask(limited):
    caught = []

    def ask(_):
        try:
            limited.stats()
        except RuntimeError as exc:
            caught.append(exc)

    future = limited.submit("import time; time.sleep(0.2)")
    future.add_done_callback(ask)
    future.result()
    limited.submit("1").result()
    assert "callback" in str(caught[0])


def test_brief_tasks_are_held_to_their_output_as_well(sharing):
    with sharing(1, state="reuse", limits=Limits(output=1000)) as executor:
        for _ in range(3):
            assert executor.submit("1").result().value == 1
            for task in (("print('x' * 5000)",), (print, "x" * 5000)):
                error = executor.submit(*task).exception(20)
                assert isinstance(error, ResourceLimitExceeded)
                assert (error.which, error.used) == ("output", 5001)
            assert executor.submit(abs, -1).result() == 1
