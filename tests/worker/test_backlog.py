"""Rules of `windlass.worker.backlog`, driven by plain calls; what goes out is recorded by `Desk`, an instance is played by `Queue`."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from windlass.messages import (
    BAD_CALL,
    CANCELLED,
    DIED,
    NO_FILE,
    RETURNED,
    TIMED_OUT,
    CallEnd,
    CallId,
    CallRun,
    EndDetail,
    FileName,
    FileRef,
    FunctionId,
    HeldCall,
    InstanceId,
    ObjectName,
    ObjectRef,
)
from windlass.worker.backlog import ROOM_SECONDS, Backlog
from windlass.worker.lines import Attempt

LIB = InstanceId(1)
OTHER = InstanceId(2)
FUNCTION = FunctionId(b"f" * 16)


@dataclass
class Slot:
    call: CallId
    attempt: int
    since: float


class Queue:
    """An instance's call queue with room for `room` calls, and what its slots run."""

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.queue: deque[CallRun] = deque()
        self.slots: list[Slot] = []
        self.killed: list[tuple[CallId, int, int]] = []
        self.details: list[EndDetail | None] = []
        #: Calls that a slot has claimed and not yet noted.
        self.limbo: list[CallRun] = []
        #: How often it was asked what runs.
        self.looks = 0

    def feed(self, calls: Sequence[CallRun], /) -> int:
        count = max(0, min(len(calls), self.room - len(self.queue)))
        self.queue.extend(copy.copy(call) for call in calls[:count])
        return count

    def take_back(self, count: int | None, /) -> list[CallRun]:
        return [self.queue.pop() for _ in range(len(self.queue) if count is None else min(count, len(self.queue)))]

    def running(self) -> list[Slot]:
        self.looks += 1
        return self.slots

    def kill_calls(self, calls: Collection[Attempt], outcome: int, detail: EndDetail | None, /) -> list[Attempt]:
        found: list[Attempt] = [(slot.call, slot.attempt) for slot in self.slots if (slot.call, slot.attempt) in calls]
        self.killed += [(CallId(call), attempt, outcome) for call, attempt in found]
        self.details += [detail] * len(found)
        return found

    def start(self, now: float = 0.0) -> CallRun:
        """A slot claims the oldest call and starts it."""
        call = self.queue.popleft()
        self.slots.append(Slot(call.call, call.attempt, now))
        return call


class Desk:
    """Records what the backlog asks of the worker."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []
        self.here: set[ObjectName] = set()
        self.held: list[ObjectName] = []
        #: Objects for which there is room.
        self.room = 1000

    def ended(self, ends: list[CallEnd], /) -> None:
        self.said += [("ended", end.call, end.outcome) for end in ends]

    def returned(self, calls: tuple[HeldCall, ...], reason: str, /) -> None:
        self.said.append((reason, *(call.call for call in calls)))

    def lacks_room(self, refs: Sequence[ObjectRef], /) -> str:
        return "no room" if len({ref.name for ref in refs}.union(self.held)) > self.room else ""

    def hold(self, refs: Sequence[ObjectRef], /) -> list[ObjectName]:
        assert not self.lacks_room(refs)
        self.held += [ref.name for ref in refs]
        return [ref.name for ref in refs if ref.name not in self.here]

    def release(self, refs: Sequence[ObjectRef], /) -> None:
        for ref in refs:
            self.held.remove(ref.name)

    def hold_files(self, refs: Sequence[FileRef], /) -> list[str]:
        self.held += [ObjectName(f"file {ref.name}") for ref in refs]
        return [f"file {ref.name}" for ref in refs if ObjectName(f"file {ref.name}") not in self.here]

    def release_files(self, refs: Sequence[FileRef], /) -> None:
        for ref in refs:
            self.held.remove(ObjectName(f"file {ref.name}"))

    def take(self) -> list[tuple[object, ...]]:
        """What was said since the last look."""
        said, self.said = self.said, []
        return said


def call(
    number: int,
    *,
    attempt: int = 1,
    instance: InstanceId = LIB,
    timeout: float = 0.0,
    weight: int = 1,
    spans: Sequence[str] = (),
    inputs: Sequence[str] = (),
) -> CallRun:
    refs = tuple(ObjectRef(ObjectName(name), 100) for name in spans)
    files = tuple(FileRef(FileName(name), 100, "f") for name in inputs)
    return CallRun(CallId(number), attempt, instance, FUNCTION, b"x", refs, timeout, weight, inputs=files)


def end(number: int, attempt: int = 1) -> CallEnd:
    return CallEnd(CallId(number), attempt, RETURNED)


def ref(number: int, attempt: int = 1) -> HeldCall:
    return HeldCall(CallId(number), attempt)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def backlog(desk: Desk, queue: Queue) -> Iterator[Backlog]:
    """A backlog with one serving instance of four slots; its invariants hold after each test."""
    it = Backlog(desk)
    it.add(LIB, queue, 4)
    it.serves(LIB)
    yield it
    it.check()
    assert desk.take() == []


def numbers(calls: Sequence[CallRun] | deque[CallRun]) -> list[int]:
    return [call.call for call in calls]


def test_calls_are_fed_in_order_and_their_ends_go_out_together(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """The plain way of a call."""
    backlog.run([call(1), call(2), call(3)])
    assert numbers(queue.queue) == [1, 2, 3]
    assert backlog.held == 3
    queue.queue.clear()
    backlog.ended(LIB, [end(1), end(2), end(3)])
    assert desk.take() == [("ended", 1, RETURNED), ("ended", 2, RETURNED), ("ended", 3, RETURNED)]
    assert backlog.held == 0


def test_calls_wait_until_their_instance_serves(desk: Desk, queue: Queue) -> None:
    """The manager may send calls right after StartLibrary."""
    backlog = Backlog(desk)
    backlog.add(LIB, queue, 1)
    backlog.run([call(1)])
    assert not queue.queue
    backlog.serves(LIB)
    assert numbers(queue.queue) == [1]
    backlog.check()


def test_what_the_queue_has_no_room_for_is_fed_when_it_has(backlog: Backlog, queue: Queue) -> None:
    """Nothing is lost and the order stays, over more than one batch."""
    queue.room = 700
    backlog.run([call(number) for number in range(2000)])
    assert numbers(queue.queue) == list(range(700))
    queue.queue.clear()
    backlog.room(LIB)
    assert numbers(queue.queue) == list(range(700, 1400))
    backlog.check()


def test_a_call_for_an_instance_that_is_not_there_goes_back(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """And its neighbours run."""
    backlog.run([call(1), call(2, instance=OTHER), call(3)])
    assert numbers(queue.queue) == [1, 3]
    assert desk.take() == [("instance", 2)]


def test_the_same_attempt_again_is_not_run_twice(backlog: Backlog, queue: Queue) -> None:
    """A repeated message changes nothing."""
    backlog.run([call(1)])
    backlog.run([call(1)])
    assert numbers(queue.queue) == [1]


def test_a_newer_attempt_runs_beside_the_older_one(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Both answer; the manager drops the older answer by its number."""
    backlog.run([call(1)])
    backlog.run([call(1, attempt=2)])
    assert backlog.held == 2
    backlog.ended(LIB, [end(1)])
    assert backlog.held == 1
    backlog.ended(LIB, [end(1, attempt=2)])
    assert backlog.held == 0
    assert desk.take() == [("ended", 1, RETURNED)] * 2


def test_a_call_waits_for_its_objects_and_keeps_them_while_it_is_held(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Others go past it meanwhile."""
    desk.here = {ObjectName("b3-a")}
    backlog.run([call(1, spans=["b3-a", "b3-b"]), call(2)])
    assert numbers(queue.queue) == [2]
    backlog.arrived(ObjectName("b3-b"))
    assert numbers(queue.queue) == [2, 1]
    assert desk.held == ["b3-a", "b3-b"]
    backlog.ended(LIB, [end(1)])
    assert desk.held == []
    assert desk.take() == [("ended", 1, RETURNED)]


def test_an_object_that_cannot_be_had_fails_the_calls_that_need_it(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Only those."""
    backlog.run([call(1, spans=["b3-b"]), call(2, spans=["b3-c"]), call(3)])
    backlog.failed(ObjectName("b3-b"), BAD_CALL, "object b3-b is not there")
    assert desk.take() == [("ended", 1, BAD_CALL)]
    assert desk.held == ["b3-c"]
    backlog.arrived(ObjectName("b3-c"))
    assert numbers(queue.queue) == [3, 2]


def test_a_call_waits_for_room_for_all_its_objects_in_its_turn(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Meanwhile it holds none, so that no two wait for each other; one with fewer objects does not pass it, one without any does."""
    desk.room, desk.here = 3, {ObjectName(f"b3-{letter}") for letter in "abcde"}
    backlog.run([call(1, spans=["b3-a", "b3-b"]), call(2, spans=["b3-c", "b3-d"]), call(3, spans=["b3-e"]), call(4)])
    assert numbers(queue.queue) == [1, 4]
    assert desk.held == ["b3-a", "b3-b"]
    backlog.room_made()
    assert numbers(queue.queue) == [1, 4]
    queue.queue.popleft()
    backlog.ended(LIB, [end(1)])
    backlog.room_made()
    assert numbers(queue.queue) == [4, 2, 3]
    backlog.run([call(5, spans=["b3-a"]), call(6, spans=["b3-b"])])
    backlog.cancel([ref(5)])
    backlog.drain()
    assert desk.held == []
    assert desk.take() == [("ended", 1, RETURNED), ("ended", 5, CANCELLED), ("draining", 6, 3, 2, 4)]


def test_a_call_whose_objects_alone_are_too_many_fails(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Not before others have let go what they hold, and those behind it come to their turn."""
    desk.room, desk.here = 1, {ObjectName("b3-a")}
    backlog.run([call(1, spans=["b3-a"]), call(2, spans=["b3-b", "b3-c"]), call(3, spans=["b3-a"])])
    assert numbers(queue.queue) == [1]
    queue.queue.clear()
    backlog.ended(LIB, [end(1)])
    backlog.room_made()
    assert numbers(queue.queue) == [3]
    backlog.ended(LIB, [end(3)])
    backlog.run([call(4, spans=["b3-b", "b3-c"])])
    assert desk.take() == [("ended", 1, RETURNED), ("ended", 2, DIED), ("ended", 3, RETURNED), ("ended", 4, DIED)]


def test_who_leaves_lets_those_behind_it_have_the_room(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Whether it is cancelled, recalled, or another attempt comes; not only when somebody lets go what it holds, which may take hours."""
    desk.room, desk.here = 3, {ObjectName(f"b3-{letter}") for letter in "abcdefg"}
    large = ["b3-d", "b3-e", "b3-f"]
    backlog.run([call(1, spans=["b3-a"]), call(2, spans=large), call(3, spans=["b3-b"])])
    assert numbers(queue.queue) == [1]
    backlog.cancel([ref(2)])
    assert numbers(queue.queue) == [1, 3]
    backlog.run([call(4, spans=large), call(5, spans=["b3-g"])])
    backlog.run([call(4, attempt=2, spans=large)])
    assert numbers(queue.queue) == [1, 3, 5]
    backlog.run([call(6, spans=["b3-a"])])
    backlog.recall(LIB, 1)
    assert desk.take() == [("ended", 2, CANCELLED), ("recalled", 6)]
    backlog.recall(LIB, 1)
    assert desk.take() == [("recalled", 4)]


def test_those_that_find_no_room_for_long_go_back(backlog: Backlog, desk: Desk) -> None:
    """The manager takes them for running; other workers may have room, and here none is left behind those who wait for it."""
    desk.room = 2
    backlog.run([call(1, spans=["b3-a"]), call(2, spans=["b3-b", "b3-c"])])
    backlog.give_back_cramped(100.0)
    backlog.run([call(3, spans=["b3-d"])])
    backlog.give_back_cramped(100.0 + ROOM_SECONDS - 1)
    assert desk.take() == []
    backlog.give_back_cramped(100.0 + ROOM_SECONDS)
    assert desk.take() == [("room", 2)]
    assert desk.held == ["b3-a", "b3-d"]
    backlog.run([call(2, attempt=2, spans=["b3-b", "b3-c"])])
    backlog.give_back_cramped(100.0 + 2 * ROOM_SECONDS)
    assert desk.take() == [], "it has just come"


def test_those_that_wait_for_room_are_recalled_first(backlog: Backlog, desk: Desk) -> None:
    """Also when others have come after them, which need none or have got it: these are nearer to running."""
    desk.room = 1
    backlog.run([call(1, spans=["b3-a"]), call(2, spans=["b3-b"]), call(3, inputs=["b3-1"])])
    backlog.recall(LIB, 1)
    assert desk.take() == [("recalled", 2)]


def test_a_call_waits_for_its_function(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """And fails at once, also later ones, when the function will not come."""
    backlog.expect(FUNCTION)
    backlog.run([call(1)])
    assert not queue.queue
    backlog.arrived(FUNCTION)
    assert numbers(queue.queue) == [1]
    backlog.expect(FUNCTION)
    backlog.run([call(2)])
    backlog.failed(FUNCTION, BAD_CALL, "function f could not be fetched")
    backlog.run([call(3)])
    assert desk.take() == [("ended", 2, BAD_CALL), ("ended", 3, BAD_CALL)]
    backlog.forget(FUNCTION)
    backlog.run([call(4)])
    assert numbers(queue.queue) == [1, 4]


def test_a_heavy_call_waits_for_enough_free_slots_and_keeps_its_turn(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Four slots: two light calls, then one of weight 3, then light ones behind it."""
    backlog.run([call(1), call(2), call(3, weight=3), call(4), call(5)])
    assert numbers(queue.queue) == [1, 2]
    backlog.ended(LIB, [end(1)])
    assert numbers(queue.queue) == [1, 2, 3]
    backlog.ended(LIB, [end(2)])
    assert numbers(queue.queue) == [1, 2, 3, 4], "three slots are taken by one call, so one is left"
    backlog.ended(LIB, [end(3)])
    assert numbers(queue.queue) == [1, 2, 3, 4, 5]
    backlog.check()
    backlog.ended(LIB, [end(4), end(5)])
    desk.take()


def test_a_call_heavier_than_all_slots_runs_alone(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Otherwise it would never run."""
    backlog.run([call(1), call(2, weight=9), call(3)])
    assert numbers(queue.queue) == [1]
    backlog.ended(LIB, [end(1)])
    assert numbers(queue.queue) == [1, 2]
    backlog.ended(LIB, [end(2)])
    assert numbers(queue.queue) == [1, 2, 3]
    desk.take()


def test_recall_takes_the_newest_unstarted_calls(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """First those that lack something, then waiting ones, then the instance's queue; never a running one."""
    queue.room = 3
    backlog.run([call(number) for number in range(1, 6)])
    backlog.run([call(6, spans=["b3-x"])])
    queue.start()
    backlog.recall(LIB, 2)
    assert desk.take() == [("recalled", 6, 5)]
    backlog.recall(LIB, 10)
    assert desk.take() == [("recalled", 4, 3, 2)]
    assert backlog.held == 1
    backlog.recall(LIB, 1)
    assert desk.take() == [("recalled",)], "an empty answer says that there are no more"


def test_cancel_finds_a_call_wherever_it_is(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Running, in the queue, waiting, blocked, unknown; and leaves the others in their order."""
    queue.room = 4
    backlog.run([call(number) for number in range(1, 8)])
    backlog.run([call(8, spans=["b3-x"])])
    queue.start()
    backlog.cancel([ref(1), ref(3), ref(6), ref(8), ref(9), ref(2, attempt=7)])
    assert queue.killed == [(1, 1, CANCELLED)]
    assert desk.take() == [("unknown", 9, 2), ("ended", 8, CANCELLED), ("ended", 6, CANCELLED), ("ended", 3, CANCELLED)]
    assert numbers(queue.queue) == [2, 4, 5, 7]
    assert desk.held == []
    backlog.check()


def test_a_cancelled_call_caught_between_queue_and_start_is_ended_by_the_sweep(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """A slot has claimed it and not noted it yet."""
    backlog.run([call(1)])
    queue.queue.clear()
    backlog.cancel([ref(1)])
    assert backlog.sweeping
    backlog.sweep(0.0)
    assert queue.killed == []
    queue.slots.append(Slot(CallId(1), 1, 0.0))
    backlog.sweep(0.0)
    assert queue.killed == [(1, 1, CANCELLED)]
    assert not backlog.sweeping
    backlog.ended(LIB, [CallEnd(CallId(1), 1, CANCELLED)])
    assert desk.take() == [("ended", 1, CANCELLED)]


def test_a_doomed_call_that_ends_by_itself_is_not_looked_for(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """It was quicker than the sweep."""
    backlog.run([call(1)])
    queue.queue.clear()
    backlog.cancel([ref(1)])
    backlog.ended(LIB, [end(1)])
    assert not backlog.sweeping
    assert desk.take() == [("ended", 1, RETURNED)]


def test_a_call_past_its_timeout_is_ended_and_others_are_not(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """The time counts from its start, not from its arrival."""
    backlog.run([call(1, timeout=2.0), call(2, timeout=5.0), call(3)])
    for _ in range(3):
        queue.start(now=10.0)
    backlog.sweep(11.9)
    assert queue.killed == []
    backlog.sweep(12.0)
    assert queue.killed == [(1, 1, TIMED_OUT)]
    assert queue.details[0] is not None
    assert queue.details[0].text == "ran longer than its timeout of 2 s and was ended; give it a longer timeout= if it needs that"
    backlog.ended(LIB, [CallEnd(CallId(1), 1, TIMED_OUT), end(2)])
    assert not backlog.sweeping
    desk.take()


def test_what_runs_is_looked_at_when_something_may_be_late(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """A slot may run a thousand calls at once, and a look at all of them takes long."""
    backlog.run([call(1, timeout=30.0), call(2, timeout=30.0)])
    queue.start(now=1000.0)
    for tick in range(1, 601):
        assert not queue.killed
        if tick == 400:
            queue.start(now=1019.9)
        backlog.sweep(1000.0 + tick / 20)
    assert queue.killed == [(1, 1, TIMED_OUT)]
    queue.slots.pop(0)
    backlog.ended(LIB, [CallEnd(CallId(1), 1, TIMED_OUT)])
    assert queue.killed == [(1, 1, TIMED_OUT)]
    assert queue.looks < 5
    desk.take()


def test_a_short_timeout_of_a_call_that_has_ended_costs_nothing(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """What is held has long ones, and never is nothing held."""
    backlog.run([call(1, timeout=0.1), call(2, timeout=1000.0)])
    queue.start(now=1000.0)
    queue.start(now=1000.0)
    queue.slots.pop(0)
    backlog.ended(LIB, [end(1)])
    for tick in range(1000):
        backlog.sweep(1000.0 + tick / 20)
    assert queue.looks <= 2
    assert queue.killed == []
    assert desk.take() == [("ended", 1, RETURNED)]


def test_a_short_timeout_is_not_late_for_a_long_one(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """What was looked at with the long one in mind is looked at again."""
    backlog.run([call(1, timeout=3600.0)])
    queue.start(now=1000.0)
    backlog.sweep(1000.0)
    backlog.run([call(2, timeout=1.0)])
    queue.start(now=1000.1)
    backlog.sweep(1000.2)
    backlog.sweep(1001.2)
    assert queue.killed == [(2, 1, TIMED_OUT)]


def test_draining_gives_back_everything_unstarted_and_accepts_nothing(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Running calls stay."""
    queue.room = 3
    backlog.run([call(number) for number in range(1, 6)])
    backlog.run([call(6, spans=["b3-x"])])
    queue.start()
    backlog.drain()
    assert desk.take() == [("draining", 6, 4, 5, 3, 2)]
    backlog.run([call(7)])
    assert desk.take() == [("draining", 7)]
    assert backlog.held == 1
    backlog.ended(LIB, [end(1)])
    assert desk.take() == [("ended", 1, RETURNED)]


def test_calls_go_back_that_have_not_started_when_too_little_time_is_left(desk: Desk, queue: Queue) -> None:
    """They may have waited for an object, or for the library's imports. Others stay, in their order."""
    backlog = Backlog(desk)
    backlog.add(LIB, queue, 2)
    assert backlog.longest == 0.0
    long, blocked, short = call(1), call(2, spans=["b3-x"]), call(3)
    long.least_seconds, blocked.least_seconds = 100.0, 50.0
    backlog.run([long, blocked, short, call(4)])
    assert backlog.longest == 100.0
    backlog.give_back_late(100.0)
    assert desk.take() == []
    backlog.give_back_late(70.0)
    assert desk.take() == [("late", 1)]
    backlog.give_back_late(40.0)
    assert desk.take() == [("late", 2)]
    backlog.check()
    backlog.serves(LIB)
    assert numbers(queue.queue) == [3, 4]


def test_calls_of_an_instance_that_is_gone_go_back(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """Whatever state they were in; those of others stay."""
    other = Queue()
    backlog.add(OTHER, other, 1)
    backlog.serves(OTHER)
    queue.room = 1
    backlog.run([call(1), call(2), call(3, spans=["b3-x"]), call(4, instance=OTHER)])
    backlog.gone(LIB)
    assert desk.take() == [("instance", 1, 2, 3)]
    assert desk.held == []
    assert backlog.held == 1
    backlog.arrived(ObjectName("b3-x"))


def test_calls_that_a_dead_slot_had_not_started_go_back(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """And ones that are not held are not told twice."""
    backlog.run([call(1), call(2)])
    backlog.lost(LIB, [ref(2), ref(7)])
    assert desk.take() == [("instance", 2)]
    assert backlog.held == 1


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: each call that came is answered exactly once, and none is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.desk.room = 2
        self.queue = Queue(room=6)
        self.backlog = Backlog(self.desk)
        self.backlog.add(LIB, self.queue, 3)
        self.backlog.serves(LIB)
        self.count = 0
        self.open: set[int] = set()
        self.cancelled: set[int] = set()

    @rule(
        weights=st.lists(st.sampled_from([1, 1, 1, 2, 5]), min_size=1, max_size=5), timeout=st.sampled_from([0.0, 9.0]), span=st.booleans()
    )
    def calls_come(self, weights: list[int], timeout: float, span: bool) -> None:
        calls: list[CallRun] = []
        for weight in weights:
            self.count += 1
            calls.append(call(self.count, timeout=timeout, weight=weight, spans=[f"b3-{self.count % 3}"] if span else ()))
        self.open |= {item.call for item in calls}
        self.backlog.run(calls)

    @rule(which=st.integers(0, 2), well=st.booleans())
    def object_comes_or_not(self, which: int, well: bool) -> None:
        name = ObjectName(f"b3-{which}")
        if well:
            self.desk.here.add(name)
            self.backlog.arrived(name)
        elif name not in self.desk.here:
            self.backlog.failed(name, BAD_CALL, "not there")

    @rule()
    def room_is_made(self) -> None:
        self.backlog.room_made()

    @precondition(lambda self: self.queue.queue and len(self.queue.slots) < 3)
    @rule(noted=st.booleans())
    def slot_claims(self, noted: bool) -> None:
        claimed = self.queue.queue.popleft()
        if noted:
            self.queue.slots.append(Slot(claimed.call, claimed.attempt, 0.0))
        else:
            self.queue.limbo.append(claimed)

    @precondition(lambda self: self.queue.limbo)
    @rule()
    def slot_notes(self) -> None:
        claimed = self.queue.limbo.pop()
        self.queue.slots.append(Slot(claimed.call, claimed.attempt, 0.0))

    @precondition(lambda self: self.queue.slots)
    @rule(first=st.booleans())
    def slot_ends(self, first: bool) -> None:
        slot = self.queue.slots.pop(0 if first else -1)
        self.backlog.ended(LIB, [end(slot.call)])

    @precondition(lambda self: self.queue.limbo)
    @rule()
    def slot_dies_before_it_started(self) -> None:
        claimed = self.queue.limbo.pop()
        self.backlog.lost(LIB, [HeldCall(claimed.call, claimed.attempt)])

    @rule()
    def queue_has_room(self) -> None:
        self.backlog.room(LIB)

    @rule(count=st.integers(1, 4))
    def manager_recalls(self, count: int) -> None:
        self.backlog.recall(LIB, count)

    @rule(data=st.data())
    def manager_cancels(self, data: st.DataObject) -> None:
        if self.open:
            wanted = data.draw(st.lists(st.sampled_from(sorted(self.open)), max_size=3, unique=True))
            self.backlog.cancel([ref(number) for number in wanted])

    @rule(slots=st.integers(0, 4))
    def slots_change(self, slots: int) -> None:
        self.backlog.set_slots(LIB, slots)

    @rule(now=st.sampled_from([1.0, 20.0]))
    def clock(self, now: float) -> None:
        self.backlog.sweep(now)

    @rule(now=st.sampled_from([1.0, 20.0, 40.0]))
    def clock_of_room(self, now: float) -> None:
        self.backlog.give_back_cramped(now)

    @rule()
    def instance_is_replaced(self) -> None:
        self.backlog.gone(LIB)
        self.queue = Queue(room=6)
        self.backlog.add(LIB, self.queue, 3)
        self.backlog.serves(LIB)

    @invariant()
    def each_is_answered_once(self) -> None:
        for word, *numbers in self.desk.take():
            answered = {numbers[0]} if word == "ended" else set(numbers) if word != "unknown" else set[object]()
            assert answered <= self.open, (word, numbers)
            self.open -= {number for number in answered if isinstance(number, int)}
        assert self.backlog.held == len(self.open)
        self.backlog.check()

    def teardown(self) -> None:
        """Drained, everything that does not run has gone back."""
        self.backlog.drain()
        self.each_is_answered_once()
        running = {slot.call for slot in self.queue.slots} | {item.call for item in self.queue.limbo}
        assert self.open == running


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


def test_a_call_waits_for_its_files_and_lets_them_go_at_its_end(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """An object and a file of one name are two things."""
    desk.here = {ObjectName("b3-1")}
    backlog.run([call(1, spans=["b3-1"], inputs=["b3-1"])])
    backlog.arrived("b3-1")
    assert not queue.queue
    backlog.arrived("file b3-1")
    assert numbers(queue.queue) == [1]
    queue.queue.clear()
    backlog.ended(LIB, [end(1)])
    assert desk.take() == [("ended", 1, RETURNED)]
    assert desk.held == []


def test_a_call_whose_file_will_be_long_in_coming_goes_back_and_is_counted(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """It may come again, and another one of its files may have come meanwhile."""
    backlog.run([call(1, inputs=["b3-1", "b3-2"]), call(2)])
    backlog.give_back_for("file b3-1", "files")
    assert desk.take() == [("files", 1)]
    assert (backlog.put_off, desk.held) == (1, [])
    backlog.give_back_for("file b3-1", "files")
    assert (backlog.put_off, desk.take()) == (1, [])
    backlog.run([call(1, attempt=2, inputs=["b3-1", "b3-2"])])
    backlog.arrived("file b3-2")
    backlog.arrived("file b3-1")
    assert numbers(queue.queue) == [2, 1]


def test_a_call_whose_file_cannot_be_had_ends_with_that(backlog: Backlog, queue: Queue, desk: Desk) -> None:
    """And lets its other files go."""
    backlog.run([call(1, inputs=["b3-1", "b3-2"]), call(2)])
    assert numbers(queue.queue) == [2]
    backlog.failed("file b3-1", NO_FILE, "gone")
    assert desk.take() == [("ended", 1, NO_FILE)]
    assert desk.held == []
    backlog.arrived("file b3-2")
    backlog.ended(LIB, [end(2)])
    assert desk.take() == [("ended", 2, RETURNED)]
