"""Where callbacks of calls run: not on the manager's thread.

Theory of operation
-------------------
A done-callback is user's code: it may be slow, and it may raise. The manager's thread hands it over (`hand_over`) and goes on. By
default one `CallbackThread` runs all callbacks of a program, one after another, in the order in which their calls ended.  Where no thread
can be started (a limit, the end of the interpreter) they wait for the next one that can: other calls' ends must not be lost with them.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Final

from windlass import loops
from windlass.errors import UsageError

_LOGGER: Final = logging.getLogger("concurrent.futures")
CallbackRunner = Callable[[Callable[[], object]], object]


class CallbackThread:
    """Runs callbacks one after another on a thread of their own, which starts with the first one."""

    def __init__(self, name: str = "windlass-callbacks") -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self, work: Callable[[], object]) -> None:
        """Run ``work`` soon. From any thread; never blocks. What it raises is logged."""
        self._work.put(work)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    # A daemon: a callback that hangs must not keep the program from ending.
                    thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    try:
                        thread.start()
                    except RuntimeError as error:
                        _LOGGER.error("callbacks wait until another call ends, as no thread can be started for them: %s", error)
                    else:
                        self._thread = thread

    def _run(self) -> None:
        loops.as_usual()
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException:  # user's code: the thread must outlive whatever it raises
                _LOGGER.exception("exception calling callback")
            del work  # a waiting thread keeps no future alive

    def close(self, timeout: float | None = None) -> None:
        """Run what has been handed over so far, at most ``timeout`` seconds, and end the thread; a later callback starts another."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            self._work.put(None)
            thread.join(timeout)
        elif thread is not None:
            self._work.put(None)


_runner: CallbackRunner = CallbackThread()


def _after_fork() -> None:
    """In a forked copy of the program: the thread, and what it has still to run, is the program's."""
    if isinstance(_runner, CallbackThread):
        set_callback_runner(CallbackThread())


os.register_at_fork(after_in_child=_after_fork)


def set_callback_runner(runner: CallbackRunner) -> CallbackRunner:
    """Have callbacks of calls that a manager ended run through ``runner(work)``, which must not block; gives back the one before."""
    global _runner
    before, _runner = _runner, runner
    return before


def hand_over(work: Callable[[], object]) -> None:
    """Run ``work`` soon, on another thread."""
    _runner(work)


def check_callback(fn: object) -> None:
    """Raises `UsageError` for what cannot be told of an end."""
    if not callable(fn):
        raise UsageError(f"add_done_callback({fn!r}): give a function of one argument, the future, as in add_done_callback(print)")
    if getattr(fn, "__module__", "") == "asyncio.tasks":  # it would be called on another thread, and its loop never wake
        raise UsageError("asyncio.wait takes asyncio's own futures: write asyncio.wait([asyncio.wrap_future(future)]), or await the future")
