"""The processes of an embedded runtime, as a test finds them; and calls that name theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

NAMED = "import os, time\nprint(os.getpid(), flush=True)\n"
"""The beginning of a cell whose worker is to be found."""
SLEEP = NAMED + "time.sleep(60)"


def asleep(seconds=60):
    print(os.getpid(), flush=True)
    time.sleep(seconds)


def large(size=100 << 20):
    """More than fits into all buffers on its way."""
    print(os.getpid(), flush=True)
    return bytes(size)


def runtime_of(executor):
    return psutil.Process(executor._engine._connection._runtime.pid)


def zygote_of(executor):
    [zygote] = runtime_of(executor).children()
    return zygote


def worker_of(future, seconds=10.0):
    """The process that runs it, by its own word."""
    deadline = time.monotonic() + seconds
    while not future.stdout.endswith("\n"):
        assert time.monotonic() < deadline, future
        time.sleep(0.005)
    return psutil.Process(int(future.stdout.split()[0]))


def started(*futures):
    """Wait until these have begun."""
    for future in futures:
        next(future.observations())


def script(text, python=sys.executable, seconds=30, arguments=()):
    """What a program wrote, and its exit code."""
    done = subprocess.run(
        [python, "-c", text, *arguments], capture_output=True, text=True, timeout=seconds
    )
    return done.stdout, done.stderr, done.returncode
