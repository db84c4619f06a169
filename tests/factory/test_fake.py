"""The batch system for tests: its own rules."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from windlass.errors import OverLimit, Rejected, Unreachable, UsageError
from windlass.factory.backend import Cause, JobId, Listed, PilotRequest, PilotState, Tag
from windlass.factory.fake import FakeBackend, FakeCluster, Fault, Kill, Start, Terminate
from windlass.factory.processes import Processes
from windlass.messages import PoolName, Resources

REQUEST = PilotRequest(ticket="t", pool=PoolName("p"), command=("worker",), resources=Resources(4.0), walltime=100.0)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBackend]:
    """Two nodes of eight cores; nothing runs, time is moved by hand."""
    fake = FakeBackend(processes=False, cluster_nodes=2, queue_delay=10.0, kill_wait=5.0, forget_after=50.0)
    fake.open(Tag("f"), tmp_path, lambda: None)
    yield fake
    fake.cluster.check()
    fake.close()


def listed(fake: FakeBackend) -> dict[str, str]:
    return {state.job: state.listed.value for state in fake.query()}


def only(fake: FakeBackend) -> PilotState:
    [state] = fake.query()
    return state


def test_jobs_wait_run_to_their_walltime_and_are_forgotten(fake: FakeBackend) -> None:
    fake.submit(REQUEST, 1)
    fake.advance(9.9)
    assert only(fake).listed is Listed.QUEUED
    fake.advance(0.1)
    assert (only(fake).listed, only(fake).node) == (Listed.RUNNING, "n1")
    fake.advance(100)
    assert (only(fake).listed, only(fake).cause) == (Listed.ENDED, Cause.WALLTIME)
    fake.advance(50)
    assert fake.query() == []


def test_jobs_wait_for_free_cores(fake: FakeBackend) -> None:
    jobs = fake.submit(REQUEST, 5)
    fake.advance(10)
    assert list(listed(fake).values()) == ["running"] * 4 + ["queued"]
    fake.finish(jobs[0])
    fake.advance(0.1)
    assert list(listed(fake).values()) == ["ended"] + ["running"] * 4


def test_an_end_goes_from_sigterm_over_ending_to_sigkill() -> None:
    cluster = FakeCluster(kill_wait=5.0)
    [job] = cluster.submit("t", 1, 0.0, walltime=100.0)
    assert cluster.advance(0.0) == [Start(job, 0, "n1")]
    assert cluster.next_at(0.0) == 100.0
    assert cluster.advance(100.0) == [Terminate(job, 0)]
    assert cluster.query(100.0)[0].listed is Listed.ENDING
    assert cluster.advance(104.9) == []
    assert cluster.advance(105.0) == [Kill(job, 0)]
    assert cluster.advance(106.0) == []
    cluster.process_ended(job, 0, -9, 106.0)
    assert cluster.query(106.0)[0].cause is Cause.WALLTIME


def test_a_preempted_job_is_queued_again_under_its_id(fake: FakeBackend) -> None:
    [job] = fake.submit(REQUEST, 1)
    fake.advance(10)
    fake.preempt(job)
    assert (only(fake).job, only(fake).listed, only(fake).restart) == (job, Listed.QUEUED, 1)
    fake.advance(10)
    assert only(fake).listed is Listed.RUNNING
    fake.preempt(job, requeue=False)
    assert (only(fake).listed, only(fake).cause) == (Listed.ENDED, Cause.PREEMPTED)


def test_a_cancelled_job_that_was_preempted_is_not_queued_again() -> None:
    cluster = FakeCluster()
    [job] = cluster.submit("t", 1, 0.0)
    cluster.advance(0.0)
    assert cluster.preempt(job, 1.0) == [Terminate(job, 0)]
    assert cluster.cancel([job], 2.0) == []
    cluster.process_ended(job, 0, 0, 3.0)
    assert cluster.query(3.0)[0].cause is Cause.CANCELLED


def test_a_lost_node_queues_its_jobs_again_and_gets_no_more(fake: FakeBackend) -> None:
    fake.submit(REQUEST, 2)
    fake.advance(10)
    fake.cluster.lose_node("n1")
    fake.advance(20)
    assert {(state.node, state.restart) for state in fake.query()} == {("n2", 1)}


def test_commands_fail_as_asked(fake: FakeBackend) -> None:
    for fault, error in ((Fault.REJECTED, Rejected), (Fault.OVER_LIMIT, OverLimit), (Fault.UNREACHABLE, Unreachable)):
        fake.cluster.fail("submit", fault)
        with pytest.raises(error):
            fake.submit(REQUEST, 1)
    assert fake.query() == []
    fake.cluster.fail("submit", Fault.AMBIGUOUS)
    with pytest.raises(Unreachable, match="timed out"):
        fake.submit(REQUEST, 1)
    assert only(fake).ticket == "t"
    fake.cluster.fail("query", Fault.UNREACHABLE)
    with pytest.raises(Unreachable):
        fake.query()
    fake.cluster.fail("cancel", Fault.AMBIGUOUS)
    with pytest.raises(Unreachable):
        fake.cancel([only(fake).job])
    assert only(fake).listed is Listed.ENDED
    assert [kind for kind, _ in fake.cluster.commands].count("submit") == 4


def test_a_limit_on_jobs_and_a_request_that_no_node_has() -> None:
    cluster = FakeCluster(max_jobs=3)
    cluster.submit("t", 2, 0.0)
    with pytest.raises(OverLimit, match="MaxJobCount=3"):
        cluster.submit("t", 2, 0.0)
    with pytest.raises(Rejected, match="9 cores of 8"):
        cluster.submit("t", 1, 0.0, cores=9)


def test_answers_lie_hide_and_forget_as_asked(fake: FakeBackend) -> None:
    [job] = fake.submit(REQUEST, 1)
    fake.cluster.lie(job, Listed.ENDED)
    assert [only(fake).listed, only(fake).listed] == [Listed.ENDED, Listed.QUEUED]
    fake.cluster.hide(job)
    assert (fake.query(), len(fake.query())) == ([], 1)
    fake.cancel([job])
    fake.cluster.forget(job)
    assert fake.query() == []


def test_a_held_job_does_not_start_and_can_be_cancelled(fake: FakeBackend) -> None:
    [job] = fake.submit(REQUEST, 1)
    fake.cluster.hold(job, "spool full")
    fake.advance(1000)
    assert (only(fake).listed, only(fake).reason) == (Listed.HELD, "spool full")
    fake.cancel([job])
    assert only(fake).listed is Listed.ENDED


def test_a_black_hole_takes_every_job_that_does_not_avoid_it(fake: FakeBackend) -> None:
    fake.cluster.black_holes = {"n2"}
    jobs = fake.submit(REQUEST, 6)
    fake.advance(10)
    assert {(state.node, state.exit_status) for state in fake.query()} == {("n2", 1)}
    assert fake.tail(jobs[0]) == "n2: this node is a black hole"
    assert fake.cluster.submit("t", 1, fake.now, avoid=("n2",)) == ["2"]
    fake.advance(10)
    assert {state.node for state in fake.query() if state.listed is Listed.RUNNING} == {"n1"}


def test_equal_seeds_give_equal_histories() -> None:
    def history(seed: int) -> list[float]:
        cluster = FakeCluster(seed, queue_delay=(0.0, 100.0))
        cluster.submit("t", 5, 0.0)
        return [job.eligible_at for job in cluster.jobs.values()]

    assert history(3) == history(3) != history(4)


def test_real_time_is_not_moved_by_hand() -> None:
    with pytest.raises(UsageError, match="processes=False"):
        FakeBackend().advance(1.0)


def test_what_is_unknown_is_cancelled_without_an_error(fake: FakeBackend) -> None:
    fake.cancel([JobId("17")])
    assert fake.query() == []


def test_a_kill_is_not_announced(tmp_path: Path) -> None:
    """A SIGTERM just before would let a quick worker give its calls back: whoever kills a pilot for a test means to lose them."""
    ended = threading.Event()
    processes = Processes(ended.set)
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    processes.start("one", ["/bin/sh", "-c", script], os.environ, tmp_path / "log", grace=5)
    end = time.monotonic() + 30
    while "ready" not in (tmp_path / "log").read_text() and time.monotonic() < end:
        time.sleep(0.005)
    processes.kill(["one"])
    assert ended.wait(30)
    assert [process.status for process in processes.take_ended()] == [-9]
    processes.close()


def test_a_preemption_without_notice_is_a_kill() -> None:
    """With some it is SIGTERM, then SIGKILL; a killed job, and one at its walltime, are told by their causes."""
    cluster = FakeCluster(kill_wait=5.0)
    jobs = [cluster.submit("t", 1, 0.0)[0] for _ in range(4)]
    cluster.advance(0.0)
    assert cluster.preempt(jobs[0], 1.0, notice=0.0) == [Kill(jobs[0], 0)]
    assert cluster.time_out(jobs[1], 1.0, notice=2.0) == [Terminate(jobs[1], 0)]
    assert cluster.kill(jobs[2]) == [Kill(jobs[2], 0)]
    assert cluster.advance(2.9) == []
    assert cluster.advance(3.0) == [Kill(jobs[1], 0)]
    for job in jobs[:3]:
        cluster.process_ended(job, 0, -9, 3.5)
    cluster.lose_node("n1", 4.0)
    told = [(one.what, one.job) for one in cluster.happened if one.what != "started"]
    assert told == [(Cause.PREEMPTED, "1"), (Cause.WALLTIME, "2"), (Cause.SIGNAL, "3"), (Cause.NODE, "4")]
    cluster.check()


def test_a_fault_that_stands_fails_every_command_and_is_told() -> None:
    """Until it is taken away; those that were asked for one by one come first."""
    cluster = FakeCluster()
    cluster.standing["submit"] = (Fault.REJECTED, "no such account")
    cluster.fail("submit", Fault.OVER_LIMIT)
    with pytest.raises(OverLimit):
        cluster.submit("t", 1, 0.0)
    for _ in range(2):
        with pytest.raises(Rejected, match="no such account"):
            cluster.submit("t", 1, 0.0)
    cluster.standing.clear()
    assert cluster.submit("t", 1, 0.0) == ["1"]
    assert [one.what for one in cluster.happened] == [Fault.OVER_LIMIT, Fault.REJECTED, Fault.REJECTED]
