"""One kind of pilot: what a user asked for, checked, with the backend's defaults filled in, and told back in the user's units. Pure.

Theory of operation
-------------------
`make_pool` takes the options as people write them (``walltime="2h"``, ``memory="4GB"``), refuses unknown ones with the near names,
and gives a `PoolConfig`, which nothing changes afterwards, and the options that are the backend's own.  Every figure in it is in
seconds, bytes and cores *per pilot and node*.  `PoolConfig.text` says what follows in units of the user: pilots, cores in all, calls
at a time.

How much a pool may take is said in the unit that its user thinks in: ``max_pilots``, ``max_cores`` or ``max_calls`` (of one core) at a
time.  The smallest of those that are given holds; the pool itself counts pilots."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

from windlass.errors import UnknownName, UsageError
from windlass.factory import values
from windlass.factory.backend import PoolDefaults
from windlass.messages import HOST, PoolName, PoolOffer, Resources
from windlass.units import show_count, show_memory, show_seconds

#: A worker keeps half a second for its end and one for sending results (`windlass.worker.lifetime`).
WALLTIME_LEAST: Final = 2.0
#: Less of a pilot's time than this is not worth starting one, where ``max_core_hours`` leaves no more. Seconds.
LEAST_SECONDS: Final = 60.0
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
    #: What pilots of this pool may use in all, in the life of a factory; 0: unlimited.
    max_core_hours: float = 0.0
    #: A pilot that has waited in the queue for so many seconds keeps pools that are named later from starting theirs no longer.
    patience: float = 300.0
    #: A pilot without calls is let go after this long, when there is no demand for it.
    idle_timeout: float = 120.0
    #: Seconds that what runs is given when a pilot is told to end.
    grace: float = 30.0
    #: A pilot stops accepting up to so many seconds early, each by a share of its own, so that pilots that began together do not end
    #: together; negative: as its walltime suggests (`windlass.worker.lifetime`).
    stagger: float = -1.0
    start_cost: float = 60.0
    hold: float = 60.0
    hello_timeout: float = 600.0
    max_start_failures: int = 3
    setup: tuple[str, ...] = ()
    shell: str = "/bin/sh"
    #: The interpreter that pilots run; "": the program's own.
    python: str = ""
    #: An archive with the Python that pilots run, unpacked once per node; "": what is there.
    environment: str = ""
    #: The image in which pilots run: a path, or ``docker://...``; "": they run on the node itself.
    container: str = ""
    #: Further words for ``apptainer exec``.
    container_options: tuple[str, ...] = ()
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

    def offer(self, paused: str = "", *, coming: bool = True, memory: int = 0) -> PoolOffer:
        """What the manager is told of one pilot; ``paused``: why there are no new ones; ``coming``: some are there or may still come;
        ``memory``: as in `found`."""
        listen = self.interface or self.network or (HOST if self.remote else "")
        spent, most = bool(paused) and not coming, self.nodes * self.max_pilots
        has = self.found(memory).resources
        return PoolOffer(self.name, has, self.walltime, paused, self.backend, listen, spent, most, has != self.resources)

    def found(self, memory: int) -> PoolConfig:
        """The same with the memory that its pilots have turned out to have, in bytes; 0: none was seen yet, so what is stated holds."""
        if memory in (0, self.resources.memory):
            return self
        return replace(self, resources=Resources(self.resources.cores, memory, self.resources.gpus))

    def text(self) -> str:
        """The derived plan, in the user's units."""
        each = [show_count(self.resources.cores, "core")]
        each.append(f"{show_memory(self.resources.memory)} of memory" if self.resources.memory else "the memory that is there")
        if self.resources.gpus:
            each.append(show_count(self.resources.gpus, "GPU"))
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
            ("in all", f"at most {show_count(in_all, 'core')}: {show_count(math.floor(in_all), 'call')} of one core at a time"),
            ("each lives", f"at most {show_seconds(self.walltime)}" if self.walltime else "as long as it is needed"),
            ("leaves", f"after {show_seconds(self.idle_timeout)} without calls; what runs is given {show_seconds(self.grace)} at its end"),
            ("pauses", f"after {show_count(self.max_start_failures, 'pilot')} in a row that ended before serving"),
        ]
        if self.max_core_hours:
            rows.insert(4, ("uses", f"at most {show_count(self.max_core_hours, 'core hour')} in a run of the factory"))
        if self.environment:
            rows.append(("python", f"of {self.environment}, unpacked once per node"))
        if self.container:
            fetched = "" if "://" not in self.container else ", which each node fetches unless it has it"
            rows.append(("python", f"{self.python or 'python3'} of the image {self.container}{fetched}"))
        rows += [("setup", line) for line in self.setup]
        return "\n".join(f"{name + ':':<12}{text}" for name, text in rows)


#: Options of every pool, beside the backend's own.
COMMON_OPTIONS: Final = frozenset(field.name for field in fields(PoolConfig)) - {"name", "backend", "resources", "remote", "options"} | {
    "cores",
    "memory",
    "gpus",
    "pool",
    "max_cores",
    "max_calls",
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
    cores, nodes = values.cores(given, default, _most_of(given, default)), values.whole(given, "nodes", 1, least=1)
    max_pilots = _max_pilots(given, default, cores * nodes)
    min_pilots = values.whole(given, "min_pilots", 0, least=0)
    if min_pilots > max_pilots:
        raise UsageError(f"min_pilots={min_pilots} is more than max_pilots={max_pilots}; at most as many can be kept as are allowed")
    walltime = values.seconds(given, "walltime", default.walltime)
    if 0 < walltime < WALLTIME_LEAST:
        raise UsageError(
            f"walltime={show_seconds(walltime)} leaves no time to run anything, as a pilot ends its work before it ends;"
            f" write at least walltime={show_seconds(WALLTIME_LEAST)!r}"
        )
    grace = values.seconds(given, "grace", min(30.0, walltime / 4) if walltime else 30.0)
    if walltime and grace >= walltime:
        raise UsageError(
            f"grace={show_seconds(grace)} leaves nothing of walltime={show_seconds(walltime)}; give a shorter grace or a longer walltime"
        )
    core_hours = values.number(given, "max_core_hours", 0.0)
    if core_hours and core_hours * 3600 < LEAST_SECONDS * cores * nodes:
        raise UsageError(
            f"max_core_hours={core_hours:g} is less than a minute of one pilot with {show_count(cores * nodes, 'core')};"
            " give it more, or smaller pilots"
        )
    if given.get("environment") and given.get("python"):
        raise UsageError(
            f"environment={given['environment']!r} and python={given['python']!r} both say which Python pilots run; give one of them"
        )
    _check_container(given, own)
    pool = given.get("pool", name)
    if not isinstance(pool, str) or not NAME.match(pool):
        raise UsageError(f"{pool!r} is no name for a pool; use up to 64 letters, digits, '_', '-' and '.', for example 'short-jobs'")
    return PoolConfig(
        name=PoolName(pool),
        backend=backend,
        resources=Resources(cores, values.memory(given, default.memory), values.whole(given, "gpus", 0, least=0)),
        nodes=nodes,
        walltime=walltime,
        max_pilots=max_pilots,
        min_pilots=min_pilots,
        max_queued=values.whole(given, "max_queued", default.max_queued, least=1),
        max_core_hours=core_hours,
        patience=values.seconds(given, "patience", 300.0),
        stagger=values.seconds(given, "stagger", -1.0),
        idle_timeout=values.seconds(given, "idle_timeout", default.idle_timeout),
        grace=grace,
        start_cost=values.seconds(given, "start_cost", default.start_cost),
        hold=values.seconds(given, "hold", default.hold),
        hello_timeout=values.seconds(given, "hello_timeout", default.hello_timeout),
        max_start_failures=values.whole(given, "max_start_failures", 3, least=1),
        setup=values.lines(given.get("setup", ())),
        shell=values.shell(given),
        python=values.text(given, "python", "/opt/python/bin/python3"),
        environment=values.text(given, "environment", "environment.tar.gz"),
        container=values.text(given, "container", "image.sif"),
        container_options=values.words(given, "container_options"),
        scratch=values.text(given, "scratch", "/scratch"),
        log_level=values.log_level(given.get("log_level", "")),
        interface=values.text(given, "interface", "ib0"),
        network=values.network(given),
        remote=default.remote,
        env=values.pairs(given.get("env", ())),
        options={option: value for option, value in given.items() if option in own},
    )


def _check_container(given: Mapping[str, object], own: frozenset[str]) -> None:
    """Refuse what cannot be said beside an image."""
    container = values.text(given, "container", "image.sif")
    if not container:
        if given.get("container_options"):
            raise UsageError(f"container_options={given['container_options']!r} without an image; give container= as well")
        return
    environment = values.text(given, "environment", "environment.tar.gz")
    if environment:
        raise UsageError(f"container={container!r} and environment={environment!r} both bring the Python that pilots run; give one of them")
    if "container_image" in own:  # HTCondor starts images by itself
        if given.get("container_image"):
            raise UsageError(
                f"container={container!r} and container_image={given['container_image']!r} both say in which image pilots run;"
                " give container= alone, which is the same for every batch system"
            )
        if given.get("container_options"):
            raise UsageError(
                f"container_options={given['container_options']!r} are for apptainer exec, and HTCondor starts images by itself;"
                " leave them out, extra_directives= has its own"
            )
    if str(container).startswith("instance://"):
        raise UsageError(f"container={container!r} is a running instance, which no other node has; give the image that it was made from")


def _most_of(given: Mapping[str, object], default: PoolDefaults) -> int:
    """Pilots at a time, as ``max_pilots`` says it."""
    return values.whole(given, "max_pilots", default.max_pilots, least=1)


def _max_pilots(given: Mapping[str, object], default: PoolDefaults, width: float) -> int:
    """Pilots at a time, whose ``width`` is the cores of one, by whichever of the limits is the smallest."""
    limits = [_most_of(given, default)] if "max_pilots" in given else []
    for option in ("max_cores", "max_calls"):
        if option in given:
            limit = values.whole(given, option, 0, least=1)
            if limit < width:
                raise UsageError(
                    f"{option}={limit} is less than one pilot has, {show_count(width, 'core')}; give it more, or smaller pilots"
                )
            limits.append(int(limit // width))
    return min(limits, default=default.max_pilots)


def how_to_resume(pool: str) -> str:
    """What to do about a pool that is paused."""
    return f"when that is mended: windlass factory resume {pool}"
