"""What a manager at rest costs: the CPU of a program whose manager, factory and pilots have nothing to do.

A person leaves a program open on a login node, where administrators watch. Measured without pilots, and with one that is connected and
idle:
user and system time of the whole program in percent of one core, and of the worker with all its processes. The figures do not depend on
what else the machine does, as CPU time is counted and no wall time.
"""

from __future__ import annotations

import time
from functools import partial

import psutil

import windlass
from common import arguments, check, in_turns, median, report

#: A new worker makes a key for its own certificate soon after its start; that is not rest.
SETTLED_SECONDS = 2.0


def double(number: int) -> int:
    return 2 * number


def cpu_seconds(process: psutil.Process, below: bool) -> float:
    """User and system time of a process, and of those below it."""
    all_of_them = [process, *process.children(recursive=True)] if below else [process]
    return sum(times.user + times.system for times in (one.cpu_times() for one in all_of_them))


def percent(process: psutil.Process, seconds: float, *, below: bool = False) -> float:
    """Of one core, over so many seconds."""
    before, began = cpu_seconds(process, below), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_seconds(process, below) - before) / (time.monotonic() - began)


def without_pilots(seconds: float) -> tuple[float, float]:
    """The program's part; there is no worker."""
    with windlass.Manager() as manager:
        manager.install_library("lib", double)
        return percent(psutil.Process(), seconds), 0.0


def with_a_pilot(seconds: float) -> tuple[float, float]:
    """The program's part and the worker's."""
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1, max_pilots=1, min_pilots=1):
        manager.install_library("lib", double)
        check(manager.submit(windlass.FunctionCall("lib", "double", 21)).result(timeout=60) == 42)
        [worker] = manager.status()["workers"]
        time.sleep(SETTLED_SECONDS)
        return percent(psutil.Process(), seconds / 2), percent(psutil.Process(worker["pid"]), seconds / 2, below=True)


def main() -> None:
    chosen = arguments(__doc__, rounds=3, seconds=20)
    sides = {"no pilots": partial(without_pilots, chosen.seconds), "one idle pilot": partial(with_a_pilot, chosen.seconds)}
    runs = in_turns(chosen.rounds, sides)
    rows = [(name, median(one[0] for one in found), median(one[1] for one in found)) for name, found in runs.items()]
    figures = {
        "manager_cpu_percent_no_pilots": round(rows[0][1], 3),
        "manager_cpu_percent": round(rows[1][1], 3),
        "worker_cpu_percent": round(rows[1][2], 3),
    }
    note = "user and system time in percent of one core; the program has a manager, a factory and nothing to do"
    report(chosen, f"At rest, {chosen.seconds} s a round", ("", "program %", "worker %"), rows, figures, note)


if __name__ == "__main__":
    main()
