"""Near: where calls go for the files that they need, and which of them can go nowhere for want of one.

Theory of operation
-------------------
A call goes where most bytes of its files are, to a free slot, or behind others where waiting costs less than moving the bytes. One whose
result of another call is lost is *parked* until that has been made again, and one whose file cannot be had for a while until that can
(`windlass.manager.away`). A worker that can have a file neither from its origin nor from another worker *lacks* it: its calls that need the
file come back for others, and it is given none. A file that all workers lack is lost, unless pilots may come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice

import msgspec

from windlass.manager.calls import CallQueue
from windlass.manager.libraries import LibraryState
from windlass.manager.recalls import Recalls
from windlass.manager.workers import Instance, Worker
from windlass.messages import FileLost, FileName, InstanceId, WorkerId

#: Files of fewer bytes are no reason to go anywhere; so many holders of a file are looked at; and what moving bytes is taken to cost, in
#: bytes per second.
NEAR_BYTES = 64 << 10
HOLDERS_MOST = 16
MOVED_PER_SECOND = 100e6


class Near(Recalls):
    """The books, and what files have to do with where calls go."""

    def _park_firsts(self, queue: CallQueue, state: LibraryState, now: float) -> bool:
        """Take first calls away that need a result which nobody has any more, or a file whose source does not answer, and end those that
        need a lost file; True when one is left."""
        while (call := queue.first()) is not None:
            gone, away, lost = FileName(""), FileName(""), ""
            for ref in call.spec.inputs:
                file = self.replicas.files.get(ref.name)
                if file is not None and file.lost:
                    lost = file.lost
                    break
                if self.replicas.absent(ref.name) or (file is None and ref.name in self.lineage.products):
                    gone = ref.name
                away = away or self.replicas.awaited(ref.name)
            if not gone and not away and not lost:
                return True
            queue.pop()
            state.waiting -= 1
            if lost:
                self._end_without(call, lost, now)
            else:
                self._park(call, gone or away, away=not gone)
        return False

    def _nearest(self, state: LibraryState, queue: CallQueue, plain: bool) -> tuple[Instance, int] | None:
        """Where the files of the queue's first call are, and how many calls fit: a free slot there, or a place behind others where
        waiting costs less than moving the bytes. None: anywhere."""
        call = queue.first()
        if call is None:
            return None
        here: dict[WorkerId, int] = {}
        for ref in call.spec.inputs:
            if ref.size >= NEAR_BYTES:
                for worker_id in islice(self.replicas.holders(ref.name), HOLDERS_MOST):
                    here[worker_id] = here.get(worker_id, 0) + ref.size
        best: tuple[int, bool, Instance] | None = None
        for worker_id, size in here.items():
            instance = self.workers[worker_id].by_library.get(state.spec.id)
            if instance is None or not self._suits(instance, queue):
                continue
            free = instance.id in state.idle
            if not free and instance.outstanding >= state.most(instance):
                continue
            if not free:
                if not plain or instance.id not in state.roomy:
                    continue
                behind = (instance.outstanding - instance.places + 1) / max(1, instance.places)
                if not state.durations.count or behind * state.durations.mean > size / MOVED_PER_SECOND:
                    continue
            if best is None or (free, size) > (best[1], best[0]):
                best = size, free, instance
        if best is None:
            return None
        instance = best[2]
        most = instance.places if best[1] else state.most(instance)
        return instance, most - instance.outstanding

    def _first_suitable(self, instances: Mapping[InstanceId, Instance], queue: CallQueue) -> Instance | None:
        return next((one for one in instances.values() if not queue.files or self._suits(one, queue)), None)

    def _suits(self, instance: Instance, queue: CallQueue) -> bool:
        """Its worker lacks no file of the queue's first call."""
        lacks = self.workers[instance.worker].lacks
        if not lacks:
            return True
        call = queue.first()
        return call is None or not any(ref.name in lacks for ref in call.spec.inputs)

    def _lost_to(self, worker: Worker, message: FileLost, now: float) -> FileLost:
        """A worker cannot have a file. If others may, its calls that need it are for them. (A library that needs it cannot run there.)"""
        name = message.name
        file = self.replicas.files.get(name)
        if message.later or file is None or file.lost or not _needs(worker, name):
            return message
        if not any(one.lacks for one in self.workers.values()):
            self.replicas.away.warnings.append(
                f"worker {worker.id} on {worker.info.host} cannot have a file, and calls that need it go to others: {message.text}"
            )
        worker.lacks.add(name)
        if self._more_may_come() or any(name not in one.lacks for one in self.workers.values()):
            return msgspec.structs.replace(message, later=True)
        self._try_again_with({name})  # when it is declared anew
        self._lose_results((name,), message.text, now)
        return message

    def _try_lacking_again(self) -> None:
        """Nobody is left that could have a file, nor may come, as when others have left: those that lack it try again."""
        lacks = [worker.lacks for worker in self.workers.values()]
        if all(lacks):
            self._try_again_with(lacks[0].intersection(*lacks[1:]))

    def _try_again_with(self, names: set[FileName]) -> None:
        for worker in self.workers.values():
            worker.lacks -= names

    def _more_may_come(self) -> bool:
        """A pool has fewer workers than it may."""
        there = Counter(worker.info.pool for worker in self.workers.values())
        return any(not offer.spent and (not offer.most or there[offer.pool] < offer.most) for offer in self.all_offers())


def _needs(worker: Worker, name: FileName) -> bool:
    """A call there needs it."""
    return any(ref.name == name for call in worker.calls.values() for ref in call.spec.inputs)
