"""The limit of a block: who waits is interrupted, who does not listen is told again, and all is as before afterwards."""

from __future__ import annotations

import signal
import threading
from typing import Any, NoReturn, cast

import pytest

from windlass.testing.limit import within


def fail(text: str) -> NoReturn:
    raise TimeoutError(text)


def wait_for_ever() -> None:
    threading.Event().wait()


def test_a_wait_is_interrupted_with_what_was_going_on() -> None:
    """In the middle of it; the signal's handler is as before."""
    before = signal.getsignal(signal.SIGVTALRM)
    with (
        pytest.raises(TimeoutError, match=r"(?s)not over after its limit of 0\.05 s.*\ncalls: none"),
        within(0.05, lambda: "calls: none", fail),
    ):
        wait_for_ever()
    assert signal.getsignal(signal.SIGVTALRM) is before


def test_who_catches_everything_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that goes on whatever was raised does not hang either."""
    monkeypatch.setattr("windlass.testing.limit.AGAIN", 0.05)
    told: list[str] = []

    def goes_on_twice(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            fail(text)

    with pytest.raises(TimeoutError), within(0.05, lambda: "", cast("Any", goes_on_twice)):
        wait_for_ever()
    assert len(told) == 3


def test_what_ends_in_time_is_left_alone() -> None:
    """No thread stays; 0 is no limit."""
    for limit in (60, 0):
        with within(limit, lambda: "", fail):
            pass
    assert "windlass-testing-limit" not in {thread.name for thread in threading.enumerate()}


def test_outside_the_main_thread_it_can_only_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the main thread handles signals."""
    told = threading.Event()

    def doing() -> str:
        told.set()
        return "calls: 7 waiting"

    def block() -> None:
        with within(0.05, doing, fail):
            told.wait()

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert "calls: 7 waiting" in capsys.readouterr().err
