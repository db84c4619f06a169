"""A mailbox waits as long as it is told, and no longer."""

from __future__ import annotations

import queue

import pytest

from windlass.mailbox import Mailbox


@pytest.mark.timeout(20)
@pytest.mark.parametrize("timeout", [0, 1e-6, 2e-6, 5e-6, 1e-3])
def test_the_time_may_be_over_before_it_has_begun_to_wait(timeout: float) -> None:
    """Each of the short ones made a `queue.SimpleQueue` wait for ever, up to Python 3.12."""
    box: Mailbox[int] = Mailbox()
    for number in range(100):
        with pytest.raises(queue.Empty):
            box.get(timeout=timeout)
        box.put(number)
        assert box.get(timeout=timeout) == number
        with pytest.raises(queue.Empty):
            box.get(timeout=timeout)


def test_without_a_timeout_it_is_as_the_other() -> None:
    box: Mailbox[int] = Mailbox()
    box.put(1)
    box.put(2)
    assert box.get() == 1
    assert box.get_nowait() == 2
    with pytest.raises(queue.Empty):
        box.get(block=False)
