"""Code that accepts any executor and knows nothing of this one, with the standard one and with ours."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import math
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from tqdm import tqdm

from mentis_pool import SandboxExecutor


@pytest.fixture(scope="module", params=[ProcessPoolExecutor, SandboxExecutor])
def pool(request, sharing):
    """A class of executors."""
    if request.param is ProcessPoolExecutor:
        return ProcessPoolExecutor

    class AtOneRuntime(SandboxExecutor):
        """Nothing is started for it, as for those of `sharing`."""

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **sharing.keywords, **options)

    return AtOneRuntime


@pytest.fixture(scope="module")
def executor(pool):
    with pool(2) as executor:
        yield executor


def square(x):
    return x * x


def slow(x, path):
    """Ends when there is such a file."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return x


def fail(x):
    raise ValueError(x)


# ── the recipes of the standard documentation ───────────────────────────────

PRIMES = [
    112272535095293, 112582705942171, 112272535095293, 115280095190773, 115797848077099,
    1099726899285419,
]  # fmt: skip


def is_prime(n):
    """As the example of ProcessPoolExecutor has it."""
    if n < 2:
        return False
    if n == 2:
        return True
    if n % 2 == 0:
        return False
    return all(n % i for i in range(3, min(math.isqrt(n), 100_000) + 1, 2))


def test_the_primes_example(pool):
    with pool() as executor:
        found = {}
        for number, prime in zip(PRIMES, executor.map(is_prime, PRIMES), strict=True):
            found[number] = prime
    assert found == {number: is_prime(number) for number in PRIMES}


def load(url, timeout):
    if url.startswith("http://nonexistant"):
        raise OSError(f"no such host: {url} ({timeout})")
    return url.encode()


def test_the_web_example_with_a_dict_of_futures(executor):
    urls = ["http://www.foxnews.com/", "http://www.cnn.com/", "http://nonexistant.com/"]
    said = {}
    future_to_url = {executor.submit(load, url, 60): url for url in urls}
    for future in concurrent.futures.as_completed(future_to_url):
        url = future_to_url[future]
        try:
            said[url] = len(future.result())
        except OSError as exc:
            said[url] = str(exc)
    assert said == {
        "http://www.foxnews.com/": 23,
        "http://www.cnn.com/": 19,
        "http://nonexistant.com/": "no such host: http://nonexistant.com/ (60)",
    }


def test_submit_with_pow(executor):
    assert executor.submit(pow, 323, 1235).result() == 323**1235


def test_wait_for_the_first_to_complete(executor, shown):
    waiting = executor.submit(slow, 1, str(shown / "go"))
    quick = executor.submit(square, 2)
    done, left = concurrent.futures.wait(
        [waiting, quick], return_when=concurrent.futures.FIRST_COMPLETED
    )
    assert (done, left) == ({quick}, {waiting})
    (shown / "go").touch()
    assert concurrent.futures.wait([waiting, quick]) == ({waiting, quick}, set())


def test_wait_for_the_first_exception(executor, shown):
    waiting = executor.submit(slow, 1, str(shown / "go"))
    failing = executor.submit(fail, 2)
    done, left = concurrent.futures.wait(
        [waiting, failing], timeout=20, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    assert (done, left) == ({failing}, {waiting})
    (shown / "go").touch()
    assert waiting.result() == 1


def test_wait_and_as_completed_have_timeouts(executor, shown):
    waiting = executor.submit(slow, 1, str(shown / "go"))
    assert concurrent.futures.wait([waiting], timeout=0.05) == (set(), {waiting})
    with pytest.raises(concurrent.futures.TimeoutError):
        list(concurrent.futures.as_completed([waiting], timeout=0.05))
    with pytest.raises(concurrent.futures.TimeoutError):
        waiting.result(0.05)
    (shown / "go").touch()
    assert list(concurrent.futures.as_completed([waiting, waiting])) == [waiting]


def test_callbacks_are_called_with_the_future(executor):
    called = threading.Event()
    said = []
    future = executor.submit(square, 3)
    future.add_done_callback(lambda each: (said.append(each), called.set()))
    assert called.wait(20)
    assert said == [future]
    future.add_done_callback(said.append)
    assert said == [future, future]


def test_map_with_chunks(executor):
    numbers = range(1000)
    assert list(executor.map(square, numbers, chunksize=100)) == [x * x for x in numbers]


def test_a_timeout_of_map(executor):
    executor.submit(square, 3).result()  # from here on a worker is up
    results = executor.map(time.sleep, [0, 2], timeout=1)
    assert next(results) is None
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)


def test_shutdown_cancels_what_waits(pool, shown, eventually):
    executor = pool(1)
    running = executor.submit(slow, 1, str(shown / "go"))
    waiting = [executor.submit(square, i) for i in range(50)]
    while not running.running():
        time.sleep(0.01)
    executor.shutdown(wait=False, cancel_futures=True)
    (shown / "go").touch()
    assert running.result(20) == 1
    eventually(lambda: all(future.done() for future in waiting))
    # The process pool has a few under way.
    assert sum(future.cancelled() for future in waiting) >= 45
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(square, 1)


# ── asyncio ─────────────────────────────────────────────────────────────────


def test_run_in_executor_and_gather(executor):
    async def main():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, square, i) for i in range(20)]
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [i * i for i in range(20)]


def test_an_exception_is_raised_where_it_is_awaited(executor):
    async def main():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, of, 2) for of in (square, fail)]
        return await asyncio.gather(*calls, return_exceptions=True)

    value, exc = asyncio.run(main())
    assert value == 4
    assert type(exc) is ValueError
    assert exc.args == (2,)


def test_a_wrapped_future_is_awaited_and_as_completed(executor):
    async def main():
        wrapped = [asyncio.wrap_future(executor.submit(square, i)) for i in range(5)]
        return sorted([await each for each in asyncio.as_completed(wrapped)])

    assert asyncio.run(main()) == [0, 1, 4, 9, 16]


def test_the_loop_stays_free_and_a_timeout_of_asyncio_works(executor, shown):
    async def main():
        loop = asyncio.get_running_loop()
        waiting = loop.run_in_executor(executor, slow, 1, str(shown / "go"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting, 0.1)
        (shown / "go").touch()
        return await loop.run_in_executor(executor, square, 5)

    assert asyncio.run(main()) == 25


def test_cancelling_the_task_that_awaits_cancels_what_waits(pool, shown):
    async def main(executor):
        loop = asyncio.get_running_loop()
        go = str(shown / "go")
        running = [executor.submit(slow, i, go) for i in range(10)]
        future = executor.submit(square, 1)
        task = asyncio.ensure_future(_awaited(future))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()
        (shown / "go").touch()
        await asyncio.gather(*map(asyncio.wrap_future, running))
        return await loop.run_in_executor(executor, square, 3)

    with pool(1) as executor:
        assert asyncio.run(main(executor)) == 9


async def _awaited(future):
    return await asyncio.wrap_future(future)


def test_cancelling_the_task_that_awaits_leaves_what_runs(executor, shown):
    async def main():
        future = executor.submit(slow, 1, str(shown / "go"))
        while not future.running():
            await asyncio.sleep(0.01)
        task = asyncio.ensure_future(_awaited(future))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not future.cancelled()
        (shown / "go").touch()
        return await asyncio.to_thread(future.result)

    assert asyncio.run(main()) == 1


def test_a_task_group_ends_with_the_first_exception(executor):
    if not hasattr(asyncio, "TaskGroup"):
        pytest.skip("asyncio.TaskGroup is from 3.11")

    async def main():
        async with asyncio.TaskGroup() as group:
            for of in (square, fail):
                group.create_task(_awaited(executor.submit(of, 1)))

    with pytest.raises(ExceptionGroup) as caught:  # noqa: F821 - from 3.11
        asyncio.run(main())
    assert [type(exc) for exc in caught.value.exceptions] == [ValueError]


def test_context_variables_of_the_caller_stay_with_it(executor):
    variable = contextvars.ContextVar("variable", default=0)

    async def main():
        variable.set(5)
        await asyncio.get_running_loop().run_in_executor(executor, square, 1)
        return variable.get()

    assert asyncio.run(main()) == 5


# ── libraries ───────────────────────────────────────────────────────────────


def square_and_pid(x):
    return x * x, os.getpid()


def is_odd(x):
    return x % 2 == 1


def test_dask_computes_with_it(executor):
    import dask

    double = dask.delayed(square_and_pid)
    with dask.config.set(scheduler=executor):
        results = dask.compute(*[double(i) for i in range(10)])
        total = dask.delayed(sum)([dask.delayed(square)(i) for i in range(10)]).compute()
    assert [value for value, _ in results] == [i * i for i in range(10)]
    assert os.getpid() not in {pid for _, pid in results}
    assert total == 285


def test_an_exception_in_dask_is_raised_here(executor):
    import dask

    with dask.config.set(scheduler=executor):
        with pytest.raises(ValueError, match=r"^7$"):
            dask.delayed(fail)(7).compute()


def test_a_bag_of_dask(executor):
    import dask
    import dask.bag

    with dask.config.set(scheduler=executor):
        bag = dask.bag.from_sequence(range(100), npartitions=4)
        assert bag.map(square).filter(is_odd).sum().compute() == sum(
            x * x for x in range(100) if x % 2
        )


class NoLock:
    """For bars of which each is in a terminal of its own.

    tqdm hands its lock to the initializer; the one that it has of itself is of multiprocessing,
    and can be shared with forked processes only.
    """

    def acquire(self, *args, **kwargs):
        return True

    def release(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Bar(tqdm):
    _lock = NoLock()


def test_tqdm_maps_with_it(pool, capsys):
    from tqdm.contrib.concurrent import _executor_map

    done = _executor_map(pool, square, range(20), max_workers=2, chunksize=3, tqdm_class=Bar)
    assert done == [x * x for x in range(20)]
    capsys.readouterr()
    done = _executor_map(pool, pow, [1, 2, 3], [2, 2, 2], max_workers=1, tqdm_class=Bar)
    assert done == [1, 4, 9]
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(("chunksize", "tasks"), [(1, 20), (3, 7)])
def test_map_goes_by_way_of_a_submit_that_was_replaced(pool, chunksize, tasks):
    class Counting(pool):
        submitted = 0

        def submit(self, *args, **kwargs):
            self.submitted += 1
            return super().submit(*args, **kwargs)

    with Counting(1) as executor:
        assert list(executor.map(square, range(20), chunksize=chunksize)) == [
            x * x for x in range(20)
        ]
        assert executor.submitted == tasks


def test_code_that_makes_its_own_pool_takes_the_class(pool):
    """``Pool(max_workers=…, initializer=…, initargs=…)``, as libraries write it."""
    with pool(max_workers=1, initializer=os.putenv, initargs=("A", "b")) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        assert list(executor.map(square, [1, 2])) == [1, 4]
