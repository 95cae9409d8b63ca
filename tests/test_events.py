"""One event each, with its fields, where the application wants them."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap

import pytest
import structlog

from mentis_pool import SandboxExecutor
from mentis_pool.events import log, wanted


@pytest.fixture
def seen():
    """All events, by way of a configured structlog."""
    events = []
    structlog.configure(
        processors=[lambda logger, method, event: events.append((method, dict(event))) or ""],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=False,
    )
    yield events
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def of_task(seen, task_id):
    return [event["event"] for _, event in seen if event.get("task_id") == task_id]


def test_each_step_of_a_task_is_one_event_with_its_fields(own_temp, seen):
    with SandboxExecutor(max_workers=1) as executor:
        with structlog.contextvars.bound_contextvars(request="r-7"):
            future = executor.options(task_id="good").submit("print('x' * 9)")
        result = future.result()
        executor.options(task_id="bad").run(["1/0"])
        executor.options(task_id="late", timeout=0.1).run(["import time; time.sleep(9)"])
        busy = executor.submit("import time; time.sleep(0.2)")
        cancelled = executor.options(task_id="cancelled").submit("1")
        cancelled.cancel()
        busy.result()
        executor.submit("1").result()
    assert of_task(seen, "good") == ["task_submitted", "task_started", "task_finished"]
    assert of_task(seen, "bad") == ["task_submitted", "task_started", "task_failed"]
    assert of_task(seen, "late") == ["task_submitted", "task_started", "task_timed_out"]
    assert of_task(seen, "cancelled") == ["task_submitted", "task_cancelled"]
    [(_, finished)] = [
        e for e in seen if e[1]["event"] == "task_finished" and e[1]["task_id"] == "good"
    ]
    assert finished == {
        "event": "task_finished", "task_id": "good", "request": "r-7",
        "action_id": result.action_id, "sandbox_id": result.sandbox_id, "attempt": 1,
        "queued": round(result.usage.queued, 6), "running": round(result.usage.running, 6),
        "output_bytes": 10, "cpu": round(result.usage.cpu, 6),
        "peak_memory": result.usage.peak_memory,
    }  # fmt: skip
    [(_, unwanted)] = [e for e in seen if e[1]["event"] == "task_cancelled"]
    assert unwanted.keys() == finished.keys() - {"request", "cpu", "peak_memory"}
    assert (unwanted["running"], unwanted["output_bytes"]) == (0.0, 0)
    assert 0 <= unwanted["queued"] < 10
    [(_, failed)] = [e for e in seen if e[1]["event"] == "task_failed"]
    assert "ZeroDivisionError" in failed["error"]
    names = [event["event"] for _, event in seen]
    for name in ("runtime_started", "sandbox_started", "sandbox_retired", "runtime_stopped"):
        assert names.count(name) == 1, name
    assert not [method for method, _ in seen if method == "warning"]


def test_losses_and_retries_are_warnings(own_temp, seen):
    # Behind a wall no cell can end its sandbox.
    with SandboxExecutor(max_workers=1, retries=1, isolation="process") as executor:
        future = executor.submit("import time; time.sleep(30)")
        next(future.observations())
        executor._engine._connection._runtime._process.kill()
        future.exception(20)
        executor.submit("1").result(20)
        executor.run(["import os; os.kill(os.getppid(), 9); import time; time.sleep(9)"])
    warnings = [event["event"] for method, event in seen if method == "warning"]
    assert warnings == ["runtime_lost", "sandbox_lost"]


UNCONFIGURED = """
import logging, sys
from mentis_pool import SandboxExecutor
SETUP
with SandboxExecutor(max_workers=1, isolation="process") as executor:
    executor.run(["print(1)", "1/0", "import os; os._exit(1)"])
    WORSE
"""


def run_unconfigured(setup="", worse="pass"):
    source = UNCONFIGURED.replace("SETUP", textwrap.dedent(setup)).replace("WORSE", worse)
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )


def test_who_has_configured_nothing_sees_warnings_only_on_stderr():
    done = run_unconfigured()
    assert (done.stdout, done.stderr) == ("", "")
    done = run_unconfigured(
        # Another cell after it, so that the loss is heard of before the end.
        worse="executor.run(['import os; os.kill(os.getppid(), 9); import time; time.sleep(9)', '1'])"
    )
    assert done.stdout == ""
    assert done.stderr.startswith("sandbox_lost sandbox_id=")
    assert len(done.stderr.splitlines()) == 1


def test_who_has_configured_logging_gets_the_events_there():
    done = run_unconfigured(
        "logging.basicConfig(level=logging.INFO, format='%(name)s|%(levelname)s|%(message)s')"
    )
    lines = done.stderr.splitlines()
    assert all(line.startswith("mentis_pool|INFO|") for line in lines)
    assert [line.split("|")[2].split()[0] for line in lines if "task_" in line] == [
        "task_finished", "task_failed", "task_failed",
    ]  # fmt: skip


def test_an_event_nobody_wants_is_not_made():
    assert not structlog.is_configured()
    assert not wanted("debug")
    assert wanted("warning")


NAMES = {"event": 1, "self": 2, "method_name": 3, "level": 4, "logger": 5, "name": 6}


def test_a_field_may_have_any_name(seen, caplog):
    log("info", "thing_happened", **NAMES)
    kept = {"event_": 1, "self_": 2, "method_name_": 3, "level": 4, "logger": 5, "name": 6}
    assert seen == [("info", {"event": "thing_happened", **kept})]
    structlog.reset_defaults()
    log("warning", "thing_happened", **NAMES)
    assert caplog.records[0].fields == kept


def test_the_contextvars_of_the_user_may_have_any_name(executor, seen):
    with structlog.contextvars.bound_contextvars(**NAMES):
        executor.options(task_id="t").submit("1").result()
    assert of_task(seen, "t") == ["task_submitted", "task_started", "task_finished"]


def test_a_percent_sign_is_no_format(caplog):
    log("warning", "thing_happened", text="100 %s %d%%")
    assert caplog.messages == ["thing_happened text='100 %s %d%%'"]
    assert caplog.records[0].fields == {"text": "100 %s %d%%"}


def test_an_event_that_cannot_be_logged_costs_nobody_anything(executor, monkeypatch, caplog):
    def broken(logger, method, event):
        raise RuntimeError("no disk")

    structlog.configure(processors=[broken])
    try:
        assert executor.submit("1").result(10).value == 1
    finally:
        structlog.reset_defaults()
    assert "task_finished could not be logged: RuntimeError('no disk')" in caplog.text


class Unsayable(Exception):
    def __str__(self):
        raise ValueError("it cannot be said")

    __repr__ = __str__


class UnsayableExit(Unsayable, SystemExit):
    pass


def raise_unsayable():
    raise Unsayable


def leave(future):
    raise UnsayableExit


def test_an_exception_that_cannot_be_said_is_logged_in_the_sandboxs_words(own_temp, seen):
    with SandboxExecutor(max_workers=1) as executor:
        future = executor.options(task_id="odd").submit(raise_unsayable)
        assert type(future.exception(20)) is Unsayable
        later = executor.options(task_id="callback").submit("import time; time.sleep(0.1)")
        later.add_done_callback(leave)
        later.result(20)
        assert executor.submit(abs, -1).result(20) == 1
    [failed] = [event for _, event in seen if event["event"] == "task_failed"]
    assert "Unsayable" in failed["error"]
