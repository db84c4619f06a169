"""Library versions as the manager's core knows them.

Theory of operation
-------------------
A `LibraryState` is one version of a library: its queues of waiting calls and its instances.  Instances that could take a call are kept in
two insertion-ordered sets: ``idle`` (a slot is free) and ``roomy`` (no free slot, but the short queue at the worker has room).  Dispatch
empties ``idle`` before it touches ``roomy``, so a call never waits behind another while a slot elsewhere is free.  A third one,
``loaded``, has those where calls wait behind others, which can be recalled.  All are kept up to date by `refresh`, called with the one
instance that changed.  So the cost of a dispatched call does not depend on the number of workers.
"""

from __future__ import annotations

from bisect import insort
from itertools import takewhile

import msgspec

from windlass.manager.calls import SMOOTHING, CallQueue, Durations
from windlass.manager.heldup import AHEAD_SECONDS
from windlass.manager.kinds import Steps
from windlass.manager.prefetch import Prefetch
from windlass.manager.workers import Instance, Phase, usual_weight
from windlass.messages import InstanceId, LibrarySpec, Resources

#: While the manager is held up more work than usual waits for each slot as far as its arguments are no more bytes: of them 16 KB may go in
#: the time for which the lock is kept, all else waits for that, and manager and worker hold them meanwhile.
AHEAD_BYTES = 1 << 20
#: Calls that may wait at a worker for each slot, whatever they take.
AHEAD_MOST = 1024
#: More are sent when one in so many of them is gone.
REFILL = 3
#: Calls ahead per slot while nothing is known of durations.
AHEAD_UNKNOWN = 4
#: Starts of fewer seconds leave a fresh pilot as fresh as it was; what takes longer is allowed for with a margin.
START_LEAST = 1.0
START_MARGIN = 1.1
#: What a library could not do, of the kinds of `LibraryFailed`: a reason of its own, until it has worked somewhere.
STARTING = ("import", "context", "function", "timeout")
#: Calls that run, while others wait and none ends, count as longer than was thought after so many seconds: a connection may stand still for
#: nearly as long before that is known.
QUIET_SECONDS = 30.0
#: So much of it one turn of the manager's timer may tell: it may have been held up, and not have heard yet what has ended meanwhile.
TURN_SECONDS = 1.0
#: Seconds that no batch of calls takes.
_SECONDS_MOST = 1e12
#: Older than all versions of the manager's structure.
NEVER = -1


def rank(queue: CallQueue) -> float:
    """What a library's queues are sorted by."""
    return -queue.options.priority


def _ahead_in(seconds: float, mean: float) -> int:
    """How many calls run in so many seconds, if one takes ``mean``."""
    return AHEAD_MOST if mean * AHEAD_MOST <= seconds else int(seconds / mean)


class LibraryState(msgspec.Struct, eq=False):
    """One version of a library."""

    spec: LibrarySpec
    #: Sorted by priority, largest first. Equals take turns: who has calls left makes way for whose first waits longer (`make_way`).
    queues: list[CallQueue] = msgspec.field(default_factory=list[CallQueue])
    #: What calls in them ask for: (needs, least seconds), and what is alike.
    kinds: set[tuple[Resources, float]] = msgspec.field(default_factory=set[tuple[Resources, float]])
    #: Queues of calls that ask for nothing: only such calls wait behind others at a worker.
    plain: int = 0
    steps: Steps = msgspec.field(default_factory=Steps)
    #: Number of queues at which those without calls are looked for.
    sweep_at: int = 100
    instances: dict[InstanceId, Instance] = msgspec.field(default_factory=dict[InstanceId, Instance])
    idle: dict[InstanceId, Instance] = msgspec.field(default_factory=dict[InstanceId, Instance])
    roomy: dict[InstanceId, Instance] = msgspec.field(default_factory=dict[InstanceId, Instance])
    loaded: dict[InstanceId, Instance] = msgspec.field(default_factory=dict[InstanceId, Instance])
    #: Idle instances by when something about them changed, the newest last, once calls have been there that not each of them could take
    #: (`news`): such calls are not to be held against every idle instance again and again.
    changed: dict[InstanceId, int] = msgspec.field(default_factory=dict[InstanceId, int])
    news: int = 0
    waiting: int = 0
    running: int = 0
    done: int = 0
    #: When it was last granted slots, and when others were last told to lose some for it; 0: never.
    granted_at: float = 0.0
    taken_at: float = 0.0
    durations: Durations = msgspec.field(default_factory=Durations)
    ahead: int = AHEAD_UNKNOWN
    #: Seconds of measured work that may wait at a worker for each slot (`windlass.manager.heldup`); where messages are long on their way
    #: (`Instance.away`), so much more.
    ahead_seconds: float = AHEAD_SECONDS
    #: Round trips that a call takes beside its run, a moving mean: one, another to fetch objects that it is given, and another to hand over
    #: those that it returns, before its end is told.
    trips: float = 1.0
    prefetch: Prefetch = msgspec.field(default_factory=Prefetch)
    #: Bytes of arguments that a call carries itself, a moving mean.
    payload: float = 0.0
    #: Why it cannot start; then its calls end with this text.
    failed: str = ""
    #: Starts that crashed or timed out since a call of it has ended.
    crashes: int = 0
    removed: bool = False
    removed_at: float = 0.0
    #: Seconds that the imports of its instances took in all, and how often they were done.
    hoisted_seconds: float = 0.0
    starts: int = 0
    #: Seconds from `StartLibrary` to `LibraryReady`, a moving mean; and how many of a fresh pilot's are taken to go by with that.
    start_seconds: float = 0.0
    start_allowance: float = 0.0
    #: Placement was tried at this version of the manager's structure.
    tried: int = NEVER
    #: By kind of calls: who has anything free for them has got it after this version; and so has who could be made to give something.
    looked: dict[tuple[Resources, float], int] = msgspec.field(default_factory=dict[tuple[Resources, float], int])
    asked: dict[tuple[Resources, float], int] = msgspec.field(default_factory=dict[tuple[Resources, float], int])
    #: Slots of its instances, by what these are to have: of all, and of those that are starting.
    slots: int = 0
    coming: int = 0
    #: A call of it has ended since the last tick.
    progressed: bool = False
    #: Seconds for which calls have run and others have waited since one has ended.
    quiet: float = 0.0

    def refresh(self, instance: Instance) -> None:
        """Put an instance into the set that it belongs to now. One that is to lose slots, or is stuck, gets no calls ahead."""
        key = instance.id
        if instance.outstanding > instance.places and instance.phase is Phase.READY:
            self.loaded[key] = instance
        else:
            self.loaded.pop(key, None)
        if not instance.serving:
            self.idle.pop(key, None)
            self.roomy.pop(key, None)
        elif instance.outstanding < instance.places:
            self.roomy.pop(key, None)
            self.idle[key] = instance
            if self.news:
                self.news += 1
                self.changed.pop(key, None)
                self.changed[key] = self.news
        elif not instance.stuck and instance.target == instance.slots and self.wants_more(instance):
            self.idle.pop(key, None)
            self.roomy[key] = instance
        else:
            self.idle.pop(key, None)
            self.roomy.pop(key, None)

    def most(self, instance: Instance) -> int:
        """Calls that it is to hold: one for each place, and those ahead; of these no more than a few and as many as it has ended.

        So its queue grows in steps, each twice the one before: the calls that end first are the short ones, and tell little of the others.
        """
        places = instance.places
        ahead = places * (self.ahead if self.ahead and not instance.away else self.ahead_at(instance))  # a call less for most, at each end
        few = places * AHEAD_UNKNOWN + instance.served
        return places + (ahead if ahead < few else few)

    def wants_more(self, instance: Instance) -> bool:
        """Whether a third of what it may hold ahead is gone: to send one call for each that ends would wake both sides twice a call.

        What is on its way is not counted, nor what fetches its data: the slots do without it.
        """
        most = self.most(instance)
        ahead = min(most - instance.places, instance.places * self.ahead)
        return instance.outstanding < most - ahead // REFILL

    def ahead_at(self, instance: Instance) -> int:
        """Calls ahead for each place: with those that would be run while messages are on their way there and back, or one that fetches."""
        ahead = self.ahead
        if instance.away and self.durations.count:
            ahead = self._ahead_in(instance.away * self.trips)
        return ahead or int(self.prefetch.on)

    def _ahead_in(self, away: float = 0.0) -> int:
        """How many calls are run in the seconds that are to wait, and in those for which messages are ``away``."""
        mean, usual = self.durations.mean, AHEAD_SECONDS + away
        ahead = _ahead_in(self.ahead_seconds + away, mean)
        if self.ahead_seconds > AHEAD_SECONDS and ahead * self.payload > AHEAD_BYTES:
            return max(_ahead_in(usual, mean), int(AHEAD_BYTES / self.payload))
        return ahead

    def fetches_ahead(self, instance: Instance) -> bool:
        """Whether one waits behind each to have its data fetched, for as long as that takes to end."""
        return self.prefetch.on and not self.ahead and self.ahead_at(instance) == 1

    def make_way(self, number: int, other: CallQueue) -> None:
        """The queue of this number has taken all slots, and another one was left without: the next turn is that one's, if it is of the
        same priority, its first call has waited longer than what is left here, and its calls need no more slots: those have claims.
        """
        queue = self.queues[number]
        first, waits = queue.first(), other.first()
        if waits is None or queue.options.priority != other.options.priority:
            return
        if usual_weight(self.spec, other.needs) > usual_weight(self.spec, queue.needs):
            return
        if first is None or waits.queued_at < first.queued_at:
            del self.queues[number]
            insort(self.queues, queue, key=rank)

    def idle_for(self, queue: CallQueue) -> list[Instance]:
        """Idle instances that could take calls of a queue which not each of them can take: those that it has not passed by as they are."""
        if queue.passed_at < 0:
            return list(self.idle.values())
        newest = takewhile(lambda one: one[1] > queue.passed_at, reversed(self.changed.items()))
        return [self.idle[key] for key, _ in newest if key in self.idle]

    def pass_by(self, queue: CallQueue) -> None:
        """A queue has been held against all of those, and calls are left."""
        self.news = self.news or 1
        queue.passed_at = self.news

    def learn(self, total: float, number: int, longest: float, moved: int = 0, data: int = 0, payload: int = 0) -> None:
        """Take in run times; the number of calls ahead follows from their mean. ``moved``: arguments and results with objects; ``data``:
        calls with any, or with files; ``payload``: bytes of arguments that went with the calls.
        """
        part = SMOOTHING * number
        if part > 1.0:
            part = 1.0
        self.payload += (payload / number - self.payload) * part
        if moved or self.trips > 1.0:
            self.trips += (1 + moved / number - self.trips) * part
        if not total < _SECONDS_MOST:
            return  # a worker may say anything
        self.durations.add(total, number, longest)
        self._look_ahead(changed=self.prefetch.ended(number, data, self.durations.mean, self.slots))

    def look_ahead(self, seconds: float) -> None:
        """So many seconds of work may wait for each slot from now on."""
        self.ahead_seconds = seconds
        if self.durations.count:
            self._look_ahead()

    def _look_ahead(self, *, changed: bool = False) -> None:
        ahead = self._ahead_in()
        if ahead != self.ahead or changed:
            self.ahead = ahead
            for instance in self.instances.values():
                if instance.id in self.roomy or instance.id in self.idle or instance.outstanding >= instance.places:
                    self.refresh(instance)

    def learn_start(self, seconds: float) -> bool:
        """An instance was ready so long after it was told to start; True: so much is to be allowed for that as was not before.

        The first ones are cold, on a busy file system: later ones count more.
        """
        self.starts += 1
        mean = self.start_seconds = self.start_seconds + max(1 / self.starts, SMOOTHING) * (seconds - self.start_seconds)
        if self.start_allowance / 2 <= mean <= self.start_allowance or max(mean, self.start_allowance) < START_LEAST:
            return False
        self.start_allowance = START_MARGIN * mean if mean >= START_LEAST else 0.0  # in steps: each costs a look at all queues
        return True

    def works_elsewhere(self, kind: str) -> bool:
        """Whether an instance of it has done what another one could not (a ``kind`` of `LibraryFailed`): ended calls, or become ready where
        that says as much. It does of what a zygote does; of a context that each slot computes nothing is known before a call has ended.
        """
        telling = bool(self.done) or (kind in STARTING and (kind != "context" or self.spec.share_context))
        return any(one.served or (telling and one.phase is Phase.READY) for one in self.instances.values())

    def call_seconds(self) -> float:
        """Seconds that its calls are expected to take of which nobody has said it; 0: nothing is known.

        Those that run and do not end tell that they are long, before the first of them has ended: as much as those that have ended, of whom
        the mean remembers about the newest ten, tell that they are short.
        """
        mean, quiet = self.durations.mean, self.quiet
        if quiet < QUIET_SECONDS or not self.durations.count or quiet <= mean:
            return mean
        ended = min(self.durations.count, 1 / SMOOTHING)
        out = max(1, min(self.running, self.slots * self.spec.concurrency))
        return (ended * mean + out * quiet) / (ended + out)

    def note_quiet(self, seconds: float, connected: bool) -> None:
        """So much time has passed since the last turn of the manager's timer. ``connected``: its calls run where they could be heard of."""
        if self.progressed or not (self.waiting and self.running):
            self.quiet = 0.0
        elif connected:
            self.quiet += min(seconds, TURN_SECONDS)

    def capacity(self) -> int:
        """Calls that its instances would hold when full."""
        # Asked by the program's threads too, while the manager's goes on.
        return sum(one.places * (1 + self.ahead_at(one)) for one in list(self.instances.values()) if one.serving)
