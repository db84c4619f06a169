"""The files that a worker holds for its calls: entries with content names, kept under a limit, pinned while calls read them.

Theory of operation
-------------------
The folder belongs to one worker (`flock` on it, where there are locks), so its table is the truth about sizes, pins, levels and order
of use; only whether an entry is still there is asked of the disk each time, because people and cleaners delete folders.  What is gone is
forgotten and can be filled again; its pins stay, as the calls that hold them do.  Entries on disk: `windlass.worker.cache_entries`.

A *level* says when an entry goes by itself: ``call`` with its last pin, ``workflow`` and ``worker`` at `Cache.close`; ``forever`` entries
are in a folder that all workers of this user on this node share (`windlass.worker.cache_shared`); without one they stay as long as
``worker``.  An entry that is wanted at two levels has the longer one.

`Cache.fill` makes room: past the limit, or when the disk has less than what is announced, the least recently used entries without a pin
go; results of calls (``r-``) last, as they cost a call to make again, but for those of an earlier life of the manager
(`forget_results`), which nobody will ask for.  Pinned ones never go: the newcomer is refused (`CacheFull`), and with it one call.  The
bytes of a filling count from its start.

Threads.  All may be called from any thread.  On the worker's event loop use what touches a few names on disk at most: `has`, `path`,
`facts`, `is_untouched`, `pin`, `unpin`, `keep`, `discard`, `forget_results`, `names`, `used`.  The others block and are for threads:
`fill`, everything of a `Filling`, `damaged`, `settle`, `manifest`, `sweep`, `close`, and making a `Cache`.  What the loop's calls remove
is deleted by a thread of the cache's own.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from windlass.folders import remove_tree
from windlass.messages import LEVELS, RESULT, FileName, longer
from windlass.worker import cache_entries as entries
from windlass.worker.cache_entries import Facts, Filling
from windlass.worker.file_locks import lock_folder

if TYPE_CHECKING:
    from pathlib import Path

    from windlass.manifests import Manifest
    from windlass.worker.cache_shared import SharedCache

_ADVICE: Final = "raise the worker's disk limit, or run fewer such calls at once"


class Cache:
    """The files in one worker's folder, kept under `limit` bytes (0: no limit), and those in `forever`, if that is given.

    The folder is made if need be and is private (0700). Entries of level ``worker`` that an earlier worker left in it are taken up. Raises
    `UsageError` when another worker has the folder.
    """

    def __init__(self, folder: Path, limit: int = 0, forever: SharedCache | None = None) -> None:
        self.folder, self.limit, self.forever = folder, limit, forever
        #: Bytes of the entries in the folder; those on their way and those of `forever` are not in it.
        self.used = 0
        self._text = os.fspath(folder)
        self._lock = threading.Lock()
        #: In order of use, the least recent first.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._reserved = 0
        self._dead: list[str] = []
        self._sweeping = threading.Lock()
        os.makedirs(self._text, mode=0o700, exist_ok=True)
        os.chmod(self._text, 0o700)
        self._own = lock_folder(self._text)
        for name, facts in entries.take_up(self._text):
            self._add(name, facts)

    # ------------------------------------------------ for the event loop too

    def has(self, name: str) -> bool:
        """True when the file is here; that counts as a use."""
        with self._lock:
            if self._find(name) is not None:
                return True
        return self.forever is not None and self.forever.has(name)

    def path(self, name: str, base: str) -> Path:
        """The file's path with `base` as its last part. Pin it first, or it may go at any time.

        Raises `KeyError` when it is absent, `UsageError` for a base that cannot be.
        """
        with self._lock:
            entry = self._find(name)
        if entry is not None:
            return entries.path_in(self._place(name), entry.facts, base)
        if self.forever is None:
            raise KeyError(name)
        return self.forever.path(name, base)

    def facts(self, name: str) -> Facts:
        """What is known of the file, such as its ``size`` and its ``content`` as the one who filled it said. Raises `KeyError`."""
        with self._lock:
            entry = self._find(name)
        if entry is not None:
            return entry.facts
        if self.forever is None:
            raise KeyError(name)
        return self.forever.facts(name)

    def is_untouched(self, name: str) -> bool:
        """False when a file has been touched since it was kept; whether it was changed, `settle` says. Raises `KeyError`."""
        with self._lock:
            entry = self._find(name)
        if entry is not None:
            return entries.is_untouched(self._place(name), entry.facts)
        if self.forever is None:
            raise KeyError(name)
        return self.forever.is_untouched(name)

    def pin(self, name: str) -> None:
        """Keep the file from eviction until `unpin` is called as often. Raises `KeyError` when it is absent."""
        with self._lock:
            entry = self._find(name)
            if entry is not None:
                entry.wanted_anew(name)
                self._pins[name] += 1
                return
        if self.forever is None:
            raise KeyError(name)
        self.forever.pin(name)

    def unpin(self, name: str) -> None:
        """Take back one `pin`; without one, nothing happens. With the last one an entry of level ``call`` goes."""
        with self._lock:
            shared = name not in self._pins
            self._pins[name] -= not shared
            if not self._pins[name]:
                del self._pins[name]
                entry = self._entries.get(name)
                if entry is not None and not shared and (entry.doomed or entry.facts.level == "call"):
                    self._remove(name)
                elif self.limit and self.used + self._reserved > self.limit:
                    self._evict(self.used + self._reserved - self.limit)
        self._sweep_soon()
        if shared and self.forever is not None:
            self.forever.unpin(name)

    def keep(self, name: str, level: str) -> None:
        """Let the file stay for `level` at least. Raises `KeyError` when it is absent."""
        with self._lock:
            entry = self._find(name)
            if entry is not None:
                self._raise_level(name, entry, level)
                return
        if not self.has(name):
            raise KeyError(name)

    def forget_results(self) -> None:
        """The manager knows of no results that are here; they go like any other entry, unless it asks for one. (Not at once: a call of its
        earlier life may be reading one, and be wanted still.)"""
        with self._lock:
            for entry in self._entries.values():
                entry.costs_a_call = False

    def discard(self, name: str) -> None:
        """Remove the file now, or with its last pin; absent is fine. From `forever` only when no worker has it pinned."""
        with self._lock:
            entry = self._find(name)
            if entry is not None:
                self._drop(name, entry)
        self._sweep_soon()
        if entry is None and self.forever is not None:
            self.forever.discard(name)

    def names(self) -> list[FileName]:
        """The files that are here to stay, the least recently used first; those of `forever` after them."""
        with self._lock:
            mine = [FileName(name) for name, entry in self._entries.items() if not entry.doomed]
        shared = self.forever.names() if self.forever is not None else []
        return mine + [name for name in shared if name not in mine]

    # ------------------------------------------------ for threads

    def fill(self, name: str, size: int, level: str = "workflow", patience: float = 3600.0, *, on_disk: bool = False) -> Filling | None:
        """Room for a file of `size` bytes (-1: not known; see `Filling.grow`) that is to be made; None when it is here already.

        At level ``forever`` it waits up to `patience` seconds for another worker of this node that fills the same entry, and None may mean
        that this one has. What is ``on_disk`` already, beside the cache, asks the limit for room and the disk for nothing. Raises
        `CacheFull`, `CacheBusy`, and `ValueError` for a name or level that is none.
        """
        entries.check_name(name)
        if level not in LEVELS:
            raise ValueError(f"{level!r} is no level of the cache; there are {', '.join(LEVELS)}")
        with self._lock:
            entry = self._find(name)
            if entry is not None:
                entry.wanted_anew(name)
                self._raise_level(name, entry, level)
                return None
        if self.forever is not None and (level == "forever" or self.forever.has(name)):
            return self.forever.fill(name, size, patience)
        room = max(size, 0)
        self._reserve(name, room, on_disk=on_disk)
        try:
            temporary = entries.new_temporary(self._text, name, room)
        except BaseException:
            self._unreserve(room)
            raise
        return Filling(self, name, level, size, temporary)

    def damaged(self, name: str) -> bool:
        """Reads the file and compares it with its name (or what the one who filled it said); a wrong one is removed, pinned or not.

        True when it was wrong; an absent one is not.
        """
        with self._lock:
            entry = self._entries.get(name)
        place = self._place(name)
        if entry is None:
            return self.forever is not None and self.forever.damaged(name)
        if entries.is_good(place, name, entry.facts):
            return False
        with self._lock:
            if self._entries.get(name) is entry:  # and not one that was filled meanwhile
                self._remove(name)
        self.sweep()
        return True

    def settle(self, name: str) -> bool:
        """True when a file that was touched has its content as before, which is noted; else nothing is done. Reads it: pin it first."""
        with self._lock:
            entry = self._find(name)
        if entry is None:
            return self.forever is not None and self.forever.settle(name)
        written = entries.settle(self._place(name), name, entry.facts)
        if written is None:
            return False
        with self._lock:
            if self._entries.get(name) is entry:  # and not one that was filled meanwhile
                entry.facts = msgspec.structs.replace(entry.facts, written=written)
                with suppress(OSError):  # read by a later worker in this folder only
                    entries.write_facts(self._place(name), entry.facts)
        return True

    def manifest(self, name: str) -> Manifest:
        """The manifest of a tree that is here: what was kept with it, else made by reading it. Raises `KeyError` when it is absent."""
        with self._lock:
            entry = self._find(name)
        if entry is None:
            if self.forever is None:
                raise KeyError(name)
            return self.forever.manifest(name)
        return entries.manifest_in(self._place(name), entry.facts)

    def sweep(self) -> None:
        """Delete what has lost its name."""
        with self._sweeping:  # so that all is deleted at the end, whoever deletes it
            while True:
                with self._lock:
                    if not self._dead:
                        return
                    path = self._dead.pop()
                try:
                    remove_tree(path)
                except OSError:
                    pass  # not ours to delete; the folder's owner sees it

    def close(self) -> None:
        """Remove the folder and all in it, and let go of what is pinned in `forever`."""
        with self._lock:
            self._entries.clear()
            self._pins.clear()
            self.used = 0
            own, self._own = self._own, -1
        if self.forever is not None:
            self.forever.close()
        if own >= 0:
            os.close(own)
            remove_tree(self._text)

    def check(self) -> None:
        """Assert what must hold between the table and its sums."""
        with self._lock:
            assert self.used == sum(entry.facts.size for entry in self._entries.values())
            assert self._reserved >= 0
            assert all(count > 0 for count in self._pins.values())
            assert all(self._pins[name] for name, entry in self._entries.items() if entry.doomed)
        if self.forever is not None:
            self.forever.check()

    # ------------------------------------------------ for fillings

    def grow(self, filling: Filling, size: int) -> None:
        """See `windlass.worker.cache_entries.Keeper`."""
        if size > filling.room:
            self._reserve(filling.name, size - filling.room)
        else:
            self._unreserve(filling.room - size)

    def enter(self, filling: Filling, facts: Facts, pin: bool) -> Path:
        """See `windlass.worker.cache_entries.Keeper`."""
        name, place = filling.name, self._place(filling.name)
        with self._lock:
            entry = self._find(name)
            if entry is None:
                self._bury(name)  # the remains of one that was deleted in part
                os.rename(filling.temporary, place)
                entry = self._add(name, facts)
                self._reserved -= filling.room
                filling.room = 0
            entry.wanted_anew(name)
            self._raise_level(name, entry, facts.level)
            self._pins[name] += pin
            if not self._pins[name]:
                del self._pins[name]
        return entries.path_in(place, entry.facts, os.fsdecode(facts.base))

    def let_go(self, filling: Filling) -> None:
        """See `windlass.worker.cache_entries.Keeper`."""
        self._unreserve(filling.room)

    # ------------------------------------------------ with the lock held

    def _find(self, name: str) -> _Entry | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        if not os.path.lexists(os.path.join(os.fsencode(self._place(name)), entry.facts.base)):
            self._remove(name)
            return None
        self._entries.move_to_end(name)
        return entry

    def _add(self, name: str, facts: Facts) -> _Entry:
        entry = self._entries[name] = _Entry(name, facts)
        self.used += facts.size
        return entry

    def _drop(self, name: str, entry: _Entry) -> None:
        if self._pins[name]:
            entry.doomed = True
        else:
            del self._pins[name]
            self._remove(name)

    def _remove(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.used -= entry.facts.size
        self._bury(name)

    def _bury(self, name: str) -> None:
        dead = entries.rename_away(self._text, name)
        if dead:
            self._dead.append(dead)

    def _raise_level(self, name: str, entry: _Entry, level: str) -> None:
        facts = entry.facts
        if longer(facts.level, level) != facts.level:
            entry.facts = msgspec.structs.replace(facts, level=level)
            try:
                entries.write_facts(self._place(name), entry.facts)
            except OSError:
                pass  # read by a later worker in this folder only

    def _evict(self, wanted: int) -> int:
        """Remove unpinned entries until `wanted` bytes are freed; returns the bytes that were."""
        freed = 0
        for last in (False, True):
            for name, entry in list(self._entries.items()):
                if freed >= wanted:
                    return freed
                if name not in self._pins and entry.costs_a_call is last:
                    self._remove(name)
                    freed += entry.facts.size
        return freed

    # ------------------------------------------------ without the lock

    def _place(self, name: str) -> str:
        return os.path.join(self._text, name)

    def _reserve(self, name: str, size: int, *, on_disk: bool = False) -> None:
        with self._lock:
            over = self.used + self._reserved + size - self.limit
            if self.limit and over > 0 and self._evict(over) < over:
                raise entries.no_room(name, size, self._text, self._uses(), _ADVICE)
            self._reserved += size
        try:
            self.sweep()
            if not on_disk:
                self._make_room_on_disk(name, size)
        except BaseException:
            self._unreserve(size)
            raise

    def _make_room_on_disk(self, name: str, size: int) -> None:
        """Others fill disks too."""
        os.makedirs(self._text, mode=0o700, exist_ok=True)
        while (missing := size - entries.free_bytes(self._text)) > 0:
            with self._lock:
                freed = self._evict(missing)
            if not freed:
                raise entries.no_room(
                    name, size, self._text, "its disk has not so much free", "free some space there, or give the worker another folder"
                )
            self.sweep()

    def _uses(self) -> str:
        from windlass.units import show_memory

        pinned = sum(entry.facts.size for name, entry in self._entries.items() if name in self._pins)
        return (
            f"{show_memory(self.used)} of {show_memory(self.limit)} are used, {show_memory(pinned)} of that by calls that hold it, "
            f"and {show_memory(self._reserved)} are kept for files on their way"
        )

    def _unreserve(self, size: int) -> None:
        with self._lock:
            self._reserved -= size

    def _sweep_soon(self) -> None:
        if self._dead:
            with suppress(RuntimeError):  # no thread is to be had just now: whoever needs the room sweeps, and so does the end
                threading.Thread(target=self.sweep, name="windlass-cache-sweep", daemon=True).start()


class _Entry:
    __slots__ = ("costs_a_call", "doomed", "facts")

    def __init__(self, name: str, facts: Facts) -> None:
        self.facts = facts
        self.wanted_anew(name)

    def wanted_anew(self, name: str) -> None:
        """Whatever was said of it before."""
        self.doomed, self.costs_a_call = False, name.startswith(RESULT)
