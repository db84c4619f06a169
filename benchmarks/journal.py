"""What a journal costs, and what it gives: calls per second without one, with one, and of calls that a journal has the results of.

The same 10,000 calls as in throughput.py. Two managers run in one program, one with a journal, each with a pilot of two slots; they take
turns. Then the journal is opened by a third manager, without pilots, which is asked for all of it again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import windlass
from common import SLOTS, Submits, arguments, clock, echo, in_turns, median, report, warm, windlass_submits
from throughput import numbers, one_run


def main() -> None:
    chosen = arguments(__doc__, rounds=9, calls=10_000)
    base = Path(os.environ.get("WINDLASS_JOURNALS", tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix="windlass-journal-", dir=base))
    try:
        with contextlib.ExitStack() as opened:
            sides: dict[str, Submits] = {}
            for name, journal in (("without", None), ("with a journal", folder / "journal")):
                manager = opened.enter_context(windlass.Manager(journal=journal))
                opened.enter_context(windlass.Factory(manager, "local", cores=SLOTS, max_pilots=1))
                manager.install_library("lib", echo)
                sides[name] = windlass_submits(manager)
            warm(*sides.values())
            bases = {name: numbers(chosen.calls) for name in sides}

            def run(name: str) -> Callable[[], float]:
                return lambda: one_run(sides[name], next(bases[name])).whole

            runs = in_turns(chosen.rounds, {name: run(name) for name in sides})
        size = (folder / "journal" / "log").stat().st_size
        began = clock()
        with windlass.Manager(journal=folder / "journal") as manager:
            opening = clock() - began
            manager.install_library("lib", echo)
            submit = windlass_submits(manager)
            again_of = numbers(chosen.calls)
            again = [one_run(submit, next(again_of)).whole for _ in range(chosen.rounds)]
    finally:
        shutil.rmtree(folder)
    seconds = {name: median(of) for name, of in runs.items()}
    calls = chosen.calls * chosen.rounds
    figures = {
        "calls_per_s": round(chosen.calls / seconds["with a journal"]),
        "cost": round(1 - seconds["without"] / seconds["with a journal"], 3),
        "bytes_per_call": round(size / calls),
        "found_per_s": round(chosen.calls / median(again)),
        "open_s_per_million": round(opening / calls * 1e6, 2),
    }
    rows = [(name, chosen.calls / seconds[name]) for name in runs] + [("found in the journal", chosen.calls / median(again))]
    report(chosen, "Journal", ("side", "calls/s"), rows, figures, f"{chosen.calls:,} calls that return their argument, {SLOTS} slots")


if __name__ == "__main__":
    main()
