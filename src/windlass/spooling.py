"""A store in memory that goes on, on disk, when it is full.

Theory of operation
-------------------
A manager's objects are files in memory where that is roomy (`windlass.store_folders`). What does not fit there goes into a second store,
a folder on disk that is made when it is first needed; an object is in one of the two. Only when both are full is an object refused
(`StoreFull`); then `windlass.manager.client` lets ``submit`` wait for calls to end. The disk may be small, too: what would not fit into
either if nothing else were there goes into memory after all, up to a second, higher limit.

Workers of the manager's host look for objects in the first folder; what they do not find there they ask for, as workers elsewhere do.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from windlass.errors import FULL, StoreFull
from windlass.messages import ObjectName, ObjectRef
from windlass.object_store import ObjectStore
from windlass.objects import content_name

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from windlass.incoming import Incoming

T = TypeVar("T")


class SpoolingStore(ObjectStore):
    """An `ObjectStore` at ``folder`` with another one at ``spool`` (None: without) behind it; limits in bytes, 0: none.

    ``most``: what the first may use for objects that are too large for both (0: no more than else).
    """

    def __init__(self, folder: Path, limit: int, spool: Path | None, spool_limit: int = 0, most: int = 0) -> None:
        super().__init__(folder, limit)
        self.far = False
        self.spool_limit, self.most, self._usual = spool_limit, most, limit
        self._spool_folder = spool
        self._spool: ObjectStore | None = None
        self._beginning = threading.Lock()
        #: How many objects go beyond the usual limit now.
        self._beyond = 0
        self._changing_limit = threading.Lock()

    def could_hold(self, size: int) -> bool:
        """Whether an object of so many bytes would fit if nothing else were here."""
        limits = [self.limit] if self._spool_folder is None else [self.limit, self.spool_limit, max(self.limit, self.most)]
        return any(not limit or size <= limit for limit in limits)

    def put(self, data: Buffer, *, pin: bool = False) -> ObjectRef:
        if self._spool is None:
            return super().put(data, pin=pin)
        return self.put_as(content_name(data), data, pin=pin)  # it may be there: what it is comes first

    def put_as(self, name: ObjectName, data: Buffer, *, pin: bool = False) -> ObjectRef:
        if (disk := self._on_disk(name)) is not None:
            return disk.put_as(name, data, pin=pin)
        return self._else_on_disk(
            lambda: memoryview(data).nbytes,
            lambda: super(SpoolingStore, self).put_as(name, data, pin=pin),
            lambda disk: disk.put_as(name, data, pin=pin),
        )

    def put_result(self, data: Buffer, *, pin: bool = False) -> ObjectRef:
        return self._else_on_disk(
            lambda: memoryview(data).nbytes,
            lambda: super(SpoolingStore, self).put_result(data, pin=pin),
            lambda disk: disk.put_result(data, pin=pin),
        )

    def receive(self, name: str, size: int, *, believed: bool = False) -> Incoming:
        return self._else_on_disk(
            lambda: size,
            lambda: super(SpoolingStore, self).receive(name, size, believed=believed),
            lambda disk: disk.receive(name, size, believed=believed),
        )

    def adopt(self, name: str, path: str | os.PathLike[str], *, pin: bool = False) -> ObjectRef:
        if (disk := self._on_disk(name)) is not None:
            return disk.adopt(name, path, pin=pin)
        return self._else_on_disk(
            lambda: os.stat(path).st_size,
            lambda: super(SpoolingStore, self).adopt(name, path, pin=pin),
            lambda disk: disk.adopt(name, path, pin=pin),
        )

    def _else_on_disk(self, size: Callable[[], int], here: Callable[[], T], there: Callable[[ObjectStore], T]) -> T:
        try:
            return here()
        except StoreFull as full:
            if self._spool_folder is None:
                raise
            try:
                return there(self._begin_spool(self._spool_folder, full))
            except StoreFull:
                if not max(self._usual, self.spool_limit) < size() <= self.most:
                    raise  # there will be room
        self._go_beyond(1)
        try:
            return here()
        finally:
            self._go_beyond(-1)

    def _go_beyond(self, more: int) -> None:
        """Others that come in this moment may use it as well."""
        with self._changing_limit:
            self._beyond += more
            self.limit = self.most if self._beyond else self._usual

    def _begin_spool(self, folder: Path, full: StoreFull) -> ObjectStore:
        """The store on disk, made now if need be. Raises ``full``, which is why it is wanted, where the disk is full too."""
        with self._beginning:
            if self._spool is None:
                try:
                    self._spool = ObjectStore(folder, self.spool_limit)
                except OSError as error:
                    shutil.rmtree(folder, ignore_errors=True)
                    if error.errno not in FULL:
                        raise
                    raise full from error
            return self._spool

    def _on_disk(self, name: str) -> ObjectStore | None:
        """The store on disk, if the object is there."""
        return self._spool if self._spool is not None and not super().has(name) and self._spool.has(name) else None

    def path(self, name: str) -> Path:
        disk = self._on_disk(name)
        return super().path(name) if disk is None else disk.path(name)

    def has(self, name: str) -> bool:
        return super().has(name) or self._on_disk(name) is not None

    def size(self, name: str) -> int:
        disk = self._on_disk(name)
        return super().size(name) if disk is None else disk.size(name)

    def open(self, name: str, *, briefly: bool = False) -> memoryview:
        disk = self._on_disk(name)
        return super().open(name, briefly=briefly) if disk is None else disk.open(name, briefly=briefly)

    def open_file(self, name: str) -> int:
        disk = self._on_disk(name)
        return super().open_file(name) if disk is None else disk.open_file(name)

    def verify(self, name: str) -> bool:
        disk = self._on_disk(name)
        return super().verify(name) if disk is None else disk.verify(name)

    def pin(self, name: str) -> None:
        disk = self._on_disk(name)
        if disk is None:
            super().pin(name)
        else:
            disk.pin(name)

    def unpin(self, name: str) -> None:
        disk = self._on_disk(name)
        if disk is None:
            super().unpin(name)
        else:
            disk.unpin(name)

    def discard(self, name: str) -> None:
        disk = self._on_disk(name)
        if disk is None:
            super().discard(name)
        else:
            disk.discard(name)

    def names(self) -> list[ObjectName]:
        return super().names() + (self._spool.names() if self._spool is not None else [])

    def sweep(self) -> bool:
        more = super().sweep()
        return (self._spool is not None and self._spool.sweep()) or more

    def close(self) -> None:
        super().close()
        if self._spool is not None:
            self._spool.close()

    def check(self) -> None:
        super().check()
        if self._spool is not None:
            self._spool.check()
            assert not set(super().names()) & set(self._spool.names()), "an object is in memory and on disk"
