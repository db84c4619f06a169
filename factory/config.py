"""Pools by name: the configuration files, what they say of a pool, and where each option comes from.

Theory of operation
-------------------
A configuration is TOML with three kinds of tables; an option in it is written as in Python::

    [defaults]            # of every pool
    setup = ["module load python/3.11"]

    [backends.slurm]      # of every pool of this backend
    account = "physics"

    [pools.short]         # one pool: what Factory(manager, "short") and `windlass factory run short` mean
    backend = "slurm"
    walltime = "2h"
    cores = 8

Up to three files are read: the site's, the user's, and the one in the current folder (or the one named instead of it).  Of two that say the
same, the later one holds; a pool's table holds over its backend's, that over ``[defaults]``, and an option that is given in the
program or on the command line over all.  ``env`` is put together from all of them.  Where a later file gives a pool another backend, what
only the earlier one has is left out.

No option is declared here: which there are is told by `windlass.factory.pool` and by the backends, and an unknown one is refused with
the near names and the file that has it.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from windlass.errors import UnknownName, UsageError
from windlass.factory.backend import BACKENDS, backend_class, backend_options, known_backends
from windlass.factory.pool import COMMON_OPTIONS, NAME

FILE: Final = "windlass.toml"
SITE: Final = Path("/etc/windlass") / FILE
#: Names a file to read instead of the one in the current folder.
VARIABLE: Final = "WINDLASS_CONFIG"
#: The origin of what no file says.
GIVEN: Final = "given here"
TABLES: Final = ("factory", "defaults", "backends", "pools")
#: What ``[factory]`` may hold: the pools of ``windlass factory run`` without names, and the factory's name.
FACTORY_KEYS: Final = ("pools", "name")

Table = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Source:
    """A table of a file, for texts: ``windlass.toml [pools.short]``."""

    file: str
    table: str
    options: Table

    def __str__(self) -> str:
        return f"{self.file} [{self.table}]"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a word means: a backend, the options, and where each comes from."""

    #: The pool's own name; "": the word is a backend's, and whoever makes the pool names it.
    name: str
    backend: str
    options: Mapping[str, object]
    origins: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the files say, checked for unknown names."""

    files: tuple[str, ...] = ()
    #: By table name, in the order of the files.
    tables: Mapping[str, tuple[Source, ...]] = field(default_factory=dict[str, tuple[Source, ...]])
    #: What ``[factory]`` says.
    factory: Table = field(default_factory=dict[str, object])

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the configured pools, in the order of the files."""
        return tuple(name.removeprefix("pools.") for name in self.tables if name.startswith("pools."))

    def spec(self, word: str, given: Mapping[str, object], origin: str = GIVEN) -> PoolSpec:
        """What ``word``, a configured pool or a backend, means with these options.

        Raises:
            UnknownName: it is neither; the text has the near names.
        """
        pool = self.tables.get(f"pools.{word}", ())
        if not pool and word not in known_backends():
            raise UnknownName("pool or batch backend", word, (*self.pools, *known_backends()), _left_out(word))
        said_by = backend_source(pool)
        backend = word if said_by is None else str(said_by.options["backend"])
        known = options_of(backend)
        options: dict[str, object] = {}
        origins: dict[str, str] = {}
        layers = [*self.tables.get("defaults", ()), *self.tables.get(f"backends.{backend}", ()), *pool]
        for source in layers:
            _lay(options, origins, {key: value for key, value in source.options.items() if key in known}, str(source))
        _lay(options, origins, {key: value for key, value in given.items() if value is not None}, origin)
        return PoolSpec(word if pool else "", backend, options, origins)


def _left_out(name: str) -> str:
    """What to add to the word that there is no backend of this name: that the program was packed without it."""
    if name not in BACKENDS or not getattr(sys, "frozen", False):
        return ""
    return (
        "(this is a frozen program, as PyInstaller makes them: modules of Windlass are missing in it, and the source as which functions and"
        " modules travel; start it by a Python, or pack it with zipapp, shiv or PEX: windlass explain environments)"
    )


def backend_source(sources: Iterable[Source]) -> Source | None:
    """Which of a pool's tables says its backend, the later one of two; None: none does."""
    said = [source for source in sources if "backend" in source.options]
    return said[-1] if said else None


def options_of(backend: str) -> frozenset[str]:
    """The options of a pool of this backend; "": those of every pool."""
    return COMMON_OPTIONS | (backend_options(backend_class(backend)) if backend else frozenset[str]())


def _lay(options: dict[str, object], origins: dict[str, str], more: Table, origin: str) -> None:
    for key, value in more.items():
        before = options.get(key)
        if key == "env" and isinstance(before, Mapping) and isinstance(value, Mapping):
            both = {**cast("Mapping[str, object]", before), **cast("Mapping[str, object]", value)}
            options[key], origins[key] = both, f"{origins[key]}, {origin}"
        else:
            options[key], origins[key] = value, origin


def configuration_files(named: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> list[Path]:
    """The files to read, the most general first. ``named`` must be there. Raises `UsageError`."""
    user = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or "/") / ".config") / "windlass" / FILE
    chosen = named if named is not None else environ.get(VARIABLE) or None
    if chosen is not None and not isinstance(chosen, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"config={chosen!r}: give the path of a configuration file, see: windlass explain pools")
    if chosen is not None and not Path(chosen).is_file():
        told = f", which is named by {VARIABLE}" if named is None else ""
        raise UsageError(f"there is no configuration {os.fspath(chosen)!r}{told}; write one, see: windlass explain pools")
    candidates = [SITE, user, Path(chosen) if chosen is not None else Path(FILE)]
    return [path for path in candidates if path.is_file()]


def read_configuration(named: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Configuration:
    """The configuration as it is now; ``named``: a file instead of the one in the current folder.

    Raises:
        UsageError: a file cannot be read, or a table cannot be.
        UnknownName: an unknown table, backend or option; the text has the file and the near names.
    """
    files = configuration_files(named, os.environ if environ is None else environ)
    tables: dict[str, tuple[Source, ...]] = {}
    factory: dict[str, object] = {}
    for path in files:
        for source in _sources(path):
            if source.table == "factory":
                factory |= _factory_table(source)
            else:
                tables[source.table] = (*tables.get(source.table, ()), source)
    configuration = Configuration(tuple(map(str, files)), tables, factory)
    _check(configuration)
    return configuration


def _sources(path: Path) -> Iterable[Source]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except UnicodeDecodeError as error:
        raise UsageError(f"configuration {path}: it is no text (UTF-8), by its byte {error.start}; see: windlass explain pools") from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        hint = (
            "; texts stand in quotes, lists in brackets, see: windlass explain pools" if isinstance(error, tomllib.TOMLDecodeError) else ""
        )
        raise UsageError(f"configuration {path}: {getattr(error, 'strerror', None) or error}{hint}") from None
    for name, table in content.items():
        if name not in TABLES:
            raise UnknownName("table", name, TABLES, within=f"in {path}")
        if name in ("factory", "defaults"):
            yield Source(str(path), name, _table(path, name, table))
        else:
            for inner, options in _table(path, name, table).items():
                yield Source(str(path), f"{name}.{inner}", _table(path, f"{name}.{inner}", options))


def _table(path: Path, name: str, value: object) -> Table:
    if not isinstance(value, dict):
        raise UsageError(f"configuration {path}: {name} = {value!r} is no table; write [{name}] and the options below it")
    return cast("dict[str, object]", value)


def _factory_table(source: Source) -> Table:
    for key in source.options:
        if key not in FACTORY_KEYS:
            raise UnknownName("key", key, FACTORY_KEYS, within=f"in {source}")
    pools = source.options.get("pools", [])
    if not isinstance(pools, list) or not all(isinstance(one, str) for one in cast("list[object]", pools)):
        raise UsageError(f"{source}: pools = {pools!r} is no list of names; write for example pools = ['short', 'gpu']")
    return source.options


def _check(configuration: Configuration) -> None:
    """Refuse what no pool could mean, at once and with the file's name, also in pools that are not used."""
    for table, sources in configuration.tables.items():
        for source, backend in _with_backends(table, sources):
            known = options_of(backend)
            for option in source.options:
                if option not in known and not (table.startswith("pools.") and option == "backend"):
                    what = f"option of a {backend} pool" if backend else "option of every pool"
                    raise UnknownName(what, option, known, within=f"in {source}")
                if option == "env" and not isinstance(source.options[option], Mapping):
                    raise UsageError(f"{source}: env = {source.options[option]!r} is no table; write for example env = {{NAME = 'value'}}")


def _with_backends(table: str, sources: Sequence[Source]) -> Sequence[tuple[Source, str]]:
    """The files' tables of one name, each with the backend that it is about; "": every one."""
    kind, _, name = table.partition(".")
    backends = known_backends()
    if kind != "pools":
        if kind == "backends" and name not in backends:
            raise UnknownName("batch backend", name, backends, _left_out(name), within=f"in {sources[0].file}")
        return [(source, name) for source in sources]
    _check_pool_name(sources[0], name, backends)
    said = [source for source in sources if "backend" in source.options]
    if not said:
        raise UsageError(f"{sources[0]} does not say which backend; write for example backend = 'slurm'")
    for source in said:
        if (backend := str(source.options["backend"])) not in backends:
            raise UnknownName("batch backend", backend, backends, _left_out(backend), within=f"in {source}")
    # A table that says none goes with the file before it, the first one with the file after it.
    about = str(said[0].options["backend"])
    return [(source, about := str(source.options.get("backend", about))) for source in sources]


def _check_pool_name(source: Source, name: str, backends: Iterable[str]) -> None:
    if name in backends:
        raise UsageError(f"{source}: {name} is a backend, and so no name for a pool; for all pools of it write [backends.{name}]")
    if not NAME.match(name):
        raise UsageError(f"{source}: {name!r} is no name for a pool; use up to 64 letters, digits, '_', '-' and '.'")
