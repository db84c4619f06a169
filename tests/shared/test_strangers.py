"""Who has to leave when too many want in. No socket, no clock."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from windlass.strangers import PATIENCE, Stranger, Strangers


class Door:
    """Strangers by name, and who was sent away."""

    def __init__(self, most: int) -> None:
        self.strangers = Strangers(most)
        self.away: list[str] = []
        self.here: dict[str, Stranger] = {}

    def came(self, name: str) -> None:
        self.here[name] = self.strangers.came(lambda: self.away.append(name))

    def speaking(self, name: str, now: float) -> None:
        self.came(name)
        self.strangers.spoke(self.here[name])
        self.strangers.begins(self.here[name], now)


def test_the_one_that_is_silent_for_longest_leaves_first() -> None:
    """Whoever has spoken stays, however long he is here."""
    door = Door(3)
    door.speaking("talker", 0.0)
    for name in ("first", "second"):
        assert door.strangers.make_room(0.0)
        door.came(name)
    assert door.strangers.make_room(100.0)
    assert door.away == ["first"]
    door.strangers.check()


def test_while_all_may_be_honest_nobody_leaves_and_the_newcomer_waits() -> None:
    """A thousand workers that come at one time."""
    door = Door(2)
    for name in ("a", "b"):
        door.speaking(name, 10.0)
    assert not door.strangers.make_room(10.0 + PATIENCE)
    assert door.strangers.make_room(10.1 + PATIENCE)
    assert door.away == ["a"]


def test_one_that_waits_for_its_turn_is_not_sent_away() -> None:
    door = Door(1)
    door.came("a")
    door.strangers.spoke(door.here["a"])
    assert door.strangers.waiting == 1
    assert not door.strangers.make_room(1000.0)
    assert door.away == []


def test_who_is_known_counts_no_more() -> None:
    door = Door(1)
    door.speaking("a", 0.0)
    door.strangers.gone(door.here["a"])
    assert len(door.strangers) == 0
    assert door.strangers.make_room(0.0)
    assert door.away == []


@given(steps=st.lists(st.tuples(st.sampled_from(["came", "spoke", "begins", "gone"]), st.integers(0, 5)), max_size=60))
def test_there_are_never_more_than_there_may_be_and_each_leaves_once(steps: list[tuple[str, int]]) -> None:
    """Whatever they do, also after they were sent away."""
    door = Door(4)
    for now, (step, number) in enumerate(steps):
        name = f"{now}" if step == "came" else list(door.here)[number] if number < len(door.here) else ""
        if step == "came":
            if door.strangers.make_room(now):
                door.came(name)
        elif name and step == "begins":
            door.strangers.begins(door.here[name], now)
        elif name:
            getattr(door.strangers, step)(door.here[name])
        assert len(door.strangers) <= 4
        door.strangers.check()
    assert len(set(door.away)) == len(door.away) == door.strangers.sent_away
