"""The status object: what does not fit one message is left out, rather than not sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from windlass.manager.status import within


def rows(pilots: int, workers: int) -> dict[str, Any]:
    story = [{"at": 1.0, "phase": "queued", "reason": "x" * 50}] * 20
    return {
        "calls": {"waiting": 3},
        "pilots": [{"pilot": str(n), "phase": "serving", "failed": False, "story": story} for n in range(pilots)]
        + [{"pilot": "old", "phase": "ended", "failed": False, "story": story}],
        "workers": [{"id": f"w{n}", "host": "h" * 100} for n in range(workers)],
    }


def test_what_fits_is_whole() -> None:
    found = rows(2, 2)
    assert json.loads(within(found, 1 << 20)) == found


@pytest.mark.parametrize(("pilots", "workers"), [(100, 10), (10_000, 10_000), (0, 20_000), (20_000, 0)])
def test_what_does_not_fit_is_cut_and_says_so(pilots: int, workers: int) -> None:
    """Stories and what has ended go first; the rest of the status stays."""
    encoded = within(rows(pilots, workers), 100_000)
    assert len(encoded) <= 100_000
    found = json.loads(encoded)
    assert (found["cut"], found["calls"]) == (True, {"waiting": 3})
    assert all(row["story"] == [] for row in found["pilots"])
    assert "old" not in [row["pilot"] for row in found["pilots"]]
    assert bool(found["pilots"]) == bool(pilots)
    assert bool(found["workers"]) == bool(workers)
