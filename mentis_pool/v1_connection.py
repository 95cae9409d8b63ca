"""An original runtime, as the engine sees every runtime: a slot for each sandbox, a stream for each.

Threads: the engine's dispatcher drains all streams; keepers make the REST calls.
What any of them hears goes to its slot, under the lock; the slot's orders are
carried out outside it. What is for the engine waits for its next `drain`, which
a byte on a socketpair wakes.
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from mentis_pool import mentis_v1
from mentis_pool.client import Client, Gone, Unanswered
from mentis_pool.errors import MentisPoolError, RuntimeRejected, RuntimeUnavailable
from mentis_pool.events import log
from mentis_pool.keepers import Keepers
from mentis_pool.pool_stream import Close, Closed, Command, Event, Open, Refused, Run
from mentis_pool.slot import Delete, Make, Named, Order, Post, Refusal, Skip, Slot, Tell
from mentis_pool.stream import ObservationStream, StreamLost

MOST_KEEPERS = 64


class V1Connection:
    """An original runtime. What it has of ours is in a space of our own.

    Args:
        client: REST of the runtime; closed with the connection.

    Raises:
        RuntimeUnavailable, RuntimeRejected: no space can be had there.
    """

    lost_tasks: Literal["died", "unknown"] = "unknown"

    def __init__(self, client: Client) -> None:
        self._client = client
        name = f"mentis_pool-{socket.gethostname()}-{secrets.token_hex(6)}"
        made = client.create_space(name, "sandboxes of a SandboxExecutor")
        self._space = str(made.get("space_id") or made.get("ID"))
        self._lock = threading.Lock()
        self._slots: dict[int, Slot] = {}
        self._streams: dict[str, tuple[ObservationStream, Slot]] = {}
        self._doomed: deque[str] = deque()
        """Sandboxes to be deleted, once the dispatcher has closed their streams."""
        self._events: deque[Event | Named] = deque()
        self._lost: str | None = None
        self._closed = False
        self._fault: BaseException | None = None
        self._keepers = Keepers(MOST_KEEPERS, self._break)
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakee = socket.socketpair()
        self._waker.setblocking(False)
        self._wakee.setblocking(False)
        self._selector.register(self._wakee, selectors.EVENT_READ)

    # ── for the engine ──────────────────────────────────────────────────────

    def fileno(self) -> int:
        """A selector over all streams, which is readable when one of them is."""
        return self._selector.fileno()

    def wait(self) -> float | None:
        """Seconds until the next deadline of a slot."""
        if self._lost is not None or self._fault is not None:
            return 0.0
        with self._lock:
            deadlines = [slot.deadline for slot in self._slots.values()]
        known = [deadline for deadline in deadlines if deadline is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None

    def names(self, action: int, sandbox: int) -> tuple[str | None, str | None]:
        """They are known when the cell is accepted."""
        return None, None

    def send(self, commands: list[Command]) -> None:
        """Have these carried out."""
        now = time.monotonic()
        for command in commands:
            if isinstance(command, Open):
                slot = self._slots[command.sandbox] = Slot(command.sandbox, command.state, now)
                self._decide(slot, slot.open, now)
            elif isinstance(command, Run):
                slot = self._slots[command.sandbox]
                self._decide(slot, slot.run, command, secrets.token_hex(8), now)
            elif isinstance(command, Close):
                slot = self._slots[command.sandbox]
                self._decide(slot, slot.close)

    def drain(self) -> list[Event | Named]:
        """Hear all streams, and act on deadlines; what the engine is to know.

        Raises:
            StreamLost: the runtime cannot be reached any more.
        """
        for key, _ in self._selector.select(0):
            if key.fileobj is self._wakee:
                with contextlib.suppress(BlockingIOError):
                    self._wakee.recv(4096)
            else:
                self._hear(key.data)
        now = time.monotonic()
        with self._lock:
            slots = list(self._slots.values())
            due = [slot for slot in slots if slot.deadline is not None and slot.deadline <= now]
        for slot in due:
            self._decide(slot, slot.passed, now)
        self._delete_doomed()
        events: list[Event | Named] = []
        while self._events:
            events.append(self._events.popleft())
        if not events:
            if self._fault is not None:
                raise self._fault
            if self._lost is not None:
                raise StreamLost(self._lost)
        return events

    def lose(self) -> str:
        """Close what is left of it."""
        self.close()
        return self._lost or "the runtime was lost"

    def close(self) -> None:
        """Delete all that it has of ours; waits for that, as long as its time limits allow."""
        with self._lock:
            self._closed = True
            slots = list(self._slots.values())
        for slot in slots:
            self._decide(slot, slot.close)
        # What is still being made finds the slot closed.
        self._keepers.close()
        for stream, _ in self._streams.values():
            self._selector.unregister(stream)
            stream.close()
        self._streams.clear()
        try:
            self._client.delete_space(self._space)
        except MentisPoolError as exc:
            log("warning", "space_left", url=self._client.address.url, error=str(exc))
        self._client.close()
        self._selector.close()
        self._waker.close()
        self._wakee.close()
        log("info", "runtime_left", url=self._client.address.url)

    # ── deciding and acting ─────────────────────────────────────────────────

    def _decide(self, slot: Slot, decision: Callable[..., list[Order]], *args: object) -> None:
        with self._lock:
            orders = decision(*args)
            # Under the lock, so that what is decided later is told later.
            events = [order.event for order in orders if isinstance(order, Tell)]
            self._events += events
            if any(isinstance(event, (Closed, Refused)) for event in events):
                self._slots.pop(slot.number, None)
        if events:
            self._wake()
        for order in orders:
            self._carry_out(slot, order)

    def _carry_out(self, slot: Slot, order: Order) -> None:
        if isinstance(order, Make):
            self._keep(slot, self._make)
        elif isinstance(order, Post):
            self._keep(slot, lambda slot: self._post(slot, order))
        elif isinstance(order, Delete):
            self._doomed.append(order.sandbox_id)
            self._wake()
        elif isinstance(order, Skip):
            log("warning", "observation_skipped", sandbox_id=order.sandbox_id, reason=order.reason)

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # full, so it will wake; or closed, and nobody is to hear of it

    def _keep(self, slot: Slot, call: Callable[[Slot], None]) -> None:
        try:
            self._keepers.do(lambda: call(slot))
        except RuntimeError as exc:  # no thread can be started
            self._lose(f"no thread can be started: {exc}")

    def _break(self, exc: BaseException) -> None:
        self._fault = exc
        self._wake()

    def _lose(self, reason: str) -> None:
        """Nothing can be had of the runtime any more."""
        with self._lock:
            slots = list(self._slots.values())
        now = time.monotonic()
        for slot in slots:
            self._decide(slot, slot.lose, reason, now)
        self._lost = reason
        self._wake()

    # ── keepers ─────────────────────────────────────────────────────────────

    def _make(self, slot: Slot) -> None:
        """Make a sandbox, and connect its stream before anything is posted to it."""
        if self._closed:
            return
        sandbox_id = None
        try:
            sandbox_id = self._client.create_sandbox(self._space)
            stream = self._client.stream(sandbox_id)
        except MentisPoolError as exc:
            if sandbox_id is not None:
                self._delete(sandbox_id)
            self._not_made(slot, exc)
            return
        with self._lock:
            self._streams[sandbox_id] = stream, slot
        self._selector.register(stream, selectors.EVENT_READ, sandbox_id)
        log("debug", "sandbox_made", sandbox_id=sandbox_id)
        self._decide(slot, slot.made, sandbox_id, time.monotonic())
        # What waits in a TLS connection makes no socket readable.
        self._wake()

    def _not_made(self, slot: Slot, exc: MentisPoolError) -> None:
        rejected = isinstance(exc, RuntimeRejected)
        if not rejected and len(self._slots) == 1:
            self._lose(str(exc))
        else:
            self._decide(slot, slot.not_made, str(exc))

    def _post(self, slot: Slot, post: Post) -> None:
        body = mentis_v1.RunCell(post.code)
        refusal: Refusal
        try:
            action_id = self._client.run_cell(self._space, post.sandbox_id, body)
        except Unanswered as exc:
            refusal, reason = "unanswered", str(exc)
        except RuntimeUnavailable as exc:
            refusal, reason = "unsent", str(exc)
        except Gone as exc:
            refusal, reason = "gone", str(exc)
        except RuntimeRejected as exc:
            # A server's own error says nothing of how far it came.
            refusal = "unanswered" if exc.status is None or exc.status >= 500 else "rejected"
            reason = str(exc)
        else:
            now = time.monotonic()
            self._decide(slot, slot.accepted, post.number, action_id, now, time.time())
            return
        self._decide(slot, slot.refused, post.number, refusal, reason, time.monotonic())

    def _delete(self, sandbox_id: str) -> None:
        try:
            self._client.delete_sandbox(self._space, sandbox_id)
        except MentisPoolError as exc:
            # It goes with the space at the end.
            log("warning", "sandbox_left", sandbox_id=sandbox_id, error=str(exc))
        else:
            log("debug", "sandbox_deleted", sandbox_id=sandbox_id)

    # ── the dispatcher ──────────────────────────────────────────────────────

    def _hear(self, sandbox_id: str) -> None:
        if sandbox_id not in self._streams:
            return
        stream, slot = self._streams[sandbox_id]
        now = time.monotonic()
        try:
            observations, wrong = stream.drain()
        except StreamLost as exc:
            self._close_stream(sandbox_id)
            self._decide(slot, slot.cut, sandbox_id, str(exc), now)
            return
        for error in wrong:
            log("warning", "observation_skipped", sandbox_id=sandbox_id, reason=str(error))
        for observation in observations:
            self._decide(slot, slot.heard, sandbox_id, observation, now)

    def _close_stream(self, sandbox_id: str) -> None:
        stream, _ = self._streams.pop(sandbox_id)
        self._selector.unregister(stream)
        stream.close()

    def _delete_doomed(self) -> None:
        """Only here are streams closed: no other thread is inside of one."""
        while self._doomed:
            sandbox_id = self._doomed.popleft()
            if sandbox_id in self._streams:
                self._close_stream(sandbox_id)
            if not self._closed:
                try:
                    self._keepers.do(lambda sandbox_id=sandbox_id: self._delete(sandbox_id))  # type: ignore[misc]
                except RuntimeError:
                    pass  # no thread: it goes with the space at the end
