"""SandboxExecutor: a thin handle on an engine."""

from __future__ import annotations

import copy
import dataclasses
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor
from typing import Any, Literal

import structlog

from mentis_pool.address import parse
from mentis_pool.connection import Connection, local, remote
from mentis_pool.engine import Engine
from mentis_pool.errors import BrokenSandboxPool, MentisPoolError
from mentis_pool.future import CellFuture
from mentis_pool.observations import Stream
from mentis_pool.payload import pickle_variables
from mentis_pool.pool_stream import MAX_RUN
from mentis_pool.results import CellResult
from mentis_pool.runtime.local import cpus
from mentis_pool.task import Settings, Task
from mentis_pool.text import to_bytes

MAX_OUTPUT = 10 * 1024 * 1024
_UNSET: Any = object()


class SandboxExecutor(Executor):
    """Runs cells of Python in sandboxes, through the interface of concurrent.futures.

    Args:
        max_workers: sandboxes at most, so cells running at once at most; None
            for the CPUs that this process may use.
        runtime: the address of a runtime, like ``http://host:5266``: one that
            ``mentis-pool serve`` serves, or an original Mentis runtime. None: what
            MENTIS_RUNTIME_URL says, otherwise the embedded runtime, a process of
            its own, which starts at the first submit.
        token: what the runtime at that address asks for; None: what
            MENTIS_RUNTIME_TOKEN says.
        state: "fresh" (what None means): each cell runs in a newly forked
            process, and nothing that an earlier cell did is there. "reuse":
            the process is kept, each cell gets a clean namespace; imported
            modules, files and the environment stay as the last cell left them.
        timeout: seconds that a cell may run (not wait); None for no limit.
        retries: how often a runtime's start, a request to it, and a task that was
            lost before it began, are tried again.
        max_output: bytes kept of each of stdout and stderr, beginning and end;
            None for all.
        preload: modules imported once, before any cell; each cell finds them imported.

    Raises:
        ValueError, TypeError: an argument is none of these.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        runtime: str | None = None,
        token: str | None = None,
        state: Literal["fresh", "reuse"] | None = None,
        timeout: float | None = None,
        retries: int = 2,
        max_output: int | None = MAX_OUTPUT,
        preload: Sequence[str] = (),
    ) -> None:
        if max_workers is None:
            max_workers = cpus()
        _check_count("max_workers", max_workers, 1)
        _check_count("retries", retries, 0)
        if max_output is not None:
            _check_count("max_output", max_output, 0)
        url = os.environ.get("MENTIS_RUNTIME_URL") if runtime is None else runtime
        address = None if not url and runtime is None else parse(url or "")
        if token is not None and (not isinstance(token, str) or not token.isprintable()):
            raise ValueError("token must be text without control characters")
        token = os.environ.get("MENTIS_RUNTIME_TOKEN") or None if token is None else token
        if state not in (None, "fresh", "reuse"):
            raise ValueError(f"state must be 'fresh', 'reuse' or None, not {state!r}")
        if isinstance(preload, str) or not all(isinstance(name, str) for name in preload):
            raise TypeError(f"preload must be a list of module names, not {preload!r}")
        modules = list(preload)
        if modules and address is not None:
            raise ValueError(
                "preload= is for the embedded runtime; give it to 'mentis-pool serve --preload'"
            )
        threads = max(1, cpus() // max_workers)
        self._max_output = max_output
        self._settings = Settings(timeout=_checked_timeout(timeout))

        def connect(ending: threading.Event) -> Connection:
            if address is None:
                return local(modules, threads)
            return remote(address, token, retries, ending)

        self._engine = Engine(connect, state or "fresh", max_workers, retries)
        self._root = self
        # A forgotten executor finishes what was submitted and stops; at the
        # interpreter's exit the engine sees to it itself.
        weakref.finalize(self, self._engine.abandon).atexit = False

    def submit(self, cell: str, /, **variables: Any) -> CellFuture:  # type: ignore[override]
        """Run a cell.

        Args:
            cell: the source text, as for IPython: magics, ``!command``, await.
            variables: become names in the cell; anything that pickles.

        Returns:
            A `CellFuture`, whose ``result()`` gives a `CellResult` or raises:

            - `CellError`: the cell raised; for a builtin exception this is one too
            - `CellTimeout`: it ran for too long
            - `SandboxError`: its process died, or what became of it is not known
            - `RuntimeUnavailable`: no runtime could be started

        Raises:
            TypeError: the cell is no str.
            PayloadError: a variable cannot travel; it is named.
            ValueError: cell, variables and stdin are over 60 MiB together.
            RuntimeError: after `shutdown`.
        """
        if not isinstance(cell, str):
            raise TypeError(f"a cell is source text, a str, not {_described(cell)}")
        return self._submit([cell], variables)

    def _submit(self, cells: Sequence[str], variables: dict[str, Any]) -> CellFuture:
        """Run several cells one after the other in one sandbox, as one task."""
        settings = self._settings
        sources = [to_bytes(cell) for cell in cells]
        pickles = pickle_variables(variables) if variables else {}
        size = sum(map(len, sources)) + sum(map(len, pickles.values())) + len(settings.stdin or "")
        if size > MAX_RUN:
            raise ValueError(
                f"the cell, its variables and its stdin have {size} bytes, over the limit of {MAX_RUN}"
            )
        task = Task(
            key=settings.task_id or secrets.token_hex(6),
            sources=sources,
            variables=pickles,
            settings=settings,
            max_output=self._max_output,
            now=time.monotonic(),
            context=structlog.contextvars.get_contextvars() or None,
        )
        future = task.future = CellFuture(task.key, task.record)
        self._engine.submit(task)
        return future

    def map(  # type: ignore[override]
        self,
        cells: Iterable[str],
        /,
        *,
        timeout: float | None = None,
        buffersize: int | None = None,
    ) -> Iterator[CellResult]:
        """Run each cell; give their results in order, each as soon as it is there.

        Args:
            cells: source texts.
            timeout: seconds from now until which a result may come.
            buffersize: how many cells are taken ahead of the results; None for
                all of them, at once.

        Raises:
            TypeError: ``cells`` is one text or a function; it names what to use.
            TimeoutError: from the iterator: a result did not come in time.

        From the iterator also what a cell's ``Future.result()`` raises. Where it
        stops, the cells that wait are cancelled.
        """
        if isinstance(cells, (str, bytes)):
            raise TypeError(
                "map() takes a list of cells, not one text: for a single cell use "
                "submit(cell), or map([cell])"
            )
        if callable(cells):
            raise TypeError(f"map() takes a list of cells (source texts), not {_described(cells)}")
        if buffersize is not None:
            _check_count("buffersize", buffersize, 1)
        deadline = None if timeout is None else time.monotonic() + timeout
        source = iter(cells)
        futures: deque[CellFuture] = deque()
        for cell in source:
            futures.append(self.submit(cell))
            if buffersize is not None and len(futures) >= buffersize:
                break
        return _results(self, source, futures, deadline)

    def run(self, cells: Iterable[str]) -> list[CellResult]:
        """Run each cell; give all results, in order. A cell that fails has an ``error`` in its own.

        Raises:
            TypeError: as `map`.
        """
        if isinstance(cells, (str, bytes)) or callable(cells):
            raise TypeError(f"run() takes a list of cells (source texts), not {_described(cells)}")
        return [_result_of(future) for future in [self.submit(cell) for cell in cells]]

    def options(
        self,
        *,
        timeout: float | None = _UNSET,
        task_id: str | None = _UNSET,
        stdin: str | None = _UNSET,
        on_output: Callable[[Stream], object] | None = _UNSET,
        argv: Sequence[str] | None = _UNSET,
        retries: int = _UNSET,
    ) -> SandboxExecutor:
        """A view of this executor: the same sandboxes, other settings for its tasks.

        Args:
            timeout: seconds that a cell may run.
            task_id: names the task on its future and in every log event.
            stdin: text that the cell reads; without it reading finds the end at once.
            on_output: called with each piece of output (`Stream`: ``.stream``,
                ``.text``, ``.data``) as it appears, all of it, in a thread of
                the task's own. A slow one slows the cell, and the future waits
                for it; what it raises is logged.
            argv: run the text as ``python argv[0] …`` would: plain Python,
                ``__name__ == "__main__"``, ``sys.argv``, an exit code. A code
                other than 0 is a `CellError` named SystemExit.
            retries: how often the cell is run again where its outcome would be a
                `SandboxError`, though it may have begun; 0 unless it is set.

        What is not given stays as it is here.
        """
        given: dict[str, Any] = {
            "timeout": _checked_timeout(timeout) if timeout is not _UNSET else _UNSET,
            "task_id": task_id,
            "stdin": stdin,
            "on_output": on_output,
            "argv": tuple(argv) if argv is not _UNSET and argv is not None else argv,
            "retries": retries,
        }
        if retries is not _UNSET:
            _check_count("retries", retries, 0)
        for name, kind in (("task_id", str), ("stdin", str)):
            if given[name] is not _UNSET and not isinstance(given[name], (kind, type(None))):
                raise TypeError(f"{name} must be a str, not {_described(given[name])}")
        if on_output is not _UNSET and on_output is not None and not callable(on_output):
            raise TypeError(f"on_output must be callable, not {_described(on_output)}")
        if isinstance(argv, str) or (argv is not _UNSET and argv is not None and not argv):
            raise TypeError(f"argv must be a list that begins with the script's name, not {argv!r}")
        view = copy.copy(self)
        view._settings = dataclasses.replace(
            self._settings, **{k: v for k, v in given.items() if v is not _UNSET}
        )
        return view

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more cells, and stop when those that were taken have ended.

        Args:
            wait: return only when nothing is left, no thread and no process.
            cancel_futures: cancel the cells that wait.
        """
        self._engine.shutdown(cancel_futures)
        if wait:
            self._engine.join()


def _results(
    executor: SandboxExecutor,
    source: Iterator[str],
    futures: deque[CellFuture],
    deadline: float | None,
) -> Iterator[CellResult]:
    try:
        while futures:
            # Popped before the wait, so that no list here keeps what was given out.
            future = futures.popleft()
            try:
                left = None if deadline is None else deadline - time.monotonic()
                result = future.result(left)
            except BaseException:
                future.cancel()
                raise
            del future
            for cell in source:
                futures.append(executor.submit(cell))
                break
            yield result
            del result
    finally:
        for future in futures:
            future.cancel()


def _result_of(future: CellFuture) -> CellResult:
    try:
        error = future.exception()
    except CancelledError:
        error = BrokenSandboxPool("the cell was cancelled by a shutdown")
    if error is None:
        return future.result()
    assert isinstance(error, MentisPoolError), error
    return error.result if error.result is not None else CellResult(error=error)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {_described(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def _checked_timeout(timeout: object) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool):
        raise TypeError(f"timeout must be a number of seconds or None, not {_described(timeout)}")
    if not timeout > 0:
        raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
    return float(timeout)


def _described(value: object) -> str:
    name = getattr(value, "__qualname__", None)
    kind = type(value).__name__
    return f"the {kind} {name}" if name else f"{kind} {value!r}"[:80]
