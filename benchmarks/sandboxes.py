"""Sandboxes as such: how soon one is there, what it costs, how soon it is whole again.

start     a new sandbox, from its being asked for until a cell can begin: sessions, one
          after the other, by the runtime's own clock.
memory    unshared by other processes (uss of psutil), of the first process and the
          workers of a sandbox that is open and idle, with few and with many open.
recovery  one sandbox: from the moment that a cell is lost until the next one begins.
          crash    the cell kills its own process
          kill     ``future.kill()``
          timeout  the cell does not end, from its time limit on
          limit    the cell writes more than it may, from before it writes on
killing   as many cells as asked for, and a worker killed every 200 ms, chosen at random:
          every future is settled, only cells that were hit fail, and the rest of them
          give what they must.

Read from /proc: Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import logging
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator

from benchmarks import table
from benchmarks.cells import PATIENCE, Times, group, idle_runtime
from mentis_pool import CellFuture, Limits, ResourceLimitExceeded, SandboxDied, SandboxExecutor

KILL_EVERY = 0.2
"""Seconds."""
TIMEOUT = 0.1
"""Seconds that the cell may take which takes longer."""
_OUTPUT = 1 << 20
"""Bytes that a cell may write."""


def add_arguments(
    parser: argparse.ArgumentParser, at_least: Callable[[int], Callable[[str], int]]
) -> None:
    parser.add_argument(
        "--count", type=at_least(2), default=100, help="sandboxes and losses a round"
    )
    parser.add_argument("--many", type=at_least(2), default=200, help="sandboxes open at once")
    parser.add_argument("--cells", type=at_least(100), default=20_000, help="cells to kill among")


def measure(arguments: argparse.Namespace) -> table.Report:
    """Run all rounds.

    Raises:
        SystemExit: this is not Linux, or something was lost that must not be.
        ModuleNotFoundError: psutil is not installed.
    """
    import psutil  # noqa: F401 - only that it is there

    if not sys.platform.startswith("linux"):
        sys.exit("sandboxes reads from /proc, which only Linux has")
    machine = table.machine()
    rounds, many = arguments.rounds, arguments.many
    start: Times = {"p50": [], "p99": []}
    lost: Times = {}
    for _ in range(rounds):
        took = starts(arguments.count)
        start["p50"].append(statistics.median(took) * 1e3)
        start["p99"].append(table.percentile(took, 99) * 1e3)
        for how in (crash, kill, time_out, limit):
            with SandboxExecutor(1, limits=Limits(output=_OUTPUT)) as executor:
                executor.submit("1").result(PATIENCE)
                took = [how(executor) for _ in range(arguments.count // 5 or 1)]
            lost.setdefault(how.__name__, []).append(statistics.median(took) * 1e3)
    memory = {
        f"of {count}": [idle_runtime("fresh", count).sandboxes / count for _ in range(some)]
        for count, some in ((2, rounds), (many, 1))
    }
    rates, killed, failed = killing(arguments.cells)
    slower = rates["with kills"] / rates["undisturbed"]
    return table.Report(
        benchmark="sandboxes",
        settings={
            "rounds": rounds,
            "count": arguments.count,
            "many": many,
            "cells": arguments.cells,
        },
        groups=[
            group("a new sandbox is ready", "ms", start),
            group("unshared memory (uss) per idle sandbox", "MB", memory),
            group("from a loss to the next cell, p50", "ms", lost),
            group("cells, fresh", "cells/s", {who: [rate] for who, rate in rates.items()}),
        ],
        targets=[
            table.Target("a new sandbox, p50", statistics.median(start["p50"]), "at most", 6, "ms"),
            table.Target(
                "a new sandbox, p99", statistics.median(start["p99"]), "at most", 15, "ms"
            ),
            *(
                table.Target(f"unshared, {who}", statistics.median(values), "under", 5, "MB")
                for who, values in memory.items()
            ),
            *(
                table.Target(f"recovery, {who}", statistics.median(values), "at most", 20, "ms")
                for who, values in lost.items()
            ),
            table.Target("with kills / undisturbed", slower, "at least", 0.5),
        ],
        notes=[
            f"{killed} workers were killed, {failed} cells failed, every future was settled.",
            f"isolation: {isolation()}",
        ],
        machine=machine,
    )


# ── start ───────────────────────────────────────────────────────────────────


def starts(count: int) -> list[float]:
    """Seconds that each of so many sandboxes took, as the runtime says."""
    with told("sandbox_started") as events, SandboxExecutor(1) as executor:
        for _ in range(count):
            with executor.session() as session:
                session.submit("1").result(PATIENCE)
    took = [float(str(event["seconds"])) for event in events]
    if len(took) < count:
        sys.exit(f"{len(took)} sandboxes were started, not {count}")
    return took


@contextlib.contextmanager
def told(name: str) -> Iterator[list[dict[str, object]]]:
    """The fields of all log events of this name."""
    events: list[dict[str, object]] = []

    class Listens(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "event", None) == name:
                events.append(record.fields)  # type: ignore[attr-defined]

    logger, handler = logging.getLogger("mentis_pool"), Listens()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield events
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


# ── recovery ────────────────────────────────────────────────────────────────

NOW = "import time\ntime.time()"


def crash(executor: SandboxExecutor) -> float:
    """Seconds from a cell's death by its own hand until the next begins."""
    dies = executor.submit(
        "import os, time\nprint(time.time(), flush=True)\nos.kill(os.getpid(), 9)"
    )
    after = executor.submit(NOW)
    begun = after.result(PATIENCE).value
    error = dies.exception(PATIENCE)
    assert isinstance(error, SandboxDied)
    return float(begun) - float(dies.stdout)


def kill(executor: SandboxExecutor) -> float:
    """Seconds from ``future.kill()`` until the next cell begins."""
    endless = executor.submit("import time\nwhile True: time.sleep(1)")
    after = executor.submit(NOW)
    while not endless.running():
        time.sleep(0.001)
    # What comes with the start is through.
    time.sleep(0.02)
    began = time.time()
    endless.kill()
    return float(after.result(PATIENCE).value) - began


def time_out(executor: SandboxExecutor) -> float:
    """Seconds from a cell's time limit until the next begins."""
    endless = executor.options(timeout=TIMEOUT).submit("while True: pass")
    after = executor.submit(NOW)
    begun = float(after.result(PATIENCE).value)
    start = next(iter(endless.observations()))
    return begun - (start.time + TIMEOUT)  # type: ignore[union-attr]


def limit(executor: SandboxExecutor) -> float:
    """Seconds from before a cell writes more than it may until the next begins."""
    floods = executor.submit(
        "import os, time\nos.write(2, str(time.time()).encode())\n"
        f"while True: os.write(1, bytes({_OUTPUT}))"
    )
    after = executor.submit(NOW)
    begun = after.result(PATIENCE).value
    error = floods.exception(PATIENCE)
    assert isinstance(error, ResourceLimitExceeded)
    return float(begun) - float(floods.stderr)


# ── killing ─────────────────────────────────────────────────────────────────


def killing(cells: int) -> tuple[dict[str, float], int, int]:
    """Cells a second without and with workers being killed; how many of these, and of cells that failed.

    Raises:
        SystemExit: a future was not settled, or a cell failed that was not hit.
    """
    with SandboxExecutor(2) as executor:
        executor.submit("1").result(PATIENCE)
        rates = {"undisturbed": run_all(executor, cells)[0]}
        hit: list[int] = []
        over = threading.Event()
        killer = threading.Thread(target=keep_killing, args=(over, hit))
        killer.start()
        try:
            rates["with kills"], failed = run_all(executor, cells)
        finally:
            over.set()
            killer.join()
    if failed > len(hit):
        sys.exit(f"{failed} cells failed, and only {len(hit)} workers were killed")
    return rates, len(hit), failed


def run_all(executor: SandboxExecutor, cells: int) -> tuple[float, int]:
    """Cells a second, and how many died."""
    began = time.perf_counter()
    futures: list[CellFuture] = [executor.submit(f"{i} + 1") for i in range(cells)]
    failed = 0
    for i, future in enumerate(futures):
        error = future.exception(10 * PATIENCE)
        if error is None:
            assert future.result().value == i + 1
        elif isinstance(error, SandboxDied):
            failed += 1
        else:
            sys.exit(f"a cell that was not hit failed: {error!r}")
    return cells / (time.perf_counter() - began), failed


def keep_killing(over: threading.Event, hit: list[int]) -> None:
    chance = random.Random(1)
    while not over.wait(KILL_EVERY):
        pid = chance.choice(workers(os.getpid()))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            hit.append(pid)


def workers(pid: int) -> list[int]:
    """The processes of workers: none is further below the one that runs them."""
    level, below = [pid], [pid]
    while below:
        level, below = below, [child for pid in below for child in children(pid)]
    return level


def children(pid: int) -> list[int]:
    found: list[int] = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path) as file:
            found += map(int, file.read().split())
    return found


def isolation() -> str:
    """The level at which all this was measured."""
    with told("runtime_started") as events, SandboxExecutor(1) as executor:
        executor.submit("1").result(PATIENCE)
    return str(events[0]["isolation"])
