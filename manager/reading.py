"""Threads that read results for tasks which await them.

Theory of operation
-------------------
Reading a result may wait for a network, as long as a manager is cut off, so no event loop may do it; and the executor of a program's loop
is the program's, has few threads, and the loop's end waits for them.  So there are threads of our own: they keep no process alive, are at
most `THREADS`, since a login node allows few, and end when nothing is left to do.  What is asked for again while it is waited for is one
job; one that nobody waits for any more as its turn comes is dropped.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Final

#: The way to a manager's objects has turns of its own, which are fewer; the rest may wait for workers.
THREADS: Final = 16


class _Job:
    __slots__ = ("key", "waiting", "work")

    def __init__(self, key: Hashable, work: Callable[[], None]) -> None:
        self.key, self.work = key, work
        self.waiting: list[asyncio.Future[None]] = []


class Readers:
    """Up to ``most`` threads, and what they are to do."""

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """None of it is in a child after a fork."""
        self._lock = threading.Lock()
        self._jobs: dict[Hashable, _Job] = {}
        self._queue: deque[_Job] = deque()
        self._threads = 0

    async def do(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do this on a thread, or wait for the one that does it for this ``key``. Raises `ConnectionAbortedError` where none can be had,
        beside what it raises."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = _Job(key, work)
                self._queue.append(job)
            job.waiting.append(told)
            more = bool(self._queue) and self._threads < self._most
            self._threads += more
        if more:
            self._start()
        try:
            await told
        finally:
            with self._lock:
                if told in job.waiting:
                    job.waiting.remove(told)

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name="windlass-read", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._threads -= 1
                left = [] if self._threads else list(self._queue)  # else those that run come to it
                self._queue = deque() if left else self._queue
            for job in left:
                self._end(job, ConnectionAbortedError(f"no thread could be started for it: {error}"))

    def _run(self) -> None:
        while (job := self._next()) is not None:
            error: BaseException | None = None
            try:
                job.work()
            except BaseException as raised:  # noqa: BLE001 - it is raised where this is awaited
                error = raised
            self._end(job, error)

    def _next(self) -> _Job | None:
        with self._lock:
            while self._queue:
                job = self._queue.popleft()
                if job.waiting:
                    return job
                del self._jobs[job.key]
            self._threads -= 1
            return None

    def _end(self, job: _Job, error: BaseException | None) -> None:
        with self._lock:
            del self._jobs[job.key]
            waiting, job.waiting = job.waiting, []
        for told in waiting:
            with suppress(RuntimeError):  # the loop has ended meanwhile, and with it who waited
                told.get_loop().call_soon_threadsafe(_tell, told, error)


def _tell(told: asyncio.Future[None], error: BaseException | None) -> None:
    if told.done():
        return
    if error is not None:
        told.set_exception(error)
    else:
        told.set_result(None)


#: Of all managers of this program.
READERS: Final = Readers()
