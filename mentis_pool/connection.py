"""What the engine needs of a runtime, whatever it speaks: commands in, events out.

`local` starts the embedded runtime, `remote` asks one at an address what it speaks.
"""

from __future__ import annotations

import platform
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import tenacity

from mentis_pool.address import Address
from mentis_pool.errors import (
    IsolationWarning,
    ProtocolError,
    RuntimeRejected,
    RuntimeUnavailable,
)
from mentis_pool.events import log
from mentis_pool.pool_stream import PATH, SEEN, SESSION, SUBPROTOCOL, Command, Event, Standing
from mentis_pool.runtime.local import LocalRuntime
from mentis_pool.stream import PING, PoolStream, StreamLost, link, unix_link
from mentis_pool.threads import Threads
from mentis_pool.walls import LEVELS, warning

START_TIMEOUT = 60.0
"""Seconds within which a runtime must be ready; preloading counts."""
LOCAL_PING = 15.0
"""As `stream.PING`, of one on this machine: it may be so busy that it seems to be gone."""
REJOIN_WITHIN = 30.0
"""Seconds that a runtime is looked for to which the connection was lost."""
REJOINS = 1000
"""So often, at most."""
REFUSED_WITHIN = 5.0
"""Seconds, where nobody listens there any more."""
ANSWER_WITHIN = 10.0
"""Seconds that it has for an answer then."""


class Connection(Protocol):
    """A runtime that is connected. One thread drains, while others send, one at a time."""

    lost_tasks: Literal["died", "unknown"]
    """What becomes of tasks that ran when it was lost."""

    rejoins: bool
    """Whether `rejoin` may help when it is lost."""

    near: bool
    """Whether an answer may come within microseconds."""

    def fileno(self) -> int:
        """For a selector: readable when `drain` has something to do."""

    def wait(self) -> float | None:
        """Seconds until `drain` has something to do anyway, or None."""

    def drain(self) -> Sequence[Event]:
        """All that happened. Raises StreamLost or a MentisPoolError when it is lost."""

    def send(self, commands: list[Command]) -> None:
        """Have these carried out. Raises StreamLost when it is lost."""

    def rejoin(self, ending: threading.Event) -> None:
        """Connect once more, to where it was lost: nothing that was said or sent is missing.

        Raises:
            MentisPoolError: the runtime cannot be reached, or does not know us any more.
        """

    def names(self, action: int, sandbox: int) -> tuple[str, str]:
        """What the runtime calls an action that began, and the sandbox that has it."""

    def standing(self) -> Standing:
        """How its sandboxes are isolated."""

    def lose(self) -> str:
        """Close it, as one that is lost; why it was, where that is known."""

    def close(self) -> None:
        """Close it, and free what it had at the runtime."""


class _Pool:
    """A connection by the pool stream."""

    def __init__(self, stream: PoolStream) -> None:
        self._stream = stream

    def fileno(self) -> int:
        return self._stream.fileno()

    def wait(self) -> float | None:
        return self._stream.wait()

    def drain(self) -> Sequence[Event]:
        return self._stream.drain()

    def send(self, commands: list[Command]) -> None:
        self._stream.send(commands)

    def standing(self) -> Standing:
        return self._stream.welcome.standing

    def names(self, action: int, sandbox: int) -> tuple[str, str]:
        session = self._stream.welcome.session
        return f"{session}-{action}", f"{session}-s{sandbox}"


class LocalConnection(_Pool):
    """The embedded runtime and the stream to it."""

    lost_tasks: Literal["died", "unknown"] = "died"
    rejoins = False
    near = True

    def rejoin(self, ending: threading.Event) -> None:
        """Where a stream within one machine is lost, so is its runtime."""
        raise RuntimeUnavailable("the runtime is gone")

    def __init__(self, runtime: LocalRuntime, stream: PoolStream) -> None:
        super().__init__(stream)
        self._runtime = runtime

    def lose(self) -> str:
        """End what is left of it; its last words."""
        self._stream.close()
        words = self._runtime.last_words(1.0)
        # One that has stopped does not end by itself.
        self._runtime.stop(1.0)
        return words

    def close(self) -> None:
        """End the runtime."""
        self._stream.close()
        self._runtime.stop()
        log("info", "runtime_stopped", pid=self._runtime.pid)


class RemoteConnection(_Pool):
    """A runtime of ours at an address, and the stream to it; it goes on without us."""

    lost_tasks: Literal["died", "unknown"] = "unknown"
    rejoins = True
    near = False

    def __init__(self, address: Address, token: str | None, stream: PoolStream) -> None:
        super().__init__(stream)
        self._address = address
        self._token = token

    def rejoin(self, ending: threading.Event) -> None:
        """As long as the runtime may keep the session; see `Connection`."""
        _retrying(REJOINS, ending, REJOIN_WITHIN, REFUSED_WITHIN)(self._rejoin)

    def _rejoin(self) -> None:
        headers = {SESSION: self._stream.welcome.key, SEEN: str(self._stream.seen)}
        url = self._address.ws(PATH)
        made = link(url, self._token, ANSWER_WITHIN, SUBPROTOCOL, headers)
        try:
            self._stream.rejoin(made)
        except StreamLost as exc:
            made.close()
            raise RuntimeUnavailable(str(exc)) from exc
        except ProtocolError:
            made.close()
            raise

    def lose(self) -> str:
        """Close what is left of it."""
        self._stream.leave()
        return f"the connection to {self._address.url} was lost"

    def close(self) -> None:
        """Close the stream: the runtime ends our sandboxes."""
        self._stream.leave()
        log("info", "runtime_left", url=self._address.url)


_WAIT = tenacity.wait_exponential(multiplier=0.1, max=5.0) + tenacity.wait_random(0.0, 0.1)


def backoff(failures: int) -> float:
    """Seconds to wait after so many runtimes in a row were lost."""
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = failures
    return float(_WAIT(state))


class _RefusedFor(tenacity.stop.stop_base):
    """So many seconds have passed, and nobody listens there."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        refused = error is not None and isinstance(error.__cause__, ConnectionRefusedError)
        return refused and (state.seconds_since_start or 0.0) >= self._seconds


def _retrying(
    retries: int,
    ending: threading.Event,
    within: float = START_TIMEOUT,
    refused_within: float = START_TIMEOUT,
) -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda exc: isinstance(exc, (RuntimeUnavailable, RuntimeRejected)) and exc.passing
        ),
        stop=tenacity.stop_after_attempt(retries + 1)
        | tenacity.stop_after_delay(within)
        | _RefusedFor(refused_within)
        | tenacity.stop_when_event_set(ending),
        wait=_WAIT,
        sleep=tenacity.sleep_using_event(ending),
        before_sleep=lambda state: log(
            "warning",
            "runtime_retried",
            attempt=state.attempt_number,
            error=str(state.outcome.exception()) if state.outcome else "",
        ),
        reraise=True,
    )


class Isolation(NamedTuple):
    """How the embedded runtime is to isolate sandboxes; as for the executor."""

    level: str = "auto"
    network: str = "none"
    expose: tuple[str, ...] = ()


def local(
    preload: list[str],
    threads: int,
    isolation: Isolation,
    retries: int,
    ending: threading.Event,
) -> LocalConnection:
    """Start the embedded runtime.

    Raises:
        RuntimeUnavailable: it cannot be started here, after all retries, and why.
    """
    return _retrying(retries, ending)(_start, preload, threads, isolation)


def _start(preload: list[str], threads: int, isolation: Isolation) -> LocalConnection:
    begun = time.monotonic()
    level, network, expose = isolation
    runtime = LocalRuntime(preload, threads, isolation=level, network=network, expose=expose)
    try:
        try:
            stream = PoolStream(unix_link(runtime.connect(), START_TIMEOUT), LOCAL_PING)
        except RuntimeUnavailable as exc:
            raise runtime.unavailable() from exc
        _warn(stream.welcome.standing, isolation)
    except BaseException:
        runtime.stop()
        raise
    seconds = round(time.monotonic() - begun, 6)
    log(
        "info",
        "runtime_started",
        pid=runtime.pid,
        seconds=seconds,
        isolation=stream.welcome.standing.level,
    )
    return LocalConnection(runtime, stream)


_warned: set[str] = set()


def _warn(standing: Standing, asked: Isolation) -> None:
    """Say once for each level what is not held, where the strongest was asked for."""
    if asked.level != "auto" or standing.level == LEVELS[0] or standing.level in _warned:
        return
    _warned.add(standing.level)
    text = warning(standing.level, standing.network, standing.reasons, standing.landlock)
    log("warning", "isolation_weak", isolation=standing.level, reasons=standing.reasons)
    warnings.warn(text, IsolationWarning, stacklevel=2)


def remote(
    address: Address, token: str | None, retries: int, ending: threading.Event, threads: Threads
) -> Connection:
    """Connect to the runtime at an address, by the pool stream or by v1.

    Raises:
        RuntimeUnavailable: nothing answers there, after all retries.
        RuntimeRejected: it answers, and refuses, or is of another version.
    """
    # What reaches other machines takes 60 ms to import.
    from mentis_pool.client import Client
    from mentis_pool.v1_connection import V1Connection

    begun = time.monotonic()
    client = Client(address, token, retries, ending)
    connection: Connection
    try:
        streams = client.streams()
        if SUBPROTOCOL in streams:
            stream = _retrying(retries, ending)(_pool_stream, address, token)
            client.close()
            connection = RemoteConnection(address, token, stream)
        elif streams:
            raise RuntimeRejected(
                f"the runtime at {address.url} speaks {', '.join(streams)}, and this is "
                f"{SUBPROTOCOL}: install the same version of mentis_pool on both sides"
            )
        else:
            connection = V1Connection(client, threads)
    except BaseException:
        client.close()
        raise
    seconds = round(time.monotonic() - begun, 6)
    log("info", "runtime_reached", url=address.url, seconds=seconds)
    return connection


def _pool_stream(address: Address, token: str | None) -> PoolStream:
    stream = PoolStream(link(address.ws(PATH), token, START_TIMEOUT, SUBPROTOCOL), PING)
    theirs, ours = stream.welcome.python, platform.python_version()
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        stream.close()
        raise RuntimeRejected(
            f"the runtime at {address.url} runs Python {theirs} and this is Python {ours}: "
            "what is pickled for it may not be what it takes; use the same Python on both sides"
        )
    return stream
