"""Connections: calls per second through 1,000 workers beside two, and how soon a new worker serves while the others are busy.

The workers are thin ones (`thin.py`): real sessions over real TLS, a few processes for all of them, with nothing behind that would cost
anything.  The program keeps ``--outstanding`` calls per worker under way and no more: it submits as results come.  Both managers and all
of their workers stay connected throughout, so that each round asks one after the other.  Every call does nothing, so no worker holds what
it has, and all that is measured is the way there and back; with 1,000 workers a message carries few calls, and its own cost is left.

``vs_two_workers`` compares the rates at the same number of calls per worker, ``vs_two_workers_full`` with two workers that have as many
calls under way as all the others together.  ``new_worker_s`` is from the moment a further worker begins to dial, while all others are busy
with calls of 0.1 s, until it has been given its first call.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import thin
import windlass
from common import Submits, arguments, check, clock, echo, in_turns, median, report, windlass_submits

#: Seconds of a call that holds a worker.
BUSY = 0.1


@contextlib.contextmanager
def manager_with(workers: int) -> Generator[tuple[windlass.Manager, thin.Crowd]]:
    """A manager whose workers are so many thin ones, all connected."""
    with windlass.Manager() as manager:
        manager.install_library("lib", echo)
        with thin.crowd(Path(manager.pilot_file), workers) as crowd:
            check(manager.submit(windlass.FunctionCall("lib", "echo", 1)).result() == 1)
            yield manager, crowd


def one_run(submit: Submits, calls: int, under_way: int, numbers: Iterator[float]) -> float:
    """Calls per second with at most so many under way."""
    waiting: deque[tuple[float, Any]] = deque()
    began = clock()
    for number in itertools.islice(numbers, calls):
        if len(waiting) == under_way:
            expected, future = waiting.popleft()
            check(future.result() == expected)
        waiting.append((number, submit(number)))
    for expected, future in waiting:
        check(future.result() == expected)
    return calls / (clock() - began)


def new_worker(manager: windlass.Manager, submit: Submits, workers: int, first: int) -> float:
    """Seconds from dialling to the first call of a worker that comes while all others are busy."""
    over = threading.Event()
    seconds = itertools.takewhile(lambda _: not over.is_set(), (BUSY + number * 1e-9 for number in itertools.count()))
    thread = threading.Thread(target=one_run, args=(submit, sys.maxsize, 2 * workers, seconds))
    with thin.crowd(Path(manager.pilot_file), 1, first=first, at_word=True) as late:
        thread.start()
        try:
            return late.join_now()
        finally:
            over.set()
            thread.join()


def main() -> None:
    chosen = arguments(__doc__, workers=1_000, outstanding=16, calls=50_000, newcomers=5)
    numbers: Iterator[int] = itertools.count()
    many = chosen.workers * chosen.outstanding
    with manager_with(2) as (two, few), manager_with(chosen.workers) as (all_of_them, crowd):
        to_two, to_all = windlass_submits(two), windlass_submits(all_of_them)
        one_run(to_all, 2 * many, many, numbers)  # each has what it needs
        one_run(to_two, 2 * many, many, numbers)
        runs = in_turns(
            chosen.rounds,
            {
                "two": lambda: one_run(to_two, chosen.calls, 2 * chosen.outstanding, numbers),
                "two, full": lambda: one_run(to_two, chosen.calls, many, numbers),
                "all": lambda: one_run(to_all, chosen.calls, many, numbers),
            },
        )
        joined = [new_worker(all_of_them, to_all, chosen.workers, chosen.workers + one) for one in range(chosen.newcomers)]
        cuts = [*few.cuts, *crowd.cuts]
    if cuts:
        raise SystemExit(f"{len(cuts)} connections were cut: {cuts[0]}")
    rate = {name: median(of) for name, of in runs.items()}
    rows = [
        ("2 workers", 2 * chosen.outstanding, rate["two"]),
        ("2 workers", many, rate["two, full"]),
        (f"{chosen.workers:,} workers", many, rate["all"]),
    ]
    figures = {
        "workers": chosen.workers,
        "calls_per_s": round(rate["all"]),
        "calls_per_s_two_workers": round(rate["two"]),
        "vs_two_workers": round(rate["all"] / rate["two"], 2),
        "vs_two_workers_full": round(rate["all"] / rate["two, full"], 2),
        "new_worker_s": round(median(joined), 3),
        "new_worker_longest_s": round(max(joined), 3),
    }
    note = f"{chosen.calls:,} calls that return their argument a run, {chosen.outstanding} under way per worker"
    report(chosen, "Connections", ("", "under way", "calls/s"), rows, figures, note)


if __name__ == "__main__":
    main()
