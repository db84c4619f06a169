"""Calls of heavy-tailed durations over 16 slots, beside the greedy list schedule that knows when each slot falls free.

Calls sleep, for times that are log-normal between 1 ms and 30 s, so that sixteen slots fit on any machine: as one worker of 16 slots, four
of 4, eight of 2, and sixteen of one.  ``makespan_vs_list`` is the time from the first submit to the last result, over the makespan of the
list schedule: calls in order of submission, each to the slot that falls free first.  Each round draws other durations.  The same sets also
go through the manager's core alone, under a clock of its own (`imbalance_simulated.py`): ``simulated_vs_list`` is what decisions cost.
``latest_start_s`` is there the longest time that a call began later than in the list schedule.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import windlass
from common import arguments, check, clock, in_turns, median, report
from imbalance_simulated import Simulation, heavy_tailed, list_schedule, list_starts

#: Workers and slots of each.
SHAPES = ((4, 4), (1, 16), (8, 2), (16, 1))
SLOTS = 16
#: Seconds, and of the natural logarithm: the mean is 0.4 s, and the longest tenth of the calls have two thirds of all seconds.
MEDIAN, SIGMA = 0.1, 1.7


def nap(call: tuple[int, float]) -> int:
    """Occupy a slot, but no processor."""
    number, seconds = call
    time.sleep(seconds)
    return number


def makespan(durations: Sequence[float], workers: int, slots: int) -> float:
    """Seconds from the first submit to the last result, all slots being there."""
    with (
        windlass.Manager() as manager,
        windlass.Factory(manager, "local", cores=slots, max_pilots=workers, min_pilots=workers),
    ):
        manager.install_library("lib", nap)
        while serving(manager) < workers * slots:
            some = [manager.submit(windlass.FunctionCall("lib", "nap", (number, 0.02))) for number in range(2 * workers * slots)]
            check([future.result(timeout=60) for future in some] == list(range(len(some))))
        began = clock()
        futures = [manager.submit(windlass.FunctionCall("lib", "nap", call)) for call in enumerate(durations)]
        results = [future.result() for future in futures]
        took = clock() - began
        check(results == list(range(len(durations))))
        return took


def serving(manager: windlass.Manager) -> int:
    """Slots that serve."""
    return sum(one["slots"] for worker in manager.status()["workers"] for one in worker["libraries"] if one["phase"] == "ready")


def main() -> None:
    names = {f"{workers}x{slots}": (workers, slots) for workers, slots in SHAPES}
    chosen = arguments(__doc__, rounds=3, parts=list(names), calls=2400, percent=100)
    shapes = [shape for name, shape in names.items() if name in chosen.parts]
    draws = {shape: iter(range(1, 10**6)) for shape in shapes}
    simulated: list[float] = []
    late: list[float] = []

    def one_round(workers: int, slots: int) -> tuple[float, float]:
        """The makespans of this shape's next set: as it was, and of the list schedule."""
        durations = heavy_tailed(next(draws[workers, slots]), chosen.calls, MEDIAN, SIGMA, chosen.percent / 100)
        ideal = list_schedule(durations, SLOTS)
        simulation = Simulation(durations, workers, slots)
        simulated.append(simulation.run() / ideal)
        starts = list_starts(durations, SLOTS)
        late.append(max(simulation.began[call] - starts[call - 1] for call in simulation.began))
        return makespan(durations, workers, slots), ideal

    runs = in_turns(chosen.rounds, {f"{workers} x {slots}": partial(one_round, workers, slots) for workers, slots in shapes})
    ratios = {name: [took / ideal for took, ideal in found] for name, found in runs.items()}
    rows = [
        (name, median(took for took, _ in found), median(ideal for _, ideal in found), median(ratios[name]), max(ratios[name]))
        for name, found in runs.items()
    ]
    every = [ratio for found in ratios.values() for ratio in found]
    figures = {
        "makespan_s": round(median(took for found in runs.values() for took, _ in found), 2),
        "makespan_vs_list": round(median(every), 4),
        "makespan_vs_list_worst": round(max(every), 4),
        "simulated_vs_list": round(median(simulated), 4),
        "simulated_vs_list_worst": round(max(simulated), 4),
        "latest_start_s": round(max(late), 3),
    }
    note = f"{chosen.calls} calls of {MEDIAN * chosen.percent / 100:.3g} s in the median, sigma {SIGMA}; makespans in s"
    report(chosen, f"Heavy-tailed calls over {SLOTS} slots", ("workers", "makespan", "list", "ratio", "worst"), rows, figures, note)


if __name__ == "__main__":
    main()
