"""Results that stay on workers, as their program knows them: which there are, what their making needs, how one comes when asked for.

Theory of operation
-------------------
`KeptResults.note` is told of a result that has stayed. Its parts are then inputs of calls that are given its future (`inputs_among`);
`open` has a part brought into the manager's store when the program reads it.  What the call was given (objects and files) is kept as long
as the result, for the call may be run again.

`note` and `brought` come on the thread that delivers, the rest on the program's; `drop` also from finalisers, so it takes no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from windlass.errors import Closed, FileUnavailable
from windlass.files import File
from windlass.manager.lineage import KEPT_BASE
from windlass.messages import BringFiles, FileName, FileRef, Message, ObjectName, ObjectRef, ReleaseFiles, Sandbox

NO_NAME: Final = FileName("")
#: Seconds between looks whether the manager is still there.
LOOK_SECONDS: Final = 1.0


class Needed(NamedTuple):
    """What a call that may be run again, or later, needs."""

    pins: tuple[ObjectRef, ...]
    files: dict[str, File]


class KeptResults:
    """Those of one program. ``read`` gives an object of the manager's store, ``say`` speaks to it, ``closed`` says why it is gone."""

    def __init__(self, read: Callable[[str], memoryview], say: Callable[[Message], None], closed: Callable[[], str]) -> None:
        self._read, self._say, self._closed = read, say, closed
        self._names: set[str] = set()
        self._needed: dict[str, Needed] = {}
        self._arrived = threading.Condition()
        #: Why a part could not be had; "" for those that are in the store.
        self._brought: dict[str, str] = {}

    def note(self, spans: Sequence[ObjectRef], needed: Needed) -> None:
        """A result has stayed on a worker."""
        self._names.update(ref.name for ref in spans)
        if needed.pins or needed.files:
            self._needed[spans[0].name] = needed

    def inputs_among(self, spans: Sequence[ObjectRef]) -> tuple[FileRef, ...]:
        """Those of these objects that are on workers."""
        if not self._names:
            return ()
        return tuple(FileRef(FileName(ref.name), ref.size, KEPT_BASE) for ref in spans if ref.name in self._names)

    def open(self, name: str) -> memoryview:
        """A part of any result; one that has stayed on a worker is brought first. Raises `FileUnavailable`, `Closed`, `KeyError`."""
        try:
            return self._read(name)
        except KeyError:
            if name not in self._names:
                raise
        return self.bring(FileName(name))

    def bring(self, name: FileName) -> memoryview:
        """Something that a call has left on a worker, or will leave there. Raises `FileUnavailable`, `Closed`."""
        with self._arrived:
            self._brought.pop(name, None)
            self._say(BringFiles((name,)))
            while name not in self._brought:
                if why := self._closed():
                    raise Closed(why)
                self._arrived.wait(LOOK_SECONDS)
            text = self._brought[name]
        if text:
            raise FileUnavailable(text)
        return self._read(name)

    def brought(self, name: str, text: str) -> None:
        """The manager has it in its store, or cannot have it."""
        with self._arrived:
            self._brought[name] = text
            self._arrived.notify_all()

    def drop(self, names: Sequence[ObjectName]) -> list[ObjectRef]:
        """Nobody needs these parts of results any more: what was kept for their making."""
        gone = [FileName(name) for name in names if name in self._names]
        self._names.difference_update(gone)
        free: list[ObjectRef] = []
        for name in gone:
            self._brought.pop(name, None)
            free += self._needed.pop(name, Needed((), {})).pins
        if gone and not self._closed():
            with suppress(Closed):
                self._say(ReleaseFiles(tuple(gone), prune=True))
        return free


def sandbox_of(inputs: dict[str, File], outputs: dict[str, File], files: dict[str, File], returned: FileName = NO_NAME) -> Sandbox:
    """What a call says of its own directory; its inputs are added to the ``files`` that it needs."""
    found: list[tuple[str, FileName, str]] = []
    for path, file in inputs.items():
        if file.ref is None:
            found.append((path, NO_NAME, file.path))
        else:
            files[file.ref.name] = file
            found.append((path, file.ref.name, file.ref.base))
    made = tuple((path, FileName(file.name)) for path, file in outputs.items())
    return Sandbox(tuple(found), made, returned)
