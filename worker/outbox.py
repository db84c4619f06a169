"""What a worker says to its manager, in order: ends of calls, calls that go back, and whatever else its parts have to say.

Theory of operation
-------------------
The `Outbox` is the backlog's way to the manager (`windlass.worker.lines.Comm`). Ends gather and leave as one `CallsEnded` per turn of the
loop, at once where nothing else runs; every other message comes after the ends that have gathered. An end whose result has objects or
files waits until these are where they are to be. That a slot was killed is told a second late, for this process may be next.

After `begin_anew` it speaks for a new session; ends of the old one's calls, which may come still, are handed to ``late``.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from windlass.framing import batches
from windlass.messages import (
    DIED,
    NO_FILE,
    OUT_OF_MEMORY,
    RETURNED,
    CallEnd,
    CallsEnded,
    CallsReturned,
    FileRef,
    HeldCall,
    LibraryFailed,
    Message,
    ObjectName,
    ObjectRef,
)
from windlass.worker.backlog import Backlog
from windlass.worker.lifetime import Lifetime, Phase

if TYPE_CHECKING:
    from windlass.links import Link
    from windlass.worker.files import FileKey
    from windlass.worker.supply import Supply
    from windlass.worker.watch import MemoryWatch

#: Who ends a whole job kills its processes one by one, this one perhaps last: so long, that a slot was killed is not told.
KILLED_SECONDS: Final = 1.0
#: Messages are at most 1 MiB: ends are cut into messages of about so many bytes, returned calls of so many.
ENDS_BYTES: Final = 256 << 10
RETURNED_CALLS: Final = 20_000


class Outbox:
    """One worker's. ``look`` is called while it drains and has said something; where ``without_image()`` says so, what fails is nobody's
    fault here and is not told. The worker gives it its parts as it makes them."""

    link: Link
    backlog: Backlog
    supply: Supply | None = None
    watch: MemoryWatch | None = None

    def __init__(
        self, life: Lifetime, look: Callable[[], None], late: Callable[[Backlog, CallEnd], None], without_image: Callable[[], bool]
    ) -> None:
        self._life, self._look, self._late, self._without_image = life, look, late, without_image
        self._ends: list[CallEnd] = []
        #: Calls whose slots were killed by SIGKILL within the last `KILLED_SECONDS`.
        self._killed: list[CallEnd] = []
        self._flush_due = False

    @property
    def untold(self) -> int:
        """Calls that have ended, of which it is not told yet why."""
        return len(self._killed)

    def begin_anew(self) -> list[Message]:
        """The manager knows of none of our calls: forget what has gathered. What it may not have heard."""
        unheard = [*self.link.dropped, CallsEnded(self._ends)]
        self._ends, self.link.dropped = [], []
        self._killed.clear()
        return unheard

    def say(self, *messages: Message) -> None:
        """Send these after the ends that have gathered."""
        if any(isinstance(message, LibraryFailed) for message in messages):
            if self._without_image():
                return
            self._tell_killed(*self._killed)  # or the manager would run them anew as ones that had not started
        if self._ends:
            self.flush()
        self.link.send(*messages)

    # ------------------------------------------------------------ what the backlog says (`windlass.worker.lines.Comm`)

    def ended(self, ends: list[CallEnd], /) -> None:
        if any(end.outcome != RETURNED for end in ends) and self._without_image():
            ends = [end for end in ends if end.outcome == RETURNED]
        for end in ends:
            if end.outcome == OUT_OF_MEMORY and self.watch is not None:
                self.watch.complete(end)
            if end.outcome == DIED:
                self._died(end)
            elif end.outcome == NO_FILE and end.started_at and self.supply is not None:
                self.supply.transfers.look_again()  # somebody has deleted it: it is fetched again for the next attempt
                self.supply.files.look_again()
                self.returned((HeldCall(end.call, end.attempt),), "files")
            elif (end.spans or end.outputs) and self.supply is not None:
                (self.supply.keep if end.kept or end.outputs else self.supply.transfers.push)(end, partial(self._tell, self.backlog))
            else:
                self._ends.append(end)
        if not self.backlog.held:
            self.flush()  # nothing else runs that could end in this turn: a program may be waiting for just this call
        elif self._ends and not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def _died(self, end: CallEnd) -> None:
        if self.watch is not None:
            end = self.watch.explain(end)
        if end.outcome == DIED and end.detail is not None and end.detail.signal == signal.SIGKILL:
            self._killed.append(end)
            asyncio.get_running_loop().call_later(KILLED_SECONDS, self._tell_killed, end)
        else:
            self._ends.append(end)

    def _tell_killed(self, *ends: CallEnd) -> None:
        """This process lives, so it was a slot alone that was killed."""
        for end in ends:
            if end in self._killed:
                self._killed.remove(end)
                self._ends.append(end)
        self.flush()

    def _tell(self, of: Backlog, end: CallEnd) -> None:
        """The objects of a result are at the manager."""
        if of is not self.backlog:
            self._late(of, end)
            return
        self._ends.append(end)
        self.flush()

    def flush(self) -> None:
        """Send the ends that have gathered."""
        self._flush_due = False
        ends, self._ends = self._ends, []
        for piece in batches(ends, lambda end: end.about_bytes, ENDS_BYTES):
            self.link.send_now(CallsEnded(piece))
        if self._life.phase is Phase.DRAINING:
            asyncio.get_running_loop().call_soon(self._look)

    def returned(self, calls: tuple[HeldCall, ...], reason: str, /) -> None:
        for first in range(0, len(calls) or 1, RETURNED_CALLS):
            self.say(CallsReturned(calls[first : first + RETURNED_CALLS], reason))
        if self._life.phase is Phase.DRAINING:
            asyncio.get_running_loop().call_soon(self._look)

    def lacks_room(self, refs: Sequence[ObjectRef], /) -> str:
        assert self.supply is not None
        return self.supply.transfers.lacks_room(refs)

    def hold(self, refs: Sequence[ObjectRef], /) -> list[ObjectName]:
        assert self.supply is not None
        return self.supply.transfers.hold(refs)

    def release(self, refs: Sequence[ObjectRef], /) -> None:
        assert self.supply is not None
        self.supply.transfers.release(refs)

    def hold_files(self, refs: Sequence[FileRef], /) -> list[FileKey]:
        assert self.supply is not None
        return self.supply.hold(refs)

    def release_files(self, refs: Sequence[FileRef], /) -> None:
        assert self.supply is not None
        self.supply.release(refs)
