"""The doctor on real Slurm: a healthy pilot, and ill ones whose leg is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from windlass.factory.doctor import FAILED, OK, Leg, check_up
from windlass.testing import SlurmCluster


def heard(text: str) -> None:
    """What is waited for; nobody reads it here."""


def told(*legs: Leg) -> dict[str, Leg]:
    return {leg.name: leg for leg in legs}


@pytest.fixture(autouse=True)
def own_state(slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))


def test_each_leg_of_a_pilot_on_a_node() -> None:
    """Submitted, started, its folder, an address, a call; and its job is gone afterwards."""
    legs = told(*check_up("slurm", {"query_interval": 0.5}, heard))
    assert {name for name, leg in legs.items() if leg.state != OK} == set()
    assert legs["queue"].text.startswith("it started after")
    assert "pilot.json" in legs["state folder"].text


def test_a_wrong_partition_is_told_at_the_submission() -> None:
    legs = told(*check_up("slurm", {"partition": "nosuch"}, heard))
    assert (legs["submit"].state, legs["submit"].text) == (
        FAILED,
        "invalid partition specified: nosuch; Batch job submission failed: Invalid partition name specified",
    )


def test_a_setup_line_that_fails_is_told_with_the_pilots_own_words() -> None:
    legs = told(*check_up("slurm", {"setup": ["module load nothing"], "query_interval": 0.5}, heard))
    assert legs["worker"].state == FAILED
    assert "this line of setup= failed with status 127: module load nothing" in legs["worker"].text


def test_one_that_waits_in_the_queue_is_told_with_slurms_reason(slurm: SlurmCluster) -> None:
    """Its patience over, the pilot is removed."""
    options = {"extra_directives": "--begin=now+3600", "query_interval": 0.5}
    legs = told(*check_up("slurm", options, heard, queue_patience=3))
    assert legs["queue"].state == FAILED
    assert "it still waits, and the batch system says: BeginTime" in legs["queue"].text


def test_a_partition_that_takes_no_jobs_is_told_at_the_submission(slurm: SlurmCluster) -> None:
    """The pool would wait for it; a person asks now."""
    slurm.run("scontrol", "update", "PartitionName=high", "State=DRAIN")
    try:
        legs = told(*check_up("slurm", {"partition": "high"}, heard))
    finally:
        slurm.run("scontrol", "update", "PartitionName=high", "State=UP")
    assert (legs["submit"].state, "inactive or drain" in legs["submit"].text) == (FAILED, True)
