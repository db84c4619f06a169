"""Pools of one factory: what the first ones promise, later ones do not start."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from windlass.factory.backend import JobId
from windlass.factory.ledger import Ledger
from windlass.factory.pilots import Fleet, Phase, Pilot
from windlass.factory.planner import Promise, wanted_pilots
from windlass.factory.pool import PoolConfig
from windlass.messages import Demand, PoolName, Resources, Shape

MakePool = Callable[..., PoolConfig]
MakeDemand = Callable[..., Demand]


@pytest.fixture
def first(make_pool: MakePool) -> PoolConfig:
    return make_pool(name=PoolName("first"), max_pilots=3)


def test_what_is_promised_is_not_wanted_again(first: PoolConfig, make_pool: MakePool, demand: MakeDemand) -> None:
    """Four cores each: sixteen calls are work for four pilots, and three are promised."""
    assert wanted_pilots(demand(16), make_pool(), [Promise(first, 3)])[0] == 1
    assert wanted_pilots(demand(16), make_pool(), [Promise(first, 4)])[0] == 0
    assert wanted_pilots(demand(16), make_pool(), [Promise(first, 0)])[0] == 4


def test_a_promise_counts_only_for_calls_that_fit_there(first: PoolConfig, make_pool: MakePool) -> None:
    """By resources, by walltime, by name."""
    gpu = Shape(Resources(1, 0, 1), 4, 0)
    long = Shape(Resources(), 4, 0, seconds=40_000.0, longest=10_000.0, least=10_000.0)
    mine = Shape(Resources(), 4, 0, pools=(PoolName("p"),))
    with_gpus = make_pool(resources=Resources(4.0, 0, 4), walltime=0.0)
    hour = make_pool(name=PoolName("first"), walltime=3600.0)
    for shape in (gpu, long, mine):
        assert wanted_pilots(Demand((shape,)), with_gpus, [Promise(hour, 3)])[0] == 1, shape


def test_one_promised_pilot_takes_work_that_is_worth_one_pilot(first: PoolConfig, make_pool: MakePool, demand: MakeDemand) -> None:
    """However many calls it is in: ten seconds of work are not worth a second pilot in another pool."""
    little = demand(1000, seconds=10.0, longest=0.01)
    assert wanted_pilots(little, make_pool())[0] == 1
    assert wanted_pilots(little, make_pool(), [Promise(first, 1)])[0] == 0


def test_a_pool_that_has_not_spoken_is_expected_to_take_what_it_wants(first: PoolConfig, make_pool: MakePool, demand: MakeDemand) -> None:
    """Threads start in no order."""
    ledger = Ledger([first, make_pool()], lambda index: None)
    assert ledger.before(0, demand(16)) == ()
    assert ledger.before(1, demand(16)) == (Promise(first, 3),)
    assert ledger.before(1, demand(4)) == (Promise(first, 1),)
    assert ledger.before(1, None) == ()


def test_later_pools_plan_again_when_a_promise_changes(first: PoolConfig, make_pool: MakePool, demand: MakeDemand) -> None:
    replanned: list[int] = []
    ledger = Ledger([first, make_pool(), make_pool()], replanned.append)
    ledger.post(0, Promise(first, 2))
    ledger.post(0, Promise(first, 2))
    assert replanned == [1, 2]
    ledger.post(1, Promise(make_pool(), 1))
    assert replanned == [1, 2, 2]
    assert ledger.before(2, demand(16)) == (Promise(first, 2), Promise(make_pool(), 1))


def test_pilots_that_wait_in_the_queue_for_long_are_counted_on_no_more() -> None:
    """Those that run and have not connected yet are: they come in seconds."""
    queued, running = Pilot(JobId("1"), made_at=0.0), Pilot(JobId("2"), phase=Phase.RUNNING, made_at=0.0)
    serving = Pilot(JobId("3"), phase=Phase.SERVING, connected=True, served=True)
    fleet = Fleet({one.job: one for one in (queued, running, serving)})
    fleet.submitting("t", 2, 100.0)
    assert fleet.promised(50.0, 300.0) == (4, 300.0)
    assert fleet.promised(300.0, 300.0) == (3, 400.0)
    assert fleet.promised(400.0, 300.0) == (1, math.inf)
