"""What the manager is told of a pool's pilots: a line for each when something about it has changed. Pure.

Theory of operation
-------------------
A pool of 1,000 pilots that serve says nothing; so lines go out only for pilots that are not any more as they were last told of, and
one that has ended is told of once more, with its end.  A session with a manager carries each message once and in order, so what was told
need not be told again; a manager that was started anew is told of all that have not ended.

A message has to fit a frame of 1 MiB, and a thousand pilots may die in one answer of the batch system, each with its last words.  So
`take` hands out at most `BYTES_MOST` at a time, ends first, and the shell asks until nothing is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from windlass.factory.backend import split_pilot_word
from windlass.factory.pilots import Ending, Phase, Pilot
from windlass.messages import PilotEnded, PilotId, PilotLine, PoolName

#: Letters of last words, and of reasons, that are told: batch systems write essays about holds.
WORDS_MOST: Final = 2000
REASON_MOST: Final = 500
#: What one report may hold, in letters; they may need three bytes each.
BYTES_MOST: Final = 256 << 10
#: Ends that are remembered.
RECENT: Final = 200
#: What a line or an end takes beside its texts.
LINE_BYTES: Final = 120


@dataclass(slots=True)
class Telling:
    """Of one pool. ``epoch`` makes seconds since the epoch of ``now``."""

    pool: PoolName
    epoch: float = 0.0
    #: What the manager was last told of each pilot that has not ended.
    _told: dict[PilotId, PilotLine] = field(default_factory=dict[PilotId, PilotLine])
    #: What it has still to be told, the oldest first.
    _news: dict[PilotId, PilotLine] = field(default_factory=dict[PilotId, PilotLine])
    _ended: list[PilotEnded] = field(default_factory=list[PilotEnded])
    #: The last ends, for a manager that is started anew.
    _recent: deque[PilotEnded] = field(default_factory=lambda: deque(maxlen=RECENT))

    def told_nothing(self) -> None:
        """Begin anew with what is there, and with the last ends: workers of these pilots may have been back before."""
        self._told.clear()
        self._ended = list(self._recent)

    def look(self, pilots: Iterable[Pilot]) -> None:
        """Note which pilots are not any more as the manager was told."""
        for pilot in pilots:
            before = self._told.get(pilot.word)
            reason = pilot.reason[:REASON_MOST]
            if before is None or (before.phase, before.node, before.reason, before.log) != (pilot.phase, pilot.node, reason, pilot.log):
                self._told[pilot.word] = self._news[pilot.word] = PilotLine(
                    self.pool,
                    pilot.word,
                    str(pilot.job),
                    pilot.phase.value,
                    pilot.since + self.epoch,
                    pilot.made_at + self.epoch,
                    pilot.node,
                    reason,
                    pilot.log,
                    restart=pilot.restart,
                    ticket=pilot.ticket,
                )

    def ended(self, ending: Ending, last_words: str, now: float) -> None:
        """One has ended; ``last_words`` of its own, where they are known."""
        # Why it was taken for dead says more than how the batch system calls the end that the factory then made.
        reason = ending.charge or ending.reason
        words = last_words[-WORDS_MOST:]
        self._told.pop(ending.pilot, None)
        why = f"{reason}: {words}" if words and ending.failed else reason
        self._ended.append(PilotEnded(ending.pilot, why[: REASON_MOST + WORDS_MOST], ending.failed))
        self._recent.append(self._ended[-1])
        self._news.pop(ending.pilot, None)
        self._news[ending.pilot] = PilotLine(
            self.pool,
            ending.pilot,
            str(ending.job),
            Phase.ENDED.value,
            now + self.epoch,
            ending.made_at + self.epoch,
            ending.node,
            reason[:REASON_MOST],
            ending.log,
            ending.failed or bool(ending.charge),
            ending.ran,
            words,
            restart=split_pilot_word(ending.pilot)[1],
            ticket=ending.ticket,
            cause=ending.cause.value,
            exit_status=ending.exit_status,
        )

    @property
    def waits(self) -> bool:
        """There is something to tell."""
        return bool(self._ended or self._news)

    def take(self) -> tuple[tuple[PilotEnded, ...], tuple[PilotLine, ...]]:
        """What to tell now: ends, and lines. The rest with the next report, for which the shell asks until there is none."""
        size = taken = 0
        for end in self._ended:
            size += LINE_BYTES + len(end.reason)
            if taken and size > BYTES_MOST:
                break
            taken += 1
        ended, self._ended = tuple(self._ended[:taken]), self._ended[taken:]
        lines: list[PilotLine] = []
        for line in self._news.values():
            size += LINE_BYTES + len(line.reason) + len(line.words) + len(line.log) + len(line.node)
            if size > BYTES_MOST and (lines or ended):
                break
            lines.append(line)
        for line in lines:
            del self._news[line.pilot]
        return ended, tuple(lines)
