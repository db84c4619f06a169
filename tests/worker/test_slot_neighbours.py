"""What calls of async functions that share a slot can do to each other, and to the slot."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pickle
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.worker.test_slot_tasks import begun, nap, until_there, waits_for_its_turn

from windlass.messages import DIED, TIMED_OUT, EndDetail, FunctionDef, Sandbox
from windlass.worker import slotset


class Loads:
    """What does this when it is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.does = function, args

    def __reduce__(self) -> Any:
        return self.does


async def never() -> None:
    """What cannot be loaded."""


def add_function_that(bench: Any, loads: Loads) -> None:
    """`never`, as one that comes later, whose loading does this."""
    definition: FunctionDef = bench.function(never)
    definition = msgspec.structs.replace(definition, blob=pickle.dumps(loads))
    (bench.functions / definition.id.hex()).write_bytes(msgspec.msgpack.encode(definition))


@pytest.mark.asyncio
async def test_a_call_whose_function_ends_the_process_as_it_is_loaded_is_charged(bench: Any) -> None:
    """As in any slot: it would be given back for nothing, and run again, for ever."""
    await bench.serving(bench.spec(nap, concurrency=8))
    add_function_that(bench, Loads(os._exit, 3))
    end = await bench.run(never)
    assert (end.outcome, end.detail.exit_status) == (DIED, 3)
    assert bench.value(await bench.run(nap, 0)) == 1
    assert not bench.events.given_back


@pytest.mark.asyncio
@pytest.mark.parametrize("alone", [False, True])
async def test_a_call_whose_function_hangs_as_it_is_loaded_runs(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """So its timeout ends it, and not those of its neighbours, which go back; with a directory of its own it is loaded when it is alone."""
    monkeypatch.setattr(slotset, "CANCEL_SECONDS", 0.1)
    instance = await bench.serving(bench.spec(until_there, concurrency=8))
    add_function_that(bench, Loads(time.sleep, 600))
    neighbour, hangs = bench.call(until_there, str(tmp_path / "go")), bench.call(never)
    if alone:
        hangs.sandbox = Sandbox()
    else:
        instance.feed([neighbour])
        await begun(tmp_path / "go")
    instance.feed([hangs])
    await bench.until(lambda: hangs.call in {one.call for one in instance.running()})
    assert instance.kill_call(hangs.call, 1, TIMED_OUT, EndDetail(text="too long"))
    end = await bench.end(hangs)
    assert (end.outcome, end.detail.text) == (TIMED_OUT, "too long")
    if not alone:
        await bench.events.until(lambda: bench.events.given_back == [(neighbour.call, 1)])
        assert bench.events.reasons == {neighbour.call: "neighbour"}


@pytest.mark.asyncio
async def test_a_call_that_cancels_all_other_tasks_hits_no_neighbour(bench: Any, tmp_path: Path) -> None:
    """Neither one that runs nor one that has not had its first step. Those that it has made are there, and itself."""

    async def others_end(path: str) -> int:
        async def sleeps() -> None:
            await asyncio.sleep(600)

        others = set[asyncio.Task[Any]]()
        made = asyncio.create_task(sleeps())
        await until_there(path)
        for _ in range(3):
            others = asyncio.all_tasks()
            others.remove(cast("asyncio.Task[Any]", asyncio.current_task()))
            for task in others:
                task.cancel()
            await asyncio.sleep(0)
        assert made.cancelled()
        try:
            await asyncio.wait_for(sleeps(), 0.001)
        except TimeoutError:  # what is thrown into it, too
            current = cast("asyncio.Task[Any]", asyncio.current_task())
            assert current in asyncio.all_tasks()
            assert "coro=<TaskSlot.work() running" in repr(current)
        return len(others)

    instance = await bench.serving(bench.spec(until_there, others_end, concurrency=40))
    ends, runs = bench.call(others_end, str(tmp_path / "go")), bench.call(until_there, str(tmp_path / "later"))
    instance.feed([ends, runs])
    await begun(tmp_path / "go", tmp_path / "later")
    (tmp_path / "go").touch()
    more = [bench.call(until_there, str(tmp_path / "go")) for _ in range(30)]
    instance.feed(more)
    assert bench.value(await bench.end(ends)) == 0
    (tmp_path / "later").touch()
    for call in (runs, *more):
        bench.value(await bench.end(call))


@pytest.mark.asyncio
async def test_calls_run_whatever_makes_tasks_on_their_loop(bench: Any) -> None:
    """As tracers set it: a factory of the old form knows no contexts, and calls had no task, and no end."""

    async def traces() -> None:
        def make(loop: Any, coroutine: Any) -> asyncio.Task[Any]:
            return asyncio.Task(coroutine, loop=loop, name="traced")

        asyncio.get_running_loop().set_task_factory(make)

    async def own() -> str:
        async def name() -> str:
            return cast("asyncio.Task[Any]", asyncio.current_task()).get_name()

        return await asyncio.ensure_future(name())

    await bench.serving(bench.spec(own, traces, concurrency=8))
    bench.value(await bench.run(traces))
    assert bench.value(await bench.run(own)) == "traced"


@pytest.mark.asyncio
async def test_what_forked_processes_print_is_not_lost(bench: Any) -> None:
    """The traceback of one that fails, too: no other text says why."""

    def prints() -> None:
        print("from a child")
        raise ValueError("why it failed")

    async def forks() -> int:
        import multiprocessing

        child = multiprocessing.get_context("fork").Process(target=prints)
        child.start()
        await asyncio.to_thread(child.join)
        print("from the call")
        pid = os.fork()
        if not pid:
            print("from another child")
            raise ValueError("why that failed")
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends in milliseconds
        return cast("int", child.exitcode)

    await bench.serving(bench.spec(forks, concurrency=8))
    end = await bench.run(forks)
    assert bench.value(end) == 1
    assert end.stdout.decode().splitlines() == ["from the call", "from a child", "from another child"]
    assert b"ValueError: why it failed" in end.stderr
    assert b"ValueError: why that failed" in end.stderr


@pytest.mark.asyncio
async def test_a_plain_function_may_run_the_loop_of_its_slot(bench: Any, tmp_path: Path) -> None:
    """As older programs do. What the worker says meanwhile does not stop it, nor is a wish that came before it began answered beside it."""

    def older(path: str) -> str:
        return asyncio.get_event_loop().run_until_complete(until_there(path))

    instance = await bench.serving(bench.spec(until_there, older, concurrency=2))
    first, plain = bench.call(until_there, str(tmp_path / "first")), bench.call(older, str(tmp_path / "plain"))
    instance.feed([first])
    await begun(tmp_path / "first")
    instance.feed([plain])
    await bench.until(lambda: waits_for_its_turn(instance, plain))
    (slot,) = instance._slots.slots.values()
    (row,) = (number for number in slot.rows if instance._slots._rows.read(number).call == plain.call)
    instance._slots._rows.ask_to_cancel(row, instance._slots._rows.read(row).begun)  # and the byte that wakes the slot comes later
    (tmp_path / "first").touch()
    await begun(tmp_path / "plain")
    slot.warn()
    await bench.until(lambda: not bytes_unread(slot))
    (tmp_path / "plain").touch()
    assert bench.value(await bench.end(plain)) == str(tmp_path / "plain")
    assert bench.value(await bench.run(until_there, str(tmp_path / "plain"))) == str(tmp_path / "plain")
    assert list(instance.slot_pids().values()) == [slot.pid]


def bytes_unread(slot: Any) -> int:
    """Of what the worker has sent, how many the slot has not read."""
    return int.from_bytes(fcntl.ioctl(slot.results, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
