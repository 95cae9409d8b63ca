"""Listening to a cell: live, from the beginning, from any number of threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

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
