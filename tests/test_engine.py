"""Ways to die: whatever ends, every future is settled, and nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import types
import weakref
from concurrent.futures import Future

import family
import psutil
import pytest
from interrupts import each_interrupt

from mentis_pool import BrokenSandboxPool, CellFuture, SandboxDied, SandboxExecutor, connection
from mentis_pool.engine import Engine
from mentis_pool.observations import End, Result, Start
from mentis_pool.pool import Pool
from mentis_pool.pool_stream import Cells, Said
from mentis_pool.stream import PoolStream
from mentis_pool.task import Settings, Task
from mentis_pool.threads import Threads

SLEEP = "import time; time.sleep(60)"


def runtime_of(executor):
    return psutil.Process(executor._engine._connection._runtime.pid)


def started(*futures):
    """Wait until these run, by their own word."""
    for future in futures:
        next(future.observations())


@pytest.fixture
def executor(own_temp):
    with SandboxExecutor(max_workers=2) as executor:
        yield executor


@pytest.fixture(scope="module")
def lasting():
    """For tests that end no process of it."""
    with SandboxExecutor(max_workers=2) as executor:
        yield executor


def test_a_runtime_that_dies_fails_what_ran_and_is_started_again(executor):
    running = [executor.submit(SLEEP) for _ in range(2)]
    waiting = [executor.submit(str(i)) for i in range(5)]
    started(*running)
    first = running[0].action_id.split("-")[0]
    runtime_of(executor).kill()
    for future in running:
        error = future.exception(20)
        assert isinstance(error, SandboxDied)
        assert "the runtime was lost" in str(error)
        assert [type(o).__name__ for o in future.observations()] == ["Start", "Error", "End"]
    assert [future.result(20).value for future in waiting] == list(range(5))
    assert waiting[0].action_id.split("-")[0] != first


def test_a_zygote_that_dies_takes_its_runtime_along_and_both_come_back(executor):
    running = executor.submit(SLEEP)
    started(running)
    zygote = family.zygote_of(executor)
    zygote.kill()
    assert isinstance(running.exception(20), SandboxDied)
    assert executor.submit("1").result(20).value == 1


def test_an_init_that_dies_fails_its_cell_alone(executor, eventually):
    cell = (
        "import os, subprocess\nsubprocess.Popen(['sleep', '6161'], start_new_session=True)\n"
        + SLEEP
    )
    hit, other = executor.submit(cell), executor.submit("import time; time.sleep(1); 5")
    started(hit, other)
    zygote = family.zygote_of(executor)
    eventually(lambda: [p for p in zygote.children(recursive=True) if p.name() == "sleep"])
    init = next(
        p for p in zygote.children() if any(c.name() == "sleep" for c in p.children(recursive=True))
    )
    init.kill()
    assert isinstance(hit.exception(10), SandboxDied)
    assert other.result().value == 5
    assert executor.submit("6").result(10).value == 6
    # Its worker and that one's children go with it.
    eventually(
        lambda: (
            [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "6161"]]
            == []
        )
    )


def test_a_worker_that_waits_may_be_killed(executor, eventually):
    executor.submit("1").result()
    zygote = family.zygote_of(executor)
    for _ in range(3):
        killed = eventually(lambda: zygote.children()[0].children())
        for worker in killed:
            with contextlib.suppress(psutil.NoSuchProcess):  # the last cell's, on its way out
                worker.kill()
        eventually(lambda killed=killed: set(zygote.children()[0].children()) - set(killed))
        assert executor.submit("1").result(10).value == 1


def test_a_stream_that_is_cut_fails_what_ran_and_the_rest_goes_on(executor):
    running = executor.submit(SLEEP)
    started(running)
    executor._engine._connection._stream._link._wire.shutdown(2)
    assert isinstance(running.exception(20), SandboxDied)
    assert executor.submit("1").result(20).value == 1


def test_a_fault_of_the_dispatcher_breaks_the_pool_and_hangs_nobody(
    own_temp, monkeypatch, processes
):
    executor = SandboxExecutor(max_workers=1)
    running, waiting = executor.submit(SLEEP), executor.submit("1")
    started(running)

    def faulty(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(PoolStream, "drain", faulty)
    executor._engine._dispatcher.wake()
    executor._engine._arrived.append(ZeroDivisionError("something to look at"))
    monkeypatch.setattr(Pool, "unavailable", faulty)
    executor._engine._dispatcher.wake()
    for future in (running, waiting):
        error = future.exception(20)
        assert isinstance(error, BrokenSandboxPool)
        assert isinstance(error.__cause__.__cause__, ZeroDivisionError)
    with pytest.raises(RuntimeError):
        executor.submit("1")
    executor.shutdown()
    assert processes(own_temp) == []


def test_an_interrupt_of_the_caller_between_decision_and_sending_hangs_nobody(sharing, monkeypatch):
    executor = sharing(max_workers=1)
    executor.submit("1").result()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PoolStream, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.submit("2")
    with pytest.raises(RuntimeError):
        for _ in range(100):
            executor.submit("3").exception(10)
    executor.shutdown()


def idle_engine(monkeypatch, **options):
    """One that starts no thread, and has nobody to send to."""
    engine = Engine(None, {}, 1, None, **options)
    monkeypatch.setattr(engine, "_start_threads", lambda output: None)
    return engine


def test_an_interrupt_of_who_sends_at_any_moment_leaves_the_wire_free_or_breaks_the_pool(
    monkeypatch,
):
    engine = idle_engine(monkeypatch)
    sent = []
    engine._connection = types.SimpleNamespace(send=sent.extend)

    def send():
        engine._outbox = [1]
        engine._flush()

    for where in each_interrupt((Engine._flush,), send):
        assert not engine._wire.locked(), where
        assert engine._fault is not None or engine._outbox or sent, where
        engine._fault = None
        sent.clear()


def test_an_interrupt_of_who_submits_at_any_moment_takes_no_room_for_ever(monkeypatch):
    engine = idle_engine(monkeypatch)
    monkeypatch.setattr(engine, "_decide_for_caller", lambda decision, task: decision(task))

    def submit():
        task = Task("t", 1, Cells([b""]), Settings(), None, 0.0)
        task.future = CellFuture(task, engine)
        engine.submit(task)

    for where in each_interrupt((Engine.submit,), submit):
        assert engine._coming == 0, where


def one_to_be_run_again(engine):
    """A task that has begun once, and waits for the next time."""
    task = Task("again", 1, Cells([b""]), Settings(), None, 0.0)
    task.future = CellFuture(task, engine)
    engine._pool.add(task)
    task.claim()
    return task


def test_an_interrupt_of_who_kills_at_any_moment_hangs_nobody(monkeypatch):
    engine = idle_engine(monkeypatch)
    functions = (Engine._strike, Engine._decide_for_caller, Engine._decide, Engine._carry_out)
    killed = []

    def kill():
        task = one_to_be_run_again(engine)
        killed.append((task, task.future))
        engine.kill(task)

    for where in each_interrupt(functions, kill):
        task, future = killed[-1]
        assert future.done() or not task.ended or engine._fault is not None, where
        engine._fault = None


def test_an_interrupt_of_who_reads_for_itself_at_any_moment_leaves_no_future_without_an_end(
    monkeypatch,
):
    functions = (
        *(Engine._drain_for_caller, Engine._hear_all, Engine._hear_said, Engine._decide),
        *(Engine._said, Engine._carry_out, Engine._settle, Engine._resolve),
        *(Pool.said, Pool._over, Pool._settle, Pool._take_back),
        *(Future.set_running_or_notify_cancel, Future.set_result),
    )
    made = []

    def read():
        engine = idle_engine(monkeypatch)
        said = [Start(0.0, 1), Result(text="1"), End(0.1)]
        task = Task("t", 1, Cells([b""]), Settings(), None, 0.0)
        future = task.future = CellFuture(task, engine)
        made.append((engine, future))
        engine._pool.connected()
        engine._add(task)
        events = [Said(task.action, each) for each in said]
        engine._connection = types.SimpleNamespace(
            drain=lambda: events,
            send=lambda _: None,
            names=lambda *_: ("a", "s"),
            close=lambda: None,
        )
        engine._drain_for_caller()

    ends = set()
    for where in each_interrupt(functions, read):
        engine, future = made[-1]
        if engine._fault is not None:
            engine._end(engine._fault)
        assert future.done(), where
        assert not engine._live, where
        ends.add(type(future.exception(0)))
    # It is told how it ended, or that this is not known.
    assert ends <= {type(None), BrokenSandboxPool}
    assert len(ends) == 2


def test_who_is_killed_while_it_waits_to_be_run_again_makes_room(monkeypatch):
    engine = idle_engine(monkeypatch, max_queue=1)
    task = one_to_be_run_again(engine)
    future = task.future
    after = Task("after", 1, Cells([b""]), Settings(), None, 0.0)
    after.future = CellFuture(after, engine)
    waits = threading.Event()
    wait_for = engine._room.wait_for
    monkeypatch.setattr(
        engine._room, "wait_for", lambda is_room: (waits.set(), wait_for(is_room, 20))
    )
    submits = threading.Thread(target=engine.submit, args=(after,))
    submits.start()
    waits.wait()
    # Whoever has the lock now, it has been given up by who waits.
    assert engine.kill(task)
    submits.join(10)
    assert not submits.is_alive()
    assert isinstance(future.exception(0), SandboxDied)


# A dispatcher that nobody got has its sockets closed by the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_interrupt_of_who_starts_the_threads_at_any_moment_leaves_none_without_an_end(
    eventually,
):
    def own():
        # Not those that were about to be started: they are there, and never live.
        return [
            each
            for each in threading.enumerate()
            if each.is_alive() and each.name.startswith("mentis-pool")
        ]

    before = own()
    engines = []

    def start():
        engines.append(Engine(None, {}, 1, None))
        with engines[-1]._lock:
            engines[-1]._start_threads(False)

    functions = (Engine._start_threads, Threads.start, Threads._start, threading.Thread.start)
    for _ in each_interrupt(functions, start):
        engine = engines[-1]
        if engine._dispatcher is not None:
            engine._dispatcher.stop()
        eventually(lambda: set(own()) <= set(before))
    engines[-1]._dispatcher.stop()
    engines[-1]._dispatcher.join()
    assert set(own()) <= set(before)
    engine = None
    engines.clear()
    gc.collect()


needs_epoll = pytest.mark.skipif(sys.platform != "linux", reason="others have no epoll(7)")


def readers(executor, monkeypatch, call):
    """The threads that read what the runtime says while this is called."""
    seen = set()
    drain = PoolStream.drain

    def noted(stream):
        events = drain(stream)
        if events:
            seen.add(threading.current_thread())
        return events

    with monkeypatch.context() as patched:
        patched.setattr(PoolStream, "drain", noted)
        call()
    return seen


@needs_epoll
def test_who_waits_for_a_short_call_reads_its_answer(lasting, monkeypatch, eventually):
    def one():
        assert lasting.submit(abs, -1).result(20) == 1

    one()
    me = threading.current_thread()
    # One that takes longer, as on a busy machine, is read by the dispatcher.
    eventually(lambda: me in readers(lasting, monkeypatch, one))


def test_who_waits_reads_nothing_while_there_are_callbacks_or_others_wait(lasting, monkeypatch):
    lasting.submit(abs, -1).result(20)

    def with_callback():
        threads = []
        future = lasting.submit(abs, -1)
        future.add_done_callback(lambda _: threads.append(threading.current_thread()))
        assert future.result(20) == 1
        return threads

    def one_of_two():
        other = lasting.submit("import time; time.sleep(0.2)")
        started(other)
        for _ in range(20):
            assert lasting.submit(abs, -1).result(20) == 1
        other.result(20)

    me = threading.current_thread()
    for _ in range(20):
        assert me not in readers(lasting, monkeypatch, with_callback)
    assert me not in readers(lasting, monkeypatch, one_of_two)


@needs_epoll
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_stops_one_who_reads_in_the_middle_breaks_the_pool_and_hangs_nobody(
    own_temp, monkeypatch, error
):
    executor = SandboxExecutor(max_workers=1)
    executor.submit(abs, -1).result()
    me = threading.current_thread()
    said = Pool.said

    def faulty(*arguments):
        if threading.current_thread() is me:
            raise error
        return said(*arguments)

    monkeypatch.setattr(Pool, "said", faulty)
    futures = []
    with pytest.raises((BrokenSandboxPool, KeyboardInterrupt)):
        # It takes one that is done soon.
        for _ in range(10_000):
            futures.append(executor.submit(abs, -1))
            futures[-1].result(20)
    for future in futures[:-1]:
        assert future.result(0) == 1
    assert isinstance(futures[-1].exception(20), BrokenSandboxPool)
    executor.shutdown()


@needs_epoll
def test_a_runtime_that_dies_while_one_reads_is_found_by_the_dispatcher(executor, monkeypatch):
    executor.submit(abs, -1).result(20)
    dispatcher = executor._engine._dispatcher
    # As long as it takes to be found by whoever reads.
    monkeypatch.setattr("mentis_pool.dispatcher.LEAD", 1.0)
    running = executor.submit("import time; time.sleep(60)")
    started(running)
    killer = threading.Timer(0.2, runtime_of(executor).kill)
    killer.start()
    with pytest.raises(SandboxDied):
        running.result(20)
    killer.join()
    assert dispatcher.is_alive()
    assert executor.submit("6").result(20).value == 6


def test_a_forgotten_executor_finishes_and_is_collected(own_temp, processes, eventually):
    before = set(threading.enumerate())
    executor = SandboxExecutor(max_workers=1)
    futures = [executor.submit(f"import time; time.sleep(0.1); {i}") for i in range(4)]
    gone = weakref.ref(executor)
    engine = weakref.ref(executor._engine)
    del executor
    gc.collect()
    assert gone() is None
    assert [future.result(10).value for future in futures] == [0, 1, 2, 3]
    eventually(lambda: processes(own_temp) == [] and os.listdir(own_temp) == [])
    del futures
    eventually(lambda: gc.collect() is not None and engine() is None)
    assert set(threading.enumerate()) <= before


def test_a_view_keeps_its_executor(sharing):
    view = sharing(max_workers=1).options(timeout=5)
    gc.collect()
    assert view.submit("1").result().value == 1
    assert view.submit("2").result().value == 2
    view.shutdown()


def test_shutdown_from_a_callback_does_not_wait_for_itself(sharing):
    executor = sharing(max_workers=1)
    done = threading.Event()
    future = executor.options(on_output=lambda piece: None).submit("print(1)")
    future.add_done_callback(lambda _: (executor.shutdown(), done.set()))
    assert done.wait(20)
    executor.shutdown()


def test_a_forked_child_may_not_submit_and_harms_nothing(sharing):
    with sharing(max_workers=1) as executor:
        executor.submit("1").result()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                executor.submit("1")
            except RuntimeError as exc:
                code = 0 if "fork" in str(exc) else 2
            finally:
                executor.shutdown()
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert executor.submit("2").result().value == 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_was_forked_in_a_callback_and_goes_on_takes_nothing_from_the_parent(executor):
    children = []
    future = executor.submit("import time; time.sleep(0.2)")
    future.add_done_callback(lambda _: children.append(os.fork()))
    future.result(20)
    futures = [executor.submit(abs, -i) for i in range(100)]
    assert [future.result(20) for future in futures] == list(range(100))
    # It has come to the end of the thread that it is.
    until = time.monotonic() + 10
    while (gone := os.waitpid(children[0], os.WNOHANG)) == (0, 0) and time.monotonic() < until:
        time.sleep(0.01)
    assert gone[0] == children[0]


def test_many_threads_submit_and_each_gets_its_own(sharing):
    with sharing(max_workers=2, state="reuse") as executor:
        got = {}

        def work(name):
            futures = [executor.submit("print(x)\nx", x=(name, i)) for i in range(50)]
            got[name] = [(f.result().value, f.result().stdout) for f in futures]

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in "abcdef":
        assert got[name] == [((name, i), f"{(name, i)}\n") for i in range(50)]


# ── the client's end ────────────────────────────────────────────────────────

CLIENT = """
import os, sys, time
from mentis_pool import SandboxExecutor
executor = SandboxExecutor(max_workers=2)
cell = "import subprocess, time; subprocess.Popen(['setsid', 'sleep', '7373']); time.sleep(SECONDS); print('x')"
futures = [executor.submit(cell.replace("SECONDS", sys.argv[1])) for _ in range(3)]
next(futures[0].observations())
print("ready", flush=True)
"""


def client(seconds, then, **kwargs):
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT + then, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **kwargs,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process):
    """Its output from here on; `communicate` would leave out what `readline` has buffered."""
    with process:
        return process.stdout.read(), process.stderr.read()


def nothing_left(base, processes):
    sleeping = [
        p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "7373"]
    ]
    return not sleeping and processes(base) == [] and os.listdir(base) == []


@pytest.mark.parametrize(
    "then",
    [
        "time.sleep(60)",
        # A forked child keeps the lifeline open.
        "if os.fork() == 0:\n    os.close(1); os.close(2); time.sleep(5)\nelse: time.sleep(60)",
    ],
)
def test_kill_9_of_the_client_leaves_nothing(own_temp, processes, eventually, then):
    process = client(60, then)
    process.kill()
    finish(process)
    eventually(lambda: nothing_left(own_temp, processes))


def test_kill_9_of_client_and_runtime_is_swept_at_the_next_start(own_temp, processes, eventually):
    process = client(
        60, "print(executor._engine._connection._runtime.pid, flush=True)\ntime.sleep(60)"
    )
    runtime = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    os.kill(runtime, signal.SIGKILL)
    finish(process)
    eventually(lambda: processes(own_temp) == [])
    [left] = os.listdir(own_temp)
    hour_ago = time.time() - 3600
    os.utime(os.path.join(own_temp, left), (hour_ago, hour_ago))
    with SandboxExecutor(max_workers=1) as executor:
        executor.submit("1").result()
        assert len(os.listdir(own_temp)) == 1
        assert os.listdir(own_temp) != [left]


def test_the_end_of_the_interpreter_finishes_what_was_submitted(own_temp, processes):
    process = client(0.3, "print('last line', flush=True)")
    out, err = finish(process)
    assert (out, err, process.returncode) == ("last line\n", "", 0)
    assert nothing_left(own_temp, processes)


def test_what_fails_at_the_end_of_the_interpreter_has_its_own_error(own_temp):
    then = (
        "def tell(future):\n    error = future.exception()\n"
        "    print(type(error).__name__, str(error.__cause__).splitlines()[-2])\n"
        "def fail():\n    time.sleep(0.3); 1 / 0\n"
        "for work in (fail, 'import time; time.sleep(0.3); 1 / 0'):\n"
        "    executor.submit(work).add_done_callback(tell)\n"
    )
    out, err = finish(client(0.1, then))
    text = "ZeroDivisionError: division by zero"
    assert sorted(out.splitlines()) == [f"CellError {text}", f"ZeroDivisionError {text}"]
    assert err == ""


def test_submitting_at_the_end_of_the_interpreter_is_refused(own_temp):
    then = (
        "import atexit\n"
        "def late():\n    try: executor.submit('1')\n    except RuntimeError as e: print(e)\n"
        "atexit.register(late)\n"
    )
    out, err = finish(client(0.1, then))
    assert (out, err) == ("cannot schedule new futures after interpreter shutdown\n", "")


def test_ctrl_c_reaches_the_client_alone(own_temp, processes, eventually):
    then = (
        "try:\n    print('set', flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n"
        "    print([future.result().stdout for future in futures], flush=True)\n"
    )
    # As a terminal does it: the whole foreground process group gets the signal.
    process = client(0.5, then, start_new_session=True)
    assert process.stdout.readline() == "set\n"
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process) == ("['x\\n', 'x\\n', 'x\\n']\n", "")
    assert process.returncode == 0
    eventually(lambda: nothing_left(own_temp, processes))


def test_ctrl_c_while_the_block_waits_ends_what_runs(own_temp, processes, eventually):
    then = "with executor:\n    time.sleep(1)\n    print('set', flush=True)\n"
    process = client(300, then, start_new_session=True)
    assert process.stdout.readline() == "set\n"
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, err = finish(process)
    assert err.endswith("KeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT
    eventually(lambda: nothing_left(own_temp, processes))


def test_an_unhandled_exception_in_the_block_still_ends_everything(own_temp, processes):
    process = client(0.1, "with executor: 1/0")
    _, err = finish(process)
    assert "ZeroDivisionError" in err
    assert process.returncode == 1
    assert nothing_left(own_temp, processes)


def test_a_callback_that_exits_ends_no_thread_of_ours(lasting):
    def leave(future):
        raise SystemExit

    futures = [lasting.submit("import time; time.sleep(0.1)") for _ in range(3)]
    for future in futures:
        future.add_done_callback(leave)
    assert [future.result(10).error for future in futures] == [None] * 3
    assert lasting.submit("1").result(10).value == 1


def test_a_thread_that_cannot_be_started_is_tried_again(sharing, monkeypatch):
    def no_more(self):
        raise RuntimeError("can't start new thread")

    with sharing(max_workers=1) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_more)
            with pytest.raises(RuntimeError, match="start new thread"):
                executor.submit("1")
        assert executor.submit("2").result(20).value == 2


def test_a_forked_child_of_the_client_holds_nothing_up(own_temp, processes):
    executor = SandboxExecutor(max_workers=1)
    executor.submit("1").result(20)
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        begun = time.monotonic()
        executor.shutdown()
        assert time.monotonic() - begun < 5, "a limit of ten seconds, then a kill"
        assert not set(processes(own_temp)) - {child}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_one_that_has_few_descriptors_loses_no_future():
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
from mentis_pool import SandboxExecutor
executor = SandboxExecutor(max_workers=80)
futures = [executor.submit("import time; time.sleep(0.5)") for _ in range(80)]
print(len([future.exception(25) for future in futures]))
print(executor.submit("1").result(25).value)
executor.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "80\n1\n", done.stderr[-2000:]


def test_a_runtime_that_is_lost_again_and_again_is_started_after_a_longer_wait_each_time(
    executor, monkeypatch
):
    asked = []

    def backoff(failures):
        asked.append(failures)
        return 0.0

    monkeypatch.setattr("mentis_pool.engine.backoff", backoff)
    running = executor.submit(SLEEP)
    started(running)
    runtime_of(executor).kill()
    running.exception(20)
    assert executor.submit("1").result(20).value == 1
    assert asked == [1]
    waits = [min(connection.backoff(failures) for _ in range(50)) for failures in (1, 2, 4, 9)]
    assert waits == sorted(waits)
    assert waits[0] < 0.25 <= waits[2] < waits[3] <= 5.2
    assert len({connection.backoff(1) for _ in range(9)}) > 1, "they do not all come at once"


@pytest.mark.parametrize("started", [0, 1])
def test_threads_that_cannot_be_started_leave_none_behind(sharing, monkeypatch, started):
    executor = sharing(max_workers=2)
    before = set(threading.enumerate())
    start = threading.Thread.start
    left = [started]

    def few(thread):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", few)
        with pytest.raises(RuntimeError, match="can't start"):
            executor.submit("1")
    assert set(threading.enumerate()) == before
    assert executor.submit("1").result(20).value == 1
    executor.shutdown()
