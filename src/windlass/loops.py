"""The event loop that managers, workers and ports run on: uvloop where it is installed, else asyncio's own.

Theory of operation
-------------------
With full batches the loop hardly counts, but a program that waits for one result at a time pays for every turn of it: four turns a call,
each with TLS. Measured on two cores, a TLS echo between two processes takes 89 µs with asyncio's own loop and 34 µs with uvloop. Everything
is written against asyncio and works with either.

A thread that wakes may take the processor from one that computes, and ours wake at the end of each call: where every processor has a call,
the one that has just sent its result lost its processor to the loop that read it, a thousand times a second and more. So the loops ask for
the kernel's policy for work that is in no such hurry, ``SCHED_BATCH``: one that wakes takes a free processor at once, and else waits until
the turn of what computes is over, a millisecond or a few. By then more results are there, and all go in one message. Libraries, and so
calls, are scheduled as everything of the user's is (`scheduled_as_usual`), and so are done-callbacks with all that they start (`as_usual`):
threads and processes inherit that policy, whatever ``SCHED_RESET_ON_FORK`` says.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from windlass import turns
from windlass.descriptors import occupy_standard

T = TypeVar("T")

#: Whether it was a loop here that changed how its thread is scheduled: what somebody else has chosen, with nice or chrt, stays.
_patient = False


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on the best loop there is, in a thread that from now on takes no processor from one that computes."""
    _be_patient()
    occupy_standard()
    try:
        return _run(main)
    finally:
        turns.leave()


def _run(main: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    except BaseException:
        main.close()  # as a program's end forbids what is imported there, which is told; not that nobody has awaited this
        raise
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


@contextmanager
def scheduled_as_usual() -> Generator[None]:
    """Processes that a loop's thread starts in this block are scheduled as they would be without it."""
    if not _patient or os.sched_getscheduler(0) != os.SCHED_BATCH:
        yield
        return
    as_usual()
    try:
        yield
    finally:
        _be_patient()


def as_usual() -> None:
    """This thread, which a loop's thread may have started, is scheduled as usual: for one that runs what is the user's."""
    if _patient and os.sched_getscheduler(0) == os.SCHED_BATCH:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _be_patient() -> None:
    """For this thread, and those that it starts."""
    global _patient
    with suppress(OSError, AttributeError):  # a sandbox may forbid it, other systems do not have it
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            _patient = True
