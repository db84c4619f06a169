"""The manager's core: a state machine over calls, libraries, workers and pools.

Theory of operation
-------------------
Events are method calls that carry ``now``; what is to be done comes out of `take_outbox` (messages for workers) and `take_done`
(ends for the client).  Nothing here does I/O or looks at a clock, so the real shell and a simulator run the same code. Three layers, each
a class: `Books` (what is known), `Dispatch` (who gets what), `Core` (what happens).

*Calls.* waiting → sent → ended, with ways back to waiting: returned unstarted (free), lost with the worker (counts a loss), died or raised
and worth a retry (counts a failure).  Each call ends exactly once: it leaves the books at its end and nowhere else.  An answer counts
only if the call is still sent to that worker with that attempt number.

*Losses teach.* A call that was lost while running needs longer than it ran when its pilot came to its walltime: it is placed where more
time is left, and ends with `TOO_LONG` when no pool's walltime is longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import msgspec

from windlass.manager.books import Books, Counters, Settings
from windlass.manager.calls import CLOSED, LIBRARY_FAILED, LOST, NOT_POSSIBLE, TOO_LONG, Call, CallQueue
from windlass.manager.demand import demand_of
from windlass.manager.dispatch import Dispatch
from windlass.manager.libraries import LibraryState
from windlass.manager.placement import fits, why_never
from windlass.manager.workers import Phase, Worker
from windlass.messages import (
    BAD_CALL,
    CANCELLED,
    DIED,
    OUT_OF_MEMORY,
    RAISED,
    RETURNED,
    TIMED_OUT,
    CallAttempt,
    CallDone,
    CallEnd,
    CallId,
    CallsEnded,
    CallSpec,
    CallsReturned,
    CancelCalls,
    Demand,
    Drain,
    EndDetail,
    ForgetFunctions,
    FunctionDef,
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
    PoolReport,
    Resources,
    WorkerDraining,
    WorkerId,
    WorkerInfo,
    WorkerReport,
)

__all__ = ["Books", "Core", "Counters", "Settings"]

#: Starts that may crash or time out in a row, without an answer to any call, before a library counts as one that cannot start; or, where
#: it serves elsewhere, before it is started no more on that worker.
CRASHES_MOST = 3
#: An attempt had the whole life of its pilot if it was sent within so many seconds, or so much of that life, and was cut off so shortly
#: before its end.
BEGIN_SECONDS = 5.0
BEGIN_SHARE = 0.1
END_SECONDS = 1.0
#: Functions that are remembered without a call or a library naming them.
FUNCTIONS_MOST = 20_000

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


class Core(Dispatch):
    """All decisions of one manager."""

    #: Number of functions at which those that nothing names are looked for.
    _forget_at = FUNCTIONS_MOST

    def install(self, spec: LibrarySpec, now: float) -> None:
        """A library version is there to be called. Installing it again changes nothing, but one that could not start is tried again."""
        known = self.libraries.get(spec.id)
        if known is not None:
            known.removed = False
            if known.failed:
                known.failed, known.crashes = "", 0
                for worker in self.workers.values():
                    worker.unfit.pop(spec.id, None)
                    worker.crashes.pop(spec.id, None)
                self.structure += 1
            return
        self.libraries[spec.id] = LibraryState(spec)
        for function in spec.functions:
            self.functions[function.id] = function
        self.structure += 1

    def remove(self, library: LibraryId, now: float) -> None:
        """No more calls of this version will come; its instances end when its calls have."""
        state = self.libraries.get(library)
        if state is not None:
            state.removed, state.removed_at = True, now
            self._dirty[library] = state

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
        self.means += 1
        self._restructured()

    def worker_cut(self, worker_id: WorkerId, now: float) -> None:
        """Its connection is cut; the session lives for `Settings.reconnect_grace`, unless its pilot has ended."""
        worker = self.workers.get(worker_id)
        if worker is not None and worker.pilot_ended:
            self.worker_lost(worker_id, worker.pilot_ended, now)
        elif worker is not None and worker.connected:
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
        self.means += 1
        self._outbox.pop(worker_id, None)
        # Only what was started is a loss. Sent calls stand in order; the oldest, as many as the instance has slots, were running.
        started: dict[InstanceId, int] = {}
        at_walltime = bool(worker.planned_end) and now >= worker.planned_end - 30.0
        instance_of = dict(worker.by_library)
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
        """The batch system says that these pilots have ended: their sessions are over, or will be when their connections are cut."""
        reasons = dict(ended)
        for worker in list(self.workers.values()) if reasons else ():
            if worker.info.pool == pool and worker.info.pilot in reasons:
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

    def pools_reported(self, factory: str, report: PoolReport, now: float) -> None:
        """What a factory's pools offer, and which of its pilots ended."""
        changed = self.offers.get(factory) != report.offers
        self.offers[factory] = report.offers
        self.reports[factory] = report
        for pool in {offer.pool for offer in report.offers}:
            self.pilots_ended(pool, ((one.pilot, one.reason) for one in report.ended), now)
        if changed:
            self.means += 1
            self._end_impossible(now)
            self.structure += 1

    def factory_left(self, factory: str, now: float) -> None:
        """A factory is gone; its pilots may live on."""
        self.offers.pop(factory, None)
        self.reports.pop(factory, None)
        self.means += 1

    def demand(self, now: float) -> Demand:
        """What could be used now."""
        self.demand_changed = False
        return demand_of(self.libraries.values(), self.workers.values(), now)

    def tick(self, now: float) -> None:
        """Time has passed: sessions are given up, starved libraries and recalls are looked at again."""
        for worker in list(self.workers.values()):
            if worker.given_up_at and now >= worker.given_up_at:
                self.worker_lost(worker.id, f"not heard of for {self.settings.reconnect_grace:g} s", now)
        self._look_at_claims(now)
        for state in list(self._starved.values()):
            state.tried = -1
            self._dirty[state.spec.id] = state
        for state in self.libraries.values():
            if state.running and not state.waiting:
                if state.idle:
                    self._recall(state, now, patient=False)
                elif not state.progressed and self._behind(state):
                    self._find_slots(state, now)  # they were sent ahead of slots that have turned out to be long busy
            state.progressed = False
            if state.removed:
                self._dirty[state.spec.id] = state

    def _calls_ended(self, worker: Worker, ends: Sequence[CallEnd], now: float) -> None:
        held, by_library, done, calls = worker.calls, worker.by_library, self._done, self.calls
        learned: dict[LibraryId, list[float]] = {}
        for end in ends:
            call = held.get(end.call)
            if call is None or call.attempt != end.attempt:
                self.late_objects.extend(end.spans)
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
                seconds = max(0.0, end.ended_at - end.started_at)  # the worker's clock may have been set back
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
            state.progressed = True
            state.crashes = 0
            if worker.crashes:
                worker.crashes.pop(library, None)
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
        """The queue for a call that asks for twice the memory it had, or for the most there is if that is more than its share was."""
        options = call.queue.options
        spec = self.libraries[call.spec.library].spec
        known = [one.info.resources for one in self.workers.values()] + [offer.resources for offer in self.all_offers()]
        share = max(options.needs.memory, detail.share)
        twice = 2 * max(share, detail.peak_memory)
        for memory in sorted({twice, *(of.memory for of in known if share < of.memory < twice)}, reverse=True):
            needs = Resources(options.needs.cores, memory, options.needs.gpus)
            if any(fits(spec, needs, of) for of in known):
                larger = msgspec.structs.replace(options, needs=needs)
                found = self._queue_for(call.spec.library, larger, call.queue.least_seconds)
                return None if isinstance(found, str) else found
        return None

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
        elif message.at_start:
            state.crashes += 1
            worker.crashes[instance.library] = worker.crashes.get(instance.library, 0) + 1
            if worker.crashes[instance.library] >= CRASHES_MOST and any(one.served for one in state.instances.values()):
                worker.unfit[instance.library] = message.text  # it serves elsewhere: this node is bad
            elif state.crashes >= CRASHES_MOST and not any(one.served for one in state.instances.values()):
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
        elif call.ran and (text := self._too_long(call.ran, call.story[-1].seconds if call.story else call.ran)):
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
            call.ran = max(call.ran, ran, self._whole_life(call, worker, now))
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

    def _whole_life(self, call: Call, worker: Worker, now: float) -> float:
        """The walltime of its pool, if the attempt had a pilot's life from beginning to end; else 0."""
        begun = call.sent_at - worker.joined_at
        if now < worker.planned_end - END_SECONDS or begun > max(BEGIN_SECONDS, BEGIN_SHARE * worker.info.seconds_left):
            return 0.0
        return next((offer.walltime for offer in self.all_offers() if offer.pool == worker.info.pool), 0.0)

    def _too_long(self, seconds: float, ran: float) -> str:
        offers = self.all_offers()
        if not offers or any(not offer.walltime or offer.walltime > seconds for offer in offers):
            return ""
        if any(not one.ends_at for one in self.workers.values()):
            return ""
        longest = max(offer.walltime for offer in offers)
        return (
            f"it ran for {ran:.3g} s when its pilot came to its end, so it needs longer than that; "
            f"the longest walltime of a pool is {longest:.3g} s"
        )

    def _tell(self, call: Call, worker: Worker, outcome: int, seconds: float, reason: str = "") -> None:
        word = _OUTCOME_WORDS.get(outcome, str(outcome)) + (f" ({reason})" if reason else "")
        if call.story is None:
            call.story = []
        call.story.append(CallAttempt(call.attempt, worker.id, worker.info.host, word, seconds))

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

    def _forget_functions(self) -> None:
        """Forget functions that nothing names, of the older half: programs count on those that they defined last."""
        kept = {function.id for state in self.libraries.values() for function in state.spec.functions}
        kept.update(call.spec.function for call in self.calls.values())
        older = islice(self.functions, len(self.functions) // 2)
        forgotten = [key for key in older if key not in kept][: FUNCTIONS_MOST // 2]
        for key in forgotten:
            del self.functions[key]
        for worker in self.workers.values():
            gone = tuple(key for key in forgotten if key in worker.functions)
            if gone:
                worker.functions.difference_update(gone)
                self._send(worker, ForgetFunctions(gone))
