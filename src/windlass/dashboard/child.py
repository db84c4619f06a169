"""A dashboard as a child of the program whose manager it shows: ``Manager(dashboard=True)``, ``manager.dashboard()``.

Theory of operation: the child is ``windlass dashboard`` itself, so that its work is in a process of its own.  Its standard input is a
pipe that this program holds, and it ends when that is closed; its standard output says the address, once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from windlass.errors import Unreachable, UsageError

#: Seconds that it may take to start; a busy login node is slow to import.
START_SECONDS: Final = 60.0
_END_SECONDS: Final = 5.0


def require_installed() -> None:
    """Raises `UsageError` where the dashboard's libraries are not there, or no Python that could run it."""
    if getattr(sys, "frozen", False):
        raise UsageError(f"{sys.executable} is a frozen program, which would be started again instead of a dashboard: leave dashboard= out")
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the dashboard needs {' and '.join(missing)}: pip install {' '.join(missing)}")


class Child:
    """A running dashboard. ``say``: it prints its address to standard error itself."""

    def __init__(self, connection_file: Path, *, say: bool = False) -> None:
        require_installed()
        # -P: what lies in the program's folder (a secrets.py, say) is not to stand for the library's modules.
        words = [sys.executable, "-P", "-m", "windlass.cli", "dashboard", str(connection_file), "--child", "say" if say else "quiet"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._told = b""

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def address(self, timeout: float = START_SECONDS) -> str:
        """Where it is, with its token, when it serves. Raises `Unreachable`."""
        out, end = self._process.stdout, time.monotonic() + timeout
        assert out is not None
        looks = select.poll()  # select knows no descriptors from 1024 on, and managers have thousands
        looks.register(out, select.POLLIN)
        while b"\n" not in self._told:
            if not looks.poll(1000 * max(0.0, end - time.monotonic())):
                raise Unreachable(f"the dashboard did not start within {timeout:g} s")
            piece = os.read(out.fileno(), 65536)
            if not piece:
                raise Unreachable("the dashboard ended as it started; what it said is on standard error")
            self._told += piece
        return str(json.loads(self._told.partition(b"\n")[0])["url"])

    def close(self) -> None:
        """End it."""
        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
