"""Turns of calls that need several slots at once, over simulated workers: no process, no clock but the test's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

import pytest

from windlass.manager.books import LOOKED_AT
from windlass.manager.core import Core
from windlass.manager.placement import fits
from windlass.messages import (
    RETURNED,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    CallsReturned,
    FunctionDef,
    FunctionId,
    HeldCall,
    InstanceId,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    LibraryStopped,
    Message,
    PilotId,
    PoolName,
    RecallCalls,
    Resources,
    RunCalls,
    SetSlots,
    StartLibrary,
    StopLibrary,
    WorkerDraining,
    WorkerId,
    WorkerInfo,
    WorkerReport,
)

F = FunctionId(b"f" * 16)
STEP = 0.01
TICK = 0.05
HOIST = 0.1
PLAIN = CallOptions()
#: So often manager and workers answer one another at one instant.
ROUNDS_MOST = 100


class SimulatedWorker:
    """Runs calls in the order in which they came, as many at a time as its instances have slots."""

    def __init__(self, cluster: Cluster, name: str, cores: float) -> None:
        self.cluster, self.id, self.cores = cluster, WorkerId(name), cores
        self.slots: dict[InstanceId, int] = {}
        self.starting: dict[InstanceId, float] = {}
        self.waiting: dict[InstanceId, list[CallRun]] = {}
        self.running: dict[InstanceId, list[tuple[float, float, CallRun]]] = {}

    def take(self, message: Message, now: float) -> list[Message]:
        match message:
            case StartLibrary():
                self.slots[message.instance] = message.slots
                self.starting[message.instance] = now + HOIST
                self.waiting[message.instance], self.running[message.instance] = [], []
            case SetSlots():
                assert message.slots >= sum(run.weight for *_, run in self.running[message.instance]), "a busy slot was taken away"
                self.slots[message.instance] = message.slots
            case StopLibrary():
                assert not self.waiting[message.instance]
                assert not self.running[message.instance]
                del self.slots[message.instance]
                return [LibraryStopped(message.instance)]
            case RunCalls():
                for run in message.calls:
                    self.waiting[run.instance].append(run)
            case RecallCalls():
                waiting = self.waiting[message.instance]
                back = waiting[max(0, len(waiting) - message.count) :]
                del waiting[len(waiting) - len(back) :]
                return [CallsReturned(tuple(HeldCall(run.call, run.attempt) for run in back), "recalled")]
            case _:
                pass
        return []

    def go_on(self, now: float) -> list[Message]:
        said: list[Message] = [LibraryReady(instance, 7) for instance, at in self.starting.items() if at <= now]
        self.starting = {instance: at for instance, at in self.starting.items() if at > now}
        for instance, running in self.running.items():
            for one in [one for one in running if one[1] <= now]:
                running.remove(one)
                said.append(CallsEnded([CallEnd(one[2].call, one[2].attempt, RETURNED, b"", started_at=one[0], ended_at=now)]))
            waiting = self.waiting[instance]
            while waiting and sum(run.weight for *_, run in running) + waiting[0].weight <= self.slots[instance]:
                run = waiting.pop(0)
                running.append((now, now + self.cluster.seconds[run.call], run))
        assert sum(run.weight for running in self.running.values() for *_, run in running) <= self.cores, "cores were promised twice"
        return said


class Cluster:
    """A core with simulated workers, and streams of calls that never run dry."""

    def __init__(self) -> None:
        self.core, self.now = Core(), 1000.0
        self.workers: dict[WorkerId, SimulatedWorker] = {}
        self.seconds: dict[CallId, float] = {}
        self.stream_of: dict[CallId, str] = {}
        #: Stream: library, options, seconds of its calls.
        self.streams: dict[str, tuple[LibraryId, CallOptions, Iterator[float]]] = {}
        #: When calls of each stream ended.
        self.ended: dict[str, list[float]] = {}
        self.numbers = itertools.count(1)
        #: Calls that have ended are not followed by others.
        self.once = False
        self._steps = 0

    def library(self, name: str, cores: float = 0.0, gpus: int = 0) -> LibraryId:
        functions = (FunctionDef(F, "f", b"x"),)
        spec = LibrarySpec(LibraryId(f"{name}@1"), name, (3, 11), functions=functions, per_slot=Resources(cores, 0, gpus))
        self.core.install(spec, self.now)
        return spec.id

    def worker(self, name: str = "w1", cores: float = 2, gpus: int = 0, seconds_left: float = 0.0) -> None:
        self.workers[WorkerId(name)] = SimulatedWorker(self, name, cores)
        gpu_ids = tuple(str(number) for number in range(gpus))
        info = WorkerInfo("host", 1, Resources(cores, 0, gpus), gpu_ids, PoolName("p"), PilotId(name), seconds_left=seconds_left)
        self.core.worker_joined(WorkerId(name), info, self.now)

    def stream(self, name: str, library: LibraryId, seconds: tuple[float, ...], options: CallOptions = PLAIN, depth: int = 20) -> None:
        """``depth`` calls now, and one more for each that ends."""
        self.streams[name] = library, options, itertools.cycle(seconds)
        self.ended[name] = []
        self.submit(name, depth)

    def submit(self, name: str, count: int) -> None:
        library, options, seconds = self.streams[name]
        calls = [CallId(next(self.numbers)) for _ in range(count)]
        for call in calls:
            self.seconds[call], self.stream_of[call] = next(seconds), name
        self.core.submit([CallSpec(call, library, F, b"", (), options) for call in calls], self.now)

    def target(self, library: LibraryId) -> int:
        """Slots that it is to have."""
        return sum(one.target for one in self.core.libraries[library].instances.values())

    def act(self) -> None:
        outbox: dict[WorkerId, list[Message]] = {}
        for _ in range(ROUNDS_MOST):
            self.core.pump(self.now)
            self.core.check()
            outbox = self.core.take_outbox()
            if not outbox:
                break
            for name, messages in outbox.items():
                for message in messages:
                    self.core.worker_said(name, self.workers[name].take(message, self.now), self.now)
        else:
            raise AssertionError(f"slots or calls go to and fro without end; last {outbox}")
        for done in self.core.take_done():
            stream = self.stream_of.pop(done.end.call)
            self.ended[stream].append(self.now)
            if not self.once:
                self.submit(stream, 1)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.now += STEP
            self._steps += 1
            for name, worker in self.workers.items():
                self.core.worker_said(name, worker.go_on(self.now), self.now)
            if self._steps % round(TICK / STEP) == 0:
                self.core.tick(self.now)
            self.act()

    def gaps(self) -> dict[str, float]:
        """The longest time without an end of a call, of each stream."""
        begun = 1000.0
        return {
            name: round(max(after - before for before, after in itertools.pairwise([begun, *times, self.now])), 2)
            for name, times in self.ended.items()
        }


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


TWO_CORES = CallOptions(needs=Resources(2))


@pytest.mark.parametrize("where", ["in a library of its own", "among narrow calls of its library", "in a library with wide slots"])
@pytest.mark.parametrize("lengths", [(0.01, 0.02, 0.05, 0.1, 0.3, 0.7), (0.3,) * 6, (0.01,) * 6])
def test_wide_calls_and_six_narrow_libraries_all_get_their_turns(cluster: Cluster, where: str, lengths: tuple[float, ...]) -> None:
    """Two cores, six libraries with one-core calls without end, and calls that need both cores: none waits longer than each of the others
    has had its turn of a second or so."""
    libraries = [cluster.library(f"lib{number}") for number in range(6)]
    for number, (library, seconds) in enumerate(zip(libraries, lengths, strict=True)):
        cluster.stream(f"narrow {number}", library, (seconds,))
    if where == "in a library with wide slots":
        cluster.stream("wide", cluster.library("wide", cores=2.0), (0.05,), depth=5)
    else:
        library = cluster.library("wide") if where == "in a library of its own" else libraries[1]
        cluster.stream("wide", library, (0.05,), TWO_CORES, depth=5)
    cluster.worker()
    cluster.run(40)
    late = {name: gap for name, gap in cluster.gaps().items() if gap > 10}
    assert not late, f"of {cluster.gaps()}"


def test_a_wide_call_gets_its_turn_among_narrow_ones_of_one_library(cluster: Cluster) -> None:
    """One library, one worker: narrow calls, submitted first and without end, leave no two slots idle by chance."""
    library = cluster.library("lib")
    cluster.stream("narrow", library, (0.1, 0.13, 0.17))
    cluster.stream("wide", library, (0.2,), TWO_CORES)
    cluster.worker()
    cluster.run(20)
    assert max(cluster.gaps().values()) < 3, cluster.gaps()


def test_two_kinds_of_wide_calls_take_turns_with_narrow_ones(cluster: Cluster) -> None:
    """What waits longest comes first: wide calls of two libraries do not hand the worker to each other for ever."""
    cluster.stream("narrow a", cluster.library("a"), (0.1,))
    cluster.stream("narrow b", cluster.library("b"), (0.03,))
    cluster.stream("narrow c", cluster.library("c"), (0.4,))
    cluster.stream("wide d", cluster.library("d"), (0.1,), CallOptions(needs=Resources(3)))
    cluster.stream("wide e", cluster.library("e"), (0.2,), CallOptions(needs=Resources(4)))
    cluster.worker(cores=4)
    cluster.run(40)
    late = {name: gap for name, gap in cluster.gaps().items() if gap > 10}
    assert not late, f"of {cluster.gaps()}"


def test_a_wide_call_does_not_overtake_calls_of_higher_priority_in_its_library(cluster: Cluster) -> None:
    library = cluster.library("lib")
    cluster.stream("urgent", library, (0.1, 0.13), CallOptions(priority=1))
    cluster.stream("wide", library, (0.1,), TWO_CORES)
    cluster.worker()
    cluster.run(5)
    assert not cluster.ended["wide"]
    assert len(cluster.ended["urgent"]) > 60


def test_slots_kept_for_a_wide_call_are_let_go_when_it_is_cancelled(cluster: Cluster) -> None:
    """A slot is kept idle only as long as a call waits for it."""
    cluster.stream("long", cluster.library("long"), (3.0,), depth=1)
    cluster.stream("narrow", cluster.library("narrow"), (0.05,))
    cluster.worker()
    cluster.run(2)
    cluster.stream("wide", cluster.library("wide"), (1.0,), TWO_CORES, depth=1)
    while cluster.core.workers[WorkerId("w1")].claim is None:
        cluster.run(STEP)
        assert cluster.now < 1060
    [wide] = [call for call, stream in cluster.stream_of.items() if stream == "wide"]
    cluster.streams["wide"] = cluster.streams["narrow"]
    cluster.core.cancel([wide], cluster.now)
    cluster.run(2)
    assert cluster.core.workers[WorkerId("w1")].claim is None
    before = len(cluster.ended["narrow"])
    cluster.run(3)
    assert len(cluster.ended["narrow"]) > before + 20


def test_a_worker_that_is_lost_takes_its_claim_with_it(cluster: Cluster) -> None:
    """What is kept on it is kept for nobody, and nobody looks for slots there any more."""
    cluster.stream("narrow", cluster.library("narrow"), (0.3,))
    cluster.worker("w1")
    cluster.run(1.0)
    cluster.stream("wide", cluster.library("wide"), (1.0,), TWO_CORES, depth=3)
    while cluster.core.workers[WorkerId("w1")].claim is None:
        cluster.run(STEP)
    del cluster.workers[WorkerId("w1")]
    cluster.core.worker_lost(WorkerId("w1"), "killed", cluster.now)
    cluster.run(1.0)
    cluster.core.check()
    cluster.worker("w2")
    cluster.run(5.0)
    assert all(ended for ended in cluster.ended.values())


def nothing_follows(name: str, count: int) -> None:
    """For streams that end."""


def submit_once(cluster: Cluster, library: LibraryId, seconds: float, count: int, options: CallOptions = PLAIN) -> None:
    """Calls that no others follow."""
    cluster.streams.setdefault("once", (library, options, itertools.repeat(seconds)))
    cluster.ended.setdefault("once", [])
    calls = [CallId(next(cluster.numbers)) for _ in range(count)]
    for call in calls:
        cluster.seconds[call], cluster.stream_of[call] = seconds, "once"
    cluster.core.submit([CallSpec(call, library, F, b"", (), options) for call in calls], cluster.now)


def test_calls_that_come_after_none_waited_find_workers_that_came_meanwhile(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that stood behind another one has got its slot by then, and nobody had reason to look any further."""
    monkeypatch.setattr(cluster, "submit", nothing_follows)
    library = cluster.library("l")
    cluster.worker("w1", 1)
    submit_once(cluster, library, 3600.0, 2)
    cluster.run(0.2)
    for name in ("w2", "w3", "w4"):
        cluster.worker(name, 1)
    cluster.run(0.1)
    submit_once(cluster, library, 3600.0, 50)
    cluster.run(1.0)
    assert [one.outstanding for one in cluster.core.libraries[library].instances.values()] == [1, 1, 1, 1]


def test_nothing_is_recalled_from_slots_that_are_to_go_but_run(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four calls run on four slots of which one is wanted by another library: there is nothing to give back, so nobody asks on and on."""
    monkeypatch.setattr(cluster, "submit", nothing_follows)
    asked: list[Message] = []
    take = SimulatedWorker.take

    def noted(self: SimulatedWorker, message: Message, now: float) -> list[Message]:
        if isinstance(message, RecallCalls):
            asked.append(message)
        return take(self, message, now)

    monkeypatch.setattr(SimulatedWorker, "take", noted)
    first, second = cluster.library("first"), cluster.library("second")
    cluster.worker("w1", 4)
    submit_once(cluster, first, 600.0, 4)
    cluster.run(1.5)
    submit_once(cluster, second, 600.0, 1)
    cluster.run(3.0)
    cluster.worker("w2", 2)
    submit_once(cluster, first, 0.5, 1)
    cluster.run(20.0)
    assert len(asked) <= 3


@pytest.mark.parametrize("seed", range(8))
def test_calls_of_all_widths_in_four_libraries_end_while_workers_come_and_go(cluster: Cluster, seed: int) -> None:
    """What one library gives, another takes at once, and so on: it must settle, at each instant, and every call must end."""
    random = Random(seed)
    cluster.once = True
    libraries = [cluster.library(f"lib{number}", random.choice([0.0, 0.0, 2.0])) for number in range(4)]
    for number in range(200):
        event = random.random()
        if event < 0.12 or not cluster.workers:
            cluster.worker(f"w{number}", random.choice([1, 2, 4]))
        elif event < 0.2 and len(cluster.workers) > 1:
            lost = random.choice(list(cluster.workers))
            del cluster.workers[lost]
            cluster.core.worker_lost(lost, "killed", cluster.now)
        elif event < 0.5:
            options = random.choice([PLAIN, PLAIN, TWO_CORES, CallOptions(priority=1)])
            seconds = random.choice([0.01, 0.05, 0.5, 3.0])
            cluster.stream(f"calls {number}", random.choice(libraries), (seconds,), options, depth=random.randint(1, 12))
        cluster.run(random.choice([0.01, 0.05, 0.2]))
    for number in range(4):
        cluster.worker(f"late{number}", 4)
    began = cluster.now
    while cluster.stream_of and cluster.now < began + 100:
        cluster.run(1.0)
    assert not cluster.stream_of, [(one.spec.name, one.waiting, one.running) for one in cluster.core.libraries.values()]


def test_a_wide_kind_gets_an_equal_part_of_the_cores(cluster: Cluster) -> None:
    """One claim after another, while its library has less than the others have; and no slots that are too few for one of its calls."""
    for name in ("a", "b"):
        cluster.stream(f"narrow {name}", cluster.library(name), (1.0, 1.3), depth=100)
    wide = cluster.library("wide")
    cluster.stream("wide", wide, (1.5,), CallOptions(needs=Resources(4)), depth=30)
    for number in range(6):
        cluster.worker(f"w{number}", 8)
    cluster.run(30)
    slots = [one.target for one in cluster.core.libraries[wide].instances.values() if one.target]
    assert all(number >= 4 for number in slots), slots
    assert 12 <= sum(slots) <= 24, slots


def test_slots_are_moved_for_as_many_calls_as_they_are_worth(cluster: Cluster) -> None:
    """A hundred calls of a twentieth of a second are five seconds of work: they are not worth a slot on each of twenty busy workers."""
    cluster.stream("long", cluster.library("long"), (0.3, 0.5, 0.7), depth=200)
    for number in range(20):
        cluster.worker(f"w{number}", 4)
    quick = cluster.library("quick")
    cluster.stream("quick", quick, (0.05,), depth=5)
    cluster.run(5)
    cluster.once = True
    cluster.submit("quick", 100)
    most = 0
    while "quick" in cluster.stream_of.values():
        cluster.run(0.1)
        most = max(most, sum(one.target for one in cluster.core.libraries[quick].instances.values()))
    assert 1 <= most <= 8


def test_slots_of_two_gpus_get_their_turns_among_slots_of_one(cluster: Cluster) -> None:
    """A slot that needs more of anything than those of others have needs several of theirs at once: also where that is GPUs alone."""
    cluster.stream("one", cluster.library("one", gpus=1), (0.1, 0.13))
    cluster.worker(gpus=2)
    cluster.run(2)
    cluster.stream("two", cluster.library("two", gpus=2), (0.2,), depth=2)
    cluster.run(20)
    assert all(gap < 10 for gap in cluster.gaps().values()), cluster.gaps()


def test_a_wide_call_gets_slots_beside_a_call_that_runs_for_hours(cluster: Cluster) -> None:
    """It began before, and the other three slots there are enough."""
    cluster.worker("w1", 4)
    cluster.stream("narrow", cluster.library("narrow"), (0.3, 0.4))
    cluster.run(2)
    cluster.stream("long", cluster.library("long"), (7200.0,), depth=1)
    cluster.run(3)
    cluster.stream("wide", cluster.library("wide"), (0.2,), TWO_CORES, depth=2)
    cluster.run(20)
    assert len(cluster.ended["wide"]) > 10
    assert len(cluster.ended["narrow"]) > 100


def test_there_are_no_more_claims_than_calls_that_wait(cluster: Cluster) -> None:
    """One wide call needs one worker, even if an equal part of the cores were many."""
    for name in ("a", "b"):
        cluster.stream(name, cluster.library(name), (1.5, 1.7, 2.1), depth=100)
    for number in range(10):
        cluster.worker(f"w{number}", 4)
    cluster.run(5)
    cluster.once = True
    cluster.stream("wide", cluster.library("wide"), (0.2,), CallOptions(needs=Resources(4)), depth=1)
    for _ in range(100):
        cluster.run(0.05)
        assert sum(worker.claim is not None for worker in cluster.core.workers.values()) <= 1
        if cluster.ended["wide"]:
            break
    assert cluster.ended["wide"]


def test_idle_slots_of_others_are_taken_while_its_own_run_what_takes_long(cluster: Cluster) -> None:
    """By the mean its calls are short, so its slots seem to be enough; but the only one runs for hours."""
    cluster.once = True
    a, b = cluster.library("a"), cluster.library("b")
    cluster.worker("w1", 2)
    for name, library in (("b", b), ("a", a)):
        cluster.stream(name, library, (0.1,), depth=4)
        cluster.run(3)
    cluster.stream("long", a, (7200.0,), depth=1)
    cluster.run(2)
    cluster.submit("b", 3)
    cluster.run(2)
    assert [one.target for one in cluster.core.workers[WorkerId("w1")].instances.values()] == [1, 1]
    cluster.submit("a", 1)
    cluster.run(3)
    assert len(cluster.ended["a"]) == 5


def test_slots_that_run_what_takes_long_are_not_counted_on_for_short_calls(cluster: Cluster) -> None:
    """Another library has three slots and calls without end: it gives one, though short ones are worth no more than the one there is."""
    a, b = cluster.library("a"), cluster.library("b")
    cluster.worker("w1", 4)
    cluster.once = True
    cluster.stream("a", a, (0.1,), depth=4)
    cluster.run(1)
    cluster.stream("long", a, (7200.0,), depth=1)
    cluster.run(0.5)
    cluster.once = False
    cluster.stream("b", b, (0.5, 0.6, 0.7))
    cluster.run(5)
    cluster.once = True
    cluster.submit("a", 5)
    cluster.run(10)
    assert len(cluster.ended["a"]) == 9


def test_slots_where_too_little_time_is_left_are_no_slots_for_long_calls(cluster: Cluster) -> None:
    """Its library has a slot, but no call of this kind may go there: so it may have the last slot of another one."""
    a = cluster.library("a")
    cluster.worker("short", 1, seconds_left=500.0)
    cluster.stream("a", a, (0.1,), depth=5)
    cluster.run(2)
    cluster.worker("long", 1, seconds_left=50_000.0)
    cluster.stream("b", cluster.library("b"), (0.3,))
    cluster.run(1)
    cluster.stream("needs time", a, (0.2,), CallOptions(expected_time=1000.0, priority=1), depth=2)
    cluster.run(10)
    assert cluster.ended["needs time"]


def test_slots_of_a_worker_that_drains_are_no_slots_for_calls_that_wait(cluster: Cluster) -> None:
    """It runs a call for hours, and takes no other: the library is as one that has nothing."""
    a = cluster.library("a")
    cluster.once = True
    cluster.worker("w1", 1)
    cluster.stream("long", a, (7200.0,), depth=1)
    cluster.run(1)
    cluster.once = False
    cluster.worker("w2", 1)
    cluster.stream("b", cluster.library("b"), (0.3,))
    cluster.run(2)
    cluster.core.worker_said(WorkerId("w1"), [WorkerDraining("its pilot ends", 0.0)], cluster.now)
    cluster.stream("a", a, (0.1,), depth=3)
    cluster.run(10)
    assert cluster.ended["a"]
    assert cluster.ended["b"][-1] > cluster.now - 5


def test_idle_slots_go_to_others_where_too_little_time_is_left_for_those_that_wait(cluster: Cluster) -> None:
    """Calls wait, but not for these slots."""
    a, b = cluster.library("a"), cluster.library("b")
    cluster.worker("w1", 2, seconds_left=500.0)
    cluster.once = True
    for name, library, depth in (("b", b, 2), ("a", a, 1)):
        cluster.stream(name, library, (0.1,), depth=depth)
        cluster.run(2)
    assert (cluster.target(a), cluster.target(b)) == (1, 1)
    cluster.stream("needs time", b, (0.3,), CallOptions(expected_time=1000.0), depth=5)
    cluster.submit("a", 200)
    cluster.run(5)
    assert cluster.target(a) == 2


def test_slots_that_are_enough_only_with_what_is_free_do_not_go_to_and_fro(cluster: Cluster) -> None:
    """One library's slots need cores and GPUs, the others' more of one of them; what it takes from one of these, the other has at once."""
    cluster.once = True
    cluster.worker("w1", 8, gpus=4)
    cluster.core.worker_said(WorkerId("w1"), [WorkerReport(0, 0, 0.0, 0, 0, busy=1.0)], cluster.now)
    cluster.stream("gpus", cluster.library("gpus", gpus=2), (0.5,), depth=40)
    cluster.act()
    cluster.stream("cores", cluster.library("cores"), (0.5,), TWO_CORES, depth=10)
    cluster.act()
    cluster.stream("both", cluster.library("both", cores=2, gpus=2), (0.5,), depth=8)
    cluster.act()
    cluster.core.worker_said(WorkerId("w1"), [WorkerReport(0, 0, 0.0, 0, 0)], cluster.now)
    cluster.run(30)
    assert not cluster.stream_of, cluster.gaps()


def test_wide_calls_take_all_workers_at_once_while_their_library_starts(cluster: Cluster) -> None:
    """A call that occupies four slots is not content with one of those that are coming."""
    cluster.once = True
    for number in range(12):
        cluster.worker(f"w{number}", 4)
    cluster.stream("wide", cluster.library("wide"), (5.0,), CallOptions(needs=Resources(4)), depth=12)
    cluster.run(HOIST + 2 * TICK)
    assert all(len(worker.calls) == 1 for worker in cluster.core.workers.values())


def test_a_call_that_names_memory_has_its_cores_where_nothing_is_known_of_memory(cluster: Cluster) -> None:
    """It occupies as many slots as its cores are."""
    cluster.stream("calls", cluster.library("lib"), (0.5,), CallOptions(needs=Resources(2, 1 << 30)), depth=8)
    cluster.worker("w1", 4)
    cluster.run(1.0)
    assert len(cluster.core.workers[WorkerId("w1")].calls) == 2


def test_slots_of_a_claim_stay_together_for_a_turn_from_when_its_call_is_sent(cluster: Cluster) -> None:
    """The last of them was waited for longer than a turn; a library that has nothing would take one at once, and the call come back."""
    library = cluster.library("lib", gpus=2)
    cluster.stream("narrow", library, (1.0,), depth=4)
    cluster.stream("wide", library, (0.1,), TWO_CORES, depth=1)
    cluster.worker("w1", 8, gpus=4)
    cluster.run(1.5)
    cluster.stream("other", cluster.library("other", gpus=1), (1.0,), CallOptions(needs=Resources(0, 0, 2)), depth=1)
    cluster.run(30)
    assert all(gap < 10 for gap in cluster.gaps().values()), cluster.gaps()


def test_a_library_with_slots_enough_does_not_look_at_all_workers_at_each_event(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its few calls are worth no slots of others; that is not found out anew from one worker after the other which it has wholly."""
    for name, number, depth in (("other", 10, 10), ("lib", 100, 110)):
        for one in range(number):
            cluster.worker(f"{name}{one}", 1)
        cluster.stream(name, cluster.library(name), (0.3, 0.31, 0.33), depth=depth)
        cluster.run(0.5)
    looked: list[int] = []

    def counted(spec: LibrarySpec, needs: Resources, of: Resources) -> int:
        looked.append(1)
        return fits(spec, needs, of)

    monkeypatch.setattr("windlass.manager.dispatch.fits", counted)
    for number in range(10):
        looked.clear()
        cluster.worker(f"late{number}", 0.5)
        cluster.core.pump(cluster.now)
        assert len(looked) <= 2 * LOOKED_AT, number


@pytest.mark.parametrize("depth", [20, 3])
@pytest.mark.parametrize("needs", [Resources(), Resources(0, 1 << 20)], ids=["plain", "named"])
def test_kinds_of_calls_of_one_library_take_turns(cluster: Cluster, depth: int, needs: Resources) -> None:
    """First come, first served, also where calls of one kind come without end, and never all have a slot."""
    library = cluster.library("lib")
    cluster.stream("first", library, (0.1,), depth=depth)
    cluster.worker("w1", 2)
    cluster.run(1.0)
    cluster.stream("second", library, (0.1,), CallOptions(needs=needs, timeout=60.0), depth=1)
    cluster.run(5.0)
    assert all(gap < 3 for gap in cluster.gaps().values()), cluster.gaps()


def test_large_slots_get_an_equal_part_of_one_worker(cluster: Cluster) -> None:
    """Each of them is two of the others' slots: a claim is for one more than there are."""
    cluster.stream("small", cluster.library("small"), (0.5, 0.6), depth=60)
    cluster.worker("w1", 16)
    cluster.run(2)
    large = cluster.library("large", cores=2)
    cluster.stream("large", large, (0.5, 0.7))
    cluster.run(20)
    assert 3 <= cluster.target(large) <= 5
