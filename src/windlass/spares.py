"""Spares: files of objects that nobody needs any more, kept for some seconds because the next objects can be written into their memory.

Theory of operation
-------------------
A page of a new file costs the kernel several times what it costs to write into one that is there: 100 MB into /dev/shm take 52 ms, the
same into a file that has its pages 15 ms, and the removal of a file as large 12 ms more.  So what goes is moved into a folder inside the
store's (`keep`), and who writes an object there next, whichever process that is, takes one of about that size (`take`).  The folder is the
truth: a spare's name tells its bytes and since when it has been one, and to rename it is to have it.

What goes may still be mapped: a program reads its results where they lie, for as long as it likes, and a slot its arguments.  Only the
kernel knows, so it is asked: a write lease (fcntl(2), F_SETLEASE) is granted on a file that nobody else has open or mapped, and no other.
That, and that no other name leads to it, is found out under a name that nobody else knows; a spare that is in use yet is put back.  Where
leases are not to be had there is nothing to take, and all is as if there were no spares.

They are memory, so they are few: `MOST_BYTES`, and for `SECONDS` (`sweep`).  Imported by slots and workers at their start: as little as
possible.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from typing import Final

from windlass.objects import SPARE_BYTES

#: In a store's folder.
FOLDER: Final = ".spare"
#: So many bytes may be spare in a folder, in so many files, each for so many seconds.
MOST_BYTES: Final = 512 << 20
MOST: Final = 64
SECONDS: Final = 10.0
#: So many are tried before a new file is made; each that is in use costs 15 us.
_TRIES: Final = 5
#: So many bytes, and the rest of a file, one sweep removes.
_SWEPT_BYTES: Final = 64 << 20


def keep(folder: str, path: str, size: int, most_bytes: int = MOST_BYTES) -> None:
    """Make the object at ``path`` a spare of its folder; or remove it, if it is too small or too large. Raises `OSError`."""
    if not SPARE_BYTES <= size <= most_bytes:
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
        os.rename(path, spare)
    except FileNotFoundError:  # the first one, or the object is gone
        with suppress(FileExistsError):
            os.mkdir(spares, 0o700)
        os.rename(path, spare)


def take(folder: str, path: str, size: int, access: int) -> int | None:
    """A descriptor of a spare, which is at ``path`` now and has so many bytes: all of them are to be written over. None: there is none.

    ``path`` must be a name in ``folder`` that nobody else knows; ``access``: of open(2), for writing.
    """
    if size < SPARE_BYTES:
        return None
    spares = os.path.join(folder, FOLDER)
    fit = [name for _, each, name in _spares(spares) if each // 2 <= size <= 2 * each]
    # The oldest are likely to be free where many are in use at a time, and of few that come and go one by one the newest but one.
    ends = [name for pair in zip(fit, reversed(fit), strict=True) for name in pair]
    for name in list(dict.fromkeys(ends))[:_TRIES]:
        spare = os.path.join(spares, name)
        try:
            os.rename(spare, path)
        except OSError:  # another process has it
            continue
        descriptor = _own(path, access)
        if descriptor is not None:
            try:
                os.ftruncate(descriptor, size)
            except OSError:
                os.close(descriptor)
                _unlink(path)
                return None
            return descriptor
        with suppress(OSError):
            os.rename(path, spare)
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
        since, size, _ = name.split("-")
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


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
