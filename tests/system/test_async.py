"""Async functions as a program sees them: a real manager, a real pilot of one slot, many calls at once."""

from __future__ import annotations

# ruff: noqa: ASYNC240, ASYNC251 - looking for a file takes these calls microseconds, and one is to hold up its loop
import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import windlass
from windlass import Executor, FunctionCall
from windlass.errors import CallTimeout, SlotDied

Until = Callable[[str, Callable[[], object]], None]

_running = _most = 0


async def sleep(seconds: float) -> int:
    """How many have run at once so far, at most."""
    global _running, _most
    _running += 1
    _most = max(_most, _running)
    await asyncio.sleep(seconds)
    _running -= 1
    return _most


async def wait_for(path: Path) -> str:
    """Says that it is here, and waits for a file."""
    (path.parent / f"{path.name}.here").touch()
    try:
        while not path.exists():
            await asyncio.sleep(0.002)
    except asyncio.CancelledError:
        (path.parent / f"{path.name}.cancelled").touch()
        raise
    return path.name


async def die(path: Path) -> None:
    """Ends its slot once, when a file is there."""
    tries = path.parent / "tries"
    if not tries.exists():
        while not path.exists():
            await asyncio.sleep(0.002)
        tries.touch()
        os._exit(7)


async def left() -> tuple[float, int]:
    """Seconds that it has, and who it is."""
    call = windlass.current_call()
    assert call is not None
    return windlass.time_left(), call.attempt


def plain(number: int) -> int:
    return number + 1


@pytest.fixture
def pool() -> Iterator[Executor]:
    """One slot for a hundred calls at once."""
    with Executor("local", cores=1, max_pilots=1, concurrency=100) as pool:
        yield pool


def test_a_thousand_calls_run_through_one_slot_many_at_once(pool: Executor) -> None:
    """Counted in the slot, not by time: never more than a hundred, and at least half of that."""
    futures = [pool.submit(sleep, 0.1) for _ in range(1000)]
    most = max(future.result() for future in futures)
    assert 50 <= most <= 100
    assert all(future.timings.running >= 0.1 for future in futures)
    assert len({worker["id"] for worker in pool.manager.status()["workers"]}) == 1  # type: ignore[attr-defined]
    [library] = [one for one in pool.manager.status()["libraries"] if one["concurrency"] == 100]  # type: ignore[attr-defined]
    assert (library["slots"], library["done"]) == (1, 1000)


def test_one_is_cancelled_and_one_times_out_and_the_others_go_on(pool: Executor, tmp_path: Path, until: Until) -> None:
    """Their tasks are cancelled; the slot is the same one afterwards."""
    names = [f"call{number}" for number in range(20)]
    late = pool.with_options(timeout=0.5).submit(wait_for, tmp_path / "late")
    calls = [pool.submit(wait_for, tmp_path / name) for name in names]
    until("all are here", lambda: len(list(tmp_path.glob("*.here"))) == 21)
    assert calls[0].cancel()
    with pytest.raises(CallTimeout):
        late.result()
    until("both were cancelled", lambda: {path.name for path in tmp_path.glob("*.cancelled")} == {"late.cancelled", "call0.cancelled"})
    for name in names:
        (tmp_path / name).touch()
    assert [call.result() for call in calls[1:]] == names[1:]
    assert all(len(call.attempts) == 0 for call in calls[1:]), "none was tried twice"


def test_a_slot_that_dies_costs_all_that_had_begun_in_it_a_retry(pool: Executor, tmp_path: Path, until: Until) -> None:
    """Those without one end with the story."""
    again = pool.with_options(retries=1).submit(wait_for, tmp_path / "a")
    once = pool.submit(wait_for, tmp_path / "b")
    deadly = pool.with_options(retries=1).submit(die, tmp_path / "now")
    until("all are here", lambda: len(list(tmp_path.glob("*.here"))) == 2)
    (tmp_path / "now").touch()
    with pytest.raises(SlotDied, match="more at the same time"):
        once.result()
    (tmp_path / "a").touch()
    assert again.result() == "a"
    assert deadly.result() is None
    assert again.attempts[0].outcome == "slot died"


def test_plain_functions_of_an_executor_are_apart(pool: Executor, tmp_path: Path) -> None:
    """They do not wait for long async ones, having slots of their own."""
    with Executor(None, manager=pool.manager, concurrency=10) as other:
        assert list(other.map(plain, range(20), chunksize=5)) == list(range(1, 21))
    assert pool.submit(plain, 1).result() == 2
    assert max(pool.map(sleep, [0.05] * 40, chunksize=20)) >= 20, "the inputs of a chunk run at once"
    modes = {one["concurrency"] for one in pool.manager.status()["libraries"]}  # type: ignore[attr-defined]
    assert modes == {1, 10, 100} - {10}


def test_a_call_knows_itself_and_its_time(served: windlass.Manager) -> None:
    """Of a library as of an executor; with a context that all of them share."""
    served.install_library("lib", left, sleep, plain, concurrency=8)
    call = FunctionCall("lib", "left").with_options(timeout=100.0)
    seconds, attempt = served.submit(call).result()
    assert 0 < seconds <= 100
    assert attempt == 1
    assert [served.submit(FunctionCall("lib", "plain", 1)).result() for _ in range(3)] == [2, 2, 2]


def test_async_functions_without_concurrency_run_one_at_a_time(served: windlass.Manager) -> None:
    """As plain ones do."""
    served.install_library("lib", sleep, slots=1)
    futures = [served.submit(FunctionCall("lib", "sleep", 0.005)) for _ in range(20)]
    assert max(future.result() for future in futures) == 1


def test_one_that_computes_on_when_cancelled_costs_its_neighbours_no_retry(pool: Executor, tmp_path: Path, until: Until) -> None:
    """Its slot is killed after five seconds; they run again."""

    async def stubborn(path: Path) -> None:
        (path / "stubborn.here").touch()
        time.sleep(600)

    neighbour = pool.submit(wait_for, tmp_path / "a")
    until("it is here", lambda: (tmp_path / "a.here").exists())
    bad = pool.submit(stubborn, tmp_path)
    until("it computes", lambda: (tmp_path / "stubborn.here").exists())
    assert bad.cancel()
    (tmp_path / "a").touch()
    assert neighbour.result() == "a"
    assert "its slot was killed for another of its calls" in neighbour.attempts[0].outcome


def test_the_blocks_of_a_manager_and_a_factory_leave_the_loop_of_the_program_free(tmp_path: Path, until: Until) -> None:
    """The factory waits for what runs, which another task lets end. One that is cancelled in that wait ends the pilots at once."""

    async def leaves(name: str) -> tuple[int, str]:
        async with windlass.Manager() as manager:
            manager.install_library("lib", wait_for, pow)
            async with windlass.Factory(manager, "local", cores=1, grace="1h"):
                number = await manager.submit(FunctionCall("lib", "pow", 2, 3))
                future = manager.submit(FunctionCall("lib", "wait_for", tmp_path / name))
                until("it is here", lambda: (tmp_path / f"{name}.here").exists())
            return number, await future

    async def leaving() -> None:
        while not any(thread.name == "windlass-leaving" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)

    async def main() -> tuple[int, str]:
        first = asyncio.create_task(leaves("a"))
        await leaving()
        (tmp_path / "a").touch()
        result = await first
        second = asyncio.create_task(leaves("b"))
        await leaving()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        return result

    assert asyncio.run(main()) == (8, "a")
