"""The exit status of a program that a Ctrl-C has ended while it ended already.

What a shell would run next counts on the results, so the status is to say that they are not there. The interpreter has such a status for a
Ctrl-C that ends the program itself; what comes in a handler of its end is only shown. So it is told again when all else is done: handlers
run from the last to the first, and this one is registered when `windlass` is imported.
"""

from __future__ import annotations

import atexit

_interrupted = False


def ends_by_interrupt() -> None:
    """This program is to end as one that a Ctrl-C has ended."""
    global _interrupted
    _interrupted = True


def _end() -> None:
    if _interrupted:
        try:
            exec("raise KeyboardInterrupt")  # it remembers that the last text it has run ended so, whoever caught that
        except KeyboardInterrupt:
            pass


atexit.register(_end)
