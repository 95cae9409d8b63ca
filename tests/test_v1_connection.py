"""An executor at an original runtime, with each of its traps, on real sockets."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time
from collections import Counter

import pytest
from fakes import OriginalRuntime

from mentis_pool import (
    BrokenSandboxPool,
    CellTimeout,
    Limits,
    OutcomeUnknown,
    QueueFull,
    RuntimeRejected,
    RuntimeUnavailable,
    SandboxDied,
    SandboxExecutor,
    StateLost,
    slot,
)


@pytest.fixture
def original():
    with OriginalRuntime() as runtime:
        yield runtime
        assert not runtime.sandboxes, "nothing is left there"
        assert list(runtime.spaces) == ["default"]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(slot, "FIRST_PROBE", 0.3)
    monkeypatch.setattr(slot, "SETTLE", 0.2)


def executor_at(runtime, max_workers=1, **options):
    return SandboxExecutor(max_workers, runtime=runtime.url, **options)


def started(future, eventually):
    eventually(lambda: future.action_id is not None)


# ── what is asked of it ─────────────────────────────────────────────────────


@pytest.mark.parametrize(("state", "sandboxes"), [("fresh", 7), ("reuse", 2)])
def test_fresh_takes_a_sandbox_for_each_cell_and_reuse_keeps_them(original, state, sandboxes):
    with executor_at(original, 2, state=state) as executor:
        results = list(executor.map([f"'{i}'" for i in range(6)]))
    assert [result.text for result in results] == [f"'{i}'" for i in range(6)]
    made = [path for method, path, _ in original.requests if method == "POST"]
    # Of fresh ones, those made ahead are more than were used.
    assert sum(path.endswith("/sandboxes") for path in made) in (sandboxes, sandboxes + 1, 2)
    used = {result.sandbox_id for result in results}
    assert len(used) == (6 if state == "fresh" else len(used))
    assert len(used) <= 6


def test_a_reused_sandbox_shows_what_an_earlier_cell_left(original):
    with executor_at(original, state="reuse") as executor:
        executor.submit("left = 5").result()
        assert executor.submit("left").result().text == "5"
    with executor_at(original, state="fresh") as executor:
        executor.submit("left = 5").result()
        assert isinstance(executor.submit("left").exception(), NameError)


def test_requests_are_as_the_original_wants_them(original):
    with executor_at(original, 2, timeout=30) as executor:
        list(executor.map(["1", "2"]))
    paths = [(method, path) for method, path, _ in original.requests]
    assert not [
        path for _, path in paths if path.startswith("/v1/sandboxes") and "stream" not in path
    ]
    for body in original.posts():
        assert set(body) == {"code"}, "an action_id would overwrite the runtime's own"
    [space] = {
        path.split("/")[3] for method, path in paths if "/sandboxes" in path and "spaces" in path
    }
    assert ("DELETE", f"/v1/spaces/{space}") in paths
    for sandbox in {path.split("/")[5] for _, path in paths if "/tools:" in path}:
        kinds = [path.rsplit("/", 1)[1] for _, path in paths if sandbox in path]
        assert kinds[:2] == ["stream", "tools:run_ipython_cell"], "the stream comes first"


def test_one_cell_is_in_flight_per_sandbox(original):
    spans = "import time; b = time.time(); time.sleep(0.1); print(b, time.time())"
    with executor_at(original, 2, state="reuse") as executor:
        results = list(executor.map([spans] * 8))
    by_sandbox = {}
    for result in results:
        by_sandbox.setdefault(result.sandbox_id, []).append(
            tuple(map(float, result.stdout.split()))
        )
    assert 1 <= len(by_sandbox) <= 2
    for times in by_sandbox.values():
        times.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(times))


def test_all_streams_are_read_by_one_thread(original):
    # Executors of other tests have threads of their own.
    others = set(threading.enumerate())
    with executor_at(original, 8, state="reuse") as executor:
        list(executor.map(["import time; time.sleep(0.2)"] * 8))
        names = Counter(thread.name for thread in set(threading.enumerate()) - others)
        assert names["mentis-pool-dispatcher"] == 1
        assert not [name for name in names if "stream" in name]
    new = set(threading.enumerate()) - others
    assert not [thread for thread in new if thread.name.startswith("mentis-pool-")]


# ── the traps ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", ["fresh", "reuse"])
def test_ten_seconds_are_no_end_and_the_real_result_comes_later(original, state):
    original.script.limit = 0.2
    with executor_at(original, state=state) as executor:
        result = executor.submit("import time\ntime.sleep(0.7)\nprint('there')\n5").result(20)
        assert (result.stdout, result.text) == ("there\n", "5")
        assert result.usage.running > 0.7
        assert executor.submit("6").result(20).text == "6"


LOSSES = {
    "start": ("start", None),
    "end": ("end", None),
    "result": ("result", None),
    "stdout": ("stream", "stdout"),
    "stderr": ("stream", "stderr"),
}


@pytest.mark.parametrize("lost", LOSSES)
def test_what_is_lost_on_the_way_never_makes_a_wrong_outcome(original, impatient, lost):
    kind, stream = LOSSES[lost]
    dropped = []

    def drop(said):
        if not dropped and said["observation_type"] == kind and said.get("stream") == stream:
            dropped.append(said)
            return True
        return False

    original.script.drop = drop
    with executor_at(original, state="reuse") as executor:
        future = executor.submit("print('out')\n5")
        if lost in ("start", "end"):
            assert (future.result(10).stdout, future.result().text) == ("out\n", "5")
        else:
            assert isinstance(future.exception(10), OutcomeUnknown)
        assert dropped
        assert executor.submit("print('next')").result(10).stdout == "next\n"


def test_a_cell_of_which_nothing_is_heard_any_more_is_asked_after(original, impatient):
    said_of = set()

    def drop(said):
        # All of the first cell, but its start.
        said_of.add(said["action_id"])
        return len(said_of) == 1 and said["observation_type"] != "start"

    original.script.drop = drop
    with executor_at(original) as executor:
        future = executor.submit("1")
        assert isinstance(future.exception(10), OutcomeUnknown)
    assert [body["code"] for body in original.posts()][1] == "pass"


def test_a_cut_stream_is_an_unknown_outcome_and_no_second_run(original, eventually):
    with executor_at(original) as executor:
        future = executor.submit("import time; time.sleep(1); print('once')")
        started(future, eventually)
        original.cut(future.sandbox_id)
        error = future.exception(10)
        assert isinstance(error, OutcomeUnknown)
        assert "cut" in str(error)
        assert executor.submit("2").result(10).text == "2"
    assert sum("once" in body["code"] for body in original.posts()) == 1


def test_a_cell_runs_again_where_its_own_options_say_so(original, eventually):
    with executor_at(original) as executor:
        future = executor.options(retries=1, idempotent=True).submit(
            "import time; time.sleep(0.5); 'again'"
        )
        started(future, eventually)
        original.cut(future.sandbox_id)
        result = future.result(10)
        assert (result.text, result.attempt) == ("'again'", 2)
        seen = [type(each).__name__ for each in future.observations()]
        assert seen.count("Start") == 2
        assert seen[-2:] == ["Result", "End"]
        assert "Error" not in seen
        # Not more often than that.
        future = executor.options(retries=1, idempotent=True).submit("import os; os._exit(1)")
        assert isinstance(future.exception(10), SandboxDied)
        assert future.exception().result.attempt == 2


def test_a_post_without_an_answer_is_not_sent_again(original):
    original.script.answer = lambda _, path, n: (
        "late reset" if path.endswith("run_ipython_cell") and n < 6 else None
    )
    with executor_at(original) as executor:
        error = executor.submit("'once'").exception(10)
        # On a busy machine its result may be heard before the missing answer is.
        assert error is None or isinstance(error, OutcomeUnknown)
        original.script.answer = None
        assert executor.submit("'next'").result(10).text == "'next'"
    assert sum("'once'" in body["code"] for body in original.posts()) == 1


@contextlib.contextmanager
def gone(original):
    """The runtime knows nothing of its only sandbox any more, and says nothing of its end."""
    [sandbox] = original.sandboxes.values()
    sandbox.streams.clear()
    del original.sandboxes[sandbox.id]
    yield
    sandbox.delete()
    for connection in original.connections.pop(sandbox.id):
        connection.close()


def test_a_sandbox_that_is_gone_before_the_cell_began_costs_nothing(original):
    with executor_at(original, state="reuse") as executor:
        executor.submit("1").result()
        with gone(original):
            assert executor.submit("2").result(10).text == "2"


def test_what_may_be_repeated_is_repeated(original, caplog):
    tries = Counter()

    def answer(method, path, _):
        kind = (method, path.rsplit("/", 1)[1] if "stream" in path else path.split("/")[-1][:9])
        tries[kind] += 1
        if path.endswith("run_ipython_cell"):
            return None
        return (503, "reset", None)[(tries[kind] - 1) % 3]

    original.script.answer = answer
    with executor_at(original, state="reuse") as executor:
        assert executor.submit("1").result(20).text == "1"
    assert tries[("GET", "health")] == tries[("POST", "spaces")] == 3
    assert tries[("POST", "sandboxes")] == tries[("GET", "stream")] == 3
    original.script.answer = None
    assert "retried" in caplog.text


def test_a_timeout_deletes_the_sandbox_and_takes_a_new_one(original):
    with executor_at(original, state="reuse") as executor:
        first = executor.submit("1").result().sandbox_id
        with pytest.raises(CellTimeout):
            executor.options(timeout=0.3).submit("while True: pass").result(10)
        assert executor.submit("1").result(10).sandbox_id != first
        assert first not in original.sandboxes


def test_a_runtime_that_dies_leaves_no_future_without_an_outcome():
    with OriginalRuntime() as original:
        executor = SandboxExecutor(2, runtime=original.url, retries=1)
        futures = [executor.submit("import time; time.sleep(30)") for _ in range(2)]
        waiting = [executor.submit("1") for _ in range(3)]
        while any(future.action_id is None for future in futures):
            time.sleep(0.01)
        original._server.shutdown()
        original._server.server_close()
        for sandbox_id in list(original.connections):
            original.cut(sandbox_id)
        for future in futures:
            assert isinstance(future.exception(20), OutcomeUnknown)
        for future in waiting:
            assert isinstance(future.exception(20), (RuntimeUnavailable, OutcomeUnknown))
        executor.shutdown()


def test_a_forgotten_executor_leaves_nothing_at_the_runtime(original, eventually):
    future = executor_at(original).submit("1")
    assert future.result(10).text == "1"
    gc.collect()
    eventually(lambda: list(original.spaces) == ["default"])


def test_shutdown_does_not_wait_for_a_sandbox_that_is_slow_to_come(original):
    original.script.create_delay = 0.5
    begun = time.monotonic()
    with executor_at(original) as executor:
        future = executor.submit("1")
        time.sleep(0.1)
        executor.shutdown(cancel_futures=True)
    assert time.monotonic() - begun < 5
    assert future.cancelled() or future.exception() is None


def failing(*which):
    """An answer that fails the creation of these sandboxes, counted from 1."""
    made = itertools.count(1)
    lock = threading.Lock()

    def answer(method, path, _):
        if method == "POST" and path.endswith("/sandboxes"):
            with lock:
                return 500 if next(made) in which else None
        return None

    return answer


def test_one_sandbox_that_could_not_be_made_does_not_make_fewer_for_good(original):
    original.script.answer = failing(2)
    spans = "import time; b = time.time(); time.sleep(0.2); print(b, time.time())"
    with executor_at(original, 2, state="reuse", retries=0) as executor:
        list(executor.map(["1"] * 4))
        results = list(executor.map([spans] * 4))
    assert len({result.sandbox_id for result in results}) == 2


def test_what_is_sent_while_a_sandbox_fails_breaks_nothing(original):
    original.script.answer = failing(*range(3, 100))
    with executor_at(original, 2, retries=0) as executor:
        futures = [executor.submit("import time; time.sleep(0.3)") for _ in range(2)]
        for future in futures:
            # The dispatcher is in here, while a keeper hears that the next cannot be made.
            future.add_done_callback(lambda _: time.sleep(0.5))
        futures[0].result(10)
        time.sleep(0.2)
        late = executor.submit("1")
        assert isinstance(late.exception(10), (RuntimeRejected, BrokenSandboxPool))
        assert [future.exception(10) for future in futures] == [None, None]


def test_sessions_tasks_and_others_start_in_the_order_of_their_submission(original):
    with executor_at(original, state="reuse") as executor, executor.session() as session:
        futures = [executor.submit("import time; time.sleep(0.5)")]
        futures += [(session if i == 36 else executor).submit("1") for i in range(40)]
        starts = [next(future.observations()).time for future in futures]
    assert starts == sorted(starts)


def test_there_is_a_sandbox_more_beside_a_session_but_no_more_run_at_once(original):
    with executor_at(original, state="reuse") as executor, executor.session() as session:
        with pytest.raises(QueueFull):
            executor.session()
        cell = "import time; a = time.time(); time.sleep(0.05); print(a, time.time())"
        futures = [each.submit(cell) for _ in range(3) for each in (session, executor)]
        spans = sorted(tuple(map(float, each.result(20).stdout.split())) for each in futures)
        assert len(original.sandboxes) == 2
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(("how", "why"), [("close", "closed"), ("restart", "restarted")])
def test_closing_a_session_ends_what_runs_in_it(original, eventually, how, why):
    with executor_at(original) as executor:
        session = executor.session()
        running = session.submit("import time; time.sleep(60)")
        waiting = session.submit("1")
        started(running, eventually)
        getattr(session, how)()
        ended = running.exception(10)
        assert type(ended) is SandboxDied
        assert f"its session was {why}" in str(ended)
        assert waiting.cancelled()
        assert executor.submit("2").result(20).text == "2"


def test_a_session_keeps_its_state_and_hears_when_it_is_lost(original):
    with executor_at(original) as executor, executor.session() as session:
        session.submit("x = 4").result(20)
        assert session.submit("x + 1").result(20).text == "5"
        assert isinstance(
            session.options(timeout=0.5).submit("import time; time.sleep(60)").exception(20),
            CellTimeout,
        )
        assert isinstance(session.submit("x").exception(20), StateLost)
        assert isinstance(session.submit("x").exception(20), NameError)


def test_a_session_whose_sandbox_is_gone_tells_the_cell_that_would_have_begun(original):
    with executor_at(original) as executor, executor.session() as session:
        session.submit("x = 4").result(20)
        with gone(original):
            assert isinstance(session.submit("x").exception(20), StateLost)
        assert isinstance(session.submit("x").exception(20), NameError), "it is told once"


def test_a_session_whose_sandbox_is_gone_before_its_first_cell_began_lost_nothing(original):
    answers = iter([404])
    original.script.answer = lambda method, path, _: (
        next(answers, None) if path.endswith("run_ipython_cell") else None
    )
    with executor_at(original) as executor, executor.session() as session:
        assert session.submit("x = 4").exception(20) is None
        assert session.submit("x").result(20).text == "4"


def test_a_runtime_that_refuses_a_space_is_asked_as_often_as_it_was_told(original):
    original.script.answer = lambda method, path, _: 503 if path == "/v1/spaces" else None
    with executor_at(original, retries=2) as executor:
        assert isinstance(executor.submit("1").exception(20), RuntimeRejected)
    posts = [path for method, path, _ in original.requests if method == "POST"]
    assert posts == ["/v1/spaces"] * 3


def test_what_is_skipped_is_counted(original, caplog):
    original.script.noise = True
    with executor_at(original) as executor:
        executor.submit("1").result(20)
        executor.submit("2").result(20)
    counts = [r.fields["skipped"] for r in caplog.records if r.event == "observation_skipped"]
    assert len(counts) > 8
    assert sorted(counts) == list(range(1, len(counts) + 1))


# ── what it does not have ───────────────────────────────────────────────────


@pytest.mark.parametrize("option", ["stdin", "argv"])
def test_an_option_that_v1_does_not_have_is_named(original, option):
    value = {"stdin": "text", "argv": ["a.py"]}[option]
    with executor_at(original) as executor:
        error = executor.options(**{option: value}).submit("1").exception(10)
        assert isinstance(error, RuntimeRejected)
        assert f"{option}=" in str(error)
        assert executor.submit("1").result(10).ok
    assert all(body["code"].endswith("\n1") for body in original.posts())


def test_limits_and_what_is_used_are_not_known_there(original):
    with executor_at(original, limits=Limits("1G")) as executor:
        error = executor.submit("1").exception(10)
        assert isinstance(error, RuntimeRejected)
        assert "limits=" in str(error)
    with executor_at(original) as executor:
        assert executor.submit("1").result(10).ok
        with pytest.raises(RuntimeRejected, match="does not tell"):
            executor.stats()


def test_preload_is_not_for_a_runtime_elsewhere(original):
    with pytest.raises(ValueError, match="preload"):
        executor_at(original, preload=["math"])


def test_output_reaches_a_callback_and_is_bounded(original):
    pieces = []
    with executor_at(original, max_output=100) as executor:
        view = executor.options(on_output=pieces.append)
        view.submit("print('x' * 1000)").result(10)
        assert "".join(piece.text for piece in pieces).count("x") == 1000
        result = executor.submit("print('x' * 1000)").result(10)
        assert (result.stdout_cut, result.stdout.count("x")) == (901, 99)
        assert result.usage.peak_memory is None
        assert result.displays == []
