"""Calls of heavy-tailed durations: no call waits long behind another that turns out long, so the makespan is that of a list schedule.

The core runs with simulated workers under a clock of its own (benchmarks/imbalance_simulated.py); nothing here takes as long as it says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import imbalance_simulated

SHAPES = ((1, 16), (4, 4), (8, 2), (16, 1))


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports as the benchmarks have them, forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).resolve().parents[2] / "benchmarks"), *sys.path])
    global imbalance_simulated
    import imbalance_simulated

    yield
    sys.modules.pop("imbalance_simulated", None)


@pytest.mark.parametrize(("workers", "slots"), SHAPES)
@pytest.mark.parametrize(
    ("count", "median", "sigma"),
    [
        pytest.param(2400, 0.1, 1.7, id="mean of 0.4 s, nothing ahead once that is known"),
        pytest.param(5000, 0.01, 1.8, id="mean of 50 ms, sometimes a queue and sometimes none"),
        pytest.param(5000, 0.003, 2.5, id="mean of 60 ms, half of all calls under 3 ms"),
        pytest.param(200, 1.0, 1.7, id="a dozen calls for each slot"),
    ],
)
def test_the_makespan_is_that_of_the_list_schedule_and_no_call_begins_much_later(
    workers: int, slots: int, count: int, median: float, sigma: float
) -> None:
    """The list schedule knows when each slot falls free. A call that waits behind one of 30 s begins that much later, and at the end of a
    run so does its end: what waits where nothing moves is taken back within three ticks, and is in its old place then. With messages of
    half a millisecond each way, makespans are within 2 percent; before calls were taken back, starts were up to 80 s late."""
    for seed in range(3):
        durations = imbalance_simulated.heavy_tailed(seed, count, median, sigma)
        simulation = imbalance_simulated.Simulation(durations, workers, slots)
        ideal = imbalance_simulated.list_schedule(durations, 16)
        made = simulation.run()
        starts = imbalance_simulated.list_starts(durations, 16)
        late = max(simulation.began[call] - starts[call - 1] for call in simulation.began)
        assert made <= 1.02 * ideal + 0.05, f"seed {seed}: {made:.2f} s instead of {ideal:.2f}"
        assert late <= 1.0 + 0.02 * ideal, f"seed {seed}: a call began {late:.2f} s later than in the list schedule"


def test_calls_of_equal_durations_are_never_taken_back() -> None:
    """What can be foretold costs no round trips: short calls stream through queues, longer ones have none. Only what was sent before
    durations were known comes back, and the last calls for slots that have fallen idle."""
    for seconds in (0.0005, 0.01, 0.2):
        simulation = imbalance_simulated.Simulation([seconds] * 1600, 4, 4)
        simulation.run()
        assert simulation.recalls <= 4
