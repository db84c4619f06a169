"""Work on threads that a loop waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial

import pytest

from windlass.blocking import in_thread

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
