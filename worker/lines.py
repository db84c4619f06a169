"""What the backlog keeps of one library instance, and what it asks of it and of the worker."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import Final, Protocol

from windlass.messages import CallEnd, CallId, CallRun, EndDetail, FileRef, FunctionId, HeldCall, InstanceId, ObjectName, ObjectRef

#: What a blocked call waits for: an object, a file (`windlass.worker.files.FileKey`) or a function.
Key = str | FunctionId
#: Call and number of the attempt.
Attempt = tuple[int, int]

#: By so much of the least timeout of a line, and by so many seconds at most, a call may run longer than its own.
LATE_SHARE: Final = 0.01
LATE_SECONDS: Final = 1.0


class Running(Protocol):
    """A call that a slot runs now, and since when, by the clock of `Backlog.sweep`."""

    @property
    def call(self) -> CallId: ...
    @property
    def attempt(self) -> int: ...
    @property
    def since(self) -> float: ...


class Instance(Protocol):
    """A library instance as the backlog needs it; `windlass.worker.instance.LibraryInstance` is one."""

    def feed(self, calls: Sequence[CallRun], /) -> int: ...
    def take_back(self, count: int | None, /) -> list[CallRun]: ...
    def running(self) -> Sequence[Running]: ...
    def kill_calls(self, calls: Collection[Attempt], outcome: int, detail: EndDetail | None, /) -> Collection[Attempt]: ...


class Comm(Protocol):
    """What the backlog asks of the worker."""

    def ended(self, ends: list[CallEnd], /) -> None:
        """Tell the manager (after the objects of results are there)."""

    def returned(self, calls: tuple[HeldCall, ...], reason: str, /) -> None:
        """Give these back to the manager."""

    def lacks_room(self, refs: Sequence[ObjectRef], /) -> str:
        """Why these objects do not fit beside those that are held; empty: they do. `Backlog.room_made` follows, when some were released."""
        ...

    def hold(self, refs: Sequence[ObjectRef], /) -> list[ObjectName]:
        """Keep these objects until `release`, fetch what is missing, and say what that is.

        `Backlog.arrived` or `Backlog.failed` follows for each.
        """
        ...

    def release(self, refs: Sequence[ObjectRef], /) -> None:
        """A call does not need these any more."""

    def hold_files(self, refs: Sequence[FileRef], /) -> Sequence[str]:
        """The same for files in the cache."""
        ...

    def release_files(self, refs: Sequence[FileRef], /) -> None:
        """A call does not need these any more."""


class Line:
    """The calls of one instance."""

    __slots__ = ("due", "extra", "fed", "heavy", "holder", "instance", "least", "ready", "slots", "timeouts", "waiting")

    def __init__(self, instance: InstanceId, holder: Instance, slots: int) -> None:
        self.instance = instance
        self.holder = holder
        self.slots = slots
        #: False until the instance serves: calls may come before.
        self.ready = False
        self.waiting: deque[CallRun] = deque()
        #: Calls in the instance's queue or running, and how many slots they occupy beyond one each.
        self.fed = 0
        self.extra = 0
        #: Held calls with a weight over 1; timeouts of held calls that have one.
        self.heavy = 0
        self.timeouts = Counter[float]()
        #: The least of them as of the last look, and before which time none of these calls can have run longer than its own.
        self.least = 0.0
        self.due = 0.0

    def watch(self, timeout: float) -> None:
        """A call with this timeout has come."""
        if not self.timeouts or timeout < self.least:
            self.least, self.due = timeout, 0.0
        self.timeouts[timeout] += 1

    def unwatch(self, timeout: float) -> None:
        """It has left."""
        self.timeouts[timeout] -= 1
        if not self.timeouts[timeout]:
            del self.timeouts[timeout]

    def is_due(self, now: float) -> bool:
        """Whether it is time to look at what runs."""
        return bool(self.timeouts) and now >= self.due

    def looked(self, now: float, ends: Sequence[float]) -> None:
        """Those that run may run until then. Others may begin now, and where many run it is not looked again for each of them."""
        self.least = min(self.timeouts)
        self.due = max(min((now + self.least, *ends)), now + min(LATE_SHARE * self.least, LATE_SECONDS))
