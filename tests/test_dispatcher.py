"""The reader thread wakes, reads, stops, and tells how it ended."""

from __future__ import annotations

import socket
import sys
import threading
import time

import pytest
from interrupts import each_interrupt

from mentis_pool.dispatcher import Dispatcher


class Scene:
    def __init__(self):
        self.ours, self.theirs = socket.socketpair()
        self.patience = self.own = None
        self.woken = threading.Event()
        self.read = threading.Event()
        self.ended = []
        self.dispatcher = Dispatcher(
            self._readable, self._woken, lambda: self.own, self.ended.append
        )

    def fileno(self):
        return self.ours.fileno()

    def wait(self):
        return self.patience

    def _readable(self):
        if self.ours.recv(100) == b"fault":
            raise OSError("broken")
        self.read.set()

    def _woken(self):
        if not self.woken.is_set():
            self.dispatcher.watch(self)
        self.woken.set()


def test_it_wakes_reads_and_stops():
    scene = Scene()
    scene.dispatcher.start()
    scene.dispatcher.wake()
    assert scene.woken.wait(5)
    scene.theirs.send(b"x")
    assert scene.read.wait(5)
    scene.dispatcher.stop()
    scene.dispatcher.join(5)
    assert scene.ended == [None]
    scene.dispatcher.wake()  # of no use any more, and no harm
    scene.ours.close()
    scene.theirs.close()


def test_a_fault_ends_it_and_is_told():
    scene = Scene()
    scene.dispatcher.start()
    scene.dispatcher.wake()
    assert scene.woken.wait(5)
    scene.theirs.send(b"fault")
    scene.dispatcher.join(5)
    assert [str(exc) for exc in scene.ended] == ["broken"]
    scene.ours.close()
    scene.theirs.close()


def test_waking_never_waits_however_often():
    scene = Scene()
    for _ in range(100_000):
        scene.dispatcher.wake()
    scene.dispatcher.start()
    scene.dispatcher.stop()
    scene.dispatcher.join(5)
    assert scene.ended == [None]
    scene.ours.close()
    scene.theirs.close()


def test_what_it_watches_is_read_when_its_time_has_come():
    scene = Scene()
    times = []
    scene.patience = 0.05
    scene._readable = None
    scene.dispatcher._readable = lambda: (times.append(1), len(times) == 3 and scene.read.set())
    scene.dispatcher.start()
    scene.dispatcher.wake()
    assert scene.read.wait(5)
    scene.dispatcher.stop()
    scene.dispatcher.join(5)
    scene.ours.close()
    scene.theirs.close()


@pytest.fixture
def watching():
    """A dispatcher that watches a stream, and nothing is to be read."""
    scene = Scene()
    scene.dispatcher.start()
    scene.dispatcher.wake()
    assert scene.woken.wait(5)
    yield scene
    scene.dispatcher.stop()
    scene.dispatcher.join(5)
    scene.ours.close()
    scene.theirs.close()


def led(scene):
    """Send something while another thread may lead, until it was read; the threads that read it."""
    readers, sent = [], []

    def read():
        scene.ours.recv(100)
        readers.append(threading.current_thread())

    def done():
        # Only now that the thread does not read it.
        if not sent:
            sent.append(scene.theirs.send(b"x"))
        return bool(readers)

    scene.dispatcher._readable = read
    until = time.monotonic() + 10
    while not readers and time.monotonic() < until:
        scene.dispatcher.lead(read, done)
    return readers


needs_epoll = pytest.mark.skipif(sys.platform != "linux", reason="others have no epoll(7)")


@needs_epoll
def test_who_leads_reads_and_the_thread_sleeps(watching):
    assert led(watching) == [threading.current_thread()]


@needs_epoll
def test_who_has_led_leaves_the_rest_to_the_thread(watching):
    watching.dispatcher.lead(watching._readable, lambda: False)
    assert not watching.read.is_set()
    watching.theirs.send(b"x")
    assert watching.read.wait(5)


@needs_epoll
def test_what_who_leads_does_not_read_is_read_by_the_thread(watching):
    def nothing():
        raise ZeroDivisionError

    watching.theirs.send(b"x")
    assert watching.read.wait(5)
    watching.read.clear()

    def done():
        watching.theirs.send(b"x")
        return False

    with pytest.raises(ZeroDivisionError):
        watching.dispatcher.lead(nothing, done)
    assert watching.read.wait(5)


@needs_epoll
def test_an_interrupt_of_who_leads_at_any_moment_leaves_the_rest_to_the_thread(watching):
    def lead():
        turns = iter([False, False])
        watching.dispatcher.lead(watching._readable, lambda: next(turns, True))

    for where in each_interrupt((Dispatcher.lead, Dispatcher._lead), lead):
        watching.theirs.send(b"x")
        assert watching.read.wait(5), where
        watching.read.clear()
        # Until it waits again.
        with watching.dispatcher._turn:
            pass


@needs_epoll
def test_what_is_left_to_be_done_without_anything_to_read_wakes_the_thread(watching):
    watching.woken.clear()
    watching.dispatcher._woken = watching.woken.set
    watching.dispatcher._readable = lambda: setattr(watching, "patience", None)
    watching.patience = 0.0
    watching.dispatcher.lead(watching._readable, lambda: True)
    assert watching.woken.wait(5)


@needs_epoll
def test_nobody_leads_while_the_thread_does_something(watching):
    busy, go_on = threading.Event(), threading.Event()
    watching.dispatcher._readable = lambda: (watching.ours.recv(9), busy.set(), go_on.wait(5))
    watching.theirs.send(b"x")
    assert busy.wait(5)
    asked = []
    watching.dispatcher.lead(lambda: None, lambda: asked.append(1) or True)
    go_on.set()
    assert asked == []


def test_nobody_leads_after_the_end():
    scene = Scene()
    scene.dispatcher.start()
    scene.dispatcher.wake()
    assert scene.woken.wait(5)
    scene.dispatcher.stop()
    scene.dispatcher.join(5)
    asked = []
    scene.dispatcher.lead(lambda: None, lambda: asked.append(1) or True)
    assert asked == []
    scene.ours.close()
    scene.theirs.close()
