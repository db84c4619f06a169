"""The way from the program's threads to the manager's loop, inside one process.

Theory of operation
-------------------
Any thread may `Inbox.put`; one thread, the loop's, may `Inbox.drain`. ``wake`` makes the loop drain soon (it is
``loop.call_soon_threadsafe`` or the like, which writes to a pipe and costs several microseconds), so it is called once for all that
is put between two drains. There is no lock: two deques are used, whose ``append``, ``pop`` and ``popleft`` are atomic.

``_token`` holds one token while no wake-up is under way. ``put`` appends its item and *then* takes the token; who gets it calls
``wake``. ``drain`` puts the token back and *then* takes the items.

*Nothing is lost.* Take a ``put`` whose ``wake`` was not called: it found no token. So another ``put`` had taken it, and no
``drain`` had put it back yet. That other ``put`` calls ``wake``, so a ``drain`` is still to put the token back, after our look at
the token, hence after our item was appended; it takes items after that, and so takes ours.

*At most one wake-up per drain.* Each ``wake`` needs the token, there is at most one (only ``drain`` adds it, and only when it is
absent; others only remove it), and only a ``drain`` brings it back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Final, Generic, TypeVar, cast

from windlass.messages import CallId, CancelSubmitted, EndsRead, Message, ReleaseObjects

T = TypeVar("T")

#: Said of one thing each by futures that are cancelled or dropped, many at a time.
_OF_MANY: Final = (CancelSubmitted, ReleaseObjects)
#: Things that one message has at most, lest it fill a frame.
_MOST: Final = 10_000


class Tidy(Message, frozen=True):
    """The client to itself, by way of the thread that drains its inbox: do what finalisers have left (`Client.later`)."""


class Inbox(Generic[T]):
    """Hands items from any thread to one, in order for each thread, waking that one once per drain."""

    __slots__ = ("_items", "_token", "_wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        """``wake`` makes the draining thread call `drain` soon; it is called in the thread that puts, must not block, may raise."""
        self._items: deque[T] = deque()
        self._token: deque[None] = deque((None,))
        self._wake = wake

    def put(self, item: T) -> None:
        """Append an item and see that it is drained. From any thread. Raises what ``wake`` raises; the item then stays in."""
        self._items.append(item)
        if self._token:
            self._rouse()

    def put_all(self, items: Iterable[T]) -> None:
        """Append several items, one wake-up at most. Other threads' items may come between them."""
        self._items.extend(items)
        if self._token:
            self._rouse()

    def _rouse(self) -> None:
        try:
            self._token.pop()
        except IndexError:
            return  # another thread took it between our look and our hand: it wakes
        try:
            self._wake()
        except BaseException:
            # No drain will come of this wake-up; the next put must try again.
            self._token.append(None)
            raise

    def drain(self) -> list[T]:
        """Take all that is there, oldest first. From the one draining thread only."""
        if not self._token:
            self._token.append(None)
        items = self._items
        take = items.popleft
        return [take() for _ in range(len(items))]

    def __len__(self) -> int:
        return len(self._items)


def joined(items: Iterable[Any]) -> Iterator[Any]:
    """Items of a program's inbox, with what was said of one call or object after the other as one message: whoever hears it, the worker
    that holds the calls above all, looks through what it has once for each. What was read comes last: it is said between the others, of
    calls that are cancelled, and nothing waits for it."""
    run: list[tuple[Any, Any]] = []
    read: list[CallId] = []
    for item in items:
        source, message = cast("tuple[Any, Any]", item) if type(item) is tuple else (None, None)
        if type(message) is EndsRead:
            read += message.calls
            continue
        if run and (type(message) is not type(run[0][1]) or source != run[0][0] or len(run) == _MOST):
            yield _in_one(run)
            run = []
        if isinstance(message, _OF_MANY):
            run.append((source, message))
        else:
            yield item
    if run:
        yield _in_one(run)
    for start in range(0, len(read), _MOST):
        yield "client", EndsRead(tuple(read[start : start + _MOST]))


def _in_one(run: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    source, first = run[0]
    if len(run) == 1:
        return run[0]
    if isinstance(first, CancelSubmitted):
        return source, CancelSubmitted(tuple(chain.from_iterable(message.calls for _, message in run)))
    return source, ReleaseObjects(tuple(chain.from_iterable(message.names for _, message in run)))
