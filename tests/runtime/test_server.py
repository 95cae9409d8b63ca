"""What comes in a frame, as the server hands it on; what it does with it is in `test_turns`."""

from __future__ import annotations

import pytest

from mentis_pool.pool_stream import LONG, Cells, Open, PickledCall, Run
from mentis_pool.runtime.server import _on_its_own

FRAME = 1 << 20
"""Bytes of a frame in which something is long."""


def a_call(size):
    return PickledCall(memoryview(bytes(FRAME))[:size])


def test_a_small_call_does_not_keep_the_long_frame_that_it_came_in():
    run = Run(1, 1, a_call(100))
    own = _on_its_own(run, FRAME)
    assert own == run
    assert isinstance(own.work.pickled, bytes)


@pytest.mark.parametrize(
    ("work", "frame"),
    [(a_call(100), LONG), (a_call(FRAME - 100), FRAME), (Cells([b"1"]), FRAME)],
    ids=["of a short frame", "a long one", "a cell"],
)
def test_of_what_keeps_little_besides_there_is_no_copy(work, frame):
    run = Run(1, 1, work)
    assert _on_its_own(run, frame) is run


@pytest.mark.parametrize("size", [100, FRAME - 100])
def test_an_initializer_which_stays_keeps_itself_alone(size):
    opened = Open(1, "reuse", initializer=a_call(size))
    own = _on_its_own(opened, 200)
    assert own == opened
    assert isinstance(own.initializer.pickled, bytes)
