"""Managers, factories and executors made at the wrong time: where a worker imports a module that makes one, and after a program's end.

Theory of operation
-------------------
The processes of a library import the modules that its functions need, and each of them would have a manager and pilots of its own, whose
processes import the module too. In functions they are welcome, those that calls run included; so what counts is whether the code that
makes one is at the top of a module, and that module is being imported. The interpreter knows: its spec says so.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType

from windlass.errors import Closed, UsageError
from windlass.worker.slot_api import STATE


def refuse_on_import(what: str) -> None:
    """Raises `UsageError` in a worker's process, while it imports a module whose top makes ``what``."""
    if STATE.rows is None:
        return
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # it is documented
    while frame is not None:
        if frame.f_code.co_name == "<module>" and getattr(frame.f_globals.get("__spec__"), "_initializing", False):
            raise UsageError(
                f"module {frame.f_globals.get('__name__')!r} makes {what} when it is imported, and workers import it too: each of their"
                " processes would have one, with pilots of its own; make it in a function, or below: if __name__ == '__main__':"
            )
        frame = frame.f_back


def refuse_too_late(what: str, error: RuntimeError) -> None:
    """Raises `Closed` where ``what`` could not begin as the main thread has ended: Python then begins and imports little."""
    if not threading.main_thread().is_alive():
        raise Closed(
            f"the program's main thread has ended, and no {what} can begin then: make it earlier, or let the script wait at its end "
            "for the thread that makes it: thread.join()"
        ) from error
