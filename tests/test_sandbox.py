"""The Mentis client's own interface, at a runtime of ours and at an original one."""

from __future__ import annotations

import queue
import threading
import time

import pytest
from fakes import OriginalRuntime, Script

import mentis_pool
from mentis_pool import (
    ConcurrentTask,
    MentisSandbox,
    RuntimeRejected,
    RuntimeUnavailable,
    SpaceManager,
)


@pytest.fixture(scope="module", params=["served", "original"])
def runtime(request):
    if request.param == "served":
        yield request.getfixturevalue("served")
    else:
        with OriginalRuntime(Script(early=0.05, joined=True)) as original:
            yield original.url, None
            assert not original.sandboxes


@pytest.fixture
def session(runtime):
    url, token = runtime
    with mentis_pool.sandbox_session(url, token=token) as session:
        yield session


# ── the guide's example, as it stands, but in a tenth of its time ───────────


def guide(sandbox_session):
    def run_concurrent_tasks():
        sandbox, obs_queue = sandbox_session
        tasks = [ConcurrentTask(sandbox, i) for i in range(3)]
        for i, task in enumerate(tasks):
            task.execute(f"import time\nprint('Task {i}')\ntime.sleep(0.1)")
        time.sleep(0.3)
        results = {}
        for i, task in enumerate(tasks):
            stdout = ""
            for obs in task.collect_results(obs_queue):
                if obs.observation_type == "stream" and obs.stream == "stdout":
                    stdout += obs.line
            results[i] = stdout
        return results

    return run_concurrent_tasks()


THREE = {0: "Task 0\n", 1: "Task 1\n", 2: "Task 2\n"}


def test_the_guides_example_with_the_fixture_that_the_package_ships(sandbox_session):
    assert guide(sandbox_session) == THREE


def test_the_guides_example_with_the_context_manager(own_temp, processes):
    with mentis_pool.sandbox_session() as sandbox_session:
        assert guide(sandbox_session) == THREE
        assert processes(own_temp)
    assert processes(own_temp) == []


def test_the_guides_example_at_a_runtime(session):
    assert guide(session) == THREE


def test_300_tasks_on_one_stream_collected_backwards_from_four_threads(session):
    sandbox, observations = session
    tasks = [ConcurrentTask(sandbox, i) for i in range(300)]
    for i, task in enumerate(tasks):
        task.execute(f"print('output of', {i})")
    got = {}

    def collect(some):
        for task in some:
            collected = task.collect_results(observations)
            assert collected.complete
            got[task.task_id] = "".join(
                seen.line for seen in collected if seen.observation_type == "stream"
            )

    threads = [threading.Thread(target=collect, args=(tasks[::-1][n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {i: f"output of {i}\n" for i in range(300)}


# ── tasks ───────────────────────────────────────────────────────────────────


def test_an_error_ends_a_collection(session):
    sandbox, observations = session
    task = ConcurrentTask(sandbox, "t")
    task.execute("1 / 0")
    collected = task.collect_results(observations)
    assert collected.complete
    assert collected[-1].observation_type == "result"
    assert collected[-1].status == "error"
    assert collected[-1].error_value == "division by zero"


def test_a_timeout_is_incomplete_and_the_next_call_goes_on(session, caplog):
    sandbox, observations = session
    task = ConcurrentTask(sandbox, "t")
    task.execute("import time; time.sleep(0.6); print('late')")
    first = task.collect_results(observations, timeout=0.1)
    assert not first.complete
    assert "collection_incomplete" in caplog.text
    second = task.collect_results(observations)
    assert second.complete
    assert second[: len(first)] == first
    assert task.collect_results(observations, timeout=0) == second


def test_collecting_before_running_is_refused(session):
    with pytest.raises(RuntimeError, match="execute"):
        ConcurrentTask(session[0], 1).collect_results(queue.Queue())


# ── a sandbox ───────────────────────────────────────────────────────────────


def until_result(observations, action):
    said = []
    while not said or said[-1].observation_type != "result":
        seen = observations.get(timeout=20)
        if seen.action_id == action:
            said.append(seen)
    return said


def test_a_sandbox_keeps_its_state_and_runs_commands(runtime):
    url, token = runtime
    observations = queue.Queue()
    with MentisSandbox.create(
        base_url=url, token=token, observation_queue=observations, space_id="default"
    ) as sandbox:
        assert sandbox.is_connected()
        until_result(observations, sandbox.run_ipython_cell("x = 5"))
        said = until_result(observations, sandbox.run_ipython_cell("x * 2"))
        assert "Out[2]: 10" in "".join(getattr(each, "line", "") for each in said)
        said = until_result(observations, sandbox.run_shell_command("echo a; echo b"))
        assert [each.line for each in said if each.observation_type == "stream"] == ["a", "b"]
        sandbox.connect_stream()
        sandbox.disconnect_stream()
        assert not sandbox.is_connected()
        sandbox.disconnect_stream()
        sandbox.connect_stream(timeout=10)
        assert sandbox.is_connected()
        until_result(observations, sandbox.run_ipython_cell("1"))
    assert not sandbox.is_connected()
    with pytest.raises(RuntimeRejected, match="404"):
        sandbox.run_ipython_cell("1")


def test_a_sandbox_may_be_left_and_found_again(runtime):
    url, token = runtime
    first = MentisSandbox.create(base_url=url, token=token)
    first.close()
    observations = queue.Queue()
    second = MentisSandbox(
        first.sandbox_id, base_url=url, token=token, observation_queue=observations
    )
    second.connect_stream()
    until_result(observations, second.run_ipython_cell("1"))
    second.delete()
    second.delete()


def test_a_callback_may_take_the_place_of_the_queue_and_raise(runtime, caplog):
    url, token = runtime
    seen, done = [], threading.Event()

    def callback(observation):
        seen.append(observation.observation_type)
        if observation.observation_type == "result":
            done.set()
        raise ValueError("of the callback")

    with MentisSandbox.create(base_url=url, token=token, on_observation_callback=callback) as box:
        box.run_ipython_cell("print(1)")
        assert done.wait(20)
    assert seen[:3] == ["start", "stream", "result"]
    assert "of the callback" in caplog.text


def test_a_queue_that_is_full_does_not_keep_a_sandbox_from_its_end(runtime):
    url, token = runtime
    full = queue.Queue(maxsize=1)
    with MentisSandbox.create(base_url=url, token=token, observation_queue=full) as sandbox:
        sandbox.run_ipython_cell("print(1)")
        time.sleep(0.3)
    assert full.full()


def test_a_stream_that_is_cut_is_connected_again(eventually):
    with OriginalRuntime() as runtime:
        observations = queue.Queue()
        with MentisSandbox.create(base_url=runtime.url, observation_queue=observations) as sandbox:
            until_result(observations, sandbox.run_ipython_cell("1"))
            runtime.cut(sandbox.sandbox_id)
            eventually(lambda: len(runtime.connections.get(sandbox.sandbox_id, [])) == 1)
            eventually(sandbox.is_connected)
            until_result(observations, sandbox.run_ipython_cell("1"))
            assert runtime.sandboxes
        assert not runtime.sandboxes


@pytest.mark.parametrize("end", [MentisSandbox.delete, MentisSandbox.close])
def test_a_sandbox_whose_stream_gave_up_by_itself_can_be_ended(eventually, end):
    with OriginalRuntime() as runtime:
        sandbox = MentisSandbox.create(base_url=runtime.url)
        # Its stream is closed for good, with the sandbox still there.
        runtime.script.answer = lambda _, path, n: 404 if path.endswith("/stream") else None
        runtime.cut(sandbox.sandbox_id)
        eventually(lambda: not listeners())
        assert not sandbox.is_connected()
        sandbox.disconnect_stream()
        end(sandbox)
        assert list(runtime.sandboxes) == (
            [] if end is MentisSandbox.delete else [sandbox.sandbox_id]
        )


def test_a_stream_that_gave_up_may_be_ended_while_it_does(eventually):
    with OriginalRuntime() as runtime:
        sandbox = MentisSandbox.create(base_url=runtime.url)
        sandbox._client.delete_sandbox("default", sandbox.sandbox_id)
        eventually(lambda: not listeners())
        sandbox.delete()


def listeners():
    return [each for each in threading.enumerate() if "mentis-pool-stream" in each.name]


def test_connecting_from_several_threads_makes_one_stream():
    with OriginalRuntime() as runtime:
        with MentisSandbox.create(base_url=runtime.url) as sandbox:
            sandbox.disconnect_stream()
            threads = [threading.Thread(target=sandbox.connect_stream) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert len(listeners()) == 1
            paths = [path for _, path, _ in runtime.requests if path.endswith("/stream")]
            assert len(paths) == 2, "that of create() and one more"
        assert listeners() == []


def test_a_callback_may_disconnect_while_another_thread_does(eventually):
    with OriginalRuntime() as runtime:
        told = threading.Event()

        def callback(_):
            told.set()
            sandbox.disconnect_stream()

        sandbox = MentisSandbox.create(base_url=runtime.url, on_observation_callback=callback)
        sandbox.run_ipython_cell("1")
        assert told.wait(10)
        sandbox.disconnect_stream()
        eventually(lambda: not listeners())
        sandbox.delete()


def test_what_is_no_observation_is_logged_counted_and_skipped(caplog):
    with OriginalRuntime(Script(noise=True)) as runtime:
        observations = queue.Queue()
        with MentisSandbox.create(base_url=runtime.url, observation_queue=observations) as sandbox:
            until_result(observations, sandbox.run_ipython_cell("1"))
            until_result(observations, sandbox.run_ipython_cell("print(2)"))
    skipped = [
        each.fields["skipped"] for each in caplog.records if each.event == "observation_skipped"
    ]
    assert len(skipped) > 8
    assert skipped == list(range(1, len(skipped) + 1))


def test_making_a_sandbox_is_not_repeated_where_one_may_be_left_behind():
    tries = []

    def answer(method, path, _):
        if (method, path) == ("POST", "/v1/spaces/default/sandboxes"):
            tries.append(path)
            return (503, 429, "late reset", None)[len(tries) - 1]
        return None

    with OriginalRuntime(Script(answer=answer)) as runtime:
        with pytest.raises(RuntimeRejected, match="503"):
            MentisSandbox.create(base_url=runtime.url)
        with pytest.raises(RuntimeUnavailable, match="gave no answer"):
            MentisSandbox.create(base_url=runtime.url)
        assert len(tries) == 3
        assert len(runtime.sandboxes) == 1


@pytest.mark.parametrize("run", [MentisSandbox.run_ipython_cell, MentisSandbox.run_shell_command])
def test_a_timeout_of_0_is_none(runtime, run):
    url, token = runtime
    observations = queue.Queue()
    with MentisSandbox.create(base_url=url, token=token, observation_queue=observations) as sandbox:
        *_, result = until_result(observations, run(sandbox, "pwd", timeout=0))
    assert result.exit_code == 0


def test_an_empty_name_is_refused():
    for sandbox, space in (("", "default"), ("x", "")):
        with pytest.raises(ValueError, match="must not be empty"):
            MentisSandbox(sandbox, space)


def test_where_nothing_answers_it_says_so(monkeypatch):
    monkeypatch.setenv("MENTIS_RUNTIME_URL", "http://127.0.0.1:1")
    with pytest.raises(RuntimeUnavailable, match=r"nothing answers at http://127\.0\.0\.1:1"):
        MentisSandbox.create()


def test_a_sandbox_whose_stream_cannot_be_had_is_not_left_behind():
    refuse = Script(answer=lambda _, path, n: 500 if path.endswith("/stream") else None)
    with OriginalRuntime(refuse) as runtime:
        with pytest.raises(RuntimeRejected, match="scripted"):
            MentisSandbox.create(base_url=runtime.url)
        assert not runtime.sandboxes


# ── spaces ──────────────────────────────────────────────────────────────────


def test_spaces_are_made_listed_changed_and_deleted(runtime):
    manager = SpaceManager(*runtime)
    space = manager.create_space("lab", "a place", {"a": 1})
    assert (space.name, space.description, space.metadata) == ("lab", "a place", {"a": 1})
    assert manager.get_space(space.space_id).name == "lab"
    assert {each.name for each in manager.list_spaces()} >= {"default", "lab"}
    assert manager.update_space(space.space_id, description="new").description == "new"
    with pytest.raises(RuntimeRejected, match="409"):
        manager.create_space("lab")
    with MentisSandbox.create(space.space_id, base_url=runtime[0], token=runtime[1]) as sandbox:
        assert sandbox.space_id == space.space_id
        assert list(manager.get_space(space.space_id).sandboxes) == [sandbox.sandbox_id]
    manager.delete_space(space.space_id)
    manager.delete_space(space.space_id)
    with pytest.raises(RuntimeRejected, match="404"):
        manager.get_space(space.space_id)
    manager.close()
