"""A file on its way to this node: what has arrived of it, whether it is what its name says, and where it is being written.

Theory of operation
-------------------
An `Arrival` outlives the sources that it is fetched from: what came from one that failed is kept, and the next is asked for the rest.
Each attempt has a turn of its own, and a thread whose turn is over (it was given up, another one has begun) can write nothing more,
however late it wakes.

Bytes are hashed as they are written.  ``b3`` and ``t3`` must hash to their names.  The other names do not tell the content, so size and
digest are compared with what is known of them, if anything is, and reported by `finish` for who comes next.

Everything but `Arrival.offset` is for threads: it writes to the disk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

from windlass.blocking import OutOfTurn
from windlass.errors import CacheFull, Damaged, WindlassError
from windlass.folders import remove_tree
from windlass.messages import FileRef
from windlass.trees import FileWriter, TreeWriter

#: Heads of names whose digits are those of the content.
BY_CONTENT: Final = ("b3", "t3")
#: Heads of names that can only be a file's, or only a tree's; the others can be either's.
_ONLY_FILES: Final = ("b3",)
_ONLY_TREES: Final = ("t3", "u3")


class CannotKeep(WindlassError):
    """It cannot be written here, and not for want of room; the text says why."""


class Arrived(NamedTuple):
    """A file that is here, whole."""

    #: Bytes of its content.
    size: int
    #: 32 hexadecimal digits: BLAKE3 of a file's bytes, or of a tree's manifest.
    digest: str
    tree: bool
    #: A tree's, encoded, where it came with one.
    manifest: bytes = b""

    @property
    def content(self) -> str:
        """The name that tells the content, whatever the file is called: ``b3-...`` or ``t3-...``."""
        return f"{'t3' if self.tree else 'b3'}-{self.digest}"


class Arrival:
    """A file (or tree) on its way to ``path``, which is not there yet, in a folder that is.

    ``digest``: what its content must have (32 hexadecimal digits), where that is known beside the name. ``reserve(count)`` (such as
    `windlass.worker.cache_entries.Filling.grow`) is called on a thread when so many bytes more are about to be written of which
    `FileRef.size` did not tell; it may raise `CacheFull`.
    """

    def __init__(
        self, ref: FileRef, path: str | os.PathLike[str], *, digest: str = "", reserve: Callable[[int], None] | None = None
    ) -> None:
        self.ref = ref
        self.path = os.fspath(path)
        #: Bytes of the stream that are here, and that there are; -1: not known.
        self.offset = 0
        self.size = -1
        self.tree = False
        #: What a web server calls this version of it, to ask for the rest; "" where it does not say.
        self.version = ""
        self._digest = ref.name.partition("-")[2] if self._head in BY_CONTENT else digest
        self._grow = reserve
        self._reserved = 0
        self._writer: FileWriter | TreeWriter | None = None
        self._lock = threading.Lock()
        self._turn = 0
        self._over = False

    @property
    def _head(self) -> str:
        return self.ref.name.partition("-")[0]

    def next_turn(self) -> int:
        """Whose turn it was shall write no more. Does not block: for the loop."""
        self._turn += 1
        return self._turn

    def start(self, turn: int) -> int:
        """An attempt begins: the offset that it must fetch from. Raises `OutOfTurn`."""
        with self._lock:
            self._check(turn)
            return self.offset

    def begin(self, turn: int, size: int, tree: bool) -> None:
        """The stream that comes has so many bytes in all (-1: its source does not say).

        Raises:
            Damaged: it cannot be the one that was asked for, or whose beginning is here.
            CacheFull, CannotKeep: there is no place for it.
        """
        with self._lock:
            self._check(turn)
            self._compare(size, tree)
            if self._writer is None:
                self._reserve(size)
                with _Writing(self):
                    self._writer = (TreeWriter if tree else FileWriter)(self.path, self.ref.name)
            self.size, self.tree = size, tree

    def feed(self, turn: int, chunk: memoryview) -> None:
        """The next bytes. Raises `Damaged`, `CacheFull`, `CannotKeep`, `OutOfTurn`."""
        with self._lock:
            self._check(turn)
            assert self._writer is not None, "begin comes first"
            if 0 <= self.size < self.offset + len(chunk):
                raise Damaged(f"{self.ref.name} came with more than its {self.size:,} bytes; it is not kept")
            try:
                self._reserve(self.offset + len(chunk))
                with _Writing(self):
                    self._writer.feed(chunk)
            except BaseException:  # some of it may be written
                self._forget()
                raise
            self.offset += len(chunk)

    def take(self, turn: int, data: bytes) -> Arrived:
        """All of it at once. Raises as `feed` and `finish` do."""
        self.again(turn)
        self.begin(turn, len(data), False)
        self.feed(turn, memoryview(data))
        return self.finish(turn)

    def again(self, turn: int) -> None:
        """What is here is of no use; the stream comes from its beginning."""
        with self._lock:
            self._check(turn)
            self._forget()

    def tidy(self, turn: int) -> None:
        """The attempt of this turn is over, and what it has not finished is of no use to another one."""
        with self._lock:
            if not self._over and turn == self._turn:
                self._forget()

    def finish(self, turn: int) -> Arrived:
        """All has come: see that it is right. Raises `Damaged` (then nothing is kept), `CacheFull`, `CannotKeep`, `OutOfTurn`."""
        with self._lock:
            self._check(turn)
            writer = self._writer
            assert writer is not None, "begin comes first"
            if self.size >= 0 and self.offset != self.size:
                raise Damaged(f"{self.ref.name} came with {self.offset:,} of its {self.size:,} bytes")
            try:
                with _Writing(self):
                    name = writer.commit()
                arrived = Arrived(writer.received, name.partition("-")[2], False)
                if isinstance(writer, TreeWriter):
                    assert writer.manifest is not None
                    arrived = arrived._replace(size=writer.manifest.size, tree=True, manifest=writer.manifest.encode())
                self.check(arrived)
            except BaseException:
                self._forget()
                raise
            self._over = True
            return arrived

    def finish_with(self, turn: int, arrived: Arrived) -> Arrived:
        """As `finish`, for what was put at `path` in another way than by `feed`."""
        with self._lock:
            self._check(turn)
            try:
                self.check(arrived)
            except Damaged:
                self._forget()
                raise
            self._over = True
            return arrived

    def abandon(self) -> None:
        """Keep nothing; after `finish` nothing happens. Waits for a write that is under way."""
        self.next_turn()
        with self._lock:
            if not self._over:
                self._over = True
                self._forget()

    @contextmanager
    def writing(self, turn: int, size: int = 0) -> Generator[None]:
        """For who writes below `path` by itself, piece by piece: up to ``size`` bytes by now. Raises as `feed` does."""
        with self._lock:
            self._check(turn)
            self._reserve(size)
            with _Writing(self):
                yield

    def check(self, arrived: Arrived) -> None:
        """Compare with what is known. Raises `Damaged`."""
        if self.ref.size >= 0 and arrived.size != self.ref.size:
            raise Damaged(f"{self.ref.name} came with {arrived.size:,} bytes and should have {self.ref.size:,}; it is not kept")
        if self._digest and arrived.digest != self._digest:
            raise Damaged(f"{self.ref.name} was damaged on its way, or has changed: its content is not what its name says; it is not kept")

    # ------------------------------------------------ with the lock held

    def _check(self, turn: int) -> None:
        if self._over or turn != self._turn:
            raise OutOfTurn(f"the transfer of {self.ref.name} was given up")

    def _reserve(self, size: int) -> None:
        """There will be so many bytes here; what was reserved for an attempt before still is."""
        more = size - self._reserved
        if self.ref.size < 0 and self._grow is not None and more > 0:
            self._grow(more)
            self._reserved = size

    def _compare(self, size: int, tree: bool) -> None:
        if self._head in (_ONLY_FILES if tree else _ONLY_TREES):
            raise Damaged(f"{self.ref.name} is {'a file' if tree else 'a tree'}, and {'a tree' if tree else 'a file'} was sent")
        if not tree and size >= 0 and 0 <= self.ref.size != size:
            raise Damaged(f"{self.ref.name} has {self.ref.size:,} bytes, and {size:,} were to come")
        if self._writer is not None and (size, tree) != (self.size, self.tree):
            self._forget()
            raise Damaged(f"{self.ref.name} has {size:,} bytes now and had {self.size:,} when its beginning came")

    def _forget(self) -> None:
        writer, self._writer = self._writer, None
        self.offset, self.size, self.version = 0, -1, ""
        if writer is not None:
            try:
                writer.close()
            except OSError:
                pass  # what could not be written is not wanted
        remove_tree(self.path)


class _Writing:
    """Says what an error of the file system means for the arrival."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, CacheFull):
            return
        ref, folder = self._arrival.ref, os.path.dirname(self._arrival.path)
        text = os.strerror(error.errno) if error.errno else str(error)
        raise CannotKeep(f"file {ref.name} ({ref.base}) cannot be written in {folder}: {text}") from error
