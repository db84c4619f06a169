"""Recalls: queued calls that come back from workers, because they can be run elsewhere or have waited too long.

Theory of operation
-------------------
Calls are sent ahead of free slots, as many as would be run in some 50 ms by the mean of what was measured. That mean may be wrong
for the calls at hand, above all where durations have a heavy tail. So four things bring queued calls back; what has been claimed by a
slot stays. All are asked for with `RecallCalls`, one at a time for each instance, and answered with what was found, newest first.

*Idle slots*: no call waits at the manager, slots are free, and calls are queued at others (`_recall`). *Stillness*: at an instance with
queued calls none has ended for `STILL_TICKS` ticks, or for twice as long as calls take where one waits behind each to have its data fetched
(`windlass.manager.prefetch`); what runs there takes long, and what waits behind it would, too. It gets no more ahead until one has ended.
*Length*: a queue is now expected to take much longer than it should (`_take_back_waiting`). *Priority*: where one waits behind each, calls
wait at the manager that go first (`_give_way`).

What comes back is placed as before it was sent: in the order in which it was submitted, wherever a slot is free first.
"""

from __future__ import annotations

from itertools import islice

from windlass.manager.books import Books
from windlass.manager.heldup import AHEAD_SECONDS
from windlass.manager.libraries import LibraryState
from windlass.manager.workers import STILL_TICKS, STILL_TICKS_WITH_DATA, TICK_SECONDS, Instance, Phase, Worker
from windlass.messages import RecallCalls

#: A recall is worth its round trip when the queued work would take at least so much longer than that.
RECALL_SECONDS = 0.005
#: So many instances are looked at for the most loaded one, and for idle slots.
RECALL_AMONG = 64
#: Queues that are expected to take so many times as long as they should are shortened.
WAIT_TIMES_MOST = 4
#: And so are those where none has ended for so many times as long as calls take, though calls wait there to have their data fetched.
PREFETCH_TIMES = 2


class Recalls(Books):
    """The books, and what is taken back."""

    def _recall(self, state: LibraryState, now: float, patient: bool) -> None:
        """Slots are idle and no call waits: take queued calls back from the most loaded instance."""
        # As many as it has places run there, also while fewer are aimed at: only what is above can come back.
        above = (one for one in state.loaded.values() if not one.recalling and one.outstanding > one.running_most)
        loaded = list(islice(above, RECALL_AMONG))
        if not loaded:
            return
        free = sum(one.places - one.outstanding for one in islice(state.idle.values(), RECALL_AMONG))
        most = max(loaded, key=lambda one: one.outstanding / max(1, one.places))
        worker = self.workers[most.worker]
        if not worker.connected:
            return
        queued = most.outstanding - most.running_most
        wait = queued * state.durations.mean / max(1, most.places)
        if patient and wait < RECALL_SECONDS + most.away:
            return  # it will be done sooner than it could be moved; the tick looks again
        fetched = state.prefetch.on
        if fetched and max(wait, most.still * TICK_SECONDS) < state.prefetch.seconds:
            return  # its data is there, or soon, and would have to be fetched again
        most.recalling = True
        self._send(worker, RecallCalls(most.id, min(queued, free if fetched else max(free, queued // 2))))

    def _take_back_waiting(self, seconds: float) -> None:
        """A tick, so many seconds after the last one: calls do not wait on behind others that take much longer than calls were thought to
        take when they were sent.

        Durations with a heavy tail are why: the mean says that a queue is short, and then a call runs that is a thousand times as long. All
        that waits behind it comes back then; and some of it where a queue has turned out longer than it should be.
        """
        # Where the manager is held up, calls wait there that take as long as several ticks; data and messages are as long on their way.
        longer = STILL_TICKS * (self._held_up.ahead_seconds - AHEAD_SECONDS)
        for instance in list(self._ahead.values()):
            waiting = instance.outstanding - instance.running_most
            if waiting <= 0:
                del self._ahead[instance.id]
                continue
            if longer:
                most = instance.still_most
                instance.still += min(1.0, max(seconds, TICK_SECONDS) * most / (most * TICK_SECONDS + longer))
            else:
                instance.still += 1
            state = self.libraries[instance.library]
            if not instance.stuck:
                if waiting * state.durations.mean <= WAIT_TIMES_MOST * (self._held_up.ahead_seconds + instance.away) * instance.places:
                    continue
                waiting = min(waiting, instance.outstanding - state.most(instance))
            worker = self.workers[instance.worker]
            if waiting > 0 and not instance.recalling and instance.phase is Phase.READY and worker.usable:
                if instance.stuck and instance.patience == STILL_TICKS:
                    # As long as calls are known to take they do so, where one waits on purpose.
                    known = PREFETCH_TIMES * state.durations.mean / TICK_SECONDS if state.prefetch.on else 0
                    instance.patience = max(known, STILL_TICKS_WITH_DATA if _with_data(worker, instance) else STILL_TICKS)
                    if not instance.stuck:
                        continue
                instance.recalling = True
                self._refresh(instance)
                self._send(worker, RecallCalls(instance.id, waiting))

    def _give_way(self, state: LibraryState) -> None:
        """A tick, and calls wait: for as long as one runs none of them is to stand behind others of a lower priority.

        Others give way at as many places as such calls wait for, not everywhere: what waits there has its data.
        """
        first = next((queue.options.priority for queue in state.queues if queue.waiting), None)
        if first is None or not any(queue.running and queue.options.priority < first for queue in state.queues):
            return
        wanted = sum(queue.waiting for queue in state.queues if queue.options.priority == first)
        for instance in list(state.loaded.values()):
            waiting, worker = instance.outstanding - instance.running_most, self.workers[instance.worker]
            if wanted <= 0:
                break
            if waiting > 0 and worker.usable and not instance.stuck:
                newest = islice((call for call in reversed(worker.calls.values()) if call.spec.library == instance.library), waiting)
                if instance.recalling:
                    wanted -= waiting
                elif any(call.queue.options.priority < first for call in newest):
                    wanted -= waiting
                    instance.recalling = True
                    self._send(worker, RecallCalls(instance.id, waiting))


def _with_data(worker: Worker, instance: Instance) -> bool:
    """Whether a call that it holds has files or objects."""
    return any(call.spec.library == instance.library and (call.spec.inputs or call.spec.spans) for call in worker.calls.values())
