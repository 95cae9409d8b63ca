"""The warm process: what all that is forked from it share, and what they must not."""

from __future__ import annotations

from mentis_pool import SandboxExecutor


def test_no_collection_touches_what_was_there_before_the_cell(executor):
    assert executor.submit("import gc; gc.get_freeze_count()").result().value > 10_000


def test_random_numbers_of_numpy_differ_though_it_was_preloaded(own_temp):
    cell = "import numpy, random; (numpy.random.random(), random.random())"
    with SandboxExecutor(max_workers=1, preload=["numpy.random"]) as executor:
        drawn = [result.value for result in executor.map([cell] * 3)]
    assert len({number for numbers in drawn for number in numbers}) == 6
