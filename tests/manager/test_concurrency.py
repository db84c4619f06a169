"""Libraries of which a slot runs many calls at once, in the core: places, slots, demand, and who loses what."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.manager.test_core import Bench

from windlass import Executor, FunctionCall, Manager
from windlass.errors import NotPossible, UsageError
from windlass.manager.calls import LOST
from windlass.manager.library import CONCURRENCY_MOST, Library
from windlass.messages import (
    CallOptions,
    CallsReturned,
    HeldCall,
    LibraryReady,
    RecallCalls,
    Resources,
    RunCalls,
    SetSlots,
    StartLibrary,
    WorkerId,
)


@pytest.fixture
def bench() -> Any:
    one = Bench()
    yield one
    one.core.check()


async def nap() -> None:
    await asyncio.sleep(0)


def plain() -> None:
    """Do nothing."""


def test_a_slot_has_as_many_places_as_calls_that_it_runs_at_once(bench: Bench) -> None:
    """Calls fill the places of all slots; what waits ahead is counted from there."""
    library = bench.library(concurrency=10)
    bench.worker(cores=2)
    bench.submit(library, 500)
    bench.serve()
    runs = bench.runs()
    assert len(runs) == 20 * 5, "little ahead while nothing is known"
    instance = bench.core.libraries[library].instances[runs[0].instance]
    assert (instance.slots, instance.places, instance.running_most) == (2, 20, 20)
    for run in runs[:40]:
        bench.end(run, seconds=60.0)
    assert instance.outstanding == 60, "calls of minutes: nothing is sent ahead any more"


def test_what_waits_is_worth_a_slot_each_time_that_it_fills_it(bench: Bench) -> None:
    """In what factories are told, and in what is granted."""
    library = bench.library(concurrency=10)
    bench.submit(library, 95)
    [shape] = bench.core.demand(bench.now).shapes
    assert (shape.waiting, shape.running) == (10, 0)
    for name in ("w1", "w2", "w3"):
        bench.worker(name, cores=8)
    slots = [start.slots for name in ("w1", "w2", "w3") for start in bench.heard(name) if isinstance(start, StartLibrary)]
    assert sum(slots) == 16, "ten slots are needed: two workers"


def test_calls_of_a_lost_worker_that_may_have_run_count_as_lost(bench: Bench) -> None:
    """As many as there are places; those behind them go back free."""
    library = bench.library(concurrency=4)
    bench.worker(cores=1)
    bench.submit(library, 12)
    bench.serve()
    assert len(bench.runs()) == 12
    bench.core.worker_lost(WorkerId("w1"), "gone", bench.now)
    bench.step()
    assert sorted(call.losses for call in bench.core.calls.values()) == [0] * 8 + [1] * 4


def test_slots_are_taken_away_only_when_no_more_calls_are_left_than_slots_stay(bench: Bench) -> None:
    """Which slots the calls are in is not known here: a slot may be busy with one call while another runs many."""
    library, other = bench.library(concurrency=10), bench.library("other")
    bench.worker(cores=2)
    bench.submit(library, 20)
    bench.serve()
    runs = bench.runs()
    bench.step(2.0)
    bench.submit(other, 1)
    bench.step(0.1)
    instance = bench.core.libraries[library].instances[runs[0].instance]
    assert (instance.target, instance.slots, instance.places) == (1, 2, 1)
    assert bench.heard() == [RecallCalls(instance.id, 19)], "what has not started may come back"
    bench.say("w1", CallsReturned((), "recalled"))
    bench.submit(library, 5)
    for run in runs[:18]:
        bench.end(run)
    assert not [message for message in bench.heard() if isinstance(message, SetSlots | RunCalls)], "two calls may be in two slots"
    bench.end(runs[18])
    messages = bench.heard()
    assert SetSlots(instance.id, 1, ()) in messages
    assert [one for one in messages if isinstance(one, StartLibrary)]
    sent = [run for message in messages if isinstance(message, RunCalls) for run in message.calls]
    assert len(sent) == 5
    assert instance.places == 10


def test_a_recall_takes_only_what_cannot_be_running(bench: Bench) -> None:
    """What is above all places."""
    library = bench.library(concurrency=10, slots=1)
    bench.worker("w1", cores=1)
    bench.submit(library, 50)
    bench.serve("w1")
    assert len(bench.runs("w1")) == 50
    bench.worker("w2", cores=1)
    bench.step(1.0)
    [start] = [message for message in bench.heard("w2") if isinstance(message, StartLibrary)]
    bench.say("w2", LibraryReady(start.instance, 1))
    bench.step(0.1)
    [recall] = [message for message in bench.heard("w1") if isinstance(message, RecallCalls)]
    assert 0 < recall.count <= 40


def test_neighbours_of_a_call_that_cost_its_slot_count_a_loss_and_no_retry(bench: Bench) -> None:
    """And one that it happens to again and again ends with the story of it."""
    library = bench.library(concurrency=2)
    bench.worker(cores=1)
    [call] = bench.submit(library, 1, CallOptions(max_losses=1))
    bench.serve()
    [run] = bench.runs()
    bench.say("w1", CallsReturned((HeldCall(run.call, run.attempt),), "neighbour"))
    [run] = bench.runs()
    assert run.attempt == 2
    bench.say("w1", CallsReturned((HeldCall(run.call, run.attempt),), "neighbour"))
    assert bench.outcome(call) == LOST
    assert "its slot was killed for another of its calls" in bench.done[call].attempts[0].outcome


def test_calls_that_ask_for_resources_of_their_own_are_refused(bench: Bench) -> None:
    """They would share their slot's with others."""
    library = bench.library(concurrency=2)
    [call] = bench.submit(library, 1, CallOptions(needs=Resources(1.5, gpus=1)))
    assert bench.text(call) == (
        "this call of library 'lib' can never run: it asks for cores=1.5 and gpus=1, and calls of that library share what their slot has, "
        "2 at a time; give it to the library: install_library(..., cores=1.5, gpus=1, concurrency=2)"
    )
    [call] = bench.submit(library, 1, CallOptions(grow_memory=True))
    assert "install_library(..., memory='4GB', concurrency=2)" in bench.text(call)


def test_what_cannot_be_is_refused_with_what_to_write() -> None:
    """Forks, plain functions alone, too many."""
    with pytest.raises(UsageError, match="mode='fork' gives each call a process of its own, and with concurrency=5 many calls share one"):
        Library("lib", nap, mode="fork", concurrency=5)
    with pytest.raises(UsageError, match=r"concurrency=5 is for async functions, and library 'lib' has none: .* write  async def plain"):
        Library("lib", plain, concurrency=5)
    with pytest.raises(UsageError, match=f"a slot runs at most {CONCURRENCY_MOST} calls at once; more slots run more"):
        Library("lib", nap, concurrency=CONCURRENCY_MOST + 1)
    with pytest.raises(UsageError, match="concurrency=0 cannot be"):
        Library("lib", nap, concurrency=0)
    with pytest.raises(UsageError, match="concurrency=0 cannot be"):
        Executor("fake", concurrency=0)
    library = Library("lib", nap, plain, concurrency=5)
    with pytest.raises(UsageError, match="mode='fork'"):
        library.set_function_exec_mode("fork")


def test_a_program_is_told_at_once_of_calls_that_ask_for_resources() -> None:
    """Where it submits them."""
    with Manager() as manager:
        manager.install_library("lib", nap, concurrency=5)
        call = FunctionCall("lib", "nap")
        call.set_cores(2)
        with pytest.raises(NotPossible, match="it asks for cores=2, and calls of that library share"):
            manager.submit(call)
