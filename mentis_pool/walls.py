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
        (True, "only the system, Python and what is imported from can be opened, read-only"),
        (False, "a cell reads and writes what your user can"),
    ),
    "other processes": (
        (True, "a pid namespace for each sandbox"),
        (
            True,
            "no signals, no tracing, nothing of theirs can be read; that they run can be found out, "
            "and a socket with a path can be connected to",
        ),
        (False, "a cell may signal and trace what your user can"),
    ),
    "other sandboxes": (
        (True, "pid, mount, ipc and network namespaces for each"),
        (False, "files are apart, /dev/shm and sockets with a path are not"),
        (False, "all have the same user and the same files"),
    ),
    "runtime and client": (
        (True, "neither their sockets, nor processes, nor environment are in the sandbox"),
        (
            True,
            "nothing of theirs can be read, no signals, and the runtime answers nobody but its client",
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
        (False, "what is left in /dev/shm and in System V ipc stays"),
        (False, "what is written outside of the sandbox's directories stays"),
    ),
}
_NETWORK: tuple[_Said, _Said, _Said] = (
    (True, "a loopback of its own, and nothing else"),
    (True, "no sockets of the internet can be made"),
    (False, "a cell reaches what this machine reaches"),
)


def report(level: str, network: str) -> list[Wall]:
    """Each wall at this level of isolation.

    Args:
        level: one of `LEVELS`; or what nothing is known of.
        network: "none", or "host", which was asked for.
    """
    if level not in LEVELS:
        return [Wall("all", False, "nothing is known of how this runtime isolates sandboxes")]
    at = LEVELS.index(level)
    walls = [Wall(name, *said[at]) for name, said in _WALLS.items()]
    said = _NETWORK[at] if network == "none" else (False, "network='host' was asked for")
    return [*walls, Wall("network", *said)]


def warning(level: str, network: str, reasons: Sequence[str]) -> str:
    """What to tell whoever asked for the strongest level, and has this one.

    Args:
        reasons: why not the stronger ones.
    """
    lacks = ", ".join(wall.name for wall in report(level, network) if not wall.held)
    return (
        f"sandboxes run at isolation={level!r}, which does not hold against hostile code: {lacks}. "
        f"{'; '.join(reasons)}. See what this machine lacks with 'mentis-pool doctor', or say "
        f"isolation={level!r} if that is enough"
    )
