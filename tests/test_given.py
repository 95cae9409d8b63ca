"""Files and variables that tasks are given, and files that they give back: whole, bounded, checked."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time

import family
import msgspec
import psutil
import pytest
import tenacity

from mentis_pool import (
    CellError,
    CellTimeout,
    PayloadError,
    ProtocolError,
    RuntimeRejected,
    SandboxDied,
    SandboxError,
    SandboxExecutor,
    files,
)
from mentis_pool.files import LEFT, PIECE

MB = 1024 * 1024
READ = "open('data').read()"
HASH = "import hashlib; hashlib.sha256(open('data', 'rb').read()).hexdigest()"


@pytest.fixture(params=["embedded", "served"])
def executor(request):
    name = "embedded" if request.param == "embedded" else "served_executor"
    return request.getfixturevalue(name)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 100 MB, and its hash."""
    path = tmp_path_factory.mktemp("large") / "data"
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(100):
            piece = os.urandom(MB)
            digest.update(piece)
            file.write(piece)
    yield path, digest.hexdigest()
    path.unlink()


# ── there and back ──────────────────────────────────────────────────────────


def test_files_are_there_before_the_cell_and_come_back_after_it(executor, tmp_path):
    (tmp_path / "here").write_bytes(b"from a path")
    view = executor.options(
        files={"data": tmp_path / "here", "in/a.bin": b"\x80", "b": str(tmp_path / "here")},
        fetch=["out/*.png", "in/*"],
    )
    result = view.submit(
        f"import os; os.mkdir('out')\nfor n in ('a.png', 'b.txt'):\n"
        f"    with open('out/' + n, 'w') as f: f.write(n)\n{READ}, open('b').read()"
    ).result()
    assert result.value == ("from a path",) * 2
    assert result.files == {"in/a.bin": b"\x80", "out/a.png": b"a.png"}
    assert result.files_left == {}


def test_calls_and_commands_have_them_too(executor):
    def double(name):
        with open(name) as file, open("twice", "w") as twice:
            twice.write(2 * file.read())
        return os.environ["WORD"]

    view = executor.options(files={"data": b"ab"}, fetch=["twice", "no"], env={"WORD": "é"})
    call = view.submit(double, "data")
    assert call.result() == "é"
    assert (call.files, call.files_left) == ({"twice": b"abab"}, {"no": LEFT["missing"]})
    result = view.shell("cat data data > twice; echo $WORD; exit 3").result()
    assert (result.exit_code, result.stdout, result.files) == (3, "é\n", {"twice": b"abab"})


def test_a_script_has_them_too(executor):
    view = executor.options(files={"data": b"ab"}, fetch=["out"], env={"A": "1"}, argv=["s.py"])
    result = view.submit(
        "import os, sys\nopen('out', 'w').write(open('data').read() + os.environ['A'])\nsys.exit()"
    ).result()
    assert result.files == {"out": b"ab1"}


def test_a_call_that_asks_for_none_has_none(executor):
    call = executor.submit(os.getpid)
    call.result()
    assert (call.files, call.files_left) == ({}, {})


def test_files_of_a_task_that_failed_come_as_well(executor):
    view = executor.options(fetch=["out", "none"])
    error = view.submit("open('out', 'w').write('so far'); 1 / 0").exception()
    assert isinstance(error, ZeroDivisionError)
    assert error.result.files == {"out": b"so far"}
    assert error.result.files_left == {"none": LEFT["missing"]}


def test_many_small_files_arrive(executor):
    given = {f"{i % 7}/{i}": str(i).encode() for i in range(2500)}
    result = executor.options(files=given, fetch=["*/*"]).submit("1").result()
    assert result.files == given


def resident(process):
    return process.memory_info().rss


class Peak(threading.Thread):
    """Looks how much memory a process has, and remembers the most."""

    def __init__(self, pid):
        super().__init__()
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self.before = self.most = resident(self._process)

    def run(self):
        while not self._ended.wait(0.005):
            self.most = max(self.most, resident(self._process))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self.join()

    @property
    def grown(self):
        return (self.most - self.before) / MB


CLIENT = """
import hashlib, resource, sys
from mentis_pool import SandboxExecutor
path, = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with SandboxExecutor(1) as executor:
    executor.submit('1').result()
    before = peak()
    executor.options(files={'data': path}).submit("1").result()
    print(peak() - before)
    result = executor.options(files={'data': path}, fetch=['data']).submit("1").result()
    print(peak() - before)
    print(hashlib.sha256(result.files['data']).hexdigest())
"""


def test_100_mb_each_way_are_in_the_clients_memory_once_at_most(large):
    path, digest = large
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, path], capture_output=True, text=True, check=True
    )
    up, both, arrived = done.stdout.split()
    assert arrived == digest
    assert float(up) < 30, "it is read as it is sent"
    assert float(both) < 100 + 60


def test_100_mb_each_way_are_not_kept_in_the_runtime(large):
    path, digest = large
    with SandboxExecutor(1) as executor:
        executor.submit("1").result()
        with Peak(family.runtime_of(executor).pid) as peak:
            view = executor.options(files={"data": path}, fetch=["data"])
            result = view.submit(HASH).result()
        assert result.value == digest
        assert hashlib.sha256(result.files["data"]).hexdigest() == digest
        assert peak.grown < 60


def test_two_tasks_at_once_each_have_their_own(executor):
    contents = [os.urandom(3 * MB + i) for i in range(4)]
    futures = [
        executor.options(files={"data": content}, fetch=["data"]).submit(HASH)
        for content in contents
    ]
    for future, content in zip(futures, contents, strict=True):
        result = future.result()
        assert result.value == hashlib.sha256(content).hexdigest()
        assert result.files == {"data": content}


# ── nothing stays ───────────────────────────────────────────────────────────


def test_in_a_kept_process_what_was_given_goes_and_what_was_written_stays(reuse):
    view = reuse.options(files={"data": b"1", "in/a": b"2"}, env={"MARK": "1", "HOME": "/"})
    view.submit("open('written', 'w').close()").result()
    found = reuse.submit("import os; sorted(os.listdir()), os.environ.get('MARK')").result().value
    assert found == (["written"], None)
    assert reuse.submit("os.remove('written') or os.environ['HOME']", os=os).result().value != "/"


def test_a_call_in_a_kept_process_finds_its_files_wherever_the_last_one_went(reuse):
    reuse.submit(os.chdir, "/").result()
    view = reuse.options(files={"data": b"1"}, fetch=["data"])
    call = view.submit(os.path.getsize, "data")
    assert (call.result(), call.files) == (1, {"data": b"1"})
    assert reuse.submit(os.listdir).result() == []


def test_a_session_keeps_its_files_but_not_its_variables(executor):
    with executor.session() as session:
        view = session.options(files={"data": b"1"}, fetch=["more"], env={"MARK": "1"})
        assert view.submit("import os; os.environ['MARK']").result().value == "1"
        got = session.submit(f"open('more', 'w').write('2'); {READ}, os.environ.get('MARK')")
        assert got.result().value == ("1", None)
        again = session.options(fetch=["*"]).submit("os.chdir('/')").result()
        assert again.files == {"data": b"1", "more": b"2"}
        replaced = session.options(files={"data": b"3"}, fetch=["data"]).submit("1").result()
        assert replaced.files == {"data": b"3"}


def test_a_task_that_is_run_again_has_its_files_again(executor):
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(2), retry=tenacity.retry_if_exception_type(SandboxDied)
    )
    view = executor.options(files={"data": b"x" * (2 * PIECE)}, fetch=["out"], retries=retrying)
    future = view.submit(
        "import os; open('out', 'w').write(str(len(open('data').read()))); os._exit(1)"
    )
    error = future.exception()
    assert isinstance(error, SandboxDied)
    assert error.result.attempt == 2
    assert error.result.files == {}


# ── what goes wrong ─────────────────────────────────────────────────────────


def test_a_path_that_cannot_be_read_fails_that_task_alone(executor, tmp_path):
    fine = executor.options(files={"data": b"1"}).submit(READ)
    wrong = executor.options(files={"ok": b"1", "data": tmp_path / "none"}).submit("1")
    with pytest.raises(PayloadError, match=r"'data' cannot be read from '.*/none': No such file"):
        wrong.result()
    assert fine.result().value == "1"


def test_in_a_session_it_costs_no_state(executor, tmp_path):
    with executor.session() as session:
        session.submit("x = 1").result()
        with pytest.raises(PayloadError):
            session.options(files={"data": tmp_path / "none"}).submit("1").result()
        assert session.submit("x").result().value == 1


def test_a_file_for_which_there_is_no_place_is_named(executor):
    with executor.session() as session:
        session.submit("import os; os.mkdir('data')").result()
        with pytest.raises(PayloadError, match="'data' cannot be put into the sandbox"):
            session.options(files={"data": bytes(3 * PIECE), "b": b""}).submit("1").result()
        # What was on its way then is nobody's.
        assert session.options(files={"b": b"b"}, fetch=["*"]).submit("1").result().files == {
            "b": b"b"
        }


def test_what_is_over_the_limit_is_an_error_that_names_it(executor):
    view = executor.options(fetch=["*"])
    cell = f"open('small', 'w').close(); os.truncate(open('large', 'wb').name, {files.MAX_FETCHED + 1})"
    with pytest.raises(
        PayloadError, match=f"'large' is not fetched: .* {files.MAX_FETCHED} bytes"
    ) as e:
        view.submit("import os; " + cell).result()
    assert e.value.result.files == {"small": b""}
    assert e.value.result.files_left == {"large": LEFT["large"]}


def test_links_are_not_followed(executor):
    result = (
        executor.options(fetch=["**"])
        .submit(
            "import os; os.symlink('/etc/passwd', 'a'); os.symlink('/etc', 'b'); os.mkfifo('c')"
        )
        .result()
    )
    assert result.files == {}
    assert result.files_left == {"a": LEFT["link"], "b": LEFT["link"], "c": LEFT["special"]}


FORGED = """
from mentis_pool.observations import File, Left
from mentis_pool.runtime import task_files
def fetch(self, directory, patterns):
    for said in {said}:
        self._say(said)
task_files.Fetching.fetch = fetch
"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[File('../../evil', b'', True)]", "must be relative"),
        ("[File('/etc/passwd', b'', True)]", "must be relative"),
        ("[File('out/../../a', b'', True)]", "must be relative"),
        ("[File('other', b'', True)]", "not asked for"),
        ("[File('out/a', b'', True)] * 2", "not asked for"),
        ("[File('out/a', b'x', False)]", "has 1 bytes"),
        ("[File('out/a', bytes(2**20), False)] * 257", "over the limit"),
        ("[File('out/%d' % i, b'', True) for i in range(10001)]", "more files"),
        ("[Left('x', 'link')] * 10001", "left out more"),
        ("[Left('x', 'whatever')]", "no message"),
    ],
)
def test_what_a_hostile_sandbox_sends_is_not_taken(executor, said, reason):
    view = executor.options(fetch=["out/*"])
    with pytest.raises(SandboxError, match=reason) as caught:
        view.submit(FORGED.format(said=said)).result()
    assert set(caught.value.result.files) <= {f"out/{name}" for name in ("a", *range(10000))}
    assert executor.submit("1 + 1").result().value == 2


SENT_BY_THE_CELL = """
import sys
from mentis_pool.observations import File
frame = sys._getframe()
while frame.f_code.co_name != '_obey':
    frame = frame.f_back
frame.f_locals['self']._say(File('a', b'', True))
"""


@pytest.mark.parametrize("given", [{}, {"env": {"A": "1"}}, {"fetch": ["b"]}])
def test_a_sandbox_sends_no_file_that_it_was_not_asked_for(executor, given):
    with pytest.raises(SandboxError, match=r"it sent a file|'a' was not asked for"):
        executor.options(**given).submit(SENT_BY_THE_CELL).result()
    assert executor.submit("1 + 1").result().value == 2


def test_the_client_does_not_believe_the_runtime_either(embedded):
    """As if the runtime were hostile: what it passes on was not asked for."""
    view = embedded.options(fetch=["b"])
    view._settings.given  # noqa: B018 - what the runtime is told is made of them
    asked = msgspec.structs.replace(view._settings.given, fetch=["a"])
    object.__setattr__(view._settings, "given", asked)
    with pytest.raises(ProtocolError, match="'a' was not asked for") as caught:
        view.submit("open('a', 'w').close()").result()
    assert caught.value.result.files == {}
    with pytest.raises(ProtocolError, match="'a' was not asked for"):
        view.submit(lambda: open("a", "w").close()).result()


# ── it ends meanwhile ───────────────────────────────────────────────────────


@pytest.fixture
def slow(monkeypatch):
    """Files are read slowly: a piece each tenth of a second; set once the first has been."""
    from mentis_pool.upload import Upload

    real = Upload.next
    begun = threading.Event()

    def read(self):
        put = real(self)
        begun.set()
        time.sleep(0.1)
        return put

    monkeypatch.setattr(Upload, "next", read)
    return begun


LONG = {"data": bytes(100 * PIECE)}


def test_a_task_is_killed_while_its_files_are_on_their_way(executor, slow):
    future = executor.options(files=LONG).submit("1")
    assert slow.wait(20)
    assert future.kill()
    assert isinstance(future.exception(20), SandboxDied)
    assert executor.submit("1 + 1").result().value == 2


def test_it_is_interrupted_at_once(executor, slow):
    with executor.session() as session:
        session.submit("x = 1").result()
        future = session.options(files=LONG).submit("1")
        assert slow.wait(20)
        began = time.monotonic()
        assert future.interrupt()
        with pytest.raises(CellError, match="KeyboardInterrupt"):
            future.result(20)
        assert time.monotonic() - began < 3
        assert session.submit("x").result().value == 1, "nothing is lost"
        small = session.options(files={"data": b"1"}).submit(READ)
        assert small.result().value == "1"


def test_its_time_is_limited(executor, slow):
    future = executor.options(files=LONG, timeout=0.5).submit("1")
    assert isinstance(future.exception(20), CellTimeout)
    assert executor.submit("1 + 1").result().value == 2


SLOW_FETCH = """
import time
from mentis_pool.runtime import task_files
def found(directory, patterns):
    for name in range(1000):
        time.sleep(0.02)
        yield str(name), "link"
task_files._found = found
x = 1
"""


def test_a_fetch_is_within_the_time_limit_and_can_be_interrupted(executor):
    with executor.session() as session:
        session.submit(SLOW_FETCH).result()
        view = session.options(fetch=["*"])
        late = view.options(timeout=0.5).submit("print('done')")
        assert isinstance(late.exception(20), CellTimeout)
        left = late.exception().result.files_left
        assert next(iter(left.values())) == LEFT["link"]
        assert list(left.values())[-1] == LEFT["stopped"]
        future = view.submit("print('done', flush=True)")
        while "done" not in future.stdout:
            time.sleep(0.01)
        assert future.interrupt()
        stopped = future.result(20)
        assert list(stopped.files_left.values())[-1:] == [LEFT["stopped"]]
        assert session.submit("x").result().value == 1, "nothing is lost"


def test_it_is_cancelled_before_it_began(embedded, slow):
    busy = [embedded.submit("import time; time.sleep(1)") for _ in range(2)]
    future = embedded.options(files=LONG).submit("1")
    assert future.cancel()
    assert [b.result().ok for b in busy] == [True, True]
    assert not slow.is_set(), "nothing of it was read"


def test_its_worker_dies_while_it_takes_them(embedded, slow):
    future = embedded.options(files=LONG).submit("1")
    assert slow.wait(20)
    before = embedded.submit("import os; os.getpid()").result()
    assert before.ok
    for init in family.zygote_of(embedded).children():
        for worker in init.children():
            worker.kill()
    assert isinstance(future.exception(20), SandboxDied)
    # A worker of the other sandbox may be about to die with this one in its hands.
    again = embedded.options(files={"data": b"1"}, idempotent=True).submit(READ)
    assert again.result().value == "1"


def test_a_worker_that_does_not_take_them_holds_up_nobody(executor, monkeypatch):
    from mentis_pool.upload import Upload

    real, read = Upload.next, []

    def counted(self):
        read.append(self.action)
        return real(self)

    monkeypatch.setattr(Upload, "next", counted)
    view = executor.options(files={"data": bytes(20 * PIECE)})
    with executor.session() as session:
        session.submit(
            "from mentis_pool.runtime.worker import Worker\nimport time\n"
            "Worker._take_files = lambda self: time.sleep(60)"
        ).result()
        stuck = session.options(files={"data": bytes(20 * PIECE)}, timeout=1).submit("1")
        assert view.submit("1").result().ok
        assert isinstance(stuck.exception(20), CellTimeout)
        # What was read of its file is in no more places than sockets' buffers.
        assert sorted(map(read.count, set(read))) == [1, 21]


def test_a_client_that_shuts_down_meanwhile_ends(slow):
    executor = SandboxExecutor(1)
    future = executor.options(files=LONG).submit("1")
    assert slow.wait(20)
    executor.kill_workers()
    executor.shutdown()
    assert isinstance(future.exception(0), SandboxDied)


def test_the_runtime_dies_meanwhile(slow):
    with SandboxExecutor(1) as executor:
        future = executor.options(files=LONG, retries=0).submit("1")
        assert slow.wait(20)
        family.runtime_of(executor).kill()
        assert isinstance(future.exception(20), SandboxError)
        assert executor.options(files={"data": b"1"}).submit(READ).result().value == "1"


# ── options ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"files": {"../a": b""}}, ValueError, "relative"),
        ({"files": {"a": b"", "a/b": b""}}, ValueError, "cannot be a file and have"),
        ({"files": {"a": 1}}, TypeError, "bytes or as a path, not int 1"),
        ({"files": {1: b""}}, TypeError, "files has int 1 where"),
        ({"fetch": "*.png"}, TypeError, "not one text"),
        ({"fetch": ["/a"]}, ValueError, "relative"),
        ({"fetch": ["../*"]}, ValueError, "relative"),
        ({"fetch": [b"a"]}, TypeError, "fetch has"),
        ({"env": {"A=": "1"}}, ValueError, "'A='"),
        ({"env": {"A": "\0"}}, ValueError, "'A'"),
        ({"env": {"A": 1}}, TypeError, "env has int 1 where"),
    ],
)
def test_what_cannot_be_is_refused_at_once(embedded, given, error, says):
    with pytest.raises(error, match=says):
        embedded.options(**given)


def test_a_path_is_that_of_when_it_was_given(embedded, tmp_path, monkeypatch):
    (tmp_path / "here").write_text("1")
    monkeypatch.chdir(tmp_path)
    view = embedded.options(files={"data": "here"})
    monkeypatch.chdir("/")
    assert view.submit(READ).result().value == "1"


def test_options_are_kept_one_by_one(embedded):
    view = embedded.options(files={"data": b"1"}).options(env={"A": "2"}).options(fetch=["data"])
    result = view.submit("import os; os.environ['A']").result()
    assert (result.value, result.files) == ("2", {"data": b"1"})
    assert view.options(files={}, fetch=[]).submit("import os; os.listdir()").result().value == []


@pytest.mark.parametrize(
    ("given", "name"),
    [({"files": LONG}, "files="), ({"fetch": ["*"]}, "fetch="), ({"env": {"A": "1"}}, "env=")],
)
def test_an_original_runtime_has_none_of_it(original_executor, given, name):
    with pytest.raises(RuntimeRejected, match=name):
        original_executor.options(**given).submit("1").result()
