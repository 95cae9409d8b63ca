"""One WebSocket of the pool stream, over websocket-client: connect, drain, send, close.

No threads of its own. `drain` never waits; `send` waits at most `SEND_TIMEOUT`
seconds for a runtime that does not read. One thread may drain while others send.
"""

from __future__ import annotations

import select
import socket
import time

import websocket

from mentis_pool.errors import ProtocolError, RuntimeUnavailable
from mentis_pool.pool_stream import (
    PATH,
    SUBPROTOCOL,
    Command,
    Event,
    Sender,
    Welcome,
    events,
)

SEND_TIMEOUT = 60.0
_CHUNK = 256 * 1024


class StreamLost(Exception):
    """The connection is gone; the message says how. Never leaves the library."""


class _Wire:
    """A socket as websocket-client wants it, reading ahead and waiting by itself.

    websocket-client reads a frame in three small pieces and resumes where a
    read raised BlockingIOError; a send that stops half-way it cannot resume.
    So reading comes from a buffer and, once `ready`, never waits, and sending
    goes on until all is sent.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = memoryview(b"")
        self.deadline: float | None = deadline
        """Until when a read waits (monotonic); None when it does not."""
        self._closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def gettimeout(self) -> float:
        return 0.0

    def settimeout(self, timeout: float | None) -> None:
        """The waiting is ours."""

    def recv(self, size: int) -> bytes:
        if not self._buffer:
            self._buffer = memoryview(self._fill())
        data = bytes(self._buffer[:size])
        self._buffer = self._buffer[size:]
        return data

    def _fill(self) -> bytes:
        while True:
            try:
                return self._sock.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                if self.deadline is None:
                    raise
                self._wait(select.POLLIN, self.deadline)

    def send(self, data: bytes) -> int:
        view = memoryview(data)
        deadline = time.monotonic() + SEND_TIMEOUT
        while view:
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, InterruptedError):
                self._wait(select.POLLOUT, deadline)
        return len(data)

    def _wait(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._sock, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the runtime does not answer")

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._closed = True
        try:
            # A forked child of this process may hold the socket open.
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed, or the other side is gone
        self._sock.close()


# What websocket-client may raise, and what the socket below it may.
_ERRORS = (websocket.WebSocketException, OSError)


class PoolStream:
    """The stream to one runtime; `welcome` is what the runtime said first.

    Args:
        sock: connected to the runtime.
        timeout: seconds within which it must be ready.

    Raises:
        RuntimeUnavailable: there is no runtime at the other end, or it did not
            become ready.
    """

    welcome: Welcome

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._wire = _Wire(sock, deadline)
        self._sender = Sender()
        self._receiver = events()
        self._websocket = websocket.WebSocket(skip_utf8_validation=True)
        try:
            self._websocket.connect(  # type: ignore[no-untyped-call]
                f"ws://localhost{PATH}",
                socket=self._wire,
                subprotocols=[SUBPROTOCOL],
                suppress_origin=True,
            )
            first = self._receive()
        except (*_ERRORS, ProtocolError, StreamLost) as exc:
            sock.close()
            raise RuntimeUnavailable(f"no runtime answers: {exc}") from exc
        if not first or not isinstance(first[0], Welcome):
            sock.close()
            raise RuntimeUnavailable("the other end did not say Welcome")
        self.welcome = first[0]
        self._early = first[1:]
        self._end: Exception | None = None
        self._wire.deadline = None

    def fileno(self) -> int:
        """For a selector."""
        return self._wire.fileno()

    def drain(self) -> list[Event]:
        """All events that have arrived.

        Raises:
            StreamLost: the connection is gone; nothing else will arrive.
            ProtocolError: what came is no pool stream.
        """
        arrived, self._early = self._early, []
        while self._end is None:
            try:
                arrived += self._receive()
            except BlockingIOError:
                return arrived
            except (ProtocolError, StreamLost) as exc:
                self._end = exc
            except _ERRORS as exc:
                self._end = StreamLost(str(exc))
        if not arrived:
            raise self._end
        # What came before the end first; the next call tells of the end.
        return arrived

    def _receive(self) -> list[Event]:
        opcode, frame = self._websocket.recv_data()
        if opcode == websocket.ABNF.OPCODE_BINARY:
            return self._receiver.messages(frame)
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise StreamLost(f"the runtime closed the stream: {frame[2:].decode(errors='replace')}")
        raise ProtocolError("a text frame in the pool stream", frame)

    def send(self, commands: list[Command]) -> None:
        """Send these in one frame; the caller sees to it that nobody else sends meanwhile.

        Raises:
            StreamLost: the connection is gone.
        """
        frame = self._sender.frame(commands, self._receiver.seq)
        try:
            self._websocket.send_binary(frame)
        except _ERRORS as exc:
            raise StreamLost(str(exc)) from exc

    def close(self) -> None:
        """Close at once; what was not sent is not sent."""
        self._wire.close()
