"""Whatever dies, and whenever: each future has the right error in time, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import family
import psutil
import pytest

from mentis_pool import (
    BrokenSandboxPool,
    CellFuture,
    OutcomeUnknown,
    RuntimeUnavailable,
    SandboxDied,
    SandboxExecutor,
    StateLost,
    connection,
)
from mentis_pool.observations import Part
from mentis_pool.pool import AHEAD

BOUND = 8.0
"""Seconds within which everybody has heard, on a busy machine too."""
ALONE = ("worker", "init")
"""Whose death is that of one sandbox."""
VICTIMS = (*ALONE, "zygote", "runtime", "stream")


@pytest.fixture
def own(own_temp, processes):
    """One whose runtime may die."""
    with SandboxExecutor(max_workers=2) as executor:
        yield executor
    assert processes(own_temp) == []


@pytest.fixture(scope="module")
def lasting(processes):
    """One whose runtime nobody ends, for all tests of which that is true."""
    base = tempfile.mkdtemp(prefix="mp-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("TMPDIR", "LD_LIBRARY_PATH"):
            patched.setenv(name, base)
        patched.setattr(tempfile, "tempdir", None)
        executor = SandboxExecutor(max_workers=2)
        executor.submit("1").result(20)
    with executor:
        yield executor
    assert processes(base) == []
    os.rmdir(base)


@pytest.fixture
def executor(request):
    victim = request.node.callspec.params["victim"]
    return request.getfixturevalue("lasting" if victim in ALONE else "own")


def kill(victim, executor, worker):
    """End what runs this worker, or what that stands on."""
    if victim == "worker":
        worker.kill()
    elif victim == "init":
        worker.parent().kill()
    elif victim == "zygote":
        family.zygote_of(executor).kill()
    elif victim == "runtime":
        family.runtime_of(executor).kill()
    else:
        executor._engine._connection._stream._link._wire.shutdown(2)


def gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_runtime_that_has_stopped_is_given_up_in_time(own_temp, processes, monkeypatch):
    monkeypatch.setattr(connection, "LOCAL_PING", 0.5)
    with SandboxExecutor(max_workers=1) as executor:
        hit = executor.submit(family.SLEEP)
        family.worker_of(hit)
        waiting = [executor.submit(str(i)) for i in range(3)]
        family.runtime_of(executor).send_signal(signal.SIGSTOP)
        error = hit.exception(BOUND)
        assert type(error) is SandboxDied
        assert "embedded runtime" in str(error)
        assert [future.result(BOUND).value for future in waiting] == [0, 1, 2]
    assert processes(own_temp) == []


# ── while it runs, waits, travels, returns ──────────────────────────────────


@pytest.mark.parametrize("victim", VICTIMS)
def test_what_runs_in_it_died_and_what_waits_or_travels_is_run_all_the_same(
    executor, shown, victim
):
    hit = executor.submit(family.SLEEP if victim in ("worker", "zygote") else family.asleep)
    other = executor.submit(family.WAIT, go=str(shown / "go"))
    worker = family.worker_of(hit)
    said = hit.stdout
    family.worker_of(other)
    waiting = [executor.submit(abs, -i) for i in range(AHEAD + 8)]
    kill(victim, executor, worker)
    error = hit.exception(BOUND)
    assert type(error) is SandboxDied
    if victim == "worker":
        assert error.signal == signal.SIGKILL
    if isinstance(hit, CellFuture):
        assert error.result.stdout == said
    if victim in ALONE:
        (shown / "go").touch()
        assert other.result(BOUND).value == 5
    else:
        assert type(other.exception(BOUND)) is SandboxDied
    assert [future.result(BOUND) for future in waiting] == list(range(AHEAD + 8))
    assert executor.submit("6").result(BOUND).value == 6
    assert gone(worker)


@pytest.mark.parametrize("calls", [True, False])
def test_what_may_have_begun_and_may_not_be_tried_again_is_unknown_and_the_rest_is_run(own, calls):
    view = own.options(retries=0)
    running = [view.submit(family.SLEEP) for _ in range(2)]
    worker, _ = [family.worker_of(future) for future in running]
    waiting = [view.submit(abs, -i) if calls else view.submit(str(i)) for i in range(AHEAD + 8)]
    kill("runtime", own, worker)
    for future in running:
        assert type(future.exception(BOUND)) is SandboxDied
    # Of as many cells as there are workers it is not known whether they had begun, and of
    # no call that was sent.
    unknown = AHEAD if calls else 2
    for future in waiting[:unknown]:
        assert type(future.exception(BOUND)) is OutcomeUnknown
    given = [future.result(BOUND) for future in waiting[unknown:]]
    assert [each if calls else each.value for each in given] == list(range(unknown, AHEAD + 8))


@pytest.mark.parametrize("victim", VICTIMS)
def test_what_is_returning_died_unless_all_of_it_came(executor, shown, victim, monkeypatch):
    heard, killed = threading.Event(), threading.Event()
    hear = executor._engine._hear_said

    def hear_until(action, said, now):
        hear(action, said, now)
        if any(isinstance(each, Part) for each in said):
            # The rest is on its way until then.
            heard.set()
            killed.wait(BOUND)

    monkeypatch.setattr(executor._engine, "_hear_said", hear_until)
    hit = executor.submit(family.large)
    other = executor.submit(family.WAIT, go=str(shown / "go"))
    family.worker_of(other)
    worker = family.worker_of(hit)
    assert heard.wait(BOUND)
    kill(victim, executor, worker)
    killed.set()
    assert type(hit.exception(BOUND)) is SandboxDied
    if victim in ALONE:
        (shown / "go").touch()
        assert other.result(BOUND).value == 5
    else:
        assert type(other.exception(BOUND)) is SandboxDied
    assert executor.submit(len, b"abc").result(BOUND) == 3


@pytest.mark.parametrize("victim", ["worker", "init", "runtime"])
def test_a_session_that_dies_loses_its_state_and_says_so(executor, victim, eventually):
    with executor.session() as session:
        session.submit("x = 1").result(BOUND)
        hit = session.submit(family.SLEEP)
        behind = session.submit("x")
        kill(victim, executor, family.worker_of(hit))
        assert type(hit.exception(BOUND)) is SandboxDied
        assert type(behind.exception(BOUND)) is StateLost
        idle = session.submit(family.NAMED + "x = 2")
        assert idle.result(BOUND).error is None
        worker = family.worker_of(idle)
        kill(victim, executor, worker)
        eventually(lambda: gone(worker))
        # The news of its death may still be on its way: then the next one runs into it.
        error = session.submit("x").exception(BOUND)
        if type(error) is SandboxDied:
            error = session.submit("x").exception(BOUND)
        assert type(error) is StateLost
        assert session.submit("3").result(BOUND).value == 3


# ── workers that run nothing ────────────────────────────────────────────────


def spares(worker):
    return [each for each in worker.parent().children() if each.pid != worker.pid]


def test_the_next_worker_may_die_while_one_runs(eventually, shown):
    # Behind a wall there is none while one runs.
    with SandboxExecutor(2, isolation="process") as executor:
        running = executor.submit(family.WAIT, go=str(shown / "go"))
        worker = family.worker_of(running)
        [spare] = eventually(lambda: spares(worker))
        spare.kill()
        (shown / "go").touch()
        assert running.result(BOUND).value == 5
        assert executor.submit("2").result(BOUND).value == 2


def test_a_kept_worker_may_die_while_it_waits(lasting):
    for _ in range(3):
        number = lasting.submit(family.number).result(BOUND)
        psutil.Process(family.seen_from_here(*number)).kill()
        # Whoever comes while this is not known yet is lost before it begins, or as it does.
        results = [lasting.options(idempotent=True).submit(abs, -i) for i in range(4)]
        assert [future.result(BOUND) for future in results] == [0, 1, 2, 3]


def test_many_deaths_in_many_sandboxes_take_no_other_task_along(lasting):
    cell = "import os, signal\nif die: os.kill(os.getpid(), signal.SIGKILL)\ni"
    futures = [lasting.submit(cell, die=i % 3 == 0, i=i) for i in range(30)]
    calls = [lasting.submit(os._exit if i % 3 == 0 else abs, i) for i in range(30)]
    for i, (cell, call) in enumerate(zip(futures, calls, strict=True)):
        if i % 3 == 0:
            assert cell.exception(BOUND).signal == signal.SIGKILL
            assert call.exception(BOUND).exit_code == i
        else:
            assert (cell.result(BOUND).value, call.result(BOUND)) == (i, i)


# ── again and again ─────────────────────────────────────────────────────────

DEADLY = """
import os
depth = 0
def child():
    global depth
    depth += 1
    is_worker = depth == 2
    if WHEN:
        os._exit(9)
os.register_at_fork(after_in_child=child)
"""


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """An executor whose processes die as they are forked; and the file that keeps them alive."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(when, **options):
        name = f"deadly_{os.urandom(4).hex()}"
        spared = tmp_path / "spared"
        text = DEADLY.replace("WHEN", f"({when}) and not os.path.exists({str(spared)!r})")
        (tmp_path / f"{name}.py").write_text(text)
        return SandboxExecutor(preload=[name], **options), spared

    return make


@pytest.mark.parametrize(
    ("when", "reason"),
    [("is_worker", "exited with code 9"), ("not is_worker", "end of file")],
    ids=["workers", "inits"],
)
@pytest.mark.parametrize("kind", ["cell", "call", "session"])
def test_sandboxes_that_die_at_their_start_break_the_pool(
    own_temp, processes, deadly, when, reason, kind
):
    executor, _ = deadly(when, max_workers=2)
    with executor:
        if kind == "session":
            futures = [executor.session().submit("1")]
        else:
            futures = [executor.submit(*(["1"] if kind == "cell" else [abs, 1])) for _ in range(9)]
        for future in futures:
            error = future.exception(BOUND)
            assert type(error) is BrokenSandboxPool
            assert reason in str(error)
        with pytest.raises(BrokenSandboxPool, match="die as soon as they are started"):
            executor.submit("1")
    assert processes(own_temp) == []


def test_sandboxes_that_begin_to_die_break_the_pool_though_it_worked(own_temp, processes, deadly):
    executor, spared = deadly("True", max_workers=2)
    spared.touch()
    with executor:
        assert executor.submit("1").result(BOUND).value == 1
        spared.unlink()
        errors = []
        deadline = time.monotonic() + BOUND
        with contextlib.suppress(BrokenSandboxPool):
            while time.monotonic() < deadline:
                errors.append(executor.submit("1").exception(BOUND))
        assert type(errors[-1]) is BrokenSandboxPool
        assert set(map(type, errors)) <= {type(None), BrokenSandboxPool}
    assert processes(own_temp) == []


def test_sandboxes_that_die_at_their_start_for_a_while_lose_nothing(own_temp, deadly):
    executor, spared = deadly("True", max_workers=1)
    with executor:
        spared.touch()
        assert executor.submit(abs, -1).result(BOUND) == 1
        spared.unlink()
        # One that is there goes on.
        assert [executor.submit(abs, -i).result(BOUND) for i in range(5)] == list(range(5))


def test_a_zygote_that_dies_whenever_it_is_asked_ends_what_was_sent_in_time(
    own_temp, processes, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mortal.py").write_text(
        "import os\nos.register_at_fork(before=lambda: os._exit(8))\n"
    )
    with SandboxExecutor(max_workers=1, preload=["mortal"]) as executor:
        futures = [executor.submit("1"), executor.submit(abs, 1)]
        for future in futures:
            error = future.exception(15)
            assert type(error) is OutcomeUnknown
            assert "the runtime was lost" in str(error)
    assert processes(own_temp) == []


def test_a_runtime_that_dies_before_it_is_ready_cannot_be_had(own_temp, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stillborn.py").write_text("import os\nos._exit(8)\n")
    with SandboxExecutor(max_workers=1, preload=["stillborn"], retries=0) as executor:
        assert type(executor.submit("1").exception(BOUND)) is RuntimeUnavailable
        with executor.session() as session:
            assert type(session.submit("1").exception(BOUND)) is RuntimeUnavailable


@pytest.mark.parametrize(
    ("how", "kind"),
    [("os._exit(5)", "cell"), ("os.kill(os.getpid(), 9)", "call"), ("1/0", "session")],
)
def test_an_initializer_that_dies_breaks_the_pool(sharing, how, kind):
    with sharing(max_workers=2, initializer=f"import os\n{how}") as executor:
        if kind == "session":
            future = executor.session().submit("1")
        else:
            future = executor.submit(*(["1"] if kind == "cell" else [abs, 1]))
        error = future.exception(BOUND)
        assert type(error) is BrokenSandboxPool
        assert "the initializer failed" in str(error)
        with pytest.raises(BrokenSandboxPool):
            executor.submit("1")


# ── the client ──────────────────────────────────────────────────────────────

CLIENT = """
import os, sys, time
import family
from mentis_pool import SandboxExecutor
from mentis_pool.observations import Part
executor = SandboxExecutor(max_workers=2)
cell = "import subprocess, time; subprocess.Popen(['setsid', 'sleep', '8484']); time.sleep(60)"
point = sys.argv[1]
if point == "starting":
    executor.submit(cell)
elif point == "travelling":
    futures = [executor.submit(cell) for _ in range(60)]
    next(futures[0].observations())
elif point == "returning":
    future = executor.submit(family.large)
    next(said for said in future.observations() if isinstance(said, Part))
elif point == "session":
    session = executor.session()
    session.submit("x = 1").result()
    next(session.submit(cell).observations())
elif point == "output":
    view = executor.options(on_output=lambda piece: time.sleep(60))
    next(view.submit("while True: print('x' * 1000)").observations())
print("ready", flush=True)
"""


def client(point, then="time.sleep(60)"):
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT + then, point],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def nothing_left(base, processes):
    sleeping = [
        p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "8484"]
    ]
    return not sleeping and processes(base) == [] and os.listdir(base) == []


@pytest.mark.parametrize("point", ["starting", "travelling", "returning", "session", "output"])
def test_kill_9_of_the_client_leaves_nothing(own_temp, processes, eventually, point):
    with client(point) as process:
        process.kill()
    eventually(lambda: nothing_left(own_temp, processes))


FORKED = """
import warnings
warnings.simplefilter("ignore")  # of a fork beside threads, which is what this is about
import os, sys, time
from mentis_pool import SandboxExecutor
executor = SandboxExecutor(max_workers=2)
session = executor.session()
session.submit("x = 5").result()
futures = [executor.submit("import time; time.sleep(0.6)") for _ in range(3)]
futures.append(session.submit("import time; time.sleep(0.6); x"))
next(futures[0].observations())
def refused(use):
    try:
        use()
    except RuntimeError as exc:
        assert "after fork" in str(exc)
    else:
        raise AssertionError(use)
def refused_everything():
    refused(lambda: executor.submit("1"))
    refused(lambda: executor.submit(abs, 1))
    refused(lambda: executor.submit(len, [sys._getframe()]))
    refused(lambda: executor.shell("ls"))
    refused(lambda: list(executor.map(abs, [1])))
    refused(lambda: session.submit("1"))
    refused(executor.session)
    refused(session.restart)
def shut_down():
    global executor
    executor.shutdown()
    executor.kill_workers()
    session.close()
    del executor
children = [
    lambda: None,
    lambda: sys.exit(3),
    lambda: time.sleep(60),
    refused_everything,
    shut_down,
    lambda: [(future.cancel(), future.kill(), future.interrupt()) for future in futures],
    lambda: session.interrupt(),
]
pids = []
for child in children:
    pid = os.fork()
    if pid == 0:
        child()
        break
    pids.append(pid)
else:
    time.sleep(0.3)
    os.kill(pids[2], 9)
    print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
    print([future.exception(20) for future in futures], flush=True)
    executor.shutdown()
"""


def test_forked_children_of_the_client_end_and_harm_nothing(own_temp, processes):
    out, err, code = family.script(FORKED)
    assert (out, err, code) == ("[0, 3, -9, 0, 0, 0, 0]\n[None, None, None, None]\n", "", 0)
    assert processes(own_temp) == []
