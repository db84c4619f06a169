"""The exit status of a program that a Ctrl-C has ended while it ended already.

What a shell would run next counts on the results, so the status is to say that they are not there. The interpreter has such a status for a
Ctrl-C that ends the program itself; what comes in a handler of its end is only shown. So the process ends by SIGINT, as that one does, but
as the very last: when the interpreter lets go of `sys`, all handlers have run and what was written is out. Until its handler
has run, another Ctrl-C means what it always does.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable

_interrupted = False


def ends_by_interrupt() -> None:
    """This program is to end as one that a Ctrl-C has ended."""
    global _interrupted
    _interrupted = True


class _Last:
    """Ends this process as it goes. It has what it needs, for by then modules have lost what they had."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __del__(self, kill: Callable[[int, int], None] = os.kill, number: int = int(signal.SIGINT)) -> None:
        kill(self._process, number)


def _end() -> None:
    if _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.__dict__["_windlass_last"] = _Last()


atexit.register(_end)
