"""The manager's shell around files: what is served from here, permits, and results that come here because somebody asked.

Theory of operation
-------------------
The core's books (`windlass.manager.replicas`) say who is to fetch what from where; before that goes out, `FileDesk.signed` adds what a
source wants to see: a permit for a peer, or a note here for the manager itself, or the bytes of a small object.  After each turn of the
loop `act` carries out the rest: files that nobody declares any more are not served, and programs hear of results that have come into the
store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from windlass.fileserver import FileServer
from windlass.identity import Authority
from windlass.manager.core import Core
from windlass.manager.programs import SHIFT
from windlass.manager.sources import Sources
from windlass.messages import RESULT, FetchFile, FileBrought, FileName, FileOrigin, FileRef, FilesForgotten, Message, WorkerId
from windlass.object_store import ObjectStore

log = logging.getLogger("windlass.manager")


class FileDesk:
    """Files of one manager. Everything runs on its loop, but for what ``server`` does on its threads."""

    def __init__(self, core: Core, store: ObjectStore, authority: Authority) -> None:
        self._core, self._store, self._authority = core, store, authority
        core.replicas.manager = authority.manager_id
        self.sources = Sources(store)
        self.server = FileServer(self.sources.find, self.sources.allowed)
        #: Results that are to come into the store, and the programs that wait for each, by number (0: the one of this process).
        self._bringing: dict[FileName, dict[int, None]] = {}

    def declare(self, ref: FileRef, origin: FileOrigin) -> None:
        """A program has declared a file."""
        self.sources.add(ref.name, origin)
        self._core.declare_file(ref, origin)

    def bring(self, program: int, names: Sequence[FileName]) -> None:
        """A program wants these results in the store."""
        for name in names:
            self._bringing.setdefault(name, {})[program] = None
        self._core.bring_files(names)

    def signed(self, worker: WorkerId, messages: Sequence[Message]) -> list[Message]:
        """The same messages, with what the sources of files want to see."""
        return [self._with_permit(worker, one) if type(one) is FetchFile else one for one in messages]

    def act(
        self,
        tell: Callable[[int, Message], None],
        own: Callable[[str, str], None] | None,
        own_forgotten: Callable[[Sequence[FileName]], None] | None,
    ) -> None:
        """Carry out what the books say. ``tell`` speaks to attached programs, the others to the one of this process."""

        def answer(name: FileName, text: str) -> None:
            for program in self._bringing.pop(name, ()):
                if program:
                    tell(program, FileBrought(name, text))
                elif own is not None:
                    own(name, text)

        replicas = self._core.replicas
        if replicas.away.warnings:
            warnings, replicas.away.warnings = replicas.away.warnings, []
            for text in warnings:
                log.warning("%s", text)
        if replicas.brought:
            self._tell_brought(answer)
        if replicas.forgotten:
            self._forget(answer)
        if self._core.lineage.forgotten:
            forgotten, self._core.lineage.forgotten = self._core.lineage.forgotten, []
            for call, names in forgotten:
                if program := call >> SHIFT:
                    tell(program, FilesForgotten(names))
                elif own_forgotten is not None:
                    own_forgotten(names)

    def _with_permit(self, worker: WorkerId, message: FetchFile) -> FetchFile:
        peer, name = message.source.peer, message.ref.name
        if peer == self._authority.manager_id:
            file = self._core.replicas.files.get(name)
            if file is not None and file.rides and file.origin.object is not None:
                with suppress(KeyError):  # it is gone: the server tells in words
                    return msgspec.structs.replace(message, data=bytes(self._store.open(file.origin.object.name)))
            self.sources.told(worker, name)  # the manager itself knows whom it has told
        elif peer:
            source = msgspec.structs.replace(message.source, permit=self._authority.permit(name, peer, worker))
            return msgspec.structs.replace(message, source=source)
        return message

    def _tell_brought(self, answer: Callable[[FileName, str], None]) -> None:
        brought, self._core.replicas.brought = self._core.replicas.brought, []
        for name, text in brought:
            if not text:
                file = self._core.replicas.files.get(name)
                if file is not None and file.declared:
                    self.sources.add(name, file.origin)
                else:
                    text = "it was released"  # in the same turn: `_forget` lets go of the copy
            answer(name, text)

    def _forget(self, answer: Callable[[FileName, str], None]) -> None:
        names, self._core.replicas.forgotten = self._core.replicas.forgotten, []
        known = self._core.replicas.files
        gone = [name for name in names if name not in known or not known[name].declared]
        self.sources.remove(gone)
        for name in gone:
            if name.startswith(RESULT):
                self._store.discard(name)  # a copy may have been brought here
            answer(name, "it was released")  # before it has come
