"""Latency: one call at a time, from submit to its result in the program's hands."""

from __future__ import annotations

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
                    "process pool": lambda: one_run(processes, next(bases), chosen.calls),
                },
            )
    rows: list[tuple[str, float, float]] = []
    for name, of in runs.items():
        rows.append((name, median(quantile(run, 0.5) for run in of) * 1e6, median(quantile(run, 0.99) for run in of) * 1e6))
    figures = {"p50_us": round(rows[0][1]), "p99_us": round(rows[0][2]), "vs_process_pool": round(rows[0][1] / rows[1][1], 2)}
    note = f"{chosen.calls:,} calls a round, one after another; vs_process_pool compares the p50 (less is better)"
    report(chosen, "Latency of one call", ("side", "p50 us", "p99 us"), rows, figures, note)


if __name__ == "__main__":
    main()
