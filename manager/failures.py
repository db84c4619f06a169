"""What went wrong with calls, for people to read: how many, the newest ones each, and all of them by cause. Pure.

Theory of operation
-------------------
The core tells `Failures` of each attempt whose call goes back to the queue (`tried_again`), and of each call that ends without a result
(`ended`), once, at its one end. Whoever asks reads from here: status and metrics the numbers, ``windlass calls`` the newest
`FAILURES_KEPT` calls, dashboard and report the causes (`windlass.manager.causes`). So the numbers of all of them agree: causes have as
many calls as failed, and as many attempts as were retried or lost.

A call leaves the books when it ends; what stays of it here is small, without arguments and result, and nothing is ever decided by it. One
failure costs the same whatever has failed before, and a call that returns costs nothing. What is cancelled has not failed. What ends with
its manager counts, and no more: nobody can ask for it then.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from windlass.manager.calls import CLOSED, LOST, Call
from windlass.manager.causes import Causes
from windlass.manager.names import Names
from windlass.messages import CallEnd, CallId, CallSpec, WorkerId

#: With texts of at most `TEXT_MOST` this is under a megabyte.
FAILURES_KEPT: Final = 1000
#: Characters of tags and errors.
TEXT_MOST: Final = 300
_TRACEBACK: Final = "Traceback (most recent call last):"


class FailedCall(msgspec.Struct, frozen=True, gc=False):
    """One call that has ended without a result, and was not cancelled. Times by the manager's clock."""

    call: CallId
    library: str
    function: str
    tag: str
    #: Where its last attempt was; "": it was never sent.
    worker: WorkerId
    host: str
    queued_at: float
    #: 0: it was never sent.
    sent_at: float
    ended_at: float
    #: That began.
    attempts: int
    #: How the last of them ended: "raised", "timed out", ...; "" where there was no attempt.
    outcome: str
    #: The first line of what its future raises.
    error: str


class Failures:
    """All failures in one manager's life."""

    def __init__(self, names: Names) -> None:
        self._names = names
        #: Calls that ended so, attempts that were worth another, and attempts that were lost with their worker.
        self.calls = self.retried = self.lost = 0
        #: The newest call last.
        self.newest: deque[FailedCall] = deque(maxlen=FAILURES_KEPT)
        self.causes = Causes()

    def ended(self, of: Call | CallSpec, end: CallEnd, now: float) -> None:
        """A call has ended without a result; ``of``: its spec, if it was never queued."""
        self.calls += 1
        if end.outcome == CLOSED:
            return
        call = of if isinstance(of, Call) else None
        spec = of.spec if isinstance(of, Call) else of
        attempts = call.attempts or () if call is not None else ()
        worker, host, outcome = (attempts[-1].worker, attempts[-1].host, attempts[-1].outcome) if attempts else (WorkerId(""), "", "")
        library, function, error = self._names.library(spec.library), self._names.function(spec.function), first_line(end)
        self.newest.append(
            FailedCall(
                spec.call,
                library,
                function,
                spec.tag[:TEXT_MOST],
                worker,
                host,
                call.queued_at if call is not None else now,
                call.sent_at if call is not None else 0.0,
                now,
                len(attempts),
                outcome[:TEXT_MOST],
                error,
            )
        )
        self.causes.note(end, f"{library}.{function}", error, host, now)

    def tried_again(self, call: Call, end: CallEnd, now: float) -> None:
        """An attempt, which its call knows, has ended so; the call waits again, or ends for another reason."""
        if end.outcome == LOST:
            self.lost += 1
        else:
            self.retried += 1
        host = call.attempts[-1].host if call.attempts else ""
        name = self._names.whole(call.spec.library, call.spec.function)
        self.causes.note(end, name, first_line(end), host, now, retried=True)


def first_line(end: CallEnd) -> str:
    """``ValueError: no such row``: type and message of what a function raised, else the beginning of what is said of the end."""
    detail = end.detail
    if detail is None:
        return ""
    if detail.types:
        # The text is a traceback, or a chain of them, and the newest exception stands last.
        name = detail.types[0].removeprefix("builtins.")
        begin = detail.text.rfind(f"\n{name}") + 1
        if begin or detail.text.startswith(name):
            return detail.text[begin : begin + TEXT_MOST].partition("\n")[0]
        return name[:TEXT_MOST]
    line = detail.text[: TEXT_MOST * 4].strip().partition("\n")[0]
    if line.endswith(_TRACEBACK):  # of a library that cannot start: what it ends with says more
        line = line.removesuffix(_TRACEBACK) + detail.text[-4 * TEXT_MOST :].rstrip().rpartition("\n")[2]
    return line[:TEXT_MOST]
