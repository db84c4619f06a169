"""Data connections: objects as raw bytes between a worker's or program's store and its manager's.

Theory of operation
-------------------
A data connection begins like any other (TLS, `Hello` with purpose "data", `Welcome`).  Then the worker says `GetObject` or `PutObject` in
frames without numbers; raw bytes of the announced size follow a `PutObject`, or the manager's `ObjectHead`, directly.  Answers name their
object, so many requests may be under way at once and answers need not come in their order.  Nothing is numbered or remembered: a
request is done or, after a cut, made again from its beginning.

No object delays anything else on its loop: it is sent at most `CHUNK_BYTES` per turn of the loop, only while the socket takes it, straight
from the mapped file; and it is written, and hashed, in such pieces as it arrives.  What cannot be kept (no room, a bad name) is read and
thrown away, so that the connection stays good for others, and answered with `ObjectMissing`.

A worker that can read the manager's store by path (it finds the token of `Welcome` in ``.token``) shares its host, and bytes do not
travel: the file is adopted, by a hard link where that is possible.  Should that fail, the bytes are sent after all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from windlass.adopting import adopt
from windlass.bulk import BULK_BYTES, BulkClient, ObjectGone, Way, missing, send, send_file
from windlass.datastream import Outgoing, Stream
from windlass.descriptors import Held, view_of
from windlass.errors import ConnectionRefused
from windlass.filewire import ALPN
from windlass.framing import ProtocolError, frame, unpacked
from windlass.identity import CLIENT, WORKER, ConnectionFile, context_for
from windlass.messages import (
    RESULT,
    FromData,
    GetObject,
    Hello,
    ObjectHead,
    ObjectMissing,
    ObjectName,
    ObjectRef,
    ObjectStored,
    PutObject,
    Refused,
    ToData,
    Welcome,
)
from windlass.objects import open_object
from windlass.ownership import same_host
from windlass.passing import may_pass
from windlass.session import encode_one
from windlass.transport import dial, read_afresh

if TYPE_CHECKING:
    from windlass.incoming import Incoming
    from windlass.object_store import ObjectStore

log = logging.getLogger("windlass.dataplane")

#: Requests of one connection that may wait for their turn at the manager.
MAX_WAITING: Final = 4096
#: Seconds without a byte either way after which a data connection with requests counts as cut.
SILENCE: Final = 30.0

T = TypeVar("T")
#: Pins an object for the peer that has put it, once for each of its uses: "", or why that was not possible.
Keep = Callable[[ObjectName, int], str]
#: Whether the worker of this id may have this object.
MayHave = Callable[[str, ObjectName], bool]


# ---------------------------------------------------------------- the manager's side


class DataServer:
    """Makes the protocol of each data connection; give it to `windlass.listener.Listener` as ``serve_data``."""

    def __init__(
        self, store: ObjectStore, keeper_for: Callable[[Hello], Keep | None] | None = None, may_have: MayHave | None = None
    ) -> None:
        self.store = store
        #: Whether a worker may have an object; None: it may. A program of the user's may have all.
        self.may_have = may_have
        #: Gives what keeps what this peer puts, if its are kept.
        self.keeper_for = keeper_for
        self.decoder: msgspec.msgpack.Decoder[GetObject | PutObject] = msgspec.msgpack.Decoder(FromData)
        #: Bytes of objects sent and received over connections, and taken in by path, for the status.
        self.bytes_out = 0
        self.bytes_in = 0
        self.bytes_adopted = 0
        self._lock = threading.Lock()

    def count(self, sent: int = 0, received: int = 0) -> None:
        """So many bytes move over a connection; from any thread."""
        with self._lock:
            self.bytes_out += sent
            self.bytes_in += received

    def __call__(self, hello: Hello) -> Stream:
        keep = self.keeper_for(hello) if self.keeper_for is not None else None
        return _Served(self, hello.peer, keep, self.rule_for(hello))

    def look_up(self, name: ObjectName) -> tuple[ObjectHead | ObjectMissing, memoryview]:
        """What to say to who asks for it, and the bytes that follow. From any thread."""
        found = self._found(name, lambda: self.store.open(name, briefly=True))
        if isinstance(found, ObjectMissing):
            return found, memoryview(b"")
        self.count(sent=len(found))
        return ObjectHead(name, len(found)), found

    def look_up_file(self, name: ObjectName) -> tuple[ObjectHead | ObjectMissing, int]:
        """The same with a descriptor, which the caller closes, of a file that has the bytes; -1: none follow."""
        found = self._found(name, lambda: self.store.open_file(name))
        if isinstance(found, ObjectMissing):
            return found, -1
        size = os.fstat(found).st_size
        self.count(sent=size)
        return ObjectHead(name, size), found

    def _found(self, name: ObjectName, opened: Callable[[], T]) -> T | ObjectMissing:
        try:
            return opened()
        except KeyError:
            return ObjectMissing(name, "the manager does not have it any more")
        except OSError as error:
            return ObjectMissing(name, f"the manager cannot read it: {error}", may_pass(error))

    def offer(self, message: PutObject) -> tuple[Incoming | None, str, bool]:
        """What takes the bytes in that follow; None: they are to be read away, as the object is here already or, by the text, cannot be
        kept; and then whether that may be otherwise later. From any thread."""
        if self.store.has(message.name):
            return None, "", False
        try:
            incoming = self.store.receive(message.name, message.size)
        except (OSError, ValueError) as error:
            return None, str(error), may_pass(error) and self.store.could_hold(message.size)
        self.count(received=message.size)
        return incoming, "", False

    def rule_for(self, hello: Hello) -> MayHave | None:
        """Which objects this peer may have; None: all."""
        if hello.role == CLIENT or self.may_have is None:
            return None
        return self.may_have if hello.role == WORKER else lambda peer, name: False


class _Served(Stream):
    """A data connection at the manager."""

    def __init__(self, server: DataServer, peer: str, keep: Keep | None, may_have: MayHave | None) -> None:
        super().__init__()
        self._may_have = may_have
        self._server = server
        self._peer = peer
        self._keep = keep
        #: What is coming in.
        self._coming = PutObject(ObjectName(""), 0)
        self._tasks: set[asyncio.Task[None]] = set()

    def ended(self, reason: str) -> None:
        log.debug("the data connection of %s has ended: %s", self._peer, reason)

    def heard(self, body: memoryview) -> None:
        message = unpacked(self._server.decoder, body, "a request")
        if len(self._queue) + len(self._tasks) > MAX_WAITING:
            raise ProtocolError(f"{self._peer} has more than {MAX_WAITING} requests waiting")
        if isinstance(message, GetObject):
            if self._may_have is not None and not self._may_have(self._peer, message.name):
                self._answer(message.name, f"worker {self._peer} was not told of it, or needs it no more")
            else:
                self.post(Outgoing(lambda: self._open(message.name)))
        elif message.path:
            task = self._loop.create_task(self._adopt(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._receive(message)

    def _open(self, name: ObjectName) -> tuple[bytes, memoryview | None]:
        head, view = self._server.look_up(name)
        return frame(encode_one(head)), view or None

    def _receive(self, message: PutObject) -> None:
        self._coming = message
        if message.size < 0:
            raise ProtocolError(f"object {message.name} was announced with {message.size} bytes")
        incoming, trouble, later = self._server.offer(message)
        self.take_in(incoming, message.size)
        if incoming is None:
            self._answer(message.name, trouble or self._kept(message), later)

    def kept(self, trouble: str, error: Exception | None = None) -> None:
        self._answer(self._coming.name, trouble or self._kept(self._coming), may_pass(error))

    def _kept(self, message: PutObject) -> str:
        """Pin it for the peer, where that is its right: empty, or why that was not possible."""
        return self._keep(message.name, message.use) if self._keep is not None else ""

    async def _adopt(self, message: PutObject) -> None:
        # A program of the user's is believed that its file is what its name says; a worker, which runs anybody's code, is not.
        credible = message.name.startswith(RESULT) or self._keep is not None
        if credible and os.path.basename(message.path) == message.name:
            trouble = await adopt(self._server.store, ObjectRef(message.name, message.size), message.path)
            self._server.bytes_adopted += 0 if trouble else message.size
            trouble = trouble or self._kept(message)
        else:  # not any file of the user's, which could be fetched then; and not what must be hashed to be believed
            trouble = f"{message.path} is not the file of a result"
        self._answer(message.name, trouble)

    def _answer(self, name: ObjectName, trouble: str, later: bool = False) -> None:
        answer = frame(encode_one(ObjectMissing(name, trouble, later) if trouble else ObjectStored(name)))
        self.post(Outgoing(lambda: (answer, None)))


# ---------------------------------------------------------------- the worker's side


class _Requests(Stream):
    """A data connection at the worker."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__()
        self._store = store
        self._decoder: msgspec.msgpack.Decoder[ObjectHead | ObjectStored | ObjectMissing] = msgspec.msgpack.Decoder(ToData)
        self._waiting: dict[ObjectName, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._arriving: asyncio.Future[None] | None = None
        self.alive = True

    async def ask(self, name: ObjectName, size: int, outgoing: Outgoing) -> None:
        """Send a request; wait for its answer and the object that comes with it. Raises `ObjectGone`, `ConnectionError`, `OSError`."""
        future: asyncio.Future[None] = self._loop.create_future()
        if not self.alive:
            raise ConnectionResetError(self._reason or "the data connection is gone")
        self._waiting.setdefault(name, deque()).append((size, future))
        self.post(outgoing)
        while True:
            before = self.moved
            done, _ = await asyncio.wait([future], timeout=SILENCE)
            if done:
                return future.result()
            if self.moved == before:
                self.abort(f"nothing moved on the data connection for {SILENCE:g} s")

    def heard(self, body: memoryview) -> None:
        message = unpacked(self._decoder, body, "an answer")
        known = self._waiting.get(message.name)
        if not known:
            raise ProtocolError(f"an answer about {message.name} came, which was not asked for")
        size, future = known.popleft()
        if not known:
            del self._waiting[message.name]
        if isinstance(message, ObjectMissing):
            _fail(future, missing(message))
        elif isinstance(message, ObjectStored):
            if not future.done():
                future.set_result(None)
        elif message.size != size:
            raise ProtocolError(f"object {message.name} came with {message.size} bytes and has {size}")
        else:
            self._arriving = future
            incoming: Incoming | None = None
            try:
                incoming = self._store.receive(message.name, message.size, believed=True)
            except (OSError, ValueError) as error:
                _fail(future, error)
            self.take_in(incoming, message.size)

    def kept(self, trouble: str, error: Exception | None = None) -> None:
        future, self._arriving = self._arriving, None
        if future is None or future.done():
            return None
        if trouble:
            # Damaged on its way, or the disk is full: the first is worth another try, and so is, once, the second.
            failure = ConnectionError(trouble)
            failure.__cause__ = error
            return future.set_exception(failure)
        return future.set_result(None)

    def ended(self, reason: str) -> None:
        self.alive = False
        self._reason = reason
        futures = [future for known in self._waiting.values() for _, future in known]
        if self._arriving is not None:
            futures.append(self._arriving)
        self._waiting.clear()
        self._arriving = None
        for future in futures:
            _fail(future, ConnectionResetError(f"the data connection to the manager was cut: {reason}"))


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class _Lane:
    """A place for one connection, made when needed; ``load`` is the bytes it has to move."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.stream: _Requests | None = None
        self.load = 0
        #: More requests wait here, as of too many the manager would think that the protocol is broken.
        self.places = asyncio.Semaphore(MAX_WAITING // 2)


class DataClient:
    """A worker's, or an attached program's, way to its manager's objects. Belongs to one event loop.

    ``bulk_bytes``: objects of so many, and more where the manager is far off, go past the loop (`windlass.bulk`) when they can.
    """

    def __init__(
        self,
        connection: ConnectionFile,
        make_hello: Callable[[], Hello],
        store: ObjectStore,
        *,
        connections: int = 2,
        bulk_bytes: int = BULK_BYTES,
    ) -> None:
        self._connection = connection
        self._make_hello = make_hello
        self._store = store
        self._lanes = [_Lane() for _ in range(connections)]
        self._bulk = BulkClient(store, connections=connections)
        self._bulk_bytes = bulk_bytes
        self._bulk_context: ssl.SSLContext | None = None
        self._credential: tuple[bytes, bytes] | None = None
        self._context: ssl.SSLContext | None = None
        self._session = ""
        #: The manager's store, if this host has it.
        self._folder = ""
        self._getting: dict[ObjectName, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def shares_host(self) -> bool:
        """Whether objects are taken and given by path."""
        return bool(self._folder)

    def use_welcome(self, welcome: Welcome) -> None:
        """Take from the control connection's newest Welcome which session this is, and whether the manager's store is on this host."""
        # Those of before may be half-open, as the control connection may have been, and would not notice for `SILENCE` seconds.
        self._abort_all("the control connection was made anew")
        self._bulk.abort()
        self._session = welcome.session
        self._folder = welcome.store if same_host(welcome.store, welcome.store_token) else ""

    def use_certificate(self, certificate: bytes, key: bytes) -> None:
        """New connections show this certificate (PEM both)."""
        self._credential = (certificate, key)
        self._context = self._bulk_context = None

    async def get(self, ref: ObjectRef) -> None:
        """Have the object in the store. Several calls for one object share its transfer.

        Raises:
            ObjectGone: the manager does not have it. `NotNow`: it cannot read it now.
            ConnectionError: the manager was not reached, or the transfer was cut twice.
            OSError: it cannot be kept here (`StoreFull`).
        """
        if self._store.has(ref.name):
            return
        task = self._getting.get(ref.name)
        if task is None:
            task = self._start(self._get(ref))
            self._getting[ref.name] = task
            task.add_done_callback(lambda _: self._getting.pop(ref.name, None))
        await asyncio.shield(task)

    async def put(self, name: ObjectName, path: str | os.PathLike[str], use: int = 0, *, as_bytes: bool = False) -> None:
        """Give the manager the object that is in this file. ``use``: see `PutObject`. ``as_bytes``: never by its path.

        Raises:
            ObjectGone: the manager does not take it; the text says why. `NotNow`: later it may.
            ConnectionError: the manager was not reached, or the transfer was cut twice.
            OSError: the file cannot be read.
        """
        file = Held(open_object(path))
        size = os.fstat(file.descriptor).st_size
        if self._folder and not as_bytes:
            start = frame(encode_one(PutObject(name, size, os.path.join(os.getcwd(), path), use)))
            try:
                await self._ask(name, size, 1, lambda: (start, None))
                return
            except ObjectGone as error:
                log.info("%s; sending its bytes instead", error)
        head = PutObject(name, size, use=use)
        if not await self._put_past_the_loop(head, lambda sock: send_file(sock, file.descriptor, size)):
            await self._put_on_the_loop(head, view_of(file.descriptor, spare=False))

    async def put_bytes(self, name: ObjectName, view: memoryview, use: int = 0) -> None:
        """Give the manager an object that is in memory (bytes, one dimension)."""
        head = PutObject(name, view.nbytes, use=use)
        if not await self._put_past_the_loop(head, lambda sock: send(sock, view)):
            await self._put_on_the_loop(head, view)

    async def _put_past_the_loop(self, head: PutObject, send_bytes: Callable[[ssl.SSLSocket], None]) -> bool:
        return self._is_bulk(head.size) and await self._past_the_loop(head.name, lambda way: self._bulk.put(way, head, send_bytes))

    async def _put_on_the_loop(self, head: PutObject, view: memoryview) -> None:
        start = frame(encode_one(head))
        await self._ask(head.name, head.size, head.size, lambda: (start, view or None))

    async def close(self) -> None:
        """End all connections; what is under way fails."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self._bulk.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._abort_all("the worker closed it")
        async with asyncio.timeout(2):
            while any(lane.stream is not None and lane.stream.alive for lane in self._lanes):
                await asyncio.sleep(0)

    def _abort_all(self, reason: str) -> None:
        for lane in self._lanes:
            if lane.stream is not None:
                lane.stream.abort(reason)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _get(self, ref: ObjectRef) -> None:
        if self._folder:
            trouble = await adopt(self._store, ref, os.path.join(self._folder, ref.name))
            if not trouble:
                return
            log.info("%s; asking for its bytes instead", trouble)
        if self._is_bulk(ref.size) and await self._past_the_loop(ref.name, lambda way: self._bulk.get(way, ref)):
            return
        head = frame(encode_one(GetObject(ref.name)))
        await self._ask(ref.name, ref.size, ref.size, lambda: (head, None))

    def _is_bulk(self, size: int) -> bool:
        if size < self._bulk_bytes:
            return False
        known = [lane.stream.round_trip for lane in self._lanes if lane.stream is not None and lane.stream.alive]
        if known:  # as the way that was full, say, when it was dialled need not be so for ever
            self._bulk.round_trip = min(known)
        return size >= self._bulk.least

    async def _past_the_loop(self, name: ObjectName, move: Callable[[Way], Coroutine[Any, Any, None]]) -> bool:
        """Move a large object on a connection of its own. False: not possible now. Raises `ObjectGone`, `OSError`."""
        known = self._connection
        if self._bulk_context is None:
            self._bulk_context = self._new_context()
            self._bulk_context.set_alpn_protocols([ALPN])
            self._bulk_context.check_hostname = False  # `windlass.blocking.dial` compares role and name
        try:
            await move(Way(known, self._bulk_context, self._data_hello()))
        except ConnectionError as error:
            log.info("object %s: %s; taking the way of the small ones", name, error)
            return False
        return True

    async def _ask(self, name: ObjectName, size: int, load: int, open: Callable[[], tuple[bytes, memoryview | None]]) -> None:
        """Make a request on the lane with least to do, and once more after a cut."""
        for last in (False, True):
            lane = min(self._lanes, key=lambda lane: lane.load)
            lane.load += load + 1
            try:
                async with lane.places:
                    stream = await self._connected(lane)
                    await stream.ask(name, size, Outgoing(open))
                return
            except ConnectionError as error:
                if last or isinstance(error, ConnectionRefused):
                    raise
                log.info("object %s: %s; once more", name, error)
            finally:
                lane.load -= load + 1

    async def _connected(self, lane: _Lane) -> _Requests:
        async with lane.lock:
            if lane.stream is not None and lane.stream.alive:
                return lane.stream
            try:
                stream = await self._dial()
            except ConnectionError as error:
                fresh = self._connection if isinstance(error, ConnectionRefused) else await read_afresh(self._connection)
                if fresh is self._connection:
                    raise
                self._connection = fresh
                self._context = self._bulk_context = None
                stream = await self._dial()
            lane.stream = stream
            return stream

    def _new_context(self) -> ssl.SSLContext:
        known = self._connection
        return known.client_context() if self._credential is None else context_for(known, *self._credential)

    def _data_hello(self) -> Hello:
        return msgspec.structs.replace(self._make_hello(), purpose="data", session=self._session, received=0, worker=None)

    async def _dial(self) -> _Requests:
        known = self._connection
        if self._context is None:
            self._context = self._new_context()
        connection, answer, _ = await dial(known.manager, known.addresses, self._context, self._data_hello())
        if isinstance(answer, Refused):
            connection.close()
            raise ConnectionRefused(f"manager {known.manager} refused a data connection: {answer.text}")
        transport = connection.transport
        if transport is None:
            raise ConnectionResetError(connection.gone.result())
        stream = _Requests(self._store)
        transport.set_protocol(stream)
        stream.connection_made(transport)
        return stream
