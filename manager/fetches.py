"""Fetches: who waits for which file, and from where each gets it next.

Theory of operation
-------------------
A worker that needs a file waits until `pump` finds it a source with room.  A *source* is the origin or a worker that has a replica.  Each
has a limit of fetches at a time, and while somebody could serve a file, or one fetch from its origin is under way, it is not read from its
origin again: so N workers make a tree, whose root reads once.  Files under `SMALL_BYTES` come straight from the origin, as the round trip
would cost more than the bytes.

What is said about files, and what becomes of failures, is in `windlass.manager.replicas`.  A core: answers come out in ``out``, in order.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from typing import Final
from zlib import crc32

import msgspec

from windlass.manager.away import Away, Place
from windlass.manager.reaching import Reach
from windlass.manager.ties import NOBODY, ORIGIN_TRIES, File, Ties
from windlass.messages import FetchFile, FileLost, FileName, FileOrigin, FileSource, Message, PushFile, WorkerId

NOWHERE: Final = FileOrigin()
_NONE: Final = FileSource()

#: Fetches at a time from one worker, from the manager, and from one URL's or shared path's origin.
PEER_FETCHES: Final = 2
MANAGER_FETCHES: Final = 4
ORIGIN_FETCHES: Final = 2
#: So many peers with room are looked at for the least busy one.
PEERS_LOOKED_AT: Final = 16
#: Of small files more may be under way at the manager.
SMALL_FETCHES: Final = 32
#: Replicas of this level go as soon as the program needs them no more; others stay, as long as there is room, for who declares them again.
PASSING: Final = "call"
#: Workers of one node share replicas of this level, which may be there before anybody says so.
OUTLIVES_WORKERS: Final = "forever"
#: The head of names that say where the content comes from, and not what it is.
OF_ORIGIN: Final = "x3-"


class Fetches:
    """The files of a manager, and who fetches them."""

    def __init__(self, manager: str = "manager") -> None:
        self.manager = manager
        self.files: dict[FileName, File] = {}
        #: Who holds, fetches, waits for and pushes which of them; nothing else changes that.
        self._ties = Ties()
        #: What is waited for as its origin does not answer.
        self.away = Away()
        #: For workers, in the order in which they must be sent.
        self.out: list[tuple[WorkerId, Message]] = []
        #: Results that somebody needs and nobody has any more, for the core to have them made again.
        self.orphaned: list[FileName] = []
        #: Results that have been put into the manager's store, or (with a text) could not be.
        self.brought: list[tuple[FileName, str]] = []
        #: Files that are served from the manager and are needed no more.
        self.forgotten: list[FileName] = []
        #: Files to which something has happened since the last `pump`, and sources that have room again.
        self._touched: dict[FileName, None] = {}
        self._freed: dict[str, None] = {}
        #: Files that wait for room at a source, by that and its limit; and those that wait for time to pass, until when.
        self._blocked: dict[tuple[str, int], dict[FileName, None]] = {}
        self._delayed: dict[FileName, None] = {}
        self._retry_at = 0.0
        self._reach = Reach()
        self._addresses = self._reach.addresses
        #: Fetches under way by source.
        self._busy: Counter[str] = Counter()

    def absent(self, name: FileName) -> bool:
        """A result that nobody has any more, and that may be made again."""
        file = self.files.get(name)
        return file is not None and not file.lost and not file.holders and file.origin == NOWHERE

    def pump(self, now: float) -> None:
        """Give those who wait a source, where one has room. Looks only at what something has happened to."""
        self._reach.pump(now)
        for overdue in self.away.expired(now):  # before somebody looks again, for which they would have to wait
            self._lose(overdue, self.away.told(overdue, overdue.away, now))
        for place in tuple(self.away.places.values()):
            if place.due(now):
                self._probe(place, now)
        if now >= self._retry_at > 0:
            self._touched.update(self._delayed)
            self._delayed, self._retry_at = {}, 0.0
        while self._touched or self._freed:
            touched, self._touched = self._touched, {}
            for name in touched:
                self._serve(name, now)
            freed, self._freed = self._freed, {}
            for key in freed:
                for limit in (PEER_FETCHES, MANAGER_FETCHES, ORIGIN_FETCHES, SMALL_FETCHES):
                    blocked = self._blocked.pop((key, limit), {})
                    while blocked and self._busy[key] < limit:
                        name = next(iter(blocked))
                        del blocked[name]
                        if limit == PEER_FETCHES and (file := self.files.get(name)) is not None:
                            file.ready[WorkerId(key)] = None
                        self._serve(name, now)
                    if blocked:
                        self._blocked[key, limit] = blocked | self._blocked.get((key, limit), {})

    def _serve(self, name: FileName, now: float) -> None:
        """Find sources for those who wait for this file."""
        file = self.files.get(name)
        if file is None:
            return
        if not file.waiting or file.away:
            self._forget(file)  # what has happened may have ended the last that there was of it
            return
        served: list[WorkerId] = []
        for worker in file.waiting:
            source = self._source(file, worker, now)
            if source is _NONE:
                served.append(worker)
                self.out.append((worker, FileLost(name, f"{file.trouble}; nor can it be had there from another worker")))
            elif source is not None:
                served.append(worker)
                self.out.append((worker, self._begin(file, worker, source)))
            elif not (self._reach.alone(worker) or any(to == worker for to, one in file.apart if one or not file.fetching)):
                break  # it is the same for all who wait
        self._ties.wait_no_more(file, served)

    def _begin(self, file: File, worker: WorkerId, source: FileSource) -> FetchFile:
        key = source.peer or source.url or source.path or "archive"
        self._ties.fetch(file, worker, key)
        self._busy[key] += 1
        return FetchFile(file.ref, source, file.digest)

    # ------------------------------------------------------------ inside

    def _source(self, file: File, worker: WorkerId, now: float) -> FileSource | None:
        """None: later, as when somebody has it; `_NONE`: it cannot have it."""
        origin = file.origin
        if origin.archive is not None:
            return FileSource(archive=origin.archive)  # it is unpacked where it is needed
        blind = file.blind(worker)
        has_origin = not blind and bool(origin.path or origin.object or origin.url or origin.shared)
        if not (file.small and has_origin and now >= file.not_before):
            peer = self._peer(file, worker)
            if peer is not None:
                return FileSource(peer, self._addresses[peer])
            if self._to_come(file, worker):
                return None
        if not has_origin:
            if any(one not in self._addresses for one in file.holders):
                return None  # it has not said yet how it is reached
            if now < file.not_before:
                self._delay(file)
                return None
            if blind:
                return self._scout(file, worker)
            self._push(file)  # no holder can be reached from there: by way of the manager
            return None
        if now < file.not_before:
            self._delay(file)
            return None
        at_manager = bool(origin.path or origin.object)
        key = self.manager if at_manager else origin.url or origin.shared
        limit = SMALL_FETCHES if file.small else MANAGER_FETCHES if at_manager else ORIGIN_FETCHES
        if self._busy[key] >= limit:
            self._blocked.setdefault((key, limit), {})[file.ref.name] = None
            return None
        return self._read(file)

    def _scout(self, file: File, worker: WorkerId) -> FileSource | None:
        """Have another worker read the origin that this one cannot read, as none has it that could serve it; `_NONE`: there is none."""
        origin = file.origin
        if file.scouts >= ORIGIN_TRIES or not (origin.url or origin.shared):
            return _NONE
        if any(not file.blind(one) for one in file.waiting):
            return None  # it does so itself, in its turn
        others = self._reach.elsewhere(file.blind_ones())
        some = list(islice((one for one in others if self._serves(file, one, worker)), PEERS_LOOKED_AT))
        if not some:
            return _NONE
        file.scouts += 1
        self._send_out(file, some[(file.scouts - 1) % len(some)])  # the next time another one, if that has no room
        return None

    def _send_out(self, file: File, worker: WorkerId) -> None:
        """Have a worker read the origin, though it has not asked for that."""
        fetch = self._begin(file, worker, self._read(file))
        if file.ref.level == PASSING:  # no call holds it there
            fetch = msgspec.structs.replace(fetch, ref=msgspec.structs.replace(file.ref, level="workflow"))
        self.out.append((worker, fetch))

    def _read(self, file: File) -> FileSource:
        """Its origin, which somebody is about to read."""
        origin = file.origin
        file.origin_reads += 1
        return FileSource(self.manager) if origin.path or origin.object is not None else FileSource(url=origin.url, path=origin.shared)

    def _probe(self, place: Place, now: float) -> None:
        """Have somebody see whether it is back: each time another worker, as one may be ill."""
        file = next(iter(place.files.values()))
        if len(file.fetching) >= ORIGIN_FETCHES:
            return  # a large one, most likely, which is not to be read by all
        at = (file.failures + crc32(file.ref.name.encode())) % max(1, len(self._addresses))  # for files that are alone not the same one
        workers = chain(islice(self._addresses, at, None), islice(self._addresses, at))
        if place.probe != file.ref.name:
            place.full.clear()
        worker = next((one for one in workers if not (file.blind(one) or one in chain(file.fetching, file.holders, place.full))), None)
        if worker is None or len(place.full) >= ORIGIN_TRIES:
            if not file.fetching:
                self._end_away(file)  # whoever comes next tries, with a call that needs it, which hears of it where none has room
            return
        place.probe, place.probed_at = file.ref.name, now
        self._ties.wait_no_more(file, (worker,))
        self._send_out(file, worker)

    def _end_away(self, file: File) -> None:
        self._touched.update(dict.fromkeys(self.away.end(file)))

    def _delay(self, file: File) -> None:
        self._delayed[file.ref.name] = None
        self._retry_at = min(self._retry_at or file.not_before, file.not_before)

    def _peer(self, file: File, worker: WorkerId) -> WorkerId | None:
        """The least busy worker that could serve it to this one now, among those that got it last, or have had room last."""
        if self._reach.alone(worker):
            return None
        found: list[WorkerId] = []
        gone: list[WorkerId] = []
        for one in reversed(file.ready):
            if one not in file.holders or not self._addresses.get(one):
                gone.append(one)
            elif self._busy[one] >= PEER_FETCHES:
                gone.append(one)
                self._blocked.setdefault((one, PEER_FETCHES), {})[file.ref.name] = None
            elif self._serves(file, one, worker):
                found.append(one)
                if not self._busy[one] or len(found) == PEERS_LOOKED_AT:
                    break
        for one in gone:
            del file.ready[one]
        return min(found, key=self._busy.__getitem__, default=None)

    def _to_come(self, file: File, worker: WorkerId) -> bool:
        """Somebody will be able to serve it to this worker: a busy peer, or one that fetches it now."""
        return any(self._serves(file, one, worker) for one in chain(file.holders, file.fetching))

    def _serves(self, file: File, one: WorkerId, to: WorkerId) -> bool:
        if not file.digest and one in file.holders and file.ref.name.startswith(OF_ORIGIN):
            return False  # nobody could tell whether it is the right one
        return self._reach.may_serve(one, to) and (to, one) not in file.apart

    def _push(self, file: File) -> None:
        """Have a holder put a result into the manager's store."""
        if file.pushing or file.origin.object is not None:
            return
        if file.holders:
            self._ties.push(file, next(iter(file.holders)))
            self.out.append((file.pushing, PushFile(file.ref.name)))
        else:
            self._look_for_orphan(file)

    def _look_for_orphan(self, file: File) -> None:
        if (file.waiting or file.bring) and self.absent(file.ref.name):
            self.orphaned.append(file.ref.name)

    def _fetched(self, file: File, worker: WorkerId, *, well: bool = False) -> None:
        key = self._ties.fetch_no_more(file, worker)
        if key is not None:
            if well and key in self._addresses:
                self._reach.well(worker)
            self._busy[key] -= 1
            self._freed[key] = None
            self._touched[file.ref.name] = None  # others may have waited to have it from this worker
            if not self._busy[key]:
                del self._busy[key]

    def _lose(self, file: File, text: str) -> None:
        self._end_away(file)
        file.lost = text
        for worker in file.waiting:
            self.out.append((worker, FileLost(file.ref.name, text)))
        self._ties.wait_no_more(file, tuple(file.waiting))
        self._touched[file.ref.name] = None

    def _forget(self, file: File) -> None:
        """Forget a file of which nothing is left."""
        if file.declared or file.holders or file.fetching:
            return
        self._lose(file, "it was released")
        self._ties.push(file, NOBODY)
        self._ties.part_no_more(file)
        self.files.pop(file.ref.name, None)
