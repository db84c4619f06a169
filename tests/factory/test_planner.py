"""How many pilots: each rule of the planner by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.factory.backend import JobId
from windlass.factory.history import History
from windlass.factory.pilots import Phase, Pilot
from windlass.factory.planner import Actions, Decision, calls_at_a_time, plan, wanted_pilots
from windlass.factory.pool import PoolConfig
from windlass.messages import Demand, PilotId, PilotSeen, PoolName, Resources, Shape

MakePool = Callable[..., PoolConfig]
MakeDemand = Callable[..., Demand]


def pilots(**numbers: int) -> list[Pilot]:
    """So many pilots of each phase."""
    made = [Pilot(JobId(f"{phase}{n}"), phase=Phase(phase), since=float(n)) for phase, number in numbers.items() for n in range(number)]
    for pilot in made:
        pilot.connected = pilot.served = pilot.phase in (Phase.SERVING, Phase.LEAVING)
    return made


def decide(
    demand: Demand | None, those: list[Pilot], pool: PoolConfig, history: History | None = None, *, unsure: int = 0, now: float = 1e4
) -> Actions:
    return plan(demand, those, unsure, pool, history or History(), now)


@pytest.mark.parametrize(
    ("needs", "fits"),
    [
        (Resources(), 8),
        (Resources(0.5), 16),
        (Resources(3), 2),
        (Resources(9), 0),
        (Resources(1, 3 << 30), 5),
        (Resources(1, 0, 1), 2),
        (Resources(0.1), 80),
    ],
)
def test_calls_that_fit_a_pilot_at_a_time(needs: Resources, fits: int) -> None:
    assert calls_at_a_time(needs, Resources(8, 16 << 30, 2)) == fits
    assert calls_at_a_time(needs, Resources(8, 16 << 30, 2), nodes=2) == 2 * fits


@pytest.mark.parametrize(
    ("waiting", "running", "seconds", "longest", "wanted"),
    [
        (0, 0, 0, 0, 0),
        (1, 0, 0, 0, 1),
        (8, 0, 0, 0, 2),
        (9, 0, 0, 0, 3),
        (5, 4, 0, 0, 3),
        (10_000, 0, 0, 0, 10),
        (10_000, 0, 10, 0.001, 1),  # ten seconds of work are not worth the start of a second pilot
        (10_000, 0, 1_000, 0.1, 5),  # 1,000 s / (4 cores x 60 s)
        (8, 0, 28_800, 3_600, 2),  # each call takes an hour: a pilot for every four
    ],
)
def test_pilots_that_a_demand_asks_for(
    waiting: int, running: int, seconds: float, longest: float, wanted: int, make_pool: MakePool, demand: MakeDemand
) -> None:
    assert wanted_pilots(demand(waiting, running, seconds, longest), make_pool(walltime=7200.0))[0] == wanted


def test_shapes_add_up_by_the_part_of_a_pilot_that_they_take(make_pool: MakePool) -> None:
    half = Shape(Resources(2), 1, 0)
    assert wanted_pilots(Demand((half, half)), make_pool())[0] == 1
    assert wanted_pilots(Demand((half, half, half)), make_pool())[0] == 2


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (Shape(Resources(5), 1, 0), "a call needs 5 cores, 0 bytes, 0 GPUs, a pilot has 4 cores, 0 bytes, 0 GPUs"),
        (Shape(Resources(1), 1, 0, 900.0, 900.0, least=900.0), "a call is for pilots that may live 900 s or longer, walltime is 600 s"),
        (Shape(Resources(1), 1, 0, pools=(PoolName("other"),)), "it is for other"),
    ],
)
def test_what_does_not_fit_asks_for_nothing_and_says_why(shape: Shape, text: str, make_pool: MakePool) -> None:
    assert wanted_pilots(Demand((shape,)), make_pool(walltime=600.0)) == (0, f"no call fits: {text}")


def test_what_pilots_of_other_pools_can_take_is_not_asked_for_again(make_pool: MakePool) -> None:
    other = PilotSeen(PoolName("other"), PilotId("x"), True, 0, 0.0, False, Resources(8))
    gone = PilotSeen(PoolName("other"), PilotId("y"), False, 0, 0.0, False, Resources(8))
    shape = Shape(Resources(1), 16, 0)
    assert wanted_pilots(Demand((shape,), (gone,)), make_pool())[0] == 4
    assert wanted_pilots(Demand((shape,), (gone, other)), make_pool())[0] == 2
    assert wanted_pilots(Demand((shape,), (other, other)), make_pool())[0] == 0


STRANGERS = tuple(PilotSeen(PoolName("p"), PilotId(f"x{n}"), True, 4, 0.0, False, Resources(4.0)) for n in range(10))


@pytest.mark.parametrize(("unsure", "wanted"), [(0, 0), (6, 6)])
def test_pilots_of_another_factory_count_where_its_pool_has_the_same_name(make_pool: MakePool, unsure: int, wanted: int) -> None:
    """As many again would be submitted, stand idle, leave, and be followed by the next, for as long as the calls take. Those that may be
    of a submission without an answer count already."""
    demand = Demand((Shape(Resources(), 0, 40),), STRANGERS)
    names = {pilot.pilot for pilot in STRANGERS}
    assert plan(demand, [], unsure, make_pool(), History(), 1e4, strangers=names).wanted == wanted
    assert plan(demand, [], unsure, make_pool(), History(), 1e4).wanted == 10, "own ones"


@pytest.mark.parametrize(("seconds", "longest"), [(0.0, 0.0), (0.0, 3600.0)])
def test_calls_that_cannot_run_just_now_keep_pilots_and_ask_for_none(make_pool: MakePool, seconds: float, longest: float) -> None:
    """Those that come meanwhile would leave as idle, and others come for them, again and again."""
    shape = Shape(Resources(), 0, 0, seconds, longest, away=12)
    assert wanted_pilots(Demand((shape,)), make_pool()) == (0, "0 calls wait, 0 run: work for 0 pilots")
    assert decide(Demand((shape,)), pilots(queued=1, serving=1), make_pool()).submit == 0
    those = pilots(queued=2, serving=2)
    for pilot in those:
        pilot.idle_seconds = 1e4
    actions = decide(Demand((shape,)), those, make_pool())
    assert [pilot for decision in (*actions.cancel, *actions.release) for pilot in decision.jobs] == ["queued1"]
    two = msgspec.structs.replace(shape, waiting=5)
    assert decide(Demand((two,)), pilots(queued=1), make_pool()).submit == 1


def test_nothing_is_done_before_the_manager_has_spoken_but_the_minimum(make_pool: MakePool) -> None:
    assert decide(None, [], make_pool()).submit == 0
    least = decide(None, [], make_pool(min_pilots=2))
    assert (least.wanted, least.submit, least.waits) == (2, 0, "the manager has not said what it needs")


def test_what_is_coming_is_not_asked_for_again_and_draining_is_not_coming(make_pool: MakePool, demand: MakeDemand) -> None:
    those = pilots(queued=1, running=1, serving=2, leaving=1, ending=1)
    assert decide(demand(24), those, make_pool(), unsure=1).submit == 1
    those[2].draining = True
    actions = decide(demand(24), those, make_pool(), unsure=1)
    assert (actions.submit, actions.submit_reason) == (2, "24 calls wait, 0 run: work for 6 pilots; 4 there or coming")


@pytest.mark.parametrize(
    ("changes", "submit", "waits"),
    [
        ({"max_pilots": 3}, 1, "max_pilots=3"),
        ({"max_queued": 2}, 1, "max_queued=2"),
        ({"max_pilots": 2}, 0, ""),
    ],
)
def test_limits_bound_what_is_submitted(
    changes: dict[str, object], submit: int, waits: str, make_pool: MakePool, demand: MakeDemand
) -> None:
    actions = decide(demand(400), pilots(queued=1, leaving=1), make_pool(**changes))
    assert actions.submit == submit
    assert waits in actions.waits


def test_after_deaths_at_start_one_is_tried_at_a_time(make_pool: MakePool, demand: MakeDemand) -> None:
    history = History()
    history.died_at_start("", "x", 0.0, 0.0)
    assert decide(demand(400), [], make_pool(), history).submit == 1
    assert decide(demand(400), pilots(queued=1), make_pool(), history).submit == 0
    history.died_at_start("", "x", 0.0, 9_999.0)
    waiting = decide(demand(400), [], make_pool(), history)
    assert (waiting.submit, waiting.again_at) == (0, 10_059.0)
    assert waiting.waits == "2 pilots in a row ended before they served; next try in 59 s"


def test_a_paused_pool_submits_nothing_and_cancels_what_would_die(make_pool: MakePool, demand: MakeDemand) -> None:
    history = History()
    history.rejected("bad account", 0.0)
    actions = decide(demand(400), pilots(queued=1), make_pool(), history)
    assert (actions.submit, actions.cancel, actions.waits) == (0, (), "the pool is paused: bad account")
    history = History()
    for _ in range(3):
        history.died_at_start("", "x", 0.0, 0.0)
    [cancel] = decide(demand(400), pilots(queued=1, serving=1), make_pool(), history).cancel
    assert cancel.jobs == ("queued0",)


def test_surplus_queued_pilots_are_cancelled_youngest_first(make_pool: MakePool, demand: MakeDemand) -> None:
    [cancel] = decide(demand(4), pilots(queued=3), make_pool()).cancel
    assert cancel == Decision((JobId("queued2"), JobId("queued1")), "4 calls wait, 0 run: work for 1 pilot; 3 there or coming")


def test_only_pilots_that_are_idle_for_long_are_let_go_the_most_idle_first(make_pool: MakePool, demand: MakeDemand) -> None:
    those = pilots(serving=4)
    for pilot, idle in zip(those, (59.0, 100.0, 200.0, 300.0), strict=True):
        pilot.idle_seconds = idle
    those[3].running_calls = 1
    actions = decide(demand(0, 1), those, make_pool())
    assert [decision.jobs for decision in actions.release] == [("serving2", "serving1")]
    assert decide(demand(0, 1), those, make_pool(min_pilots=3)).release[0].jobs == ("serving2",)


def test_idleness_goes_on_while_the_manager_is_silent(make_pool: MakePool, demand: MakeDemand) -> None:
    [pilot] = pilots(serving=1)
    pilot.idle_seconds, pilot.heard_at = 5.0, 9_990.0
    actions = decide(demand(), [pilot], make_pool())
    assert (actions.release, actions.again_at) == ((), 10_045.0)
    assert decide(demand(), [pilot], make_pool(), now=10_045.0).release[0].jobs == ("serving0",)


def test_surplus_is_kept_for_a_while(make_pool: MakePool, demand: MakeDemand) -> None:
    history = History()
    history.note_wanted(3, 9_000.0, 60.0)
    history.note_wanted(1, 9_990.0, 60.0)
    actions = decide(demand(4), pilots(queued=3), make_pool(), history)
    assert (actions.cancel, actions.again_at) == ((), 10_050.0)
    assert decide(demand(4), pilots(queued=3), make_pool(), history, now=10_050.0).cancel


@pytest.mark.parametrize(
    ("phase", "since", "text"),
    [
        (Phase.HELD, 9_999.0, "held, so it will never start: no reason given"),
        (Phase.RUNNING, 9_000.0, "it runs since 1000 s and has not connected to the manager"),
        (Phase.LEAVING, 9_000.0, "it was let go and is still there"),
        (Phase.CANCELLING, 9_000.0, "it was asked to end and is still there"),
    ],
)
def test_what_will_not_serve_is_cancelled_whatever_the_demand(
    phase: Phase, since: float, text: str, make_pool: MakePool, demand: MakeDemand
) -> None:
    pilot = Pilot(JobId("a"), phase=phase, since=since, asked=True, asked_at=since)
    assert decide(demand(400), [pilot], make_pool()).cancel == (Decision((JobId("a"),), text),)
    if phase is not Phase.HELD:
        pilot.since = pilot.asked_at = 9_999.0
        assert decide(demand(400), [pilot], make_pool()).cancel == ()


def test_a_pilot_that_the_manager_gave_up_is_replaced_and_cancelled_when_it_stays_silent(make_pool: MakePool, demand: MakeDemand) -> None:
    """It may come back for as long as a new one may take to connect."""
    pilot = Pilot(JobId("a"), phase=Phase.RUNNING, since=9_999.0, served=True, forgotten=True)
    actions = decide(demand(4), [pilot], make_pool())
    assert (actions.submit, actions.cancel) == (decide(demand(4), [], make_pool()).submit, ())
    pilot.since = 9_000.0
    assert decide(demand(4), [pilot], make_pool()).cancel == (Decision((JobId("a"),), "the manager has not heard of it for 1000 s"),)


SHAPES = st.builds(
    Shape,
    st.builds(Resources, st.sampled_from([0.0, 0.5, 1.0, 3.0, 9.0]), st.just(0), st.integers(0, 1)),
    st.integers(0, 10**6),
    st.integers(0, 100),
    st.floats(0, 1e7),
    st.floats(0, 1e4),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(SHAPES, max_size=5),
    st.dictionaries(st.sampled_from([phase.value for phase in Phase if phase is not Phase.ENDED]), st.integers(0, 4)),
    st.integers(0, 3),
    st.integers(1, 12),
    st.integers(0, 12),
    st.sets(st.integers(0, 20)),
)
def test_whatever_the_demand_the_limits_hold(
    shapes: list[Shape], numbers: dict[str, int], unsure: int, most: int, least: int, busy: set[int]
) -> None:
    pool = PoolConfig(
        name=PoolName("p"), backend="fake", resources=Resources(8, 0, 1), max_pilots=most, min_pilots=min(least, most), max_queued=5
    )
    those = pilots(**numbers)
    for number, pilot in enumerate(those):
        pilot.idle_seconds, pilot.since = 1e6, 1e4
        pilot.running_calls = int(number in busy and pilot.connected)
    actions = decide(Demand(tuple(shapes)), those, pool, unsure=unsure)
    assert pool.min_pilots <= actions.wanted <= most
    assert 0 <= actions.submit <= max(0, most - len(those) - unsure)
    working = {pilot.job for pilot in those if pilot.running_calls}
    assert not working & {job for decision in (*actions.cancel, *actions.release) for job in decision.jobs}
    asked = {job for decision in (*actions.cancel, *actions.release) for job in decision.jobs}
    left = sum(pilot.coming for pilot in those if pilot.job not in asked) + unsure
    assert left >= min(actions.wanted, sum(pilot.coming for pilot in those) + unsure), "never fewer than wanted by its own doing"
    assert actions.again_at == math.inf or actions.again_at >= 1e4
