"""The bar of a long `map`: silent in pipes, late in terminals, right when it is asked for."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import textwrap

import pytest

from windlass.manager.progress import DELAY, TICK, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_in_a_pipe_nothing_is_ever_written(clock: Clock) -> None:
    pipe = io.StringIO()
    progress = Progress(10, "work", stream=pipe, clock=clock)
    clock.now += 1000
    progress.advance(5)
    progress.tick()
    progress.close()
    assert not progress.watching
    assert pipe.getvalue() == ""
    assert progress.done == 5


def test_in_a_terminal_short_work_shows_nothing(clock: Clock) -> None:
    terminal = Terminal()
    with Progress(10, "work", stream=terminal, clock=clock) as progress:
        clock.now += DELAY - 0.01
        progress.advance(10)
        assert progress.watching
    assert terminal.getvalue() == ""


def test_in_a_terminal_long_work_shows_a_bar(clock: Clock) -> None:
    terminal = Terminal()
    with Progress(10, "work", stream=terminal, clock=clock) as progress:
        clock.now += DELAY
        progress.advance(3)
        assert progress.shown
        progress.advance(7)
    text = terminal.getvalue()
    assert "work" in text
    assert "3/10" in text
    assert text.rindex("10/10") > text.rindex("3/10")
    assert not progress.shown


def test_the_time_left_is_reckoned_from_the_start(clock: Clock) -> None:
    """Not from when the bar appeared."""
    terminal = Terminal()
    with Progress(100, "work", stream=terminal, clock=clock) as progress:
        clock.now += 10
        progress.advance(20)
        assert re.search(r"20/100\S* 10 s, 40 s left", terminal.getvalue())
        progress.ahead = lambda: 5
        clock.now += 10
        progress.advance(0)
        assert re.search(r"25/100\S* 20 s, 60 s left", terminal.getvalue())


def test_it_draws_at_most_so_often(clock: Clock) -> None:
    terminal = Terminal()
    with Progress(1000, "work", show=True, stream=terminal, clock=clock) as progress:
        progress.advance()
        drawn = terminal.getvalue()
        for _ in range(500):
            progress.advance()
        assert terminal.getvalue() == drawn
        clock.now += TICK
        progress.tick()
        assert "501/1000" in terminal.getvalue()


def test_a_bar_that_is_not_wanted_never_shows(clock: Clock) -> None:
    terminal = Terminal()
    with Progress(10, show=False, stream=terminal, clock=clock) as progress:
        clock.now += 1000
        progress.advance()
    assert terminal.getvalue() == ""


def test_an_unknown_total_is_fine() -> None:
    terminal = Terminal()
    with Progress(None, "endless", show=True, stream=terminal) as progress:
        progress.advance(7)
    assert re.search(r"7/\?", terminal.getvalue())


def test_no_standard_error_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not Progress(1).watching
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert not Progress(1).watching


def test_on_a_real_terminal_standard_output_stays_clean() -> None:
    """The bar is on standard error; what the program prints is all that is on standard output."""
    program = textwrap.dedent("""
        import sys
        from windlass.manager.progress import Progress
        now = 0.0
        with Progress(2, "work", clock=lambda: now) as progress:
            assert "rich" not in sys.modules
            now = 5.0
            progress.advance()
            progress.advance()
            assert "rich" in sys.modules
        print("result")
    """)
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=slave, env={**os.environ, "TERM": "xterm"}
        )
        os.close(slave)
        output, _ = process.communicate(timeout=20)
        drawn = b""
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # Linux: the other side of the terminal is closed
                break
            if not chunk:
                break
            drawn += chunk
    finally:
        os.close(master)
    assert process.returncode == 0
    assert output == b"result\n"
    assert b"2/2" in drawn
