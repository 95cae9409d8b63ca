"""Calls that block, in a few threads."""

from __future__ import annotations

import threading
import time

import pytest

from mentis_pool import threads as module
from mentis_pool.threads import Threads


@pytest.fixture
def broken():
    return []


def a_few(broken, most=None):
    threads = Threads("few", broken.append, most)
    threads.start()
    return threads


def test_each_call_is_made_at_the_same_time_up_to_the_most(broken):
    threads = a_few(broken, 3)
    together = threading.Barrier(3, timeout=5)
    done = []
    for _ in range(3):
        threads.do(lambda: done.append(together.wait()))
    threads.close()
    assert sorted(done) == [0, 1, 2]
    assert broken == []


def test_no_more_threads_than_the_most_and_every_call_is_made(broken):
    threads = a_few(broken, 2)
    names, done = set(), []

    def call():
        names.add(threading.get_ident())
        time.sleep(0.001)
        done.append(1)

    for _ in range(100):
        threads.do(call)
    threads.close()
    assert len(done) == 100
    assert len(names) <= 2


def test_a_thread_is_used_again(broken):
    threads = a_few(broken, 10)
    names = set()
    for _ in range(20):
        done = threading.Event()
        threads.do(lambda done=done: (names.add(threading.get_ident()), done.set()))
        assert done.wait(5)
        time.sleep(0.002)
    assert len(names) < 5
    threads.close()


def test_threads_without_work_end_and_come_back(broken, monkeypatch, eventually):
    monkeypatch.setattr(module, "IDLE", 0.005)
    threads = a_few(broken, 3)
    for _ in range(3):
        done = threading.Event()
        threads.do(done.set)
        assert done.wait(5)
        eventually(lambda: len(threads._threads) == 1)
    for _ in range(200):
        done = threading.Event()
        threads.do(done.set)
        assert done.wait(5), "a call is never left to a thread that ends"
        time.sleep(0.0049)
    threads.close()


def test_a_call_that_raises_is_told_and_the_rest_goes_on(broken):
    threads = a_few(broken, 1)
    done = []
    threads.do(lambda: 1 / 0)
    threads.do(lambda: done.append(1))
    threads.close()
    assert [type(exc) for exc in broken] == [ZeroDivisionError]
    assert done == [1]


def test_where_no_thread_can_be_started_one_that_is_there_does_it_in_its_turn(broken, monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    threads = a_few(broken)
    holding, held = threading.Event(), threading.Event()
    threads.do(lambda: (held.set(), holding.wait(5)))
    assert held.wait(5)
    monkeypatch.setattr(threading.Thread, "start", start)
    done = threading.Event()
    threads.do(done.set)
    assert not done.wait(0.05)
    holding.set()
    assert done.wait(5)
    threads.close()
    with pytest.raises(RuntimeError, match="can't start"):
        a_few(broken)


def test_one_can_wait_until_all_calls_have_returned(broken):
    threads = a_few(broken, 2)
    done = []
    for i in range(5):
        threads.do(lambda i=i: (time.sleep(0.01), done.append(i)))
    threads.drain()
    assert sorted(done) == [0, 1, 2, 3, 4]
    threads.close()


def test_it_knows_its_own(broken):
    threads, seen = a_few(broken), []
    threads.do(lambda: seen.append(threading.current_thread()))
    threads.drain()
    assert seen[0] in threads
    assert threading.current_thread() not in threads
    threads.close()
