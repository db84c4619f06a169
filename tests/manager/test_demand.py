"""What the manager tells factories that it could use, and how many pilots that asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.manager.test_core import Bench, F

from windlass.factory.planner import wanted_pilots
from windlass.factory.pool import PoolConfig
from windlass.manager import demand
from windlass.messages import CallId, CallOptions, CallSpec, LibraryId, LibrarySpec, PoolName, PoolOffer, PoolReport, Resources, WorkerId

HOUR = 3600.0


def pool(name: str, walltime: float) -> PoolConfig:
    return PoolConfig(name=PoolName(name), backend="slurm", resources=Resources(4.0), walltime=walltime, max_pilots=30)


#: Workers of a `Bench` are of "pool".
SHORT, LONG = pool("pool", HOUR), pool("long", 10 * HOUR)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A manager with two pools."""
    one = Bench()
    offers = tuple(PoolOffer(each.name, each.resources, each.walltime) for each in (SHORT, LONG))
    one.core.pools_reported("factory", PoolReport(offers), one.now)
    yield one
    one.core.check()


def wanted(bench: Bench, of: PoolConfig) -> int:
    return wanted_pilots(bench.core.demand(bench.now), of)[0]


def run_one(bench: Bench, library: LibraryId, seconds: float, worker: str = "w1") -> None:
    """A call of it takes so long, by its worker's clock."""
    bench.submit(library)
    bench.serve(worker)
    [run] = bench.all_runs(worker)
    bench.end(run, seconds=seconds, worker=worker)


@pytest.mark.parametrize("expected", [5 * HOUR, HOUR + 60.0])
def test_a_call_that_needs_a_longer_walltime_leaves_others_to_pools_with_a_shorter_one(bench: Bench, expected: float) -> None:
    """However near it is: each pool is asked for what it can run."""
    library = bench.library()
    bench.submit(library, 1, CallOptions(expected_time=expected))
    assert (wanted(bench, SHORT), wanted(bench, LONG)) == (0, 1)
    bench.submit(library, 100)
    bench.submit(library, 2, CallOptions(expected_time=0.85 * HOUR))
    assert wanted(bench, SHORT) == 26


def test_a_call_that_is_expected_to_take_nearly_a_walltime_is_for_a_pool_with_a_longer_one(bench: Bench) -> None:
    """No pilot has its whole walltime left when it joins, so the call would not be sent to one of the shorter: none is to be started."""
    library = bench.library()
    bench.submit(library, 1, CallOptions(expected_time=HOUR - 5.0))
    bench.worker("w1", cores=4, seconds_left=HOUR - 10.0)
    assert bench.heard() == []
    assert (wanted(bench, SHORT), wanted(bench, LONG)) == (0, 1)
    bench.submit(library, 1, CallOptions(expected_time=10 * HOUR - 5.0))
    assert wanted(bench, LONG) == 1, "where there is no longer one, that has to do"
    slow = bench.library("slow")
    bench.core.libraries[slow].start_allowance = 600.0
    bench.submit(slow, 4, CallOptions(expected_time=0.85 * HOUR))
    assert (wanted(bench, SHORT), wanted(bench, LONG)) == (0, 2), "nor has one as much when a library has started that takes long"


def test_a_call_that_a_pilots_whole_life_was_too_short_for_is_for_a_pool_with_a_longer_walltime(bench: Bench) -> None:
    """It is cut off once, and not sent to such a pilot again."""
    library = bench.library()
    bench.worker("w1", cores=4, seconds_left=HOUR)
    [call] = bench.submit(library)
    bench.serve()
    bench.now += HOUR
    bench.core.worker_lost(WorkerId("w1"), "walltime", bench.now)
    bench.worker("w2", cores=4, seconds_left=HOUR)
    assert bench.heard("w2") == []
    assert (wanted(bench, SHORT), wanted(bench, LONG)) == (0, 1)
    bench.worker("w3", cores=4, seconds_left=10 * HOUR)
    bench.serve("w3")
    assert [run.call for run in bench.all_runs("w3")] == [call]


def test_a_call_that_took_longer_than_a_pool_lives_says_nothing_of_others(bench: Bench) -> None:
    """Those that are submitted later may be short, whatever their library; nor is a clock that was set a reason to start nothing."""
    library = bench.library()
    bench.worker("w1", cores=1)
    run_one(bench, library, 7200.0)
    bench.submit(library, 100)
    assert wanted(bench, SHORT) == 25


def test_calls_that_take_long_do_not_make_pilots_worth_less_to_others(bench: Bench) -> None:
    """Calls of a minute and of hours are counted each by itself, and so are those of which nothing is known."""
    minutes, hours, new = bench.library("minutes"), bench.library("hours"), bench.library("new")
    bench.worker("w1", cores=1)
    run_one(bench, hours, 10 * HOUR)
    bench.worker("w2", cores=1)
    run_one(bench, minutes, 60.0, "w2")
    bench.submit(minutes, 41)
    bench.submit(hours, 41)
    assert wanted(bench, LONG) == 20, "two of them are for the workers of the other pool"
    bench.submit(new, 20)
    assert wanted(bench, LONG) == 25


def test_pilots_that_live_too_short_take_nothing_off_another_pool(bench: Bench) -> None:
    """They are connected and idle, and the call is not for them."""
    library = bench.library()
    bench.worker("w1", cores=4, seconds_left=HOUR)
    bench.submit(library, 1, CallOptions(expected_time=5 * HOUR))
    assert wanted(bench, LONG) == 1


def wait(bench: Bench, seconds: int) -> None:
    """The manager's timer runs, and nothing is heard."""
    for _ in range(seconds):
        bench.now += 1.0
        bench.core.tick(bench.now)
    bench.step()


def test_calls_that_run_and_do_not_end_are_known_to_be_long(bench: Bench) -> None:
    """A quick first call says that a hundred seconds of work wait, not worth a second pilot; two minutes later this is known to be wrong,
    and is told though nothing else has changed. What pilots come then take from the queue takes nothing of that back."""
    library = bench.library()
    bench.worker("w1", cores=4)
    run_one(bench, library, 1.0)
    bench.submit(library, 100)
    assert len(bench.all_runs()) >= 4
    assert wanted(bench, SHORT) == 1
    wait(bench, 120)
    assert bench.core.demand_changed
    assert wanted(bench, SHORT) == 25
    bench.worker("w2", cores=4)
    bench.serve("w2")
    assert wanted(bench, SHORT) == 25


def test_a_manager_that_was_held_up_takes_no_call_for_long(bench: Bench) -> None:
    """It has not heard yet what has ended meanwhile; nor does it hear of those whose connections are cut."""
    library = bench.library()
    bench.worker("w1", cores=4)
    run_one(bench, library, 1.0)
    bench.submit(library, 100)
    bench.step(120.0)
    assert wanted(bench, SHORT) == 1
    bench.core.worker_cut(WorkerId("w1"), bench.now)
    wait(bench, 50)
    assert wanted(bench, SHORT) == 1


def test_calls_that_a_walltime_has_cut_short_are_counted_with_what_they_have_run(bench: Bench) -> None:
    """Whatever others of their library take."""
    library = bench.library()
    bench.worker("w1", cores=4, seconds_left=HOUR)
    run_one(bench, library, 1.0)
    bench.now += 900.0
    bench.submit(library, 40)
    bench.now += HOUR - 901.0
    bench.core.worker_lost(WorkerId("w1"), "walltime", bench.now)
    bench.step()
    long = [shape for shape in bench.core.demand(bench.now).shapes if shape.least]
    assert [(shape.waiting, shape.seconds >= 2000.0 * shape.waiting) for shape in long] == [(4, True)]


def test_what_a_kind_of_calls_takes_is_found_out_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many options its calls have; and the shape is what the largest of them asks for."""
    library = bench.library()
    bench.worker("w1", cores=4, memory=8 << 30)
    asked = [Resources(memory=(64 << 20) + number) for number in range(200)]
    options = [CallOptions(needs=needs) for needs in asked]
    bench.core.submit([CallSpec(CallId(5000 + number), library, F, b"", (), one) for number, one in enumerate(options)], bench.now)
    looks = 0

    def count(needs: Resources, spec: LibrarySpec) -> Resources:
        nonlocal looks
        looks += 1
        return shape_of(needs, spec)

    shape_of = demand._shape  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(demand, "_shape", count)
    [shape] = bench.core.demand(bench.now).shapes
    assert shape.needs.memory == max(needs.memory for needs in asked)
    assert shape.waiting + shape.running == 200
    assert looks < 10
