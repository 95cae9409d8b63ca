"""Scripted runtimes on real sockets.

`FakeRuntime` says just what a test tells it to, byte by byte, as a pool stream.
`OriginalRuntime` is an original Mentis runtime, with real IPython shells, which
does on demand all that such a runtime may do.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import http.server
import itertools
import json
import os
import queue
import random
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mentis_pool.mentis_v1 import STILL_RUNS
from mentis_pool.pool_stream import SUBPROTOCOL, Command, Event, Sender, Welcome, commands


class FakeRuntime:
    """The other end of a pool stream. ``client`` is the socket to be given to a `PoolStream`."""

    def __init__(
        self, subprotocol: str | None = SUBPROTOCOL, status: str = "101 Switching Protocols"
    ):
        self.client, self.sock = socket.socketpair()
        self._subprotocol = subprotocol
        self._status = status
        self._sender = Sender()
        self._commands = commands()

    def serve(self, *events: Event) -> threading.Thread:
        """Answer the handshake, then say these, from a thread."""
        thread = threading.Thread(target=self._serve, args=(events,), daemon=True)
        thread.start()
        return thread

    def _serve(self, events: tuple[Event, ...]) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += self.sock.recv(4096)
        headers = dict(line.split(": ", 1) for line in request.decode().split("\r\n")[1:] if line)
        key = headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        lines = [f"HTTP/1.1 {self._status}", "Upgrade: websocket", "Connection: Upgrade"]
        lines.append(f"Sec-WebSocket-Accept: {accept}")
        if self._subprotocol is not None:
            lines.append(f"Sec-WebSocket-Protocol: {self._subprotocol}")
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        if events:
            try:
                self.sock.sendall(self.frame(*events))
            except OSError:
                pass  # the client did not like the handshake

    def welcome(self) -> Welcome:
        return Welcome("fake", "0", "3")

    def frame(self, *events: Event) -> bytes:
        """These events as one WebSocket frame."""
        return websocket_frame(2, self._sender.frame(list(events), 0))

    def hear(self) -> list[Command]:
        """The commands of the next message that the client sent, in however many frames."""
        first, body = self._read_frame()
        assert first & 0x7F == 2
        while not first & 0x80:
            first, more = self._read_frame()
            assert first & 0x7F == 0
            body += more
        return self._commands.messages(body)

    def _read_frame(self) -> tuple[int, bytes]:
        first, second = self._read(2)
        assert second & 0x80
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(self._read(2), "big")
        elif size == 127:
            size = int.from_bytes(self._read(8), "big")
        mask = self._read(4)
        return first, bytes(byte ^ mask[i % 4] for i, byte in enumerate(self._read(size)))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more
            data += more
        return data


def websocket_frame(opcode: int, body: bytes) -> bytes:
    """A frame as a server sends it: whole, unmasked."""
    if len(body) < 126:
        size = bytes([len(body)])
    elif len(body) < 1 << 16:
        size = b"\x7e" + len(body).to_bytes(2, "big")
    else:
        size = b"\x7f" + len(body).to_bytes(8, "big")
    return bytes([0x80 | opcode]) + size + body


# ── what stands between a client and a runtime ──────────────────────────────


class Relay:
    """A port that passes connections on to another one of this machine, as a context manager.

    Args:
        url: of the runtime there.
        certificate: a file with a key and a certificate, to be reached by TLS.

    Attributes:
        asked: the first line of each connection, where it is a proxy that was asked.
    """

    def __init__(self, url: str, certificate: str | None = None) -> None:
        self._to = urllib.parse.urlsplit(url).port
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.secure_url = f"https://localhost:{port}"
        self.asked: list[str] = []

    def __enter__(self) -> Relay:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(connection,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(client)
            if self._tls is not None:
                client = stack.enter_context(self._tls.wrap_socket(client, server_side=True))
            runtime = stack.enter_context(socket.create_connection(("127.0.0.1", self._to)))
            self._pass_on(client, runtime)

    def _pass_on(self, client: socket.socket, runtime: socket.socket) -> None:
        """As a proxy of HTTP does, and what asks for no proxy as it is."""
        first = client.recv(65536)
        line, _, rest = first.partition(b"\r\n")
        method, target, version = line.split(b" ", 2)
        if method == b"CONNECT":
            self.asked.append(line.decode())
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        elif target.startswith(b"http://"):
            self.asked.append(line.decode())
            path = b"/" + target.split(b"/", 3)[3]
            runtime.sendall(
                b" ".join([method, path, version]) + b"\r\nConnection: close\r\n" + rest
            )
        else:
            runtime.sendall(first)
        while True:
            pending = [client] if self._tls and client.pending() else []  # type: ignore[attr-defined]
            ready = pending or select.select([client, runtime], [], [])[0]
            for one in ready:
                data = one.recv(65536)
                if not data:
                    return
                (runtime if one is client else client).sendall(data)


def certificate(directory: Path) -> str:
    """A file with a key and a certificate of its own for localhost."""
    path = str(directory / "localhost.pem")
    command = (
        "openssl req -x509 -newkey rsa:2048 -noenc -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 "
        f"-addext keyUsage=digitalSignature,keyCertSign -keyout {path} -out {path}.crt"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    with open(path, "ab") as file:
        file.write(Path(f"{path}.crt").read_bytes())
    return path


# ── an original runtime ─────────────────────────────────────────────────────


@dataclasses.dataclass
class Script:
    """What the runtime does besides; may be changed while it runs."""

    limit: float = 10.0
    """Seconds after which it waits for a cell no longer."""
    early: float = 0.0
    """Seconds at most for which a 202 is held back, until all was said of its action."""
    drop: Callable[[dict[str, Any]], bool] | None = None
    """Which observations get lost."""
    noise: bool = False
    """Whether it says what means nothing, between any two observations."""
    joined: bool = False
    """Whether it puts what has queued up into one frame, a line each."""
    create_delay: float = 0.0
    """Seconds that a new sandbox takes."""
    answer: Callable[[str, str, int], int | str | None] | None = None
    """Of method, path and number of a request: a status to be answered, "reset" (the
    connection, before anything is done), "late reset" (when all is done), or None."""


_ENVIRONMENT = dict(os.environ)
"""As it is before any test; what outlives a test has nothing of it."""


class Kernels:
    """The process that forks IPython shells, one for each connection to ``path``."""

    def __init__(self, colors: str = "Linux") -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="mp-o-", dir="/tmp")
        self.path = str(Path(self._directory.name, "kernels"))
        program = str(Path(__file__).with_name("kernels.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", program, self.path, colors],
            stdin=subprocess.PIPE,  # its lifeline
            stdout=subprocess.PIPE,
            env={**_ENVIRONMENT, "IPYTHONDIR": self._directory.name},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def end(self) -> None:
        self._process.communicate()
        self._directory.cleanup()


@functools.cache
def kernels() -> Kernels:
    """One for all runtimes of this process: it takes long to start, and no shell changes it."""
    shared = Kernels()
    atexit.register(shared.end)
    return shared


class _Sandbox:
    """A kernel, its queue of cells, and its streams."""

    def __init__(self, runtime: OriginalRuntime, space: str) -> None:
        self.id = str(uuid.uuid4())
        self.space = space
        self.runtime = runtime
        self.streams: set[queue.Queue[dict[str, Any] | None]] = set()
        self.deleted = False
        self._cells: queue.Queue[tuple[str, str] | None] = queue.Queue()
        self._kernel = socket.socket(socket.AF_UNIX)
        self._kernel.connect(runtime.kernels)
        self._file = self._kernel.makefile("rw", encoding="utf-8")
        self._pid = json.loads(self._file.readline())["pid"]
        self._lock = threading.Lock()
        self._over: dict[str, threading.Event] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def described(self) -> dict[str, Any]:
        return {
            "sandbox_id": self.id,
            "container_id": "c" + self.id,
            "agent_url": "http://172.17.0.2:8000",
            "is_running": True,
            "space_id": self.space,
        }

    def submit(self, action: str, code: str) -> threading.Event:
        over = self._over[action] = threading.Event()
        timer = threading.Timer(self.runtime.script.limit, self._give_up, (action,))
        timer.daemon = True
        timer.start()
        self._cells.put((action, code))
        return over

    def _give_up(self, action: str) -> None:
        if not self._over[action].is_set() and not self.deleted:
            error = (
                f'Post "http://172.17.0.2:8000/tools:run_ipython_cell": {STILL_RUNS} '
                "(Client.Timeout exceeded while awaiting headers)"
            )
            self._fail(action, error)

    def _fail(self, action: str, error: str) -> None:
        self.say(action, "error", data={"error": error})
        self.say(action, "end", data={"exit_code": -1, "error": error})

    def _run(self) -> None:
        while (cell := self._cells.get()) is not None:
            action, code = cell
            self.say(action, "start", data={})
            try:
                print(json.dumps({"code": code}), file=self._file, flush=True)
                line = self._file.readline()
            except (OSError, ValueError):
                line = ""
            if not line:
                if not self.deleted:
                    self._fail(action, 'Post "http://172.17.0.2:8000/": EOF')
                self._over[action].set()
                continue
            done = json.loads(line)
            for stream in ("stdout", "stderr"):
                if done[stream]:
                    self.say(action, "stream", stream=stream, line=done[stream])
            if done["error"] is None:
                self.say(action, "result", exit_code=0, status="ok")
            else:
                self.say(
                    action,
                    "result",
                    exit_code=1,
                    status="error",
                    error_name="UnknownError",
                    error_value=done["error"],
                    traceback=["Traceback not available"],
                )
            self.say(action, "end", data={"exit_code": 0 if done["error"] is None else 1})
            self._over[action].set()

    def command(self, action: str, command: str) -> None:
        threading.Thread(target=self._command, args=(action, command), daemon=True).start()

    def _command(self, action: str, command: str) -> None:
        self.say(action, "start", data={})
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        for stream in ("stdout", "stderr"):
            for line in getattr(done, stream).split("\n"):
                if line:
                    self.say(action, "stream", stream=stream, line=line)
        error = done.stderr.strip() if done.returncode else None
        self.say(action, "result", exit_code=done.returncode, error=error)
        self.say(action, "end", data={"exit_code": done.returncode})

    def say(self, action: str, kind: str, **fields: Any) -> None:
        """An observation, to whoever is connected now."""
        now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
        zone = random.choice(["Z", "+00:00"])
        said = {
            "observation_type": kind,
            "action_id": action,
            "timestamp": f"{now.isoformat()}{random.randrange(1000):03}{zone}",
            **fields,
        }
        script = self.runtime.script
        if script.drop is not None and script.drop(said):
            return
        noise: list[Any] = []
        if script.noise:
            noise = [
                '{"observation_type":',
                {**said, "observation_type": "mood"},
                {**said, "action_id": str(uuid.uuid4())},
                [said],
                {"observation_type": "stream", "action_id": action, "stream": "stdout"},
                {**said, "observation_type": "stream", "stream": "stdlog", "line": "?"},
            ]
        self.push(said, *noise)

    def push(self, *frames: Any) -> None:
        with self._lock:
            for stream in list(self.streams):
                for frame in frames:
                    if stream.qsize() < 256:
                        stream.put(frame)

    def delete(self) -> None:
        self.deleted = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        self._cells.put(None)
        for stream in list(self.streams):
            stream.put(None)
        self._thread.join(5)
        with contextlib.suppress(OSError):
            # What it had to write has nobody to read it any more.
            self._file.close()
        self._kernel.close()


class OriginalRuntime:
    """An original Mentis runtime at `url`, as a context manager.

    Attributes:
        requests: method, path and body of each request, in their order.
        sandboxes, spaces: what there is, by id.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.requests: list[tuple[str, str, Any]] = []
        self.numbers = itertools.count(1)
        self.sandboxes: dict[str, _Sandbox] = {}
        self.spaces: dict[str, dict[str, Any]] = {"default": {"name": "default"}}
        self.connections: dict[str, list[socket.socket]] = {}

    def __enter__(self) -> OriginalRuntime:
        self.kernels = kernels().path
        handler = type("Handler", (_Handler,), {"runtime": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for sandbox in list(self.sandboxes.values()):
            sandbox.delete()

    def cut(self, sandbox_id: str) -> None:
        """Reset the connections of a sandbox's streams."""
        for connection in self.connections.pop(sandbox_id, []):
            reset(connection)

    def posts(self, tool: str = "run_ipython_cell") -> list[Any]:
        """The bodies of all cells that were posted."""
        return [body for _, path, body in self.requests if path.endswith(f"tools:{tool}")]


class _Server(http.server.ThreadingHTTPServer):
    """One that takes its connections along when it is closed, as the end of a process does."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._open):
            reset(connection)


def reset(connection: socket.socket) -> None:
    """End a connection without a word (RST)."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection of a client."""

    runtime: OriginalRuntime
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(raw) if raw else None
            wrong = None
        except ValueError as exc:
            body, wrong = None, str(exc)
        runtime = self.runtime
        runtime.requests.append((method, self.path, body))
        number = next(runtime.numbers)
        scripted = runtime.script.answer and runtime.script.answer(method, self.path, number)
        if scripted == "reset":
            self._reset()
            return
        if isinstance(scripted, int):
            self._answer(scripted, {"message": "scripted"})
            return
        if self.path.endswith("/stream"):
            self._stream(self.path.split("/")[3])
            return
        if wrong is not None:
            self._answer(400, {"message": "Invalid request body", "detail": wrong})
            return
        status, answer = self._route(method, self.path.split("/")[1:], body)
        if scripted == "late reset":
            self._reset()
        else:
            self._answer(status, answer)

    def _reset(self) -> None:
        self.close_connection = True
        reset(self.connection)

    def _answer(self, status: int, body: Any) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _route(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        runtime = self.runtime
        missing = {"message": "not found"}
        if parts == ["v1", "health"]:
            return 200, {"status": "ok"}
        if parts[:2] != ["v1", "spaces"]:
            # `DELETE /v1/sandboxes/{id}` is not there either.
            return 404, None
        if len(parts) == 2:
            if method == "GET":
                return 200, [self._space(space) for space in runtime.spaces]
            if not isinstance(body, dict) or not body.get("name"):
                return 400, {"message": "Missing 'name'"}
            if any(space["name"] == body["name"] for space in runtime.spaces.values()):
                return 409, {"message": "space already exists"}
            space = str(uuid.uuid4())
            runtime.spaces[space] = body
            shown = {name: body.get(name) for name in ("name", "description", "metadata")}
            return 201, {"space_id": space, **shown}
        if parts[2] not in runtime.spaces:
            return 404, {"message": "space not found"}
        space = parts[2]
        if len(parts) == 3:
            return self._on_space(method, space, body)
        if len(parts) == 4:
            if not isinstance(body, dict):
                return 400, {"message": "Invalid request body"}
            time.sleep(runtime.script.create_delay)
            sandbox = _Sandbox(runtime, space)
            runtime.sandboxes[sandbox.id] = sandbox
            return 201, sandbox.described()
        name, _, tool = parts[-1].partition(":")
        sandbox = runtime.sandboxes.get(parts[4])  # type: ignore[assignment]
        if sandbox is None or sandbox.space != space:
            return 404, missing
        if name == "tools":
            return self._act(sandbox, tool, body)
        if method == "DELETE":
            del runtime.sandboxes[sandbox.id]
            sandbox.delete()
            return 204, None
        return 200, sandbox.described()

    def _on_space(self, method: str, space: str, body: Any) -> tuple[int, Any]:
        runtime = self.runtime
        if method == "GET":
            return 200, self._space(space)
        if method == "PUT":
            runtime.spaces[space].update(body)
            return 204, None
        del runtime.spaces[space]
        for sandbox in [each for each in runtime.sandboxes.values() if each.space == space]:
            del runtime.sandboxes[sandbox.id]
            sandbox.delete()
        return 204, None

    def _space(self, space: str) -> dict[str, Any]:
        known = self.runtime.spaces[space]
        time = "2026-01-02T03:04:05.123456789Z"
        sandboxes = [each for each in self.runtime.sandboxes.values() if each.space == space]
        return {
            "ID": space,
            "Name": known["name"],
            "Description": known.get("description") or "",
            "CreatedAt": time,
            "UpdatedAt": time,
            "Metadata": known.get("metadata"),
            "Sandboxes": {each.id: each.described() for each in sandboxes},
        }

    def _act(self, sandbox: _Sandbox, tool: str, body: Any) -> tuple[int, Any]:
        field = "code" if tool == "run_ipython_cell" else "command"
        if not isinstance(body, dict) or field not in body:
            return 400, {"message": f"Missing '{field}' in request body"}
        action = body.get("action_id") or str(uuid.uuid4())
        if tool == "run_ipython_cell":
            over = sandbox.submit(action, body["code"])
            over.wait(self.runtime.script.early)
        else:
            sandbox.command(action, body["command"])
        return 202, {"action_id": action}

    def _stream(self, sandbox_id: str) -> None:
        self.close_connection = True
        sandbox = self.runtime.sandboxes.get(sandbox_id)
        if sandbox is None:
            self._answer(404, {"message": "sandbox not found"})
            return
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        said: queue.Queue[Any] = queue.Queue()
        sandbox.streams.add(said)
        self.runtime.connections.setdefault(sandbox_id, []).append(self.connection)
        self.send_response(101, "Switching Protocols")
        for name, value in (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        try:
            while (frame := said.get()) is not None:
                frames = [frame]
                if self.runtime.script.joined:
                    time.sleep(0.01)
                    with contextlib.suppress(queue.Empty):
                        while (more := said.get_nowait()) is not None:
                            frames.append(more)
                lines = [each if isinstance(each, str) else json.dumps(each) for each in frames]
                self.connection.sendall(websocket_frame(1, "\n".join(lines).encode()))
            self.connection.sendall(websocket_frame(8, struct.pack("!H", 1000)))
        finally:
            sandbox.streams.discard(said)
