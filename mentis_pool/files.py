"""Files of a task: which names they may have, which are asked for, and how much may come back.

Pure. The sandbox says what it fetched, and is not trusted: the runtime and the client
both look at each piece with a `Bound`.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from mentis_pool.observations import File, Left, LeftKind

MAX_FETCHED = 256 * 1024 * 1024
"""Bytes that all files fetched for one task may have together."""
MAX_FILES = 10_000
"""Files that may be put, fetched, or said to be left out, for one task."""
MAX_NAME = 4096
"""Bytes of a name."""
PIECE = 1024 * 1024
"""Bytes of a file that go in one message."""

LEFT: Mapping[LeftKind, str] = {
    "large": f"all that is fetched may have {MAX_FETCHED} bytes together",
    "many": f"{MAX_FILES} files may be fetched",
    "link": "it is a link",
    "special": "it is no regular file",
    "unreadable": "it cannot be read",
    "name": f"its name is no UTF-8, or has more than {MAX_NAME} bytes",
    "missing": "there is no such file",
    "stopped": "the task was ended before",
}
"""Why a file was left out, in words."""
OVER: Collection[LeftKind] = ("large", "many")
"""What is an error: more was asked for than can come."""


# ── names ───────────────────────────────────────────────────────────────────


def check_name(name: str) -> None:
    """See to it that a name stays below the directory that it is for.

    Raises:
        ValueError: it is no relative path in UTF-8 without ``..`` and the like.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} is no name of a file: it is no UTF-8") from None
    if size > MAX_NAME:
        raise ValueError(f"{name[:40]!r}… is no name of a file: it has {size} bytes")
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(
            f"{name!r} is no name of a file: it must be relative, like 'dir/data.csv', "
            "without '.', '..' and NUL"
        )


def check_names(names: Collection[str]) -> None:
    """See to it that all of these can be files at the same time.

    Raises:
        ValueError: one is no name, or is a file and a directory; or there are too many.
    """
    if len(names) > MAX_FILES:
        raise ValueError(f"{len(names)} files are over the limit of {MAX_FILES} for one task")
    for name in names:
        check_name(name)
        for above in _above(name):
            if above in names:
                raise ValueError(f"{above!r} cannot be a file and have {name!r} in it")


def _above(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def check_environment(variables: Mapping[str, str]) -> None:
    """See to it that these can be variables of the environment.

    Raises:
        ValueError: a name is empty or has ``=``, or one or a value has NUL or is no UTF-8.
    """
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(
                f"{name!r} cannot be set in the environment: a name is not empty and has no '=', "
                "and neither it nor its value has NUL"
            )
        try:
            (name + value).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name!r} cannot be set in the environment: no UTF-8") from None


# ── patterns ────────────────────────────────────────────────────────────────

Way = tuple[frozenset[int], ...]
"""Of each pattern, how many of its parts may have been met on the way to a directory."""


class Patterns:
    """Which names are asked for: fnmatch for each part of a path, ``**`` for any number of parts."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._parts = [pattern.split("/") for pattern in patterns]
        self.start: Way = tuple(_onward({0}, parts) for parts in self._parts)

    def step(self, way: Way, part: str) -> Way:
        """From a directory to what is called so in it."""
        return tuple(
            _onward(
                {
                    at + (wanted[at] != "**")
                    for at in found
                    if at < len(wanted) and (wanted[at] == "**" or fnmatchcase(part, wanted[at]))
                },
                wanted,
            )
            for found, wanted in zip(way, self._parts, strict=True)
        )

    def asks_for(self, way: Way) -> bool:
        """Whether what is there is asked for."""
        return any(len(wanted) in found for found, wanted in zip(way, self._parts, strict=True))

    def go_on(self, way: Way) -> bool:
        """Whether something in it may be asked for."""
        return any(
            at < len(wanted) for found, wanted in zip(way, self._parts, strict=True) for at in found
        )

    def match(self, name: str) -> bool:
        """Whether this name is asked for."""
        way = self.start
        for part in name.split("/"):
            way = self.step(way, part)
        return self.asks_for(way)


def _onward(found: set[int], wanted: list[str]) -> frozenset[int]:
    """Also past each ``**``, which may stand for nothing."""
    for at in sorted(found):
        while at < len(wanted) and wanted[at] == "**":
            at += 1
            found.add(at)
    return frozenset(found)


def is_plain(pattern: str) -> bool:
    """Whether it asks for one file by its name."""
    return not any(sign in pattern for sign in "*?[")


# ── what comes back ─────────────────────────────────────────────────────────


class Bound:
    """What may still be said of the files of one task, by whom nothing is believed."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = Patterns(patterns)
        self._left = MAX_FETCHED
        self._names: set[str] = set()
        self._notes = 0
        self._open: str | None = None
        """The file whose next piece is to come."""

    def wrong(self, said: File | Left) -> str | None:
        """Take what comes next; why it cannot be, or None where it can."""
        if isinstance(said, Left):
            self._notes += 1
            if self._notes > MAX_FILES or len(said.name) > MAX_NAME:
                return "it left out more than it can"
            return None
        if self._open is None:
            reason = self._wrong_name(said.name)
            if reason is not None:
                return reason
        elif said.name != self._open:
            return f"the file {self._open!r} has no end"
        if len(said.data) > PIECE or (len(said.data) < PIECE and not said.last):
            return f"a piece of the file {said.name!r} has {len(said.data)} bytes"
        self._open = None if said.last else said.name
        self._left -= len(said.data)
        return None if self._left >= 0 else f"the file {said.name!r} is over the limit of all"

    def _wrong_name(self, name: str) -> str | None:
        try:
            check_name(name)
        except ValueError as exc:
            return str(exc)
        if name in self._names or not self._patterns.match(name):
            return f"the file {name!r} was not asked for"
        if len(self._names) == MAX_FILES:
            return "it sent more files than it may"
        self._names.add(name)
        return None


class Fetched:
    """The files of one task, each of which is here once: as it comes, and as it is given out."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._bound = Bound(patterns)
        self._begun: dict[str, io.BytesIO] = {}
        self.files: dict[str, bytes] = {}
        """Those that are whole."""
        self.left: dict[str, str] = {}
        """Those that are not here, and why."""
        self.wrong: str | None = None
        """Why what came was not believed."""

    def take(self, said: File | Left) -> None:
        """Take what comes next."""
        self.wrong = self.wrong or self._bound.wrong(said)
        if self.wrong is not None:
            return
        if isinstance(said, Left):
            self.left[said.name] = LEFT[said.kind]
            return
        begun = self._begun.setdefault(said.name, io.BytesIO())
        begun.write(said.data)
        if said.last:
            # No copy: getvalue() gives out the buffer itself, cut to its length.
            self.files[said.name] = self._begun.pop(said.name).getvalue()

    def end(self) -> None:
        """Nothing more comes: what is not whole is left out."""
        for name in self._begun:
            self.left[name] = LEFT["stopped"]
        self._begun.clear()
