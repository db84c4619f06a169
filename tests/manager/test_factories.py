"""When factories hear of the demand."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from windlass.manager.demand import pace
from windlass.manager.factories import AT_ONCE, GATHER, Factories


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
        core = SimpleNamespace(workers={}, demand=demand)
        self.factories = Factories(cast(Any, core), lambda: self.now)
        self.factories.come("night", lambda message: self.heard.append(cast(Any, message)))

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


def test_after_some_quiet_changes_are_told_soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    bench.change(10 * pace(0))
    told = len(bench.heard)
    bench.now += 10 * pace(0)
    bench.change((AT_ONCE + 1) * (GATHER + 0.001))
    assert AT_ONCE <= len(bench.heard) - told <= AT_ONCE + 1
