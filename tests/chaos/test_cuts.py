"""Whatever becomes of the connection: nothing is lost, nothing doubled, nothing mixed up."""

from __future__ import annotations

import hashlib
import time

import pytest
from chaos.proxy import Chaos, Weather
from conftest import end, serve

from mentis_pool import OutcomeUnknown, SandboxDied, SandboxExecutor, connection

CELLS = 1500
RETRIES = 20
"""On a busy machine a handshake takes longer than a connection lives."""
CELL = """
import hashlib
with open(log, "a") as file:
    file.write(f"{i}\\n")
text = "".join(hashlib.sha256(f"{i} {n}".encode()).hexdigest() for n in range(i % 50))
print(text)
i
"""


def expected(i):
    return "".join(hashlib.sha256(f"{i} {n}".encode()).hexdigest() for n in range(i % 50)) + "\n"


@pytest.fixture(scope="module")
def runtime():
    process, url, token = serve("--linger", "10", "--isolation", "process")
    yield url, token
    end(process)


@pytest.mark.parametrize("seed", [1, 2])
def test_each_cell_runs_once_and_gives_its_own(runtime, tmp_path, seed):
    url, token = runtime
    with Chaos(url, Weather(cut_every=0.15), seed) as chaos:
        with SandboxExecutor(
            2, runtime=chaos.url, token=token, retries=RETRIES, state="reuse"
        ) as executor:
            log = str(tmp_path / "log")
            futures = [executor.submit(CELL, i=i, log=log) for i in range(CELLS)]
            for i, future in enumerate(futures):
                result = future.result(120)
                assert (result.value, result.stdout) == (i, expected(i))
        assert chaos.cuts > 3
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(CELLS))


def test_what_dies_meanwhile_fails_alone(runtime, tmp_path):
    url, token = runtime
    deadly = set(range(10, 400, 25))
    with Chaos(url, Weather(cut_every=0.15), 3) as chaos:
        with SandboxExecutor(2, runtime=chaos.url, token=token, retries=RETRIES) as executor:
            cells = ["import os; os._exit(3)" if i in deadly else str(i) for i in range(400)]
            futures = [executor.submit(cell) for cell in cells]
            for i, future in enumerate(futures):
                if i in deadly:
                    assert isinstance(future.exception(120), SandboxDied)
                else:
                    assert future.result(120).value == i
        assert chaos.cuts > 0


def test_a_session_keeps_its_state(runtime):
    url, token = runtime
    with Chaos(url, Weather(cut_every=0.1), 4) as chaos:
        with SandboxExecutor(1, runtime=chaos.url, token=token, retries=RETRIES) as executor:
            with executor.session() as session:
                session.submit("x = 0").result(60)
                for _ in range(200):
                    session.submit("x += 1")
                assert session.submit("x").result(60).value == 200
        assert chaos.cuts > 0


def test_a_large_output_and_a_large_argument_arrive_whole(runtime):
    url, token = runtime
    with Chaos(url, Weather(cut_every=0.2, stall=0.2), 5) as chaos:
        with SandboxExecutor(
            1, runtime=chaos.url, token=token, retries=RETRIES, max_output=None
        ) as executor:
            data = bytes(range(256)) * 20_000
            future = executor.submit(lambda x: (len(x), x[::-1]), data)
            assert future.result(120) == (len(data), data[::-1])
            lines = executor.submit("for i in range(100_000): print(i)").result(120).stdout
            assert lines == "".join(f"{i}\n" for i in range(100_000))
        assert chaos.cuts > 0


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(connection, "PING", 0.3)
    monkeypatch.setattr(connection, "ANSWER_WITHIN", 0.3)
    monkeypatch.setattr(connection, "REJOIN_WITHIN", 1.0)


def test_a_runtime_that_says_nothing_any_more_is_left_in_seconds(runtime, hasty):
    url, token = runtime
    with Chaos(url, Weather(cut_every=None)) as chaos:
        with SandboxExecutor(1, runtime=chaos.url, token=token, retries=RETRIES) as executor:
            executor.submit("1").result(60)
            future = executor.submit("import time; time.sleep(600)")
            while not future.running():
                time.sleep(0.01)
            began = time.monotonic()
            chaos.silent = True
            assert isinstance(future.exception(60), OutcomeUnknown)
            assert time.monotonic() - began < 20


def test_a_runtime_that_only_paused_is_waited_for(runtime, hasty):
    url, token = runtime
    with Chaos(url, Weather(cut_every=None)) as chaos:
        with SandboxExecutor(1, runtime=chaos.url, token=token, retries=RETRIES) as executor:
            future = executor.submit("import time\nfor i in range(20): time.sleep(0.1); print(i)")
            while not future.running():
                time.sleep(0.01)
            chaos.silent = True
            time.sleep(0.9)  # longer than two pings
            chaos.silent = False
            assert future.result(60).stdout == "".join(f"{i}\n" for i in range(20))


def test_a_client_that_stays_away_finds_its_session_over(monkeypatch):
    monkeypatch.setattr(connection, "REFUSED_WITHIN", 0.5)
    process, url, token = serve("--linger", "0.2")
    with Chaos(url, Weather(cut_every=None)) as chaos:
        with SandboxExecutor(1, runtime=chaos.url, token=token, retries=RETRIES) as executor:
            future = executor.submit("import time; time.sleep(600)")
            while not future.running():
                time.sleep(0.01)
            chaos.silent = True
            chaos.__exit__()
            assert isinstance(future.exception(60), OutcomeUnknown)
    end(process)
