"""Locks of files that tell whether it is this program that has them.

A lock of flock(2) belongs to the open file, so the program that has it meets it like any other when it opens the file again, as a notebook
does whose cell is run twice. The number of a process says little: another host or container may have one with the same.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final

#: Files that are locked here, by descriptor, and by which process: one that it forks has a copy of this.
_held: Final[dict[int, tuple[int, int, int]]] = {}


def lock(descriptor: int) -> None:
    """Lock the file until `unlock`. Raises `BlockingIOError` when it is locked, and `OSError` on a file system without locks."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held[descriptor] = _identity(descriptor)


def is_locked_here(descriptor: int) -> bool:
    """Whether it is this process that has locked the file, by another descriptor."""
    return _identity(descriptor) in _held.values()


def is_free(path: str | os.PathLike[str]) -> bool:
    """Whether no process of this host has the file locked. It is locked for a moment to see that, so ask seldom."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def unlock(descriptor: int) -> None:
    """Close a descriptor that was locked. Raises nothing where the file is gone, or was not written: the lock goes with the descriptor."""
    _held.pop(descriptor, None)
    with suppress(OSError):
        os.close(descriptor)


def _identity(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return os.getpid(), status.st_dev, status.st_ino
