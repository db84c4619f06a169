"""Replicas: which worker has which file, who waits for it, and from where each gets it next.

Theory of operation
-------------------
A *file* is declared with its origin: a path or object at the manager, a URL, a shared path, an archive.  A worker that needs it says
`WantFiles` and waits; `pump` answers with a `FetchFile` when a source has room.  A *source* is the origin or a worker that has a
replica.  Each source has a limit of fetches at a time, and while somebody could serve a file, or one fetch from its origin is under way,
it is not read from its origin again: so N workers make a tree, whose root reads once.  Files under `SMALL_BYTES` come straight from the
origin, as the round trip would cost more than the bytes.  Those under `RIDE_BYTES` that are objects here ride with the first call that
needs them at a worker (`ride`): the shell puts their bytes into the `FetchFile`.

What goes wrong is said by the worker that fetched (`failed`)::

    gone      a peer: it has the file no more           origin: not from there to here again
    failed    a peer: not from there to here again      origin: again after a pause, `ORIGIN_TRIES` times in a row
    damaged   a peer: told to look at its replica       origin: again, `ORIGIN_TRIES` times in a row
    full      nothing: the worker ends what needed it by itself

Who could not have a file from its origin has it from a peer.  Where there is none, a file that the manager reads is lost for all, at once;
but a URL or shared path each node reads by itself: a worker on another host, a *scout*, is sent to it, also if no call there needs it, and
the file is lost when `ORIGIN_TRIES` hosts in a row, or all that there are, could not.

Who can fetch from whom is known, and learned, by `windlass.manager.reaching`.

Names tell what content must be, but for files of a URL or shared path (`OF_ORIGIN`).  Of these the worker that was told to read the origin
says it first, and its peers see to it that they get the same; whoever else has one before that is no source for others.

A lost file ends what waits for it (`FileLost`), until it is declared anew.  This is a core: answers come out in ``out``, in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import Final

import msgspec

from windlass.manager.reaching import Reach
from windlass.manager.ties import NOBODY, ORIGIN_TRIES, File, Ties
from windlass.messages import (
    RESULT,
    DropFiles,
    FetchFile,
    FileFailed,
    FileLost,
    FileName,
    FileOrigin,
    FileRef,
    FileSource,
    Message,
    ObjectName,
    ObjectRef,
    PoolEnvironment,
    PushFile,
    WorkerId,
    longer,
)

_NOWHERE: Final = FileOrigin()
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


class Replicas:
    """All files of a manager."""

    def __init__(self, manager: str = "manager") -> None:
        self.manager = manager
        self.files: dict[FileName, File] = {}
        #: Who holds, fetches, waits for and pushes which of them; nothing else changes that.
        self._ties = Ties()
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

    # ------------------------------------------------------------ the program

    def declare(self, ref: FileRef, origin: FileOrigin) -> None:
        """Calls will name this file; as often as it is declared it must be released."""
        file = self.files.get(ref.name)
        if file is None:
            file = self.files[ref.name] = File(ref, origin)
        elif not file.declared or file.lost:
            # What is declared anew may be mended.
            file.ref, file.origin, file.lost, file.failures, file.not_before, file.scouts = ref, origin, "", 0, 0.0, 0
            self._ties.part_no_more(file)
            if not file.holders:
                file.digest = ""  # nor be what it was, where its name does not tell
        else:
            file.ref = msgspec.structs.replace(file.ref, level=longer(file.ref.level, ref.level))
            if origin != _NOWHERE:
                file.origin = origin  # the same content; what was declared last is there most likely
        file.declared += 1
        file.passing = False
        self._touched[ref.name] = None

    def declare_environment(self, environment: PoolEnvironment) -> None:
        """A worker's libraries need this, as long as the manager lives; what is known of it already holds, unless that was in vain."""
        origins = {environment.packed: FileOrigin(shared=environment.path), environment.unpacked: FileOrigin(archive=environment.packed)}
        for ref, origin in origins.items():
            file = self.files.get(ref.name)
            if file is None or file.lost or not file.declared:
                self.declare(ref, origin)

    def release(self, names: Iterable[FileName], *, prune: bool = False) -> None:
        """One declaration less; after the last one replicas go that were for calls only, or all with ``prune``."""
        for name in names:
            file = self.files.get(name)
            if file is None:
                continue
            file.declared = max(0, file.declared - 1)
            if file.declared:
                continue
            self.forgotten.append(name)
            file.passing = prune or file.ref.level == PASSING or name.startswith(RESULT)
            if file.passing:
                for worker in tuple(file.holders):
                    self._ties.drop(file, worker)
                    self.out.append((worker, DropFiles((name,))))
            self._forget(file)

    def keep(self, ref: FileRef, worker: WorkerId) -> None:
        """A call has left a part of its result with a worker; it is declared by that, once."""
        file = self.files.get(ref.name)
        if file is None:
            file = self.files[ref.name] = File(ref, FileOrigin(), declared=1)
        file.ref, file.lost = msgspec.structs.replace(ref, level=file.ref.level), ""
        file.declared = max(1, file.declared)
        self._ties.hold(file, worker)
        self._touched[ref.name] = None
        if file.bring:
            self._push(file)

    def expect(self, names: Iterable[FileName]) -> None:
        """A call will make these, whatever it was that could not be made before."""
        for name in names:
            file = self.files.get(name)
            if file is not None:
                file.lost = ""

    def bring(self, names: Iterable[FileName]) -> None:
        """Somebody wants these results in the manager's store: see ``brought``."""
        for name in names:
            file = self.files.get(name)
            if file is None or file.lost:
                self.brought.append((name, file.lost if file is not None else "it was released"))
            elif file.origin.object is not None:
                self.brought.append((name, ""))
            else:
                file.bring = True
                self._push(file)

    def pushed(self, worker: WorkerId, name: FileName, text: str, now: float) -> None:
        """A worker has put a result into the manager's store, or could not."""
        file = self.files.get(name)
        if file is None or file.pushing != worker:
            return
        self._ties.push(file, NOBODY)
        self._touched[name] = None
        if text:  # who has it no more says so beside
            if not file.holders:
                self._push(file)
                return
            if file.bring:
                file.bring = False
                self.brought.append((name, text))
            file.fail(now)
            if file.failures >= ORIGIN_TRIES and file.waiting:
                self._lose(file, f"it cannot be had from the worker that has it: {text}")
            return
        file.origin = FileOrigin(object=ObjectRef(ObjectName(name), file.ref.size))
        file.bring = False
        self.brought.append((name, ""))

    def absent(self, name: FileName) -> bool:
        """A result that nobody has any more, and that may be made again."""
        file = self.files.get(name)
        return file is not None and not file.lost and not file.holders and file.origin == _NOWHERE

    def orphan(self, name: FileName) -> None:
        """It is being made again: whoever waits for it is to give back what needs it."""
        file = self.files.get(name)
        if file is not None:
            for worker in file.waiting:
                self.out.append((worker, FileLost(name, "it is made again", later=True)))
            self._ties.wait_no_more(file, tuple(file.waiting))
            self._touched[name] = None

    def lose(self, name: FileName, text: str) -> None:
        """It cannot be made again."""
        file = self.files.get(name)
        if file is not None:
            self._lose(file, text)
            if file.bring:
                file.bring = False
                self.brought.append((name, text))

    # ------------------------------------------------------------ workers

    def serving(self, worker: WorkerId, addresses: tuple[str, ...], host: str = "") -> None:
        """A worker's peers can reach it, on this ``host``."""
        self._reach.serving(worker, addresses, host)
        for name in self._ties.of(worker):
            file = self.files[name]
            if worker in file.holders:
                file.ready[worker] = None
            if file.waiting and (worker in file.holders or worker in file.fetching):
                self._touched[name] = None

    def wanted(self, worker: WorkerId, names: Iterable[FileName]) -> None:
        """A worker needs these."""
        for name in names:
            file = self.files.get(name)
            if file is None or (not file.declared and not file.holders):
                self.out.append((worker, FileLost(name, "the manager does not know this file any more: it was released")))
            elif file.lost:
                self.out.append((worker, FileLost(name, file.lost)))
            elif worker not in file.fetching:
                if self._ties.drop(file, worker):  # it would not ask
                    file.evicted = True
                self._ties.wait(file, worker)
                self._touched[name] = None
                self._look_for_orphan(file)

    def ride(self, worker: WorkerId, name: FileName) -> FetchFile | None:
        """A call that needs this small file is about to be sent to a worker: what is to be sent there before."""
        file = self.files.get(name)
        if file is None or not file.rides or worker in file.holders or worker in file.fetching or file.lost:
            return None
        if file.waiting or self._busy[self.manager] >= SMALL_FETCHES or file.ref.level == OUTLIVES_WORKERS:
            return None  # it will be asked for
        file.origin_reads += 1
        return self._begin(file, worker, FileSource(self.manager))

    def here(self, worker: WorkerId, name: FileName, size: int, digest: str = "") -> None:
        """A worker has it."""
        file = self.files.get(name)
        if file is None:
            return
        told = file.fetching.get(worker, "")
        knows = not name.startswith(OF_ORIGIN) or (told != "" and told in (file.origin.url, file.origin.shared))
        self._fetched(file, worker, well=True)
        self._ties.wait_no_more(file, (worker,))
        if not file.declared and file.passing:
            self.out.append((worker, DropFiles((name,))))  # it was released while this worker fetched it
            self._forget(file)
            return
        self._touched[name] = None
        self._ties.hold(file, worker)
        if not knows:
            return
        file.lost, file.failures, file.scouts, file.not_before = "", 0, 0, 0.0
        file.digest = file.digest or digest
        if file.ref.size < 0:
            file.ref = msgspec.structs.replace(file.ref, size=size)

    def failed(self, worker: WorkerId, message: FileFailed, now: float) -> None:
        """A worker could not have it from there."""
        file = self.files.get(message.name)
        if file is None:
            return
        was_fetching = worker in file.fetching
        self._fetched(file, worker)
        if message.kind == "full" or not was_fetching:
            return
        if file.lost:  # another one's fetch has found that meanwhile
            self.out.append((worker, FileLost(message.name, file.lost)))
            return
        peer = WorkerId(message.source.peer)
        if peer and peer != self.manager:
            there = peer in self._addresses  # or it is lost, with all that was known of it
            if message.kind == "gone":
                self._ties.drop(file, peer)
            if there and (message.kind != "gone" or file.blind(worker)):  # a scout that cannot keep it is not waited for again
                self._ties.part(file, worker, peer)
            if message.kind == "failed" and there and self._reach.failed(worker, now):
                self._touched.update(self._ties.awaited)  # who waits may do so for somebody who would have served it
            if message.kind == "damaged":
                self._ties.drop(file, peer)
                self.out.append((peer, DropFiles((message.name,), damaged=True)))
        elif self._origin_failed(file, worker, message, now):
            self.out.append((worker, FileLost(message.name, file.lost or message.text)))
            return
        self._ties.wait(file, worker)
        self._touched[message.name] = None

    def _origin_failed(self, file: File, worker: WorkerId, message: FileFailed, now: float) -> bool:
        """A worker could not have it from its origin; True: so it cannot have it at all."""
        text, origin, blind = message.text, file.origin, file.blind_ones()
        if message.kind == "gone":
            file.failures += all(self._reach.host(worker) != self._reach.host(one) for one in blind)
        else:
            if now >= file.not_before:  # those that were under way together fail together, which is one failure
                file.fail(now)
            if file.failures < ORIGIN_TRIES:
                return False
            text = f"{text} (tried {file.failures} times in a row)"
        if origin.archive is not None:
            packed = self.files.get(origin.archive.name)
            if not file.holders and (packed is None or packed.lost or not packed.blind(worker)):
                self._lose(file, text)
            return True
        self._ties.part(file, worker, NOBODY)
        file.trouble = text
        alike = not (origin.url or origin.shared)  # all would hear the same
        others = not alike and (file.fetching or (file.failures < ORIGIN_TRIES and any(self._reach.elsewhere([*blind, worker]))))
        if file.holders or others:
            return False
        self._lose(file, text)
        return True

    def gone(self, worker: WorkerId, names: Iterable[FileName]) -> None:
        """A worker has these no more."""
        for name in names:
            file = self.files.get(name)
            if file is not None:
                if self._ties.drop(file, worker):
                    file.evicted = True
                self._touched[name] = None
                self._look_for_orphan(file)
                self._forget(file)

    def worker_lost(self, worker: WorkerId, *, orderly: bool = False) -> None:
        """A worker is gone with its replicas; ``orderly``: it was let go, or came to its walltime.

        Who waits for a file to which it had no tie waits for others, and the sources of its own fetches have room again."""
        self._reach.gone(worker)
        for name in self._ties.of(worker):
            file = self.files[name]
            if file.waiting:
                self._touched[name] = None  # of two holders that were both busy this may have been one
            self._fetched(file, worker)
            self._ties.wait_no_more(file, (worker,))
            self._ties.part_no_more(file, worker)
            if self._ties.drop(file, worker):
                file.evicted = orderly
            if file.pushing == worker:
                self._ties.push(file, NOBODY)
                self._push(file)
            self._look_for_orphan(file)
            self._forget(file)

    def pump(self, now: float) -> None:
        """Give those who wait a source, where one has room. Looks only at what something has happened to."""
        self._reach.pump(now)
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
        if not file.waiting:
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
            elif not (self._reach.alone(worker) or any(to == worker for to, one in file.apart if one or not file.to_come)):
                break  # it is the same for all who wait
        self._ties.wait_no_more(file, served)

    def _begin(self, file: File, worker: WorkerId, source: FileSource) -> FetchFile:
        key = source.peer or source.url or source.path or "archive"
        self._ties.fetch(file, worker, key)
        self._busy[key] += 1
        return FetchFile(file.ref, source, file.digest)

    def counts(self) -> Mapping[WorkerId, int]:
        """How many replicas each worker has, of those that have any."""
        return self._ties.held

    def moving(self) -> tuple[int, int]:
        """How many fetches are under way, and how many wait for a source."""
        return self._busy.total(), self._ties.waiting

    def holders(self, name: FileName) -> Iterable[WorkerId]:
        """Who has a replica."""
        file = self.files.get(name)
        return file.holders if file is not None else ()

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
        file.origin_reads += 1
        return FileSource(self.manager) if at_manager else FileSource(url=origin.url, path=origin.shared)

    def _scout(self, file: File, worker: WorkerId) -> FileSource | None:
        """Have another worker read the origin that this one cannot read; `_NONE`: there is none for that."""
        origin = file.origin
        if file.holders or file.scouts >= ORIGIN_TRIES or not (origin.url or origin.shared):
            return _NONE
        if any(not file.blind(one) for one in file.waiting):
            return None  # it does so itself, in its turn
        others = self._reach.elsewhere(file.blind_ones())
        some = list(islice((one for one in others if self._serves(file, one, worker)), PEERS_LOOKED_AT))
        if not some:
            return _NONE
        scout = some[file.scouts % len(some)]  # the next time another one, if that has no room
        file.scouts += 1
        file.origin_reads += 1
        fetch = self._begin(file, scout, FileSource(url=origin.url, path=origin.shared))
        if file.ref.level == PASSING:  # no call holds it there
            fetch = msgspec.structs.replace(fetch, ref=msgspec.structs.replace(file.ref, level="workflow"))
        self.out.append((scout, fetch))
        return None

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

    def check(self, workers: Iterable[WorkerId] | None = None) -> None:
        """Invariants between the collections; raises AssertionError. ``workers``: all that there are, so that others have no ties."""
        busy = Counter(key for file in self.files.values() for key in file.fetching.values())
        assert busy == self._busy, f"{self._busy} counted, {busy} under way"
        self._ties.check(self.files.values())
        assert workers is None or self._ties.workers() <= set(workers)
        for name, file in self.files.items():
            assert file.ref.name == name
            assert not (file.waiting.keys() & file.fetching.keys())
            assert not (file.waiting.keys() & file.holders.keys())
            assert not file.lost or not file.waiting
            for one in file.holders.keys() - file.ready.keys():
                blocked = self._blocked.get((one, PEER_FETCHES), {})
                assert name in blocked or not self._addresses.get(one), f"{one} has {name}, and would never be asked for it"
