"""Limits are numbers, whatever they were written as; what is none of these is named."""

from __future__ import annotations

import dataclasses

import pytest

from mentis_pool import Limits
from mentis_pool.limits import in_bytes, message, told_by

MIB = 1 << 20


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("512 MiB", 512 * MIB),
        ("512MB", 512 * MIB),
        ("1.5G", 1536 * MIB),
        ("1T", MIB * MIB),
        ("20480K", 20 * MIB),
        (" 33554432 ", 32 * MIB),
        (33554432, 32 * MIB),
        (None, None),
    ],
)
@pytest.mark.parametrize("name", ["memory", "file_size", "disk", "output"])
def test_a_size_is_bytes_or_text(name, written, size):
    assert getattr(Limits(**{name: written}), name) == size


@pytest.mark.parametrize(
    ("given", "error", "needed"),
    [
        ({"memory": "12Q"}, ValueError, 'text like "512M"'),
        ({"memory": ""}, ValueError, 'text like "512M"'),
        ({"memory": "-1M"}, ValueError, 'text like "512M"'),
        ({"memory": 1.5}, TypeError, "a number of bytes"),
        ({"disk": True}, TypeError, "a number of bytes"),
        ({"memory": "15M"}, ValueError, "at least 16 MiB"),
        ({"memory": 10**20}, ValueError, "None means no limit"),
        ({"output": 0}, ValueError, "at least 1 bytes"),
        ({"file_size": -1}, ValueError, "at least 1 bytes"),
        ({"cpu_seconds": 0}, ValueError, "more than 0"),
        ({"cpu_seconds": float("nan")}, ValueError, "more than 0"),
        ({"cpu_seconds": "3"}, TypeError, "a number of seconds"),
        ({"cpu_seconds": True}, TypeError, "a number of seconds"),
        ({"processes": 1}, ValueError, "at least 2"),
        ({"processes": "3"}, TypeError, "a whole number"),
        ({"processes": False}, TypeError, "a whole number"),
        ({"open_files": 31}, ValueError, "at least 32"),
        ({"open_files": 64.0}, TypeError, "a whole number"),
    ],
)
def test_what_is_no_limit_is_named_with_what_to_write(given, error, needed):
    with pytest.raises(error, match=needed) as caught:
        Limits(**given)
    (name,) = given
    assert str(caught.value).startswith(name)


def test_seconds_may_be_whole_or_not():
    assert Limits(cpu_seconds=2).cpu_seconds == 2.0
    assert Limits(cpu_seconds=0.5).cpu_seconds == 0.5


def test_there_are_limits_without_any_being_named():
    limits = Limits()
    assert (limits.memory, limits.disk) == (512 * MIB, 256 * MIB)
    assert limits.cpu_seconds is limits.file_size is None
    assert limits.processes
    assert limits.open_files
    assert limits.output


def test_no_limit_at_all_is_none_for_each():
    assert set(dataclasses.asdict(Limits.none()).values()) == {None}


def test_limits_are_values():
    assert Limits("1G") == Limits(1024 * MIB)
    assert len({Limits("1G"), Limits(1024 * MIB), Limits("2G")}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().memory = 3


# ── what is told ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 bytes"),
        (1000, "1000 bytes"),
        (1024, "1 KiB"),
        (600 * MIB, "600 MiB"),
        (1536 * MIB, "1.5 GiB"),
        (2048 * 1024 * MIB, "2048 GiB"),
    ],
)
def test_a_size_in_words(size, said):
    assert in_bytes(size) == said


@pytest.mark.parametrize(
    ("which", "limit", "used", "words"),
    [
        ("memory", 512 * MIB, 600 * MIB, ["600 MiB of memory", "512 MiB"]),
        ("cpu_seconds", 1.5, 1.75, ["1.75 s of CPU", "1.5 s"]),
        ("processes", 256, 257, ["257 processes", "256"]),
        ("disk", 256 * MIB, 300 * MIB, ["300 MiB", "256 MiB"]),
        ("output", MIB, 2 * MIB, ["2 MiB of output", "1 MiB"]),
        ("open_files", 1024, None, ["open_files limit of 1024"]),
        ("file_size", MIB, None, ["file_size limit of 1 MiB"]),
    ],
)
def test_a_message_names_the_limit_what_was_used_and_the_remedy(which, limit, used, words):
    said = message(which, limit, used)
    for part in (*words, f"SandboxExecutor(limits=Limits({which}=…))"):
        assert part in said


ALL = Limits(file_size="1M")


@pytest.mark.parametrize(
    ("name", "value", "which"),
    [
        ("MemoryError", "", "memory"),
        ("_ArrayMemoryError", "Unable to allocate 2.00 GiB", "memory"),
        ("OSError", "[Errno 24] Too many open files: 'f'", "open_files"),
        ("OSError", "[Errno 27] File too large", "file_size"),
        ("OSError", "[Errno 28] No space left on device", "disk"),
        ("BlockingIOError", "[Errno 11] Resource temporarily unavailable", "processes"),
        ("OSError", "[Errno 2] No such file", None),
        ("OSError", "", None),
        ("ValueError", "[Errno 28] No space left on device", None),
        ("MyMemoryError", "", None),
        ("RuntimeError", "something else", None),
    ],
)
def test_an_exception_tells_of_a_limit(name, value, which):
    assert told_by(ALL, name, value) == which
    assert told_by(Limits.none(), name, value) is None


THREADS = "can't start new thread"


def test_threads_are_too_many_or_their_stacks_too_large():
    assert told_by(Limits("512M", processes=64), "RuntimeError", THREADS) == "processes"
    assert told_by(Limits("512M", processes=256), "RuntimeError", THREADS) == "memory"
    assert told_by(Limits("512M", processes=None), "RuntimeError", THREADS) == "memory"
    assert told_by(Limits(None, processes=64), "RuntimeError", THREADS) == "processes"
    assert told_by(Limits.none(), "RuntimeError", THREADS) is None
