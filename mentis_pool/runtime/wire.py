"""What the processes of one runtime say to each other over their socketpairs.

A message is four bytes of length and a msgpack array. Pure: bytes in and out.
What a worker sends is not trusted; what the others send is.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

import msgspec

from mentis_pool.errors import ProtocolError
from mentis_pool.limits import Limits
from mentis_pool.observations import Cut, Display, End, Error, File, Left, Part, Result
from mentis_pool.pool_stream import LONG, Buffer, Given, Put, Work, pieces

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of one message; a longer one is refused."""
PACKET = 64 * 1024
"""Bytes of a packet to a worker, at most."""
SANDBOX_FDS = 5
"""Descriptors that come with the request for a sandbox, at most."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """Base: a small array, its tag first."""


# ── supervisor to zygote, with descriptors: init's socket, and its pipes ──


class NewSandbox(_Message, tag=0, frozen=True):
    """Fork the init of a sandbox; its files go below this directory, and these are its limits."""

    directory: str
    limits: Limits = Limits.none()


class EndSandbox(_Message, tag=3, frozen=True):
    """Kill the init of the sandbox whose files are in this directory."""

    directory: str


class Ready(_Message, tag=1, frozen=True):
    """The zygote is warm."""


class Failed(_Message, tag=2, frozen=True):
    """The zygote cannot work; why, in words for the user."""

    message: str


# ── supervisor to init, and back ────────────────────────────────────────────


class Fork(_Message, tag=10, frozen=True):
    """Fork a worker; one that runs an initializer has a file for what that writes."""

    initializer: bool = False


class Retire(_Message, tag=11, frozen=True):
    """Kill this worker and everything else but the youngest worker and the commands.

    The directories are emptied, unless the files are to stay; and the next worker may be
    forked meanwhile.
    """

    pid: int
    files_stay: bool
    fork: Fork | None = None


class Signal(_Message, tag=12, frozen=True):
    """Send a signal to this worker, or to the process group of this command."""

    pid: int
    signal: int


class Execute(_Message, tag=13, frozen=True):
    """Run a command in a shell, in this directory (below the one where cells begin)."""

    number: int
    command: bytes
    directory: bytes
    environment: dict[str, str]


class Forked(_Message, tag=20, frozen=True):
    """A worker is there, with three descriptors.

    The other end of its socket; and both ends of what it takes its runs from, in packets:
    the one to write to, and its own, from which those can be taken back that it has not
    read. And of one that runs an initializer a fourth, of the file with what that writes.
    Without descriptors there is no worker: no process could be forked.
    """

    pid: int


class Died(_Message, tag=21, frozen=True):
    """A worker or a command ended; ``status`` as ``os.wait`` gives it, its use of CPU and memory."""

    pid: int
    status: int
    cpu_seconds: float
    peak_memory: int


class Retired(_Message, tag=22, frozen=True):
    """Nothing is left of this worker; the next one is told of after that."""

    pid: int


class Signalled(_Message, tag=24, frozen=True):
    """A signal that was to be sent was sent: it has reached the process before what comes now."""

    pid: int


class Executed(_Message, tag=23, frozen=True):
    """A command runs; the descriptors sent along read its stdout and its stderr.

    Without them there is none: no process could be forked.
    """

    number: int
    pid: int


# ── supervisor to worker; what a worker says are observations, besides that it is idle ──


class RunWork(_Message, tag=30, frozen=True):
    """Run this; ``stdin`` is what it reads. ``number`` is of the action.

    ``namespace``: "new"; "only": the same, and nothing comes after it; "keep": everything is as
    the last run left it (variables, directory, `_`). "initialize": it is the initializer, whose names every later cell has;
    its result has the output as its text.
    """

    number: int
    work: Work
    stdin: bytes | None
    namespace: Literal["new", "only", "keep", "initialize"] = "new"
    given: Given | None = None
    """Its files come behind it, each `Put` when the last one was taken."""


class NoFiles(_Message, tag=33, frozen=True):
    """No more of its files come: it is interrupted."""


class Idle(_Message, tag=31, frozen=True):
    """The worker runs nothing: said once it can, and when an interrupt finds it so."""


class Done(_Message, tag=32, frozen=True):
    """The run of this number is over: how, and what it used.

    ``wrote``: what of its stdout and its stderr was in the pipes at its end. The worker takes it
    out, so that what another run writes, which may have been sent behind this one, is not mixed up
    with it. None where it did not: then it is still there.

    ``word``: the worker begins nothing more before this byte comes by its socket. It asks for it
    where something is still in the pipes, and where its end may be that of the process as well.
    """

    number: int
    said: Result | Error
    used: End
    wrote: tuple[bytes | None, bytes | None] = (None, None)
    word: int | None = None


class Drain(_Message, tag=34, frozen=True):
    """What is in the pipes comes before what is said next, for which this byte is awaited."""

    word: int


ToZygote = NewSandbox | EndSandbox
FromZygote = Ready | Failed
ToInit = Fork | Retire | Signal | Execute
FromInit = Forked | Died | Retired | Executed | Signalled
ToWorker = RunWork | Put | NoFiles
FromWorker = Display | Cut | Drain | Part | File | Left | Done | Idle

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


def pack(message: msgspec.Struct) -> bytearray:
    """One message as bytes, its length before it."""
    # Not encode(), which crashes the process where memory runs out (msgspec 0.22).
    packed = bytearray()
    _encoder.encode_into(message, packed, 4)
    packed[:4] = (len(packed) - 4).to_bytes(4, "big")
    return packed


def pack_long(message: msgspec.Struct) -> list[Buffer]:
    """The same in pieces; bytes in it that are long are not copied."""
    first, *others = pieces(message)
    size = len(first) + sum(map(len, others))
    return [size.to_bytes(4, "big") + bytes(first), *others]


_run_decoder = msgspec.msgpack.Decoder(RunWork)


def unpack_run(packed: bytes) -> RunWork:
    """A run from the whole of what `pack` gave; for who packed it."""
    return _run_decoder.decode(memoryview(packed)[4:])


class Unpacker(Generic[M]):
    """Bytes as they come, messages as they are whole; of one, ``limit`` bytes at most."""

    def __init__(self, messages: type[M], limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(messages)
        self._pending = bytearray()
        self._long: memoryview | None = None
        """Of a long message, the room for all of it: what grows as it comes is copied many times."""
        self._filled = 0
        """Bytes of it that have come."""

    def room(self) -> memoryview | None:
        """Where the next bytes may be put, of a long message that is not whole; then they `came`."""
        return None if self._long is None else self._long[self._filled :]

    def came(self, count: int) -> list[M]:
        """So many bytes were put into the `room`; the message that they complete, as `feed`."""
        assert self._long is not None
        self._filled += count
        if self._filled < len(self._long):
            return []
        whole, self._long = self._long, None
        return [self._decode(whole)]

    def feed(self, data: bytes | bytearray) -> list[M]:
        """The messages that these bytes complete.

        Raises:
            ProtocolError: a message is too long, or is none of the expected.
        """
        messages: list[M] = []
        rest = memoryview(data)
        room = self.room()
        if room is not None:
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            messages += self.came(count)
            rest = rest[count:]
        self._pending += rest
        at = 0
        with memoryview(self._pending) as pending:
            while len(pending) - at >= 4:
                size = int.from_bytes(pending[at : at + 4], "big")
                if size > self._limit:
                    raise ProtocolError(
                        f"a message of {size} bytes is over the limit of {self._limit}"
                    )
                begin, end = at + 4, at + 4 + size
                if end > len(pending):
                    if size > LONG:
                        self._long = memoryview(bytearray(size))
                        self._filled = len(pending) - begin
                        self._long[: self._filled] = pending[begin:]
                        at = len(pending)
                    break
                at = end
                # A copy: messages may have views of it.
                messages.append(self._decode(bytes(pending[begin:end])))
        del self._pending[:at]
        return messages

    def _decode(self, body: bytes | memoryview) -> M:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise ProtocolError(f"not a message: {exc}", bytes(body)) from exc
