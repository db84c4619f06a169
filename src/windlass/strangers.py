"""Strangers: connections of which nobody knows yet whose they are, and which of them has to leave when there are too many.

Theory of operation
-------------------
Anybody who reaches the port can open connections, as many as he likes.  So those that have not shown a certificate are few at any time, and
their number never depends on how many want in.  A stranger is in one of three phases::

    silent     its first record is not here, or not all of it           costs a descriptor
    waiting    it has spoken, and others have their turn                costs a descriptor
    speaking   TLS is under way                                         costs a TLS state of some 300 KiB

Whom we wait for speaks at once, so it is not silent for longer than the network takes.  When there is no room for a newcomer the one that
has been silent for longest leaves; when none is silent, one that has been speaking for longer than `PATIENCE`; when there is no such one
either, all of them may be honest, and the newcomer waits in the kernel's queue.  So a flood of connections that say nothing keeps nobody
out, and a thousand workers that come at one time are not sent away for it.

A core: the listener asks it.  A stranger leaves by its ``leave``, which the listener gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: Strangers at one time.
MOST: Final = 512
#: Seconds that TLS may take while others wait for their turn.
PATIENCE: Final = 2.0


class Stranger:
    """One connection from accept until it is known, or gone."""

    __slots__ = ("began", "leave")

    def __init__(self, leave: Callable[[], None]) -> None:
        self.leave = leave
        #: When TLS began.
        self.began = 0.0


class Strangers:
    """All strangers of one listener; ``most`` at one time."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        #: How many had to leave so far.
        self.sent_away = 0
        self._silent: dict[Stranger, None] = {}
        self._waiting: dict[Stranger, None] = {}
        self._speaking: dict[Stranger, None] = {}

    def __len__(self) -> int:
        return len(self._silent) + len(self._waiting) + len(self._speaking)

    @property
    def waiting(self) -> int:
        """How many have spoken and wait for their turn."""
        return len(self._waiting)

    def came(self, leave: Callable[[], None]) -> Stranger:
        """A connection was accepted."""
        one = Stranger(leave)
        self._silent[one] = None
        return one

    def spoke(self, one: Stranger) -> None:
        """Its first record is here."""
        if self._silent.pop(one, self) is None:
            self._waiting[one] = None

    def begins(self, one: Stranger, now: float) -> None:
        """Its turn has come."""
        if self._waiting.pop(one, self) is None:
            one.began = now
            self._speaking[one] = None

    def gone(self, one: Stranger) -> None:
        """It is known, or has left."""
        for phase in (self._silent, self._waiting, self._speaking):
            phase.pop(one, None)

    def make_room(self, now: float) -> bool:
        """Whether one more may come now; somebody has to leave for it, perhaps."""
        return len(self) < self.most or self.send_one_away(now)

    def send_one_away(self, now: float) -> bool:
        """Have the one leave that is least likely to be honest; False: each of them may be."""
        return self._leaves(next(iter(self._silent), None)) or self.hurry(now)

    def hurry(self, now: float) -> bool:
        """Others wait for their turn: whoever has had it for too long leaves."""
        oldest = next(iter(self._speaking), None)
        return oldest is not None and now - oldest.began > PATIENCE and self._leaves(oldest)

    def _leaves(self, one: Stranger | None) -> bool:
        if one is None:
            return False
        self.gone(one)
        self.sent_away += 1
        one.leave()
        return True

    def check(self) -> None:
        """Invariants between the collections; raises AssertionError."""
        assert len({*self._silent, *self._waiting, *self._speaking}) == len(self), "one is in two phases"
