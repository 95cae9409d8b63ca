"""What stands between a client and a runtime, and is a bad connection on purpose.

Bytes pass as they came, but late, in pieces, and until the connection is cut.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import selectors
import socket
import struct
import threading
import time
import urllib.parse


@dataclasses.dataclass(frozen=True)
class Weather:
    """How bad it is.

    Args:
        cut_every: seconds between two cuts; None for none.
        stall: chance that what came is held back, for up to ``stall_seconds``.
        split: chance that it is passed on in two pieces, with a pause between them.
    """

    cut_every: float | None = 0.5
    stall: float = 0.02
    stall_seconds: float = 0.05
    split: float = 0.1


class _Half:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held: bytes = b""
        self.until = 0.0


class Chaos:
    """A port that passes connections on to a runtime, as a context manager.

    Args:
        url: of the runtime, on this machine.
        weather: how bad it is.
        seed: makes the same decisions again, as far as the bytes come the same.

    Attributes:
        url: to be reached by.
        cuts: how many connections were cut.
    """

    def __init__(self, url: str, weather: Weather = Weather(), seed: int = 0) -> None:
        self._to = urllib.parse.urlsplit(url).port
        self._weather = weather
        self._chance = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        self.silent = False
        """Whether nothing passes any more, though all stays connected."""
        self._selector = selectors.DefaultSelector()
        self._halves: list[_Half] = []
        self._over = threading.Event()

    def __enter__(self) -> Chaos:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()
        while self._halves:
            self._cut(self._halves[0], "close")
        self._selector.close()

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        every = self._weather.cut_every
        cut_at = None if every is None else time.monotonic() + every
        while not self._over.is_set():
            for key, _ in self._selector.select(0.005):
                if key.fileobj is self._listener:
                    self._connect()
                elif not self.silent and key.data in self._halves:
                    self._read(key.data)
            now = time.monotonic()
            for half in list(self._halves):
                if half.held and half.until <= now and not self.silent and half in self._halves:
                    held, half.held = half.held, b""
                    self._pass(half, held)
            if cut_at is not None and every is not None and now >= cut_at:
                cut_at = now + every
                if self._halves:
                    how = self._chance.choice(("close", "reset", "half"))
                    self._cut(self._chance.choice(self._halves), how)
                    self.cuts += 1

    def _connect(self) -> None:
        client, _ = self._listener.accept()
        try:
            runtime = socket.create_connection(("127.0.0.1", self._to), 5)
        except OSError:
            client.close()
            return
        for source, sink in ((client, runtime), (runtime, client)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            half = _Half(source, sink)
            self._halves.append(half)
            self._selector.register(source, selectors.EVENT_READ, half)

    def _read(self, half: _Half) -> None:
        try:
            data = half.source.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._cut(half, "close")
            return
        if half.held:
            half.held += data
        elif self._chance.random() < self._weather.stall:
            half.held = data
            half.until = time.monotonic() + self._chance.uniform(0, self._weather.stall_seconds)
        elif len(data) > 1 and self._chance.random() < self._weather.split:
            at = self._chance.randrange(1, len(data))
            self._pass(half, data[:at])
            half.held, half.until = data[at:], time.monotonic() + 0.002
        else:
            self._pass(half, data)

    def _pass(self, half: _Half, data: bytes) -> None:
        try:
            half.sink.sendall(data)
        except OSError:
            self._cut(half, "close")

    def _cut(self, half: _Half, how: str) -> None:
        """End a connection: in order, at once, or one direction after the other."""
        both = (half.source, half.sink)
        with contextlib.suppress(OSError):
            if how == "reset":
                for one in both:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "half":
                half.sink.shutdown(socket.SHUT_WR)
                time.sleep(0.01)
        for one in both:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(one)
            one.close()
        self._halves = [each for each in self._halves if each.source not in both]
