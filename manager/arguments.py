"""What a program keeps for its calls until they have ended: large arguments, as pinned objects in the store, and the files they were given.

Theory of operation
-------------------
A large argument is put into the store under its content name and pinned; `release` at the call's end takes the pin away. While the store
is full of arguments of calls that have not ended, `put` waits for room: an end makes some, and rings the `Bell`. Where no end could make
any, it raises instead. Snapshots of code that came with arguments stay, for later calls may name them.

`pins` and `files` are looked into by the client for each end, so they are plain dictionaries of what few calls have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from windlass.errors import Closed, StoreFull
from windlass.files import File
from windlass.manager.buffers import known_here
from windlass.manager.memory import ClientStore
from windlass.messages import CallId, ObjectName, ObjectRef

#: Seconds between looks for room in a full store, beside those at each call that ends.
ROOM_SECONDS: Final = 0.5


class Bell:
    """Wakes the threads of a program that wait for some call to end: for a result, or for room."""

    def __init__(self) -> None:
        self._rung = threading.Condition()
        #: How many they are; without any nobody needs to ring.
        self.waiters = 0

    def ring(self) -> None:
        """Something has ended."""
        with self._rung:
            self._rung.notify_all()

    def wait(self, over: Callable[[], object], seconds: float | None) -> None:
        """Wait for the next ring, unless it is ``over`` already."""
        with self._rung:
            self.waiters += 1
            try:
                if not over():
                    self._rung.wait(seconds)
            finally:
                self.waiters -= 1

    def renew(self) -> None:
        """In a forked process: who waited was a thread of the parent's."""
        self._rung, self.waiters = threading.Condition(), 0


class Arguments:
    """Those of one program's calls. ``closed`` says why there will be no more ends."""

    def __init__(self, store: ClientStore, bell: Bell, closed: Callable[[], str]) -> None:
        self._store, self._bell, self._closed = store, bell, closed
        #: Objects of calls that have any, to unpin at their end.
        self.pins: dict[CallId, tuple[ObjectRef, ...]] = {}
        #: Declared files that calls were given, which must stay declared as long.
        self.files: dict[CallId, File | dict[str, File]] = {}
        #: Snapshots that came with arguments, and stay.
        self._code: set[str] = set()
        #: Grows whenever the store may have got room.
        self._freed = 0

    def put(self, data: Any, hopeless: Callable[[], bool] = lambda: False, content: str = "") -> ObjectRef:
        """Keep an argument, pinned. While there is no room and calls that have not ended will make some, wait: unless it is ``hopeless``.
        ``content``: its name, if that is known; many calls may be given the same gigabytes, which are looked through once.

        Raises `StoreFull`, `Closed`.
        """
        if content:
            with suppress(KeyError):
                self._store.pin(content)
                return ObjectRef(ObjectName(content), memoryview(data).nbytes)
        known = known_here()
        if known is not None and (found := known.find(data, self._store)) is not None:
            return found
        while True:
            freed = self._freed
            try:
                ref = self._store.put(data, pin=True)
                if known is not None:
                    known.note(data, ref)
                return ref
            except StoreFull:
                if not self.pins or not self._store.could_hold(memoryview(data).nbytes) or hopeless():
                    raise
            self._bell.wait(partial(self._worth_a_look, freed), ROOM_SECONDS)
            if why := self._closed():
                raise Closed(why)

    def _worth_a_look(self, freed: int) -> bool:
        return self._freed != freed or bool(self._closed())

    def unpin(self, refs: Sequence[ObjectRef]) -> None:
        """These are needed no more."""
        for ref in refs:
            self._store.unpin(ref.name)
        self._freed += 1

    def room_made(self) -> None:
        """Other objects have gone."""
        self._freed += 1
        if self._bell.waiters:
            self._bell.ring()

    def release(self, call: CallId) -> None:
        """It has ended, or was not submitted after all."""
        self.files.pop(call, None)
        self.unpin(self.pins.pop(call, ()))

    def take_files(self, call: CallId) -> dict[str, File]:
        """The caller keeps them from now on, by key."""
        found = self.files.pop(call, {})
        return {found.key: found} if isinstance(found, File) else found

    def keep_code(self, refs: Sequence[ObjectRef]) -> None:
        """Snapshots that came with arguments stay from now on."""
        for ref in refs:
            if ref.name not in self._code:
                self._code.add(ref.name)
                self._store.pin(ref.name)

    def leave_to_program(self) -> None:
        """In a forked process: the store is the program's."""
        self.pins.clear()
