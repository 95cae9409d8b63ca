"""CPython's own tests of executors, those of 3.13, run where it is installed in full.

Its test classes are taken as they are, with `SandboxExecutor` in the place of the
standard executors. Only what is left out is written here, each with its reason.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import unittest.mock

import pytest

if sys.version_info[:2] != (3, 13):
    pytest.skip("these are the tests of CPython 3.13", allow_module_level=True)

pytest.importorskip("test.test_concurrent_futures", reason="CPython's own tests are not installed")

from test.support import script_helper
from test.test_concurrent_futures import executor as cpython_executor
from test.test_concurrent_futures import (
    test_as_completed,
    test_deadlock,
    test_future,
    test_init,
    test_process_pool,
    test_shutdown,
    test_thread_pool,
    test_wait,
    util,
)

import mentis_pool
from mentis_pool import CallFuture
from mentis_pool.pool_stream import PickledCall
from mentis_pool.task import Settings, Task

ATTRIBUTE = "is about a private attribute of one of the standard executors"
SHARED = "shares an object of this process with the worker: a lock, an event, a list"
CONTEXT = "is about mp_context"
OTHER = "runs another executor, whatever is put in its place"

LEFT_OUT = {
    "ThreadPoolExecutorTest.test_default_workers": ATTRIBUTE,
    "ThreadPoolExecutorTest.test_saturation": ATTRIBUTE,
    "ThreadPoolExecutorTest.test_idle_thread_reuse": ATTRIBUTE,
    "ThreadPoolExecutorTest.test_map_submits_without_iteration": SHARED,
    "ThreadPoolExecutorTest.test_executor_map_current_future_cancel": SHARED,
    "ThreadPoolExecutorTest.test_hang_global_shutdown_lock": OTHER,
    "ProcessPoolExecutorTest.test_max_workers_too_large": OTHER,
    "ProcessPoolExecutorTest.test_killed_child": ATTRIBUTE,
    "ProcessPoolExecutorTest.test_ressources_gced_in_workers": SHARED,
    "ProcessPoolExecutorTest.test_saturation": SHARED,
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": ATTRIBUTE,
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": ATTRIBUTE,
    "ProcessPoolExecutorTest.test_max_tasks_per_child": ATTRIBUTE,
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": CONTEXT,
    "ThreadPoolShutdownTest.test_threads_terminate": SHARED,
    "ThreadPoolShutdownTest.test_del_shutdown": ATTRIBUTE,
    "ThreadPoolShutdownTest.test_shutdown_no_wait": ATTRIBUTE,
    "ThreadPoolShutdownTest.test_thread_names_assigned": ATTRIBUTE,
    "ThreadPoolShutdownTest.test_thread_names_default": ATTRIBUTE,
    "ThreadPoolShutdownTest.test_context_manager_shutdown": ATTRIBUTE,
    "ProcessPoolShutdownTest.test_processes_terminate": SHARED,
    "ProcessPoolShutdownTest.test_context_manager_shutdown": ATTRIBUTE,
    "ProcessPoolShutdownTest.test_del_shutdown": ATTRIBUTE,
    "ProcessPoolShutdownTest.test_shutdown_no_wait": ATTRIBUTE,
    "ThreadPoolWaitTests.test_pending_calls_race": SHARED,
    "FailingInitializerResourcesTest.test_spawn": OTHER,
    "FailingInitializerResourcesTest.test_forkserver": OTHER,
    "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": ATTRIBUTE,
    "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": ATTRIBUTE,
}

# What one dead process does to the standard pool, it does here to its own task.
# And a thread that cannot be started is told as the standard thread pool tells it.
BROKEN = (mentis_pool.SandboxError, mentis_pool.PayloadError, RuntimeError)


class Executor(mentis_pool.SandboxExecutor):
    """As the tests make one: they name a context, and look whether it is broken."""

    def __init__(self, max_workers=None, mp_context=None, **options):
        super().__init__(max_workers, **options)

    @property
    def _broken(self):
        return self._engine._broken


Executor.__name__ = "SandboxExecutor"


class SandboxMixin(util.ExecutorMixin):
    executor_type = Executor

    def get_context(self):
        return self

    def get_start_method(self, allow_none=False):
        return "sandbox"


def taken(cls):
    """A test class with what is left out taken out of it."""
    left = {
        name: None
        for name in vars(cls)
        if name.startswith("test_") and f"{cls.__name__}.{name}" in LEFT_OUT
    }
    return type(cls.__name__, (cls,), left)


# What a task prints is its future's: the scripts of these tests look for it on stdout.
DROP_IN = """
import mentis_pool
SandboxExecutor = lambda *args, **options: mentis_pool.SandboxExecutor(*args, **options).options(
    on_output=lambda piece: print(piece.text, end=""))
"""


def python_ok(flag, code):
    line = "from concurrent.futures import SandboxExecutor\n"
    assert line in code
    indent = code[: code.index(line)].rpartition("\n")[2]
    lines = "".join(indent + each + "\n" for each in DROP_IN.strip().splitlines())
    return script_helper.assert_python_ok(flag, code.replace(indent + line, lines))


@pytest.fixture(autouse=True)
def drop_in(monkeypatch):
    monkeypatch.setattr(test_shutdown, "assert_python_ok", python_ok)
    for module in (test_deadlock, test_process_pool):
        monkeypatch.setattr(module, "BrokenProcessPool", BROKEN)


BASES = (SandboxMixin, util.BaseTestCase)


class TestExecutor(taken(cpython_executor.ExecutorTest), *BASES):
    pass


class TestProcessPoolExecutor(taken(test_process_pool.ProcessPoolExecutorTest), *BASES):
    pass


class TestShutdown(taken(test_shutdown.ExecutorShutdownTest), *BASES):
    pass


class TestCancelFuturesWaitFalse(SandboxMixin, util.BaseTestCase):
    def test_cancel_futures_wait_false(self):
        def of_this_one(flag, code):
            code = code.replace("ThreadPoolExecutor", "SandboxExecutor")
            return python_ok(flag, code)

        with unittest.mock.patch.object(test_shutdown, "assert_python_ok", of_this_one):
            test_shutdown.ThreadPoolShutdownTest.test_cancel_futures_wait_false(self)


class TestWait(taken(test_wait.WaitTests), *BASES):
    pass


class TestAsCompleted(taken(test_as_completed.AsCompletedTests), *BASES):
    pass


class TestInitializer(test_init.InitializerMixin, *BASES):
    pass


class TestFailingInitializer(test_init.FailingInitializerMixin, *BASES):
    def _assert_logged(self, message):
        # It is not logged, but told, by each future and by submit().
        return contextlib.nullcontext()

    def tearDown(self):
        with pytest.raises(mentis_pool.BrokenSandboxPool, match="ValueError: error in initializer"):
            self.executor.submit(test_init.get_init_status)
        super().tearDown()


class TestWaysToDie(taken(test_deadlock.ExecutorDeadlockTest), *BASES):
    def _fail_on_deadlock(self, executor):
        self.fail("it hangs")


class Future(CallFuture):
    """A call's, of an engine that has nothing to do; the tests look for the class's name."""

    def __init__(self):
        task = Task("t", 1, PickledCall(b""), Settings(), None, 0.0)
        super().__init__(task, unittest.mock.Mock())


class TestFuture(taken(test_future.FutureTests), util.BaseTestCase):
    @pytest.fixture(autouse=True)
    def ours(self, monkeypatch):
        # What is logged is looked for on stderr, where it goes when pytest does not take it.
        logger = logging.getLogger("concurrent.futures")
        monkeypatch.setattr(logger, "handlers", [logging.lastResort])
        for module in (util, test_future):
            monkeypatch.setattr(module, "Future", Future)
        for name in vars(util):
            if name.endswith("_FUTURE"):
                theirs = getattr(util, name)
                made = util.create_future(theirs._state, theirs._exception, theirs._result)
                monkeypatch.setattr(test_future, name, made)


CLASSES = [
    cpython_executor.ExecutorTest,
    test_thread_pool.ThreadPoolExecutorTest,
    test_process_pool.ProcessPoolExecutorTest,
    test_shutdown.ExecutorShutdownTest,
    test_shutdown.ThreadPoolShutdownTest,
    test_shutdown.ProcessPoolShutdownTest,
    test_wait.WaitTests,
    test_wait.ThreadPoolWaitTests,
    test_as_completed.AsCompletedTests,
    test_init.InitializerMixin,
    test_init.FailingInitializerMixin,
    test_init.FailingInitializerResourcesTest,
    test_deadlock.ExecutorDeadlockTest,
    test_future.FutureTests,
]


def test_every_one_is_run_or_left_out_with_a_reason():
    theirs = {
        f"{cls.__name__}.{name}"
        for cls in CLASSES
        for name in vars(cls)
        if name.startswith("test_")
    }
    run = set()
    for cls in list(globals().values()):
        if isinstance(cls, type) and cls.__name__.startswith("Test"):
            for base in cls.__mro__:
                run |= {f"{base.__name__}.{n}" for n in vars(base) if getattr(cls, n, None)}
    run.add("ThreadPoolShutdownTest.test_cancel_futures_wait_false")
    assert theirs - run == set(LEFT_OUT)
    assert len(theirs) > 90
