"""Blocking connections for a loop that only waits: threads, attempts that can be ended, dialling, and connections kept for the next use.

Theory of operation
-------------------
Bulk data moves on blocking sockets (why: `windlass.filewire`), each attempt on a thread of its own, started by `in_thread`, which the loop
awaits.  A `Call` is the handle of one attempt: whatever socket its thread waits for, `Call.cancel` hangs up on it, so that no attempt
outlives who gave it up for longer than it takes to notice.

`Batches` is for works that are short and many: a thread for each would cost more than the work, and hundreds that start together hold up
the loop, which waits for the interpreter's lock at each start.

`Idle` keeps connections that have served for `KEEP` seconds, since a handshake costs as much as some megabytes.  The other side may end
such a connection any time, so a request on it that gets no byte does not count.

Workers load this before their hello, for `in_thread` and `Batches` alone: what connections say is imported where it is used.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

from windlass.errors import WindlassError
from windlass.framing import MAX_HELLO_BYTES
from windlass.identity import Address, Identity, peer_of
from windlass.messages import Hello, Refused, Welcome
from windlass.session import decode_answer

#: Seconds that an idle connection is kept; less than who serves keeps it (`windlass.fileserver.IDLE`).
KEEP: Final = 3.0
#: Short works that one thread does before those who asked for them hear of their ends.
BATCH: Final = 32

T = TypeVar("T")


class OutOfTurn(WindlassError):
    """This attempt was given up; who wants to write is late."""


class Call:
    """One attempt: what its thread waits for, so that it can be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._waits_since = 0.0
        self.cancelled = False

    def hold(self, sock: socket.socket | None) -> None:
        """This is what the thread will wait for now. Raises `OutOfTurn` when the attempt was given up."""
        with self._lock:
            self._sock = sock
        self.check()

    def release(self) -> None:
        """It waits for no socket any more."""
        with self._lock:
            self._sock = None

    @contextmanager
    def waiting(self) -> Generator[None]:
        """It waits for a file system, which may hang, and nobody can end that."""
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            self._waits_since = 0.0

    def hangs(self, seconds: float) -> bool:
        """It has waited for a file system for so long."""
        since = self._waits_since
        return bool(since) and time.monotonic() - since >= seconds

    def check(self) -> None:
        """Raises `OutOfTurn` when the attempt was given up."""
        if self.cancelled:
            raise OutOfTurn("the transfer was given up")

    def cancel(self) -> None:
        """Have the thread end soon."""
        from windlass.filewire import hang_up

        with self._lock:
            self.cancelled = True
            if self._sock is not None:
                hang_up(self._sock)


async def in_thread(work: Callable[[], T], unwanted: Callable[[T], object] | None = None) -> T:
    """Do this on a new thread, which does not keep the process alive. Raises `ConnectionAbortedError` where none can be had, beside what
    it raises. Who waits may be cancelled; the thread goes on, and ``unwanted`` is given, on the loop, what it has made for nobody.

    Unlike a loop's executor it serves to the program's end, which may wait for calls; executors are shut down before that.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            if error is None and unwanted is not None:
                unwanted(result)  # type: ignore[arg-type]
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - it is raised where this is awaited
            error = raised
        try:
            loop.call_soon_threadsafe(tell, result, error)
        except RuntimeError:
            pass  # the loop has ended meanwhile, and with it who waited

    try:
        threading.Thread(target=run, name="windlass-fetch", daemon=True).start()
    except RuntimeError as error:
        raise ConnectionAbortedError(f"no thread could be started for it: {error}") from error
    try:
        return await future
    except asyncio.CancelledError:
        if unwanted is not None and future.done() and not future.cancelled() and future.exception() is None:
            unwanted(future.result())  # it was here, but for the turn of the loop
        raise


class Batches:
    """Works that are short and wait for nobody, on one thread at a time. Belongs to one event loop."""

    def __init__(self) -> None:
        self._works: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def do(self, work: Callable[[], T], unwanted: Callable[[T], object] | None = None) -> T:
        """As `in_thread`, behind what was asked for before."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._works.append((work, future))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            return await asyncio.shield(future)  # or nobody would know what has become of it
        except asyncio.CancelledError:
            if unwanted is not None:
                future.add_done_callback(partial(_take_back, unwanted))
            raise

    async def end(self, seconds: float) -> None:
        """All that was asked for is done, or so long is over."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=seconds)

    async def _run(self) -> None:
        try:
            while self._works:
                some = [self._works.popleft() for _ in range(min(BATCH, len(self._works)))]
                try:
                    ends = await in_thread(partial(_one_after_the_other, [work for work, _ in some]))
                except Exception as none:  # noqa: BLE001 - it is raised where this is awaited
                    ends = [(None, none)] * len(some)
                for (_, future), (result, error) in zip(some, ends, strict=True):
                    if error is not None:
                        future.set_exception(error)
                    else:
                        future.set_result(result)
        finally:  # whatever happens, what comes later begins anew
            self._task = None


def _one_after_the_other(works: Sequence[Callable[[], Any]]) -> list[tuple[Any, BaseException | None]]:
    ends: list[tuple[Any, BaseException | None]] = []
    for work in works:
        try:
            ends.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised where this is awaited
            ends.append((None, error))
    return ends


def _take_back(unwanted: Callable[[T], object], future: asyncio.Future[T]) -> None:
    if not future.cancelled() and future.exception() is None:
        unwanted(future.result())


def dial(
    call: Call, address: Address, context: ssl.SSLContext, whom: Identity, hello: Hello, timeout: float
) -> tuple[ssl.SSLSocket, Welcome | Refused]:
    """Connect, see that it is ``whom``, say hello, hear the answer. ``context`` shall not check names: certificates tell role and name,
    exactly, where TLS would know no roles, take "W1" for "w1", and an id for an address.

    Raises:
        OSError: it was not reached within ``timeout`` seconds, it is somebody else, it ended the connection.
        ProtocolError: what it said is no answer.
        OutOfTurn: the attempt was given up.
    """
    from windlass.filewire import hear_bytes, say

    call.check()
    raw = socket.create_connection(address, timeout)
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = context.wrap_socket(raw, do_handshake_on_connect=False)
    except BaseException:
        raw.close()
        raise
    try:
        call.hold(sock)
        sock.do_handshake()
        found = peer_of(sock)
        if found != whom:
            raise ConnectionError(f"what answers is {found.role} {found.name}, not {whom.role} {whom.name}")
        say(sock, hello)
        body = hear_bytes(sock, MAX_HELLO_BYTES)
        if body is None:
            raise ConnectionResetError("it ended the connection instead of answering")
        return sock, decode_answer(body)
    except BaseException:
        sock.close()
        raise


class Idle:
    """Connections that wait for their next use, by the id of who serves. `take` and `put` are for threads, the rest for the loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Each with when it was put here.
        self._known: dict[str, list[tuple[float, ssl.SSLSocket]]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self, peer: str) -> ssl.SSLSocket | None:
        """The one that was put here last, if it is fresh enough."""
        with self._lock:
            known = self._known.get(peer)
            while known:
                since, sock = known.pop()
                if time.monotonic() - since < KEEP:
                    return sock
                sock.close()
            return None

    def put(self, peer: str, sock: ssl.SSLSocket) -> None:
        """Its request is answered in full."""
        with self._lock:
            if not self._closed:
                self._known.setdefault(peer, []).append((time.monotonic(), sock))
                return
        sock.close()

    def sweep_soon(self) -> None:
        """Close, in time, what nobody takes."""
        if self._sweep is None and self._known and not self._closed:
            self._sweep = asyncio.get_running_loop().call_later(KEEP, self._close_old)

    def drop_all(self) -> None:
        """Close all that are here."""
        with self._lock:
            known, self._known = self._known, {}
        for socks in known.values():
            for _, sock in socks:
                sock.close()

    def close(self) -> None:
        """Close all, also those that come later."""
        with self._lock:
            self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        self.drop_all()

    def _close_old(self) -> None:
        self._sweep = None
        limit = time.monotonic() - KEEP
        with self._lock:
            for peer, known in list(self._known.items()):
                for since, sock in known:
                    if since <= limit:
                        sock.close()
                fresh = [(since, sock) for since, sock in known if since > limit]
                if fresh:
                    self._known[peer] = fresh
                else:
                    del self._known[peer]
        self.sweep_soon()


def plain(error: Exception) -> str:
    """An error without the numbers that the library puts before its text."""
    number = getattr(error, "errno", None)
    numbered = isinstance(error, OSError) and not isinstance(error, ssl.SSLError | socket.gaierror) and number
    return os.strerror(number) if numbered and number else str(error) or type(error).__name__
