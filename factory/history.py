"""What a pool has been through: refusals, silences, deaths at start, commands sent. Pure.

Theory of operation
-------------------
Four kinds of failure of a command, each with an answer of its own:

=============  =========================================================================================================
`Rejected`     asking again gives the same answer: the pool is paused at once, with the text (but see below of nodes that are avoided)
`NotNow`       what was asked is well, and the site takes nothing for now: it is asked again every 5 min, and nothing is paused
`OverLimit`    the batch is halved, and the next submission waits for an own pilot to end (or 5 min; 10 s where the pool has none, doubling
               to 5 min once a single pilot is too many)
`Unreachable`  5 s, doubling to 5 min; never counts towards a pause. One that lasts is told of after 1, 5 and 15 min, then each 15 min
=============  =========================================================================================================

A *death at start* is a pilot that ended before it served.  Deaths in a row are followed by 0, 1, 15, 30, 60 min of waiting, with one
pilot at a time as a probe (by 0, 2, 5, 15, 60 s where pilots are processes of this machine, which nobody else waits for); after
``max_start_failures`` in a row the pool is paused, with the pilot's own last words.  One pilot that serves ends the row.

*Trouble* is a pilot that left because its node could not serve from the start (its disk is full: `windlass.messages.CANNOT_SERVE`).
What has filled empties again, so that is followed by waits of 0, 1, 5, 10 min (on this machine as above), and by no pause, however long the
row is.  A connection does not end this row: a pilot does that has begun since, and has served for `PROVEN` seconds, or to its end; and so
does time.  While others serve well some nodes are at fault, not the pool: if nodes can be avoided, the wait is a minute at most then, and
there is no probe.

*Taken* are pilots that others cancelled (an administrator, a rule of the site) or held before they had served for `LASTED` seconds, and
those that lost their node before they served. (One that is held before it served died at start: that is as often as not for what the pool
asks.) In a row they are followed by waits of 0, 1, 5, 15 min and by no pause, as nobody here knows when that ends.  One counts only if it
was submitted since the last one that did: what is taken together, or bit by bit, is one, and only replacements that are taken as well make
a row.  Half an hour without any ends it.

*Black-hole nodes* end pilots at once and so get the next ones, and the next.  A node with two in a row is avoided for an hour,
and each node counts once in its row, so that one bad node does not pause a pool (but a pilot that was submitted to keep away from it, and
came there all the same, counts: this batch system cannot avoid nodes).  Deaths on nodes that are not known count singly.  A submission that
is refused while nodes are avoided is tried once more without, as perhaps no node was left; from then on deaths count singly, too.

*Hosts that programs have blocked* are avoided as well.  Where no node is left beside them, nothing is wrong with the pool, and it is not
paused: it waits until one of them is unblocked, and tries now and then, as nodes come and go.

`CommandBudget` keeps the limits on commands: it is asked before each, told of each, keeps some for queries, and says how far apart these
have to be for the others' sake: a query each 30 s would leave four submissions for ten minutes in which pilots die again and again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from windlass.factory.backend import CommandLimits

UNREACHABLE_FIRST: Final = 5.0
UNREACHABLE_LONGEST: Final = 300.0
#: A silence is told of after so many seconds, and again each time that the last of them have passed.
SILENCE_TOLD: Final = (60.0, 300.0, 900.0)
#: Seconds to wait after deaths at start in a row, in a batch system that is shared.
START_BACKOFF: Final = (0.0, 60.0, 900.0, 1800.0, 3600.0)
#: The same for pilots on this machine.
OWN_START_BACKOFF: Final = (0.0, 2.0, 5.0, 15.0, 60.0)
#: Seconds to wait after pilots in a row whose nodes could not serve, in a batch system that is shared.
TROUBLE_BACKOFF: Final = (0.0, 60.0, 300.0, 600.0)
#: Seconds to wait after pilots in a row that others took away.
TAKEN_BACKOFF: Final = (0.0, 60.0, 300.0, 900.0)
#: A pilot that has served for so many seconds shows that its node can.
PROVEN: Final = 60.0
#: One that others cancel after it has served for so many seconds is replaced as if it had ended by itself.
LASTED: Final = 600.0
#: Waiting at a limit on jobs: with own pilots in the queue, whose end is what is waited for, and without.
OVER_LIMIT_WAIT: Final = 300.0
OVER_LIMIT_ALONE: Final = 10.0
#: So many single pilots in a row that were too many are told of.
LIMITS_TOLD: Final = 4
#: A batch that has grown to this size again is not limited any more.
BATCH_FREE: Final = 64
#: Seconds between tries where programs have blocked all that fits: nodes come and go.
BLOCKED_WAIT: Final = 300.0
#: The same where the site takes nothing for now.
SHUT_WAIT: Final = 300.0
NODE_DEATHS: Final = 2
NODE_AVOIDED: Final = 3600.0
#: Commands of the ten minutes that only queries, and a factory that closes, may use.
KEPT_COMMANDS: Final = 6
#: Where much is submitted and cancelled, queries are fewer: there is room for so many commands more, and at least so many queries.
MORE_COMMANDS: Final = 4
LEAST_QUERIES: Final = 5
BURST_SECONDS: Final = 10.0
SUSTAINED_SECONDS: Final = 600.0


@dataclass(slots=True)
class Row:
    """Pilots in a row that came to nothing in one way, and the nodes to keep away from for that."""

    #: So many, each node once.
    count: int = 0
    #: The next submission waits until then.
    wait: float = 0.0
    _nodes: set[str] = field(default_factory=set[str])
    _deaths: dict[str, int] = field(default_factory=dict[str, int])
    _avoided: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, node: str, made_at: float, now: float, backoff: tuple[float, ...]) -> bool:
        """One more, submitted at ``made_at``, on a node ("": not known, or none can be avoided); whether it counts."""
        avoided_from = self._avoided.get(node, math.inf) - NODE_AVOIDED
        counts = not node or node not in self._nodes or made_at > avoided_from
        if node:
            self._nodes.add(node)
            deaths = self._deaths[node] = self._deaths.get(node, 0) + 1
            if deaths >= NODE_DEATHS:
                self._avoided.setdefault(node, now + NODE_AVOIDED)
        if counts:
            self.count += 1
            self.wait = now + backoff[min(self.count, len(backoff)) - 1]
        return counts

    def end(self) -> None:
        """The next one is the first of a row."""
        self.count, self.wait = 0, 0.0
        self._nodes.clear()

    def forgive(self, node: str) -> None:
        """This node is well."""
        self._deaths.pop(node, None)
        self._avoided.pop(node, None)

    def avoid_none(self) -> bool:
        """Keep away from no node any more; whether there were any."""
        there_were = bool(self._avoided)
        self._avoided.clear()
        return there_were

    def avoided(self, now: float) -> set[str]:
        """Nodes to keep away from."""
        for node in [node for node, until in self._avoided.items() if until <= now]:
            self.forgive(node)
        return set(self._avoided)

    def forget(self) -> None:
        """All of it."""
        self.end()
        self._deaths.clear()
        self._avoided.clear()


@dataclass(slots=True)
class History:
    """What a pool has been through, and what follows for its next submission. Times are the caller's ``now``."""

    max_start_failures: int = 3
    #: Seconds to wait after the first, second, ... death at start in a row.
    start_backoff: tuple[float, ...] = START_BACKOFF
    #: The same for pilots whose nodes could not serve.
    trouble_backoff: tuple[float, ...] = TROUBLE_BACKOFF
    #: Pilots may be on different nodes.
    several_nodes: bool = True
    #: Why the pool is paused; "": it is not.
    paused: str = ""
    #: The newest failure of any kind.
    failure: str = ""
    #: Deaths at start in a row, as counted towards a pause.
    starts: Row = field(default_factory=Row)
    #: Pilots in a row whose nodes could not serve; when that was last, and what it was.
    troubles: Row = field(default_factory=Row)
    troubled_at: float = -math.inf
    trouble: str = ""
    #: Times in a row that pilots were taken away; when the last one that counts was, and what it was.
    takes: Row = field(default_factory=Row)
    taken_at: float = -math.inf
    taken: str = ""
    #: Why a pilot that had served was last held.
    held: str = ""
    #: A submission may not be larger than this; 0: no limit.
    batch_cap: int = 0
    #: Single pilots in a row that were too many although the pool had none.
    limits_alone: int = 0
    #: Hosts that programs have blocked, beside which no node was left for the last submission.
    blocked: tuple[str, ...] = ()
    _blocked_wait: float = 0.0
    #: Why the site took nothing when it was last asked; "": it did.
    shut: str = ""
    _shut_wait: float = 0.0
    _limit_wait: float = 0.0
    #: The batch system has answered at least once.
    answers: bool = False
    #: When the first command got no answer since it last did, inf: none; how many they are, and after how long that is told next.
    silent_since: float = math.inf
    silences: int = 0
    _silence_told_after: float = 0.0
    _silence_wait: float = 0.0
    #: Pilots can be told to keep away from nodes.
    _avoids: bool = True
    _wanted_now: int = 0
    #: (until when, so many were wanted), numbers falling: the maximum of a sliding window.
    _wanted: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    @property
    def start_failures(self) -> int:
        """Deaths at start in a row."""
        return self.starts.count

    # ---------------------------------------------------------------- commands

    def answered(self) -> None:
        """The batch system has answered a command."""
        self.answers, self.silent_since, self.silences, self._silence_wait = True, math.inf, 0, 0.0

    def accepted(self) -> None:
        """A submission was accepted: the next may be twice as large."""
        self.answered()
        self.blocked, self._blocked_wait = (), 0.0
        self.shut, self._shut_wait = "", 0.0
        self.limits_alone = 0
        if self.batch_cap:
            self.batch_cap = self.batch_cap * 2 if self.batch_cap * 2 < BATCH_FREE else 0

    def rejected(self, text: str, now: float, blocked: tuple[str, ...] = ()) -> None:
        """A submission was refused as asked; ``blocked``: no node that fits seems to be left beside these, which programs have blocked."""
        self.answered()
        self.failure = text
        if any([self.starts.avoid_none(), self.troubles.avoid_none()]):  # perhaps no node is left
            self._avoids = False
        elif blocked:
            self.blocked, self._blocked_wait = blocked, now + BLOCKED_WAIT
        else:
            self.paused = text

    def not_now(self, text: str, now: float) -> None:
        """A submission was refused for what the site does, not for what it asks: calls are to wait for its end, which a pause would end."""
        self.answered()
        self.failure = self.shut = text
        self._shut_wait = now + SHUT_WAIT

    @property
    def in_trouble(self) -> str:
        """How many could not serve, in words."""
        count = self.troubles.count
        return f"{count} pilots in a row left nodes that cannot serve" if count > 1 else "a pilot left a node that cannot serve"

    def are_blocked(self, hosts: Iterable[str]) -> None:
        """Programs have blocked these now: where one that left no node is not among them any more, the next submission may go."""
        if not set(self.blocked) <= set(hosts):
            self.blocked, self._blocked_wait = (), 0.0

    def over_limit(self, text: str, count: int, own_pilots: int, now: float) -> None:
        """A submission of ``count`` met a limit on jobs while ``own_pilots`` were in the batch system."""
        self.answered()
        self.failure = text
        self.batch_cap = max(1, count // 2)
        if own_pilots or count > 1:
            self.limits_alone = 0
            self._limit_wait = now + (OVER_LIMIT_WAIT if own_pilots else OVER_LIMIT_ALONE)
        else:  # perhaps there is no waiting for it; on this machine it bothers nobody
            longest = OVER_LIMIT_WAIT if self.several_nodes else OVER_LIMIT_ALONE
            self._limit_wait = now + min(longest, OVER_LIMIT_ALONE * 2 ** min(self.limits_alone, 16))
            self.limits_alone += 1

    def unreachable(self, text: str, now: float) -> None:
        """A command got no answer."""
        if not self.silences:
            self.silent_since = now
            # The pool's first failure is told at once; single silences of a busy batch system are nothing to speak of.
            self._silence_told_after = SILENCE_TOLD[0] if self.failure else 0.0
        self.failure = text
        self._silence_wait = now + min(UNREACHABLE_LONGEST, UNREACHABLE_FIRST * 2 ** min(self.silences, 16))
        self.silences += 1

    def tell_silence(self, now: float) -> bool:
        """There is no answer, and that is to be told now; then not for some time."""
        lasts = now - self.silent_since
        if not self.silences or lasts < self._silence_told_after:
            return False
        longest = SILENCE_TOLD[-1]
        self._silence_told_after = next((one for one in SILENCE_TOLD if one > lasts), (lasts // longest + 1) * longest)
        return True

    # ---------------------------------------------------------------- pilots

    def served(self, node: str) -> None:
        """A pilot has connected: whatever was wrong is not wrong everywhere."""
        self.starts.end()
        # While nodes cannot serve, a connection says nothing of what the batch system can.
        self._avoids = self._avoids or not self.troubles.count
        self.serves_on(node)

    def serves_on(self, node: str) -> None:
        """A pilot that has connected earlier is on this node."""
        self.starts.forgive(node)

    def serve_well(self, nodes: Iterable[str]) -> None:
        """Some pilots serve well: trouble is that of single nodes. ``nodes``: of those that began since the last one."""
        for node in nodes:
            self.troubles.end()
            self.troubles.forgive(node)
            self._avoids = True
        if self.troubles.count > 1 and self._avoids and self.several_nodes:
            self.troubles.count = 1
            self.troubles.wait = min(self.troubles.wait, self.troubled_at + self.trouble_backoff[1])

    def age(self, now: float) -> None:
        """Trouble of long ago is the first of a row, should it come again."""
        if self.troubles.count and now >= self.troubled_at + 2 * self.trouble_backoff[-1]:
            self.troubles.end()

    def was_in_trouble(self, node: str, text: str, made_at: float, now: float) -> None:
        """A pilot that was submitted at ``made_at`` has left as its node cannot serve."""
        self.failure, self.trouble, self.troubled_at = text, text.partition("\n")[0], now
        self.troubles.add(node if self._avoids else "", made_at, now, self.trouble_backoff)

    def was_taken(self, text: str, made_at: float, now: float) -> None:
        """Others have ended a pilot that was submitted at ``made_at``."""
        if now >= self.taken_at + 2 * TAKEN_BACKOFF[-1]:
            self.takes.end()
        if self.takes.count and made_at < self.taken_at:
            return  # it was there when the last one was taken, so it says nothing of what comes after that
        self.taken, self.taken_at = text.partition("\n")[0], now
        self.takes.add("", made_at, now, TAKEN_BACKOFF)
        if self.takes.count > 1:  # one may be the user's own doing
            self.failure = text

    def was_held(self, why: str, whose: str, made_at: float, now: float, *, lasted: bool) -> None:
        """A pilot that was submitted at ``made_at`` is held and had served. What holds it, as a limit on memory, may hold the next."""
        self.held, text = why, f"{whose}: {why}"
        if not lasted:
            self.was_taken(text, made_at, now)
        self.failure = text

    def died_at_start(self, node: str, text: str, made_at: float, now: float) -> None:
        """A pilot that was submitted at ``made_at`` ended before it served."""
        self.failure = text
        counts = self.starts.add(node if self._avoids else "", made_at, now, self.start_backoff)
        if counts and self.start_failures >= self.max_start_failures:
            several = f"{self.start_failures} pilots in a row ended before they served, the last one so"
            self.paused = f"{several if self.start_failures > 1 else 'a pilot ended before it served'}: {text}"

    def explained(self, text: str, last_words: str) -> None:
        """A pilot whose death was told of as ``text`` has left last words."""
        if self.failure == text:
            self.failure = f"{text}: {last_words}"
        if self.paused.endswith(text):
            self.paused += f": {last_words}"

    def pilot_ended(self) -> None:
        """An own pilot left the batch system: there is room below the limit again."""
        self._limit_wait = 0.0

    def resume(self) -> None:
        """A person says that it is mended."""
        self.paused, self._limit_wait, self.limits_alone, self._avoids = "", 0.0, 0, True
        self.blocked, self._blocked_wait = (), 0.0
        self.shut, self._shut_wait = "", 0.0
        self.starts.forget()
        self.troubles.forget()
        self.takes.forget()

    # ---------------------------------------------------------------- what follows

    def silent_until(self) -> float:
        """No command before this."""
        return self._silence_wait

    def submit_after(self, now: float) -> tuple[float, str]:
        """When the next submission may go, and what it waits for ("" when nothing)."""
        waits = (
            (self._silence_wait, "the batch system does not answer"),
            (self._limit_wait, "a limit on jobs is reached"),
            (self._shut_wait, f"the batch system takes no pilots for now ({self.shut})"),
            (self._blocked_wait, f"no node that fits is left beside those that programs have blocked ({', '.join(self.blocked)})"),
            (self.starts.wait, f"{self.start_failures} pilots in a row ended before they served"),
            (self.troubles.wait, f"{self.in_trouble} ({self.trouble})"),
            (self.takes.wait, f"its pilots are cancelled or held by others, or lose their nodes at the start ({self.taken})"),
        )
        until, why = max(waits, key=lambda wait: wait[0])
        return (until, why) if until > now else (now, "")

    def avoided(self, now: float) -> tuple[str, ...]:
        """Nodes to keep away from."""
        return tuple(sorted(self.starts.avoided(now) | self.troubles.avoided(now)))

    def note_wanted(self, wanted: int, now: float, window: float) -> None:
        """Remember how many pilots are wanted from now on, for `keep`."""
        last, self._wanted_now = self._wanted_now, wanted
        while self._wanted and (self._wanted[-1][1] <= last):
            self._wanted.pop()
        self._wanted.append((now, last))
        while self._wanted and self._wanted[0][0] <= now - window:
            self._wanted.popleft()

    def keep(self, wanted: int, now: float, window: float) -> tuple[int, float]:
        """The most pilots wanted within the last ``window`` seconds, and when that will be less (0: not foreseen)."""
        for until, number in self._wanted:  # falling numbers
            if number <= wanted:
                break
            if until > now - window:
                return number, until + window
        return max(wanted, 0), 0.0


@dataclass(slots=True)
class SentCommands:
    """When commands were sent to one batch system; its pools share this."""

    all: deque[float] = field(default_factory=deque[float])
    queries: deque[float] = field(default_factory=deque[float])

    def note(self, now: float, *, query: bool, keep: int) -> None:
        """One more; the newest ``keep`` are remembered."""
        for times in (self.all, self.queries) if query else (self.all,):
            times.append(now)
            while len(times) > keep:
                times.popleft()


@dataclass(slots=True)
class CommandBudget:
    """Counts commands against limits."""

    limits: CommandLimits
    #: (kind, number) sent in all, for this pool.
    sent: dict[str, int] = field(default_factory=dict[str, int])
    #: When commands were sent, by whichever pool.
    times: SentCommands = field(default_factory=SentCommands)

    def spend(self, kind: str, now: float) -> None:
        """A command is being sent."""
        self.sent[kind] = self.sent.get(kind, 0) + 1
        self.times.note(now, query=kind == "query", keep=self.limits.sustained)

    def query_pace(self, now: float, interval: float) -> float:
        """Seconds between queries, ``interval`` or more: they leave room for as many other commands as lately, and some more.

        Who asks for more queries than the limit has room for gets half of them so, and the others in the time that is left: else they
        would take the ten minutes' commands, and nothing could be submitted, nor a factory end, until these are over.
        """
        since = now - SUSTAINED_SECONDS
        queries = sum(at > since for at in self.times.queries)
        others = sum(at > since for at in self.times.all) - queries
        most = self.limits.sustained - KEPT_COMMANDS - MORE_COMMANDS
        room = max(most - others, LEAST_QUERIES)
        fitting, asked, quick = SUSTAINED_SECONDS / room, interval * most / room, room // 2
        if asked < fitting and queries >= quick:
            fitting = asked = (SUSTAINED_SECONDS - quick * asked) / (room - quick)
        return max(interval, min(fitting, asked))

    def free_at(self, now: float, *, kept: bool = False, count: int = 1) -> float:
        """When the next ``count`` commands may be sent: ``now`` or later.

        Some of the ten minutes' commands are kept for queries and for the end of a factory (``kept``).
        """
        left = 0 if kept else min(KEPT_COMMANDS, self.limits.sustained - 1)
        return max(
            now,
            self._room_at(self.limits.burst - count + 1, BURST_SECONDS),
            self._room_at(self.limits.sustained - left - count + 1, SUSTAINED_SECONDS),
        )

    def _room_at(self, number: int, seconds: float) -> float:
        if len(self.times.all) < number:
            return float("-inf")
        return self.times.all[-number] + seconds
