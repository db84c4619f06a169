"""Entries of a cache on disk: one folder per file, made aside and renamed when whole.

Theory of operation
-------------------
An entry is a folder with the file's name (``b3-...``).  It holds the content under the *base*, the last part of the path that functions
see (``model.pkl``), which is a file or a tree; the *facts* about it; and a tree's manifest when that is known, so that it can be served
without hashing it again.  A further base is a hard link to a file, a symbolic link to a tree.

An entry is made in a *temporary* (``.t-<name>-...``) beside it, which has facts from its first moment on: how much room is kept for it.
One rename makes it an entry, so whoever sees a name sees all of it, and a process that is killed leaves nothing but temporaries.  What
is removed is renamed first too (``.dead-...``): the name is gone at once, however long the removal takes.

After a crash of the whole node a file may have a name and not its bytes.  So facts tell during which boot they were written, and an
entry of an earlier boot is not there until its content has been compared with its name.  Files are made read-only: calls share them.
For root, as in a container, that is nothing; so the facts tell when a file was written, and one that was touched since is compared
(`is_untouched`, `settle`).  (Trees keep their modes; what a call writes into one is found only by `is_good`.)

Cleaners of old files take a tree apart, file by file, and leave what was used lately.  So an entry has a *mark* that is older than its
content and that nobody reads or touches: it goes together with the first of the files, and without it the entry is not there.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from windlass.errors import BadTree, CacheFull, Damaged, UsageError
from windlass.folders import NO_LINKS, remove_tree, writing
from windlass.manifests import Manifest, decode_manifest, is_file_name, show
from windlass.messages import FileName, Record
from windlass.trees import FileWriter, TreeWriter, file_name, scan

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

#: How the names begin of what a process leaves that is killed.
LEFT_OVER: Final = (".t-", ".dead-")
_FACTS: Final = ".windlass-facts"
_MANIFEST: Final = ".windlass-manifest"
_MARK: Final = ".windlass-whole"
_RESERVED: Final = ".windlass-"
#: Room for content of unknown size is taken in steps of this.
_STEP_BYTES: Final = 16 << 20


class Facts(Record, frozen=True):
    """What a cache knows of an entry; of a temporary only ``size``, the room kept for it."""

    size: int
    level: str = ""
    #: The first base, encoded by the file system's rules.
    base: bytes = b""
    #: Content name (``b3-`` of a file, ``t3-`` of a tree), whatever the entry's name is; empty: not known.
    content: str = ""
    #: The boot of this node during which it was written.
    boot: str = ""
    #: When a file was last written to, as the file system says (`st_mtime_ns`); 0: not known, as of a tree.
    written: int = 0


def boot_id() -> str:
    """This boot of this node; empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def check_name(name: str) -> None:
    """Raise `ValueError` for what cannot be a file's name."""
    if not is_file_name(name):
        raise ValueError(f"{name!r} cannot be a file's name; names are b3-, t3-, u3-, x3- or r- and 32 hexadecimal digits")


def check_base(base: str) -> bytes:
    """The base in bytes. Raises `UsageError` for what cannot be the last part of a path here."""
    encoded = os.fsencode(base)
    if not encoded or encoded in (b".", b"..") or b"/" in encoded or b"\0" in encoded or len(encoded) > 255 or base.startswith(_RESERVED):
        raise UsageError(
            f"a file cannot be called {base!r} on a worker: that is no last part of a path, or Windlass's own; name it otherwise"
        )
    return encoded


def read_facts(entry: str) -> Facts | None:
    """The facts of an entry or temporary; None when there are none, or its content is not there."""
    try:
        with open(os.path.join(entry, _FACTS), "rb") as file:
            facts = msgspec.msgpack.decode(file.read(), type=Facts)
        if facts.base:
            os.lstat(os.path.join(os.fsencode(entry), facts.base))
            os.lstat(os.path.join(entry, _MARK))
    except (OSError, msgspec.DecodeError, ValueError):
        return None
    return facts


def write_facts(entry: str, facts: Facts) -> None:
    """Set the facts, all at once for whoever reads them."""
    _write_whole(entry, _FACTS, msgspec.msgpack.encode(facts))


def _write_whole(entry: str, name: str, data: bytes) -> None:
    path = os.path.join(entry, f"{name}-{os.urandom(6).hex()}")
    with open(path, "xb") as file:
        file.write(data)
    os.rename(path, os.path.join(entry, name))


def take_up(folder: str) -> list[tuple[str, Facts]]:
    """What an earlier worker left in a folder of its own: its entries that were for workers, by use; the rest of the cache's is removed."""
    found: list[tuple[float, str, Facts]] = []
    boot = boot_id()
    for name in os.listdir(folder):
        place = os.path.join(folder, name)
        facts = read_facts(place) if is_file_name(name) else None
        if facts is not None and facts.boot == boot and facts.level in ("worker", "forever"):
            found.append((used_at(place), name, facts))
        elif is_file_name(name) or name.startswith(LEFT_OVER):
            remove_tree(place)
    return [each[1:] for each in sorted(found, key=lambda each: each[:2])]


def used_at(entry: str) -> float:
    """When the entry was last used."""
    try:
        return os.stat(os.path.join(entry, _FACTS)).st_mtime
    except OSError:
        return 0.0


def touch(entry: str) -> None:
    """Note a use."""
    try:
        os.utime(os.path.join(entry, _FACTS))
    except OSError:
        pass


def write_manifest(entry: str, encoded: bytes) -> None:
    """Keep a tree's manifest with it."""
    _write_whole(entry, _MANIFEST, encoded)


def manifest_in(entry: str, facts: Facts) -> Manifest:
    """The manifest of the tree in an entry; one that had to be made is kept there for the next time."""
    try:
        with open(os.path.join(entry, _MANIFEST), "rb") as file:
            return decode_manifest(file.read())
    except (OSError, BadTree):
        pass
    manifest = scan(os.fsdecode(os.path.join(os.fsencode(entry), facts.base)))
    try:
        write_manifest(entry, manifest.encode())
    except OSError:
        pass  # then it is made again
    return manifest


def path_in(entry: str, facts: Facts, base: str) -> Path:
    """The path of the entry's content with this last part, made if need be. Raises `KeyError` when the content is gone."""
    from pathlib import Path

    wanted = check_base(base)
    folder = os.fsencode(entry)
    path, first = os.path.join(folder, wanted), os.path.join(folder, facts.base)
    if wanted != facts.base and not os.path.lexists(path):
        try:
            with writing(path):
                if os.path.isdir(first):
                    os.symlink(facts.base, path)
                else:
                    _link(facts.base, first, path)
        except FileExistsError:
            pass  # another process wanted the same
        except Damaged:
            raise KeyError(os.path.basename(entry)) from None
    return Path(os.fsdecode(path))


def _link(base: bytes, first: bytes, path: bytes) -> None:
    try:
        os.link(first, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.symlink(base, path)


def is_good(entry: str, name: str, facts: Facts) -> bool:
    """True when the content is what the name or the facts say; without such a word, when a file has its size. Reads all of it."""
    path = os.path.join(os.fsencode(entry), facts.base)
    content = content_of(name, facts.content)
    try:
        if os.path.isdir(path):
            return not content or scan(os.fsdecode(path)).name == content
        if not content:
            return os.stat(path).st_size == facts.size
        return file_name(os.fsdecode(path))[0] == content
    except Exception:  # noqa: BLE001 - whatever cannot be read is not good
        return False


def is_untouched(entry: str, facts: Facts) -> bool:
    """False when a file has been touched since it was kept. Looks at its size and time only; a tree is taken for good."""
    try:
        status = os.stat(os.path.join(os.fsencode(entry), facts.base))
    except OSError:
        return True  # whoever misses it says so
    return not stat.S_ISREG(status.st_mode) or (status.st_size == facts.size and facts.written in (0, status.st_mtime_ns))


def settle_time(path: bytes | Path) -> int:
    """Have it that the file was last written to a second before it was, and say when that is.

    So each later write is seen, however soon it comes and however coarse the clock of the file system is. And the time is one that was
    set: of a network's file system the server might else set it later.
    """
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 1_000_000_000))
    return os.stat(path).st_mtime_ns


def settle(entry: str, name: str, facts: Facts) -> int | None:
    """When a touched file was last written to, set anew, if it is good all the same; else None. Reads all of it.

    The time is set first: a write meanwhile is seen by the next look.
    """
    path = os.path.join(os.fsencode(entry), facts.base)
    try:
        if os.stat(path).st_size != facts.size:
            return None
        written = settle_time(path)
    except OSError:
        return None
    return written if is_good(entry, name, facts) else None


def content_of(name: str, told: str = "") -> str:
    """The content name that an entry must have; empty: not known."""
    return name if name.startswith(("b3-", "t3-")) else told


class Keeper(Protocol):
    """What a filling needs of its cache."""

    def grow(self, filling: Filling, size: int) -> None:
        """Keep room for `size` bytes in all. Raises `CacheFull`."""

    def enter(self, filling: Filling, facts: Facts, pin: bool) -> Path:
        """Make the temporary an entry; returns the path of its content."""
        ...

    def let_go(self, filling: Filling) -> None:
        """The filling is over, with an entry or without."""


class Filling:
    """Room for a file that is being made. Write to `path`, a file or a folder of your making, then `commit` or `abort`. For one thread."""

    def __init__(self, keeper: Keeper, name: str, level: str, size: int, temporary: str) -> None:
        from pathlib import Path

        self.name, self.level = FileName(name), level
        #: Bytes for which room is kept.
        self.room = max(size, 0)
        self.temporary = temporary
        #: Where to write; nothing is there yet.
        self.path = Path(temporary, "content")
        self._keeper = keeper
        self._open = True
        self._written = 0
        self._writer: FileWriter | TreeWriter | None = None

    def __enter__(self) -> Filling:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.abort()

    def writer(self) -> FileWriter | TreeWriter:
        """Takes the file's stream (`windlass.trees`), from its start, and checks it against the name."""
        self._close()
        remove_tree(self.path)  # of an attempt before
        self._writer = (TreeWriter if self.name.startswith("t3-") else FileWriter)(self.path, self.name)
        return self._writer

    def grow(self, count: int) -> None:
        """`count` bytes more are about to be written, of a content whose size was not known. Raises `CacheFull`."""
        self._written += count
        if self._written <= self.room:
            return
        with writing(self.temporary):
            try:
                self._keeper.grow(self, self._written + _STEP_BYTES)
                self.room = self._written + _STEP_BYTES
            except CacheFull:
                self._keeper.grow(self, self._written)
                self.room = self._written

    def commit(self, base: str, size: int, *, content: str = "", manifest: bytes = b"", pin: bool = False) -> Path:
        """Keep what was written, `size` bytes, as the entry; returns the path of its content. The filling is over, also when this raises.

        `content` is what the content is called if the name does not tell (what a writer's `commit` returned), `manifest` a tree's, encoded.
        With `pin` it has a pin from its first moment on. Raises `UsageError` for a base that cannot be, `CacheFull`, `Damaged`.
        """
        try:
            encoded = check_base(base)
            with writing(self.temporary):
                return self._commit(encoded, size, content, manifest, pin)
        finally:
            self.abort()

    def abort(self) -> None:
        """Keep nothing, free the room; after `commit` or a second time it does nothing."""
        if not self._open:
            return
        self._open = False
        self._close()
        try:
            remove_tree(self.temporary)
        finally:
            self._keeper.let_go(self)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _commit(self, base: bytes, size: int, content: str, manifest: bytes, pin: bool) -> Path:
        status, written = os.lstat(self.path), 0
        if stat.S_ISREG(status.st_mode):
            os.chmod(self.path, 0o500)  # whether it is a program, its name does not say
            written = settle_time(self.path)
        elif not stat.S_ISDIR(status.st_mode):
            raise Damaged(f"what was made for {self.name} is neither file nor folder; it is not kept")
        if size != self.room:
            self._keeper.grow(self, size)
            self.room = size
        facts = Facts(size, self.level, base, content_of(self.name, content), boot_id(), written)
        write_facts(self.temporary, facts)
        if manifest:
            write_manifest(self.temporary, manifest)
        os.rename(self.path, os.path.join(os.fsencode(self.temporary), base))
        return self._keeper.enter(self, facts, pin)


def new_temporary(folder: str, name: str, room: int) -> str:
    """A new temporary in a cache's folder. Raises `CacheFull` when not even that fits on the disk."""
    path = os.path.join(folder, f".t-{name}-{os.urandom(6).hex()}")
    try:
        with writing(path):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            os.mkdir(path, 0o700)
            os.close(os.open(os.path.join(path, _MARK), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400))
            write_facts(path, Facts(room))
    except BaseException:
        remove_tree(path)
        raise
    return path


def rename_away(folder: str, name: str) -> str:
    """Take away the name of an entry or temporary; returns what is left to remove, or an empty text when it was not there."""
    dead = os.path.join(folder, f".dead-{os.urandom(8).hex()}")
    try:
        os.rename(os.path.join(folder, name), dead)
    except FileNotFoundError:
        return ""
    return dead


def remove(dead: str) -> None:
    """Delete what `rename_away` left."""
    if dead:
        remove_tree(dead)


def free_bytes(folder: str) -> int:
    """Bytes that this user may still write on the folder's file system."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def no_room(name: str, size: int, folder: str, why: str, advice: str) -> CacheFull:
    """What is raised when a file does not fit."""
    from windlass.units import show_memory

    return CacheFull(f"no room for file {name} ({show_memory(size)}) in the cache {show(folder)}: {why}; {advice}")
