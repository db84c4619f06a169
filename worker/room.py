"""A call's own directory: its inputs under the names that it expects, and what it leaves there taken as files.

Theory of operation
-------------------
`Room.enter` makes the directory, links the inputs into it, and makes it the slot's working directory; `collect` takes the outputs out, by
a rename to where the worker finds them (`windlass.worker.supply.Supply.keep`); `leave` goes back and removes the rest.  Only calls that
ask for it have one.  Inputs are links into the cache, which is shared: they are for reading.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from windlass.errors import UsageError
from windlass.files import local_file
from windlass.folders import remove_tree
from windlass.manifests import refuse_links_out, show
from windlass.messages import CallRun, FileName, FileRef
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
        """What the call has left there, and what it returns then. Raises `UsageError` for what is not there."""
        lenient, inside = self.sandbox.lenient, os.path.join(self.folder, "")
        wanted = [one for one in self.sandbox.outputs if not lenient or os.path.isfile(inside + one[0]) or os.path.isdir(inside + one[0])]
        if self.sandbox.returned:
            if not isinstance(value, str | os.PathLike):
                raise UsageError(f"it makes a file, so it must return the path of that, and returned {type(value).__name__}")
            wanted.append((os.path.join(os.getcwd(), os.fspath(value)), self.sandbox.returned))
            value = None
        return tuple(self._take(path, name) for path, name in wanted), value

    def leave(self) -> None:
        """Go back, and remove it."""
        os.chdir(self._work)
        remove_tree(self.folder)

    def _take(self, path: str, name: FileName) -> FileRef:
        inside = os.path.join(self.folder, path)
        home = os.path.realpath(os.path.dirname(os.path.normpath(inside)))
        if not f"{home}/".startswith(f"{os.path.realpath(self.folder)}/") or os.path.normpath(inside) == self.folder:
            raise UsageError(f"its output {path!r} is not in the call's own directory, where what it makes must be: copy it there")
        try:
            status = os.lstat(inside)
        except OSError as error:
            raise UsageError(f"its output {path!r} is not there: {error.strerror}") from error
        if stat.S_ISREG(status.st_mode):
            size = status.st_size
        elif stat.S_ISDIR(status.st_mode):
            size = _size_of(inside, f"its output {path!r}")
        else:
            raise UsageError(f"its output {path!r} is neither a regular file nor a folder (links, such as inputs, are not taken)")
        os.makedirs(self._kept, mode=0o700, exist_ok=True)
        os.rename(inside, os.path.join(self._kept, name))
        return FileRef(name, size, os.path.basename(os.path.normpath(path)))


def _size_of(folder: str, what: str) -> int:
    """Bytes of content of a folder that can go to other workers too. Raises `UsageError` for one that cannot, as `windlass.trees.scan`
    would where it is first asked for, which is when the call cannot be told any more."""
    root, links, size = os.fsencode(folder), dict[bytes, bytes](), 0
    for below, folders, files in os.walk(root, onerror=_raise):
        for name in folders + files:
            place = os.path.join(below, name)
            status, inside = os.lstat(place), os.path.relpath(place, root)
            if stat.S_ISLNK(status.st_mode):
                links[inside] = os.readlink(place)
            elif stat.S_ISREG(status.st_mode) and os.access(place, os.R_OK):
                size += status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                kind = "that cannot be read" if stat.S_ISREG(status.st_mode) else "neither file, folder nor link"
                raise UsageError(f"{what} has {show(inside)}, which is {kind}, so it cannot go to other workers; leave it out")
    refuse_links_out(links, what)
    return size


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
