"""How long the manager's loop is held up, and so how much work waits at workers.

Theory of operation
-------------------
A slot that has run what waited for it stands still until the manager has heard of that and has sent more.  Its loop is a thread of the
program, and what keeps the interpreter's lock in C (sorting a large list, unpickling, parsing) keeps the loop from its turn: at each of the
system calls and records of TLS that hearing and answering take, and however short the switch interval is (`windlass.turns`).  Beside a
program that kept the lock for 0.1 s at a time, `AHEAD_SECONDS` of work were run in a tenth of the time in which more came.

So the loop's timer says how late its turns are (`HeldUp.turned`), and work for `TIMES` as long waits at workers.  One late turn says
nothing (the program was stopped, the machine suspended): two in a row do, and that fades.  The seconds grow in steps, each twice the one
before, as a change costs a look at every instance; without lateness they are `AHEAD_SECONDS`.
"""

from __future__ import annotations

from typing import Final

#: Seconds of measured work that may wait at a worker for each slot, so that slots stay busy while the manager is held up for a moment: a
#: program that computes in Python, a large batch.
AHEAD_SECONDS: Final = 0.05
#: And however long it is held up: what waits there has to be moved when others fall idle.
AHEAD_SECONDS_MOST: Final = 256 * AHEAD_SECONDS
#: A queue is refilled when a third of it is gone, and the timer's turn is one of several things that the loop does between two others.
TIMES: Final = 3
#: What is left of the lateness after one more turn.
FADING: Final = 0.9


class HeldUp:
    """What the timer's turns tell."""

    def __init__(self) -> None:
        #: Seconds of work that are to wait for each slot.
        self.ahead_seconds = AHEAD_SECONDS
        self._last = self._late = 0.0

    def turned(self, late: float) -> bool:
        """A turn of the timer came so many seconds late; whether other work than before is to wait."""
        self._late = max(min(late, self._last), FADING * self._late)
        self._last = late
        seconds = AHEAD_SECONDS
        while seconds < TIMES * self._late and seconds < AHEAD_SECONDS_MOST and self._late > AHEAD_SECONDS:
            seconds *= 2
        before, self.ahead_seconds = self.ahead_seconds, seconds
        return seconds != before
