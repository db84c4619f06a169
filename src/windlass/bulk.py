"""Large objects: on blocking connections with a thread at each end, beside those of `windlass.dataplane`.

Theory of operation
-------------------
The loops of manager and worker move an object in pieces between all that they have to do, and each piece costs them a turn; what is long
goes past them.  A `BulkClient` asks, and gives, by the messages of data connections (`GetObject`, `PutObject`), one after the other on each
connection, and `BulkServer` answers on threads of the `windlass.fileserver.FileServer`, which comes by these connections as it does by
those for files.  What only the manager's loop knows (who may have an object, for whom it is kept) is asked there; bytes stay away from it.

A connection waits for an answer before it asks for more, so what a fast network moves in less time than a round trip does not come this way
where the manager is far off (`BulkClient.least`): requests of the loop's connections do not wait for each other.

Nothing depends on it: when no such connection can be had, or one is cut, `ConnectionError` says so, and the object goes the other way.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec

from windlass.blocking import Call, Idle, OutOfTurn, dial, in_thread, plain
from windlass.errors import ConnectionRefused, WindlassError
from windlass.filewire import CHUNK_BYTES, hear, read_into, say
from windlass.framing import MAX_HELLO_BYTES, ProtocolError
from windlass.identity import MANAGER, WORKER, ConnectionFile, Identity
from windlass.messages import GetObject, Hello, ObjectHead, ObjectMissing, ObjectName, ObjectRef, ObjectStored, PutObject, Refused, ToData
from windlass.nearby import round_trip_of
from windlass.passing import may_pass
from windlass.turns import prompt

if TYPE_CHECKING:
    from windlass.dataplane import DataServer
    from windlass.incoming import Incoming
    from windlass.object_store import ObjectStore

log = logging.getLogger("windlass.dataplane")

#: Objects of so many bytes take this way: a thread and its answers cost as much as some hundred kilobytes.
BULK_BYTES: Final = 512 << 10
#: Bytes that a fast network moves in a second.
FAST: Final = 100 << 20
#: Bytes that are encrypted and sent at a time.
SEND_BYTES: Final = 1 << 20
#: Seconds without a byte after which a connection counts as cut, and that one address may take to answer.
SILENCE: Final = 30.0
DIAL_TIMEOUT: Final = 10.0
#: Seconds that the manager's loop may take to answer.
LOOP_TIMEOUT: Final = 60.0

T = TypeVar("T")


class ObjectGone(WindlassError):
    """The other side does not have the object, or does not take it; the text says why."""


class NotNow(ObjectGone):
    """Not now, but later, perhaps: the other side's disk or store is full, or it cannot open the file for want of descriptors, say."""


def missing(answer: ObjectMissing) -> ObjectGone:
    """What an answer means that says no."""
    text = f"object {answer.name}: {answer.text or 'the manager does not have it'}"
    return NotNow(text) if answer.full else ObjectGone(text)


# ---------------------------------------------------------------- the manager's side


class BulkServer:
    """Answers requests for objects on a connection's thread. ``loop``: the manager's."""

    def __init__(self, data: DataServer, loop: asyncio.AbstractEventLoop) -> None:
        self._data = data
        self._loop = loop

    def answer(self, sock: ssl.SSLSocket, hello: Hello, request: GetObject | PutObject) -> None:
        """Raises `OSError`, `ProtocolError`: then the connection is of no use any more."""
        with prompt():
            if isinstance(request, GetObject):
                self._give(sock, hello, request.name)
            else:
                self._take(sock, hello, request)

    def _give(self, sock: ssl.SSLSocket, hello: Hello, name: ObjectName) -> None:
        data = self._data
        if not self._may_have(hello, name):
            say(sock, ObjectMissing(name, f"worker {hello.peer} was not told of it, or needs it no more"))
            return
        head, descriptor = data.look_up_file(name)
        try:
            say(sock, head)
            if isinstance(head, ObjectHead):
                send_file(sock, descriptor, head.size)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _may_have(self, hello: Hello, name: ObjectName) -> bool:
        may_have = self._data.rule_for(hello)
        if may_have is None:
            return True
        # Looked at from here first, as it is nearly always so: to ask on the loop costs two threads a turn each. What is said there counts.
        with suppress(Exception):  # the loop has changed meanwhile what is looked through
            if may_have(hello.peer, name):
                return True
        return self._on_loop(partial(may_have, hello.peer, name))

    def _take(self, sock: ssl.SSLSocket, hello: Hello, message: PutObject) -> None:
        name, size = message.name, message.size
        if size < 0 or message.path:
            raise ProtocolError(f"object {name} was announced with {size} bytes at {message.path!r}")
        incoming, trouble, later = self._data.offer(message)
        failed = receive(sock, incoming, size)
        if failed is not None:
            trouble, later = str(failed), may_pass(failed)
        if not trouble and self._data.keeper_for is not None and hello.role != WORKER:  # whose are results
            trouble = self._on_loop(partial(self._keep, hello, message))
        say(sock, ObjectMissing(name, trouble, later) if trouble else ObjectStored(name))

    def _keep(self, hello: Hello, message: PutObject) -> str:
        assert self._data.keeper_for is not None
        keep = self._data.keeper_for(hello)
        return keep(message.name, message.use) if keep is not None else ""

    def _on_loop(self, work: Callable[[], T]) -> T:
        async def there() -> T:
            return work()

        asking: Coroutine[Any, Any, T] = there()
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError as error:
            asking.close()
            raise ConnectionAbortedError("the manager is closed") from error
        try:
            return answer.result(LOOP_TIMEOUT)
        except CancelledError as error:
            raise ConnectionAbortedError("the manager is closed") from error
        except TimeoutError:
            answer.cancel()
            raise


def send(sock: ssl.SSLSocket, view: memoryview) -> None:
    """All bytes of an object that is in memory. Raises `OSError`."""
    for start in range(0, len(view), SEND_BYTES):
        sock.sendall(view[start : start + SEND_BYTES])


def send_file(sock: ssl.SSLSocket, descriptor: int, size: int) -> None:
    """All bytes of an object that is in a file. Raises `OSError`."""
    # Read, not mapped: to touch pages of a mapping for the first time and to give them back in the end takes longer than a copy that stays
    # in the processor's cache; and a file that somebody has cut off is an error, no signal.
    room, done = memoryview(bytearray(min(size, CHUNK_BYTES))), 0
    while done < size:
        count = os.preadv(descriptor, [room[: size - done]], done)
        if not count:
            raise OSError(errno.EIO, f"a file of {size} bytes ends after {done}")
        sock.sendall(room[:count])
        done += count


def receive(sock: ssl.SSLSocket, incoming: Incoming | None, size: int) -> Exception | None:
    """Take in so many bytes, or read them away; what kept the object from being kept, if anything did.

    Raises:
        OSError: the connection was cut.
    """
    # Written by who reads: what has just been decrypted is in the processor's cache, while a second thread waits for the interpreter's
    # lock as often as a record comes.
    trouble: Exception | None = None
    room, left = memoryview(bytearray(min(size, CHUNK_BYTES))), size
    try:
        while left:
            chunk = room[: min(left, len(room))]
            if not read_into(sock, chunk):
                raise ConnectionResetError(f"the connection was cut {left} bytes before the end of an object")
            left -= len(chunk)
            if incoming is not None and trouble is None:
                try:
                    incoming.write(chunk)
                except (OSError, ValueError) as error:
                    trouble = error
                    incoming.abort()
        if incoming is not None and trouble is None:
            try:
                incoming.commit()
            except (OSError, ValueError) as error:
                trouble = error
        return trouble
    finally:
        if incoming is not None:
            incoming.abort()


# ---------------------------------------------------------------- the worker's side


class Way(NamedTuple):
    """How to reach the manager: where it is, what is shown to it, and how one introduces oneself."""

    manager: ConnectionFile
    context: ssl.SSLContext
    hello: Hello


class BulkClient:
    """A worker's, or an attached program's, way to its manager's large objects. Belongs to one event loop."""

    def __init__(self, store: ObjectStore, *, connections: int = 2, silence: float = SILENCE, dial_timeout: float = DIAL_TIMEOUT) -> None:
        self._store = store
        self._turns = asyncio.Semaphore(connections)
        self._silence, self._dial_timeout = silence, dial_timeout
        self._idle = Idle()
        self._calls: set[Call] = set()
        self._lock = threading.Lock()
        self._closed = False
        #: Seconds to the manager and back, as the connection had them that was made last, here or for small objects.
        self.round_trip = 0.0

    @property
    def least(self) -> int:
        """Shorter objects had better not come this way."""
        return int(self.round_trip * FAST)

    async def get(self, way: Way, ref: ObjectRef) -> None:
        """Have the object in the store.

        Raises:
            ObjectGone: the manager does not have it. `NotNow`: it cannot read it now.
            ConnectionError: it was not reached, refused, or was cut off.
            OSError: it cannot be kept here (`StoreFull`).
        """
        await self._run(ref.size, lambda call: self._get(call, way, ref))

    async def put(self, way: Way, head: PutObject, send_bytes: Callable[[ssl.SSLSocket], None]) -> None:
        """Give the manager this object; ``send_bytes`` may be called for two connections, one after the other.

        Raises `ObjectGone` (`NotNow`), `ConnectionError`, which is also what an `OSError` of ``send_bytes`` becomes.
        """
        await self._run(head.size, lambda call: self._put(call, way, head, send_bytes))

    def abort(self) -> None:
        """Connections of before are not to be trusted; what is under way fails."""
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()
        self._idle.drop_all()  # after that, or one that ends meanwhile would put its own there

    def close(self) -> None:
        """End all connections; what is under way fails."""
        self._closed = True
        self.abort()
        self._idle.close()

    async def _run(self, size: int, work: Callable[[Call], None]) -> None:
        async with self._turns:
            if size < self.least:  # as has turned out while it waited for its turn
                raise ConnectionAbortedError(f"the manager is {1000 * self.round_trip:.0f} ms away")
            if self._closed:
                raise ConnectionAbortedError("the way to the manager's objects is closed")
            call = Call()
            with self._lock:
                self._calls.add(call)
            try:
                with prompt():
                    await in_thread(partial(work, call))
            except OutOfTurn as error:
                raise ConnectionAbortedError(str(error)) from error
            except asyncio.CancelledError:
                call.cancel()
                raise
            finally:
                with self._lock:
                    self._calls.discard(call)
                self._idle.sweep_soon()

    # ------------------------------------------------------------ on a thread

    def _get(self, call: Call, way: Way, ref: ObjectRef) -> None:
        sock, answer = self._ask(call, way, lambda sock: say(sock, GetObject(ref.name)))
        good, trouble = False, None
        try:
            if isinstance(answer, ObjectHead):
                if answer.name != ref.name or answer.size != ref.size:
                    raise ConnectionError(f"{ref.name} of {ref.size} bytes was asked for; {answer.name} of {answer.size} was sent")
                incoming = self._store.receive(ref.name, ref.size, believed=True)
                try:
                    trouble = receive(sock, incoming, ref.size)
                except OSError as error:
                    raise ConnectionResetError(plain(error)) from error
            elif not isinstance(answer, ObjectMissing):
                raise ConnectionError(f"{ref.name} was asked for, and the answer was {type(answer).__name__}")
            good = True
        finally:
            self._done(call, way, sock, good)
        if isinstance(answer, ObjectMissing):
            raise missing(answer)
        if isinstance(trouble, ValueError):  # damaged on its way, which is worth another try
            raise ConnectionError(str(trouble))
        if trouble is not None:
            raise trouble

    def _put(self, call: Call, way: Way, head: PutObject, send_bytes: Callable[[ssl.SSLSocket], None]) -> None:
        def give(sock: ssl.SSLSocket) -> None:
            say(sock, head)
            send_bytes(sock)

        sock, answer = self._ask(call, way, give)
        self._done(call, way, sock, good=True)
        if isinstance(answer, ObjectMissing):
            raise missing(answer)
        if not isinstance(answer, ObjectStored):
            raise ConnectionError(f"{head.name} was given, and the answer was {type(answer).__name__}")

    def _done(self, call: Call, way: Way, sock: ssl.SSLSocket, good: bool) -> None:
        call.release()
        if good and not call.cancelled:
            self._idle.put(_use_of(way), sock)
        else:
            sock.close()

    def _ask(
        self, call: Call, way: Way, request: Callable[[ssl.SSLSocket], None]
    ) -> tuple[ssl.SSLSocket, ObjectHead | ObjectStored | ObjectMissing]:
        """Make the request on an idle connection or a new one, and hear the answer. Raises `ConnectionError`, `OutOfTurn`."""
        while (kept := self._idle.take(_use_of(way))) is not None:
            try:
                return kept, self._hear(call, kept, request)
            except (OSError, ProtocolError) as error:
                log.debug("a connection for objects was kept too long: %s", plain(error))
                kept.close()
            except BaseException:
                kept.close()
                raise
        sock = self._dial(call, way)
        self.round_trip = round_trip_of(sock)
        try:
            return sock, self._hear(call, sock, request)
        except (OSError, ProtocolError) as error:
            sock.close()
            call.check()
            raise ConnectionResetError(plain(error)) from error
        except BaseException:
            sock.close()
            raise

    def _hear(self, call: Call, sock: ssl.SSLSocket, request: Callable[[ssl.SSLSocket], None]) -> ObjectHead | ObjectStored | ObjectMissing:
        call.hold(sock)
        sock.settimeout(self._silence)
        request(sock)
        decoder: msgspec.msgpack.Decoder[ObjectHead | ObjectStored | ObjectMissing] = msgspec.msgpack.Decoder(ToData)
        answer = hear(sock, decoder, MAX_HELLO_BYTES)
        if answer is None:
            raise ConnectionResetError("it ended the connection instead of answering")
        return answer

    def _dial(self, call: Call, way: Way) -> ssl.SSLSocket:
        reasons: list[str] = []
        for address in way.manager.addresses:
            try:
                sock, answer = dial(call, address, way.context, Identity(MANAGER, way.manager.manager), way.hello, self._dial_timeout)
            except (OSError, WindlassError, socket.gaierror) as error:
                call.check()
                reasons.append(f"{address[0]} port {address[1]}: {plain(error)}")
                continue
            if isinstance(answer, Refused):
                sock.close()
                raise ConnectionRefused(f"manager {way.manager.manager} refused a connection for objects: {answer.text}")
            return sock
        raise ConnectionError("; ".join(reasons) or "no address of it is known yet")


def _use_of(way: Way) -> str:
    """Connections of one session and one certificate serve each other's requests."""
    return f"{way.hello.session} {id(way.context)}"
