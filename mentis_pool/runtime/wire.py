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
from mentis_pool.pool_stream import Given, Put, Work

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


def pack(message: msgspec.Struct) -> bytes:
    """One message as bytes, its length before it."""
    # Not encode(), which crashes the process where memory runs out (msgspec 0.22).
    packed = bytearray()
    _encoder.encode_into(message, packed, 4)
    packed[:4] = (len(packed) - 4).to_bytes(4, "big")
    return bytes(packed)


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

    def feed(self, data: bytes) -> list[M]:
        """The messages that these bytes complete.

        Raises:
            ProtocolError: a message is too long, or is none of the expected.
        """
        self._pending += data
        pending = self._pending
        messages: list[M] = []
        at = 0
        while len(pending) - at >= 4:
            size = int.from_bytes(pending[at : at + 4], "big")
            if size > self._limit:
                raise ProtocolError(f"a message of {size} bytes is over the limit of {self._limit}")
            if len(pending) - at - 4 < size:
                break
            body = bytes(pending[at + 4 : at + 4 + size])
            at += 4 + size
            try:
                messages.append(self._decoder.decode(body))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
                raise ProtocolError(f"not a message: {exc}", body) from exc
        del pending[:at]
        return messages
