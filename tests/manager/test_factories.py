"""When factories hear of the demand."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from windlass.manager.demand import pace
from windlass.manager.factories import ANSWERS_WITHIN, ASKED_LATELY, AT_ONCE, GATHER, SHARE, Factories


class Bench:
    """Factories of a core that gives numbers for demands, on a loop whose timers are looked at and run by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.heard: list[int] = []
        self.timers: list[tuple[float, Any]] = []
        numbers = iter(range(10_000))

        def demand(now: float) -> int:
            return next(numbers)

        def call_later(wait: float, call: Any) -> object:
            self.timers.append((self.now + wait, call))
            return object()

        loop = SimpleNamespace(call_later=call_later)
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
        self.left: list[str] = []

        def factory_left(name: str, now: float) -> None:
            self.left.append(name)

        core = SimpleNamespace(workers={}, demand=demand, factory_left=factory_left)
        self.factories = Factories(cast(Any, core), lambda: self.now)
        self.tell = cast(Any, self.heard.append)
        self.factories.come("night", self.tell)

    def change(self, seconds: float, every: float = 0.0005) -> None:
        """For so long the demand changes again and again."""
        end = self.now + seconds
        while self.now < end:
            self.factories.tell_demand()
            self.now += every
            due = [call for at, call in self.timers if at <= self.now]
            self.timers = [(at, call) for at, call in self.timers if at > self.now]
            for call in due:
                call()


def test_calls_that_come_together_are_told_together_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's first calls come right behind the factory's offer, and are not to wait for it."""
    bench = Bench(monkeypatch)
    assert bench.heard == [0]
    bench.change(GATHER - 0.001)
    assert bench.heard == [0]
    bench.change(0.002)
    assert bench.heard == [0, 1]


def test_the_first_changes_are_told_soon_and_the_rest_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    bench.change(AT_ONCE * (GATHER + 0.001))
    assert len(bench.heard) == 1 + AT_ONCE >= 3
    bench.change(pace(0) / 4)
    assert len(bench.heard) == 1 + AT_ONCE
    bench.change(pace(0))
    assert len(bench.heard) == 2 + AT_ONCE


def test_for_long_there_is_one_message_for_each_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    paces = 100
    bench.change(paces * pace(0), every=0.002)
    assert paces - 1 <= len(bench.heard) - 1 <= paces + AT_ONCE


def test_a_demand_that_takes_long_to_find_out_is_told_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100,000 calls with options of their own each is looked at: the manager's thread is to do other things as well."""
    bench, spent = Bench(monkeypatch), [0.0]

    def demand(now: float) -> int:
        spent[0] += 2 * pace(0)
        return 0

    monkeypatch.setattr(bench.factories._core, "demand", demand)  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(time, "thread_time", lambda: spent[0])
    seconds = 400 * pace(0)
    bench.change(seconds, every=0.01)
    assert 0.9 * seconds < SHARE * spent[0] < 1.1 * seconds + AT_ONCE * SHARE * 2 * pace(0)


def test_after_some_quiet_changes_are_told_soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    bench.change(10 * pace(0))
    told = len(bench.heard)
    bench.now += 10 * pace(0)
    bench.change((AT_ONCE + 1) * (GATHER + 0.001))
    assert AT_ONCE <= len(bench.heard) - told <= AT_ONCE + 1


class StandInLink:
    """What is looked at of a factory's connection."""

    def __init__(self) -> None:
        self.connected, self.last_heard = True, 0.0
        self.failed: list[str] = []

    def where(self) -> str:
        return "connected from 10.0.0.3"

    def fail(self, reason: str) -> None:
        self.failed.append(reason)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


@pytest.fixture
def link(bench: Bench) -> Any:
    """The connection of a factory "day"."""
    link: Any = StandInLink()
    bench.factories.come("day", bench.tell, link)
    bench.heard.clear()
    return link


def asks(bench: Bench, name: str = "day") -> tuple[bool, str]:
    """Whether a factory that would like to have this name is to ask again, and what it is told; "": it may come."""
    refused = bench.factories.refusal(name)
    return (refused.retry, refused.text) if refused is not None else (False, "")


def test_a_second_factory_of_a_name_is_refused_when_the_first_has_shown_that_it_lives(bench: Bench, link: Any) -> None:
    """Each would take the other's pilots for its own, and only one would hear of the demand."""
    again, text = asks(bench)
    assert again
    assert "a factory 'day' is here already, connected from 10.0.0.3: end that one, or take another name" in text
    assert len(bench.heard) == 1, "it is told something, which it acknowledges"
    bench.now += ANSWERS_WITHIN - 1
    assert asks(bench)[0], "it has said nothing yet"
    assert len(bench.heard) == 1
    link.last_heard = 1.0
    assert asks(bench) == (False, "a factory 'day' is here already, connected from 10.0.0.3: end that one, or take another name")


def test_a_factory_that_is_cut_off_makes_way_at_once(bench: Bench, link: Any) -> None:
    """As one that was killed and is started again."""
    link.connected = False
    assert asks(bench) == (False, "")
    bench.factories.come("day", lambda message: None, cast(Any, StandInLink()))
    assert link.failed == ["another factory of this name has taken its place"]
    assert bench.left == ["day"]
    bench.factories.left("day", bench.tell)  # the first one is known to be gone only now
    assert "day" in bench.factories.here


def test_a_factory_whose_host_is_gone_makes_way_when_it_has_not_answered(bench: Bench, link: Any) -> None:
    assert asks(bench)[0]
    bench.now += ANSWERS_WITHIN
    assert asks(bench) == (False, "")


def test_an_answer_that_was_asked_for_long_ago_tells_nothing(bench: Bench, link: Any) -> None:
    """It lived then, and its host may be gone now."""
    assert asks(bench)[0]
    link.last_heard = 1.0
    bench.now += ASKED_LATELY
    assert asks(bench)[0]
    bench.now += ANSWERS_WITHIN
    assert asks(bench) == (False, "")


def test_another_connection_is_asked_anew(bench: Bench, link: Any) -> None:
    """Of the one that was asked before and has made way nothing is known for this one."""
    assert asks(bench)[0]
    other: Any = StandInLink()
    bench.factories.come("day", bench.tell, other)
    other.last_heard = 5.0
    assert asks(bench)[0]


def test_the_programs_own_factory_keeps_its_name(bench: Bench) -> None:
    text = "a factory 'night' is here already, in the manager's own program: end that one, or take another name"
    assert asks(bench, "night") == (False, text)
    assert asks(bench, "day") == (False, "")
