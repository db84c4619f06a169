"""How much work waits at workers while the manager's loop is held up: plain calls, and simulated workers (`conftest.Cluster`)."""

from __future__ import annotations

from typing import Any

import pytest

from windlass.manager.heldup import AHEAD_SECONDS, AHEAD_SECONDS_MOST, HeldUp
from windlass.manager.workers import STILL_TICKS, STILL_TICKS_WITH_DATA
from windlass.messages import WorkerId

#: Of each call, in seconds.
TAKES = 0.01


def outstanding(cluster: Any) -> int:
    return sum(one.outstanding for worker in cluster.core.workers.values() for one in worker.instances.values())


def test_who_is_late_again_and_again_has_work_for_longer_wait_at_workers_until_that_has_faded() -> None:
    held = HeldUp()
    held.turned(1.0)
    assert held.ahead_seconds == AHEAD_SECONDS, "once: the program was stopped, say"
    held.turned(0.0)
    held.turned(1.0)
    assert held.ahead_seconds == AHEAD_SECONDS
    held.turned(0.5)
    assert 3 * 0.5 <= held.ahead_seconds < 2 * 3 * 0.5
    before, turns = held.ahead_seconds, 0
    while held.ahead_seconds > AHEAD_SECONDS:
        assert held.turned(0.0) == (held.ahead_seconds != before)
        assert held.ahead_seconds in (before, before / 2, AHEAD_SECONDS)
        before, turns = held.ahead_seconds, turns + 1
    assert 10 < turns < 100


@pytest.mark.parametrize("late", [0.001, 0.02, AHEAD_SECONDS])
def test_the_lateness_of_a_loop_with_a_little_to_do_changes_nothing(late: float) -> None:
    held = HeldUp()
    for _ in range(10):
        held.turned(late)
    assert held.ahead_seconds == AHEAD_SECONDS


def test_there_is_a_limit_however_long_the_program_keeps_the_lock() -> None:
    held = HeldUp()
    for _ in range(3):
        held.turned(1e9)
    assert held.ahead_seconds == AHEAD_SECONDS_MOST


def test_workers_of_a_manager_that_is_held_up_hold_what_they_can_run_meanwhile_and_give_it_back_later(cluster: Any) -> None:
    """Calls of 10 ms: 50 ms of them wait for each slot, and three seconds or more while the timer's turns are a second late."""
    library = cluster.library("lib")
    cluster.worker(cores=2)
    cluster.submit_once(library, TAKES, 5000)
    cluster.once = True
    cluster.run(2.0)
    usual = 2 * (1 + AHEAD_SECONDS / TAKES)
    assert outstanding(cluster) <= usual
    cluster.late = 1.0
    cluster.run(2 * cluster.tick)
    assert outstanding(cluster) > 10 * usual, "no more at once than it has ended so far, but much"
    cluster.late, turns = 0.0, 0
    while outstanding(cluster) > usual:
        cluster.run(cluster.tick)
        turns += 1
        assert turns < 200, "the lateness has faded"
    cluster.run(40.0)
    assert not cluster.core.calls


def test_calls_that_take_several_turns_of_a_held_up_manager_are_not_taken_back_from_where_they_wait(cluster: Any) -> None:
    """An instance counts as stuck when none of its calls has ended for as long as work waits there, not for three turns."""
    library = cluster.library("lib")
    cluster.worker(cores=1)
    cluster.stream("stream", library, (1.0,), depth=40)
    cluster.late = 1.0
    cluster.run(20.0)
    [worker] = cluster.core.workers.values()
    [instance] = worker.instances.values()
    assert instance.outstanding > 1 + 2, "three seconds of calls that take one"
    assert not instance.stuck
    for _ in range(3):
        cluster.core.tick(cluster.now, 1.0)
    assert not instance.stuck
    for _ in range(7):
        cluster.now += 1.0
        cluster.core.tick(cluster.now, 1.0)
    assert instance.stuck, "but for good they do not wait"
    assert instance.recalling


@pytest.mark.parametrize(("patience", "away", "least", "most"), [(STILL_TICKS_WITH_DATA, 0.0, 100, 102), (STILL_TICKS, 0.1, 10, 14)])
def test_data_and_messages_are_no_longer_on_their_way_while_the_manager_is_held_up(
    cluster: Any, patience: int, away: float, least: int, most: int
) -> None:
    """Only the work that waits is: each of all those ticks would count as a fifth of one, and calls wait for minutes behind a long one."""
    library = cluster.library("lib")
    cluster.worker("w1", cores=1)
    cluster.stream("stream", library, (1.0,), depth=40)
    cluster.late = 1.0
    cluster.core.worker_is_away(WorkerId("w1"), away)
    cluster.run(20.0)
    [instance] = cluster.core.workers[WorkerId("w1")].instances.values()
    assert cluster.core._held_up.ahead_seconds > 3.0
    instance.still, instance.patience, ticks = 0, patience, 0
    while not instance.stuck:
        cluster.now += 0.6
        cluster.core.tick(cluster.now, 1.0)
        ticks += 1
    assert least <= ticks <= most
