"""What a program keeps for its calls until they have ended, and how it waits for room."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from windlass.errors import Closed, StoreFull
from windlass.manager.arguments import Arguments, Bell
from windlass.messages import CallId
from windlass.spooling import SpoolingStore

LARGE = 200_000


class Bench:
    """Arguments in a store with room for one large one."""

    def __init__(self, store: SpoolingStore) -> None:
        self.store, self.closed, self.bell = store, "", Bell()
        self.arguments = Arguments(store, self.bell, lambda: self.closed)
        self.arguments.pins[CallId(1)] = (self.arguments.put(b"1" * LARGE),)

    def put_another(self, got: list[object]) -> threading.Thread:
        """A thread that waits for room; returned once it waits."""

        def put() -> None:
            try:
                got.append(self.arguments.put(b"2" * LARGE))
            except Closed as error:
                got.append(str(error))

        thread = threading.Thread(target=put)
        thread.start()
        while not self.bell.waiters and thread.is_alive():
            thread.join(0.001)
        return thread


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = SpoolingStore(tmp_path / "store", LARGE + LARGE // 2, None)
    yield Bench(store)
    store.close()


def test_an_argument_waits_until_a_call_that_ends_makes_room(bench: Bench) -> None:
    """The end takes the pins away, and rings."""
    got: list[object] = []
    thread = bench.put_another(got)
    bench.arguments.release(CallId(1))
    (name,) = bench.store.names()
    bench.store.discard(name)
    bench.bell.ring()
    thread.join(10)
    assert len(got) == 1
    assert not isinstance(got[0], str)
    assert bench.bell.waiters == 0


def test_a_manager_that_ends_ends_the_waiting(bench: Bench) -> None:
    """Nothing will make room any more."""
    got: list[object] = []
    thread = bench.put_another(got)
    bench.closed = "the manager was closed"
    bench.bell.ring()
    thread.join(10)
    assert got == ["the manager was closed"]


def test_where_no_end_can_make_room_there_is_no_waiting(bench: Bench) -> None:
    """Too large for the store whatever ends; those that hold the room wait themselves; nobody holds any."""
    with pytest.raises(StoreFull):
        bench.arguments.put(b"2" * 2 * LARGE)
    with pytest.raises(StoreFull):
        bench.arguments.put(b"2" * LARGE, lambda: True)
    bench.arguments.leave_to_program()
    with pytest.raises(StoreFull):
        bench.arguments.put(b"2" * LARGE)
