"""Which calls a manager tells of: by state, library, tag, host; the newest; and at a cost that has a bound."""

from __future__ import annotations

import json
from typing import Any

import pytest

from windlass.manager.calls import LIBRARY_FAILED
from windlass.manager.core import Core
from windlass.manager.failures import FAILURES_KEPT, TEXT_MOST
from windlass.manager.listing import BYTES_MOST, LOOKS_MOST, list_calls, runs
from windlass.messages import (
    CANCELLED,
    RAISED,
    TIMED_OUT,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    EndDetail,
    FunctionDef,
    FunctionId,
    LibraryFailed,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    ListCalls,
    PilotId,
    PoolName,
    Resources,
    RunCalls,
    StartLibrary,
    WorkerId,
    WorkerInfo,
)

F = FunctionId(b"f" * 16)


class Bench:
    """A core, and what came of it."""

    def __init__(self) -> None:
        self.core = Core()
        self.now = 1000.0
        self.calls = 0

    def library(self, name: str = "lib", concurrency: int = 1) -> LibraryId:
        functions = (FunctionDef(F, "f", b"blob"),)
        self.core.install(LibrarySpec(LibraryId(f"{name}@1"), name, (3, 11), functions, concurrency=concurrency), self.now)
        return LibraryId(f"{name}@1")

    def worker(self, name: str = "w1", cores: float = 2, host: str = "node1") -> None:
        info = WorkerInfo(host, 1, Resources(cores, 0, 0), (), PoolName("pool"), PilotId("p-" + name))
        self.core.worker_joined(WorkerId(name), info, self.now)
        self.core.pump(self.now)

    def submit(self, library: LibraryId, count: int = 1, tag: str = "", options: CallOptions = CallOptions()) -> None:  # noqa: B008
        first = self.calls + 1
        self.calls += count
        self.core.submit([CallSpec(CallId(one), library, F, b"x", (), options, tag=tag) for one in range(first, first + count)], self.now)
        self.core.pump(self.now)

    def serve(self) -> dict[CallId, tuple[WorkerId, CallRun]]:
        """Have all instances ready; what workers were sent."""
        runs: dict[CallId, tuple[WorkerId, CallRun]] = {}
        while True:
            self.core.pump(self.now)
            outbox = self.core.take_outbox()
            if not outbox:
                return runs
            for worker, messages in outbox.items():
                for message in messages:
                    if isinstance(message, StartLibrary):
                        self.core.worker_said(worker, [LibraryReady(message.instance, 7)], self.now)
                    elif isinstance(message, RunCalls):
                        runs.update((run.call, (worker, run)) for run in message.calls)

    def end(self, sent: tuple[WorkerId, CallRun], outcome: int, detail: EndDetail) -> None:
        worker, run = sent
        self.core.worker_said(worker, [CallsEnded([CallEnd(run.call, run.attempt, outcome, detail=detail)])], self.now)
        self.core.pump(self.now)

    def ask(self, *states: str, most: int = 20, **more: str) -> dict[str, Any]:
        wanted = ListCalls(states, most=most, **more)
        found: dict[str, Any] = json.loads(list_calls(self.core, wanted, self.now, lambda call: ("", call)))
        return found

    def ids(self, *states: str, most: int = 20, **more: str) -> list[int]:
        return [row["call"] for row in self.ask(*states, most=most, **more)["calls"]]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_waiting_calls_are_told_newest_first_with_a_count_of_all(bench: Bench) -> None:
    """Over all queues of all libraries."""
    lib, other = bench.library(), bench.library("other")
    bench.submit(lib, 3)
    bench.now += 1
    bench.submit(other, 2, options=CallOptions(priority=5))
    bench.now += 1
    bench.submit(lib, 1, tag="late", options=CallOptions(timeout=9))
    found = bench.ask(most=4)
    assert [(row["call"], row["library"], row["waited"]) for row in found["calls"]] == [
        (6, "lib", 0.0),
        (5, "other", 1.0),
        (4, "other", 1.0),
        (3, "lib", 2.0),
    ]
    assert (found["counts"], found["cut"]) == ({"waiting": 6, "sent": 0, "failed": 0}, False)
    assert bench.ids(library="other") == [5, 4]
    assert bench.ask(library="other")["counts"] == {"waiting": 2, "sent": 0, "failed": None}
    assert bench.ids(tag="late") == [6]
    assert bench.ask(tag="late")["counts"] == {"waiting": None, "sent": None, "failed": None}
    assert bench.ids("running", "failed") == []
    bench.core.cancel([CallId(5), CallId(3)], bench.now)
    assert bench.ids() == [6, 4, 2, 1]


def test_of_sent_calls_as_many_run_as_there_are_slots(bench: Bench) -> None:
    """The oldest, and they are told of first: what does not end is what people look for."""
    lib = bench.library()
    bench.submit(lib, 4, tag="a")
    bench.worker("w1", host="node1")
    bench.serve()
    bench.now += 5
    bench.submit(lib, 2, tag="b")
    bench.worker("w2", host="node2")
    bench.serve()
    bench.now += 2
    running, sent = bench.ask("running"), bench.ask("sent")
    assert [(row["call"], row["host"], row["worker"], row["pilot"], row["ran"]) for row in running["calls"]][:2] == [
        (1, "node1", "w1", "p-w1", 7.0),
        (2, "node1", "w1", "p-w1", 7.0),
    ]
    assert {row["state"] for row in sent["calls"]} <= {"sent"}
    assert len(running["calls"]) + len(sent["calls"]) == running["counts"]["sent"] == 6
    assert all(row["attempts"] == 1 for row in running["calls"])
    assert all(row["attempts"] == 0 for row in sent["calls"])
    assert bench.ids("running", host="node1") == bench.ids("running", host="w1") == [1, 2]
    assert set(bench.ids(tag="b")) == {5, 6}
    assert len(bench.ids("running", most=1)) == 1
    assert bench.ids("running", library="other") == []
    assert [number for number in range(9) if runs(bench.core, CallId(number))] == sorted(bench.ids("running", most=9)), "each by itself"


def test_of_calls_that_share_a_slot_all_run(bench: Bench) -> None:
    """As many as its library says."""
    bench.submit(bench.library(concurrency=10), 25)
    bench.worker(cores=1)
    bench.serve()
    assert bench.ids("running", most=100) == list(range(1, 11))
    assert not set(bench.ids("sent", most=100)) & set(range(1, 11))
    assert [number for number in range(30) if runs(bench.core, CallId(number))] == list(range(1, 11))


def test_failed_calls_are_told_with_the_first_line_of_their_error(bench: Bench) -> None:
    """Those that ended with results, or were cancelled, are not."""
    lib = bench.library()
    bench.worker()
    bench.submit(lib, 4, tag="t")
    runs = bench.serve()
    text = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: no such row\nand a second line'
    bench.end(runs[CallId(1)], RAISED, EndDetail(types=("builtins.ValueError", "builtins.Exception"), text=text))
    bench.now += 3
    bench.end(runs[CallId(2)], TIMED_OUT, EndDetail(text="it ran longer than timeout=1"))
    bench.end(runs[CallId(3)], CANCELLED, EndDetail())
    bench.end(runs[CallId(4)], 0, EndDetail())
    rows = bench.ask("failed")["calls"]
    assert [(row["call"], row["error"], row["outcome"], row["host"], row["attempts"], row["tag"]) for row in rows] == [
        (2, "it ran longer than timeout=1", "timed out", "node1", 1, "t"),
        (1, "ValueError: no such row", "raised", "node1", 1, "t"),
    ]
    assert bench.now - rows[1]["ended_at"] == 3
    assert bench.ids("failed", most=1) == [2]
    assert bench.ids("failed", host="node2") == bench.ids("failed", tag="x") == bench.ids("failed", library="x") == []
    assert bench.ask()["counts"]["failed"] == 2


def test_calls_of_a_library_that_cannot_start_are_told_as_failed(bench: Bench) -> None:
    """Those that waited, and those that came later, which never were in a queue."""
    lib = bench.library()
    bench.worker()
    bench.submit(lib, 1)
    [start] = [one for messages in bench.core.take_outbox().values() for one in messages if isinstance(one, StartLibrary)]
    bench.core.worker_said(WorkerId("w1"), [LibraryFailed(start.instance, "import", "no module named 'x'")], bench.now)
    bench.core.pump(bench.now)
    bench.submit(lib, 1)
    rows = bench.ask()["calls"]
    assert [(row["call"], row["function"], row["attempts"], row["ran"]) for row in rows] == [(2, "f", 0, 0.0), (1, "f", 0, 0.0)]
    assert {row["error"] for row in rows} == {"library 'lib' cannot start: no module named 'x'"}
    assert {done.end.outcome for done in bench.core.take_done()} == {LIBRARY_FAILED}


def test_what_is_kept_of_failures_has_a_bound(bench: Bench) -> None:
    """In number, and in the length of texts."""
    lib = bench.library()
    bench.worker(cores=1)
    bench.submit(lib, FAILURES_KEPT + 5, tag="t" * 5000)
    while runs := bench.serve():
        for sent in runs.values():
            bench.end(sent, RAISED, EndDetail(types=("m.E",), text="m.E: " + "x" * 5000))
    assert len(bench.core.failures.newest) == FAILURES_KEPT
    found = bench.ask("failed", most=FAILURES_KEPT)
    assert max(len(row["error"]) for row in found["calls"]) == TEXT_MOST
    assert max(len(row["tag"]) for row in found["calls"]) == TEXT_MOST
    assert len(json.dumps(found)) < 1 << 20
    assert found["counts"]["failed"] == FAILURES_KEPT + 5


def test_an_answer_fits_a_frame_and_costs_no_more_for_a_million_calls(bench: Bench) -> None:
    """Looks are counted: of calls that do not fit a filter no more than so many, and then the answer says so."""
    lib = bench.library()
    bench.submit(lib, 3 * LOOKS_MOST, tag="x")
    found = bench.ask(tag="y")
    assert (found["calls"], found["cut"]) == ([], True)
    bench.submit(lib, 1, tag="y")
    assert bench.ids(tag="y") == [bench.calls], "the newest are looked at first"
    assert len(bench.ask(most=10**9)["calls"]) == 1000
    for call in bench.core.calls.values():
        call.spec.tag = "\x00" * TEXT_MOST  # six bytes each, as JSON
    assert len(list_calls(bench.core, ListCalls(most=1000), bench.now, lambda call: ("p" * 500, call))) < BYTES_MOST + 1000
    assert bench.ask(most=1000)["cut"]
    assert bench.ask(most=-3)["calls"] == []
