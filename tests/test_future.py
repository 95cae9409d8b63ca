"""Listening to a cell: live, from the beginning, from any number of threads."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from mentis_pool import CellFuture, End, Error, Result, Start, Stream
from mentis_pool.pool_stream import Cells
from mentis_pool.task import Settings, Task


def test_observations_are_complete_and_end_with_the_outcome(executor):
    future = executor.submit("print('a')\nimport sys\nprint('b', file=sys.stderr)\n1")
    said = list(future.observations())
    assert isinstance(said[0], Start)
    assert sorted((o.stream, o.text) for o in said if isinstance(o, Stream)) == [
        ("stderr", "b\n"),
        ("stdout", "a\n"),
    ]
    assert isinstance(said[-2], Result)
    assert isinstance(said[-1], End)
    assert said[-1].seconds == future.result().usage.running
    assert list(future.observations()) == said


def test_the_observations_of_a_cell_that_fails_end_with_its_failure(executor):
    said = list(executor.submit("1/0").observations())
    assert said[-2].failure.name == "ZeroDivisionError"
    said = list(executor.submit("import os; os._exit(4)").observations())
    assert isinstance(said[-2], Error)
    assert (said[-2].kind, said[-2].exit_code) == ("died", 4)


def test_any_number_of_threads_hear_all_of_it(executor):
    future = executor.submit("import time\nfor i in range(50):\n    print(i); time.sleep(0.005)")

    def listen(_):
        return "".join(o.text for o in future.observations() if isinstance(o, Stream))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(listen, range(8))) == {"".join(f"{i}\n" for i in range(50))}


def test_a_listener_who_comes_before_the_start_waits_and_is_woken_by_a_cancel(executor):
    busy = [executor.submit("import time; time.sleep(0.3)") for _ in range(2)]
    future = executor.submit("1")
    heard = []
    listener = threading.Thread(target=lambda: heard.append(list(future.observations())))
    listener.start()
    assert future.cancel()
    listener.join(10)
    assert heard == [[]]
    assert all(f.result().ok for f in busy)


def test_the_outcome_is_settled_when_all_was_heard(executor):
    for _ in range(50):
        future = executor.submit("1")
        for _ in future.observations():
            pass
        assert future.result(5).value == 1


def test_a_listener_misses_nothing_however_it_races_with_the_speaker():
    for _ in range(200):
        task = Task("t", 1, Cells([b""]), Settings(), None, 0.0)
        record, future = task.record, CellFuture(task, None)
        heard = []
        listener = threading.Thread(target=lambda f=future, h=heard: h.extend(f.observations()))
        listener.start()
        said = [Start(0.0), *(Stream("stdout", bytes([i])) for i in range(20)), End(0.0)]
        for observation in said:
            record.add(observation)
            future._heard()
        listener.join(10)
        assert heard == said


def test_it_knows_whether_it_has_callbacks():
    for cancelled in (False, True):
        future = CellFuture(Task("t", 1, Cells([b""]), Settings(), None, 0.0), Idle())
        assert not future.has_callbacks
        called = []
        if cancelled:
            future.cancel()
        future.add_done_callback(called.append)
        assert future.has_callbacks
        future.cancel()
        assert called == [future]


class Idle:
    def cancelled(self, task):
        pass

    def lead(self, task):
        pass


# ── what it is as any future ────────────────────────────────────────────────


def bare():
    task = Task("t", 0, Cells([b""]), Settings(), None, 0.0)
    return CellFuture(task, Idle())


def test_it_has_all_that_a_standard_future_begins_with():
    one, other = vars(bare()), vars(Future())
    for name in other.keys() - {"_condition"}:
        assert one[name] == other[name], name
    assert isinstance(one["_condition"], type(other["_condition"]))


def test_it_takes_less_than_half_of_a_standard_future():
    # The task and what is said of it are apart.
    task, took = Task("t", 0, Cells([b""]), Settings(), None, 0.0), []
    for make in (Future, lambda: CellFuture(task, Idle())):
        make()
        tracemalloc.start()
        made = [make() for _ in range(1000)]
        took.append(tracemalloc.get_traced_memory()[0] / len(made))
        tracemalloc.stop()
    assert took[1] < took[0] / 2


def test_everybody_who_waits_is_woken(eventually):
    future = bare()
    with ThreadPoolExecutor(40) as pool:
        waits = [pool.submit(future.result, 20) for _ in range(20)]
        waits += [pool.submit(future.exception, 20) for _ in range(10)]
        others = [pool.submit(wait, [future], 20) for _ in range(10)]
        with pytest.raises(FutureTimeout):
            future.result(0.05)
        eventually(lambda: len(future._condition._waiters) == 30)
        future.set_running_or_notify_cancel()
        future.set_result(5)
        assert [each.result(20) for each in waits] == [5] * 20 + [None] * 10
        assert all(each.result(20).done == {future} for each in others)
    assert not future._condition._waiters


def test_its_lock_is_one_that_a_thread_takes_again_and_no_other():
    condition = bare()._condition
    for use in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(RuntimeError):
            use()
    with condition, condition:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(condition.acquire, timeout=0.05).result() is False
        assert condition.wait(0.01) is False
        condition.notify_all()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(condition.acquire, False).result() is False
    assert condition.acquire(False)
    condition.release()
