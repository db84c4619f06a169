"""What all benchmarks share: rounds that take turns, medians, the machine's facts, a table and one JSON object.

Theory of operation: systems that are compared run in the same program, in turns, round after round, so that whatever else the machine
does falls on all of them; a figure is the median of the rounds.  Each call has an argument of its own and each result is checked, so that
nothing can be skipped or answered twice.  Both sides use the same plain loop of ``submit`` and ``result()``.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import windlass

T = TypeVar("T")

#: Slots on each side.
SLOTS = 2


class Submits(Protocol):
    """Gives a future of ``function(argument)``: all that a benchmark needs of a system."""

    def __call__(self, argument: Any, /) -> Any: ...


def arguments(description: str | None, *, rounds: int = 5, parts: Sequence[str] = (), **sizes: int) -> argparse.Namespace:
    """The command line of a benchmark: ``--json``, ``--rounds``, its ``--parts`` and its sizes (``calls=10_000`` → ``--calls``)."""
    compile_all()
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that each side runs; figures are medians (default: %(default)s)")
    if parts:
        parser.add_argument("--parts", type=lambda text: text.split(","), default=parts, help=f"some of {','.join(parts)} (default: all)")
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=int, default=size, help="default: %(default)s")
    return parser.parse_args()


def compile_all() -> None:
    """Have Windlass compiled, as an installed one is: each process that starts would do it again where PYTHONDONTWRITEBYTECODE is set."""
    package = Path(windlass.__file__).parent
    for folder in (package, *(path for path in package.iterdir() if path.is_dir() and path.is_symlink())):
        compileall.compile_dir(folder, quiet=2)


def echo(value: Any) -> Any:
    """The call that does nothing."""
    return value


def who(seconds: float) -> int:
    """The process that runs the call, which sleeps so that the next call goes to another one."""
    time.sleep(seconds)
    return os.getpid()


@contextlib.contextmanager
def windlass_side(*functions: Callable[..., Any], pilots: int = 1, cores: int = SLOTS, **library: Any) -> Generator[windlass.Manager]:
    """A manager with local pilots and a library ``lib`` of the functions; where there are several pilots, each has answered."""
    least = pilots if pilots > 1 else None
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=cores, max_pilots=pilots, min_pilots=least):
        manager.install_library("lib", *functions, who, **library)
        if pilots > 1:
            answered: set[int] = set()
            while len(answered) < pilots * cores:
                calls = [manager.submit(windlass.FunctionCall("lib", "who", 0.05)) for _ in range(2 * pilots * cores)]
                answered |= {call.result() for call in calls}
        yield manager


def windlass_submits(manager: windlass.Manager, function: str = "echo") -> Submits:
    """``submit`` as a user of Windlass writes it."""
    FunctionCall = windlass.FunctionCall

    def submit(argument: Any) -> Any:
        return manager.submit(FunctionCall("lib", function, argument))

    return submit


def pool_submits(pool: ProcessPoolExecutor, function: Callable[[Any], Any] = echo) -> Submits:
    """``submit`` as a user of the standard library's process pool writes it."""

    def submit(argument: Any) -> Any:
        return pool.submit(function, argument)

    return submit


def warm(*sides: Submits, calls: int = 50) -> None:
    """Let every process start and load what it needs."""
    for submit in sides:
        for number, future in [(number, submit(number)) for number in range(calls)]:
            check(future.result() == number)


def in_turns(rounds: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Run each side once per round; every second round in the opposite order, so that none always goes first."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(sides[name]())
    return found


def check(right: bool) -> None:
    """Stop the benchmark when a result is wrong: a figure of wrong results is none."""
    if not right:
        raise SystemExit("a call gave a wrong result; the figures are void")


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all stay under, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def clock() -> float:
    return time.perf_counter()


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "windlass": windlass.__version__,
        "system": f"{platform.system()} {platform.release()}",
    }


def report(
    chosen: argparse.Namespace,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    figures: Mapping[str, object],
    note: str,
) -> None:
    """Print the table, or with ``--json`` one object: the figures, the machine, the number of rounds."""
    name = Path(sys.argv[0]).stem
    if chosen.json:
        print(json.dumps({"benchmark": name, **figures, "rounds": chosen.rounds, "machine": machine()}))
        return
    text = [[str(column) for column in columns]] + [[cell(value) for value in row] for row in rows]
    widths = [max(len(row[at]) for row in text) for at in range(len(columns))]
    print(title)
    for first, *others in text:
        print("  " + "  ".join([first.ljust(widths[0]), *(value.rjust(width) for value, width in zip(others, widths[1:], strict=True))]))
    print("  " + "   ".join(f"{key} {cell(value)}" for key, value in figures.items()))
    print(f"  {note}")
    facts = machine()
    print(f"  medians of {chosen.rounds} rounds; Python {facts['python']}, {facts['cores']} cores, {facts['cpu']}, load {facts['load']}")


def cell(value: object) -> str:
    """A number with three or more digits that say something."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
