"""One executor of each kind for all tests that do not break it."""

from __future__ import annotations

import glob
import os
import tempfile
import time

import pytest

from mentis_pool import SandboxExecutor


@pytest.fixture(scope="session")
def executor():
    with SandboxExecutor(max_workers=2, timeout=60) as executor:
        yield executor


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


@pytest.fixture
def processes():
    """Pids of all processes whose working directory is in this one: a runtime and all below it."""

    def find(directory):
        found = []
        for path in glob.glob("/proc/[0-9]*/cwd"):
            try:
                if os.readlink(path).startswith(directory):
                    found.append(int(path.split("/")[2]))
            except OSError:
                continue
        return found

    return find
