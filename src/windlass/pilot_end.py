"""What a function may know and do about the end of its pilot: `time_left` and `on_warning`.

Theory of operation
-------------------
The worker keeps, in memory that it shares with its slots, when it will end their calls and whether that is near. `time_left` reads it, so
it is right also after a signal has brought the end nearer, and calls that do not ask pay nothing.

`on_warning` starts a thread in the process that runs the call, for the first registration of a call; it ends with the call. It sleeps in
poll(2) until the worker sends a byte, and then calls what is registered, one after the other. A thread and not a signal's handler: a
handler would wait for the end of whatever C function the main thread is in, would run between any two lines of the user's, where a lock
that is held is never given back, and would break into system calls of libraries that do not expect it. Callbacks run
beside the main thread, whether it computes or sleeps, and the usual rules of threads hold for what both use.

Outside of a call (a test of the function, a context function) there is nothing to be ended, so nothing is registered.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from math import inf
from threading import Condition, Thread, current_thread
from time import monotonic  # bound here: a function may replace what the module has
from types import TracebackType

from windlass.worker.slot_api import STATE, here

#: How often a call in a slot that runs many looks whether its pilot's end is near.
LOOK_MILLISECONDS = 200


def time_left() -> float:
    """Seconds until the running call would be ended by the end of its pilot, or sooner by its own ``timeout=``; infinity: never.

    Never negative. It may become less at once, when the batch system tells the pilot to go. Outside of Windlass it is infinite; in a
    context function, it is that of the pilot.
    """
    rows, now = STATE.rows, monotonic()
    if rows is None:
        return inf
    left = rows.ends_at - now
    call = here()
    run = call.run
    if run is not None and run.timeout:
        left = min(left, rows.since(call.row) + run.timeout - now)
    return max(0.0, left)


def on_warning(callback: Callable[[float], object]) -> Registration:
    """Have ``callback(seconds_left)`` called, once, when the pilot of the running call is about to end.

    That is when the batch system has told it to go (preemption, SIGTERM, SIGUSR1), or when the end of its walltime is as near as the
    pool's ``grace``; at once where that has happened before. It is called in another thread of the process that runs the call, while the
    call goes on; the call is ended, to be run anew elsewhere, only when the seconds are over. As it may go on there where it was, such
    an end does not count as proof that it needs more than a walltime, but as one of its ``max_losses``. What the
    callback raises is written to the call's stderr.

    The registration ends with the call, by `Registration.cancel`, or at the end of a ``with``; each waits for a callback that is
    running. Outside of a call nothing is registered, so that functions can be tested anywhere. Raises `windlass.errors.UsageError` for what
    cannot be called.
    """
    if not callable(callback):
        from windlass.errors import UsageError

        raise UsageError(f"on_warning({callback!r}): give a function of one argument, the seconds that are left, as in on_warning(save)")
    call, rows = here(), STATE.rows
    if call.run is None or rows is None:
        return Registration(callback, None)
    watch = call.watch
    # A process that the call has forked has the object, and not its thread.
    if not isinstance(watch, Watch) or watch.pid != os.getpid():
        watch = call.watch = Watch()
        rows.watch(call.row)
    return watch.add(callback)


class Registration:
    """One callback that waits for the warning. As a context manager it ends with the block."""

    def __init__(self, callback: Callable[[float], object], watch: Watch | None) -> None:
        self.callback = callback
        self._watch = watch

    def cancel(self) -> None:
        """Do not call it any more; returns when it does not run. Harmless afterwards."""
        if self._watch is not None:
            self._watch.remove(self)

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.cancel()


class Watch:
    """The registrations of one call, and the thread that waits for the warning."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._changed = Condition()
        self._waiting: list[Registration] = []
        self._running: Registration | None = None
        self._over = False
        #: Wakes the thread from its poll.
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = Thread(target=self._run, name="windlass-on-warning", daemon=True)
        self._thread.start()

    def add(self, callback: Callable[[float], object]) -> Registration:
        """Call this, too."""
        registration = Registration(callback, self)
        with self._changed:
            self._waiting.append(registration)
            self._changed.notify_all()
        return registration

    def remove(self, registration: Registration) -> None:
        """Do not call it any more; wait until it does not run, unless it is itself that asks."""
        if self.pid != os.getpid():
            return  # in a fork the lock may be held for ever
        with self._changed:
            if registration in self._waiting:
                self._waiting.remove(registration)
            while self._running is registration and current_thread() is not self._thread:
                self._changed.wait()

    def end(self) -> None:
        """The call is over: drop what was not called, wait for what runs."""
        if self.pid != os.getpid():
            return
        with self._changed:
            self._over = True
            self._waiting.clear()
            self._changed.notify_all()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    # ------------------------------------------------ in the thread

    def _run(self) -> None:
        if not self._warned():
            return
        while (registration := self._next()) is not None:
            _call(registration.callback)
            with self._changed:
                self._running = None
                self._changed.notify_all()

    def _warned(self) -> bool:
        """Wait for the warning; False: the call is over, or the worker is gone."""
        import select

        rows = STATE.rows
        if rows is None:
            return False
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if STATE.warnings >= 0 and not rows.warned:
            poll.register(STATE.warnings, select.POLLIN)
            poll.poll()
        elif not rows.warned:  # in a slot that runs many calls at once its loop reads what the worker sends
            while not rows.warned and not poll.poll(LOOK_MILLISECONDS):
                pass
        return rows.warned

    def _next(self) -> Registration | None:
        """Wait for something to call; None: the call is over."""
        with self._changed:
            while not self._waiting and not self._over:
                self._changed.wait()
            self._running = self._waiting.pop(0) if self._waiting else None
            return self._running


def _call(callback: Callable[[float], object]) -> None:
    """Call it; what it raises is for the user to read."""
    try:
        callback(time_left())
    except BaseException as error:  # noqa: BLE001 - SystemExit too: the call goes on
        import traceback

        with suppress(Exception):
            print(f"windlass.on_warning: {callback!r} raised:", file=sys.stderr)
            traceback.print_exception(error, file=sys.stderr)
