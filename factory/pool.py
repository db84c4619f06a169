"""One kind of pilot: what a user asked for, checked, with the backend's defaults filled in, and told back in the user's units. Pure.

Theory of operation
-------------------
`make_pool` takes the options as people write them (``walltime="2h"``, ``memory="4GB"``), refuses unknown ones with the near names,
and gives a `PoolConfig`, which nothing changes afterwards, and the options that are the backend's own.  Every figure in it is in
seconds, bytes and cores *per pilot and node*.  `PoolConfig.text` says what follows in units of the user: pilots, cores in all, calls
at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import ip_network
from typing import Final, cast

from windlass.errors import UnknownName, UsageError
from windlass.factory.backend import PoolDefaults
from windlass.messages import HOST, PoolName, PoolOffer, Resources
from windlass.units import parse_memory, parse_seconds, show_memory, show_seconds

#: Other figures are slips of units: bytes, and seconds (a century).
MEMORY_LEAST: Final = 1 << 20
MEMORY_MOST: Final = 1 << 60
SECONDS_MOST: Final = 100 * 366 * 86_400
#: A worker keeps half a second for its end and one for sending results (`windlass.worker.lifetime`).
WALLTIME_LEAST: Final = 2.0
#: What the worker's ``--log-level`` takes.
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
#: Letters that every batch system takes in a job's name.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """One pool. Seconds, bytes; resources are those of one node of a pilot."""

    name: PoolName
    backend: str
    resources: Resources
    nodes: int = 1
    #: Seconds that a pilot may live; 0: unlimited.
    walltime: float = 0.0
    max_pilots: int = 1
    min_pilots: int = 0
    max_queued: int = 32
    #: A pilot without calls is let go after this long, when there is no demand for it.
    idle_timeout: float = 120.0
    #: Seconds that what runs is given when a pilot is told to end.
    grace: float = 30.0
    start_cost: float = 60.0
    hold: float = 60.0
    hello_timeout: float = 600.0
    max_start_failures: int = 3
    setup: tuple[str, ...] = ()
    shell: str = "/bin/sh"
    #: The interpreter that pilots run; "": the program's own.
    python: str = ""
    scratch: str = ""
    log_level: str = ""
    #: Where the manager listens for pilots that run on other machines: an interface (``ib0``) or a network (``10.1.0.0/16``); "": at the
    #: address that its host name resolves to.
    interface: str = ""
    network: str = ""
    #: Pilots run on other machines than their manager.
    remote: bool = False
    env: tuple[tuple[str, str], ...] = ()
    #: What only the backend reads.
    options: Mapping[str, object] = field(default_factory=dict[str, object])

    def offer(self, paused: str = "", *, coming: bool = True) -> PoolOffer:
        """What the manager is told of one pilot; ``paused``: why there are no new ones; ``coming``: some are there or may still come."""
        listen = self.interface or self.network or (HOST if self.remote else "")
        return PoolOffer(self.name, self.resources, self.walltime, paused, self.backend, listen, bool(paused) and not coming)

    def text(self) -> str:
        """The derived plan, in the user's units."""
        each = [_number(self.resources.cores, "core")]
        each.append(f"{show_memory(self.resources.memory)} of memory" if self.resources.memory else "the memory that is there")
        if self.resources.gpus:
            each.append(_number(self.resources.gpus, "GPU"))
        if self.nodes > 1:
            each.append(f"on each of {self.nodes} nodes")
        in_all = self.resources.cores * self.nodes * self.max_pilots
        rows = [
            ("pool", f"{self.name} (backend {self.backend})"),
            (
                "pilots",
                f"{self.min_pilots} to {self.max_pilots} at a time, at most {min(self.max_queued, self.max_pilots)} of them in the queue",
            ),
            ("each has", ", ".join(each)),
            ("in all", f"at most {_number(in_all, 'core')}: {_number(math.floor(in_all), 'call')} of one core at a time"),
            ("each lives", f"at most {show_seconds(self.walltime)}" if self.walltime else "as long as it is needed"),
            ("leaves", f"after {show_seconds(self.idle_timeout)} without calls; what runs is given {show_seconds(self.grace)} at its end"),
            ("pauses", f"after {_number(self.max_start_failures, 'pilot')} in a row that ended before serving"),
        ]
        rows += [("setup", line) for line in self.setup]
        return "\n".join(f"{name + ':':<12}{text}" for name, text in rows)


def _number(value: float, noun: str) -> str:
    return f"{value:g} {noun}{'' if value == 1 else 's'}"


#: Options of every pool, beside the backend's own.
COMMON_OPTIONS: Final = frozenset(field.name for field in fields(PoolConfig)) - {"name", "backend", "resources", "remote", "options"} | {
    "cores",
    "memory",
    "gpus",
    "pool",
}


def make_pool(backend: str, default: PoolDefaults, own: frozenset[str], options: Mapping[str, object], *, name: str) -> PoolConfig:
    """A pool named ``name`` (unless ``pool=`` names it); ``own``: options that only this backend has.

    Raises:
        UnknownName: an unknown option; the text has near names.
        UsageError: an impossible one.
    """
    for option in options:
        if option not in COMMON_OPTIONS and option not in own:
            raise UnknownName(f"option of a {backend} pool", option, COMMON_OPTIONS | own)
    given = {option: value for option, value in options.items() if value is not None}
    max_pilots = _whole(given, "max_pilots", default.max_pilots, least=1)
    min_pilots = _whole(given, "min_pilots", 0, least=0)
    if min_pilots > max_pilots:
        raise UsageError(f"min_pilots={min_pilots} is more than max_pilots={max_pilots}; at most as many can be kept as are allowed")
    walltime = _seconds(given, "walltime", default.walltime)
    if 0 < walltime < WALLTIME_LEAST:
        raise UsageError(
            f"walltime={show_seconds(walltime)} leaves no time to run anything, as a pilot ends its work before it ends;"
            f" write at least walltime={show_seconds(WALLTIME_LEAST)!r}"
        )
    grace = _seconds(given, "grace", min(30.0, walltime / 4) if walltime else 30.0)
    if walltime and grace >= walltime:
        raise UsageError(
            f"grace={show_seconds(grace)} leaves nothing of walltime={show_seconds(walltime)}; give a shorter grace or a longer walltime"
        )
    pool = str(given.get("pool", name))
    if not NAME.match(pool):
        raise UsageError(f"{pool!r} is no name for a pool; use up to 64 letters, digits, '_', '-' and '.', for example 'short-jobs'")
    return PoolConfig(
        name=PoolName(pool),
        backend=backend,
        resources=Resources(_cores(given, default, max_pilots), _memory(given, default.memory), _whole(given, "gpus", 0, least=0)),
        nodes=_whole(given, "nodes", 1, least=1),
        walltime=walltime,
        max_pilots=max_pilots,
        min_pilots=min_pilots,
        max_queued=_whole(given, "max_queued", default.max_queued, least=1),
        idle_timeout=_seconds(given, "idle_timeout", default.idle_timeout),
        grace=grace,
        start_cost=_seconds(given, "start_cost", default.start_cost),
        hold=_seconds(given, "hold", default.hold),
        hello_timeout=_seconds(given, "hello_timeout", default.hello_timeout),
        max_start_failures=_whole(given, "max_start_failures", 3, least=1),
        setup=_lines(given.get("setup", ())),
        shell=str(given.get("shell", "/bin/sh")),
        python=str(given.get("python", "")),
        scratch=str(given.get("scratch", "")),
        log_level=_log_level(given.get("log_level", "")),
        interface=str(given.get("interface", "")),
        network=_network(given),
        remote=default.remote,
        env=_pairs(given.get("env", ())),
        options={option: value for option, value in given.items() if option in own},
    )


def _whole(given: Mapping[str, object], name: str, default: int, *, least: int) -> int:
    value = given.get(name, default)
    if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
        value = int(value)  # from a command line
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value!r} is not a whole number of at least {least}; write for example {name}={max(least, default)}")
    return value


def _seconds(given: Mapping[str, object], name: str, default: float) -> float:
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


def _memory(given: Mapping[str, object], default: int) -> int:
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


def _cores(given: Mapping[str, object], default: PoolDefaults, max_pilots: int) -> float:
    value = given.get("cores")
    if value is None:
        # Pilots that share one machine share its cores.
        return max(1.0, math.floor(default.cores / max_pilots)) if default.shared else default.cores
    try:
        cores = float(cast("str | int | float", value))
    except (ValueError, TypeError):
        cores = math.nan
    if isinstance(value, bool) or not 0 < cores < 1e6 or cores != int(cores):
        raise UsageError(f"cores={value!r} is not a whole number of cores; write for example cores=8")
    return cores


def _log_level(value: object) -> str:
    if value and str(value).lower() not in LOG_LEVELS:
        raise UsageError(f"log_level={value!r}; write one of {', '.join(map(repr, LOG_LEVELS))}")
    return str(value)


def _network(given: Mapping[str, object]) -> str:
    network = str(given.get("network", ""))
    if network and given.get("interface"):
        raise UsageError(f"interface={given['interface']!r} and network={network!r} both say where the manager listens; give one of them")
    try:
        return str(ip_network(network, strict=False)) if network else ""
    except ValueError:
        raise UsageError(f"network={network!r} is not a network; write for example network='10.1.0.0/16'") from None


def _lines(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(line for line in value.splitlines() if line.strip())
    if isinstance(value, Sequence):
        lines = tuple(cast("Sequence[object]", value))
        if all(isinstance(line, str) for line in lines):
            return cast("tuple[str, ...]", lines)
    raise UsageError(f"setup={value!r} is not a list of shell lines; write for example setup=['module load python']")


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    pairs: Iterable[object] = cast("Mapping[str, str]", value).items() if isinstance(value, Mapping) else cast("Iterable[object]", value)
    try:
        return tuple((str(name), str(text)) for name, text in cast("Iterable[tuple[object, object]]", pairs))
    except (TypeError, ValueError):
        raise UsageError(f"env={value!r} is not a mapping; write for example env={{'OMP_NUM_THREADS': '1'}}") from None
