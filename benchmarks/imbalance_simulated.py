"""Calls of heavy-tailed durations: the set, the greedy list schedule, and the manager's core with simulated workers and a clock of its own.

Theory of operation: durations are log-normal, cut off below and above, and drawn from a seed.  The list schedule is what a scheduler does
that knows, without asking, when each slot falls free: calls in order of submission, each to the slot that is free first.  A `Simulation`
has the real core and workers whose slots claim calls from one queue per instance, as real ones do; messages take a time each way, and
nothing else costs any.  So what its makespan is above the list schedule's, decisions and round trips have cost, and it takes milliseconds
to find out.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from windlass.manager.core import Core
from windlass.manager.workers import TICK_SECONDS
from windlass.messages import (
    RETURNED,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    CallsReturned,
    FunctionDef,
    FunctionId,
    HeldCall,
    InstanceId,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    Message,
    PilotId,
    PoolName,
    RecallCalls,
    Resources,
    RunCalls,
    StartLibrary,
    WorkerId,
    WorkerInfo,
)

F = FunctionId(b"f" * 16)
LIBRARY = LibrarySpec(LibraryId("lib@1"), "lib", (3, 11), functions=(FunctionDef(F, "f", b"x"),))
#: Seconds that a message takes from the manager to a slot, or back, on a machine that has something else to do.
ONE_WAY = 0.0005
#: Shortest and longest duration, in seconds.
SHORTEST, LONGEST = 0.001, 30.0


def heavy_tailed(seed: int, count: int, median: float, sigma: float, scale: float = 1.0) -> list[float]:
    """So many durations in seconds, log-normal, between `SHORTEST` and `LONGEST`; all times ``scale``."""
    draw = random.Random(seed)
    return [scale * min(LONGEST, max(SHORTEST, median * draw.lognormvariate(0.0, sigma))) for _ in range(count)]


def list_starts(durations: Sequence[float], slots: int) -> list[float]:
    """When each call begins in the greedy list schedule."""
    free = [0.0] * slots
    return [heapq.heapreplace(free, free[0] + duration) for duration in durations]


def list_schedule(durations: Sequence[float], slots: int) -> float:
    """The makespan of the greedy list schedule."""
    return max(start + duration for start, duration in zip(list_starts(durations, slots), durations, strict=True))


class Slots:
    """A library instance of a simulated worker."""

    def __init__(self, worker: WorkerId, instance: InstanceId, slots: int) -> None:
        self.worker, self.instance, self.free = worker, instance, slots
        self.queue: deque[CallRun] = deque()


class Simulation:
    """``slots`` slots at each of ``workers``, and calls of ``durations``, all submitted at once."""

    def __init__(self, durations: Sequence[float], workers: int, slots: int, one_way: float = ONE_WAY) -> None:
        self.durations, self.one_way = durations, one_way
        self.core, self.now = Core(), 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = 0
        self.instances: dict[InstanceId, Slots] = {}
        #: When each call was begun, by its number.
        self.began: dict[CallId, float] = {}
        self.ended_at: dict[CallId, float] = {}
        self.recalls = 0
        self.core.install(LIBRARY, 0.0)
        for number in range(workers):
            info = WorkerInfo(f"n{number}", 1, Resources(float(slots)), (), PoolName("p"), PilotId(f"j.{number}"))
            self.core.worker_joined(WorkerId(f"w{number}"), info, 0.0)

    def run(self) -> float:
        """The makespan in seconds. All instances are ready at once, as their start is no decision."""
        options = CallOptions()
        self.core.submit([CallSpec(CallId(one + 1), LIBRARY.id, F, b"", (), options) for one in range(len(self.durations))], 0.0)
        self.core.pump(0.0)
        for worker, messages in self.core.take_outbox().items():
            for message in messages:
                assert isinstance(message, StartLibrary)
                self.instances[message.instance] = Slots(worker, message.instance, message.slots)
                self.core.worker_said(worker, [LibraryReady(message.instance, 1)], 0.0)
        self.act()
        self.at(TICK_SECONDS, self.tick)
        while len(self.ended_at) < len(self.durations):
            self.now, _, event = heapq.heappop(self.events)
            event()
        self.core.check()
        return max(self.ended_at.values()) - self.one_way

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        """In so many seconds."""
        self.number += 1
        heapq.heappush(self.events, (self.now + seconds, self.number, event))

    def tick(self) -> None:
        self.core.tick(self.now)
        self.act()
        self.at(TICK_SECONDS, self.tick)

    def act(self) -> None:
        """Carry out what the core has decided."""
        self.core.pump(self.now)
        for worker, messages in self.core.take_outbox().items():
            self.at(self.one_way, partial(self.hear, worker, messages))
        for done in self.core.take_done():
            assert done.end.call not in self.ended_at
            self.ended_at[done.end.call] = self.now

    def say(self, worker: WorkerId, message: Message) -> None:
        def heard() -> None:
            self.core.worker_said(worker, [message], self.now)
            self.act()

        self.at(self.one_way, heard)

    def hear(self, worker: WorkerId, messages: Sequence[Message]) -> None:
        """At the worker."""
        for message in messages:
            match message:
                case RunCalls():
                    for run in message.calls:
                        self.instances[run.instance].queue.append(run)
                        self.claim(self.instances[run.instance])
                case RecallCalls():
                    self.recalls += 1
                    queue = self.instances[message.instance].queue
                    back = [queue.pop() for _ in range(min(message.count, len(queue)))]
                    self.say(worker, CallsReturned(tuple(HeldCall(run.call, run.attempt) for run in back), "recalled"))
                case _:
                    pass

    def claim(self, slots: Slots) -> None:
        """A free slot takes the oldest call."""
        while slots.free and slots.queue:
            run = slots.queue.popleft()
            slots.free -= 1
            self.began[run.call] = self.now
            self.at(self.durations[run.call - 1], partial(self.end, slots, run, self.now))

    def end(self, slots: Slots, run: CallRun, began: float) -> None:
        slots.free += 1
        self.say(slots.worker, CallsEnded([CallEnd(run.call, run.attempt, RETURNED, b"", (), b"", b"", began, began, self.now)]))
        self.claim(slots)
