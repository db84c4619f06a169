"""Spares: files of objects that nobody needs any more, kept for some seconds because the next objects can be written into their memory.

Theory of operation
-------------------
A page of a new file costs the kernel several times what it costs to write into one that is there: 100 MB into /dev/shm take 52 ms, the
same into a file that has its pages 15 ms, and the removal of a file as large 12 ms more.  So what goes is moved into a folder inside the
store's (`keep`), and who writes an object there next, whichever process that is, takes one of about that size (`take`).  The folder is the
truth: a spare's name tells its bytes and since when it has been one, and to rename it is to have it.

What goes may still be mapped: a program reads its results where they lie, for as long as it likes, and a slot its arguments.  Only the
kernel knows, so it is asked: a write lease (fcntl(2), F_SETLEASE) is granted on a file that nobody else has open or mapped, and no other.
That, and that no other name leads to it, is found out under a name that nobody else knows; a spare that is in use yet is put back.  Nor is
one taken at once, as somebody may be about to open it by the name that it had.

Not every kernel and file system is to be believed: overlayfs grants leases on files that are mapped, and kernels before 5.3 grant none on
tmpfs.  So only folders on a tmpfs have spares, which is where they gain most, and only if leases are granted there (`_believed`); else
`keep` removes the file, as if there were no spares.

They are memory, so they are few: `MOST_BYTES`, and for `SECONDS` (`sweep`).  Imported by slots and workers at their start: as little as
possible.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from typing import Final

from windlass.objects import LARGE_BYTES, SPARE_BYTES
from windlass.ownership import is_ours

#: In a store's folder.
FOLDER: Final = ".spare"
#: So many bytes may be spare in a folder, in so many files, each for so many seconds.
MOST_BYTES: Final = 512 << 20
MOST: Final = 64
SECONDS: Final = 10.0
#: For so many nanoseconds a spare is left alone: who is opening it has done so by then.
ALONE_NS: Final = 20_000_000
#: So many are tried before a new file is made; each that is in use costs 15 us. Of large objects all, as each is worth milliseconds.
_TRIES: Final = 5
#: So many bytes, and the rest of a file, one sweep removes.
_SWEPT_BYTES: Final = 64 << 20
#: Whether leases are granted as they should be, by folder.
_trusted: dict[str, bool] = {}
#: Of folders where what was tried last was in use: how many times nothing is tried for objects that are not large, and how many after the
#: next time in vain. A program that keeps all that it reads would else pay for the looks, and have nothing of them.
_in_vain: dict[str, tuple[int, int]] = {}
_PAUSE_MOST: Final = 16


def keep(folder: str, path: str, size: int, most_bytes: int = MOST_BYTES) -> None:
    """Make the object at ``path`` a spare of its folder; or remove it, where that is not possible. Raises `OSError`."""
    if not (SPARE_BYTES <= size <= most_bytes and _believed(folder)):
        os.unlink(path)
        return
    spares = os.path.join(folder, FOLDER)
    found = _spares(spares)
    over, left = sum(each for _, each, _ in found) + size - most_bytes, len(found)
    for _, each, name in found:
        if over <= 0 and left < MOST:
            break
        _unlink(os.path.join(spares, name))
        over, left = over - each, left - 1
    spare = os.path.join(spares, f"{time.monotonic_ns()}-{size}-{os.urandom(4).hex()}")
    try:
        try:
            os.rename(path, spare)
        except FileNotFoundError:  # the first one, or the object is gone
            with suppress(FileExistsError):
                os.mkdir(spares, 0o700)
            os.rename(path, spare)
    except OSError:  # a full disk has no room for a name either
        os.unlink(path)


def take(folder: str, path: str, size: int, access: int) -> int | None:
    """A descriptor of a spare, which is at ``path`` now and has so many bytes: all of them are to be written over. None: there is none.

    ``path`` must be a name in ``folder`` that nobody else knows; ``access``: of open(2), for writing.
    """
    if size < SPARE_BYTES:
        return None
    large = size >= LARGE_BYTES
    pause, longer = _in_vain.get(folder, (0, 1))
    if pause and not large:
        _in_vain[folder] = pause - 1, longer
        return None
    spares = os.path.join(folder, FOLDER)
    found = _spares(spares)
    if not found or not is_ours(os.lstat(folder)):
        return None
    until = time.monotonic_ns() - ALONE_NS
    fit = [name for since, each, name in found if since <= until and each // 2 <= size <= 2 * each]
    # The oldest are likely to be free where many are in use at a time, and of few that come and go one by one the newest but one.
    ends = [name for pair in zip(fit, reversed(fit), strict=True) for name in pair]
    for name in list(dict.fromkeys(ends))[: None if large else _TRIES]:
        descriptor = _take(os.path.join(spares, name), path, size, access)
        if descriptor is not None:
            _in_vain.pop(folder, None)
            return descriptor
    if fit and not large:
        _in_vain[folder] = longer, min(2 * longer, _PAUSE_MOST)
    return None


def _take(spare: str, path: str, size: int, access: int) -> int | None:
    try:
        os.rename(spare, path)
    except OSError:  # another process has it
        return None
    descriptor = None
    try:
        descriptor = _own(path, access)
        if descriptor is not None:
            os.ftruncate(descriptor, size)
            return descriptor
        os.rename(path, spare)
    except BaseException as error:
        if descriptor is not None:
            os.close(descriptor)
        _unlink(path)
        if not isinstance(error, OSError):
            raise
    return None


def sweep(folder: str) -> bool:
    """Remove what has been a spare for long enough; large ones in several sweeps, as to give memory back takes the kernel some time.

    Whether there are others, so that it is to be called again.
    """
    spares = os.path.join(folder, FOLDER)
    end = time.monotonic_ns() - int(SECONDS * 1e9)
    removed = 0
    for since, size, name in _spares(spares):
        if since > end or removed >= _SWEPT_BYTES:
            return True
        _unlink(os.path.join(spares, name))
        removed += size
    return False


def drop(folder: str) -> bool:
    """Remove all spares of this folder: its disk is full. Whether there were any."""
    spares = os.path.join(folder, FOLDER)
    found = _spares(spares)
    for _, _, name in found:
        _unlink(os.path.join(spares, name))
    return bool(found)


def _spares(spares: str) -> list[tuple[int, int, str]]:
    """Since when, of how many bytes, and named how; the oldest first."""
    try:
        names = os.listdir(spares)
    except OSError:
        return []
    found: list[tuple[int, int, str]] = []
    for name in names:
        since, _, rest = name.partition("-")
        size = rest.partition("-")[0]
        if since.isdecimal() and size.isdecimal():  # the file system may have put others there
            found.append((int(since), int(size), name))
    found.sort()
    return found


def _own(path: str, access: int) -> int | None:
    """A descriptor of this file, if nobody else has it open or mapped, or knows it by another name."""
    try:
        descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    about = os.fstat(descriptor)
    if stat.S_ISREG(about.st_mode) and about.st_nlink == 1 and about.st_uid == os.geteuid() and _alone(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _alone(descriptor: int) -> bool:
    import fcntl
    import signal

    try:
        # Who opens it while the lease is held has us told by a signal: by one that does nothing, as the usual one would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _believed(folder: str) -> bool:
    """Whether what leases say of files of this folder is so: see the top."""
    if folder not in _trusted:
        try:
            _trusted[folder] = _is_tmpfs(folder) and _has_leases(os.path.join(folder, f".t-{os.getpid()}-lease"))
        except OSError:
            return False
    return _trusted[folder]


def _is_tmpfs(folder: str) -> bool:
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        kinds = {fields[2]: fields[fields.index("-") + 1] for fields in map(str.split, lines)}
    return kinds.get(number) == "tmpfs"


def _has_leases(path: str) -> bool:
    """Whether a file there gets one when it is open nowhere else, and none when it is."""
    other = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        refused = _own(path, os.O_WRONLY)
    finally:
        os.close(other)
    granted = _own(path, os.O_WRONLY)
    _unlink(path)
    for one in (refused, granted):
        if one is not None:
            os.close(one)
    return refused is None and granted is not None


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
