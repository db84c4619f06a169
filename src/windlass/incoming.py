"""An object on its way into a store: its bytes are written, and hashed where the name is not to be believed, as they come.

Theory of operation
-------------------
It stands under a temporary name in the store's folder (`windlass.objects`) until it is whole and is what its name says; then it has that
name. Of what the manager sends the name is believed, and nothing hashed: TLS has kept the bytes as they were, and who may say what is run
here may say what it is given. The room that it needs is reserved before it comes, and until it is there or given up.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from windlass.objects import create, failed, with_room, write_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from windlass.messages import ObjectRef
    from windlass.object_store import ObjectStore


class Incoming:
    """An object on its way in. Fill `view` or `write` its chunks in order, then `commit` or `abort`."""

    def __init__(self, store: ObjectStore, name: str, size: int, believed: bool) -> None:
        self.name, self.size = name, size
        self.received = 0
        self._store = store
        self._path, self._descriptor = create(os.fspath(store.folder), os.O_RDWR, size)
        self._view: memoryview | None = None
        self._hasher: Any = None
        if name.startswith("b3-") and not believed:
            import blake3

            self._hasher = blake3.blake3()

    def view(self) -> memoryview:
        """The whole object as writable memory, to be filled in any order. Raises `StoreFull`."""
        if self._view is None:
            if not self.size:
                self._view = memoryview(bytearray())
            else:
                import mmap

                # A hole in a full tmpfs would end the process with SIGBUS at the first write into it.
                self._have_room(lambda: os.posix_fallocate(self._descriptor, 0, self.size))
                self._view = memoryview(mmap.mmap(self._descriptor, self.size))
        return self._view

    def write(self, chunk: Buffer) -> None:
        """Append a chunk. Raises `StoreFull`, and `ValueError` for more bytes than were announced."""
        count = memoryview(chunk).nbytes
        if self.received + count > self.size:
            raise ValueError(f"object {self.name} was announced with {self.size} bytes and has more; it is not kept")
        self._have_room(lambda: self._append(chunk))
        if self._hasher is not None:
            self._hasher.update(chunk)
        self.received += count

    def _append(self, chunk: Buffer) -> None:
        os.lseek(self._descriptor, self.received, os.SEEK_SET)  # a part of it may have been written
        write_all(self._descriptor, chunk)

    def _have_room(self, work: Callable[[], None]) -> None:
        """Do what needs room. Raises `StoreFull`, `OSError`."""
        try:
            with_room(os.fspath(self._store.folder), work)
        except OSError as error:
            raise failed(self._path, self.size, error) from error

    def commit(self) -> ObjectRef:
        """Keep the object. Raises `ValueError`, and keeps nothing, when size or content are not what the name says."""
        try:
            if self._view is None and self.received != self.size:
                raise ValueError(f"object {self.name} has {self.received} bytes instead of {self.size}; it is not kept, send it again")
            if self._hasher is not None:
                if self._view is not None:
                    self._hasher.update(self._view)
                if "b3-" + self._hasher.hexdigest(16) != self.name:
                    raise ValueError(
                        f"object {self.name} was damaged on its way: its content has another name; it is not kept, send it again"
                    )
            os.rename(self._path, os.path.join(self._store.folder, self.name))
            self._path = ""
            return self._store._enter(self.name, self.size, False)  # pyright: ignore[reportPrivateUsage]
        finally:
            self.abort()

    def abort(self) -> None:
        """Keep nothing; after `commit` or a second time it does nothing."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        self._view = None  # the mapping goes with the last slice of it
        self._store._unreserve(self.size)  # pyright: ignore[reportPrivateUsage]
        if self._path:
            with suppress(OSError):  # somebody may have cleaned the folder away
                os.unlink(self._path)
