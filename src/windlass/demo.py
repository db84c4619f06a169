"""`windlass demo`: the main job on this machine, with what happens shown.

Theory of operation: a picture of the Mandelbrot set is cut into tiles, and each tile is one call.  The calls need a module that
takes a while to load (rich, which is there because Windlass needs it), so there is something to hoist.  Everything is real: a manager, a
factory, two pilots that are processes of their own, TLS between them.  A third of the way through one pilot is killed; the picture is
complete all the same, and a tile computed here must equal what the calls gave.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import textwrap
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, as_completed
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from windlass.manager.manager import Manager

WIDTH: Final = 78
HEIGHT: Final = 26
#: Tiles in a row of the picture.
TILES: Final = 3
#: The part of the plane: left, right, top, bottom.
VIEW: Final = (-2.1, 0.7, 1.15, -1.15)
#: Iterations after which a point counts as inside: what makes a call take its tens of milliseconds.
DEPTH: Final = 60_000
#: Dark to bright, for terminals without colours and for files.
RAMP: Final = " .:-=+*#%@"
#: Columns of text, however wide the terminal.
COLUMNS: Final = 100
#: The one call that goes wrong asks for this row.
BAD_ROW: Final = -1


def tile(row: int, first: int, width: int) -> Text:
    """The call: ``width`` cells of a row of the picture, as coloured text."""
    from rich.text import Text

    if not 0 <= row < HEIGHT:
        raise ValueError(f"there is no row {row} in a picture of {HEIGHT}")
    left, right, top, bottom = VIEW
    y = top + (bottom - top) * row / (HEIGHT - 1)
    line = Text()
    for column in range(first, first + width):
        point = complex(left + (right - left) * column / (WIDTH - 1), y)
        value, steps = 0j, 0
        while steps < DEPTH and abs(value) < 2:
            value = value * value + point
            steps += 1
        if steps == DEPTH:
            line.append("@", "rgb(40,40,90)")
        else:
            shade = min(1.0, steps**0.5 / 7)
            colour = f"rgb({int(255 * shade)},{int(190 * shade**2)},{int(60 + 120 * (1 - shade))})"
            line.append(RAMP[min(len(RAMP) - 2, int(shade * (len(RAMP) - 1)))], colour)
    return line


class Place(NamedTuple):
    """Where a tile stands."""

    row: int
    first: int


def places() -> list[Place]:
    return [Place(row, part * WIDTH // TILES) for row in range(HEIGHT) for part in range(TILES)]


class Picture:
    """What has come so far, and a line about it."""

    def __init__(self) -> None:
        self.tiles: dict[Place, Text] = {}
        self.caption = ""

    def __rich__(self) -> Text:
        from rich.text import Text

        whole = Text()
        for place in places():
            whole.append(self.tiles.get(place, Text("·" * (WIDTH // TILES), "dim")))
            if place.first == (TILES - 1) * WIDTH // TILES:
                whole.append("\n")
        return whole.append(self.caption, "bold")


def run_demo() -> int:
    """Run it; the exit status: 0, or 1 when anything was not as it should be."""
    from rich.console import Console

    from windlass.tables import is_terminal

    console = Console(highlight=False, soft_wrap=True)
    if not is_terminal(console):
        console.width = COLUMNS
    step = _steps(console)

    import windlass

    step("A manager starts in this program. It queues calls, and pilots connect to it: TLS 1.3, a certificate on both sides.")
    with windlass.Manager() as manager:
        _say(console, f"manager {manager.name}, port {manager.port}")
        step("A factory keeps as many pilots in a batch system as the manager could use. Here the batch system is this machine.")
        with windlass.Factory(manager, "local", cores=1, max_pilots=2):
            _say(console, "at most 2 pilots, real processes with one core each")
            step("A library names functions and what they import. That is hoisted: loaded once per pilot, not once per call.")
            manager.install_library("mandelbrot", tile)
            _say(console, "library mandelbrot, function tile; what it imports, rich.text, was found by itself")
            step(f"{len(places())} calls draw a picture, each of them one tile of it. A third of the way through, a pilot is killed.")
            with _logged() as log:
                drawn = _draw(console, manager)
            _say(console, f"all {drawn.calls} calls came back in {drawn.seconds:.1f} s")
            ran_again = "1 call that it held" if drawn.again == 1 else f"{drawn.again} calls that it held"
            _say(console, f"pilot {drawn.killed} was killed; {ran_again} ran again elsewhere")
            for message in log:
                _say(console, f"what the manager wrote to its log then: {message}")
            step("A call that raises: the same exception here, with the traceback from there.")
            error = manager.submit(windlass.FunctionCall("mandelbrot", "tile", BAD_ROW, 0, 1)).exception()
            _say(console, f"{type(error).__name__}: {error}")
            step("What hoisting saved.")
            _tell_saved(console, manager)
        step("Leaving the two `with` blocks ends the pilots and the manager. Nothing is left running.")
    right = (
        len(drawn.picture.tiles) == len(places())
        and drawn.picture.tiles[Place(HEIGHT // 2, 0)] == tile(HEIGHT // 2, 0, WIDTH // TILES)
        and isinstance(error, ValueError)
    )
    if not right:
        console.print("Something was not as it should be; please report this output.", style="bold red")
        return 1
    console.print("\nNext: the ten lines of the README, or `windlass --help`.")
    return 0


class Drawn(NamedTuple):
    """How the drawing went."""

    picture: Picture
    calls: int
    #: The pilot that was killed.
    killed: str
    #: Calls that were lost with it and ran again.
    again: int
    seconds: float


def _draw(console: Console, manager: Manager) -> Drawn:
    """Submit all tiles, and kill a pilot on the way."""
    from rich.live import Live

    import windlass
    from windlass.tables import is_terminal

    picture, killed = Picture(), ""
    began = time.perf_counter()
    calls = [manager.submit(windlass.FunctionCall("mandelbrot", "tile", *place, WIDTH // TILES)) for place in places()]
    where: dict[Future[Any], Place] = dict(zip(calls, places(), strict=True))
    live = Live(picture, console=console, refresh_per_second=10) if is_terminal(console) else None
    with live or contextlib.nullcontext():
        for count, future in enumerate(as_completed(where), 1):
            picture.tiles[where[future]] = future.result()
            if not killed and count >= len(calls) // 3:
                killed = _kill_a_pilot(manager)
            picture.caption = f"{count} of {len(calls)} calls" + (f"; pilot {killed} was killed" if killed else "")
    took = time.perf_counter() - began
    if live is None:
        console.print(picture)
    return Drawn(picture, len(calls), killed, manager.status()["calls"]["lost_attempts"], took)


def _kill_a_pilot(manager: Manager) -> str:
    """SIGKILL for the worker that holds most calls; its name."""
    workers: list[dict[str, Any]] = manager.status()["workers"]
    busiest = max(workers, key=lambda worker: worker["held"])
    os.kill(busiest["pid"], signal.SIGKILL)
    return str(busiest["pilot"] or busiest["id"])


def _tell_saved(console: Console, manager: Manager) -> None:
    (library,) = (one for one in manager.status()["libraries"] if one["name"] == "mandelbrot")
    modules = ", ".join(library["imports"])
    _say(
        console,
        f"importing {modules} took {library['hoisted_seconds']:.2f} s in all, on {library['starts']} starts of the library; "
        f"once per call it would have taken {library['saved_seconds']:.1f} s more",
    )


@contextlib.contextmanager
def _logged() -> Generator[list[str]]:
    """What the manager warns of, which would stand in the midst of the picture."""
    logger, messages = logging.getLogger("windlass.manager"), list[str]()
    keep = logging.Handler(logging.WARNING)
    keep.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(keep)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.propagate = True
        logger.removeHandler(keep)


def _say(console: Console, text: str, first: str = "   ", style: str = "cyan") -> None:
    width = min(console.width, COLUMNS)
    console.print(textwrap.fill(text, width, initial_indent=first, subsequent_indent="   ", break_on_hyphens=False), style=style)


def _steps(console: Console) -> Callable[[str], None]:
    """Numbers the steps."""
    numbers = itertools.count(1)

    def step(text: str) -> None:
        console.print()
        _say(console, text, f"{next(numbers)}. ", "bold")

    return step
