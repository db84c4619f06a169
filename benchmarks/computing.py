"""Beside a program that computes: what Windlass does while another thread of the program computes in Python all the time.

Such a thread has the interpreter's lock nearly always, and whoever reads a socket has to get it from there.  Each figure is measured with
that thread and without it, in turns: one call at a time (beside the standard library's process pool), calls with 8 KB there and back,
arrays over TLS as between two hosts, and workers that join (thin ones, `thin.py`) and what calls they serve then.  ``computed`` is how much
of its work the thread gets done meanwhile, beside the same thread alone.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import thin
import windlass
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
    quantile,
    report,
    warm,
    windlass_side,
    windlass_submits,
)
from payload import MEGABYTE, arrays, hide_store

#: What the thread does between two looks at whether it should end.
PIECE = 20_000
#: Seconds for which it computes alone.
ALONE = 0.5


class Computing:
    """A thread of the program that computes in Python; ``pieces`` is how many it has done, in so many ``seconds``."""

    def __init__(self) -> None:
        self.pieces = 0
        self.seconds = 0.0
        self._over = threading.Event()

    @contextlib.contextmanager
    def __call__(self) -> Generator[None]:
        self._over.clear()
        thread = threading.Thread(target=self._compute)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _compute(self) -> None:
        began, total = clock(), 0
        while not self._over.is_set():
            for number in range(PIECE):
                total += number & 7
            self.pieces += 1
        self.seconds += clock() - began

    @property
    def rate(self) -> float:
        return self.pieces / self.seconds


def one_by_one(submit: Submits, calls: int, numbers: Iterator[int]) -> list[float]:
    """Seconds of each call."""
    took: list[float] = []
    for _ in range(calls):
        number = next(numbers)
        began = clock()
        check(submit(number).result() == number)
        took.append(clock() - began)
    return took


def all_at_once(submit: Submits, values: list[Any], same: Callable[[Any, Any], bool]) -> float:
    """Seconds until all are back."""
    began = clock()
    futures = [submit(value) for value in values]
    back = [future.result() for future in futures]
    took = clock() - began
    check(all(same(one, other) for one, other in zip(values, back, strict=True)))
    return took


def joining(workers: int, calls: int) -> tuple[float, float]:
    """Seconds until so many workers are connected, from the start of their processes on; and of so many calls through them."""
    with windlass.Manager() as manager:
        manager.install_library("lib", echo)
        began = clock()
        with thin.crowd(Path(manager.pilot_file), workers) as crowd:
            joined = clock() - began
            took = all_at_once(windlass_submits(manager), list(range(calls)), lambda one, other: one == other)
        if crowd.cuts:
            raise SystemExit(f"{len(crowd.cuts)} connections were cut: {crowd.cuts[0]}")
    return joined, took


def same_array(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other))


def main() -> None:
    chosen = arguments(__doc__, rounds=3, calls=300, small=2_000, arrays=20, workers=1_000, through=20_000)
    numbers, seeds = count(), count(1)
    alone, beside = Computing(), Computing()
    with alone():
        time.sleep(ALONE)

    def both(work: Callable[[], Any]) -> tuple[list[Any], list[Any]]:
        """With the thread and without it, in turns."""

        def busy() -> Any:
            with beside():
                return work()

        runs = in_turns(chosen.rounds, {"quiet": work, "busy": busy})
        return runs["quiet"], runs["busy"]

    rows: list[tuple[object, ...]] = []
    figures: dict[str, object] = {}
    with ProcessPoolExecutor(SLOTS) as pool, windlass_side(echo) as manager:
        hide_store(manager)  # before the first worker comes
        ours, theirs = windlass_submits(manager), pool_submits(pool)
        warm(ours, theirs)
        for label, submit in (("process pool", theirs), ("Windlass", ours)):
            quiet, busy = [
                median(quantile(run, 0.5) for run in side) * 1e6 for side in both(partial(one_by_one, submit, chosen.calls, numbers))
            ]
            rows.append((f"one call at a time, {label}: p50 us", quiet, busy, busy / quiet))
            if label == "Windlass":
                figures |= {"p50_us": round(quiet), "p50_us_busy": round(busy)}
                figures["p50_busy_vs_process_pool"] = round(busy / float(rows[0][2]), 2)  # type: ignore[arg-type]
        kilobytes = [os.urandom(8_000) for _ in range(chosen.small)]
        quiet, busy = (
            len(kilobytes) / median(side) for side in both(partial(all_at_once, ours, kilobytes, lambda one, other: one == other))
        )
        rows.append(("8 KB there and back: calls/s", quiet, busy, busy / quiet))
        figures |= {"calls_per_s_8kb": round(quiet), "calls_per_s_8kb_busy": round(busy), "busy_ratio_8kb": round(busy / quiet, 2)}
        for megabytes in (1, 10):
            each = max(4, chosen.arrays // megabytes)

            def moved(size: int = megabytes * MEGABYTE, each: int = each) -> float:
                return all_at_once(ours, arrays(size, each, next(seeds)), same_array)

            quiet, busy = (megabytes * each / median(side) for side in both(moved))
            rows.append((f"{megabytes} MB over TLS there and back: MB/s", quiet, busy, busy / quiet))
            figures |= {f"mb_per_s_{megabytes}mb_busy": round(busy), f"busy_ratio_{megabytes}mb": round(busy / quiet, 2)}
    sides = both(partial(joining, chosen.workers, chosen.through))
    (quiet, quiet_calls), (busy, busy_calls) = ((median(one[0] for one in side), median(one[1] for one in side)) for side in sides)
    rows.append((f"{chosen.workers:,} workers join: s", quiet, busy, busy / quiet))
    rows.append((f"{chosen.through:,} calls through them: s", quiet_calls, busy_calls, busy_calls / quiet_calls))
    figures |= {"workers": chosen.workers, "join_s": round(quiet, 2), "join_s_busy": round(busy, 2)}
    figures["busy_ratio_workers"] = round(quiet_calls / busy_calls, 2)
    figures["computed"] = round(beside.rate / alone.rate, 2)
    note = "busy: a thread of the program computes in Python all the time; computed: how much of it that thread gets done, beside it alone"
    report(chosen, "Beside a program that computes", ("", "quiet", "busy", "busy / quiet"), rows, figures, note)


if __name__ == "__main__":
    main()
