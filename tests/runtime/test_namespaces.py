"""Slots behind a real wall: what a cell finds of the host, of its init and of its neighbours.

As root the wall stands for root, who becomes nobody, and for an ordinary user as well.
"""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import mentis_pool
from mentis_pool.runtime import bubblewrap, probe

BEHIND = str(Path(__file__).with_name("behind.py"))
PACKAGE = str(Path(mentis_pool.__file__).parent)
ROOT = os.path.dirname(PACKAGE)
HOME = os.path.expanduser("~")
ORDINARY = 1234
SYSTEMS_OWN = "/usr/bin/python3"


def behind_a_wall(
    steps, uid=None, python=sys.executable, paths=(), network="none", keep=(), **options
):
    """What each step came to; started as this user."""

    def start():
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        else:
            its.prepare()

    prefixes = [sys.prefix, sys.base_prefix] if python == sys.executable else []
    wanted = [*bubblewrap.of_python(python, prefixes, [PACKAGE, BEHIND]), *paths]
    its = as_if(uid, lambda: bubblewrap.Wall(wanted, HOME, network))
    arguments = {"shown": its.in_rooms, "steps": steps, "network": network, **options}
    done = subprocess.run(
        [*its.words, python, BEHIND, json.dumps(arguments)],
        env={"PATH": os.defpath, "PYTHONPATH": ROOT},
        preexec_fn=start,
        pass_fds=(*its.fds, *keep),
        capture_output=True,
        text=True,
        timeout=60,
    )
    its.close()
    assert done.returncode == 0, done.stderr
    return [result for result, _ in json.loads(done.stdout)], json.loads(done.stdout)


def as_if(uid, make):
    if uid is None:
        return make()
    before = os.geteuid()
    os.seteuid(uid)
    try:
        return make()
    finally:
        os.seteuid(before)


def can_ordinary():
    """Whether there is one, who may read a Python, the package and bubblewrap."""
    if os.geteuid() != 0 or not os.path.exists(SYSTEMS_OWN):
        return False
    try:
        as_if(ORDINARY, bubblewrap.find)
    except bubblewrap.NoWall:
        return False
    return (
        subprocess.run(
            [SYSTEMS_OWN, "-c", "import sys; from mentis_pool.runtime import namespaces"],
            env={"PYTHONPATH": ROOT},
            # Not what it finds here, but what it is to find behind the wall.
            cwd="/",
            user=ORDINARY,
            group=ORDINARY,
            extra_groups=[],
            capture_output=True,
        ).returncode
        == 0
    )


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not probe.user_namespaces().held,
    reason="no user namespaces can be made here",
)


@pytest.fixture(params=["us", "ordinary"])
def behind(request):
    if request.param == "us":
        return lambda *steps, **options: behind_a_wall(steps, **options)[0]
    if not can_ordinary():
        pytest.skip("not root, or no interpreter that an ordinary user may read")
    return lambda *steps, **options: behind_a_wall(steps, ORDINARY, SYSTEMS_OWN, **options)[0]


def slot(name):
    return ["slot", name, ""]


def cell(name, code):
    return ["cell", name, code]


def renew(name):
    return ["renew", name, ""]


TRY = """
import os
def tried(call, *arguments):
    try:
        return call(*arguments)
    except OSError as exc:
        return exc.strerror
"""


# ── against the host ────────────────────────────────────────────────────────


def test_of_the_host_only_what_is_shown_is_there(behind, tmp_path):
    (tmp_path / "secret").write_text("!")
    found = behind(
        slot("a"),
        cell(
            "a",
            "import os\nresult = [os.path.exists(p) for p in "
            f"({str(tmp_path)!r}, '/etc/shadow', '/var', '/sys', '/home', '/usr', {PACKAGE!r})]",
        ),
    )[1]
    assert found == [False] * 5 + [True] * 2


def test_a_directory_below_tmp_is_shown_in_each_slot_read_only(behind):
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        shown = os.path.join(base, "shown")
        os.mkdir(shown)
        for path in (base, shown):
            os.chmod(path, 0o777)
        Path(base, "not-shown").touch()
        Path(shown, "file").touch(mode=0o666)
        code = TRY + (
            f"result = [os.listdir({base!r}), os.listdir({shown!r}), tried(open, {shown!r} + '/x', 'w'),\n"
            f"    tried(os.remove, {shown!r} + '/file')]"
        )
        cells = [slot("a"), cell("a", code), renew("a"), cell("a", code)]
        results = behind(*cells, paths=[shown])
    expected = [["shown"], ["file"], *["Read-only file system"] * 2]
    assert results[1] == results[3] == expected


def test_nothing_but_its_rooms_can_be_written_to(behind):
    code = TRY + (
        "result = [tried(open, p, 'w') for p in "
        "('/x', '/dev/x', '/usr/x', '/etc/passwd', '/root/x')]\n"
        "result += [tried(open, p, 'r+') for p in "
        "('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/1/oom_score_adj')]\n"
        "for p in ('/work/x', '/tmp/x', '/dev/shm/x'): open(p, 'w').close()"
    )
    found = behind(slot("a"), cell("a", code))[1]
    assert set(found) <= {
        *("Read-only file system", "Permission denied", "No such file or directory")
    }


def test_no_network_but_a_loopback_of_its_own(behind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = TRY + (
            "import socket\n"
            f"result = [tried(socket.create_connection, ('127.0.0.1', {port}), 2),\n"
            "    tried(socket.create_connection, ('192.0.2.1', 80), 2), os.listdir('/proc/net/dev_snmp6')\n"
            "    if os.path.exists('/proc/net/dev_snmp6') else ['lo']]\n"
            "with socket.create_server(('localhost', 0)) as own:\n"
            "    socket.create_connection(own.getsockname()).close()"
        )
        found = behind(slot("a"), cell("a", code))[1]
    assert found == ["Connection refused", "Network is unreachable", ["lo"]]


def test_the_hosts_network_is_there_on_request(behind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            "import socket\n"
            f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5).close()"
        )
        assert behind(slot("a"), cell("a", code), network="host")[1] is None


def test_the_environment_is_what_it_was_given(behind):
    found = behind(slot("a"), cell("a", "import os; result = sorted(os.environ)"))[1]
    assert set(found) <= {"PATH", "PYTHONPATH", "PWD", "LC_CTYPE"}


def test_who_a_cell_is_has_a_name_and_no_privileges(behind):
    code = (
        "import os, pwd, socket\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "result = [pwd.getpwuid(os.getuid()).pw_name, socket.gethostname(),\n"
        "    *(status[n].strip() for n in ('CapPrm', 'CapEff', 'CapInh', 'CapAmb', 'NoNewPrivs', 'Seccomp'))]"
    )
    found = behind(slot("a"), cell("a", code))[1]
    assert found == ["sandbox", "sandbox", *["0" * 16] * 4, "1", "2"]


# ── against the init, the zygote and the wall itself ────────────────────────


CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    return os.strerror(ctypes.get_errno()) if getattr(libc, name)(*args) < 0 else 'works'
"""


def test_mounts_and_namespaces_are_out_of_a_cells_reach(behind):
    code = CALL + (
        "result = [call('umount2', b'/tmp', 2), call('unshare', 0x10000000),\n"
        "    call('unshare', 0x20000), call('mount', b'x', b'/tmp', b'tmpfs', 0, None),\n"
        "    call('setns', os.pidfd_open(1), 0x20000), call('chroot', b'/tmp')]"
    )
    assert behind(slot("a"), cell("a", code))[1] == ["Operation not permitted"] * 6


def test_no_user_namespace_can_be_made_even_without_the_filter(behind):
    code = CALL + "result = call('unshare', 0x10000000)"
    assert behind(slot("a"), cell("a", code), walls=False)[1] == "No space left on device"


def test_the_init_cannot_be_looked_into_nor_ended(behind):
    code = TRY + (
        "result = [tried(open, '/proc/1/mem', 'rb'), tried(os.listdir, '/proc/1/fd'),\n"
        "    tried(open, '/proc/1/environ'), tried(os.readlink, '/proc/1/cwd')]\n"
        "os.kill(1, 9), os.kill(1, 15)"
    )
    results = behind(slot("a"), cell("a", code), cell("a", "result = 'goes on'"))
    assert set(results[1]) == {"Permission denied"}
    assert results[2] == "goes on"


def test_a_cell_has_no_descriptors_but_those_it_is_given(behind):
    code = (
        "import os, stat\n"
        "result = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')\n"
        "    if os.path.lexists(f'/proc/self/fd/{fd}')]"
    )
    found = behind(slot("a"), cell("a", code))[1]
    assert all(name == "/dev/null" or name.startswith(("pipe:", "socket:")) for name in found)


def test_a_cell_may_look_into_itself(behind):
    code = "open('/proc/self/clear_refs', 'w').write('5')"
    assert behind(slot("a"), cell("a", code))[1] is None


# ── between sandboxes ───────────────────────────────────────────────────────


MESS = """
import ctypes, os, time, socket
ctypes.CDLL('librt.so.1').mq_open(b'/left', 0o102, 0o600, None)
for path in ('/tmp/left', '/work/left', '/dev/shm/left'):
    open(path, 'w').close()
os.makedirs('/work/deep/er')
ready, wake = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(chr(0) + 'left')
        abstract.listen()
        terminal = os.openpty()
        os.write(wake, b'!')
        time.sleep(60)
    os._exit(0)
os.wait(), os.read(ready, 1)
"""
LOOK = """
import ctypes, os, socket
def connects():
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(chr(0) + 'left') == 0
result = {
    'processes': sum(name.isdigit() for name in os.listdir('/proc')),
    'files': sorted({*os.listdir('/tmp'), *os.listdir('/work'), *os.listdir('/dev/shm')} - KNOWN),
    'queue': ctypes.CDLL('librt.so.1').mq_open(b'/left', 0) >= 0,
    'socket': connects(),
    'terminals': len(os.listdir('/dev/pts')) - 1,
}
"""
KNOWN = {path.split("/")[2] for path in (PACKAGE, sys.prefix) if path.count("/") > 1}
LOOK = LOOK.replace("KNOWN", repr(KNOWN))
NOTHING = {"processes": 2, "files": [], "queue": False, "socket": False, "terminals": 0}


def test_a_cell_finds_what_another_one_left_in_its_slot(behind):
    found = behind(slot("a"), cell("a", MESS), cell("a", LOOK))[2]
    assert found == {
        "processes": 3,
        "files": ["deep", "left"],
        "queue": True,
        "socket": True,
        "terminals": 1,
    }


def test_in_another_slot_nothing_of_it_is_to_be_found(behind):
    assert behind(slot("a"), slot("b"), cell("a", MESS), cell("b", LOOK))[3] == NOTHING


def test_once_the_slot_is_renewed_nothing_of_it_is_left(behind):
    steps = [slot("a"), cell("a", MESS), renew("a"), cell("a", LOOK)]
    assert behind(*steps, *steps[1:])[3::3] == [NOTHING, NOTHING]


MOUNTS = """
result = [line.split()[0] for line in open("/proc/self/mountinfo") if line.split()[4] in
          ("/work", "/tmp", "/dev/shm")]
"""
ROOMS = """
import os, sys
from mentis_pool.runtime import kernel
result = []
for path in ("/work", "/tmp", "/dev/shm"):
    its = os.stat(path)
    result.append([oct(its.st_mode), its.st_nlink, its.st_size, os.listdir(path)])
    result[-1] += [os.listxattr(path), kernel.inode_flags(path), its.st_mtime > 1e9]
"""
CHANGES = (
    "open('/tmp/x', 'w').close()",
    "os.mkdir('/work/x')",
    "os.symlink('x', '/dev/shm/x')",
    "os.chmod('/work', 0o755)",
    "os.chmod('/tmp', 0)",
    "os.utime('/dev/shm', (1, 1))",
    "tried(os.setxattr, '/work', 'user.x', b'1')",
    # FS_IOC_SETFLAGS: no dump
    "fd = os.open('/tmp', os.O_RDONLY); tried(fcntl.ioctl, fd, 0x40086602, bytes([64, *[0] * 7]))",
)


def test_whatever_a_cell_changes_of_its_rooms_is_as_new_for_the_next(behind):
    steps = [slot("a"), cell("a", ROOMS)]
    for change in CHANGES:
        steps += [cell("a", f"import fcntl\n{TRY}\n{change}\nresult = None"), renew("a")]
        steps.append(cell("a", ROOMS))
    _, first, *found = behind(*steps)
    assert [*found[::3], *found[1::3]] == [None] * 2 * len(CHANGES)
    assert found[2::3] == [first] * len(CHANGES)


@pytest.mark.skipif(
    any(path.startswith(("/work/", "/tmp/", "/dev/shm/")) for path in (BEHIND, sys.prefix)),
    reason="what is shown below the rooms is mounted anew each time",
)
def test_rooms_that_nobody_changed_stay(behind):
    looks = "import os\nresult = os.listdir('/work'), os.listdir('/tmp')"
    steps = [cell("a", looks), renew("a"), cell("a", MOUNTS)]
    _, first, _, _, second, _, _, third = behind(slot("a"), cell("a", MOUNTS), *steps, *steps)
    assert first == second == third != []


def test_renewing_a_slot_piles_up_no_mounts(behind):
    mounts = cell("a", "result = len(open('/proc/self/mountinfo').readlines())")
    change = cell("a", "open('/work/left', 'w').close()")
    results = behind(slot("a"), mounts, *[change, renew("a")] * 3, mounts)
    assert results[1] == results[-1]


def test_with_the_init_of_a_slot_all_of_it_ends(behind):
    processes = "import os; result = sorted(int(p) for p in os.listdir('/proc') if p.isdigit())"
    results = behind(
        slot("a"), cell("a", MESS), ["zygote", "", processes], ["kill", "a", ""], slot("b")
    )
    # The zygote sees them all: itself, the init and what the cell left.
    assert len(results[2]) == 3
    assert results[3] == [1]
    assert results[4] == 1


def test_many_slots_are_made_one_after_the_other(behind):
    names = [str(number) for number in range(5)]
    code = "import os; result = os.getppid()"
    results = behind(*map(slot, names), *(cell(name, code) for name in names))
    assert results == [1] * 10


# ── limits of the rooms ─────────────────────────────────────────────────────


def test_the_rooms_hold_so_many_bytes_together(behind):
    code = TRY + (
        "open('/tmp/x', 'wb').write(bytes(600_000))\n"
        "file = open('/work/x', 'wb', buffering=0)\n"
        "result = tried(lambda: [file.write(bytes(100_000)) for _ in range(10)])"
    )
    results = behind(slot("a"), cell("a", code), renew("a"), cell("a", code), size=1 << 20)
    assert results[1] == results[3] == "No space left on device"


def test_the_rooms_hold_so_many_files_together(behind):
    code = TRY + "result = tried(lambda: [open(f'/tmp/{n}', 'w').close() for n in range(200)])"
    assert behind(slot("a"), cell("a", code), files=100)[1] == "No space left on device"


BOMB = """
import os, time
result = [0, '']
try:
    while result[0] < 1000:
        if (pid := os.fork()) == 0:
            time.sleep(60), os._exit(0)
        result[0] += 1
except OSError as exc:
    result[1] = exc.strerror
"""


def test_the_number_of_processes_of_a_slot_ends_somewhere(behind):
    steps = [
        slot("a"),
        slot("b"),
        cell("a", BOMB),
        cell("b", "import os; os.wait4(os.fork() or os._exit(0), 0)"),
    ]
    results = behind(*steps, renew("a"), cell("a", BOMB), limited=True)
    if not results[0]:
        pytest.skip("this kernel has one limit for all pid namespaces")
    assert results[2][1] == results[5][1] == "Resource temporarily unavailable"
    # At first there are those below 300 as well.
    assert 300 < results[2][0] < 320
    assert 10 < results[5][0] < 20
    assert results[3] is None


def test_nothing_behind_a_wall_outlives_who_started_it():
    alive, held = os.pipe()
    starter = os.fork()
    if starter == 0:
        try:
            os.close(alive)
            os.set_inheritable(held, True)
            steps = [slot("a"), cell("a", MESS), ["zygote", "", "import time; time.sleep(60)"]]
            behind_a_wall(steps, keep=(held,))
        finally:
            os._exit(0)
    os.close(held)
    time.sleep(1)
    os.kill(starter, 9)
    os.waitpid(starter, 0)
    assert select.select([alive], [], [], 10)[0]
    assert os.read(alive, 1) == b""
    os.close(alive)


# ── work ────────────────────────────────────────────────────────────────────


WORK = """
import asyncio, multiprocessing, subprocess, threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory
result = [subprocess.run(['sh', '-c', 'echo from a shell'], capture_output=True, text=True).stdout]
forks = multiprocessing.get_context('fork')
with forks.Pool(2) as pool:
    result += pool.map(abs, [-1, -2])
with ProcessPoolExecutor(1, mp_context=forks) as pool:
    result.append(pool.submit(abs, -3).result())
segment = shared_memory.SharedMemory(create=True, size=4096)
segment.close(), segment.unlink()
thread = threading.Thread(target=result.append, args=['a thread'])
thread.start(), thread.join()
async def talk():
    async def answer(reader, writer):
        writer.write(b'from a server')
        writer.close()
    server = await asyncio.start_server(answer, '127.0.0.1', 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    result.append((await reader.read()).decode())
    writer.close()
    result.append(await (await asyncio.create_subprocess_exec('true')).wait())
asyncio.run(talk())
"""


def test_processes_threads_and_servers_work(behind):
    expected = ["from a shell\n", 1, 2, 3, "a thread", "from a server", 0]
    assert behind(slot("a"), cell("a", WORK))[1] == expected


def test_what_computes_and_draws_works():
    for name in ("IPython", "numpy", "pandas", "matplotlib"):
        pytest.importorskip(name)
    code = (
        "import os\nos.environ.update(HOME='/tmp')\n"
        "import IPython, matplotlib, numpy, pandas\nmatplotlib.use('agg')\n"
        "from matplotlib import pyplot\n"
        "pandas.DataFrame({'a': numpy.arange(3) @ numpy.eye(3)}).plot()\n"
        "pyplot.savefig('drawn.png')\nresult = os.path.getsize('drawn.png') > 1000"
    )
    steps = [slot("a"), cell("a", code)]
    assert behind_a_wall(steps, paths=[path for path in sys.path if path])[0][1] is True


def test_a_slot_is_soon_there():
    _, timed = behind_a_wall([["slot", str(number), ""] for number in range(20)])
    # Where a new Python takes 20 ms and with IPython 150; the rest is for a busy machine.
    assert statistics.median(took for _, took in timed) < 50
