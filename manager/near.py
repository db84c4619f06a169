"""Near: where calls go for the files that they need, and which of them can go nowhere just now for want of one.

Theory of operation
-------------------
A call goes where most bytes of its files are, to a free slot, or behind others where waiting costs less than moving the bytes. One whose
result of another call is lost is *parked* until that has been made again, and one whose file cannot be had for a while until that can
(`windlass.manager.away`).
"""

from __future__ import annotations

from itertools import islice

from windlass.manager.calls import CallQueue
from windlass.manager.libraries import LibraryState
from windlass.manager.recalls import Recalls
from windlass.manager.workers import Instance
from windlass.messages import FileName, WorkerId

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
            if instance is None:
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
