"""What a runtime says about an action.

The codecs decode into these types, whatever the wire was; nothing above the
codecs knows which. An observation names no action: the codec gives the pair
(action, observation), and the runtime stamps the action itself, so that a
sandbox can only speak about the one that it was given.

For each action they come in this order::

    Start, (Wanted | Stream | Cut | Display | Part | File | Left)*, Result | Error, End

Of what was never run come an Error and the End alone.
"""

from __future__ import annotations

import builtins
from typing import Literal

import msgspec

from mentis_pool.limits import Which
from mentis_pool.text import to_text

StreamName = Literal["stdout", "stderr"]


class _Observation(msgspec.Struct, frozen=True, array_like=True):
    """Base: a small array on the wire, its tag first."""


class Start(_Observation, tag=0, frozen=True):
    """It began to run, at ``time`` (seconds since the epoch, the runtime's clock), in this sandbox."""

    time: float
    sandbox: int = 0


class Stream(_Observation, tag=1, frozen=True):
    """Output of the cell, or of its child processes: bytes as written."""

    stream: StreamName
    data: bytes

    @property
    def text(self) -> str:
        """The output as text; bytes that are no UTF-8 become lone surrogates."""
        return to_text(self.data)

    def __str__(self) -> str:
        return self.text


class Cut(_Observation, tag=2, frozen=True):
    """``bytes`` of a stream (or of displays) were left out here, over the limit."""

    stream: Literal["stdout", "stderr", "displays"]
    bytes: int

    @property
    def line(self) -> builtins.bytes:
        """What stands in its place in the text."""
        return f"\n[… {self.bytes} bytes cut …]\n".encode()


class Bundle(msgspec.Struct, frozen=True, array_like=True):
    """One thing in several mime types: text (JSON as its text) and bytes (images)."""

    texts: dict[str, str]
    blobs: dict[str, bytes] = {}

    @property
    def size(self) -> int:
        """Bytes of what it shows."""
        texts = sum(len(t) if t.isascii() else len(t.encode()) for t in self.texts.values())
        return texts + sum(map(len, self.blobs.values()))


class Display(_Observation, tag=3, frozen=True):
    """Something shown; an ``update`` stands for what was shown with the same ``display_id``."""

    bundle: Bundle
    display_id: str | None = None
    update: bool = False


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """The exception of a cell, as text."""

    name: str
    value: str
    traceback: str
    builtin: bool = False
    """Whether its class is the builtin of that name, and not one that the cell made."""


class Exceeded(msgspec.Struct, frozen=True, array_like=True):
    """A limit that was reached (`mentis_pool.limits`).

    ``used`` is what was measured, None where the system said no to what would have been more.
    """

    which: Which
    limit: int | float
    used: int | float | None = None


class Result(_Observation, tag=4, frozen=True):
    """It ended by itself.

    Of a cell, ``value`` is the last expression's value (`mentis_pool.values`), None where
    it is not plain data; ``text`` its text/plain, ``type_name`` the name of its type
    and ``bundle`` its rich forms. ``failure`` is None when all went well.

    Of a call, ``pickled`` is what it returned or raised (`mentis_pool.payload`): the
    end of it, where `Part`s came before. Of a shell command, or of a script, there is its ``exit_code``.
    ``exceeded``: the limit that the failure tells of; the runtime says so, not the sandbox.
    """

    value: bytes | None = None
    text: str | None = None
    type_name: str | None = None
    bundle: Bundle | None = None
    failure: Failure | None = None
    pickled: bytes | None = None
    exit_code: int | None = None
    exceeded: Exceeded | None = None


ErrorKind = Literal[
    "timeout",
    "deadline",
    "queue",
    "died",
    "limit",
    "payload",
    "protocol",
    "unknown",
    "rejected",
    "unreachable",
    "cancelled",
    "state",
]


class Error(_Observation, tag=5, frozen=True):
    """It did not end by itself; ``message`` says why.

    ``kind``: "timeout", "deadline"; "died" (its process did); "limit" (it used
    more than it may: ``exceeded``); "payload" (a variable or a
    call could not be rebuilt in the sandbox, or a result not be sent); "protocol" (what
    the sandbox sent was no observation); "unknown" (it was sent, and nothing more was
    heard); and of what was not run: "rejected" (the runtime refused it), "unreachable" (it did
    not get there), "cancelled", "queue" (it waited for too long), "state" (the state that its session had is lost).
    """

    kind: ErrorKind
    message: str
    signal: int | None = None
    exit_code: int | None = None
    exceeded: Exceeded | None = None


class End(_Observation, tag=6, frozen=True):
    """Nothing more will be said; what the action used."""

    seconds: float
    """Seconds it ran."""
    cpu_seconds: float = 0.0
    """CPU seconds, with its child processes."""
    peak_memory: int | None = None
    """The most that its processes held at a time, in bytes; see `mentis_pool.results.Usage`."""


class Part(_Observation, tag=7, frozen=True):
    """A part of what a call returned or raised, which is too large for one message."""

    data: bytes


class File(_Observation, tag=8, frozen=True):
    """A piece of a file that was asked for; after its ``last`` come those of another."""

    name: str
    data: bytes
    last: bool


LeftKind = Literal["large", "many", "link", "special", "unreadable", "name", "missing", "stopped"]


class Left(_Observation, tag=9, frozen=True):
    """A file that was asked for is left out, and why (`mentis_pool.files.LEFT`)."""

    name: str
    kind: LeftKind


class Wanted(_Observation, tag=10, frozen=True):
    """It waits for files that it is to have: the next of them may be sent, and once only."""


Observation = Start | Stream | Cut | Display | Result | Error | End | Part | File | Left | Wanted
