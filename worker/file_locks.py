"""Locks on files between the processes of one node, which the kernel takes back from a process that dies.

Theory of operation
-------------------
`flock` locks belong to an open file: they end when it is closed, by whatever death.  Programs that a process starts do not inherit them
(``O_CLOEXEC``); a fork that lives on without an exec would.  Within one process two openings of one file are two owners.

A lock's file may be unlinked by who has the lock exclusively, so that files of things that are gone do not pile up.  Another may have
opened it just before: then it gets a lock on a file without a name, which locks nothing.  So `take_lock` looks whether the file still has
its name, and else begins again.  `unlink_lock` looks too: after somebody deleted the folder, the name may be that of another's lock.

Waiting is looking again and again: so it can be given up, and nobody sleeps in the kernel when the worker ends.

Cleaners of old files (systemd-tmpfiles) take nothing from below a folder on which somebody has a lock: tmpfiles.d(5).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from windlass.errors import UsageError
from windlass.folders import writing
from windlass.manifests import show

_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def take_lock(path: str, how: int, patience: float, pause: Callable[[], object]) -> int | None:
    """The lock (``LOCK_SH`` or ``LOCK_EX``), as a descriptor to close; None when another still has it after `patience` seconds.

    `pause` is called between two looks; what it raises ends the waiting. Raises `CacheFull`, and `Damaged` when there is no such folder.
    """
    until = time.monotonic() + patience
    lock = -1
    try:
        while True:
            if lock < 0:
                with writing(path):
                    lock = os.open(path, _OPEN, 0o600)
            got = _try_lock(lock, how)
            if not _has_name(lock, path):  # unlinked before it was ours
                os.close(lock)
                lock = -1
            elif got:
                mine, lock = lock, -1
                return mine
            elif time.monotonic() >= until:
                return None
            else:
                pause()
    finally:
        if lock >= 0:
            os.close(lock)


def unlink_lock(lock: int, path: str) -> None:
    """Remove the file of a lock that is held exclusively; closing is the caller's."""
    if _has_name(lock, path):
        os.unlink(path)


def lock_folder(folder: str) -> int:
    """Have a cache's folder for this process alone until the descriptor is closed. Raises `UsageError` when another process has it.

    The lock is on the folder itself, which takes no room on a full disk. Where the file system has no locks (Lustre and NFS may not), the
    folder is not locked: a worker's is below a name that no other worker has.
    """
    lock = os.open(folder, _OPEN_FOLDER)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UsageError(f"another worker uses the cache folder {show(folder)}; give each worker one of its own") from None
    except OSError:
        pass
    return lock


def keep_from_cleaners(folder: str) -> int:
    """Have cleaners leave alone what is below a folder until the descriptor is closed, as far as the file system has locks."""
    lock = os.open(folder, _OPEN_FOLDER)
    with suppress(OSError):  # also while one is at it
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return lock


class Held:
    """A lock for the length of a ``with`` block."""

    def __init__(self, lock: int) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)


def _try_lock(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_name(lock: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except FileNotFoundError:
        return False
