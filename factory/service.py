"""What the command line does with factories: check, show, and run them.

Theory of operation: a command line names pools and options; here they become a factory, or the text of what it would submit.  `run` takes
the signals of a terminal, and ends with the manager.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import math
import shlex
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

from windlass.errors import UsageError
from windlass.factory.backend import Backend, backend_class, backend_options, known_backends
from windlass.factory.config import Configuration, backend_source
from windlass.factory.factory import Factory, configuration_of, make_backends, make_pools, of_pools
from windlass.factory.keeper import log
from windlass.factory.launch import request_of
from windlass.factory.lives import left_behind, steady_name
from windlass.factory.pool import COMMON_OPTIONS, PoolConfig
from windlass.signals import Unbuffered, ending_signals, hearing_signals
from windlass.units import show_memory, show_seconds

T = TypeVar("T")


def pools_meant(words: Sequence[str], options: Mapping[str, object]) -> list[str]:
    """The pools that a command line names; without any those of ``[factory] pools`` of the configuration. Raises `UsageError`."""
    if words:
        return list(words)
    configuration = configuration_of(options)
    meant = cast("list[str]", configuration.factory.get("pools", []))
    if not meant:
        known = ", ".join([*configuration.pools, *known_backends()])
        raise UsageError(f"say which pool or backend: {known}; or name pools in the configuration as [factory] pools = [...]")
    return meant


def named(words: Sequence[str], options: Mapping[str, object]) -> dict[str, object]:
    """The options, with the name that ``[factory]`` gives where the command line names no pools: then it is that factory that is meant."""
    name = None if words else configuration_of(options).factory.get("name")
    return {**({} if name is None else {"name": name}), **options}


def check(words: Sequence[str], options: Mapping[str, object]) -> None:
    """Raises what `run` would raise for pools and options that cannot be."""
    for backend, _ in make_backends(words, options):
        backend.close()


def dry_run(words: Sequence[str], options: Mapping[str, object], connection: Path = Path("MANAGER/pilot.json")) -> str:
    """What a factory would submit with these options, and the plan that follows from them; nothing is done."""
    pools = make_backends(words, {"name": "FACTORY", **options})
    return "\n\n".join(_dry_run(backend, pool, connection) for backend, pool in pools)


def _dry_run(backend: Backend, pool: PoolConfig, connection: Path) -> str:
    try:
        request = replace(request_of(pool, connection), ticket="TICKET")
        return f"{pool.text()}\n\n{backend.describe(request, min(pool.max_pilots, pool.max_queued))}"
    finally:
        backend.close()


@contextlib.contextmanager
def _ending_signals_go_to(handler_of: Callable[[int], Callable[[int, FrameType | None], None]]) -> Generator[None]:
    """While the block lasts each signal that asks for the end goes to the handler that this gives for it."""
    before = {number: signal.signal(number, handler_of(number)) for number in ending_signals()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def unless_interrupted(wait: Callable[[], T]) -> T | None:
    """What ``wait()`` gives, for which a factory waits before it begins; None when somebody ends it meanwhile, as `run` is ended."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _ending_signals_go_to(lambda number: interrupted):
        try:
            return wait()
        except KeyboardInterrupt:
            Unbuffered(2).write("windlass factory: interrupted while it waited for its manager; nothing had begun\n")
            return None


def run(connection: str, words: Sequence[str], options: Mapping[str, object]) -> int:
    """Run a factory until its manager ends (0) or is lost (1), or somebody interrupts: once cancels and drains, twice ends all (0).

    When its terminal is closed it cancels and drains too, but nobody has asked for haste: what runs has as long as it takes. One such end
    brings several SIGHUPs, and SIGTERM from some systems, so none of them counts as an interrupt. Where SIGHUP is ignored, as nohup does,
    it goes on.

    Without a name it keeps the one that it makes up: if it is killed, and started again with the same pools and options, that life takes
    over its pilots.

    Must be called by the main thread, as it takes SIGINT, SIGTERM and SIGHUP.
    """
    given: dict[str, Any] = dict(options)
    if given.get("name") is not None:
        return _serve(Factory(connection, list(words), **given))
    folder, told = Path(connection).parent, Unbuffered(2)
    with steady_name(folder, words[0], dry_run(words, options, folder / "pilot.json")) as life:
        if life.goes_on:
            told.write(f"windlass factory: goes on as {life.name}, which did not end in order, and takes over its pilots\n")
        for name in left_behind(folder):
            text = f"{name}, which was to submit something else, did not end in order: its pilots go on; --name {name} takes them over"
            told.write(f"windlass factory: {text}\n")
        given["name"] = life.name
        try:
            factory = Factory(connection, list(words), **given)
            status = _serve(factory)
        except UsageError:
            if not life.goes_on:  # nothing has begun
                life.end()
            raise
        if factory.left_some:
            text = "the batch system did not answer at the end: pilots may be left, and the same command takes them over"
            told.write(f"windlass factory: {text}\n")
        elif status == 0:
            life.end()
        return status


def _serve(factory: Factory) -> int:
    told = Unbuffered(2)
    print("\n\n".join(pool.text() for pool in factory.pools), file=told)
    handler = logging.StreamHandler(told)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    interrupts = 0

    def interrupted(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        factory.begin_close(None if interrupts == 1 else 0.0)
        text = "removing queued pilots, draining the others; again to end all now" if interrupts == 1 else "ending all pilots"
        told.write(f"windlass factory: {text}\n")

    def hung_up(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # those that follow say nothing new
        factory.begin_close(math.inf)
        told.write("windlass factory: its terminal was closed: removing queued pilots, the others go when what they run has ended\n")

    try:
        with _ending_signals_go_to(lambda number: hung_up if number == signal.SIGHUP else interrupted):
            factory.start()
            hearing_signals(factory.wait)
            factory.close()
    finally:
        log.removeHandler(handler)
    if factory.lost:
        told.write(f"windlass factory: {factory.lost}\n")
    return 1 if factory.lost else 0


# ---------------------------------------------------------------- where options come from


def show(words: Sequence[str], options: Mapping[str, object], *, as_json: bool = False) -> str:
    """Every option of these pools (without words: of all configured ones) with its value and where it comes from. Raises as `check`."""
    configuration = configuration_of(options)
    given = of_pools(options)
    pools = {word: _options(word, given, configuration) for word in words or configuration.pools or known_backends()}
    files = list(configuration.files)
    if as_json:
        return json.dumps({"files": files, "pools": pools}, default=str)
    lines = [f"configuration: {', '.join(files) or 'no file; see: windlass explain pools'}"]
    for word, rows in pools.items():
        lines += ["", f"pool {word}:"]
        width = max(len(str(row["value"])) for row in rows)
        lines += [f"  {row['option']:<20} {row['value']!s:<{min(width, 40)}}  {row['origin']}" for row in rows]
    return "\n".join(lines)


def _options(word: str, given: Mapping[str, object], configuration: Configuration) -> list[dict[str, object]]:
    spec = configuration.spec(word, given, "command line")
    made_by = backend_class(spec.backend)
    own = backend_options(made_by)
    backend, pool = make_pools(word, given, "FACTORY", configuration)[1][0]
    backend.close()
    named_by = backend_source(configuration.tables.get(f"pools.{word}", ()))
    rows: list[dict[str, object]] = [_row("backend", spec.backend, "command line" if named_by is None else str(named_by))]
    defaults = {name: parameter.default for name, parameter in inspect.signature(made_by).parameters.items()}
    for option in sorted(COMMON_OPTIONS | own):
        by_backend = option in own or hasattr(made_by.defaults, option)
        origin = spec.origins.get(option) or (f"default of {spec.backend}" if by_backend else "default")
        if option == "max_pilots" and option not in spec.origins and {"max_cores", "max_calls"} & spec.origins.keys():
            origin = f"from {' and '.join(sorted({'max_cores', 'max_calls'} & spec.origins.keys()))}"
        if option in own:
            value = spec.options.get(option, defaults.get(option))
        elif option in ("max_cores", "max_calls"):
            value = spec.options.get(option, "")
        else:
            value = _shown(option, pool)
        rows.append(_row(option, value, origin))
    return rows


def _row(option: str, value: object, origin: str) -> dict[str, object]:
    return {"option": option, "value": value, "origin": origin}


def _shown(option: str, pool: PoolConfig) -> object:
    """A pool's value as people write it."""
    value: Any = getattr(pool.resources if option in ("cores", "memory", "gpus") else pool, "name" if option == "pool" else option)
    if option == "memory":
        return show_memory(value) if value else "all that is there"
    if option == "stagger" and value < 0:
        return "by the walltime"
    if option in SECONDS:
        return "unlimited" if option == "walltime" and not value else show_seconds(value)
    if option == "env":
        return " ".join(f"{name}={text}" for name, text in value)
    if option == "container_options":
        return shlex.join(value)
    if option == "setup":
        return "; ".join(value)
    return f"{value:g}" if isinstance(value, float) else value


#: Options of `PoolConfig` that are lengths of time.
SECONDS: frozenset[str] = frozenset({"walltime", "idle_timeout", "grace", "start_cost", "hold", "hello_timeout", "patience", "stagger"})
