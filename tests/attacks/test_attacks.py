"""What hostile and careless cells do: each has the outcome that must follow, and harms nobody.

One attack after the other on the same pool, at the strongest level of isolation. While each runs,
cells of a session in the same runtime give what they must; afterwards the next task in the place
of the attack finds its own, and no process is left.
"""

from __future__ import annotations

import pytest

from benchmarks import attack_catalog, attack_run
from benchmarks.attack_run import Pool

# What else may go wrong where a process is kept: there it is about the process itself.
KEPT = ("exits", "descriptors", "pickles")

ATTACKS = [
    pytest.param(attack, state, id=f"{state}-{attack.group}-{attack.name}")
    for state in attack_catalog.BOTH
    for attack in attack_catalog.ATTACKS
    if state in attack.states and (state == "fresh" or attack.group in KEPT)
]


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch):
    """Other tests may run beside these, which slow down a neighbour as well."""
    monkeypatch.setattr(attack_run, "SLOW", 15.0)


@pytest.fixture(scope="module")
def pools():
    """The pool of each state that is under attack."""
    pools: dict[str, Pool] = {}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.mark.filterwarnings("ignore::mentis_pool.IsolationWarning")
@pytest.mark.parametrize(("attack", "state"), ATTACKS)
def test_an_attack_has_its_outcome_and_harms_nobody(pools, attack, state):
    # What is kept of an output is looked at: a tenth of what is by default is enough for that.
    pool = pools.get(state) or pools.setdefault(state, Pool("auto", state, 1_000_000))
    if pool.level not in attack.levels:
        pytest.skip(f"cannot be held at level {pool.level}")
    wrong = "it raised here"
    try:
        wrong = pool.attack(attack)
    finally:
        if wrong:
            # What comes next is not to suffer from it.
            pools.pop(state).close()
    assert wrong == ""


def test_every_attack_has_a_name_of_its_own():
    names = [(attack.group, attack.name) for attack in attack_catalog.ATTACKS]
    assert len(set(names)) == len(names)
