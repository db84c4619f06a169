"""Signals in programs of several threads: heard by who waits for them, whichever thread the kernel has given them to.

Theory of operation
-------------------
Python runs handlers in the main thread, when that runs Python. One that waits for a lock does not: a signal has to break its wait. The
kernel wakes the main thread for it, but until that has got a processor any other thread which starts a process or a thread, or changes
what it has blocked, may take the signal in its place. Then the main thread goes on waiting, and a factory that starts a pilot just when
it is told to end never hears of it. What Python writes to a pipe (`signal.set_wakeup_fd`), it writes in whatever thread: so the main thread
waits for that pipe, and another one for what is waited for (`hearing_signals`), or a loop reads it (`Heard`). A thread that has taken a
signal may write a good while after the main thread has been told of it: so there is one pipe, which stays open as long as the process
lives.

Handlers of signals speak past Python's streams (`Unbuffered`), and to a terminal that is gone: that is no error of theirs.

A loop's own handlers do nearly the same, but when they are taken away the signal is for a moment what it was at first, deadly, and another
thread may take one just then. `Heard` ignores signals from its end on.
"""

from __future__ import annotations

import asyncio
import io
import os
import select
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


def hearing_signals(wait: Callable[[], T]) -> T:
    """What ``wait()`` gives or raises; it is called on a thread of its own while this one, the main thread, runs handlers of signals.

    A handler that raises ends this, and not ``wait``.
    """
    bell, ring = _pipe()
    before = signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    rung = select.poll()  # `select.select` knows no descriptors from 1,024 on
    rung.register(bell, select.POLLIN)
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(wait())
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            done.set_exception(error)
        with suppress(BlockingIOError):  # it is full, so it rings
            os.write(ring, b"\0")

    try:
        threading.Thread(target=work, name="windlass-waiting", daemon=True).start()
        while not done.done():
            rung.poll()
            os.read(bell, 4096)
    finally:
        signal.set_wakeup_fd(before)
    return done.result()


class Heard:
    """Has ``told(number)`` called for each of these signals, on the running loop, which is the main thread's. `ignore` ends that."""

    def __init__(self, numbers: Sequence[int], told: Callable[[int], None]) -> None:
        self._numbers = tuple(numbers)
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._bell, ring = _pipe()
        signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
        self._loop.add_reader(self._bell, self._hear)
        for number in self._numbers:
            signal.signal(number, _nothing)  # that there is one makes Python write to the pipe

    def ignore(self) -> None:
        """From now on these signals do nothing in this process."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)
        self._loop.remove_reader(self._bell)
        signal.set_wakeup_fd(-1)

    def _hear(self) -> None:
        for number in os.read(self._bell, 4096):
            if number in self._numbers:
                self._told(number)


def ending_signals() -> list[signal.Signals]:
    """By which people, terminals and systems end a process: SIGTERM, SIGINT, and SIGHUP unless it is ignored. That is how nohup starts a
    process to which the end of its terminal is to mean nothing, and a handler would undo it."""
    return [signal.SIGTERM, signal.SIGINT] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)


class Unbuffered(io.TextIOBase):
    """A descriptor that is written to at once: by a handler too, which may have interrupted who writes to a stream.

    What nobody can read any more, as the terminal was closed or the pipe's reader is gone, is dropped: who is told to end has other things
    to do than to fail at saying so.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(self._descriptor, text.encode(errors="backslashreplace"))
        return len(text)


def _nothing(number: int, frame: FrameType | None) -> None:
    """The handler: what is to be done is done on the loop."""


#: By process: one that is forked must not read what is its parent's.
_pipes: dict[int, tuple[int, int]] = {}


def _pipe() -> tuple[int, int]:
    own = os.getpid()
    if own not in _pipes:
        bell, ring = os.pipe()
        os.set_blocking(bell, False)
        os.set_blocking(ring, False)
        _pipes[own] = bell, ring
    return _pipes[own]
