"""The asyncio shell of the pool stream, and the server of all routes.

What is decided, is decided in the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import secrets
import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec
import uvicorn
import uvicorn.protocols.websockets.websockets_sansio_impl as uvicorn_websockets
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.protocol import State

from mentis_pool import lanes
from mentis_pool._version import __version__
from mentis_pool.errors import ProtocolError
from mentis_pool.lanes import Lanes
from mentis_pool.mentis_v1 import HEALTH
from mentis_pool.observations import (
    Display,
    End,
    Error,
    File,
    Observation,
    Part,
    Result,
    Start,
    Stream,
)
from mentis_pool.pool_stream import (
    LONG,
    OWED,
    PATH,
    SEEN,
    SESSION,
    SUBPROTOCOL,
    Begin,
    Broken,
    Cancel,
    Close,
    Closed,
    Command,
    Credit,
    Event,
    Frame,
    Measure,
    Measured,
    Open,
    Opened,
    PickledCall,
    Put,
    Refused,
    Run,
    Said,
    Sender,
    Signal,
    Welcome,
    commands,
    confirmation,
    frame_size,
    keep_memory,
)
from mentis_pool.runtime import posix
from mentis_pool.runtime.gate import Gate
from mentis_pool.runtime.supervisor import NoRoom, Sandbox, Supervisor
from mentis_pool.runtime.v1 import V1, nowhere

_FULL = 8 * 1024 * 1024
"""Bytes waiting for a client, from which on its sandboxes are not read any more."""
_FRAME = 1024 * 1024
"""Bytes of observations in one frame, about."""
_LOST = (1005, 1006)
"""Codes of connections that ended without a word (RFC 6455, section 7.4.1)."""
_LATER = 0.001
"""Seconds within which is sent what may wait for more."""
_CONFIRM = 0.05
"""Seconds within which what came is confirmed, where nothing is sent that does it anyway."""
_LINK = "mentis_pool.link"
"""Where in an ASGI scope the connection is found."""


class Link(Protocol):
    """The connection to a client."""

    def takes_more(self) -> bool:
        """Whether it may be sent to now; `Session.send` is called when that changes."""

    def send_frame(self, frame: Frame) -> None:
        """Send, without waiting."""

    def cut(self) -> None:
        """Close it: it is of no more use."""


class Session:
    """One client on its stream: its lanes and sandboxes, and what is to be sent to it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.id = secrets.token_hex(4)
        self.key = secrets.token_hex(16)
        self._supervisor = supervisor
        self.link: Link | None = None
        """The connection, while there is one."""
        self.welcomed = False
        """Whether the client was told its key."""
        self._end_timer: asyncio.TimerHandle | None = None
        self._welcome = asyncio.ensure_future(self._greet())
        self._loop = asyncio.get_running_loop()
        self._lanes: Lanes[Run] = Lanes(0)
        self._opened: dict[int, Open] = {}
        self._sandboxes: dict[int, Sandbox] = {}
        self._receiver = commands()
        self._sender = Sender()
        self._outbox: list[Event] = []
        self._size = 0
        self._to_send = False
        """Whether `send` is to be called soon."""
        self._to_send_late = False
        """Whether it is to be called in a moment."""
        self._owed = 0
        """Bytes of frames that came and were not confirmed."""
        self._to_confirm = False
        """Whether `_confirm` is to be called in a while."""
        self._held_up = False
        """Whether a sandbox was told that there is no room for what it says."""

    # ── what the supervisor says (a Listener) ───────────────────────────────

    def opened(self, sandbox: Sandbox, seconds: float) -> None:
        """A sandbox has its first worker."""
        self._put(Opened(sandbox.number, seconds))

    def ready(self, sandbox: Sandbox) -> None:
        """A sandbox could begin at once."""
        self._lanes.ready(sandbox.number)

    def closed(self, sandbox: Sandbox, reason: str) -> None:
        """A sandbox is no more."""
        lost = self._sandboxes.pop(sandbox.number, None) is not None
        self._put(Closed(sandbox.number, reason, lost))
        self._carry_out(self._lanes.lost(sandbox.number, reason))

    def said(self, action: int, observation: Observation, later: bool = False) -> None:
        """Something was observed of an action."""
        self._size += _size(observation)
        self._put(Said(action, observation), later)

    def done(self, action: int, prompt: bool, more: bool = False) -> None:
        """All was said of an action."""
        self._carry_out(self._lanes.ended(action, prompt))
        if self._lanes.quiet and not more:
            # Nothing else is said in this round.
            self.send()

    def returned(self, sandbox: Sandbox, actions: list[int]) -> None:
        """A sandbox does not begin these."""
        self._carry_out(self._lanes.returned(sandbox.number, actions))

    def state_lost(self, sandbox: Sandbox, reason: str) -> None:
        """A session's sandbox has a new process."""
        self._carry_out(self._lanes.state_lost(sandbox.number, reason))

    def broken(self, reason: str, traceback: str, output: str) -> None:
        """The initializer failed."""
        self._put(Broken(reason, traceback, output))

    def congested(self) -> bool:
        """Whether so much waits for the client that no more is taken."""
        full = self._size + self._sender.kept_bytes > _FULL
        self._held_up = self._held_up or full
        return full

    def _put(self, event: Event, later: bool = False) -> None:
        self._outbox.append(event)
        if later:
            if not self._to_send_late:
                self._to_send_late = True
                self._loop.call_later(_LATER, self._send_late)
        elif not self._to_send:
            # What else is said in this round of the loop goes with it.
            self._to_send = True
            self._loop.call_soon(self.send)

    # ── what the client says ────────────────────────────────────────────────

    def receive(self, frame: bytes) -> None:
        """Carry out what comes.

        Raises:
            ProtocolError: it is no frame, or not the next one.
        """
        messages = self._receiver.messages(frame)
        self._sender.confirmed(self._receiver.acked)
        for command in messages:
            self.obey(_on_its_own(command, len(frame)))
        self._owed += len(frame)
        if self._owed > OWED:
            self._confirm()
        elif messages and not self._to_confirm:
            # Whatever is said until then confirms it as well.
            self._to_confirm = True
            self._loop.call_later(_CONFIRM, self._confirm_late)
        self._resume()

    def attach(self, link: Link, seen: int) -> None:
        """Go on over this connection, whose client has seen this frame last.

        Raises:
            ProtocolError: that cannot be.
        """
        rest = self._sender.rest(seen)
        self.detach()
        if self._end_timer is not None:
            self._end_timer.cancel()
            self._end_timer = None
        self.link = link
        for frame in rest:
            link.send_frame(frame)
        self.send()

    def detach(self) -> None:
        """The connection is lost; the client may come back."""
        if self.link is not None:
            link, self.link = self.link, None
            link.cut()

    def end_after(self, seconds: float, end: Callable[[], None]) -> None:
        """Have it ended, unless the client comes back before."""
        self._end_timer = self._loop.call_later(seconds, end)

    @property
    def seen(self) -> int:
        """The last frame that came."""
        return self._receiver.seq

    def obey(self, command: Command) -> None:
        """Carry out a command."""
        if isinstance(command, Run):
            if command.deadline is not None:
                # From now on a time of this loop.
                at = self._loop.time() + command.deadline
                command = msgspec.structs.replace(command, deadline=at)
            self._carry_out(self._lanes.add(command.lane, command.action, command, command.number))
        elif isinstance(command, Credit):
            sandbox = self._with(command.action)
            if sandbox is not None:
                sandbox.credit(command.action, command.bytes)
        elif isinstance(command, Put):
            sandbox = self._with(command.action)
            if sandbox is not None:
                sandbox.put(command)
        elif isinstance(command, Cancel):
            self._carry_out(self._lanes.cancel(command.action))
        elif isinstance(command, Signal):
            sandbox = self._with(command.action)
            if sandbox is not None:
                sandbox.signal(command.action, command.signal)
        elif isinstance(command, Open):
            self._opened[command.lane] = command
            state = command.state
            self._lanes.open(command.lane, state == "session", state == "new")
        elif isinstance(command, Close):
            self._carry_out(self._lanes.close(command.lane, command.reason))
        elif isinstance(command, Measure):
            used = [sandbox.in_use() for sandbox in self._sandboxes.values()]
            self._put(Measured(command.number, used))
        elif isinstance(command, Begin):
            self._lanes = Lanes(command.most)

    def _with(self, action: int) -> Sandbox | None:
        """The sandbox that has this action."""
        sandbox = self._lanes.sandbox_of(action)
        return None if sandbox is None else self._sandboxes.get(sandbox)

    def _carry_out(self, orders: list[lanes.Order]) -> None:
        for order in orders:
            if isinstance(order, lanes.Give):
                # One that could not be made has given it back.
                if order.sandbox in self._sandboxes:
                    self._sandboxes[order.sandbox].submit(order.run)
            elif isinstance(order, lanes.Make):
                self._make(order.sandbox, order.lane)
            elif isinstance(order, lanes.End):
                if order.sandbox in self._sandboxes:
                    self._sandboxes[order.sandbox].cancel(order.action)
            elif isinstance(order, lanes.Drop):
                if order.sandbox in self._sandboxes:
                    self._sandboxes.pop(order.sandbox).close(order.reason)
            elif isinstance(order, lanes.Refuse):
                self._put(Said(order.action, Error(order.kind, order.reason)))
                self._put(Said(order.action, End(0.0)))
            else:
                self._put(Broken(f"sandboxes die as soon as they are started: {order.reason}"))

    def _make(self, number: int, lane: int) -> None:
        try:
            self._sandboxes[number] = self._supervisor.open(number, self._opened[lane], self)
        except (NoRoom, OSError) as exc:
            reason = str(exc) if isinstance(exc, NoRoom) else f"it could not be started: {exc}"
            self._put(Refused(number, reason))
            self._carry_out(self._lanes.refused(number, reason))

    async def _greet(self) -> None:
        """Wait until sandboxes can be had, and say so."""
        await self._supervisor.ready.wait()
        self.welcomed = True
        version, python = __version__, platform.python_version()
        self._put(Welcome(self.id, version, python, self.key, self._supervisor.standing))

    def _send_late(self) -> None:
        self._to_send_late = False
        self.send()

    def _confirm_late(self) -> None:
        self._to_confirm = False
        if self._owed:
            self._confirm()

    def _confirm(self) -> None:
        if self.link is not None and self.link.takes_more():
            self.link.send_frame(confirmation(self.seen))
            self._owed = 0

    def send(self) -> None:
        """Send what is there, as long as the client takes it, all that is there in one frame."""
        self._to_send = False
        while self._outbox and self.link is not None and self.link.takes_more():
            some, self._outbox, size = _some(self._outbox)
            self._owed = 0
            self._size -= size
            new = self._sender.long_frame if size > LONG * len(some) else self._sender.frame
            self.link.send_frame(new(some, self.seen))
        self._resume()

    def _resume(self) -> None:
        """Read on, where there is room again."""
        if self._held_up and self._size + self._sender.kept_bytes <= _FULL:
            self._held_up = False
            for sandbox in list(self._sandboxes.values()):
                sandbox.resume()

    def end(self) -> None:
        """The client is gone: so are its sandboxes."""
        self._welcome.cancel()
        self._lanes = Lanes(0)
        for sandbox in list(self._sandboxes.values()):
            sandbox.close("the client is gone")


def _on_its_own(command: Command, size: int) -> Command:
    """The same, which does not keep what it came in with others, of so many bytes."""
    if isinstance(command, Open):
        first = command.initializer
        if isinstance(first, PickledCall):
            return msgspec.structs.replace(command, initializer=_copy(first))
    elif size > LONG and isinstance(command, Run):
        work = command.work
        if isinstance(work, PickledCall) and len(work.pickled) <= LONG:
            return msgspec.structs.replace(command, work=_copy(work))
    return command


def _copy(call: PickledCall) -> PickledCall:
    return msgspec.structs.replace(call, pickled=bytes(call.pickled))


def _size(observation: Observation) -> int:
    kind = type(observation)
    # The most frequent first; isinstance() of each takes longer than all else here.
    if kind is Start or kind is End:
        return 0
    if isinstance(observation, Result):
        return len(observation.pickled or b"")
    if isinstance(observation, (Stream, Part, File)):
        return len(observation.data)
    return observation.bundle.size if isinstance(observation, Display) else 0


def _some(batch: list[Event]) -> tuple[list[Event], list[Event], int]:
    """As much of a batch as goes into one frame, the rest, and its size."""
    size = 0
    for count, event in enumerate(batch, 1):
        size += _size(event.observation) if isinstance(event, Said) else 0
        if size >= _FRAME:
            return batch[:count], batch[count:], size
    return batch, [], size


def application(supervisor: Supervisor, linger: float) -> Starlette:
    """The runtime's routes; ``linger`` as for `server`."""
    sessions: dict[str, Session] = {}

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__, "streams": [SUBPROTOCOL]})

    async def pool(websocket: WebSocket) -> None:
        if SUBPROTOCOL not in websocket.scope.get("subprotocols", ()):
            message = f"this runtime speaks {SUBPROTOCOL}"
            await websocket.send_denial_response(JSONResponse({"message": message}, 400))
            return
        key = websocket.headers.get(SESSION)
        session = Session(supervisor) if key is None else sessions.get(key)
        if session is None:
            gone = {"message": "this session is over: its client was gone for too long"}
            await websocket.send_denial_response(JSONResponse(gone, 410))
            return
        sessions[session.key] = session
        headers = [(SEEN.lower().encode(), str(session.seen).encode())]
        await websocket.accept(subprotocol=SUBPROTOCOL, headers=headers)
        link: _Protocol = websocket.scope["extensions"][_LINK]["connection"]
        code = 1001
        try:
            link.serve(session, websocket.headers.get(SEEN, "0"))
            # Frames go to the session by themselves: what comes here is the end.
            while (event := await websocket.receive())["type"] != "websocket.disconnect":
                pass
            code = event["code"]
        except asyncio.CancelledError:
            pass  # the runtime ends
        finally:
            # It may have gone on over another connection by now.
            if session.link is link:
                session.detach()
                if code in _LOST and linger and session.welcomed:
                    session.end_after(linger, lambda: end(session))
                else:
                    end(session)

    def end(session: Session) -> None:
        sessions.pop(session.key, None)
        session.end()

    return Starlette(
        routes=[Route(HEALTH, health), WebSocketRoute(PATH, pool), *V1(supervisor).routes()],
        exception_handlers={HTTPException: nowhere},
    )


class _Protocol(uvicorn_websockets.WebSocketsSansIOProtocol):
    """uvicorn's own, but for three things.

    Frames of the pool stream take no way round by tasks and queues. A client that does
    not read is told of the close as well, behind all that it has not read. And a
    WebSocket that was denied is no fault of the application.
    """

    _PATIENCE = 60.0
    """Seconds after which it is cut off, whatever it has read."""

    session: Session | None = None
    """Whose frames these are; None where they are for the application."""

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        super().connection_made(transport)
        posix.enlarge(transport.get_extra_info("socket"))

    def handle_connect(self, event: Any) -> None:
        """Let the application find this."""
        super().handle_connect(event)
        if not self.close_sent:
            assert self.scope["extensions"] is not None
            self.scope["extensions"][_LINK] = {"connection": self}

    def send_receive_event_to_app(self) -> None:
        """A message is whole."""
        if self.session is None:
            super().send_receive_event_to_app()
            return
        frame, self.frames = b"".join(self.frames), []
        try:
            if self.curr_msg_data_type == "text":
                raise ProtocolError("the pool stream has no text")
            self.session.receive(frame)
        except ProtocolError as exc:
            self._refuse(exc)

    def serve(self, session: Session, seen: str) -> None:
        """From now on frames are this session's, whose client says what it has seen."""
        self.session = session
        try:
            # More digits than any frame has int() may refuse.
            session.attach(self, int(seen) if seen.isdecimal() and len(seen) < 20 else -1)
        except ProtocolError as exc:
            self._refuse(exc)

    def _refuse(self, exc: ProtocolError) -> None:
        self.session = None
        self.conn.send_close(1002, str(exc)[:100])
        self.handle_parser_exception()

    def cut(self) -> None:
        """Close it: it is of no more use."""
        self.session = None
        self.transport.abort()

    def takes_more(self) -> bool:
        """Whether the client has read most of what was sent, or is gone."""
        return self.writable.is_set()

    def send_frame(self, frame: Frame) -> None:
        """Send to a client that is there; where it is gone, nothing."""
        if self.conn.state is not State.OPEN or self.transport.is_closing():
            return
        if isinstance(frame, bytes):
            self.conn.send_binary(frame)
            self.transport.write(b"".join(self.conn.data_to_send()))
            return
        # What is long would be copied three times.
        self.transport.write(struct.pack("!BBQ", 0x82, 127, frame_size(frame)))
        for piece in frame:
            self.transport.write(memoryview(piece))

    def resume_writing(self) -> None:
        """The client has taken what was sent."""
        super().resume_writing()
        if self.session is not None:
            self.session.send()

    async def send(self, message: Any) -> None:
        """Send an ASGI message."""
        if message["type"] == "websocket.close":
            self.writable.set()
            self.loop.call_later(self._PATIENCE, self.transport.abort)
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are for the program that serves."""
        yield


def server(
    supervisor: Supervisor,
    *,
    token: str | None = None,
    loopback: bool = False,
    linger: float = 0.0,
) -> uvicorn.Server:
    """The server, to be run on the supervisor's event loop.

    Args:
        token: that clients must give; None where none is asked for.
        loopback: whether it is reached by the names of this machine alone.
        linger: seconds that a session is kept whose client is gone without a word.
    """
    keep_memory()
    return _Server(
        uvicorn.Config(
            Gate(application(supervisor, linger), token, loopback),
            ws=_Protocol,
            # More than one run has, whose length has four bytes on its way to a worker.
            ws_max_size=1 << 33,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            http="h11",
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
    )
