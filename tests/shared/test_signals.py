"""A main thread that waits hears signals that other threads have taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from windlass.signals import hearing_signals


@pytest.fixture
def taken_by_others() -> Iterator[threading.Event]:
    """SIGUSR2 reaches other threads only; its handler, which runs in this one, sets the event."""
    heard = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        heard.set()

    before = signal.signal(signal.SIGUSR2, handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    yield heard
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_that_another_thread_takes_is_heard(taken_by_others: threading.Event) -> None:
    """As when a factory is told to end while one of its threads starts a pilot."""

    def wait() -> str:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})  # it has this from who began it
        os.kill(os.getpid(), signal.SIGUSR2)
        return "heard" if taken_by_others.wait(20) else "lost"

    assert hearing_signals(wait) == "heard"


def test_what_the_wait_raises_is_raised() -> None:
    def wait() -> None:
        raise LookupError("as it is")

    with pytest.raises(LookupError, match="as it is"):
        hearing_signals(wait)


def test_a_handler_that_raises_ends_the_wait_and_all_is_as_before() -> None:
    class Enough(Exception):
        pass

    def handler(number: int, frame: FrameType | None) -> None:
        raise Enough

    over = threading.Event()
    hearing_signals(int)  # which makes the pipe that stays
    before = signal.signal(signal.SIGUSR2, handler)
    descriptors = len(os.listdir("/proc/self/fd"))

    def wait() -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        over.wait(20)

    try:
        with pytest.raises(Enough):
            hearing_signals(wait)
    finally:
        over.set()
        signal.signal(signal.SIGUSR2, before)
    assert signal.set_wakeup_fd(-1) == -1
    assert len(os.listdir("/proc/self/fd")) == descriptors


IMPATIENT = """
import asyncio, os, signal, threading
from windlass import loops
from windlass.signals import Heard

async def main():
    told = []
    enough = asyncio.Event()

    def tell(number):
        told.append(number)
        if len(told) >= 20:
            enough.set()

    heard = Heard([signal.SIGTERM, signal.SIGUSR1], tell)
    threading.Thread(target=lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(10_000_000)], daemon=True).start()
    await enough.wait()
    heard.ignore()
    await asyncio.sleep(0.05)
    assert set(told) == {signal.SIGTERM}

loops.run(main())
os._exit(7)
"""


def test_who_has_heard_enough_is_not_ended_by_what_comes_then() -> None:
    """Taken away, a loop's own handler leaves the signal deadly for a moment, in which another thread may take it."""
    for _ in range(3):
        ran = subprocess.run([sys.executable, "-c", IMPATIENT], check=False, capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stderr) == (7, "")
