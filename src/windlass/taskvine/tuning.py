"""``Manager.tune``: which of TaskVine's parameters have a meaning here, and why the others have none.

All names that TaskVine's code or manual has are known; others are refused with the near ones, for TaskVine returns -1 and programs do
not look.
"""

from __future__ import annotations

from typing import Final

from windlass.errors import UnknownName
from windlass.manager.call import read_number

#: Those with a meaning, and what they are at first.
MEANT: Final = {"hungry-minimum": 10.0, "hungry-minimum-factor": 2.0, "wait-for-workers": 0.0}

_LOOP = "nothing waits for wait(): the manager is a thread that sends and receives all the time"
_TRANSFERS = "transfers run beside each other, are taken up again where they were cut, and come from another source when one is slow"
_TEMPS = "a result that is lost with its worker is made again when somebody needs it"
_SIZES = "a task that says nothing has one core and its share of the memory"
_LIBRARY = "a library that cannot start says why at once, and its calls fail with that text"
_LOST = "a worker whose connection is cut is noticed at once, a silent one after silence= seconds: windlass.taskvine.Manager(silence=30)"

#: Why the others have none.
UNMEANT: Final = {
    "attempt-schedule-depth": "tasks are queued by what they need, and no queue is searched",
    "category-steady-n-tasks": "memory grows with a task that runs out of it, at once",
    "clean-redundant-replicas": "workers make room by themselves",
    "default-transfer-rate": _TRANSFERS,
    "disconnect-slow-worker-factor": "tasks that are queued behind a long one are taken back; give tasks a time_max",
    "disconnect-slow-workers-factor": "tasks that are queued behind a long one are taken back; give tasks a time_max",
    "disk-proportion-available-to-task": "disk is no resource of tasks; a worker's cache has a bound of its own",
    "enforce-worker-eviction-interval": "benchmarks/faults.py ends workers on purpose",
    "file-source-max-transfers": "one worker reads a source, the others read from it",
    "force-proportional-resources": _SIZES,
    "force-proportional-resources-whole-tasks": _SIZES,
    "immediate-recovery": _TEMPS,
    "keepalive-interval": _LOST,
    "keepalive-timeout": _LOST,
    "large-task-check-interval": "a task that no pool can ever run is refused when it is submitted",
    "load-from-shared-filesystem": "windlass.Manager.declare_shared(path) is read where it is",
    "long-timeout": _TRANSFERS,
    "max-library-retries": _LIBRARY,
    "max-new-workers": _LOOP,
    "max-retrievals": _LOOP,
    "max-task-stdout-storage": "8 MiB of what a task writes come back whole, of more beginning and end: let it write more to a file",
    "max-workers": "the factory's max_workers says how many there are",
    "min-transfer-timeout": _TRANSFERS,
    "monitor-interval": "memory is looked at as often as it grows fast",
    "option-blocklist-slow-workers-timeout": "slow workers are not blocked",
    "asynchrony-multiplier": "queues at workers are as long as measured durations want",
    "perf-log-interval": "`windlass status` says how things stand now",
    "prefer-dispatch": _LOOP,
    "proportional-resources": _SIZES,
    "proportional-whole-tasks": _SIZES,
    "ramp-down-heuristic": _SIZES,
    "resource-management-interval": "memory is looked at as often as it grows fast",
    "resource-submit-multiplier": "queues at workers are as long as measured durations want",
    "sandbox-grow-factor": "disk is no resource of tasks",
    "shift-disk-load": "workers make room by themselves",
    "short-timeout": _TRANSFERS,
    "task-groups": "tasks go to workers that have their files",
    "temp-replica-count": _TEMPS,
    "transfer-outlier-factor": _TRANSFERS,
    "transfer-replica-per-cycle": _TEMPS,
    "transfer-temps-recovery": _TEMPS,
    "transient-error-interval": "a task that fails costs its worker nothing",
    "update-interval": "there is no catalog: managers are found by name in their owner's state folder",
    "wait-retrieve-many": _LOOP,
    "watch-library-logfiles": "what a call writes comes back with it, and a library that fails says what it wrote",
    "worker-retrievals": _LOOP,
    "worker-source-max-transfers": "each worker serves two others at a time",
}


def read(name: object, value: object) -> tuple[str, float, str]:
    """A parameter, its value, and why it means nothing ("": it does). Raises `UnknownName`, `UsageError`."""
    known = str(name)
    if known not in MEANT and known not in UNMEANT:
        raise UnknownName("parameter to tune", known, (*MEANT, *UNMEANT))
    return known, read_number(known, value, negative=True), UNMEANT.get(known, "")
