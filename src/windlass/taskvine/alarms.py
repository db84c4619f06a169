"""What is to be done with tasks at a time of the clock: `Task.set_time_end`, on one thread for all tasks of a manager."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger("windlass.taskvine")

#: Seconds between looks at the clock at most: it may be set.
_LOOK_SECONDS: Final = 60.0


class Alarms:
    """Calls ``ring(number)`` for each number when its time has come, in seconds since the epoch."""

    def __init__(self, ring: Callable[[int], object]) -> None:
        self._ring = ring
        self._changed = threading.Condition()
        #: All that were set, the next first; those that are not in ``_times`` any more are passed over.
        self._due: list[tuple[float, int]] = []
        self._times: dict[int, float] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self) -> None:
        """Have a thread, before something is to be set. Raises `RuntimeError` where there can be no more threads."""
        with self._changed:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="windlass-alarms", daemon=True)
                thread.start()
                self._thread = thread

    def set(self, number: int, when: float) -> None:
        """Ring for it then."""
        with self._changed:
            self._times[number] = when
            heapq.heappush(self._due, (when, number))
            if self._due[0] == (when, number):
                self._changed.notify()

    def drop(self, number: int) -> None:
        """Do not."""
        with self._changed:
            if self._times.pop(number, None) is not None and not self._times:
                self._due.clear()

    def close(self) -> None:
        """Ring no more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not (self._due and self._due[0][0] <= time.time()):
                    self._changed.wait(min(_LOOK_SECONDS, max(0.0, self._due[0][0] - time.time())) if self._due else None)
                if self._closed:
                    return
                when, number = heapq.heappop(self._due)
                if self._times.get(number) != when:
                    continue
                del self._times[number]
            try:
                self._ring(number)
            except Exception:  # a defect: others are still to be told
                log.exception("task %s could not be cancelled when its time was over", number)
