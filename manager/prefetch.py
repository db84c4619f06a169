"""Whether a call waits behind each that runs, so that what it needs is fetched meanwhile.

Theory of operation
-------------------
Calls that take longer than what may wait at a worker (`windlass.manager.heldup`) have none ahead, as each should go to the slot that is
free first.  So a slot stands still while the objects and files of its next call are fetched, and while a large result is handed over,
before whose end is told nothing more is sent: calls of 1 s with 60 MB each over 1 Gb/s use two thirds of their slots.  Workers fetch what
calls need before these are fed (`windlass.worker.backlog`), so one call behind each that runs is enough, wherever that is worth it.

What is to be gained is what a call takes beside its run, by the manager's clock: from when it is sent to a free place until its end is
heard of, less its run.  Calls that were sent behind others tell nothing of it, nor do the first ones of an instance, which fetch what all
calls share.  It is worth it from `WORTH_SECONDS` and `WORTH_PART` of a run on, averaged over all calls, those without data among them, and
until it is half of that.  Once calls wait behind others hardly one tells what moving its data takes, so the figure fades: after some
hundred calls in each slot nothing is sent ahead there, for one call, and it is learned anew.

What waits behind calls that take twice as long as others did comes back, and so does what gives way to a higher priority, or could be begun
sooner in a slot that is free elsewhere, to which its data would have to be fetched again (`windlass.manager.recalls`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from windlass.manager.calls import SMOOTHING

#: Seconds for which a slot may stand still between two calls, and part of what a call runs: for less, none waits behind another.
WORTH_SECONDS: Final = 0.02
WORTH_PART: Final = 0.02
#: What was learned fades by so much with each call that a slot has run.
FADING: Final = 0.01


class Prefetch(msgspec.Struct):
    """What is known of it for the calls of a library."""

    on: bool = False
    #: What a call with data takes beside its run, a moving mean; and how many of the calls have data.
    seconds: float = 0.0
    share: float = 0.0

    def took(self, seconds: float) -> None:
        """A call with data, that was sent to a free place, took so many seconds beside its run."""
        self.seconds += (max(0.0, seconds) - self.seconds) * (SMOOTHING if self.seconds else 1.0)

    def ended(self, number: int, data: int, mean: float, slots: int) -> bool:
        """So many calls have ended in one of so many ``slots``, some of them with ``data``; they take ``mean`` seconds. True: it is another
        case now."""
        self.share += (data / number - self.share) * min(1.0, SMOOTHING * number)
        if self.on:
            self.seconds *= 1 - min(1.0, FADING * number / max(1, slots))
        worth = max(WORTH_SECONDS, WORTH_PART * mean)
        before, self.on = self.on, self.share * self.seconds >= (worth / 2 if self.on else worth)
        return self.on != before
