"""The sessions of workers: from their links into the core. A part of the manager's shell.

Theory of operation
-------------------
A worker's session begins with `begin` and ends once: by its Goodbye, by the end of its link, or when the core has given it up after a cut,
and then its link is closed here, so that a worker which comes back begins a new one, with nothing. Each event of a link that is not (any
more) the one of its worker's session is dropped.

What a worker says goes into the core; what is not for the core is seen to here: files that have come, calls of earlier lives of the
program, certificates. ``act`` carries out what the core has decided. Everything runs on the manager's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from windlass.errors import WindlassError
from windlass.identity import Authority
from windlass.links import Link
from windlass.manager.client import Client
from windlass.manager.core import Core
from windlass.manager.filedesk import FileDesk
from windlass.messages import (
    CallsEnded,
    CallsReturned,
    CertificateIssued,
    CertificateRequest,
    EndOrphans,
    FileFailed,
    FileHere,
    Goodbye,
    Leave,
    Message,
    OrphansEnded,
    OrphansHeld,
    WorkerDraining,
    WorkerId,
    WorkerInfo,
)

log = logging.getLogger("windlass.manager")


class WorkerSessions:
    """Those of one manager. ``now`` is its clock, ``client`` the program's side, of whose earlier lives workers may tell."""

    def __init__(
        self,
        core: Core,
        authority: Authority,
        files: FileDesk,
        client: Callable[[], Client | None],
        now: Callable[[], float],
        act: Callable[[], None],
    ) -> None:
        self._core, self._authority, self._files, self._client, self._now, self._act = core, authority, files, client, now, act
        self.links: dict[WorkerId, Link] = {}
        #: Those that can be told to end what they run for an earlier life of this program.
        self._end_orphans: set[WorkerId] = set()
        self._told_of_room = False

    def begin(self, link: Link, info: WorkerInfo | None) -> None:
        """A worker has joined."""
        worker = WorkerId(link.peer)
        if info is None:
            link.send(Leave("a worker must say what it has"))
            return
        link.on_messages = lambda batch: self._said(worker, link, batch)
        link.on_cut = lambda reason: self._cut(worker, link, reason)
        link.on_resumed = lambda hello: self._back(worker, link)
        link.on_lost = lambda reason: self._lost(worker, link, reason)
        self.links[worker] = link
        log.info("worker %s on %s has joined", worker, info.host)
        self._core.worker_joined(worker, info, self._now())
        self._core.worker_is_away(worker, link.round_trip)
        self._act()

    def leave(self, reason: str) -> None:
        """Send all away, without the core."""
        for link in self.links.values():
            link.send(Leave(reason))

    def end_orphans(self, keys: Iterable[bytes]) -> None:
        """Have these end, which run for an earlier life of this program."""
        client = self._client()
        if client is None or client.memory is None:
            return
        for worker, theirs in client.memory.where(keys).items():
            if worker in self._end_orphans:
                self.links[worker].send(EndOrphans(theirs))

    def close_given_up(self) -> None:
        """Sessions that the core has given up end here too."""
        for worker, link in list(self.links.items()):
            if worker not in self._core.workers:
                log.info("worker %s is given up", worker)
                self._forget(worker)
                link.close()

    def _said(self, worker: WorkerId, link: Link, batch: list[Message]) -> None:
        for message in batch:
            if type(message) is CallsEnded:  # nearly all, and the core's alone
                continue
            if isinstance(message, FileHere | FileFailed):
                self._files.sources.done(worker, message.name)
            elif isinstance(message, OrphansHeld | OrphansEnded):
                if isinstance(message, OrphansHeld) and message.ends:
                    self._end_orphans.add(worker)
                if (client := self._client()) is not None:
                    client.orphans(worker, message, self._core.withdraw)
            elif isinstance(message, WorkerDraining):
                if message.trouble and (known := self._core.workers.get(worker)) is not None:
                    log.warning("worker %s on %s takes no more calls: %s", worker, known.info.host, message.reason)
            elif isinstance(message, CallsReturned):
                if message.reason == "room":
                    self._tell_of_room(worker)
            elif isinstance(message, CertificateRequest):
                try:
                    link.send(CertificateIssued(self._authority.issue(message.request, worker)))
                except WindlassError as error:
                    log.warning("worker %s gets no certificate: %s", worker, error)
            elif isinstance(message, Goodbye):
                self._core.worker_said(worker, batch[: batch.index(message)], self._now())
                self._lost(worker, link, message.reason, idle=message.idle)
                link.close()
                return
        self._core.worker_said(worker, batch, self._now())
        self._act()

    def _tell_of_room(self, worker: WorkerId) -> None:
        """Slots stand idle that nobody sees to be of no use: one warning, for such calls come back every few seconds."""
        if not self._told_of_room and (known := self._core.workers.get(worker)) is not None:
            self._told_of_room = True
            log.warning(
                "worker %s on %s has given calls back, as their large arguments find no room in its store beside those of calls that run; "
                "they go to others that are idle, or wait. Give pilots more memory, or calls memory=, so that fewer share a node",
                worker,
                known.info.host,
            )

    def _cut(self, worker: WorkerId, link: Link, reason: str) -> None:
        if self.links.get(worker) is link:
            known = self._core.workers.get(worker)
            # One that leaves, and has nothing to do, was ended before it could say goodbye.
            leaves = known is not None and known.draining and not known.calls
            log.log(logging.INFO if leaves else logging.WARNING, "worker %s: %s; its session waits for it", worker, reason)
            self._core.worker_cut(worker, self._now())
            self._act()

    def _back(self, worker: WorkerId, link: Link) -> None:
        if self.links.get(worker) is link:
            self.close_given_up()
        if self.links.get(worker) is link:
            self._core.worker_back(worker, self._now())
            self._core.worker_is_away(worker, link.round_trip)
            self._act()

    def _lost(self, worker: WorkerId, link: Link, reason: str, *, idle: bool = False) -> None:
        if self.links.get(worker) is link:
            log.info("worker %s has left: %s", worker, reason)
            self._forget(worker)
            self._core.worker_lost(worker, reason, self._now(), idle=idle)
            self._act()

    def _forget(self, worker: WorkerId) -> None:
        """Its session is over: it may fetch nothing here any more, and what it ran for an earlier life of this program is lost with it."""
        del self.links[worker]
        self._end_orphans.discard(worker)
        self._files.sources.left(worker)
        client = self._client()
        if client is not None and client.memory is not None:
            client.memory.orphans_lost(worker)
