"""A few threads for calls that block: each call in one of them, as soon as one is free.

Not concurrent.futures' pool: that takes nothing more once the interpreter ends,
when the last tasks still have sandboxes to be deleted. A thread ends when it has
had nothing to do for a while, or after `close`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

IDLE = 5.0
"""Seconds that a thread waits for the next call."""


class Keepers:
    """At most ``most`` threads.

    Args:
        broken: called with what a call raised; calls are to see to their own errors.
    """

    def __init__(self, most: int, broken: Callable[[BaseException], None]) -> None:
        self._most = most
        self._broken = broken
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._free = 0
        """Threads that wait for a call, less the calls that wait for a thread."""

    def do(self, call: Callable[[], None]) -> None:
        """Have this called.

        Raises:
            RuntimeError: no thread can be started, and there is none.
        """
        with self._lock:
            self._free -= 1
            if self._free < 0 and len(self._threads) < self._most:
                thread = threading.Thread(target=self._run, name="mentis-pool-keeper")
                try:
                    thread.start()
                except RuntimeError:
                    if not self._threads:
                        self._free += 1
                        raise
                else:
                    self._threads.add(thread)
                    self._free += 1
        self._calls.put(call)

    def close(self) -> None:
        """Wait until all calls are done; no more may come."""
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._calls.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=IDLE)
            except queue.Empty:
                with self._lock:
                    # A call that is on its way counts on this thread.
                    if self._free > 0:
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
            with self._lock:
                self._free += 1
