"""The batch system behind every pool that a test opens, whichever one its program asks for.

Theory of operation
-------------------
While a `Site` is there, each pool of each factory that is made in this process gets a `SiteBackend` in place of its own (`stand_in` in
`windlass.factory.factory`): the options have been checked as the program's own batch system would, those that only a real site can
fulfil are put aside (`shaped`), and pilots are real processes of this machine.  A node has room for one pilot, so that a node's name
means one.

Pilots reach their manager through a `Proxy` of their backend, which stands in the copy of ``pilot.json`` that they are given.

What there is to know of calls is asked of the managers (`windlass.testing.watched`).  A pool that closes asks a last time, as its
manager is there until its factory has gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil

from windlass.errors import WindlassError
from windlass.factory import factory as factories
from windlass.factory.backend import Backend, JobId, Listed, PilotRequest, pilot_word
from windlass.factory.fake import FakeBackend, FakeCluster, Fault, Happened, Todo
from windlass.factory.pool import PoolConfig
from windlass.messages import ResumePool
from windlass.testing.faults import BadNode, EndWalltime, KillPilot, KillSlot, LoseNode, OfPilot, Preempt, RefuseSubmissions, SlowQueue
from windlass.testing.faults import Fault as Scripted
from windlass.testing.leftovers import Leftovers, wait_until
from windlass.testing.network import Proxy
from windlass.testing.watched import Watched, begun

#: Seconds that a pool may take to end after its manager has.
CLOSE_SECONDS: Final = 10.0
#: Seconds from SIGTERM to SIGKILL where no fault says otherwise.
KILL_WAIT: Final = 5.0
UNANSWERED: Final = "Socket timed out on send/recv operation"
_ZYGOTE: Final = "windlass.worker.zygote"
_SPAWNED: Final = "windlass.worker.slot"


def shaped(pool: PoolConfig) -> PoolConfig:
    """The pool without what only its own site can give: another Python, images, several nodes; and quick to start pilots."""
    return replace(
        pool,
        remote=False,
        interface="",
        network="",
        nodes=1,
        setup=(),
        shell="/bin/sh",
        python="",
        environment="",
        container="",
        container_options=(),
        scratch="",
        start_cost=0.0,
        hold=1.0,
        hello_timeout=min(pool.hello_timeout, 60.0),
        options={},
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A pilot that serves."""

    backend: SiteBackend
    job: JobId
    #: Job and restart, by which one is hit only once.
    word: str
    node: str
    #: Calls that run there, and the worker's process.
    running: int
    pid: int


class SiteBackend(FakeBackend):
    """The batch system of one pool."""

    def __init__(self, site: Site, watched: Watched, pool: PoolConfig) -> None:
        super().__init__(seed=site.seed, cluster_nodes=site.nodes, cores_per_node=pool.resources.cores or 1.0, kill_wait=KILL_WAIT)
        self.site, self.watched, self.pool = site, watched, pool
        self.proxy: Proxy | None = None
        self._connection = ""

    @property
    def closed(self) -> bool:
        """Its factory has ended, or never began."""
        return self._closed or self._thread is None

    def submit(self, request: PilotRequest, count: int) -> Sequence[JobId]:
        command = list(request.command)
        place = command.index("--connection") + 1
        command[place] = self._through_proxy(Path(command[place]))
        return super().submit(replace(request, command=tuple(command), env=(*request.env, *self.site.leftovers.env)), count)

    def _through_proxy(self, pilot_file: Path) -> str:
        if self.proxy is None:
            connection = json.loads(pilot_file.read_bytes())
            host, port = connection["addresses"][0]
            self.proxy = Proxy(port, host)
            connection["addresses"] = [["127.0.0.1", self.proxy.port]]
            copy = self.site.folder / f"pilot-{len(self.site.backends)}-{self.proxy.port}.json"
            copy.touch(mode=0o600)
            copy.write_text(json.dumps(connection))
            self._connection = str(copy)
        return self._connection

    def close(self) -> None:
        self.watched.look()
        super().close()
        if self.proxy is not None:
            self.proxy.close()

    # ---------------------------------------------------------------- looking

    def targets(self) -> list[Target]:
        """Pilots that serve, by node."""
        rows = {row["pilot"]: row for row in self.watched.workers() if row["pool"] == self.pool.name and row["connected"]}
        with self._lock:
            jobs = [
                (job.job, pilot_word(job.job, job.restart), job.node) for job in self.cluster.jobs.values() if job.state is Listed.RUNNING
            ]
        found = [Target(self, job, word, node, begun(rows[word]), rows[word]["pid"]) for job, word, node in jobs if word in rows]
        return sorted(found, key=lambda target: (target.node, target.word))

    def words(self) -> list[str]:
        """Each pilot that has not ended, in words."""
        serving = {target.word: target for target in self.targets()}
        lines: list[str] = []
        with self._lock:
            for job in self.cluster.jobs.values():
                target = serving.get(pilot_word(job.job, job.restart))
                if job.state is not Listed.ENDED:
                    state = f"serves, {target.running} running" if target else job.state.value
                    lines.append(f"{job.node or 'no node yet'}: {state}" + (f" ({job.reason})" if job.reason else ""))
        return lines

    # ---------------------------------------------------------------- what is done to it

    def lasting(self, fault: Scripted) -> None:
        """From now on it is so."""

        def change(cluster: FakeCluster, now: float) -> Sequence[Todo]:
            if isinstance(fault, BadNode):
                cluster.black_holes.add(fault.node)
            elif isinstance(fault, SlowQueue):
                cluster.queue_delay = (fault.seconds, fault.seconds)
                for job in cluster.jobs.values():
                    if job.state is Listed.QUEUED:
                        job.eligible_at = max(job.eligible_at, now + fault.seconds)
            elif isinstance(fault, RefuseSubmissions):
                cluster.standing["submit"] = (Fault.REJECTED, fault.text)
            return ()

        self.act(change)

    def answers(self, yes: bool) -> None:
        """Whether it tells how jobs are."""

        def change(cluster: FakeCluster, now: float) -> Sequence[Todo]:
            if yes:
                cluster.standing.pop("query", None)
            else:
                cluster.standing["query"] = (Fault.UNREACHABLE, UNANSWERED)
            return ()

        self.act(change)

    def heed(self) -> None:
        """Every command is answered as it should be."""

        def change(cluster: FakeCluster, now: float) -> Sequence[Todo]:
            cluster.standing.clear()
            return ()

        self.act(change)

    def mend(self) -> None:
        """Nothing lasts any more."""

        def change(cluster: FakeCluster, now: float) -> Sequence[Todo]:
            cluster.black_holes.clear()
            cluster.down.clear()
            cluster.standing.clear()
            cluster.queue_delay = (0.0, 0.0)
            for job in cluster.jobs.values():
                if job.state is Listed.QUEUED:
                    job.eligible_at = now
            return ()

        self.act(change)

    def hit(self, fault: OfPilot, target: Target) -> None:
        """One pilot, now."""
        if isinstance(fault, KillSlot):
            for process in _slots(target.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return

        def change(cluster: FakeCluster, now: float) -> Sequence[Todo]:
            if cluster.jobs[target.job].state is not Listed.RUNNING:
                return ()
            if isinstance(fault, Preempt):
                return cluster.preempt(target.job, now, requeue=fault.requeue, notice=fault.notice)
            if isinstance(fault, EndWalltime):
                return cluster.time_out(target.job, now, notice=fault.notice)
            if isinstance(fault, KillPilot):
                return cluster.kill(target.job)
            assert isinstance(fault, LoseNode)
            todo = cluster.kill(target.job)
            cluster.lose_node(target.node, now)
            return todo

        self.act(change)


def _slots(worker: int) -> list[psutil.Process]:
    """The processes of a worker that run calls: forks of zygotes, and those that were spawned."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(worker).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words, parent = process.cmdline(), process.parent()
                if _SPAWNED in words or (_ZYGOTE in words and parent is not None and _ZYGOTE in parent.cmdline()):
                    found.append(process)
    return found


class Site:
    """All pools of a test. ``folder`` is private."""

    def __init__(self, folder: Path, leftovers: Leftovers, *, nodes: int, seed: int) -> None:
        self.folder, self.leftovers, self.nodes, self.seed = folder, leftovers, nodes, seed
        self.backends: list[SiteBackend] = []
        self._watched: dict[int | str, Watched] = {}
        self._lasting: list[Scripted] = []
        self._lock = threading.Lock()

    def stand_in(
        self, manager: factories.ManagerLike | str | os.PathLike[str], pilot_file: Path, backend: Backend, pool: PoolConfig
    ) -> tuple[Backend, PoolConfig]:
        """Called for each pool of each factory that is made."""
        key = os.fspath(manager) if isinstance(manager, str | os.PathLike) else id(manager)
        with self._lock:
            if key not in self._watched or self._watched[key].closed:
                # A manager that is gone may have had the same id; what is known of it stays.
                self._watched = {(f"gone-{number}" if old == key else old): one for number, (old, one) in enumerate(self._watched.items())}
                self._watched[key] = Watched(manager, pilot_file)
            made = SiteBackend(self, self._watched[key], pool)
            self.backends.append(made)
            for fault in self._lasting:
                made.lasting(fault)
        return made, shaped(pool)

    def lasting(self, fault: Scripted) -> None:
        """It is so for all pools, also those to come."""
        with self._lock:
            self._lasting.append(fault)
            for backend in self.backends:
                backend.lasting(fault)

    def mend(self) -> None:
        """Nothing lasts any more, and paused pools go on."""
        with self._lock:
            self._lasting.clear()
        for backend in self.backends:
            backend.mend()
            with contextlib.suppress(WindlassError, RuntimeError):
                backend.watched.send(ResumePool(backend.pool.name))

    # ---------------------------------------------------------------- looking

    @property
    def watched(self) -> list[Watched]:
        """Managers of pools, in the order in which they came."""
        return list(self._watched.values())

    def statuses(self) -> list[Mapping[str, Any]]:
        """Of all managers, the last of those that are gone."""
        return [status for one in self.watched if (status := one.look())]

    def targets(self) -> list[Target]:
        """Pilots that serve."""
        return [target for backend in list(self.backends) for target in backend.targets()]

    def happened(self) -> list[Happened]:
        """In all batch systems, the earliest first."""
        return sorted((one for backend in list(self.backends) for one in list(backend.cluster.happened)), key=lambda one: one.at)

    def paused(self) -> list[str]:
        """Why pools submit nothing."""
        return [f"{pool['name']}: {pool['paused']}" for status in self.statuses() for pool in status["pools"] if pool["paused"]]

    # ---------------------------------------------------------------- the end

    def close(self) -> list[str]:
        """Close what the program has left open; its names."""
        for backend in self.backends:
            backend.heed()
        left_open = [backend for backend in self.backends if not backend.closed]
        names = [f"pool {one.pool.name!r} of manager {one.watched.name!r}" for one in left_open]
        for one in self.watched:
            if one.close() and not any(backend.watched is one for backend in left_open):
                names.append(f"manager {one.name!r}")
        wait_until(lambda: all(backend.closed for backend in left_open), CLOSE_SECONDS)
        for backend in self.backends:
            if not backend.closed:
                backend.close()
            elif backend.proxy is not None:
                backend.proxy.close()
        return names
