"""What the pools of one factory take off each other's hands: the first named first.

Theory of operation
-------------------
Every pool hears the whole demand.  So that not each of them starts pilots for all of it, a pool counts on what the pools named before it
have promised: pilots that they have in the queue, or are about to submit.  A pool that cannot submit (paused, at a limit, without an answer
from its batch system) promises only what it has, and one whose pilots wait in the queue for long stops promising them
(`PoolConfig.patience`), so the next one steps in.

A pool that has not posted its promise yet is expected to take all that it wants: threads start in no order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from windlass.factory.planner import Promise, wanted_pilots
from windlass.factory.pool import PoolConfig
from windlass.messages import Demand


class Ledger:
    """The promises of a factory's pools, in the order in which they were named. Safe for threads."""

    def __init__(self, pools: Sequence[PoolConfig], changed: Callable[[int], None]) -> None:
        """``changed(index)``: the pool at ``index`` should plan again; called in the thread that posts, and must be quick."""
        self._pools = tuple(pools)
        self._changed = changed
        self._posted: list[Promise | None] = [None] * len(pools)
        self._lock = threading.Lock()

    def post(self, index: int, promise: Promise) -> None:
        """What the pool at ``index`` promises from now on."""
        with self._lock:
            if self._posted[index] == promise:
                return
            self._posted[index] = promise
        for later in range(index + 1, len(self._pools)):
            self._changed(later)

    def before(self, index: int, demand: Demand | None) -> tuple[Promise, ...]:
        """What the pools before the one at ``index`` promise."""
        if demand is None or not index:
            return ()
        with self._lock:
            posted = self._posted[:index]
        promises: list[Promise] = []
        for pool, promise in zip(self._pools, posted, strict=False):
            promises.append(promise or Promise(pool, min(wanted_pilots(demand, pool, promises)[0], pool.max_queued)))
        return tuple(promises)
