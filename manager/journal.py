"""A journal: results of calls on disk, where the next life of the program finds them.

Theory of operation
-------------------
A journal is a folder::

    log        records, one after the other: length, checksum, and a batch of results by their keys
    objects/   large buffers of results, by content name
    lock       held by the program that has it open
    name       what a manager is called that has no other name, in each life of the program (`name`)

`append` writes a batch with one ``write``: what a program has seen ended is with the operating system, and outlives the program. A thread
of the journal calls ``fdatasync`` once a second at most, so that a crash of the whole machine costs the last second.  Results with
large buffers are handed to the same thread (`append_large`), which copies the buffers first.

A record that was cut off by a crash, or is damaged, ends what is read: the log is cut there, and what followed is made again.  When
a write fails (a full disk) the log is cut back to where it was whole, what was copied of a large buffer goes, this is told once, and the
next write tries again: a journal that cannot be written costs its use and no call.  A network file system takes what is written into its
cache, says only when it is to be synced that there is no room, and forgets it: then the log is cut back to what was synced before, as what
comes next would stand behind a hole.

Keys and what the results of calls are: `windlass.manager.memory`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import queue
import secrets
import shutil
import stat
import struct
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from windlass.errors import Closed, UsageError
from windlass.identity import trusts_state_folder
from windlass.locks import is_locked_here, lock, unlock
from windlass.mailbox import Mailbox
from windlass.messages import CallEnd, ObjectName, ObjectRef
from windlass.objects import content_name, map_object

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger("windlass.manager")

_MAGIC: Final = b"windlass journal 1\n"
_HEADER: Final = struct.Struct("<II")
#: Results in one record at most; places are numbers of a record's offset and the result's index in it.
BATCH_MOST: Final = 1024
#: Seconds between two calls of ``fdatasync``.
SYNC_SECONDS: Final = 1.0
#: What ``fdatasync`` says on a file system that has none, which is no loss.
_NO_SYNC: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
#: Batches that are kept as they were read last: a program asks for results in about the order in which they were written.
_READ_MOST: Final = 8

Entry = tuple[bytes, CallEnd]
_decode_entry: Final = msgspec.msgpack.Decoder(Entry).decode
_decode_keys: Final = msgspec.msgpack.Decoder(list[tuple[bytes, msgspec.Raw]]).decode
#: A batch as it is written, an entry for each result: in another order most are asked for when their batch has been let go.
_split: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_encode: Final = msgspec.msgpack.Encoder().encode


def check_journal(folder: object) -> None:
    """Raise `UsageError` for a ``journal=`` that names no folder."""
    if folder is not None and not (isinstance(folder, str | os.PathLike) and os.fspath(folder)):  # pyright: ignore[reportUnknownArgumentType]
        raise UsageError(f"journal={folder!r}: name a folder, as in journal='run.journal'")


class Journal:
    """An open journal at ``folder``. Raises `UsageError` when another program has it open, or the folder holds something else."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        given = Path(folder)
        #: Where each result is.
        self.places: dict[bytes, int] = {}
        self._lock_file = _take(given)
        try:
            #: Wherever the program may go. Not `os.path.abspath`, which takes "link/.." for nothing.
            self.folder = given.absolute()
            self._objects = self.folder / "objects"
            self._objects.mkdir(mode=0o700, exist_ok=True)
            for left in self._objects.glob("*.new"):
                left.unlink()
            self._was_there = (self.folder / "log").exists()
            self._log = os.open(self.folder / "log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            unlock(self._lock_file)
            raise UsageError(f"journal {given} cannot be opened: {error.strerror or error}") from error
        self._work: Mailbox[Callable[[], None] | None] = Mailbox()
        self._thread = threading.Thread(target=self._run, name="windlass-journal", daemon=True)
        try:
            try:
                self._end = self._read_all()
            except OSError as error:
                raise UsageError(f"journal {given} cannot be opened: {error.strerror or error}") from error
            self._thread.start()  # now: when calls end there may be none to be had, as the program ends, or is at a limit
        except BaseException:
            os.close(self._log)
            unlock(self._lock_file)
            raise
        #: Results that could not be written.
        self.dropped = 0
        #: The batches that were read last, by their offsets.
        self._read: OrderedDict[int, list[msgspec.Raw]] = OrderedDict()
        #: Buffers that have been opened, and are what their names say.
        self._whole: set[ObjectName] = set()
        #: Guards the log's end, and what was read.
        self._lock = threading.Lock()
        #: How far the log was synced, or found, and how many results came after the last ``fdatasync`` began.
        self._synced = self._end
        self._unsynced = 0
        self._closed = False

    def name(self) -> str:
        """What a manager is called that has no other name: in each life of the program the same, so that its pilots find it again.

        It stands in the journal, for hosts may have journals of one path, on disks of their own. One that was moved, or is found by another
        path, is the same; a copy is another. Raises `UsageError`.
        """
        here = hashlib.blake2b(os.fsencode(os.path.realpath(self.folder)), digest_size=6).hexdigest()
        try:
            file = os.open(self.folder / "name", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                inode = str(os.fstat(file).st_ino)
                known = os.pread(file, 1024, 0).decode(errors="replace").split()
                if len(known) == 3 and (known[1] == here or known[2] == inode):
                    name = known[0]
                else:  # journals were known by their paths before their names stood in them
                    name = f"journal-{here if self._was_there and not known else secrets.token_hex(6)}"
                if known != [name, here, inode]:
                    line = f"{name} {here} {inode}\n".encode()
                    os.pwrite(file, line, 0)
                    os.ftruncate(file, len(line))
                    os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"journal {self.folder} cannot be opened: {why}; make room, or name another folder") from error
        return name

    # ------------------------------------------------------------ writing

    def append(self, entries: Sequence[Entry], *, index: bool = False) -> None:
        """Write these results. ``index``: have them found in this life too. Never raises for want of disk."""
        for start in range(0, len(entries), BATCH_MOST):
            self._write(entries[start : start + BATCH_MOST], index)

    def append_large(
        self, key: bytes, end: CallEnd, read: Callable[[ObjectName], Buffer], done: Callable[[], None], *, index: bool = False
    ) -> None:
        """Write a result with buffers, on the journal's thread: copy them by ``read``, then say ``done``."""

        def work() -> None:
            try:
                self.append([(key, self._copied(end, read))], index=index)
            except KeyError as error:
                log.info("a result is not remembered: its buffer %s is gone", error)  # as when an earlier life's manager had it
            except Closed as error:
                log.info("a result is not remembered: %s", error)
            except OSError as error:
                self._failed(error)
                self.dropped += 1
            finally:
                done()

        self._work.put(work)

    def _copied(self, end: CallEnd, read: Callable[[ObjectName], Buffer]) -> CallEnd:
        """The same with its buffers here, under the names of their contents."""
        spans: list[ObjectRef] = []
        for ref in end.spans:
            self._check_open()
            data = read(ref.name)
            name = content_name(data)
            spans.append(ObjectRef(name, ref.size))
            if self._has(name, ref.size):
                continue
            # Of this copying alone: the folder may be another journal's when this one was closed in the midst of it.
            fresh = self._objects / f"{name}-{secrets.token_hex(4)}.new"
            try:
                with open(fresh, "wb", opener=_private) as file:
                    file.write(data)
                    file.flush()
                    _sync_file(file.fileno())
                self._check_open()
                fresh.rename(self._objects / name)
            except BaseException:
                # A part of it, up to all that the disk had left, which smaller results and others need.
                with contextlib.suppress(OSError):
                    fresh.unlink()
                raise
        return msgspec.structs.replace(end, spans=tuple(spans))

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the journal was closed before it was written")

    def _write(self, batch: Sequence[Entry], index: bool) -> None:
        body = _encode(batch)
        data = _HEADER.pack(len(body), zlib.crc32(body)) + body
        with self._lock:
            if self._closed:
                self.dropped += len(batch)
                return
            offset = self._end
            try:
                written = os.pwrite(self._log, data, offset)
                while written < len(data):
                    written += os.pwrite(self._log, data[written:], offset + written)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._log, offset)
                self._failed(error)
                self.dropped += len(batch)
                return
            self._end = offset + len(data)
            if index:
                for number, (key, _) in enumerate(batch):
                    self.places[key] = offset * BATCH_MOST + number
            first = not self._unsynced
            self._unsynced += len(batch)
        if first:
            self._work.put(self._sync_later)

    def _failed(self, error: Exception, what: str = "results from now on") -> None:
        if not self.dropped:
            log.error("journal %s cannot be written (%s): %s may be made again by the next run", self.folder, error, what)

    # ------------------------------------------------------------ reading

    def recall(self, key: bytes, *, forget: bool = False) -> CallEnd | None:
        """The result of this key, if it is here with all its buffers. ``forget``: nobody will ask for it again."""
        place = self.places.pop(key, None) if forget else self.places.get(key)
        if place is None:
            return None
        offset, number = divmod(place, BATCH_MOST)
        try:
            known, end = _decode_entry(self._batch(offset)[number])
        except (OSError, ValueError, IndexError, struct.error, msgspec.DecodeError):
            return None  # it has been damaged since it was read
        return end if known == key and all(self._has(ref.name, ref.size) for ref in end.spans) else None

    def open(self, name: ObjectName) -> memoryview:
        """A buffer of a result. Raises `KeyError` when it is gone, or damaged: then it goes, and with it what it was of.

        Its name is that of its content, which is looked at here, once in a life: that takes as long as reading it.
        """
        path = self._objects / name
        try:
            data = map_object(path, foreign=True)
        except OSError:
            raise KeyError(name) from None
        if name not in self._whole:
            if content_name(data) != name:
                log.warning("journal %s: %s is damaged, and is removed: the result that it is of is made again", self.folder, path)
                with contextlib.suppress(OSError):
                    path.unlink()
                raise KeyError(name)
            self._whole.add(name)
        return data

    def _has(self, name: str, size: int) -> bool:
        try:
            return os.stat(self._objects / name).st_size == size
        except OSError:
            return False

    def _batch(self, offset: int) -> list[msgspec.Raw]:
        with self._lock:
            batch = self._read.get(offset)
            if batch is not None:
                self._read.move_to_end(offset)
                return batch
        # Without the lock: what has a place is written, and nobody who writes waits for this disk.
        length, checksum = _HEADER.unpack(os.pread(self._log, _HEADER.size, offset))
        body = os.pread(self._log, length, offset + _HEADER.size)
        if zlib.crc32(body) != checksum:
            raise ValueError("a damaged record")
        batch = _split(body)
        with self._lock:
            self._read[offset] = batch
            if len(self._read) > _READ_MOST:
                self._read.popitem(last=False)
        return batch

    def _read_all(self) -> int:
        """Note where each result is; the end of what is whole, where the log is cut."""
        end = os.fstat(self._log).st_size
        if end < len(_MAGIC):
            os.ftruncate(self._log, 0)
            os.pwrite(self._log, _MAGIC, 0)
            _sync_file(self._log)  # what is written later may be lost; without this the rest would be no journal's
            return len(_MAGIC)
        if os.pread(self._log, len(_MAGIC), 0) != _MAGIC:
            raise UsageError(f"{self.folder / 'log'} is no journal of this version of Windlass: name another folder, or remove this one")
        whole = len(_MAGIC)
        for offset, body in _records(self._log, end):
            try:
                keys = _decode_keys(body)
            except msgspec.DecodeError:
                break
            for number, (key, _) in enumerate(keys):
                self.places[key] = offset * BATCH_MOST + number
            whole = offset + _HEADER.size + len(body)
        if whole < end:
            log.warning("journal %s: the last %d bytes are cut off or damaged, and are dropped", self.folder, end - whole)
            os.ftruncate(self._log, whole)
        return whole

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._do(work)

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("a defect of Windlass: journal %s goes on without what it was doing", self.folder)

    def _sync_later(self) -> None:
        # Other work goes on meanwhile; what is left when it is time is done next.
        end = time.monotonic() + SYNC_SECONDS
        while (left := end - time.monotonic()) > 0:
            try:
                work = self._work.get(timeout=left)
            except queue.Empty:
                break
            if work is None:
                self._work.put(None)
                break
            self._do(work)
        self._sync()

    def _sync(self) -> None:
        with self._lock:
            if self._closed:
                return
            log_file, end, results, self._unsynced = self._log, self._end, self._unsynced, 0
        try:
            _sync_file(log_file)
        except OSError as error:
            self._cut_back(error, results)
        else:
            self._synced = end

    def _cut_back(self, error: OSError, results: int) -> None:
        """Forget what was written since the last sync, of which nobody knows what there is: so many results, and those that came since."""
        with self._lock:
            if self._closed:
                return
            with contextlib.suppress(OSError):
                os.ftruncate(self._log, self._synced)
            self._end = self._synced
            for offset in [offset for offset in self._read if offset >= self._synced]:
                del self._read[offset]
            for key in [key for key, place in list(self.places.items()) if place >= self._synced * BATCH_MOST]:
                self.places.pop(key, None)
            self._failed(error, "results of the last second, and from now on,")
            self.dropped += results + self._unsynced
            self._unsynced = 0

    def close(self, *, remove: bool = False) -> None:
        """Finish writing; ``remove``: it was only for this life."""
        if self._closed:
            return
        self._work.put(None)
        try:
            self._thread.join()
            if not remove:
                self._sync()
        finally:  # Ctrl-C ends the writing alone; the thread breaks off what it is at
            with self._lock:
                self._closed = True
                log_file, self._log = self._log, -1  # the number may be another file's soon
                with contextlib.suppress(OSError):  # a file system that has lost the file, or has no room for what was not synced
                    os.close(log_file)
            unlock(self._lock_file)
            if remove:  # now: a shared file system keeps what is open, and the folder with it
                shutil.rmtree(self.folder, ignore_errors=True)

    def leave_to_program(self) -> None:
        """This process is a forked copy of the program, whose journal it is: without these descriptors, which are the same ones, it has the
        lock no longer than the program."""
        if not self._closed:
            self._closed = True
            os.close(self._log)
            os.close(self._lock_file)
            self._log = -1


def _sync_file(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _records(descriptor: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Whole records: where each begins, and its body."""
    offset = len(_MAGIC)
    while offset + _HEADER.size <= end:
        length, checksum = _HEADER.unpack(os.pread(descriptor, _HEADER.size, offset))
        if offset + _HEADER.size + length > end:
            return
        body = os.pread(descriptor, length, offset + _HEADER.size)
        if zlib.crc32(body) != checksum:
            return
        yield offset, body
        offset += _HEADER.size + length


def _take(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if found := _not_ours(folder, os.stat(folder)):
            why, remedy = found
            raise UsageError(f"journal {folder} {why}: results that are read from a journal run as your code; {remedy}")
        names = set(os.listdir(folder))
        if names and "lock" not in names and not _has_log(folder):
            raise UsageError(f"journal {folder} is a folder with other things in it: name a new one, as in journal='run.journal'")
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise UsageError(f"journal {folder} is a file, and a journal is a folder: name another one, as in journal='run.journal'") from error
    except OSError as error:
        raise UsageError(f"journal {folder} cannot be opened: {error.strerror or error}; name a folder that you can write to") from error
    try:
        lock(descriptor)
    except BlockingIOError:
        pid, _, host = os.pread(descriptor, 300, 0).decode(errors="replace").strip().partition(" ")
        ours = is_locked_here(descriptor)
        os.close(descriptor)
        if ours:
            text = f"journal {folder} is in use already, by this program: close() the manager that has it, or go on using that one"
            raise UsageError(text) from None
        raise UsageError(f"journal {folder} is in use by another program{_who_has_it(folder, pid, host)}") from None
    except OSError as error:
        os.close(descriptor)
        why = f"this file system has no locks ({error.strerror or error})"
        raise UsageError(f"journal {folder} cannot be opened: {why}; name a folder on another one") from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {os.uname().nodename}\n".encode(), 0)
    except OSError as error:
        unlock(descriptor)
        raise UsageError(f"journal {folder} cannot be opened: {error.strerror or error}; make room, or name another folder") from error
    return descriptor


def _has_log(folder: Path) -> bool:
    """It is a journal whose lock somebody has removed."""
    try:
        with (folder / "log").open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except (FileNotFoundError, IsADirectoryError):
        return False


def _who_has_it(folder: Path, pid: str, host: str) -> str:
    """How the text goes on that says that another program has it open, and what to do."""
    where = f" (process {pid}{f' on {host}' if host else ''})" if pid else ""
    text = f"{where}: end that one, or name another journal"
    if host in ("", os.uname().nodename):
        return text
    # A file server keeps the lock of a machine that has crashed until its lease is over, or the machine is up again.
    return (
        f"{text}. If {host} is down its lock goes in the end; you may also make sure that the program is gone, and remove {folder / 'lock'}"
    )


def _not_ours(folder: Path, about: os.stat_result) -> tuple[str, str] | None:
    """Why others can put results into this folder, and what to do; None if they cannot, or the user says that modes mean nothing there."""
    if about.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:  # root is somebody else on many network file systems
        return f"belongs to user {about.st_uid}, not to you (user {os.geteuid()})", "name a folder of your own"
    if about.st_mode & 0o022 and not trusts_state_folder():
        # A folder that was made by mkdir is like that where a user's own group may write to what he makes (umask 002).
        remedy = f"if nobody else has written there, run  chmod go-w {folder} ; otherwise name a folder of your own"
        return f"can be written to by others (mode {stat.S_IMODE(about.st_mode):04o})", remedy
    return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
