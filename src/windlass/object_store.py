"""The store: what a process knows of the objects in one folder, and which of them stay.

Theory of operation
-------------------
Several processes write into a folder of objects (`windlass.objects`).  So the folder is the truth, and the store's own table only
remembers sizes, order of use and pins of the files it has met.  What the table lacks is looked for in the folder, and what it has is
looked at, for somebody may have cleaned /dev/shm: an object that was deleted is absent, with its pins, and a folder that was deleted is
made again by who writes into it next.  One that another user has made meanwhile is used by nobody (`windlass.ownership`): objects are
unpickled.

`limit` bounds the bytes of the folder.  Past it the least recently used objects without a pin go; when those are not enough, the
newcomer is refused (`StoreFull`).  An object's memory is safe from that: `ObjectStore.open` maps the file, and the mapping
outlives the name.

What was needed by one call goes sooner than that: programs rarely give the same array again that they gave once, and the newest of those,
`IDLE_BYTES` together, are all that is kept of such.  What comes again after it went so has been needed twice, and stays.

The memory of what goes is kept for what comes, for some seconds (`windlass.spares`): an eighth of the limit at most, beside it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from windlass import spares
from windlass.errors import FULL, StoreFull
from windlass.messages import RESULT, ObjectName, ObjectRef
from windlass.naming import Naming, Seen
from windlass.objects import LARGE_BYTES, content_name, is_object_name, map_object, open_object, write
from windlass.ownership import NotOurs, is_ours

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Buffer

    from windlass.incoming import Incoming

T = TypeVar("T")

#: So many bytes stay at most of objects that were needed once and are not any more; of a store with a limit an eighth of that, if less.
IDLE_BYTES: Final = 512 << 20
#: So many stale entries a heap may have beside twice the others before it is made anew.
_STALE: Final = 100
#: So many names are remembered of what was needed once and went.
_ONCE_MOST: Final = 4096


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
        #: What was needed once, the first to become idle first, and its bytes.
        self._idle: OrderedDict[str, int] = OrderedDict()
        self._idle_bytes = 0
        #: Names of those that went, the newest last.
        self._once: OrderedDict[str, None] = OrderedDict()
        self._most_idle = min(IDLE_BYTES, limit // 8) if limit else IDLE_BYTES
        os.makedirs(self._text, mode=0o700, exist_ok=True)
        os.chmod(self._text, 0o700)
        self.token = self._make_token()
        self._take_up()

    def put(self, data: Buffer, *, pin: bool = False) -> ObjectRef:
        """Keep `data` under its content's name; an object that is there already is used again. Raises `StoreFull`.

        With `pin` it has a pin from the first moment on, so that nothing can evict it before it is needed.
        """
        if memoryview(data).nbytes >= LARGE_BYTES:
            self._seen = self._seen or Seen()
            if self._seen.is_new(data):
                naming = Naming(data)
                with suppress(StoreFull):  # it may be here already, by another way
                    return self._write_object(naming.name, data, pin)
                return self.put_as(naming.name(), data, pin=pin)
        return self.put_as(content_name(data), data, pin=pin)

    def put_as(self, name: ObjectName, data: Buffer, *, pin: bool = False) -> ObjectRef:
        """As `put`, for who knows the content's name."""
        return self._here(name, pin) or self._write_object(lambda: name, data, pin)

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
        return self._opened(name, lambda path: map_object(path, briefly=briefly))

    def open_file(self, name: str) -> int:
        """A descriptor for reading the object, good after its eviction too. Raises `KeyError` when it is absent."""
        return self._opened(name, open_object)

    def _opened(self, name: str, how: Callable[[str], T]) -> T:
        with self._lock:
            if self._find(name) is None:
                raise KeyError(name)
        try:
            return how(os.path.join(self._text, name))
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

    def receive(self, name: str, size: int, *, believed: bool = False) -> Incoming:
        """Room for an object of `size` bytes that is to arrive. Raises `StoreFull`, and `ValueError` for a name that is none.

        ``believed``: its content is what its name says; else that is looked at when all is there.
        """
        if not is_object_name(name) or size < 0:
            raise ValueError(f"{name!r} of {size} bytes cannot be an object; names are b3- or r- and 32 hexadecimal digits")
        from windlass.incoming import Incoming

        self._reserve(size)
        try:
            return Incoming(self, name, size, believed)
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
        if (here := self._here(name, pin)) is not None:
            return here
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
                temporary = write(self._text, map_object(path, briefly=True))[0]
                os.rename(temporary, os.path.join(self._text, name))
            return self._enter(name, status.st_size, pin, linked=True)
        finally:
            self._unreserve(status.st_size)

    def pin(self, name: str) -> None:
        """Keep the object from eviction until `unpin` is called as often. Raises `KeyError` when it is absent."""
        if self._here(name, True) is None:
            raise KeyError(name)

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
                if not entry.again and self._may_go(name, entry):
                    self._rest(name, entry)
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

    def sweep(self) -> bool:
        """Give back memory that has been kept for new objects, when none has come for a while; to be called every few seconds as long as
        the answer is yes, after something was removed."""
        return spares.sweep(self._text)

    def close(self) -> None:
        """Remove the folder and all in it. Mappings that are open stay good."""
        with self._lock:
            self._closed = True
            self._entries.clear()
            self._evictable.clear()
            self._idle.clear()
            self.used = self._idle_bytes = 0
        import shutil

        shutil.rmtree(self._text, ignore_errors=True)

    def check(self) -> None:
        """Assert what must hold between the table and its sums."""
        with self._lock:
            assert self.used == sum(entry.size for entry in self._entries.values())
            assert self._reserved >= 0
            assert all(entry.pins >= 0 for entry in self._entries.values())
            assert all(entry.pins for entry in self._entries.values() if entry.doomed)
            assert all(not self._entries[name].pins and self._entries[name].size == size for name, size in self._idle.items())
            assert self._idle_bytes == sum(self._idle.values())
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
        self._idle_bytes -= self._idle.pop(name, 0)  # who asks is about to need it
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

    def _need(self, name: str, entry: _Entry, pin: bool) -> None:
        """Somebody has given it again, or asks for it."""
        entry.doomed = False
        self._idle_bytes -= self._idle.pop(name, 0)
        if pin:
            entry.again = entry.needed or name in self._once
            entry.needed = True
            entry.pins += 1

    def _rest(self, name: str, entry: _Entry) -> None:
        """It was needed once, and is not now; so the first of those go."""
        self._idle[name] = entry.size
        self._idle_bytes += entry.size
        while self._idle_bytes > self._most_idle and len(self._idle) > 1:
            first = next(iter(self._idle))
            self._remove(first)
            self._once[first] = None
            if len(self._once) > _ONCE_MOST:
                self._once.popitem(last=False)

    def _forget(self, name: str) -> _Entry | None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.used -= entry.size
            self._idle_bytes -= self._idle.pop(name, 0)
        return entry

    def _remove(self, name: str) -> None:
        entry, path = self._forget(name), os.path.join(self._text, name)
        with suppress(FileNotFoundError):
            if entry is None or entry.linked:  # which is another folder's memory
                os.unlink(path)
            else:
                spares.keep(self._text, path, entry.size, self._most_idle)

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

    def _here(self, name: str, pin: bool) -> ObjectRef | None:
        """The object, which somebody needs, if it is here."""
        with self._lock:
            entry = self._find(name)
            if entry is None:
                return None
            self._need(name, entry, pin)
            return ObjectRef(ObjectName(name), entry.size)

    def _reserve(self, size: int) -> None:
        with self._lock:
            if self._closed:  # or the folder would be made again
                raise FileNotFoundError(errno.ENOENT, "the object store is closed", self._text)
            over = self.used + self._reserved + size - self.limit
            if self.limit and over > 0 and self._evict(over) < over:
                raise StoreFull(
                    f"an object of {size} bytes does not fit into {self._text}: {self.used + self._reserved} of {self.limit} bytes "
                    "are in use; wait until calls that use them have ended, or run this with more memory or disk"
                )
            self._reserved += size

    def _unreserve(self, size: int) -> None:
        with self._lock:
            self._reserved -= size

    def _enter(self, name: str, size: int, pin: bool, *, linked: bool = False) -> ObjectRef:
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                entry = self._add(name, size)
                entry.linked = linked
            self._need(name, entry, pin)
            return ObjectRef(ObjectName(name), entry.size)

    def _write_object(self, find_name: Callable[[], ObjectName], data: Buffer, pin: bool) -> ObjectRef:
        """``find_name`` is asked when all is written."""
        size = memoryview(data).nbytes
        self._reserve(size)
        try:
            try:
                temporary, _ = write(self._text, data)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                with self._lock:  # other users filled the disk: what nobody needs here may help
                    if not self._evict(size):
                        raise
                temporary, _ = write(self._text, data)
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
        spares.drop(self._text)
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
    __slots__ = ("again", "copy", "doomed", "linked", "needed", "pins", "size", "used")

    def __init__(self, size: int) -> None:
        self.size, self.pins, self.doomed, self.copy = size, 0, False, False
        #: It has been pinned; again after that.
        self.needed = self.again = False
        #: A name more for a file of another folder.
        self.linked = False
        #: The number of its last use.
        self.used = 0


def _alive(pid: str) -> bool:
    return not pid.isdigit() or os.path.exists(f"/proc/{pid}")
