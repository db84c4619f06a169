"""Where the objects of a process are kept: a private folder, in memory if there is enough, and what dead processes left of theirs.

Scratch folders of workers have names of the same kind (`folder_name`), and go in the same way when a batch system has killed a worker
together with its guardian.

Theory of operation
-------------------
A folder is named ``windlass-<kind>-<uid>-<boot>-<pid namespace>-<pid>-<start time>-<random>``. That tells, on a file system that
containers or even hosts share, that a folder's owner is a process which this one could see, and that it is gone: only then the folder is
removed. A process that starts itself anew by `os.execv` keeps its number and its time, but not its memory: what it has not made in this
life is of the one before, which is gone too. Everyone who makes a folder looks for such ones first, so that what a killed process leaves
in memory is freed by the next. Anybody may make folders of such names there: only those that belong to this user are looked at.

A link ``windlass-<random>`` to such a folder (`windlass.worker.shortcut`) is of the same process, and goes by the name that it has in it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from windlass.ownership import is_ours

if TYPE_CHECKING:
    from pathlib import Path  # imported where it is needed: a worker that has not said hello yet does without

#: /dev/shm is memory: it is used when it has this much free, and the node twice as much memory available.
_ROOMY: Final = 1 << 30
#: Ends of the names that this life of the process has given. Kept where it is whole when this module is loaded anew.
_given: Final[set[str]] = sys.__dict__.setdefault("_windlass_folders", set[str]())


def default_store_folder(kind: str, scratch: str | os.PathLike[str] | None = None, announce: Callable[[Path], None] | None = None) -> Path:
    """A new private folder for the objects of this process, in memory (/dev/shm) when that is roomy, else on node scratch.

    `kind` is a word such as ``manager`` or ``worker``. `scratch` is where to go when memory is short; by default the batch system's
    own scratch folder. Folders there that dead processes of this user left are removed. `announce` gets each path before it is made,
    so that whoever removes it after a SIGKILL knows of it.
    """
    bases = [os.fspath(scratch) if scratch is not None else _node_scratch()]
    if _shm_is_roomy():
        bases.insert(0, "/dev/shm")
    for base in bases:
        remove_dead_folders(base)
    from pathlib import Path

    for base in bases:
        path = Path(base, folder_name(kind))
        if announce is not None:
            announce(path)
        try:
            path.mkdir(mode=0o700, parents=True)
        except OSError:
            if base == bases[-1]:
                raise
        else:
            return path
    raise AssertionError("unreachable")


def folder_name(kind: str) -> str:
    """A name that nobody can guess for a folder of this process, and that tells when the process is gone."""
    end = os.urandom(8).hex()
    _given.add(end)  # before there is a folder
    return "-".join(("windlass", kind, str(os.getuid()), *_place(), str(os.getpid()), start_time(os.getpid()), end))


def link_name() -> str:
    """A name that nobody can guess for a short link to a folder of this process."""
    return f"windlass-{os.urandom(5).hex()}"


def default_spool_folder(folder: str | os.PathLike[str]) -> Path | None:
    """Where a store in memory may go on, on disk, when it is full (not made yet); None for a store that is on disk already."""
    from pathlib import Path

    # Not the first one's name: everybody can see that, and make a folder of that name on disk before us.
    path = Path(folder)
    return Path(_node_scratch(), folder_name(path.name.split("-")[1])) if path.is_relative_to("/dev/shm") else None


def default_store_limit(folder: str | os.PathLike[str], part: float = 0.25) -> int:
    """Bytes that objects in `folder` may use: half of what is free there now, and if it is memory, a quarter of what is free of that, and
    this part of what this process may have: files there count as a job's memory, which the batch system may hold it to."""
    status = os.statvfs(folder)
    half = status.f_bavail * status.f_frsize // 2
    if not os.fspath(folder).startswith("/dev/shm"):
        return half
    from windlass.worker import memory

    allowed = memory.smallest(map(memory.limit_of, memory.own_cgroups()))
    return min(half, _memory_available() // 4, int(allowed * part) if allowed else half)


def remove_dead_folders(base: str) -> list[str]:
    """Remove folders of this user in `base`, and links to such, whose process is gone; returns them."""
    import shutil

    removed: list[str] = []
    for path, is_link, fields in named_folders(base):
        uid, boot, namespace, pid, start, end = fields
        if uid != str(os.getuid()) or (boot, namespace) != _place():
            continue
        gone = has_ended(pid, start) or (pid == str(os.getpid()) and end not in _given)
        if not gone or not _is_mine(path, stat.S_ISLNK if is_link else stat.S_ISDIR):
            continue
        if is_link:
            with suppress(OSError):
                os.unlink(path)
                removed.append(path)
        else:
            with suppress(RecursionError):  # of a thousand folders in each other, which a call may have left
                shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def named_folders(base: str) -> Iterator[tuple[str, bool, list[str]]]:
    """Each one's path, whether it is a link to one, and what its name tells."""
    try:
        names = os.listdir(base)
    except OSError:
        return
    for name in names:
        path, fields = os.path.join(base, name), name.split("-")
        is_link = len(fields) == 2 and fields[0] == "windlass"
        if is_link:
            try:
                fields = os.path.basename(os.readlink(path)).split("-")
            except OSError:
                continue
        if len(fields) == 8 and fields[0] == "windlass" and fields[5].isascii() and fields[5].isdigit():
            yield path, is_link, fields[2:]


def owner_of(path: str) -> int:
    """The number of the process whose folder this is; 0: it is none that this process could see."""
    fields = os.path.basename(path).split("-")
    here = len(fields) == 8 and fields[0] == "windlass" and (fields[3], fields[4]) == _place()
    return int(fields[5]) if here and fields[5].isdecimal() else 0


def _is_mine(path: str, is_kind: Callable[[int], bool]) -> bool:
    """Something of this kind that belongs to this user: no link in a folder's place."""
    try:
        about = os.lstat(path)
    except OSError:
        return False
    return is_kind(about.st_mode) and is_ours(about)


def _place() -> tuple[str, str]:
    """This boot of this host, and this process-id namespace on it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read(8)
        return boot, str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "unknown", "0"


def start_time(pid: int | str) -> str:
    """When the process started, in ticks since the boot; empty when there is none, or it has ended and nobody has asked for its status."""
    try:
        return _started(pid)
    except (OSError, IndexError):
        return ""


def has_ended(pid: int | str, start: str) -> bool:
    """Whether the process that started then is surely gone: no descriptor or memory left here to look says nothing of it."""
    try:
        return bool(start) and _started(pid) != start
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, IndexError):
        return False


def _started(pid: int | str) -> str:
    """See `start_time`; raises what says that it cannot be read."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    # One whose first thread has ended looks so too, while others of its threads live.
    ended = fields[0] in b"ZX" and len(os.listdir(f"/proc/{pid}/task")) < 2
    return "" if ended else fields[19].decode()


def _node_scratch() -> str:
    for variable in ("SLURM_TMPDIR", "_CONDOR_SCRATCH_DIR", "TMPDIR"):
        folder = os.environ.get(variable)
        if folder and os.path.isdir(folder):
            return folder
    return "/tmp"


def _shm_is_roomy() -> bool:
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return False
    free = status.f_bavail * status.f_frsize
    return free >= _ROOMY and _memory_available() >= 2 * _ROOMY and os.access("/dev/shm", os.W_OK)


def _memory_available() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
