"""What a factory is called that was given no name, so that its next life is called the same and finds its pilots.

Theory of operation
-------------------
Pilots carry the names of their factory and manager in the batch system, and outlive a factory that is killed: one of the same name takes
them over. So a factory that is a process of its own is called by its pools. Two at a time would take each other's pilots for their own,
therefore each holds a lock of its name, in the manager's folder, as long as its process lives; who finds it taken adds a number.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

from windlass import locks

#: Characters of a name made of pools: room for a number, and for the name of a pool behind it.
MOST: Final = 48
#: Factories of the same pools for one manager.
NUMBERS: Final = 100


def pools_name(pools: Sequence[str]) -> str:
    """``short-gpu``; of many pools, or long names, the first letters and what tells them apart."""
    name = "-".join(pools)
    return name if len(name) <= MOST else f"{name[: MOST - 9]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


@contextlib.contextmanager
def steady_name(folder: Path, pools: Sequence[str], given: str | None = None) -> Generator[str | None]:
    """The name of a factory of these pools while the block lasts: ``given``, which is one, or the first that no living factory has.

    ``folder``: the manager's. None: locks cannot be had there.
    """
    names = [given] if given is not None else [pools_name(pools) + (f"-{number}" if number > 1 else "") for number in range(1, NUMBERS)]
    for name in names:
        try:
            descriptor = _locked(folder / f"{name}.factory")
        except BlockingIOError:
            continue
        except OSError:
            break
        try:
            yield name
        finally:
            locks.unlock(descriptor)
        return
    # One that was given holds whoever has it: to take over from a life that is about to end is what it is given for.
    yield given


def _locked(path: Path) -> int:
    """Raises `BlockingIOError` where a living factory has it, `OSError` where it cannot be locked.

    The file lies in the manager's folder itself, which goes with a nameless manager: one in a folder below would keep that on NFS, as it
    is open there.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        locks.lock(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
