"""One library instance with real processes: calls, slots, what is taken back, killed, lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from windlass.messages import (
    CANCELLED,
    DIED,
    RETURNED,
    TIMED_OUT,
    CallId,
    CallRun,
    EndDetail,
    FunctionId,
    HeldCall,
    ImportSpec,
    InstanceId,
    Resources,
)
from windlass.worker import slotproc, slotset
from windlass.worker.backlog import Backlog
from windlass.worker.callqueue import CallQueue
from windlass.worker.slotlink import Row, Rows
from windlass.worker.slotproc import is_gone, process_state

# The kinds of call that the tests make. They go by value, so each is complete in itself.


def add(a: int, b: int) -> int:
    return a + b


def where() -> tuple[int, int]:
    import os

    return os.getpid(), os.getppid()


def wait_for(path: str) -> str:
    """Say that it runs by making the file, then wait until it is gone."""
    import os
    import time

    Path(path).write_text(str(os.getpid()))
    while Path(path).exists():
        time.sleep(0.002)
    return path


def die(number: int) -> None:
    import os
    import sys

    print("out before", flush=True)
    print("last words", file=sys.stderr)
    sys.stderr.flush()
    os.kill(os.getpid(), number)


def leave(status: int) -> None:
    import os

    os._exit(status)


@pytest.mark.asyncio
async def test_a_call_is_run_and_answered_with_its_times(bench: Any) -> None:
    """The three times of a call are in order."""
    instance = await bench.serving(bench.spec(add))
    end = await bench.run(add, 2, b=3)
    assert bench.value(end) == 5
    assert 0 < end.started_at <= end.ready_at <= end.ended_at
    assert instance.running() == []
    assert instance.queued == 0


@pytest.mark.asyncio
async def test_imports_are_done_once_and_shared_by_all_slots(bench: Any, tmp_path: Path) -> None:
    """The module notes each process that imports it; slots are children of the one that did."""
    (tmp_path / "heavy.py").write_text(f"import os\nopen({str(tmp_path / 'log')!r}, 'a').write(f'{{os.getpid()}} ')\n")

    def use() -> tuple[int, int]:
        import os
        import time

        import heavy  # type: ignore[import-not-found]  # pyright: ignore

        assert heavy
        time.sleep(0.02)
        return os.getpid(), os.getppid()

    spec = bench.spec(use, imports=(ImportSpec("heavy", True),), paths=(str(tmp_path),))
    instance = await bench.serving(spec, 3)
    calls = [bench.call(use) for _ in range(12)]
    assert instance.feed(calls) == 12
    results = [bench.value(await bench.end(call)) for call in calls]
    (ready,) = bench.events.readies
    assert (tmp_path / "log").read_text().split() == [str(ready.pid)]
    assert {parent for _, parent in results} == {ready.pid}
    assert len({slot for slot, _ in results}) > 1
    assert [item.module for item in ready.imports] == ["heavy"]
    assert ready.imports[0].seconds > 0


@pytest.mark.asyncio
async def test_calls_taken_back_are_the_newest_and_the_others_run_in_order(bench: Any) -> None:
    """What is taken back comes newest first."""
    instance = bench.start(bench.spec(add), 0)
    calls = [bench.call(add, index, 0) for index in range(10)]
    assert instance.feed(calls) == 10
    assert [call.call for call in instance.take_back(4)] == [10, 9, 8, 7]
    assert [call.call for call in instance.take_back(1)] == [6]
    await bench.events.until(lambda: bool(bench.events.readies))
    instance.set_slots(1)
    await bench.end(calls[4])
    assert [key[0] for key in bench.events.ends] == [1, 2, 3, 4, 5]
    assert instance.take_back(None) == []


@pytest.mark.asyncio
async def test_nothing_is_lost_or_run_twice_while_calls_are_taken_back_and_fed_again(bench: Any) -> None:
    """Thousands of calls, half of them taken back again and again while the slots claim."""
    instance = await bench.serving(bench.spec(add), 3)
    waiting = [bench.call(add, index, 1) for index in range(6000)]
    calls = list(waiting)
    for turn in range(10**6):
        if waiting:
            fed = instance.feed(waiting[:400])
            del waiting[:fed]
        if turn % 3 == 0:
            back = instance.take_back(turn % 350)
            waiting[:0] = reversed(back)
        if len(bench.events.ends) == len(calls):
            break
        await asyncio.sleep(0)
    assert len(bench.events.ends) == 6000
    assert all(bench.value(bench.events.ends[call.call, 1]) == index + 1 for index, call in enumerate(calls))
    assert bench.events.given_back == []


@pytest.mark.asyncio
async def test_a_full_queue_takes_no_more_and_says_when_it_has_room(bench: Any) -> None:
    """`feed` returns how many went in; `room` follows."""
    instance = bench.start(bench.spec(len), 0)
    bench.ids[len] = bench.spec(len).functions[0].id
    calls = [bench.call(len, "x" * 5000) for _ in range(1500)]
    fed = instance.feed(calls)
    assert 10 < fed < 1500
    assert instance.feed(calls[fed:]) == 0
    assert bench.events.rooms == 0
    assert len(instance.take_back(None)) == fed
    await bench.events.until(lambda: bench.events.rooms == 1)


@pytest.mark.asyncio
async def test_a_call_with_more_spans_than_a_packet_holds_runs_all_the_same(bench: Any) -> None:
    """It goes by a file, which is gone afterwards."""

    def count(arrays: list[Any]) -> int:
        return sum(len(array) for array in arrays)

    instance = await bench.serving(bench.spec(count))
    call = bench.call(count, [])
    (span,) = bench.call(count, bytearray(100_000)).spans
    from pickle import PickleBuffer, dumps

    stream = dumps((([PickleBuffer(bytearray(1))] * 1,), {}), 5, buffer_callback=lambda _: False)
    long = CallRun(call.call, 1, call.instance, call.function, stream, (span,) + (span,) * 5000)
    assert instance.feed([long]) == 1
    end = await bench.end(long)
    assert bench.value(end) == 100_000
    assert not list(instance.folder.glob("call-*"))


@pytest.mark.asyncio
async def test_a_long_call_that_the_disk_does_not_take_is_not_fed(bench: Any, mounted: Path) -> None:
    """Those before it are, once, and the instance goes on; the worker hears what the node lacks."""
    bench.folder = mounted
    instance = await bench.serving(bench.spec(add))
    before, after = bench.call(add, 1, 2), bench.call(add, 3, 4)
    long = CallRun(CallId(77), 1, before.instance, before.function, bytes(2 << 20))
    assert instance.feed([before, long, after]) == 1
    await bench.events.until(lambda: bool(bench.events.troubles))
    (text,) = bench.events.troubles
    assert text.startswith("a call of library lib could not be written: [Errno 28] No space left on device")
    assert not list(instance.folder.glob("call-*"))
    assert instance.feed([after]) == 1
    assert [bench.value(await bench.end(call)) for call in (before, after)] == [3, 7]
    assert instance.queued == 0
    await instance.stop()


@pytest.mark.asyncio
async def test_a_killed_call_ends_as_asked_and_its_slot_is_replaced(bench: Any, tmp_path: Path) -> None:
    """Only that call ends; the one beside it goes on."""
    instance = await bench.serving(bench.spec(wait_for, add), 2)
    one, other = bench.call(wait_for, str(tmp_path / "a")), bench.call(wait_for, str(tmp_path / "b"))
    instance.feed([one, other])
    await bench.until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    assert {(item.call, item.attempt) for item in instance.running()} == {(one.call, 1), (other.call, 1)}
    assert not instance.kill_call(CallId(99), 1, CANCELLED, None)
    assert not instance.kill_call(one.call, 2, CANCELLED, None)
    assert instance.kill_call(one.call, 1, TIMED_OUT, EndDetail(text="too long"))
    assert instance.kill_call(one.call, 1, CANCELLED, None), "a second wish changes nothing"
    end = await bench.end(one)
    assert end.outcome == TIMED_OUT
    assert end.detail.text == "too long"
    await bench.until(lambda: instance.slots == 2)
    (tmp_path / "b").unlink()
    assert (await bench.end(other)).outcome == RETURNED
    assert bench.value(await bench.run(add, 1, 1)) == 2


@pytest.mark.asyncio
async def test_what_a_call_ran_before_it_died_is_measured_though_the_clock_was_set(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what runs is known since when by the clock of timeouts, which nobody sets."""
    instance = await bench.serving(bench.spec(wait_for))
    call = bench.call(wait_for, str(tmp_path / "a"))
    before, clock = time.monotonic(), time.time
    instance.feed([call])
    await bench.until((tmp_path / "a").exists)
    [running] = instance.running()
    assert before <= running.since <= time.monotonic()
    monkeypatch.setattr(time, "time", lambda: clock() + 36000.0)
    os.kill(running.pid, signal.SIGKILL)
    end = await bench.end(call)
    assert end.outcome == DIED
    assert end.started_at < end.ended_at < end.started_at + 3600
    assert "e+04 s after the call began" not in end.detail.text


@pytest.mark.asyncio
async def test_many_are_cancelled_by_one_look_at_what_slots_run(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a look at all of them for each, the worker of a large node would do nothing else for a minute."""
    instance = await bench.serving(bench.spec(asyncio.sleep, concurrency=100), 2)
    backlog = Backlog(bench.events)
    backlog.add(instance.instance, instance, 2)
    backlog.serves(instance.instance)
    backlog.run(calls := [bench.call(asyncio.sleep, 600) for _ in range(200)])
    await bench.until(lambda: len(instance.running()) == 200)
    looks, read = list[int](), Rows.read

    def look(rows: Rows, row: int) -> Row:
        looks.append(row)
        return read(rows, row)

    monkeypatch.setattr(Rows, "read", look)
    backlog.cancel([HeldCall(call.call, 1) for call in calls])
    assert len(looks) <= 400
    assert {(await bench.end(call)).outcome for call in calls} == {CANCELLED}


@pytest.mark.asyncio
async def test_a_call_of_a_slot_whose_process_id_is_not_known_yet_is_killed_when_it_is(bench: Any, tmp_path: Path) -> None:
    """The slot's first words and the zygote's word of it come by different ways."""
    instance = await bench.serving(bench.spec(wait_for), 0)
    zygote = instance.zygote
    instance._loop.remove_reader(zygote._control.fileno())
    instance.set_slots(1)
    call = bench.call(wait_for, str(tmp_path / "a"))
    instance.feed([call])
    await bench.until((tmp_path / "a").exists)
    assert [item.pid for item in instance.running()] == [0]
    assert instance.kill_call(call.call, 1, CANCELLED, None)
    instance._loop.add_reader(zygote._control.fileno(), zygote._on_control)
    assert (await bench.end(call)).outcome == CANCELLED


@pytest.mark.asyncio
async def test_killing_calls_that_are_about_to_end_hits_no_other_call(bench: Any) -> None:
    """Each call ends once, killed or returned, and only those asked for are killed."""
    instance = await bench.serving(bench.spec(add), 2)
    calls = [bench.call(add, 1, 1) for _ in range(3000)]
    waiting, asked = list(calls), set[int]()
    while len(bench.events.ends) < len(calls):
        del waiting[: instance.feed(waiting[:200])]
        for item in instance.running():
            if len(asked) < 25 and instance.kill_call(item.call, item.attempt, CANCELLED, None):
                asked.add(item.call)
        await asyncio.sleep(0)
    killed = {call for (call, _), end in bench.events.ends.items() if end.outcome != RETURNED}
    assert killed <= asked
    assert all(bench.events.ends[call, 1].outcome == CANCELLED for call in killed)
    assert bench.events.given_back == []


@pytest.mark.asyncio
async def test_a_slot_killed_in_a_call_charges_that_call_only(bench: Any) -> None:
    """With signal, last words, and the calls behind it unharmed."""
    instance = await bench.serving(bench.spec(die, add), 1)
    dead = bench.call(die, signal.SIGSEGV)
    others = [bench.call(add, index, 0) for index in range(5)]
    instance.feed([dead, *others])
    end = await bench.end(dead)
    assert end.outcome == DIED
    assert end.detail.signal == signal.SIGSEGV
    assert end.detail.exit_status == -1
    assert end.detail.peak_memory > 1 << 20
    assert "was killed by signal 11 (SIGSEGV)" in end.detail.text
    assert end.stdout == b"out before\n"
    assert end.stderr.startswith(b"last words\n")
    assert b"Fatal Python error: Segmentation fault" in end.stderr
    for index, call in enumerate(others):
        assert bench.value(await bench.end(call)) == index
    assert bench.events.given_back == []
    assert not bench.events.failures


@pytest.mark.asyncio
async def test_a_call_that_exits_its_process_is_charged_with_the_status(bench: Any) -> None:
    """``os._exit`` cannot be caught; three in a row do not fail the library, for each had begun a call."""
    await bench.serving(bench.spec(leave, add))
    for _ in range(4):
        end = await bench.run(leave, 7)
        assert end.outcome == DIED
        assert end.detail.exit_status == 7
        assert end.detail.signal == 0
    assert bench.value(await bench.run(add, 1, 2)) == 3


@pytest.mark.asyncio
async def test_a_killed_call_takes_its_children_along(bench: Any, tmp_path: Path) -> None:
    """Also one in a session of its own."""

    def family(path: str) -> None:
        import subprocess

        children = [subprocess.Popen(["sleep", "60"], start_new_session=own) for own in (False, True)]
        Path(path).with_suffix(".part").write_text(" ".join(str(child.pid) for child in children))
        Path(path).with_suffix(".part").rename(path)
        children[0].wait()

    instance = await bench.serving(bench.spec(family))
    call = bench.call(family, str(tmp_path / "pids"))
    instance.feed([call])
    await bench.until((tmp_path / "pids").exists)
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert instance.kill_call(call.call, 1, CANCELLED, None)
    assert (await bench.end(call)).outcome == CANCELLED
    await bench.until(lambda: all(is_gone(pid) for pid in pids))


@pytest.mark.asyncio
async def test_the_death_of_an_idle_slot_charges_nobody(bench: Any) -> None:
    """It is replaced."""
    instance = await bench.serving(bench.spec(add), 2)
    victim = instance.slot_pids()[0]
    os.kill(victim, signal.SIGKILL)
    await bench.until(lambda: instance.slots == 2 and victim not in instance.slot_pids().values())
    assert bench.value(await bench.run(add, 1, 2)) == 3
    assert not bench.events.given_back
    assert not bench.events.failures


@pytest.mark.asyncio
async def test_slots_killed_at_any_moment_lose_no_call(bench: Any) -> None:
    """Under load: each call returns, is charged, or is given back, exactly once."""
    instance = await bench.serving(bench.spec(add), 2)
    fed, kills, told = 0, 0, 0
    waiting: list[CallRun] = []
    while kills < 30 or told < fed:
        if kills < 30 and len(waiting) < 200:
            waiting += [bench.call(add, 1, 1) for _ in range(200)]
        went_in = instance.feed(waiting)
        del waiting[:went_in]
        fed += went_in
        pids = list(instance.slot_pids().values())
        if kills < 30 and len(pids) == instance.slots == 2 and told > kills * 100:
            with suppress(ProcessLookupError):
                os.kill(pids[kills % 2], signal.SIGKILL)
            kills += 1
        await asyncio.sleep(0.0005)
        told = len(bench.events.ends) + len(bench.events.given_back)
    outcomes = [end.outcome for end in bench.events.ends.values()]
    assert set(outcomes) <= {RETURNED, DIED}
    assert outcomes.count(DIED) + len(bench.events.given_back) <= 30
    assert not set(bench.events.given_back) & set(bench.events.ends)
    assert not bench.events.failures


@pytest.mark.asyncio
async def test_a_call_that_a_dead_slot_had_claimed_and_not_noted_is_given_back(bench: Any) -> None:
    """The audit: neither in the queue, nor with a living slot, nor answered."""
    instance = await bench.serving(bench.spec(add), 2)
    pids = instance.slot_pids()
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    await bench.until(lambda: all(process_state(pid) == "T" for pid in pids.values()))
    calls = [bench.call(add, 1, 1) for _ in range(3)]
    instance.feed(calls)
    # Claim the oldest as a slot would, and die as that slot.
    stolen = instance._queue._claims.recv(4096)
    assert stolen
    os.kill(pids[0], signal.SIGKILL)
    os.kill(pids[1], signal.SIGCONT)
    await bench.events.until(lambda: bool(bench.events.given_back))
    assert bench.events.given_back == [(calls[0].call, 1)]
    for call in calls[1:]:
        assert (await bench.end(call)).outcome == RETURNED


@pytest.mark.asyncio
async def test_the_zygotes_death_charges_begun_calls_and_gives_the_others_back(bench: Any, tmp_path: Path) -> None:
    """The instance has failed, after it had served, and has no process left."""
    instance = await bench.serving(bench.spec(wait_for), 1)
    begun, queued = bench.call(wait_for, str(tmp_path / "a")), bench.call(wait_for, str(tmp_path / "b"))
    instance.feed([begun, queued])
    await bench.until((tmp_path / "a").exists)
    os.kill(instance.zygote_pid, signal.SIGKILL)
    await bench.events.until(lambda: bool(bench.events.failures))
    (failure,) = bench.events.failures
    assert failure.kind == "crash"
    assert not failure.at_start
    assert failure.text == "the zygote of library 'lib' died (killed by signal 9 (SIGKILL)), and its slots with it"
    assert bench.events.ends[begun.call, 1].outcome == DIED
    assert bench.events.given_back == [(queued.call, 1)]


@pytest.mark.asyncio
async def test_a_call_is_not_given_back_while_its_slot_waits_for_the_interpreters_lock(bench: Any, tmp_path: Path) -> None:
    """It has claimed it and cannot note so, as a thread that an earlier call left has the lock; that sleep is not one for want of calls."""

    def leave_a_thread(path: str) -> int:
        import ctypes
        import os
        import threading
        import time

        def hold() -> None:
            while not Path(path).exists():
                time.sleep(0.002)
            Path(f"{path}.held").touch()
            ctypes.PyDLL(None).usleep(1_000_000)

        threading.Thread(target=hold).start()
        return os.getpid()

    instance = await bench.serving(bench.spec(leave_a_thread, add))
    pid = bench.value(await bench.run(leave_a_thread, str(tmp_path / "gate")))
    instance.set_slots(2)
    await bench.until(lambda: instance.slots == 2)
    other = next(iter({*instance.slot_pids().values()} - {pid}))
    os.kill(other, signal.SIGSTOP)
    await bench.until(lambda: process_state(other) == "T")
    (tmp_path / "gate").touch()
    await bench.until((tmp_path / "gate.held").exists)
    call = bench.call(add, 1, 2)
    instance.feed([call])
    await bench.until(lambda: not instance._queue.peek())
    os.kill(other, signal.SIGKILL)
    assert bench.value(await bench.end(call)) == 3
    assert not bench.events.given_back


@pytest.mark.asyncio
async def test_the_number_of_slots_goes_up_and_down(bench: Any, tmp_path: Path) -> None:
    """Idle ones leave at once, a busy one after its call."""
    instance = await bench.serving(bench.spec(wait_for, add), 3)
    call = bench.call(wait_for, str(tmp_path / "a"))
    instance.feed([call])
    await bench.until((tmp_path / "a").exists)
    instance.set_slots(1)
    await bench.until(lambda: len(instance.slot_pids()) == 1)
    assert [item.call for item in instance.running()] == [call.call], "idle ones go first"
    instance.set_slots(0)
    assert instance.slots == 0
    assert len(instance.slot_pids()) == 1
    (tmp_path / "a").unlink()
    assert (await bench.end(call)).outcome == RETURNED
    await bench.until(lambda: not instance.slot_pids())
    queued = bench.call(add, 1, 1)
    instance.feed([queued])
    instance.set_slots(2)
    assert bench.value(await bench.end(queued)) == 2
    await bench.until(lambda: instance.slots == 2)
    assert not bench.events.given_back


@pytest.mark.asyncio
async def test_idle_slots_may_come_and_go_as_often_as_is_wished(bench: Any) -> None:
    """That they end without having run a call is nobody's fault. What one has claimed that is stopped as it wakes for it comes back."""
    instance = await bench.serving(bench.spec(add), 1)
    for turn in range(12):
        instance.set_slots(turn % 2)
        await asyncio.sleep(0.0002 * turn)
    instance.set_slots(1)
    call = bench.call(add, 1, 1)
    key = call.call, call.attempt
    instance.feed([call])
    await bench.events.until(lambda: key in bench.events.ends or key in bench.events.given_back)
    end = bench.events.ends.get(key) or await bench.run(add, 1, 1)
    assert bench.value(end) == 2
    await bench.until(lambda: instance.slots == 1 and len(instance.slot_pids()) == 1)
    assert not bench.events.failures


@pytest.mark.asyncio
async def test_slots_that_come_and_go_under_load_lose_no_call(bench: Any) -> None:
    """Each call returns."""
    instance = await bench.serving(bench.spec(add), 2)
    calls = [bench.call(add, index, 1) for index in range(4000)]
    waiting, turn = list(calls), 0
    while len(bench.events.ends) + len(bench.events.given_back) < len(calls):
        del waiting[: instance.feed(waiting[:200])]
        turn += 1
        if turn % 20 == 0:
            instance.set_slots(1 + turn // 20 % 3)
        await asyncio.sleep(0)
    assert all(end.outcome == RETURNED for end in bench.events.ends.values())
    assert len(bench.events.given_back) <= turn // 20


@pytest.mark.asyncio
async def test_each_slot_has_gpus_of_its_own(bench: Any) -> None:
    """Set before user code, and handed on when a slot goes."""

    def gpus() -> tuple[str | None, str | None]:
        import os
        import time

        time.sleep(0.05)
        return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("ROCR_VISIBLE_DEVICES")

    spec = bench.spec(gpus, per_slot=Resources(gpus=2))
    instance = await bench.serving(spec, 2, ("0", "1", "GPU-a", "3"))
    calls = [bench.call(gpus) for _ in range(2)]
    instance.feed(calls)
    assert {bench.value(await bench.end(call)) for call in calls} == {("0,1", "0,1"), ("GPU-a,3", "GPU-a,3")}
    instance.set_slots(1, ("GPU-a", "3"))
    await bench.until(lambda: len(instance.slot_pids()) == 1)
    assert bench.value(await bench.run(gpus)) == ("GPU-a,3", "GPU-a,3")


@pytest.mark.asyncio
async def test_no_two_slots_of_a_worker_have_the_same_gpu(bench: Any, tmp_path: Path) -> None:
    """Whichever the manager names, who does not know which one a call runs on: a busy slot keeps its GPU, another library gets the others,
    and where there is none it waits."""

    def hold(path: str) -> str:
        import os
        import time

        Path(path).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        while Path(path).exists():
            time.sleep(0.002)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    spec, flag = bench.spec(hold, per_slot=Resources(gpus=1)), tmp_path / "first"
    first = await bench.serving(spec, 2, ("0", "1"))
    held = bench.call(hold, str(flag))
    first.feed([held])
    await bench.until(lambda: flag.exists() and flag.read_text())
    busy = flag.read_text()
    [idle] = {"0", "1"} - {busy}
    first.set_slots(1, (idle,))
    second = bench.start(spec, 1, (busy,))
    (tmp_path / "second").touch()
    call = bench.call(hold, str(tmp_path / "second"))
    second.feed([call])
    await bench.until(lambda: (tmp_path / "second").read_text())
    assert (tmp_path / "second").read_text() == idle
    first.set_slots(0)
    second.set_slots(2, ("0", "1"))
    await bench.until(lambda: bool(second.slot_pids()))  # a slot may have begun a call before its zygote has told of it
    assert len(second.slot_pids()) == 1
    flag.unlink()
    await bench.until(lambda: second.slots == 2)
    (tmp_path / "second").unlink()
    assert [bench.value(await bench.end(each)) for each in (held, call)] == [busy, idle]


@pytest.mark.asyncio
async def test_a_slot_is_replaced_after_its_share_of_calls(bench: Any) -> None:
    """``max_calls``: no call is lost at the change."""
    instance = await bench.serving(bench.spec(where, max_calls=3))
    calls = [bench.call(where) for _ in range(7)]
    instance.feed(calls)
    pids = [bench.value(await bench.end(call))[0] for call in calls]
    assert pids[0] == pids[2] != pids[3] == pids[5] != pids[6]


@pytest.mark.asyncio
async def test_stop_waits_for_running_calls_and_gives_back_the_others(bench: Any, tmp_path: Path) -> None:
    """With grace the running one may end."""
    instance = await bench.serving(bench.spec(wait_for))
    calls = [bench.call(wait_for, str(tmp_path / name)) for name in "ab"]
    instance.feed(calls)
    await bench.until((tmp_path / "a").exists)
    stopping = asyncio.create_task(instance.stop(20))
    await bench.events.until(lambda: bool(bench.events.given_back))
    assert bench.events.given_back == [(calls[1].call, 1)]
    assert instance.feed([calls[1]]) == 0
    (tmp_path / "a").unlink()
    await stopping
    assert bench.events.ends[calls[0].call, 1].outcome == RETURNED


@pytest.mark.asyncio
async def test_stop_without_grace_ends_running_calls_uncharged(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are given back; nothing is left, not even a call's own child, which may take a moment to end."""
    awaited: list[int] = []

    async def all_gone(pids: Iterable[int], limit: float = 10.0) -> list[int]:
        awaited.extend(pids := list(pids))
        return await slotproc.all_gone(pids, limit)

    monkeypatch.setattr(slotset, "all_gone", all_gone)

    def stubborn(path: str) -> None:
        import signal
        import subprocess
        import time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        Path(path, "new").write_text(str(child.pid))
        Path(path, "new").rename(Path(path, "child"))
        time.sleep(60)

    instance = await bench.serving(bench.spec(stubborn))
    call = bench.call(stubborn, str(tmp_path))
    instance.feed([call])
    await bench.until((tmp_path / "child").exists)
    await instance.stop()
    assert int((tmp_path / "child").read_text()) in awaited
    assert bench.events.given_back == [(call.call, 1)]
    assert not bench.events.ends


@pytest.mark.asyncio
async def test_stop_in_the_middle_of_a_fork_leaves_no_slot(bench: Any) -> None:
    """One that the zygote is forking has a process id that nobody has been told yet."""
    for _ in range(10):
        instance = await bench.serving(bench.spec(add), 1)
        instance.set_slots(4)
        await instance.stop()
        assert not bench.living()


@pytest.mark.asyncio
async def test_slots_that_die_before_they_serve_fail_the_library(bench: Any) -> None:
    """Three in a row; no endless replacement."""

    def context() -> None:
        import os

        print("on the way out", file=__import__("sys").stderr, flush=True)
        os._exit(9)

    bench.start(bench.spec(add, context=(context, (), {})), 1)
    await bench.events.until(lambda: bool(bench.events.failures))
    (failure,) = bench.events.failures
    assert failure.kind == "crash"
    assert failure.text == (
        "3 slots of library 'lib' in a row ended before they had run a call; the last: exit status 9; it wrote:\non the way out"
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["raises", "hangs", "exits"])
async def test_a_slot_that_cannot_start_costs_the_others_nothing(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A licence server refuses the second connection, say: what runs goes on, and the slot comes when it can. Soon the worker is told."""
    monkeypatch.setattr(slotset, "PAUSES", (0.01, 0.05))

    def context(folder: str, how: str) -> None:
        import os
        import time

        if Path(folder, "bad").exists():
            Path(folder, f"tried-{os.getpid()}").touch()
            if how == "exits":
                os._exit(1)
            while how == "hangs":
                time.sleep(1)
            raise ConnectionRefusedError

    instance = await bench.serving(bench.spec(wait_for, context=(context, (str(tmp_path), how), {})))
    gate = tmp_path / "gate"
    call = bench.call(wait_for, str(gate))
    instance.feed([call])
    await bench.until(gate.exists)
    (tmp_path / "bad").touch()
    instance.set_slots(2)
    tries = {"hangs": 1, "raises": 4, "exits": 10}[how]
    await bench.until(lambda: len(list(tmp_path.glob("tried-*"))) >= tries)
    assert instance.slots == 1
    assert len(bench.events.troubles) == (tries > 1)
    assert all(text.startswith("slots of library 'lib' cannot start beside others on ") for text in bench.events.troubles)
    if how == "hangs":  # its time is over
        await bench.until(lambda: len(instance.slot_pids()) == 2)
        (slot,) = [slot for slot in instance._slots.slots.values() if not slot.ready]
        instance._slots._on_slot_timeout(slot)
    (tmp_path / "bad").unlink()
    await bench.until(lambda: instance.slots == 2)
    gate.unlink()
    assert bench.value(await bench.end(call)) == str(gate)
    assert not bench.events.failures


@pytest.mark.asyncio
async def test_while_one_slot_cannot_start_others_are_replaced(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has left, for `max_calls` or a timeout, does not wait for what another one waits for."""
    monkeypatch.setattr(slotset, "PAUSES", (600.0,))

    def context(folder: str) -> None:
        bad = Path(folder, "bad")
        if bad.exists():
            bad.rename(Path(folder, "met"))
            raise ConnectionRefusedError

    instance = await bench.serving(bench.spec(add, context=(context, (str(tmp_path),), {})), 2)
    await bench.until(lambda: instance.slots == 2)
    (tmp_path / "bad").touch()
    instance.set_slots(3)
    await bench.until(lambda: (tmp_path / "met").exists() and len(instance.slot_pids()) == 2)
    gone = min(instance.slot_pids().values())
    os.kill(gone, signal.SIGKILL)
    await bench.until(lambda: instance.slots == 2 and gone not in instance.slot_pids().values())
    assert not bench.events.failures


@pytest.mark.asyncio
async def test_slots_that_cannot_start_are_paused_while_another_ends_calls(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that one goes on to run says nothing of the start of the others, which would be tried again without pause."""
    monkeypatch.setattr(slotset, "PAUSES", (600.0,))

    def context(folder: str) -> None:
        import os

        if Path(folder, "bad").exists():
            os._exit(1)

    instance = await bench.serving(bench.spec(add, context=(context, (str(tmp_path),), {})))
    assert bench.value(await bench.run(add, 1, 2)) == 3
    (tmp_path / "bad").touch()
    instance.set_slots(4)
    slots = instance._slots
    async with asyncio.timeout(20):
        while slots._pause is None or len(slots.slots) > 1:
            assert bench.value(await bench.run(add, 1, 2)) == 3
    assert slots._paused == 3
    assert not bench.events.failures


@pytest.mark.asyncio
async def test_signals_that_a_batch_system_sends_to_all_processes_are_survived(bench: Any, tmp_path: Path) -> None:
    """SIGTERM to zygote and slot; but what user code forks can be terminated."""

    def terminate_child(path: str) -> int:
        import multiprocessing
        import time

        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        Path(path).touch()
        child.terminate()
        child.join()
        while Path(path).exists():
            time.sleep(0.002)
        assert child.exitcode is not None
        return child.exitcode

    instance = await bench.serving(bench.spec(terminate_child))
    call = bench.call(terminate_child, str(tmp_path / "a"))
    instance.feed([call])
    await bench.until((tmp_path / "a").exists)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for pid in (instance.zygote_pid, *instance.slot_pids().values()):
            os.kill(pid, number)
    (tmp_path / "a").unlink()
    assert bench.value(await bench.end(call)) == -signal.SIGTERM


@pytest.mark.asyncio
async def test_a_runaway_writer_is_trimmed_by_the_worker(bench: Any, tmp_path: Path) -> None:
    """The memory is given back while the call runs; head and tail come with its end."""

    def shout(path: str) -> None:
        import time

        print("begin", flush=True)
        for _ in range(40):
            print("x" * (1 << 20), flush=True)
        print("end", flush=True)
        Path(path).touch()
        while Path(path).exists():
            time.sleep(0.002)

    instance = await bench.serving(bench.spec(shout))
    call = bench.call(shout, str(tmp_path / "a"))
    instance.feed([call])
    await bench.until((tmp_path / "a").exists)
    (slot,) = instance._slots.slots.values()
    assert os.fstat(slot.out).st_blocks * 512 > 40 << 20
    instance.trim_captures()
    assert os.fstat(slot.out).st_blocks * 512 < 1 << 20
    (tmp_path / "a").unlink()
    end = await bench.end(call)
    assert end.stdout.startswith(b"begin\nxxx")
    assert end.stdout.endswith(b"xxx\nend\n")
    assert b"bytes left out" in end.stdout
    assert len(end.stdout) < 70_000


def test_the_call_queue_keeps_the_order_of_what_it_takes_out_and_puts_back(tmp_path: Path) -> None:
    """Also when it is so full that not all of it fits again at once."""
    queue = CallQueue(str(tmp_path))
    calls = [CallRun(CallId(number), 1, InstanceId(1), b"", bytes(9000)) for number in range(400)]  # type: ignore[arg-type]
    fed = queue.feed(calls)
    assert 10 < fed < 400
    assert [call.call for call in queue.peek()] == list(range(fed))
    assert [call.call for call in queue.take_back(3)] == [fed - 1, fed - 2, fed - 3]
    assert [call.call for call in queue.take_back(None)] == list(range(fed - 4, -1, -1))
    queue.close()


def test_long_calls_are_taken_back_without_a_look_at_the_disk(tmp_path: Path) -> None:
    """Somebody may have removed their files, or there is no descriptor to open them with."""
    queue = CallQueue(str(tmp_path))
    calls = [CallRun(CallId(number), 2, InstanceId(1), FunctionId(b"f"), bytes(200_000), weight=number) for number in (1, 2, 3)]
    assert queue.feed(calls) == 3
    next(iter(tmp_path.iterdir())).unlink()
    assert [(call.call, call.attempt, call.weight) for call in queue.peek()] == [(1, 2, 1), (2, 2, 2), (3, 2, 3)]
    assert [(call.call, call.attempt, call.weight) for call in queue.take_back(None)] == [(3, 2, 3), (2, 2, 2), (1, 2, 1)]
    assert list(tmp_path.iterdir()) == []
    queue.close()
