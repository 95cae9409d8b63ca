"""What is done after a fork: nothing in a process with one thread, all of it once cells run there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mentis_pool import SandboxExecutor

BEGIN = """
import os
register = os.register_at_fork
from mentis_pool.runtime import forks
forks.load()
assert os.register_at_fork is register
import random, sys, threading

def in_child(call):
    sys.stdout.flush()
    if os.fork() == 0:
        call()
        sys.stdout.flush()
        os._exit(0)
    os.wait()

def in_thread(call):
    done = threading.Event()
    threading.Thread(target=done.wait, daemon=True).start()
    call()
    done.set()

def draw():
    print(random.random())

def count():
    print(threading.active_count())

"""


def said(script):
    """The lines that a new interpreter prints, with this after `forks.load`."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_until_it_is_left_out_all_is_done():
    first, second, threads = said(
        "random.seed(1); in_child(draw); draw(); in_thread(lambda: in_child(count))"
    )
    assert first != second
    assert threads == "1"


def test_with_one_thread_nothing_is_done():
    first, second = said("random.seed(1); forks.leave_out(); in_child(draw); draw()")
    assert first == second


def test_with_other_threads_all_is_done():
    script = "in_thread(lambda: [forks.leave_out(), in_child(count), in_child(draw), draw()])"
    threads, first, second = said(f"random.seed(1); {script}")
    assert threads == "1"
    assert first != second


def test_once_caught_up_numbers_are_others_and_all_is_done():
    script = """
def worker():
    forks.catch_up()
    draw()
    print(threading.main_thread().native_id == os.getpid())
    in_thread(lambda: in_child(count))

random.seed(1)
forks.leave_out()
in_child(worker)
draw()
"""
    if sys.platform != "linux":
        pytest.skip("a thread's number is the process's on Linux")
    first, own, threads, second = said(script)
    assert (own, threads) == ("True", "1")
    assert first != second


def test_cells_draw_numbers_of_their_own_and_may_fork_beside_threads():
    cell = """
import logging, os, random, threading
release = threading.Event()
logging._acquireLock() if hasattr(logging, "_acquireLock") else logging._lock.acquire()
def hold():
    with logging.getLogger().manager.root.handlers[0].lock:
        held.set()
        release.wait(10)
logging.getLogger().addHandler(logging.StreamHandler())
held = threading.Event()
threading.Thread(target=hold).start()
held.wait(10)
if (pid := os.fork()) == 0:
    logging.getLogger().handlers[0].acquire()
    os._exit(threading.active_count() + 1)
release.set()
random.random(), threading.main_thread().native_id == threading.get_native_id(), (
    os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
)
"""
    with SandboxExecutor(max_workers=1, timeout=20) as executor:
        first, second = (result.value for result in executor.map([cell, cell]))
    assert first[1:] == second[1:] == (True, 2)
    assert first[0] != second[0]


def test_a_preloaded_module_may_have_started_threads(tmp_path, monkeypatch):
    (tmp_path / "starts_one.py").write_text(
        "import threading\n"
        "class Waits(threading.Thread):\n"
        "    def run(self):\n"
        "        threading.Event().wait()\n"
        "Waits(daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with SandboxExecutor(max_workers=1, preload=["starts_one"], timeout=20) as executor:
        assert executor.submit("import threading\nthreading.active_count()").result().value == 1
