"""SandboxExecutor: a thin handle on an engine."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import secrets
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor
from functools import partial
from typing import Any, Literal, overload

import structlog
import tenacity

from mentis_pool.address import parse
from mentis_pool.connection import Connection, Isolation, local, remote
from mentis_pool.engine import Engine
from mentis_pool.errors import (
    BrokenSandboxPool,
    MentisPoolError,
    PayloadError,
    RuntimeUnavailable,
)
from mentis_pool.files import check_environment, check_name, check_names
from mentis_pool.future import CallFuture, CellFuture
from mentis_pool.limits import Limits
from mentis_pool.observations import Stream
from mentis_pool.payload import Call, pack_call, pickle_variables
from mentis_pool.pool import CALLS, CELLS
from mentis_pool.pool_stream import MAX_RESULT, MAX_RUN, Cells, Open, PickledCall, Shell, Work
from mentis_pool.rebuild import rebuild
from mentis_pool.results import CellResult, SandboxUsage
from mentis_pool.runtime.local import cpus
from mentis_pool.session import Session
from mentis_pool.task import Settings, Task
from mentis_pool.text import to_bytes
from mentis_pool.threads import Threads
from mentis_pool.trust import Trust
from mentis_pool.walls import LEVELS, Wall, report

MAX_OUTPUT = 10 * 1024 * 1024
_UNSET: Any = object()


class SandboxExecutor(Executor):
    """Runs cells and calls in sandboxes, through the interface of concurrent.futures.

    Args:
        max_workers: tasks running at once at most; None for the CPUs that this
            process may use.
        initializer: a callable, or a cell, run once in each new worker before its first
            task. What a cell names there is there for every cell. ``limits`` and
            ``timeout`` hold for it as for a task. One that fails breaks the executor:
            `BrokenSandboxPool`.
        initargs: arguments of the callable.
        max_tasks_per_child: so many tasks run in one worker, then a new one takes its
            place; None for no limit.
        runtime: the address of a runtime, like ``http://host:5266``: one that
            ``mentis-pool serve`` serves, or an original Mentis runtime. None: what
            MENTIS_RUNTIME_URL says, otherwise the embedded runtime, a process of
            its own, which starts at the first submit.
        token: what the runtime at that address asks for; None: what
            MENTIS_RUNTIME_TOKEN says.
        state: "fresh" (what None means for cells): each task runs in a newly forked
            process, and nothing that an earlier one did is there. "reuse" (what None
            means for calls): the process is kept, each cell gets a clean namespace;
            imported modules, files and the environment stay as the last task left them,
            so what a hostile call does to its process the calls after it there may feel.
            "new": each task has a sandbox of its own, namespaces and all.
            A sandbox that has run a cell never runs calls.
        timeout: seconds that a task may run (not wait); None for no limit.
        retries: how often a runtime's start, a request to it, and a task that was
            lost before it began (see `options`), are tried again.
        max_output: bytes kept of each of stdout and stderr, beginning and end;
            None for all.
        max_result: bytes of what one call, or a chunk of `map`, may return or raise, pickled.
            This process holds all of it: with None, any number, a hostile call may fill its memory.
        max_queue: tasks that may wait at once; None for any number.
        when_full: "block": `submit` waits then; "raise": it raises `QueueFull`. A
            submit in a callback never waits.
        trust: what may come back from a call besides plain data and what the
            documentation lists: types, and names of packages. With "all" whatever comes
            back is unpickled, and **a sandbox may then run code in your process**.
        preload: modules imported once, before any task; each finds them imported.
        isolation: how the embedded runtime keeps sandboxes apart from the machine and from
            each other: "bubblewrap" (namespaces), "landlock" (where those are not allowed),
            "process" (no wall). Naming one insists on it: otherwise `RuntimeUnavailable`.
            "auto": the strongest that works, with an `IsolationWarning` where that is
            not the first. `isolation_report` says what it holds.
        network: "none", or "host" for the machine's.
        expose: paths that sandboxes may read at the embedded runtime, besides the system,
            Python, and what ``sys.path`` and the working directory have.
        limits: what each sandbox may use, see `Limits`; None for what that has without
            arguments. A task that uses more ends with `ResourceLimitExceeded`.

    Raises:
        ValueError, TypeError: an argument is none of these.
        PayloadError: the initializer cannot travel.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | str | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        runtime: str | None = None,
        token: str | None = None,
        state: Literal["fresh", "reuse", "new"] | None = None,
        timeout: float | None = None,
        retries: int = 2,
        max_output: int | None = MAX_OUTPUT,
        max_result: int | None = MAX_RESULT,
        max_queue: int | None = None,
        when_full: Literal["block", "raise"] = "block",
        trust: Iterable[type | str] | Literal["all"] = (),
        preload: Sequence[str] = (),
        isolation: Literal["auto", "bubblewrap", "landlock", "process"] = "auto",
        network: Literal["none", "host"] = "none",
        expose: Sequence[str | os.PathLike[str]] = (),
        limits: Limits | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = cpus()
        _check_workers(max_workers)
        _check_count("retries", retries, 0)
        for name, value, least in (
            ("max_output", max_output, 0),
            ("max_result", max_result, 1),
            ("max_queue", max_queue, 1),
            ("max_tasks_per_child", max_tasks_per_child, 1),
        ):
            if value is not None:
                _check_count(name, value, least)
        url = os.environ.get("MENTIS_RUNTIME_URL") if runtime is None else runtime
        address = None if not url and runtime is None else parse(url or "")
        if token is not None and (not isinstance(token, str) or not token.isprintable()):
            raise ValueError("token must be text without control characters")
        token = os.environ.get("MENTIS_RUNTIME_TOKEN") or None if token is None else token
        if state not in (None, "fresh", "reuse", "new"):
            raise ValueError(f"state must be 'fresh', 'reuse', 'new' or None, not {state!r}")
        if when_full not in ("block", "raise"):
            raise ValueError(f"when_full must be 'block' or 'raise', not {when_full!r}")
        if isinstance(preload, str) or not all(isinstance(name, str) for name in preload):
            raise TypeError(f"preload must be a list of module names, not {preload!r}")
        if limits is None:
            limits = Limits()
        elif not isinstance(limits, Limits):
            raise TypeError(f"limits must be a Limits, not {_described(limits)}")
        modules = list(preload)
        if modules and address is not None:
            raise ValueError(
                "preload= is for the embedded runtime; give it to 'mentis-pool serve --preload'"
            )
        isolated = _isolation(isolation, network, expose)
        if isolated != Isolation() and address is not None:
            raise ValueError(
                "isolation=, network= and expose= are for the embedded runtime; "
                "give them to 'mentis-pool serve'"
            )
        threads = max(1, cpus() // max_workers)
        trusted = Trust.of(trust)
        self._max_output = max_output
        self._max_result = max_result
        self._max_workers = max_workers
        self._settings = Settings(timeout=_checked_seconds("timeout", timeout), retries=retries)
        self._lane = CELLS
        # The runtime gets these when it starts; what comes later travels with the calls.
        self._path = frozenset(sys.path)
        # A fresh worker has one task anyway.
        first = _initializer(initializer, initargs)
        self._opened = Open(0, "session", None, first, limits, self._settings.timeout)

        def opened(lane: int, of: Literal["fresh", "reuse", "new"]) -> Open:
            tasks = max_tasks_per_child if of == "reuse" else None
            return Open(lane, of, tasks, first, limits, self._settings.timeout)

        def connect(ending: threading.Event, keepers: Threads) -> Connection:
            if address is None:
                return local(modules, threads, isolated, retries, ending)
            return remote(address, token, retries, ending, keepers)

        self._engine = Engine(
            connect,
            {CELLS: opened(CELLS, state or "fresh"), CALLS: opened(CALLS, state or "reuse")},
            max_workers,
            lambda pickled, call: rebuild(pickled, call, trusted),
            max_queue,
            when_full,
        )
        # Made up once: the system's random numbers cost as much as a pickle.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._root: SandboxExecutor | None = None
        """What a view keeps alive."""
        # A forgotten executor finishes what was submitted and stops; at the
        # interpreter's exit the engine sees to it itself.
        weakref.finalize(self, self._engine.abandon).atexit = False

    # ── submitting ──────────────────────────────────────────────────────────

    @overload
    def submit(self, cell: str, /, **variables: Any) -> CellFuture: ...
    @overload
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CallFuture: ...
    def submit(
        self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> CellFuture | CallFuture:
        """Run a cell, or call a callable.

        Args:
            fn: the cell's source text, as for IPython: magics, ``!command``, await; or
                what is to be called, with ``args`` and ``kwargs``: anything callable that
                cloudpickle carries.
            kwargs: of a cell, variables: they become names in it; anything that pickles.

        Returns:
            Of a cell a `CellFuture`, whose ``result()`` gives a `CellResult` or raises:

            - `CellError`: the cell raised; for a builtin exception this is one too
            - `CellTimeout`, `QueueTimeout`, `DeadlineExceeded`: it ran, waited, or both,
              for too long
            - `ResourceLimitExceeded`: it used more than it may
            - `SandboxError`: its process died, or what became of it is not known
            - `RuntimeUnavailable`, `RuntimeRejected`: no runtime could be had

            Of a call a `CallFuture`, whose ``result()`` gives what it returned, or
            raises what it raised, or one of the above, or

            - `PayloadError`: something of it cannot travel, or may not be rebuilt here

        Raises:
            TypeError: ``fn`` is neither.
            PayloadError: a variable cannot travel; it is named.
            ValueError: all that is to be sent has more than 1 GiB.
            QueueFull: too many wait, and the executor is to raise then.
            BrokenSandboxPool: the executor broke.
            RuntimeError: after `shutdown`.
        """
        if isinstance(fn, str):
            if args:
                raise TypeError("a cell takes keyword arguments only: they become its variables")
            return self._submit([fn], kwargs)
        if isinstance(fn, _Chunk):
            return self._submit_call(fn.fn, args, kwargs, chunk=True)
        if not callable(fn):
            raise TypeError(
                f"submit() takes a cell (source text, a str) or a callable, not {_described(fn)}"
            )
        return self._submit_call(fn, args, kwargs, chunk=False)

    def shell(self, command: str) -> CellFuture:
        """Run a shell command; its exit code is in the result, and is no error.

        Raises:
            TypeError: it is no str. As `submit` besides.
        """
        if not isinstance(command, str):
            raise TypeError(f"a shell command is text, a str, not {_described(command)}")
        if "\0" in command:
            raise ValueError("a shell command cannot hold a NUL character")
        return self._send_cell(Shell(to_bytes(command)), len(command))

    def _submit(
        self, cells: Sequence[str], variables: dict[str, Any], path: str | None = None
    ) -> CellFuture:
        """Run several cells one after the other in one sandbox, as one task.

        With ``argv`` the script is the one at ``path``; without that, at ``argv[0]``.
        """
        sources = [to_bytes(cell) for cell in cells]
        pickles = pickle_variables(variables) if variables else {}
        argv = self._settings.argv
        args = None if argv is None else [to_bytes(arg) for arg in argv]
        size = sum(map(len, [*sources, *pickles.values(), *(args or ())]))
        place = None if path is None else to_bytes(path)
        return self._send_cell(Cells(sources, pickles, args, place), size)

    def _send_cell(self, work: Work, size: int) -> CellFuture:
        task = self._task(work, size, self._lane)
        future = task.future = CellFuture(task, self._engine)
        self._engine.submit(task)
        return future

    def _submit_call(
        self, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any], chunk: bool
    ) -> CallFuture:
        error: PayloadError | None = None
        try:
            call = pack_call(fn, args, kwargs)
        except PayloadError as exc:
            call, error = Call(b"", frozenset(), None), exc
        path = [os.path.abspath(entry) for entry in sys.path if entry not in self._path]
        work = PickledCall(call.pickled, chunk, path, self._max_result)
        task = self._task(work, len(call.pickled), CALLS, Call(b"", call.packages, call.classes))
        future = task.future = CallFuture(task, self._engine)
        if error is None:
            self._engine.submit(task)
        else:
            self._engine.refuse(task, error)
        return future

    def _task(self, work: Work, size: int, lane: int, call: Call | None = None) -> Task:
        settings = self._settings
        if settings.stdin is not None:
            size += len(to_bytes(settings.stdin))
        if size > MAX_RUN:
            raise ValueError(f"what is to be sent has {size} bytes, over the limit of {MAX_RUN}")
        return Task(
            settings.task_id or f"{self._prefix}-{next(self._numbers)}",
            lane,
            work,
            settings,
            self._max_output,
            time.monotonic(),
            size=size,
            call=call,
            context=structlog.contextvars.get_contextvars() or None,
        )

    def map(
        self,
        fn: Callable[..., Any] | Iterable[str],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Run each cell, or call with each set of arguments; give the results in order.

        Args:
            fn: cells (source texts, one iterable of them); or what is to be called,
                with an argument of each of ``iterables``.
            timeout: seconds from now until which a result may come.
            chunksize: how many calls make one task.
            buffersize: how many tasks are taken ahead of the results; None for
                all of them, at once.

        Raises:
            TypeError: it is one text, or something else; it names what to use.
            concurrent.futures.TimeoutError: from the iterator: a result did not come in time.

        From the iterator also what ``Future.result()`` raises. Where it stops, the
        tasks that wait are cancelled.
        """
        if isinstance(fn, (str, bytes)):
            raise TypeError(
                "map() takes a list of cells, not one text: for a single cell use "
                "submit(cell), or map([cell])"
            )
        if buffersize is not None:
            _check_count("buffersize", buffersize, 1)
        _check_count("chunksize", chunksize, 1)
        submits: Iterator[Callable[[], CellFuture | CallFuture]]
        if not callable(fn):
            if iterables or chunksize != 1:
                raise TypeError(
                    "map() of cells takes one iterable of source texts, and no chunksize; "
                    f"{_described(fn)} is not callable"
                )
            submits = (partial(self.submit, cell) for cell in fn)
        elif not iterables:
            raise TypeError(f"map({_described(fn)}) has nothing to call it with")
        elif chunksize == 1:
            submits = (partial(self.submit, fn, *args) for args in zip(*iterables, strict=False))
        else:
            calls = zip(*iterables, strict=False)
            chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
            # By way of submit, which code that counts tasks replaces by its own (tqdm's does).
            submits = (partial(self.submit, _Chunk(fn), *chunk) for chunk in chunks)
        deadline = None if timeout is None else time.monotonic() + timeout
        futures: deque[CellFuture | CallFuture] = deque()
        try:
            for submit in submits if buffersize is None else itertools.islice(submits, buffersize):
                futures.append(submit())
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        results = _results(submits, futures, deadline)
        return results if chunksize == 1 else _each(results)

    def run(self, cells: Iterable[str]) -> list[CellResult]:
        """Run each cell; give all results, in order. A cell that fails has an ``error`` in its own.

        Raises:
            TypeError: as `map`.
        """
        if isinstance(cells, (str, bytes)) or callable(cells):
            raise TypeError(f"run() takes a list of cells (source texts), not {_described(cells)}")
        futures: list[CellFuture] = []
        try:
            for cell in cells:
                if not isinstance(cell, str):
                    raise TypeError(f"a cell is source text, a str, not {_described(cell)}")
                futures.append(self.submit(cell))
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [_result_of(future) for future in futures]

    def session(self, *, wait: bool = False, timeout: float | None = None) -> Session:
        """A sandbox kept for cells in order, which find what the earlier ones left.

        It is there besides those of the other tasks, idle or not; what runs in it counts
        as one of the ``max_workers`` tasks that run at once.

        Args:
            wait: whether to wait while there are as many sessions as ``max_workers``.
            timeout: seconds to wait at most.

        Raises:
            QueueFull: there are as many sessions as there may be.
            BrokenSandboxPool, RuntimeError: as `submit`.
        """
        return Session(self, self._opened, self._max_workers, wait, timeout)

    def options(
        self,
        *,
        timeout: float | None = _UNSET,
        queue_timeout: float | None = _UNSET,
        deadline: float | None = _UNSET,
        task_id: str | None = _UNSET,
        stdin: str | None = _UNSET,
        on_output: Callable[[Stream], object] | None = _UNSET,
        argv: Sequence[str] | None = _UNSET,
        retries: int | tenacity.Retrying = _UNSET,
        idempotent: bool = _UNSET,
        files: Mapping[str, bytes | str | os.PathLike[str]] = _UNSET,
        fetch: Sequence[str] = _UNSET,
        env: Mapping[str, str] = _UNSET,
    ) -> SandboxExecutor:
        """A view of this executor: the same sandboxes, other settings for its tasks.

        Args:
            timeout: seconds that a task may run: then `CellTimeout`.
            queue_timeout: seconds that it may wait: then `QueueTimeout`.
            deadline: seconds for both together: then `DeadlineExceeded`.
            task_id: names the task on its future and in every log event.
            stdin: text that it reads; without it reading finds the end at once.
            on_output: called with each piece of output (`Stream`: ``.stream``,
                ``.text``, ``.data``) as it appears, all of it, in a thread of
                the task's own. A slow one slows the task, and the future waits
                for it; what it raises is logged.
            argv: run the text as ``python argv[0] …`` would: plain Python,
                ``__name__ == "__main__"``, ``sys.argv``, an exit code. A code
                other than 0 is a `CellError` named SystemExit.
            retries: how often a task is run again that was lost before it began; or a
                tenacity ``Retrying``, whose retry, stop and wait decide about every
                failure, also one that the task itself raised. Where a whole runtime of
                this library was lost, that is: before its start was heard of. Of those that it had
                been sent the next few may have begun in that moment; with 0 they are
                `OutcomeUnknown`, and never run twice.
            idempotent: whether a task may be run again that is known to have begun, or, at an
                original runtime, may have, as often as ``retries`` says.
            files: put into the sandbox's directory, where a task begins, before it: by name
                (``"dir/data.csv"``), their bytes or the path of a file here, which is read
                as the task begins. At most 10,000, of 1 GiB together. A path that cannot
                be read is the task's `PayloadError`. In a session they stay, otherwise
                they are removed after the task.
            fetch: patterns of files below that directory that are brought back after the
                task, also after one that failed, into ``result.files`` (of a call,
                ``future.files``): ``*``, ``?`` and ``[…]`` in each part of a path, ``**``
                for any number of directories. Links are not followed. What does not come
                is in ``files_left``, with the reason. More than 256 MiB together, or
                10,000 files, is a `PayloadError`.
            env: variables of the environment, for this task and what it starts. What
                Python reads as it starts (``PYTHON…``) has no effect on the task itself.

        The time that files take counts as running. What is not given stays as it is here.
        """
        given: dict[str, Any] = {
            "task_id": task_id,
            "stdin": stdin,
            "on_output": on_output,
            "argv": tuple(argv) if argv is not _UNSET and argv is not None else argv,
            "retries": retries,
            "idempotent": idempotent,
            "files": _UNSET if files is _UNSET else _checked_files(files),
            "fetch": _UNSET if fetch is _UNSET else _checked_fetch(fetch),
            "env": _UNSET if env is _UNSET else _checked_env(env),
        }
        for name, seconds in (
            ("timeout", timeout),
            ("queue_timeout", queue_timeout),
            ("deadline", deadline),
        ):
            given[name] = seconds if seconds is _UNSET else _checked_seconds(name, seconds)
        if retries is not _UNSET and not isinstance(retries, tenacity.Retrying):
            _check_count("retries", retries, 0)
        for name, kind in (("task_id", str), ("stdin", str)):
            if given[name] is not _UNSET and not isinstance(given[name], (kind, type(None))):
                raise TypeError(f"{name} must be a str, not {_described(given[name])}")
        if on_output is not _UNSET and on_output is not None and not callable(on_output):
            raise TypeError(f"on_output must be callable, not {_described(on_output)}")
        if isinstance(argv, str) or (argv is not _UNSET and argv is not None and not argv):
            raise TypeError(f"argv must be a list that begins with the script's name, not {argv!r}")
        view = copy.copy(self)
        view._root = self if self._root is None else self._root
        view._settings = dataclasses.replace(
            self._settings, **{k: v for k, v in given.items() if v is not _UNSET}
        )
        return view

    def isolation_report(self) -> list[Wall]:
        """What holds in its sandboxes against a hostile cell, one wall each; starts the runtime.

        Raises:
            RuntimeUnavailable, RuntimeRejected: there is no runtime.
            BrokenSandboxPool, RuntimeError: as `submit`.
        """
        standing = self._engine.standing()
        if standing is None:
            self._submit([""], {}).result()
            standing = self._engine.standing()
        if standing is None:
            raise RuntimeUnavailable("the runtime was lost; ask once more, and another is started")
        return report(standing.level, standing.network, standing.landlock, standing.groups)

    def stats(self, timeout: float = 5.0) -> dict[str, SandboxUsage]:
        """What each sandbox uses now, by its id; empty while there is none.

        Args:
            timeout: seconds to wait for the runtime's answer.

        Raises:
            TimeoutError: it did not come in time.
            RuntimeRejected: the runtime is an original one, which does not tell.
            RuntimeUnavailable: it was lost, or the executor ended, before it answered.
            RuntimeError: in a callback of a future.
        """
        return self._engine.stats(timeout)

    # ── the end ─────────────────────────────────────────────────────────────

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and stop when those that were taken have ended.

        Args:
            wait: return only when nothing is left, no thread and no process.
            cancel_futures: cancel the tasks that wait for others to end.

        Raises:
            KeyboardInterrupt: while it waited; what ran then has been killed.
        """
        self._engine.shutdown(cancel_futures)
        if wait:
            try:
                self._engine.join()
            except KeyboardInterrupt:
                # Who will not wait here would wait again at the interpreter's end.
                self.kill_workers()
                raise

    def terminate_workers(self) -> None:
        """Take no more tasks, cancel those that wait, and have what runs terminated (SIGTERM).

        Tasks that run then fail with `SandboxDied`. As in CPython 3.14.
        """
        self._engine.kill_all(signal.SIGTERM)

    def kill_workers(self) -> None:
        """As `terminate_workers`, with SIGKILL."""
        self._engine.kill_all(signal.SIGKILL)


class _Chunk:
    """Several calls of a callable, as one task: each argument has those of one."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, *calls: tuple[Any, ...]) -> list[Any]:
        return [self.fn(*args) for args in calls]


def _initializer(
    initializer: Callable[..., object] | str | None, initargs: tuple[Any, ...]
) -> Work | None:
    if initializer is None:
        return None
    if isinstance(initializer, str):
        if initargs:
            raise TypeError("initargs= is for a callable: a cell has no arguments")
        return Cells([to_bytes(initializer)])
    if not callable(initializer):
        raise TypeError(f"initializer must be a callable or a cell, not {_described(initializer)}")
    return PickledCall(pack_call(initializer, tuple(initargs), {}).pickled)


def _results(
    submits: Iterator[Callable[[], CellFuture | CallFuture]],
    futures: deque[CellFuture | CallFuture],
    deadline: float | None,
) -> Iterator[Any]:
    try:
        while futures:
            # Popped before the wait, so that nothing here keeps what was given out.
            future = futures.popleft()
            try:
                left = None if deadline is None else deadline - time.monotonic()
                result = [future.result(left)]
            except BaseException:
                future.cancel()
                raise
            del future
            for submit in submits:
                futures.append(submit())
                break
            yield result.pop()
    finally:
        for future in futures:
            future.cancel()


def _each(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    for chunk in chunks:
        # From behind, so that what was given out is not kept here.
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _result_of(future: CellFuture) -> CellResult:
    try:
        error = future.exception()
    except CancelledError:
        error = BrokenSandboxPool("the cell was cancelled by a shutdown")
    if error is None:
        return future.result()
    assert isinstance(error, MentisPoolError), error
    return error.result if error.result is not None else CellResult(error=error)


def _isolation(level: str, network: str, expose: Sequence[str | os.PathLike[str]]) -> Isolation:
    if level not in ("auto", *LEVELS):
        raise ValueError(f"isolation must be 'auto' or one of {LEVELS}, not {level!r}")
    if network not in ("none", "host"):
        raise ValueError(f"network must be 'none' or 'host', not {network!r}")
    if isinstance(expose, (str, bytes, os.PathLike)):
        raise TypeError(f"expose must be a list of paths, not {expose!r}")
    return Isolation(level, network, tuple(os.path.abspath(path) for path in expose))


def _check_workers(value: object) -> None:
    if isinstance(value, int) and value <= 0:
        raise ValueError(f"max_workers must be greater than 0, not {value}")
    _check_count("max_workers", value, 1)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {_described(value)}")
    if not least <= value < 1 << 63:
        raise ValueError(f"{name} must be at least {least}, and below 2 ** 63, not {value}")


def _checked_seconds(name: str, seconds: object) -> float | None:
    if seconds is None:
        return None
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f"{name} must be a number of seconds or None, not {_described(seconds)}")
    if not 0 < seconds < 1e9:
        raise ValueError(f"{name} must be more than 0 and less than 1e9 seconds, not {seconds!r}")
    return float(seconds)


def _checked_files(files: Mapping[str, object]) -> dict[str, bytes | str]:
    _check_texts("files", files)
    check_names(files)
    checked: dict[str, bytes | str] = {}
    for name, content in files.items():
        if isinstance(content, bytes):
            checked[name] = content
        elif isinstance(content, (str, os.PathLike)):
            # Where this process will be by then is its own business.
            checked[name] = os.path.abspath(os.fsdecode(content))
        else:
            raise TypeError(
                f"the file {name!r} must be given as bytes or as a path, not {_described(content)}"
            )
    return checked


def _checked_fetch(fetch: Sequence[str]) -> tuple[str, ...]:
    if isinstance(fetch, str):
        raise TypeError(f"fetch must be a list of patterns, not one text: [{fetch!r}]")
    patterns = tuple(fetch)
    _check_texts("fetch", patterns)
    for pattern in patterns:
        check_name(pattern)
    return patterns


def _checked_env(env: Mapping[str, str]) -> dict[str, str]:
    _check_texts("env", env)
    _check_texts("env", env.values())
    check_environment(env)
    return dict(env)


def _check_texts(name: str, texts: Iterable[object]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} has {_described(text)} where there must be a str")


def _described(value: object) -> str:
    name = getattr(value, "__qualname__", None)
    kind = type(value).__name__
    return f"the {kind} {name}" if name else f"{kind} {value!r}"[:80]
