"""Rules of `windlass.worker.lifetime`: when a worker drains, finishes and ends."""

from __future__ import annotations

import pytest

from windlass.worker.lifetime import (
    ECHO_SECONDS,
    NEXT,
    PUT_OFF_SECONDS,
    Decision,
    Lifetime,
    Phase,
    hard_end,
    percentile,
    stagger_seconds,
    stop_accepting_at,
)


def test_without_walltime_there_is_no_end() -> None:
    """A worker without a walltime serves until it is told otherwise, and says 0 seconds left, which means unlimited."""
    life = Lifetime(100.0)
    assert life.look(1e12, held=0) is Decision.NOTHING
    assert life.seconds_left(1e12) == 0.0
    assert life.phase is Phase.SERVING


@pytest.mark.parametrize(("walltime", "reserve"), [(5.0, 0.5), (100.0, 3.0), (86400.0, 10.0)])
def test_the_hard_end_leaves_time_to_clean_up(walltime: float, reserve: float) -> None:
    """3 % of the walltime, within half a second and ten."""
    assert hard_end(1000.0, walltime) == pytest.approx(1000.0 + walltime - reserve)


def test_accepting_stops_earlier_where_calls_are_longer() -> None:
    """The 90th percentile of run times lies between stop-accepting and the hard end."""
    assert stop_accepting_at(1000.0, []) == 999.0
    assert stop_accepting_at(1000.0, [0.001] * 50) == pytest.approx(998.999)
    assert stop_accepting_at(1000.0, [10.0] * 80 + [300.0] * 20) == pytest.approx(699.0)
    assert stop_accepting_at(1000.0, [10.0] * 99 + [300.0]) == pytest.approx(989.0)


def test_the_percentile_of_nothing_is_zero() -> None:
    """And of one value is that value."""
    assert percentile([], 0.9) == 0.0
    assert percentile([7.0], 0.9) == 7.0


def test_near_walltime_it_drains_then_finishes_when_nothing_is_held() -> None:
    """Calls of 20 s: accepting stops 21 s before the hard end (at 97 of 100)."""
    life = Lifetime(0.0, walltime=100.0)
    life.ran([20.0] * 10)
    assert life.look(75.9, held=3) is Decision.NOTHING
    assert life.look(76.1, held=3) is Decision.DRAIN
    assert life.phase is Phase.DRAINING
    assert life.reason == "near the end of walltime"
    assert life.look(80.0, held=2) is Decision.NOTHING
    assert life.look(90.0, held=0) is Decision.FINISH
    assert life.look(200.0, held=0) is Decision.NOTHING, "a decision is made once"


def test_at_the_hard_end_running_calls_are_ended() -> None:
    """A call that does not finish in time is ended, and the reason says why."""
    life = Lifetime(0.0, walltime=100.0)
    life.ran([20.0] * 10)
    assert life.look(80.0, held=1) is Decision.DRAIN
    assert life.look(97.1, held=1) is Decision.END
    assert life.reason == "end of walltime"


def test_a_running_call_teaches_before_any_has_ended() -> None:
    """Where the first call has run for 60 s already, a further one would not fit into the last 30."""
    life = Lifetime(0.0, walltime=100.0)
    assert life.look(70.0, held=1, oldest=5.0) is Decision.NOTHING
    assert life.look(70.0, held=1, oldest=60.0) is Decision.DRAIN


def test_a_signal_drains_inside_the_grace() -> None:
    """Running calls get the grace but for what their end takes: at 40.0 the batch system kills."""
    life = Lifetime(0.0, grace=30.0)
    assert life.signal("SIGTERM", 10.0) is Decision.DRAIN
    assert life.seconds_left(10.0) == pytest.approx(29.1)
    assert life.look(39.0, held=1) is Decision.NOTHING
    assert life.look(39.2, held=1) is Decision.END
    assert life.reason == "SIGTERM received; grace of 30 s is over"


@pytest.mark.parametrize(("grace", "left"), [(600.0, 590.0), (5.0, 4.5), (0.6, 0.3), (0.0, 0.001)])
def test_of_a_short_grace_calls_get_half(grace: float, left: float) -> None:
    """Of a long one all but ten seconds."""
    life = Lifetime(0.0, grace=grace)
    life.signal("SIGTERM", 10.0)
    assert life.seconds_left(10.0) == pytest.approx(left)


def test_the_grace_never_exceeds_the_walltime() -> None:
    """Signalled 20 s before the end with a grace of 300 s: the end stays."""
    life = Lifetime(0.0, walltime=100.0, grace=300.0)
    life.signal("SIGUSR1", 80.0, warning=True)
    assert life.deadline == 97.0


def test_a_second_signal_means_now_and_an_echo_does_not() -> None:
    """A batch system signals every process of a job, and wrappers pass it on once more."""
    life = Lifetime(0.0)
    assert life.signal("SIGTERM", 10.0) is Decision.DRAIN
    assert life.signal("SIGTERM", 10.0 + ECHO_SECONDS / 2) is Decision.NOTHING
    assert life.signal("SIGTERM", 10.0 + ECHO_SECONDS) is Decision.END
    assert life.reason == "SIGTERM received again"


def test_a_warning_never_means_now() -> None:
    """SIGUSR1 may come as often as it likes, and a SIGTERM after it is the first: running calls keep what they were promised, no more."""
    life = Lifetime(0.0, grace=30.0)
    assert life.signal("SIGUSR1", 10.0, warning=True) is Decision.DRAIN
    assert life.signal("SIGUSR1", 20.0, warning=True) is Decision.NOTHING
    assert life.signal("SIGTERM", 21.0) is Decision.NOTHING
    assert life.deadline == pytest.approx(39.1)
    assert life.signal("SIGTERM", 22.0) is Decision.END


def test_a_drain_is_by_trouble_only_where_that_came_first() -> None:
    """What was to leave anyhow is not told as trouble."""
    life = Lifetime(0.0)
    assert life.trouble("the disk is full", 1.0) is Decision.DRAIN
    assert (life.in_trouble, life.reason) == (True, "the disk is full")
    life = Lifetime(0.0)
    assert life.drain("scale down") is Decision.DRAIN
    assert life.trouble("the disk is full", 1.0) is Decision.NOTHING
    assert (life.in_trouble, life.useless, life.reason) == (False, False, "scale down")


@pytest.mark.parametrize(("ran", "at", "useless"), [(False, 1.0, True), (False, 9000.0, True), (True, 59.0, True), (True, 61.0, False)])
def test_another_worker_is_of_no_use_where_the_trouble_was_there_from_the_start(ran: bool, at: float, useless: bool) -> None:
    """Some calls may not have met it; but what comes late may have been brought by calls, and goes with the worker."""
    life = Lifetime(0.0)
    if ran:
        life.ran([0.1])
    life.trouble("the disk is full", at)
    assert life.useless == useless


def test_a_signal_while_draining_for_the_manager_sets_the_grace() -> None:
    """The manager's drain has no limit but the walltime; a signal brings one."""
    life = Lifetime(0.0, grace=5.0)
    assert life.drain("scale down") is Decision.DRAIN
    assert life.deadline == float("inf")
    assert life.signal("SIGTERM", 50.0) is Decision.NOTHING
    assert life.deadline == 54.5
    assert life.look(54.5, held=1) is Decision.END


def test_it_leaves_when_idle_too_long() -> None:
    """Idle is counted from the last look that found a call held; a busy worker never is."""
    life = Lifetime(0.0, idle_timeout=60.0)
    assert life.look(100.0, held=1) is Decision.NOTHING
    assert life.look(159.0, held=0) is Decision.NOTHING
    assert life.look(160.0, held=0) is Decision.FINISH
    assert life.reason == "idle for 60 s"


def test_a_worker_whose_calls_went_back_for_their_files_is_there_when_these_come() -> None:
    """A file server stands still for longer than pilots may be idle; but one that nothing comes back to leaves some time."""
    life = Lifetime(0.0, idle_timeout=60.0)
    assert life.look(100.0, held=2) is Decision.NOTHING
    assert life.look(110.0, held=0, put_off=2) is Decision.NOTHING
    assert life.look(110.0 + PUT_OFF_SECONDS + 59.0, held=0, put_off=2) is Decision.NOTHING
    assert life.look(110.0 + PUT_OFF_SECONDS + 60.0, held=0, put_off=2) is Decision.FINISH


def test_a_worker_waits_for_such_calls_though_it_runs_others_meanwhile() -> None:
    """What it holds, or a library that it starts, when they go back or later, does not take from that time."""
    life = Lifetime(0.0, idle_timeout=60.0)
    assert life.look(100.0, held=1, put_off=2) is Decision.NOTHING
    assert life.look(101.0, held=1, put_off=2) is Decision.NOTHING
    assert life.look(110.0, held=0, put_off=2, starting=True) is Decision.NOTHING
    assert life.look(100.0 + PUT_OFF_SECONDS + 59.0, held=0, put_off=2) is Decision.NOTHING
    assert life.look(100.0 + PUT_OFF_SECONDS + 60.0, held=0, put_off=2) is Decision.FINISH


def test_a_worker_that_starts_a_library_is_not_idle_and_need_not_finish_it() -> None:
    """Its calls come when the imports are done; a drain does not wait for that."""
    life = Lifetime(0.0, idle_timeout=60.0)
    assert life.look(100.0, held=0, starting=True) is Decision.NOTHING
    assert life.look(150.0, held=0) is Decision.NOTHING
    life.drain("scale down")
    assert life.look(151.0, held=0, starting=True) is Decision.FINISH


def test_calls_are_warned_at_a_signal_or_a_grace_before_the_hard_end() -> None:
    """And not when the manager drains the worker, which takes no time from them."""
    life = Lifetime(0.0, walltime=100.0, grace=20.0)
    life.drain("scale down")
    life.look(76.9, held=1)
    assert not life.warned
    assert life.next_look(76.9, 1.0) == pytest.approx(0.1)
    life.look(77.0, held=1)
    assert life.warned
    other = Lifetime(0.0)
    other.look(1e9, held=1)
    assert not other.warned
    other.signal("SIGTERM", 1e9)
    assert other.warned


def test_a_warning_that_may_be_the_walltimes_own_takes_no_time_from_running_calls() -> None:
    """Slurm sends it up to a minute early. Far from the walltime it is a preemption, and then the grace counts; as it does for SIGTERM."""
    life = Lifetime(0.0, walltime=3600.0, grace=30.0)
    assert life.signal("SIGUSR1", 3510.0, warning=True) is Decision.DRAIN
    assert (life.warned, life.deadline) == (True, 3590.0)
    life.signal("SIGTERM", 3520.0)
    assert life.deadline == pytest.approx(3549.1)
    early = Lifetime(0.0, walltime=3600.0, grace=30.0)
    early.signal("SIGUSR1", 1000.0, warning=True)
    assert early.deadline == pytest.approx(1029.1)


def test_what_calls_are_expected_to_take_counts_until_one_has_ended() -> None:
    """Then what they have taken does."""
    life = Lifetime(0.0, walltime=100.0)
    life.expects(40.0)
    life.expects(10.0)
    assert life.stop_accepting(oldest=5.0) == pytest.approx(56.0)
    assert life.stop_accepting(oldest=50.0) == pytest.approx(46.0)
    life.ran([2.0])
    assert life.stop_accepting(oldest=50.0) == pytest.approx(94.0)


def test_pilots_that_began_together_stop_accepting_at_different_times() -> None:
    """Up to 5 % of the walltime and ten minutes earlier; short walltimes are exact unless the pool asks; the hard end stays."""
    assert stagger_seconds(3600.0, -1.0, 0.5) == pytest.approx(90.0)
    assert stagger_seconds(1e6, -1.0, 1.0) == 600.0
    assert stagger_seconds(599.0, -1.0, 1.0) == 0.0
    assert stagger_seconds(60.0, 20.0, 0.5) == 10.0
    assert stagger_seconds(0.0, 20.0, 0.5) == 0.0
    life = Lifetime(0.0, walltime=3600.0, stagger=90.0)
    assert life.stop_accepting() == pytest.approx(3499.0)
    assert life.deadline == 3590.0


def test_the_stagger_leaves_calls_nearly_as_long_as_the_walltime_their_chance() -> None:
    """It takes at most half of the time in which the worker accepts."""
    life = Lifetime(1000.0, walltime=3600.0, stagger=180.0)
    life.expects(3489.0)
    assert life.stop_accepting() == pytest.approx(1050.0)


def test_leave_ends_at_once_in_any_phase_and_once() -> None:
    """Also while draining; afterwards nothing is decided any more."""
    life = Lifetime(0.0)
    life.drain("scale down")
    assert life.leave("the run is over") is Decision.END
    assert life.leave("again") is Decision.NOTHING
    assert life.drain("again") is Decision.NOTHING
    assert life.signal("SIGTERM", 1.0) is Decision.NOTHING
    assert life.reason == "the run is over"


def test_the_table_leads_nowhere_back() -> None:
    """Serving, draining, ending: each decision goes forward."""
    order = list(Phase)
    assert all(order.index(phase) < order.index(after) for (phase, _), after in NEXT.items())


def test_the_next_look_comes_in_time() -> None:
    """Not later than the nearest limit, nor than the caller's longest."""
    life = Lifetime(0.0, walltime=100.0, idle_timeout=10.0)
    assert life.next_look(0.0, 1.0) == 1.0
    assert life.next_look(9.5, 1.0) == pytest.approx(0.5)
    life.look(95.9, held=1)
    assert life.next_look(95.9, 1.0) == pytest.approx(0.1)
