"""What is held against a hostile cell at each level of isolation, in words for people.

Nothing is tried here: a runtime says at which level it stands, having tried it, and this says
what that means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LEVELS = ("bubblewrap", "landlock", "process")
"""The strongest first."""


class Wall(NamedTuple):
    """One wall, and whether it holds."""

    name: str
    held: bool
    detail: str
    """How, or what a cell may do."""

    def __str__(self) -> str:
        return f"{self.name}: {'held' if self.held else 'NOT held'} ({self.detail})"


_Said = tuple[bool, str]

# Each at the levels in their order.
_WALLS: dict[str, tuple[_Said, _Said, _Said]] = {
    "host files": (
        (True, "only the system, Python and what is imported from is there, read-only"),
        (
            True,
            "only the system, Python and what is imported from can be opened, read-only, and "
            "/dev/shm; modes and times of your user's files can be changed",
        ),
        (False, "a cell reads and writes what your user can"),
    ),
    "other processes": (
        (True, "a pid namespace for each sandbox"),
        (
            True,
            "no signals, no tracing, no changes, nothing of theirs can be read, no sockets; that they "
            "run can be found out",
        ),
        (False, "a cell may signal and trace what your user can"),
    ),
    "other sandboxes": (
        (True, "pid, mount, ipc and network namespaces for each"),
        (False, "files are apart, /dev/shm is not"),
        (False, "all have the same user and the same files"),
    ),
    "runtime and client": (
        (True, "neither their sockets, nor processes, nor environment are in the sandbox"),
        (
            True,
            "nothing of theirs can be read, no signals, no sockets",
        ),
        (False, "they run as the same user"),
    ),
    "system calls": (
        (True, "no privileges, no capabilities, a seccomp filter"),
        (True, "no new privileges, a seccomp filter"),
        (False, "what your user may call, a cell may"),
    ),
    "leftovers": (
        (True, "between fresh cells everything is killed, and files and ipc are new"),
        (False, "what is left in /dev/shm stays"),
        (False, "what is written outside of the sandbox's directories stays"),
    ),
}
_SINCE: dict[str, tuple[int, str]] = {
    "host files": (3, "a cell may truncate what your user can write"),
    "other processes": (6, "a cell may signal what your user can"),
    "runtime and client": (6, "a cell may end them with a signal"),
}
"""Which walls an older Landlock does not hold: its version that does, and what a cell may do."""
_NETWORK: tuple[_Said, _Said, _Said] = (
    (True, "a loopback of its own, and nothing else"),
    (True, "no sockets of the internet can be made"),
    (False, "a cell reaches what this machine reaches"),
)


def report(
    level: str, network: str, landlock: int = 6, groups: tuple[bool, str] | None = None
) -> list[Wall]:
    """Each wall at this level of isolation, and what holds the memory of a sandbox.

    Args:
        level: one of `LEVELS`; or what nothing is known of.
        network: "none", or "host", which was asked for.
        landlock: the version of Landlock that the kernel has.
        groups: whether control groups hold memory, and where or why not; None where nobody says.
    """
    if level not in LEVELS:
        return [Wall("all", False, "nothing is known of how this runtime isolates sandboxes")]
    at = LEVELS.index(level)
    walls = [Wall(name, *said[at]) for name, said in _WALLS.items()]
    if level == "landlock":
        walls = [_of_version(wall, landlock) for wall in walls]
    said = _NETWORK[at] if network == "none" else (False, "network='host' was asked for")
    walls.append(Wall("network", *said))
    if groups is not None:
        walls.append(_memory(*groups))
    return walls


def _memory(held: bool, detail: str) -> Wall:
    """The line of control groups, of which there may be none at the strongest level, too."""
    how = f"the kernel bounds the memory of each sandbox, below {detail}"
    return Wall("cgroups", held, how if held else f"the runtime alone watches memory: {detail}")


def _of_version(wall: Wall, version: int) -> Wall:
    since, may = _SINCE.get(wall.name, (0, ""))
    if version >= since:
        return wall
    return Wall(wall.name, False, f"{may}: Landlock here is of version {version}, not {since}")


def warning(level: str, network: str, reasons: Sequence[str], landlock: int = 6) -> str:
    """What to tell whoever asked for the strongest level, and has this one.

    Args:
        reasons: why not the stronger ones.
        landlock: as of `report`.
    """
    walls = report(level, network, landlock)
    lacks = ", ".join(wall.name for wall in walls if not wall.held)
    return (
        f"sandboxes run at isolation={level!r}, which does not hold against hostile code: {lacks}. "
        f"{'; '.join(reasons)}. See what this machine lacks with 'mentis-pool doctor', or say "
        f"isolation={level!r} if that is enough"
    )
