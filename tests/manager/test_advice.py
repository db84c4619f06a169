"""Calls that wait with nobody to run them: what is said, when, and how often."""

from __future__ import annotations

from windlass.manager.advice import EARLIER_SECONDS, PATIENCE_SECONDS, Advice, EarlierAdvice

LATER = 1000.0 + PATIENCE_SECONDS


def test_a_program_whose_calls_nobody_runs_is_told_what_to_do() -> None:
    """Once, after the patience is over, with a command that can be copied."""
    advice = Advice()
    assert not advice.due
    assert advice.look(2, 0, 0, 9123, 1000.0) == ""
    assert advice.due
    assert advice.look(2, 0, 0, 9123, LATER - 0.1) == ""
    said = advice.look(2, 0, 0, 9123, LATER)
    assert said.startswith("2 calls wait, and there are neither pilots nor a factory")
    assert "`windlass factory run local --port 9123`" in said
    assert "windlass.Factory(manager, 'local')" in said
    assert not advice.due
    assert advice.look(2, 0, 0, 9123, LATER + 100) == ""
    assert not advice.due, "there is no need to look again before something else happens"


def test_a_factory_that_was_made_and_not_started_is_named() -> None:
    """To open one would be the wrong advice."""
    advice = Advice()
    advice.look(1, 0, 0, 1, 1000.0, "night")
    said = advice.look(1, 0, 0, 1, LATER, "night")
    assert said.startswith("1 call waits, and there are no pilots, as factory 'night' was made and never started: write `with windlass.F")
    assert "factory run" not in said


def test_one_call_is_spoken_of_as_one() -> None:
    """Not as "1 calls"."""
    advice = Advice()
    advice.look(1, 0, 0, 1, 1000.0)
    assert advice.look(1, 0, 0, 1, LATER).startswith("1 call waits, ")


def test_workers_or_a_factory_are_no_reason_to_say_anything() -> None:
    """A factory tells of its own troubles; pilots may be long in the queue."""
    for workers, factories in ((1, 0), (0, 1)):
        advice = Advice()
        assert advice.look(1, workers, factories, 1, 1000.0) == ""
        assert advice.look(1, workers, factories, 1, LATER) == ""


def test_a_manager_without_calls_is_left_alone() -> None:
    """And the time counts from the first call that waits, not from the manager's start."""
    advice = Advice()
    assert advice.look(0, 0, 0, 1, 1000.0) == ""
    assert advice.look(1, 0, 0, 1, LATER) == ""
    assert advice.look(1, 0, 0, 1, LATER + PATIENCE_SECONDS) != ""


def test_it_is_said_again_when_it_comes_to_that_again() -> None:
    """The factory was there and has gone."""
    advice = Advice()
    advice.look(1, 0, 0, 1, 1000.0)
    assert advice.look(1, 0, 0, 1, LATER) != ""
    assert advice.look(1, 0, 1, 1, LATER + 1) == ""
    assert advice.look(1, 0, 0, 1, LATER + 2) == ""
    assert advice.look(1, 0, 0, 1, LATER + 2 + PATIENCE_SECONDS) != ""


class Program:
    """A later life of a program, whose calls wait while ``unasked`` of the earlier one run."""

    def __init__(self, unasked: int) -> None:
        self.advice, self.unasked, self.looks = EarlierAdvice(), unasked, 0

    def count(self) -> int:
        self.looks += 1
        return self.unasked

    def look(self, now: float, *, orphans: bool = True, waiting: bool = True) -> str:
        return self.advice.look(orphans, lambda: waiting, self.count, now)


def test_a_program_that_waits_for_what_its_earlier_life_left_is_told_how_to_end_it() -> None:
    """A function was mended, so nobody will ask for what it returns as it was. Once, and what runs is counted then only."""
    program = Program(12)
    assert [program.look(1000.0 + after) for after in (0.0, 30.0, EARLIER_SECONDS - 0.1)] == ["", "", ""]
    assert program.looks == 0
    said = program.look(1000.0 + EARLIER_SECONDS)
    assert said.startswith("12 calls of an earlier life of this program run on, which this life has not submitted, while others wait")
    assert said.endswith("call manager.cancel_earlier() when all is submitted")
    assert program.look(5000.0) == ""
    assert program.looks == 1
    assert program.look(5001.0, orphans=False) == ""
    program.look(6000.0)
    assert program.look(6000.0 + EARLIER_SECONDS) != "", "it was started again, and left others"


def test_what_runs_for_those_that_wait_is_no_reason_to_say_anything() -> None:
    """Nor what runs while nothing else waits; and it may come to that later."""
    program = Program(0)
    program.look(1000.0)
    assert program.look(1000.0 + EARLIER_SECONDS) == ""
    program.unasked = 1
    assert program.look(1001.0 + EARLIER_SECONDS) == "", "it is looked at once a minute"
    program.look(1010.0 + EARLIER_SECONDS, waiting=False)
    program.look(1011.0 + EARLIER_SECONDS)
    assert program.look(1000.0 + 2 * EARLIER_SECONDS) == "", "the time counts from when calls began to wait"
    assert program.look(1011.0 + 2 * EARLIER_SECONDS).startswith("1 call of an earlier life of this program runs on, which")
