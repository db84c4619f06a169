"""Directory trees on disk: scanned, read as one stream of bytes, made from one, removed.

Theory of operation
-------------------
A tree's *stream* is 8 bytes (length of the manifest, big endian), the manifest (`windlass.manifests`), then the bytes of its regular
files in the manifest's order.  Every offset of it follows from the manifest, so a transfer goes on where it was cut, and nothing is
packed on any disk: `TreeStream` reads it from the tree itself and says when a file is no longer what was scanned; `TreeWriter` makes
the tree from it and checks each file.  A file's stream is its bytes: `FileWriter`.

The writer makes links last, so that nothing is ever written through one, and sets modes after that, as a folder may forbid writing.

All here blocks on disks: call it from threads. Nothing is shared between two scans, streams or writers.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from windlass.errors import BadTree, Damaged, SourceChanged, UsageError
from windlass.folders import writing
from windlass.manifests import MAX_MANIFEST_BYTES, Manifest, TreeEntry, decode_manifest, hasher, refuse_links_out, show, tree_name
from windlass.messages import FileName
from windlass.passing import may_pass

if TYPE_CHECKING:
    from typing_extensions import Buffer

_READ_BYTES: Final = 1 << 20
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not hold up who looks what it is
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


# ---------------------------------------------------------------- from a folder


def file_name(path: str | os.PathLike[str]) -> tuple[FileName, os.stat_result]:
    """A regular file's content name, and its status when it was read.

    Raises `UsageError` for what cannot be read or is no regular file, `SourceChanged` when it changes meanwhile.
    """
    hashed, status = _read_file(os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    return FileName("b3-" + hashed.hexdigest(16)), status


def scan(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of the tree at `path`: walks it and hashes all files.

    Raises `BadTree` for what cannot be in a tree (sockets, devices, links that lead out of it), `UsageError` for what cannot be read,
    `SourceChanged` for files that change meanwhile.
    """
    root = os.fsencode(path)
    try:
        status = os.stat(root)
    except OSError as error:
        raise _unreadable(root, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{show(root)} is no folder, so it is no directory tree")
    found: list[tuple[TreeEntry, int]] = []
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        folder = os.path.join(root, below) if below else root
        try:
            with os.scandir(folder) as children:
                listed = list(children)
        except OSError as error:
            raise _unreadable(folder, error) from error
        for child in listed:
            relative = below + b"/" + child.name if below else child.name
            entry, time = _scan_one(relative, child)
            found.append((entry, time))
            if entry.kind == "d":
                waiting.append(relative)
    found.sort(key=lambda each: each[0].path)
    entries = tuple(entry for entry, _ in found)
    refuse_links_out({entry.path: entry.target for entry in entries if entry.kind == "l"}, f"the tree {show(root)}")
    times = tuple(time for entry, time in found if entry.kind == "f")
    return Manifest(stat.S_IMODE(status.st_mode) & 0o777 | 0o500, entries, times)


def _scan_one(relative: bytes, child: os.DirEntry[bytes]) -> tuple[TreeEntry, int]:
    try:
        if child.is_symlink():
            return TreeEntry(relative, "l", target=os.readlink(child.path)), 0
        if child.is_dir(follow_symlinks=False):
            return TreeEntry(relative, "d", stat.S_IMODE(child.stat(follow_symlinks=False).st_mode) & 0o777 | 0o500), 0
    except OSError as error:
        raise _unreadable(child.path, error) from error
    hashed, status = _read_file(child.path, _READ)
    mode = stat.S_IMODE(status.st_mode) & 0o777 | 0o400
    return TreeEntry(relative, "f", mode, status.st_size, hashed.digest(16)), status.st_mtime_ns


def _read_file(path: bytes, flags: int) -> tuple[Any, os.stat_result]:
    """The hasher of a regular file's bytes, and the status that it had before and after."""
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _no_file(path, stat.S_IFSOCK) from error
        raise _unreadable(path, error) from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise _no_file(path, before.st_mode)
        hashed, left = hasher(), before.st_size
        while left:
            data = os.read(descriptor, min(left, _READ_BYTES))
            if not data:
                break
            hashed.update(data)
            left -= len(data)
        more = not left and os.read(descriptor, 1)
        after = os.fstat(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)
    if left or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise SourceChanged(f"{show(path)} changed while it was read; declare it again when nothing writes into it")
    if more:
        size = f"{before.st_size:,} bytes"
        raise UsageError(f"{show(path)} has more in it than the {size} that its file system says, as files of /proc have: declare a copy")
    return hashed, after


# ---------------------------------------------------------------- streams


class TreeStream:
    """The stream of the tree at `root`, read piece by piece. For one reader at a time; best read in order. Close it at the end."""

    def __init__(self, manifest: Manifest, root: str | os.PathLike[str]) -> None:
        self._manifest = manifest
        self._root = os.fsencode(root)
        encoded = manifest.encode()
        self._head = len(encoded).to_bytes(8, "big") + encoded
        self._starts: list[int] = []  # of each file in the stream
        at = len(self._head)
        for entry in manifest.files:
            self._starts.append(at)
            at += entry.size
        #: Bytes of the whole stream.
        self.size = at
        self._index: int = -1
        self._descriptor = -1

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, less only at the stream's end. Raises `SourceChanged` when a file is not what was scanned."""
        pieces = [self._head[offset : offset + count]]
        offset, count = offset + len(pieces[0]), count - len(pieces[0])
        index = max(0, bisect_right(self._starts, offset) - 1)
        while count > 0 and index < len(self._starts):
            within = offset - self._starts[index]
            left = self._manifest.files[index].size - within
            if left > 0:
                piece = self._read_file(index, within, min(count, left))
                pieces.append(piece)
                offset, count = offset + len(piece), count - len(piece)
            index += 1
        return b"".join(pieces)

    def close(self) -> None:
        """Let go of the file that is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._index = self._descriptor = -1

    def _read_file(self, index: int, offset: int, count: int) -> bytes:
        entry = self._manifest.files[index]
        path = os.path.join(self._root, entry.path)
        try:
            if index != self._index:
                self.close()
                self._descriptor, self._index = os.open(path, _READ), index
                self._check(path, index)
            pieces: list[bytes] = []
            while count:  # one read gives 2 GiB at most
                piece = os.pread(self._descriptor, count, offset)
                if not piece:
                    raise _changed(path)
                pieces.append(piece)
                offset, count = offset + len(piece), count - len(piece)
            if offset == entry.size:
                self._check(path, index)
                self.close()
        except OSError as error:
            if may_pass(error):
                raise
            raise SourceChanged(
                f"{show(path)} can no longer be read: {error.strerror}; it was there when it was declared: declare it again"
            ) from error
        return b"".join(pieces)

    def _check(self, path: bytes, index: int) -> None:
        status, times = os.fstat(self._descriptor), self._manifest.times
        same = stat.S_ISREG(status.st_mode) and status.st_size == self._manifest.files[index].size
        if not same or (times and times[index] != status.st_mtime_ns):
            raise _changed(path)


class FileWriter:
    """Makes the file `path` from its bytes, fed in order. With a name `b3-` the content must be what it says."""

    def __init__(self, path: str | os.PathLike[str], name: str = "") -> None:
        #: Bytes fed so far: where a transfer that was cut goes on.
        self.received = 0
        self._path, self._name = os.fsencode(path), name
        self._hasher = hasher()
        with writing(self._path):
            self._descriptor = os.open(self._path, _CREATE, 0o600)

    def feed(self, chunk: Buffer) -> None:
        """Append bytes. Raises `CacheFull` when the disk is full."""
        view = memoryview(chunk).cast("B")
        with writing(self._path), _closing_if_it_fails(self):
            _write_all(self._descriptor, view)
        self._hasher.update(view)
        self.received += len(view)

    def commit(self) -> FileName:
        """All was fed: the content's name (``b3-``). Raises `Damaged` when it is another than was told."""
        self.close()
        name = FileName("b3-" + self._hasher.hexdigest(16))
        if self._name.startswith("b3-") and name != self._name:
            raise Damaged(f"file {self._name} was damaged on its way: {self.received} bytes came and their name is {name}; fetch it again")
        return name

    def close(self) -> None:
        """Let go of the file, whole or not; removing it is the caller's."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class TreeWriter:
    """Makes the tree `folder` (which must not exist) from its stream, fed in order. With a name `t3-` the content must be what it says."""

    def __init__(self, folder: str | os.PathLike[str], name: str = "") -> None:
        #: Bytes fed so far: where a transfer that was cut goes on.
        self.received = 0
        #: Known as soon as it has come whole.
        self.manifest: Manifest | None = None
        self._root, self._name = os.fsencode(folder), name
        self._head = bytearray()
        self._descriptor, self._done = -1, 0
        self._index = 0
        self._hasher: Any = None

    def feed(self, chunk: Buffer) -> None:
        """Take the next bytes of the stream.

        Raises `Damaged` for content that is not what was promised, `BadTree` for a manifest that cannot be, `CacheFull` for a full disk.
        """
        view = memoryview(chunk).cast("B")
        self.received += len(view)
        with writing(self._root), _closing_if_it_fails(self):
            if self.manifest is None:
                view = self._feed_head(view)
            if self.manifest is not None:
                self._feed_files(self.manifest.files, view)

    def commit(self) -> FileName:
        """All was fed: makes the links, sets the modes, returns the tree's name. Raises `Damaged` when something is missing."""
        if self.manifest is None or self._index < len(self.manifest.files):
            whole = "" if self.manifest is None else f" of {self.manifest.stream_size}"
            raise Damaged(f"tree {self._name or show(self._root)} was cut off after {self.received}{whole} bytes; fetch it again")
        with writing(self._root):
            for entry in self.manifest.entries:
                if entry.kind == "l":
                    os.symlink(entry.target, os.path.join(self._root, entry.path))
            for entry in reversed(self.manifest.entries):  # a folder after what it holds: it may forbid writing
                if entry.kind == "d":
                    os.chmod(os.path.join(self._root, entry.path), entry.mode)
            os.chmod(self._root, self.manifest.mode)
        return self.manifest.name

    def close(self) -> None:
        """Let go of the file that is open; removing the tree is the caller's."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _feed_head(self, view: memoryview) -> memoryview:
        if len(self._head) < 8:
            taken = min(8 - len(self._head), len(view))
            self._head += view[:taken]
            view = view[taken:]
        if len(self._head) < 8:
            return view
        length = int.from_bytes(self._head[:8], "big")
        if length > MAX_MANIFEST_BYTES:
            raise BadTree(f"a tree's manifest is said to have {length} bytes; more than {MAX_MANIFEST_BYTES} are not accepted")
        taken = min(8 + length - len(self._head), len(view))
        self._head += view[:taken]
        if len(self._head) == 8 + length:
            encoded = bytes(memoryview(self._head)[8:])
            if self._name.startswith("t3-") and tree_name(encoded) != self._name:
                raise Damaged(f"tree {self._name} was damaged on its way: its manifest's name is {tree_name(encoded)}; fetch it again")
            self.manifest = decode_manifest(encoded)
            self._head = bytearray()
            os.mkdir(self._root, 0o700)
            for entry in self.manifest.entries:
                if entry.kind == "d":
                    os.mkdir(os.path.join(self._root, entry.path), 0o700)
        return view[taken:]

    def _feed_files(self, files: tuple[TreeEntry, ...], view: memoryview) -> None:
        while self._index < len(files):
            entry = files[self._index]
            if self._descriptor < 0:
                if entry.size and not view:
                    return
                self._descriptor = os.open(os.path.join(self._root, entry.path), _CREATE, 0o600)
                self._done, self._hasher = 0, hasher()
            part = view[: entry.size - self._done]
            _write_all(self._descriptor, part)
            self._hasher.update(part)
            self._done += len(part)
            view = view[len(part) :]
            if self._done < entry.size:
                return
            if self._hasher.digest(16) != entry.digest:
                raise Damaged(f"{show(entry.path)} in tree {self._name or show(self._root)} was damaged on its way; fetch it again")
            os.fchmod(self._descriptor, entry.mode)
            self.close()
            self._index += 1
        if view:
            raise Damaged(f"tree {self._name or show(self._root)} has more bytes than its manifest says; fetch it again")


@contextmanager
def _closing_if_it_fails(writer: FileWriter | TreeWriter) -> Generator[None]:
    # A file that is open keeps its place on the disk after it was removed.
    try:
        yield
    except BaseException:
        writer.close()
        raise


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def _unreadable(path: bytes, error: OSError) -> UsageError:
    return UsageError(f"{show(path)} cannot be read: {error.strerror}")


def _no_file(path: bytes, mode: int) -> BadTree:
    kinds = ((stat.S_ISSOCK, "a socket"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISDIR, "a folder"))
    kind = next((words for test, words in kinds if test(mode)), "a device")
    return BadTree(f"{show(path)} is {kind}, which cannot go to workers; leave it out of what is declared")


def _changed(path: bytes) -> SourceChanged:
    return SourceChanged(f"{show(path)} was changed after it was declared; declare it again, and leave it alone while calls use it")
