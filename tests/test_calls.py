"""Calls through all of it, in the embedded runtime: what travels, what comes back, what is kept."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import enum
import functools
import importlib
import itertools
import operator
import os
import pickle
import signal
import string
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

import family
import pytest
from forged import Ask, cls, forge

import mentis_pool
from mentis_pool import (
    BrokenSandboxPool,
    CallFuture,
    CellTimeout,
    End,
    MentisPoolError,
    PayloadError,
    Result,
    SandboxDied,
    SandboxExecutor,
    Start,
    Stream,
)


@pytest.fixture(scope="module")
def executor():
    """Its workers have this module as soon as they are there, also those after one that died."""
    with SandboxExecutor(2, timeout=60, preload=[__name__]) as executor:
        yield executor


# ── what can be called ──────────────────────────────────────────────────────


def add(a, b=1):
    return a + b


def closure(by):
    def times(a):
        return a * by

    return times


@functools.lru_cache
def cached(a):
    return a + 1


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __eq__(self, other):
        return type(other) is Point and (other.x, other.y) == (self.x, self.y)

    def __hash__(self):
        return hash((self.x, self.y))

    def __call__(self, by):
        return Point(self.x * by, self.y * by)

    def moved(self, by):
        return Point(self.x + by, self.y + by)

    @classmethod
    def on_the_line(cls, x):
        return cls(x, x)

    @staticmethod
    def name_of(x):
        return f"point {x}"

    class Inner:
        pass


@pytest.mark.parametrize(
    ("fn", "args", "value"),
    [
        (add, (1,), 2), (add, (1, 2), 3), (len, ("abc",), 3), ("a-b".split, ("-",), ["a", "b"]),
        (str.upper, ("a",), "A"), (int, ("7",), 7), (print, (), None), (cached, (1,), 2),
        (lambda a: a + 1, (1,), 2), (closure(3), (2,), 6),
        (functools.partial(add, b=5), (1,), 6), (functools.partial(lambda a, b: a - b, 5), (1,), 4),
        (operator.itemgetter(1), ("ab",), "b"), (operator.methodcaller("upper"), ("a",), "A"),
        (Point, (1, 2), Point(1, 2)), (Point(1, 2).moved, (1,), Point(2, 3)),
        (Point(1, 2), (2,), Point(2, 4)), (Point.on_the_line, (1,), Point(1, 1)),
        (Point.name_of, (1,), "point 1"), ([1, 2].count, (1,), 1),
        (functools.reduce, (lambda a, b: a * b, [1, 2, 3]), 6),
    ],
)  # fmt: skip
def test_whatever_is_callable_is_called(executor, fn, args, value):
    future = executor.submit(fn, *args)
    assert isinstance(future, CallFuture)
    assert future.result() == value


def test_arguments_may_have_any_name(executor):
    assert executor.submit(dict, fn=1, self=2, cell=3, timeout=4).result() == {
        "fn": 1, "self": 2, "cell": 3, "timeout": 4,
    }  # fmt: skip


def test_a_class_of_a_function_comes_back_as_itself(executor):
    @dataclasses.dataclass
    class Local:
        of: int

    class Colour(enum.Enum):
        RED = 1

    assert executor.submit(lambda a: Local(a.of + 1), Local(1)).result() == Local(2)
    assert executor.submit(lambda: [Colour.RED, Local]).result() == [Colour.RED, Local]
    assert executor.submit(lambda: Colour.RED).result() is Colour.RED
    assert type(executor.submit(Local, 1).result()) is Local


def make_class(of):
    class Made:
        def of(self):
            return of

    return Made


def test_classes_of_one_name_are_not_mistaken_for_each_other(executor):
    first, second = make_class(1), make_class(2)
    found = executor.submit(lambda: [(first().of(), first()), (second().of(), second())]).result()
    assert [(of, type(each)) for of, each in found] == [(1, first), (2, second)]
    assert type(executor.submit(lambda: second()).result()) is second


def test_a_function_that_was_changed_is_the_new_one(executor):
    for by in (1, 2):
        space = {}
        exec(f"def changed(a): return a + {by}", space)
        assert executor.submit(space["changed"], 1).result() == 1 + by


SCRIPT = """
import collections, dataclasses, enum, functools, os, sys
import {modules}
from mentis_pool import SandboxExecutor

LIMIT = 7

def function(a):
    return other(a) + LIMIT

def other(a):
    return a * 2

@dataclasses.dataclass
class Data:
    a: int
    def twice(self):
        return Data(self.a * 2)

class Colour(enum.Enum):
    RED = 1

Pair = collections.namedtuple("Pair", "a b")

class OwnError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{{first}} and {{second}}")
        self.first = first

def fails():
    raise OwnError(1, 2)

executor = SandboxExecutor(2)
assert executor.submit(function, 1).result() == 9
assert list(executor.map(function, range(3))) == [7, 9, 11]
assert executor.submit(lambda: LIMIT).result() == 7
assert executor.submit(functools.partial(function, 2)).result() == 11
assert executor.submit(Data(1).twice).result() == Data(2)
assert executor.submit(lambda: Colour.RED).result() is Colour.RED
assert executor.submit(Pair, 1, 2).result() == Pair(1, 2)
assert type(executor.submit(lambda x: x, Pair(1, 2)).result()) is Pair
try:
    executor.submit(fails).result()
except OwnError as exc:
    assert (str(exc), exc.first) == ("1 and 2", 1)
for module in {modules},:
    assert executor.submit(module.function, 1).result() == 2
    assert executor.submit(module.Class, 1).result() == module.Class(1)
    assert executor.submit(lambda m: m.Class(3), module).result() == module.Class(3)
executor.shutdown()
print("done", __name__)
"""

MODULE = """
import dataclasses

def function(a):
    return a + 1

@dataclasses.dataclass
class Class:
    a: int
"""


def run_script(arguments, cwd, **more):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("how", ["file", "stdin", "module"])
def test_functions_and_classes_of_a_script_travel_and_come_back(tmp_path, how):
    """No ``if __name__ == "__main__":`` is needed: nobody imports it again."""
    (tmp_path / "in_cwd.py").write_text(MODULE)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "on_path.py").write_text(MODULE)
    script = f"import sys; sys.path.append({str(tmp_path / 'elsewhere')!r})\n" + SCRIPT.format(
        modules="in_cwd, on_path"
    )
    (tmp_path / "script.py").write_text(script)
    arguments = {"file": ["script.py"], "stdin": ["-"], "module": ["-m", "script"]}[how]
    said = run_script(arguments, tmp_path, input=script)
    assert said == "done __main__\n"


def test_the_working_directory_is_importable_where_the_script_is_elsewhere(tmp_path):
    (tmp_path / "in_cwd.py").write_text(MODULE)
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "script.py"
    script.write_text(
        "from mentis_pool import SandboxExecutor\n"
        "def late():\n    import in_cwd\n    return in_cwd.function(1)\n"
        "with SandboxExecutor(1) as executor:\n    print(executor.submit(late).result())\n"
    )
    assert run_script([str(script)], tmp_path) == "2\n"


def test_a_module_of_a_directory_that_is_new_in_sys_path_travels(executor, shown, monkeypatch):
    executor.submit(int).result()
    (shown / "came_late.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(shown))
    import came_late

    assert executor.submit(came_late.function, 1).result() == 2
    assert executor.submit(came_late.Class, 1).result() == came_late.Class(1)


# ── large ───────────────────────────────────────────────────────────────────


def test_fifty_megabytes_go_and_come_back_exactly(executor):
    content = os.urandom(50_000_000)
    assert executor.submit(bytes, content).result() == content
    assert executor.submit(operator.mul, b"ab", 25_000_000).result() == b"ab" * 25_000_000
    assert executor.submit(len, content).result() == 50_000_000


def test_an_exception_may_be_as_large_as_a_result(executor):
    exc = executor.submit(lambda: raise_(ValueError(b"x" * (65 << 20)))).exception()
    assert exc.args == (b"x" * (65 << 20),)


# Sends one part after the other, as no call does.
ENDLESS = """
import sys
frame = sys._getframe()
while "_part" not in dir(frame.f_locals.get("self")):
    frame = frame.f_back
while True:
    frame.f_locals["self"]._part(bytes(1 << 16))
"""


def test_what_a_call_gives_is_bounded_by_max_result():
    with SandboxExecutor(1, max_result=1_000_000, retries=0) as executor:
        assert executor.submit(bytes, 900_000).result() == bytes(900_000)
        pid = executor.submit(os.getpid).result()
        large = r"1000\d\d\d bytes, over the limit of 1000000: SandboxExecutor\(max_result=…\) allows more"
        with pytest.raises(PayloadError, match=f"^the result has {large}; or write it to a file"):
            executor.submit(bytes, 1_000_000).result()
        with pytest.raises(PayloadError, match=f"^the exception has {large}"):
            executor.submit(lambda: raise_(ValueError(b"x" * 1_000_000))).result()
        # Its process has done nothing wrong.
        assert executor.submit(os.getpid).result() == pid
        with pytest.raises(PayloadError, match="the result has more than 1000000 bytes: Sand"):
            executor.submit(exec, ENDLESS, {}).result()
        assert executor.submit(abs, -1).result() == 1


# Whoever was to look at its size does not any more.
UNBOUNDED = """
from mentis_pool.runtime import calls
calls._bounded = lambda what, pickled, work: pickled
calls.PART = 1 << 40
"""


def test_what_a_hostile_call_gives_in_one_message_is_bounded_as_well():
    with SandboxExecutor(1, max_result=1_000_000, retries=0) as executor:
        executor.submit(exec, UNBOUNDED, {}).result()
        assert len(executor.submit(bytes, 900_000).result()) == 900_000
        with pytest.raises(PayloadError, match="the result has more than 1000000 bytes"):
            executor.submit(bytes, 2_000_000).result()
        assert executor.submit(abs, -1).result() == 1


def test_what_a_chunk_gives_is_bounded_together():
    with SandboxExecutor(1, max_result=1000) as executor:
        assert len(list(executor.map(bytes, [100] * 20))) == 20
        with pytest.raises(PayloadError, match="a smaller chunksize makes less of it"):
            list(executor.map(bytes, [100] * 20, chunksize=20))


def test_max_result_is_a_number_of_bytes_or_none():
    for wrong in (0, -1, 1.5, "1", 1 << 63):
        with pytest.raises((ValueError, TypeError), match="max_result"):
            SandboxExecutor(1, max_result=wrong)
    with SandboxExecutor(1, max_result=None) as executor:
        assert len(executor.submit(bytes, 2_000_000).result()) == 2_000_000


def test_large_arrays_go_and_come_back(executor):
    import numpy as np

    array = np.arange(1_250_000, dtype=np.float64)
    assert np.array_equal(executor.submit(np.negative, array).result(), -array)


# ── output ──────────────────────────────────────────────────────────────────


def speak(text):
    print(text)
    print("to stderr", text, file=sys.stderr)
    os.write(1, b"written\n")
    return text


def test_what_a_call_prints_is_kept_with_its_future(executor):
    futures = [executor.submit(speak, str(i)) for i in range(20)]
    for i, future in enumerate(futures):
        assert future.result() == str(i)
        assert sorted(future.stdout.splitlines()) == sorted([str(i), "written"])
        assert future.stderr == f"to stderr {i}\n"


def test_the_observations_of_a_call_are_as_of_a_cell(executor):
    future = executor.submit(speak, "hi")
    said = list(future.observations())
    assert isinstance(said[0], Start)
    assert isinstance(said[-1], End)
    assert isinstance(said[-2], Result)
    assert b"".join(
        o.data for o in said if isinstance(o, Stream) and o.stream == "stderr"
    ) == b"to stderr hi\n"  # fmt: skip
    assert list(future.observations()) == said


def step(path):
    print("before", flush=True)
    while not os.path.exists(path):
        time.sleep(0.01)
    print("after")


def test_the_output_of_a_call_streams(executor, shown):
    pieces = []
    heard = threading.Event()

    def listen(piece):
        pieces.append(piece.text)
        heard.set()

    future = executor.options(on_output=listen).submit(step, str(shown / "go"))
    assert heard.wait(10)
    assert pieces == ["before\n"]
    assert future.stdout == "before\n"
    assert future.running()
    (shown / "go").touch()
    assert future.result() is None
    assert "".join(pieces) == future.stdout == "before\nafter\n"


def test_a_call_that_fails_has_its_output_as_well(executor):
    def noisy():
        print("so far")
        raise KeyError("k")

    def dies():
        print("so far", flush=True)
        os._exit(3)

    future = executor.submit(noisy)
    assert isinstance(future.exception(), KeyError)
    assert future.stdout == "so far\n"
    future = executor.submit(dies)
    assert isinstance(future.exception(), SandboxDied)
    assert future.exception().exit_code == 3
    assert future.exception().result.stdout == future.stdout == "so far\n"


# ── exceptions ──────────────────────────────────────────────────────────────


class OtherArgumentsError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.first = first


class KeywordError(ValueError):
    def __init__(self, *, code):
        self.code = code


def divide(a):
    return 1 / a


def raise_(exc):
    raise exc


@pytest.fixture
def process_pool():
    with ProcessPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize("pool", ["process_pool", "executor"])
def test_the_exception_is_the_original_one_with_its_remote_traceback(pool, request):
    exc = request.getfixturevalue(pool).submit(divide, 0).exception()
    assert type(exc) is ZeroDivisionError
    assert exc.args == ("division by zero",)
    shown = "".join(traceback.format_exception(exc))
    assert type(exc.__cause__).__name__ == "_RemoteTraceback"
    assert '_RemoteTraceback: \n"""\nTraceback (most recent call last):\n' in shown
    assert f'File "{__file__}", line {divide.__code__.co_firstlineno + 1}, in divide' in shown
    assert 'return 1 / a\n' in shown  # fmt: skip
    assert shown.count("direct cause of the following") == 1
    assert "ZeroDivisionError: division by zero" in str(exc.__cause__)


def test_the_remote_traceback_of_a_lambda_shows_none_of_ours(executor):
    exc = executor.submit(lambda: divide(0)).exception()
    assert "in <lambda>" in str(exc.__cause__)
    ours = os.path.dirname(mentis_pool.__file__)
    assert f'"{ours}/' not in str(exc.__cause__)


def test_what_an_exception_came_from_is_in_the_remote_traceback(executor):
    def chained():
        try:
            divide(0)
        except ZeroDivisionError as exc:
            raise KeyError("k") from exc

    exc = executor.submit(chained).exception()
    assert type(exc) is KeyError
    assert "ZeroDivisionError" in str(exc.__cause__)


@pytest.mark.parametrize(
    "exc",
    [
        OSError(2, "no", "file"), KeyError("k"),
        StopIteration(1), UnicodeDecodeError("utf-8", b"x", 0, 1, "why"), SystemExit(3),
        KeyboardInterrupt(), GeneratorExit(), AssertionError(), ImportError("no", name="x"),
        SyntaxError("bad", ("f", 1, 2, "text")), concurrent.futures.TimeoutError("late"),
        PayloadError("of its own"),
    ],
    ids=lambda exc: type(exc).__name__,
)  # fmt: skip
def test_an_exception_comes_back_whatever_its_constructor_takes(executor, exc):
    back = executor.submit(raise_, exc).exception()
    assert type(back) is type(exc)
    assert back.args == exc.args
    assert str(back) == str(exc)
    # Not the result, which the library adds to errors of its own.
    assert {**vars(back), **vars(exc)}.keys() - {"result"} == vars(exc).keys()
    assert back.__cause__ is not None
    assert executor.submit(add, 1).result() == 2


def raise_with_other_arguments(first, second):
    raise OtherArgumentsError(first, second)


def raise_with_keywords():
    raise KeywordError(code=5)


def test_an_exception_comes_back_though_its_own_constructor_takes_other_arguments(executor):
    with pytest.raises(OtherArgumentsError, match=r"^1 and 2$") as caught:
        executor.submit(raise_with_other_arguments, 1, 2).result()
    assert (caught.value.args, caught.value.first) == (("1 and 2",), 1)
    with pytest.raises(KeywordError) as caught:
        executor.submit(raise_with_keywords).result()
    assert caught.value.code == 5


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes and groups are from 3.11")
def test_notes_and_groups_come_back(executor):
    exc = ValueError("v")
    exc.add_note("a note")
    back = executor.submit(raise_, ExceptionGroup("all", [exc, KeyError(1)])).exception()  # noqa: F821
    assert [type(each) for each in back.exceptions] == [ValueError, KeyError]
    assert back.exceptions[0].__notes__ == ["a note"]


def test_an_exception_of_a_local_class_comes_back_as_itself(executor):
    class LocalError(Exception):
        pass

    def fails():
        raise LocalError("x", 1)

    with pytest.raises(LocalError) as caught:
        executor.submit(fails).result()
    assert caught.value.args == ("x", 1)


# ── what cannot travel ──────────────────────────────────────────────────────


def end_by(how):
    if how == "raises":
        raise RuntimeError("in the middle")
    if how == "exits":
        sys.exit("in the middle")
    if how == "interrupts":
        raise KeyboardInterrupt
    if how == "exits hard":
        os._exit(3)
    while how == "hangs":
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGSEGV)


class AtPickle:
    """Ends while it is pickled, but not where it was made."""

    def __init__(self, how):
        self.how, self.pid = how, os.getpid()

    def __reduce__(self):
        if os.getpid() == self.pid and self.how not in ("raises", "exits"):
            return AtPickle, (self.how,)
        return end_by(self.how), ()


class AtPickleInSandbox(AtPickle):
    def __reduce__(self):
        return end_by(self.how), ()

    def __call__(self):
        pass


class AtUnpickle:
    def __init__(self, how):
        self.how = how

    def __call__(self):
        pass

    def __reduce__(self):
        return end_by, (self.how,)


class StateAtUnpickle:
    def __init__(self, how):
        self.how = how

    def __setstate__(self, state):
        end_by(state["how"])


class AtPickleError(Exception):
    def __reduce__(self):
        return end_by(self.args[0]), ()


class AtUnpickleError(Exception):
    def __reduce__(self):
        return end_by, self.args


def nested(depth):
    outer = []
    for _ in range(depth):
        outer = [outer]
    return outer


def hasty(executor, kind):
    """One that gives little time only where all of it is to pass."""
    return executor.options(timeout=0.5 if kind is CellTimeout else 20)


def is_refused(executor, future, kind, said):
    """The future failed as it should, and the executor goes on."""
    done, _ = concurrent.futures.wait([future], timeout=20)
    assert done, "it hangs"
    exc = future.exception()
    assert isinstance(exc, kind), repr(exc)
    assert said in str(exc)
    assert list(executor.map(add, range(4))) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((threading.Lock(),), "argument 0 (lock) cannot travel to a sandbox"),
        ((1, (i for i in [])), "argument 1 (generator) cannot travel to a sandbox"),
        ((AtPickleInSandbox("raises"),), "argument 0 (AtPickleInSandbox) cannot travel to a sandbox: RuntimeError: in the middle"),
        ((AtPickleInSandbox("exits"),), "argument 0 (AtPickleInSandbox) cannot travel to a sandbox: SystemExit: in the middle"),
        ((nested(100_000),), "argument 0 (list) cannot travel to a sandbox"),
    ],
    ids=["lock", "generator", "raises", "exits", "nested"],
)  # fmt: skip
def test_an_argument_that_cannot_be_pickled_fails_its_future(executor, args, said):
    is_refused(executor, executor.submit(print, *args), PayloadError, said)


def test_a_callable_that_cannot_be_pickled_fails_its_future(executor):
    lock = threading.Lock()
    is_refused(
        executor, executor.submit(lambda: lock), PayloadError, "the callable (function) cannot"
    )
    is_refused(executor, executor.submit(add, 1, b=lock), PayloadError, "argument 'b' (lock)")
    for how in ("raises", "exits"):
        is_refused(
            executor,
            executor.submit(AtPickleInSandbox(how)),
            PayloadError,
            "the callable (AtPickleInSandbox) cannot travel to a sandbox",
        )
    recursive = functools.partial(add, nested(100_000))
    is_refused(executor, executor.submit(recursive), PayloadError, "the callable (partial) cannot")


REBUILDING = pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("raises", PayloadError, "the call cannot be rebuilt in the sandbox: RuntimeError: in the"),
        ("exits", PayloadError, "the call cannot be rebuilt in the sandbox: SystemExit"),
        ("interrupts", KeyboardInterrupt, ""),
        ("exits hard", SandboxDied, "exited with code 3"),
        ("crashes", SandboxDied, "SIGSEGV"),
        ("hangs", CellTimeout, "0.5 s"),
    ],
)


@REBUILDING
def test_an_argument_that_cannot_be_rebuilt_in_the_sandbox_fails_its_future(
    executor, how, kind, said
):
    is_refused(executor, hasty(executor, kind).submit(print, AtUnpickle(how)), kind, said)


@REBUILDING
def test_a_callable_that_cannot_be_rebuilt_in_the_sandbox_fails_its_future(
    executor, how, kind, said
):
    is_refused(executor, hasty(executor, kind).submit(AtUnpickle(how)), kind, said)


@REBUILDING
def test_a_module_that_cannot_be_imported_in_the_sandbox_fails_its_calls_alone(
    executor, shown, monkeypatch, how, kind, said
):
    name = f"imported_{how.replace(' ', '_')}"
    (shown / f"{name}.py").write_text(
        f"import os, {__name__}\n"
        f"if os.getpid() != {os.getpid()}:\n    {__name__}.end_by({how!r})\n"
        "def function():\n    pass\n"
    )
    monkeypatch.syspath_prepend(shown)
    function = importlib.import_module(name).function
    is_refused(executor, hasty(executor, kind).submit(function), kind, said)


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (threading.Lock, PayloadError, "the result (lock) cannot travel from the sandbox"),
        (lambda: lambda: 1, PayloadError, "the result (function) cannot travel"),
        (lambda: (i for i in []), PayloadError, "the result (generator) cannot travel"),
        (lambda: nested(100_000), PayloadError, "the result (list) cannot travel"),
        (lambda: AtPickleInSandbox("raises"), PayloadError, "the result (AtPickleInSandbox) cannot travel from the sandbox: RuntimeError: in the"),
        (lambda: AtPickleInSandbox("exits"), SystemExit, "in the middle"),  # as in a process pool
        (lambda: AtPickleInSandbox("interrupts"), KeyboardInterrupt, ""),
        (lambda: AtPickleInSandbox("exits hard"), SandboxDied, "exited with code 3"),
        (lambda: AtPickleInSandbox("hangs"), CellTimeout, "0.5 s"),
        (lambda: AtPickleInSandbox("crashes"), SandboxDied, "SIGSEGV"),
        (lambda: AtUnpickle("exits hard"), PayloadError, "test_calls.end_by"),
        (lambda: AtUnpickle("crashes"), PayloadError, "test_calls.end_by"),
        (lambda: StateAtUnpickle("raises"), PayloadError, "in the middle"),
        (lambda: StateAtUnpickle("exits"), PayloadError, "in the middle"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_a_result_that_cannot_travel_fails_its_future(executor, make, kind, said):
    is_refused(executor, hasty(executor, kind).submit(make), kind, said)


def raise_at_pickle(how):
    raise AtPickleError(how)


def raise_at_unpickle(how):
    raise AtUnpickleError(how)


def raise_a_lock():
    raise KeyError(threading.Lock())


def raise_what_is_nested():
    raise KeyError(nested(100_000))


def raise_what_refuses_its_state(how):
    raise KeyError(StateAtUnpickle(how))


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        ((raise_a_lock,), PayloadError, "the exception (KeyError) cannot travel from the sandbox"),
        ((raise_at_pickle, "raises"), PayloadError, "the exception (AtPickleError) cannot travel from the sandbox"),
        ((raise_at_pickle, "exits"), SystemExit, "in the middle"),
        ((raise_at_pickle, "interrupts"), KeyboardInterrupt, ""),
        ((raise_at_pickle, "exits hard"), SandboxDied, "exited with code 3"),
        ((raise_at_pickle, "hangs"), CellTimeout, "0.5 s"),
        ((raise_what_is_nested,), PayloadError, "the exception (KeyError) cannot travel"),
        ((raise_at_unpickle, "raises"), PayloadError, "test_calls.end_by"),
        ((raise_what_refuses_its_state, "raises"), PayloadError, "in the middle"),
        ((raise_what_refuses_its_state, "exits"), PayloadError, "in the middle"),
        ((raise_at_pickle, "crashes"), SandboxDied, "SIGSEGV"),
        ((raise_at_unpickle, "crashes"), PayloadError, "test_calls.end_by"),
        ((raise_at_unpickle, "exits hard"), PayloadError, "test_calls.end_by"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_an_exception_that_cannot_travel_fails_its_future(executor, call, kind, said):
    future = hasty(executor, kind).submit(*call)
    is_refused(executor, future, kind, said)
    if kind is PayloadError:
        assert call[0].__name__ in f"{future.exception()}{future.exception().__cause__}"


def hold(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return "held"


def test_a_call_that_dies_touches_no_neighbour(executor, shown):
    neighbour = executor.submit(hold, str(shown / "go"))
    behind = [executor.submit(add, i) for i in range(5)]
    for how in ("exits hard", "crashes"):
        is_refused(executor, executor.submit(end_by, how), SandboxDied, "process")
    (shown / "go").touch()
    assert neighbour.result() == "held"
    assert [future.result() for future in behind] == [1, 2, 3, 4, 5]


def test_a_call_that_runs_for_too_long_is_ended(executor):
    future = executor.options(timeout=0.2).submit(time.sleep, 30)
    is_refused(executor, future, CellTimeout, "0.2 s")


# ── map ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_takes_several_iterables_and_stops_with_the_shortest(executor, chunksize):
    results = executor.map(pow, range(10), itertools.count(2), chunksize=chunksize)
    assert list(results) == [i ** (i + 2) for i in range(10)]
    assert list(executor.map(add, [], [1], chunksize=chunksize)) == []


def test_the_calls_of_a_chunk_are_one_task(executor):
    pids = list(executor.map(lambda _: family.number(), range(12), chunksize=4))
    assert [len(set(pids[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1]


@pytest.mark.parametrize("chunksize", [1, 5])
@pytest.mark.parametrize("buffersize", [1, 3])
def test_map_never_pulls_further_ahead_than_buffersize(executor, buffersize, chunksize):
    pulled = 0

    def numbers():
        nonlocal pulled
        for number in itertools.count():
            pulled = number + 1
            yield number

    results = executor.map(add, numbers(), chunksize=chunksize, buffersize=buffersize)
    assert pulled <= buffersize * chunksize
    for i in range(20):
        assert next(results) == i + 1
        given = (i // chunksize + 1) * chunksize
        assert pulled <= given + buffersize * chunksize
        time.sleep(0.002)
        assert pulled <= given + buffersize * chunksize
    results.close()


def test_map_without_buffersize_takes_all_at_once(executor):
    taken = iter(range(50))
    results = executor.map(add, taken)
    assert next(taken, None) is None
    assert list(results) == list(range(1, 51))


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_raises_where_a_call_raised_and_cancels_the_rest(executor, chunksize):
    begun = time.monotonic()
    results = executor.map(
        lambda i: divide(i) if i < 2 else time.sleep(0.3), [1, 1, 0, 1, *[2] * 40], chunksize=chunksize
    )  # fmt: skip
    assert [next(results), next(results)] == [1.0, 1.0]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "in divide" in str(caught.value.__cause__)
    with pytest.raises(StopIteration):
        next(results)
    assert executor.submit(add, 1).result() == 2
    assert time.monotonic() - begun < 3


def test_map_raises_what_the_iterable_raises(executor):
    def broken():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        executor.map(add, broken())
    results = executor.map(add, broken(), buffersize=1)
    with pytest.raises(OSError, match="no more"):
        list(results)


def test_map_has_a_timeout_for_all_of_it(executor):
    executor.submit(time.sleep, 0).result()  # from here on a sandbox is up
    results = executor.map(time.sleep, [0, 2], timeout=1)
    assert next(results) is None
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)


def test_a_str_and_a_list_of_texts_are_cells_and_str_itself_a_call(executor):
    assert executor.submit("1 + 1").result().value == 2
    assert [result.value for result in executor.map(["1", "2"])] == [1, 2]
    assert list(executor.map(str, [1, 2])) == ["1", "2"]
    assert executor.submit(str, 5).result() == "5"


# ── which worker ────────────────────────────────────────────────────────────

COUNTED: list[int] = []


def count():
    COUNTED.append(1)
    return family.number(), len(COUNTED)


def test_calls_run_in_workers_that_are_kept(sharing):
    with sharing(1) as executor:
        futures = [executor.submit(count) for _ in range(5)]
        pids, counts = zip(*[future.result() for future in futures], strict=True)
        assert len(set(pids)) == 1
        assert counts == (1, 2, 3, 4, 5)
        assert len({future.sandbox_id for future in futures}) == 1
        assert COUNTED == []


def test_no_more_workers_are_there_than_asked_for(sharing):
    with sharing(2) as executor:
        pids = set(executor.map(lambda _: (time.sleep(0.005), family.number())[1], range(40)))
    assert len(pids) == 2


def test_calls_may_be_asked_to_be_fresh(sharing):
    with sharing(1, state="fresh") as executor:
        found = [executor.submit(count).result() for _ in range(4)]
    assert len({pid for pid, _ in found}) == 4
    assert {counted for _, counted in found} == {1}


def pid():
    return family.number()


def test_a_worker_is_renewed_after_so_many_calls(sharing):
    with sharing(1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(pid).result() for _ in range(12)]
    runs = [len(list(run)) for _, run in itertools.groupby(pids)]
    assert runs == [3, 3, 3, 3]
    assert len(set(pids)) == 4


def test_a_worker_is_renewed_after_so_many_cells(sharing):
    with sharing(1, max_tasks_per_child=3, state="reuse") as executor:
        results = executor.map(["import family; family.number()"] * 9)
        pids = [result.value for result in results]
    assert [len(list(run)) for _, run in itertools.groupby(pids)] == [3, 3, 3]


@pytest.mark.parametrize("state", [None, "reuse"])
def test_nothing_is_lost_while_workers_are_renewed(sharing, state):
    with sharing(2, max_tasks_per_child=3, state=state) as executor:
        futures = [executor.submit(lambda i: (i, family.number()), i) for i in range(200)]
        cells = [executor.submit("import family; (i, family.number())", i=i) for i in range(20)]
        found = [future.result(30) for future in futures]
        assert [i for i, _ in found] == list(range(200))
        assert max(map([each for _, each in found].count, {each for _, each in found})) == 3
        assert [cell.result(30).value[0] for cell in cells] == list(range(20))


@pytest.mark.parametrize("state", [None, "reuse"])
def test_a_sandbox_that_has_run_a_cell_never_runs_a_call(sharing, state):
    def encode():
        import json

        return json.dumps([1]), family.number()

    patch = "import family, json; json.dumps = lambda _: 'patched'; family.number()"
    with sharing(2, state=state) as executor:
        cells, calls = [], []
        for _ in range(10):
            cells += [executor.submit(patch), executor.submit(patch)]
            calls += [executor.submit(encode), executor.submit(encode)]
        assert {call.result()[0] for call in calls} == {"[1]"}
        of_cells = {cell.result().value for cell in cells}
        assert of_cells.isdisjoint(call.result()[1] for call in calls)
        assert {c.sandbox_id for c in cells}.isdisjoint(c.sandbox_id for c in calls)


# ── initializers ────────────────────────────────────────────────────────────

NOTED: list[object] = []


def note(*args):
    NOTED.append(args)
    print("noted", *args)


def noted():
    return NOTED


def test_an_initializer_is_called_once_in_each_worker(sharing):
    with sharing(2, initializer=note, initargs=(1, "a")) as executor:
        futures = [executor.submit(noted) for _ in range(20)]
        assert [future.result() for future in futures] == [[(1, "a")]] * 20
        # What it prints belongs to no task.
        assert {future.stdout for future in futures} == {""}
    assert NOTED == []


def test_an_initializer_runs_in_each_new_worker(sharing):
    with sharing(1, initializer=note, initargs=(1,), max_tasks_per_child=2) as executor:
        assert [executor.submit(noted).result() for _ in range(6)] == [[(1,)]] * 6
        executor.submit(end_by, "exits hard").exception()
        assert executor.submit(noted).result() == [(1,)]


def test_what_is_printed_after_an_initializer_is_of_the_task_that_prints_it(sharing):
    with sharing(1, initializer=note, initargs=(1,)) as executor:
        for word in ("one", "two"):
            future = executor.submit(print, word)
            future.result()
            assert future.stdout == f"{word}\n"
        with executor.session() as session:
            for word in ("one", "two"):
                assert session.submit(f"print({word!r})").result().stdout == f"{word}\n"
            assert session.shell("echo three >&2").result().stderr == "three\n"


def test_an_initializer_may_be_of_any_kind(sharing):
    found = []
    with sharing(1, initializer=lambda: found.append(1)) as executor:
        assert executor.submit(add, 1).result() == 2
    with sharing(1, initializer=functools.partial(note, 5)) as executor:
        assert executor.submit(noted).result() == [(5,)]
    assert found == []


@pytest.mark.parametrize("state", ["fresh", "reuse"])
def test_the_names_of_an_initializer_cell_are_there_in_every_cell(sharing, state):
    cell = "import math\nhalf = lambda x: x / 2\nseen = []\nprint('initialized')"
    with sharing(1, initializer=cell, state=state) as executor:
        results = list(executor.map(["half(math.floor(3.5))", "x = 1; half(4)", "'x' in dir()"]))
        assert [result.value for result in results] == [1.5, 2.0, False]
        assert {result.stdout for result in results} == {""}
        # A cell that takes one away takes it from itself.
        assert executor.submit("del half; 'half' in dir()").result().value is False
        assert executor.submit("half(4)").result().value == 2.0
        with executor.session() as session:
            assert session.submit("seen.append(1); half(6)").result().value == 3.0


def fails_to_initialize(how):
    print("said before", flush=True)
    print("and to stderr", file=sys.stderr)
    end_by(how)


@pytest.mark.parametrize(
    ("how", "said", "in_traceback"),
    [
        ("raises", "RuntimeError: in the middle", "in fails_to_initialize"),
        ("exits", "SystemExit: in the middle", "in fails_to_initialize"),
        ("exits hard", "exited with code 3", ""),
        ("crashes", "SIGSEGV", ""),
    ],
)
def test_an_initializer_that_fails_breaks_the_pool(sharing, how, said, in_traceback):
    with sharing(2, initializer=fails_to_initialize, initargs=(how,)) as executor:
        futures = [executor.submit(add, i) for i in range(5)]
        for future in futures:
            exc = future.exception(20)
            assert isinstance(exc, BrokenSandboxPool)
            assert isinstance(exc, concurrent.futures.BrokenExecutor)
            assert said in str(exc)
            assert in_traceback in exc.traceback
        with pytest.raises(BrokenSandboxPool, match="initializer failed") as caught:
            executor.submit(add, 1)
        assert in_traceback in caught.value.traceback
        assert sorted(caught.value.output.splitlines()) == ["and to stderr", "said before"]


def test_an_initializer_cell_that_fails_breaks_the_pool(sharing):
    with sharing(1, initializer="print('before')\n1/0", state="fresh") as executor:
        exc = executor.submit("1").exception(20)
        assert isinstance(exc, BrokenSandboxPool)
        assert "ZeroDivisionError: division by zero" in str(exc)
        assert "line 2" in exc.traceback
        assert exc.output == "before\n"


def test_an_initializer_that_cannot_travel_is_refused_at_once():
    lock = threading.Lock()
    with pytest.raises(PayloadError, match="argument 0"):
        SandboxExecutor(1, initializer=note, initargs=(lock,))
    with pytest.raises(TypeError, match="initargs"):
        SandboxExecutor(1, initializer="1", initargs=(1,))


def test_an_initializer_that_cannot_be_rebuilt_breaks_the_pool(sharing):
    with sharing(1, initializer=note, initargs=(AtUnpickle("raises"),)) as executor:
        exc = executor.submit(add, 1).exception(20)
        assert isinstance(exc, BrokenSandboxPool)
        assert "cannot be rebuilt in the sandbox: RuntimeError: in the middle" in str(exc)


# ── hostile ─────────────────────────────────────────────────────────────────


class Trap:
    """A class of the user's own, which does nothing that anybody could want."""

    def __init__(self, *args):
        self.args = args


def touch(path):
    """A function of the user's own package, with an effect."""
    with open(path, "a") as file:
        file.write("touched")
    return path


def grade(text, **names):
    exec(text, names)
    return "graded"


class Reduced:
    """Written into a pickle as what its arguments say: the classic."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def call_of(of, *args):
    """The boxes of a function, and of a call of it."""
    return Ask("call", Ask("function", of.__module__, of.__qualname__), args)


def forged_pickles(mark):
    """Each leaves the mark where it is loaded without a doubt."""
    shell = f"echo forged > {mark}"
    code = f"open({mark!r}, 'a').write('forged')"
    path = str(mark)
    yield "os.system", pickle.dumps(Reduced(os.system, (shell,)))
    yield "os.system in old opcodes", f"cos\nsystem\n(S{shell!r}\ntR.".encode()
    yield "os.system by INST", f"(S{shell!r}\nios\nsystem\n.".encode()
    yield "posix.system", pickle.dumps(Reduced(os.system, (shell,)), 0)
    yield "eval", pickle.dumps(Reduced(eval, (code,)))
    yield "exec in a list", pickle.dumps([1, {"a": Reduced(exec, (code,))}])
    yield "Popen", pickle.dumps(Reduced(subprocess.Popen, (["/bin/sh", "-c", shell],)))
    yield "a function of the user's", pickle.dumps(Reduced(touch, (path,)))
    yield "its box", forge(call_of(touch, path))
    yield "eval in a box", forge(Ask("call", Ask("function", "builtins", "eval"), (code,)))
    yield "eval as a class", forge(Ask("call", cls("builtins", "eval"), (code,)))
    yield "os.system in a box", forge(Ask("call", Ask("function", "os", "system"), (shell,)))
    yield "Popen in a box", forge(Ask("call", cls(subprocess.Popen), (["/bin/sh", "-c", shell],)))
    yield "an open file", forge(Ask("call", cls("_io", "FileIO"), (path, "w")))
    yield "an open file by new", forge(Ask("new", cls("_io", "FileIO"), (path, "w"), {}))
    yield "a log file", forge(Ask("call", cls("logging", "FileHandler"), (path,)))
    yield "a database", forge(Ask("call", cls("sqlite3", "Connection"), (path,)))
    yield "a partial", forge(Ask("call", cls("functools", "partial"), (cls(Trap), path)))
    yield "an import", forge(Ask("call", cls("importlib", "import_module"), ("antigravity",)))
    yield "a box of its own making", forge(Ask("call", Ask("call", cls(Trap), ()), (path,)))
    yield "a box without parts", forge(Reduced(touch, (path,)))
    yield "the state of a class", forge(Ask("class", __name__, "Trap", state={"touch": 1}))
    yield "the state of a function", forge(Ask("function", __name__, "touch", state={"a": 1}))
    yield "a dunder in a path", forge(Ask("class", __name__, "Trap.__init__.__globals__"))
    yield "what the module imported", forge(Ask("class", __name__, "subprocess.Popen"))
    yield "the executor", forge(Ask("call", cls(SandboxExecutor), (1,)))
    yield "an error of ours", forge(Ask("exception", cls(SandboxDied), ("it died",)))
    yield "no class at all", forge(Ask("new", Trap(), (), {}))
    yield "an unknown kind", forge(Ask("run", path))
    yield "an extension", b"\x80\x02\x82\x01."
    yield "a persistent id", b"\x80\x02U\x03osQ."
    yield "garbage", b"\x93\x00\xff garbage"
    yield "nothing", b""
    yield "no end", pickle.dumps([1, 2])[:-1]
    yield "a bomb", b"\x80\x04" + b"]" + b"\x94" + b"h\x00" * 10 + b"X\xff\xff\xff\x7f"
    yield "a huge memo", b"\x80\x04]r\xff\xff\xff\x7f."


# Where what is sent comes from, for text that has `forged`, a pickle.
REPLACED = """
import mentis_pool.returned, mentis_pool.runtime.calls as calls
for module in mentis_pool.returned, calls:
    module.pack_value = lambda value: forged
"""
NUMBER = """
import sys
frame = sys._getframe()
while not hasattr(frame.f_locals.get("command"), "number"):
    frame = frame.f_back
number = frame.f_locals["command"].number
"""
BY_FRAME = (
    NUMBER
    + """
import os
from mentis_pool.runtime import wire
from mentis_pool.observations import End, Result
worker = frame.f_locals["self"]
worker._sock.sendall(wire.pack(wire.Done(number, Result(pickled=forged), End(0.0))))
os._exit(0)
"""
)
SOCKET = (
    NUMBER
    + """
import os, socket
for fd in map(int, os.listdir("/proc/self/fd")):
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except OSError:
        continue
    if fd > 100 and (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
        break
import msgspec
from mentis_pool.runtime import wire
from mentis_pool.observations import *
def send(*messages):
    sock.sendall(b"".join(map(wire.pack, messages)))
def done(result):
    return wire.Done(number, result, End(0.0))
"""
)
BY_FD = SOCKET + "send(done(Result(pickled=forged))); os._exit(0)"
IN_PARTS = (
    SOCKET
    + "send(*(Part(forged[i:i + 1]) for i in range(len(forged) - 1)), done(Result(pickled=forged[-1:]))); os._exit(0)"
)
AS_EXCEPTION = (
    SOCKET
    + "send(done(Result(failure=Failure('E', 'e', 'its traceback'), pickled=forged))); os._exit(0)"
)


@pytest.fixture(scope="module")
def renewed():
    """Each call has a worker of its own: none finds what a hostile one left."""
    with SandboxExecutor(1, max_tasks_per_child=1, timeout=20, preload=[__name__]) as executor:
        yield executor


FORGED = [name for name, _ in forged_pickles("")]


@pytest.mark.parametrize("name", FORGED)
def test_no_forged_result_runs_anything_here(renewed, tmp_path, name):
    mark = tmp_path / "mark"
    pickled = dict(forged_pickles(str(mark)))[name]
    futures = [renewed.submit(grade, text, forged=pickled) for text in (REPLACED, BY_FD)]
    for future in futures:
        exc = future.exception(20)
        assert isinstance(exc, (PayloadError, MentisPoolError)), (exc, future)
    assert renewed.submit(add, 1).result() == 2
    assert not mark.exists()
    assert "antigravity" not in sys.modules
    assert not hasattr(Trap, "touch")


@pytest.mark.parametrize("way", [REPLACED, BY_FRAME, BY_FD, IN_PARTS, AS_EXCEPTION], ids=range(5))
@pytest.mark.parametrize("name", ["os.system", "a function of the user's", "its box", "garbage"])
def test_no_way_of_sending_it_runs_anything_here(renewed, tmp_path, name, way):
    mark = tmp_path / "mark"
    pickled = dict(forged_pickles(str(mark)))[name]

    def by_value(text, **names):
        exec(text, names)

    for fn in (grade, by_value):
        exc = renewed.submit(fn, way, forged=pickled).exception(20)
        assert isinstance(exc, PayloadError), exc
    assert renewed.submit(add, 1).result() == 2
    assert not mark.exists()


@pytest.mark.parametrize("way", [REPLACED, BY_FRAME, BY_FD], ids=range(3))
def test_what_may_come_back_comes_back_though_it_is_forged(renewed, way):
    """This is all that a forger can do: to lie, in plain data."""
    assert renewed.submit(grade, way, forged=pickle.dumps([1, "a"])).result() == [1, "a"]
    forged = forge(Ask("exception", cls(OSError), (2, "a lie")))
    assert type(renewed.submit(grade, way, forged=forged).result()) is FileNotFoundError


MESSAGES = [
    "Result(), Result(), End(0.0)",
    "End(0.0)",
    "End(0.0), End(0.0)",
    "Result(pickled=b'N.'), End(0.0), Result(pickled=b'N.'), End(0.0)",
    "Result(value=b'\\xc1', pickled=None), End(0.0)",
    "Result(failure=Failure('SystemExit', 'x', 'y')), End(0.0)",
    "Result(text='t', type_name='t', exit_code=3), End(0.0)",
    "Part(b'N'), Part(b'.'), End(0.0)",
    "Cut('stdout', -5), Cut('displays', 1 << 62), Result(pickled=b'N.'), End(0.0)",
    "Start(0.0, 1), Result(pickled=b'N.'), End(0.0)",
    "Stream('stdout', b'forged'), Result(pickled=b'N.'), End(0.0)",
    "Result(pickled=b'N.'), End(float('nan'), -1.0, -(1 << 62))",
    "wire.Forked(1)",
    "wire.Died(1, 0, 0.0, 0)",
    *(
        f"Error({kind!r}, 'forged'), End(0.0)"
        for kind in (
            "timeout",
            "deadline",
            "queue",
            "died",
            "unknown",
            "cancelled",
            "rejected",
            "unreachable",
            "state",
            "protocol",
            "payload",
        )
    ),
]


@pytest.mark.parametrize("messages", MESSAGES)
def test_forged_messages_touch_no_other_future(tmp_path, renewed, messages):
    """Whatever a worker says about its call: what waits behind it is run all the same."""
    text = f"{SOCKET}import time; time.sleep(0.04); send({messages})\nos._exit(0)"
    hostile = renewed.submit(grade, text)
    cell = renewed.submit("1 + 1")
    # More than travel ahead.
    behind = [renewed.submit(add, i, b=i) for i in range(40)]
    done, _ = concurrent.futures.wait([hostile], timeout=20)
    assert done
    assert not hostile.cancelled()
    assert isinstance(hostile.exception(), MentisPoolError | None)
    # Each costs a worker.
    assert behind[0].result(20) == 0
    assert all(future.cancel() or future.exception() is None for future in reversed(behind))
    assert cell.result(20).value == 2


@pytest.mark.parametrize(
    "raw",
    [
        "b'\\xff' * 100", "b'\\0' * 400", "b'\\x7f\\xff\\xff\\xff'", "b'\\0\\0\\0\\x01\\xc1'",
        "b'\\0\\0\\0\\x05' + b'\\xdd\\xff\\xff\\xff\\xff'", "(1 << 20).to_bytes(4, 'big') + b'\\x91' * (1 << 20)",
    ],
)  # fmt: skip
def test_garbage_in_the_workers_socket_fails_its_call_alone(renewed, raw):
    begun = time.monotonic()
    hostile = renewed.submit(grade, f"{SOCKET}sock.sendall({raw})\nimport time; time.sleep(30)")
    behind = renewed.submit(add, 1)
    assert isinstance(hostile.exception(20), MentisPoolError)
    assert behind.result(20) == 2
    assert time.monotonic() - begun < 10


def test_who_kills_its_sandbox_fails_alone():
    # Behind a wall nobody can.
    with SandboxExecutor(
        1, max_tasks_per_child=1, isolation="process", preload=[__name__]
    ) as executor:
        text = "import os, time; os.kill(os.getppid(), 9); time.sleep(30)"
        hostile = executor.submit(grade, text)
        behind = [executor.submit(add, i) for i in range(5)]
        assert isinstance(hostile.exception(20), SandboxDied)
        assert [future.result(20) for future in behind] == [1, 2, 3, 4, 5]


def test_a_forged_exception_is_none_that_means_something_to_us(renewed):
    for name in ("SandboxDied", "BrokenSandboxPool", "CellTimeout", "StateLost"):
        text = f"from mentis_pool import {name}\nraise {name}('a lie')"
        exc = renewed.submit(grade, text).exception()
        assert type(exc) is PayloadError, exc
        assert f"mentis_pool.errors.{name}" in str(exc)


# ── trust ───────────────────────────────────────────────────────────────────


def template():
    return string.Template("$a")


def test_an_untrusted_type_is_named_with_the_remedy(executor):
    with pytest.raises(PayloadError, match=r"string\.Template .*SandboxExecutor\(trust=\["):
        executor.submit(template).result()


@pytest.mark.parametrize("trust", [[string.Template], ["string"], "all"], ids=str)
def test_what_is_trusted_comes_back(sharing, trust):
    with sharing(1, trust=trust) as executor:
        assert executor.submit(template).result().template == "$a"
        functions = executor.submit(lambda: string.capwords)
        if trust == [string.Template]:
            assert "string.capwords" in str(functions.exception())
        else:
            assert functions.result() is string.capwords


def test_a_function_comes_back_only_where_its_package_is_trusted(sharing, executor, tmp_path):
    path = str(tmp_path / "mark")
    with pytest.raises(PayloadError, match=r"test_calls\.touch"):
        executor.submit(lambda: touch).result()
    with sharing(1, trust=[__name__]) as trusting:
        assert trusting.submit(lambda: touch).result() is touch
        forged = forge(call_of(touch, path))
        assert trusting.submit(grade, REPLACED, forged=forged).result() == path
    assert os.path.exists(path)
