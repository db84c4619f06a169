"""`Manager`: what a program holds.

Theory of operation
-------------------
A manager is a thread (`windlass.manager.server`) with a state folder that pilots and the command line find it by, an object store, and a
client (`windlass.manager.client`).  What a program calls on it is `windlass.manager.door`'s; this module owns the thread, the folder
and the store, and ends them.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Never, cast

import msgspec

import windlass
from windlass import bygone
from windlass.descriptors import occupy_standard
from windlass.errors import Closed, UsageError, refuse_unknown, require_flag
from windlass.identity import Authority, cannot_keep_state, make_private, manager_folder
from windlass.importing import refuse_on_import
from windlass.locks import is_locked_here, lock, unlock
from windlass.manager.call import SECONDS_MOST, read_seconds
from windlass.manager.client import Client
from windlass.manager.core import Core, Settings
from windlass.manager.door import Door
from windlass.manager.journal import Journal, check_journal
from windlass.manager.server import LocalPort, Server
from windlass.manifests import Manifest
from windlass.messages import (
    CallId,
    FileOrigin,
    FileRef,
    GetStatus,
    Message,
    ObjectRef,
    PoolOffer,
    Resources,
    Status,
    Welcome,
)
from windlass.object_store import ObjectStore
from windlass.runs import run_name, write_run
from windlass.spooling import SpoolingStore
from windlass.store_folders import default_spool_folder, default_store_folder, default_store_limit

if TYPE_CHECKING:
    from windlass.dashboard.child import Child
    from windlass.metrics_server import Exporter

_STATUS_SECONDS: Final = 10.0
LOOPBACK: Final = "127.0.0.1"


class Manager(Door):
    """Runs calls on pilots: libraries, calls, futures.

    ``port``: 0 for any free one, a number, or a range ``(low, high)``. ``name``: what pilots and the command line find it by; without one
    it is made up. ``host``: the address to listen on; the default is this machine's loopback, enough for local pilots, and one
    that nodes reach as soon as a factory has pilots on other machines (the pool's ``interface`` or ``network``, else what the host name
    resolves to). Times are seconds, or texts (``"2h"``): a worker whose connection is cut keeps its calls for ``reconnect_grace``, and
    leaves when it has not reached its manager for ``manager_timeout``; what needs a file waits up to ``file_patience`` for its source to
    answer again. ``journal``: a folder for the results of calls, which the same program finds when it is started again, as it finds its
    pilots (docs/journal.md). ``state_dir``: where its state folder goes (default: $WINDLASS_STATE_DIR, else
    $XDG_STATE_HOME/windlass, else ~/.local/state/windlass); on a file system that cannot keep others away (AFS, CIFS) it is refused unless
    ``trust_state_dir=True`` says that nobody else can read it. ``dashboard=True``: serve a page that shows the manager at work, and
    print its address. ``record=True``: note what slots run, for ``windlass report`` (docs/dashboard.md); a dashboard does so, too.
    ``metrics``: a port, or ``"ADDRESS:PORT"``, at which Prometheus finds how things stand; ``traces``: each call is a span for
    OpenTelemetry (docs/monitoring.md).

    Raises `UsageError` when the port is in use or another manager of yours has the name.
    """

    def __init__(
        self,
        port: int | tuple[int, int] | list[int] = 0,
        name: str | None = None,
        *,
        host: str | None = None,
        reconnect_grace: float | str = 60.0,
        manager_timeout: float | str = 300.0,
        file_patience: float | str = 600.0,
        heartbeat: float | str = 5.0,
        silence: float | str = 30.0,
        journal: str | os.PathLike[str] | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        trust_state_dir: bool | None = None,
        dashboard: bool = False,
        record: bool = False,
        metrics: int | str | None = None,
        traces: bool = False,
        **unknown: Never,
    ) -> None:
        refuse_unknown("option of Manager", unknown, Manager.__init__)
        refuse_on_import("a Manager")
        occupy_standard()
        super().__init__()
        wanted = _read_port(port)
        reconnect_grace = read_seconds("reconnect_grace", reconnect_grace, "")
        manager_timeout = read_seconds("manager_timeout", manager_timeout, "")
        file_patience = read_seconds("file_patience", file_patience, "")
        heartbeat = read_seconds("heartbeat", heartbeat, "")
        silence = read_seconds("silence", silence, "")
        if silence <= heartbeat:
            raise UsageError(
                f"silence={silence:g} is not longer than heartbeat={heartbeat:g}, so every connection would count as cut;"
                f" write silence={6 * heartbeat:g}"
            )
        if host is not None and not (isinstance(host, str) and host):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"host={host!r}: write a name or an address of this machine, as in host='127.0.0.1'")
        if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"name={name!r}: a manager's name is a text: write name='m{name}'")
        if trust_state_dir is not None:
            require_flag("trust_state_dir", trust_state_dir)
        require_flag("dashboard", dashboard)
        require_flag("record", record)
        if dashboard:
            from windlass.dashboard.child import require_installed

            require_installed()
        check_journal(journal)
        self._exporter: Exporter | None = None
        with contextlib.ExitStack() as opened:
            # Before all else: it has the name by which the pilots of the program's earlier life find this one.
            kept = Journal(journal) if journal is not None else None
            if kept is not None:
                opened.callback(kept.close)
            named_by = kept if name is None else None
            self._named = name is not None or kept is not None
            if name is None:
                name = kept.name() if kept is not None else f"m{os.getpid()}-{secrets.token_hex(4)}"
            self.name = name
            self._folder = manager_folder(self.name, state_dir)
            self._folder_lock = _take_folder(self._folder, self.name, named_by)
            if not self._named:
                opened.callback(_remove_empty, self._folder)
            opened.callback(unlock, self._folder_lock)
            if self._named:
                opened.callback(bygone.say_ended, self._folder_lock)
            else:
                opened.callback(shutil.rmtree, self._folder, ignore_errors=True)
            make_private(self._folder, trust_state_dir)
            authority = _authority(self._folder, self.name, trust_state_dir)
            folder = default_store_folder("manager")
            spool = default_spool_folder(folder)
            spool_limit = default_store_limit(spool.parent) if spool else 0
            self._store = SpoolingStore(folder, default_store_limit(folder), spool, spool_limit, most=default_store_limit(folder, 0.5))
            opened.callback(self._store.close)
            welcome = Welcome(
                "",
                0,
                authority.manager_id,
                windlass.__version__,
                heartbeat,
                silence,
                manager_timeout,
                str(folder),
                self._store.token,
                adopts=journal is not None,
                keeps_unread=True,
            )
            self._core = Core(Settings(reconnect_grace, file_patience))
            hosts = [LOOPBACK if host is None else host]
            self._server = Server(authority, self._store, self._core, hosts=hosts, port=wanted, welcome=welcome, elsewhere=host is None)
            self._client = Client(self._store, self._server.inbox, self._server.now)
            self._server.client = self._client
            self._client.owner, self._client.runs = id(self), _asks_whether_it_runs(self._core)
            self._open_traces(traces)
            self._factories = 0
            self._set_up_viewing(record or dashboard)
            self._use_journal(kept)
            opened.callback(self._client.close_memory)
            if metrics is not None:
                self._exporter = _export(weakref.ref(self), metrics)
                opened.callback(self._exporter.close)
            self._server.start()
            opened.pop_all()  # from here on `close` does it
        self._finalizer = weakref.finalize(
            self, _close_quietly, self._server, self._client, self._store, self._folder, self._folder_lock, self._named, self._pages
        )
        self._finalizer.atexit = False
        atexit.register(self._finalizer)
        self._end_metrics = weakref.finalize(self, self._exporter.close) if self._exporter is not None else None
        if dashboard:
            self._show_dashboard(say=True)

    def _set_up_viewing(self, record: bool) -> None:
        viewing, folder, now = self._server.viewing, self._folder.parent.parent / "runs", self._server.now()
        viewing.run, self._server.name = run_name(self.name, now), self.name
        viewing.write = lambda run, data: write_run(folder, run, data)
        if record:
            viewing.begin(now)

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
    def metrics_url(self) -> str:
        """What Prometheus scrapes; empty without ``metrics=``."""
        return self._exporter.url if self._exporter is not None else ""

    def _state(self) -> str:
        if self.closed:
            return "closed"
        workers = len(self._core.workers)
        return f"port {self.port}, {super()._state()}, {workers:,} worker{'s' * (workers != 1)}"

    # ------------------------------------------------------------ seeing

    def status(self) -> dict[str, Any]:
        """How things stand, as documented in docs/status.md. Raises `Closed`, also when no answer comes within ten seconds."""
        return self._ask_status(_STATUS_SECONDS)

    def _ask_status(self, timeout: float) -> dict[str, Any]:
        self._check_open()
        answered = threading.Event()
        answer: list[bytes] = []

        def heard(message: Message) -> None:
            if isinstance(message, Status):
                answer.append(message.json)
                answered.set()

        port = self._server.open_port("client", "status", heard)
        port.send(GetStatus())
        if not answered.wait(timeout):
            raise Closed(f"manager {self.name!r} did not answer within {timeout:g} s; it is closing or held up")
        found: dict[str, Any] = msgspec.json.decode(answer[0])
        found["manager"]["name"] = self.name
        return found

    # ------------------------------------------------------------ programs elsewhere

    def stay(self, idle_timeout: float) -> str:
        """Serve programs that attach, until one of them ends this manager (``windlass manager stop``), `leave` is called, or there were no
        calls, programs and factories for ``idle_timeout`` seconds (0: for ever); why it ended."""
        self._check_open()
        if isinstance(idle_timeout, bool) or not isinstance(idle_timeout, int | float) or not 0 <= idle_timeout < SECONDS_MOST:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"stay({idle_timeout!r}): give seconds, or 0 to stay for ever")
        self._server.stay(idle_timeout)
        return self._server.reason

    def leave(self, reason: str) -> None:
        """Have `stay` return; from any thread, or a handler of signals."""
        self._server.end(reason)

    # ------------------------------------------------------------ factories

    def open_port(
        self,
        role: str,
        name: str,
        on_message: Callable[[Message], None],
        on_cut: Callable[[str], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> LocalPort:
        """How a factory in this program reaches the manager; ``on_message`` is called on the manager's thread and must be quick. ``on_cut``
        and ``on_refused`` are never called: there is no connection. Raises `UsageError` for a second factory of a name."""
        self._check_open()
        return self._server.open_port(role, name, on_message)

    def factory_name(self) -> str | None:
        """The name of the next factory of this program: with a journal, that which it had in the program's earlier life."""
        if self._client.memory is None or not self._client.memory.all_calls:
            return None
        self._factories += 1
        return f"{self.name}-{self._factories}"

    def cancel_earlier(self) -> int:
        """End calls of an earlier life of this program that still run, and that this life has not submitted; how many there are by now.

        That is, as far as workers have told of them: just after the start, when these have yet to come back, it may be 0.
        For a program with a ``journal=``, when it has submitted what it wants: as after a change of the function, when nobody will ask for
        them any more. It holds also for those of which workers that come back will tell.
        """
        self._check_open()
        return self._client.memory.end_earlier() if self._client.memory is not None else 0

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """End: calls that have not ended get `Closed`, workers are sent away. Calling it again does nothing."""
        with self._lock:
            self._closed = True
        if self._end_metrics is not None:
            self._end_metrics()
        self._finalizer()

    def _forked(self) -> None:
        if self._finalizer.detach() is None:
            return  # closed before
        self._client.leave_to_program(f"this process is a fork of the program that has it, process {self._pid}")
        # Else the copy would keep name and ports taken when the program has ended.
        os.close(self._folder_lock)
        self._server.leave_to_program()
        if self._exporter is not None and self._end_metrics is not None and self._end_metrics.detach() is not None:
            self._exporter.leave_to_program()

    def _means_version(self) -> int:
        return self._core.means

    def _means(self) -> tuple[tuple[PoolOffer, ...], list[Resources]]:
        return self._core.all_offers(), [one.info.resources for one in list(self._core.workers.values())]

    def _capacity(self) -> int:
        return sum(state.capacity() for state in list(self._core.libraries.values()))

    def _declare(self, ref: FileRef, origin: FileOrigin, manifest: Manifest | None) -> Callable[[], None]:
        if manifest is not None:
            self._server.files.sources.manifests[ref.name] = manifest
        return super()._declare(ref, origin, manifest)

    def _has_much_room(self) -> bool:
        return self._store.used < self._store.limit // 8

    def _put_forever(self, data: Any) -> ObjectRef:
        # Functions and code are needed for as long as the manager lives.
        return self._store.put(data, pin=True)


def _asks_whether_it_runs(core: Core) -> Callable[[CallId], bool]:
    def asks(call: CallId) -> bool:
        from windlass.manager.listing import runs  # programs that never ask do without it

        return runs(core, call)

    return asks


def _export(manager: weakref.ref[Manager], where: object) -> Exporter:
    """Serve its metrics. Raises UsageError."""
    from windlass.metrics_server import ANSWER_SECONDS, Exporter, read_address

    def read() -> dict[str, Any]:
        found = manager()
        if found is None or not hasattr(found, "_end_metrics"):
            raise Closed("the manager is being made or has gone")
        return found._ask_status(ANSWER_SECONDS)  # pyright: ignore[reportPrivateUsage]

    return Exporter(read, *read_address(where))


def _read_port(port: object) -> int | tuple[int, int]:
    if isinstance(port, int) and not isinstance(port, bool):
        if not 0 <= port <= 65535:
            raise UsageError(f"port={port} is none: write a number from 1 to 65535, or 0 for any free one")
        return port
    if isinstance(port, tuple | list):
        ends = tuple(cast("list[object]", port))
        if len(ends) == 2 and isinstance(ends[0], int) and isinstance(ends[1], int) and 1 <= ends[0] <= ends[1] <= 65535:
            return ends[0], ends[1]
    hint = f"; a name is given as Manager(name={port!r})" if isinstance(port, str) and not port.isdigit() else ""
    raise UsageError(
        f"port={port!r}: write port=9123, port=0 for any free one, or port=(9000, 9100) for the first free one of a range{hint}"
    )


#: A folder without a lock, as another host may just be making one, is left alone for so long.
_EMPTY_SECONDS: Final = 3600.0


def _take_folder(folder: Path, name: str, named_by: Journal | None = None) -> int:
    """Lock a manager's state folder for this process; the descriptor that holds the lock. ``named_by``: the journal that has the name."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(cannot_keep_state(name, folder, error)) from error
    try:
        lock(descriptor)
    except BlockingIOError:
        text = _is_running(folder, name, named_by, descriptor)
        os.close(descriptor)
        raise UsageError(text) from None
    except OSError as error:
        os.close(descriptor)
        raise UsageError(f"{cannot_keep_state(name, folder, error)} (this file system has no locks)") from error
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, os.uname().nodename.encode())
        os.fsync(descriptor)  # other hosts are not to read what stood there: that the last one had ended, say, or nothing
    except OSError as error:
        unlock(descriptor)
        raise UsageError(cannot_keep_state(name, folder, error)) from error
    _sweep(folder.parent)
    return descriptor


def _is_running(folder: Path, name: str, named_by: Journal | None, lock_file: int) -> str:
    """Whose a name is that is taken, and what to do."""
    who, where, remedy = f"manager {name!r}", "", "; choose another name, or end that one"
    if is_locked_here(lock_file):
        where, remedy = ", in this program", ": close() it, or go on using it"
    elif (host := os.pread(lock_file, 1024, 0).decode(errors="replace")) not in ("", os.uname().nodename):
        where = f" on {host}"
    if named_by is not None:  # nobody has chosen the name, and the journal itself is free
        who, remedy = f"{who}, as journal {named_by.folder} calls it,", "; choose a name for this one, as in name='night', or end that one"
    return f"{who} is running already{where} (state in {folder}){remedy}"


def _sweep(managers: Path) -> None:
    """Remove what nameless managers of this host left that were killed: not all shared file systems tell hosts of each other's locks."""
    for folder in _nameless(managers):
        try:
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            with contextlib.suppress(OSError):
                if time.time() - os.stat(folder).st_mtime > _EMPTY_SECONDS:
                    _remove_empty(folder)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.read(descriptor, 1024).decode(errors="replace") == os.uname().nodename:
                if bygone.is_expected(folder):
                    bygone.note(managers, folder.name)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # it runs
        finally:
            os.close(descriptor)
            _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    """A shared file system keeps what is open, under another name, until it is closed; and so the folder."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _nameless(managers: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(managers):
            # As a nameless one is called, and nothing else: a user may name a manager m2024-sweep.
            nameless = re.fullmatch(r"m(\d+)-[0-9a-f]{8}", entry.name)
            if nameless and not os.path.exists(f"/proc/{nameless[1]}"):
                yield Path(entry.path)


def _authority(folder: Path, name: str, trust: bool | None) -> Authority:
    """A named manager keeps its identity, so that its pilots find it again; for half a year, as certificates end some day."""
    with contextlib.suppress(FileNotFoundError):
        kept = Authority.load(folder, trust=trust)
        if not kept.is_half_spent(time.time()):
            return kept
    return Authority.create(f"{name}-{secrets.token_hex(4)}" if name[0].isalpha() else f"m-{name}", folder, trust=trust)


def _close_quietly(server: Server, client: Client, store: ObjectStore, folder: Path, held: int, named: bool, pages: list[Child]) -> None:
    """The end of a manager; no reference to it, so that it can be the finaliser of one that was dropped."""
    client.closed = client.closed or "the manager was closed"
    with contextlib.ExitStack() as ending:  # from the last to the first; Ctrl-C ends one step alone: nobody comes here again
        if not named:
            if bygone.is_expected(folder):
                ending.callback(bygone.note, folder.parent, folder.name)
            ending.callback(_remove_empty, folder)
        ending.callback(unlock, held)
        if named:
            ending.callback(bygone.say_ended, held)
        else:
            ending.callback(shutil.rmtree, folder, ignore_errors=True)
        ending.callback(store.close)
        for page in pages:
            ending.callback(page.close)
        ending.callback(client.close_memory)
        ending.callback(client.settle)
        with contextlib.suppress(RuntimeError):
            server.stop("the manager was closed")
