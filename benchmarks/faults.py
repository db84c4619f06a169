"""The fault matrix: every part of Windlass is hit by every fault that has a meaning for it, while calls with checkable results run.

Theory of operation
-------------------
For each cell (`faults_matrix`) a stage is set (`faults_stage`), and the user's program (`faults_program`) submits its calls to two pilots
of two slots.  When a fifth of them has begun, the cell's blow falls.  The program waits for all its calls and closes, and then the books
must balance: no call is lost or fails, no result is wrong, none is delivered twice, and no process and no file is left.

``seconds until work goes on`` is the time from the fault to the delivery of the first result of a call that *started* after it; where
only one of several slots or pilots is hit, the others answer for that.  ``until all that was hit ended`` is the time to the delivery of
the last result of a call that ran when the fault fell: with a fault that lasts some seconds that is at least these.

``pause`` is the longest time without any result after the fault, the end of the run included.

Times are short: a heartbeat of 0.25 s, silence after 1 s, reconnect_grace and manager_timeout of 8 s (constructor settings of `Manager`;
1 s of grace in the cells that say so), pilots that get 1 s of grace.  Retries and losses of a call are bounded at 20.

With root, small disks, network namespaces and memory cgroups are used; all of it in a mount namespace of the matrix's own.  What the
machine does not give is listed as "not here" with the reason.  Exit status 1 when a cell breaks its promise.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from common import machine
from faults_blows import may_limit_memory
from faults_matrix import CELLS, RESUMED, Cell
from faults_network import may_make_hosts
from faults_program import Program, read_ledger
from faults_scenes import SCENES, start_factory
from faults_stage import Stage, own_namespace, staged
from windlass.testing import missing_programs

#: The short form: the most telling cells that need little time.
SHORT: Final = (
    "slot / SIGKILL",
    "zygote / SIGKILL",
    "worker / SIGKILL",
    "manager / SIGKILL (of the program)",
    "network link / half-open connection (proxy)",
)
CALLS: Final = 10_000
#: Seconds that a call takes on average; longer when they are so few that the work would be over before the fault is.
SECONDS: Final = 0.002
LEAST_WORK: Final = 5.0
#: The blow falls when this share of the calls has begun.
SHARE: Final = 0.2
#: Seconds that the first calls may take to begin.
BEGIN_SECONDS: Final = 30.0


@dataclass(slots=True)
class Outcome:
    """What a cell came to. ``state``: "kept", "broken", "n/a", "not here"."""

    cell: str
    state: str
    text: str
    calls: int = 0
    lost: int = 0
    failed: int = 0
    wrong: int = 0
    twice: int = 0
    #: Attempts beyond the first of each call.
    again: int = 0
    closed: int = 0
    fault_s: float = 0.0
    goes_on_s: float | None = None
    hit_ended_s: float | None = None
    pause_s: float | None = None
    processes_left: list[str] = field(default_factory=list[str])
    files_left: list[str] = field(default_factory=list[str])
    violations: list[str] = field(default_factory=list[str])
    seconds: float = 0.0


def run_cell(cell: Cell, calls: int, folder: Path) -> Outcome:
    """Set the stage, let the blow fall, look at what came of it."""
    began = time.monotonic()
    options: dict[str, Any] = {"calls": calls, "seconds": max(SECONDS, LEAST_WORK / calls), "seed": len(cell.name), **dict(cell.program)}
    with staged(folder, options) as stage:
        with SCENES[cell.scene](stage):
            end = time.monotonic() + BEGIN_SECONDS
            while stage.begun() < SHARE * calls:
                if time.monotonic() > end or stage.running["program"].poll() is not None:
                    raise RuntimeError(f"{cell.name}: {stage.begun()} calls have begun; {stage.tail('program')}")
                time.sleep(0.005)
            fault_at = time.monotonic()
            assert cell.blow is not None
            cell.blow(stage)
            mended_at = time.monotonic()
            while stage.running["program"].poll() is None and time.monotonic() < mended_at + stage.program.patience + 60:
                time.sleep(0.02)
                if "factory" in stage.running and stage.running["factory"].poll() is not None:
                    stage.end("factory")
                    start_factory(stage)  # as whatever looks after services would
            for name in ("program", "factory", "manager"):
                stage.end(name)
            processes, files = stage.left()
        outcome = judge(cell, stage, fault_at, processes, files)
        outcome.fault_s = round(mended_at - fault_at, 2)
        outcome.seconds = round(time.monotonic() - began, 1)
        return outcome


def judge(cell: Cell, stage: Stage, fault_at: float, processes: Sequence[str], files: Sequence[str]) -> Outcome:
    """Put the program's books beside the ledger."""
    program = stage.program
    outcome = Outcome(cell.name, "kept", cell.text, program.calls, processes_left=list(processes), files_left=list(files))
    if not program.found.exists():
        outcome.violations.append(f"the program has left no books: {stage.tail('program')}")
        outcome.state, outcome.lost = "broken", program.calls
        return outcome
    found = json.loads(program.found.read_text())
    delivered = {int(number): at for number, at in found["delivered"].items()}
    starts = read_ledger(program.ledger)
    runs = Counter(start.call for start in starts)
    later: list[float] = []
    hit: list[float] = []
    for struck in stage.strikes or [fault_at]:
        after = [delivered[start.call] for start in starts if start.at > struck and delivered.get(start.call, 0.0) >= start.at]
        later += [min(after) - struck] if after else []
        hit += [delivered[start.call] - struck for start in starts if start.at <= struck < delivered.get(start.call, 0.0)]
    outcome.lost, outcome.failed = len(found["lost"]), len(found["failed"])
    outcome.wrong, outcome.twice, outcome.closed = len(found["wrong"]), len(found["twice"]), found["closed"]
    outcome.again = sum(runs.values()) - len(runs)
    outcome.goes_on_s = round(max(later), 3) if later else None
    outcome.hit_ended_s = round(max(hit), 3) if hit else None
    ends = sorted([min(stage.strikes, default=fault_at), *(at for at in delivered.values() if at > min(stage.strikes, default=fault_at))])
    outcome.pause_s = round(max((later - at for at, later in itertools.pairwise(ends)), default=0.0), 3)
    must_be_empty = {
        "calls are lost": found["lost"],
        "calls failed": [f"{number}: {text}" for number, text in found["failed"].items()],
        "results are wrong": found["wrong"],
        "results were delivered twice": found["twice"],
        "calls never ran and have a result": [number for number in delivered if number not in runs],
        "calls ran again, though their sessions outlived it": [outcome.again] if RESUMED in cell.text and outcome.again else [],
        "futures were closed": [found["closed"]] if found["closed"] and not cell.closes else [],
        "processes are left": list(processes),
        "files are left": list(files),
        "no call that started after the fault has a result": [] if later else [0],
    }
    outcome.violations = [f"{text}: {len(whom)}: {', '.join(map(str, whom[:3]))}" for text, whom in must_be_empty.items() if whom]
    outcome.state = "broken" if outcome.violations else "kept"
    return outcome


# ---------------------------------------------------------------- which cells


def missing(cell: Cell, why_not: dict[str, str]) -> str:
    """Why a cell cannot be run on this machine; "": it can."""
    return "; ".join(why_not[need] for need in cell.needs.split() if why_not[need])


def look_around() -> dict[str, str]:
    """What this machine lacks, by what cells may need."""
    import os

    programs = missing_programs()
    return {
        "root": "" if os.getuid() == 0 else "small disks need root",
        "hosts": may_make_hosts(),
        "memory": may_limit_memory(),
        "slurm": f"Slurm is not here: {', '.join(programs)}" if programs else "",
    }


def chosen_cells(patterns: Sequence[str], short: bool) -> list[Cell]:
    """Cells whose names match one of the patterns (fnmatch; a plain word matches anywhere in the name)."""
    names = [pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*" for pattern in patterns]
    return [
        cell
        for cell in CELLS
        if (not short or cell.name in SHORT) and (not names or any(fnmatch.fnmatchcase(cell.name, name) for name in names))
    ]


# ---------------------------------------------------------------- telling


COLUMNS: Final = ("cell", "", "lost", "failed", "wrong", "twice", "again", "fault s", "goes on s", "hit ended s", "pause s", "left")


def row(outcome: Outcome) -> list[str]:
    if outcome.state in ("n/a", "not here"):
        return [outcome.cell, outcome.state, outcome.text.removeprefix("n/a: ")]
    left = f"{len(outcome.processes_left)} + {len(outcome.files_left)}"
    counts = [str(count) for count in (outcome.lost, outcome.failed, outcome.wrong, outcome.twice, outcome.again)]
    times = ["-" if at is None else f"{at:.2f}" for at in (outcome.fault_s, outcome.goes_on_s, outcome.hit_ended_s, outcome.pause_s)]
    return [outcome.cell, outcome.state, *counts, *times, left]


def table(outcomes: Sequence[Outcome]) -> str:
    """The matrix as rows of text."""
    rows = [list(COLUMNS), *(row(outcome) for outcome in outcomes)]
    widths = [max(len(line[at]) for line in rows if len(line) == len(COLUMNS) or at < 2) for at in range(len(COLUMNS))]
    lines: list[str] = []
    for line in rows:
        first = [text.ljust(width) for text, width in zip(line[:2], widths, strict=False)]
        rest = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=False)] if len(line) == len(COLUMNS) else line[2:]
        lines.append("  " + "  ".join([*first, *rest]).rstrip())
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--cells", action="append", default=[], metavar="PATTERN", help="only cells whose names match, as in 'worker / *'")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of each cell (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="only the most telling cells, for the tests")
    parser.add_argument("--list", action="store_true", help="all cells and what they promise; nothing is run")
    parser.add_argument("--keep", metavar="FOLDER", help="leave logs, ledgers and books of each cell here")
    chosen = parser.parse_args()
    cells = chosen_cells(chosen.cells, chosen.short)
    if chosen.list:
        for cell in cells:
            print(f"{cell.name}\n    {cell.text}")
        return 0
    own_namespace()
    why_not = look_around()
    outcomes: list[Outcome] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as temporary:
        base = Path(chosen.keep or temporary)
        for number, cell in enumerate(cells):
            lacks = missing(cell, why_not)
            if cell.blow is None or lacks:
                outcome = Outcome(cell.name, "n/a" if cell.blow is None else "not here", lacks or cell.text)
            else:
                try:
                    outcome = run_cell(cell, chosen.calls, base / f"{number:02d}")
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    outcome = Outcome(cell.name, "broken", cell.text, violations=[f"the cell could not be run: {error!r}"])
            outcomes.append(outcome)
            print(f"{outcome.seconds:6.1f} s  {'  '.join(row(outcome))}", file=sys.stderr, flush=True)
            for violation in outcome.violations:
                print(f"          {violation}", file=sys.stderr, flush=True)
    broken = [outcome for outcome in outcomes if outcome.state == "broken"]
    seconds = round(time.monotonic() - began)
    if chosen.json:
        figures = {"cells": [asdict(outcome) for outcome in outcomes], "broken": len(broken), "seconds": seconds}
        print(json.dumps({"benchmark": "faults", "calls": chosen.calls, **figures, "machine": machine()}))
    else:
        kept = sum(outcome.state == "kept" for outcome in outcomes)
        print(f"fault matrix: {chosen.calls:,} calls per cell\n{table(outcomes)}")
        print(f"  {kept} cells kept, {len(broken)} broken, {len(outcomes) - kept - len(broken)} without a meaning or not here; {seconds} s")
    return 1 if broken else 0


__all__ = ["Program", "judge", "main", "run_cell"]

if __name__ == "__main__":
    sys.exit(main())
