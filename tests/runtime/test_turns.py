"""Which run a worker is at, whatever it does between two words of the supervisor's.

The real supervisor and session; their inits and workers are played by the test, which
decides what has happened before the supervisor looks.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import os
import random
import signal
import socket

import pytest

from mentis_pool.limits import Limits
from mentis_pool.observations import (
    Bundle,
    Cut,
    Display,
    End,
    Error,
    Failure,
    File,
    Left,
    Part,
    Result,
    Start,
    Stream,
)
from mentis_pool.pool_stream import (
    Begin,
    Broken,
    Cancel,
    Cells,
    Closed,
    Given,
    Open,
    PickledCall,
    Run,
    Said,
    Shell,
    events,
)
from mentis_pool.pool_stream import Signal as Strike
from mentis_pool.runtime import posix, supervisor, wire
from mentis_pool.runtime.server import Session

LANE = 1
SEEDS = 40
LONG = b"x" * (3 * wire.PACKET)

pytestmark = pytest.mark.skipif(not posix.KEEPS_PACKETS, reason="nothing is sent ahead here")


@dataclasses.dataclass
class Worker:
    """A worker that the test plays."""

    pid: int
    sock: socket.socket
    runs: socket.socket
    has: int | None = None
    """The run that it is at."""
    part: bytes = b""
    word: int | None = None
    """What it waits for before it begins the next."""
    dead: bool = False

    def take(self):
        """Begin the next run, if there is one; its number."""
        try:
            if self.word is not None:
                assert self.sock.recv(2, socket.MSG_DONTWAIT) in (b"", bytes((self.word,)))
                self.word = None
            packet = self.runs.recv(wire.PACKET, socket.MSG_DONTWAIT)
        except OSError:
            return None
        if not packet:
            return None
        self.part += packet
        if len(self.part) - 4 < int.from_bytes(self.part[:4], "big"):
            return self.take()
        run, self.part = wire.unpack_run(self.part), b""
        self.has = run.number
        return self.has

    def say(self, message):
        """Whether anybody was there to be told."""
        try:
            return self.sock.send(wire.pack(message)) > 0
        except BrokenPipeError:
            return False

    def say_done(self, wrote=(b"", b""), word=None, failure=None):
        told = Result(text=str(self.has), failure=failure)
        heard = self.say(wire.Done(self.has, told, End(0.0), wrote, word))
        self.has, self.word = None, word
        return heard


class Init:
    """An init that the test plays, with its workers."""

    def __init__(self, fds, pids):
        sock, self.out, self.err, *self.ends = (os.dup(fd) for fd in fds)
        self.sock = socket.socket(fileno=sock)
        self.sock.setblocking(False)
        self._asked = wire.Unpacker(wire.ToInit)
        self._pids = pids
        self.workers = {}
        self.signals = []
        """What is to be done to workers, when the time has come."""

    def say(self, message, *sockets):
        with contextlib.suppress(BrokenPipeError):  # the supervisor does not hear it any more
            socket.send_fds(self.sock, [wire.pack(message)], [each.fileno() for each in sockets])

    def obey(self):
        """Do what the supervisor asks for but signals, which may come later."""
        try:
            asked = self._asked.feed(self.sock.recv(65536))
        except (BlockingIOError, ConnectionResetError):
            return
        for each in asked:
            if isinstance(each, wire.Fork):
                self.fork()
            elif isinstance(each, wire.Signal):
                self.signals.append(each)
            else:
                self.end(self.workers[each.pid])
                self.say(wire.Retired(each.pid))
                if each.fork is not None:
                    self.fork()

    def fork(self):
        ours, theirs = socket.socketpair()
        filled, taken = posix.packets()
        worker = Worker(next(self._pids), theirs, socket.socket(fileno=os.dup(taken.fileno())))
        self.workers[worker.pid] = worker
        with ours, filled, taken:
            self.say(wire.Forked(worker.pid), ours, filled, taken)
        worker.say(wire.Idle())

    def take_output(self):
        """As a worker does at the end of a run."""
        return tuple(
            os.read(end, count) if (count := posix.unread(end)) else b"" for end in self.ends
        )

    def end(self, worker):
        worker.dead = True
        for each in (worker.sock, worker.runs):
            each.close()

    def die(self, worker, status=signal.SIGKILL):
        """Have a worker be gone, and the supervisor told of that first."""
        self.say(wire.Died(worker.pid, status, 0.0, 0))
        self.end(worker)

    def send_signals(self):
        """Have those sent that were asked for; one that is not fatal does nothing."""
        signals, self.signals = self.signals, []
        for each in signals:
            worker = self.workers[each.pid]
            if each.signal == signal.SIGKILL and not worker.dead:
                self.die(worker)
            self.say(wire.Signalled(each.pid))


class Stage:
    """A session whose supervisor has sandboxes that the test plays, and what it tells its client."""

    def __init__(self, directory, most=1, state="reuse", limits=None):
        self.directory = str(directory)
        self.inits = []
        self.said = collections.defaultdict(list)
        self.frames = []
        self._pids = iter(range(1000, 10**9))
        self._events = events()
        self.sandboxes = []
        self.ready = asyncio.Event()
        self.walled = False
        self.session = Session(self)
        self.session.attach(self, 0)
        self.session.obey(Begin(most))
        self.session.obey(Open(LANE, state, limits=limits))

    # as a Supervisor

    def open(self, number, opened, listener):
        self.sandboxes.append(supervisor.Sandbox(self, number, opened, listener))
        return self.sandboxes[-1]

    def fork_init(self, _, __, fds):
        self.inits.append(Init(fds, self._pids))

    def kill_init(self, _):
        raise AssertionError("it was given up")

    def group(self, *_):
        return None

    def discard(self, *_):
        pass

    # as a Link

    def takes_more(self):
        return True

    def send_frame(self, frame):
        self.frames.append(self._events.messages(frame))
        for event in self.frames[-1]:
            if isinstance(event, Said):
                self.said[event.action].append(event.observation)

    # for the test

    def run(self, *actions, work=None, **options):
        for action in actions:
            its = work or PickledCall(b"x")
            self.session.obey(Run(action, LANE, its, number=action, **options))

    def begun(self, action):
        return any(isinstance(each, Start) for each in self.said[action])

    def outcome(self, action):
        """The number in its result, its error, or None where it has not ended."""
        found = [each for each in self.said[action] if isinstance(each, (Result, Error))]
        ends = [each for each in self.said[action] if isinstance(each, End)]
        assert len(found) == len(ends) <= 1
        if not found:
            return None
        return int(found[0].text) if isinstance(found[0], Result) else found[0].kind

    async def go_on(self):
        """Let everything be heard that has been said."""
        for _ in range(10):
            await asyncio.sleep(0)
            for init in self.inits:
                init.obey()
        self.session.send()

    async def first(self):
        """The init, and its worker that has run a call, number 0, at once."""
        self.run(0)
        await self.go_on()
        init = self.inits[0]
        (worker,) = init.workers.values()
        assert worker.take() == 0
        worker.say_done()
        await self.go_on()
        assert self.outcome(0) == 0
        return init, worker

    def second(self):
        """The worker that took the place of that one."""
        return list(self.inits[0].workers.values())[-1]

    def close(self):
        self.session.end()
        for init in self.inits:
            for worker in init.workers.values():
                init.end(worker)
            init.sock.close()
            for fd in (init.out, init.err, *init.ends):
                os.close(fd)


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Runs a test's coroutine with a stage; nothing but what it plays takes longer than it should."""
    monkeypatch.setattr(supervisor, "PROMPT", 1000.0)

    def run(script, **settings):
        raised = []

        async def within():
            asyncio.get_running_loop().set_exception_handler(lambda _, its: raised.append(its))
            stage = Stage(tmp_path, **settings)
            try:
                await script(stage)
            finally:
                stage.close()

        asyncio.run(within())
        assert raised == []

    return run


def hasten(stage):
    """Time passes, and its first run is at work still."""
    stage.sandboxes[0]._hasten(stage.sandboxes[0]._action)


def test_the_end_of_a_sandbox_comes_with_the_end_of_what_ran_in_it(play):
    # Whoever hears of the one may be gone before he could hear of the other.
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1)
        await stage.go_on()
        worker.take()
        init.sock.shutdown(socket.SHUT_RDWR)
        await stage.go_on()
        assert stage.outcome(1) == "died"
        last = [[type(each.observation if isinstance(each, Said) else each) for each in frame]
                for frame in stage.frames if frame][-1]  # fmt: skip
        assert last[-3:] == [Error, End, Closed]

    play(script)


@pytest.mark.parametrize(("status", "kind"), [(3 << 8, "died"), (signal.SIGKILL, "protocol")])
def test_a_death_that_is_heard_of_late_is_a_death_all_the_same(play, status, kind):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1)
        await stage.go_on()
        worker.take()
        worker.sock.close()
        await asyncio.sleep(2 * supervisor.LAST_BREATH)
        await stage.go_on()
        assert [each.signal for each in init.signals] == [signal.SIGKILL]
        init.die(worker, status)
        await stage.go_on()
        assert stage.outcome(1) == kind

    play(script)


def test_whatever_a_worker_says_of_its_initializer_nobody_waits_for_it_any_more(play):
    async def script(stage):
        stage.session.obey(Open(LANE + 1, "reuse", initializer=Cells([b"1"])))
        stage.session.obey(Run(1, LANE + 1, PickledCall(b"x"), number=1))
        await stage.go_on()
        (worker,) = stage.inits[0].workers.values()
        worker.say(wire.Done(0, Error("payload", "it is not so"), End(0.0)))
        await stage.go_on()
        told = [each for frame in stage.frames for each in frame if isinstance(each, Broken)]
        assert [each.reason for each in told] == ["the initializer failed: it is not so"]

    play(script)


# ── what goes ahead ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("work", [PickledCall(b"x"), Cells([b"1"])], ids=str)
def test_runs_go_ahead_of_their_turn_and_begin_when_the_one_before_has_ended(play, work):
    async def script(stage):
        _, worker = await stage.first()
        stage.run(1, 2, 3, work=work)
        await stage.go_on()
        assert [stage.begun(i) for i in (1, 2, 3)] == [True, False, False]
        for action in (1, 2, 3):
            assert worker.take() == action
            worker.say_done()
        await stage.go_on()
        assert [stage.outcome(i) for i in (1, 2, 3)] == [1, 2, 3]

    play(script)


@pytest.mark.parametrize("which", ["memory", "output"])
def test_what_reaches_a_limit_at_its_end_ends_alone(play, which):
    limits = Limits("100M", output=10)

    async def script(stage):
        _, worker = await stage.first()
        stage.run(1, 2, 3)
        await stage.go_on()
        assert worker.take() == 1
        if which == "memory":
            worker.say_done(word=200, failure=Failure("MemoryError", "", ""))
        else:
            worker.say_done((b"x" * 11, b""))
            assert worker.take() == 2
        await stage.go_on()
        (ended,) = [each for each in stage.said[1] if isinstance(each, (Result, Error))]
        assert ended.exceeded.which == which
        for action in (2, 3):
            if worker.dead:
                worker = stage.second()
            if worker.has is None:
                assert worker.take() == action
            worker.say_done()
            await stage.go_on()
            assert stage.outcome(action) == action

    play(script, limits=limits)


def test_what_was_displayed_before_it_was_printed_is_heard_before(play):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1)
        await stage.go_on()
        worker.take()
        worker.say(Display(Bundle({"text/plain": "1"})))
        os.write(init.out, b"2")
        for _ in range(2):
            stage.sandboxes[0]._readable("stdout")
        stage.session.send()
        assert [type(each) for each in stage.said[1]] == [Start, Display, Stream]

    play(script)


def test_one_that_writes_more_than_it_may_before_a_display_ends_there(play):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1)
        await stage.go_on()
        worker.take()
        stage.sandboxes[0]._look_away()
        os.write(init.out, b"x" * 11)
        worker.say(wire.Drain(300))
        await stage.go_on()
        assert worker.sock.recv(2) == bytes((300 & 0xFF,))
        assert [each.signal for each in init.signals] == [signal.SIGKILL]

    play(script, limits=Limits(output=10))


@pytest.mark.parametrize(
    ("work", "given"),
    [
        (Cells([b"1"], argv=[b"s.py"]), None),
        (Shell(b"true"), None),
        (PickledCall(LONG), None),
        (Cells([b"1"]), Given(fetch=["a"])),
    ],
    ids=str,
)
def test_nothing_goes_ahead_of_or_behind_what_is_more_than_a_small_run(play, work, given):
    async def script(stage):
        _, worker = await stage.first()
        stage.run(1, work=work, given=given)
        stage.run(2, 3)
        await stage.go_on()
        assert worker.take() == 1
        assert worker.take() is None
        stage.run(4, work=work, given=given)
        worker.say_done()
        for action in (2, 3, 4):
            await stage.go_on()
            worker = stage.second()
            assert worker.take() == action
            worker.say_done()
        await stage.go_on()
        assert [stage.outcome(i) for i in range(5)] == [*range(5)]

    play(script)


# ── what is taken back ──────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["signal", "cancel", "time"])
def test_what_was_taken_back_goes_nowhere_that_is_about_to_be_signalled(play, how):
    """It is taken back while the worker goes on by itself, which makes it look prompt again."""

    async def script(stage):
        init, worker = await stage.first()
        stage.run(1, 2, 3, 4, timeout=1000.0)
        await stage.go_on()
        worker.take()
        worker.say_done()
        assert worker.take() == 2
        stage.run(5)
        if how == "time":
            hasten(stage)
            stage.sandboxes[0]._time_out("timeout")
        else:
            stage.session.obey(Strike(2, signal.SIGINT) if how == "signal" else Cancel(2))
        await stage.go_on()
        assert worker.take() is None
        assert init.signals[0].pid == worker.pid
        worker.has = 2
        worker.say_done()
        init.send_signals()
        for action in (3, 4, 5):
            await stage.go_on()
            worker = stage.second()
            assert worker.take() == action
            worker.say_done()
        await stage.go_on()
        assert [stage.outcome(i) for i in (1, 3, 4, 5)] == [1, 3, 4, 5]

    play(script)


def test_a_worker_may_take_the_next_while_the_first_is_taken_back(play):
    async def script(stage):
        _, worker = await stage.first()
        stage.run(1, 2, 3)
        await stage.go_on()
        runs = stage.sandboxes[0]._worker.runs
        taken = runs._taken

        class Raced:
            calls = 0

            def recv(self, *arguments):
                self.calls += 1
                if self.calls == 2:
                    assert worker.take() == 2
                return taken.recv(*arguments)

        runs._taken = Raced()
        hasten(stage)
        runs._taken = taken
        await stage.go_on()
        assert stage.begun(2)
        worker.say_done()
        for action in (1, 3):
            await stage.go_on()
            assert worker.take() == action
            worker.say_done()
        await stage.go_on()
        assert [stage.outcome(i) for i in (1, 2, 3)] == [1, 2, 3]

    play(script)


def test_what_is_to_run_now_goes_to_its_worker_again(play):
    async def script(stage):
        _, worker = await stage.first()
        stage.run(1, 2)
        await stage.go_on()
        hasten(stage)
        assert worker.take() == 1
        assert worker.take() is None
        worker.say_done()
        await stage.go_on()
        assert worker.take() == 2

    play(script)


# ── deaths ──────────────────────────────────────────────────────────────────


def test_a_worker_that_dies_when_it_is_done_costs_no_other_run(play):
    """Whether its last word or its death is heard first."""

    async def script(stage):
        init, worker = await stage.first()
        stage.run(1, 2, 3)
        await stage.go_on()
        hasten(stage)
        assert worker.take() == 1
        worker.say_done()
        init.die(worker)
        for action in (2, 3):
            await stage.go_on()
            assert stage.second() is not worker
            assert stage.second().take() == action
            stage.second().say_done()
        await stage.go_on()
        assert [stage.outcome(i) for i in (1, 2, 3)] == [1, 2, 3]

    play(script)


@pytest.mark.parametrize("ended", [1, 2, 3])
def test_of_runs_ahead_a_death_costs_the_one_that_has_begun(play, ended):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(*range(1, 6))
        await stage.go_on()
        for action in range(1, ended + 1):
            assert worker.take() == action
            worker.say_done()
        assert worker.take() == ended + 1
        init.die(worker)
        for action in range(ended + 2, 6):
            await stage.go_on()
            assert stage.second().take() == action
            stage.second().say_done()
        await stage.go_on()
        expected = [i if i != ended + 1 else "died" for i in range(6)]
        assert [stage.outcome(i) for i in range(6)] == expected

    play(script)


def test_a_lost_sandbox_costs_what_has_begun_in_it_alone(play):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1, 2, 3, 4)
        await stage.go_on()
        assert worker.take() == 1
        worker.say_done()
        assert worker.take() == 2
        init.sock.shutdown(socket.SHUT_RDWR)
        await stage.go_on()
        assert [stage.outcome(i) for i in (1, 2, 3)] == [1, "died", None]
        for action in (3, 4):
            (worker,) = stage.inits[1].workers.values()
            assert worker.take() == action
            if action == 3:
                worker.say_done()
            await stage.go_on()
        stage.inits[1].sock.shutdown(socket.SHUT_RDWR)
        await stage.go_on()
        assert stage.outcome(4) == "died"

    play(script)


def test_what_was_done_when_its_sandbox_was_lost_has_its_result(play):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1)
        await stage.go_on()
        assert worker.take() == 1
        init.sock.shutdown(socket.SHUT_RDWR)
        worker.say_done()
        await stage.go_on()
        assert stage.outcome(1) == 1

    play(script)


def test_what_a_lost_sandbox_has_not_begun_begins_in_another(play):
    async def script(stage):
        init, _ = await stage.first()
        stage.run(1)
        await stage.go_on()
        assert stage.begun(1), "as far as is known"
        init.sock.shutdown(socket.SHUT_RDWR)
        await stage.go_on()
        (worker,) = stage.inits[1].workers.values()
        assert worker.take() == 1
        worker.say_done()
        await stage.go_on()
        assert stage.outcome(1) == 1

    play(script)


def test_a_run_ends_for_the_reason_for_which_it_was_killed_whatever_is_heard_first(play):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1)
        await stage.go_on()
        worker.take()
        stage.session.obey(Cancel(1))
        await stage.go_on()
        worker.sock.shutdown(socket.SHUT_RDWR)
        await stage.go_on()
        init.send_signals()
        await stage.go_on()
        assert stage.outcome(1) == "cancelled"

    play(script)


def test_what_is_not_wanted_any_more_is_not_run_by_another_process_where_its_own_did_not_begin(
    play,
):
    async def script(stage):
        init, _ = await stage.first()
        stage.run(1)
        await stage.go_on()
        stage.session.obey(Cancel(1))
        await stage.go_on()
        init.send_signals()
        await stage.go_on()
        assert stage.outcome(1) == "cancelled"
        assert stage.second().take() is None

    play(script)


def test_processes_that_die_before_they_begin_anything_are_a_failure_in_the_end(play):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1)
        await stage.go_on()
        for _ in range(supervisor._START_DEATHS):
            assert (stage.outcome(1), len(stage.inits)) == (None, 1)
            init.die(stage.second())
            await stage.go_on()
        assert len(stage.inits) == 2, "that sandbox was given up"
        (worker,) = stage.inits[1].workers.values()
        assert worker.take() == 1

    play(script)


def test_a_process_that_was_found_to_lie_costs_nothing_that_it_has_not_taken(play):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1, 2, 3)
        await stage.go_on()
        assert worker.take() == 1
        worker.has = 7
        worker.say_done()
        await stage.go_on()
        assert [each.signal for each in init.signals] == [signal.SIGKILL]
        # It is quicker than its end.
        worker.has = 1
        worker.say_done()
        await stage.go_on()
        init.send_signals()
        for action in (2, 3):
            await stage.go_on()
            assert stage.second().take() == action
            stage.second().say_done()
        await stage.go_on()
        assert [stage.outcome(i) for i in (2, 3)] == [2, 3]

    play(script)


@pytest.mark.parametrize("then", ["dies", "is done", "stays"])
def test_what_was_taken_out_of_turn_is_ended_with_who_took_it(play, then):
    async def script(stage):
        init, worker = await stage.first()
        stage.run(1, 2, 3, 4)
        await stage.go_on()
        assert [worker.take() for _ in range(3)] == [1, 2, 3]
        if then == "dies":
            init.die(worker)
        elif then == "is done":
            hasten(stage)
            worker.has = 1
            worker.say_done()
            await stage.go_on()
        else:
            hasten(stage)
        await stage.go_on()
        init.send_signals()
        await stage.go_on()
        assert all(stage.outcome(i) in (i, "died", "protocol") for i in (1, 2, 3))
        assert all(stage.outcome(i) != i for i in (2, 3))
        assert stage.second().take() == 4

    play(script)


# ── whatever happens ────────────────────────────────────────────────────────


class Walk:
    """What any workers, signals and client could do one after the other, and what must hold."""

    def __init__(self, stage, dice):
        self.stage, self.dice = stage, dice
        self.added = 0
        self.took = {}  # action -> the worker that took it
        self.gave = set()
        self.wrote = collections.Counter()
        self.unwanted = set()
        self.struck = set()
        self.long = set()  # those that cannot be taken back

    def workers(self):
        return [
            (init, worker)
            for init in self.stage.inits
            for worker in init.workers.values()
            if not worker.dead
        ]

    async def step(self):
        what = self.dice.choice(STEPS)
        if what == "look":
            await asyncio.sleep(0)
            for init in self.stage.inits:
                if self.dice.random() < 0.7:
                    init.obey()
                if self.dice.random() < 0.5:
                    init.send_signals()
        elif what == "add":
            for _ in range(self.dice.randint(1, 6)):
                work = self.dice.choice(WORKS)
                self.stage.run(self.added, work=work)
                if work == PickledCall(LONG):
                    self.long.add(self.added)
                self.added += 1
        elif what == "cancel" and self.took:
            action = self.dice.choice([*self.took, self.added - 1])
            self.unwanted.add(action)
            self.stage.session.obey(Cancel(action))
        elif what == "strike" and self.took:
            action = self.dice.choice([*self.took])
            self.struck.add(action)
            number = self.dice.choice([signal.SIGINT, signal.SIGKILL])
            self.stage.session.obey(Strike(action, number))
        elif what == "lose" and self.dice.random() < 0.3:
            init = self.dice.choice(self.stage.inits or [None])
            if init is not None:
                init.sock.shutdown(socket.SHUT_RDWR)
        elif what == "hasten":
            for sandbox in self.stage.sandboxes:
                if not sandbox._closed:
                    sandbox._hasten(sandbox._action)
                    sandbox._glance.cancel()
                    sandbox._look(sandbox._action)
        elif self.workers():
            self.a_worker_goes_on(what, *self.dice.choice(self.workers()))

    def a_worker_goes_on(self, what, init, worker):
        if what == "die":
            init.die(worker)
        elif what == "write" and worker.has is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(init.out, b"%d\n" % worker.has)
                self.wrote[worker.has] += 1
        elif what == "work" and worker.has is not None:
            action = worker.has
            leaves = self.dice.random() < 0.3
            its = ((None, None), self.dice.randrange(256)) if leaves else (init.take_output(),)
            if worker.say_done(*its):
                self.gave.add(action)
        elif what == "work":
            self.take(worker)

    def take(self, worker):
        action = worker.take()
        if action is not None:
            assert action not in self.took, "it runs twice"
            self.took[action] = worker

    async def end(self):
        """Let all come to its end."""
        for _ in range(400):
            await self.stage.go_on()
            for init in self.stage.inits:
                init.send_signals()
            for init, worker in self.workers():
                self.a_worker_goes_on("work", init, worker)
        for sandbox in self.stage.sandboxes:
            assert sandbox._closed or sandbox._usage._running == 0, "it is watched for ever"
        said = self.stage.said
        for action in range(self.added):
            outcome = self.stage.outcome(action)
            assert outcome is not None, f"nothing was heard of {action}"
            output = b"".join(each.data for each in said[action] if isinstance(each, Stream))
            assert set(output.split()) <= {b"%d" % action}, "that is another's"
            if outcome == action:
                assert action in self.gave
                assert output.count(b"\n") >= self.wrote[action], "some of it is lost"
            elif outcome == "cancelled":
                assert action in self.unwanted
            else:
                assert outcome == "died"
                assert action not in self.gave or action in self.unwanted | self.struck
                assert action in {*self.took} | self.struck | self.long, "it had not begun"


STEPS = [
    *["add"] * 3,
    *["work"] * 9,
    *["look"] * 4,
    *["write"] * 3,
    "cancel",
    "strike",
    "die",
    "hasten",
    "lose",
]
WORKS = [PickledCall(b"x"), Cells([b"1"])] * 6 + [PickledCall(LONG), Cells([b"1"], argv=[b"s.py"])]


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_happens_each_run_begins_once_at_most_and_has_an_outcome_of_its_own(
    play, most, seed
):
    async def script(stage):
        walk = Walk(stage, random.Random(seed))
        for _ in range(250):
            await walk.step()
        await walk.end()

    play(script, most=most)


class Lies(Walk):
    """As `Walk`, but a worker says whatever it likes, whenever it likes."""

    def take(self, worker):
        action = worker.take()
        if action is not None:
            self.took[action] = worker

    def a_worker_goes_on(self, what, init, worker):
        if what == "lie":
            for _ in range(self.dice.randint(1, 4)):
                # It may have been ended for the one before.
                with contextlib.suppress(OSError):
                    worker.sock.send(self.lie())
        elif what == "shut":
            with contextlib.suppress(OSError):
                worker.sock.shutdown(self.dice.choice([socket.SHUT_RD, socket.SHUT_RDWR]))
        else:
            super().a_worker_goes_on(what, init, worker)

    def lie(self):
        dice = self.dice
        numbers = [0, -1, 2**63 - 1, float("nan"), float("inf"), -1e300]
        number = dice.choice([*range(self.added + 2), -1, 2**63 - 1])
        used = End(
            dice.choice(numbers), dice.choice(numbers), dice.choice([0, -1, 2**63 - 1, None])
        )
        failure = Failure(dice.choice(["MemoryError", "OSError", ""]), "[Errno 28] ", "t", True)
        said = dice.choice(
            [
                Result(value=b"\xc1", text="\x1b", exit_code=-(2**63)),
                Result(pickled=b"1", failure=failure),
                *(Error(kind, "lies") for kind in ("payload", "died", "limit", "cancelled")),
            ]
        )
        name = dice.choice(["a", "../a", "/etc/passwd", "", "b/c", "x" * 5000])
        message = dice.choice(
            [
                wire.Done(number, said, used, dice.choice([(b"", b""), (b"x" * 9999, None)])),
                wire.Done(number, said, used, word=number),
                wire.Drain(number),
                wire.Idle(),
                Part(b"x" * dice.choice([0, 9])),
                File(name, b"x" * dice.choice([0, 9, 2000]), dice.random() < 0.5),
                Left(name, dice.choice(["large", "missing", "stopped"])),
                Display(Bundle({"text/plain": "\x1b"}, {"x": b"y"}), name, dice.random() < 0.5),
                Cut("displays", dice.choice([0, -(2**63), 2**64 - 1])),
                wire.Died(number, 9, 0.0, 0),
                wire.RunWork(number, PickledCall(b"x"), None),
            ]
        )
        packed = bytearray(wire.pack(message))
        if dice.random() < 0.2:
            packed[dice.randrange(len(packed))] = dice.randrange(256)
        return packed[: dice.randrange(len(packed))] if dice.random() < 0.1 else packed

    async def end(self):
        """Let all be ended that has not come to its end by itself."""
        for action in range(self.added):
            self.stage.session.obey(Cancel(action))
        for _ in range(100):
            await self.stage.go_on()
            for init in self.stage.inits:
                init.send_signals()
            if self.added == sum(map(self.ends, range(self.added))):
                return
            await asyncio.sleep(0.002)
        raise AssertionError([n for n in range(self.added) if self.ends(n) != 1])

    def ends(self, action):
        said = self.stage.said[action]
        assert all(not isinstance(each, End) for each in said[:-1]), "it goes on after its end"
        return bool(said) and isinstance(said[-1], End)


LIES = [*["lie"] * 5, *["add"] * 2, *["work"] * 3, *["look"] * 6]
LIES += ["write", "cancel", "strike", "die", "hasten", "lose", "shut"]
GIVEN = [None, None, Given(["f"], {"A": "b"}, ["*", "b/*"]), Given(fetch=["a"])]


@pytest.mark.parametrize("state", ["fresh", "reuse", "session"])
@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_whatever_workers_say_each_run_has_one_end_and_nothing_is_raised(
    play, monkeypatch, state, seed
):
    monkeypatch.setitem(globals(), "STEPS", LIES)

    async def script(stage):
        walk = Lies(stage, random.Random(seed))
        add = stage.run
        stage.run = lambda *its, **more: add(*its, given=walk.dice.choice(GIVEN), **more)
        for _ in range(200):
            await walk.step()
        await walk.end()

    play(script, state=state, most=2)


def test_whoever_writes_on_and_on_is_heard_out_to_where_it_was():
    async def script():
        ours, theirs = socket.socketpair()
        heard = []

        def hear(message):
            heard.append(message)
            theirs.send(wire.pack(wire.Idle()))

        channel = supervisor.Channel(ours, wire.FromWorker, hear, heard.append)
        theirs.send(wire.pack(wire.Idle()) * 3)
        channel.read_on(lambda: True)
        assert heard == [wire.Idle()] * 3
        channel.read_on(lambda: False)
        channel.close()
        channel.read_on(lambda: True)
        theirs.close()
        assert len(heard) == 3

    asyncio.run(script())


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
@pytest.mark.parametrize("size", [10, wire.PACKET, 2_000_000])
def test_a_run_arrives_whole_whatever_its_worker_reads_it_from(kind, size):
    async def script():
        filled, taken = socket.socketpair(socket.AF_UNIX, kind)
        if kind == socket.SOCK_STREAM:
            # As little as macOS gives.
            filled.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        runs = supervisor._Runs(filled, taken)
        worker = wire.Unpacker(wire.RunWork)
        run = wire.RunWork(1, PickledCall(os.urandom(size)), None)
        for _ in range(3):
            runs.send(run)
            heard = []
            while not heard:
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    heard = worker.feed(taken.recv(wire.PACKET, socket.MSG_DONTWAIT))
            assert heard == [run]
        runs.close()

    asyncio.run(asyncio.wait_for(script(), 20))


@pytest.mark.skipif(not posix.KEEPS_PACKETS, reason="nothing goes ahead")
def test_what_goes_ahead_is_sent_together_and_before_the_first_of_it_begins():
    async def script():
        filled, taken = posix.packets()
        runs = supervisor._Runs(filled, taken)
        for number in (1, 2, 3):
            assert runs.hold(wire.RunWork(number, PickledCall(b""), None))
        with pytest.raises(BlockingIOError):
            taken.recv(wire.PACKET, socket.MSG_DONTWAIT)
        runs.begin(1)
        for number in (1, 2, 3):
            assert wire.unpack_run(taken.recv(wire.PACKET)).number == number
        assert runs.take_back() == set()
        runs.close()

    asyncio.run(script())


@pytest.mark.skipif(not posix.KEEPS_PACKETS, reason="nothing goes ahead")
def test_what_goes_ahead_and_finds_no_room_is_sent_later_or_taken_back():
    async def script():
        filled, taken = posix.packets()
        runs = supervisor._Runs(filled, taken)
        held = []
        while runs.hold(wire.RunWork(len(held), PickledCall(bytes(50_000)), None)):
            held.append(len(held))
            runs.send_held()
        # The last one waits, and nothing behind it.
        assert len(held) > 2
        assert wire.unpack_run(taken.recv(wire.PACKET)).number == 0
        runs.send_held()
        assert wire.unpack_run(taken.recv(wire.PACKET)).number == 1
        assert runs.hold(wire.RunWork(len(held), PickledCall(b""), None))
        assert runs.take_back() == {*held[2:], len(held)}
        with pytest.raises(BlockingIOError):
            taken.recv(wire.PACKET, socket.MSG_DONTWAIT)
        assert runs.hold(wire.RunWork(99, PickledCall(b""), None))
        runs.begin(99)
        assert wire.unpack_run(taken.recv(wire.PACKET)).number == 99
        runs.close()

    asyncio.run(script())


@pytest.mark.parametrize("error", [OverflowError("too many bytes"), MemoryError()], ids=repr)
def test_a_run_that_no_process_can_be_given_ends_and_no_other_does(play, error, monkeypatch):
    real = wire.pack_long

    def pack_long(message):
        if isinstance(message, wire.RunWork) and message.number in (2, 3, 5):
            raise error
        return real(message)

    monkeypatch.setattr(wire, "pack_long", pack_long)

    async def script(stage):
        _, worker = await stage.first()
        stage.run(1)
        stage.run(2, 3, work=PickledCall(LONG))
        stage.run(4)
        await stage.go_on()
        assert worker.take() == 1
        worker.say_done()
        await stage.go_on()
        # Alone, and where nothing else is to come.
        assert worker.take() == 4
        worker.say_done()
        await stage.go_on()
        stage.run(5, work=PickledCall(LONG))
        await stage.go_on()
        assert [stage.outcome(i) for i in range(1, 6)] == [1, "payload", "payload", 4, "payload"]
        assert not stage.begun(5)
        stage.run(6)
        await stage.go_on()
        assert worker.take() == 6
        worker.say_done()
        await stage.go_on()
        assert stage.outcome(6) == 6

    play(script)
