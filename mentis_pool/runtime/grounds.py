"""What sandboxes stand on, at each level of isolation: how they are forked, cleaned and bound.

The zygote makes one and enters it; each init, forked by it, stands by there and settles once it is
wanted; each worker gives up what it does not need before its first cell.
"""

from __future__ import annotations

import os
import platform
import traceback
from typing import TypedDict

from mentis_pool.limits import Limits
from mentis_pool.runtime import isolation, kernel, landlock, namespaces, posix, seccomp, wall

_SIZE, _FILES = 1 << 40, 1 << 30
"""Bytes, and files and directories, that a sandbox may have which has no limit."""
_PAGE, _LEAST_FILES = 4096, 1000
"""Bytes that a file takes at least."""
_SCRATCH = "/dev/shm"
"""Where modules that are preloaded may write; each sandbox covers it."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/shm")
_SEEN = (
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/uptime", "/proc/loadavg"),
    *("/proc/version", "/proc/filesystems", "/proc/sys/kernel", "/sys/devices/system/cpu"),
)


class Plan(TypedDict):
    """What the zygote is told of the ground."""

    level: str
    network: str
    shown: list[str]
    """Of bubblewrap, what lies below the rooms; of Landlock, all that may be read."""


class Ground:
    """Level "process": directories of one's own, and a process group."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._directory = ""

    def enter(self) -> None:
        """As the zygote, before anything else; it may go on as another process."""

    def loaded(self) -> None:
        """As the zygote, once all is imported: have what is the same in every sandbox."""

    def fork(self) -> int:
        """os.fork(), for an init."""
        return os.fork()

    def stand_by(self) -> None:
        """As an init: have what there is in each sandbox."""
        posix.adopt_orphans()

    def settle(self, directory: str, limits: Limits) -> None:
        """As an init: have the sandbox whose files go below this directory, if they go anywhere."""
        self._directory = directory
        os.environ.update(isolation.sandbox_environment(directory))

    def end_all(self) -> bool:
        """As an init: kill all other processes of the sandbox at once; whether that can be done here."""
        return False

    def empty(self) -> None:
        """As an init, when all that could write is gone: leave no file in the sandbox."""
        isolation.empty(self._directory)

    def give_up(self) -> None:
        """As a worker or a command: be bound by what holds for cells."""


class _Locked(Ground):
    """Level "landlock"."""

    def enter(self) -> None:
        families = seccomp.NOWHERE if self._plan["network"] == "none" else seccomp.INTERNET
        self._program = seccomp.program(platform.machine(), families, sees_others=True)
        _try(self)

    def empty(self) -> None:
        # The trial has none.
        if self._directory:
            super().empty()

    def give_up(self) -> None:
        writable = [*filter(None, [self._directory]), "/proc/self", *_DEVICES]
        landlock.restrict([*self._plan["shown"], *_SEEN], writable, self._plan["network"])
        kernel.drop_capabilities()
        kernel.set_dumpable(True)
        kernel.filter_calls(self._program)


class _Walled(Ground):
    """Level "bubblewrap"; this process is behind the wall already."""

    def enter(self) -> None:
        self._own = namespaces.enter()
        if not posix.lists_children():
            raise OSError("this kernel lists no process's children (CONFIG_PROC_CHILDREN)")
        self._program = seccomp.program(platform.machine())
        plan = self._plan
        self._rooms = namespaces.Rooms(wall.ROOMS, plan["shown"], plan["network"])
        _try(self)
        kernel.mount("tmpfs", _SCRATCH, "tmpfs", kernel.NO_SUID | kernel.NO_DEVICES, "mode=700")
        os.environ.update(HOME=_SCRATCH, TMPDIR=_SCRATCH)

    def loaded(self) -> None:
        work, temporary, _ = wall.ROOMS
        os.environ.update(HOME=work, TMPDIR=temporary, PWD=work)

    def fork(self) -> int:
        return namespaces.fork(self._own)

    def stand_by(self) -> None:
        self._rooms.settle()

    def settle(self, directory: str, limits: Limits) -> None:
        if limits.disk is None:
            self._rooms.furnish(_SIZE, _FILES)
        else:
            self._rooms.furnish(limits.disk, max(_LEAST_FILES, limits.disk // _PAGE))
        if limits.processes is not None:
            # The supervisor's watch is more exact, and later.
            namespaces.limit_processes(limits.processes)

    def end_all(self) -> bool:
        self._rooms.end_all()
        return True

    def empty(self) -> None:
        self._rooms.renew()

    def give_up(self) -> None:
        self._rooms.give_up(self._program)


def of(plan: Plan) -> Ground:
    """The ground of this plan."""
    kinds = {"bubblewrap": _Walled, "landlock": _Locked, "process": Ground}
    return kinds[plan["level"]](plan)


def _try(ground: Ground) -> None:
    """Have a sandbox once, so that what does not work here is known before there is one to lose.

    Raises:
        OSError: it does not work; why is on stderr.
    """
    pid = ground.fork()
    if pid == 0:
        code = 1
        try:
            ground.stand_by()
            ground.settle("", Limits())
            ground.end_all()
            ground.empty()
            ground.give_up()
            code = 0
        except BaseException:  # noqa: BLE001 - the last words of this process
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise SystemExit(1)
