"""When factories hear of the demand."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from windlass.manager.demand import pace
from windlass.manager.factories import AT_ONCE, Factories


class Bench:
    """Factories of a core that gives numbers for demands, and a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.heard: list[int] = []
        numbers = iter(range(10_000))

        def demand(now: float) -> int:
            return next(numbers)

        core = SimpleNamespace(workers={}, demand=demand)
        self.factories = Factories(cast(Any, core), lambda: self.now)
        self.factories.come("night", lambda message: self.heard.append(cast(Any, message)))

    def told_of(self, changes: int) -> int:
        """The demand changes so often; how often the factory hears of it at once. What is to be told later is forgotten."""
        before = len(self.heard)
        for _ in range(changes):
            self.factories.tell_demand()
        timer: asyncio.TimerHandle | None = vars(self.factories)["_timer"]
        if timer is not None:
            timer.cancel()
            vars(self.factories)["_timer"] = None
        return len(self.heard) - before


@pytest.mark.asyncio
async def test_the_first_changes_are_told_at_once_and_the_rest_when_it_is_time() -> None:
    """A program's first call comes right behind the factory's offer, and is not to wait for it."""
    bench = Bench()
    assert bench.heard == [0]
    for _ in range(100):
        bench.factories.tell_demand()
    assert len(bench.heard) == 1 + AT_ONCE >= 3
    async with asyncio.timeout(20):
        while len(bench.heard) == 1 + AT_ONCE:
            await asyncio.sleep(0.002)
    assert len(bench.heard) == 2 + AT_ONCE  # one for all of them


@pytest.mark.asyncio
async def test_for_long_there_is_one_message_for_each_pace() -> None:
    bench = Bench()
    paces = 100
    for _ in range(4 * paces):
        bench.told_of(3)
        bench.now += pace(0) / 4
    assert paces <= len(bench.heard) - 1 <= paces + AT_ONCE


@pytest.mark.asyncio
async def test_after_some_quiet_changes_are_told_at_once_again() -> None:
    bench = Bench()
    assert bench.told_of(10) == AT_ONCE
    bench.now += 1.001 * pace(0)
    assert bench.told_of(10) == 1
    bench.now += 100 * pace(0)
    assert bench.told_of(10) == AT_ONCE
