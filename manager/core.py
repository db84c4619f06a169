"""The manager's core: a state machine over calls, libraries, workers and pools.

Theory of operation
-------------------
Events are method calls that carry ``now``; what is to be done comes out of `take_outbox` (messages for workers) and `take_done`
(ends for the client).  Nothing here does I/O or looks at a clock, so the real shell and a simulator run the same code.

*Calls.* waiting → sent → ended, with ways back to waiting: returned unstarted (free), lost with the worker (counts a loss), died or raised
and worth a retry (counts a failure).  Each call ends exactly once: it leaves ``calls`` in `_finish` and nowhere else.  An answer counts only if the call is still
sent to that worker with that attempt number.

*Dispatch* (`pump`) looks at the libraries that something happened to in this turn ("dirty").  A library's calls go to its idle instances, then to
those with room ahead.  If calls still wait, more slots are looked for (`placement`); if none can be had, queued calls of loaded instances are
recalled for idle ones.  The cost of a call is constant, whatever the number of waiting calls, workers and libraries.

*Losses teach.* A call that was lost while running needs longer than it ran when its pilot came to its walltime: it is placed where more time is left, and ends with
`TOO_LONG` when no pool's walltime is longer.

`check` states the invariants; tests call it after every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from windlass.manager.calls import CLOSED, LIBRARY_FAILED, LOST, NOT_POSSIBLE, TOO_LONG, Call, CallQueue
from windlass.manager.demand import demand_of
from windlass.manager.libraries import LibraryState
from windlass.manager.placement import fits, grants, reclaimable, slots_in, why_never
from windlass.manager.workers import Instance, Phase, Worker, slot_share, weight_of
from windlass.messages import (
    BAD_CALL,
    CANCELLED,
    DIED,
    OUT_OF_MEMORY,
    RAISED,
    RETURNED,
    TIMED_OUT,
    AddFunctions,
    CallAttempt,
    CallDone,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    CallsReturned,
    CancelCalls,
    Demand,
    Drain,
    EndDetail,
    ForgetFunctions,
    FunctionDef,
    FunctionId,
    HeldCall,
    InstanceId,
    Leave,
    LibraryFailed,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    LibraryStopped,
    Message,
    PilotId,
    PoolName,
    PoolOffer,
    PoolReport,
    RecallCalls,
    Resources,
    RunCalls,
    SetSlots,
    StartLibrary,
    StopLibrary,
    WorkerDraining,
    WorkerId,
    WorkerInfo,
    WorkerReport,
)

#: Zygotes without slots that a worker keeps warm for their next call.
WARM_INSTANCES = 4
#: Starts that may crash or time out in a row before a library counts as one that cannot start.
CRASHES_MOST = 3
#: Bytes of payload in one `RunCalls`, well under the limit of a frame.
RUN_BYTES = 256 << 10
#: Functions that are remembered without a call or a library naming them.
FUNCTIONS_MOST = 20_000
#: A recall is worth its round trip when the queued work would take at least so long.
RECALL_SECONDS = 0.005

_OUTCOME_WORDS = {
    RETURNED: "returned",
    RAISED: "raised",
    DIED: "slot died",
    TIMED_OUT: "timed out",
    OUT_OF_MEMORY: "out of memory",
    CANCELLED: "cancelled",
    BAD_CALL: "could not be run",
    LOST: "lost with its worker",
}


class Settings(msgspec.Struct, frozen=True):
    """Times of the core, in seconds."""

    #: A worker whose connection is cut has so long to come back with its session.
    reconnect_grace: float = 60.0


class Counters(msgspec.Struct):
    """Numbers since the start."""

    submitted: int = 0
    returned: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    lost: int = 0


class Core:
    """All decisions of one manager."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.calls: dict[CallId, Call] = {}
        self.libraries: dict[LibraryId, LibraryState] = {}
        self.workers: dict[WorkerId, Worker] = {}
        self.functions: dict[FunctionId, FunctionDef] = {}
        self.offers: dict[str, tuple[PoolOffer, ...]] = {}
        self.reports: dict[str, PoolReport] = {}
        self.counters = Counters()
        #: Changes when workers, instances or libraries come or go: what failed to find room is tried again.
        self.structure = 0
        self._queues: dict[tuple[LibraryId, CallOptions, float], CallQueue] = {}
        self._queue_of: dict[tuple[LibraryId, int], CallQueue] = {}
        self._dirty: dict[LibraryId, LibraryState] = {}
        self._starved: dict[LibraryId, LibraryState] = {}
        self._shrinking: dict[InstanceId, Instance] = {}
        self._outbox: dict[WorkerId, list[Message]] = {}
        self._done: list[CallDone] = []
        self._next_instance = 1
        self.demand_changed = True

    # ------------------------------------------------------------ client

    def install(self, spec: LibrarySpec, now: float) -> None:
        """A library version is there to be called; installing it again changes nothing."""
        if spec.id in self.libraries:
            self.libraries[spec.id].removed = False
            return
        self.libraries[spec.id] = LibraryState(spec)
        for function in spec.functions:
            self.functions[function.id] = function
        self.structure += 1

    def remove(self, library: LibraryId, now: float) -> None:
        """No more calls of this version will come; its instances end when its calls have."""
        state = self.libraries.get(library)
        if state is not None:
            state.removed = True
            self._dirty[library] = state

    def define(self, functions: Iterable[FunctionDef]) -> None:
        """Functions that calls will name."""
        for function in functions:
            # Last defined, last forgotten.
            self.functions.pop(function.id, None)
            self.functions[function.id] = function
        if len(self.functions) > FUNCTIONS_MOST:
            self._forget_functions()

    def submit(self, specs: Sequence[CallSpec], now: float) -> None:
        """Queue calls."""
        calls, queue_of = self.calls, self._queue_of
        self.counters.submitted += len(specs)
        for spec in specs:
            queue = queue_of.get((spec.library, id(spec.options)))
            if queue is None or queue.options is not spec.options:
                found = self._queue_for(spec.library, spec.options, spec.options.expected_time)
                if isinstance(found, str):
                    self._refuse(spec, found, now)
                    continue
                queue = found
                if len(queue_of) > 1000:
                    queue_of.clear()
                if queue.options is spec.options:
                    queue_of[spec.library, id(spec.options)] = queue
            state = self.libraries[spec.library]
            if state.failed:
                self._end_unqueued(spec, LIBRARY_FAILED, state.failed, now)
                continue
            call = Call(spec, now, queue)
            calls[spec.call] = call
            queue.calls.append(call)
            queue.waiting += 1
            state.waiting += 1
            self._dirty[spec.library] = state
        self.demand_changed = True

    def cancel(self, ids: Iterable[CallId], now: float) -> None:
        """End these calls, whatever their state; those that have ended already are left alone."""
        to_workers: dict[WorkerId, list[HeldCall]] = {}
        for call_id in ids:
            call = self.calls.get(call_id)
            if call is None or call.cancelled:
                continue
            if call.worker:
                call.cancelled = True
                to_workers.setdefault(call.worker, []).append(HeldCall(call_id, call.attempt))
            else:
                self._drop_waiting(call)
                self._finish(call, CallEnd(call_id, call.attempt, CANCELLED), now)
        for worker_id, held in to_workers.items():
            worker = self.workers[worker_id]
            for start in range(0, len(held), 10_000):
                self._send(worker, CancelCalls(tuple(held[start : start + 10_000])))

    def close(self, reason: str, now: float) -> None:
        """The manager ends: every call ends, every worker is sent away. Nothing is to be asked of this core afterwards."""
        for call in list(self.calls.values()):
            if not call.worker:
                self._drop_waiting(call)
            self._finish(call, CallEnd(call.spec.call, call.attempt, CLOSED, detail=EndDetail(text=reason)), now)
        for queue in self._queues.values():
            queue.calls.clear()
            queue.running = 0
        for state in self.libraries.values():
            state.running = 0
        for worker in self.workers.values():
            worker.calls.clear()
            worker.to_run.clear()
            for instance in worker.instances.values():
                instance.outstanding = 0
                self._off_lists(instance)
            self._send(worker, Leave(reason))

    # ------------------------------------------------------------ workers

    def worker_joined(self, worker_id: WorkerId, info: WorkerInfo, now: float) -> None:
        """A worker has a new session. An older one of the same worker is lost."""
        if worker_id in self.workers:
            self.worker_lost(worker_id, "the worker began a new session", now)
        worker = Worker(worker_id, info, now, idle_since=now, memory_limit=info.resources.memory)
        if info.seconds_left:
            worker.ends_at = now + info.seconds_left
        if not info.accepting:
            worker.draining = "not accepting"
        self.workers[worker_id] = worker
        self._restructured()

    def worker_cut(self, worker_id: WorkerId, now: float) -> None:
        """Its connection is cut; the session lives for `Settings.reconnect_grace`."""
        worker = self.workers.get(worker_id)
        if worker is not None and worker.connected:
            worker.given_up_at = now + self.settings.reconnect_grace
            for instance in worker.instances.values():
                self._off_lists(instance)
            self._restructured()

    def worker_back(self, worker_id: WorkerId, now: float) -> None:
        """It has taken up its session again."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.given_up_at = 0.0
            for instance in worker.instances.values():
                self._refresh(instance)
            self._restructured()

    def worker_lost(self, worker_id: WorkerId, reason: str, now: float) -> None:
        """Its session is over: its calls go back."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        self._outbox.pop(worker_id, None)
        # Only what was started is a loss. Sent calls stand in order; the oldest, as many as the instance has slots, were running.
        started: dict[InstanceId, int] = {}
        at_walltime = bool(worker.ends_at) and now >= worker.ends_at - 30.0
        instance_of = {library: instance for library, instance in worker.by_library.items()}
        back: list[Call] = []
        for call in worker.calls.values():
            instance = instance_of.get(call.spec.library)
            if instance is not None and started.get(instance.id, 0) < instance.slots and instance.phase is Phase.READY:
                started[instance.id] = started.get(instance.id, 0) + call.weight
                self._lose(call, worker, reason, now, at_walltime)
            back.append(call)
        for instance in list(worker.instances.values()):
            self._gone(instance, worker, now)
        for call in reversed(back):
            self._back(call, now)
        self._restructured()

    def pilots_ended(self, pool: PoolName, ended: Iterable[tuple[PilotId, str]], now: float) -> None:
        """The batch system says that these pilots have ended: their sessions are over if no connection stands."""
        reasons = dict(ended)
        for worker in list(self.workers.values()):
            if worker.info.pool == pool and worker.info.pilot in reasons and not worker.connected:
                self.worker_lost(worker.id, f"its pilot ended: {reasons[worker.info.pilot]}", now)

    def release(self, pilots: Iterable[PilotId], pool: PoolName, reason: str, now: float) -> None:
        """A factory wants these pilots gone: drain their workers."""
        wanted = set(pilots)
        for worker in self.workers.values():
            if worker.info.pool == pool and worker.info.pilot in wanted and not worker.draining:
                self._send(worker, Drain(reason))
                self._drain(worker, reason)

    def worker_said(self, worker_id: WorkerId, messages: Iterable[Message], now: float) -> None:
        """Take in what a worker said, in order."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        for message in messages:
            if type(message) is CallsEnded:
                self._calls_ended(worker, message.ends, now)
            elif isinstance(message, CallsReturned):
                self._calls_returned(worker, message, now)
            elif isinstance(message, LibraryReady):
                self._library_ready(worker, message, now)
            elif isinstance(message, LibraryFailed):
                self._library_failed(worker, message, now)
            elif isinstance(message, LibraryStopped):
                instance = worker.instances.get(message.instance)
                if instance is not None:
                    self._gone(instance, worker, now)
                    self._restructured()
            elif isinstance(message, WorkerDraining):
                self._drain(worker, message.reason)
                if message.seconds_left:
                    worker.ends_at = now + message.seconds_left
            elif isinstance(message, WorkerReport):
                worker.memory_used, worker.memory_limit = message.memory_used, message.memory_limit
                if message.seconds_left:
                    worker.ends_at = now + message.seconds_left

    # ------------------------------------------------------------ pools

    def pools_reported(self, factory: str, report: PoolReport, now: float) -> None:
        """What a factory's pools offer, and which of its pilots ended."""
        changed = self.offers.get(factory) != report.offers
        self.offers[factory] = report.offers
        self.reports[factory] = report
        for pool in {offer.pool for offer in report.offers}:
            self.pilots_ended(pool, ((one.pilot, one.reason) for one in report.ended), now)
        if changed:
            self._end_impossible(now)
            self.structure += 1

    def factory_left(self, factory: str, now: float) -> None:
        """A factory is gone; its pilots may live on."""
        self.offers.pop(factory, None)
        self.reports.pop(factory, None)

    def all_offers(self) -> tuple[PoolOffer, ...]:
        """Offers of all pools of all factories."""
        return tuple(offer for offers in self.offers.values() for offer in offers)

    def demand(self, now: float) -> Demand:
        """What could be used now."""
        self.demand_changed = False
        return demand_of(self.libraries.values(), self.workers.values(), now)

    # ------------------------------------------------------------ out

    def take_outbox(self) -> dict[WorkerId, list[Message]]:
        """Messages for workers since the last time, in the order in which they must be sent."""
        for worker in self.workers.values() if self._dirty_runs else ():
            self._flush_runs(worker)
        self._dirty_runs = False
        out, self._outbox = self._outbox, {}
        return out

    def take_done(self) -> list[CallDone]:
        """Ends of calls since the last time."""
        done, self._done = self._done, []
        return done

    _dirty_runs = False

    def tick(self, now: float) -> None:
        """Time has passed: sessions are given up, starved libraries and recalls are looked at again."""
        for worker in list(self.workers.values()):
            if worker.given_up_at and now >= worker.given_up_at:
                self.worker_lost(worker.id, f"not heard of for {self.settings.reconnect_grace:g} s", now)
        for state in list(self._starved.values()):
            state.tried = -1
            self._dirty[state.spec.id] = state
        for state in self.libraries.values():
            if state.running and state.idle and not state.waiting:
                self._recall(state, now, patient=False)

    # ------------------------------------------------------------ dispatch

    def pump(self, now: float) -> None:
        """Place what can be placed; call it once after a batch of events."""
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            # Who has fewest slots looks first: a slot taken from one library for another must not be granted back.
            for state in sorted(dirty.values(), key=LibraryState.slots) if len(dirty) > 1 else list(dirty.values()):
                if state.waiting:
                    self._dispatch(state, now)
                    if state.waiting and (state.tried != self.structure or not state.instances):
                        self._find_slots(state, now)
                if state.running and state.idle and not state.waiting:
                    self._recall(state, now, patient=True)
                if state.removed and not state.waiting and not state.running:
                    self._uninstall(state)
            if self._shrinking:
                self._finish_shrinks(now)

    def _dispatch(self, state: LibraryState, now: float) -> None:
        for queue in state.queues:
            if not queue.waiting:
                continue
            options = queue.options
            plain = not (options.needs.cores or options.needs.memory or options.needs.gpus or queue.least_seconds)
            skipped: list[Instance] = []
            while queue.waiting:
                if state.idle:
                    instance = next(iter(state.idle.values()))
                    room = instance.target - instance.outstanding
                elif state.roomy and plain:
                    instance = next(iter(state.roomy.values()))
                    room = instance.target * (1 + state.ahead) - instance.outstanding
                    # What waits is shared out evenly, so that the last calls do not pile up at one worker.
                    room = min(room, max(1, -(-queue.waiting // max(1, len(state.roomy)))))
                else:
                    break
                worker = self.workers[instance.worker]
                weight = 1
                if not plain:
                    weight = weight_of(options.needs, instance.share)
                    room = room // weight if weight else 0
                    if not room or worker.seconds_left(now) <= queue.least_seconds:
                        state.idle.pop(instance.id, None)
                        skipped.append(instance)
                        continue
                self._send_calls(state, queue, instance, worker, min(room, queue.waiting), weight, now)
                state.refresh(instance)
            for instance in skipped:
                state.refresh(instance)

    def _send_calls(self, state: LibraryState, queue: CallQueue, instance: Instance, worker: Worker, count: int, weight: int, now: float) -> None:
        timeout = queue.options.timeout
        known, calls, to_run, instance_id, worker_id = worker.functions, worker.calls, worker.to_run, instance.id, worker.id
        if not worker.calls:
            worker.idle_since = 0.0
        sent = 0
        while sent < count:
            call = queue.pop()
            if call is None:
                break
            spec = call.spec
            if spec.function not in known:
                definition = self.functions.get(spec.function)
                if definition is None:
                    state.waiting -= 1
                    text = "the manager no longer knows its function: submit it again"
                    self._finish(call, CallEnd(spec.call, call.attempt, BAD_CALL, detail=EndDetail(text=text)), now)
                    continue
                known.add(spec.function)
                self._send(worker, AddFunctions((definition,)))
                to_run = worker.to_run
            call.attempt += 1
            call.worker = worker_id
            call.sent_at = now
            call.weight = weight
            calls[spec.call] = call
            to_run.append(CallRun(spec.call, call.attempt, instance_id, spec.function, spec.payload, spec.spans, timeout, weight))
            sent += 1
        self._dirty_runs = True
        queue.running += sent
        state.waiting -= sent
        state.running += sent
        instance.outstanding += sent * weight

    def _find_slots(self, state: LibraryState, now: float) -> None:
        """Calls wait and no instance has room: grant free slots, or reclaim some."""
        state.tried = self.structure
        if state.failed:
            return
        for queue in state.queues:
            if not queue.waiting:
                continue
            # Instances that are starting will take calls too.
            coming = sum(one.target for one in state.instances.values() if one.phase is Phase.STARTING)
            wanted = queue.waiting - coming
            if wanted <= 0:
                continue
            for grant in grants(state, self.workers.values(), wanted, now, queue.least_seconds, queue.needs):
                self._grant(state, grant.worker, grant.instance, grant.slots, grant.share, now)
                wanted -= grant.slots
            if wanted > 0:
                self._reclaim(state, queue, now)
        if state.waiting:
            self._starved[state.spec.id] = state
        else:
            self._starved.pop(state.spec.id, None)

    def _grant(self, state: LibraryState, worker: Worker, instance: Instance | None, slots: int, share: Resources, now: float) -> None:
        spec = state.spec
        gpus = tuple(worker.free_gpu_ids()[: slots * share.gpus])
        if instance is None:
            self._make_room_for_zygote(worker)
            instance = Instance(InstanceId(self._next_instance), spec.id, worker.id, spec, slots, share, target=slots, gpu_ids=gpus, granted_at=now, idle_since=now)
            self._next_instance += 1
            worker.instances[instance.id] = instance
            worker.by_library[spec.id] = instance
            state.instances[instance.id] = instance
            worker.functions.update(function.id for function in spec.functions)
            self._send(worker, StartLibrary(instance.id, spec, slots, gpus))
        else:
            instance.slots += slots
            instance.target = instance.slots
            instance.granted_at = now
            instance.gpu_ids += gpus
            self._shrinking.pop(instance.id, None)
            self._send(worker, SetSlots(instance.id, instance.slots, instance.gpu_ids))
        self._refresh(instance)
        self._dirty[spec.id] = state

    def _reclaim(self, state: LibraryState, queue: CallQueue, now: float) -> None:
        """Take slots from other libraries, on the first worker where that gives this one a slot."""
        spec = state.spec
        for worker in self.workers.values():
            of = worker.info.resources
            if not worker.usable or spec.id in worker.unfit or worker.seconds_left(now) <= queue.least_seconds or not fits(spec, queue.needs, of):
                continue
            if any(one.target < one.slots for one in worker.instances.values()):
                continue  # a shrink is under way here
            share = slot_share(spec, of)
            mine = worker.by_library.get(spec.id)
            if mine is not None and mine.target >= slots_in(share, of, spec.slots):
                continue
            for instance, count in reclaimable(worker, state, self.libraries, share, now):
                instance.target -= count
                self._shrinking[instance.id] = instance
                self._refresh(instance)
                if instance.outstanding > instance.target and not instance.recalling:
                    instance.recalling = True
                    self._send(worker, RecallCalls(instance.id, instance.outstanding - instance.target))

    def _finish_shrinks(self, now: float) -> None:
        for instance in list(self._shrinking.values()):
            if instance.outstanding > instance.target:
                continue
            del self._shrinking[instance.id]
            worker = self.workers[instance.worker]
            keep = instance.target * instance.share.gpus
            instance.slots, instance.gpu_ids = instance.target, instance.gpu_ids[:keep]
            self._send(worker, SetSlots(instance.id, instance.slots, instance.gpu_ids))
            self._restructured()

    def _make_room_for_zygote(self, worker: Worker) -> None:
        """Keep few warm zygotes without slots: end the one that was idle longest."""
        warm = [one for one in worker.instances.values() if one.slots == 0 and not one.outstanding and one.phase is Phase.READY]
        if len(warm) >= WARM_INSTANCES:
            self._stop(min(warm, key=lambda one: one.idle_since), worker)

    def _stop(self, instance: Instance, worker: Worker) -> None:
        instance.phase = Phase.STOPPING
        instance.target = 0
        self._off_lists(instance)
        self._shrinking.pop(instance.id, None)
        worker.by_library.pop(instance.library, None)
        self._send(worker, StopLibrary(instance.id))

    def _recall(self, state: LibraryState, now: float, patient: bool) -> None:
        """Slots are idle and no call waits: take queued calls back from the most loaded instance."""
        loaded = [one for one in state.instances.values() if one.outstanding > one.target and not one.recalling and one.phase is Phase.READY]
        if not loaded:
            return
        free = sum(one.target - one.outstanding for one in state.idle.values())
        most = max(loaded, key=lambda one: one.outstanding / max(1, one.target))
        worker = self.workers[most.worker]
        if not worker.connected:
            return
        queued = most.outstanding - most.target
        if patient and queued * state.durations.mean / max(1, most.target) < RECALL_SECONDS:
            return  # it will be done sooner than it could be moved; the tick looks again
        most.recalling = True
        self._send(worker, RecallCalls(most.id, min(queued, max(free, queued // 2))))

    # ------------------------------------------------------------ what workers say

    def _calls_ended(self, worker: Worker, ends: Sequence[CallEnd], now: float) -> None:
        held, by_library, done, calls = worker.calls, worker.by_library, self._done, self.calls
        learned: dict[LibraryId, list[float]] = {}
        for end in ends:
            call = held.get(end.call)
            if call is None or call.attempt != end.attempt:
                continue  # a late answer
            del held[end.call]
            spec = call.spec
            library = spec.library
            instance = by_library.get(library)
            if instance is not None:
                instance.outstanding -= call.weight
            call.queue.running -= 1
            sums = learned.get(library)
            if sums is None:
                sums = learned[library] = [0.0, 0, 0.0, 0]
            sums[3] += 1
            if end.outcome == RETURNED:
                seconds = end.ended_at - end.started_at
                sums[0] += seconds
                sums[1] += 1
                if seconds > sums[2]:
                    sums[2] = seconds
                del calls[end.call]
                story = call.story
                done.append(CallDone(end, call.queued_at, call.sent_at, now, tuple(story) if story else ()))
            else:
                self._ended_badly(call, worker, end, now)
        for library, (total, number, longest, finished) in learned.items():
            state = self.libraries[library]
            state.running -= int(finished)
            if number:
                state.done += int(number)
                self.counters.returned += int(number)
                state.learn(total, int(number), longest)
            instance = by_library.get(library)
            if instance is not None:
                instance.served += int(finished)
                self._refresh(instance)
                if not instance.outstanding:
                    instance.idle_since = now
                if instance.target < instance.slots:
                    self._shrinking[instance.id] = instance
            self._dirty[library] = state
            if not state.running and not state.waiting:
                # Another library may have waited for this one to fall idle.
                self.structure += 1
                self._wake_starved()
        if not held:
            worker.idle_since = now
            self.demand_changed = True

    def _ended_badly(self, call: Call, worker: Worker, end: CallEnd, now: float) -> None:
        options = call.spec.options
        detail = end.detail or EndDetail()
        if call.cancelled or end.outcome == CANCELLED:
            self._finish(call, end, now)
            return
        self._tell(call, worker, end.outcome, max(0.0, end.ended_at - end.started_at))
        types = detail.types
        if end.outcome == TIMED_OUT:
            types = ("windlass.errors.CallTimeout", "windlass.errors.CallFailed", "builtins.TimeoutError")
        worth = end.outcome in (DIED, OUT_OF_MEMORY) or (bool(options.retry_on) and any(name in options.retry_on for name in types))
        if end.outcome == OUT_OF_MEMORY and options.grow_memory:
            grown = self._grown(call, worker, detail)
            if grown is not None:
                call.queue = grown
                self._requeue(call)
                self.counters.retried += 1
                return
        if worth and call.failures < options.retries:
            call.failures += 1
            self.counters.retried += 1
            self._requeue(call)
            return
        self._finish(call, end, now)

    def _grown(self, call: Call, worker: Worker, detail: EndDetail) -> CallQueue | None:
        """The queue for a call that asks for twice the memory it had, if anything has so much."""
        options = call.queue.options
        had = max(options.needs.memory, detail.share, detail.peak_memory)
        needs = Resources(options.needs.cores, had * 2, options.needs.gpus)
        larger = msgspec.structs.replace(options, needs=needs)
        spec = self.libraries[call.spec.library].spec
        if not any(fits(spec, needs, one.info.resources) for one in self.workers.values()) and (
            not self.all_offers() or why_never(spec, larger, self.all_offers(), ())
        ):
            return None
        found = self._queue_for(call.spec.library, larger, call.queue.least_seconds)
        return None if isinstance(found, str) else found

    def _calls_returned(self, worker: Worker, message: CallsReturned, now: float) -> None:
        back: list[Call] = []
        for held in message.calls:
            call = worker.calls.get(held.call)
            if call is not None and call.attempt == held.attempt:
                del worker.calls[held.call]
                back.append(call)
        for call in reversed(back):
            instance = worker.by_library.get(call.spec.library)
            if instance is not None:
                instance.outstanding -= call.weight
            self._back(call, now)
        for instance in worker.instances.values():
            if message.reason == "recalled":
                instance.recalling = False
            self._refresh(instance)
            self._dirty[instance.library] = self.libraries[instance.library]
            if instance.target < instance.slots:
                self._shrinking[instance.id] = instance
        if not worker.calls:
            worker.idle_since = now

    def _library_ready(self, worker: Worker, message: LibraryReady, now: float) -> None:
        instance = worker.instances.get(message.instance)
        if instance is None or instance.phase is not Phase.STARTING:
            return
        instance.phase = Phase.READY
        instance.ready = message
        state = self.libraries[instance.library]
        state.crashes = 0
        state.starts += 1
        state.hoisted_seconds += sum(one.seconds for one in message.imports) + message.context_seconds
        self._refresh(instance)
        self._dirty[instance.library] = state

    def _library_failed(self, worker: Worker, message: LibraryFailed, now: float) -> None:
        instance = worker.instances.get(message.instance)
        if instance is None:
            return
        state = self.libraries[instance.library]
        held = [call for call in worker.calls.values() if call.spec.library == instance.library]
        for call in held:
            del worker.calls[call.spec.call]
        self._gone(instance, worker, now)
        for call in reversed(held):
            self._back(call, now)
        if message.kind == "python":
            worker.unfit[instance.library] = message.text
            if all(instance.library in one.unfit for one in self.workers.values()):
                self._fail_library(state, message.text, now)
        elif message.kind in ("import", "context", "function"):
            self._fail_library(state, message.text, now)
        else:
            state.crashes += 1
            if state.crashes >= CRASHES_MOST:
                self._fail_library(state, f"{message.text}\nIt failed so {state.crashes} times in a row.", now)
        self._restructured()

    def _fail_library(self, state: LibraryState, text: str, now: float) -> None:
        state.failed = f"library {state.spec.name!r} cannot start: {text}"
        for queue in state.queues:
            while (call := queue.pop()) is not None:
                state.waiting -= 1
                self._finish(call, CallEnd(call.spec.call, call.attempt, LIBRARY_FAILED, detail=EndDetail(text=state.failed)), now)
        self._starved.pop(state.spec.id, None)

    def _drain(self, worker: Worker, reason: str) -> None:
        worker.draining = worker.draining or reason
        for instance in worker.instances.values():
            self._off_lists(instance)
        self._restructured()

    # ------------------------------------------------------------ the ways of a call

    def _queue_for(self, library: LibraryId, options: CallOptions, least_seconds: float) -> CallQueue | str:
        """The queue of a signature; or why there can be none."""
        state = self.libraries.get(library)
        if state is None:
            return f"library version {library!r} is not installed"
        key = (library, options, least_seconds)
        queue = self._queues.get(key)
        if queue is None:
            reason = why_never(state.spec, options, self.all_offers(), [one.info.resources for one in self.workers.values()])
            if reason:
                return f"no pool can ever run this call of library {state.spec.name!r}: {reason}"
            if len(state.queues) > 100:
                self._sweep_queues(state)
            queue = self._queues[key] = CallQueue(library, options, least_seconds, deque())
            state.queues.append(queue)
            state.queues.sort(key=lambda one: -one.options.priority)
            state.tried = -1
        return queue

    def _sweep_queues(self, state: LibraryState) -> None:
        for queue in [one for one in state.queues if not one.waiting and not one.running]:
            state.queues.remove(queue)
            self._queues.pop((queue.library, queue.options, queue.least_seconds), None)
        self._queue_of.clear()

    def _drop_waiting(self, call: Call) -> None:
        call.queue.drop(call)
        self.libraries[call.spec.library].waiting -= 1

    def _requeue(self, call: Call) -> None:
        """Wait again, first in line. The call is with no worker, and no longer counted as running."""
        call.worker = WorkerId("")
        call.queue.push_front(call)
        state = self.libraries[call.spec.library]
        state.waiting += 1
        self._dirty[call.spec.library] = state

    def _back(self, call: Call, now: float) -> None:
        """A sent call comes back without an end of its own."""
        state = self.libraries[call.spec.library]
        state.running -= 1
        call.queue.running -= 1
        options = call.spec.options
        if call.cancelled:
            self._finish(call, CallEnd(call.spec.call, call.attempt, CANCELLED), now)
        elif call.losses > options.max_losses:
            text = f"its worker was lost {call.losses} times while it ran"
            self._finish(call, CallEnd(call.spec.call, call.attempt, LOST, detail=EndDetail(text=text)), now)
        elif state.failed:
            self._finish(call, CallEnd(call.spec.call, call.attempt, LIBRARY_FAILED, detail=EndDetail(text=state.failed)), now)
        elif call.ran and (text := self._too_long(call.ran)):
            self._finish(call, CallEnd(call.spec.call, call.attempt, TOO_LONG, detail=EndDetail(text=text)), now)
        else:
            self._requeue(call)

    def _lose(self, call: Call, worker: Worker, reason: str, now: float, at_walltime: bool) -> None:
        """Note that a started attempt was lost, and what that teaches."""
        call.losses += 1
        self.counters.lost += 1
        ran = max(0.0, now - call.sent_at)
        self._tell(call, worker, LOST, ran, reason)
        if at_walltime:
            call.ran = max(call.ran, ran)
        if at_walltime and ran > call.queue.least_seconds:
            # Steps of a quarter keep the number of queues small.
            least = 1.0
            while least < ran:
                least *= 1.25
            found = self._queue_for(call.spec.library, call.queue.options, least / 1.25 if least > 1.0 else ran)
            if not isinstance(found, str):
                call.queue.running -= 1
                found.running += 1
                call.queue = found

    def _too_long(self, seconds: float) -> str:
        offers = self.all_offers()
        if not offers or any(not offer.walltime or offer.walltime > seconds for offer in offers):
            return ""
        if any(not one.ends_at for one in self.workers.values()):
            return ""
        longest = max(offer.walltime for offer in offers)
        return f"it ran for {seconds:.0f} s when its pilot came to its end, so it needs longer than that; the longest walltime of a pool is {longest:.0f} s"

    def _tell(self, call: Call, worker: Worker, outcome: int, seconds: float, reason: str = "") -> None:
        word = _OUTCOME_WORDS.get(outcome, str(outcome)) + (f" ({reason})" if reason else "")
        if call.story is None:
            call.story = []
        call.story.append(CallAttempt(call.attempt, worker.id, worker.info.host, word, seconds))

    def _finish(self, call: Call, end: CallEnd, now: float) -> None:
        """The one end of a call."""
        self.calls.pop(call.spec.call, None)
        if end.outcome == CANCELLED:
            self.counters.cancelled += 1
        elif end.outcome != RETURNED:
            self.counters.failed += 1
        self._done.append(CallDone(end, call.queued_at, call.sent_at, now, tuple(call.story) if call.story else ()))

    def _refuse(self, spec: CallSpec, text: str, now: float) -> None:
        self._end_unqueued(spec, NOT_POSSIBLE, text, now)

    def _end_unqueued(self, spec: CallSpec, outcome: int, text: str, now: float) -> None:
        self.counters.failed += 1
        self._done.append(CallDone(CallEnd(spec.call, 0, outcome, detail=EndDetail(text=text)), now, 0.0, now))

    def _end_impossible(self, now: float) -> None:
        """Pools have changed: end the waiting calls that none can ever run."""
        offers, of = self.all_offers(), [one.info.resources for one in self.workers.values()]
        for queue in list(self._queues.values()):
            if not queue.waiting:
                continue
            state = self.libraries[queue.library]
            reason = why_never(state.spec, queue.options, offers, of)
            while reason and (call := queue.pop()) is not None:
                state.waiting -= 1
                text = f"no pool can ever run this call of library {state.spec.name!r}: {reason}"
                self._finish(call, CallEnd(call.spec.call, call.attempt, NOT_POSSIBLE, detail=EndDetail(text=text)), now)

    # ------------------------------------------------------------ small parts

    def _send(self, worker: Worker, message: Message) -> None:
        if worker.to_run:
            self._flush_runs(worker)
        self._outbox.setdefault(worker.id, []).append(message)

    def _flush_runs(self, worker: Worker) -> None:
        runs = worker.to_run
        if not runs:
            return
        out = self._outbox.setdefault(worker.id, [])
        size = first = 0
        for index, run in enumerate(runs):
            size += len(run.payload) + 64 + 48 * len(run.spans)
            if size > RUN_BYTES:
                out.append(RunCalls(runs[first : index + 1]))
                size, first = 0, index + 1
        if first < len(runs):
            out.append(RunCalls(runs[first:] if first else runs))
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

    def _gone(self, instance: Instance, worker: Worker, now: float) -> None:
        """An instance is no more."""
        self._off_lists(instance)
        self._shrinking.pop(instance.id, None)
        worker.instances.pop(instance.id, None)
        if worker.by_library.get(instance.library) is instance:
            del worker.by_library[instance.library]
        self.libraries[instance.library].instances.pop(instance.id, None)

    def _restructured(self) -> None:
        self.structure += 1
        self.demand_changed = True
        for state in self.libraries.values():
            if state.waiting or state.removed:
                self._dirty[state.spec.id] = state

    def _wake_starved(self) -> None:
        for state in self._starved.values():
            if state.waiting:
                self._dirty[state.spec.id] = state

    def _uninstall(self, state: LibraryState) -> None:
        """A removed library has no calls left: end its instances; forget it when they are gone."""
        for instance in list(state.instances.values()):
            worker = self.workers.get(instance.worker)
            if worker is not None and instance.phase is not Phase.STOPPING:
                self._stop(instance, worker)
        if not state.instances:
            self._sweep_queues(state)
            if not state.queues:
                self.libraries.pop(state.spec.id, None)
                self._starved.pop(state.spec.id, None)

    def _forget_functions(self) -> None:
        kept = {function.id for state in self.libraries.values() for function in state.spec.functions}
        kept.update(call.spec.function for call in self.calls.values())
        forgotten = [key for key in self.functions if key not in kept][: FUNCTIONS_MOST // 2]
        for key in forgotten:
            del self.functions[key]
        for worker in self.workers.values():
            gone = tuple(key for key in forgotten if key in worker.functions)
            if gone:
                worker.functions.difference_update(gone)
                self._send(worker, ForgetFunctions(gone))

    def check(self) -> None:
        """Invariants between the collections; raises AssertionError."""
        waiting = {call.spec.call for queue in self._queues.values() for call in queue.calls if not call.cancelled}
        sent = {call_id for worker in self.workers.values() for call_id in worker.calls}
        assert not waiting & sent, f"both waiting and sent: {waiting & sent}"
        assert waiting | sent == set(self.calls), f"lost track of {set(self.calls) ^ (waiting | sent)}"
        for queue in self._queues.values():
            live = sum(not call.cancelled for call in queue.calls)
            assert queue.waiting == live, f"{queue.waiting} counted, {live} waiting"
            assert queue.running == sum(call.queue is queue for one in self.workers.values() for call in one.calls.values())
        for state in self.libraries.values():
            assert state.waiting == sum(queue.waiting for queue in state.queues)
            assert state.running == sum(queue.running for queue in state.queues)
            for instance in state.instances.values():
                worker = self.workers[instance.worker]
                assert worker.instances[instance.id] is instance
                held = sum(call.weight for call in worker.calls.values() if call.spec.library == state.spec.id)
                if worker.by_library.get(instance.library) is instance:
                    assert instance.outstanding == held, f"{instance.outstanding} outstanding, {held} held"
                assert 0 <= instance.target <= instance.slots
                assert instance.id not in state.idle or instance.outstanding < instance.target
        for worker in self.workers.values():
            lent = sum(one.slots * one.share.cores for one in worker.instances.values())
            assert lent <= worker.info.resources.cores + 1e-6, f"{lent} cores lent of {worker.info.resources.cores}"
