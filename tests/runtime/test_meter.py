"""What processes use is read from outside: of all of them, also those that hide or are gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from test_namespaces import ORDINARY, ROOT, SYSTEMS_OWN, behind_a_wall, can_ordinary

from mentis_pool.runtime import meter as meter_module
from mentis_pool.runtime import posix, probe
from mentis_pool.runtime.meter import Files, Meter, Reading

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")

MIB = 1 << 20
# Stands for an init: what it forks runs this code, then it waits.
INIT = """
import os, sys, time
sys.path[:0] = {path!r}
from mentis_pool.runtime import posix
posix.adopt_orphans()
for code in sys.argv[1:]:
    if os.fork() == 0:
        exec(code)
        os.write(1, b".")
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""


@pytest.fixture
def init():
    started = []

    def start(*codes):
        """The pid of an init, once all that it forked has done its part."""
        process = subprocess.Popen(
            [sys.executable, "-c", INIT.format(path=sys.path), *codes],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        for _ in codes:
            process.stdout.read(1)
        return process.pid

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def test_an_init_without_children_uses_nothing(init):
    assert Meter(init()).read() == (0.0, 0, 0)


def test_whoever_has_ended_uses_nothing():
    process = subprocess.Popen(["true"])
    process.wait()
    meter = Meter(process.pid)
    assert meter.read() == (0.0, 0, 0)
    assert meter.total_cpu_seconds() == 0.0


def test_what_several_hold_is_counted_once(init):
    shared = (
        f"b = bytearray({60 * MIB})\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0: time.sleep(60)\n"
        "time.sleep(0.1)"
    )
    now = Meter(init(shared)).read()
    assert now.processes == 4
    assert 60 * MIB < now.memory < 120 * MIB


def test_one_of_few_bytes_is_not_looked_at_closely(init):
    pid = init("b = bytearray(60 << 20)")
    meter = Meter(pid)
    resident = meter.read(memory=100 * MIB).memory
    assert 60 * MIB < resident < 100 * MIB
    # What is over the limit is no more than what is its own.
    assert 40 * MIB < meter.read(memory=20 * MIB).memory < resident


def test_what_is_mapped_of_a_file_is_not_held(init, tmp_path):
    (tmp_path / "large").write_bytes(bytes(50 * MIB))
    code = (
        "import mmap\n"
        f"f = open({str(tmp_path / 'large')!r}, 'rb')\n"
        "m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
        "sum(m[::4096])"
    )
    assert Meter(init(code)).read(memory=20 * MIB).memory < 20 * MIB


def test_who_lets_nobody_look_is_counted_for_all_that_it_may_hold(init):
    hidden = f"import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); b = bytearray({60 * MIB})"
    assert Meter(init(hidden, hidden)).read().memory > 120 * MIB


def test_what_was_over_the_limit_and_is_gone_is_not_counted_again(init, monkeypatch):
    # So what was measured once is good for very long.
    monkeypatch.setattr(meter_module, "_SHARE_NEAR", 1e-9)
    pid = init("pass", "pass", f"b = bytearray({60 * MIB})")
    meter = Meter(pid)
    assert meter.read(memory=20 * MIB).memory > 60 * MIB
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        os.kill(int(file.read().split()[2]), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while meter.read(memory=20 * MIB).memory > 20 * MIB:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_ends_as_it_is_looked_at_holds_nothing(init, monkeypatch):
    meter = Meter(init(f"b = bytearray({60 * MIB})", f"b = bytearray({60 * MIB})"))

    def late(pid, real=meter_module._stat):
        found = real(pid)
        if found is not None and found.resident > 60 * MIB:
            os.kill(pid, signal.SIGKILL)
            while (now := real(pid)) is not None and now.resident:
                time.sleep(0.001)
        return found

    monkeypatch.setattr(meter_module, "_stat", late)
    assert meter.read().memory == 0


def test_threads_are_counted_and_their_children_found(init):
    code = (
        "import subprocess, threading\n"
        "for _ in range(3): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "t = threading.Thread(target=lambda: (subprocess.Popen(['sleep', '60']), time.sleep(60)))\n"
        "t.start(); time.sleep(0.3)"
    )
    assert Meter(init(code)).read().processes == 6


def test_orphans_are_found(init):
    code = "if os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\ntime.sleep(0.1)"
    # The one that ended is a zombie, or is waited for.
    assert Meter(init(code)).read().processes in (2, 3)


def test_no_more_are_counted_than_is_asked_for(init):
    code = "for _ in range(5):\n    if os.fork() == 0: time.sleep(60)\ntime.sleep(0.1)"
    assert Meter(init(code)).read(most=2).processes == 3


def test_a_worker_that_waits_is_left_out(init):
    pid = init("pass", f"b = bytearray({60 * MIB})")
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        first, second = map(int, file.read().split())
    meter = Meter(pid)
    assert meter.read(spare=second).memory < 40 * MIB
    assert meter.read(spare=first).memory > 60 * MIB
    assert meter.read().processes == 2


SPIN = "end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def read_until(meter, pid, used):
    deadline = time.monotonic() + 20
    while meter.read().cpu_seconds < used:
        assert time.monotonic() < deadline, meter.read()
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["waited for", "ignored", "alive"])
def test_cpu_seconds_are_those_of_all_also_of_who_is_gone(init, how):
    ignore = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    end = {"waited for": "os._exit(0)", "ignored": "os._exit(0)", "alive": "time.sleep(60)"}[how]
    code = (
        (ignore if how == "ignored" else "")
        + "time.sleep(0.3)\nfor _ in range(2):\n    if os.fork() == 0:\n        "
        + SPIN.replace("\n", "\n        ")
        + f"\n        {end}\n"
        + ("for _ in range(2): os.wait()" if how == "waited for" else "")
    )
    started = f"if os.fork() == 0:\n    exec({code!r})\n    time.sleep(60)"
    pid = init(started)
    meter = Meter(pid)
    assert meter.read().cpu_seconds == 0.0
    read_until(meter, pid, 0.5)
    assert meter.read().cpu_seconds < 1.0
    assert meter.total_cpu_seconds() > 0.2
    meter.begin()
    assert meter.read().cpu_seconds == 0.0


# ── files ───────────────────────────────────────────────────────────────────


def looked(files):
    for _ in range(200):
        found = files.look()
    return found


def test_files_are_counted_by_what_they_take(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "large").write_bytes(bytes(MIB))
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("/usr")
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 30)
    assert MIB + 4 * 4096 <= looked(Files(str(tmp_path))) < MIB + 20 * 4096


def test_looking_at_many_files_takes_several_looks_and_no_long_time(tmp_path):
    for number in range(5000):
        (tmp_path / str(number)).touch()
    files = Files(str(tmp_path))
    begun = time.monotonic()
    first = files.look()
    assert time.monotonic() - begun < 0.5
    assert first <= looked(files) == 5000 * 4096


def test_what_was_removed_is_no_longer_counted(tmp_path):
    (tmp_path / "f").write_bytes(bytes(MIB))
    files = Files(str(tmp_path))
    assert looked(files) >= MIB
    (tmp_path / "f").unlink()
    files.forget()
    assert files.look() == 0


def test_a_directory_that_is_not_there_takes_nothing(tmp_path):
    assert Files(str(tmp_path / "none")).look() == 0


# ── who an init is ──────────────────────────────────────────────────────────


def test_the_kernel_names_the_sender_and_descriptors_come_along():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        posix.name_sender(ours)
        pid = os.fork()
        if pid == 0:
            socket.send_fds(theirs, [b"hello"], [0, 1])
            os._exit(0)
        os.waitpid(pid, 0)
        data, fds, sender = posix.receive(ours, 100, 8)
        for fd in fds:
            os.close(fd)
    assert (data, len(fds), sender) == (b"hello", 2, pid)


def test_a_sender_that_is_not_asked_for_is_not_known():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"hello")
        assert posix.receive(ours, 100, 8) == (b"hello", [], 0)


def read_as(uid, init):
    """What this user reads."""
    code = f"from mentis_pool.runtime.meter import Meter; print(*Meter({init}).read())"
    environment = {"PYTHONPATH": ROOT}
    done = subprocess.check_output(
        [SYSTEMS_OWN, "-c", code], env=environment, user=uid, group=uid, extra_groups=[]
    )
    cpu_seconds, memory, processes = done.split()
    return Reading(float(cpu_seconds), int(memory), int(processes))


@pytest.mark.skipif(not probe.user_namespaces().held, reason="no user namespaces can be made here")
@pytest.mark.parametrize("uid", [None, ORDINARY], ids=["us", "ordinary"])
def test_an_init_behind_the_wall_is_named_and_all_of_its_sandbox_read(uid):
    if uid is not None and not can_ordinary():
        pytest.skip("not root, or no interpreter that an ordinary user may read")
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    posix.name_sender(ours)
    code = (
        "import os, socket, time\n"
        f"sock = socket.socket(fileno={theirs.fileno()})\n"
        f"b = bytearray({60 * MIB})\n"
        "if os.fork() == 0:\n"
        f"    c = bytearray({60 * MIB})\n"
        "    sock.send(b'x'); sock.recv(1); os._exit(0)\n"
        "os.wait()\n"
        "result = [os.getpid(), os.getppid()]"
    )
    steps = [["slot", "a", ""], ["cell", "a", code]]
    python = {} if uid is None else {"python": SYSTEMS_OWN}
    with ThreadPoolExecutor(1) as threads, ours, theirs:
        done = threads.submit(behind_a_wall, steps, uid, keep=[theirs.fileno()], **python)
        try:
            _, _, child = posix.receive(ours, 1, 8)
            worker = psutil.Process(child).parent()
            meter = Meter(worker.ppid())
            now = meter.read() if uid is None else read_as(uid, worker.ppid())
            # The worker is called otherwise in there.
            alone = meter.read(spare=2)
        finally:
            ours.send(b"y")
        inner, init = done.result()[0][1]
    assert init == 1
    assert inner == 2 != worker.pid
    assert now.processes == 2
    assert 120 * MIB < now.memory < 180 * MIB
    assert alone.processes == 0
