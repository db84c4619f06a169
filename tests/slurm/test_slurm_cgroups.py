"""Pilots on a Slurm that holds jobs to their cores and memory by cgroups, as nearly all sites do. For root, where there is version 1."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
import pytest
from tests.conftest import require_slurm

import windlass
from windlass import Command, OutOfMemory
from windlass.testing import SlurmCluster

StartFactory = Callable[..., windlass.Factory]
Until = Callable[..., None]

CGROUPS = Path("/sys/fs/cgroup")
#: What Slurm makes groups in.
CONTROLLERS = ("memory", "cpuset", "freezer", "cpuacct", "devices")
LINES = {
    "ProctrackType": "proctrack/cgroup",
    "TaskPlugin": "task/cgroup,task/affinity",
    "JobAcctGatherType": "jobacct_gather/cgroup",
    "SelectTypeParameters": "CR_Core_Memory",
    "PrologFlags": "Contain",
}
ENFORCED = "CgroupPlugin=cgroup/v1\nConstrainCores=yes\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n"
MEMORY = "300MB"


class Enforcing(SlurmCluster):
    """A cluster of one node, whose name is its own: it is in the names of the groups, which all clusters of the machine share, and tells
    whose they are (`remove_left`)."""

    def _write_conf(self, cpus: int, memory: int, lines: Mapping[str, str]) -> None:
        self.nodes = (f"c{os.getpid()}x{secrets.token_hex(2)}",)
        (self.folder / f"spool.{self.nodes[0]}").mkdir()
        super()._write_conf(cpus, memory, lines)
        (self.folder / "cgroup.conf").write_text(ENFORCED)

    @property
    def groups(self) -> list[Path]:
        """The groups that are there of it, the innermost first."""
        tops = [CGROUPS / controller / f"slurm_{self.nodes[0]}" for controller in CONTROLLERS]
        return [group for top in tops for group in below(top)]

    def remove_groups(self) -> bool:
        """Remove those that are empty; whether none is left."""
        remove_empty(self.groups)
        return not self.groups


def below(top: Path) -> list[Path]:
    """A group and all in it, the innermost first."""
    return [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]


def remove_empty(groups: list[Path]) -> None:
    for group in groups:
        with contextlib.suppress(OSError):
            group.rmdir()


def remove_left(root: Path) -> None:
    """Remove groups of such tests that were killed."""
    for controller in CONTROLLERS:
        for top in (root / controller).glob("slurm_c*x????"):
            owner = top.name.removeprefix("slurm_c").partition("x")[0]
            if owner.isdecimal() and not os.path.exists(f"/proc/{owner}"):
                remove_empty(below(top))


def _cannot() -> str:
    """Why there can be no such cluster here; "": there can."""
    if os.getuid() != 0:
        return "only root may make cgroups"
    if not (CGROUPS / "memory" / "memory.oom_control").exists() or not all((CGROUPS / name).is_dir() for name in CONTROLLERS):
        return "no cgroups of version 1 here"
    return "" if os.access(CGROUPS / "memory", os.W_OK) and (os.cpu_count() or 1) >= 2 else "cgroups cannot be made here"


@pytest.fixture(scope="module")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory, until_in_module: Until) -> Iterator[SlurmCluster]:
    """In the place of the cluster of the other tests, which holds nobody to anything."""
    require_slurm()
    if why := _cannot():
        pytest.skip(why)
    remove_left(CGROUPS)
    cluster = Enforcing(tmp_path_factory.mktemp("cgroups"), nodes=1, cpus=2, memory=1000, lines=LINES)
    with ExitStack() as stack:
        stack.callback(until_in_module, "no cgroup of the cluster is left", cluster.remove_groups)
        try:
            stack.enter_context(cluster)
        except (RuntimeError, TimeoutError) as error:  # later releases of Slurm know version 2 alone
            stack.pop_all()  # what it has begun may go later: this is no test
            cluster.remove_groups()
            pytest.skip(f"this Slurm cannot do it here: {error}")
        yield cluster


def cores_and_limit() -> tuple[int, int]:
    """How many cores a call may use; and the memory that the kernel gives its job."""
    from windlass.worker import memory

    return len(os.sched_getaffinity(0)), memory.read_limit(0, memory.own_cgroups())


def take(megabytes: int) -> int:
    """So much memory at once, quicker than anybody looks."""
    return len(bytearray(b"1") * (megabytes << 20))


def hold(path: str) -> int:
    """Runs until there is such a file."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.getpid()


def make(megabytes: int) -> Any:
    return numpy.zeros(megabytes << 20, "u1")


def test_groups_of_killed_tests_are_removed_and_those_of_others_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine, theirs = f"slurm_c{os.getpid()}x01ab", f"slurm_c{ended.pid}x23cd"
    for name in (mine, theirs, "slurm_node1", "slurm_cx0123"):
        (tmp_path / "memory" / name / "uid_0" / "job_1").mkdir(parents=True)
    remove_left(tmp_path)
    assert {path.name for path in (tmp_path / "memory").iterdir()} == {mine, "slurm_node1", "slurm_cx0123"}
    assert (tmp_path / "memory" / mine / "uid_0" / "job_1").is_dir()


def test_a_call_that_the_kernel_ends_costs_its_pilot_nothing(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, tmp_path: Path, until: Until
) -> None:
    """It is told as out of memory, as is a command, whatever it is run by; the call beside it goes on, and the job, which Slurm calls
    OUT_OF_MEMORY at its end, counts as one that went well."""
    factory = start_factory(max_pilots=1, cores=2, memory=MEMORY, idle_timeout=0.1, hold=0.1)
    pool = windlass.Executor(None, manager=manager)
    cores, limit = pool.submit(cores_and_limit).result(60)
    assert cores == 2
    assert 300_000_000 <= limit < 302_000_000
    beside = pool.submit(hold, str(tmp_path / "go"))
    with pytest.raises(OutOfMemory):
        pool.submit(take, 500).result(60)
    hungry = f"{sys.executable} -c 'len(bytearray(b\"1\") * (500 << 20))'"
    with pytest.raises(OutOfMemory):
        manager.submit(Command(f"{hungry}; exit $?")).result(60)
    (tmp_path / "go").touch()
    beside.result(60)
    assert beside.attempts == ()
    once = f"test -e {tmp_path}/once && exit 0; touch {tmp_path}/once; exec {hungry}"
    again = manager.submit(Command(once, memory="auto", cores=1))
    assert again.result(60).exit_code == 0
    assert [attempt.outcome for attempt in again.attempts] == ["out of memory"]
    states = "squeue", "-h", "-t", "all", "-o", "%T"
    until("the job has ended", lambda: slurm.run(*states).stdout.strip() == "OUT_OF_MEMORY")
    assert pool.submit(os.getpid).result(60)
    assert factory.paused == ""


def test_results_that_a_program_keeps_do_not_fill_the_jobs_that_made_them(manager: windlass.Manager, start_factory: StartFactory) -> None:
    """On the manager's own host they are files in memory, which the kernel counts as the job's that wrote them."""
    start_factory(max_pilots=1, cores=1, memory=MEMORY)
    pool = windlass.Executor(None, manager=manager)
    assert pool.submit(cores_and_limit).result(60)[0] == 1
    kept = [pool.submit(make, 60).result(60) for _ in range(8)]
    assert [one.nbytes for one in kept] == [60 << 20] * 8
