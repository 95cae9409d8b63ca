"""The runtime on TCP: how it is started and stopped, and v1 as a client of the original finds it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import websocket
from conftest import end, serve

from mentis_pool import RuntimeRejected, SandboxExecutor, connection
from mentis_pool.runtime.serve import most_sandboxes, refusal


class Caller:
    """A client that was written for the original: plain requests, and streams of JSON."""

    def __init__(self, url, token):
        self.url, self.token = url, token

    def ask(self, method, path, body=None, raw=None, headers=None):
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                content = answer.read()
                return answer.status, json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def sandbox(self, space="default"):
        status, made = self.ask("POST", f"/v1/spaces/{space}/sandboxes", {})
        assert status == 201, made
        return made["sandbox_id"]

    @contextlib.contextmanager
    def stream(self, sandbox):
        url = self.url.replace("http", "ws") + f"/v1/sandboxes/{sandbox}/stream"
        header = [f"Authorization: Bearer {self.token}"]
        stream = websocket.create_connection(
            url,
            header=header,
            timeout=20,
            suppress_origin=True,
            skip_utf8_validation=True,  # it is slow, and each text is decoded anyway
        )
        try:
            yield stream
        finally:
            stream.shutdown()

    def run(self, sandbox, code, tool="run_ipython_cell", **more):
        field = "code" if tool == "run_ipython_cell" else "command"
        path = f"/v1/spaces/default/sandboxes/{sandbox}/tools:{tool}"
        status, answer = self.ask("POST", path, {field: code, **more})
        assert status == 202, answer
        return answer["action_id"]


def until_end(stream, action):
    said = []
    while not said or said[-1]["observation_type"] != "end":
        observation = json.loads(stream.recv())
        if observation["action_id"] == action:
            said.append(observation)
    return said


def kinds(said):
    return [each["observation_type"] for each in said]


def output(said, stream="stdout"):
    return "".join(each["line"] for each in said if each.get("stream") == stream)


@pytest.fixture(scope="module")
def caller(served):
    return Caller(*served)


@pytest.fixture
def box(caller):
    sandbox = caller.sandbox()
    with caller.stream(sandbox) as stream:
        yield sandbox, stream
    assert caller.ask("DELETE", f"/v1/spaces/default/sandboxes/{sandbox}")[0] == 204


# ── cells and commands ──────────────────────────────────────────────────────


def test_cells_keep_their_state_and_say_what_the_original_says(caller, box):
    sandbox, stream = box
    said = until_end(stream, caller.run(sandbox, "x = 20\nprint('hi')\nx + 1"))
    assert kinds(said) == ["start", "stream", "stream", "result", "end"]
    assert output(said) == "hi\nOut[1]: 21\n"
    said = until_end(stream, caller.run(sandbox, "%cd -q /\nimport os\n_, x, os.getcwd()"))
    assert output(said) == "Out[2]: (21, 20, '/')\n"
    assert output(until_end(stream, caller.run(sandbox, "os.getcwd()"))) == "Out[3]: '/'\n"


def test_output_is_live(caller, box):
    sandbox, stream = box
    action = caller.run(
        sandbox, "import time\nprint('now', flush=True)\ntime.sleep(60)", timeout=0.5
    )
    assert json.loads(stream.recv())["observation_type"] == "start"
    # It would not be the next one if it waited for the cell's end.
    assert json.loads(stream.recv())["line"] == "now\n"
    until_end(stream, action)


def test_an_exception_has_its_true_name_and_traceback(caller, box):
    sandbox, stream = box
    *_, result, _ = until_end(stream, caller.run(sandbox, "def f():\n    1 / 0\nf()"))
    assert (result["status"], result["error_name"]) == ("error", "ZeroDivisionError")
    assert result["error_value"] == "division by zero"
    assert "    1 / 0" in result["traceback"]


@pytest.mark.parametrize("tool", ["run_ipython_cell", "run_shell_command"])
def test_a_timeout_of_0_is_none_as_the_original_takes_it(caller, box, tool):
    sandbox, stream = box
    *_, result, _ = until_end(stream, caller.run(sandbox, "pwd", tool, timeout=0))
    assert result["exit_code"] == 0


def test_a_timeout_is_obeyed_and_the_sandbox_goes_on(caller, box):
    sandbox, stream = box
    *_, error, result, end = until_end(stream, caller.run(sandbox, "while True: pass", timeout=0.3))
    assert "more than 0.3 s" in error["data"]["error"]
    assert result["error_name"] == "TimeoutError"
    assert end["data"]["exit_code"] == -1
    assert output(until_end(stream, caller.run(sandbox, "1"))).endswith(": 1\n")


def test_a_cell_that_kills_its_process_fails_alone(caller, box):
    sandbox, stream = box
    waiting = [caller.run(sandbox, code) for code in ("import os; os._exit(3)", "5")]
    *_, result, _ = until_end(stream, waiting[0])
    assert (result["error_name"], "code 3" in result["error_value"]) == ("SandboxDied", True)
    assert output(until_end(stream, waiting[1])).endswith(": 5\n")


def test_a_command_runs_beside_a_cell_and_in_the_same_directory(caller, box):
    sandbox, stream = box
    cell = caller.run(
        sandbox, "import time\nopen('f', 'w').write('in f')\nprint(1, flush=True)\ntime.sleep(0.5)"
    )
    while json.loads(stream.recv())["observation_type"] != "stream":
        pass
    command = "cat f; echo; echo $A; pwd | grep -c work; echo oops >&2; exit 3"
    said = until_end(stream, caller.run(sandbox, command, "run_shell_command", env={"A": "a b"}))
    assert kinds(said) == ["start", *["stream"] * 4, "result", "end"]
    lines = [each["line"] for each in said if each.get("stream") == "stdout"]
    assert lines == ["in f", "a b", "1"]
    assert (said[-2]["exit_code"], said[-2]["error"]) == (3, "oops")
    until_end(stream, cell)


def test_a_command_has_a_directory_a_timeout_and_a_death(caller, box):
    sandbox, stream = box

    def run(command, **options):
        return until_end(stream, caller.run(sandbox, command, "run_shell_command", **options))

    assert output(run("pwd", work_dir="/usr")) == "/usr"
    begun = time.monotonic()
    said = run("sleep 30 & sleep 30", timeout=0.3)
    assert time.monotonic() - begun < 5
    assert kinds(said) == ["start", "error", "result", "end"]
    assert "more than 0.3 s" in said[-2]["error"]
    said = run("true", work_dir="/nowhere")
    assert "nowhere" in output(said, "stderr")
    assert said[-2]["exit_code"] == 126
    assert run("kill -9 $$")[-2]["exit_code"] == 137


def test_a_command_and_a_cell_over_a_limit_are_told_so(caller, box):
    sandbox, stream = box
    bomb = f"{sys.executable} -c 'import time; x = bytearray(700 << 20); time.sleep(9)'"
    said = until_end(stream, caller.run(sandbox, bomb, "run_shell_command"))
    assert "Limits(memory=" in said[-2]["error"]
    said = until_end(
        stream, caller.run(sandbox, "import time; x = bytearray(700 << 20); time.sleep(9)")
    )
    assert said[-2]["error_name"] == "ResourceLimitExceeded"
    assert "Limits(memory=" in said[-2]["error_value"]
    assert output(until_end(stream, caller.run(sandbox, "1"))).endswith(": 1\n")


def test_a_command_outlives_the_cell_that_times_out_beside_it(caller, box):
    sandbox, stream = box
    command = caller.run(sandbox, "sleep 1.5; echo done", "run_shell_command")
    cell = caller.run(sandbox, "while True: pass", timeout=0.2)
    until_end(stream, cell)
    assert output(until_end(stream, command)) == "done"


def test_every_stream_hears_all_and_a_sandbox_only_its_own(caller, box):
    sandbox, first = box
    other = caller.sandbox()
    with (
        caller.stream(sandbox) as second,
        caller.stream(other) as foreign,
    ):
        action = caller.run(sandbox, "print('mine')")
        assert until_end(first, action) == until_end(second, action)
        alone = caller.run(other, "print('other')")
        assert {json.loads(foreign.recv())["action_id"] for _ in range(4)} == {alone}
    caller.ask("DELETE", f"/v1/sandboxes/{other}")


def test_a_reader_that_is_slow_loses_nothing(caller, box):
    sandbox, stream = box
    action = caller.run(sandbox, "for i in range(400): print('x' * 99_999)")
    time.sleep(1)
    said = until_end(stream, action)
    assert len(output(said)) == 40_000_000


def test_deleting_a_sandbox_ends_its_cells_and_its_streams_say_so(caller):
    sandbox = caller.sandbox()
    with caller.stream(sandbox) as stream:
        actions = [caller.run(sandbox, "import time; time.sleep(60)"), caller.run(sandbox, "1")]
        assert caller.ask("DELETE", f"/v1/spaces/default/sandboxes/{sandbox}")[0] == 204
        for action in actions:
            *_, result, ended = until_end(stream, action)
            assert result["error_name"] == "SandboxDied"
            assert "deleted" in ended["data"]["error"]
        code, reason = stream.recv_data()
        assert (code, reason[:2]) == (websocket.ABNF.OPCODE_CLOSE, (1001).to_bytes(2, "big"))
    assert caller.ask("GET", f"/v1/spaces/default/sandboxes/{sandbox}")[0] == 404
    with pytest.raises(websocket.WebSocketBadStatusException, match="404"):
        with caller.stream(sandbox):
            pass


# ── spaces ──────────────────────────────────────────────────────────────────


def test_spaces_as_the_original_has_them(caller):
    assert caller.ask("GET", "/v1/health")[1]["status"] == "ok"
    status, made = caller.ask("POST", "/v1/spaces", {"name": "n", "metadata": {"a": 1}})
    assert status == 201
    space = made.pop("space_id")
    assert made == {"name": "n", "description": "", "metadata": {"a": 1}}
    status, again = caller.ask("POST", "/v1/spaces", {"name": "n"})
    assert (status, "already" in again["message"]) == (409, True)
    assert caller.ask("PUT", f"/v1/spaces/{space}", {"description": "d"}) == (204, None)
    sandbox = caller.sandbox(space)
    _, shown = caller.ask("GET", f"/v1/spaces/{space}")
    assert (shown["ID"], shown["Name"], shown["Description"]) == (space, "n", "d")
    assert (shown["space_id"], shown["name"], shown["description"]) == (space, "n", "d")
    assert set(shown) >= {"CreatedAt", "UpdatedAt", "Metadata", "Sandboxes"}
    assert (
        shown["Sandboxes"][sandbox]
        == caller.ask("GET", f"/v1/spaces/{space}/sandboxes/{sandbox}")[1]
    )
    assert set(shown["Sandboxes"][sandbox]) == {
        "sandbox_id", "container_id", "agent_url", "is_running", "space_id",
    }  # fmt: skip
    assert [each["ID"] for each in caller.ask("GET", "/v1/spaces")[1]][:1] == ["default"]
    assert caller.ask("GET", f"/v1/spaces/default/sandboxes/{sandbox}")[0] == 404
    assert caller.ask("DELETE", f"/v1/spaces/{space}") == (204, None)
    assert caller.ask("GET", f"/v1/spaces/{space}")[0] == 404
    assert caller.ask("DELETE", f"/v1/sandboxes/{sandbox}")[0] == 404


# ── bad input ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "path", "raw", "status", "named"),
    [
        ("POST", "/v1/spaces", b"nope", 400, "JSON"),
        ("POST", "/v1/spaces", b"[]", 400, "object"),
        ("POST", "/v1/spaces", b"\xff", 400, "JSON"),
        ("POST", "/v1/spaces", b"{}", 400, "$.name"),
        ("POST", "/v1/spaces", b'{"name":"n', 400, "truncated"),
        ("POST", "/v1/spaces", b'{"name":"\\ud800"}', 400, "surrogate"),
        ("POST", "/v1/spaces", b'{"name":"\\udc00 is a low one"}', 400, "surrogate"),
        ("POST", "/v1/spaces", b'{"name":5}', 400, "$.name"),
        ("POST", "/v1/spaces", b'{"name":""}', 400, "$.name"),
        ("POST", "/v1/spaces", b'{"name":"q","metadata":[]}', 400, "$.metadata"),
        ("POST", "/v1/spaces/default/sandboxes", b"[]", 400, "object"),
        ("POST", "/v1/spaces/nowhere/sandboxes", b"{}", 404, "nowhere"),
        ("POST", "BOX/tools:run_ipython_cell", b"{}", 400, "$.code"),
        ("POST", "BOX/tools:run_ipython_cell", b'{"code":1}', 400, "$.code"),
        ("POST", "BOX/tools:run_ipython_cell", b'{"code":"1","timeout":-1}', 400, "$.timeout"),
        ("POST", "BOX/tools:run_ipython_cell", b'{"code":"1","timeout":"x"}', 400, "$.timeout"),
        ("POST", "BOX/tools:run_shell_command", b"{}", 400, "$.command"),
        ("POST", "BOX/tools:run_shell_command", b'{"command":"a","timeout":-1}', 400, "$.timeout"),
        ("POST", "BOX/tools:run_shell_command", b'{"command":"a\\u0000"}', 400, "$.command"),
        ("POST", "BOX/tools:run_shell_command", b'{"command":"a","env":{"a=":"b"}}', 400, "$.env"),
        ("POST", "BOX/tools:run_shell_command", b'{"command":"a","work_dir":5}', 400, "$.work_dir"),
        ("PUT", "/v1/spaces/default", b'{"description":5}', 400, "$.description"),
        ("DELETE", "/v1/spaces/default", b"", 409, "default"),
        ("GET", "/v1/nowhere", None, 404, "GET /v1/nowhere"),
        ("POST", "/", b"{}", 404, "POST /"),
        ("PATCH", "/v1/spaces", b"{}", 405, "PATCH /v1/spaces"),
        ("GET", "BOX/tools:run_ipython_cell", None, 405, "GET /v1/spaces/default"),
    ],
)
def test_a_bad_request_is_refused_with_the_field_named(
    caller, box, method, path, raw, status, named
):
    path = path.replace("BOX", f"/v1/spaces/default/sandboxes/{box[0]}")
    got, answer = caller.ask(method, path, raw=raw)
    assert got == status
    assert named in answer["message"]


def test_a_body_that_is_too_large_is_refused(caller, box):
    path = f"/v1/spaces/default/sandboxes/{box[0]}/tools:run_ipython_cell"
    raw = b'{"code":"' + b"#" * (200 * 1024 * 1024) + b'"}'
    status, answer = caller.ask("POST", path, raw=raw)
    assert (status, "limit" in answer["message"]) == (413, True)
    assert caller.ask("GET", "/v1/health")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Origin": "http://evil.com"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Host": "evil.com@127.0.0.1"}, 403),
        ({"Host": "evil.com"}, 403),
    ],
)
def test_the_gate_is_before_everything(caller, headers, status):
    got, answer = caller.ask("GET", "/v1/spaces", headers=headers)
    assert got == status
    assert answer["message"]
    url = caller.url.replace("http", "ws") + "/v1/pool"
    header = [
        f"{k}: {v}" for k, v in {"Authorization": f"Bearer {caller.token}", **headers}.items()
    ]
    options = {"host": headers["Host"]} if "Host" in headers else {}
    if "Host" in headers:
        header = [line for line in header if not line.startswith("Host")]
    with pytest.raises(websocket.WebSocketBadStatusException, match=str(status)):
        websocket.create_connection(
            url, header=header, suppress_origin="Origin" in headers or True, timeout=10, **options
        )


def test_the_token_may_be_in_the_path_for_clients_that_know_none(served):
    url, token = served
    caller = Caller(f"{url}/t/{token}", "")
    sandbox = caller.sandbox()
    with caller.stream(sandbox) as stream:
        assert output(until_end(stream, caller.run(sandbox, "6 * 7"))) == "Out[1]: 42\n"
    assert caller.ask("DELETE", f"/v1/sandboxes/{sandbox}")[0] == 204


# ── the program ─────────────────────────────────────────────────────────────


def test_it_admits_as_many_sandboxes_as_it_was_told(own_temp):
    process, url, _ = serve("--no-token", "--max-sandboxes", "2")
    try:
        caller = Caller(url, "")
        boxes = [caller.sandbox() for _ in range(2)]
        status, answer = caller.ask("POST", "/v1/spaces/default/sandboxes", {})
        assert (status, "takes no more" in answer["message"]) == (503, True)
        with SandboxExecutor(max_workers=2, runtime=url) as executor:
            with pytest.raises(RuntimeRejected, match="takes no more"):
                executor.submit("1").result(20)
            caller.ask("DELETE", f"/v1/sandboxes/{boxes[0]}")
            # One is there: it does the work of both.
            assert [result.value for result in executor.map(["1", "2", "3"])] == [1, 2, 3]
    finally:
        end(process)


def test_a_space_that_is_deleted_while_a_sandbox_is_asked_for_leaves_none(own_temp):
    process, url, _ = serve("--no-token", "--max-sandboxes", "1")
    try:
        caller = Caller(url, "")
        for name in "ab":
            space = caller.ask("POST", "/v1/spaces", {"name": name})[1]["space_id"]
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as asking:
                head = f"POST /v1/spaces/{space}/sandboxes HTTP/1.1\r\nHost: localhost\r\n"
                asking.sendall(f"{head}Connection: close\r\nContent-Length: 2\r\n\r\n{{".encode())
                # The look-up is over, and its body is awaited.
                time.sleep(0.3)
                assert caller.ask("DELETE", f"/v1/spaces/{space}")[0] == 204
                asking.sendall(b"}")
                assert b" 404 " in asking.recv(4096)
        caller.sandbox()
    finally:
        end(process)


def test_a_reader_that_stops_reading_is_told_so_by_a_close_code(own_temp):
    program = (
        "import sys\nfrom mentis_pool.runtime import v1\nv1.STALL = 1.0\n"
        "from mentis_pool.cli import main\nsys.exit(main())"
    )
    process, url, token = serve(program=("-c", program))
    try:
        caller = Caller(url, token)
        sandbox = caller.sandbox()
        with caller.stream(sandbox) as stopped, caller.stream(sandbox) as reading:
            action = caller.run(sandbox, "for i in range(400): print('x' * 99_999)")
            # It waits for the one, but not for ever.
            assert len(output(until_end(reading, action))) == 40_000_000
            code = websocket.ABNF.OPCODE_TEXT
            while code == websocket.ABNF.OPCODE_TEXT:
                code, frame = stopped.recv_data()
            assert (code, int.from_bytes(frame[:2], "big")) == (websocket.ABNF.OPCODE_CLOSE, 1008)
            assert b"nothing was read for 1 s" in frame
    finally:
        end(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(own_temp, processes, monkeypatch, number):
    monkeypatch.setattr(connection, "REFUSED_WITHIN", 0.3)
    process, url, token = serve()
    executor = SandboxExecutor(max_workers=1, runtime=url, token=token)
    future = executor.submit("import time; time.sleep(60)")
    while not future.running() or future.sandbox_id is None:
        time.sleep(0.01)
    assert processes(own_temp)
    process.send_signal(number)
    assert process.wait(20) == 0
    process.stdout.close()
    assert processes(own_temp) == []
    assert os.listdir(own_temp) == []
    assert future.exception(20) is not None
    executor.shutdown()


def test_kill_9_leaves_no_process_and_its_files_to_the_next(own_temp, processes, eventually):
    process, *_ = serve()
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: processes(own_temp) == [])
    [left] = os.listdir(own_temp)
    past = time.time() - 3600
    os.utime(os.path.join(own_temp, left), (past, past))
    process, *_ = serve()
    end(process)


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mentis_pool", "serve", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, **environment},
    )


def test_an_address_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("--port", str(port))
    assert done.returncode == 2
    assert f"127.0.0.1 port {port} cannot be served" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "0.0.0.0", "--no-token"], "--no-token is for loopback only"),
        (["--host", "0.0.0.0", "--no-token", "--insecure"], "--no-token is for loopback only"),
        (["--host", ""], "--host needs an address"),
        (["--host", "", "--no-token"], "--host needs an address"),
        (["--port", "70000"], "65535"),
        (["--max-sandboxes", "0"], "at least 1"),
        (["what"], "what"),
    ],
)
def test_what_would_be_unsafe_or_is_wrong_is_refused(arguments, named):
    done = command(*arguments)
    assert done.returncode == 2
    assert named in done.stderr


def test_a_module_that_cannot_be_preloaded_ends_it():
    done = command("--port", "0", "--preload", "no_such_module")
    assert done.returncode == 1
    assert "no_such_module" in done.stderr


def test_a_token_of_ones_own_is_taken_from_the_environment(own_temp):
    process, url, token = serve(MENTIS_RUNTIME_TOKEN="my token")
    try:
        assert token == "token"  # the last word of the line
        assert Caller(url, "my token").ask("GET", "/v1/spaces")[0] == 200
    finally:
        end(process)


def test_only_loopback_may_be_without_token_and_without_walls():
    assert refusal("127.0.0.1", None, False) is None
    assert refusal("::1", "t", False) is None
    assert refusal("10.0.0.1", "t", True) is None
    assert refusal("10.0.0.1", "t", False) is not None
    assert refusal("10.0.0.1", "t", False, "landlock") is not None
    assert refusal("10.0.0.1", "t", False, "bubblewrap") is None
    assert refusal("10.0.0.1", None, True) is not None


@pytest.mark.parametrize(
    ("gigabytes", "cpus", "most"), [(8, 2, 64), (1, 8, 8), (0.01, 1, 1), (1000, 4, 128)]
)
def test_it_has_room_for_what_memory_and_cpus_are_enough_for(gigabytes, cpus, most):
    assert most_sandboxes(int(gigabytes * 2**30), cpus) == most
