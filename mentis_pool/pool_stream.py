"""The pool stream: frames <-> commands and observations.

One WebSocket carries everything between a client and a runtime, for all its
sandboxes. A frame is a msgpack array ``[seq, ack, batch]``: ``seq`` counts the
frames of one direction from 1, ``ack`` is the last ``seq`` seen of the other,
``batch`` holds as many messages as were there. A frame whose ``seq`` is 0 has none,
and says only what was seen.

Who sends keeps what the other side has not confirmed. After the connection was lost a
session goes on over another one: each side says, in the handshake, what it has seen, the
other sends the rest once more, and what comes twice is known by its ``seq``. Lanes and actions are named by
integers that the client chooses, each used once. Which sandbox of a lane runs an
action is for the runtime to decide; it names its sandboxes by integers, too.

Pure: a `Sender` and a `Receiver` per direction, bytes in and out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import msgspec

from mentis_pool.errors import ProtocolError
from mentis_pool.limits import Limits
from mentis_pool.observations import Observation

SUBPROTOCOL = "mentis-pool.v1"
PATH = "/v1/pool"
SEEN = "Mentis-Seen"
"""Header of the handshake in which a session goes on: the last ``seq`` that was seen."""
SESSION = "Mentis-Session"
"""Header of the request: the `Welcome.key` of the session."""

OWED = 256 * 1024
"""Bytes that came, from which on they are confirmed at once."""

State = Literal["fresh", "reuse", "new", "session"]


MAX_RUN = (1 << 32) - (1 << 28)
"""Bytes of sources, variables, calls and input that one run may have, all together: messages
count theirs with 32 bits, and have names and environments besides. And those of its files."""
MAX_RESULT = 1 << 30
"""Bytes of what one call may give, where nobody says otherwise."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """Base: a small array on the wire, its tag first."""


# ── what may be run ─────────────────────────────────────────────────────────


class Cells(_Message, tag=0, frozen=True):
    """Source texts, to be run one after the other, up to the first that fails.

    ``sources``, ``argv`` and ``path`` are UTF-8 by way of `mentis_pool.text`; ``variables`` are
    names and pickles, rebuilt in the sandbox only. With ``argv`` the source runs as a
    script does, the one at ``path``, or at ``argv[0]``.
    """

    sources: list[bytes]
    variables: dict[str, bytes] = {}
    argv: list[bytes] | None = None
    path: bytes | None = None


if TYPE_CHECKING:
    _Bytes = bytes | memoryview
else:
    # What is decoded is no copy, but a part of what it came in: it may be long.
    _Bytes = memoryview


class PickledCall(_Message, tag=1, frozen=True):
    """A callable and its arguments, rebuilt in the sandbox only.

    With ``chunk`` it is called with each of a list of arguments, and the results are a list.
    ``path`` has directories to import from that the runtime does not know of. What it returns or
    raises has ``max_result`` bytes at most (None: no such limit).
    """

    pickled: _Bytes
    chunk: bool = False
    path: list[str] = []
    max_result: int | None = MAX_RESULT


class Shell(_Message, tag=2, frozen=True):
    """A command for ``/bin/sh``."""

    command: bytes


Work = Cells | PickledCall | Shell


class Given(_Message, tag=3, frozen=True):
    """What a run has besides: files, variables of the environment, and what is to be fetched.

    Of ``files`` these are the names, in the order in which they are put; they come as they
    are `Wanted`. ``fetch`` has patterns (`mentis_pool.files`).
    """

    files: list[str] = []
    env: dict[str, str] = {}
    fetch: list[str] = []


# ── commands: client to runtime ─────────────────────────────────────────────


class Begin(_Message, tag=6, frozen=True):
    """First of all: how many actions run at once, at most."""

    most: int


class Open(_Message, tag=0, frozen=True):
    """A lane, to which runs may be sent at once.

    Its sandboxes are started as they are needed, and are its own; those of a
    "session" lane are one, which keeps its state. ``initializer`` runs first in each
    of their workers; one runs ``tasks`` tasks, then another takes its place (None: no
    such limit). ``limits`` are of each sandbox (None: it has none). The initializer
    may take ``initializer_timeout`` seconds.
    """

    lane: int
    state: State
    tasks: int | None = None
    initializer: Work | None = None
    limits: Limits | None = None
    initializer_timeout: float | None = None

    @property
    def goes_ahead(self) -> bool:
        """Whether runs may be given to a worker before they are its turn."""
        return self.state == "reuse" and self.tasks is None


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
    given: Given | None = None


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


class Measure(_Message, tag=7, frozen=True):
    """Say what each sandbox uses now: `Measured`, with this number."""

    number: int


class Piece(_Message, tag=0, frozen=True):
    """Of a file the next bytes; after its ``last`` come those of the next file."""

    data: bytes
    last: bool


class Put(_Message, tag=8, frozen=True):
    """What was `Wanted` of an action's files; ``last``: that is all. Or why they do not come."""

    action: int
    pieces: list[Piece]
    last: bool = False
    failed: str | None = None


Command = Begin | Open | Run | Credit | Close | Cancel | Signal | Measure | Put


# ── events: runtime to client ───────────────────────────────────────────────


class Standing(_Message, frozen=True):
    """The level of isolation at which sandboxes are (see `mentis_pool.walls`), and their network.

    ``reasons``: why not at a stronger one, where that was asked for. ``landlock``: the version
    of the kernel's. ``groups``: whether control groups hold the memory of each sandbox, and where
    or why not; None where nobody says.
    """

    level: str = "process"
    network: str = "host"
    reasons: list[str] = []
    landlock: int = 0
    groups: tuple[bool, str] | None = None


class Welcome(_Message, tag=0, frozen=True):
    """First of all: the runtime is ready. ``session`` makes ids unique across runtimes.

    By its ``key`` the session goes on over another connection; that is secret.
    """

    session: str
    version: str
    python: str
    key: str = ""
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


class InUse(_Message, tag=0, frozen=True):
    """What a sandbox uses: bytes of memory now, CPU seconds since its start.

    ``processes`` counts threads, too; ``action`` is the one that it runs, if any.
    """

    sandbox: int
    memory: int
    cpu_seconds: float
    processes: int
    action: int | None = None


class Measured(_Message, tag=6, frozen=True):
    """What each sandbox uses; None where this runtime cannot tell."""

    number: int
    sandboxes: list[InUse] | None


Event = Welcome | Said | Opened | Closed | Refused | Broken | Measured


# ── frames ──────────────────────────────────────────────────────────────────

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


ROOM = 1024 * 1024
"""Bytes that a Unix socket is to take before its reader must read (SO_SNDBUF of socket(7))."""
LONG = 64 * 1024
"""Bytes from which on it is worth the trouble not to copy them."""

Buffer = bytes | memoryview


def keep_memory(block: int = 32 << 20) -> None:
    """Have malloc keep what was freed of long messages, some blocks, for the next.

    To be given pages anew takes longer than all that is done with what is in them. glibc gives
    back at once what is larger than the largest that it has had back so far, up to 32 MiB, and
    what is free at the end of its heap beyond twice as much (mallopt(3), M_MMAP_THRESHOLD).
    Others may do otherwise; this costs nothing.
    """
    # Not bytearray(), which would write into it first.
    bytes(block - (8 << 10))


def pieces(message: object) -> list[Buffer]:
    """What msgpack makes of a message, in pieces: bytes in it that are long are themselves one."""
    made = _Pieces()
    made.add(message)
    return made.end()


class _Pieces:
    def __init__(self) -> None:
        self._done: list[Buffer] = []
        self._last = bytearray()

    def add(self, value: object) -> None:
        if isinstance(value, (bytes, memoryview)) and len(value) > LONG:
            self._last += b"\xc6" + len(value).to_bytes(4, "big")
            self._done += [bytes(self._last), value]
            self._last.clear()
        elif isinstance(value, (tuple, list)):
            self._add_each(value)
        elif isinstance(value, msgspec.Struct):
            tag = value.__struct_config__.tag
            self._add_each([*([] if tag is None else [tag]), *msgspec.structs.astuple(value)])
        else:
            # Not encode(), which crashes the process where memory runs out (msgspec 0.22).
            _encoder.encode_into(value, self._last, len(self._last))

    def _add_each(self, values: Sequence[object]) -> None:
        self._last += b"\xdd" + len(values).to_bytes(4, "big")
        for value in values:
            self.add(value)

    def end(self) -> list[Buffer]:
        if self._last:
            self._done.append(bytes(self._last))
        return self._done


Frame = bytes | list[Buffer]


def frame_size(frame: Frame) -> int:
    """Bytes of a frame, whole or in pieces."""
    return len(frame) if isinstance(frame, bytes) else sum(map(len, frame))


class Sender:
    """Messages to frames, numbered, and kept until they are confirmed."""

    def __init__(self) -> None:
        self._seq = 0
        self._kept: deque[Frame] = deque()
        """The last frames, up to ``_seq``."""
        self.kept_bytes = 0
        """Bytes of what is not confirmed."""

    def frame(self, batch: list[Command] | list[Event], ack: int) -> bytes:
        """One frame of these messages; ``ack`` is the last seq that was received."""
        self._seq += 1
        frame = _encoder.encode((self._seq, ack, batch))
        self._kept.append(frame)
        self.kept_bytes += len(frame)
        return frame

    def long_frame(self, batch: list[Command] | list[Event], ack: int) -> list[Buffer]:
        """The same in pieces: what is long is neither copied nor kept twice."""
        self._seq += 1
        frame = pieces((self._seq, ack, batch))
        self._kept.append(frame)
        self.kept_bytes += frame_size(frame)
        return frame

    def confirmed(self, seq: int) -> None:
        """The other side has seen this frame, and all before it.

        Raises:
            ProtocolError: there was no such frame.
        """
        if seq > self._seq:
            raise ProtocolError(f"frame {seq} is confirmed, and {self._seq} was the last")
        while self._seq - len(self._kept) < seq:
            self.kept_bytes -= frame_size(self._kept.popleft())

    def rest(self, seen: int) -> list[Frame]:
        """What is to be sent once more to who has seen this frame, and none after it.

        Raises:
            ProtocolError: that cannot be.
        """
        if seen < self._seq - len(self._kept):
            raise ProtocolError(f"frame {seen + 1} was confirmed, and is asked for once more")
        self.confirmed(seen)
        return list(self._kept)


def confirmation(ack: int) -> bytes:
    """A frame that says no more than that this was the last seq that was received."""
    return _encoder.encode((0, ack, []))


class Receiver(Generic[M]):
    """Frames to messages; ``seq`` is that of the last frame, for the `Sender` to confirm."""

    def __init__(self, messages: type[M]) -> None:
        self._decoder: msgspec.msgpack.Decoder[tuple[int, int, list[M]]] = msgspec.msgpack.Decoder(
            tuple[int, int, list[messages]]  # type: ignore[valid-type]
        )
        self.seq = 0
        self.acked = 0

    def messages(self, frame: bytes | bytearray) -> list[M]:
        """The messages of a frame; none of one that was seen before.

        Raises:
            ProtocolError: it is no frame, or one before it is missing.
        """
        try:
            seq, ack, batch = self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise ProtocolError(f"not a frame of the pool stream: {exc}", bytes(frame)) from exc
        if seq > self.seq + 1 or seq < 0 or (seq == 0 and batch):
            raise ProtocolError(f"frame {seq} came after frame {self.seq}", bytes(frame))
        self.acked = max(self.acked, ack)
        if seq <= self.seq:
            return []
        self.seq = seq
        return batch


def commands() -> Receiver[Command]:
    """What a runtime reads."""
    return Receiver(Command)  # type: ignore[arg-type]


def events() -> Receiver[Event]:
    """What a client reads."""
    return Receiver(Event)  # type: ignore[arg-type]
