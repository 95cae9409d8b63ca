"""v1, the wire of the Mentis runtime: JSON text <-> observations; paths and bodies.

Both sides use it: the client of an original runtime, and the runtime for clients
that were written for the original. Only this file knows how v1 looks (see
"Observations" there): ``start``, ``error`` and ``end`` nest what they say in
``data``, ``stream`` and ``result`` are flat.

Pure: text in and out, time is an argument.
"""

from __future__ import annotations

import datetime
import urllib.parse
from typing import Any, Literal

import msgspec

from mentis_pool.errors import ProtocolError
from mentis_pool.observations import (
    Cut,
    Display,
    End,
    Error,
    Observation,
    Result,
    Start,
    Stream,
    StreamName,
)
from mentis_pool.text import printable, to_text, whole_characters

DEFAULT_URL = "http://127.0.0.1:5266"
DEFAULT_SPACE = "default"
STILL_RUNS = "context deadline exceeded"
"""In the error of a cell that an original runtime waits for no longer; its result comes later."""

# ── paths, below the runtime's address ──────────────────────────────────────

HEALTH = "/v1/health"
SPACES = "/v1/spaces"


def space_path(space: str) -> str:
    """Of one space."""
    return f"{SPACES}/{_part(space)}"


def sandboxes_path(space: str) -> str:
    """Of the sandboxes of a space."""
    return f"{space_path(space)}/sandboxes"


def sandbox_path(space: str, sandbox: str) -> str:
    """Of one sandbox."""
    return f"{sandboxes_path(space)}/{_part(sandbox)}"


def tool_path(
    space: str, sandbox: str, tool: Literal["run_ipython_cell", "run_shell_command"]
) -> str:
    """Where a cell or a command goes."""
    return f"{sandbox_path(space, sandbox)}/tools:{tool}"


def stream_path(sandbox: str) -> str:
    """Of the WebSocket that says what happens in a sandbox."""
    return f"/v1/sandboxes/{_part(sandbox)}/stream"


def _part(name: str) -> str:
    """One part of a path, whatever a user calls it."""
    return urllib.parse.quote(name, safe="")


# ── bodies ──────────────────────────────────────────────────────────────────


class NewSpace(msgspec.Struct, omit_defaults=True):
    """Body of a POST of a space."""

    name: str
    description: str | None = None
    metadata: dict[str, Any] | None = None


class SpaceChange(msgspec.Struct, omit_defaults=True):
    """Body of a PUT of a space; what is not given stays."""

    description: str | None = None
    metadata: dict[str, Any] | None = None


class NewSandbox(msgspec.Struct, omit_defaults=True):
    """Body of a POST of a sandbox."""

    image: str | None = None
    command: Any = None
    metadata: dict[str, Any] | None = None


class RunCell(msgspec.Struct, omit_defaults=True):
    """Body of a POST of a cell. An ``action_id`` in it would replace the runtime's own."""

    code: str
    timeout: float | None = None


class RunCommand(msgspec.Struct, omit_defaults=True):
    """Body of a POST of a shell command."""

    command: str
    work_dir: str | None = None
    env: dict[str, str] | None = None
    timeout: float | None = None


class Accepted(msgspec.Struct):
    """Answer to a cell or command."""

    action_id: str


class MadeSandbox(msgspec.Struct):
    """Answer to a new sandbox, as far as it is used."""

    sandbox_id: str
    space_id: str | None = None


class Refusal(msgspec.Struct, omit_defaults=True):
    """Body of every error."""

    message: str
    detail: str | None = None


# ── observations ────────────────────────────────────────────────────────────


class BaseObservation(msgspec.Struct, tag_field="observation_type", kw_only=True):
    """What every observation has."""

    action_id: str
    timestamp: datetime.datetime | None = None

    @property
    def observation_type(self) -> str:
        """ "start", "stream", "result", "error" or "end"."""
        return str(self.__struct_config__.tag)


class StartObservation(BaseObservation, tag="start", kw_only=True):
    """The action began."""

    data: dict[str, Any] = {}


class StreamObservation(BaseObservation, tag="stream", kw_only=True):
    """Output: of a cell any piece of text, of a shell command a line without its end."""

    stream: str
    line: str


class ResultObservation(BaseObservation, tag="result", kw_only=True, omit_defaults=True):
    """How the action ended. ``error`` is a shell command's stderr; the others are a cell's."""

    exit_code: int
    status: str | None = None
    error: str | None = None
    error_name: str | None = None
    error_value: str | None = None
    traceback: list[str] | None = None


class ErrorObservation(BaseObservation, tag="error", kw_only=True):
    """The runtime could not go on with the action."""

    data: dict[str, Any] = {}

    @property
    def error(self) -> str:
        """Why."""
        return str(self.data.get("error", ""))


class EndObservation(BaseObservation, tag="end", kw_only=True):
    """The runtime is through with the action."""

    data: dict[str, Any] = {}

    @property
    def exit_code(self) -> int | None:
        """0, what the command gave, or -1 with an ``error``."""
        code = self.data.get("exit_code")
        return code if isinstance(code, int) else None

    @property
    def error(self) -> str | None:
        """Why it is -1."""
        error = self.data.get("error")
        return None if error is None else str(error)


V1Observation = (
    StartObservation | StreamObservation | ResultObservation | ErrorObservation | EndObservation
)

_decoder: msgspec.json.Decoder[V1Observation] = msgspec.json.Decoder(V1Observation)


def decode(frame: bytes) -> tuple[list[V1Observation], list[ProtocolError]]:
    """The observations of one text frame, and what in it is none.

    The original writes what has queued up into one frame, a line each; JSON
    itself never holds a line's end.
    """
    observations: list[V1Observation] = []
    wrong: list[ProtocolError] = []
    for line in frame.split(b"\n"):
        if not line.strip():
            continue
        try:
            observations.append(_decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            wrong.append(ProtocolError(f"not an observation of v1: {exc}", line))
    return observations, wrong


class CellEncoder:
    """What one cell says, as a client of the original expects it.

    As in a terminal, a value follows the output as ``Out[n]: …``, a display as its
    text, and an exception's traceback is in the output besides the result.

    Args:
        action_id: of the action.
        count: the cell's number in its sandbox, from 1.
    """

    def __init__(self, action_id: str, count: int) -> None:
        self._action_id = action_id
        self._count = count
        self._failure: str | None = None
        self._code = 0
        self._at_margin = True

    def encode(self, observation: Observation, now: float) -> list[bytes]:
        """The frames for an observation, at ``now`` (seconds since the epoch)."""
        return [msgspec.json.encode(said) for said in self._said(observation, _time(now))]

    def _said(self, said: Observation, time: datetime.datetime) -> list[V1Observation]:
        mine: dict[str, Any] = {"action_id": self._action_id, "timestamp": time}
        if isinstance(said, Start):
            return [StartObservation(**mine)]
        if isinstance(said, Stream):
            if said.stream == "stdout":
                self._at_margin = said.data.endswith(b"\n")
            return [StreamObservation(stream=said.stream, line=printable(said.text), **mine)]
        if isinstance(said, Cut):
            stream = "stdout" if said.stream == "displays" else said.stream
            line = f"\n[… {said.bytes} bytes of {said.stream} cut …]\n"
            return [StreamObservation(stream=stream, line=line, **mine)]
        if isinstance(said, Display):
            return self._shown(said.bundle.texts.get("text/plain"), mine)
        if isinstance(said, Result):
            return self._result(said, mine)
        if isinstance(said, Error):
            self._failure, self._code = said.message, -1
            names = {"timeout": "TimeoutError", "limit": "ResourceLimitExceeded"}
            name = names.get(said.kind, "SandboxDied")
            return [
                ErrorObservation(data={"error": said.message}, **mine),
                ResultObservation(
                    exit_code=1,
                    status="error",
                    error_name=name,
                    error_value=said.message,
                    traceback=[],
                    **mine,
                ),
            ]
        return [self._end(said, mine)] if isinstance(said, End) else []

    def _shown(self, text: str | None, mine: dict[str, Any]) -> list[V1Observation]:
        return self._line(text, mine) if text is not None else []

    def _line(self, text: str, mine: dict[str, Any]) -> list[V1Observation]:
        """Text on lines of its own."""
        begin = "" if self._at_margin else "\n"
        end = "" if text.endswith("\n") else "\n"
        self._at_margin = True
        return [StreamObservation(stream="stdout", line=begin + text + end, **mine)]

    def _result(self, said: Result, mine: dict[str, Any]) -> list[V1Observation]:
        if said.failure is not None:
            failure = said.failure
            self._code = 1
            return [
                *self._line(failure.traceback, mine),
                ResultObservation(
                    exit_code=1,
                    status="error",
                    error_name=failure.name,
                    error_value=failure.value,
                    traceback=failure.traceback.splitlines(),
                    **mine,
                ),
            ]
        shown: list[V1Observation] = []
        if said.text is not None:
            gap = "\n" if "\n" in said.text else ""
            shown = self._line(f"Out[{self._count}]: {gap}{said.text}", mine)
        return [*shown, ResultObservation(exit_code=0, status="ok", **mine)]

    def _end(self, said: End, mine: dict[str, Any]) -> V1Observation:
        data: dict[str, Any] = {"exit_code": self._code}
        if self._failure is not None:
            data["error"] = self._failure
        return EndObservation(data=data, **mine)


class CommandEncoder:
    """What one shell command says: its output line by line, its exit code, its end.

    ``error`` of the result is its stderr, the last 64 KiB of it, when the exit
    code is not 0.
    """

    _KEPT = 64 * 1024
    _LONGEST = 1024 * 1024

    def __init__(self, action_id: str) -> None:
        self._action_id = action_id
        self._begun: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self._stderr = b""

    def start(self, now: float) -> bytes:
        """It began."""
        return self._frame(StartObservation(**self._mine(now)))

    def output(self, stream: StreamName, data: bytes, now: float) -> list[bytes]:
        """It wrote this; each line that is whole becomes one observation, one of 1 MiB as well."""
        if stream == "stderr":
            self._stderr = (self._stderr + data)[-self._KEPT :]
        *lines, begun = (self._begun[stream] + data).split(b"\n")
        if len(begun) > self._LONGEST:
            border = whole_characters(begun)
            lines.append(begun[:border])
            begun = begun[border:]
        self._begun[stream] = begun
        return [self._line(stream, line, now) for line in lines]

    def finish(self, exit_code: int, failure: str | None, now: float) -> list[bytes]:
        """It ended with this code; ``failure`` says why where it did not end by itself."""
        frames = [self._line(name, left, now) for name, left in self._begun.items() if left]
        error = failure
        if exit_code != 0 and error is None:
            error = printable(to_text(self._stderr)).strip() or None
        mine = self._mine(now)
        if failure is not None:
            frames.append(self._frame(ErrorObservation(data={"error": failure}, **mine)))
        frames.append(self._frame(ResultObservation(exit_code=exit_code, error=error, **mine)))
        data: dict[str, Any] = {"exit_code": exit_code if failure is None else -1}
        if failure is not None:
            data["error"] = failure
        frames.append(self._frame(EndObservation(data=data, **mine)))
        return frames

    def _line(self, stream: str, line: bytes, now: float) -> bytes:
        text = printable(to_text(line.removesuffix(b"\r")))
        return self._frame(StreamObservation(stream=stream, line=text, **self._mine(now)))

    def _mine(self, now: float) -> dict[str, Any]:
        return {"action_id": self._action_id, "timestamp": _time(now)}

    def _frame(self, said: V1Observation) -> bytes:
        return msgspec.json.encode(said)


def _time(now: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
