"""A worker of a simulation: the real cores of a worker (backlog, lifetime) over slots, files and a link that are simulated.

Theory of operation
-------------------
A `SimulatedWorker` obeys messages as `windlass.worker.main` does, with the same `Backlog` and the same `Lifetime`; in place of processes it
has `SimulatedSlots`, which run a call by planning its end. How long a call takes, and how it ends, stands in its payload (`Fate`), so it is
the same on whichever worker, in whichever attempt. Files come by `fetch`, which somebody else simulates.

What it says goes to ``tell`` at once, a message for each end, unless a turn of its loop is said to take a while (``turn_seconds``): a real
worker puts the ends of one turn into one message, so without that the manager has more to do. It is *gone* when its pilot has ended, in
whatever way, and then whatever was planned for it is pointless.
"""

from __future__ import annotations

import struct
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from simulated_clock import Clock, Meter
from windlass.messages import (
    DIED,
    NO_FILE,
    RAISED,
    RETURNED,
    CallEnd,
    CallId,
    CallRun,
    CallsEnded,
    CallsReturned,
    CancelCalls,
    Drain,
    DropFiles,
    EndDetail,
    FetchFile,
    FileFailed,
    FileHere,
    FileLost,
    FileName,
    FileRef,
    Goodbye,
    HeldCall,
    InstanceId,
    Leave,
    LibraryReady,
    LibrarySpec,
    LibraryStopped,
    Message,
    ObjectName,
    ObjectRef,
    RecallCalls,
    RunCalls,
    Serving,
    SetSlots,
    StartLibrary,
    StopLibrary,
    WantFiles,
    WorkerDraining,
    WorkerId,
    WorkerInfo,
    WorkerReport,
)
from windlass.worker.backlog import Backlog
from windlass.worker.lifetime import Decision, Lifetime
from windlass.worker.lines import Attempt

#: As `windlass.worker.main` has it.
REPORT_SECONDS: Final = 5.0
#: Seconds between two looks at the clock when nothing is near. A real worker looks every half second, as it waits for its parents too.
LOOK_SECONDS: Final = 10.0

#: How a call ends.
RETURNS, RAISES, DIES_ONCE = 0, 1, 2
_FATE: Final = struct.Struct("<dB")


class Fate(NamedTuple):
    """What becomes of a call: it runs for so many seconds, then ends so."""

    seconds: float
    how: int = RETURNS

    def payload(self) -> bytes:
        return _FATE.pack(self.seconds, self.how)


class Running:
    """A call in a slot (`windlass.worker.backlog.Running`)."""

    __slots__ = ("attempt", "call", "how", "since", "weight")

    def __init__(self, run: CallRun, now: float, how: int) -> None:
        self.call, self.attempt, self.weight, self.since, self.how = run.call, run.attempt, run.weight, now, how


class SimulatedSlots:
    """The slots of a library instance, and the queue that they claim from (`windlass.worker.lines.Instance`)."""

    __slots__ = ("busy", "count", "number", "queue", "worker")

    def __init__(self, worker: SimulatedWorker, number: InstanceId, slots: int) -> None:
        self.worker, self.number, self.count = worker, number, slots
        self.queue: deque[CallRun] = deque()
        self.busy: dict[CallId, Running] = {}

    def feed(self, calls: Sequence[CallRun]) -> int:
        self.queue.extend(calls)
        self.claim()
        return len(calls)

    def take_back(self, count: int | None) -> list[CallRun]:
        queue = self.queue
        return [queue.pop() for _ in range(len(queue) if count is None else min(count, len(queue)))]

    def running(self) -> Sequence[Running]:
        return list(self.busy.values())

    def kill_calls(self, calls: Collection[Attempt], outcome: int, detail: EndDetail | None) -> list[Attempt]:
        found = [one for call, attempt in calls if (one := self.busy.get(CallId(call))) is not None and one.attempt == attempt]
        for one in found:
            self._over(one, outcome, detail)
        return [(one.call, one.attempt) for one in found]

    def claim(self) -> None:
        """Every free slot takes a call."""
        queue, busy, worker = self.queue, self.busy, self.worker
        while queue and len(busy) < self.count:
            run = queue.popleft()
            seconds, how = _FATE.unpack(run.payload)
            now = worker.clock.now
            if how == DIES_ONCE and run.attempt > 1:
                how = RETURNS
            one = busy[run.call] = Running(run, now, how)
            worker.busy.add(run.weight)
            worker.clock.at(now + seconds, self._end, one)

    def _end(self, one: Running) -> None:
        """It comes to its end, unless it was ended before."""
        if self.busy.get(one.call) is not one or self.worker.gone:
            return
        if one.how == RETURNS:
            self._over(one, RETURNED, None)
        elif one.how == RAISES:
            self._over(one, RAISED, EndDetail(types=("builtins.ValueError", "builtins.Exception")))
        else:
            self._over(one, DIED, EndDetail(text="killed by signal 9", signal=9))

    def _over(self, one: Running, outcome: int, detail: EndDetail | None) -> None:
        del self.busy[one.call]
        worker = self.worker
        worker.busy.add(-one.weight)
        now = worker.clock.now
        worker.backlog.ended(
            self.number,
            [CallEnd(one.call, one.attempt, outcome, b"r" if outcome == RETURNED else b"", (), b"", b"", one.since, now, now, detail)],
        )
        self.claim()


class Surroundings(Protocol):
    """What is around a worker."""

    def tell(self, worker: SimulatedWorker, messages: list[Message], /) -> None:
        """Take these to the manager."""

    def fetch(self, worker: SimulatedWorker, message: FetchFile, /) -> None:
        """Bring this file; `SimulatedWorker.fetched` follows."""

    def left(self, worker: SimulatedWorker, /) -> None:
        """It has said goodbye, and its process ends."""

    def forget(self, worker: SimulatedWorker, /) -> None:
        """It is no more, in whatever way."""


class SimulatedWorker:
    """One worker. ``busy`` and ``usable`` count cores that run a call, and cores of workers that accept calls; ``start_seconds(spec)``: how
    long a library takes to start."""

    def __init__(
        self,
        name: WorkerId,
        info: WorkerInfo,
        clock: Clock,
        around: Surroundings,
        busy: Meter,
        usable: Meter,
        start_seconds: Callable[[LibrarySpec], float],
        lifetime: Lifetime | None = None,
        turn_seconds: float = 0.0,
    ) -> None:
        self.id, self.info, self.clock, self.around = name, info, clock, around
        self.busy, self.usable = busy, usable
        self.life = lifetime or Lifetime(clock.now)
        self.backlog = Backlog(self)
        self.instances: dict[InstanceId, SimulatedSlots] = {}
        self.files: set[FileName] = set()
        #: Calls that have ended here: a pilot without any was of no use.
        self.served = 0
        self.gone = False
        self._start_seconds, self._turn_seconds = start_seconds, turn_seconds
        self._ends: list[CallEnd] = []
        self._wanted: set[FileName] = set()
        self._starting = 0
        self._accepts = False

    def begin(self) -> None:
        """It has been welcomed."""
        self._accept(True)
        self.say(Serving((f"{self.info.host}:9000",)))
        self._later(REPORT_SECONDS, SimulatedWorker._report)
        self._look()

    def say(self, *messages: Message) -> None:
        """These, after the ends that have gathered."""
        if self._ends:
            self._flush()
        self.around.tell(self, list(messages))

    def _flush(self) -> None:
        ends, self._ends = self._ends, []
        if ends and not self.gone:
            self.around.tell(self, [CallsEnded(ends)])

    # ------------------------------------------------------------ messages

    def hear(self, messages: Sequence[Message]) -> None:
        """The manager says these."""
        if self.gone:
            return
        for message in messages:
            if type(message) is RunCalls:
                self.backlog.run(message.calls)
            else:
                self._hear(message)

    def _hear(self, message: Message) -> None:
        match message:
            case StartLibrary():
                slots = self.instances[message.instance] = SimulatedSlots(self, message.instance, message.slots)
                self.backlog.add(message.instance, slots, message.slots)
                self._starting += 1
                self.clock.after(self._start_seconds(message.spec), self._started, slots)
            case SetSlots() if message.instance in self.instances:
                slots = self.instances[message.instance]
                slots.count = message.slots
                self.backlog.set_slots(message.instance, message.slots)
                slots.claim()
            case StopLibrary() if message.instance in self.instances:
                del self.instances[message.instance]
                self.backlog.gone(message.instance)
                self.say(LibraryStopped(message.instance))
            case RecallCalls():
                self.backlog.recall(message.instance, message.count)
            case CancelCalls():
                self.backlog.cancel(message.calls)
            case Drain():
                self._act(self.life.drain(message.reason))
            case Leave():
                self._act(self.life.leave(message.reason))
            case FetchFile():
                self._wanted.add(message.ref.name)
                self.around.fetch(self, message)
            case FileLost():
                self._wanted.discard(message.name)
                if message.later:
                    self.backlog.give_back_for(_key(message.name), "files")
                else:
                    self.backlog.failed(_key(message.name), NO_FILE, message.text)
            case DropFiles():
                self.files.difference_update(message.names)
            case _:
                pass

    def _started(self, slots: SimulatedSlots) -> None:
        self._starting -= 1
        if self.gone or self.instances.get(slots.number) is not slots:
            return
        self.say(LibraryReady(slots.number, 1))
        self.backlog.serves(slots.number)

    def fetched(self, message: FetchFile, failure: str) -> None:
        """A file has come; or not, and why."""
        if self.gone:
            return
        ref = message.ref
        if failure:
            self.say(FileFailed(ref.name, message.source, "failed", failure))
            return
        self._wanted.discard(ref.name)
        self.files.add(ref.name)
        self.say(FileHere(ref.name, ref.size, "0" * 32))
        self.backlog.arrived(_key(ref.name))

    # ------------------------------------------------------------ what the backlog asks for (`windlass.worker.lines.Comm`)

    def ended(self, ends: list[CallEnd]) -> None:
        self.served += len(ends)
        self.life.ran(end.ended_at - end.started_at for end in ends[:8] if end.started_at)
        if not self._turn_seconds:
            self.around.tell(self, [CallsEnded(ends)])
        else:
            if not self._ends:
                self.clock.after(self._turn_seconds, self._flush)
            self._ends += ends
        if self.backlog.draining and not self.backlog.held:
            self.clock.after(0.0, self._look_now)

    def returned(self, calls: tuple[HeldCall, ...], reason: str) -> None:
        self.say(CallsReturned(calls, reason))

    def lacks_room(self, refs: Sequence[ObjectRef]) -> str:
        return ""

    def hold(self, refs: Sequence[ObjectRef]) -> list[ObjectName]:
        return []

    def release(self, refs: Sequence[ObjectRef]) -> None:
        pass

    def hold_files(self, refs: Sequence[FileRef]) -> Sequence[str]:
        missing = [ref.name for ref in refs if ref.name not in self.files]
        ask = tuple(name for name in missing if name not in self._wanted)
        if ask:
            self._wanted.update(ask)
            self.say(WantFiles(ask))
        return [_key(name) for name in missing]

    def release_files(self, refs: Sequence[FileRef]) -> None:
        pass

    # ------------------------------------------------------------ time, signals, the end

    def signal(self, name: str) -> None:
        """The batch system says that it is to go."""
        if not self.gone:
            self._act(self.life.signal(name, self.clock.now))

    def _look(self) -> None:
        if self.gone:
            return
        self._look_now()
        if not self.gone:
            self._later(self.life.next_look(self.clock.now, LOOK_SECONDS), SimulatedWorker._look)

    def _look_now(self) -> None:
        if self.gone:
            return
        now, backlog = self.clock.now, self.backlog
        oldest = max((now - one.since for one in self._running()), default=0.0) if backlog.held else 0.0
        self.life.expects(backlog.longest)
        if backlog.longest > (left := self.life.deadline - now + 1.0):
            backlog.give_back_late(left)
        self._act(self.life.look(now, held=backlog.held, oldest=oldest, starting=self._starting > 0))

    def _act(self, decision: Decision) -> None:
        if decision is Decision.DRAIN:
            self._accept(False)
            self.say(WorkerDraining(self.life.reason, self.life.seconds_left(self.clock.now)))
            self.backlog.drain()
            self.clock.after(0.0, self._look_now)
        elif decision in (Decision.FINISH, Decision.END):
            self.say(Goodbye(self.life.reason, idle=decision is Decision.FINISH))
            self.around.left(self)
            self.vanish()

    def vanish(self) -> None:
        """Its processes are no more."""
        if not self.gone:
            self.gone = True
            self._accept(False)
            self.busy.add(-sum(one.weight for one in self._running()))
            self.around.forget(self)

    def _later(self, seconds: float, what: Callable[[SimulatedWorker], None]) -> None:
        """Do this in so many seconds, if the worker is still there: what is only planned for it must not keep it in memory."""
        reference = weakref.ref(self)

        def then() -> None:
            worker = reference()
            if worker is not None:
                what(worker)

        self.clock.after(seconds, then)

    def _accept(self, accepts: bool) -> None:
        if accepts != self._accepts:
            self._accepts = accepts
            self.usable.add(self.info.resources.cores if accepts else -self.info.resources.cores)

    def _running(self) -> Iterator[Running]:
        for slots in self.instances.values():
            yield from slots.busy.values()

    def _report(self) -> None:
        if not self.gone:
            running = sum(len(slots.busy) for slots in self.instances.values())
            queued = max(0, self.backlog.held - running)
            self.say(WorkerReport(1 << 30, 0, self.life.seconds_left(self.clock.now), running, queued))
            self._later(REPORT_SECONDS, SimulatedWorker._report)


def _key(name: FileName) -> str:
    """What calls wait for, as `windlass.worker.files.key_of`."""
    return f"file {name}"
