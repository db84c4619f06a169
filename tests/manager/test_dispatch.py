"""What dispatch costs: looks at queues and functions are counted, seconds are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from windlass.manager import workers
from windlass.manager.calls import CallQueue
from windlass.manager.core import FUNCTIONS_MOST, Core
from windlass.messages import (
    RETURNED,
    AddFunctions,
    CallEnd,
    CallId,
    CallOptions,
    CallsEnded,
    CallSpec,
    ForgetFunctions,
    FunctionDef,
    FunctionId,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    ObjectName,
    ObjectRef,
    PilotId,
    PoolName,
    Resources,
    RunCalls,
    StartLibrary,
    WorkerId,
    WorkerInfo,
)

LIBRARY = LibraryId("lib@1")
W1 = WorkerId("w1")


class Counted(list[CallQueue]):
    """A list that counts how many of its items were looked at."""

    looks = 0

    def __iter__(self) -> Iterator[CallQueue]:
        for queue in super().__iter__():
            self.looks += 1
            yield queue


def function(number: int) -> FunctionDef:
    return FunctionDef(FunctionId(number.to_bytes(16, "big")), f"f{number}", b"blob")


def spec(number: int, of: FunctionDef, options: CallOptions) -> CallSpec:
    return CallSpec(CallId(number), LIBRARY, of.id, b"args", (), options)


def serving() -> Core:
    """A core with a library and a worker of two cores that serves it."""
    core = Core()
    core.install(LibrarySpec(LIBRARY, "lib", (3, 11)), 0.0)
    core.define([function(1)])
    core.submit([spec(1, function(1), CallOptions())], 0.0)
    core.worker_joined(W1, WorkerInfo("host", 1, Resources(2.0), (), PoolName("pool"), PilotId("p1")), 0.0)
    core.pump(0.0)
    (start,) = [message for message in core.take_outbox()[W1] if isinstance(message, StartLibrary)]
    core.worker_said(W1, [LibraryReady(start.instance, 7)], 0.0)
    core.pump(0.0)
    return core


def end_what_runs(core: Core) -> list[int]:
    """All calls that were sent return, after a second each; their numbers, in the order of sending."""
    runs = [run for message in core.take_outbox().get(W1, []) if isinstance(message, RunCalls) for run in message.calls]
    for run in runs:
        core.worker_said(W1, [CallsEnded([CallEnd(run.call, run.attempt, RETURNED, started_at=1.0, ended_at=2.0)])], 2.0)
        core.pump(2.0)
    return [int(run.call) for run in runs]


def test_calls_that_all_have_their_own_priority_cost_as_much_as_others() -> None:
    """Each priority has a queue. What is looked at per call must not grow with the number of queues: neither when one is added while all
    slots are busy, nor when calls of one after the other end."""
    calls = 2000
    core = serving()
    assert end_what_runs(core) == [1]
    queues = core.libraries[LIBRARY].queues = Counted(core.libraries[LIBRARY].queues)
    for number in range(2, calls + 2):
        core.submit([spec(number, function(1), CallOptions(priority=float(number)))], 1.0)
        core.pump(1.0)
    order: list[int] = []
    while fresh := end_what_runs(core):
        order += fresh
    looks = queues.looks
    core.check()
    assert sorted(order) == list(range(2, calls + 2))
    waited = [number for number in order if number > 100]
    assert waited[20:] == sorted(waited[20:], reverse=True), "larger priorities first"
    assert looks < 200 * calls, f"{looks / calls:.0f} queues were looked at per call, of up to {calls}"


def test_functions_that_cannot_be_forgotten_are_not_looked_through_again_and_again() -> None:
    """Beyond `FUNCTIONS_MOST`, functions without calls are forgotten. When all have calls, the next look comes after many more: one look
    for each new function would make the cost of a submission grow with what waits."""
    core = serving()
    looks = 0
    real = core._forget_functions  # pyright: ignore[reportPrivateUsage]

    def counting() -> None:
        nonlocal looks
        looks += 1
        real()

    core._forget_functions = counting  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
    for number in range(2, FUNCTIONS_MOST + 2000):
        core.define([function(number)])
        core.submit([spec(number, function(number), CallOptions())], 1.0)
    assert looks <= 2


def test_the_newer_half_of_the_functions_is_never_forgotten() -> None:
    """The program says a function again when it has said many others since, and relies on that: what it has said last is remembered here,
    however many of the others are needed."""
    core = serving()
    end_what_runs(core)
    core.take_outbox()
    held = FUNCTIONS_MOST - 100
    for number in range(2, held):
        core.define([function(number)])
        core.submit([spec(number, function(number), CallOptions())], 1.0)
    last = [function(number) for number in range(held, held + 5000)]
    for one in last:
        core.define([one])
    assert all(one.id in core.functions for one in last)


def test_functions_with_much_data_do_not_fill_a_worker() -> None:
    """Closures over 20 MB each, say: the first ones are let go, but for what runs, and added again when a call needs them."""
    core = serving()
    end_what_runs(core)
    size = workers.FUNCTIONS_MOST // 3

    def submit(call: int, number: int) -> list[Any]:
        core.define([FunctionDef(function(number).id, "f", b"", object=ObjectRef(ObjectName(f"{number:064}"), size))])
        core.submit([spec(call, function(number), CallOptions())], 1.0)
        core.pump(1.0)
        return core.take_outbox()[W1]

    def end(call: int) -> None:
        core.worker_said(W1, [CallsEnded([CallEnd(CallId(call), 1, RETURNED, started_at=1.0, ended_at=2.0)])], 2.0)
        core.pump(2.0)

    def kinds(messages: list[Any]) -> list[Any]:
        return [
            (one.functions[0].id, "added") if isinstance(one, AddFunctions) else (one.functions[0], "forgotten")
            for one in messages
            if isinstance(one, AddFunctions | ForgetFunctions)
        ]

    added = [(function(number).id, "added") for number in range(20)]
    forgotten = [(function(number).id, "forgotten") for number in range(20)]
    assert kinds(submit(12, 2)) == added[2:3]  # and this call runs on
    for number in (3, 4):
        assert kinds(submit(10 + number, number)) == [added[number]]
        end(10 + number)
    for number in (5, 6):
        assert kinds(submit(10 + number, number)) == [forgotten[number - 2], added[number]]
        end(10 + number)
    assert kinds(submit(17, 6)) == []
    end(17)
    end(12)
    assert kinds(submit(18, 3)) == [forgotten[2], added[3]]
    core.check()


def test_what_is_forgotten_is_forgotten_by_workers_too() -> None:
    """A worker that ran a function is told when it may let go of it."""
    core = serving()
    end_what_runs(core)
    for number in range(2, 2 * FUNCTIONS_MOST):
        core.define([function(number)])
    assert len(core.functions) <= FUNCTIONS_MOST
    messages: list[Any] = core.take_outbox().get(W1, [])
    assert [message.functions for message in messages if isinstance(message, ForgetFunctions)] == [(function(1).id,)]
