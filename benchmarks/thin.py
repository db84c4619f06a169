"""Thin workers: real sessions over real TLS connections, without processes, slots or caches behind them.

Theory of operation: one process holds many of them on one event loop, so that a machine can play a cluster for its manager.  A thin worker
obeys the messages as a worker does, and "runs" a call by sending its argument back: the payload of a call of scalars is a pickled
``(args, kwargs)``, and what `echo` would return of that is made by pickle.  Nothing waits, so that what is measured is the manager.

    python thin.py CONNECTION-FILE COUNT FIRST-NUMBER

says ``ready`` when all are connected, and each cut on a line of its own; it ends when its input does.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import time
from functools import partial

from windlass import __version__, loops
from windlass.identity import read_connection_file
from windlass.links import Link
from windlass.messages import (
    CANCELLED,
    PROTOCOL,
    RETURNED,
    CallEnd,
    CallRun,
    CallsEnded,
    CallsReturned,
    CancelCalls,
    Goodbye,
    Hello,
    LibraryReady,
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
from windlass.transport import connect

#: Heartbeats and reports keep a connection alive; thin workers report nothing.
POOL = PoolName("thin")


class ThinWorker:
    """One session. ``cores``: slots of each library."""

    def __init__(self, file: str, number: int, cores: int = 1) -> None:
        self.id = WorkerId(f"thin-{number}")
        self.welcomed = asyncio.Event()
        self._cores, self._number = cores, number
        self.link: Link = connect(
            read_connection_file(file),
            self._hello,
            self._hear,
            on_welcome=lambda welcome, fresh: self.welcomed.set(),
            on_cut=lambda reason: print("cut", self.id, reason, flush=True),
            on_lost=lambda reason: print("lost", self.id, reason, flush=True),
        )

    def _hello(self) -> Hello:
        info = WorkerInfo(f"node{self._number}", 1, Resources(float(self._cores)), (), POOL, PilotId(f"thin.{self._number}"))
        return Hello("worker", PROTOCOL, __version__, sys.version_info[:2], self.id, worker=info)

    def _hear(self, batch: list[Message]) -> None:
        for message in batch:
            match message:
                case RunCalls():
                    self.link.send_now(CallsEnded(_ends(message.calls, time.time())))
                case StartLibrary():
                    self.link.send(LibraryReady(message.instance, 1))
                case StopLibrary():
                    self.link.send(LibraryStopped(message.instance))
                case RecallCalls():
                    self.link.send(CallsReturned((), "recalled"))
                case CancelCalls():
                    self.link.send(CallsEnded([CallEnd(held.call, held.attempt, CANCELLED) for held in message.calls]))
                case _:
                    pass


def _ends(calls: list[CallRun], now: float) -> list[CallEnd]:
    return [CallEnd(run.call, run.attempt, RETURNED, _echo(run.payload), started_at=now, ready_at=now, ended_at=now) for run in calls]


def _echo(payload: bytes) -> bytes:
    """What a call of ``echo(argument)`` returns, pickled."""
    (argument,), _ = pickle.loads(payload)
    return pickle.dumps(argument, 5)


async def serve(file: str, count: int, first: int) -> None:
    """Be so many workers until the input ends."""
    workers: list[ThinWorker] = []
    for number in range(first, first + count):
        workers.append(ThinWorker(file, number))
        if number % 20 == 0:
            await workers[-1].welcomed.wait()  # as a batch system starts pilots: not all in one instant
    for worker in workers:
        await worker.welcomed.wait()
    print("ready", flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, partial(_read, over))
    await over.wait()
    for worker in workers:
        worker.link.send(Goodbye("over"))
        worker.link.close()


def _read(over: asyncio.Event) -> None:
    if not os.read(0, 100):
        over.set()


if __name__ == "__main__":
    loops.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
