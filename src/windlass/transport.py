"""Dialling: how a worker, a factory or a client program reaches its manager and stays in touch.

Theory of operation
-------------------
`connect` gives a `Link` at once and keeps it connected: it tries the manager's addresses in turn, the last good one first, again and again
with growing pauses, reads the connection file afresh each time, and resumes the session (`windlass.links`, `windlass.session`).  It gives
up when the manager refuses for good, or was not heard for ``manager_timeout`` seconds and then does not answer once more.

A manager that does not know the session (it was started anew) welcomes with another session id: then what was not acknowledged is dropped,
numbers begin anew, and ``on_welcome`` says so.  The owner knows what the new manager must hear.

`open_port` runs a link on a thread of its own, for programs without a loop; a `Port` is the one thing here that is safe for threads.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent import futures
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from windlass import __version__, loops, nearby
from windlass.blocking import in_thread
from windlass.errors import Closed, ConnectionRefused, WindlassError
from windlass.framing import FrameReader, frame
from windlass.identity import MANAGER, Address, ConnectionFile, Identity, context_for, read_connection_file
from windlass.links import Connection, Link
from windlass.messages import PROTOCOL, Goodbye, Hello, Message, Refused, Welcome
from windlass.session import Event, Session, decode_answer, encode_one, heard_by

log = logging.getLogger("windlass.transport")

T = TypeVar("T")

#: Seconds that one address may take to connect and answer.
DIAL_TIMEOUT: Final = 10.0
#: Seconds that a closing connection may take to send what it has.
SHUTDOWN_TIMEOUT: Final = 2.0
#: First and longest pause between two rounds of dialling, in seconds.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
#: As long for a factory that is told to ask again, which is to be welcomed or refused for good before `open_port` gives up.
PUT_OFF_PAUSE: Final = 1.0
#: Of a manager of which no address has said anything yet, not even that nobody is there.
_SILENT: Final = "no answer; is its program stopped (Ctrl-Z) or very busy?"
#: A connection that lived so many seconds was a good one: the pauses begin anew.
GOOD_CONNECTION: Final = 5.0


class Dialled(Connection):
    """A connection made from here, up to the manager's answer."""

    def __init__(self, manager: str, hello: Hello) -> None:
        super().__init__()
        # TLS has shown that it is the manager, and large frames may come in one read with its Welcome.
        self._reader.limit = FrameReader().limit
        self._manager = manager
        self._hello = hello
        #: Done with what the manager says to our Hello; frames that follow a Welcome wait until `Link.begin`.
        self.answer: asyncio.Future[Welcome | Refused] = self._loop.create_future()
        self._early: list[memoryview] = []
        self.began = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        try:
            identity = self.identity
        except ConnectionRefused as error:
            self.abort(str(error))
            return
        if identity != Identity(MANAGER, self._manager):
            self.abort(f"what answers is {identity.role} {identity.name}, not manager {self._manager}")
            return
        self._handshake.note(Event.SAID_HELLO)
        self.write(frame(encode_one(self._hello)))

    def _greet(self, bodies: list[memoryview]) -> list[memoryview]:
        if bodies and not self.answer.done():
            answer = decode_answer(bodies[0])
            self._handshake.note(Event.HEARD_WELCOME if isinstance(answer, Welcome) else Event.HEARD_REFUSED)
            self.answer.set_result(answer)
            bodies = bodies[1:]
        self._early += [memoryview(bytes(body)) for body in bodies]  # what they are slices of is read into again
        return []

    def early(self) -> list[memoryview]:
        """Frames that came right behind the Welcome."""
        early, self._early = self._early, []
        return early

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.answer.done():
            self.answer.set_exception(ConnectionResetError(self.gone.result()))
            self.answer.exception()  # nobody may be waiting any more


async def dial(
    manager: str, addresses: Sequence[Address], context: ssl.SSLContext, hello: Hello, within: float = DIAL_TIMEOUT
) -> tuple[Dialled, Welcome | Refused, Address]:
    """Say Hello at the first of these addresses that answers; ``within`` in seconds for each.

    Raises:
        ConnectionError: none does; the text has each one's reason.
    """
    reasons: list[str] = []
    silent: Address | None = None
    for (host, port), beside in _ways(manager, addresses):
        if silent == (host, port):
            continue  # it is there, and says nothing, whichever way one comes
        connection = Dialled(manager, hello)
        try:
            async with asyncio.timeout(within):
                return connection, await _say_hello(connection, host, port, beside, context, manager, within), (host, port)
        except TimeoutError:
            reason, silent = f"no answer within {within:g} s", (host, port)
        except (OSError, WindlassError) as error:
            number = getattr(error, "errno", None)
            # asyncio's own text repeats the address; TLS errors have numbers of their own.
            plain = isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and number
            reason = os.strerror(number) if plain and number else str(error) or type(error).__name__
        except asyncio.CancelledError:
            connection.abort("given up")
            raise
        connection.abort(reason)
        reasons.append(f"{host} port {port}: {reason}")
    raise ConnectionError("; ".join(reasons) or "no address of it is known yet")


def _ways(manager: str, addresses: Sequence[Address]) -> Iterator[tuple[Address, socket.socket | None]]:
    """Each address, first by the short way if there is one: then with what is connected already."""
    for address in addresses:
        beside = nearby.dialled(manager, address[1])
        if beside is not None:
            yield address, beside
        yield address, None


async def _say_hello(
    connection: Dialled, host: str, port: int, beside: socket.socket | None, context: ssl.SSLContext, manager: str, within: float
) -> Welcome | Refused:
    loop = asyncio.get_running_loop()
    secure: dict[str, Any] = {
        "ssl": context,
        "server_hostname": manager,
        "ssl_handshake_timeout": within,
        "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT,
    }
    if beside is not None:
        try:
            await loop.create_unix_connection(lambda: connection, sock=beside, **secure)
        except BaseException:  # given up before a transport had it, which else closes it
            beside.close()
            raise
        return await connection.answer
    connect = partial(loop.create_connection, lambda: connection, port=port, **secure)
    try:
        await connect(host)
    except RuntimeError:  # the program is ending, and asyncio has no threads any more, on which it resolves names
        await connect(await in_thread(partial(socket.gethostbyname, host)))
    return await connection.answer


async def read_afresh(known: ConnectionFile, within: float = DIAL_TIMEOUT) -> ConnectionFile:
    """What the file says now of this manager, which may have moved; ``known`` where that is the same or not to be had."""
    if not known.path:
        return known
    try:
        async with asyncio.timeout(within):
            # In a thread: it may be on a network file system that hangs.
            fresh = await in_thread(partial(read_connection_file, known.path))
    except (OSError, TimeoutError, WindlassError) as error:
        log.info("%s cannot be read afresh (%s): what was read before still counts", known.path, error)
        return known
    return fresh if fresh.manager == known.manager and fresh != known else known


def connect(
    connection: ConnectionFile,
    make_hello: Callable[[], Hello],
    on_messages: Callable[[list[Message]], None],
    *,
    on_welcome: Callable[[Welcome, bool], None] | None = None,
    on_cut: Callable[[str], None] | None = None,
    on_lost: Callable[[str], None] | None = None,
    on_refused: Callable[[Refused], None] | None = None,
    on_trouble: Callable[[str], None] | None = None,
    manager_timeout: float = 300.0,
    dial_timeout: float = DIAL_TIMEOUT,
) -> Link:
    """A link to the manager, connected soon and kept connected; call it on a running loop.

    ``make_hello()`` gives a fresh Hello for each dialling; its session and ``received`` are filled in here.  ``on_welcome(welcome, fresh)``
    comes at each connection; ``fresh`` means that the manager does not know the session that went before: all that it had not
    acknowledged is dropped.  ``on_cut(reason)`` says that the connection is gone and is being made again, ``on_lost(reason)`` that this was
    given up: the manager was not heard for ``manager_timeout`` seconds (`Welcome.manager_timeout` once there was one) or the protocol
    was broken.  ``on_refused`` is final too; the link is closed then.  ``on_trouble(reason)`` tells of each round of dialling that failed.
    """
    dialler = _Dialler(connection, make_hello, manager_timeout, dial_timeout)
    link = dialler.link
    link.on_messages = on_messages
    if on_cut is not None:
        link.on_cut = on_cut
    if on_lost is not None:
        link.on_lost = on_lost
    if on_welcome is not None:
        dialler.on_welcome = on_welcome
    if on_refused is not None:
        dialler.on_refused = on_refused
    if on_trouble is not None:
        dialler.on_trouble = on_trouble
    dialler.start()
    return link


def _ignore(*_: Any) -> None:
    """The callback of who wants none."""


class _Dialler:
    """Keeps one link connected."""

    def __init__(self, connection: ConnectionFile, make_hello: Callable[[], Hello], manager_timeout: float, dial_timeout: float) -> None:
        self._connection = connection
        self._make_hello = make_hello
        self._manager_timeout = manager_timeout
        self._dial_timeout = dial_timeout
        self._role = make_hello().role
        self.link = Link(Session(heard_by(self._role)), connection.manager, MANAGER)
        self.link.certificate_user = self._take_certificate
        self.link.released = self._stop
        self.on_welcome: Callable[[Welcome, bool], None] = _ignore
        self.on_refused: Callable[[Refused], None] = _ignore
        self.on_trouble: Callable[[str], None] = _ignore
        self._credential: tuple[bytes, bytes] | None = None
        self._context: ssl.SSLContext | None = None
        self._good: Address | None = None
        #: When the manager first said, after the last connection, that it may be asked again: it is there, whoever was away how long.
        self._put_off = -math.inf
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def _stop(self, _: Link) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _take_certificate(self, certificate: bytes, key: bytes) -> None:
        self._credential = (certificate, key)
        self._context = None

    async def _run(self) -> None:
        loop, link = asyncio.get_running_loop(), self.link
        pause = FIRST_PAUSE
        first = True
        while not link.closed:
            if not first:
                await self._read_afresh()
            first = False
            began = loop.time()
            try:
                reason, lived = await self._live()
            except (OSError, WindlassError) as error:
                reason, lived = str(error), 0.0
                self.on_trouble(reason)
            if link.closed:
                return
            if lived >= GOOD_CONNECTION:
                pause = FIRST_PAUSE
            heard = max(link.last_heard, self._put_off)
            silent = loop.time() - heard
            # Only a round that began at the limit shows that the manager is gone. The end of a connection, or of a round that began before,
            # may come of nothing but this process having stood still for so long (a paused machine, a suspended job, SIGSTOP).
            if began - heard >= self._manager_timeout:
                link.fail(
                    f"manager {self._connection.manager} was not reached for {silent:.0f} s, and {self._manager_timeout:g} s is the limit; "
                    f"the last try: {reason}"
                )
                return
            log.info("manager %s: %s; dialling again in about %.2g s", self._connection.manager, reason, pause)
            # Jitter, so that the pilots of a manager that comes back do not all dial at once. `random` is slow to import.
            # The last try is at the limit, not a pause before.
            left = max(0.0, self._manager_timeout - silent)
            await asyncio.sleep(min(left, pause * (0.5 + os.urandom(1)[0] / 255)))
            # Factories are few. The pilots of a manager with a defect, which puts them off as well, are many.
            put_off = self._role == "factory" and self._put_off > link.last_heard
            pause = min(pause * 2, PUT_OFF_PAUSE if put_off else LONGEST_PAUSE)

    async def _read_afresh(self) -> None:
        fresh = await read_afresh(self._connection, self._dial_timeout)
        if fresh is not self._connection:
            self._connection = fresh
            self._context = None

    async def _live(self) -> tuple[str, float]:
        """Dial, and serve the link until the connection ends: why it did, and how many seconds it lived."""
        link, known = self.link, self._connection
        if self._context is None:
            self._context = known.client_context() if self._credential is None else context_for(known, *self._credential)
        addresses = sorted(known.addresses, key=lambda address: address != self._good)
        hello = msgspec.structs.replace(self._make_hello(), session=link.session_id, received=link.session.received)
        connection, answer, self._good = await dial(known.manager, addresses, self._context, hello, self._dial_timeout)
        if isinstance(answer, Refused):
            connection.close()
            if not answer.retry:
                log.info("manager %s refused: %s", known.manager, answer.text)
                link.close()
                link.closing = connection
                self.on_refused(answer)
            else:
                self.on_trouble(f"it refused for now: {answer.text}")
                if self._put_off < link.last_heard:
                    self._put_off = asyncio.get_running_loop().time()
            return f"refused for now: {answer.text}", 0.0
        if connection.gone.done():
            return connection.gone.result(), 0.0
        fresh = bool(link.session_id) and answer.session != link.session_id
        if fresh:
            dropped = link.begin_anew(Session(heard_by(self._role)), self._role)
            link.dropped = dropped if answer.adopts else []
        try:
            resend = link.session.resume(answer.received)
        except WindlassError as error:
            connection.abort(str(error))
            link.fail(f"session {answer.session} cannot go on: {error}")
            return str(error), 0.0
        link.session_id = answer.session
        self._manager_timeout = answer.manager_timeout
        link.begin(connection, answer.heartbeat, answer.silence, b"", resend)
        try:
            self.on_welcome(answer, fresh)
        except Exception:
            # Dialling anew would not make up for what was not done.
            log.exception("a defect of Windlass: the welcome of manager %s was not dealt with; this session ends", known.manager)
            link.fail("a defect of Windlass while dealing with its welcome; see the log")
            return "a welcome was not dealt with", 0.0
        early = connection.early()
        if early and not link.closed:
            link.take(early)
        # Shielded: `Link.gone` still waits for it when this task is cancelled.
        reason = await asyncio.shield(connection.gone)
        return reason, asyncio.get_running_loop().time() - connection.began


class Port:
    """A way to a manager for any thread: `send` and `close`. Made by `open_port`.

    ``on_welcome`` is called on the port's thread at each connection, for who must know what the manager says of itself; ``on_cut(reason)``
    when one has ended and is made again. ``on_anew``: the
    manager was started anew and knows nothing of what was said before, which is to be said again; without it such a manager is lost to the
    port. ``on_refused(text)``: it was welcome before, and is so no more; without it that is a loss as well.
    """

    def __init__(
        self,
        connection: ConnectionFile,
        role: str,
        name: str,
        on_message: Callable[[Message], None],
        on_lost: Callable[[str], None],
        on_welcome: Callable[[Welcome], None] = _ignore,
        on_anew: Callable[[], None] | None = None,
        on_cut: Callable[[str], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        self._file = connection
        self._role, self._name = role, name
        self._on_message, self._on_lost, self._on_welcome, self._on_anew = on_message, on_lost, on_welcome, on_anew
        self._on_cut, self._on_refused = on_cut, on_refused
        self._lock = threading.Lock()
        self._outbox: list[Message] = []
        self._closed = False
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._link: Link | None = None
        self._farewell = 2.0
        self._opened = threading.Event()
        self._trouble = _SILENT
        self._refused = False
        self._welcomed = False
        self._thread = threading.Thread(target=self._main, name=f"windlass-port-{role}", daemon=True)

    def open(self, timeout: float) -> None:
        """Start, and wait so many seconds for the manager's Welcome. Raises `ConnectionRefused`."""
        self._thread.start()
        try:
            self._opened.wait(timeout)
        except BaseException:  # Ctrl-C: it would go on, and be welcomed for nobody
            self.close(0)
            raise
        if not self._welcomed:
            self.close()
            places = ", ".join(f"{host} port {port}" for host, port in self._file.addresses) or "no address"
            if self._refused:
                raise ConnectionRefused(f"manager {self._file.manager} refused this {self._role}: {self._trouble}")
            todo = "" if self._trouble == _SILENT else "; check that it still runs"
            raise ConnectionRefused(f"manager {self._file.manager} was not reached at {places} within {timeout:g} s: {self._trouble}{todo}")

    def send(self, *messages: Message) -> None:
        """Send these; never blocks. Raises `Closed`."""
        with self._lock:
            if self._closed:
                raise Closed(self._closed_text())
            self._outbox += messages
            if self._loop is not None and not self._woken:
                self._woken = True
                self._loop.call_soon_threadsafe(self._forward)

    @property
    def link(self) -> Link | None:
        """For what runs on the port's thread; None when it is closed."""
        return self._link if self._loop is not None else None

    def call(self, work: Callable[[], object]) -> None:
        """Have something done on the port's thread soon. Raises `Closed`. Takes no lock, so a finaliser may call it."""
        loop = self._loop
        try:
            if loop is not None:
                loop.call_soon_threadsafe(work)
                return
        except RuntimeError:
            pass  # the loop has just ended
        raise Closed(self._closed_text())

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do this on the port's thread, and wait for it in this one. Raises `Closed`, and what it raises."""
        loop = self._loop
        if loop is None:
            raise Closed(self._closed_text())
        assert threading.current_thread() is not self._thread, "it would wait for itself"

        async def guarded() -> T:
            return await work()

        waiting = guarded()
        try:
            return asyncio.run_coroutine_threadsafe(waiting, loop).result()
        except (RuntimeError, futures.CancelledError) as error:  # the loop has ended, before or meanwhile
            waiting.close()
            if not loop.is_closed() and isinstance(error, RuntimeError):
                raise
            raise Closed(self._closed_text()) from error

    def _closed_text(self) -> str:
        return f"the port to manager {self._file.manager} is closed, so nothing can be sent; open another one"

    def close(self, timeout: float = 2.0) -> None:
        """Say goodbye, wait up to so many seconds until the manager has all that was sent, and end the thread."""
        with self._lock:
            self._closed = True
            self._farewell = timeout
            if self._loop is not None and self._over is not None:
                self._loop.call_soon_threadsafe(self._over.set)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout + 2 * SHUTDOWN_TIMEOUT + 1)

    # -- on the port's thread

    def _main(self) -> None:
        try:
            loops.run(self._serve())
        finally:
            self._opened.set()

    def _hello(self) -> Hello:
        return Hello(self._role, PROTOCOL, __version__, sys.version_info[:2], self._name)

    async def _serve(self) -> None:
        over = asyncio.Event()

        def ended(reason: str) -> None:
            self._trouble = reason
            self._opened.set()
            over.set()

        def refused(answer: Refused) -> None:
            self._refused = True
            ended(answer.text)
            if self._welcomed and self._on_refused is not None:
                self._on_refused(answer.text)
            elif self._welcomed:
                self._on_lost(f"manager {self._file.manager} refuses this {self._role} now: {answer.text}")

        def welcome(answer: Welcome, fresh: bool) -> None:
            if fresh and self._on_anew is not None:
                self._on_anew()
            elif fresh:
                # The manager that knew what we said is gone; who is above must say it anew, over a new port.
                link.fail(f"manager {self._file.manager} was started anew and does not know what was said before; open a new port")
                return
            self._on_welcome(answer)
            self._welcomed = True
            self._opened.set()

        def lost(reason: str) -> None:
            ended(reason)
            if self._welcomed:
                self._on_lost(reason)

        def trouble(reason: str) -> None:
            self._trouble = reason

        def cut(reason: str) -> None:
            trouble(reason)
            if self._on_cut is not None:
                self._on_cut(reason)

        link = connect(
            self._file, self._hello, self._deliver, on_welcome=welcome, on_cut=cut, on_lost=lost, on_refused=refused, on_trouble=trouble
        )
        with self._lock:
            self._loop, self._over, self._link = asyncio.get_running_loop(), over, link
            if self._closed:
                over.set()
        self._forward()
        await over.wait()
        with self._lock:
            self._loop = None
            self._closed = True
            rest, self._outbox = self._outbox, []
        if self._welcomed and not link.closed:
            link.send(*rest, Goodbye("closed"))
            await link.acknowledged(self._farewell)
        link.close()
        # The connection closes in its own time; the loop's end would cut it.
        await link.gone(SHUTDOWN_TIMEOUT)

    def _forward(self) -> None:
        with self._lock:
            self._woken = False
            batch, self._outbox = self._outbox, []
            link = self._link
        if link is not None and batch:
            link.send(*batch)

    def _deliver(self, batch: list[Message]) -> None:
        for message in batch:
            self._on_message(message)


def open_port(
    connection: ConnectionFile,
    role: str,
    name: str,
    on_message: Callable[[Message], None],
    on_lost: Callable[[str], None],
    *,
    timeout: float = 10.0,
    on_welcome: Callable[[Welcome], None] = _ignore,
    on_anew: Callable[[], None] | None = None,
    on_cut: Callable[[str], None] | None = None,
    on_refused: Callable[[str], None] | None = None,
) -> Port:
    """A port to the manager of ``connection``, as ``role`` ("client" or "factory"); waits up to ``timeout`` seconds for its Welcome.

    ``on_message`` and ``on_lost(reason)`` are called on the port's own thread and must be quick. The port survives cuts; ``on_lost`` says
    that the manager is gone for good, and is not called after `Port.close`. ``on_anew``, ``on_cut``, ``on_refused``: see `Port`.

    Raises:
        ConnectionRefused: the manager refused, or was not reached; the text says where and why.
    """
    port = Port(connection, role, name, on_message, on_lost, on_welcome, on_anew, on_cut, on_refused)
    port.open(timeout)
    return port
