"""A whole simulation: a program with calls, a manager, a factory with pools in several batch systems, workers, a network between them.

Theory of operation
-------------------
A `Program` has kinds of calls (`Kind`), each with a library and a share of all calls. It submits in batches, as a program does that maps a
function over parameters, and keeps so many waiting as long as it has any. `Program.ended` counts the ends of each call.

A `Cluster` joins the parts and runs them until every call has ended, and on until every pilot has. `check` states what must hold between
them, beside what the cores themselves say of their books.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

from simulated_batch import SimulatedBatch, SimulatedKeeper, Site
from simulated_clock import Clock, Meter
from simulated_manager import SimulatedManager
from simulated_network import Network
from simulated_worker import DIES_ONCE, RAISES, RETURNS, Fate, SimulatedWorker
from windlass.factory.ledger import Ledger
from windlass.factory.pool import PoolConfig
from windlass.messages import (
    RAISED,
    RETURNED,
    CallDone,
    CallId,
    CallOptions,
    CallSpec,
    FetchFile,
    FileName,
    FileOrigin,
    FileRef,
    FunctionDef,
    FunctionId,
    LibraryId,
    LibrarySpec,
    Message,
    PilotId,
    WorkerId,
    WorkerInfo,
)
from windlass.worker.lifetime import Lifetime

#: Calls that are kept waiting while there are any, unless one says otherwise, and that are submitted in one go.
WAITING: Final = 200_000
BATCH: Final = 2_000
RETRIES: Final = CallOptions(retries=2)
#: What a machine sends, or takes: 10 Gb/s.
BYTES_PER_S: Final = 1.25e9
#: Share of transfers that fail.
TRANSFERS_FAIL: Final = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Calls that are alike. ``share`` of all; ``seconds``: their mean, log-normal with ``spread`` (0: all the same)."""

    name: str
    share: float = 1.0
    seconds: float = 1.0
    spread: float = 0.3
    options: CallOptions = RETRIES
    #: Bytes of a file that all of them need.
    input_bytes: int = 0
    #: Seconds that the library takes to start.
    start: float = 2.0
    #: Shares of calls that raise, and of those whose slot dies in their first attempt.
    raises: float = 0.0
    dies: float = 0.0

    @property
    def spec(self) -> LibrarySpec:
        function = FunctionDef(FunctionId(self.name.encode().ljust(16, b"_")), self.name, b"x")
        return LibrarySpec(LibraryId(f"{self.name}@1"), self.name, (3, 11), functions=(function,))

    @property
    def inputs(self) -> tuple[FileRef, ...]:
        return (FileRef(FileName("b3-" + self.name.encode().hex().ljust(32, "0")), self.input_bytes, "common"),) if self.input_bytes else ()


class Program:
    """All calls, and what became of them."""

    def __init__(self, calls: int, kinds: Sequence[Kind], manager: SimulatedManager, random: Random, waiting: int) -> None:
        self.calls, self.kinds, self._most = calls, kinds, waiting
        self.submitted = self.done = 0
        #: How often each call has ended, by its number, and how: what was to be expected, and what came.
        self.ended = bytearray(calls + 1)
        self.expected: Counter[int] = Counter()
        self.outcomes: Counter[int] = Counter()
        self._random, self._manager = random, manager
        self._specs = [kind.spec for kind in kinds]
        self._inputs = [kind.inputs for kind in kinds]
        for kind, spec, inputs in zip(kinds, self._specs, self._inputs, strict=True):
            manager.core.install(spec, manager.clock.now)
            for ref in inputs:
                manager.core.declare_file(ref, FileOrigin(path=f"/data/{kind.name}", stamp=(1, ref.size)))

    @property
    def waiting(self) -> int:
        """Calls that wait at the manager."""
        return sum(state.waiting for state in self._manager.core.libraries.values())

    def top_up(self) -> None:
        """Submit more, when few wait."""
        waiting = self.waiting
        while self.submitted < self.calls and waiting < self._most:
            count = min(BATCH, self.calls - self.submitted)
            self._manager.submit(self._make(count))
            waiting += count

    def _make(self, count: int) -> list[CallSpec]:
        random = self._random
        which = random.choices(range(len(self.kinds)), [kind.share for kind in self.kinds])[0]
        kind, spec, inputs = self.kinds[which], self._specs[which], self._inputs[which]
        function, library, options = spec.functions[0].id, spec.id, kind.options
        made: list[CallSpec] = []
        for _ in range(count):
            self.submitted += 1
            seconds = kind.seconds * (random.lognormvariate(-(kind.spread**2) / 2, kind.spread) if kind.spread else 1.0)
            how, odds = RETURNS, random.random()
            if odds < kind.raises:
                how = RAISES
            elif odds < kind.raises + kind.dies:
                how = DIES_ONCE
            self.expected[RAISED if how == RAISES else RETURNED] += 1
            made.append(CallSpec(CallId(self.submitted), library, function, Fate(seconds, how).payload(), (), options, inputs))
        return made

    def take(self, done: list[CallDone]) -> None:
        """These have ended."""
        ended, outcomes = self.ended, self.outcomes
        for one in done:
            ended[one.end.call] += 1
            outcomes[one.end.outcome] += 1
        self.done += len(done)


class Cluster:
    """All parts of one simulation."""

    def __init__(
        self,
        seed: int,
        sites: Sequence[Site],
        kinds: Sequence[Kind],
        calls: int,
        *,
        waiting: int = WAITING,
        message_us: float = 0.0,
        turn_seconds: float = 0.0,
    ) -> None:
        self.random, self.clock = Random(seed), Clock()
        self.busy, self.usable = Meter(self.clock), Meter(self.clock)
        self.network = Network(self.clock, BYTES_PER_S)
        self.manager = SimulatedManager(self.clock, self._take, message_us=message_us)
        self.program = Program(calls, kinds, self.manager, Random(seed + 1), waiting)
        self.workers: dict[WorkerId, SimulatedWorker] = {}
        #: The most that there were at a time.
        self.most_workers = 0
        self._turn_seconds = turn_seconds
        #: Seconds since the start at which all calls had ended.
        self.makespan = 0.0
        self.violations: list[str] = []
        self._left: dict[WorkerId, Callable[[], None]] = {}
        self._start = {LibraryId(f"{kind.name}@1"): kind.start for kind in kinds}
        self.batches = [SimulatedBatch(site, self.clock, Random(seed + 2 + n), self._begin, self.manager) for n, site in enumerate(sites)]
        self.keepers = [SimulatedKeeper(f"factory.{one.site.name}", n, one, self.manager) for n, one in enumerate(self.batches)]
        self.manager.on_tick = self._look
        #: Called at each turn of the manager's timer.
        self.on_look: Callable[[], None] = lambda: None

    # ------------------------------------------------------------ the run

    def run(self, *, seconds: float, checks: int = 10, progress: Callable[[str], None] = lambda text: None) -> None:
        """Until all calls have ended, so many virtual seconds at most, then until the last pilot has."""
        clock, program = self.clock, self.program
        began = clock.now
        ledger = Ledger([keeper.core.pool for keeper in self.keepers], lambda index: self.keepers[index].replan())
        for keeper in self.keepers:
            keeper.open(ledger)
        self.manager.start()
        for step in range(1, checks + 1):
            goal = program.calls * step // checks
            if not clock.run(lambda goal=goal: program.done >= goal, began + seconds):  # type: ignore[misc]
                self.violations.append(f"{program.calls - program.done} calls have not ended after {seconds:g} s")
                break
            self.check()
            progress(f"{program.done:,} calls have ended after {clock.now - began:,.0f} s, {len(self.workers):,} pilots serve")
        self.makespan = clock.now - began
        for keeper in self.keepers:
            keeper.close(30.0)
        if not clock.run(lambda: all(keeper.closed for keeper in self.keepers) and not self.workers, clock.now + 3600.0):
            self.violations.append("the factory has not closed within an hour")
        clock.run(lambda: False, clock.now + 120.0)
        self.check()
        self._check_end()

    def _look(self) -> None:
        self.program.top_up()
        counts = self.program.waiting > 0
        self.busy.count(counts)
        self.usable.count(counts)
        self.most_workers = max(self.most_workers, len(self.workers))
        self.on_look()

    def _take(self, done: list[CallDone]) -> None:
        self.program.take(done)

    # ------------------------------------------------------------ pilots

    def _begin(self, pool: PoolConfig, pilot: PilotId, node: str, left: Callable[[], None]) -> SimulatedWorker:
        name = WorkerId(f"w-{pilot}")
        info = WorkerInfo(node, 1, pool.resources, (), pool.name, pilot, pool.walltime)
        stagger = self.random.random() * min(600.0, 0.05 * pool.walltime) if pool.walltime >= 600 else 0.0
        life = Lifetime(self.clock.now, walltime=pool.walltime, grace=pool.grace, stagger=stagger)
        worker = SimulatedWorker(name, info, self.clock, self, self.busy, self.usable, self._start_seconds, life, self._turn_seconds)
        self.workers[name] = worker
        self._left[name] = left
        self.manager.joins(worker)
        worker.begin()
        return worker

    def _start_seconds(self, spec: LibrarySpec) -> float:
        return self._start[spec.id] * self.random.uniform(0.8, 1.3)

    # ------------------------------------------------------------ what is around workers (`simulated_worker.Surroundings`)

    def tell(self, worker: SimulatedWorker, messages: list[Message]) -> None:
        self.manager.tell(worker, messages)

    def fetch(self, worker: SimulatedWorker, message: FetchFile) -> None:
        if self.random.random() < TRANSFERS_FAIL:
            self.clock.after(1.0, worker.fetched, message, "connection reset")
            return
        self.network.send(message.source.peer, worker.id, message.ref.size, partial(worker.fetched, message))

    def left(self, worker: SimulatedWorker) -> None:
        self.clock.after(0.5, self._left[worker.id])

    def forget(self, worker: SimulatedWorker) -> None:
        """It is no more."""
        if self.workers.pop(worker.id, None) is not None:
            del self._left[worker.id]
            self.network.leaves(worker.id)

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        """Between the parts, at any time."""
        self.manager.core.check()
        for keeper in self.keepers:
            keeper.core.check()
        for worker in self.workers.values():
            worker.backlog.check()
        core, program = self.manager.core, self.program
        self._expect(len(core.calls) == program.submitted - program.done, "the core has other calls than have not ended")
        busy = sum(one.weight for worker in self.workers.values() for slots in worker.instances.values() for one in slots.busy.values())
        self._expect(abs(busy - self.busy.value) < 0.5, "the meter of busy cores is wrong")
        for batch, keeper in zip(self.batches, self.keepers, strict=True):
            self._expect(batch.alive <= batch.pool.max_pilots, f"more than max_pilots in {batch.site.name}")
            times = keeper.commands
            for most, span in ((batch.site.limits.burst, 10.0), (batch.site.limits.sustained, 600.0)):
                over = any(later - sooner < span - 1e-6 for sooner, later in zip(times, times[most:], strict=False))
                self._expect(not over, f"more than {most} commands in {span:g} s to {batch.site.name}")

    def _check_end(self) -> None:
        program = self.program
        once = program.ended.count(1)
        self._expect(once == program.submitted, f"{program.submitted} calls submitted, {once} ended exactly once")
        for outcome in (RETURNED, RAISED):
            expected, came = program.expected[outcome], program.outcomes[outcome]
            self._expect(expected == came, f"{expected} calls were to end with outcome {outcome}, {came} did")
        self._expect(not self.workers, f"{len(self.workers)} workers are left")
        self._expect(not self.manager.core.workers, f"{len(self.manager.core.workers)} workers are left in the core")
        self._expect(self.busy.value == 0 and self.usable.value == 0, "cores are counted that are no more")
        for batch in self.batches:
            self._expect(not batch.alive, f"{batch.alive} pilots are left in {batch.site.name}")

    def _expect(self, holds: bool, text: str) -> None:
        if not holds and text not in self.violations:
            self.violations.append(text)

    # ------------------------------------------------------------ figures

    @property
    def utilisation(self) -> float:
        """Share of the cores of workers that accept calls which ran one, while calls waited."""
        return self.busy.area / self.usable.area if self.usable.area else 0.0
