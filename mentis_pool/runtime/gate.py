"""Who may drive this runtime: a token, and no web page.

A page in somebody's browser can send requests to any address, loopback too. Its
requests carry an Origin that is not ours; or, where its own name was made to
point here (DNS rebinding), a Host that is not ours. Both are refused.

`refusal` decides, on plain values; `Gate` applies it to every request.
"""

from __future__ import annotations

import hmac
import re
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from mentis_pool import mentis_v1
from mentis_pool.address import is_loopback

_PREFIX = "/t/"
HOW = (
    "Give the one that was printed at its start: in the header 'Authorization: Bearer TOKEN', "
    "as ?token=TOKEN, or as the beginning of the path, /t/TOKEN."
)


class Refused(NamedTuple):
    """An HTTP status, and why."""

    status: int
    message: str


def split_token(path: str) -> tuple[str | None, str]:
    """The token that a path begins with, and the path without it."""
    if not path.startswith(_PREFIX):
        return None, path
    token, slash, rest = path[len(_PREFIX) :].partition("/")
    return token, slash + rest or "/"


def refusal(
    *,
    token: str | None,
    loopback: bool,
    headers: Mapping[str, str],
    query: str,
    path_token: str | None = None,
    free: bool = False,
) -> Refused | None:
    """Why a request is refused, or None.

    Args:
        token: to be given; None where none is asked for.
        loopback: whether the runtime listens for its own machine only.
        headers: of the request, their names in small letters.
        query: what follows the ``?`` of its URL.
        path_token: what its path began with.
        free: whether it is one that needs no token.
    """
    host = headers.get("host", "")
    if loopback and not is_loopback(_name(host)):
        return Refused(403, f"the Host {host!r} is not this machine's own")
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in _origins(host):
        return Refused(403, f"a page of {origin!r} may not drive this runtime")
    if token is None or free:
        return None
    given = [path_token, *urllib.parse.parse_qs(query).get("token", [])]
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() in ("bearer", "token"):
        given.append(value.strip())
    tokens = [each for each in given if each]
    if any(hmac.compare_digest(each.encode(), token.encode()) for each in tokens):
        return None
    return Refused(401, "the token is wrong" if tokens else "this runtime asks for a token")


_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[0-9a-zA-Z._-]+)(?::[0-9]+)?")


def _name(host: str) -> str:
    """Of a Host header, without the port; "" where it is none."""
    found = _HOST.fullmatch(host)
    return found[1] if found else ""


def _origins(host: str) -> tuple[str, str]:
    """Of pages of this Host; who passes TLS on to here has the other one."""
    return f"http://{host.lower()}", f"https://{host.lower()}"


class Gate:
    """Lets through to ``app`` what `refusal` does not refuse, the token taken off its path."""

    def __init__(self, app: ASGIApp, token: str | None, loopback: bool) -> None:
        self._app = app
        self._token = token
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one WebSocket."""
        path_token, path = split_token(scope["path"])
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        refused = refusal(
            token=self._token,
            loopback=self._loopback,
            headers=headers,
            query=scope["query_string"].decode("latin-1"),
            path_token=path_token,
            free=path == mentis_v1.HEALTH,
        )
        if refused is None:
            await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send)
            return
        kind = "http" if scope["type"] == "http" else "websocket.http"
        refusal_body = mentis_v1.Refusal(refused.message)
        response_headers = [(b"content-type", b"application/json")]
        if refused.status == 401:
            refusal_body.detail = HOW
            response_headers.append((b"www-authenticate", b"Bearer"))
        body = msgspec.json.encode(refusal_body)
        await send(
            {
                "type": f"{kind}.response.start",
                "status": refused.status,
                "headers": [*response_headers, (b"content-length", str(len(body)).encode())],
            }
        )
        await send({"type": f"{kind}.response.body", "body": body})
