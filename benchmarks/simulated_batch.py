"""Batch systems of a simulation, and the factory that speaks to them: the real factory's core, planner and ledger.

Theory of operation
-------------------
A `SimulatedBatch` is one batch system: pilots wait in its queue, get one of its nodes, run until they leave, come to their walltime, are
preempted (SIGTERM, grace, SIGKILL; some systems queue them again) or lose their node. Some nodes are black holes that end every pilot at
its start; some commands get no answer, and half of those have happened all the same; more than so many jobs are refused. All of it is
chance from one seed (`Site` has the odds).

A `SimulatedKeeper` does for one pool what `windlass.factory.keeper` does: demand in, instructions carried out, ends and reports to the
manager, until the core has nothing to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from time import thread_time_ns
from typing import Final, Protocol

import msgspec

from simulated_clock import Clock
from simulated_manager import LATENCY, SimulatedManager
from simulated_worker import SimulatedWorker
from windlass.errors import BatchError, OverLimit, Unreachable
from windlass.factory.backend import Cause, CommandLimits, JobId, Listed, PilotRequest, PilotState, PoolDefaults, Tickets, pilot_word
from windlass.factory.core import Cancel, FactoryCore, Instruction, Query, Release, Submit
from windlass.factory.ledger import Ledger
from windlass.factory.pool import PoolConfig, make_pool
from windlass.messages import Demand, PilotId, PoolReport, ReleasePilots

#: A batch system tells of ended jobs for so long, in seconds.
REMEMBERS: Final = 120.0
#: As Slurm's and HTCondor's backends have it.
LIMITS: Final = CommandLimits()
#: Seconds that an answer takes.
ANSWERS: Final = 0.1
#: Seconds after which the manager takes a silent connection for cut.
SILENCE: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What one batch system is like. Times in seconds; shares from 0 to 1; means of 0: never."""

    name: str
    nodes: int
    walltime: float = 0.0
    #: Median of the wait in the queue (log-normal, half of its logarithm's deviation), and of the start of a pilot.
    wait: float = 0.0
    start: float = 1.0
    #: Means of the time to a preemption, to the death of the node, and to a cut of the connection.
    preempted: float = 0.0
    dies: float = 0.0
    cut: float = 0.0
    #: A preempted pilot is queued again.
    requeues: bool = False
    #: Share of nodes that end every pilot at its start; of commands that get no answer; jobs in the queue that are one too many.
    black_holes: float = 0.0
    unreachable: float = 0.0
    most_queued: int = 1 << 30
    grace: float = 10.0
    limits: CommandLimits = LIMITS
    max_batch: int = 500
    query_interval: float = 30.0
    #: Options of the pool.
    options: dict[str, object] = field(default_factory=dict[str, object])

    def pool(self) -> PoolConfig:
        defaults = PoolDefaults(cores=8.0, walltime=self.walltime)
        options = {"max_pilots": self.nodes, "grace": self.grace, **self.options}
        return make_pool("simulated", defaults, frozenset(), options, name=self.name)


class Starts(Protocol):
    """Begins a pilot of a pool on a node; ``left()`` is called when it ends by itself."""

    def __call__(self, pool: PoolConfig, pilot: PilotId, node: str, left: Callable[[], None], /) -> SimulatedWorker: ...


@dataclass(slots=True, eq=False)
class Job:
    """One pilot in the batch system."""

    id: JobId
    request: PilotRequest
    listed: Listed = Listed.QUEUED
    restart: int = 0
    node: int = -1
    began: float = 0.0
    ended: float = 0.0
    cause: Cause = Cause.UNKNOWN
    exit_status: int | None = None
    pilot: SimulatedWorker | None = None


@dataclass(slots=True)
class Counts:
    """What has become of pilots."""

    started: int = 0
    preempted: int = 0
    nodes_lost: int = 0
    cuts: int = 0
    died_at_start: int = 0
    #: Began to run, and ended without the end of a call.
    wasted: int = 0
    #: Seconds that all have run, and that the wasted ones have.
    seconds: float = 0.0
    wasted_seconds: float = 0.0
    unanswered: int = 0
    refused: int = 0


class SimulatedBatch:
    """One batch system."""

    def __init__(self, site: Site, clock: Clock, random: Random, start: Starts, manager: SimulatedManager) -> None:
        self.site, self.clock, self.counts = site, clock, Counts()
        self.jobs: dict[JobId, Job] = {}
        self.pool = site.pool()
        self._random, self._start_pilot, self._manager = random, start, manager
        self._free = deque(range(site.nodes))
        self._black = set(random.sample(range(site.nodes), int(site.black_holes * site.nodes)))
        #: Those whose wait is over, for want of a node.
        self._ready: deque[tuple[Job, int]] = deque()
        self._queued = self._made = 0

    # ------------------------------------------------------------ commands (`windlass.factory.backend.Backend`)

    def submit(self, request: PilotRequest, count: int) -> list[JobId]:
        lost = self._no_answer()
        if lost == 1:
            raise Unreachable("no answer")
        if self._queued + count > self.site.most_queued:
            self.counts.refused += 1
            raise OverLimit(f"more than {self.site.most_queued} jobs")
        made: list[JobId] = []
        for _ in range(count):
            self._made += 1
            job = Job(JobId(f"{self.site.name}.{self._made}"), request)
            self.jobs[job.id] = job
            self._queue(job)
            made.append(job.id)
        if lost:
            raise Unreachable("no answer, though it was done")
        return made

    def query(self) -> list[PilotState]:
        if self._no_answer():
            raise Unreachable("no answer")
        horizon = self.clock.now - REMEMBERS
        for job in [job for job in self.jobs.values() if job.listed is Listed.ENDED and job.ended < horizon]:
            del self.jobs[job.id]
        return [
            PilotState(
                job=job.id,
                listed=job.listed,
                ticket=job.request.ticket,
                restart=job.restart,
                node=f"{self.site.name}-{job.node}" if job.node >= 0 else "",
                cause=job.cause,
                exit_status=job.exit_status,
            )
            for job in self.jobs.values()
        ]

    def cancel(self, jobs: Sequence[JobId]) -> None:
        lost = self._no_answer()
        if lost == 1:
            raise Unreachable("no answer")
        for one in jobs:
            job = self.jobs.get(one)
            if job is not None and job.listed is Listed.QUEUED:
                self._queued -= 1
                self._over(job, Cause.CANCELLED)
            elif job is not None and job.listed is Listed.RUNNING:
                self._end_soon(job, Cause.CANCELLED)
        if lost:
            raise Unreachable("no answer, though it was done")

    def cancel_all(self) -> None:
        self.cancel(list(self.jobs))

    @property
    def alive(self) -> int:
        """Jobs that have not ended."""
        return sum(job.listed is not Listed.ENDED for job in self.jobs.values())

    def _no_answer(self) -> int:
        """0: there is one; 1: it has not happened either; 2: it has."""
        if not self.site.unreachable or self._random.random() >= self.site.unreachable:
            return 0
        self.counts.unanswered += 1
        return self._random.randint(1, 2)

    # ------------------------------------------------------------ what becomes of jobs

    def _queue(self, job: Job) -> None:
        self._queued += 1
        job.listed, job.node, job.pilot = Listed.QUEUED, -1, None
        wait = self.site.wait * self._random.lognormvariate(0.0, 0.5)
        self.clock.after(wait, self._waited, job, job.restart)

    def _waited(self, job: Job, restart: int) -> None:
        if job.listed is Listed.QUEUED and job.restart == restart:
            self._ready.append((job, restart))
            self._give_nodes()

    def _give_nodes(self) -> None:
        while self._ready and self._free:
            job, restart = self._ready.popleft()
            if job.listed is not Listed.QUEUED or job.restart != restart:
                continue
            node = next((one for one in self._free if f"{self.site.name}-{one}" not in job.request.avoid), None)
            if node is None:
                self._ready.appendleft((job, restart))
                return
            self._free.remove(node)
            self._queued -= 1
            job.listed, job.node, job.began = Listed.RUNNING, node, self.clock.now
            self.counts.started += 1
            self.clock.after(self.site.start * self._random.uniform(0.7, 1.5), self._started, job, restart)
            if job.request.walltime:
                self.clock.after(job.request.walltime, self._kill, job, restart, Cause.WALLTIME)

    def _runs(self, job: Job, restart: int) -> bool:
        return job.listed is Listed.RUNNING and job.restart == restart

    def _started(self, job: Job, restart: int) -> None:
        if not self._runs(job, restart):
            return
        if job.node in self._black:
            self.counts.died_at_start += 1
            self._over(job, Cause.EXIT, 1)
            return
        left = self._left(job, restart)
        pilot = job.pilot = self._start_pilot(self.pool, pilot_word(job.id, restart), f"{self.site.name}-{job.node}", left)
        site, random, after = self.site, self._random, self.clock.after
        if site.preempted:
            after(random.expovariate(1 / site.preempted), self._preempt, job, restart)
        if site.dies:
            after(random.expovariate(1 / site.dies), self._node_dies, job, restart)
        if site.cut:
            after(random.expovariate(1 / site.cut), self._cut, job, restart, pilot)

    def _left(self, job: Job, restart: int) -> Callable[[], None]:
        def left() -> None:
            if self._runs(job, restart):
                self._over(job, Cause.EXIT, 0)

        return left

    def _preempt(self, job: Job, restart: int) -> None:
        if self._runs(job, restart) and job.cause is Cause.UNKNOWN:  # nobody preempts what has been cancelled
            self.counts.preempted += 1
            self._end_soon(job, Cause.PREEMPTED)

    def _end_soon(self, job: Job, cause: Cause) -> None:
        """SIGTERM, and SIGKILL after the grace."""
        restart = job.restart
        self.clock.after(job.request.grace + 1.0, self._kill, job, restart, cause)
        job.cause = cause
        if job.pilot is not None:
            job.pilot.signal("SIGTERM")

    def _kill(self, job: Job, restart: int, cause: Cause) -> None:
        if self._runs(job, restart):
            self._vanish(job)
            self._over(job, cause)

    def _node_dies(self, job: Job, restart: int) -> None:
        if self._runs(job, restart):
            self.counts.nodes_lost += 1
            self._vanish(job, silent=True)
            self._over(job, Cause.NODE)

    def _cut(self, job: Job, restart: int, pilot: SimulatedWorker) -> None:
        if self._runs(job, restart):
            self.counts.cuts += 1
            self._manager.cut(pilot)
            self.clock.after(self._random.uniform(1.0, 20.0), self._manager.back, pilot)
            self.clock.after(self._random.expovariate(1 / self.site.cut), self._cut, job, restart, pilot)

    def _vanish(self, job: Job, *, silent: bool = False) -> None:
        pilot = job.pilot
        if pilot is not None:
            pilot.vanish()
            self.clock.after(SILENCE if silent else LATENCY, self._manager.cut, pilot)

    def _over(self, job: Job, cause: Cause, exit_status: int | None = None) -> None:
        now = self.clock.now
        if job.listed is Listed.RUNNING:
            self._free.append(job.node)
            ran = now - job.began
            self.counts.seconds += ran
            if job.pilot is None or not job.pilot.served:
                self.counts.wasted += 1
                self.counts.wasted_seconds += ran
        job.pilot = None
        cause = job.cause if job.cause is not Cause.UNKNOWN else cause
        if self.site.requeues and cause is Cause.PREEMPTED:
            job.restart += 1
            job.cause = Cause.UNKNOWN
            self._queue(job)
        else:
            job.listed, job.ended, job.cause, job.exit_status = Listed.ENDED, now, cause, exit_status
        self._give_nodes()


class SimulatedKeeper:
    """One pool of the factory. ``spent``: nanoseconds of processor time of its core."""

    def __init__(self, name: str, index: int, batch: SimulatedBatch, manager: SimulatedManager) -> None:
        self.name, self.index, self.batch = name, index, batch
        site, pool = batch.site, batch.pool
        request = PilotRequest(
            ticket="", pool=pool.name, command=("worker",), resources=pool.resources, walltime=pool.walltime, grace=pool.grace
        )
        self.core = FactoryCore(
            pool=pool,
            request=request,
            limits=site.limits,
            query_interval=site.query_interval,
            max_batch=site.max_batch,
            tickets=Tickets(name),
        )
        self.ledger: Ledger | None = None
        self.spent = self.instructions = 0
        #: When commands were sent.
        self.commands: list[float] = []
        self.closed = False
        self._manager, self._clock = manager, batch.clock
        self._due = float("inf")

    def open(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._run()
        self._manager.open_port(self.name, self._hear)

    def close(self, seconds: float) -> None:
        """End all pilots, with so many seconds for what runs."""
        self.core.close(self._clock.now, seconds)
        self._run()

    def replan(self) -> None:
        """A pool named before this one promises something else."""
        self._clock.after(0.0, self._run)

    def _hear(self, demand: Demand) -> None:
        began = thread_time_ns()
        self.core.hear(demand, self._clock.now)
        self.spent += thread_time_ns() - began
        self._run()

    def _wake(self, due: float) -> None:
        if due == self._due:
            self._run()

    def _run(self) -> None:
        """All that there is to do now, and when to look again."""
        if self.closed:
            return
        assert self.ledger is not None
        core, now = self.core, self._clock.now
        began = thread_time_ns()
        core.before = self.ledger.before(self.index, core.demand)
        while (instruction := core.step(now)) is not None:
            self.instructions += 1
            self.spent += thread_time_ns() - began
            self._do(instruction)
            began = thread_time_ns()
            self._bury()
        self._bury()
        until = float("inf")
        if core.demand is not None:
            promise, until = core.promise(now)
            self.ledger.post(self.index, promise)
        due = max(min(core.again_at(now), until), now + 1e-6)
        reports: list[PoolReport] = []
        while (report := core.report()) is not None:
            reports.append(msgspec.structs.replace(report, at=now))
        self.spent += thread_time_ns() - began
        for report in reports:
            self._manager.factory_said(self.name, report)
        if core.finished:
            self.closed = True
            self._manager.close_port(self.name)
        elif due != self._due and due != float("inf"):
            self._clock.at(due, self._wake, due)
        self._due = due

    def _do(self, instruction: Instruction) -> None:
        """Carry out one instruction and tell the core its result."""
        core, batch, now = self.core, self.batch, self._clock.now
        if isinstance(instruction, Release):
            self._manager.factory_said(self.name, ReleasePilots(instruction.pilots, core.pool.name, instruction.reason))
            return
        self.commands.append(now)
        try:
            if isinstance(instruction, Query):
                states = batch.query()
                began = thread_time_ns()
                core.listed(states, now, ANSWERS)
                self.spent += thread_time_ns() - began
            elif isinstance(instruction, Submit):
                core.submitted(instruction.request.ticket, batch.submit(instruction.request, instruction.count), now)
            elif isinstance(instruction, Cancel):
                batch.cancel(instruction.jobs)
                core.cancelled()
            else:
                batch.cancel_all()
                core.ended_all()
        except OverLimit as error:
            assert isinstance(instruction, Submit)
            core.over_limit(instruction.request.ticket, str(error), instruction.count, now)
        except BatchError as error:
            core.unreachable(str(error), now)

    def _bury(self) -> None:
        for ending in self.core.take_endings():
            self.core.ended(ending, "", self._clock.now)
