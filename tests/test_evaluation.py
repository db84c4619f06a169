"""benchmarks/evaluation.py: a real run on real slow mounts, and how its tables and figures follow from what was measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("common", "slowfs", "slowfs_daemon", "evaluation_cell", "evaluation_results")

if TYPE_CHECKING:
    import evaluation_cell
    import evaluation_results
    import slowfs


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports as the benchmarks have them, forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    global evaluation_cell, evaluation_results, slowfs
    import evaluation_cell
    import evaluation_results
    import slowfs

    yield
    for name in PARTS:
        sys.modules.pop(name, None)


@pytest.fixture
def results() -> evaluation_results.Results:
    """Of two libraries and two times, made up: imports of 10 s and 1 s on the shared file system, and of 1 s and 0.1 s in the cache."""
    made = evaluation_results.Results(0.005, 30, 100, {}, 1_000_000)
    for library, slow in (("numpy", 1.0), ("scikit-learn", 10.0)):
        for environment, import_s in (("shared", slow), ("cache", slow / 10)):
            made.import_s[f"{library} {environment}"] = import_s
            for imports in ("call", "library"):
                for seconds in (0.1, 1.0):
                    setting = evaluation_cell.Setting(library, imports, environment, seconds)
                    each = seconds + (import_s if imports == "call" else 0)
                    asked = slowfs.Counts({"open": 1000 if environment == "shared" else 10, "read": 4}, {"archive": 2_000_000})
                    none, some = slowfs.Counts(), slowfs.Counts({"open": 500})
                    rest = some if imports == "call" and environment == "shared" else none
                    run = evaluation_cell.Run(2, 4, 4, 20, 1.0, import_s + seconds, each * 5, asked, none, rest)
                    made.points.append(evaluation_results.Point(setting, run))
                    alone = slowfs.Counts({"open": 500 if environment == "shared" else 5, "read": 2}, {"archive": 1_000_000})
                    made.single.append(
                        evaluation_results.Point(setting, evaluation_cell.Run(1, 2, 2, 2, 1.0, import_s, each, alone, none, none))
                    )
    return made


def test_figures_follow_from_what_was_measured(results: evaluation_results.Results) -> None:
    """Of the heaviest library and the shortest time; seconds for all calls are those of the first ones and the rate of the others."""
    # Ideal: 10 s and 100 x 0.1 s over 4 slots. Hoisted: 10.1 s for the first four, the other 96 at 0.025 s; not hoisted: at 2.525 s.
    assert results.figures() == {
        "hoisted_vs_ideal": 1.0,
        "unhoisted_vs_ideal": 20.2,
        "cache_hoisted_s": 3.5,
        "shared_unhoisted_s": 252.5,
        "ops_per_call_unhoisted": 25,
        "ops_per_call_hoisted": 0,
        "ops_per_node_shared": 502,
        "ops_per_node_cache": 7,
        "ops_per_extra_node": 7,
        "metadata_ops_per_extra_node": 5,
        "ops_per_extra_node_shared": 502,
        "mb_per_extra_node": 1.0,
        "archive_reads": 2,
    }


def test_results_are_read_as_they_were_written(results: evaluation_results.Results, tmp_path: Path) -> None:
    """The figure is drawn from the file."""
    results.save(tmp_path / "results.json")
    assert evaluation_results.Results.load(tmp_path / "results.json") == results


def test_tables_have_a_row_for_each_way(results: evaluation_results.Results) -> None:
    """And one for the ideal of each library in each place."""
    by_library, by_time = results.tables().strip().split("\n\nSeconds for 100 calls, by the function's own time:\n\n")
    assert by_library.startswith("Calls of 0.1 s:\n\n| library | environment | imports |")
    assert by_library.count("\n|") == 2 + 12
    assert by_time.splitlines()[0] == "| library | environment | imports | 0.1 s | 1 s |"
    assert "| scikit-learn | shared file system | in each call | 252 | 275 |" in by_time
    assert "| scikit-learn | shared file system | ideal | 12.5 | 35.0 |" in by_time


def test_what_was_stopped_is_told_up_to_the_last_whole_time(results: evaluation_results.Results) -> None:
    """What a library was measured with in some ways only is left out, and its place in the table empty."""
    assert results.times == results.times_of("scikit-learn") == [0.1, 1.0]
    results.points.pop()
    assert results.times == results.times_of("numpy") == [0.1, 1.0]
    assert results.times_of("scikit-learn") == [0.1]
    assert "| scikit-learn | shared file system | ideal | 12.5 |  |" in results.tables()


def documented_keys() -> set[str]:
    (row,) = re.findall(r"^\| `python benchmarks/evaluation.py` \|.*$", (ROOT / "docs/performance.md").read_text(), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row.split("|")[3]))


@pytest.mark.timeout(600)
def test_the_evaluation_runs_and_gives_its_figures(tmp_path: Path, nothing_left_running: None) -> None:
    """The smallest run on two nodes, with a library that Windlass needs anyhow: hoisted calls ask nothing of the shared file system, and
    packed environments next to nothing."""
    if slowfs.missing():
        pytest.skip(f"THE EVALUATION IS NOT TESTED: {slowfs.missing()}")
    words = [sys.executable, str(ROOT / "benchmarks/evaluation.py"), "--json", "--libraries", "jinja2", "--times", "0.1", "--calls", "8"]
    words += ["--quick"]
    ran = subprocess.run([*words, "--delay", "0.0002", "--output", str(tmp_path)], capture_output=True, text=True, check=False, timeout=500)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)
    assert figures.pop("benchmark") == "evaluation"
    assert documented_keys() <= set(figures)
    assert figures["ops_per_call_hoisted"] == 0
    assert figures["ops_per_call_unhoisted"] > 10
    assert figures["ops_per_extra_node"] <= 40
    assert figures["archive_reads"] == 1
    assert figures["ops_per_extra_node_shared"] > 1000
    assert (tmp_path / "figure.png").exists() == (util.find_spec("matplotlib") is not None)
    assert (tmp_path / "tables.md").read_text() == evaluation_results.Results.load(tmp_path / "results.json").tables()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--libraries", "nothing-of-the-kind"], "not installed: nothing-of-the-kind; pip install numpy scipy pandas scikit-learn"),
        (["--nodes", "1"], "--nodes 1: what a further node costs shows with two or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], text: str) -> None:
    """Before anything is made."""
    if slowfs.missing():
        pytest.skip(f"THE EVALUATION IS NOT TESTED: {slowfs.missing()}")
    ran = subprocess.run([sys.executable, str(ROOT / "benchmarks/evaluation.py"), *words], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.strip()) == (1, text)
