"""What the core does for one event does not grow with the number of workers. Counted in calls of Python functions, not in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from windlass.manager.books import LOOKED_AT, LOOKS_MOST
from windlass.manager.core import GIVEN_UP_AT_ONCE, Core
from windlass.manager.dispatch import LINGER_SECONDS
from windlass.manager.fetches import PEER_FETCHES
from windlass.manager.libraries import LibraryState
from windlass.manager.placement import HOLD_SECONDS, fits
from windlass.manager.status import FILES_MOST, status
from windlass.messages import (
    RETURNED,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    FetchFile,
    FileHere,
    FileName,
    FileOrigin,
    FileRef,
    FunctionDef,
    FunctionId,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    Message,
    PilotId,
    PoolName,
    Resources,
    RunCalls,
    Serving,
    StartLibrary,
    WorkerId,
    WorkerInfo,
)

F = FunctionId(b"f" * 16)
FEW, MANY = 50, 500
#: Dictionaries have an order, so that what is met first may differ a little.
ALIKE = 1.3


class Cluster:
    """A core with workers that start libraries at once, and remember what they are to run."""

    def __init__(self, workers: int, libraries: int = 1, cores: float = 4.0) -> None:
        self.core, self.now, self.numbers, self.cores = Core(), 1000.0, 0, cores
        self.specs = [
            LibrarySpec(LibraryId(f"lib{n}@1"), f"lib{n}", (3, 11), functions=(FunctionDef(F, "f", b"x"),)) for n in range(libraries)
        ]
        self.runs: dict[WorkerId, list[CallRun]] = {}
        self.fetches: list[tuple[WorkerId, FetchFile]] = []
        for spec in self.specs:
            self.core.install(spec, self.now)
        for _ in range(workers):
            self.join()
        self.turn()

    def join(self) -> WorkerId:
        self.numbers += 1
        worker = WorkerId(f"w{self.numbers}")
        info = WorkerInfo(f"n{self.numbers}", 1, Resources(self.cores), (), PoolName("p"), PilotId(worker))
        self.core.worker_joined(worker, info, self.now)
        return worker

    def submit(self, count: int, library: int = 0, options: CallOptions | None = None, inputs: tuple[FileRef, ...] = ()) -> None:
        options = options or CallOptions()
        specs: list[CallSpec] = []
        for _ in range(count):
            self.numbers += 1
            specs.append(CallSpec(CallId(self.numbers), self.specs[library].id, F, b"p", (), options, inputs))
        self.core.submit(specs, self.now)

    def turn(self) -> None:
        """Carry out what the core has decided, until it has nothing more to say."""
        self.core.pump(self.now)
        while out := self.core.take_outbox():
            for worker, messages in out.items():
                for message in messages:
                    if isinstance(message, StartLibrary):
                        self.core.worker_said(worker, [LibraryReady(message.instance, 1)], self.now)
                    elif isinstance(message, RunCalls):
                        self.runs.setdefault(worker, []).extend(message.calls)
                    elif isinstance(message, FetchFile):
                        self.fetches.append((worker, message))
            self.core.pump(self.now)
        self.core.check()

    def tick(self) -> None:
        """A turn of the manager's timer."""
        self.now += 0.05
        self.core.tick(self.now)
        self.core.pump(self.now)

    def end(self, worker: WorkerId, seconds: float = 1.0) -> None:
        """The oldest call there returns."""
        run = self.runs[worker].pop(0)
        end = CallEnd(run.call, run.attempt, RETURNED, started_at=self.now - seconds, ended_at=self.now)
        self.core.worker_said(worker, [CallsEnded([end])], self.now)
        self.core.pump(self.now)


def work(do: Callable[[], object]) -> int:
    """How many calls of Python functions that takes."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        do()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("libraries", [1, 3])
def test_a_worker_that_joins_while_calls_wait_is_looked_at_alone(libraries: int) -> None:
    """Workers that had nothing for the calls that wait have nothing yet; the one that comes gets calls at once."""
    found: list[int] = []
    for workers in (FEW, MANY):
        cluster = Cluster(workers, libraries)
        for library in range(libraries):
            cluster.submit(40 * workers, library)
        cluster.turn()
        cluster.join()
        cluster.turn()
        worker: list[WorkerId] = []

        def join(cluster: Cluster = cluster, worker: list[WorkerId] = worker) -> None:
            worker.append(cluster.join())
            cluster.core.pump(cluster.now)

        found.append(work(join))
        cluster.turn()
        assert cluster.runs[worker[0]]
    assert found[1] <= ALIKE * found[0]


def test_the_end_of_a_call_costs_the_same_when_no_other_waits() -> None:
    """Near the end of a run slots lie idle, and no worker is looked at for calls to take from it."""
    found: list[int] = []
    for workers in (FEW, MANY):
        cluster = Cluster(workers)
        cluster.submit(4 * workers)
        cluster.turn()
        for worker in list(cluster.runs)[:3]:
            cluster.end(worker)
        found.append(work(lambda cluster=cluster, worker=worker: cluster.end(worker)))  # type: ignore[misc]
        cluster.core.check()
    assert found[1] <= ALIKE * found[0]


def test_a_call_that_needs_several_slots_is_held_against_what_has_changed() -> None:
    """Idle instances that it did not fit are passed by until something about them changes; then it goes there."""
    found: list[int] = []
    wide = CallOptions(needs=Resources(3.0))
    for workers in (FEW, MANY):
        cluster = Cluster(workers)
        cluster.submit(4 * workers)
        cluster.turn()
        second, *others = list(cluster.runs)[1:]
        for worker in others:  # two slots free of four: no room for three
            cluster.end(worker)
            cluster.end(worker)
        cluster.submit(1, options=wide)
        cluster.turn()
        cluster.end(second)
        found.append(work(lambda cluster=cluster, second=second: cluster.end(second)))  # type: ignore[misc]
        cluster.turn()
        assert all(run.weight == 1 for runs in cluster.runs.values() for run in runs)
        cluster.end(second)
        cluster.turn()
        assert [run.weight for run in cluster.runs[second]] == [1, 3]
    assert found[1] <= ALIKE * found[0]


def test_a_file_goes_from_worker_to_worker_without_a_look_at_all_who_have_it() -> None:
    """The origin is read once, and the last fetches cost what the first did."""
    cluster = Cluster(MANY)
    ref = FileRef(FileName("b3-" + "0" * 32), 10_000_000_000, "common")
    cluster.core.declare_file(ref, FileOrigin(path="/data/common", stamp=(1, ref.size)))
    cluster.submit(4 * MANY, inputs=(ref,))
    cluster.turn()
    replicas = cluster.core.replicas
    for worker in cluster.core.workers:
        replicas.serving(worker, (f"{worker}:1",))
        replicas.wanted(worker, [ref.name])
    cluster.turn()
    costs: list[int] = []
    while cluster.fetches:
        worker, _ = cluster.fetches.pop(0)

        def arrives(worker: WorkerId = worker) -> None:
            cluster.core.worker_said(worker, [FileHere(ref.name, ref.size)], cluster.now)
            cluster.core.pump(cluster.now)

        costs.append(work(arrives))
        for name, messages in cluster.core.take_outbox().items():
            cluster.fetches += [(name, one) for one in messages if isinstance(one, FetchFile)]
    replicas.check()
    assert len(costs) == MANY == len(replicas.files[ref.name].holders)
    assert replicas.files[ref.name].origin_reads == 1
    early, late = sum(costs[50:150]), sum(costs[-150:-50])
    assert late <= ALIKE * early


def test_a_worker_that_is_lost_costs_a_look_at_its_own_files() -> None:
    """Results that stay with others are many, and somebody waits for many of these."""
    found: list[int] = []
    for results in (FEW, MANY):
        cluster = Cluster(3)
        first, second, third = cluster.core.workers
        refs = [FileRef(FileName(f"r-{number:032x}"), 10, "part") for number in range(results)]
        for ref in refs[3:]:
            cluster.core.replicas.keep(ref, first)
        for ref in refs[:3]:
            cluster.core.replicas.keep(ref, second)
        cluster.core.replicas.wanted(third, [ref.name for ref in refs])
        cluster.turn()

        def is_lost(cluster: Cluster = cluster, worker: WorkerId = second) -> None:
            cluster.core.worker_lost(worker, "gone", cluster.now)
            cluster.core.replicas.pump(cluster.now)

        found.append(work(is_lost))
        cluster.turn()
    assert found[1] <= ALIKE * found[0]


def test_the_status_does_not_count_what_each_worker_has() -> None:
    """That is known. Of the files those that were declared last are shown."""
    found: list[int] = []
    for results in (FILES_MOST + FEW, FILES_MOST + 10 * MANY):
        cluster = Cluster(3)
        first, second, third = cluster.core.workers
        refs = [FileRef(FileName(f"r-{number:032x}"), 10, "part") for number in range(results)]
        for ref in refs:
            cluster.core.replicas.keep(ref, first)
        cluster.core.replicas.keep(refs[0], second)
        cluster.core.worker_said(first, [Serving(("somewhere:1",))], cluster.now)
        cluster.core.replicas.wanted(third, [ref.name for ref in refs])
        cluster.turn()

        def look(cluster: Cluster = cluster) -> dict[str, Any]:
            return status(cluster.core, "m", [], cluster.now)

        found.append(work(look))
        told = look()
        assert [one["files"] for one in told["workers"]] == [results, 1, 0]
        assert (told["transfers"]["under_way"], told["transfers"]["waiting"]) == (PEER_FETCHES, results - PEER_FETCHES)
    assert found[1] <= ALIKE * found[0]


def test_sessions_that_are_over_together_are_given_up_in_parts() -> None:
    """All others are served between; and one that comes back meanwhile has its session."""
    cluster = Cluster(GIVEN_UP_AT_ONCE + 10)
    for worker in cluster.core.workers:
        cluster.core.worker_cut(worker, cluster.now)
    cluster.now += cluster.core.settings.reconnect_grace
    cluster.core.tick(cluster.now)
    assert len(cluster.core.workers) == 10
    *_, last = cluster.core.workers
    cluster.core.worker_back(last, cluster.now)
    cluster.core.tick(cluster.now)
    assert list(cluster.core.workers) == [last]
    cluster.core.check()


def test_what_a_tick_does_for_libraries_that_wait_is_bounded() -> None:
    """Workers are looked at again in turns."""
    found: list[int] = []
    for workers in (FEW, MANY):
        cluster = Cluster(workers, libraries=2)
        for library in (0, 1):
            cluster.submit(40 * workers, library)
        cluster.turn()
        cluster.tick()
        found.append(work(cluster.tick))
    # Who is to be given up is looked for among all, which is cheap.
    assert found[1] <= ALIKE * found[0] + 4 * MANY


def test_a_library_version_that_was_removed_is_not_held_against_all_results_that_are_kept() -> None:
    """It is looked at in each tick while one of its own is."""
    found: list[int] = []
    for kept in (FEW, MANY):
        cluster = Cluster(1, libraries=2)
        newer, older = cluster.specs
        names = [FileName(f"r-{number:032x}") for number in range(kept + 1)]
        for number, name in enumerate(names):
            library = newer if number < kept else older
            cluster.core.lineage.made(CallSpec(CallId(number + 1), library.id, F, b"p"), (name,))
        cluster.core.remove(older.id, cluster.now)
        cluster.now += LINGER_SECONDS
        found.append(work(cluster.tick))
        assert older.id in cluster.core.libraries
        cluster.core.release_files(names[-1:], prune=True)
        cluster.tick()
        assert older.id not in cluster.core.libraries
    assert found[1] == found[0]


class Counted:
    """Counts how often workers are held against what calls of a library ask for, where a module does that."""

    def __init__(self, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        monkeypatch.setattr(f"windlass.manager.{module}.fits", self._fits)

    def _fits(self, spec: LibrarySpec, needs: Resources, of: Resources) -> int:
        self.looks += 1
        return fits(spec, needs, of)


def crowd(libraries: int = 100) -> Cluster:
    """As many workers as are looked at in one turn of the timer, whose only slots are busy, and libraries that wait with a call each."""
    cluster = Cluster(LOOKED_AT, 1 + libraries, cores=1.0)
    cluster.submit(40 * LOOKED_AT)
    cluster.turn()
    for library in range(libraries):
        cluster.submit(1, 1 + library)
    cluster.turn()
    return cluster


def test_libraries_that_wait_are_not_held_against_workers_that_have_nothing_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand may wait. What others have had for a turn, those who have nothing get as soon as it may be had."""
    cluster, counted = crowd(), Counted("dispatch", monkeypatch)
    cluster.tick()
    assert counted.looks == 0
    cluster.now += HOLD_SECONDS
    cluster.tick()  # some of it, and now that there is something the rest
    cluster.tick()
    instances = cluster.core.libraries[cluster.specs[0].id].instances.values()
    assert [one.target for one in instances] == [0] * LOOKED_AT
    cluster.core.check()


def test_libraries_are_gone_through_once_however_many_workers_have_changed() -> None:
    """There may be thousands, of which few wait: those are found when all that has happened is known."""

    class Passes(dict[LibraryId, LibraryState]):
        number = 0

        def items(self) -> Any:
            self.number += 1
            return super().items()

        def values(self) -> Any:
            self.number += 1
            return super().values()

    found: list[int] = []
    for workers in (2, 20):
        cluster = Cluster(workers + 1, libraries=50)
        cluster.submit(200)
        cluster.turn()
        passes = cluster.core.libraries = Passes(cluster.core.libraries)
        for worker in list(cluster.core.workers)[:workers]:
            cluster.core.worker_cut(worker, cluster.now)
            cluster.core.worker_back(worker, cluster.now)
            cluster.core.worker_lost(worker, "gone", cluster.now)
        cluster.core.pump(cluster.now)
        found.append(passes.number)
        cluster.core.check()
    assert found[0] == found[1]


def test_the_more_libraries_look_in_vain_the_fewer_workers_they_look_at_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these has a call behind another, and workers have slots that it might take, were these not worth as much to others."""
    found: list[int] = []
    for libraries in (20, 100):
        cluster = Cluster(64, libraries)
        for library in range(libraries):
            cluster.submit(256 // libraries + 2, library)
        cluster.turn()
        for worker in [worker for worker, runs in cluster.runs.items() if runs]:
            cluster.end(worker, 0.001)
        cluster.turn()
        for library in range(libraries):
            cluster.submit(256 // libraries + 6, library)
        cluster.turn()
        for _ in range(40):
            cluster.tick()
            cluster.turn()
        with monkeypatch.context() as patch:
            counted = Counted("dispatch", patch)
            cluster.tick()
            found.append(counted.looks)
        cluster.core.check()
    assert 0 < found[1] <= LOOKS_MOST
    assert found[0] <= LOOKS_MOST


def test_idle_slots_do_not_go_back_and_forth_between_libraries_that_have_calls_behind_others() -> None:
    """Until these come back nobody of them has a use for the slots: each pump moved them ten times."""
    cluster = Cluster(64, 4)
    for library in range(4):
        cluster.submit(66, library)
    said: dict[WorkerId, list[Message]] = {}
    for _ in range(20):
        cluster.core.pump(cluster.now)
        said = cluster.core.take_outbox()
        for worker, messages in said.items():
            ready: list[Message] = [LibraryReady(one.instance, 1) for one in messages if isinstance(one, StartLibrary)]
            cluster.core.worker_said(worker, ready, cluster.now)
        if not said:
            break
    assert not said
    assert any(state.loaded for state in cluster.core.libraries.values())
    assert any(state.idle for state in cluster.core.libraries.values())


def test_libraries_that_need_one_slot_are_held_against_a_worker_once_for_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims are for calls that need several slots; who needs one is not asked about library by library."""
    cluster, counted = crowd(), Counted("claims", monkeypatch)
    cluster.now += 2 * HOLD_SECONDS
    cluster.tick()
    assert counted.looks == LOOKED_AT


def test_slots_of_a_library_that_falls_idle_go_at_once_to_who_waits_wherever_they_are() -> None:
    """They are not found by and by, in turns of the timer; and no other worker is looked at for them."""
    found: list[int] = []
    for workers in (FEW, MANY):
        cluster = Cluster(workers, libraries=2, cores=1.0)
        cluster.submit(3, library=1)
        cluster.turn()
        one, other, last = cluster.runs
        cluster.submit(40 * workers)
        cluster.turn()
        cluster.end(one)
        cluster.end(other)
        found.append(work(lambda cluster=cluster, last=last: cluster.end(last)))  # type: ignore[misc]
        cluster.turn()
        instances = [cluster.core.workers[worker].by_library[cluster.specs[0].id] for worker in (one, other, last)]
        assert [instance.target for instance in instances] == [1, 1, 1]
    assert found[1] <= ALIKE * found[0]
