"""The filter of system calls: what it says to each, and that the kernel takes it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys

import pytest

from mentis_pool.runtime import seccomp

ALLOWED, KILLED = 0x7FFF0000, 0x80000000
X86, ARM = 0xC000003E, 0xC00000B7


def judged(program, audit, number, *arguments):
    """What a filter answers, by BPF's rules: the few instructions that are used here."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *(*arguments, *[0] * 6)[:6])
    instructions = list(struct.iter_unpack("<HBBI", program))
    loaded, at = 0, 0
    while True:
        code, yes, no, value = instructions[at]
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            loaded &= value
        elif code == 0x06:
            return value
        else:
            holds = {0x15: loaded == value, 0x25: loaded > value, 0x45: bool(loaded & value)}[code]
            at += yes if holds else no


def refused(error):
    return 0x50000 | error


MACHINES = [("x86_64", X86), ("aarch64", ARM)]
SAME = {
    "openat": {"x86_64": 257, "aarch64": 56},
    "execve": {"x86_64": 59, "aarch64": 221},
    "clone": {"x86_64": 56, "aarch64": 220},
    "ioctl": {"x86_64": 16, "aarch64": 29},
    "personality": {"x86_64": 135, "aarch64": 92},
    "socket": {"x86_64": 41, "aarch64": 198},
    "mknodat": {"x86_64": 259, "aarch64": 33},
    "mount": {"x86_64": 165, "aarch64": 40},
    "seccomp": {"x86_64": 317, "aarch64": 277},
    "clone3": {"x86_64": 435, "aarch64": 435},
    "newer": {"x86_64": 470, "aarch64": 470},
}


@pytest.fixture(params=MACHINES, ids=[name for name, _ in MACHINES])
def ask(request):
    machine, audit = request.param
    program = seccomp.program(machine)
    return lambda name, *arguments: judged(program, audit, SAME[name][machine], *arguments)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_each_call_of_the_list_is_denied(machine):
    numbers = seccomp.ARCHITECTURES[machine]
    program = seccomp.program(machine)
    for name, number in numbers.denied.items():
        assert judged(program, numbers.audit, number) == refused(errno.EPERM), name
    for name in ("mount", "umount2", "unshare", "setns", "ptrace", "bpf", "io_uring_setup"):
        assert name in numbers.denied


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_no_number_is_denied_that_the_list_does_not_name(machine):
    numbers = seccomp.ARCHITECTURES[machine]
    program = seccomp.program(machine)
    asked = {numbers.clone, numbers.ioctl, numbers.personality, numbers.socket, *numbers.mknod, 435}
    assert len(set(numbers.denied.values())) == len(numbers.denied)
    for number in set(range(470)) - set(numbers.denied.values()) - asked:
        assert judged(program, numbers.audit, number) == ALLOWED, number


def test_what_programs_need_is_allowed(ask):
    for name in ("openat", "execve", "seccomp"):
        assert ask(name, 1, 2, 3) == ALLOWED


def test_processes_and_threads_may_be_made_but_no_namespaces(ask):
    thread = 0x3D0F00
    assert ask("clone", 17) == ask("clone", thread) == ask("clone", 0x4000 | 0x100) == ALLOWED
    for flag in (*(0x80, 0x20000, 0x2000000, 0x4000000), *(1 << bit for bit in range(27, 31))):
        assert ask("clone", flag | 17) == refused(errno.EPERM), hex(flag)


def test_clone3_is_not_there_since_its_flags_cannot_be_seen(ask):
    assert ask("clone3") == refused(errno.ENOSYS)


def test_nothing_can_be_typed_into_a_terminal(ask):
    assert ask("ioctl", 0, 0x5412) == ask("ioctl", 0, 0x541C) == refused(errno.EPERM)
    # The kernel looks at no more than this half.
    assert ask("ioctl", 0, 0xFFFFFFFF_00005412) == refused(errno.EPERM)
    assert ask("ioctl", 0, 0x5413) == ask("ioctl", 0x5412, 0) == ALLOWED


def test_a_personality_may_be_asked_for_but_not_changed(ask):
    assert ask("personality", 0xFFFFFFFF) == ask("personality", 0) == ALLOWED
    assert ask("personality", 0x0040000) == ask("personality", 8) == refused(errno.EPERM)


def test_sockets_are_of_the_kinds_that_a_network_namespace_holds(ask):
    assert {ask("socket", family) for family in (1, 2, 10, 16)} == {ALLOWED}
    packet, algorithm, vsock = 17, 38, 40
    for family in (packet, algorithm, vsock):
        assert ask("socket", family) == refused(errno.EAFNOSUPPORT)


def test_without_a_namespace_no_socket_can_be_made_that_leads_somewhere():
    for families, allowed in ((seccomp.NOWHERE, {16}), (seccomp.INTERNET, {2, 10, 16})):
        program = seccomp.program("x86_64", families)
        for family in (1, 2, 10, 16):
            its = ALLOWED if family in allowed else refused(errno.EAFNOSUPPORT)
            assert judged(program, X86, 41, family) == its
        pair = 53
        assert judged(program, X86, pair, 1) == ALLOWED


@pytest.mark.parametrize(("machine", "audit"), MACHINES)
def test_where_others_are_seen_only_ones_own_limits_cpus_and_priority_can_be_changed(
    machine, audit
):
    numbers = seccomp.ARCHITECTURES[machine]
    program = seccomp.program(machine, sees_others=True)
    assert len(numbers.of_others) == 7
    for number, own in numbers.of_others.items():
        arguments = [own.get(n, 7) for n in range(6)]
        assert judged(program, audit, number, *arguments) == ALLOWED
        for n in own:
            others = [*arguments[:n], own[n] + 1, *arguments[n + 1 :]]
            assert judged(program, audit, number, *others) == refused(errno.EPERM)
    assert judged(program, audit, numbers.denied["mount"]) == refused(errno.EPERM)


@pytest.mark.parametrize("name", ["memfd_create", "memfd_secret", "shmget", "semget", "msgget"])
def test_no_memory_can_be_had_that_no_process_need_have_mapped(name):
    assert all(name in its.denied for its in seccomp.ARCHITECTURES.values())


def test_no_device_can_be_made_but_pipes_and_files_can(ask):
    assert ask("mknodat", 0, 0, 0o020666) == ask("mknodat", 0, 0, 0o060666) == refused(errno.EPERM)
    for mode in (0o010600, 0o100600, 0o600):
        assert ask("mknodat", 0, 0, mode) == ALLOWED
    assert judged(seccomp.program("x86_64"), X86, 133, 0, 0o020666) == refused(errno.EPERM)
    assert judged(seccomp.program("x86_64"), X86, 133, 0, 0o010666) == ALLOWED


def test_calls_of_another_architecture_are_the_end():
    i386 = 0x40000003
    assert judged(seccomp.program("x86_64"), i386, 21) == KILLED
    assert judged(seccomp.program("aarch64"), X86, 0) == KILLED


def test_calls_newer_than_the_list_are_not_there(ask):
    assert ask("newer") == refused(errno.ENOSYS)
    x32 = 0x40000000
    assert judged(seccomp.program("x86_64"), X86, x32 | 165) == refused(errno.ENOSYS)


def test_an_unknown_machine_has_no_program():
    with pytest.raises(KeyError):
        seccomp.program("vax")


TRIES = """
import ctypes, os, platform, subprocess, sys, threading
from mentis_pool.runtime import kernel, seccomp
kernel.gain_no_privileges()
kernel.filter_calls(seccomp.program(platform.machine()))
libc = ctypes.CDLL(None, use_errno=True)
def tried(call):
    ctypes.set_errno(0)
    call()
    return ctypes.get_errno()
import errno
assert tried(lambda: libc.unshare(0x10000000)) == errno.EPERM
assert tried(lambda: libc.ptrace(0, 0, 0, 0)) == errno.EPERM
assert tried(lambda: libc.syscall(435, 0, 0)) == errno.ENOSYS
assert tried(lambda: libc.socket(40, 1, 0)) == errno.EAFNOSUPPORT
assert tried(lambda: libc.mknod(b"/dev/null/no", 0o020666, 0)) == errno.EPERM
assert libc.personality(ctypes.c_ulong(0xFFFFFFFF)) >= 0
thread = threading.Thread(target=print, args=["a thread"])
thread.start(), thread.join()
print(subprocess.run(["echo", "a process"], capture_output=True, text=True).stdout)
"""


@pytest.mark.skipif(
    platform.machine() not in seccomp.ARCHITECTURES or sys.platform != "linux",
    reason="there is no program for this machine",
)
def test_the_kernel_takes_the_program_and_does_as_it_says():
    done = subprocess.run([sys.executable, "-c", TRIES], capture_output=True, text=True)
    assert (done.stdout.split("\n")[:2], done.stderr) == (["a thread", "a process"], "")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a call of i386 in x86_64's code")
def test_a_call_of_i386_kills_the_process():
    def call_i386():
        import mmap

        from mentis_pool.runtime import kernel

        kernel.gain_no_privileges()
        kernel.filter_calls(seccomp.program("x86_64"))
        # mov eax, 20 (getpid); int 0x80; ret
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()

    pid = os.fork()
    if pid == 0:
        try:
            call_i386()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 31  # SIGSYS
