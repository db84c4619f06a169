"""Calls per second: 10,000 calls that do nothing, two slots, a plain loop of submit and result().

``busy_ratio`` is the same with a program that computes in pure Python between its submits and between its results, which keeps the
interpreter's lock from the manager's thread.  The CPU seconds of that computation are taken off the wall clock, so 1.0 means that the
calls cost as much as without it, less means that the computation gets in their way, more that part of it ran beside them.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from common import (
    SLOTS,
    Submits,
    arguments,
    check,
    clock,
    echo,
    in_turns,
    median,
    pool_submits,
    report,
    warm,
    windlass_side,
    windlass_submits,
)

#: Calls between two pieces of computation, and iterations of a piece: some milliseconds, about as long as the interpreter lets a
#: thread keep its lock; all pieces together take about as long as the calls.
GROUP, PIECE = 500, 100_000


class Run(NamedTuple):
    """Seconds of one run: of the submits, of all, and the CPU seconds that the program itself computed."""

    submitting: float
    whole: float
    computing: float

    @property
    def calls_took(self) -> float:
        return self.whole - self.computing


def compute() -> float:
    """Pure Python, as a user's program would do it; gives its CPU seconds."""
    began = time.thread_time()
    total = 0
    for number in range(PIECE):
        total += number & 7
    return time.thread_time() - began


def one_run(submit: Submits, base: int, calls: int, busy: bool) -> Run:
    """Submit calls with arguments of their own, then ask for each result."""
    computing = 0.0
    began = clock()
    futures: list[Any] = []
    for number in range(base, base + calls):
        futures.append(submit(number))
        if busy and number % GROUP == 0:
            computing += compute()
    submitted = clock()
    for number, future in enumerate(futures, base):
        check(future.result() == number)
        if busy and number % GROUP == 0:
            computing += compute()
    return Run(submitted - began, clock() - began, computing)


def main() -> None:
    chosen = arguments(__doc__, calls=10_000)
    with ProcessPoolExecutor(SLOTS) as pool:
        processes = pool_submits(pool)
        warm(processes)  # forks its processes before there are threads
        with windlass_side(echo) as manager:
            ours = windlass_submits(manager)
            warm(ours)
            bases = iter(range(0, 10**12, chosen.calls))
            runs = in_turns(
                chosen.rounds,
                {
                    "Windlass": lambda: one_run(ours, next(bases), chosen.calls, busy=False),
                    "process pool": lambda: one_run(processes, next(bases), chosen.calls, busy=False),
                    "Windlass, busy program": lambda: one_run(ours, next(bases), chosen.calls, busy=True),
                    "process pool, busy program": lambda: one_run(processes, next(bases), chosen.calls, busy=True),
                },
            )
    seconds = {name: median(run.calls_took for run in of) for name, of in runs.items()}
    submitting = {name: median(run.submitting for run in of) for name, of in runs.items()}
    computing = {name: median(run.computing for run in of) for name, of in runs.items()}
    rows = [
        (name, chosen.calls / seconds[name], chosen.calls / submitting[name] if not computing[name] else "", computing[name])
        for name in runs
    ]
    figures = {
        "calls_per_s": round(chosen.calls / seconds["Windlass"]),
        "submit_per_s": round(chosen.calls / submitting["Windlass"]),
        "vs_process_pool": round(seconds["process pool"] / seconds["Windlass"], 2),
        "busy_ratio": round(seconds["Windlass"] / seconds["Windlass, busy program"], 2),
        "busy_vs_process_pool": round(seconds["process pool, busy program"] / seconds["Windlass, busy program"], 2),
    }
    note = f"{chosen.calls:,} calls that return their argument, {SLOTS} slots; busy: the CPU seconds computed are taken off"
    report(chosen, "Throughput", ("side", "calls/s", "submits/s", "computed s"), rows, figures, note)


if __name__ == "__main__":
    main()
