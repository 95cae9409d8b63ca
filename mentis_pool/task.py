"""One task: its settings, its states, what was said about it, its outcome.

Pure: time is an argument. The engine's lock guards a task's state; what was
said (`Record`) may be read from any thread at any time, since it only grows.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from collections.abc import Callable
from typing import Any

import msgspec

from mentis_pool import values
from mentis_pool.errors import (
    CellError,
    CellTimeout,
    DeadlineExceeded,
    MentisPoolError,
    OutcomeUnknown,
    PayloadError,
    ProtocolError,
    QueueTimeout,
    ResourceLimitExceeded,
    RuntimeRejected,
    RuntimeUnavailable,
    SandboxDied,
    SandboxError,
    StateLost,
    cell_error,
    limit_told,
)
from mentis_pool.files import Fetched
from mentis_pool.observations import (
    Bundle,
    Cut,
    Display,
    End,
    Error,
    ErrorKind,
    Failure,
    File,
    Left,
    Observation,
    Part,
    Result,
    Start,
    Stream,
    Wanted,
)
from mentis_pool.output import StreamBound
from mentis_pool.pool_stream import Given, Work
from mentis_pool.results import CellResult, Opaque, Usage
from mentis_pool.text import for_terminal, to_text

# Kinds of `Error` that say nothing against the task.
_SANDBOX_FAILED = ("died", "unknown", "protocol", "unreachable")
# Kinds of `Error` that after an outcome only say how the sandbox was lost, or why the task is
# not run once more. Any other is what came of its being run again.
_SAYS_NO_MORE = (*_SANDBOX_FAILED, "cancelled")


class State(enum.Enum):
    """Where one task is. It moves down this list; only a retry moves it up, to QUEUED."""

    QUEUED = "queued"  # ours alone
    SENT = "sent"  # given to the runtime, its start not observed: Future.cancel() still works
    RUNNING = "running"  # the runtime said something of it
    ENDED = "ended"  # its outcome is known, or nobody wants it any more


# Before Python 3.12 a name of a module is found in a tenth of the time that a member of an enum
# takes. For the same reason a type is compared where every observation passes: to find that
# something is no instance of a Struct takes five times as long.
QUEUED, SENT, RUNNING, ENDED = State


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `options()` sets for the tasks submitted through it.

    ``retries`` is a number, or a tenacity ``Retrying`` that decides about every failure.
    """

    timeout: float | None = None
    queue_timeout: float | None = None
    deadline: float | None = None
    task_id: str | None = None
    stdin: str | None = None
    on_output: Callable[[Stream], object] | None = None
    argv: tuple[str, ...] | None = None
    retries: Any = 0
    idempotent: bool = False
    files: dict[str, bytes | str] = dataclasses.field(default_factory=dict)
    fetch: tuple[str, ...] = ()
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def given(self) -> Given | None:
        """What the runtime is told of these three, if anything."""
        if not (self.files or self.fetch or self.env):
            return None
        return Given(list(self.files), self.env, list(self.fetch))


_RETURNED = Result()
_CLAIMED = ("RUNNING", "CANCELLED_AND_NOTIFIED")
_OF_FILES = frozenset((Wanted, File, Left))


class Record:
    """What was said about a task, in order, and whether that is all.

    A task that is run again begins again: with another `Start`.

    ``limit`` bounds the bytes kept of each stream where the runtime does not. Files that
    come are in ``fetched`` alone. Appended to by one thread; may be read by others meanwhile.
    """

    def __init__(
        self, limit: int | None = None, bounded: bool = True, fetch: tuple[str, ...] = ()
    ) -> None:
        self.said: list[Observation] = []
        self.fetched = Fetched(fetch) if fetch else None
        self._fetch = fetch
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
        if type(observation) in _OF_FILES:
            if isinstance(observation, (File, Left)):
                self.fetched = self.fetched or Fetched(())
                self.fetched.take(observation)
            return
        if self.fetched is not None:
            if isinstance(observation, Start):
                self.fetched = Fetched(self._fetch)
            elif isinstance(observation, End):
                self.fetched.end()
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
        if type(observation) is End:
            self.ended = True

    def returned(self) -> bytes | None:
        """What a call returned, where there is nothing else to tell of it: no output, no parts."""
        if len(self.said) < 3 or not self.ended:
            return None
        if self.fetched is not None and self.fetched.wrong is not None:
            return None
        start, result, _ = self.said[-3:]
        if isinstance(start, Start) and isinstance(result, Result) and result.failure is None:
            return result.pickled
        return None

    def give_up_returned(self) -> None:
        """Do not keep the bytes of `returned`."""
        self.said[-2] = _RETURNED

    def take_pickled(self) -> tuple[bytes | None, Failure | None]:
        """What a call returned or raised in its last attempt; once it has ended, its bytes are not kept."""
        parts: list[bytes] = []
        found: Result | None = None
        for at, said in enumerate(self.said):
            if isinstance(said, Start):
                parts, found = [], None
            elif isinstance(said, Part):
                parts.append(said.data)
                if self.ended:
                    self.said[at] = Part(b"")
            elif isinstance(said, Result):
                found = said
                if self.ended:
                    self.said[at] = msgspec.structs.replace(said, pickled=None)
        if found is None or found.pickled is None:
            return None, None
        return b"".join([*parts, found.pickled]) if parts else found.pickled, found.failure


class Task:
    """One cell, call or command on its way to its ``future``."""

    __slots__ = (
        "action",
        "again",
        "attempt",
        "call",
        "claimed",
        "context",
        "future",
        "key",
        "known",
        "lane",
        "losses",
        "max_output",
        "number",
        "rebuilt",
        "record",
        "settings",
        "size",
        "started",
        "state",
        "stateful",
        "submitted",
        "unwanted",
        "work",
    )

    def __init__(
        self,
        key: str,
        lane: int,
        work: Work,
        settings: Settings,
        max_output: int | None,
        now: float,
        *,
        size: int = 0,
        call: Any = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        self.key = key
        """The task's id: of the user, or made up."""
        self.lane = lane
        self.work = work
        self.size = size
        """Bytes of what is to be sent."""
        self.call = call
        """Of a call, what may be in what it returns; otherwise None."""
        self.settings = settings
        self.max_output = max_output
        self.future: Any = None
        self.context = context
        self.submitted = now
        self.started: float | None = None
        self.state = QUEUED
        self.number = 0
        """Its place in the order of submission."""
        self.stateful = False
        """Whether it is in a session: what it has begun cannot be run again without its state."""
        self.claimed: bool | None = None
        self.attempt = 0
        self.action = 0
        self.record = Record(max_output, settings.on_output is None, settings.fetch)
        self.rebuilt: tuple[Any] | None = None
        """Of a call, the object that this attempt gave, once it was rebuilt."""
        self.losses = 0
        """How often it was lost."""
        self.again: Error | None = None
        """Why it is to be run again, once its end is heard; not on record until it is not."""
        self.known = False
        """Whether what became of this attempt was said."""
        self.unwanted = False
        """Whether its user had it ended: then it is not run again."""

    def claim(self) -> bool:
        """Whether it may run: unless it was cancelled, from now on it cannot be.

        Its waiters are told, once. For who holds the engine's lock.
        """
        if self.claimed is None:
            state = self.future._state
            if state in _CLAIMED:
                # An interrupt kept it from being noted.
                self.claimed = state == "RUNNING"
            else:
                self.claimed = bool(self.future.set_running_or_notify_cancel())
        return self.claimed

    def sent(self, action: int) -> None:
        """It goes to the runtime under this action's number."""
        self.state = SENT
        self.attempt += 1
        self.action = action

    def observe(self, observation: Observation, now: float) -> None:
        """The runtime said something about it."""
        if type(observation) is Error:
            begun = self.state is RUNNING or observation.kind != "unreachable"
            self._hear(observation, begun)
            return
        if type(observation) is End:
            if self.again is not None:
                # Nobody wants it any more since that was said.
                self.record.add(self.again)
            self.state = ENDED
        else:
            # Its Start may be missing: whatever is said of it, it may have begun.
            self.state = RUNNING
            self.again = None
            if type(observation) is Start:
                self.started = now
            elif type(observation) is Result:
                self.known = True
        self.record.add(observation)

    def _hear(self, error: Error, begun: bool) -> None:
        self.again = error if self._may_run_again(error.kind, begun) else None
        if self.again is None:
            self.known = True
            self.record.add(error)

    def _may_run_again(self, kind: str, begun: bool) -> bool:
        """Whether it is run again after such an `Error`; ``begun``: it may have begun."""
        retries = self.settings.retries
        if kind not in _SANDBOX_FAILED or self.unwanted or not isinstance(retries, int):
            return False
        if self.known:
            # A loss does not take back what was said.
            return False
        again = self.settings.idempotent and not self.stateful
        return self.losses < retries and (again or not begun)

    def back(self) -> None:
        """It waits again."""
        self.losses += 1
        self.again = None
        self.known = False
        self.rebuilt = None
        self.started = None
        self.state = QUEUED

    def unsent(self) -> None:
        """It was sent in vain, which does not count."""
        self.attempt -= 1
        self.state = QUEUED

    def lost(self, message: str, now: float, kind: ErrorKind = "died") -> End:
        """Nothing more will be heard of it; ``kind`` says what that means where it had begun.

        Gives what stands for its End.
        """
        begun = self.state is RUNNING
        self._hear(Error("unknown" if kind == "died" and not begun else kind, message), begun)
        return End(now - self.started if self.started is not None else 0.0)

    @property
    def ended(self) -> bool:
        """Whether its outcome is known, or nobody wants it any more."""
        return self.state is ENDED

    @property
    def waits(self) -> bool:
        """Whether it has not begun, and may."""
        return self.state in (QUEUED, SENT)

    @property
    def judged(self) -> bool:
        """Whether its user's own policy decides what becomes of it now."""
        return not isinstance(self.settings.retries, int) and not self.unwanted

    def refuse(self, kind: ErrorKind, message: str) -> None:
        """It will not be sent."""
        self.state = ENDED
        self.record.add(Error(kind, message))
        self.record.add(End(0.0))

    def queued(self, now: float) -> float:
        """Seconds from submit to start, or until now."""
        return (self.started if self.started is not None else now) - self.submitted


def outcome(
    said: list[Observation],
    *,
    queued: float,
    settings: Settings | None = None,
    action_id: str | None = None,
    sandbox_id: str | None = None,
    attempt: int = 1,
    fetched: Fetched | None = None,
) -> CellResult:
    """The result that a task's observations amount to; its ``error`` says what went wrong.

    Args:
        said: all observations of the task, up to its `End`.
        queued: seconds that it waited.
        settings: with the limits to be named in errors.
        fetched: the files that came.
    """
    streams: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    cut = {"stdout": 0, "stderr": 0, "displays": 0}
    displays: list[Display] = []
    error: MentisPoolError | None = None
    value: Any = None
    text: str | None = None
    exit_code: int | None = None
    ended = False
    usage: Usage | None = None
    begun = max((i for i, each in enumerate(said) if type(each) is Start), default=0)
    for observation in said[begun:]:
        if type(observation) is Stream:
            streams[observation.stream].append(observation.data)
        elif type(observation) is Cut:
            cut[observation.stream] += observation.bytes
            if observation.stream != "displays":
                streams[observation.stream].append(observation.line)
        elif type(observation) is Display:
            displays.append(observation)
        elif type(observation) is Result:
            ended = True
            try:
                value = _value(observation)
            except ProtocolError as exc:
                error = exc
            text = observation.text
            exit_code = observation.exit_code
            if observation.bundle is not None:
                displays.append(Display(observation.bundle))
            failure = observation.failure
            if failure is not None:
                told = cell_error(*msgspec.structs.astuple(failure))
                over = observation.exceeded
                error = told
                if over is not None:
                    error = limit_told(over.which, over.limit, sandbox_id, told)
                error.__cause__ = _remote_traceback(told.traceback)
        elif type(observation) is Error and not (ended and observation.kind in _SAYS_NO_MORE):
            ended = True
            error = _error(observation, settings or Settings(), sandbox_id)
            if settings is not None and settings.argv is not None:
                exit_code = observation.exit_code
        elif type(observation) is End:
            usage = Usage(
                queued, observation.seconds, observation.cpu_seconds, observation.peak_memory
            )
    if not ended:
        error = OutcomeUnknown("nothing was heard of how it ended", sandbox_id)
    if fetched is not None and fetched.wrong is not None:
        error = ProtocolError(f"what the runtime sent was not asked for: {fetched.wrong}")
    result = CellResult(
        stdout=to_text(b"".join(streams["stdout"])),
        stderr=to_text(b"".join(streams["stderr"])),
        stdout_cut=cut["stdout"],
        stderr_cut=cut["stderr"],
        value=value,
        text=text,
        displays=_shown(displays),
        exit_code=exit_code,
        displays_cut=cut["displays"],
        usage=usage or Usage(queued=queued),
        action_id=action_id,
        sandbox_id=sandbox_id,
        attempt=attempt,
        files={} if fetched is None else fetched.files,
        files_left={} if fetched is None else fetched.left,
    )
    if error is None:
        return result
    result = result.with_error(error)
    error.result = result
    return result


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


def _shown(displays: list[Display]) -> list[dict[str, Any]]:
    """What is to be seen in the end: in the place of each display the last update of it."""
    # From behind: looking for what each update is of would take a hostile cell's time.
    newest: dict[str | None, Bundle] = {}
    shown: list[dict[str, Any]] = []
    for display in reversed(displays):
        if not display.update:
            shown.append(_bundle(newest.get(display.display_id, display.bundle)))
        elif display.display_id is not None:
            newest.setdefault(display.display_id, display.bundle)
    shown.reverse()
    return shown


def _error(said: Error, settings: Settings, sandbox_id: str | None) -> MentisPoolError:
    if said.kind == "timeout":
        return CellTimeout(said.message, settings.timeout)
    if said.kind == "deadline":
        return DeadlineExceeded(said.message)
    if said.kind == "queue":
        return QueueTimeout(said.message)
    if said.kind == "died":
        return SandboxDied(said.message, sandbox_id, said.signal, said.exit_code)
    if said.exceeded is not None:
        over = said.exceeded
        return ResourceLimitExceeded(over.which, over.limit, over.used, sandbox_id)
    if said.kind == "payload":
        return PayloadError(said.message)
    if said.kind == "unreachable":
        return RuntimeUnavailable(said.message)
    if said.kind == "rejected":
        return RuntimeRejected(said.message)
    if said.kind == "protocol":
        return SandboxError(said.message, sandbox_id)
    if said.kind == "state":
        return StateLost(said.message)
    return OutcomeUnknown(said.message, sandbox_id)


def call_outcome(
    record: Record, result: CellResult, rebuild: Callable[[bytes], Any]
) -> tuple[Any, BaseException | None]:
    """What a call returned, or the exception that is its outcome.

    Args:
        record: all that was said of it; its bytes are given up.
        result: what that amounts to (`outcome`).
        rebuild: the object from its bytes; raises `PayloadError`.
    """
    pickled, failure = record.take_pickled()
    error: BaseException | None = result.error
    if error is not None and (pickled is None or not isinstance(error, CellError)):
        return None, error
    if isinstance(error, ResourceLimitExceeded):
        # It is what the call raised as well, and says more.
        return None, error
    if pickled is None:
        return None, ProtocolError("the sandbox gave no result of the call")
    try:
        value = rebuild(pickled)
        if failure is None:
            return value, None
        if not isinstance(value, BaseException):
            raise ProtocolError("what the sandbox says was raised is no exception", pickled)
        error = value
    except (PayloadError, ProtocolError) as exc:
        error = exc
        exc.result = result
    if failure is not None:
        error.__cause__ = _remote_traceback(failure.traceback)
    return None, error


def _remote_traceback(traceback: str) -> BaseException:
    """What shows where in the sandbox it was raised, if nobody catches it: as of a process pool."""
    text: Any = for_terminal(f'\n"""\n{traceback}"""')
    try:
        from concurrent.futures.process import _RemoteTraceback
    except RuntimeError:
        # Its import asks to be called when the interpreter ends, and that has begun.
        return Exception(text)
    return _RemoteTraceback(text)
