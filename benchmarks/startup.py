"""Start-up: from the start of a fresh program to its first result, and to its end, on a local pilot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from common import SLOTS, arguments, check, clock, in_turns, median, report

WINDLASS = f"""
import sys, windlass
with windlass.Executor("local", cores={SLOTS}) as pool:
    print(pool.submit(pow, int(sys.argv[1]), 2).result(), flush=True)
"""

PROCESS_POOL = f"""
import sys, concurrent.futures
with concurrent.futures.ProcessPoolExecutor({SLOTS}) as pool:
    print(pool.submit(pow, int(sys.argv[1]), 2).result(), flush=True)
"""

BARE = """
import sys
print(pow(int(sys.argv[1]), 2), flush=True)
"""


class Run(NamedTuple):
    """Seconds after the start of the program."""

    first_result: float
    end: float


def one_run(program: str, numbers: Iterator[int]) -> Run:
    """Run a program that prints the square of its argument, found by a call."""
    number = next(numbers)
    began = clock()
    with subprocess.Popen([sys.executable, "-c", program, str(number)], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        first = clock() - began
        running.wait(60)
        end = clock() - began
    check(running.returncode == 0 and int(line) == number**2)
    return Run(first, end)


def main() -> None:
    chosen = arguments(__doc__, rounds=7)
    numbers = iter(range(2, 10**9))
    sides = {"Windlass": WINDLASS, "process pool": PROCESS_POOL, "bare interpreter": BARE}
    runs = in_turns(chosen.rounds, {name: partial(one_run, program, numbers) for name, program in sides.items()})
    rows = [(name, median(run.first_result for run in of), median(run.end for run in of)) for name, of in runs.items()]
    figures = {
        "first_result_s": round(rows[0][1], 3),
        "program_s": round(rows[0][2], 3),
        "process_pool_first_result_s": round(rows[1][1], 3),
    }
    note = "the whole program: interpreter, imports, manager, factory, one local pilot, library, call; its end includes the pilot's"
    report(chosen, "Fresh program to first result", ("program", "first result s", "end s"), rows, figures, note)


if __name__ == "__main__":
    main()
