"""Fresh means fresh, a timeout ends everything, output is bounded, and the sandbox goes on."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
import time

import psutil
import pytest

from mentis_pool import (
    CellTimeout,
    Cut,
    Limits,
    RuntimeUnavailable,
    SandboxError,
    SandboxExecutor,
    Stream,
)
from mentis_pool.runtime import local

MB = 1024 * 1024


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_neither_descriptors_nor_processes_add_up(single, eventually):
    """Each worker costs its init a socketpair, and the runtime one end of it."""
    single.submit("1").result()
    runtime = psutil.Process(single._engine._connection._runtime.pid)
    everyone = [runtime, *runtime.children(recursive=True)[:2]]
    before = [descriptors(process.pid) for process in everyone]
    for _ in single.map(["1"] * 50):
        pass
    after = [descriptors(process.pid) for process in everyone]
    # A spare worker is forked, or a retired one not yet gone.
    assert all(b <= a + 5 for a, b in zip(before, after, strict=True)), (before, after)
    eventually(lambda: len(runtime.children(recursive=True)) <= 6)


@pytest.fixture(scope="module")
def single():
    """One sandbox, so that each cell comes after the last one in the same place."""
    with SandboxExecutor(max_workers=1, timeout=60) as executor:
        yield executor


# ── fresh ───────────────────────────────────────────────────────────────────

LEFT_BEHIND = {
    "a variable": ("x = 1", "'x' in globals()"),
    "an import": ("import wave", "import sys; 'wave' in sys.modules"),
    "a patch": ("import math; math.pi = 3", "import math; math.pi == 3"),
    "a builtin": ("import builtins; builtins.mark = 1", "import builtins; hasattr(builtins, 'mark')"),
    "the environment": ("import os; os.environ['MARK'] = '1'", "import os; 'MARK' in os.environ"),
    "the path": ("import sys; sys.path.append('mark')", "import sys; 'mark' in sys.path"),
    "the directory": ("import os; os.chdir('/')", "import os; os.getcwd() == '/'"),
    "a file": ("open('f', 'w').close()", "import os; os.listdir() != []"),
    "a file at home": (
        "import os; open(os.path.expanduser('~/f'), 'w').close()",
        "import os; os.listdir(os.path.expanduser('~')) != []",
    ),
    "a temporary file": (
        "import tempfile; tempfile.mkdtemp(prefix='its'); tempfile.mkstemp(prefix='its')",
        "import os, tempfile; any(n.startswith('its') for n in os.listdir(tempfile.gettempdir()))",
    ),
    "a directory without permissions": (
        "import os; os.makedirs('a/b'); os.chmod('a', 0)", "import os; os.listdir() != []",
    ),
    "a deep directory": (
        "import os\nfor _ in range(1500):\n    os.mkdir('d'); os.chdir('d')",
        "import os; os.listdir() != []",
    ),
    "a signal handler": (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "import signal; signal.getsignal(signal.SIGTERM) != signal.SIG_DFL",
    ),
    "a limit": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))",
        "import resource; resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 20",
    ),
    "a descriptor": ("import os\nfor _ in range(50): os.dup(1)", "import os; len(os.listdir('/proc/self/fd')) > 20"),
    "a magic": (
        "from IPython.core.magic import register_line_magic\n@register_line_magic\ndef mark(line): pass",
        "'mark' in get_ipython().magics_manager.magics['line']",
    ),
}  # fmt: skip


# Behind a wall these are mounts, which no cell can remove.
WITHOUT_WALLS = {
    "a link in the place of the directory": (
        "import os, shutil\np = os.getcwd()\nos.chdir('/')\nshutil.rmtree(p)\nos.symlink('/etc', p)",
        "import os; os.listdir() != [] or not os.getcwd().endswith('/work')",
    ),
    "no directory": (
        "import os, shutil\np = os.getcwd()\nos.chdir('/')\nshutil.rmtree(os.path.dirname(p))",
        "import os; os.listdir() != []",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def without_walls():
    with SandboxExecutor(max_workers=1, timeout=60, isolation="process") as executor:
        yield executor


@pytest.mark.parametrize("what", WITHOUT_WALLS)
def test_whatever_became_of_its_directory_it_is_there_again(without_walls, what):
    cell, look = WITHOUT_WALLS[what]
    assert without_walls.submit(cell).result().ok
    assert without_walls.submit(look).result().value is False


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_nothing_of_an_earlier_cell_is_there(single, what):
    cell, look = LEFT_BEHIND[what]
    assert single.submit(cell).result().ok
    assert single.submit(look).result().value is False


def test_no_process_or_thread_of_a_cell_outlives_it(single, eventually):
    cell = (
        "import os, subprocess, threading, time\n"
        "subprocess.Popen(['sleep', '1000'])\n"
        "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "subprocess.Popen(['setsid', 'sh', '-c', '(sleep 1000 & sleep 1000) & sleep 1000'])\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        open('../tmp/pid', 'w').write(str(os.getpid()))\n"
        "        while True: time.sleep(1)\n    os._exit(0)\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "while not os.path.exists('../tmp/pid') or not open('../tmp/pid').read(): time.sleep(0.01)\n"
        "time.sleep(0.1)"
    )
    single.submit(cell).result()
    assert single.submit("1").result().value == 1  # begins when all that is gone
    runtime = psutil.Process(single._engine._connection._runtime.pid)
    names = []
    for process in runtime.children(recursive=True):
        # The last worker may be going while the next one is there.
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(process.name())
    assert "sleep" not in names
    # The zygote with what is around it, the init and the next, the worker that is ready; the last goes.
    eventually(lambda: len(runtime.children(recursive=True)) <= 6)


def test_output_of_what_outlives_a_cell_goes_nowhere(single):
    single.submit(
        "import subprocess; subprocess.Popen('while true; do echo late; done', shell=True)"
    ).result()
    assert single.submit("import time; time.sleep(0.05); 1").result().stdout == ""


def test_each_worker_is_another_process_and_ready_ahead(single):
    pids = [single.submit("import os; os.getpid()").result().value for _ in range(5)]
    assert len(set(pids)) == 5


# ── timeouts ────────────────────────────────────────────────────────────────

ENDLESS = {
    "python": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "a C call that cannot be interrupted": "sum(range(10 ** 13))",
    "SIGINT ignored": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    "all signals blocked": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "the interrupt caught": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "children": "import subprocess; subprocess.run(['sleep', '1000'])",
    "children in a session of their own": (
        "import subprocess\nsubprocess.run(['setsid', '--wait', 'sleep', '1000'])"
    ),
    "a thread that is joined": "import threading, time\nt = threading.Thread(target=time.sleep, args=(1000,))\nt.start()\nt.join()",
    "output without end": "while True: print('x' * 1000)",
    "await": "import asyncio\nawait asyncio.sleep(1000)",
    "shell": "!sleep 1000",
    "fork without end": "import os\nwhile True:\n    try:\n        if os.fork() == 0:\n            import time; time.sleep(1000)\n        import time; time.sleep(0.01)\n    except OSError: pass",
    "a repr without end": "class A:\n    def __repr__(self):\n        while True: pass\nA()",
}  # fmt: skip


@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.parametrize("state", ["single", "reuse"])
def test_whatever_does_not_end_is_ended_in_time(state, what, request):
    executor = request.getfixturevalue(state)
    begun = time.monotonic()
    error = executor.options(timeout=0.2).submit("print('begun')\n" + ENDLESS[what]).exception()
    assert isinstance(error, CellTimeout)
    assert time.monotonic() - begun < 5
    assert error.result.stdout.startswith("begun\n")
    assert error.result.usage.running >= 0.2
    assert executor.submit("1 + 1").result().value == 2


def test_a_cell_may_clean_up_when_it_is_interrupted(single):
    error = (
        single.options(timeout=0.2)
        .submit("import time\ntry:\n    time.sleep(100)\nfinally:\n    print('cleaned up')")
        .exception()
    )
    assert isinstance(error, CellTimeout)
    assert error.result.stdout == "cleaned up\n"


def test_a_late_interrupt_hits_no_other_cell(reuse):
    cell = "import time\nend = time.monotonic() + 0.05\nwhile time.monotonic() < end: pass\n1"
    views = [reuse.options(timeout=0.05 + i / 1000) for i in range(-5, 6)]
    for view in views * 3:
        first, second = view.submit(cell), reuse.submit("import time; time.sleep(0.005); 2")
        assert first.exception() is None or isinstance(first.exception(), CellTimeout)
        assert second.result().value == 2


# ── output ──────────────────────────────────────────────────────────────────


def test_output_is_bounded_to_its_beginning_and_end_with_the_exact_number(sharing):
    with sharing(max_workers=1, max_output=1000) as executor:
        future = executor.submit("for i in range(10_000): print(f'{i:06}')")
        result = future.result()
        head, tail = result.stdout.split(f"\n[… {result.stdout_cut} bytes cut …]\n")
        assert result.stdout_cut == 70_000 - 1000
        assert head.startswith("000000\n000001\n")
        assert tail.endswith("009998\n009999\n")
        assert len(head) == len(tail) == 500
        said = list(future.observations())
        assert [type(o).__name__ for o in said[-4:]] == ["Cut", "Stream", "Result", "End"]
        assert Cut("stdout", 69_000) in said
        exact = executor.submit("print('x' * 999)").result()
        assert (exact.stdout, exact.stdout_cut) == ("x" * 999 + "\n", 0)
        wide = executor.submit("print('€' * 1000)").result()
        assert "\udce2" not in wide.stdout
        assert (
            wide.stdout_cut
            + len(wide.stdout.replace(f"\n[… {wide.stdout_cut} bytes cut …]\n", "").encode())
            == 3001
        )
    with sharing(max_workers=1, max_output=0) as executor:
        result = executor.submit("print('x' * 100)\n5").result()
        assert (result.stdout_cut, result.value) == (101, 5)


def test_output_without_end_neither_fills_the_client_nor_slows_the_others(executor):
    me = psutil.Process()
    before = me.memory_info().rss
    peak = before
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, me.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        loud = executor.submit(
            "import sys\nline = 'x' * 1023 + '\\n'\nfor _ in range(256 * 1024): sys.stdout.write(line)"
        )
        quiet = 0
        while not loud.done():
            assert executor.submit("1").result().value == 1
            quiet += 1
        result = loud.result()
    finally:
        done.set()
        watcher.join()
    assert result.stdout_cut == 256 * MB - 10 * MB
    assert quiet > 5
    assert peak - before < 100 * MB


def test_a_slow_callback_slows_its_own_cell_and_gets_everything(executor):
    taken = []

    def slow(piece):
        taken.append(piece.text)
        time.sleep(0.001)

    loud = executor.options(on_output=slow).submit(
        "import sys\nfor i in range(50_000): print(f'{i:09}')\nprint('err', file=sys.stderr)"
    )
    times = []
    while not loud.done():
        begun = time.monotonic()
        executor.submit("1").result()
        times.append(time.monotonic() - begun)
    assert "".join(taken) == "".join(f"{i:09}\n" for i in range(50_000)) + "err\n"
    assert loud.result().stdout == "".join(taken)[:-4]
    assert sorted(times)[len(times) // 2] < 0.5


def test_a_callback_that_blocks_holds_its_cell_back(sharing):
    """The cell stops at what fits between it and the callback: it cannot run away."""
    arrived, release = threading.Event(), threading.Event()
    with sharing(max_workers=2) as executor:
        view = executor.options(on_output=lambda piece: (arrived.set(), release.wait(30)))
        loud = view.submit(
            "import time\nbegun = time.monotonic()\nfor _ in range(100): print('x' * 99_999)\n"
            "time.monotonic() - begun"
        )
        assert arrived.wait(20)
        time.sleep(0.3)
        assert not loud.done()
        assert executor.submit("1").result().value == 1
        release.set()
        result = loud.result(30)
        assert result.value > 0.3  # it began before the first piece arrived
        assert len(result.stdout) == 10_000_000


def test_a_callback_that_raises_is_logged_and_harms_nothing(executor, caplog):
    def raising(piece):
        raise RuntimeError("of the callback")

    result = (
        executor.options(on_output=raising, task_id="loud").submit("print(1)\nprint(2)").result()
    )
    assert result.stdout == "1\n2\n"
    [record] = [r for r in caplog.records if getattr(r, "event", "") == "on_output_raised"]
    assert record.fields["task_id"] == "loud"
    assert "of the callback" in record.fields["error"]


def test_what_goes_to_a_callback_is_bounded_in_the_result(sharing):
    taken = []
    with sharing(max_workers=1, max_output=100) as executor:
        view = executor.options(on_output=lambda piece: taken.append(len(piece.data)))
        result = view.submit("for i in range(1000): print('x' * 99)").result()
    assert sum(taken) == 100_000
    assert result.stdout_cut == 99_900


def test_output_is_live(executor):
    future = executor.submit("import time\nprint('first')\ntime.sleep(60)\nprint('second')")
    for seen in future.observations():
        if isinstance(seen, Stream):
            assert seen.text == "first\n"
            break
    assert not future.done()
    assert future.kill()


def test_what_a_cell_did_to_its_descriptors_is_not_there_for_the_next(single):
    single.submit("import os; os.set_blocking(1, False); os.set_blocking(2, False)").result()
    assert len(single.submit("print('x' * 5_000_000)").result().stdout) == 5_000_001


def test_a_kept_process_finds_its_directory_again():
    with SandboxExecutor(max_workers=1, state="reuse", isolation="process") as reuse:
        reuse.submit("import os; os.rmdir(os.getcwd())").result()
        assert reuse.submit("import os; os.listdir()").result().value == []


def test_a_kept_process_finds_its_descriptors_again(reuse):
    assert reuse.submit("import os; os.closerange(0, 3)").exception() is None
    result = reuse.submit("import sys; print(sys.stdin.read() == ''); sys.stdin.fileno()").result()
    assert (result.stdout, result.value) == ("True\n", 0)


def test_a_worker_that_broke_the_protocol_has_no_result(single):
    cell = (
        "import os, socket, stat\nfrom mentis_pool.runtime import wire\n"
        "for fd in range(3, 1024):\n"
        "    try:\n"
        "        if stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
        "            its = socket.socket(fileno=os.dup(fd))\n"
        "            if its.type == socket.SOCK_STREAM:\n"
        "                its.sendall(wire.pack(wire.Done(0, wire.Error('timeout', ''), wire.End(0.0))))\n"
        "    except OSError: pass\n5"
    )
    for _ in range(20):
        with pytest.raises(SandboxError, match="not its own: timeout"):
            single.submit(cell).result()


def test_a_cell_has_no_parts_of_a_result(single):
    cell = (
        "import sys\nframe = sys._getframe()\n"
        "while frame.f_code.co_name != '_obey': frame = frame.f_back\n"
        "frame.f_locals['self']._part(b'x')"
    )
    with pytest.raises(SandboxError, match="what a call gives, and ran none"):
        single.submit(cell).result()


def test_a_cell_has_no_result_of_a_call(single):
    cell = (
        "import msgspec\nfrom mentis_pool.runtime import worker\n"
        "real = worker.wire.pack\n"
        "def pack(message):\n"
        "    if isinstance(message, worker.wire.Done):\n"
        "        said = msgspec.structs.replace(message.said, pickled=b'x')\n"
        "        message = msgspec.structs.replace(message, said=said)\n"
        "    return real(message)\n"
        "worker.wire.pack = pack"
    )
    with pytest.raises(SandboxError, match="what a call gives, and ran none"):
        single.submit(cell).result()


# The kernel counts what is on its way of all processes of a user, in all sandboxes.
ON_THEIR_WAY = """
import array, os, resource, socket, sys
from mentis_pool import SandboxExecutor

cell = '''
import array, os, socket, time
fd, kept, sent = os.open("/dev/null", 0), [], 0
while sent < 6000:
    kept.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        for _ in range(5):
            its = array.array("i", [fd] * 250)
            kept[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, its)])
            sent += 250
    except BlockingIOError:
        pass
    except OSError:
        break
print(sent, flush=True)
time.sleep(60)
'''
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with SandboxExecutor(2, state=sys.argv[1], isolation="bubblewrap", retries=0) as executor:
        executor.submit("1").result()
        flood = executor.submit(cell)
        while not flood.stdout:
            assert not flood.done(), flood.exception()
        assert int(flood.stdout) > 1000
        for _ in range(10):
            executor.submit("1").result()
        assert not flood.done()
        flood.kill()
"""


@pytest.mark.parametrize("state", ["fresh", "new"])
def test_descriptors_on_their_way_in_a_cell_keep_no_other_from_a_sandbox(state, tmp_path):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("no more descriptors may be had here than a cell may have")
    (tmp_path / "flood.py").write_text(ON_THEIR_WAY)
    words = [sys.executable, str(tmp_path / "flood.py"), state]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    if "RuntimeUnavailable" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr


OPEN = (
    "import os\n"
    "{int(fd): os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')"
    " if os.path.lexists(f'/proc/self/fd/{fd}')}"
)


@pytest.mark.parametrize("level", ["bubblewrap", "landlock", "process"])
def test_a_cell_has_no_descriptors_but_its_own(level, eventually):
    try:
        executor = SandboxExecutor(1, isolation=level)
        executor.submit("1").result()
    except RuntimeUnavailable as exc:
        pytest.skip(str(exc))
    with executor:
        opened = []
        runtime = psutil.Process(executor._engine._connection._runtime.pid)

        def standby():
            with contextlib.suppress(psutil.NoSuchProcess):
                inits = runtime.children()
                while len(inits) == 1:
                    inits = inits[0].children()
                return next((init for init in inits if not init.children()), None)

        for killed in (False, True):
            if killed:
                eventually(standby).kill()
            with executor.session() as session:
                opened.append(session.submit(OPEN).result().value)
                command = session.shell("ls -l /proc/self/fd | grep -c -- '->'").result().stdout
                # Three, and of ls its directory; Landlock lets it see none.
                assert int(command) == (0 if level == "landlock" else 4)
    with_standby, without = ({fd: its.split(":")[0] for fd, its in each.items()} for each in opened)
    assert with_standby == without
    # What is the sandbox's own is where no cell stumbles over it.
    assert {fd for fd in without if fd < 200} == {0, 1, 2}
    assert not any("memfd" in its for its in without.values())


SPOILS = {
    "the directories": "get_ipython().history_manager.dir_hist = ()",
    "the outputs": "get_ipython().history_manager.output_hist = None",
    "the history": "get_ipython().history_manager = None",
    "the magics": "get_ipython().magics_manager = None",
    "the display": "get_ipython().display_formatter = None",
    "the shell's own": "type(get_ipython()).clear = None",
}


@pytest.mark.parametrize("what", SPOILS)
def test_what_a_cell_spoils_is_whole_for_the_next(reuse, what):
    reuse.submit(SPOILS[what]).exception()
    for _ in range(3):
        result = reuse.submit("get_ipython().run_line_magic('pwd', '')\nprint('x')\n1").result()
        assert (result.stdout, result.value) == ("x\n", 1)
    assert reuse.submit("%pwd").result().value == "/work"


def test_a_runtime_does_not_keep_what_a_long_call_had(eventually):
    with SandboxExecutor(1, limits=Limits(memory=None)) as executor:
        executor.submit(abs, 1).result()
        runtime = psutil.Process(executor._engine._connection._runtime.pid)
        before = runtime.memory_info().rss
        for _ in range(3):
            assert executor.submit(len, bytes(120 * MB)).result() == 120 * MB
            assert executor.submit(abs, -1).result() == 1
        eventually(lambda: runtime.memory_info().rss - before < 40 * MB)


def test_a_kept_process_keeps_no_sources(reuse):
    peak = "import gc; sum(isinstance(o, list) for o in gc.get_objects()); " + "#" * 100_000
    memory = "open('/proc/self/statm').read().split()[1]"
    reuse.submit(memory).result()
    before = int(reuse.submit(memory).result().value)
    for _ in range(100):
        reuse.submit(peak).result()
    after = int(reuse.submit(memory).result().value)
    assert (after - before) * 4096 < 5_000_000, "a hundred sources have ten million bytes"


@pytest.mark.parametrize("cell", ["while True: pass", "import time; time.sleep(20)"])
def test_a_process_that_was_signalled_runs_no_other_cell(reuse, cell):
    pid = reuse.submit("import os; os.getpid()").result().value
    with pytest.raises(CellTimeout):
        reuse.options(timeout=0.1).submit(cell).result()
    assert reuse.submit("import os; os.getpid()").result().value != pid


def test_a_cell_that_forges_counts_harms_nobody(executor):
    other = executor.submit("import time; time.sleep(0.5); 5")
    forger = executor.submit(
        "import os\nfrom mentis_pool.runtime import wire\nfrom mentis_pool.observations import Cut\n"
        "for fd in map(int, os.listdir('/proc/self/fd')):\n"
        "    try:\n"
        "        if os.readlink(f'/proc/self/fd/{fd}').startswith('socket'):\n"
        "            os.write(fd, wire.pack(Cut('displays', 2**64 - 1)) * 3)\n"
        "    except OSError: pass"
    )
    assert forger.exception(20) is None
    assert other.result(20).value == 5


def test_a_stopped_first_process_is_killed_with_all_that_it_has(monkeypatch, own_temp, eventually):
    hasty = "from mentis_pool.runtime import supervisor\nsupervisor.PATIENCE = 1.0\nmain()\n"
    monkeypatch.setattr(local, "_RUNTIME", local._RUNTIME.replace("main()\n", hasty))
    cell = (
        "import os, signal, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    time.sleep(300)\n    os._exit(0)\n"
        "print(os.getppid(), os.getpid(), flush=True)\n"
        "os.kill(os.getppid(), signal.SIGSTOP)\nwhile True: pass"
    )
    # Behind a wall it cannot be stopped.
    with SandboxExecutor(max_workers=1, isolation="process") as executor:
        future = executor.options(timeout=0.2).submit(cell)
        assert future.exception(30) is not None
        first, worker = map(int, future.exception().result.stdout.split())
        eventually(lambda: not psutil.pid_exists(first) and not psutil.pid_exists(worker))
        assert executor.submit("1").result(20).value == 1


# ── brief cells, whose output is taken at their end ─────────────────────────


@pytest.mark.parametrize("state", ["fresh", "reuse"])
def test_after_brief_cells_what_a_long_one_prints_is_heard_at_once(state):
    with SandboxExecutor(max_workers=1, state=state, timeout=60) as executor:
        assert [r.stdout for r in executor.map([f"print({n})" for n in range(50)])] == [
            f"{n}\n" for n in range(50)
        ]
        future = executor.submit("print('now')\nimport time; time.sleep(50)")
        assert next(o for o in future.observations() if isinstance(o, Stream)).data == b"now\n"
        assert future.kill()


@pytest.mark.parametrize("state", ["fresh", "reuse"])
def test_a_brief_cell_may_print_more_than_a_pipe_holds(state):
    with SandboxExecutor(max_workers=1, state=state, timeout=60) as executor:
        for _ in executor.map(["1"] * 50):
            pass
        size = 3_000_001
        cells = [f"import os\nprint('{n}' * {size}, end='')" for n in range(3)]
        assert [r.stdout for r in executor.map(cells)] == [f"{n}" * size for n in range(3)]


def test_what_is_written_between_cells_is_of_none():
    with SandboxExecutor(max_workers=1, state="reuse", timeout=60) as executor:
        for _ in executor.map(["1"] * 50):
            pass
        executor.submit(
            "import os, threading, time\ndef later():\n    while not stop:\n"
            "        os.write(1, b'x' * 10_000); time.sleep(0.001)\n"
            "stop = []\nthreading.Thread(target=later, daemon=True).start()\n"
            "import builtins; builtins.stop = stop"
        ).result()
        # More than a pipe holds: it is read, though nothing runs.
        time.sleep(0.5)
        assert executor.submit("stop.append(1)\nimport time; time.sleep(0.05)").result().ok
        assert executor.submit("print(5)").result().stdout == "5\n"
