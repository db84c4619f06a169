"""`attach`: the door to a manager that runs in another process, on this machine or on one that sees its state folder.

Theory of operation
-------------------
An `AttachedManager` has the methods of `windlass.Manager`: both are doors (`windlass.manager.door`), and behind this one is a line
(`windlass.manager.line`) with the user's own credential, the ``client.json`` of the manager's state folder.

A program's calls are its own: several may be attached at once.  They end with the program, orderly (`close`) or not (then after the
manager's ``reconnect_grace``), unless it asked to keep them (``keep=True``, `detach`).  When the manager ends, or was not reached for its
``reconnect_grace``, every future that has not ended does so with `Closed`.
"""

from __future__ import annotations

import atexit
import os
import secrets
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from windlass.descriptors import occupy_standard
from windlass.errors import UsageError, require_flag
from windlass.files import is_sendable
from windlass.identity import CLIENT, ConnectionFile
from windlass.manager.call import read_seconds
from windlass.manager.client import Client
from windlass.manager.door import Door
from windlass.manager.future import CallFuture
from windlass.manager.journal import Journal, check_journal
from windlass.manager.line import Line
from windlass.managers import choose_manager
from windlass.manifests import Manifest
from windlass.messages import CallsFound, FileName, FileOrigin, FileRef, Leave, Message, ObjectRef, PoolOffer, Resources
from windlass.objects import map_object
from windlass.transport import Port, open_port

if TYPE_CHECKING:
    from windlass.dashboard.child import Child

#: Seconds that closing waits for the manager to take note.
_FAREWELL: Final = 5.0


class AttachedManager(Door):
    """A manager of another process; made by `attach`. Close it, or use it in a ``with``."""

    # What the manager remembers is shared by all programs that are attached.
    _defined_most = 1_000

    def __init__(
        self,
        name: str,
        connection: ConnectionFile,
        *,
        keep: bool = False,
        timeout: float = 10.0,
        journal: str | os.PathLike[str] | None = None,
        traces: bool = False,
    ) -> None:
        occupy_standard()
        super().__init__()
        self.name = name
        self._connection = connection
        host = os.uname().nodename.partition(".")[0]
        told = (self._deliver, self._lost, self._brought, self._forgotten, self._tidy, self._found)
        self._line = Line(connection, f"program-{host}-{os.getpid()}-{secrets.token_hex(3)}", *told)
        self._client = Client(self._line.store, self._line.inbox, _clock())
        self._client.owner = id(self)
        self._line.outstanding, self._line.title = self._client.outstanding, name
        self._open_traces(traces)
        self._ports: list[Port] = []
        self._keep = keep
        kept = None if journal is None else Journal(journal)
        self._use_journal(kept)
        try:
            self._line.journal = kept.name() if kept is not None else ""
            self._line.open(keep, timeout)
            if self._line.tells_read:
                self._client.on_read = self._line.has_read
        except BaseException:
            self._client.close_memory()
            raise
        self._finalizer = weakref.finalize(self, _leave, self._line, self._client, self._ports, self._pages)
        self._finalizer.atexit = False
        atexit.register(self._finalizer)

    def _state(self) -> str:
        # Others may be attached, and have theirs.
        return super()._state() if self.closed else f"this program has {super()._state()}"

    @property
    def connection_file(self) -> Path:
        """What this program attached by: a file only its owner can read."""
        return Path(self._connection.path)

    @property
    def pilot_file(self) -> Path:
        """What pilots enrol by: a file only its owner can read."""
        return self.connection_file.with_name("pilot.json")

    @property
    def port(self) -> int:
        """The port that the manager listened on when this program attached."""
        return self._connection.addresses[0][1]

    def status(self) -> dict[str, Any]:
        self._check_open()
        found: dict[str, Any] = msgspec.json.decode(self._line.ask_status())
        found["manager"]["name"] = self.name
        self._client.count_in(found)
        return found

    def open_port(
        self,
        role: str,
        name: str,
        on_message: Callable[[Message], None],
        on_cut: Callable[[str], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> Port:
        """How a factory in this program reaches the manager: a connection of its own, on whose thread ``on_message`` is called."""
        self._check_open()

        def lost(reason: str) -> None:
            on_message(Leave(reason))

        port = open_port(self._connection, role, name, on_message, lost, on_cut=on_cut, on_refused=on_refused)
        self._ports.append(port)
        return port

    def close(self) -> None:
        """Leave: this program's calls that have not ended are cancelled (unless ``keep=True``), and their futures get `Closed`.

        Calling it again does nothing. The manager goes on.
        """
        with self._lock:
            self._closed = True
        self._finalizer()

    def detach(self) -> None:
        """Leave, and let this program's calls go on at the manager; their futures here get `Closed`. Results of those with a tag are kept
        there, for who asks by `find`: also those that have ended already, but for what this program has read.

        Raises `UsageError` while calls wait for the results of others, or for what an equal one returns (``memoize=True``): it is this
        program that hands those on.
        """
        self._check_open()
        following = self._client.memory.following if self._client.memory is not None else 0
        if following:
            raise UsageError(
                f"{following:,} calls wait for what equal ones return (memoize=True), which this program hands on, so they would be lost"
                " when it has left: wait until those have ended, or cancel them"
            )
        waiting = self._client.feeder.count.waiting
        if waiting:
            raise UsageError(
                f"{waiting:,} calls wait for the results of others, which this program hands on, so they would never run when it has left:"
                " wait until they have begun (status()['calls']['waiting_for_inputs'] is 0), or cancel them"
            )
        self._line.flush()
        self._line.leave_calls(self._client.unread)
        self.close()

    def find(self, tag: str) -> list[CallFuture[Any]]:
        """The calls with this tag that programs have left here (``keep=True``, `detach`), in the order in which they were submitted: their
        futures, of this program from now on. Each is given to the first who asks; calls of programs that are attached are not. Those of
        one that is not heard of, and may have been killed on another machine, are not yet: a warning says how many, and when they will be.

        Raises `Closed`, `Unreachable` when the manager does not answer.
        """
        self._check_open()
        if not isinstance(tag, str) or not tag:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"find({tag!r}): give the tag that the calls were submitted with, as in find('sweep-1')")
        return self._line.find(tag)

    def _forked(self) -> None:
        if self._finalizer.detach() is None:
            return  # closed before
        self._client.leave_to_program(f"this process is a fork of the program that is attached, process {self._pid}")

    def _means_version(self) -> int:
        return self._line.means.version

    def _means(self) -> tuple[tuple[PoolOffer, ...], list[Resources]]:
        means = self._line.means
        return means.offers, list(means.workers)

    def _capacity(self) -> int:
        return self._line.means.capacity

    def _declare(self, ref: FileRef, origin: FileOrigin, manifest: Manifest | None) -> Callable[[], None]:
        if origin.path and not (self._line.folder and is_sendable(origin.path)):  # on another machine, which need not see this path
            if manifest is not None and self._line.folder:
                raise UsageError(
                    f"{origin.path!r} is not UTF-8, so no message can tell the manager where this directory tree is: rename it, or declare "
                    "an archive of it (declare_archive)"
                )
            if manifest is not None:
                raise UsageError(
                    f"{origin.path}: the manager is on another machine, to which a directory tree cannot be sent: declare an archive of it "
                    "(declare_archive), or declare_shared if the nodes see it"
                )
            origin = FileOrigin(object=self._line.store.put(map_object(origin.path, foreign=True, briefly=True), pin=True))
        elif manifest is not None:
            origin = msgspec.structs.replace(origin, manifest=self._line.store.put(manifest.encode(), pin=True))
        return super()._declare(ref, origin, manifest)

    def _has_much_room(self) -> bool:
        return False  # the manager has its own programs in mind

    def _put_forever(self, data: Any) -> ObjectRef:
        # Never unpinned: the manager does that when this program has left.
        return self._line.store.put(data, pin=True)

    def _deliver(self, done: list[Any]) -> None:
        self._client.deliver(done)

    def _brought(self, name: str, text: str) -> None:
        self._client.kept.brought(name, text)

    def _forgotten(self, names: Sequence[FileName]) -> None:
        self._client.forgotten(names)

    def _tidy(self) -> None:
        self._client.tidy()

    def _found(self, found: CallsFound, tag: str) -> list[CallFuture[Any]]:
        futures = self._client.take_over(found.calls, tag)
        for future, key in zip(futures, found.keys, strict=False):
            future.key = key or None  # an earlier life of this program had submitted it
        return futures

    def _lost(self, reason: str) -> None:
        self._client.close(f"manager {self.name!r} is lost to this program: {reason}")


def attach(
    manager: str | os.PathLike[str] | None = None,
    *,
    state_dir: str | os.PathLike[str] | None = None,
    trust_state_dir: bool | None = None,
    keep: bool = False,
    timeout: float | str = 10.0,
    journal: str | os.PathLike[str] | None = None,
    traces: bool = False,
) -> AttachedManager:
    """The door to a manager that runs already (``windlass manager start``): use it as a `Manager`.

    ``manager``: its name, its state folder, or its connection file; without it the only one of yours that runs. ``state_dir``: where
    managers keep their state, if not in the usual place. ``keep=True``: this program's calls go on when it has left or was killed.
    ``timeout``: seconds (or ``"1min"``) to wait for the manager's answer. ``journal``: as `Manager`'s: what this program's calls return is
    there for its next life. ``traces``: each call is a span for OpenTelemetry (docs/monitoring.md).

    Raises `UnknownName` for a name that nobody has, `UsageError` when several could be meant or the file may be read by others,
    `ConnectionRefused` when the manager does not answer, and `OSError` where this machine has no room for a folder of this program's.
    """
    if manager is not None and not (isinstance(manager, str | os.PathLike) and os.fspath(manager)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"attach({manager!r}): write attach('NAME'), as in  windlass manager start NAME,  or give a connection file")
    patience = read_seconds("timeout", timeout, "")
    require_flag("keep", keep)
    if trust_state_dir is not None:
        require_flag("trust_state_dir", trust_state_dir)
    check_journal(journal)
    known = choose_manager(os.fspath(manager) if manager is not None else None, state_dir=state_dir, trust=trust_state_dir)
    connection = known.connection
    if connection.role != CLIENT:
        raise UsageError(f"{known.path} is what pilots connect by, not programs: give the manager's client.json")
    return AttachedManager(known.name, connection, keep=keep, timeout=patience, journal=journal, traces=traces)


def _clock() -> Callable[[], float]:
    """Seconds since the epoch, by a clock that never jumps."""
    import time

    epoch = time.time() - time.monotonic()
    return lambda: epoch + time.monotonic()


def _leave(line: Line, client: Client, ports: list[Port], pages: list[Child]) -> None:
    """The end of an attachment; no reference to it, so that it can be the finaliser of one that was dropped."""
    lost = bool(client.closed)
    for page in pages:
        page.close()
    client.closed = client.closed or "this program has left the manager"
    try:
        if not lost:
            line.store.patience_until = time.monotonic() + _FAREWELL
            line.end_hearing(_FAREWELL)
            client.settle()
    finally:  # Ctrl-C ends the reading alone: nobody comes here again
        client.close_memory()
        line.close(_FAREWELL if not lost else 0.0)
        for port in ports:
            port.close()
        client.close(client.closed)
