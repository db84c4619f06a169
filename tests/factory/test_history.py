"""What a pool has been through, and what follows from it."""

from __future__ import annotations

import itertools

import pytest

from windlass.factory.backend import CommandLimits
from windlass.factory.history import OWN_START_BACKOFF, CommandBudget, History


def test_silence_waits_five_seconds_doubling_to_five_minutes_and_never_pauses() -> None:
    history = History()
    waits: list[float] = []
    for _ in range(10):
        history.unreachable("no answer", 0.0)
        waits.append(history.silent_until())
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]
    assert history.paused == ""
    history.answered()
    assert history.submit_after(0.0) == (0.0, "")
    history.unreachable("no answer", 0.0)
    assert history.silent_until() == 5


def test_a_silence_that_lasts_is_told_of_at_growing_intervals() -> None:
    """The pool's first failure at once; then one short silence is nothing to speak of, and who waits for a result hears why."""
    history = History()

    def told(at: list[float]) -> list[float]:
        found: list[float] = []
        for now in at:
            history.unreachable("no answer", now)
            found += [now] if history.tell_silence(now) else []
        return found

    assert not history.tell_silence(0.0)
    assert told([1, 6, 16, 36, 76, 156, 316, 616, 916, 1216, 1516, 1816, 2716]) == [1, 76, 316, 916, 1816, 2716]
    assert (history.answers, history.silent_since, history.silences) == (False, 1, 13)
    history.answered()
    assert told([3000, 3005]) == []
    assert history.answers
    history.answered()
    assert told([4000, 4059, 4061, 9000, 9001, 9900]) == [4061, 9000, 9900]


def test_deaths_at_start_are_followed_by_longer_and_longer_waits() -> None:
    history = History(max_start_failures=99)
    waits: list[float] = []
    for _ in range(6):
        history.died_at_start("", "exit status 1", 0.0, 0.0)
        waits.append(history.submit_after(0.0)[0])
    assert waits == [0, 60, 900, 1800, 3600, 3600]
    history.served("n1")
    assert history.submit_after(0.0) == (0.0, "")
    assert history.start_failures == 0


def test_on_ones_own_machine_three_deaths_at_start_take_seconds() -> None:
    """Whoever gave a wrong ``python=`` sits before it, and a process more bothers nobody; but it is no loop either."""
    history = History(max_start_failures=99, start_backoff=OWN_START_BACKOFF)
    waits: list[float] = []
    for _ in range(6):
        history.died_at_start("", "exit status 1", 0.0, 0.0)
        waits.append(history.submit_after(0.0)[0])
    assert waits == [0, 2, 5, 15, 60, 60]


def test_three_deaths_in_a_row_pause_with_the_last_words() -> None:
    history = History()
    for number in range(3):
        assert history.paused == ""
        history.died_at_start("", f"words {number}", 0.0, 0.0)
    assert history.paused == "3 pilots in a row ended before they served, the last one so: words 2"
    history.resume()
    assert (history.paused, history.start_failures) == ("", 0)


def test_a_node_with_two_deaths_is_avoided_for_an_hour() -> None:
    history = History()
    history.served("good")
    for _ in range(5):
        history.died_at_start("bad", "x", 0.0, 10.0)
    assert history.avoided(10.0) == ("bad",)
    assert (history.start_failures, history.paused) == (1, ""), "a bad node counts once"
    assert history.avoided(3609.0) == ("bad",)
    assert history.avoided(3610.0) == ()


def test_deaths_on_one_node_count_once_even_before_any_pilot_has_served() -> None:
    """Three of one submission that met the same black hole are one failure; on three nodes, or on nodes not known, they are three."""
    history = History()
    for _ in range(3):
        history.died_at_start("bad", "x", 0.0, 10.0)
    assert (history.start_failures, history.paused, history.avoided(10.0)) == (1, "", ("bad",))
    for nodes in (("n1", "n2", "n3"), ("", "", "")):
        history = History()
        for node in nodes:
            history.died_at_start(node, "x", 0.0, 10.0)
        assert history.paused != ""


def test_a_refusal_while_nodes_are_avoided_is_tried_once_more_without() -> None:
    """Perhaps no other node is left. From then on deaths count singly, until a pilot serves or a person says that it is mended."""
    history = History()
    for _ in range(2):
        history.died_at_start("only", "x", 0.0, 10.0)
    history.rejected("Requested node configuration is not available", 0.0)
    assert (history.paused, history.avoided(10.0)) == ("", ())
    history.died_at_start("only", "x", 11.0, 12.0)
    history.died_at_start("only", "words", 13.0, 14.0)
    assert history.avoided(14.0) == ()
    assert history.paused.endswith("words")
    history.resume()
    for _ in range(2):
        history.died_at_start("only", "x", 20.0, 20.0)
    assert history.avoided(20.0) == ("only",)
    history.rejected("again", 0.0)
    history.rejected("no such partition", 0.0)
    assert history.paused == "no such partition"


def test_a_batch_system_that_cannot_avoid_a_node_pauses_in_the_end() -> None:
    history = History()
    history.served("good")
    for at in (10.0, 11.0, 20.0, 30.0):
        history.died_at_start("bad", "x", at, at)
    assert history.paused != ""


def test_nodes_that_cannot_serve_are_followed_by_longer_waits_and_by_no_pause() -> None:
    history = History(max_start_failures=1)
    waits: list[float] = []
    for _ in range(5):
        history.was_in_trouble("", "the disk is full", 0.0, 0.0)
        history.served("")  # the next one connects as well
        waits.append(history.submit_after(0.0)[0])
    assert waits == [0, 60, 300, 600, 600]
    assert (history.paused, history.start_failures, history.failure) == ("", 0, "the disk is full")
    history.serve_well([""])
    assert history.submit_after(0.0) == (0.0, "")


def test_a_node_that_cannot_serve_is_avoided_until_a_pilot_has_served_there() -> None:
    history = History()
    for _ in range(2):
        history.was_in_trouble("bad", "x", 0.0, 10.0)
        history.served("bad")
    assert (history.avoided(10.0), history.troubles.count) == (("bad",), 1)
    history.serve_well(["good"])
    assert (history.avoided(10.0), history.troubles.count) == (("bad",), 0)
    history.serve_well(["bad"])
    assert history.avoided(10.0) == ()


def test_while_others_serve_well_the_pool_waits_for_a_minute_at_most() -> None:
    history = History()
    for node in ("n1", "n2", "n3", "n4"):
        history.was_in_trouble(node, "x", 0.0, 10.0)
    assert history.submit_after(10.0)[0] == 610
    history.serve_well([])
    assert history.submit_after(10.0)[0] == 70
    history.was_in_trouble("n5", "x", 0.0, 80.0)
    assert history.submit_after(80.0)[0] == 140


def test_where_pilots_share_one_machine_others_that_serve_are_no_comfort() -> None:
    """They began before its disk was full."""
    history = History(trouble_backoff=OWN_START_BACKOFF, several_nodes=False)
    for _ in range(4):
        history.was_in_trouble("", "x", 0.0, 10.0)
        history.serve_well([])
    assert (history.troubles.count, history.submit_after(10.0)[0]) == (4, 25)


def test_trouble_of_long_ago_is_no_row() -> None:
    history = History()
    for _ in range(4):
        history.was_in_trouble("", "x", 0.0, 10.0)
    history.age(1209.0)
    assert history.troubles.count == 4
    history.age(1210.0)
    assert history.troubles.count == 0


def test_the_wait_tells_the_trouble_and_not_what_came_later() -> None:
    history = History()
    for _ in range(2):
        history.was_in_trouble("", "the disk is full\nand more", 0.0, 10.0)
    history.unreachable("no answer", 10.0)
    assert history.submit_after(10.0)[1] == "2 pilots in a row left nodes that cannot serve (the disk is full)"


def test_where_only_nodes_are_left_that_cannot_serve_they_are_not_avoided_and_count_singly() -> None:
    history = History()
    for at in (10.0, 20.0):
        history.was_in_trouble("only", "x", at, at)
    history.rejected("Requested node configuration is not available", 30.0)
    assert (history.paused, history.avoided(30.0)) == ("", ())
    history.served("only")
    history.was_in_trouble("only", "x", 40.0, 50.0)
    assert (history.avoided(50.0), history.troubles.count) == ((), 2)
    history.resume()
    assert (history.troubles.count, history.submit_after(50.0)) == (0, (50.0, ""))


def test_pilots_that_others_take_away_are_followed_by_longer_waits_and_by_no_pause() -> None:
    history = History(max_start_failures=1)
    waits: list[float] = []
    for _ in range(5):
        history.was_taken("CANCELLED", 0.0, 0.0)
        history.served("")
        waits.append(history.submit_after(0.0)[0])
    assert waits == [0, 60, 300, 900, 900]
    assert (history.paused, history.failure) == ("", "CANCELLED")
    history.was_taken("CANCELLED", 1800.0, 1800.0)
    assert (history.takes.count, history.submit_after(1800.0)) == (1, (1800.0, ""))
    history.was_taken("CANCELLED", 1800.0, 1800.0)
    history.resume()
    assert history.submit_after(1800.0) == (1800.0, "")


def test_only_what_was_submitted_since_the_last_one_was_taken_makes_a_row() -> None:
    """One act may end pilots bit by bit, and a rule of the site one each few minutes, which were all there before: nothing follows."""
    history = History()
    history.was_taken("CANCELLED", 0.0, 100.0)
    for now in range(100, 1000, 10):
        history.was_taken("CANCELLED", 99.0, float(now))
    assert (history.takes.count, history.submit_after(1000.0), history.failure) == (1, (1000.0, ""), "")
    history.was_taken("CANCELLED", 101.0, 1000.0)
    assert (history.takes.count, history.submit_after(1000.0)[0]) == (2, 1060.0)
    history.was_taken("CANCELLED", 101.0, 1050.0)
    assert history.submit_after(1050.0)[0] == 1060.0


def test_a_limit_halves_the_batch_and_waits_for_an_own_pilot_to_end() -> None:
    history = History()
    history.over_limit("QOS", 32, own_pilots=5, now=0.0)
    assert (history.batch_cap, history.submit_after(0.0)) == (16, (300.0, "a limit on jobs is reached"))
    history.pilot_ended()
    assert history.submit_after(0.0) == (0.0, "")
    history.over_limit("QOS", 1, own_pilots=0, now=0.0)
    assert (history.batch_cap, history.submit_after(0.0)[0]) == (1, 10.0)
    for cap in (2, 4, 8, 16, 32, 0):
        history.accepted()
        assert history.batch_cap == cap
    assert history.paused == ""


def test_a_limit_that_no_own_pilot_s_end_mends_is_met_ever_more_seldom() -> None:
    """It may be a policy that nobody's end mends, and administrators see each try."""
    history = History()
    waits: list[float] = []
    for count in (4, 2, 1, 1, 1, 1, 1, 1, 1):
        history.over_limit("a policy", count, own_pilots=0, now=0.0)
        waits.append(history.submit_after(0.0)[0])
    assert waits == [10, 10, 10, 20, 40, 80, 160, 300, 300]
    history.accepted()
    history.over_limit("a policy", 1, own_pilots=0, now=0.0)
    assert history.submit_after(0.0)[0] == 10


def test_what_was_wanted_lately_is_kept_for_a_while() -> None:
    history = History()
    for now, wanted in ((0, 5), (10, 3), (20, 4), (30, 0)):
        history.note_wanted(wanted, now, 60.0)
    assert history.keep(0, 30, 60.0) == (5, 70.0)
    assert history.keep(0, 70, 60.0) == (4, 90.0)
    assert history.keep(0, 90, 60.0) == (0, 0.0)
    assert history.keep(7, 30, 60.0) == (7, 0.0)


@pytest.mark.parametrize(("spent", "free"), [([], 100.0), ([99.0] * 4, 100.0), ([99.0] * 5, 109.0), ([90.0] * 5, 100.0)])
def test_at_most_five_commands_in_any_ten_seconds(spent: list[float], free: float) -> None:
    budget = CommandBudget(CommandLimits())
    for at in spent:
        budget.spend("submit", at)
    assert budget.free_at(100.0) == free


def test_at_most_thirty_commands_in_any_ten_minutes_some_kept_for_queries_and_the_end() -> None:
    budget = CommandBudget(CommandLimits())
    for number in range(24):
        budget.spend("submit", number * 10.0)
    assert budget.free_at(240.0) == 600.0
    assert budget.free_at(240.0, kept=True) == 240.0
    for number in range(6):
        budget.spend("query", 240.0 + number * 10)
    assert budget.free_at(300.0, kept=True) == 600.0
    assert budget.sent == {"submit": 24, "query": 6}


@pytest.mark.parametrize(("others", "pace"), [(0, 30.0), (4, 37.5), (8, 50.0), (12, 75.0), (15, 120.0), (19, 120.0)])
def test_queries_make_room_for_the_other_commands(others: int, pace: float) -> None:
    """As many as the last ten minutes had, and four more; five queries there are in any case."""
    budget = CommandBudget(CommandLimits())
    for number in range(others):
        budget.spend("submit", 30.0 * number)
    for number in range(5):
        budget.spend("query", 570.0 + number)
    assert budget.query_pace(599.0, 30.0) == pace
    assert budget.query_pace(10_000.0, 30.0) == 30.0
    assert budget.query_pace(599.0, 60.0) == max(60.0, pace)


@pytest.mark.parametrize(("interval", "others", "pace"), [(29.0, 0, 31.0), (15.0, 0, 45.0), (1.0, 0, 59.0), (29.0, 8, 51 + 2 / 3)])
def test_who_asks_for_a_few_more_queries_than_fit_waits_little_longer(interval: float, others: int, pace: float) -> None:
    """A query_interval of 29 s gave a query a minute, half of what 30 s gives. What the quick ones leave of ten minutes is the others'."""
    budget = CommandBudget(CommandLimits())
    for number in range(others):
        budget.spend("submit", 30.0 * number)
    for number in range(10):
        budget.spend("query", 500.0 + number)
    assert budget.query_pace(510.0, interval) == pytest.approx(pace)


@pytest.mark.parametrize("interval", [0.5, 2.0, 10.0, 20.0, 29.0, 29.9])
def test_who_asks_for_more_queries_than_there_is_room_for_can_submit_all_the_same(interval: float) -> None:
    """Queries took all thirty commands in a minute: for nine more nothing was submitted, and a program that ended waited for that."""
    budget = CommandBudget(CommandLimits())
    now, queries = 0.0, list[float]()
    while now < 6000.0:
        now = budget.free_at(now, kept=True)
        budget.spend("query", now)
        queries.append(now)
        assert budget.free_at(now + 10.0) == now + 10.0
        assert budget.free_at(now + 10.0, kept=True, count=5) == now + 10.0
        now += budget.query_pace(now, interval)
    assert queries[4] - queries[0] == pytest.approx(4 * interval)
    assert max(later - before for before, later in itertools.pairwise(queries)) <= 60.0


def test_pools_of_one_batch_system_pace_their_queries_together() -> None:
    """A query of another pool is a query, a submission of another pool a submission."""
    one = CommandBudget(CommandLimits())
    other = CommandBudget(CommandLimits(), times=one.times)
    for number in range(8):
        one.spend("query", 50.0 * number)
        other.spend("submit", 50.0 * number + 1)
    assert one.query_pace(400.0, 30.0) == other.query_pace(400.0, 30.0) == 50.0
