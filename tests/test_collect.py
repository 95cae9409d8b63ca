"""Each collector gets its own observations, in whatever order and from however many threads."""

from __future__ import annotations

import gc
import queue
import random
import threading
import time
import weakref

import pytest

from mentis_pool import collect as collect_module
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
    router_of(source).collect(source, "a", got, time.monotonic() + 5)
    assert len(got) == 3, "nothing more is waited for"


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


class Watched(queue.Queue):
    """A queue of which a test knows who waits for it."""

    def wait_for(self, count):
        deadline = time.monotonic() + 5
        while len(self.not_empty._waiters) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def in_thread(call, *arguments):
    """What the call gives, once its thread is joined."""
    given = []
    thread = threading.Thread(target=lambda: given.append(call(*arguments)))
    thread.start()

    def joined():
        thread.join(5)
        assert given, "it still waits"
        return given[0]

    return joined


def test_what_nobody_collects_stays_in_the_queue_for_who_reads_it():
    source = queue.Queue()
    strange = object()
    for item in (start("b"), strange, None, start("a"), line("b", "1"), result("a"), result("b")):
        source.put(item)
    assert collect(source, "a") == [start("a"), result("a")]
    left = [source.get_nowait() for _ in range(source.qsize())]
    assert left == [start("b"), strange, None, line("b", "1"), result("b")]


def test_who_reads_the_queue_itself_is_woken_beside_those_that_collect():
    source = Watched()
    collecting = in_thread(collect, source, "a")
    source.wait_for(1)
    reading = in_thread(lambda: source.get(timeout=4))
    source.wait_for(2)
    begun = time.monotonic()
    # It wakes the one that came first, whose it is not.
    source.put(start("b"))
    assert reading() == start("b")
    assert time.monotonic() - begun < 2
    source.put(result("a"))
    assert collecting() == [result("a")]


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_one_that_waits_wakes_the_others(order):
    source = Watched()
    collecting = {}
    for action in "abc":
        collecting[action] = in_thread(collect, source, action)
        time.sleep(0.02)
    for action in order:
        begun = time.monotonic()
        source.put(result(action))
        assert collecting[action]() == [result(action)]
        assert time.monotonic() - begun < 2


def test_what_comes_after_the_result_of_a_collected_task_is_not_kept():
    source = queue.Queue()
    for n in range(100):
        for said in (start(f"a{n}"), result(f"a{n}")):
            source.put(said)
        assert collect(source, f"a{n}").complete
        source.put(line(f"a{n}", "late"))
        source.put(EndObservation(action_id=f"a{n}", data={"exit_code": 0}))
    source.put(result("b"))
    assert collect(source, "b").complete
    assert source.empty()
    assert list(router_of(source)._over) == ["b"]


def test_what_is_remembered_of_collected_tasks_is_bounded(monkeypatch):
    monkeypatch.setattr(collect_module, "_REMEMBERED", 10)
    source = queue.Queue()
    for n in range(100):
        source.put(result(f"a{n}"))
        assert collect(source, f"a{n}").complete
    assert len(router_of(source)._over) == 10


def test_a_collection_ends_in_time_while_others_fill_the_queue():
    source = queue.Queue()
    ending = threading.Event()

    def fill():
        while not ending.is_set():
            source.put(line("other", "x"))

    threads = [threading.Thread(target=fill, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    assert not collect(source, "a", 0.3)
    took = time.monotonic() - begun
    ending.set()
    for thread in threads:
        thread.join(5)
    assert took < 2
    assert source.qsize() > 0, "and takes nothing of theirs"


def test_a_bounded_queue_has_room_again_for_what_was_taken():
    source = queue.Queue(maxsize=2)
    source.put(start("a"))
    source.put(start("a"))
    filling = in_thread(lambda: [source.put(each, timeout=4) for each in (start("b"), result("a"))])
    assert collect(source, "a") == [start("a"), start("a"), result("a")]
    assert len(filling()) == 2
    assert source.get_nowait() == start("b")


def test_where_nothing_can_be_left_for_others_it_says_so():
    with pytest.raises(TypeError, match=r"queue\.Queue"):
        router_of(queue.SimpleQueue())


def test_a_queue_has_one_router_and_neither_keeps_the_other():
    source = queue.Queue()
    assert router_of(source) is router_of(source)
    gone = weakref.ref(router_of(source))
    del source
    gc.collect()
    assert gone() is None
