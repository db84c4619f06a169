"""Thin workers: real sessions over real TLS connections, without processes, slots or caches behind them.

Theory of operation: one process holds many of them on one event loop, so that a machine can play a cluster for its manager.  A thin worker
obeys the messages as a worker does, and "runs" a call by sending its argument back: the payload of a call of scalars is a pickled
``(args, kwargs)``, and what `echo` would return of that is made by pickle.  Nothing waits, so that what is measured is the manager; but a
call whose argument is a ``float`` holds its worker for so many seconds, one after the other.

    python thin.py CONNECTION-FILE COUNT FIRST-NUMBER

says ``ready`` when all are connected, and each cut on a line of its own; it ends when its input does.  With ``--at-word`` it says
``waiting``, dials when a line comes in, and says ``served SECONDS`` when the first call has come.  `crowd` runs such processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from pathlib import Path

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
    HeldCall,
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
        self.called = asyncio.Event()
        self._cores, self._number = cores, number
        self._held: deque[tuple[CallRun, float]] = deque()
        self._busy = False
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
                    self.called.set()
                    self._run(message.calls)
                case StartLibrary():
                    self.link.send(LibraryReady(message.instance, 1))
                case StopLibrary():
                    self.link.send(LibraryStopped(message.instance))
                case RecallCalls():
                    self.link.send(CallsReturned(self._recalled(message.count), "recalled"))
                case CancelCalls():
                    self.link.send(CallsEnded([CallEnd(held.call, held.attempt, CANCELLED) for held in message.calls]))
                case _:
                    pass

    def _run(self, calls: list[CallRun]) -> None:
        now = time.time()
        ends: list[CallEnd] = []
        for run in calls:
            (argument,), _ = pickle.loads(run.payload)
            if type(argument) is float:
                self._held.append((run, argument))
            else:
                ends.append(_end(run, argument, now, now))
        if ends:
            self.link.send_now(CallsEnded(ends))
        if self._held and not self._busy:
            self._begin()

    def _begin(self) -> None:
        """The call that has waited longest holds this worker."""
        run, seconds = self._held.popleft()
        self._busy = True
        asyncio.get_running_loop().call_later(seconds, self._ended, run, seconds, time.time())

    def _ended(self, run: CallRun, seconds: float, began: float) -> None:
        self._busy = False
        self.link.send(CallsEnded([_end(run, seconds, began, time.time())]))
        if self._held:
            self._begin()

    def _recalled(self, count: int) -> tuple[HeldCall, ...]:
        """The newest of those that wait."""
        back = [self._held.pop()[0] for _ in range(min(count, len(self._held)))]
        return tuple(HeldCall(run.call, run.attempt) for run in back)


def _end(run: CallRun, result: object, began: float, ended: float) -> CallEnd:
    """What a call of ``echo(argument)`` returns, pickled."""
    return CallEnd(run.call, run.attempt, RETURNED, pickle.dumps(result, 5), started_at=began, ready_at=began, ended_at=ended, key=run.key)


async def serve(file: str, count: int, first: int, at_word: bool) -> None:
    """Be so many workers until the input ends."""
    words, over = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_reader(0, _read, words, over)
    if at_word:
        print("waiting", flush=True)
        await words.wait()
    began = time.perf_counter()
    workers: list[ThinWorker] = []
    for number in range(first, first + count):
        workers.append(ThinWorker(file, number))
        if number % 20 == 0:
            await workers[-1].welcomed.wait()  # as a batch system starts pilots: not all in one instant
    if at_word:
        await asyncio.wait([asyncio.ensure_future(one.wait()) for one in (workers[0].called, over)], return_when=asyncio.FIRST_COMPLETED)
        print("served", time.perf_counter() - began, flush=True)
    for worker in workers:
        await worker.welcomed.wait()
    print("ready", flush=True)
    await over.wait()
    for worker in workers:
        worker.link.send(Goodbye("over"))
        worker.link.close()
    for worker in workers:
        await worker.link.gone(1.0)


def _read(words: asyncio.Event, over: asyncio.Event) -> None:
    words.set()
    if not os.read(0, 100):
        over.set()
        asyncio.get_running_loop().remove_reader(0)


class Crowd:
    """Thin workers in processes of their own, as who started them sees them."""

    def __init__(self) -> None:
        #: What they said of connections that were cut.
        self.cuts: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, running: contextlib.ExitStack, file: Path, count: int, first: int, *more: str) -> None:
        """One process more, which ends with ``running``."""
        words = [sys.executable, __file__, str(file), str(count), str(first), *more]
        process = running.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert process.stdin is not None
        running.callback(process.stdin.close)
        self._processes.append(process)

    def expect(self, word: str) -> str:
        """Each process says this next; what the last one says behind it."""
        line = ""
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if not line.startswith(word):
                raise SystemExit(f"thin workers did not connect: {line}")
        return line.removeprefix(word)

    def listen(self) -> None:
        """Gather what they say from now on."""
        for process in self._processes:
            threading.Thread(target=self.cuts.extend, args=(process.stdout,), daemon=True).start()

    def join_now(self) -> float:
        """Those that waited for a word dial; seconds until the first call has come."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("now\n")
            process.stdin.flush()
        return float(self.expect("served"))


@contextlib.contextmanager
def crowd(file: Path, count: int, *, first: int = 0, each: int = 250, at_word: bool = False) -> Generator[Crowd]:
    """So many thin workers, ``each`` in a process; connected, or ready to dial at a word."""
    here = Crowd()
    with contextlib.ExitStack() as running:
        for start in range(0, count, each):
            here.start(running, file, min(each, count - start), first + start, *["--at-word"] * at_word)
        here.expect("waiting" if at_word else "ready")
        if not at_word:
            here.listen()
        yield here


if __name__ == "__main__":
    loops.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), "--at-word" in sys.argv))
