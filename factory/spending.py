"""What ``max_core_hours`` leaves for further pilots. Pure.

Theory of operation
-------------------
A pilot may use its cores for its whole walltime, so that is what it reserves when it is submitted; what it has not used when it ends
comes free again.  A submission must fit in what is neither used nor reserved.  Thus the limit holds whatever pilots do, and no pilot
has to be ended for it.

The last pilot of a pool may get a walltime shorter than the others', so that nothing worth using is left over; where the pool has no
walltime, what is left is divided among those that are submitted.  When less is left than `LEAST_SECONDS` of one pilot, and none is
there that could give anything back, it is *used up*.

A pilot's time counts from when the batch system, or the pilot itself, is first heard to say that it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from windlass.factory.pilots import Pilot
from windlass.factory.pool import LEAST_SECONDS, PoolConfig

HOUR: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many pilots may be submitted (None: not limited), why no more, and their walltime in seconds (0: the pool's)."""

    pilots: int | None = None
    text: str = ""
    walltime: float = 0.0
    #: Not empty: nothing will be submitted any more, and why.
    used_up: str = ""


def core_seconds(pilots: Iterable[Pilot], pool: PoolConfig, now: float) -> tuple[float, float]:
    """Core seconds that these pilots have used, and those that they still may."""
    used = reserved = 0.0
    for pilot in pilots:
        ran = pilot.ran(now)
        used += ran
        reserved += max(0.0, (pilot.walltime or pool.walltime) - ran)
    width = pool.resources.cores * pool.nodes
    return used * width, reserved * width


def allowance(count: int, pilots: Iterable[Pilot], unsure: float, pool: PoolConfig, ended: float, now: float) -> Allowance:
    """How many of ``count`` further pilots ``max_core_hours`` allows.

    ``unsure``: seconds that pilots may run of which it is not known whether they exist. ``ended``: core seconds of pilots that have ended.
    """
    if not pool.max_core_hours or count <= 0:
        return Allowance()
    width = pool.resources.cores * pool.nodes
    used, reserved = core_seconds(pilots, pool, now)
    reserved += unsure * width
    used += ended
    left = pool.max_core_hours * HOUR - used - reserved
    text = f"max_core_hours={pool.max_core_hours:g}: {used / HOUR:.3g} are used, {reserved / HOUR:.3g} reserved by pilots that are there"
    if pool.walltime and left >= pool.walltime * width:
        return Allowance(min(count, int(left // (pool.walltime * width))), text)
    if not pool.walltime and left >= LEAST_SECONDS * width:
        pilots_now = min(count, int(left // (LEAST_SECONDS * width)))
        return Allowance(pilots_now, text, left / (pilots_now * width))
    if reserved > 0:
        return Allowance(0, text)
    if left >= LEAST_SECONDS * width:
        return Allowance(1, text, left / width)
    return Allowance(0, text, used_up=f"max_core_hours={pool.max_core_hours:g} are used up ({used / HOUR:.3g} are used); give it more")
