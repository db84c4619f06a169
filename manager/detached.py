"""A process that is a manager and nothing else: what ``windlass manager start`` starts, here or in a job.

Theory of operation: it has a `Manager` that stays until it is told to end, a signal says so, or nothing was there for a while.  It never
unpickles and runs no call, so it needs nothing of its programs' environment.  In the background it is the leader of a session of its own
and ignores SIGHUP, so it outlives the terminal and the login that it was started from; in the foreground it ends with its terminal.
"""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Final

from windlass.manager.addresses import choose_address
from windlass.manager.manager import LOOPBACK, Manager
from windlass.messages import HOST
from windlass.signals import Unbuffered, ending_signals, hearing_signals

#: Bytes of the log of a manager in the background; it and one older one are kept.
_LOG_BYTES: Final = 5 << 20
#: What it says to who started it, when it serves.
READY: Final = b"ready\n"


class _BackgroundLog(RotatingFileHandler):
    """The log of a manager in the background, whose stdout and stderr it is as well: what a fatal error says, or a thread's traceback."""

    def doRollover(self) -> None:
        super().doRollover()
        # They would go on in the file that has another name now, and soon in one that is gone.
        with open(self.baseFilename, "ab") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)


def log_file(folder: Path) -> Path:
    """Where a manager in the background writes its log."""
    return folder / "manager.log"


def serve(name: str, port: int, *, listen: str = "", idle_timeout: float = 0.0, ready: int = -1) -> int:
    """Be the manager ``name`` until it ends; the exit status. For the main thread, as it takes signals.

    ``listen``: an interface, a network, an address, or `HOST`; "" listens on loopback until a pool of other machines attaches.
    ``idle_timeout`` in seconds, 0 for ever. ``ready``: a descriptor on which to say that it serves; then it is in the background.
    Raises `UsageError`.
    """
    address = (choose_address(listen) or LOOPBACK) if listen else None
    manager = Manager(port, name, host=address)
    log = logging.getLogger("windlass")
    stderr = Unbuffered(2)
    handler: logging.Handler = logging.StreamHandler(stderr)
    if ready >= 0:
        handler = _BackgroundLog(log_file(manager.connection_file.parent), maxBytes=_LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)

    def told(number: int, frame: FrameType | None) -> None:
        manager.leave(f"signal {signal.Signals(number).name}")

    if ready >= 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The script of a job becomes this process, so what Slurm warns pilots with before the walltime is over comes here.
    for number in (*ending_signals(), signal.SIGUSR1):
        signal.signal(number, told)
    with manager:
        log.info("manager %s serves at port %d as process %d", name, manager.port, os.getpid())
        manager._server.detach(idle_timeout)  # before anybody is told  # pyright: ignore[reportPrivateUsage]
        if ready >= 0:
            os.write(ready, READY)
            os.close(ready)
        else:
            print(f"manager {name} serves at {address or LOOPBACK} port {manager.port}", flush=True)
        reason = hearing_signals(partial(manager.stay, idle_timeout))
        log.info("manager %s ends: %s", name, reason)
        if ready < 0:
            stderr.write(f"manager {name} has ended: {reason}\n")
    return 0


__all__ = ["HOST", "READY", "log_file", "serve"]
