"""Calls that wait with nobody to run them: what is said, when, and how often."""

from __future__ import annotations

from windlass.manager.advice import PATIENCE_SECONDS, Advice

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
