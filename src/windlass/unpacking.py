"""Archives unpacked into a folder: tar (plain, gz, bz2, xz, zst) and zip, from whoever made them.

Theory of operation
-------------------
An archive is a list of members that say where they want to go; a hostile one says ``/etc/passwd``, ``../x``, or makes a link and then
writes through it.  So what a member says is first made a path below the folder or refused, and *links are made last*: while files are
written the folder has no link in it, so that no path can lead elsewhere.  Before the links are made, each is followed on paper through
all others (`windlass.manifests.leads_out`).  Devices, pipes and sockets are refused, owners are not taken over, and modes are cut to
0o777 with the owner's read bits set, as in all trees.  Times of files from a tar archive are kept: Python compares them with what its
``.pyc`` files say.

An archive that has a path twice means the later one, as with tar itself.  Hard links are made to what is already there, as copies where
the file system has no links.
When anything is wrong, all that was made is removed again.

tarfile, zipfile and what unpacks the bytes are imported where they are used: few workers need them.
"""

from __future__ import annotations

import errno
import importlib
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final

from windlass.errors import BadTree, UsageError, WindlassError
from windlass.folders import NO_LINKS, remove_tree, writing
from windlass.manifests import refuse_links_out, refuse_path, show

if TYPE_CHECKING:
    import tarfile
    import zipfile
    from typing import Self

_PIECE_BYTES: Final = 1 << 20
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
#: How a zip begins: with a member, with the list of none, or as a part of several.
_ZIP: Final = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
#: What a file system says of names that it does not take.
_BAD_NAMES: Final = (errno.ENAMETOOLONG, errno.EILSEQ)
#: Longer links there are not.
_MAX_TARGET: Final = 4096


def unpack(archive: str | os.PathLike[str], into: str | os.PathLike[str], room: Callable[[int], object] | None = None) -> int:
    """Unpack an archive into the folder `into`, which must not exist; returns the bytes of content. Blocks: for threads.

    `room` is called with the bytes that are written next, before they are, and may raise (`CacheFull`). Raises `BadTree` for an
    archive that is broken or hostile, `UsageError` for one that cannot be read, `CacheFull` for a full disk; then `into` does not exist.
    """
    source, root = os.fsencode(archive), os.fsencode(into)
    try:
        file = open(source, "rb")  # noqa: SIM115 - only its opening is the reader's error
    except OSError as error:
        raise UsageError(f"{show(source)} cannot be read: {error.strerror}") from error
    with file:
        os.mkdir(root, 0o700)
        unpacker = _Unpacker(root, f"the archive {show(source)}", room)
        try:
            with writing(root):
                _unpack_members(file, unpacker)
        except BaseException:
            remove_tree(root)
            raise
    return unpacker.size


def is_zip(start: bytes) -> bool:
    """Whether an archive that begins so is a zip. (A tar begins with the name of its first member, such as ``PKG-INFO``.)"""
    return start.startswith(_ZIP)


class _Unpacker:
    """What has been made of an archive so far."""

    def __init__(self, root: bytes, what: str, room: Callable[[int], object] | None) -> None:
        self.what = what
        self.size = 0
        self._root, self._room = root, room
        #: Path below `root` to mode; all that is there.
        self._folders: dict[bytes, int] = {b"": 0o700}
        self._files: set[bytes] = set()
        self._links: dict[bytes, bytes] = {}

    def path(self, said: bytes) -> bytes:
        """A member's path below the folder, without ``./`` before it and ``/`` behind it; empty for the folder itself."""
        path = b"/".join(part for part in said.split(b"/") if part not in (b"", b"."))
        if said.startswith(b"/") or path:
            refuse_path(said if said.startswith(b"/") else path, self.what)
        return path

    def folder(self, path: bytes, mode: int) -> None:
        if path in self._links or path in self._files:
            raise BadTree(f"{self.what} has {show(path)} as a folder and as something else; nothing of it is kept")
        self._make_folders(path)
        self._folders[path] = mode & 0o777 | 0o500

    def file(self, path: bytes, pieces: Iterator[bytes], mode: int, time: float | None) -> None:
        where = self._clear(path)
        descriptor = os.open(where, _CREATE, 0o600)
        self._files.add(path)
        try:
            for piece in pieces:
                if self._room is not None:
                    self._room(len(piece))
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
                self.size += len(piece)
            os.fchmod(descriptor, mode & 0o777 | 0o400)
            if time is not None:
                try:
                    os.utime(descriptor, (time, time))
                except (OverflowError, ValueError):
                    pass  # a time that cannot be
        finally:
            os.close(descriptor)

    def link(self, path: bytes, target: bytes) -> None:
        if not target or len(target) > _MAX_TARGET or b"\0" in target:
            raise BadTree(f"{self.what} has a link {show(path)} that points nowhere; nothing of it is kept")
        self._clear(path)
        self._links[path] = target

    def hard_link(self, path: bytes, target: bytes) -> None:
        if target in self._links:
            self.link(path, self._links[target])
        elif target not in self._files:
            raise BadTree(f"{self.what} has a hard link {show(path)} to {show(target)}, which is not in it before; nothing of it is kept")
        elif path != target:
            first, where = os.path.join(self._root, target), self._clear(path)
            try:
                os.link(first, where, follow_symlinks=False)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with open(first, "rb") as content:
                    status = os.fstat(content.fileno())
                    pieces = iter(partial(content.read, _PIECE_BYTES), b"")
                    self.file(path, pieces, stat.S_IMODE(status.st_mode), status.st_mtime)
            else:
                self._files.add(path)

    def finish(self) -> None:
        """Make the links and set the folders' modes."""
        refuse_links_out(self._links, self.what)
        for path, target in self._links.items():
            os.symlink(target, os.path.join(self._root, path))
        for path in sorted(self._folders, reverse=True):
            os.chmod(os.path.join(self._root, path), self._folders[path])

    def _clear(self, path: bytes) -> bytes:
        """Where a member goes, with nothing there and a folder around it."""
        if path in self._folders:
            raise BadTree(f"{self.what} has {show(path)} as a folder and as something else; nothing of it is kept")
        self._make_folders(path.rpartition(b"/")[0])
        where = os.path.join(self._root, path)
        if path in self._files:  # the later one is meant
            os.unlink(where)
            self._files.remove(path)
        self._links.pop(path, None)
        return where

    def _make_folders(self, path: bytes) -> None:
        missing: list[bytes] = []
        while path not in self._folders:
            if path in self._files or path in self._links:
                raise BadTree(f"{self.what} has something below {show(path)}, which is no folder in it; nothing of it is kept")
            missing.append(path)
            path = path.rpartition(b"/")[0]
        for folder in reversed(missing):
            os.mkdir(os.path.join(self._root, folder), 0o700)
            self._folders[folder] = 0o755


def _unpack_members(file: IO[bytes], unpacker: _Unpacker) -> None:
    import lzma
    import struct
    import tarfile
    import zipfile
    import zlib

    try:
        if is_zip(file.read(4)):
            _unpack_zip(file, unpacker)
        else:
            _unpack_tar(file, unpacker)
        unpacker.finish()
    except WindlassError:
        raise
    except OSError as error:
        if error.errno in _BAD_NAMES:
            name = show(os.path.basename(os.fsencode(error.filename2 or error.filename)))
            raise BadTree(f"{unpacker.what} has {name}, which cannot be made here: {error.strerror}; nothing of it is kept") from error
        if error.errno is not None:
            raise
        raise _broken(unpacker, error) from error  # what gzip and bz2 say of bytes that are not theirs
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error) as error:
        raise _broken(unpacker, error) from error
    except (EOFError, NotImplementedError, RuntimeError, ValueError) as error:  # the last one: names that are no text
        raise _broken(unpacker, error) from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # each of its libraries has one
            raise
        raise _broken(unpacker, error) from error


def _broken(unpacker: _Unpacker, error: Exception) -> BadTree:
    return BadTree(f"{unpacker.what} cannot be unpacked: {error}; is it whole, and tar or zip?")


def _unpack_tar(file: IO[bytes], unpacker: _Unpacker) -> None:
    import tarfile

    class Strict(tarfile.TarInfo):
        """tarfile takes a header that is broken, or is not there, for the archive's end."""

        @classmethod
        def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
            try:
                return super().fromtarfile(tarfile)
            except header_error as error:
                if type(error).__name__ == "EOFHeaderError":  # the zeros at the end
                    raise
                raise read_error(f"its list of files breaks off or is damaged ({error})") from None

    header_error, read_error = tarfile.HeaderError, tarfile.ReadError
    opened = _plain(file, unpacker.what)
    # As a stream: read once, from front to back.
    with tarfile.open(fileobj=opened, mode="r|", tarinfo=Strict, encoding="utf-8", errors="surrogateescape") as tar:
        kept: list[tarfile.TarInfo] = vars(tar)["members"]
        while (member := tar.next()) is not None:
            _unpack_tarred(tar, member, unpacker)
            kept.clear()  # a kilobyte per file
    while opened.read(_PIECE_BYTES):
        pass  # the checksum comes last


def _plain(file: IO[bytes], what: str) -> IO[bytes]:
    """The bytes of a tar archive, whatever compresses them."""
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    if start[257:262] == b"ustar":  # whatever its first member is called
        return file
    for module, name, magic in (("gzip", "GzipFile", b"\x1f\x8b"), ("bz2", "BZ2File", b"BZh"), ("lzma", "LZMAFile", b"\xfd7zXZ\0")):
        if start.startswith(magic):
            opener: Any = getattr(importlib.import_module(module), name)
            return opener(**{"fileobj" if name == "GzipFile" else "filename": file, "mode": "rb"})  # type: ignore[no-any-return]
    if not start.startswith(_ZSTD):
        return file
    for module, name in (("compression.zstd", "ZstdFile"), ("zstandard", "open"), ("pyzstd", "ZstdFile")):
        try:
            opener = getattr(importlib.import_module(module), name)
        except ImportError:
            continue
        return opener(file, "rb")  # type: ignore[no-any-return]
    raise BadTree(
        f"{what} is compressed with zstd, and this Python cannot read that; pack it with gzip or xz, "
        "or install zstandard into the workers' environment"
    )


def _unpack_zip(file: IO[bytes], unpacker: _Unpacker) -> None:
    import zipfile

    with zipfile.ZipFile(file) as zipped:
        for info in zipped.infolist():
            _unpack_zipped(zipped, info, unpacker)


def _unpack_tarred(tar: tarfile.TarFile, member: tarfile.TarInfo, unpacker: _Unpacker) -> None:
    path = unpacker.path(member.name.encode("utf-8", "surrogateescape"))
    target = member.linkname.encode("utf-8", "surrogateescape")
    if member.isdir():
        unpacker.folder(path, member.mode)
    elif not path:
        raise BadTree(f"{unpacker.what} has a member without a name; nothing of it is kept")
    elif member.issym():
        unpacker.link(path, target)
    elif member.islnk():
        unpacker.hard_link(path, unpacker.path(target))
    elif member.isreg():
        content = tar.extractfile(member)
        assert content is not None  # it is one for regular files
        unpacker.file(path, _pieces(content, member.size, unpacker.what), member.mode, member.mtime)
    else:
        raise BadTree(f"{unpacker.what} has {show(path)}, which is a device or a pipe; nothing of it is kept")


def _unpack_zipped(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, unpacker: _Unpacker) -> None:
    path = unpacker.path(os.fsencode(info.filename))
    mode = info.external_attr >> 16 if info.create_system == 3 else 0  # 3: Unix
    if info.is_dir():
        unpacker.folder(path, stat.S_IMODE(mode) or 0o755)
        return
    if not path:
        raise BadTree(f"{unpacker.what} has a member without a name; nothing of it is kept")
    with zipped.open(info) as content:
        if stat.S_ISLNK(mode):
            unpacker.link(path, content.read(_MAX_TARGET + 1))
        elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
            unpacker.file(path, _pieces(content, info.file_size, unpacker.what), stat.S_IMODE(mode) or 0o644, None)
        else:
            raise BadTree(f"{unpacker.what} has {show(path)}, which is a device or a pipe; nothing of it is kept")


def _pieces(content: IO[bytes], size: int, what: str) -> Iterator[bytes]:
    left = size
    while left:
        piece = content.read(min(left, _PIECE_BYTES))
        if not piece:
            raise BadTree(f"{what} is cut off; nothing of it is kept")
        yield piece
        left -= len(piece)
