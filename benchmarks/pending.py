"""Waiting calls: what 100,000 of them cost the program in memory, and how fast they can be handed in, one by one and by ``map``.

Each run is a program of its own, so that memory freed by an earlier one is not used again.  It submits while nothing can run, reads its
resident memory before and after, then lets all calls run and checks every result.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import windlass
from common import SLOTS, Submits, arguments, check, clock, echo, in_turns, median, pool_submits, report, windlass_submits


def resident() -> int:
    """Bytes of this process that are in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell a process its resident memory")


def hand_in(submit: Submits, calls: int) -> tuple[list[Any], dict[str, float]]:
    """Submit and measure; the futures and the figures."""
    before, began = resident(), clock()
    futures = [submit(number) for number in range(calls)]
    took = clock() - began
    return futures, {"bytes_per_call": (resident() - before) / calls, "submit_per_s": calls / took}


def run_map(calls: int) -> dict[str, float]:
    """An executor's ``map`` that keeps all of them ahead, and so submits them at once."""
    with windlass.Manager() as manager, windlass.Executor(None, manager=manager) as pool:
        first = pool.submit(echo, -1)
        began = clock()
        results = pool.map(echo, range(calls), buffersize=calls)
        took = clock() - began
        with windlass.Factory(manager, "local", cores=SLOTS, max_pilots=1):
            check(first.result() == -1)
            for number, result in enumerate(results):
                check(result == number)
    return {"map_submit_per_s": calls / took}


def run_windlass(calls: int) -> dict[str, float]:
    with windlass.Manager() as manager:
        manager.install_library("lib", echo)
        submit = windlass_submits(manager)
        first = submit(-1)  # what the first call loads is not what a waiting call costs
        futures, figures = hand_in(submit, calls)
        with windlass.Factory(manager, "local", cores=SLOTS, max_pilots=1):
            check(first.result() == -1)
            for number, future in enumerate(futures):
                check(future.result() == number)
    return figures


def run_pool(calls: int) -> dict[str, float]:
    """The process pool has no way to wait without its processes, so calls run meanwhile."""
    with ProcessPoolExecutor(SLOTS) as pool:
        submit = pool_submits(pool)
        check(submit(-1).result() == -1)
        futures, figures = hand_in(submit, calls)
        for number, future in enumerate(futures):
            check(future.result() == number)
    return figures


def in_own_program(side: str, calls: int) -> dict[str, float]:
    ran = subprocess.run([sys.executable, __file__, "--one", side, str(calls)], stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(ran.stdout)
    return figures


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        side, calls = sys.argv[2], int(sys.argv[3])
        print(json.dumps({"windlass": run_windlass, "map": run_map, "pool": run_pool}[side](calls)))
        return
    chosen = arguments(__doc__, calls=100_000)
    runs = in_turns(
        chosen.rounds,
        {
            "Windlass": lambda: in_own_program("windlass", chosen.calls),
            "Windlass, map": lambda: in_own_program("map", chosen.calls),
            "process pool": lambda: in_own_program("pool", chosen.calls),
        },
    )
    mapped = median(run["map_submit_per_s"] for run in runs.pop("Windlass, map"))
    rows: list[tuple[str, float | str, float]] = [
        (name, median(run["bytes_per_call"] for run in of), median(run["submit_per_s"] for run in of)) for name, of in runs.items()
    ]
    rows.append(("Windlass, map", "", mapped))
    ours, theirs = (median(run["bytes_per_call"] for run in runs[name]) for name in ("Windlass", "process pool"))
    figures = {
        "bytes_per_call": round(ours),
        "submit_per_s": round(median(run["submit_per_s"] for run in runs["Windlass"])),
        "map_submit_per_s": round(mapped),
        "vs_process_pool_bytes": round(ours / theirs, 2),
    }
    note = f"{chosen.calls:,} calls with an integer each; resident memory of the whole program, futures and all"
    report(chosen, "Waiting calls", ("side", "bytes/call", "submits/s"), rows, figures, note)


if __name__ == "__main__":
    main()
