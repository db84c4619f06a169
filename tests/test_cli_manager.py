"""The noun ``manager`` and the options of the state folder, as words. What they do is in tests/system and tests/slurm."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

import windlass
from windlass.cli import main
from windlass.cli_manager import _pool_here, split_pool_options, state_options  # pyright: ignore[reportPrivateUsage]
from windlass.errors import UsageError
from windlass.factory.backend import JobId, Listed, PilotState
from windlass.identity import manager_folder
from windlass.manager_job import Job, job_file
from windlass.managers import Known, Presence


def test_options_of_the_managers_job_are_told_from_those_of_its_pool() -> None:
    """What is not the command's own is the pool's."""
    own, pool = split_pool_options(
        ["manager", "start", "x", "--in", "slurm", "--walltime", "2d", "--port=9000", "--memory=4GB", "--wait", "5min", "--exclusive"]
    )
    assert own == ["manager", "start", "x", "--in", "slurm", "--port=9000", "--wait", "5min"]
    assert pool == {"walltime": "2d", "memory": "4GB", "exclusive": True}


@pytest.mark.parametrize("words", [["--state-dir", "here"], ["--state-dir=here"]])
def test_the_state_folder_holds_as_long_as_the_command(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wherever it stands; afterwards the environment is what it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINDLASS_STATE_DIR", "/before")
    monkeypatch.delenv("WINDLASS_TRUST_STATE_DIR", raising=False)
    with state_options(["status", *words, "--json", "--trust-state-dir"]) as rest:
        assert rest == ["status", "--json"]
        assert os.environ["WINDLASS_STATE_DIR"] == str(tmp_path / "here")
        assert os.environ["WINDLASS_TRUST_STATE_DIR"] == "1"
    assert os.environ["WINDLASS_STATE_DIR"] == "/before"
    assert "WINDLASS_TRUST_STATE_DIR" not in os.environ


@pytest.mark.parametrize("words", [["status", "--state-dir"], ["status", "--state-dir", "--json"]])
def test_a_state_folder_must_be_named(words: list[str]) -> None:
    with pytest.raises(UsageError, match="--state-dir needs a folder: write --state-dir DIR"), state_options(words):
        pass


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["start", "x", "--cores", "4"], "has no option --cores; options of a pool go with --in POOL"),
        (["start", "x", "--in", "local", "--cores", "4"], "has no option --cores"),
        (["start", "3x"], "'3x' cannot name a manager"),
        (["start", "x", "--in", "slrum"], "did you mean 'slurm'"),
        (["start", "x", "--listen", "nowhere0", "--foreground"], "cannot listen on 'nowhere0'"),
        (["stop", "nosuch"], "no manager 'nosuch'"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With status 2, and no process behind."""
    assert main(["manager", *words]) == 2
    assert text in capsys.readouterr().err


class Batch:
    """A batch system of one job, which may have ended."""

    def __init__(self) -> None:
        self.states = [PilotState(job=JobId("4711"), listed=Listed.QUEUED)]
        self.cancelled: list[JobId] = []

    def open(self, tag: object, folder: Path, changed: object) -> None: ...

    def close(self) -> None: ...

    def query(self) -> list[PilotState]:
        return self.states

    def cancel(self, jobs: list[JobId]) -> None:
        self.cancelled += jobs


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Where managers are submitted to, with a state folder of the test's own."""
    batch = Batch()
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))

    def make_backend(pool: str, options: object) -> tuple[Batch, None]:
        return batch, None

    monkeypatch.setattr("windlass.manager_job.make_backend", make_backend)
    return batch


def submitted(name: str, *, at: int) -> Path:
    """The folder of a manager that was submitted at this time."""
    folder = manager_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    job_file(folder).write_bytes(msgspec.json.encode(Job("slurm", {}, "4711")))
    os.utime(job_file(folder), (at, at))
    return folder


def listed(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    capsys.readouterr()
    assert main(["manager", "list", "--json"]) == 0
    return [(row["name"], row["state"]) for row in json.loads(capsys.readouterr().out)["managers"]]


@pytest.mark.parametrize(
    ("programs", "words"), [((), "local"), (("sbatch",), "slurm --cores 8"), (("condor_submit",), "htcondor --cores 8")]
)
def test_pilots_are_suggested_of_the_batch_system_that_is_here(
    programs: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `manager start` prints is to be run as it stands."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in programs:
        (tmp_path / program).touch(mode=0o755)
    assert _pool_here() == words


def test_a_manager_whose_job_has_ended_is_not_listed_as_submitted(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    """It has served since it was submitted. To stop it is to be told that it has ended, and a job that has its number now is let be."""
    folder = submitted("night", at=0)
    assert listed(capsys) == [("night", "submitted")]
    with windlass.Manager(name="night"):
        os.utime(folder / "client.json", (1, 1))
    os.utime(job_file(folder), (2, 2))
    assert listed(capsys) == [("night", "submitted")], "again, after an earlier life"
    os.utime(folder / "client.json", (3, 3))
    assert listed(capsys) == [("night", "ended")]
    batch.states = [PilotState(job=JobId("4711"), listed=Listed.ENDED)]
    assert main(["manager", "stop", "night"]) == 2
    assert "does not answer: it has ended" in capsys.readouterr().err
    assert (batch.cancelled, job_file(folder).exists()) == ([], False)


def test_one_that_has_served_and_waits_again_is_removed(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its job was requeued."""
    folder = submitted("night", at=0)
    with windlass.Manager(name="night"):
        pass
    assert main(["manager", "stop", "night"]) == 0
    assert "job 4711 of manager night is removed from slurm" in capsys.readouterr().out
    assert (batch.cancelled, job_file(folder).exists()) == (["4711"], False)


def test_one_that_is_silent_is_ended_with_its_job(
    batch: Batch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not hear that it should end."""
    submitted("night", at=0)
    with windlass.Manager(name="night"):
        pass

    def look(known: Known) -> Presence:
        return Presence.SILENT

    monkeypatch.setattr(Known, "look", look)
    assert main(["manager", "stop", "night"]) == 0
    assert "job 4711 of manager night is removed from slurm" in capsys.readouterr().out
    assert batch.cancelled == ["4711"]


@pytest.mark.parametrize("has_run", [False, True])
def test_a_manager_is_stopped_by_its_folder_too(has_run: bool, batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that waits as a job, or has ended."""
    folder = submitted("night", at=1 << 33)
    if has_run:
        with windlass.Manager(name="night"):
            pass
    assert main(["manager", "stop", str(folder)]) == 0
    assert "job 4711 of manager night is removed from slurm" in capsys.readouterr().out
    assert main(["manager", "stop", str(folder)]) == 2
    error = capsys.readouterr().err
    assert ("does not answer: it has ended" if has_run else "there is no manager") in error
    assert batch.cancelled == ["4711"]


@pytest.mark.parametrize("word", [".", "client.json"])
def test_a_manager_is_stopped_from_within_its_folder(
    word: str, batch: Batch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job has served and waits again, under the manager's name."""
    folder = submitted("night", at=0)
    with windlass.Manager(name="night"):
        pass
    monkeypatch.chdir(folder)
    assert main(["manager", "stop", word]) == 0
    assert "job 4711 of manager night is removed from slurm" in capsys.readouterr().out


def test_a_name_that_cannot_be_one_has_near_names(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    with windlass.Manager(name="night1"):
        assert main(["manager", "stop", "night.1"]) == 2
    assert "there is no manager 'night.1'; did you mean 'night1'?" in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["manager", "start", "--help"])
    shown = capsys.readouterr().out
    assert "--in POOL" in shown
    assert "--ready-fd" not in shown
