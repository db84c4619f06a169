"""Where one thread waits for what others hand it.

Theory of operation
-------------------
What is handed over is appended to a deque, and a lock that the reader waits for is released: neither takes a lock, so that handlers of
signals and finalisers may put something at any moment. Whoever finds the lock released need not do it again: the reader looks at the deque
after it has got it.

`queue.SimpleQueue` is meant for the same, but up to CPython 3.12 its `get` with a timeout may wait for ever: when it is woken for nothing,
or by a signal, and the time is over by then, it goes on without a limit.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """As `queue.SimpleQueue`, for one reader."""

    __slots__ = ("_items", "_told")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._told = threading.Lock()
        self._told.acquire()

    def put(self, item: T) -> None:
        """Hand something over; from any thread, and at any moment."""
        self._items.append(item)
        if self._told.locked():
            with suppress(RuntimeError):  # another one has just done it
                self._told.release()

    def empty(self) -> bool:
        """There is nothing to take now."""
        return not self._items

    def first(self) -> T | None:
        """What `get` would give now; None: nothing."""
        return self._items[0] if self._items else None

    def get(self, timeout: float | None = None) -> T:
        """The next thing; ``timeout`` in seconds, None: as long as it takes. Raises `queue.Empty`."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._items:
            left = -1.0 if end is None else min(end - time.monotonic(), threading.TIMEOUT_MAX)
            if end is not None and left <= 0:
                raise queue.Empty
            self._told.acquire(timeout=left)
        return self._items.popleft()

    def get_nowait(self) -> T:
        """The next thing, if there is any. Raises `queue.Empty`."""
        return self.get(0.0)
