"""A mailbox waits as long as it is told, and no longer."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from windlass.mailbox import Mailbox

pytestmark = pytest.mark.timeout(20)


@pytest.mark.parametrize("timeout", [0, 1e-6, 2e-6, 5e-6, 1e-3])
def test_the_time_may_be_over_before_it_has_begun_to_wait(timeout: float) -> None:
    """Each of the short ones made a `queue.SimpleQueue` wait for ever, up to Python 3.12."""
    box: Mailbox[int] = Mailbox()
    for number in range(100):
        with pytest.raises(queue.Empty):
            box.get(timeout=timeout)
        box.put(number)
        assert not box.empty()
        assert box.get(timeout=timeout) == number
        assert box.empty()
        with pytest.raises(queue.Empty):
            box.get(timeout=timeout)


@pytest.fixture
def slow_handler() -> Iterator[None]:
    """SIGUSR2 has a handler that takes longer than what is left of the time."""

    def handler(number: int, frame: FrameType | None) -> None:
        time.sleep(0.3)

    before = signal.signal(signal.SIGUSR2, handler)
    yield
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_does_not_take_the_end_of_the_time(slow_handler: None) -> None:
    """Here too the other waited on for ever."""
    box: Mailbox[int] = Mailbox()
    main = threading.get_ident()
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGUSR2))
    timer.start()
    with pytest.raises(queue.Empty):
        box.get(timeout=0.2)
    timer.join()


def test_all_that_several_threads_put_comes_once_each_ones_in_order() -> None:
    box: Mailbox[tuple[int, int]] = Mailbox()

    def put(who: int) -> None:
        for number in range(2000):
            box.put((who, number))

    threads = [threading.Thread(target=put, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    heard = [box.get() for _ in range(6000)]
    for thread in threads:
        thread.join()
    for who in range(3):
        assert [number for one, number in heard if one == who] == list(range(2000))
    with pytest.raises(queue.Empty):
        box.get_nowait()
