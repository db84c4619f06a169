"""What a manager notes of a run while somebody looks, or a report is asked for: a time line of slots, and numbers over time. Pure.

Theory of operation
-------------------
The core hands over each batch of ends as it came from a worker (`ended`), before it takes it in.  What that costs does not depend on the
number of calls in it: of a batch of short calls `SAMPLED` are looked at, and with the worker's next batches they become one stretch,
put on its lanes once per `pace`.  Calls of `SINGLE_SECONDS` and more are blocks of their own.  `LOOKS_MOST` batches and single calls are
looked at in a second; what comes after these is counted, and taken to be like what was seen of its worker.  So a time line costs at most
some thousand moves per second, whatever runs.

Times in answers are by the worker's clock: the least that an answer took is how far that is off, as `windlass.manager.pilots` reckons for
factories, and beyond `CLOCKS_AGREE` it is put right.

A core without a recorder (``core.recorder`` is None) pays for one look at an attribute per batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from windlass.manager.timeline import LANES_OF_ONE, Block, Samples, Timeline
from windlass.manager.workers import Worker
from windlass.messages import CANCELLED, RETURNED, CallEnd, FunctionId, LibraryId, WorkerId

if TYPE_CHECKING:
    from windlass.manager.books import Books

#: Ends of a batch that are looked at.
SAMPLED: Final = 4
#: Calls that take so long are shown one by one.
SINGLE_SECONDS: Final = 0.01
#: Batches, and single calls in them, of all workers in a second.
LOOKS_MOST: Final = 500
#: Whoever was not looked at for so many seconds is, whatever else was.
UNSEEN_SECONDS: Final = 5.0
#: Functions that are told apart.
NAMES_MOST: Final = 500
OTHERS: Final = "other functions"
#: Seconds that clocks may differ without being noticed.
CLOCKS_AGREE: Final = 1.0
#: The least time that calls run before they are told of as running.
LONG_SECONDS: Final = 1.0
#: What is longer ago, or later, is no time: a worker may say anything, also what is not a number.
TIMES_MOST: Final = 1e10
#: Running calls that are told of at once.
RUNNING_MOST: Final = 1000


class Stretch:
    """Short calls of one worker that have not been put on its lanes: all of them, and those that were seen."""

    __slots__ = ("begin", "busy", "calls", "end", "failed", "host", "most", "seen", "slots", "what")

    def __init__(self, host: str) -> None:
        self.host = host
        self.begin = self.end = self.busy = 0.0
        self.what = self.calls = self.seen = self.failed = self.most = 0
        self.slots = 1


class Recorder:
    """A run as it is noted from ``began_at`` (manager's clock) on."""

    def __init__(self, run: str, began_at: float) -> None:
        #: By what the run is found again.
        self.run, self.began_at = run, began_at
        self.timeline = Timeline()
        self.samples = Samples()
        #: ``library.function`` by number.
        self.names: list[str] = []
        self._numbers: dict[tuple[LibraryId, FunctionId], int] = {}
        self._behind: dict[WorkerId, float] = {}
        self._stretches: dict[WorkerId, Stretch] = {}
        self._looks = 0
        self._second = 0.0

    # ------------------------------------------------------------ what the core tells

    def ended(self, books: Books, worker: Worker, ends: Sequence[CallEnd], now: float) -> None:
        """A worker has told of these ends; its calls are in its books still."""
        if now >= self._second:
            self._second, self._looks = now + 1.0, LOOKS_MOST
        count = len(ends)
        if not count or (self._looks <= 0 and now < worker.seen_at + UNSEEN_SECONDS):
            worker.unseen += count
            return
        self._looks -= 1
        worker.seen_at = now
        stretch = self._stretches.get(worker.id)
        if stretch is None:
            stretch = self._stretches[worker.id] = Stretch(worker.info.host)
        stretch.calls += worker.unseen
        worker.unseen = 0
        first, last = ends[0], ends[-1]
        call = worker.calls.get(first.call)
        if call is None or not first.started_at:
            return  # late answers, or calls that did not start
        shift = self._shift(worker.id, last.ended_at, now) - self.began_at
        sampled = ends if count <= SAMPLED else ends[:: count // SAMPLED + 1]
        total, failed, seen = 0.0, 0, len(sampled)
        for end in sampled:
            total += end.ended_at - end.started_at
            if end.outcome and end.outcome != CANCELLED:
                failed += 1
        if total >= SINGLE_SECONDS * seen and self._looks >= count:
            self._looks -= count
            if stretch.calls:
                self._put(worker.id, stretch)  # lanes are in order of time
            del self._stretches[worker.id]
            for end in ends:
                self._note_one(books, worker, end, shift)
            return
        begin, over = first.started_at + shift, last.ended_at + shift
        if not (abs(begin) < TIMES_MOST and abs(over) < TIMES_MOST and abs(total) < TIMES_MOST):
            return
        if not stretch.seen or begin < stretch.begin:
            stretch.begin = begin
        stretch.end = max(stretch.end, over)
        stretch.calls += count
        stretch.seen += count
        stretch.busy += max(0.0, total) * count / seen
        stretch.failed += failed * count // seen
        if count > stretch.most:  # the function of the largest batch stands for all
            stretch.most, stretch.what = count, self._number(books, call.spec.library, call.spec.function)
        instance = worker.by_library.get(call.spec.library)
        stretch.slots = instance.slots if instance is not None else 1
        if stretch.end - stretch.begin >= self.pace:
            self._put(worker.id, stretch)
            del self._stretches[worker.id]

    def worker_gone(self, worker: WorkerId) -> None:
        """Its session is over."""
        self._behind.pop(worker, None)
        stretch = self._stretches.pop(worker, None)
        if stretch is not None:
            self._put(worker, stretch)
        self.timeline.worker_gone(worker)

    def sample(self, books: Books, now: float) -> None:
        """Note how many there are of what; for the timer, costs little when it is not due."""
        at = now - self.began_at
        if at < self.samples.due:
            return
        counters = books.counters
        waiting = sum(state.waiting for state in books.libraries.values()) + sum(map(len, books.parked.values()))
        running = sum(min(one.outstanding, one.running_most) for state in books.libraries.values() for one in state.instances.values())
        slots = sum(state.slots for state in books.libraries.values())
        numbers = (waiting, running, counters.returned, books.failures.calls, counters.cancelled, len(books.workers), slots)
        self.samples.add(at, numbers)

    @property
    def pace(self) -> float:
        """Seconds of short calls that become one stretch: more where there are many workers."""
        return max(0.25, len(self._stretches) / 500)

    # ------------------------------------------------------------ what is told

    def told(self, since: float) -> dict[str, Any]:
        """The recorder's part of a view; ``since`` by its own clock (seconds after ``began_at``), 0: all of it is told."""
        return {
            "run": self.run,
            "began_at": self.began_at,
            "since": since,
            "names": list(self.names),
            "sampled": ["at", "waiting", "running", "done", "failed", "cancelled", "workers", "slots"],
            "interval": self.samples.interval,
            "version": self.timeline.version,
        }

    def lanes(self, books: Books, version: int) -> list[list[Any]]:
        """``[worker, host, lane, blocks]`` of all lanes that have changed since a version."""
        for name, stretch in self._stretches.items():
            worker = books.workers.get(name)
            if worker is not None:
                stretch.calls += worker.unseen
                worker.unseen = 0
            self._put(name, stretch)
        self._stretches.clear()
        return [list(row) for row in self.timeline.since(version)]

    def running(self, books: Books, now: float) -> list[list[Any]]:
        """``[worker, call, what, since]`` of calls that have run for some time, as well as the manager knows: since they were sent."""
        found: list[list[Any]] = []
        for worker in books.workers.values():
            left = sum(one.slots for one in worker.instances.values())
            for call in worker.calls.values():
                if left <= 0 or now - call.sent_at < LONG_SECONDS:
                    break  # they stand in the order in which they were sent
                left -= call.weight
                what = self._number(books, call.spec.library, call.spec.function)
                found.append([worker.id, int(call.spec.call), what, round(call.sent_at - self.began_at, 3)])
            if len(found) >= RUNNING_MOST:
                break
        return found

    # ------------------------------------------------------------ within

    def _shift(self, worker: WorkerId, ended_at: float, now: float) -> float:
        behind = now - ended_at
        known = self._behind.get(worker)
        if known is None or behind < known:
            self._behind[worker] = known = behind
        return known if abs(known) > CLOCKS_AGREE else 0.0

    def _number(self, books: Books, library: LibraryId, function: FunctionId) -> int:
        number = self._numbers.get((library, function))
        if number is None:
            name = books.names.whole(library, function)
            if name in self.names:
                number = self.names.index(name)
            else:
                if len(self.names) >= NAMES_MOST:
                    name = OTHERS
                if name not in self.names:
                    self.names.append(name)
                number = self.names.index(name)
            if len(self._numbers) >= 10 * NAMES_MOST:
                self._numbers.clear()
            self._numbers[library, function] = number
        return number

    def _note_one(self, books: Books, worker: Worker, end: CallEnd, shift: float) -> None:
        call = worker.calls.get(end.call)
        if call is None or call.attempt != end.attempt or not end.started_at:
            return
        begin, over = end.started_at + shift, end.ended_at + shift
        if not (abs(begin) < TIMES_MOST and abs(over) < TIMES_MOST):
            return
        failed = int(end.outcome not in (RETURNED, CANCELLED))
        what = self._number(books, call.spec.library, call.spec.function)
        busy = max(0.0, over - begin)
        block = Block(round(begin, 4), round(over, 4), what, 1, round(busy, 4), failed, int(end.call))
        instance = worker.by_library.get(call.spec.library)
        self.timeline.add(worker.id, worker.info.host, block, most=max(1, instance.slots if instance is not None else 1))

    def _put(self, worker: WorkerId, stretch: Stretch) -> None:
        """Short calls go on as many lanes as were busy with them."""
        if not stretch.seen:
            return
        share = stretch.calls / stretch.seen
        stretch.busy *= share
        stretch.failed = int(stretch.failed * share)
        span = max(stretch.end - stretch.begin, 1e-4)
        lanes = min(max(1, -int(-stretch.busy // span)), stretch.slots, LANES_OF_ONE, self.timeline.lanes_each())
        begin, end = round(stretch.begin, 4), round(stretch.end, 4)
        for lane in range(lanes):
            calls = stretch.calls // lanes + (lane < stretch.calls % lanes)
            failed = stretch.failed // lanes + (lane < stretch.failed % lanes)
            if calls:
                busy = min(stretch.busy / lanes, span)
                block = Block(begin, end, stretch.what, calls, round(busy, 4), failed, 0)
                self.timeline.add(worker, stretch.host, block, most=stretch.slots)
