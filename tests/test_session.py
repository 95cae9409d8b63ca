"""Sessions: one sandbox, its cells in order, and what is told when its state is gone."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time

import family
import pytest

from mentis_pool import (
    CellError,
    CellTimeout,
    DeadlineExceeded,
    QueueFull,
    SandboxDied,
    SandboxExecutor,
    StateLost,
)

BOUND = 8.0
STUBBORN = (
    family.NAMED
    + "while True:\n    try: time.sleep(60)\n    except BaseException: print('no', flush=True)"
)
"""A cell that does not let itself be interrupted."""


@pytest.fixture(scope="module")
def executor():
    with SandboxExecutor(max_workers=2) as executor:
        yield executor


@pytest.fixture
def session(executor):
    with executor.session() as session:
        yield session


@pytest.fixture
def single(sharing):
    with sharing(max_workers=1) as executor:
        yield executor


def values(futures):
    return [future.result(BOUND).value for future in futures]


# ── state and order ─────────────────────────────────────────────────────────


def test_each_cell_finds_what_the_earlier_ones_left(session):
    session.submit("x = 1")
    assert session.submit("x + 1").result(BOUND).value == 2
    session.submit("def f(y): return x + y")
    session.submit("import math, os; os.environ['LEFT'] = 'here'; open('file', 'w').write('kept')")
    assert session.submit(
        "f(5), math.pi > 3, os.environ['LEFT'], open('file').read()"
    ).result().value == (6, True, "here", "kept")


def test_cells_run_in_the_order_of_their_submission_and_no_two_at_once(session):
    session.submit("seen = []")
    futures = [session.submit(f"seen.append({i}); len(seen)") for i in range(50)]
    assert values(futures) == list(range(1, 51))
    assert session.submit("seen").result().value == list(range(50))


def test_cells_of_many_threads_each_find_their_own(session):
    session.submit("counts = {}")

    def work(name):
        futures = [
            session.submit("counts[n] = counts.get(n, 0) + 1; n, counts[n]", n=name)
            for _ in range(20)
        ]
        return values(futures)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for name, got in zip("abcd", threads.map(work, "abcd"), strict=True):
            assert got == [(name, i) for i in range(1, 21)]
    assert session.submit("counts").result().value == dict.fromkeys("abcd", 20)


def test_in_out_and_underscore_are_as_in_a_notebook(session):
    assert session.submit("6 * 7").result(BOUND).value == 42
    assert session.submit("_ + 1").result().value == 43
    session.submit("y = 'nothing to show'")
    assert session.submit("_, __, _1, Out[2], In[3], _i1").result().value == (
        43, 42, 42, 43, "y = 'nothing to show'", "6 * 7",
    )  # fmt: skip
    assert session.submit("sorted(Out), len(In)").result().value == ([1, 2, 4], 6)


def test_what_shows_out_does_not_show_itself(session):
    session.submit("6 * 7")
    shown = [session.submit(cell).result(BOUND) for cell in ("Out", "[Out]", "Out[3][0] is Out")]
    assert [each.text for each in shown] == ["{1: 42}", "[{1: 42}]", "True"]
    assert [each.value for each in shown] == [{1: 42}, [{1: 42}], True]


def test_a_cell_that_raises_leaves_the_state(session):
    session.submit("x = 3")
    failing = session.submit("x = 4; 1 / 0")
    after = session.submit("x")
    with pytest.raises(CellError) as caught:
        failing.result(BOUND)
    assert isinstance(caught.value, ZeroDivisionError)
    assert after.result().value == 4


def test_variables_stay(session):
    session.submit("", given=[1, 2])
    assert session.submit("given").result(BOUND).value == [1, 2]


def test_top_level_await_and_magics_work(session):
    session.submit("import asyncio\nasync def f(): return 5")
    assert session.submit("await f()").result(BOUND).value == 5
    assert "x" in session.submit("x = 1\n%who").result().stdout


def test_only_cells_run_in_a_session(session):
    with pytest.raises(TypeError, match="a session runs cells"):
        session.submit(abs)
    with pytest.raises(TypeError, match="a shell command is text"):
        session.shell(["ls"])


def test_a_view_has_other_settings_and_the_same_state(session):
    pieces = []
    view = session.options(on_output=lambda piece: pieces.append(piece.text), task_id="mine")
    session.submit("x = 7")
    future = view.submit("print(x)")
    assert future.task_id == "mine"
    assert future.result(BOUND).stdout == "7\n"
    assert pieces == ["7\n"]
    assert session.options(stdin="line\n").submit("input(), x").result().value == ("line", 7)
    assert session.submit("x").result().value == 7


def test_what_waits_can_be_cancelled_and_the_rest_goes_on(session):
    running = session.submit("import time; time.sleep(0.2); done = ['first']")
    cancelled = session.submit("done.append('never')")
    behind = session.submit("done")
    family.started(running)
    assert cancelled.cancel()
    assert behind.result(BOUND).value == ["first"]


# ── interrupt and time limits ───────────────────────────────────────────────


def test_an_interrupt_ends_the_cell_and_keeps_the_state(session):
    session.submit("x = 5").result(BOUND)
    for _ in range(5):
        future = session.submit("x += 1\nimport time; time.sleep(60)")
        behind = session.submit("x")
        # At once: it has begun, as far as is known here, and may not have run a line.
        family.started(future)
        assert session.interrupt()
        error = future.exception(BOUND)
        assert (type(error), error.name) == (CellError, "KeyboardInterrupt")
        assert 5 <= behind.result(BOUND).value <= 10


def test_what_is_idle_cannot_be_interrupted(session):
    assert not session.interrupt()
    session.submit("1").result(BOUND)
    assert not session.interrupt()
    assert session.submit("2").result(BOUND).value == 2


def test_an_interrupt_at_the_cells_end_does_not_hit_the_next(session):
    session.submit("count = 0; import time").result(BOUND)
    hit = 0
    for i in range(60):
        future = session.submit(f"count += 1; time.sleep({0.002 * (i % 6)})")
        behind = session.submit("time.sleep(0.002); count")
        family.started(future)
        time.sleep(0.0004 * (i % 9))
        if not future.done():
            future.interrupt()
        error = future.exception(BOUND)
        assert error is None or error.name == "KeyboardInterrupt"
        hit += error is not None
        assert behind.result(BOUND).value <= i + 1
    assert hit, "the moment was never met"


def test_a_cell_may_catch_the_interrupt_and_go_on(session):
    future = session.submit(
        family.NAMED + "try: time.sleep(60)\nexcept KeyboardInterrupt: x = 'caught'\nx"
    )
    family.worker_of(future)
    assert future.interrupt()
    assert future.result(BOUND).value == "caught"
    assert session.submit("x").result().value == "caught"


@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_a_time_limit_interrupts_and_keeps_the_state(session, limit):
    session.submit("x = 5")
    view = session.options(**{limit: 0.2})
    slow, behind = view.submit("x = 6; import time; time.sleep(60)"), session.submit("x")
    error = slow.exception(BOUND)
    assert type(error) is (CellTimeout if limit == "timeout" else DeadlineExceeded)
    assert behind.result(BOUND).value == 6


def test_even_the_shortest_time_limit_keeps_the_state(session):
    session.submit("x = 5").result(BOUND)
    for _ in range(10):
        slow = session.options(timeout=0.0001).submit("import time; time.sleep(60)")
        assert type(slow.exception(BOUND)) is CellTimeout
    assert session.submit("x").result(BOUND).value == 5


def test_one_that_ignores_the_interrupt_is_killed_and_the_loss_is_told(session):
    session.submit("x = 5")
    slow = session.options(timeout=0.2).submit(STUBBORN)
    error = slow.exception(BOUND)
    assert type(error) is CellTimeout
    assert error.result.stdout.endswith("no\n")
    with pytest.raises(StateLost, match="had to be replaced"):
        session.submit("x").result(BOUND)
    # Who was told knows: what comes then finds a new sandbox.
    assert session.submit("'x' in dir()").result(BOUND).value is False


def test_all_that_was_submitted_before_the_loss_was_known_is_told(session):
    session.submit("x = 5")
    slow = session.options(timeout=0.2).submit(STUBBORN)
    behind = [session.submit("x") for _ in range(5)]
    assert type(slow.exception(BOUND)) is CellTimeout
    assert {type(future.exception(BOUND)) for future in behind} == {StateLost}
    assert session.submit("'x' in dir()").result(BOUND).value is False


def test_where_the_one_that_would_be_told_is_cancelled_the_next_is(session):
    session.submit("x = 5")
    slow = session.submit(STUBBORN)
    behind = session.submit("x")
    family.worker_of(slow)
    assert behind.cancel()
    assert slow.kill()
    assert type(slow.exception(BOUND)) is SandboxDied
    assert type(session.submit("x").exception(BOUND)) is StateLost
    assert session.submit("1").result(BOUND).value == 1


def test_a_kill_loses_the_state_of_this_session_alone(executor):
    with executor.session() as one, executor.session() as other:
        one.submit("x = 1").result(BOUND)
        other.submit("x = 2").result(BOUND)
        running = one.submit(family.SLEEP)
        family.worker_of(running)
        assert running.kill()
        assert type(running.exception(BOUND)) is SandboxDied
        assert other.submit("x").result(BOUND).value == 2
        assert type(one.submit("x").exception(BOUND)) is StateLost


@pytest.mark.parametrize("waiting", [True, False])
def test_a_sandbox_that_is_lost_is_told_to_the_next_and_not_to_what_ran(session, waiting):
    session.submit("x = 1").result(BOUND)
    running = session.submit(family.SLEEP)
    following = session.submit("x") if waiting else None
    # The init of the sandbox.
    family.worker_of(running).parent().kill()
    assert type(running.exception(BOUND)) is SandboxDied
    following = following or session.submit("x")
    assert type(following.exception(BOUND)) is StateLost
    assert session.submit("'x' in dir()").result(BOUND).value is False


@pytest.mark.parametrize("cell", ["import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_a_cell_that_ends_its_process_loses_the_state(session, cell):
    session.submit("x = 1")
    assert type(session.submit(cell).exception(BOUND)) is SandboxDied
    assert type(session.submit("x").exception(BOUND)) is StateLost
    assert session.submit("3").result(BOUND).value == 3


# ── restart, close, the end of the block ────────────────────────────────────


def test_a_restart_begins_anew(session):
    session.submit("x = 1; open('file', 'w').close()").result(BOUND)
    running = session.submit("import time; time.sleep(60)")
    waiting = session.submit("x")
    family.started(running)
    session.restart()
    ended = running.exception(BOUND)
    assert type(ended) is SandboxDied
    assert "its session was restarted" in str(ended)
    assert waiting.cancelled() or isinstance(waiting.exception(BOUND), StateLost)
    answer = session.submit("import os; 'x' in dir(), os.listdir(), len(In)").result(BOUND)
    assert answer.value == (False, [], 2)


def test_a_restart_of_what_was_never_used_is_nothing(session):
    session.restart()
    session.restart()
    assert session.submit("1").result(BOUND).value == 1


def test_leaving_the_block_waits_for_what_was_submitted(executor):
    with executor.session() as session:
        futures = [session.submit(f"import time; time.sleep(0.1); {i}") for i in range(3)]
        last = session.submit("never")
        assert last.cancel()
    assert all(future.done() for future in futures)
    assert values(futures) == [0, 1, 2]


def test_an_exception_in_the_block_ends_it_at_once(executor):
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        with executor.session() as session:
            running = session.submit(family.SLEEP)
            waiting = session.submit("1")
            worker = family.worker_of(running)
            raise ZeroDivisionError
    ended = running.exception(BOUND)
    assert type(ended) is SandboxDied
    assert "its session was closed" in str(ended)
    assert waiting.cancelled()
    assert time.monotonic() - begun < BOUND
    worker.wait(BOUND)


def test_a_closed_session_takes_nothing(executor):
    session = executor.session()
    session.close()
    session.close()
    for use in (lambda: session.submit("1"), lambda: session.shell("ls"), session.restart):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    assert not session.interrupt()
    with pytest.raises(RuntimeError, match="closed"):
        session.options(timeout=1).submit("1")


def test_after_a_shutdown_there_is_no_session(sharing):
    executor = sharing(max_workers=1)
    session = executor.session()
    future = session.submit("import time; time.sleep(0.2); 5")
    executor.shutdown(wait=False)
    for use in (lambda: session.submit("1"), executor.session, session.restart):
        with pytest.raises(RuntimeError, match="after shutdown"):
            use()
    assert future.result(BOUND).value == 5
    session.close()
    executor.shutdown()


def test_a_session_keeps_its_executor(own_temp, eventually):
    session = SandboxExecutor(max_workers=1).session()
    assert session.submit("x = 1").result(BOUND).error is None
    time.sleep(0.05)
    assert session.submit("x").result(BOUND).value == 1
    session.close()
    del session
    eventually(lambda: os.listdir(own_temp) == [])


def test_an_executor_ends_though_a_session_is_open(own_temp, processes):
    with SandboxExecutor(max_workers=1) as executor:
        session = executor.session()
        future = session.submit("1")
    assert future.result(0).value == 1
    assert processes(own_temp) == []


# ── how many there may be ───────────────────────────────────────────────────


def test_more_sessions_than_workers_are_refused(executor):
    with executor.session(), executor.session():
        with pytest.raises(QueueFull, match="there are 2 sessions already, as many as workers"):
            executor.session()
        with pytest.raises(QueueFull):
            executor.options(timeout=1).session()
    with executor.session() as session:
        assert session.submit("1").result(BOUND).value == 1


def test_one_more_may_wait_for_so_long(executor):
    with executor.session() as first, executor.session():
        begun = time.monotonic()
        with pytest.raises(QueueFull):
            executor.session(wait=True, timeout=0.2)
        assert 0.2 <= time.monotonic() - begun < BOUND
        threading.Timer(0.2, first.close).start()
        with executor.session(wait=True) as third:
            assert third.submit("1").result(BOUND).value == 1


def test_who_waits_for_a_session_hears_of_a_shutdown(sharing):
    executor = sharing(max_workers=1)
    session = executor.session()
    session.submit("1").result(BOUND)
    heard = []

    def wait():
        try:
            executor.session(wait=True)
        except RuntimeError as exc:
            heard.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    executor.shutdown(wait=False)
    thread.join(BOUND)
    assert "after shutdown" in str(heard[0])
    executor.shutdown()


def test_a_restart_has_its_place_though_others_wait_for_one(single):
    session = single.session()
    waiting = threading.Thread(target=lambda: single.session(wait=True, timeout=BOUND).close())
    waiting.start()
    time.sleep(0.1)
    for i in range(5):
        session.restart()
        assert session.submit(str(i)).result(BOUND).value == i
    session.close()
    waiting.join(BOUND / 2)
    assert not waiting.is_alive()


# ── beside shared tasks ─────────────────────────────────────────────────────


def test_a_session_that_is_idle_keeps_nobody_from_running(single):
    with single.session() as session:
        session.submit("x = 1").result(BOUND)
        assert single.submit("2").result(BOUND).value == 2
        assert single.submit(abs, -3).result(BOUND) == 3
        assert values([session.submit("x"), single.submit("5"), session.submit("x + 1")]) == [
            1,
            5,
            2,
        ]


def test_with_one_worker_a_session_and_others_take_turns(single):
    with single.session() as session:
        futures = []
        for _ in range(5):
            futures.append(session.submit("import time; time.time()"))
            futures.append(single.submit("import time; time.time()"))
        for its in (futures[::2], futures[1::2]):
            times = values(its)
            assert times == sorted(times)


def test_sessions_run_beside_each_other_and_beside_others(executor):
    with executor.session() as one, executor.session() as other:
        cell = "import time; a = time.time(); time.sleep(0.3); a, time.time()"
        (a, b), (c, d) = values([one.submit(cell), other.submit(cell)])
        assert max(a, c) < min(b, d)
        assert executor.submit("1").result(BOUND).value == 1


def test_no_more_run_at_once_than_there_are_workers(executor):
    cell = "import time; a = time.time(); time.sleep(0.05); a, time.time()"
    with executor.session() as one, executor.session() as other:
        spans = values(
            [each.submit(cell) for _ in range(3) for each in (one, other, executor, executor)]
        )
    moments = sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans])
    running = most = 0
    for _, step in moments:
        running += step
        most = max(most, running)
    assert most == 2


# ── the shell ───────────────────────────────────────────────────────────────


def test_a_shell_command_gives_output_and_exit_code(executor):
    result = executor.shell("echo out; echo err >&2; exit 3").result(BOUND)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert result.error is None
    assert executor.shell("true").result(BOUND).exit_code == 0
    assert executor.shell("kill -9 $$").result(BOUND).exit_code == 128 + 9
    assert executor.shell("no-such-command-here").result(BOUND).exit_code == 127


def test_a_shell_command_says_what_a_cell_says(executor):
    pieces = []
    future = executor.options(on_output=lambda piece: pieces.append(piece.text)).shell("echo a")
    kinds = [type(said).__name__ for said in future.observations()]
    assert kinds == ["Start", "Stream", "Result", "End"]
    future.result()
    assert pieces == ["a\n"]
    assert executor.options(stdin="given\n").shell("cat").result(BOUND).stdout == "given\n"


def test_a_shell_command_has_limits_and_can_be_stopped(executor):
    error = executor.options(timeout=0.2).shell("echo begun; sleep 60").exception(BOUND)
    assert type(error) is CellTimeout
    assert error.result.stdout == "begun\n"
    future = executor.shell(f"{family.SHELL_NAMED}; sleep 60")
    family.worker_of(future)
    assert future.kill()
    assert type(future.exception(BOUND)) is SandboxDied


def test_a_shell_command_of_a_session_finds_its_directory_and_environment(session):
    session.submit(
        "import os; os.mkdir('below'); os.chdir('below'); os.environ['SEEN'] = 'yes'; x = 1"
    )
    result = session.shell("pwd; echo $SEEN; touch made; exit 4").result(BOUND)
    directory, seen = result.stdout.split()
    assert (os.path.basename(directory), seen, result.exit_code) == ("below", "yes", 4)
    assert session.submit("os.listdir(), x").result(BOUND).value == (["made"], 1)


def test_a_shell_command_of_a_session_that_is_stopped_keeps_its_state(session):
    session.submit("x = 1")
    error = session.options(timeout=0.2).shell("sleep 60").exception(BOUND)
    assert type(error) is CellTimeout
    running = session.shell(f"{family.SHELL_NAMED}; sleep 60")
    command = family.worker_of(running)
    assert session.interrupt()
    assert running.exception(BOUND).name == "KeyboardInterrupt"
    assert session.submit("x").result(BOUND).value == 1
    command.wait(BOUND)
