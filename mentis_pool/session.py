"""A stateful session: one sandbox, its cells in order."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mentis_pool.future import CellFuture

if TYPE_CHECKING:
    from mentis_pool.executor import SandboxExecutor
    from mentis_pool.pool_stream import Open


class Session:
    """A sandbox kept for cells in order: each finds what the earlier ones left.

    Made by `SandboxExecutor.session`; to be used as a context manager, which waits for what
    was submitted, or closed. Where
    its sandbox had to be replaced (its process died, or could not be interrupted), the
    next result is `StateLost`, and what is submitted after that finds a new sandbox.
    """

    def __init__(
        self,
        executor: SandboxExecutor,
        opened: Open,
        most: int,
        wait: bool,
        timeout: float | None,
    ) -> None:
        self._engine = executor._engine
        self._opened = opened
        self._view = copy.copy(executor)
        self._view._root = executor if executor._root is None else executor._root
        self._shared = _Shared(self._engine.open_session(opened, most, wait, timeout))

    def submit(self, cell: str, /, **variables: Any) -> CellFuture:
        """Run a cell after those that were submitted before.

        As `SandboxExecutor.submit`; besides, the future's ``result()`` may raise
        `StateLost`, and a closed session raises RuntimeError. ``In``, ``Out`` and ``_`` are as in a notebook.
        """
        if not isinstance(cell, str):
            raise TypeError(f"a session runs cells (source texts), not {type(cell).__name__}")
        return self._sent(lambda view: view.submit(cell, **variables))

    def shell(self, command: str) -> CellFuture:
        """Run a shell command, in the directory and environment of the session, in its turn.

        As `SandboxExecutor.shell`.
        """
        return self._sent(lambda view: view.shell(command))

    def _sent(self, submit: Callable[[SandboxExecutor], CellFuture]) -> CellFuture:
        self._check_open()
        self._view._lane = self._shared.lane
        future = submit(self._view)
        self._shared.futures.add(future)
        future.add_done_callback(self._shared.futures.discard)
        return future

    def _check_open(self) -> None:
        if self._shared.closed:
            raise RuntimeError("the session is closed")

    def options(self, **settings: Any) -> Session:
        """A view of this session with other settings for its tasks, as `SandboxExecutor.options`."""
        view = copy.copy(self)
        view._view = self._view.options(**settings)
        return view

    def interrupt(self) -> bool:
        """Raise KeyboardInterrupt in the cell that runs; the state stays.

        Returns:
            Whether one runs, as far as is known here.
        """
        return self._engine.interrupt_session(self._shared.lane)

    def restart(self) -> None:
        """Begin anew, in a new sandbox: what runs is ended (`SandboxDied`), what waits is cancelled.

        Raises:
            BrokenSandboxPool, RuntimeError: as `submit`.
        """
        self._check_open()
        self._shared.lane = self._engine.replace_session(self._shared.lane, self._opened)

    def close(self, wait: bool = False) -> None:
        """End the session and its sandbox.

        Args:
            wait: whether what was submitted is done before; otherwise what runs is
                ended (`SandboxDied`), what waits is cancelled.
        """
        self._shared.closed = True
        if wait:
            concurrent.futures.wait(self._shared.futures.copy())
        self._engine.close_session(self._shared.lane, "its session was closed")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is None)


@dataclasses.dataclass
class _Shared:
    """What the views of one session have in common."""

    lane: int
    closed: bool = False
    futures: set[CellFuture] = dataclasses.field(default_factory=set)
    """What was submitted and is not done."""
