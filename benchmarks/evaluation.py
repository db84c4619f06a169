"""The poster's evaluation: imports in each call or hoisted, the environment on a shared file system or in the worker's cache.

Theory of operation
-------------------
The grid is {imports in each call, imports hoisted per library} x {environment read from the shared file system, environment in the worker's
cache} x libraries of growing weight x function times of 0.1 s and powers of two from 1 s to 64 s.  A function imports its library and
sleeps for its time, so that two cores can stand for the slots of several nodes.  Imports in each call are mode ``fork``: each call has a
process of its own, in which nothing is imported yet.

The shared file system is a real FUSE mount per simulated node with a set delay for each metadata operation, which counts what it is asked
(`slowfs`); a point of the grid is a run of its own on fresh nodes (`evaluation_cell`).  Seconds are told for ``--calls`` calls: the first
ones as measured, the others at the rate of those that were run: all of them where the function is short and the imports are hoisted, else
one or two for each slot.  *Ideal* is one import, by an interpreter on a fresh node
(the quicker of two), and the functions' time divided by the slots.

``--short`` takes the lightest and the heaviest library and times up to 4 s; nothing else is scaled, as imports cost what they cost.

What was measured, two tables and the figure (`evaluation_figure.py`, with matplotlib) go to ``--output``.  Needs root and /dev/fuse.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Final

from common import machine, report
from evaluation_cell import Run, Setting, Site, installed, present
from evaluation_results import ENVIRONMENTS, IMPORTS, Point, Results
from slowfs import DELAY, VALID, missing

TIMES: Final = (0.1, 1, 2, 4, 8, 16, 32, 64)
SHORT_TIMES: Final = TIMES[:4]
#: Libraries that are not Windlass's own dependencies, in words for an error.
TO_INSTALL: Final = "pip install numpy scipy pandas scikit-learn"
OUTPUT: Final = Path(__file__).resolve().parent.parent / "docs" / "evaluation"


def work(number: int, module: str, seconds: float) -> tuple[int, str]:
    """The function: imports, and takes its time."""
    import importlib
    import os
    import time

    importlib.import_module(module)
    time.sleep(seconds)
    return number, os.uname().nodename


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--short", action="store_true", help="the lightest and the heaviest library, times up to 4 s")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each point; figures are medians (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="for tests: a larger archive, sooner packed, and each import alone only once")
    parser.add_argument(
        "--libraries", metavar="NAMES", help="these distributions only, with commas (default: those of the grid that are installed)"
    )
    parser.add_argument("--times", metavar="SECONDS", help="the function times, with commas")
    parser.add_argument("--calls", type=int, default=200, help="what seconds are told for (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=2, help="simulated nodes, of two slots each; at least 2 (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=DELAY, help="seconds of a metadata operation (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep what --output has measured, and add what it has not")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where results, tables and figure go (default: docs/evaluation)")
    return parser.parse_args()


def chosen_libraries(chosen: argparse.Namespace) -> list[str]:
    there = present()
    named = chosen.libraries.split(",") if chosen.libraries else there
    absent = [name for name in named if not installed(name)]
    if absent or not named:
        raise SystemExit(f"not installed: {', '.join(absent or ['all libraries'])}; {TO_INSTALL}")
    return [there[0], there[-1]] if chosen.short and not chosen.libraries and len(there) > 1 else named


def chosen_times(chosen: argparse.Namespace) -> list[float]:
    return [float(one) for one in chosen.times.split(",")] if chosen.times else list(SHORT_TIMES if chosen.short else TIMES)


def grid(libraries: list[str], times: list[float]) -> Iterator[Setting]:
    """The settings in the order of their runs: what is there when a long evaluation is stopped is whole up to some time."""
    for seconds in times:
        for library in libraries:
            for environment in ENVIRONMENTS:
                for imports in IMPORTS:
                    yield Setting(library, imports, environment, seconds)


def calls_of(setting: Setting, calls: int, slots: int) -> int:
    """How many calls are run after the first ones: all of them if they are quick, else one or two for each slot."""
    if setting.imports == "library" and setting.seconds < 1:
        return calls
    return slots * (2 if setting.seconds <= 1 else 1)


def measure(site: Site, settings: list[Setting], chosen: argparse.Namespace, results: Results) -> None:
    """Fill the results, and write them after each run. Rounds are turns: every setting once, then every setting again."""
    nodes = chosen.nodes
    for library in dict.fromkeys(setting.library for setting in settings):
        for environment in ENVIRONMENTS:
            if f"{library} {environment}" in results.import_s:
                continue
            took = results.import_s[f"{library} {environment}"] = min(
                site.import_seconds(library, environment) for _ in range(1 if chosen.quick else 2)
            )
            say(f"import {library}, {environment}: {took:.2f} s")
    heaviest, shortest = chosen_libraries(chosen)[-1], chosen_times(chosen)[0]
    for _ in range(chosen.rounds):
        for environment in ENVIRONMENTS:
            setting = Setting(heaviest, "library", environment, shortest)
            if any((point.setting.library, point.setting.environment) == (heaviest, environment) for point in results.single):
                continue
            results.single.append(Point(setting, told(setting, site.run(setting, calls=2, nodes=1))))
            results.save(chosen.output / "results.json")
        for setting in settings:
            run = site.run(setting, calls=calls_of(setting, results.calls, 2 * nodes), nodes=nodes)
            results.points.append(Point(setting, told(setting, run)))
            results.save(chosen.output / "results.json")


def begin(chosen: argparse.Namespace, site: Site) -> Results:
    """Results to fill: those of an earlier evaluation of the same kind, or none yet."""
    fresh = Results(chosen.delay, VALID, chosen.calls, machine(), site.archive.size)
    path = chosen.output / "results.json"
    if not chosen.resume or not path.exists():
        return fresh
    earlier = Results.load(path)
    if (earlier.delay, earlier.valid, earlier.calls) != (fresh.delay, fresh.valid, fresh.calls):
        raise SystemExit(f"{path} has results for another --delay or number of --calls; say the same, or another --output")
    earlier.archive_bytes = fresh.archive_bytes  # of what is there now
    return earlier


def say(line: str) -> None:
    """What happens; the output is for what came of it."""
    print(line, file=sys.stderr, flush=True)


def told(setting: Setting, run: Run) -> Run:
    say(
        f"{setting.library}, imports in {setting.imports}, environment in {setting.environment}, {setting.seconds:g} s, {run.nodes} nodes:"
        f" start {run.start_s:.1f} s, {run.start.total} operations; first {run.first_s:.1f} s, {run.first.total};"
        f" {run.rest_calls} more {run.rest_s:.1f} s, {run.rest.total}"
    )
    return run


def draw(output: Path) -> str:
    """Draw the figure if matplotlib is there. What to tell of it."""
    program = Path(__file__).with_name("evaluation_figure.py")
    if util.find_spec("matplotlib") is None:
        return f"the figure is not drawn: pip install matplotlib, and then  python {os.path.relpath(program)} {output}"
    subprocess.run([sys.executable, str(program), str(output)], check=True)
    return f"results, tables and figure are in {output}"


def end(_number: int, _frame: object) -> None:
    """At SIGTERM, as at Ctrl-C, nodes and their disks go."""
    sys.exit(143)


def main() -> None:
    chosen = command_line()
    if missing():
        raise SystemExit(f"no slow file system here: {missing()}")
    if chosen.nodes < 2:
        raise SystemExit(f"--nodes {chosen.nodes}: what a further node costs shows with two or more")
    libraries = chosen_libraries(chosen)
    times = chosen_times(chosen)
    chosen.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, end)
    with tempfile.TemporaryDirectory(prefix="windlass-evaluation-") as folder:
        # A resumed evaluation has the environment that it had, so all that are there are in it.
        packed = [*present(), *libraries] if chosen.resume else libraries
        site = Site(Path(folder), work, delay=chosen.delay, libraries=packed, quick=chosen.quick)
        results = begin(chosen, site)
        have = {point.setting for point in results.points}
        measure(site, [one for one in grid(libraries, times) if one not in have], chosen, results)
    (chosen.output / "tables.md").write_text(results.tables())
    note = draw(chosen.output)
    rows = [
        (
            f"{library}, {ENVIRONMENTS[environment]}, {IMPORTS[imports]}",
            results.seconds(setting := Setting(library, imports, environment, times[0])),
            results.ideal(library, environment, times[0]),
            round(results.median(setting, lambda run: run.per_node)),
            results.median(setting, lambda run: run.per_call),
        )
        for library in libraries
        for environment in ENVIRONMENTS
        for imports in IMPORTS
    ]
    title = f"Evaluation: {chosen.calls} calls of {times[0]:g} s, {chosen.nodes} nodes, {chosen.delay * 1e3:g} ms for a metadata operation"
    report(
        chosen, title, ("library, environment, imports", "s", "ideal s", "operations per node", "per call"), rows, results.figures(), note
    )


if __name__ == "__main__":
    main()
