"""The keeper: one thread that looks after a factory's pools in one batch system. The shell around `windlass.factory.core`.

Theory of operation
-------------------
It waits on one queue of events (demand from the manager, a word from a backend that something ended, a wish to close), tells the
core of the pool that it concerns, and carries out the cores' instructions until there are none; it sleeps until the next event or the
time that the cores name.  Nothing is polled, and the first pilot is started as soon as there is demand.  Only this thread calls the
backends.

Pools of one batch system share a keeper, so that they share its commands: a query that one of them is due asks for all of them
(`SharedQueries`), and all count against one budget.  A batch system that hangs holds up no pool of another one.

Each pool has a port to the manager of its own, and says there `PoolReport` when something changed (first of all, what a pilot of the pool
will be, so that the manager listens where pilots can reach it) and `ReleasePilots`; it hears `Demand` and `Leave`.
While the connection is cut nothing is submitted or let go, until the manager has said anew what it could use.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import msgspec

from windlass.errors import BatchError, Closed, OverLimit, Rejected, Unreachable
from windlass.factory.backend import Backend, Hurries, NoNodeLeft, NotNow, NotSent, PilotState, SharedQueries, asked_by_hand
from windlass.factory.core import Cancel, FactoryCore, Instruction, Query, Release, Submit
from windlass.factory.history import LIMITS_TOLD, SHUT_WAIT
from windlass.factory.ledger import Ledger
from windlass.factory.planner import Promise
from windlass.factory.pool import PoolConfig, how_to_resume
from windlass.mailbox import Mailbox
from windlass.messages import Demand, Goodbye, Leave, Message, ReleasePilots, ResumePool
from windlass.passing import PASSING
from windlass.units import show_seconds

log = logging.getLogger("windlass.factory")

#: Seconds for what runs when the program leaves by an exception, or without closing; or when the manager is gone.
HURRY: Final = 2.0
#: Starts of one job in a row, before it has served, from which on it is told that they come to nothing.
VAIN_STARTS: Final = 3
#: Seconds that a manager which is there gets to hear the last words.
FAREWELL: Final = 2.0


class Port(Protocol):
    """The way to the manager."""

    def send(self, *messages: Message) -> None: ...

    def close(self, timeout: float = ...) -> None: ...


@dataclass(frozen=True, slots=True)
class Wake:
    """The backend says that something changed."""


@dataclass(frozen=True, slots=True)
class Replan:
    """A pool named before this one promises something else."""


@dataclass(frozen=True, slots=True)
class Anew:
    """The manager was started anew: a later life of the same program."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection to the manager is gone, and is made again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The manager is out of reach for good."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The manager does not want this factory any more: mostly as another one of its name has taken its place."""

    text: str


@dataclass(frozen=True, slots=True)
class Close:
    """End, with so many seconds for what runs; None: with the pool's grace."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """The pool with other limits, all of them: so each is judged beside those that were asked for last."""

    pool: PoolConfig


@dataclass(frozen=True, slots=True)
class Resume:
    """A paused pool goes on."""


Event = Message | Wake | Replan | Anew | Cut | Lost | Refused | Close | Change | Resume


@dataclass(slots=True)
class Kept:
    """One pool in its keeper's hands."""

    #: By this the manager and the batch system know who keeps it.
    name: str
    #: Its place among the pools of its factory.
    index: int
    core: FactoryCore
    backend: Backend
    #: The pool with the limits that were asked for last; the core learns of them when its keeper has done what it is at.
    asked: PoolConfig = field(init=False)
    put: Callable[[Event], None] = field(init=False)
    port: Port | None = None
    manager_gone: bool = False
    #: Why it ended otherwise than by closing; "": it did not.
    lost: str = ""
    #: What was last logged of a pause, and deaths at start, troubles of nodes and pilots taken away by then.
    said: str = ""
    deaths: int = 0
    troubles: int = 0
    takes: int = 0
    #: What was said of single pilots, without what is another each time.
    told: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        self.asked = self.core.pool

    def send(self, message: Message) -> None:
        # A manager that has said Leave, or is lost, reads nothing more, and a port would wait for it.
        if self.port is not None and not self.manager_gone:
            try:
                self.port.send(message)
            except Closed:  # it closes just now: its Leave is on the way here
                self.manager_gone = True

    def is_new(self, text: str) -> bool:
        """Nothing like it was said before: how much memory it was, and on which node, is another each time."""
        kind, known = re.sub(r"[\w.-]+@\S+|\d+", "", text), len(self.told)
        self.told.add(kind)
        return len(self.told) > known

    def tell(self) -> None:
        """Tell the manager what it has not been told yet."""
        while (report := self.core.report()) is not None:
            self.send(msgspec.structs.replace(report, at=self.core.epoch + time.monotonic()))


class Keeper:
    """Runs the cores of some pools of one batch system on a thread of its own."""

    def __init__(self, name: str, kept: Sequence[Kept], ledger: Ledger, ended: Callable[[], None]) -> None:
        self.name, self.kept = name, tuple(kept)
        self._ledger, self._ended = ledger, ended
        self._events: Mailbox[tuple[Kept, Event]] = Mailbox()
        self._thread = threading.Thread(target=self._run, name=f"windlass-factory-{name}", daemon=True)
        self.done = threading.Event()
        for one in kept:
            one.put = self._putter(one)

    def _putter(self, kept: Kept) -> Callable[[Event], None]:
        def put(event: Event) -> None:
            self._events.put((kept, event))
            if isinstance(event, Close | Leave | Lost | Refused) and isinstance(kept.backend, Hurries):
                kept.backend.hurry()  # the thread may be busy with what takes an hour

        return put

    def start(self) -> None:
        """Backends and ports are open: begin."""
        for kept in self.kept:
            kept.tell()
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, so many seconds at most; inf: as long as it takes."""
        self._thread.join(min(timeout, threading.TIMEOUT_MAX))

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:
            log.exception("the factory %s failed; its pilots are ended", self.name)
            for kept in self.kept:
                kept.lost = "the factory failed; its log has the traceback"
                with contextlib.suppress(Exception):  # the next one's pilots are to be ended all the same
                    kept.backend.cancel_all()
        finally:
            for kept in self.kept:
                try:
                    kept.backend.close()
                except Exception:
                    log.exception("%s: its backend could not be closed", kept.name)
                self._ledger.post(kept.index, Promise(kept.core.pool, 0))
            for kept in self.kept:
                if kept.port is not None:
                    with contextlib.suppress(Exception):  # the manager may be gone first
                        self._bury(kept)
                        kept.tell()
                        kept.send(Goodbye("the factory closed"))
                    with contextlib.suppress(Exception):  # also where nothing could be told: an open port keeps the factory's name
                        kept.port.close(0.0 if kept.manager_gone or kept.core.away else FAREWELL)
            self.done.set()
            self._ended()

    def _serve(self) -> None:
        while True:
            busy = True
            while busy:  # what one pool does can give another one something to do: a query tells of both
                busy = False
                for kept in self.kept:
                    busy |= self._step(kept)
            now = time.monotonic()
            times = [kept.core.again_at(now) for kept in self.kept] + [self._promise(kept, now) for kept in self.kept]
            for kept in self.kept:
                kept.tell()
            if all(kept.core.finished for kept in self.kept):
                return
            self._take_events(min(times) - now)

    def _step(self, kept: Kept) -> bool:
        """Do what a pool has to do now; whether there was anything."""
        core = kept.core
        did = False
        while True:
            core.before = self._ledger.before(kept.index, core.demand)
            instruction = core.step(time.monotonic())
            if instruction is None:
                break
            did = True
            self._do(kept, instruction)
            # What was heard meanwhile counts for the next: the first query may be answered before the manager's first word is taken.
            self._take_events(0.0)
        self._warn(kept)
        return did

    def _promise(self, kept: Kept, now: float) -> float:
        """Tell later pools what they can count on; when that changes by itself."""
        if kept.core.demand is None:
            return math.inf
        promise, until = kept.core.promise(now)
        self._ledger.post(kept.index, promise)
        return until

    def _take_events(self, seconds: float) -> None:
        """Wait for an event for so long, then take all that are there."""
        try:
            event = self._events.get(timeout=None if seconds >= threading.TIMEOUT_MAX else max(0.0, seconds))
            while True:
                self._take(*event)
                event = self._events.get_nowait()
        except queue.Empty:
            pass
        for kept in self.kept:
            self._bury(kept)

    def _take(self, kept: Kept, event: Event) -> None:
        core, now = kept.core, time.monotonic()
        if isinstance(event, Demand):
            core.hear(event, now)
        elif isinstance(event, Wake):
            core.woken(now)
        elif isinstance(event, Close):
            core.close(now, core.pool.grace if event.seconds is None else event.seconds)
        elif isinstance(event, Leave):
            kept.manager_gone = True
            log.info("%s: the manager has ended (%s)", kept.name, event.reason)
            core.close(now, min(HURRY, core.pool.grace))
        elif isinstance(event, Anew):
            log.info("%s: the manager was started anew; its pilots go over to it", kept.name)
            core.told_nothing(now)
        elif isinstance(event, Cut):
            if not kept.manager_gone:  # or it has just ended
                log.info("%s: the manager is out of reach (%s); nothing is submitted meanwhile", kept.name, event.reason)
                core.cut_off(now)
        elif isinstance(event, Lost):
            kept.manager_gone = True
            kept.lost = f"the manager is lost: {event.reason}"
            log.warning("%s: %s; its pilots are ended", kept.name, kept.lost)
            core.close(now, 0.0)
        elif isinstance(event, Refused):
            kept.manager_gone = True
            left = "are left to it" if core.pool.remote else "are processes of this one, and end with it"
            kept.lost = f"the manager refuses this factory now: {event.text}; its pilots {left}"
            log.warning("%s: %s", kept.name, kept.lost)
            core.abandon(now)
        elif isinstance(event, Change):
            core.change(event.pool)
        elif isinstance(event, Resume) or (isinstance(event, ResumePool) and event.pool in ("", core.pool.name)):
            core.history.resume()
            log.info("%s is resumed", kept.name)

    def _do(self, kept: Kept, instruction: Instruction) -> None:
        """Carry out one instruction and tell the core its result."""
        core, backend = kept.core, kept.backend
        if isinstance(instruction, Release):
            log.info("%s: letting go %s: %s", kept.name, ", ".join(instruction.pilots), instruction.reason)
            for pool, pilots in core.pools_of(instruction.pilots).items():
                kept.send(ReleasePilots(tuple(pilots), pool, instruction.reason))
            return
        try:
            if isinstance(instruction, Query):
                self._query(kept)
            elif isinstance(instruction, Submit):
                log.info("%s: submitting %d: %s", kept.name, instruction.count, instruction.reason)
                jobs = backend.submit(instruction.request, instruction.count)
                core.submitted(instruction.request.ticket, jobs, time.monotonic(), {job: backend.log(job) for job in jobs})
            elif isinstance(instruction, Cancel):
                log.info("%s: cancelling %s: %s", kept.name, ", ".join(instruction.jobs), instruction.reason)
                backend.cancel(instruction.jobs)
                core.cancelled()
            else:
                backend.cancel_all()
                core.ended_all()
        except Exception as error:  # noqa: BLE001  a backend's defect must not look like silence
            self._failed(kept, instruction, error)

    def _query(self, kept: Kept) -> None:
        """One query for all pools that are not finished."""
        others = [one for one in self.kept if one is not kept and not one.core.finished]
        started = time.monotonic()
        answers: list[tuple[Kept, Sequence[PilotState]]]
        if others:
            states = cast("SharedQueries", kept.backend).query_with([one.backend for one in others])
            answers = list(zip((kept, *others), states, strict=True))
        else:
            answers = [(kept, kept.backend.query())]
        now = time.monotonic()
        for one, listed in answers:
            one.core.listed(listed, now, now - started)

    def _failed(self, kept: Kept, instruction: Instruction, error: Exception) -> None:
        core, now = kept.core, time.monotonic()
        text = str(error) if isinstance(error, BatchError) else f"the {core.pool.backend} backend failed: {error!r}"
        if not isinstance(error, BatchError):
            log.error("%s: %s", kept.name, text, exc_info=error)
        if isinstance(instruction, Submit) and isinstance(error, OverLimit):
            core.over_limit(instruction.request.ticket, text, instruction.count, now)
            if core.history.limits_alone == LIMITS_TOLD:
                log.warning("%s: %s; it has no pilots whose end would make room, and is tried again now and then", kept.name, text)
            else:
                log.info("%s: %s", kept.name, text)
        elif isinstance(instruction, Submit) and isinstance(error, NotNow):
            level = logging.INFO if core.history.shut else logging.WARNING  # it may last for days
            log.log(level, "%s: refused for now: %s; it is asked again every %.0f min", kept.name, text, SHUT_WAIT / 60)
            core.not_now(instruction.request.ticket, text, now)
        elif isinstance(instruction, Submit) and not isinstance(error, Unreachable) and getattr(error, "errno", None) not in PASSING:
            again = core.history.failure == text
            core.rejected(instruction.request.ticket, text, now, no_node=isinstance(error, NoNodeLeft))
            if core.history.paused:
                log.warning("%s is paused, as its pilots are refused: %s; %s", kept.name, text, how_to_resume(core.pool.name))
                kept.said = core.history.paused
            else:
                blocked = ", ".join(core.history.blocked)
                what = f"it is asked again when {blocked} may be used again" if blocked else "it is asked once more without nodes to avoid"
                log.log(logging.INFO if again else logging.WARNING, "%s: refused: %s; %s", kept.name, text, what)
        else:
            # Also a refused query or cancel: nothing is known to have changed.
            # Who asks the same batch system would get the same silence.
            silent = self.kept if isinstance(instruction, Query) else (kept,)
            sent = instruction.request.ticket if isinstance(instruction, Submit) and not isinstance(error, NotSent) else ""
            for one in silent:
                one.core.unreachable(text, now, sent)
            told = [one for one in silent if one.core.history.tell_silence(now)]
            level = logging.WARNING if told or isinstance(error, Rejected) else logging.INFO
            log.log(level, "%s: %s; it is asked again, at growing intervals", kept.name, _silence(core, text, now))

    def _bury(self, kept: Kept) -> None:
        """Tell the core of pilots that ended, with their own last words where these say something."""
        core = kept.core
        for ending in core.take_endings():
            core.ended(ending, kept.backend.tail(ending.job) if ending.telling else "", time.monotonic())
            for one in self.kept if ending.gone else ():
                if one.core.history.limits_alone:  # the limit on jobs may be that of all of them
                    one.core.history.pilot_ended()
            log.info("%s: pilot %s has ended: %s", kept.name, ending.pilot, ending.reason)
            if ending.vain >= VAIN_STARTS and kept.is_new(ending.reason.partition("; ")[0]):
                text = "%s: pilot %s was started %d times, and not once came to serve; it is %s"
                log.warning(text, kept.name, ending.job, ending.vain, ending.reason)
        self._warn(kept)

    @staticmethod
    def _warn(kept: Kept) -> None:
        """Say that the pool was paused, for whatever reason, or that the first of its pilots in a row has died."""
        history = kept.core.history
        if history.paused and history.paused != kept.said:
            log.warning("%s is paused: %s; %s", kept.name, history.paused, how_to_resume(kept.core.pool.name))
        elif history.start_failures and not kept.deaths and not history.paused:
            # The pause comes minutes later, and whoever waits for a result would not know why.
            text = "%s: a pilot ended before it served: %s; others are tried, and the pool is paused after %d in a row"
            log.warning(text, kept.name, history.failure, kept.core.pool.max_start_failures)
        if history.troubles.count and not kept.troubles:
            log.warning("%s: a node cannot serve: %s; others are tried, and it again now and then", kept.name, history.trouble)
        if history.takes.count > 1 >= kept.takes:
            log.warning(
                "%s: pilots are cancelled or held, and not by the factory: %s; others follow, ever more seldom", kept.name, history.taken
            )
        if history.held and kept.is_new(history.held):
            log.warning("%s: a pilot that served is %s; such are removed, and replaced", kept.name, history.held)
        kept.said, kept.deaths, kept.troubles = history.paused, history.start_failures, history.troubles.count
        kept.takes = history.takes.count


def by_site(kept: Sequence[Kept]) -> list[list[Kept]]:
    """Pools of one batch system together; they share one keeper, and one record of commands."""
    groups: dict[tuple[str, str], list[Kept]] = {}
    for one in kept:
        site = one.backend.site if isinstance(one.backend, SharedQueries) else str(one.index)
        groups.setdefault((one.backend.name, site), []).append(one)
    for group in groups.values():
        for one in group:
            one.core.budget.times = group[0].core.budget.times
    return list(groups.values())


def _silence(core: FactoryCore, text: str, now: float) -> str:
    """That there is no answer, in words, and since when."""
    history = core.history
    lasts = now - history.silent_since
    since = f" for {show_seconds(round(lasts))}, to {history.silences} commands; the last" if lasts >= 1 else ""
    said = f"no answer{since}: {text}"
    by_hand = asked_by_hand(core.pool.backend, core.pool.options)
    return said if history.answers or not by_hand else f"{said} (it has not answered yet: does  {by_hand}  in this shell?)"
