"""What a person is told whose calls wait while nobody is there to run them, or slots run others. Pure: takes ``now``, gives a text.

A manager without pilots is right for a while: the factory is started in another terminal, or its pilots are in the queue. But a program
that only waits looks as if it hung, so after `PATIENCE_SECONDS` without a worker and without a factory it is said what to do, once
for each time that it comes to this: by the manager, in its log, and by a program that is attached to one elsewhere, in its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: Seconds in which whoever starts the factory by hand, after the program, has it running.
PATIENCE_SECONDS: Final = 10.0
#: Seconds in which a program that was started again has submitted what it will, as a rule.
EARLIER_SECONDS: Final = 60.0


class Advice:
    """Watches whether calls wait with nobody to run them."""

    def __init__(self) -> None:
        self._since = -1.0
        self._given = False

    @property
    def due(self) -> bool:
        """There may soon be something to say."""
        return self._since >= 0 and not self._given

    def look(self, calls: int, workers: int, factories: int, port: int, now: float, unstarted: str = "") -> str:
        """What to say now; "": nothing. ``calls`` have not ended; ``port`` is where the manager listens; ``unstarted``: a factory."""
        if not calls or workers or factories:
            self._since, self._given = -1.0, False
            return ""
        if self._since < 0:
            self._since = now
        if self._given or now - self._since < PATIENCE_SECONDS:
            return ""
        self._given = True
        waiting = "1 call waits" if calls == 1 else f"{calls:,} calls wait"
        if unstarted:
            return (
                f"{waiting}, and there are no pilots, as factory {unstarted!r} was made and never started:"
                " write `with windlass.Factory(...):`, or call its start()"
            )
        return (
            f"{waiting}, and there are neither pilots nor a factory to start some: run `windlass factory run local --port {port}`"
            " in another terminal, or open a windlass.Factory(manager, 'local') in the program"
        )


class EarlierAdvice:
    """Watches whether calls wait while slots run what an earlier life of the program had submitted, and this one has not."""

    def __init__(self) -> None:
        self._since = -1.0
        self._given = False

    def look(self, orphans: bool, waiting: Callable[[], bool], unasked: Callable[[], int], now: float) -> str:
        """What to say now; "": nothing. ``orphans``: calls of an earlier life run; ``unasked``: how many of them nobody waits for."""
        if not orphans:
            self._since, self._given = -1.0, False
            return ""
        if self._given or not waiting():
            self._since = -1.0
            return ""
        if self._since < 0:
            self._since = now
        if now - self._since < EARLIER_SECONDS:
            return ""
        self._since = now
        number = unasked()
        if not number:
            return ""
        self._given = True
        calls = (
            "1 call of an earlier life of this program runs" if number == 1 else f"{number:,} calls of an earlier life of this program run"
        )
        return (
            f"{calls} on, which this life has not submitted, while others wait. What they return will be in the journal; if nobody"
            " wants that, as after a change of the function, call manager.cancel_earlier() when all is submitted"
        )
