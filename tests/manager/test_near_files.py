"""Calls go where their files are: to a free slot there, or behind others where waiting costs less than moving the bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from windlass.manager.core import Core
from windlass.messages import (
    RETURNED,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    FetchFile,
    FileFailed,
    FileHere,
    FileLost,
    FileName,
    FileOrigin,
    FileRef,
    FileSource,
    FunctionDef,
    FunctionId,
    LibraryId,
    LibraryReady,
    LibrarySpec,
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
PLAIN = CallOptions()
WORKERS = [WorkerId(name) for name in ("w1", "w2", "w3")]


class Cluster:
    """A core with three workers of one core, all with the library warm, and calls of 20 ms each behind them."""

    def __init__(self) -> None:
        self.core, self.now, self.next = Core(), 1000.0, 1
        self.running: dict[WorkerId, list[CallRun]] = {worker: [] for worker in WORKERS}
        self.fetching: dict[WorkerId, FetchFile] = {}
        self.core.install(LibrarySpec(LIB, "lib", (3, 11), functions=(FunctionDef(F, "f", b"blob"),)), self.now)
        for worker in WORKERS:
            self.core.worker_joined(worker, WorkerInfo(f"host of {worker}", 1, Resources(1.0)), self.now)
        self.submit(*[()] * 3)
        for worker in WORKERS:
            self.end(worker)

    def step(self) -> None:
        self.core.pump(self.now)
        self.core.check()
        for worker, messages in self.core.take_outbox().items():
            for message in messages:
                if isinstance(message, StartLibrary):
                    self.core.worker_said(worker, [LibraryReady(message.instance, 7)], self.now)
                    self.step()
                elif isinstance(message, RunCalls):
                    self.running[worker] += message.calls
                elif isinstance(message, FetchFile):
                    self.fetching[worker] = message

    def submit(self, *inputs: tuple[FileRef, ...]) -> None:
        """A call for each of these."""
        specs: list[CallSpec] = []
        for each in inputs:
            specs.append(CallSpec(CallId(self.next), LIB, F, b"", (), PLAIN, each))
            self.next += 1
        self.core.submit(specs, self.now)
        self.step()

    def end(self, worker: WorkerId, seconds: float = 0.02) -> None:
        """All that this worker has ends, after so long each."""
        runs, self.running[worker] = self.running[worker], []
        ends = [CallEnd(run.call, run.attempt, RETURNED, b"", started_at=self.now, ended_at=self.now + seconds) for run in runs]
        self.core.worker_said(worker, [CallsEnded(ends)], self.now)
        self.step()

    def file(self, number: int, size: int, *holders: WorkerId) -> FileRef:
        """A declared file that these have."""
        ref = FileRef(FileName(f"b3-{number:032x}"), size, "f")
        self.core.declare_file(ref, FileOrigin(path="/f"))
        for worker in holders:
            self.core.worker_said(worker, [FileHere(ref.name, size)], self.now)
        self.step()
        return ref

    def numbers(self) -> dict[WorkerId, int]:
        return {worker: len(runs) for worker, runs in self.running.items() if runs}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    assert cluster.numbers() == {}
    yield cluster
    cluster.core.check()


@pytest.mark.parametrize("holder", WORKERS)
def test_a_call_goes_to_the_free_worker_that_has_its_file(cluster: Cluster, holder: WorkerId) -> None:
    file = cluster.file(1, 10_000_000, holder)
    cluster.submit((file,))
    assert cluster.numbers() == {holder: 1}
    assert cluster.running[holder][0].inputs == (file,)


def test_a_node_that_does_not_see_a_shared_path_ends_no_call_that_needs_it(cluster: Cluster) -> None:
    """Neither its own nor one that waits: another worker, which no such call has reached, reads it, and the first has it from there."""
    core = cluster.core
    for worker in WORKERS:
        core.worker_said(worker, [Serving((f"{worker}:1",))], cluster.now)
    ref = FileRef(FileName("x3-" + "1" * 32), 10_000_000, "db")
    core.declare_file(ref, FileOrigin(shared="/scratch/db"))
    cluster.submit((ref,))
    [bad] = cluster.numbers()
    cluster.submit((), (), (), (ref,))
    core.take_done()
    core.worker_said(bad, [WantFiles((ref.name,))], cluster.now)
    cluster.step()
    core.worker_said(bad, [FileFailed(ref.name, cluster.fetching[bad].source, "gone", "it is not there on this node")], cluster.now)
    cluster.step()
    [scout] = [worker for worker in cluster.fetching if worker != bad]
    assert cluster.fetching[scout].source == FileSource(path="/scratch/db")
    core.worker_said(scout, [FileHere(ref.name, ref.size, "digest")], cluster.now)
    cluster.step()
    assert cluster.fetching[bad].source.peer == scout
    assert core.take_done() == []


def test_a_node_that_can_have_a_file_from_nowhere_ends_what_needs_it_there(cluster: Cluster) -> None:
    """Waiting for another node might be for ever: who has the file may be too small, or be no more given calls."""
    core, (bad, _, holder) = cluster.core, WORKERS
    for worker in WORKERS:
        core.worker_said(worker, [Serving(())], cluster.now)
    ref = FileRef(FileName("x3-" + "1" * 32), 1000, "db")
    core.declare_file(ref, FileOrigin(shared="/scratch/db"))
    core.worker_said(holder, [FileHere(ref.name, ref.size, "d")], cluster.now)
    cluster.submit((), (), ())
    cluster.end(bad)
    cluster.submit((ref,))
    assert [run.inputs for run in cluster.running[bad]] == [(ref,)]
    core.worker_said(bad, [WantFiles((ref.name,))], cluster.now)
    cluster.step()
    core.worker_said(bad, [FileFailed(ref.name, cluster.fetching[bad].source, "gone", "it is not there on this node")], cluster.now)
    core.pump(cluster.now)
    [lost] = core.take_outbox()[bad]
    assert isinstance(lost, FileLost)
    assert not lost.later


def test_of_several_files_most_bytes_count(cluster: Cluster) -> None:
    small, large = cluster.file(1, 1_000_000, WORKERS[0], WORKERS[1]), cluster.file(2, 9_000_000, WORKERS[2])
    cluster.submit((small, large))
    assert cluster.numbers() == {WORKERS[2]: 1}


def test_each_call_goes_to_its_own_file(cluster: Cluster) -> None:
    """In one batch, too."""
    files = [cluster.file(number, 1_000_000, worker) for number, worker in enumerate(WORKERS)]
    cluster.submit(*[(file,) for file in reversed(files)])
    assert {worker: runs[0].inputs for worker, runs in cluster.running.items()} == {
        worker: (file,) for worker, file in zip(WORKERS, files, strict=True)
    }


def test_a_busy_holder_is_worth_waiting_for_only_when_moving_costs_more(cluster: Cluster) -> None:
    """A call takes 20 ms there; to move 1 MB takes 10 ms, 100 MB a second. (Behind long calls nothing is queued at all.)"""
    light, heavy = cluster.file(1, 1_000_000, WORKERS[1]), cluster.file(2, 100_000_000, WORKERS[1])
    cluster.submit((light,))
    cluster.submit((light,))
    assert sorted(cluster.numbers().values()) == [1, 1]
    cluster.submit((heavy,))
    assert cluster.numbers()[WORKERS[1]] == 2


def test_calls_that_turn_out_long_leave_no_room_behind_others(cluster: Cluster) -> None:
    """What was allowed ahead shrinks for all workers, whoever it was learned from."""
    files = [cluster.file(number, 10_000_000, worker) for number, worker in enumerate(WORKERS)]
    cluster.submit(*[(file,) for file in files for _ in range(3)])
    assert all(number > 1 for number in cluster.numbers().values())
    cluster.end(WORKERS[0], seconds=30.0)
    cluster.submit(*[(file,) for file in files for _ in range(6)])
    assert sum(cluster.numbers().values()) <= 8


def test_small_files_lead_nowhere(cluster: Cluster) -> None:
    cluster.submit(())
    [last] = cluster.numbers()
    cluster.end(last)  # whose turn comes after the others'
    cluster.submit((cluster.file(1, 1000, last),))
    assert last not in cluster.numbers()


def test_calls_with_one_common_file_use_all_workers(cluster: Cluster) -> None:
    """The first to have it does not get more of them than a few ahead."""
    file = cluster.file(1, 10_000_000, WORKERS[0])
    cluster.submit(*[(file,)] * 10)
    assert set(cluster.numbers()) == set(WORKERS)
