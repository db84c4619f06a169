"""The local backend: each pilot is a process of this machine.

Theory of operation
-------------------
A pilot is the worker's own process (no shell in between, unless the pool has ``setup`` lines or an ``environment``), the leader of its
session, with its output in ``FOLDER/RUN/JOB.log`` (`windlass.factory.logs`).  The end of one is known at once, so the factory is woken.
Unless told otherwise a pool is one pilot with all cores that this process may use.  The worker watches its parent, which is this process,
and leaves when that was killed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from windlass.addresses import is_named
from windlass.errors import OverLimit, Rejected
from windlass.factory.backend import (
    OWN_MACHINE,
    Cause,
    CommandLimits,
    JobId,
    Listed,
    NoNodeLeft,
    PilotRequest,
    PilotState,
    PoolDefaults,
    Tag,
    pilot_word,
)
from windlass.factory.launch import needs_script, pilot_script, with_pilot, write_script
from windlass.factory.logs import PilotLogs
from windlass.factory.processes import Process, Processes, tail_of
from windlass.passing import PASSING

#: Seconds between SIGTERM and SIGKILL for what is still there when a factory ends.
LAST_GRACE: float = 1.0


def state_of(process: Process, job: JobId, ticket: str, restart: int | None = None) -> PilotState:
    """How a backend lists a process that has ended."""
    status = process.status or 0
    if process.timed_out:
        cause, reason = Cause.WALLTIME, "its walltime is over"
    elif status < 0:
        cause, reason = Cause.SIGNAL, f"ended by signal {-status}"
    else:
        cause, reason = Cause.EXIT, f"exit status {status}"
    exit_status = status if status >= 0 else None
    return PilotState(job=job, listed=Listed.ENDED, ticket=ticket, restart=restart, reason=reason, cause=cause, exit_status=exit_status)


class LocalBackend:
    """Pilots as processes of this machine."""

    name: ClassVar[str] = "local"
    defaults: ClassVar[PoolDefaults] = PoolDefaults(
        max_pilots=1,
        cores=float(len(os.sched_getaffinity(0))),
        remote=False,
        shared=True,
        max_queued=1000,
        walltime=0.0,
        idle_timeout=300.0,
        start_cost=0.5,
        hold=5.0,
        hello_timeout=60.0,
    )
    limits: ClassVar[CommandLimits] = OWN_MACHINE
    max_batch: ClassVar[int] = 64

    def __init__(self) -> None:
        self.query_interval = 5.0  # ends are told at once; this is for the logs
        self._logs: PilotLogs | None = None
        self._processes: Processes | None = None
        self._tickets: dict[JobId, str] = {}
        self._number = 0
        self._prefix = ""

    def open(self, tag: Tag, folder: Path, wake: Callable[[], None]) -> None:
        self._logs = PilotLogs(folder)
        self._processes = Processes(wake)
        # A later life of a factory of the same name must not use the same ids.
        self._prefix = f"{tag.factory}-{secrets.token_hex(2)}"

    @property
    def _table(self) -> Processes:
        assert self._processes is not None, "open() comes first"
        return self._processes

    @property
    def _places(self) -> PilotLogs:
        assert self._logs is not None, "open() comes first"
        return self._logs

    def submit(self, request: PilotRequest, count: int) -> Sequence[JobId]:
        host = os.uname().nodename
        if any(is_named(host, name) for name in request.blocked):  # each pilot would leave as soon as it has come
            raise NoNodeLeft(f"programs have blocked {host}, and local pilots run nowhere else")
        jobs: list[JobId] = []
        for _ in range(count):
            job = JobId(f"{self._prefix}.{self._number + 1}")
            try:
                self._start(job, request)
            except OSError as error:
                if jobs:
                    break  # those that started count; the rest is asked for again
                # A program's own name is not said twice; that of a folder for its log, which somebody has removed, is what to look at.
                what = f" ({error.filename})" if error.filename not in (None, request.command[0]) else ""
                text = f"cannot start {request.command[0]}: {error.strerror or error}{what}"
                raise (OverLimit if error.errno in PASSING else Rejected)(text) from None
            self._number += 1
            self._places.submitted([job])
            self._tickets[job] = request.ticket
            jobs.append(job)
        return jobs

    def _start(self, job: JobId, request: PilotRequest) -> None:
        command = with_pilot(request.command, pilot_word(job, 0))
        if needs_script(request):
            script = self._places.run / f"{job}.sh"
            write_script(script, pilot_script(request, pilot=pilot_word(job, 0)))
            command = (request.shell, str(script))
        env = {**os.environ, **dict(request.env)}
        self._table.start(job, command, env, self._places.run / f"{job}.log", grace=request.grace, walltime=request.walltime)

    def query(self) -> Sequence[PilotState]:
        ended = self._table.take_ended()
        states = [state_of(process, JobId(process.key), self._tickets.pop(JobId(process.key), "")) for process in ended]
        host = os.uname().nodename
        running = [JobId(key) for key in self._table.running()]
        states += [PilotState(job=job, listed=Listed.RUNNING, ticket=self._tickets.get(job, ""), node=host) for job in running]
        return self._places.looked_after(states)

    def cancel(self, jobs: Sequence[JobId]) -> None:
        self._table.end(jobs)

    def cancel_all(self) -> None:
        # The factory has given them their time before.
        self._table.end(grace=LAST_GRACE)

    def log(self, job: JobId) -> str:
        return str(self._places.place(job))

    def tail(self, job: JobId) -> str:
        return tail_of(self._places.place(job))

    def describe(self, request: PilotRequest, count: int) -> str:
        import shlex

        job = JobId("JOB")
        if needs_script(request):
            script = pilot_script(request, pilot=pilot_word(job, 0))
            return f"# {count} x {request.shell} FOLDER/{job}.sh, which is:\n{script}"
        return f"# {count} x\n{shlex.join(with_pilot(request.command, pilot_word(job, 0)))}"

    def close(self) -> None:
        if self._processes is not None:
            self._processes.close()
        if self._logs is not None:
            self._logs.close()
