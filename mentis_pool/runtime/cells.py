"""One cell: compile, run, capture, display. Runs in the sandbox, on IPython's shell.

The shell is IPython's own, with three differences: a value and a display are
handed on instead of printed, an exception is kept instead of shown, and
``!command`` writes to the cell's own descriptors instead of to a terminal.
"""

from __future__ import annotations

import ast
import asyncio  # noqa: F401 - cells await, and importing it takes 40 ms
import atexit
import base64
import builtins
import codeop
import contextlib
import io
import json
import linecache
import os
import re
import sys
import threading
import traceback
import types
import warnings
from _sitebuiltins import Quitter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from IPython.core import interactiveshell
from IPython.core.compilerop import CachingCompiler, PyCF_MASK
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult, InteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets import Type
from traitlets.config import Config

from mentis_pool import values
from mentis_pool.observations import Bundle, Cut, Display, Failure, Result
from mentis_pool.text import printable

MAX_TEXT = 1024 * 1024
"""Characters of a value's text, and of a traceback."""
MAX_BUNDLE = 32 * 1024 * 1024
"""Bytes of one display, the names of its mime types counted."""
MAX_NAME = 1000
"""Characters of the name of a type, and of a display's id."""

# IPython leaves these out, and counts lines from what is left.
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+(?=.*\S)", re.DOTALL)
_NO_STATEMENT = ("", "\n", " ", "\t", "\f", "\r", "#")
_FIRST_WORD = re.compile(r"\w+")
# What holds other statements.
_COMPOUND = re.compile(r"@|(?:if|for|while|try|with|match|class|def)\b")

Show = Callable[[Display | Cut], None]


class _Compiler(CachingCompiler):  # type: ignore[misc]
    """Names a cell ``<cell 1>`` in tracebacks, as a person counts them."""

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        return f"<cell {number}>"


class _Hook(DisplayHook):  # type: ignore[misc]
    """Keeps the last expression's value instead of printing it."""

    value: Any = None
    shown: Result | None = None
    result_of: Callable[[Any], Result]

    def quiet(self) -> bool:
        """As IPython's, which looks at each token."""
        parsed = self.shell.history_manager.input_hist_parsed
        return bool(parsed) and ";" in parsed[-1] and super().quiet()

    def __call__(self, result: Any = None) -> None:
        if result is None:
            return
        self.check_for_underscore()
        if self.quiet():
            return
        if self.shown is not None:
            # It has more than one value, as with ast_node_interactivity="all".
            self.shell.show(_display(self.shown))
        # Before it is in `Out`, as in IPython: what shows `Out` does not show itself.
        self.shown = self.result_of(result)
        self.update_user_ns(result)
        self.fill_exec_result(result)
        self.value = result


_PARTS = ("display_formatter", "exiter", "history_manager", "magics_manager")
"""Of a shell, for good."""


class _History(HistoryManager):  # type: ignore[misc]
    """IPython's, of which nothing stays for the next namespace."""

    def forget(self, directory: Path) -> None:
        """As `reset`, and what that leaves; ``directory`` is where cells begin."""
        # Whatever a cell has put there.
        self.output_hist: dict[int, Any] = {}
        for name in ("outputs", "exceptions"):  # from IPython 9 on
            if hasattr(self, name):
                getattr(self, name).clear()
        self.dir_hist = [directory]
        self.input_hist_parsed = [""]
        self.input_hist_raw = [""]
        # Kept for a database that is not there: all sources of a kept process.
        self.db_input_cache: list[Any] = []
        # What `_i` and the like show.
        self._i00 = self._i = self._ii = self._iii = ""


# As `%config` has it.
_History.__name__ = "HistoryManager"


class _Publisher(DisplayPublisher):  # type: ignore[misc]
    """Hands what is displayed to the shell's ``show``."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        bundle = _bundle(data)
        if isinstance(bundle, Cut):
            self.shell.show(bundle)
            return
        display_id = (transient or {}).get("display_id")
        if display_id is not None:
            display_id = printable(str(display_id))[:MAX_NAME]
        self.shell.show(Display(bundle, display_id, update))

    def clear_output(self, wait: bool = False) -> None:
        """There is no screen here to be cleared."""


class _Profile(ProfileDir):  # type: ignore[misc]
    """In the home of whoever asks, so of the sandbox, and not made before something is stored."""

    @property
    def location(self) -> str:
        return os.path.expanduser("~/.ipython/profile_default")


class _Exit(Quitter):
    """Without a code, an exit that says nothing: not ``SystemExit: None``."""

    def __call__(self, code: object = None) -> NoReturn:
        raise SystemExit(*(() if code is None else (code,)))


class _Python(NamedTuple):
    """A cell of plain Python: what runs first, the statements after it, one by one, and the last."""

    source: str
    name: str
    head: types.CodeType | None
    body: list[ast.stmt]
    last: types.CodeType | None = None


def _last_line_at_margin(source: str) -> int:
    """Where the last line begins that is neither indented nor empty nor a comment."""
    at = end = len(source)
    while at:
        at = source.rfind("\n", 0, end) + 1
        if source[at : at + 1] not in _NO_STATEMENT:
            return at
        end = at - 1
    return 0


# Who shows what ended a cell, by how many pieces of code run then.
_SHOWS_ENDS = {
    0: (InteractiveShell.run_cell_async.__code__, InteractiveShell.run_ast_nodes.__code__),
    1: (InteractiveShell.run_code.__code__,),
}


class CellShell(InteractiveShell):  # type: ignore[misc]
    """IPython's shell without a terminal."""

    compiler_class = Type(_Compiler)
    displayhook_class = Type(_Hook)
    display_pub_class = Type(_Publisher)
    show: Show
    directory = Path("/")
    """Where cells begin."""
    _own_callbacks: dict[str, int]
    _plain_printers: dict[type, Any]
    """What IPython prints plain values by, unless a cell says otherwise."""
    _depth = 0
    """How many pieces of code run: 1 for the cell's, more where that runs cells itself."""

    @property
    def ipython_dir(self) -> str:
        return os.path.expanduser("~/.ipython")

    def init_ipython_dir(self, ipython_dir: object) -> None:
        """IPython would make it, in the home of the client's user."""

    def init_profile_dir(self, profile_dir: object) -> None:
        self.profile_dir = _Profile()

    def _tee(self, channel: str) -> contextlib.AbstractContextManager[None]:
        """IPython would keep all output in its history as well: 1 GB of it, if it came to that."""
        return contextlib.nullcontext()

    def transform_cell(self, raw_cell: str) -> Any:
        """As IPython's; an indentation that its tokenizer cannot read is the cell's own error."""
        try:
            return super().transform_cell(raw_cell)
        except IndentationError as exc:
            if exc.filename not in ("<tokenize>", "<string>"):  # the latter from Python 3.12 on
                raise
            # Where, and without whose frames, the compiler would say it.
            exc.filename = self.compile.get_code_name(raw_cell, raw_cell, self.execution_count)
            exc.offset = len((exc.text or "").rstrip("\n")) + 1
            raise exc.with_traceback(None) from None

    async def run_code(self, code_obj: Any, result: Any = None, **options: Any) -> Any:
        """As IPython's, and counted."""
        self._depth += 1
        try:
            return await super().run_code(code_obj, result, **options)
        finally:
            self._depth -= 1

    def showtraceback(self, exc_tuple: Any = None, *_: Any, **__: Any) -> None:
        """Print an exception, as for ``%run`` or a hook; but not the one that ends the cell.

        That is in the ExecutionResult, and formatting it here would cost 10 ms.
        """
        caller = sys._getframe(1).f_code
        if caller not in _SHOWS_ENDS.get(self._depth, ()):
            self._print_exception(exc_tuple)

    def showsyntaxerror(self, *_: Any, **__: Any) -> None:
        """Print it, unless the cell is itself no Python: that is in the ExecutionResult."""
        if self._depth:
            self._print_exception(None)

    def _print_exception(self, exc_tuple: Any) -> None:
        try:
            _, error, _ = self._get_exc_info(exc_tuple)
        except ValueError:
            print("No traceback available to show.", file=sys.stderr)
            return
        print(failure_of(error).traceback, end="", file=sys.stderr)

    def _format_exception_for_storage(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nobody reads the history's exceptions here, and they cost 10 ms each."""
        return {}

    def system(self, cmd: str) -> None:
        """Run ``!cmd`` on the cell's own descriptors, its exit code in ``_exit_code``."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.system_raw(cmd)

    def run_python(self, raw_cell: str, python: _Python) -> BaseException | None:
        """`run_cell` for a cell that is Python already: the same, at a third of the cost.

        The same history, names and events, without the search for magics and
        for what to await. In a newly forked process each page that is not
        touched is one that need not be copied. Gives what the cell raised.
        """
        count = self.execution_count
        # IPython 9 counts a cell before it runs, IPython 8 after it.
        counts_first = self.displayhook.prompt_count < count
        self.execution_count += counts_first
        ran = ExecutionResult(ExecutionInfo(raw_cell, True, False, True, None))
        ran.execution_count = count
        self._trigger("pre_execute")
        self._trigger("pre_run_cell", ran.info)
        self.history_manager.store_inputs(count, python.source, raw_cell)
        self._depth += 1
        try:
            if python.head is not None:
                exec(python.head, self.user_ns)
            for node in python.body:
                if node is python.body[-1] and isinstance(node, ast.Expr):
                    code = self.compile(ast.Interactive([node]), python.name, "single")
                else:
                    code = self.compile(ast.Module([node], []), python.name, "exec")
                exec(code, self.user_ns)
            if python.last is not None:
                exec(python.last, self.user_ns)
            ran.result = self.displayhook.value
        except BaseException as exc:  # noqa: BLE001 - whatever the cell raises is its outcome
            ran.error_in_exec = exc
        finally:
            self._depth -= 1
            self._trigger("post_execute")
            self._trigger("post_run_cell", ran)
            self.execution_count += not counts_first
        error: BaseException | None = ran.error_in_exec
        return error

    def plain_text(self, value: Any) -> Any:
        """The text of what needs no layout, by its own repr where IPython would take that as well."""
        formatter = self.display_formatter.formatters["text/plain"]
        kind = type(value)
        printer = formatter.singleton_printers.get(id(value))
        if printer is None:
            printer = formatter.type_printers.get(kind)
        if (
            printer is self._plain_printers[kind]
            and formatter.pprint
            and (kind is not float or formatter.float_format == "%r")
        ):
            try:
                return repr(value)
            except ValueError:
                pass  # an int of too many digits
        return formatter(value)

    def _trigger(self, event: str, *args: Any) -> None:
        # What IPython itself registers has nothing to do for a new namespace.
        if len(self.events.callbacks[event]) > self._own_callbacks[event]:
            self.events.trigger(event, *args)

    def python_of(self, raw_cell: str) -> _Python | None:
        """A cell that IPython would run as it stands, compiled; otherwise None."""
        if (
            "await" in raw_cell
            or "async" in raw_cell
            # IPython takes a pasted prompt away, and Python takes it for an annotation.
            or "In [" in raw_cell
            or self.input_transformers_post
            or self.ast_transformers
            or self.ast_node_interactivity != "last_expr"
            # IPython does not count it.
            or not raw_cell
            or raw_cell.isspace()
            or not self._may_be_python(raw_cell)
        ):
            return None
        source = _BLANK_LINES.sub("", raw_cell)
        if not source.endswith("\n"):
            source += "\n"
        # Now, since the compiler may quote a line in a warning.
        name = self.compile.cache(source, self.execution_count, raw_code=raw_cell)
        try:
            in_two = self._in_two(source, name)
            return in_two or _Python(source, name, None, ast.parse(source, name).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None

    def _in_two(self, source: str, name: str) -> _Python | None:
        """All but the last statement compiled at once, where lines alone show what is the last.

        A tree of all statements, as IPython makes one, costs more than to compile
        and to run them. What is not two whole programs takes that way.
        """
        at = _last_line_at_margin(source)
        head, tail = source[:at], source[at:]
        if not at or ";" in tail or "__future__" in source:
            return None
        flags = self.compile.flags & PyCF_MASK
        compound = _COMPOUND.match(tail)
        # Below as many lines as there are above it.
        tail = "\n" * head.count("\n") + tail
        try:
            code = compile(head, name, "exec", flags, dont_inherit=True)
            if compound:
                # Of what it holds no value is shown, as it would be of one for a prompt.
                return _Python(source, name, code, ast.parse(tail, name).body)
            last = compile(tail, name, "single", flags, dont_inherit=True)
        except SyntaxError:
            return None
        return _Python(source, name, code, [], last)

    def _may_be_python(self, cell: str) -> bool:
        """Not one line whose first word is a magic's: ``ls -l`` is also a subtraction."""
        line = cell.strip()
        word = _FIRST_WORD.match(line)
        return "\n" in line or word is None or word[0] not in self.magics_manager.magics["line"]

    def init_history(self) -> None:
        self.history_manager = _History(shell=self, parent=self)
        self.configurables.append(self.history_manager)

    def enable_gui(self, gui: str | None = None) -> None:
        """There is no screen."""

    def clear(self) -> None:
        """A namespace as of a new shell."""
        module = types.ModuleType("__main__", doc="Namespace of the cells")
        module.__dict__["__builtin__"] = sys.modules["builtins"]
        module.__dict__["__builtins__"] = sys.modules["builtins"]
        self.user_module = module
        self.user_ns = module.__dict__
        self.user_ns_hidden.clear()
        for part in _PARTS:
            # What was made plain, and a cell has put there.
            self.__dict__.pop(part, None)
        self.displayhook._ = self.displayhook.__ = self.displayhook.___ = ""
        self.history_manager.forget(self.directory)
        self.execution_count = 1
        self.init_user_ns()
        self.user_ns.update(_="", __="", ___="")
        # IPython's own exit() asks a terminal to close; here it ends the cell, as in Python.
        for name in ("exit", "quit"):
            self.user_ns[name] = self.user_ns_hidden[name] = _Exit(name, "end-of-file")
        sys.modules["__main__"] = module
        self.last_execution_result = None


def build_shell() -> CellShell:
    """The one shell of this process."""
    config = Config()
    # Its SQLite database would open files, and its saving is a thread.
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.autocall = 0
    config.InteractiveShell.enable_tip = False
    shell = CellShell.instance(config=config)
    assert isinstance(shell, CellShell)
    # "To exit: use 'exit'" is advice for a terminal. For good: a cell's own filters are to stay.
    warnings.filterwarnings("ignore", message="To exit: use", module="IPython")
    # A script's end calls what was registered, and IPython would close its history.
    atexit.unregister(shell.atexit_operations)
    # In force for every cell, so that none has to set and reset them.
    shell.builtin_trap.__enter__()
    shell.display_trap.__enter__()
    shell._own_callbacks = {name: len(calls) for name, calls in shell.events.callbacks.items()}
    printers = shell.display_formatter.formatters["text/plain"].type_printers
    # True and False have theirs by themselves, which is the same.
    shell._plain_printers = {kind: printers.get(kind, printers[int]) for kind in _PLAIN}
    _make_plain(
        shell,
        *_PARTS,
        *("execution_count", "last_execution_result"),
    )
    _make_plain(shell.displayhook, "exec_result", "shell")
    _make_plain(
        shell.history_manager,
        *("_i00", "_i", "_ii", "_iii"),
        *("db_input_cache", "dir_hist", "input_hist_parsed", "input_hist_raw"),
        *("output_hist", "shell"),
    )
    # A cell that asks for help or an exit has no pager and no prompt to go to.
    shell.set_hook("show_in_pager", lambda _self, text, *a, **k: print(_plain_text(text)), 99)
    return shell


def _make_plain(only: Any, *names: str) -> None:
    """Make attributes of the only one of its class plain: nobody observes these traits.

    One that is a trait is read in a microsecond, and set in four; a cell does so 80 times.
    """
    for name in names:
        setattr(type(only), name, getattr(only, name))


def _plain_text(pager_text: Any) -> str:
    return str(pager_text.get("text/plain", "")) if isinstance(pager_text, dict) else pager_text


def warm_up() -> None:
    """Run what most cells will run, so that their process finds it done."""
    shell = CellShell.instance()
    shell.clear()
    run = CellRun(shell, lambda _: None)
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        run.cells(["import math\nx = [1]\nprint(x)\nmath.pi", "display(1)", "1/0", "%pwd", "x ="])
    forget_sources()
    shell.clear()


def forget_sources() -> None:
    """Have no lines of cells that ran before."""
    for name in [name for name in linecache.cache if name.startswith("<cell ")]:
        del linecache.cache[name]


class CellRun:
    """The cells of one task."""

    def __init__(self, shell: CellShell, show: Show) -> None:
        self._shell = shell
        self._show = show
        self._pid = os.getpid()
        shell.show = show
        shell.displayhook.result_of = self._result

    def cells(self, sources: list[str]) -> Result:
        """Run the sources one after the other, up to the first that fails.

        The values of all but the last are displayed, as a notebook does.
        """
        result = Result()
        for number, source in enumerate(sources, 1):
            shown, failure = self._cell(source)
            if failure is not None:
                return Result(failure=failure)
            if number == len(sources):
                result = shown or Result()
            elif shown is not None:
                self._show(_display(shown))
        return result

    def _cell(self, source: str) -> tuple[Result | None, Failure | None]:
        if "\0" in source:
            # IPython would cut the line there, and Python 3.10 raises a ValueError.
            return None, failure_of(SyntaxError("source code string cannot contain null bytes"))
        hook = self._shell.displayhook
        hook.value = hook.shown = None
        # For one cell a cell may have put another in its place.
        sys.displayhook = hook
        self._shell._depth = 0
        python = self._shell.python_of(source)
        if python is not None:
            error = self._shell.run_python(source, python)
        else:
            done = self._shell.run_cell(source, store_history=True)
            error = done.error_before_exec or done.error_in_exec
        if error is not None:
            if self._in_child():
                raise error
            return None, failure_of(error)
        shown, hook.value, hook.shown = hook.shown, None, None
        return shown, None

    def _result(self, value: Any) -> Result:
        texts, rich = self._forms(value)
        return Result(
            value=values.encode(value),
            text=texts,
            type_name=_type_name(value),
            bundle=rich,
        )

    def _forms(self, value: Any) -> tuple[str, Bundle | None]:
        """The value's text, and its bundle when that has more than text."""
        if type(value) in _PLAIN:
            data = {"text/plain": self._shell.plain_text(value)}
        else:
            data, _ = self._shell.display_formatter.format(value)
        # Not even an int has one always: Python writes no more than 4300 digits.
        text = data.get("text/plain")
        if not isinstance(text, str):
            text = f"<{_type_name(value)}: its repr raised an exception>"
        shown = _short(printable(text))
        if not data.keys() - {"text/plain"}:
            return shown, None
        bundle = _bundle(data)
        if isinstance(bundle, Cut):
            self._show(bundle)
            return shown, None
        return shown, bundle

    def script(self, source: str, argv: list[str], name: str) -> Result:
        """Run the source as ``python argv[0]`` would, from the file of this name, up to its exit."""
        # It finds its neighbours, as with Python.
        sys.path[:1] = [os.path.dirname(os.path.realpath(name))]
        module = types.ModuleType("__main__")
        module.__dict__.update(__file__=name, __builtins__=sys.modules["builtins"])
        sys.modules["__main__"] = module
        sys.argv = list(argv)
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        # `exit` and the like are Python's again.
        self._shell.builtin_trap.deactivate()
        try:
            try:
                exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
            finally:
                _end_of_process()
        except BaseException as exc:
            if self._in_child():
                raise
            code = exit_code(exc) if isinstance(exc, SystemExit) else 1
            return Result(failure=failure_of(exc) if code else None, exit_code=code)
        return Result(exit_code=0)

    def _in_child(self) -> bool:
        """Whether this is a child that the cell forked: what it raises, it ends with."""
        return os.getpid() != self._pid


_PLAIN: frozenset[type] = frozenset((bool, int, float, str, bytes))


def _end_of_process() -> None:
    """What the interpreter does at its end: wait for threads, call what asked to be called."""
    # Executors tell their threads here that no more will come.
    exit_calls = threading._threading_atexits  # type: ignore[attr-defined]
    while exit_calls:
        exit_calls.pop()()
    # A thread may have started others until it ended.
    while threads := [thread for thread in threading.enumerate() if _is_waited_for(thread)]:
        for thread in threads:
            thread.join()
    atexit._run_exitfuncs()


def _is_waited_for(thread: threading.Thread) -> bool:
    return not thread.daemon and thread is not threading.current_thread()


def exit_code(error: BaseException) -> int:
    """What a process exits with that this ends, once stderr has what Python says of it."""
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return (error.code or 0) & 0xFF
    try:
        said = error.code if isinstance(error, SystemExit) else failure_of(error).traceback[:-1]
        print(said, file=sys.stderr)
    except Exception:  # noqa: BLE001 - the text's own code, and what stands for stderr
        pass
    return 1


def _display(shown: Result) -> Display:
    """A value that is not the last one, as a notebook shows it."""
    return Display(shown.bundle or Bundle({"text/plain": shown.text or ""}))


def _bundle(data: dict[str, Any]) -> Bundle | Cut:
    """A mime bundle as IPython makes it, as text and bytes; a Cut when it is too large."""
    texts: dict[str, str] = {}
    blobs: dict[str, bytes] = {}
    for key, form in data.items():
        mime = printable(str(key))
        if mime in _BINARY and isinstance(form, str):
            form = _decoded(form)
        if isinstance(form, bytes):
            blobs[mime] = bytes(form)
        elif isinstance(form, str):
            texts[mime] = printable(form)
        else:
            try:
                texts[mime] = json.dumps(form)
            except (TypeError, ValueError, RecursionError):
                texts[mime] = printable(str(form))
    bundle = Bundle(texts, blobs)
    size = bundle.size + sum(len(mime.encode()) for mime in (*texts, *blobs))
    return bundle if size <= MAX_BUNDLE else Cut("displays", size)


# Where some libraries give base64 text and others bytes.
_BINARY = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"))


def _decoded(form: str) -> str | bytes:
    try:
        return base64.b64decode("".join(form.split()), validate=True)
    except ValueError:
        return form


def _type_name(value: object) -> str:
    cls = type(value)
    module = cls.__module__
    name = cls.__qualname__
    full = name if module in ("builtins", "__main__") else f"{module}.{name}"
    return printable(full)[:MAX_NAME]


def failure_of(error: BaseException) -> Failure:
    """An exception as text: name, value and traceback with the cell's own lines."""
    cls = type(error)
    # Not by way of a metaclass, which may call it anything.
    name = printable(type.__dict__["__name__"].__get__(cls))
    try:
        value = printable(str(error))
    except BaseException as exc:  # noqa: BLE001 - the exception's own code, which may do anything
        value = f"<its text cannot be had: {type(exc).__name__}>"
    try:
        shown = traceback.TracebackException.from_exception(error)
        _strip(shown)
        text = printable("".join(shown.format()))
    except BaseException as exc:  # noqa: BLE001 - the exception's own code, which may do anything
        text = f"{name}: {value}\n<its traceback cannot be had: {type(exc).__name__}>\n"
    builtin = getattr(builtins, name, None) is cls
    return Failure(name[:MAX_NAME], _short(value), _short(text), builtin)


_OURS = (
    __file__,
    os.path.join(os.path.dirname(__file__), "worker.py"),
    os.path.join(os.path.dirname(__file__), "calls.py"),
    interactiveshell.__file__,
    codeop.__file__,
)


def _strip(shown: traceback.TracebackException, seen: set[int] | None = None) -> None:
    """Take out the frames of the worker and of IPython's shell, which compiled and ran it."""
    seen = set() if seen is None else seen
    if id(shown) in seen:
        return
    seen.add(id(shown))
    shown.stack[:] = [
        frame
        for frame in shown.stack
        if frame.filename not in _OURS and "/IPython/core/" not in frame.filename
    ]
    line = shown.lineno if getattr(shown, "text", "") is None else None
    if line is not None and line.isdigit():
        # The compiler does not have the source of a tree, and looks for a file.
        found = linecache.getline(str(shown.filename), int(line))
        shown.text = found or shown.text
    for other in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        if other is not None:
            _strip(other, seen)


def _short(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[: MAX_TEXT // 2]}\n[… {len(text) - MAX_TEXT} characters cut …]\n{text[-(MAX_TEXT // 2) :]}"
