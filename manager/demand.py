"""What the manager could use now, for factories: pure functions over the core's libraries and workers.

Calls of a kind (`windlass.manager.kinds`) are one shape, of what the largest of them asks for.  Calls are counted, never library processes:
an idle library is no demand.  Seconds are expected work, from measured durations or the calls' own ``expected_time``; 0 where nothing is
known.  Calls of which a slot runs many at once count as one each time that they fill it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from windlass.manager.libraries import LibraryState
from windlass.manager.workers import Worker, usual_weight
from windlass.messages import Demand, LibrarySpec, Means, PilotSeen, Resources, Shape

if TYPE_CHECKING:
    from windlass.manager.books import Books

#: Seconds between two messages of demand: at least, and for each worker, as a factory looks at all its pilots for each message.
PACE_LEAST: Final = 0.2
PACE_PER_WORKER: Final = 1e-4


def pace(workers: int) -> float:
    """Seconds between two messages of demand."""
    return max(PACE_LEAST, PACE_PER_WORKER * workers)


def demand_of(libraries: Iterable[LibraryState], workers: Iterable[Worker], now: float, avoid: tuple[str, ...] = ()) -> Demand:
    """Demand by resource shape, and every pilot that has a worker here."""
    shapes: dict[Resources, list[float]] = {}
    largest: dict[Resources, Resources] = {}
    for library in libraries:
        if library.failed:
            continue
        mean, longest = library.durations.mean, library.durations.longest
        for queue in library.queues:
            if not queue.waiting and not queue.running:
                continue
            shape, asked = _shape(queue.needs, library.spec), _shape(queue.options.needs, library.spec)
            largest[shape] = _larger(asked, largest.get(shape, asked))
            each = queue.options.expected_time or mean
            sums = shapes.setdefault(shape, [0, 0, 0.0, 0.0])
            at_once = library.spec.concurrency
            sums[0] += -(-queue.waiting // at_once)
            sums[1] += -(-queue.running // at_once)
            sums[2] += each * (queue.waiting + queue.running) / at_once
            sums[3] = max(sums[3], longest, queue.options.expected_time, queue.least_seconds)
    pilots = tuple(
        PilotSeen(
            pool=worker.info.pool,
            pilot=worker.info.pilot,
            connected=worker.connected,
            running=len(worker.calls) or int(worker.busy > 0),
            idle_seconds=0.0 if worker.calls or worker.busy else max(0.0, now - worker.idle_since),
            draining=bool(worker.draining),
            resources=worker.info.resources,
        )
        for worker in workers
    )
    return Demand(
        tuple(Shape(largest[shape], int(sums[0]), int(sums[1]), sums[2], sums[3]) for shape, sums in shapes.items()),
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
    return Resources(max(a.cores, b.cores), max(a.memory, b.memory), max(a.gpus, b.gpus))


def means_of(books: Books) -> Means:
    """What there is to run calls with, for programs: they refuse what can never run, and ask how many calls more would be used."""
    capacity = sum(state.capacity() for state in books.libraries.values())
    workers = tuple(dict.fromkeys(worker.info.resources for worker in books.workers.values()))
    return Means(capacity, books.means, books.all_offers(), workers)
