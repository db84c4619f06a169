"""TaskVine's files: declared before it is known whether a task reads or writes them.

Theory of operation
-------------------
A `windlass.File` is something that exists, or a file that one call will make.  TaskVine's `File` may be either, and more than once: it
becomes a `windlass.File` when a task that reads it is submitted (`File.for_reading`; anew when a file of this machine has changed since),
and each task that writes it makes one (`File.for_writing`), which `File.take` brings here when the task has ended, unless it is to stay
on workers.

What a task is to write here is not here before that has ended, though something older may be: its `Place` says so, and the manager holds
tasks that read it until then.  Whether a folder has changed takes a look at all that is in it, for each task that reads it.  TaskVine
sends such a folder anew for each; one that is declared for longer (``cache=True``) is to stay as it is, so that only small ones are
looked at, and what tasks have written there is seen in any case.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import windlass
from windlass.errors import UsageError
from windlass.files import shown
from windlass.manager.declaring import Declaring

if TYPE_CHECKING:
    from windlass.messages import Level

#: A file of this machine, bytes, and what stays on workers: what can be written by a task.
LOCAL: Final = "file"
BUFFER: Final = "buffer"
TEMP: Final = "temp"


class Place:
    """Where tasks write to: a path, which may be declared more than once, a buffer, or what stays on workers."""

    def __init__(self) -> None:
        #: Number of the task that was submitted last to write here; 0: none.
        self.written_by = 0
        #: That one has not ended.
        self.pending = False
        #: How often tasks have written here.
        self.version = 0


class Places:
    """Those of a manager's files of this machine, by path, as long as there are such files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: WeakValueDictionary[str, Place] = WeakValueDictionary()

    def at(self, path: str) -> Place:
        with self._lock:
            return self._known.setdefault(os.path.abspath(path), Place())


class File:
    """A declared file; made by the ``declare_*`` of a `Manager`."""

    def __init__(
        self,
        manager: Declaring,
        kind: str,
        source: str,
        level: Level,
        declare: Callable[[], windlass.File] | None = None,
        *,
        data: bytes | None = None,
        unlink_when_done: bool = False,
        place: Place | None = None,
    ) -> None:
        self._manager, self._kind, self._source = manager, kind, source
        self._level: Level = level
        self._declare = declare
        self._data = data
        self._unlink = unlink_when_done
        self._native: windlass.File | None = None
        self._stamp: tuple[int, ...] = ()
        self.place = place if place is not None else Place()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        """Bytes of what is here."""
        if self._data is not None:
            return len(self._data)
        return os.path.getsize(self._source) if self._kind == LOCAL and os.path.isfile(self._source) else 0

    def __repr__(self) -> str:
        return f"<File {self._kind} {shown(self._source)!r}>"

    def type(self) -> str:
        """``file``, ``buffer``, ``temp``, ``url``, ``untar`` or ``minitask``."""
        return self._kind

    def source(self) -> str:
        """The path, the address, or what else it was declared as."""
        return self._source

    def contents(self, unserializer: Callable[[Any], Any] | None = None) -> Any:
        """Its bytes, or what ``unserializer`` makes of an open file of them. Raises `windlass.FileUnavailable`, `OSError`."""
        if self._kind == TEMP and self._native is not None:
            data = self._manager.fetch_file(self._native)
        elif self._data is not None or self._kind == BUFFER:
            data = self._data or b""
        elif self._kind == LOCAL:
            with open(self._source, "rb") as file:
                data = file.read()
        else:
            raise UsageError(f"{self!r} is on workers only: give it to a task, and let that write what is to come here")
        if unserializer is None:
            return data
        from io import BytesIO

        return unserializer(BytesIO(data))

    # ------------------------------------------------------------ for tasks

    def for_reading(self) -> windlass.File:
        """What a call is given. Raises `UsageError`, as declaring does."""
        with self._lock:
            if self._kind == TEMP:
                if self._native is None and self.place.pending:
                    raise UsageError(f"{self!r} is written by a task that is held back: wait() for that one first")
                if self._native is None:
                    raise UsageError(f"{self!r} is written by no task that was submitted: submit that one first")
                return self._native
            stamp = self._seen()
            if self._native is None or stamp != self._stamp:
                self._native, self._stamp = self._declared(), stamp
            return self._native

    def settled(self) -> File:
        """Itself. Raises `UsageError` while a task is under way that is to write it: what is here now is not what is meant."""
        if self.comes_back and self.place.pending:
            raise UsageError(f"{self!r} is to be written by task {self.place.written_by}, which has not ended: wait() for that one first")
        return self

    def for_writing(self, name: str) -> windlass.File:
        """The file that a task is to make. Raises `UsageError` for what cannot be written."""
        if not self._is_writable:
            raise UsageError(f"{self!r} cannot be an output: declare a file, a buffer without data, or a temp")
        made = self._manager.declare_temp(os.path.basename(name), level=self._level if self._kind == TEMP else "call")
        if self._kind == TEMP:
            with self._lock:
                self._native = made
        return made

    def is_written_by(self, number: int) -> None:
        """A task with this number is being submitted."""
        if self._is_writable:
            self.place.written_by, self.place.pending = number, True

    def was_written_by(self, number: int) -> None:
        """That task has ended, or could not be submitted."""
        if self.place.written_by == number:
            self.place.pending = False

    @property
    def _is_writable(self) -> bool:
        return self._kind in (LOCAL, BUFFER, TEMP)

    @property
    def comes_back(self) -> bool:
        """What a task writes is brought here."""
        return self._kind != TEMP

    def take(self, made: windlass.File, *, packed: bool, executable: bool) -> None:
        """A task has written it. Raises `windlass.FileUnavailable`, `OSError`."""
        if self._kind == BUFFER:
            self._data = self._manager.fetch_file(made)
        elif self._kind == LOCAL:
            os.makedirs(os.path.dirname(os.path.abspath(self._source)), exist_ok=True)
            if packed:
                with tempfile.TemporaryDirectory(prefix=".windlass-", dir=os.path.dirname(os.path.abspath(self._source))) as beside:
                    self._manager.save_file(made, f"{beside}/packed")
                    _unpack(f"{beside}/packed", f"{beside}/folder", self._source)
            else:
                self._manager.save_file(made, self._source)
                if executable:  # by those who may read it
                    mode = stat.S_IMODE(os.stat(self._source).st_mode)
                    os.chmod(self._source, mode | (mode & 0o444) >> 2)
        self.place.version += 1
        made.prune()

    def prune(self) -> None:
        """Remove its copies on workers."""
        with self._lock:
            native, self._native = self._native, None
        if native is not None:
            native.prune()

    def undeclare(self) -> None:
        """Nobody needs it any more."""
        self.prune()
        if self._unlink and self._kind == LOCAL:
            if os.path.isdir(self._source) and not os.path.islink(self._source):
                shutil.rmtree(self._source, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(self._source)

    def _declared(self) -> windlass.File:
        if self._declare is not None:
            return self._declare()
        if self._kind == BUFFER:
            if self._data is None:
                raise UsageError(f"{self!r} has no data: give declare_buffer() some, or make it the output of a task first")
            return self._manager.declare_buffer(self._data, level=self._level)
        return self._manager.declare_file(self._source, level=self._level)

    def _seen(self) -> tuple[int, ...]:
        """By what is seen that it has changed. A folder, when a task has written it: to look at all below for each task that reads it would
        cost much, and meet what others are about to write there."""
        version = self.place.version
        if self._kind == LOCAL:
            with suppress(OSError):
                status = os.stat(self._source)
                if not stat.S_ISDIR(status.st_mode):
                    return version, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return (version,)


def _unpack(archive: str, fresh: str, folder: str) -> None:
    """Unpack to ``fresh``, and put that where ``folder`` is to be. What is in such a folder stays, but for files of the same name."""
    with tarfile.open(archive) as opened:
        # What an argument would say: Python 3.11 up to 3.11.3 has neither that nor the filter, and takes no notice.
        opened.extraction_filter = getattr(tarfile, "tar_filter", lambda member, path: member)
        opened.extractall(fresh)
    if not os.path.isdir(folder):
        os.rename(fresh, folder)
        return
    for below, folders, files in os.walk(fresh):
        target = os.path.normpath(os.path.join(folder, os.path.relpath(below, fresh)))
        os.makedirs(target, exist_ok=True)
        links = [name for name in folders if os.path.islink(os.path.join(below, name))]
        for name in files + links:
            os.replace(os.path.join(below, name), os.path.join(target, name))
