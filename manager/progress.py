"""How far a long `map` is, for a person at a terminal or in a notebook.

Theory of operation
-------------------
A bar that nobody asked for appears only when standard error is a terminal, or a notebook runs the program, and the work has taken `DELAY`
seconds; in pipes, batch logs and tests nothing is ever written. In a notebook it is HTML (`windlass.notebook`), in a dumb terminal only
its end is written. The bar has no thread: whoever waits for results calls `tick` at least every `TICK` seconds, and only a tick that is
due costs more than a comparison. `rich` is loaded when the bar appears.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

#: Seconds of work after which a bar appears by itself.
DELAY: Final = 2.0
#: Seconds between two drawings.
TICK: Final = 0.25


class Stream(Protocol):
    """Where a bar is drawn: a text file."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...
    def isatty(self) -> bool: ...


class Bar(Protocol):
    """What is on the screen."""

    def draw(self, done: int, total: int | None, passed: float) -> None: ...
    def stop(self) -> None: ...


def show_times(done: int, total: int | None, passed: float) -> str:
    """Seconds that have passed, and what is left at that rate, in words."""
    from windlass.status import show_span  # which loads rich

    left = f", {show_span(passed / done * (total - done))} left" if total is not None and 0 < done < total and passed > 0 else ""
    return f"{show_span(passed)}{left}"


class Progress:
    """Counts what is done of ``total`` (None: unknown), and draws it when asked to or when it is worth it."""

    def __init__(
        self,
        total: int | None = None,
        description: str = "",
        *,
        show: bool | None = None,
        stream: Stream | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``show``: True at once, False never, None when work is long and ``stream`` (standard error) is a terminal or in a notebook;
        ``clock``: seconds."""
        self.total = total
        self.done = 0
        #: How many more are done, and wait until those before them are.
        self.ahead: Callable[[], int] = int
        self.description = description
        self._clock = clock
        self._began = clock()
        self._stream = stream
        self._bar: Bar | None = None
        if show is None:
            show = self._in_notebook() or self._on_terminal()
            self._due = clock() + DELAY if show else float("inf")
        else:
            self._due = clock() if show else float("inf")

    def _on_terminal(self) -> bool:
        stream = self._stream or sys.stderr
        try:
            return stream.isatty()
        except (AttributeError, ValueError):  # no standard error at all, or a closed one
            return False

    def _in_notebook(self) -> bool:
        if self._stream is not None or "IPython" not in sys.modules:
            return False
        from windlass.notebook import in_notebook

        return in_notebook()

    @property
    def watching(self) -> bool:
        """Ticks are wanted: the bar is shown, or may be later."""
        return self._due != float("inf")

    @property
    def shown(self) -> bool:
        """The bar is on the screen."""
        return self._bar is not None

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self._due != float("inf"):
            self.tick()

    def tick(self) -> None:
        """Draw if a drawing is due."""
        now = self._clock()
        if now >= self._due:
            self._due = now + TICK
            self._draw()

    def _draw(self) -> None:
        if self._bar is None:
            self._bar = self._open()
        self._bar.draw(self.done + self.ahead(), self.total, self._clock() - self._began)

    def _open(self) -> Bar:
        if self._in_notebook():
            from windlass.notebook import NotebookBar

            return NotebookBar(self.description)
        return TerminalBar(self.description, self._stream)

    def close(self) -> None:
        """Draw the last state, if a bar is shown, and leave the terminal as it was."""
        bar, self._bar = self._bar, None
        self._due = float("inf")
        if bar is not None:
            bar.draw(self.done, self.total, self._clock() - self._began)
            bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class TerminalBar:
    """A bar in a terminal, below what the program prints."""

    def __init__(self, description: str, stream: Stream | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(file=stream, stderr=True) if stream is None else Console(file=stream)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            # Colours that every terminal has: others become the grey of what is not done.
            BarColumn(complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[times]}", markup=False),
            console=console,
            auto_refresh=False,
            # What the program prints while it runs stays above the bar.
            redirect_stdout=True,
            redirect_stderr=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(description, total=None, times="")

    def draw(self, done: int, total: int | None, passed: float) -> None:
        """Show that so many are done, after so many seconds."""
        self._bar.update(self._task, completed=done, total=total, times=show_times(done, total, passed), refresh=True)

    def stop(self) -> None:
        """Leave the terminal as it was, with the last state on it."""
        self._bar.stop()
