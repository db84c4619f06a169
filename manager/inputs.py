"""Which calls wait for the results of which: the program's book of futures that were given as arguments.

Theory of operation
-------------------
A call whose arguments have futures, its *producers*, is *waiting for inputs* from `Inputs.add` until it has a `Part` of each, or one
has failed, or it is dropped.  The manager's core knows nothing of it until then.  Each event costs what it changes: the end of a
producer looks at its own consumers only.  Calls that end because of others end those that wait for them, and so on; the caller does
that in a loop, so a chain may be as long as it likes.

A library version that the program removes stays until its waiting calls are with the manager (`Inputs.remove_later`).

*Objects.*  A large result is an object in the store that goes when its future is read or dropped.  `Holds` counts who else needs
it: calls that have it as an input, until they have ended.  ``let_go`` comes from finalisers too, at any point of any thread, so it takes
no lock: it marks the entry, and looks afterwards whether that was seen.

The seam for results that stay on workers: `Inputs.give` puts a producer's part, its payload and references, into its consumers.

This is a core: the shell around it (`windlass.manager.feeding`) has the lock and carries out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from windlass.messages import CallId, CallSpec, LibraryId, ObjectName, Part


class Waiting(msgspec.Struct, eq=False):
    """A call that waits for inputs; ``missing`` counts one more until `Inputs.ready` is asked about it."""

    spec: CallSpec
    producers: tuple[CallId, ...]
    parts: list[Part | None]
    missing: int

    @property
    def call(self) -> CallId:
        return self.spec.call

    def whole(self) -> list[Part]:
        """Its own part and its inputs', which are all there."""
        return [Part(self.spec.payload, self.spec.spans), *(part for part in self.parts if part is not None)]


class InputsCount(NamedTuple):
    """Calls that wait for inputs, and those that have ended without having been handed over."""

    waiting: int
    failed: int
    cancelled: int


class Inputs:
    """All calls of a program that wait for inputs."""

    def __init__(self) -> None:
        self.waiting: dict[CallId, Waiting] = {}
        #: For each producer that has not ended: its consumers, and which of their inputs it is.
        self.consumers: dict[CallId, dict[CallId, int]] = {}
        #: Library versions that are to be removed when no call of them waits any more; and for the shell, those of which none does now.
        self.remove: list[LibraryId] = []
        self._libraries: Counter[LibraryId] = Counter()
        self._remove_later: set[LibraryId] = set()

    def add(self, spec: CallSpec, producers: Sequence[CallId]) -> Waiting:
        """A call waits for these, each named once; nothing makes it ready before `ready` was asked."""
        waiting = Waiting(spec, tuple(producers), [None] * len(producers), len(producers) + 1)
        self.waiting[spec.call] = waiting
        self._libraries[spec.library] += 1
        for index, producer in enumerate(producers):
            self.consumers.setdefault(producer, {})[spec.call] = index
        return waiting

    def ready(self, call: CallId) -> Waiting | None:
        """Whoever added it has no more to say: the call, if it has all its inputs."""
        waiting = self.waiting.get(call)
        return waiting if waiting is not None and self._got_one(waiting) else None

    def give(self, producer: CallId, part: Part) -> tuple[list[Waiting], list[Waiting]]:
        """A producer has returned: its consumers, and those of them that have all now. They stay until `take` or `drop`."""
        consumers: list[Waiting] = []
        ready: list[Waiting] = []
        for call, index in self.consumers.pop(producer, {}).items():
            waiting = self.waiting.get(call)
            if waiting is None:
                continue  # cancelled just now, by a finaliser in this very thread
            consumers.append(waiting)
            waiting.parts[index] = part
            if self._got_one(waiting):
                ready.append(waiting)
        return consumers, ready

    def give_one(self, producer: CallId, call: CallId, part: Part) -> bool:
        """The same for one consumer, of a producer that had ended before. False: the call has it, or is not waiting any more."""
        index = self._forget(producer, call)
        if index < 0:
            return False
        waiting = self.waiting[call]
        waiting.parts[index] = part
        waiting.missing -= 1
        return True

    def failed(self, producer: CallId) -> list[Waiting]:
        """A producer has ended without a result: its consumers, which are dropped."""
        return [waiting for call in list(self.consumers.get(producer, ())) if (waiting := self.drop(call)) is not None]

    def drop(self, call: CallId) -> Waiting | None:
        """A call waits no more, whatever it has; None if it did not."""
        waiting = self.take(call)
        if waiting is not None and waiting.missing:
            for producer in waiting.producers:
                self._forget(producer, call)
        return waiting

    def take(self, call: CallId) -> Waiting | None:
        """A call that has all its inputs waits no more."""
        waiting = self.waiting.pop(call, None)
        if waiting is not None:
            library = waiting.spec.library
            self._libraries[library] -= 1
            if not self._libraries[library]:
                del self._libraries[library]
                if library in self._remove_later:
                    self._remove_later.discard(library)
                    self.remove.append(library)
        return waiting

    def remove_later(self, library: LibraryId, *, undo: bool = False) -> bool:
        """A library version is to be removed, or not any more. False: nothing of it waits, so do it now."""
        if undo or library not in self._libraries:
            self._remove_later.discard(library)
            return False
        self._remove_later.add(library)
        return True

    def clear(self) -> None:
        """Forget all."""
        self.waiting.clear()
        self.consumers.clear()
        self._libraries.clear()
        self._remove_later.clear()

    def _got_one(self, waiting: Waiting) -> bool:
        waiting.missing -= 1
        return not waiting.missing

    def _forget(self, producer: CallId, call: CallId) -> int:
        consumers = self.consumers.get(producer)
        if consumers is None:
            return -1
        index = consumers.pop(call, -1)
        if not consumers:
            del self.consumers[producer]
        return index

    def check(self) -> None:
        """Invariants between the collections; raises AssertionError."""
        for producer, consumers in self.consumers.items():
            assert consumers
            for call, index in consumers.items():
                assert self.waiting[call].producers[index] == producer
                assert self.waiting[call].parts[index] is None
        assert self._libraries == Counter(waiting.spec.library for waiting in self.waiting.values())
        assert self._remove_later <= set(self._libraries)
        for call, waiting in self.waiting.items():
            assert waiting.call == call
            absent = [producer for producer, part in zip(waiting.producers, waiting.parts, strict=True) if part is None]
            assert waiting.missing in (len(absent), len(absent) + 1)
            assert all(call in self.consumers.get(producer, {}) for producer in absent)


class _Hold:
    __slots__ = ("count", "gone")

    def __init__(self) -> None:
        self.count, self.gone = 0, False


class Holds:
    """Objects of results that calls need as inputs."""

    def __init__(self) -> None:
        self._holds: dict[ObjectName, _Hold] = {}

    def hold(self, names: Iterable[ObjectName]) -> None:
        """One more needs these."""
        for name in names:
            hold = self._holds.get(name)
            if hold is None:
                hold = self._holds[name] = _Hold()
            hold.count += 1

    def release(self, names: Iterable[ObjectName]) -> list[ObjectName]:
        """One needs these no more: those that nobody needs now and that were let go before."""
        free: list[ObjectName] = []
        for name in names:
            hold = self._holds[name]
            hold.count -= 1
            if not hold.count:
                del self._holds[name]
                if hold.gone:
                    free.append(name)
        return free

    def let_go(self, names: Iterable[ObjectName]) -> list[ObjectName]:
        """Their future is read or dropped: those that can go now. From any thread, at any time; may be said twice."""
        free: list[ObjectName] = []
        for name in names:
            hold = self._holds.get(name)
            if hold is not None:
                hold.gone = True
                if self._holds.get(name) is hold:
                    continue
            free.append(name)  # nobody needs it, or who did has just released it and may not have seen the mark
        return free

    def __len__(self) -> int:
        return len(self._holds)
