"""One executor of each kind for all tests that do not break it."""

from __future__ import annotations

import atexit
import compileall
import functools
import glob
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from fakes import OriginalRuntime, Script

from mentis_pool import SandboxExecutor
from mentis_pool.runtime.local import LocalRuntime

# What sandboxes of any test see, and read again and again: it is there before the first starts.
_SHOWN = tempfile.mkdtemp(prefix="mp-shown-")
sys.path.append(_SHOWN)
atexit.register(shutil.rmtree, _SHOWN, ignore_errors=True)


@pytest.fixture
def shown():
    """A directory that is seen in sandboxes, at the same path."""
    return Path(tempfile.mkdtemp(dir=_SHOWN))


def pytest_configure():
    """A shell has what it starts in the background ignore Ctrl-C, and so would all it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A sandbox that imports a test's module could not keep what it compiled, and pytest's is not it.
    compileall.compile_dir(os.path.dirname(__file__), quiet=2)


def pytest_collection_modifyitems(items):
    """What v1 does not give is not asked of an original runtime."""
    items[:] = [
        item
        for item in items
        if not (
            item.get_closest_marker("beyond_v1")
            and getattr(item, "callspec", None)
            and item.callspec.params.get("executor") == "original"
        )
    ]


@pytest.fixture(scope="session")
def embedded():
    with SandboxExecutor(max_workers=2, timeout=60) as executor:
        yield executor


@pytest.fixture
def executor(embedded):
    return embedded


def serve(*arguments, program=("-m", "mentis_pool"), **environment):
    """A runtime that is served, by this program: its process, its address, its token."""
    process = subprocess.Popen(
        [sys.executable, *program, "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    url = process.stdout.readline().split()[-1]
    token = None
    if "--no-token" not in arguments:
        token = process.stdout.readline().split()[-1]
        process.stdout.readline()
    return process, url, token


def end(process):
    process.terminate()
    with process.stdout:
        said = process.stdout.read()
    assert process.wait(20) == 0, said
    return said


@pytest.fixture(scope="session")
def served():
    """The address and the token of a runtime that is served over TCP."""
    process, url, token = serve()
    yield url, token
    assert end(process) == ""


@pytest.fixture(scope="session")
def served_executor(served):
    url, token = served
    with SandboxExecutor(max_workers=2, timeout=60, runtime=url, token=token) as executor:
        yield executor


@pytest.fixture(scope="session")
def sharing():
    """Makes executors with options of their own, at one runtime that is there already.

    Its sandboxes find what those of an embedded one do.
    """
    token = "of-all-tests"
    # What tests import, to be imported once.
    runtime = LocalRuntime(["mentis_pool.executor", "psutil", "pytest"], 1, token)
    yield functools.partial(SandboxExecutor, runtime=runtime.url, token=token)
    runtime.stop()


@pytest.fixture(scope="session")
def original_executor():
    """At an original runtime, in the nastiest order of what it says that is legal."""
    with OriginalRuntime(Script(early=0.1, noise=True, joined=True)) as runtime:

        def is_no_noise(record):
            if record.event != "observation_skipped":
                return True
            sandbox = record.fields["sandbox_id"]
            return not any(sandbox in path for _, path, _ in list(runtime.requests))

        logging.getLogger("mentis_pool").addFilter(is_no_noise)
        with SandboxExecutor(max_workers=2, timeout=60, runtime=runtime.url) as executor:
            yield executor
        logging.getLogger("mentis_pool").removeFilter(is_no_noise)
        assert not runtime.sandboxes
        assert list(runtime.spaces) == ["default"]


@pytest.fixture(scope="session")
def reuse():
    with SandboxExecutor(max_workers=1, state="reuse", timeout=60) as executor:
        yield executor


@pytest.fixture
def own_temp(tmp_path, monkeypatch):
    """A temporary directory for the runtimes of this test alone."""
    # Short, for a socket's path; and not below pytest's own, whose names are long.
    base = tempfile.mkdtemp(prefix="mp-", dir="/tmp")
    monkeypatch.setenv("TMPDIR", base)
    monkeypatch.setattr(tempfile, "tempdir", None)
    # All processes of a runtime have this, and can be told by it.
    monkeypatch.setenv("LD_LIBRARY_PATH", base)
    yield base
    left = os.listdir(base)
    for path in left:
        print("left:", path)
    assert left == []
    os.rmdir(base)


@pytest.fixture
def eventually():
    """Wait until something is true, or fail with what it is."""

    def wait(condition, seconds=10.0):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        return found

    return wait


@pytest.fixture(scope="session")
def processes():
    """Pids of all processes of the runtimes of this directory (`own_temp`), those behind walls too."""

    def find(directory):
        found = []
        for path in glob.glob("/proc/[0-9]*"):
            try:
                its = os.readlink(f"{path}/cwd").startswith(directory)
                with open(f"{path}/environ", "rb") as file:
                    environment = file.read().split(b"\0")
            except OSError:
                continue
            # A client has both.
            its |= f"LD_LIBRARY_PATH={directory}".encode() in environment and (
                f"TMPDIR={directory}".encode() not in environment
            )
            if its:
                found.append(int(path[6:]))
        return found

    return find
