"""Latency: one call at a time, from submit to its result in the program's hands.

Three ways in turns: ``result()``, ``await`` in a coroutine of `asyncio.run`, and ``result()`` of the standard library's process pool.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ProcessPoolExecutor

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


def one_run(submit: Submits, base: int, calls: int) -> list[float]:
    """Seconds of each call."""
    took: list[float] = []
    for number in range(base, base + calls):
        began = clock()
        result = submit(number).result()
        took.append(clock() - began)
        check(result == number)
    return took


def one_run_awaiting(submit: Submits, base: int, calls: int) -> list[float]:
    """The same, each future awaited."""

    async def run() -> list[float]:
        took: list[float] = []
        for number in range(base, base + calls):
            began = clock()
            result = await submit(number)
            took.append(clock() - began)
            check(result == number)
        return took

    return asyncio.run(run())


def main() -> None:
    chosen = arguments(__doc__, calls=1_000)
    with ProcessPoolExecutor(SLOTS) as pool:
        processes = pool_submits(pool)
        warm(processes)
        with windlass_side(echo) as manager:
            ours = windlass_submits(manager)
            warm(ours)
            bases = iter(range(0, 10**12, chosen.calls))
            runs = in_turns(
                chosen.rounds,
                {
                    "Windlass": lambda: one_run(ours, next(bases), chosen.calls),
                    "Windlass, await": lambda: one_run_awaiting(ours, next(bases), chosen.calls),
                    "process pool": lambda: one_run(processes, next(bases), chosen.calls),
                },
            )
    half = {name: median(quantile(run, 0.5) for run in of) * 1e6 for name, of in runs.items()}
    most = {name: median(quantile(run, 0.99) for run in of) * 1e6 for name, of in runs.items()}
    figures = {
        "p50_us": round(half["Windlass"]),
        "p99_us": round(most["Windlass"]),
        "vs_process_pool": round(half["Windlass"] / half["process pool"], 2),
        "p99_vs_process_pool": round(most["Windlass"] / most["process pool"], 2),
        "await_vs_result": round(half["Windlass, await"] / half["Windlass"], 2),
    }
    note = f"{chosen.calls:,} calls a round, one after another; ratios are of times (less is better), of p50 unless they say p99"
    report(chosen, "Latency of one call", ("side", "p50 us", "p99 us"), [(name, half[name], most[name]) for name in runs], figures, note)


if __name__ == "__main__":
    main()
