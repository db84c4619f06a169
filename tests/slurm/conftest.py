"""Fixtures of the tests on real Slurm: the cluster, a backend and a factory that are as quick as it, and proof that no job stays behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

import windlass
from windlass.factory.backend import OWN_MACHINE, CommandLimits, Tag
from windlass.factory.slurm import SlurmBackend
from windlass.testing import SlurmCluster

#: States in which a job is out of the way.
OVER = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY"}


class QuickSlurm(SlurmBackend):
    """The Slurm backend for a cluster that is shared with nobody: asked often."""

    limits: ClassVar[CommandLimits] = OWN_MACHINE

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"query_interval": 0.2, "command_timeout": 20.0, **options})


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


def live_jobs(cluster: SlurmCluster) -> list[str]:
    """Ids of jobs that have not ended."""
    answer = cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").stdout
    return [line.split()[0] for line in answer.splitlines() if line.split()[1] not in OVER]


def wait_until(what: str, condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Ask again until it is so."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


@pytest.fixture
def until() -> Callable[..., None]:
    """``until(what, condition)`` waits."""
    return wait_until


@pytest.fixture
def start_backend(slurm: SlurmCluster, tmp_path: Path) -> Iterator[Callable[..., SlurmBackend]]:
    """Makes and opens backends, and ends their pilots after the test."""
    with ExitStack() as opened:

        def start(factory: str = "f", manager: str = "m", **options: Any) -> SlurmBackend:
            backend = QuickSlurm(**options)
            backend.open(Tag(factory, manager), tmp_path / "pilots", lambda: None)
            opened.callback(_end, slurm, backend)
            return backend

        yield start


def _end(cluster: SlurmCluster, backend: SlurmBackend) -> None:
    backend.cancel_all()
    wait_until("the backend's pilots have ended", lambda: not backend.find())
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
    wait_until("the pilots have ended", lambda: not live_jobs(slurm))
