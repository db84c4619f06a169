"""The clock of a simulation: what happens when, in virtual seconds.

Theory of operation
-------------------
A heap of (time, number, function, arguments); `run` takes the earliest and calls it with the clock set to its time, until a condition holds
or nothing is left. Among equals the one that was planned first comes first, so a run depends on nothing but its seed. Nothing planned is
ever taken back: what has become pointless finds that out when its time comes.

A `Meter` is a number that changes, and its integral over the time in which it counts.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Clock:
    """Virtual time in seconds. It begins late enough that no time is 0, which means "never" in messages."""

    def __init__(self) -> None:
        self.now = 1000.0
        #: Events that have happened.
        self.events = 0
        self._planned: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, when: float, do: Callable[..., object], *arguments: Any) -> None:
        """Have something done at this time."""
        self._number += 1
        heappush(self._planned, (when, self._number, do, arguments))

    def after(self, seconds: float, do: Callable[..., object], *arguments: Any) -> None:
        """Have something done when so many seconds have passed."""
        self.at(self.now + seconds, do, *arguments)

    def run(self, over: Callable[[], bool], until: float = float("inf")) -> bool:
        """Go on until ``over()``, which is asked after each event; False when time or events ran out before."""
        planned = self._planned
        while not over():
            if not planned or planned[0][0] > until:
                return False
            when, _, do, arguments = heappop(planned)
            self.now = when
            self.events += 1
            do(*arguments)
        return True


class Meter:
    """A number, and its integral."""

    __slots__ = ("_clock", "_counts", "_since", "area", "value")

    def __init__(self, clock: Clock) -> None:
        self.value = self.area = 0.0
        self._clock, self._since, self._counts = clock, clock.now, False

    def add(self, change: float) -> None:
        """The number changes."""
        if self._counts:
            now = self._clock.now
            self.area += self.value * (now - self._since)
            self._since = now
        self.value += change

    def count(self, counts: bool) -> None:
        """Whether the time from now on counts."""
        self.add(0.0)
        self._counts, self._since = counts, self._clock.now
