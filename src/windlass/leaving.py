"""``async with`` of what is left by a wait: the event loop goes on meanwhile.

Theory of operation
-------------------
To leave an executor's block is to wait for its calls, and to leave a factory's is to wait for its pilots; a ``with`` does that in the
thread that leaves, and an asyncio program would stand still. So ``async with`` leaves in a thread of its own. (Not one of the loop's
executor: those may all be taken by what waits for calls.)

A task that is cancelled while it waits there, as Ctrl-C does it to the main task, hurries: what a Ctrl-C in that wait does, cancelling
calls for instance, is done, and then it is waited for the end, which is near. Cancelled once more it goes, and the thread goes on.

The program may end before the thread: where the loop was left by a Ctrl-C, for instance, of which it had told no task. Then the program's
end waits for the thread, which is a daemon so that it is we who wait, and not the interpreter without a word; a Ctrl-C hurries.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from windlass.interrupted import ends_by_interrupt
from windlass.prompts import ends_by_ctrl_c, in_notebook

if TYPE_CHECKING:
    import asyncio


log = logging.getLogger(__name__)

#: Seconds after which the program's end says what it waits for.
TELL_AFTER: Final = 2.0


class LeavesInThread:
    """Has ``async with`` for a class that has ``with``."""

    async def __aenter__(self) -> Self:
        return cast("Self", cast("Any", self).__enter__())

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        import asyncio

        left = leave_in_thread(partial(cast("Any", self).__exit__, kind, error, traceback), self._hurry)
        try:
            await asyncio.shield(left)
        except asyncio.CancelledError:
            if not left.done():
                await leave_in_thread(self._hurry)
            await left
            raise

    def _hurry(self) -> None:
        """The wait for the end was interrupted."""


def leave_in_thread(work: Callable[[], object], hurry: Callable[[], object] = lambda: None) -> asyncio.Future[None]:
    """Do it in a thread of its own, or here where none can be had; done when it has ended, with its exception if it raised one.

    The program's end waits for it, and calls ``hurry`` at a Ctrl-C.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():  # nobody waits for it any more
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failed: BaseException | None = None
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is told there
            failed = error
        finally:
            _running.pop(thread, None)
        try:
            loop.call_soon_threadsafe(tell, failed)
        except RuntimeError:
            pass  # the loop has been closed

    thread = threading.Thread(target=run, name="windlass-leaving", daemon=True)
    # The last that is registered runs first: before what is being left is closed under it.
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)
    _running[thread] = hurry
    try:
        thread.start()
    except RuntimeError:  # a login node allows few
        run()
    return done


#: Threads that leave, and what hurries them.
_running: dict[threading.Thread, Callable[[], object]] = {}
os.register_at_fork(after_in_child=_running.clear)


def _at_exit() -> None:
    """The program ends: wait for what is being left."""
    running = dict(_running)
    if in_notebook():  # nobody can wait here
        _hurry(running)
        return
    if ends_by_ctrl_c():
        _hurry(running)
    try:
        tell_at = time.monotonic() + TELL_AFTER
        for thread in running:
            thread.join(max(0.0, tell_at - time.monotonic()))
        if any(thread.is_alive() for thread in running):
            log.warning("the program ends while an `async with` of it is being left, and waits for that: Ctrl-C cancels what has not ended")
        for thread in running:
            thread.join()
    except KeyboardInterrupt:
        ends_by_interrupt()
        _hurry(running)
        for thread in running:
            thread.join()


def _hurry(running: dict[threading.Thread, Callable[[], object]]) -> None:
    for thread, hurry in running.items():
        if thread.is_alive():
            hurry()
