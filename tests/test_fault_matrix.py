"""The fault matrix: its short form keeps every promise, it leaves out no pair silently, and it finds what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    import faults
    import faults_matrix
    import faults_stage


@pytest.fixture
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports as the benchmarks have them, forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    global faults, faults_matrix, faults_stage
    import faults
    import faults_matrix
    import faults_stage

    yield
    for name in set(sys.modules) - before:
        if name in ("common", "recording") or name.startswith("faults"):
            del sys.modules[name]


@pytest.mark.timeout(400)
def test_the_most_telling_faults_lose_nothing_and_leave_nothing(nothing_left_running: None) -> None:
    """Slots, zygotes, workers and the program are killed, and connections die unseen, while calls with checkable results run."""
    words = [sys.executable, str(ROOT / "benchmarks/faults.py"), "--json", "--short", "--calls", "300"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=380)
    assert ran.stdout, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    assert {cell["cell"]: cell["violations"] for cell in found["cells"] if cell["state"] != "kept"} == {}, ran.stderr
    assert ran.returncode == 0
    assert len(found["cells"]) >= 5
    for cell in found["cells"]:
        assert (cell["lost"], cell["failed"], cell["wrong"], cell["twice"]) == (0, 0, 0, 0)
        assert cell["goes_on_s"] is not None, "no call that started after the fault has a result"
    # A fault that hit nothing would prove nothing.
    again = {cell["cell"]: cell["again"] for cell in found["cells"]}
    assert again["slot / SIGKILL"] > 0
    assert again["worker / SIGKILL"] > 0


@pytest.mark.usefixtures("_benchmarks_on_the_path")
def test_every_pair_of_the_matrix_is_there_or_says_why_it_has_no_meaning() -> None:
    """Nothing is dropped silently, no name stands twice, and the documentation has each row."""
    pairs = {(cell.row, cell.fault) for cell in faults_matrix.CELLS}
    assert pairs == {(row, fault) for row in faults_matrix.ROWS for fault in faults_matrix.FAULTS}
    names = [cell.name for cell in faults_matrix.CELLS]
    assert len(names) == len(set(names))
    assert all(cell.text.startswith("n/a: ") == (cell.blow is None) for cell in faults_matrix.CELLS)
    assert set(faults.SHORT) <= set(names)
    documented = (ROOT / "docs/faults.md").read_text().lower()
    assert all(f"## the {row}" in documented or f"## {row}" in documented for row in faults_matrix.ROWS)


@pytest.mark.usefixtures("_benchmarks_on_the_path")
def test_cells_are_chosen_by_pattern() -> None:
    """A plain word matches anywhere, a pattern the whole name."""
    assert {cell.row for cell in faults.chosen_cells(["zygote / *"], False)} == {"zygote"}
    assert {cell.fault for cell in faults.chosen_cells(["SIGKILL"], False)} == {"SIGKILL"}
    assert faults.chosen_cells(["nobody"], False) == []
    assert len(faults.chosen_cells([], True)) == len(faults.SHORT)


GOOD: dict[str, Any] = {
    "lost": [],
    "wrong": [],
    "failed": {},
    "twice": [],
    "closed": 0,
    "rounds": 0,
    "delivered": {"0": 1.5, "1": 3.0},
}


@pytest.mark.usefixtures("_benchmarks_on_the_path")
@pytest.mark.parametrize(
    ("found", "starts", "processes", "files", "violations"),
    [
        ({}, [(1.0, 0), (2.5, 1)], [], [], []),
        ({"lost": [1]}, [(1.0, 0), (2.5, 1)], [], [], ["calls are lost: 1: 1"]),
        ({"failed": {"1": "E"}}, [(1.0, 0), (2.5, 1)], [], [], ["calls failed: 1: 1: E"]),
        ({"wrong": [0]}, [(1.0, 0), (2.5, 1)], [], [], ["results are wrong: 1: 0"]),
        ({"twice": [0]}, [(1.0, 0), (2.5, 1)], [], [], ["results were delivered twice: 1: 0"]),
        ({"closed": 3}, [(1.0, 0), (2.5, 1)], [], [], ["futures were closed: 1: 3"]),
        ({}, [(2.5, 1)], [], [], ["calls never ran and have a result: 1: 0"]),
        ({}, [(1.0, 0), (1.9, 1)], [], [], ["no call that started after the fault has a result: 1: 0"]),
        ({}, [(1.0, 0), (2.5, 1)], ["7: sleep"], [], ["processes are left: 1: 7: sleep"]),
        ({}, [(1.0, 0), (2.5, 1)], [], ["tmp/x"], ["files are left: 1: tmp/x"]),
        ({}, [(1.0, 0), (1.9, 1), (2.5, 1)], [], [], []),  # it ran again, which is not the same as twice
    ],
)
def test_a_broken_promise_is_found(
    tmp_path: Path, found: dict[str, Any], starts: list[tuple[float, int]], processes: list[str], files: list[str], violations: list[str]
) -> None:
    """Each of the promises, broken alone, is a violation. The fault fell at 2."""
    with faults_stage.staged(tmp_path, {"calls": 2, "seconds": 0.0, "seed": 0}) as stage:
        stage.program.ledger.write_text("".join(f"{at} {call} 1 77\n" for at, call in starts))
        stage.program.found.write_text(json.dumps({**GOOD, **found}))
        outcome = faults.judge(faults_matrix.CELLS[0], stage, 2.0, processes, files)
    assert outcome.violations == violations
    assert outcome.state == ("broken" if violations else "kept")
    assert outcome.again == len(starts) - len({call for _, call in starts})
