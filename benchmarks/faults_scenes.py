"""The scenes of the fault matrix: whether the manager is the program's own, where pilots and factory run, and which disks are small.

Theory of operation: a scene is a context manager that fills in what the program is to do, starts what belongs to the scene, and takes it
down again.  All of them have two pilots of two cores.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from typing import Any, Final

import faults_blows as blows
from faults_network import Hosts
from faults_stage import Stage
from recording import MARK
from windlass.testing import Proxy, SlurmCluster, free_ports

LOCAL: Final[dict[str, Any]] = {"cores": 2, "min_pilots": 2, "max_pilots": 2, "grace": 1.0, "hold": 0.5}


def local(stage: Stage, **more: Any) -> dict[str, Any]:
    """The options of a factory; logs of pilots are kept apart from what must be empty in the end."""
    return {**LOCAL, "scratch": str(stage.scratch), "folder": str(stage.folder / "pilots"), "log_level": "info", **more}


@contextlib.contextmanager
def own(stage: Stage) -> Generator[None]:
    """A program with a manager and a factory of its own: two pilots of two cores."""
    if stage.program.journal:
        stage.program.journal = str(stage.folder / "journal")
        stage.program.name = "m"
    stage.program.factories.append(local(stage))
    stage.start_program()
    yield


@contextlib.contextmanager
def own_with_memory(stage: Stage) -> Generator[None]:
    """As `own`, with pilots that may have 400 MB each."""
    stage.program.factories.append(local(stage, memory="400MB"))
    stage.start_program()
    yield


@contextlib.contextmanager
def small_scratch(stage: Stage) -> Generator[None]:
    """As `own`; all that one of the two pilots writes, /dev/shm too, goes to a disk of 32 MB."""
    small = stage.folder / "small"
    stage.places.append(small)
    with blows.small_disk(small, 32):
        pythons = {"small": {"scratch": str(small), "python": stage.python_with_shm(small)}, "large": {}}
        for pool, options in pythons.items():
            stage.program.factories.append(local(stage, min_pilots=1, max_pilots=1, pool=pool, **options))
        stage.start_program()
        yield


@contextlib.contextmanager
def small_state(stage: Stage) -> Generator[None]:
    """As `own`; state folder, temporary files and /dev/shm of the program's machine are disks of 48 MB. Pilots have theirs."""
    shm = stage.folder / "shm-0"
    with blows.small_disk(stage.state, 48), blows.small_disk(stage.tmp, 48), blows.small_disk(shm, 48):
        stage.state.chmod(0o700)
        stage.before = ["unshare", "-m", "/bin/sh", "-c", f'mount --bind {shm} /dev/shm && exec "$@"', "sh"]
        stage.program.factories.append(local(stage))
        stage.start_program()
        yield


@contextlib.contextmanager
def hosts(stage: Stage) -> Generator[None]:
    """The program on one host, a pilot on each of two others, and a switch between them."""
    with Hosts(3) as network:
        stage.hosts = network
        stage.before = network.words(0)
        stage.program.host = network.address(0)
        for number in (1, 2):
            options = {"python": stage.python_on(number), "pool": f"host{number}"}
            stage.program.factories.append(local(stage, min_pilots=1, max_pilots=1, **options))
        stage.start_program()
        yield


@contextlib.contextmanager
def proxied(stage: Stage) -> Generator[None]:
    """As `own`, with a proxy between pilots and manager."""
    [stage.program.port] = free_ports(1)
    stage.proxy = Proxy(stage.program.port)
    stage.program.through = stage.proxy.port
    with own(stage):
        yield


@contextlib.contextmanager
def factory_beside(stage: Stage) -> Generator[None]:
    """A program with a manager of its own, and ``windlass factory run`` as a process beside it, started again when it has ended."""
    stage.program.name = "m"
    stage.start_program()
    start_factory(stage)
    yield


@contextlib.contextmanager
def manager_beside(stage: Stage) -> Generator[None]:
    """A manager that runs on its own, a factory beside it, and a program that is attached and comes back after `Closed`."""
    stage.program.name = "m"
    stage.program.kind = "attached"
    stage.start_manager()
    start_factory(stage)
    stage.start_program()
    yield


def start_factory(stage: Stage) -> None:
    stage.start_factory(**local(stage), name="f")


@contextlib.contextmanager
def slurm(stage: Stage) -> Generator[None]:
    """As `own`, on a real Slurm of two nodes; where the controller keeps its state is a disk of 32 MB, with root."""
    with contextlib.ExitStack() as opened:
        if os.getuid() == 0:
            opened.enter_context(blows.small_disk(stage.folder / "slurm/state", 32))
        stage.cluster = opened.enter_context(SlurmCluster(stage.folder / "slurm", nodes=2, cpus=2))
        stage.env["SLURM_CONF"] = str(stage.cluster.conf)
        stage.program.backend = "slurm"
        more = {"walltime": 300, "idle_timeout": 60, "start_cost": 0.2, "query_interval": 2, "env": {MARK: stage.mark}}
        stage.program.factories.append(local(stage, **more))
        stage.start_program()
        yield


SCENES: Final[dict[str, Callable[[Stage], contextlib.AbstractContextManager[None]]]] = {
    "own": own,
    "own with memory": own_with_memory,
    "small scratch": small_scratch,
    "small state": small_state,
    "hosts": hosts,
    "proxy": proxied,
    "factory beside": factory_beside,
    "manager beside": manager_beside,
    "slurm": slurm,
}
