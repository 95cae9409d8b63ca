"""What the processes of a sandbox use, read from /proc (Linux).

Whoever has the pid of a sandbox's init finds all others from there: each is a
descendant, since the init adopts orphans. What cannot be read (a process ended
meanwhile) is not counted; what a process hides is counted for the most that it
can be. Nothing here waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")

_SHARE, _SHARE_NEAR = 0.05, 0.25
"""Share of the time that may go into measuring memory exactly (11 ms for 500 MB), and near a limit."""
_LOOK = 0.004
"""Seconds that go into looking at files, at once."""
_BLOCK = 4096


class Reading(NamedTuple):
    """What a sandbox uses now."""

    cpu_seconds: float
    """Since `Meter.begin`; at the first reading after it nothing yet."""
    memory: int
    processes: int
    """Its processes and threads, or more than were asked for."""


class _Process(NamedTuple):
    pid: int
    own: float
    """CPU seconds of its own."""
    waited: float
    """CPU seconds of its children that it has waited for."""
    threads: int
    resident: int


class Meter:
    """Reads what the descendants of an init use.

    Args:
        init: its pid, as it is here.
    """

    def __init__(self, init: int) -> None:
        self._init = init
        self._names: dict[int, int] = {}
        """What a child of the init is called in its own pid namespace."""
        self.begin()

    def begin(self) -> None:
        """Count CPU time from the next reading on, and know nothing of the memory before."""
        self._exact: tuple[float, int, int] | None = None
        """The last exact figure: until when it is taken, the sum of resident sets then, and itself."""
        self._own: dict[int, float] = {}
        self._before: tuple[float, float] | None = None
        self._cpu = 0.0

    def read(self, spare: int = 0, most: int | None = None, memory: int | None = None) -> Reading:
        """What it uses now, but for its init and one worker that waits.

        Args:
            spare: that worker, as it is called in its namespace.
            most: of no more processes and threads than this it need be known.
            memory: up to here, of a single process, the resident set says enough.
        """
        found: list[_Process] = []
        count = 0
        for process in self._processes(spare):
            found.append(process)
            count += process.threads
            if most is not None and count > most:
                break
        return Reading(self._cpu_seconds(found), self._memory(found, memory), count)

    def total_cpu_seconds(self) -> float:
        """CPU seconds of all that was ever in the sandbox, as far as anybody waited for it."""
        init = _stat(self._init)
        own = [] if init is None else [init]
        return sum(process.own + process.waited for process in [*own, *self._processes(0)])

    def _processes(self, spare: int) -> Iterator[_Process]:
        children = _children(self._init, 1)
        if spare:
            children = [pid for pid in children if self._name(pid) != spare]
        while children:
            process = _stat(children.pop())
            if process is not None:
                yield process
                children += _children(process.pid, process.threads)

    def _name(self, pid: int) -> int:
        if pid not in self._names:
            if len(self._names) > 100:
                self._names.clear()
            self._names[pid] = _inner_pid(pid)
        return self._names[pid]

    def _cpu_seconds(self, found: list[_Process]) -> float:
        # Whoever was waited for is in its parent's account; who was not, only in ours.
        accounts = sum(process.own + process.waited for process in found)
        self._own.update((process.pid, process.own) for process in found)
        seen = sum(self._own.values())
        if self._before is None:
            self._before = accounts, seen
        used = max(accounts - self._before[0], seen - self._before[1])
        self._cpu = max(self._cpu, used)
        return self._cpu

    def _memory(self, found: list[_Process], enough: int | None) -> int:
        resident = sum(process.resident for process in found)
        if len(found) < 2:
            if enough is None or resident <= enough:
                return resident
            least = self._least_memory(found[0])
            if least > enough:
                return least
        now = time.monotonic()
        if self._exact is not None:
            until, of, figure = self._exact
            most = max(figure, figure + resident - of)
            if now < until and (enough is None or most <= enough):
                return figure
        figure = sum(_exact_memory(process) for process in found)
        took = time.monotonic() - now
        # What was shared and is no longer makes no sum larger: hence again soon, where it matters.
        share = _SHARE if enough is None or resident <= enough else _SHARE_NEAR
        self._exact = now + took / share, resident, figure
        return figure

    def _least_memory(self, process: _Process) -> int:
        """What it holds at least: what is private or like it, but for all that it can share with its init."""
        init = _stat(self._init)
        try:
            with open(f"/proc/{process.pid}/statm", "rb") as file:
                resident, shared = map(int, file.read().split()[1:3])
        except OSError:
            return 0
        return (resident - shared) * _PAGE - (init.resident if init is not None else 0)


def descendants(pid: int) -> list[int]:
    """The pids of all that this process has started, and those in turn, as far as they are its own."""
    found: list[int] = []
    left = [pid]
    while left:
        process = _stat(left.pop())
        if process is not None:
            children = _children(process.pid, process.threads)
            found += children
            left += children
    return found


def _children(pid: int, threads: int) -> list[int]:
    try:
        tasks = [str(pid)] if threads == 1 else os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
        except OSError:
            continue
    return found


def _stat(pid: int) -> _Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # After the name, which may hold anything, come those from the third on (proc(5)).
            fields = file.read().rpartition(b") ")[2].split()
        own, waited = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        resident = int(fields[21]) * _PAGE
        return _Process(pid, own / _TICKS, waited / _TICKS, max(1, int(fields[17])), resident)
    except (OSError, IndexError):
        return None


def _inner_pid(pid: int) -> int:
    """What a process is called in its own pid namespace."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except OSError:
        pass
    return 0


_HELD = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")


def _exact_memory(process: _Process) -> int:
    """Bytes that a process holds, what it shares by its share; files of a disk, which it may see, not."""
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        # It lets nobody look (PR_SET_DUMPABLE, prctl(2)), or has ended: then it holds nothing.
        now = _stat(process.pid)
        return 0 if now is None else now.resident
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_HELD))


class Files:
    """How many bytes the files below a directory take, looked up bit by bit."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.forget()

    def forget(self) -> None:
        """What is known may be no longer so."""
        self._walk: Iterator[int] | None = None
        self._known = 0
        self._again = 0.0

    def look(self) -> int:
        """The bytes, as far as they are known: what a walk has found so far, or the last one."""
        begun = time.monotonic()
        if self._walk is None:
            if begun < self._again:
                return self._known
            self._walk = self._sums()
        found = 0
        for found in self._walk:
            if found > self._known:
                # It is no less than that, however the walk goes on.
                self._known = found
            if time.monotonic() - begun > _LOOK:
                return self._known
        self._walk = None
        self._known = found
        self._again = begun + (time.monotonic() - begun) / _SHARE
        return found

    def _sums(self) -> Iterator[int]:
        """What is found, after each file."""
        left = [self._directory]
        found = 0
        while left:
            try:
                with os.scandir(left.pop()) as entries:
                    for entry in entries:
                        blocks = entry.stat(follow_symlinks=False).st_blocks
                        # An empty file takes its place, too.
                        found += max(_BLOCK, blocks * 512)
                        if entry.is_dir(follow_symlinks=False):
                            left.append(entry.path)
                        yield found
            except OSError:
                continue  # it is gone, or may not be read
        yield found
