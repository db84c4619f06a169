"""Calls that run on when their manager was killed and started again.

Theory of operation
-------------------
A manager with a journal says so in its Welcome (``adopts``), and its calls have keys, by which its next life knows them.  When a worker is
welcomed with another session by such a manager, what it runs goes on with the instances that it has, as *orphans*: nothing is
fed to them any more, the manager hears which they are (`OrphansHeld`) and how they end (`OrphansEnded`), and counts the cores and GPUs
that they occupy as not there; those that nobody wants any more it has ended (`EndOrphans`).  Beside them the worker serves the new session
with new instances; idle slots of the old ones leave at once, as the new ones wait for their GPUs.

That manager may die too: the next one hears of all that run on, whichever life they began in.  A call that will not end after all, as its
slot died for another's sake, is told as one that did not return, so that it is run again.

Ends that the manager may never have heard (they were on their way when it died) are told again in the same way (`ends_to_tell_again`).
Large results are put to the new manager as they would have been to the old one.  Which of the two has got one nobody knows here, as data
has connections of its own, which may have found the new manager before it welcomed the worker: so the new one hears of all, and what it
does not have it has made again.

When the last one has ended, everything that was theirs is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any

from windlass.framing import batches
from windlass.messages import (
    CANCELLED,
    RETURNED,
    CallEnd,
    CallId,
    CallsEnded,
    FileRef,
    HeldCall,
    Message,
    ObjectName,
    ObjectRef,
    OrphansEnded,
    OrphansHeld,
    Resources,
)
from windlass.worker.backlog import Backlog
from windlass.worker.libraries import Libraries
from windlass.worker.outbox import ENDS_BYTES
from windlass.worker.transfers import Transfers


def ends_to_tell_again(unheard: Sequence[Message]) -> list[list[CallEnd]]:
    """Of what an earlier life of the manager may not have heard: results that a later one can take, a list for each message."""
    ended = [end for message in unheard if isinstance(message, CallsEnded | OrphansEnded) for end in message.ends]
    found = [end for end in ended if end.key and end.outcome == RETURNED and not end.kept and not end.outputs]
    return list(batches(found, lambda end: end.about_bytes, ENDS_BYTES))


class Orphans:
    """The calls of one earlier session that still run: the `windlass.worker.lines.Comm` of its backlog. ``over`` comes after the last."""

    def __init__(
        self,
        backlog: Backlog,
        libraries: Libraries,
        transfers: Transfers,
        watching: asyncio.Task[Any] | None,
        say: Callable[[Message], None],
        over: Callable[[Orphans], None],
    ) -> None:
        self.backlog, self.libraries = backlog, libraries
        self._transfers, self._watching, self._say, self._over = transfers, watching, say, over
        #: Keys of those whose ends are not told, in order, and of those that run, by call and attempt.
        self._keys: dict[bytes, None] = {}
        self._key_of: dict[tuple[CallId, int], bytes] = {}
        libraries.go_on_alone()
        running = backlog.go_over_to(self)
        libraries.let_idle_go()
        self._key_of = {(call.call, call.attempt): call.key for call in running if call.key}
        self._keys = dict.fromkeys([*self._key_of.values(), *(end.key for end in transfers.waiting_ends if end.key)])
        # Nobody will ask for these.
        backlog.cancel([HeldCall(call.call, call.attempt) for call in running if not call.key])

    def begin(self, unheard: Sequence[Message]) -> None:
        """Tell the new manager; ``unheard``: what the old one may not have heard."""
        again = ends_to_tell_again(unheard)
        # Until a large one is copied the call is not to be run.
        self._say(OrphansHeld([*self._keys, *(end.key for ends in again for end in ends if end.spans)], ends=True))
        for ends in again:
            self._say(OrphansEnded(ends))
        self._look()

    def begin_again(self) -> None:
        """Tell a manager that has come after the one that was told."""
        if self._keys:
            self._say(OrphansHeld(list(self._keys), ends=True))

    def end(self, keys: Collection[bytes]) -> None:
        """The manager does not want these to run on."""
        self.backlog.cancel([HeldCall(call.call, call.attempt) for call in self.backlog.calls() if call.key in keys])

    @property
    def held(self) -> int:
        """Calls whose ends have not been told."""
        return self.backlog.held + self._transfers.pushing

    @property
    def occupied(self) -> Resources:
        """Cores and GPUs that they occupy now."""
        return self.libraries.occupied_by(call for call in self.backlog.calls() if call.key)

    async def close(self) -> None:
        """End them, with all that was theirs."""
        if self._watching is not None:
            self._watching.cancel()
        await self.libraries.close(0.0)
        await self._transfers.close()

    def _look(self) -> None:
        if not self.held:
            self._over(self)

    def tell(self, end: CallEnd) -> None:
        """One has ended, and what its result needs is at the manager."""
        self._keys.pop(end.key, None)
        if end.key:
            self._say(OrphansEnded([end]))
        # The transfer that told it counts until this turn of the loop is over.
        asyncio.get_running_loop().call_soon(self._look)

    # ------------------------------------------------------------ what the backlog says

    def ended(self, ends: list[CallEnd], /) -> None:
        for end in ends:
            if end.outcome == RETURNED and end.spans and not end.kept:
                self._transfers.push(end, self.tell)
            else:
                self.tell(end)

    def returned(self, calls: tuple[HeldCall, ...], reason: str, /) -> None:
        # Those that had not started are not told of: nobody has heard of them.
        for one in calls:
            self.tell(CallEnd(one.call, one.attempt, CANCELLED, key=self._key_of.get((one.call, one.attempt), b"")))

    def lacks_room(self, refs: Sequence[ObjectRef], /) -> str:
        return self._transfers.lacks_room(refs)

    def hold(self, refs: Sequence[ObjectRef], /) -> list[ObjectName]:
        return self._transfers.hold(refs)

    def release(self, refs: Sequence[ObjectRef], /) -> None:
        self._transfers.release(refs)

    def hold_files(self, refs: Sequence[FileRef], /) -> Sequence[str]:
        return []

    def release_files(self, refs: Sequence[FileRef], /) -> None:
        """Their files were let go with the session; what runs has them open, or reads them as long as there is room."""


class EarlierLives:
    """All orphans of a worker. ``changed`` is called when some of them are over."""

    def __init__(
        self, say: Callable[[Message], None], spawn: Callable[[Coroutine[Any, Any, None]], object], changed: Callable[[], None]
    ) -> None:
        self._say, self._spawn, self._changed = say, spawn, changed
        self._all: list[Orphans] = []

    def add(
        self,
        backlog: Backlog,
        libraries: Libraries,
        transfers: Transfers,
        watching: asyncio.Task[Any] | None,
        unheard: Sequence[Message],
    ) -> None:
        """A new session has begun: these parts were the old one's."""
        for one in self._all:
            one.begin_again()
        orphans = Orphans(backlog, libraries, transfers, watching, self._say, self._over)
        self._all.append(orphans)
        orphans.begin(unheard)

    @property
    def occupied(self) -> Resources:
        """Cores and GPUs that they occupy."""
        each = [one.occupied for one in self._all]
        return Resources(sum(one.cores for one in each), 0, sum(one.gpus for one in each))

    @property
    def held(self) -> int:
        """Calls whose ends have not been told."""
        return sum(one.held for one in self._all)

    def end(self, keys: Iterable[bytes]) -> None:
        """Those of them that run with these keys are not wanted any more."""
        unwanted = frozenset(keys)
        for one in list(self._all):
            one.end(unwanted)

    @property
    def sweeping(self) -> bool:
        """`sweep` has something to watch."""
        return any(one.backlog.sweeping for one in self._all)

    def sweep(self, now: float) -> None:
        """As `Backlog.sweep`."""
        for one in self._all:
            one.backlog.sweep(now)

    def trim_captures(self) -> None:
        """As `Libraries.trim_captures`."""
        for one in self._all:
            one.libraries.trim_captures()

    def tell_end(self, ends_at: float, warned: bool) -> None:
        """As `Libraries.tell_end`."""
        for one in self._all:
            one.libraries.tell_end(ends_at, warned)

    def tell(self, of: Backlog, end: CallEnd) -> None:
        """A result of a call of this backlog is at the manager."""
        for one in self._all:
            if one.backlog is of:
                one.tell(end)

    async def close(self) -> None:
        """End them all."""
        await asyncio.gather(*(one.close() for one in self._all))

    def _over(self, orphans: Orphans) -> None:
        if orphans in self._all:
            self._all.remove(orphans)
            self._spawn(orphans.close())
            self._changed()
