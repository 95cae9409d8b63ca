"""The embedded runtime's process: private, answering, and gone when it is told or let go."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time

import pytest

from mentis_pool import RuntimeUnavailable
from mentis_pool.runtime.local import LocalRuntime, sweep
from mentis_pool.stream import PoolStream, unix_link


def test_it_is_private_answers_and_stops(own_temp, processes):
    runtime = LocalRuntime([], 1)
    [directory] = os.listdir(own_temp)
    path = os.path.join(own_temp, directory)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    stream = PoolStream(unix_link(runtime.connect(), 20))
    assert stream.welcome.python == ".".join(map(str, sys.version_info[:3]))
    assert os.getsid(runtime.pid) == runtime.pid
    assert os.getsid(runtime.pid) != os.getsid(0)
    assert len(processes(own_temp)) == 2
    stream.close()
    runtime.stop()
    assert processes(own_temp) == []


def test_one_that_is_gone_gives_its_last_words(own_temp):
    runtime = LocalRuntime(["no_such_module"], 1)
    runtime._process.wait(20)
    with pytest.raises(RuntimeUnavailable, match="no_such_module"):
        runtime.connect()
    runtime.stop()


def test_one_that_is_killed_names_the_signal(own_temp):
    runtime = LocalRuntime([], 1)
    os.kill(runtime.pid, signal.SIGKILL)
    assert runtime.last_words() == "the embedded runtime was killed by SIGKILL"
    runtime.stop()


def test_it_ends_when_its_lifeline_does(own_temp, processes, eventually):
    runtime = LocalRuntime([], 1)
    PoolStream(unix_link(runtime.connect(), 20)).close()
    runtime._lifeline.close()
    eventually(lambda: processes(own_temp) == [] and os.listdir(own_temp) == [])
    runtime.stop()


def test_it_may_be_stopped_before_it_is_ready(own_temp, processes):
    runtime = LocalRuntime([], 1)
    runtime.stop()
    assert processes(own_temp) == []


def test_cells_inherit_nothing_of_the_clients_environment(executor, monkeypatch):
    monkeypatch.setenv("A_SECRET", "secret")
    names = executor.submit("import os; sorted(os.environ)").result().value
    assert "A_SECRET" not in names
    assert {"PATH", "HOME", "TMPDIR"} <= set(names)


def test_a_cell_finds_what_the_client_can_import(own_temp, tmp_path, monkeypatch):
    from mentis_pool import SandboxExecutor

    (tmp_path / "local_module_of_a_test.py").write_text("x = 5")
    monkeypatch.syspath_prepend(str(tmp_path))
    with SandboxExecutor(max_workers=1) as executor:
        assert executor.submit("import local_module_of_a_test as m; m.x").result().value == 5


def test_no_embedded_runtime_without_fork(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(RuntimeUnavailable, match="Windows"):
        LocalRuntime([], 1)


def test_a_directory_that_cannot_be_made_is_named(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/self")
    with pytest.raises(RuntimeUnavailable, match=r"/proc/self.*TMPDIR"):
        LocalRuntime([], 1)


def test_only_old_directories_of_the_dead_are_swept(own_temp):
    hour_ago = time.time() - 3600
    for name in (
        f"mentis-pool-{os.getuid()}-dead",
        f"mentis-pool-{os.getuid()}-young",
        "something-else",
    ):
        os.makedirs(os.path.join(own_temp, name, "s-1", "work"))
        open(os.path.join(own_temp, name, "lock"), "w").close()
        if "young" not in name:
            os.utime(os.path.join(own_temp, name), (hour_ago, hour_ago))
    runtime = LocalRuntime([], 1)
    [alive] = set(os.listdir(own_temp)) - {f"mentis-pool-{os.getuid()}-young", "something-else"}
    os.utime(os.path.join(own_temp, alive), (hour_ago, hour_ago))
    sweep(own_temp)
    assert sorted(os.listdir(own_temp)) == sorted(
        [alive, f"mentis-pool-{os.getuid()}-young", "something-else"]
    )
    runtime.stop()
    import shutil

    for name in os.listdir(own_temp):
        shutil.rmtree(os.path.join(own_temp, name))
