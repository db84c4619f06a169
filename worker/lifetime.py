"""When a worker stops accepting, and when it ends.

Theory of operation
-------------------
A worker is *serving*, then *draining* (accepts nothing, has given back what had not started, lets running calls finish), then
*ending*. Nothing leads back. `Lifetime` is told what happened (a signal, a message, a look at the clock) and answers with a
`Decision`; `NEXT` says in which phase which decision may still be made, so that a decision is made once.

Two limits come from the walltime. The *hard end* lies a little before the end of the pilot, so that there is time to end
processes and to remove folders. *Stop accepting* lies before that by what calls take here: the 90th percentile of recent run
times; before any call has ended, what the running ones were expected to take, or have run. A worker that has seen nothing but short
calls goes on until about a second before its hard end; one whose calls take an hour stops an hour early, and its calls go where more
time is left. So that pilots that began together do not all end together, each stops a little earlier, by chance (`stagger`).

Running calls are *warned* at the first signal, or when the hard end is as near as the grace: then functions save what they
have (`windlass.pilot_end`).

A first SIGTERM or SIGINT means "you are going away": drain inside the grace, and end so much before its end as before that of the
walltime, for then the batch system kills. A batch system sends a signal to every
process of a job, and wrappers pass it on once more, so a second one counts only from `ECHO_SECONDS` after the first; then it
means "now". SIGUSR1 says the same beforehand, and never "now". Slurm sends it up to a minute early when the walltime is near: where that
may be why it came, running calls keep the time that the walltime leaves.

Times are seconds on one monotonic clock that the caller chooses; `now` is always an argument.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

#: A copy of a signal that comes sooner than this is an echo of the first, not a second wish.
ECHO_SECONDS: Final = 0.25
#: Between the last call that fits and the hard end: what sending results takes.
MARGIN_SECONDS: Final = 1.0
#: A warning for the end of the walltime may come so much sooner than asked for (Slurm: a minute, and what it takes to notice).
EARLY_SECONDS: Final = 65.0
#: How much earlier than they must pilots stop accepting, at most: a share of the walltime, seconds; and the walltime below which none does.
STAGGER_SHARE: Final = 0.05
STAGGER_MOST: Final = 600.0
STAGGERED_FROM: Final = 600.0
#: Of the time in which a worker accepts, no more than this is given to the stagger: its calls may be nearly as long as its walltime.
STAGGER_OF_ACCEPTING: Final = 0.5
#: Trouble that comes sooner after the start was there before, though some calls may not have met it.
SOON_SECONDS: Final = 60.0
#: For so long a worker waits for calls that went back as their files will be long in coming: as managers do unless told otherwise.
PUT_OFF_SECONDS: Final = 600.0
#: Run times that are remembered, and how many of one batch are looked at: batches of no-op calls must not cost time here.
REMEMBERED: Final = 128
PER_BATCH: Final = 8


class Phase(enum.Enum):
    """Where a worker stands."""

    SERVING = "serving"
    DRAINING = "draining"
    ENDING = "ending"


class Decision(enum.Enum):
    """What the worker is to do now."""

    NOTHING = "nothing"
    #: Say so, give back what has not started, let the rest finish.
    DRAIN = "drain"
    #: Nothing is held any more: say goodbye and exit.
    FINISH = "finish"
    #: End everything, also running calls, say goodbye and exit.
    END = "end"


#: What may be decided in which phase, and where it leads; anything else is no decision.
NEXT: Final[Mapping[tuple[Phase, Decision], Phase]] = {
    (Phase.SERVING, Decision.DRAIN): Phase.DRAINING,
    (Phase.SERVING, Decision.FINISH): Phase.ENDING,  # idle too long: there is nothing to drain
    (Phase.SERVING, Decision.END): Phase.ENDING,
    (Phase.DRAINING, Decision.FINISH): Phase.ENDING,
    (Phase.DRAINING, Decision.END): Phase.ENDING,
}


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` (0 to 1) of `values` do not exceed; 0.0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def kept_for_ending(seconds: float) -> float:
    """Of a time at whose end the batch system kills: what ending processes and removing folders takes.

    3 %, at least half a second and at most 10 s.
    """
    return min(10.0, max(0.5, 0.03 * seconds))


def hard_end(started: float, walltime: float) -> float:
    """When everything must end, given the pilot's walltime in seconds (0: unlimited, then infinity)."""
    return started + walltime - kept_for_ending(walltime) if walltime > 0 else float("inf")


def stagger_seconds(walltime: float, most: float, share: float) -> float:
    """How much earlier than it must a worker stops accepting, in seconds.

    `walltime` in seconds (0: unlimited). `most` is what the pool asks for; negative: 5 % of the walltime and at most ten minutes, but
    nothing below a walltime of ten minutes. `share` is drawn by chance from 0 to 1.
    """
    if walltime <= 0:
        return 0.0
    if most < 0:
        most = min(STAGGER_MOST, STAGGER_SHARE * walltime) if walltime >= STAGGERED_FROM else 0.0
    return share * most


def stop_accepting_at(end: float, run_times: Iterable[float], *, started: float = 0.0, stagger: float = 0.0) -> float:
    """When to accept nothing more, so that nine of ten calls like the recent ones (`run_times`, seconds) still finish before `end`.

    With `stagger` so many seconds earlier, but never by more than half of the time since `started`.
    """
    stop = end - MARGIN_SECONDS - percentile(run_times, 0.9)
    return stop - min(stagger, STAGGER_OF_ACCEPTING * max(0.0, stop - started)) if stagger else stop


class Lifetime:
    """The phase of one worker, and why.

    `walltime` is the seconds from `now` that the pilot may live (0: unlimited), `grace` the seconds between a signal and the kill,
    `idle_timeout` the seconds without any call after which the worker leaves (0: never), `stagger` the seconds that it stops accepting
    earlier than it must.
    """

    def __init__(self, now: float, *, walltime: float = 0.0, grace: float = 30.0, idle_timeout: float = 0.0, stagger: float = 0.0) -> None:
        self.phase = Phase.SERVING
        #: Why the phase is what it is, for the manager and for the log.
        self.reason = ""
        #: It drains as this node cannot serve; and there is no use in another one here now.
        self.in_trouble = self.useless = False
        self.hard_end = hard_end(now, walltime)
        self.grace = grace
        self.idle_timeout = idle_timeout
        #: Running calls are to be told that their end is near.
        self.warned = False
        self._started = now
        self._stagger = stagger
        self._deadline = self.hard_end
        self._signalled_at: float | None = None
        self._expected = 0.0
        #: When it became, or will become, idle; it only ever moves on.
        self._idle_from = now
        self._put_off = 0
        self._run_times: deque[float] = deque(maxlen=REMEMBERED)

    def ran(self, seconds: Iterable[float]) -> None:
        """Calls have run for so many seconds; the caller hands over a sample of each batch."""
        self._run_times.extend(seconds)

    def expects(self, seconds: float) -> None:
        """A call has come that is expected to take so long."""
        self._expected = max(self._expected, seconds)

    @property
    def deadline(self) -> float:
        """When running calls are ended: the hard end, or sooner after a signal. Infinity: never."""
        return self._deadline

    def seconds_left(self, now: float) -> float:
        """Seconds to the end of running calls as the messages say it: 0 means unlimited, so a past end is a millisecond."""
        return 0.0 if self._deadline == float("inf") else max(0.001, self._deadline - now)

    def signal(self, name: str, now: float, *, warning: bool = False) -> Decision:
        """A signal that means "leave" came. `warning`: it never means "now", however often it comes (SIGUSR1)."""
        if not warning and self._signalled_at is not None:
            if now - self._signalled_at < ECHO_SECONDS:
                return Decision.NOTHING
            return self._decide(Decision.END, f"{name} received again")
        self.warned = True
        if not warning:
            self._signalled_at = now
        if not (warning and self.hard_end <= now + self.grace + EARLY_SECONDS):
            self._deadline = min(self._deadline, now + self.grace - min(self.grace / 2, kept_for_ending(self.grace)))
        if self.phase is Phase.SERVING:
            return self._decide(Decision.DRAIN, f"{name} received")
        return Decision.NOTHING

    def drain(self, reason: str) -> Decision:
        """The manager asks for a drain; running calls have all the time that the walltime leaves."""
        return self._decide(Decision.DRAIN, reason)

    def trouble(self, reason: str, now: float) -> Decision:
        """This node cannot serve: as `drain`. Where that is so from the start the next worker here would fare no better."""
        decision = self._decide(Decision.DRAIN, reason)
        if decision is Decision.DRAIN:
            self.in_trouble = True
            self.useless = self.is_new(now)
        return decision

    def is_new(self, now: float) -> bool:
        """No call has ended here, or it is soon after the start."""
        return not self._run_times or now - self._started < SOON_SECONDS

    def leave(self, reason: str) -> Decision:
        """The manager says that the run is over, or the parent of the pilot has died: everything ends at once."""
        return self._decide(Decision.END, reason)

    def look(self, now: float, *, held: int, oldest: float = 0.0, starting: bool = False, put_off: int = 0) -> Decision:
        """Look at the clock.

        `held` is the number of calls held, `oldest` the seconds that the longest running one has run. `starting`: a library is being
        started, so the worker is not idle, though it has nothing that it would have to finish. `put_off`: so many calls went back so far as
        their files will be long in coming; they come again when they have.
        """
        if self.phase is Phase.ENDING:
            return Decision.NOTHING
        if held or starting:
            self._idle_from = max(self._idle_from, now)
        if put_off > self._put_off:
            self._idle_from = now + PUT_OFF_SECONDS
        self._put_off = put_off
        if now >= self.hard_end - self.grace:
            self.warned = True
        if now >= self._deadline:
            reason = "end of walltime" if self._deadline == self.hard_end else f"{self.reason}; grace of {self.grace:g} s is over"
            return self._decide(Decision.END, reason)
        if self.phase is Phase.DRAINING:
            return self._decide(Decision.FINISH, self.reason) if not held else Decision.NOTHING
        if self.hard_end != float("inf") and now >= self.stop_accepting(oldest):
            return self._decide(Decision.DRAIN, "near the end of walltime")
        if self.idle_timeout and now - self._idle_from >= self.idle_timeout:
            return self._decide(Decision.FINISH, f"idle for {self.idle_timeout:g} s")
        return Decision.NOTHING

    @property
    def asks_oldest(self) -> bool:
        """Whether it matters how long the longest running call has run: there is an end, and no call has ended yet."""
        return self.hard_end != float("inf") and not self._run_times

    def stop_accepting(self, oldest: float = 0.0) -> float:
        """When accepting stops as things stand. Before any call has ended, those that are expected or run longest teach."""
        run_times = self._run_times or (max(oldest, self._expected),)
        return stop_accepting_at(self.hard_end, run_times, started=self._started, stagger=self._stagger)

    def next_look(self, now: float, longest: float) -> float:
        """Seconds until `look` is worth calling again, at most `longest`."""
        times = [self._deadline]
        if not self.warned:
            times.append(self.hard_end - self.grace)
        if self.phase is Phase.SERVING:
            times.append(self.stop_accepting())
            if self.idle_timeout:
                times.append(self._idle_from + self.idle_timeout)
        return min(longest, max(0.01, min(times) - now))

    def _decide(self, decision: Decision, reason: str) -> Decision:
        phase = NEXT.get((self.phase, decision))
        if phase is None:
            return Decision.NOTHING
        self.phase, self.reason = phase, reason
        return decision
