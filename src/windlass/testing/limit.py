"""An end to waiting: what takes longer than its limit is interrupted, with a text that says what was going on.

Theory of operation
-------------------
A thread watches the clock.  When the limit is over it writes down how things stand, and sends this process's main thread a signal whose
handler raises; a wait for a future, a lock or a socket ends by that.  It does so again every few seconds, as programs catch what they
should not.
The signal is SIGVTALRM, which nobody uses (SIGALRM is pytest-timeout's).  Outside the main thread no handler can be set: there the text is
printed, and that is all.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Final, NoReturn

#: Seconds after which who did not listen is told again.
AGAIN: Final = 10.0


@contextlib.contextmanager
def within(limit: float, doing: Callable[[], str], fail: Callable[[str], NoReturn]) -> Generator[None]:
    """Call ``fail``, which raises, in the middle of the block when it takes longer than ``limit`` seconds. 0: no limit."""
    if not limit:
        yield
        return
    over = threading.Event()
    told: list[str] = []
    main = threading.main_thread()
    may_raise = threading.current_thread() is main

    def interrupt(number: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True  # pytest shows where the test was
        if told and not over.is_set():
            fail(told[0])

    before = signal.signal(signal.SIGVTALRM, interrupt) if may_raise else None

    def watch() -> None:
        wait = limit
        while not over.wait(wait):
            text = f"it was not over after its limit of {limit:g} s. What the pool was doing:\n{doing()}"
            told[:] = [text]
            if may_raise and main.ident is not None:
                signal.pthread_kill(main.ident, signal.SIGVTALRM)
            else:
                print(text, file=sys.stderr)
            wait = AGAIN

    watcher = threading.Thread(target=watch, name="windlass-testing-limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        if may_raise:
            signal.signal(signal.SIGVTALRM, before)
