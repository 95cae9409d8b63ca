"""The interface of concurrent.futures for cells: submit, map, run, options, shutdown."""

from __future__ import annotations

import ast
import concurrent.futures
import datetime
import inspect
import itertools
import math
import os
import re
import sys
import threading
import time

import pytest

import mentis_pool
from mentis_pool import (
    CellError,
    CellFuture,
    CellResult,
    CellTimeout,
    Limits,
    Opaque,
    PayloadError,
    ResourceLimitExceeded,
    RuntimeUnavailable,
    SandboxDied,
    SandboxExecutor,
)


@pytest.fixture(params=["embedded", "served", "original"])
def executor(request):
    """Of each kind of runtime, the same is expected."""
    name = "embedded" if request.param == "embedded" else f"{request.param}_executor"
    return request.getfixturevalue(name)


@pytest.fixture
def on_original(request):
    return request.node.callspec.params["executor"] == "original"


# ── submit ──────────────────────────────────────────────────────────────────


def test_a_cell_gives_its_output_and_the_value_of_its_last_expression(executor, on_original):
    future = executor.submit("import math\nprint('hi')\nround(math.pi, 2)")
    assert isinstance(future, CellFuture)
    assert isinstance(future, concurrent.futures.Future)
    result = future.result()
    assert (result.stdout, result.stderr, result.text) == ("hi\n", "", "3.14")
    assert result.value == (Opaque("3.14", "unknown") if on_original else 3.14)
    assert result.ok
    assert result.error is None
    assert result.displays == []
    assert result.attempt == 1
    assert result.action_id == future.action_id
    assert result.sandbox_id == future.sandbox_id
    assert len({future.action_id, future.sandbox_id, future.task_id, None}) == 4


@pytest.mark.beyond_v1
def test_usage_is_measured(executor):
    result = executor.submit(
        "import time\nx = bytearray(200_000_000)\ntime.sleep(0.2)\n"
        "end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    ).result()
    assert 0.4 <= result.usage.running < 5
    assert 0.2 <= result.usage.cpu < 1
    assert 200_000_000 < result.usage.peak_memory < 500_000_000
    assert 0 <= result.usage.queued < 5


def test_the_peak_of_memory_is_that_of_the_cell_alone_in_a_kept_process(reuse):
    large = reuse.submit("x = bytearray(300_000_000); len(x)").result()
    # What it held is given back as the next one begins, and may be seen there.
    reuse.submit("1").result()
    small = reuse.submit("1").result()
    assert large.usage.peak_memory > 300_000_000
    assert small.usage.peak_memory < 300_000_000


def test_variables_become_names_in_the_cell(executor):
    assert executor.submit("x * 2", x=21).result().text == "42"
    assert executor.submit("self + cell", self="a", cell="b").result().text == "'ab'"


def test_a_variable_may_be_anything_that_pickles(executor):
    class Local:
        def __init__(self, of):
            self.of = of

    result = executor.submit(
        "f(o.of), d.isoformat()", f=lambda x: x + 1, o=Local(4), d=datetime.date(2020, 2, 3)
    )
    assert result.result().text == "(5, '2020-02-03')"


def test_a_variable_that_cannot_travel_is_named_before_anything_is_sent(executor):
    with pytest.raises(PayloadError, match=r"'gate' \(lock\) cannot travel"):
        executor.submit("1", fine=1, gate=threading.Lock())


class RefusesToBeRebuilt:
    def __reduce__(self):
        return (int, ("not a number",))


def test_a_variable_that_cannot_be_rebuilt_is_named(executor):
    with pytest.raises(PayloadError, match=r"'odd' cannot be rebuilt in the sandbox: ValueError"):
        executor.submit("1", odd=RefusesToBeRebuilt()).result()


@pytest.mark.parametrize("cell", [b"print(1)", None, 5, ["1"]])
def test_a_cell_that_is_no_text_is_refused_before_anything_is_sent(executor, cell):
    with pytest.raises(TypeError, match="a cell \\(source text, a str\\) or a callable"):
        executor.submit(cell)


@pytest.mark.beyond_v1
@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**70), 1.5, math.inf, "", "ü\ud800", b"\0\xff", [], [1, "a", [None]], (1,), (),
        {}, {"a": 1, 2: (3,)}, set(), {1, "a"}, datetime.datetime(2020, 1, 2, 3, 4, 5, 6),
        datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc), datetime.date(1, 1, 1),
        datetime.time(1, 2), datetime.timedelta(days=-1, microseconds=5),
    ],
    ids=repr,
)  # fmt: skip
def test_plain_data_comes_back_as_it_was(executor, value):
    got = executor.submit("x", x=value).result().value
    assert got == value
    assert type(got) is type(value)


@pytest.mark.beyond_v1
def test_a_value_that_is_no_plain_data_is_opaque(executor):
    result = executor.submit("class A:\n    def __repr__(self): return 'an A'\nA()").result()
    assert result.value == Opaque("an A", "A")
    assert result.text == "an A"
    assert isinstance(executor.submit("import numpy; numpy.float64(1)").result().value, Opaque)
    assert isinstance(executor.submit("x = []; x.append(x); x").result().value, Opaque)


@pytest.mark.beyond_v1
def test_nothing_that_a_cell_gives_out_is_unpickled(executor, tmp_path):
    mark = tmp_path / "mark"
    cell = f"""
import os, pickle
class Evil:
    def __reduce__(self): return (os.system, ("touch {mark}",))
    def __repr__(self): return "evil"
pickled = pickle.dumps(Evil())
class E(Exception):
    def __reduce__(self): return (os.system, ("touch {mark}",))
"""
    result = executor.submit(cell + "Evil()").result()
    assert isinstance(result.value, Opaque)
    assert executor.submit(cell + "pickled").result().value.startswith(b"\x80")
    with pytest.raises(CellError):
        executor.submit(cell + "raise E()").result()
    assert not mark.exists()


# ── errors ──────────────────────────────────────────────────────────────────


def test_a_builtin_exception_can_be_caught_as_itself(executor, on_original):
    with pytest.raises(ZeroDivisionError) as caught:
        executor.submit("print('so far')\ndef f():\n    return 1 / 0\nf()").result()
    error = caught.value
    assert isinstance(error, CellError)
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert error.result.stdout == "so far\n"
    assert error.result.error is error
    place = "Cell In[1], line 4" if on_original else 'File "<cell 1>", line 4, in <module>'
    assert place in error.traceback
    assert "return 1 / 0" in error.traceback
    assert "IPython" not in error.traceback
    assert "mentis" not in error.traceback


@pytest.mark.parametrize(
    "name", ["StopIteration", "SystemExit", "KeyboardInterrupt", "asyncio.CancelledError"]
)
def test_what_means_something_to_a_waiter_stays_a_plain_error(executor, name):
    error = executor.submit(f"import asyncio\nraise {name}('x')").exception()
    assert type(error) is CellError
    assert error.name == name.rpartition(".")[2]


def test_an_exception_of_the_cells_own_is_a_plain_error(executor):
    error = executor.submit("class Mine(ValueError): pass\nraise Mine('x', 1)").exception()
    assert type(error) is CellError
    assert (error.name, error.value) == ("Mine", "('x', 1)")


def test_a_cause_is_in_the_traceback(executor):
    error = executor.submit(
        "try: 1/0\nexcept Exception as e: raise KeyError('k') from e"
    ).exception()
    assert isinstance(error, KeyError)
    assert "direct cause" in error.traceback
    assert "ZeroDivisionError" in error.traceback
    assert (error.name, error.value, error.result.stdout) == ("KeyError", "'k'", "")


def test_a_syntax_error_has_its_caret_line(executor):
    with pytest.raises(SyntaxError) as caught:
        executor.submit("x = 1\ny = = 2").result()
    assert isinstance(caught.value, CellError)
    assert "y = = 2" in caught.value.traceback
    assert "^" in caught.value.traceback.splitlines()[2]
    assert "line 2" in caught.value.traceback


def test_a_cell_with_nul_is_a_syntax_error(executor, on_original):
    if on_original and sys.version_info < (3, 11, 4):
        pytest.skip("IPython itself fails there, by the ValueError of this Python")
    with pytest.raises(SyntaxError, match="null bytes"):
        executor.submit("x = 'a\0b'").result()


def test_an_empty_cell_gives_a_result_with_nothing_in_it(executor):
    for cell in ("", "\n  \n", "# a comment"):
        result = executor.submit(cell).result()
        assert (result.stdout, result.value, result.text, result.error) == ("", None, None, None)


@pytest.mark.beyond_v1  # there IPython's own printing fails
def test_an_exception_whose_text_raises_still_has_a_name(executor):
    error = executor.submit(
        "class Bad(Exception):\n    def __str__(self): raise RuntimeError\nraise Bad()"
    ).exception()
    assert error.name == "Bad"


# ── map and run ─────────────────────────────────────────────────────────────


def test_map_gives_results_in_order(executor):
    cells = [f"import time; time.sleep({0.2 if i == 0 else 0}); {i}" for i in range(8)]
    assert [result.text for result in executor.map(cells)] == list(map(str, range(8)))


def test_map_pulls_no_more_than_buffersize_ahead(executor):
    pulled = itertools.count()
    last = -1

    def cells():
        nonlocal last
        for last in pulled:
            yield str(last)

    results = executor.map(cells(), buffersize=10)
    for i in range(30):
        assert next(results).text == str(i)
        assert last <= i + 10
    results.close()
    assert next(pulled) <= 41


def test_map_raises_what_the_cell_raised_and_cancels_the_rest(executor):
    cells = ["1", "1/0", *["import time; time.sleep(0.3)"] * 20]
    begun = time.monotonic()
    results = executor.map(cells)
    assert next(results).text == "1"
    with pytest.raises(ZeroDivisionError):
        next(results)
    executor.submit("1").result()
    assert time.monotonic() - begun < 3


def test_map_has_a_timeout_for_all_of_it(executor):
    results = executor.map(["1", "import time; time.sleep(1)"], timeout=0.5)
    assert next(results).text == "1"
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)


@pytest.mark.parametrize("cells", ["print(1)", b"x"])
def test_map_of_one_text_is_no_loop_over_its_characters(executor, cells):
    with pytest.raises(TypeError, match=r"submit\(cell\), or map\(\[cell\]\)"):
        executor.map(cells)


def test_map_of_a_function_says_what_it_takes(executor):
    with pytest.raises(TypeError, match="nothing to call it with"):
        executor.map(print)
    with pytest.raises(TypeError, match="buffersize"):
        executor.map(["1"], buffersize=1.5)
    with pytest.raises(ValueError, match="buffersize must be at least 1"):
        executor.map(["1"], buffersize=0)


def test_run_never_raises_for_a_cell(executor, on_original):
    results = executor.run(["1", "1/0", "import os; os._exit(7)", "x ="])
    assert [type(result) for result in results] == [CellResult] * 4
    assert results[0].text == "1"
    assert isinstance(results[1].error, ZeroDivisionError)
    assert isinstance(results[2].error, SandboxDied)
    assert results[2].error.exit_code == (None if on_original else 7)
    assert results[3].error.name == "SyntaxError"
    with pytest.raises(TypeError):
        executor.run("1")


# ── options ─────────────────────────────────────────────────────────────────


@pytest.mark.beyond_v1
def test_a_view_has_its_own_settings_and_the_same_sandboxes(executor):
    view = executor.options(task_id="mine", stdin="text").options(timeout=5)
    assert isinstance(view, SandboxExecutor)
    future = view.submit("input()")
    assert future.result().value == "text"
    assert future.task_id == "mine"
    assert future.action_id.split("-")[0] == executor.submit("1").result().action_id.split("-")[0]
    with pytest.raises(EOFError):
        executor.submit("input()").result()


@pytest.mark.beyond_v1
def test_stdin_is_there_for_reading_by_any_means(executor):
    cell = (
        "import sys, os, subprocess\n"
        "first = input('name? ')\nrest = sys.stdin.read()\n(first, rest)"
    )
    result = executor.options(stdin="a\nb\ud800\nü").submit(cell).result()
    assert result.value == ("a", "b\ud800\nü")
    assert result.stdout == "name? "
    assert executor.options(stdin="x\ny\n").submit("!cat").result().stdout == "x\ny\n"
    assert executor.submit("!cat").result().stdout == ""


@pytest.mark.beyond_v1
def test_argv_runs_the_text_as_a_script(executor):
    source = (
        "import sys, threading, atexit, time\nprint(sys.argv, __name__, __file__)\n"
        "atexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "1 + 1\n"
    )
    result = executor.options(argv=["prog.py", "-v"]).submit(source).result()
    assert result.stdout == "['prog.py', '-v'] __main__ prog.py\nthread\nat exit\n"
    assert result.value is None
    script = executor.options(argv=["prog.py"])
    assert script.submit("import sys; sys.exit(0)").result().exit_code == 0
    error = script.submit("import sys; sys.exit(3)").exception()
    assert (error.name, error.value, error.result.exit_code) == ("SystemExit", "3", 3)
    error = script.submit("import sys; sys.exit('why')").exception()
    assert error.result.stderr == "why\n"
    error = script.submit("x = 1\n1/0").exception()
    assert 'File "prog.py", line 2' in error.traceback
    with pytest.raises(SyntaxError):
        script.submit("!ls").result()


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("timeout", 0, ValueError), ("timeout", "1", TypeError), ("timeout", math.nan, ValueError),
        ("task_id", 5, TypeError), ("stdin", b"x", TypeError), ("on_output", 5, TypeError),
        ("argv", "prog.py", TypeError), ("argv", [], TypeError),
    ],
)  # fmt: skip
def test_a_bad_option_is_named(executor, option, value, error):
    with pytest.raises(error, match=option):
        executor.options(**{option: value})


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("max_workers", 0, ValueError), ("max_workers", -1, ValueError), ("max_workers", 1.5, TypeError),
        ("max_workers", True, TypeError), ("state", "old", ValueError), ("timeout", -1, ValueError),
        ("retries", -1, ValueError), ("max_output", -1, ValueError), ("preload", "numpy", TypeError),
        ("runtime", "localhost:1", ValueError), ("runtime", 5, TypeError), ("runtime", "http://", ValueError),
        ("runtime", "http://a:b@c", ValueError), ("runtime", "", ValueError), ("token", "a\nb", ValueError),
        ("token", 5, ValueError),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(argument, value, error):
    with pytest.raises(error, match=argument):
        SandboxExecutor(**{argument: value})


def test_max_workers_is_the_cpus_of_this_process_by_default():
    executor = SandboxExecutor()
    assert executor._engine._pool._max_workers == len(os.sched_getaffinity(0))
    executor.shutdown()


def test_the_public_names_are_these():
    assert sorted(mentis_pool.__all__) == sorted(set(mentis_pool.__all__))
    for name in mentis_pool.__all__:
        assert inspect.getdoc(getattr(mentis_pool, name))


def test_by_default_there_are_as_many_workers_as_cpus(sharing, monkeypatch):
    monkeypatch.setattr("mentis_pool.executor.cpus", lambda: 3)
    with sharing() as executor:
        spans = "import time; b = time.time(); time.sleep(0.3); (b, time.time())"
        times = [result.value for result in executor.map([spans] * 4)]
    assert max(sum(b <= at < e for b, e in times) for at, _ in times) == 3


def test_threads_of_libraries_are_shared_out_among_the_workers(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("mentis_pool.executor.cpus", lambda: 8)
    with SandboxExecutor(2) as executor:
        assert executor.submit("import os; os.environ['OMP_NUM_THREADS']").result().value == "4"


# ── bounds ──────────────────────────────────────────────────────────────────


def test_no_more_than_max_workers_run_at_once_and_all_of_them_do(executor):
    cell = "import time; begin = time.time(); time.sleep(0.2); (begin, time.time())"
    spans = [ast.literal_eval(result.text) for result in executor.map([cell] * 6)]
    edges = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    assert max(itertools.accumulate(step for _, step in edges)) == 2


def test_a_cell_that_waits_can_be_cancelled_and_one_that_runs_can_not(executor, eventually):
    futures = [executor.submit("import time; time.sleep(0.5); 1") for _ in range(5)]
    eventually(lambda: all(future.running() for future in futures[:2]))
    assert [future.cancel() for future in futures] == [False, False, True, True, True]
    done, _ = concurrent.futures.wait(futures, timeout=10)
    assert len(done) == 5
    assert [future.cancelled() for future in futures] == [False, False, True, True, True]
    assert futures[0].result().text == "1"


def test_callbacks_may_submit_and_raise(executor, caplog):
    box = []
    done = threading.Event()

    def again(future):
        executor.submit("2").add_done_callback(lambda f: (box.append(f.result().text), done.set()))
        raise RuntimeError("of the callback")

    executor.submit("1").add_done_callback(again)
    assert done.wait(10)
    assert box == ["2"]
    assert executor.submit("3").result().text == "3"


def test_as_completed_and_wait_work(executor):
    futures = [executor.submit(f"import time; time.sleep({t}); {t}") for t in (0.3, 0.0)]
    ended = concurrent.futures.as_completed(futures)
    assert [future.result().text for future in ended] == ["0.0", "0.3"]


# ── shutdown ────────────────────────────────────────────────────────────────


def test_after_shutdown_nothing_is_taken():
    executor = SandboxExecutor(max_workers=1)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit("1")


def test_leaving_the_block_waits_and_leaves_nothing(own_temp, processes, eventually):
    before = set(threading.enumerate())
    with SandboxExecutor(max_workers=1) as executor:
        futures = [executor.submit(f"import time; time.sleep(0.05); {i}") for i in range(5)]
        eventually(lambda: processes(own_temp))
    assert [future.result().value for future in futures] == list(range(5))
    assert set(threading.enumerate()) <= before
    assert processes(own_temp) == []


def test_shutdown_without_waiting_still_finishes(own_temp, processes, eventually):
    executor = SandboxExecutor(max_workers=1)
    futures = [executor.submit(f"import time; time.sleep(0.1); {i}") for i in range(3)]
    executor.shutdown(wait=False)
    assert not futures[-1].done()
    assert [future.result(10).value for future in futures] == [0, 1, 2]
    executor.shutdown()
    assert processes(own_temp) == []


def test_shutdown_can_cancel_what_waits(own_temp):
    executor = SandboxExecutor(max_workers=1)
    first = executor.submit("import time; time.sleep(0.3); 1")
    while not first.running():
        time.sleep(0.01)
    futures = [executor.submit("2") for _ in range(3)]
    executor.shutdown(cancel_futures=True)
    assert first.result().value == 1
    assert all(future.cancelled() for future in futures)
    assert list(futures[0].observations()) == []


def test_a_runtime_that_cannot_be_started_says_why_and_what_to_do(monkeypatch, own_temp):
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with SandboxExecutor(max_workers=1, retries=0) as executor:
        with pytest.raises(
            RuntimeUnavailable, match=r"/nonexistent/python.*sys\.executable must be a Python"
        ):
            executor.submit("1").result(30)
        [result] = executor.run(["1"])
        assert isinstance(result.error, RuntimeUnavailable)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with SandboxExecutor(max_workers=1, retries=0) as executor:
        future = executor.submit("1")
        with pytest.raises(
            RuntimeUnavailable, match=r"exit code 1 .*see what this says: /bin/false"
        ):
            future.result(30)
        assert [type(seen).__name__ for seen in future.observations()] == ["Error", "End"]


def test_a_module_that_cannot_be_preloaded_is_named_and_not_tried_again(own_temp, caplog):
    with SandboxExecutor(max_workers=1, preload=["wave", "no_such_module"]) as executor:
        error = executor.submit("1").exception(30)
    assert isinstance(error, RuntimeUnavailable)
    assert re.search(
        r"'no_such_module' of preload= cannot be imported: .*No module named 'no_such_module'\n"
        r"Install no_such_module where the client runs \(.*\), or take 'no_such_module' out of preload=",
        str(error),
    ), error
    assert "exit code 0" not in str(error)
    retried = [r for r in caplog.records if getattr(r, "event", "") == "runtime_retried"]
    assert retried == [], "it would fail again"


def test_a_module_that_raises_as_it_is_preloaded_is_named(own_temp, shown, monkeypatch):
    (shown / "raises_at_import.py").write_text("1/0")
    monkeypatch.syspath_prepend(str(shown))
    with SandboxExecutor(max_workers=1, preload=["raises_at_import"]) as executor:
        error = executor.submit("1").exception(30)
    assert isinstance(error, RuntimeUnavailable)
    assert "'raises_at_import' of preload= cannot be imported: ZeroDivisionError" in str(error)
    assert "-c 'import raises_at_import', or take 'raises_at_import' out of preload=" in str(error)


def test_preloaded_modules_are_there_and_random_numbers_differ(own_temp):
    with SandboxExecutor(max_workers=2, preload=["numpy", "wave"]) as executor:
        cell = (
            "import sys, threading; loaded = 'numpy' in sys.modules and 'wave' in sys.modules\n"
            "import random, numpy\n(loaded, random.random(), float(numpy.random.rand()), threading.active_count())"
        )
        results = [result.value for result in executor.map([cell] * 6)]
        assert {loaded for loaded, _, _, _ in results} == {True}
        assert len({number for _, number, _, _ in results}) == 6
        assert len({number for _, _, number, _ in results}) == 6


@pytest.mark.beyond_v1
def test_blas_and_openmp_start_few_threads(executor):
    cell = "import os; [os.environ[n] for n in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')]"
    bound = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert executor.submit(cell).result().value == [bound] * 3


def test_cell_timeout_is_a_timeout_error_with_the_partial_result(executor, on_original):
    future = executor.options(timeout=0.3).submit("print('a')\nimport time; time.sleep(30)")
    with pytest.raises(TimeoutError) as caught:
        future.result()
    assert isinstance(caught.value, CellTimeout)
    assert caught.value.timeout == 0.3
    # An original runtime tells all of the output at the end.
    assert caught.value.result.stdout == ("" if on_original else "a\n")
    assert 0.3 <= caught.value.result.usage.running < 2


def test_the_timeout_counts_running_not_waiting(executor):
    slow = [executor.submit("import time; time.sleep(0.5)") for _ in range(2)]
    assert executor.options(timeout=0.4).submit("1").result().text == "1"
    assert all(future.result().ok for future in slow)


def test_limits_are_limits():
    with pytest.raises(TypeError, match="limits must be a Limits, not str '512M'"):
        SandboxExecutor(1, limits="512M")


def test_a_served_runtime_tells_what_its_sandboxes_use_and_holds_limits(served):
    url, token = served
    limits = Limits("100M")
    with SandboxExecutor(1, runtime=url, token=token, limits=limits, timeout=60) as executor:
        error = executor.submit("import time; x = bytearray(400 << 20); time.sleep(5)").exception()
        assert isinstance(error, ResourceLimitExceeded)
        assert error.which == "memory"
        future = executor.options(task_id="mine").submit("import time; time.sleep(1)")
        next(future.observations())
        (used,) = executor.stats().values()
        assert used.task_id == "mine"
        assert 0 < used.memory < 100 << 20
