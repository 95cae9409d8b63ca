"""How much of a task's output is kept: the beginning and the end, and the exact number between.

Pure. The runtime bounds what it sends with this; the client bounds what it
keeps of a task whose every piece of output goes to a callback.
"""

from __future__ import annotations

from mentis_pool.observations import Cut, Observation, Stream, StreamName
from mentis_pool.text import first_character, whole_characters


class StreamBound:
    """One stream of one action, at most ``limit`` bytes of it (None: all).

    `feed` gives what is to be passed on at once. What comes after the first
    half of the limit is held, of it the newest half, until `finish`.
    """

    def __init__(self, stream: StreamName, limit: int | None) -> None:
        self._stream = stream
        self._head_left = limit - limit // 2 if limit is not None else None
        self._tail_limit = limit // 2 if limit is not None else 0
        self._tail = bytearray()
        self._cut = 0
        self._begun = b""
        """The first bytes of a character whose rest has not come yet."""

    def feed(self, data: bytes) -> list[Observation]:
        """Take bytes as they were written; give the observations to pass on now."""
        if self._head_left == 0:
            self._hold(data)
            return []
        if self._begun:
            data = self._begun + data
        if self._head_left is None or len(data) <= self._head_left:
            border = whole_characters(data)
            self._begun = data[border:]
            if self._head_left is not None:
                self._head_left -= border
        else:
            border = whole_characters(data[: self._head_left])
            self._begun = b""
            # What a broken character leaves of the first half, the second may have.
            self._tail_limit += self._head_left - border
            self._head_left = 0
            self._hold(data[border:])
        return [Stream(self._stream, data[:border])] if border else []

    def _hold(self, data: bytes) -> None:
        self._tail += data
        # Cutting only at twice the size moves each byte once on average.
        if len(self._tail) > 2 * self._tail_limit + 65536:
            self._trim()

    def _trim(self) -> None:
        over = len(self._tail) - self._tail_limit
        if over > 0:
            self._cut += over
            del self._tail[:over]

    def finish(self) -> list[Observation]:
        """The stream is at its end: the number of bytes left out, then the kept end."""
        self._trim()
        tail, self._tail = self._begun + bytes(self._tail), bytearray()
        said: list[Observation] = []
        if self._cut:
            broken = first_character(tail)
            said.append(Cut(self._stream, self._cut + broken))
            tail = tail[broken:]
        if tail:
            said.append(Stream(self._stream, tail))
        self._begun, self._cut = b"", 0
        return said
