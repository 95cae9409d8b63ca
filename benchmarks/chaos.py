"""Exactly once, whatever becomes of the connection: what was lost, doubled and mixed up.

A proxy between client and runtime cuts the connection every half a second, and stalls,
splits and half-closes it, at random with a seed. Each cell writes its number to a file and
prints a text of its own, whose hash is compared.

cuts       the connection is cut
deaths     the same, and a worker is killed every 200 ms: what was hit fails, nothing else
runtime    the embedded runtime is killed every 10 s (no proxy), and nothing is run again that
           may have begun: every future is settled, and no cell runs twice that gave a result
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from benchmarks import table
from benchmarks.sandboxes import KILL_EVERY, children, workers
from mentis_pool import MentisPoolError, SandboxExecutor
from tests.chaos.proxy import Chaos, Weather

PATIENCE = 600.0
"""Seconds within which a future is settled after the one before it."""
OPEN = ("--isolation", "process")
RUNTIME_EVERY = 10.0
CELL = """
import hashlib, os
fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(fd, f"{i}\\n".encode())
os.close(fd)
print(hashlib.sha256(str(i).encode()).hexdigest() * (i % 7))
i
"""


def add_arguments(
    parser: argparse.ArgumentParser, at_least: Callable[[int], Callable[[str], int]]
) -> None:
    parser.add_argument(
        "--cells", type=at_least(100), default=10_000, help="cells (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the proxy (default: %(default)s)")


def measure(arguments: argparse.Namespace) -> table.Report:
    """Run all three.

    Raises:
        SystemExit: a future is not settled in time.
    """
    machine = table.machine()
    cells = arguments.cells
    with served() as (pid, url, token), Chaos(url, Weather(), arguments.seed) as chaos:
        with SandboxExecutor(2, runtime=chaos.url, token=token, state="reuse") as executor:
            cuts = count(executor, cells)
            cuts["cuts"] = chaos.cuts
            with every(KILL_EVERY, lambda: kill_one(workers(pid))) as killed:
                deaths = count(executor, cells // 4)
            deaths["cuts"] = chaos.cuts - cuts["cuts"]
            deaths["killed"] = len(killed)
    with SandboxExecutor(2, state="reuse", isolation="process", retries=0) as executor:
        executor.submit("1").result()
        with every(RUNTIME_EVERY, lambda: kill_one(children(os.getpid()))) as killed:
            lost = count(executor, cells)
        lost["killed"] = len(killed)
    names = ("cells", "cuts", "killed", "lost", "failed", "doubled", "mixed up")
    return table.Report(
        benchmark="chaos",
        settings={"cells": cells, "seed": arguments.seed},
        groups=[
            table.Group(
                name, "", {what: table.Figure([counts[what]]) for what in names if what in counts}
            )
            for name, counts in (("cuts", cuts), ("deaths", deaths), ("runtime", lost))
        ],
        targets=[
            *(
                table.Target(f"{name}: {what}", counts[what], "at most", 0)
                for name, counts in (("cuts", cuts), ("deaths", deaths), ("runtime", lost))
                for what in ("lost", "doubled", "mixed up")
            ),
            table.Target("cuts: failed", cuts["failed"], "at most", 0),
            table.Target("deaths: failed", deaths["failed"], "at most", deaths["killed"]),
        ],
        notes=["lost: a future that is not settled. doubled: a cell that gave a result ran twice."],
        machine=machine,
    )


def count(executor: SandboxExecutor, cells: int) -> dict[str, int]:
    """Run so many cells, and count what became of them."""
    counts = collections.Counter({"cells": cells, "failed": 0, "lost": 0, "mixed up": 0})
    with tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "log")
        futures = [executor.submit(CELL, i=i, log=log) for i in range(cells)]
        gave: set[int] = set()
        for i, future in enumerate(futures):
            try:
                result = future.result(PATIENCE)
            except TimeoutError:
                counts["lost"] += 1
            except MentisPoolError:
                counts["failed"] += 1
            else:
                gave.add(i)
                text = hashlib.sha256(str(i).encode()).hexdigest() * (i % 7) + "\n"
                counts["mixed up"] += (result.value, result.stdout) != (i, text)
        with open(log) as file:
            ran = collections.Counter(map(int, file))
        counts["doubled"] = sum(ran[i] > 1 for i in gave)
    return dict(counts)


@contextlib.contextmanager
def every(seconds: float, act: Callable[[], int]) -> Iterator[list[int]]:
    """Do this again and again, in a thread; what it gave."""
    over, gave = threading.Event(), []

    def run() -> None:
        while not over.wait(seconds):
            gave.append(act())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield gave
    finally:
        over.set()
        thread.join()


_chance = random.Random(1)


def kill_one(pids: list[int]) -> int:
    pid = _chance.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


@contextlib.contextmanager
def served() -> Iterator[tuple[int, str, str]]:
    """A runtime on a port of this machine: its process, its address, its token.

    Without walls, since each cell writes to one file.
    """
    command = [sys.executable, "-m", "mentis_pool", "serve", "--port", "0", *OPEN]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url, token = (process.stdout.readline().split()[-1] for _ in range(2))
        process.stdout.readline()
        yield process.pid, url, token
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
        time.sleep(0.1)
