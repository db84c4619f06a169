"""The programs of docs/fitting-in.md run as they stand there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/fitting-in.md"
PROGRAMS: list[str] = re.findall(r"^```python run\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("number", "says"),
    [(0, r"\{'C': 10, 'gamma': 0.001\}"), (1, r"(np.float64\()?(1\.0|0\.9)\d+\)?"), (2, "285"), (3, "285")],
    ids=["scikit-learn", "Dask", "Parsl", "asyncio"],
)
def test_a_program_of_the_page_runs(number: int, says: str, run_program: Callable[..., str]) -> None:
    """In an empty folder, and prints what it should; none is longer than a screen."""
    assert re.fullmatch(says, run_program(PROGRAMS[number]).strip())
    assert len([line for line in PROGRAMS[number].splitlines() if line.strip()]) <= 12


def test_all_programs_of_the_page_are_run() -> None:
    """There are as many as are tested."""
    assert len(PROGRAMS) == 4
