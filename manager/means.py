"""What attached programs are told of what there is to run calls with: how exactly, and how often.

Theory of operation
-------------------
Programs refuse what can never run, and ask how many calls more would be used.  What there is may be something else in each turn of the
manager's timer: how many calls may wait at a worker follows from what its calls take, and pilots come one after the other.  So all
programs are told the same, which is near enough, after a pace that leaves the manager its time for calls.

Room for calls is told when it differs by a part in `CLOSE`.  Workers are told as kinds, each once: no two nodes need have the same memory
to the byte, so where there are many kinds it is rounded up, by at most 3 %.  What programs let pass that can never run, the core ends.

A core: who is to be told is the shell's to know.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from windlass.manager.books import Books
from windlass.manager.demand import pace
from windlass.manager.kinds import round_up
from windlass.messages import Means, Resources

#: Seconds that programs go without news, for each of them: to tell one takes a tenth of that.
PACE_PER_PROGRAM: Final = 1e-3
#: Room that differs by less than one in so many is the same.
CLOSE: Final = 5
#: So many kinds of workers are told as they are.
EXACT_MOST: Final = 100


class ToldMeans:
    """What all attached programs were told last: ``last``."""

    def __init__(self, books: Books) -> None:
        self.last = Means(0, 0)
        self._books = books
        #: The version of `Books.means` that it was made of.
        self._of = 0
        self._not_before = 0.0

    def news(self, programs: int, now: float) -> Means | None:
        """What all of them, so many, are to be told; None: nothing yet."""
        if now < self._not_before:
            return None
        books, last = self._books, self.last
        self._not_before = now + pace(len(books.workers)) + PACE_PER_PROGRAM * programs
        known = there = last.offers, last.workers
        if self._of != books.means:
            self._of = books.means
            there = books.all_offers(), _kinds_among(books.shapes)
        capacity = sum(state.capacity() for state in books.libraries.values())
        if there == known and CLOSE * abs(capacity - last.capacity) < max(1, last.capacity):
            return None
        self.last = Means(capacity, last.version + (there != known), *there)
        return self.last


def _kinds_among(shapes: Collection[Resources]) -> tuple[Resources, ...]:
    """What workers have, in an order that does not tell who came first."""
    if len(shapes) > EXACT_MOST:
        shapes = {Resources(of.cores, int(round_up(of.memory)), of.gpus) for of in shapes}
    return tuple(sorted(shapes, key=lambda of: (of.cores, of.memory, of.gpus)))
