"""Each call ends exactly once, whatever happens in whatever order: a hypothesis state machine over the real core.

Simulated workers obey the messages as a real worker does, with any delay; links are cut and taken up again, workers vanish, drain, return
calls, fail libraries. At the end everything is let run out, and each call must have one end.
"""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from windlass.manager.core import Core
from windlass.messages import (
    CANCELLED,
    DIED,
    RAISED,
    RETURNED,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    CallsReturned,
    CancelCalls,
    Drain,
    EndDetail,
    FunctionDef,
    FunctionId,
    HeldCall,
    InstanceId,
    LibraryFailed,
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
)

F = FunctionId(b"f" * 16)
OPTIONS = (
    CallOptions(),
    CallOptions(priority=1),
    CallOptions(retries=2, retry_on=("builtins.OSError",)),
    CallOptions(needs=Resources(2)),
    CallOptions(max_losses=1),
)


class SimulatedWorker:
    """Does what a worker does with each message; what it says waits in ``out`` until the machine delivers it."""

    def __init__(self, name: str, cores: int) -> None:
        self.name, self.cores = name, cores
        self.inbox: deque[Message] = deque()
        self.out: deque[Message] = deque()
        self.held: list[CallRun] = []
        self.instances: dict[InstanceId, int] = {}
        self.concurrency: dict[InstanceId, int] = {}
        self.draining = False
        self.connected = True

    def take(self, message: Message) -> None:
        match message:
            case StartLibrary():
                self.instances[message.instance] = message.slots
                self.concurrency[message.instance] = message.spec.concurrency
                self.out.append(LibraryReady(message.instance, 7))
            case SetSlots() | StopLibrary() if message.instance not in self.instances:
                pass  # it has failed, and the manager has not heard of that yet
            case SetSlots():
                if message.slots < self.instances[message.instance]:
                    busy = sum(run.weight for run in self.held if run.instance == message.instance)
                    assert busy <= message.slots, "slots are taken away that may be busy, however calls are spread over slots"
                self.instances[message.instance] = message.slots
            case StopLibrary():
                assert not [run for run in self.held if run.instance == message.instance], "stopped with calls"
                del self.instances[message.instance]
                self.out.append(LibraryStopped(message.instance))
            case RunCalls():
                known = [run for run in message.calls if run.instance in self.instances]
                self.give_back([run for run in message.calls if run.instance not in self.instances], "instance")
                if self.draining:
                    self.give_back(known, "draining")
                else:
                    self.held += known
            case RecallCalls():
                mine = [run for run in self.held if run.instance == message.instance]
                running = self.instances.get(message.instance, 0) * self.concurrency.get(message.instance, 1)
                back = mine[running:][-message.count :]
                self.held = [run for run in self.held if run not in back]
                # An answer also when nothing could be taken back: the manager waits for one.
                self.out.append(CallsReturned(tuple(HeldCall(run.call, run.attempt) for run in back), "recalled"))
            case CancelCalls():
                for held in message.calls:
                    found = [run for run in self.held if (run.call, run.attempt) == (held.call, held.attempt)]
                    if found:
                        self.end(found[0], CANCELLED)
                    else:
                        self.out.append(CallsReturned((held,), "unknown"))
            case Drain():
                self.drain()
            case _:
                pass

    def give_back(self, runs: list[CallRun], reason: str) -> None:
        if not runs:
            return
        self.out.append(CallsReturned(tuple(HeldCall(run.call, run.attempt) for run in runs), reason))

    def end(self, run: CallRun, outcome: int) -> None:
        self.held.remove(run)
        detail = EndDetail(types=("builtins.OSError",)) if outcome == RAISED else None
        self.out.append(CallsEnded([CallEnd(run.call, run.attempt, outcome, b"", started_at=1.0, ended_at=1.0 + 0.01, detail=detail)]))

    def kill_slot(self, instance: InstanceId) -> None:
        """For the first of its calls, which did not end when it was cancelled; the others were there."""
        mine = [run for run in self.held if run.instance == instance][: self.concurrency[instance]]
        for run in mine[:1]:
            self.end(run, CANCELLED)
        self.held = [run for run in self.held if run not in mine]
        self.give_back(mine[1:], "neighbour")

    def drain(self) -> None:
        if not self.draining:
            self.draining = True
            self.out.append(WorkerDraining("told to"))

    def fail_instance(self, instance: InstanceId) -> None:
        mine = [run for run in self.held if run.instance == instance]
        self.held = [run for run in self.held if run.instance != instance]
        self.give_back(mine, "instance")
        del self.instances[instance]
        self.out.append(LibraryFailed(instance, "crash", "killed by signal 9", at_start=False))


class ManagerMachine(RuleBasedStateMachine):
    """Events in any order."""

    workers = Bundle("workers")
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.core = Core()
        self.now = 1000.0
        self.alive: dict[str, SimulatedWorker] = {}
        self.submitted: set[int] = set()
        self.ended: dict[int, int] = {}
        self.names = 0
        self.libraries = [
            LibrarySpec(LibraryId(f"{name}@1"), name, (3, 11), functions=(FunctionDef(F, "f", b"x"),), slots=slots, concurrency=concurrency)
            for name, slots, concurrency in (("a", 0, 1), ("b", 1, 1), ("c", 0, 1), ("d", 0, 5))
        ]
        for spec in self.libraries:
            self.core.install(spec, self.now)

    def act(self) -> None:
        self.core.pump(self.now)
        for name, messages in self.core.take_outbox().items():
            if name in self.alive:
                self.alive[name].inbox.extend(messages)
        for done in self.core.take_done():
            assert done.end.call in self.submitted
            assert done.end.call not in self.ended, "a call ended twice"
            self.ended[done.end.call] = done.end.outcome

    @rule(target=workers, cores=st.integers(1, 4))
    def join(self, cores: int) -> str:
        self.names += 1
        name = f"w{self.names}"
        self.alive[name] = SimulatedWorker(name, cores)
        info = WorkerInfo("host", 1, Resources(cores, 0, 0), (), PoolName("p"), PilotId(name))
        self.core.worker_joined(WorkerId(name), info, self.now)
        self.act()
        return name

    @rule(target=calls, library=st.integers(0, 3), options=st.sampled_from(OPTIONS), count=st.integers(1, 20))
    def submit(self, library: int, options: CallOptions, count: int) -> int:
        if library == 1 and options.needs.cores:
            return 0  # it has one slot: such a call can never run
        first = len(self.submitted) + 1
        specs = [CallSpec(CallId(first + index), self.libraries[library].id, F, b"", (), options) for index in range(count)]
        self.submitted.update(spec.call for spec in specs)
        self.core.submit(specs, self.now)
        self.act()
        return first

    @rule(call=calls, count=st.integers(1, 5))
    def cancel(self, call: int, count: int) -> None:
        self.core.cancel([CallId(call + index) for index in range(count)], self.now)
        self.act()

    @rule(name=workers, count=st.integers(1, 10))
    def worker_reads(self, name: str, count: int) -> None:
        worker = self.alive.get(name)
        for _ in range(count):
            if worker is not None and worker.inbox and worker.connected:
                worker.take(worker.inbox.popleft())

    @rule(name=workers, count=st.integers(1, 10))
    def manager_reads(self, name: str, count: int) -> None:
        worker = self.alive.get(name)
        if worker is None or not worker.connected:
            return
        batch = [worker.out.popleft() for _ in range(min(count, len(worker.out)))]
        self.core.worker_said(WorkerId(name), batch, self.now)
        self.act()

    @rule(name=workers, index=st.integers(0, 5), outcome=st.sampled_from([RETURNED, RETURNED, RETURNED, RAISED, DIED]))
    def call_ends(self, name: str, index: int, outcome: int) -> None:
        worker = self.alive.get(name)
        if worker is not None and index < len(worker.held):
            worker.end(worker.held[index], outcome)

    @rule(name=workers)
    def cut(self, name: str) -> None:
        if name in self.alive:
            self.alive[name].connected = False
            self.core.worker_cut(WorkerId(name), self.now)
            self.act()

    @rule(name=workers)
    def back(self, name: str) -> None:
        worker = self.alive.get(name)
        if worker is not None and WorkerId(name) in self.core.workers and not worker.connected:
            worker.connected = True
            self.core.worker_back(WorkerId(name), self.now)
            self.act()

    @rule(name=consumes(workers))
    def vanish(self, name: str) -> None:
        self.alive.pop(name, None)
        self.core.worker_lost(WorkerId(name), "killed", self.now)
        self.act()

    @rule(name=workers)
    def drain(self, name: str) -> None:
        if name in self.alive:
            self.alive[name].drain()

    @rule(name=workers)
    def instance_dies(self, name: str) -> None:
        worker = self.alive.get(name)
        if worker is not None and worker.instances:
            worker.fail_instance(next(iter(worker.instances)))

    @rule(name=workers)
    def slot_dies(self, name: str) -> None:
        worker = self.alive.get(name)
        for instance, concurrency in list(worker.concurrency.items()) if worker is not None else ():
            if worker is not None and concurrency > 1 and instance in worker.instances:
                worker.kill_slot(instance)

    @rule(name=workers, seconds=st.sampled_from([0.0, 0.01, 0.1, 10.0]))
    def is_away(self, name: str, seconds: float) -> None:
        self.core.worker_is_away(WorkerId(name), seconds)
        self.act()

    @rule(seconds=st.sampled_from([0.05, 1.0, 30.0, 61.0]), late=st.sampled_from([0.0, 0.2, 5.0]))
    def time_passes(self, seconds: float, late: float) -> None:
        self.now += seconds
        self.core.tick(self.now, late)
        self.act()
        for name in [name for name in self.alive if WorkerId(name) not in self.core.workers]:
            del self.alive[name]  # its session was given up: a real worker would begin anew

    @precondition(lambda self: len(self.submitted) > 0)
    @rule()
    def nothing_is_forgotten(self) -> None:
        assert self.submitted == set(self.ended) | set(self.core.calls)

    @invariant()
    def books_are_right(self) -> None:
        self.core.check()

    def teardown(self) -> None:
        """Let everything run out on healthy workers: each call must end."""
        for name in list(self.alive):
            self.vanish(name)
        for _ in range(3):
            self.join(4)
        for _ in range(2000):
            if not self.core.calls:
                break
            self.now += 0.1
            self.core.tick(self.now)
            self.act()
            for worker in list(self.alive.values()):
                while worker.inbox:
                    worker.take(worker.inbox.popleft())
                for run in list(worker.held):
                    worker.end(run, RETURNED)
                batch, worker.out = list(worker.out), deque()
                self.core.worker_said(WorkerId(worker.name), batch, self.now)
                self.act()
        self.core.check()
        assert not self.core.calls, f"{len(self.core.calls)} calls never end"
        assert set(self.ended) == self.submitted


TestManagerMachine = ManagerMachine.TestCase
TestManagerMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    derandomize=True,
)
