"""System calls that the standard library does not offer, each by what it does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from mentis_pool.runtime import posix


def test_what_c_code_printed_is_the_cells(executor):
    result = executor.submit("import ctypes\nctypes.CDLL(None).puts(b'from C')").result()
    assert result.stdout == "from C\n"


def test_descriptors_come_along_with_what_is_sent():
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    with ours, theirs:
        posix.send(ours, b"word", [reader, writer])
        data, fds, _ = posix.receive(theirs, 100, 2)
    os.write(fds[1], b"through")
    assert (data, os.read(reader, 100)) == (b"word", b"through")
    for fd in (reader, writer, *fds):
        os.close(fd)


PARENT = """
import os, time
from mentis_pool.runtime import posix
parent = os.getpid()
if os.fork() == 0:
    posix.die_with_parent(parent)
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2)")
def test_who_dies_with_its_parent_dies_with_it(eventually):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        eventually(
            lambda: (
                not psutil.pid_exists(child)
                or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
            ),
            5,
        )


def test_who_has_lost_its_parent_already_ends_at_once():
    pid = os.fork()
    if pid == 0:
        posix.die_with_parent(os.getppid() + 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="there is no procfs")
def test_children_are_listed_where_the_kernel_lists_them():
    with subprocess.Popen(["sleep", "100"]) as process:
        assert (process.pid in posix.children()) == posix.lists_children()
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="waitid(2)")
def test_a_child_whose_end_was_awaited_can_still_be_waited_for():
    process = subprocess.Popen(["sleep", "100"])
    os.kill(process.pid, signal.SIGKILL)
    posix.await_end(process.pid)
    assert process.pid in posix.children()
    assert process.wait() == -signal.SIGKILL


def test_a_socket_takes_more_ahead_and_then_as_much_as_before():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        posix.enlarge(ours, posix.enlarge(ours))
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before
        posix.enlarge(ours)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= before


def test_a_tracker_is_told_from_others():
    assert not posix.is_tracker(os.getpid())
    assert not posix.is_tracker(2**31 - 1)
    source = "from multiprocessing.resource_tracker import main; main(0)"
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE) as process:
        assert posix.is_tracker(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody says who connects")
def test_a_listener_takes_connections_of_its_one_process_alone(tmp_path):
    path = str(tmp_path / "socket")
    ask = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "sock.connect(sys.argv[1])\n"
        "sys.exit(0 if sock.recv(1) == b'' else 1)"
    )
    with posix.Listener(path, os.getpid()) as listener, socket.socket(socket.AF_UNIX) as own:
        listener.listen()
        with subprocess.Popen([sys.executable, "-c", ask, path]) as other:
            with pytest.raises(ConnectionAbortedError):
                listener.accept()
        assert other.returncode == 0
        own.connect(path)
        listener.accept()[0].close()
        assert own.recv(1) == b""
