"""Where a runtime is: its address, taken apart.

Pure.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import urllib.parse


@dataclasses.dataclass(frozen=True)
class Address:
    """Of a runtime, as `parse` gives it: ``https://host:port/prefix`` without its end."""

    url: str
    host: str

    def http(self, path: str) -> str:
        """The URL of a path there."""
        return self.url + path

    def ws(self, path: str) -> str:
        """The URL of a WebSocket there."""
        return "ws" + self.url.removeprefix("http") + path

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(self.host)


def parse(url: str) -> Address:
    """The address of a runtime.

    Args:
        url: ``http://`` or ``https://`` (``ws://``, ``wss://`` are the same), a host,
            at will a port and the beginning of a path.

    Raises:
        TypeError, ValueError: it is none; says what is wrong.
    """
    if not isinstance(url, str):
        raise TypeError(f"a runtime's address is text like 'http://host:5266', not {url!r}")
    try:
        parts = urllib.parse.urlsplit(url.strip())
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"{url!r} is no runtime's address: {exc}") from exc
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no runtime's address: it must be like 'http://host:5266'")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"the runtime's address {parts.hostname!r} must have no user, query or fragment: "
            "give the token as token=…"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    where = host if port is None else f"{host}:{port}"
    return Address(f"{scheme}://{where}{parts.path.rstrip('/')}", parts.hostname)


def is_loopback(host: str) -> bool:
    """Whether this is a name or an address of the machine itself, for itself."""
    host = host.strip("[]").lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
