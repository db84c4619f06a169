"""The states of a pilot, and the register of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from windlass.factory.backend import UNLISTED, Cause, JobId, Listed, PilotState, pilot_word, split_pilot_word
from windlass.factory.htcondor import HTCondorBackend
from windlass.factory.pilots import FRESH_OF, NEXT, SETTLE, UNLISTED_FRESH, Event, Fleet, Phase, Pilot
from windlass.messages import CANNOT_SERVE, PilotId, PilotSeen, PoolName, Resources

A, B = JobId("a"), JobId("b")
MakeSeen = Callable[..., PilotSeen]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A register with one submitted pilot, checked after each test."""
    fleet = Fleet()
    fleet.submitting("t", 1, 0.0)
    fleet.submitted("t", [A], 0.0)
    yield fleet
    fleet.check()


def state(job: JobId, listed: Listed, **more: object) -> PilotState:
    return PilotState(job=job, listed=listed, **more)  # type: ignore[arg-type]


def test_a_job_id_that_comes_again_is_another_pilot(fleet: Fleet) -> None:
    """After a controller has lost its state: what was asked for the old one, and when that began, says nothing of the new one."""
    fleet.asked([A], Event.CANCELLED, 1.0)
    fleet.submitting("t2", 1, 50.0, 60.0)
    fleet.submitted("t2", [A], 50.0)
    assert [(ending.job, ending.ticket, ending.failed) for ending in fleet.endings] == [(A, "t", False)]
    pilot = fleet.pilots[A]
    assert (pilot.ticket, pilot.phase, pilot.made_at, pilot.walltime, pilot.asked) == ("t2", Phase.QUEUED, 50.0, 60.0, False)


def test_one_that_is_connected_is_not_over_as_its_job_id_comes_again(fleet: Fleet) -> None:
    """The manager knows it by that id, and would end its calls."""
    fleet.seen([PilotSeen(PoolName("p"), PilotId(A), True, 1, 0.0, False, Resources(1.0))], 1.0)
    fleet.submitted("t2", [A], 50.0)
    assert fleet.endings == []
    assert fleet.pilots[A].phase is Phase.SERVING


def test_what_the_table_lacks_is_refused_and_changes_nothing() -> None:
    for phase in Phase:
        for event in Event:
            pilot = Pilot(A, phase=phase, since=1.0)
            after = NEXT.get((phase, event))
            assert pilot.apply(event, 2.0) is (after is not None)
            assert pilot.phase is (after or phase)
            assert pilot.since == (1.0 if after in (None, phase) else 2.0)


def test_nothing_leads_out_of_the_end() -> None:
    assert not [key for key in NEXT if key[0] is Phase.ENDED]


def test_every_phase_that_may_be_listed_has_an_answer_to_every_listing() -> None:
    listings = [event for event in Event if event.value.startswith("listed")]
    for phase in Phase:
        if phase is not Phase.ENDED:
            assert all((phase, event) in NEXT for event in listings)


def test_a_pilot_goes_from_queue_to_service_to_its_end(fleet: Fleet, seen: MakeSeen) -> None:
    fleet.listed([state(A, Listed.QUEUED)], 1.0)
    fleet.listed([state(A, Listed.RUNNING, node="n1")], 2.0)
    assert fleet.pilots[A].phase is Phase.RUNNING
    fleet.seen([seen("a", running=2)], 3.0)
    assert fleet.pilots[A].phase is Phase.SERVING
    assert fleet.newly_served == ["n1"]
    fleet.listed([state(A, Listed.ENDED, cause=Cause.WALLTIME, reason="TIMEOUT")], 4.0)
    [ending] = fleet.endings
    assert (ending.pilot, ending.reason, ending.failed, ending.gone) == ("a", "TIMEOUT", False, True)
    assert fleet.live == 0


def test_a_connection_is_the_better_witness_that_a_pilot_lives(fleet: Fleet, seen: MakeSeen) -> None:
    fleet.seen([seen("a")], 1.0)
    for lie in (Listed.QUEUED, Listed.HELD):
        fleet.listed([state(A, lie)], 2.0)
        assert fleet.pilots[A].phase is Phase.SERVING
    for _ in range(5):
        fleet.listed([], 3.0)
    assert fleet.pilots[A].phase is Phase.SERVING
    assert fleet.endings == []


def test_a_pilot_that_is_not_listed_is_gone_only_the_second_time(fleet: Fleet) -> None:
    fleet.listed([], 1.0)
    assert fleet.live == 1
    fleet.listed([state(A, Listed.QUEUED)], 2.0)
    fleet.listed([], 3.0)
    assert fleet.live == 1
    fleet.listed([], 4.0)
    assert fleet.live == 0
    assert fleet.endings[0].failed


def test_a_pilot_that_no_answer_has_had_yet_is_missed_only_after_a_while(fleet: Fleet) -> None:
    """Answers may be older than it; but not one that was asked to end, as its batch system has said that it will."""
    fleet.submitted("t2", [JobId("b")], 0.0)
    fleet.asked([JobId("b")], Event.CANCELLED, 20.0)
    for now in (30.0, 60.0, 299.0):
        fleet.listed([], now)
    assert list(fleet.pilots) == [A]
    fleet.listed([], 300.0)
    assert fleet.live == 0


def show_to_be_fresh(fleet: Fleet) -> None:
    """Three submissions are listed at once, the one of the fixture among them."""
    for number in range(2):
        job = JobId(f"young-{number}")
        fleet.submitted(f"young-{number}", [job], 0.0)
        fleet.listed([state(A, Listed.QUEUED), state(job, Listed.QUEUED)], 1.0)
        fleet.listed([state(A, Listed.QUEUED), state(job, Listed.ENDED)], 2.0)


def test_one_that_is_listed_soon_by_chance_shows_nothing(fleet: Fleet) -> None:
    """A wrapper that asks each five minutes has what was submitted just before that."""
    fleet.listed([state(A, Listed.QUEUED)], 20.0)
    fleet.submitted("t2", [B], 25.0)
    for now in (50.0, 85.0, 120.0, 324.0):
        fleet.listed([state(A, Listed.QUEUED)], now)
    assert B in fleet.pilots


def test_answers_that_lack_a_connected_pilot_do_not_count_when_it_is_cut(fleet: Fleet, seen: MakeSeen) -> None:
    """Of a cache: it serves, is cut for a second, and the query that is made because of that is old as well."""
    fleet.seen([seen("a")], 10.0)
    for now in (20.0, 50.0, 80.0):
        fleet.listed([], now)
    fleet.seen([], 85.0)
    fleet.listed([], 86.0)
    assert fleet.live == 1
    fleet.seen([seen("a")], 90.0)
    fleet.listed([], 116.0)
    fleet.seen([], 120.0)
    fleet.listed([], 121.0)
    assert fleet.live == 1
    fleet.listed([], 151.0)
    assert fleet.live == 0


def test_where_answers_are_fresh_a_pilot_that_none_has_had_is_missed_sooner(fleet: Fleet) -> None:
    """Sites may forget at once what has ended: each death at start would be waited for, for minutes."""
    show_to_be_fresh(fleet)
    fleet.listed([state(A, Listed.QUEUED)], 30.0)
    fleet.submitted("t2", [B], 100.0)
    for now in (130.0, 159.0):
        fleet.listed([state(A, Listed.QUEUED)], now)
    assert B in fleet.pilots
    fleet.listed([state(A, Listed.QUEUED)], 160.0)
    assert B not in fleet.pilots


def test_a_site_whose_answers_have_been_old_is_not_taken_for_one_with_fresh_ones(fleet: Fleet) -> None:
    """A wrapper asks now and then, and what was submitted just before that is had at once."""
    fleet.submitted("t2", [B], 110.0)
    for now in (30.0, 60.0, 90.0):
        fleet.listed([], now)
    fleet.listed([state(A, Listed.QUEUED), state(B, Listed.QUEUED)], 120.0)
    fleet.submitted("t3", [JobId("c")], 125.0)
    for now in (150.0, 180.0, 210.0, 424.0):
        fleet.listed([state(A, Listed.QUEUED), state(B, Listed.QUEUED)], now)
    assert JobId("c") in fleet.pilots


def test_a_pilot_that_was_missed_too_soon_is_a_lesson(fleet: Fleet) -> None:
    """It turns up again: the answers were old, though others were had soon by chance."""
    show_to_be_fresh(fleet)
    fleet.listed([state(A, Listed.QUEUED)], 20.0)
    fleet.submitted("t2", [B], 25.0)
    for now in (50.0, 85.0):
        fleet.listed([state(A, Listed.QUEUED)], now)
    assert B not in fleet.pilots
    both = [state(A, Listed.QUEUED), state(B, Listed.QUEUED)]
    fleet.listed(both, 120.0)
    fleet.submitted("t3", [JobId("c")], 125.0)
    for now in (150.0, 180.0, 210.0):
        fleet.listed(both, now)
    assert JobId("c") in fleet.pilots


def test_what_an_earlier_life_left_tells_nothing_of_how_old_answers_are() -> None:
    """Nobody knows when it was submitted."""
    fleet = Fleet()
    fleet.listed([state(A, Listed.QUEUED)], 0.0)
    fleet.submitted("t", [B], 1.0)
    for now in (30.0, 60.0, 90.0):
        fleet.listed([state(A, Listed.QUEUED)], now)
    assert B in fleet.pilots


def test_a_pilot_that_has_served_is_missed_though_no_answer_has_had_it(fleet: Fleet, seen: MakeSeen) -> None:
    """It died before the batch system was asked, which had forgotten it by then; calls would wait for it."""
    fleet.seen([seen("a")], 10.0)
    fleet.seen([], 20.0)
    fleet.listed([], 30.0)
    assert fleet.live == 1
    fleet.listed([], 60.0)
    assert fleet.live == 0
    assert not fleet.endings[0].failed


def test_a_pilot_that_another_cluster_has_waits_until_it_connects(fleet: Fleet, seen: MakeSeen) -> None:
    """It may only be pending there, which nobody tells, so that it is not one that runs without connecting; later it is no new start."""
    for now in (30.0, 5000.0):
        fleet.listed([state(A, Listed.ELSEWHERE, restart=0)], now)
        assert fleet.pilots[A].phase is Phase.QUEUED
    fleet.seen([seen("a")], 5001.0)
    fleet.listed([state(A, Listed.ELSEWHERE, restart=0)], 5002.0)
    assert fleet.pilots[A].phase is Phase.SERVING
    fleet.asked([A], Event.RELEASED, 5003.0)
    fleet.listed([state(A, Listed.ELSEWHERE, restart=0)], 5004.0)
    assert fleet.pilots[A].phase is Phase.LEAVING
    fleet.seen([], 5005.0)
    fleet.listed([state(A, Listed.ELSEWHERE, restart=0)], 5006.0)
    assert fleet.pilots[A].phase is Phase.LEAVING
    assert not fleet.endings


def test_a_disconnected_pilot_runs_until_the_batch_system_says_otherwise(fleet: Fleet, seen: MakeSeen) -> None:
    fleet.seen([seen("a")], 1.0)
    fleet.seen([seen("a", connected=False)], 2.0)
    assert fleet.pilots[A].phase is Phase.RUNNING
    fleet.seen([], 3.0)
    assert fleet.pilots[A].phase is Phase.RUNNING
    fleet.seen([seen("a")], 4.0)
    assert fleet.pilots[A].phase is Phase.SERVING
    assert fleet.newly_served == [""]


def test_a_pilot_whose_session_was_given_up_is_not_counted_on_until_it_is_back(fleet: Fleet, seen: MakeSeen) -> None:
    """A cut connection may come back; a session that the manager gave up leaves calls to others, though the job runs."""
    fleet.seen([seen("a")], 1.0)
    fleet.seen([seen("a", connected=False)], 2.0)
    assert fleet.pilots[A].coming
    fleet.seen([], 3.0)
    assert not fleet.pilots[A].coming
    fleet.seen([seen("a")], 4.0)
    assert fleet.pilots[A].coming


def test_one_that_was_held_ends_for_that_reason_whoever_removed_it(fleet: Fleet, seen: MakeSeen) -> None:
    """Its calls are told of it: that the factory removed it would say nothing."""
    fleet.seen([seen("a")], 1.0)
    fleet.seen([seen("a", connected=False)], 2.0)
    fleet.listed([state(A, Listed.HELD, reason="memory usage exceeded request_memory (hold code 102)")], 3.0)
    assert fleet.pilots[A].phase is Phase.HELD
    fleet.asked([A], Event.CANCELLED, 3.0)
    fleet.listed([state(A, Listed.ENDED, reason="removed by the factory", cause=Cause.CANCELLED)], 4.0)
    [ending] = fleet.endings
    assert ending.reason == "held: memory usage exceeded request_memory (hold code 102)"
    assert not ending.failed


def test_one_that_was_held_and_let_go_again_ends_for_its_own_reason(fleet: Fleet) -> None:
    fleet.listed([state(A, Listed.HELD, reason="somebody holds it")], 1.0)
    fleet.listed([state(A, Listed.QUEUED)], 2.0)
    fleet.listed([state(A, Listed.ENDED, reason="TIMEOUT", cause=Cause.WALLTIME)], 4.0)
    assert fleet.endings[0].reason == "TIMEOUT"


def test_ending_may_be_the_end_or_the_queue_again(fleet: Fleet) -> None:
    fleet.listed([state(A, Listed.RUNNING)], 1.0)
    fleet.listed([state(A, Listed.ENDING)], 2.0)
    assert fleet.live == 1
    assert not fleet.pilots[A].coming
    fleet.listed([state(A, Listed.QUEUED, restart=1)], 3.0)
    assert fleet.pilots[A].phase is Phase.QUEUED
    assert [(one.pilot, one.gone, one.failed) for one in fleet.endings] == [("a", False, False)]


def test_a_restart_is_another_incarnation_with_another_word(fleet: Fleet, seen: MakeSeen) -> None:
    fleet.listed([state(A, Listed.RUNNING, restart=0)], 1.0)
    fleet.seen([seen("a", running=1)], 2.0)
    fleet.listed([state(A, Listed.RUNNING, restart=1)], 3.0)
    assert fleet.pilots[A].word == "a+1"
    assert not fleet.pilots[A].connected
    fleet.seen([seen("a"), seen("a+1")], 4.0)
    assert fleet.pilots[A].phase is Phase.SERVING
    fleet.listed([state(A, Listed.ENDED, restart=0)], 5.0)
    assert fleet.live == 1, "an answer about an incarnation that is over"


def test_starts_that_come_to_nothing_are_counted_until_one_serves(fleet: Fleet, seen: MakeSeen) -> None:
    """Also those that no answer has shown, by their number; a pilot that was found has had starts of which nothing is known."""
    fleet.listed([state(A, Listed.QUEUED, restart=0)], 1.0)
    fleet.listed([state(A, Listed.QUEUED, restart=1)], 2.0)
    fleet.listed([state(A, Listed.QUEUED, restart=4)], 3.0)
    fleet.seen([seen("a+4")], 4.0)
    fleet.listed([state(A, Listed.QUEUED, restart=5)], 5.0)
    fleet.listed([state(A, Listed.QUEUED, restart=6)], 6.0)
    fleet.listed([state(A, Listed.ENDED, restart=6, cause=Cause.EXIT, exit_status=5)], 7.0)
    assert [one.vain for one in fleet.endings] == [1, 4, 0, 1, 0]


def test_a_restart_is_counted_where_the_batch_system_does_not(fleet: Fleet) -> None:
    fleet.listed([state(A, Listed.RUNNING)], 1.0)
    fleet.listed([state(A, Listed.QUEUED)], 2.0)
    assert fleet.pilots[A].word == "a+1"


def test_what_was_said_of_an_incarnation_is_not_said_of_the_next(fleet: Fleet, seen: MakeSeen) -> None:
    """It comes, though the manager had given the one before up; and when it dies at start as that one did, that counts as well."""
    fleet.seen([seen("a")], 1.0)
    fleet.seen([], 2.0)
    assert not fleet.pilots[A].coming
    fleet.listed([state(A, Listed.QUEUED, restart=1)], 3.0)
    assert fleet.pilots[A].coming
    fleet.pilots[A].charge = "it ran for 600 s without connecting"
    fleet.listed([state(A, Listed.QUEUED, restart=2)], 4.0)
    fleet.listed([state(A, Listed.ENDED, restart=2, cause=Cause.EXIT, exit_status=5)], 5.0)
    assert fleet.endings[-1].failed


def test_a_restart_is_learned_from_the_pilot_that_connects(fleet: Fleet, seen: MakeSeen) -> None:
    fleet.seen([seen("a")], 1.0)
    fleet.seen([seen("a+1")], 2.0)
    assert fleet.pilots[A].word == "a+1"
    assert fleet.pilots[A].phase is Phase.SERVING
    assert [one.pilot for one in fleet.endings] == ["a"]


@pytest.mark.parametrize(
    ("cause", "exit_status", "failed"),
    [
        (Cause.EXIT, 5, True),
        (Cause.EXIT, 0, True),
        (Cause.SIGNAL, None, True),
        (Cause.UNKNOWN, None, True),
        (Cause.WALLTIME, None, True),
        (Cause.PREEMPTED, None, False),
        (Cause.CANCELLED, None, False),
        (Cause.NODE, None, False),
        (Cause.EXIT, CANNOT_SERVE, False),
    ],
)
def test_what_never_served_failed_unless_something_else_ended_it(fleet: Fleet, cause: Cause, exit_status: int | None, failed: bool) -> None:
    fleet.listed([state(A, Listed.ENDED, cause=cause, exit_status=exit_status)], 1.0)
    assert [one.failed for one in fleet.endings] == [failed]


@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_a_pilot_whose_node_could_not_serve_is_told_of_as_such(fleet: Fleet, seen: MakeSeen, served: bool, asked: bool) -> None:
    """It may be connected for so short a time that nobody has told. One that was to end says nothing."""
    fleet.listed([state(A, Listed.RUNNING)], 1.0)
    if served:
        fleet.seen([seen("a")], 2.0)
    if asked:
        fleet.asked([A], Event.CANCELLED, 3.0)
    fleet.listed([state(A, Listed.ENDED, cause=Cause.EXIT, exit_status=CANNOT_SERVE)], 4.0)
    [ending] = fleet.endings
    assert (ending.failed, ending.troubled) == (False, not asked)
    assert ending.served_at == (2.0 if served else float("-inf"))


def test_what_the_factory_ended_has_not_failed(fleet: Fleet) -> None:
    fleet.asked([A], Event.CANCELLED, 1.0)
    fleet.listed([state(A, Listed.RUNNING)], 2.0)
    assert fleet.pilots[A].phase is Phase.CANCELLING
    fleet.listed([state(A, Listed.ENDED, cause=Cause.SIGNAL)], 3.0)
    assert [one.failed for one in fleet.endings] == [False]


def test_only_what_serves_can_be_released(fleet: Fleet, seen: MakeSeen) -> None:
    fleet.asked([A], Event.RELEASED, 1.0)
    assert (fleet.pilots[A].phase, fleet.pilots[A].asked) == (Phase.QUEUED, False)
    fleet.seen([seen("a")], 2.0)
    fleet.asked([A], Event.RELEASED, 3.0)
    assert fleet.pilots[A].phase is Phase.LEAVING
    assert not fleet.pilots[A].coming


def test_a_submission_that_was_not_sent_counts_for_a_while(fleet: Fleet) -> None:
    """What kept it may last."""
    fleet.submitting("u", 5, 0.0)
    assert fleet.live == 6
    running = [state(A, Listed.RUNNING)]
    fleet.listed(running, 1.0)
    fleet.listed(running, 2.0)
    assert fleet.live == 6
    fleet.listed(running, SETTLE)
    assert fleet.live == 1


OF_HTCONDOR = HTCondorBackend.defaults.unlisted


@pytest.mark.parametrize(
    ("unlisted", "fresh", "old", "settled_after"),
    [
        (UNLISTED, False, False, UNLISTED),
        (UNLISTED, True, False, UNLISTED_FRESH),
        (OF_HTCONDOR, False, False, 30.0),
        (OF_HTCONDOR, True, False, 30.0),
        (OF_HTCONDOR, True, True, UNLISTED),
    ],
)
def test_a_submission_without_an_answer_counts_until_queries_have_settled_it(
    fleet: Fleet, unlisted: float, fresh: bool, old: bool, settled_after: float
) -> None:
    """A batch system that wakes up may still take it; and answers may be older than the moment at which it was given up, unless they come
    from who would take it: then each upload that takes too long would be tried again minutes later only."""
    running = [state(A, Listed.RUNNING)]
    fleet.unlisted, fleet.old = unlisted, old
    if fresh:
        fleet.young |= {f"earlier-{index}" for index in range(FRESH_OF)}
    fleet.submitting("u", 5, 0.0)
    fleet.unanswered("u", 60.0)
    for after in (5.0, 15.0, settled_after - 1):
        fleet.listed(running, 60.0 + after)
        assert fleet.live == 6
    fleet.listed(running, 60.0 + settled_after)
    assert fleet.live == 1


def test_a_submission_without_an_answer_that_happened_is_found_by_its_ticket(fleet: Fleet) -> None:
    fleet.submitting("u", 2, 0.0)
    fleet.listed([state(A, Listed.QUEUED), state(B, Listed.QUEUED, ticket="u"), state(JobId("c"), Listed.ENDED, ticket="u")], 1.0)
    assert fleet.live == 2
    assert fleet.unsure == {}
    assert [one.job for one in fleet.endings] == ["c"]


def test_pilots_of_an_earlier_life_are_adopted_unless_they_have_ended(fleet: Fleet) -> None:
    fleet.listed([state(A, Listed.QUEUED), state(B, Listed.RUNNING, restart=2), state(JobId("c"), Listed.ENDED)], 1.0)
    assert {pilot.word: pilot.phase for pilot in fleet.pilots.values()} == {"a": Phase.QUEUED, "b+2": Phase.RUNNING}
    assert fleet.endings == []


def test_a_pilot_of_several_nodes_is_as_busy_as_all_of_them(fleet: Fleet, seen: MakeSeen) -> None:
    fleet.seen([seen("a", running=2), seen("a", idle=50.0, draining=True)], 1.0)
    pilot = fleet.pilots[A]
    assert (pilot.running_calls, pilot.idle_seconds, pilot.draining) == (2, 0.0, False)


@pytest.mark.parametrize(("word", "parts"), [("17", ("17", 0)), ("17_3+2", ("17_3", 2)), ("x+y", ("x+y", 0)), ("+1", ("", 1))])
def test_words_of_pilots_come_apart_again(word: str, parts: tuple[str, int]) -> None:
    assert split_pilot_word(PilotId(word)) == parts
    if parts[1]:
        assert pilot_word(JobId(parts[0]), parts[1]) == word
