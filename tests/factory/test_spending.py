"""Core hours: what pilots have used and reserve is never more than the pool may take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.factory.backend import CommandLimits, JobId, Listed, PilotRequest, PilotState, Tickets, with_walltime
from windlass.factory.core import FactoryCore, Submit
from windlass.factory.pilots import Phase, Pilot
from windlass.factory.pool import PoolConfig
from windlass.factory.spending import allowance
from windlass.messages import Demand, PoolName, Resources, Shape

MakePool = Callable[..., PoolConfig]


def pilot(phase: Phase, *, started: float = float("inf"), walltime: float = 0.0) -> Pilot:
    return Pilot(JobId(f"{phase}{started}"), phase=phase, started_at=started, walltime=walltime)


def test_without_a_limit_everything_is_allowed(make_pool: MakePool) -> None:
    assert allowance(9, [], 0, make_pool(), 0.0, 0.0).pilots is None


def test_a_queued_pilot_reserves_its_walltime_and_a_running_one_the_rest_of_it(make_pool: MakePool) -> None:
    """Four cores: a pilot of an hour is four core hours."""
    pool = make_pool(walltime=3600.0, max_core_hours=12.0)
    assert allowance(9, [], 0, pool, 0.0, 0.0).pilots == 3
    assert allowance(9, [pilot(Phase.QUEUED)], 0, pool, 0.0, 0.0).pilots == 2
    assert allowance(9, [], 3600.0, pool, 0.0, 0.0).pilots == 2
    # It has run for half an hour: what it used and what it may still use is the same in all.
    assert allowance(9, [pilot(Phase.SERVING, started=0.0)], 0, pool, 0.0, 1800.0).pilots == 2
    # One that ended after a quarter of an hour gives the rest back.
    assert allowance(9, [], 0, pool, 3600.0, 0.0).text == "max_core_hours=12: 1 are used, 0 reserved by pilots that are there"


def test_the_last_pilot_gets_what_is_left(make_pool: MakePool) -> None:
    """Where nothing else is there that could give something back."""
    pool = make_pool(walltime=3600.0, max_core_hours=2.0)
    last = allowance(9, [], 0, pool, 3600.0, 0.0)
    assert (last.pilots, last.walltime) == (1, 900.0)
    waits = allowance(9, [pilot(Phase.QUEUED, walltime=900.0)], 0, pool, 3600.0, 0.0)
    assert (waits.pilots, waits.used_up) == (0, "")


def test_a_pool_without_walltime_divides_what_is_left(make_pool: MakePool) -> None:
    allowed = allowance(2, [], 0, make_pool(walltime=0.0, max_core_hours=2.0), 0.0, 0.0)
    assert (allowed.pilots, allowed.walltime) == (2, 900.0)


def test_used_up_says_what_to_do(make_pool: MakePool) -> None:
    over = allowance(1, [], 0, make_pool(walltime=3600.0, max_core_hours=2.0), 7100.0, 0.0)
    assert (over.pilots, over.used_up) == (0, "max_core_hours=2 are used up (1.97 are used); give it more")


@given(
    hours=st.floats(0.1, 100),
    walltime=st.sampled_from([0.0, 300.0, 3600.0]),
    ran=st.lists(st.floats(0, 300), max_size=5),
    count=st.integers(1, 50),
    ended=st.floats(0, 1e5),
)
def test_never_more_than_the_limit_whatever_pilots_do(hours: float, walltime: float, ran: list[float], count: int, ended: float) -> None:
    """Were all of them to live to their walltimes."""
    pool = PoolConfig(name=PoolName("p"), backend="fake", resources=Resources(4.0), nodes=2, walltime=walltime, max_core_hours=hours)
    there = [pilot(Phase.SERVING, started=300.0 - one, walltime=300.0) for one in ran]
    allowed = allowance(count, there, 0, pool, ended, 300.0)
    assert allowed.pilots is not None
    taken = ended + 8 * (300.0 * len(there) + allowed.pilots * (allowed.walltime or walltime))
    assert allowed.pilots == 0 or taken <= hours * 3600 * (1 + 1e-9)


def test_a_shorter_walltime_is_told_to_the_batch_system_and_to_the_worker() -> None:
    request = PilotRequest(
        ticket="", pool=PoolName("p"), command=("py", "--walltime", "3600", "--x"), resources=Resources(), walltime=3600.0
    )
    changed = with_walltime(request, 60.0)
    assert changed.command == ("py", "--walltime", "60", "--x", "--grace", "15")
    assert (changed.walltime, changed.grace) == (60.0, 15.0)


def test_a_pool_pauses_when_its_core_hours_are_used_up(make_pool: MakePool) -> None:
    """And not before its last pilot has ended: calls still run there."""
    pool = make_pool(walltime=3600.0, max_core_hours=4.0)
    request = PilotRequest(ticket="", pool=PoolName("p"), command=("py",), resources=Resources(4.0), walltime=3600.0)
    core = FactoryCore(pool, request, CommandLimits(1000, 10000), 1.0, 10, Tickets("f"))
    core.hear(Demand((Shape(Resources(), 100, 0),)), 0.0)
    core.listed((), 0.0)
    submit = core.step(0.0)
    assert isinstance(submit, Submit)
    assert submit.count == 1
    [job] = [JobId("1")]
    core.submitted(submit.request.ticket, [job], 0.0)
    core.listed([PilotState(job=job, listed=Listed.RUNNING, ticket=submit.request.ticket)], 10.0)
    assert core.step(10.0) is None
    assert core.history.paused == ""
    assert core.core_seconds(1010.0) == 4000.0
    core.listed([PilotState(job=job, listed=Listed.ENDED, ticket=submit.request.ticket, exit_status=0)], 3600.0)
    for ending in core.take_endings():
        core.ended(ending, "", 3600.0)
    assert core.step(3600.0) is None
    assert core.history.paused == "max_core_hours=4 are used up (3.99 are used); give it more"


def test_a_submission_without_an_answer_reserves_its_share_for_as_long_as_its_pilots_may_live(make_pool: MakePool) -> None:
    """In a pool without a walltime a pilot's share is what its submission was given: also when only a later answer tells of the pilots."""
    pool = make_pool(walltime=0.0, max_core_hours=4.0)
    core = FactoryCore(
        pool,
        PilotRequest(ticket="", pool=PoolName("p"), command=("py",), resources=Resources(4.0)),
        CommandLimits(1000, 10000),
        1.0,
        10,
        Tickets("f"),
    )
    core.hear(Demand((Shape(Resources(), 4, 0),)), 0.0)
    core.listed((), 0.0)
    submit = core.step(0.0)
    assert isinstance(submit, Submit)
    assert submit.request.walltime == 3600.0
    core.unreachable("Socket timed out", 0.0)
    core.hear(Demand((Shape(Resources(), 40, 0),)), 10.0)
    core.listed((), 10.0)
    assert core.step(10.0) is None, "it may have happened"
    core.listed([PilotState(job=JobId("1"), listed=Listed.RUNNING, ticket=submit.request.ticket)], 20.0)
    assert core.fleet.pilots[JobId("1")].walltime == 3600.0
    assert core.step(20.0) is None
    assert core.actions is not None
    assert core.actions.waits == "max_core_hours=4: 0 are used, 4 reserved by pilots that are there"


def test_a_limit_that_no_pilot_fits_is_refused() -> None:
    from windlass.errors import UsageError
    from windlass.factory.factory import make_backend

    with pytest.raises(UsageError, match=r"max_core_hours=0\.05 is less than a minute of one pilot with 8 cores"):
        make_backend("slurm", {"cores": 8, "max_core_hours": 0.05})
