"""Cells at an original runtime: the text that is sent, and what its observations amount to.

An original runtime tells less than ours. So a first line goes before each cell:
it sets the variables, says once on stdout and on stderr that it ran (output that
lacks it was lost on the way), has IPython print a mark before the value in place
of ``Out[n]:`` and one after it, and takes itself out of the cell's tracebacks. The
exception is read from what IPython printed of it.

Pure: text in and out.
"""

from __future__ import annotations

import base64
import re

from mentis_pool.mentis_v1 import ResultObservation
from mentis_pool.observations import Error, Failure, Observation, Result, StreamName
from mentis_pool.output import StreamBound
from mentis_pool.text import to_bytes

# Runs in the sandbox, before the cell. `to_run` is IPython's list of what it will
# compile, one statement after the other (InteractiveShell.run_ast_nodes).
_SETUP = """
import ast, base64, functools, linecache, pickle, sys
for name, pickled in variables.items():
    try:
        ip.user_ns[name] = pickle.loads(base64.b64decode(pickled))
    except BaseException as exc:
        print(f"\\x02{token}!{name!r} cannot be rebuilt in the sandbox: {type(exc).__name__}: {exc}\\x03")
        print(f"\\x02{token}:\\x03", file=sys.stderr)
        raise
# The hook is there longer than the variables are to be: nothing it holds knows them.
hook = ip.displayhook
hook.write_output_prompt = functools.partial(print, f"\\x02{token}=\\x03", end="")
hook.finish_displayhook = eval("lambda call, mark: lambda: (call(), print(mark, end=''))", {})(
    functools.partial(type(hook).finish_displayhook, hook), f"\\x02{token}.\\x03"
)
frame = sys._getframe(1)
file = frame.f_code.co_filename
while frame is not None and "to_run" not in frame.f_locals:
    frame = frame.f_back
if frame is not None:
    for node, _ in frame.f_locals["to_run"][1:]:
        ast.increment_lineno(node, -1)
    if file in linecache.cache:
        size, time, lines, name = linecache.cache[file]
        linecache.cache[file] = size, time, lines[1:], name
for stream in sys.stdout, sys.stderr:
    print(f"\\x02{token}:\\x03", file=stream)
"""

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_MARGIN = re.compile(r"[ \t]*")
# IPython's own, or Python's.
_HEADER = re.compile(
    r"^(?:-{75}\n)?(?:(\S+) +|  \+ Exception Group )?Traceback \(most recent call last\):?$",
    re.MULTILINE,
)
_CHAINED = re.compile(
    r"\n(?:The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred):\n\n\Z"
)
# Of what is no Python, and of an exit.
_SHORT_HEADER = re.compile(
    r"^(?: *(?:Cell In ?\[\d+\], line \d+|Input In \[\d+\]|File .*, line \d+|File <.*>:\d+)"
    r"|An exception has occurred, use %tb to see the full traceback\.).*$",
    re.MULTILINE,
)
# No number is longer that counts lines; more digits than 4300 int() refuses.
_PLACE = re.compile(
    r"(Cell In ?\[\d+\], line |<ipython-input-[^>]*>(?:\"?, line |:))(\d{1,9})(?!\d)"
)
# IPython's own frame, in a traceback that Python printed.
_RUNNER = re.compile(
    r"^(?:  \| )?  File \"[^\"]*interactiveshell\.py\", line \d+, in run_\w+\n(?:  \| )?    .*\n",
    re.MULTILINE,
)
# The first line of a group's own, in its margin; its exceptions are farther in.
_GROUP = re.compile(r"^  \| ([A-Za-z_][\w.]*)(?:: (.*))?$", re.MULTILINE)
_LAST = re.compile(r"^([A-Za-z_][\w.]*)(?:: ?(.*))?\Z", re.MULTILINE | re.DOTALL)


def source(cell: str, token: str, variables: dict[str, bytes]) -> str:
    """The text to be sent for a cell.

    Args:
        token: a word that nobody else knows.
        variables: their pickles, by name.
    """
    packed = {name: base64.b64encode(pickled).decode() for name, pickled in variables.items()}
    first = (
        f"__import__('builtins').exec({_SETUP!r}, "
        f"{{'ip': get_ipython(), 'token': {token!r}, 'variables': {packed!r}}})"
    )
    return f"{first}\n{_python(cell)}"


def _python(cell: str) -> str:
    """The cell as it may stand after a line of Python."""
    begun = cell.lstrip("\n")
    if begun[:2] == "%%" or _MARGIN.match(begun)[0] or begun[:3] in (">>>", "In "):  # type: ignore[index]
        # What IPython looks for in the first lines only, it has to do before.
        from IPython.core.inputtransformer2 import TransformerManager

        return str(TransformerManager().transform_cell(cell))
    return cell


def is_complete(stdout: str, stderr: str, token: str, result: ResultObservation) -> bool:
    """Whether nothing is lost of the output of a cell that ended with this result."""
    said = f"\x02{token}:"
    if said in stdout or f"\x02{token}!" in stdout:
        return said in stderr
    # What is no Python does not run at all, and its traceback is all that it says.
    return result.exit_code != 0 and stdout != "" and said not in stderr


def outcome(
    stdout: str, stderr: str, token: str, result: ResultObservation, max_output: int | None
) -> list[Observation]:
    """What a cell said, from its complete output to its result, as our own runtime says it."""
    shown, begun, wrong = _unmarked(stdout, token)
    errors, _, _ = _unmarked(stderr, token)
    said: Result | Error
    if wrong is not None:
        shown, said = "", Error("payload", f"the variable {wrong}")
    elif result.exit_code != 0:
        shown, _ = _value_in(shown, token)
        value = result.error_value or ""
        if _is_in_stderr(shown, errors, value):
            errors, failure = failure_in(errors, value)
        else:
            shown, failure = failure_in(shown, value, shifted=not begun)
        said = Result(failure=failure)
    else:
        shown, text = _value_in(shown, token)
        # Nothing tells the type.
        said = Result(text=text, type_name=None if text is None else "unknown")
    return [*_output(shown, errors, max_output), said]


def output(stdout: str, stderr: str, token: str, max_output: int | None) -> list[Observation]:
    """What a cell wrote, as far as it was heard."""
    shown, _ = _value_in(_unmarked(stdout, token)[0], token)
    return _output(shown, _unmarked(stderr, token)[0], max_output)


def _unmarked(text: str, token: str) -> tuple[str, bool, str | None]:
    """The text without what the first line said, whether it did, and what was wrong."""
    mark = re.search(f"\x02{token}([:!])([^\x03]*)\x03\n?", text)
    if mark is None:
        return text, False, None
    return text[: mark.start()] + text[mark.end() :], True, mark[2] if mark[1] == "!" else None


def _value_in(stdout: str, token: str) -> tuple[str, str | None]:
    """The output around the value that was displayed last, and its text."""
    begin, end = f"\x02{token}=\x03", f"\x02{token}.\x03"
    before, displayed, rest = stdout.rpartition(begin)
    shown, whole, after = rest.partition(end)
    output, text = stdout, None
    # Where an exception came from displaying it, it has no end.
    if displayed and whole:
        output = before + after
        text = shown.removesuffix("\n")
        # A value of several lines begins on a line of its own.
        text = text.removeprefix("\n") if "\n" in text else text
    return output.replace(begin, "").replace(end, ""), text


def _is_in_stderr(stdout: str, stderr: str, value: str) -> bool:
    """Whether the traceback is there: IPython 9 prints those that hold a group as Python does."""
    if "Exception Group Traceback (most recent call last)" not in stderr:
        return False
    plain = _ESCAPES.sub("", stdout)
    return _HEADER.search(plain) is None or value not in plain


def failure_in(stdout: str, value: str, shifted: bool = False) -> tuple[str, Failure]:
    """The output before a traceback that IPython printed, and the exception.

    Args:
        value: the exception's text, where it is known.
        shifted: whether the lines of the cell are counted from one too early.
    """
    plain = _ESCAPES.sub("", stdout)
    headers = list(_HEADER.finditer(plain)) or list(_SHORT_HEADER.finditer(plain))[-1:]
    at = headers[-1].start() if headers else 0
    for header in reversed(headers[:-1]):
        if not _CHAINED.search(plain[header.start() : at]):
            break
        at = header.start()
    name = headers[-1][1] if headers and headers[-1].re is _HEADER else None
    group = _GROUP.search(plain, headers[-1].end()) if headers else None
    if group and "Exception Group" in headers[-1][0]:
        name, value = group[1], value or group[2] or ""
    if name is None:
        last = _LAST.search(plain[at:].rstrip().rpartition("\n")[2])
        name = last[1] if last else "UnknownError"
        if last and not value:
            value = last[2] or ""
    traceback = _RUNNER.sub("", plain[at:]).rstrip("\n") + "\n"
    if shifted:
        traceback, value = _PLACE.sub(_one_less, traceback), _PLACE.sub(_one_less, value)
    if not value and f"\n{name}: " in traceback:
        value = traceback.rpartition(f"\n{name}: ")[2].rstrip("\n")
    # Nothing tells the class from the name.
    failure = Failure(name, value, traceback, builtin=True)
    return _with_colours(stdout, plain[:at]), failure


def _one_less(place: re.Match[str]) -> str:
    return f"{place[1]}{max(1, int(place[2]) - 1)}"


def _with_colours(coloured: str, plain: str) -> str:
    """As much of a coloured text as this is, which is the beginning of it without colours."""
    at = left = 0
    while left < len(plain):
        escape = _ESCAPES.match(coloured, at)
        if escape:
            at = escape.end()
        else:
            at += 1
            left += 1
    return coloured[:at]


def _output(stdout: str, stderr: str, limit: int | None) -> list[Observation]:
    return [*_bounded("stdout", stdout, limit), *_bounded("stderr", stderr, limit)]


def _bounded(stream: StreamName, text: str, limit: int | None) -> list[Observation]:
    bound = StreamBound(stream, limit)
    return [*bound.feed(to_bytes(text)), *bound.finish()]
