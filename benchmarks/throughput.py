"""Calls per second: 10,000 calls that do nothing, two slots, a plain loop of submit and result().

``busy_ratio`` is the same with a program that computes in pure Python between its submits and between its results, which keeps the
interpreter's lock from the manager's thread.  The CPU seconds of that computation are taken off the wall clock, so 1.0 means that the
calls cost as much as without it, less means that the computation gets in their way, more that part of it ran beside them.

Further parts: arguments and results of 1 KB each; eight workers of one slot each, beside a pool of eight processes; and ``mode="fork"``,
where each call is a process of its own.  ``--parts plain,fork`` runs some.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
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
#: Workers of the part with many.
WORKERS = 8


class Run(NamedTuple):
    """Seconds of one run: of the submits, of all, and the CPU seconds that the program itself computed."""

    submitting: float
    whole: float
    computing: float

    @property
    def calls_took(self) -> float:
        return self.whole - self.computing


#: Runs by side, and figures.
Found = tuple[dict[str, list[Run]], dict[str, float]]


def compute() -> float:
    """Pure Python, as a user's program would do it; gives its CPU seconds."""
    began = time.thread_time()
    total = 0
    for number in range(PIECE):
        total += number & 7
    return time.thread_time() - began


def one_run(submit: Submits, values: Sequence[Any], busy: bool = False) -> Run:
    """Submit calls with arguments of their own, then ask for each result."""
    computing = 0.0
    began = clock()
    futures: list[Any] = []
    for number, value in enumerate(values):
        futures.append(submit(value))
        if busy and number % GROUP == 0:
            computing += compute()
    submitted = clock()
    for number, future in enumerate(futures):
        check(future.result() == values[number])
        if busy and number % GROUP == 0:
            computing += compute()
    return Run(submitted - began, clock() - began, computing)


def numbers(calls: int) -> Iterator[Sequence[int]]:
    """Arguments of run after run, none twice."""
    return (range(first, first + calls) for first in range(0, 10**12, calls))


def kilobytes(calls: int) -> Iterator[Sequence[bytes]]:
    """The same with 1 KB each, made before the run."""
    return ([number.to_bytes(8, "little") * 128 for number in run] for run in numbers(calls))


def compare(chosen: argparse.Namespace, ours: Submits, pool: Submits, runs: Iterator[Sequence[Any]]) -> dict[str, list[Run]]:
    """Both sides in turns."""
    return in_turns(chosen.rounds, {"Windlass": lambda: one_run(ours, next(runs)), "process pool": lambda: one_run(pool, next(runs))})


def plain(chosen: argparse.Namespace, two: Submits, eight: Submits) -> Found:
    with windlass_side(echo) as manager:
        ours = windlass_submits(manager)
        warm(ours)
        runs = numbers(chosen.calls)
        found = in_turns(
            chosen.rounds,
            {
                "Windlass": lambda: one_run(ours, next(runs)),
                "process pool": lambda: one_run(two, next(runs)),
                "Windlass, busy program": lambda: one_run(ours, next(runs), busy=True),
                "process pool, busy program": lambda: one_run(two, next(runs), busy=True),
            },
        )
    seconds = {name: median(run.calls_took for run in of) for name, of in found.items()}
    return found, {
        "calls_per_s": round(chosen.calls / seconds["Windlass"]),
        "submit_per_s": round(chosen.calls / median(run.submitting for run in found["Windlass"])),
        "vs_process_pool": round(seconds["process pool"] / seconds["Windlass"], 2),
        "busy_ratio": round(seconds["Windlass"] / seconds["Windlass, busy program"], 2),
        "busy_vs_process_pool": round(seconds["process pool, busy program"] / seconds["Windlass, busy program"], 2),
    }


def one_kilobyte(chosen: argparse.Namespace, two: Submits, eight: Submits) -> Found:
    with windlass_side(echo) as manager:
        ours = windlass_submits(manager)
        warm(ours)
        found = compare(chosen, ours, two, kilobytes(chosen.calls))
    return named(found, "1 KB"), {"vs_process_pool_1kb": ratio(found)}


def workers(chosen: argparse.Namespace, two: Submits, eight: Submits) -> Found:
    with windlass_side(echo, pilots=WORKERS, cores=1) as manager:
        ours = windlass_submits(manager)
        warm(ours)
        found = compare(chosen, ours, eight, numbers(chosen.calls))
    return named(found, f"{WORKERS} workers"), {f"vs_process_pool_{WORKERS}_workers": ratio(found)}


def fork(chosen: argparse.Namespace, two: Submits, eight: Submits) -> Found:
    with windlass_side(echo, mode="fork") as manager:
        ours = windlass_submits(manager)
        warm(ours)
        runs = numbers(chosen.fork_calls)
        found = [one_run(ours, next(runs)) for _ in range(chosen.rounds)]
    return {'Windlass, mode="fork"': found}, {"fork_calls_per_s": round(chosen.fork_calls / median(run.whole for run in found))}


def ratio(found: dict[str, list[Run]]) -> float:
    """Our rate over the pool's."""
    pool, ours = (median(run.whole for run in found[name]) for name in ("process pool", "Windlass"))
    return round(pool / ours, 2)


def named(found: dict[str, list[Run]], part: str) -> dict[str, list[Run]]:
    return {f"{name}, {part}": runs for name, runs in found.items()}


PARTS: dict[str, Callable[[argparse.Namespace, Submits, Submits], Found]] = {
    "plain": plain,
    "1kb": one_kilobyte,
    "workers": workers,
    "fork": fork,
}


def main() -> None:
    chosen = arguments(__doc__, parts=list(PARTS), calls=10_000, fork_calls=2_000)
    rows: list[tuple[str, float, float | str, float]] = []
    figures: dict[str, float] = {}
    with ProcessPoolExecutor(SLOTS) as pool, ProcessPoolExecutor(WORKERS) as large_pool:
        two, eight = pool_submits(pool), pool_submits(large_pool)
        warm(two, eight)  # forks their processes before there are threads
        for part in chosen.parts:
            found, more = PARTS[part](chosen, two, eight)
            figures |= more
            calls = chosen.fork_calls if part == "fork" else chosen.calls
            for name, runs in found.items():
                computing = median(run.computing for run in runs)
                submits = "" if computing else calls / median(run.submitting for run in runs)
                rows.append((name, calls / median(run.calls_took for run in runs), submits, computing))
    note = f"{chosen.calls:,} calls that return their argument, {SLOTS} slots; busy: the CPU seconds computed are taken off"
    report(chosen, "Throughput", ("side", "calls/s", "submits/s", "computed s"), rows, figures, note)


if __name__ == "__main__":
    main()
