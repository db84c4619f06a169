"""The factory: keeps as many pilots in a batch system as the manager could use. The shell around `windlass.factory.core`.

Theory of operation
-------------------
One thread per factory.  It waits on one queue of events (demand from the manager, a word from the backend that something ended, a
wish to close), tells the core, and carries out the core's instructions until there are none; it sleeps until the next event or the
time the core names.  Nothing is polled, and the first pilot is started as soon as there is demand.  Only this thread calls the
backend.

It talks to the manager through a `Port` and nothing else: it says `PoolReport` when something changed (first of all, what a pilot of
the pool will be, so that the manager listens where pilots can reach it) and `ReleasePilots`; it hears `Demand` and `Leave`.

Closing cancels what waits in the queue, asks the manager to drain what serves, and ends the rest when the time given is over.  A
program that ends without closing its factory closes it on the way out; one that is killed cannot, and then pilots leave by
themselves, as their manager is gone."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Protocol, Self, cast

from windlass.errors import BatchError, OverLimit, Rejected, Unreachable, UsageError
from windlass.factory.backend import Backend, PilotRequest, Tag, Tickets, backend_class, backend_options, known_backends
from windlass.factory.core import Cancel, FactoryCore, Instruction, Query, Release, Submit
from windlass.factory.launch import worker_command
from windlass.factory.pool import NAME, PoolConfig, make_pool
from windlass.messages import Demand, Goodbye, Leave, Message, ReleasePilots

log = logging.getLogger("windlass.factory")

#: Seconds for what runs when the program leaves by an exception, or without closing; or when the manager is gone.
HURRY: Final = 2.0
#: Seconds that closing may take beyond the time given: the last command, and SIGKILL for what does not listen.
CLOSE_SLACK: Final = 30.0


class Port(Protocol):
    """The way to the manager."""

    def send(self, *messages: Message) -> None: ...

    def close(self) -> None: ...


class ManagerLike(Protocol):
    """What a factory needs of a manager in the same process."""

    def open_port(self, role: str, name: str, on_message: Callable[[Message], None]) -> Port: ...

    @property
    def pilot_file(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class _Wake:
    """The backend says that something changed."""


@dataclass(frozen=True, slots=True)
class _Lost:
    """The manager is out of reach for good."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Close:
    """End, with so many seconds for what runs."""

    seconds: float


@dataclass(frozen=True, slots=True)
class _Change:
    """Other limits; None: as they are."""

    max_pilots: int | None
    min_pilots: int | None


@dataclass(frozen=True, slots=True)
class _Resume:
    """A paused pool goes on."""


_Event = Message | _Wake | _Lost | _Close | _Change | _Resume


class Factory:
    """Keeps pilots of one pool running for a manager; a context manager.

    Args:
        manager: a `windlass.Manager` of this process, or the name or connection file of one elsewhere.
        backend: ``"local"``, ``"fake"``, ``"slurm"``, ``"htcondor"``, or a `Backend` object.
        max_pilots, min_pilots: how many pilots at a time, at most and at least.
        cores, memory, gpus: of one pilot (of each of its nodes). Memory as ``"4GB"`` or bytes.
        walltime, idle_timeout, grace: seconds, or as people write them (``"2h"``).
        setup: shell lines that run before the worker.
        name: of the factory; pilots carry it in the batch system, so a factory that takes the name of an earlier one takes over its pilots.
        pool: name of the pool; the factory's, unless given.
        folder: where scripts and logs of pilots go; below the manager's folder, unless given.
        options: further options of every pool (`windlass.factory.pool.COMMON_OPTIONS`) and the backend's own.

    Raises:
        UnknownName: no such backend, manager or option; the text has near names.
        UsageError: an option's value cannot be.
    """

    def __init__(
        self,
        manager: ManagerLike | str | os.PathLike[str],
        backend: str | Backend = "local",
        *,
        max_pilots: int | None = None,
        min_pilots: int = 0,
        cores: float | None = None,
        memory: str | int | float | None = None,
        gpus: int = 0,
        walltime: str | int | float | None = None,
        idle_timeout: str | int | float | None = None,
        grace: str | int | float | None = None,
        setup: str | tuple[str, ...] | list[str] = (),
        name: str | None = None,
        pool: str | None = None,
        folder: str | os.PathLike[str] | None = None,
        **options: object,
    ) -> None:
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
            "pool": pool,
            **options,
        }
        self.backend, config, self.name = _backend_and_pool(backend, common, name)
        self._manager = manager if not isinstance(manager, str | os.PathLike) else None
        if not isinstance(manager, str | os.PathLike) and not hasattr(manager, "pilot_file"):
            raise UsageError(f"Factory({manager!r}, ...): the first argument is a Manager, or the name of one that runs elsewhere")
        self._pilot_file = self._manager.pilot_file if self._manager is not None else _pilot_file(manager)  # type: ignore[arg-type]
        self._folder = Path(folder) if folder is not None else self._pilot_file.parent / "pilots" / self.name
        self._core = FactoryCore(
            pool=config,
            request=request_of(config, self._pilot_file),
            limits=self.backend.limits,
            query_interval=self.backend.query_interval,
            max_batch=self.backend.max_batch,
            tickets=Tickets(f"{self.name}-{secrets.token_hex(2)}"),
        )
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        #: The process whose thread it is.
        self._pid = 0
        self._port: Port | None = None
        self._done = threading.Event()
        self._manager_gone = False
        #: Why the factory ended otherwise than by closing; "": it did not.
        self.lost = ""

    @property
    def pool(self) -> PoolConfig:
        """The pool, with defaults filled in."""
        return self._core.pool

    # ---------------------------------------------------------------- life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            # Whoever presses Ctrl-C wants to leave now.
            self.close(min(HURRY, self.pool.grace) if issubclass(kind, Exception) else 0.0)

    def start(self) -> Self:
        """Begin; done by ``with``. Idempotent. Returns the factory, as in ``factory = Factory(manager).start()``."""
        if self._thread is not None:
            return self
        tag = Tag(self.name, self._pilot_file.parent.name)
        self.backend.open(tag, self._folder, lambda: self._events.put(_Wake()))
        try:
            self._port = self._open_port()
        except BaseException:
            self.backend.close()
            raise
        self._tell()
        self._thread = threading.Thread(target=self._run, name=f"windlass-factory-{self.name}", daemon=True)
        self._thread.start()
        self._pid = os.getpid()
        atexit.register(self._at_exit)
        return self

    def _open_port(self) -> Port:
        if self._manager is not None:
            return self._manager.open_port("factory", self.name, self._events.put)
        from windlass import identity, transport

        connection = identity.read_connection_file(self._pilot_file.with_name("client.json"))
        return transport.open_port(connection, "factory", self.name, self._events.put, self._on_lost)

    def _on_lost(self, reason: Any) -> None:
        self._events.put(_Lost(str(reason)))

    def close(self, seconds: float | None = None) -> None:
        """End all pilots: queued ones now, others when what they run has ended or ``seconds`` (default: the pool's grace) are over."""
        thread = self._thread
        if thread is None or os.getpid() != self._pid:  # a process that the program forked ends nothing of its parent's
            return
        seconds = self.pool.grace if seconds is None else seconds
        self._events.put(_Close(seconds))
        try:
            thread.join(seconds + self.pool.grace + CLOSE_SLACK)
        except KeyboardInterrupt:
            self._events.put(_Close(0.0))
            thread.join(CLOSE_SLACK)
            raise
        finally:
            atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        # A program that ends collects nothing more: its manager sends the workers away, whatever they run.
        if os.getpid() != self._pid:
            return
        leave = getattr(self._manager, "close", None)
        if leave is not None:
            leave()
        self.close(min(HURRY, self.pool.grace))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the factory has ended (its manager did, or somebody called `close`); False: not within ``timeout`` seconds."""
        return self._done.wait(timeout)

    # ---------------------------------------------------------------- for the user

    def set_limits(self, *, max_pilots: int | None = None, min_pilots: int | None = None) -> None:
        """Other limits from now on. What is too many is cancelled or let go by the usual rules: nothing that runs is ended."""
        most = self.pool.max_pilots if max_pilots is None else max_pilots
        least = self.pool.min_pilots if min_pilots is None else min_pilots
        if not 0 <= least <= most or most < 1:
            raise UsageError(f"min_pilots={least} and max_pilots={most} cannot be; give 0 <= min_pilots <= max_pilots")
        self._events.put(_Change(max_pilots, min_pilots))

    def resume(self) -> None:
        """Submit again although the pool was paused: the reason is mended."""
        self._events.put(_Resume())

    @property
    def paused(self) -> str:
        """Why no pilots are submitted any more; "": they are."""
        return self._core.history.paused

    def status(self) -> dict[str, object]:
        """How things stand, for people and programs; a snapshot."""
        core = self._core
        actions = core.actions
        return {
            "pool": core.pool.name,
            "backend": core.pool.backend,
            "wanted": actions.wanted if actions else 0,
            "why": actions.why if actions else "",
            "waits": actions.waits if actions else "",
            "pilots": {phase.value: number for phase, number in core.fleet.counts().items() if number},
            "paused": core.history.paused,
            "failure": core.history.failure,
            "commands": dict(core.budget.sent),
        }

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:
            log.exception("the factory %s failed; its pilots are ended", self.name)
            self.lost = "the factory failed; its log has the traceback"
            with contextlib.suppress(BatchError):
                self.backend.cancel_all()
        finally:
            self.backend.close()
            port = self._port
            if port is not None:
                with contextlib.suppress(Exception):  # the manager may be gone first
                    self._bury()
                    self._tell()
                    self._send(Goodbye("the factory closed"))
                    port.close()
            self._done.set()

    def _serve(self) -> None:
        core = self._core
        while not core.finished:
            now = time.monotonic()
            while (instruction := core.step(now)) is not None:
                self._do(instruction)
                self._bury()
                now = time.monotonic()
            self._tell()
            if core.finished:
                return
            self._take_events(core.again_at(now) - now)

    def _take_events(self, seconds: float) -> None:
        """Wait for an event for so long, then take all that are there."""
        try:
            event = self._events.get(timeout=None if seconds == math.inf else max(0.0, seconds))
            while True:
                self._take(event)
                event = self._events.get_nowait()
        except queue.Empty:
            pass
        self._bury()

    def _take(self, event: _Event) -> None:
        core, now = self._core, time.monotonic()
        if isinstance(event, Demand):
            core.hear(event, now)
        elif isinstance(event, _Wake):
            core.woken(now)
        elif isinstance(event, _Close):
            core.close(now, event.seconds)
        elif isinstance(event, Leave):
            self._manager_gone = True
            log.info("%s: the manager has ended (%s)", self.name, event.reason)
            core.close(now, min(HURRY, core.pool.grace))
        elif isinstance(event, _Lost):
            self._manager_gone = True
            self.lost = f"the manager is lost: {event.reason}"
            log.warning("%s: %s; its pilots are ended", self.name, self.lost)
            core.close(now, 0.0)
        elif isinstance(event, _Change):
            most = core.pool.max_pilots if event.max_pilots is None else event.max_pilots
            least = core.pool.min_pilots if event.min_pilots is None else event.min_pilots
            core.change(replace(core.pool, max_pilots=most, min_pilots=least))
        elif isinstance(event, _Resume):
            core.history.resume()

    def _do(self, instruction: Instruction) -> None:
        """Carry out one instruction and tell the core its result."""
        core, backend = self._core, self.backend
        if isinstance(instruction, Release):
            log.info("%s: letting go %s: %s", self.name, ", ".join(instruction.pilots), instruction.reason)
            self._send(ReleasePilots(instruction.pilots, core.pool.name, instruction.reason))
            return
        started = time.monotonic()
        try:
            if isinstance(instruction, Query):
                states = backend.query()
                core.listed(states, time.monotonic(), time.monotonic() - started)
            elif isinstance(instruction, Submit):
                log.info("%s: submitting %d: %s", self.name, instruction.count, instruction.reason)
                jobs = backend.submit(instruction.request, instruction.count)
                core.submitted(instruction.request.ticket, jobs, time.monotonic())
            elif isinstance(instruction, Cancel):
                log.info("%s: cancelling %s: %s", self.name, ", ".join(instruction.jobs), instruction.reason)
                backend.cancel(instruction.jobs)
                core.cancelled()
            else:
                backend.cancel_all()
                core.ended_all()
        except Exception as error:  # noqa: BLE001  a backend's defect must not look like silence
            self._failed(instruction, error)

    def _failed(self, instruction: Instruction, error: Exception) -> None:
        core, now = self._core, time.monotonic()
        text = str(error) if isinstance(error, BatchError) else f"the {core.pool.backend} backend failed: {error!r}"
        if not isinstance(error, BatchError):
            log.error("%s: %s", self.name, text, exc_info=error)
        if isinstance(instruction, Submit) and isinstance(error, OverLimit):
            log.info("%s: %s", self.name, text)
            core.over_limit(instruction.request.ticket, text, instruction.count, now)
        elif isinstance(instruction, Submit) and not isinstance(error, Unreachable):
            log.warning("%s is paused, as its pilots are refused: %s", self.name, text)
            core.rejected(instruction.request.ticket, text)
        else:
            # Also a refused query or cancel: nothing is known to have changed.
            # The pool's first failure is told to whoever waits; single silences of a busy batch system are nothing to speak of.
            level = logging.INFO if core.history.failure and not isinstance(error, Rejected) else logging.WARNING
            log.log(level, "%s: no answer: %s; it is asked again, at growing intervals", self.name, text)
            core.unreachable(text, now)

    def _bury(self) -> None:
        """Tell the core of pilots that ended, the failed ones with their own last words."""
        core = self._core
        for ending in core.take_endings():
            words = self.backend.tail(ending.job) if ending.failed else ""
            history = core.history
            was_paused, deaths = history.paused, history.start_failures
            core.ended(ending, words, time.monotonic())
            log.info("%s: pilot %s has ended: %s", self.name, ending.pilot, ending.reason)
            if history.paused and not was_paused:
                log.warning("%s is paused: %s", self.name, history.paused)
            elif history.start_failures and not deaths:
                # The pause comes minutes later, and whoever waits for a result would not know why.
                text = "%s: a pilot ended before it served: %s; others are tried, and the pool is paused after %d in a row"
                log.warning(text, self.name, history.failure, core.pool.max_start_failures)

    def _tell(self) -> None:
        report = self._core.report()
        if report is not None:
            self._send(report)

    def _send(self, message: Message) -> None:
        # A manager that has said Leave, or is lost, reads nothing more, and a port would wait for it.
        if self._port is not None and not self._manager_gone:
            self._port.send(message)


def _pilot_file(manager: str | os.PathLike[str]) -> Path:
    """The file that pilots of a manager elsewhere read, beside the one that its clients read."""
    from windlass import identity

    return identity.find_manager(manager).with_name("pilot.json")


def _backend_and_pool(backend: str | Backend, options: Mapping[str, object], name: str | None) -> tuple[Backend, PoolConfig, str]:
    word = backend if isinstance(backend, str) else getattr(backend, "name", None)
    if not isinstance(word, str):
        raise UsageError(f"{backend!r} is no batch backend; write its name, one of {', '.join(map(repr, known_backends()))}")
    if name is None:
        name = f"{word}-{secrets.token_hex(3)}"
    elif not isinstance(name, str) or not NAME.match(name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"{name!r} is no name for a factory; use up to 64 letters, digits, '_', '-' and '.', for example 'night-shift'")
    if isinstance(backend, str):
        made_by = backend_class(backend)
        pool = make_pool(word, made_by.defaults, backend_options(made_by), options, name=name)
        return cast("Callable[..., Backend]", made_by)(**pool.options), pool, name
    pool = make_pool(word, backend.defaults, backend_options(type(backend)), options, name=name)
    if pool.options:
        raise UsageError(f"{', '.join(pool.options)} of a backend that is made already; give the options where it is made")
    return backend, pool, name


def request_of(pool: PoolConfig, pilot_file: Path) -> PilotRequest:
    """What every submission of a pool has in common."""
    return PilotRequest(
        ticket="",
        pool=pool.name,
        command=worker_command(pool, pilot_file),
        resources=pool.resources,
        nodes=pool.nodes,
        walltime=pool.walltime,
        grace=pool.grace,
        setup=pool.setup,
        shell=pool.shell,
        env=pool.env,
    )


# ---------------------------------------------------------------- for the command line


def make_backend(backend: str, options: Mapping[str, object]) -> tuple[Backend, PoolConfig]:
    """The backend, not opened, and the pool that these keywords of `Factory` make."""
    given = {key: value for key, value in options.items() if key not in ("name", "folder")}
    made, pool, _ = _backend_and_pool(backend, given, cast("str | None", options.get("name")))
    return made, pool


def check(backend: str, options: Mapping[str, object]) -> None:
    """Raises what `run` would raise for a backend and options that cannot be."""
    made, _ = make_backend(backend, options)
    made.close()


def dry_run(backend: str, options: Mapping[str, object]) -> str:
    """What a factory would submit with these options, and the plan that follows from them; nothing is done."""
    made, pool = make_backend(backend, {**options, "pool": options.get("pool", f"{backend}-pool")})
    try:
        request = replace(request_of(pool, Path("MANAGER/pilot.json")), ticket="TICKET")
        return f"{pool.text()}\n\n{made.describe(request, min(pool.max_pilots, pool.max_queued))}"
    finally:
        made.close()


def run(connection: str, backend: str, options: Mapping[str, object]) -> int:
    """Run a factory until its manager ends (0) or is lost (1), or somebody interrupts: once cancels and drains, twice ends all (0).

    Must be called by the main thread, as it takes SIGINT and SIGTERM.
    """
    given: dict[str, Any] = dict(options)
    factory = Factory(connection, backend, **given)
    print(factory.pool.text(), file=sys.stderr, flush=True)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    interrupts = 0

    def interrupted(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        factory._events.put(_Close(factory.pool.grace if interrupts == 1 else 0.0))  # pyright: ignore[reportPrivateUsage]
        text = "removing queued pilots, draining the others; again to end all now" if interrupts == 1 else "ending all pilots"
        os.write(2, f"windlass factory: {text}\n".encode())

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        factory.start()
        factory.wait()
        factory.close()
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        log.removeHandler(handler)
    if factory.lost:
        print(f"windlass factory: {factory.lost}", file=sys.stderr)
    return 1 if factory.lost else 0
