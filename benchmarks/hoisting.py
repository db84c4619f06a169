"""Hoisting: calls that need scipy.stats, with the import hoisted, in each call, and in an interpreter per call.

Three ways of the same calls: the library has imported scipy.stats before it forked its slots (hoisted); each call runs in a fresh fork of
a slot without it and imports it (fork); each call is a fresh interpreter (interpreter).  Every run includes the start of its library.
``overhead_vs_ideal`` is for calls that compute 10 ms each: the seconds they took, over the seconds of one import and of the computing
divided by the slots.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import windlass
from common import SLOTS, arguments, check, clock, echo, in_turns, median, report

#: CPU seconds that a call of the second part computes.
COMPUTE = 0.010

INTERPRETER = "import sys, scipy.stats; print(float(scipy.stats.norm.cdf(float(sys.argv[1]))))"
IMPORT = "import time; began = time.perf_counter(); import scipy.stats; print(time.perf_counter() - began)"


def probability(x: float) -> float:
    """One value of a distribution: microseconds, once scipy.stats is there."""
    import scipy.stats

    normal: Any = scipy.stats.norm
    return float(normal.cdf(x))


def probability_slowly(x: float) -> float:
    """The same after 10 ms of CPU time."""
    import time

    import scipy.stats

    end = time.thread_time() + 0.010
    while time.thread_time() < end:
        pass
    normal: Any = scipy.stats.norm
    return float(normal.cdf(x))


def expected(x: float) -> float:
    """The normal distribution by the standard library, to check results with."""
    import math

    return 0.5 * math.erfc(-x / math.sqrt(2))


def inputs(count: int) -> list[float]:
    return [-3 + 6 * number / count for number in range(count)]


class Runs:
    """One pilot, and a fresh library on it for each run."""

    def __init__(self, manager: windlass.Manager) -> None:
        self.manager = manager
        self.number = 0

    def seconds(self, function: Callable[[float], float], count: int, **library: Any) -> float:
        """From installing the library to the last result."""
        self.number += 1
        name = f"lib{self.number}"
        xs = inputs(count)
        began = clock()
        # the number makes each library's content differ, so that none meets a warm instance of an earlier one
        self.manager.install_library(name, function, env={"RUN": str(self.number)}, **library)
        futures = [self.manager.submit(windlass.FunctionCall(name, function.__name__, x)) for x in xs]
        results = [future.result() for future in futures]
        took = clock() - began
        self.manager.remove_library(name)
        check(all(abs(result - expected(x)) < 1e-9 for x, result in zip(xs, results, strict=True)))
        return took


def interpreters(count: int) -> float:
    """Seconds of calls that are programs, as many at a time as there are slots."""
    xs = inputs(count)

    def call(x: float) -> float:
        return float(subprocess.run([sys.executable, "-c", INTERPRETER, str(x)], stdout=subprocess.PIPE, text=True, check=True).stdout)

    began = clock()
    with ThreadPoolExecutor(SLOTS) as threads:
        results = list(threads.map(call, xs))
    took = clock() - began
    check(all(abs(result - expected(x)) < 1e-9 for x, result in zip(xs, results, strict=True)))
    return took


def import_seconds() -> float:
    """What the import alone takes, in a fresh interpreter whose files the system has cached."""
    return float(subprocess.run([sys.executable, "-c", IMPORT], stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    chosen = arguments(__doc__, calls=200, slow_calls=16)
    import_seconds()  # reads the files
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=SLOTS, max_pilots=1):
        manager.install_library("warm", echo)
        check(manager.submit(windlass.FunctionCall("warm", "echo", 1)).result() == 1)
        runs = Runs(manager)
        few = chosen.slow_calls
        found = in_turns(
            chosen.rounds,
            {
                "hoisted": lambda: runs.seconds(probability, chosen.calls),
                "fork": lambda: runs.seconds(probability, few, imports=[], mode="fork"),
                "interpreter": lambda: interpreters(few),
                "import": import_seconds,
                "10 ms calls, hoisted": lambda: runs.seconds(probability_slowly, chosen.calls),
            },
        )
    took = {name: median(values) for name, values in found.items()}
    each = {"hoisted": took["hoisted"] / chosen.calls, "fork": took["fork"] / few, "interpreter": took["interpreter"] / few}
    ideal = took["import"] + COMPUTE * chosen.calls / SLOTS
    rows = [(name, seconds * 1e3, seconds * chosen.calls) for name, seconds in each.items()]
    rows.append(("10 ms calls, hoisted", took["10 ms calls, hoisted"] / chosen.calls * 1e3, took["10 ms calls, hoisted"]))
    rows.append(("10 ms calls, ideal", ideal / chosen.calls * 1e3, ideal))
    figures = {
        "import_s": round(took["import"], 3),
        "ratio_fork": round(each["fork"] / each["hoisted"], 1),
        "ratio_interpreter": round(each["interpreter"] / each["hoisted"], 1),
        "overhead_vs_ideal": round(took["10 ms calls, hoisted"] / ideal, 2),
    }
    note = f"{chosen.calls} calls ({few} where each call imports, scaled), {SLOTS} slots, start of the library included"
    report(chosen, "Import hoisting (scipy.stats)", ("way", "ms per call", f"s for {chosen.calls} calls"), rows, figures, note)


if __name__ == "__main__":
    main()
