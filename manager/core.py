"""The manager's core: a state machine over calls, libraries, workers and pools.

Theory of operation
-------------------
Events are method calls that carry ``now``; what is to be done comes out of `take_outbox` (messages for workers) and `take_done`
(ends for the client).  Nothing here does I/O or looks at a clock, so the real shell and a simulator run the same code. Five layers, each
a class: `Books` (what is known), `Dispatch` (who gets what), `Attempts` (what becomes of calls that were sent), `Starts` (of libraries and
their instances), `Core` (all other events).

*Calls.* waiting → sent → ended, with ways back to waiting: returned unstarted (free), lost with the worker (counts a loss), died or raised
and worth a retry (counts a failure).  Each call ends exactly once: it leaves the books at its end and nowhere else.  An answer counts
only if the call is still sent to that worker with that attempt number.

*Losses teach.* A call that was lost while running needs longer than it ran when its pilot came to its walltime: it is placed where more
time is left, and ends with `TOO_LONG` when no pool's walltime is longer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice

import msgspec

from windlass.manager.books import Books, Counters, Settings
from windlass.manager.calls import CLOSED, LIBRARY_FAILED, NOT_POSSIBLE, Call
from windlass.manager.demand import demand_of
from windlass.manager.libraries import QUIET_SECONDS
from windlass.manager.lineage import FIRST_REMAKE, products_of
from windlass.manager.placement import spent
from windlass.manager.starts import Starts
from windlass.manager.told import untold_files
from windlass.manager.workers import AWAY_LEAST, AWAY_MOST, Phase, Worker, busy_cores, busy_gpus
from windlass.messages import (
    CANCELLED,
    NO_FILE,
    BlockHost,
    CallDone,
    CallEnd,
    CallId,
    CallOptions,
    CallsEnded,
    CallSpec,
    CallsReturned,
    CancelCalls,
    Demand,
    Drain,
    EndDetail,
    FileFailed,
    FileHere,
    FileLost,
    FileName,
    FileOrigin,
    FilePushed,
    FileRef,
    FilesGone,
    ForgetFunctions,
    FunctionDef,
    HeldCall,
    InstanceId,
    Leave,
    LibraryFailed,
    LibraryReady,
    LibraryStopped,
    Message,
    PilotId,
    PoolName,
    PoolReport,
    Serving,
    WantFiles,
    WorkerDraining,
    WorkerId,
    WorkerInfo,
    WorkerReport,
)

__all__ = ["Books", "Core", "Counters", "Settings"]

#: Functions that are remembered without a call or a library naming them.
FUNCTIONS_MOST = 20_000
#: An idle worker without time enough for any of the calls that wait is let go after so many seconds.
SPENT_SECONDS = 5.0
#: Sessions that are given up in one tick, so that many which are over together do not hold up all others.
GIVEN_UP_AT_ONCE = 200
#: While calls run that have turned out long, what could be used is told again after so many seconds.
AGAIN_SECONDS = 5.0


class Core(Starts):
    """All decisions of one manager."""

    #: Number of functions at which those that nothing names are looked for.
    _forget_at = FUNCTIONS_MOST
    _ticked_at = _demand_at = 0.0
    _look_impossible = False

    def define(self, functions: Iterable[FunctionDef]) -> None:
        """Functions that calls will name."""
        for function in functions:
            # Last defined, last forgotten.
            self.functions.pop(function.id, None)
            self.functions[function.id] = function
        if len(self.functions) > self._forget_at:
            self._forget_functions()
            # Where most are needed, the next look is worth it only when there are many more.
            self._forget_at = max(FUNCTIONS_MOST, 2 * len(self.functions))

    def submit(self, specs: Sequence[CallSpec], now: float) -> None:
        """Queue calls."""
        calls, queue_of = self.calls, self._queue_of
        self.counters.submitted += len(specs)
        for spec in specs:
            files = bool(spec.inputs)
            key = (spec.library, id(spec.options), files)
            queue = queue_of.get(key)
            if queue is None or queue.options is not spec.options:
                found = self._queue_for(spec.library, spec.options, self._least(spec.library, spec.options, files), files)
                if isinstance(found, str):
                    self._refuse(spec, found, now)
                    continue
                queue = found
                if len(queue_of) > 1000:
                    queue_of.clear()
                if queue.options is spec.options:
                    queue_of[key] = queue
            state = self.libraries[spec.library]
            if state.failed:
                self._end_unqueued(spec, LIBRARY_FAILED, state.failed, now)
                continue
            call = Call(spec, now, queue)
            calls[spec.call] = call
            if spec.sandbox is not None and spec.call < FIRST_REMAKE and (made := products_of(spec)):
                self.lineage.expect(spec, made)
                self.replicas.expect(made)
            queue.calls.append(call)
            queue.waiting += 1
            state.waiting += 1
            self._dirty[spec.library] = state
        self.demand_changed = True

    def declare_file(self, ref: FileRef, origin: FileOrigin) -> None:
        """Calls will name this file."""
        self.replicas.declare(ref, origin)

    def declare_made(self, ref: FileRef, spec: CallSpec) -> None:
        """Calls will name this file, which a call makes when it is first needed."""
        self.replicas.declare(ref, FileOrigin())
        self.lineage.expect(spec, (ref.name,), under_way=False)

    def release_files(self, names: Iterable[FileName], prune: bool) -> None:
        """One who declared these needs them no more."""
        names = tuple(names)
        self.replicas.release(names, prune=prune)
        self.lineage.released(names)

    def bring_files(self, names: Iterable[FileName]) -> None:
        """Somebody wants these results in the manager's store; ``replicas.brought`` says which are."""
        self.replicas.bring(names)

    def _remake(self, now: float) -> None:
        orphaned, self.replicas.orphaned = self.replicas.orphaned, []
        specs: list[CallSpec] = []
        for name in dict.fromkeys(orphaned):
            file = self.replicas.files.get(name)
            found = self.lineage.remake(name, lost=file is None or not file.evicted)
            if isinstance(found, str):
                self._lose_result(name, CallEnd(CallId(0), 0, NO_FILE, detail=EndDetail(text=found)), now)
                continue
            self.replicas.orphan(name)
            if found is not None:
                specs.append(found)
        if specs:
            self.counters.submitted -= len(specs)
            self.submit(specs, now)
            self._dispatch_dirty(now)

    def has_waiting(self) -> bool:
        """Calls wait for slots."""
        return any(state.waiting for state in self.libraries.values())

    def withdraw(self, ids: Iterable[CallId]) -> list[CallSpec]:
        """Take back those of these calls that wait: they are run elsewhere, and may be submitted again."""
        specs: list[CallSpec] = []
        for call_id in ids:
            call = self.calls.get(call_id)
            if call is not None and not call.worker and not call.cancelled and not call.parked:
                self._drop_waiting(call)
                del self.calls[call_id]
                self.counters.submitted -= 1
                specs.append(call.spec)
        return specs

    def runs_as(self, call_id: CallId, options: CallOptions) -> bool:
        """It is at a worker, on the terms that one with these options would have there."""
        call = self.calls.get(call_id)
        if call is None or not call.worker or call.cancelled:
            return False
        known = call.spec.options
        return msgspec.structs.replace(options, priority=known.priority, expected_time=known.expected_time) == known

    def tags_of(self, ids: Iterable[CallId]) -> set[str]:
        """The tags of these calls, as far as they have not ended."""
        return {call.spec.tag for one in ids if (call := self.calls.get(one)) is not None} - {""}

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
        text = f"the call ended with its manager ({reason}) before it had a result; submit it to another one"
        for call in list(self.calls.values()):
            if not call.worker:
                self._drop_waiting(call)
            # Those that wait for what it was to make have their turn here too.
            self._end(call, CallEnd(call.spec.call, call.attempt, CLOSED, detail=EndDetail(text=text)), now)
        for queue in self._queues.values():
            queue.clear()
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

    def worker_joined(self, worker_id: WorkerId, info: WorkerInfo, now: float) -> None:
        """A worker has a new session. An older one of the same worker is lost."""
        if worker_id in self.workers:
            self.worker_lost(worker_id, "the worker began a new session", now)
        worker = Worker(worker_id, info, now, idle_since=now, memory_limit=info.resources.memory)
        worker.busy, worker.busy_gpus = busy_cores(info.busy, info.resources), busy_gpus(info.busy_gpus, info.resources)
        if info.seconds_left:
            worker.ends_at = now + info.seconds_left
        if not info.accepting:
            worker.draining = "not accepting"
        self.workers[worker_id] = worker
        self.shapes[info.resources] += 1
        if self.shapes[info.resources] == 1:
            self._learn_shapes((info.resources,), self.libraries.values())
        if info.environment is not None:
            self.replicas.declare_environment(info.environment)
        self.means += 1
        self._restructured(worker)
        self._leave_blocked(worker)

    def worker_cut(self, worker_id: WorkerId, now: float) -> None:
        """Its connection is cut; the session lives for `Settings.reconnect_grace`, unless its pilot has ended."""
        worker = self.workers.get(worker_id)
        if worker is not None and worker.pilot_ended:
            self.worker_lost(worker_id, worker.pilot_ended, now)
        elif worker is not None and worker.connected:
            worker.cut_at = now
            for instance in worker.instances.values():
                self._off_lists(instance)
            self._restructured()

    def worker_back(self, worker_id: WorkerId, now: float) -> None:
        """It has taken up its session again."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.cut_at = 0.0
            for instance in worker.instances.values():
                instance.moved()
                self._refresh(instance)
            self._restructured(worker)

    def worker_is_away(self, worker_id: WorkerId, seconds: float) -> None:
        """Messages take so long to it and back, as its connection has it."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.away = min(seconds, AWAY_MOST) if seconds >= AWAY_LEAST else 0.0
            for instance in worker.instances.values():
                instance.away = worker.away
                self._refresh(instance)

    def worker_lost(self, worker_id: WorkerId, reason: str, now: float, *, idle: bool = False) -> None:
        """Its session is over: its calls go back. ``idle``: by its own word it held none, so they were on their way to it."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        self.shapes[worker.info.resources] -= 1
        last = not self.shapes[worker.info.resources]
        if last:
            del self.shapes[worker.info.resources]
        self._gained.pop(worker_id, None)
        self._spare.pop(worker_id, None)
        self._claimed.pop(worker_id, None)
        worker.claim = None
        if self.recorder is not None:
            self.recorder.worker_gone(worker_id)
        self.means += 1
        self.replicas.worker_lost(worker_id, orderly=bool(worker.draining))
        self._outbox.pop(worker_id, None)
        # Only what was started is a loss. Sent calls stand in order; the oldest, as many as the instance has places, were running.
        started: dict[InstanceId, int] = {}
        # What became of it since it was cut, nobody knows: its pilot may have ended at once.
        ended = worker.cut_at or now
        instance_of = dict(worker.by_library)
        back: list[Call] = []
        for call in worker.calls.values():
            instance = instance_of.get(call.spec.library) if not idle else None
            if instance is not None and started.get(instance.id, 0) < instance.running_most and instance.phase is Phase.READY:
                started[instance.id] = started.get(instance.id, 0) + call.weight
                self._lose(call, worker, reason, ended, now)
            back.append(call)
        for instance in list(worker.instances.values()):
            self._gone(instance, worker, now)
        for call in reversed(back):
            self._back(call, now)
        # Only it may have been left of a pool that can have no pilots any more. (Looked at by `tick`: many go together.)
        self._look_impossible = self._look_impossible or (last and any(offer.spent for offer in self.all_offers()))
        self._try_unfit_again()
        self._restructured()

    def pilots_ended(self, pools: Collection[PoolName], ended: Iterable[tuple[PilotId, str]], now: float) -> None:
        """The batch system says that these pilots have ended: their sessions are over, or will be when their connections are cut."""
        reasons = dict(ended)
        # Those of an earlier life of their factory may say a name that their pool had then, and nobody else speaks of them.
        others = {offer.pool for offer in self.all_offers()}.difference(pools)
        for worker in list(self.workers.values()) if reasons else ():
            pool = worker.info.pool
            if worker.info.pilot in reasons and (pool in pools or (pool not in others and self.pilots.may_be(worker, pools))):
                worker.pilot_ended = f"its pilot ended: {reasons[worker.info.pilot]}"
                if not worker.connected:
                    self.worker_lost(worker.id, worker.pilot_ended, now)

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
                    self._ended(instance, worker, now)
                    self._restructured(worker)
            elif isinstance(message, WorkerDraining):
                self._drain(worker, message.reason)
                if message.seconds_left:
                    self._ends_at(worker, now + message.seconds_left)
            elif isinstance(message, WantFiles):
                self._files_wanted(worker, message.names)
            elif isinstance(message, FileHere):
                self.replicas.here(worker_id, message.name, message.size, message.digest)
            elif isinstance(message, FileFailed):
                self.replicas.failed(worker_id, message, now)
            elif isinstance(message, FilePushed):
                self.replicas.pushed(worker_id, message.name, message.text, now)
            elif isinstance(message, FilesGone):
                self.replicas.gone(worker_id, message.names)
            elif isinstance(message, Serving):
                self.replicas.serving(worker_id, message.addresses, worker.info.host)
            elif isinstance(message, WorkerReport):
                worker.memory_used, worker.memory_limit = message.memory_used, message.memory_limit
                self._memory_told(worker)
                worker.cache_bytes = message.cache_bytes
                if message.seconds_left:
                    self._ends_at(worker, now + message.seconds_left)
                of = worker.info.resources
                busy = busy_cores(message.busy, of), busy_gpus(message.busy_gpus, of)
                if busy != (worker.busy, worker.busy_gpus):
                    worker.busy, worker.busy_gpus = busy
                    self._restructured(worker)

    def _ends_at(self, worker: Worker, when: float) -> None:
        """When its pilot ends. Later than was thought: calls that it was passed by for may fit now."""
        later = when > worker.ends_at + 1.0
        worker.ends_at = when
        if later:
            self._restructured(worker)
            for instance in worker.instances.values():
                self._refresh(instance)

    def block_host(self, message: BlockHost, now: float) -> None:
        """A program wants no more of a host, or does again."""
        if message.blocked:
            self.blocked.block(message.host, message.seconds, now)
            for worker in list(self.workers.values()):
                self._leave_blocked(worker)
        else:
            self.blocked.unblock(message.host)
        self.demand_changed = True

    def _leave_blocked(self, worker: Worker) -> None:
        if not worker.draining and self.blocked.has(worker.info.host):
            reason = f"host {worker.info.host} is blocked"
            self._send(worker, Drain(reason))
            self._drain(worker, reason)

    def pools_reported(self, factory: str, report: PoolReport, now: float) -> None:
        """What a factory's pools offer, and which of its pilots ended."""
        changed = self.offers.get(factory) != report.offers
        self.offers[factory] = report.offers
        self.reports[factory] = report
        self.pilots.take(factory, report.pilots, report.at, now)
        self.pilots_ended({offer.pool for offer in report.offers}, ((one.pilot, one.reason) for one in report.ended), now)
        if changed:
            self.means += 1
            self._learn_shapes((offer.resources for offer in report.offers), self.libraries.values())
            self._end_impossible(now)
            self._end_too_long(now)
            self._lower_least()
            self.structure += 1
            self.demand_changed = True  # calls that were one kind may be several, of which this pool can run some

    def factory_left(self, factory: str, now: float) -> None:
        """A factory is gone; its pilots may live on."""
        self.offers.pop(factory, None)
        self.reports.pop(factory, None)
        self.pilots.factory_left(factory, now)
        self.pilots.forget_pools(offer.pool for offer in self.all_offers())
        self.means += 1

    def demand(self, now: float) -> Demand:
        """What could be used now."""
        self.demand_changed, self._demand_at = False, now
        return demand_of(self.libraries.values(), self.workers.values(), self.all_offers(), now, self.blocked.names)

    def tick(self, now: float, late: float = 0.0) -> None:
        """Time has passed: sessions are given up, starved libraries and recalls are looked at again. The tick is ``late`` seconds late."""
        if self._held_up.turned(late):
            for state in self.libraries.values():
                state.look_ahead(self._held_up.ahead_seconds)
                self._dirty[state.spec.id] = state
        grace = self.settings.reconnect_grace
        over = [worker.id for worker in self.workers.values() if worker.cut_at and now >= worker.cut_at + grace]
        for worker_id in over[:GIVEN_UP_AT_ONCE]:
            self.worker_lost(worker_id, f"not heard of for {grace:g} s", now)
        self._look_at_claims(now)
        if self._look_impossible:
            self._look_impossible = False
            self._end_impossible(now)
        if self.blocked.expire(now):
            self.demand_changed = True
        if self._ahead:
            self._take_back_waiting(now - self._ticked_at)
        self._let_spent_go(now)
        self._wake_starved(now)
        turns = bool(self._starved)
        for state in self.libraries.values():
            heard = state.waiting and not state.progressed and any(self.workers[one.worker].connected for one in state.instances.values())
            state.note_quiet(now - self._ticked_at, bool(heard))
            if state.quiet >= QUIET_SECONDS and now - self._demand_at >= AGAIN_SECONDS:
                self.demand_changed = True
            if state.waiting and state.prefetch.on:
                self._give_way(state)
            if state.running and not state.waiting:
                if state.idle:
                    self._recall(state, now, patient=False)
                elif (not state.progressed or state.tried != self.structure) and self._behind(state):
                    # They were sent ahead of slots that have turned out to be long busy, or there may be free ones since.
                    if not turns:
                        turns = True
                        self._take_turns(now)  # once for all of them
                    self._find_slots(state, now)
            state.progressed = False
            if state.removed:
                self._dirty[state.spec.id] = state
        self._ticked_at = now

    def _files_wanted(self, worker: Worker, names: Sequence[FileName]) -> None:
        untold = untold_files(self, worker, names)
        for name in names if untold else ():
            if name in untold:
                self._send(worker, FileLost(name, f"worker {worker.id} was not told of this file, or needs it no more"))
        self.replicas.wanted(worker.id, [name for name in names if name not in untold])

    def _drain(self, worker: Worker, reason: str) -> None:
        worker.draining = worker.draining or reason
        for instance in worker.instances.values():
            self._off_lists(instance)
        self._restructured()

    def _refuse(self, spec: CallSpec, text: str, now: float) -> None:
        self._end_unqueued(spec, NOT_POSSIBLE, text, now)

    def _end_unqueued(self, spec: CallSpec, outcome: int, text: str, now: float) -> None:
        end = CallEnd(spec.call, 0, outcome, detail=EndDetail(text=text))
        for name in (*self.lineage.failed(spec.call), *(products_of(spec) if spec.call < FIRST_REMAKE else ())):
            self._lose_result(name, end, now)
        if spec.call < FIRST_REMAKE:
            self.failures.ended(spec, end, now)
            self._done.append(CallDone(end, now, 0.0, now, (), spec.tag))

    def _let_spent_go(self, now: float) -> None:
        """Calls wait for more time than idle workers have left: these make room for fresh pilots."""
        kinds = {
            (state.spec.id, queue.needs, queue.least_seconds): state
            for state in self._starved.values()
            for queue in state.queues
            if queue.waiting
        }
        waiting = [(state, needs, least_seconds) for (_, needs, least_seconds), state in kinds.items()]
        if not any(least_seconds for _, _, least_seconds in waiting):
            return
        for worker in self.workers.values():
            if worker.usable and not worker.calls and now - worker.idle_since >= SPENT_SECONDS and spent(worker, waiting, now):
                reason = "idle, and too little time is left for the calls that wait"
                self._send(worker, Drain(reason))
                self._drain(worker, reason)

    def _forget_functions(self) -> None:
        """Forget functions that nothing names, of the older half: programs count on those that they defined last."""
        kept = {function.id for state in self.libraries.values() for function in state.spec.functions}
        kept.update(call.spec.function for call in self.calls.values())
        kept.update(product.spec.function for product in self.lineage.products.values())
        older = islice(self.functions, len(self.functions) // 2)
        forgotten = [key for key in older if key not in kept][: FUNCTIONS_MOST // 2]
        for key in forgotten:
            del self.functions[key]
        for worker in self.workers.values():
            gone = tuple(key for key in forgotten if key in worker.functions)
            if gone:
                worker.functions.difference_update(gone)
                for key in gone:
                    worker.large.pop(key, None)
                self._send(worker, ForgetFunctions(gone))
