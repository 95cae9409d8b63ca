"""Cells at an original runtime: what is sent runs in a real IPython, and what it prints is understood."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import cloudpickle
import pytest
from fakes import Kernels
from hypothesis import example, given
from hypothesis import strategies as st

from mentis_pool import original
from mentis_pool.mentis_v1 import ResultObservation
from mentis_pool.observations import Cut, Error, Result, Stream

TOKEN = "0123456789abcdef"
OK = ResultObservation(action_id="A", exit_code=0, status="ok")
FAILED = ResultObservation(
    action_id="A", exit_code=1, status="error", error_name="UnknownError", error_value="why"
)
MARK = f"\x02{TOKEN}:\x03\n"


class Shell:
    """IPython as an original runtime has it."""

    def __init__(self, kernels):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(kernels.path)
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._file.readline()

    def close(self):
        self._file.close()
        self._socket.close()

    def run(self, cell, limit=None, **variables):
        if "ExceptionGroup" in cell and sys.version_info < (3, 11):
            pytest.skip("there are no groups of exceptions before Python 3.11")
        pickles = {name: cloudpickle.dumps(value) for name, value in variables.items()}
        code = original.source(cell, TOKEN, pickles)
        print(json.dumps({"code": code}), file=self._file, flush=True)
        done = json.loads(self._file.readline())
        stdout, stderr, error = done["stdout"], done["stderr"], done["error"]
        result = OK
        if error is not None:
            result = ResultObservation(
                action_id="A", exit_code=1, status="error", error_value=error
            )
        assert original.is_complete(stdout, stderr, TOKEN, result)
        *output, said = original.outcome(stdout, stderr, TOKEN, result, limit)
        streams = {"stdout": "", "stderr": ""}
        for each in output:
            streams[each.stream] += each.text if isinstance(each, Stream) else f"<{each.bytes}>"
        return streams["stdout"], streams["stderr"], said


@pytest.fixture(scope="module", params=["NoColor", "Linux"])
def kernels(request):
    kernels = Kernels(request.param)
    yield kernels
    kernels.end()


@pytest.fixture
def shell(kernels):
    shell = Shell(kernels)
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("cell", "stdout", "text"),
    [
        ("1 + 1", "", "2"),
        ("print('hi')\n2", "hi\n", "2"),
        ("", "", None),
        ("# a comment", "", None),
        ("None", "", None),
        ("3;", "", None),
        ("'a\\nb'", "", r"'a\nb'"),
        ("class A:\n    def __repr__(self): return 'x\\ny'\nA()", "", "x\ny"),
        ("print('Out[7]: 5')", "Out[7]: 5\n", None),
        ("print('x', end='')", "x", None),
        ("print('x', end='')\n2", "x", "2"),
        ("import sys\nsys.stdout.write('abc')", "abc", "3"),
        ("print('Out[1]: 5')", "Out[1]: 5\n", None),
        ("print('Out[1]: 5')\n6", "Out[1]: 5\n", "6"),
        ("print('a\\nOut[1]: 5', end='')\n6", "a\nOut[1]: 5", "6"),
        ("'Out[1]: 5'", "", "'Out[1]: 5'"),
        ("import sys\nsys.displayhook(5)\nprint('x')\n6", "5\nx\n", "6"),
        ("display(3)\n4", "3\n", "4"),
        ("%time 5", None, "5"),
        ("  x = 4\n  x", "", "4"),
        ("%%capture\nprint(1)", "", None),
        ("\n\n%%bash\necho a\necho b", "a\nb\n", None),
        ("x = !echo hi\nx[0]", "", "'hi'"),
        ("import asyncio\nawait asyncio.sleep(0, 5)", "", "5"),
        (">>> 6\n", "", "6"),
        ("from __future__ import annotations\n7", "", "7"),
        ("'ü€\U0001f600'", "", "'ü€\U0001f600'"),
    ],
)
def test_output_and_value_are_told_apart(shell, cell, stdout, text):
    said = shell.run(cell)
    assert said[1] == ""
    assert stdout is None or said[0] == stdout
    kind = None if text is None else "unknown"
    assert said[2] == Result(text=text, type_name=kind)


def test_variables_are_names_in_the_cell_and_leave_nothing_else(shell):
    assert shell.run("x * 2, y", x=21, y="ü")[2].text == "(42, 'ü')"
    names = shell.run("sorted(n for n in globals() if n[0] != '_')")[2].text
    assert "'x'" in names
    for ours in ("base64", "pickle", "token", "variables", "count", "frame"):
        assert f"'{ours}'" not in names


def test_the_variables_do_not_outlive_the_cell_in_what_displays_its_value(shell):
    class Big:
        """Says how often it was rebuilt, and how many of it there are."""

    cell = (
        "import gc\ndel x\ngc.collect()\nsum(type(o).__name__ == 'Big' for o in gc.get_objects())"
    )
    assert shell.run(cell, x=Big())[2].text == "0"
    assert (
        shell.run(
            "sum('x' in o for o in gc.get_objects() if type(o) is dict and 'variables' in o)"
        )[2].text
        == "0"
    )


def test_a_value_whose_display_is_interrupted_is_none(shell):
    stdout, _, said = shell.run(
        "class A:\n  def __repr__(self): raise KeyboardInterrupt\nprint('x')\nA()"
    )
    assert stdout == "x\n"
    assert said.failure.name == "KeyboardInterrupt"


def test_a_value_is_told_apart_in_cell_after_cell(shell):
    for n in range(3):
        assert shell.run(f"print('a', end='')\n{n}")[::2] == (
            "a",
            Result(text=str(n), type_name="unknown"),
        )
    assert shell.run("_")[2].text == "2"


def test_a_variable_that_cannot_be_rebuilt_is_named(shell):
    class Odd:
        def __reduce__(self):
            return (int, ("no number",))

    stdout, stderr, said = shell.run("print(1)", fine=1, odd=Odd())
    assert (stdout, stderr) == ("", "")
    assert isinstance(said, Error)
    assert said.kind == "payload"
    assert "'odd' cannot be rebuilt in the sandbox: ValueError" in said.message


@pytest.mark.parametrize(
    ("cell", "name", "value", "line"),
    [
        ("a = 1\n\n1 / 0", "ZeroDivisionError", "division by zero", "line 3"),
        ("1 / 0", "ZeroDivisionError", "division by zero", "line 1"),
        ("raise KeyError('k')", "KeyError", "'k'", "line 1"),
        ("raise ValueError('a\\nb: c')", "ValueError", "a\nb: c", "line 1"),
        ("class E(Exception): pass\nraise E", "E", "", "line 2"),
        ("try: 1/0\nexcept Exception as e: raise OSError(5) from e", "OSError", "5", "line 2"),
        ("try: 1/0\nexcept Exception: raise OSError(5)", "OSError", "5", "line 2"),
        ("def f():\n    return x_y\nf()", "NameError", "name 'x_y' is not defined", "line 2"),
        ("import asyncio\nawait asyncio.sleep(0)\n1/0", "ZeroDivisionError", "division by zero", "line 3"),
        ("raise SystemExit(3)", "SystemExit", "3", ""),
        ("raise ExceptionGroup('g', [ValueError(1), TypeError('a: b')])", "ExceptionGroup", "g (2 sub-exceptions)", "line 1"),
        ("raise ExceptionGroup('g', [ExceptionGroup('h', [OSError(5)]), KeyError(1)])", "ExceptionGroup", "g (2 sub-exceptions)", "line 1"),
        ("class G(ExceptionGroup): pass\nraise G('g', [ValueError(1)])", "G", "g (1 sub-exception)", "line 2"),
        ("try: 1/0\nexcept Exception as e: raise ExceptionGroup('g', [e])", "ExceptionGroup", "g (1 sub-exception)", "line 2"),
        ("try: raise ExceptionGroup('g', [OSError(5)])\nexcept Exception as e: raise KeyError(1) from e", "KeyError", "1", "line 2"),
        ("x =", "SyntaxError", "invalid syntax", "line 1"),
        ("x = 1\ny = = 2", "SyntaxError", "invalid syntax", "line 2"),
        ("x = 1\n  y = 2", "IndentationError", "unexpected indent", "line 2"),
    ],
)  # fmt: skip
def test_an_exception_has_its_true_name_and_the_cells_own_lines(shell, cell, name, value, line):
    stdout, stderr, said = shell.run(cell)
    assert (stdout, stderr) == ("", "")
    failure = said.failure
    assert failure.name == name
    assert failure.value.startswith(value)
    assert line in failure.traceback
    assert "exec(" not in failure.traceback, "the first line does not show"
    assert "\x1b" not in failure.traceback
    assert "\x02" not in failure.traceback


def test_what_was_printed_before_a_group_of_exceptions_is_output(shell):
    stdout, stderr, said = shell.run(
        "import sys, traceback\nprint('so far')\nprint('err', file=sys.stderr)\n"
        "try: 1/0\nexcept Exception: traceback.print_exc(file=sys.stdout)\n"
        "raise ExceptionGroup('g', [ValueError(1)])"
    )
    assert stdout.startswith("so far\nTraceback")
    assert stdout.endswith("ZeroDivisionError: division by zero\n")
    assert stderr == "err\n"
    assert said.failure.name == "ExceptionGroup"
    assert "ZeroDivisionError" not in said.failure.traceback


def test_a_group_that_was_only_printed_is_no_outcome(shell):
    _, stderr, said = shell.run(
        "import traceback\ntry: raise ExceptionGroup('g', [ValueError(1)])\n"
        "except Exception: traceback.print_exc()\n[][1]"
    )
    assert "Exception Group Traceback" in stderr
    assert said.failure.name == "IndexError"


def test_what_was_printed_before_an_exception_is_output(shell):
    stdout, stderr, said = shell.run(
        "import sys\nprint('so far')\nprint('err', file=sys.stderr)\n1 / 0"
    )
    assert (stdout, stderr) == ("so far\n", "err\n")
    assert said.failure.name == "ZeroDivisionError"


def test_colours_of_the_cells_own_stay(shell):
    stdout, _, said = shell.run("print('\\x1b[31mred\\x1b[0m')\n1 / 0")
    assert stdout.startswith("\x1b[31mred\x1b[0m\n")
    assert said.failure.name == "ZeroDivisionError"
    assert shell.run("print('\\x1b[31mred\\x1b[0m')\n5")[0] == "\x1b[31mred\x1b[0m\n"


def test_an_exception_that_was_only_printed_is_no_outcome(shell):
    stdout, _, said = shell.run(
        "import sys, traceback\ntry: 1/0\nexcept Exception: traceback.print_exc(file=sys.stdout)\n"
        "[][1]"
    )
    assert "ZeroDivisionError" in stdout
    assert said.failure.name == "IndexError"


def test_output_is_bounded(shell):
    stdout, _, said = shell.run("print('x' * 1000)\n5", limit=100)
    assert stdout == f"{'x' * 50}<901>{'x' * 49}\n"
    assert said.text == "5"


@pytest.mark.parametrize(
    ("traceback", "name", "value"),
    [
        ('Traceback (most recent call last):\n'
         '  File "<cell 1>", line 1, in <module>\nValueError: a: b\n', "ValueError", "a: b"),
        ("  + Exception Group Traceback (most recent call last):\n"
         '  |   File "<cell 1>", line 1, in <module>\n  | a.b.Group: g (1 sub-exception)\n'
         "  +-+---------------- 1 ----------------\n    | ValueError: 1\n"
         "    +------------------------------------\n", "a.b.Group", "g (1 sub-exception)"),
    ],
    ids=["exception", "group"],
)  # fmt: skip
def test_pythons_own_traceback_is_understood_too(traceback, name, value):
    stdout, failure = original.failure_in(f"so far\n{traceback}", "")
    assert stdout == "so far\n"
    assert (failure.name, failure.value) == (name, value)


@pytest.mark.parametrize(
    "text",
    ["", "nothing to see\n", "\n\n", "1 2 3", "a: b: c",
     "  + Exception Group Traceback (most recent call last):\n  | nothing of its own\n"],
)  # fmt: skip
def test_text_without_a_traceback_gives_some_failure_and_no_error(text):
    _, failure = original.failure_in(text, "why")
    assert failure.name
    assert failure.value == "why"


def test_lost_output_is_noticed():
    complete = original.is_complete
    assert complete(MARK + "hi", MARK, TOKEN, OK)
    assert not complete("", MARK, TOKEN, OK), "stdout was lost"
    assert not complete(MARK, "", TOKEN, OK), "stderr was lost"
    assert not complete("", "", TOKEN, OK)
    assert complete(MARK + "Traceback", MARK, TOKEN, FAILED)
    assert not complete("", MARK, TOKEN, FAILED)
    assert not complete("", "", TOKEN, FAILED), "no traceback is there"
    assert complete("  Cell In[1], line 1\nSyntaxError: x", "", TOKEN, FAILED)
    assert not complete("  Cell In[1], line 1\nSyntaxError: x", MARK, TOKEN, FAILED)


def test_a_token_of_another_cell_is_no_mark():
    other = MARK.replace("0", "1")
    assert not original.is_complete(other, other, TOKEN, OK)
    output = original.output(other, MARK, TOKEN, None)
    assert output == [Stream("stdout", other.encode())]


def test_what_was_heard_of_a_cell_that_was_lost_is_its_output():
    assert original.output("", "", TOKEN, None) == []
    assert original.output(MARK + "hi", "", TOKEN, None) == [Stream("stdout", b"hi")]
    assert original.output(MARK + "hello", MARK, TOKEN, 2) == [
        Stream("stdout", b"h"),
        Cut("stdout", 3),
        Stream("stdout", b"o"),
    ]


def test_ipython_is_imported_only_where_its_rules_are_needed():
    code = (
        "import sys\nfrom mentis_pool.original import source\n"
        "source('x = 1\\n!ls', 't', {})\nassert 'IPython' not in sys.modules\n"
        "source('%%time\\n1', 't', {})\nassert 'IPython' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ── whatever it prints ──────────────────────────────────────────────────────

# What is looked for in what a cell printed, and what is near it.
FRAGMENTS = [
    *(f"\x02{TOKEN}{sign}" for sign in ":!=."),
    *("\x03", "\n", "\x1b[31m", "\x1b", "Traceback (most recent call last)", "---------\n"),
    *("ZeroDivisionError", "  + Exception Group Traceback (most recent call last):\n", ": x\n"),
    *("Cell In[1], line ", "<ipython-input-1-a>:", "<ipython-input-1-a>, line ", "9" * 5000, "0"),
    *("During handling of the above exception, another exception occurred:\n", "\udcff", "é"),
]
printed = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=12).map("".join)
LONG_PLACE = f"ZeroDivisionError Traceback (most recent call last)\nCell In[1], line {'9' * 5000}\n"


@given(printed, printed, st.integers(-1, 2), st.none() | printed, st.none() | st.integers(0, 9))
@example(LONG_PLACE, "", 1, "x", None)
def test_whatever_a_cell_prints_gives_an_outcome(stdout, stderr, code, value, limit):
    result = ResultObservation(action_id="A", exit_code=code, error_value=value)
    *seen, last = original.outcome(stdout, stderr, TOKEN, result, limit)
    assert isinstance(last, (Result, Error))
    assert {type(each) for each in seen} <= {Stream, Cut}
    original.output(stdout, stderr, TOKEN, limit)
    original.is_complete(stdout, stderr, TOKEN, result)
