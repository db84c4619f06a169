"""Turns at the interpreter: threads that move bytes beside a program that computes.

Theory of operation
-------------------
A thread that wants the interpreter's lock from one that computes in Python gets it after ``sys.getswitchinterval()``, 5 ms, and every
system call and every record of TLS (16 KB) gives it away: to hear one worker and answer it takes a loop two or three such turns.  Beside a
program that computed, 200 workers needed 15 s to join and 1,000 did not get to it, a call that does nothing took 22 ms, and objects came
at 3 MB/s.  So while bytes are moved the interval is `PROMPT` (`prompt`, `begin` and `end`), and what it was before when nobody moves any.

On a loop nothing begins and ends: what it moves at any moment (`Spell.moved`) makes it prompt until none has come for `LINGER` seconds.

The interval is the program's own.  It is never raised, and what the program sets meanwhile stays, unless it is `PROMPT`: then somebody has
noted ours, and has put it back after one of his own.  Where an interpreter has no such lock it has no effect.  Workers need none of it, as
their calls run in other processes, but share this code.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

#: Seconds. What moves bytes keeps the lock for some 15 us at a time, so most of the time is left to what computes; with half of it a plain
#: loop of `submit` is interrupted so often that it lost a third. No round number, so that nobody else takes it.
PROMPT: Final = 1.97e-4
#: Seconds.
LINGER: Final = 0.05

_lock = threading.Lock()
#: How many move bytes now; what the interval was before the first of them, now or the last time (0: it was never changed).
_movers = 0
_before = 0.0


def begin() -> None:
    """Bytes are moved from now on; `end` must follow. From any thread."""
    global _movers, _before
    with _lock:
        _movers += 1
        before = sys.getswitchinterval()
        if _movers == 1 and before > PROMPT and not _is_ours(before):
            _before = before  # first: another thread may fork at any moment
            sys.setswitchinterval(PROMPT)


def end() -> None:
    """The contrary of `begin`."""
    global _movers
    with _lock:
        _movers = max(0, _movers - 1)  # one that began before a fork may end in the copy
        if not _movers:
            _restore()


@contextmanager
def prompt() -> Generator[None]:
    """Bytes are moved meanwhile."""
    begin()
    try:
        yield
    finally:
        end()


class Spell:
    """The bytes that an event loop moves. Made by `on_loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._last = 0.0
        self._lasts = False

    def moved(self) -> None:
        """Bytes have come, or go."""
        self._last = self.loop.time()
        if not self._lasts:
            self.loop.call_at(self._last + LINGER, self._look)
            self._lasts = True
            begin()

    def close(self) -> None:
        """The loop has ended."""
        if self._lasts:
            self._lasts = False
            end()

    def _look(self) -> None:
        over = self._last + LINGER
        if self._lasts and over > self.loop.time():
            self.loop.call_at(over, self._look)
        else:
            self.close()


class _Here(threading.local):
    spell: Spell | None = None


_here = _Here()


def on_loop() -> Spell:
    """That of the loop which runs on this thread; `leave` is to be called when it has ended."""
    loop, spell = asyncio.get_running_loop(), _here.spell
    if spell is None or spell.loop is not loop:
        leave()
        spell = _here.spell = Spell(loop)
    return spell


def leave() -> None:
    """The loop of this thread, if there was one, moves nothing any more."""
    spell, _here.spell = _here.spell, None
    if spell is not None:
        spell.close()


def _is_ours(interval: float) -> bool:
    # Who sets what he was told may get a microsecond less, as it is cut, not rounded.
    return math.isclose(interval, PROMPT, abs_tol=2.5e-6)


def _restore() -> None:
    if _before and _is_ours(sys.getswitchinterval()):  # else the program has set it meanwhile
        sys.setswitchinterval(_before)


def _after_fork() -> None:
    """Who moved is not here."""
    global _lock, _movers
    _lock, _movers, _here.spell = threading.Lock(), 0, None
    _restore()


os.register_at_fork(after_in_child=_after_fork)
