"""Which walls hold on this machine: each is tried for real, in a process of its own.

Called in a process with one thread, since it forks. Nothing that is tried lasts.
"""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

from mentis_pool.runtime import bubblewrap, groups, kernel, landlock, program, seccomp

_PATIENCE = 20.0
"""Seconds for a wall to stand and fall again."""

# What a zygote does for a slot, and the slot's worker before its first cell.
_SLOT = """
import os, platform, sys
sys.path[:] = sys.argv[1:]
from mentis_pool.runtime import namespaces, seccomp
own = namespaces.enter()
rooms = namespaces.Rooms(("/work", "/tmp", "/dev/shm"), [], "none")
if (pid := namespaces.fork(own)) == 0:
    rooms.settle()
    rooms.furnish(1 << 20, 100)
    rooms.end_all()
    rooms.renew()
    rooms.give_up(seccomp.program(platform.machine()))
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


class Found(NamedTuple):
    """Whether one wall holds here."""

    name: str
    held: bool
    detail: str
    """How, or why not."""


def found() -> list[Found]:
    """All of them, the strongest first."""
    return [standing_wall(), user_namespaces(), filtered_calls(), locked_files(), limited_groups()]


def standing_wall() -> Found:
    """Whether a wall stands with this very Python behind it, and slots can be made there."""
    name = "bubblewrap"
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    own = os.path.join(package, "mentis_pool")
    path = [package, *filter(None, sys.path)]
    wanted = bubblewrap.of_python(sys.executable, [sys.prefix, sys.base_prefix], [own, *path[1:]])
    try:
        its = bubblewrap.Wall(wanted, os.path.expanduser("~"))
    except bubblewrap.NoWall as exc:
        return Found(name, False, str(exc))
    try:
        done = subprocess.run(
            [*its.words, sys.executable, "-c", _SLOT, *path],
            preexec_fn=its.prepare,
            pass_fds=its.fds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        # What fails in `prepare` has no better words than these (see subprocess).
        return Found(name, False, f"it cannot be started: {exc}")
    finally:
        its.close()
    if done.returncode == 0:
        return Found(name, True, its.program)
    words = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
    return Found(name, False, words[-1])


def user_namespaces() -> Found:
    """Whether a user without privileges may make a user namespace, which bubblewrap begins with."""

    def unshare() -> None:
        if os.geteuid() == 0:
            os.setresuid(bubblewrap.NOBODY, bubblewrap.NOBODY, bubblewrap.NOBODY)
        kernel.unshare(kernel.NEW_USER)

    its = _tried("user namespaces", unshare, "an ordinary user may make them")
    return its if its.held else its._replace(detail=f"{its.detail}; {bubblewrap.remedy()}")


def filtered_calls() -> Found:
    """Whether the filter of system calls can be loaded, and filters."""
    name, machine = "seccomp", platform.machine()
    if machine not in seccomp.ARCHITECTURES:
        return Found(name, False, f"there is no filter for {machine}")

    def load() -> None:
        kernel.gain_no_privileges()
        kernel.filter_calls(seccomp.program(machine))
        try:
            kernel.unshare(0)
        except OSError as exc:
            if exc.errno == errno.EPERM:
                return
        raise OSError("what is denied is done")

    return _tried(name, load, f"a filter for {machine} is loaded")


def locked_files() -> Found:
    """Whether Landlock holds, and what of it this kernel lacks."""
    name, version = "landlock", kernel.landlock_version()
    if version == 0:
        return Found(name, False, landlock.MISSING)

    def restrict() -> None:
        landlock.restrict([], [])
        try:
            os.listdir("/")
        except PermissionError:
            return
        raise OSError("what is locked is open")

    since = (("truncating files", 3), ("TCP", 4), ("signals", 6))
    lacks = [what for what, first in since if version < first]
    return _tried(
        name,
        restrict,
        f"version {version}" + (f", which does not hold {' and '.join(lacks)}" if lacks else ""),
    )


def limited_groups() -> Found:
    """Whether a runtime that is started here may have control groups that bound memory."""
    with groups.Groups(f"{program.prefix()}doctor-{os.getpid()}") as its:
        return Found("cgroups", *its.settle())


def _tried(name: str, attempt: Callable[[], None], how: str) -> Found:
    """Make an attempt in a child: whether it raises nothing."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            attempt()
            code = 0
        except OSError as exc:
            os.write(writer, str(exc).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, errors="replace") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return Found(name, code == 0, how if code == 0 else said or f"ended with {code}")
