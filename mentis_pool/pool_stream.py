"""The pool stream: frames <-> commands and observations.

One WebSocket carries everything between a client and a runtime, for all its
sandboxes. A frame is a msgpack array ``[seq, ack, batch]``: ``seq`` counts the
frames of one direction from 1, ``ack`` is the last ``seq`` seen of the other,
``batch`` holds as many messages as were there. Lanes and actions are named by
integers that the client chooses, each used once. Which sandbox of a lane runs an
action is for the runtime to decide; it names its sandboxes by integers, too.

Pure: a `Sender` and a `Receiver` per direction, bytes in and out.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

import msgspec

from mentis_pool.errors import ProtocolError
from mentis_pool.observations import Observation

SUBPROTOCOL = "mentis-pool.v1"
PATH = "/v1/pool"

State = Literal["fresh", "reuse", "session"]


MAX_RUN = 1 << 30
"""Bytes of sources, variables, calls and input that one run may have, all together."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """Base: a small array on the wire, its tag first."""


# ── what may be run ─────────────────────────────────────────────────────────


class Cells(_Message, tag=0, frozen=True):
    """Source texts, to be run one after the other, up to the first that fails.

    ``sources`` and ``argv`` are UTF-8 by way of `mentis_pool.text`; ``variables`` are
    names and pickles, rebuilt in the sandbox only. With ``argv`` the source runs as a
    script does.
    """

    sources: list[bytes]
    variables: dict[str, bytes] = {}
    argv: list[bytes] | None = None


class PickledCall(_Message, tag=1, frozen=True):
    """A callable and its arguments, rebuilt in the sandbox only.

    With ``chunk`` it is called with each of a list of arguments, and the results are a list.
    ``path`` has directories to import from that the runtime does not know of.
    """

    pickled: bytes
    chunk: bool = False
    path: list[str] = []


class Shell(_Message, tag=2, frozen=True):
    """A command for ``/bin/sh``."""

    command: bytes


Work = Cells | PickledCall | Shell


# ── commands: client to runtime ─────────────────────────────────────────────


class Begin(_Message, tag=6, frozen=True):
    """First of all: how many actions run at once, at most."""

    most: int


class Open(_Message, tag=0, frozen=True):
    """A lane, to which runs may be sent at once.

    Its sandboxes are started as they are needed, and are its own; those of a
    "session" lane are one, which keeps its state. ``initializer`` runs first in each
    of their workers; one runs ``tasks`` tasks, then another takes its place (None: no
    such limit).
    """

    lane: int
    state: State
    tasks: int | None = None
    initializer: Work | None = None


class Run(_Message, tag=1, frozen=True):
    """Run this in a sandbox of this lane.

    ``timeout`` is in seconds from its start, ``deadline`` in seconds from now.
    ``window`` bounds the bytes of output that are on their way unconfirmed by
    `Credit` (None: no such bound, ``max_output`` bytes of each stream are sent at most).
    Of all runs of a client that could begin, that of the lowest ``number`` does, of the same
    one that of the lowest ``action``: what is sent again keeps its number, and so its place.
    """

    action: int
    lane: int
    work: Work
    stdin: bytes | None = None
    timeout: float | None = None
    deadline: float | None = None
    max_output: int | None = None
    window: int | None = None
    number: int = 0


class Credit(_Message, tag=2, frozen=True):
    """So many bytes of this action's output were taken by its reader."""

    action: int
    bytes: int


class Close(_Message, tag=3, frozen=True):
    """End a lane, its sandboxes, and all that runs in them, which is told this reason."""

    lane: int
    reason: str = "it was closed"


class Cancel(_Message, tag=4, frozen=True):
    """Do not run this action; if it has begun, end it."""

    action: int


class Signal(_Message, tag=5, frozen=True):
    """Send a signal to the process that runs this action, if it runs."""

    action: int
    signal: int


Command = Begin | Open | Run | Credit | Close | Cancel | Signal


# ── events: runtime to client ───────────────────────────────────────────────


class Standing(_Message, frozen=True):
    """The level of isolation at which sandboxes are (see `mentis_pool.walls`), and their network.

    ``reasons``: why not at a stronger one, where that was asked for.
    """

    level: str = "process"
    network: str = "host"
    reasons: list[str] = []


class Welcome(_Message, tag=0, frozen=True):
    """First of all: the runtime is ready. ``session`` makes ids unique across runtimes."""

    session: str
    version: str
    python: str
    standing: Standing = Standing()


class Said(_Message, tag=1, frozen=True):
    """One observation of one action."""

    action: int
    observation: Observation


class Opened(_Message, tag=2, frozen=True):
    """A sandbox has its first worker, after so many seconds."""

    sandbox: int
    seconds: float


class Closed(_Message, tag=3, frozen=True):
    """The sandbox is no more; ``lost``: nobody asked for that."""

    sandbox: int
    reason: str
    lost: bool = True


class Refused(_Message, tag=4, frozen=True):
    """The sandbox cannot be had: the runtime has no room for one more."""

    sandbox: int
    reason: str


class Broken(_Message, tag=5, frozen=True):
    """No sandbox of this client can work; why, with what its initializer raised and wrote."""

    reason: str
    traceback: str = ""
    output: str = ""


Event = Welcome | Said | Opened | Closed | Refused | Broken


# ── frames ──────────────────────────────────────────────────────────────────

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


class Sender:
    """Messages to frames, numbered."""

    def __init__(self) -> None:
        self._seq = 0

    def frame(self, batch: list[Command] | list[Event], ack: int) -> bytes:
        """One frame of these messages; ``ack`` is the last seq that was received."""
        self._seq += 1
        return _encoder.encode((self._seq, ack, batch))


class Receiver(Generic[M]):
    """Frames to messages; ``seq`` is that of the last frame, for the `Sender` to confirm."""

    def __init__(self, messages: type[M]) -> None:
        self._decoder: msgspec.msgpack.Decoder[tuple[int, int, list[M]]] = msgspec.msgpack.Decoder(
            tuple[int, int, list[messages]]  # type: ignore[valid-type]
        )
        self.seq = 0
        self.acked = 0

    def messages(self, frame: bytes) -> list[M]:
        """The messages of a frame.

        Raises:
            ProtocolError: it is no frame, or not the next one.
        """
        try:
            seq, ack, batch = self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise ProtocolError(f"not a frame of the pool stream: {exc}", frame) from exc
        if seq != self.seq + 1:
            raise ProtocolError(f"frame {seq} came after frame {self.seq}", frame)
        self.seq = seq
        self.acked = ack
        return batch


def commands() -> Receiver[Command]:
    """What a runtime reads."""
    return Receiver(Command)  # type: ignore[arg-type]


def events() -> Receiver[Event]:
    """What a client reads."""
    return Receiver(Event)  # type: ignore[arg-type]
