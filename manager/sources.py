"""What the manager serves of declared files (paths of this machine, objects of the store) to workers that were told to fetch them.

Theory of operation
-------------------
`windlass.fileserver` asks, on threads of its own: `allowed` says whether this worker was told to fetch this file here and has not had it
since, `find` opens it.  A path is served as long as it is what it was when it was declared; what has changed is told in words.

A tree's manifest comes with its declaration where that was made in this process (`manifests`, kept by the `windlass.files.File` and by
what is served), else as an object.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from windlass.errors import WindlassError
from windlass.fileserver import PlainFile, ServedTree
from windlass.identity import WORKER, Identity
from windlass.manifests import Manifest, decode_manifest
from windlass.messages import FileName, FileOrigin, GetFile, WorkerId

if TYPE_CHECKING:
    from windlass.fileserver import ServedFile
    from windlass.object_store import ObjectStore


class Sources:
    """All files that a manager serves. Safe for threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        #: Of trees that were declared in this process.
        self.manifests: weakref.WeakValueDictionary[FileName, Manifest] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._served: dict[FileName, tuple[FileOrigin, Manifest | None]] = {}
        #: By worker, what it was told to fetch here and does not have yet.
        self._told: dict[str, set[FileName]] = {}

    def add(self, name: FileName, origin: FileOrigin) -> None:
        """A file is declared."""
        if origin.path or origin.object is not None:
            with self._lock:
                self._served[name] = origin, self.manifests.get(name)

    def remove(self, names: Iterable[FileName]) -> None:
        """Nobody declares these any more."""
        with self._lock:
            for name in names:
                self._served.pop(name, None)

    def told(self, worker: WorkerId, name: FileName) -> None:
        """This worker was told to fetch this file from here."""
        with self._lock:
            self._told.setdefault(worker, set()).add(name)

    def done(self, worker: WorkerId, name: FileName) -> None:
        """It has it, or does not want it any more."""
        with self._lock:
            if (names := self._told.get(worker)) is not None:
                names.discard(name)

    def left(self, worker: WorkerId) -> None:
        """It is gone."""
        with self._lock:
            self._told.pop(worker, None)

    # ------------------------------------------------------------ on the server's threads

    def allowed(self, identity: Identity, request: GetFile) -> str:
        """ "" when this worker may read it, or why not."""
        with self._lock:
            told = identity.role == WORKER and request.name in self._told.get(identity.name, ())
        return "" if told else f"{identity.role} {identity.name} was not told to fetch this file here"

    def find(self, name: FileName) -> ServedFile | None:
        """The file, open. Raises `SourceChanged`, `OSError`."""
        with self._lock:
            served = self._served.get(name)
        if served is None:
            return None
        origin, manifest = served
        if origin.object is not None:
            try:
                path = self._store.path(origin.object.name)
            except KeyError:
                return None
            return PlainFile(path, origin.object.size)
        if name.startswith("t3-"):
            if manifest is None:
                manifest = self._read_manifest(origin)
            return ServedTree(manifest, origin.path)
        mtime, size = origin.stamp
        return PlainFile(origin.path, size, mtime)

    def _read_manifest(self, origin: FileOrigin) -> Manifest:
        if origin.manifest is None:
            raise WindlassError(f"{Path(origin.path)} was declared without its manifest, by a defect of Windlass")
        return decode_manifest(self._store.open(origin.manifest.name))
