"""What a pilot's script says to the mpirun of calls, run as a shell runs it."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from windlass.factory.backend import PilotRequest
from windlass.factory.slurm import SlurmBackend
from windlass.messages import PoolName, Resources


def found_by_calls(job: dict[str, str], **options: Any) -> dict[str, str]:
    """The environment that the script of such a pilot leaves to calls, in a job that has these variables."""
    request = PilotRequest(ticket="t", pool=PoolName("p"), command=("worker",), resources=Resources(), **options)
    script = SlurmBackend().describe(request, 1)
    script = script[script.index("#!/bin/sh") :].replace("exec worker", "env; exit; ").replace("END OF SCRIPT", "")
    env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "17", **job}
    ran = subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in ran.stdout.splitlines() if "=" in line)


def test_what_calls_start_by_mpirun_is_told_to_stay_on_its_node() -> None:
    """A batch job of one task is no place for four ranks, Open MPI says; jobs that a call submits are to find their own nodes all the same.
    What the node, setup= or env= say of it holds."""
    job = {
        "SLURM_EXPORT_ENV": "NONE",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_CPUS_ON_NODE": "6",
        "PRTE_MCA_hwloc_default_binding_policy": "core",
    }
    told = found_by_calls(job, env=(("I_MPI_PIN", "on"),), setup=("HYDRA_BOOTSTRAP=slurm",))
    assert (told["SLURM_TASKS_PER_NODE"], told["HYDRA_RMK"], told["I_MPI_HYDRA_BOOTSTRAP"]) == ("6", "user", "fork")
    assert (told["I_MPI_PIN"], told["HYDRA_BOOTSTRAP"]) == ("on", "slurm")
    assert (told["OMPI_MCA_hwloc_base_binding_policy"], told["PRTE_MCA_hwloc_default_binding_policy"]) == ("none", "core")
    assert not [name for name in told if name.endswith(("_plm", "_ras"))]
    assert "SLURM_EXPORT_ENV" not in told
    assert "SLURM_NTASKS_PER_NODE" not in told


@pytest.mark.parametrize("setup", [(), ("HYDRA_BOOTSTRAP=slurm", "I_MPI_HYDRA_BOOTSTRAP=ssh")])
def test_what_newer_slurm_says_to_mpirun_is_nobodys_word(setup: tuple[str, ...]) -> None:
    """It tells MPICH and Intel MPI to start theirs by srun, with an option that only it gives (recorded: 26.05), by which none waits for
    another. MPICH hangs by it where nodes are called otherwise than their hosts, Intel MPI starts there by nothing else. setup= holds."""
    job = {
        "SLURM_CPUS_ON_NODE": "2",
        "HYDRA_BOOTSTRAP": "slurm",
        "HYDRA_LAUNCHER_EXTRA_ARGS": "--external-launcher",
        "I_MPI_HYDRA_BOOTSTRAP": "slurm",
        "I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS": "--external-launcher",
    }
    told = found_by_calls(job, setup=setup)
    assert (told["HYDRA_BOOTSTRAP"], told["I_MPI_HYDRA_BOOTSTRAP"]) == (("slurm", "ssh") if setup else ("fork", "slurm"))


def test_the_cores_of_a_pilots_task_are_not_those_of_a_task_that_a_call_starts_by_srun() -> None:
    """Two tasks would be refused. SLURM_CPUS_PER_TASK, which newer releases' srun takes as well, is for functions and setup= to read."""
    said = {"SLURM_CPUS_PER_TASK": "8", "SRUN_CPUS_PER_TASK": "8", "SLURM_TRES_PER_TASK": "cpu=8"}
    found = found_by_calls({"SLURM_CPUS_ON_NODE": "8", **said})
    assert {name: found.get(name) for name in said} == dict.fromkeys(said, None) | {"SLURM_CPUS_PER_TASK": "8"}
