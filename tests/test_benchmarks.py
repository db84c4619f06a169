"""The benchmarks run, check their results, and give the figures that docs/performance.md names. Nothing here judges a speed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Whole benchmarks, some several times over.
pytestmark = pytest.mark.timeout(300)

#: Parts of benchmarks, and those that tests/slurm runs.
PARTS = {
    *("common", "recording", "trouble", "factory_side"),
    *("faults_blows", "faults_matrix", "faults_network", "faults_program", "faults_scenes", "faults_stage"),
    *("fuzz_targets", "thin", "bare_ssl", "imbalance_simulated"),
    *("peers", "compare_side", "compare_chart"),
    *("simulated_batch", "simulated_clock", "simulated_cluster", "simulated_manager", "simulated_network", "simulated_worker"),
    *("browser", "dashboard_crowd"),
    *("slowfs", "slowfs_daemon", "evaluation_cell", "evaluation_results", "evaluation_figure"),
}
ON_SLURM = {"soak", "factory"}
#: tests/security/test_fuzz.py runs its targets, without Atheris.
WITH_ATHERIS = {"fuzz"}
#: tests/test_evaluation.py runs it.
ON_FUSE = {"evaluation"}
#: tests/test_fault_matrix.py runs it.
OF_FAULTS = {"faults"}
#: tests/test_compare.py runs it, without peers.
WITH_PEERS = {"compare"}
#: tests/dashboard/test_crowd.py runs it.
WITH_CHROMIUM = {"dashboard"}
#: Have parts, not rounds.
OF_LOAD = {"load"}
SIMULATED = {"simulate"}

ROOT = Path(__file__).resolve().parent.parent

#: The smallest run of each.
SMALLEST = {
    "throughput": ["--calls", "600", "--fork-calls", "50"],
    "latency": ["--calls", "50"],
    "computing": ["--calls", "20", "--small", "20", "--arrays", "4", "--workers", "4", "--through", "100"],
    "startup": [],
    "pending": ["--calls", "500"],
    "payload": ["--small", "2", "--large", "1"],
    "connections": ["--workers", "4", "--calls", "200", "--newcomers", "1"],
    "transfer": ["--megabytes", "5", "--workers", "3"],
    "hoisting": ["--calls", "4", "--slow-calls", "1", "--quick-calls", "20"],
    "imbalance": ["--calls", "200", "--percent", "5", "--parts", "4x4,1x16"],
    "cost": ["--calls", "400"],
    "rest": ["--seconds", "1"],
    "journal": ["--calls", "500"],
    "pipeline": ["--pairs", "2", "--megabytes", "1", "--calls", "50"],
}
#: Figures that may be 0: of a second at rest there may be nothing to count, and no byte of a kept result comes to the manager.
MAY_BE_NOTHING = {"manager_cpu_percent_no_pilots", "manager_cpu_percent", "worker_cpu_percent", "manager_mb", "manager_share"}


#: What a few calls cost with a journal is lost in the noise.
MAY_BE_LESS = {("journal", "cost")}
#: The smallest load; memory that grows would tell nothing of so little.
LOAD = "--parts workers,cancels,callbacks,large,simulated --workers 4 --hold 1 --cancels 300 --megabytes 2 --simulated 50000"


def documented_keys(name: str) -> set[str]:
    """Figures named in the benchmark's row of the table; the first and the last where dots stand for the others."""
    (row,) = re.findall(rf"^\| `python benchmarks/{name}.py` \|.*$", (ROOT / "docs/performance.md").read_text(), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row.split("|")[3]))


@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_and_gives_its_figures(name: str, nothing_left_running: None) -> None:
    """One JSON object with ``--json``: the documented keys, all numbers, and what the machine was."""
    words = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--json", "--rounds", "1", *SMALLEST[name]]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)
    assert figures.pop("benchmark") == name
    assert figures.pop("machine")["cores"] > 0
    assert documented_keys(name)
    assert documented_keys(name) <= set(figures)
    assert all(isinstance(value, int | float) for value in figures.values())
    assert all(value > 0 or (value == 0 and key in MAY_BE_NOTHING) or (name, key) in MAY_BE_LESS for key, value in figures.items())


def test_payload_over_tls_is_compared_with_bare_streams(nothing_left_running: None) -> None:
    """Which end with the benchmark."""
    words = [sys.executable, str(ROOT / "benchmarks/payload.py"), "--json", "--rounds", "1", "--small", "2", "--large", "1", "--tls", "1"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)
    assert all(figures[f"vs_ssl_{size}_{way}"] > 0 for size in ("1mb", "100mb") for way in ("serial", "pipelined"))


def test_the_load_benchmark_runs_and_tells_what_does_not_hold(nothing_left_running: None) -> None:
    """All its parts but the million calls; only the memory of so few simulated calls may not hold."""
    words = [sys.executable, str(ROOT / "benchmarks" / "load.py"), "--json", *LOAD.split()]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert ran.stdout, ran.stderr
    figures = json.loads(ran.stdout)
    assert set(figures["violations"]) <= {"simulated: the core's memory grows"}
    assert ran.returncode == bool(figures["violations"])
    assert documented_keys("load") - {"calls"} <= set(figures)
    assert figures["workers"]["workers"] == 4
    assert figures["cancels"]["not_cancelled"] == 0


def simulate(*words: str, hash_seed: str = "0") -> dict[str, object]:
    """The figures of a short run of the simulation; it has ended with status 0."""
    command = [sys.executable, str(ROOT / "benchmarks" / "simulate.py"), "--json", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env={**os.environ, "PYTHONHASHSEED": hash_seed})
    assert ran.returncode == 0, ran.stderr
    figures: dict[str, object] = json.loads(ran.stdout)
    assert figures["violations"] == []
    return figures


def test_the_simulation_runs_and_what_must_hold_does(nothing_left_running: None) -> None:
    """All its parts, with some pilots; the documented keys."""
    figures = simulate("--pilots", "20", "--calls", "2000", "--memory-calls", "50000", "--steady-calls", "2000")
    assert documented_keys("simulate")
    assert documented_keys("simulate") <= set(figures)
    assert figures["calls"] == 2000
    assert figures["memory_calls"] == 50_000


def test_the_simulation_depends_on_its_seed_alone(nothing_left_running: None) -> None:
    """Two runs decide the same, though sets of words come in another order; another seed is another run."""
    words = ("--parts", "run", "--pilots", "10", "--calls", "1000", "--file-bytes", "1000000000")
    first, again = simulate(*words, hash_seed="1"), simulate(*words, hash_seed="2")
    told = [key for key in first if not key.endswith("_s") and key not in ("machine", "peak_mb")] + ["virtual_s"]
    assert {key: first[key] for key in told} == {key: again[key] for key in told}
    other = simulate(*words, "--seed", "2")
    assert any(other[key] != first[key] for key in told)


def test_every_benchmark_is_documented_and_run() -> None:
    """A benchmark that is in none of the tables is one that nobody runs."""
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - PARTS
    assert there == set(SMALLEST) | ON_SLURM | ON_FUSE | OF_FAULTS | OF_LOAD | WITH_ATHERIS | WITH_PEERS | WITH_CHROMIUM | SIMULATED
    assert all(name in (ROOT / "Makefile").read_text() for name in there)
