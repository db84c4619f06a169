"""Where one thread waits for what others hand it.

Theory of operation
-------------------
`queue.SimpleQueue` is that, and its `put` takes no lock, so that handlers of signals and finalisers may call it. But up to CPython 3.12 its
`get` with a timeout may wait for ever: where its own lock is free and nothing is there, it takes the lock, looks how much of the time is
left, and waits without a limit if none is. The lock is never free just after a `get` that has found nothing; so one that does not wait goes
before.
"""

from __future__ import annotations

import queue
from typing import TypeVar

T = TypeVar("T")


class Mailbox(queue.SimpleQueue[T]):
    """A `queue.SimpleQueue` for one reader, whose `get` waits no longer than it is told."""

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """The next thing; ``timeout`` in seconds. Raises `queue.Empty`."""
        if block and timeout is not None:
            try:
                return super().get(block=False)
            except queue.Empty:
                pass
        return super().get(block, timeout)
