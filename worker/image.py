"""The image that a worker runs in, where processes serve it: whether it is still there, and who is left when Apptainer was killed.

Theory of operation
-------------------
Without its setuid part Apptainer mounts an image file by FUSE: a process of its own (``squashfuse_ll``), a child of the process that is
also the worker's parent, answers for each file.  It is of the job, but in a process group of its own, and nobody has told it who it works
for.  So two things happen to it that do not happen to the worker:

* A batch system that sends a signal to every process of a job ends it at once, while the worker drains.  Then nothing of the image that
  is not in memory can be read any more (ENOTCONN), for good, and calls fail that would not fail elsewhere.  Such a failure is not the
  call's: the worker asks `gone` before it tells of one, and leaves instead, so that the calls run elsewhere.
* When Apptainer is killed, the kernel kills the worker and not this process, which stays for ever.  The guardian remembers its
  siblings (`Servers`) and ends them when their parent is gone.

This is loaded by the guardian, so it loads nothing."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping
from typing import Final

#: What Apptainer and Singularity call the process that stays as the worker's parent.
STARTERS: Final = frozenset({"starter", "starter-suid"})
#: What each image has: it is what starts the worker there.
SHELL: Final = "/bin/sh"
#: What a filesystem says whose server has gone. EIO is not among them: a network filesystem below the image may say that once.
GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV})
#: Apptainer unmounts and ends what it has started when the worker has ended; it gets so many seconds.
PATIENCE_SECONDS: Final = 10.0


def gone(environ: Mapping[str, str], path: str = SHELL) -> bool:
    """Whether this process runs in an image that nobody serves any more.

    Opens a file, as the kernel answers for what has been looked at before. Microseconds; outside of images none.
    """
    if not environ.get("WINDLASS_CONTAINER"):
        return False
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in GONE
    return False


class Servers:
    """The processes that whoever has started ``worker`` started beside it, and that one itself."""

    def __init__(self, worker: int) -> None:
        """Look now. A worker is its parent's last child, so what serves its image is there already."""
        processes = _processes()
        starter = processes[worker][0] if worker in processes else 0
        #: Pid and start time of each, as a pid may be another's later. None: the parent is something else, or is not to be seen.
        self.starter = (starter, processes[starter][1]) if starter in processes and _name(starter) in STARTERS else None
        self.pids = {
            pid: began for pid, (parent, began) in processes.items() if self.starter is not None and parent == starter and pid != worker
        }

    def end(self, patience: float = PATIENCE_SECONDS) -> int:
        """End those that are left when the one who has started them is gone; how many. While that one lives, it sees to them."""
        if self.starter is None or not self.pids:
            return 0
        until = time.monotonic() + patience
        while _began(self.starter[0]) == self.starter[1]:
            if time.monotonic() >= until:
                return 0
            time.sleep(0.02)
        ended = 0
        for pid, began in self.pids.items():
            if _began(pid) == began:
                try:
                    os.kill(pid, signal.SIGKILL)
                    ended += 1
                except (ProcessLookupError, PermissionError):
                    pass
        return ended


def _stat(pid: int | str) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on; empty: it is gone, or only a zombie is left."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return []
    return [] if fields[0] in b"ZX" else fields


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _began(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if fields else -1


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and start time of each process that is to be seen."""
    found: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(name)):
            found[int(name)] = (int(fields[1]), int(fields[19]))
    return found
