"""A core with simulated workers: no process, no clock but the test's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from windlass.manager.callbacks import CallbackThread, set_callback_runner
from windlass.manager.core import Core
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
    ObjectRef,
    PilotId,
    PoolName,
    RecallCalls,
    Resources,
    RunCalls,
    SetSlots,
    StartLibrary,
    StopLibrary,
    WorkerId,
    WorkerInfo,
)

F = FunctionId(b"f" * 16)
PLAIN = CallOptions()
#: So often manager and workers answer one another at one instant.
ROUNDS_MOST = 100


class SimulatedWorker:
    """Runs calls in the order in which they came and got their data, as many at a time as its instances have slots."""

    def __init__(self, cluster: Cluster, name: str, cores: float) -> None:
        self.cluster, self.id, self.cores = cluster, WorkerId(name), cores
        self.slots: dict[InstanceId, int] = {}
        self.starting: dict[InstanceId, float] = {}
        self.waiting: dict[InstanceId, list[CallRun]] = {}
        self.running: dict[InstanceId, list[tuple[float, float, CallRun]]] = {}
        #: When the data of waiting calls is there.
        self.fetched: dict[CallId, float] = {}
        #: Ends of which the manager is told when their results are handed over.
        self.ended: list[tuple[float, CallEnd]] = []

    def take(self, message: Message, now: float) -> list[Message]:
        match message:
            case StartLibrary():
                self.slots[message.instance] = message.slots
                self.starting[message.instance] = now + self.cluster.hoist
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
                    self.fetched[run.call] = now + (self.cluster.fetch if run.spans else 0.0)
            case RecallCalls():
                self.cluster.recalls += 1
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
                end = CallEnd(one[2].call, one[2].attempt, RETURNED, b"", self.cluster.results, started_at=one[0], ended_at=now)
                self.ended.append((now + (self.cluster.hand_over if end.spans else 0.0), end))
            waiting = self.waiting[instance]
            for run in [one for one in waiting if self.fetched[one.call] <= now + 1e-9]:
                if sum(run.weight for *_, run in running) + run.weight > self.slots[instance]:
                    break
                waiting.remove(run)
                running.append((now, now + self.cluster.seconds[run.call], run))
        said += [CallsEnded([end]) for at, end in self.ended if at <= now + 1e-9]
        self.ended = [one for one in self.ended if one[0] > now + 1e-9]
        assert sum(run.weight for running in self.running.values() for *_, run in running) <= self.cores, "cores were promised twice"
        return said


class Cluster:
    """A core with simulated workers, and streams of calls that never run dry."""

    #: Seconds: how far time goes at once, between turns of the manager's timer, and until an instance serves.
    step, tick, hoist = 0.01, 0.05, 0.1
    #: Steps between two looks at the invariants, which cost more than a step does; what is broken stays so.
    steps_unchecked = 4

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
        #: Seconds by which turns of the timer are late.
        self.late = 0.0
        #: Objects that calls are given and return, and seconds for which they are fetched and handed over.
        self.data: tuple[ObjectRef, ...] = ()
        self.results: tuple[ObjectRef, ...] = ()
        self.fetch, self.hand_over = 0.0, 0.0
        #: How often calls were to come back.
        self.recalls = 0
        self._steps = 0

    def library(self, name: str, cores: float = 0.0, gpus: int = 0, slots: int = 0) -> LibraryId:
        share = Resources(cores, 0, gpus)
        spec = LibrarySpec(LibraryId(f"{name}@1"), name, (3, 11), functions=(FunctionDef(F, "f", b"x"),), per_slot=share, slots=slots)
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
        self.core.submit([CallSpec(call, library, F, b"", self.data, options) for call in calls], self.now)

    def submit_once(self, library: LibraryId, seconds: float, count: int, options: CallOptions = PLAIN) -> None:
        """Calls that no others follow."""
        self.streams.setdefault("once", (library, options, itertools.repeat(seconds)))
        self.ended.setdefault("once", [])
        calls = [CallId(next(self.numbers)) for _ in range(count)]
        for call in calls:
            self.seconds[call], self.stream_of[call] = seconds, "once"
        self.core.submit([CallSpec(call, library, F, b"", self.data, options) for call in calls], self.now)

    def target(self, library: LibraryId) -> int:
        """Slots that it is to have."""
        return sum(one.target for one in self.core.libraries[library].instances.values())

    def act(self) -> None:
        outbox: dict[WorkerId, list[Message]] = {}
        for _ in range(ROUNDS_MOST):
            self.core.pump(self.now)
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
        for _ in range(round(seconds / self.step)):
            self.now += self.step
            self._steps += 1
            for name, worker in self.workers.items():
                self.core.worker_said(name, worker.go_on(self.now), self.now)
            if self._steps % round(self.tick / self.step) == 0:
                self.core.tick(self.now, self.late)
            self.act()
            if self._steps % self.steps_unchecked == 0:
                self.core.check()
        self.core.check()

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


@pytest.fixture
def callbacks() -> Iterator[CallbackThread]:
    """A callback thread of the test's own, gone after it."""
    thread = CallbackThread("test-callbacks")
    before = set_callback_runner(thread)
    yield thread
    thread.close(10)
    set_callback_runner(before)
