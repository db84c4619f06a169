"""TaskVine's files: declared before it is known whether a task reads or writes them.

Theory of operation
-------------------
A `windlass.File` is something that exists, or a file that one call will make.  TaskVine's `File` may be either, and more than once: it
becomes a `windlass.File` when a task that reads it is submitted (`File.for_reading`; anew when a file of this machine has changed since),
and each task that writes it makes one (`File.for_writing`), which `File.take` brings here when the task has ended, unless it is to stay
on workers.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import windlass
from windlass.errors import UsageError
from windlass.files import shown
from windlass.manager.declaring import Declaring

if TYPE_CHECKING:
    from windlass.files import Level

#: A file of this machine, bytes, and what stays on workers: what can be written by a task.
LOCAL: Final = "file"
BUFFER: Final = "buffer"
TEMP: Final = "temp"


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
    ) -> None:
        self._manager, self._kind, self._source = manager, kind, source
        self._level: Level = level
        self._declare = declare
        self._data = data
        self._unlink = unlink_when_done
        self._native: windlass.File | None = None
        self._stamp: tuple[int, ...] = ()
        #: Number of the task that was submitted last to write it, where it stays on workers; 0: none.
        self.written_by = 0
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
                if self._native is None and self.written_by:
                    raise UsageError(f"{self!r} is written by a task that is held back: wait() for that one first")
                if self._native is None:
                    raise UsageError(f"{self!r} is written by no task that was submitted: submit that one first")
                return self._native
            stamp = self._seen()
            if self._native is None or stamp != self._stamp:
                self._native, self._stamp = self._declared(), stamp
            return self._native

    def for_writing(self, name: str) -> windlass.File:
        """The file that a task is to make. Raises `UsageError` for what cannot be written."""
        if self._kind not in (LOCAL, BUFFER, TEMP):
            raise UsageError(f"{self!r} cannot be an output: declare a file, a buffer without data, or a temp")
        made = self._manager.declare_temp(os.path.basename(name), level=self._level if self._kind == TEMP else "call")
        if self._kind == TEMP:
            with self._lock:
                self._native = made
        return made

    def is_written_by(self, number: int) -> None:
        """A task with this number is being submitted."""
        if self._kind == TEMP:
            self.written_by = number

    @property
    def comes_back(self) -> bool:
        """What a task writes is brought here."""
        return self._kind != TEMP

    def take(self, made: windlass.File, *, packed: bool) -> None:
        """A task has written it. Raises `windlass.FileUnavailable`, `OSError`."""
        if self._kind == BUFFER:
            with self._lock:
                self._data, self._native = self._manager.fetch_file(made), None
        elif self._kind == LOCAL:
            os.makedirs(os.path.dirname(os.path.abspath(self._source)), exist_ok=True)
            if packed:
                with tempfile.TemporaryDirectory(prefix=".windlass-", dir=os.path.dirname(os.path.abspath(self._source))) as beside:
                    self._manager.save_file(made, f"{beside}/packed")
                    _unpack(f"{beside}/packed", f"{beside}/folder", self._source)
            else:
                self._manager.save_file(made, self._source)
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
        """By what is seen that a file of this machine has changed. (A folder is taken as it was when it was first needed.)"""
        if self._kind == LOCAL and not os.path.isdir(self._source):
            with suppress(OSError):
                status = os.stat(self._source)
                return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return ()


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
