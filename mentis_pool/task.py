"""One task: its settings, its states, what was said about it, its outcome.

Pure: time is an argument. The engine's lock guards a task's state; what was
said (`Record`) may be read from any thread at any time, since it only grows.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from mentis_pool import values
from mentis_pool.errors import (
    CellTimeout,
    MentisPoolError,
    OutcomeUnknown,
    PayloadError,
    ProtocolError,
    RuntimeRejected,
    SandboxDied,
    SandboxError,
    cell_error,
)
from mentis_pool.observations import (
    Bundle,
    Cut,
    Display,
    End,
    Error,
    Observation,
    Result,
    Start,
    Stream,
)
from mentis_pool.output import StreamBound
from mentis_pool.results import CellResult, Opaque, Usage
from mentis_pool.text import to_text

# Kinds of `Error` that say nothing against the cell.
_SANDBOX_FAILED = ("died", "unknown", "protocol")


class State(enum.Enum):
    """Where one task is. It moves down this list; only a retry moves it up, to QUEUED."""

    QUEUED = "queued"  # ours alone: Future.cancel() still works
    SENT = "sent"  # given to a sandbox, its start not observed
    RUNNING = "running"  # the runtime said something of it
    ENDED = "ended"  # its End was observed, or nothing more can come


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `options()` sets for the tasks submitted through it."""

    timeout: float | None = None
    task_id: str | None = None
    stdin: str | None = None
    on_output: Callable[[Stream], object] | None = None
    argv: tuple[str, ...] | None = None
    retries: int = 0


class Record:
    """What was said about a task, in order, and whether that is all.

    A task that is run again begins again: with another `Start`.

    ``limit`` bounds the bytes kept of each stream where the runtime does not.
    Appended to by one thread; may be read by others meanwhile.
    """

    def __init__(self, limit: int | None = None, bounded: bool = True) -> None:
        self.said: list[Observation] = []
        self.ended = False
        self._limit = limit
        self._bounds = None if bounded else self._new_bounds()

    def _new_bounds(self) -> dict[str, StreamBound]:
        return {
            "stdout": StreamBound("stdout", self._limit),
            "stderr": StreamBound("stderr", self._limit),
        }

    def add(self, observation: Observation) -> None:
        """Take the next observation; after `End` comes none."""
        if self._bounds is not None:
            if isinstance(observation, Start):
                self._bounds = self._new_bounds()
            if isinstance(observation, Stream):
                self.said += self._bounds[observation.stream].feed(observation.data)
                return
            if isinstance(observation, (Result, Error)):
                for bound in self._bounds.values():
                    self.said += bound.finish()
        self.said.append(observation)
        if isinstance(observation, End):
            self.ended = True


class Task:
    """One cell on its way to its ``future``."""

    __slots__ = (
        "action",
        "again",
        "attempt",
        "claimed",
        "context",
        "future",
        "key",
        "max_output",
        "number",
        "record",
        "reruns",
        "sandbox",
        "settings",
        "sources",
        "started",
        "state",
        "submitted",
        "variables",
    )

    def __init__(
        self,
        key: str,
        sources: list[bytes],
        variables: dict[str, bytes],
        settings: Settings,
        max_output: int | None,
        now: float,
        future: Any = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        self.key = key
        """The task's id: of the user, or made up."""
        self.sources = sources
        self.variables = variables
        self.settings = settings
        self.max_output = max_output
        self.future = future
        self.context = context
        self.submitted = now
        self.started: float | None = None
        self.state = State.QUEUED
        self.number = 0
        """Its place in the order of submission."""
        self.claimed = False
        self.attempt = 0
        self.action = 0
        self.sandbox = 0
        self.record = Record(max_output, bounded=settings.on_output is None)
        self.reruns = 0
        self.again = False

    def claim(self) -> bool:
        """Whether it may run: unless it was cancelled, from now on it cannot be."""
        if not self.claimed:
            self.claimed = self.future.set_running_or_notify_cancel()
        return self.claimed

    def sent(self, action: int, sandbox: int) -> None:
        """It goes to a sandbox under this action's number."""
        self.state = State.SENT
        self.attempt += 1
        self.action = action
        self.sandbox = sandbox

    def observe(self, observation: Observation, now: float) -> None:
        """The runtime said something about it."""
        if isinstance(observation, Start):
            self.started = now
        # Its Start may be missing: whatever is said of it, it may have begun.
        self.state = State.RUNNING
        if isinstance(observation, Error) and observation.kind in _SANDBOX_FAILED:
            self.again = self.reruns < self.settings.retries
        if self.again:
            return
        if isinstance(observation, End):
            self.state = State.ENDED
        self.record.add(observation)

    def back(self) -> None:
        """Its sandbox was lost: it waits again."""
        self.reruns += self.state is State.RUNNING
        self.again = False
        self.started = None
        self.state = State.QUEUED

    def refused(self) -> None:
        """There was no sandbox to take it: it waits again, and this was no attempt."""
        self.state = State.QUEUED
        self.attempt -= 1

    def lost(self, message: str, now: float, kind: Literal["died", "unknown"] = "died") -> None:
        """Nothing more will be heard of it; ``kind`` says what that means where it had begun."""
        if self.state is not State.RUNNING:
            kind = "unknown"
        seconds = now - self.started if self.started is not None else 0.0
        self.observe(Error(kind, message), now)
        self.observe(End(seconds), now)

    def refuse(self, message: str) -> None:
        """It will never be sent."""
        self.state = State.ENDED
        self.record.add(Error("unknown", message))
        self.record.add(End(0.0))

    def queued(self, now: float) -> float:
        """Seconds from submit to start, or until now."""
        return (self.started if self.started is not None else now) - self.submitted


def outcome(
    said: list[Observation],
    *,
    queued: float,
    timeout: float | None = None,
    action_id: str | None = None,
    sandbox_id: str | None = None,
    attempt: int = 1,
) -> CellResult:
    """The result that a task's observations amount to; its ``error`` says what went wrong.

    Args:
        said: all observations of the task, up to its `End`.
        queued: seconds that it waited.
        timeout: the limit to be named in `CellTimeout`, in seconds.
    """
    streams: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    cut = {"stdout": 0, "stderr": 0, "displays": 0}
    shown: list[tuple[str | None, dict[str, Any]]] = []
    error: MentisPoolError | None = None
    value: Any = None
    text: str | None = None
    ended = False
    usage = Usage(queued=queued)
    begun = max((i for i, each in enumerate(said) if isinstance(each, Start)), default=0)
    for observation in said[begun:]:
        if isinstance(observation, Stream):
            streams[observation.stream].append(observation.data)
        elif isinstance(observation, Cut):
            cut[observation.stream] += observation.bytes
            if observation.stream != "displays":
                streams[observation.stream].append(_cut_line(observation.bytes))
        elif isinstance(observation, Display):
            _show(shown, observation)
        elif isinstance(observation, Result):
            ended = True
            try:
                value = _value(observation)
            except ProtocolError as exc:
                error = exc
            text = observation.text
            if observation.bundle is not None:
                shown.append((None, _bundle(observation.bundle)))
            failure = observation.failure
            if failure is not None:
                error = cell_error(*msgspec.structs.astuple(failure))
        elif isinstance(observation, Error) and not ended:
            # After a result it only says how the sandbox was lost.
            ended = True
            error = _error(observation, timeout, sandbox_id)
        elif isinstance(observation, End):
            usage = Usage(
                queued, observation.seconds, observation.cpu_seconds, observation.peak_memory
            )
    if not ended:
        error = OutcomeUnknown("nothing was heard of how it ended", sandbox_id)
    result = CellResult(
        stdout=to_text(b"".join(streams["stdout"])),
        stderr=to_text(b"".join(streams["stderr"])),
        stdout_cut=cut["stdout"],
        stderr_cut=cut["stderr"],
        value=value,
        text=text,
        displays=[bundle for _, bundle in shown],
        displays_cut=cut["displays"],
        usage=usage,
        action_id=action_id,
        sandbox_id=sandbox_id,
        attempt=attempt,
    )
    if error is None:
        return result
    result = result.with_error(error)
    error.result = result
    return result


def _cut_line(count: int) -> bytes:
    return f"\n[… {count} bytes cut …]\n".encode()


def _value(result: Result) -> Any:
    if result.value is not None:
        if len(result.value) > values.MAX_BYTES:
            raise ProtocolError(f"a value of {len(result.value)} bytes is over the limit")
        return values.decode(result.value)
    if result.type_name is None:
        return None
    return Opaque(result.text or "", result.type_name)


def _bundle(bundle: Bundle) -> dict[str, Any]:
    forms: dict[str, Any] = {}
    for mime, text in bundle.texts.items():
        forms[mime] = _json(text) if mime.endswith("json") else text
    return {**forms, **bundle.blobs}


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _show(shown: list[tuple[str | None, dict[str, Any]]], display: Display) -> None:
    entry = (display.display_id, _bundle(display.bundle))
    if not display.update:
        shown.append(entry)
        return
    for i, (display_id, _) in enumerate(shown):
        if display_id is not None and display_id == display.display_id:
            shown[i] = entry


def _error(said: Error, timeout: float | None, sandbox_id: str | None) -> MentisPoolError:
    if said.kind == "timeout":
        return CellTimeout(said.message, timeout)
    if said.kind == "died":
        return SandboxDied(said.message, sandbox_id, said.signal, said.exit_code)
    if said.kind == "payload":
        return PayloadError(said.message)
    if said.kind == "rejected":
        return RuntimeRejected(said.message)
    if said.kind == "protocol":
        return SandboxError(said.message, sandbox_id)
    return OutcomeUnknown(said.message, sandbox_id)
