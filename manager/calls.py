"""Calls as the manager's core knows them, and the queues they wait in.

Theory of operation
-------------------
A `Call` is in exactly one of three places: *waiting* in one `CallQueue`, *sent* to one worker, or *ended* (then it is forgotten).
Calls that are alike for placement (same library version, same options, same least time, all with files or without) share a queue, so
placement looks at queues and never at calls.  A waiting call that is cancelled stays in the deque as a tombstone (`CANCELLED_MARK`) until
it is popped, which keeps cancelling constant in time; `CallQueue.waiting` counts live ones only.

Attempts have numbers that grow, by which late answers are known.  An attempt that is lost with its worker costs no retry but counts
towards ``max_losses``; an attempt that never started costs nothing, and is none for people, who are told of turns (`Call.turn`).
"""

from __future__ import annotations

from collections import deque
from itertools import islice, takewhile
from typing import Final

import msgspec

from windlass.messages import (
    BAD_CALL,
    CANCELLED,
    DIED,
    NO_FILE,
    OUT_OF_MEMORY,
    RAISED,
    RETURNED,
    TIMED_OUT,
    CallAttempt,
    CallId,
    CallOptions,
    CallRun,
    CallSpec,
    FileName,
    LibraryId,
    Resources,
    WorkerId,
)

#: Outcomes that only the manager gives; they continue `windlass.messages.CANCELLED` and its like in `CallEnd.outcome`.
LOST: Final = 20
LIBRARY_FAILED: Final = 21
TOO_LONG: Final = 22
NOT_POSSIBLE: Final = 23
CLOSED: Final = 24
#: Given by the program's client: a call whose result it was to get has none.
INPUT_FAILED: Final = 25
#: How an attempt, or a call, has ended, for people to read: in lists, causes, notes of errors and traces.
OUTCOME_WORDS: Final = {
    RETURNED: "returned",
    RAISED: "raised",
    DIED: "slot died",
    TIMED_OUT: "timed out",
    OUT_OF_MEMORY: "out of memory",
    CANCELLED: "cancelled",
    BAD_CALL: "could not be run",
    NO_FILE: "lacked a file",
    LOST: "lost with its worker",
    LIBRARY_FAILED: "library cannot start",
    TOO_LONG: "too long for every pool",
    NOT_POSSIBLE: "no pool can run it",
    CLOSED: "ended with its manager",
    INPUT_FAILED: "its input failed",
}

#: Calls that come back together are put behind so many older ones at most: their place is not worth a look at all that wait.
OLDER_MOST: Final = 1000
#: Weight of a new batch in the moving mean of durations: about the newest ten batches count.
SMOOTHING: Final = 0.1


def outcome_words(outcome: int) -> str:
    """Also of one that only a later version of a worker gives."""
    return OUTCOME_WORDS.get(outcome) or f"outcome {outcome}"


class Call(msgspec.Struct, eq=False, gc=False):
    """A call that has not ended. ``worker`` is empty while it waits."""

    spec: CallSpec
    queued_at: float
    queue: CallQueue
    worker: WorkerId = WorkerId("")
    attempt: int = 0
    sent_at: float = 0.0
    #: It was sent to wait behind others.
    behind: bool = False
    #: When it has begun, as far as is known; 0: it was sent to have its data fetched while others run, and their ends have not reached it.
    begun_at: float = 0.0
    cancelled: bool = False
    #: Attempts used up by deaths and retried exceptions.
    failures: int = 0
    losses: int = 0
    weight: int = 1
    #: Seconds of the longest attempt that a pilot's walltime cut short.
    ran: float = 0.0
    #: Those that have ended, oldest first; None until there is one.
    attempts: list[CallAttempt] | None = None
    #: Waits, in no queue, for this result to be made again, or for this file whose source does not answer.
    parked: FileName = FileName("")
    away: bool = False

    @property
    def turn(self) -> int:
        """The number that people know its next attempt by, or the one that runs: ``attempt`` counts those, too, that never began."""
        return 1 if self.attempts is None else len(self.attempts) + 1


class Durations(msgspec.Struct):
    """Run times of calls in seconds: moving mean, longest, number."""

    mean: float = 0.0
    longest: float = 0.0
    count: int = 0

    def add(self, total: float, number: int, longest: float) -> None:
        """Take in ``number`` run times that sum to ``total`` seconds."""
        batch = total / number
        if not self.count:
            self.mean = batch
        else:
            # A batch of many weighs as much as that many single ones, bounded by one.
            weight = min(1.0, SMOOTHING * number)
            self.mean += (batch - self.mean) * weight
        self.count += number
        if longest > self.longest:
            self.longest = longest


class CallQueue(msgspec.Struct, gc=True):
    """Waiting calls of one signature, first come, first served."""

    library: LibraryId
    options: CallOptions
    #: Placed only where more than so many seconds are left; 0: anywhere.
    least_seconds: float
    calls: deque[Call]
    #: Calls that have come back and have no place in ``calls`` yet.
    back: list[Call] = msgspec.field(default_factory=list[Call])
    #: Live calls in both.
    waiting: int = 0
    #: Sent and not ended.
    running: int = 0
    #: Parked, and so many of them for a file whose source does not answer: pilots are kept for these.
    parked: int = 0
    away: int = 0
    #: When calls were last sent.
    served_at: float = 0.0
    #: Its calls have inputs: it matters to each where it goes.
    files: bool = False
    #: What placement takes each call to ask for (`windlass.manager.kinds`).
    needs: Resources = Resources()
    #: Losses have taught how many seconds are needed; else these are what is expected.
    taught: bool = False
    #: At this version of `Books.means` such calls were possible.
    means: int = -1
    #: No idle instance could take its calls as things were then (`LibraryState.news`); -1: they are to be held against all.
    passed_at: int = -1

    @property
    def plain(self) -> bool:
        """Its calls run in any slot, at any time."""
        needs = self.options.needs
        return not (needs.cores or needs.memory or needs.gpus or self.least_seconds)

    @property
    def used(self) -> bool:
        """It has calls, or some that will come back."""
        return bool(self.waiting or self.running or self.parked)

    def push(self, call: Call) -> None:
        """Put a call last."""
        self.calls.append(call)
        self.waiting += 1

    def push_front(self, call: Call) -> None:
        """Put a call that comes back first, for it has waited long; but behind others that came back and have waited longer."""
        self.back.append(call)
        self.waiting += 1

    def _take_in(self) -> None:
        """What has come back, all at once, gets its place in the line."""
        calls, front, newest = self.calls, self.back, max(map(_age, self.back))
        self.back = []
        looks = 0
        while calls and looks < OLDER_MOST and _age(calls[0]) < newest:
            front.append(calls.popleft())
            looks += 1
        calls.extendleft(sorted(front, key=_age, reverse=True))

    def pop(self) -> Call | None:
        """Take the first live call; None when there is none."""
        if self.back:
            self._take_in()
        calls = self.calls
        while calls:
            call = calls.popleft()
            if not call.cancelled:
                self.waiting -= 1
                return call
        return None

    def first(self) -> Call | None:
        """The first live call, which stays; None when there is none."""
        if self.back:
            self._take_in()
        calls = self.calls
        while calls and calls[0].cancelled:
            calls.popleft()
        return calls[0] if calls else None

    def alike(self, most: int) -> int:
        """How many calls from the first on need just the same files, at most so many."""
        first = self.first()
        if first is None:
            return 0
        wanted = first.spec.inputs
        return sum(1 for _ in takewhile(lambda call: call.spec.inputs == wanted, islice(self.calls, most)))

    def drop(self, call: Call) -> None:
        """A waiting call is cancelled: leave its tombstone, sweep when tombstones are the most."""
        call.cancelled = True
        self.waiting -= 1
        if len(self.calls) > 64 and self.waiting * 2 < len(self.calls):
            self.calls = deque(call for call in self.calls if not call.cancelled)

    def every(self) -> list[Call]:
        """All calls in it, tombstones among them."""
        return [*self.back, *self.calls]

    def clear(self) -> None:
        """Forget them all, at the manager's end."""
        self.back.clear()
        self.calls.clear()


def message_bytes(call: CallSpec | CallRun) -> int:
    """About how many bytes a message has for it, but for what is short."""
    size = 64 + len(call.payload) + 48 * len(call.spans) + 160 * len(call.inputs)
    if call.sandbox is not None:
        size += sum(80 + len(path) + len(base) for path, _, base in call.sandbox.inputs)
        size += sum(80 + len(path) for path, _ in call.sandbox.outputs)
    return size


def _age(call: Call) -> tuple[float, CallId]:
    """What calls are ordered by: when they were submitted."""
    return call.queued_at, call.spec.call
