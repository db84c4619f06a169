"""How far a long `map` is, for a person at a terminal or in a notebook.

Theory of operation
-------------------
A bar that nobody asked for appears only when standard error is a terminal, or a notebook runs the program, and the work has taken `DELAY`
seconds; in pipes, batch logs and tests nothing is ever written. Nor does it appear by itself where there is another one (``tqdm`` around
the `map`). In a notebook it is HTML (`windlass.notebook`), in a dumb terminal only its end is written. The bar has no thread: whoever waits
for results calls `tick` at least every `TICK` seconds, and only a tick that is due costs more than a comparison. `rich` is loaded when the
bar appears, and makes its text.

In a terminal a bar is the last line. What the program prints goes where it would go without the bar, as it is; only what goes to the same
terminal is looked at, so that the bar is wiped away before it, and comes back when a line has ended (`_Line`).
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Iterable
from io import StringIO
from types import TracebackType
from typing import Any, Final, Protocol, Self

from windlass.prompts import in_notebook

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
        self._by_itself = show is None
        if show is None:
            show = self._in_notebook() or self._on_terminal()
            self._due = clock() + DELAY if show else float("inf")
        else:
            self._due = clock() if show else float("inf")

    def _on_terminal(self) -> bool:
        return _is_terminal(self._stream or sys.stderr)

    def _in_notebook(self) -> bool:
        return self._stream is None and in_notebook()

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
            if self._by_itself and _another_is_shown():
                self._due = float("inf")
                return
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


def _another_is_shown() -> bool:
    """Somebody else's bar is open, or takes the results of this `map`."""
    if type(sys.stderr).__module__ == "rich.file_proxy":
        return True
    if getattr(getattr(sys.modules.get("tqdm.std"), "tqdm", None), "_instances", ()):
        return True
    frame = inspect.currentframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == "rich.progress" or name.partition(".")[0] in ("tqdm", "alive_progress", "progressbar", "fastprogress"):
            return True
        frame = frame.f_back
    return False


# ---------------------------------------------------------------- in a terminal


class TerminalBar:
    """A bar in a terminal, below what the program prints."""

    def __init__(self, description: str, stream: Stream | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._line = _Line(stream) if stream is not None else _line_of_standard_error()
        self._made = _Made(self._line.stream)
        self._console = Console(file=self._made, force_terminal=_is_terminal(self._line.stream), force_jupyter=False)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            # Colours that every terminal has: others become the grey of what is not done.
            BarColumn(complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[times]}", markup=False),
            console=self._console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task(" ".join(description.split()), total=None, times="")
        self._line.open()

    def draw(self, done: int, total: int | None, passed: float) -> None:
        """Show that so many are done, after so many seconds."""
        self._bar.update(self._task, completed=done, total=total, times=show_times(done, total, passed))
        if self._console.is_interactive:
            self._line.draw(self._text(), self._console.width)

    def _text(self) -> str:
        self._made.seek(0)
        self._made.truncate()
        self._console.print(self._bar.get_renderable())
        return self._made.getvalue().partition("\n")[0]

    def stop(self) -> None:
        """Leave the terminal as it was, with the last state on it."""
        self._line.close(self._text())


class _Made(StringIO):
    """What is drawn into, in letters that the terminal has."""

    def __init__(self, terminal: Any) -> None:
        super().__init__()
        self._encoding = getattr(terminal, "encoding", None) or "utf-8"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


class _Line:
    """The last line of a terminal, where bars stand, each in the place of the one before, unless the program writes there."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._bars = 0
        self._shown = False
        #: The program's own text stands there; None: nobody has looked.
        self._taken: bool | None = None
        self._replaced: dict[str, _Above] = {}

    def open(self) -> None:
        """There is one more bar."""
        self._bars += 1
        here = _terminal(self.stream)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if here is not None and _terminal(stream) == here and not isinstance(stream, _Above):
                self._replaced[name] = _Above(stream, self)
                setattr(sys, name, self._replaced[name])

    def draw(self, text: str, width: int) -> None:
        """Have this bar there."""
        if not self._taken:
            # Where there is text already, so many spaces end in the line below it; where there is none, in this one.
            self._write(("\r\x1b[2K" if self._shown or self._taken is not None else " " * width + "\r") + text)
            self._shown = True

    def wipe(self) -> None:
        """Leave the line to the program."""
        if self._shown:
            self._shown, self._taken = False, False
            self._write("\r\x1b[2K")

    def note(self, text: str) -> None:
        """The program has written this."""
        if text:
            self._taken = not text.endswith("\n")

    def close(self, text: str) -> None:
        """A bar has ended, and this is the last of it. With the last bar the streams are again what they were."""
        if not self._taken:
            self.wipe()
            self._write(text + "\n")
        self._bars -= 1
        if not self._bars:
            for name, above in self._replaced.items():
                if getattr(sys, name) is above:  # not what the program has put there since
                    setattr(sys, name, above.stream)
            self._replaced.clear()
            self._taken = None

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            pass  # a terminal that is gone, or a closed file: the work goes on


class _Above:
    """Stands for a stream while there is a bar on its terminal."""

    def __init__(self, stream: Any, line: _Line) -> None:
        self.stream, self._line = stream, line

    def write(self, text: str) -> Any:
        """As the stream's own."""
        self._line.wipe()
        written = self.stream.write(text)
        self._line.note(text)
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        self._line.wipe()  # ``input`` asks for flush, and who starts a process for fileno
        return getattr(self.stream, name)


_standard_error: _Line | None = None


def _line_of_standard_error() -> _Line:
    """One for all bars, as they share it."""
    global _standard_error
    stream: Any = sys.stderr
    while isinstance(stream, _Above):
        stream = stream.stream
    if stream is None:
        return _Line(StringIO())  # there is none: nobody sees this bar
    if _standard_error is None or _standard_error.stream is not stream:
        _standard_error = _Line(stream)
    return _standard_error


def _is_terminal(stream: Stream | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # not a whole stream, or a closed one
        return False


def _terminal(stream: Any) -> int | None:
    """The device that a stream writes to, if it is a terminal."""
    try:
        return os.fstat(stream.fileno()).st_rdev if stream.isatty() else None
    except (AttributeError, OSError, TypeError, ValueError):
        return None
