"""Logs of pilots: a folder for each run, found again by a later one, and bounded in number and size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from windlass.factory import logs
from windlass.factory.backend import Cause, JobId, Listed, PilotState
from windlass.factory.logs import PilotLogs


def state(job: str, listed: Listed = Listed.RUNNING, *, failed: bool = False) -> PilotState:
    cause, status = (Cause.EXIT, 1 if failed else 0) if listed is Listed.ENDED else (Cause.UNKNOWN, None)
    return PilotState(job=JobId(job), listed=listed, cause=cause, exit_status=status)


def write(kept: PilotLogs, job: str, size: int = 10, age: float = 0.0) -> Path:
    kept.submitted([JobId(job)])
    path = kept.place(JobId(job))
    path.write_bytes(b"x" * size)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """So that the logs of yesterday do not lie among today's."""
    first, second = PilotLogs(tmp_path / "f"), PilotLogs(tmp_path / "f")
    assert first.run != second.run
    assert first.run.parent == second.run.parent == tmp_path / "f"
    assert write(first, "1").parent == first.run


def test_a_run_without_a_pilot_leaves_no_folder(tmp_path: Path) -> None:
    """A factory whose name is taken may be started again and again. A pilot that waits needs the folder for its log."""
    refused, submitted, unanswered = (PilotLogs(tmp_path / "f") for _ in range(3))
    submitted.submitted([JobId("1")])
    (unanswered.run / "pilot.sh").touch()
    for run in (refused, submitted, unanswered):
        run.close()
    assert sorted((tmp_path / "f").iterdir()) == sorted([submitted.run, unanswered.run])


def test_a_pilot_of_an_earlier_run_writes_where_that_one_said(tmp_path: Path) -> None:
    """Adopted pilots are found by looking."""
    first = PilotLogs(tmp_path / "f")
    path = write(first, "1")
    second = PilotLogs(tmp_path / "f")
    assert second.place(JobId("1")) == path
    [told] = second.looked_after([state("1")])
    assert told.log == str(path)


def test_a_state_tells_where_the_log_is(tmp_path: Path) -> None:
    """Also of a queued one, if this run has submitted it; else nobody knows yet."""
    kept = PilotLogs(tmp_path / "f")
    kept.submitted([JobId("1")])
    mine, other = kept.looked_after([state("1", Listed.QUEUED), state("2", Listed.QUEUED)])
    assert (mine.log, other.log) == (str(kept.run / "1.log"), "")


def test_of_too_many_logs_the_oldest_go_and_those_of_failed_pilots_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of pilots that live stay whatever their number."""
    monkeypatch.setattr(logs, "LOGS_KEPT", 2)
    kept = PilotLogs(tmp_path / "f")
    paths = {job: write(kept, job, age=age) for job, age in (("lives", 50), ("failed", 40), ("old", 30), ("new", 20))}
    kept.looked_after([state(job) for job in paths])
    kept.looked_after([state("lives"), state("failed", Listed.ENDED, failed=True), state("old", Listed.ENDED), state("new", Listed.ENDED)])
    assert {job for job, path in paths.items() if path.exists()} == {"lives", "failed", "new"}
    assert (kept.run / "failed").read_text().startswith("failed\t")


def test_of_too_many_bytes_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BYTES_KEPT", 100)
    kept = PilotLogs(tmp_path / "f")
    paths = [write(kept, str(number), size=60, age=-number) for number in range(3)]
    kept.looked_after([state(str(number)) for number in range(3)])
    kept.looked_after([])
    assert [path.exists() for path in paths] == [False, False, True]


def test_a_folder_of_an_earlier_run_goes_with_its_last_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOGS_KEPT", 1)
    first = PilotLogs(tmp_path / "f")
    write(first, "1", age=10)
    second = PilotLogs(tmp_path / "f")
    write(second, "2")
    second.looked_after([])
    assert not first.run.exists()
    assert second.run.exists()
