"""REST of a runtime: what is repeated, how often and for how long; proxies, TLS, and what is no runtime."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
import types
import warnings

import pytest
from fakes import OriginalRuntime, Relay, certificate
from hypothesis import given, settings
from hypothesis import strategies as st

from mentis_pool import (
    MentisPoolError,
    MentisSandbox,
    RuntimeRejected,
    RuntimeUnavailable,
    SandboxExecutor,
    SpaceManager,
)
from mentis_pool import client as client_module
from mentis_pool.address import parse
from mentis_pool.client import Client, Unanswered
from mentis_pool.mentis_v1 import RunCell, RunCommand


@pytest.fixture
def original():
    with OriginalRuntime() as runtime:
        yield runtime


class Ending(threading.Event):
    """Says how long it was to be waited for, and does not."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)


@pytest.fixture
def client(original):
    client = Client(parse(original.url), ending=Ending())
    yield client
    client.close()


def only(original, method, path, *answers):
    """Answer requests like this one with these, in turn; how often it was asked."""
    asked = []

    def answer(its_method, its_path, _):
        if (its_method, its_path) != (method, path):
            return None
        asked.append(time.monotonic())
        return answers[len(asked) - 1] if len(asked) <= len(answers) else None

    original.script.answer = answer
    return asked


# ── what is repeated ────────────────────────────────────────────────────────


@pytest.mark.parametrize("answer", [429, 502, 503, 504, "reset"])
def test_what_may_be_repeated_is_repeated_as_often_as_it_was_said(original, client, answer):
    asked = only(original, "GET", "/v1/spaces", *[answer] * 9)
    with pytest.raises((RuntimeRejected, RuntimeUnavailable)):
        client.spaces()
    assert len(asked) == 3
    asked = only(original, "GET", "/v1/spaces", answer, answer)
    assert len(client.spaces()) == 1
    assert len(asked) == 3


@pytest.mark.parametrize("answer", [400, 404, 409, 500])
def test_what_is_refused_for_good_is_not(original, client, answer):
    asked = only(original, "GET", "/v1/spaces", *[answer] * 9)
    with pytest.raises(RuntimeRejected, match=str(answer)):
        client.spaces()
    assert len(asked) == 1


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_the_number_of_retries_is_the_users(original, retries):
    client = Client(parse(original.url), retries=retries, ending=Ending())
    asked = only(original, "GET", "/v1/spaces", *["reset"] * 9)
    with pytest.raises(Unanswered):
        client.spaces()
    assert len(asked) == retries + 1
    client.close()


def test_between_tries_it_waits_longer_each_time_and_never_the_same():
    ending = Ending()
    for _ in range(2):
        client = Client(parse("http://127.0.0.1:1"), retries=5, ending=ending)
        with pytest.raises(RuntimeUnavailable):
            client.spaces()
        client.close()
    assert len(set(ending.waits)) == 10
    for n, wait in enumerate(ending.waits):
        assert 0.1 * 2 ** (n % 5) <= wait <= 0.1 * 2 ** (n % 5) + 0.1


def test_after_the_deadline_nothing_is_tried_again(monkeypatch):
    monkeypatch.setattr(client_module, "DEADLINE", 0.5)
    client = Client(parse("http://127.0.0.1:1"), retries=8)
    begun = time.monotonic()
    with pytest.raises(
        RuntimeUnavailable, match=r"nothing answers at http://127\.0\.0\.1:1.*'mentis-pool serve'"
    ):
        client.spaces()
    assert 0.3 < time.monotonic() - begun < 3
    client.close()


def test_when_it_is_to_end_nothing_is_tried_again():
    ending = threading.Event()
    client = Client(parse("http://127.0.0.1:1"), retries=8, ending=ending)
    threading.Timer(0.3, ending.set).start()
    begun = time.monotonic()
    with pytest.raises(RuntimeUnavailable):
        client.spaces()
    assert time.monotonic() - begun < 3
    client.close()


def run(client, original, tool):
    [sandbox] = original.sandboxes or [client.create_sandbox("default")]
    if tool == "run_ipython_cell":
        return client.run_cell("default", sandbox, RunCell("1"))
    return client.run_command("default", sandbox, RunCommand("true"))


@pytest.mark.parametrize("tool", ["run_ipython_cell", "run_shell_command"])
@pytest.mark.parametrize(
    ("answers", "tries"),
    [((429, 429), 3), ((429, "late reset"), 2), (("late reset",), 1), (("reset",), 1), ((503,), 1)],
)
def test_what_may_have_begun_is_not_sent_again(original, client, tool, answers, tries):
    run(client, original, tool)
    [sandbox] = original.sandboxes
    path = f"/v1/spaces/default/sandboxes/{sandbox}/tools:{tool}"
    asked = only(original, "POST", path, *answers)
    if answers[-1] == 429:
        assert run(client, original, tool)
    else:
        with pytest.raises((Unanswered, RuntimeRejected)):
            run(client, original, tool)
    assert len(asked) == tries


# ── what was made, and the answer was lost ──────────────────────────────────


@pytest.mark.parametrize("lost", range(1, 4))
def test_a_space_of_ours_whose_answer_was_lost_is_found(original, client, lost):
    asked = only(original, "POST", "/v1/spaces", *["late reset"] * lost)
    made = client.create_space("ours alone", "d")
    space = made.get("space_id") or made["ID"]
    assert len(asked) == min(lost + 1, 3)
    assert [each["name"] for each in original.spaces.values()] == ["default", "ours alone"]
    client.delete_space(space)
    assert list(original.spaces) == ["default"]


def test_a_space_that_was_never_made_is_an_error(original, client):
    only(original, "POST", "/v1/spaces", *["reset"] * 3)
    with pytest.raises(Unanswered):
        client.create_space("ours alone")
    assert list(original.spaces) == ["default"]


def test_a_space_of_an_executor_is_not_left_behind(original):
    asked = only(original, "POST", "/v1/spaces", "late reset")
    with SandboxExecutor(1, runtime=original.url) as executor:
        assert executor.submit("1").result(20).text == "1"
    assert len(asked) == 2
    assert list(original.spaces) == ["default"]


def test_a_space_of_a_user_is_not_taken_for_one_that_is_there(original):
    manager = SpaceManager(original.url)
    theirs = manager.create_space("lab")
    asked = only(original, "POST", "/v1/spaces", "late reset")
    with pytest.raises(RuntimeUnavailable):
        manager.create_space("lab")
    assert len(asked) == 1
    assert [each.space_id for each in manager.list_spaces()][1:] == [theirs.space_id]
    manager.close()


# ── what is no Mentis runtime ───────────────────────────────────────────────


@pytest.fixture
def port():
    """Of what answers every connection with what it was told to say, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        says = {}

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        connection.sendall(says["this"])
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], says
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def answering(body):
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


@pytest.mark.parametrize(
    ("scheme", "says", "words"),
    [
        ("http", b"SSH-2.0-OpenSSH_9\r\n", "speaks no HTTP"),
        ("https", b"SSH-2.0-OpenSSH_9\r\n", "speaks no TLS; is it http:// there"),
        ("https", answering(b"{}"), "speaks no TLS"),
        ("http", answering(b"<html>"), "it answered '<html>'"),
        ("http", answering(b"{}"), "it has no status"),
        ("http", answering(b"[]"), "it answered"),
    ],
)
def test_a_url_of_something_else_is_said_to_be_no_runtime(port, scheme, says, words):
    number, told = port
    told["this"] = says
    client = Client(parse(f"{scheme}://127.0.0.1:{number}"))
    with pytest.raises(RuntimeRejected, match="is no Mentis runtime") as caught:
        client.streams()
    assert words in str(caught.value)
    client.close()
    with SandboxExecutor(1, runtime=f"{scheme}://127.0.0.1:{number}") as executor:
        assert "is no Mentis runtime" in str(executor.submit("1").exception(20))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_hangs_up_gave_no_answer(port, scheme):
    number, told = port
    told["this"] = b""
    client = Client(parse(f"{scheme}://127.0.0.1:{number}"), retries=0)
    with pytest.raises(RuntimeUnavailable, match=r"gave no answer.*see whether the runtime"):
        client.streams()
    client.close()


# ── proxies ─────────────────────────────────────────────────────────────────


@pytest.fixture
def no_proxies(monkeypatch):
    for name, end in itertools.product(("http", "https", "all", "no"), ("_proxy", "_PROXY")):
        monkeypatch.delenv(name + end if end.islower() else name.upper() + end, raising=False)
    return monkeypatch


@pytest.fixture
def proxied(no_proxies):
    """Where the environment names a proxy at which nothing answers."""
    for name in ("http_proxy", "https_proxy"):
        no_proxies.setenv(name, "http://127.0.0.1:9")
    return no_proxies


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_proxies_are_bypassed_for_loopback(original, served, proxied, host):
    with SandboxExecutor(1, runtime=original.url.replace("127.0.0.1", host), retries=0) as executor:
        assert executor.submit("1").result(20).text == "1"
    with MentisSandbox.create(base_url=original.url.replace("127.0.0.1", host)) as sandbox:
        assert sandbox.is_connected()
    url, token = served
    with SandboxExecutor(
        1, runtime=url.replace("127.0.0.1", host), token=token, retries=0
    ) as executor:
        assert executor.submit("1").result(20).value == 1


@pytest.mark.parametrize("kind", ["original", "served"])
def test_elsewhere_a_proxy_is_used_for_requests_and_streams_alike(
    original, served, no_proxies, kind
):
    url, token = served if kind == "served" else (original.url, None)
    with Relay(url) as proxy:
        no_proxies.setenv("http_proxy", proxy.url.replace("//", "//me:pass@"))
        elsewhere = "http://runtime.test:5266"
        if kind == "served":
            # Its Host must be its own; the proxy is asked for it all the same.
            no_proxies.setattr("mentis_pool.address.is_loopback", lambda _: False)
            elsewhere = url
        with SandboxExecutor(1, runtime=elsewhere, token=token) as executor:
            assert executor.submit("1").result(20).ok
        where = elsewhere.removeprefix("http://")
        assert f"GET {elsewhere}/v1/health HTTP/1.1" in proxy.asked
        assert any(line.startswith(f"CONNECT {where} ") for line in proxy.asked)
        before = len(proxy.asked)
        # What is said of hosts that need none holds for both as well, the port included.
        no_proxies.setenv("no_proxy", where)
        client = Client(parse(elsewhere), token, retries=0)
        if kind == "served":
            client.streams()
        else:
            with pytest.raises(RuntimeUnavailable):
                client.streams()
            with pytest.raises(RuntimeUnavailable):
                client.stream("x", 2)
        client.close()
        assert len(proxy.asked) == before


def test_a_proxy_of_another_kind_is_named(no_proxies):
    no_proxies.setenv("http_proxy", "socks5://proxy.test:1080")
    with pytest.raises(RuntimeRejected, match=r"socks5://proxy\.test:1080"):
        Client(parse("http://runtime.test"))


def test_a_proxy_that_does_not_answer_is_no_answer(no_proxies, port):
    number, told = port
    no_proxies.setenv("http_proxy", f"127.0.0.1:{number}")
    for says in (b"nonsense\r\n", b"HTTP/1.1 502 no\r\n\r\n", b""):
        told["this"] = says
        client = Client(parse("http://runtime.test"), retries=0)
        with pytest.raises(RuntimeUnavailable, match=r"runtime\.test"):
            client.stream("x", 2)
        client.close()
    with warnings.catch_warnings():
        # Before Python 3.11 http.client leaves it to the collector to close these.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


# ── TLS ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def localhost(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("kind", ["original", "served"])
def test_https_and_wss(original, served, localhost, proxied, kind):
    url, token = served if kind == "served" else (original.url, None)
    proxied.setenv("SSL_CERT_FILE", localhost)
    with Relay(url, localhost) as relay:
        with SandboxExecutor(2, runtime=relay.secure_url, token=token) as executor:
            results = list(executor.map(["print('x' * 300_000)", "2"] * 3))
            assert [len(result.stdout) for result in results] == [300_001, 0] * 3
        with MentisSandbox.create(base_url=relay.secure_url, token=token) as sandbox:
            assert sandbox.is_connected()
            sandbox.run_shell_command("true")
        assert relay.asked == []


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(original, localhost):
    with Relay(original.url, localhost) as relay:
        with SandboxExecutor(1, runtime=relay.secure_url) as executor:
            error = executor.submit("1").exception(20)
    assert isinstance(error, RuntimeRejected)
    assert "cannot be trusted" in str(error)


def test_what_reaches_other_machines_is_imported_when_it_is_needed():
    code = (
        "import sys, mentis_pool.stream\n"
        "assert not {'http.client', 'urllib.request'} & set(sys.modules), sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["status", "streams", "space_id", "name", "action_id", "sandbox_id", "x"]
            ),
            inside,
            max_size=3,
        )
    ),
    max_leaves=6,
)
_ASKED = [
    lambda client: client.streams(),
    lambda client: client.create_space("name"),
    lambda client: client.create_space_once("name"),
    lambda client: client.spaces(),
    lambda client: client.space("id"),
    lambda client: client.change_space("id"),
    lambda client: client.delete_space("id"),
    lambda client: client.create_sandbox("id"),
    lambda client: client.sandbox("id", "id"),
    lambda client: client.delete_sandbox("id", "id"),
    lambda client: client.run_cell("id", "id", RunCell("1")),
    lambda client: client.run_command("id", "id", RunCommand("true")),
]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(_ASKED),
    st.sampled_from([200, 201, 202, 204, 301, 400, 404, 409, 422, 429, 500, 503]) | st.integers(0),
    st.binary(max_size=50)
    | _JSON.map(lambda answer: json.dumps(answer).encode())
    | st.just(b"[" * 100_000),
)
def test_whatever_a_runtime_answers_is_understood_or_an_error_of_ours(ask, status, answer):
    client = Client(parse("http://127.0.0.1:1"), retries=0)
    answers = types.SimpleNamespace(status=status, data=answer)
    client._pool.request = lambda *_, **__: answers
    with contextlib.suppress(MentisPoolError):
        ask(client)
    client.close()


def test_an_answer_of_nothing_but_nesting_is_no_runtimes():
    assert not client_module._is_mentis(b'{"a":' * 100_000)
