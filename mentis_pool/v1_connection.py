"""An original runtime, as the engine sees every runtime: a slot for each sandbox, a stream for each.

Threads: the engine's dispatcher drains all streams; its keepers make the REST calls.
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
from typing import Any, Literal

from mentis_pool import lanes, mentis_v1
from mentis_pool.client import Client, Gone, Unanswered
from mentis_pool.errors import MentisPoolError, RuntimeRejected, RuntimeUnavailable
from mentis_pool.events import log
from mentis_pool.lanes import Lanes
from mentis_pool.observations import End as EndObserved
from mentis_pool.observations import Error
from mentis_pool.pool_stream import (
    Begin,
    Broken,
    Cancel,
    Close,
    Closed,
    Command,
    Event,
    Measure,
    Measured,
    Open,
    Refused,
    Run,
    Said,
    Signal,
    Standing,
)
from mentis_pool.slot import (
    Delete,
    LoseState,
    Make,
    Named,
    Order,
    Post,
    Refusal,
    Skip,
    Slot,
    Tell,
)
from mentis_pool.stream import ObservationStream, StreamLost
from mentis_pool.threads import Threads

_Ordered = tuple[Slot, Order]


class V1Connection:
    """An original runtime. What it has of ours is in a space of our own.

    Args:
        client: REST of the runtime; closed with the connection.
        threads: for its calls.

    Raises:
        RuntimeUnavailable, RuntimeRejected: no space can be had there.
    """

    lost_tasks: Literal["died", "unknown"] = "unknown"
    rejoins = False
    near = False

    def __init__(self, client: Client, threads: Threads) -> None:
        self._client = client
        self._threads = threads
        name = f"mentis_pool-{socket.gethostname()}-{secrets.token_hex(6)}"
        made = client.create_space(name, "sandboxes of a SandboxExecutor")
        self._space = str(made.get("space_id") or made.get("ID"))
        self._lock = threading.Lock()
        self._lanes: Lanes[Run] = Lanes(0)
        self._opened: dict[int, Open] = {}
        self._slots: dict[int, Slot] = {}
        self._streams: dict[str, tuple[ObservationStream, Slot]] = {}
        self._skipped = 0
        self._doomed: deque[str] = deque()
        """Sandboxes to be deleted, once the dispatcher has closed their streams."""
        self._events: deque[Event | Named] = deque()
        self._names: dict[int, tuple[str, str]] = {}
        """Of actions that began, until the engine has heard of their end."""
        self._ended: list[int] = []
        self._lost: str | None = None
        self._closed = False
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
        if self._lost is not None:
            return 0.0
        with self._lock:
            deadlines = [slot.deadline for slot in self._slots.values()]
        known = [deadline for deadline in deadlines if deadline is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None

    def rejoin(self, ending: threading.Event) -> None:
        """Each sandbox has a stream of its own, and sees to that itself."""
        raise RuntimeUnavailable("the runtime is lost")

    def standing(self) -> Standing:
        """An original runtime does not say."""
        return Standing("unknown")

    def names(self, action: int, sandbox: int) -> tuple[str, str]:
        """What the runtime calls them."""
        return self._names.get(action, ("", str(sandbox)))

    def send(self, commands: list[Command]) -> None:
        """Have these carried out."""
        for command in commands:
            with self._lock:
                orders = self._obey(command, time.monotonic())
            self._carry_out(orders)

    def _obey(self, command: Command, now: float) -> list[_Ordered]:
        if isinstance(command, Run):
            added = self._lanes.add(command.lane, command.action, command, command.number)
            return self._follow(added, now)
        if isinstance(command, Cancel):
            return self._follow(self._lanes.cancel(command.action), now)
        if isinstance(command, Close):
            return self._follow(self._lanes.close(command.lane, command.reason), now)
        if isinstance(command, Signal):
            slot = self._slots.get(self._lanes.sandbox_of(command.action) or 0)
            if slot is not None:
                orders = slot.signal(command.action, command.signal, now)
                return self._hear_orders(slot, orders, now)
        elif isinstance(command, Open):
            self._opened[command.lane] = command
            self._lanes.open(command.lane, command.state == "session")
        elif isinstance(command, Measure):
            self._events.append(Measured(command.number, None))
            self._wake()
        elif isinstance(command, Begin):
            self._lanes = Lanes(command.most)
        return []

    def drain(self) -> list[Event]:
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
        events = self._take_events()
        if not events and self._lost is not None:
            raise StreamLost(self._lost)
        return events

    def _take_events(self) -> list[Event]:
        for action in self._ended:
            self._names.pop(action, None)
        self._ended.clear()
        events: list[Event] = []
        while self._events:
            event = self._events.popleft()
            if isinstance(event, Named):
                self._names[event.action] = event.action_id, event.sandbox_id
                continue
            if isinstance(event, Said) and isinstance(event.observation, EndObserved):
                self._ended.append(event.action)
            events.append(event)
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
            # What ends now makes room for nothing.
            self._lanes = Lanes(0)
        for slot in slots:
            self._decide(slot, slot.close, "the executor has ended", time.monotonic())
        # What is still being made finds the slot closed.
        self._threads.drain()
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

    def _decide(self, slot: Slot, decision: Callable[..., list[Order]], *args: Any) -> None:
        with self._lock:
            orders = self._hear_orders(slot, decision(*args), time.monotonic())
        self._carry_out(orders)

    def _hear_orders(self, slot: Slot, orders: list[Order], now: float) -> list[_Ordered]:
        """What a slot says goes to the engine and the lanes; what it asks for is left to do."""
        left: list[_Ordered] = []
        for order in orders:
            if isinstance(order, LoseState):
                left += self._follow(self._lanes.state_lost(slot.number, order.reason), now)
                continue
            if not isinstance(order, Tell):
                left.append((slot, order))
                continue
            event = order.event
            self._events.append(event)
            if isinstance(event, Said) and isinstance(event.observation, EndObserved):
                left += self._follow(self._lanes.ended(event.action), now)
            elif isinstance(event, Closed):
                self._slots.pop(event.sandbox, None)
                left += self._follow(self._lanes.lost(event.sandbox, event.reason), now)
            elif isinstance(event, Refused):
                self._slots.pop(event.sandbox, None)
                left += self._follow(self._lanes.refused(event.sandbox, event.reason), now)
        return left

    def _follow(self, orders: list[lanes.Order], now: float) -> list[_Ordered]:
        """Have the slots do what the lanes ask for."""
        left: list[_Ordered] = []
        for order in orders:
            if isinstance(order, lanes.Refuse):
                for said in (Error(order.kind, order.reason), EndObserved(0.0)):
                    self._events.append(Said(order.action, said))
            elif isinstance(order, lanes.Fail):
                self._events.append(Broken(f"no sandbox can be had: {order.reason}"))
            elif isinstance(order, lanes.Make):
                slot = Slot(order.sandbox, self._opened[order.lane], now)
                self._slots[order.sandbox] = slot
                left += self._hear_orders(slot, slot.open(now), now)
            else:
                left += self._ask(order, now)
        return left

    def _ask(self, order: lanes.Give[Run] | lanes.End | lanes.Drop, now: float) -> list[_Ordered]:
        slot = self._slots.get(order.sandbox)
        if slot is None:
            return []
        if isinstance(order, lanes.Give):
            orders = slot.run(order.run, secrets.token_hex(8), now)
        elif isinstance(order, lanes.End):
            orders = slot.cancel(order.action, now)
        else:
            del self._slots[order.sandbox]
            left = self._hear_orders(slot, slot.close(order.reason, now), now)
            # What it had not begun has no end of its own.
            return left + self._follow(self._lanes.lost(order.sandbox, order.reason), now)
        return self._hear_orders(slot, orders, now)

    def _carry_out(self, orders: list[_Ordered]) -> None:
        for slot, order in orders:
            if isinstance(order, Make):
                self._threads.do(lambda slot=slot: self._make(slot))  # type: ignore[misc]
            elif isinstance(order, Post):
                self._threads.do(lambda slot=slot, post=order: self._post(slot, post))  # type: ignore[misc]
            elif isinstance(order, Delete):
                self._doomed.append(order.sandbox_id)
            elif isinstance(order, Skip):
                self._skip(order.sandbox_id, order.reason)
        self._wake()

    def _skip(self, sandbox_id: str, reason: str) -> None:
        self._skipped += 1
        count = self._skipped
        log("warning", "observation_skipped", sandbox_id=sandbox_id, reason=reason, skipped=count)

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # full, so it will wake; or closed, and nobody is to hear of it

    def _lose(self, reason: str) -> None:
        """Nothing can be had of the runtime any more."""
        now = time.monotonic()
        with self._lock:
            slots = list(self._slots.values())
            self._follow(self._lanes.unreachable(reason), now)
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
        with self._lock:
            last = len(self._slots) <= 1
        if not isinstance(exc, RuntimeRejected) and last:
            self._lose(str(exc))
        else:
            full = isinstance(exc, RuntimeRejected) and exc.passing
            self._decide(slot, slot.not_made, str(exc), full)

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
        heard = False
        # The end may come together with what was said before it.
        while not heard or stream.ended:
            heard = True
            try:
                observations, wrong = stream.drain()
            except StreamLost as exc:
                self._close_stream(sandbox_id)
                self._decide(slot, slot.cut, sandbox_id, str(exc), now)
                return
            for error in wrong:
                self._skip(sandbox_id, str(error))
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
                self._threads.do(lambda sandbox_id=sandbox_id: self._delete(sandbox_id))  # type: ignore[misc]
