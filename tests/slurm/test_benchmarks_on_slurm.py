"""The benchmarks that need a real Slurm, on clusters of their own: the soak in its short form, and a very small run of the factories'."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--json", *options]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=110, env=dict(os.environ))


def documented_keys(name: str) -> set[str]:
    """Figures named in the benchmark's row of docs/performance.md."""
    (row,) = re.findall(rf"^\| `python benchmarks/{name}.py[^`]*` \|.*$", (ROOT / "docs/performance.md").read_text(), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row.split("|")[3]))


def test_a_soak_loses_no_call_leaves_nothing_and_stays_within_the_bound_on_commands(nothing_left_running: None) -> None:
    """Ten seconds of demand that comes and goes while workers, jobs, nodes and the controller go away; with the real limits on commands."""
    ran = run("soak", "--short", "--minutes", "0.15")
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    found: dict[str, Any] = json.loads(ran.stdout)
    assert found["violated"] == []
    assert found["calls"] > 100
    assert found["faults"] >= 3
    assert found["commands"] > 0
    assert documented_keys("soak") <= set(found)


def test_the_factories_benchmark_gives_its_figures(nothing_left_running: None) -> None:
    """Windlass alone, two pilots: the documented keys, all numbers; the peers would be installed and are left out."""
    ran = run("factory", "--short", "--rounds", "1", "--peers", "none")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    assert found["benchmark"] == "factory"
    assert documented_keys("factory")
    assert documented_keys("factory") <= set(found)
    assert all(isinstance(found[key], int | float) for key in documented_keys("factory"))
    assert 0 < found["seconds_to_target"] < 100


@pytest.mark.parametrize("choice", ["nobody", "htcondor"])
def test_an_unknown_peer_is_refused(choice: str) -> None:
    """Nothing is installed by a slip."""
    ran = run("factory", "--peers", choice)
    assert ran.returncode == 2
    assert "invalid choice" in ran.stderr
