"""Where the microseconds of a call go: CPU time by part, for calls that do nothing, that compute 100 us, and that compute 10 ms.

CPU time of each thread and process is read from /proc before and after, so that the figures do not depend on what else the machine does
(but for cold caches).  Parts: the program's thread (submit and result), the manager's threads, the worker, its slots.  What the calls
compute, by their own clock of CPU time, is taken off the slots' part.  Switches are voluntary context switches: how often a part has gone
to sleep, for want of work or of its turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

import windlass
from common import SLOTS, arguments, check, in_turns, median, report, windlass_side

PARTS = ("program", "manager", "worker", "slots")
#: Kinds of calls: CPU microseconds that each computes.
KINDS = (0, 100, 10_000)
#: Columns of the table, and what the keys of the figures begin with.
NAMES = {0: "no-op", 100: "100 us", 10_000: "10 ms"}


def burn(microseconds: int) -> float:
    """Compute so long; gives the CPU seconds that it took."""
    import time

    if not microseconds:
        return 0.0
    began = time.thread_time()
    end = began + microseconds * 1e-6
    now = began
    while now < end:
        now = time.thread_time()
    return now - began


class Spent(NamedTuple):
    """CPU seconds and voluntary switches."""

    cpu: float
    switches: int


def of_thread(task: Path) -> Spent:
    """What a thread has used until now. The kernel's own count, in nanoseconds, where /proc has it."""
    switches = 0
    for line in (task / "status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            switches = int(line.split()[1])
    return Spent(int((task / "schedstat").read_text().split()[0]) * 1e-9, switches)


def together(tasks: Sequence[Path]) -> Spent:
    every = [of_thread(task) for task in tasks]
    return Spent(sum(one.cpu for one in every), sum(one.switches for one in every))


def tasks_of(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def parts(worker: int) -> dict[str, Spent]:
    """What each part has used until now; ``worker`` is its process id."""
    main = Path(f"/proc/self/task/{threading.main_thread().native_id}")
    here = [task for task in Path("/proc/self/task").iterdir() if task.name != main.name]
    slots = [child for child in psutil.Process(worker).children(recursive=True) if child.name().startswith("windlass-slot")]
    return {
        "program": of_thread(main),
        "manager": together(here),
        "worker": together(tasks_of(worker)),
        "slots": together([task for slot in slots for task in tasks_of(slot.pid)]),
    }


def one_run(manager: windlass.Manager, worker: int, calls: int, microseconds: int) -> Mapping[str, Spent]:
    """Microseconds and switches per call, by part."""
    before = parts(worker)
    futures = [manager.submit(windlass.FunctionCall("lib", "burn", microseconds)) for _ in range(calls)]
    computed = 0.0
    for future in futures:
        took = future.result()
        check(took >= 0.999e-6 * microseconds)
        computed += took
    time.sleep(0.05)  # the last acknowledgements
    after = parts(worker)
    spent: dict[str, Spent] = {}
    for part in PARTS:
        cpu = after[part].cpu - before[part].cpu - (computed if part == "slots" else 0.0)
        spent[part] = Spent(cpu / calls * 1e6, after[part].switches - before[part].switches)
    return spent


def main() -> None:
    chosen = arguments(__doc__, calls=20_000)
    counts = {0: chosen.calls, 100: chosen.calls // 2, 10_000: max(1, chosen.calls // 100)}
    with windlass_side(burn) as manager:
        check(all(manager.submit(windlass.FunctionCall("lib", "burn", 1)).result() for _ in range(200)))
        [worker] = [worker["pid"] for worker in manager.status()["workers"]]
        runs = in_turns(chosen.rounds, {NAMES[kind]: partial(one_run, manager, worker, counts[kind], kind) for kind in KINDS})
    figures: dict[str, float] = {}
    rows: list[tuple[object, ...]] = []
    for part in PARTS:
        row: list[object] = [part]
        for kind in KINDS:
            cpu = median(one[part].cpu for one in runs[NAMES[kind]])
            switches = median(one[part].switches / counts[kind] for one in runs[NAMES[kind]])
            key = NAMES[kind].replace(" ", "").replace("-", "")
            figures[f"{part}_us_{key}"] = round(cpu, 2)
            row += [cpu, switches]
        rows.append(tuple(row))
    for kind in KINDS:
        key = NAMES[kind].replace(" ", "").replace("-", "")
        figures[f"us_{key}"] = round(sum(figures[f"{part}_us_{key}"] for part in PARTS), 2)
    columns = ["part"]
    for kind in KINDS:
        columns += [f"us, {NAMES[kind]}", "switches"]
    report(chosen, "CPU per call, what it computes taken off", columns, rows, figures, f"{counts} calls, {SLOTS} slots")


if __name__ == "__main__":
    main()
