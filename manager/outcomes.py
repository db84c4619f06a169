"""How the end of a call that has no result becomes the exception that its future raises."""

from __future__ import annotations

from windlass.errors import (
    CallFailed,
    CallTimeout,
    CallTooLong,
    Closed,
    FileUnavailable,
    InternalError,
    LibraryFailed,
    NotPicklable,
    NotPossible,
    OutOfMemory,
    SlotDied,
    WorkersLost,
)
from windlass.manager.calls import CLOSED, LIBRARY_FAILED, LOST, NOT_POSSIBLE, TOO_LONG
from windlass.messages import BAD_CALL, CANCELLED, DIED, NO_FILE, OUT_OF_MEMORY, TIMED_OUT, CallDone, EndDetail


def failure(done: CallDone) -> BaseException:
    """The exception for a call that ended neither by returning nor by its function's exception."""
    end = done.end
    detail = end.detail or EndDetail()
    text = detail.text
    error: BaseException
    match end.outcome:
        case o if o == DIED:
            tail = end.stderr.decode(errors="replace").strip()
            error = SlotDied(
                text + (f"\nthe end of its stderr:\n{tail}" if tail else ""),
                signal=detail.signal,
                exit_status=detail.exit_status,
                peak_memory=detail.peak_memory,
                stderr=tail,
            )
        case o if o == OUT_OF_MEMORY:
            error = OutOfMemory(text, peak=detail.peak_memory, share=detail.share, limit=detail.limit)
        case o if o == TIMED_OUT:
            error = CallTimeout(text)
        case o if o == LOST:
            error = WorkersLost(text)
        case o if o == TOO_LONG:
            error = CallTooLong(text)
        case o if o == LIBRARY_FAILED:
            error = LibraryFailed(text)
        case o if o == NOT_POSSIBLE:
            error = NotPossible(text)
        case o if o == CLOSED:
            error = Closed(text)
        case o if o == NO_FILE:
            error = FileUnavailable(text)
        case o if o == BAD_CALL:
            error = NotPicklable(text) if detail.unpicklable else CallFailed(text)
        case o if o == CANCELLED:
            error = CallFailed(text or "the call was cancelled at its worker")
        case _:
            error = InternalError(f"call {end.call} ended with outcome {end.outcome}: {text}")
    if done.attempts:
        for one in done.attempts:
            error.add_note(f"attempt {one.attempt} on {one.host} ({one.worker}): {one.outcome} after {one.seconds:.3g} s")
    return error
