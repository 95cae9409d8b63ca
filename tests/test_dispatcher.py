"""The reader thread wakes, reads, stops, and tells how it ended."""

from __future__ import annotations

import socket
import threading

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
