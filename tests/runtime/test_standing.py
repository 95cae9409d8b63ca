"""The level of isolation that is had: the one that was asked for, or the strongest that works."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import pytest

from mentis_pool import IsolationWarning, RuntimeUnavailable, SandboxExecutor, connection
from mentis_pool.runtime import kernel, standing
from mentis_pool.runtime.standing import Asked, NoIsolation, Zygote
from mentis_pool.walls import LEVELS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are walls on Linux only")
LEVEL = "import os; os.getcwd() == '/work'"


@pytest.fixture
def bwrap(tmp_path, monkeypatch):
    """Put a program in the place of bubblewrap."""

    def put(text):
        program = tmp_path / "bwrap"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    monkeypatch.setattr(connection, "_warned", set())
    tmp_path.chmod(0o755)
    return put


FAILS = (
    'test "$1" = --version && echo bubblewrap 0.11.0 && exit\necho No namespaces here >&2\nexit 1'
)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_is_named_is_had(own_temp, level):
    with warnings.catch_warnings(), SandboxExecutor(1, isolation=level) as executor:
        assert executor.submit(LEVEL).result().value is (level == "bubblewrap")
        assert executor._engine.standing().level == level


def test_a_level_that_is_named_and_cannot_be_had_is_an_error_that_says_why(own_temp, bwrap):
    bwrap(FAILS)
    with SandboxExecutor(1, isolation="bubblewrap", retries=0) as executor:
        with pytest.raises(
            RuntimeUnavailable,
            match=r"isolation='bubblewrap'.*No namespaces here; .*user namespaces",
        ):
            executor.submit("1").result()


def test_a_kernel_without_landlock_is_told_what_has_it(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "landlock_version", lambda: 0)
    with pytest.raises(NoIsolation, match=r"landlock: .* Linux has it from 5\.13 on"):
        Zygote(str(tmp_path), {}, [], [], Asked("landlock"))


def test_where_the_strongest_does_not_work_the_next_does_with_one_warning(own_temp, bwrap, caplog):
    bwrap(FAILS)
    caplog.set_level(logging.WARNING, "mentis_pool")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            with SandboxExecutor(1) as executor:
                assert executor.submit(LEVEL).result().value is False
                report = {wall.name: wall.held for wall in executor.isolation_report()}
    assert report["host files"]
    assert not report["leftovers"]
    [said] = [each.message for each in warned if each.category is IsolationWarning]
    assert "No namespaces here" in str(said)
    assert "'landlock'" in str(said)
    assert [record.event for record in caplog.records] == ["isolation_weak"]


def test_whoever_names_a_weak_level_is_not_warned(own_temp, bwrap):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with SandboxExecutor(1, isolation="process") as executor:
            executor.submit("1").result()
    assert not warned


def test_a_bubblewrap_that_is_too_old_does_not_hide_the_good_one(own_temp, bwrap):
    bwrap("echo bubblewrap 0.4.1")
    with SandboxExecutor(1, isolation="bubblewrap") as executor:
        assert executor.submit(LEVEL).result().value is True


def test_the_report_starts_the_runtime(own_temp):
    with SandboxExecutor(1, isolation="process") as executor:
        held = {wall.name for wall in executor.isolation_report() if wall.held}
        # Which there may be at any level.
        assert held <= {"cgroups"}


def test_what_is_exposed_can_be_read_and_nothing_else(own_temp, tmp_path):
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "file").write_text("text")
    (tmp_path / "hidden").write_text("text")
    cell = "import os; [open(shown + '/file').read(), os.path.exists(hidden)]"
    with SandboxExecutor(1, expose=[shown]) as executor:
        variables = {"shown": str(shown), "hidden": str(tmp_path / "hidden")}
        assert executor.submit(cell, **variables).result().value == ["text", False]


@pytest.mark.parametrize("level", ["bubblewrap", "landlock", "process"])
def test_the_network_of_the_host_is_had_for_the_asking(own_temp, level):
    import socket

    cell = "import socket; socket.create_connection(('127.0.0.1', port)).close()"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with SandboxExecutor(1, isolation=level, network="host") as executor:
            assert executor.submit(cell, port=port).result().ok


def test_what_is_preloaded_may_write_while_it_is_imported(own_temp, tmp_path, monkeypatch):
    (tmp_path / "writes_at_import.py").write_text(
        "import os, tempfile\n"
        "directory = tempfile.mkdtemp()\n"
        "open(os.path.expanduser('~/file'), 'w').close()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with SandboxExecutor(1, preload=["writes_at_import"]) as executor:
        cell = "import os, tempfile, writes_at_import as w\n[os.path.exists(w.directory), tempfile.gettempdir()]"
        assert executor.submit(cell).result().value == [False, "/tmp"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"isolation": "docker"}, ValueError),
        ({"network": "some"}, ValueError),
        ({"expose": "/a"}, TypeError),
        ({"runtime": "http://127.0.0.1:1", "network": "host"}, ValueError),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error):
        SandboxExecutor(1, **options)


def test_a_zygote_that_cannot_be_had_leaves_no_process(own_temp, bwrap):
    bwrap(FAILS)
    asked = standing.Asked("bubblewrap")
    its = standing.Zygote(own_temp, dict(os.environ), list(sys.path), [], asked)
    with pytest.raises(standing.NoIsolation):
        its.stand()
    assert its._process.returncode is not None
