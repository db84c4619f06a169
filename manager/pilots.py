"""What factories tell of their pilots, kept for people to read. Pure.

Theory of operation
-------------------
A factory tells of a pilot when something about it has changed; each such line is one step of its story.  Those that have ended are kept,
too, `ENDED_KEPT` of each pool, the oldest forgotten first.  Nothing here is ever decided by: for that there are the counts and the ends in
the reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from windlass.manager.workers import Worker
from windlass.messages import PilotId, PilotLine, PoolName

ENDED: Final = "ended"
ENDED_KEPT: Final = 100
#: Pilots that have not ended, in one answer, of each pool, the newest: an answer is one message.
SHOWN: Final = 1000
#: Steps of one story.
STEPS: Final = 20


class Told:
    """One pilot: the newest line, and the story."""

    __slots__ = ("factory", "line", "story")

    def __init__(self, factory: str, line: PilotLine) -> None:
        self.factory, self.line = factory, line
        self.story: list[tuple[float, str, str]] = []

    def take(self, line: PilotLine) -> None:
        self.line = line
        if not self.story or self.story[-1][1] != line.phase:
            self.story.append((line.since, line.phase, line.reason))
            del self.story[:-STEPS]


class PilotBook:
    """All pilots that were told of, by pool."""

    def __init__(self) -> None:
        self._pools: dict[PoolName, dict[PilotId, Told]] = {}

    def take(self, factory: str, lines: Iterable[PilotLine]) -> None:
        """A factory tells of these."""
        for line in lines:
            pool = self._pools.setdefault(line.pool, {})
            told = pool.pop(line.pilot, None) or Told(factory, line)
            told.factory = factory
            told.take(line)
            pool[line.pilot] = told  # the newest last
            if line.phase == ENDED:
                ended = [pilot for pilot, one in pool.items() if one.line.phase == ENDED]
                for pilot in ended[: max(0, len(ended) - ENDED_KEPT)]:
                    del pool[pilot]

    def rows(self, workers: Iterable[Worker]) -> list[dict[str, Any]]:
        """What the status says of pilots (docs/status.md), with what is known of their workers."""
        by_pilot: dict[tuple[PoolName, PilotId], list[Worker]] = {}
        for worker in workers:
            by_pilot.setdefault((worker.info.pool, worker.info.pilot), []).append(worker)
        rows: list[dict[str, Any]] = []
        for name, pool in self._pools.items():
            live = [one for one in pool.values() if one.line.phase != ENDED]
            ended = [one for one in pool.values() if one.line.phase == ENDED]
            rows += [_row(one, by_pilot.get((name, one.line.pilot), [])) for one in live[-SHOWN:] + ended]
        return rows


def _row(told: Told, workers: list[Worker]) -> dict[str, Any]:
    line = told.line
    return {
        "pool": line.pool,
        "factory": told.factory,
        "pilot": line.pilot,
        "job": line.job,
        "phase": line.phase,
        "since": line.since,
        "made_at": line.made_at,
        "node": line.node,
        "reason": line.reason,
        "log": line.log,
        "failed": line.failed,
        "ran": line.ran,
        "words": line.words,
        "story": [{"at": at, "phase": phase, "reason": reason} for at, phase, reason in told.story],
        "workers": [
            {"id": worker.id, "host": worker.info.host, "running": len(worker.calls), "connected": worker.connected} for worker in workers
        ],
    }
