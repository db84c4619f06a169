"""Dask's graphs on pilots: what its scheduler functions promise, results that stay on workers, errors, callbacks."""

from __future__ import annotations

import functools
import importlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass
from windlass.dask import get
from windlass.errors import UsageError

#: Without types: it is marked as typed, and for the most part is not.
dask: Any = importlib.import_module("dask")
for part in ("array", "bag", "callbacks", "utils_test"):
    importlib.import_module(f"dask.{part}")
add: Any = dask.utils_test.add
inc: Any = dask.utils_test.inc


@pytest.fixture
def scheduler(pool: windlass.Executor) -> Iterator[windlass.Executor]:
    """Ours for all of the test; gives the executor."""
    with dask.config.set(scheduler=functools.partial(get, executor=pool)):
        yield pool


class TestWhatDaskPromisesOfAGet(dask.utils_test.GetFunctionTestMixin):  # type: ignore[misc]
    """Dask's own tests of a scheduler function, which it has for those of others."""

    get = staticmethod(get)

    @pytest.fixture(autouse=True)
    def _with_pool(self, pool: windlass.Executor) -> None:
        """The one that is open."""


def numbers() -> Any:
    """An array with work for many tasks."""
    array = dask.array.random.default_rng(1).random((600, 600), chunks=(200, 200))
    return array.dot(array.T) - array.mean(axis=0)


def test_collections_compute_what_they_do_with_dasks_own_scheduler(scheduler: windlass.Executor) -> None:
    """An array, a bag, delayed functions, several at once; by Dask's threads and on pilots."""
    words = dask.bag.from_sequence(["wind", "lass", "windlass", "wind"], npartitions=2)
    tree = dask.delayed(sum)([dask.delayed(inc)(number) for number in range(10)])
    for wanted in ((numbers().std(), numbers()[:3, :3]), (words.frequencies().map(list),), (tree, {"nested": [tree, 1]})):
        assert str(dask.compute(*wanted)) == str(dask.compute(*wanted, scheduler="threads"))


def test_tasks_run_in_slots(scheduler: windlass.Executor) -> None:
    """Not in this process."""
    assert os.getpid() not in dask.compute(*[dask.delayed(os.getpid, pure=False)() for _ in range(8)])


def make(number: int) -> np.ndarray[Any, Any]:
    return np.full(500_000, float(number))


def total(*arrays: np.ndarray[Any, Any]) -> float:
    return float(sum(array.sum() for array in arrays))


def test_results_between_tasks_stay_on_workers(scheduler: windlass.Executor) -> None:
    """40 MB are made and used up; the program gets a number, and holds nothing afterwards."""
    manager: Any = scheduler.manager
    made = [dask.delayed(make)(number) for number in range(10)]
    before = manager.status()["transfers"]["object_bytes_in"]
    assert dask.delayed(total)(*made).compute() == 500_000 * 45
    assert manager.status()["transfers"]["object_bytes_in"] - before < 1_000_000


def test_a_chain_is_one_call(scheduler: windlass.Executor) -> None:
    """Of tasks that are needed by the next alone; asked for in its middle too, it is two or three."""
    manager: Any = scheduler.manager
    chain: dict[str, Any] = {"x0": (inc, 0), **{f"x{number + 1}": (inc, f"x{number}") for number in range(50)}}
    before = manager.stats.done
    assert get(chain, "x50", executor=scheduler) == 51
    assert manager.stats.done - before == 1
    assert get(chain, ["x50", "x20"], executor=scheduler) == (51, 21)
    assert manager.stats.done - before <= 4


def stay(folder: Path, name: str) -> None:
    (folder / name).touch()
    while True:
        time.sleep(0.01)


def fail(folder: Path) -> None:
    while not (folder / "stays").exists():
        time.sleep(0.01)
    raise ZeroDivisionError("mine")


def test_the_first_error_is_raised_as_itself_and_cancels_the_rest(scheduler: windlass.Executor, tmp_path: Path) -> None:
    """A task that would run for ever ends, those that need the failed one never start, and the pool takes more work."""
    graph = {"bad": (fail, tmp_path), "long": (stay, tmp_path, "stays"), "after": (stay, tmp_path, "bad")}
    tasks = [dask.delayed(stay)(tmp_path, "stays"), dask.delayed(add)(dask.delayed(fail)(tmp_path), 1)]
    with pytest.raises(ZeroDivisionError, match="mine"):
        dask.compute(*tasks)
    with pytest.raises(ZeroDivisionError, match="mine"):
        get(graph, ["long", "after", "bad"], executor=scheduler)
    assert dask.delayed(inc)(1).compute() == 2


def test_what_is_not_needed_is_not_run(scheduler: windlass.Executor, tmp_path: Path) -> None:
    """Of a graph with more in it than was asked for."""
    assert get({"x": (inc, 1), "never": (stay, tmp_path, "never")}, "x", executor=scheduler) == 2
    assert not (tmp_path / "never").exists()


failed_in: list[int] = []


def fail_here(number: int) -> None:
    failed_in.append(os.getpid())
    raise KeyError(number)


def test_a_task_that_fails_is_run_again_in_the_program_if_that_was_asked_for(scheduler: windlass.Executor) -> None:
    """For a debugger; by Dask's own loop."""
    with pytest.raises(KeyError, match="3"):
        dask.delayed(fail_here)(3).compute(rerun_exceptions_locally=True)
    assert failed_in == [os.getpid()]


def test_callbacks_are_told_of_tasks_with_their_results(scheduler: windlass.Executor) -> None:
    """Then Dask's own loop runs: progress bars and profilers work."""
    told: list[Any] = []

    def tell(key: Any, value: Any, *rest: Any) -> None:
        told.append(value)

    with dask.callbacks.Callback(posttask=tell):
        assert dask.delayed(inc)(dask.delayed(inc)(1)).compute(optimize_graph=False) == 3
    assert told == [2, 3]


def test_an_executor_itself_is_a_scheduler(pool: windlass.Executor) -> None:
    """``scheduler=pool``: by Dask's own loop, which asks the executor how many tasks it can run."""
    assert pool._max_workers == 2  # pyright: ignore[reportPrivateUsage]
    np.testing.assert_allclose(numbers().std().compute(scheduler=pool), numbers().std().compute(scheduler="sync"))


def test_graphs_of_several_threads_run_beside_each_other(scheduler: windlass.Executor) -> None:
    """Dask's collections are used from threads of web servers and notebooks."""
    found: list[int] = []

    def compute(number: int) -> None:
        found.append(get({"x": number, "y": (inc, "x"), "z": (add, "x", "y")}, "z", executor=scheduler))

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [2 * number + 1 for number in range(8)]


def test_where_several_executors_are_open_one_must_be_named(pool: windlass.Executor) -> None:
    """The text says how."""
    with windlass.Executor(None), pytest.raises(UsageError, match=r"2 executors are open.*scheduler=windlass\.dask\.get, executor=pool"):
        get({"x": (inc, 1)}, "x")
