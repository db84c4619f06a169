"""`Door`: what a program calls on a manager, wherever that runs.

Theory of operation
-------------------
The door checks what the program asks for, resolves names to library versions and functions, and hands messages to a client
(`windlass.manager.client`).  Behind it is a manager in this process (`windlass.manager.manager`) or one that the program is attached to
(`windlass.manager.attached`).

*Library names* are this program's own.  A name stands for its newest installed version.  Installing another version under the same name
leaves calls already submitted with theirs; the old version ends when its calls have.

Functions that are submitted without a library (`submit_function`, used by `Executor`) are the implicit one's (`windlass.manager.implicit`).
"""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, overload

from windlass.commands import gpus_of, run_command
from windlass.coroutines import is_async
from windlass.errors import Closed, FileUnavailable, NotPossible, UnknownName, UsageError, require_flag, stays_here
from windlass.files import File
from windlass.leaving import LeavesInThread
from windlass.manager.call import (
    DEFAULT_OPTIONS,
    IMPLICIT,
    OPTIONS,
    FunctionCall,
    no_call,
    read_seconds,
    read_tag,
    refuse_as_arguments,
)
from windlass.manager.client import Client
from windlass.manager.declaring import Declaring
from windlass.manager.future import CallFuture
from windlass.manager.implicit import Implicit, SlotShape
from windlass.manager.installed import Installed
from windlass.manager.journal import Journal
from windlass.manager.library import Library
from windlass.manager.memory import JOURNALED, MEMOIZED, Memory
from windlass.manager.placement import why_never
from windlass.manager.spans import CallSpans
from windlass.manifests import Manifest
from windlass.messages import (
    BlockHost,
    CallId,
    CallOptions,
    DeclareFile,
    DeclareMade,
    FileName,
    FileOrigin,
    FileRef,
    InstallLibrary,
    Level,
    LibraryId,
    LibrarySpec,
    ObjectRef,
    PoolOffer,
    ReleaseFiles,
    RemoveLibrary,
    Resources,
)
from windlass.store_folders import default_store_folder
from windlass.sums import count_workers

if TYPE_CHECKING:
    from windlass.commands import CommandResult
    from windlass.dashboard.child import Child
    from windlass.manager.command import Command

log = logging.getLogger("windlass.manager")

#: TaskVine's hungry(): at least so many calls, and so many times the capacity.
_HUNGRY_LEAST: Final = 10
_HUNGRY_TIMES: Final = 2


@dataclass(frozen=True, slots=True)
class Stats:
    """Numbers of a manager at one time; ``status`` has all of it (docs/status.md)."""

    waiting: int
    running: int
    done: int
    failed: int
    cancelled: int
    workers: int
    slots: int
    #: Seconds that imports and contexts took, over all library instances, and what doing them in each call would have taken more.
    hoisted_seconds: float
    saved_seconds: float
    #: Not shown: it has thousands of characters.
    status: Mapping[str, Any] = field(repr=False)


class Door(Implicit, Declaring, LeavesInThread):
    """Libraries, calls and futures of one program."""

    name: str
    _client: Client

    def __init__(self) -> None:
        super().__init__()
        self._closed = False
        self._installed: dict[str, Installed] = {}
        self._environments: dict[str, File] = {}
        self._possible: dict[tuple[LibraryId, int], tuple[CallOptions, int]] = {}
        self._pid = os.getpid()
        self._pages: list[Child] = []
        _doors.add(self)

    @abstractmethod
    def close(self) -> None:
        """Take nothing more, end what has not ended, and let go what is this program's."""

    @property
    @abstractmethod
    def connection_file(self) -> Path:
        """What the command line connects by: a file only its owner can read."""

    def dashboard(self) -> str:
        """The address, token included, of a page that shows the manager at work; it is served from now on until `close`
        (docs/dashboard.md).

        Raises `UsageError` where it is not installed, `Unreachable` when it does not start.
        """
        return self._show_dashboard().address()

    def _show_dashboard(self, *, say: bool = False) -> Child:
        from windlass.dashboard.child import Child

        self._check_open()
        with self._lock:
            if not self._pages or not self._pages[0].alive:
                self._pages[:] = [Child(self.connection_file, say=say)]
            return self._pages[0]

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """How things stand, as documented in docs/status.md. Raises `Closed`."""

    @abstractmethod
    def _means_version(self) -> int:
        """Changes when what there is to run calls with does."""

    @abstractmethod
    def _means(self) -> tuple[tuple[PoolOffer, ...], list[Resources]]:
        """Offers of pools, and what workers have."""

    @abstractmethod
    def _capacity(self) -> int:
        """Calls that all library instances would hold when full."""

    @abstractmethod
    def _forked(self) -> None:
        """This process is a copy of the program made by `os.fork`: thread, sockets and files are the program's, which goes on with them."""

    def _remembering(self, memoize: bool) -> bytes:
        """How calls of a function are remembered; empty: not at all."""
        memory = self._client.memory
        if memory is None and memoize:
            # In a folder that goes with this process: what is memoized without a journal is for this life.
            journal = Journal(default_store_folder("memo"))
            memory = self._client.memory = Memory(journal, self._client, self._client.clock, all_calls=False)
        return MEMOIZED if memoize else JOURNALED if memory is not None and memory.all_calls else b""

    def _use_journal(self, journal: Journal | None) -> None:
        """Remember all calls there."""
        if journal is not None:
            self._client.memory = Memory(journal, self._client, self._client.clock, all_calls=True)

    def _open_traces(self, traces: bool) -> None:
        """Make spans of calls. Raises `UsageError`."""
        require_flag("traces", traces)
        if traces:
            self._client.traces = CallSpans()

    def _declare(self, ref: FileRef, origin: FileOrigin, manifest: Manifest | None) -> Callable[[], None]:
        self._client.say(DeclareFile(ref, origin))
        return self._releaser(ref, tuple(kept for kept in (origin.object, origin.manifest) if kept is not None))

    def _bring(self, file: File) -> bytes:
        client = self._client
        # Before that the manager may not even know what makes it: a call that waits for others is handed over when they have ended.
        producer = client.find(CallId(file.producer))
        if producer is not None:
            producer.wait()
            # What it returned is left packed: nobody has asked for that, and it may be large, or such as cannot be unpickled here.
            error = None if producer.returned() or client.closed else producer.failure()
            if error is not None:
                name = file.ref.shown if file.ref is not None else file.source
                raise FileUnavailable(f"file {name} could not be made: {type(error).__name__}: {error}") from error
        try:
            return bytes(client.kept.bring(FileName(file.name), None))
        except FileUnavailable as error:
            raise FileUnavailable(str(error).replace(file.name, file.source)) from None

    def _releaser(self, ref: FileRef, pins: tuple[ObjectRef, ...]) -> Callable[[], None]:
        client, name = self._client, ref.name

        def release(prune: bool = False) -> None:
            client.later(lambda: let_go(prune))

        def let_go(prune: bool) -> None:
            for kept in pins:
                client.store.unpin(kept.name)
            if not client.closed:
                with suppress(Closed):
                    client.say(ReleaseFiles((name,), prune))

        return release

    def _put_buffer(self, data: bytes) -> ObjectRef:
        return self._client.store.put(data, pin=True)

    @property
    def closed(self) -> bool:
        """`close` was called, or the manager has ended."""
        return self._closed or bool(self._client.closed)

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"manager {self.name!r} is closed ({self._client.closed or 'the manager was closed'}); make another one")

    def __reduce__(self) -> NoReturn:
        raise stays_here("a manager")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self._title()}, {self._state()}>"

    def _title(self) -> str:
        return f"{type(self).__name__} {self.name!r}"

    def _state(self) -> str:
        """In some words, which cost nothing."""
        if self.closed:
            return "closed"
        # Of functions without one there may be several, of other slots each; people know one.
        calls, libraries = self._client.outstanding(), len(self._installed) + bool(self._implicit)
        return f"{calls:,} call{'s' * (calls != 1)} waiting or running, {libraries} librar{'y' if libraries == 1 else 'ies'}"

    def _repr_html_(self) -> str:
        from windlass.errors import WindlassError
        from windlass.notebook import card, status_card

        try:
            return status_card(self._title(), self._state(), self.status())
        except WindlassError:
            return card(self._title(), self._state())

    # ------------------------------------------------------------ libraries

    def create_library(self, name: str, *functions: Callable[..., Any], **options: Any) -> Library:
        """A library of ``functions``; see `Library` for the options. It is there to be called after `install_library`.

        Raises `UsageError` with the line to write, `UnknownName` for an option that there is not.
        """
        return Library(name, *functions, **options)

    def create_library_from_functions(self, name: str, *functions: Callable[..., Any], **options: Any) -> Library:
        """TaskVine's spelling of `create_library`: ``hoisting_modules=``, ``exec_mode="fork"``, ``library_context_info=``."""
        return Library.from_functions(name, *functions, **options)

    def install_library(self, library: Library | str, *functions: Callable[..., Any], **options: Any) -> Library:
        """Make a library callable: one that was created, or a name and functions, which creates it.

        Another version under the same name replaces it for calls submitted from now on.

        Raises `UsageError` as `create_library` does, `NotPicklable` for functions or a context that cannot travel, `Closed`. What fails on
        workers only (an import, the context function) ends its calls with `LibraryFailed`.
        """
        self._check_open()
        if isinstance(library, str):
            library = Library(library, *functions, **options)
        elif not isinstance(library, Library):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"install_library({library!r}): write install_library('lib', function, ...) or give what create_library returned"
            )
        elif functions or options:
            raise UsageError(f"library {library.name!r} is created already: give functions and options to create_library")
        if not library.functions:
            name = library.name
            raise UsageError(
                f"library {name!r} has no functions, so there is nothing to call; write install_library({name!r}, function, ...)"
            )
        environment = library.environment
        if environment is not None and not (isinstance(environment, File) and environment.name.startswith("u3-")):
            environment = self._archive("environment=", environment, "forever")
        if environment is not None:
            self._environments[environment.name] = environment  # instances of it may start as long as there are calls of it
        spec = library.spec(self._put_forever, environment.ref if environment is not None else None)
        kind = self._remembering(library.memoize)
        remembered = {name: kind + content for name, content in library.contents(spec).items()} if kind else {}
        with self._lock:
            old = self._installed.get(library.name)
            self._installed[library.name] = Installed(spec, library, remembered)
            self._client.say(InstallLibrary(spec))
            if old is not None and old.spec.id != spec.id:
                self._client.say(RemoveLibrary(old.spec.id))
        return library

    def remove_library(self, library: Library | str) -> None:
        """No more calls of it: its instances end when the calls submitted so far have. Raises `UnknownName`, `Closed`."""
        self._check_open()
        name: object = getattr(library, "name", library)
        if not isinstance(name, str):
            raise UsageError(f"remove_library({library!r}): write remove_library('lib') or give what create_library returned")
        with self._lock:
            self._client.say(RemoveLibrary(self._library(name).spec.id))
            del self._installed[name]

    def check_library_exists(self, name: str) -> bool:
        """True if a library of this name is installed."""
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # programs are not always checked
            raise UsageError(f"check_library_exists({name!r}): give a library's name, as in check_library_exists('lib')")
        return name in self._installed

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the installed libraries."""
        return tuple(self._installed)

    def _library(self, name: str) -> Installed:
        try:
            return self._installed[name]
        except KeyError:
            if (gpus := gpus_of(name)) >= 0:
                return self._install_commands(name, gpus)
            raise UnknownName("library", name, self._installed, "(install_library makes one callable)") from None

    def _install_commands(self, name: str, gpus: int) -> Installed:
        """The library of commands that are given so many GPUs."""
        with self._lock:
            if name not in self._installed:
                self.install_library(Library(name, run_command, imports=None, gpus=gpus))
            return self._installed[name]

    # ------------------------------------------------------------ calls

    @overload
    def submit(self, call: Command) -> CallFuture[CommandResult]: ...
    @overload
    def submit(self, call: FunctionCall) -> CallFuture[Any]: ...
    def submit(self, call: FunctionCall, *more: object, **options: object) -> CallFuture[Any]:
        """Queue a call; its future.

        Raises `UnknownName` (library or function), `NotPicklable` (an argument), `NotPossible` (no pool can ever run it), `Closed`.
        """
        if more or options or (type(call) is not FunctionCall and not isinstance(call, FunctionCall)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise no_call(call, more, options)
        if self._client.closed:
            self._check_open()
        if type(call) is not FunctionCall:
            call.make_ready(self.declare_temp)
        installed = self._installed.get(call.library)
        if installed is None:
            installed = self._library(call.library)
        target = installed.targets.get(call.function)
        if target is None:
            raise installed.has_no(call.function)
        if call.kwargs and not OPTIONS.isdisjoint(call.kwargs):
            refuse_as_arguments(installed.library.functions[call.function], call.kwargs, "call.with_options({})")
        if call.options is not DEFAULT_OPTIONS:
            self._check_possible(installed.spec, call.options)
        if call.has_room:
            return self._client.submit_in_room(target, call)
        return self._client.submit(target, call.args, call.kwargs, call.options, call.tag)

    def declare_minitask(self, call: FunctionCall, name: str | None = None, level: Level = "workflow") -> File:
        """A file that a call makes when one is first needed, on a worker: its function returns the path of what it made in its own
        directory. Other calls that are given the file wait for that; when it is lost it is made again.

        Raises as `submit` does.
        """
        self._check_open()
        if not isinstance(call, FunctionCall):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"declare_minitask({call!r}): write declare_minitask(FunctionCall('library', 'function', arguments...))")
        call.make_ready_to_make()
        installed = self._library(call.library)
        target = installed.targets.get(call.function)
        if target is None:
            raise installed.has_no(call.function)
        ref = self._temporary("declare_minitask", name or call.function, level)
        spec, keep = self._client.prepare(target, call, call.inputs, ref.name)
        self._client.say(DeclareMade(ref, spec))
        file = File(id(self), ref, f"what {call!r} makes", self._releaser(ref, (*keep.pins,)))
        file.keep = keep
        return file

    def submit_function(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        options: CallOptions | None = None,
        tag: str | None = None,
        *,
        memoize: bool = False,
        inputs: Mapping[str, File] | None = None,
        outputs: Mapping[str, File] | None = None,
        concurrency: int = 1,
    ) -> CallFuture[Any]:
        """Queue ``fn(*args, **kwargs)`` in the implicit library; its future. ``memoize``: equal calls are run once.

        ``inputs``, ``outputs``: it runs in a directory of its own, with these files by their paths there (as `FunctionCall.add_input`).
        ``concurrency``: of an async function, a slot runs so many calls at once. Raises as `submit`.
        """
        from windlass.functions import define

        if self._closed or self._client.closed:
            self._check_open()
        if type(args) is not tuple or (kwargs is not None and type(kwargs) is not dict):  # pyright: ignore[reportUnnecessaryComparison]
            raise UsageError(f"submit_function(..., {args!r}, {kwargs!r}): write submit_function(f, (1, 2), {{'name': 3}})")
        if options is not None and not isinstance(options, CallOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"options={options!r}: options are given to an executor: Executor(None, manager=manager).with_options(cores=2)"
            )
        if tag is not None:
            read_tag(tag)
        defined = define(fn, self._put_forever)
        if self._implicit_code:
            self._look_for_edits()
        latest = self._latest
        if concurrency != 1 and not is_async(fn):
            concurrency = 1
        chosen = options or DEFAULT_OPTIONS
        gpus = chosen.needs.gpus
        if latest is not None and latest[0] is defined and latest[1] is memoize and latest[2] == concurrency and latest[3] == gpus:
            spec, target = latest[4], latest[5]
        else:
            spec, target = self._implicit_target(fn, defined, memoize, SlotShape(concurrency, gpus))
        if chosen is not DEFAULT_OPTIONS:
            self._check_possible(spec, chosen)
        if inputs or outputs:
            call = FunctionCall(IMPLICIT, target.names[1], *args, **(kwargs or {}))
            call.options, call.tag = chosen, tag
            for path, file in (inputs or {}).items():
                call.add_input(file, path)
            for path, file in (outputs or {}).items():
                call.add_output(file, path)
            return self._client.submit_in_room(target, call)
        return self._client.submit(target, args, kwargs or {}, chosen, tag)

    def _check_possible(self, spec: LibrarySpec, options: CallOptions) -> None:
        """Refuse here what no pool can ever run; the core would end it all the same."""
        key = (spec.id, id(options))
        version = self._means_version()
        if self._possible.get(key) == (options, version):
            return
        reason = why_never(spec, options, *self._means())
        if reason:
            raise NotPossible(reason)
        if len(self._possible) > 1000:
            self._possible.clear()
        self._possible[key] = (options, version)

    def wait(self, timeout: float | None = None) -> CallFuture[Any] | None:
        """The next call that has ended and is not collected; None after ``timeout`` seconds (None: for ever), or when none is to come.

        The call may have failed: its future's ``error`` says so, and nothing is raised here but `UsageError` for what are no seconds.
        """
        number = isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout == timeout  # not NaN
        if timeout is not None and not number:
            raise UsageError(f"wait({timeout!r}): give seconds, or None to wait for ever")
        # More than a thread can wait for is for ever.
        return self._client.wait(timeout if timeout is None or timeout < threading.TIMEOUT_MAX else None)

    def empty(self) -> bool:
        """No call is waiting, running, or ended and uncollected."""
        return self._client.empty()

    def hungry(self, least: int = _HUNGRY_LEAST, times: float = _HUNGRY_TIMES) -> int:
        """How many more calls could be used well now; 0: enough are queued, or the manager is closed.

        Well used are at least so many, and ``times`` as many as slots and their queues hold.
        """
        if self.closed:
            return 0
        return max(0, max(least, int(times * self._capacity())) - self._client.outstanding())

    def slots(self, options: CallOptions = DEFAULT_OPTIONS) -> int:
        """How many calls with these options could run at once, on the pilots that there are or on all that the pools may have, whichever
        are more; 0: nobody has said yet."""
        offers, workers = self._means()
        may_come = sum(max(1, offer.most) * _slots_of(offer.resources, options.needs) for offer in offers if not offer.spent)
        return max(may_come, sum(_slots_of(each, options.needs) for each in workers))

    def cancel_by_tag(self, tag: str) -> int:
        """Cancel all calls with this tag; how many had not ended."""
        if not isinstance(tag, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"cancel_by_tag({tag!r}): give the tag that the calls were submitted with, as in cancel_by_tag('sweep-1')")
        return self._client.cancel_all([future for future in self._client.pending() if future.tag == tag])

    def cancel_all(self) -> int:
        """Cancel all calls; how many had not ended."""
        return self._client.cancel_all(self._client.pending())

    def block_host(self, host: str, seconds: float | str | None = None) -> None:
        """Run nothing more on this host for ``seconds`` (None: until `unblock_host`). What runs there may finish; then its pilots leave.

        Factories avoid it where their batch system can (Slurm, HTCondor). Raises `UsageError`.
        """
        self._check_open()
        if not isinstance(host, str) or not host:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"block_host({host!r}): give the name of a host, as `windlass status` shows it")
        self._client.say(BlockHost(host, 0.0 if seconds is None else read_seconds("seconds", seconds)))

    def unblock_host(self, host: str | None = None) -> None:
        """Use this host again; None: all that were blocked."""
        self._check_open()
        if host is not None and (not isinstance(host, str) or not host):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"unblock_host({host!r}): give the name of a host that was blocked, or None for all")
        self._client.say(BlockHost(host or "", blocked=False))

    # ------------------------------------------------------------ seeing

    @property
    def stats(self) -> Stats:
        """Numbers now. Raises `Closed`."""
        status = self.status()
        calls, libraries = status["calls"], status["libraries"]
        return Stats(
            waiting=calls["waiting"],
            running=calls["running"],
            done=calls["done"],
            failed=calls["failed"],
            cancelled=calls["cancelled"],
            workers=count_workers(status),
            slots=sum(library["slots"] for library in libraries),
            hoisted_seconds=sum(library["hoisted_seconds"] for library in libraries),
            saved_seconds=sum(library["saved_seconds"] for library in libraries),
            status=status,
        )


_doors: weakref.WeakSet[Door] = weakref.WeakSet()


def _after_fork() -> None:
    for door in list(_doors):
        door._lock = threading.RLock()  # pyright: ignore[reportPrivateUsage]  # a thread of the program's may have held it
        door._forked()  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_after_fork)


def _slots_of(worker: Resources, needs: Resources) -> int:
    """Calls that a worker could run at once, as the slots of a library are reckoned by default: one for each core."""
    slots = max(1, int(worker.cores)) // max(1, math.ceil(needs.cores))
    if needs.memory and worker.memory:
        slots = min(slots, worker.memory // needs.memory)
    return min(slots, worker.gpus // needs.gpus) if needs.gpus else slots
