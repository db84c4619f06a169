"""``async with`` of what is left by a wait: the event loop goes on meanwhile.

Theory of operation
-------------------
To leave an executor's block is to wait for its calls, and to leave a factory's is to wait for its pilots; a ``with`` does that in the
thread that leaves, and an asyncio program would stand still. So ``async with`` leaves in a thread of its own. (Not one of the loop's
executor: those may all be taken by what waits for calls.)

A task that is cancelled while it waits there, as Ctrl-C does it to the main task, hurries: what a Ctrl-C in that wait does, cancelling
calls for instance, is done, and then it is waited for the end, which is near. Cancelled once more it goes, and the thread goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    import asyncio


class LeavesInThread:
    """Has ``async with`` for a class that has ``with``."""

    async def __aenter__(self) -> Self:
        return cast("Self", cast("Any", self).__enter__())

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        import asyncio

        left = in_thread(partial(cast("Any", self).__exit__, kind, error, traceback))
        try:
            await asyncio.shield(left)
        except asyncio.CancelledError:
            if not left.done():
                await in_thread(self._hurry)
                await left
            raise

    def _hurry(self) -> None:
        """The wait for the end was interrupted."""


def in_thread(work: Callable[[], object]) -> asyncio.Future[None]:
    """Do it in a thread of its own, for which the program's end waits; done when it has ended, with its exception if it raised one."""
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
        try:
            loop.call_soon_threadsafe(tell, failed)
        except RuntimeError:
            pass  # the loop has been closed

    threading.Thread(target=run, name="windlass-leaving", daemon=False).start()
    return done
