"""REST of a runtime: spaces, sandboxes, cells and commands, over urllib3.

Blocking calls, each with time limits. What is safe to repeat is repeated with
tenacity while nothing answers: everything but what was sent and would happen
twice (a cell, a command, what is made where others make it too).
"""

from __future__ import annotations

import http.client
import ssl
import threading
from types import NoneType
from typing import Any, TypeVar

import msgspec
import tenacity
import urllib3

from mentis_pool import mentis_v1
from mentis_pool.address import Address
from mentis_pool.errors import RuntimeRejected, RuntimeUnavailable
from mentis_pool.events import log
from mentis_pool.stream import ADVICE, ObservationStream, link, proxy_of, refused

CONNECT_TIMEOUT = 5.0
"""Seconds for a connection."""
READ_TIMEOUT = 60.0
"""Seconds for an answer; a new sandbox takes the longest."""
DEADLINE = 60.0
"""Seconds after which nothing is tried again."""

T = TypeVar("T")


class Unanswered(RuntimeUnavailable):
    """The request was sent, and no answer came: it may have been carried out."""


class Gone(RuntimeRejected):
    """There is no such thing at the runtime (404)."""


class Client:
    """The REST interface of one runtime. May be used by any number of threads.

    Args:
        address: of the runtime.
        token: that it asks for, or None.
        retries: how often a request is tried again where nothing answers, or
            the runtime says that it cannot now (HTTP 429, 502, 503, 504).
        ending: when it is set, nothing is tried again.

    Each method raises:

    - `RuntimeUnavailable`: nothing answers, after all retries.
    - `RuntimeRejected`: it answers, and refuses, or is no Mentis runtime.
    """

    def __init__(
        self,
        address: Address,
        token: str | None = None,
        retries: int = 2,
        ending: threading.Event | None = None,
    ) -> None:
        self.address = address
        self._token = token
        self._retries = retries
        self._ending = ending or threading.Event()
        self._pool = _pool_manager(address)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_passing),
            stop=tenacity.stop_after_attempt(retries + 1)
            | tenacity.stop_after_delay(DEADLINE)
            | tenacity.stop_when_event_set(self._ending),
            wait=tenacity.wait_exponential(multiplier=0.1, max=5.0) + tenacity.wait_random(0, 0.1),
            sleep=tenacity.sleep_using_event(self._ending),
            before_sleep=self._log_retry,
            reraise=True,
        )

    def close(self) -> None:
        """Close its connections."""
        self._pool.clear()

    # ── what there is to ask ────────────────────────────────────────────────

    def streams(self) -> list[str]:
        """The subprotocols of streams that it speaks besides v1; an original names none."""
        health = self._repeat("GET", mentis_v1.HEALTH, dict[str, Any])
        if "status" not in health:
            raise RuntimeRejected(f"{self.address.url} is no Mentis runtime: it has no status")
        streams = health.get("streams")
        return [str(stream) for stream in streams] if isinstance(streams, list) else []

    def create_space(
        self, name: str, description: str | None = None, metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A new space with a name that nobody else gives; what v1 tells of it."""
        body = mentis_v1.NewSpace(name, description, metadata)
        try:
            return self._repeat("POST", mentis_v1.SPACES, dict[str, Any], body)
        except (Unanswered, RuntimeRejected) as exc:
            if isinstance(exc, RuntimeRejected) and exc.status != 409:
                raise
            # An answer was lost, so it may be there; it is ours, whoever has its name.
            for space in self.spaces():
                if name in (space.get("name"), space.get("Name")):
                    return space
            raise

    def create_space_once(
        self, name: str, description: str | None = None, metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A new space with any name. Not repeated where it may have been made."""
        body = mentis_v1.NewSpace(name, description, metadata)
        return self._post_once(mentis_v1.SPACES, dict[str, Any], body)

    def spaces(self) -> list[dict[str, Any]]:
        """All spaces."""
        return self._repeat("GET", mentis_v1.SPACES, list[dict[str, Any]])

    def space(self, space_id: str) -> dict[str, Any]:
        """One space."""
        return self._repeat("GET", mentis_v1.space_path(space_id), dict[str, Any])

    def change_space(
        self,
        space_id: str,
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Set what is given."""
        body = mentis_v1.SpaceChange(description, metadata)
        self._repeat("PUT", mentis_v1.space_path(space_id), NoneType, body)

    def delete_space(self, space_id: str) -> None:
        """Delete a space with its sandboxes; one that is gone already is as good."""
        self._delete(mentis_v1.space_path(space_id))

    def create_sandbox(self, space_id: str, settings: dict[str, Any] | None = None) -> str:
        """A new sandbox in a space of our own; its id.

        Where an answer was lost there may be another one, which goes with the space.
        """
        path = mentis_v1.sandboxes_path(space_id)
        return self._repeat("POST", path, mentis_v1.MadeSandbox, settings or {}).sandbox_id

    def create_sandbox_once(self, space_id: str, settings: dict[str, Any] | None = None) -> str:
        """A new sandbox in any space; its id. Not repeated where it may have been made."""
        path = mentis_v1.sandboxes_path(space_id)
        return self._post_once(path, mentis_v1.MadeSandbox, settings or {}).sandbox_id

    def sandbox(self, space_id: str, sandbox_id: str) -> dict[str, Any]:
        """One sandbox."""
        return self._repeat("GET", mentis_v1.sandbox_path(space_id, sandbox_id), dict[str, Any])

    def delete_sandbox(self, space_id: str, sandbox_id: str) -> None:
        """Delete a sandbox; one that is gone already is as good."""
        self._delete(mentis_v1.sandbox_path(space_id, sandbox_id))

    def run_cell(self, space_id: str, sandbox_id: str, body: mentis_v1.RunCell) -> str:
        """Post a cell; the id of its action. Repeated only where it cannot have begun.

        Raises:
            Unanswered: it was sent, and may run.
            Gone: there is no such sandbox.
        """
        path = mentis_v1.tool_path(space_id, sandbox_id, "run_ipython_cell")
        return self._post_once(path, mentis_v1.Accepted, body).action_id

    def run_command(self, space_id: str, sandbox_id: str, body: mentis_v1.RunCommand) -> str:
        """Post a shell command; as `run_cell`."""
        path = mentis_v1.tool_path(space_id, sandbox_id, "run_shell_command")
        return self._post_once(path, mentis_v1.Accepted, body).action_id

    def stream(self, sandbox_id: str, timeout: float | None = None) -> ObservationStream:
        """Connect the stream of a sandbox, each try within so many seconds."""
        url = self.address.ws(mentis_v1.stream_path(sandbox_id))
        seconds = READ_TIMEOUT if timeout is None else timeout
        return self._retrying.copy()(lambda: ObservationStream(link(url, self._token, seconds)))

    # ── requests ────────────────────────────────────────────────────────────

    def _repeat(self, method: str, path: str, expected: type[T], body: Any = None) -> T:
        return self._retrying.copy()(lambda: self._request(method, path, expected, body))

    def _delete(self, path: str) -> None:
        # At the end as well: what is not deleted stays there.
        enough = tenacity.stop_after_attempt(self._retries + 1) | tenacity.stop_after_delay(
            DEADLINE
        )
        retrying = self._retrying.copy(stop=enough, sleep=tenacity.nap.sleep)
        try:
            retrying(lambda: self._request("DELETE", path, NoneType, None))
        except Gone:
            pass

    def _post_once(self, path: str, expected: type[T], body: Any) -> T:
        retrying = self._retrying.copy(retry=tenacity.retry_if_exception(_was_not_begun))
        return retrying(lambda: self._request("POST", path, expected, body))

    def _request(self, method: str, path: str, expected: type[T], body: Any) -> T:
        url = self.address.http(path)
        try:
            answer = self._pool.request(
                method,
                url,
                body=None if body is None else msgspec.json.encode(body),
                headers=self._headers,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
                retries=False,
                redirect=False,
            )
        except _NOT_SENT as exc:
            said = f"nothing answers at {self.address.url}: {exc}; {ADVICE}"
            raise RuntimeUnavailable(said) from exc
        except urllib3.exceptions.HTTPError as exc:
            raise _translated(self.address, exc) from exc
        return self._understood(url, answer, expected)

    def _understood(self, url: str, answer: Any, expected: type[T]) -> T:
        if answer.status == 404:
            if not _is_mentis(answer.data):
                raise Gone(f"{url}: not found; is there a Mentis runtime at {self.address.url}?")
            raise Gone(refused(url, answer.status, answer.data))
        if not 200 <= answer.status < 300:
            error = RuntimeRejected(refused(url, answer.status, answer.data))
            error.status = answer.status
            raise error
        if expected is not NoneType and not answer.data:
            raise Unanswered(f"{self.address.url} gave no answer: it was cut off")
        # 204: there is nothing to read.
        content = b"null" if expected is NoneType else answer.data
        try:
            return msgspec.json.decode(content, type=expected)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            shown = answer.data[:80].decode(errors="replace")
            raise RuntimeRejected(
                f"{self.address.url} is no Mentis runtime: it answered {shown!r} ({exc})"
            ) from exc

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log(
            "warning",
            "request_retried",
            url=self.address.url,
            attempt=state.attempt_number,
            error=str(error),
        )


def _pool_manager(address: Address) -> urllib3.PoolManager:
    proxy = proxy_of(address)
    if proxy is None:
        return urllib3.PoolManager(maxsize=16)
    return urllib3.ProxyManager(proxy.url, proxy_headers=proxy.headers, maxsize=16)


_NOT_SENT = (
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ProxyError,
)


def _is_passing(exc: BaseException) -> bool:
    """Whether another try may do better, for what may be repeated."""
    if isinstance(exc, RuntimeRejected):
        return exc.passing
    return isinstance(exc, RuntimeUnavailable)


def _was_not_begun(exc: BaseException) -> bool:
    """Whether what was to be done cannot have been: it was not sent, or refused for now (429)."""
    if isinstance(exc, RuntimeRejected):
        return exc.status == 429
    return isinstance(exc, RuntimeUnavailable) and not isinstance(exc, Unanswered)


def _translated(
    address: Address, exc: urllib3.exceptions.HTTPError
) -> RuntimeUnavailable | RuntimeRejected:
    """What it means that a request failed that may have been sent."""
    cause = exc.args[-1] if exc.args else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return RuntimeRejected(f"{address.url} cannot be trusted: {exc}")
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
        return RuntimeRejected(
            f"{address.url} is no Mentis runtime: it speaks no TLS; is it http:// there? ({exc})"
        )
    # A connection that was closed is one of these as well, and no answer at all.
    if isinstance(cause, http.client.BadStatusLine) and not isinstance(cause, ConnectionError):
        return RuntimeRejected(f"{address.url} is no Mentis runtime: it speaks no HTTP ({exc})")
    return Unanswered(
        f"{address.url} gave no answer: {exc}; see whether the runtime there still runs"
    )


def _is_mentis(body: bytes) -> bool:
    try:
        return "message" in msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
