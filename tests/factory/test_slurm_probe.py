"""What becomes of the job that a factory submits to see whether Slurm has such nodes at all; Slurm's commands are the test's."""

from __future__ import annotations

from pathlib import Path

import pytest

from windlass.errors import Unreachable
from windlass.factory import slurm, slurm_words
from windlass.factory.backend import PROBE, NoNodeLeft, PilotRequest, Tag
from windlass.factory.commands import Ran
from windlass.factory.slurm import SlurmBackend
from windlass.messages import PoolName, Resources


def test_a_probe_whose_cancellation_is_lost_is_cancelled_again_and_no_pilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it submitted a second time: Slurm has taken it. It would hold a pilot's place for an hour, and then be one."""
    ran: list[str] = []
    cut = [True]

    def run(command: tuple[str, ...], *, text: str = "", **_: object) -> Ran:
        ran.append(command[0])
        if command[0] == "sbatch" and "--exclude" in text:
            return Ran(1, "", "sbatch: error: Batch job submission failed: Requested node configuration is not available")
        if command[0] == "sbatch":
            return Ran(0, "12\n", "")
        if command[0] == "squeue":
            rows = [("12", PROBE), ("13", "f-2")]
            names = [(job, slurm_words.job_name("windlass", tag, ticket)) for job, ticket in rows]
            lines = [f"{job}|PENDING|Resources||0|0|batch|1|{name}|" for job, name in names]
            header = "JOBID|STATE|REASON|NODELIST|EXIT_CODE|RESTART_|PARTITION|PRIORITY|NAME|"
            return Ran(0, "\n".join([header, *lines]), "")
        return Ran(1, "", "scancel: error: Unable to contact slurm controller (connect failure)") if cut else Ran(0, "", "")

    monkeypatch.setattr(slurm, "run_command", run)
    monkeypatch.setattr(SlurmBackend, "require_commands", staticmethod(lambda: None))
    backend, tag = SlurmBackend(), Tag("f", "m")
    backend.open(tag, tmp_path, lambda: None)
    request = PilotRequest(ticket="f-1", pool=PoolName("p"), command=("worker",), resources=Resources(1.0), walltime=600.0, avoid=("n1",))
    for _ in range(2):
        with pytest.raises(NoNodeLeft):
            backend.submit(request, 1)
    assert ran.count("sbatch") == 3
    for _ in range(2):
        ran.clear()
        assert [state.job for state in backend.query()] == ["13"]
        assert ran == ["squeue", "scancel"]
        cut.clear()


def test_a_probe_without_an_answer_is_cancelled_in_the_clusters_that_it_may_be_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would start an hour later, as a pilot without a manager."""
    ran: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...], **_: object) -> Ran:
        ran.append(command)
        return Ran(1, "", "sbatch: error: Socket timed out on send/recv operation") if command[0] == "sbatch" else Ran(0, "", "")

    monkeypatch.setattr(slurm, "run_command", run)
    monkeypatch.setattr(SlurmBackend, "require_commands", staticmethod(lambda: None))
    request = PilotRequest(ticket="f-1", pool=PoolName("p"), command=("worker",), resources=Resources(1.0), walltime=600.0)
    with pytest.raises(Unreachable):
        SlurmBackend(clusters="a,b").probe(request)
    assert [command[0] for command in ran] == ["sbatch", "scancel"]
    assert "--clusters=a,b" in ran[1]
