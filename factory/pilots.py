"""The pilots of a pool: their states as a table, and the register of them.

Theory of operation
-------------------
Two witnesses speak of a pilot.  The *batch system* lists it (queued, running, ending, held, ended) in the answer to a query, seldom
and late.  The *manager* sees it connected or not, at once.  What each may change is the table `NEXT`:

* The manager is the better witness that a pilot lives: a connected one that is listed as queued, held or not at all goes on serving.
* The batch system is the only witness that it ended.  A pilot that has disconnected is only *running* again.
* Unknown is not gone: a query without an answer is no event.  A pilot that an answer does not list is *missing*, and only the second
  time in a row, and without a connection, is it over; one that no answer has listed yet, and that has not served, only when it is
  `UNLISTED` seconds old, as answers may be older than it. Where answers have turned out to be fresh that is `UNLISTED_FRESH`, and less
  where the batch system cannot have older ones (`PoolDefaults.unlisted`).
* *Ending* (Slurm's COMPLETING) masks what comes: the end, or the queue again.
* A running pilot that is queued again was preempted: that incarnation has ended, the same job waits for its next start.

A submission that got no answer may have made pilots.  It is kept as `Unsure`, counted as so many queued pilots, until a query shows
pilots with its ticket, or two queries have shown none, the last one as long after it was given up as for a pilot that no answer has listed.
What turns up later still is adopted, and so is what an earlier life of the factory left.

The register hands each end of an incarnation out once, as an `Ending`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from windlass.addresses import is_named
from windlass.factory.backend import RESTART_MARK, UNLISTED, Cause, JobId, Listed, PilotState, pilot_word, split_pilot_word
from windlass.factory.history import LASTED, PROVEN
from windlass.messages import CANNOT_SERVE, PilotId, PilotSeen

#: Queries in a row that do not list a pilot before it counts as gone.
MISSES: Final = 2
#: The same where an answer has had a pilot that was younger, and none has lacked one that a later one had: sites may forget at once what
#: has ended, and each quick death would be waited for.
UNLISTED_FRESH: Final = 60.0
#: So many submissions must have shown that: an answer from a cache is fresh by chance now and then.
FRESH_OF: Final = 3
#: Seconds after which a submission that was not even sent is repeated, at the earliest: what kept it may last.
SETTLE: Final = 30.0
#: A pilot that was asked to end and is still there is asked again after this long.
ASK_AGAIN: Final = 120.0


#: Nobody can say where pilots write.
NO_LOGS: Final[Mapping[JobId, str]] = {}


class Phase(StrEnum):
    """Where a pilot stands."""

    QUEUED = "queued"
    RUNNING = "running"  # by the batch system; not connected
    SERVING = "serving"  # connected to the manager
    LEAVING = "leaving"  # the manager was asked to drain it
    CANCELLING = "cancelling"  # the batch system was asked to end it
    ENDING = "ending"
    HELD = "held"
    ENDED = "ended"


class Event(StrEnum):
    """What may befall a pilot."""

    LISTED_QUEUED = "listed queued"
    LISTED_RUNNING = "listed running"
    LISTED_ENDING = "listed ending"
    LISTED_HELD = "listed held"
    LISTED_ENDED = "listed ended"
    MISSING = "missing"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    RELEASED = "released"
    CANCELLED = "cancelled"


def _table() -> dict[tuple[Phase, Event], Phase]:
    p, e = Phase, Event
    listed = (e.LISTED_QUEUED, e.LISTED_RUNNING, e.LISTED_ENDING, e.LISTED_HELD, e.LISTED_ENDED, e.MISSING)
    by_listing: dict[Phase, tuple[Phase, ...]] = {
        # how listed:  queued        running       ending        held          ended    missing twice
        p.QUEUED: (p.QUEUED, p.RUNNING, p.ENDING, p.HELD, p.ENDED, p.ENDED),
        p.RUNNING: (p.QUEUED, p.RUNNING, p.ENDING, p.HELD, p.ENDED, p.ENDED),
        p.SERVING: (p.SERVING, p.SERVING, p.ENDING, p.SERVING, p.ENDED, p.SERVING),
        p.LEAVING: (p.QUEUED, p.LEAVING, p.ENDING, p.HELD, p.ENDED, p.ENDED),
        # Asked to end: that it is still listed says only that it has not happened yet.
        p.CANCELLING: (p.CANCELLING, p.CANCELLING, p.CANCELLING, p.CANCELLING, p.ENDED, p.ENDED),
        p.ENDING: (p.QUEUED, p.RUNNING, p.ENDING, p.HELD, p.ENDED, p.ENDED),
        p.HELD: (p.QUEUED, p.RUNNING, p.ENDING, p.HELD, p.ENDED, p.ENDED),
    }
    table = {(phase, event): after for phase, row in by_listing.items() for event, after in zip(listed, row, strict=True)}
    table |= {
        (p.QUEUED, e.CONNECTED): p.SERVING,  # it said hello before the batch system was asked again
        (p.RUNNING, e.CONNECTED): p.SERVING,
        (p.SERVING, e.CONNECTED): p.SERVING,
        (p.LEAVING, e.CONNECTED): p.LEAVING,
        (p.CANCELLING, e.CONNECTED): p.CANCELLING,
        (p.ENDING, e.CONNECTED): p.ENDING,
        (p.HELD, e.CONNECTED): p.SERVING,
        (p.SERVING, e.DISCONNECTED): p.RUNNING,
        (p.LEAVING, e.DISCONNECTED): p.LEAVING,
        (p.CANCELLING, e.DISCONNECTED): p.CANCELLING,
        (p.ENDING, e.DISCONNECTED): p.ENDING,
        (p.SERVING, e.RELEASED): p.LEAVING,
        (p.LEAVING, e.RELEASED): p.LEAVING,
        (p.CANCELLING, e.RELEASED): p.LEAVING,  # it serves all the same: nobody may have heard that it was to end
        (p.QUEUED, e.CANCELLED): p.CANCELLING,
        (p.RUNNING, e.CANCELLED): p.CANCELLING,
        (p.SERVING, e.CANCELLED): p.CANCELLING,
        (p.LEAVING, e.CANCELLED): p.CANCELLING,
        (p.CANCELLING, e.CANCELLED): p.CANCELLING,
        (p.ENDING, e.CANCELLED): p.CANCELLING,
        (p.HELD, e.CANCELLED): p.CANCELLING,
    }
    return table


#: What it lacks is refused, and then nothing has changed. Nothing leads out of `Phase.ENDED`.
NEXT: Final[Mapping[tuple[Phase, Event], Phase]] = _table()

EVENT_OF: Final[Mapping[Listed, Event]] = {
    Listed.QUEUED: Event.LISTED_QUEUED,
    Listed.RUNNING: Event.LISTED_RUNNING,
    Listed.ENDING: Event.LISTED_ENDING,
    Listed.HELD: Event.LISTED_HELD,
    Listed.ENDED: Event.LISTED_ENDED,
}


def _event_of(listed: Listed, pilot: Pilot) -> Event:
    """What this listing is to the pilot: one that another cluster has waits there until it has connected, for all that is known."""
    if listed is Listed.ELSEWHERE:
        return Event.LISTED_RUNNING if pilot.served else Event.LISTED_QUEUED
    return EVENT_OF[listed]


#: The reason of an end that only an answer without the pilot tells of.
VANISHED: Final = "the batch system does not know it any more"
#: The reason of an end that is nobody's doing but the pilot's own, though nothing went wrong by its exit status.
LEFT: Final = "it left by itself, with exit status 0, before it served"
#: As well, on a host that programs have blocked.
BLOCKED: Final = "it left before it served, as programs have blocked its host"
#: Ends that say nothing against the pilot, though it never served.
BLAMELESS: Final = frozenset({Cause.PREEMPTED, Cause.CANCELLED, Cause.NODE})


def _whose(pilot: PilotId, node: str) -> str:
    return f"pilot {pilot}{f' on {node}' if node else ''}"


@dataclass(slots=True)
class Pilot:
    """One pilot in its current incarnation. Times are the caller's ``now``."""

    job: JobId
    ticket: str = ""
    restart: int = 0
    phase: Phase = Phase.QUEUED
    since: float = 0.0
    #: When it was submitted, or found.
    made_at: float = 0.0
    #: An earlier life of the factory submitted it: it may have served then.
    found: bool = False
    #: Seconds that it may run, where that is not what the pool says; 0: the pool's walltime.
    walltime: float = 0.0
    #: When it was first heard to run, in this incarnation.
    started_at: float = math.inf
    node: str = ""
    reason: str = ""
    #: Why it is held, as far as is known: how the batch system calls the end that follows says nothing.
    held: str = ""
    #: Where its output is; "": nobody can say.
    log: str = ""
    connected: bool = False
    #: It has been connected, in this incarnation.
    served: bool = False
    served_at: float = -math.inf
    #: Starts of earlier incarnations in a row that came to nothing.
    vain: int = 0
    draining: bool = False
    #: It has served, and the manager does not know it any more: it was silent for too long, or it is about to end.
    forgotten: bool = False
    #: What it came to has been counted, for this reason; "": it has not.
    charge: str = ""
    running_calls: int = 0
    #: Idle for so long when the manager last spoke, and when that was: it speaks when something changes.
    idle_seconds: float = 0.0
    heard_at: float = math.inf
    misses: int = 0
    #: Those of them in which it had no connection either.
    missed_alone: int = 0
    #: An answer has had it.
    listed: bool = False
    #: When the factory last asked for its end, and whether it did at all.
    asked_at: float = 0.0
    asked: bool = False

    @property
    def word(self) -> PilotId:
        return pilot_word(self.job, self.restart)

    @property
    def whose(self) -> str:
        """Of whom it is told what happens to it."""
        return _whose(self.word, self.node)

    @property
    def coming(self) -> bool:
        """It serves or will: it counts against demand."""
        return self.phase in (Phase.QUEUED, Phase.RUNNING, Phase.SERVING) and not self.draining and not self.forgotten

    @property
    def is_cut(self) -> bool:
        """It has lost its connection, and the manager waits for it: what it ran goes on, for all that is known."""
        runs = self.phase in (Phase.RUNNING, Phase.LEAVING, Phase.CANCELLING)
        return runs and self.served and not self.connected and not self.forgotten

    def may_be_asked_again(self, now: float) -> bool:
        """Its end, if it was asked for, is not just about to come, and costs no call."""
        asked_lately = self.asked and now - self.asked_at < ASK_AGAIN
        return not asked_lately and not self.running_calls and not self.is_cut

    def serves_well(self, now: float) -> bool:
        """It has served for long enough to show that its node can."""
        return self.phase is Phase.SERVING and not self.draining and now - self.since >= PROVEN

    def idle_for(self, now: float) -> float:
        """Seconds that it has been connected without calls."""
        return 0.0 if self.running_calls else self.idle_seconds + max(0.0, now - self.heard_at)

    def apply(self, event: Event, now: float) -> bool:
        """Follow the table; False, and nothing has changed, where it has no row."""
        after = NEXT.get((self.phase, event))
        if after is None:
            return False
        if after is not self.phase:
            self.phase, self.since = after, now
            if after in (Phase.RUNNING, Phase.SERVING):
                self.started_at = min(self.started_at, now)
        return True

    def lasted(self, now: float) -> bool:
        """It has served for so long that its end says nothing of the next one."""
        return self.served and now - self.served_at >= LASTED

    def ran(self, now: float) -> float:
        """Seconds that this incarnation has run, as far as is known."""
        return max(0.0, now - self.started_at)


@dataclass(frozen=True, slots=True)
class Ending:
    """An incarnation of a pilot has ended."""

    job: JobId
    pilot: PilotId
    reason: str
    node: str
    made_at: float
    #: It died at start: it never served, and not because someone ended it.
    failed: bool
    #: The job is out of the batch system (False: it waits for its next start).
    gone: bool
    #: Seconds that it has run, as far as is known.
    ran: float = 0.0
    log: str = ""
    ticket: str = ""
    cause: Cause = Cause.UNKNOWN
    exit_status: int | None = None
    #: Not empty: its death at start had been counted before, for this reason.
    charge: str = ""
    #: Its node could not serve, and nobody had asked it to end.
    troubled: bool = False
    #: Somebody else cancelled it before it had served for long, or it lost its node before it served at all.
    taken: bool = False
    #: When it first served; -inf: it never did.
    served_at: float = -math.inf
    #: With this one, so many starts of its job in a row have come to nothing.
    vain: int = 0

    @property
    def whose(self) -> str:
        """Of whom it is told how it ended."""
        return _whose(self.pilot, self.node)

    @property
    def telling(self) -> bool:
        """Its last words may say why it ended."""
        return self.failed or bool(self.charge) or (self.cause in (Cause.EXIT, Cause.SIGNAL) and self.exit_status != 0)


@dataclass(slots=True)
class Unsure:
    """A submission without an answer."""

    ticket: str
    count: int
    since: float
    looks: int = 0
    #: When it was given up, though it may be carried out all the same; -inf: it was not even sent.
    given_up: float = -math.inf


@dataclass(slots=True)
class Fleet:
    """The register of a pool's pilots: all that are not known to have ended."""

    pilots: dict[JobId, Pilot] = field(default_factory=dict[JobId, Pilot])
    unsure: dict[str, Unsure] = field(default_factory=dict[str, Unsure])
    #: Seconds that pilots of a submission may run, where that is not what the pool says, by ticket: also of what turns up late.
    walltimes: dict[str, float] = field(default_factory=dict[str, float])
    endings: list[Ending] = field(default_factory=list[Ending])
    #: Nodes (maybe "") of pilots that connected for the first time, for the history.
    newly_served: list[str] = field(default_factory=list[str])
    #: Nodes on which pilots serve, learned after they connected.
    nodes_learned: list[str] = field(default_factory=list[str])
    #: Hosts that programs have blocked, as the manager last said.
    blocked: tuple[str, ...] = ()
    #: Until then pilots that the manager does not know may be on their way back to it.
    patient_until: float = -math.inf
    #: As `UNLISTED`, by what the batch system is.
    unlisted: float = UNLISTED
    #: Submissions whose pilots an answer had soon after; and whether answers have lacked a pilot that they had later.
    young: set[str] = field(default_factory=set[str])
    old: bool = False
    #: The last pilots that were over although no answer had had them.
    missed: deque[JobId] = field(default_factory=lambda: deque[JobId](maxlen=500))

    # ---------------------------------------------------------------- what the factory did

    def submitting(self, ticket: str, count: int, now: float, walltime: float = 0.0) -> None:
        """A submission is being sent, and may have happened until it is answered; ``walltime`` (seconds): where it is not the pool's."""
        self.unsure[ticket] = Unsure(ticket, count, now)
        if walltime:
            self.walltimes[ticket] = walltime

    def submitted(self, ticket: str, jobs: Iterable[JobId], now: float, logs: Mapping[JobId, str] = NO_LOGS) -> None:
        """It was accepted; ``logs``: where they will write."""
        self.unsure.pop(ticket, None)
        walltime = self.walltimes.get(ticket, 0.0)
        for job in jobs:
            old = self.pilots.get(job)
            if old is not None and old.ticket != ticket and not old.connected:
                # The batch system has lost its state, and its ids begin anew: what was called so is over.
                self._end(old, Event.LISTED_ENDED, VANISHED, Cause.UNKNOWN, None, now)
            self.pilots.setdefault(job, Pilot(job, ticket, since=now, made_at=now, walltime=walltime, log=logs.get(job, "")))

    def not_submitted(self, ticket: str) -> None:
        """It was refused: there are no such pilots."""
        self.unsure.pop(ticket, None)
        self.walltimes.pop(ticket, None)

    def unanswered(self, ticket: str, now: float) -> None:
        """It was sent, and is given up: a batch system that wakes up may still take it, and answers may be older than it for some time."""
        if ticket in self.unsure:
            self.unsure[ticket].given_up = now

    def asked(self, jobs: Iterable[JobId], event: Event, now: float) -> None:
        """The end of these was asked for, of the manager (RELEASED) or of the batch system (CANCELLED)."""
        for job in jobs:
            pilot = self.pilots.get(job)
            if pilot is not None and pilot.apply(event, now):
                pilot.asked, pilot.asked_at = True, now

    # ---------------------------------------------------------------- what the batch system says

    def listed(self, states: Sequence[PilotState], now: float) -> None:
        """An answer to a query: all pilots of the factory that the batch system knows."""
        seen: set[JobId] = set()
        tickets: set[str] = set()
        for state in states:
            seen.add(state.job)
            tickets.add(state.ticket)
            pilot = self.pilots.get(state.job)
            if pilot is None:
                found = state.ticket not in self.unsure
                if found and state.listed is Listed.ENDED:
                    continue  # of an earlier life, or ended long ago
                walltime = self.walltimes.get(state.ticket, 0.0)
                pilot = Pilot(state.job, state.ticket, state.restart or 0, since=now, made_at=now, found=found, walltime=walltime)
                self.old = self.old or state.job in self.missed
                pilot.asked = found and state.listed is Listed.ENDING  # perhaps by the earlier life, which is nothing against anybody
                self.pilots[state.job] = pilot
            elif not pilot.listed:
                self._first_listed(pilot, now)
            self._one_listed(pilot, state, now)
        unlisted = self._unlisted
        for pilot in [pilot for job, pilot in self.pilots.items() if job not in seen]:
            pilot.misses += 1
            pilot.missed_alone = 0 if pilot.connected else pilot.missed_alone + 1
            expected = pilot.listed or pilot.served or pilot.phase is Phase.CANCELLING or now - pilot.made_at >= unlisted
            if pilot.missed_alone >= MISSES and expected:
                if not pilot.listed:
                    self.missed.append(pilot.job)
                self._end(pilot, Event.MISSING, VANISHED, Cause.UNKNOWN, None, now)
        for unsure in list(self.unsure.values()):
            unsure.looks += 1
            settled = unsure.looks >= MISSES and now - unsure.since >= SETTLE and now - unsure.given_up >= unlisted
            if unsure.ticket in tickets or settled:
                del self.unsure[unsure.ticket]

    @property
    def _unlisted(self) -> float:
        """Seconds for which an answer may lack what was submitted, by what is known of such answers."""
        if self.old:
            return UNLISTED
        return min(self.unlisted, UNLISTED_FRESH) if len(self.young) >= FRESH_OF else self.unlisted

    def _first_listed(self, pilot: Pilot, now: float) -> None:
        """How old answers may be shows in when they first have a pilot."""
        self.old = self.old or pilot.misses >= MISSES
        if now - pilot.made_at < UNLISTED_FRESH:
            self.young.add(pilot.ticket)

    def _one_listed(self, pilot: Pilot, state: PilotState, now: float) -> None:
        pilot.misses, pilot.missed_alone, pilot.listed = 0, 0, True
        if state.restart is not None and state.restart > pilot.restart:
            self._restarted(pilot, state.restart, state.reason, now)
        elif state.restart is not None and state.restart < pilot.restart:
            return  # about an incarnation that is over
        elif state.restart is None and state.listed is Listed.QUEUED and not pilot.connected and self._has_run(pilot):
            self._restarted(pilot, pilot.restart + 1, state.reason, now)
        if pilot.served and state.node and not pilot.node:
            self.nodes_learned.append(state.node)
        pilot.node = state.node or pilot.node
        pilot.log = state.log or pilot.log
        pilot.reason = state.reason
        if state.listed is Listed.HELD:
            pilot.held = f"held: {state.reason}"
        elif state.listed in (Listed.QUEUED, Listed.RUNNING, Listed.ELSEWHERE):
            pilot.held = ""
        event = _event_of(state.listed, pilot)
        if event is Event.LISTED_ENDED:
            self._end(pilot, event, state.reason, state.cause, state.exit_status, now)
        else:
            pilot.apply(event, now)

    @staticmethod
    def _has_run(pilot: Pilot) -> bool:
        return pilot.phase in (Phase.RUNNING, Phase.ENDING) or (pilot.phase is Phase.LEAVING)

    def _restarted(self, pilot: Pilot, restart: int, reason: str, now: float) -> None:
        """The incarnation that the register knows is over; the job goes on."""
        why = f"queued again by the batch system: {reason}" if reason else "queued again by the batch system"
        pilot.vain = 0 if pilot.served else pilot.vain + restart - pilot.restart
        self._over(pilot, why, Cause.PREEMPTED, None, now, failed=False, gone=False)
        pilot.started_at = math.inf
        cancelling = pilot.phase is Phase.CANCELLING
        pilot.restart, pilot.connected, pilot.served, pilot.draining, pilot.running_calls = restart, False, False, False, 0
        pilot.forgotten, pilot.charge, pilot.held, pilot.served_at = False, "", "", -math.inf  # that was the incarnation before
        if not cancelling:
            pilot.phase, pilot.since, pilot.asked, pilot.node = Phase.QUEUED, now, False, ""

    def _end(self, pilot: Pilot, event: Event, reason: str, cause: Cause, exit_status: int | None, now: float) -> None:
        phase = pilot.phase
        if not pilot.apply(event, now) or pilot.phase is not Phase.ENDED:
            return
        words = reason or (cause.value if exit_status is None else f"exit status {exit_status}")
        asked = pilot.asked or bool(pilot.charge) or phase is Phase.CANCELLING
        blameless = pilot.served or asked or cause in BLAMELESS
        if exit_status == 0 and not blameless:
            # On a blocked host it was sent away as soon as it came, which the manager, who speaks now and then, may never have told. Else
            # one after the other would be started, each to leave as well.
            blocked = any(is_named(pilot.node, name) for name in self.blocked)
            words = BLOCKED if blocked else LEFT
            blameless = pilot.found or blocked or bool(self.blocked and not pilot.node)
        # It may have been connected for so short a time that the manager never told.
        troubled = exit_status == CANNOT_SERVE and not asked
        taken = not asked and ((cause is Cause.CANCELLED and not pilot.lasted(now)) or (cause is Cause.NODE and not pilot.served))
        failed = not (blameless or troubled)
        self._over(pilot, words, cause, exit_status, now, failed=failed, gone=True, troubled=troubled, taken=taken)
        del self.pilots[pilot.job]

    def _over(
        self,
        pilot: Pilot,
        reason: str,
        cause: Cause,
        exit_status: int | None,
        now: float,
        *,
        failed: bool,
        gone: bool,
        troubled: bool = False,
        taken: bool = False,
    ) -> None:
        self.endings.append(
            Ending(
                pilot.job,
                pilot.word,
                pilot.held or reason,
                pilot.node,
                pilot.made_at,
                failed,
                gone,
                ran=pilot.ran(now),
                log=pilot.log,
                ticket=pilot.ticket,
                cause=cause,
                exit_status=exit_status,
                charge="" if pilot.served else pilot.charge,
                troubled=troubled,
                taken=taken,
                served_at=pilot.served_at,
                vain=0 if gone else pilot.vain,
            )
        )

    # ---------------------------------------------------------------- what the manager says

    def seen(self, seen: Iterable[PilotSeen], now: float, heard_at: float | None = None) -> None:
        """All pilots of this pool that have a standing with the manager; a pilot of several nodes comes several times.

        ``heard_at``: when the manager said so; None: now.
        """
        heard_at = now if heard_at is None else heard_at
        first: dict[PilotId, PilotSeen] = {}
        by_word: dict[PilotId, list[PilotSeen]] = {}  # of several nodes
        for one in seen:
            if one.pilot in first:
                by_word.setdefault(one.pilot, [first[one.pilot]]).append(one)
            else:
                first[one.pilot] = one
            if one.connected and RESTART_MARK in one.pilot:
                job, restart = split_pilot_word(one.pilot)
                pilot = self.pilots.get(job)
                if pilot is not None and restart > pilot.restart:
                    self._restarted(pilot, restart, "", now)
        for pilot in self.pilots.values():
            word = pilot.word
            only = first.get(word)
            if only is not None and only.connected and pilot.connected and pilot.phase is Phase.SERVING and word not in by_word:
                # Nearly all of thousands, several times a second: as below, where nothing has happened.
                pilot.running_calls, pilot.idle_seconds, pilot.heard_at = only.running, only.idle_seconds, heard_at
                pilot.draining, pilot.forgotten = only.draining, False
                continue
            nodes = [one for one in by_word.get(word, () if only is None else (only,)) if one.connected]
            pilot.connected = bool(nodes)
            pilot.forgotten = pilot.served and only is None and now >= self.patient_until
            pilot.running_calls = sum(one.running for one in nodes)
            pilot.idle_seconds, pilot.heard_at = min((one.idle_seconds for one in nodes), default=0.0), heard_at
            pilot.draining = bool(nodes) and all(one.draining for one in nodes)
            pilot.apply(Event.CONNECTED if nodes else Event.DISCONNECTED, now)
            if nodes and not pilot.served:
                pilot.served, pilot.served_at = True, now
                self.newly_served.append(pilot.node)

    # ---------------------------------------------------------------- counts

    def promised(self, now: float, patience: float) -> tuple[int, float]:
        """Pilots that do not serve yet and will, and when that number falls by itself.

        One that has waited in the queue for longer than ``patience`` seconds is counted on no more.
        """
        coming = [pilot for pilot in self.pilots.values() if pilot.coming and not pilot.connected]
        times = [pilot.made_at + patience if pilot.phase is Phase.QUEUED else math.inf for pilot in coming]
        times += [unsure.since + patience for unsure in self.unsure.values() for _ in range(unsure.count)]
        waiting = [time for time in times if time > now]
        return len(waiting), min(waiting, default=math.inf)

    @property
    def unsure_count(self) -> int:
        return sum(unsure.count for unsure in list(self.unsure.values()))

    def unsure_seconds(self, walltime: float) -> float:
        """Seconds that those of unsure submissions may run, all together; ``walltime``: the pool's."""
        return sum(unsure.count * self.walltimes.get(unsure.ticket, walltime) for unsure in self.unsure.values())

    @property
    def live(self) -> int:
        """All that exist or may exist: what ``max_pilots`` bounds."""
        return len(self.pilots) + self.unsure_count

    def counts(self) -> dict[Phase, int]:
        """Pilots by phase; those of unsure submissions count as queued."""
        counts: dict[Phase, int] = {phase: 0 for phase in Phase if phase is not Phase.ENDED}
        for pilot in list(self.pilots.values()):  # a copy: other threads ask for the status
            counts[pilot.phase] += 1
        counts[Phase.QUEUED] += self.unsure_count
        return counts

    def check(self) -> None:
        """Invariants between the collections; raises AssertionError."""
        for job, pilot in self.pilots.items():
            assert pilot.job == job
            assert pilot.phase is not Phase.ENDED, f"{job} has ended and is still registered"
            assert pilot.served or not pilot.connected, f"{job} is connected and has not served"
            assert pilot.phase is not Phase.SERVING or pilot.connected, f"{job} serves without a connection"
        for ticket, unsure in self.unsure.items():
            assert unsure.ticket == ticket
            assert unsure.count > 0
