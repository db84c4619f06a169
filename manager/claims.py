"""Claims: slots of one worker that are kept for calls that need several at once. Pure functions over workers and libraries.

Theory of operation
-------------------
A call that needs more than one slot of those that others have would wait for ever among steady smaller ones: each slot that falls idle is
taken at once, by calls of its own library or by a library that has none.  So a *wide* kind of calls, of which none runs and which has
waited longest, lays a claim to a worker (`next_claim`, asked at each tick for some of the workers); so does one of which some run, as long
as its library has fewer cores than an equal part of what libraries with calls have.

* Slots that are missing there are taken from others after their turns, as their calls end (`missing_slots`); what falls free is kept.
* Meanwhile no slot on that worker goes from one library to another, and other calls of the claiming library leave it the room, unless
  they have a higher priority.
* The claim ends when a call of its kind is sent, anywhere, or none waits any more. The slots stay together for a turn
  (`HOLD_SECONDS`); then others may have them.

Nobody who has nothing is passed over: a library that waits longer, without a slot, comes first.  And as slots lie idle until the last of
them is free, a kind must have waited for as long as calls on that worker take; those that have run for longer than it has waited are left
alone where the others have enough (`_pause`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

import msgspec

from windlass.manager.calls import CallQueue
from windlass.manager.libraries import LibraryState
from windlass.manager.placement import HOLD_SECONDS, fits, less, more, slots_for
from windlass.manager.workers import Claim, Instance, Phase, Worker, slot_share, slots_in, times
from windlass.messages import InstanceId, LibraryId, LibrarySpec, Resources

#: A worker, the weight of a call there, and what a slot of its library has there.
_Place = tuple[Worker, int, Resources]


class Wait(msgspec.Struct, frozen=True):
    """A kind of calls of which ``waiting`` wait; ``runs``: and some run."""

    since: float
    state: LibraryState
    queue: CallQueue
    runs: bool
    waiting: int


def next_claim(
    starved: Iterable[LibraryState],
    libraries: Mapping[LibraryId, LibraryState],
    workers: Sequence[Worker],
    claims: Iterable[Claim],
    now: float,
) -> tuple[Worker, Claim] | None:
    """Who may claim what now of these workers: whoever has waited longest of those that need several slots; None: nobody.

    ``claims``: those that there are.
    """
    # Found once for all that ask for the same: a thousand libraries may wait of which none needs more than a slot.
    places: dict[tuple[Resources, int, Resources], list[_Place]] = {}

    def wide(spec: LibrarySpec, needs: Resources) -> list[_Place]:
        size = spec.per_slot, spec.slots, needs
        if size not in places:
            places[size] = _wide_places(spec, needs, workers)
        return places[size]

    starved = [state for state in starved if not state.failed]
    # Asked at each tick: kinds are few, and queues there may be as many as calls.
    if not any(wide(state.spec, needs) for state in starved for needs, _ in state.kinds):
        return None
    waits = sorted((wait for state in starved for wait in _waits(state)), key=lambda wait: wait.since)
    if not waits or now - waits[0].since < HOLD_SECONDS:
        return None
    claims = list(claims)
    claimed = Counter((one.library, one.queue.needs) for one in claims)
    poor = has_less(libraries, claims)
    for number, wait in enumerate(waits):
        if now - wait.since < HOLD_SECONDS:
            break
        already = claimed[wait.state.spec.id, wait.queue.needs]
        if already >= wait.waiting or ((wait.runs or already) and wait.state.spec.id not in poor):
            continue
        spec, needs = wait.state.spec, wait.queue.needs
        worker = _best(wait, libraries, wide(spec, needs), now)
        if worker is None or any(_first(other, worker, now) for other in waits[:number] if other.state is not wait.state):
            continue
        of = worker.info.resources
        weight = fits(spec, needs, of)
        return worker, Claim(spec.id, wait.queue, _has(wait, worker) + weight, slot_share(spec, of), weight, wait.since)
    return None


def has_less(libraries: Mapping[LibraryId, LibraryState], claims: Iterable[Claim]) -> set[LibraryId]:
    """Libraries with fewer cores, claims included, than an equal part of what all have that have calls."""
    cores = {one.spec.id: one.slots * (one.spec.per_slot.cores or 1.0) for one in libraries.values() if one.waiting or one.running}
    part = sum(cores.values()) / max(1, len(cores))
    for claim in claims:
        if claim.library in cores:
            cores[claim.library] += claim.weight * claim.share.cores
    return {library for library, number in cores.items() if number < part}


def runs(state: LibraryState, needs: Resources) -> bool:
    """Whether a call of the library runs that needs this."""
    return any(queue.running for queue in state.queues if queue.needs == needs)


def missing_slots(worker: Worker, claim: Claim, now: float) -> list[tuple[Instance, int]]:
    """Slots of others to take away for the claim, beside those that are being taken away already: (instance, number) pairs.

    All at once, when each has been with its library for a turn: so nobody's turn is cut short, and no slot lies idle meanwhile. Slots whose
    calls have run for longer than the claim's have waited are the last to be taken.
    """
    of = worker.info.resources
    free = of
    for one in worker.instances.values():
        free = less(free, times(one.share, one.target))
    missing = less(claim.lacks(worker), free)
    taken: dict[InstanceId, int] = {}
    others = [one for one in worker.instances.values() if one.library != claim.library and one.target]
    others.sort(key=lambda one: (one.outstanding > 0, one.granted_at))
    older = _sent_before(claim.since, worker)
    for kept in (older, Counter[LibraryId]()):
        for one in others:
            left = one.target - taken.get(one.id, 0) - kept[one.library]
            if left > 0 and more(missing):
                count = min(slots_for(missing, one.share), left)
                taken[one.id] = taken.get(one.id, 0) + count
                missing = less(missing, times(one.share, count))
    lenders = [one for one in others if one.id in taken]
    return [(one, taken[one.id]) for one in lenders] if all(now - one.granted_at >= HOLD_SECONDS for one in lenders) else []


def _waits(state: LibraryState) -> Iterator[Wait]:
    """Its kinds, among the waiting calls of highest priority."""
    queues = [queue for queue in state.queues if queue.waiting]
    running = {queue.needs for queue in state.queues if queue.running}
    oldest: dict[Resources, Wait] = {}
    for queue in queues:
        if queue.options.priority < queues[0].options.priority:
            break
        first = queue.first()
        since, runs = first.queued_at if first is not None else 0.0, queue.needs in running
        if not runs:
            since = max(since, queue.served_at)
        other = oldest.get(queue.needs)
        waiting = queue.waiting + (other.waiting if other is not None else 0)
        if other is None or since < other.since:
            oldest[queue.needs] = Wait(since, state, queue, runs, waiting)
        else:
            oldest[queue.needs] = msgspec.structs.replace(other, waiting=waiting)
    yield from oldest.values()


def _wide_places(spec: LibrarySpec, needs: Resources, workers: Iterable[Worker]) -> list[_Place]:
    """The workers that nobody claims where a call would need several slots of others, by what it and its library's slots ask for alone."""
    found: list[_Place] = []
    for worker in workers:
        weight, share = fits(spec, needs, worker.info.resources), slot_share(spec, worker.info.resources)
        if worker.claim is None and weight and (weight > 1 or _larger(share, worker)):
            found.append((worker, weight, share))
    return found


def _best(wait: Wait, libraries: Mapping[LibraryId, LibraryState], places: Iterable[_Place], now: float) -> Worker | None:
    """The worker where its call would need several slots, and could have them soonest; None: nowhere, or not yet."""
    spec = wait.state.spec
    best, soonest = None, now - wait.since
    for worker, weight, share in places:
        if not _usable(wait, worker, now):
            continue
        mine = worker.by_library.get(spec.id)
        if mine is not None and mine.phase is Phase.STARTING and mine.target >= weight:
            return None  # it is coming
        slots = _has(wait, worker) + weight
        enough = weight == 1 and not wait.runs and mine is not None and mine.target
        if enough or slots > slots_in(share, worker.info.resources, spec.slots):
            continue  # there is nothing to be had by a claim, which would keep others from laying one
        pause, rest = _pause(worker, libraries, wait.since, now)
        if pause <= soonest and slots_in(share, rest) >= slots:
            best, soonest = worker, pause
    return best


def _has(wait: Wait, worker: Worker) -> int:
    """Slots that its library has there and that are not enough for a kind of which some run: a claim is for some beside them."""
    mine = worker.by_library.get(wait.state.spec.id) if wait.runs else None
    return mine.target if mine is not None else 0


def _pause(worker: Worker, libraries: Mapping[LibraryId, LibraryState], since: float, now: float) -> tuple[float, Resources]:
    """For how many seconds slots may lie idle there until the last of them is free, and what they have: all but what is held by calls that
    were sent before ``since``, or that take longer than has been waited, by the mean of their library."""
    older = _sent_before(since, worker)
    rest, pause = less(worker.info.resources, Resources(worker.busy, 0, worker.busy_gpus)), 0.0
    for one in worker.instances.values():
        busy, mean = min(one.slots, one.outstanding), libraries[one.library].durations.mean
        kept = busy if mean > now - since else min(busy, older[one.library])
        rest = less(rest, times(one.share, kept))
        if kept < busy:
            pause = max(pause, mean)
    newer = next((call.sent_at for call in worker.calls.values() if call.sent_at >= since), now)
    return max(pause, now - newer), rest


def _sent_before(since: float, worker: Worker) -> Counter[LibraryId]:
    """How many slots calls occupy that were sent there before, by their libraries: they stand in the order in which they were sent."""
    older: Counter[LibraryId] = Counter()
    for call in takewhile(lambda call: call.sent_at < since, worker.calls.values()):
        older[call.spec.library] += call.weight
    return older


def _first(other: Wait, worker: Worker, now: float) -> bool:
    """Whether one that has waited longer has nothing, and could have a slot there; or has just got one there."""
    state = other.state
    mine = worker.by_library.get(state.spec.id)
    if state.running or (state.slots and (mine is None or not mine.target)) or not _usable(other, worker, now):
        return False
    return bool(fits(state.spec, other.queue.needs, worker.info.resources))


def _usable(wait: Wait, worker: Worker, now: float) -> bool:
    return worker.usable and wait.state.spec.id not in worker.unfit and worker.seconds_left(now) > wait.queue.least_seconds


def _larger(share: Resources, worker: Worker) -> bool:
    """Whether others have smaller slots there."""
    others = [one.share for one in worker.instances.values() if one.target]
    return any(one.cores < share.cores or one.memory < share.memory or one.gpus < share.gpus for one in others)
