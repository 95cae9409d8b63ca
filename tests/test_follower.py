"""A callback gets every piece, then the end; what it raises is logged once."""

from __future__ import annotations

import threading

from mentis_pool.follower import WINDOW, Follower
from mentis_pool.observations import Stream


def test_every_piece_then_the_end_in_their_order():
    got, ended = [], threading.Event()
    follower = Follower("t", lambda piece: got.append(piece.text), lambda action, count: None)
    for i in range(100):
        follower.put(7, Stream("stdout", str(i).encode()))
    follower.end(lambda: (got.append("end"), ended.set()))
    follower.run()
    assert ended.is_set()
    assert got == [*map(str, range(100)), "end"]


def test_credit_is_given_for_what_was_taken_and_often_enough():
    given = []
    follower = Follower("t", lambda piece: None, lambda *credit: given.append(credit))
    for _ in range(10):
        follower.put(7, Stream("stdout", b"x" * (WINDOW // 8)))
    follower.end(lambda: None)
    follower.run()
    assert {action for action, _ in given} == {7}
    assert sum(count for _, count in given) == 10 * (WINDOW // 8)
    assert all(count >= WINDOW // 4 for _, count in given)


def test_credit_is_for_the_attempt_whose_output_was_taken():
    given = []
    follower = Follower("t", lambda piece: None, lambda *credit: given.append(credit))
    for action, pieces in ((7, 3), (9, 2)):
        for _ in range(pieces):
            follower.put(action, Stream("stdout", b"x" * (WINDOW // 8)))
    follower.end(lambda: None)
    follower.run()
    assert given == [(7, WINDOW // 4), (9, WINDOW // 4)], "what the first did not use is no more"


def test_what_a_callback_raises_is_logged_once_and_it_is_called_again(caplog):
    calls = []

    def raising(piece):
        calls.append(piece)
        raise ValueError("of the callback")

    follower = Follower("t-9", raising, lambda action, count: None)
    for _ in range(3):
        follower.put(7, Stream("stdout", b"x"))
    follower.end(lambda: None)
    follower.run()
    assert len(calls) == 3
    assert [record.fields["task_id"] for record in caplog.records] == ["t-9"]


def test_what_would_end_a_thread_does_not_end_this_one():
    ended = threading.Event()

    def leave(piece):
        raise SystemExit

    follower = Follower("t", leave, lambda action, count: None)
    follower.put(7, Stream("stdout", b"x"))
    follower.end(ended.set)
    follower.run()
    assert ended.is_set()
