"""The factories that are here, of this process and over connections: what they are told. A part of the manager's shell.

Theory of operation
-------------------
A factory is known by its name and the function that tells it something. It hears the demand when it comes, and then when that has changed,
but for long no faster than the `pace` for so many workers, and so that no more than a tenth of this thread's time goes into it (`SHARE`):
there may be as many different options as calls, and each is looked at. After some quiet `AT_ONCE` messages follow each other sooner: the
first call of a program comes right behind the factory's own offer, and is not to wait for it. But each waits for `GATHER` seconds, so that
calls that a program submits in a loop are one demand, and one command to the batch system.

There is one factory of a name at a time, as two would take each other's pilots for their own: who comes second is refused (`refusal`).
But a later life of a factory takes the place of the earlier one, and may come before it is known that that has gone: one that is cut off
makes way at once, and of one that may be gone with its host, or is stopped, an answer is asked for, while who comes is to ask again. Who
has lost its place is refused when it comes back, and leaves the pilots to the other one. Whoever leaves says which of the two it was.

Everything runs on the manager's loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from windlass.errors import UsageError
from windlass.links import Link
from windlass.manager.core import Core
from windlass.manager.demand import pace
from windlass.messages import Leave, Message, PoolName, Refused, ResumePool

Tell = Callable[[Message], object]

#: Messages of demand that need not wait for each other: the factory's offer, the first call, what starts there.
AT_ONCE: Final = 3
#: Seconds in which a loop submits a thousand calls.
GATHER: Final = 0.005
#: A demand that took so long to find out is followed by so many times as long without one.
SHARE: Final = 10
#: Seconds in which a factory that lives acknowledges what it is told: less than who opens a port waits for its welcome.
ANSWERS_WITHIN: Final = 5.0
#: Seconds after which an answer that was asked for says nothing any more: whoever came then has given up.
ASKED_LATELY: Final = 30.0
#: Seconds between two looks whether it has, for one of this process.
LOOKS_EVERY: Final = 0.05


class _Here(NamedTuple):
    """A factory that is here."""

    tell: Tell
    #: Its connection; None: it is of this process.
    link: Link | None


class _Asked(NamedTuple):
    """One whose name another one would like to have was told something, to see whether it lives."""

    link: Link
    heard: float
    at: float


class Factories:
    """Those of one manager. ``now`` is its clock."""

    def __init__(self, core: Core, now: Callable[[], float]) -> None:
        self._core, self._now = core, now
        #: By name.
        self.here: dict[str, _Here] = {}
        self._asked: dict[str, _Asked] = {}
        #: When all that was told would have been told, had each message kept the pace.
        self._told_until = 0.0
        #: Seconds of this thread's time that the last one took to find out.
        self._took = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self.here)

    def refusal(self, name: str) -> Refused | None:
        """Why a factory of this name that begins may not come now; None: it may, in the place of one that is gone if there was one."""
        here, asked, now = self.here.get(name), self._asked.pop(name, None), self._now()
        if here is None:
            return None
        link = here.link
        if link is not None and not link.connected:
            return None
        where = link.where() if link is not None else "in the manager's own program"
        taken = f"a factory {name!r} is here already{where and ', '}{where}: end that one, or take another name"
        if link is None:
            return Refused(taken)
        if asked is None or asked.link is not link or now - asked.at >= ASKED_LATELY:
            self._asked[name] = _Asked(link, link.last_heard, now)
            here.tell(self._core.demand(now))
        elif link.last_heard > asked.heard:
            return Refused(taken)
        elif now - asked.at >= ANSWERS_WITHIN:
            return None
        else:
            self._asked[name] = asked
        return Refused(f"{taken}; or wait, if it is gone, which is known in a few seconds", retry=True)

    async def make_room(self, name: str) -> None:
        """Wait until one elsewhere that has this name has made way for one of this process. Raises `UsageError` if it lives."""
        while (refused := self.refusal(name)) is not None:
            if not refused.retry:
                raise UsageError(refused.text)
            await asyncio.sleep(LOOKS_EVERY)

    def come(self, name: str, tell: Tell, link: Link | None = None) -> None:
        """A factory is here; ``link``: its connection, unless it is of this process."""
        before = self.here.pop(name, None)
        if before is not None:
            self._core.factory_left(name, self._now())
            if before.link is not None:
                before.link.fail("another factory of this name has taken its place")
        self.here[name] = _Here(tell, link)
        tell(self._core.demand(self._now()))

    def left(self, name: str, tell: Tell | None) -> None:
        """The factory that was told by ``tell`` is gone; another one may have its name by now."""
        here = self.here.get(name)
        if here is not None and here.tell == tell:
            del self.here[name]
            self._core.factory_left(name, self._now())

    def tell_demand(self) -> None:
        """The demand has changed: tell it when it is time."""
        if self._timer is None:
            # Half a one more, as sums of seconds are not exact.
            steady = self._pace()
            wait = min(steady, self._told_until - self._now() - (AT_ONCE - 0.5) * steady)
            self._timer = asyncio.get_running_loop().call_later(max(GATHER, wait), self._tell_now)

    def _tell_now(self) -> None:
        self._timer = None
        now, begun = self._now(), time.thread_time()
        demand = self._core.demand(now)
        self._took = time.thread_time() - begun
        self._told_until = max(self._told_until, now) + self._pace()
        self._tell_all(demand)

    def _pace(self) -> float:
        """Seconds between two messages."""
        return max(pace(len(self._core.workers)), SHARE * self._took)

    def resume(self, pool: PoolName) -> None:
        """Hand a person's word on: those that have the pool know what it means."""
        self._tell_all(ResumePool(pool))

    def leave(self, reason: str) -> None:
        """The manager ends."""
        self._tell_all(Leave(reason))

    def _tell_all(self, message: Message) -> None:
        for here in list(self.here.values()):
            here.tell(message)
