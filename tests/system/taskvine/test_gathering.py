"""Workers that tasks are held for: who is asked to start them, and what a program is told that nobody can start them for."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import windlass.taskvine as vine
from windlass.manager.advice import PATIENCE_SECONDS
from windlass.taskvine.gathering import Gathering


class OneFactory:
    """Starts at most so many."""

    def __init__(self, most: int, least: int = 0) -> None:
        self.most, self.least, self.asked = most, least, list[int]()

    def ask_for(self, workers: int) -> int:
        self.asked.append(workers)
        return max(self.least, min(workers, self.most))


def test_the_factories_of_a_program_are_asked_for_what_tasks_wait_for_until_it_is_there() -> None:
    """The next one for what the first may not start; and nobody asks for the number of workers when no task waits for any."""
    gathering, first, second = Gathering(), OneFactory(2), OneFactory(9)
    assert gathering.enough(lambda: pytest.fail("it was asked"), 0.0)
    gathering.join(first)
    gathering.want(5)
    gathering.join(second)
    assert (first.asked[-1], second.asked[-1]) == (5, 3)
    assert not gathering.enough(lambda: 4, 1.0)
    assert gathering.enough(lambda: 5, 2.0)
    assert (first.asked[-1], second.asked[-1], gathering.wanted) == (0, 0, 0)
    assert gathering.enough(lambda: 0, 3.0), "as in TaskVine, that holds once"
    gathering.want(1)
    gathering.leave(first)
    assert second.asked[-1] == 1
    assert not gathering.enough(lambda: 0, 4.0)
    gathering.want(0)
    assert gathering.enough(lambda: 0, 5.0)


@pytest.mark.parametrize(
    ("factories", "said"),
    [([], "no factory of this program starts any"), ([OneFactory(2)], "give one max_workers=3"), ([OneFactory(2), OneFactory(1)], "")],
)
def test_a_program_that_would_wait_for_ever_is_told_once(factories: list[OneFactory], said: str, caplog: pytest.LogCaptureFixture) -> None:
    """When whoever starts workers by hand has had time for that."""
    gathering = Gathering()
    for factory in factories:
        gathering.join(factory)
    gathering.want(3)
    with caplog.at_level(logging.WARNING, logger="windlass.taskvine"):
        assert not gathering.enough(lambda: 2, 100.0)
        assert not gathering.enough(lambda: 2, 99.9 + PATIENCE_SECONDS)
        assert not caplog.messages
        for late in (100.0, 200.0):
            assert not gathering.enough(lambda: 2, late + PATIENCE_SECONDS)
    assert [message for message in caplog.messages if said and said in message] == caplog.messages
    assert len(caplog.messages) == bool(said)


class Told:
    """A `windlass.Factory` that runs."""

    def __init__(self) -> None:
        self.limits: list[tuple[int | None, int | None]] = []

    def set_limits(self, *, min_pilots: int | None = None, max_pilots: int | None = None) -> None:
        self.limits.append((min_pilots, max_pilots))


def test_a_factory_has_what_it_is_asked_for_within_its_limits_whoever_changes_them() -> None:
    factory, told = vine.Factory("local", manager_name="elsewhere", max_workers=4, min_workers=1), Told()
    assert factory.ask_for(3) == 3
    vars(factory).update(_running=told, _least_told=3)
    assert factory.ask_for(3) == 3
    assert told.limits == []
    factory.max_workers = 2
    factory.max_workers = 9
    assert factory.ask_for(20) == 9
    factory.min_workers = 2
    assert factory.ask_for(0) == 2
    assert told.limits == [(2, 2), (3, 9), (9, None), (9, 9), (2, None)]
    assert (factory.min_workers, factory.max_workers) == (2, 9)


def test_a_factory_starts_the_workers_that_tasks_are_held_for(alone: vine.Manager) -> None:
    """Tasks that are held are none of the calls that it would start workers for; it has no min_workers of its own."""
    alone.tune("wait-for-workers", 2)
    held = vine.Task("echo x")
    alone.submit(held)
    assert held.future is None
    factory: Any = vine.Factory("local", manager=alone, max_workers=2)
    with factory:
        assert alone.wait(120) is held
        assert held.output == "x\n"
        assert alone.stats.workers_connected == 2
        alone.tune("wait-for-workers", 3)
        again = vine.Task("echo again")
        alone.submit(again)
        assert again.future is None, "set again it holds again"
        factory.max_workers = 3
        assert alone.wait(120) is again
