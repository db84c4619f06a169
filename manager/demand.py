"""What the manager could use now, for factories: pure functions over the core's libraries and workers.

Calls of a kind (`windlass.manager.kinds`) are one shape, of what the largest of them asks for, if they take about as long (within a factor
of two) and the walltimes of the same pools are enough for them: the longest call says nothing of others.  Calls are counted, never library
processes: an idle library is no demand.  Calls of which a slot runs many at once count as one each time that they fill it.  Calls that
cannot run just now, as a file's source does not answer, are counted by themselves (``away``).

Seconds are expected work: the calls' own ``expected_time``, or what is known of their library (`LibraryState.call_seconds`); no less than
what a call is known to need since a pilot's end has cut it short; 0 where nothing is known.  For which walltimes a call is follows from
how much time must be left where it is placed, and from nothing else: a pool is not to start pilots to which it would not be sent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import frexp
from typing import Final

from windlass.manager.libraries import LibraryState
from windlass.manager.placement import longest_walltime, walltime_for
from windlass.manager.workers import Worker, usual_weight
from windlass.messages import Demand, LibrarySpec, PilotSeen, PoolOffer, Resources, Shape

#: Seconds between two messages of demand: at least, and for each worker, as a factory looks at all its pilots for each message.
PACE_LEAST: Final = 0.2
PACE_PER_WORKER: Final = 1e-4


def pace(workers: int) -> float:
    """Seconds between two messages of demand."""
    return max(PACE_LEAST, PACE_PER_WORKER * workers)


#: What calls of a shape have in common: resources, which walltimes are too short for them, and about how long they take.
_Key = tuple[Resources, int, int]


def demand_of(
    libraries: Iterable[LibraryState], workers: Iterable[Worker], offers: Sequence[PoolOffer], now: float, avoid: tuple[str, ...] = ()
) -> Demand:
    """Demand by shape, and every pilot that has a worker here."""
    shapes: dict[_Key, list[float]] = {}
    largest: dict[_Key, Resources] = {}
    walltime_of = {offer.pool: offer.walltime for offer in offers}
    walltimes = sorted({walltime for walltime in walltime_of.values() if walltime})
    longest = longest_walltime(offers)
    for library in libraries:
        if library.failed:
            continue
        usual = library.call_seconds()
        # Of each kind once: no two of its calls need have equal options, and then it has as many queues as calls.
        shape_of: dict[Resources, Resources] = {}
        asked: dict[_Key, Resources] = {}
        for queue in library.queues:
            waiting = queue.waiting
            if not waiting and not queue.running and not queue.away:
                continue
            shape = shape_of.get(queue.needs)
            if shape is None:
                shape = shape_of[queue.needs] = _shape(queue.needs, library.spec)
            least = walltime_for(queue.least_seconds, library.start_allowance, longest)
            each = max(queue.options.expected_time or usual, queue.least_seconds)
            key = shape, bisect_left(walltimes, least), max(0, frexp(each)[1]) if each else -1
            needs, others = queue.options.needs, asked.get(key)
            if others is None or needs is not others:
                asked[key] = needs if others is None else _larger(needs, others)
            sums = shapes.setdefault(key, [0, 0, 0.0, 0.0, 0.0, 0])
            at_once = library.spec.concurrency
            sums[0] += -(-waiting // at_once)
            sums[1] += -(-queue.running // at_once)
            sums[2] += each * (waiting + queue.running) / at_once
            sums[3] = max(sums[3], each)
            sums[4] = max(sums[4], least)
            sums[5] += -(-queue.away // at_once)
        for key, needs in asked.items():
            whole = _shape(needs, library.spec)
            largest[key] = _larger(whole, largest.get(key, whole))
    pilots = tuple(
        PilotSeen(
            pool=worker.info.pool,
            pilot=worker.info.pilot,
            connected=worker.connected,
            running=len(worker.calls) or int(worker.busy > 0),
            idle_seconds=0.0 if worker.calls or worker.busy else max(0.0, now - worker.idle_since),
            draining=bool(worker.draining),
            resources=worker.info.resources,
            walltime=walltime_of.get(worker.info.pool, 0.0),
        )
        for worker in workers
    )
    return Demand(
        tuple(
            Shape(largest[key], int(sums[0]), int(sums[1]), sums[2], sums[3], least=sums[4], away=int(sums[5]))
            for key, sums in shapes.items()
        ),
        pilots,
        avoid,
    )


def _shape(needs: Resources, spec: LibrarySpec) -> Resources:
    """What a call takes at least: as many slots of its library as have what it asks for."""
    per_slot, slots = spec.per_slot, usual_weight(spec, needs)
    return Resources(
        max(needs.cores, slots * (per_slot.cores or 1.0)),
        max(needs.memory, slots * per_slot.memory),
        max(needs.gpus, slots * per_slot.gpus),
    )


def _larger(a: Resources, b: Resources) -> Resources:
    if a.cores <= b.cores and a.memory <= b.memory and a.gpus <= b.gpus:
        return b
    return Resources(max(a.cores, b.cores), max(a.memory, b.memory), max(a.gpus, b.gpus))
