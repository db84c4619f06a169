"""The factory's core against a fake cluster: hours of simulated time, every kind of fault."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from windlass.errors import BatchError, OverLimit, Rejected, Unreachable
from windlass.factory.backend import (
    Cause,
    CommandLimits,
    JobId,
    Listed,
    NoNodeLeft,
    NotNow,
    NotSent,
    PilotRequest,
    PilotState,
    Tickets,
    pilot_word,
    split_pilot_word,
)
from windlass.factory.core import Cancel, EndAll, FactoryCore, Query, Release, Submit
from windlass.factory.fake import FakeCluster, Fault, Terminate, Todo
from windlass.factory.history import LASTED
from windlass.factory.pilots import BLOCKED, LEFT, Phase
from windlass.factory.pool import PoolConfig
from windlass.messages import CANNOT_SERVE, Demand, PilotId, PilotSeen, PoolName, PoolReport, Resources, Shape

#: Seconds from a pilot's start to its hello, and from being told to end to its end.
HELLO = 3.0
FAREWELL = 12.0


@dataclass
class Simulation:
    """A core, a cluster, and a manager that is only arithmetic: one clock for all."""

    core: FactoryCore
    cluster: FakeCluster
    now: float = 0.0
    #: Calls that are there, and the seconds that each takes (0: unknown).
    calls: int = 0
    seconds_each: float = 0.0
    #: Pilots that were told to end, and when they will have.
    leaving: dict[PilotId, float] = field(default_factory=dict[PilotId, float])
    idle_since: dict[PilotId, float] = field(default_factory=dict[PilotId, float])
    submissions: list[int] = field(default_factory=list[int])
    cancelled: list[JobId] = field(default_factory=list[JobId])
    released: list[PilotId] = field(default_factory=list[PilotId])
    reports: list[PoolReport] = field(default_factory=list[PoolReport])
    #: What failed pilots have left in their logs.
    words: str = "last words"
    #: Hosts that programs have blocked.
    avoid: tuple[str, ...] = ()
    #: The manager is out of reach.
    away: bool = False
    #: Pilots whose connections are cut, and those that the manager has given up.
    cut: set[PilotId] = field(default_factory=set[PilotId])
    given_up: set[PilotId] = field(default_factory=set[PilotId])
    #: Nodes whose pilots connect, and leave soon after as they cannot serve.
    unfit: set[str] = field(default_factory=set[str])
    #: Pilots that started before then are well there.
    unfit_since: float = 0.0
    came_to_nothing: int = 0

    def seen(self) -> tuple[PilotSeen, ...]:
        pilots: list[PilotSeen] = []
        left = self.calls
        for job in self.cluster.jobs.values():
            if job.state is not Listed.RUNNING or self.now - job.started_at < HELLO:
                continue
            word = pilot_word(job.job, job.restart)
            if word in self.given_up:
                continue
            # One that leaves when its calls have ended, which is not soon, has these.
            running = 0 if self.leaving.get(word, math.inf) < math.inf else min(left, int(job.cores))
            left -= running
            if running:
                self.idle_since.pop(word, None)
            idle = self.now - self.idle_since.setdefault(word, self.now) if not running else 0.0
            pilots.append(PilotSeen(PoolName("p"), word, word not in self.cut, running, idle, word in self.leaving, Resources(4.0)))
        return tuple(pilots)

    def demand(self) -> Demand:
        seen = self.seen()
        running = sum(pilot.running for pilot in seen)
        longest = self.seconds_each
        shape = Shape(Resources(), self.calls - running, running, self.seconds_each * self.calls, longest)
        return Demand((shape,) if self.calls else (), seen, self.avoid)

    def busy(self) -> set[str]:
        return {pilot.pilot for pilot in self.seen() if pilot.running}

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, then let the core do all it wants."""
        self.now += seconds
        for word, at in list(self.leaving.items()):
            if at <= self.now:
                del self.leaving[word]
                self.cluster.process_ended(*split_pilot_word(word), 0, self.now)
        self.obey(self.cluster.advance(self.now))
        for job in list(self.cluster.jobs.values()):
            unfit = job.state is Listed.RUNNING and job.node in self.unfit and job.started_at >= self.unfit_since
            if unfit and self.now - job.started_at >= HELLO + 2.0:
                self.cluster.process_ended(job.job, job.restart, CANNOT_SERVE, self.now)
                self.came_to_nothing += 1
        if not self.away:
            self.core.hear(self.demand(), self.now)
        steps = 0
        while (instruction := self.core.step(self.now)) is not None:
            steps += 1
            assert steps < 50, f"no end of instructions; the last was {instruction}"
            self.carry_out(instruction)
            self.bury()
        self.bury()
        report = self.core.report()
        if report is not None:
            self.reports.append(report)
        assert self.core.again_at(self.now) > self.now, "the shell would spin"
        self.core.check()
        self.cluster.check()

    def bury(self) -> None:
        for ending in self.core.take_endings():
            self.core.ended(ending, self.words if ending.failed else "", self.now)

    def obey(self, todo: list[Todo]) -> None:
        for one in todo:
            if isinstance(one, Terminate):
                self.leaving.setdefault(pilot_word(one.job, one.restart), self.now + FAREWELL)

    def carry_out(self, instruction: object) -> None:
        core, cluster, now = self.core, self.cluster, self.now
        try:
            if isinstance(instruction, Query):
                core.listed(cluster.query(now), now)
            elif isinstance(instruction, Submit):
                self.submissions.append(instruction.count)
                request = instruction.request
                jobs = cluster.submit(request.ticket, instruction.count, now, cores=4.0, walltime=request.walltime, avoid=request.avoid)
                core.submitted(request.ticket, jobs, now)
            elif isinstance(instruction, Cancel):
                assert not self.busy() & set(instruction.jobs), "a pilot with running calls was cancelled"
                self.cancelled += instruction.jobs
                self.obey(cluster.cancel(instruction.jobs, now))
                core.cancelled()
            elif isinstance(instruction, Release):
                assert core.closing or not self.busy() & set(instruction.pilots), "a pilot with running calls was let go"
                self.released += instruction.pilots
                self.leaving |= dict.fromkeys(instruction.pilots, self.now + FAREWELL)
            else:
                self.obey(cluster.cancel(None, now))
                core.ended_all()
        except NotNow as error:
            assert isinstance(instruction, Submit)
            core.not_now(instruction.request.ticket, str(error), now)
        except Rejected as error:
            assert isinstance(instruction, Submit)
            core.rejected(instruction.request.ticket, str(error), now, no_node=isinstance(error, NoNodeLeft))
        except OverLimit as error:
            assert isinstance(instruction, Submit)
            core.over_limit(instruction.request.ticket, str(error), instruction.count, now)
        except Unreachable as error:
            sent = instruction.request.ticket if isinstance(instruction, Submit) and not isinstance(error, NotSent) else ""
            core.unreachable(str(error), now, sent)

    def run(self, seconds: float, step: float = 5.0) -> None:
        end = self.now + seconds
        while self.now < end:
            self.tick(step)


MakePool = Callable[..., PoolConfig]
BATCH = CommandLimits()


def simulation(pool: PoolConfig, *, remote: bool = True, **cluster: object) -> Simulation:
    request = PilotRequest(ticket="", pool=pool.name, command=("worker",), resources=pool.resources, walltime=pool.walltime)
    pool = replace(pool, remote=remote)  # a batch system that others use as well, or this machine
    core = FactoryCore(pool=pool, request=request, limits=BATCH, query_interval=30.0, max_batch=500, tickets=Tickets("f"))
    return Simulation(core, FakeCluster(1, **{"nodes": 20, "cores_per_node": 4, **cluster}))  # type: ignore[arg-type]


def commands_in(sim: Simulation, seconds: float) -> int:
    times = [at for _, at in sim.cluster.commands]
    return max((bisect_left(times, start + seconds) - index for index, start in enumerate(times)), default=0)


def test_the_first_pilots_are_asked_for_as_soon_as_there_is_demand(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.tick()
    assert sim.submissions == []
    sim.calls = 12
    sim.tick()
    assert sim.submissions == [3]


def test_a_steady_demand_gives_one_submission_and_nothing_else(make_pool: MakePool) -> None:
    sim = simulation(make_pool(), queue_delay=(10.0, 300.0))
    sim.calls = 40
    sim.run(3600)
    assert sim.submissions == [10]
    assert sim.cancelled == []
    assert sim.released == []


def test_without_demand_there_are_no_pilots_and_no_commands(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls = 40
    sim.run(600)
    assert sim.cluster.alive == 10
    sim.calls = 0
    sim.run(600)
    assert sim.cluster.alive == 0
    sim.run(120)
    before = len(sim.cluster.commands)
    sim.run(3600)
    assert len(sim.cluster.commands) == before


def test_a_demand_that_comes_and_goes_faster_than_the_queue_does_not_flap(make_pool: MakePool) -> None:
    sim = simulation(make_pool(), queue_delay=600.0)
    for _ in range(30):
        sim.calls = 40
        sim.run(20)
        sim.calls = 0
        sim.run(20)
    assert sim.submissions == [10]
    assert sim.cancelled == []


def test_queued_pilots_are_cancelled_before_idle_ones_are_let_go(make_pool: MakePool) -> None:
    sim = simulation(make_pool(), nodes=6)
    sim.calls = 40
    sim.run(300)
    assert sim.core.report() is None
    sim.calls = 24
    sim.run(100)
    assert len(sim.cancelled) == 4
    assert sim.released == []


def test_pilots_that_end_are_replaced_whatever_ended_them(make_pool: MakePool) -> None:
    sim = simulation(make_pool(walltime=600.0, grace=10.0))
    sim.calls = 40
    sim.run(3600)
    assert sim.cluster.alive == 10
    assert sum(sim.submissions) >= 60
    assert sim.core.history.paused == ""


def test_min_pilots_are_kept_without_demand(make_pool: MakePool) -> None:
    sim = simulation(make_pool(min_pilots=2))
    sim.run(3600)
    assert (sim.cluster.alive, sim.submissions) == (2, [2])


def test_a_query_without_an_answer_changes_nothing(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls = 40
    sim.run(60)
    sim.cluster.fail("query", Fault.UNREACHABLE, 20)
    sim.run(3600)
    assert sim.submissions == [10]
    assert sim.cancelled == []
    assert sim.core.history.paused == ""


def test_a_submission_that_happened_without_an_answer_is_not_repeated(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls = 40
    sim.cluster.fail("submit", Fault.AMBIGUOUS)
    sim.run(600)
    assert (sim.submissions, sim.cluster.alive) == ([10], 10)


def test_a_submission_that_did_not_happen_is_repeated_when_that_is_known(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls = 40
    sim.cluster.fail("submit", Fault.UNREACHABLE)
    sim.tick()
    sim.run(25)
    assert sim.submissions == [10], "what kept it may last"
    sim.run(200)
    assert (sim.submissions, sim.cluster.alive) == ([10, 10], 10)


def test_what_is_refused_as_asked_pauses_at_once_with_the_text(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls = 40
    sim.cluster.fail("submit", Fault.REJECTED, text="Invalid account")
    sim.run(3600)
    assert sim.submissions == [10]
    assert sim.reports[-1].offers[0].paused == "Invalid account"
    assert sim.reports[-1].failures == (("p", "Invalid account"),)
    sim.core.history.resume()
    sim.run(60)
    assert sim.cluster.alive == 10


def test_a_limit_that_is_met_without_any_own_pilot_is_asked_about_ever_more_seldom(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls = 40
    sim.cluster.standing["submit"] = (Fault.OVER_LIMIT, "Job violates accounting/QOS policy")
    sim.run(3600)
    assert sim.submissions[:5] == [10, 5, 2, 1, 1]
    assert len(sim.submissions) <= 20
    del sim.cluster.standing["submit"]
    sim.run(1800)
    assert sim.cluster.alive == 10


def test_a_site_that_takes_nothing_for_now_pauses_no_pool(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls would end for good, as for a partition that is drained for a day: it is asked again now and then."""
    sim = simulation(make_pool())
    sim.calls = 40
    with monkeypatch.context() as patch:
        patch.setattr(sim.cluster, "submit", Mock(side_effect=NotNow("the partition is drained")))
        sim.run(1500)
        assert sim.submissions == [10] * 5
        assert (sim.core.history.paused, sim.reports[-1].offers[0].paused) == ("", "")
        assert sim.core.actions is not None
        assert sim.core.actions.waits.startswith("the batch system takes no pilots for now (the partition is drained); next try in ")
    sim.run(60)
    assert sim.cluster.alive == 10
    assert sim.core.history.submit_after(sim.now)[1] == ""


def test_a_limit_on_jobs_halves_the_batch_and_waits(make_pool: MakePool) -> None:
    sim = simulation(make_pool(), max_jobs=4)
    sim.calls = 40
    sim.run(120)
    assert sim.submissions[:3] == [10, 5, 2]
    sim.run(3600)
    assert sim.cluster.alive == 4
    assert sim.core.history.paused == ""
    assert len(sim.submissions) < 20


def test_pilots_that_die_at_start_pause_the_pool_after_three_with_their_last_words(make_pool: MakePool) -> None:
    """The third that counts: a second death on a node that is not avoided yet does not."""
    sim = simulation(make_pool(), nodes=3)
    sim.cluster.black_holes = {"n1", "n2", "n3"}
    sim.calls = 4
    sim.run(300)
    assert sim.submissions == [1] * 5
    assert "3 pilots in a row" in sim.core.history.paused
    assert "last words" in sim.core.history.paused
    assert [ended.failed for report in sim.reports for ended in report.ended] == [True] * 5
    sim.run(3600)
    assert sim.submissions == [1] * 5


def test_a_black_hole_is_avoided_and_does_not_pause_a_pool_that_works(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls = 12
    sim.run(60)
    assert sim.cluster.alive == 3
    sim.cluster.black_holes = {"n7"}
    sim.calls = 40
    sim.run(1800)
    assert sim.core.history.paused == ""
    assert sim.cluster.alive == 10
    assert sim.core.history.avoided(sim.now) == ("n7",)


def test_a_node_that_cannot_serve_is_avoided_though_its_pilots_connect(make_pool: MakePool) -> None:
    sim = simulation(make_pool(max_pilots=10))
    sim.unfit = {"n3"}
    sim.calls = 40
    sim.run(1800, step=1.0)
    assert sim.came_to_nothing == 2
    assert sim.core.history.avoided(sim.now) == ("n3",)
    assert (sim.cluster.alive, sim.core.history.paused, sim.core.history.start_failures) == (10, "", 0)
    assert sim.core.history.troubles.count == 0, "others have served well since"
    assert not any(ended.failed for report in sim.reports for ended in report.ended)
    sim.unfit.clear()
    sim.run(3600, step=5.0)
    assert sim.core.history.avoided(sim.now) == ()


def test_where_no_node_can_serve_pilots_come_ever_more_seldom_and_the_pool_goes_on_by_itself(make_pool: MakePool) -> None:
    sim = simulation(make_pool(max_pilots=2), nodes=2)
    sim.unfit = {"n1", "n2"}
    sim.calls = 8
    sim.run(7200, step=1.0)
    assert sim.core.history.paused == ""
    assert sum(sim.submissions) <= 20
    assert "left nodes that cannot serve (pilot " in sim.core.history.submit_after(sim.now)[1]
    sim.unfit.clear()  # somebody has made room
    sim.run(660, step=1.0)
    assert sim.cluster.alive == 2
    assert sim.core.history.submit_after(sim.now)[1] == ""


@pytest.mark.parametrize("remote", [False, True])
def test_a_pilot_that_serves_beside_is_no_reason_to_start_one_after_the_other(make_pool: MakePool, remote: bool) -> None:
    """On a machine whose disk has filled since, and in a partition of one node."""
    sim = simulation(make_pool(max_pilots=4, walltime=0.0), remote=remote, nodes=1, cores_per_node=16)
    sim.calls = 4
    sim.run(120, step=1.0)
    assert sim.cluster.alive == 1
    sim.unfit, sim.unfit_since = {"n1"}, sim.now
    sim.calls = 16
    sim.run(1200, step=1.0)
    assert sim.came_to_nothing <= 40, "one a minute, after the first"
    assert (sim.cluster.alive <= 2, sim.core.history.paused) == (True, "")
    sim.unfit.clear()
    sim.run(1300, step=1.0)
    assert sim.cluster.alive == 4


def test_pilots_that_others_cancel_come_ever_more_seldom(make_pool: MakePool) -> None:
    """An operator, or a rule of the site: they would be back within seconds, as often as it is done."""
    sim = simulation(make_pool(), queue_delay=600.0)
    sim.calls = 40
    for _ in range(720):
        sim.obey(sim.cluster.cancel([job.job for job in sim.cluster.jobs.values() if job.state is Listed.QUEUED], sim.now))
        sim.tick(5.0)
    assert 5 <= len(sim.submissions) <= 9
    assert sim.core.history.paused == ""
    waits_for = sim.core.history.submit_after(sim.now)[1]
    assert waits_for.startswith("its pilots are cancelled or held by others, or lose their nodes at the start (pilot ")
    assert [ended.failed for report in sim.reports for ended in report.ended if ended.failed] == []
    sim.run(1500)
    assert sim.cluster.alive == 10


def test_a_pilot_that_somebody_cancels_is_replaced_at_once(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls = 40
    sim.run(120)
    job = next(iter(sim.cluster.jobs))
    sim.obey(sim.cluster.cancel([job], sim.now))
    sim.run(60)
    assert (sim.submissions, sim.cluster.alive) == ([10, 1], 10)
    assert sim.core.history.failure == ""


def test_what_one_act_ends_bit_by_bit_counts_once(make_pool: MakePool) -> None:
    """Some pilots are gone at once, others when their time to end is over, so that several answers tell of it."""
    sim = simulation(make_pool())
    sim.calls = 40
    sim.run(120)
    jobs = list(sim.cluster.jobs)
    for part in (jobs[:3], jobs[3:7], jobs[7:]):
        sim.obey(sim.cluster.cancel(part, sim.now))
        sim.run(60)
    assert (sim.core.history.takes.count, sim.cluster.alive, sum(sim.submissions)) == (1, 10, 20)
    assert sim.core.history.failure == ""


def test_pilots_that_are_cancelled_when_they_have_served_for_long_are_replaced_as_ever(make_pool: MakePool) -> None:
    """As by a program of the operators', each at the same age: one goes every few minutes, day and night, and none may put off the next."""
    sim = simulation(make_pool(max_pilots=20, walltime=0.0))
    fewest = 20
    for _ in range(4 * 360):
        sim.calls = min(80, 4 * (1 + int(sim.now // 180)))
        running = [job for job in sim.cluster.jobs.values() if job.state is Listed.RUNNING]
        if old := [job.job for job in running if sim.now - job.started_at >= 3600.0]:
            sim.obey(sim.cluster.cancel(old, sim.now))
        sim.tick(10.0)
        fewest = min(fewest, sim.cluster.alive) if sim.now > 3700.0 else fewest
    assert fewest >= 18
    assert sim.core.history.takes.count == 0


def test_hosts_that_programs_have_blocked_are_avoided(make_pool: MakePool) -> None:
    """As long as they are."""
    sim = simulation(make_pool(max_pilots=4), nodes=4)
    sim.avoid = ("n1", "n3")
    sim.calls = 40
    sim.run(60)
    assert {job.node for job in sim.cluster.jobs.values() if job.state is Listed.RUNNING} == {"n2", "n4"}


def test_hosts_that_programs_have_blocked_pause_no_pool_though_none_is_left(make_pool: MakePool) -> None:
    """It waits, with the reason, until one may be used again, and tries now and then."""
    sim = simulation(make_pool(), nodes=2)
    sim.calls = 4
    sim.avoid = ("n1", "n2")
    sim.run(590)
    assert sim.submissions == [1, 1], "one each five minutes"
    assert (sim.core.history.paused, sim.reports[-1].offers[0].paused) == ("", "")
    assert sim.core.actions is not None
    assert sim.core.actions.waits.startswith("no node that fits is left beside those that programs have blocked (n1, n2); next try in ")
    sim.avoid = ("n2",)
    sim.run(10)
    assert [job.node for job in sim.cluster.jobs.values()] == ["n1"]


def test_a_bad_node_and_a_blocked_one_that_are_all_there_is_pause_the_pool_for_the_bad_one(make_pool: MakePool) -> None:
    """A refusal is tried without the nodes where pilots died, and still without the blocked ones."""
    sim = simulation(make_pool(max_pilots=3), nodes=2)
    sim.cluster.black_holes = {"n1"}
    sim.avoid = ("n2",)
    sim.calls = 12
    sim.run(300)
    assert sim.core.history.paused.startswith("3 pilots in a row ended before they served")
    assert {one.node for one in sim.cluster.happened if one.node} == {"n1"}


def test_what_is_refused_for_another_reason_pauses_though_programs_have_blocked_hosts(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls, sim.avoid = 4, ("n1",)
    sim.cluster.fail("submit", Fault.REJECTED, text="Invalid account")
    sim.run(60)
    assert sim.core.history.paused == "Invalid account"


@pytest.mark.parametrize(("holes", "pilots"), [({"n2"}, 3), ({"n2"}, 1), ({"n1", "n2"}, 3)])
def test_black_holes_that_meet_the_first_pilots_do_not_pause_a_pool_with_good_nodes(
    make_pool: MakePool, holes: set[str], pilots: int
) -> None:
    """A black hole is always free, so it gets all of the first submission, before any pilot has served anywhere: that is one failure of
    the pool, however many pilots, and the next are submitted to keep away from the node."""
    sim = simulation(make_pool(max_pilots=pilots), nodes=4)
    sim.cluster.black_holes = holes
    sim.calls = 12
    sim.run(300)
    assert sim.core.history.paused == ""
    assert {job.node for job in sim.cluster.jobs.values() if job.state is Listed.RUNNING} <= {"n1", "n3", "n4"} - holes
    assert sim.cluster.alive == pilots
    assert set(sim.core.history.avoided(sim.now)) == holes
    assert len(sim.submissions) <= 2 + 2 * len(holes)


def test_a_pool_of_one_node_that_is_bad_pauses_with_the_last_words_of_its_pilots(make_pool: MakePool) -> None:
    """A batch system refuses pilots that keep away from all nodes there are. That says nothing of the pool: they are asked for without
    it, and from then on each death counts."""
    sim = simulation(make_pool(max_pilots=3), nodes=1)
    sim.cluster.black_holes = {"n1"}
    sim.calls = 12
    sim.run(300)
    assert sim.core.history.paused.startswith("3 pilots in a row ended before they served")
    assert "last words" in sim.core.history.paused
    assert sim.submissions == [3, 1, 1, 1], "the second was refused"


def test_held_pilots_are_removed_and_count_as_dead_at_start(make_pool: MakePool) -> None:
    sim = simulation(make_pool(max_pilots=1), queue_delay=40.0)
    sim.calls = 4
    sim.tick()
    [job] = sim.cluster.jobs
    sim.cluster.hold(job, "launch failed requeued held")
    sim.run(60)
    assert sim.cancelled == [job]
    assert sim.core.history.failure == "held: launch failed requeued held"
    sim.run(300)
    assert sim.cluster.alive == 1


def test_pilots_that_are_held_soon_after_they_serve_come_ever_more_seldom_and_tell_why(make_pool: MakePool) -> None:
    """As where they take more memory than they asked for: they were replaced at once, all night, and nobody was told of it."""
    sim = simulation(make_pool(max_pilots=2))
    sim.calls = 8
    waits_for: set[str] = set()
    for _ in range(720):
        for job in list(sim.cluster.jobs.values()):
            if job.state is Listed.RUNNING and sim.now - job.started_at >= HELLO + 60.0:
                sim.cluster.hold(job.job, "memory usage exceeded request_memory (hold code 102)")
        sim.tick(5.0)
        waits_for.add(sim.core.history.submit_after(sim.now)[1].partition(" (pilot ")[0])
    assert 5 <= len(sim.submissions) <= 9
    assert sim.core.history.paused == ""
    assert re.fullmatch(r"pilot \S+ on n\d+: held: memory usage exceeded request_memory \(hold code 102\)", sim.core.history.failure)
    assert waits_for == {"", "its pilots are cancelled or held by others, or lose their nodes at the start"}
    ended = [one for report in sim.reports for one in report.ended]
    assert len(ended) == len({one.pilot for one in ended}) >= 8
    assert {(one.reason, one.failed) for one in ended} == {("held: memory usage exceeded request_memory (hold code 102)", False)}


def test_a_pilot_that_is_held_after_it_has_served_for_long_is_replaced_at_once_and_tells_why(make_pool: MakePool) -> None:
    sim = simulation(make_pool(max_pilots=1))
    sim.calls = 4
    sim.run(LASTED + 120.0)
    [job] = sim.cluster.jobs
    sim.cluster.hold(job, "job exceeded its allowed duration (hold code 46)")
    sim.run(60)
    assert (sim.submissions, sim.core.history.takes.count) == ([1, 1], 0)
    assert sim.core.history.failure == f"pilot {job} on n1: held: job exceeded its allowed duration (hold code 46)"


def test_held_pilots_that_an_earlier_life_has_left_are_nothing_against_the_pool(make_pool: MakePool) -> None:
    """They may have served all night; four on four nodes had paused the pool at once, and ended its calls."""
    pool = make_pool(max_pilots=4)
    before = simulation(pool)
    before.calls = 16
    before.run(LASTED + 120.0)
    assert before.cluster.alive == 4
    for job in list(before.cluster.jobs):
        before.cluster.hold(job, "memory usage exceeded request_memory (hold code 102)")
    sim = Simulation(simulation(pool).core, before.cluster)
    sim.now = before.now
    sim.calls = 16
    sim.run(120)
    assert len(sim.cancelled) == 4
    assert (sim.core.history.start_failures, sim.core.history.paused) == (0, "")
    assert sim.submissions == [4]


def test_a_pilot_that_never_says_hello_is_ended_and_counted(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulation(make_pool(max_pilots=1, hello_timeout=120.0))
    sim.calls = 4
    monkeypatch.setattr(sim, "seen", lambda: ())
    sim.run(200)
    assert len(sim.cancelled) == 1
    assert sim.core.history.start_failures == 1


def test_the_last_words_of_one_that_never_said_hello_reach_the_pause(make_pool: MakePool) -> None:
    """They are read when it has ended, which is after the pool was paused because of it."""
    core = FactoryCore(
        make_pool(max_start_failures=1, hello_timeout=60.0),
        PilotRequest(ticket="", pool=PoolName("p"), command=(), resources=Resources(4.0)),
        BATCH,
        30.0,
        100,
        Tickets("f"),
    )
    core.listed([PilotState(job=JobId("7"), listed=Listed.RUNNING, restart=0)], 0.0)
    core.listed([PilotState(job=JobId("7"), listed=Listed.RUNNING, restart=0)], 70.0)
    assert core.history.paused == "a pilot ended before it served: 7 ran for 70 s without connecting"
    core.listed([PilotState(job=JobId("7"), listed=Listed.ENDED, restart=0, cause=Cause.CANCELLED, reason="CANCELLED")], 90.0)
    [ending] = core.take_endings()
    assert (ending.failed, ending.telling) == (False, True)  # it was counted before
    core.ended(ending, "no route to host", 90.0)
    assert core.history.paused == "a pilot ended before it served: 7 ran for 70 s without connecting: no route to host"
    assert core.history.failure == "7 ran for 70 s without connecting: no route to host"
    assert core.history.start_failures == 1
    report = core.report()
    assert report is not None
    assert [(line.failed, line.reason, line.words) for line in report.pilots] == [
        (True, "7 ran for 70 s without connecting", "no route to host")
    ]


def test_pilots_that_leave_in_order_before_they_serve_pause_the_pool_as_well(make_pool: MakePool) -> None:
    """Each would be followed by the next, for ever and without a word: a line of setup= that says ``exit 0`` does it."""
    sim = simulation(make_pool(max_pilots=1))
    sim.calls = 4
    for _ in range(400):
        for job in [job for job in sim.cluster.jobs.values() if job.state is Listed.RUNNING]:
            sim.cluster.process_ended(job.job, job.restart, 0, sim.now)
        sim.tick(5.0)
    assert len(sim.submissions) <= 5
    assert sim.core.history.paused.startswith("3 pilots in a row ended before they served, the last one so: ")
    assert sim.core.history.paused.endswith(": it left by itself, with exit status 0, before it served: last words")


@pytest.mark.parametrize(("blocked", "known"), [("n1.site", True), ("n1", True), ("elsewhere", False)])
def test_pilots_that_are_sent_away_from_a_blocked_host_count_for_nothing(make_pool: MakePool, blocked: str, known: bool) -> None:
    """They come and leave between two words of the manager: to where they waited for a place when it was blocked, or by a name that it does
    not go by there. Where nobody says on which host they were, it may be that one."""
    sim = simulation(make_pool(), nodes=1)
    jobs = sim.cluster.submit("f-x", 4, sim.now, cores=4.0)
    core, sim.avoid, sim.calls = sim.core, (blocked,), 16
    core.fleet.submitted("f-x", jobs, sim.now)
    core.hear(sim.demand(), sim.now)
    node = "n1" if known else ""
    core.listed([PilotState(job=job, listed=Listed.ENDED, ticket="f-x", node=node, cause=Cause.EXIT, exit_status=0) for job in jobs], 1.0)
    endings = core.take_endings()
    assert [ending.failed for ending in endings] == [False] * 4
    assert {ending.reason for ending in endings} == {BLOCKED if known else LEFT}
    for ending in endings:
        core.ended(ending, "", 1.0)
    assert (core.history.start_failures, core.history.paused) == (0, "")


def test_pilots_of_an_earlier_life_that_leave_in_order_count_for_nothing(make_pool: MakePool) -> None:
    """They may have served then."""
    sim = simulation(make_pool())
    jobs = sim.cluster.submit("earlier", 6, sim.now, cores=4.0)
    sim.obey(sim.cluster.advance(sim.now))
    sim.calls = 24
    sim.tick()
    for job in jobs:
        sim.cluster.process_ended(job, 0, 0, sim.now)
    sim.run(30)
    assert (sim.core.history.start_failures, sim.core.history.failure) == (0, "")


def test_pilots_of_a_killed_factory_with_a_pool_of_the_same_name_are_not_submitted_again(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run all calls there are, and the batch system tells the next factory, which has another name, nothing of them."""
    sim = simulation(make_pool(idle_timeout=30.0, hold=30.0))
    sim.calls = 40
    theirs = tuple(PilotSeen(PoolName("p"), PilotId(f"x{n}"), True, 4, 0.0, False, Resources(4.0)) for n in range(10))
    seen = Simulation.seen

    def beside_theirs(self: Simulation) -> tuple[PilotSeen, ...]:
        return (*theirs, *(msgspec.structs.replace(one, running=0) for one in seen(self)))  # they were there before, and have the calls

    monkeypatch.setattr(Simulation, "seen", beside_theirs)
    sim.run(600)
    assert sim.submissions == []
    sim.calls = 48
    sim.run(60)
    assert sim.submissions == [2]


def test_pilots_taken_over_from_a_pool_of_another_name_go_on(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say the name that the pool had in the factory's earlier life, and were ended with their calls, as if they had not connected."""
    sim = simulation(make_pool(hello_timeout=120.0))
    sim.cluster.submit("earlier", 2, sim.now, cores=4.0)
    sim.calls = 10
    seen = Simulation.seen

    def as_then(self: Simulation) -> tuple[PilotSeen, ...]:
        return tuple(msgspec.structs.replace(one, pool=PoolName("before")) if one.pilot.startswith("1_") else one for one in seen(self))

    monkeypatch.setattr(Simulation, "seen", as_then)
    sim.run(600)
    assert sim.submissions == [1], "they count"
    assert (sim.cancelled, sim.core.history.start_failures) == ([], 0)
    assert {pilot.phase for pilot in sim.core.fleet.pilots.values()} == {Phase.SERVING}
    sim.core.close(sim.now, 30.0)
    sim.tick()
    assert sim.core.pools_of(sim.released) == {"before": ["1_0", "1_1"], "p": ["2"]}


def test_preempted_pilots_are_told_of_and_come_back_by_themselves(make_pool: MakePool) -> None:
    sim = simulation(make_pool(max_pilots=1))
    sim.calls = 4
    sim.run(60)
    [job] = sim.cluster.jobs
    sim.obey(sim.cluster.preempt(job, sim.now))
    sim.run(120)
    assert sim.submissions == [1]
    [ended] = [ended for report in sim.reports for ended in report.ended]
    assert (str(ended.pilot), ended.failed) == (str(job), False)
    assert sim.core.fleet.pilots[job].word == f"{job}+1"
    assert sim.core.fleet.pilots[job].connected


def test_closing_cancels_what_waits_lets_go_what_serves_and_ends_the_rest(make_pool: MakePool) -> None:
    sim = simulation(make_pool(), nodes=2)
    sim.calls = 40
    sim.run(60)
    sim.core.close(sim.now, 30.0)
    sim.tick()
    assert (len(sim.released), len(sim.cancelled)) == (2, 8)
    sim.run(40)
    assert sim.core.finished
    assert sim.cluster.alive == 0
    assert math.isinf(sim.core.again_at(sim.now))


def lose_manager(sim: Simulation) -> None:
    sim.away = True
    sim.core.cut_off(sim.now)


def cut_off(pool: PoolConfig, calls: int, nodes: int = 20) -> Simulation:
    """Pilots run so many calls, and then the manager is out of reach."""
    sim = simulation(pool, nodes=nodes)
    sim.calls = calls
    sim.run(60)
    lose_manager(sim)
    return sim


def test_nothing_is_submitted_while_the_manager_is_out_of_reach(make_pool: MakePool) -> None:
    """What ends meanwhile is replaced when it has said what it could use: it may be gone for good, and its calls be done."""
    sim = cut_off(make_pool(), 40)
    for job in list(sim.cluster.jobs.values())[:3]:
        sim.cluster.process_ended(job.job, job.restart, 0, sim.now)
    sim.run(300)
    assert (sim.submissions, sim.cluster.alive) == ([10], 7)
    assert sim.core.actions is not None
    assert sim.core.actions.waits == "the manager is out of reach"
    sim.away = False
    sim.run(60)
    assert (sim.submissions, sim.cluster.alive) == ([10, 3], 10)


def test_nothing_is_let_go_while_the_manager_is_out_of_reach(make_pool: MakePool) -> None:
    """Those that were idle may have calls, and those in the queue be wanted."""
    sim = simulation(make_pool(idle_timeout=120.0), nodes=2, queue_delay=0.0)
    sim.calls = 40
    sim.run(60)
    sim.calls = 0
    sim.run(10)
    sim.cancelled.clear()
    lose_manager(sim)
    sim.run(600)
    assert (sim.released, sim.cancelled) == ([], [])


@pytest.mark.parametrize("status", [None, 4], ids=["they wait on", "they give up"])
def test_pilots_that_find_no_manager_are_not_held_against_the_pool(make_pool: MakePool, status: int | None) -> None:
    """Where it is out of reach for the factory as well. Those that still run have their time to connect when it is back."""
    sim = simulation(make_pool(hello_timeout=60.0), queue_delay=100.0)
    sim.calls = 40
    sim.run(5)
    lose_manager(sim)
    sim.run(400)
    if status is not None:
        for job in list(sim.cluster.jobs.values())[:6]:
            sim.cluster.process_ended(job.job, job.restart, status, sim.now)
    sim.run(100)
    assert sim.core.history.start_failures == 0
    sim.away = False
    sim.run(120)
    assert sim.core.history.paused == ""
    assert sim.cancelled == []
    assert sim.cluster.alive == 10


def test_closing_without_a_manager_ends_what_serves_through_the_batch_system(make_pool: MakePool) -> None:
    """Nobody else can tell it; but what runs has the time that it was given."""
    sim = cut_off(make_pool(grace=30.0), 8, nodes=2)
    sim.calls = 0  # nobody knows what runs
    closed = sim.now
    sim.core.close(closed, 300.0)
    while not sim.core.finished:
        sim.tick(min(5.0, sim.core.again_at(sim.now) - sim.now))
        assert not sim.cancelled or sim.now >= closed + 270
    assert (len(sim.released), len(sim.cancelled)) == (0, 2)
    assert sim.now <= closed + 310
    assert sim.cluster.alive == 0


def test_closing_while_the_manager_is_out_of_reach_for_a_moment_is_as_ever(make_pool: MakePool) -> None:
    sim = cut_off(make_pool(grace=30.0), 8, nodes=2)
    sim.core.close(sim.now, math.inf)
    sim.tick(1)
    assert (sim.released, sim.cancelled) == ([], [])
    sim.away = False
    sim.tick(1)
    assert (len(sim.released), len(sim.cancelled)) == (2, 0)


def closing(pool: PoolConfig, seconds: float = math.inf) -> Simulation:
    """Two pilots were let go as the factory closes, and have calls that take long."""
    sim = simulation(pool, nodes=2)
    sim.calls = 8
    sim.run(60)
    sim.core.close(sim.now, seconds)
    sim.tick(1)
    assert len(sim.released) == 2
    sim.leaving = dict.fromkeys(sim.released, math.inf)
    return sim


def told_to_end(sim: Simulation) -> int:
    return sum(kind == "cancel" for kind, _ in sim.cluster.commands)


def test_what_is_cut_off_while_the_factory_closes_may_finish(make_pool: MakePool) -> None:
    """All at once, as by a switch: its calls go on, and it comes back."""
    sim = closing(make_pool())
    sim.cut = set(sim.released)
    sim.run(50)
    assert (told_to_end(sim), sim.core.finished) == (0, False)
    sim.cut = set()
    sim.run(300)
    assert (told_to_end(sim), sim.core.finished) == (0, False)


def test_what_is_cut_off_when_the_factory_closes_is_let_go_when_it_is_back(make_pool: MakePool) -> None:
    sim = simulation(make_pool(), nodes=2)
    sim.calls = 8
    sim.run(60)
    sim.cut = {pilot.pilot for pilot in sim.seen()[:1]}
    sim.core.close(sim.now, math.inf)
    sim.run(10)
    assert (len(sim.released), told_to_end(sim)) == (1, 0)
    sim.cut = set()
    sim.tick(1)
    assert (len(sim.released), told_to_end(sim)) == (2, 0)
    sim.run(300)
    assert sim.core.finished


def test_what_the_manager_has_given_up_is_ended_while_the_factory_closes(make_pool: MakePool) -> None:
    sim = closing(make_pool())
    sim.given_up = set(sim.released)
    sim.leaving.clear()
    sim.run(300)
    assert sim.core.finished
    assert sim.cluster.alive == 0


def test_what_does_not_find_a_manager_that_began_anew_is_ended_while_the_factory_closes(make_pool: MakePool) -> None:
    """It has its time to do so; the manager, which has never heard of it, says no more of it later."""
    sim = closing(make_pool())
    sim.core.told_nothing(sim.now)
    sim.given_up = set(sim.released)
    sim.tick(1)
    sim.away = True  # nothing changes, so nothing more is said
    sim.run(50)
    assert (told_to_end(sim), sim.core.finished) == (0, False)
    sim.run(100)
    assert sim.core.finished


def test_what_waits_is_cancelled_again_where_a_cancel_got_no_answer_while_the_factory_closes(make_pool: MakePool) -> None:
    """It would start, connect and get calls, one after the other, and the factory would wait for those as well."""
    sim = simulation(make_pool(), nodes=1)
    sim.calls = 16
    sim.run(60)
    sim.cluster.fail("cancel", Fault.UNREACHABLE)
    sim.core.close(sim.now, math.inf)
    sim.tick(1)
    [word] = sim.released
    sim.leaving[word] = math.inf
    assert len(sim.cancelled) == 3
    sim.run(200)
    assert [pilot_word(job.job, 0) for job in sim.cluster.jobs.values() if job.state is not Listed.ENDED] == [word]
    assert not sim.core.finished


def test_one_that_was_to_end_and_serves_is_let_go_while_the_factory_closes(make_pool: MakePool) -> None:
    """Nobody has heard the cancel, and it has calls by now: these may finish."""
    sim = simulation(make_pool(), nodes=2)
    sim.cluster.down.add("n2")
    sim.calls = 8
    sim.run(60)
    sim.cluster.fail("cancel", Fault.UNREACHABLE)
    sim.core.close(sim.now, math.inf)
    sim.tick(1)
    sim.leaving = dict.fromkeys(sim.released, math.inf)
    assert len(sim.leaving) == 1
    sim.cluster.down.clear()
    sim.run(20)
    assert len(sim.released) == 2
    sim.leaving = dict.fromkeys(sim.released, math.inf)
    sim.run(300)
    assert sim.cluster.alive == 2
    assert not sim.core.finished
    assert len(sim.cancelled) == 1


def test_the_last_command_is_tried_again_where_it_got_no_answer(make_pool: MakePool) -> None:
    """Without turning round and round meanwhile."""
    sim = simulation(make_pool(), queue_delay=300.0)
    sim.calls = 4
    sim.run(10)
    sim.cluster.fail("cancel", Fault.UNREACHABLE, 2)
    closed = sim.now
    sim.core.close(closed, 600.0)
    sim.tick()
    while not sim.core.finished:
        sim.tick(sim.core.again_at(sim.now) - sim.now)
    assert sim.now <= closed + 60
    assert not sim.core.left_some
    assert sim.cluster.alive == 0


def test_a_pool_whose_manager_is_out_of_reach_promises_what_it_has(make_pool: MakePool) -> None:
    """One that was named later may hear of the manager sooner, and that of its pilots later."""
    sim = simulation(make_pool())
    sim.calls = 40
    sim.run(60)
    assert sim.core.promise(sim.now)[0].pilots == 0
    lose_manager(sim)
    for job in list(sim.cluster.jobs.values())[:3]:
        sim.cluster.process_ended(job.job, job.restart, 0, sim.now)
    sim.run(60)
    assert sim.core.promise(sim.now)[0].pilots == 7 + 3


def test_closing_keeps_to_the_budget_too(make_pool: MakePool) -> None:
    """The last command of all may cost two; a person who is in a hurry waits for some seconds."""
    sim = simulation(make_pool(), queue_delay=300.0)
    sim.calls = 40
    sim.run(60)
    for _ in range(4):
        sim.core.budget.spend("query", sim.now)
    asked = sim.now
    sim.core.close(asked, 0.0)
    while not sim.core.finished:
        sim.tick(min(1.0, sim.core.again_at(sim.now) - sim.now))
        assert sim.now <= asked + 11
    assert sim.cluster.alive == 0
    assert sim.now >= asked + 10


def test_closing_gives_up_a_batch_system_that_never_answers(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.calls = 40
    sim.run(60)
    sim.cluster.fail("cancel", Fault.UNREACHABLE, 100)
    sim.cluster.fail("query", Fault.UNREACHABLE, 100)
    sim.core.close(sim.now, 0.0)
    sim.run(120)
    assert sim.core.finished


def test_an_earlier_life_of_the_factory_left_pilots_that_count(make_pool: MakePool) -> None:
    sim = simulation(make_pool())
    sim.cluster.submit("f-old-1", 7, 0.0, cores=4.0)
    sim.calls = 40
    sim.run(60)
    assert (sim.submissions, sim.cluster.alive) == ([3], 10)


def test_pilots_that_an_earlier_life_was_ending_count_for_nothing(make_pool: MakePool) -> None:
    """A program that was killed and starts again sees the rest of them, and sees them end by a cancellation that it has not asked for."""
    sim = simulation(make_pool())
    jobs = sim.cluster.submit("f-old-1", 4, 0.0, cores=4.0)
    sim.cluster.advance(0.0)
    sim.cluster.cancel(jobs, 0.0)
    sim.calls = 40
    for part in (jobs[:2], jobs[2:]):
        sim.tick(5.0)
        for job in part:
            sim.cluster.process_ended(job, 0, -15, sim.now)
        sim.run(60)
    assert (sim.core.history.takes.count, sim.core.history.failure, sim.cluster.alive) == (0, "", 10)


class AnyWeather(RuleBasedStateMachine):
    """Whatever happens, and in whatever order."""

    @initialize(seed=st.integers(0, 99), delay=st.sampled_from([0.0, 20.0, 200.0]), forget=st.sampled_from([0.0, 60.0, 300.0]))
    def begin(self, seed: int, delay: float, forget: float) -> None:
        pool = PoolConfig(
            name=PoolName("p"), backend="fake", resources=Resources(4.0), max_pilots=6, walltime=1800.0, grace=10.0, remote=True
        )
        self.sim = simulation(pool, nodes=4, queue_delay=(0.0, delay), forget_after=forget)
        self.sim.cluster.random.seed(seed)
        self.hidden: set[JobId] = set()
        self.sim.tick()
        self.demand(60, 0.0)

    @rule(calls=st.sampled_from([0, 3, 24, 60, 60]), each=st.sampled_from([0.0, 1.0, 100.0]))
    def demand(self, calls: int, each: float) -> None:
        self.sim.calls, self.sim.seconds_each = calls, each
        self.sim.tick()

    @rule(seconds=st.sampled_from([5.0, 31.0, 31.0, 120.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.sim.run(seconds, min(seconds, 20.0))

    @rule(command=st.sampled_from(["query", "submit", "cancel"]), fault=st.sampled_from([Fault.UNREACHABLE, Fault.AMBIGUOUS]))
    def no_answer(self, command: str, fault: Fault) -> None:
        self.sim.cluster.fail(command, fault)

    @rule()
    def a_limit_is_met(self) -> None:
        self.sim.cluster.fail("submit", Fault.OVER_LIMIT)

    @rule(data=st.data(), requeue=st.booleans())
    def preempted(self, data: st.DataObject, requeue: bool) -> None:
        if (job := self._pick(data)) is not None:
            self.sim.obey(self.sim.cluster.preempt(job, self.sim.now, requeue=requeue))

    @rule(data=st.data(), listed=st.sampled_from([Listed.QUEUED, Listed.RUNNING, Listed.ENDING]))
    def a_lie(self, data: st.DataObject, listed: Listed) -> None:
        if (job := self._pick(data)) is not None:
            self.sim.cluster.lie(job, listed)

    @rule(data=st.data())
    def not_listed_once(self, data: st.DataObject) -> None:
        job = self._pick(data)
        if job is not None and job not in self.hidden:  # twice in a row is gone, by rule
            self.hidden.add(job)
            self.sim.cluster.hide(job)

    @rule(data=st.data())
    def held(self, data: st.DataObject) -> None:
        job = self._pick(data)
        if job is not None and self.sim.cluster.jobs[job].state in (Listed.QUEUED, Listed.RUNNING):
            self.sim.cluster.hold(job)
            self.sim.tick()

    @rule(node=st.sampled_from(["n1", "n2", "n3", "n4"]))
    def a_black_hole_opens_or_closes(self, node: str) -> None:
        self.sim.cluster.black_holes ^= {node}

    @rule(node=st.sampled_from(["n1", "n2", "n3", "n4"]))
    def a_disk_is_full_or_not(self, node: str) -> None:
        self.sim.unfit ^= {node}

    def _pick(self, data: st.DataObject) -> JobId | None:
        alive = [job.job for job in self.sim.cluster.jobs.values() if job.state is not Listed.ENDED]
        return data.draw(st.sampled_from(alive)) if alive else None

    @invariant()
    def never_over_the_maximum(self) -> None:
        if hasattr(self, "sim"):
            assert self.sim.cluster.most_alive <= 6
            assert self.sim.core.fleet.live <= 6

    @invariant()
    def never_more_commands_than_allowed(self) -> None:
        if hasattr(self, "sim"):
            assert commands_in(self.sim, 10.0) <= BATCH.burst
            assert commands_in(self.sim, 600.0) <= BATCH.sustained

    def teardown(self) -> None:
        """In fair weather it converges to demand, and to nothing without demand."""
        if not hasattr(self, "sim"):
            return
        sim = self.sim
        sim.cluster.black_holes.clear()
        sim.unfit.clear()
        for command in ("query", "submit", "cancel"):  # what was to fail has failed
            while True:
                try:
                    if command == "query":
                        sim.cluster.query(sim.now)
                    elif command == "cancel":
                        sim.cluster.cancel([], sim.now)
                    else:
                        sim.cluster.submit("t", 0, sim.now)
                    break
                except BatchError:
                    continue
        for job in sim.cluster.jobs.values():
            job.hidden, job.lies = 0, []
        sim.calls, sim.seconds_each = 16, 0.0
        sim.run(400, 10.0)  # what died before is known now, and what was never listed
        sim.core.history.resume()
        sim.run(1200, 20.0)
        coming = sum(pilot.coming for pilot in sim.core.fleet.pilots.values())
        assert coming == 4, f"{coming} pilots for 16 calls of a core at 4 cores each: {sim.core.actions}"
        sim.calls = 0
        sim.run(1200, 20.0)
        assert sim.cluster.alive == 0, f"without demand: {sim.core.actions}"


TestAnyWeather = AnyWeather.TestCase
TestAnyWeather.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("earlier_life", [False, True])
def test_a_pilot_that_connected_before_the_factory_knew_of_it_serves_when_it_is_listed(make_pool: MakePool, earlier_life: bool) -> None:
    """A manager speaks when something changes, so it may have said all it has to say of a pilot of an unsure submission, or of an earlier
    life of the factory. Such a pilot is not ended for never having connected; and it has been idle since the manager spoke."""
    core = FactoryCore(
        make_pool(), PilotRequest(ticket="", pool=PoolName("p"), command=(), resources=Resources(4.0)), BATCH, 30.0, 100, Tickets("f")
    )
    shape = Shape(Resources(), 4, 0)
    serving = PilotSeen(PoolName("p"), PilotId("7"), True, 0, 5.0, False, Resources(4.0))
    if earlier_life:
        core.hear(Demand((), (serving,)), 4.0)
        ticket = "f-0"
    else:
        assert isinstance(core.step(0.0), Query)
        core.listed([], 0.0)
        core.hear(Demand((shape,), ()), 1.0)
        submit = core.step(1.0)
        assert isinstance(submit, Submit)
        core.unreachable("no answer", 3.0)
        core.hear(Demand((), (serving,)), 4.0)
        ticket = submit.request.ticket
    core.listed([PilotState(job=JobId("7"), listed=Listed.RUNNING, ticket=ticket, restart=0)], 40.0)
    [pilot] = core.fleet.pilots.values()
    assert pilot.phase is Phase.SERVING
    assert pilot.idle_for(40.0) == 41.0
    core.check()


def test_a_paused_pool_is_spent_when_none_of_its_pilots_can_come(make_pool: MakePool) -> None:
    """Calls that only it could run would wait for ever then; while pilots are there, or queued, they may still run."""
    core = FactoryCore(
        make_pool(), PilotRequest(ticket="", pool=PoolName("p"), command=(), resources=Resources(4.0)), BATCH, 30.0, 100, Tickets("f")
    )
    core.listed([PilotState(job=JobId("7"), listed=Listed.QUEUED, restart=0)], 0.0)
    core.rejected("f-1", "no such partition", 0.0)
    report = core.report()
    assert report is not None
    assert [(offer.paused, offer.spent) for offer in report.offers] == [("no such partition", False)]
    core.listed([PilotState(job=JobId("7"), listed=Listed.ENDED, restart=0)], 30.0)
    report = core.report()
    assert report is not None
    assert [(offer.paused, offer.spent) for offer in report.offers] == [("no such partition", True)]
    core.history.resume()
    report = core.report()
    assert report is not None
    assert [(offer.paused, offer.spent) for offer in report.offers] == [("", False)]


@pytest.mark.parametrize(("stated", "wanted_before"), [(0, 2), (64 * 10**9, 2), (16 * 10**9, 8)])
def test_what_memory_pilots_have_turned_out_to_have_decides(make_pool: MakePool, stated: int, wanted_before: int) -> None:
    """For how many are submitted and for what the manager is told; also when those that were seen are gone. The largest node counts."""
    pool = make_pool(resources=Resources(4.0, stated))
    core = FactoryCore(pool, PilotRequest(ticket="", pool=pool.name, command=(), resources=pool.resources), BATCH, 30.0, 100, Tickets("f"))
    shape = Shape(Resources(1.0, 16 * 10**9), 8, 0)
    core.listed([], 0.0)

    def submits(*seen: Resources) -> int:
        pilots = tuple(PilotSeen(pool.name, PilotId(f"{number}.0"), True, 0, 0.0, False, of) for number, of in enumerate(seen))
        core.hear(Demand((shape,), pilots), 0.0)
        core.step(0.0)
        assert core.actions is not None
        return core.actions.wanted

    def told() -> tuple[int, bool]:
        report = core.report()
        assert report is not None
        return report.offers[0].resources.memory, report.offers[0].found

    assert (submits(), told()) == (wanted_before, (stated, False))
    assert submits(Resources(4.0, 15 * 10**9), Resources(4.0, 16 * 10**9)) == 8
    if stated != 16 * 10**9:
        assert told() == (16 * 10**9, True)
    assert submits() == 8
    assert core.promise(0.0)[0].pool.resources == Resources(4.0, 16 * 10**9)
    assert core.pool is pool, "what is submitted is what was asked for"


def queries(sim: Simulation) -> list[float]:
    return [at for kind, at in sim.cluster.commands if kind == "query"]


def test_while_every_pilot_is_connected_the_batch_system_is_hardly_asked(make_pool: MakePool) -> None:
    """A query could tell nothing that the connections do not: one in five minutes, in case."""
    sim = simulation(make_pool(walltime=10_000.0))
    sim.calls = 40
    sim.run(120)
    before = len(queries(sim))
    sim.run(3600)
    assert sim.cluster.alive == 10
    assert 12 <= len(queries(sim)) - before <= 13


def test_a_connection_that_is_cut_is_asked_about_at_once(make_pool: MakePool) -> None:
    """The pilot's calls go back, and it is replaced, as soon as the batch system says that it has ended; nobody waits minutes for that."""
    sim = simulation(make_pool(walltime=10_000.0))
    sim.calls = 40
    sim.run(600)
    [job, *_] = [job for job in sim.cluster.jobs.values() if job.state is Listed.RUNNING]
    died = sim.now
    sim.cluster.process_ended(job.job, job.restart, 9, sim.now)
    sim.tick(1)
    assert queries(sim)[-1] == died + 1
    assert sim.submissions == [10, 1]
    assert [ended.pilot for report in sim.reports for ended in report.ended] == [pilot_word(job.job, 0)]


def test_a_connection_that_is_cut_again_and_again_is_no_reason_to_hurry(make_pool: MakePool) -> None:
    """Two queries are never closer together than the interval."""
    sim = simulation(make_pool(walltime=10_000.0))
    sim.calls = 40
    sim.run(600)
    for _ in range(10):
        job = next(job for job in sim.cluster.jobs.values() if job.state is Listed.RUNNING)
        sim.cluster.process_ended(job.job, job.restart, 9, sim.now)
        sim.run(7, step=1)
    times = queries(sim)
    assert min(later - earlier for earlier, later in pairwise(times)) >= 30.0


def test_what_is_asked_for_while_all_is_calm_is_looked_for_in_time(make_pool: MakePool) -> None:
    """More demand after minutes of rest: the first query after the submission comes within the interval."""
    sim = simulation(make_pool(walltime=10_000.0, max_pilots=20))
    sim.calls = 20
    sim.run(600)
    sim.calls = 60
    sim.tick(1)
    submitted = sim.now
    sim.run(60, step=1)
    assert any(submitted <= at <= submitted + 31 for at in queries(sim))


def test_where_pilots_die_again_and_again_queries_make_room_for_submissions(make_pool: MakePool) -> None:
    """One of ten pilots dies every 40 s: nine run, as a mean, and never are there more than 30 commands in ten minutes.

    With a query every 30 s whatever else is sent, seven ran.
    """
    sim = simulation(make_pool(walltime=10_000.0))
    sim.calls = 40
    sim.run(120)
    running: list[int] = []
    for second in range(3600):
        jobs = [job for job in sim.cluster.jobs.values() if job.state is Listed.RUNNING]
        if second % 40 == 0:
            sim.cluster.process_ended(jobs[0].job, jobs[0].restart, 9, sim.now)
        sim.tick(1)
        running.append(len(jobs))
    assert sum(running) / len(running) > 8.5
    assert commands_in(sim, 600.0) <= BATCH.sustained
    assert commands_in(sim, 10.0) <= BATCH.burst


def test_pilots_that_were_started_before_and_are_held_together_are_one_misfortune(make_pool: MakePool) -> None:
    """A controller that has lost its state starts again what runs, and holds what its nodes refuse: the pool goes on, with new pilots."""
    sim = simulation(make_pool(max_pilots=4), queue_delay=50.0)
    sim.calls = 16
    sim.run(180)
    jobs = list(sim.cluster.jobs)
    assert len(jobs) == 4
    for job in jobs:
        sim.obey(sim.cluster.preempt(job, sim.now, requeue=True))
    sim.tick(FAREWELL + 1)
    for job in jobs:
        sim.cluster.hold(job, "launch failed requeued held")
    sim.run(40, step=1)
    assert sim.core.history.start_failures == 1
    assert sim.core.history.paused == ""
    sim.run(300)
    assert sim.core.history.start_failures == 0
    assert sim.cluster.alive == 4


@pytest.mark.parametrize(("words", "failures"), [("", 1), ("last words", 3)])
def test_pilots_that_a_batch_system_has_forgotten_together_are_one_misfortune(make_pool: MakePool, words: str, failures: int) -> None:
    """A controller that was killed before it saved what it had accepted; but pilots that have left last words failed by themselves."""
    sim = simulation(make_pool(max_pilots=3, max_start_failures=5), queue_delay=100.0)
    sim.words = words
    sim.calls = 12
    sim.run(40, 1)
    for job in list(sim.cluster.jobs):
        sim.cluster.hide(job, times=1000)
    while not sim.core.history.start_failures:
        sim.tick(1)
    assert sim.now < 100
    assert sim.core.history.start_failures == failures


def answer_from_memory(sim: Simulation, seconds: float) -> None:
    """The site's wrapper of the query gives for so many seconds what it was answered before."""
    ask, kept = sim.cluster.query, list[tuple[float, list[PilotState]]]()

    def query(now: float) -> list[PilotState]:
        if not kept or now - kept[-1][0] >= seconds:
            kept.append((now, list(ask(now))))
        return kept[-1][1]

    sim.cluster.query = query  # type: ignore[method-assign]


def test_pilots_that_an_old_answer_cannot_have_are_not_missed(make_pool: MakePool) -> None:
    """The answer was kept from before they were submitted; they would be submitted again and again, until the pool is paused."""
    sim = simulation(make_pool(max_pilots=3), queue_delay=600.0)
    answer_from_memory(sim, 120.0)
    sim.calls = 12
    sim.run(1200)
    assert sim.submissions == [3]
    assert not sim.core.history.failure
    assert sim.core.fleet.counts()[Phase.SERVING] == 3


def test_a_submission_that_an_old_answer_cannot_have_is_not_repeated(make_pool: MakePool) -> None:
    """Two answers from before it would show none of its pilots: as many more would be submitted, which none of the limits allows."""
    sim = simulation(make_pool(max_pilots=3), queue_delay=600.0)
    answer_from_memory(sim, 200.0)
    sim.calls = 12
    sim.cluster.fail("submit", Fault.AMBIGUOUS)
    sim.run(1200)
    assert (sim.submissions, sim.cluster.most_alive) == ([3], 3)
    assert sim.core.fleet.counts()[Phase.SERVING] == 3


def test_pilots_that_have_vanished_before_they_served_are_looked_for(make_pool: MakePool) -> None:
    """Nobody would cancel them otherwise; they are few, as each death in a row is waited for longer."""
    sim = simulation(make_pool(max_pilots=3, max_start_failures=2), queue_delay=math.inf)
    sim.words = ""
    answer_from_memory(sim, 1500.0)
    sim.calls = 12
    sim.run(1400)
    assert sim.submissions == [3, 1]
    assert sim.core.history.paused.endswith("the batch system does not know it any more")
    assert (sim.core.fleet.live, sim.cluster.alive) == (0, 4)
    before = len(sim.cluster.commands)
    sim.run(600)
    assert sim.cluster.alive == 0, "they are found, and cancelled as the pool is paused"
    assert sim.submissions == [3, 1]
    sim.run(2 * 3600)
    assert len(sim.cluster.commands) - before < 20
    assert sim.core.again_at(sim.now) == math.inf


def with_one_that_vanished(make_pool: MakePool) -> Simulation:
    """No answer has ever had its pilot, which is in the queue."""
    sim = simulation(make_pool(max_start_failures=1), queue_delay=math.inf)
    sim.words = ""
    answer_from_memory(sim, 1e6)
    sim.calls = 4
    sim.run(400)
    return sim


def test_pilots_that_have_vanished_are_ended_when_the_factory_closes(make_pool: MakePool) -> None:
    sim = with_one_that_vanished(make_pool)
    assert (sim.core.fleet.live, sim.cluster.alive) == (0, 1)
    sim.core.close(sim.now, 60.0)
    sim.tick()
    assert (sim.core.finished, sim.cluster.alive) == (True, 0)


def test_a_factory_without_pilots_ends_though_its_batch_system_is_down(make_pool: MakePool) -> None:
    """One that has vanished may turn up again, but nobody waits for three answers that do not come."""
    sim = with_one_that_vanished(make_pool)
    assert sim.core.fleet.live == 0
    sim.core.close(sim.now, 60.0)
    assert isinstance(sim.core.step(sim.now), EndAll)
    sim.core.unreachable("no answer", sim.now)
    assert sim.core.finished


def test_what_has_vanished_is_looked_for_as_seldom_while_the_manager_is_away(make_pool: MakePool) -> None:
    sim = with_one_that_vanished(make_pool)
    assert sim.core.fleet.live == 0
    before = sim.core.budget.sent["query"]
    sim.away = True
    sim.core.cut_off(sim.now)
    sim.run(1500)
    assert 3 <= sim.core.budget.sent["query"] - before <= 6


def test_a_factory_whose_first_query_got_no_answer_waits_for_the_next(make_pool: MakePool) -> None:
    """Nothing is submitted before one was answered, so there is nothing to do until then, though pilots are wanted."""
    core = FactoryCore(
        make_pool(), PilotRequest(ticket="", pool=PoolName("p"), command=(), resources=Resources(4.0)), BATCH, 30.0, 100, Tickets("f")
    )
    assert isinstance(core.step(0.0), Query)
    core.unreachable("no answer", 1.0)
    core.hear(Demand((Shape(Resources(), 4, 0),), ()), 2.0)
    assert core.step(10.0) is None
    assert core.again_at(10.0) == 30.0
    assert isinstance(core.step(30.0), Query)
