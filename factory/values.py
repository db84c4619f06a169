"""The values of a pool's options as people write them: read, checked, and refused with what to write instead. Pure."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from typing import Final, cast

from windlass.errors import UsageError
from windlass.factory.backend import PoolDefaults
from windlass.units import parse_memory, parse_seconds

#: Other figures are slips of units: bytes, and seconds (a century).
MEMORY_LEAST: Final = 1 << 20
MEMORY_MOST: Final = 1 << 60
SECONDS_MOST: Final = 100 * 366 * 86_400
COUNT_MOST: Final = 1 << 31
#: A variable of the shell.
VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: What the worker's ``--log-level`` takes.
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def number(given: Mapping[str, object], name: str, default: float) -> float:
    """A number that is not negative."""
    value = given.get(name, default)
    try:
        read = float(cast("str | int | float", value))
    except (ValueError, TypeError):
        read = math.nan
    if isinstance(value, bool) or not 0 <= read < math.inf:
        raise UsageError(f"{name}={value!r} is not a number that is not negative; write for example {name}=100")
    return read


def whole(given: Mapping[str, object], name: str, default: int, *, least: int) -> int:
    """A whole number of at least ``least``."""
    value = given.get(name, default)
    if isinstance(value, str):  # from a command line
        with contextlib.suppress(ValueError):
            value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value!r} is not a whole number of at least {least}; write for example {name}={max(least, default)}")
    if value > COUNT_MOST:
        raise UsageError(f"{name} is larger than anything there is; write for example {name}={max(least, default)}")
    return value


def flag(name: str, value: object) -> bool:
    """Yes or no, as programs, files and command lines say it."""
    read = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}.get(str(value).lower())
    if read is None:
        raise UsageError(f"{name}={value!r}; write {name}=True or {name}=False")
    return read


def seconds(given: Mapping[str, object], name: str, default: float) -> float:
    """A length of time in seconds."""
    value = given.get(name)
    if value is None:
        return default
    try:
        seconds = parse_seconds(cast("str | int | float", value))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}={value!r}: {error}") from None
    if not 0 <= seconds < SECONDS_MOST:
        raise UsageError(f"{name}={value!r} is not a time; write seconds or for example {name}='90 min'")
    return seconds


def memory(given: Mapping[str, object], default: int) -> int:
    """Bytes."""
    value = given.get("memory")
    if value is None:
        return default
    try:
        memory = parse_memory(cast("str | int | float", value))
    except (ValueError, TypeError) as error:
        raise UsageError(f"memory={value!r}: {error}") from None
    if not MEMORY_LEAST <= memory <= MEMORY_MOST and memory:
        raise UsageError(f"memory={value!r} is {memory:.3g} bytes, which no pilot has; write for example memory='4GB'")
    return memory


def cores(given: Mapping[str, object], default: PoolDefaults, max_pilots: int) -> float:
    """Cores of a pilot (of each of its nodes). Pilots that share one machine share its cores."""
    value = given.get("cores")
    if value is None:
        return max(1.0, math.floor(default.cores / max_pilots)) if default.shared else default.cores
    try:
        cores = float(cast("str | int | float", value))
    except (ValueError, TypeError):
        cores = math.nan
    if isinstance(value, bool) or not 0 < cores < 1e6 or cores != int(cores):
        raise UsageError(f"cores={value!r} is not a whole number of cores; write for example cores=8")
    return cores


def log_level(value: object) -> str:
    """What the worker's ``--log-level`` takes."""
    if value and str(value).lower() not in LOG_LEVELS:
        raise UsageError(f"log_level={value!r}; write one of {', '.join(map(repr, LOG_LEVELS))}")
    return str(value)


def network(given: Mapping[str, object]) -> str:
    """A network, where ``interface`` is not given as well."""
    network = text(given, "network", "10.1.0.0/16")
    if network and given.get("interface"):
        raise UsageError(f"interface={given['interface']!r} and network={network!r} both say where the manager listens; give one of them")
    try:
        return str(ip_network(network, strict=False)) if network else ""
    except ValueError:
        raise UsageError(f"network={network!r} is not a network; write for example network='10.1.0.0/16'") from None


def text(given: Mapping[str, object], name: str, example: str) -> str:
    """One line of text, or a path; "": not given. ``example``: what to write instead of what cannot be."""
    value = given.get(name, "")
    has_one = getattr(value, "__fspath__", None)
    read: object = has_one() if has_one is not None else value
    if not isinstance(read, str):
        raise UsageError(f"{name}={value!r} is not a text; write for example {name}={example!r}")
    if not read.isprintable():
        raise UsageError(f"{name}={value!r} has characters that cannot be printed; write for example {name}={example!r}")
    return read


def shell(given: Mapping[str, object]) -> str:
    """The path of a shell."""
    read = text(given, "shell", "/bin/bash") or "/bin/sh"
    if not read.startswith("/"):
        raise UsageError(f"shell={read!r} is not the path of a shell; write for example shell='/bin/bash'")
    return read


def words(given: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Words of a command line: a list of them, or a text as one writes it in a shell."""
    value = given.get(name, ())
    try:
        if isinstance(value, str):
            return tuple(shlex.split(value))
    except ValueError as error:
        raise UsageError(f"{name}={value!r}: {error}") from None
    if isinstance(value, Sequence):
        words = tuple(cast("Sequence[object]", value))
        if all(isinstance(word, str) for word in words):
            return cast("tuple[str, ...]", words)
    raise UsageError(f"{name}={value!r} is not a list of words; write for example {name}=['--bind', '/data']")


def lines(value: object) -> tuple[str, ...]:
    """Lines of shell: a list of them, or a text."""
    if isinstance(value, str):
        return tuple(line for line in value.splitlines() if line.strip())
    if isinstance(value, Sequence):
        lines = tuple(cast("Sequence[object]", value))
        if all(isinstance(line, str) and "\0" not in line for line in lines):
            return cast("tuple[str, ...]", lines)
    raise UsageError(f"setup={value!r} is not a list of shell lines; write for example setup=['module load python']")


def pairs(value: object) -> tuple[tuple[str, str], ...]:
    """Names and texts, of a mapping or pairs."""
    pairs: Iterable[object] = cast("Mapping[str, str]", value).items() if isinstance(value, Mapping) else cast("Iterable[object]", value)
    try:
        read = tuple((str(name), str(text)) for name, text in cast("Iterable[tuple[object, object]]", pairs))
    except (TypeError, ValueError):
        raise UsageError(f"env={value!r} is not a mapping; write for example env={{'DATA': '/scratch/me'}}") from None
    for name, text in read:
        if not VARIABLE.match(name):
            raise UsageError(f"env has {name!r}, which names no variable; write letters, digits and '_', as in 'DATA_2'")
        if "\0" in text:
            raise UsageError(f"env has a zero byte in {name!r}, which no variable can hold")
    return read
