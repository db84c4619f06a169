"""Library versions in the core: what the program's threads may ask while the manager's thread goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from windlass.manager.books import Books
from windlass.manager.libraries import AHEAD_UNKNOWN, LibraryState
from windlass.manager.workers import Instance, Phase
from windlass.messages import InstanceId, LibraryId, LibrarySpec, PoolName, PoolOffer, Resources, WorkerId


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_capacity_and_offers_may_be_asked_while_workers_come_and_go(impatient: None) -> None:
    """`Manager.hungry` and `submit` ask in the program's threads."""
    spec = LibrarySpec(LibraryId("lib@1"), "lib", (3, 11))
    state, books = LibraryState(spec), Books()
    for number in range(20):
        state.instances[InstanceId(number)] = Instance(
            InstanceId(number), spec.id, WorkerId("w"), spec, 2, Resources(1.0), Phase.READY, target=2, places=2
        )
        books.offers[f"factory-{number}"] = (PoolOffer(PoolName("pool"), Resources(1.0)),)
    instance, offers = state.instances[InstanceId(0)], books.offers["factory-0"]
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            del state.instances[InstanceId(0)], books.offers["factory-0"]
            state.instances[InstanceId(0)], books.offers["factory-0"] = instance, offers

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(2000):
            assert state.capacity() in (19 * 2 * (1 + AHEAD_UNKNOWN), 20 * 2 * (1 + AHEAD_UNKNOWN))
            assert len(books.all_offers()) in (19, 20)
    finally:
        over.set()
        other.join()
