"""A worker's door for its peers: they fetch files of its cache, and nothing else.

Theory of operation
-------------------
A worker that has enrolled has a certificate of its own, by its own name, from the authority that its peers know too.  With it the door
accepts TLS connections on the address that this node uses towards the manager, and on no other one.  It lets in who shows a certificate of
this authority for a *worker*, by that worker's name; what they ask for must be permitted by the manager (`windlass.permits`) for just that
worker, file and source.  Then `windlass.fileserver.FileServer` answers from the cache.

One thread accepts, and each connection has its own; the worker's loop has no part in it.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from windlass import __version__
from windlass.addresses import is_loopback
from windlass.errors import UsageError
from windlass.fileserver import FileServer, Find, PlainFile, ServedFile, ServedTree
from windlass.filewire import format_address, hang_up
from windlass.identity import WORKER, Address, ConnectionFile, Identity, serving_context
from windlass.messages import FileName, GetFile, Hello, Refused, Welcome
from windlass.permits import NotPermitted, check_permit
from windlass.versions import disagreement

if TYPE_CHECKING:
    from windlass.worker.cache import Cache

log = logging.getLogger("windlass.files")

#: Seconds to wait when the system is out of descriptors.
_PAUSE: Final = 1.0


def address_towards(addresses: Sequence[Address]) -> str:
    """The address of this node that packets to the first one of ``addresses`` come from to which there is a way; loopback, which is one on
    every node, where there is no other. Sends nothing.

    Raises:
        OSError: there is no way to any of them.
    """
    trouble: OSError | None = None
    here = ""
    for host, port in addresses:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError as error:
            trouble = error
            continue
        for family, kind, protocol, _, where in found:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(where)
                    own = str(probe.getsockname()[0])
            except OSError as error:
                trouble = error
                continue
            if not is_loopback(own):
                return own
            here = here or own  # the manager listens for programs of its own host, too
    if here:
        return here
    raise trouble or OSError(errno.EDESTADDRREQ, "no address of the manager is known")


def find_in(cache: Cache) -> Find:
    """What a worker's door serves: the entries of its cache, each pinned while it is read."""

    def find(name: FileName) -> ServedFile | None:
        try:
            cache.pin(name)
        except (KeyError, ValueError):
            return None
        try:
            facts = cache.facts(name)
            path = cache.path(name, os.fsdecode(facts.base))
            file = ServedTree(cache.manifest(name), path) if path.is_dir() else PlainFile(path, facts.size)
        except KeyError:  # somebody has deleted the cache's folder
            cache.unpin(name)
            return None
        except BaseException:
            cache.unpin(name)
            raise
        return _Pinned(cache, name, file)

    return find


class _Pinned:
    """A file of the cache; its pin goes when it is closed."""

    def __init__(self, cache: Cache, name: FileName, file: ServedFile) -> None:
        self._cache, self._name, self._file = cache, name, file
        self.size, self.tree = file.size, file.tree
        self.read = file.read

    def close(self) -> None:
        self._file.close()
        self._cache.unpin(self._name)


class PeerDoor:
    """Serves this worker's files to its peers from `open` to `close`. ``find`` is called on threads.

    ``connection`` says whose authority counts; ``certificate`` and ``key`` (PEM) are this worker's own.
    """

    def __init__(self, connection: ConnectionFile, worker: str, certificate: bytes, key: bytes, find: Find, **limits: float) -> None:
        self._ca, self._manager, self._worker = connection.ca, connection.manager, worker
        self._context = serving_context(connection.ca, certificate, key)
        self.server = FileServer(find, self.allowed, **limits)  # type: ignore[arg-type]
        #: What `open` gave.
        self.addresses: tuple[str, ...] = ()
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def open(self, host: str, port: int | tuple[int, int] = 0) -> tuple[str, ...]:
        """Listen on this address of the node, at a port, the first free one of a range, or (0) any: what to tell the manager.

        Raises:
            UsageError: the address is not this node's, or no such port is free.
        """
        assert self._listening is None, "it is open"
        low, high = port if isinstance(port, tuple) else (port, port)
        for number in range(low, high + 1):
            try:
                self._listening = socket.create_server(
                    (host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
                )
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or number == high:
                    raise UsageError(f"peers cannot be served on {host}, port {number}: {error.strerror or error}") from error
        assert self._listening is not None
        self._thread = threading.Thread(target=self._accept, args=(self._listening,), name="windlass-peers", daemon=True)
        self._thread.start()
        self.addresses = (format_address(host, int(self._listening.getsockname()[1])),)
        return self.addresses

    def close(self, timeout: float = 2.0) -> None:
        """Stop listening and cut all streams; waits up to so many seconds for their threads."""
        self._closed = True
        if self._listening is not None:
            hang_up(self._listening)
        if self._thread is not None:
            self._thread.join(timeout)
        if self._listening is not None:
            self._listening.close()
        self.server.close(timeout)

    def judge(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        """What this worker says to a Hello."""
        text = disagreement(hello, f"worker {self._worker}")
        if text:
            return Refused(text)
        if identity.role != WORKER or hello.role != WORKER:
            return Refused(f"a certificate for role {identity.role!r} gets no files here: only workers do")
        if hello.peer != identity.name:
            return Refused(f"the certificate belongs to worker {identity.name!r} and may not be used by {hello.peer!r}")
        if hello.purpose != "data":
            return Refused(f"there are no connections for {hello.purpose!r} between workers: use 'data'")
        return Welcome("", 0, self._manager, __version__)

    def allowed(self, identity: Identity, request: GetFile) -> str:
        """ "" when the manager has permitted this, or why it counts as not permitted."""
        try:
            check_permit(self._ca, request.permit, name=request.name, source=self._worker, reader=identity.name, now=time.time())
        except NotPermitted as error:
            return str(error)
        return ""

    def _accept(self, listening: socket.socket) -> None:
        while not self._closed:
            try:
                accepted, _ = listening.accept()
            except OSError as error:
                if self._closed:
                    return
                if error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                    log.warning("cannot accept a connection of a peer: %s; trying again in a second", error)
                    time.sleep(_PAUSE)
                continue
            self.server.serve(accepted, self._context, self.judge)
