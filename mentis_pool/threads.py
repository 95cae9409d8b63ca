"""Threads for calls that block: each call in one of them, as soon as one is free.

Not concurrent.futures' pool: that takes nothing more once the interpreter ends,
when the last tasks still have sandboxes to be deleted and output to be handed on;
and since CPython 3.12 no thread can be started then. So one is there from the
beginning, and stays; another ends when it has had nothing to do for a while.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

IDLE = 5.0
"""Seconds that a thread waits for the next call."""


class Threads:
    """At most ``most`` threads (None: as many as there are calls).

    Args:
        name: of each.
        broken: called with what a call raised; calls are to see to their own errors.
    """

    def __init__(
        self, name: str, broken: Callable[[BaseException], None], most: int | None = None
    ) -> None:
        self._name = name
        self._broken = broken
        self._most = most
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._free = 0
        """Threads that wait for a call, less the calls that wait for a thread."""
        self._busy = 0
        """Calls that were given and have not returned."""

    def __contains__(self, thread: threading.Thread) -> bool:
        return thread in self._threads

    def start(self) -> None:
        """See to it that there is a thread.

        Raises:
            RuntimeError: none can be started.
        """
        with self._changed:
            if not self._threads:
                self._start()

    def do(self, call: Callable[[], None]) -> None:
        """Have this called, after `start`."""
        with self._changed:
            self._busy += 1
            self._free -= 1
            if self._free < 0 and (self._most is None or len(self._threads) < self._most):
                try:
                    self._start()
                except RuntimeError:
                    pass  # no more threads can be had: one that there is does it in its turn
        self._calls.put(call)

    def drain(self) -> None:
        """Wait until all calls have returned; not for calls from one of the threads."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0)

    def close(self) -> None:
        """Wait until all calls have returned, and end the threads; nothing more may come until `start`."""
        with self._changed:
            threads = list(self._threads)
        for _ in threads:
            self._calls.put(None)
        for thread in threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()
        with self._changed:
            self._threads.clear()
            self._free = 0

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name)
        # Before it is started: of one that an interrupt left alone there would be no end.
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            raise
        self._free += 1

    def _run(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=IDLE)
            except queue.Empty:
                with self._changed:
                    # A call that is on its way counts on this thread.
                    if self._free > 0 and len(self._threads) > 1:
                        self._free -= 1
                        self._threads.discard(threading.current_thread())
                        return
                continue
            if call is None:
                return
            try:
                call()
            except BaseException as exc:  # noqa: BLE001 - the engine fails its futures with it
                self._broken(exc)
            finally:
                del call
            with self._changed:
                self._free += 1
                self._busy -= 1
                self._changed.notify_all()
