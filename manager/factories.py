"""The factories that are here, of this process and over connections: what they are told. A part of the manager's shell.

Theory of operation
-------------------
A factory is known by its name and the function that tells it something. It hears the demand when it comes, and then when that has changed,
but for long no faster than the `pace` for so many workers. After some quiet `AT_ONCE` messages follow each other sooner: the first
call of a program comes right behind the factory's own offer, and is not to wait for it. But each waits for `GATHER` seconds, so that calls
that a program submits in a loop are one demand, and one command to the batch system. A later life of a factory may be here before it is
known that the earlier one has gone, so whoever leaves says which of the two it was.

Everything runs on the manager's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from windlass.manager.core import Core
from windlass.manager.demand import pace
from windlass.messages import Leave, Message, PoolName, ResumePool

Tell = Callable[[Message], object]

#: Messages of demand that need not wait for each other: the factory's offer, the first call, what starts there.
AT_ONCE: Final = 3
#: Seconds in which a loop submits a thousand calls.
GATHER: Final = 0.005


class Factories:
    """Those of one manager. ``now`` is its clock."""

    def __init__(self, core: Core, now: Callable[[], float]) -> None:
        self._core, self._now = core, now
        #: By name, what tells each something.
        self.here: dict[str, Tell] = {}
        #: When all that was told would have been told, had each message kept the pace.
        self._told_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self.here)

    def come(self, name: str, tell: Tell) -> None:
        """A factory is here."""
        if name in self.here:
            self._core.factory_left(name, self._now())
        self.here[name] = tell
        tell(self._core.demand(self._now()))

    def left(self, name: str, tell: Tell | None) -> None:
        """The factory that was told by ``tell`` is gone; another one may have its name by now."""
        if self.here.get(name) == tell:
            del self.here[name]
            self._core.factory_left(name, self._now())

    def tell_demand(self) -> None:
        """The demand has changed: tell it when it is time."""
        if self._timer is None:
            # Half a one more, as sums of seconds are not exact.
            steady = pace(len(self._core.workers))
            wait = min(steady, self._told_until - self._now() - (AT_ONCE - 0.5) * steady)
            self._timer = asyncio.get_running_loop().call_later(max(GATHER, wait), self._tell_now)

    def _tell_now(self) -> None:
        self._timer = None
        now = self._now()
        self._told_until = max(self._told_until, now) + pace(len(self._core.workers))
        self._tell_all(self._core.demand(now))

    def resume(self, pool: PoolName) -> None:
        """Hand a person's word on: those that have the pool know what it means."""
        self._tell_all(ResumePool(pool))

    def leave(self, reason: str) -> None:
        """The manager ends."""
        self._tell_all(Leave(reason))

    def _tell_all(self, message: Message) -> None:
        for tell in list(self.here.values()):
            tell(message)
