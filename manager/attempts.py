"""Attempts: what becomes of a call that was sent, by what its worker says or by what becomes of its worker.

Theory of operation
-------------------
An attempt ends in one of three ways. It *ended*: by a result, or badly, and then the call is tried again if that is worth it. It was
*returned*: unstarted, which costs nothing, or at the end of a pilot of which it had asked to be warned, or with a slot that had to be
killed for another call, which counts as a loss and teaches nothing. Or it was *lost* with its worker, which costs no retry but counts,
and teaches: a call that its pilot's walltime cut short needs longer than it ran. An answer to an attempt that is not the call's newest,
or from a worker that does not have it, is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import msgspec

from windlass.manager.calls import LIBRARY_FAILED, LOST, TOO_LONG, Call, CallQueue, outcome_words
from windlass.manager.dispatch import Dispatch
from windlass.manager.lineage import FIRST_REMAKE
from windlass.manager.placement import fits, freshest
from windlass.manager.workers import Worker
from windlass.messages import (
    CANCELLED,
    DIED,
    NO_FILE,
    OUT_OF_MEMORY,
    RETURNED,
    TIMED_OUT,
    CallAttempt,
    CallDone,
    CallEnd,
    CallsReturned,
    DropFiles,
    EndDetail,
    LibraryId,
    Resources,
)

#: A worker that was lost within so many seconds of its pilot's planned end came to its walltime.
CUT_OFF_SECONDS = 30.0
#: An attempt had the whole life of its pilot if it was sent within so many seconds, or so much of that life, and was cut off so shortly
#: before its end.
BEGIN_SECONDS = 5.0
BEGIN_SHARE = 0.1
END_SECONDS = 1.0
#: Reasons of `CallsReturned` for calls that had started.
_CUT_SHORT = {
    "warned": "its pilot's end, of which it was warned",
    "neighbour": "its slot was killed for another of its calls, which did not end when it was cancelled",
}


class _Learned:
    """Of a message of ends, for one library."""

    __slots__ = ("begun", "data", "finished", "longest", "moved", "payload", "returned", "seconds")

    def __init__(self) -> None:
        #: Ends of all kinds, and of those whose begin was noted.
        self.finished = self.begun = 0
        #: Of those that returned: how many, what they ran, and the longest run.
        self.returned, self.seconds, self.longest = 0, 0.0, 0.0
        #: How many of them had data, arguments and results with objects, and bytes of arguments that went with the calls.
        self.data = self.moved = self.payload = 0


class Attempts(Dispatch):
    """The books, who gets what, and what becomes of it."""

    def _calls_ended(self, worker: Worker, ends: Sequence[CallEnd], now: float) -> None:
        held, by_library, done, calls = worker.calls, worker.by_library, self._done, self.calls
        if self.recorder is not None:
            self.recorder.ended(self, worker, ends, now)
        learned: dict[LibraryId, _Learned] = {}
        for end in ends:
            call = held.get(end.call)
            if call is None or call.attempt != end.attempt:
                if end.kept or end.outputs:
                    self._send(worker, DropFiles(tuple(ref.name for ref in end.made())))
                if not end.kept:
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
                sums = learned[library] = _Learned()
            sums.finished += 1
            sums.begun += call.begun_at > 0
            if end.outcome == RETURNED:
                seconds = max(0.0, end.ended_at - end.started_at)  # a worker may say anything
                sums.seconds += seconds
                sums.returned += 1
                if seconds > sums.longest:
                    sums.longest = seconds
                sums.payload += len(spec.payload)
                returned = bool(end.spans) and not end.kept
                if spec.spans or spec.inputs or returned:
                    sums.moved += bool(spec.spans) + returned
                    sums.data += 1
                    if instance is not None and not call.behind and instance.served >= instance.places:
                        self.libraries[library].prefetch.took(now - call.sent_at - seconds)
                del calls[end.call]
                if end.kept or end.outputs or (spec.sandbox is not None and spec.sandbox.outputs):
                    self._keep(call, worker, end, now)
                if end.call >= FIRST_REMAKE:
                    if not (end.kept or end.outputs):
                        self._not_remade(call, end, now)
                    continue
                earlier = call.attempts
                done.append(CallDone(end, call.queued_at, call.sent_at, now, tuple(earlier) if earlier else (), call.spec.tag))
            else:
                self._ended_badly(call, worker, end, now)
        for library, sums in learned.items():
            state = self.libraries[library]
            state.running -= sums.finished
            state.progressed = True
            state.crashes = 0
            if worker.crashes:
                worker.crashes.pop(library, None)
            if sums.returned:
                state.done += sums.returned
                self.counters.returned += sums.returned
                state.learn(sums.seconds, sums.returned, sums.longest, sums.moved, sums.data, sums.payload)
            instance = by_library.get(library)
            if instance is not None:
                instance.served += sums.finished
                instance.ended_at = now
                if sums.begun and state.prefetch.seconds and not state.ahead:
                    _begin_next(worker, library, sums.begun, now)
                if instance.still:
                    instance.moved()
                self._refresh(instance)
                if not instance.outstanding:
                    instance.idle_since = now
                if instance.target < instance.slots:
                    self._shrinking[instance.id] = instance
            self._dirty[library] = state
            if not state.running and not state.waiting:
                self._fell_idle(state, worker)
        if not held:
            worker.idle_since = now
            self.demand_changed = True

    def _keep(self, call: Call, worker: Worker, end: CallEnd, now: float) -> None:
        """Its result has stayed with its worker."""
        made = end.made()
        names = tuple(ref.name for ref in made)
        for ref in made:
            self.replicas.keep(ref, worker.id)
        product, gone = self.lineage.made(call.spec, names)
        for name in gone:
            absent = call.spec.sandbox is not None and call.spec.sandbox.lenient
            text = "what was to make it did not leave it behind" if absent else "its function has made something else this time"
            self._lose_result(name, CallEnd(end.call, end.attempt, NO_FILE, detail=EndDetail(text=text)), now)
        self._unpark(names)
        if call.spec.call >= FIRST_REMAKE:
            self.replicas.release(self.lineage.borrowed(product), prune=True)

    def _not_remade(self, call: Call, end: CallEnd, now: float) -> None:
        """A remake has returned something small: it is not what it was."""
        self.late_objects.extend(end.spans)
        text = "its function has returned something else this time"
        for name in self.lineage.failed(call.spec.call):
            self._lose_result(name, CallEnd(end.call, end.attempt, NO_FILE, detail=EndDetail(text=text)), now)

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
                self.failures.tried_again(call, end, now)
                call.queue = grown
                self._requeue(call)
                return
        if worth and call.failures < options.retries:
            self.failures.tried_again(call, end, now)
            call.failures += 1
            self._requeue(call)
            return
        self._finish(call, end, now)

    def _grown(self, call: Call, worker: Worker, detail: EndDetail) -> CallQueue | None:
        """The queue for a call that asks for twice the memory it had, or for the most there is if that is more than its share was.

        What is known of memory counts: a pool of which it is not known yet may have less.
        """
        options = call.queue.options
        spec = self.libraries[call.spec.library].spec
        known = [of for of in self.all_shapes() if of.memory] or self.all_shapes()
        share = max(options.needs.memory, detail.share)
        twice = 2 * max(share, detail.peak_memory)
        for memory in sorted({twice, *(of.memory for of in known if share < of.memory < twice)}, reverse=True):
            needs = Resources(options.needs.cores, memory, options.needs.gpus)
            if any(fits(spec, needs, of) for of in known):
                larger = msgspec.structs.replace(options, needs=needs)
                found = self._queue_for(call.spec.library, larger, call.queue.least_seconds, call.queue.files)
                if isinstance(found, str):
                    return None
                found.taught = found.taught or call.queue.taught
                return found
        return None

    def _calls_returned(self, worker: Worker, message: CallsReturned, now: float) -> None:
        back: list[Call] = []
        for held in message.calls:
            call = worker.calls.get(held.call)
            if call is not None and call.attempt == held.attempt:
                del worker.calls[held.call]
                back.append(call)
                if message.reason in _CUT_SHORT:
                    # It may go on where it was, so its end teaches nothing, but must not come for ever.
                    self._note_loss(call, worker, max(0.0, now - _begun(call, worker)), _CUT_SHORT[message.reason], now)
        for call in reversed(back):
            instance = worker.by_library.get(call.spec.library)
            if instance is not None:
                instance.outstanding -= call.weight
                if message.reason == "room":
                    self._off_lists(instance)  # it comes last: its idle slots lack what calls need, and others may have it
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
        elif call.ran and (text := self._too_long(call.ran, call.attempts[-1].seconds if call.attempts else call.ran)):
            self._finish(call, CallEnd(call.spec.call, call.attempt, TOO_LONG, detail=EndDetail(text=text)), now)
        else:
            self._requeue(call)

    def _lose(self, call: Call, worker: Worker, reason: str, ended: float, now: float) -> None:
        """Note that a started attempt was lost with its worker, which ``ended`` then, and what that teaches."""
        ran = max(0.0, ended - _begun(call, worker))
        at_walltime = bool(worker.planned_end) and ended >= worker.planned_end - CUT_OFF_SECONDS
        self._note_loss(call, worker, ran, reason, now)
        whole = self._whole_life(call, worker, ended) if at_walltime else 0.0
        if at_walltime:
            call.ran = max(call.ran, ran, whole)
        if at_walltime and ran > call.queue.least_seconds:
            # Steps of a quarter keep the number of queues small.
            least = 1.0
            while least < ran:
                least *= 1.25
            shorter = max(least / 1.25 if least > 1.0 else ran, whole)  # no other pilot of that pool has more to give
            shorter = min(shorter, freshest(self.all_offers(), self.libraries[call.spec.library].start_allowance))
            found = self._queue_for(call.spec.library, call.queue.options, shorter, call.queue.files)
            if not isinstance(found, str) and found is not call.queue:
                call.queue.running -= 1
                found.taught = True
                found.running += 1
                call.queue = found

    def _note_loss(self, call: Call, worker: Worker, seconds: float, reason: str, now: float) -> None:
        call.losses += 1
        self._tell(call, worker, LOST, seconds, reason)
        self.failures.tried_again(call, CallEnd(call.spec.call, call.attempt, LOST, detail=EndDetail(text=reason)), now)

    def _whole_life(self, call: Call, worker: Worker, ended: float) -> float:
        """The walltime of its pool, if the attempt had a pilot's life from beginning to end, but for its library's start; else 0."""
        instance = worker.by_library.get(call.spec.library)
        begun = _begun(call, worker) - worker.joined_at - (instance.start_seconds if instance is not None else 0.0)
        if ended < worker.planned_end - END_SECONDS or begun > max(BEGIN_SECONDS, BEGIN_SHARE * worker.info.seconds_left):
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

    def _end_too_long(self, now: float) -> None:
        """Pools have changed: end the waiting calls that were seen to need longer than any of them gives."""
        for queue in list(self._queues.values()):
            if not (queue.taught and queue.waiting and self._too_long(queue.least_seconds, 0.0)):
                continue
            while (call := queue.pop()) is not None:
                self.libraries[queue.library].waiting -= 1
                text = self._too_long(queue.least_seconds, call.attempts[-1].seconds if call.attempts else queue.least_seconds)
                self._finish(call, CallEnd(call.spec.call, call.attempt, TOO_LONG, detail=EndDetail(text=text)), now)

    def _tell(self, call: Call, worker: Worker, outcome: int, seconds: float, reason: str = "") -> None:
        words = outcome_words(outcome) + (f" ({reason})" if reason else "")
        told = CallAttempt(call.turn, worker.id, worker.info.host, words, seconds)
        if call.attempts is None:
            call.attempts = []
        call.attempts.append(told)


def _begin_next(worker: Worker, library: LibraryId, count: int, now: float) -> None:
    """So many calls have ended: as many of those that wait behind others begin, in the order in which they were sent. One that has its
    data may overtake others; those begin when the next one ends, or come back as soon as that is late."""
    waits = (call for call in worker.calls.values() if not call.begun_at and call.spec.library == library)
    for call in islice(waits, count):
        call.begun_at = now


def _begun(call: Call, worker: Worker) -> float:
    """When a call began, as far as is known; one that waits behind others is not taken to have run for longer than since the last end."""
    instance = worker.by_library.get(call.spec.library)
    return call.begun_at or max(call.sent_at, instance.ended_at if instance is not None else 0.0)
