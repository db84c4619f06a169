"""Work on threads that a loop waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial

import pytest

from windlass.blocking import BATCH, Batches, in_thread

pytestmark = pytest.mark.asyncio


def made(gate: threading.Event, what: str) -> str:
    assert gate.wait(20)
    return what


async def test_what_was_made_for_nobody_is_given_back() -> None:
    """As a file's lock, which a thread gets after who wanted the file is gone: kept, it would hold up all others."""
    gate, given = threading.Event(), list[str]()
    back = asyncio.Event()

    def take_back(what: str) -> None:
        given.append(what)
        back.set()

    task = asyncio.create_task(in_thread(partial(made, gate, "lock"), take_back))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert given == []
    gate.set()
    async with asyncio.timeout(20):
        await back.wait()
    assert given == ["lock"]


async def test_what_was_here_when_the_wait_was_given_up_is_given_back_too() -> None:
    """Between the result and the turn of who waits for it."""
    gate, given = threading.Event(), list[str]()
    gate.set()
    task: asyncio.Task[str]
    loop = asyncio.get_running_loop()
    call_soon = loop.call_soon_threadsafe

    async def wait() -> str:
        return await in_thread(partial(made, gate, "lock"), given.append)

    def and_cancel(self: object, callback: Callable[..., object], *args: object) -> asyncio.Handle:
        def both() -> None:
            callback(*args)
            task.cancel()

        return call_soon(both)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(loop), "call_soon_threadsafe", and_cancel)
        task = asyncio.create_task(wait())
        with pytest.raises(asyncio.CancelledError):
            await task
    assert given == ["lock"]


async def test_what_is_waited_for_is_nobody_elses() -> None:
    gate, given = threading.Event(), list[str]()
    gate.set()
    assert await in_thread(partial(made, gate, "lock"), given.append) == "lock"
    assert given == []


async def test_short_works_are_done_in_their_order_on_few_threads_and_each_has_its_own_end() -> None:
    """A thread for each costs more than the work, and the loop waits at each start."""
    batches, done, threads = Batches(), list[int](), set[threading.Thread]()

    def work(number: int) -> int:
        done.append(number)
        threads.add(threading.current_thread())
        return 12 // number

    ends = await asyncio.gather(*(batches.do(partial(work, number)) for number in range(2 * BATCH)), return_exceptions=True)
    assert isinstance(ends[0], ZeroDivisionError)
    assert ends[1:] == [12 // number for number in range(1, 2 * BATCH)]
    assert done == list(range(2 * BATCH))
    assert len(threads) == 2


async def test_what_a_short_work_has_made_for_nobody_is_given_back() -> None:
    """Also where others of its batch are waited for."""
    batches, gate, given = Batches(), threading.Event(), list[str]()
    lost = asyncio.create_task(batches.do(partial(made, gate, "lost"), given.append))
    kept = asyncio.create_task(batches.do(partial(made, gate, "kept"), given.append))
    await asyncio.sleep(0)
    lost.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lost
    gate.set()
    async with asyncio.timeout(20):
        assert await kept == "kept"
    assert given == ["lost"]


async def test_short_works_without_a_thread_fail_and_the_next_ones_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of processes may be reached for a moment."""
    batches = Batches()

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        with pytest.raises(ConnectionAbortedError, match="can't start new thread"):
            await batches.do(lambda: 1)
    assert await batches.do(lambda: 2) == 2
