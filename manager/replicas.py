"""Replicas: which worker has which file, who waits for it, and from where each gets it next.

Theory of operation
-------------------
A *file* is declared with its origin: a path or object at the manager, a URL, a shared path, an archive.  A worker that needs it says
`WantFiles` and waits; the answer is a `FetchFile` when a source has room (`windlass.manager.fetches`).  Files under `RIDE_BYTES` that are
objects here ride with the first call that needs them at a worker (`ride`): the shell puts their bytes into the `FetchFile`.

What goes wrong is said by the worker that fetched (`failed`)::

    gone      a peer: it has the file no more           origin: not from there to here again
    failed    a peer: not from there to here again      origin: again after a pause, for a while (`windlass.manager.away`)
    damaged   a peer: told to look at its replica       origin: again, `ORIGIN_TRIES` times in a row
    full      nothing: the worker ends what needed it by itself

Who could not have a file from its origin has it from a peer.  Where there is none that could serve it, a file that the manager reads is
lost for all, at once; but a URL or shared path each node reads by itself: a worker on another host, a *scout*, is sent to it, also if no
call there needs it, and the file is lost when `ORIGIN_TRIES` hosts in a row, or all that there are, could not.

Who can fetch from whom is known, and learned, by `windlass.manager.reaching`.

Names tell what content must be, but for files of a URL or shared path (`OF_ORIGIN`).  Of these the worker that was told to read the origin
says it first, and its peers see to it that they get the same; whoever else has one before that is no source for others.

A lost file ends what waits for it (`FileLost`), until it is declared anew.  This is a core: answers come out in ``out``, in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from windlass.manager.fetches import NOWHERE, OF_ORIGIN, OUTLIVES_WORKERS, PASSING, PEER_FETCHES, SMALL_FETCHES, Fetches
from windlass.manager.ties import NOBODY, ORIGIN_TRIES, File
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
    ObjectName,
    ObjectRef,
    PoolEnvironment,
    WorkerId,
    longer,
)


class Replicas(Fetches):
    """All files of a manager."""

    # ------------------------------------------------------------ the program

    def declare(self, ref: FileRef, origin: FileOrigin) -> None:
        """Calls will name this file; as often as it is declared it must be released."""
        file = self.files.get(ref.name)
        if file is None:
            file = self.files[ref.name] = File(ref, origin)
        elif not file.declared or file.lost:
            # What is declared anew may be mended.
            self._end_away(file)
            file.ref, file.origin = ref, origin
            file.answered()
            self._ties.part_no_more(file)
            if not file.holders:
                file.digest = ""  # nor be what it was, where its name does not tell
        else:
            file.ref = msgspec.structs.replace(file.ref, level=longer(file.ref.level, ref.level))
            if origin not in (NOWHERE, file.origin):
                self._end_away(file)
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
        if told and told not in self._addresses:
            self._touched.update(dict.fromkeys(self.away.came(file)))
        else:
            self._end_away(file)
        if not knows:
            return
        file.answered()
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
        if not was_fetching:
            return
        if message.kind == "full":
            self.away.no_room(file, worker)
            return
        if file.lost:  # another one's fetch has found that meanwhile
            self.out.append((worker, FileLost(message.name, file.lost)))
            return
        if worker in file.holders:  # a call of its own has made it meanwhile
            self.out.append((worker, FileLost(message.name, "it is here", later=True)))
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
        elif (answer := self._origin_failed(file, worker, message, now)) is not None:
            self.out.append((worker, answer))
            return
        self._ties.wait(file, worker)
        self._touched[message.name] = None

    def _origin_failed(self, file: File, worker: WorkerId, message: FileFailed, now: float) -> FileLost | None:
        """A worker could not have it from its origin; None: it waits for another try, or for somebody who has it."""
        name, text, origin, blind = message.name, message.text, file.origin, file.blind_ones()
        packed = self.files.get(origin.archive.name) if origin.archive is not None else None
        if packed is not None and packed.away and message.kind == "failed":
            return FileLost(name, packed.away, later=True)
        if message.kind == "gone":
            file.refusals += all(self._reach.host(worker) != self._reach.host(one) for one in blind)
        else:
            if now >= file.not_before:  # those that were under way together fail together, which is one failure
                file.fail(now)
                file.refusals += message.kind == "damaged"
            if file.refusals < ORIGIN_TRIES if message.kind == "damaged" else not self.away.over(file, now):
                return self._wait_for_origin(file, worker, text)
            text = f"{text} (tried {file.refusals} times in a row)" if message.kind == "damaged" else self.away.told(file, text, now)
        if origin.archive is not None:
            if not file.holders and (packed is None or packed.lost or not packed.blind(worker)):
                self._lose(file, text)
            return FileLost(name, file.lost or text)
        self._ties.part(file, worker, NOBODY)
        file.trouble = text
        alike = not (origin.url or origin.shared)  # all would hear the same
        others = message.kind == "gone" and file.refusals < ORIGIN_TRIES and any(self._reach.elsewhere([*blind, worker]))
        coming = file.fetching and not (alike and message.kind != "failed")
        if file.holders or coming or (others and not alike):
            return FileLost(name, text, later=True) if file.away else None
        self._lose(file, text)
        return FileLost(name, text)

    def _wait_for_origin(self, file: File, worker: WorkerId, text: str) -> FileLost | None:
        """It will be tried again. Where that may take long, what needs it waits here and not at workers."""
        if file.origin.archive is None and (file.away or (self.away.lasts(file) and not self._to_come(file, worker))):
            self.away.add(file, text)
            answer = FileLost(file.ref.name, text, later=True)
            self.out += [(one, answer) for one in file.waiting]
            self._ties.wait_no_more(file, tuple(file.waiting))
            return answer
        return None

    def awaited(self, name: FileName) -> FileName:
        """The file that is away for which a call that needs this one is to wait, in no queue; "" where there is none."""
        file = self.files.get(name)
        if file is not None and not file.holders and file.origin.archive is not None:
            file = self.files.get(file.origin.archive.name)
        return file.ref.name if file is not None and file.away and not file.holders else FileName("")

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
            assert not file.lost or not (file.waiting or file.away)
            assert any(name in place.files for place in self.away.places.values()) == bool(file.away)
            for one in file.holders.keys() - file.ready.keys():
                blocked = self._blocked.get((one, PEER_FETCHES), {})
                assert name in blocked or not self._addresses.get(one), f"{one} has {name}, and would never be asked for it"
