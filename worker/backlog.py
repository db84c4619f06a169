"""The calls that a worker holds: what waits, what has been fed, what is taken back, cancelled, timed out.

Theory of operation
-------------------
Each library instance has a `Line`. A call that arrives is *blocked* while an object or a function that it names is not on the
node yet, or there is no room for its objects, then *waiting* in its line, then *fed*: in the instance's call queue or running. It
leaves by an end (`ended`), or by being returned to the manager without having started. `_held` has every call that has not left;
which of the three states it is in follows from where it stands.

The hot path is `run` → `_pump` → `Instance.feed` and back `ended`: a few dictionary and deque operations for a call that has no
objects, timeout or extra weight ("plain"); everything else is looked at only for calls that are not plain, which the three
counts of a line tell.

Objects are held for all of a call or for none of it, and calls for which there is no room yet (*cramped*) get it in their order: so none
waits with a part of what it needs for others that do the same, and none is passed by for ever. Those that wait for long go back: the
manager, who counts slots only, takes them for running, and other workers may have room.

A call of weight *w* occupies *w* slots. Slots claim calls by themselves, so the only means is not to feed: while a line holds a
heavy call (waiting or fed) it feeds, in order, only as many calls as have free slots, and nothing into the queue ahead. A call
heavier than all slots runs alone.

Between a slot's claim of a call and the note that it has started, a call is neither in the queue nor running. A cancelled call
that is not found for that reason is *doomed*: `sweep` looks for it again until it is found or has ended.

This is a core: the instances and the way to the manager come as `Instance` and `Comm` (`windlass.worker.lines`), `now` is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from windlass.messages import (
    CANCELLED,
    DIED,
    TIMED_OUT,
    CallEnd,
    CallId,
    CallRun,
    EndDetail,
    FunctionId,
    HeldCall,
    InstanceId,
    ObjectRef,
)
from windlass.worker.lines import Attempt, Comm, Instance, Key, Line

#: Calls handed to an instance in one go; its queue takes a few thousand.
BATCH: Final = 512
#: Seconds after which calls that wait for room go back, at the latest after twice as many.
ROOM_SECONDS: Final = 15.0


class Backlog:
    """All calls of a worker. Methods are named after what happened; what is to be done goes out through `comm` and the instances."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._lines: dict[InstanceId, Line] = {}
        self._held: dict[CallId, CallRun] = {}
        #: Attempts that a newer attempt of the same call has overtaken; they are still somewhere and will still answer.
        self._older: dict[tuple[CallId, int], CallRun] = {}
        self._blocked: dict[CallId, set[Key]] = {}
        self._waiters: dict[Key, list[CallRun]] = {}
        #: Of the blocked ones those that hold no objects yet, as there is no room for theirs; and how many calls do hold some.
        self._cramped: dict[CallId, CallRun] = {}
        self._holding = 0
        #: Which were cramped when this was looked at last, and when it is looked again.
        self._were_cramped: set[Attempt] = set()
        self._room_due = 0.0
        #: Functions on their way (None), and those that will not come: how calls that name them end.
        self._absent: dict[FunctionId, tuple[int, str] | None] = {}
        self._doomed: dict[CallId, CallRun] = {}
        self.draining = False
        #: The longest `CallRun.least_seconds` that was seen.
        self.longest = 0.0
        #: Calls that went back so far as what they need will come much later.
        self.put_off = 0

    # ------------------------------------------------------------ what is there

    @property
    def held(self) -> int:
        """Calls that have neither ended nor been returned."""
        return len(self._held) + len(self._older)

    @property
    def sweeping(self) -> bool:
        """Whether `sweep` has anything to watch."""
        return bool(self._doomed) or any(line.timeouts for line in self._lines.values())

    def weight(self, call: CallId, attempt: int) -> int:
        """How many slots a held call occupies; 1 for one that is not held."""
        found = self._find(HeldCall(call, attempt))
        return found.weight if found is not None else 1

    # ------------------------------------------------------------ instances and functions

    def add(self, instance: InstanceId, holder: Instance, slots: int) -> None:
        """An instance is being started; its calls wait until `serves`."""
        self._lines[instance] = Line(instance, holder, slots)

    def serves(self, instance: InstanceId) -> None:
        """The instance takes calls now."""
        line = self._lines.get(instance)
        if line is not None:
            line.ready = True
            self._pump(line)

    def set_slots(self, instance: InstanceId, slots: int) -> None:
        """The instance has another number of slots."""
        line = self._lines.get(instance)
        if line is not None:
            line.slots = slots
            self._pump(line)

    def room(self, instance: InstanceId) -> None:
        """The instance's call queue has room again."""
        line = self._lines.get(instance)
        if line is not None:
            self._pump(line)

    def gone(self, instance: InstanceId) -> None:
        """The instance serves no more: whatever is still held for it goes back."""
        line = self._lines.pop(instance, None)
        if line is None:
            return
        orphans = [call for call in (*self._held.values(), *self._older.values()) if call.instance == instance]
        if orphans:
            self._give_back(orphans, "instance")

    def expect(self, function: FunctionId) -> None:
        """Calls that name this function wait until it has `arrived` or `failed`."""
        self._absent[function] = None

    def forget(self, function: FunctionId) -> None:
        """The function will not be named again."""
        self._absent.pop(function, None)

    # ------------------------------------------------------------ calls come

    def run(self, calls: Sequence[CallRun]) -> None:
        """The manager hands over calls, to be run in this order."""
        if self.draining:
            self._comm.returned(tuple(HeldCall(call.call, call.attempt) for call in calls), "draining")
            return
        held, absent = self._held, self._absent
        lines: dict[InstanceId, Line] = {}
        strays: list[HeldCall] = []
        line: Line | None = None
        current: InstanceId | None = None
        for call in calls:
            if call.instance != current:
                current = call.instance
                line = self._lines.get(current)
                if line is not None:
                    lines[current] = line
            if line is None:
                strays.append(HeldCall(call.call, call.attempt))
                continue
            if call.call in held:
                older = held[call.call]
                if older.attempt == call.attempt:
                    continue
                if call.call in self._blocked:
                    self._remove(older)  # nobody waits for its answer any more
                else:
                    self._older[older.call, older.attempt] = older
            held[call.call] = call
            plain = not (call.spans or call.inputs or call.timeout or call.weight > 1 or call.least_seconds)
            if not plain or (absent and call.function in absent):
                self._admit(call, line)
            else:
                line.waiting.append(call)
        for line in lines.values():
            self._pump(line)
        if strays:
            self._comm.returned(tuple(strays), "instance")
        self.room_made()  # the first of those that wait for room may have been an older attempt

    def arrived(self, key: Key) -> None:
        """An object or a function is there: calls that lacked only that may run."""
        if isinstance(key, bytes):
            self._absent.pop(key, None)
        lines: dict[InstanceId, Line] = {}
        for call in self._waiters.pop(key, ()):
            missing = self._blocked.get(call.call)
            if missing is None or self._held.get(call.call) is not call:
                continue
            missing.discard(key)
            if not missing:
                del self._blocked[call.call]
                line = self._lines[call.instance]
                line.waiting.append(call)
                lines[call.instance] = line
        for line in lines.values():
            self._pump(line)

    def failed(self, key: Key, outcome: int, text: str) -> None:
        """An object or a function will not come: calls that need it end with `outcome`, and later ones for a function too."""
        if isinstance(key, bytes):
            self._absent[key] = (outcome, text)
        ends: list[CallEnd] = []
        for call in self._waiters.pop(key, ()):
            if call.call in self._blocked and self._held.get(call.call) is call:
                self._remove(call)
                ends.append(CallEnd(call.call, call.attempt, outcome, detail=EndDetail(text=text)))
        if ends:
            self._comm.ended(ends)

    def room_made(self) -> None:
        """Objects were released, or who was first in turn has left: there may be room for those of the calls that wait for it."""
        while self._cramped:
            call = next(iter(self._cramped.values()))
            refs = _objects(call)
            lack = self._comm.lacks_room(refs)
            if lack and self._holding:
                return
            if lack:  # nobody will make room
                self._remove(call)
                text = f"its large arguments are {sum(ref.size for ref in refs)} bytes: {lack}; give the pilots more memory"
                self._comm.ended([CallEnd(call.call, call.attempt, DIED, detail=EndDetail(text=text))])
                continue
            del self._cramped[call.call], self._blocked[call.call]
            line = self._lines[call.instance]
            self._bring(call, line, refs)
            self._pump(line)

    # ------------------------------------------------------------ calls go

    def ended(self, instance: InstanceId, ends: list[CallEnd]) -> None:
        """The instance reports ends of calls that it was fed."""
        line = self._lines.get(instance)
        held = self._held
        count = 0
        for end in ends:
            call = held.get(end.call)
            if call is not None and call.attempt == end.attempt:
                del held[end.call]
            else:
                call = self._older.pop((end.call, end.attempt), None)
                if call is None:
                    continue
            count += 1
            if call.key:
                end.key = call.key
            if call.spans or call.inputs or call.timeout or call.weight > 1 or self._doomed:
                self._drop(call, line, fed=True)
        self._comm.ended(ends)
        if line is not None:
            line.fed -= count
            if line.heavy or line.waiting:
                self._pump(line)

    def lost(self, instance: InstanceId, calls: Sequence[HeldCall], reason: str = "instance") -> None:
        """The instance gives back calls that it was fed, and that never started or are not to blame for the end of their slot."""
        line = self._lines.get(instance)
        found: list[HeldCall] = []
        for item in calls:
            call = self._find(item)
            if call is None:
                continue
            self._remove(call, fed=True)
            if line is not None:
                line.fed -= 1
            found.append(item)
        if found:
            self._comm.returned(tuple(found), reason)
        if line is not None:
            self._pump(line)

    def give_back_for(self, key: Key, reason: str) -> None:
        """What this stands for will come much later: calls that wait for it go back."""
        blocked = [call for call in self._waiters.pop(key, ()) if call.call in self._blocked and self._held.get(call.call) is call]
        if blocked:
            self.put_off += len(blocked)
            self._give_back(blocked, reason)

    def recall(self, instance: InstanceId, count: int) -> None:
        """The manager wants up to `count` unstarted calls back, newest first.

        Those that wait for room go first, then those that still lack an object: they are furthest from running. Answered by one
        "recalled", also by an empty one, so that the manager knows that there are no more.
        """
        line = self._lines.get(instance)
        calls: list[CallRun] = []
        if line is not None:
            blocked = [self._held[number] for number in reversed(self._blocked)]
            blocked.sort(key=lambda call: call.call not in self._cramped)
            calls = [call for call in blocked if call.instance == instance][:count]
            while len(calls) < count and line.waiting:
                calls.append(line.waiting.pop())
            if len(calls) < count and line.fed:
                back = line.holder.take_back(count - len(calls))
                self._unfeed(line, back)
                calls += back
        self._give_back(calls, "recalled")

    def cancel(self, wanted: Iterable[HeldCall]) -> None:
        """The manager wants these attempts ended, started or not."""
        unknown: list[HeldCall] = []
        ends: list[CallEnd] = []
        by_line: dict[InstanceId, dict[CallId, CallRun]] = {}
        for item in wanted:
            call = self._find(item)
            if call is None:
                unknown.append(item)
            elif call.call in self._blocked:
                self._remove(call)
                ends.append(CallEnd(call.call, call.attempt, CANCELLED))
            else:
                by_line.setdefault(call.instance, {})[call.call] = call
        for instance, calls in by_line.items():
            ends += self._cancel_in(self._lines[instance], calls)
        if unknown:
            self._comm.returned(tuple(unknown), "unknown")
        if ends:
            self._comm.ended(ends)
        self.room_made()

    def drain(self) -> None:
        """Accept nothing more and give back everything that has not started."""
        self.draining = True
        calls = [self._held[call] for call in self._blocked]
        for line in self._lines.values():
            calls += line.waiting
            line.waiting.clear()
            if line.fed:
                back = line.holder.take_back(None)
                self._unfeed(line, back)
                calls += back
        if calls:
            self._give_back(calls, "draining")

    def running(self) -> list[CallRun]:
        """Calls that slots run now."""
        found = [HeldCall(slot.call, slot.attempt) for line in self._lines.values() for slot in line.holder.running()]
        return [call for one in found if (call := self._find(one)) is not None]

    def calls(self) -> list[CallRun]:
        """Calls that it holds, the newest attempt of each."""
        return list(self._held.values())

    def go_over_to(self, comm: Comm) -> list[CallRun]:
        """Nobody waits for these calls any more but who is told by ``comm``: give back what has not started; what runs."""
        self._comm = comm
        self.drain()
        return self.calls()

    def give_back_late(self, seconds_left: float) -> None:
        """Calls that have not been fed, and need more time than is left, go where there is more."""
        late = [call for call in map(self._held.__getitem__, self._blocked) if call.least_seconds > seconds_left]
        for line in self._lines.values():
            found = [call for call in line.waiting if call.least_seconds > seconds_left]
            if found:
                line.waiting = deque(call for call in line.waiting if call.least_seconds <= seconds_left)
                late += found
        if late:
            self._give_back(late, "late")

    def give_back_cramped(self, now: float) -> None:
        """Calls that have found no room for `ROOM_SECONDS` (by ``now``, of any clock) go where there may be some."""
        if not self._cramped or now < self._room_due:
            return
        self._room_due = now + ROOM_SECONDS
        waited = [call for call in self._cramped.values() if (call.call, call.attempt) in self._were_cramped]
        self._were_cramped = {(call.call, call.attempt) for call in self._cramped.values()}
        if waited:
            self._give_back(waited, "room")

    def sweep(self, now: float) -> None:
        """End calls that run longer than their timeout, and cancelled ones that could not be found before.

        `now` is on the clock of `Running.since`, the monotonic one: a call that ran for seconds must not end by a clock that is set, nor
        by a laptop that slept meanwhile.
        """
        self._find_doomed()
        for line in list(self._lines.values()):
            if not line.is_due(now):
                continue
            late: dict[float, list[Attempt]] = {}
            ends: list[float] = []
            for slot in line.holder.running():
                found = self._find(HeldCall(slot.call, slot.attempt))
                if found is None or not found.timeout:
                    continue
                ends.append(slot.since + found.timeout)
                if ends[-1] <= now:
                    late.setdefault(found.timeout, []).append((slot.call, slot.attempt))
            line.looked(now, ends)
            for timeout, calls in late.items():
                text = f"ran longer than its timeout of {timeout:g} s and was ended; give it a longer timeout= if it needs that"
                line.holder.kill_calls(calls, TIMED_OUT, EndDetail(text=text))

    def _find_doomed(self) -> None:
        by_line: dict[InstanceId, list[Attempt]] = {}
        for call in self._doomed.values():
            by_line.setdefault(call.instance, []).append((call.call, call.attempt))
        for instance, calls in by_line.items():
            line = self._lines.get(instance)
            for number, _ in line.holder.kill_calls(calls, CANCELLED, None) if line is not None else calls:
                self._doomed.pop(CallId(number), None)

    def check(self) -> None:
        """Raise AssertionError where collections disagree; for tests."""
        fed = sum(line.fed for line in self._lines.values())
        waiting = [call for line in self._lines.values() for call in line.waiting]
        assert fed + len(waiting) + len(self._blocked) == self.held, (fed, len(waiting), len(self._blocked), self.held)
        assert all(self._held.get(call) is not None for call in self._blocked)
        assert all(call.call not in self._blocked for call in waiting)
        assert all(call in self._blocked and self._held[call] is self._cramped[call] for call in self._cramped)
        assert self._holding + len(self._cramped) == sum(bool(_objects(call)) for call in (*self._held.values(), *self._older.values()))
        for line in self._lines.values():
            mine = [call for call in (*self._held.values(), *self._older.values()) if call.instance == line.instance]
            assert line.heavy == sum(call.weight > 1 for call in mine)
            assert line.timeouts.total() == sum(call.timeout > 0 for call in mine)
            unfed = {id(call) for call in line.waiting} | {id(self._held[number]) for number in self._blocked}
            fed_calls = [call for call in mine if id(call) not in unfed]
            assert line.fed == len(fed_calls)
            assert line.extra == sum(call.weight - 1 for call in fed_calls)

    # ------------------------------------------------------------ inside

    def _admit(self, call: CallRun, line: Line) -> None:
        """The rarer kind of call: it has objects, a timeout, weight, or a function that is not there."""
        if call.timeout:
            line.watch(call.timeout)
        line.heavy += call.weight > 1
        self.longest = max(self.longest, call.least_seconds)
        refs = _objects(call)
        if refs and (self._cramped or self._comm.lacks_room(refs)):
            self._cramped[call.call] = call
            self._blocked[call.call] = set()
            if not self._holding:
                self.room_made()
        else:
            self._bring(call, line, refs)

    def _bring(self, call: CallRun, line: Line, refs: Sequence[ObjectRef]) -> None:
        """Have what the call needs, now that there is room for it."""
        self._holding += bool(refs)
        missing: set[Key] = set(self._comm.hold(refs)) if refs else set()
        if call.inputs:
            missing.update(self._comm.hold_files(call.inputs))
        if call.function in self._absent:
            failure = self._absent[call.function]
            if failure is not None:
                self._held.pop(call.call)
                self._drop(call, line)
                self._comm.ended([CallEnd(call.call, call.attempt, failure[0], detail=EndDetail(text=failure[1]))])
                return
            missing.add(call.function)
        if not missing:
            line.waiting.append(call)
            return
        self._blocked[call.call] = missing
        for key in missing:
            self._waiters.setdefault(key, []).append(call)

    def _pump(self, line: Line) -> None:
        """Feed what may be fed."""
        waiting = line.waiting
        while waiting and line.ready:
            batch = self._fitting(line) if line.heavy else list(islice(waiting, BATCH))
            taken = line.holder.feed(batch) if batch else 0
            for _ in range(taken):
                waiting.popleft()
            line.fed += taken
            if line.heavy:
                line.extra += sum(call.weight - 1 for call in batch[:taken] if call.weight > 1)
            if taken < BATCH:
                return

    def _fitting(self, line: Line) -> list[CallRun]:
        """The first waiting calls for which there are free slots."""
        batch: list[CallRun] = []
        used = line.fed + line.extra
        for call in line.waiting:
            if used and used + call.weight > line.slots:
                break
            used += call.weight
            batch.append(call)
        return batch

    def _cancel_in(self, line: Line, calls: dict[CallId, CallRun]) -> list[CallEnd]:
        """End these calls of one line; answers for those that had not started."""
        unstarted = [call for call in line.waiting if calls.get(call.call) is call]
        if unstarted:
            line.waiting = deque(call for call in line.waiting if calls.get(call.call) is not call)
        left: dict[Attempt, CallRun] = {(call.call, call.attempt): call for call in calls.values()}
        for call in unstarted:
            del left[call.call, call.attempt]
        for key in line.holder.kill_calls(list(left), CANCELLED, None):
            del left[key]
        if left:
            back = line.holder.take_back(None)
            self._unfeed(line, back)
            found = [call for call in back if (call.call, call.attempt) in left]
            unstarted += found
            for call in found:
                del left[call.call, call.attempt]
            taken = {id(call) for call in found}
            # `back` is newest first, and extendleft turns it round once more: the oldest is first again.
            line.waiting.extendleft(self._find(HeldCall(call.call, call.attempt)) or call for call in back if id(call) not in taken)
            killed = line.holder.kill_calls(list(left), CANCELLED, None)
            self._doomed.update((call.call, call) for key, call in left.items() if key not in killed)
        self._forget_calls(unstarted)
        self._pump(line)
        return [CallEnd(call.call, call.attempt, CANCELLED) for call in unstarted]

    def _unfeed(self, line: Line, back: Sequence[CallRun]) -> None:
        """Calls were taken back out of the instance's queue."""
        line.fed -= len(back)
        line.extra -= sum(call.weight - 1 for call in back if call.weight > 1)

    def _give_back(self, calls: Sequence[CallRun], reason: str) -> None:
        self._forget_calls(calls)
        self._comm.returned(tuple(HeldCall(call.call, call.attempt) for call in calls), reason)
        self.room_made()

    def _forget_calls(self, calls: Sequence[CallRun]) -> None:
        """These were taken out of where they stood; calls that come back from an instance are copies, so they are found by number."""
        for call in calls:
            original = self._find(HeldCall(call.call, call.attempt))
            if original is not None:
                self._remove(original)

    def _find(self, item: HeldCall) -> CallRun | None:
        call = self._held.get(item.call)
        return call if call is not None and call.attempt == item.attempt else self._older.get((item.call, item.attempt))

    def _remove(self, call: CallRun, *, fed: bool = False) -> None:
        """The call is held no more; whoever calls this has taken it out of its line.

        `fed`: it was in the instance's queue, and no `_unfeed` has counted it.
        """
        if self._held.get(call.call) is call:
            del self._held[call.call]
            self._blocked.pop(call.call, None)
        else:
            self._older.pop((call.call, call.attempt), None)
        self._drop(call, self._lines.get(call.instance), fed=fed)

    def _drop(self, call: CallRun, line: Line | None, *, fed: bool = False) -> None:
        """Take back what `_admit` counted for a call that is not plain."""
        if self._doomed.get(call.call) is call:
            del self._doomed[call.call]
        if self._cramped.get(call.call) is call:
            del self._cramped[call.call]  # it holds nothing
        else:
            refs = _objects(call)
            if refs:
                self._holding -= 1
                self._comm.release(refs)
            if call.inputs:
                self._comm.release_files(call.inputs)
        if line is not None:
            if call.timeout:
                line.unwatch(call.timeout)
            if call.weight > 1:
                line.heavy -= 1
                if fed:
                    line.extra -= call.weight - 1


def _objects(call: CallRun) -> Sequence[ObjectRef]:
    """The spans of a call that are objects: of results that stay on workers the cache has the bytes."""
    if not call.inputs:
        return call.spans
    files = {str(ref.name) for ref in call.inputs}
    return [ref for ref in call.spans if ref.name not in files]
