"""The manager of a simulation: the real core, in a shell that does by a virtual clock what `windlass.manager.server` does by a real one.

Theory of operation
-------------------
What a worker says arrives after the link's latency, as one batch, and is taken in as the server does: the batch into the core, `pump`, ends
to the program, messages to workers. The timer turns every `TICK_SECONDS`, and factories are told the demand when it changed, no faster than
its `pace`.

A real manager needs time for that. ``message_us`` is what it is taken to need for a batch that comes from a worker and what goes back for
it: what arrives meanwhile waits for the next turn. With 0 it is as quick as the light, so that what is measured is what it decides.

`Spent` has the processor time of the core itself by what it was spent on: calls (all that workers and the program say), the timer, demand,
and workers that come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import thread_time_ns
from typing import Final

from simulated_clock import Clock
from simulated_worker import SimulatedWorker
from windlass.manager.core import Core
from windlass.manager.demand import pace
from windlass.manager.workers import TICK_SECONDS
from windlass.messages import (
    CallDone,
    CallSpec,
    Demand,
    Goodbye,
    Message,
    PoolName,
    PoolReport,
    ReleasePilots,
    RunCalls,
    WorkerId,
)

#: Seconds that a message takes between a node and the manager.
LATENCY: Final = 0.0005


class Spent:
    """Processor time of the manager's core in nanoseconds, and how often."""

    __slots__ = ("calls", "decisions", "demand", "demands", "joins", "messages", "ticks", "timer", "workers")

    def __init__(self) -> None:
        self.calls = self.timer = self.demand = self.workers = 0
        self.ticks = self.demands = self.joins = 0
        #: What workers have said, and what was decided: calls sent, other messages to workers, ends.
        self.messages = self.decisions = 0


class SimulatedManager:
    """The core and what is around it."""

    def __init__(self, clock: Clock, done: Callable[[list[CallDone]], None], *, message_us: float = 0.0) -> None:
        self.core, self.clock, self.spent = Core(), clock, Spent()
        self._done = done
        self._message_seconds = message_us / 1e6
        self._links: dict[WorkerId, SimulatedWorker] = {}
        #: Sessions whose connection is cut: what is said meanwhile, to them and by them.
        self._cut: dict[WorkerId, tuple[list[Message], list[list[Message]]]] = {}
        self._factories: dict[str, Callable[[Demand], None]] = {}
        self._inbox: list[tuple[SimulatedWorker, list[Message]]] = []
        self._free_at = 0.0
        self._demand_at = 0.0
        self._demand_due = False
        #: Called at each turn of the timer, before it.
        self.on_tick: Callable[[], None] = lambda: None
        self._sending_at = 0.0

    def start(self) -> None:
        self._tick()

    # ------------------------------------------------------------ the program

    def submit(self, specs: Sequence[CallSpec]) -> None:
        began = thread_time_ns()
        self.core.submit(specs, self.clock.now)
        self._act()
        self.spent.calls += thread_time_ns() - began

    # ------------------------------------------------------------ workers

    def joins(self, worker: SimulatedWorker) -> None:
        """A worker has begun a session."""
        began = thread_time_ns()
        self._links[worker.id] = worker
        self.core.worker_joined(worker.id, worker.info, self.clock.now)
        self._act()
        self.spent.workers += thread_time_ns() - began
        self.spent.joins += 1

    def tell(self, worker: SimulatedWorker, messages: list[Message]) -> None:
        """A worker says something; it takes a while to get here."""
        held = self._cut.get(worker.id)
        if held is not None:
            held[1].append(messages)
        else:
            self.clock.after(LATENCY, self._arrived, worker, messages)

    def _arrived(self, worker: SimulatedWorker, messages: list[Message]) -> None:
        if not self._message_seconds:
            self._take(worker, messages)
            return
        self._inbox.append((worker, messages))
        if len(self._inbox) == 1:
            self.clock.at(max(self.clock.now, self._free_at), self._turn)

    def _turn(self) -> None:
        """All that has come meanwhile; the time that it takes, and answers at its end."""
        inbox, self._inbox = self._inbox, []
        began = max(self.clock.now, self._free_at)
        for number, (worker, messages) in enumerate(inbox):
            self._sending_at = began + (number + 1) * self._message_seconds
            self._take(worker, messages)
        self._free_at = began + len(inbox) * self._message_seconds
        self._sending_at = 0.0

    def _take(self, worker: SimulatedWorker, messages: list[Message]) -> None:
        if self._links.get(worker.id) is not worker:
            return  # its session is over
        spent, core, now = self.spent, self.core, self.clock.now
        began = thread_time_ns()
        if type(messages[-1]) is Goodbye:
            core.worker_said(worker.id, messages[:-1], now)
            self._lost(worker, messages[-1].reason, idle=messages[-1].idle)
            spent.workers += thread_time_ns() - began
        else:
            core.worker_said(worker.id, messages, now)
            self._act()
            spent.calls += thread_time_ns() - began
        spent.messages += len(messages)

    def cut(self, worker: SimulatedWorker) -> None:
        """Its connection is cut, or it is silent for too long."""
        if self._links.get(worker.id) is worker and worker.id not in self._cut:
            self._cut[worker.id] = [], []
            self.core.worker_cut(worker.id, self.clock.now)
            self._act()

    def back(self, worker: SimulatedWorker) -> None:
        """Its connection is there again: what was not heard comes now, on both sides."""
        held = self._cut.pop(worker.id, None)
        if held is None or self._links.get(worker.id) is not worker:
            return
        self.core.worker_back(worker.id, self.clock.now)
        self._act()
        if held[0]:
            self.clock.after(LATENCY, worker.hear, held[0])
        for messages in held[1]:
            self.clock.after(LATENCY, self._arrived, worker, messages)

    def _lost(self, worker: SimulatedWorker, reason: str, *, idle: bool = False) -> None:
        del self._links[worker.id]
        self._cut.pop(worker.id, None)
        self.core.worker_lost(worker.id, reason, self.clock.now, idle=idle)
        self._act()

    # ------------------------------------------------------------ factories

    def open_port(self, name: str, hear: Callable[[Demand], None]) -> None:
        """A factory is here."""
        self._factories[name] = hear
        self.clock.after(LATENCY, hear, self.core.demand(self.clock.now))

    def close_port(self, name: str) -> None:
        del self._factories[name]
        self.core.factory_left(name, self.clock.now)

    def factory_said(self, name: str, message: PoolReport | ReleasePilots) -> None:
        """A factory says something; it runs in the same program."""
        began = thread_time_ns()
        if isinstance(message, PoolReport):
            self.core.pools_reported(name, message, self.clock.now)
        else:
            self.core.release(message.pilots, PoolName(message.pool), message.reason, self.clock.now)
        self._act()
        self.spent.workers += thread_time_ns() - began

    # ------------------------------------------------------------ turns

    def _act(self) -> None:
        """Carry out what the core has decided."""
        core, clock = self.core, self.clock
        core.pump(clock.now)
        done = core.take_done()
        if done:
            self.spent.decisions += len(done)
            self._done(done)
        at = max(clock.now, self._sending_at) + LATENCY
        for worker_id, messages in core.take_outbox().items():
            link = self._links.get(worker_id)
            if link is None:
                continue
            self.spent.decisions += sum(len(one.calls) if type(one) is RunCalls else 1 for one in messages)
            held = self._cut.get(worker_id)
            if held is not None:
                held[0].extend(messages)
            else:
                clock.at(at, link.hear, messages)
        if core.demand_changed and self._factories and not self._demand_due:
            self._demand_due = True
            clock.at(max(clock.now, self._demand_at + pace(len(core.workers))), self._tell_demand)

    def _tell_demand(self) -> None:
        self._demand_due = False
        self._demand_at = now = self.clock.now
        began = thread_time_ns()
        demand = self.core.demand(now)
        self.spent.demand += thread_time_ns() - began
        self.spent.demands += 1
        for hear in self._factories.values():
            self.clock.after(LATENCY, hear, demand)

    def _tick(self) -> None:
        self.on_tick()
        began = thread_time_ns()
        self.core.tick(self.clock.now)
        self._act()
        self.spent.timer += thread_time_ns() - began
        self.spent.ticks += 1
        for worker_id in [one for one in self._cut if one not in self.core.workers]:
            del self._cut[worker_id], self._links[worker_id]
        self.clock.after(TICK_SECONDS, self._tick)
