"""Which manager a person means who types a name, a port, or nothing at all.

Theory of operation: every manager, named or not, keeps a connection file in the user's state folder (`windlass.identity`).  A file may be
older than its manager's end (a killed program removes nothing), so a manager counts as running when something at one of its addresses
completes a TLS handshake as this very manager: a port that another program has taken since does not.  Of one that does not, there is more
to know than that (`Presence`): a program that is stopped or busy has its port all the same, and the kernel takes connections for it.  Where
a port says nothing, as on another machine, the manager's own word tells that it has ended (`windlass.bygone`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from windlass import bygone
from windlass.addresses import is_loopback
from windlass.errors import UnknownName, UsageError, WindlassError
from windlass.identity import Address, ConnectionFile, find_manager, read_connection_file, state_folder
from windlass.locks import is_free

#: Seconds for a connection and a handshake with a manager that is there.
REACH_TIMEOUT: Final = 2.0
#: Seconds between looks for a manager that is waited for.
LOOK_INTERVAL: Final = 0.2


class NotRunning(UsageError):
    """No manager that was meant is running now; one may be later."""


class OutOfReach(NotRunning):
    """It may run: that cannot be told from here."""


class Presence(StrEnum):
    """What can be told of a manager from here."""

    RUNNING = "running"
    #: It is there and says nothing: its program is stopped (Ctrl-Z), or busy.
    SILENT = "silent"
    #: Nothing says that it is there, nor that it is not: its machine is gone, or does not let this one in.
    UNKNOWN = "unknown"
    ENDED = "ended"

    @property
    def is_there(self) -> bool:
        return self in (Presence.RUNNING, Presence.SILENT)


@dataclass(frozen=True, slots=True)
class Known:
    """A manager of this user that has left a connection file."""

    name: str
    path: Path
    connection: ConnectionFile

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple(sorted({port for _, port in self.connection.addresses}))

    def describe(self) -> str:
        return f"{self.name} (port {', '.join(str(port) for port in self.ports) or '?'})"

    def require_running(self) -> Presence:
        """Raises `NotRunning` unless it is there: running, or silent."""
        found = self.look()
        if found is Presence.UNKNOWN:
            raise OutOfReach(
                f"manager {self.describe()} is not reached from here: it was killed, its machine is down, or this one is not let in;"
                " ask where it ran"
            )
        if found is Presence.ENDED:
            raise NotRunning(
                f"manager {self.describe()} does not answer: it has ended, or is out of reach from here; start the program that has it"
            )
        return found

    def is_running(self) -> bool:
        """Whether something at one of its addresses proves to be this manager."""
        return self.look() is Presence.RUNNING

    def look(self) -> Presence:
        """What can be told of it now, in two seconds for each address at most."""
        context = self.connection.client_context()
        host, _ = bygone.read_lock(self.lock)
        here = host == os.uname().nodename
        found: set[Presence] = set()
        for address in self.connection.addresses:
            at = self._look_at(address, context)
            if at is Presence.RUNNING:
                return at
            # The loopback of another machine says nothing of its own; and a firewall before it may refuse as it does.
            elsewhere = host and not here and (is_loopback(address[0]) or at is Presence.ENDED)
            found.add(Presence.UNKNOWN if elsewhere else at)
        # Some other program may listen there by now, or an address may be gone: on its own host the lock tells.
        if not found - {Presence.ENDED} or (here and is_free(self.lock)):
            return Presence.ENDED
        if Presence.SILENT in found:
            return Presence.SILENT
        # Not before: the ports take seconds, in which a new life may have begun.
        _, says_ended = bygone.read_lock(self.lock)
        return Presence.ENDED if says_ended else Presence.UNKNOWN

    def _look_at(self, address: Address, context: ssl.SSLContext) -> Presence:
        try:
            plain = socket.create_connection(address, timeout=REACH_TIMEOUT)
        except ConnectionRefusedError:
            return Presence.ENDED
        except OSError:
            return Presence.UNKNOWN
        try:
            with plain, context.wrap_socket(plain, server_hostname=self.connection.manager):
                return Presence.RUNNING
        except TimeoutError:
            return Presence.SILENT
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):  # something between the two, or a manager that has too many strangers
            return Presence.UNKNOWN
        except ssl.SSLError:  # another program has the port
            return Presence.ENDED
        except OSError:
            return Presence.UNKNOWN

    @property
    def lock(self) -> Path:
        """The file that it has locked as long as it lives."""
        return self.path.with_name("lock")


def known_managers(state_dir: str | os.PathLike[str] | None = None, trust: bool | None = None) -> list[Known]:
    """Managers of this user with a readable connection file, the newest first, running or not."""
    found: list[tuple[float, Known]] = []
    for path in (state_folder(state_dir) / "managers").glob("*/client.json"):
        with contextlib.suppress(OSError, WindlassError):  # gone meanwhile, or not ours to read
            found.append((path.stat().st_mtime, Known(path.parent.name, path, read_connection_file(path, trust=trust))))
    return [known for _, known in sorted(found, key=lambda pair: pair[0], reverse=True)]


def choose_manager(
    name: str | None = None, port: int | None = None, *, state_dir: str | os.PathLike[str] | None = None, trust: bool | None = None
) -> Known:
    """The manager meant by a name (or folder, or file), by a port, or by nothing: then the only one that is there.

    ``state_dir``: where they are looked for, if not in the usual place; ``trust``: their files are private, whatever their modes say.

    Raises `UnknownName` for a name that nobody has, `NotRunning` when none fits, `UsageError` when several do; the text lists them.
    """
    if name is not None:
        path = find_manager(name, state_dir)
        return Known(path.parent.name, path, read_connection_file(path, trust=trust))
    running = [known for known in known_managers(state_dir, trust) if (port is None or port in known.ports) and known.look().is_there]
    if len(running) == 1:
        return running[0]
    if not running:
        where = f" on port {port}" if port is not None else ""
        raise NotRunning(
            f"no manager of yours is running{where} (looked in {state_folder(state_dir) / 'managers'}); start the program that has it"
        )
    name = running[0].name
    which = f"say which by its name: attach({name!r}), on the command line --manager {name}"
    raise UsageError(f"{len(running)} managers of yours are running: {_listed(running)}; {which}")


def await_manager(name: str | None, port: int | None, wait: float, say: Callable[[str], None]) -> Known:
    """As `choose_manager`, but a manager that is not there yet, or does not answer, is waited for, ``wait`` seconds at most.

    ``say`` is told once that it waits. Raises what `choose_manager` raised last, and gives one that is still silent as it is.
    """
    end = time.monotonic() + wait
    told = False
    while True:
        over = time.monotonic() >= end
        try:
            known = choose_manager(name, port)
            if known.require_running() is Presence.RUNNING or over:
                return known
        except (UnknownName, NotRunning):
            if over:
                raise
        if not told:
            what = f"manager {name!r}" if name else f"a manager on port {port}" if port is not None else "a manager"
            say(f"waiting up to {wait:g} s for {what}")
            told = True
        time.sleep(LOOK_INTERVAL)


def _listed(managers: Sequence[Known]) -> str:
    return ", ".join(known.describe() for known in managers)
