"""Ends that programs were told of and have not read: how many of them a manager keeps for who may find them.

Theory of operation
-------------------
A program whose calls go on without it (``keep=True``) says what it has read, so that the rest can be found when it is gone. Many read
nothing: they call functions for what these do, and wait for their futures. Such ends would stay for ever, those of each night on top of
those before. So there is a bound for all programs together, generous as what goes is lost to who would have asked for it; the oldest go
first. What ended when its program was gone, or was handed over by one that left (``detach``), is kept until somebody asks: for that it was
left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from windlass.messages import CallDone, CallId

#: Ends, and bytes of them with the objects of their results.
MOST: Final = 100_000
MOST_BYTES: Final = 1 << 30


class Unread:
    """Such ends of all programs, by the manager's numbers of them, the oldest first."""

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.bytes = 0
        self._sizes: OrderedDict[CallId, int] = OrderedDict()  # a plain dict is slow to give its first when many before it are gone

    def __contains__(self, call: object) -> bool:
        return call in self._sizes

    def __iter__(self) -> Iterator[CallId]:
        return iter(self._sizes)

    def note(self, call: CallId, done: CallDone) -> None:
        """One more."""
        self.forget(call)
        size = self._sizes[call] = done.end.about_bytes + sum(span.size for span in done.end.spans)
        self.bytes += size

    def forget(self, call: CallId) -> None:
        """It was read or found, or is nobody's to find, if it is one of them."""
        self.bytes -= self._sizes.pop(call, 0)

    def surplus(self) -> list[CallId]:
        """Those that are too many, of which it knows no more."""
        found: list[CallId] = []
        while len(self._sizes) > self.most or (self.bytes > self.most_bytes and len(self._sizes) > 1):
            call, size = self._sizes.popitem(last=False)
            self.bytes -= size
            found.append(call)
        return found
