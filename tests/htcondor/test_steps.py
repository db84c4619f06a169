"""One script of steps, and what a backend sees of each: the same on the stand-in, on a real pool, and as it was recorded there.

A difference on the stand-in is a defect of the stand-in; one on a real pool says that HTCondor has changed, or that its administrators
have changed something that pilots would notice.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RECORDED = HERE.parent / "factory" / "data" / "htcondor" / "steps.jsonl"
#: On alice's schedd, what bob was told who asked for the removal of a job of hers.
DENIED = {"TotalPermissionDenied": 1, "TotalJobAds": 1}


def said(lines: str) -> list[tuple[str, Any]]:
    return [(one["step"], one["said"]) for one in map(json.loads, lines.splitlines())]


def compare(command: Sequence[str], folder: Path) -> None:
    folder.mkdir()
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found, expected = said(run.stdout), said(RECORDED.read_text())
    assert [step for step, _ in found] == [step for step, _ in expected]
    for (step, one), (_, other) in zip(found, expected, strict=True):
        assert one == other, step


def test_the_stand_in_says_what_a_real_pool_said(schedd: Any, tmp_path: Path) -> None:
    compare([str(HERE / "standin.py"), "steps", str(tmp_path / "steps"), schedd.place, ""], tmp_path / "steps")


@pytest.mark.timeout(900)
def test_a_real_pool_says_what_it_said_when_it_was_recorded(condor_pool: Path) -> None:
    compare([str(HERE / "steps.py"), str(condor_pool / "steps"), "", ""], condor_pool / "steps")


def test_the_stand_in_counts_denied_actions_as_a_real_pool_does(schedd: Any) -> None:
    """A job belongs to who submitted it. Nothing is raised; the script of steps lacks this, as it needs two users."""
    schedd.tell("submit", words={"universe": "vanilla", "executable": "/bin/sleep", "hold": "true"}, count=1)
    schedd.tell("set", denied=True)
    counts = schedd.tell("act", action="Remove", which=["1.0"], reason=["x", 1])
    assert {name: int(number) for name, number in counts.items() if int(number)} == DENIED
    schedd.tell("set", denied=False)
