"""Runs that are sent to a worker while it runs others: each gets its own, and none waits for long.

The first of each test are done at once, so that others are sent ahead of their turn.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from mentis_pool import (
    CellTimeout,
    Limits,
    ResourceLimitExceeded,
    SandboxDied,
    SandboxError,
    SandboxExecutor,
)
from mentis_pool.runtime import posix

SOME = 300


@pytest.fixture(scope="module")
def two():
    # What runs leaves marks on the disk, which the tests look at.
    with SandboxExecutor(max_workers=2, isolation="process") as executor:
        yield executor


def same(x):
    return x


def warm(executor):
    """Make its sandboxes take calls ahead."""
    assert list(executor.map(same, range(SOME))) == list(range(SOME))


def log_line(path, x, seconds=0.0):
    with open(path, "a") as file:
        file.write(f"{x}\n")
    time.sleep(seconds)
    return x


def logged(path):
    return sorted(map(int, path.read_text().split()))


def held(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def test_none_waits_behind_one_that_takes_long(two, tmp_path):
    warm(two)
    futures = [two.submit(same, i) for i in range(SOME)]
    long = two.submit(held, str(tmp_path / "go"))
    futures += [two.submit(same, i) for i in range(SOME)]
    assert [future.result(60) for future in futures] == [*range(SOME)] * 2
    assert not long.done()
    (tmp_path / "go").touch()
    long.result(60)


def speak(x, how):
    if how == 0:
        print(x)
    elif how == 1:
        os.write(1, f"{x}\n".encode())
    elif how == 2:
        subprocess.run(["echo", str(x)], check=True)
    elif how == 3:
        print(x, flush=True)
        sys.stderr.write(f"{x}\n")
    return x


def test_each_has_what_it_wrote_itself(two):
    warm(two)
    # Most write nothing, so that there are always some ahead.
    ways = [how if i % 7 == 0 else None for i, how in zip(range(2000), itertools.cycle(range(4)))]
    futures = [two.submit(speak, i, how) for i, how in enumerate(ways)]
    for i, (future, how) in enumerate(zip(futures, ways, strict=True)):
        assert future.result(60) == i
        assert future.stdout == ("" if how is None else f"{i}\n")
        assert future.stderr == (f"{i}\n" if how == 3 else "")


LAST = ["Result", "End"]
CELLS = [
    "print({0})",
    "import os\nos.write(1, b'{0}\\n')",
    "!echo {0}",
    "import sys\nprint({0})\nprint({0}, file=sys.stderr)",
    "print({0})\n1 / 0",
    "from IPython.display import display\nprint({0})\ndisplay({0})\nprint({0})",
]


def test_each_cell_has_what_it_wrote_itself_and_in_its_order():
    with SandboxExecutor(max_workers=2, state="reuse") as executor:
        assert [result.value for result in executor.map(["1"] * SOME)] == [1] * SOME
        ways = [how if i % 5 == 0 else None for i, how in zip(range(900), itertools.cycle(CELLS))]
        cells = ["" if how is None else how.format(i) for i, how in enumerate(ways)]
        futures = [executor.submit(f"{cell}\n{i}") for i, cell in enumerate(cells)]
        for i, (future, how) in enumerate(zip(futures, ways, strict=True)):
            failed = how is CELLS[4]
            result = future.exception(60).result if failed else future.result(60)
            # The shell's line break is a terminal's.
            wrote = result.stdout.replace("\r", "")
            assert wrote == ("" if how is None else f"{i}\n" * (1 + (how is CELLS[5])))
            assert result.stderr == (f"{i}\n" if how is CELLS[3] else "")
            assert failed or result.value == i
            if how is CELLS[5]:
                said = [type(each).__name__ for each in future.observations()]
                # It starts once more where it had to be taken back.
                assert said[said.count("Start") :] == ["Stream", "Display", "Stream", *LAST]


THREAD = """
import threading
def say():
    for i in range(5):
        print(i)
        display(i)
thread = threading.Thread(target=say)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("state", ["fresh", "reuse", "session"])
def test_what_a_thread_prints_and_displays_comes_in_its_order(state):
    with SandboxExecutor(max_workers=1, state=None if state == "session" else state) as executor:
        place = executor.session() if state == "session" else executor
        for future in [place.submit(THREAD) for _ in range(5)]:
            future.result(60)
            said = [type(each).__name__ for each in future.observations()]
            assert said[said.count("Start") :] == ["Stream", "Display"] * 5 + LAST


WRITES_ON = """
import subprocess, sys, time
sys.child = subprocess.Popen(["seq", "1", "3000000"])
time.sleep({0})
"""


@pytest.mark.parametrize("state", ["fresh", "reuse"])
def test_what_a_process_writes_on_that_outlives_its_cell_is_in_its_order(state):
    with SandboxExecutor(max_workers=1, state=state, max_output=1 << 26) as executor:
        for i in range(8):
            written = executor.submit(WRITES_ON.format(0.01 + i / 1000)).result(60).stdout
            lines = [*map(int, written.split("\n")[:-1])]
            assert lines[1:] == [line + 1 for line in lines[:-1]]
            if state == "reuse":
                executor.submit("import sys\nsys.child.kill()\nsys.child.wait()").result(60)


LIMITED = [
    (Limits(), "bytearray(1 << 50)"),
    (Limits(output=1000), "print('x' * 2000)"),
]


@pytest.mark.parametrize(("limits", "cell"), LIMITED, ids=["memory", "output"])
def test_one_that_reaches_a_limit_fails_alone(limits, cell):
    with SandboxExecutor(max_workers=1, state="reuse", limits=limits) as executor:
        executor.run(["1"] * 100)
        cells = [cell if i % 20 == 10 else str(i) for i in range(200)]
        for i, future in enumerate([executor.submit(cell) for cell in cells]):
            if i % 20 == 10:
                assert isinstance(future.exception(60), ResourceLimitExceeded)
            else:
                assert future.result(60).value == i


CLOSES = """
import fcntl, os
for fd in range(3, 300):
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            os.close(fd)
    except OSError:
        pass
print("{0}")
"""


@pytest.mark.skipif(not posix.KEEPS_PACKETS, reason="nothing goes ahead")
def test_one_that_closes_the_ends_of_its_pipes_mixes_nothing_up():
    with SandboxExecutor(max_workers=1, state="reuse") as executor:
        executor.run(["1"] * 100)
        said = executor.run([(CLOSES if i == 100 else "print({0})").format(i) for i in range(1000)])
    assert [result.stdout for result in said] == [f"{i}\n" for i in range(1000)]


BREAKS = """
worker, said = get_ipython().show.__self__, []
say = worker._say
def note(message):
    said.append(message)
    say(message)
def break_off(word):
    del worker._await, worker._unread
    raise TimeoutError
worker._say, worker._await, worker._unread = note, break_off, lambda: [1, 0]
try:
    display(1)
except TimeoutError:
    import sys
    sys.said = said
"""


@pytest.mark.skipif(not posix.KEEPS_PACKETS, reason="nothing goes ahead")
def test_behind_a_display_that_was_broken_off_none_begins_before_it_was_heard():
    # As it is by a handler of signals that raises.
    with SandboxExecutor(max_workers=1, state="reuse", timeout=20) as executor:
        first = executor.submit(BREAKS).result()
        words = "import sys\n[(type(each).__name__, each.word) for each in sys.said]"
        result = executor.submit(words).result()
    assert first.displays == []
    assert result.value == [("Drain", 1), ("Done", 2)]


def test_one_that_was_cancelled_gives_nothing_and_no_other_is_missing(two, tmp_path):
    warm(two)
    futures = [two.submit(log_line, tmp_path / "log", i) for i in range(SOME)]
    cancelled = {i for i in range(0, SOME, 3) if futures[i].cancel()}
    kept = [i for i in range(SOME) if i not in cancelled]
    assert [futures[i].result(60) for i in kept] == kept
    assert all(futures[i].cancelled() for i in cancelled)
    ran = logged(tmp_path / "log")
    assert len(ran) == len(set(ran)), "one ran twice"
    assert set(kept) <= set(ran)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_signal_reaches_the_one_that_it_is_for_alone(two, tmp_path, number):
    for _ in range(5):
        warm(two)
        before = [two.submit(log_line, tmp_path / "log", i) for i in range(50)]
        victim = two.submit(time.sleep, 60)
        after = [two.submit(log_line, tmp_path / "log", 50 + i) for i in range(50)]
        while not victim.running():
            time.sleep(0.0005)
        assert victim.kill() if number == signal.SIGKILL else victim.interrupt()
        with pytest.raises(SandboxDied if number == signal.SIGKILL else KeyboardInterrupt):
            victim.result(60)
        assert [future.result(60) for future in [*before, *after]] == list(range(100))
        assert logged(tmp_path / "log") == list(range(100))
        (tmp_path / "log").unlink()


def test_a_time_limit_ends_the_one_that_it_is_for_alone(two, tmp_path):
    warm(two)
    # Long enough for the others on a machine that is busy.
    limited = two.options(timeout=2)
    before = [limited.submit(log_line, tmp_path / "log", i) for i in range(50)]
    victim = limited.submit(time.sleep, 60)
    after = [limited.submit(log_line, tmp_path / "log", 50 + i) for i in range(50)]
    with pytest.raises(CellTimeout):
        victim.result(60)
    assert [future.result(60) for future in [*before, *after]] == list(range(100))
    assert logged(tmp_path / "log") == list(range(100))


def die(path, x):
    log_line(path, x)
    os._exit(3)


def test_a_death_costs_the_one_that_died_alone_and_none_runs_twice(two, tmp_path):
    warm(two)
    deadly = set(range(20, 400, 37))
    futures = [
        two.submit(die if i in deadly else log_line, tmp_path / "log", i) for i in range(400)
    ]
    for i, future in enumerate(futures):
        if i in deadly:
            with pytest.raises(SandboxDied):
                future.result(60)
        else:
            assert future.result(60) == i
    assert logged(tmp_path / "log") == list(range(400))


def steal(then):
    """What hostile code does: it takes the runs of others from its own process."""
    import socket

    for fd in range(200, 260):
        try:
            taken = socket.socket(fileno=fd)
        except OSError:
            continue
        if taken.type == socket.SOCK_SEQPACKET:
            try:
                while taken.recv(1 << 16, socket.MSG_DONTWAIT):
                    pass
            except OSError:
                os._exit(0) if then == "goes" else time.sleep(600)


@pytest.mark.skipif(not posix.KEEPS_PACKETS, reason="nothing is sent ahead here")
@pytest.mark.parametrize("then", ["goes", "stays"])
def test_whatever_is_stolen_every_future_is_settled(two, then):
    for _ in range(6):
        warm(two)
        futures = [two.submit(same, i) for i in range(20)]
        thief = two.submit(steal, then)
        futures += [two.submit(same, i) for i in range(20)]
        errors = [future.exception(30) for future in futures]
        for i, (future, error) in enumerate(zip(futures, errors, strict=True)):
            assert isinstance(error, SandboxError) if error else future.result() == i % 20
        # Where it got nothing it is a long call like any other.
        assert any(errors) or then == "goes" or thief.kill()
        with pytest.raises(SandboxError):
            thief.result(30)
