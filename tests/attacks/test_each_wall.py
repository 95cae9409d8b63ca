"""One attack for each wall: what it comes to at each level of isolation, beside a neighbour.

Each cell gives whether it got through. At the level "process" every one does, so that none is held
by accident here; but for the runtime's socket, whose guard stands at each level.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import subprocess
import sys
import tempfile

import pytest

from mentis_pool import SandboxDied, SandboxError, SandboxExecutor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are walls on Linux only")


def _is_block(entry):
    try:
        return stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode)
    except OSError:
        return False


BEGIN = """
import ctypes, os, resource, socket, stat, signal
libc = ctypes.CDLL(None, use_errno=True)

def pids():
    try:
        return list(filter(str.isdigit, os.listdir("/proc")))
    except PermissionError:
        return range(1, near)

def processes(name, text):
    for pid in pids():
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                if text.encode() in file.read() and int(pid) != os.getpid():
                    yield int(pid)
        except OSError:
            pass

def tried(attempt):
    try:
        done = attempt()
    except OSError as exc:
        return False
    return done is not False and (not isinstance(done, int) or done >= 0)

def in_a_child(attempt):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if tried(attempt) else 1)
    return os.waitpid(pid, 0)[1] == 0

def connected(family, address):
    with socket.socket(family) as sock:
        sock.settimeout(5)
        sock.connect(address)

def served(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        sock.sendall(b"GET /v1/health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        return sock.recv(1) != b""
"""

# What each cell does, and at which levels besides "bubblewrap" it is held.
ATTACKS = {
    "read a file of the host": ("tried(lambda: open(outside + '/secret').read())", "landlock"),
    "read what only root may": (
        "tried(lambda: open('/etc/shadow').read())",
        "landlock",
    ),
    "see what is in a directory": ("tried(lambda: os.listdir(outside))", "landlock"),
    "write where it may read": (
        "os.listdir(exposed)\ntried(lambda: open(exposed + '/new', 'w').close())",
        "landlock",
    ),
    "see a process of the host": ("any(processes('cmdline', marker))", "landlock"),
    "read the environment of another": ("any(processes('environ', marker))", "landlock"),
    "kill a process of the host": (
        "any([tried(lambda: os.kill(pid, 9)) for pid in processes('cmdline', marker)])",
        "landlock",
    ),
    "open the memory of its parent": (
        "tried(lambda: open(f'/proc/{os.getppid()}/mem', 'rb+').close())",
        "landlock",
    ),
    "trace a process": (
        "child = os.fork()\n"
        "if child == 0: signal.pause()\n"
        "done = in_a_child(lambda: libc.ptrace(16, child, 0, 0))\n"
        "os.kill(child, 9)\n"
        "done",
        "landlock",
    ),
    "read a file of another sandbox": ("tried(lambda: open(theirs).read())", "landlock"),
    "see a process of another sandbox": ("any(processes('environ', sandbox))", "landlock"),
    "see the ipc of another sandbox": ("libc.shmget(key, 1, 0o600) >= 0", "landlock"),
    "hold memory that no limit sees": (
        "libc.memfd_create(b'x', 0) >= 0 or libc.shmctl(libc.shmget(0, 4096, 0o600), 0, None) == 0",
        "landlock",
    ),
    "change the limits of another": (
        "tried(lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (1, 1)))",
        "landlock",
    ),
    "change the priority of another": (
        "tried(lambda: os.setpriority(os.PRIO_PROCESS, victim, 5))",
        "landlock",
    ),
    "change where another runs": (
        "tried(lambda: os.sched_setaffinity(victim, os.sched_getaffinity(0)))",
        "landlock",
    ),
    "reach a port of this machine": (
        "tried(lambda: connected(socket.AF_INET, ('127.0.0.1', port)))",
        "landlock",
    ),
    "reach an abstract socket": (
        "tried(lambda: connected(socket.AF_UNIX, '\\0' + marker))",
        "landlock",
    ),
    "reach a socket with a path": (
        "tried(lambda: connected(socket.AF_UNIX, at_path))",
        "landlock",
    ),
    "have the runtime answer": ("tried(lambda: served(runtime))", "landlock process"),
    "make a user namespace": ("in_a_child(lambda: libc.unshare(0x10000000))", "landlock"),
    "mount": (
        "in_a_child(lambda: libc.unshare(0x10020000) == 0"
        " and libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0)",
        "landlock",
    ),
    "enter a namespace": (
        "in_a_child(lambda: libc.setns(os.open('/proc/self/ns/uts', os.O_RDONLY), 0))",
        "landlock",
    ),
    "change its root": ("in_a_child(lambda: os.chroot('/usr'))", "landlock"),
    "make a device": (
        "in_a_child(lambda: os.mknod('device', stat.S_IFCHR | 0o600, os.makedev(1, 3)))",
        "landlock",
    ),
    "be root": ("in_a_child(lambda: os.setuid(0))", ""),
    "be another user": ("in_a_child(lambda: os.setuid(1234))", "landlock"),
    "take priority": ("in_a_child(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))", "landlock"),
    "log to the kernel": ("tried(lambda: open('/dev/kmsg', 'w').close())", "landlock"),
    "open a disk": (
        "any(tried(lambda: os.open(disk, os.O_RDONLY)) for disk in disks)",
        "landlock",
    ),
}
DISKS = [entry.path for entry in os.scandir("/dev") if _is_block(entry)]
# At the level "process" no more is asked of these than root may do anyway.
FOR_ROOT = {
    *(
        "read what only root may",
        "change its root",
        "make a device",
        "be root",
        "be another user",
        "take priority",
    ),
    *("log to the kernel", "open a disk", "enter a namespace", "open the memory of its parent"),
}


@pytest.fixture(scope="module", params=["bubblewrap", "landlock", "process"])
def level(request):
    return request.param


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    return str(tmp_path_factory.mktemp("exposed"))


@pytest.fixture(scope="module")
def pool(level, exposed):
    with SandboxExecutor(
        max_workers=2, isolation=level, timeout=30, expose=[exposed], preload=["ctypes"]
    ) as executor:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("A_SECRET", "secret")
            executor.submit("1").result()
        yield executor


@pytest.fixture
def target(pool, exposed, tmp_path):
    """What is attacked: variables of the cells."""
    marker = f"attacked-{secrets.token_hex(6)}"
    (tmp_path / "secret").write_text("secret")
    key = secrets.randbelow(1 << 30) + 1
    words = ["sh", "-c", "read _", marker]
    with (
        subprocess.Popen(words, env={"MARKER": marker}, stdin=subprocess.PIPE) as victim,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as with_path,
        # Short, for a socket's path.
        tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp") as near,
        pool.session() as session,
    ):
        abstract.bind(f"\0{marker}")
        abstract.listen()
        with_path.bind(near + "/socket")
        with_path.listen()
        theirs = session.submit(
            BEGIN + "open('mine', 'w').close()\n"
            "sandbox = f'sandbox-{os.urandom(6).hex()}'\n"
            "import subprocess\n"
            "child = subprocess.Popen(['sleep', '60'], env={'SANDBOX': sandbox})\n"
            "segment = libc.shmget(key, 1, 0o1600)\n"
            "(os.path.abspath('mine'), sandbox)",
            key=key,
        ).result()
        yield {
            "outside": str(tmp_path),
            "exposed": exposed,
            "marker": marker,
            "theirs": theirs.value[0],
            "sandbox": theirs.value[1],
            "key": key,
            "near": victim.pid + 1000,
            "victim": victim.pid,
            "at_path": near + "/socket",
            "disks": DISKS,
            "port": listener.getsockname()[1],
            "runtime": pool._engine._connection._runtime._directory + "/socket",
        }
        assert session.submit("child.poll() is None").result().value
        # IPC_RMID
        session.submit("libc.shmctl(segment, 0, None)").result()
        victim.kill()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(exposed + "/new")


def beside_a_neighbour(pool, cell, **variables):
    """The future of a cell, at whose side another one gives what it should, as one does after it."""
    neighbour = pool.submit("import time\ntime.sleep(0.05)\nsum(range(1000))")
    future = pool.submit(cell, **variables)
    future.exception()
    assert neighbour.result().value == 499500
    assert pool.submit("6 * 7").result().value == 42
    return future


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_wall_holds_where_it_stands_and_only_there(pool, level, target, attack):
    cell, also = ATTACKS[attack]
    if attack == "open a disk" and not DISKS:
        pytest.skip("there is none here")
    if level != "bubblewrap" and attack in FOR_ROOT and os.geteuid() != 0:
        pytest.skip("an ordinary user may not do this anyway")
    future = beside_a_neighbour(pool, BEGIN + cell, **target)
    assert future.result().value is (level not in ("bubblewrap", *also.split()))


def test_whom_the_guard_lets_in_the_runtime_answers(pool):
    path = pool._engine._connection._runtime._directory + "/socket"
    names = {"__name__": "client"}
    exec(BEGIN, names)
    pool.submit("1").result()
    assert names["served"](path)


# ── the processes of the sandbox itself ─────────────────────────────────────


def test_its_first_process_cannot_be_killed_behind_a_wall(pool, level):
    attack = "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(0.2)\nos.getppid()"
    future = beside_a_neighbour(pool, attack)
    if level == "bubblewrap":
        assert future.result().value == 1
    elif level == "landlock":
        assert isinstance(future.exception(), PermissionError)
    else:
        assert isinstance(future.exception(), SandboxError)


def test_whoever_kills_all_kills_nobody_but_itself(pool, level, target):
    if level == "process":
        pytest.skip("this would kill whatever this user runs")
    attack = (
        "import contextlib, os\n"
        "with contextlib.suppress(OSError): os.kill(-1, 9)\n"  # spares who calls it
        "os.kill(os.getpid(), 9)"
    )
    future = beside_a_neighbour(pool, attack)
    assert isinstance(future.exception(), SandboxDied)


@pytest.mark.parametrize("name", ["PATH", "HOME", "TMPDIR"])
def test_the_environment_has_what_programs_need(pool, name):
    assert pool.submit("import os; os.environ[name]", name=name).result().value


def test_nothing_of_the_clients_environment_is_there(pool):
    cell = "import os; [os.environ.get('A_SECRET'), b'A_SECRET' in open('/proc/self/environ','rb').read()]"
    assert pool.submit(cell).result().value == [None, False]


@pytest.mark.parametrize("where", ["work", "tmp", "dev/shm"])
def test_what_a_fresh_cell_leaves_no_other_finds(pool, level, where):
    if level != "bubblewrap" and where == "dev/shm":
        pytest.skip("it would stay on this machine")
    place = "/" + where if level == "bubblewrap" else f"../{where}"
    with pool.session():  # so that there is one sandbox for what follows, or two
        left = f"open({place!r} + '/left', 'w').close()"
        for _ in range(3):
            pool.submit(left).result()
            assert "left" not in pool.submit(f"import os; os.listdir({place!r})").result().value
