"""Managers that have ended: the word that they leave behind.

Theory of operation
-------------------
A manager without a name has a random one, which never comes again, and its folder goes with it; or, where it was killed, with the next
manager of this host.  Pilots of it that wait in a batch system's queue carry that name still, and who cleans the queue must know that they
are orphans, and not of a manager whose state is elsewhere.  So the names stand in a file, the last ones of them.

One with a name keeps its folder.  Its lock has its host in it, and behind that, once it has ended by itself, a word that says so: other
hosts are not always told of locks, nor let through to its port.  One that was killed says nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from windlass.identity import write_private

#: Bytes of the file, beyond which the older half goes: some two thousand names.
MOST_BYTES: Final = 64 << 10
_MARK: Final = ".queued"
_ENDED: Final = " (ended)"


def expect(folder: Path) -> None:
    """The manager that has this folder gets pilots that may outlive it. Raises `OSError`."""
    (folder / "pilots" / _MARK).touch(0o600)


def is_expected(folder: Path) -> bool:
    """Whether its name is worth noting."""
    return (folder / "pilots" / _MARK).exists()


def note(managers: Path, name: str) -> None:
    """This one has ended. A name that cannot be written, or is lost as two write at a time, is one of which nothing is known."""
    file = managers / ".gone"
    with suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{name}\n".encode())
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size > MOST_BYTES:
            write_private(file, file.read_bytes()[-MOST_BYTES // 2 :].partition(b"\n")[2])


def names(managers: Path) -> frozenset[str]:
    """Those that are known to have ended."""
    try:
        return frozenset((managers / ".gone").read_text(errors="replace").split())
    except OSError:
        return frozenset()


def say_ended(lock: int) -> None:
    """The manager that has this lock, and its host written there, has ended, and is about to let it go."""
    with suppress(OSError):
        os.write(lock, _ENDED.encode())


def read_lock(lock: Path) -> tuple[str, bool]:
    """The machine on which a manager ran last ("": nobody knows), and whether it says itself that it has ended there."""
    try:
        text = lock.read_text(errors="replace")
    except OSError:
        return "", False
    return text.removesuffix(_ENDED), text.endswith(_ENDED)
