"""What a client of v1 asks for, whatever it is: an answer, and never a failure of the runtime's own."""

from __future__ import annotations

import asyncio
import json
import types

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mentis_pool.runtime.server import application
from mentis_pool.runtime.supervisor import NoRoom


class Supervisor:
    """One whose sandboxes do nothing; there are three at most."""

    def __init__(self):
        self.ready = asyncio.Event()
        self.ready.set()
        self.opened = 0

    def open(self, number, opened, listener):
        self.opened += 1
        if self.opened > 3:
            raise NoRoom("the runtime has 3 sandboxes, and takes no more")
        return types.SimpleNamespace(
            submit=msgspec.msgpack.encode,
            execute=lambda command, directory, environment, timeout, listener: os_would(
                command, directory, environment
            ),
            close=lambda reason: None,
            resume=lambda: None,
        )


def os_would(command, directory, environment):
    """What the kernel takes, and nothing else."""
    assert b"\0" not in command + directory
    for name, value in environment.items():
        assert name
        assert "=" not in name
        assert "\0" not in name + value


async def ask(app, method, path, body):
    """Its status and its answer."""
    said = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        said.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"x")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("x", 80),
    }
    await app(scope, receive, send)
    return said[0]["status"], b"".join(each.get("body", b"") for each in said[1:])


_ODD = st.text(max_size=9) | st.sampled_from(
    ["", "..", "%00", "a\0b", "a=b", "default", "/", "é", "\n"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _ODD,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(_ODD, inside, max_size=3),
    max_leaves=6,
)
_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("name", "description", "code", "command", "work_dir"), _ODD | _JSON),
        **dict.fromkeys(("metadata", "env", "image"), st.dictionaries(_ODD, _ODD) | _JSON),
        "timeout": st.floats() | st.integers() | _JSON,
        "action_id": _JSON,
    },
)
_BODIES = st.one_of(
    _FIELDS.map(lambda body: json.dumps(body).encode()),
    _JSON.map(lambda body: json.dumps(body).encode()),
    st.binary(max_size=40),
    st.sampled_from([b"[" * 100_000, b'{"code":"\\ud800"}', b'{"code":"x","timeout":1e999}']),
)
_PATHS = [
    "/v1/spaces",
    "/v1/spaces/{space}",
    "/v1/spaces/{space}/sandboxes",
    "/v1/spaces/{space}/sandboxes/{sandbox}",
    "/v1/sandboxes/{sandbox}",
    "/v1/spaces/{space}/sandboxes/{sandbox}/tools:run_ipython_cell",
    "/v1/spaces/{space}/sandboxes/{sandbox}/tools:run_shell_command",
    "/v1/{space}",
]
_ASKED = st.tuples(
    st.sampled_from(["GET", "POST", "POST", "POST", "PUT", "DELETE", "PATCH"]),
    st.sampled_from(_PATHS),
    st.just("default") | _ODD,
    st.none() | _ODD,
    _BODIES,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_ASKED, min_size=1, max_size=8))
def test_whatever_is_asked_for_is_done_or_refused_with_a_reason(asked):
    async def script():
        app = application(Supervisor(), 0.0)
        _, made = await ask(app, "POST", "/v1/spaces/default/sandboxes", b"{}")
        there = json.loads(made)["sandbox_id"]
        for method, path, space, sandbox, body in asked:
            path = path.format(space=space, sandbox=there if sandbox is None else sandbox)
            status, answer = await ask(app, method, path, body)
            assert status < 500 or status == 503, answer
            if status >= 400:
                assert json.loads(answer)["message"]
            elif status != 204 and answer:
                json.loads(answer)

    asyncio.run(script())
