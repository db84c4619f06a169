"""The manager's books: every call, library, worker and pool, and the small moves that keep them consistent.

Theory of operation
-------------------
A call is in one place: in a queue (waiting), with one worker (sent), or ended and forgotten. The moves here take a call from one place to
another and keep the counts beside it: `_requeue`, `_drop_waiting`, `_finish`. What is to be sent is gathered in an outbox per worker, in
order; ends in a list.

`check` states what must hold between the collections; tests call it after every step.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import msgspec

from windlass.framing import batches
from windlass.manager.away import PATIENCE
from windlass.manager.blocked import BlockedHosts
from windlass.manager.calls import LIBRARY_FAILED, NOT_POSSIBLE, Call, CallQueue, message_bytes
from windlass.manager.failures import Failures
from windlass.manager.heldup import HeldUp
from windlass.manager.kinds import KINDS_MOST
from windlass.manager.libraries import NEVER, LibraryState, rank
from windlass.manager.lineage import FIRST_REMAKE, Lineage
from windlass.manager.names import Names
from windlass.manager.pilots import PilotBook
from windlass.manager.placement import least_of, may_give, why_never
from windlass.manager.recorder import Recorder
from windlass.manager.replicas import Replicas
from windlass.manager.workers import Instance, Phase, Worker, slots_in, used_up
from windlass.messages import (
    CANCELLED,
    NO_FILE,
    RETURNED,
    CallDone,
    CallEnd,
    CallId,
    CallOptions,
    EndDetail,
    FileName,
    FunctionDef,
    FunctionId,
    InstanceId,
    LibraryId,
    Message,
    ObjectRef,
    PoolOffer,
    PoolReport,
    Resources,
    RunCalls,
    WorkerId,
)

#: Bytes of calls in one `RunCalls`, well under the limit of a frame; one call alone may have more.
RUN_BYTES = 256 << 10
#: So many workers are looked at again at each tick, in turns, by libraries that wait for slots.
LOOKED_AT = 32
#: Where nothing came of the last ones, by so many fewer that all looks together are so many: a tenth of the manager's time.
LOOKS_MOST = 640
#: Queues without calls are looked for when a library has more queues than this.
SWEEP_LEAST = 100


class Settings(msgspec.Struct, frozen=True):
    """Times of the core, in seconds."""

    #: A worker whose connection is cut has so long to come back with its session.
    reconnect_grace: float = 60.0
    #: So long what needs a file waits for its source to answer.
    file_patience: float = PATIENCE


class Counters(msgspec.Struct):
    """Numbers since the start; those of failures are in `Failures`."""

    submitted: int = 0
    returned: int = 0
    cancelled: int = 0


class Turns:
    """Some workers, then others, until all have been looked at; and again."""

    def __init__(self) -> None:
        self._left: Iterator[WorkerId] = iter(())

    def next(self, workers: Mapping[WorkerId, Worker], most: int = LOOKED_AT) -> list[Worker]:
        """At most so many."""
        some = list(islice(self._left, most))
        if len(some) < most:
            self._left = iter(list(workers))
            some += islice(self._left, most - len(some))
        return [workers[worker_id] for worker_id in dict.fromkeys(some) if worker_id in workers]


class Books:
    """All that a manager knows."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.calls: dict[CallId, Call] = {}
        self.libraries: dict[LibraryId, LibraryState] = {}
        self.workers: dict[WorkerId, Worker] = {}
        #: What workers have, and how many have it.
        self.shapes: Counter[Resources] = Counter()
        self.functions: dict[FunctionId, FunctionDef] = {}
        self.offers: dict[str, tuple[PoolOffer, ...]] = {}
        self.reports: dict[str, PoolReport] = {}
        self.pilots = PilotBook()
        self.replicas = Replicas()
        self.replicas.away.patience = self.settings.file_patience
        self.lineage = Lineage()
        self.blocked = BlockedHosts()
        #: Calls that wait, in no queue, for a result to be made again or a file's source to answer, the first that came first.
        self.parked: dict[FileName, dict[CallId, Call]] = {}
        self.counters = Counters()
        self.names = Names(self.libraries, self.functions)
        self.failures = Failures(self.names)
        #: Notes what slots run, when somebody wants to know.
        self.recorder: Recorder | None = None
        #: Changes when workers, instances or libraries come or go: what failed to find room is tried again.
        self.structure: int = 0
        #: Workers that have got something since, by the version of the structure, the newest last: what found no room looks at these alone.
        self._gained: dict[WorkerId, int] = {}
        #: Those of them that may have something which is lent to nobody.
        self._spare: dict[WorkerId, int] = {}
        #: Slots that others are still to lose, by the library that they were taken for.
        self._due: Counter[LibraryId] = Counter()
        self._turns, self._claim_turns = Turns(), Turns()
        #: Slots have gone to a library since the last turn.
        self._moved = False
        #: Changes when workers or offers of pools do: what can ever be run may be something else then.
        self.means: int = 0
        self._queues: dict[tuple[LibraryId, CallOptions, float, bool], CallQueue] = {}
        self._queue_of: dict[tuple[LibraryId, int, bool], CallQueue] = {}
        self._dirty: dict[LibraryId, LibraryState] = {}
        #: All that wait are to look: many things may happen before they do.
        self._all_look = False
        self._starved: dict[LibraryId, LibraryState] = {}
        self._shrinking: dict[InstanceId, Instance] = {}
        #: Those with more calls than slots, and some that have no more as many.
        self._ahead: dict[InstanceId, Instance] = {}
        self._held_up = HeldUp()
        #: Those with a claim.
        self._claimed: dict[WorkerId, Worker] = {}
        self._outbox: dict[WorkerId, list[Message]] = {}
        self._done: list[CallDone] = []
        #: Results of attempts that count no more; nobody will read them.
        self.late_objects: list[ObjectRef] = []
        self._next_instance = 1
        self.demand_changed = True
        #: Workers for which calls were chosen since the outbox was last taken.
        self._loaded: dict[WorkerId, Worker] = {}

    def take_outbox(self) -> dict[WorkerId, list[Message]]:
        """Messages for workers since the last time, in the order in which they must be sent."""
        for worker in self._loaded.values():
            if self.workers.get(worker.id) is worker:
                self._flush_runs(worker)
        self._loaded.clear()
        out, self._outbox = self._outbox, {}
        return out

    def take_done(self) -> list[CallDone]:
        """Ends of calls since the last time."""
        done, self._done = self._done, []
        return done

    def all_offers(self) -> tuple[PoolOffer, ...]:
        """Offers of all pools of all factories."""
        # Asked by the program's threads too, while the manager's goes on.
        return tuple(offer for offers in list(self.offers.values()) for offer in offers)

    def all_shapes(self) -> list[Resources]:
        """What workers have, and what pilots of all pools would have."""
        return [*self.shapes, *(offer.resources for offer in self.all_offers())]

    def _queue_for(self, library: LibraryId, options: CallOptions, least_seconds: float, files: bool = False) -> CallQueue | str:
        """The queue of a signature; or why there can be none."""
        state = self.libraries.get(library)
        if state is None:
            return f"library version {library!r} is not installed"
        key = (library, options, least_seconds, files)
        queue = self._queues.get(key)
        if queue is None or not (queue.waiting or queue.running or queue.means == self.means):
            reason = why_never(state.spec, options, self.all_offers(), list(self.shapes))
            if reason:
                return reason
        if queue is None:
            if len(state.queues) > state.sweep_at:
                self._sweep_queues(state)
            if (options.needs.cores or options.needs.memory) and not state.steps.needed:
                state.steps.needed = True
                self._learn_shapes(self.all_shapes(), (state,))
            queue = CallQueue(library, options, least_seconds, deque(), files=files, needs=state.steps.kind_of(options.needs))
            self._queues[key] = queue
            insort(state.queues, queue, key=rank)
            state.plain += queue.plain
            kind = (queue.needs, least_seconds)
            if kind not in state.kinds:
                state.kinds.add(kind)
                state.tried = NEVER
        queue.means = self.means
        return queue

    def _least(self, library: LibraryId, options: CallOptions, files: bool) -> float:
        """Seconds that must be left for a call: as for those with equal options that are known, however many kinds there were then."""
        state = self.libraries.get(library)
        if state is None or not options.expected_time:
            return 0.0
        few, many = self._leasts(state, options, self.all_offers())
        known = (least for least in (few, many) if (library, options, least, files) in self._queues)
        return next(known, few if len(state.kinds) < KINDS_MOST else many)

    def _leasts(self, state: LibraryState, options: CallOptions, offers: tuple[PoolOffer, ...]) -> tuple[float, float]:
        """Seconds that must be left for such a call where there are few kinds of calls, and where there are many."""
        few, many = (least_of(options, offers, kinds, state.start_allowance) for kinds in (0, KINDS_MOST))
        return few, many

    def _sweep_queues(self, state: LibraryState) -> None:
        """Forget queues without calls."""
        for queue in state.queues:
            if not queue.used:
                del self._queues[queue.library, queue.options, queue.least_seconds, queue.files]
        state.queues[:] = [queue for queue in state.queues if queue.used]
        self._take_stock(state)
        # Not again before there are twice as many, or each new queue would cost a look at all.
        state.sweep_at = max(SWEEP_LEAST, 2 * len(state.queues))
        self._queue_of.clear()

    def _take_stock(self, state: LibraryState) -> None:
        """Which kinds of calls there are."""
        state.kinds = {(queue.needs, queue.least_seconds) for queue in state.queues}
        state.plain = sum(queue.plain for queue in state.queues)
        for versions in (state.looked, state.asked):
            for kind in versions.keys() - state.kinds:
                del versions[kind]

    def _learn_shapes(self, shapes: Iterable[Resources], states: Iterable[LibraryState]) -> None:
        """There are workers with these, or may be: calls that were alike to placement may not be so any more."""
        shapes = list(dict.fromkeys(shapes))
        for state in states:
            if not state.steps.needed:
                continue
            learned = [state.steps.learn(state.spec, of) for of in shapes]
            if any(learned):
                for queue in state.queues:
                    queue.needs = state.steps.kind_of(queue.options.needs)
                self._take_stock(state)
                state.tried = NEVER

    def _end_impossible(self, now: float) -> None:
        """Pools have changed: end the waiting calls that none can ever run."""
        offers, of = self.all_offers(), list(self.shapes)
        self._queue_of.clear()  # those that come are held against the pools anew
        for queue in list(self._queues.values()):
            if not queue.waiting:
                continue
            state = self.libraries[queue.library]
            reason = why_never(state.spec, queue.options, offers, of)
            if reason:
                self._end_queue(queue, NOT_POSSIBLE, reason, now)

    def _end_waiting(self, state: LibraryState, now: float) -> None:
        """The library has failed: so have its calls that wait."""
        for queue in state.queues:
            self._end_queue(queue, LIBRARY_FAILED, state.failed, now)
        self._starved.pop(state.spec.id, None)

    def _end_queue(self, queue: CallQueue, outcome: int, text: str, now: float) -> None:
        """All that wait in it."""
        state = self.libraries[queue.library]
        while (call := queue.pop()) is not None:
            state.waiting -= 1
            self._finish(call, CallEnd(call.spec.call, call.attempt, outcome, detail=EndDetail(text=text)), now)

    def _lower_least(self) -> None:
        """Pools have changed, or starts take another time: calls that were queued before ask for so much time as if they came now."""
        offers = self.all_offers()
        for key, queue in list(self._queues.items()):
            state = self.libraries[queue.library]
            few, many = self._leasts(state, queue.options, offers)
            least = many if queue.least_seconds > many else few
            new = (queue.library, queue.options, least, queue.files)
            moved = not few <= queue.least_seconds <= many
            if queue.options.expected_time and not queue.taught and moved and new not in self._queues:
                del self._queues[key]
                queue.least_seconds = least  # which is not 0, so it is as plain as before
                queue.passed_at = -1  # who had too little time may have enough
                self._queues[new] = queue
                state.kinds.add((queue.needs, least))
                state.tried = NEVER
                self._dirty[queue.library] = state
        self._queue_of.clear()

    def _drop_waiting(self, call: Call) -> None:
        if call.parked:
            self._drop_parked(call)
            return
        call.queue.drop(call)
        self.libraries[call.spec.library].waiting -= 1

    def _requeue(self, call: Call) -> None:
        """Wait again, first in line. The call is with no worker, and no longer counted as running."""
        call.worker = WorkerId("")
        call.queue.push_front(call)
        state = self.libraries[call.spec.library]
        state.waiting += 1
        self._dirty[call.spec.library] = state

    def _finish(self, call: Call, end: CallEnd, now: float) -> None:
        """The one end of a call; those that wait for what it was to make end with it."""
        for name in self._end(call, end, now):
            self._lose_result(name, end, now)

    def _end(self, call: Call, end: CallEnd, now: float) -> tuple[FileName, ...]:
        """The same of this call alone. What it was to make and will not."""
        self.calls.pop(call.spec.call, None)
        lost = self.lineage.failed(call.spec.call) if self.lineage.remakes else ()
        if call.spec.call < FIRST_REMAKE:
            if end.outcome == CANCELLED:
                self.counters.cancelled += 1
            elif end.outcome != RETURNED:
                self.failures.ended(call, end, now)
            earlier = tuple(call.attempts) if call.attempts else ()
            self._done.append(CallDone(end, call.queued_at, call.sent_at, now, earlier, call.spec.tag))
        return lost

    def _lose_result(self, name: FileName, end: CallEnd, now: float) -> None:
        """A result cannot be made, or made again: neither is run what needs it."""
        detail = end.detail or EndDetail()
        why = detail.text or (f"its function raised {detail.types[0]}" if detail.types else "the call that makes it was not run to its end")
        file = self.replicas.files.get(name)
        self._lose_results((name,), f"file {file.ref.shown if file is not None else name} could not be made: {why}", now)

    def _end_without(self, call: Call, text: str, now: float) -> None:
        """It waits in no queue, and lacks a file, as ``text`` says."""
        self._lose_results(self._end_lacking(call, text, now), text, now)

    def _lose_results(self, names: Iterable[FileName], text: str, now: float) -> None:
        """Neither is run what needs these, nor what needs what that was to make, and so on: of all it is told why the first is missing."""
        lost = deque(names)
        if not lost:
            return
        while lost:
            name = lost.popleft()
            self.replicas.lose(name, text)
            for call in self.parked.pop(name, {}).values():
                self._leave_parking(call)
                lost.extend(self._end_lacking(call, text, now))
        self._all_look = True

    def _end_lacking(self, call: Call, text: str, now: float) -> tuple[FileName, ...]:
        return self._end(call, CallEnd(call.spec.call, call.attempt, NO_FILE, detail=EndDetail(text=text)), now)

    def _park(self, call: Call, name: FileName, *, away: bool = False) -> None:
        """It is in no queue any more, and waits for this result; or (``away``) for this file, whose source does not answer."""
        call.parked = name
        call.queue.parked += 1
        self.parked.setdefault(name, {})[call.spec.call] = call
        if away:
            call.queue.away += 1
            call.away = True
        else:
            self.replicas.orphaned.append(name)

    def _unpark(self, names: Iterable[FileName]) -> None:
        """These are there again, or it is to be seen whether they are."""
        for name in names:
            for call in reversed(self.parked.pop(name, {}).values()):
                self._leave_parking(call)
                self._requeue(call)

    def _drop_parked(self, call: Call) -> None:
        calls = self.parked[call.parked]
        del calls[call.spec.call]
        if not calls:
            del self.parked[call.parked]
        self._leave_parking(call)

    def _leave_parking(self, call: Call) -> None:
        call.queue.parked -= 1
        call.queue.away -= call.away
        call.parked, call.away = FileName(""), False

    def _send(self, worker: Worker, message: Message) -> None:
        if worker.to_run:
            self._flush_runs(worker)
        self._outbox.setdefault(worker.id, []).append(message)

    def _flush_runs(self, worker: Worker) -> None:
        runs = worker.to_run
        if not runs:
            return
        out = self._outbox.setdefault(worker.id, [])
        out += map(RunCalls, batches(runs, message_bytes, RUN_BYTES))
        worker.recent.extend(run.spans for run in runs if run.spans)
        worker.to_run = []

    def _refresh(self, instance: Instance) -> None:
        worker = self.workers.get(instance.worker)
        if worker is not None and worker.usable:
            self.libraries[instance.library].refresh(instance)
        else:
            self._off_lists(instance)

    def _off_lists(self, instance: Instance) -> None:
        state = self.libraries[instance.library]
        state.idle.pop(instance.id, None)
        state.roomy.pop(instance.id, None)
        state.loaded.pop(instance.id, None)

    def _gone(self, instance: Instance, worker: Worker, now: float) -> None:
        """An instance is no more."""
        self._off_lists(instance)
        self._aim(instance, 0, slots=0)
        self.libraries[instance.library].changed.pop(instance.id, None)
        self._shrinking.pop(instance.id, None)
        self._ahead.pop(instance.id, None)
        worker.instances.pop(instance.id, None)
        if worker.by_library.get(instance.library) is instance:
            del worker.by_library[instance.library]
        self.libraries[instance.library].instances.pop(instance.id, None)

    def _aim(self, instance: Instance, target: int, *, slots: int | None = None, heir: LibraryId | None = None) -> None:
        """An instance is to have so many slots. ``slots``: and has so many now; ``heir``: whom those that it is to lose are for."""
        self._due[instance.promised] -= instance.slots - instance.target
        if slots is not None:
            instance.slots = slots
        if heir is not None:
            instance.promised = heir
        self._due[instance.promised] += instance.slots - target
        state = self.libraries[instance.library]
        state.slots += target - instance.target
        if instance.phase is Phase.STARTING:
            state.coming += target - instance.target
        instance.target = target
        instance.places = target * instance.spec.concurrency if target >= instance.slots else target

    def _restructured(self, gained: Worker | None = None) -> None:
        """Workers or instances have changed; ``gained``: who may give libraries more than before."""
        self.structure += 1
        if gained is not None:
            self._has_gained(gained.id)
        self.demand_changed = self._all_look = True

    def _fell_idle(self, state: LibraryState, worker: Worker) -> None:
        """The last call of a library has ended, on this worker: others may have waited for the slots that it has there and elsewhere."""
        self._restructured(worker)
        if self._starved:
            for instance in islice(state.idle.values(), LOOKED_AT):
                self._has_gained(instance.worker)

    def _wake_starved(self, now: float) -> None:
        """Libraries that wait for slots are to look again, also at workers that have not got anything, as what kept slots from being
        moved may be over. Where there are many workers, at some."""
        if self._starved:
            self._take_turns(now)
        self._dirty.update(self._starved)

    def _take_turns(self, now: float) -> None:
        """Those of the next workers that have something to give count as ones that have got it."""
        self.structure += 1
        most, self._moved = LOOKED_AT if self._moved else self._looks_in_vain(), False
        for worker in self._turns.next(self.workers, most):
            if may_give(worker, now):
                self._has_gained(worker.id)

    def _looks_in_vain(self) -> int:
        """At how many workers so many libraries may look of which none had anything at the last ones."""
        looking = sum(bool(state.waiting or state.loaded) for state in self.libraries.values())
        return max(1, min(LOOKED_AT, LOOKS_MOST // max(1, looking)))

    def _has_gained(self, worker_id: WorkerId) -> None:
        """This one is the newest of those that have got something."""
        for newest_last in (self._gained, self._spare):
            newest_last.pop(worker_id, None)
            newest_last[worker_id] = self.structure

    def check(self) -> None:
        """Invariants between the collections; raises AssertionError."""
        self.replicas.check(self.workers)
        waiting = {call.spec.call for queue in self._queues.values() for call in queue.every() if not call.cancelled}
        sent = {call_id for worker in self.workers.values() for call_id in worker.calls}
        assert not waiting & sent, f"both waiting and sent: {waiting & sent}"
        parked = {call_id for calls in self.parked.values() for call_id in calls}
        assert waiting | sent | parked == set(self.calls), f"lost track of {set(self.calls) ^ (waiting | sent | parked)}"
        assert all(call.parked == name and not call.worker for name, calls in self.parked.items() for call in calls.values())
        assert all(self.parked.values())
        parkers = [call for calls in self.parked.values() for call in calls.values()]
        parks, keeps = Counter(id(call.queue) for call in parkers), Counter(id(call.queue) for call in parkers if call.away)
        self.lineage.check()
        running, held = Counter[int](), Counter[tuple[WorkerId, LibraryId]]()
        for worker in self.workers.values():
            for call in worker.calls.values():
                running[id(call.queue)] += 1
                held[worker.id, call.spec.library] += call.weight
        for queue in self._queues.values():
            live = sum(not call.cancelled for call in queue.every())
            assert queue.waiting == live, f"{queue.waiting} counted, {live} waiting"
            assert queue.running == running[id(queue)]
            assert (queue.parked, queue.away) == (parks.pop(id(queue), 0), keeps[id(queue)])
        assert not parks, "calls are parked whose queues are forgotten"
        for state in self.libraries.values():
            assert state.waiting == sum(queue.waiting for queue in state.queues)
            assert state.plain == sum(queue.plain for queue in state.queues)
            assert state.running == sum(queue.running for queue in state.queues)
            assert state.slots == sum(one.target for one in state.instances.values())
            assert state.coming == sum(one.target for one in state.instances.values() if one.phase is Phase.STARTING)
            for instance in state.instances.values():
                worker = self.workers[instance.worker]
                assert worker.instances[instance.id] is instance
                if worker.by_library.get(instance.library) is instance:
                    there = held[worker.id, instance.library]
                    assert instance.outstanding == there, f"{instance.outstanding} outstanding, {there} held"
                assert 0 <= instance.target <= instance.slots <= slots_in(instance.share, worker.info.resources, state.spec.slots)
                assert instance.places == instance.target * (state.spec.concurrency if instance.target == instance.slots else 1)
                assert instance.id not in state.idle or instance.outstanding < instance.places
                assert instance.id not in state.roomy or not instance.stuck or instance.id in self._ahead
                assert instance.id in self._ahead or instance.outstanding <= instance.running_most
                assert instance.id not in state.loaded or instance.outstanding > instance.places
                above = instance.serving and worker.usable and instance.outstanding > instance.places
                assert instance.id in state.loaded or not above, "calls wait there, and would not be recalled"
            assert all(queue.needs == state.steps.kind_of(queue.options.needs) for queue in state.queues)
            assert state.steps.needed or not any(queue.options.needs.cores or queue.options.needs.memory for queue in state.queues)
            assert not state.steps.needed or state.steps.known >= self.shapes.keys()
        assert self.shapes == Counter(worker.info.resources for worker in self.workers.values())
        assert self._gained.keys() == self.workers.keys()
        assert self._spare.keys() <= self.workers.keys()
        owed: Counter[LibraryId] = Counter()
        for worker in self.workers.values():
            assert worker.id in self._spare or used_up(worker)
            for one in worker.instances.values():
                owed[one.promised] += one.slots - one.target
        assert owed == self._due, f"{owed} are due, {self._due} counted"
        assert self._claimed.keys() <= self.workers.keys()
        for worker in self.workers.values():
            assert worker.claim is None or self._claimed.get(worker.id) is worker
            lent = sum(one.slots * one.share.cores for one in worker.instances.values())
            assert lent <= worker.info.resources.cores + 1e-6, f"{lent} cores lent of {worker.info.resources.cores}"
