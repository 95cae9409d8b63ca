"""The processes of an embedded runtime, as a test finds them; and calls that name theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

NAMED = (
    "import os, time\n"
    "print(os.getpid(), os.path.exists('/proc/self/ns/pid') "
    "and os.stat('/proc/self/ns/pid').st_ino, flush=True)\n"
)
"""The beginning of a cell whose worker is to be found."""
WAIT = NAMED + "while not os.path.exists(go): time.sleep(0.01)\n5"
"""A cell that gives 5 when there is such a file."""
SHELL_NAMED = "echo $$ $(stat -Lc %i /proc/self/ns/pid 2>/dev/null || echo 0)"
"""The same, of a shell command."""
SLEEP = NAMED + "time.sleep(60)"


def number():
    """Of this process among all, those of other pid namespaces too: pid and namespace."""
    path = "/proc/self/ns/pid"
    return os.getpid(), os.stat(path).st_ino if os.path.exists(path) else 0


def named():
    exec(NAMED, {})


def asleep(seconds=60):
    named()
    time.sleep(seconds)


def large(size=100 << 20):
    """More than fits into all buffers on its way."""
    named()
    return bytes(size)


def runtime_of(executor):
    return psutil.Process(executor._engine._connection._runtime.pid)


def zygote_of(executor):
    [zygote] = runtime_of(executor).children()
    if executor._engine.standing().level == "bubblewrap":
        # Bubblewrap, the first process behind the wall, and the zygote, once it is there.
        [first] = zygote.children()
        [zygote] = first.children()
    return zygote


def worker_of(future, seconds=10.0):
    """The process that runs it, by its own word."""
    deadline = time.monotonic() + seconds
    while not future.stdout.endswith("\n"):
        assert time.monotonic() < deadline, future
        time.sleep(0.005)
    pid, namespace = map(int, future.stdout.split()[:2])
    return psutil.Process(seen_from_here(pid, namespace))


def seen_from_here(pid, namespace):
    """The number of a process of another pid namespace, which this inode is of."""
    if not namespace:
        return pid
    for each in psutil.pids():
        try:
            if os.stat(f"/proc/{each}/ns/pid").st_ino == namespace:
                with open(f"/proc/{each}/status") as file:
                    numbers = next(line for line in file if line.startswith("NSpid:"))
                if int(numbers.split()[-1]) == pid:
                    return each
        except OSError:
            continue
    raise AssertionError(f"there is no process {pid} in the namespace {namespace}")


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
