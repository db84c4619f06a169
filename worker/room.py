"""A call's own directory: its inputs under the names that it expects, and what it leaves there taken as files.

Theory of operation
-------------------
`Room.enter` makes the directory, links the inputs into it, and makes it the slot's working directory; `collect` takes the outputs out, by
a rename to where the worker finds them (`windlass.worker.supply.Supply.keep`); `leave` goes back and removes the rest.  Only calls that
ask for it have one.  Inputs are links into the cache, which is shared: they are for reading.

What a call leaves need not be this user's: of a container's root, say.  Such outputs are copied, or nobody could ever remove them from the
cache.  And a directory that cannot be removed (of somebody else's files, or as something still writes there) is no reason to lose a result
that is there, let alone a slot.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Any

from windlass.errors import FULL, StoreFull, UsageError
from windlass.files import local_file
from windlass.manifests import refuse_links_out, show
from windlass.messages import CallRun, FileName, FileRef
from windlass.worker.guardian import remove_tree
from windlass.worker.slotlink import kept_folder, room_name


class Room:
    """The directory of one call."""

    def __init__(self, run: CallRun, work_folder: str, cache_folder: str) -> None:
        assert run.sandbox is not None
        self.sandbox = run.sandbox
        self.folder = os.path.join(work_folder, room_name(run.call, run.attempt))
        self._work, self._kept = work_folder, kept_folder(cache_folder)

    def enter(self) -> None:
        """Make it and go there. Raises `ReplicaMissing`, `OSError`."""
        os.mkdir(self.folder, 0o700)
        for path, name, base in self.sandbox.inputs:
            target = str(local_file(name, base)) if name else base
            inside = os.path.join(self.folder, path)
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.symlink(target, inside)
        for path, _ in self.sandbox.outputs:
            os.makedirs(os.path.dirname(os.path.join(self.folder, path)), exist_ok=True)
        os.chdir(self.folder)

    def collect(self, value: Any) -> tuple[tuple[FileRef, ...], Any]:
        """What the call has left there, and what it returns then. Raises `UsageError` for what is not there, and then takes nothing."""
        lenient, inside = self.sandbox.lenient, os.path.join(self.folder, "")
        wanted = [one for one in self.sandbox.outputs if not lenient or os.path.isfile(inside + one[0]) or os.path.isdir(inside + one[0])]
        if self.sandbox.returned:
            if not isinstance(value, str | os.PathLike):
                raise UsageError(f"it makes a file, so it must return the path of that, and returned {type(value).__name__}")
            wanted.append((os.path.join(os.getcwd(), os.fspath(value)), self.sandbox.returned))
            value = None
        seen = [(path, *self._look_at(path, name)) for path, name in wanted]  # all, before any of them is moved
        try:
            for path, ref, is_ours in seen:
                self._take(path, ref.name, is_ours)
        except BaseException:
            for _, ref, _ in seen:
                remove_tree(os.path.join(self._kept, ref.name))
            raise
        return tuple(ref for _, ref, _ in seen), value

    def leave(self) -> None:
        """Go back, and remove it, as far as that is possible."""
        with suppress(OSError):
            os.makedirs(self._work, mode=0o700, exist_ok=True)  # a call may have removed it
            os.chdir(self._work)
        remove_tree(self.folder)

    def _take(self, path: str, name: FileName, is_ours: bool) -> None:
        """To where the worker finds it."""
        inside, target = os.path.join(self.folder, path), os.path.join(self._kept, name)
        os.makedirs(self._kept, mode=0o700, exist_ok=True)
        remove_tree(target)  # of an attempt that was killed as it ended
        try:
            if is_ours:
                os.rename(inside, target)
            else:
                import shutil

                shutil.copytree(inside, target, symlinks=True) if os.path.isdir(inside) else shutil.copyfile(inside, target)
        except FileNotFoundError as error:
            raise UsageError(f"its output {path!r} was there, and is there no more: is it in another one, or removed meanwhile?") from error
        except OSError as error:
            # shutil tells of the files of a folder in words alone.
            if error.errno in FULL or any(os.strerror(number) in str(error) for number in FULL):
                remove_tree(target)
                raise StoreFull(f"its output {path!r} has no room in the cache of this node: {error}") from error
            raise

    def _look_at(self, path: str, name: FileName) -> tuple[FileRef, bool]:
        """An output, and whether it is this user's to move and remove. Raises `UsageError` for what cannot be one."""
        inside = os.path.join(self.folder, path)
        home = os.path.realpath(os.path.dirname(os.path.normpath(inside)))
        if not f"{home}/".startswith(f"{os.path.realpath(self.folder)}/") or os.path.normpath(inside) == self.folder:
            raise UsageError(f"its output {path!r} is not in the call's own directory, where what it makes must be: copy it there")
        try:
            status = os.lstat(inside)
        except OSError as error:
            raise UsageError(f"its output {path!r} is not there: {error.strerror}") from error
        size, is_ours = status.st_size, _is_ours(status)
        if stat.S_ISDIR(status.st_mode):
            size, is_ours = _size_of(inside, f"its output {path!r}")
        elif not stat.S_ISREG(status.st_mode):
            raise UsageError(f"its output {path!r} is neither a regular file nor a folder (links, such as inputs, are not taken)")
        elif not os.access(inside, os.R_OK) and not is_ours:
            raise UsageError(f"its output {path!r} cannot be read{_whose(status)}")
        base = os.path.basename(os.path.normpath(path)).encode(errors="replace").decode()  # no message could say what is no text
        return FileRef(name, size, base), is_ours


def _is_ours(status: os.stat_result) -> bool:
    return os.geteuid() in (0, status.st_uid)


def _whose(status: os.stat_result) -> str:
    if _is_ours(status):
        return ""
    return f", and belongs to user {status.st_uid}: have the command chown it (docker run --user $(id -u) makes files of this user)"


def _size_of(folder: str, what: str) -> tuple[int, bool]:
    """Bytes of content of a folder that can go to other workers too, and whether all folders in it are this user's. Raises `UsageError` for
    one that cannot go, as `windlass.trees.scan` would where it is first asked for, which is when the call cannot be told any more."""
    root, links, size = os.fsencode(folder), dict[bytes, bytes](), 0
    are_ours = _is_ours(os.lstat(root))
    for below, folders, files in os.walk(root, onerror=_raise):
        for name in folders + files:
            place = os.path.join(below, name)
            status, inside = os.lstat(place), os.path.relpath(place, root)
            if stat.S_ISLNK(status.st_mode):
                links[inside] = os.readlink(place)
            elif stat.S_ISREG(status.st_mode) and os.access(place, os.R_OK):
                size += status.st_size
            elif stat.S_ISDIR(status.st_mode):
                are_ours = are_ours and _is_ours(status)
            else:
                kind = f"that cannot be read{_whose(status)}" if stat.S_ISREG(status.st_mode) else "neither file, folder nor link"
                raise UsageError(f"{what} has {show(inside)}, which is {kind}, so it cannot go to other workers; leave it out")
    refuse_links_out(links, what)
    return size, are_ours


def _raise(error: OSError) -> None:
    raise UsageError(f"a folder of its output cannot be read: {show(os.fsencode(error.filename))}: {error.strerror}") from error


def entered(run: CallRun, work_folder: str, cache_folder: str) -> Room:
    """A room, entered. Raises as `Room.enter`, and then leaves nothing."""
    room = Room(run, work_folder, cache_folder)
    try:
        room.enter()
    except BaseException:
        room.leave()
        raise
    return room
