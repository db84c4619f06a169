"""Declared files as a program holds them and as they travel in the arguments of a call.

Theory of operation
-------------------
A `File` in the arguments is pickled as a name; in the slot, where the worker has put the file into its cache before, unpickling gives the
path of the replica.  (Files at the top, among scalars, are taken out before: `without_files`.)  Which files a call needs is noted while
its arguments are pickled (`collecting`), so that nothing looks through them a second time.  Outside of that a `File` cannot be pickled: in
a function's closure or globals nobody would see that the call needs it.

Declaring is the manager's part: `windlass.manager.declaring`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from windlass.errors import UsageError, WindlassError

if TYPE_CHECKING:
    from pathlib import Path

    from windlass.messages import FileRef


def shown(url: str) -> str:
    """A URL as people, logs and statuses may see it: without user and password. Anything else as it is."""
    before, slashes, rest = url.partition("://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    return before + slashes + rest[:end].rpartition("@")[2] + rest[end:]


def is_sendable(text: str) -> bool:
    """It can stand in a message: names of files that are not UTF-8 are texts of Python that cannot (PEP 383)."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


class ReplicaMissing(WindlassError):
    """A replica was not in the worker's cache when its call began, though it had been."""


class _Collected(threading.local):
    files: dict[str, File] | None = None


_collected = _Collected()


class File:
    """A declared file: pass it to a call, and the function gets a `pathlib.Path` to a replica on its node, for reading.

    Made by a manager's ``declare_file`` and its like.  The manager serves it as long as this object lives, or a call that was given it has
    not ended.
    """

    __slots__ = ("__weakref__", "_end", "_lone", "_owner", "_path", "_ref", "keep", "key", "producer", "source", "unmade")

    def __init__(self, owner: int, ref: FileRef | None, source: str, release: Callable[..., None] | None = None, path: str = "") -> None:
        self._owner, self._ref, self._path = owner, ref, path
        #: Tells it from others among a call's files: two may have one content.
        self.key = f"{ref.name}/{ref.base}" if ref is not None else path
        # For calls, of which there may be a million with this file.
        self._lone = (ref,) if ref is not None else ()
        #: What was declared, for people.
        self.source = source
        #: What must live as long as this does.
        self.keep: object = None
        #: No call that makes it has been submitted yet.
        self.unmade = False
        #: The id of the call that makes it; 0: none.
        self.producer = 0
        self._end: Any = weakref.finalize(self, release) if release is not None else None
        if self._end is not None:
            self._end.atexit = False

    @property
    def name(self) -> str:
        """What the cache knows it by; "" for a shared path that is read in place."""
        return self._ref.name if self._ref is not None else ""

    @property
    def size(self) -> int:
        """Bytes of content; -1 where they are not known yet."""
        return self._ref.size if self._ref is not None else -1

    @property
    def ref(self) -> FileRef | None:
        """What calls say of it; None for one that is read in place."""
        return self._ref

    @property
    def path(self) -> str:
        """Where it is read in place; "" for all others."""
        return self._path

    def release(self) -> None:
        """Let go of it now rather than when this object goes; copies stay as long as its level says, for who declares it again."""
        if self._end is not None:
            self._end()

    def prune(self) -> None:
        """Let go of it now, and have its copies on workers removed, whatever its level: to free their disks."""
        found = self._end.detach() if self._end is not None else None
        if found is not None:
            found[1](True)

    def __repr__(self) -> str:
        return f"<File {self.source}>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if self._ref is None:
            from pathlib import Path

            return Path, (self._path,)
        files = _collected.files
        if files is None:
            raise UsageError(
                f"{self!r} can only be passed as an argument of a call: in a function's closure, globals or default values it would not be "
                "seen that the call needs it"
            )
        files[self.key] = self
        return local_file, (self._ref.name, self._ref.base)


class collecting:
    """Notes which files are pickled in a ``with`` block, by key."""

    __slots__ = ("_before",)

    def __enter__(self) -> dict[str, File]:
        self._before = _collected.files
        files = _collected.files = {}
        return files

    def __exit__(self, *_: object) -> None:
        _collected.files = self._before


def inputs_of(files: dict[str, File], owner: int) -> tuple[FileRef, ...]:
    """What a call of this manager says of the files that it is given. Raises `UsageError` for one that was declared at another manager."""
    refs: list[FileRef] = []
    for file in files.values():
        if file._owner != owner:  # pyright: ignore[reportPrivateUsage]
            raise UsageError(f"{file!r} was declared at another manager: declare it at the one that the call is submitted to")
        if file.unmade:
            raise UsageError(f"{file!r} is made by no call yet: submit the call first that has it as its add_output(...)")
        if len(files) == 1:
            return file._lone  # pyright: ignore[reportPrivateUsage]
        refs += file._lone  # pyright: ignore[reportPrivateUsage]
    return tuple(refs)


def without_files(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[tuple[int, str, str], ...], dict[str, File]]:
    """Arguments without the files among them, which go by themselves as that is quicker than to pickle them: the place, name and base of
    each. (Those in lists and the like stay, and shared paths that are read in place.)"""
    places: list[tuple[int, str, str]] = []
    files: dict[str, File] = {}
    for place, value in enumerate(args):
        if type(value) is File and value._ref is not None:  # pyright: ignore[reportPrivateUsage]
            ref = value._ref  # pyright: ignore[reportPrivateUsage]
            places.append((place, ref.name, ref.base))
            files[value.key] = value
    if not places:
        return args, (), files
    rest = list(args)
    for place, _, _ in places:
        rest[place] = None
    return tuple(rest), tuple(places), files


def with_files(args: tuple[Any, ...], places: tuple[tuple[int, str, str], ...]) -> tuple[Any, ...]:
    """In a slot: what `without_files` was given, with paths. Raises `ReplicaMissing`."""
    found = list(args)
    for place, name, base in places:
        found[place] = local_file(name, base)
    return tuple(found)


#: Paths of replicas in this slot, which are the same whenever the file is needed; and as texts.
_paths: dict[tuple[str, str], tuple[Path, str]] = {}
_PATHS_MOST: Final = 1000


def local_file(name: str, base: str) -> Path:
    """In a slot: where the replica is. Raises `ReplicaMissing`."""
    known = _paths.get((name, base))
    if known is not None and os.access(known[1], os.F_OK):
        return known[0]
    from pathlib import Path

    from windlass.worker.slot_api import STATE

    for folder in (STATE.cache_folder, f"{STATE.cache_folder}/forever"):
        path = Path(folder, name, base)
        if os.path.lexists(path):
            if len(_paths) >= _PATHS_MOST:
                _paths.clear()
            _paths[name, base] = path, str(path)
            return path
    raise ReplicaMissing(f"{base} ({name}) is not in the worker's cache any more")
