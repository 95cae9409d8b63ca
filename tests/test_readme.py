"""Every example of the README runs, and every value that it promises is the value."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import end, serve

from mentis_pool import SandboxExecutor

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


ADDRESS = "http://127.0.0.1:5266"


def checked(example: str) -> tuple[str, int]:
    """The example with each ``expression  # value`` line made an assertion, and their number."""
    lines, count = [], 0
    for line in example.splitlines():
        match = re.fullmatch(r"(\s*)(\S.*?)\s+# (.+)", line)
        if match and is_expression(match[2]) and is_literal(match[3]):
            line = f"{match[1]}got = {match[2]}; assert got == ({match[3]}), got"
            count += 1
        lines.append(line)
    return "\n".join(lines), count


def is_expression(text: str) -> bool:
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    return True


def is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return False
    return True


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_of_the_readme_does_what_it_says(example, tmp_path, request):
    source, count = checked(example)
    assert count > 0
    if ADDRESS in source:
        url, token = request.getfixturevalue("served")
        source = source.replace(ADDRESS, url).replace('"TOKEN"', repr(token))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_first_example_prints_what_its_cells_print():
    done = subprocess.run([sys.executable, "-c", EXAMPLES[0]], capture_output=True, text=True)
    assert done.stdout == "1\n2\n3\n"


LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    for line in block.splitlines()
]
FIRST, SECOND = LINES[:2]
COMMANDS = [line for line in LINES[2:] if "mentis-pool" in line and "serve" not in line]


def run(command, directory):
    """Run a command as a shell does in which this Python's scripts are found."""
    beside = os.path.dirname(sys.executable)
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, "PATH": f"{beside}:{os.environ['PATH']}"},
    )


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_of_the_readme_runs(command, tmp_path):
    (tmp_path / "solution.py").write_text("print('solved')")
    cells = [{"cell_type": "code", "source": "print('noted')"}]
    (tmp_path / "notebook.ipynb").write_text(json.dumps({"nbformat": 4, "cells": cells}))
    done = run(command, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for name, said in (("solution.py", "solved"), ("notebook.ipynb", "noted"), ("6 * 7", "42")):
        assert (said in done.stdout) == (name in command)


def test_there_are_commands_in_the_readme():
    assert len(COMMANDS) == 2


def test_the_first_command_prints_what_its_cells_give(tmp_path):
    install, then, command = FIRST.partition(" && ")
    assert (install, then) == ("pip install .", " && ")
    done = run(command, tmp_path)
    assert done.stdout == (
        "── cell 1\nhello from a sandbox\n── cell 2\n3.141592653589793\n── cell 3\nLinux\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_second_command_installs_what_tests_need_and_runs_them():
    assert SECOND == 'pip install ".[test]" && python -m pytest'


def test_both_commands_are_followed_to_the_letter_by_what_checks_every_change():
    script = (README.parent / ".ci" / "run").read_text("utf-8")
    for command, name in ((FIRST, "main_job"), (SECOND, "tests")):
        [found] = re.findall(rf"^{name}=\$\((.*)\)$", script, re.MULTILINE)
        done = subprocess.run(
            ["sh", "-c", found], capture_output=True, text=True, cwd=README.parent
        )
        assert done.stdout == command + "\n"
    assert '\nrun_in python3 first "$main_job" "$tests" || status=$?\n' in script


def test_the_top_level_has_what_belongs_there_and_nothing_else():
    words = ["git", "ls-files"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=README.parent)
    if done.returncode != 0:
        pytest.skip("this is no checkout")
    assert {line.split("/")[0] for line in done.stdout.splitlines()} == {
        *("mentis_pool", "tests", "benchmarks", "setup.cfg", "pyproject.toml"),
        *("README.md", "LICENSE", "CHANGELOG.md", ".gitignore", ".ci"),
    }


def test_it_claims_the_versions_of_python_that_it_was_run_on():
    setup = configparser.ConfigParser()
    setup.read(README.parent / "setup.cfg")
    claimed = re.findall(r"Python :: 3\.(\d+)$", setup["metadata"]["classifiers"], re.MULTILINE)
    first, last = re.search(r"CPython 3\.(\d+) to 3\.(\d+): there all", README.read_text()).groups()
    assert claimed == [str(minor) for minor in range(int(first), int(last) + 1)]
    assert setup["options"]["python_requires"] == f">=3.{first}"


def test_the_command_that_serves_serves(own_temp):
    [command] = [
        line
        for line in README.read_text("utf-8").splitlines()
        if line.startswith("mentis-pool serve")
    ]
    arguments = command.replace("5266", "0").split()[2:]
    process, url, token = serve(*arguments)
    with SandboxExecutor(1, runtime=url, token=token) as executor:
        assert executor.submit("1").result().value == 1
    assert end(process) == ""
