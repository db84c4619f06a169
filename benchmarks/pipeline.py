"""Pipeline: a two-stage pipeline whose intermediate results stay on workers, and what a file among the arguments costs a call.

The first part makes an array of 10 MB in each call of the first stage and sums it in a call of the second, with ``keep="worker"`` and
without; ``manager_mb`` are the megabytes (10^6 bytes) of results that came to the manager with it, by wire or by path.  The second part is
the loop of ``benchmarks/throughput.py`` with one common declared file among the arguments, and without.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import windlass
from common import SLOTS, arguments, check, clock, in_turns, median, report, windlass_side

MEGABYTE = 10**6


def make(number: int, size: int) -> Any:
    """An array that no other call makes."""
    array = np.zeros(size // 8)
    array[0] = number
    return array


def first_of(array: Any) -> tuple[int, int]:
    """What `make` was given, and the array's bytes."""
    return int(array[0]), array.nbytes


def echo(number: int, path: Any = None) -> int:
    """The call that does nothing, with a file or without."""
    return number


def came_in(manager: windlass.Manager) -> int:
    """Bytes of results that the manager has taken in."""
    return int(manager.status()["transfers"]["object_bytes_in"])


def pipeline(manager: windlass.Manager, pairs: int, size: int, keep: bool) -> tuple[float, float]:
    """Seconds, and megabytes that came to the manager."""
    before, began = came_in(manager), clock()
    options = {"keep": "worker"} if keep else {}
    seconds: list[Any] = []
    for number in range(pairs):
        # The intermediate's future is dropped here, so the result goes when its consumer has ended.
        stage = manager.submit(windlass.FunctionCall("lib", "make", number, size).with_options(**options))  # type: ignore[arg-type]
        seconds.append(manager.submit(windlass.FunctionCall("lib", "first_of", stage)))
        del stage
    check([future.result() for future in seconds] == [(number, size) for number in range(pairs)])
    return clock() - began, (came_in(manager) - before) / MEGABYTE


def dispatch(manager: windlass.Manager, calls: int, *more: Any) -> float:
    """Calls per second."""
    began = clock()
    futures = [manager.submit(windlass.FunctionCall("lib", "echo", number, *more)) for number in range(calls)]
    for number, future in enumerate(futures):
        check(future.result() == number)
    return calls / (clock() - began)


def main() -> None:
    chosen = arguments(__doc__, pairs=500, megabytes=10, calls=10_000)
    size = chosen.megabytes * MEGABYTE
    with windlass_side(make, first_of, echo) as manager:
        file = manager.declare_buffer(b"x" * 1000)
        dispatch(manager, 100, file)
        rates: dict[str, Callable[[], float]] = {
            "plain": partial(dispatch, manager, chosen.calls),
            "files": partial(dispatch, manager, chosen.calls, file),
        }
        found = in_turns(chosen.rounds, rates)
        check(pipeline(manager, 4, size, True)[1] == 0)
        ways = {
            "kept": partial(pipeline, manager, chosen.pairs, size, True),
            "by manager": partial(pipeline, manager, chosen.pairs, size, False),
        }
        ran = in_turns(1, ways)
    plain, files = median(found["plain"]), median(found["files"])
    (kept_seconds, kept_mb), (other_seconds, other_mb) = ran["kept"][0], ran["by manager"][0]
    moved = chosen.pairs * chosen.megabytes
    figures: dict[str, object] = {
        "moved_mb": moved,
        "manager_mb": round(kept_mb, 3),
        "manager_share": round(kept_mb / moved, 5),
        "pipeline_s": round(kept_seconds, 4),
        "pipeline_by_manager_s": round(other_seconds, 4),
        "by_manager_mb": round(other_mb, 1),
        "calls_per_s": round(plain),
        "calls_with_file_per_s": round(files),
        "files_vs_plain": round(files / plain, 2),
    }
    rows: list[tuple[object, ...]] = [
        ("results kept on workers", f"{kept_seconds:.2f} s", f"{kept_mb:.1f} MB through the manager"),
        ("results by way of the manager", f"{other_seconds:.2f} s", f"{other_mb:.1f} MB through the manager"),
        ("calls", f"{plain:,.0f}/s", ""),
        ("calls with one common file", f"{files:,.0f}/s", f"{files / plain:.2f} x"),
    ]
    note = f"{chosen.pairs} pairs of calls with {chosen.megabytes} MB between them; {SLOTS} slots"
    report(chosen, "Pipeline", ("what", "took or rate", "and"), rows, figures, note)


if __name__ == "__main__":
    main()
