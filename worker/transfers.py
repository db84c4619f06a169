"""Objects on their way: those that calls need come before they are fed, those of results go before their end is told.

Theory of operation
-------------------
`Transfers` counts for each object how many calls, functions and libraries hold it. The first hold pins it in the store, or
starts one fetch for all who wait; the last release takes the pin away, and the store may evict it when it needs the room. What
happens is told by `arrived` and `failed` (`windlass.worker.backlog.Backlog` has both), or awaited with `obtain`. Whether objects fit
beside those that are held is to be asked before (`lacks_room`); `room_made` tells that it may be otherwise now. Code is held before the
calls that need it are admitted: else their arguments could fill the store, and wait for what finds no room beside them.

A result's objects are files that a slot wrote into the store's folder. They are put to the manager (by path where it is on this
host), then the end of the call is told, then the local copy goes.

A cut connection is no failure: it is tried again until the worker gives up its manager. Nor is a manager whose disk is full, or that is
short of descriptors, say, for `NO_ROOM_SECONDS`: a result that was computed is worth waiting for. So long an object waits, too, that the
store here has no room for, as what is held will be let go. What the manager does not have, or a disk that is full here, is one, and the
text says which.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from windlass.bulk import NotNow
from windlass.errors import ConnectionRefused, StoreFull, WindlassError
from windlass.messages import BAD_CALL, DIED, CallEnd, EndDetail, ObjectName, ObjectRef

if TYPE_CHECKING:
    from windlass.object_store import ObjectStore

#: Seconds between attempts while the manager cannot be reached.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
#: A manager that was just started anew may refuse a session that it does not know yet; one that refuses so often means it.
REFUSALS: Final = 6
#: So long a result waits for room at the manager, and an argument here, and either for the manager to be out of other trouble with its
#: store; then its call fails, as every call must end.
NO_ROOM_SECONDS: Final = 600.0


class Data(Protocol):
    """The data connections to the manager; `windlass.dataplane.DataClient` is one."""

    async def get(self, ref: ObjectRef, /) -> None: ...
    async def put(self, name: ObjectName, path: str, /) -> None: ...


class TransferFailed(WindlassError):
    """An object cannot be had; `outcome` is how a call that needs it ends."""

    def __init__(self, text: str, outcome: int = BAD_CALL) -> None:
        super().__init__(text)
        self.outcome = outcome


class Transfers:
    """All objects that a worker holds or moves."""

    def __init__(
        self,
        store: ObjectStore,
        data: Data,
        *,
        arrived: Callable[[ObjectName], None],
        failed: Callable[[ObjectName, int, str], None],
        room_made: Callable[[], None],
    ) -> None:
        self._store = store
        self._data = data
        self._arrived = arrived
        self._failed = failed
        self._room_made = room_made
        self._holds: dict[ObjectName, int] = {}
        #: Bytes of all that is held, here or on its way; and somebody was told that there is no room for more.
        self._held_bytes = 0
        self._short = False
        self._pinned: set[ObjectName] = set()
        self._fetches: dict[ObjectName, asyncio.Task[TransferFailed | None]] = {}
        self._pushes: dict[asyncio.Task[None], CallEnd] = {}

    @property
    def pushing(self) -> int:
        """Ends of calls that wait for their objects to be sent."""
        return len(self._pushes)

    @property
    def waiting_ends(self) -> list[CallEnd]:
        """Those ends."""
        return list(self._pushes.values())

    def lacks_room(self, refs: Sequence[ObjectRef], /) -> str:
        """Why these cannot be held beside what is held now; empty: they can. Who was told so hears when something was released."""
        limit = self._store.limit
        more = sum({ref.name: ref.size for ref in refs if ref.name not in self._holds}.values())
        if not limit or not more or self._held_bytes + more <= limit:
            return ""
        self._short = True
        return f"{more} bytes more do not fit into the {limit} bytes of {self._store.folder}, of which {self._held_bytes} are in use"

    def could_hold(self, refs: Sequence[ObjectRef], /) -> bool:
        """Whether the store has room for these when nothing else is in it."""
        return self._store.could_hold(sum(ref.size for ref in refs))

    def hold(self, refs: Sequence[ObjectRef], /) -> list[ObjectName]:
        """Keep these until `release`; fetch what is missing, and say what that is."""
        for ref in refs:
            if ref.name not in self._holds:
                self._held_bytes += ref.size
            self._holds[ref.name] = self._holds.get(ref.name, 0) + 1
        return self._ask_for(refs)

    def _ask_for(self, refs: Sequence[ObjectRef]) -> list[ObjectName]:
        missing: list[ObjectName] = []
        for ref in refs:
            name = ref.name
            if name in self._pinned:
                continue
            if name in self._fetches or not self._pin(name):
                missing.append(name)
                if name not in self._fetches:
                    task = self._fetches[name] = asyncio.get_running_loop().create_task(self._fetch(ref))
                    task.add_done_callback(partial(self._fetched, name))
        return missing

    def release(self, refs: Sequence[ObjectRef], /) -> None:
        """A holder does not need these any more."""
        for ref in refs:
            left = self._holds.get(ref.name, 0) - 1
            if left > 0:
                self._holds[ref.name] = left
                continue
            if self._holds.pop(ref.name, None) is not None:
                self._held_bytes -= ref.size
            if ref.name in self._pinned:
                self._pinned.discard(ref.name)
                self._store.unpin(ref.name)
            if self._short:
                self._short = False
                asyncio.get_running_loop().call_soon(self._room_made)

    def look_again(self) -> None:
        """What is held may have been deleted, as when a call lacked it: then it is fetched for who holds it next."""
        self._pinned = set(filter(self._store.has, self._pinned))

    async def obtain(self, refs: Sequence[ObjectRef]) -> None:
        """Wait until all of these, which somebody holds, are there; again where they have failed. Raises `TransferFailed`."""
        self.look_again()  # what is held for long, such as code, is not asked for by calls
        self._ask_for(refs)
        # All of them now: one that ends while another is awaited leaves `_fetches`, and its error with it.
        for ref, task in [(ref, self._fetches.get(ref.name)) for ref in refs]:
            error = await asyncio.shield(task) if task is not None else None
            if error is not None:
                raise error
            if ref.name not in self._pinned:
                raise TransferFailed(f"object {ref.name} could not be kept in the worker's store: it is full", DIED)

    def push(self, end: CallEnd, tell: Callable[[CallEnd], None]) -> None:
        """Send the objects of a result, then `tell` the end of its call; as a failed one where they cannot be sent."""
        task = asyncio.get_running_loop().create_task(self._push(end))
        self._pushes[task] = end
        task.add_done_callback(partial(self._pushed, end, tell))

    async def close(self) -> None:
        """Give up whatever is on its way, and let go of all that is held: what comes after this has the store to itself."""
        for name in self._pinned:
            self._store.unpin(name)
        self._pinned.clear()
        self._holds.clear()  # so that nothing is pinned any more
        self._held_bytes, self._short = 0, False
        tasks = [*self._fetches.values(), *self._pushes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ inside

    def _pin(self, name: ObjectName) -> bool:
        try:
            self._store.pin(name)
        except KeyError:
            return False
        self._pinned.add(name)
        return True

    async def _fetch(self, ref: ObjectRef) -> TransferFailed | None:
        """Fetch one object; an error is handed back, since there may be nobody who awaits this."""
        try:
            await self._get(ref)
        except TransferFailed as error:
            return error
        self._store.fetched(ref.name)
        if ref.name in self._holds and not self._pin(ref.name):
            text = f"object {ref.name} of {ref.size} bytes was fetched and did not stay: the worker's store is too small"
            return TransferFailed(text, DIED)
        return None

    def _fetched(self, name: ObjectName, task: asyncio.Task[TransferFailed | None]) -> None:
        self._fetches.pop(name, None)
        if task.cancelled():
            return
        defect = task.exception()
        if defect is not None:
            self._failed(name, BAD_CALL, f"object {name} could not be fetched, by a defect of Windlass: {defect!r}")
            return
        error = task.result()
        if error is None:
            self._arrived(name)
        else:
            self._failed(name, error.outcome, str(error))

    async def _get(self, ref: ObjectRef) -> None:
        try:
            await _insist(partial(self._get_now, ref))
        except (ConnectionRefused, NotNow) as error:
            raise TransferFailed(f"object {ref.name} of {ref.size} bytes could not be fetched: {error}", DIED) from error
        except OSError as error:
            # A full disk is this node's trouble: the call may be tried again elsewhere.
            raise TransferFailed(
                f"object {ref.name} of {ref.size} bytes could not be stored on {os.uname().nodename}: {error}", DIED
            ) from error
        except (KeyError, ValueError, WindlassError) as error:
            raise TransferFailed(f"object {ref.name} of {ref.size} bytes could not be fetched: {_text(error)}") from error

    async def _get_now(self, ref: ObjectRef) -> None:
        try:
            await self._data.get(ref)
        except StoreFull as error:
            if error.errno is None and self._store.could_hold(ref.size):  # no full disk, but what others hold
                raise NotNow(f"there is no room for it on {os.uname().nodename}: {error}") from error
            raise

    async def _push(self, end: CallEnd) -> None:
        for ref in end.spans:
            path = str(self._store.folder / ref.name)
            try:
                await _insist(partial(self._data.put, ref.name, path))
            except ConnectionRefused as error:
                raise TransferFailed(f"the result of {ref.size} bytes could not be handed to the manager: {error}", DIED) from error
            except OSError as error:
                raise TransferFailed(
                    f"the result of {ref.size} bytes could not be read back on {os.uname().nodename}: {error}", DIED
                ) from error
            except (KeyError, ValueError, WindlassError) as error:
                raise TransferFailed(f"the result of {ref.size} bytes could not be handed to the manager: {_text(error)}") from error

    def _pushed(self, end: CallEnd, tell: Callable[[CallEnd], None], task: asyncio.Task[None]) -> None:
        self._pushes.pop(task, None)
        spans = end.spans
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                outcome = error.outcome if isinstance(error, TransferFailed) else BAD_CALL
                end.outcome, end.payload, end.spans, end.detail = outcome, b"", (), EndDetail(text=str(error) or repr(error))
            tell(end)
        for ref in spans:
            self._store.discard(ref.name)


async def _insist(move: Callable[[], Awaitable[None]]) -> None:
    """Move an object; again and again while the manager cannot be reached, or says that it may be otherwise later."""
    pause, refusals, loop = FIRST_PAUSE, 0, asyncio.get_running_loop()
    no_room_end = loop.time() + NO_ROOM_SECONDS
    while True:
        try:
            return await move()
        except ConnectionRefused:
            refusals += 1
            if refusals == REFUSALS:
                raise
        except NotNow:
            if loop.time() > no_room_end:
                raise
        except (ConnectionError, TimeoutError):
            pass
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _text(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
