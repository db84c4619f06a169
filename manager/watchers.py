"""Who is told that a future has ended: threads that sleep, tasks that await, and whoever else watches.

Theory of operation
-------------------
A watcher is told on the thread that ends the future, the manager's as a rule, so it only passes the news on: a `Sleeper` releases
the lock that its thread waits for, a `TaskWaiting` puts an asyncio future into its loop's `LoopPost`, which signals the loop once
for all that has come since it last looked. The methods are those of `concurrent.futures`' own waiters, which are watchers too.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any, Protocol

from windlass.manager.inbox import Inbox


class Watcher(Protocol):
    """Is told of a future's end on the thread that ends it; must be quick and must not raise."""

    def add_result(self, future: Any) -> None: ...
    def add_exception(self, future: Any) -> None: ...
    def add_cancelled(self, future: Any) -> None: ...


class Sleeper:
    """One thread that waits for one future."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, timeout: float | None) -> bool:
        if timeout is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=timeout) if timeout > 0 else self._lock.acquire(blocking=False)

    def add_result(self, future: Any) -> None:
        self._lock.release()

    add_exception = add_cancelled = add_result


class LoopPost:
    """Wakes tasks of one event loop, one signal to the loop for many futures."""

    __slots__ = ("_inbox", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # the table of posts must not keep its loops alive
        self._inbox: Inbox[asyncio.Future[None]] = Inbox(self._wake)

    def _wake(self) -> None:
        loop = self._loop()
        if loop is not None:
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        for waiting in self._inbox.drain():
            if not waiting.done():
                waiting.set_result(None)

    def put(self, waiting: asyncio.Future[None]) -> None:
        try:
            self._inbox.put(waiting)
        except RuntimeError:
            pass  # the loop is closed: its tasks are gone


_posts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopPost] = weakref.WeakKeyDictionary()


class TaskWaiting:
    """One task that awaits one future."""

    __slots__ = ("_post", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        post = _posts.get(loop)
        if post is None:
            post = _posts[loop] = LoopPost(loop)
        self._post = post
        self.waiting: asyncio.Future[None] = loop.create_future()

    def add_result(self, future: Any) -> None:
        self._post.put(self.waiting)

    add_exception = add_cancelled = add_result
