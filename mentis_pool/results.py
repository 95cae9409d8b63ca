"""What a task gave: `CellResult`, and how it shows itself."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

from mentis_pool.errors import CellError, MentisPoolError
from mentis_pool.text import for_terminal, printable

Bundle = dict[str, Any]
"""A mime bundle: mime type to str, bytes (images) or what JSON gave."""


@dataclasses.dataclass(frozen=True)
class Opaque:
    """Stands for a value that is not plain data: its repr, and the name of its type."""

    repr: str
    type_name: str

    def __repr__(self) -> str:
        return for_terminal(f"<Opaque {self.type_name}: {self.repr}>")


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a task used.

    Attributes:
        queued: seconds from submit to start.
        running: seconds from start to end.
        cpu: CPU seconds, with all processes that it started.
        peak_memory: the most that its processes held at a time, in bytes: of one,
            its largest resident set, which counts pages shared with the runtime; of
            several, looked at every 20 to 50 ms, what they hold together. None
            where it is not known.
    """

    queued: float = 0.0
    running: float = 0.0
    cpu: float = 0.0
    peak_memory: int | None = None


@dataclasses.dataclass(frozen=True)
class SandboxUsage:
    """What a sandbox uses now.

    Attributes:
        memory: bytes that its processes hold together, files in memory not counted.
        cpu: CPU seconds since its start.
        processes: its processes and threads, besides those of the runtime.
        task_id: of the task that it runs; None where it runs none.
    """

    memory: int
    cpu: float
    processes: int
    task_id: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class CellResult:
    """What a cell gave.

    Attributes:
        stdout, stderr: text as written; bytes that are no UTF-8 are lone
            surrogates (as with ``errors="surrogateescape"``).
        stdout_cut, stderr_cut: bytes left out of it, over ``max_output``; where
            they were, the text says so in a line of its own.
        value: the last expression's value when it is plain data (None, bool,
            int, float, str, bytes, list, tuple, dict, set, datetime, date, time,
            timedelta; with no tzinfo but `datetime.timezone`) of at most 16 MiB
            and 100 levels, otherwise an `Opaque`.
        text: its text/plain, as IPython shows it; None when there was no value.
        displays: mime bundles in the order of their display; the last
            expression's value is among them when it has a form besides text.
        exit_code: of a shell command, or of a script (``argv=``) that was not killed; None of a cell.
        displays_cut: bytes of displays left out: they may have ``max_output``
            bytes in all (64 MiB where that is None), and 32 MiB each.
        error: None when all went well, otherwise what ``Future.result()`` raises.
        usage: see `Usage`.
        action_id, sandbox_id: where it ran; None when it never did.
        attempt: 1, or more when it was tried again.
        files: what ``fetch`` asked for, by name.
        files_left: what it asked for that is not there, and why.
    """

    stdout: str = ""
    stderr: str = ""
    stdout_cut: int = 0
    stderr_cut: int = 0
    value: Any = None
    text: str | None = None
    displays: list[Bundle] = dataclasses.field(default_factory=list)
    exit_code: int | None = None
    displays_cut: int = 0
    error: MentisPoolError | None = None
    usage: Usage = dataclasses.field(default_factory=Usage)
    action_id: str | None = None
    sandbox_id: str | None = None
    attempt: int = 1
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    files_left: dict[str, str] = dataclasses.field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CellResult):
            return NotImplemented
        return self._key() == other._key()

    __hash__ = None  # type: ignore[assignment]

    def _key(self) -> tuple[Any, ...]:
        """What makes it equal to another; an error is what it says."""
        fields = [getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "error"]
        return (*fields, type(self.value), _json_error(self.error))

    @property
    def ok(self) -> bool:
        """True when the cell ended without an error."""
        return self.error is None

    def with_error(self, error: MentisPoolError) -> CellResult:
        """The same result, with this error."""
        return dataclasses.replace(self, error=error)

    def without_error(self) -> CellResult:
        """The same result, without its error."""
        return dataclasses.replace(self, error=None)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.error is not None and getattr(self.error, "result", None) is self:
            # The error carries this result: let it travel, and take the result from the copy.
            return _result_of, (self.error,)
        fields = tuple(getattr(self, f.name) for f in dataclasses.fields(self))
        return CellResult, fields

    def to_dict(self) -> dict[str, Any]:
        """The result as what JSON can hold; bytes in it are base64 text.

        A value that JSON cannot hold as it is (bytes, tuple, set, dates, dicts
        with other keys than text, nan, big nesting) is given by its ``repr``.
        """
        return {
            "ok": self.ok,
            "stdout": printable(self.stdout),
            "stderr": printable(self.stderr),
            "stdout_cut": self.stdout_cut,
            "stderr_cut": self.stderr_cut,
            "value": _json_value(self.value),
            "text": self.text,
            "displays": [_json_bundle(bundle) for bundle in self.displays],
            "exit_code": self.exit_code,
            "displays_cut": self.displays_cut,
            "error": _json_error(self.error),
            "usage": dataclasses.asdict(self.usage),
            "action_id": self.action_id,
            "sandbox_id": self.sandbox_id,
            "attempt": self.attempt,
            "files": {
                name: base64.b64encode(content).decode() for name, content in self.files.items()
            },
            "files_left": self.files_left,
        }

    def __repr__(self) -> str:
        parts = [
            f"{name}={_short(getattr(self, name))}"
            for name in ("stdout", "stderr", "value")
            if getattr(self, name) not in ("", None)
        ]
        if self.exit_code is not None:
            parts.append(f"exit_code={self.exit_code}")
        for name in ("files", "files_left"):
            if getattr(self, name):
                parts.append(f"{name}={_short(list(getattr(self, name)))}")
        if self.displays:
            parts.append(f"displays={len(self.displays)}")
        if self.displays_cut:
            parts.append(f"displays_cut={self.displays_cut}")
        if self.error is not None:
            parts.append(f"error={_short(str(self.error) or type(self.error).__name__)}")
        return f"CellResult({', '.join(parts)})"

    def __str__(self) -> str:
        """What a person at a terminal would have seen: output, value, traceback.

        Colours stay; what else would steer the terminal is left out.
        """
        parts = [self.stdout, self.stderr]
        parts += [str(b["text/plain"]) for b in self._shown() if "text/plain" in b]
        if self.error is not None:
            parts.append(getattr(self.error, "traceback", None) or _named(self.error))
        shown = "\n".join(part[:-1] if part.endswith("\n") else part for part in parts if part)
        return for_terminal(printable(shown))

    def _shown(self) -> list[Bundle]:
        """The displays, the value's text where no display holds it, and what is missing."""
        shown = list(self.displays)
        if self.text is not None and not any(b.get("text/plain") == self.text for b in shown[-1:]):
            shown.append({"text/plain": self.text})
        if self.displays_cut:
            shown.append({"text/plain": f"[… {self.displays_cut} bytes of displays cut …]"})
        return shown

    def _ipython_display_(self) -> None:
        """In a notebook: the output, then each display in its best form, then the error."""
        from IPython.display import display

        if self.stdout or self.stderr:
            text = "\n".join(part.rstrip("\n") for part in (self.stdout, self.stderr) if part)
            display({"text/plain": printable(text)}, raw=True)
        for bundle in self._shown():
            display(_json_bundle(bundle), raw=True)
        if self.error is not None:
            text = getattr(self.error, "traceback", None) or _named(self.error)
            display({"text/plain": printable(text)}, raw=True)


def _result_of(error: Any) -> Any:
    return error.result


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _repr(value: object) -> str:
    try:
        return repr(value)
    except ValueError:
        # An int of more digits than Python turns into text (sys.set_int_max_str_digits).
        return f"<{type(value).__name__} with too many digits to show>"


def _short(value: object) -> str:
    text = _repr(value)
    return text if len(text) <= 80 else text[:76] + "…" + text[-1]


def _json_bundle(bundle: Bundle) -> dict[str, Any]:
    return {
        mime: base64.b64encode(form).decode() if isinstance(form, bytes) else _json_form(form)
        for mime, form in bundle.items()
    }


def _json_form(form: Any) -> Any:
    return printable(form) if isinstance(form, str) else _json_value(form)


def _json_value(value: Any) -> Any:
    """The value itself where a file of JSON in UTF-8 gives it back the same, otherwise its repr."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
        if _json_types(value):
            return value
    except (TypeError, ValueError, RecursionError):
        pass
    return _repr(value)


def _json_types(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _json_types(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_json_types, value))
    return value is None or type(value) in (bool, int, float, str)


def _json_error(error: MentisPoolError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "name": type(error).__name__,
        "value": str(error),
        "traceback": None,
    }
    if isinstance(error, CellError):
        described.update(name=error.name, value=error.value, traceback=error.traceback)
    for name in ("signal", "exit_code", "timeout", "which", "limit", "used"):
        if getattr(error, name, None) is not None:
            described[name] = getattr(error, name)
    return described
