"""Ties: what each worker has to do with which files, by file and by worker.

Theory of operation
-------------------
A `File` says who holds it, waits for it, fetches it, is to push it, and who could not have it from whom: each of these is a *tie* of a
worker to it.  A worker that is lost ends all its ties, and one that says how it is reached may be asked for what it holds.  To look through
all files for either would take as long as there are files, of which a program may keep a million; so it is known by worker, too, which
files it is tied to, and by how many ties.  All changes of ties go through the methods of `Ties`, which know both sides; `check` compares
them.

A core.  What is to happen when is decided by `windlass.manager.replicas`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from windlass.messages import FileName, FileOrigin, FileRef, WorkerId

NOBODY: Final = WorkerId("")
#: Small files do not wait for peers.
SMALL_BYTES: Final = 1 << 20
#: Objects of up to so many bytes go with the messages to a worker.
RIDE_BYTES: Final = 1 << 16
#: Seconds before an origin that has failed once is tried again; failures in a row after which it is one that does not answer for a while,
#: and refusals in a row after which the file is lost. A try that fails so many seconds after the one before is the first of a new row; not
#: so while others are looked for in its turn.
ORIGIN_PAUSE: Final = 1.0
ORIGIN_TRIES: Final = 4
ORIGIN_ROW: Final = 300.0


class File(msgspec.Struct, eq=False):
    """One declared file, and what is known of its replicas."""

    ref: FileRef
    origin: FileOrigin
    #: How often it is declared; 0: only replicas are left.
    declared: int = 0
    #: In the order in which they got it.
    holders: dict[WorkerId, None] = msgspec.field(default_factory=dict[WorkerId, None])
    #: Holders that may have room for one who wants it, and some that are holders no more; the others are known to be busy, or without an
    #: address. So who is to be asked is found without a look at thousands.
    ready: dict[WorkerId, None] = msgspec.field(default_factory=dict[WorkerId, None])
    #: Ordered: a dict whose first entries have gone is looked through from where they were.
    waiting: OrderedDict[WorkerId, None] = msgspec.field(default_factory=OrderedDict[WorkerId, None])
    #: Who fetches it now, and the source's key.
    fetching: dict[WorkerId, str] = msgspec.field(default_factory=dict[WorkerId, str])
    #: Who could not have it from which holder, `NOBODY` for its origin. (Frozen: there is one empty one for a million files.)
    apart: frozenset[tuple[WorkerId, WorkerId]] = frozenset()
    #: What the last one said who could not have it from its origin; and how many read that for others since one could.
    trouble: str = ""
    scouts: int = 0
    #: Of the content (`windlass.messages.FileHere`), from who had it first; of a file `OF_ORIGIN` from who read that first.
    digest: str = ""
    #: Failures of the origin in a row, since when, and when it may be tried again.
    failures: int = 0
    since: float = 0.0
    not_before: float = 0.0
    #: Answers in a row that it is not there, each from another host, or not what it should be.
    refusals: int = 0
    #: Why it cannot be had for a while (`windlass.manager.away`), or at all.
    away: str = ""
    #: It has failed while others came from there: that these come tells nothing about it.
    alone: bool = False
    lost: str = ""
    #: Nobody declares it any more, and copies are to go that come late.
    passing: bool = False
    #: The last copy that went was evicted, or went with a worker that left as it should.
    evicted: bool = False
    #: A holder has been asked to put it into the manager's store.
    pushing: WorkerId = NOBODY
    #: Somebody wants it in the manager's store.
    bring: bool = False
    #: Times that it was read from its origin, for the status.
    origin_reads: int = 0

    @property
    def small(self) -> bool:
        """Not worth a peer."""
        return 0 <= self.ref.size < SMALL_BYTES

    @property
    def rides(self) -> bool:
        """It goes with the messages to a worker."""
        kept = self.origin.object
        return kept is not None and 0 < kept.size <= RIDE_BYTES

    def blind(self, worker: WorkerId) -> bool:
        """It could not have it from its origin, and is not sent there again."""
        return (worker, NOBODY) in self.apart

    def blind_ones(self) -> list[WorkerId]:
        """All such."""
        return [worker for worker, holder in self.apart if not holder]

    def fail(self, now: float) -> None:
        """Its origin, or the only one who has it, has failed: not before a pause again."""
        if not self.failures or (not self.away and now >= self.not_before + ORIGIN_ROW):
            self.failures, self.since = 0, now
        self.failures += 1
        self.not_before = now + ORIGIN_PAUSE * 2 ** min(self.failures - 1, ORIGIN_TRIES)

    def answered(self) -> None:
        """Its origin has given it, or is said to be mended."""
        self.failures, self.refusals, self.scouts, self.not_before, self.alone, self.lost = 0, 0, 0, 0.0, False, ""


class Ties:
    """Those of all workers of a manager."""

    def __init__(self) -> None:
        #: How many files each worker holds.
        self.held: Counter[WorkerId] = Counter()
        #: Files for which somebody waits, and how many wait, who waits for two files twice.
        self.awaited: dict[FileName, None] = {}
        self.waiting = 0
        #: By worker how many ties it has to each file to which it has any.
        self._of: dict[WorkerId, dict[FileName, int]] = {}

    def of(self, worker: WorkerId) -> tuple[FileName, ...]:
        """The files that this worker is tied to, in the order in which that began."""
        return tuple(self._of.get(worker, ()))

    def workers(self) -> set[WorkerId]:
        """All that are tied to a file."""
        return set(self._of)

    def hold(self, file: File, worker: WorkerId) -> None:
        """It has it, and may have room for one who wants it."""
        if worker not in file.holders:
            file.holders[worker] = None
            self.held[worker] += 1
            self._tie(file, worker)
        file.ready[worker] = None

    def drop(self, file: File, worker: WorkerId) -> bool:
        """It has it no more; False: nor had it."""
        if worker not in file.holders:
            return False
        del file.holders[worker]
        self.held[worker] -= 1
        if not self.held[worker]:
            del self.held[worker]
        self._untie(file, worker)
        return True

    def wait(self, file: File, worker: WorkerId) -> None:
        """It waits for a source, behind others."""
        if worker not in file.waiting:
            file.waiting[worker] = None
            self.awaited[file.ref.name] = None
            self.waiting += 1
            self._tie(file, worker)

    def wait_no_more(self, file: File, workers: Iterable[WorkerId]) -> None:
        """Those of these that do."""
        for worker in workers:
            if worker in file.waiting:
                del file.waiting[worker]
                self.waiting -= 1
                self._untie(file, worker)
        if not file.waiting:
            self.awaited.pop(file.ref.name, None)

    def fetch(self, file: File, worker: WorkerId, key: str) -> None:
        """It fetches it from the source with this key."""
        if worker not in file.fetching:
            self._tie(file, worker)
        file.fetching[worker] = key

    def fetch_no_more(self, file: File, worker: WorkerId) -> str | None:
        """The key of its source; None: it did not fetch it."""
        key = file.fetching.pop(worker, None)
        if key is not None:
            self._untie(file, worker)
        return key

    def push(self, file: File, worker: WorkerId) -> None:
        """It is to put it into the manager's store, and whoever was to before is not; `NOBODY`: none is."""
        if file.pushing:
            self._untie(file, file.pushing)
        file.pushing = worker
        if worker:
            self._tie(file, worker)

    def part(self, file: File, worker: WorkerId, holder: WorkerId) -> None:
        """It could not have it from there; `NOBODY`: from its origin."""
        if (worker, holder) not in file.apart:
            file.apart |= {(worker, holder)}
            self._tie(file, worker)
            if holder:
                self._tie(file, holder)

    def part_no_more(self, file: File, worker: WorkerId = NOBODY) -> None:
        """As far as this worker is one of two, or all."""
        over = frozenset(pair for pair in file.apart if not worker or worker in pair) if file.apart else file.apart
        if over:
            file.apart -= over
            for pair in over:
                for one in filter(None, pair):
                    self._untie(file, one)

    def _tie(self, file: File, worker: WorkerId) -> None:
        files = self._of.setdefault(worker, {})
        files[file.ref.name] = files.get(file.ref.name, 0) + 1

    def _untie(self, file: File, worker: WorkerId) -> None:
        files = self._of[worker]
        files[file.ref.name] -= 1
        if not files[file.ref.name]:
            del files[file.ref.name]
            if not files:
                del self._of[worker]

    def check(self, files: Iterable[File]) -> None:
        """These are all files, and both sides agree; raises AssertionError."""
        ties: dict[WorkerId, dict[FileName, int]] = {}
        held, awaited, waiting = Counter[WorkerId](), set[FileName](), 0
        for file in files:
            held.update(tuple(file.holders))
            awaited.update([file.ref.name] if file.waiting else ())
            waiting += len(file.waiting)
            apart = [one for pair in file.apart for one in pair if one]
            for worker in (*file.holders, *file.waiting, *file.fetching, *apart, *([file.pushing] if file.pushing else ())):
                of = ties.setdefault(worker, {})
                of[file.ref.name] = of.get(file.ref.name, 0) + 1
        assert ties == self._of, f"{self._of} counted, {ties} there"
        assert held == self.held, f"{self.held} counted, {held} there"
        assert (awaited, waiting) == (set(self.awaited), self.waiting), f"{self.waiting} counted, {waiting} wait for {awaited}"
