"""v1 for clients of the original: what they ask for by REST, and what they hear on their streams.

A sandbox of v1 keeps its state from cell to cell; shell commands run beside
the cells. Nothing is dropped: whoever writes waits for the slowest reader, and a
reader that stops has its stream closed, with a code that says so.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from mentis_pool import mentis_v1
from mentis_pool.limits import Limits
from mentis_pool.observations import End, Error, Observation, Start, StreamName
from mentis_pool.pool_stream import Cells, Open, Run
from mentis_pool.runtime.registry import Conflict, Missing, Registry, Space
from mentis_pool.runtime.supervisor import NoRoom, Sandbox, Supervisor
from mentis_pool.text import to_bytes

MAX_BODY = 60 * 1024 * 1024
"""Bytes of a request's body."""
MOST_READ = 1 << 30
"""Bytes of one that is too large that are read, since a client that still sends hears no answer."""
FULL = 4 * 1024 * 1024
"""Bytes waiting for a reader, from which on the sandbox's output is not read any more."""
STALL = 30.0
"""Seconds for which a reader may take nothing of what waits for it."""
STOPPED = 1008
"""Close code of a stream whose reader stopped reading (RFC 6455, "policy violation")."""
GONE = 1001
"""Close code of a stream whose sandbox is no more (RFC 6455, "going away")."""

B = TypeVar("B")


class _Stream:
    """One client's WebSocket: what waits to be sent, and why it is to be closed.

    ``drained`` is called each time when less waits.
    """

    def __init__(self, drained: Callable[[], None]) -> None:
        self._drained = drained
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._sent = 0
        self._filled = asyncio.Event()
        self._closing: tuple[int, str] | None = None

    @property
    def full(self) -> bool:
        """Whether so much waits for the reader that nothing more should come."""
        return self._size > FULL

    def put(self, frame: bytes) -> None:
        """One more observation."""
        self._frames.append(frame)
        self._size += len(frame)
        self._filled.set()

    def close(self, code: int, reason: str) -> None:
        """Close it, once what waits is sent."""
        self._closing = self._closing or (code, reason)
        self._filled.set()

    async def send(self, websocket: WebSocket) -> None:
        """Send what comes, until it is closed."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._frames:
                await websocket.send_text(self._frames[0].decode())
                self._size -= len(self._frames.popleft())
                self._sent += 1
                self._drained()
            if self._closing is not None:
                await websocket.close(*self._closing)
                return

    async def watch(self, websocket: WebSocket) -> None:
        """Close it when its reader has stopped; what waited for it is lost to it."""
        while True:
            sent = self._sent
            await asyncio.sleep(STALL)
            if self._frames and sent == self._sent:
                await websocket.close(STOPPED, f"nothing was read for {STALL:g} s")
                return


class _Cell:
    """A cell of a sandbox, from its POST to its end."""

    def __init__(self, encoder: mentis_v1.CellEncoder) -> None:
        self.encoder = encoder
        self.started = False


class _Box:
    """One sandbox of v1: its cells and commands, and the streams that hear of it."""

    def __init__(self, sandbox_id: str, space_id: str, supervisor: Supervisor) -> None:
        self.sandbox_id = sandbox_id
        self.space_id = space_id
        self.ended: str | None = None
        """Why it is no more."""
        self.streams: set[_Stream] = set()
        self._cells: dict[int, _Cell] = {}
        self._count = 0
        self._sandbox = supervisor.open(0, Open(0, "session", limits=Limits()), self)

    def described(self) -> dict[str, Any]:
        """As v1 shows it."""
        return {
            "sandbox_id": self.sandbox_id,
            "container_id": "",
            "agent_url": "",
            "is_running": self.ended is None,
            "space_id": self.space_id,
        }

    def run(self, wanted: mentis_v1.RunCell) -> str:
        """Run a cell after those that are there; the id of the action."""
        action_id = str(uuid.uuid4())
        self._count += 1
        self._cells[self._count] = _Cell(mentis_v1.CellEncoder(action_id, self._count))
        self._sandbox.submit(
            Run(
                action=self._count,
                lane=0,
                work=Cells([to_bytes(wanted.code)]),
                timeout=wanted.timeout or None,
            )
        )
        return action_id

    def execute(self, wanted: mentis_v1.RunCommand) -> str:
        """Run a shell command now; the id of the action."""
        action_id = str(uuid.uuid4())
        self._sandbox.execute(
            to_bytes(wanted.command),
            to_bytes(wanted.work_dir or ""),
            wanted.env or {},
            wanted.timeout or None,
            _Command(self, action_id),
        )
        return action_id

    def end(self, reason: str) -> None:
        """End it, with all that runs in it."""
        self._sandbox.close(reason)

    def say(self, frames: list[bytes]) -> None:
        """Tell every stream."""
        for frame in frames:
            for stream in self.streams:
                stream.put(frame)

    # ── what the supervisor says (a Listener) ───────────────────────────────

    def opened(self, sandbox: Sandbox, seconds: float) -> None:
        """It has its first worker."""

    def closed(self, sandbox: Sandbox, reason: str) -> None:
        """It is no more: cells that wait will not run."""
        self.ended = reason
        for number in list(self._cells):
            self.said(number, Error("died", f"the sandbox was lost: {reason}"))
            self.said(number, End(0.0))
        for stream in self.streams:
            stream.close(GONE, _gone(reason))

    def said(self, action: int, observation: Observation, later: bool = False) -> None:
        """Something was observed of a cell."""
        cell = self._cells[action]
        now = time.time()
        if not cell.started and not isinstance(observation, Start):
            self.say(cell.encoder.encode(Start(now), now))
        cell.started = True
        self.say(cell.encoder.encode(observation, now))
        if isinstance(observation, End):
            del self._cells[action]

    def done(self, action: int, prompt: bool, more: bool = False) -> None:
        """Its end was said."""

    def returned(self, sandbox: Sandbox, actions: list[int]) -> None:
        """Nothing is sent ahead in a session."""

    def ready(self, sandbox: Sandbox) -> None:
        """It could run a cell."""

    def state_lost(self, sandbox: Sandbox, reason: str) -> None:
        """v1 has no word for it."""

    def broken(self, reason: str, traceback: str, output: str) -> None:
        """There is no initializer."""

    def congested(self) -> bool:
        """Whether a reader has so much to read that the sandbox has to wait."""
        return any(stream.full for stream in self.streams)

    def listen(self) -> _Stream:
        """A new stream, which hears what is said from now on."""
        stream = _Stream(self._sandbox.resume)
        self.streams.add(stream)
        if self.ended is not None:
            stream.close(GONE, _gone(self.ended))
        return stream

    def forget(self, stream: _Stream) -> None:
        """Its client is gone; whoever waited for it goes on."""
        self.streams.discard(stream)
        self._sandbox.resume()


def _gone(reason: str) -> str:
    # A close frame has room for 123 bytes.
    return f"the sandbox is no more: {reason}".encode()[:120].decode(errors="ignore")


class _Command:
    """A shell command of a sandbox (a CommandListener)."""

    def __init__(self, box: _Box, action_id: str) -> None:
        self._box = box
        self._encoder = mentis_v1.CommandEncoder(action_id)
        self._started = False

    def started(self) -> None:
        """It runs."""
        self._started = True
        self._box.say([self._encoder.start(time.time())])

    def wrote(self, stream: StreamName, data: bytes) -> None:
        """It wrote this."""
        self._box.say(self._encoder.output(stream, data, time.time()))

    def congested(self) -> bool:
        """Whether it has to wait for a reader."""
        return self._box.congested()

    def ended(self, status: int | None, reason: str) -> None:
        """It has ended; a status is as ``os.wait`` gives it."""
        if not self._started:
            self.started()
        failure = reason or None
        code = -1
        if status is not None:
            # A shell's own way to say which signal it was.
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended
        self._box.say(self._encoder.finish(code, failure, time.time()))


class _Wrong(Exception):
    """A request that cannot be carried out: a status and why."""

    def __init__(self, status: int, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.refusal = mentis_v1.Refusal(message, detail)


async def _body(request: Request, expected: type[B]) -> B:
    """The request's body.

    Raises:
        _Wrong: it is too large, no JSON, or lacks or mistakes a field, which is named.
    """
    body = await _read(request)
    try:
        return msgspec.json.decode(body, type=expected)
    except msgspec.ValidationError as exc:
        raise _Wrong(400, f"the body is not as it must be: {_placed(exc)}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        words = str(exc)
        if "truncated" in words and _SURROGATE.search(body):
            words = "it ends too early, or holds half of a surrogate pair, which is no character"
        raise _Wrong(400, f"the body is not JSON: {words}") from exc


async def _read(request: Request) -> bytes:
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY:
            body += part
        elif size > MOST_READ:
            break
        else:
            body.clear()
    if size > MAX_BODY:
        raise _Wrong(413, f"the body is over the limit of {MAX_BODY} bytes")
    return bytes(body)


_SURROGATE = re.compile(rb"\\u[dD][89abAB]")
_MISSING = re.compile(r"missing required field `(\w+)`$")


def _placed(exc: msgspec.ValidationError) -> str:
    """Its words; msgspec names the place of every mistake but of a field that is missing."""
    missing = _MISSING.search(str(exc))
    return f"{exc} - at `$.{missing[1]}`" if missing else str(exc)


def _check_timeout(timeout: float | None) -> None:
    """0 is none, as None is: the original takes any, and ignores it."""
    if timeout is not None and not 0 <= timeout < float("inf"):
        raise _Wrong(400, f"timeout must be 0 seconds or more, not {timeout!r} - at `$.timeout`")


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _described(space: Space[_Box]) -> dict[str, Any]:
    """As the original shows a space, and by the names that clients know as well."""
    shown = {
        "Name": space.name,
        "Description": space.description,
        "CreatedAt": space.created,
        "UpdatedAt": space.updated,
        "Metadata": space.metadata,
        "Sandboxes": {name: box.described() for name, box in space.sandboxes.items()},
    }
    snake = {
        "space_id": space.space_id,
        "name": space.name,
        "description": space.description,
        "created_at": space.created,
        "updated_at": space.updated,
        "metadata": space.metadata,
        "sandboxes": shown["Sandboxes"],
    }
    return {"ID": space.space_id, **shown, **snake}


class V1:
    """The spaces of one runtime, and the routes to them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._registry: Registry[_Box] = Registry(time.time())

    def routes(self) -> list[BaseRoute]:
        """For Starlette."""
        space, box = "/v1/spaces/{space}", "/v1/spaces/{space}/sandboxes/{sandbox}"
        routes: list[tuple[str, str, Any]] = [
            ("POST", "/v1/spaces", self._create_space),
            ("GET", "/v1/spaces", self._list_spaces),
            ("GET", space, self._get_space),
            ("PUT", space, self._change_space),
            ("DELETE", space, self._delete_space),
            ("POST", f"{space}/sandboxes", self._create_sandbox),
            ("GET", f"{space}/sandboxes", self._list_sandboxes),
            ("GET", box, self._get_sandbox),
            ("DELETE", box, self._delete_sandbox),
            ("DELETE", "/v1/sandboxes/{sandbox}", self._delete_sandbox),
            ("POST", f"{box}/tools:run_ipython_cell", self._run_cell),
            ("POST", f"{box}/tools:run_shell_command", self._run_command),
        ]
        return [
            *(Route(path, _answering(call), methods=[method]) for method, path, call in routes),
            WebSocketRoute("/v1/sandboxes/{sandbox}/stream", self._stream),
        ]

    # ── spaces ──────────────────────────────────────────────────────────────

    async def _create_space(self, request: Request) -> Response:
        wanted = await _body(request, mentis_v1.NewSpace)
        if not wanted.name:
            raise _Wrong(400, "the name is empty - at `$.name`")
        space = self._registry.create(str(uuid.uuid4()), wanted, time.time())
        shown = _described(space)
        return _json(
            {name: shown[name] for name in ("space_id", "name", "description", "metadata")}, 201
        )

    async def _list_spaces(self, request: Request) -> Response:
        return _json([_described(space) for space in self._registry.spaces()])

    async def _get_space(self, request: Request) -> Response:
        return _json(_described(self._registry.space(request.path_params["space"])))

    async def _change_space(self, request: Request) -> Response:
        space = request.path_params["space"]
        self._registry.space(space)
        self._registry.change(space, await _body(request, mentis_v1.SpaceChange), time.time())
        return Response(status_code=204)

    async def _delete_space(self, request: Request) -> Response:
        for box in self._registry.delete(request.path_params["space"]):
            box.end("its space was deleted")
        return Response(status_code=204)

    # ── sandboxes ───────────────────────────────────────────────────────────

    async def _create_sandbox(self, request: Request) -> Response:
        space = self._registry.space(request.path_params["space"])
        await _body(request, mentis_v1.NewSandbox)
        await self._supervisor.ready.wait()
        # It may have been deleted meanwhile, and nobody would end the sandbox.
        self._registry.space(space.space_id)
        sandbox_id = str(uuid.uuid4())
        try:
            box = _Box(sandbox_id, space.space_id, self._supervisor)
        except NoRoom as exc:
            raise _Wrong(503, f"no sandbox can be had: {exc}; delete one, or try later") from exc
        except OSError as exc:
            raise _Wrong(503, f"no sandbox can be started: {exc}") from exc
        self._registry.add(space.space_id, sandbox_id, box)
        return _json(box.described(), 201)

    async def _list_sandboxes(self, request: Request) -> Response:
        space = self._registry.space(request.path_params["space"])
        return _json([box.described() for box in space.sandboxes.values()])

    async def _get_sandbox(self, request: Request) -> Response:
        return _json(self._box(request).described())

    async def _delete_sandbox(self, request: Request) -> Response:
        box = self._box(request)
        self._registry.remove(box.sandbox_id)
        box.end("it was deleted")
        return Response(status_code=204)

    def _box(self, request: Request | WebSocket) -> _Box:
        parameters = request.path_params
        return self._registry.sandbox(parameters["sandbox"], parameters.get("space"))

    def _running(self, request: Request) -> _Box:
        box = self._box(request)
        if box.ended is not None:
            raise Missing(f"the sandbox {box.sandbox_id!r} is no more: {box.ended}")
        return box

    # ── cells, commands and streams ─────────────────────────────────────────

    async def _run_cell(self, request: Request) -> Response:
        self._running(request)
        wanted = await _body(request, mentis_v1.RunCell)
        _check_timeout(wanted.timeout)
        return _json(mentis_v1.Accepted(self._running(request).run(wanted)), 202)

    async def _run_command(self, request: Request) -> Response:
        self._running(request)
        wanted = await _body(request, mentis_v1.RunCommand)
        _check_timeout(wanted.timeout)
        for name in ("command", "work_dir"):
            if "\0" in (getattr(wanted, name) or ""):
                raise _Wrong(400, f"it holds a NUL byte - at `$.{name}`")
        for name, value in (wanted.env or {}).items():
            if not name or "=" in name or "\0" in name + value:
                raise _Wrong(400, f"{name!r} cannot be set in an environment - at `$.env`")
        return _json(mentis_v1.Accepted(self._running(request).execute(wanted)), 202)

    async def _stream(self, websocket: WebSocket) -> None:
        try:
            box = self._box(websocket)
        except Missing as exc:
            await websocket.send_denial_response(_json(mentis_v1.Refusal(str(exc)), 404))
            return
        await websocket.accept()
        stream = box.listen()
        tasks = [
            asyncio.ensure_future(each)
            for each in (stream.send(websocket), stream.watch(websocket), _until_gone(websocket))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the runtime ends
        finally:
            box.forget(stream)
            for task in tasks:
                task.cancel()
            # Whatever they raise, the client is gone.
            await asyncio.gather(*tasks, return_exceptions=True)


async def _until_gone(websocket: WebSocket) -> None:
    """Hear out a client, which has nothing to say here."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def nowhere(request: Request, exc: Exception) -> Response:
    """No such path, or no such method there."""
    assert isinstance(exc, HTTPException)
    wanted = f"{request.method} {request.url.path}"
    answer = _json(mentis_v1.Refusal(f"{wanted}: {exc.detail}"), exc.status_code)
    answer.headers.update(exc.headers or {})
    return answer


def _answering(call: Any) -> Any:
    """The route of a method, what it raises as the error that v1 has for it."""

    async def route(request: Request) -> Response:
        try:
            answer: Response = await call(request)
        except _Wrong as exc:
            return _json(exc.refusal, exc.status)
        except Missing as exc:
            return _json(mentis_v1.Refusal(exc.args[0]), 404)
        except Conflict as exc:
            return _json(mentis_v1.Refusal(str(exc)), 409)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        return answer

    return route
