"""Whatever bytes a cell's process sends, only that cell hears of it."""

from __future__ import annotations

import pytest

from benchmarks.attack_catalog import SOCKETS
from mentis_pool import CellTimeout, SandboxError, SandboxExecutor

_BROKEN_FRAMES = (
    SOCKETS
    + """
import random
chance = random.Random(seed)
frames = [
    Display(Bundle({'text/plain': 'x'}, {'image/png': b'y'}), 'id', True), Cut('displays', 5),
    wire.Done(number(), Result(b'v', '1', 'int', None, Failure('E', 'v', 't')), End(0.5, 0.5, 9)),
    wire.Done(number(), Error('payload', 'why'), End(0.0)), Part(b'p'), wire.Idle(),
]
sent = bytearray(b''.join(map(wire.pack, chance.choices(frames, k=5))))
for _ in range(chance.randint(1, 6)):
    sent[chance.randrange(len(sent))] = chance.randrange(256)
for its in sockets(): its.sendall(sent)
"""
)


@pytest.mark.filterwarnings("ignore::mentis_pool.IsolationWarning")
def test_frames_with_wrong_bytes_are_of_the_cell_that_sends_them_alone():
    with SandboxExecutor(2) as executor, executor.session() as neighbour:
        hostile = executor.options(timeout=0.15)
        neighbour.submit("n = 0").result(20)
        for seed in range(40):
            future = hostile.submit(_BROKEN_FRAMES, seed=seed)
            assert neighbour.submit("n += 1; n").result(20).value == seed + 1
            error = future.exception(20)
            # A frame that is one all the same, an outcome that it may give, or none.
            known = (SandboxError, CellTimeout)
            assert error is None or isinstance(error, known) or error.result is not None, error
            assert executor.submit("1 + 1").result(20).value == 2
