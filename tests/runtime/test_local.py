"""The embedded runtime's process: private, answering, and gone when it is told or let go."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import time

import family
import psutil
import pytest

from mentis_pool import RuntimeUnavailable
from mentis_pool.runtime.local import LocalRuntime, new_path
from mentis_pool.stream import PoolStream, unix_link


def test_it_is_private_answers_and_stops(own_temp, processes):
    runtime = LocalRuntime([], 1)
    stream = PoolStream(unix_link(runtime.connect(), 20))
    [directory] = os.listdir(own_temp)
    path = os.path.join(own_temp, directory)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert stream.welcome.python == ".".join(map(str, sys.version_info[:3]))
    assert os.getsid(runtime.pid) == runtime.pid
    assert os.getsid(runtime.pid) != os.getsid(0)
    assert runtime.pid in processes(own_temp)
    assert len(processes(own_temp)) > 1
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
    assert "killed by SIGKILL; who did not kill it has too little memory" in str(
        runtime.unavailable()
    )
    assert runtime.unavailable().passing
    runtime.stop()


def test_one_that_does_not_answer_may_do_so_another_time(own_temp, monkeypatch):
    runtime = LocalRuntime([], 1)
    words = runtime.last_words
    monkeypatch.setattr(runtime, "last_words", lambda: words(0.0))
    error = runtime.unavailable()
    assert str(error).startswith(
        "the embedded runtime did not answer; this machine may be too busy"
    )
    assert error.passing
    runtime.stop()


def test_one_that_fails_in_its_own_way_says_how_to_see_more(own_temp, monkeypatch):
    monkeypatch.setattr("mentis_pool.runtime.local._RUNTIME", "raise RuntimeError('broken')")
    runtime = LocalRuntime([], 1)
    with pytest.raises(RuntimeUnavailable, match=r"(?s)RuntimeError: broken\nsee what this says"):
        runtime.connect()
    runtime.stop()


def test_where_no_file_can_be_opened_it_is_said_what_there_must_be_room_for(monkeypatch):
    def full():
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("mentis_pool.runtime.local._unnamed_file", full)
    with pytest.raises(RuntimeUnavailable, match=r"Too many open files; .*ulimit -n"):
        LocalRuntime([], 1)


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
    with pytest.raises(RuntimeUnavailable, match="Windows") as caught:
        LocalRuntime([], 1)
    assert not caught.value.passing, "nor will there be at another try"


def test_a_directory_that_cannot_be_made_is_named(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/self")
    runtime = LocalRuntime([], 1)
    with pytest.raises(RuntimeUnavailable, match=r"/proc/self.*TMPDIR") as caught:
        runtime.connect()
    assert not caught.value.passing
    runtime.stop()


@pytest.mark.parametrize(
    ("tempdir", "environment", "base"),
    [
        ("/usr", {"TMPDIR": "/var"}, "/usr"),
        (None, {"TMPDIR": "/var", "TMP": "/usr"}, "/var"),
        (None, {"TMPDIR": "/no/such/directory", "TMP": "/usr"}, "/usr"),
        (None, {"TMPDIR": ""}, "/tmp"),
        ("/" + "long" * 20, {}, "/tmp"),
    ],
)
def test_its_directory_goes_where_other_temporary_files_do(monkeypatch, tempdir, environment, base):
    monkeypatch.setattr("tempfile.tempdir", tempdir)
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert os.path.dirname(new_path()) == base


# ── kill -9 while it starts ─────────────────────────────────────────────────

MADE = """
import os, sys
from mentis_pool.runtime.local import LocalRuntime
made = []
def heard(event, arguments):
    creates = event == "open" and isinstance(arguments[0], str) and arguments[2] & os.O_CREAT
    if creates or event in ("os.mkdir", "os.link", "os.symlink", "os.rename", "socket.bind"):
        made.append((event, arguments))
sys.addaudithook(heard)
runtime = LocalRuntime([], 1)
runtime.connect().close()
print(made)
runtime.stop()
"""


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the log has a name for a moment")
def test_the_client_makes_no_file_that_it_could_leave(own_temp):
    assert family.script(MADE) == ("[]\n", "", 0)


KILLED = """
import os, random, signal, sys, time
from mentis_pool import SandboxExecutor
sys.path.append(sys.argv[1])  # and so it is among the words of all processes that are started
for number in range(20):
    client = os.fork()
    if client == 0:
        SandboxExecutor(max_workers=1).submit("1").result()
        time.sleep(60)
    time.sleep((number + random.random()) * 0.15 / 20)
    os.kill(client, signal.SIGKILL)
    os.waitpid(client, 0)
"""


def test_a_client_killed_at_any_moment_of_the_start_leaves_nothing(own_temp, eventually):
    assert family.script(KILLED, seconds=60, arguments=[own_temp]) == ("", "", 0)

    def left():
        words = [(p.pid, p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
        return [pid for pid, those in words if any(own_temp in word for word in those)]

    # The young are never swept, so that each has been removed by its own runtime.
    eventually(lambda: not left() and not os.listdir(own_temp), 30)


def test_one_killed_at_any_moment_of_its_start_leaves_nothing(own_temp, processes, eventually):
    for number in range(10):
        runtime = LocalRuntime([], 1)
        time.sleep(number * 0.02)
        os.kill(runtime.pid, signal.SIGKILL)
        runtime.stop()
        assert os.listdir(own_temp) == []
    eventually(lambda: not processes(own_temp))
