"""What functions learn of the end of their pilot, in each way that a slot can run a call; `windlass.pilot_end`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass.errors import UsageError
from windlass.messages import RAISED, CallRun

MODES = pytest.mark.parametrize("how", [{}, {"mode": "fork"}, {"start": "spawn"}], ids=["direct", "fork", "spawn"])

# Functions of the calls; they go by value, so each is complete in itself.


def left() -> float:
    import windlass

    return windlass.time_left()


def left_twice(folder: str) -> tuple[float, float]:
    """Before and after the test has removed the file that this makes."""
    import time

    import windlass

    before, mark = windlass.time_left(), Path(folder) / "asked"
    mark.touch()
    while mark.exists():
        time.sleep(0.002)
    return before, windlass.time_left()


def until_warned(path: str) -> list[float]:
    """Compute in pure Python until the callback has been called, and on until the file is gone."""
    import windlass

    told: list[float] = []
    windlass.on_warning(told.append)
    Path(path).touch()
    while not told:
        sum(range(1000))
    while Path(path).exists():
        sum(range(1000))
    return told


def asleep(path: str) -> str:
    """Sleep until killed; the callback leaves a checkpoint."""
    import time

    import windlass

    windlass.on_warning(lambda seconds: Path(path).write_text(f"{seconds:.1f}") and None)
    Path(path + ".started").touch()
    time.sleep(600)
    return "never"


def register_late() -> float:
    """What a callback registered after the warning is told."""
    import queue

    import windlass

    told: queue.SimpleQueue[float] = queue.SimpleQueue()
    with windlass.on_warning(told.put):
        return told.get(timeout=30)


def register_and_return(path: str) -> int:
    """How many threads there are while it is registered."""
    import threading

    import windlass

    windlass.on_warning(lambda _: Path(path).touch())
    return threading.active_count()


def threads() -> int:
    import threading

    return threading.active_count()


def raise_in_callback(path: str) -> str:
    import time

    import windlass

    def fail(seconds: float) -> None:
        try:
            raise SystemExit("the disk is full")
        finally:
            done.append(seconds)

    done: list[float] = []
    windlass.on_warning(fail)
    windlass.on_warning(lambda _: done.append(0.0))
    Path(path).touch()
    while len(done) < 2:
        time.sleep(0.002)
    return "went on"


def slow_callback(path: str) -> int:
    """Leaves the block while its callback runs."""
    import time

    import windlass

    seen: list[int] = []

    def save(_: float) -> None:
        started.append(1)
        time.sleep(0.2)
        seen.append(7)

    started: list[int] = []
    with windlass.on_warning(save):
        Path(path).touch()
        while not started:
            time.sleep(0.002)
    return len(seen)


def fork_and_register() -> int:
    """A child that the call forks registers for itself; the parent's registration is the parent's."""
    import os
    import threading

    import windlass

    with windlass.on_warning(lambda _: None) as mine:
        pid = os.fork()
        if pid == 0:
            told = threading.Event()
            windlass.on_warning(lambda _: told.set())
            mine.cancel()
            os._exit(0 if told.wait(30) and windlass.time_left() > 0 else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def compute_context() -> dict[str, float]:
    import windlass

    windlass.on_warning(print)
    return {"then": windlass.time_left()}


def from_context(then: float) -> float:
    return then


def soon(seconds: float) -> float:
    """On the clock of the shared memory."""
    return time.monotonic() + seconds


def test_outside_of_windlass_nothing_ends_and_nothing_is_registered() -> None:
    """So that a function can be tested as it is."""
    told: list[float] = []
    assert windlass.time_left() == math.inf
    with windlass.on_warning(told.append) as registration:
        registration.cancel()
    assert told == []


def test_what_cannot_be_called_is_refused() -> None:
    """With the right line."""
    with pytest.raises(UsageError) as caught:
        windlass.on_warning(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == "on_warning(3): give a function of one argument, the seconds that are left, as in on_warning(save)"


@pytest.mark.asyncio
@MODES
async def test_time_left_is_infinite_without_a_walltime_and_right_when_the_end_changes(bench: Any, tmp_path: Path, how: Any) -> None:
    """Also for a call that runs when the worker learns of an earlier end; and it is never negative."""
    instance = await bench.serving(bench.spec(left, left_twice, **how))
    assert bench.value(await bench.run(left)) == math.inf
    instance.tell_end(soon(1000), False)
    call = bench.call(left_twice, str(tmp_path))
    instance.feed([call])
    await bench.until((tmp_path / "asked").exists)
    instance.tell_end(soon(30), True)
    (tmp_path / "asked").unlink()
    before, after = bench.value(await bench.end(call))
    assert 900 < before <= 1000
    assert 0 < after <= 30
    instance.tell_end(soon(-5), True)
    assert bench.value(await bench.run(left)) == 0.0


@pytest.mark.asyncio
async def test_time_left_is_no_more_than_the_calls_own_timeout(bench: Any) -> None:
    """Whichever ends it first."""
    instance = await bench.serving(bench.spec(left))
    call = bench.call(left)
    limited = CallRun(call.call, 1, call.instance, call.function, call.payload, timeout=60.0)
    instance.feed([limited])
    assert 50 < bench.value(await bench.end(limited)) <= 60
    instance.tell_end(soon(20), False)
    call = bench.call(left)
    limited = CallRun(call.call, 1, call.instance, call.function, call.payload, timeout=60.0)
    instance.feed([limited])
    assert 10 < bench.value(await bench.end(limited)) <= 20


@pytest.mark.asyncio
@pytest.mark.parametrize("how", [{}, {"share_context": True}, {"start": "spawn"}], ids=["per slot", "shared", "spawn"])
async def test_a_context_function_may_ask_and_what_it_registers_is_nothing(bench: Any, how: Any) -> None:
    """It is no call, so there is nothing to warn; a thread in the zygote would forbid forks."""
    instance = bench.start(bench.spec(from_context, context=(compute_context, (), {}), **how), slots=0)
    instance.tell_end(soon(500), False)
    instance.set_slots(1)
    await bench.until(lambda: instance.slots == 1)
    assert not any(note for ready in bench.events.readies for note in ready.notes)
    then = bench.value(await bench.run(from_context))
    assert 400 < then <= 500 or (how.get("share_context") and then == math.inf)


@pytest.mark.asyncio
@MODES
async def test_a_callback_is_called_once_while_the_call_computes(bench: Any, tmp_path: Path, how: Any) -> None:
    """In pure Python, with the seconds that are left; a second warning calls nobody again."""
    instance = await bench.serving(bench.spec(until_warned, threads, **how))
    call = bench.call(until_warned, str(tmp_path / "on"))
    instance.feed([call])
    await bench.until((tmp_path / "on").exists)
    instance.tell_end(soon(30), True)
    instance.tell_end(soon(20), True)
    (tmp_path / "on").unlink()
    [told] = bench.value(await bench.end(call))
    assert 0 < told <= 30
    assert bench.value(await bench.run(threads)) == 1


@pytest.mark.asyncio
@MODES
async def test_a_callback_is_called_while_the_call_sleeps(bench: Any, tmp_path: Path, how: Any) -> None:
    """All slots hear of it, whatever each of them does."""
    instance = await bench.serving(bench.spec(asleep, **how), slots=2)
    paths = [tmp_path / "one", tmp_path / "two"]
    instance.feed([bench.call(asleep, str(path)) for path in paths])
    await bench.until(lambda: all(Path(f"{path}.started").exists() for path in paths))
    instance.tell_end(soon(30), True)
    await bench.until(lambda: all(path.exists() and path.read_text() for path in paths))
    assert all(0 < float(path.read_text()) <= 30 for path in paths)


@pytest.mark.asyncio
@MODES
async def test_who_registers_after_the_warning_is_called_at_once(bench: Any, how: Any) -> None:
    """Also in a slot that came after it."""
    instance = await bench.serving(bench.spec(register_late, **how))
    instance.tell_end(soon(30), True)
    assert 0 < bench.value(await bench.run(register_late)) <= 30
    instance.set_slots(0)
    await bench.until(lambda: not instance.slot_pids())  # one that leaves may give a call back
    instance.set_slots(1)
    await bench.until(lambda: instance.slots == 1)
    assert 0 < bench.value(await bench.run(register_late)) <= 30


@pytest.mark.asyncio
async def test_a_registration_ends_with_its_call_and_its_thread_with_it(bench: Any, tmp_path: Path) -> None:
    """A warning that comes later calls nothing; the slot has one thread again, so later calls may fork."""
    instance = await bench.serving(bench.spec(register_and_return, threads))
    for _ in range(50):
        assert bench.value(await bench.run(register_and_return, str(tmp_path / "called"))) == 2
    assert bench.value(await bench.run(threads)) == 1
    instance.tell_end(soon(30), True)
    assert bench.value(await bench.run(threads)) == 1
    assert not (tmp_path / "called").exists()


@pytest.mark.asyncio
@MODES
async def test_what_a_callback_raises_is_on_the_calls_stderr_and_the_next_one_is_called(bench: Any, tmp_path: Path, how: Any) -> None:
    """SystemExit too; the call goes on."""
    instance = await bench.serving(bench.spec(raise_in_callback, **how))
    call = bench.call(raise_in_callback, str(tmp_path / "on"))
    instance.feed([call])
    await bench.until((tmp_path / "on").exists)
    instance.tell_end(soon(30), True)
    end = await bench.end(call)
    assert bench.value(end) == "went on"
    text = end.stderr.decode()
    assert text.startswith("windlass.on_warning: <function raise_in_callback.<locals>.fail at ")
    assert "SystemExit: the disk is full" in text


@pytest.mark.asyncio
async def test_the_block_waits_for_a_callback_that_runs(bench: Any, tmp_path: Path) -> None:
    """So that what it saves is whole when the function goes on."""
    instance = await bench.serving(bench.spec(slow_callback))
    call = bench.call(slow_callback, str(tmp_path / "on"))
    instance.feed([call])
    await bench.until((tmp_path / "on").exists)
    instance.tell_end(soon(30), True)
    assert bench.value(await bench.end(call)) == 1


@pytest.mark.asyncio
async def test_a_process_that_the_call_forks_registers_for_itself(bench: Any) -> None:
    """And cannot hang on what it has inherited."""
    instance = await bench.serving(bench.spec(fork_and_register))
    instance.tell_end(soon(30), True)
    assert bench.value(await bench.run(fork_and_register)) == 0


def register_and_fail() -> None:
    import windlass

    windlass.on_warning(print)
    raise ValueError("no")


@pytest.mark.asyncio
async def test_a_call_that_raises_has_no_registration_either(bench: Any) -> None:
    """Its thread is gone."""
    await bench.serving(bench.spec(register_and_fail, threads))
    assert (await bench.run(register_and_fail)).outcome == RAISED
    assert bench.value(await bench.run(threads)) == 1
