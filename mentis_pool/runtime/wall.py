"""The wall between sandboxes and the host: what bubblewrap is told to show, as plain values.

One bubblewrap stands around the zygote and all that is forked from it. Nothing of the host is
seen but the system's own programs, the Python environment and the directories that the client
imports from, all read-only at their own paths. `/work`, `/tmp` and `/dev/shm` are empty here: each
sandbox has its own (see `mentis_pool.runtime.namespaces`), in which what the wall shows below
these is mounted again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

ROOMS = ("/work", "/tmp", "/dev/shm")
"""The directories that each sandbox has for itself."""

_USER = 1000  # what a sandbox believes to be

# To show one of these would show more than a directory to import from.
_TOO_MUCH = frozenset(
    (
        *("/", "/etc", "/home", "/media", "/mnt", "/root", "/run", "/srv", "/var"),
        *("/dev", "/dev/shm", "/proc", "/sys", "/tmp", "/var/tmp", "/work"),
    )
)


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
