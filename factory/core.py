"""The factory's core: what has happened in, what to do next out. Pure; `windlass.factory.factory` is its shell.

Theory of operation
-------------------
The core holds a pool's register of pilots (`Fleet`), its `History`, the budget of commands, and the newest `Demand`.  The shell asks
`step(now)` for one instruction at a time, carries it out, and tells the result, as each result changes what is to be done next:

==========  ==============================================  =========================================
`Query`     ask the batch system about all pilots           `listed` or `unreachable`
`Submit`    submit so many alike                            `submitted`, `rejected`, `not_now`, `over_limit` or `unreachable`
`Cancel`    end these                                       `cancelled` or `unreachable`
`Release`   ask the manager to drain these                  (nothing: the register has noted it)
`EndAll`    end every pilot with the factory's tag          `ended_all` or `unreachable`
==========  ==============================================  =========================================

The first instruction is a query, so that pilots of an earlier life are counted before any are submitted.  A query is due every
``query_interval`` while there are pilots, at five times the last one's duration at most as often, less often where submissions need the
budget (`CommandBudget.query_pace`), and at once when the backend says that something changed.  While every pilot is connected a query
could tell nothing that the connections do not, so it comes ten times more seldom, until a connection is cut or something is asked for; and
so it does for an hour where pilots have vanished before they served and there are no others, as they may turn up again.

Closing goes through three steps: what is not connected is cancelled; what is connected is released and may finish what runs, also while
its connection is cut and the manager waits for it; when all are gone, or the time given is over, `EndAll`; then `finished`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from windlass.factory.backend import CommandLimits, JobId, PilotRequest, PilotState, Tickets, split_pilot_word, with_walltime
from windlass.factory.history import OWN_START_BACKOFF, START_BACKOFF, TROUBLE_BACKOFF, CommandBudget, History
from windlass.factory.pilots import NO_LOGS, VANISHED, Ending, Event, Fleet, Phase, Pilot
from windlass.factory.planner import Actions, Promise, plan
from windlass.factory.pool import PoolConfig
from windlass.factory.spending import core_seconds
from windlass.factory.telling import Telling
from windlass.messages import Demand, PilotId, PoolName, PoolReport

#: A query may take a fifth of the time, at most.
SLOW_FACTOR: Final = 5.0
#: While every pilot is connected, connections tell what a query would, so that there are so many times fewer.
CALM_FACTOR: Final = 10.0
#: Batch systems with quicker answers than this tell the end of a pilot soon enough for closing to wait for it.
PROMPT: Final = 5.0
#: Seconds for which pilots that seem never to have been in the batch system are looked for: it may have answered from what it knew before.
LOOKED_FOR: Final = 3600.0
#: What `EndAll` costs: some batch systems must be asked for the ids first.
END_ALL: Final = ("query", "cancel")
#: Tries of the last command of all, and the seconds between them: a program that ends does not wait for minutes.
LAST_TRIES: Final = 3
LAST_PAUSE: Final = 3.0
#: Seconds that pilots have to find a manager that was started anew, before they count as ones that it does not know.
ANEW_PATIENCE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Query:
    """Ask the batch system about all pilots."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Submit so many pilots, alike but for their ids."""

    request: PilotRequest
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End these."""

    jobs: tuple[JobId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Ask the manager to drain these."""

    pilots: tuple[PilotId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class EndAll:
    """End every pilot with the factory's tag."""


Instruction = Query | Submit | Cancel | Release | EndAll


@dataclass(slots=True)
class FactoryCore:
    """One pool of one factory."""

    pool: PoolConfig
    #: What every request has in common; ticket and nodes to avoid are filled in.
    request: PilotRequest
    limits: CommandLimits
    query_interval: float
    max_batch: int
    tickets: Tickets
    fleet: Fleet = field(default_factory=Fleet)
    demand: Demand | None = None
    #: The manager is out of reach: what it said last may be long past.
    away: bool = False
    #: Pilots that would be submitted if it were not; and when it was heard again.
    _withheld: int = 0
    _back_at: float = -math.inf
    #: When the last two queries were answered: what one tells of may have happened since the one before.
    _answered_before: float = math.inf
    _answered_at: float = math.inf
    #: What pools of the same factory that were named before this one will take.
    before: tuple[Promise, ...] = ()
    history: History = field(init=False)
    budget: CommandBudget = field(init=False)
    #: The newest plan.
    actions: Actions | None = None
    finished: bool = False
    #: Core seconds of pilots that have ended.
    spent: float = 0.0
    #: What makes seconds since the epoch of ``now``.
    epoch: float = 0.0
    #: What the manager is told of the pilots.
    telling: Telling = field(init=False)
    _query_at: float = -math.inf
    #: The query that follows the last one may not come before this.
    _soonest: float = -math.inf
    _queried: bool = False
    #: Answers to queries, and the last one in which pilots had vanished.
    _answers: int = 0
    _vanished_in: int = 0
    #: Until then pilots that have vanished may turn up again.
    _looks_until: float = -math.inf
    #: When `demand` was heard.
    _heard_at: float = -math.inf
    #: Pilots that the manager knows in a pool of another name, which this one had in an earlier life.
    _named_otherwise: dict[PilotId, PoolName] = field(default_factory=dict[PilotId, PoolName])
    #: Pilots of `demand` in a pool of this one's name that were not in the register then: those of another factory, maybe one that was
    #: killed.
    _strangers: frozenset[PilotId] = frozenset()
    #: The most memory, in bytes, that a pilot has turned out to have; 0: none has connected yet. Pools need not state any, and where
    #: one does a machine may have less: what is known by pilots decides, for the manager and for the plan.
    _memory: int = 0
    _reported: PoolReport | None = None
    _deadline: float | None = None
    _last_tries: int = 0
    #: It has ended, and there may be pilots of it: the batch system did not answer.
    left_some: bool = False
    _last_try_at: float = -math.inf

    def __post_init__(self) -> None:
        starts, troubles = (START_BACKOFF, TROUBLE_BACKOFF) if self.pool.remote else (OWN_START_BACKOFF, OWN_START_BACKOFF)
        self.history = History(self.pool.max_start_failures, starts, troubles, several_nodes=self.pool.remote)
        self.budget = CommandBudget(self.limits)
        self.telling = Telling(self.pool.name, self.epoch)

    # ---------------------------------------------------------------- what has happened

    def hear(self, demand: Demand, now: float) -> None:
        """The manager says what it could use."""
        self.demand, self._heard_at = demand, now
        if self.away:
            self._back(now)
        self.fleet.blocked = demand.avoid
        self.history.are_blocked(demand.avoid)
        self._see(now)
        self._settle(now)
        self._ask_sooner(now)

    def cut_off(self, now: float) -> None:
        """The connection to the manager is gone. When there is one again it says anew what it could use."""
        self.away = True
        self._ask_sooner(now)

    def _back(self, now: float) -> None:
        """The manager is heard again. Nobody may have reached it meanwhile: pilots have their time to do so from now on."""
        self.away, self._back_at = False, now
        for pilot in self.fleet.pilots.values():
            if pilot.phase is Phase.RUNNING:
                pilot.since = now

    def _see(self, now: float) -> None:
        """Tell the register what the manager said last."""
        if self.demand is not None:
            self.demand = self._with_those_taken_over(self.demand)
            own = [seen for seen in self.demand.pilots if seen.pool == self.pool.name]
            self.fleet.seen(own, now, self._heard_at)
            self._strangers = frozenset(seen.pilot for seen in own if split_pilot_word(seen.pilot)[0] not in self.fleet.pilots)
            self._memory = max((self._memory, *(seen.resources.memory for seen in own)))

    def _with_those_taken_over(self, demand: Demand) -> Demand:
        """The demand with all own pilots in this pool: those of an earlier life may say a name that the pool had then."""
        earlier = {job for job, pilot in self.fleet.pilots.items() if pilot.found}
        if not earlier:
            return demand
        # A job of another batch system may have the same id: one whose pilot is seen in this pool is not looked for elsewhere.
        earlier -= {split_pilot_word(seen.pilot)[0] for seen in demand.pilots if seen.pool == self.pool.name}
        theirs = {
            seen.pilot: seen.pool for seen in demand.pilots if seen.pool != self.pool.name and split_pilot_word(seen.pilot)[0] in earlier
        }
        if not theirs:
            return demand
        self._named_otherwise |= theirs
        renamed = (msgspec.structs.replace(seen, pool=self.pool.name) if seen.pilot in theirs else seen for seen in demand.pilots)
        return msgspec.structs.replace(demand, pilots=tuple(renamed))

    def pools_of(self, pilots: Iterable[PilotId]) -> Mapping[PoolName, list[PilotId]]:
        """Pilots by the name of the pool in which the manager knows them."""
        pools: dict[PoolName, list[PilotId]] = {}
        for pilot in pilots:
            pools.setdefault(self._named_otherwise.get(pilot, self.pool.name), []).append(pilot)
        return pools

    def woken(self, now: float) -> None:
        """The backend says that a query is worth it."""
        self._query_at = min(self._query_at, now)

    def listed(self, states: Sequence[PilotState], now: float, took: float = 0.0) -> None:
        """The answer to a query, and the seconds it took."""
        self.history.answered()
        self._queried = True
        self._answers += 1
        self._answered_before, self._answered_at = self._answered_at, now
        self._soonest = self._query_at = now + max(self.budget.query_pace(now, self.query_interval), SLOW_FACTOR * took)
        known = set(self.fleet.pilots)
        self.fleet.listed(states, now)
        if self.fleet.pilots.keys() - known or self._answered_before < self.fleet.patient_until <= now:
            # The manager may have spoken of these before they were known, or before patience with them was over, and speaks only when
            # something changes.
            self._see(now)
        if self._calm():
            self._query_at = max(self._soonest, now + CALM_FACTOR * self.query_interval)
        self._settle(now)

    def _calm(self) -> bool:
        """All pilots serve, and the last answer had each of them: until a connection is cut there is nothing to ask. Without any a
        manager that is out of reach changes nothing."""
        # Backends that are asked more often have their own reasons.
        pilots = self.fleet.pilots.values()
        settled = all(pilot.phase is Phase.SERVING and not pilot.misses for pilot in pilots)
        return settled and self.query_interval > PROMPT and not self.fleet.unsure and not (self.away and pilots)

    def _ask_sooner(self, now: float) -> None:
        """It is not calm any more: a pilot whose connection was cut may have ended; others change in their own time."""
        if any(pilot.phase is Phase.RUNNING and pilot.served for pilot in self.fleet.pilots.values()):
            self._query_at = min(self._query_at, max(self._soonest, now))
        elif not self._calm():
            self._query_at = min(self._query_at, max(self._soonest, now + self.query_interval))

    def submitted(self, ticket: str, jobs: Sequence[JobId], now: float, logs: Mapping[JobId, str] = NO_LOGS) -> None:
        """A submission was accepted; ``logs``: where its pilots will write."""
        self.history.accepted()
        self.fleet.submitted(ticket, jobs, now, logs)
        if self._query_at < now:
            self._query_at = now + self.query_interval
        self._ask_sooner(now)

    def rejected(self, ticket: str, text: str, now: float, *, no_node: bool = False) -> None:
        """``no_node``: as no node that fits seems to be left beside those to avoid."""
        self.fleet.not_submitted(ticket)
        self.history.rejected(text, now, self._blocked if no_node else ())

    def not_now(self, ticket: str, text: str, now: float) -> None:
        self.fleet.not_submitted(ticket)
        self.history.not_now(text, now)

    def over_limit(self, ticket: str, text: str, count: int, now: float) -> None:
        self.fleet.not_submitted(ticket)
        self.history.over_limit(text, count, self.fleet.live, now)

    def unreachable(self, text: str, now: float, sent: str = "") -> None:
        """A command got no answer. ``sent``: the ticket of a submission that may have happened: the register keeps it as unsure."""
        self.history.unreachable(text, now)
        if sent:
            self.fleet.unanswered(sent, now)
        # Where no pilot lives, those that have vanished are few, if there are any: a program that ends does not wait for them.
        if self._last_tries >= (LAST_TRIES if self.fleet.live else 1):
            self.finished, self.left_some = True, bool(self.fleet.live)

    def cancelled(self) -> None:
        self.history.answered()

    def ended_all(self) -> None:
        self.finished = True

    def change(self, pool: PoolConfig) -> None:
        """Other limits for the same pool."""
        self.pool = pool

    def close(self, now: float, seconds: float) -> None:
        """No more pilots; those there are end, with so many seconds for what runs. Again with fewer seconds: hurry."""
        deadline = now + seconds
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def abandon(self, now: float) -> None:
        """The pilots are another one's now: end, and leave them as they are."""
        self.close(now, 0.0)
        self.finished = True

    @property
    def closing(self) -> bool:
        return self._deadline is not None

    def _settle(self, now: float) -> None:
        """What the register has found goes to the history and the next report."""
        for node in self.fleet.newly_served:
            self.history.served(node)
        for node in self.fleet.nodes_learned:
            self.history.serves_on(node)
        self.fleet.newly_served.clear()
        self.fleet.nodes_learned.clear()
        once: set[str] = set()
        for pilot in self.fleet.pilots.values():
            if pilot.phase is Phase.HELD and not pilot.charge:
                self._count_hold(pilot, once, now)
        late = [] if self.away else [p for p in self.fleet.pilots.values() if p.phase is Phase.RUNNING and not p.served and not p.charge]
        for pilot in late:
            if now - pilot.since >= self.pool.hello_timeout:
                pilot.charge = f"{pilot.job} ran for {now - pilot.since:.0f} s without connecting"
                self.history.died_at_start(pilot.node, pilot.charge, pilot.made_at, now)

    def _count_hold(self, pilot: Pilot, once: set[str], now: float) -> None:
        """A pilot is held. ``once``: the reasons that have been counted together."""
        pilot.charge = pilot.held
        if pilot.served:
            if not pilot.asked:
                self.history.was_held(pilot.held, pilot.whose, pilot.made_at, now, lasted=pilot.lasted(now))
            return
        if pilot.found:  # an earlier life knows whether it had served
            return
        # What was started before and is held now, was not held for what it asks: several at once are one misfortune of the site's.
        if not pilot.restart or pilot.reason not in once:
            self.history.died_at_start(pilot.node, pilot.charge, pilot.made_at, now)
        if pilot.restart:
            once.add(pilot.reason)

    def take_endings(self) -> list[Ending]:
        """Pilots that have ended since the last time; the shell adds last words, where these are telling, and gives them to `ended`."""
        endings, self.fleet.endings = self.fleet.endings, []
        return endings

    def ended(self, ending: Ending, last_words: str, now: float) -> None:
        """A pilot has ended; ``last_words`` of its own, where they are telling."""
        reason = f"{ending.reason}: {last_words}" if last_words else ending.reason
        self.telling.ended(ending, last_words, now)
        if ending.charge and last_words:
            self.history.explained(ending.charge, last_words)
        self.spent += ending.ran * self.pool.resources.cores * self.pool.nodes
        if ending.gone:
            self.history.pilot_ended()
        if ending.failed and ending.reason == VANISHED and self.query_interval > PROMPT:
            self._looks_until = now + LOOKED_FOR
        if ending.failed and not self.closing and not self._without_manager(ending, now) and not self._same_misfortune(ending, last_words):
            self.history.died_at_start(ending.node, f"{ending.whose}: {reason}", ending.made_at, now)
        elif ending.troubled and not self.closing:
            self.history.was_in_trouble(ending.node, f"{ending.whose}: {reason}", ending.made_at, now)
        elif ending.taken and not self.closing:
            self.history.was_taken(f"{ending.whose}: {reason}", ending.made_at, now)
        elif self.history.troubles.count and ending.served_at >= self.history.troubled_at and ending.exit_status == 0:
            self.history.serve_well([ending.node])

    def _without_manager(self, ending: Ending, now: float) -> bool:
        """The manager was out of reach while this pilot ran: that it never served says nothing against it."""
        return self.away or min(now - ending.ran, self._answered_before) <= self._back_at

    def _same_misfortune(self, ending: Ending, last_words: str) -> bool:
        """A controller that has lost its state knows several pilots no more, at once; those that said something failed by themselves."""
        if ending.reason != VANISHED or last_words:
            return False
        again, self._vanished_in = self._vanished_in == self._answers, self._answers
        return again

    # ---------------------------------------------------------------- what to do

    def step(self, now: float) -> Instruction | None:
        """The next thing to do now; None: nothing until `again_at`."""
        if self.finished:
            return None
        if self._query_due(now):
            self.budget.spend("query", now)
            # Should the shell never answer, it is not asked again at once.
            self._soonest = self._query_at = now + self.query_interval
            return Query()
        if self.closing:
            return self._step_closing(now)
        actions = self._plan(now)
        for release in actions.release:
            return self._release(release.jobs, release.reason, now)
        if self.budget.free_at(now) > now or self.history.silent_until() > now:
            return None
        if actions.cancel:
            # One command for all of them; the reasons in one line.
            jobs = tuple(dict.fromkeys(job for decision in actions.cancel for job in decision.jobs))
            return self._cancel(jobs, "; ".join(dict.fromkeys(decision.reason for decision in actions.cancel)), now)
        if actions.submit and self._queried:
            ticket = self.tickets.next()
            self.budget.spend("submit", now)
            self.fleet.submitting(ticket, actions.submit, now, actions.walltime)
            blocked = self._blocked
            avoid = tuple(sorted({*self.history.avoided(now), *blocked}))
            request = replace(self.request, ticket=ticket, avoid=avoid, blocked=blocked)
            if actions.walltime:
                request = with_walltime(request, actions.walltime)
            return Submit(request, actions.submit, actions.submit_reason)
        return None

    @property
    def _blocked(self) -> tuple[str, ...]:
        """Hosts that the manager's programs do not want."""
        return self.demand.avoid if self.demand is not None else ()

    def core_seconds(self, now: float) -> float:
        """What this pool's pilots have used so far, as far as is known."""
        return self.spent + core_seconds(list(self.fleet.pilots.values()), self.pool, now)[0]

    def promise(self, now: float) -> tuple[Promise, float]:
        """What pools named after this one can count on, and when that changes by itself."""
        coming, until = self.fleet.promised(now, self.pool.patience)
        more = self.actions.submit if self.actions is not None and not self.closing else 0
        if self.away and not self.closing:
            # A pool named later may hear of the manager sooner, which may not have heard of this one's pilots again.
            more = self._withheld + sum(pilot.coming and pilot.connected for pilot in self.fleet.pilots.values())
        return Promise(self.pool.found(self._memory), coming + more), until

    def _plan(self, now: float) -> Actions:
        pilots = self.fleet.pilots.values()
        if self.history.troubles.count:
            if well := [pilot for pilot in pilots if pilot.serves_well(now)]:
                self.history.serve_well(pilot.node for pilot in well if pilot.since >= self.history.troubled_at)
            if not self.fleet.unsure_count and all(pilot.made_at < self.history.troubled_at for pilot in pilots):
                self.history.age(now)  # nothing is under way that will tell more
        actions = plan(
            self.demand,
            pilots,
            self.fleet.unsure_count,
            self.pool.found(self._memory),
            self.history,
            now,
            max_batch=self.max_batch,
            before=self.before,
            spent=self.spent,
            unsure_seconds=self.fleet.unsure_seconds(self.pool.walltime),
            strangers=self._strangers,
        )
        self.history.note_wanted(actions.wanted, now, self.pool.hold)
        if actions.used_up and not self.history.paused:
            self.history.paused = self.history.failure = actions.used_up
        self._withheld = actions.submit if self.away else 0
        self.actions = self._without_demand(actions) if self.away else actions
        return self.actions

    def _without_demand(self, actions: Actions) -> Actions:
        """Nothing is done by what the manager said before it was out of reach: its calls may have ended, and it too, so that pilots would
        wait for it, one after the other; and those that were idle may have calls."""
        pilots = self.fleet.pilots
        useless = tuple(one for one in actions.cancel if all(pilots[job].phase in (Phase.HELD, Phase.CANCELLING) for job in one.jobs))
        waits = "the manager is out of reach" if actions.submit else actions.waits
        return replace(actions, submit=0, submit_reason="", cancel=useless, release=(), waits=waits, again_at=math.inf)

    def _query_due(self, now: float) -> bool:
        if not self._looks(now):
            return False
        return self._query_at <= now and self.budget.free_at(now, kept=True) <= now and self.history.silent_until() <= now

    def _looks(self, now: float) -> bool:
        """There may be pilots to ask the batch system about. At the end its last command asks for itself."""
        there_may_be = bool(self.fleet.live) or not self._queried or (now < self._looks_until and not self.closing)
        return there_may_be and not self._at_the_end(now)

    def _cancel(self, jobs: tuple[JobId, ...], reason: str, now: float) -> Cancel:
        self.budget.spend("cancel", now)
        self.fleet.asked(jobs, Event.CANCELLED, now)
        self._ask_sooner(now)
        return Cancel(jobs, reason)

    def _release(self, jobs: tuple[JobId, ...], reason: str, now: float) -> Release:
        words = tuple(self.fleet.pilots[job].word for job in jobs)
        self.fleet.asked(jobs, Event.RELEASED, now)
        self._ask_sooner(now)
        return Release(words, reason)

    def _step_closing(self, now: float) -> Instruction | None:
        assert self._deadline is not None
        pilots = list(self.fleet.pilots.values())
        serving = tuple(pilot.job for pilot in pilots if self._releasable(pilot))
        if serving and not self.away:
            return self._release(serving, "the factory closes", now)
        serve = any(pilot.connected or pilot.is_cut for pilot in pilots)
        if serve and now < self._deadline:
            self._last_tries = 0  # the last command was not heard, and one that waited has connected
        if self.fleet.live and not self._at_the_end(now):
            if self.history.silent_until() > now or self.budget.free_at(now, kept=True) > now:
                return None
            useless = tuple(pilot.job for pilot in pilots if self._cancellable(pilot, now))
            if useless:
                return self._cancel(useless, "the factory closes", now)
            if serve or self.query_interval <= PROMPT:
                return None
        if not self.fleet.live and now >= self._looks_until:
            self.finished = True
            return None
        if self._last_at(now) > now:
            return None
        self._last_tries += 1
        self._last_try_at = now + LAST_PAUSE
        for kind in END_ALL:
            self.budget.spend(kind, now)
        return EndAll()

    def _at_the_end(self, now: float) -> bool:
        """It closes, and what is left is ended, known or not; that command asks for itself."""
        return self._deadline is not None and (now >= self._deadline or self._last_tries > 0)

    def _last_at(self, now: float) -> float:
        """When the last command of all may be sent."""
        return max(self._last_try_at, self.budget.free_at(now, kept=True, count=len(END_ALL)))

    @staticmethod
    def _releasable(pilot: Pilot) -> bool:
        """It serves; maybe although the batch system was asked to end it, which did not answer."""
        return pilot.phase is Phase.SERVING or (pilot.phase is Phase.CANCELLING and pilot.connected and not pilot.draining)

    def _cancellable(self, pilot: Pilot, now: float) -> bool:
        if pilot.phase in (Phase.CANCELLING, Phase.LEAVING):
            # Nobody may have heard it. What a pilot runs is not known while the manager is out of reach.
            known = not self.away or pilot.phase is Phase.CANCELLING
            return known and pilot.may_be_asked_again(now)
        if pilot.is_cut or (self.away and pilot.phase is Phase.SERVING):
            return self.away and now >= self._last_word_at
        return not pilot.connected and pilot.phase in (Phase.QUEUED, Phase.RUNNING, Phase.HELD)

    @property
    def _last_word_at(self) -> float:
        """When the batch system is to tell those that the manager cannot tell: what runs has the grace from then on."""
        assert self._deadline is not None
        return self._deadline - self.pool.grace

    def again_at(self, now: float) -> float:
        """When `step` may have something to do although nothing happened; inf: never."""
        if self.finished:
            return math.inf
        silent = self.history.silent_until()
        times: list[float] = []
        if self._looks(now):
            times.append(max(self._query_at, self.budget.free_at(now, kept=True), silent))
        if self._deadline is not None:
            # Commands that wait for the budget, or for an answer, are due when these allow it.
            held_up = (silent, self.budget.free_at(now, kept=True), self._last_at(now), *((self._last_word_at,) if self.away else ()))
            times += [time for time in held_up if time > now]
            times.append(self._last_at(now) if self._at_the_end(now) else self._deadline)
        elif self.actions is not None:
            times.append(self.actions.again_at)
            if self.actions.cancel or (self.actions.submit and self._queried):
                times.append(max(self.budget.free_at(now), silent))
        return max(now, min(times, default=math.inf))

    # ---------------------------------------------------------------- what is told

    def told_nothing(self, now: float) -> None:
        """Another life of the manager has begun, which has heard nothing of this pool."""
        self.demand, self._reported = None, None
        self.fleet.patient_until = now + ANEW_PATIENCE
        self.telling.told_nothing()

    def report(self) -> PoolReport | None:
        """What the manager has not been told yet; None: nothing."""
        name = self.pool.name
        counts = tuple((name, phase.value, number) for phase, number in self.fleet.counts().items() if number)
        failures = ((name, self.history.failure),) if self.history.failure else ()
        offer = self.pool.offer(self.history.paused, coming=bool(self.fleet.live), memory=self._memory)
        report = PoolReport((offer,), (), counts, failures, tuple(sorted(self.budget.sent.items())))
        self.telling.look(self.fleet.pilots.values())
        last = self._reported
        if (
            not self.telling.waits
            and last is not None
            and (last.offers, last.counts, last.failures) == (report.offers, report.counts, report.failures)
        ):
            return None
        self._reported = report
        ended, lines = self.telling.take()
        return PoolReport(report.offers, ended, report.counts, report.failures, report.commands, lines)

    def check(self) -> None:
        """Invariants; raises AssertionError."""
        self.fleet.check()
        assert not self.finished or self.closing
