"""The future of a cell: a `concurrent.futures.Future` that also lets one listen."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

from mentis_pool.observations import Observation
from mentis_pool.results import CellResult

if TYPE_CHECKING:
    from mentis_pool.task import Record


class CellFuture(Future[CellResult]):
    """The outcome of a cell, and what it says until then.

    Attributes:
        task_id: as given by ``options(task_id=…)``, or made up.
        action_id: names this run at the runtime; None until it was sent.
        sandbox_id: the sandbox that it was sent to; None until then.
    """

    def __init__(self, task_id: str, record: Record) -> None:
        super().__init__()
        self.task_id = task_id
        self.action_id: str | None = None
        self.sandbox_id: str | None = None
        self._record = record
        self._listeners = 0

    def observations(self) -> Iterator[Observation]:
        """What the cell says, live, from its beginning; ends when all was said.

        Start first; then Stream, Display and Cut as they come; Result or Error,
        and End. Of each stream there are ``max_output`` bytes at most: then a Cut
        that tells how much is missing, then the kept end. Any number of threads
        may iterate, at any time; each gets all of it. For a future that was
        cancelled there is nothing.
        """
        said = self._record.said
        at = 0
        while True:
            while at < len(said):
                yield said[at]
                at += 1
            # All was said: the record ends before the future is settled, and
            # what is done without it (cancelled) says nothing more.
            if (self._record.ended or self.done()) and at >= len(said):
                return
            with self._condition:
                self._listeners += 1
                while at >= len(said) and not self._record.ended and not self._settled():
                    self._condition.wait()
                self._listeners -= 1

    def _settled(self) -> bool:
        """`done()`, for who holds the condition."""
        return self._state in ("CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED")

    def _heard(self) -> None:
        """Something was added to the record."""
        # A listener counts itself before it looks at the record, and this looks
        # after it was added to: one of the two sees the other.
        if self._listeners:
            with self._condition:
                self._condition.notify_all()
