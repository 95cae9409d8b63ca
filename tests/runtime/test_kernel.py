"""System calls: that they do what they are named for, and say so when they cannot."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from mentis_pool.runtime import kernel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's")


def in_child(code):
    """What a new Python prints; what it does to itself is done to no one else."""
    head = "import os\nfrom mentis_pool.runtime import kernel\n"
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


STATUS = "status = dict(line.split(':\\t', 1) for line in open('/proc/self/status'))\n"


@pytest.mark.parametrize(
    ("call", "name", "number"),
    [
        (lambda: kernel.unshare(0x1), "unshare", errno.EINVAL),
        (lambda: kernel.set_namespace(-1, 0), "setns", errno.EBADF),
        (lambda: kernel.mount("none", "/no/such", "tmpfs", 0), "mount", None),
        (lambda: kernel.unmount("/no/such"), "umount2", None),
        (lambda: kernel.filter_calls(b""), "prctl", errno.EINVAL),
        (lambda: kernel.landlock_create(b""), "landlock_create_ruleset", None),
        (lambda: kernel.landlock_allow(-1, bytes(12)), "landlock_add_rule", None),
        (lambda: kernel.landlock_restrict(-1), "landlock_restrict_self", None),
    ],
)
def test_a_call_that_fails_says_which_and_why(call, name, number):
    with pytest.raises(OSError, match=f"{name}: ") as caught:
        call()
    assert caught.value.errno
    assert number in (None, caught.value.errno)


def test_a_path_is_named_where_one_is_the_matter():
    with pytest.raises(OSError, match="umount2") as caught:
        kernel.unmount("/no/such")
    assert caught.value.filename == "/no/such"


def test_no_capability_is_left_once_they_are_dropped():
    code = STATUS + "print(*(status[n].strip('0\\n') for n in ('CapPrm', 'CapEff', 'CapInh')))"
    assert in_child("kernel.drop_capabilities()\n" + code) == []


def test_no_privileges_are_gained_from_then_on():
    assert in_child("kernel.gain_no_privileges()\n" + STATUS + "print(status['NoNewPrivs'])") == [
        "1"
    ]


@pytest.mark.parametrize(("dumpable", "owner"), [(True, os.getuid()), (False, 0)])
def test_who_is_not_dumpable_owns_nothing_in_proc(dumpable, owner):
    # (As root both are root's: there the next test tells.)
    code = f"kernel.set_dumpable({dumpable})\nprint(os.stat('/proc/self/mem').st_uid)"
    assert in_child(code) == [str(owner)]


def test_dumpable_is_what_was_set():
    code = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "for it in (False, True):\n"
        "    kernel.set_dumpable(it)\n"
        "    print(libc.prctl(3, 0, 0, 0, 0))"
    )
    assert in_child(code) == ["0", "1"]


def can_mount():
    pid = os.fork()
    if pid == 0:
        try:
            kernel.unshare(kernel.NEW_MOUNTS)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.skipif(sys.platform != "linux" or not can_mount(), reason="mounting takes privileges")
def test_mounts_are_made_shown_elsewhere_and_taken_away(tmp_path):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "sub" / "file").write_text("sub's")
    (tmp_path / "a" / "file").write_text("a's")
    code = f"""
os.chdir({str(tmp_path)!r})
kernel.unshare(kernel.NEW_MOUNTS)
kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
directory, file = os.open("a/sub", os.O_PATH), os.open("a/file", os.O_PATH)
kernel.mount("tmpfs", "a", "tmpfs", kernel.NO_EXEC, "size=4096,mode=700")
print(os.listdir("a"))
kernel.mount_at(directory, "a/in/deep")
kernel.mount_at(file, "a/more/file")
print(open("a/in/deep/file").read(), open("a/more/file").read())
kernel.unmount("a")
print(*sorted(os.listdir("a"), reverse=True))
"""
    assert in_child(code) == ["[]", "sub's", "a's", "sub", "file"]
    assert sorted(os.listdir(tmp_path / "a")) == ["file", "sub"]
