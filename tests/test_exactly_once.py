"""Exactly one end per call, whatever a link does: the manager's core, both ends of sessions, and the workers' backlogs, as they are.

What is simulated is the link, which loses frames, brings them twice or in another order, is cut and taken up again; and the slots, which
run calls, or die.  A link that breaks the protocol costs the session, as it does in the shells: the manager gives the worker up, and the
worker begins anew.  At the end everything is let run out over links that work, and each call must have ended once, with its own result.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Collection, Sequence

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from windlass.framing import Piece, ProtocolError
from windlass.manager.calls import LOST
from windlass.manager.core import Core
from windlass.messages import (
    CANCELLED,
    DIED,
    RETURNED,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    CallsReturned,
    CancelCalls,
    Drain,
    EndDetail,
    FileRef,
    FunctionDef,
    FunctionId,
    HeldCall,
    InstanceId,
    Leave,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    LibraryStopped,
    Message,
    ObjectName,
    ObjectRef,
    PilotId,
    PoolName,
    RecallCalls,
    Resources,
    RunCalls,
    SetSlots,
    StartLibrary,
    StopLibrary,
    WorkerDraining,
    WorkerId,
    WorkerInfo,
)
from windlass.session import Session, heard_by, said_by
from windlass.worker.backlog import Backlog
from windlass.worker.lines import Attempt

F = FunctionId(b"f" * 16)
LIBRARY = LibrarySpec(LibraryId("lib@1"), "lib", (3, 11), functions=(FunctionDef(F, "f", b"x"),))
OPTIONS = (CallOptions(), CallOptions(priority=1), CallOptions(retries=1), CallOptions(max_losses=2), CallOptions(needs=Resources(2)))
#: What may happen at a worker: a frame comes there or to the manager, slots work, acknowledgements are sent.
MOVES = (
    *["here"] * 4,
    *["manager"] * 4,
    *["work"] * 4,
    *("here twice", "here out of order", "here lost", "manager twice", "manager out of order", "manager lost", "work dies", "acknowledge"),
)
#: Calls that the queue of an instance takes.
QUEUE = 8


class Slots:
    """The slots of a library instance, and the queue that they claim from."""

    def __init__(self, node: Node, number: InstanceId, slots: int) -> None:
        self.node, self.number, self.count = node, number, slots
        self.queue: deque[CallRun] = deque()
        self.busy: list[RunningCall] = []

    def feed(self, calls: Sequence[CallRun]) -> int:
        taken = calls[: max(0, QUEUE - len(self.queue))]
        self.queue.extend(taken)
        return len(taken)

    def take_back(self, count: int | None) -> list[CallRun]:
        back: list[CallRun] = []
        while self.queue and (count is None or len(back) < count):
            back.append(self.queue.pop())
        return back

    def running(self) -> Sequence[RunningCall]:
        return self.busy

    def kill_calls(self, calls: Collection[Attempt], outcome: int, detail: EndDetail | None) -> list[Attempt]:
        found = [one for one in self.busy if (one.call, one.attempt) in calls]
        for one in found:
            self.end(one, outcome, detail)
        return [(one.call, one.attempt) for one in found]

    def claim(self) -> None:
        """Every free slot takes a call."""
        while self.queue and len(self.busy) < self.count:
            claimed = self.queue.popleft()
            self.node.runs[claimed.call, claimed.attempt] += 1
            self.busy.append(RunningCall(claimed.call, claimed.attempt))

    def end(self, one: RunningCall, outcome: int, detail: EndDetail | None = None) -> None:
        self.busy.remove(one)
        payload = b"result of %d" % one.call if outcome == RETURNED else b""
        end = CallEnd(one.call, one.attempt, outcome, payload, started_at=1.0, ended_at=1.1, detail=detail)
        self.node.backlog.ended(self.number, [end])


class RunningCall:
    """A call in a slot."""

    def __init__(self, call: CallId, attempt: int) -> None:
        self.call, self.attempt, self.since = call, attempt, 1.0


class Node:
    """A worker: its end of the session, its backlog, its slots; and the manager's end of the session, with the frames between the two."""

    def __init__(self, name: str, cores: int) -> None:
        self.id, self.cores = WorkerId(name), cores
        self.connected = True
        #: How often each attempt was begun here.
        self.runs: Counter[tuple[CallId, int]] = Counter()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing that was is known any more, on either side."""
        self.backlog = Backlog(self)
        self.instances: dict[InstanceId, Slots] = {}
        self.here, self.manager = Session(heard_by("worker")), Session(said_by("worker"))
        self.to_here: list[Piece] = []
        self.to_manager: list[Piece] = []
        self.draining = False

    def info(self) -> WorkerInfo:
        return WorkerInfo("host", 1, Resources(self.cores, 0, 0), (), PoolName("p"), PilotId(self.id))

    def say(self, *messages: Message) -> None:
        frames = self.here.encode(messages)
        if self.connected:
            self.to_manager += frames

    # what the backlog asks for (`windlass.worker.lines.Comm`)

    def ended(self, ends: list[CallEnd]) -> None:
        self.say(CallsEnded(list(ends)))

    def returned(self, calls: tuple[HeldCall, ...], reason: str) -> None:
        self.say(CallsReturned(calls, reason))

    def lacks_room(self, refs: Sequence[ObjectRef]) -> str:
        return ""

    def hold(self, refs: Sequence[ObjectRef]) -> list[ObjectName]:
        return []

    def release(self, refs: Sequence[ObjectRef]) -> None:
        pass

    def hold_files(self, refs: Sequence[FileRef]) -> Sequence[str]:
        return []

    def release_files(self, refs: Sequence[FileRef]) -> None:
        pass

    def hear(self, message: Message) -> None:
        match message:
            case StartLibrary():
                slots = self.instances[message.instance] = Slots(self, message.instance, message.slots)
                self.backlog.add(message.instance, slots, message.slots)
                self.backlog.serves(message.instance)
                self.say(LibraryReady(message.instance, 7))
            case SetSlots() if message.instance in self.instances:
                self.instances[message.instance].count = message.slots
                self.backlog.set_slots(message.instance, message.slots)
            case StopLibrary() if message.instance in self.instances:
                del self.instances[message.instance]
                self.backlog.gone(message.instance)
                self.say(LibraryStopped(message.instance))
            case RunCalls():
                self.backlog.run(message.calls)
            case RecallCalls():
                self.backlog.recall(message.instance, message.count)
            case CancelCalls():
                self.backlog.cancel(message.calls)
            case Drain() | Leave():
                self.drain()
            case _:
                pass

    def drain(self) -> None:
        if not self.draining:
            self.draining = True
            self.say(WorkerDraining("told to"))
            self.backlog.drain()

    def work(self, which: int, outcome: int) -> None:
        """Slots take calls, and one of them ends one."""
        for slots in self.instances.values():
            slots.claim()
        busy = [(slots, one) for slots in self.instances.values() for one in slots.busy]
        if busy:
            slots, one = busy[which % len(busy)]
            slots.end(one, outcome, EndDetail(text="killed by signal 9", signal=9) if outcome == DIED else None)
            self.backlog.room(slots.number)


class ExactlyOnce(RuleBasedStateMachine):
    """Events in any order, over links that do anything."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Core()
        self.now = 1000.0
        self.names = itertools.count(1)
        self.nodes: list[Node] = []
        self.submitted: set[CallId] = set()
        self.ended: dict[CallId, CallEnd] = {}
        self.core.install(LIBRARY, self.now)
        self.joins(2)

    def act(self) -> None:
        """Carry out what the core has decided."""
        self.core.pump(self.now)
        for name, messages in self.core.take_outbox().items():
            for node in self.nodes:
                if node.id == name:
                    frames = node.manager.encode(messages)
                    if node.connected:
                        node.to_here += frames
        for done in self.core.take_done():
            end = done.end
            assert end.call in self.submitted
            assert end.call not in self.ended, f"call {end.call} ended twice"
            assert end.outcome != RETURNED or end.payload == b"result of %d" % end.call
            self.ended[end.call] = end

    def node(self, which: int) -> Node:
        return self.nodes[which % len(self.nodes)]

    def break_off(self, node: Node) -> None:
        """The session cannot go on: what the shells do."""
        self.core.worker_lost(node.id, "the session broke", self.now)
        node.begin_anew()
        node.connected = True
        self.core.worker_joined(node.id, node.info(), self.now)
        self.act()

    @rule(cores=st.integers(1, 3))
    def joins(self, cores: int) -> None:
        if len(self.nodes) < 4:
            node = Node(f"w{next(self.names)}", cores)
            self.nodes.append(node)
            self.core.worker_joined(node.id, node.info(), self.now)
            self.act()

    @rule(count=st.integers(1, 12), options=st.sampled_from(OPTIONS))
    def submit(self, count: int, options: CallOptions) -> None:
        first = len(self.submitted) + 1
        specs = [CallSpec(CallId(number), LIBRARY.id, F, b"", (), options) for number in range(first, first + count)]
        self.submitted.update(spec.call for spec in specs)
        self.core.submit(specs, self.now)
        self.act()

    @rule(first=st.integers(1, 40), count=st.integers(1, 4))
    def cancel(self, first: int, count: int) -> None:
        self.core.cancel([CallId(first + one) for one in range(count)], self.now)
        self.act()

    @rule(moves=st.lists(st.sampled_from(MOVES), min_size=30, max_size=60))
    def links_and_slots_go_on(self, moves: list[str]) -> None:
        """Many small things at every worker."""
        for node in list(self.nodes):
            self.go_on(node, moves)

    @rule(which=st.integers(0, 3), moves=st.lists(st.sampled_from(MOVES), min_size=30, max_size=60))
    def a_link_and_its_slots_go_on(self, which: int, moves: list[str]) -> None:
        self.go_on(self.node(which), moves)

    def go_on(self, node: Node, moves: Sequence[str]) -> None:
        for number, move in enumerate(moves):
            word, _, how = move.partition(" ")
            frames = node.to_here if word == "here" else node.to_manager
            place = 1 if how == "out of order" else 0
            if word == "work":
                node.work(number, DIED if how == "dies" else RETURNED)
            elif word == "acknowledge" and node.connected:
                node.to_here.append(node.manager.bare())
                node.to_manager.append(node.here.bare())
            elif node.connected and place < len(frames):
                frame = frames.pop(place)
                if how == "twice":
                    frames.append(frame)
                if how != "lost":
                    self.frame_comes(node, frame, here=word == "here")

    def frame_comes(self, node: Node, frame: Piece, *, here: bool) -> None:
        """At the worker, or at the manager."""
        try:
            messages = (node.here if here else node.manager).take(frame, self.now)
        except ProtocolError:
            self.break_off(node)
            return
        if here:
            for message in messages:
                node.hear(message)
        else:
            self.core.worker_said(node.id, messages, self.now)
            self.act()

    @rule(which=st.integers(0, 3))
    def cut(self, which: int) -> None:
        """All that was on its way is lost."""
        node = self.node(which)
        if node.connected:
            node.connected = False
            node.to_here, node.to_manager = [], []
            self.core.worker_cut(node.id, self.now)
            self.act()

    @rule(which=st.integers(0, 3))
    def back(self, which: int) -> None:
        """The session is taken up again, if the manager has not given it up."""
        node = self.node(which)
        if node.connected:
            return
        if node.id not in self.core.workers:
            self.break_off(node)
            return
        node.connected = True
        try:
            node.to_here = node.manager.resume(node.here.received)
            node.to_manager = node.here.resume(node.manager.received)
        except ProtocolError:
            self.break_off(node)
            return
        self.core.worker_back(node.id, self.now)
        self.act()

    @rule(which=st.integers(0, 3))
    def worker_drains(self, which: int) -> None:
        self.node(which).drain()

    @rule(which=st.integers(0, 3))
    def worker_is_killed(self, which: int) -> None:
        node = self.nodes.pop(which % len(self.nodes))
        self.core.worker_lost(node.id, "killed", self.now)
        self.act()
        if not self.nodes:
            self.joins(2)

    @rule(seconds=st.sampled_from([0.05, 1.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick(self.now)
        self.act()

    @precondition(lambda self: self.submitted)
    @rule()
    def nothing_is_forgotten(self) -> None:
        assert self.submitted == self.ended.keys() | self.core.calls.keys()

    @invariant()
    def books_are_right(self) -> None:
        self.core.check()
        for node in self.nodes:
            node.backlog.check()
            node.here.check()
            node.manager.check()
            # An attempt has its number once, so it is begun once.
            assert all(times == 1 for times in node.runs.values()), node.runs

    def teardown(self) -> None:
        """Links work again, nobody dies any more: every call ends, those that were not cancelled or lost too often with their result."""
        for which in range(len(self.nodes)):
            self.cut(which)
            self.back(which)
        for _ in range(3):
            self.joins(3)
        for _ in range(2000):
            if not self.core.calls:
                break
            self.now += 0.1
            self.time_passes(0.05)
            for node in self.nodes:
                if node.draining and not node.backlog.held:
                    self.break_off(node)  # a drained worker leaves; here another one takes its place
                while node.connected and node.to_here:
                    self.frame_comes(node, node.to_here.pop(0), here=True)
                for number in range(12):
                    node.work(number, RETURNED)
                while node.connected and node.to_manager:
                    self.frame_comes(node, node.to_manager.pop(0), here=False)
        assert not self.core.calls, f"{len(self.core.calls)} calls never end"
        assert self.ended.keys() == self.submitted
        assert {end.outcome for end in self.ended.values()} <= {RETURNED, CANCELLED, DIED, LOST}


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    derandomize=True,
)
