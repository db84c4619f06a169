"""What a pool's pilots have left behind: processes, and folders on this machine.

Theory of operation
-------------------
Pilots have a mark in their environment, which all that they start inherits, whatever becomes of its parents.  Folders of Windlass in
/dev/shm and in the place for temporary files have the process in their names whose they are (`windlass.store_folders`), and links to such
folders lead to that name; those of this process and of pilots count, so that tests that run beside one another see only their own.  Pilots
have a folder for temporary files to themselves, which has to be empty at the end.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import psutil

from windlass.store_folders import named_folders

VARIABLE: Final = "WINDLASS_TESTING"
#: Seconds that all has to end in. What ends in order takes a fraction of one.
END_SECONDS: Final = 10.0
_SHM: Final = "/dev/shm"


class Leftovers:
    """``scratch`` is the pilots' folder for temporary files."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.mark = uuid.uuid4().hex
        self._places = (_SHM, tempfile.gettempdir())
        self._before = self._folders()

    @property
    def env(self) -> tuple[tuple[str, str], ...]:
        """What pilots have in their environment."""
        return (VARIABLE, self.mark), ("TMPDIR", str(self.scratch))

    def processes(self) -> list[psutil.Process]:
        """Those with the mark that run."""
        wanted = f"{VARIABLE}={self.mark}".encode()
        found: list[psutil.Process] = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    with open(f"{entry.path}/environ", "rb") as file:
                        marked = wanted in file.read().split(b"\0")
                    if marked and (process := psutil.Process(int(entry.name))).status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
                except (OSError, psutil.NoSuchProcess):
                    continue  # it has ended meanwhile, or is another user's
        return found

    def wait(self, pids: Collection[int], seconds: float = END_SECONDS) -> list[str]:
        """Wait for the end of all; then the processes that are still there, which are killed, and the folders, which are not removed.

        ``pids``: of all pilots that there were.
        """
        wait_until(lambda: not self.processes() and not self._files(pids), seconds)
        left: list[str] = []
        for process in self.processes():
            try:
                left.append(f"process {process.pid}: {' '.join(process.cmdline())[:200]}")
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return left + [f"folder {path}" for path in self._files(pids)]

    def _files(self, pids: Collection[int]) -> list[str]:
        own = {str(pid) for pid in (os.getpid(), *pids)}
        new = [path for path, pid in self._folders() - self._before if pid in own]
        try:
            return sorted(new) + sorted(entry.path for entry in os.scandir(self.scratch))
        except OSError:
            return sorted(new)

    def _folders(self) -> set[tuple[str, str]]:
        """Each with the process that its name tells."""
        return {(path, fields[3]) for place in self._places for path, _, fields in named_folders(place)}


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Ask again until it is so; False: it was not within ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
