"""Futures, loops and maps over a real pilot: TaskVine's loop, ``await``, `concurrent.futures`, and the executor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import windlass
from windlass import FunctionCall


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of this module share a manager and its pilot."""


def square(number: int) -> int:
    return number * number


def fail(text: str) -> None:
    raise ValueError(text)


@pytest.fixture(scope="module")
def manager(shared_manager: windlass.Manager) -> windlass.Manager:
    """The shared manager with a library of small functions."""
    shared_manager.install_library("small", square, fail)
    return shared_manager


@pytest.fixture(autouse=True)
def all_collected(manager: windlass.Manager) -> Iterator[None]:
    """After each test every call has ended and was collected, so that a loop over `empty` ends."""
    yield
    assert manager.wait(20) is None
    assert manager.empty()


# ---------------------------------------------------------------- TaskVine's loop


def test_the_loop_of_taskvine_gets_every_call_once(manager: windlass.Manager) -> None:
    """``while not q.empty(): q.wait(5)`` hands out each call once, with its output, and then ends."""
    futures = [manager.submit(FunctionCall("small", "square", number)) for number in range(50)]
    assert not manager.empty()
    outputs: dict[int, int] = {}
    while not manager.empty():
        done = manager.wait(5)
        if done:
            assert done.completed()
            assert done.successful()
            assert done.id not in outputs
            outputs[done.id] = done.output
    assert outputs == {future.id: number * number for number, future in enumerate(futures)}
    assert manager.wait(0) is None


def test_wait_hands_out_failed_calls_too(manager: windlass.Manager) -> None:
    """A failed call comes out of `wait` with its exception in ``error``; reading its ``output`` raises it."""
    manager.submit(FunctionCall("small", "fail", "no luck")).tag = "unlucky"
    done = manager.wait(10)
    assert done is not None
    assert not done.successful()
    assert isinstance(done.error, ValueError)
    with pytest.raises(ValueError, match="no luck"):
        _ = done.output


def test_what_was_collected_by_its_future_is_not_handed_out_again(manager: windlass.Manager) -> None:
    """`result` and `wait` share the calls: each goes to the first that asks."""
    first, second = (manager.submit(FunctionCall("small", "square", number)) for number in (3, 4))
    assert first.result(10) == 9
    assert manager.wait(10) is second
    assert manager.empty()
    assert second.result() == 16


def test_the_timings_of_a_call_are_in_order(manager: windlass.Manager) -> None:
    """Submitted, sent, started, ready, ended, returned: in this order, all between the program's own looks at the clock."""
    begin = time.time()
    future = manager.submit(FunctionCall("small", "square", 5).with_options(tag="five"))
    assert future.result(10) == 25
    told = future.timings
    moments = [begin, told.submitted, told.sent, told.started, told.ready, told.ended, told.returned, time.time()]
    assert moments == sorted(moments)
    assert future.tag == "five"
    assert future.state == "done"


# ---------------------------------------------------------------- await


def test_several_calls_are_awaited_at_once_while_the_loop_runs(pool: windlass.Executor, gate: Any) -> None:
    """`asyncio.gather` over futures keeps their order, and the event loop runs meanwhile: a task of it opens the calls' gate."""

    def go_through(number: int) -> int:
        gate.pass_through(str(number))
        return number

    async def open_when_there() -> None:
        while len(gate.arrived()) < 2:
            await asyncio.sleep(0.002)
        gate.open()

    async def main() -> list[int]:
        opening = asyncio.create_task(open_when_there())
        results = await asyncio.gather(*[pool.submit(go_through, number) for number in range(6)])
        await opening
        return results

    assert asyncio.run(main()) == list(range(6))


def test_await_raises_the_functions_exception_and_wrap_future_works(manager: windlass.Manager) -> None:
    """What `result` raises, ``await`` raises; asyncio's own way to await a future of `concurrent.futures` works, too."""

    async def main() -> None:
        with pytest.raises(ValueError, match="awaited"):
            await manager.submit(FunctionCall("small", "fail", "awaited"))
        assert await asyncio.wrap_future(manager.submit(FunctionCall("small", "square", 6))) == 36
        done = manager.submit(FunctionCall("small", "square", 7))
        assert await done == 49
        assert await done == 49  # again, and after its end

    asyncio.run(main())


def test_a_cancelled_task_cancels_its_call(pool: windlass.Executor, gate: Any) -> None:
    """`asyncio.timeout` around an ``await`` ends the running call on the pilot, too: its slot runs the next one."""

    async def main() -> windlass.CallFuture[None]:
        future = pool.submit(gate.pass_through, "held")
        while not gate.arrived():
            await asyncio.sleep(0.002)
        task = asyncio.ensure_future(_of(future))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return future

    async def _of(future: windlass.CallFuture[None]) -> None:
        await future

    future = asyncio.run(main())
    assert future.cancelled()
    # Both slots are free again, though the gate is closed.
    assert list(pool.map(square, range(4))) == [0, 1, 4, 9]


def test_a_call_that_runs_says_so(pool: windlass.Executor, gate: Any) -> None:
    """And one that waits behind it does not."""
    futures = [pool.submit(gate.pass_through, f"kept {number}") for number in range(3)]
    gate.wait_for(2)
    expected = [(True, "running"), (True, "running"), (False, "waiting")]
    end = time.monotonic() + 30
    while [(future.running(), future.state) for future in futures] != expected and time.monotonic() < end:
        time.sleep(0.01)  # they have begun, and the manager is about to hear of it
    assert [(future.running(), future.state) for future in futures] == expected
    for future in futures:
        future.cancel()
    assert [(future.running(), future.state) for future in futures] == [(False, "cancelled")] * 3


def test_the_executor_serves_run_in_executor(pool: windlass.Executor) -> None:
    """An event loop takes it for what it is: a `concurrent.futures.Executor`."""

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(pool, square, 12)

    assert asyncio.run(main()) == 144


# ---------------------------------------------------------------- concurrent.futures


def test_as_completed_gives_what_ended_first(pool: windlass.Executor, gate: Any) -> None:
    """A call that was submitted first and ends last comes out last, beside futures of another executor."""
    slow = pool.submit(gate.pass_through, "slow")
    quick = pool.submit(square, 4)
    with ThreadPoolExecutor(1) as threads:
        ours: list[concurrent.futures.Future[Any]] = [slow, quick, threads.submit(square, 5)]
        coming = concurrent.futures.as_completed(ours, timeout=20)
        early = {next(coming).result(), next(coming).result()}
        assert early == {16, 25}
        gate.open()
        assert next(coming) is slow
        assert slow.result() is None
        assert next(coming, None) is None


def test_wait_of_concurrent_futures_returns_when_asked_to(pool: windlass.Executor, gate: Any) -> None:
    """FIRST_COMPLETED and FIRST_EXCEPTION return while another call still runs; ALL_COMPLETED and a timeout mean what they say."""
    held: windlass.CallFuture[Any] = pool.submit(gate.pass_through, "held")
    good: windlass.CallFuture[Any] = pool.submit(square, 2)
    bad: windlass.CallFuture[Any] = pool.submit(fail, "first")
    done, left = concurrent.futures.wait([held, good], timeout=20, return_when=FIRST_COMPLETED)
    assert (done, left) == ({good}, {held})
    done, left = concurrent.futures.wait([held, bad], timeout=20, return_when=FIRST_EXCEPTION)
    assert (done, left) == ({bad}, {held})
    assert concurrent.futures.wait([held], timeout=0).not_done == {held}
    gate.open()
    assert concurrent.futures.wait([held, good, bad], timeout=20).not_done == set()
    assert (held.result(), good.result()) == (None, 4)
    assert isinstance(bad.exception(), ValueError)


def test_done_callbacks_get_the_future_and_may_wait_for_other_calls(pool: windlass.Executor) -> None:
    """A callback is no guest of the manager's thread: it may submit, and block on what it submitted."""
    seen: list[tuple[int, int]] = []
    called = threading.Event()

    def then(future: concurrent.futures.Future[int]) -> None:
        seen.append((future.result(), pool.submit(square, future.result()).result(10)))
        called.set()

    pool.submit(square, 3).add_done_callback(then)
    assert called.wait(20)
    assert seen == [(9, 81)]


def test_many_threads_submit_at_once(pool: windlass.Executor) -> None:
    """Threads of the program share an executor without mixing up results."""

    def from_thread(offset: int) -> list[int]:
        futures = [pool.submit(square, offset + number) for number in range(100)]
        return [future.result(20) for future in futures]

    with ThreadPoolExecutor(4) as threads:
        for offset, results in zip(range(0, 400, 100), threads.map(from_thread, range(0, 400, 100)), strict=True):
            assert results == [number * number for number in range(offset, offset + 100)]


# ---------------------------------------------------------------- map


class Counted:
    """Endless numbers that tell how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.taken += 1
            yield self.taken - 1


@pytest.mark.parametrize("ordered", [True, False])
def test_map_over_an_endless_iterator_reads_only_its_window(pool: windlass.Executor, ordered: bool) -> None:
    """Inputs are read only as far as ``buffersize`` calls ahead of the consumer; closing the results cancels those."""
    numbers = Counted()
    results = pool.map(square, numbers, ordered=ordered, buffersize=20)
    got: list[int] = []
    for result in itertools.islice(results, 300):
        got.append(result)
        assert numbers.taken <= len(got) + 20
    if ordered:
        assert got == [number * number for number in range(300)]
    else:
        assert set(got) <= {number * number for number in range(numbers.taken)}
        assert len(set(got)) == 300
    results.close()
    with pytest.raises(StopIteration):
        next(results)


def test_map_stays_within_a_window_of_its_own_choice(pool: windlass.Executor) -> None:
    """Without ``buffersize`` endless inputs are fine, too: what is ahead has a bound."""
    numbers = Counted()
    results = pool.map(square, numbers)
    for count, result in enumerate(itertools.islice(results, 2000)):
        assert result == count * count
        assert numbers.taken - count <= 16_385
    results.close()


def test_map_keeps_no_results_that_were_taken(pool: windlass.Executor, shared_manager: windlass.Manager) -> None:
    """Over hundreds of large results neither the program nor the object store holds more than the window of them."""

    def large(number: int) -> npt.NDArray[np.float64]:
        return np.full(100_000, float(number))

    alive: list[weakref.ref[npt.NDArray[np.float64]]] = []
    store = shared_manager._store  # pyright: ignore[reportPrivateUsage]
    gc.collect()
    before = len(store.names())
    results = pool.map(large, itertools.count(), buffersize=8)
    for number, array in enumerate(itertools.islice(results, 200)):
        assert array[0] == array[-1] == number
        alive = [ref for ref in alive if ref() is not None]
        alive.append(weakref.ref(array))
        assert len(alive) <= 2
        assert len(store.names()) - before <= 20
    results.close()


@pytest.mark.parametrize(("ordered", "expected"), [(True, ["slow", "quick"]), (False, ["quick", "slow"])])
def test_map_gives_results_in_order_or_as_completed(pool: windlass.Executor, gate: Any, ordered: bool, expected: list[str]) -> None:
    """The first input's call ends only when the second one has come: in order it is still first, as completed it is second."""

    def run(name: str) -> str:
        if name == "slow":
            gate.pass_through()
        return name

    results = pool.map(run, ["slow", "quick"], ordered=ordered)
    got: list[str] = []
    if not ordered:
        got.append(next(results))
    gate.open()
    got += results
    assert got == expected


def test_map_takes_several_inputs_and_chunks_them(pool: windlass.Executor) -> None:
    """As `concurrent.futures` has it: as many iterables as the function has arguments, the shortest ends it, chunks change nothing."""
    wanted = [2**3, 3**2, 4**1]
    assert list(pool.map(pow, [2, 3, 4, 5], [3, 2, 1])) == wanted
    assert list(pool.map(pow, [2, 3, 4, 5], [3, 2, 1], chunksize=2)) == wanted


def test_chunks_make_fewer_calls(pool: windlass.Executor, shared_manager: windlass.Manager) -> None:
    """``chunksize=25`` runs 100 inputs in four calls."""
    before = shared_manager.stats.done
    assert list(pool.map(square, range(100), chunksize=25)) == [number * number for number in range(100)]
    assert shared_manager.stats.done - before == 4


def test_the_first_error_ends_a_map_and_cancels_the_rest(pool: windlass.Executor, gate: Any, shared_manager: windlass.Manager) -> None:
    """Calls that wait or run behind the one that failed are cancelled, so the manager is free again."""

    def run(number: int) -> int:
        if number == 0:
            raise LookupError("the first")
        gate.pass_through(str(number))
        return number

    results = pool.map(run, range(40))
    with pytest.raises(LookupError, match="the first"):
        next(results)
    assert shared_manager.wait(20) is None  # all have ended though the gate is closed
    with pytest.raises(StopIteration):
        next(results)


def test_a_map_out_of_time_raises_and_cancels(pool: windlass.Executor, gate: Any) -> None:
    """``timeout=`` is the whole map's, as in `concurrent.futures`."""
    results = pool.map(gate.pass_through, ["one", "two"], timeout=0.05)
    with pytest.raises(TimeoutError, match=r"timeout=0\.05"):
        next(results)


def test_a_map_that_nobody_finishes_cancels_its_calls(pool: windlass.Executor, gate: Any, shared_manager: windlass.Manager) -> None:
    """Leaving a loop over a map early gives the pilots back."""

    def run(number: int) -> int:
        if number:
            gate.pass_through(str(number))
        return number

    for first in pool.map(run, itertools.count(), buffersize=10):
        assert first == 0
        break
    gc.collect()
    assert shared_manager.wait(20) is None


# ---------------------------------------------------------------- one object


def where() -> tuple[int, int]:
    return os.getpid(), os.getppid()


@pytest.mark.parametrize("leave", ["with", "shutdown"])
def test_an_executor_is_all_a_program_needs(leave: str, gate: Any) -> None:
    """``with Executor("local")`` starts pilots, waits for all calls at its end, and takes no more afterwards."""
    submit: Callable[..., windlass.CallFuture[Any]]
    with windlass.Executor("local", cores=1) as pool:
        submit = pool.submit
        future = pool.submit(where)
        named = pool.with_options(tag="named", priority=1).submit(dict, timeout=1, library="l", self="s", fn="f", options="o")
        if leave == "shutdown":
            gate.open()
            pool.shutdown()
            assert future.done()
        held = None if leave == "shutdown" else pool.submit(gate.pass_through)
        gate.open()
    assert os.getpid() not in future.result()
    assert named.result() == {"timeout": 1, "library": "l", "self": "s", "fn": "f", "options": "o"}
    assert named.tag == "named"
    assert held is None or held.result() is None
    with pytest.raises(windlass.Closed, match="shutdown"):
        submit(square, 1)
