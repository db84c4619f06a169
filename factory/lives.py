"""What a factory is called that was given no name, so that its next life is called the same and finds its pilots.

Theory of operation
-------------------
Pilots carry the names of their factory and manager in the batch system, and outlive a factory that is killed: one of the same name takes
them over. So a factory that is a process of its own keeps the name that it has made up in a file of its manager's folder, and a lock of
that file as long as its process lives. Who is to submit the same from the same pools, and finds such a file that nobody has, is its next
life. Who is to submit something else begins anew: pilots that wait for a partition that was a mistake are not what is wanted instead. One
that ends in order leaves no file.

Who is to submit something else is told of those that lie there: they may be meant, as after an upgrade.

The name itself is random, as managers of one name in two state folders may have factories of the same pools.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Final, NamedTuple

from windlass import locks

#: Factories of the same pools for one manager, at a time.
NUMBERS: Final = 100
#: A name has 64 characters at most.
_POOL_MOST: Final = 57
#: What is made up behind the name of a pool.
_MADE_UP: Final = re.compile(r".+-[0-9a-f]{6}")


class Life(NamedTuple):
    """The name of a factory; whether an earlier life had it, which did not end in order; and the file that says so, if there is one."""

    name: str | None
    goes_on: bool = False
    file: Path | None = None

    def end(self) -> None:
        """It has ended in order: what comes next is no life of this one."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.unlink()


def made_up(pool: str) -> str:
    """A name for who has none: ``slurm-6f8282``."""
    return f"{pool[:_POOL_MOST]}-{secrets.token_hex(3)}"


def left_behind(folder: Path) -> list[str]:
    """The names of factories of this manager that did not end in order, and that nobody goes on with."""
    found: list[str] = []
    for path in sorted(folder.glob("*.factory")):
        with contextlib.suppress(OSError):
            name = path.read_text(errors="replace")
            if _MADE_UP.fullmatch(name) and locks.is_free(path):
                found.append(name)
    return found


@contextlib.contextmanager
def steady_name(folder: Path, pool: str, submits: str) -> Generator[Life]:
    """The name of a factory while the block lasts, which has none given.

    ``folder``: the manager's. ``pool``: the first one's name. ``submits``: all that its pools would submit. Without a name where locks
    cannot be had.
    """
    digest = hashlib.blake2b(submits.encode(), digest_size=8).hexdigest()
    paths = [folder / f"{digest}-{number}.factory" for number in range(1, NUMBERS)]
    # A second one beside the first may be the one that was killed.
    for path in [path for path in paths if path.exists()] + paths:
        try:
            descriptor = _locked(path)
        except BlockingIOError:
            continue
        except OSError:
            break
        try:
            yield _life(descriptor, path, pool) or Life(None)
        finally:
            locks.unlock(descriptor)
        return
    yield Life(None)


def _life(descriptor: int, path: Path, pool: str) -> Life | None:
    """What stands in the file; written there, if nothing does. None: it cannot be, as on a full disk."""
    before = os.pread(descriptor, 256, 0).decode(errors="replace")
    if _MADE_UP.fullmatch(before):
        return Life(before, True, path)
    name = made_up(pool)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, name.encode(), 0)
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return Life(name, False, path)


def _locked(path: Path) -> int:
    """Raises `BlockingIOError` where a living factory has it, or has just ended, `OSError` where it cannot be locked.

    The file lies in the manager's folder itself, which goes with a nameless manager: one in a folder below would keep that on NFS, as it
    is open there.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        locks.lock(descriptor)
        if not os.path.samestat(os.stat(path), os.fstat(descriptor)):
            raise FileNotFoundError
    except FileNotFoundError as error:
        locks.unlock(descriptor)
        raise BlockingIOError from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
