"""Which slots ran what when: a time line of bounded size, whatever the number of calls. Pure.

Theory of operation
-------------------
A worker has *lanes*, of which each shows one call at a time, as a slot does; a lane is a list of *blocks* in order of time.  Answers do not
say which slot they come from, but a call can be put on any lane that was free when it began: as ends come in by time, the lane that was
free the shortest is the best choice, and no more lanes are needed than there are slots.

*Bounds.*  Blocks of the same function that follow each other within `GRAIN_SECONDS` become one.  A lane has a quota of blocks: over it, of
its older half each two become one, so that what is long ago gets coarser and nothing is lost: a block knows how many calls it stands for
and how many seconds of it were busy.  Lanes share `BLOCKS_MOST`; workers share `LANES_MOST` lanes, and where there are fewer lanes than
slots, blocks of one lane overlap and are one.  Of workers that have gone the oldest are forgotten when lanes run out.

*What has changed* is told by version, which rises with each block: a call that ended earlier may be told of later.  In a lane only the last
block grows, so what is newer than a version is always its tail.

Times are seconds since the time line's own beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from windlass.messages import WorkerId

#: Blocks that follow each other become one as long as that is no longer than this.
GRAIN_SECONDS: Final = 0.25
BLOCKS_MOST: Final = 30_000
LANES_MOST: Final = 2_000
#: Of one worker.
LANES_OF_ONE: Final = 64
#: The least and the most that a lane may have; the most is a few hundred kB in a message.
QUOTA_LEAST: Final = 8
QUOTA_MOST: Final = 4_000
#: Calls of one slot may seem to overlap by so many seconds, as times are rounded.
SLACK: Final = 0.0002


class Block(msgspec.Struct, array_like=True, gc=False):
    """A stretch of a lane: one call, or ``calls`` of one function with ``busy`` seconds in them."""

    start: float
    end: float
    #: The function, by its number in the recorder's names.
    what: int
    calls: int
    busy: float
    #: How many of the calls failed.
    failed: int
    #: The call's id, where it is one.
    call: int
    #: Of the time line, when this was put there or grew.
    version: int = 0


class Lines:
    """The lanes of one worker."""

    __slots__ = ("host", "lanes")

    def __init__(self, host: str) -> None:
        self.host = host
        self.lanes: list[list[Block]] = []


class Timeline:
    """The lanes of all workers."""

    def __init__(self) -> None:
        self.workers: dict[WorkerId, Lines] = {}
        #: How many blocks have been added.
        self.version = 0
        self._lanes = 0
        #: Workers that have gone, in that order.
        self._gone: dict[WorkerId, Lines] = {}

    def add(self, worker: WorkerId, host: str, block: Block, *, most: int = LANES_OF_ONE) -> None:
        """Put a block on a lane of ``worker``, which has ``most`` slots."""
        self.version += 1
        block.version = self.version
        lines = self.workers.get(worker)
        if lines is None:
            lines = self.workers[worker] = Lines(host)
        elif self._gone:
            self._gone.pop(worker, None)  # it is back, in a new session
        best: list[Block] | None = None
        earliest: list[Block] | None = None
        start, latest = block.start + SLACK, -1.0
        for lane in lines.lanes:
            end = lane[-1].end
            if latest < end <= start:
                best, latest = lane, end
            if earliest is None or end < earliest[-1].end:
                earliest = lane
        if best is None:
            if earliest is None or len(lines.lanes) < min(most, self.lanes_each()):
                lines.lanes.append([block])
                self._lanes += 1
                if self._lanes > LANES_MOST and self._gone:
                    self._forget()
                return
            best = earliest  # it overlaps with what is there
        last = best[-1]
        alike = last.what == block.what and bool(last.failed) == bool(block.failed)
        if last.end > start or (alike and block.end - last.start <= GRAIN_SECONDS):
            _join(last, block)
            if len(best) > 1:
                last.start = max(last.start, best[-2].end)
            last.version = self.version
            return
        best.append(block)
        if len(best) > max(QUOTA_LEAST, min(QUOTA_MOST, BLOCKS_MOST // self._lanes)):
            best[:] = thinned(best)

    def lanes_each(self) -> int:
        """Lanes that a worker may have."""
        return max(1, min(LANES_OF_ONE, LANES_MOST // (len(self.workers) or 1)))

    def worker_gone(self, worker: WorkerId) -> None:
        """It will run nothing more; its lanes are kept while there is room."""
        lines = self.workers.get(worker)
        if lines is not None:
            self._gone[worker] = lines

    def _forget(self) -> None:
        """Make room: of the workers that have gone the first ones, a quarter of all lanes at a time."""
        enough = self._lanes - LANES_MOST // 4
        while self._gone and self._lanes > enough:
            worker = next(iter(self._gone))
            lines = self._gone.pop(worker)
            if self.workers.get(worker) is lines:
                del self.workers[worker]
                self._lanes -= len(lines.lanes)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return sum(len(lane) for lines in self.workers.values() for lane in lines.lanes)

    def since(self, version: int) -> list[tuple[WorkerId, str, int, list[Block]]]:
        """``(worker, host, lane, blocks)``: what of each lane is newer than ``version`` (0: all of it).

        Who has asked before drops of each such lane what began with the first of these blocks or later, and takes these instead.
        """
        found: list[tuple[WorkerId, str, int, list[Block]]] = []
        for worker, lines in self.workers.items():
            for number, lane in enumerate(lines.lanes):
                first = len(lane)
                while first and lane[first - 1].version > version:
                    first -= 1
                if first < len(lane):
                    found.append((worker, lines.host, number, lane[first:]))
        return found


def thinned(lane: list[Block]) -> list[Block]:
    """Of the older half each two blocks become one."""
    half = len(lane) // 2 & ~1
    found: list[Block] = []
    for place in range(0, half, 2):
        _join(lane[place], lane[place + 1])
        found.append(lane[place])
    return found + lane[half:]


def _join(into: Block, other: Block) -> None:
    if other.what != into.what and other.busy > into.busy:
        into.what = other.what
    into.start, into.end = min(into.start, other.start), max(into.end, other.end)
    into.calls += other.calls
    into.busy += other.busy
    into.failed += other.failed
    into.call = 0


class Samples:
    """Numbers at equal intervals from the beginning on, at most `ROWS`: when there are more, every second one goes and the interval
    doubles."""

    ROWS: Final = 720

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []
        #: Seconds between two rows, and when the next one is due.
        self.interval = 1.0
        self.due = 0.0

    def add(self, at: float, numbers: Iterable[float]) -> None:
        """Note these as they are ``at`` seconds after the beginning; before the next one is due nothing is noted."""
        if at < self.due:
            return
        self.due = at + self.interval
        self.rows.append((round(at, 2), *numbers))
        if len(self.rows) > self.ROWS:
            self.rows = self.rows[::2]
            self.interval *= 2

    def since(self, when: float) -> list[Any]:
        """Rows after ``when`` (0: all of them)."""
        return [row for row in self.rows if row[0] > when] if when else list(self.rows)
