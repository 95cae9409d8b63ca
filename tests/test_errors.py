"""Every exception: what it is, what it says, and that it survives a pickle with its result."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import copy
import inspect
import pickle
import traceback

import pytest

from mentis_pool import errors
from mentis_pool.errors import (
    BrokenSandboxPool,
    CellError,
    CellTimeout,
    DeadlineExceeded,
    MentisPoolError,
    OutcomeUnknown,
    PayloadError,
    ProtocolError,
    QueueFull,
    QueueTimeout,
    ResourceLimitExceeded,
    RuntimeRejected,
    RuntimeUnavailable,
    SandboxDied,
    SandboxError,
    StateLost,
    cell_error,
    cell_error_class,
    in_words,
    limit_told,
)
from mentis_pool.results import CellResult, Usage
from mentis_pool.text import for_terminal

BUILTIN = sorted(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
)
# These mean something to whoever waits for a future, or are no Exception at all.
PLAIN = {
    "BaseException",
    "BaseExceptionGroup",
    "Exception",
    "ExceptionGroup",
    "GeneratorExit",
    "KeyboardInterrupt",
    "StopIteration",
    "SystemExit",
}

MADE = [
    MentisPoolError("what happened"),
    cell_error("ValueError", "bad", "Traceback (most recent call last):\n"),
    cell_error("Own", "", ""),
    CellTimeout("too long", 1.5),
    CellTimeout(),
    QueueTimeout("waited"),
    DeadlineExceeded("late"),
    StateLost("replaced"),
    QueueFull("full"),
    SandboxError("failed", "s1"),
    SandboxDied("killed", "s1", signal=9),
    SandboxDied("exited", None, exit_code=0),
    ResourceLimitExceeded("memory", 512 << 20, 600 << 20, "s1"),
    ResourceLimitExceeded("disk", 100),
    limit_told("memory", 512 << 20, "s1", cell_error("MemoryError", "", "Traceback")),
    limit_told("memory", 100, None, cell_error("_ArrayMemoryError", "no", "Traceback", False)),
    OutcomeUnknown("gone", "s1"),
    RuntimeUnavailable("none"),
    RuntimeRejected("no"),
    ProtocolError("what?", b"\xff" * 5000),
    ProtocolError("what?"),
    PayloadError("x"),
    BrokenSandboxPool("broken"),
    BrokenSandboxPool("broken", "Traceback", "said"),
]


def picture(error):
    """An error as what is equal for equal ones."""
    state = {k: v for k, v in vars(error).items() if k != "result"}
    if isinstance(error, CellError):
        state["name"] = error.name
    return type(error), error.args, state, error.result, str(error), repr(error)


def with_result(error):
    """The error as the outcome of a task, as `task.outcome` makes it."""
    error = copy.copy(error)
    error.result = CellResult(
        stdout="out", value=[1], usage=Usage(1.0), action_id="a", attempt=2, error=error
    )
    return error


copies = pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        *(
            lambda value, p=p: pickle.loads(pickle.dumps(value, p))
            for p in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
    ids=["copy", "deepcopy", *(f"pickle{p}" for p in range(pickle.HIGHEST_PROTOCOL + 1))],
)
each = pytest.mark.parametrize("error", MADE, ids=lambda e: type(e).__name__)


def test_these_are_all_the_errors():
    defined = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, BaseException)
        if not issubclass(value, Warning)
        if value.__module__ == errors.__name__
    }
    assert defined - {MentisPoolError} <= {base for e in MADE for base in type(e).__mro__}
    assert all(issubclass(cls, MentisPoolError) for cls in defined)


@each
def test_every_error_is_in_the_docstring_tree(error):
    for cls in type(error).__mro__:
        if cls.__module__ == errors.__name__ and "_made_for" not in vars(cls):
            assert cls.__name__ in errors.__doc__


def test_some_errors_are_of_the_standard_library_too():
    assert isinstance(CellTimeout(), TimeoutError)
    assert isinstance(BrokenSandboxPool(), concurrent.futures.BrokenExecutor)
    assert isinstance(PayloadError(), pickle.PicklingError)
    assert issubclass(SandboxDied, SandboxError)
    assert issubclass(OutcomeUnknown, SandboxError)
    assert not issubclass(CellTimeout, SandboxError)


@each
@copies
def test_every_error_is_equal_after_a_pickle(error, copied):
    assert picture(copied(error)) == picture(error)


@each
@copies
def test_the_result_travels_with_its_error(error, copied):
    error = with_result(error)
    back = copied(error)
    assert picture(back) == picture(error)
    assert back.result.error is back
    assert back.result.value == [1]
    assert error.result.error is error, "the copy changes nothing"


@each
@copies
def test_the_error_travels_with_its_result(error, copied):
    result = with_result(error).result
    back = copied(result)
    assert back == result
    if copied is not copy.copy:
        assert back.error is not result.error
    assert back.error.result is back
    assert picture(back.error) == picture(result.error)


@each
@pytest.mark.parametrize("order", [1, -1])
def test_error_and_result_travel_together_and_stay_one_pair(error, order):
    error = with_result(error)
    pair = [error, error.result][::order]
    error, result = pickle.loads(pickle.dumps(pair))[::order]
    assert error.result is result
    assert result.error is error


def test_an_error_of_another_result_stays_with_it():
    error = with_result(CellTimeout("too long", 2.0))
    other = CellResult(stdout="other", error=error)
    back = pickle.loads(pickle.dumps(other))
    assert back.stdout == "other"
    assert back.error.result.stdout == "out"


def test_notes_travel():
    error = CellTimeout("too long", 2.0)
    error.__dict__["__notes__"] = ["while testing"]
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while testing"]


@pytest.mark.parametrize(
    ("status", "passing"), [(None, False), (404, False), (429, True), (503, True)]
)
def test_a_refusal_may_be_a_passing_one(status, passing):
    error = RuntimeRejected("no")
    error.status = status
    assert error.passing is passing


def test_that_no_runtime_is_there_may_pass_unless_it_says_otherwise():
    error = RuntimeUnavailable("none")
    assert error.passing
    error.passing = False
    assert not pickle.loads(pickle.dumps(error)).passing


def test_an_error_of_a_subclass_travels_as_such():
    back = pickle.loads(pickle.dumps(OwnError("what", "s2")))
    assert type(back) is OwnError
    assert (str(back), back.sandbox_id) == ("what", "s2")


class OwnError(SandboxError):
    pass


# ── what a cell raised ──────────────────────────────────────────────────────


@pytest.mark.parametrize("name", BUILTIN)
def test_an_error_of_a_cell_is_also_the_builtin_one(name):
    error = cell_error(name, "its text", "its traceback")
    assert isinstance(error, CellError)
    if name in PLAIN:
        assert type(error) is CellError
    else:
        assert isinstance(error, getattr(builtins, name))
        with pytest.raises(getattr(builtins, name)):
            raise error
    assert isinstance(error, Exception)
    assert not isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration))


@pytest.mark.parametrize("name", BUILTIN)
def test_an_error_of_a_cell_says_what_the_cell_said(name):
    error = cell_error(name, "its text", "its traceback")
    assert (error.name, error.value, error.traceback) == (name, "its text", "its traceback")
    assert error.result is None
    assert str(error) == f"{name}: its text"
    assert repr(error) == f"<CellError {name}: its text>"
    assert type(error).__name__ == "CellError"
    assert str(cell_error(name, "", "")) == name


@pytest.mark.parametrize("name", BUILTIN)
@copies
def test_an_error_of_a_cell_is_the_same_after_a_pickle(name, copied):
    error = with_result(cell_error(name, "its text\udcff", "its traceback"))
    back = copied(error)
    assert (back.name, back.value, back.traceback) == (name, "its text\udcff", "its traceback")
    assert back.args == error.args
    assert (str(back), repr(back)) == (str(error), repr(error))
    assert back.result.error is back
    if getattr(builtins, name).__name__ == name:  # not IOError, another name of OSError
        assert type(back) is type(error)
    if name not in PLAIN:
        assert isinstance(back, getattr(builtins, name))


@pytest.mark.parametrize("name", BUILTIN)
def test_an_uncaught_error_of_a_cell_is_printed_with_its_text(name):
    # traceback has ways of its own for SyntaxError, NameError, ImportError and others.
    error = cell_error(name, "its text", "its traceback")
    shown = "".join(traceback.format_exception(type(error), error, None))
    assert "its text" in shown
    assert "Did you mean" not in shown


STEERS = "red \x1b[31mtext\x1b[0m\x1b]0;title\x07\x1b[2J"
SHOWN = "red \x1b[31mtext\x1b[0m"


@pytest.mark.parametrize("name", [*BUILTIN, "Own\x1b[2J"])
def test_an_uncaught_error_of_a_cell_does_not_steer_the_terminal(name):
    error = cell_error(name, STEERS, "")
    printed = "".join(traceback.format_exception(type(error), error, None))
    assert SHOWN in printed
    assert "\x07" not in printed
    assert "\x1b[2J" not in printed
    # What it is called and says is there as it was.
    assert (error.name, error.value) == (name, STEERS)


@pytest.mark.parametrize(
    "kind",
    [MentisPoolError, SandboxDied, PayloadError, ProtocolError, BrokenSandboxPool, RuntimeRejected],
)
def test_what_an_error_says_does_not_steer_the_terminal(kind):
    assert str(kind(STEERS)) == SHOWN
    assert repr(kind(STEERS)).isprintable()


def test_no_constructor_of_a_builtin_is_called():
    # That of UnicodeDecodeError wants five arguments, that of OSError would fill errno.
    assert str(cell_error("UnicodeDecodeError", "bad byte", "")) == "UnicodeDecodeError: bad byte"
    error = cell_error("OSError", "2", "")
    assert error.errno is None
    assert error.strerror is None
    assert cell_error("SyntaxError", "text", "").filename is None


@pytest.mark.parametrize(
    "name",
    [
        "CancelledError",
        "asyncio.CancelledError",
        "NoSuchError",
        "",
        "print",
        "int",
        "object",
        "type",
        "__loader__",
        "__class__",
        "__name__",
        "True",
        "CellError",
        "valueerror",
        "ValueError ",
        "builtins.ValueError",
        "\udcff",
        "a\0b",
        "x" * 10_000,
    ],
    ids=repr,
)
def test_any_other_name_is_a_plain_error(name):
    error = cell_error(name, "value", "")
    assert type(error) is CellError
    assert error.name == name
    assert str(error) == for_terminal(f"{name}: value")
    assert pickle.loads(pickle.dumps(error)).name == name


def test_a_cancelled_cell_is_no_cancelled_future():
    error = cell_error("CancelledError", "", "")
    assert not isinstance(error, (concurrent.futures.CancelledError, asyncio.CancelledError))


def test_the_same_name_is_the_same_class():
    assert cell_error_class("KeyError") is cell_error_class("KeyError")
    assert issubclass(cell_error_class("KeyError"), LookupError)
    assert cell_error_class("Exception") is CellError


def test_a_class_that_was_forgotten_is_made_again():
    error = cell_error("KeyError", "k", "")
    for i in range(1000):
        cell_error(f"Unknown{i}", "", "")
    with pytest.raises(KeyError):
        raise pickle.loads(pickle.dumps(error))


def test_its_args_are_what_the_exceptions_own_would_be():
    assert cell_error("ValueError", "bad", "").args == ("bad",)
    assert cell_error("ValueError", "", "").args == ()
    for key in ("x", "it's", "é ", "", 3, 10**50):
        assert cell_error("KeyError", repr(key), "").args == (key,)


@pytest.mark.parametrize(
    "text", ["<object object at 0x1>", "x", "'", "01", "٣", "9" * 100, "'\\udcff'", "('a', None)"]
)
def test_a_key_that_is_neither_a_plain_str_nor_an_int_is_its_text(text):
    assert cell_error("KeyError", text, "").args == (text,)


@pytest.mark.parametrize("name", BUILTIN)
def test_another_one_like_it_says_the_same(name):
    error = cell_error(name, "'its text'", "its traceback")
    again = type(error)(*error.args)
    assert type(again) is type(error)
    assert again.args == error.args
    assert again.value == error.value
    own = "CellError" if name in PLAIN else getattr(builtins, name).__name__
    assert str(again) == f"{own}: {error.value}"
    assert again.traceback == ""
    more = type(error)(f"here: {error}")
    assert f"here: {error}" in "".join(traceback.format_exception(type(more), more, None))
    assert str(pickle.loads(pickle.dumps(more))) == str(more)


# ── what the others say ─────────────────────────────────────────────────────


def test_a_timeout_names_its_seconds():
    error = CellTimeout("the cell ran for more than 1.5 s", 1.5)
    assert str(error) == "the cell ran for more than 1.5 s"
    assert error.timeout == 1.5
    assert str(CellTimeout()) == ""
    bare = CellTimeout.__new__(CellTimeout)
    bare.args = ()
    assert str(bare) == ""


def test_a_death_names_its_cause():
    error = SandboxDied("killed by SIGKILL", "s1", signal=9)
    assert (str(error), error.sandbox_id) == ("killed by SIGKILL", "s1")
    assert (error.signal, error.exit_code) == (9, None)
    assert SandboxDied("x", exit_code=3).exit_code == 3


def test_a_broken_protocol_shows_the_first_kilobyte():
    error = ProtocolError("not a frame", b"ab" * 5000)
    assert str(error) == "not a frame"
    assert error.payload == (b"ab" * 5000)[:1024]
    assert ProtocolError("no bytes").payload == b""


class Mute(Exception):
    def __str__(self):
        raise KeyboardInterrupt


def test_any_exception_can_be_put_in_words():
    assert in_words(ValueError("not me")) == "ValueError: not me"
    assert in_words(KeyError()) == "KeyError"
    assert in_words(Mute("x")) == "Mute"
    assert in_words(OSError("x" * 5000)) == "OSError: " + "x" * 991


def test_no_error_has_a_result_of_its_own():
    assert all(inspect.getattr_static(type(e), "result", None) is None for e in MADE)
    assert MentisPoolError().result is None


# ── limits ──────────────────────────────────────────────────────────────────


def test_a_limit_that_the_cell_was_told_of_is_what_it_was_told_as_well():
    error = limit_told("memory", 512 << 20, "s1", cell_error("MemoryError", "", "Traceback…"))
    assert isinstance(error, ResourceLimitExceeded)
    assert isinstance(error, CellError)
    assert isinstance(error, MemoryError)
    assert (error.which, error.limit, error.used) == ("memory", 512 << 20, None)
    assert (error.name, error.traceback, error.sandbox_id) == ("MemoryError", "Traceback…", "s1")
    assert str(error).startswith("MemoryError (")
    assert "Limits(memory=" in str(error)
    assert repr(error).startswith("<ResourceLimitExceeded MemoryError")


def test_one_that_a_class_of_the_cells_own_told_of_is_no_builtin():
    told = cell_error("MemoryError", "mine", "", builtin=False)
    error = limit_told("memory", 100, None, told)
    assert isinstance(error, ResourceLimitExceeded)
    assert not isinstance(error, MemoryError)


def test_a_limit_is_named_with_what_was_used_and_how_to_allow_more():
    error = ResourceLimitExceeded("memory", 512 << 20, 600 << 20, "s1")
    assert (error.which, error.limit, error.used, error.sandbox_id) == (
        "memory",
        512 << 20,
        600 << 20,
        "s1",
    )
    for part in ("600 MiB", "512 MiB", "SandboxExecutor(limits=Limits(memory=…))"):
        assert part in str(error)
    assert not isinstance(error, CellError)
