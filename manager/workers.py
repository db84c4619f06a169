"""Workers and library instances as the manager's core knows them.

Theory of operation
-------------------
A worker's cores, memory and GPUs are lent to library instances as *slots*; `Worker.free` is what is not lent.  A call occupies
``weight`` slots of its instance from when it is sent until its end comes in, so ``outstanding`` above ``slots`` is the short queue
that waits at the worker.

An instance's life is a table: STARTING, READY, STOPPING; it ends by a message of the worker or with the worker.  ``target`` is what the
instance is to have; it is below ``slots`` while a shrink waits for calls to end, since only idle slots are taken away.

A slot has as many *places* as it runs calls at once: one, or the library's ``concurrency``.  Which slots its calls are in is not known
here, so only when there are no more calls than slots that are to stay are the others known to be idle: while an instance is to lose
slots, it has one place in each.  Nor is it known which GPUs a slot has: ``gpu_ids`` are as many as an instance may have, and its worker
sees to it that no two slots have the same one.
"""

from __future__ import annotations

import enum
from collections import deque

import msgspec

from windlass.manager.calls import Call, CallQueue
from windlass.manifests import is_file_name, unpacked_name
from windlass.messages import (
    SLOTS_MOST,
    CallId,
    CallRun,
    FunctionId,
    InstanceId,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    ObjectRef,
    PoolEnvironment,
    Resources,
    WorkerId,
    WorkerInfo,
)

#: Calls with objects that are remembered per worker when they have ended.
RECENT = 256
#: Functions are held at a worker up to this part of its pilot's memory, half of what its store takes, or so many bytes where it says none.
FUNCTIONS_PART = 8
FUNCTIONS_MOST = 64 << 20
#: An instance behind whose running calls others wait is to end one in so many ticks. They are counted, not seconds: between two ticks the
#: manager has heard what its workers had said, however long it was held up.
STILL_TICKS = 2
#: The same where calls have data that may be on its way there: it would have to be fetched again elsewhere.
STILL_TICKS_WITH_DATA = 100
#: Seconds between two ticks while there are calls.
TICK_SECONDS = 0.05
#: Round trips of fewer seconds are none, and longer ones count as so long.
AWAY_LEAST, AWAY_MOST = 0.002, 0.5


class Phase(enum.Enum):
    """Where an instance is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class Instance(msgspec.Struct, eq=False):
    """One library on one worker."""

    id: InstanceId
    library: LibraryId
    worker: WorkerId
    spec: LibrarySpec
    slots: int
    #: What a slot of it has on this worker.
    share: Resources
    phase: Phase = Phase.STARTING
    target: int = 0
    outstanding: int = 0
    gpu_ids: tuple[str, ...] = ()
    #: Calls that may run there at once: in the slots that it is to have.
    places: int = 0
    #: A `RecallCalls` is not answered yet.
    recalling: bool = False
    #: Ticks since a call of it has ended, counted while calls wait there behind others; and how many that may be.
    still: float = 0
    patience: float = STILL_TICKS
    #: Seconds that messages take there and back, as `Worker.away`.
    away: float = 0.0
    #: Whom the slots that it is to lose are for.
    promised: LibraryId = LibraryId("")
    #: Fewer slots than these would be of no use to the calls that they were claimed for.
    least: int = 1
    #: When it was last given slots.
    granted_at: float = 0.0
    idle_since: float = 0.0
    #: Calls that have ended there, and when the last one did.
    served: int = 0
    ended_at: float = 0.0
    ready: LibraryReady | None = None
    #: When it was told to start, and how many seconds later it was ready.
    begun_at: float = 0.0
    start_seconds: float = 0.0

    @property
    def serving(self) -> bool:
        """Calls may be sent to it."""
        return self.phase is Phase.READY and self.target > 0

    @property
    def running_most(self) -> int:
        """Calls that may be running: in the slots that it has."""
        return self.slots * self.spec.concurrency

    @property
    def still_most(self) -> float:
        """So many ticks may pass without an end while nothing holds the manager up."""
        return self.patience + 4 * self.away / TICK_SECONDS

    @property
    def stuck(self) -> bool:
        """What it runs takes longer than was thought: nothing is to wait behind it."""
        return self.still > self.patience and self.still > self.still_most

    def moved(self) -> None:
        """A call of it has ended, or could not be heard of before."""
        self.still, self.patience = 0, STILL_TICKS


class Claim(msgspec.Struct, frozen=True, eq=False):
    """Slots of a worker that are kept for calls which need several at once; see `windlass.manager.claims`."""

    library: LibraryId
    queue: CallQueue
    #: So many slots the library is to have there, and what each has; so many of them are for the call that is to come.
    slots: int
    share: Resources
    weight: int
    #: Since when its calls wait. What began to run before is not waited for.
    since: float

    def lacks(self, worker: Worker) -> Resources:
        """What the library does not have yet of it."""
        mine = worker.by_library.get(self.library)
        return times(self.share, max(0, self.slots - (mine.target if mine is not None else 0)))


class Worker(msgspec.Struct, eq=False):
    """One worker's standing: what it has, lends and holds."""

    id: WorkerId
    info: WorkerInfo
    joined_at: float
    #: When the pilot ends, on the manager's clock; 0: no limit.
    ends_at: float = 0.0
    #: Since when its connection is cut; 0: connected.
    cut_at: float = 0.0
    draining: str = ""
    #: Seconds that messages take there and back; 0: hardly any.
    away: float = 0.0
    #: Not empty: the batch system says that its pilot has ended, and how.
    pilot_ended: str = ""
    instances: dict[InstanceId, Instance] = msgspec.field(default_factory=dict[InstanceId, Instance])
    by_library: dict[LibraryId, Instance] = msgspec.field(default_factory=dict[LibraryId, Instance])
    calls: dict[CallId, Call] = msgspec.field(default_factory=dict[CallId, Call])
    functions: set[FunctionId] = msgspec.field(default_factory=set[FunctionId])
    #: Those that are held there as objects of so many bytes, the first one first.
    large: dict[FunctionId, int] = msgspec.field(default_factory=dict[FunctionId, int])
    #: Library versions that cannot run here, and why.
    unfit: dict[LibraryId, str] = msgspec.field(default_factory=dict[LibraryId, str])
    #: Starts of libraries that crashed or timed out here since a call of theirs has ended.
    crashes: dict[LibraryId, int] = msgspec.field(default_factory=dict[LibraryId, int])
    #: Objects of the calls that were sent last (`windlass.manager.told`).
    recent: deque[tuple[ObjectRef, ...]] = msgspec.field(default_factory=lambda: deque[tuple[ObjectRef, ...]](maxlen=RECENT))
    #: Calls chosen in this turn, sent as one message at its end.
    to_run: list[CallRun] = msgspec.field(default_factory=list[CallRun])
    #: Whom slots are kept for.
    claim: Claim | None = None
    idle_since: float = 0.0
    memory_used: int = 0
    memory_limit: int = 0
    cache_bytes: int = 0
    #: For the recorder: calls whose ends it did not look at, and when it last did.
    unseen: int = 0
    seen_at: float = 0.0
    #: Cores of calls that it runs for an earlier life of this manager, and their GPUs.
    busy: float = 0.0
    busy_gpus: int = 0

    @property
    def planned_end(self) -> float:
        """When the pilot was to end as it joined; 0: no limit. One that is told to go ends sooner, which says nothing about its calls."""
        return self.joined_at + self.info.seconds_left if self.info.seconds_left else 0.0

    @property
    def connected(self) -> bool:
        """Its connection stands."""
        return not self.cut_at

    @property
    def usable(self) -> bool:
        """It accepts calls and libraries."""
        return not self.draining and not self.cut_at

    def seconds_left(self, now: float) -> float:
        """Seconds to the pilot's end; infinite without one."""
        return self.ends_at - now if self.ends_at else float("inf")

    def free(self) -> Resources:
        """What is not lent to slots."""
        cores, memory, gpus = self.info.resources.cores, self.info.resources.memory, self.info.resources.gpus
        for instance in self.instances.values():
            cores -= instance.slots * instance.share.cores
            memory -= instance.slots * instance.share.memory
            gpus -= instance.slots * instance.share.gpus
        if self.busy:
            cores -= self.busy
            memory -= int(self.info.resources.memory * self.busy / (self.info.resources.cores or 1.0))
        return Resources(max(0.0, cores), max(0, memory), max(0, gpus - self.busy_gpus))

    def free_gpu_ids(self) -> list[str]:
        """Ids of GPUs that no instance has."""
        taken = {gpu for instance in self.instances.values() for gpu in instance.gpu_ids}
        return [gpu for gpu in self.info.gpu_ids if gpu not in taken]


def no_longer_held(worker: Worker, function: FunctionId, size: int) -> tuple[FunctionId, ...]:
    """Functions to be forgotten by a worker that gets another one, an object of so many bytes: the first ones that none of its calls names.

    Closures and methods with data in them are each a function of its own, and would fill its store for as long as it lives.
    """
    large = worker.large
    large[function] = size
    excess = sum(large.values()) - (worker.info.resources.memory // FUNCTIONS_PART or FUNCTIONS_MOST)
    gone: list[FunctionId] = []
    if excess > 0:
        named = {call.spec.function for call in worker.calls.values()} | {function}
        for key, held in large.items():
            if key not in named:
                gone.append(key)
                excess -= held
                if excess <= 0:
                    break
    for key in gone:
        del large[key]
    worker.functions.difference_update(gone)
    return tuple(gone)


def used_up(worker: Worker) -> bool:
    """Whether all of it is lent to slots."""
    return worker.free().cores < 1e-6


def absurd(info: WorkerInfo) -> str:
    """Why this cannot be what a worker has; "" when it can. The sums of placement hold for what can be, and a peer may say anything."""
    has = info.resources
    for what, number, most in (
        ("cores", has.cores, 1e6),
        ("bytes of memory", has.memory, 1 << 60),
        ("GPUs", has.gpus, 1e6),
        ("seconds left", info.seconds_left, 1e10),
    ):
        if not 0 <= number <= most:  # which a NaN is not
            return f"a worker cannot have {number} {what}"
    if has.gpus > len(info.gpu_ids):
        return f"a worker with {has.gpus} GPUs cannot have {len(info.gpu_ids)} ids of them"
    return "" if info.environment is None else _absurd_environment(info.environment)


def _absurd_environment(said: PoolEnvironment) -> str:
    """Names must say what the content is: what one worker says of an environment holds for all that have it."""
    packed, unpacked = said.packed, said.unpacked
    if not (packed.name.startswith("b3-") and is_file_name(packed.name) and unpacked.name == unpacked_name(packed.name)):
        return f"environment {unpacked.name} is not what is unpacked of {packed.name}"
    if not 0 <= packed.size <= 1 << 60 or unpacked.size != -1 or {packed.level, unpacked.level} != {"forever"}:
        return f"environment {packed.name} cannot have {packed.size} bytes and the levels {packed.level!r} and {unpacked.level!r}"
    return ""


def busy_cores(said: float, of: Resources) -> float:
    """What a worker with ``of`` says of its busy cores, as far as it can be."""
    return min(said, of.cores) if said > 0 else 0.0  # which a NaN is not


def busy_gpus(said: int, of: Resources) -> int:
    """The same of its busy GPUs."""
    return max(0, min(said, of.gpus))


def slot_share(spec: LibrarySpec, of: Resources) -> Resources:
    """What one slot of a library has on a worker with ``of``: as asked, else one core and an equal part of the memory.

    Of a worker whose memory is not known (0) no slot has any that is counted: so much memory as is there may be enough.
    """
    cores = spec.per_slot.cores or min(1.0, of.cores or 1.0)
    memory = 0
    if of.memory:
        memory = spec.per_slot.memory or (int(of.memory * cores / of.cores) if of.cores else 0)
    return Resources(cores, memory, spec.per_slot.gpus)


def times(a: Resources, count: int) -> Resources:
    """``count`` times ``a``."""
    return Resources(a.cores * count, a.memory * count, a.gpus * count)


def slots_in(share: Resources, room: Resources, most: int = 0) -> int:
    """How many slots of ``share`` fit in ``room``, at most ``most`` (0: as many as an instance may have)."""
    # A hair of slack: sums of fractions of cores and of memory must not lose a slot.
    fit = int(room.cores / share.cores + 1e-6) if share.cores else 1 << 20
    if share.memory:
        fit = min(fit, int(room.memory * 1.000001 / share.memory))
    if share.gpus:
        fit = min(fit, room.gpus // share.gpus)
    return min(fit, most or SLOTS_MOST, SLOTS_MOST)


def usual_weight(spec: LibrarySpec, needs: Resources) -> int:
    """How many slots of a library a call with ``needs`` occupies, as far as that is the same on all workers; at least 1."""
    return max(1, weight_of(needs, Resources(spec.per_slot.cores or 1.0, spec.per_slot.memory, spec.per_slot.gpus)))


def weight_of(needs: Resources, share: Resources) -> int:
    """How many slots of ``share`` a call occupies that asks for ``needs``; 0: no number of them is enough."""
    weight = 1.0
    if needs.cores > share.cores:
        weight = max(weight, needs.cores / share.cores)
    if needs.memory > share.memory > 0:  # 0: nothing is known of the worker's memory, so there is nothing to refuse on
        weight = max(weight, needs.memory / share.memory)
    if needs.gpus > share.gpus:
        if not share.gpus:
            return 0
        weight = max(weight, needs.gpus / share.gpus)
    return int(-(-(weight - 1e-6) // 1))
