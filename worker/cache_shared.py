"""The cache's ``forever`` level: entries in one private folder that all workers of this user on this node share.

Theory of operation
-------------------
There is no process in charge: the folder is the truth, and `flock` on files in ``.locks`` says who does what.  The kernel takes a lock back
from a process that dies, however it dies.

``<name>.fill``  exclusive: makes this entry.  The others wait and then find it there.  Who has it may remove temporaries of this
                 entry: they are of fillers that died.
``<name>.use``   shared: has the entry pinned.  Exclusive: removes it; so only what nobody has pinned is removed.
``room``         exclusive, for moments: adds up what is here, removes the least recently used, and makes a temporary that says how
                 much room it keeps.  So the limit holds for all workers together.

The folder      shared, as long as a worker lives: cleaners of old files leave it alone.

Lock files of entries that are gone are unlinked by whoever has them exclusively (`windlass.worker.file_locks`).

A damaged entry is renamed away although others have it pinned: they keep what they opened, and the next one fills it anew; the name says
what is in it, so both are the same file.

The folder is on a node's own disk: `flock` need not work on network file systems. It is private: another owner, or others that may write
into it, are refused. Threads: as in `windlass.worker.cache`.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import msgspec

from windlass.errors import CacheBusy, Closed, Damaged, UsageError
from windlass.folders import remove_tree
from windlass.manifests import is_file_name, show
from windlass.messages import FileName
from windlass.worker import cache_entries as entries
from windlass.worker.cache_entries import Facts, Filling
from windlass.worker.file_locks import Held, keep_from_cleaners, take_lock, unlink_lock

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from windlass.manifests import Manifest

_LOCKS: Final = ".locks"
#: Seconds between two looks at a lock that another process has.
_LOOK_AGAIN: Final = 0.05
#: Locks that are held for moments only are waited for this long, in seconds; a process that is stopped may hold one.
_MOMENTS: Final = 60.0
#: Seconds for which it is remembered what an entry takes: reading that of thousands of entries takes longer than a small file to come.
_SIZES_HOLD: Final = 60.0


class SharedCache:
    """The entries in `folder`, kept under `limit` bytes (0: no limit) by all who use it together.

    Raises `UsageError` for a folder that is not this user's alone, `OSError` for one on a file system without locks.
    """

    def __init__(self, folder: Path, limit: int = 0) -> None:
        self.folder, self.limit = folder, limit
        self._text = os.fspath(folder)
        self._boot = entries.boot_id()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        #: The lock that pins an entry for this process, and how often.
        self._pins: dict[str, tuple[int, int]] = {}
        self._filling: dict[str, int] = {}  # temporary to its lock
        #: What whole entries took when last read, and until when that is believed. With the lock ``room``.
        self._sizes: dict[str, int] = {}
        self._sizes_until = 0.0
        self._make_folder()
        lock = self._acquire("room", fcntl.LOCK_SH, 0.0)  # a file system without locks says so now, and not in the middle
        if lock is not None:
            os.close(lock)
        self._kept = keep_from_cleaners(self._text)
        self._remove_left_overs()

    @property
    def used(self) -> int:
        """Bytes of all entries, and of those on their way. Looks at each; for threads."""
        return sum(facts.size for _, facts in self._all())

    def has(self, name: str) -> bool:
        """True when the file is here."""
        return self._read(name) is not None

    def facts(self, name: str) -> Facts:
        """What is known of the entry. Raises `KeyError` when it is absent."""
        facts = self._read(name)
        if facts is None:
            raise KeyError(name)
        return facts

    def path(self, name: str, base: str) -> Path:
        """The file's path with `base` as its last part; pin it first. Raises `KeyError`, `UsageError`."""
        return entries.path_in(self._place(name), self.facts(name), base)

    def pin(self, name: str) -> None:
        """Keep the entry from removal, by all workers, until `unpin` is called as often. Raises `KeyError` when it is absent."""
        with self._lock:
            held = self._pins.get(name)
            if held is None:
                lock = self._acquire(f"{name}.use", fcntl.LOCK_SH, 0.0) if self.has(name) else None
                if lock is None:  # another worker removes it
                    raise KeyError(name)
                held = (lock, 0)
            if not self.has(name):
                if not held[1]:
                    os.close(held[0])
                raise KeyError(name)
            self._pins[name] = (held[0], held[1] + 1)
        entries.touch(self._place(name))

    def unpin(self, name: str) -> None:
        """Take back one `pin`; without one, nothing happens."""
        with self._lock:
            lock, count = self._pins.pop(name, (-1, 0))
            if count > 1:
                self._pins[name] = (lock, count - 1)
            elif count:
                os.close(lock)

    def fill(self, name: str, size: int, patience: float = 3600.0) -> Filling | None:
        """See `windlass.worker.cache.Cache.fill`."""
        entries.check_name(name)
        self._make_folder()
        lock = self._acquire(f"{name}.fill", fcntl.LOCK_EX, patience)
        if lock is None:
            raise CacheBusy(
                f"another worker of this node has been filling {name} in {show(self._text)} for over {patience:g} s; "
                f"see which process has {show(self._lock_path(name + '.fill'))} open, and end it if it hangs"
            )
        try:
            for left in self._temporaries(name):
                remove_tree(os.path.join(self._text, left))
            if self._take_up(name):
                self._end_filling(name, lock)
                return None
            room = max(size, 0)
            with self._room(name, room):
                temporary = entries.new_temporary(self._text, name, room)
        except BaseException:
            self._end_filling(name, lock)
            raise
        self._filling[temporary] = lock
        return Filling(self, name, "forever", size, temporary)

    def discard(self, name: str) -> None:
        """Remove the entry if nobody has it pinned; absent is fine."""
        dead = self._remove_unused(name) if is_file_name(name) and name not in self._pins else ""
        if dead:
            try:
                threading.Thread(target=remove_tree, args=(dead,), name="windlass-cache-sweep", daemon=True).start()
            except RuntimeError:  # none is to be had just now
                with suppress(OSError):  # what stays goes with what others have left
                    remove_tree(dead)

    def damaged(self, name: str) -> bool:
        """See `windlass.worker.cache.Cache.damaged`."""
        if not is_file_name(name):
            return False
        place = self._place(name)
        try:
            before = os.stat(place).st_ino
        except OSError:
            return False
        facts = entries.read_facts(place)
        if facts is not None and entries.is_good(place, name, facts):
            return False
        try:
            if os.stat(place).st_ino == before:  # and not one that was filled meanwhile
                entries.remove(entries.rename_away(self._text, name))
        except FileNotFoundError:
            pass
        return True

    def is_untouched(self, name: str) -> bool:
        """See `windlass.worker.cache.Cache.is_untouched`."""
        return entries.is_untouched(self._place(name), self.facts(name))

    def settle(self, name: str) -> bool:
        """See `windlass.worker.cache.Cache.settle`."""
        facts = self._read(name)
        written = entries.settle(self._place(name), name, facts) if facts is not None else None
        if facts is None or written is None:
            return False
        with suppress(OSError):  # then it is compared again
            entries.write_facts(self._place(name), msgspec.structs.replace(facts, written=written))
        return True

    def manifest(self, name: str) -> Manifest:
        """See `windlass.worker.cache.Cache.manifest`."""
        return entries.manifest_in(self._place(name), self.facts(name))

    def names(self) -> list[FileName]:
        """The files that are here, the least recently used first."""
        here = [name for name, facts in self._all() if is_file_name(name) and facts.boot == self._boot]
        return [FileName(name) for name in sorted(here, key=lambda each: entries.used_at(self._place(each)))]

    def close(self) -> None:
        """Let go of all pins, and end what waits in `fill`. The folder stays."""
        self._closing.set()
        with self._lock:
            for lock, _ in self._pins.values():
                os.close(lock)
            self._pins.clear()
            kept, self._kept = self._kept, -1
        if kept >= 0:
            os.close(kept)

    def check(self) -> None:
        """Assert what must hold."""
        with self._lock:
            assert all(count > 0 and os.fstat(lock) for lock, count in self._pins.values())

    # ------------------------------------------------ for fillings

    def grow(self, filling: Filling, size: int) -> None:
        """See `windlass.worker.cache_entries.Keeper`."""
        with self._room(filling.name, max(0, size - filling.room)):
            entries.write_facts(filling.temporary, Facts(size))

    def enter(self, filling: Filling, facts: Facts, pin: bool) -> Path:
        """See `windlass.worker.cache_entries.Keeper`."""
        name = filling.name
        if pin:  # before others see it, and so may remove it
            with self._lock:
                lock, count = self._pins.get(name, (-1, 0))
                if not count:
                    lock = self._wait(f"{name}.use", fcntl.LOCK_SH)
                self._pins[name] = (lock, count + 1)
        try:
            entries.remove(entries.rename_away(self._text, name))
            os.rename(filling.temporary, self._place(name))
        except BaseException:
            if pin:
                self.unpin(name)
            raise
        return entries.path_in(self._place(name), facts, os.fsdecode(facts.base))

    def let_go(self, filling: Filling) -> None:
        """See `windlass.worker.cache_entries.Keeper`."""
        self._end_filling(filling.name, self._filling.pop(filling.temporary))

    # ------------------------------------------------ entries

    def _place(self, name: str) -> str:
        return os.path.join(self._text, name)

    def _read(self, name: str) -> Facts | None:
        """The facts of an entry that is whole and of this boot."""
        facts = entries.read_facts(self._place(name)) if is_file_name(name) else None
        return facts if facts is not None and facts.base and facts.boot == self._boot else None

    def _all(self) -> Iterator[tuple[str, Facts]]:
        """Entries and temporaries."""
        for name in self._listed():
            facts = entries.read_facts(self._place(name)) if _takes_room(name) else None
            if facts is not None:
                yield name, facts

    def _listed(self) -> list[str]:
        try:
            return os.listdir(self._text)
        except FileNotFoundError:
            return []

    def _temporaries(self, name: str = "") -> list[str]:
        head = f".t-{name}"
        return [each for each in os.listdir(self._text) if each.startswith(head)]

    def _take_up(self, name: str) -> bool:
        """True when the entry is here; one of an earlier boot only after its content was compared. With the lock for filling it."""
        place = self._place(name)
        facts = entries.read_facts(place)
        if facts is None or not facts.base:
            return False
        if facts.boot == self._boot:
            return entries.is_untouched(place, facts) or self.settle(name)
        if not entries.content_of(name, facts.content) or not entries.is_good(place, name, facts):
            return False
        path = os.path.join(os.fsencode(place), facts.base)
        written = 0 if os.path.isdir(path) else entries.settle_time(path)
        entries.write_facts(place, msgspec.structs.replace(facts, boot=self._boot, written=written))
        return True

    def _remove_unused(self, name: str) -> str:
        """Take the name from an entry that nobody has pinned; returns what is left to delete, or an empty text."""
        lock = self._acquire(f"{name}.use", fcntl.LOCK_EX, 0.0)
        if lock is None:
            return ""
        with Held(lock):
            dead = entries.rename_away(self._text, name)
            unlink_lock(lock, self._lock_path(f"{name}.use"))
        return dead

    # ------------------------------------------------ room

    @contextmanager
    def _room(self, name: str, size: int) -> Generator[None]:
        """`size` bytes more are free for what is noted in the block. Raises `CacheFull`."""
        self._make_folder()
        dead: list[str] = []
        try:
            with Held(self._wait("room", fcntl.LOCK_EX)):
                if size:
                    self._evict(name, size, dead)
                yield
        finally:
            for each in dead:  # when others no longer wait for it
                remove_tree(each)

    def _evict(self, name: str, size: int, dead: list[str]) -> None:
        """Take their names from entries that nobody needs until `size` more bytes fit."""
        sizes, used, over = self._look(size)
        if over > 0:
            self._remove_left_overs()
            sizes, used, over = self._look(size)
        for _, each in sorted((entries.used_at(self._place(each)), each) for each in sizes if is_file_name(each) and over > 0):
            if over <= 0:
                break
            left = self._remove_unused(each) if each not in self._pins else ""
            if left:
                dead.append(left)
                over -= sizes[each]
                used -= sizes[each]
        if over > 0:
            from windlass.units import show_memory

            why = f"{show_memory(used)} of {show_memory(self.limit)} are used by calls on this node or on their way"
            if not self.limit or used + size <= self.limit:
                why = "its disk has not so much free"
            raise entries.no_room(name, size, self._text, why, "raise its limit, free some space there, or declare fewer files as forever")

    def _look(self, size: int) -> tuple[dict[str, int], int, int]:
        """All that takes room, the bytes of it, and how many too many they are for `size` more."""
        now = time.monotonic()
        if now >= self._sizes_until:
            self._sizes, self._sizes_until = {}, now + _SIZES_HOLD
        here, sizes = set(self._listed()), self._sizes
        for gone in sizes.keys() - here:
            del sizes[gone]
        found = sizes.copy()
        for name in here - sizes.keys():
            facts = entries.read_facts(self._place(name)) if _takes_room(name) else None
            if facts is not None:
                found[name] = facts.size
                if is_file_name(name):
                    sizes[name] = facts.size
        used = sum(found.values())
        return found, used, max(used + size - self.limit if self.limit else 0, size - entries.free_bytes(self._text))

    # ------------------------------------------------ locks

    def _wait(self, which: str, how: int) -> int:
        """A lock that others have for moments only."""
        lock = self._acquire(which, how, _MOMENTS)
        if lock is None:
            raise CacheBusy(
                f"the cache {show(self._text)} has been locked for over {_MOMENTS:g} s; see which process has "
                f"{show(self._lock_path(which))} open, and let it go on or end it"
            )
        return lock

    def _acquire(self, which: str, how: int, patience: float) -> int | None:
        """The lock, as a descriptor to close; None when another process still has it after so many seconds."""
        while True:
            self._make_folder()
            try:
                return take_lock(self._lock_path(which), how, patience, self._pause)
            except Damaged:
                pass  # the folder was deleted again

    def _pause(self) -> None:
        if self._closing.wait(_LOOK_AGAIN):
            raise Closed(f"the worker ends; {show(self._text)} was not waited for any longer")

    def _lock_path(self, which: str) -> str:
        return os.path.join(self._text, _LOCKS, which)

    def _end_filling(self, name: str, lock: int) -> None:
        unlink_lock(lock, self._lock_path(f"{name}.fill"))
        os.close(lock)

    # ------------------------------------------------ the folder

    def _make_folder(self) -> None:
        os.makedirs(self._text, mode=0o700, exist_ok=True)
        status = os.lstat(self._text)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise UsageError(
                f"{show(self._text)} cannot be a cache: it must be a folder of user {os.geteuid()} that nobody else may write to, and is "
                f"of user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):#o}; name another folder, or remove this one"
            )
        if status.st_mode & 0o077:
            os.chmod(self._text, 0o700)
        os.makedirs(os.path.join(self._text, _LOCKS), mode=0o700, exist_ok=True)

    def _remove_left_overs(self) -> None:
        """Of processes that died: temporaries whose filler has no lock any more, and what was about to be deleted."""
        for left in os.listdir(self._text):
            if left.startswith(".dead-"):
                remove_tree(os.path.join(self._text, left))
        for left in self._temporaries():
            name = left.removeprefix(".t-").rpartition("-")[0]
            lock = self._acquire(f"{name}.fill", fcntl.LOCK_EX, 0.0) if is_file_name(name) else None
            if lock is not None:
                remove_tree(os.path.join(self._text, left))
                self._end_filling(name, lock)


def _takes_room(name: str) -> bool:
    """Whether it is the name of an entry or a temporary."""
    return is_file_name(name) or name.startswith(".t-")
