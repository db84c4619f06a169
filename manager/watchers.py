"""Who is told that a future has ended: threads that sleep, tasks that await, and whoever else watches.

Theory of operation
-------------------
A watcher is told on the thread that ends the future, the manager's as a rule, so it only passes the news on: a `Sleeper` releases
the lock that its thread waits for, a `TaskWaiting` puts itself into its loop's `LoopPost`, which signals the loop once for all that
has come since it last looked. The methods are those of `concurrent.futures`' own waiters, which are watchers too.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
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


class Watched(Protocol):
    """Has watchers."""

    def watch(self, watcher: Watcher) -> None: ...
    def unwatch(self, watcher: Watcher) -> None: ...


class LoopPost:
    """Wakes tasks of one event loop, one signal to the loop for many futures."""

    __slots__ = ("__weakref__", "_inbox", "_signal", "_told", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the loop's thread."""
        self.loop = weakref.ref(loop)  # the table of posts must not keep its loops alive
        self._inbox: Inbox[TaskWaiting] = Inbox(self._wake)
        #: Those whose turn it is.
        self._told: deque[TaskWaiting] = deque()
        self._signal = -1
        try:
            signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except (AttributeError, OSError):
            return
        try:
            loop.add_reader(signal, self._deliver)
        except (NotImplementedError, AttributeError):
            os.close(signal)
            return
        self._signal = signal
        weakref.finalize(loop, os.close, signal).atexit = False

    def _wake(self) -> None:
        loop = self.loop()  # while we have it, the descriptor is ours
        if loop is None or loop.is_closed():
            raise RuntimeError("the loop is closed")
        if self._signal < 0:
            loop.call_soon_threadsafe(self._deliver)
        else:
            os.eventfd_write(self._signal, 1)

    def _deliver(self) -> None:
        if self._signal >= 0:
            try:
                os.eventfd_read(self._signal)
            except BlockingIOError:
                pass
        self._told.extend(self._inbox.drain())
        self._wake_told()

    def _wake_told(self) -> None:
        told = self._told
        if len(told) > 1 and (loop := self.loop()) is not None:
            # The first may raise what ends this run of the loop, or run the loop itself (nest_asyncio) until another of them has gone on.
            loop.call_soon(self._wake_told)
        while told:
            told.popleft().wake()

    def put(self, waiting: TaskWaiting) -> None:
        try:
            self._inbox.put(waiting)
        except RuntimeError:
            pass  # the loop is closed: its tasks are gone


_posts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopPost] = weakref.WeakKeyDictionary()
#: The one asked for last: most programs have one loop.
_latest: LoopPost | None = None


def post_of(loop: asyncio.AbstractEventLoop) -> LoopPost:
    """In the loop's thread."""
    global _latest
    post = _posts.get(loop)
    if post is None:
        post = _posts[loop] = LoopPost(loop)
    _latest = post
    return post


class TaskWaiting:
    """One task that awaits one future; what the task yields.

    To asyncio it is a future with one callback, the task's. That is called by the very turn of the loop that hears of the end; a future of
    asyncio's would take another turn.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_cancelled", "_context", "_loop", "_post", "over")

    _callback: Callable[[TaskWaiting], object] | None
    _context: contextvars.Context
    #: Arguments of the CancelledError.
    _cancelled: tuple[object, ...] | None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        post = _latest
        self._post = post if post is not None and post.loop() is loop else post_of(loop)
        self._loop = loop
        self._asyncio_future_blocking = True
        self._callback = self._cancelled = None
        #: The task has been woken.
        self.over = False

    # -- as a watcher

    def add_result(self, future: Any) -> None:
        self._post.put(self)

    add_exception = add_cancelled = add_result

    # -- as asyncio's future, in the loop's thread

    def wake(self) -> None:
        """Have the task go on, here and now."""
        self.over = True
        callback, self._callback = self._callback, None
        if callback is not None:
            self._context.run(callback, self)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: Callable[[TaskWaiting], object], *, context: contextvars.Context | None = None) -> None:
        self._callback = callback
        self._context = contextvars.copy_context() if context is None else context
        if self.over:
            self._loop.call_soon(self.wake)

    def cancel(self, msg: object = None) -> bool:
        if self.over:
            return False
        self.over = True
        self._cancelled = () if msg is None else (msg,)
        self._loop.call_soon(self.wake)
        return True

    def cancelled(self) -> bool:
        return self._cancelled is not None

    def done(self) -> bool:
        return self.over

    def result(self) -> None:
        if self._cancelled is not None:
            raise asyncio.CancelledError(*self._cancelled)


def told_by(source: Watched) -> Generator[Any, None, None]:
    """Wait, as a task, until it tells of an end: for an ``__await__``."""
    task = TaskWaiting(asyncio.get_running_loop())
    source.watch(task)
    try:
        yield task
    finally:
        source.unwatch(task)
