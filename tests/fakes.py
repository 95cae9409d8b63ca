"""A scripted runtime on a real socket: it says just what a test tells it to, byte by byte."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading

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
        """The commands of the next frame that the client sent."""
        first, second = self._read(2)
        assert first == 0x82
        assert second & 0x80
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(self._read(2), "big")
        elif size == 127:
            size = int.from_bytes(self._read(8), "big")
        mask = self._read(4)
        body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self._read(size)))
        return self._commands.messages(body)

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
