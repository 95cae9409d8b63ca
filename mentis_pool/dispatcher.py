"""The one reader thread: a readable stream, or a byte that wakes it.

It blocks in ``select()`` alone, which `wake` interrupts, and what it calls there
does not wait; so `stop` ends it soon, from any thread.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from typing import Protocol


class Readable(Protocol):
    """Has a descriptor that a selector can watch."""

    def fileno(self) -> int: ...


class Dispatcher(threading.Thread):
    """Calls ``readable`` when the watched stream is, ``woken`` after `wake`, ``ended`` at last.

    Args:
        ended: called with what broke the thread, or None after `stop`.
    """

    def __init__(
        self,
        readable: Callable[[], None],
        woken: Callable[[], None],
        ended: Callable[[BaseException | None], None],
    ) -> None:
        super().__init__(name="mentis-pool-dispatcher")
        self._readable = readable
        self._woken = woken
        self._ended = ended
        self._stopping = False
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
        """Watch this stream from now on. For calls from the thread itself."""
        self._selector.register(stream, selectors.EVENT_READ)

    def unwatch(self, stream: Readable) -> None:
        """Watch it no more; to be called before it is closed."""
        self._selector.unregister(stream)

    def run(self) -> None:
        """The thread."""
        broken: BaseException | None = None
        try:
            while not self._stopping:
                for key, _ in self._selector.select():
                    if key.fileobj is self._wakee:
                        self._wakee.recv(4096)
                        self._woken()
                    else:
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
