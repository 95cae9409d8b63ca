"""One WebSocket to a runtime, over websocket-client: connect, drain, send, close.

A `Link` carries frames. A `PoolStream` is one with a whole runtime at its other end,
an `ObservationStream` one that tells of one sandbox (v1).

No threads of its own. `drain` never waits; `send` waits at most `SEND_TIMEOUT`
seconds for a runtime that does not read. One thread may drain while others send.
"""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import ssl
import struct
import threading
import time
import types
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import websocket
from websocket import ABNF

from mentis_pool.address import Address, parse
from mentis_pool.errors import ProtocolError, RuntimeRejected, RuntimeUnavailable
from mentis_pool.mentis_v1 import V1Observation, decode
from mentis_pool.pool_stream import (
    LONG,
    OWED,
    PATH,
    ROOM,
    SEEN,
    SUBPROTOCOL,
    Buffer,
    Command,
    Event,
    Frame,
    PickledCall,
    Run,
    Sender,
    Welcome,
    confirmation,
    events,
    frame_size,
    keep_memory,
)

SEND_TIMEOUT = 60.0
LONGEST = 1 << 30
"""Bytes of a message; what announces itself as longer would swallow all that follows."""
_CHUNK = 256 * 1024
"""Bytes that are read at once, and those of a longer message that are sent as one frame."""
_DRAINED = 4 * 1024 * 1024
"""Bytes of frames, from which on what else has arrived waits until these were heard."""


# A TLS connection may have to write before it can read, and the other way round.
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


_To = TypeVar("_To")
_Read = TypeVar("_Read")


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
        # Two threads may not be inside one TLS connection at a time.
        tls = isinstance(sock, ssl.SSLSocket)
        self._turn = threading.Lock() if tls else contextlib.nullcontext()
        self._buffer = memoryview(b"")
        self.heard = time.monotonic()
        """When something came last."""
        self._short = False
        """Whether the last read gave less than it could have: nothing else was there."""
        self.deadline: float | None = deadline
        """Until when a read waits (monotonic); None when it does not."""
        self.in_haste = False
        """Whether a send is not to wait at all."""

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

    def fill(self, room: memoryview) -> int:
        """Read into this as much as is there and goes in; how much that was, 0 at the end."""
        if not self._buffer:
            count = self._read(self._sock.recv_into, room)
            self._short = 0 < count < len(room)
            return count
        count = min(len(room), len(self._buffer))
        room[:count] = self._buffer[:count]
        self._buffer = self._buffer[count:]
        return count

    def whole(self) -> bytes | None:
        """What is in the next frame, if it is a binary one of no great length that is there as a whole."""
        if not self._buffer:
            self._buffer = memoryview(self._fill())
        buffer = self._buffer
        if len(buffer) < 4 or buffer[0] != _WHOLE:
            return None
        begin, size = 2, buffer[1]
        if size == 126:
            begin, size = 4, buffer[2] << 8 | buffer[3]
        if (begin == 2 and size > 126) or begin + size > len(buffer):
            return None
        self._buffer = buffer[begin + size :]
        return bytes(buffer[begin : begin + size])

    def _fill(self) -> bytes:
        data = self._read(self._sock.recv, _CHUNK)
        self._short = 0 < len(data) < _CHUNK
        return data

    def _read(self, read: Callable[[_To], _Read], to: _To) -> _Read:
        while True:
            try:
                with self._turn:
                    got = read(to)
                self.heard = time.monotonic()
                return got
            except _NOT_NOW as exc:
                if self.deadline is None:
                    raise BlockingIOError from exc
                self._wait(select.POLLIN, self.deadline)

    @property
    def dry(self) -> bool:
        """Whether all was read that was there; the rest of a TLS record is not known of."""
        return self._short and not self._buffer and not isinstance(self._sock, ssl.SSLSocket)

    def send(self, data: bytes) -> int:
        view = memoryview(data)
        deadline = time.monotonic() + (0.0 if self.in_haste else SEND_TIMEOUT)
        while view:
            try:
                with self._turn:
                    sent = self._sock.send(view)
                view = view[sent:]
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, deadline)
            except _NOT_NOW:
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
        """websocket-client closes at the end of a connection; a selector that watches it is yet to hear."""

    def end(self) -> None:
        """Close at once."""
        try:
            # A forked child of this process may hold the socket open.
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed, or the other side is gone
        self._sock.close()


# What websocket-client may raise, and what the socket below it may.
_ERRORS = (websocket.WebSocketException, OSError)


_WHOLE = 0x82
"""How a binary frame begins that is a message by itself (RFC 6455, section 5.2)."""
_DATA = (ABNF.OPCODE_CONT, ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY)


class _Frames(websocket.frame_buffer):
    """websocket-client's own, but for two things.

    It takes messages of any length; here only up to `LONGEST`. And it reads each frame in
    pieces; here one that is there as a whole is taken at once, and a long one is read to where
    it stays.
    """

    wire: _Wire | None = None
    """Where frames come from, once the handshake is over."""

    _so_far = 0
    """Bytes of the message in the frames before this one."""
    _long: memoryview | None = None
    """Room for what is in a long frame."""
    _filled = 0
    """Bytes of it that have come."""

    def recv_frame(self) -> ABNF:
        """The next frame."""
        if self.wire is not None and self.header is None and not self.recv_buffer:
            data = self.wire.whole()
            if data is not None:
                return ABNF(1, 0, 0, 0, _BINARY, 0, data)
        return super().recv_frame()

    def recv_strict(self, bufsize: int) -> bytes:
        """So many bytes, all of them."""
        if self.wire is None or bufsize < _CHUNK // 4 or self.recv_buffer:
            return super().recv_strict(bufsize)
        if self._long is None:
            self._long = memoryview(bytearray(bufsize))
            self._filled = 0
        while self._filled < bufsize:
            count = self.wire.fill(self._long[self._filled :])
            if not count:
                self.recv(1)  # says that this is the end
            self._filled += count
        whole, self._long = self._long, None
        made: Any = whole.obj  # a bytearray, with which all goes as with bytes
        return made  # type: ignore[no-any-return]

    def recv_length(self) -> None:
        """Read how long the frame is, which is done once for each."""
        super().recv_length()
        assert self.header is not None
        assert self.length is not None
        final, _, _, _, opcode, *_ = self.header
        if opcode not in _DATA:
            return
        self._so_far += self.length
        if self._so_far > LONGEST:
            raise websocket.WebSocketProtocolException(
                f"the runtime announces a message of {self._so_far} bytes"
            )
        if final:
            self._so_far = 0


_BINARY = ABNF.OPCODE_BINARY


class _PlainFrame(ABNF):
    """A frame with a mask of zeros, for a Unix socket.

    A mask keeps proxies on the way from taking a frame for something else (RFC 6455,
    section 10.3). There are none here, and to mask takes longer than all else.
    """

    def format(self) -> bytes:
        """The frame as bytes."""
        size = len(self.data)
        first = self.fin << 7 | self.opcode
        if size < 126:
            head = struct.pack("!BB", first, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", first, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", first, 0x80 | 127, size)
        data: Any = self.data
        return b"".join((head, bytes(4), data))


def _new_websocket() -> websocket.WebSocket:
    made = websocket.WebSocket(skip_utf8_validation=True)
    made.frame_buffer = _Frames(made._recv, True)
    return made


def _frames(message: list[Buffer]) -> Iterator[tuple[int, int, Buffer]]:
    """What a long message is sent in: whether each frame is the last, its opcode, what is in it."""
    left = frame_size(message)
    opcode = _BINARY
    for piece in message:
        for at in range(0, len(piece), _CHUNK):
            data = memoryview(piece)[at : at + _CHUNK]
            left -= len(data)
            yield int(not left), opcode, data
            opcode = ABNF.OPCODE_CONT


class Link:
    """A connected WebSocket: frames of bytes in and out.

    Made by `unix_link` or `link`. Reading waits until `stop_waiting`, and then never.

    Args:
        plain: whether the mask of what is sent may change nothing.
    """

    def __init__(self, websocket: Any, wire: _Wire, plain: bool = False) -> None:
        self._websocket = websocket
        self._wire = wire
        self.headers: dict[str, str] = websocket.getheaders() or {}
        """Of the answer in the handshake, their names in small letters."""
        websocket.frame_buffer.wire = wire
        self._plain = plain

    def fileno(self) -> int:
        """For a selector."""
        return self._wire.fileno()

    def stop_waiting(self) -> None:
        """From now on `receive` raises BlockingIOError where nothing is there."""
        self._wire.deadline = None

    @property
    def heard(self) -> float:
        """When something came last (monotonic)."""
        return self._wire.heard

    @property
    def dry(self) -> bool:
        """Whether nothing more was there to be received when it was last looked."""
        return self._wire.dry

    def receive(self, opcode: int) -> bytes:
        """The next message, which must be of this kind.

        Raises:
            BlockingIOError: it has not arrived.
            StreamLost: the connection is gone.
            ProtocolError: it is of another kind.
        """
        try:
            kind, frame = self._websocket.recv_data()
        except BlockingIOError:
            raise
        except _ERRORS as exc:
            raise StreamLost(str(exc) or type(exc).__name__) from exc
        if kind == opcode:
            return frame  # type: ignore[no-any-return]
        if kind == ABNF.OPCODE_CLOSE:
            words = frame[2:].decode(errors="replace")
            raise StreamLost(f"the runtime closed the stream: {words}")
        raise ProtocolError("a frame of another kind than the stream has", frame)

    def send(self, frame: Frame) -> None:
        """Send a message; the caller sees to it that nobody else sends meanwhile.

        Raises:
            StreamLost: the connection is gone.
        """
        try:
            if isinstance(frame, bytes) and len(frame) <= _CHUNK:
                self._send(1, _BINARY, frame)
                return
            # In several frames: what is short is masked, copied and put together soon.
            for each in _frames([frame] if isinstance(frame, bytes) else frame):
                self._send(*each)
        except _ERRORS as exc:
            raise StreamLost(str(exc)) from exc

    def _send(self, final: int, opcode: int, data: Buffer) -> None:
        kind: Any = _PlainFrame
        if not self._plain:
            # What it masks has to be bytes.
            kind, data = ABNF, bytes(data)
        self._websocket.send_frame(kind(final, 0, 0, 0, opcode, 1, data))

    def ping(self) -> None:
        """Have the other side answer, if only to this.

        Raises:
            StreamLost: the connection is gone.
        """
        try:
            self._websocket.ping()
        except _ERRORS as exc:
            raise StreamLost(str(exc)) from exc

    def cut(self) -> None:
        """Have whoever reads find the end; it stays to be closed."""
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close at once; what was not sent is not sent."""
        self._wire.end()

    def leave(self) -> None:
        """Say that this is the end, where that needs no waiting, and close."""
        self._wire.in_haste = True
        with contextlib.suppress(*_ERRORS):
            self._websocket.send_close()
        self.close()


ADVICE = (
    "start one there with 'mentis-pool serve', or give the address of another "
    "(runtime=, MENTIS_RUNTIME_URL)"
)
"""What to do where no runtime answers."""


def unix_link(sock: socket.socket, timeout: float) -> Link:
    """A link over a socket that is connected to a runtime, for the pool stream.

    Args:
        timeout: seconds within which the other end must answer, and be ready.

    Raises:
        RuntimeUnavailable: it does not.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
    keep_memory()
    wire = _Wire(sock, time.monotonic() + timeout)
    made = _new_websocket()
    try:
        made.connect(  # type: ignore[no-untyped-call]
            f"ws://localhost{PATH}",
            socket=wire,
            subprotocols=[SUBPROTOCOL],
            suppress_origin=True,
        )
    except _ERRORS as exc:
        sock.close()
        raise RuntimeUnavailable(f"no runtime answers: {exc}") from exc
    return Link(made, wire, plain=True)


def link(
    url: str,
    token: str | None,
    timeout: float,
    subprotocol: str | None = None,
    headers: Mapping[str, str] = types.MappingProxyType({}),
) -> Link:
    """A link to an address.

    Args:
        headers: for the request, besides what every one has.
        url: ``ws://`` or ``wss://``. Proxies are taken from the environment, but for loopback.
        token: for the runtime; None where it asks for none.
        timeout: seconds within which the other end must answer, and be ready.

    Raises:
        RuntimeUnavailable: nothing answers there.
        RuntimeRejected: it answers, and refuses.
    """
    made = _new_websocket()
    deadline = time.monotonic() + timeout
    try:
        made.connect(  # type: ignore[no-untyped-call]
            url,
            # websocket-client has rules of its own for which hosts a proxy is.
            socket=_connected(url, timeout),
            timeout=timeout,
            header={**headers, **({} if token is None else {"Authorization": f"Bearer {token}"})},
            subprotocols=None if subprotocol is None else [subprotocol],
            suppress_origin=True,
        )
    except websocket.WebSocketBadStatusException as exc:
        rejected = RuntimeRejected(refused(url, exc.status_code, exc.resp_body or b""))
        rejected.status = exc.status_code
        raise rejected from exc
    except _ERRORS as exc:
        reason = str(exc) or type(exc).__name__
        raise RuntimeUnavailable(f"no runtime answers at {url}: {reason}; {ADVICE}") from exc
    wire = _Wire(made.sock, deadline)  # type: ignore[arg-type]
    made.sock = wire  # type: ignore[assignment]
    return Link(made, wire)


def _connected(url: str, timeout: float) -> socket.socket:
    """A socket that is connected to the host of a URL, by its proxy where it has one, and by TLS.

    Raises:
        OSError: it cannot be.
    """
    # Only what reaches other machines needs it.
    import http.client

    address = parse(url)
    parts = urllib.parse.urlsplit(address.url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    port = parts.port or (443 if secure else 80)
    proxy = proxy_of(address)
    if proxy is None:
        connection = kind(address.host, port, timeout=timeout)
    else:
        connection = kind(proxy.host, proxy.port, timeout=timeout)
        connection.set_tunnel(address.host, port, proxy.headers)
    try:
        connection.connect()
    except http.client.HTTPException as exc:
        connection.close()
        raise OSError(f"its proxy gave no answer: {exc!r}") from exc
    connected: socket.socket = connection.sock
    return connected


class Proxy(NamedTuple):
    """A proxy: its address, and what it is to be told of who asks."""

    url: str
    host: str
    port: int
    headers: dict[str, str]


def proxy_of(address: Address) -> Proxy | None:
    """The proxy that the environment names for an address; none for this machine itself.

    Raises:
        RuntimeRejected: it is one of a kind that is not known here.
    """
    import urllib.request

    parts = urllib.parse.urlsplit(address.url)
    named = urllib.request.getproxies().get(parts.scheme)
    if not named or address.loopback or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxy = urllib.parse.urlsplit(named if "//" in named else f"http://{named}")
    host, port = proxy.hostname or "", proxy.port or 80
    if proxy.scheme != "http":
        raise RuntimeRejected(
            f"{address.url} has a proxy {proxy.scheme}://{host}:{port} in the environment, and "
            "only those of http:// are known here; set no_proxy where it needs none"
        )
    headers = {}
    if proxy.username is not None:
        user = urllib.parse.unquote(f"{proxy.username}:{proxy.password or ''}")
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Proxy(f"http://{where}", host, port, headers)


def refused(url: str, status: int, body: bytes) -> str:
    """What an answer that refuses means, in words for the user."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = body[:200].decode(errors="replace").strip() or "no reason was given"
    if status == 401:
        how = "give the runtime's token, as token=… or in MENTIS_RUNTIME_TOKEN"
        return f"{url} refuses with HTTP {status}: {message} ({how})"
    return f"{url} refuses with HTTP {status}: {message}"


PING = 5.0
"""Seconds of silence after which the runtime is asked to answer; as many more, and it is lost."""
_CONFIRM = 0.2
"""Seconds after which what came is confirmed, where nothing is sent that does it anyway."""


_FEW = 4
"""Commands of which it is looked whether they are long: among many, they matter less."""


def _is_long(command: Command) -> bool:
    return (
        isinstance(command, Run)
        and isinstance(command.work, PickledCall)
        and len(command.work.pickled) > LONG
    )


class PoolStream:
    """The pool stream over a link; `welcome` is what the runtime said first.

    What is sent is kept until the runtime has confirmed it. Where the link is lost the
    stream can go on over another (`rejoin`).

    Args:
        ping: as `PING`.

    Raises:
        RuntimeUnavailable: there is no runtime at the other end, or it did not
            become ready.
    """

    welcome: Welcome

    def __init__(self, link: Link, ping: float = PING) -> None:
        self._link = link
        self._ping = ping
        self._sender = Sender()
        self._receiver = events()
        self._owed = 0
        """Bytes that came and are not confirmed."""
        self._owed_since = 0.0
        self._received = 0
        try:
            first = self._receive()
        except (OSError, ProtocolError, StreamLost) as exc:
            link.close()
            raise RuntimeUnavailable(f"no runtime answers: {exc}; {ADVICE}") from exc
        if not first or not isinstance(first[0], Welcome):
            link.close()
            raise RuntimeUnavailable(f"the other end did not say Welcome; {ADVICE}")
        self.welcome = first[0]
        self._early = first[1:]
        self._end: Exception | None = None
        self._turn = threading.Lock()
        """Of whoever sends."""
        self._asked: float | None = None
        """When a ping was sent that was not answered yet."""
        self._more = False
        link.stop_waiting()

    def fileno(self) -> int:
        """For a selector."""
        return self._link.fileno()

    @property
    def seen(self) -> int:
        """The last frame that came."""
        return self._receiver.seq

    def wait(self) -> float:
        """Seconds until `drain` has something to do, though nothing comes."""
        if self._more or self._end is not None:
            # The end may come together with what was said before it.
            return 0.0
        due = (self._link.heard if self._asked is None else self._asked) + self._ping
        if self._owed:
            due = min(due, self._owed_since + _CONFIRM)
        return max(0.0, due - time.monotonic())

    def drain(self) -> list[Event]:
        """The events that have arrived: all, or some megabytes of them.

        Raises:
            StreamLost: the connection is gone; nothing else will arrive.
            ProtocolError: what came is no pool stream.
        """
        arrived, self._early = self._early, []
        self._more = False
        self._received = 0
        try:
            while self._end is None:
                arrived += self._receive()
                if self._link.dry:
                    break
                if self._received >= _DRAINED:
                    self._more = True
                    break
        except BlockingIOError:
            pass
        except (ProtocolError, StreamLost) as exc:
            self._end = exc
        if self._end is None:
            self._look_after(time.monotonic())
        if self._end is not None and not arrived:
            raise self._end
        # What came before the end first; the next call tells of the end.
        return arrived

    def _receive(self) -> list[Event]:
        frame = self._link.receive(ABNF.OPCODE_BINARY)
        messages = self._receiver.messages(frame)
        if not self._owed:
            self._owed_since = time.monotonic()
        self._owed += len(frame)
        self._received += len(frame)
        return messages

    def _look_after(self, now: float) -> None:
        """Confirm what came, and ask whether the runtime is there."""
        if self._turn.acquire(blocking=False):
            # Whoever sends just now confirms as well.
            try:
                self._sender.confirmed(self._receiver.acked)
                if self._owed > OWED or (self._owed and now >= self._owed_since + _CONFIRM):
                    self._owed = 0
                    self._link.send(confirmation(self.seen))
                self._ask(now)
            except ProtocolError as exc:
                self._end = exc
            except StreamLost:
                # What came before the end is still to be read.
                self._link.cut()
            finally:
                self._turn.release()

    def _ask(self, now: float) -> None:
        if self._asked is not None and self._link.heard >= self._asked:
            self._asked = None
        if self._asked is not None and now >= self._asked + self._ping:
            silence = now - self._link.heard
            self._end = StreamLost(f"the runtime said nothing for {silence:.0f} s")
        elif self._asked is None and now >= self._link.heard + self._ping:
            self._asked = now
            self._link.ping()

    def send(self, commands: list[Command]) -> None:
        """Send these in one frame; where the link is lost, they go when the stream goes on."""
        with self._turn:
            self._owed = 0
            few = len(commands) <= _FEW and any(map(_is_long, commands))
            new = self._sender.long_frame if few else self._sender.frame
            frame = new(commands, self.seen)
            try:
                self._link.send(frame)
            except StreamLost:
                # Whoever drains finds the end, and decides what it means.
                self._link.cut()

    def rejoin(self, link: Link) -> None:
        """Go on over this link, whose other end has said in the handshake what it has seen.

        Raises:
            ProtocolError: it has seen what cannot be.
            StreamLost: it is lost as well.
        """
        seen = link.headers.get(SEEN.lower(), "")
        if not seen.isdecimal():
            raise ProtocolError(f"the runtime does not say what it has seen: {seen!r}")
        link.stop_waiting()
        with self._turn:
            for frame in self._sender.rest(int(seen)):
                link.send(frame)
            self._link.close()
            self._link = link
            self._end = self._asked = None

    def close(self) -> None:
        """Close at once; what was not sent is not sent."""
        self._link.close()

    def leave(self) -> None:
        """Say that nobody comes back, and close."""
        self._link.leave()


class ObservationStream:
    """What is said of one sandbox (v1), over a link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._end: StreamLost | None = None
        link.stop_waiting()

    def fileno(self) -> int:
        """For a selector."""
        return self._link.fileno()

    @property
    def ended(self) -> bool:
        """Whether `drain` has nothing more to give but the end, which it is to be asked for."""
        return self._end is not None

    def drain(self) -> tuple[list[V1Observation], list[ProtocolError]]:
        """All observations that have arrived, and what among them was none.

        Raises:
            StreamLost: the connection is gone; nothing else will arrive.
        """
        arrived: list[V1Observation] = []
        wrong: list[ProtocolError] = []
        while self._end is None:
            try:
                some, other = decode(self._link.receive(ABNF.OPCODE_TEXT))
                arrived += some
                wrong += other
            except BlockingIOError:
                return arrived, wrong
            except ProtocolError as exc:
                wrong.append(exc)
            except StreamLost as exc:
                self._end = exc
        if not arrived and not wrong:
            raise self._end
        return arrived, wrong

    def close(self) -> None:
        """Close at once."""
        self._link.close()
