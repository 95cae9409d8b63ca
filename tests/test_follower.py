"""A callback gets every piece, then the end; what it raises is logged once."""

from __future__ import annotations

import threading

from mentis_pool.follower import WINDOW, Follower
from mentis_pool.observations import Stream


def test_every_piece_then_the_end_in_their_order():
    got, ended = [], threading.Event()
    follower = Follower("t", lambda piece: got.append(piece.text), lambda count: None)
    for i in range(100):
        follower.put(Stream("stdout", str(i).encode()))
    follower.end(lambda: (got.append("end"), ended.set()))
    follower.run()
    assert ended.is_set()
    assert got == [*map(str, range(100)), "end"]


def test_credit_is_given_for_what_was_taken_and_often_enough():
    given = []
    follower = Follower("t", lambda piece: None, given.append)
    for _ in range(10):
        follower.put(Stream("stdout", b"x" * (WINDOW // 8)))
    follower.end(lambda: None)
    follower.run()
    assert sum(given) == 10 * (WINDOW // 8)
    assert all(credit >= WINDOW // 4 for credit in given)


def test_what_a_callback_raises_is_logged_once_and_it_is_called_again(caplog):
    calls = []

    def raising(piece):
        calls.append(piece)
        raise ValueError("of the callback")

    follower = Follower("t-9", raising, lambda count: None)
    for _ in range(3):
        follower.put(Stream("stdout", b"x"))
    follower.end(lambda: None)
    follower.run()
    assert len(calls) == 3
    assert [record.fields["task_id"] for record in caplog.records] == ["t-9"]


def test_what_would_end_a_thread_does_not_end_this_one():
    ended = threading.Event()

    def leave(piece):
        raise SystemExit

    follower = Follower("t", leave, lambda count: None)
    follower.put(Stream("stdout", b"x"))
    follower.end(ended.set)
    follower.run()
    assert ended.is_set()
