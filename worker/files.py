"""Files that calls need: in the cache before their call is fed, kept while it holds them, fetched from where the manager says.

Theory of operation
-------------------
`Files` counts for each file how many calls hold it.  The first hold pins the replica, or asks the manager (`WantFiles`), which answers
with a source when its turn has come (`FetchFile`) or with why there is none (`FileLost`).  A fetch runs on a thread; what came of it is
told to the manager (`FileHere`, `FileFailed`), which chooses another source after a failure: what has arrived so far is kept for that,
unless other workers of the node share the file, who would wait for this one to go on.  A small file's bytes come in the `FetchFile` itself,
before the call that needs them.  An archive is fetched like any file, and unpacked by a thread.

A file that does not fit here ends the calls that need it, and hurts no others.

Peers are served from the same cache (`windlass.worker.peers`).

The cache's folder may be deleted by others while calls hold files in it. A call that misses one is given back to the manager, and the file
is fetched again (`look_again`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NewType, Protocol

from windlass.blocking import Batches, OutOfTurn, in_thread
from windlass.errors import BadTree, CacheBusy, CacheFull, Damaged, WindlassError
from windlass.messages import (
    NO_FILE,
    DropFiles,
    FetchFile,
    FileFailed,
    FileHere,
    FileLost,
    FileName,
    FileRef,
    FilesGone,
    FileSource,
    Message,
    WantFiles,
)
from windlass.worker.arrivals import Arrival, Arrived, CannotKeep
from windlass.worker.fetching import SourceFailed, SourceGone

if TYPE_CHECKING:
    from windlass.worker.cache import Cache
    from windlass.worker.cache_entries import Filling

log = logging.getLogger("windlass.files")

#: What a call that is blocked waits for: objects and files may have one name.
FileKey = NewType("FileKey", str)
#: Files asked about, or told of, in one message.
NAMES_MOST: Final = 5000
#: Seconds at most that the end waits for the removal of what has not arrived whole.
_GIVE_UP_SECONDS: Final = 5.0


class Fetch(Protocol):
    """`windlass.worker.fetching.Fetcher.fetch`, when this worker has enrolled."""

    def __call__(self, arrival: Arrival, source: FileSource, /) -> Awaitable[Arrived]: ...


def key_of(name: FileName) -> FileKey:
    """What calls wait for."""
    return FileKey(f"file {name}")


class Files:
    """All files that a worker's calls hold."""

    def __init__(
        self,
        cache: Cache,
        fetch: Fetch,
        say: Callable[[Message], None],
        arrived: Callable[[str], None],
        failed: Callable[[str, int, str], None],
        later: Callable[[str], None],
        share: Callable[[], None],
    ) -> None:
        self.cache = cache
        self._fetch_from = fetch
        self._say = say
        self._arrived = arrived
        self._failed = failed
        self._later = later
        #: Called before a file of level "forever" is looked for.
        self._share = share
        self._holds: dict[FileName, int] = {}
        self._refs: dict[FileName, FileRef] = {}
        #: Under which names the calls that hold it know it.
        self._bases: dict[FileName, set[str]] = {}
        self._pinned: set[FileName] = set()
        #: What the manager was asked for and has not come.
        self._wanted: set[FileName] = set()
        #: What the manager has been told is here.
        self._told: set[FileName] = set()
        self._fillings: dict[FileName, tuple[Filling, Arrival]] = {}
        #: Threads that remove what was given up.
        self._ending: list[threading.Thread] = []
        self._tasks: dict[FileName, asyncio.Task[None]] = {}
        #: What is done for each file, however small it is.
        self._batches = Batches()
        self._closed = False
        #: Those who wait for a file themselves, to make another one of it.
        self._waiters: dict[FileName, list[asyncio.Future[None]]] = {}

    # ------------------------------------------------------------ calls

    def hold(self, refs: Sequence[FileRef], /) -> list[FileKey]:
        """Keep these until `release`, also when this raises (`OSError`); ask for what is missing, and say what that is."""
        missing: list[FileKey] = []
        ask: list[FileName] = []
        for ref in refs:  # before anything that may raise: they are released together
            self._holds[ref.name] = self._holds.get(ref.name, 0) + 1
        for ref in refs:
            name = ref.name
            if name in self._pinned:
                if ref.base not in self._bases[name]:
                    self.cache.path(name, ref.base)  # makes it
                    self._bases[name].add(ref.base)
                if ref.level != self._refs[name].level:
                    self._keep(ref)
                continue
            self._refs[name] = ref
            self._bases.setdefault(name, set()).add(ref.base)
            if ref.level == "forever":
                self._share()
            if self._is_compared(name):  # no mode holds for root, and others may cut it off
                missing.append(key_of(name))
                continue
            if self._pin(ref):
                self._tell_here(ref)
                continue
            missing.append(key_of(name))
            if name not in self._wanted:
                self._wanted.add(name)
                ask.append(name)
        self._say_of(WantFiles, ask)
        return missing

    async def obtain(self, ref: FileRef, *, patient: bool = False) -> str:
        """Hold a file and wait until it is here: its path. Raises `SourceGone`, and (unless ``patient``) `SourceFailed` where it will be
        long in coming; and then does not hold it."""
        try:
            missing = self.hold([ref])  # without a break: with the last hold goes what is of level "call"
            while missing:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.setdefault(ref.name, []).append(waiter)
                try:
                    await waiter
                except SourceFailed:
                    if not patient:
                        raise
                try:
                    missing = self.hold([ref])  # it may have gone again
                finally:
                    self.release([ref])
            return os.fspath(self.cache.path(ref.name, ref.base))
        except BaseException:
            self.release([ref])
            raise

    def release(self, refs: Sequence[FileRef], /) -> None:
        """A call does not need these any more."""
        for ref in refs:
            name = ref.name
            left = self._holds.get(name, 0) - 1
            if left > 0:
                self._holds[name] = left
                continue
            self._holds.pop(name, None)
            self._refs.pop(name, None)
            self._bases.pop(name, None)
            if name in self._pinned:
                self._pinned.discard(name)
                self.cache.unpin(name)
                if ref.level == "call" and not self.cache.has(name):  # others may have wanted it for longer
                    self._forget([name])

    def look_again(self) -> None:
        """A call did not find a file of its own: whoever holds what is gone next has it fetched again."""
        gone = [name for name in self._pinned if not self._is_there(self._refs[name])]
        for name in gone:
            self._pinned.discard(name)
            self.cache.unpin(name)
        # Those without a hold any more.
        self._forget([name for name in self._told if not self.cache.has(name)])

    # ------------------------------------------------------------ the manager

    def heard(self, message: FetchFile | FileLost | DropFiles) -> None:
        """The manager has said this."""
        match message:
            case FetchFile():
                self.fetch(message)
            case FileLost():
                self.lost(message)
            case DropFiles():
                self.drop(message)

    def fetch(self, message: FetchFile) -> None:
        """Have this file from there."""
        ref = message.ref
        if (task := self._tasks.get(ref.name)) is not None:  # it looks at what was here, which may be damaged
            task.add_done_callback(partial(self._fetch_after, message))
            return
        self._wanted.add(ref.name)  # or who needs it would ask
        if ref.level == "forever":
            self._share()  # it may be for others that this worker is sent for it
        self._start(ref.name, self._bring(ref, message.source, message.digest, message.data))

    def lost(self, message: FileLost) -> None:
        """It cannot be had, now or ever."""
        self._wanted.discard(message.name)
        self._give_up(message.name)
        self._wake(message.name, (SourceFailed if message.later else SourceGone)(message.text))
        if message.later:
            self._later(key_of(message.name))
        else:
            self._failed(key_of(message.name), NO_FILE, message.text)

    def drop(self, message: DropFiles) -> None:
        """Not needed any more; or (``damaged``) somebody got something else from here than its name says."""
        if message.damaged:
            for name in message.names:
                if name not in self._tasks:
                    self._start(name, self._look_at(name))
            return
        for name in message.names:
            self._told.discard(name)
            self.cache.discard(name)

    def made(self, name: FileName, size: int) -> None:
        """A call has left this in the cache."""
        self._told.add(name)
        self._say(FileHere(name, size))

    # ------------------------------------------------------------ the end

    async def close(self) -> None:
        """Give up what is under way, and let go of all that is held."""
        self._closed = True
        for name in self._pinned:
            self.cache.unpin(name)
        self._pinned.clear()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for name in list(self._fillings):
            self._give_up(name)
        await self._batches.end(_GIVE_UP_SECONDS)  # or it would write to a folder that is removed, and pin what the next session has
        # Not cut off by the process's end: what other workers of the node share would keep halves of files.
        ending, end = self._ending, time.monotonic() + _GIVE_UP_SECONDS
        while any(thread.is_alive() for thread in ending) and time.monotonic() < end:
            await asyncio.sleep(0.01)

    # ------------------------------------------------------------ inside

    def _fetch_after(self, message: FetchFile, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.fetch(message)

    def _start(self, name: FileName, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[name] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(partial(self._done, name))

    def _done(self, name: FileName, task: asyncio.Task[None]) -> None:
        self._tasks.pop(name, None)
        if not task.cancelled() and (defect := task.exception()) is not None:
            log.error("file %s could not be had by a defect of Windlass", name, exc_info=defect)
            self._end(name, f"file {name} could not be had, by a defect of Windlass: {defect!r}")

    async def _bring(self, ref: FileRef, source: FileSource, digest: str, data: bytes | None) -> None:
        """Fetch or unpack, and tell the manager what came of it."""
        try:
            if source.archive is not None:
                content, size = await self._unpack(ref, source.archive)
            else:
                content, size = await self._receive(ref, source, digest, data)
        except (SourceGone, BadTree) as error:
            self._ask_for_another(ref, source, "gone", str(error))
        except SourceFailed as error:
            self._ask_for_another(ref, source, "failed", str(error))
        except Damaged as error:
            self._ask_for_another(ref, source, "damaged", str(error))
        except KeyError:  # another worker of this node had it, and it went at once
            self._ask_for_another(ref, source, "failed", f"{ref.name} was evicted as soon as it was here")
        except (CacheFull, CannotKeep, CacheBusy) as error:
            self._cannot_keep(ref, source, str(error))
        except OSError as error:  # of this node
            self._cannot_keep(ref, source, f"file {ref.shown} cannot be kept on {os.uname().nodename}: {error}")
        except Exception as error:  # a defect; without a word to the manager nobody would get the file here, or from here, any more
            self._give_up(ref.name)
            self._say(FileFailed(ref.name, source, "full", repr(error)))
            raise
        else:
            self._here(ref, size, content)
            self.cache.unpin(ref.name)  # it has had a pin from its first moment here, so that nothing could evict it before a call's

    def _ask_for_another(self, ref: FileRef, source: FileSource, kind: str, text: str) -> None:
        """The manager chooses the next source, and may give it to another worker of this node: that one would wait for our lock."""
        begun = self._fillings.get(ref.name)
        if begun is not None and begun[0].level == "forever" and self.cache.forever is not None:
            self._give_up(ref.name)
        self._say(FileFailed(ref.name, source, kind, text))

    def _cannot_keep(self, ref: FileRef, source: FileSource, text: str) -> None:
        self._give_up(ref.name)
        self._say(FileFailed(ref.name, source, "full", text))
        self._end(ref.name, text)

    async def _receive(self, ref: FileRef, source: FileSource, digest: str, data: bytes | None) -> tuple[str, int]:
        begun = self._fillings.get(ref.name)
        # What the workers of a node share may be waited for, whoever wants it here for how long.
        shared = self.cache.forever
        is_shared = ref.level == "forever" or (shared is not None and shared.has(ref.name))
        in_turn = in_thread if is_shared else self._batches.do
        if begun is None and data is not None:
            return await in_turn(partial(self._take, ref, digest, data), partial(self._unpin, ref))
        if begun is None:
            filling = await in_turn(partial(self.cache.fill, ref.name, ref.size, ref.level), _abandon)
            if filling is None:  # another worker of this node has had it meanwhile
                self.cache.pin(ref.name)
                return "", self.cache.facts(ref.name).size
            begun = self._fillings[ref.name] = filling, Arrival(ref, filling.path, digest=digest, reserve=filling.grow)
        filling, arrival = begun
        if data is not None:
            arrived = await in_turn(partial(arrival.take, arrival.next_turn(), data))
        else:
            arrived = await self._fetch_from(arrival, source)
        del self._fillings[ref.name]
        keep = partial(filling.commit, content=arrived.content, manifest=arrived.manifest, pin=True)
        await in_turn(partial(keep, ref.base, arrived.size), partial(self._unpin, ref))
        return arrived.digest, arrived.size

    def _take(self, ref: FileRef, digest: str, data: bytes) -> tuple[str, int]:
        """On a thread: its bytes have come with the message."""
        if self._closed:
            raise OutOfTurn(f"{ref.name} is not wanted any more")
        filling = self.cache.fill(ref.name, ref.size, ref.level)
        if filling is None:  # another worker of this node has had it meanwhile
            self.cache.pin(ref.name)
            return "", self.cache.facts(ref.name).size
        with filling:
            arrival = Arrival(ref, filling.path, digest=digest, reserve=filling.grow)
            arrived = arrival.take(arrival.next_turn(), data)
            filling.commit(ref.base, arrived.size, content=arrived.content, pin=True)
        return arrived.digest, arrived.size

    def _unpin(self, ref: FileRef, _: object) -> None:
        """It has come, with a pin, for a task that was cancelled meanwhile."""
        self.cache.unpin(ref.name)

    async def _unpack(self, ref: FileRef, archive: FileRef) -> tuple[str, int]:
        """Have the archive here, unpack it, let it go."""
        await self.obtain(archive)
        try:
            return await in_thread(partial(self._unpack_here, ref, archive), partial(self._unpin, ref))
        finally:
            self.release([archive])

    def _unpack_here(self, ref: FileRef, archive: FileRef) -> tuple[str, int]:
        """On a thread."""
        from windlass.unpacking import unpack

        packed = self.cache.path(archive.name, archive.base)
        filling = self.cache.fill(ref.name, self.cache.facts(archive.name).size, ref.level)
        if filling is None:
            self.cache.pin(ref.name)
            return "", self.cache.facts(ref.name).size
        with filling:
            size = unpack(packed, filling.path, filling.grow)
            filling.commit(ref.base, size, pin=True)
        return "", size

    async def _look_at(self, name: FileName) -> None:
        if await in_thread(partial(self.cache.damaged, name)):
            log.error("file %s was damaged in the cache; it is removed, and fetched again when it is needed", name)
            self._forget([name])

    def _here(self, ref: FileRef, size: int, digest: str) -> None:
        self._wanted.discard(ref.name)
        self._told.add(ref.name)
        self._say(FileHere(ref.name, size, digest))
        if ref.name in self._holds and not self._pin(ref):
            text = f"file {ref.shown} of {size:,} bytes came and did not stay: the worker's cache is too small"
            self._end(ref.name, text)
            return
        self._wake(ref.name)
        self._arrived(key_of(ref.name))

    def _end(self, name: FileName, text: str) -> None:
        self._wanted.discard(name)
        self._wake(name, CannotKeep(text))
        self._failed(key_of(name), NO_FILE, text)

    def _wake(self, name: FileName, error: WindlassError | None = None) -> None:
        """Those who wait for a file have it, or hear why not."""
        for waiter in self._waiters.pop(name, ()):
            if not waiter.done():
                waiter.set_exception(error) if error is not None else waiter.set_result(None)

    def _pin(self, ref: FileRef) -> bool:
        if ref.name in self._pinned:
            return True
        try:
            self.cache.pin(ref.name)
        except KeyError:
            return False
        try:
            for base in self._bases.get(ref.name, ()):
                self.cache.path(ref.name, base)  # makes it
            self.cache.path(ref.name, ref.base)
        except KeyError:
            self.cache.unpin(ref.name)
            return False
        self._keep(ref)
        self._pinned.add(ref.name)
        return True

    def _is_compared(self, name: FileName) -> bool:
        """True when a file was touched, and is compared before a call has it, or comes anew: `_arrived` tells of it."""
        try:
            if self.cache.is_untouched(name):
                return False
            if name in self._tasks:
                return name in self._wanted
            self.cache.pin(name)
        except KeyError:
            return False
        self._wanted.add(name)
        self._start(name, self._compare(name))
        return True

    async def _compare(self, name: FileName) -> None:
        """A touched file, which this has a pin of, is used on if its content is the same, else had anew by who needs it."""
        try:
            good = await in_thread(partial(self.cache.settle, name))
            self._wanted.discard(name)
            ref = self._refs.get(name)
            if ref is not None and good and self._pin(ref):  # before the other pin goes, and with it what is of level "call"
                self._tell_here(ref)
                self._wake(name)
                self._arrived(key_of(name))
                return
        finally:
            self.cache.unpin(name)
        if not good:
            log.error("file %s was changed in the cache, as by a call that wrote to its input; who needs it has it fetched again", name)
            self.cache.discard(name)
        if not good or not self.cache.has(name):
            self._forget([name])
        if ref is not None:
            self._wanted.add(name)
            self._say_of(WantFiles, [name])

    def _keep(self, ref: FileRef) -> None:
        """It came for who wanted it first, perhaps for a shorter time."""
        with suppress(KeyError):  # gone: who does not find it has it fetched again
            self.cache.keep(ref.name, ref.level)

    def _tell_here(self, ref: FileRef) -> None:
        if ref.name not in self._told:
            self._told.add(ref.name)
            self._say(FileHere(ref.name, self.cache.facts(ref.name).size))

    def _is_there(self, ref: FileRef) -> bool:
        try:
            return self.cache.has(ref.name) and os.path.lexists(self.cache.path(ref.name, ref.base))
        except (KeyError, WindlassError):
            return False

    def _forget(self, names: Sequence[FileName]) -> None:
        told = [name for name in names if name in self._told]
        self._told.difference_update(told)
        self._say_of(FilesGone, told)

    def _say_of(self, what: type[FilesGone | WantFiles], names: Sequence[FileName]) -> None:
        """Say this of all these, in as many messages as that takes: one that is too long would end the worker's session."""
        for first in range(0, len(names), NAMES_MOST):
            self._say(what(tuple(names[first : first + NAMES_MOST])))

    def _give_up(self, name: FileName) -> None:
        begun = self._fillings.pop(name, None)
        if begun is not None:
            filling, arrival = begun

            def end() -> None:
                arrival.abandon()
                filling.abort()

            thread = threading.Thread(target=end, name="windlass-fetch", daemon=True)
            self._ending = [one for one in self._ending if one.is_alive()]
            try:
                thread.start()
            except RuntimeError:  # none is to be had just now
                end()
            else:
                self._ending.append(thread)


def _abandon(filling: Filling | None) -> None:
    """Nobody waits for it any more; kept, it would hold up all others who want the file."""
    if filling is not None:
        filling.abort()
