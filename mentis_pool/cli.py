"""The command: programs from files and lines to the executor, their results to a person and a file.

One thread reads and submits, `AHEAD` programs before the one that is printed
next; the main thread prints in the order of input. The reader is a daemon: it
may wait for a line or for the printer for ever, and holds nothing that needs an end.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, NoReturn, TypeVar

from mentis_pool._version import __version__
from mentis_pool.errors import CellError, MentisPoolError
from mentis_pool.executor import SandboxExecutor
from mentis_pool.future import CellFuture
from mentis_pool.observations import Cut, Display, Result, Stream
from mentis_pool.results import CellResult
from mentis_pool.text import for_terminal, printable, to_text
from mentis_pool.walls import LEVELS

if TYPE_CHECKING:
    from rich.progress import Progress

N = TypeVar("N", int, float)

AHEAD = 256
"""Programs submitted before the first of them is printed."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to run: cells one after the other, or a script where there is an ``argv``."""

    name: str
    sources: list[str]
    argv: tuple[str, ...] | None = None
    stdin: str | None = None


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Something that cannot be run, and why."""

    name: str
    reason: str


# ── what is to be run ───────────────────────────────────────────────────────


def programs(
    files: list[str],
    cells: list[str],
    lines: Iterator[bytes],
    read: Callable[[], str] | None = None,
) -> Iterator[Program | Unreadable]:
    """All that the command line names, in order: files, then cells; ``-`` stands for the lines.

    ``read`` gives what a script that is alone finds in its standard input.
    """
    for path in files:
        if path == "-":
            yield from _of_lines(lines)
            continue
        program = _of_file(path)
        if read and isinstance(program, Program) and program.argv and len(files) + len(cells) == 1:
            program = dataclasses.replace(program, stdin=read())
        yield program
    for number, cell in enumerate(cells, 1):
        yield Program(f"cell {number}", [cell])


def _of_file(path: str) -> Program | Unreadable:
    try:
        with open(path, "rb") as file:
            content = file.read()
        if path.endswith(".ipynb"):
            return Program(path, notebook_cells(content))
        return Program(path, [importlib.util.decode_source(content)], argv=(path,))
    except (OSError, ValueError, SyntaxError) as exc:
        return Unreadable(path, f"{path} cannot be read: {exc}")


def notebook_cells(content: bytes) -> list[str]:
    """The source of each code cell of a notebook (nbformat 4).

    Raises:
        ValueError: it is none.
    """
    try:
        notebook = json.loads(content)
    except RecursionError as exc:
        raise ValueError("not a notebook: nested too deep") from exc
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ValueError("not a notebook of format 4: it has no list of cells")
    sources = []
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            raise ValueError(f"not a notebook: cell {number} is no object")
        if cell.get("cell_type") != "code":
            continue
        source = cell.get("source")
        parts = [source] if isinstance(source, str) else source
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ValueError(f"not a notebook: cell {number} has no source text")
        sources.append("".join(parts))
    return sources


def _of_lines(lines: Iterator[bytes]) -> Iterator[Program | Unreadable]:
    """One program of each line ``{"id": …, "code": …}``; empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield program_of_line(number, line)


def program_of_line(number: int, line: bytes) -> Program | Unreadable:
    """The program of one line of JSON; without an id it is named for the line's number."""
    name = f"line {number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as exc:
        return Unreadable(name, f"line {number} is not JSON: {exc}")
    if not isinstance(record, dict) or not isinstance(record.get("code"), str):
        return Unreadable(name, f'line {number} must be an object with a text "code"')
    given = record.get("id", name)
    if not isinstance(given, (str, int)) or isinstance(given, bool):
        return Unreadable(name, f'line {number}: "id" must be text or an integer')
    return Program(str(given), [record["code"]])


# ── running ─────────────────────────────────────────────────────────────────


class _Reader:
    """Submits programs in a thread of its own; iterate for names and futures, in order."""

    def __init__(
        self,
        executor: SandboxExecutor,
        source: Iterator[Program | Unreadable],
        done: Callable[[], object],
    ) -> None:
        self._executor = executor
        self._source = source
        self._done = done
        self._items: queue.Queue[_Item | BaseException | None] = queue.Queue(AHEAD)
        threading.Thread(target=self._read, daemon=True, name="mentis-pool-reader").start()

    def __iter__(self) -> Iterator[_Item]:
        while (item := self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _read(self) -> None:
        try:
            for program in self._source:
                self._items.put((program.name, self._submit(program)))
        except BaseException as exc:  # noqa: BLE001 - the main thread raises it
            self._items.put(exc)
        self._items.put(None)

    def _submit(self, program: Program | Unreadable) -> CellFuture | Unreadable:
        if isinstance(program, Unreadable):
            self._done()
            return program
        view = self._executor.options(argv=program.argv, task_id=program.name, stdin=program.stdin)
        # It runs in another directory, and there looks for its neighbours and for itself.
        path = None if program.argv is None else os.path.abspath(program.argv[0])
        future = view._submit(program.sources or [""], {}, path)
        future.add_done_callback(lambda _: self._done())
        return future


_Item = tuple[str, "CellFuture | Unreadable"]


def _result_of(outcome: CellFuture | Unreadable) -> CellResult:
    if isinstance(outcome, Unreadable):
        return CellResult(error=MentisPoolError(outcome.reason))
    try:
        return outcome.result()
    except MentisPoolError as error:
        return error.result if error.result is not None else CellResult(error=error)


# ── what a person sees ──────────────────────────────────────────────────────


class _Page:
    """Where text for a person goes: stdout and stderr, which may be one and the same."""

    def __init__(self, named: bool, stdout: IO[str]) -> None:
        self._named = named
        self._stdout = stdout
        self._one = _same_file(stdout, sys.stderr)
        self._at_start = {"stdout": True, "stderr": True}
        self._headings: dict[str, str] = {}

    def begin(self, name: str) -> None:
        """What follows is of this program; its name goes before the first of it."""
        if self._named:
            self._headings = dict.fromkeys(self._at_start, f"── {name}\n")
            self.write("stdout", "")

    def write(self, stream: str, text: str) -> None:
        """Text as it is, under the program's name."""
        file = self._stdout if stream == "stdout" else sys.stderr
        heading = self._headings.pop(stream, "")
        if self._one:
            self._headings.clear()
        if file.isatty():
            text = for_terminal(text)
        if heading or text:
            file.write(heading + text)
            file.flush()
            for each in self._at_start if self._one else [stream]:
                self._at_start[each] = (heading + text).endswith("\n")

    def line(self, stream: str, text: str) -> None:
        """Text on lines of its own."""
        self._end_line(stream)
        self.write(stream, text)
        self._end_line(stream)

    def end(self) -> None:
        """Nothing more of this program."""
        for stream in self._at_start:
            self._end_line(stream)

    def _end_line(self, stream: str) -> None:
        if not self._at_start[stream]:
            self.write(stream, "\n")


def _same_file(one: IO[str], other: IO[str]) -> bool:
    try:
        a, b = os.fstat(one.fileno()), os.fstat(other.fileno())
    except (OSError, ValueError):
        return False
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def _show(page: _Page, name: str, outcome: CellFuture | Unreadable) -> CellResult:
    """Print what a program says, as it says it; then its error."""
    page.begin(name)
    if isinstance(outcome, CellFuture):
        for seen in outcome.observations():
            if isinstance(seen, Stream):
                page.write(seen.stream, seen.text)
            elif isinstance(seen, Cut):
                page.line("stderr", f"[… {seen.bytes} bytes of {seen.stream} cut …]")
            elif isinstance(seen, Display):
                page.line("stdout", seen.bundle.texts.get("text/plain", ""))
            elif isinstance(seen, Result):
                page.line("stdout", seen.text or "")
    result = _result_of(outcome)
    if result.error is not None and not _is_said(result.error, result.stderr):
        page.line("stderr", _described(result.error))
    page.end()
    return result


def _is_said(error: MentisPoolError, stderr: str) -> bool:
    """Whether it is the exit of a script with a text, which Python writes on stderr itself."""
    if not isinstance(error, CellError) or error.name != "SystemExit":
        return False
    return stderr.endswith(f"{error.value}\n") and not error.value.lstrip("-").isdigit()


def _described(error: MentisPoolError) -> str:
    if isinstance(error, CellError):
        # An exit code is no accident: no traceback for it.
        return str(error) if error.name == "SystemExit" else error.traceback
    return str(error) if type(error) is MentisPoolError else f"{type(error).__name__}: {error}"


class _Bar:
    """A progress bar on stderr, where that is a terminal; it makes way for output."""

    def __init__(self, total: int | None) -> None:
        self._progress: Progress | None = None
        if total == 1 or not sys.stderr.isatty():
            return
        # Takes 60 ms to import, and most runs show no bar.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> _Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self) -> None:
        """One more is done."""
        if self._progress is not None:
            self._progress.advance(self._task)

    @contextlib.contextmanager
    def aside(self, outcome: CellFuture | Unreadable) -> Iterator[None]:
        """For printing this outcome: a bar stays until all of it is there, and goes meanwhile."""
        if self._progress is None:
            yield
            return
        if isinstance(outcome, CellFuture):
            concurrent.futures.wait([outcome])
        self._progress.stop()
        yield
        self._progress.start()


# ── the command ─────────────────────────────────────────────────────────────


def _number(kind: Callable[[str], N], fits: Callable[[N], bool], must: str) -> Callable[[str], N]:
    """What argparse reads a number with, and says of one that does not fit."""

    def read(text: str) -> N:
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or not fits(number):
            raise argparse.ArgumentTypeError(f"must be {must}, not {text}")
        return number

    return read


_count = _number(int, lambda count: count >= 1, "an integer of at least 1")
_port = _number(int, lambda port: 0 <= port < 65536, "an integer from 0 to 65535")
_seconds = _number(
    float, lambda seconds: 0 < seconds < 1e9, "more than 0 seconds and less than 1e9"
)


def _with_cells(words: list[str]) -> list[str]:
    """The words with ``-c -1`` as one, ``-c-1``: argparse would take that cell for an option."""
    joined: list[str] = []
    for word in words:
        if joined[-1:] == ["-c"] and word.startswith("-"):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _parse(arguments: list[str]) -> argparse.Namespace:
    log = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    log.add_argument(
        "--log", metavar="FILE", help="write log events to FILE, as JSON lines; - for stderr"
    )
    parser = argparse.ArgumentParser(
        prog="mentis-pool", description="Run Python code in sandboxes.", parents=[log]
    )
    parser.add_argument("--version", action="version", version=f"mentis-pool {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        parents=[log],
        help="run programs, all at the same time",
        description="Run programs at the same time, each in a sandbox; print what each says, "
        "in the order given (files, then cells). Exits 1 when one failed, 2 when "
        "nothing could be run as asked.",
    )
    run.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="a Python file, run as a script, which gets the standard input where it is alone and "
        "that is no terminal (for all else it is empty); a notebook (.ipynb), its cells in order "
        'in one sandbox; or -, lines {"id": …, "code": …} of standard input, each a cell',
    )
    run.add_argument(
        "-c", dest="cells", action="append", default=[], metavar="CODE", help="a cell; repeatable"
    )
    run.add_argument("--workers", type=_count, metavar="N", help="how many run at once (the CPUs)")
    run.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="for which each may run (no limit)"
    )
    run.add_argument(
        "--out",
        metavar="FILE",
        help="write results to FILE, a line of JSON each, in order; - for stdout, and what the "
        "programs print for stderr",
    )
    _add_isolation(run)
    _add_serve(commands, log)
    commands.add_parser(
        "doctor",
        parents=[log],
        help="say which walls hold on this machine",
        description="Try on this machine what sandboxes are isolated with, and say what works, a "
        "line each. Exits 1 when the strongest isolation cannot be had.",
    )
    parsed, rest = parser.parse_known_args(_with_cells(arguments))
    if parsed.command != "run":
        if rest:
            parser.error(f"unrecognized argument: {rest[0]}")
        return parsed
    # argparse takes files up to the first option only.
    for word in rest:
        if word.startswith("-") and word != "-":
            parser.error(f"unrecognized argument: {word}")
    parsed.files += rest
    if not parsed.files and not parsed.cells:
        run.error("nothing to run: give files, - or -c CODE")
    if parsed.files.count("-") > 1:
        run.error("standard input (-) can be read once")
    for path in parsed.files:
        if path != "-" and (os.path.isdir(path) or not os.path.exists(path)):
            run.error(f"there is no file {path}")
    return parsed


def _add_isolation(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--isolation",
        choices=("auto", *LEVELS),
        default="auto",
        help="how sandboxes are isolated; naming a level insists on it (auto: the strongest)",
    )
    command.add_argument(
        "--network",
        choices=("none", "host"),
        default="none",
        help="what sandboxes reach: nothing, or what this machine does (none)",
    )
    command.add_argument(
        "--expose",
        action="append",
        default=[],
        metavar="PATH",
        help="a path that sandboxes may read besides; repeatable",
    )


def _add_serve(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], log: argparse.ArgumentParser
) -> None:
    serve = commands.add_parser(
        "serve",
        parents=[log],
        help="serve sandboxes to other programs and other machines",
        description="Serve sandboxes on TCP until it is told to stop (Ctrl-C, SIGTERM): to "
        "SandboxExecutor(runtime=URL, token=TOKEN), and to clients of a Mentis runtime. Clients "
        "must give a token, which is printed at the start, or taken from MENTIS_RUNTIME_TOKEN.",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=_port, default=5266, help="port; 0 for any (5266)")
    serve.add_argument(
        "--no-token", action="store_true", help="ask for no token; on loopback addresses only"
    )
    serve.add_argument(
        "--insecure",
        action="store_true",
        help="serve to other machines without insisting on walls around the sandboxes",
    )
    serve.add_argument(
        "--max-sandboxes",
        type=_count,
        metavar="N",
        help="sandboxes at most (what the memory and the CPUs are enough for)",
    )
    serve.add_argument(
        "--linger",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="keep the sandboxes of a client to which the connection was lost so long, until it"
        " comes back (default: %(default)g)",
    )
    serve.add_argument(
        "--preload",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this once, for all cells; repeatable",
    )
    _add_isolation(serve)


def _serve(parsed: argparse.Namespace) -> int:
    if sys.platform == "win32":
        print("mentis-pool: serve needs fork(), which Windows has not", file=sys.stderr)
        return 2
    from mentis_pool.runtime import serve, standing

    token = None
    if not parsed.no_token:
        token = os.environ.get("MENTIS_RUNTIME_TOKEN") or secrets.token_urlsafe(24)
    reason = serve.refusal(parsed.host, token, parsed.insecure, parsed.isolation)
    if reason is not None:
        print(f"mentis-pool: {reason}", file=sys.stderr)
        return 2
    try:
        return serve.serve(
            parsed.host,
            parsed.port,
            token,
            parsed.max_sandboxes,
            parsed.preload,
            standing.Asked(
                parsed.isolation,
                parsed.network,
                [os.path.abspath(path) for path in parsed.expose],
                os.path.expanduser("~"),
            ),
            parsed.linger,
        )
    except standing.NoIsolation as exc:
        print(f"mentis-pool: {exc}", file=sys.stderr)
        return 2
    except OSError as exc:
        where = f"{parsed.host} port {parsed.port}"
        print(f"mentis-pool: {where} cannot be served: {exc}", file=sys.stderr)
        return 2


def _doctor() -> int:
    from mentis_pool.runtime import probe

    found = probe.found()
    for each in found:
        print(f"{each.name}: {'works' if each.held else 'does NOT work'} ({each.detail})")
    return 0 if found[0].held else 1


def _log_to(path: str) -> IO[str]:
    """Write the log events there."""
    import structlog

    file = sys.stderr if path == "-" else open(path, "a", encoding="utf-8")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=file),
    )
    return file


def _standard_input() -> IO[bytes]:
    # Not sys.stdin: the reader may be in the middle of a line when Python ends,
    # and Python would wait for that file's lock. Where it is closed, that is None.
    return io.BytesIO() if sys.stdin is None else open(sys.stdin.fileno(), "rb", closefd=False)


def _input_lines() -> Iterator[bytes]:
    with _standard_input() as file:
        yield from file


_INPUT_WITHIN = 2.0
"""Seconds after which it is said that an end of the standard input is waited for."""
_MAX_INPUT = 256 * 1024 * 1024
"""Bytes of standard input for a script."""


def _whole_input() -> str:
    """All of the standard input, for a script.

    Raises:
        OSError: it cannot be read, or has no end within the limit.
    """
    said = "mentis-pool: the script begins when standard input is at its end (< /dev/null: at once)"
    notice = threading.Timer(_INPUT_WITHIN, print, [said], {"file": sys.stderr, "flush": True})
    notice.daemon = True
    notice.start()
    with _standard_input() as file:
        content = file.read(_MAX_INPUT + 1)
    notice.cancel()
    if len(content) > _MAX_INPUT:
        raise OSError(f"standard input has more than {_MAX_INPUT} bytes: give them as a file")
    return to_text(content)


def _results_file(path: str) -> IO[str]:
    """Where ``--out`` goes, as UTF-8."""
    if path == "-":
        return open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False)
    return open(path, "w", encoding="utf-8")


def _run(parsed: argparse.Namespace, out: IO[str] | None) -> int:
    total = None if "-" in parsed.files else len(parsed.files) + len(parsed.cells)
    piped = sys.stdin is not None and not sys.stdin.isatty()
    source = programs(parsed.files, parsed.cells, _input_lines(), _whole_input if piped else None)
    page = _Page(total != 1, sys.stderr if parsed.out == "-" else sys.stdout)
    count = 0
    failed: list[str] = []
    # A script imports its neighbours, and opens what lies beside it; elsewhere there is nothing.
    here = [] if os.environ.get("MENTIS_RUNTIME_URL") else parsed.files
    try:
        executor = SandboxExecutor(
            parsed.workers,
            timeout=parsed.timeout,
            isolation=parsed.isolation,
            network=parsed.network,
            expose=[*parsed.expose, *{os.path.dirname(os.path.abspath(path)) for path in here}],
        )
    except ValueError as exc:
        # Of the address in the environment, or of what cannot be asked of the runtime there.
        print(f"mentis-pool: {exc}", file=sys.stderr)
        return 2
    with contextlib.nullcontext() if out is None else out, _Bar(total) as bar:
        for name, outcome in _Reader(executor, source, bar.advance):
            with bar.aside(outcome):
                result = _show(page, name, outcome)
            if out is not None:
                json.dump({"id": printable(name), **result.to_dict()}, out, ensure_ascii=False)
                out.write("\n")
                out.flush()
            count += 1
            if not result.ok:
                failed.append(name)
    executor.shutdown()
    if failed and count > 1:
        names = ", ".join(failed[:10]) + (", …" if len(failed) > 10 else "")
        if sys.stderr.isatty():
            names = for_terminal(names)
        print(f"{len(failed)} of {count} failed: {names}", file=sys.stderr)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """The command ``mentis-pool``.

    Args:
        arguments: instead of ``sys.argv[1:]``.

    Returns:
        The exit code: 0, or 1 when a program failed, or 2 when a file cannot be
        written. Usage errors exit with 2. Ctrl-C and a closed pipe end the process
        as their signals do, and its sandboxes with it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        parsed = _parse(sys.argv[1:] if arguments is None else arguments)
        try:
            if "log" in parsed:
                _log_to(parsed.log)
            if parsed.command == "serve":
                return _serve(parsed)
            if parsed.command == "doctor":
                return _doctor()
            out = None if parsed.out is None else _results_file(parsed.out)
        except OSError as exc:
            print(f"mentis-pool: {exc}", file=sys.stderr)
            return 2
        return _run(parsed, out)
    except KeyboardInterrupt:
        _die_of(signal.SIGINT)
    except BrokenPipeError:
        _die_of(signal.SIGPIPE)
    except OSError as exc:
        print(f"mentis-pool: {exc}", file=sys.stderr, flush=True)
        # What still runs is of no use to anybody, and may run for ever.
        os._exit(2)


def _die_of(number: signal.Signals) -> NoReturn:
    # As other commands end; the runtime sees that its client is gone, and goes too.
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
