"""What concurrent.futures promises, and what is promised besides: cancelling, stopping, retries, limits, the end."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
import weakref

import family
import pytest
import tenacity

from mentis_pool import (
    CellError,
    CellTimeout,
    DeadlineExceeded,
    QueueFull,
    QueueTimeout,
    SandboxDied,
    SandboxExecutor,
)
from mentis_pool.observations import Start

BOUND = 8.0


@pytest.fixture(scope="module")
def executor():
    with SandboxExecutor(max_workers=2) as executor:
        yield executor


@pytest.fixture(scope="module")
def single():
    """With one worker: what comes second waits."""
    with SandboxExecutor(max_workers=1) as executor:
        yield executor


@pytest.fixture(scope="module")
def marking():
    """What runs leaves marks on the disk, which the test looks at."""
    with SandboxExecutor(max_workers=2, isolation="process") as executor:
        yield executor


@pytest.fixture(scope="module")
def marking_single():
    with SandboxExecutor(max_workers=1, isolation="process") as executor:
        yield executor


@pytest.fixture
def own(own_temp, processes):
    """One that the test ends."""
    with SandboxExecutor(max_workers=2) as executor:
        yield executor
    assert processes(own_temp) == []


def busy(executor, workers=1):
    """Tasks that keep all workers until they are killed; returns how to do that."""
    running = [executor.submit(family.SLEEP) for _ in range(workers)]
    for future in running:
        family.worker_of(future)

    def end():
        for future in running:
            future.kill()
        concurrent.futures.wait(running, BOUND)

    return end


# ── cancel ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("waiting", [1, 60], ids=["travelling", "queued"])
def test_what_waits_is_cancelled_and_never_runs(marking_single, tmp_path, waiting):
    mark = tmp_path / "mark"
    end = busy(marking_single)
    before = [marking_single.submit(abs, -i) for i in range(waiting - 1)]
    cell = marking_single.submit(f"open({str(mark)!r}, 'a').close()")
    call = marking_single.submit(os.mkdir, str(mark) + "-call")
    for future in (cell, call):
        assert not future.running()
        assert future.cancel()
        assert future.cancelled()
        assert future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(0)
    end()
    assert [future.result(BOUND) for future in before] == list(range(waiting - 1))
    assert marking_single.submit("1").result(BOUND).value == 1
    assert os.listdir(tmp_path) == []


def test_true_means_that_it_is_ended_though_it_may_just_have_begun(marking, tmp_path):
    marking.submit(abs, marking.submit("1").result(BOUND).value).result(BOUND)
    cancelled, others = [], []
    for i in range(100):
        mark = tmp_path / str(i)
        if i % 2:
            future = marking.submit(
                f"import time; time.sleep(0.2); open({str(mark)!r}, 'w').close()"
            )
        else:
            future = marking.submit(lambda mark: (time.sleep(0.2), open(mark, "w").close()), mark)
        time.sleep(0.0002 * (i % 25))
        if future.cancel():
            cancelled.append(future)
        else:
            others.append(future)
            future.kill()
            assert future.exception(BOUND) is not None
    assert cancelled
    assert others
    time.sleep(0.5)
    assert marking.submit("1").result(BOUND).value == 1
    assert os.listdir(tmp_path) == []
    assert all(future.cancelled() for future in cancelled)


def test_what_runs_cannot_be_cancelled_and_only_that_is_running(single, shown):
    running = single.submit(family.WAIT, go=str(shown / "go"))
    waiting = single.submit("6")
    family.worker_of(running)
    assert (running.running(), waiting.running()) == (True, False)
    assert not running.cancel()
    assert running.running()
    (shown / "go").touch()
    assert running.result(BOUND).value == 5
    assert (running.running(), running.cancel()) == (False, False)
    assert waiting.result(BOUND).value == 6
    assert not waiting.running()


def test_no_more_are_running_than_there_are_workers(executor):
    futures = [executor.submit("import time; time.sleep(0.03)") for _ in range(20)]
    most = 0
    while not all(future.done() for future in futures):
        most = max(most, sum(future.running() for future in futures))
        time.sleep(0.001)
    assert 1 <= most <= 2


def test_waiters_of_a_cancelled_future_are_told_once(single):
    end = busy(single)
    future = single.submit("1")
    called = []
    future.add_done_callback(lambda _: called.append("before"))
    assert future.cancel()
    future.add_done_callback(lambda _: called.append("after"))
    # Also those of wait(), which asks for more than cancel() does.
    done, _ = concurrent.futures.wait([future], BOUND)
    assert done == {future}
    assert list(concurrent.futures.as_completed([future], BOUND)) == [future]
    end()
    single.submit("1").result(BOUND)
    assert called == ["before", "after"]


# ── callbacks ───────────────────────────────────────────────────────────────


def test_a_callback_may_submit_and_wait_for_room_of_none(sharing):
    with sharing(max_workers=1, max_queue=1) as executor:
        got = queue.Queue()

        def again(future):
            got.put(future.result().value)
            if future.result().value < 5:
                for _ in range(2):
                    executor.submit("i + 1", i=future.result().value).add_done_callback(again)

        executor.submit("1").add_done_callback(again)
        assert sorted(got.get(timeout=BOUND) for _ in range(31)) == sorted(
            i + 1 for i in range(5) for _ in range(2**i)
        )


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_harms_nobody(executor, error):
    def bad(future):
        raise error

    # Not done before that is asked: then it would be called, and raise, right here.
    futures = [executor.submit(f"import time; time.sleep(0.2); {i}") for i in range(3)]
    for future in futures:
        future.add_done_callback(bad)
    assert [future.result(BOUND).value for future in futures] == [0, 1, 2]
    assert executor.submit(abs, -1).result(BOUND) == 1


@pytest.mark.parametrize("wait", [True, False])
def test_a_callback_may_shut_down(own_temp, eventually, wait):
    executor = SandboxExecutor(max_workers=1)
    first, second = executor.submit("1"), executor.submit("import time; time.sleep(0.1); 2")
    first.add_done_callback(lambda _: executor.shutdown(wait=wait))
    assert second.result(BOUND).value == 2
    eventually(lambda: os.listdir(own_temp) == [])
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit("3")


# ── interrupt and kill ──────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["cell", "call"])
def test_an_interrupt_is_a_keyboardinterrupt_in_that_task_alone(executor, shown, kind):
    other = executor.submit(family.WAIT, go=str(shown / "go"))
    hit = executor.submit(family.SLEEP if kind == "cell" else family.asleep)
    family.started(hit, other)
    assert hit.interrupt()
    error = hit.exception(BOUND)
    if kind == "cell":
        assert (type(error), error.name) == (CellError, "KeyboardInterrupt")
    else:
        assert type(error) is KeyboardInterrupt
    assert not hit.interrupt()
    # Its slot is free while the other still runs.
    assert executor.submit("6").result(BOUND).value == 6
    assert not other.done()
    (shown / "go").touch()
    assert other.result(BOUND).value == 5


@pytest.mark.parametrize("kind", ["cell", "call"])
def test_a_kill_ends_that_task_alone_whatever_it_does(executor, shown, kind):
    other = executor.submit(family.WAIT, go=str(shown / "go"))
    if kind == "cell":
        hit = executor.submit(
            family.NAMED
            + "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            + "while True:\n    try: time.sleep(60)\n    except BaseException: pass"
        )
    else:
        hit = executor.submit(family.asleep)
    worker = family.worker_of(hit)
    family.worker_of(other)
    # Not even where it may be run again.
    assert hit.kill()
    error = hit.exception(BOUND)
    assert type(error) is SandboxDied
    assert error.signal == signal.SIGKILL
    assert not hit.kill()
    worker.wait(BOUND)
    assert executor.submit("6").result(BOUND).value == 6
    assert not other.done()
    (shown / "go").touch()
    assert other.result(BOUND).value == 5


def test_what_was_killed_is_not_run_again(executor):
    hit = executor.options(retries=5, idempotent=True).submit(family.SLEEP)
    family.worker_of(hit)
    assert hit.kill()
    assert type(hit.exception(BOUND)) is SandboxDied
    assert hit.exception().result.attempt == 1


def test_what_waits_is_neither_interrupted_nor_killed(single):
    end = busy(single)
    waiting = single.submit("1")
    assert (waiting.interrupt(), waiting.kill()) == (False, False)
    end()
    assert waiting.result(BOUND).value == 1


@pytest.mark.parametrize("how", ["kill_workers", "terminate_workers"])
def test_all_workers_can_be_ended_and_nothing_more_is_taken(own_temp, processes, how):
    executor = SandboxExecutor(max_workers=2)
    running = [executor.submit(family.SLEEP), executor.submit(family.asleep)]
    waiting = [executor.submit("1") for _ in range(40)]
    for future in running:
        family.worker_of(future)
    getattr(executor, how)()
    number = signal.SIGKILL if how == "kill_workers" else signal.SIGTERM
    for future in running:
        error = future.exception(BOUND)
        assert type(error) is SandboxDied
        assert error.signal == number
    concurrent.futures.wait(waiting, BOUND)
    assert all(future.cancelled() for future in waiting)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit("1")
    executor.shutdown()
    getattr(executor, how)()
    assert processes(own_temp) == []


# ── retries ─────────────────────────────────────────────────────────────────


def dies_at_first(mark, times=1):
    """Ends its process as often as this; then says how often it ran."""
    with open(mark, "a") as file:
        file.write("x")
    count = os.path.getsize(mark)
    if count <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return count


@pytest.mark.parametrize("kind", ["cell", "call"])
def test_what_may_be_run_again_is(marking, tmp_path, caplog, kind):
    caplog.set_level(logging.DEBUG, "mentis_pool")
    mark = str(tmp_path / "mark")
    view = marking.options(retries=2, idempotent=True)
    if kind == "call":
        future = view.submit(dies_at_first, mark, 2)
        assert future.result(BOUND) == 3
    else:
        cell = (
            "import os\nopen(mark, 'a').write('x')\nprint(os.path.getsize(mark), flush=True)\n"
            "if os.path.getsize(mark) < 3: os._exit(1)\nos.path.getsize(mark)"
        )
        future = view.submit(cell, mark=mark)
        result = future.result(BOUND)
        assert (result.value, result.attempt, result.stdout) == (3, 3, "3\n")
    said = [record for record in caplog.records if "task_retried" in record.getMessage()]
    assert len(said) == 2


def test_it_is_run_again_so_often_and_no_more(marking, tmp_path):
    mark = tmp_path / "mark"
    future = marking.options(retries=2, idempotent=True).submit(dies_at_first, str(mark), 9)
    error = future.exception(BOUND)
    assert type(error) is SandboxDied
    assert error.result.attempt == 3
    assert mark.read_text() == "xxx"


def test_what_has_begun_is_not_run_again_unless_it_may(marking, tmp_path):
    mark = tmp_path / "mark"
    future = marking.options(retries=5).submit(dies_at_first, str(mark))
    assert type(future.exception(BOUND)) is SandboxDied
    assert mark.read_text() == "x"


def raises_at_first(mark, times=1):
    with open(mark, "a") as file:
        file.write("x")
    if os.path.getsize(mark) <= times:
        raise ConnectionError(os.path.getsize(mark))
    return os.path.getsize(mark)


def test_a_tasks_own_exception_is_not_retried_unless_asked(marking, tmp_path):
    mark = tmp_path / "mark"
    view = marking.options(retries=5, idempotent=True)
    assert view.submit(raises_at_first, str(mark)).exception(BOUND).args == (1,)
    assert mark.read_text() == "x"
    error = view.submit("1 / 0").exception(BOUND)
    assert isinstance(error, ZeroDivisionError)
    assert error.result.attempt == 1


def test_a_policy_retries_what_it_names_and_waits_as_it_says(marking, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "mentis_pool")
    mark = tmp_path / "mark"
    policy = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ConnectionError),
        stop=tenacity.stop_after_attempt(5),
        wait=tenacity.wait_fixed(0.15),
    )
    begun = time.monotonic()
    future = marking.options(retries=policy).submit(raises_at_first, str(mark), 2)
    # It counts as running from its first start on, and no slot is kept for it.
    assert future.result(BOUND) == 3
    assert 0.3 <= time.monotonic() - begun < BOUND
    assert len([r for r in caplog.records if "task_retried" in r.getMessage()]) == 2
    other = marking.options(retries=policy).submit("1 / 0").exception(BOUND)
    assert isinstance(other, ZeroDivisionError)
    assert other.result.attempt == 1


def test_a_policy_that_has_enough_leaves_the_last_outcome(marking, tmp_path):
    mark = tmp_path / "mark"
    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(3))
    future = marking.options(retries=policy).submit(raises_at_first, str(mark), 9)
    error = future.exception(BOUND)
    assert (type(error), error.args) == (ConnectionError, (3,))
    assert mark.read_text() == "xxx"


def test_what_waits_to_be_run_again_does_not_run_and_can_be_killed(marking, eventually):
    policy = tenacity.Retrying(wait=tenacity.wait_fixed(1000))
    future = marking.options(retries=policy).submit("1 / 0")
    eventually(lambda: future._state == "RUNNING" and not future.running())
    assert not future.cancel()
    assert not future.interrupt()
    assert future.kill()
    assert isinstance(future.exception(BOUND), ZeroDivisionError)
    assert not future.kill()


def test_a_policy_may_retry_deaths_and_results(marking, tmp_path):
    policy = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(SandboxDied), stop=tenacity.stop_after_attempt(3)
    )
    future = marking.options(retries=policy).submit(dies_at_first, str(tmp_path / "a"), 2)
    assert future.result(BOUND) == 3
    policy = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda result: result < 3),
        stop=tenacity.stop_after_attempt(5),
    )
    assert (
        marking.options(retries=policy)
        .submit(raises_at_first, str(tmp_path / "b"), 0)
        .result(BOUND)
        == 3
    )


def test_a_task_that_is_run_again_keeps_its_place(marking_single, tmp_path):
    again = marking_single.options(retries=1, idempotent=True)
    first = again.submit(dies_at_first, str(tmp_path / "mark"))
    behind = [marking_single.submit(time.sleep, 0.01) for _ in range(40)]
    assert first.result(BOUND) == 2
    concurrent.futures.wait(behind, BOUND)
    *_, start = (said.time for said in first.observations() if isinstance(said, Start))
    starts = [next(future.observations()).time for future in behind]
    # Those only that began before it was back at the runtime, where all of these were but a few.
    assert sum(each < start for each in starts) < 16


def test_what_a_policy_is_shown_is_what_the_future_gives(executor, monkeypatch):
    rebuilt, shown = [], []
    rebuild = executor._engine._rebuild
    monkeypatch.setattr(
        executor._engine, "_rebuild", lambda *given: rebuilt.append(1) or rebuild(*given)
    )

    def is_enough(state):
        shown.append(state.outcome.result())
        return len(shown) < 3

    policy = tenacity.Retrying(retry=is_enough)
    given = executor.options(retries=policy).submit(list, "abc").result(BOUND)
    assert shown == [["a", "b", "c"]] * 3
    assert given is shown[-1]
    assert len(rebuilt) == 3, "once for each attempt"


def test_a_future_that_is_retried_resolves_once(marking_single, tmp_path):
    view = marking_single.options(retries=1, idempotent=True)
    called = []
    first = view.submit(dies_at_first, str(tmp_path / "mark"))
    first.add_done_callback(lambda future: called.append(future.result()))
    behind = [view.submit(time.time) for _ in range(60)]
    assert first.result(BOUND) == 2
    concurrent.futures.wait(behind, BOUND)
    assert called == [2]


def test_a_policy_that_fails_itself_leaves_the_outcome(executor):
    def bad(state):
        raise RuntimeError("a bug of the user's")

    policy = tenacity.Retrying(retry=bad)
    error = executor.options(retries=policy).submit("1 / 0").exception(BOUND)
    assert isinstance(error, ZeroDivisionError)


# ── limits of time ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("waiting", [0, 60], ids=["travelling", "queued"])
def test_each_limit_has_its_own_error(single, waiting):
    end = busy(single)
    before = [single.submit(abs, -i) for i in range(waiting)]
    begun = time.monotonic()
    queued = single.options(queue_timeout=0.2, timeout=0.1).submit("1")
    late = single.options(deadline=0.2).submit(abs, -1)
    both = single.options(queue_timeout=0.2, deadline=30).submit("1")
    fine = single.options(queue_timeout=30, deadline=30, timeout=30).submit("1")
    assert type(queued.exception(BOUND)) is QueueTimeout
    assert type(late.exception(BOUND)) is DeadlineExceeded
    assert type(both.exception(BOUND)) is QueueTimeout
    assert 0.2 <= time.monotonic() - begun < BOUND / 2
    assert isinstance(queued.exception(), TimeoutError)
    assert queued.exception().result.usage.running == 0
    end()
    assert fine.result(BOUND).value == 1
    assert [future.result(BOUND) for future in before] == list(range(waiting))


def test_a_limit_of_running_does_not_count_the_waiting(single):
    first = single.submit("import time; time.sleep(0.4)")
    second = single.options(timeout=0.3).submit("2")
    assert second.result(BOUND).value == 2
    assert first.done()
    error = single.options(timeout=0.1).submit(family.asleep).exception(BOUND)
    assert type(error) is CellTimeout
    assert error.timeout == 0.1


def test_a_deadline_counts_both(single):
    single.submit("import time; time.sleep(0.3)")
    begun = time.monotonic()
    error = single.options(deadline=0.5).submit("import time; time.sleep(60)").exception(BOUND)
    assert type(error) is DeadlineExceeded
    assert 0.5 <= time.monotonic() - begun < BOUND
    assert error.result.usage.running < 0.4


def test_a_deadline_holds_for_all_attempts(marking, tmp_path):
    policy = tenacity.Retrying(wait=tenacity.wait_fixed(0.1))
    begun = time.monotonic()
    future = marking.options(retries=policy, deadline=0.5).submit("1 / 0")
    assert future.exception(BOUND) is not None
    assert 0.3 < time.monotonic() - begun < BOUND / 2


# ── back-pressure ───────────────────────────────────────────────────────────


def test_one_too_many_is_refused(sharing):
    with sharing(max_workers=1, max_queue=2, when_full="raise") as executor:
        end = busy(executor)
        waiting = [executor.submit("1"), executor.submit(abs, -1)]
        with pytest.raises(QueueFull, match="max_queue=2"):
            executor.submit("1")
        with pytest.raises(queue.Full):
            executor.shell("true")
        assert waiting[0].cancel()
        third = executor.submit("3")
        end()
        assert third.result(BOUND).value == 3
        assert executor.submit("4").result(BOUND).value == 4


def test_many_threads_never_have_more_waiting_and_all_get_theirs(sharing):
    with sharing(max_workers=2, max_queue=3) as executor:
        pool, most = executor._engine._pool, []
        stop = threading.Event()

        def watch():
            while not stop.wait(0.0005):
                most.append(pool.waiting)

        watcher = threading.Thread(target=watch)
        watcher.start()

        def work(name):
            futures = [executor.submit(os.path.join, name, str(i)) for i in range(25)]
            return [future.result(BOUND) for future in futures]

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            for name, got in zip("abcdefgh", threads.map(work, "abcdefgh"), strict=True):
                assert got == [f"{name}/{i}" for i in range(25)]
        stop.set()
        watcher.join()
        assert max(most) <= 3


def test_who_waits_for_room_hears_of_the_end(sharing):
    executor = sharing(max_workers=1, max_queue=1)
    busy(executor)
    executor.submit("1")
    heard = queue.Queue()

    def submit():
        try:
            heard.put(executor.submit("2"))
        except RuntimeError as exc:
            heard.put(exc)

    thread = threading.Thread(target=submit)
    thread.start()
    time.sleep(0.1)
    executor.kill_workers()
    assert "after shutdown" in str(heard.get(timeout=BOUND))
    thread.join()
    executor.shutdown()


# ── fairness ────────────────────────────────────────────────────────────────


def stamp(mark, i):
    with open(mark, "a") as file:
        file.write(f"{i}\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_start_in_the_order_of_their_submission(marking_single, marking, tmp_path, workers):
    chosen = marking_single if workers == 1 else marking
    mark = tmp_path / "order"
    cell = f"open({str(mark)!r}, 'a').write(f'{{i}}\\n')\nimport time; time.sleep(0.005)"
    end = busy(chosen, workers)
    futures = []
    for i in range(60):
        if i % 3:
            futures.append(chosen.submit(stamp, str(mark), i))
        else:
            futures.append(chosen.submit(cell, i=i))
    end()
    concurrent.futures.wait(futures, BOUND)
    order = [int(line) for line in mark.read_text().split()]
    assert sorted(order) == list(range(60))
    if workers == 1:
        assert order == list(range(60))
    # Another sandbox that was given an earlier one may need longer to begin.
    starts = [next(future.observations()).time for future in futures]
    for i, start in enumerate(starts):
        assert sum(earlier > start for earlier in starts[:i]) < workers


def test_sessions_tasks_and_others_start_in_the_order_of_their_submission(single):
    with single.session() as session:
        end = busy(single, 1)
        # Many more than are at the runtime ahead of those that run.
        futures = [(session if i in (50, 100) else single).submit("") for i in range(150)]
        end()
        concurrent.futures.wait(futures, BOUND)
    starts = [next(future.observations()).time for future in futures]
    assert starts == sorted(starts)


# ── the end ─────────────────────────────────────────────────────────────────

EXIT = """
import atexit, logging, os, sys, threading, time
from mentis_pool import SandboxExecutor
executor = SandboxExecutor(max_workers=2)
"""
AT_EXIT = {
    "cells and calls beyond max_workers": (
        "def done(future): print('done', flush=True)\n"
        "for i in range(40):\n"
        "    executor.submit('import time; time.sleep(0.01)').add_done_callback(done)\n"
        "    executor.submit(time.sleep, 0.01).add_done_callback(done)\n",
        "done\n" * 80,
    ),
    "output": (
        "view = executor.options(on_output=lambda piece: print(piece.text, end='', flush=True))\n"
        "for i in range(5): view.submit('import time; time.sleep(0.05); print(5)')\n",
        "5\n" * 5,
    ),
    "a session": (
        "session = executor.session()\n"
        "for i in range(3):\n"
        "    future = session.submit('import time; time.sleep(0.05); x = globals().get(\"x\", 0) + 1; x')\n"
        "    future.add_done_callback(lambda future: print(future.result().value, flush=True))\n",
        "1\n2\n3\n",
    ),
    "submit in atexit": (
        "executor.submit('1').result()\n"
        "@atexit.register\n"
        "def late():\n"
        "    try: executor.submit('1')\n"
        "    except RuntimeError as exc: print(exc)\n",
        "cannot schedule new futures after shutdown\n",
    ),
    "submit in a callback": (
        "def late(future):\n"
        "    time.sleep(0.3)\n"
        "    try: executor.submit('1')\n"
        "    except RuntimeError as exc: print(exc, flush=True)\n"
        "executor.submit('import time; time.sleep(0.3)').add_done_callback(late)\n",
        "cannot schedule new futures after shutdown\n",
    ),
    "an executor that was never used": (
        "other = SandboxExecutor()\n"
        "@atexit.register\n"
        "def late():\n"
        "    for each in (other, SandboxExecutor()):\n"
        "        try: each.submit('1')\n"
        "        except RuntimeError as exc: print(exc)\n",
        "cannot schedule new futures after shutdown\n" * 2,
    ),
    "a thread that submits on": (
        "def work():\n"
        "    try:\n"
        "        while True: executor.submit('1').result()\n"
        "    except RuntimeError as exc: print(exc, flush=True)\n"
        "threading.Thread(target=work).start()\n"
        "executor.submit('1').result()\n",
        "cannot schedule new futures after shutdown\n",
    ),
    "a runtime that dies": (
        "executor.submit('1').result()\n"
        "os.kill(executor._engine._connection._runtime.pid, 9)\n"
        "logging.disable()\n"
        "for i in range(3): executor.submit(abs, i).add_done_callback(lambda f: print(f.result(), flush=True))\n",
        "0\n1\n2\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", AT_EXIT)
def test_what_was_submitted_is_finished_at_the_interpreters_exit(own_temp, processes, what):
    at_exit(sys.executable, what)
    assert processes(own_temp) == []


def at_exit(python, what):
    text, expected = AT_EXIT[what]
    out, err, code = family.script(EXIT + text, python)
    assert (err, code) == ("", 0)
    out = out.replace("after interpreter shutdown", "after shutdown")
    assert sorted(out.splitlines()) == sorted(expected.splitlines())


def test_a_forgotten_executor_is_collected_by_its_references_alone(own_temp, eventually):
    gc.collect()
    gc.disable()
    try:
        executor = SandboxExecutor(max_workers=1)
        with executor.session() as session:
            session.submit("1").result(BOUND)
        executor.options(timeout=5).submit("1").result(BOUND)
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
        futures = [executor.submit("import time; time.sleep(0.05)") for _ in range(3)]
        gone = weakref.ref(executor)
        del executor, session
        assert gone() is None
        assert [future.exception(BOUND) for future in futures] == [None] * 3
        eventually(lambda: os.listdir(own_temp) == [])
    finally:
        gc.enable()
