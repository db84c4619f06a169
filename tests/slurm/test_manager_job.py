"""A manager as a job of real Slurm, pilots in the same Slurm, and the program outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from windlass import Factory, FunctionCall, attach
from windlass.cli import main
from windlass.errors import Closed, Rejected, Unreachable, UsageError
from windlass.factory.backend import JobId, PilotRequest
from windlass.factory.slurm import SlurmBackend
from windlass.manager_job import of_one_job, submit_manager
from windlass.testing import SlurmCluster

Until = Callable[[str, Callable[[], Any]], None]


def double(number: int) -> int:
    return 2 * number


def live(cluster: SlurmCluster) -> list[str]:
    return cluster.run("squeue", "-h", "-t", "pending,running,completing", "-o", "%i %j").stdout.splitlines()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left_running: None) -> Path:
    """A state folder of the test's own, on the file system that it shares with the nodes."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_manager_in_a_job_serves_pilots_in_jobs_and_a_program_outside(
    slurm: SlurmCluster, until: Until, capsys: pytest.CaptureFixture[str], quick_slurm: Any
) -> None:
    """The whole way: submitted, found, attached to, served by pilots of the same cluster, and ended in order by `stop`."""
    assert main(["manager", "start", "jobbed", "--in", "slurm", "--walltime", "10min"]) == 0
    told = capsys.readouterr()
    assert "manager jobbed is submitted to slurm as job" in told.err
    assert "windlass.attach('jobbed')" in told.out
    assert len(live(slurm)) == 1
    pilots = Factory(attached := attach("jobbed"), quick_slurm(), cores=1, max_pilots=2, idle_timeout=30, hold=0.5, grace=1)
    with attached, pilots:
        attached.install_library("lib", double)
        futures = [attached.submit(FunctionCall("lib", "double", number)) for number in range(50)]
        assert [future.result(60) for future in futures] == [2 * number for number in range(50)]
        assert {worker["host"] for worker in attached.status()["workers"]} == {os.uname().nodename}
    assert main(["manager", "list"]) == 0
    assert "jobbed" in capsys.readouterr().out
    assert main(["manager", "stop", "jobbed"]) == 0
    until("its job and the pilots' have ended", lambda: not live(slurm))


def test_a_job_that_dies_tells_its_own_last_words(slurm: SlurmCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """What went wrong on the node is told here, and the command fails."""
    assert main(["manager", "start", "dying", "--in", "slurm", "--setup", "echo the module is not there >&2; exit 3"]) == 1
    told = capsys.readouterr().err
    assert "of manager 'dying' ended before it served" in told
    assert "the module is not there" in told


def test_a_manager_that_waits_in_the_queue_is_seen_and_can_be_removed(
    slurm: SlurmCluster, until: Until, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--wait`` lets it wait; it is listed as submitted, not submitted twice, and removed by `stop`."""
    words = ["manager", "start", "waiting", "--in", "slurm", "--partition", "down", "--wait", "8s"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "job" in told.err
    assert "still waits in slurm" in told.out
    assert main(["manager", "list"]) == 0
    assert "submitted" in capsys.readouterr().out
    assert main(words) == 2
    assert "manager 'waiting' is submitted already, as job" in capsys.readouterr().err
    assert main(["manager", "stop", "waiting"]) == 0
    assert "is removed from slurm" in capsys.readouterr().out
    until("no job is left", lambda: not live(slurm))
    assert main(["manager", "stop", "waiting"]) == 2


def test_one_that_has_ended_by_itself_has_ended(slurm: SlurmCluster, until: Until, capsys: pytest.CaptureFixture[str]) -> None:
    """Its job is not waited for, nor removed a second time."""
    assert main(["manager", "start", "short", "--in", "slurm", "--idle-timeout", "5s"]) == 0
    until("its job has ended", lambda: not live(slurm))
    capsys.readouterr()
    assert main(["manager", "list"]) == 0
    assert "ended" in capsys.readouterr().out
    assert main(["manager", "stop", "short"]) == 2
    assert "does not answer: it has ended" in capsys.readouterr().err


def test_the_warning_that_its_walltime_is_nearly_over_ends_it_in_order(slurm: SlurmCluster, until: Until) -> None:
    """Its script asks for that signal as those of pilots do, and becomes the manager: a program hears of it at once."""
    assert main(["manager", "start", "warned", "--in", "slurm", "--walltime", "30min"]) == 0
    with attach("warned") as manager:
        future = manager.submit_function(double, (1,))
        slurm.run("scancel", "--signal=USR1", "--batch", live(slurm)[0].split()[0])
        with pytest.raises(Closed, match="signal SIGUSR1"):
            future.result(30)
    until("its job has ended", lambda: not live(slurm))


def test_an_interrupt_removes_the_job(slurm: SlurmCluster, until: Until) -> None:
    """Nobody wants what they did not wait for."""
    words = [sys.executable, "-m", "windlass.cli", "manager", "start", "unwanted", "--in", "slurm", "--partition", "down"]
    words = ["env", "--default-signal=INT", *words]  # a test run in the background has it ignored, and programs inherit that
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "is submitted to slurm as job" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    until("no job is left", lambda: not live(slurm))


@pytest.mark.parametrize("error", [KeyboardInterrupt, Unreachable])
def test_a_job_whose_number_was_never_heard_is_removed(
    slurm: SlurmCluster, until: Until, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Slurm has taken it, and the answer did not come."""
    submit = SlurmBackend.submit

    def unheard(backend: SlurmBackend, request: PilotRequest, count: int) -> Sequence[JobId]:
        assert submit(backend, request, count)
        raise error

    monkeypatch.setattr(SlurmBackend, "submit", unheard)
    with pytest.raises(error):
        submit_manager("unheard", "slurm", {"partition": "down"}, [], lambda text: None)
    until("no job is left", lambda: not live(slurm))


def test_a_request_that_slurm_refuses_is_told(slurm: SlurmCluster) -> None:
    """With Slurm's own words."""
    with pytest.raises(Rejected, match=r"(?i)partition"):
        submit_manager("refused", "slurm", {"partition": "nosuch"}, [], lambda text: None)


def test_a_manager_is_one_job_on_one_node(tmp_path: Path) -> None:
    """Options of pools that mean many pilots are refused; the walltime is longer than a pilot's, unless the pool or the user says one."""
    with pytest.raises(UsageError, match="--max-pilots, --nodes: a manager is one job on one node; leave that out"):
        of_one_job("slurm", {"nodes": 2, "max_pilots": 4})
    with pytest.raises(UsageError, match="the node must share it"):
        of_one_job("htcondor", {"files": "transfer"})
    assert of_one_job("slurm", {})["walltime"] == "12h"
    config = tmp_path / "windlass.toml"
    config.write_text('[pools.plain]\nbackend = "slurm"\n[pools.short]\nbackend = "slurm"\nwalltime = "5min"\n')
    assert of_one_job("plain", {"config": config})["walltime"] == "12h"
    assert "walltime" not in of_one_job("short", {"config": config}), "the pool's own holds"
    assert of_one_job("short", {"config": config, "walltime": "2d"})["walltime"] == "2d"
