"""The Mentis client's own interface: MentisSandbox, SpaceManager, sandbox_session, ConcurrentTask.

For code that was written for that client. A sandbox keeps its state from cell to
cell; its observations arrive on a queue, from a thread that reads its stream and
connects it again when it is cut. What an original runtime says meanwhile is lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import tenacity

from mentis_pool import mentis_v1
from mentis_pool.address import parse
from mentis_pool.client import Client
from mentis_pool.collect import Collected, router_of
from mentis_pool.errors import MentisPoolError, RuntimeRejected, in_words
from mentis_pool.events import log
from mentis_pool.mentis_v1 import DEFAULT_SPACE, DEFAULT_URL, BaseObservation
from mentis_pool.runtime.local import LocalRuntime
from mentis_pool.stream import ObservationStream, StreamLost

ObservationQueue = queue.Queue[BaseObservation]


def _client(base_url: str | None, token: str | None, ending: threading.Event) -> Client:
    """REST of a runtime: at this address, or where the environment says, or where one mostly is."""
    url = base_url or os.environ.get("MENTIS_RUNTIME_URL") or DEFAULT_URL
    return Client(
        parse(url), token or os.environ.get("MENTIS_RUNTIME_TOKEN") or None, ending=ending
    )


class MentisSandbox:
    """A sandbox at a runtime that speaks v1, and its stream.

    Args:
        sandbox_id, space_id: of a sandbox that is there already; `create` makes one.
        base_url: address of the runtime; None: MENTIS_RUNTIME_URL, or
            http://127.0.0.1:5266.
        token: that it asks for; None: MENTIS_RUNTIME_TOKEN.
        observation_queue: where observations go, while the stream is connected.
        on_observation_callback: called with each of them instead, in the thread
            that reads the stream.

    As a context manager it is deleted at the end. Each method raises
    `RuntimeUnavailable` where nothing answers, after all retries, and
    `RuntimeRejected` where the runtime refuses.
    """

    def __init__(
        self,
        sandbox_id: str,
        space_id: str = DEFAULT_SPACE,
        base_url: str | None = None,
        *,
        token: str | None = None,
        observation_queue: ObservationQueue | None = None,
        on_observation_callback: Callable[[BaseObservation], object] | None = None,
    ) -> None:
        if not sandbox_id or not space_id:
            raise ValueError("sandbox_id and space_id must not be empty")
        self.sandbox_id = sandbox_id
        self.space_id = space_id
        self._ending = threading.Event()
        self._client = _client(base_url, token, self._ending)
        self.base_url = self._client.address.url
        self._queue = observation_queue
        self._callback = on_observation_callback
        self._connecting = threading.Lock()
        """Held by the one that connects, not by one that disconnects: that may wait for
        a callback, which may do either."""
        self._listener: _Listener | None = None

    @classmethod
    def create(
        cls,
        space_id: str = DEFAULT_SPACE,
        settings: dict[str, Any] | None = None,
        base_url: str | None = None,
        **options: Any,
    ) -> MentisSandbox:
        """Make a sandbox in this space, and connect its stream.

        Args:
            settings: what v1 takes for a new sandbox: image, command, metadata.
            options: as for the class.

        It is not asked for again where it may have been made: a sandbox without an
        owner would stay at the runtime for good.
        """
        client = _client(base_url, options.get("token"), threading.Event())
        sandbox_id = client.create_sandbox_once(space_id, settings)
        try:
            made = cls(sandbox_id, space_id, client.address.url, **options)
            made.connect_stream()
        except BaseException:
            client.delete_sandbox(space_id, sandbox_id)
            raise
        finally:
            client.close()
        return made

    # ── actions ─────────────────────────────────────────────────────────────

    def run_ipython_cell(self, code: str, timeout: float | None = None) -> str:
        """Run a cell after those that run; the id of the action.

        Args:
            timeout: seconds that it may run. An original runtime ignores it.
        """
        body = mentis_v1.RunCell(code, timeout or None)
        return self._client.run_cell(self.space_id, self.sandbox_id, body)

    def run_shell_command(
        self,
        command: str,
        work_dir: str | None = None,
        env: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> str:
        """Run a shell command now; the id of the action.

        Args:
            work_dir, env, timeout: where, with what besides, for how many seconds.
                An original runtime ignores them.
        """
        body = mentis_v1.RunCommand(command, work_dir, env, timeout or None)
        return self._client.run_command(self.space_id, self.sandbox_id, body)

    # ── the stream ──────────────────────────────────────────────────────────

    def connect_stream(self, timeout: float | None = None) -> None:
        """Connect the stream; one that is connected stays so.

        Args:
            timeout: seconds for it; None for the client's own limit.

        Raises:
            RuntimeUnavailable: it cannot be connected.
        """
        with self._connecting:
            if self._listener is not None and self._listener.is_alive():
                return
            stream = self._client.stream(self.sandbox_id, timeout)
            listener = _Listener(self._client, self.sandbox_id, stream, self._deliver)
            listener.start()
            self._listener = listener

    def disconnect_stream(self) -> None:
        """Disconnect the stream; what is said from now on is not heard."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()

    def is_connected(self) -> bool:
        """Whether the stream is connected now."""
        listener = self._listener
        return listener is not None and listener.connected

    def _deliver(self, observation: BaseObservation, ending: threading.Event) -> None:
        if self._queue is not None:
            while not ending.is_set():
                try:
                    # It may be a bounded one, and nobody may take anything from it any more.
                    self._queue.put(observation, timeout=0.2)
                    return
                except queue.Full:
                    continue
        elif self._callback is not None:
            try:
                self._callback(observation)
            except Exception as exc:  # noqa: BLE001 - the user's function; the stream goes on
                log("warning", "callback_raised", sandbox_id=self.sandbox_id, error=in_words(exc))

    # ── the end ─────────────────────────────────────────────────────────────

    def delete(self) -> None:
        """Disconnect, and delete the sandbox; one that is gone already is as good."""
        self.disconnect_stream()
        try:
            self._client.delete_sandbox(self.space_id, self.sandbox_id)
        finally:
            self._client.close()

    def close(self) -> None:
        """Disconnect; the sandbox stays at the runtime."""
        self._ending.set()
        self.disconnect_stream()
        self._client.close()

    def __enter__(self) -> MentisSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()


class _Listener(threading.Thread):
    """Reads a sandbox's stream, and connects it again when it is cut.

    `stop` ends it: it blocks in ``select()``, which a byte interrupts, between two
    tries in the event, and in the delivery, which looks at the event.
    """

    def __init__(
        self,
        client: Client,
        sandbox_id: str,
        stream: ObservationStream,
        deliver: Callable[[BaseObservation, threading.Event], None],
    ) -> None:
        # A daemon: one that its user forgot does not keep the program from ending.
        super().__init__(name=f"mentis-pool-stream-{sandbox_id[:8]}", daemon=True)
        self.connected = True
        self._client = client
        self._sandbox_id = sandbox_id
        self._stream = stream
        self._deliver = deliver
        self._skipped = 0
        """Of what came on the streams so far: what was no observation."""
        self._ending = threading.Event()
        self._waker, self._wakee = socket.socketpair()

    def stop(self) -> None:
        """End it, and wait for that."""
        self._ending.set()
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # it has ended by itself
        if threading.current_thread() is not self:
            self.join()

    def run(self) -> None:
        """The thread."""
        try:
            while not self._ending.is_set():
                try:
                    self._read()
                except StreamLost as exc:
                    self.connected = False
                    log(
                        "warning",
                        "stream_lost",
                        sandbox_id=self._sandbox_id,
                        reason=str(exc),
                    )
                    self._connect_again()
        except MentisPoolError as exc:
            log("warning", "stream_given_up", sandbox_id=self._sandbox_id, reason=str(exc))
        finally:
            self.connected = False
            self._stream.close()
            self._waker.close()
            self._wakee.close()

    def _read(self) -> None:
        """Deliver what comes, until it is to end."""
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        poll.register(self._wakee, select.POLLIN)
        while not self._ending.is_set():
            observations, wrong = self._stream.drain()
            for error in wrong:
                self._skipped += 1
                log(
                    "warning",
                    "observation_skipped",
                    sandbox_id=self._sandbox_id,
                    reason=str(error),
                    skipped=self._skipped,
                )
            for observation in observations:
                self._deliver(observation, self._ending)
            if not observations and not wrong:
                poll.poll()

    def _connect_again(self) -> None:
        self._stream.close()
        retrying = tenacity.Retrying(
            # A sandbox that is no more has no stream to be had.
            retry=tenacity.retry_if_not_exception_type(RuntimeRejected),
            wait=tenacity.wait_exponential(multiplier=0.2, max=30.0) + tenacity.wait_random(0, 0.2),
            stop=tenacity.stop_when_event_set(self._ending),
            sleep=tenacity.sleep_using_event(self._ending),
            reraise=True,
        )
        self._stream = retrying(self._client.stream, self._sandbox_id)
        self.connected = True
        log("info", "stream_connected_again", sandbox_id=self._sandbox_id)


# ── spaces ──────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Space:
    """A group of sandboxes at a runtime.

    Attributes:
        created_at, updated_at: as the runtime says it (RFC 3339), or None.
        sandboxes: what the runtime tells of each, by id.
    """

    space_id: str
    name: str
    description: str = ""
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    created_at: str | None = None
    updated_at: str | None = None
    sandboxes: dict[str, Any] = dataclasses.field(default_factory=dict)


class SpaceManager:
    """The spaces of a runtime.

    Args:
        base_url, token: as for `MentisSandbox`; the same errors.
    """

    def __init__(self, base_url: str | None = None, token: str | None = None) -> None:
        self._client = _client(base_url, token, threading.Event())

    def create_space(
        self, name: str, description: str | None = None, metadata: dict[str, Any] | None = None
    ) -> Space:
        """A new space; there may be none of that name."""
        return _space(self._client.create_space_once(name, description, metadata))

    def list_spaces(self) -> list[Space]:
        """All spaces."""
        return [_space(told) for told in self._client.spaces()]

    def get_space(self, space_id: str) -> Space:
        """The space with this id."""
        return _space(self._client.space(space_id))

    def update_space(
        self,
        space_id: str,
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Space:
        """Set what is given; the space as it is then."""
        self._client.change_space(space_id, description, metadata)
        return self.get_space(space_id)

    def delete_space(self, space_id: str) -> None:
        """Delete a space, and its sandboxes; one that is gone already is as good."""
        self._client.delete_space(space_id)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


def _space(told: dict[str, Any]) -> Space:
    """By whichever names the runtime has for it."""

    def of(*names: str) -> Any:
        return next((told[name] for name in names if told.get(name) is not None), None)

    return Space(
        space_id=of("space_id", "ID"),
        name=of("name", "Name"),
        description=of("description", "Description") or "",
        metadata=of("metadata", "Metadata") or {},
        created_at=of("created_at", "CreatedAt"),
        updated_at=of("updated_at", "UpdatedAt"),
        sandboxes=of("sandboxes", "Sandboxes") or {},
    )


# ── tasks ───────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def sandbox_session(
    base_url: str | None = None, *, space_id: str = DEFAULT_SPACE, token: str | None = None
) -> Iterator[tuple[MentisSandbox, ObservationQueue]]:
    """A sandbox with its stream connected, and the queue of its observations; deleted at the end.

    Args:
        base_url: address of the runtime. None: MENTIS_RUNTIME_URL; where that says
            nothing, a runtime of its own is started here, and ended at the end.
        token: that it asks for; None: MENTIS_RUNTIME_TOKEN.
    """
    with contextlib.ExitStack() as stack:
        if base_url is None and not os.environ.get("MENTIS_RUNTIME_URL"):
            token = secrets.token_hex(16)
            runtime = LocalRuntime([], 1, token)
            stack.callback(runtime.stop)
            base_url = runtime.url
        observations: ObservationQueue = queue.Queue()
        sandbox = MentisSandbox.create(
            space_id, base_url=base_url, token=token, observation_queue=observations
        )
        stack.callback(sandbox.delete)
        yield sandbox, observations


class ConcurrentTask:
    """One cell among others in a sandbox, whose observations all arrive on one queue.

    Attributes:
        task_id: whatever names it for its user.
        action_id: of the cell, or None before `execute`.
    """

    def __init__(self, sandbox: MentisSandbox, task_id: object) -> None:
        self.sandbox = sandbox
        self.task_id = task_id
        self.action_id: str | None = None
        self._collected = Collected()

    def execute(self, code: str) -> str:
        """Run a cell; the id of the action."""
        self._collected = Collected()
        self.action_id = self.sandbox.run_ipython_cell(code)
        return self.action_id

    def collect_results(self, obs_queue: queue.Queue[Any], timeout: float = 30) -> Collected:
        """This task's observations, up to its result or the error in its place.

        Tasks may be collected from one queue in any order and from any number of
        threads: each gets its own, and what belongs to others stays for them.

        Args:
            timeout: seconds; then what there is comes back, with ``complete`` False,
                and the next call goes on from there.

        Raises:
            RuntimeError: before `execute`.
        """
        if self.action_id is None:
            raise RuntimeError("nothing to collect: call execute() first")
        deadline = time.monotonic() + timeout
        router_of(obs_queue).collect(obs_queue, self.action_id, self._collected, deadline)
        if not self._collected.complete:
            log(
                "warning",
                "collection_incomplete",
                task_id=self.task_id,
                action_id=self.action_id,
                seconds=timeout,
            )
        given = Collected(self._collected)
        given.complete = self._collected.complete
        return given
