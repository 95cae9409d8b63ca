"""Which control group may be used, what is done in it, and that nothing is left there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import end, serve

from mentis_pool import (
    Limits,
    MentisPoolError,
    MentisSandbox,
    ResourceLimitExceeded,
    SandboxExecutor,
)
from mentis_pool.observations import Exceeded
from mentis_pool.runtime import groups, meter, program, watch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's")

MIB = 1 << 20

# ── where our own is ────────────────────────────────────────────────────────

V1 = "8:pids:/\n4:cpu,memory:/user/me\n1:name=systemd:/\n"
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,cpu,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
"""
V2_MOUNTS = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


def test_in_the_first_version_it_is_that_of_the_memory_controller():
    its = ("/sys/fs/cgroup/memory/user/me", 1, False)
    assert groups.own_group(V1, V1_MOUNTS) == its


def test_in_the_second_version_there_is_one():
    assert groups.own_group("0::/user/me\n", V2_MOUNTS) == ("/sys/fs/cgroup/user/me", 2, False)
    assert groups.own_group("0::/\n", V2_MOUNTS) == ("/sys/fs/cgroup", 2, True)


def test_where_both_are_mounted_the_first_has_the_controller():
    unified = V2_MOUNTS.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    for mounts in (V1_MOUNTS + unified, unified + V1_MOUNTS):
        assert groups.own_group(V1 + "0::/\n", mounts) == groups.own_group(V1, V1_MOUNTS)


def test_where_the_first_has_it_not_the_second_does():
    assert groups.own_group("8:pids:/\n0::/me\n", V1_MOUNTS + V2_MOUNTS) == (
        "/sys/fs/cgroup/me",
        2,
        False,
    )


def test_it_is_found_below_what_is_mounted_of_the_tree():
    mounts = V2_MOUNTS.replace("0:38 / ", "0:38 /docker/x ")
    assert groups.own_group("0::/docker/x/y\n", mounts) == ("/sys/fs/cgroup/y", 2, False)
    assert groups.own_group("0::/elsewhere\n", mounts) is None
    # Of a process outside of the namespace that looks.
    assert groups.own_group("0::/../me\n", V2_MOUNTS) is None


# ── whether it may be used ──────────────────────────────────────────────────

FILES = {
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
    "cgroup.controllers": "memory pids",
    "cgroup.type": "domain",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.events": "",
    "memory.limit_in_bytes": "",
    "memory.memsw.limit_in_bytes": "",
    "memory.oom_control": "",
    "memory.max_usage_in_bytes": "0",
}
"""What a group has, of both versions."""


def group(path, **files):
    """A directory in the place of a control group; None for a file that it has not."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in {**FILES, **{k.replace("_", ".", 1): v for k, v in files.items()}}.items():
        if text is not None:
            (path / name).write_text(text)
    return path


@pytest.fixture
def marked(monkeypatch):
    """A set of groups that systemd says it has handed over; not each file system takes the mark."""
    its = set()

    def getxattr(path, name):
        if path in map(str, its) and name == "user.delegate":
            return b"1"
        raise OSError(errno.ENODATA, "none")

    monkeypatch.setattr(os, "getxattr", getxattr)
    return its


def second(tmp_path, own):
    """`place` for a process in this group of a tree that is mounted at a path."""
    mounts = f"41 31 0:38 / {tmp_path} rw,relatime - cgroup2 cgroup2 rw\n"
    return groups.place(f"0::{own}\n", mounts)


def first(tmp_path, own):
    mounts = f"35 31 0:32 / {tmp_path} rw,relatime - cgroup cgroup rw,memory\n"
    return groups.place(f"4:memory:{own}\n", mounts)


def test_without_one_there_is_nothing_to_use():
    with pytest.raises(groups.NotHanded, match="is to be seen"):
        groups.place("", "")


def test_of_the_first_version_it_is_our_own_but_never_the_root(tmp_path):
    group(tmp_path, release_agent=None)
    (tmp_path / "release_agent").touch()
    me = group(tmp_path / "me")
    assert first(tmp_path, "/me") == groups.Place(str(me), 1)
    with pytest.raises(groups.NotHanded, match="the whole machine's"):
        first(tmp_path, "/")


def test_one_that_cannot_be_written_is_not_used(tmp_path):
    group(tmp_path / "me", cgroup_procs=None)
    with pytest.raises(groups.NotHanded, match=r"me/cgroup\.procs cannot be written"):
        first(tmp_path, "/me")


def test_of_the_second_version_our_own_is_used_where_it_is_marked_and_we_are_alone(
    tmp_path, marked
):
    group(tmp_path)
    me = group(tmp_path / "me", cgroup_procs=f"{os.getpid()}\n")
    with pytest.raises(groups.NotHanded, match=r"was not delegated \(systemd: Delegate=yes\)"):
        second(tmp_path, "/me")
    marked.add(me)
    assert second(tmp_path, "/me") == groups.Place(str(me), 2, moves=True)
    child = subprocess.Popen(["sleep", "60"])
    try:
        (me / "cgroup.procs").write_text(f"{os.getpid()}\n{child.pid}\n")
        assert second(tmp_path, "/me").moves
        (me / "cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")
        with pytest.raises(groups.NotHanded, match=f"other processes .*{os.getppid()} for one"):
            second(tmp_path, "/me")
    finally:
        child.kill()
        child.wait()


def test_the_one_above_is_used_where_it_is_marked_and_has_no_process(tmp_path, marked):
    unit = group(tmp_path / "unit")
    # Its other processes are of no concern.
    group(unit / "app", cgroup_procs=f"{os.getpid()}\n{os.getppid()}\n")
    marked.add(unit)
    assert second(tmp_path, "/unit/app") == groups.Place(str(unit), 2)
    (unit / "cgroup.procs").write_text("1\n")
    with pytest.raises(groups.NotHanded, match="app was not delegated"):
        second(tmp_path, "/unit/app")


def test_that_a_group_is_our_users_hands_nothing_over_where_the_one_above_is_too(tmp_path, marked):
    # So it is with all that a user's systemd makes, which is systemd's own to use.
    group(tmp_path / "slice" / "scope", cgroup_procs=f"{os.getpid()}\n")
    with pytest.raises(groups.NotHanded, match="was not delegated"):
        second(tmp_path, "/slice/scope")


def test_what_was_given_to_our_user_in_anothers_is_used(tmp_path, marked, monkeypatch):
    me = group(tmp_path / "me", cgroup_procs=f"{os.getpid()}\n")
    monkeypatch.setattr(groups, "_owned", lambda path: path == str(me))
    assert second(tmp_path, "/me") == groups.Place(str(me), 2, moves=True)


def test_the_root_of_a_namespace_is_ours_and_that_of_the_machine_is_not(tmp_path, marked):
    group(tmp_path, cgroup_procs=f"{os.getpid()}\n")
    assert second(tmp_path, "/") == groups.Place(str(tmp_path), 2, moves=True)
    (tmp_path / "cgroup.type").unlink()
    with pytest.raises(groups.NotHanded, match="was not delegated"):
        second(tmp_path, "/")


def test_without_its_controller_it_is_of_no_use(tmp_path, marked):
    marked.add(group(tmp_path / "unit", cgroup_controllers="cpu pids"))
    group(tmp_path / "unit" / "app")
    with pytest.raises(groups.NotHanded, match="unit has no memory controller"):
        second(tmp_path, "/unit/app")


# ── plain values ────────────────────────────────────────────────────────────


def test_the_bound_leaves_room_for_what_is_not_counted_as_memory():
    limits = Limits(512 * MIB, disk=256 * MIB)
    assert groups.most(limits, False) == (512 + 64 + 32) * MIB
    assert groups.most(limits, True) == (512 + 64 + 32 + 256) * MIB


def test_what_has_no_limit_has_no_bound():
    assert groups.most(Limits(None), False) is None
    assert groups.most(Limits(disk=None), True) is None
    assert groups.most(Limits(disk=None), False) is not None


def test_kills_for_the_own_limit_are_told_from_those_for_one_above():
    said = "low 0\nhigh 0\nmax 12\noom {}\noom_kill {}\noom_group_kill 0\n"
    assert groups.kills(said.format(1, 3), 2) == 3
    assert groups.kills(said.format(0, 3), 2) == 0
    assert groups.kills(said.format(1, 0), 2) == 0
    assert groups.kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 1) == 2
    # Before Linux 4.13 it does not say.
    assert groups.kills("oom_kill_disable 0\nunder_oom 0\n", 1) == 0


# ── what is done, in directories that behave like groups ────────────────────


class Tree:
    """As the kernel has it: a group has its files at once, and goes where it has no process."""

    def __init__(self, base, monkeypatch):
        self.base = base
        self._real = os.mkdir, os.rmdir
        monkeypatch.setattr(os, "mkdir", self.mkdir)
        monkeypatch.setattr(os, "rmdir", self.rmdir)
        monkeypatch.setattr(groups, "_write", self.write)

    def mkdir(self, path, mode=0o777):
        self._real[0](path, mode)
        for name, text in FILES.items():
            Path(path, name).write_text(text)

    def rmdir(self, path):
        if not Path(path).is_dir():
            raise FileNotFoundError(path)
        if Path(path, "cgroup.procs").read_text() or any(p.is_dir() for p in Path(path).iterdir()):
            raise OSError(errno.EBUSY, "it is in use", path)
        for each in Path(path).iterdir():
            each.unlink()
        self._real[1](path)

    def write(self, path, name, text):
        file = Path(path, name)
        if not file.exists():
            raise FileNotFoundError(str(file))
        if name == "cgroup.subtree_control":
            if text == "+memory" and Path(path, "cgroup.procs").read_text():
                raise OSError(errno.EBUSY, "it has processes", path)
            text = "memory" if text == "+memory" else ""
        if name == "cgroup.procs":
            if Path(path, "cgroup.subtree_control").read_text():
                raise OSError(errno.EBUSY, "its children have controllers", path)
            self.forget(text)
            text = file.read_text() + f"{text}\n"
        file.write_text(text)

    def forget(self, pid):
        """A process is gone, or elsewhere."""
        for file in self.base.rglob("cgroup.procs"):
            lines = file.read_text().splitlines()
            file.write_text("".join(f"{line}\n" for line in lines if line != str(pid)))

    def groups(self):
        return {str(p.relative_to(self.base)) for p in self.base.rglob("*") if p.is_dir()}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    return Tree(group(tmp_path / "base"), monkeypatch)


def settled(its, place, monkeypatch):
    monkeypatch.setattr(groups, "place", lambda *_: place)
    return its.settle()


def eventually(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def process():
    """One with a child."""
    script = "import subprocess; subprocess.run(['sleep', '60'])"
    its = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    children = Path(f"/proc/{its.pid}/task/{its.pid}/children")
    eventually(children.read_text)
    yield its.pid, int(children.read_text())
    os.killpg(its.pid, signal.SIGKILL)
    its.wait()


@pytest.mark.parametrize("version", [1, 2])
def test_a_sandbox_is_put_into_a_group_with_all_its_processes(tree, monkeypatch, process, version):
    with groups.Groups("mentis-x") as its:
        place = groups.Place(str(tree.base), version)
        assert settled(its, place, monkeypatch) == (True, str(tree.base))
        one = its.group("s-1", 100 * MIB)
        assert not one.struck()
        one.hold(process[0])
        path = tree.base / "mentis-x" / "s-1.1"
        eventually(lambda: one._made is not None)
        assert sorted(path.joinpath("cgroup.procs").read_text().split()) == sorted(
            map(str, process)
        )
        names = (
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            if version == 1
            else ("memory.max",)
        )
        assert {path.joinpath(name).read_text() for name in names} == {str(100 * MIB)}
        assert version == 1 or path.joinpath("memory.swap.max").read_text() == "0"
        one.close()
        # It is removed once it is empty.
        time.sleep(0.05)
        assert path.exists()
        for pid in process:
            tree.forget(pid)
        eventually(lambda: not path.exists())
    assert tree.groups() == set()


def test_after_a_kill_it_has_another_group(tree, monkeypatch, process):
    with groups.Groups("mentis-x") as its:
        settled(its, groups.Place(str(tree.base), 2), monkeypatch)
        one = its.group("s-1", 100 * MIB)
        one.hold(process[0])
        eventually(lambda: one._made is not None)
        events = tree.base / "mentis-x" / "s-1.1" / "memory.events"
        for said in ("oom 0\noom_kill 0\n", "oom 1\noom_kill 0\n"):
            events.write_text(said)
            assert not one.struck()
            assert not one.struck()
        events.write_text("oom 1\noom_kill 1\n")
        assert one.struck()
        assert not one.struck()
        eventually(lambda: one._made is not None)
        eventually(lambda: tree.groups() == {"mentis-x", "mentis-x/s-1.2"})
        procs = (tree.base / "mentis-x" / "s-1.2" / "cgroup.procs").read_text().split()
        assert sorted(procs) == sorted(map(str, process))
        for pid in process:
            tree.forget(pid)
        one.close()
        assert not one.struck()
    assert tree.groups() == set()


def test_in_the_first_version_a_kill_for_a_limit_above_is_no_kill_for_this_one(
    tree, monkeypatch, process
):
    with groups.Groups("mentis-x") as its:
        settled(its, groups.Place(str(tree.base), 1), monkeypatch)
        one = its.group("s-1", 100 * MIB)
        one.hold(process[0])
        eventually(lambda: one._made is not None)
        path = tree.base / "mentis-x" / "s-1.1"
        (path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
        assert not one.struck()
        (path / "memory.max_usage_in_bytes").write_text(f"{100 * MIB}\n")
        assert one.struck()
        eventually(lambda: one._made is not None)
        for pid in process:
            tree.forget(pid)
        one.close()
    assert tree.groups() == set()


def test_in_a_group_of_our_own_we_go_below_and_come_back(tree, monkeypatch):
    # Those of other tests do not end before it is closed, as the runtime's do.
    monkeypatch.setattr(groups.meter, "descendants", lambda _: [])
    (tree.base / "cgroup.procs").write_text(f"{os.getpid()}\n")
    with groups.Groups("mentis-x") as its:
        settled(its, groups.Place(str(tree.base), 2, moves=True), monkeypatch)
        alone = tree.base / "mentis-x" / "runtime"
        assert str(os.getpid()) in alone.joinpath("cgroup.procs").read_text().split()
        for handing in (tree.base, tree.base / "mentis-x"):
            assert handing.joinpath("cgroup.subtree_control").read_text() == "memory"
    assert tree.groups() == set()
    assert (tree.base / "cgroup.procs").read_text() == f"{os.getpid()}\n"
    assert (tree.base / "cgroup.subtree_control").read_text() == ""


def test_what_a_group_handed_on_before_it_hands_on_afterwards(tree, monkeypatch):
    (tree.base / "cgroup.subtree_control").write_text("memory")
    with groups.Groups("mentis-x") as its:
        settled(its, groups.Place(str(tree.base), 2), monkeypatch)
    assert (tree.base / "cgroup.subtree_control").read_text() == "memory"


def test_where_something_is_refused_nothing_stays_and_nothing_is_held(tree, monkeypatch):
    monkeypatch.delitem(FILES, "memory.max")
    with groups.Groups("mentis-x") as its:
        used, why = settled(its, groups.Place(str(tree.base), 2), monkeypatch)
        assert not used
        assert "memory.max" in why
        assert its.group("s-1", 100 * MIB) is None
    assert tree.groups() == set()


def test_one_that_ends_at_once_has_no_group(tree, monkeypatch):
    with groups.Groups("mentis-x") as its:
        settled(its, groups.Place(str(tree.base), 2), monkeypatch)
        one = its.group("s-1", 100 * MIB)
        one.close()
        one.hold(os.getpid())
        # And one that cannot be had is done without.
        two = its.group("no/such", 100 * MIB)
        two.hold(os.getpid())
        two.close()
    assert tree.groups() == set()


def test_what_the_dead_left_is_swept_and_what_lives_is_not(tree, monkeypatch):
    for name in ("dead", "alive"):
        os.mkdir(tree.base / f"{program.prefix()}{name}")
        os.mkdir(tree.base / f"{program.prefix()}{name}" / "s-1.1")
    os.mkdir(tree.base / "another's")
    with groups.Groups(f"{program.prefix()}first") as other:
        settled(other, groups.Place(str(tree.base), 2), monkeypatch)
        assert f"{program.prefix()}dead" not in tree.groups()
        with groups.Groups(f"{program.prefix()}second") as its:
            settled(its, groups.Place(str(tree.base), 2), monkeypatch)
            names = {f"{program.prefix()}first", f"{program.prefix()}second", "another's"}
            assert tree.groups() == names
    assert tree.groups() == {"another's"}


class Struck:
    """A group in which something was killed once."""

    def __init__(self):
        self.left = 1

    def hold(self, init):
        pass

    def struck(self):
        self.left -= 1
        return self.left >= 0


def test_what_was_killed_before_a_cell_is_not_its_business():
    async def told(*, begins):
        its = watch.Watch(Limits("16M"), "", lambda _: None, lambda: 0, Struck())
        its.found(os.getpid())
        if begins:
            its.begin()
        return its.struck()

    assert asyncio.run(told(begins=False)) == Exceeded("memory", 16 * MIB)
    assert asyncio.run(told(begins=True)) is None


# ── for real ────────────────────────────────────────────────────────────────


@pytest.fixture
def handed():
    """Where groups may be made here, once others have ended that do."""
    with groups.Groups(f"{program.prefix()}{secrets.token_hex(4)}") as its:
        used, how = its.settle()
        if not used:
            pytest.skip(f"no group is handed over here: {how}")
        yield its
    assert not os.path.exists(its._directory)


HOG = """
import os, sys
sys.stdin.readline()
if os.fork() == 0:
    kept = [bytearray(1 << 20) for _ in range(300)]
    os._exit(0)
pid, status = os.wait()
print(os.waitstatus_to_exitcode(status), flush=True)
sys.stdin.readline()
"""


def test_the_kernel_ends_what_holds_more(handed):
    one = handed.group("s-1", 100 * MIB)
    with subprocess.Popen(
        [sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as hog:
        one.hold(hog.pid)
        eventually(lambda: one._made is not None)
        before = one._made.path
        assert not one.struck()
        hog.stdin.write("\n")
        hog.stdin.flush()
        assert int(hog.stdout.readline()) == -signal.SIGKILL
        assert one.struck()
        eventually(lambda: not os.path.exists(before))
        eventually(lambda: one._made is not None)
        with open(os.path.join(one._made.path, "cgroup.procs")) as file:
            assert file.read().split() == [str(hog.pid)]
    one.close()


def test_a_group_that_somebody_else_removes_is_done_without(handed):
    with subprocess.Popen(["sleep", "60"]) as process:
        one = handed.group("s-1", 100 * MIB)
        one.hold(process.pid)
        eventually(lambda: one._made is not None)
        process.kill()
        process.wait()
        os.rmdir(one._made.path)
        assert not one.struck()
        one.close()


def test_what_a_killed_runtime_left_is_swept(handed):
    name = f"{program.prefix()}killed"
    script = (
        "import os, signal, time\n"
        "from mentis_pool.runtime import groups\n"
        f"its = groups.Groups({name!r})\n"
        "assert its.settle()[0]\n"
        "if (pid := os.fork()) == 0:\n"
        "    time.sleep(60)\n"
        "one = its.group('s-1', 1 << 30)\n"
        "one.hold(pid)\n"
        "while one._made is None: time.sleep(0.01)\n"
        "os.kill(pid, signal.SIGKILL)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    base = os.path.dirname(handed._directory)
    assert os.path.exists(os.path.join(base, name, "s-1.1"))

    def swept():
        # The last of it may be on its way out.
        with groups._locked(base):
            groups._sweep(base, program.prefix())
        return not os.path.exists(os.path.join(base, name))

    eventually(swept)
    assert os.path.exists(handed._directory)


LIMITS = Limits("16M", disk="1M")
BEGIN = "import time\nprint('begun', flush=True)\ntime.sleep(0.2)\n"
FILL = "b = bytearray(300 << 20)\n"
REST = "time.sleep(20)\n"
CHILD = f"import os\nif os.fork() == 0:\n    {FILL}    os._exit(0)\nos.wait()\n"


def struck(executor, runtime, code, attempts=20):
    """The cell that the kernel ended, and not the watch."""
    for _ in range(attempts):
        its = in_group(runtime)
        cell = executor.submit(BEGIN + code)
        eventually(lambda cell=cell: "begun" in cell.stdout or cell.done())
        assert not cell.done(), cell.exception()
        # Nobody watches for as long as it takes.
        os.kill(runtime, signal.SIGSTOP)
        try:
            eventually(lambda its=its: killed(its))
        finally:
            os.kill(runtime, signal.SIGCONT)
        error = cell.exception()
        assert isinstance(error, ResourceLimitExceeded), error
        assert (error.which, error.limit) == ("memory", 16 * MIB)
        assert "begun" in error.result.stdout
        if error.used is None:
            assert "its memory limit of 16 MiB" in str(error)
            return cell
    raise AssertionError("the watch was always sooner")


@pytest.fixture(scope="module", params=["bubblewrap", "landlock", "process"])
def bounded(request):
    """An executor, at each level, whose sandbox has a group."""
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(
            SandboxExecutor(1, limits=LIMITS, timeout=60, isolation=request.param)
        )
        try:
            [line] = [wall for wall in executor.isolation_report() if wall.name == "cgroups"]
        except Exception as exc:  # noqa: BLE001 - that level cannot be had here
            pytest.skip(str(exc))
        if not line.held:
            pytest.skip(line.detail)
        yield executor


@pytest.fixture
def runtime(bounded):
    bounded.submit("1").result()
    return bounded._engine._connection._runtime.pid


def in_group(runtime):
    """The group of the sandbox that has got one last, once one has."""

    def those():
        mounts = Path("/proc/self/mountinfo").read_text()
        for pid in meter.descendants(runtime):
            with contextlib.suppress(OSError):
                own = groups.own_group(Path(f"/proc/{pid}/cgroup").read_text(), mounts)
                if own is not None and "/s-" in own[0]:
                    yield own[0]

    eventually(lambda: list(those()))
    return Path(max(those(), key=os.path.getmtime))


def killed(group):
    """Whether the kernel has killed something in this group."""
    for name in ("memory.events", "memory.oom_control"):
        if (group / name).exists():
            return "oom_kill 0\n" not in (group / name).read_text()
    return False


@pytest.mark.parametrize("code", [FILL + REST, CHILD + REST, CHILD], ids=["own", "child", "done"])
def test_a_cell_that_the_kernel_ends_is_over_its_limit_and_the_next_one_runs(
    bounded, runtime, code
):
    cell = struck(bounded, runtime, code)
    after = bounded.submit("6 * 7")
    assert after.result().value == 42
    assert after.sandbox_id == cell.sandbox_id


def test_a_session_that_the_kernel_ends_a_cell_of_goes_on(bounded, runtime):
    with bounded.session() as session:
        session.submit("x = 1").result()
        time.sleep(0.1)
        struck(session, runtime, CHILD + REST, attempts=1)
        with pytest.raises(MentisPoolError):
            session.submit("x").result()
        assert session.submit("2").result().value == 2


SMALL = """
import os, sys
open('/proc/self/oom_score_adj', 'w').write('0')
fill = '''
import os, time
while True:
    try:
        _, fd = os.pipe()
        os.set_blocking(fd, False)
        while True: os.write(fd, bytes(65536))
    except BlockingIOError: pass
    except OSError:
        if os.fork(): time.sleep(20)
'''
os.execv(sys.executable, [sys.executable, '-ISc', fill])
"""
"""It is smaller than the init, and what it fills is the kernel's own."""


def test_where_the_kernel_ends_the_init_the_cell_is_told_why(bounded, runtime):
    struck(bounded, runtime, SMALL)
    assert bounded.submit("6 * 7").result().value == 42


def test_a_cell_within_its_limits_may_fill_its_files_besides(bounded, runtime):
    code = "open('f', 'wb').write(bytes(900 << 10))\nb = bytearray(2 << 20)\nlen(b)"
    in_group(runtime)
    for _ in range(3):
        assert bounded.submit(code).result().value == 2 << 20


def test_cells_go_before_what_forked_them_where_memory_runs_out(bounded):
    code = "open('/proc/self/oom_score_adj').read()"
    assert bounded.submit(code).result().value == "1000\n"


def command(sandbox, observations, runtime, text):
    """What is seen of a command that runs while nobody watches, from its first output to its kill."""
    its = in_group(runtime)
    action = sandbox.run_shell_command(text)
    seen = [observations.get(timeout=20)]
    while seen[-1].observation_type != "stream":
        seen.append(observations.get(timeout=20))
    os.kill(runtime, signal.SIGSTOP)
    try:
        eventually(lambda: killed(its))
    finally:
        os.kill(runtime, signal.SIGCONT)
    while seen[-1].observation_type != "result":
        seen.append(observations.get(timeout=20))
    assert {each.action_id for each in seen} == {action}
    return seen


def test_a_command_that_the_kernel_ends_is_over_its_limit(handed):
    with contextlib.ExitStack() as stack:
        process, url, token = serve()
        stack.callback(end, process)
        observations = queue.Queue()
        sandbox = stack.enter_context(
            MentisSandbox.create(base_url=url, token=token, observation_queue=observations)
        )
        # tail(1) keeps a line whole, and this one has no end.
        fill = "echo begun; sleep 0.2; tail /dev/zero; echo so"
        seen = command(sandbox, observations, process.pid, fill)
        assert "memory limit" in str(seen)
        action = sandbox.run_shell_command("cat /proc/self/oom_score_adj")
        said = []
        while not said or said[-1].observation_type != "result":
            said.append(observations.get(timeout=20))
        assert "1000" in [getattr(each, "line", "") for each in said]
        assert said[-1].action_id == action
