"""The event loop of a slot that runs one call at a time: an async function runs on it to its end.

One loop for the life of the slot, so that what a context or an earlier call has bound to it (a session, a pool of connections) stays of
use.  Between calls it stands still; tasks that a call has left are therefore cancelled at its end, as `asyncio.run` does it. Those of the
context go on in each call.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

#: The loop, and the process that it is of: a fork must not share it.
_loop: tuple[asyncio.AbstractEventLoop, int] | None = None


def to_its_end(function: Callable[..., Any], *, keep_tasks: bool = False) -> Callable[..., Any]:
    """The same as a plain function. ``keep_tasks``: what it leaves on the loop is to stay."""

    def run(*args: Any, **kwargs: Any) -> Any:
        loop = own_loop()
        before = asyncio.all_tasks(loop)
        main = asyncio.ensure_future(function(*args, **kwargs), loop=loop)
        try:
            return loop.run_until_complete(main)
        finally:
            left = set[Any]() if keep_tasks else asyncio.all_tasks(loop) - before
            if left:
                for task in left:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    return run


def own_loop() -> asyncio.AbstractEventLoop:
    """This process's loop."""
    global _loop
    if _loop is None or _loop[1] != os.getpid() or _loop[0].is_closed():
        _loop = asyncio.new_event_loop(), os.getpid()
        asyncio.set_event_loop(_loop[0])
    return _loop[0]
