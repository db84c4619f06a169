"""Load: what a manager stands, part by part; each part says what must hold, and the program ends with status 1 when something does not.

calls      a million real calls through two slots, collected as they end: memory of program and pilot flat after the first tenth, the rate
           of the last tenth beside that of the second, of all beside that of short runs before and after; descriptors and processes
workers    1,000 workers connected (thin ones: real sessions over TLS): calls through all of them beside two, memory, cuts while the
           program holds the interpreter's lock for seconds
cancels    100,000 calls cancelled at once: how long it takes, and that a call submitted behind them is not held up
callbacks  a callback that sleeps: results of other calls come meanwhile
large      a result of 1 GB: the longest time that a small call takes while it comes
simulated  ten million calls through the manager's core with simulated workers that come and go (simulate.py's part "memory")

``--parts calls,cancels`` runs some.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil

import thin
import windlass
from common import SLOTS, cell, check, clock, echo, machine, median
from windlass import FunctionCall

HERE = Path(__file__).resolve().parent
#: Growth after warm-up that is allowed.
GROWTH = 0.05


class Part:
    """What one part has found: figures, and what does not hold."""

    def __init__(self) -> None:
        self.figures: dict[str, float | int] = {}
        self.violations: list[str] = []

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.violations.append(text)


def pilots() -> list[psutil.Process]:
    """All processes below this one."""
    return psutil.Process().children(recursive=True)


def resident(processes: list[psutil.Process]) -> int:
    total = 0
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total


def descriptors(processes: list[psutil.Process]) -> int:
    total = 0
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.num_fds()
    return total


@contextlib.contextmanager
def served(*functions: Callable[..., Any], **options: Any) -> Generator[windlass.Manager]:
    with windlass.Manager(**options) as manager, windlass.Factory(manager, "local", cores=SLOTS, max_pilots=1):
        manager.install_library("lib", *functions)
        manager.submit(FunctionCall("lib", functions[0].__name__, 1)).result()
        yield manager


def one_batch(manager: windlass.Manager, first: int, count: int) -> None:
    """Submit and collect; nothing of it is left."""
    futures = [manager.submit(FunctionCall("lib", "echo", one)) for one in range(first, first + count)]
    for one, future in enumerate(futures, first):
        check(future.result() == one)


def short_runs(manager: windlass.Manager, batch: int) -> list[float]:
    """Calls per second of some runs of one batch."""
    rates: list[float] = []
    for _ in range(5):
        began = clock()
        one_batch(manager, 0, batch)
        rates.append(batch / (clock() - began))
    return rates


def calls(chosen: argparse.Namespace) -> Part:
    part, batch = Part(), min(10_000, chosen.calls // 10)
    tenth = chosen.calls // 10 // batch * batch
    with served(echo) as manager:
        one_batch(manager, 0, batch)
        short = short_runs(manager, batch)
        me = [psutil.Process()]
        rates: list[float] = []
        program: list[int] = []
        pilot: list[int] = []
        files: list[int] = []
        processes: list[int] = []
        number = 0
        for _ in range(10):
            began = clock()
            for _ in range(tenth // batch):
                one_batch(manager, number, batch)
                number += batch
            rates.append(tenth / (clock() - began))
            gc.collect()
            program.append(resident(me))
            pilot.append(resident(pilots()))
            files.append(descriptors([*me, *pilots()]))
            processes.append(len(pilots()))
        short += short_runs(manager, batch)
    seconds = sum(tenth / rate for rate in rates)
    part.figures = {
        "calls": number,
        "calls_per_s": round(median(rates)),
        "last_rate_vs_second": round(rates[-1] / rates[1], 2),
        "vs_short_run": round(number / seconds / median(short), 2),
        "program_growth": round(max(program[1:]) / program[0] - 1, 3),
        "pilot_growth": round(max(pilot[1:]) / pilot[0] - 1, 3),
        "program_mb": round(program[-1] / 1e6),
        "descriptors_more": max(files[1:]) - files[0],
        "processes_more": max(processes[1:]) - processes[0],
    }
    part.expect(part.figures["program_growth"] <= GROWTH, "the program's memory grows")
    part.expect(part.figures["pilot_growth"] <= GROWTH, "the pilot's memory grows")
    part.expect(part.figures["descriptors_more"] <= 2 and part.figures["processes_more"] <= 0, "descriptors or processes are left")
    return part


def rate(manager: windlass.Manager, count: int) -> float:
    began = clock()
    futures = [manager.submit(FunctionCall("lib", "echo", one)) for one in range(count)]
    for one, future in enumerate(futures):
        check(future.result() == one)
    return count / (clock() - began)


def hold_the_lock(seconds: float) -> None:
    """One C call that never lets go of the interpreter's lock: a regular expression that backtracks."""
    size, began = 20, clock()
    while clock() - began < seconds:
        re.match(r"(a+)+$", "a" * size + "b")
        size += 1


def workers(chosen: argparse.Namespace) -> Part:
    part = Part()
    figures: dict[int, list[float]] = {2: [], chosen.workers: []}
    for count in figures:
        with windlass.Manager() as manager:
            manager.install_library("lib", echo)
            before, began = resident([psutil.Process()]), clock()
            with thin.crowd(Path(manager.pilot_file), count) as crowd:
                took = clock() - began
                for _ in range(6):
                    figures[count].append(rate(manager, 20_000))
                if count > 2:
                    per_worker = (resident([psutil.Process()]) - before) / count
                    hold_the_lock(chosen.hold)
                    after = rate(manager, 20_000)
                    gone = sum(not worker["connected"] for worker in manager.status()["workers"])
                    part.figures = {
                        "workers": count,
                        "all_connected_s": round(took, 1),
                        "kb_per_worker": round(per_worker / 1000),
                        "calls_per_s": round(median(figures[count][1:])),
                        "vs_two_workers": round(median(figures[count][1:]) / median(figures[2][1:]), 2),
                        "lock_held_s": chosen.hold,
                        "calls_per_s_afterwards": round(after),
                        "cuts": len(crowd.cuts),
                        "not_connected": gone,
                    }
    part.expect(not part.figures["cuts"] and not part.figures["not_connected"], "connections were cut")
    return part


def hold(gate: str) -> None:
    while not os.path.exists(gate):
        time.sleep(0.01)


def cancels(chosen: argparse.Namespace) -> Part:
    part = Part()
    gate = f"/tmp/windlass-load-{os.getpid()}"
    with served(echo, hold) as manager:
        running = [manager.submit(FunctionCall("lib", "hold", gate)) for _ in range(SLOTS)]
        while manager.stats.running < SLOTS:
            time.sleep(0.01)
        waiting = [manager.submit(FunctionCall("lib", "hold", gate)) for _ in range(chosen.cancels)]
        while manager.stats.waiting + manager.stats.running < chosen.cancels + SLOTS:
            time.sleep(0.01)
        began = clock()
        check(manager.cancel_all() == chosen.cancels + SLOTS)
        cancelling = clock() - began
        first = manager.submit(FunctionCall("lib", "echo", 7))
        check(first.result(60) == 7)
        part.figures = {
            "cancels": chosen.cancels,
            "cancelled_in_s": round(cancelling, 2),
            "next_call_s": round(clock() - began - cancelling, 2),
            "not_cancelled": sum(not future.cancelled() for future in [*waiting, *running]),
            "workers": sum(worker["connected"] for worker in manager.status()["workers"]),
        }
    part.expect(part.figures["not_cancelled"] == 0 and part.figures["workers"] == 1, "a call or the worker was lost")
    return part


def callbacks(chosen: argparse.Namespace) -> Part:
    part, stuck = Part(), threading.Event()
    with served(echo) as manager:
        manager.submit(FunctionCall("lib", "echo", 0)).add_done_callback(lambda future: stuck.wait())
        began = clock()
        figure = rate(manager, 20_000)
        part.figures = {"calls_per_s_beside_a_stuck_callback": round(figure), "seconds": round(clock() - began, 2)}
        part.expect(not stuck.is_set(), "the callback was not stuck")
        stuck.set()
    return part


def zeros(megabytes: int) -> Any:
    import numpy

    return numpy.zeros(megabytes << 17)


def large(chosen: argparse.Namespace) -> Part:
    part = Part()
    with served(echo, zeros) as manager:
        manager.submit(FunctionCall("lib", "zeros", 1)).result()
        quiet: list[float] = []
        beside: list[float] = []

        def one_small() -> float:
            began = clock()
            check(manager.submit(FunctionCall("lib", "echo", 3)).result() == 3)
            return clock() - began

        quiet = [one_small() for _ in range(300)]
        began = clock()
        big = manager.submit(FunctionCall("lib", "zeros", chosen.megabytes))
        while not big.done():
            beside.append(one_small())
        took = clock() - began
        check(big.result().nbytes == chosen.megabytes << 20)
        part.figures = {
            "megabytes": chosen.megabytes,
            "result_s": round(took, 2),
            "small_call_ms_quiet_longest": round(max(quiet) * 1000, 1),
            "small_call_ms_beside_median": round(median(beside) * 1000, 2),
            "small_call_ms_beside_longest": round(max(beside) * 1000, 1),
        }
    return part


def simulated(chosen: argparse.Namespace) -> Part:
    part = Part()
    words = [sys.executable, str(HERE / "simulate.py"), "--memory-only", "--memory-calls", str(chosen.simulated)]
    found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
    part.violations += found.pop("violations")
    part.figures = found
    part.expect(found.get("growth", 0.0) <= GROWTH, "the core's memory grows")
    return part


PARTS: dict[str, Callable[[argparse.Namespace], Part]] = {
    "calls": calls,
    "workers": workers,
    "cancels": cancels,
    "callbacks": callbacks,
    "large": large,
    "simulated": simulated,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="What a manager stands.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    for name, size, text in (
        ("calls", 1_000_000, "real calls"),
        ("workers", 1000, "connected workers"),
        ("cancels", 100_000, "calls cancelled at once"),
        ("megabytes", 1024, "size of the large result"),
        ("simulated", 10_000_000, "simulated calls"),
        ("hold", 8, "seconds for which the program holds the interpreter's lock"),
    ):
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{text} (default: %(default)s)")
    chosen = parser.parse_args()
    found: dict[str, Part] = {}
    for name in chosen.parts.split(","):
        found[name] = PARTS[name](chosen)
        if not chosen.json:
            print(f"{name}: " + "   ".join(f"{key} {cell(value)}" for key, value in found[name].figures.items()), flush=True)
            for text in found[name].violations:
                print(f"  does not hold: {text}", flush=True)
    violations = [f"{name}: {text}" for name, part in found.items() for text in part.violations]
    if chosen.json:
        figures = {name: part.figures for name, part in found.items()}
        print(json.dumps({"benchmark": "load", **figures, "violations": violations, "machine": machine()}))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
