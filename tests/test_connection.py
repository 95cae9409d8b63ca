"""A runtime of ours at an address: the handshake checks the versions of the stream and of Python."""

from __future__ import annotations

import platform
import threading

import pytest

from mentis_pool import RuntimeRejected, SandboxExecutor, connection
from mentis_pool.address import parse
from mentis_pool.stream import link
from mentis_pool.threads import Threads


def remote(served):
    url, token = served
    threads = Threads("keepers", pytest.fail)
    return connection.remote(parse(url), token, 0, threading.Event(), threads)


def test_the_same_version_of_everything_is_taken(served):
    made = remote(served)
    assert isinstance(made, connection.RemoteConnection)
    made.close()


def test_another_version_of_the_stream_is_refused_with_both_named(served, monkeypatch):
    ours = connection.SUBPROTOCOL
    monkeypatch.setattr(connection, "SUBPROTOCOL", "mentis_pool.another")
    with pytest.raises(RuntimeRejected, match="install the same version") as caught:
        remote(served)
    assert ours in str(caught.value)
    assert "mentis_pool.another" in str(caught.value)


def test_a_stream_of_another_version_is_refused_by_the_runtime(served):
    url, token = served
    with pytest.raises(RuntimeRejected, match="this runtime speaks") as caught:
        link(parse(url).ws(connection.PATH), token, 5, "mentis_pool.another")
    assert "token" not in str(caught.value), "which is not what is wrong"


@pytest.mark.parametrize("version", ["3.9.1", "4.0.0"])
def test_another_python_is_refused_with_both_named(served, monkeypatch, version):
    theirs = platform.python_version()
    monkeypatch.setattr(platform, "python_version", lambda: version)
    with pytest.raises(RuntimeRejected, match="use the same Python") as caught:
        remote(served)
    assert f"Python {theirs}" in str(caught.value)
    assert f"Python {version}" in str(caught.value)
    url, token = served
    with SandboxExecutor(1, runtime=url, token=token) as executor:
        assert isinstance(executor.submit("1").exception(20), RuntimeRejected)


def test_the_last_part_of_pythons_version_does_not_matter(served, monkeypatch):
    version = ".".join(platform.python_version().split(".")[:2])
    monkeypatch.setattr(platform, "python_version", lambda: f"{version}.999")
    remote(served).close()
