"""The one reader thread: a readable stream, or a byte that wakes it.

It blocks in ``select()`` alone, which `wake` and the stream's next deadline
interrupt, and what it calls there does not wait; so `stop` ends it soon, from any thread.

Who waits for an answer may read for it, for a moment (`lead`): so the answer need not wake
two threads. What else there is to be done waits for that moment; and if nothing came in
it, the thread reads as before.
"""

from __future__ import annotations

import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from mentis_pool.spinning import give_way

LEAD = 0.0005
"""Seconds that one who waits reads by itself, at most."""
AT_ONCE = (False,)
"""What `acquire` is mapped over that is not to wait, to have its answer kept in the same step: of an
interrupt between the two, nobody would release what was acquired."""


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
        self._turn = threading.Lock()
        """Of whoever does what is to be done: the thread, whenever it does not wait, or who leads."""
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakee = socket.socketpair()
        self._waker.setblocking(False)
        self._wakee.setblocking(False)
        self._selector.register(self._wakee, selectors.EVENT_READ)
        self._gate = select.epoll() if sys.platform == "linux" else None
        """Between the selector and the stream, to be shut while another thread reads that."""
        if self._gate is not None:
            self._selector.register(self._gate, selectors.EVENT_READ)

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

    def dismiss(self) -> None:
        """End the thread, if it was started, and call nothing any more."""
        self._ended = lambda _: None
        self.stop()

    def leave(self) -> None:
        """In a forked child: nothing here is for it, should the thread have forked and go on there."""
        self._stopping = True
        self._stream = None

    def watch(self, stream: Readable) -> None:
        """Watch this stream from now on, and no other. For calls from the thread itself."""
        if self._gate is not None:
            self._gate.register(stream, select.EPOLLIN)
        else:
            self._selector.register(stream, selectors.EVENT_READ)
        self._stream = stream

    def unwatch(self, stream: Readable) -> None:
        """Watch it no more; to be called before it is closed."""
        (self._gate or self._selector).unregister(stream)
        self._stream = None

    def run(self) -> None:
        """The thread."""
        broken: BaseException | None = None
        try:
            while not self._stopping:
                own, its = self._wait(), None if self._stream is None else self._stream.wait()
                patience = min((each for each in (own, its) if each is not None), default=None)
                ready = {key.fileobj for key, _ in self._selector.select(patience)}
                with self._turn:
                    self._act(ready, own is not None)
        except BaseException as exc:  # noqa: BLE001 - every live future is failed with it
            broken = exc
        # For good: nobody leads any more.
        self._turn.acquire()
        self._ended(broken)
        self.close()

    def _act(self, ready: set[Any], due: bool) -> None:
        if self._wakee in ready:
            self._wakee.recv(4096)
        if self._wakee in ready or due:
            self._woken()
        # Not when it was woken for the stream's end.
        if self._stream is not None and (not ready or self._stream in ready or self._gate in ready):
            self._readable()

    def lead(self, read: Callable[[], None], done: Callable[[], bool]) -> None:
        """Call ``read`` in the calling thread whenever the stream is readable, until ``done``.

        For `LEAD` seconds at most; not at all while the thread itself, or another one that
        waits, does something, nor where the platform has no epoll(7).
        """
        mine: list[bool] = []
        try:
            mine.extend(map(self._turn.acquire, AT_ONCE))
            if mine[0] and self._stream is not None and self._gate is not None:
                self._lead(self._stream, self._gate, read, done)
        finally:
            if True in mine:
                self._turn.release()

    def _lead(
        self,
        stream: Readable,
        gate: select.epoll,
        read: Callable[[], None],
        done: Callable[[], bool],
    ) -> None:
        try:
            # What comes is not to wake the thread.
            gate.modify(stream, 0)
            poll = select.poll()
            poll.register(stream, select.POLLIN)
            until = time.monotonic() + LEAD
            while not done() and time.monotonic() < until:
                if poll.poll(0):
                    read()
                else:
                    give_way()
            if stream.wait() == 0:
                # There is more to do than to read what comes.
                self.wake()
        except BaseException:
            self.wake()
            raise
        finally:
            gate.modify(stream, select.EPOLLIN)

    def close(self) -> None:
        """Give its descriptors back; for the thread itself, or where it could not be started."""
        self._selector.close()
        if self._gate is not None:
            self._gate.close()
        self._waker.close()
        self._wakee.close()
