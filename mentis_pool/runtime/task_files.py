"""The files and the environment of one task, in its worker: put before it, fetched after it.

What is careful here is so for exact results, not for safety: the runtime and the
client trust none of it (`mentis_pool.files.Bound`).
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from mentis_pool.files import (
    LEFT,
    MAX_FETCHED,
    MAX_FILES,
    MAX_NAME,
    OVER,
    PIECE,
    Patterns,
    Way,
    is_plain,
)
from mentis_pool.observations import File, Left, LeftKind
from mentis_pool.pool_stream import Piece
from mentis_pool.text import printable


class NotPut(Exception):
    """A file could not be put; the message says which, and why."""


# ── before ──────────────────────────────────────────────────────────────────


class Putting:
    """Files that are put into a directory, one after the other, from their pieces."""

    def __init__(self, directory: str, names: Sequence[str]) -> None:
        self._directory = directory
        self._names = iter(names)
        self._name = ""
        self._fd: int | None = None
        self._made: list[str] = []
        """Files and directories, in the order in which they were made."""

    def take(self, piece: Piece) -> None:
        """The next piece.

        Raises:
            NotPut: it cannot be written.
        """
        try:
            if self._fd is None:
                self._name = next(self._names)
                self._fd = self._open(os.path.join(self._directory, self._name))
            view = memoryview(piece.data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as exc:
            raise NotPut(
                f"the file {self._name!r} cannot be put into the sandbox: {exc.strerror}"
            ) from exc
        if piece.last:
            self.close()

    def _open(self, path: str) -> int:
        missing = []
        above = os.path.dirname(path)
        while not os.path.isdir(above):
            missing.append(above)
            above = os.path.dirname(above)
        for directory in reversed(missing):
            os.mkdir(directory)
            self._made.append(directory)
        with contextlib.suppress(FileNotFoundError):
            # What a link there leads to is nobody's to write to.
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._made.append(path)
        return fd

    def close(self) -> None:
        """Close the file that is being written."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def remove(self) -> None:
        """Remove what was put, as far as it is still there; directories that have more in them stay."""
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(path) if _is_directory(path) else os.unlink(path)


def _is_directory(path: str) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


class Environment:
    """Variables that are set for a while."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._before = {name: os.environ.get(name) for name in variables}
        self._set(variables)

    def restore(self) -> None:
        """As it was before, but for what else was changed meanwhile."""
        self._set(self._before)

    def _set(self, variables: Mapping[str, str | None]) -> None:
        for name, value in variables.items():
            if value is not None:
                os.environ[name] = value
            else:
                os.environ.pop(name, None)
        if "TZ" in variables:
            time.tzset()


# ── after ───────────────────────────────────────────────────────────────────


class Fetching:
    """Sends the files that a task is to give.

    Args:
        say: called with each piece, and with what is left out.
        stopped: whether nothing more is wanted.
    """

    def __init__(
        self, say: Callable[[File | Left], None], stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._say = say
        self._stopped = stopped
        self._bytes = MAX_FETCHED
        self._count = MAX_FILES
        self._notes = MAX_FILES
        self._over: str | None = None

    def fetch(self, directory: str, patterns: Sequence[str]) -> str | None:
        """Send what matches; why that is not all that was asked for, where it was over a limit."""
        found = set()
        for name, kind in _found(directory, Patterns(patterns)):
            found.add(name)
            if self._stopped():
                self._leave(name, "stopped")
                return self._over
            if kind is not None:
                self._leave(name, kind)
            elif self._count == 0:
                self._leave(name, "many")
                return self._over
            else:
                self._send(name, os.path.join(directory, name))
        for pattern in patterns:
            if is_plain(pattern) and pattern not in found:
                self._leave(pattern, "missing")
        return self._over

    def _leave(self, name: str, kind: LeftKind) -> None:
        if kind in OVER and self._over is None:
            self._over = f"the file {name!r} is not fetched: {LEFT[kind]}"
        if self._notes:
            self._notes -= 1
            # Each of its bytes may need four to be written.
            self._say(Left(printable(name)[: MAX_NAME // 4], kind))

    def _send(self, name: str, path: str) -> None:
        try:
            file = open(path, "rb", opener=_open)
        except OSError:
            self._leave(name, "unreadable")
            return
        with file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                self._leave(name, "special")
                return
            left = state.st_size
            if left > self._bytes:
                self._leave(name, "large")
                return
            self._count -= 1
            self._bytes -= left
            last = False
            while not last:
                # What is written to it meanwhile does not count any more.
                data = file.read(min(PIECE, left))
                left -= len(data)
                last = len(data) < PIECE
                self._say(File(name, data, last))


def _open(path: str, flags: int) -> int:
    # What it is may have changed since it was found: no link is followed, no pipe waited for.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _found(directory: str, patterns: Patterns) -> Iterator[tuple[str, LeftKind | None]]:
    """What is asked for below a directory, by name, and why it cannot be fetched, if so."""
    ahead: list[tuple[str, Way]] = [("", patterns.start)]
    while ahead:
        above, way = ahead.pop()
        try:
            with os.scandir(os.path.join(directory, above)) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield above, "unreadable"
            continue
        below: list[tuple[str, Way]] = []
        for entry in inside:
            there = patterns.step(way, entry.name)
            name = os.path.join(above, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if patterns.go_on(there):
                    below.append((name, there))
            elif patterns.asks_for(there):
                yield name, _wrong(name, entry)
            elif patterns.go_on(there) and entry.is_symlink() and os.path.isdir(entry):
                # Not the entry's own is_dir(), which raises where a link leads to itself.
                yield name, "link"
        ahead += reversed(below)


def _wrong(name: str, entry: os.DirEntry[str]) -> LeftKind | None:
    if entry.is_symlink():
        return "link"
    if not entry.is_file(follow_symlinks=False):
        return "special"
    try:
        return "name" if len(name.encode()) > MAX_NAME else None
    except UnicodeEncodeError:
        return "name"
