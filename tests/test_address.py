"""A runtime's address, taken apart."""

from __future__ import annotations

import pytest

from mentis_pool.address import is_loopback, parse


@pytest.mark.parametrize(
    ("url", "http", "ws", "host"),
    [
        ("http://host:5266", "http://host:5266/p", "ws://host:5266/p", "host"),
        ("https://host", "https://host/p", "wss://host/p", "host"),
        ("ws://host:1/", "http://host:1/p", "ws://host:1/p", "host"),
        ("wss://host/t/abc/", "https://host/t/abc/p", "wss://host/t/abc/p", "host"),
        (" HTTP://HOST:80 ", "http://host:80/p", "ws://host:80/p", "host"),
        ("http://[::1]:5266", "http://[::1]:5266/p", "ws://[::1]:5266/p", "::1"),
    ],
)
def test_an_address_gives_the_urls_of_its_paths(url, http, ws, host):
    address = parse(url)
    assert (address.http("/p"), address.ws("/p"), address.host) == (http, ws, host)


@pytest.mark.parametrize(
    "url",
    ["", "host:5266", "host", "ftp://host", "http://", "http://h:port", "http://h:99999",
     "http://u:p@h", "http://h?token=x", "http://h#x", "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_words(url):
    with pytest.raises(ValueError, match=r"address"):
        parse(url)


def test_a_token_in_the_query_is_not_repeated_in_the_error():
    with pytest.raises(ValueError, match="token=") as caught:
        parse("http://host?token=secret")
    assert "secret" not in str(caught.value)


def test_an_address_is_text():
    with pytest.raises(TypeError, match="http://host:5266"):
        parse(5266)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"]
)
def test_these_are_this_machine(host):
    assert is_loopback(host)
    assert parse(f"http://{host if ':' not in host else '[::1]'}:1").loopback


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "localhost.evil.com", "10.0.0.1", "host"])
def test_these_are_not(host):
    assert not is_loopback(host)
