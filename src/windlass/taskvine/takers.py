"""Threads that take in what ended tasks have made.

Theory of operation
-------------------
They may have to wait for workers that nobody will start any more; what wakes them then is that the `windlass.Manager` is closed, which
happens at the latest when the program ends. They are daemons, and no `ThreadPoolExecutor`, because Python joins the threads of such
executors before it closes anything.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

log = logging.getLogger("windlass.taskvine")

#: How many at most.
_MOST: Final = 4


class Takers:
    """A few threads, which start with the work that they are given."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def __call__(self, work: Callable[[], object]) -> None:
        """Do this soon. From any thread; never blocks. What it raises is logged."""
        self._work.put(work)
        if len(self._threads) < _MOST:
            with self._lock:
                if len(self._threads) < _MOST:
                    thread = threading.Thread(target=_run, args=(self._work,), name="windlass-taskvine", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError as error:  # a limit, or the end of the interpreter
                        if not self._threads:
                            log.error("ended tasks wait until another one ends, as no thread can be started for them: %s", error)
                    else:
                        self._threads.append(thread)

    def close(self) -> None:
        """Do what was given so far, and end."""
        with self._lock:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            thread.join()


def _run(todo: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    while (work := todo.get()) is not None:
        try:
            work()
        except BaseException:  # a defect: other tasks must not be lost with this one
            log.exception("a task could not be taken in")
        del work  # a waiting thread keeps no task alive
