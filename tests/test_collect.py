"""Each collector gets its own observations, in whatever order and from however many threads."""

from __future__ import annotations

import gc
import queue
import random
import threading
import time
import weakref

import pytest

from mentis_pool.collect import Collected, ends, router_of
from mentis_pool.mentis_v1 import (
    STILL_RUNS,
    EndObservation,
    ErrorObservation,
    ResultObservation,
    StartObservation,
    StreamObservation,
)


def start(action):
    return StartObservation(action_id=action)


def line(action, text):
    return StreamObservation(action_id=action, stream="stdout", line=text)


def result(action):
    return ResultObservation(action_id=action, exit_code=0, status="ok")


def collect(source, action, timeout=5.0):
    into = Collected()
    router_of(source).collect(source, action, into, time.monotonic() + timeout)
    return into


def test_what_belongs_to_others_stays_for_them():
    source = queue.Queue()
    for said in (start("a"), start("b"), line("b", "1"), line("a", "2"), result("b"), result("a")):
        source.put(said)
    assert collect(source, "a") == [start("a"), line("a", "2"), result("a")]
    assert collect(source, "b") == [start("b"), line("b", "1"), result("b")]
    assert source.empty()


@pytest.mark.parametrize(
    "last",
    [
        result("a"),
        ErrorObservation(action_id="a", data={"error": "EOF"}),
        EndObservation(action_id="a", data={"exit_code": -1, "error": "EOF"}),
        EndObservation(action_id="a", data={"exit_code": 0}),
    ],
)
def test_a_result_ends_a_collection_and_so_does_what_stands_for_it(last):
    assert ends(last)
    source = queue.Queue()
    for said in (start("a"), last, line("a", "after")):
        source.put(said)
    got = collect(source, "a")
    assert got == [start("a"), last]
    assert got.complete


def test_the_ten_seconds_of_an_original_do_not_end_it():
    late = {"error": f"Post: {STILL_RUNS}", "exit_code": -1}
    source = queue.Queue()
    said = [
        start("a"),
        ErrorObservation(action_id="a", data=late),
        EndObservation(action_id="a", data=late),
        line("a", "x"),
        result("a"),
    ]
    for each in said:
        source.put(each)
    assert collect(source, "a") == said


def test_a_timeout_gives_what_there_is_and_says_that_it_is_incomplete():
    source = queue.Queue()
    source.put(start("b"))
    source.put(start("a"))
    begun = time.monotonic()
    got = collect(source, "a", 0.2)
    assert 0.2 <= time.monotonic() - begun < 2
    assert got == [start("a")]
    assert not got.complete
    source.put(line("a", "x"))
    source.put(result("a"))
    router_of(source).collect(source, "a", got, 0.0)
    assert got == [start("a"), line("a", "x"), result("a")], "also where the time is over"
    assert got.complete


def test_a_collection_that_waits_hears_what_another_takes_for_it():
    source = queue.Queue()
    got = {}

    def one(action):
        got[action] = collect(source, action, 10)

    threads = [threading.Thread(target=one, args=(action,)) for action in "abc"]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    for action in "cba":
        source.put(result(action))
    for thread in threads:
        thread.join(5)
    assert got == {action: [result(action)] for action in "abc"}


@pytest.mark.parametrize("seed", range(5))
def test_none_is_lost_and_none_mixed_up_from_many_threads(seed):
    rng = random.Random(seed)
    source = queue.Queue()
    said = {
        f"a{i}": [start(f"a{i}"), *(line(f"a{i}", str(n)) for n in range(5)), result(f"a{i}")]
        for i in range(100)
    }
    got = {}

    def some(actions):
        for action in actions:
            got[action] = collect(source, action, 20)

    order = list(said)
    rng.shuffle(order)
    threads = [threading.Thread(target=some, args=(order[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    waiting = {action: list(observations) for action, observations in said.items()}
    while waiting:
        action = rng.choice(list(waiting))
        source.put(waiting[action].pop(0))
        if not waiting[action]:
            del waiting[action]
    for thread in threads:
        thread.join(20)
    assert got == said


def test_a_queue_has_one_router_and_neither_keeps_the_other():
    source = queue.Queue()
    assert router_of(source) is router_of(source)
    gone = weakref.ref(router_of(source))
    del source
    gc.collect()
    assert gone() is None
