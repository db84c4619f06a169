"""What factories tell of their pilots, kept for people to read. Pure.

Theory of operation
-------------------
A factory tells of a pilot when something about it has changed; each phase so told is one step of its story.  Those that have ended are
kept, too, `ENDED_KEPT` of each pool, the oldest forgotten first.  Nothing here is ever decided by: for that there are the counts and the
ends in the reports.

*Clocks.* A factory may run on another machine, whose clock is off.  Each report says when it was said; the least that one took to arrive is
how far its factory's clock is behind, for messages are late but never early.  What is more than `CLOCKS_AGREE` is added to its times.

*Factories that leave.* What becomes of their pilots nobody says any more.  One that still has a worker here is shown as it was last told
of; without one it counts as ended, with that for the reason, until a factory of the same name tells of it again.  Of pools without a
factory `POOLS_KEPT` are remembered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import msgspec

from windlass.addresses import is_named
from windlass.manager.workers import Worker
from windlass.messages import PilotId, PilotLine, PoolName

ENDED: Final = "ended"
ENDED_KEPT: Final = 100
#: Pilots that have not ended, in one answer, of each pool, the newest: an answer is one message.
SHOWN: Final = 1000
#: Steps of one story.
STEPS: Final = 20
#: Pools of factories that have left; every factory without a name makes a new one.
POOLS_KEPT: Final = 20
#: Seconds that clocks may differ, and messages take, without being noticed.
CLOCKS_AGREE: Final = 2.0
LEFT: Final = "its factory has left, and nobody says what became of it"
ASKED: Final = "its factory asked for its end, and has left"


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
            if len(self.story) > STEPS:
                del self.story[1]  # how it began is told for ever

    @property
    def ended(self) -> bool:
        return self.line.phase == ENDED


class PilotBook:
    """All pilots that were told of, by pool."""

    def __init__(self) -> None:
        self._pools: dict[PoolName, dict[PilotId, Told]] = {}
        #: Seconds that the clocks of factories are behind ours; less: ahead.
        self._behind: dict[str, float] = {}
        #: Pilots that have not ended, of factories that have left, and when those did.
        self._orphans: dict[tuple[PoolName, PilotId], float] = {}

    def take(self, factory: str, lines: Sequence[PilotLine], said_at: float = 0.0, now: float = 0.0) -> None:
        """A factory tells of these; ``said_at`` by its clock, ``now`` by ours (0: the clocks are the same)."""
        shift = self._shift(factory, said_at, now)
        grown: set[PoolName] = set()
        for line in lines:
            if shift:
                line = msgspec.structs.replace(line, since=line.since + shift, made_at=line.made_at + shift)
            pool = self._pools.setdefault(line.pool, {})
            told = pool.pop(line.pilot, None) or Told(factory, line)
            told.factory = factory
            told.take(line)
            pool[line.pilot] = told  # the newest last
            self._orphans.pop((line.pool, line.pilot), None)
            if told.ended:
                grown.add(line.pool)
        for name in grown:
            self._forget(self._pools[name])

    def _shift(self, factory: str, said_at: float, now: float) -> float:
        if not said_at:
            return 0.0
        behind = self._behind[factory] = min(self._behind.get(factory, now - said_at), now - said_at)
        return behind if abs(behind) > CLOCKS_AGREE else 0.0

    def factory_left(self, factory: str, now: float) -> None:
        """It tells of its pilots no more."""
        self._behind.pop(factory, None)
        for name, pool in self._pools.items():
            for pilot, told in pool.items():
                if told.factory == factory and not told.ended:
                    self._orphans[name, pilot] = now

    def may_be(self, worker: Worker, pools: Iterable[PoolName]) -> bool:
        """Whether a factory of one of these pools has told of this worker's pilot, and not of one elsewhere: two batch systems may both
        have a job 812."""
        known = [told.line for name in pools if (told := self._pools.get(name, {}).get(worker.info.pilot)) is not None]
        return any(not line.node or is_named(worker.info.host, line.node) for line in known)

    def rows(self, workers: Iterable[Worker], now: float, wanted: str = "", offered: Collection[PoolName] = ()) -> list[dict[str, Any]]:
        """The status's rows (docs/status.md), with what is known of workers: of each pool those that live, then those that have ended.
        Those that ``wanted`` names (`GetStatus`) are among them, however many there are. ``offered``: pools that have a factory."""
        by_pilot: dict[tuple[PoolName, PilotId], list[Worker]] = {}
        for worker in workers:
            by_pilot.setdefault((worker.info.pool, worker.info.pilot), []).append(worker)
        self._settle_orphans(by_pilot)
        # Some say a name that their pool had in an earlier life of its factory.
        for (said, pilot), theirs in list(by_pilot.items()):
            for name in offered if said not in offered else ():
                if pilot in self._pools.get(name, ()):
                    by_pilot.setdefault((name, pilot), theirs)
        rows: list[dict[str, Any]] = []
        for name, pool in self._pools.items():
            live = [one for one in pool.values() if not one.ended]
            ended = [one for one in pool.values() if one.ended]
            older = [one for one in live[:-SHOWN] if wanted and _is_wanted(one.line, by_pilot.get((name, one.line.pilot), ()), wanted)]
            rows += [_row(one, by_pilot.get((name, one.line.pilot), ()), now) for one in older + live[-SHOWN:] + ended]
        return rows

    def _settle_orphans(self, by_pilot: dict[tuple[PoolName, PilotId], list[Worker]]) -> None:
        """Pilots of factories that have left, and without a worker now, count as ended."""
        over = [(key, since) for key, since in self._orphans.items() if key not in by_pilot]
        for key, since in over:
            del self._orphans[key]
            pool = self._pools.get(key[0], {})
            told = pool.pop(key[1], None)
            if told is not None:
                reason = ASKED if told.line.phase in ("leaving", "cancelling") else LEFT
                told.take(msgspec.structs.replace(told.line, phase=ENDED, since=since, reason=reason))
                pool[key[1]] = told
        for name in {name for (name, _), _ in over} & self._pools.keys():
            self._forget(self._pools[name])

    def forget_pools(self, served: Iterable[PoolName]) -> None:
        """Of pools that no factory serves any more the newest are kept."""
        kept = set(served)
        gone = [name for name in self._pools if name not in kept]
        for name in gone[: max(0, len(gone) - POOLS_KEPT)]:
            for pilot in self._pools.pop(name):
                self._orphans.pop((name, pilot), None)

    @staticmethod
    def _forget(pool: dict[PilotId, Told]) -> None:
        ended = [pilot for pilot, one in pool.items() if one.ended]
        for pilot in ended[: max(0, len(ended) - ENDED_KEPT)]:
            del pool[pilot]


def is_meant(wanted: str, begin: Sequence[str], names: Sequence[str]) -> bool:
    """Whether this word is one of these names, or the beginning of one of the first ones. "" names nothing."""
    return bool(wanted) and (wanted in names or any(name.startswith(wanted) for name in begin))


def _is_wanted(line: PilotLine, workers: Sequence[Worker], wanted: str) -> bool:
    return is_meant(wanted, (line.pilot, line.job), (line.node, *(worker.info.host for worker in workers)))


def _row(told: Told, workers: Sequence[Worker], now: float) -> dict[str, Any]:
    line = told.line
    return {
        "pool": line.pool,
        "factory": told.factory,
        "pilot": line.pilot,
        "job": line.job,
        "restart": line.restart,
        "submission": line.ticket,
        "phase": line.phase,
        "since": line.since,
        "made_at": line.made_at,
        "node": line.node,
        "reason": line.reason,
        "log": line.log,
        "failed": line.failed,
        "cause": line.cause,
        "exit_status": line.exit_status,
        "ran": line.ran,
        "words": line.words,
        "story": [{"at": at, "phase": phase, "reason": reason} for at, phase, reason in told.story],
        "workers": [_worker(worker, now) for worker in workers],
    }


def _worker(worker: Worker, now: float) -> dict[str, Any]:
    return {
        "id": worker.id,
        "host": worker.info.host,
        "running": sum(min(one.outstanding, one.running_most) for one in worker.instances.values()),
        "held": len(worker.calls),
        "idle_seconds": 0.0 if worker.calls else max(0.0, now - worker.idle_since),
        "connected": worker.connected,
    }
