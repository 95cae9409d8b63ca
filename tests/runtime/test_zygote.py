"""The warm process: what all that is forked from it share, and what they must not."""

from __future__ import annotations

import sys

import pytest

from mentis_pool import SandboxExecutor

QUICKENED = """
import dis, sys
frame = sys._getframe()
while frame.f_code.co_name != "_obey":
    frame = frame.f_back
[i.opname for i in dis.get_instructions(frame.f_code, adaptive=True) if "LOAD_ATTR_" in i.opname] != []
"""


def test_no_collection_touches_what_was_there_before_the_cell(executor):
    assert executor.submit("import gc; gc.get_freeze_count()").result().value > 10_000


def test_random_numbers_of_numpy_differ_though_it_was_preloaded(own_temp):
    cell = "import numpy, random; (numpy.random.random(), random.random())"
    with SandboxExecutor(max_workers=1, preload=["numpy.random"]) as executor:
        drawn = [result.value for result in executor.map([cell] * 3)]
    assert len({number for numbers in drawn for number in numbers}) == 6


def test_it_has_one_thread_and_so_has_whatever_forks_from_it(own_temp, processes):
    with SandboxExecutor(max_workers=1) as executor:
        assert executor.submit("import threading; threading.active_count()").result().value == 1
        executor.submit("1").result()
        threads = {}
        for pid in processes(own_temp):
            with open(f"/proc/{pid}/cmdline") as words, open(f"/proc/{pid}/status") as status:
                if "mentis_pool.runtime.zygote" in words.read():
                    threads[pid] = next(line for line in status if line.startswith("Threads:"))
    assert len(threads) > 1, "it and the first process of a sandbox at least"
    assert set(threads.values()) == {"Threads:\t1\n"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no code is written into there")
def test_the_interpreter_knows_a_workers_code_before_its_first_cell(executor):
    assert executor.submit(QUICKENED).result().value


def test_a_first_cell_sees_nothing_of_what_was_done_before(executor):
    cell = (
        "import linecache\n_, len(In), sorted(n for n in linecache.cache if n.startswith('<cell'))"
    )
    assert executor.submit(cell).result().value == ("", 2, ["<cell 1>"])
