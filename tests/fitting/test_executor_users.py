"""Programs that take any `concurrent.futures.Executor`: asyncio, helpers that wrap one, samplers that take a pool."""

# pyright: reportPrivateUsage=false
# ``_max_workers`` is what others look at.

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import operator
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import windlass


def test_it_is_an_executor(pool: windlass.Executor) -> None:
    """By class, by what it says of its size, and as a context manager; so is one with options."""
    with_options = pool.with_options(cores=2)
    for one, slots in ((pool, 2), (with_options, 1)):
        assert isinstance(one, concurrent.futures.Executor)
        assert (one._max_workers, one.slots()) == (slots, slots)
    with with_options as inside:
        assert inside is with_options
    assert pool.submit(abs, -1).result() == 1  # the end of a view ended nothing


def test_more_pilots_are_more_slots() -> None:
    """What pools may have counts, before any pilot is there; a pool that nothing fits in has none."""
    with windlass.Executor("fake", cores=4, max_pilots=3) as pool:
        assert pool.slots() == 12
        assert pool.with_options(cores=3).slots() == 3
        assert pool.with_options(cores=5).slots() == 0
        assert pool.with_options(cores=5)._max_workers == 1
    with windlass.Executor(None) as nobody:
        assert nobody.slots() == 0


def test_asyncio_runs_functions_in_it(pool: windlass.Executor) -> None:
    """``run_in_executor``, gathered; an error is the function's own."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(pool, divmod, 1, 0)
        assert await loop.run_in_executor(pool, os.getpid) != os.getpid()
        return await asyncio.gather(*(loop.run_in_executor(pool, math.sqrt, number) for number in (1, 4, 9)))

    assert asyncio.run(main()) == [1.0, 2.0, 3.0]


def test_a_cancelled_task_of_asyncio_cancels_its_call(pool: windlass.Executor) -> None:
    """The slot is free for others."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(pool, for_ever), 0.5)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(pool, for_ever), 0.5)
        return await loop.run_in_executor(pool, abs, -7)

    assert asyncio.run(main()) == 7


def for_ever() -> None:
    import time

    while True:
        time.sleep(0.01)


def executor_map(kind: Any, function: Any, *inputs: Iterable[Any], max_workers: int, chunksize: int) -> list[Any]:
    """As libraries of progress bars make an executor of a class that is given to them, and map with it."""
    with kind(max_workers) as executor:
        return list(executor.map(function, *inputs, timeout=60, chunksize=chunksize))


def test_helpers_that_make_an_executor_of_a_class_can_be_given_ours() -> None:
    """By a function of the number of workers; results are those of a pool of processes."""

    def kind(max_workers: int) -> windlass.Executor:
        return windlass.Executor("local", cores=max_workers, max_pilots=1)

    inputs = range(100), range(100, 0, -1)
    found = executor_map(kind, operator.sub, *inputs, max_workers=2, chunksize=7)
    assert found == executor_map(concurrent.futures.ThreadPoolExecutor, operator.sub, *inputs, max_workers=2, chunksize=7)


class Sampler:
    """As samplers take a pool: an object with a ``map``."""

    def __init__(self, walkers: int, log_probability: Any, pool: Any = None) -> None:
        self.walkers, self.log_probability = walkers, log_probability
        self.map: Any = pool.map if pool is not None else map

    def run(self, steps: int) -> np.ndarray[Any, Any]:
        chance = np.random.default_rng(5)
        places = chance.normal(size=self.walkers)
        here = np.array(list(self.map(self.log_probability, places)))
        for _ in range(steps):
            proposed = places + chance.normal(size=self.walkers)
            there = np.array(list(self.map(self.log_probability, proposed)))
            taken = np.log(chance.random(self.walkers)) < there - here
            places, here = np.where(taken, proposed, places), np.where(taken, there, here)
        return places


def log_normal(place: float) -> float:
    return -0.5 * place * place


def test_samplers_take_it_for_a_pool(pool: windlass.Executor) -> None:
    """Same numbers as without."""
    for given in (pool, pool.with_options(retries=1)):
        np.testing.assert_array_equal(Sampler(8, log_normal, given).run(5), Sampler(8, log_normal).run(5))
