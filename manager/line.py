"""The line from a program to a manager in another process: messages one way and the other, and large data beside them.

Theory of operation
-------------------
One thread, the port's, has a control connection and data connections to the manager.  The program's client puts calls and messages into
`Line.inbox`, as it would into that of a manager in its own process; the thread takes all that is there, puts calls of one library and
options into one `SubmitCalls`, and sends them.  While the connection is congested the rest waits in the inbox.

*Objects.*  `AttachedStore` is the client's way to the manager's objects.  An argument is at the manager, and pinned for this program,
before its call is said: on one host as a file that the manager adopts, else by its bytes.  `put` waits for that, so a program
cannot change data on their way.  What is put twice while it is needed travels once.  A result is read where the manager keeps it on one
host, else fetched when somebody asks for it, who waits while the connection is cut; it stays at the manager until it was read or nobody is
left who could.

A line that is lost for good (the manager ended, or was not reached for its ``reconnect_grace``) says so once, by ``on_lost``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import shutil
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from windlass import __version__, unstarted
from windlass.bulk import ObjectGone
from windlass.dataplane import DataClient
from windlass.errors import Closed, ConnectionRefused, StoreFull, Unreachable, WindlassError
from windlass.identity import ConnectionFile
from windlass.mailbox import Mailbox
from windlass.manager.advice import Advice
from windlass.manager.calls import message_bytes
from windlass.manager.inbox import Inbox, Tidy, joined
from windlass.manager.keeping import LOOK_SECONDS
from windlass.manager.programs import in_frames
from windlass.messages import (
    PROTOCOL,
    CallDone,
    CallId,
    CallsDone,
    CallSent,
    CallsFound,
    CallSpec,
    EndsRead,
    FileBrought,
    FileName,
    FilesForgotten,
    FindCalls,
    GetStatus,
    Hello,
    KeepCalls,
    Leave,
    Means,
    Message,
    ObjectName,
    ObjectRef,
    ReleaseObjects,
    Status,
    SubmitCalls,
    Welcome,
)
from windlass.object_store import ObjectStore
from windlass.objects import content_name, map_object
from windlass.ownership import same_host
from windlass.store_folders import default_store_folder
from windlass.transport import Port

log = logging.getLogger("windlass.manager")

#: Bytes of calls in one `SubmitCalls`, well under the limit of a frame; one call alone may have more.
_SUBMIT_BYTES: Final = 256 << 10
_ANSWER_SECONDS: Final = 10.0
#: Between two looks whether anybody has come who runs this program's calls.
_ADVICE_SECONDS: Final = 1.0
#: Seconds between looks for memory that is not used again, while there is any.
_SWEEP_SECONDS: Final = 5.0


class Line:
    """A program's connection to a manager elsewhere. ``deliver`` gets ends of calls, ``on_lost`` why it ended; both on its thread."""

    def __init__(
        self,
        connection: ConnectionFile,
        name: str,
        deliver: Callable[[list[CallDone]], None],
        on_lost: Callable[[str], None],
        on_brought: Callable[[str, str], None],
        on_forgotten: Callable[[Sequence[FileName]], None],
        tidy: Callable[[], None],
        on_found: Callable[[CallsFound, str], list[Any]],
    ) -> None:
        self.inbox: Inbox[Any] = Inbox(self._wake)
        self.store = AttachedStore(self)
        #: What there is to run calls with, as the manager last said.
        self.means = Means(0, 0)
        #: How many calls of this program have not ended.
        self.outstanding: Callable[[], int] = int
        #: What the journal of this program is called, if it has one.
        self.journal = ""
        #: The manager keeps the ends of this program's calls that are still to come, and tells no more of them.
        self._hears_no_more = False
        self._keep = False
        self._advice = Advice()
        self._looks = False
        self._sweeping = False
        self.manager = connection.manager
        #: What people call that one.
        self.title = ""
        self._name = name
        self._file = connection
        self._deliver, self._on_lost, self._on_brought = deliver, on_lost, on_brought
        self._on_forgotten, self._tidy, self._on_found = on_forgotten, tidy, on_found
        self._statuses: Mailbox[bytes | None] = Mailbox()
        self._asking = threading.Lock()
        #: Guards the tags that the manager was asked for and has not answered, which it does in that order, and what it found by tag.
        self._finding = threading.Condition()
        self._asked: deque[str] = deque()
        self._found: defaultdict[str, list[Any]] = defaultdict(list)
        self._data: DataClient | None = None
        self._welcome: Welcome | None = None
        self._shares_host = False
        #: The manager has ended, or was not reached for so long that it was given up.
        self.lost = False
        self._port = Port(connection, "client", name, self._hear, self._over, self._welcomed)

    # ------------------------------------------------------------ from the program's threads

    def open(self, keep: bool, timeout: float) -> None:
        """Connect. Raises `ConnectionRefused`, and `OSError` where there is no room here for what is on its way."""
        _ = self.store.local  # made here, where what it raises reaches the program; the port could only end
        self._keep = keep
        try:
            self._port.open(timeout)
            self._port.send(KeepCalls(keep, journal=self.journal, tells_read=self.tells_read))
        except BaseException:
            self.store.close()
            raise

    @property
    def tells_read(self) -> bool:
        """The manager is to know which ends this program has read. One with a journal has there what it was told."""
        return self._keep and not self.journal and self._welcome is not None and self._welcome.keeps_unread

    def has_read(self, call: CallId, tag: str | None) -> None:
        """This program has the end of a call with this tag: nobody else is to find it."""
        if tag:
            with suppress(Closed):  # and with the manager all that was to be found
                self.inbox.put(("client", EndsRead((call,))))

    def leave_calls(self, unread: Callable[[], list[CallDone]]) -> None:
        """This program's calls go on when it is gone, which it soon is; the manager keeps what they return, and what is ``unread`` when it
        tells no more. Raises `Closed`."""
        self._hear_no_more(_ANSWER_SECONDS)
        for message in in_frames(unread()):
            self._port.send(message)

    def end_hearing(self, timeout: float) -> None:
        """This program is about to leave, and closes its journal if it has one: what ends from now on is kept at the manager for who finds
        it or for its next life, if its calls go on. All that was told is here when this returns, or after so many seconds."""
        if self._keep and not self._hears_no_more:
            with suppress(Closed):
                self.flush()  # also what it has read
                self._hear_no_more(timeout)

    def _hear_no_more(self, timeout: float) -> None:
        self._hears_no_more = True
        self._port.send(KeepCalls(True, leaving=True))
        try:
            self.ask_status(timeout)  # behind all ends that were on their way
        except Unreachable as error:
            log.warning("%s; what its last words tell of this program's calls goes with this program", error)

    def flush(self) -> None:
        """All that was put into the inbox has gone into the connection, or will before it is closed. Raises `Closed`."""

        async def drain() -> None:
            self._drain(whole=True)

        self._port.run(drain)

    def close(self, timeout: float) -> None:
        """Say goodbye, and end the thread; ``timeout`` in seconds."""
        try:
            self.flush()
            self._port.run(self._close_data)
        except (WindlassError, TimeoutError):
            pass  # the manager was gone first, or its data connections take their time to end
        self._port.close(timeout)
        self.store.close()

    def ask_status(self, timeout: float = _ANSWER_SECONDS) -> bytes:
        """The manager's status as JSON. Raises `Closed`, `Unreachable`."""
        with self._asking:
            while not self._statuses.empty():
                self._statuses.get()  # the late answer to one who gave up
            self._port.send(GetStatus())
            try:
                answer = self._statuses.get(timeout=timeout)
            except queue.Empty:
                text = f"manager {self.manager} did not answer within {timeout:g} s; is it cut off, stopped or very busy?"
                raise Unreachable(text) from None
        if answer is None:
            raise Closed(f"manager {self.manager} is gone")
        return answer

    def find(self, tag: str, timeout: float = _ANSWER_SECONDS) -> list[Any]:
        """Take over the calls with this tag of programs that have left: their futures. Raises `Closed`, `Unreachable`."""
        with self._asking, self._finding:
            self._asked.append(tag)
            self._port.send(FindCalls(tag))
            # What one who gave up had asked for is answered first, and is there for who asks for that tag next.
            if not self._finding.wait_for(lambda: self.lost or not self._asked, timeout):
                raise Unreachable(f"manager {self.manager} did not answer within {timeout:g} s; ask again")
            if self._asked:
                raise Closed(f"manager {self.manager} is gone")
            return self._found.pop(tag, [])

    def _wake(self) -> None:
        self._port.call(self._drain)

    # ------------------------------------------------------------ objects, from the program's threads

    @property
    def folder(self) -> str:
        """Where the manager's objects are, if this host has them; "" otherwise."""
        welcome = self._welcome
        return welcome.store if welcome is not None and self._shares_host else ""

    def put_file(self, name: ObjectName, path: Path, use: int) -> None:
        """Have the manager keep this file, which is on its host, for this use of it. Raises `StoreFull`, `Closed`."""
        self._transfer(lambda data: data.put(name, path, use))

    def put_bytes(self, name: ObjectName, view: memoryview, use: int) -> None:
        """Have the manager keep these bytes. Raises `StoreFull`, `Closed`."""
        self._transfer(lambda data: data.put_bytes(name, view, use))

    def _transfer(self, work: Callable[[DataClient], Any]) -> None:
        async def go() -> None:
            assert self._data is not None
            await work(self._data)

        try:
            self._port.run(go)
        except ObjectGone as error:
            raise StoreFull(f"manager {self.manager} does not take it: {error}") from error
        except ConnectionError as error:
            raise Unreachable(f"data for manager {self.manager} could not be sent: {error}; submit it again") from error

    def get(self, ref: ObjectRef, store: ObjectStore) -> None:
        """Have an object of the manager's in this store. Raises `Closed`, `ObjectGone`, `ConnectionError`, `OSError`."""

        async def go() -> None:
            assert self._data is not None
            await self._data.get(ref)

        self._port.run(go)

    # ------------------------------------------------------------ on the port's thread

    def _hello(self) -> Hello:
        return Hello("client", PROTOCOL, __version__, sys.version_info[:2], self._name)

    def _welcomed(self, welcome: Welcome) -> None:
        link = self._port.link
        if link is not None:
            link.on_writable = self._drain
        if self._data is None:
            self._data = DataClient(self._file, self._hello, self.store.local)
            self._shares_host = same_host(welcome.store, welcome.store_token)
        self._data.use_welcome(welcome)
        self._welcome = welcome

    async def _close_data(self) -> None:
        if self._data is not None:
            await self._data.close()

    def _drain(self, *, whole: bool = False) -> None:
        """Send what is in the inbox; ``whole``: congested or not."""
        link = self._port.link
        if link is None or (link.congested and not whole):
            return  # `on_writable` comes back to it
        calls: list[CallSent] = []
        library, options, size = None, None, 0

        def flush() -> None:
            nonlocal calls, size
            if calls:
                assert library is not None
                assert options is not None
                link.send_now(SubmitCalls(library, options, calls))
                calls, size = [], 0

        for item in joined(self.inbox.drain()):
            if type(item) is CallSpec:
                # What stays on a worker is made again.
                key = item.key if self.journal and not item.keep and item.sandbox is None else b""
                more = message_bytes(item) + 4 * len(item.tag) + len(item.trace) + len(key)
                if item.library != library or item.options is not options or size + more > _SUBMIT_BYTES:
                    flush()
                    library, options = item.library, item.options
                rest = (item.inputs, item.keep, item.sandbox, item.tag, item.trace, key)
                calls.append(CallSent(item.call, item.function, item.payload, item.spans, *rest))
                size += more
                continue
            message = item[1]
            if type(message) is Tidy:
                self._tidy()
                continue
            flush()
            link.send_now(message)
        flush()
        if not self._looks:
            self._look_for_means()
        if not self._sweeping:
            self._sweep()

    def _sweep(self) -> None:
        """Memory of results that were let go of goes back to the system after a while."""
        self._sweeping = self.store.sweep()
        if self._sweeping:
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _look_for_means(self) -> None:
        """Tell the program whose calls wait that nobody is there to run them: its manager's log may be far away."""
        port = self._file.addresses[0][1] if self._file.addresses else 0
        text = self._advice.look(
            self.outstanding(), len(self.means.workers), len(self.means.offers), port, time.monotonic(), unstarted.of(self.title)
        )
        if text:
            log.warning("%s", text)
        self._looks = self._advice.due
        if self._looks:
            asyncio.get_running_loop().call_later(_ADVICE_SECONDS, self._look_for_means)

    def _hear(self, message: Message) -> None:
        if type(message) is CallsDone:
            self.store.expect(message.done)
            self._deliver(message.done)
        elif isinstance(message, CallsFound):
            for name, count, seconds in message.awaited:
                log.warning("find(%r): %s", self._asked[0], _tell_awaited(name, count, seconds))
            with self._finding:
                self._found[self._asked[0]] += self._on_found(message, self._asked[0])
                if not message.more:
                    self._asked.popleft()
                    self._finding.notify_all()
        elif isinstance(message, Means):
            self.means = message
            if not self._looks:
                self._look_for_means()
        elif isinstance(message, Status):
            self._statuses.put(message.json)
        elif isinstance(message, FileBrought):
            if not message.text:
                self.store.brought(message.name)
            self._on_brought(message.name, message.text)
        elif isinstance(message, FilesForgotten):
            self._on_forgotten(message.names)
        elif isinstance(message, Leave):
            self._over(f"the manager has ended: {message.reason}")

    def _over(self, reason: str) -> None:
        if not self.lost:
            self.lost = True
            self._statuses.put(None)
            with self._finding:
                self._finding.notify_all()
            self._on_lost(reason)


def _tell_awaited(name: str, count: int, seconds: float) -> str:
    calls = "1 more call with this tag is" if count == 1 else f"{count:,} more calls with this tag are"
    it = "it is" if count == 1 else "they are"
    return f"{calls} of {name}, which is not heard of and may be gone: {it} found when it is given up, in {seconds:.0f} s at most"


class AttachedStore:
    """A program's way to the objects of a manager elsewhere."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._lock = threading.RLock()
        #: One at a time, so that what two threads put is sent once.
        self._putting = threading.Lock()
        #: What is at the manager for this program, and how many here need it.
        self._held: Counter[str] = Counter()
        #: Each time that something is to be there has a number, which stays until that is known to have been done.
        self._uses = itertools.count(1)
        self._unsure: dict[str, int] = {}
        #: Bytes of objects of results that were not read yet.
        self._results: dict[str, int] = {}
        #: Those of them that are on workers and not at the manager.
        self._away: set[str] = set()
        self._folder: Path | None = None
        self._local: ObjectStore | None = None
        #: On the monotonic clock: from then on nobody waits for a connection, as the program leaves.
        self.patience_until = float("inf")
        #: It was over, and there was no connection.
        self._given_up = False

    @property
    def far(self) -> bool:
        """Objects come over a network, so that opening one may take long, as while the manager is cut off."""
        return not self._line.folder

    @property
    def local(self) -> ObjectStore:
        """A folder of this program's own, for what is on its way."""
        with self._lock:
            if self._local is None:
                self._folder = default_store_folder("program")
                self._local = ObjectStore(self._folder)
            return self._local

    def put(self, data: Any, *, pin: bool = False) -> ObjectRef:
        """Have it at the manager, until it is unpinned as often as it was put. Raises `StoreFull`, `Closed`, `Unreachable`."""
        view = memoryview(data)
        if view.ndim != 1 or view.format != "B":
            view = view.cast("B")
        name = content_name(view)
        with self._putting:
            with self._lock:
                if self._held[name]:
                    self._held[name] += 1
                    return ObjectRef(name, view.nbytes)
            use = self._unsure.setdefault(name, next(self._uses))
            if self._line.folder:
                ref = self.local.put_as(name, view)
                try:
                    self._line.put_file(name, self.local.path(ref.name), use)
                finally:
                    self.local.discard(name)
            else:
                self._line.put_bytes(name, view, use)
            del self._unsure[name]
            with self._lock:
                self._held[name] += 1
        return ObjectRef(name, view.nbytes)

    def could_hold(self, size: int) -> bool:
        """Only the manager knows; while calls of this program run, waiting for them may help."""
        return True

    def pin(self, name: str) -> None:
        """One more here needs what was put. Raises `KeyError` when nobody here needs it any more, so that it may be gone."""
        with self._lock:
            if not self._held[name]:
                del self._held[name]
                raise KeyError(name)
            self._held[name] += 1

    def unpin(self, name: str) -> None:
        """One that needed it does so no more."""
        with self._lock:
            if self._held[name] > 1:
                self._held[name] -= 1
                return
            if not self._held.pop(name, 0):
                return
        self._release(name)

    def expect(self, done: list[CallDone]) -> None:
        """Results have come whose objects are at the manager."""
        for one in done:
            for span in one.end.spans:
                self._results[span.name] = span.size
            if one.end.kept:
                self._away.update(span.name for span in one.end.spans)

    def brought(self, name: str) -> None:
        """A result that stayed on a worker is at the manager now."""
        self._away.discard(name)

    def open(self, name: str) -> memoryview:
        """A private, writable mapping of a result's object; waits while the manager is cut off. Raises `KeyError`, and `Closed` when the
        manager is gone with it."""
        folder = self._line.folder
        if folder:
            try:
                return map_object(os.path.join(folder, name))
            except OSError:
                pass  # it is where the manager keeps what memory has no room for, or gone
        size = self._results.get(name)
        if size is None or name in self._away:
            raise KeyError(name)
        told = False
        while True:
            try:
                if self._given_up:  # each attempt takes as long as it takes to dial
                    raise ConnectionResetError("there is no connection to it")
                self._line.get(ObjectRef(ObjectName(name), size), self.local)
                return self.local.open(name)
            except (ObjectGone, ConnectionError, Closed) as error:
                full = isinstance(error.__cause__, StoreFull)  # it is the disk here
                cut = isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefused) and not full
                if not cut or self._line.lost or time.monotonic() > self.patience_until:
                    self._given_up |= cut
                    where = f"was kept at manager {self._line.manager}"
                    raise Closed(f"the call's result of {size:,} bytes {where} and cannot be had from there any more: {error}") from error
                if not told:
                    text = "the call's result of %s bytes cannot be had from manager %s now (%s): it comes when there is a connection again"
                    log.warning(text, f"{size:,}", self._line.manager, error)
                told = True
            time.sleep(LOOK_SECONDS)  # a cut passes, or the line is lost in the end

    def discard(self, name: str) -> None:
        """Nobody needs this result any more. May be called by a finaliser, in any thread."""
        if self._results.pop(name, None) is None:
            return
        self._away.discard(name)
        if self._local is not None:
            self._local.discard(name)
        self._release(name)

    def _release(self, name: str) -> None:
        try:
            self._line.inbox.put(("client", ReleaseObjects((ObjectName(name),))))
        except Closed:
            pass  # and with the session all that was its

    def sweep(self) -> bool:
        """As `ObjectStore.sweep`."""
        return self._local is not None and self._local.sweep()

    def close(self) -> None:
        """Remove what is left here."""
        with self._lock:
            if self._local is not None:
                self._local.close()
                shutil.rmtree(self._folder or "", ignore_errors=True)
