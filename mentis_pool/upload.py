"""The files of one action, read as they are wanted: a piece at a time, from files or from bytes.

Blocking calls, no threads of its own; nothing is read before `Upload.next` asks for it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping

from mentis_pool.files import PIECE
from mentis_pool.pool_stream import MAX_RUN, Piece, Put

_MOST = 1000
"""Pieces that go together, at most."""


class Upload:
    """What is to be put for an action, each file once, in their order.

    Args:
        action: which.
        files: by name, the bytes or the path of a file that has them.
    """

    def __init__(self, action: int, files: Mapping[str, bytes | str]) -> None:
        self.action = action
        self._pieces = _pieces(files)

    def next(self) -> Put:
        """The next pieces, or why they cannot be had. One thread at a time."""
        together: list[Piece] = []
        size = 0
        try:
            for piece in self._pieces:
                together.append(piece)
                size += len(piece.data)
                if size >= PIECE or len(together) >= _MOST:
                    return Put(self.action, together)
        except (OSError, ValueError) as exc:
            return Put(self.action, [], failed=str(exc))
        return Put(self.action, together, last=True)


def _pieces(files: Mapping[str, bytes | str]) -> Iterator[Piece]:
    left = MAX_RUN
    for name, content in files.items():
        for data in _split(content) if isinstance(content, bytes) else _read(name, content):
            left -= len(data)
            if left < 0:
                raise ValueError(f"the file {name!r} is over the limit of {MAX_RUN} bytes of all")
            yield Piece(data, len(data) < PIECE)


def _split(content: bytes) -> Iterator[bytes]:
    """All but the last of `PIECE` bytes; the last has fewer."""
    for at in range(0, len(content) + 1, PIECE):
        yield content[at : at + PIECE]


def _read(name: str, path: str) -> Iterator[bytes]:
    """As `_split`, of a file.

    Raises:
        OSError: it cannot be read, or is no regular file; with its name and path.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(0, "it is no regular file")
            data = bytes(PIECE)
            while len(data) == PIECE:
                data = file.read(PIECE)
                yield data
    except OSError as exc:
        raise OSError(f"the file {name!r} cannot be read from {path!r}: {exc.strerror}") from exc


def _open(path: str, flags: int) -> int:
    # Where it is a pipe nobody waits for its other end.
    return os.open(path, flags | os.O_NONBLOCK)
