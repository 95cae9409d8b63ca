"""Trivial calls: SandboxExecutor beside the process pools of the standard library, loky and pebble.

The pools are warm, have two workers each, and are kept for all rounds; the rounds
alternate, and each ratio is of two measurements that ran one after the other.

one by one  submit each, then wait for each: tasks a second.
map         ``map`` with chunks of 64: calls a second (pebble's own map gives none).
latency     one call at a time: submit to result.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import operator
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

from benchmarks import table
from mentis_pool import SandboxExecutor

WORKERS = 2
CHUNK = 64
OURS, STANDARD = "mentis_pool", "ProcessPoolExecutor"


class _Pebble(Executor):
    """pebble's pool as an executor, as far as it is measured."""

    def __init__(self, workers: int) -> None:
        from pebble import ProcessPool  # type: ignore[import-not-found]

        self._pool = ProcessPool(max_workers=workers)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return self._pool.schedule(fn, args=args, kwargs=kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.stop()
        self._pool.join()


def add_arguments(
    parser: argparse.ArgumentParser, at_least: Callable[[int], Callable[[str], int]]
) -> None:
    parser.add_argument(
        "--count", type=at_least(100), default=4000, help="calls a round (default: %(default)s)"
    )


def measure(arguments: argparse.Namespace) -> table.Report:
    """Run all rounds.

    Raises:
        ModuleNotFoundError: loky or pebble is not installed.
    """
    machine = table.machine()
    count = arguments.count
    rates: dict[str, list[float]] = {}
    mapped: dict[str, list[float]] = {}
    p50: dict[str, list[float]] = {}
    p99: dict[str, list[float]] = {}
    with pools() as executors:
        for executor in executors.values():
            one_by_one(executor, count // 4)
        for _ in range(arguments.rounds):
            for name, executor in executors.items():
                rates.setdefault(name, []).append(one_by_one(executor, count))
            for name, executor in executors.items():
                if not isinstance(executor, _Pebble):
                    mapped.setdefault(name, []).append(by_map(executor, count * 10))
            for name, executor in executors.items():
                times = one_at_a_time(executor, count // 8)
                p50.setdefault(name, []).append(table.percentile(times, 50) * 1e6)
                p99.setdefault(name, []).append(table.percentile(times, 99) * 1e6)
    ratio = table.Figure(rates[OURS]).over(table.Figure(rates[STANDARD]))
    slower = table.Figure(p50[OURS]).over(table.Figure(p50[STANDARD]))
    return table.Report(
        benchmark="calls",
        settings={"rounds": arguments.rounds, "count": count, "workers": WORKERS},
        groups=[
            table.Group("one by one", "calls/s", figures(rates)),
            table.Group(f"map, chunks of {CHUNK}", "calls/s", figures(mapped)),
            table.Group("latency p50", "µs", figures(p50)),
            table.Group("latency p99", "µs", figures(p99)),
            table.Group(
                "pair by pair",
                "",
                {
                    f"one by one, {OURS} / {STANDARD}": ratio,
                    f"p50, {OURS} / {STANDARD}": slower,
                },
            ),
        ],
        targets=[
            table.Target(f"one by one, {OURS} / {STANDARD}", ratio.median, "at least", 1),
            table.Target(f"p50, {OURS} / {STANDARD}", slower.median, "at most", 1),
        ],
        notes=[f"{STANDARD}: started by fork. A call: operator.add(i, 1)"],
        machine=machine,
    )


def figures(times: dict[str, list[float]]) -> dict[str, table.Figure]:
    return {name: table.Figure(values) for name, values in times.items()}


@contextlib.contextmanager
def pools() -> Iterator[dict[str, Executor]]:
    """All of them; those that fork first, while this process has no threads."""
    from loky import get_reusable_executor  # type: ignore[import-not-found]

    with contextlib.ExitStack() as stack:
        fork = multiprocessing.get_context("fork")
        executors: dict[str, Executor] = {STANDARD: ProcessPoolExecutor(WORKERS, mp_context=fork)}
        stack.enter_context(executors[STANDARD])
        one_by_one(executors[STANDARD], WORKERS)
        executors["loky"] = stack.enter_context(get_reusable_executor(max_workers=WORKERS))
        executors["pebble"] = stack.enter_context(_Pebble(WORKERS))
        executors[OURS] = stack.enter_context(SandboxExecutor(WORKERS))
        yield executors


def one_by_one(executor: Executor, count: int) -> float:
    """Calls a second."""
    began = time.perf_counter()
    futures = [executor.submit(operator.add, i, 1) for i in range(count)]
    results = [future.result() for future in futures]
    seconds = time.perf_counter() - began
    assert results == list(range(1, count + 1))
    return count / seconds


def by_map(executor: Executor, count: int) -> float:
    """Calls a second, in chunks."""
    began = time.perf_counter()
    results = list(executor.map(operator.neg, range(count), chunksize=CHUNK))
    seconds = time.perf_counter() - began
    assert results == [-i for i in range(count)]
    return count / seconds


def one_at_a_time(executor: Executor, count: int) -> list[float]:
    """Seconds of each call."""
    times = []
    for i in range(count):
        began = time.perf_counter()
        assert executor.submit(operator.add, i, 1).result() == i + 1
        times.append(time.perf_counter() - began)
    return times
