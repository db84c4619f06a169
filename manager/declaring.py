"""Declaring files: what a program writes to have data on the nodes, as a part of a manager's door.

Theory of operation
-------------------
A declaration gives a file its name, by its content where that is at hand, and says where it comes from (`FileOrigin`).  No byte moves:
workers fetch what their calls need (`windlass.manager.replicas`).  A path is hashed once for each state that it is in; a small file is read
at once, into the manager's store while that has room, so that it can go with the call.

The `File` that is given back keeps the declaration; when it is dropped, and no call needs it any more, the manager stops serving it.
Replicas stay on the workers as long as their level and the workers' disks allow, so declaring the same content again costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat as modes
import threading
import urllib.parse
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from windlass.errors import UsageError
from windlass.files import File, is_sendable, shown
from windlass.manager.ties import RIDE_BYTES
from windlass.manifests import Manifest, unpacked_name
from windlass.messages import LEVELS, RESULT, FileName, FileOrigin, FileRef, Level, ObjectRef

if TYPE_CHECKING:
    from collections.abc import Callable

Stage = Literal["auto", "node", "never"]
#: Shared files up to this size are copied to the node's disk by ``stage="auto"``; larger ones are read where they are.
STAGE_MOST: Final = 1 << 30
#: Paths whose content's name is remembered.
_HASHED_MOST: Final = 10_000
_PLAIN_URL: Final = re.compile(r"[!-~]+")
#: TaskVine's words for levels.
_CACHE_WORDS: Final[dict[object, Level]] = {True: "workflow", False: "call", "always": "forever", "task": "call", "never": "call"}


class Declaring(ABC):
    """The part of a manager that declares files."""

    def __init__(self) -> None:
        self._hashed: dict[tuple[str, int, int, int, int], FileName] = {}
        self._hashing = threading.Lock()

    @abstractmethod
    def _declare(self, ref: FileRef, origin: FileOrigin, manifest: Manifest | None) -> Callable[[], None]:
        """Tell the manager; what releases it again."""

    @abstractmethod
    def _put_buffer(self, data: bytes) -> ObjectRef:
        """Keep these bytes until `_declare`'s release."""

    @abstractmethod
    def _has_much_room(self) -> bool:
        """Small files may be kept as buffers."""

    @abstractmethod
    def _check_open(self) -> None: ...

    def declare_file(self, path: str | os.PathLike[str], level: Level = "workflow", *, cache: Any = None) -> File:
        """A file or directory tree of this machine: calls get the path of a copy on their node, for reading.

        A tree keeps its symbolic links, modes and empty folders. It must stay as it is: what has changed by the time that a worker
        fetches it ends its calls with an error that says so. (Files of up to 64 KiB are read at once and travel with the call; calls get
        what they were, or that error.) ``level``: how long copies stay in a worker's cache, see docs/files.md.

        Raises `UsageError` when it is not there, cannot be read, or cannot be sent (sockets, devices, links that lead out of the tree).
        """
        return self._from_path("declare_file", path, _level(level, cache))

    def _from_path(self, what: str, path: object, level: Level) -> File:
        """``what`` asked for it, for texts."""
        self._check_open()
        text = _path(what, path)
        try:
            status = os.stat(text)
        except OSError as error:
            hint = "windlass environment pack makes one" if what == "environment=" else "declare a file or folder of this machine"
            raise UsageError(f"{_told(what, text)}: {error.strerror or error}; {hint}") from error
        real = os.path.realpath(text)
        if modes.S_ISDIR(status.st_mode):
            from windlass.trees import scan

            manifest = scan(real)
            ref = FileRef(manifest.name, manifest.size, _base(text), level)
            return self._declared(ref, FileOrigin(path=real), text, manifest)
        if not modes.S_ISREG(status.st_mode):
            raise UsageError(f"{_told(what, text)}: it is neither a regular file nor a folder, so it cannot be sent to workers")
        if 0 < status.st_size <= RIDE_BYTES and self._has_much_room():
            try:
                with open(real, "rb") as opened:
                    kept = self._put_buffer(opened.read())
            except OSError as error:
                raise UsageError(f"{_told(what, text)}: {error.strerror or error}; declare a file that can be read") from error
            return self._declared(FileRef(FileName(kept.name), kept.size, _base(text), level), FileOrigin(object=kept), text)
        name = self._name_of(real, status)
        ref = FileRef(name, status.st_size, _base(text), level)
        return self._declared(ref, FileOrigin(path=real, stamp=(status.st_mtime_ns, status.st_size)), text)

    def declare_buffer(self, data: bytes | bytearray | memoryview | str, name: str = "buffer", level: Level = "workflow") -> File:
        """Bytes (or text, as UTF-8) that calls find in a file of this name. Raises `UsageError` for anything else, `StoreFull`."""
        self._check_open()
        if isinstance(data, str):
            try:
                data = data.encode()
            except UnicodeEncodeError as error:
                raise UsageError(f"declare_buffer: the text cannot be written as UTF-8 ({error.reason}); give bytes") from error
        if not isinstance(data, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"declare_buffer takes bytes or text, not {type(data).__name__}; of an object give pickle.dumps(...)")
        level = _level(level, None)
        base = _checked_base("declare_buffer", name)
        kept = self._put_buffer(bytes(data))
        ref = FileRef(FileName(kept.name), kept.size, base, level)
        return self._declared(ref, FileOrigin(object=kept), f"buffer {name!r} of {kept.size:,} bytes")

    def declare_url(self, url: str, name: str | None = None, level: Level = "workflow", *, version: str = "") -> File:
        """What is at an ``http://``, ``https://`` or ``file://`` address when the first worker fetches it, from which the others get it.

        It is known by its address, not by its content: who declares it again is given the copies that are there, as long as there are any.
        Another ``version``, a word of yours (a date, an ETag), has it fetched anew. Raises `UsageError` for what is no such address; one
        that does not answer ends the calls that need it with `FileUnavailable`.
        """
        self._check_open()
        try:
            parts = urllib.parse.urlsplit(url) if isinstance(url, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
        except ValueError:  # brackets of an IPv6 address that do not close
            parts = None
        if (
            parts is None
            or parts.scheme not in ("http", "https", "file")
            or not (parts.netloc or parts.path)
            or not _PLAIN_URL.fullmatch(url)
        ):
            told = shown(url) if isinstance(url, str) else url  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"declare_url({told!r}): write an address that begins with http://, https:// or file://, with %20 for a space")
        base = name if name is not None else os.path.basename(urllib.parse.unquote(parts.path)) or parts.hostname or "file"
        ref = FileRef(_made_name("url", url, version), -1, _checked_base("declare_url", base), _level(level, None))
        return self._declared(ref, FileOrigin(url=url), shown(url))

    def declare_shared(self, path: str | os.PathLike[str], stage: Stage = "auto", level: Level = "workflow") -> File:
        """A path that the nodes see, on a shared file system. It need not be there yet when it is not staged.

        ``stage="never"``: calls get this very path. ``"node"``: it is copied to the node's disk once for all calls there. ``"auto"``: a
        regular file of at most 1 GiB is copied, all else is read where it is. What is copied is known by its path, sizes and times (of all
        that is in a folder, which takes a look at each): changed and declared again it is another file. Raises `UsageError` for one that is
        to be copied and is not there, or has no name that can be sent.
        """
        self._check_open()
        text, level = os.path.abspath(_path("declare_shared", path)), _level(level, None)
        if stage not in get_args(Stage):
            raise UsageError(f"declare_shared(stage={stage!r}): write stage='auto', 'node' or 'never'")
        try:
            status = os.stat(text)
        except OSError as error:
            if stage == "node":
                raise UsageError(f"declare_shared({text!r}, stage='node'): {error.strerror or error}; it cannot be copied") from error
            return File(id(self), None, text, path=text)
        if stage == "auto":
            stage = "node" if modes.S_ISREG(status.st_mode) and status.st_size <= STAGE_MOST else "never"
        if stage == "never":
            return File(id(self), None, text, path=text)
        if not is_sendable(text):
            raise UsageError(
                f"declare_shared({text!r}): it is to be copied to nodes, and that is not UTF-8, so no message can say it; declare a link "
                "to it with another name, or stage='never'"
            )
        regular = modes.S_ISREG(status.st_mode)
        # What it is now is part of its name: a later version is another file.
        name = _made_name("shared", text, status.st_mtime_ns, status.st_size if regular else _state_of(text))
        ref = FileRef(name, status.st_size if regular else -1, _base(text), level)
        return self._declared(ref, FileOrigin(shared=text), text)

    def declare_archive(self, file: File | str | os.PathLike[str], level: Level = "workflow") -> File:
        """An archive (tar, also compressed, or zip; a path or a declared file): calls get the path of the folder it is unpacked to,
        once for each worker. Raises `UsageError` for what is none."""
        self._check_open()
        return self._archive("declare_archive", file, level)

    def _archive(self, what: str, file: File | str | os.PathLike[str], level: Level) -> File:
        """``what`` asked for it, for texts."""
        archive = file if isinstance(file, File) else self._from_path(what, _archive_path(what, file), _level(level, None))
        if archive.ref is None:
            raise UsageError(f"declare_archive({archive!r}): it is read in place; declare it with stage='node'")
        packed = archive.ref
        base = packed.base.partition(".")[0] or packed.base
        ref = FileRef(unpacked_name(packed.name), -1, base, _level(level, None))
        found = self._declared(ref, FileOrigin(archive=packed), f"{archive.source}, unpacked")
        found.keep = archive  # it is fetched wherever this one is needed
        return found

    def declare_temp(self, name: str = "temp", level: Level = "workflow") -> File:
        """A file that a call will make (`FunctionCall.add_output`) and that stays on workers, for other calls. When it is lost, the
        call is run again."""
        self._check_open()
        ref = self._temporary("declare_temp", name, level)
        file = self._declared(ref, FileOrigin(), f"temp {name!r}")
        file.unmade = True
        return file

    def fetch_file(self, file: File) -> bytes:
        """The content of a file that a call has made, or will have; waits for that. Raises `FileUnavailable`; `UsageError` for others."""
        return self._made(f"fetch_file({file!r})", file)

    def save_file(self, file: File, path: str | os.PathLike[str]) -> None:
        """Write what a call has made, or will have made, to a path of this machine, whole or not at all; waits for that.

        Raises as `fetch_file`, and `OSError`.
        """
        text = _path("save_file(..., path)", path)
        data = self._made(f"save_file({file!r}, ...)", file)
        part = f"{text}.{os.getpid()}-{threading.get_ident()}.part"
        try:
            with open(part, "wb") as opened:
                opened.write(data)
            os.replace(part, text)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            if isinstance(error, OSError) and error.filename == part:  # a name that nobody has given
                raise type(error)(error.errno, error.strerror, text) from None
            raise

    def _made(self, what: str, file: File) -> bytes:
        if not isinstance(file, File) or not file.name.startswith(RESULT) or file.unmade:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{what}: only what calls make can be fetched, and a call that makes it must have been submitted")
        return self._bring(file)

    @abstractmethod
    def _bring(self, file: File) -> bytes:
        """Have here what a call makes, when it has made it."""

    # ------------------------------------------------------------ inside

    def _temporary(self, what: str, name: str, level: object) -> FileRef:
        base = _checked_base(what, name)
        return FileRef(FileName(RESULT + os.urandom(16).hex()), -1, base, _level(level, None))

    def _declared(self, ref: FileRef, origin: FileOrigin, source: str, manifest: Manifest | None = None) -> File:
        found = File(id(self), ref, source, self._declare(ref, origin, manifest))
        found.keep = manifest
        return found

    def _name_of(self, path: str, status: os.stat_result) -> FileName:
        from windlass.trees import file_name

        key = (path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        name = self._hashed.get(key)
        if name is None:
            name, _ = file_name(path)
            with self._hashing:
                if len(self._hashed) >= _HASHED_MOST:
                    self._hashed.clear()
                self._hashed[key] = name
        return name


def _told(what: str, value: object) -> str:
    return f"{what}{value!r}" if what.endswith("=") else f"{what}({value!r})"


def _path(what: str, path: object) -> str:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):  # pyright: ignore[reportUnknownArgumentType]
        raise UsageError(f"{_told(what, path)}: give a path, as a text or a pathlib.Path")  # pyright: ignore[reportUnknownArgumentType]
    text: object = os.fspath(path)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if not isinstance(text, str) or "\0" in text:
        raise UsageError(f"{_told(what, path)}: give the path as a text, without zero bytes")  # pyright: ignore[reportUnknownArgumentType]
    return os.path.expanduser(text)


def _archive_path(what: str, path: object) -> str:
    """A path at which there is what workers can unpack. Raises `UsageError`, also where that is plain to see now."""
    text = _path(what, path)
    if os.path.isdir(text):
        raise UsageError(f"{_told(what, text)}: it is a folder, not an archive; declare_file sends a folder as it is")
    with contextlib.suppress(OSError), open(text, "rb") as file:
        start = file.read(512)
        from windlass.environment_archive import kind_of
        from windlass.unpacking import is_zip

        if not kind_of(start) and not is_zip(start) and not _is_old_tar(text):
            raise UsageError(f"{_told(what, text)}: it is no archive; give a tar (also compressed) or a zip")
    return text


def _is_old_tar(path: str) -> bool:
    """Tar archives of before POSIX have no mark."""
    import tarfile

    return tarfile.is_tarfile(path)


def _level(level: object, cache: object) -> Level:
    if cache is not None:
        found = _CACHE_WORDS.get(cache, cache) if isinstance(cache, bool | str) else cache
        level = found
    for known in get_args(Level):
        if level == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(f"{level!r} is no level of a file: write level= one of {', '.join(map(repr, LEVELS))}")


def _base(path: str) -> str:
    base = os.path.basename(os.path.abspath(path)) or "root"
    return base.encode("utf-8", "replace").decode()  # what is no text is shown as far as it is one


def _checked_base(what: str, name: object) -> str:
    if not isinstance(name, str) or not name or "/" in name or "\0" in name or name in (".", "..") or not 0 < _encoded(name) <= 255:
        raise UsageError(f"{what}: {name!r} cannot be a file's name; give one without '/', of at most 255 bytes, as in name='data.csv'")
    return name


def _encoded(name: str) -> int:
    """Bytes in a folder's list; 0: it cannot be written there."""
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        return 0


def _state_of(folder: str) -> list[tuple[object, ...]]:
    """All that is below a folder, without its content: what changes when it does."""
    found: list[tuple[object, ...]] = []
    for below, folders, files in os.walk(folder):
        for path in (os.path.join(below, name) for name in folders + files):
            with contextlib.suppress(FileNotFoundError):  # it goes meanwhile
                one = os.lstat(path)
                known = (
                    os.readlink(path)
                    if modes.S_ISLNK(one.st_mode)
                    else (one.st_size, one.st_mtime_ns)
                    if modes.S_ISREG(one.st_mode)
                    else ""
                )
                found.append((os.path.relpath(path, folder), one.st_mode, known))
    return sorted(found, key=str)


def _made_name(*declared: object) -> FileName:
    import blake3

    text = " ".join(map(str, declared)).encode("utf-8", "surrogateescape")
    return FileName(f"x3-{blake3.blake3(text).hexdigest(16)}")
