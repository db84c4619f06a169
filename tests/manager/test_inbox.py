"""The way from the program's threads to the manager's loop: nothing lost, one wake-up per drain."""

from __future__ import annotations

import threading

import pytest

from windlass.manager.inbox import Inbox, Tidy, joined
from windlass.messages import CallId, CancelSubmitted, EndsRead, ObjectName, ReleaseObjects


def test_items_come_out_in_order_with_one_wake_up_per_drain() -> None:
    wakes: list[int] = []
    inbox: Inbox[int] = Inbox(lambda: wakes.append(1))
    inbox.put(1)
    inbox.put(2)
    inbox.put_all([3, 4])
    assert len(inbox) == 4
    assert len(wakes) == 1
    assert inbox.drain() == [1, 2, 3, 4]
    assert inbox.drain() == []
    inbox.put_all([5])
    assert len(wakes) == 2
    assert inbox.drain() == [5]


def test_a_drain_that_nobody_asked_for_costs_no_later_wake_up() -> None:
    wakes: list[int] = []
    inbox: Inbox[int] = Inbox(lambda: wakes.append(1))
    inbox.drain()
    inbox.drain()
    inbox.put(1)
    assert len(wakes) == 1
    inbox.put(2)
    assert len(wakes) == 1


def test_a_wake_up_that_fails_keeps_the_item_and_is_tried_again() -> None:
    failing = True
    wakes: list[int] = []

    def wake() -> None:
        if failing:
            raise RuntimeError("loop is closed")
        wakes.append(1)

    inbox: Inbox[int] = Inbox(wake)
    with pytest.raises(RuntimeError, match="loop is closed"):
        inbox.put(1)
    failing = False
    inbox.put(2)
    assert wakes == [1]
    assert inbox.drain() == [1, 2]


def test_many_threads_lose_nothing_and_keep_their_order() -> None:
    """A consumer that sleeps until it is woken sees everything: a lost wake-up would leave it waiting."""
    woken = threading.Event()
    wakes: list[int] = []

    def wake() -> None:
        wakes.append(1)
        woken.set()

    inbox: Inbox[tuple[int, int]] = Inbox(wake)
    senders, each = 4, 3000

    def send(name: int) -> None:
        for number in range(each):
            inbox.put((name, number))

    threads = [threading.Thread(target=send, args=(name,)) for name in range(senders)]
    for thread in threads:
        thread.start()
    got: list[tuple[int, int]] = []
    drains = 0
    while len(got) < senders * each:
        assert woken.wait(20)
        woken.clear()
        got += inbox.drain()
        drains += 1
    for thread in threads:
        thread.join()
    for name in range(senders):
        assert [number for sender, number in got if sender == name] == list(range(each))
    assert len(wakes) <= drains + 1


def test_what_is_said_of_one_call_after_the_other_is_one_message() -> None:
    """Whoever hears it looks through all that it has for each message; what others say, and its place among the rest, stays."""
    cancels = [("client", CancelSubmitted((CallId(number),))) for number in range(25_000)]
    gone = [("client", ReleaseObjects((ObjectName(name),))) for name in "ab"]
    other, tidy, spec = ("other", CancelSubmitted((CallId(7),))), ("client", Tidy()), object()
    found = list(joined([spec, *cancels, *gone, cancels[0], other, tidy, cancels[1], spec, *cancels[2:4]]))
    assert [len(message.calls) for _, message in found[1:4]] == [10_000, 10_000, 5_000]
    assert [call for _, message in found[1:4] for call in message.calls] == list(range(25_000))
    last = ("client", CancelSubmitted((CallId(2), CallId(3))))
    assert found[:1] + found[4:] == [
        spec,
        ("client", ReleaseObjects((ObjectName("a"), ObjectName("b")))),
        cancels[0],
        other,
        tidy,
        cancels[1],
        spec,
        last,
    ]


def test_what_is_read_between_the_rest_leaves_it_together() -> None:
    """A call that is cancelled is read by whoever it calls back, one after the other."""
    said = [("client", kind((CallId(number),))) for number in range(10_001) for kind in (CancelSubmitted, EndsRead)]
    found = list(joined(said))
    assert [(type(message), len(message.calls)) for _, message in found] == [
        (CancelSubmitted, 10_000),
        (CancelSubmitted, 1),
        (EndsRead, 10_000),
        (EndsRead, 1),
    ]
    assert [call for _, message in found[2:] for call in message.calls] == list(range(10_001))
