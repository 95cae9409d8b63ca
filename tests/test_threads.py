"""Calls that block, in a few threads."""

from __future__ import annotations

import threading
import time

import pytest

from mentis_pool import keepers as module
from mentis_pool.keepers import Keepers


@pytest.fixture
def broken():
    return []


def test_each_call_is_made_at_the_same_time_up_to_the_most(broken):
    keepers = Keepers(3, broken.append)
    together = threading.Barrier(3, timeout=5)
    done = []
    for _ in range(3):
        keepers.do(lambda: done.append(together.wait()))
    keepers.close()
    assert sorted(done) == [0, 1, 2]
    assert broken == []


def test_no_more_threads_than_the_most_and_every_call_is_made(broken):
    keepers = Keepers(2, broken.append)
    names, done = set(), []

    def call():
        names.add(threading.get_ident())
        time.sleep(0.001)
        done.append(1)

    for _ in range(100):
        keepers.do(call)
    keepers.close()
    assert len(done) == 100
    assert len(names) <= 2


def test_a_thread_is_used_again(broken):
    keepers = Keepers(10, broken.append)
    names = set()
    for _ in range(20):
        done = threading.Event()
        keepers.do(lambda done=done: (names.add(threading.get_ident()), done.set()))
        assert done.wait(5)
        time.sleep(0.002)
    assert len(names) < 5
    keepers.close()


def test_threads_without_work_end_and_come_back(broken, monkeypatch, eventually):
    monkeypatch.setattr(module, "IDLE", 0.02)
    keepers = Keepers(3, broken.append)
    for _ in range(3):
        done = threading.Event()
        keepers.do(done.set)
        assert done.wait(5)
        eventually(lambda: not keepers._threads)
    for _ in range(200):
        done = threading.Event()
        keepers.do(done.set)
        assert done.wait(5), "a call is never left to a thread that ends"
        time.sleep(0.0199)
    keepers.close()


def test_a_call_that_raises_is_told_and_the_rest_goes_on(broken):
    keepers = Keepers(1, broken.append)
    done = []
    keepers.do(lambda: 1 / 0)
    keepers.do(lambda: done.append(1))
    keepers.close()
    assert [type(exc) for exc in broken] == [ZeroDivisionError]
    assert done == [1]


def test_where_no_thread_can_be_started_it_is_told(broken, monkeypatch):
    keepers = Keepers(2, broken.append)

    def start(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            keepers.do(print)
    done = threading.Event()
    keepers.do(done.set)
    assert done.wait(5)
    keepers.close()
