"""Dispatch: which waiting calls go to which instances, and which instances get slots.

Theory of operation
-------------------
`pump` looks at the libraries that something happened to since the last time ("dirty"). A library's calls go to its idle instances, then to
those with room ahead. If calls still wait, more slots are looked for (`windlass.manager.placement`); if none can be had, slots of others
are reclaimed, and queued calls of loaded instances are recalled for idle ones. Calls that need several slots at once have claims
(`windlass.manager.claims`). The cost of a call is constant, whatever the number of
waiting calls, workers and libraries: what found no room is not tried again before the structure (workers, instances, libraries) has changed
or the timer says so, and then only at workers that have got something since; free slots are looked for among workers that may have some.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice, takewhile

from windlass.manager.books import LOOKED_AT, SWEEP_LEAST
from windlass.manager.calls import CallQueue
from windlass.manager.claims import has_less, missing_slots, next_claim, runs
from windlass.manager.libraries import NEVER, LibraryState
from windlass.manager.near import Near
from windlass.manager.placement import HOLD_SECONDS, fits, grants, in_hand, reclaimable, worth_moving
from windlass.manager.workers import Claim, Instance, Phase, Worker, no_longer_held, slot_share, slots_in, used_up, usual_weight, weight_of
from windlass.messages import (
    BAD_CALL,
    AddFunctions,
    CallEnd,
    CallRun,
    EndDetail,
    FileRef,
    ForgetFunctions,
    InstanceId,
    LibraryId,
    RecallCalls,
    Resources,
    SetSlots,
    StartLibrary,
    StopLibrary,
)

#: Claims that are laid at one tick, at most.
CLAIMS_AT_ONCE = 4
#: Zygotes without slots that a worker keeps warm for their next call, whatever memory they have; and as long as all that it runs uses less
#: than a part of its memory. From twice that part on it goes back to the few: what calls need is not to be taken by imports.
WARM_INSTANCES, WARM_MOST = 4, 64
WARM_PART = 4
#: Rounds of placement in one pump; what is left then waits for the next event or the timer.
ROUNDS_MOST = 10
#: Another thread of the program may have chosen a library for a call just before it was removed; pickling the arguments takes its time.
LINGER_SECONDS = 10.0


class Dispatch(Near):
    """The books, and who gets what."""

    def pump(self, now: float) -> None:
        """Place what can be placed; call it once after a batch of events."""
        self._dispatch_dirty(now)
        self._tell_of_files(now)

    def _dispatch_dirty(self, now: float) -> None:
        for _ in range(ROUNDS_MOST):
            if self._all_look:
                self._all_look = False
                self._dirty.update((key, state) for key, state in self.libraries.items() if state.waiting or state.removed)
            if not self._dirty and not self._shrinking:
                break
            dirty, self._dirty = self._dirty, {}
            # Who has fewest slots looks first, among equals who has waited longest for any: a slot taken from one library for
            # another must not be granted back.
            for state in sorted(dirty.values(), key=_turn) if len(dirty) > 1 else list(dirty.values()):
                if state.waiting:
                    self._dispatch(state, now)
                    # Who is not among the starved has not looked since calls last waited, whatever has happened meanwhile.
                    looked = state.tried == self.structure and state.instances and state.spec.id in self._starved
                    if state.waiting and not looked:
                        self._find_slots(state, now)
                if state.loaded and state.running and state.idle and not state.waiting:
                    self._recall(state, now, patient=True)
                if state.removed and not state.waiting and not state.running:
                    self._uninstall(state, now)
            if self._shrinking:
                self._finish_shrinks(now)

    def _tell_of_files(self, now: float) -> None:
        """Who is to fetch which file from where."""
        if self.replicas.orphaned:
            self._remake(now)
        self.replicas.pump(now)
        if self.replicas.away.returned:
            returned, self.replicas.away.returned = self.replicas.away.returned, []
            self._unpark(returned)
            self._dispatch_dirty(now)
        if self.replicas.out:
            said, self.replicas.out = self.replicas.out, []
            for worker_id, message in said:
                worker = self.workers.get(worker_id)
                if worker is not None:
                    self._send(worker, message)

    def _dispatch(self, state: LibraryState, now: float) -> None:
        passed = 0
        served, passed_over = -1, None
        # Where one waits behind each, slots would never be free for calls that do not: then none is sent ahead as long as such wait.
        roomy, spares = bool(state.plain), state.prefetch.on and not state.ahead
        for number, queue in enumerate(state.queues):
            if not queue.waiting:
                passed += not queue.running
                continue
            if served >= 0 and passed_over is None and not state.idle:
                passed_over = queue
            if queue.files:
                self._park_firsts(queue, state, now)
            if not state.idle and not (state.roomy and roomy):
                break
            options, plain = queue.options, queue.plain
            if not plain and not state.idle:
                roomy = roomy and not spares
                continue  # only plain ones wait behind others; and there may be thousands that are not
            skipped: list[Instance] = []
            before = queue.waiting
            others = None if plain else iter(state.idle_for(queue))
            if others is not None:
                queue.passed_at = -1
            while queue.waiting:
                if queue.files and not self._park_firsts(queue, state, now):
                    break
                near = self._nearest(state, queue, plain and roomy) if queue.files else None
                if near is not None:
                    instance, room = near
                elif others is not None:
                    found = next(others, None)
                    if found is None:
                        state.pass_by(queue)
                        break
                    if found.id not in state.idle:
                        continue
                    instance, room = found, found.places - found.outstanding
                elif state.idle:
                    instance = next(iter(state.idle.values()))
                    room = instance.places - instance.outstanding
                elif state.roomy and plain and roomy:
                    instance = next(iter(state.roomy.values()))
                    room = state.most(instance) - instance.outstanding
                    # What waits is shared out evenly, so that the last calls do not pile up at one worker.
                    room = min(room, max(1, -(-queue.waiting // max(1, len(state.roomy)))))
                else:
                    break
                worker = self.workers[instance.worker]
                if worker.claim is not None and worker.claim.library == state.spec.id and _yields(queue, worker.claim):
                    room = min(room, instance.places - instance.outstanding - worker.claim.weight * state.spec.concurrency)
                    if room <= 0:
                        self._off_lists(instance)
                        skipped.append(instance)
                        continue
                weight = 1
                if not plain:
                    weight = weight_of(options.needs, instance.share)
                    room = room // weight if weight else 0
                    if not room or worker.seconds_left(now) <= queue.least_seconds:
                        if near is not None:
                            state.idle.pop(instance.id, None)
                            skipped.append(instance)
                        continue
                count = queue.alike(min(room, queue.waiting)) if queue.files else min(room, queue.waiting)
                self._send_calls(state, queue, instance, worker, count, weight, now)
                state.refresh(instance)
                if others is not None and near is None and count < room:
                    others = chain((instance,), others)  # the next call needs other files, and may fit there too
            for instance in skipped:
                state.refresh(instance)
            if queue.waiting and not plain:
                roomy = roomy and not spares
            if passed_over is None and queue.waiting < before:
                served = number
        if passed_over is not None:
            state.make_way(served, passed_over)
        if passed > SWEEP_LEAST and passed > len(state.queues) // 8:
            self._sweep_queues(state)  # or each call would cost a look at them

    def _send_calls(
        self, state: LibraryState, queue: CallQueue, instance: Instance, worker: Worker, count: int, weight: int, now: float
    ) -> None:
        timeout, least = queue.options.timeout, queue.least_seconds
        known, calls, to_run, instance_id, worker_id = worker.functions, worker.calls, worker.to_run, instance.id, worker.id
        if not worker.calls:
            worker.idle_since = 0.0
        sent, behind = 0, instance.outstanding >= instance.places
        begun_at = 0.0 if behind and state.fetches_ahead(instance) else now
        sent_inputs: tuple[FileRef, ...] = ()
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
                if definition.object is not None and (gone := no_longer_held(worker, spec.function, definition.object.size)):
                    self._send(worker, ForgetFunctions(gone))
                self._send(worker, AddFunctions((definition,)))
                to_run = worker.to_run
            if spec.inputs and spec.inputs != sent_inputs:
                to_run, sent_inputs = self._send_small_inputs(spec.inputs, worker), spec.inputs
            call.attempt += 1
            call.worker = worker_id
            call.sent_at = now
            call.behind, call.begun_at = behind, begun_at
            call.weight = weight
            calls[spec.call] = call
            run = CallRun(
                spec.call,
                call.attempt,
                instance_id,
                spec.function,
                spec.payload,
                spec.spans,
                timeout,
                weight,
                least,
                spec.inputs,
                spec.keep,
                spec.sandbox,
                spec.key,
                spec.trace,
                call.turn,
            )
            to_run.append(run)
            sent += 1
        self._loaded[worker_id] = worker
        queue.served_at = now
        if (
            (claim := worker.claim) is not None
            and sent
            and (claim.library, claim.queue.needs) == (state.spec.id, queue.needs)
            and instance.target >= claim.slots
        ):
            instance.granted_at = now  # the turn of these slots begins now, however long the last of them was waited for
            self._drop_claim(worker)
        queue.running += sent
        state.waiting -= sent
        state.running += sent
        instance.outstanding += sent * weight
        if instance.outstanding > instance.places:
            self._ahead[instance.id] = instance

    def _send_small_inputs(self, inputs: Sequence[FileRef], worker: Worker) -> list[CallRun]:
        """They ride with the call; what runs go to afterwards."""
        for ref in inputs:
            message = self.replicas.ride(worker.id, ref.name)
            if message is not None:
                self._send(worker, message)
        return worker.to_run

    def _look_at_claims(self, now: float) -> None:
        """End claims that have no point any more, go on with the others, lay some more."""
        poor = has_less(self.libraries, ()) if self._claimed else set[LibraryId]()
        for worker in list(self._claimed.values()):
            claim = worker.claim
            there = self.workers.get(worker.id) is worker and worker.usable
            if (
                claim is None
                or not there
                or not claim.queue.waiting
                or (claim.library not in poor and runs(self.libraries[claim.library], claim.queue.needs))
                or claim.library in worker.unfit
                or worker.seconds_left(now) <= claim.queue.least_seconds
            ):
                self._drop_claim(worker)
            else:
                self._take_away(missing_slots(worker, claim, now), worker, claim.library)
                self._fulfil_claim(worker, now)
        some = self._claim_turns.next(self.workers) if self._starved else ()
        for _ in range(CLAIMS_AT_ONCE if some else 0):
            claims = [one.claim for one in self._claimed.values() if one.claim is not None]
            found = next_claim(self._starved.values(), self.libraries, some, claims, now)
            if found is None:
                break
            self._lay_claim(*found, now)

    def _lay_claim(self, worker: Worker, claim: Claim, now: float) -> None:
        """Slots are kept for it on this worker."""
        worker.claim = claim
        self._claimed[worker.id] = worker
        mine = worker.by_library.get(claim.library)
        for one in worker.instances.values():
            if one is mine:  # what was to be taken from it stays
                self._aim(one, one.slots)
                self._shrinking.pop(one.id, None)
                if one.outstanding > one.places and not one.recalling:
                    one.recalling = True
                    self._send(worker, RecallCalls(one.id, one.outstanding - one.places))
            elif one.target < one.slots:
                self._aim(one, one.target, heir=claim.library)
            self._refresh(one)
        self._take_away(missing_slots(worker, claim, now), worker, claim.library)
        self._fulfil_claim(worker, now)
        self._dirty[claim.library] = self.libraries[claim.library]

    def _fulfil_claim(self, worker: Worker, now: float) -> None:
        """Give the library that has a claim here what is free of it."""
        claim = worker.claim
        if claim is None or not claim.queue.waiting or not worker.usable:
            return
        mine = worker.by_library.get(claim.library)
        lacking = claim.slots - (mine.target if mine is not None else 0)
        slots = min(lacking, slots_in(claim.share, worker.free()))
        if slots > 0:
            self._grant(self.libraries[claim.library], worker, mine, slots, claim.share, now)
        mine = worker.by_library.get(claim.library)
        if mine is not None:
            mine.least = claim.weight

    def _drop_claim(self, worker: Worker) -> None:
        worker.claim = None
        self._claimed.pop(worker.id, None)
        for one in worker.instances.values():
            self._refresh(one)
        self._restructured(worker)  # what was kept may go to others

    def _find_slots(self, state: LibraryState, now: float) -> None:
        """Calls wait, here or behind others at workers, and no instance has room: grant free slots, or reclaim some.

        Where nobody had any for such calls, only those are looked at who have got something since.
        """
        state.tried = self.structure
        if state.failed:
            self._end_waiting(state, now)  # such as came back from where it still served
            return
        behind = 0 if state.waiting else self._behind(state)
        kinds: dict[tuple[Resources, float], int] = {}
        served_at = 0.0
        for queue in state.queues:
            waiting = queue.waiting
            served_at = max(served_at, queue.served_at)
            if behind:  # which calls are behind others is not known here; any with such options will do
                waiting = min(behind, queue.running)
                behind -= waiting
            if waiting:
                kind = (queue.needs, queue.least_seconds)
                kinds[kind] = kinds.get(kind, 0) + waiting
        for kind, calls in kinds.items():
            waiting = -(-calls // state.spec.concurrency)  # slots that they would fill
            slots = waiting * usual_weight(state.spec, kind[0]) if state.waiting else waiting
            wanted = slots - state.coming  # instances that are starting will take calls too
            if wanted > 0:
                wanted = self._grant_free(state, kind, wanted, now)
            if wanted > 0:
                state.looked[kind] = self.structure
                worth = min(wanted, worth_moving(state, waiting, now - served_at))
                if self._reclaim(state, kind, wanted, worth, now):
                    state.asked[kind] = self.structure
        if state.waiting:
            self._starved[state.spec.id] = state
        else:
            self._starved.pop(state.spec.id, None)

    def _grant_free(self, state: LibraryState, kind: tuple[Resources, float], wanted: int, now: float) -> int:
        """Slots of what is lent to nobody, where the library is warm if there are some; returns how many are still wanted."""
        since = state.looked.get(kind, NEVER)
        warm = (one.worker for one in islice(state.instances.values(), LOOKED_AT))
        some = [self.workers[worker_id] for worker_id in warm if self._spare.get(worker_id, NEVER) > since]
        wanted = self._grant_at(some, state, kind, wanted, now) if some else wanted
        passed, count = 0, max(LOOKED_AT, wanted)
        while wanted > 0:
            newest = takewhile(lambda one: one[1] > since, reversed(self._spare.items()))
            some = [self.workers[worker_id] for worker_id, _ in islice(newest, passed, passed + count)]
            if not some:
                break
            some.reverse()
            wanted = self._grant_at(some, state, kind, wanted, now)
            passed, count = passed + sum(worker.id in self._spare for worker in some), 2 * count
        return wanted

    def _grant_at(self, workers: Sequence[Worker], state: LibraryState, kind: tuple[Resources, float], wanted: int, now: float) -> int:
        """Slots of what these have and lend to nobody; returns how many are still wanted."""
        for grant in grants(state, workers, wanted, now, kind[1], kind[0]):
            self._grant(state, grant.worker, grant.instance, grant.slots, grant.share, now)
            wanted -= grant.slots
        for worker in workers:
            if used_up(worker):
                self._spare.pop(worker.id, None)
        return max(0, wanted)

    def _behind(self, state: LibraryState) -> int:
        """How many places the calls would occupy that wait at usable workers, behind those that run there."""
        return sum(one.outstanding - one.places for one in state.loaded.values() if one.serving)

    def _grant(self, state: LibraryState, worker: Worker, instance: Instance | None, slots: int, share: Resources, now: float) -> None:
        spec = state.spec
        state.granted_at, self._moved = now, True
        has, keeps = (instance.slots, instance.target) if instance is not None else (0, 0)
        slots = max(has, keeps + slots)
        gpus = tuple(worker.free_gpu_ids()[: (slots - has) * share.gpus])
        if instance is None:
            self._make_room_for_zygote(worker)
            number = InstanceId(self._next_instance)
            instance = Instance(number, spec.id, worker.id, spec, 0, share, gpu_ids=gpus, granted_at=now, idle_since=now, begun_at=now)
            instance.away = worker.away
            self._next_instance += 1
            worker.instances[instance.id] = instance
            worker.by_library[spec.id] = instance
            state.instances[instance.id] = instance
            self._aim(instance, slots, slots=slots)
            worker.functions.update(function.id for function in spec.functions)
            self._send(worker, StartLibrary(instance.id, spec, slots, gpus))
        else:
            self._aim(instance, slots, slots=slots)
            instance.granted_at = now
            instance.gpu_ids += gpus
            self._shrinking.pop(instance.id, None)
            self._send(worker, SetSlots(instance.id, instance.slots, instance.gpu_ids))
        self._refresh(instance)
        self._dirty[spec.id] = state

    def _reclaim(self, state: LibraryState, kind: tuple[Resources, float], wanted: int, worth: int, now: float) -> bool:
        """Take slots from other libraries where that lets this one run calls of a kind; False: there may be more to take.

        So many as ``worth`` says. What was taken and is not free yet counts, for a turn: those who are to lose it may run calls that take
        long. A library that nowhere has the slots for one call is destitute, and takes them whatever it is worth. Idle slots beside a warm
        instance cost nothing: as many as are ``wanted`` are taken, of the workers that have got something last.
        """
        spec, (needs, least_seconds) = state.spec, kind
        since = state.asked.get(kind, NEVER)
        destitute: bool | None = None
        enough, sated = worth, False
        for number, (worker_id, version) in enumerate(reversed(self._gained.items())):
            if version <= since:
                break
            if destitute is None:
                destitute = self._destitute(state, kind, now)
                enough = max(worth, 1) if destitute else worth
            due = self._due[spec.id]
            sated = sated or (due >= enough and (not enough or now - state.taken_at < HOLD_SECONDS))
            if sated and (number >= LOOKED_AT or due >= wanted):
                return False
            worker = self.workers[worker_id]
            if in_hand(worker) or not worker.usable or spec.id in worker.unfit or worker.seconds_left(now) <= least_seconds:
                continue
            of = worker.info.resources
            weight = fits(spec, needs, of)
            if not weight:
                continue
            share = slot_share(spec, of)
            mine = worker.by_library.get(spec.id)
            has = mine.target if mine is not None else 0
            if has >= slots_in(share, of, spec.slots) or (sated and (mine is None or mine.phase is not Phase.READY)):
                continue
            taken = reclaimable(worker, state, self.libraries, share, max(1, weight - has), destitute, now, busy=not sated)
            if taken:
                self._take_away(taken, worker, spec.id)
                if not sated:
                    state.taken_at = now
                    if destitute:
                        return False
        return not sated

    def _destitute(self, state: LibraryState, kind: tuple[Resources, float], now: float) -> bool:
        """Whether it has nowhere, for long enough, the slots that a call of a kind needs."""
        needs, least_seconds = kind
        for one in state.instances.values():
            if one.target and 0 < weight_of(needs, one.share) <= one.target:
                worker = self.workers[one.worker]
                if worker.usable and worker.seconds_left(now) > least_seconds:
                    return False
        return True

    def _take_away(self, taken: list[tuple[Instance, int]], worker: Worker, heir: LibraryId) -> None:
        """These lose so many slots, as their calls end."""
        self._moved = self._moved or bool(taken)
        for instance, count in taken:
            self._aim(instance, instance.target - count, heir=heir)
            self._shrinking[instance.id] = instance
            self._refresh(instance)
            if instance.outstanding > instance.places and not instance.recalling:
                instance.recalling = True
                self._send(worker, RecallCalls(instance.id, instance.outstanding - instance.places))

    def _remake(self, now: float) -> None:
        """Results are needed that nobody has: run again what made them."""

    def _finish_shrinks(self, now: float) -> None:
        """Slots that were to be taken away have fallen idle: they go to the library that they were taken for."""
        shrinking, self._shrinking = self._shrinking, {}
        for instance in shrinking.values():
            if instance.outstanding > instance.places or instance.target >= instance.slots:
                continue  # the next of its calls to end brings it back; or what it lost it has been given again
            worker = self.workers[instance.worker]
            keep = instance.target * instance.share.gpus
            self._aim(instance, instance.target, slots=instance.target)
            if instance.spec.concurrency > 1:
                self._refresh(instance)  # it has more places again
            instance.gpu_ids = instance.gpu_ids[:keep]
            if instance.slots < instance.least:
                instance.least = 1
            self._send(worker, SetSlots(instance.id, instance.slots, instance.gpu_ids))
            self._fulfil_claim(worker, now)
            self._restructured(worker)
            heir = self.libraries.get(instance.promised)
            if heir is not None and (heir.waiting or self._behind(heir)) and not heir.failed:
                self._find_slots(heir, now)

    def _make_room_for_zygote(self, worker: Worker) -> None:
        """Keep not too many warm zygotes without slots: end the one that was idle longest."""
        warm = _warm(worker)
        roomy = 0 < worker.memory_used * WARM_PART < worker.memory_limit
        if len(warm) >= (WARM_MOST if roomy else WARM_INSTANCES):
            self._stop(warm[0], worker)

    def _memory_told(self, worker: Worker) -> None:
        """How much it uses is known anew."""
        if worker.memory_used * WARM_PART >= 2 * worker.memory_limit > 0:
            for one in _warm(worker)[:-WARM_INSTANCES]:
                self._stop(one, worker)

    def _stop(self, instance: Instance, worker: Worker) -> None:
        self._aim(instance, 0)
        instance.phase = Phase.STOPPING
        self._off_lists(instance)
        self._shrinking.pop(instance.id, None)
        worker.by_library.pop(instance.library, None)
        self._send(worker, StopLibrary(instance.id))

    def _uninstall(self, state: LibraryState, now: float) -> None:
        """A removed library has no calls left: end its instances; forget it when they are gone, and no call of it can be on its way."""
        for instance in list(state.instances.values()):
            worker = self.workers.get(instance.worker)
            if worker is not None and instance.phase is not Phase.STOPPING:
                self._stop(instance, worker)
        # Asked at each tick, so it costs nothing.
        if not state.instances and now >= state.removed_at + LINGER_SECONDS and not self.lineage.needs(state.spec.id):
            self._sweep_queues(state)
            if not state.queues:
                self.libraries.pop(state.spec.id, None)
                self._starved.pop(state.spec.id, None)


def _warm(worker: Worker) -> list[Instance]:
    """Its zygotes without slots, the one that was idle longest first."""
    warm = [one for one in worker.instances.values() if one.slots == 0 and not one.outstanding and one.phase is Phase.READY]
    return sorted(warm, key=lambda one: one.idle_since)


def _yields(queue: CallQueue, claim: Claim) -> bool:
    """Whether calls of a queue leave room for a claim of their library."""
    return queue.needs != claim.queue.needs and queue.options.priority <= claim.queue.options.priority


def _turn(state: LibraryState) -> tuple[int, float]:
    """Whose turn it is to look for slots: the smallest first."""
    return state.slots, state.granted_at
