"""The command, as typed: what it prints, writes and exits with; and how it reads what it is given."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from mentis_pool import CellResult, __version__
from mentis_pool.cli import (
    Program,
    Unreadable,
    notebook_cells,
    program_of_line,
    programs,
)

COMMAND = [sys.executable, "-m", "mentis_pool"]


def mentis_pool(*arguments, stdin="", cwd=None, code=0):
    """Run the command; its stdout and stderr."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        errors="surrogateescape",
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


@contextlib.contextmanager
def started(*arguments, **settings):
    """The command while it runs; killed in the end, whatever happens."""
    with subprocess.Popen([*COMMAND, *arguments], **settings) as process:
        try:
            yield process
        finally:
            process.kill()


def notebook(*sources):
    cells = [{"cell_type": "code", "source": s, "outputs": [], "metadata": {}} for s in sources]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})


def records(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# ── what is to be run ───────────────────────────────────────────────────────


def test_files_come_first_and_lines_where_the_dash_stands(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("1")
    path = str(file)
    found = list(programs([path, "-", path], ["2"], iter([b'{"id": "x", "code": "3"}'])))
    script = Program(path, ["1"], (path,))
    assert found == [script, Program("x", ["3"]), script, Program("cell 1", ["2"])]


def test_a_script_that_is_alone_gets_the_standard_input(tmp_path):
    file, book = tmp_path / "a.py", tmp_path / "b.ipynb"
    file.write_text("1")
    book.write_text(notebook())
    script, other = str(file), str(book)

    def given(files, cells=()):
        return [each.stdin for each in programs(files, list(cells), iter([]), lambda: "given")]

    assert given([script]) == ["given"]
    for files, cells in ([script, script], ()), ([script], ["1"]), ([other], ()), ([], ["1"]):
        assert set(given(files, cells)) == {None}
    assert isinstance(next(programs(["missing.py"], [], iter([]), pytest.fail)), Unreadable)


def test_lines_are_read_as_they_are_asked_for():
    read = []

    def lines():
        for number in range(1000):
            read.append(number)
            yield b'{"code": "1"}\n'

    found = programs(["-"], [], lines())
    next(found)
    next(found)
    assert len(read) == 2


def test_a_line_without_an_id_is_named_for_its_number():
    found = list(programs(["-"], [], iter([b"\n", b'{"code": "1"}', b'{"id": 7, "code": "2"}'])))
    assert found == [Program("line 2", ["1"]), Program("7", ["2"])]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "line 3 is not JSON"),
        (b"\xff", "line 3 is not JSON"),
        (b"[" * 100_000, "line 3 is not JSON"),
        (b"[]", 'line 3 must be an object with a text "code"'),
        (b"{}", 'line 3 must be an object with a text "code"'),
        (b'{"code": 1}', 'line 3 must be an object with a text "code"'),
        (b'{"code": "1", "id": []}', 'line 3: "id" must be text or an integer'),
        (b'{"code": "1", "id": true}', 'line 3: "id" must be text or an integer'),
    ],
    ids=range(8),
)
def test_a_line_that_is_no_program_is_named(line, why):
    found = program_of_line(3, line)
    assert isinstance(found, Unreadable)
    assert found.name == "line 3"
    assert found.reason.startswith(why)


def test_the_code_cells_of_a_notebook_are_its_sources():
    cells = [
        {"cell_type": "markdown", "source": "# no"},
        {"cell_type": "code", "source": ["a = 1\n", "a"]},
        {"cell_type": "raw", "source": "no"},
        {"cell_type": "code", "source": "b"},
    ]
    assert notebook_cells(json.dumps({"cells": cells}).encode()) == ["a = 1\na", "b"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"worksheets": []}',
        '{"cells": [1]}',
        '{"cells": [{"cell_type": "code"}]}',
        '{"cells": [{"cell_type": "code", "source": [1]}]}',
        "[" * 100_000,
    ],
    ids=range(8),
)
def test_what_is_no_notebook_is_refused(content):
    with pytest.raises(ValueError, match=r"."):
        notebook_cells(content.encode())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"'caf\xc3\xa9'", "'café'"),
        (b"\xef\xbb\xbf1\r\n2\r\n", "1\n2\n"),
        (b"# coding: latin-1\n'caf\xe9'", "# coding: latin-1\n'café'"),
    ],
)
def test_a_script_is_read_as_python_reads_it(tmp_path, content, text):
    file = tmp_path / "a.py"
    file.write_bytes(content)
    (found,) = programs([str(file)], [], iter([]))
    assert found.sources == [text]


@pytest.mark.parametrize("content", [b"'\xe9'", b"# coding: nonsense\n1"])
def test_a_script_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "a.py"
    file.write_bytes(content)
    (found,) = programs([str(file)], [], iter([]))
    assert isinstance(found, Unreadable)
    assert found.reason.startswith(f"{file} cannot be read: ")


# ── what a person sees ──────────────────────────────────────────────────────


def test_each_cell_prints_under_its_name():
    out, err = mentis_pool(
        "run", "-c", "print('one')", "-c", "import math; math.pi", "-c", "!echo three"
    )
    assert out == "── cell 1\none\n── cell 2\n3.141592653589793\n── cell 3\nthree\n"
    assert err == "", "there is no bar where stderr is no terminal"


def test_one_program_alone_has_no_heading():
    assert mentis_pool("run", "-c", "print('x', end='')") == ("x\n", "")
    assert mentis_pool("run", "-c", "") == ("", "")


def test_a_cell_may_begin_with_a_minus():
    assert mentis_pool("run", "-c", "-1", "-c", "-True", "-c", "")[0] == (
        "── cell 1\n-1\n── cell 2\n-1\n── cell 3\n"
    )
    assert "name 'x'" in mentis_pool("run", "-c", "-x", code=1)[1]


def test_a_display_is_shown_as_text():
    out, _ = mentis_pool("run", "-c", "display([1]); display('x' * 3); {4}")
    assert out == "[1]\n'xxx'\n{4}\n"


def test_errors_go_to_stderr_under_the_same_name():
    out, err = mentis_pool("run", "-c", "print(1); 1/0", "-c", "2", code=1)
    assert out == "── cell 1\n1\n── cell 2\n2\n"
    heading, *traceback, last = err.splitlines()
    assert heading == "── cell 1"
    assert "ZeroDivisionError: division by zero" in traceback[-1]
    assert last == "1 of 2 failed: cell 1"


def test_what_cannot_be_encoded_is_written_with_backslashes():
    assert mentis_pool("run", "-c", r"print('\udc80 \ud83d')")[0] == "\\udc80 \\ud83d\n"


def test_output_over_the_limit_says_how_much_is_missing():
    out, err = mentis_pool("run", "-c", "print('x' * 11_000_000)")
    kept = out.count("x")
    assert kept <= 10 * 1024 * 1024
    missing = 11_000_001 - kept - 1
    assert err.splitlines() == [f"[… {missing} bytes of stdout cut …]"]


# ── files ───────────────────────────────────────────────────────────────────


def test_a_python_file_runs_as_a_script_does(tmp_path):
    (tmp_path / "a.py").write_text(
        "import sys\nprint(__name__, sys.argv)\nif __name__ == '__main__': sys.exit(3)\n"
    )
    out, err = mentis_pool("run", "a.py", "--out", "o", cwd=tmp_path, code=1)
    assert out == "__main__ ['a.py']\n"
    assert err == "SystemExit: 3\n"
    (record,) = records(tmp_path / "o")
    assert record["id"] == "a.py"
    assert (record["error"]["name"], record["error"]["value"]) == ("SystemExit", "3")
    assert record["exit_code"] == 3


ENDS = {
    "pass": 0,
    "import sys; sys.exit()": 0,
    "exit(None)": 0,
    "import sys; sys.exit('text')": 1,
    "raise SystemExit(2)": 2,
    "import sys; sys.exit(-1)": 255,
    "1/0": 1,
    "import os; os._exit(4)": 4,
    "import os; os.abort()": None,
}


def test_the_exit_code_of_each_script_is_in_its_result_and_1_the_commands_own(tmp_path):
    for number, source in enumerate(ENDS):
        (tmp_path / f"{number}.py").write_text(source)
    files = [f"{number}.py" for number in range(len(ENDS))]
    mentis_pool("run", *files, "-c", "1", "--out", "o", cwd=tmp_path, code=1)
    *scripts, cell = records(tmp_path / "o")
    assert [record["exit_code"] for record in scripts] == list(ENDS.values())
    assert [record["ok"] for record in scripts] == [code == 0 for code in ENDS.values()]
    assert cell["exit_code"] is None


def test_a_script_imports_its_neighbours_and_starts_itself_again(tmp_path):
    (tmp_path / "neighbour.py").write_text("def double(x): return 2 * x")
    (tmp_path / "a.py").write_text(
        "import multiprocessing, neighbour\n"
        "def quadruple(x): return 2 * neighbour.double(x)\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(quadruple, [1, 2]))\n"
    )
    assert mentis_pool("run", "a.py", "--timeout", "30", cwd=tmp_path) == ("[4, 8]\n", "")


def test_what_a_script_says_with_its_exit_is_said_once(tmp_path):
    (tmp_path / "a.py").write_text("import sys\nsys.exit('bad thing')")
    assert mentis_pool("run", "a.py", cwd=tmp_path, code=1) == ("", "bad thing\n")
    (tmp_path / "a.py").write_text("import sys\nprint(3, file=sys.stderr)\nsys.exit(3)")
    assert mentis_pool("run", "a.py", cwd=tmp_path, code=1) == ("", "3\nSystemExit: 3\n")
    cell = "import sys\nsys.exit('bad thing')"
    assert mentis_pool("run", "-c", cell, code=1) == ("", "SystemExit: bad thing\n")


SAYS = "import sys\nprint(ascii(sys.stdin.read()))"


def test_a_script_reads_what_the_command_is_given(tmp_path):
    (tmp_path / "a.py").write_text(SAYS)
    assert mentis_pool("run", "a.py", stdin="one\ntwö\n", cwd=tmp_path)[0] == "'one\\ntw\\xf6\\n'\n"
    assert mentis_pool("run", "a.py", stdin="\udcff", cwd=tmp_path)[0] == "'\\udcff'\n"
    # Where others run with it, nobody knows whose it is.
    out, _ = mentis_pool("run", "a.py", "-c", SAYS, stdin="one", cwd=tmp_path)
    assert out == "── a.py\n''\n── cell 1\n''\n"


def test_a_closed_standard_input_is_an_empty_one(tmp_path):
    (tmp_path / "a.py").write_text(SAYS)
    for words, said in ("a.py", "''\n"), ("-", ""):
        shell = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "run", words]
        done = subprocess.run(shell, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert (done.stdout, done.stderr, done.returncode) == (said, "", 0)


def test_a_script_on_a_terminal_finds_its_input_empty(tmp_path):
    (tmp_path / "a.py").write_text(SAYS)
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "run", "a.py"], stdin=theirs, capture_output=True, cwd=tmp_path, timeout=60
    )
    os.close(ours)
    os.close(theirs)
    assert done.stdout == b"''\n"


def test_who_waits_for_the_end_of_the_input_is_told_so(tmp_path):
    (tmp_path / "a.py").write_text(SAYS)
    with started(
        *("run", "a.py"), cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert b"begins when standard input is at its end" in process.stderr.readline()
        process.stdin.write(b"late")
        process.stdin.close()
        assert process.stdout.read() == b"'late'\n"
        assert process.wait(20) == 0


def test_input_without_an_end_is_refused(tmp_path):
    (tmp_path / "a.py").write_text(SAYS)
    with open("/dev/zero") as zeros:
        done = subprocess.run(
            [*COMMAND, "run", "a.py"], stdin=zeros, capture_output=True, cwd=tmp_path, timeout=60
        )
    assert done.returncode == 2
    assert b"standard input has more than" in done.stderr


def test_the_cells_of_a_notebook_run_in_order_in_one_sandbox(tmp_path):
    (tmp_path / "a.ipynb").write_text(notebook("a = 20", "a += 1; print(a)", "a * 2"))
    assert mentis_pool("run", "a.ipynb", cwd=tmp_path) == ("21\n42\n", "")


def test_a_notebook_stops_at_its_first_error(tmp_path):
    (tmp_path / "a.ipynb").write_text(notebook("print(1)", "1/0", "print(2)"))
    out, err = mentis_pool("run", "a.ipynb", cwd=tmp_path, code=1)
    assert out == "1\n"
    assert "ZeroDivisionError" in err


def test_a_notebook_without_code_is_a_result_with_nothing_in_it(tmp_path):
    (tmp_path / "a.ipynb").write_text(notebook())
    assert mentis_pool("run", "a.ipynb", cwd=tmp_path) == ("", "")


def test_a_script_may_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a")
    with started("run", "a", cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as p:
        (tmp_path / "a").write_text("print(6 * 7)")
        assert p.stdout.read() == b"42\n"


def test_a_file_that_cannot_be_read_does_not_stop_the_others(tmp_path):
    (tmp_path / "a.ipynb").write_text("{")
    out, err = mentis_pool("run", "a.ipynb", "-c", "1", cwd=tmp_path, code=1)
    assert out == "── a.ipynb\n── cell 1\n1\n"
    assert "a.ipynb cannot be read: " in err


def test_options_may_stand_between_files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(f"print({name!r})")
    out, _ = mentis_pool("run", "-c", "1", "a.py", "--workers", "2", "b.py", cwd=tmp_path)
    assert out == "── a.py\na\n── b.py\nb\n── cell 1\n1\n"


# ── lines ───────────────────────────────────────────────────────────────────


def test_lines_are_cells_and_their_results_are_lines(tmp_path):
    lines = [{"id": f"t{i}", "code": f"print({i}); {i} * 2"} for i in range(20)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "nonsense\n"
    out, err = mentis_pool("run", "-", "--out", "o", stdin=text, cwd=tmp_path, code=1)
    assert out.startswith("── t0\n0\n0\n── t1\n1\n2\n")
    assert "line 21 is not JSON" in err
    assert err.endswith("1 of 21 failed: line 21\n")
    *found, last = records(tmp_path / "o")
    assert [(r["id"], r["ok"], r["stdout"], r["value"]) for r in found] == [
        (f"t{i}", True, f"{i}\n", i * 2) for i in range(20)
    ]
    assert (last["id"], last["ok"]) == ("line 21", False)
    assert all(set(record) == {"id", *CellResult().to_dict()} for record in (*found, last))


def test_results_may_go_to_stdout_and_what_is_printed_goes_to_stderr():
    out, err = mentis_pool("run", "-c", r"print('é\udcff')", "-c", "2", "--out", "-")
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["cell 1", "cell 2"]
    assert json.loads(out.splitlines()[0])["stdout"] == "é\\udcff\n"
    assert err == "── cell 1\né\\udcff\n── cell 2\n2\n"


def test_a_result_is_given_while_more_lines_are_waited_for():
    with subprocess.Popen(
        [*COMMAND, "run", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as p:
        for value in (b"1", b"2"):
            p.stdin.write(b'{"id": "x", "code": "%s"}\n' % value)
            p.stdin.flush()
            assert p.stdout.readline() == "── x\n".encode()
            assert p.stdout.readline() == value + b"\n"
        p.stdin.close()
        assert p.wait(20) == 0


def test_output_is_given_while_the_program_runs():
    code = "import time\nprint(1, flush=True)\ntime.sleep(30)"
    with started("run", "-c", code, stdout=subprocess.PIPE) as p:
        assert p.stdout.readline() == b"1\n"
        assert p.poll() is None


# ── settings ────────────────────────────────────────────────────────────────


def test_a_timeout_is_for_each():
    out, err = mentis_pool("run", "-c", "while True: pass", "-c", "1", "--timeout", "0.3", code=1)
    assert out == "── cell 1\n── cell 2\n1\n"
    assert "CellTimeout" in err


def test_workers_bound_how_many_run_at_once(tmp_path):
    code = "import time; begun = time.time(); time.sleep(0.2); [begun, time.time()]"
    cells = [word for _ in range(3) for word in ("-c", code)]
    mentis_pool("run", *cells, "--workers", "1", "--out", "o", cwd=tmp_path)
    times = sorted(record["value"] for record in records(tmp_path / "o"))
    assert times[0][1] <= times[1][0]
    assert times[1][1] <= times[2][0]
    # Whatever else this machine does: each begins before any ends.
    code = "import time; begun = time.time(); time.sleep(2); [begun, time.time()]"
    cells = [word for _ in range(3) for word in ("-c", code)]
    mentis_pool("run", *cells, "--workers", "3", "--out", "o", cwd=tmp_path)
    times = [record["value"] for record in records(tmp_path / "o")]
    assert max(begun for begun, _ in times) < min(ended for _, ended in times)


@pytest.mark.parametrize("before", [True, False])
def test_the_log_is_lines_of_json(tmp_path, before):
    log = ["--log", "l"]
    arguments = [*log, "run"] if before else ["run", *log]
    out, err = mentis_pool(*arguments, "-c", "print(1)", cwd=tmp_path)
    assert (out, err) == ("1\n", "")
    events = records(tmp_path / "l")
    mine = [e["event"] for e in events if e.get("task_id") == "cell 1"]
    assert mine == ["task_submitted", "task_started", "task_finished"]
    assert {"runtime_started", "sandbox_started", "runtime_stopped"} <= {e["event"] for e in events}
    assert all({"level", "timestamp"} <= set(e) for e in events)


def test_the_log_may_go_to_stderr():
    out, err = mentis_pool("--log", "-", "run", "-c", "1")
    assert out == "1\n"
    assert "task_finished" in [json.loads(line)["event"] for line in err.splitlines()]


def test_it_runs_at_the_runtime_that_the_environment_names(tmp_path, monkeypatch, served):
    (tmp_path / "a.py").write_text("import sys\nprint(sys.argv, input())")
    url, token = served
    monkeypatch.setenv("MENTIS_RUNTIME_URL", url)
    monkeypatch.setenv("MENTIS_RUNTIME_TOKEN", token)
    assert mentis_pool("run", "a.py", stdin="in", cwd=tmp_path) == ("['a.py'] in\n", "")
    out, err = mentis_pool("run", "-c", "1", "--network", "host", code=2)
    assert (out, err.count("\n")) == ("", 1)
    assert "for the embedded runtime" in err
    monkeypatch.setenv("MENTIS_RUNTIME_URL", "nonsense")
    out, err = mentis_pool("run", "-c", "1", code=2)
    assert (out, err) == (
        "",
        "mentis-pool: 'nonsense' is no runtime's address: it must be like 'http://host:5266'\n",
    )


def test_its_version():
    assert mentis_pool("--version")[0] == f"mentis-pool {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "COMMAND"),
        (["run"], "nothing to run: give files, - or -c CODE"),
        (["run", "missing.py"], "there is no file missing.py"),
        (["run", "."], "there is no file ."),
        (["run", "-", "-"], "standard input (-) can be read once"),
        (["run", "-c", "1", "--nonsense"], "unrecognized argument: --nonsense"),
        (
            ["run", "-c", "1", "--workers", "0"],
            "--workers: must be an integer of at least 1, not 0",
        ),
        (
            ["run", "-c", "1", "--workers", "x"],
            "--workers: must be an integer of at least 1, not x",
        ),
        (["run", "-c", "1", "--timeout", "x"], "--timeout: must be more than 0 seconds and less"),
        (["serve", "--port", "70000"], "--port: must be an integer from 0 to 65535, not 70000"),
        (["run", "-c", "1", "--timeout", "0"], "--timeout: must be more than 0 seconds and less"),
        (["run", "-c", "1", "--timeout", "inf"], "less than 1e9, not inf"),
        (["run", "-c", "1", "--out", "no/such"], "No such file or directory: 'no/such'"),
        (["--log", "no/such", "run", "-c", "1"], "No such file or directory: 'no/such'"),
    ],
    ids=range(14),
)
def test_bad_usage_exits_with_2_and_says_why(tmp_path, arguments, why):
    out, err = mentis_pool(*arguments, cwd=tmp_path, code=2)
    assert out == ""
    assert why in err


# ── terminals ───────────────────────────────────────────────────────────────


def on_a_terminal(*arguments):
    """Run the command with stdout and stderr on a terminal; all that it wrote there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    ) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 65536):
                said += piece
        except OSError:
            pass  # the terminal's other side is closed
        os.close(ours)
        process.wait(20)
    return said.decode()


def test_a_terminal_has_a_progress_bar_and_no_foreign_escapes():
    said = on_a_terminal(
        "run", "-c", r"print('a\x1b[2J\x1b]0;t\x07b')", "-c", "1/0", "--workers", "1"
    )
    assert "/2" in said
    assert "── cell 1\r\nab\r\n" in said
    assert "\x1b[2J\x1b]0" not in said
    assert said.count("── cell 2") == 1, "stdout and stderr are one here: one heading"
    assert "ZeroDivisionError" in said
    assert said.rstrip().endswith("1 of 2 failed: cell 2")


def test_one_program_has_no_bar():
    assert on_a_terminal("run", "-c", "print(1)") == "1\r\n"


# ── the end ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_at_once_and_leaves_nothing(own_temp, processes, eventually, number):
    with started(
        *("run", "--workers", "2", "-c", "print(1)", "-c", "while True: pass"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": own_temp},
    ) as process:
        assert process.stdout.readline() == "── cell 1\n".encode()
        assert process.stdout.readline() == b"1\n"
        process.send_signal(number)
        assert process.wait(20) == -number
        assert process.stderr.read() == b""
    eventually(lambda: not processes(own_temp) and not os.listdir(own_temp))


INTERRUPTED = """
import os, signal, sys
from mentis_pool.__main__ import main
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "mentis_pool.engine":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
main()
"""


def test_ctrl_c_while_it_imports_what_it_needs_ends_it_quietly():
    words = [sys.executable, "-c", INTERRUPTED, "run", "-c", "1"]
    done = subprocess.run(words, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_a_closed_pipe_ends_it_quietly(own_temp, processes, eventually):
    with started(
        *("run", "-c", "import time\nwhile True: print('y' * 1000); time.sleep(0.001)"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": own_temp},
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == -signal.SIGPIPE
        assert process.stderr.read() == b""
    eventually(lambda: not processes(own_temp) and not os.listdir(own_temp))


def test_results_that_cannot_be_written_end_it():
    with started(
        *("run", "--out", "/dev/full", "-c", "1", "-c", "while True: pass"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.wait(20) == 2
        assert process.stderr.read() == b"mentis-pool: [Errno 28] No space left on device\n"


def test_the_doctor_says_what_works_a_line_each():
    words = [sys.executable, "-m", "mentis_pool", "doctor"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert {"bubblewrap", "user namespaces", "seccomp", "landlock", "cgroups"} == set(lines)
    assert done.returncode == (0 if lines["bubblewrap"].startswith("works") else 1)
