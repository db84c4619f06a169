"""Which worker gives slots to which library: pure functions over workers and libraries.

Theory of operation
-------------------
Slots are granted on demand: a library that has calls and not enough slots is offered, worker by worker, what is free there
(`grants`), where it is enough for a call.  A worker that has the library warm comes first, then the one with the most free cores.
What others have may be *reclaimed*: idle slots that no waiting call can use, and else one slot of a library that has more there, as
its call ends (`reclaimable`); and no more than the waiting calls are worth (`worth_moving`).

`least_of` says how much time must be left where a call is placed, `spent` which idle workers are of no use to the calls that wait, as
too little time is left there for each.

`why_never` says why no worker and no pool could ever run a call, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil

import msgspec

from windlass.manager.kinds import KINDS_MOST, round_up
from windlass.manager.libraries import LibraryState
from windlass.manager.workers import Instance, Worker, slot_share, slots_in, times, used_up, usual_weight, weight_of
from windlass.messages import SLOTS_MOST, CallOptions, LibraryId, LibrarySpec, PoolOffer, Resources
from windlass.units import show_count

#: A library keeps its last slot on a worker for so long before another may take it: moving a slot costs milliseconds.
HOLD_SECONDS = 1.0
#: No pilot has its whole walltime left for calls: starting takes some, and so does ending. A pilot with so much of it left counts as fresh.
FRESH_SHARE = 0.9


class Grant(msgspec.Struct):
    """Give ``library`` on ``worker`` so many slots more; first of all those that ``instance`` has and was to lose."""

    worker: Worker
    instance: Instance | None
    slots: int
    share: Resources


def whole(worker: Worker) -> Resources:
    """All that a worker has."""
    return worker.info.resources


def fits(spec: LibrarySpec, needs: Resources, of: Resources) -> int:
    """Weight of a call with ``needs`` on a worker with ``of``; 0: such a worker can never run it."""
    share = slot_share(spec, of)
    slots = slots_in(share, of, spec.slots)
    weight = weight_of(needs, share)
    return weight if 0 < weight <= slots else 0


def grants(
    library: LibraryState, workers: Iterable[Worker], wanted: int, now: float, least_seconds: float, needs: Resources
) -> list[Grant]:
    """Where ``wanted`` more slots can be had from what is free, best first; fewer where there are not so many."""
    found: list[Grant] = []
    spec = library.spec
    for worker in workers:
        if not worker.usable or spec.id in worker.unfit or worker.seconds_left(now) <= least_seconds:
            continue
        of = whole(worker)
        share = slot_share(spec, of)
        weight = fits(spec, needs, of)
        if not weight:
            continue
        instance = worker.by_library.get(spec.id)
        has, to_lose = (instance.slots, instance.slots - instance.target) if instance else (0, 0)
        free = worker.free()
        if worker.claim is not None and worker.claim.library != spec.id:
            free = less(free, worker.claim.lacks(worker))
        # At its limit it takes nothing back: what is free may be what the heir needs beside it.
        slots = min(slots_in(share, of, spec.slots) - has, slots_in(share, free, 0))
        if slots > 0 and has + slots >= weight:  # too few for a call would lie idle
            found.append(Grant(worker, instance, to_lose + slots, share))
    found.sort(key=lambda grant: (grant.instance is None, -grant.slots))
    chosen: list[Grant] = []
    for grant in found:
        if wanted <= 0:
            break
        # A fresh instance gets all that is free: forks are cheap, and what another library needs is reclaimed when idle.
        chosen.append(grant)
        wanted -= grant.slots
    return chosen


def worth_moving(library: LibraryState, waiting: int, pause: float) -> int:
    """How many slots of others so many waiting calls are worth, beside the slots that the library has.

    A slot that is moved is to have work for a turn, and for as long as the library takes to start. ``pause``: seconds since calls of it
    were last sent. If that is more than a turn, the slots that it has are no use to those that wait, whatever was thought of them: they run
    what takes much longer, or are too few for one.
    """
    if not library.durations.count:
        return waiting
    turn = max(HOLD_SECONDS, library.hoisted_seconds / library.starts if library.starts else 0.0)
    of_use = library.slots if pause <= turn else 0
    return min(waiting, max(0, ceil(waiting * library.durations.mean / turn) - of_use))


def reclaimable(
    worker: Worker,
    library: LibraryState,
    states: dict[LibraryId, LibraryState],
    share: Resources,
    slots: int,
    destitute: bool,
    now: float,
    *,
    busy: bool = True,
) -> list[tuple[Instance, int]]:
    """Slots of others on ``worker`` to take away for ``slots`` slots of ``library``: (instance, number) pairs, enough or nothing.

    ``destitute``: the library has nowhere the slots that its calls need; then it may take another one's last slot, too. ``busy``: slots may
    be taken where calls run; else only idle ones.
    """
    wanted = missing = less(times(share, slots), worker.free())
    taken: list[tuple[Instance, int]] = []
    others = [one for one in worker.instances.values() if one.library != library.spec.id and one.target > 0]
    # First what lies idle and that no waiting call can use, longest idle first.
    for one in sorted(others, key=lambda one: one.idle_since):
        if not more(missing):
            break
        spare = one.target - max(0, min(one.outstanding, one.target))
        if not spare or (states[one.library].waiting and _of_use(one, states[one.library], worker.seconds_left(now))):
            continue
        if not library.waiting and any(each.outstanding > each.running_most for each in states[one.library].loaded.values()):
            continue  # what waits there waits behind others too: they would take it from each other
        count = min(spare, slots_for(missing, one.share))
        if count > 0:
            taken.append((one, count))
            missing = less(missing, times(one.share, count))
    if not more(missing):
        return taken
    if not busy:
        return []
    # Nothing idle is enough: a library with more slots here than this one gives one, as a call of it ends. It may lose its last
    # slot only to a destitute one, and not before it had it for a while. Where one is not enough, others would have the first
    # before the last is free: that is what claims are for. They may have what is free now before that one is, too, and what they
    # get may be what is taken next: so where one is enough only with what is free, it is left for a turn where it is.
    mine = worker.by_library.get(library.spec.id)
    has = mine.target if mine else 0
    for one in sorted(others, key=lambda one: -one.target * (one.share.cores or 1.0)):
        held = now - one.granted_at >= HOLD_SECONDS
        if slots_for(wanted if held else times(share, slots), one.share) > 1:
            continue
        left = one.target - 1
        together = left >= one.least
        if (left > has and together) or (destitute and ((left > 0 and has == 0 and together) or held)):
            return [(one, 1)]
    return []


def in_hand(worker: Worker) -> bool:
    """Whether what is to become of its slots is settled for now: it has a claim, or an instance is to lose some."""
    return worker.claim is not None or any(one.target < one.slots for one in worker.instances.values())


def may_give(worker: Worker, now: float) -> bool:
    """Whether a library could get anything there, whichever it is: what is lent to nobody, or slots that `reclaimable` would take."""
    if not worker.usable:
        return False
    if not used_up(worker):
        return True
    lent = [one for one in worker.instances.values() if one.target]
    return not in_hand(worker) and any(
        one.outstanding < one.target or one.target > 1 or now - one.granted_at >= HOLD_SECONDS for one in lent
    )


def _of_use(instance: Instance, state: LibraryState, seconds_left: float) -> bool:
    """Whether one of the waiting calls could run in as many slots as it has, once they are idle, and for so long."""
    return any(
        queue.waiting and queue.least_seconds < seconds_left and 0 < weight_of(queue.needs, instance.share) <= instance.target
        for queue in state.queues
    )


def least_of(options: CallOptions, offers: Iterable[PoolOffer], kinds: int, start: float) -> float:
    """Seconds that must be left where such a call is placed: what it is expected to take, but no more than the freshest pilots have
    when its library has started there, which takes ``start`` seconds. Where there are many ``kinds`` of calls already, a little more than
    it is expected to take."""
    if not options.expected_time:
        return 0.0
    seconds = options.expected_time if kinds < KINDS_MOST else round_up(options.expected_time)
    return min(seconds, freshest(offers, start))


def freshest(offers: Iterable[PoolOffer], start: float) -> float:
    """Seconds that the freshest pilots have left when a library has started there, which takes ``start`` seconds; infinite without a
    walltime. More are not to be asked for: no pilot would ever do."""
    longest = longest_walltime(offers)
    return max(FRESH_SHARE * longest - start, (1.0 - FRESH_SHARE) * longest)


def walltime_for(left: float, start: float, longest: float) -> float:
    """The walltime whose freshest pilots have ``left`` seconds: `freshest` the other way round. Pilots with the longest have to do."""
    return min((left + start) / FRESH_SHARE, left / (1.0 - FRESH_SHARE), max(left, longest))


def longest_walltime(offers: Iterable[PoolOffer]) -> float:
    """Of all pools, in seconds; infinite where one has none, or nothing is known of pools."""
    return max((offer.walltime or float("inf") for offer in offers), default=float("inf"))


def spent(worker: Worker, waiting: Iterable[tuple[LibraryState, Resources, float]], now: float) -> bool:
    """Whether too little time is left on an idle worker for every kind of call that waits, while it once had enough for one.

    ``waiting``: (library, needs, least seconds) of each. A worker that never had enough is left alone: another one would be no better.
    """
    would_do = False
    for state, needs, least_seconds in waiting:
        if state.spec.id in worker.unfit or not fits(state.spec, needs, whole(worker)):
            continue
        if worker.seconds_left(now) > least_seconds:
            return False
        would_do = would_do or worker.info.seconds_left > least_seconds
    return would_do


def why_never(spec: LibrarySpec, options: CallOptions, offers: Sequence[PoolOffer], workers: Sequence[Resources]) -> str:
    """Why no pool and no worker can ever run such a call; empty when one can, or when nothing is known of pools."""
    asked = _options_of(options) if spec.concurrency > 1 else ()
    if asked:
        instead = ", ".join([*asked, f"concurrency={spec.concurrency}"]).replace("'auto'", "'4GB'")
        return (
            f"this call of library {spec.name!r} can never run: it asks for {' and '.join(asked)}, and calls of that library share what "
            f"their slot has, {spec.concurrency} at a time; give it to the library: install_library(..., {instead})"
        )
    reason = _why_no_pool(spec, options, offers, workers) if offers else ""
    return f"no pool can ever run this call of library {spec.name!r}: {reason}" if reason else ""


def _options_of(options: CallOptions) -> list[str]:
    """What a call asks for, as people write it."""
    needs = options.needs
    words = [f"cores={needs.cores:g}"] if needs.cores else []
    if needs.memory or options.grow_memory:
        words.append(f"memory='{needs.memory / 1e9:.3g}GB'" if needs.memory else "memory='auto'")
    return [*words, f"gpus={needs.gpus}"] if needs.gpus else words


def _why_no_pool(spec: LibrarySpec, options: CallOptions, offers: Sequence[PoolOffer], workers: Sequence[Resources]) -> str:
    needs = options.needs
    there = [offer for offer in offers if not offer.spent]
    known = [offer.resources for offer in there] + list(workers)
    if needs.gpus and not spec.per_slot.gpus:
        return f"it asks for {needs.gpus} GPUs, and library {spec.name!r} has none: create the library with gpus=1 or more"
    if needs.gpus > spec.per_slot.gpus:  # it runs in one slot, whatever others are kept free for it
        has = show_count(spec.per_slot.gpus, "GPU")
        return f"it asks for {needs.gpus} GPUs, and a slot of library {spec.name!r} has {has}: create the library with gpus={needs.gpus}"
    if any(fits(spec, needs, of) for of in known):
        longest = longest_walltime(there)
        if options.expected_time and options.expected_time >= longest:
            return f"it is expected to take {options.expected_time:g} s, and the longest walltime of a pool is {longest:g} s"
        return ""
    for offer in offers:
        if offer.spent and fits(spec, needs, offer.resources):
            return (
                f"pool {offer.pool!r} is paused and has no pilots: {offer.paused}"
                f"; when that is mended: windlass factory resume {offer.pool}, and submit again"
            )
    asks = ", ".join(show(needs) or ["one slot"])
    if spec.slots:
        asks += f" within the {spec.slots} slots of library {spec.name!r}"
    per_slot = show(spec.per_slot)
    if per_slot:
        asks += f" (a slot of library {spec.name!r} needs {', '.join(per_slot)})"
    if usual_weight(spec, needs) > SLOTS_MOST and any(not more(less(needs, of)) for of in known):
        asks += f", which are more than the {SLOTS_MOST} slots that a library has on a worker: create it with larger ones"
    gives = "; ".join(map(_gives, offers))
    if (needs.memory or spec.per_slot.memory) and any(offer.found for offer in offers):
        gives += "; if more is given to who asks for it, give the pool memory="
    return f"it needs {asks}; {gives}"


def _gives(offer: PoolOffer) -> str:
    """What a pilot of a pool has, in words."""
    found = ", which is the memory that its pilots have turned out to have" if offer.found else ""
    return f"pool {offer.pool!r} gives {', '.join(show(offer.resources))} per pilot{found}"


def show(resources: Resources) -> list[str]:
    """Resources in words, what is zero left out."""
    words: list[str] = []
    if resources.cores:
        words.append(show_count(resources.cores, "core"))
    if resources.memory:
        words.append(f"{resources.memory / 1e9:.3g} GB of memory")
    if resources.gpus:
        words.append(show_count(resources.gpus, "GPU"))
    return words


def less(a: Resources, b: Resources) -> Resources:
    """``a`` without ``b``, never below zero."""
    return Resources(max(0.0, a.cores - b.cores), max(0, a.memory - b.memory), max(0, a.gpus - b.gpus))


def more(missing: Resources) -> bool:
    """Whether something is missing."""
    # The rounding of fractions and of equal memory shares is not a lack.
    return missing.cores > 1e-6 or missing.memory > 4096 or missing.gpus > 0


def slots_for(missing: Resources, share: Resources) -> int:
    """How many slots of ``share`` together have ``missing``."""
    count = 1
    if share.cores:
        count = max(count, int(-(-(missing.cores - 1e-6) // share.cores)))
    if share.memory:
        count = max(count, int(-(-(missing.memory - 4096) // share.memory)))
    if missing.gpus:
        if not share.gpus:
            return 1 << 20
        count = max(count, -(-missing.gpus // share.gpus))
    return count
