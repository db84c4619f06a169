"""The GPUs of a worker: which of them a slot has, so that no two slots have the same one.

Theory of operation
-------------------
The manager lends GPUs to instances by number: it knows how many slots each is to have, but not which of them run its calls. When an
instance loses slots its idle ones go, and only here is known which GPUs those had. So the ids that the manager names are those that there
are, and a wish; what binds is how many. A slot has its GPUs from the wish for its process until that has been reaped, and a slot that finds
too few waits for those of others: for slots that are to leave after their calls, for processes that are just ending, for calls that run on
from an earlier life of the manager. As the numbers that the manager gives out are never more than there are, what is waited for comes.

There is one table for all instances of a worker, whichever session they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Gpus:
    """Which GPUs there are, and which of them are taken."""

    def __init__(self) -> None:
        #: By id, in the order in which they were named: whether a slot has it.
        self._taken: dict[str, bool] = {}
        self._waiting: dict[Callable[[], object], None] = {}

    def learn(self, ids: Iterable[str]) -> None:
        """These are there."""
        for gpu in ids:
            self._taken.setdefault(gpu, False)

    def take(self, count: int, wished: Iterable[str], when_free: Callable[[], object]) -> tuple[str, ...] | None:
        """So many that nobody has, of those ``wished`` if they can be had. None: there are not enough; then ``when_free`` is called once,
        when some are given back, and must not take any before it has returned."""
        wishes = frozenset(wished)
        free = sorted((gpu for gpu, taken in self._taken.items() if not taken), key=lambda gpu: gpu not in wishes)
        if len(free) < count:
            self._waiting[when_free] = None
            return None
        chosen = tuple(free[:count])
        self._taken.update(dict.fromkeys(chosen, True))
        return chosen

    def give_back(self, ids: Iterable[str]) -> None:
        """The slot that had these is gone."""
        freed = dict.fromkeys(ids, False)
        self._taken.update(freed)
        if freed:
            waiting, self._waiting = self._waiting, {}
            for when_free in waiting:
                when_free()

    def forget(self, when_free: Callable[[], object]) -> None:
        """Whoever is called by this waits no more."""
        self._waiting.pop(when_free, None)
