"""The bar of a long `map`: silent in pipes, late in terminals, right when it is asked for."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pyte
import pytest

from windlass.manager.progress import DELAY, TICK, Progress, TerminalBar


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


def run_in_terminal(body: str, *, piped: bool = False) -> tuple[bytes, bytes]:
    """What a program writes to its terminal, and to standard output where that is a pipe; a bar has appeared when ``body`` begins."""
    program = """
import sys
from windlass.manager.progress import Progress
now = 0.0
progress = Progress(2, "work", clock=lambda: now)
assert "rich" not in sys.modules
now = 5.0
progress.advance()
assert "rich" in sys.modules
""" + textwrap.dedent(body)
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=slave,
            stdout=subprocess.PIPE if piped else slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        )
        os.write(master, b"yes\n")
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
    assert process.returncode == 0, drawn
    return drawn, output or b""


def lines_on(terminal: bytes) -> list[str]:
    """What is read on a terminal that was sent this, without the answer that it has said again."""
    screen = pyte.Screen(80, 24)
    pyte.Stream(screen).feed(terminal.decode().replace("yes\r\n", "", 1))
    return "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")


def test_on_a_real_terminal_standard_output_stays_clean() -> None:
    """The bar is on standard error; what the program prints is all that is on standard output, also while there is a bar."""
    drawn, output = run_in_terminal(
        """
        print("x" * 300)
        sys.stdout.write("[/a]")
        sys.stdout.flush()
        now = 6.0
        progress.advance()
        print("[b]")
        progress.close()
        print("result")
        """,
        piped=True,
    )
    assert output == b"x" * 300 + b"\n[/a][b]\nresult\n"
    assert b"2/2" in drawn


def test_what_a_program_prints_stands_above_the_bar_as_it_is() -> None:
    streams = "(sys.stdout, sys.stderr)"
    drawn, _ = run_in_terminal(
        f"""
        before = [type(one) for one in {streams}]
        print("x" * 100 + "[/a]")
        progress.tick()
        now = 6.0
        progress.tick()
        print("to standard error", file=sys.stderr)
        now = 7.0
        progress.tick()
        answer = input("go on? ")
        print(answer)
        now = 8.0
        progress.advance()
        progress.close()
        assert all(type(one).__module__ == "_io" for one in {streams})
        print("result")
        """
    )
    text = lines_on(drawn)
    assert "".join(text[:2]) == "x" * 100 + "[/a]"
    assert text[2] == "to standard error"
    assert text[3] == "go on? yes"
    assert re.fullmatch(r"work \S+ 2/2 8 s", text[4])
    assert text[5:] == ["result"]


def test_a_line_that_the_program_has_begun_is_its_own() -> None:
    """No bar in it, nor is it wiped away."""
    drawn, _ = run_in_terminal(
        """
        print(".", end="", flush=True)
        now = 6.0
        progress.tick()
        print(".", end="", flush=True)
        progress.advance()
        print(" done")
        progress.close()
        progress = Progress(1, "more", show=True, clock=lambda: now)
        print("begun:", end="", flush=True)
        progress.advance()
        progress.close()
        """
    )
    text = lines_on(drawn)
    assert text[0] == ".. done"
    assert re.fullmatch(r"work \S+ 2/2 6 s", text[1])
    assert text[2] == "begun:"
    assert re.fullmatch(r"more \S+ 1/1 0", text[3])


def test_standard_output_may_be_any_object() -> None:
    """As what colorama puts there, whose ``write`` says nothing."""
    drawn, _ = run_in_terminal(
        """
        progress.close()

        class Plain:
            def write(self, text):
                sys.__stdout__.write(text.upper())

            def __getattr__(self, name):
                return getattr(sys.__stdout__, name)

        sys.stdout = plain = Plain()
        progress = Progress(1, "more", show=True, clock=lambda: now)
        progress.advance()
        assert sys.stdout is not plain
        print("text")
        try:
            sys.stdout.write(1)
        except AttributeError:
            print("refused")
        progress.close()
        assert sys.stdout is plain
        """
    )
    assert [line for line in lines_on(drawn) if "1/" not in line] == ["TEXT", "REFUSED"]


def test_two_bars_at_once_end_in_any_order() -> None:
    drawn, _ = run_in_terminal(
        """
        other = Progress(3, "other", show=True, clock=lambda: now)
        other.advance()
        progress.close()
        print("between")
        now = 6.0
        other.tick()
        other.close()
        assert all(type(one).__module__ == "_io" for one in (sys.stdout, sys.stderr))
        """
    )
    text = lines_on(drawn)
    assert "1/2" in text[0]
    assert text[1] == "between"
    assert "1/3" in text[2]
    assert len(text) == 3


def test_a_terminal_that_is_gone_ends_no_program(clock: Clock) -> None:
    class Gone(Terminal):
        def write(self, text: str, /) -> int:
            raise OSError(errno.EIO, "Input/output error")

    with Progress(2, "work", show=True, stream=Gone(), clock=clock) as progress:
        progress.advance()
    assert progress.done == 1


def test_no_bar_appears_by_itself_where_there_is_another(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``tqdm(pool.map(...))``."""
    terminal = Terminal()
    tqdm = ModuleType("tqdm.std")
    space = vars(tqdm)
    exec("def around(results):\n    for one in results:\n        yield one\n", space)  # a function of that module
    opened = [1]

    def results(show: bool | None) -> Iterator[int]:
        with Progress(10, "work", show=show, stream=terminal, clock=clock) as progress:
            for number in range(10):
                clock.now += DELAY
                progress.advance()
                yield number

    assert list(space["around"](results(None))) == list(range(10))
    assert terminal.getvalue() == ""
    space["tqdm"] = SimpleNamespace(_instances=opened)
    monkeypatch.setitem(sys.modules, "tqdm.std", tqdm)
    assert list(results(None)) == list(range(10))
    assert terminal.getvalue() == ""
    list(results(True))
    assert "10/10" in terminal.getvalue()
    terminal.truncate(0)
    opened.clear()
    list(results(None))
    assert "10/10" in terminal.getvalue()


class Latin(Terminal):
    """A terminal whose locale is not UTF-8."""

    encoding = "latin-1"


def test_a_terminal_gets_letters_that_it_has() -> None:
    """What it has not would be drawn as an escape of six letters, over several lines."""
    terminal = Latin()
    bar = TerminalBar("f", terminal)
    bar.draw(1, 2, 3.0)
    bar.stop()
    shown = terminal.getvalue()
    assert "1/2" in shown
    shown.encode("latin-1")
