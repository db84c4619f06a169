"""How far a long `map` is, for a person at a terminal.

Theory of operation
-------------------
A bar that nobody asked for appears only when standard error is a terminal and the work has taken `DELAY` seconds; in pipes, batch
logs and tests nothing is ever written. The bar has no thread: whoever waits for results calls `tick` at least every `TICK` seconds,
and only a tick that is due costs more than a comparison. `rich` is loaded when the bar appears.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

#: Seconds of work after which a bar appears by itself.
DELAY: Final = 2.0
#: Seconds between two drawings.
TICK: Final = 0.25


class Stream(Protocol):
    """Where a bar is drawn: a text file."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...
    def isatty(self) -> bool: ...


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
        """``show``: True at once, False never, None when ``stream`` (standard error) is a terminal and work is long; ``clock``: seconds."""
        self.total = total
        self.done = 0
        self.description = description
        self._clock = clock
        self._stream = stream
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        if show is None:
            show = self._on_terminal()
            self._due = clock() + DELAY if show else float("inf")
        else:
            self._due = clock() if show else float("inf")

    def _on_terminal(self) -> bool:
        stream = self._stream or sys.stderr
        try:
            return stream.isatty()
        except (AttributeError, ValueError):  # no standard error at all, or a closed one
            return False

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
            self._open()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, refresh=True)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(file=self._stream, stderr=True) if self._stream is None else Console(file=self._stream)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            # What the program prints while it runs stays above the bar.
            redirect_stdout=True,
            redirect_stderr=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.description, total=self.total, completed=self.done)

    def close(self) -> None:
        """Draw the last state, if a bar is shown, and leave the terminal as it was."""
        bar, task = self._bar, self._task
        self._due = float("inf")
        self._bar = None
        if bar is not None and task is not None:
            bar.update(task, completed=self.done, refresh=True)
            bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
