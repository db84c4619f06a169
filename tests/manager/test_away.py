"""Calls whose files cannot be had for a while: they wait at the manager, others run, pilots are kept, and each ends once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from windlass.manager.away import PATIENCE
from windlass.manager.books import SWEEP_LEAST
from windlass.manager.core import Core
from windlass.manager.listing import list_calls
from windlass.manager.status import status
from windlass.messages import (
    NO_FILE,
    RETURNED,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    CallsReturned,
    FetchFile,
    FileFailed,
    FileHere,
    FileLost,
    FileName,
    FileOrigin,
    FileRef,
    FunctionDef,
    FunctionId,
    HeldCall,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    ListCalls,
    Resources,
    RunCalls,
    Serving,
    StartLibrary,
    WantFiles,
    WorkerId,
    WorkerInfo,
)

F = FunctionId(b"f" * 16)
LIB = LibraryId("lib@1")
WORKERS = [WorkerId("w1"), WorkerId("w2")]
DATA = FileRef(FileName("x3-" + "1" * 32), 10_000_000, "data")
OTHER = FileRef(FileName("x3-" + "2" * 32), 10_000_000, "other")


class Cluster:
    """A core with two workers of one core each, which do as `windlass.worker.files` does; what they are sent for fails while ``away``."""

    def __init__(self) -> None:
        self.core, self.now, self.next = Core(), 1000.0, 1
        self.away = True
        self.running: dict[WorkerId, dict[CallId, CallRun]] = {worker: {} for worker in WORKERS}
        self.here: dict[WorkerId, set[FileName]] = {worker: set() for worker in WORKERS}
        self.tried = 0
        self.core.install(LibrarySpec(LIB, "lib", (3, 11), functions=(FunctionDef(F, "f", b"blob"),)), self.now)
        self.core.declare_file(DATA, FileOrigin(shared="/scratch/data"))
        self.core.declare_file(OTHER, FileOrigin(shared="/home/other"))
        for worker in WORKERS:
            self.core.worker_joined(worker, WorkerInfo(f"host of {worker}", 1, Resources(1.0)), self.now)
            self.core.worker_said(worker, [Serving((f"{worker}:1",))], self.now)

    def submit(self, *inputs: FileRef, options: CallOptions | None = None) -> CallId:
        call = CallId(self.next)
        self.next += 1
        self.core.submit([CallSpec(call, LIB, F, b"", (), options or CallOptions(), inputs)], self.now)
        self.step()
        return call

    def step(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.core.tick(self.now)
        self.core.pump(self.now)
        self.core.check()
        for worker, messages in self.core.take_outbox().items():
            for message in messages:
                self._heard(worker, message)

    def _heard(self, worker: WorkerId, message: object) -> None:
        say, held = self.core.worker_said, self.running[worker]
        match message:
            case StartLibrary():
                say(worker, [LibraryReady(message.instance, 7)], self.now)
            case RunCalls():
                for run in message.calls:
                    held[run.call] = run
                wanted = tuple({ref.name for run in message.calls for ref in run.inputs} - self.here[worker])
                if wanted:
                    say(worker, [WantFiles(wanted)], self.now)
            case FetchFile() if message.source.path.startswith("/scratch") and self.away:
                self.tried += 1
                text = "/scratch/data: Stale file handle"
                say(worker, [FileFailed(message.ref.name, message.source, "failed", text)], self.now)
            case FetchFile():
                self.here[worker].add(message.ref.name)
                say(worker, [FileHere(message.ref.name, message.ref.size, "d")], self.now)
            case FileLost():
                back = [run for run in held.values() if message.name in {ref.name for ref in run.inputs}]
                for run in back:
                    del held[run.call]
                if message.later:
                    say(worker, [CallsReturned(tuple(HeldCall(run.call, run.attempt) for run in back), "files")], self.now)
                else:
                    say(worker, [CallsEnded([CallEnd(run.call, run.attempt, NO_FILE) for run in back])], self.now)
            case _:
                return
        self.step()

    def has(self) -> set[CallId]:
        """Calls that workers have."""
        return {call for runs in self.running.values() for call in runs}

    def end(self, *calls: CallId) -> None:
        """These return."""
        for worker, runs in self.running.items():
            for run in [runs.pop(call) for call in calls if call in runs]:
                self.core.worker_said(
                    worker, [CallsEnded([CallEnd(run.call, run.attempt, RETURNED, started_at=self.now, ended_at=self.now)])], self.now
                )
        self.step()

    def until_given_back(self, *calls: CallId) -> None:
        for _ in range(100):
            if not self.has() & set(calls):
                return
            self.step(1.0)
        pytest.fail("they stay at workers")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.core.check()


def test_others_run_while_calls_wait_for_a_file_server_and_these_when_it_is_back(cluster: Cluster) -> None:
    first = [cluster.submit(DATA) for _ in range(30)]
    cluster.until_given_back(*first)
    assert cluster.core.take_done() == []
    cluster.step(60.0)
    later, other = cluster.submit(DATA), cluster.submit(OTHER)
    assert cluster.has() == {other}
    cluster.end(other)
    assert cluster.tried < 12
    cluster.step(60.0)
    cluster.away = False
    for _ in range(17):
        cluster.step(1.0)
    assert cluster.has()
    for _ in range(40):
        cluster.end(*cluster.has())
    done = cluster.core.take_done()
    assert {one.end.outcome for one in done} == {RETURNED}
    assert {one.end.call for one in done} == {*first, later, other}


def test_calls_whose_file_is_away_for_too_long_end_with_what_its_source_says(cluster: Cluster) -> None:
    calls = [cluster.submit(DATA) for _ in range(5)]
    cluster.until_given_back(*calls)
    for _ in range(int(PATIENCE / 10) + 1):
        cluster.step(10.0)
    done = cluster.core.take_done()
    assert sorted(one.end.call for one in done) == calls
    assert {one.end.outcome for one in done} == {NO_FILE}
    [text] = {one.end.detail.text for one in done if one.end.detail is not None}
    assert text.startswith("/scratch/data: Stale file handle (tried for 10min")


def test_pilots_are_kept_for_calls_whose_file_is_away_and_people_see_what_these_wait_for(cluster: Cluster) -> None:
    """Nor is it forgotten of which kind they are where there are many kinds."""
    calls = [cluster.submit(DATA) for _ in range(5)]
    cluster.until_given_back(*calls)
    assert [(shape.waiting, shape.running, shape.away) for shape in cluster.core.demand(cluster.now).shapes] == [(0, 0, 5)]
    found = status(cluster.core, "m", [], cluster.now)
    assert found["calls"]["waiting_for_files"] == 5
    assert [row["away"] for row in found["files"]] == ["/scratch/data: Stale file handle", ""]
    rows = json.loads(list_calls(cluster.core, ListCalls(most=9), cluster.now, lambda call: ("", call)))["calls"]
    assert {row["error"] for row in rows} == {"waits for its file: /scratch/data: Stale file handle"}
    for number in range(2 * SWEEP_LEAST):
        cluster.end(cluster.submit(options=CallOptions(priority=float(number))))
    cluster.core.cancel(calls[:2], cluster.now)
    cluster.away = False
    for _ in range(17):
        cluster.step(1.0)
    assert cluster.has() <= set(calls[2:])
    assert cluster.has()


def test_what_waits_for_a_file_ends_with_its_manager(cluster: Cluster) -> None:
    calls = [cluster.submit(DATA) for _ in range(3)]
    cluster.until_given_back(*calls)
    cluster.core.close("it was closed", cluster.now)
    assert sorted(one.end.call for one in cluster.core.take_done()) == calls
