"""Hoisting: calls that need scipy.stats, with the import hoisted, in each call, and in an interpreter per call.

Three ways of the same calls: the library has imported scipy.stats before it forked its slots (hoisted); each call runs in a fresh fork of
a slot without it and imports it (fork); each call is a fresh interpreter (interpreter).  Every run includes the start of its library.
``overhead_vs_ideal`` is for calls that compute 10 ms each: the seconds they took, over the seconds of one import and of the computing
divided by the slots. ``overhead_vs_ideal_100us`` is the same for calls that compute 100 us, and so many that they take longer than the
import. ``cpu_vs_ideal`` and ``cpu_vs_ideal_100us`` are the CPU seconds of all processes over those of the import and of the computing:
where other work shares the machine, seconds tell of that work, and these of Windlass.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import psutil

import windlass
from common import SLOTS, arguments, check, clock, echo, in_turns, median, report

#: CPU seconds that a call of the second part computes, and one of the third.
COMPUTE, COMPUTE_LITTLE = 0.010, 0.0001

INTERPRETER = "import sys, scipy.stats; print(float(scipy.stats.norm.cdf(float(sys.argv[1]))))"
IMPORT = (
    "import time; began, cpu = time.perf_counter(), time.process_time(); import scipy.stats; "
    "print(time.perf_counter() - began, time.process_time() - cpu)"
)


def probability(x: float) -> float:
    """One value of a distribution: microseconds, once scipy.stats is there."""
    import scipy.stats

    normal: Any = scipy.stats.norm
    return float(normal.cdf(x))


def probability_slowly(x: float) -> float:
    """The same in 10 ms of CPU time."""
    import time

    end = time.thread_time() + 0.010
    import scipy.stats

    normal: Any = scipy.stats.norm
    result = float(normal.cdf(x))
    while time.thread_time() < end:
        pass
    return result


def probability_quickly(x: float) -> float:
    """The same in 100 us of CPU time, without what ``scipy.stats``, which is hoisted too, adds to the function: that is most of it."""
    import time

    end = time.thread_time() + 0.0001
    import scipy.special

    function: Any = scipy.special.ndtr
    result = float(function(x))
    while time.thread_time() < end:
        pass
    return result


def expected(x: float) -> float:
    """The normal distribution by the standard library, to check results with."""
    import math

    return 0.5 * math.erfc(-x / math.sqrt(2))


def inputs(count: int) -> list[float]:
    return [-3 + 6 * number / count for number in range(count)]


class Took(NamedTuple):
    """Seconds, and CPU seconds of all processes."""

    seconds: float
    cpu: float


class Runs:
    """One pilot, and a fresh library on it for each run."""

    def __init__(self, manager: windlass.Manager) -> None:
        self.manager = manager
        self.number = 0
        [worker] = manager.status()["workers"]
        self.worker = psutil.Process(worker["pid"])

    def cpu(self) -> dict[int, float]:
        """CPU seconds until now of the program (0) and of the pilot's processes."""
        found = {0: time.process_time()}
        for process in (self.worker, *self.worker.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        return found

    def run(self, function: Callable[[float], float], count: int, **library: Any) -> Took:
        """From installing the library to the last result."""
        self.number += 1
        name = f"lib{self.number}"
        xs = inputs(count)
        before, began = self.cpu(), clock()
        # the number makes each library's content differ, so that none meets a warm instance of an earlier one
        self.manager.install_library(name, function, env={"RUN": str(self.number)}, **library)
        futures = [self.manager.submit(windlass.FunctionCall(name, function.__name__, x)) for x in xs]
        results = [future.result() for future in futures]
        took = clock() - began
        # of those that live: the last library's processes, which may have been there before, are gone or have done nothing since
        cpu = sum(seconds - before.get(pid, 0.0) for pid, seconds in self.cpu().items())
        self.manager.remove_library(name)
        check(all(abs(result - expected(x)) < 1e-9 for x, result in zip(xs, results, strict=True)))
        return Took(took, cpu)


def interpreters(count: int) -> Took:
    """Calls that are programs, as many at a time as there are slots."""
    xs = inputs(count)

    def call(x: float) -> float:
        return float(subprocess.run([sys.executable, "-c", INTERPRETER, str(x)], stdout=subprocess.PIPE, text=True, check=True).stdout)

    began = clock()
    with ThreadPoolExecutor(SLOTS) as threads:
        results = list(threads.map(call, xs))
    took = clock() - began
    check(all(abs(result - expected(x)) < 1e-9 for x, result in zip(xs, results, strict=True)))
    return Took(took, 0.0)  # their CPU is not asked for


def import_alone() -> Took:
    """What the import alone takes, in a fresh interpreter whose files the system has cached."""
    seconds, cpu = subprocess.run([sys.executable, "-c", IMPORT], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return Took(float(seconds), float(cpu))


def main() -> None:
    chosen = arguments(__doc__, calls=200, slow_calls=16, quick_calls=20_000)
    import_alone()  # reads the files
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=SLOTS, max_pilots=1):
        manager.install_library("warm", echo)
        check(manager.submit(windlass.FunctionCall("warm", "echo", 1)).result() == 1)
        runs = Runs(manager)
        few = chosen.slow_calls
        found = in_turns(
            chosen.rounds,
            {
                "hoisted": lambda: runs.run(probability, chosen.calls),
                "fork": lambda: runs.run(probability, few, imports=[], mode="fork"),
                "interpreter": lambda: interpreters(few),
                "import": import_alone,
                "10 ms calls, hoisted": lambda: runs.run(probability_slowly, chosen.calls),
                "100 us calls, hoisted": lambda: runs.run(probability_quickly, chosen.quick_calls, imports=["scipy.stats"]),
            },
        )
    took = {name: median(one.seconds for one in values) for name, values in found.items()}
    cpu = {name: median(one.cpu for one in values) for name, values in found.items()}
    each = {"hoisted": took["hoisted"] / chosen.calls, "fork": took["fork"] / few, "interpreter": took["interpreter"] / few}
    ideal = took["import"] + COMPUTE * chosen.calls / SLOTS
    ideal_quick = took["import"] + COMPUTE_LITTLE * chosen.quick_calls / SLOTS
    rows = [(name, seconds * 1e3, seconds * chosen.calls) for name, seconds in each.items()]
    rows.append(("10 ms calls, hoisted", took["10 ms calls, hoisted"] / chosen.calls * 1e3, took["10 ms calls, hoisted"]))
    rows.append(("10 ms calls, ideal", ideal / chosen.calls * 1e3, ideal))
    quick = took["100 us calls, hoisted"]
    rows.append((f"100 us calls, hoisted ({chosen.quick_calls:,})", quick / chosen.quick_calls * 1e3, quick))
    rows.append((f"100 us calls, ideal ({chosen.quick_calls:,})", ideal_quick / chosen.quick_calls * 1e3, ideal_quick))
    figures = {
        "import_s": round(took["import"], 3),
        "ratio_fork": round(each["fork"] / each["hoisted"], 1),
        "ratio_interpreter": round(each["interpreter"] / each["hoisted"], 1),
        "overhead_vs_ideal": round(took["10 ms calls, hoisted"] / ideal, 3),
        "overhead_vs_ideal_100us": round(quick / ideal_quick, 3),
        "cpu_vs_ideal": round(cpu["10 ms calls, hoisted"] / (cpu["import"] + COMPUTE * chosen.calls), 3),
        "cpu_vs_ideal_100us": round(cpu["100 us calls, hoisted"] / (cpu["import"] + COMPUTE_LITTLE * chosen.quick_calls), 3),
    }
    note = f"{chosen.calls} calls ({few} where each call imports, scaled), {SLOTS} slots, start of the library included"
    report(chosen, "Import hoisting (scipy.stats)", ("way", "ms per call", f"s for {chosen.calls} calls"), rows, figures, note)


if __name__ == "__main__":
    main()
