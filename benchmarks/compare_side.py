"""One side of `compare.py`: a program that runs calls through one system, as that system's users write it.

    python benchmarks/compare_side.py SYSTEM

Theory of operation: this file is executed by the interpreter of the system's own environment, in a folder of its own, so it loads nothing
but the standard library before the first result is there.  It starts the system with two workers, runs one call, and answers; then it
reads a command from each line of stdin and answers with one JSON value a line on stdout:

    throughput N      submit N calls, then take all results         the seconds that took
    latency N         N calls, each submitted when the last ended   the seconds of each
    arrays N          the same with arrays of 1 MB                  the seconds of each
    end               stop the system                               none; the program ends

All loads are the same for all, line by line.  A system is a context manager that gives `Calls`: how one call is submitted, and how its
users take the results of many.  Each call has an argument of its own, and each result is checked.  Settings are those that the system's
documentation names for many short calls on one machine; a comment says why where it is not the default.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TextIO

#: Workers of each system, of one thread each.
WORKERS = 2
MEGABYTE = 10**6


class Calls(NamedTuple):
    """What the loads need of a system."""

    #: Gives something that stands for the result of ``echo(argument)``.
    submit: Callable[[Any], Any]
    #: The results of such things, in their order.
    results: Callable[[Sequence[Any]], Sequence[Any]]


def echo(value: Any) -> Any:
    """The call that does nothing."""
    return value


def of_futures(futures: Sequence[Any]) -> list[Any]:
    """Results of what follows `concurrent.futures`."""
    return [future.result() for future in futures]


# ---------------------------------------------------------------- the systems


@contextlib.contextmanager
def windlass_side() -> Generator[Calls]:
    """A pilot of two cores on this machine. Everything else as by default; TLS is always on."""
    windlass = importlib.import_module("windlass")
    with windlass.Executor("local", cores=WORKERS, max_pilots=1) as pool:
        yield Calls(partial(pool.submit, echo), of_futures)


@contextlib.contextmanager
def pool_side() -> Generator[Calls]:
    with ProcessPoolExecutor(WORKERS) as opened:
        pool: Any = opened
        yield Calls(partial(pool.submit, echo), of_futures)


@contextlib.contextmanager
def executorlib_side(**options: Any) -> Generator[Calls]:
    """``block_allocation``: its documentation's setting for many short calls, as worker processes stay; by default each call starts one."""
    executorlib = importlib.import_module("executorlib")
    with executorlib.SingleNodeExecutor(max_workers=WORKERS, block_allocation=True, **options) as pool:
        yield Calls(partial(pool.submit, echo), of_futures)


@contextlib.contextmanager
def executorlib_plain_side() -> Generator[Calls]:
    """For programs that give no futures as arguments: without the thread that waits for those, calls go to the workers at once."""
    with executorlib_side(disable_dependencies=True) as calls:
        yield calls


@contextlib.contextmanager
def mpi4py_side() -> Generator[Calls]:
    """Started by ``mpiexec -n 3 python -m mpi4py.futures``, the way that works with every MPI: the program, and two workers."""
    futures = importlib.import_module("mpi4py.futures")
    with futures.MPIPoolExecutor(max_workers=WORKERS) as pool:
        yield Calls(partial(pool.submit, echo), of_futures)


@contextlib.contextmanager
def ray_started() -> Generator[Any]:
    """Ray with two CPUs; its log of workers not on the screen, and its files where this program's are."""
    ray = importlib.import_module("ray")
    ray.init(num_cpus=WORKERS, log_to_driver=False, include_dashboard=False, _temp_dir=f"{os.getcwd()}/ray")
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def ray_tasks_side() -> Generator[Calls]:
    with ray_started() as ray:
        remote = ray.remote(echo)
        yield Calls(remote.remote, ray.get)


class Echo:
    """The actor of `ray_actors_side`."""

    def echo(self, value: Any) -> Any:
        return value


@contextlib.contextmanager
def ray_actors_side() -> Generator[Calls]:
    """One actor a CPU, in turns: what Ray advises for calls that are shorter than what a task costs."""
    with ray_started() as ray:
        actor = ray.remote(Echo)
        actors = itertools.cycle([actor.options(num_cpus=1).remote() for _ in range(WORKERS)])

        def submit(value: Any) -> Any:
            return next(actors).echo.remote(value)

        yield Calls(submit, ray.get)


@contextlib.contextmanager
def parsl_side() -> Generator[Calls]:
    """HTEX as in Parsl's example for one machine, encrypted as by default.

    ``prefetch_capacity`` is its documentation's setting for many short calls; its log of every call's states is left out.
    """
    parsl, executors = importlib.import_module("parsl"), importlib.import_module("parsl.executors")
    providers = importlib.import_module("parsl.providers")
    executor = executors.HighThroughputExecutor(
        address="127.0.0.1",
        max_workers_per_node=WORKERS,
        cores_per_worker=1,
        prefetch_capacity=100,
        provider=providers.LocalProvider(init_blocks=1, max_blocks=1),
    )
    with parsl.load(importlib.import_module("parsl.config").Config(executors=[executor], initialize_logging=False)):
        yield Calls(parsl.python_app(echo), of_futures)


@contextlib.contextmanager
def dask_side() -> Generator[Calls]:
    """What ``Client()`` makes on two cores: a local cluster of two processes of one thread each.

    ``pure=False`` spares it the hash of function and argument, by which it would know equal calls.
    """
    distributed = importlib.import_module("distributed")
    with distributed.Client(n_workers=WORKERS, threads_per_worker=1) as client:
        yield Calls(partial(client.submit, echo, pure=False), client.gather)


SYSTEMS: dict[str, Callable[[], contextlib.AbstractContextManager[Calls]]] = {
    "windlass": windlass_side,
    "pool": pool_side,
    "executorlib": executorlib_side,
    "executorlib-plain": executorlib_plain_side,
    "mpi4py": mpi4py_side,
    "ray-tasks": ray_tasks_side,
    "ray-actors": ray_actors_side,
    "parsl": parsl_side,
    "dask": dask_side,
}


# ---------------------------------------------------------------- the loads


def check(right: bool) -> None:
    if not right:
        raise SystemExit("a call gave a wrong result; the figures are void")


def throughput(calls: Calls, numbers: Iterator[int], count: int) -> float:
    values = list(itertools.islice(numbers, count))
    began = time.perf_counter()
    given = [calls.submit(value) for value in values]
    back = calls.results(given)
    took = time.perf_counter() - began
    check(list(back) == values)
    return took


def one_by_one(calls: Calls, values: Sequence[Any], same: Callable[[Any, Any], bool]) -> list[float]:
    took: list[float] = []
    for value in values:
        began = time.perf_counter()
        (back,) = calls.results([calls.submit(value)])
        took.append(time.perf_counter() - began)
        check(same(back, value))
    return took


def latency(calls: Calls, numbers: Iterator[int], count: int) -> list[float]:
    return one_by_one(calls, list(itertools.islice(numbers, count)), int.__eq__)


def arrays(calls: Calls, numbers: Iterator[int], count: int) -> list[float]:
    numpy: Any = importlib.import_module("numpy")
    values = [numpy.full(MEGABYTE // 8, number, dtype=numpy.float64) for number in itertools.islice(numbers, count)]
    return one_by_one(calls, values, numpy.array_equal)


LOADS: dict[str, Callable[[Calls, Iterator[int], int], Any]] = {"throughput": throughput, "latency": latency, "arrays": arrays}


def own_streams() -> tuple[TextIO, TextIO]:
    """stdin and stdout for this program alone: what systems and workers print goes to stderr, and they read nothing."""
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return commands, answers


def main() -> None:
    commands, answers = own_streams()

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    numbers = itertools.count(1)
    with SYSTEMS[sys.argv[1]]() as calls:
        answer(throughput(calls, numbers, 1))
        for line in commands:
            word, *sizes = line.split()
            if word == "end":
                break
            answer(LOADS[word](calls, numbers, *map(int, sizes)))


if __name__ == "__main__":
    main()
