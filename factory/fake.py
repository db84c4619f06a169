"""A batch system made for tests, ours and the users': seeded, scriptable, with real processes as pilots or none at all.

Theory of operation
-------------------
`FakeCluster` is the batch system, without I/O: jobs queue for a delay, start where a node has free cores, run until they end, are
cancelled, preempted, or reach their walltime, and are forgotten a while after their end.  ``advance(now)`` moves it on and returns
what is to be done to processes (`Start`, `Terminate`, `Kill`); ``process_ended`` tells it what became of them.  Ends go as in Slurm:
SIGTERM, ``kill_wait`` seconds, SIGKILL, and *ending* meanwhile.

Faults are asked for by name:

* ``fail("submit", Fault.REJECTED)`` and ``OVER_LIMIT``, ``UNREACHABLE`` (nothing was done), ``AMBIGUOUS`` (it *was* done, though the
  answer is a time-out), also for ``"query"`` and ``"cancel"``; ``standing`` has those that last; ``max_jobs`` refuses what is too many as
  ``OVER_LIMIT``.
* ``preempt(job)`` (queued again under the same id, ``restart`` counted; or ended), ``time_out(job)``, ``kill(job)``, ``hold(job)``,
  ``lose_node(node)``, ``black_holes`` (nodes where jobs end at once).
* ``lie(job, listed, times)`` in answers to queries; ``hide(job, times)``; ``forget(job)``, and ``forget_after=0`` forgets each job as
  it ends.

`FakeBackend` is the thin shell: with ``processes=True`` real workers run and a thread moves the time on; with ``processes=False``
nothing runs, the clock is ``advance(seconds)``, a started job stays until ``finish(job)``, and the same state machine is at work.
`windlass.testing` is built on it."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from windlass.errors import OverLimit, Rejected, Unreachable, UsageError
from windlass.factory.backend import (
    OWN_MACHINE,
    Cause,
    CommandLimits,
    JobId,
    Listed,
    NoNodeLeft,
    NotSent,
    PilotRequest,
    PilotState,
    PoolDefaults,
    Tag,
    pilot_word,
)
from windlass.factory.launch import needs_script, pilot_script, with_pilot, write_script
from windlass.factory.logs import PilotLogs
from windlass.factory.processes import Processes, tail_of


class Fault(StrEnum):
    """How a command fails."""

    REJECTED = "rejected"
    OVER_LIMIT = "over limit"
    UNREACHABLE = "unreachable"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True)
class Start:
    job: JobId
    restart: int
    node: str


@dataclass(frozen=True, slots=True)
class Terminate:
    job: JobId
    restart: int


@dataclass(frozen=True, slots=True)
class Kill:
    job: JobId
    restart: int


Todo = Start | Terminate | Kill


@dataclass(frozen=True, slots=True)
class Happened:
    """What became of a job, or of a command (then without a job)."""

    at: float
    #: ``started``, a `Cause` by which it ended or had to, ``failed`` for an end at start or by an exit status; or a `Fault`.
    what: str
    job: str = ""
    node: str = ""


@dataclass(slots=True)
class FakeJob:
    """A job of the cluster. Times are the caller's ``now``."""

    job: JobId
    ticket: str
    cores: float
    walltime: float
    avoid: frozenset[str]
    submitted_at: float
    #: It may start from here on, when a node is free.
    eligible_at: float
    state: Listed = Listed.QUEUED
    restart: int = 0
    node: str = ""
    started_at: float = 0.0
    kill_at: float | None = None
    killed: bool = False
    #: What `ENDING` is about, and whether the job goes back to the queue after it.
    cause: Cause = Cause.UNKNOWN
    requeue: bool = False
    reason: str = ""
    exit_status: int | None = None
    ended_at: float = 0.0
    lies: list[Listed] = field(default_factory=list[Listed])
    hidden: int = 0


class FakeCluster:
    """The batch system. Equal seeds and equal calls give equal histories."""

    def __init__(
        self,
        seed: int = 0,
        *,
        nodes: int = 4,
        cores_per_node: float = 8,
        queue_delay: float | tuple[float, float] = 0.0,
        kill_wait: float = 30.0,
        max_jobs: int = 0,
        forget_after: float = 300.0,
    ) -> None:
        self.random = random.Random(seed)
        self.free = {f"n{number + 1}": float(cores_per_node) for number in range(nodes)}
        self.cores_per_node = float(cores_per_node)
        self.queue_delay = queue_delay if isinstance(queue_delay, tuple) else (queue_delay, queue_delay)
        self.kill_wait, self.max_jobs, self.forget_after = kill_wait, max_jobs, forget_after
        self.black_holes: set[str] = set()
        self.down: set[str] = set()
        self.jobs: dict[JobId, FakeJob] = {}
        #: Commands received: (kind, when).
        self.commands: list[tuple[str, float]] = []
        #: Starts and ends, and commands that failed.
        self.happened: list[Happened] = []
        #: By command: how each of its kind fails, and the text.
        self.standing: dict[str, tuple[Fault, str]] = {}
        #: Most jobs that were alive at a time.
        self.most_alive = 0
        self._faults: dict[str, list[tuple[Fault, str]]] = {}
        self._number = 0

    # ---------------------------------------------------------------- what a test asks for

    def fail(self, command: str, fault: Fault, times: int = 1, text: str = "") -> None:
        """The next ``times`` commands of this kind (submit, query, cancel) fail so."""
        self._faults.setdefault(command, []).extend([(fault, text)] * times)

    def hold(self, job: JobId, reason: str = "held by a test") -> list[Todo]:
        """A queued job will not start by itself; one that runs is stopped, and neither."""
        found = self.jobs[job]
        assert found.state in (Listed.QUEUED, Listed.RUNNING), f"{job} is {found.state}"
        todo: list[Todo] = []
        if found.state is Listed.RUNNING:
            self.free[found.node] += found.cores
            todo.append(Kill(job, found.restart))
        found.state, found.reason = Listed.HELD, reason
        return todo

    def preempt(self, job: JobId, now: float, *, requeue: bool = True, notice: float | None = None) -> list[Todo]:
        """Another job takes its place: it is ended, and queued again under the same id unless ``requeue=False``.

        ``notice``: seconds from SIGTERM to SIGKILL, where it is not ``kill_wait``; 0: there is no SIGTERM.
        """
        return self._begin_end(self.jobs[job], Cause.PREEMPTED, "preempted", now, requeue=requeue, notice=notice)

    def time_out(self, job: JobId, now: float, *, notice: float | None = None) -> list[Todo]:
        """Its walltime is over, whatever it asked for; ``notice`` as in `preempt`."""
        return self._begin_end(self.jobs[job], Cause.WALLTIME, "TimeLimit", now, notice=notice)

    def kill(self, job: JobId) -> list[Todo]:
        """Somebody kills the pilot of a running job, which ends by that."""
        found = self.jobs[job]
        return [Kill(job, found.restart)] if found.state in (Listed.RUNNING, Listed.ENDING) else []

    def lose_node(self, node: str, now: float | None = None) -> None:
        """A node is gone with all that runs there: its jobs are queued again, their processes live on unseen."""
        self.down.add(node)
        for job in self.jobs.values():
            if job.node == node and job.state in (Listed.RUNNING, Listed.ENDING):
                job.cause, job.requeue = Cause.NODE, True
                self._ended(job, job.started_at if now is None else now, None)

    def lie(self, job: JobId, listed: Listed, times: int = 1) -> None:
        """The next answers list the job so, whatever its state."""
        self.jobs[job].lies.extend([listed] * times)

    def hide(self, job: JobId, times: int = 1) -> None:
        """The next answers do not list the job."""
        self.jobs[job].hidden += times

    def forget(self, job: JobId) -> None:
        """An ended job is not known any more."""
        assert self.jobs[job].state is Listed.ENDED
        del self.jobs[job]

    # ---------------------------------------------------------------- commands

    def _fault(self, command: str, now: float) -> Fault | None:
        self.commands.append((command, now))
        waiting = self._faults.get(command)
        if waiting:
            fault, text = waiting.pop(0)
        elif command in self.standing:
            fault, text = self.standing[command]
        else:
            return None
        self.happened.append(Happened(now, fault))
        if fault is Fault.REJECTED:
            raise Rejected(text or "Batch job submission failed: Invalid account specified")
        if fault is Fault.OVER_LIMIT:
            raise OverLimit(text or "QOSMaxSubmitJobPerUserLimit")
        if fault is Fault.UNREACHABLE:
            raise NotSent(text or "Unable to contact the controller (connect failure)")
        return fault

    def submit(
        self, ticket: str, count: int, now: float, *, cores: float = 1, walltime: float = 0.0, avoid: Sequence[str] = ()
    ) -> list[JobId]:
        """Queue so many jobs; their ids. Raises as asked for."""
        fault = self._fault("submit", now)
        if cores > self.cores_per_node:
            raise Rejected(f"Requested node configuration is not available: {cores:g} cores of {self.cores_per_node:g}")
        if self.free.keys() <= set(avoid):
            raise NoNodeLeft("Requested node configuration is not available: no node is left")
        if self.max_jobs and self.alive + count > self.max_jobs:
            raise OverLimit(f"{self.alive} jobs and {count} more are over MaxJobCount={self.max_jobs}")
        self._number += 1
        made: list[JobId] = []
        for index in range(count):
            job = JobId(f"{self._number}_{index}" if count > 1 else str(self._number))
            self.jobs[job] = FakeJob(job, ticket, cores, walltime, frozenset(avoid), now, now + self.random.uniform(*self.queue_delay))
            made.append(job)
        self.most_alive = max(self.most_alive, self.alive)
        if fault is Fault.AMBIGUOUS:
            raise Unreachable("Socket timed out on send/recv operation")
        return made

    def query(self, now: float) -> list[PilotState]:
        """All jobs that are known."""
        if self._fault("query", now):
            raise Unreachable("Socket timed out on send/recv operation")
        for old in [job for job in self.jobs.values() if job.state is Listed.ENDED and now - job.ended_at >= self.forget_after]:
            del self.jobs[old.job]
        states: list[PilotState] = []
        for job in self.jobs.values():
            if job.hidden:
                job.hidden -= 1
                continue
            states.append(
                PilotState(
                    job=job.job,
                    listed=job.lies.pop(0) if job.lies else job.state,
                    ticket=job.ticket,
                    restart=job.restart,
                    node=job.node,
                    reason=job.reason,
                    cause=job.cause,
                    exit_status=job.exit_status,
                )
            )
        return states

    def cancel(self, jobs: Sequence[JobId] | None, now: float) -> list[Todo]:
        """End these (None: all)."""
        fault = self._fault("cancel", now)
        todo: list[Todo] = []
        for job in list(self.jobs) if jobs is None else jobs:
            found = self.jobs.get(job)
            if found is not None:
                todo += self._begin_end(found, Cause.CANCELLED, "cancelled", now)
        if fault is Fault.AMBIGUOUS:
            raise Unreachable("Socket timed out on send/recv operation")
        return todo

    @property
    def alive(self) -> int:
        """Jobs that have not ended."""
        return sum(job.state is not Listed.ENDED for job in self.jobs.values())

    # ---------------------------------------------------------------- time and processes

    def advance(self, now: float) -> list[Todo]:
        """Let happen what is due."""
        todo: list[Todo] = []
        for job in list(self.jobs.values()):
            if job.state is Listed.RUNNING and job.walltime and now >= job.started_at + job.walltime:
                todo += self._begin_end(job, Cause.WALLTIME, "TimeLimit", now)
            elif job.state is Listed.ENDING and job.kill_at is not None and now >= job.kill_at and not job.killed:
                job.killed = True
                todo.append(Kill(job.job, job.restart))
            elif job.state is Listed.QUEUED and now >= job.eligible_at:
                todo += self._try_start(job, now)
        return todo

    def _try_start(self, job: FakeJob, now: float) -> list[Todo]:
        # A black hole has ended what it was given and so is always free: it comes first.
        nodes = sorted(self.free, key=lambda node: node not in self.black_holes)
        for node in nodes:
            if node in self.down or node in job.avoid or self.free[node] < job.cores:
                continue
            job.state, job.node, job.started_at, job.reason = Listed.RUNNING, node, now, ""
            self.free[node] -= job.cores
            self.happened.append(Happened(now, "started", pilot_word(job.job, job.restart), node))
            if node in self.black_holes:
                job.cause, job.reason = Cause.EXIT, "NonZeroExitCode"
                self._ended(job, now, 1)
                return []
            return [Start(job.job, job.restart, node)]
        job.reason = "Resources"
        return []

    def _begin_end(
        self, job: FakeJob, cause: Cause, reason: str, now: float, *, requeue: bool = False, notice: float | None = None
    ) -> list[Todo]:
        if job.state in (Listed.QUEUED, Listed.HELD):
            if not requeue:
                job.cause, job.reason, job.requeue = cause, reason, False
                self._ended(job, now, None)
            return []
        if job.state is Listed.ENDING and cause is Cause.CANCELLED:
            job.cause, job.reason, job.requeue = cause, reason, False
        if job.state is not Listed.RUNNING:
            return []
        job.state, job.cause, job.reason, job.requeue = Listed.ENDING, cause, reason, requeue
        job.kill_at, job.killed = now + (self.kill_wait if notice is None else notice), notice == 0
        self.happened.append(Happened(now, cause, pilot_word(job.job, job.restart), job.node))
        return [Kill(job.job, job.restart)] if job.killed else [Terminate(job.job, job.restart)]

    def process_ended(self, job: JobId, restart: int, status: int, now: float) -> None:
        """The process of a job has ended: exit status, or a signal as a negative number."""
        found = self.jobs.get(job)
        if found is None or found.restart != restart or found.state not in (Listed.RUNNING, Listed.ENDING):
            return
        if found.state is Listed.RUNNING:
            found.cause = Cause.EXIT if status >= 0 else Cause.SIGNAL
            found.reason = "" if status == 0 else f"exit status {status}" if status > 0 else f"signal {-status}"
        self._ended(found, now, status if status >= 0 else None)

    def _ended(self, job: FakeJob, now: float, exit_status: int | None) -> None:
        if job.node and job.state in (Listed.RUNNING, Listed.ENDING):
            self.free[job.node] += job.cores
            if job.state is Listed.RUNNING:  # of one that was told to end that is said already
                what = "failed" if exit_status else job.cause
                self.happened.append(Happened(now, what, pilot_word(job.job, job.restart), job.node))
        job.kill_at, job.killed = None, False
        if job.requeue:
            job.state, job.restart, job.node, job.requeue = Listed.QUEUED, job.restart + 1, "", False
            job.eligible_at, job.cause, job.reason = now + self.random.uniform(*self.queue_delay), Cause.UNKNOWN, "requeued"
            return
        job.state, job.exit_status, job.ended_at = Listed.ENDED, exit_status, now

    def next_at(self, now: float) -> float:
        """When `advance` has something to do, later than ``now``; inf: not foreseen. Jobs that wait for a free node do not count."""
        times = [float("inf")]
        for job in self.jobs.values():
            if job.state is Listed.QUEUED:
                if job.eligible_at > now:
                    times.append(job.eligible_at)
            elif job.state is Listed.RUNNING and job.walltime:
                times.append(job.started_at + job.walltime)
            elif job.state is Listed.ENDING and job.kill_at is not None and not job.killed:
                times.append(job.kill_at)
        return min(times)

    def check(self) -> None:
        """Invariants; raises AssertionError."""
        for node, free in self.free.items():
            used = sum(job.cores for job in self.jobs.values() if job.node == node and job.state in (Listed.RUNNING, Listed.ENDING))
            assert abs(free + used - self.cores_per_node) < 1e-6, f"{node}: {free} free, {used} used"
            assert free >= 0


class FakeBackend:
    """The shell around a `FakeCluster`."""

    name: ClassVar[str] = "fake"
    defaults: ClassVar[PoolDefaults] = PoolDefaults(
        remote=False, max_pilots=2, cores=1.0, walltime=3600.0, idle_timeout=30.0, start_cost=1.0, hold=1.0, hello_timeout=60.0
    )
    limits: ClassVar[CommandLimits] = OWN_MACHINE
    max_batch: ClassVar[int] = 500

    def __init__(
        self,
        *,
        cluster: FakeCluster | None = None,
        seed: int = 0,
        cluster_nodes: int = 4,
        cores_per_node: float = 8,
        queue_delay: float | tuple[float, float] = 0.0,
        kill_wait: float = 5.0,
        max_jobs: int = 0,
        forget_after: float = 300.0,
        query_interval: float = 0.25,
        processes: bool = True,
    ) -> None:
        self.query_interval = query_interval
        self.cluster = cluster or FakeCluster(
            seed,
            nodes=cluster_nodes,
            cores_per_node=cores_per_node,
            queue_delay=queue_delay,
            kill_wait=kill_wait,
            max_jobs=max_jobs,
            forget_after=forget_after,
        )
        #: Of all pilots that were ever started.
        self.pids: list[int] = []
        #: With ``processes=False``: what the time is.
        self.now = 0.0
        self._real = processes
        self._lock = threading.RLock()
        self._moved = threading.Condition(self._lock)
        self._processes: Processes | None = None
        self._thread: threading.Thread | None = None
        self._requests: dict[str, PilotRequest] = {}
        self._folder = Path()
        self._logs: PilotLogs | None = None
        self._wake: Callable[[], None] = lambda: None
        self._closed = False

    def open(self, tag: Tag, folder: Path, wake: Callable[[], None]) -> None:
        self._logs = PilotLogs(folder)
        self._folder, self._wake = self._logs.run, wake
        if self._real:
            self._processes = Processes(self._some_ended)
            self._thread = threading.Thread(target=self._move, name="windlass-fake-cluster", daemon=True)
            self._thread.start()

    def _clock(self) -> float:
        return time.monotonic() if self._real else self.now

    # ---------------------------------------------------------------- the protocol

    def submit(self, request: PilotRequest, count: int) -> Sequence[JobId]:
        with self._moved:
            self._requests[request.ticket] = request
            cores = request.resources.cores * request.nodes
            try:
                jobs = self.cluster.submit(
                    request.ticket, count, self._clock(), cores=cores, walltime=request.walltime, avoid=request.avoid
                )
                if self._logs is not None:
                    self._logs.submitted(jobs)
                return jobs
            finally:
                self._moved.notify()

    def query(self) -> Sequence[PilotState]:
        with self._lock:
            states = self.cluster.query(self._clock())
        return states if self._logs is None else self._logs.looked_after(states)

    def cancel(self, jobs: Sequence[JobId]) -> None:
        with self._moved:
            self._do(self.cluster.cancel(jobs, self._clock()))
            self._moved.notify()

    def cancel_all(self) -> None:
        with self._moved:
            self._do(self.cluster.cancel(None, self._clock()))
            self._moved.notify()

    def log(self, job: JobId) -> str:
        return str(self._log(job))

    def tail(self, job: JobId) -> str:
        with self._lock:
            found = self.cluster.jobs.get(job)
            if found is not None and found.node in self.cluster.black_holes:
                return f"{found.node}: this node is a black hole"
        return tail_of(self._log(job))

    def describe(self, request: PilotRequest, count: int) -> str:
        return f"# {count} jobs of a fake cluster, each of which runs:\n{pilot_script(request, pilot='JOB')}"

    def close(self) -> None:
        with self._moved:
            if self._closed:
                return
            self._closed = True
            self._moved.notify()
        if self._thread is not None:
            self._thread.join()
        if self._processes is not None:
            self._processes.close()
        if self._logs is not None:
            self._logs.close()

    # ---------------------------------------------------------------- a clock by hand

    def advance(self, seconds: float) -> None:
        """Let time pass (``processes=False`` only)."""
        if self._real:
            raise UsageError("this fake cluster runs real processes in real time; make it with processes=False to move its clock by hand")
        with self._lock:
            end = self.now + seconds
            while True:
                while todo := self.cluster.advance(self.now):
                    self._do(todo)
                if self.now >= end:
                    return
                self.now = min(end, self.cluster.next_at(self.now))

    def finish(self, job: JobId, status: int = 0) -> None:
        """The pilot of a running job ends by itself (``processes=False`` only)."""
        with self._lock:
            self.cluster.process_ended(job, self.cluster.jobs[job].restart, status, self._clock())

    # ---------------------------------------------------------------- processes

    def act(self, change: Callable[[FakeCluster, float], Sequence[Todo]]) -> None:
        """Do something to the cluster, at this time, and to processes what follows from it."""
        with self._moved:
            self._do(change(self.cluster, self._clock()))
            self._moved.notify()

    def preempt(self, job: JobId, *, requeue: bool = True) -> None:
        """Another job takes this one's place."""
        self.act(lambda cluster, now: cluster.preempt(job, now, requeue=requeue))

    def _do(self, todo: Sequence[Todo]) -> None:
        for one in todo:
            if self._processes is None:
                if isinstance(one, Terminate | Kill):  # pilots that are not there obey at once
                    self.cluster.process_ended(one.job, one.restart, 0 if isinstance(one, Terminate) else -9, self._clock())
            elif isinstance(one, Start):
                self._start(self._processes, one)
            elif isinstance(one, Terminate):
                self._processes.end([pilot_word(one.job, one.restart)], grace=self.cluster.kill_wait + 60)
            else:
                self._processes.kill([pilot_word(one.job, one.restart)])

    def _start(self, processes: Processes, start: Start) -> None:
        request = self._requests[self.cluster.jobs[start.job].ticket]
        word = pilot_word(start.job, start.restart)
        command = with_pilot(request.command, word)
        if needs_script(request):
            script = self._folder / f"{word}.sh"
            write_script(script, pilot_script(request, pilot=word))
            command = (request.shell, str(script))
        env = {**os.environ, **dict(request.env)}
        log = self._log(start.job)
        try:
            self.pids.append(processes.start(word, command, env, log, grace=request.grace))
        except OSError as error:  # as a batch system does: the job is accepted and dies at launch
            with contextlib.suppress(OSError):  # its folder may be gone, with its manager
                log.write_text(f"cannot start {command[0]}: {error.strerror}\n")
            self.cluster.process_ended(start.job, start.restart, 127, self._clock())

    def _log(self, job: JobId) -> Path:
        return self._folder / f"{job}.log"

    def _some_ended(self) -> None:
        with self._moved:
            self._moved.notify()

    def _move(self) -> None:
        """The thread that moves real time on."""
        assert self._processes is not None
        while True:
            with self._moved:
                if self._closed:
                    return
                ended = self._processes.take_ended()
                for process in ended:
                    job, _, restart = process.key.partition("+")
                    self.cluster.process_ended(JobId(job), int(restart or 0), process.status or 0, time.monotonic())
                before = {job.job: job.state for job in self.cluster.jobs.values()}
                now = time.monotonic()
                self._do(self.cluster.advance(now))
                changed = bool(ended) or any(before.get(job.job) is not job.state for job in self.cluster.jobs.values())
                wait = self.cluster.next_at(now) - now
                if not changed:
                    self._moved.wait(None if wait == float("inf") else wait)
            if changed:
                self._wake()
