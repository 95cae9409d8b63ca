"""Every exception of the library.

::

    MentisPoolError
    ├─ CellError            the cell raised; the sandbox is fine
    ├─ SandboxError         the sandbox failed; the cell may be innocent
    │   ├─ SandboxDied
    │   ├─ ResourceLimitExceeded  (also CellError, where the cell was told by an exception)
    │   └─ OutcomeUnknown
    ├─ CellTimeout          it ran for too long (also TimeoutError)
    ├─ QueueTimeout         it waited for too long (also TimeoutError)
    ├─ DeadlineExceeded     both together took too long (also TimeoutError)
    ├─ StateLost            the sandbox of its session was replaced
    ├─ QueueFull            too many wait (also queue.Full)
    ├─ RuntimeUnavailable
    ├─ RuntimeRejected
    ├─ ProtocolError        the other side broke the protocol
    ├─ PayloadError         something cannot travel, or may not be rebuilt (also pickle.PicklingError)
    └─ BrokenSandboxPool    (also concurrent.futures.BrokenExecutor)

And one warning: IsolationWarning.

Each can be pickled. One that is the outcome of a task carries what the task gave
until then as ``result``. What they say as text may come from a sandbox, and is shown on terminals
unasked, where nobody catches them: of control characters and escape sequences it has colours only.
"""

from __future__ import annotations

import builtins
import queue
from concurrent.futures import BrokenExecutor
from functools import cache
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, TypeVar

from mentis_pool.limits import Which, message
from mentis_pool.text import for_terminal

if TYPE_CHECKING:
    from mentis_pool.results import CellResult


class IsolationWarning(UserWarning):
    """Sandboxes are not isolated as well as they can be; what is not held, and the remedy."""


class MentisPoolError(Exception):
    """Base of everything that the library raises of its own.

    Attributes:
        result: where the error is the outcome of a task, all that the task
            gave until then; otherwise None.
    """

    result: CellResult | None = None

    def __str__(self) -> str:
        return for_terminal(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(self.__dict__)
        if isinstance(self, CellError):
            # ImportError, NameError and others keep `name` outside the instance's dict.
            state["name"] = self.name
        if isinstance(self, SyntaxError):
            state["msg"] = self.msg
        result = state.pop("result", None)
        if result is not None:
            # Error and result point at each other: the copy is joined again in `_rebuild`.
            state["result"] = result.without_error()
        return _rebuild, (_plain_class(type(self)), self.args, state)


def _plain_class(cls: type[MentisPoolError]) -> type[MentisPoolError] | str:
    """How a class travels in a pickle: the made ones (`cell_error_class`) by their builtin's name."""
    made_for: str | None = cls.__dict__.get("_made_for")
    return cls if made_for is None else made_for


def _rebuild(
    cls: type[MentisPoolError] | str, args: tuple[Any, ...], state: dict[str, Any]
) -> MentisPoolError:
    if isinstance(cls, str):
        cls = cell_error_class(cls, limited="which" in state)
    error = _new(cls)
    error.args = args
    for name in state.keys() - {"result"}:
        setattr(error, name, state[name])
    result = state.get("result")
    if result is not None:
        error.result = result.with_error(error)
    return error


class CellError(MentisPoolError):
    """The cell raised an exception.

    When that was a builtin subclass of Exception, this is an instance of it
    too, so ``except ZeroDivisionError`` works. StopIteration, exception groups,
    CancelledError, SystemExit and KeyboardInterrupt are left out: they mean
    something to whoever waits for a future.

    Attributes:
        name: the exception's class name, as the cell knew it.
        value: its text.
        traceback: as Python prints it, with the cell's own lines.
        result: `CellResult` with all that the cell gave until then.
    """

    name: str
    value: str
    traceback: str

    def __init__(self, *args: object) -> None:
        """Of whoever makes one like it, as ``type(error)(*error.args)``; a cell's is never called."""
        self.args = args
        self.name = getattr(type(self), "_made_for", type(self).__name__)
        self.value = (KeyError if isinstance(self, KeyError) else BaseException).__str__(self)
        self.traceback = ""
        if isinstance(self, SyntaxError):
            self.msg = self.value

    def __str__(self) -> str:
        return for_terminal(f"{self.name}: {self.value}" if self.value else self.name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


def cell_error(name: str, value: str, traceback: str, builtin: bool = True) -> CellError:
    """Make the `CellError` for an exception called ``name`` in the cell.

    Without ``builtin`` it is an instance of no other class, whatever its name.
    """
    error = _new(cell_error_class(name) if builtin else CellError)
    error.args = (_key(value) if isinstance(error, KeyError) else value,) if value else ()
    error.name, error.value, error.traceback = name, value, traceback
    if isinstance(error, SyntaxError):
        # What Python prints of an uncaught one.
        error.msg = for_terminal(value)
    return error


def _key(text: str) -> str | int:
    """The key that a KeyError says is missing, where that is a plain str or int; otherwise its text."""
    key = int(text) if text.isdecimal() and len(text) < 100 else text[1:-1]
    return key if repr(key) == text else text


E = TypeVar("E", bound=MentisPoolError)


def _new(cls: type[E]) -> E:
    """An instance, without the constructor of a builtin.

    Its arguments are not known here, and several (UnicodeDecodeError, …) insist
    on theirs.
    """
    try:
        return cls.__new__(cls)
    except TypeError:
        # MemoryError's own __new__ is for itself only.
        return BaseException.__new__(cls)


# These mean something to whoever waits for a future.
_PLAIN = ("StopIteration", "ExceptionGroup", "BaseExceptionGroup")


def cell_error_class(name: str, limited: bool = False) -> type[CellError]:
    """`CellError`, or its subclass that is also the builtin exception ``name``.

    One that is ``limited`` is a `ResourceLimitExceeded` as well.
    """
    builtin = getattr(builtins, name, None)
    if (
        not isinstance(builtin, type)
        or not issubclass(builtin, Exception)
        or name in _PLAIN
        or builtin is Exception
    ):
        builtin = None
    if limited:
        bases: tuple[type, ...] = (ResourceLimitExceeded, CellError)
    elif builtin is None:
        return CellError
    else:
        bases = (CellError,)
    return _class_of(bases if builtin is None else (*bases, builtin))


@cache
def _class_of(bases: tuple[type, ...]) -> type[CellError]:
    return type(bases[0].__name__, bases, {"_made_for": bases[-1].__name__})


class CellTimeout(MentisPoolError, TimeoutError):
    """It ran for longer than its ``timeout`` (seconds); ``result`` is partial."""

    def __init__(self, message: str = "", timeout: float | None = None) -> None:
        super().__init__(message)
        self.timeout = timeout

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class QueueTimeout(MentisPoolError, TimeoutError):
    """It did not begin within its ``queue_timeout``, and was not run."""


class DeadlineExceeded(MentisPoolError, TimeoutError):
    """It was not done within its ``deadline``, which counts from its submission."""


class StateLost(MentisPoolError):
    """The session's sandbox was replaced: what earlier cells left in it is gone.

    It stands in the place of the next result; what is submitted after it finds a new sandbox.
    """


class QueueFull(MentisPoolError, queue.Full):
    """As many tasks wait, or sessions are open, as there may be."""


class SandboxError(MentisPoolError):
    """The sandbox failed; the cell may be innocent.

    Attributes:
        sandbox_id: the sandbox it was, or None when there was none yet.
    """

    def __init__(self, message: str = "", sandbox_id: str | None = None) -> None:
        super().__init__(message)
        self.sandbox_id = sandbox_id


class SandboxDied(SandboxError):
    """The process that ran the cell died before it gave a result.

    Attributes:
        signal: number of the signal that killed it, or None.
        exit_code: its exit code, or None.
    """

    def __init__(
        self,
        message: str = "",
        sandbox_id: str | None = None,
        signal: int | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message, sandbox_id)
        self.signal = signal
        self.exit_code = exit_code


class ResourceLimitExceeded(SandboxError):
    """The task used more than it may: the message says of what, and how to allow it more.

    Where an exception told the cell so, and the cell did not handle it (a MemoryError, an
    OSError: no space left), this is a `CellError` of that exception too.

    Attributes:
        which: the limit, as `Limits` names it.
        limit: what it is, in the same unit.
        used: what was measured; None where the system said no to what would have been more.
    """

    which: Which
    limit: float
    used: float | None

    def __init__(
        self,
        which: Which,
        limit: float,
        used: float | None = None,
        sandbox_id: str | None = None,
    ) -> None:
        super().__init__(message(which, limit, used), sandbox_id)
        self.which, self.limit, self.used = which, limit, used

    def __str__(self) -> str:
        if isinstance(self, CellError):
            return f"{CellError.__str__(self)} ({message(self.which, self.limit, self.used)})"
        return super().__str__()


def limit_told(which: Which, limit: float, sandbox_id: str | None, told: CellError) -> CellError:
    """The `CellError` that told the cell of a limit, as a `ResourceLimitExceeded` as well."""
    # A class that the cell made is no builtin, whatever its name.
    name = "" if type(told) is CellError else told.name
    error = _new(cell_error_class(name, limited=True))
    error.args = told.args
    vars(error).update(vars(told), which=which, limit=limit, used=None, sandbox_id=sandbox_id)
    error.name = told.name
    return error


class OutcomeUnknown(SandboxError):
    """The task was sent, but what became of it was not heard."""


class RuntimeUnavailable(MentisPoolError):
    """No runtime could be started or reached, after all retries: its last words, and what to do."""

    passing = True
    """Whether another try may do better."""


class RuntimeRejected(MentisPoolError):
    """The runtime answered, and refused; ``status`` is the HTTP status, where there was one."""

    status: int | None = None

    @property
    def passing(self) -> bool:
        """Whether it says that another try may do better: HTTP 429, 502, 503 and 504 do."""
        return self.status in (429, 502, 503, 504)


class ProtocolError(MentisPoolError):
    """The other side broke the protocol; ``payload`` is what it sent (cut to 1 kB)."""

    def __init__(self, message: str, payload: bytes = b"") -> None:
        super().__init__(message, payload[:1024])
        self.payload = payload[:1024]

    def __str__(self) -> str:
        return for_terminal(str(self.args[0]))


class PayloadError(MentisPoolError, PicklingError):
    """Something cannot travel to a sandbox or back, or may not be rebuilt here.

    The message names what it is and, where trust is missing, the remedy.
    """


class BrokenSandboxPool(MentisPoolError, BrokenExecutor):
    """The executor cannot go on; no further task is taken.

    Attributes:
        traceback: of what its initializer raised, as text; otherwise empty.
        output: what that wrote before.
    """

    def __init__(self, message: str = "", traceback: str = "", output: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback
        self.output = output


def in_words(exc: BaseException) -> str:
    """An exception's name and what it says, in at most 1000 characters, for another's message."""
    name = type(exc).__name__
    try:
        said = str(exc)
    except BaseException:  # noqa: BLE001 - its __str__ is anybody's code
        return name
    return f"{name}: {said}"[:1000] if said else name
