"""The factory: keeps as many pilots in batch systems as the manager could use. What a program holds.

Theory of operation
-------------------
A factory has one or more *pools*, each with a backend and a core.  Pools of one batch system are kept by one thread
(`windlass.factory.keeper`); what the pools promise each other, in the order in which they were named, is in the `Ledger`.  This module
makes pools of what the program says and what the configuration files say, opens backends and ports, and closes them in the right order.

Closing cancels what waits in the queue, asks the manager to drain what serves, and ends the rest when the time given is over.  A
program that ends without closing its factory closes it on the way out; one that is killed cannot, and then pilots leave by
themselves, as their manager is gone."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Protocol, Self, cast, runtime_checkable

from windlass import bygone, unstarted
from windlass.descriptors import occupy_standard
from windlass.errors import UnknownName, UsageError, stays_here
from windlass.factory.backend import (
    Backend,
    SharedBatch,
    Tag,
    Tickets,
    backend_class,
    backend_options,
    known_backends,
)
from windlass.factory.config import GIVEN, Configuration, read_configuration
from windlass.factory.container import image_of
from windlass.factory.core import FactoryCore
from windlass.factory.keeper import HURRY, Anew, Change, Close, Cut, Keeper, Kept, Lost, Port, Refused, Replan, Resume, Wake, by_site
from windlass.factory.launch import request_of
from windlass.factory.ledger import Ledger
from windlass.factory.lives import made_up
from windlass.factory.pilots import Fleet
from windlass.factory.pool import NAME, PoolConfig, make_pool
from windlass.importing import refuse_on_import
from windlass.leaving import LeavesInThread
from windlass.messages import Message, PoolName

#: Seconds that closing may take beyond the time given: the last command, and SIGKILL for what does not listen.
CLOSE_SLACK: Final = 30.0


class ManagerLike(Protocol):
    """What a factory needs of a manager in the same process."""

    def open_port(
        self,
        role: str,
        name: str,
        on_message: Callable[[Message], None],
        on_cut: Callable[[str], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> Port: ...

    @property
    def pilot_file(self) -> Path: ...


class Pool:
    """One pool for a factory of several: a backend or the name of a configured pool, and options as `Factory` takes them."""

    def __init__(self, backend: str | Backend = "local", **options: object) -> None:
        self.backend, self.options = backend, options

    def __repr__(self) -> str:
        words = [repr(self.backend), *(f"{name}={value!r}" for name, value in self.options.items())]
        return f"Pool({', '.join(words)})"

    def _repr_html_(self) -> str:
        from windlass.notebook import card

        backend = self.backend if isinstance(self.backend, str) else type(self.backend).__name__
        return card(f"pool of {backend}", "", [(name, repr(value)) for name, value in self.options.items()])


PoolWord = str | Backend | Pool

StandIn = Callable[[ManagerLike | str | os.PathLike[str], Path, Backend, PoolConfig], tuple[Backend, PoolConfig]]

#: What gives each pool of a factory that is made another batch system, for the tests of users (`windlass.testing`): it is told the manager,
#: its pilot file, backend and pool. None: nothing does.
stand_in: StandIn | None = None


@runtime_checkable
class KnowsFactories(Protocol):
    """A manager whose next life is to find the pilots of this one."""

    def factory_name(self) -> str | None:
        """The name of the next factory of its program, as in its earlier life; None: any will do."""
        ...


class Factory(LeavesInThread):
    """Keeps pilots running for a manager; a context manager.

    Args:
        manager: a `windlass.Manager` of this process, or the name or connection file of one elsewhere.
        backend: ``"local"``, ``"fake"``, ``"slurm"``, ``"htcondor"``, the name of a configured pool (docs/pools.md), a `Pool`, a `Backend`
            object, or a list of these. Of several pools the first that fits gets a call's pilots, then the next. The options below
            hold for each of them.
        max_pilots, min_pilots: how many pilots at a time, at most and at least; ``max_cores``, ``max_calls``: the same in other units.
        cores, memory, gpus: of one pilot (of each of its nodes). Memory as ``"4GB"`` or bytes.
        walltime, idle_timeout, grace: seconds, or as people write them (``"2h"``).
        setup: shell lines that run before the worker.
        environment: an archive with the Python that pilots run, made by `windlass.environment.pack`, ``windlass environment pack`` or
            conda-pack; each node unpacks it once (docs/environments.md).
        container: an image in which pilots run: a ``.sif`` file, a sandbox folder, or ``"docker://..."`` (docs/containers.md).
        name: of the factory; pilots carry it in the batch system, so a factory that takes the name of an earlier one takes over its pilots.
        pool: name of the pool; the configured one's or the factory's, unless given.
        folder: where scripts and logs of pilots go, in a folder of the factory's name; below the manager's folder, unless given.
        config: a configuration file to read instead of the one in the current folder.
        options: further options of every pool (`windlass.factory.pool.COMMON_OPTIONS`) and the backend's own.

    Raises:
        UnknownName: no such backend, pool, manager or option; the text has near names.
        UsageError: an option's value cannot be.
    """

    def __init__(
        self,
        manager: ManagerLike | str | os.PathLike[str],
        backend: PoolWord | Sequence[PoolWord] = "local",
        *,
        max_pilots: int | None = None,
        min_pilots: int | None = None,
        cores: float | None = None,
        memory: str | int | float | None = None,
        gpus: int | None = None,
        walltime: str | int | float | None = None,
        idle_timeout: str | int | float | None = None,
        grace: str | int | float | None = None,
        setup: str | tuple[str, ...] | list[str] | None = None,
        environment: str | os.PathLike[str] | None = None,
        container: str | os.PathLike[str] | None = None,
        name: str | None = None,
        pool: str | None = None,
        folder: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
        **options: object,
    ) -> None:
        refuse_on_import("a Factory")
        occupy_standard()
        common: dict[str, object] = {
            "max_pilots": max_pilots,
            "min_pilots": min_pilots,
            "cores": cores,
            "memory": memory,
            "gpus": gpus,
            "walltime": walltime,
            "idle_timeout": idle_timeout,
            "grace": grace,
            "setup": setup,
            "environment": environment,
            "container": container,
            "pool": pool,
            **options,
        }
        if name is None and isinstance(manager, KnowsFactories):
            name = manager.factory_name()
        self.name, made = make_pools(backend, common, name, read_configuration(config))
        held = manager if not isinstance(manager, str | os.PathLike) else None
        #: The manager, where it is an object of this process.
        self._manager: Callable[[], ManagerLike | None] = lambda: held
        if not isinstance(manager, str | os.PathLike) and not hasattr(manager, "pilot_file"):
            raise UsageError(f"Factory({manager!r}, ...): the first argument is a Manager, or the name of one that runs elsewhere")
        self._pilot_file = held.pilot_file if held is not None else _pilot_file(manager)  # type: ignore[arg-type]
        if stand_in is not None:
            made = [stand_in(manager, self._pilot_file, one, pool) for one, pool in made]
        self._kept = [self._keep(index, one, pool, several=len(made) > 1) for index, (one, pool) in enumerate(made)]
        self._folders = [self._folder_of(kept, folder) for kept in self._kept]
        self._ledger = Ledger([kept.core.pool for kept in self._kept], self._replan)
        self._keepers = [Keeper(self.name, kept, self._ledger, self._ended) for kept in by_site(self._kept)]
        self._started = False
        self._limits = threading.Lock()
        #: The process whose threads they are.
        self._pid = 0
        unstarted.note(self._pilot_file.parent.name, self.name)

    def _keep(self, index: int, backend: Backend, pool: PoolConfig, *, several: bool) -> Kept:
        name = f"{self.name}.{pool.name}" if several else self.name
        core = FactoryCore(
            pool=pool,
            request=request_of(pool, self._pilot_file),
            limits=backend.limits,
            query_interval=backend.query_interval,
            max_batch=backend.max_batch,
            tickets=Tickets(f"{name}-{secrets.token_hex(2)}"),
            fleet=Fleet(unlisted=backend.defaults.unlisted),
            epoch=time.time() - time.monotonic(),
        )
        return Kept(name, index, core, backend)

    def _folder_of(self, kept: Kept, folder: str | os.PathLike[str] | None) -> Path:
        # One for each factory and pool: what one of them tidies up is its own.
        if folder is not None and not isinstance(folder, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"folder={folder!r}: give the path of a folder for scripts and logs of pilots")
        return (self._pilot_file.parent / "pilots" if folder is None else Path(folder)) / kept.name

    def _replan(self, index: int) -> None:
        self._kept[index].put(Replan())

    @property
    def pools(self) -> tuple[PoolConfig, ...]:
        """The pools, with defaults filled in, in the order in which they were named."""
        return tuple(kept.core.pool for kept in self._kept)

    @property
    def pool(self) -> PoolConfig:
        """The first pool; most factories have one."""
        return self._kept[0].core.pool

    @property
    def backend(self) -> Backend:
        """The first pool's backend."""
        return self._kept[0].backend

    # ---------------------------------------------------------------- life

    def __reduce__(self) -> NoReturn:
        raise stays_here("a factory")

    def __enter__(self) -> Self:
        return self.start()

    def _hurry(self) -> None:
        self.begin_close(0.0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            # Whoever presses Ctrl-C wants to leave now.
            self.close(min(HURRY, self._grace) if issubclass(kind, Exception) else 0.0)

    @property
    def _grace(self) -> float:
        return max(pool.grace for pool in self.pools)

    def start(self) -> Self:
        """Begin; done by ``with``. Idempotent. Returns the factory, as in ``factory = Factory(manager).start()``."""
        if self._started:
            return self
        opened: list[Kept] = []
        try:
            for kept, folder in zip(self._kept, self._folders, strict=True):
                with contextlib.suppress(OSError):  # also where its pilots' folder is elsewhere: by this it is known whose they are
                    os.makedirs(self._pilot_file.parent / "pilots" / kept.name, mode=0o700, exist_ok=True)
                    if isinstance(kept.backend, SharedBatch):
                        bygone.expect(self._pilot_file.parent)
                kept.backend.open(Tag(kept.name, self._pilot_file.parent.name), folder, _waker(kept))
                opened.append(kept)
                kept.port = self._open_port(kept)
        except BaseException:
            for kept in opened:
                if kept.port is not None:
                    kept.port.close()
                kept.backend.close()
            raise
        for keeper in self._keepers:
            keeper.start()
        self._started = True
        unstarted.forget(self._pilot_file.parent.name)
        self._pid = os.getpid()
        atexit.register(self._at_exit)
        return self

    def _open_port(self, kept: Kept) -> Port:
        def cut(reason: str) -> None:
            kept.put(Cut(reason))

        def refused(text: str) -> None:
            kept.put(Refused(text))

        manager = self._manager()
        if manager is not None:
            return manager.open_port("factory", kept.name, kept.put, cut, refused)
        from windlass import identity, transport

        connection = identity.read_connection_file(self._pilot_file.with_name("client.json"))
        return transport.open_port(
            connection,
            "factory",
            kept.name,
            kept.put,
            lambda reason: kept.put(Lost(str(reason))),
            on_cut=cut,
            on_anew=lambda: kept.put(Anew()),
            on_refused=refused,
        )

    def close(self, seconds: float | None = None) -> None:
        """End all pilots: queued ones now, others when what they run has ended or ``seconds`` (default: the pool's grace) are over.

        With ``math.inf`` for ``seconds`` what runs has as long as it takes. While the manager is out of reach nobody can ask pilots to
        finish: then the batch system ends those that serve, a grace before the time is over.
        """
        if seconds is not None and not (isinstance(seconds, int | float) and seconds >= 0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"close({seconds!r}): give seconds that calls which run are given, or None for the pool's grace")
        if not self._started or os.getpid() != self._pid:  # a process that the program forked ends nothing of its parent's
            return
        self.begin_close(seconds)
        end = time.monotonic() + (self._grace if seconds is None else seconds) + self._grace + CLOSE_SLACK
        try:
            for keeper in self._keepers:
                keeper.join(max(0.0, end - time.monotonic()))
        except KeyboardInterrupt:
            self.begin_close(0.0)
            end = time.monotonic() + CLOSE_SLACK
            for keeper in self._keepers:
                keeper.join(max(0.0, end - time.monotonic()))
            raise
        finally:
            atexit.unregister(self._at_exit)

    def begin_close(self, seconds: float | None = None) -> None:
        """As `close`, without waiting; may be called from a signal handler, and again with fewer seconds."""
        for kept in self._kept:
            kept.put(Close(seconds))

    def let_go(self) -> None:
        """Nobody has it any more. It ends with its manager, which from now on it does not keep. Takes no lock: for finalisers."""
        manager = self._manager()
        if manager is not None:
            self._manager = weakref.ref(manager)

    def _ended(self) -> None:
        """A keeper has. On its thread."""
        if self.wait(0.0):
            atexit.unregister(self._at_exit)  # which would keep all that it has until the program's end

    def _at_exit(self) -> None:
        # A program that ends collects nothing more: its manager sends the workers away, whatever they run.
        if os.getpid() != self._pid:
            return
        seconds = min(HURRY, self._grace)
        self.begin_close(seconds)  # first: its manager may take its time, and what is in the queue stays there when this process is killed
        leave = getattr(self._manager(), "close", None)
        if leave is not None:
            leave()
        self.close(seconds)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the factory has ended (its manager did, or somebody called `close`); False: not within ``timeout`` seconds."""
        end = time.monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)
        return all(keeper.done.wait(min(threading.TIMEOUT_MAX, max(0.0, end - time.monotonic()))) for keeper in self._keepers)

    # ---------------------------------------------------------------- for the user

    def __repr__(self) -> str:
        pools = [f"{name} ({backend}): {pilots or 'no pilots'}{paused and ', paused'}" for name, backend, pilots, paused in self._lines()]
        return f"<Factory {self.name!r}, {self._state()}, {'; '.join(pools)}>"

    def _state(self) -> str:
        if not self._started:
            return "not started"
        return "closed" if all(keeper.done.is_set() for keeper in self._keepers) else "running"

    def _lines(self) -> list[tuple[str, str, str, str]]:
        """Of each pool its name, backend, pilots by phase, and why it is paused."""
        lines: list[tuple[str, str, str, str]] = []
        for kept in self._kept:
            pilots = ", ".join(f"{number} {phase.value}" for phase, number in kept.core.fleet.counts().items() if number)
            lines.append((kept.core.pool.name, kept.core.pool.backend, pilots, kept.core.history.paused))
        return lines

    def _repr_html_(self) -> str:
        from windlass.notebook import Rows, card

        rows = [(*line[:2], line[2] or "none", pool.max_pilots) for line, pool in zip(self._lines(), self.pools, strict=True)]
        return card(f"Factory {self.name}", self._state(), [], [Rows(("pool", "backend", "pilots", "at most"), rows)], self.paused)

    @property
    def left_some(self) -> bool:
        """It has ended, and pilots of it may be in the batch system, which did not answer at the end."""
        return any(kept.core.left_some for kept in self._kept)

    @property
    def lost(self) -> str:
        """Why the factory ended otherwise than by closing; "": it did not."""
        return next((kept.lost for kept in self._kept if kept.lost), "")

    def set_limits(
        self,
        *,
        max_pilots: int | None = None,
        min_pilots: int | None = None,
        max_core_hours: float | None = None,
        pool: str | None = None,
    ) -> None:
        """Other limits from now on. What is too many is cancelled or let go by the usual rules: nothing that runs is ended.

        ``pool``: which, where the factory has several. A pool that was paused because its core hours were used up goes on with more.
        Raises `UsageError` for limits that cannot be, `UnknownName` for a pool that there is not.
        """
        kept = self._named(pool)
        with self._limits:
            self._set_limits(kept, max_pilots, min_pilots, max_core_hours)

    @staticmethod
    def _set_limits(kept: Kept, max_pilots: int | None, min_pilots: int | None, max_core_hours: float | None) -> None:
        most = kept.asked.max_pilots if max_pilots is None else max_pilots
        least = kept.asked.min_pilots if min_pilots is None else min_pilots
        if not isinstance(least, int) or not isinstance(most, int) or not 0 <= least <= most or most < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"min_pilots={least!r} and max_pilots={most!r} cannot be; give whole numbers, 0 <= min_pilots <= max_pilots")
        if max_core_hours is not None and not (isinstance(max_core_hours, int | float) and 0 <= max_core_hours < float("inf")):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"max_core_hours={max_core_hours!r} is not a number of hours; 0 is unlimited")
        used_up = kept.core.actions is not None and kept.core.actions.used_up
        hours = kept.asked.max_core_hours if max_core_hours is None else max_core_hours
        kept.asked = replace(kept.asked, max_pilots=most, min_pilots=least, max_core_hours=hours)
        kept.put(Change(kept.asked))
        if max_core_hours is not None and used_up:
            kept.put(Resume())

    def resume(self, pool: str | None = None) -> None:
        """Submit again although the pool (or all, unless it is named) was paused: the reason is mended. Raises `UnknownName`."""
        for kept in self._kept if pool is None else [self._named(pool)]:
            kept.put(Resume())

    @property
    def paused(self) -> str:
        """Why no pilots are submitted any more, by all pools that are paused; "": they are."""
        texts = [(kept.core.pool.name, kept.core.history.paused) for kept in self._kept if kept.core.history.paused]
        return "; ".join(f"{name}: {text}" for name, text in texts) if len(self._kept) > 1 else "".join(text for _, text in texts)

    def status(self, pool: str | None = None) -> dict[str, object]:
        """How things stand in a pool (which, where the factory has several), for people and programs; a snapshot."""
        core = self._named(pool).core
        actions = core.actions
        return {
            "pool": core.pool.name,
            "backend": core.pool.backend,
            "wanted": actions.wanted if actions else 0,
            "why": actions.why if actions else "",
            "waits": actions.waits if actions else "",
            "pilots": {phase.value: number for phase, number in core.fleet.counts().items() if number},
            "paused": core.history.paused,
            "shut": core.history.shut,
            "failure": core.history.failure,
            "answers": core.history.answers,
            "start_failures": core.history.start_failures,
            "core_hours": core.core_seconds(time.monotonic()) / 3600,
            "commands": dict(core.budget.sent),
        }

    def pilots(self, pool: str | None = None) -> list[dict[str, object]]:
        """Pilots that have not ended, of a pool (which, where the factory has several): job, pilot, phase, seconds in it, node, reason."""
        now = time.monotonic()
        return [
            {
                "job": pilot.job,
                "pilot": pilot.word,
                "phase": pilot.phase.value,
                "seconds": now - pilot.since,
                "node": pilot.node,
                "reason": pilot.reason,
            }
            for pilot in list(self._named(pool).core.fleet.pilots.values())
        ]

    def _named(self, pool: str | None) -> Kept:
        names = [kept.core.pool.name for kept in self._kept]
        if pool is None and len(names) > 1:
            raise UsageError(f"this factory has several pools, so name one of them: pool={names[0]!r}; they are {', '.join(names)}")
        if pool is not None and pool not in names:
            raise UnknownName("pool", pool, names, within=f"in factory {self.name!r}")
        return self._kept[0 if pool is None else names.index(PoolName(pool))]


def _waker(kept: Kept) -> Callable[[], None]:
    return lambda: kept.put(Wake())


def _pilot_file(manager: str | os.PathLike[str]) -> Path:
    """The file that pilots of a manager elsewhere read, beside the one that its clients read."""
    from windlass import identity

    found = identity.find_manager(manager)
    identity.read_connection_file(found)  # what is none is told now
    return found.with_name("pilot.json")


# ---------------------------------------------------------------- making pools


def make_pools(
    words: PoolWord | Sequence[PoolWord], options: Mapping[str, object], name: str | None, configuration: Configuration
) -> tuple[str, list[tuple[Backend, PoolConfig]]]:
    """The factory's name, and its pools with their backends, not opened. Raises `UnknownName`, `UsageError`."""
    several = list(words) if isinstance(words, list | tuple) else [cast("PoolWord", words)]
    if not several:
        raise UsageError("a factory needs a pool; write for example Factory(manager, 'slurm') or Factory(manager, ['short', 'gpu'])")
    first = several[0].backend if isinstance(several[0], Pool) else several[0]
    if name is None:
        name = made_up(first if isinstance(first, str) else getattr(first, "name", "pool"))
    elif not isinstance(name, str) or not NAME.match(name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"{name!r} is no name for a factory; use up to 64 letters, digits, '_', '-' and '.', for example 'night-shift'")
    if len(several) > 1 and options.get("pool") is not None:
        raise UsageError(f"pool={options['pool']!r} would be the name of {len(several)} pools; name each: Pool('slurm', pool='short')")
    made: list[tuple[Backend, PoolConfig]] = []
    for word in several:
        own = word if isinstance(word, Pool) else Pool(word)
        given = {key: value for key, value in options.items() if value is not None} | own.options
        made.append(_make_pool(own.backend, given, configuration, name if len(several) == 1 else ""))
    names = [pool.name for _, pool in made]
    for one in names:
        if names.count(one) > 1:
            raise UsageError(f"two pools of this factory are named {one!r}; name each: Pool('slurm', pool='short')")
    return name, made


def _make_pool(word: str | Backend, given: Mapping[str, object], configuration: Configuration, name: str) -> tuple[Backend, PoolConfig]:
    backend = word
    if not isinstance(backend, str):
        kind = getattr(backend, "name", None)
        if not isinstance(kind, str):
            known = ", ".join(map(repr, known_backends()))
            raise UsageError(f"{backend!r} is no batch backend; write its name, one of {known}, or that of a configured pool")
        pool = make_pool(kind, backend.defaults, backend_options(type(backend)), given, name=name or kind)
        if pool.options:
            raise UsageError(f"{', '.join(pool.options)} of a backend that is made already; give the options where it is made")
        if pool.container and _starts_images(type(backend)):
            raise UsageError(f"container={pool.container!r} of a backend that is made already; give container_image= where it is made")
        return backend, pool
    spec = configuration.spec(backend, given)
    made_by = backend_class(spec.backend)
    try:
        pool = make_pool(spec.backend, made_by.defaults, backend_options(made_by), spec.options, name=spec.name or name or backend)
        own = dict(pool.options)
        if pool.container and _starts_images(made_by):
            own["container_image"] = image_of(pool.container)
        return cast("Callable[..., Backend]", made_by)(**own), pool
    except UsageError as error:
        # Texts begin with the option that is wrong; who wrote it in a file looks for it there.
        origin = spec.origins.get(str(error).partition("=")[0], "")
        if not origin or origin == GIVEN:
            raise
        raise UsageError(f"{origin}: {error}") from None


def _starts_images(made_by: type[Backend]) -> bool:
    """The batch system itself starts images."""
    return "container_image" in backend_options(made_by)


#: Keywords of `Factory` that are not options of its pools.
NOT_OF_POOLS: Final = ("name", "folder", "config")


def of_pools(options: Mapping[str, object]) -> dict[str, object]:
    """Those of the keywords of `Factory` that are options of its pools."""
    return {key: value for key, value in options.items() if key not in NOT_OF_POOLS}


def configuration_of(options: Mapping[str, object]) -> Configuration:
    """The configuration that the keywords of `Factory` name. Raises `UsageError`, `UnknownName`."""
    return read_configuration(cast("str | os.PathLike[str] | None", options.get("config")))


def make_backends(words: Sequence[str], options: Mapping[str, object]) -> list[tuple[Backend, PoolConfig]]:
    """The backends, not opened, and the pools that words (backends, configured pools) and keywords of `Factory` make."""
    return make_pools(words, of_pools(options), cast("str | None", options.get("name")), configuration_of(options))[1]


def make_backend(word: str, options: Mapping[str, object]) -> tuple[Backend, PoolConfig]:
    """As `make_backends`, for one word."""
    [made] = make_backends([word], options)
    return made
