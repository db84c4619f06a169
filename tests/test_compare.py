"""benchmarks/compare.py: a run of Windlass and the process pool, what is said of peers that fail, the chart. No speed is judged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
SVG = "{http://www.w3.org/2000/svg}"


def documented_keys() -> set[str]:
    """Figures named in the benchmark's row of the table."""
    (row,) = re.findall(r"^\| `python benchmarks/compare.py` \|.*$", (ROOT / "docs/performance.md").read_text(), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row.split("|")[3]))


def compare(*words: str) -> dict[str, Any]:
    """What a short run prints."""
    command = [sys.executable, str(ROOT / "benchmarks/compare.py"), "--json", "--rounds", "1", "--seconds", "0.05", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stderr
    figures: dict[str, Any] = json.loads(ran.stdout)
    return figures


def bars(file: Path) -> list[float]:
    """Lengths of a chart's bars."""
    return [float(bar.attrib["width"]) for bar in ElementTree.parse(file).iter(f"{SVG}rect")]


def test_the_comparison_runs_without_peers_and_draws_its_chart(tmp_path: Path, nothing_left_running: None) -> None:
    """The documented keys, all numbers, and a bar for each system in each panel."""
    figures = compare("--systems", "windlass,pool", "--chart", str(tmp_path / "chart.svg"))
    systems: Mapping[str, dict[str, Any]] = figures["systems"]
    assert list(systems) == ["windlass", "pool"]
    assert documented_keys() == {*figures, *systems["windlass"], "vs_best_peer"} - {"benchmark", "rounds", "machine", "date", "title"}
    for system in systems.values():
        numbers = [value for name, value in system.items() if name not in ("title", "version", "encrypted")]
        assert all(value > 0 for value in numbers), system
    assert systems["windlass"]["encrypted"] is True
    assert len(bars(tmp_path / "chart.svg")) == 4


def test_a_peer_that_fails_is_left_out_and_that_is_said(tmp_path: Path, nothing_left_running: None) -> None:
    """Others are measured all the same."""
    folder = tmp_path / "executorlib"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to("/bin/false")
    (folder / "installed").write_text("executorlib numpy")
    figures = compare("--systems", "windlass,executorlib", "--environments", str(tmp_path))
    assert list(figures["systems"]) == ["windlass"]
    assert "status 1" in figures["left_out"]["executorlib"]
    assert "vs_best_peer" not in figures


def test_a_comparison_is_of_windlass_with_systems_that_there_are() -> None:
    """A wrong name is told with those that there are; exit status 2."""
    command = [sys.executable, str(ROOT / "benchmarks/compare.py"), "--systems", "windlass,celery"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 2
    assert "there is no celery; there are windlass, pool, executorlib" in ran.stderr


def test_bars_are_logarithms_of_the_figures(tmp_path: Path) -> None:
    """Ten times as many calls per second make a bar longer by one step, whatever they are ten times of; the quickest comes first."""
    rates = {"windlass": 20_000, "pool": 2_000, "parsl": 200}
    figures = {
        "systems": {
            key: {"title": key.title(), "encrypted": key == "parsl", "calls_per_s": rate, "p50_us": 200}
            for key, rate in reversed(rates.items())
        },
        "date": "2026-11-26",
        "rounds": 5,
        "machine": {"cores": 2, "cpu": "A & B", "python": "3.11"},
    }
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    chart = tmp_path / "chart.svg"
    subprocess.run([sys.executable, ROOT / "benchmarks/compare_chart.py", tmp_path / "figures.json", chart], check=True, timeout=60)
    first, second, third, *latencies = bars(chart)
    assert round(first - second) == round(second - third) > 0
    assert len(set(latencies)) == 1
    words = [text.text for text in ElementTree.parse(chart).iter(f"{SVG}text")]
    assert words[:3] == ["Windlass", "Pool", "Parsl"]
    assert "20,000" in words
    assert any("A & B" in str(word) for word in words)
