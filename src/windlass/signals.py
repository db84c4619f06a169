"""Signals in programs of several threads: a main thread that waits hears each, whichever thread the kernel has given it to.

Theory of operation
-------------------
Python runs handlers in the main thread, when that runs Python. One that waits for a lock does not: a signal has to break its wait. The
kernel wakes the main thread for it, but until that has got a processor any other thread which starts a process or a thread, or changes
what it has blocked, may take the signal in its place. Then the main thread goes on waiting, and a factory that starts a pilot just when
it is told to end never hears of it. What Python writes to a pipe (`signal.set_wakeup_fd`), it writes in whatever thread: so the main thread
waits for that pipe, and another one for what is waited for.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def hearing_signals(wait: Callable[[], T]) -> T:
    """What ``wait()`` gives or raises; it is called on a thread of its own while this one, the main thread, runs handlers of signals.

    A handler that raises ends this, and not ``wait``.
    """
    bell, ring = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(ring, False)
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(wait())
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            done.set_exception(error)
        with lock:
            if not over:
                os.write(ring, b"\0")

    over = False
    lock = threading.Lock()
    before = signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    try:
        threading.Thread(target=work, name="windlass-waiting", daemon=True).start()
        while not done.done():
            select.select([bell], [], [])
            os.read(bell, 4096)
    finally:
        signal.set_wakeup_fd(before)
        with lock:
            over = True
            os.close(bell)
            os.close(ring)
    return done.result()
