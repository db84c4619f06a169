"""Amounts of memory and of time, as people write them: read, and shown in the same way.

Theory of operation
-------------------
Memory: ``8GB`` is 8·10⁹ bytes and ``8GiB`` 8·2³⁰, as the standards have it. A bare letter means what Slurm and HTCondor mean by it:
``8G`` is 8·2³⁰. A number is bytes.

Time: a number is seconds; texts are amounts with units (``90s``, ``1.5h``, ``1h 30min``, ``2 days``), or the batch systems' clock:
``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM``, ``D-HH:MM:SS``, read as Slurm reads them. A text with a bare number is refused: Slurm
would read it as minutes, others as seconds.

What is shown can be read again and gives the same amount to the digits that are shown.
"""

from __future__ import annotations

import math
import re
from typing import Final

from windlass.errors import UsageError

_MEMORY: Final = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)},
    **{letter: 1024**power for power, letter in enumerate("kmgtp", 1)},
    "byte": 1,
    "bytes": 1,
}
_SECONDS: Final = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604800.0),
}
_NUMBER: Final = r"(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"
_ONE_MEMORY: Final = re.compile(rf"({_NUMBER})\s*([a-z]+)", re.ASCII)
_ONE_TIME: Final = re.compile(rf"\s*({_NUMBER})\s*([a-z]+)\s*,?", re.ASCII)
_CLOCK: Final = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)

_MEMORY_HINT: Final = "write for example '500MB' or '8GB', or a number of bytes"
_TIME_HINT: Final = "write for example '90s', '30min', '2h' or '1-12:00:00', or a number of seconds"


def parse_memory(value: str | int | float) -> int:
    """Bytes. Raises `UsageError` for what is no amount of memory, is negative or not finite."""
    if isinstance(value, str):
        text = value.strip().lower()
        match = _ONE_MEMORY.fullmatch(text)
        if match is not None and match[2] in _MEMORY:
            return _whole(value, float(match[1]) * _MEMORY[match[2]])
        if match is not None:
            raise UsageError(f"{value!r} has no unit of memory that is known; {_MEMORY_HINT}")
        if re.fullmatch(_NUMBER, text):
            raise UsageError(f"{value!r} has no unit: is it MB or GB? {_MEMORY_HINT}")
        raise UsageError(f"{value!r} is no amount of memory; {_MEMORY_HINT}")
    return _whole(value, _number(value, "amount of memory", _MEMORY_HINT))


def parse_seconds(value: str | int | float) -> float:
    """Seconds. Raises `UsageError` for what is no length of time, is negative or not finite."""
    if not isinstance(value, str):
        return _number(value, "length of time", _TIME_HINT)
    text = value.strip().lower()
    clock = _CLOCK.fullmatch(text)
    if clock is not None and ("-" in text or ":" in text):
        return _clock_seconds(value, clock)
    if re.fullmatch(_NUMBER, text):
        raise UsageError(
            f"{value!r} has no unit: is it seconds, or minutes as Slurm has it? write '{text}s', '{text}m', or for example '1h30m'"
        )
    total, place, seen = 0.0, 0, set[float]()
    while place < len(text):
        match = _ONE_TIME.match(text, place)
        if match is None or match[2] not in _SECONDS or _SECONDS[match[2]] in seen:
            raise UsageError(f"{value!r} is no length of time; {_TIME_HINT}")
        seen.add(_SECONDS[match[2]])
        total += float(match[1]) * _SECONDS[match[2]]
        place = match.end()
    if not text or not math.isfinite(total):
        raise UsageError(f"{value!r} is no length of time; {_TIME_HINT}")
    return total


def show_memory(count: float) -> str:
    """Bytes for people, in units of 1000: ``8GB``, ``1.5MB``, ``512B``."""
    for power, unit in ((5, "PB"), (4, "TB"), (3, "GB"), (2, "MB"), (1, "KB")):
        if abs(count) >= 999.5 * 1000 ** (power - 1):
            return f"{_digits(count / 1000**power)}{unit}"
    return f"{count:.0f}B"


def show_count(count: float, noun: str) -> str:
    """So many of a thing for people: ``1 core``, ``2.5 cores``."""
    return f"{count:g} {noun}{'' if count == 1 else 's'}"


def show_seconds(seconds: float) -> str:
    """A length of time for people: ``1d 12h``, ``2h``, ``1h 30min``, ``12.5s``, ``3ms``; the two largest units."""
    if not math.isfinite(seconds):
        return "unlimited"
    if seconds < 0:
        return "-" + show_seconds(-seconds)
    if 0 < seconds < 0.9995:
        return f"{_digits(seconds * 1000)}ms"
    if seconds < 59.95:
        return f"{_digits(seconds)}s"
    # Rounded to the smaller of the two units that are shown, so that 3599.9 s is 1h and not 59min 60s.
    for unit, smaller, name, smaller_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        rounded = math.floor(seconds / smaller + 0.5) * smaller
        if rounded >= unit:
            rest = rounded % unit // smaller
            return f"{rounded // unit}{name}" + (f" {rest}{smaller_name}" if rest else "")
    return f"{_digits(seconds)}s"


def _clock_seconds(value: str, clock: re.Match[str]) -> float:
    days = int(clock[1] or 0)
    given = [int(part) for part in clock.groups()[1:] if part is not None]
    if clock[1] is not None:
        hours, minutes, seconds = (*given, 0, 0)[:3]  # D-HH, D-HH:MM, D-HH:MM:SS
    elif len(given) == 3:
        hours, minutes, seconds = given
    else:
        hours, (minutes, seconds) = 0, given  # MM:SS
    if seconds > 59 or (minutes > 59 and len(given) != 2) or (clock[1] is not None and (hours > 23 or minutes > 59)):
        raise UsageError(f"{value!r} is no time on a clock: seconds and minutes end at 59, and hours after days at 23; {_TIME_HINT}")
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _number(value: object, what: str, hint: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{value!r} of type {type(value).__name__} is no {what}; {hint}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number < 0 or not math.isfinite(number):
        raise UsageError(f"{value!r} is no {what}: it must be finite and not negative; {hint}")
    return number


def _whole(value: object, count: float) -> int:
    if isinstance(value, int):
        return value
    if not math.isfinite(count):
        raise UsageError(f"{value!r} is no amount of memory: it must be finite; {_MEMORY_HINT}")
    return round(count)


def _digits(value: float) -> str:
    """Three digits, or all before the point, without trailing zeros."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
