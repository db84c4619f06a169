"""Workers that tasks are held for: ``tune("wait-for-workers", n)``.

Theory of operation
-------------------
TaskVine's factory sees the tasks that its manager holds.  That of Windlass hears of calls, and a task that is held is none yet, so nobody
would start the workers that it is held for.  So factories of this program are asked for them, as long as somebody waits for so many.
Where they cannot start as many, a program may still get them from elsewhere; it is told once, as it looks as if it hung.

The number holds until so many workers are there, as in TaskVine; who wants that again sets it again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from windlass.manager.advice import PATIENCE_SECONDS

log = logging.getLogger("windlass.taskvine")


class Asked(Protocol):
    """A factory of this program."""

    def ask_for(self, workers: int) -> int:
        """Have so many at least, as far as it may have them; how many it has at least then."""
        ...


class Gathering:
    """How many workers tasks are held for, and who is to start them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = 0
        self._factories: list[Asked] = []
        #: Since when tasks are held for workers that these factories cannot start; below 0: they are not.
        self._since = -1.0
        self._told = False

    @property
    def wanted(self) -> int:
        """So many; 0: tasks are not held for workers."""
        return self._wanted

    def want(self, workers: int) -> None:
        """Hold tasks until there are so many."""
        with self._lock:
            self._wanted, self._since, self._told = workers, -1.0, False
            self._ask()

    def join(self, factory: Asked) -> None:
        """A factory of this program is about to start."""
        with self._lock:
            self._factories.append(factory)
            self._ask()

    def leave(self, factory: Asked) -> None:
        """It has ended."""
        with self._lock:
            if factory in self._factories:
                self._factories.remove(factory)
                self._ask()

    def enough(self, connected: Callable[[], int], now: float) -> bool:
        """A task need not be held. ``connected``: how many workers there are, which is asked only if somebody waits for some."""
        wanted = self._wanted
        if not wanted:
            return True
        if connected() >= wanted:
            with self._lock:
                if self._wanted == wanted:
                    self._wanted = 0
                    self._ask()
            return True
        advice = self._look(now)
        if advice:
            log.warning("%s", advice)
        return False

    def _look(self, now: float) -> str:
        """What is to be said of tasks that are held; "": nothing."""
        with self._lock:
            if self._ask() <= 0:
                self._since = -1.0
                return ""
            if self._since < 0:
                self._since = now
            if self._told or now - self._since < PATIENCE_SECONDS:
                return ""
            self._told = True
            wanted, several = self._wanted, bool(self._factories)
        held = f"tasks are held until {wanted} workers are there (wait-for-workers), and "
        if several:
            return f"{held}the factories of this program may not start as many: give one max_workers={wanted}"
        return (
            f"{held}no factory of this program starts any: open a windlass.taskvine.Factory('local', manager=manager), or give one"
            f" elsewhere min_workers={wanted} (windlass factory run POOL --min-pilots {wanted})"
        )

    def _ask(self) -> int:
        """Ask for what is wanted; how many nobody is asked for. Holding the lock."""
        left = self._wanted
        for factory in self._factories:
            left -= factory.ask_for(max(0, left))
        return left
