"""Many calls of async functions at once in one slot: what they share, what each has of its own, and what becomes of them."""

# ruff: noqa: ASYNC240 - looking for a file takes these calls microseconds

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any, cast

import pytest

import windlass
from windlass import pickling
from windlass.messages import BAD_CALL, CANCELLED, DIED, OUT_OF_MEMORY, RAISED, RETURNED, TIMED_OUT, CallId, CallRun, EndDetail
from windlass.worker import slot_api, slotset
from windlass.worker.callqueue import CallQueue, spilled
from windlass.worker.streams import Kept

_running = _most = 0


async def nap(seconds: float) -> int:
    """How many ran at once, at most, so far."""
    global _running, _most
    _running += 1
    _most = max(_most, _running)
    await asyncio.sleep(seconds)
    _running -= 1
    return _most


async def until_there(path: str) -> str:
    """Wait for a file; tell of it by another one that this runs, and that it ends."""
    Path(f"{path}.waits").touch()
    try:
        while not os.path.exists(path):
            await asyncio.sleep(0.002)
    finally:
        Path(f"{path}.over").touch()
    return path


def plain(path: str) -> int:
    """How many naps are under way."""
    Path(path).touch()
    return _running


async def begun(*paths: Path) -> None:
    """Until these calls of `until_there` run."""
    async with asyncio.timeout(20):
        while not all(Path(f"{path}.waits").exists() for path in paths):
            await asyncio.sleep(0.002)


def waits_for_its_turn(instance: Any, call: CallRun) -> bool:
    """Whether a slot has claimed it, and has not begun it."""
    rows = [row for slot in instance._slots.slots.values() for row in instance._slots._begun(slot)]
    return any(row.call == call.call and not row.since for row in rows)


@pytest.mark.asyncio
async def test_a_slot_runs_as_many_calls_at_once_as_its_library_says(bench: Any) -> None:
    """One process, never more than that many, and each call's times are its own."""
    instance = await bench.serving(bench.spec(nap, concurrency=40))
    calls = [bench.call(nap, 0.5) for _ in range(120)]
    assert instance.feed(calls) == 120
    ends = [await bench.end(call) for call in calls]
    assert max(bench.value(end) for end in ends) == 40
    assert all(end.ended_at - end.started_at >= 0.5 for end in ends)
    assert all(end.started_at <= end.ready_at <= end.ended_at for end in ends)
    assert len(instance.slot_pids()) == 1


@pytest.mark.asyncio
async def test_a_long_call_that_cannot_be_read_fails_and_what_runs_goes_on(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot takes no more calls, for the next ones may meet the same."""
    spill = cast("Any", CallQueue)._spill

    def spill_and_lose(queue: CallQueue, call: CallRun, packet: bytes) -> bytes:
        written: bytes = spill(queue, call, packet)
        os.unlink(spilled(written)[0])
        return written

    monkeypatch.setattr(CallQueue, "_spill", spill_and_lose)
    instance = await bench.serving(bench.spec(until_there, concurrency=4))
    gate = tmp_path / "gate"
    running = bench.call(until_there, str(gate))
    instance.feed([running])
    await begun(gate)
    (pid,) = instance.slot_pids().values()
    long = CallRun(CallId(77), 1, running.instance, running.function, bytes(200_000))
    instance.feed([long])
    end = await bench.end(long)
    assert end.outcome == DIED
    assert end.detail.text.startswith(f"its slot (pid {pid}) could not read it: [Errno 2]")
    gate.touch()
    assert bench.value(await bench.end(running)) == str(gate)
    assert bench.value(await bench.run(until_there, str(gate))) == str(gate)
    assert pid not in instance.slot_pids().values()


@pytest.mark.asyncio
async def test_slots_share_what_there_is(bench: Any, tmp_path: Path) -> None:
    """The first one to wake does not take it all."""

    async def where(path: str) -> int:
        await until_there(path)
        return os.getpid()

    instance = await bench.serving(bench.spec(where, concurrency=200), slots=2)
    calls = [bench.call(where, str(tmp_path / "go")) for _ in range(200)]
    instance.feed(calls)
    await bench.until(lambda: len(instance.running()) == 200)
    (tmp_path / "go").touch()
    pids = [bench.value(await bench.end(call)) for call in calls]
    for pid in instance.slot_pids().values():
        assert pids.count(pid) > 20


@pytest.mark.asyncio
async def test_exceptions_are_answers_and_neighbours_go_on(bench: Any, tmp_path: Path) -> None:
    """SystemExit and KeyboardInterrupt too, of the function and of a task that it has made."""

    async def fail(kind: type[BaseException]) -> None:
        await asyncio.sleep(0)
        raise kind("the end")

    async def leaves(kind: type[BaseException]) -> str:
        async def later() -> None:
            raise kind("later")

        task = asyncio.get_running_loop().create_task(later())
        await asyncio.sleep(0.01)
        task.exception()
        return "done"

    instance = await bench.serving(bench.spec(fail, leaves, until_there, concurrency=8))
    pids = instance.slot_pids()
    neighbour = bench.call(until_there, str(tmp_path / "go"))
    instance.feed([neighbour])
    for kind in (ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError):
        end = await bench.run(fail, kind)
        assert end.outcome == RAISED
        error = pickling.unpack_exception(end.payload)
        assert type(error) is kind
        assert "in fail" in str(error.__cause__)
        assert "in work" not in str(error.__cause__), "our own frames tell the user nothing"
    for kind in (SystemExit, KeyboardInterrupt):
        assert bench.value(await bench.run(leaves, kind)) == "done"
    (tmp_path / "go").touch()
    assert bench.value(await bench.end(neighbour)) == str(tmp_path / "go")
    assert instance.slot_pids() == pids


@pytest.mark.asyncio
async def test_what_cannot_be_run_or_sent_back_says_so(bench: Any) -> None:
    """Arguments, results, functions that are not there."""

    async def lock() -> Any:
        import threading

        return threading.Lock()

    instance = await bench.serving(bench.spec(lock, nap, concurrency=4))
    end = await bench.run(lock)
    assert end.outcome == BAD_CALL
    assert end.detail.text.startswith("'lock' returned a _thread.lock, which cannot be pickled and sent back")
    call = bench.call(nap, 0)
    call.payload = b"garbage"
    instance.feed([call])
    end = await bench.end(call)
    assert end.outcome == BAD_CALL
    assert end.detail.text.startswith("the arguments of 'nap' cannot be loaded on the worker")
    call = bench.call(nap, 0)
    call.function = b"\7" * 16
    instance.feed([call])
    assert (await bench.end(call)).detail.text.startswith(f"function '{'07' * 16}' of library 'lib' cannot be loaded")
    assert bench.value(await bench.run(nap, 0)) == 1


@pytest.mark.asyncio
async def test_one_is_cancelled_and_its_neighbours_go_on(bench: Any, tmp_path: Path) -> None:
    """Its task is cancelled, so what it cleans up is cleaned up; it ends as was asked; the slot stays."""
    instance = await bench.serving(bench.spec(until_there, concurrency=4))
    pids = instance.slot_pids()
    calls = [bench.call(until_there, str(tmp_path / name)) for name in "abc"]
    instance.feed(calls)
    await begun(*(tmp_path / name for name in "abc"))
    assert {call.call for call in instance.running()} == {call.call for call in calls}
    detail = EndDetail(text="too long")
    assert instance.kill_call(calls[0].call, 1, TIMED_OUT, detail)
    instance.kill_call(calls[0].call, 1, CANCELLED)  # asked again, whether it runs still or not: what was asked first holds
    assert instance.kill_call(calls[1].call, 1, CANCELLED)
    ends = [await bench.end(call) for call in calls[:2]]
    assert [end.outcome for end in ends] == [TIMED_OUT, CANCELLED]
    assert ends[0].detail == detail
    assert (tmp_path / "a.over").exists()
    assert not instance.kill_call(calls[0].call, 1, CANCELLED), "it has ended"
    (tmp_path / "c").touch()
    assert bench.value(await bench.end(calls[2])) == str(tmp_path / "c")
    assert instance.slot_pids() == pids


@pytest.mark.asyncio
async def test_a_cancelled_call_that_returns_nevertheless_has_returned(bench: Any, tmp_path: Path) -> None:
    """So an async function can save what it has when its time is over. One that raises has ended as was asked."""

    async def saves(path: str) -> str:
        try:
            return await until_there(path)
        except asyncio.CancelledError:
            return "saved"

    async def fails(path: str) -> str:
        try:
            return await until_there(path)
        except asyncio.CancelledError:
            raise RuntimeError("not quite") from None

    instance = await bench.serving(bench.spec(saves, fails, concurrency=4))
    calls = [bench.call(saves, str(tmp_path / "a")), bench.call(fails, str(tmp_path / "b"))]
    instance.feed(calls)
    await begun(tmp_path / "a", tmp_path / "b")
    for call in calls:
        assert instance.kill_call(call.call, 1, TIMED_OUT)
    assert bench.value(await bench.end(calls[0])) == "saved"
    assert (await bench.end(calls[1])).outcome == TIMED_OUT


@pytest.mark.asyncio
async def test_one_that_does_not_end_when_cancelled_costs_its_slot(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as was asked, its neighbours are given back as cut short, and there is another slot."""
    monkeypatch.setattr(slotset, "CANCEL_SECONDS", 0.1)

    async def stubborn(path: str) -> None:
        while True:
            try:
                await until_there(path)
            except asyncio.CancelledError:
                pass

    instance = await bench.serving(bench.spec(stubborn, until_there, concurrency=4))
    old = instance.slot_pids()[0]
    calls = [bench.call(stubborn, str(tmp_path / "a")), bench.call(until_there, str(tmp_path / "b"))]
    instance.feed(calls)
    await begun(tmp_path / "a", tmp_path / "b")
    assert instance.kill_call(calls[0].call, 1, TIMED_OUT)
    assert (await bench.end(calls[0])).outcome == TIMED_OUT
    await bench.events.until(lambda: bool(bench.events.given_back))
    assert bench.events.given_back == [(calls[1].call, 1)]
    assert bench.events.reasons == {calls[1].call: "neighbour"}
    await bench.until(lambda: instance.slots == 1)
    assert instance.slot_pids()[0] != old
    (tmp_path / "c").touch()
    assert bench.value(await bench.run(until_there, str(tmp_path / "c"))) == str(tmp_path / "c")


@pytest.mark.asyncio
async def test_when_a_slot_dies_all_that_have_begun_in_it_are_charged(bench: Any, tmp_path: Path) -> None:
    """Nobody knows whose fault it was. What is still in the queue is run by the next slot."""

    async def dies(path: str) -> None:
        while not os.path.exists(path):
            await asyncio.sleep(0.002)
        os._exit(3)

    instance = await bench.serving(bench.spec(dies, until_there, concurrency=4))
    inside = [bench.call(dies, str(tmp_path / "now")), *(bench.call(until_there, str(tmp_path / name)) for name in "abc")]
    outside = [bench.call(until_there, str(tmp_path / name)) for name in "de"]
    instance.feed([*inside, *outside])
    await begun(*(tmp_path / name for name in "abc"))
    for name in ("now", "d", "e"):
        (tmp_path / name).touch()
    for call in inside:
        end = await bench.end(call)
        assert end.outcome == DIED
        assert end.detail.exit_status == 3
        assert "the process that ran it and 3 more at the same time" in end.detail.text
    for call, name in zip(outside, "de", strict=True):
        assert bench.value(await bench.end(call)) == str(tmp_path / name)
    assert not bench.events.given_back


@pytest.mark.asyncio
async def test_memory_is_the_slots_so_for_want_of_it_all_in_it_end(bench: Any, tmp_path: Path) -> None:
    """The worker's wish names one call, as the one that it has measured. One that had not begun goes back."""
    instance = await bench.serving(bench.spec(until_there, plain, concurrency=4))
    calls = [bench.call(until_there, str(tmp_path / name)) for name in "ab"]
    instance.feed(calls)
    await begun(tmp_path / "a", tmp_path / "b")
    waits = bench.call(plain, str(tmp_path / "plain"))
    instance.feed([waits])
    await bench.until(lambda: waits_for_its_turn(instance, waits))
    assert instance.kill_call(calls[1].call, 1, OUT_OF_MEMORY, EndDetail(text="too much"))
    for call in calls:
        end = await bench.end(call)
        assert (end.outcome, end.detail.text) == (OUT_OF_MEMORY, "too much")
    await bench.events.until(lambda: bench.events.given_back == [(waits.call, 1)])


@pytest.mark.asyncio
async def test_each_call_has_its_own_output(bench: Any, tmp_path: Path) -> None:
    """Also from its threads and tasks, and after one that has replaced a stream; what is written past the streams is not lost."""

    def silences() -> None:
        import io
        import sys

        sys.stdout = io.StringIO()

    async def says(name: str) -> None:
        import sys

        print("begin", name)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        await asyncio.sleep(0.02)
        await asyncio.to_thread(print, "thread", name)
        await asyncio.gather(*(asyncio.to_thread(print, "of a task", name) for _ in range(1)))
        sys.stderr.write(f"error {name}\n")
        sys.stdout.buffer.write(f"bytes {name}\n".encode())
        os.write(1, b"past\n")
        assert sys.stdout.fileno() == 1

    instance = await bench.serving(bench.spec(says, silences, concurrency=10))
    assert (await bench.run(silences)).outcome == RETURNED
    calls = {name: bench.call(says, name) for name in "abcdef"}
    instance.feed(list(calls.values()))
    past = 0
    for name, call in calls.items():
        end = await bench.end(call)
        assert end.outcome == RETURNED, end.detail
        lines = end.stdout.decode().splitlines()
        assert [line for line in lines if line != "past"] == [f"begin {name}", f"thread {name}", f"of a task {name}", f"bytes {name}"]
        assert end.stderr.decode() == f"error {name}\n"
        past += lines.count("past")
    assert past == 6


def test_what_a_call_writes_is_bounded() -> None:
    """Its beginning and its end are kept."""
    kept = Kept()
    for number in range(50_000):
        kept.add(f"{number}\n".encode())
    text = kept.take()
    assert len(text) < 66 << 10
    assert text.startswith(b"0\n1\n")
    assert text.endswith(b"49998\n49999\n")
    assert b" bytes left out ...\n" in text


@pytest.mark.asyncio
async def test_each_call_knows_itself_and_has_the_context(bench: Any) -> None:
    """`current_call` is that of the task that asks, its threads included; the context is shared."""

    async def who(table: dict[str, int], key: str) -> tuple[int, int, int]:
        await asyncio.sleep(0.01)
        mine = slot_api.current_call()
        there = await asyncio.to_thread(slot_api.current_call)
        table[key] = table.get(key, 0) + 1
        assert mine is not None
        assert there is not None
        return mine.call, there.call, slot_api.load_variable_from_library("table")["n"]

    def table() -> dict[str, dict[str, int]]:
        return {"table": {}}

    instance = await bench.serving(bench.spec(who, context=(table, (), {}), concurrency=16))
    calls = [bench.call(who, key="n") for _ in range(16)]
    instance.feed(calls)
    values = [bench.value(await bench.end(call)) for call in calls]
    assert [(mine, there) for mine, there, _ in values] == [(call.call, call.call) for call in calls]
    assert sorted(count for _, _, count in values) == list(range(1, 17))


@pytest.mark.asyncio
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_an_async_context_runs_on_the_loop_of_the_calls(bench: Any, concurrency: int) -> None:
    """What it opens there serves them."""

    async def opens() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        asked: asyncio.Queue[asyncio.Future[bool]] = asyncio.Queue()

        async def serve() -> None:
            while True:
                (await asked.get()).set_result(True)

        await asyncio.sleep(0)
        return {"loop": loop, "asked": asked, "server": loop.create_task(serve())}

    async def same(loop: Any, asked: asyncio.Queue[Any]) -> bool:
        answer = asyncio.get_running_loop().create_future()
        await asked.put(answer)
        return await answer and loop is asyncio.get_running_loop()

    await bench.serving(bench.spec(same, context=(opens, (), {}), concurrency=concurrency))
    assert [bench.value(await bench.run(same)) for _ in range(3)] == [True] * 3


@pytest.mark.asyncio
async def test_calls_are_warned_of_their_pilots_end(bench: Any, tmp_path: Path) -> None:
    """Each that has asked, in a thread, from which it may reach the loop and wait for it."""

    async def warned(path: str) -> float:
        loop, told = asyncio.get_running_loop(), asyncio.Event()

        async def tell() -> None:
            told.set()

        windlass.on_warning(lambda left: asyncio.run_coroutine_threadsafe(tell(), loop).result())
        Path(f"{path}.waits").touch()
        await told.wait()
        return windlass.time_left()

    instance = await bench.serving(bench.spec(warned, until_there, concurrency=8))
    calls = [bench.call(warned, str(tmp_path / name)) for name in "abc"]
    other = bench.call(until_there, str(tmp_path / "go"))
    instance.feed([*calls, other])
    await begun(*(tmp_path / name for name in ("a", "b", "c", "go")))
    assert {call.call: call.watches for call in instance.running()} == {**{call.call: True for call in calls}, other.call: False}
    instance.tell_end(time.monotonic() + 100, True)
    for call in calls:
        assert 0 < bench.value(await bench.end(call)) <= 100
    (tmp_path / "go").touch()
    assert (await bench.end(other)).outcome == RETURNED


@pytest.mark.asyncio
async def test_an_answer_does_not_wait_for_threads_of_other_calls(bench: Any, tmp_path: Path) -> None:
    """One that has registered for its pilot's end needs a thread to end that, and others may have all threads of the loop."""

    async def crowd(path: str) -> None:
        import threading

        enough = threading.Event()
        waits = [asyncio.ensure_future(asyncio.to_thread(enough.wait)) for _ in range(33)]
        await asyncio.sleep(0)
        await until_there(path)
        enough.set()
        await asyncio.gather(*waits)

    async def registers() -> int:
        windlass.on_warning(print)
        return 1

    instance = await bench.serving(bench.spec(crowd, registers, concurrency=8))
    call = bench.call(crowd, str(tmp_path / "go"))
    instance.feed([call])
    await begun(tmp_path / "go")
    assert bench.value(await bench.run(registers)) == 1
    assert call.call in {one.call for one in instance.running()}
    (tmp_path / "go").touch()
    assert (await bench.end(call)).outcome == RETURNED


@pytest.mark.asyncio
async def test_a_plain_function_runs_alone_and_in_its_turn(bench: Any, tmp_path: Path) -> None:
    """It waits until those under way have ended, nothing starts meanwhile, and it may run a loop of its own."""

    def with_a_loop() -> int:
        return asyncio.run(nap(0))

    instance = await bench.serving(bench.spec(nap, until_there, plain, with_a_loop, concurrency=8))
    first = bench.call(until_there, str(tmp_path / "go"))
    alone = bench.call(plain, str(tmp_path / "ran"))
    after = [bench.call(nap, 0.01) for _ in range(20)]
    instance.feed([first])
    await begun(tmp_path / "go")
    instance.feed([alone])
    await bench.until(lambda: waits_for_its_turn(instance, alone))
    # A look at several takes them out and puts them back, and what is claimed meanwhile is any: so these come only now.
    instance.feed(after)
    assert len(instance._queue.peek()) == 20
    assert not (tmp_path / "ran").exists()
    assert [call.call for call in instance.running()] == [first.call], "what waits for its turn has not begun"
    (tmp_path / "go").touch()
    assert bench.value(await bench.end(alone)) == 0
    end = bench.events.ends[alone.call, 1]
    assert end.started_at >= (await bench.end(first)).ended_at
    for call in after:
        assert (await bench.end(call)).started_at >= end.ended_at
    assert bench.value(await bench.run(with_a_loop)) >= 1


@pytest.mark.asyncio
async def test_a_plain_one_is_ended_as_in_any_slot_and_forgotten_while_it_waits(bench: Any, tmp_path: Path) -> None:
    """One that waits is never run; one that runs is alone, so its process is ended at once."""

    def sleeps(path: str) -> None:
        import time

        Path(path).touch()
        time.sleep(600)

    instance = await bench.serving(bench.spec(until_there, sleeps, concurrency=8))
    first = bench.call(until_there, str(tmp_path / "go"))
    waits = bench.call(sleeps, str(tmp_path / "one"))
    instance.feed([first])
    await begun(tmp_path / "go")
    instance.feed([waits])
    await bench.until(lambda: waits_for_its_turn(instance, waits))
    assert instance.kill_call(waits.call, 1, CANCELLED)
    assert (await bench.end(waits)).outcome == CANCELLED
    assert not (tmp_path / "one").exists()
    runs = bench.call(sleeps, str(tmp_path / "two"))
    instance.feed([runs])
    (tmp_path / "go").touch()
    await bench.until(lambda: (tmp_path / "two").exists())
    assert instance.kill_call(runs.call, 1, TIMED_OUT)
    assert (await bench.end(runs)).outcome == TIMED_OUT
    (tmp_path / "three").touch()
    assert bench.value(await bench.run(until_there, str(tmp_path / "three"))) == str(tmp_path / "three")
    assert not bench.events.given_back


@pytest.mark.asyncio
async def test_what_waits_for_its_turn_is_given_back_when_the_slot_dies(bench: Any, tmp_path: Path) -> None:
    """It had not begun: it is not charged."""

    async def dies(path: str) -> None:
        await until_there(path)
        os._exit(3)

    instance = await bench.serving(bench.spec(dies, plain, concurrency=8))
    first, waits = bench.call(dies, str(tmp_path / "go")), bench.call(plain, str(tmp_path / "ran"))
    instance.feed([first])
    await begun(tmp_path / "go")
    instance.feed([waits])
    await bench.until(lambda: waits_for_its_turn(instance, waits))
    (tmp_path / "go").touch()
    assert (await bench.end(first)).outcome == DIED
    await bench.events.until(lambda: bool(bench.events.given_back))
    assert bench.events.given_back == [(waits.call, 1)]


@pytest.mark.asyncio
async def test_surplus_slots_end_their_calls_and_claim_no_more(bench: Any, tmp_path: Path) -> None:
    """And one that is wanted again before it has left stays."""
    instance = await bench.serving(bench.spec(until_there, concurrency=2))
    pids = instance.slot_pids()
    calls = [bench.call(until_there, str(tmp_path / name)) for name in "abc"]
    instance.feed(calls[:1])
    await begun(tmp_path / "a")
    instance.set_slots(0)
    instance.feed(calls[1:])
    instance.set_slots(1)
    await begun(tmp_path / "b")
    assert instance.slot_pids() == pids, "it serves on"
    instance.set_slots(0)
    for name in "ab":
        (tmp_path / name).touch()
    for call in calls[:2]:
        assert (await bench.end(call)).outcome == RETURNED
    await bench.until(lambda: not instance.slot_pids())
    assert not (tmp_path / "c.waits").exists()
    assert [call.call for call in instance.take_back()] == [calls[2].call]


@pytest.mark.asyncio
@pytest.mark.parametrize("start", ["fork", "spawn"])
async def test_a_slot_is_replaced_after_its_share_of_calls(bench: Any, start: str) -> None:
    """``max_calls``; and slots that are interpreters of their own do the same."""
    instance = await bench.serving(bench.spec(nap, concurrency=10, max_calls=25, start=start))
    calls = [bench.call(nap, 0.2) for _ in range(60)]
    instance.feed(calls)
    values = [bench.value(await bench.end(call)) for call in calls]
    assert max(values) == 10
    assert not bench.events.given_back


@pytest.mark.asyncio
async def test_a_long_call_and_a_result_in_objects(bench: Any) -> None:
    """A packet that is too long for the queue; buffers beside the result."""

    async def twice(data: bytes, words: list[str]) -> tuple[bytearray, int]:
        return bytearray(data) * 2, len(words)

    await bench.serving(bench.spec(twice, concurrency=4))
    data, count = bench.value(await bench.run(twice, b"x" * 300_000, ["a" * 100] * 3000))
    assert (len(data), count) == (600_000, 3000)


@pytest.mark.asyncio
async def test_every_call_ends_once_whatever_slots_die(bench: Any) -> None:
    """Calls that return, raise, are cancelled, and that take their slot along: each ends once, or is given back."""

    async def do(what: str, seconds: float) -> str:
        await asyncio.sleep(seconds)
        if what == "raise":
            raise ValueError(what)
        if what == "die":
            os._exit(1)
        return what

    def block(what: str) -> str:
        return what

    chance = random.Random(7)
    instance = await bench.serving(bench.spec(do, block, concurrency=10), slots=3)
    calls: list[Any] = []
    for number in range(400):
        what = "die" if number % 80 == 79 else chance.choice(["return", "raise", "return"])
        call = bench.call(block, "plain") if number % 50 == 9 else bench.call(do, what, chance.random() * 0.02)
        calls.append(call)
        instance.feed([call])
        if number % 20 == 0:
            await asyncio.sleep(0.005)
            for one in instance.running()[:2]:
                instance.kill_call(one.call, 1, CANCELLED)

    def accounted() -> set[int]:
        return {call for call, _ in bench.events.ends} | {call for call, _ in bench.events.given_back}

    await bench.events.until(lambda: len(accounted()) == 400, 60)
    assert not {call for call, _ in bench.events.ends} & {call for call, _ in bench.events.given_back}
    outcomes = {end.outcome for end in bench.events.ends.values()}
    assert outcomes <= {RETURNED, RAISED, DIED, CANCELLED}
    assert {RETURNED, RAISED, DIED} <= outcomes
    assert instance.queued == 0


@pytest.mark.asyncio
async def test_an_async_function_in_a_plain_library_runs_to_its_end(bench: Any) -> None:
    """On one loop for the life of the slot; what it leaves there is cancelled; only its own frames are told."""

    async def loop() -> tuple[int, int]:
        async def for_ever() -> None:
            await asyncio.sleep(600)

        asyncio.get_running_loop().create_task(for_ever())
        return id(asyncio.get_running_loop()), len(asyncio.all_tasks())

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("the end")

    await bench.serving(bench.spec(loop, fail))
    first = bench.value(await bench.run(loop))
    assert bench.value(await bench.run(loop)) == first, "the same loop, and the task of the first call is gone"
    end = await bench.run(fail)
    error = pickling.unpack_exception(end.payload)
    assert isinstance(error, ValueError)
    assert "in fail" in str(error.__cause__)
    for ours in ("in answer", "in run", "run_until_complete"):
        assert ours not in str(error.__cause__)


@pytest.mark.asyncio
async def test_an_async_function_in_mode_fork_has_a_loop_in_its_child(bench: Any) -> None:
    """Each call its own."""
    await bench.serving(bench.spec(nap, mode="fork"))
    assert [bench.value(await bench.run(nap, 0.001)) for _ in range(3)] == [1, 1, 1]
