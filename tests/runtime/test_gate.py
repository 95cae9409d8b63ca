"""Who may drive a runtime: decided on plain values."""

from __future__ import annotations

import pytest

from mentis_pool.runtime.gate import refusal, split_token


def refused(headers=None, query="", token="secret", loopback=True, **given):
    headers = {"host": "127.0.0.1:5266", **(headers or {})}
    return refusal(token=token, loopback=loopback, headers=headers, query=query, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"headers": {"authorization": "Bearer secret"}},
        {"headers": {"authorization": "bearer  secret "}},
        {"headers": {"authorization": "token secret"}},
        {"query": "a=b&token=secret"},
        {"path_token": "secret"},
        {"path_token": "secret", "query": "token=wrong"},
    ],
)
def test_the_token_may_be_given_in_three_ways(given):
    assert refused(**given) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "asks for a token"),
        ({"headers": {"authorization": "Basic secret"}}, "asks for a token"),
        ({"query": "token="}, "asks for a token"),
        ({"headers": {"authorization": "Bearer wrong"}}, "token is wrong"),
        ({"query": "token=secre"}, "token is wrong"),
        ({"query": "token=secrets"}, "token is wrong"),
        ({"path_token": "ü"}, "token is wrong"),
        ({"path_token": "SECRET"}, "token is wrong"),
    ],
)
def test_without_it_nobody_comes_in(given, message):
    said = refused(**given)
    assert said.status == 401
    assert message in said.message
    assert "secret" not in said.message


def test_where_no_token_is_asked_for_none_is_needed():
    assert refused(token=None) is None
    assert refused(free=True) is None


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:5266", "localhost", "LOCALHOST:1", "[::1]:5266", "a.localhost:5266", "127.1.2.3"],
)
def test_on_loopback_these_hosts_are_ours(host):
    assert refused({"host": host}, token=None) is None


@pytest.mark.parametrize(
    "host", ["", "evil.com", "evil.com:5266", "localhost.evil.com", "10.0.0.1", "127.0.0.1.evil.com",
             "[", "user@127.0.0.1.evil.com", "evil.com@127.0.0.1", "evil.com@localhost:5266",
             "127.0.0.1:x", "127.0.0.1:", "127.0.0.1:1:2", "[::1", "[::1]x", "127.0.0.1/", " 127.0.0.1",
             "localhost?", "localhost#", "::1", "127.0.0.1\n"]
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(host):
    """DNS rebinding: the page's own name, and our address."""
    said = refused({"host": host}, token=None)
    assert said.status == 403
    assert "Host" in said.message
    # Elsewhere the token is what keeps pages out.
    assert refused({"host": host}, query="token=secret", loopback=False) is None


@pytest.mark.parametrize(
    "origin",
    ["http://evil.com", "https://localhost:3000", "null", "", "http://[::1", "http://",
     "http://me@127.0.0.1:5266", "127.0.0.1:5266", "http://127.0.0.1:5266/", "file://127.0.0.1:5266",
     "http://127.0.0.1:5266.evil.com", "http://127.0.0.1", "\u2100"],
)  # fmt: skip
def test_a_page_of_somebody_else_is_refused(origin):
    for token in (None, "secret"):
        said = refused({"origin": origin}, query="token=secret", token=token)
        assert said.status == 403
        assert "page" in said.message


def test_a_page_of_our_own_address_is_not():
    for origin in ("http://127.0.0.1:5266", "https://127.0.0.1:5266", "HTTP://127.0.0.1:5266"):
        assert refused({"origin": origin}, query="token=secret") is None
    assert refused({"host": "LocalHost:1", "origin": "http://localhost:1"}, token=None) is None


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("/v1/health", (None, "/v1/health")),
        ("/t/abc/v1/health", ("abc", "/v1/health")),
        ("/t/abc", ("abc", "/")),
        ("/t/abc/", ("abc", "/")),
        ("/t/", ("", "/")),
        ("/", (None, "/")),
    ],
)
def test_a_path_may_begin_with_the_token(path, split):
    assert split_token(path) == split
