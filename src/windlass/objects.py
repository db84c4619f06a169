"""Objects: the large buffers that calls read and write, as files in one private folder.

Theory of operation
-------------------
An *object* is a file that never changes.  Its name is its content (``b3-`` and 32 hexadecimal digits of BLAKE3), so that what
is passed to many calls is kept and sent once; a result, which is read once, has a random name instead (``r-...``) and is not hashed.
A file is written under a temporary name (``.t-<pid>-...``) and renamed when it is whole: whoever sees a name sees all of it.
The parts of a result are renamed when all of them are whole, so what a slot that died had not finished bears its number
(`remove_unfinished`).

Several processes write into one folder: a worker's slots leave their results there with `write_results`, which needs no store.  So the
folder is the truth, and the store's own table only remembers sizes, order of use and pins of the files it has met.  What the table
lacks is looked for in the folder, and what it has is looked at, for somebody may have cleaned /dev/shm: an object that was deleted is
absent, with its pins, and a folder that was deleted is made again by who writes into it next.  One that another user has made meanwhile is
used by nobody (`windlass.ownership`): objects are unpickled.

`limit` bounds the bytes of the folder.  Past it the least recently used objects without a pin go; when those are not enough, the
newcomer is refused (`StoreFull`).  An object's memory is safe from that: `ObjectStore.open` maps the file, and the mapping
outlives the name.

Names come from the network, therefore each is checked before it becomes a path.  Imported by slots and workers at their start: what is
not needed for a call without objects (blake3, mmap, pathlib) is imported where it is used.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from windlass.messages import RESULT, ObjectName, ObjectRef
from windlass.ownership import NotOurs, is_ours, make_ours, open_ours, require_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from windlass.incoming import Incoming
    from windlass.naming import Seen

_HEX: Final = frozenset("0123456789abcdef")
#: What a file system says that has no room.
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
#: Objects of so many bytes are named while they are written (`windlass.naming`), and written while more of them comes (`windlass.bulk`).
LARGE_BYTES: Final = 4 << 20
#: So many stale entries a heap may have beside twice the others before it is made anew.
_STALE: Final = 100
#: One write(2) takes 2 GiB at most.
_WRITE_BYTES: Final = 1 << 30


def content_name(data: Buffer) -> ObjectName:
    """The name that `data` has as an object."""
    import blake3

    return ObjectName("b3-" + blake3.blake3(data).hexdigest(16))


def is_object_name(name: str) -> bool:
    """True for what may be an object's name, and so may become part of a path."""
    head, _, tail = name.partition("-")
    return len(tail) == 32 and _HEX.issuperset(tail) and head in ("b3", "r")


def write_results(
    folder: str | os.PathLike[str], parts: Sequence[Buffer], names: Sequence[str] = (), owner: int | None = None
) -> list[ObjectRef]:
    """Write the parts of a result into a store's folder from any process of its host, under these names or random ones: all or none.

    Until all are whole they bear the number of the process ``owner`` (None: this one). Raises `StoreFull` when the disk is full.
    """
    folder = os.fspath(folder)
    written: list[tuple[str, int]] = []
    try:
        for data in parts:
            written.append(_write(folder, data, owner))
    except BaseException:
        for temporary, _ in written:
            os.unlink(temporary)
        raise
    refs: list[ObjectRef] = []
    for number, (temporary, size) in enumerate(written):
        name = names[number] if names else RESULT + os.urandom(16).hex()
        os.rename(temporary, os.path.join(folder, name))
        refs.append(ObjectRef(ObjectName(name), size))
    return refs


def remove_unfinished(folder: str, owner: int) -> None:
    """Remove the results that a process, which has ended, had begun to write there."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(f".t-{owner}-"):
                os.unlink(os.path.join(folder, name))


def map_object(path: str | os.PathLike[str], *, foreign: bool = False, briefly: bool = False) -> memoryview:
    """A private, writable view of a file: writes into it stay in this process. Outlives the file's name.

    With ``foreign`` it may be any file; else it must be this user's, or `NotOurs` is raised. With ``briefly`` the view goes soon, and is no
    copy while a descriptor is left: it may be large, and many of one file at once.
    """
    from windlass import descriptors

    descriptor = descriptors.opened(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC) if foreign else open_ours(path))
    try:
        return descriptors.view_of(descriptor, spare=not briefly)
    finally:
        os.close(descriptor)


def open_in(folder: str | os.PathLike[str], name: str) -> memoryview:
    """`ObjectStore.open` for a process without the store, such as a slot. Raises `KeyError` when the object is absent."""
    if not is_object_name(name):
        raise KeyError(name)
    try:
        return map_object(os.path.join(folder, name))
    except (FileNotFoundError, NotOurs):
        raise KeyError(name) from None


class ObjectStore:
    """The objects in one folder, kept under `limit` bytes (0: no limit). Safe for threads; other processes may add files.

    The folder is made if need be and is private (0700). Objects already in it are taken up.
    """

    def __init__(self, folder: Path, limit: int = 0) -> None:
        self.folder = folder
        self.limit = limit
        self.used = 0
        self._text = os.fspath(folder)
        self._lock = threading.Lock()
        #: In order of use, the least recent first.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        #: A heap of what may be evicted, by its last use; those that were used or pinned since, or are gone, stay until they come up.
        self._evictable: list[tuple[int, str]] = []
        self._uses = 0
        self._reserved = 0
        self._closed = False
        self._seen: Seen | None = None
        os.makedirs(self._text, mode=0o700, exist_ok=True)
        os.chmod(self._text, 0o700)
        self.token = self._make_token()
        self._take_up()

    def put(self, data: Buffer, *, pin: bool = False) -> ObjectRef:
        """Keep `data` under its content's name; an object that is there already is used again. Raises `StoreFull`.

        With `pin` it has a pin from the first moment on, so that nothing can evict it before it is needed.
        """
        if memoryview(data).nbytes >= LARGE_BYTES:
            from windlass.errors import StoreFull
            from windlass.naming import Naming, Seen

            self._seen = self._seen or Seen()
            if self._seen.is_new(data):
                naming = Naming(data)
                with suppress(StoreFull):  # it may be here already, by another way
                    return self._write_object(naming.name, data, pin)
                return self.put_as(naming.name(), data, pin=pin)
        return self.put_as(content_name(data), data, pin=pin)

    def put_as(self, name: ObjectName, data: Buffer, *, pin: bool = False) -> ObjectRef:
        """As `put`, for who knows the content's name."""
        with self._lock:
            entry = self._find(name)
            if entry is not None:
                entry.doomed = False
                entry.pins += pin
                return ObjectRef(name, entry.size)
        return self._write_object(lambda: name, data, pin)

    def put_result(self, data: Buffer, *, pin: bool = False) -> ObjectRef:
        """Keep `data` under a random name, without hashing it. Raises `StoreFull`."""
        name = ObjectName(RESULT + os.urandom(16).hex())
        return self._write_object(lambda: name, data, pin)

    def path(self, name: str) -> Path:
        """The object's file. Raises `KeyError` when it is absent."""
        if not self.has(name):
            raise KeyError(name)
        return self.folder / name

    def has(self, name: str) -> bool:
        """True when the object is here; that counts as a use."""
        with self._lock:
            return self._find(name) is not None

    def size(self, name: str) -> int:
        """The object's bytes. Raises `KeyError` when it is absent."""
        with self._lock:
            entry = self._find(name)
            if entry is None:
                raise KeyError(name)
            return entry.size

    def open(self, name: str, *, briefly: bool = False) -> memoryview:
        """A private, writable mapping of the object, good after its eviction too. Raises `KeyError` when it is absent."""
        with self._lock:
            if self._find(name) is None:
                raise KeyError(name)
        try:
            return map_object(os.path.join(self._text, name), briefly=briefly)
        except (FileNotFoundError, NotOurs):
            with self._lock:
                self._forget(name)
            raise KeyError(name) from None

    def verify(self, name: str) -> bool:
        """True when the object is here and its content is what its name says; a damaged one is removed."""
        try:
            view = self.open(name, briefly=True)
        except KeyError:
            return False
        if not name.startswith("b3-") or content_name(view) == name:
            return True
        with self._lock:
            self._remove(name)
        return False

    def receive(self, name: str, size: int) -> Incoming:
        """Room for an object of `size` bytes that is to arrive. Raises `StoreFull`, and `ValueError` for a name that is none."""
        if not is_object_name(name) or size < 0:
            raise ValueError(f"{name!r} of {size} bytes cannot be an object; names are b3- or r- and 32 hexadecimal digits")
        from windlass.incoming import Incoming

        self._reserve(size)
        try:
            return Incoming(self, name, size)
        except BaseException:
            self._unreserve(size)
            raise

    def adopt(self, name: str, path: str | os.PathLike[str], *, pin: bool = False) -> ObjectRef:
        """Take in a file that another process of this host wrote: by a hard link, else by copying it.

        Raises `ValueError` for a name that is none or a path that is no regular file, `OSError` when it cannot be read,
        `StoreFull` when it does not fit. Content is not checked: see `verify`.
        """
        if not is_object_name(name):
            raise ValueError(f"{name!r} cannot be an object's name; names are b3- or r- and 32 hexadecimal digits")
        with self._lock:
            entry = self._find(name)
            if entry is not None:
                entry.doomed = False
                entry.pins += pin
                return ObjectRef(ObjectName(name), entry.size)
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{os.fspath(path)} is no regular file, so it cannot become an object; nothing was taken")
        self._reserve(status.st_size)
        try:
            try:
                os.link(path, os.path.join(self._text, name), follow_symlinks=False)
            except FileExistsError:
                pass
            except OSError:  # another file system, or one without links
                temporary = _copy(self._text, path)
                os.rename(temporary, os.path.join(self._text, name))
            return self._enter(name, status.st_size, pin)
        finally:
            self._unreserve(status.st_size)

    def pin(self, name: str) -> None:
        """Keep the object from eviction until `unpin` is called as often. Raises `KeyError` when it is absent."""
        with self._lock:
            entry = self._find(name)
            if entry is None:
                raise KeyError(name)
            entry.doomed = False
            entry.pins += 1

    def fetched(self, name: str) -> None:
        """This one was fetched from where it is kept, so that it may go like any other when there is no room, a result too."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None:
                entry.copy = True
                self._offer(name, entry)

    def unpin(self, name: str) -> None:
        """Take back one `pin`; without one, nothing happens."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and entry.pins:
                entry.pins -= 1
                if entry.doomed and not entry.pins:
                    self._remove(name)
                    return
                self._offer(name, entry)
                if self.limit and self.used + self._reserved > self.limit:
                    self._evict(self.used + self._reserved - self.limit)

    def discard(self, name: str) -> None:
        """Remove the object now, or with its last pin; absent is fine."""
        with self._lock:
            entry = self._find(name)
            if entry is None:
                return
            if entry.pins:
                entry.doomed = True
            else:
                self._remove(name)

    def names(self) -> list[ObjectName]:
        """The objects known here, the least recently used first."""
        with self._lock:
            return [ObjectName(name) for name in self._entries]

    def close(self) -> None:
        """Remove the folder and all in it. Mappings that are open stay good."""
        with self._lock:
            self._closed = True
            self._entries.clear()
            self._evictable.clear()
            self.used = 0
        import shutil

        shutil.rmtree(self._text, ignore_errors=True)

    def check(self) -> None:
        """Assert what must hold between the table and its sums."""
        with self._lock:
            assert self.used == sum(entry.size for entry in self._entries.values())
            assert self._reserved >= 0
            assert all(entry.pins >= 0 for entry in self._entries.values())
            assert all(entry.pins for entry in self._entries.values() if entry.doomed)
            offered = set(self._evictable)
            assert all((entry.used, name) in offered for name, entry in self._entries.items() if self._may_go(name, entry))

    # ------------------------------------------------ with the lock held

    def _find(self, name: str) -> _Entry | None:
        entry = self._entries.get(name)
        if entry is None and not is_object_name(name):
            return None
        try:
            about = os.lstat(os.path.join(self._text, name))
        except OSError:
            self._forget(name)
            return None
        if not is_ours(about):
            self._forget(name)
            return None
        if entry is None:
            return self._add(name, about.st_size)
        self._entries.move_to_end(name)
        self._use(name, entry)
        return entry

    def _add(self, name: str, size: int) -> _Entry:
        entry = self._entries[name] = _Entry(size)
        self.used += size
        self._use(name, entry)
        return entry

    def _use(self, name: str, entry: _Entry) -> None:
        self._uses += 1
        entry.used = self._uses
        self._offer(name, entry)

    def _offer(self, name: str, entry: _Entry) -> None:
        """It may be evicted now, if that is so."""
        if not self._may_go(name, entry):
            return
        from heapq import heappush

        heappush(self._evictable, (entry.used, name))
        if len(self._evictable) > 2 * len(self._entries) + _STALE:
            self._evictable = [(one.used, other) for other, one in self._entries.items() if self._may_go(other, one)]  # in order, so a heap

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.used -= entry.size

    def _remove(self, name: str) -> None:
        self._forget(name)
        try:
            os.unlink(os.path.join(self._text, name))
        except FileNotFoundError:
            pass

    def _evict(self, wanted: int) -> int:
        """Remove unpinned objects until `wanted` bytes are freed; returns the bytes that were.

        Results stay until they are discarded, as nobody could make them again, unless they are copies that were fetched. Millions that
        wait to be read are not looked at for each that comes.
        """
        from heapq import heappop

        freed = 0
        while freed < wanted and self._evictable:
            used, name = heappop(self._evictable)
            entry = self._entries.get(name)
            if entry is not None and entry.used == used and self._may_go(name, entry):
                self._remove(name)
                freed += entry.size
        return freed

    @staticmethod
    def _may_go(name: str, entry: _Entry) -> bool:
        return not entry.pins and (entry.copy or not name.startswith(RESULT))

    def could_hold(self, size: int) -> bool:
        """Whether an object of so many bytes would fit if nothing else were here."""
        return not self.limit or size <= self.limit

    # ------------------------------------------------ without the lock

    def _reserve(self, size: int) -> None:
        with self._lock:
            if self._closed:  # or the folder would be made again
                raise FileNotFoundError(errno.ENOENT, "the object store is closed", self._text)
            over = self.used + self._reserved + size - self.limit
            if self.limit and over > 0 and self._evict(over) < over:
                raise _store_full(
                    f"an object of {size} bytes does not fit into {self._text}: {self.used + self._reserved} of {self.limit} bytes "
                    "are in use; raise the limit, or wait until calls that use them have ended"
                )
            self._reserved += size

    def _unreserve(self, size: int) -> None:
        with self._lock:
            self._reserved -= size

    def _enter(self, name: str, size: int, pin: bool) -> ObjectRef:
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                entry = self._add(name, size)
            entry.doomed = False
            entry.pins += pin
            return ObjectRef(ObjectName(name), entry.size)

    def _write_object(self, find_name: Callable[[], ObjectName], data: Buffer, pin: bool) -> ObjectRef:
        """``find_name`` is asked when all is written."""
        size = memoryview(data).nbytes
        self._reserve(size)
        try:
            try:
                temporary, _ = _write(self._text, data)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                with self._lock:  # other users filled the disk: what nobody needs here may help
                    if not self._evict(size):
                        raise
                temporary, _ = _write(self._text, data)
            try:
                name = find_name()
                os.rename(temporary, os.path.join(self._text, name))
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
            return self._enter(name, size, pin)
        finally:
            self._unreserve(size)

    def _make_token(self) -> str:
        path = os.path.join(self._text, ".token")
        token = os.urandom(16).hex()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token)
        return token

    def _take_up(self) -> None:
        found: list[tuple[float, str, int]] = []
        with os.scandir(self._text) as entries:
            for entry in entries:
                if is_object_name(entry.name):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_atime, entry.name, status.st_size))
                elif entry.name.startswith(".t-") and not _alive(entry.name.split("-")[1]):
                    os.unlink(entry.path)  # half a file of a process that died
        for _, name, size in sorted(found):
            self._add(name, size)


class _Entry:
    __slots__ = ("copy", "doomed", "pins", "size", "used")

    def __init__(self, size: int) -> None:
        self.size, self.pins, self.doomed, self.copy = size, 0, False, False
        #: The number of its last use.
        self.used = 0


# ---------------------------------------------------------------- files


def create(folder: str, access: int, size: int, owner: int | None = None) -> tuple[str, int]:
    """A new temporary file there, for so many bytes: its path and descriptor. A folder that somebody has deleted is made again."""
    path = os.path.join(folder, f".t-{owner or os.getpid()}-{os.urandom(8).hex()}")
    flags = access | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            make_ours(folder)
            descriptor = os.open(path, flags, 0o600)
    except OSError as error:  # some have no room for a file already, as they have none for what it holds
        raise failed(folder, size, error) from error
    try:
        require_ours(folder)
    except NotOurs:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(path)
        raise
    return path, descriptor


def _write(folder: str, data: Buffer, owner: int | None = None) -> tuple[str, int]:
    """Write `data` to a temporary file there; returns its path and bytes."""
    view = memoryview(data)
    path, descriptor = create(folder, os.O_WRONLY, view.nbytes, owner)
    try:
        write_all(descriptor, view)
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, OSError):
            raise failed(folder, view.nbytes, error) from error
        raise
    finally:
        os.close(descriptor)
    return path, view.nbytes


def write_all(descriptor: int, data: Buffer) -> None:
    """Write every byte of it. Raises `OSError`."""
    # Measured faster than copying into a mapping of the file: 1.8 against 1.2 GB/s on tmpfs.
    view = memoryview(data)
    if view.ndim != 1 or view.format != "B":
        view = view.cast("B")
    done, size = 0, view.nbytes
    while done < size:
        done += os.write(descriptor, view[done : done + _WRITE_BYTES])


def _copy(folder: str, source: str | os.PathLike[str]) -> str:
    view = map_object(source, briefly=True)
    return _write(folder, view)[0]


def _store_full(text: str) -> OSError:
    from windlass.errors import StoreFull

    return StoreFull(text)


def failed(folder: str, size: int, error: OSError) -> OSError:
    """What to raise of an error in writing so many bytes there: `StoreFull`, if that is what it says."""
    if error.errno not in FULL:
        return error
    full = _store_full(
        f"no room for an object of {size} bytes in {folder}: {os.strerror(error.errno or errno.ENOSPC)}; free some space there, "
        "or choose another folder for objects"
    )
    full.errno = error.errno
    return full


def _alive(pid: str) -> bool:
    return not pid.isdigit() or os.path.exists(f"/proc/{pid}")
