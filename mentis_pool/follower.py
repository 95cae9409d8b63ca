"""Calls one task's ``on_output``, in a thread of its own, and lets the cell go on as it returns."""

from __future__ import annotations

import queue
from collections.abc import Callable

from mentis_pool.errors import in_words
from mentis_pool.events import log
from mentis_pool.observations import Stream

WINDOW = 256 * 1024
"""Bytes of output on their way to a callback; then the cell waits for it."""


class Follower:
    """The reader of one task's output; `run` is to be called in a thread that may wait.

    Args:
        task_id: for the log.
        on_output: the user's function.
        credit: called with an action and the number of its bytes that were taken.
    """

    def __init__(
        self,
        task_id: str,
        on_output: Callable[[Stream], object],
        credit: Callable[[int, int], None],
    ) -> None:
        self._task_id = task_id
        self._on_output = on_output
        self._credit = credit
        self._pieces: queue.SimpleQueue[tuple[int, Stream] | Callable[[], None]] = (
            queue.SimpleQueue()
        )

    def put(self, action: int, piece: Stream) -> None:
        """The next piece, which this action wrote; never waits."""
        self._pieces.put((action, piece))

    def end(self, then: Callable[[], None]) -> None:
        """There is no more: call ``then`` when the last piece was taken."""
        self._pieces.put(then)

    def run(self) -> None:
        """Call the function with each piece, until `end`, which comes for every task."""
        of = taken = 0
        raised = False
        while isinstance(got := self._pieces.get(), tuple):
            action, piece = got
            if action != of:
                # The task is run again.
                of, taken = action, 0
            try:
                self._on_output(piece)
            except BaseException as exc:  # noqa: BLE001 - the user's function; the task goes on
                if not raised:
                    log("warning", "on_output_raised", task_id=self._task_id, error=in_words(exc))
                raised = True
            taken += len(piece.data)
            if taken >= WINDOW // 4:
                self._credit(action, taken)
                taken = 0
        got()
