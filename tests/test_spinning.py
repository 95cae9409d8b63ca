"""Who waits finds what comes, whether it looks or sleeps, and waits no longer than it is to."""

from __future__ import annotations

import selectors
import socket
import threading
import time

import pytest

from mentis_pool import spinning


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    selector = spinning.Selector()
    selector.register(ours, selectors.EVENT_READ)
    yield selector, ours, theirs
    selector.close()
    ours.close()
    theirs.close()


def test_what_is_there_is_found_at_once(pair):
    selector, ours, theirs = pair
    assert selector.select(0) == []
    theirs.send(b"x")
    for timeout in (None, 5, 0, -1):
        assert [key.fileobj for key, _ in selector.select(timeout)] == [ours]


def test_after_a_short_wait_it_looks_before_it_sleeps(pair, monkeypatch):
    selector, ours, theirs = pair
    theirs.send(b"x")
    assert selector.select(5)
    ours.recv(1)
    # Only who looks finds what comes in this way.
    monkeypatch.setattr(spinning, "SPIN", 5.0)
    monkeypatch.setattr(spinning, "give_way", lambda: theirs.send(b"x"))
    assert [key.fileobj for key, _ in selector.select(10)] == [ours]


def test_after_a_long_wait_it_sleeps_at_once(pair, monkeypatch):
    selector, _, theirs = pair
    assert selector.select(0.01) == []
    monkeypatch.setattr(spinning, "give_way", lambda: pytest.fail("it looked"))
    sender = threading.Timer(0.05, theirs.send, [b"x"])
    sender.start()
    assert selector.select(5)
    sender.join()


def test_where_nothing_comes_it_looks_once_for_a_while_and_then_sleeps(pair, monkeypatch):
    selector, ours, theirs = pair
    looks = []
    monkeypatch.setattr(spinning, "give_way", lambda: looks.append(1))
    theirs.send(b"x")
    assert selector.select(5)
    ours.recv(1)
    begun = time.monotonic()
    assert selector.select(0.05) == []
    assert 0.04 < time.monotonic() - begun < 5
    assert looks
    looks.clear()
    assert selector.select(0.01) == []
    assert looks == []
