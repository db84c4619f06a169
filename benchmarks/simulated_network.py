"""Bytes on their way between the machines of a simulation.

Theory of operation
-------------------
Each machine sends so many bytes per second in all, which what it sends at a time shares evenly, and nothing comes anywhere faster than its
own link takes it. When something begins or ends at a source, what is left of the others is reckoned anew and their ends are planned again;
of an earlier plan only the *turn* is left, by which it is known as void.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from simulated_clock import Clock


class Transfer:
    """One file on its way."""

    __slots__ = ("done", "left", "rate", "since", "source", "target", "turn")

    def __init__(self, source: str, target: str, size: float, now: float, done: Callable[[str], None]) -> None:
        self.source, self.target, self.left, self.since, self.done = source, target, size, now, done
        self.rate = 0.0
        self.turn = 0


class Network:
    """All transfers. ``bytes_per_s``: what a machine sends, or takes, in all. ``begin_seconds``: connection and handshake."""

    def __init__(self, clock: Clock, bytes_per_s: float, begin_seconds: float = 0.01) -> None:
        self._clock, self._bytes_per_s, self._begin_seconds = clock, bytes_per_s, begin_seconds
        self._from: dict[str, dict[Transfer, None]] = {}
        self._to: dict[str, dict[Transfer, None]] = {}
        #: Machines that do not answer any more.
        self._dead: set[str] = set()
        #: Whole files that each machine has sent.
        self.sent: Counter[str] = Counter()

    def send(self, source: str, target: str, size: int, done: Callable[[str], None]) -> None:
        """Bring so many bytes; ``done(failure)``: they are there, or why not."""
        self._clock.after(self._begin_seconds, self._begin, Transfer(source, target, float(size), self._clock.now, done))

    def leaves(self, machine: str) -> None:
        """A machine is no more: what it was sending fails, what was sent to it nobody waits for."""
        self._dead.add(machine)
        for one in self._to.pop(machine, {}):
            self._stop(one)
        for one in list(self._from.get(machine, ())):
            self._stop(one)
            self._clock.after(0.0, one.done, f"the connection to {machine} was cut")

    def _begin(self, one: Transfer) -> None:
        if one.source in self._dead:
            one.done(f"{one.source} does not answer")
            return
        if one.target in self._dead:
            return
        one.since = self._clock.now
        self._from.setdefault(one.source, {})[one] = None
        self._to.setdefault(one.target, {})[one] = None
        self._share(one.source)

    def _share(self, source: str) -> None:
        """Reckon anew what this machine sends."""
        now, sending = self._clock.now, self._from.get(source, {})
        for one in sending:
            one.left -= one.rate * (now - one.since)
            one.since, one.turn = now, one.turn + 1
            one.rate = self._bytes_per_s / max(len(sending), len(self._to[one.target]))
            self._clock.after(max(0.0, one.left) / one.rate, self._end, one, one.turn)

    def _end(self, one: Transfer, turn: int) -> None:
        if one.turn != turn or one not in self._from.get(one.source, ()):
            return
        self._stop(one)
        self.sent[one.source] += 1
        one.done("")

    def _stop(self, one: Transfer) -> None:
        self._to.get(one.target, {}).pop(one, None)
        sending = self._from.get(one.source, {})
        if one in sending:
            del sending[one]
            self._share(one.source)
