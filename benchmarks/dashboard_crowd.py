"""A manager's core with a crowd behind it, as a dashboard sees it: many workers that run calls, told of by hand. A part of dashboard.py.

Theory of operation: the core is the real one, its workers are lists: `turn` gives back ends of what they were sent, by a clock that the
caller moves, so that nothing here runs or waits.  What composes views, and what pages are told, is Windlass's own.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

from windlass.manager.core import Core
from windlass.manager.recorder import Recorder
from windlass.manager.status import status
from windlass.manager.views import view, whole_view
from windlass.messages import (
    RAISED,
    RETURNED,
    CallEnd,
    CallId,
    CallRun,
    CallsEnded,
    CallSpec,
    EndDetail,
    FunctionDef,
    FunctionId,
    GetView,
    HoistedImport,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    PilotId,
    PilotLine,
    PoolName,
    PoolOffer,
    PoolReport,
    Resources,
    RunCalls,
    StartLibrary,
    View,
    WorkerId,
    WorkerInfo,
    WorkerReport,
)

SIMULATE, SHAPE = FunctionId(b"s" * 16), FunctionId(b"t" * 16)
_TRACEBACK = (
    'Traceback (most recent call last):\n  File "/home/me/model.py", line {line}, in simulate\n    solve(grid)\nValueError: seed {seed}'
)


class Crowd:
    """``workers`` of ``cores`` cores each, with ``calls`` submitted, recorded from the start unless told otherwise."""

    def __init__(self, workers: int, calls: int, *, cores: int = 8, record: bool = True, seconds: float = 2.0) -> None:
        self.core, self.now = Core(), 1_800_000_000.0
        self._seconds, self._chance = seconds, random.Random(1)
        if record:
            self.core.recorder = Recorder("crowd-20270115-080000", self.now)
        pool, memory = PoolName("night"), 32 << 30
        offer = PoolOffer(pool, Resources(cores, memory), 86400.0, backend="slurm")
        lines = [PilotLine(pool, PilotId(f"p{n}"), str(4000 + n), "serving", self.now, self.now, f"node{n:04}") for n in range(workers)]
        failed = PilotLine(
            pool, PilotId("bad"), "3999", "ended", self.now, self.now, "node9999", "it ended before it served", "/logs/bad.log", True, 3.0,
            "ModuleNotFoundError: No module named 'windlass'", cause="exit", exit_status=1,
        )  # fmt: skip
        self.core.pools_reported("factory", PoolReport((offer,), pilots=(*lines, failed), at=self.now), self.now)
        self._specs = [
            LibrarySpec(LibraryId("model@1"), "model", (3, 11), functions=(FunctionDef(SIMULATE, "simulate", b"x"),)),
            LibrarySpec(LibraryId("tables@1"), "tables", (3, 11), functions=(FunctionDef(SHAPE, "shape", b"x"),)),
        ]
        for spec in self._specs:
            self.core.install(spec, self.now)
        for n in range(workers):
            info = WorkerInfo(f"node{n:04}", 1, Resources(cores, memory), (), pool, PilotId(f"p{n}"), 86000.0)
            self.core.worker_joined(WorkerId(f"w{n}"), info, self.now)
        self._runs: dict[WorkerId, list[CallRun]] = defaultdict(list)
        self._next = 1
        self.submit(calls)
        self._deliver()

    def submit(self, calls: int) -> None:
        """As many more, of the second library every tenth."""
        specs = [
            CallSpec(CallId(n), self._specs[n % 10 == 0].id, SHAPE if n % 10 == 0 else SIMULATE, b"p")
            for n in range(self._next, self._next + calls)
        ]
        self._next += calls
        self.core.submit(specs, self.now)

    def turn(self, seconds: float = 1.0, share: float = 0.5) -> int:
        """Time passes, and of each worker so many of its calls have ended; how many there were."""
        self.now += seconds
        ended = 0
        for worker, runs in list(self._runs.items()):
            self._runs[worker] = runs[int(len(runs) * share) :]
            ends = [self._end(run) for run in runs[: int(len(runs) * share)]]
            ended += len(ends)
            said: list[Any] = [CallsEnded(ends)] if ends else []
            said.append(WorkerReport(self._chance.randrange(1 << 30, 20 << 30), 32 << 30, 80000.0, len(runs), 0, 1 << 30))
            self.core.worker_said(worker, said, self.now)
        self._deliver()
        self.core.tick(self.now)
        if self.core.recorder is not None:
            self.core.recorder.sample(self.core, self.now)
        return ended

    def _end(self, run: CallRun) -> CallEnd:
        took = self._seconds * self._chance.uniform(0.2, 1.0)
        over = self.now - self._chance.uniform(0.0, 0.1)
        if run.call % 97 == 0:
            text = _TRACEBACK.format(line=10 + run.call % 3, seed=run.call)
            detail = EndDetail(types=("builtins.ValueError", "builtins.Exception"), text=text)
            return CallEnd(run.call, run.attempt, RAISED, b"e", started_at=over - took, ready_at=over - took, ended_at=over, detail=detail)
        return CallEnd(run.call, run.attempt, RETURNED, b"r", started_at=over - took, ready_at=over - took, ended_at=over)

    def _deliver(self) -> None:
        """Workers hear what they are sent, and start libraries at once."""
        while True:
            self.core.pump(self.now)
            out = self.core.take_outbox()
            self.core.take_done()
            if not out:
                return
            for worker, messages in out.items():
                for message in messages:
                    if isinstance(message, RunCalls):
                        self._runs[worker] += message.calls
                    elif isinstance(message, StartLibrary):
                        ready = LibraryReady(message.instance, 1, (HoistedImport("numpy", 0.13), HoistedImport("scipy", 0.4)))
                        self.core.worker_said(worker, [ready], self.now)

    # ------------------------------------------------------------ as a dashboard sees it

    def pieces(self, since: float = 0.0, version: int = 0, *, brief: bool = False) -> list[View]:
        """What a `GetView` is answered by."""
        assert self.core.recorder is not None
        return view(self._found(brief), self.core, self.core.recorder, GetView(since, version, brief), self.now, 0.0)

    def whole(self) -> dict[str, Any]:
        """All of it in one piece."""
        assert self.core.recorder is not None
        return whole_view(self._found(), self.core, self.core.recorder, GetView(), self.now, 0.0)

    def _found(self, brief: bool = False) -> dict[str, Any]:
        return status(self.core, "crowd", [("127.0.0.1", 9123)], self.now, brief=brief)
