"""Fixtures of the tests on real Slurm: the cluster, a backend and a factory that are as quick as it, and proof that no job stays behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import windlass
from windlass.factory.backend import OWN_MACHINE, CommandLimits, Listed, PilotRequest, PilotState, Tag
from windlass.factory.slurm import SlurmBackend
from windlass.messages import PoolName, Resources
from windlass.testing import SlurmCluster

#: States in which a job is out of the way.
OVER = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY"}


class QuickSlurm(SlurmBackend):
    """The Slurm backend for a cluster that is shared with nobody: asked often."""

    limits: ClassVar[CommandLimits] = OWN_MACHINE

    def __init__(self, **options: Any) -> None:
        given: dict[str, Any] = {"query_interval": 0.2, "command_timeout": 20.0, **options}
        super().__init__(**given)
        #: Queries that were answered.
        self.answers = 0

    def query(self) -> Sequence[PilotState]:
        states = super().query()
        self.answers += 1
        return states


@pytest.fixture(autouse=True)
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster that Slurm's commands speak to in a test; without live jobs before and after it."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.conf))
    yield slurm_cluster
    left = live_jobs(slurm_cluster)
    if left:
        slurm_cluster.run("scancel", *left)
        wait_until("no job is left", lambda: not live_jobs(slurm_cluster))
    assert left == [], "jobs that the test left behind"


def live_jobs(cluster: SlurmCluster, of: str = "") -> list[str]:
    """Ids of jobs that have not ended, and have this in their names."""
    rows = [line.split() for line in cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T %j").stdout.splitlines()]
    return [job for job, state, name in rows if state not in OVER and of in name]


def wait_until(what: str, condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Ask again until it is so."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def quick_slurm() -> type[SlurmBackend]:
    return QuickSlurm


@pytest.fixture(scope="module")
def until_in_module() -> Callable[..., None]:
    """`until` for fixtures that last as long as a module."""
    return wait_until


@pytest.fixture
def until() -> Callable[..., None]:
    """``until(what, condition)`` waits."""
    return wait_until


@pytest.fixture
def start_backend(slurm: SlurmCluster, tmp_path: Path) -> Iterator[Callable[..., SlurmBackend]]:
    """Makes and opens backends, and ends their pilots after the test."""
    started: list[SlurmBackend] = []

    def start(factory: str = "f", manager: str = "m", **options: Any) -> SlurmBackend:
        backend = QuickSlurm(**options)
        backend.open(Tag(factory, manager), tmp_path / "pilots" / factory, lambda: None)
        started.append(backend)
        return backend

    yield start
    for backend in started:
        backend.cancel_all()
    for backend in started:
        wait_until("the pilots have ended", lambda one=backend: not one.find())  # type: ignore[misc]
        backend.close()


@pytest.fixture
def manager(slurm: SlurmCluster) -> Iterator[windlass.Manager]:
    """A manager without pilots."""
    with windlass.Manager() as manager:
        yield manager


@pytest.fixture
def start_factory(manager: windlass.Manager, slurm: SlurmCluster) -> Iterator[Callable[..., windlass.Factory]]:
    """Starts factories on Slurm; after the test their pilots have ended."""

    def start(of: windlass.Manager | None = None, own: dict[str, Any] | None = None, **options: Any) -> windlass.Factory:
        options = {"cores": 1, "max_pilots": 2, "idle_timeout": 30, "hold": 0.5, "start_cost": 0.1, "grace": 1, **options}
        return factories.enter_context(windlass.Factory(of or manager, QuickSlurm(**(own or {})), **options))

    with ExitStack() as factories:
        yield start
    wait_until("the pilots have ended", lambda: not live_jobs(slurm, of=f":{manager.name}:"))


@pytest.fixture
def make_request() -> Callable[..., PilotRequest]:
    """Makes a request whose pilots run a Python program instead of a worker; without one they wait to be ended."""

    def make(body: str = "import time; time.sleep(600)", **changes: Any) -> PilotRequest:
        command = (sys.executable, "-S", "-E", "-c", body)
        request = PilotRequest(ticket="f-1", pool=PoolName("p"), command=command, resources=Resources(1.0), walltime=600.0, grace=1.0)
        return replace(request, **changes)

    return make


class Listing:
    """What a backend says of its pilots, asked until it is so."""

    def __init__(self, backend: SlurmBackend) -> None:
        self.backend = backend

    def now(self) -> dict[str, PilotState]:
        return {str(state.job): state for state in self.backend.query()}

    def until(self, job: str, *listed: Listed, timeout: float = 30.0, seen: list[Listed] | None = None) -> PilotState:
        """Wait until a pilot is listed so; what it was listed as on the way is added to ``seen``."""
        end = time.monotonic() + timeout
        while True:
            state = self.now().get(job)
            if seen is not None and state is not None and seen[-1:] != [state.listed]:
                seen.append(state.listed)
            if state is not None and state.listed in listed:
                return state
            assert time.monotonic() < end, f"{job} was never {listed}; last: {state}"
            time.sleep(0.05)


@pytest.fixture
def listing() -> type[Listing]:
    """``listing(backend).until(job, Listed.RUNNING)``."""
    return Listing


@pytest.fixture(scope="module")
def strict_cluster(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A cluster of two nodes with narrow limits, and a prolog that fails on nodes named in ``FOLDER/bad-nodes``."""
    folder = tmp_path_factory.mktemp("strict")
    prolog = folder / "prolog"
    prolog.write_text(f'#!/bin/sh\n! grep -qs "^$SLURMD_NODENAME$" {folder}/bad-nodes\n')
    prolog.chmod(0o755)
    lines = {"MaxJobCount": "6", "MaxArraySize": "4", "Prolog": str(prolog)}
    with SlurmCluster(folder, nodes=2, lines=lines) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def remembering_cluster(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A cluster of three nodes that forgets no job while tests run."""
    with SlurmCluster(tmp_path_factory.mktemp("remembering"), nodes=3, lines={"MinJobAge": "600"}) as cluster:
        yield cluster
