"""Payload: arrays of 1 MB and 100 MB there and back, one at a time and several at once.

A figure is megabytes (10^6 bytes) of array per second of wall clock, the way there and the way back counted once together: an array of
1 MB that is back after 2 ms makes 500 MB/s.  Each array differs, and what comes back is compared in full after the clock has stopped.

With ``--tls 1`` arrays go over TLS, as between two hosts, beside bare blocking ``ssl`` (`bare_ssl.py`) with the same cipher: one stream,
and as many as there are slots.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import windlass
from bare_ssl import Streams, streams
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

MEGABYTE = 10**6


def arrays(size: int, count: int, seed: int) -> list[Any]:
    """Arrays of ``size`` bytes that differ from each other and from those of other rounds."""
    made: list[Any] = []
    for number in range(count):
        array = np.arange(size // 8, dtype=np.float64)
        array[0] = seed * 1_000 + number
        made.append(array)
    return made


def one_run(submit: Submits, size: int, count: int, at_once: int, seeds: Iterator[int]) -> float:
    """Megabytes per second."""
    sent = arrays(size, count, next(seeds))
    back: list[Any] = []
    began = clock()
    under_way: list[Any] = []
    for array in sent:
        if len(under_way) == at_once:
            back.append(under_way.pop(0).result())
        under_way.append(submit(array))
    back += [future.result() for future in under_way]
    took = clock() - began
    check(len(back) == count and all(np.array_equal(one, other) for one, other in zip(sent, back, strict=True)))
    return size * count / MEGABYTE / took


def hide_store(manager: windlass.Manager) -> None:
    """Take away the token by which a worker proves that it shares the manager's host: arrays then go over TLS, as to another host."""
    (manager._store.folder / ".token").unlink()  # pyright: ignore[reportPrivateUsage]


def bare_run(bare: Streams, size: int, count: int, at_once: int, seeds: Iterator[int]) -> float:
    """Megabytes per second."""
    return size * count / MEGABYTE / bare.seconds(arrays(size, count, next(seeds)), at_once)


def main() -> None:
    chosen = arguments(__doc__, small=100, large=4, tls=0)
    seeds = iter(range(1, 10**9))
    rows: list[tuple[object, ...]] = []
    figures: dict[str, object] = {}
    with ProcessPoolExecutor(SLOTS) as pool, contextlib.ExitStack() as more:
        processes = pool_submits(pool)
        warm(processes)
        bare: Streams | None = None
        if chosen.tls:
            folder = more.enter_context(tempfile.TemporaryDirectory(prefix="windlass-payload-"))
            bare = more.enter_context(streams(SLOTS, 100 * MEGABYTE, Path(folder)))
        with windlass_side(echo) as manager:
            if chosen.tls:
                hide_store(manager)
            ours = windlass_submits(manager)
            warm(ours)
            for label, size, count in (("1mb", MEGABYTE, chosen.small), ("100mb", 100 * MEGABYTE, chosen.large)):
                for way, at_once in (("serial", 1), ("pipelined", min(8, max(2, count // 2)))):
                    sides = {
                        "Windlass": partial(one_run, ours, size, count, at_once, seeds),
                        "pool": partial(one_run, processes, size, count, at_once, seeds),
                    }
                    if bare is not None:
                        sides["ssl"] = partial(bare_run, bare, size, count, 1 if at_once == 1 else SLOTS, seeds)
                    runs = in_turns(chosen.rounds, sides)
                    here, there = median(runs["Windlass"]), median(runs["pool"])
                    rows.append((f"{label.removesuffix('mb')} MB, {way}", here, there, here / there))
                    figures[f"mb_per_s_{label}_{way}"] = round(here)
                    figures[f"vs_process_pool_{label}_{way}"] = round(here / there, 2)
                    if bare is not None:
                        blocking = median(runs["ssl"])
                        rows[-1] = (*rows[-1], blocking, here / blocking)
                        figures[f"vs_ssl_{label}_{way}"] = round(here / blocking, 2)
    how = "over TLS" if chosen.tls else "by path on one host"
    note = f"arrays there and back, {how}, {SLOTS} slots; pipelined: up to 8 calls at once"
    columns = ("array", "Windlass MB/s", "process pool MB/s", "ratio", *(("blocking ssl MB/s", "ratio") if chosen.tls else ()))
    report(chosen, "Payload", columns, rows, figures, note)


if __name__ == "__main__":
    main()
