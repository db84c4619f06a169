"""Workers and pilots of a status in numbers, also where they are so many that not all are told one by one.

Theory of operation: a status that had to be cut has its ``sums``: a row for each pool and state of workers, with the keys of a worker's own
row and how many ``workers`` it stands for.  So whoever counts takes these rows, or the workers' own, in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

Row = Mapping[str, Any]
#: What of workers is added up.
ADDED: Final = ("cores", "memory", "gpus", "memory_used", "running", "held")


def sums_of(workers: Iterable[Row], pilots: Iterable[Row]) -> dict[str, Any]:
    """The sums of these rows."""
    found: dict[tuple[str, bool, bool], dict[str, Any]] = {}
    for row in workers:
        state = row["pool"], row["connected"], row["draining"]
        if state not in found:
            found[state] = {"pool": state[0], "connected": state[1], "draining": state[2], "workers": 0, **dict.fromkeys(ADDED, 0)}
        mine = found[state]
        mine["workers"] += 1
        for key in ADDED:
            mine[key] += row[key]
    return {"workers": list(found.values()), "pilots_failed": _failed(pilots)}


def worker_rows(status: Row) -> Sequence[Row]:
    """Rows that together stand for all workers of a status."""
    rows: Sequence[Row] = status.get("sums", status).get("workers") or ()
    return rows


def count_workers(status: Row, *, connected: bool = False) -> int:
    """How many there are; or how many that are ``connected``."""
    return sum(row.get("workers", 1) for row in worker_rows(status) if not connected or row["connected"])


def pilots_failed(status: Row) -> dict[str, int]:
    """How many of the last pilots of each pool ended before they served, of pools that have some."""
    found: dict[str, int] = status["sums"]["pilots_failed"] if "sums" in status else _failed(status.get("pilots") or ())
    return found


def queue_reasons(status: Row, pool: object) -> list[str]:
    """Why pilots of a pool wait, in the batch system's words, the most frequent first."""
    waiting = Counter(
        (str(one.get("phase")), str(one.get("reason")))
        for one in status.get("pilots") or ()
        if one.get("pool") == pool and one.get("phase") in ("queued", "held") and one.get("reason")
    )
    return [f"{number} {phase}: {reason}" for (phase, reason), number in waiting.most_common(2)]


def _failed(pilots: Iterable[Row]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in pilots:
        if row.get("failed"):
            pool = row.get("pool", "")
            found[pool] = found.get(pool, 0) + 1
    return found
