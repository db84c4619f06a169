"""What is kept of calls that ended without a result, for people to read. Pure.

Theory of operation: a call leaves the books when it ends. Of one that failed a small record stays here, without arguments and result, until
`FAILURES_KEPT` newer ones have come; nothing is ever decided by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from windlass.manager.calls import Call
from windlass.manager.libraries import LibraryState
from windlass.messages import CallEnd, CallId, CallSpec, FunctionDef, FunctionId, LibraryId, WorkerId

#: With texts of at most `TEXT_MOST` this is under a megabyte.
FAILURES_KEPT: Final = 1000
#: Characters of names, tags and errors.
TEXT_MOST: Final = 300


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
    #: As the story of its attempts has it: "raised", "timed out", ...; "" where there was no attempt.
    outcome: str
    #: The first line of what its future raises.
    error: str


def failed_call(
    of: Call | CallSpec, end: CallEnd, libraries: Mapping[LibraryId, LibraryState], functions: Mapping[FunctionId, FunctionDef], now: float
) -> FailedCall:
    """The record of a call that has just ended so; ``of`` is its spec where it was never queued."""
    call = of if isinstance(of, Call) else None
    spec = of.spec if isinstance(of, Call) else of
    last = call.story[-1] if call is not None and call.story else None
    return FailedCall(
        spec.call,
        library_name(libraries, spec.library),
        function_name(functions, spec.function),
        spec.tag[:TEXT_MOST],
        last.worker if last is not None else WorkerId(""),
        last.host if last is not None else "",
        call.queued_at if call is not None else now,
        call.sent_at if call is not None else 0.0,
        now,
        len(call.story) if call is not None and call.story else 0,
        last.outcome[:TEXT_MOST] if last is not None else "",
        first_line(end),
    )


def library_name(libraries: Mapping[LibraryId, LibraryState], library: LibraryId) -> str:
    """The name of a version."""
    state = libraries.get(library)
    return (state.spec.name if state is not None else library.partition("@")[0])[:TEXT_MOST]


def function_name(functions: Mapping[FunctionId, FunctionDef], function: FunctionId) -> str:
    """What people call it; "" for one that is not known any more."""
    known = functions.get(function)
    return known.name[:TEXT_MOST] if known is not None else ""


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
    return detail.text[: TEXT_MOST * 4].strip().partition("\n")[0][:TEXT_MOST]
