"""What Landlock is told, and what a process that it binds can still reach."""

from __future__ import annotations

import gc
import os
import socket
import struct
import subprocess
import sys

import pytest

from mentis_pool.runtime import kernel, landlock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")

VERSION = kernel.landlock_version() if sys.platform == "linux" else 0

# landlock(7): the rights to files, from the first on, and the version that has the last of them.
LAST = {1: 12, 2: 13, 3: 14, 4: 14, 5: 15, 6: 15, 7: 15}


@pytest.mark.parametrize("version", LAST)
def test_all_that_a_version_knows_is_forbidden_unless_allowed(version):
    files, *rest = struct.unpack(
        f"={1 + (version >= 4) + (version >= 6)}Q", landlock.attributes(version, "none")
    )
    assert files == (1 << LAST[version] + 1) - 1
    assert rest == [3, 3][: len(rest)]


def test_the_network_is_left_alone_on_request():
    assert struct.unpack("=3Q", landlock.attributes(7, "host"))[1:] == (0, 3)


def test_what_may_be_read_may_not_be_written_nor_removed_nor_made():
    allowed, fd = struct.unpack("=Qi", landlock.rule(7, 5, 0o040755, writable=False))
    assert (allowed, fd) == (0b1101, 5)


def test_what_may_be_written_may_have_anything_but_device_nodes():
    (allowed, _) = struct.unpack("=Qi", landlock.rule(7, 5, 0o040755, writable=True))
    assert allowed == 0xFFFF & ~(1 << 6) & ~(1 << 11)


def test_a_file_is_given_what_files_have():
    (allowed, _) = struct.unpack("=Qi", landlock.rule(7, 5, 0o100644, writable=True))
    assert allowed == 0b111 | 1 << 14 | 1 << 15


# ── and really ──────────────────────────────────────────────────────────────


def bound(tmp_path, code, since=1, network="none"):
    """What a bound process says; its own are ``own`` (and /dev/null) to write, ``lib`` to read."""
    if since > VERSION:
        pytest.skip(f"Landlock's version here is {VERSION}")
    for name in ("own", "lib", "other"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "file").write_text(name)
    program = (
        "import os, signal, socket, sys\n"
        "from mentis_pool.runtime import landlock\n"
        "def tried(call, *arguments):\n"
        "    try:\n"
        "        return call(*arguments) and 'works'\n"
        "    except OSError as exc:\n"
        "        return exc.strerror\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "landlock.restrict(['lib', 'gone', *filter(os.path.exists, sys.path), sys.base_prefix, '/usr', '/lib'],"
        f" ['own', '/dev/null'], {network!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + code], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


def test_what_is_named_is_there_and_nothing_else(tmp_path):
    code = (
        "for name in ('own', 'lib', 'other'):\n"
        "    print(tried(open, name + '/file'), tried(open, name + '/file', 'a'))\n"
        "print(tried(open, '/etc/passwd'), tried(os.listdir, '/root'), tried(open, '/dev/null', 'w'))"
    )
    denied = "Permission denied"
    assert bound(tmp_path, code) == [
        *("works works", f"works {denied}", f"{denied} {denied}"),
        f"{denied} {denied} works",
    ]


def test_its_own_directory_can_be_worked_in(tmp_path):
    code = (
        "os.makedirs('own/a/b')\n"
        "os.rename('own/file', 'own/a/b/file')\n"
        "os.truncate('own/a/b/file', 1)\n"
        "os.symlink('file', 'own/a/b/link'), os.unlink('own/a/b/link')\n"
        "print(open('own/a/b/file').read())"
    )
    assert bound(tmp_path, code, since=3) == ["o"]


def test_no_port_can_be_reached_unless_the_network_is_given(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"print(tried(socket.create_connection, {server.getsockname()!r}, 5))"
        assert bound(tmp_path, code, since=4) == ["Permission denied"]
        assert bound(tmp_path, code, since=4, network="host") == ["works"]


def test_processes_outside_cannot_be_signalled_but_its_own_can(tmp_path):
    code = (
        "print(tried(os.kill, os.getppid(), 0))\n"
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '9'])\n"
        "child.kill()\n"
        "print(child.wait())"
    )
    assert bound(tmp_path, code, since=6) == ["Operation not permitted", "-9"]


def test_an_abstract_socket_of_others_cannot_be_reached(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")
        server.listen()
        code = f"print(tried(socket.socket(socket.AF_UNIX).connect, {server.getsockname()!r}))"
        assert bound(tmp_path, code, since=6) == ["Operation not permitted"]


def test_without_landlock_there_is_an_error(monkeypatch):
    monkeypatch.setattr(kernel, "_CREATE_RULESET", 9999)
    assert kernel.landlock_version() == 0
    with pytest.raises(OSError, match="landlock_create_ruleset"):
        landlock.restrict([], [])


def test_a_file_descriptor_is_not_left_open():
    if VERSION == 0:
        pytest.skip("this kernel has no Landlock")
    pid = os.fork()
    if pid == 0:
        try:
            # Here, where no other thread opens any meanwhile.
            gc.collect()
            before = os.listdir("/proc/self/fd")
            landlock.restrict(["/"], [])
            os._exit(len(os.listdir("/proc/self/fd")) - len(before))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
