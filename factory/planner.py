"""How many pilots: a pure function of demand, pilots, limits and what has been. It decides; `windlass.factory.factory` acts.

Theory of operation
-------------------
Demand is in calls, by what they need, and where known in expected seconds.  A *fraction* says how much of a pilot each shape could use:

    calls / (calls that fit a pilot at a time), but no more than seconds of work / (those calls x worthwhile seconds)

Worthwhile is a pilot that saves more than it costs to start: so many seconds as a pilot's start takes.  (Calls of a shape take about the
same time, and what one call takes nothing shortens.)  Calls that must have more time than a pilot lives ask for none.  What pilots of
*other* pools can take is subtracted first: those that are connected, and those that pools named before this one have promised
(`Promise`).  Pilots of a pool of the same name that this one does not know are another factory's, and count as such.  The sum of the
fractions, rounded up, between ``min_pilots`` and ``max_pilots``, is *wanted*.

*Coming* are pilots that are queued, running or serving, and not draining; *live* are all that exist or, after a submission without an
answer, may exist.

* More wanted than coming: submit the difference at once, in one submission, bounded by ``max_pilots`` minus live, ``max_queued``
  minus queued, what ``max_core_hours`` leaves, and what the history allows (batch halved at a limit, one probe at a time after deaths
  at start, waits, pause).
* Fewer wanted than coming, for as long as ``hold`` (so that a program that submits in bursts keeps its place in the queue): cancel
  queued pilots first, youngest first; then release pilots that have been idle for ``idle_timeout``.  A pilot with running calls is
  never touched.  Calls that cannot run just now (`Shape.away`) count here, and only here: new pilots would have nothing to do for them.
* Whatever the demand: held pilots are cancelled (they never start), running ones that do not say hello in time too.

Every decision carries its reason in one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from windlass.factory.backend import JobId
from windlass.factory.history import PROVEN, History
from windlass.factory.pilots import Phase, Pilot
from windlass.factory.pool import PoolConfig
from windlass.factory.spending import Allowance, allowance
from windlass.messages import Demand, PilotId, PilotSeen, PoolName, Resources, Shape

#: Rounding of sums of fractions.
EPSILON: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Decision:
    """Something to do to some pilots, and why."""

    jobs: tuple[JobId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Actions:
    """What to do now."""

    #: Pilots that demand asks for, within the limits, and how that comes about.
    wanted: int
    why: str
    submit: int = 0
    submit_reason: str = ""
    cancel: tuple[Decision, ...] = ()
    release: tuple[Decision, ...] = ()
    #: Why fewer are submitted than wanted; "" when none are lacking.
    waits: str = ""
    #: Plan again at this time at the latest; inf: only when something happens.
    again_at: float = math.inf
    #: Walltime of those to submit, where it is not the pool's: what ``max_core_hours`` leaves. Seconds.
    walltime: float = 0.0
    #: ``max_core_hours`` are used up: why nothing will be submitted any more.
    used_up: str = ""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a pool that was named before others will take: so many pilots that do not serve yet."""

    pool: PoolConfig
    pilots: int


def calls_at_a_time(needs: Resources, resources: Resources, nodes: int = 1) -> int:
    """How many calls of this need fit a pilot at a time; 0: none. Memory that is not known bounds nothing."""
    fits = math.floor(resources.cores / (needs.cores or 1.0) + EPSILON)
    if needs.memory and resources.memory:
        fits = min(fits, int(resources.memory * 1.000001 / needs.memory))  # with the manager's hair of slack
    if needs.gpus:
        fits = min(fits, resources.gpus // needs.gpus)
    return fits * nodes


def plan(
    demand: Demand | None,
    pilots: Collection[Pilot],
    unsure: int,
    pool: PoolConfig,
    history: History,
    now: float,
    *,
    max_batch: int = 500,
    before: Sequence[Promise] = (),
    spent: float = 0.0,
    unsure_seconds: float = 0.0,
    strangers: Collection[PilotId] = (),
) -> Actions:
    """What to do about a pool now.

    ``unsure`` pilots may exist beside ``pilots``; ``demand`` None: not heard yet. ``before``: what pools named before this one promise.
    ``spent``: core seconds of pilots that have ended. ``unsure_seconds``: what the unsure ones may run, all together. ``strangers``: pilots
    of the demand that are another factory's, in a pool of the same name.
    """
    others = () if demand is None else tuple(_others(demand, pool, before, strangers, unsure))
    wanted, why = _wanted_beside(others, demand, pool)
    keep, less_at = history.keep(max(wanted, _kept_pilots(others, demand, pool)), now, pool.hold)
    keep = max(min(keep, pool.max_pilots), pool.min_pilots)
    coming = sum(pilot.coming for pilot in pilots) + unsure
    cancel = list(_overdue(pilots, pool, now))
    release: list[Decision] = []
    submit, submit_reason, waits, again_at = 0, "", "", math.inf
    allowed = Allowance()
    if wanted > coming and demand is None:
        waits = why  # which hosts are blocked is not known either
    elif wanted > coming:
        allowed = allowance(wanted - coming, pilots, unsure_seconds, pool, spent, now)
        submit, waits, again_at = _how_many(wanted - coming, len(pilots) + unsure, pilots, unsure, pool, history, now, max_batch, allowed)
        submit_reason = f"{why}; {coming} there or coming" if submit else ""
    elif coming > keep:
        surplus = coming - keep
        queued = sorted(
            (pilot for pilot in pilots if pilot.phase is Phase.QUEUED), key=lambda pilot: (pilot.since, pilot.job), reverse=True
        )
        if queued:
            cancel.append(Decision(tuple(pilot.job for pilot in queued[:surplus]), f"{why}; {coming} there or coming"))
            surplus -= len(queued[:surplus])
        free = sorted((p for p in pilots if _free(p)), key=lambda pilot: (-pilot.idle_for(now), pilot.job))
        idle = [pilot for pilot in free if pilot.idle_for(now) >= pool.idle_timeout]
        if surplus > 0 and idle:
            release.append(Decision(tuple(p.job for p in idle[:surplus]), f"{why}; idle for {pool.idle_timeout:g} s or longer"))
        if surplus > len(idle) and len(free) > len(idle):
            again_at = now + pool.idle_timeout - free[len(idle)].idle_for(now)
    if coming > wanted and less_at:
        again_at = min(again_at, less_at)
    if history.paused:
        # What waits in the queue would die as well, where that is why the pool is paused.
        doomed = tuple(p.job for p in pilots if p.phase is Phase.QUEUED) if history.start_failures >= pool.max_start_failures else ()
        if doomed:
            cancel = [*_overdue(pilots, pool, now), Decision(doomed, f"the pool is paused: {history.paused}")]
    return Actions(wanted, why, submit, submit_reason, tuple(cancel), tuple(release), waits, again_at, allowed.walltime, allowed.used_up)


def _how_many(
    need: int,
    live: int,
    pilots: Collection[Pilot],
    unsure: int,
    pool: PoolConfig,
    history: History,
    now: float,
    max_batch: int,
    allowed: Allowance,
) -> tuple[int, str, float]:
    """How many of those needed to submit now, why not all, and when to plan again."""
    if history.paused:
        return 0, f"the pool is paused: {history.paused}", math.inf
    until, waiting_for = history.submit_after(now)
    if waiting_for:
        # One that serves may have shown by then that its node can.
        sooner = _shown_at(pilots, now) if history.troubles.count > 1 else math.inf
        return 0, f"{waiting_for}; next try in {until - now:.0f} s", min(until, sooner)
    queued = sum(pilot.phase is Phase.QUEUED for pilot in pilots) + unsure
    bounds = [
        (need, ""),
        (pool.max_pilots - live, f"max_pilots={pool.max_pilots}"),
        (pool.max_queued - queued, f"max_queued={pool.max_queued}"),
    ]
    bounds.append((max_batch, f"at most {max_batch} in one submission"))
    if allowed.pilots is not None:
        bounds.append((allowed.pilots, allowed.text))
    if history.batch_cap:
        bounds.append((history.batch_cap, f"a limit on jobs was met; {history.batch_cap} at a time"))
    again_at = math.inf
    if history.start_failures or history.troubles.count > 1:
        probes = unsure + sum(pilot.phase in (Phase.QUEUED, Phase.RUNNING) and not pilot.served for pilot in pilots)
        row = f"{history.start_failures} pilots in a row ended before they served"
        if history.troubles.count > 1:
            # Those that began before may do well on what they have; of the others none does yet, or it would be no row.
            tried = [pilot for pilot in pilots if pilot.phase is Phase.SERVING and pilot.since >= history.troubled_at]
            probes += len(tried)
            again_at = _shown_at(tried, now)
            row = history.in_trouble
        bounds.append((1 - probes, f"{row}; trying one"))
    count, waits = min(bounds, key=lambda bound: bound[0])
    return max(0, count), waits, again_at


def _shown_at(pilots: Iterable[Pilot], now: float) -> float:
    """When the next of them has served for long enough to show that its node can."""
    times = (pilot.since + PROVEN for pilot in pilots if pilot.phase is Phase.SERVING)
    return min((time for time in times if time > now), default=math.inf)


def _overdue(pilots: Iterable[Pilot], pool: PoolConfig, now: float) -> Iterable[Decision]:
    for pilot in pilots:
        if pilot.phase is Phase.HELD:
            yield Decision((pilot.job,), f"held, so it will never start: {pilot.reason or 'no reason given'}")
        elif pilot.phase is Phase.CANCELLING and pilot.may_be_asked_again(now):
            yield Decision((pilot.job,), "it was asked to end and is still there")
        elif pilot.phase is Phase.LEAVING and pilot.may_be_asked_again(now):
            yield Decision((pilot.job,), "it was let go and is still there")
        elif pilot.phase is Phase.RUNNING and not pilot.served and now - pilot.since >= pool.hello_timeout:
            yield Decision((pilot.job,), f"it runs since {now - pilot.since:.0f} s and has not connected to the manager")
        elif pilot.phase is Phase.RUNNING and pilot.forgotten and now - pilot.since >= pool.hello_timeout:
            yield Decision((pilot.job,), f"the manager has not heard of it for {now - pilot.since:.0f} s")


def _free(pilot: Pilot) -> bool:
    return pilot.phase is Phase.SERVING and not pilot.draining and not pilot.running_calls


def wanted_pilots(demand: Demand | None, pool: PoolConfig, before: Sequence[Promise] = ()) -> tuple[int, str]:
    """Pilots that the demand asks for, within the pool's limits, and how that comes about. All of its name count as its own."""
    return _wanted_beside(() if demand is None else tuple(_others(demand, pool, before)), demand, pool)


def _wanted_beside(others: Sequence[_Other], demand: Demand | None, pool: PoolConfig) -> tuple[int, str]:
    """As `wanted_pilots`, when others have taken what they can."""
    if demand is None:
        return pool.min_pilots, "the manager has not said what it needs"
    asked = [shape for shape in demand.shapes if shape.waiting + shape.running]
    shapes = [shape for shape in asked if unfit(shape, pool) == ""]
    left = _left_by_others(shapes, others)
    total = math.ceil(sum(share * could_use(shape, pool) for share, shape in zip(left, shapes, strict=True)) - EPSILON)
    waiting, running = sum(shape.waiting for shape in shapes), sum(shape.running for shape in shapes)
    wanted = max(min(total, pool.max_pilots), pool.min_pilots)
    if not shapes and asked:
        why = f"no call fits: {unfit(asked[0], pool)}"
    else:
        wait = "1 call waits" if waiting == 1 else f"{waiting} calls wait"
        why = f"{wait}, {running} run: work for {total} pilot{'s' if total != 1 else ''}"
    return wanted, why + (f", at least {pool.min_pilots} are kept" if wanted > total else "")


def _kept_pilots(others: Sequence[_Other], demand: Demand | None, pool: PoolConfig) -> int:
    """Pilots that are not too many: as are wanted, were those calls waiting that cannot run just now."""
    if demand is None or not any(shape.away for shape in demand.shapes):
        return 0
    shapes = tuple(
        msgspec.structs.replace(shape, waiting=shape.waiting + shape.away, seconds=shape.seconds + shape.away * shape.longest, away=0)
        for shape in demand.shapes
    )
    return _wanted_beside(others, msgspec.structs.replace(demand, shapes=shapes), pool)[0]


def unfit(shape: Shape, pool: PoolConfig) -> str:
    """Why a pool can never run calls of this shape, or ""."""
    if shape.pools and pool.name not in shape.pools:
        return f"it is for {', '.join(shape.pools)}"
    if not calls_at_a_time(shape.needs, pool.resources):
        return f"a call needs {_show(shape.needs)}, a pilot has {_show(pool.resources)}"
    if pool.walltime and shape.least > pool.walltime:
        return f"a call is for pilots that may live {shape.least:.0f} s or longer, walltime is {pool.walltime:.0f} s"
    return ""


def _show(resources: Resources) -> str:
    return f"{resources.cores or 1:g} cores, {resources.memory} bytes, {resources.gpus} GPUs"


def could_use(shape: Shape, pool: PoolConfig) -> float:
    """How many pilots of this pool the calls of a shape could use; 0: none, as they do not fit."""
    if unfit(shape, pool):
        return 0.0
    return _fraction(shape, calls_at_a_time(shape.needs, pool.resources, pool.nodes), pool.start_cost)


def _fraction(shape: Shape, at_a_time: int, start_cost: float) -> float:
    """How many pilots that run so many of its calls at a time this shape could use."""
    by_calls = (shape.waiting + shape.running) / at_a_time
    if shape.seconds <= 0 or not start_cost:
        return by_calls
    return min(by_calls, shape.seconds / (at_a_time * start_cost))


def _could_use_more(shape: Shape, pilot: PilotSeen, start_cost: float) -> float:
    """How many pilots like this one of another pool a shape could use."""
    if (shape.pools and pilot.pool not in shape.pools) or (pilot.walltime and shape.least > pilot.walltime):
        return 0.0
    at_a_time = calls_at_a_time(shape.needs, pilot.resources)
    return _fraction(shape, at_a_time, start_cost) if at_a_time else 0.0


#: So many pilots of another pool, and how many such pilots a shape could use.
_Other = tuple[int, Callable[[Shape], float]]


def _others(
    demand: Demand, own: PoolConfig, before: Iterable[Promise], strangers: Collection[PilotId] = (), unsure: int = 0
) -> Iterable[_Other]:
    """What other pools have, and what those named before this one promise. ``strangers`` are of another factory's pool of the same name,
    but for so many as may be of submissions without an answer, which count already."""
    alike: dict[tuple[PoolName, Resources], list[PilotSeen]] = {}
    uncounted = unsure * own.nodes
    for pilot in demand.pilots:
        if not pilot.connected or pilot.draining:
            continue
        if pilot.pool == own.name:
            if pilot.pilot not in strangers:
                continue
            if uncounted:
                uncounted -= 1
                continue
        alike.setdefault((pilot.pool, pilot.resources), []).append(pilot)
    for pilots in alike.values():
        yield len(pilots), partial(_could_use_more, pilot=pilots[0], start_cost=own.start_cost)
    for promise in before:
        yield promise.pilots, partial(could_use, pool=promise.pool)


def _left_by_others(shapes: Sequence[Shape], others: Iterable[_Other]) -> list[float]:
    """The share of each shape that is left when the pilots of other pools have taken what they can."""
    left = [1.0] * len(shapes)
    for count, could_use_of in others:
        free = float(count)
        for number, shape in enumerate(shapes):
            could = could_use_of(shape) if free > 0 and left[number] > 0 else 0.0
            if could > 0:
                part = min(free, left[number] * could)
                left[number] = max(0.0, left[number] - part / could)
                free -= part
    return left
