"""Results that stay on workers, as their program knows them: which there are, what their making needs, how one comes when asked for.

Theory of operation
-------------------
`KeptResults.note` is told of a result that has stayed. Its parts are then inputs of calls that are given its future (`inputs_among`);
`open` has a part brought into the manager's store when the program reads it.  What the call was given (objects and files) is kept as long
as the result may be made again, which the manager knows: something else that is there may have been made of it.

`note`, `brought` and `forgotten` come on the thread that delivers, the rest on the program's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from windlass.errors import Closed, FileUnavailable, UsageError
from windlass.files import File, inputs_of
from windlass.messages import (
    MAX_FRAME_BYTES,
    BringFiles,
    CallDone,
    FileName,
    FileRef,
    Message,
    ObjectName,
    ObjectRef,
    ReleaseFiles,
    Sandbox,
    kept_file,
)

NO_NAME: Final = FileName("")
#: Seconds between looks whether the manager is still there.
LOOK_SECONDS: Final = 1.0
#: Of so few files, whatever their paths are, a message can always tell.
FILES_FEW: Final = 64
#: Bytes that a call's arguments and files may have in a message: what else it has is short. An output takes some more when it is told.
CALL_BYTES_MOST: Final = MAX_FRAME_BYTES - (64 << 10)
OUTPUT_BYTES: Final = 32


class Needed(NamedTuple):
    """What a call that may be run again, or later, needs."""

    pins: tuple[ObjectRef, ...]
    files: dict[str, File]
    #: Objects of results that it was given.
    held: list[ObjectName]


class KeptResults:
    """Those of one program. ``read`` gives an object of the manager's store, ``say`` speaks to it, ``closed`` says why it is gone."""

    def __init__(self, read: Callable[[str], memoryview], say: Callable[[Message], None], closed: Callable[[], str]) -> None:
        self._read, self._say, self._closed = read, say, closed
        self._names: set[str] = set()
        self._needed: dict[str, Needed] = {}
        self._lock = threading.Lock()
        #: Who waits for a part to be in the store.
        self._waiters: dict[str, list[_Waiter]] = {}

    def note(self, spans: Sequence[ObjectRef], needed: Needed) -> None:
        """A result has stayed on a worker."""
        self._names.update(ref.name for ref in spans)
        if needed.pins or needed.files or needed.held:
            self._needed[spans[0].name] = needed

    def has(self, name: str) -> bool:
        """It is a part of a result that has stayed."""
        return name in self._names

    def inputs_among(self, spans: Sequence[ObjectRef]) -> tuple[FileRef, ...]:
        """Those of these objects that are on workers."""
        if not self._names:
            return ()
        return tuple(kept_file(ref) for ref in spans if ref.name in self._names)

    def open(self, name: str) -> memoryview:
        """A part of any result; one that has stayed on a worker is brought first. Raises as `bring`, and `KeyError`."""
        try:
            return self._read(name)
        except KeyError:
            if name not in self._names:
                if why := self._closed():  # all are read at the close, but for Ctrl-C
                    raise Closed(f"the result is gone, as it had not been read: {why}") from None
                raise
        return self.bring(FileName(name), None)

    def have(self, spans: Sequence[ObjectRef], timeout: float | None) -> None:
        """Have in the store those of these parts of a result that have stayed. Raises as `bring`, `TimeoutError` for all of them."""
        end = None if timeout is None else time.monotonic() + timeout
        for ref in spans:
            if ref.name in self._names:
                try:
                    self._read(ref.name)
                except KeyError:
                    self.bring(FileName(ref.name), None if end is None else max(0.0, end - time.monotonic()))

    def bring(self, name: FileName, timeout: float | None) -> memoryview:
        """Something that a call has left on a worker, or will leave there. Raises `FileUnavailable`, `Closed`, `TimeoutError`."""
        if why := self._closed():  # who leaves brings nothing more: it was kept where it is for not being moved
            raise Closed(why)
        waiter = _Waiter()
        with self._lock:
            self._waiters.setdefault(name, []).append(waiter)
        self._say(BringFiles((name,)))
        end = None if timeout is None else time.monotonic() + timeout
        while not waiter.answered.wait(LOOK_SECONDS if end is None else max(0.0, min(LOOK_SECONDS, end - time.monotonic()))):
            if why := self._closed():
                raise Closed(why)
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"the result has stayed on a worker, and was not here within {timeout:g} s")
        if waiter.text:
            if why := self._closed():
                raise Closed(why)
            raise FileUnavailable(waiter.text)
        return self._read(name)

    def brought(self, name: str, text: str) -> None:
        """The manager has it in its store, or cannot have it."""
        with self._lock:
            waiters = self._waiters.pop(name, ())
        for waiter in waiters:
            waiter.text = text
            waiter.answered.set()

    def drop(self, names: Sequence[ObjectName]) -> None:
        """Nobody in this program needs these parts of results any more."""
        gone = [FileName(name) for name in names if name in self._names]
        self._names.difference_update(gone)
        if gone and not self._closed():
            with suppress(Closed):
                self._say(ReleaseFiles(tuple(gone), prune=True))

    def forgotten(self, names: Sequence[FileName]) -> list[Needed]:
        """The manager will not make these again: what was kept for that."""
        return [needed for name in names if (needed := self._needed.pop(name, None)) is not None]


class _Waiter:
    """One who waits for a part of a result."""

    __slots__ = ("answered", "text")

    def __init__(self) -> None:
        self.answered, self.text = threading.Event(), ""


def sandbox_of(
    inputs: dict[str, File], outputs: dict[str, File], files: dict[str, File], returned: FileName = NO_NAME, *, lenient: bool = False
) -> Sandbox:
    """What a call says of its own directory; its inputs are added to the ``files`` that it needs."""
    found: list[tuple[str, FileName, str]] = []
    for path, file in inputs.items():
        if file.ref is None:
            found.append((path, NO_NAME, file.path))
        else:
            files[file.key] = file
            found.append((path, file.ref.name, file.ref.base))
    made = tuple((path, FileName(file.name)) for path, file in outputs.items())
    return Sandbox(tuple(found), made, returned, lenient)


def inputs_that_fit(
    files: dict[str, File], owner: int, payload: bytes, spans: Sequence[ObjectRef] = (), sandbox: Sandbox | None = None
) -> tuple[FileRef, ...]:
    """What a call of this manager says of the files that it is given. Raises `UsageError` as `inputs_of` and `require_fit`."""
    inputs = inputs_of(files, owner) if files else ()
    require_fit(payload, spans, inputs, sandbox)
    return inputs


def require_fit(payload: bytes, spans: Sequence[ObjectRef], inputs: Sequence[FileRef], sandbox: Sandbox | None, parts: int = 0) -> None:
    """Raise `UsageError` for a call with more files, those that it makes among them, than a message can tell of: its worker would lose its
    session by it, and the next one after it. ``parts``: so many of the inputs are results that have stayed on workers."""
    made = len(sandbox.outputs) if sandbox is not None else 0
    number = max(len(inputs) - parts, len(sandbox.inputs) if sandbox is not None else 0) + made
    if number + parts > FILES_FEW:
        size = len(msgspec.msgpack.encode((payload, spans, inputs, sandbox))) + OUTPUT_BYTES * made
        if size > CALL_BYTES_MOST:
            kept = f" and {parts:,} parts of results that are kept on workers" if parts else ""
            raise UsageError(
                f"the call has {number:,} files{kept}, and to tell a worker of them takes {size:,} bytes, of {CALL_BYTES_MOST:,} that a "
                "call may take: declare the folder that they are in as one file, or an archive of them, or give some to each of several "
                "calls"
            )


def bring_result(owner: object, record: CallDone | None, timeout: float | None) -> None:
    """Have here what has stayed on a worker of a result that is about to be read. Raises `TimeoutError`; all else is reading's to tell."""
    bring: Callable[[Sequence[ObjectRef], float | None], None] | None = getattr(owner, "bring", None)
    if bring is not None and record is not None and record.end.kept:
        with suppress(FileUnavailable, Closed, KeyError):  # KeyError: another thread has read it meanwhile, and let go of the bytes
            bring(record.end.spans, timeout)


def comes_from_afar(owner: object, record: CallDone | None) -> bool:
    """Whether reading this result takes long: it comes over a network (`windlass.manager.memory.ClientStore`), or from a journal's disk."""
    if record is None or not (spans := record.end.spans):
        return False
    recalled: Callable[[str], str] | None = getattr(owner, "recalled", None)
    return getattr(getattr(owner, "store", None), "far", False) or (recalled is not None and bool(recalled(spans[0].name)))
