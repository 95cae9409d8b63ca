"""Control groups (cgroups(7)), in which the kernel holds the memory of each sandbox as a whole.

Only a group that was handed to this runtime is used (see `place`), and what is said in it about
others stays. What is made below it::

    the group handed to us
      mentis-1000-xxxx      named and locked as the runtime's directory: unlocked, the next one sweeps it
        runtime             this process and its others, where the second version wants them out of the way
        s-xxxx.1            a sandbox; another one once the kernel has killed something in it

To move a process the kernel takes 5 to 15 ms, which nobody waits for: one thread makes, fills and
removes them, and until it has, and wherever no group was handed over, the runtime's watch holds
alone. `Groups.close` ends that thread: it waits in `get()` only, and is woken there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mentis_pool.limits import Limits
from mentis_pool.runtime import meter, posix

_ALONE = "runtime"
_KEPT = 32 << 20
"""Bytes that the kernel keeps for a sandbox (page tables, stacks), besides an eighth of its memory."""
_NEAR = 4 << 20
"""Bytes below its limit at which a group may be when there is no room for what is asked for at once."""
_AGAIN, _PATIENCE = 0.1, 10.0
"""Seconds between two tries to remove a group, whose processes are on their way out, and for all of them."""
_ROUNDS = 10
"""So often are processes looked for that were forked meanwhile."""


class NotHanded(Exception):
    """No group may be used here; the message says why."""


class Place(NamedTuple):
    """A group that may be used."""

    base: str
    version: int
    moves: bool = False
    """Whether this runtime's processes are in it, and must go below: it has no others."""


# ── deciding ────────────────────────────────────────────────────────────────


def most(limits: Limits, files_in_memory: bool) -> int | None:
    """Bytes that the kernel lets a sandbox have, None for no bound.

    It counts what the limit on memory does not: what it keeps itself, and files where they are in
    memory, which have a limit of their own. So whoever reaches this is over the limit.
    """
    if limits.memory is None or (files_in_memory and limits.disk is None):
        return None
    files = limits.disk if files_in_memory and limits.disk is not None else 0
    return limits.memory + limits.memory // 8 + _KEPT + files


def own_group(groups: str, mounts: str) -> tuple[str, int, bool] | None:
    """Where the group is that bounds the memory of a process, None where it is not to be seen.

    Args:
        groups: /proc/PID/cgroup.
        mounts: /proc/PID/mountinfo.

    Returns:
        Its directory, the version of control groups, and whether it is the root, of the
        machine or of a namespace.
    """
    found: dict[int, tuple[str, int, bool]] = {}
    for line in groups.splitlines():
        _, names, path = line.split(":", 2)
        for mount in mounts.splitlines():
            before, _, after = mount.partition(" - ")
            _, _, _, root, where, *_ = before.split(" ")
            kind, _, options = after.split(" ")[:3]
            inside = os.path.relpath(path, root)
            # What lies outside of this process's namespace has no path in it.
            if any(each.startswith(("..", "/..")) for each in (path, root, inside)):
                continue
            directory = os.path.normpath(os.path.join(where, inside))
            if kind == "cgroup2" and not names:
                found[2] = directory, 2, path == "/"
            elif (
                kind == "cgroup" and "memory" in names.split(",") and "memory" in options.split(",")
            ):
                found[1] = directory, 1, path == "/"
    # A machine with both has this controller in the first version, if it is there.
    return found.get(1) or found.get(2)


def place(groups: str, mounts: str) -> Place:
    """Which group may be used; the arguments are those of `own_group`.

    Of the first version: our own, if it is not the machine's and can be written. Of the second:
    our own where it was delegated and has no process but this one and its descendants, or the one
    above, which systemd marks as delegated and has kept free of processes (DelegateSubgroup=).

    Raises:
        NotHanded: none.
    """
    own = own_group(groups, mounts)
    if own is None:
        raise NotHanded("no group that bounds memory is to be seen")
    directory, version, at_root = own
    if version == 1:
        if os.path.exists(os.path.join(directory, "release_agent")):
            raise NotHanded(f"{directory} is the whole machine's")
        its = Place(directory, 1)
    else:
        its = _delegated(directory, at_root)
    for name in ("", "cgroup.procs", *(("cgroup.subtree_control",) if version == 2 else ())):
        path = os.path.join(its.base, name)
        if not os.access(path, os.W_OK, effective_ids=True):
            raise NotHanded(f"{path} cannot be written")
    if version == 2 and "memory" not in _words(its.base, "cgroup.controllers"):
        raise NotHanded(f"{its.base} has no memory controller")
    return its


def _delegated(own: str, at_root: bool) -> Place:
    above = os.path.dirname(own)
    if not at_root and _marked(above) and not _words(above, "cgroup.procs"):
        return Place(above, 2)
    # To whom a group belongs that lies in another's it was given, by whoever that is.
    given = _owned(own) and (at_root or not _owned(above))
    # The machine's own root has no type.
    if not (_marked(own) or given) or not os.path.exists(os.path.join(own, "cgroup.type")):
        raise NotHanded(f"{own} was not delegated (systemd: Delegate=yes)")
    others = {*map(int, _words(own, "cgroup.procs"))} - {
        os.getpid(),
        *meter.descendants(os.getpid()),
    }
    if others:
        raise NotHanded(
            f"{own} has other processes than the runtime's, {min(others)} for one "
            "(systemd: DelegateSubgroup=)"
        )
    return Place(own, 2, moves=True)


def _marked(group: str) -> bool:
    """Whether systemd says that it has handed it over (CGROUP_DELEGATION of systemd)."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _owned(group: str) -> bool:
    return os.stat(group).st_uid == os.geteuid()


def kills(said: str, version: int) -> int:
    """How many processes the kernel killed for a group's own limit.

    Args:
        said: memory.events, or memory.oom_control of the first version, which does not tell
            whose limit it was.
    """
    counts = dict(line.split() for line in said.splitlines())
    own = version == 1 or int(counts.get("oom", 0)) > 0
    return int(counts.get("oom_kill", 0)) if own else 0


# ── doing ───────────────────────────────────────────────────────────────────


class Groups:
    """The groups of one runtime, once `settle` has found that they may be made."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._place: Place | None = None
        self._directory = ""
        self._lock = -1
        self._enabled = False
        """Whether it was we who had the group above hand on its memory controller."""
        self._left: dict[str, float] = {}
        """What is to be removed, until when."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="groups", daemon=True)

    def __enter__(self) -> Groups:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settle(self) -> tuple[bool, str]:
        """Make what is needed for sandboxes' groups: whether they are used, and where or why not."""
        try:
            with open("/proc/self/cgroup") as groups, open("/proc/self/mountinfo") as mounts:
                its = place(groups.read(), mounts.read())
            self._settle(its)
        except (OSError, NotHanded) as exc:
            self.close()
            return False, str(exc)
        self._thread.start()
        return True, its.base

    def _settle(self, its: Place) -> None:
        with _locked(its.base):
            # What comes last in a runtime's name is its own.
            _sweep(its.base, self._name.rpartition("-")[0] + "-")
            self._directory = os.path.join(its.base, self._name)
            os.mkdir(self._directory)
            self._place = its
            self._lock = os.open(self._directory, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        if its.version == 2:
            if its.moves:
                alone = os.path.join(self._directory, _ALONE)
                os.mkdir(alone)
                _gather(os.getpid(), alone)
            for group in (its.base, self._directory):
                if "memory" not in _words(group, "cgroup.subtree_control"):
                    _write(group, "cgroup.subtree_control", "+memory")
                    self._enabled = self._enabled or group == its.base
        # What a sandbox's group needs is there, or nothing is.
        tried = os.path.join(self._directory, "tried")
        os.mkdir(tried)
        try:
            self.bound(tried, 1 << 30)
        finally:
            os.rmdir(tried)

    def group(self, name: str, most: int) -> Group | None:
        """A group for a sandbox, with this limit in bytes; None where none can be made."""
        if not self._thread.is_alive():
            return None
        assert self._place is not None
        return Group(self, os.path.join(self._directory, name), most, self._place.version)

    def do(self, job: Callable[[], None]) -> None:
        """Have the thread do this, after all else that it was given."""
        self._jobs.put(job)

    def bound(self, group: str, most: int) -> None:
        """Let a group hold no more than so many bytes, none of them on the disk."""
        first = self._place is not None and self._place.version == 1
        _write(group, "memory.limit_in_bytes" if first else "memory.max", str(most))
        with contextlib.suppress(FileNotFoundError):  # without swap there is none
            if first:
                _write(group, "memory.memsw.limit_in_bytes", str(most))
            else:
                _write(group, "memory.swap.max", "0")

    def drop(self, group: str) -> None:
        """In the thread: remove a group, as soon as it is empty."""
        if not _removed(group):
            self._left[group] = time.monotonic() + _PATIENCE

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_AGAIN if self._left else None)
            except queue.Empty:
                now = time.monotonic()
                self._left = {
                    group: until
                    for group, until in self._left.items()
                    if not _removed(group) and now < until
                }
                continue
            if job is None:
                return
            job()

    def close(self) -> None:
        """Once all other processes are gone: leave nothing."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        its, self._place = self._place, None
        if its is None:
            return
        with contextlib.suppress(OSError), _locked(its.base):
            _clear(self._directory)
            if its.moves:
                # Where a group's children have the controller it has no processes.
                _write(self._directory, "cgroup.subtree_control", "-memory")
                if self._enabled:
                    _write(its.base, "cgroup.subtree_control", "-memory")
                _write(its.base, "cgroup.procs", str(os.getpid()))
            _clear(self._directory)
            os.rmdir(self._directory)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class _Made(NamedTuple):
    path: str
    events: int
    """A descriptor of the file that counts what was killed."""


class Group:
    """Of one sandbox; its methods are called on the event loop and never wait.

    Args:
        path: what the names of its groups begin with.
        most: bytes.
    """

    def __init__(self, groups: Groups, path: str, most: int, version: int) -> None:
        self._groups = groups
        self._path = path
        self._most = most
        self._version = version
        self._count = 0
        self._init = 0
        self._made: _Made | None = None
        self._none_killed = b""
        """What the kernel says, word for word, where it has killed nothing; read twice for each run."""
        self._closed = False

    def hold(self, init: int) -> None:
        """Put this process and all its descendants into the group, soon."""
        if not self._closed:
            self._init = init
            self._groups.do(self._make)

    def struck(self) -> bool:
        """Whether the kernel has killed something in it for its limit; it is then another group."""
        made = self._made
        if made is None or self._closed:
            return False
        try:
            if not self._has_killed(made):
                return False
        except OSError:
            return False  # somebody else has removed it
        # What was left in the machine's memory (/dev/shm) is not on the account of what comes next.
        self._made = None
        self._groups.do(lambda: self._renew(made))
        return True

    def _has_killed(self, made: _Made) -> bool:
        said = os.pread(made.events, 4096, 0)
        if said == self._none_killed:
            return False
        if not kills(said.decode(), self._version):
            self._none_killed = said
            return False
        if self._version == 2:
            return True
        [had] = _words(made.path, "memory.max_usage_in_bytes")
        # Else it was for a group above.
        return int(had) >= self._most - _NEAR

    def close(self) -> None:
        """The sandbox ends."""
        self._closed = True
        if self._init:
            self._groups.do(self._end)

    def _make(self) -> None:
        if self._closed:
            return
        self._count += 1
        path = f"{self._path}.{self._count}"
        events = -1
        try:
            os.mkdir(path)
            self._groups.bound(path, self._most)
            name = "memory.oom_control" if self._version == 1 else "memory.events"
            events = os.open(os.path.join(path, name), os.O_RDONLY)
            _gather(self._init, path)
            self._made = _Made(path, events)
        except OSError:
            # There are too many groups, or somebody else has removed them: the watch holds it.
            if events >= 0:
                os.close(events)
            self._groups.drop(path)

    def _renew(self, made: _Made) -> None:
        self._drop(made)
        self._make()

    def _end(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            self._drop(made)

    def _drop(self, made: _Made) -> None:
        os.close(made.events)
        self._groups.drop(made.path)


def _gather(first: int, group: str) -> None:
    """Move a process and all its descendants; what is forked by those that are there is there as well.

    Raises:
        OSError: the kernel refuses it.
    """
    moved: set[int] = set()
    for _ in range(_ROUNDS):
        found = {first, *meter.descendants(first)} - moved
        if not found:
            return
        for pid in (first, *found) if first in found else found:
            with contextlib.suppress(ProcessLookupError):
                _write(group, "cgroup.procs", str(pid))
        moved |= found


def _write(group: str, name: str, text: str) -> None:
    posix.set_in(os.path.join(group, name), text.encode())


def _words(group: str, name: str) -> list[str]:
    with open(os.path.join(group, name)) as file:
        return file.read().split()


@contextlib.contextmanager
def _locked(group: str) -> Iterator[None]:
    """While no other runtime makes or sweeps there."""
    fd = os.open(group, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _sweep(base: str, prefix: str) -> None:
    """Remove what runtimes have left that were killed; with the base locked."""
    for name in os.listdir(base):
        if not name.startswith(prefix):
            continue
        with contextlib.suppress(OSError):
            lock = os.open(os.path.join(base, name), os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clear(os.path.join(base, name))
                os.rmdir(os.path.join(base, name))
            finally:
                os.close(lock)


def _clear(group: str) -> None:
    """Remove all groups right below, that have no processes."""
    for entry in os.scandir(group):
        if entry.is_dir(follow_symlinks=False):
            _removed(entry.path)


def _removed(group: str) -> bool:
    """Remove a group; whether it is gone."""
    try:
        os.rmdir(group)
    except FileNotFoundError:
        pass
    except OSError:
        return False  # it has processes
    return True
