"""The worker's command line.

Theory of operation
-------------------
Read by hand: argparse costs tens of file-system calls, which a thousand workers that start at once would all make against one
shared filesystem. Each option stands once, in `_OPTIONS`, with its reader and its text; the usage text is made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from windlass.errors import UsageError


class Options(NamedTuple):
    """What the pilot says. Memory in bytes, times in seconds."""

    connection: str = ""
    worker_id: str = ""
    pool: str = ""
    pilot: str = ""
    #: 0: all that this process may use.
    cores: int = 0
    #: 0: what the cgroup and the node give.
    memory: int = 0
    #: -1: all that the batch system assigned.
    gpus: int = -1
    #: 0: unlimited.
    walltime: float = 0.0
    #: 0: never.
    idle_timeout: float = 0.0
    scratch: str = ""
    grace: float = 30.0
    #: Negative: as the walltime suggests (`windlass.worker.lifetime.stagger_seconds`).
    stagger: float = -1.0
    log_level: str = "warning"


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError(text)
    return text.lower()


#: Option, its field, what its value is called, how it is read, what it means.
_OPTIONS: Final[tuple[tuple[str, str, str, Callable[[str], Any], str], ...]] = (
    ("--connection", "connection", "FILE", str, "the manager's pilot.json; needed"),
    ("--worker-id", "worker_id", "ID", str, "name of this worker (default: host, process id and a random part)"),
    ("--pool", "pool", "NAME", str, "the pool that this pilot belongs to"),
    ("--pilot", "pilot", "ID", str, "the pilot as the batch system names it"),
    ("--cores", "cores", "N", _count, "cores to use (default: all that this process may use)"),
    ("--memory", "memory", "BYTES", _count, "memory to use (default: the limit of the cgroup or the node)"),
    ("--gpus", "gpus", "N", _count, "GPUs to use (default: those that the batch system assigned)"),
    ("--walltime", "walltime", "SECONDS", _number, "seconds until the pilot ends (default: what the batch system says)"),
    ("--idle-timeout", "idle_timeout", "SECONDS", _number, "leave after so long without a call (default: never)"),
    ("--scratch", "scratch", "DIR", str, "where to make the scratch folder (default: the batch system's, $TMPDIR, /tmp)"),
    ("--grace", "grace", "SECONDS", _number, "what running calls get after a signal (default: 30)"),
    ("--stagger", "stagger", "SECONDS", _number, "stop accepting up to so much earlier, so that not all pilots end at once (default: 5 %)"),
    ("--log-level", "log_level", "LEVEL", _level, "debug, info, warning or error (default: warning)"),
)


def usage() -> str:
    """The help text."""
    lines = ["usage: windlass worker --connection FILE [options]", ""]
    lines += [f"  {option + ' ' + value:<24} {text}" for option, _, value, _, text in _OPTIONS]
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> Options:
    """Read the command line (``--option VALUE`` or ``--option=VALUE``). Raises `UsageError`, whose text says which word is wrong."""
    table = {row[0]: row for row in _OPTIONS}
    values: dict[str, Any] = {}
    words = list(argv)
    while words:
        option, equals, value = words.pop(0).partition("=")
        if option not in table:
            import difflib

            near = difflib.get_close_matches(option, table, n=1)
            raise UsageError(f"there is no option {option!r}" + (f"; did you mean {near[0]!r}?" if near else "; see --help"))
        if not equals:
            if not words:
                raise UsageError(f"{option} needs a value: {option} {table[option][2]}")
            value = words.pop(0)
        _, field, kind, read, _ = table[option]
        try:
            values[field] = read(value)
        except ValueError:
            raise UsageError(f"{option} {value!r} cannot be used: give {_KINDS.get(kind, kind)}, as in {option} {_example(kind)}") from None
    if not values.get("connection"):
        raise UsageError("--connection FILE is needed: the pilot.json in the manager's state folder")
    return Options(**values)


#: What values are, in words.
_KINDS: Final = {"N": "a whole number", "BYTES": "a number of bytes", "SECONDS": "a number of seconds", "LEVEL": "a level"}


def _example(kind: str) -> str:
    return {"N": "4", "BYTES": "8589934592", "SECONDS": "3600", "LEVEL": "info"}.get(kind, kind)
