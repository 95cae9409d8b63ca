"""Attacks on sandboxes: at each level of isolation, in each state, as this user and as an ordinary one.

Each setting is a process of its own, which attacks a pool with all of `benchmarks.attack_catalog`
that must be held there. The attacks on each wall and limit, which are shown to fail there and to
get through where it is taken away, are tests (`tests/attacks`), which each user runs. An ordinary user needs a Python that it may read, with what mentis_pool
needs: the packages of this one are used, where it may read those.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import attack_catalog, table
from mentis_pool.walls import LEVELS

ORDINARY = 1234
"""The number of an ordinary user."""
_PATIENCE = 1200.0
"""Seconds that one setting may take."""
_ROOT = Path(__file__).parent.parent

Held = list[tuple[str, str, str, float]]


def add_arguments(
    parser: argparse.ArgumentParser, at_least: Callable[[int], Callable[[str], int]]
) -> None:
    parser.add_argument(
        "--python", default="/usr/bin/python3", help="of the ordinary user (default: %(default)s)"
    )
    parser.add_argument("--level", choices=LEVELS, action="append", help="default: all")
    parser.add_argument("--only", action="append", default=[], help="a group, or an attack's name")


def measure(arguments: argparse.Namespace) -> table.Report:
    """Attack in every setting, once."""
    machine = table.machine()
    groups: dict[str, dict[str, table.Figure]] = {}
    held: dict[str, Held] = {}
    notes: list[str] = []
    failed = 0
    for user, python in users(arguments.python, notes):
        for level in arguments.level or LEVELS:
            for state in attack_catalog.BOTH:
                setting = f"{_called(user)}, {level}, {state}"
                held[setting] = attack(user, python, level, state, arguments.only, notes, setting)
        if not arguments.only:
            setting = f"{_called(user)}, each wall and limit"
            held[setting] = walls_and_limits(user, python, arguments.level or [], notes, setting)
    for setting, found in held.items():
        for group in dict.fromkeys(each[0] for each in found):
            wrong = [each for each in found if each[0] == group and each[2]]
            failed += len(wrong)
            notes += [f"{setting}: {group}: {name}: {what}" for _, name, what, _ in wrong]
            count = sum(each[0] == group for each in found)
            figures = groups.setdefault(setting, {})
            figures[f"{group}, held of {count}"] = table.Figure([count - len(wrong)])
    settings = {"rounds": 1, "attacks": len(attack_catalog.ATTACKS)}
    shown = [table.Group(setting, "attacks", figures) for setting, figures in groups.items()]
    target = table.Target("attacks that were not held", failed, "at most", 0)
    return table.Report("attacks", settings, shown, [target], notes, machine)


def _called(user: int) -> str:
    return "root" if user == 0 else "user"


def users(python: str, notes: list[str]) -> list[tuple[int, str]]:
    """This user, and an ordinary one where that can be, each with its Python."""
    own = os.getuid()
    found = [(own, sys.executable)]
    if own == 0:
        done = subprocess.run(
            [
                python,
                "-c",
                "import cloudpickle, mentis_pool.runtime.server, mentis_pool.runtime.cells",
            ],
            **as_user(ORDINARY, tempfile.gettempdir()),  # type: ignore[call-overload]
        )
        if done.returncode == 0:
            found.append((ORDINARY, python))
        else:
            why = done.stderr.strip().splitlines()[-1:]
            notes.append(f"not attacked as an ordinary user, whose {python} cannot run: {why}")
    return found


def as_user(user: int, home: str) -> dict[str, object]:
    """For `subprocess`: to be this user, with the packages of this Python."""
    path = os.pathsep.join([str(_ROOT), *(each for each in sys.path if "-packages" in each)])
    given: dict[str, object] = {
        "cwd": home,
        "env": {"PATH": os.defpath, "PYTHONPATH": path, "HOME": home, "TMPDIR": home},
        "capture_output": True,
        "text": True,
    }
    if user != os.getuid():
        given |= {"user": user, "group": user, "extra_groups": []}
    return given


def attack(
    user: int,
    python: str,
    level: str,
    state: str,
    only: Sequence[str],
    notes: list[str],
    setting: str,
) -> Held:
    """What was held, as `benchmarks.attack_run` says."""
    # Short, for a socket's path.
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as home:
        os.chown(home, user, -1)
        words = [python, "-m", "benchmarks.attack_run", level, state, *only]
        try:
            done = subprocess.run(words, timeout=_PATIENCE, **as_user(user, home))  # type: ignore[call-overload]
        except subprocess.TimeoutExpired as exc:
            notes.append(f"{setting}: it did not end within {exc.timeout:g} s")
            return [("all", "the end", "it did not end", 0.0)]
    held: Held = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        held.append(("all", "the client", f"it ended with {done.returncode}: {said}", 0.0))
    return held


_TESTS = {"walls": "test_each_wall.py", "limits": "test_over_limits.py"}
_OUTCOME = re.compile(r"(PASSED|FAILED|ERROR) \S*?::(.*)")


def walls_and_limits(
    user: int, python: str, levels: Sequence[str], notes: list[str], setting: str
) -> Held:
    """What pytest says of the attacks on each wall, at these levels (all where none is named), and limit."""
    held: Held = []
    for group, name in _TESTS.items():
        words = [python, "-m", "pytest", "-q", "-rpfE", "-p", "no:cacheprovider"]
        words += [f"--rootdir={_ROOT}", "-c", str(_ROOT / "pyproject.toml"), "--tb=no"]
        words += ["-k", " or ".join(levels)] if levels and group == "walls" else []
        with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as home:
            os.chown(home, user, -1)
            path = str(_ROOT / "tests/attacks" / name)
            done = subprocess.run([*words, path], timeout=_PATIENCE, **as_user(user, home))  # type: ignore[call-overload]
        found = [_OUTCOME.fullmatch(line) for line in done.stdout.splitlines()]
        held += [
            (group, each[2], "" if each[1] == "PASSED" else each[1], 0.0) for each in found if each
        ]
        if done.returncode not in (0, 1):
            notes.append(
                f"{setting}: {group}: pytest ended with {done.returncode}: {done.stderr[-200:]}"
            )
            held.append((group, "the tests", "they could not be run", 0.0))
    return held
