"""The one reader thread: a readable stream, or a byte that wakes it.

It blocks in ``select()`` alone, which `wake` and the stream's next deadline
interrupt, and what it calls there does not wait; so `stop` ends it soon, from any thread.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from typing import Protocol


class Readable(Protocol):
    """Has a descriptor that a selector can watch, and a time when it is to be read anyway."""

    def fileno(self) -> int: ...

    def wait(self) -> float | None:
        """Seconds until then, or None."""


class Dispatcher(threading.Thread):
    """Calls ``readable`` when the watched stream is (or its time has come), ``woken`` after `wake`, ``ended`` at last.

    Args:
        wait: says after how many seconds ``woken`` is to be called anyway (None: not).
        ended: called with what broke the thread, or None after `stop`.
    """

    def __init__(
        self,
        readable: Callable[[], None],
        woken: Callable[[], None],
        wait: Callable[[], float | None],
        ended: Callable[[BaseException | None], None],
    ) -> None:
        super().__init__(name="mentis-pool-dispatcher")
        self._readable = readable
        self._woken = woken
        self._wait = wait
        self._ended = ended
        self._stopping = False
        self._stream: Readable | None = None
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakee = socket.socketpair()
        self._waker.setblocking(False)
        self._wakee.setblocking(False)
        self._selector.register(self._wakee, selectors.EVENT_READ)

    def wake(self) -> None:
        """Have ``woken`` called soon. Takes no lock, so a finalizer may call it."""
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # full, so it will wake; or closed, so it has ended

    def stop(self) -> None:
        """End the thread after what it does now."""
        self._stopping = True
        self.wake()

    def watch(self, stream: Readable) -> None:
        """Watch this stream from now on, and no other. For calls from the thread itself."""
        self._selector.register(stream, selectors.EVENT_READ)
        self._stream = stream

    def unwatch(self, stream: Readable) -> None:
        """Watch it no more; to be called before it is closed."""
        self._selector.unregister(stream)
        self._stream = None

    def run(self) -> None:
        """The thread."""
        broken: BaseException | None = None
        try:
            while not self._stopping:
                own, its = self._wait(), None if self._stream is None else self._stream.wait()
                patience = min((each for each in (own, its) if each is not None), default=None)
                ready = {key.fileobj for key, _ in self._selector.select(patience)}
                if self._wakee in ready:
                    self._wakee.recv(4096)
                if self._wakee in ready or own is not None:
                    self._woken()
                # Not when it was woken for the stream's end.
                if self._stream is not None and (not ready or self._stream in ready):
                    self._readable()
        except BaseException as exc:  # noqa: BLE001 - every live future is failed with it
            broken = exc
        self._ended(broken)
        self.close()

    def close(self) -> None:
        """Give its descriptors back; for the thread itself, or where it could not be started."""
        self._selector.close()
        self._waker.close()
        self._wakee.close()
