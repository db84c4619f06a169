"""Calls through the manager's core with simulated workers under a clock of its own: what ten million cost, and whether memory stays.

Theory of operation: workers obey at once and in order.  Calls come in batches and are ended by their workers in the next turn; every
tenth turn a worker is lost and another one joins, so that the books of workers turn over too.  Prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

from windlass.manager.core import Core
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
    InstanceId,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    LibraryStopped,
    Message,
    PilotId,
    PoolName,
    RecallCalls,
    Resources,
    RunCalls,
    StartLibrary,
    StopLibrary,
    WorkerId,
    WorkerInfo,
)

F = FunctionId(b"f" * 16)
WORKERS, CORES, BATCH = 100, 8, 20_000


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmRSS")


class Simulation:
    """A core, its workers, and what they hold."""

    def __init__(self) -> None:
        self.core, self.now, self.joined, self.ended = Core(), 1000.0, 0, 0
        self.library = LibrarySpec(LibraryId("lib@1"), "lib", (3, 11), functions=(FunctionDef(F, "f", b"x"),))
        self.core.install(self.library, self.now)
        self.options = CallOptions()
        self.said: dict[WorkerId, list[Message]] = {}
        for _ in range(WORKERS):
            self.join()

    def join(self) -> None:
        self.joined += 1
        info = WorkerInfo(f"n{self.joined}", 1, Resources(float(CORES)), (), PoolName("p"), PilotId(f"j.{self.joined}"))
        self.core.worker_joined(WorkerId(f"w{self.joined}"), info, self.now)

    def submit(self, first: int, count: int) -> None:
        self.core.submit(
            [CallSpec(CallId(one), self.library.id, F, b"p", (), self.options) for one in range(first, first + count)], self.now
        )

    def turn(self) -> None:
        """Workers answer what they were told, and the core decides."""
        core = self.core
        self.now += 0.001
        core.pump(self.now)
        for worker, messages in core.take_outbox().items():
            answers = self.said.setdefault(worker, [])
            for message in messages:
                if type(message) is RunCalls:
                    answers.append(CallsEnded([self.end(run) for run in message.calls]))
                elif isinstance(message, StartLibrary):
                    answers.append(LibraryReady(message.instance, 1))
                elif isinstance(message, StopLibrary):
                    answers.append(LibraryStopped(InstanceId(message.instance)))
                elif isinstance(message, RecallCalls):
                    answers.append(CallsReturned((), "recalled"))
        for worker, answers in self.said.items():
            core.worker_said(worker, answers, self.now)
        self.said.clear()
        self.ended += len(core.take_done())

    def end(self, run: CallRun) -> CallEnd:
        return CallEnd(run.call, run.attempt, RETURNED, b"r", (), b"", b"", self.now, self.now, self.now + 0.0005)


def main() -> None:
    calls = int(sys.argv[1])
    simulation = Simulation()
    sizes: list[int] = []
    costs: list[float] = []
    number, turns = 0, 0
    for _ in range(20):
        began, goal = time.process_time(), number + calls // 20
        while number < goal:
            count = min(BATCH, goal - number)
            simulation.submit(number + 1, count)
            number += count
            while simulation.ended < number:
                turns += 1
                simulation.turn()
                if turns % 10 == 0:
                    simulation.core.worker_lost(next(iter(simulation.core.workers)), "walltime", simulation.now)
                    simulation.join()
                if turns % 50 == 0:
                    simulation.core.tick(simulation.now)
        costs.append((time.process_time() - began) / (calls // 20))
        gc.collect()
        sizes.append(resident())
    simulation.core.check()
    figures = {
        "calls": number,
        "ended": simulation.ended,
        "us_per_call": round(sum(costs) / len(costs) * 1e6, 2),
        "last_cost_vs_second": round(costs[-1] / costs[1], 2),
        "growth": round(max(sizes[2:]) / sizes[1] - 1, 3),
        "mb": round(sizes[-1] / 1e6),
        "workers_in_all": simulation.joined,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
