"""`Manager`: what a program holds.

Theory of operation
-------------------
A manager is a thread (`windlass.manager.server`) with a state folder that pilots and the command line find it by, an object store, and a
client (`windlass.manager.client`).  This module is the door in front of them: it checks what the program asks for, resolves names to
library versions and functions, and hands messages over.

*Library names.* A name stands for its newest installed version.  Installing another version under the same name leaves calls already
submitted with theirs; the old version ends when its calls have.

*The implicit library* (`submit_function`, used by `Executor`) has no functions of its own; functions are added to it by content.  When
one needs an import that is not hoisted yet, a new version with more imports follows the old one, so busy slots finish undisturbed.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import inspect
import os
import secrets
import shutil
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Never, Self, cast

import msgspec

import windlass
from windlass.errors import Closed, UnknownName, UsageError, refuse_unknown
from windlass.identity import Authority, manager_folder
from windlass.manager.call import DEFAULT_OPTIONS, SECONDS_MOST, FunctionCall
from windlass.manager.client import Client
from windlass.manager.core import Core, Settings
from windlass.manager.future import CallFuture
from windlass.manager.library import Library
from windlass.manager.placement import why_never
from windlass.manager.server import LocalPort, Server
from windlass.messages import (
    CallOptions,
    DefineFunctions,
    FunctionId,
    GetStatus,
    ImportSpec,
    InstallLibrary,
    LibraryId,
    LibrarySpec,
    Message,
    ObjectRef,
    PoolOffer,
    RemoveLibrary,
    Resources,
    Status,
    Welcome,
)
from windlass.objects import ObjectStore
from windlass.spooling import SpoolingStore
from windlass.store_folders import default_spool_folder, default_store_folder, default_store_limit

#: Functions of `submit_function` that are remembered as defined; fewer than the core remembers.
_DEFINED_MOST: Final = 5_000
#: The name of the implicit library.
IMPLICIT: Final = "functions"
#: TaskVine's hungry(): at least so many calls, and so many times the capacity.
_HUNGRY_LEAST: Final = 10
_HUNGRY_TIMES: Final = 2
_STATUS_SECONDS: Final = 10.0
LOOPBACK: Final = "127.0.0.1"


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
    status: Mapping[str, Any]


class _Installed:
    """The newest version under a library's name."""

    __slots__ = ("functions", "library", "parameters", "spec")

    def __init__(self, spec: LibrarySpec, library: Library) -> None:
        self.spec = spec
        self.library = library
        self.functions: dict[str, FunctionId] = {function.name: function.id for function in spec.functions}
        #: Names of parameters by function, for the texts of errors.
        self.parameters = {name: _parameters(function) for name, function in library.functions.items()}


class Manager:
    """Runs calls on pilots: libraries, calls, futures.

    ``port``: 0 for any free one, a number, or a range ``(low, high)``. ``name``: what pilots and the command line find it by; without one
    it is made up. ``host``: the address to listen on; the default is this machine's loopback, enough for local pilots, and one
    that nodes reach as soon as a factory has pilots on other machines (the pool's ``interface`` or ``network``, else what the host name
    resolves to). Times are seconds: a worker whose connection is cut keeps its calls for ``reconnect_grace``, and leaves when it has not
    reached its manager for ``manager_timeout``.

    Raises `UsageError` when the port is in use or another manager of yours has the name.
    """

    def __init__(
        self,
        port: int | tuple[int, int] | list[int] = 0,
        name: str | None = None,
        *,
        host: str | None = None,
        reconnect_grace: float = 60.0,
        manager_timeout: float = 300.0,
        heartbeat: float = 5.0,
        silence: float = 30.0,
        **unknown: Never,
    ) -> None:
        refuse_unknown("option of Manager", unknown, Manager.__init__)
        self._closed = False
        self._lock = threading.RLock()
        self._installed: dict[str, _Installed] = {}
        self._implicit: LibrarySpec | None = None
        self._implicit_imports: dict[str, ImportSpec] = {}
        self._implicit_code: dict[str, ObjectRef] = {}
        self._defined: OrderedDict[FunctionId, None] = OrderedDict()
        self._possible: dict[tuple[LibraryId, int], tuple[CallOptions, int]] = {}
        wanted = _read_port(port)
        for key, value in (
            ("reconnect_grace", reconnect_grace),
            ("manager_timeout", manager_timeout),
            ("heartbeat", heartbeat),
            ("silence", silence),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < SECONDS_MOST:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"{key}={value!r} must be a number of seconds over 0: write {key}=60")
        if silence <= heartbeat:
            raise UsageError(
                f"silence={silence:g} is not longer than heartbeat={heartbeat:g}, so every connection would count as cut;"
                f" write silence={6 * heartbeat:g}"
            )
        if host is not None and not isinstance(host, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"host={host!r}: write a name or an address of this machine, as in host='127.0.0.1'")
        if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"name={name!r}: a manager's name is a text: write name='m{name}'")
        self.name = name if name is not None else f"m{os.getpid()}-{secrets.token_hex(4)}"
        self._named = name is not None
        self._folder = manager_folder(self.name)
        self._folder_lock = _take_folder(self._folder, self.name)
        opened = contextlib.ExitStack()
        opened.callback(os.close, self._folder_lock)
        if not self._named:
            opened.callback(shutil.rmtree, self._folder, ignore_errors=True)
        with opened:
            authority = _authority(self._folder, self.name)
            folder = default_store_folder("manager")
            spool = default_spool_folder(folder)
            self._store = SpoolingStore(folder, default_store_limit(folder), spool, default_store_limit(spool.parent) if spool else 0)
            opened.callback(self._store.close)
            welcome = Welcome(
                "", 0, authority.manager_id, windlass.__version__, heartbeat, silence, manager_timeout, str(folder), self._store.token
            )
            self._core = Core(Settings(reconnect_grace=reconnect_grace))
            hosts = [LOOPBACK if host is None else host]
            self._server = Server(authority, self._store, self._core, hosts=hosts, port=wanted, welcome=welcome, elsewhere=host is None)
            self._client = Client(self._store, self._server.inbox, self._server.now)
            self._server.client = self._client
            self._server.start()
            opened.pop_all()  # from here on `close` does it
        self._finalizer = weakref.finalize(
            self, _close_quietly, self._server, self._client, self._store, self._folder, self._folder_lock, self._named
        )
        self._finalizer.atexit = False
        atexit.register(self._finalizer)
        self._pid = os.getpid()
        _managers.add(self)

    # ------------------------------------------------------------ what it is

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.addresses[0][1]

    @property
    def connection_file(self) -> Path:
        """What the command line connects by: a file only its owner can read."""
        return self._folder / "client.json"

    @property
    def pilot_file(self) -> Path:
        """What pilots enrol by: a file only its owner can read."""
        return self._folder / "pilot.json"

    @property
    def closed(self) -> bool:
        """`close` was called, or the manager's thread ended."""
        return self._closed or bool(self._client.closed)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"port {self.port}, {self._client.outstanding()} calls waiting or running"
        return f"<Manager {self.name!r}, {state}>"

    # ------------------------------------------------------------ libraries

    def create_library(self, name: str, *functions: Callable[..., Any], **options: Any) -> Library:
        """A library of ``functions``; see `Library` for the options. It is there to be called after `install_library`."""
        return Library(name, *functions, **options)

    def create_library_from_functions(self, name: str, *functions: Callable[..., Any], **options: Any) -> Library:
        """TaskVine's spelling of `create_library`: ``hoisting_modules=``, ``exec_mode=``, ``library_context_info=``."""
        return Library.from_functions(name, *functions, **options)

    def install_library(self, library: Library | str, *functions: Callable[..., Any], **options: Any) -> Library:
        """Make a library callable: one that was created, or a name and functions, which creates it.

        Another version under the same name replaces it for calls submitted from now on.
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
        spec = library.spec(self._put_forever)
        with self._lock:
            old = self._installed.get(library.name)
            self._installed[library.name] = _Installed(spec, library)
            self._client.say(InstallLibrary(spec))
            if old is not None and old.spec.id != spec.id:
                self._client.say(RemoveLibrary(old.spec.id))
        return library

    def remove_library(self, library: Library | str) -> None:
        """No more calls of it: its instances end when the calls submitted so far have."""
        self._check_open()
        name: object = getattr(library, "name", library)
        if not isinstance(name, str):
            raise UsageError(f"remove_library({library!r}): write remove_library('lib') or give what create_library returned")
        with self._lock:
            self._client.say(RemoveLibrary(self._library(name).spec.id))
            del self._installed[name]

    def check_library_exists(self, name: str) -> bool:
        """True if a library of this name is installed."""
        return name in self._installed

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the installed libraries."""
        return tuple(self._installed)

    def _library(self, name: str) -> _Installed:
        try:
            return self._installed[name]
        except KeyError:
            raise UnknownName("library", name, self._installed, "(install_library makes one callable)") from None

    # ------------------------------------------------------------ calls

    def submit(self, call: FunctionCall) -> CallFuture[Any]:
        """Queue a call; its future.

        Raises `UnknownName` (library or function), `NotPicklable` (an argument), `NotPossible` (no pool can ever run it), `Closed`.
        """
        if type(call) is not FunctionCall and not isinstance(call, FunctionCall):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"submit({call!r}): write submit(FunctionCall('library', 'function', arguments...))")
        if self._client.closed:
            self._check_open()
        installed = self._installed.get(call.library)
        if installed is None:
            installed = self._library(call.library)
        function = installed.functions.get(call.function)
        if function is None:
            raise UnknownName("function", call.function, installed.functions, within=f"in library {call.library!r}")
        if call.options is not DEFAULT_OPTIONS:
            self._check_possible(installed.spec, call.options)
        parameters = installed.parameters.get(call.function, ())
        return self._client.submit(installed.spec.id, function, call.args, call.kwargs, call.options, call.tag, parameters)

    def submit_function(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        options: CallOptions | None = None,
        tag: str | None = None,
    ) -> CallFuture[Any]:
        """Queue ``fn(*args, **kwargs)`` in the implicit library; its future. Raises as `submit`."""
        from windlass.functions import define

        self._check_open()
        defined = define(fn, self._put_forever)
        definition = defined.definition
        with self._lock:
            spec = self._implicit
            if (
                spec is None
                or any(one.module not in self._implicit_imports for one in defined.imports)
                or any(ref.name not in self._implicit_code for ref in definition.code)
            ):
                spec = self._next_implicit(defined.imports, definition.code)
            if definition.id not in self._defined:
                # In the order of definition, as the core has them: one that is used all the time is defined again in time.
                self._defined[definition.id] = None
                if len(self._defined) > _DEFINED_MOST:
                    self._defined.popitem(last=False)
                self._client.say(DefineFunctions((definition,)))
        chosen = options or DEFAULT_OPTIONS
        if chosen is not DEFAULT_OPTIONS:
            self._check_possible(spec, chosen)
        return self._client.submit(spec.id, definition.id, args, kwargs or {}, chosen, tag, defined.parameters)

    def _next_implicit(self, imports: tuple[ImportSpec, ...], code: tuple[ObjectRef, ...]) -> LibrarySpec:
        self._implicit_imports.update((one.module, one) for one in imports)
        # The newest first: an edited module comes before what it was.
        self._implicit_code = {**{ref.name: ref for ref in code}, **self._implicit_code}
        base = Library(IMPLICIT, imports=None).spec(self._put_forever)
        hoisted = tuple(sorted(self._implicit_imports.values(), key=lambda one: one.module))
        old, number = self._implicit, 1
        if old is not None:
            number = int(old.id.rpartition("@")[2]) + 1
        self._implicit = msgspec.structs.replace(
            base, id=LibraryId(f"{IMPLICIT}@{number}"), imports=hoisted, code=tuple(self._implicit_code.values())
        )
        self._client.say(InstallLibrary(self._implicit))
        if old is not None:
            self._client.say(RemoveLibrary(old.id))
        return self._implicit

    def _check_possible(self, spec: LibrarySpec, options: CallOptions) -> None:
        """Refuse here what no pool can ever run; the core would end it all the same."""
        key = (spec.id, id(options))
        version: int = self._core.means
        if self._possible.get(key) == (options, version):
            return
        offers: tuple[PoolOffer, ...] = self._core.all_offers()
        workers: list[Resources] = [one.info.resources for one in list(self._core.workers.values())]
        reason = why_never(spec, options, offers, workers)
        if reason:
            from windlass.errors import NotPossible

            raise NotPossible(f"no pool can ever run this call of library {spec.name!r}: {reason}")
        if len(self._possible) > 1000:
            self._possible.clear()
        self._possible[key] = (options, version)

    def wait(self, timeout: float | None = None) -> CallFuture[Any] | None:
        """The next call that has ended and is not collected; None after ``timeout`` seconds, or when none is to come."""
        number = isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout == timeout  # not NaN
        if timeout is not None and not number:
            raise UsageError(f"wait({timeout!r}): give seconds, or None to wait for ever")
        # More than a thread can wait for is for ever.
        return self._client.wait(timeout if timeout is None or timeout < threading.TIMEOUT_MAX else None)

    def empty(self) -> bool:
        """No call is waiting, running, or ended and uncollected."""
        return self._client.empty()

    def hungry(self) -> int:
        """How many more calls could be used well now; 0: enough are queued, or the manager is closed."""
        if self.closed:
            return 0
        capacity = sum(state.capacity() for state in list(self._core.libraries.values()))
        return max(0, max(_HUNGRY_LEAST, _HUNGRY_TIMES * capacity) - self._client.outstanding())

    def cancel_by_tag(self, tag: str) -> int:
        """Cancel all calls with this tag; how many had not ended."""
        return self._client.cancel_all([future for future in self._client.pending() if future.tag == tag])

    def cancel_all(self) -> int:
        """Cancel all calls; how many had not ended."""
        return self._client.cancel_all(self._client.pending())

    # ------------------------------------------------------------ seeing

    def status(self) -> dict[str, Any]:
        """How things stand, as documented in docs/status.md."""
        self._check_open()
        answered = threading.Event()
        answer: list[bytes] = []

        def heard(message: Message) -> None:
            if isinstance(message, Status):
                answer.append(message.json)
                answered.set()

        port = self._server.open_port("client", "status", heard)
        port.send(GetStatus())
        if not answered.wait(_STATUS_SECONDS):
            raise Closed(f"manager {self.name!r} did not answer within {_STATUS_SECONDS:g} s; it is closing or held up")
        found: dict[str, Any] = msgspec.json.decode(answer[0])
        found["manager"]["name"] = self.name
        return found

    @property
    def stats(self) -> Stats:
        """Numbers now."""
        status = self.status()
        calls, libraries = status["calls"], status["libraries"]
        return Stats(
            waiting=calls["waiting"],
            running=calls["running"],
            done=calls["done"],
            failed=calls["failed"],
            cancelled=calls["cancelled"],
            workers=len(status["workers"]),
            slots=sum(library["slots"] for library in libraries),
            hoisted_seconds=sum(library["hoisted_seconds"] for library in libraries),
            saved_seconds=sum(library["saved_seconds"] for library in libraries),
            status=status,
        )

    # ------------------------------------------------------------ factories

    def open_port(self, role: str, name: str, on_message: Callable[[Message], None]) -> LocalPort:
        """How a factory in this program reaches the manager; ``on_message`` is called on the manager's thread and must be quick."""
        self._check_open()
        return self._server.open_port(role, name, on_message)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """End: calls that have not ended get `Closed`, workers are sent away. Calling it again does nothing."""
        with self._lock:
            self._closed = True
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _forked(self) -> None:
        """This process is a copy of the program made by `os.fork`: thread, sockets and files are the program's, which goes on with them."""
        if self._finalizer.detach() is None:
            return  # closed before
        self._lock = threading.RLock()  # a thread of the program's may have held it
        self._client.leave_to_program(f"this process is a fork of the program that has it, process {self._pid}")
        os.close(self._folder_lock)  # else the copy would keep the name taken when the program has ended

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"manager {self.name!r} is closed ({self._client.closed or 'the manager was closed'}); make another one")

    def _put_forever(self, data: Any) -> ObjectRef:
        # Functions and code are needed for as long as the manager lives.
        return self._store.put(data, pin=True)


_managers: weakref.WeakSet[Manager] = weakref.WeakSet()


def _after_fork() -> None:
    for manager in list(_managers):
        manager._forked()  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_after_fork)


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()  # some functions written in C


def _read_port(port: object) -> int | tuple[int, int]:
    if isinstance(port, int) and not isinstance(port, bool):
        if not 0 <= port <= 65535:
            raise UsageError(f"port={port} is none: write a number from 1 to 65535, or 0 for any free one")
        return port
    if isinstance(port, tuple | list):
        ends = tuple(cast("list[object]", port))
        if len(ends) == 2 and isinstance(ends[0], int) and isinstance(ends[1], int) and 1 <= ends[0] <= ends[1] <= 65535:
            return ends[0], ends[1]
    raise UsageError(f"port={port!r}: write port=9123, port=0 for any free one, or port=(9000, 9100) for the first free one of a range")


def _take_folder(folder: Path, name: str) -> int:
    """Lock a manager's state folder for this process; the descriptor that holds the lock."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"manager {name!r} cannot keep its state in {folder}: {error.strerror or error};"
            " name a folder that you can write to in the environment variable WINDLASS_STATE_DIR"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(f"manager {name!r} is running already (state in {folder}); choose another name, or end that one") from None
    _sweep(folder.parent)
    return descriptor


def _sweep(managers: Path) -> None:
    """Remove what nameless managers left that were killed."""
    for folder in _nameless(managers):
        try:
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # it runs
        finally:
            os.close(descriptor)


def _nameless(managers: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(managers):
            pid = entry.name[1:].partition("-")[0]
            if entry.name.startswith("m") and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                yield Path(entry.path)


def _authority(folder: Path, name: str) -> Authority:
    """A named manager keeps its identity, so that its pilots find it again."""
    try:
        return Authority.load(folder)
    except FileNotFoundError:
        return Authority.create(f"{name}-{secrets.token_hex(4)}" if name[0].isalpha() else f"m-{name}", folder)


def _close_quietly(server: Server, client: Client, store: ObjectStore, folder: Path, lock: int, named: bool) -> None:
    """The end of a manager; no reference to it, so that it can be the finaliser of one that was dropped."""
    client.closed = client.closed or "the manager was closed"
    with contextlib.suppress(RuntimeError):
        server.stop("the manager was closed")
    client.settle()
    store.close()
    if not named:
        shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
