"""Connections: TLS sockets under sessions, for the side that listens and the side that dials.

Theory of operation
-------------------
A `Link` is one peer's standing here: a `Session` and, most of the time, a connection.  `Link.send` puts messages into an outbox; once per
turn of the event loop all of it becomes frames and goes out in one write, which is what makes small messages cheap.  What arrives in one read goes
to ``on_messages`` as one list.  When a connection is cut the link lives on, and `Session.resume` sends again what the other side
lacks.

The manager has one `Listener`.  It accepts a connection only when it has room for one more unfinished handshake (the rest wait in the
kernel's queue), and gives each `handshake_timeout` seconds from accept to a good `Hello`.  TLS asks for a certificate of the manager's authority, so
what is not authenticated never reaches a decoder; `Hello` must then agree with the certificate (`_disagreement`).  The *handler*,
the manager's shell, judges the rest: it answers `Welcome`, with a new session's id or the one asked for, or `Refused`.

The dialling side (`connect`) tries the manager's addresses in turn, again and again with growing pauses, reads the connection file afresh
each time, and gives up when the manager was not heard for ``manager_timeout`` seconds.  `open_port` runs that on a thread of its own.

Silence tells a half-open connection from an idle one: each side sends at least a bare frame per ``heartbeat`` seconds and cuts a connection
that brought nothing for ``silence`` seconds.  A loop that was itself held up (a stopped process, a long pause) does not judge: what it
missed may be waiting in the socket.

Everything here belongs to one event loop and is not safe for threads, except `Port`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

import msgspec

from windlass.errors import Closed, ConnectionRefused, InternalError, UsageError, WindlassError
from windlass.framing import MAX_HELLO_BYTES, FrameReader, ProtocolError, frame
from windlass.identity import (
    CLIENT,
    ENROL,
    FACTORY,
    MANAGER,
    WORKER,
    Address,
    Authority,
    ConnectionFile,
    Identity,
    context_for,
    peer_of,
    read_connection_file,
)
from windlass.messages import PROTOCOL, Goodbye, Hello, Message, Refused, Welcome
from windlass.session import Event, Handshake, Phase, Session, decode_answer, decode_hello, encode_one, heard_by, said_by

log = logging.getLogger("windlass.transport")

#: Seconds from accept to a good Hello, and from dialling one address to its answer.
HANDSHAKE_TIMEOUT: Final = 10.0
#: Unfinished handshakes at one time; each costs a TLS state of some 300 KiB.
MAX_HANDSHAKES: Final = 256
#: Seconds that a closing connection may take to send what it has.
SHUTDOWN_TIMEOUT: Final = 2.0
#: First and longest pause between two rounds of dialling, in seconds.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
#: A connection that lived so many seconds was a good one: the pauses begin anew.
GOOD_CONNECTION: Final = 5.0
#: A link with more unacknowledged bytes than this counts as congested.
MUCH_UNACKED: Final = 16 << 20

_ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    CLIENT: frozenset({"client", "factory"}),
    FACTORY: frozenset({"factory"}),
    ENROL: frozenset({"worker"}),
    WORKER: frozenset({"worker"}),
}


def _nothing(*_: Any) -> None:
    """The callback of who wants none."""


class Handler(Protocol):
    """What the manager's shell does for a `Listener`; called on its loop, must be quick."""

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        """Judge a peer. ``Welcome.session`` is the session asked for, to resume it, or a new id; ``received`` is filled in here."""
        ...

    def attach(self, session: str, link: Link) -> None:
        """A new session has begun; set the link's callbacks."""
        ...


class Link:
    """One peer's session and its current connection. Set the callbacks before the loop's next turn.

    ``on_messages(batch)`` gets what arrived, in order; ``on_cut(reason)`` says that the connection is gone and the session waits;
    ``on_resumed(hello)`` that it goes on; ``on_lost(reason)`` that the session is over (never after one's own `close`);
    ``on_writable()`` that a link which said `congested` is so no more.
    """

    def __init__(self, session: Session, peer: str, role: str) -> None:
        self.session = session
        #: Name and role of the other side.
        self.peer, self.role = peer, role
        self.session_id = ""
        self.closed = False
        #: At the manager: what the peer last said of itself, and by which certificate.
        self.hello: Hello | None = None
        self.identity: Identity | None = None
        self.heartbeat, self.silence = 5.0, 30.0
        self.on_messages: Callable[[list[Message]], None] = _nothing
        self.on_cut: Callable[[str], None] = _nothing
        self.on_resumed: Callable[[Hello | None], None] = _nothing
        self.on_lost: Callable[[str], None] = _nothing
        self.on_writable: Callable[[], None] = _nothing
        self._loop = asyncio.get_running_loop()
        #: When a byte of the other side last came, on the loop's clock.
        self.last_heard = self._loop.time()
        self._outbox: list[Message] = []
        self._flush_due = False
        self._connection: _Connection | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._said_congested = False
        self._waiters: list[asyncio.Future[bool]] = []
        self._released: Callable[[Link], None] = _nothing
        self._use_certificate: Callable[[bytes, bytes], None] | None = None

    # -- what owners call

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    @property
    def congested(self) -> bool:
        """Whether the sender should hold back: much is unsent or unacknowledged. ``on_writable`` says when that is over."""
        connection = self._connection
        congested = (connection is not None and connection.paused) or self.session.unacked_bytes > MUCH_UNACKED
        self._said_congested |= congested
        return congested

    def send(self, *messages: Message) -> None:
        """Send these after all that was sent before, now or after the next reconnect. Does nothing when closed."""
        if self.closed:
            return
        self._outbox.extend(messages)
        self._flush_soon()

    async def acknowledged(self, timeout: float) -> bool:
        """Wait up to so many seconds until the other side has all that was sent: True if it has."""
        self._flush()
        if not self.session.unacked or self.closed:
            return not self.session.unacked
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError:
            return False
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def close(self) -> None:
        """End the session here: what is in the outbox still goes out, nothing more comes in, no callback is called."""
        if self.closed:
            return
        self._flush()
        connection = self._connection
        if connection is not None and self.session.ack_at is not None:
            connection.write(frame(self.session.bare()))
        self._end()
        if connection is not None:
            connection.close()

    def use_certificate(self, certificate: bytes, key: bytes) -> None:
        """On the dialling side: reconnects show this certificate (PEM both)."""
        if self._use_certificate is None:
            raise InternalError(f"the link to {self.peer} was not dialled from here, so it shows no certificate of its own")
        self._use_certificate(certificate, key)

    # -- what connections call

    def begin(self, connection: _Connection, heartbeat: float, silence: float, first: bytes, resend: Sequence[bytes]) -> None:
        """Go on over this connection: write ``first`` (already a frame) and the frames that the other side lacks."""
        old, self._connection = self._connection, connection
        connection.link = self
        if old is not None:
            old.link = None
            old.abort("a newer connection of this session took its place")
        self.heartbeat, self.silence = heartbeat, silence
        self.last_heard = self._loop.time()
        self._tick_at = self.last_heard + self._interval
        if self._ticker is not None:
            self._ticker.cancel()
        self._ticker = self._loop.call_at(self._tick_at, self._tick)
        if first or resend:
            connection.write(first + frame(*resend) if resend else first)
        if self._outbox:
            self._flush_soon()

    def take(self, bodies: Sequence[memoryview]) -> None:
        """Frames have arrived."""
        session, now = self.session, self._loop.time()
        batch: list[Message] = []
        try:
            for body in bodies:
                batch += session.take(body, now)
        except ProtocolError as error:
            self.fail(f"{self.role} {self.peer} broke the protocol: {error}")
            return
        if self._waiters and not session.unacked and not self._outbox:
            self._wake(True)
        if batch:
            try:
                self.on_messages(batch)
            except Exception:
                # A batch that was half dealt with cannot be dealt with again.
                log.exception("a defect of Windlass: messages of %s %s were not dealt with; its session ends", self.role, self.peer)
                self.fail("a defect of Windlass while dealing with its messages; see the log")
                return
        if session.ack_at is not None and not self.closed:
            if session.ack_at <= now:
                self._flush_soon()
            elif self._ack_timer is None:
                self._ack_timer = self._loop.call_at(session.ack_at, self._ack_due)
        if self._said_congested:
            self.writable()

    def writable(self) -> None:
        """The connection takes bytes again, or much was acknowledged."""
        if self._said_congested and not self.congested:
            self._said_congested = False
            self.on_writable()

    def cut(self, connection: _Connection, reason: str) -> None:
        """A connection has ended; if it was ours, the session waits for another one."""
        if connection is not self._connection:
            return
        self._connection = None
        self._quiet()
        if not self.closed:
            self.on_cut(reason)

    def fail(self, reason: str) -> None:
        """The session cannot go on."""
        if self.closed:
            return
        connection = self._connection
        self._end()
        if connection is not None:
            connection.abort(reason)
        self.on_lost(reason)

    # -- inside

    @property
    def _interval(self) -> float:
        """Seconds between two looks: bare frames are on time, and silence is noticed at most so much late."""
        return min(self.heartbeat / 2, self.silence / 4)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        if self.closed:
            return
        bodies: list[bytes] = []
        if self._outbox:
            batch, self._outbox = self._outbox, []
            try:
                bodies = self.session.encode(batch)
            except (InternalError, TypeError, ValueError, OverflowError) as error:
                log.exception("messages for %s %s cannot be sent; its session ends", self.role, self.peer)
                self.fail(f"messages for it cannot be sent: {error}")
                return
        connection = self._connection
        if connection is None:
            return
        if not bodies and self.session.ack_at is not None and self.session.ack_at <= self._loop.time():
            bodies = [self.session.bare()]
        if bodies:
            connection.write(frame(*bodies))

    def _ack_due(self) -> None:
        self._ack_timer = None
        due = self.session.ack_at
        if due is None or self._connection is None:
            return
        if due <= self._loop.time():
            self._flush()
        else:
            self._ack_timer = self._loop.call_at(due, self._ack_due)

    def _tick(self) -> None:
        now, interval, connection = self._loop.time(), self._interval, self._connection
        if connection is None:
            return
        held_up = now - self._tick_at > interval
        self._tick_at = now + interval
        self._ticker = self._loop.call_at(self._tick_at, self._tick)
        silent = now - self.last_heard
        if silent > self.silence and not held_up:
            connection.abort(f"nothing was heard from {self.role} {self.peer} for {silent:.1f} s; {self.silence:g} s is the limit")
        elif now - connection.last_sent >= self.heartbeat / 2:
            connection.write(frame(self.session.bare()))

    def _quiet(self) -> None:
        for timer in (self._ticker, self._ack_timer):
            if timer is not None:
                timer.cancel()
        self._ticker = self._ack_timer = None

    def _wake(self, well: bool) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(well)

    def _end(self) -> None:
        self.closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.link = None
        self._quiet()
        self._wake(False)
        self._released(self)


class _Connection(asyncio.Protocol):
    """What both sides' connections have in common: frames in, bytes out, and how it ended."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.paused = False
        self.last_sent = 0.0
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(MAX_HELLO_BYTES)
        self._handshake = Handshake()
        self._transport: asyncio.Transport | None = None
        self._reason = ""
        #: Done with the reason when the connection has ended.
        self.gone: asyncio.Future[str] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.last_sent = self._loop.time()

    @property
    def identity(self) -> Identity:
        """Who the other side is, by its certificate."""
        assert self._transport is not None
        return peer_of(self._transport.get_extra_info("ssl_object"))

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self.last_sent = self._loop.time()
            self._transport.write(data)

    def close(self) -> None:
        """End it when all that was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End it now; ``reason`` is what its link and `gone` are told."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        link = self.link
        try:
            bodies = self._reader.feed(data)
            if link is None:
                bodies = self._greet(bodies)
                link = self.link
        except WindlassError as error:
            self._broken(error)
            return
        if link is not None:
            link.last_heard = self._loop.time()
            if bodies:
                link.take(bodies)

    def _greet(self, bodies: list[memoryview]) -> list[memoryview]:
        """Bodies before the connection is open; gives back those that follow the handshake."""
        raise NotImplementedError

    def _broken(self, error: WindlassError) -> None:
        """The other side broke the rules of frames or of the handshake."""
        link = self.link
        if link is not None:
            link.fail(f"{link.role} {link.peer} broke the protocol: {error}")
        self.abort(str(error))

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.link is not None:
            self.link.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handshake.note(Event.LOST)
        reason = self._reason or (f"{exc}" if exc is not None and str(exc) else "the other side closed the connection")
        link, self.link = self.link, None
        if not self.gone.done():
            self.gone.set_result(reason)
        if link is not None:
            link.cut(self, reason)
        self._transport = None


# ---------------------------------------------------------------- the side that listens


def _disagreement(hello: Hello, identity: Identity) -> str:
    """Why this certificate may not say this Hello; empty if it may."""
    if hello.protocol != PROTOCOL:
        return (
            f"this manager speaks protocol {PROTOCOL} and {hello.role} {hello.peer} protocol {hello.protocol} (Windlass {hello.version}): "
            "use one version of Windlass on both sides"
        )
    if hello.role not in _ALLOWED.get(identity.role, ()):
        return f"a certificate for role {identity.role!r} may not be used as {hello.role!r}: use the manager's client.json or pilot.json"
    named = identity.role == WORKER or (identity.role == FACTORY and identity.name != FACTORY)
    if named and hello.peer != identity.name:
        return f"the certificate belongs to {identity.role} {identity.name!r} and may not be used by {hello.peer!r}"
    if hello.purpose not in ("control", "data"):
        return f"there are no connections for {hello.purpose!r}: use 'control' or 'data'"
    return ""


def _may_resume(link: Link, hello: Hello, identity: Identity) -> bool:
    """Whether this is the peer that began the session. A worker that has enrolled comes back with a certificate of its own, and
    from then on the enrolling credential, which all pilots have, does not do."""
    assert link.identity is not None
    same = hello.role == link.role and hello.peer == link.peer
    return same and (identity == link.identity or (link.identity.role == ENROL and identity.role == WORKER))


class _Accepted(_Connection):
    """A connection that a peer made to the listener."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener
        #: Done when the handshake is over, well or badly.
        self.greeted: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connections.discard(self)
        super().connection_lost(exc)
        self._over()

    def _over(self) -> None:
        if not self.greeted.done():
            self.greeted.set_result(None)

    def _broken(self, error: WindlassError) -> None:
        if self._handshake.phase is Phase.NEW:
            self._refuse(Refused(str(error)))
        else:
            super()._broken(error)

    def _refuse(self, refused: Refused) -> None:
        self._handshake.note(Event.SAID_REFUSED)
        log.info("refused a connection: %s", refused.text)
        self.write(frame(encode_one(refused)))
        self.close()
        self._over()

    def _greet(self, bodies: list[memoryview]) -> list[memoryview]:
        if not bodies or self._handshake.phase is Phase.CLOSED:
            return []
        self._reader.limit = FrameReader().limit
        hello, identity = decode_hello(bodies[0]), self.identity
        self._handshake.note(Event.HEARD_HELLO)
        if len(bodies) > 1 or self._reader.waiting:
            self._refuse(Refused("a peer waits for Welcome before it says more than Hello"))
            return []
        answer = self._listener.judge(hello, identity)
        if isinstance(answer, Refused):
            self._refuse(answer)
            return []
        if hello.purpose == "data":
            self._become_data(hello, answer)
        else:
            try:
                link, resend, new = self._listener.link_for(hello, identity, answer)
            except ProtocolError as error:
                self._refuse(Refused(f"session {answer.session} cannot go on: {error}"))
                return []
            answer = msgspec.structs.replace(answer, received=link.session.received)
            self._handshake.note(Event.SAID_WELCOME)
            link.begin(self, answer.heartbeat, answer.silence, frame(encode_one(answer)), resend)
            if new:
                self._listener.handler.attach(link.session_id, link)
            else:
                link.on_resumed(hello)
        self._over()
        return []

    def _become_data(self, hello: Hello, welcome: Welcome) -> None:
        assert self._transport is not None
        make = self._listener.serve_data
        if make is None:
            self._refuse(Refused("this listener serves no objects"))
            return
        self._handshake.note(Event.SAID_WELCOME)
        self.write(frame(encode_one(welcome)))
        protocol = make(hello)
        listener, transport = self._listener, self._transport
        listener.connections.discard(self)
        listener.data_transports.add(transport)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        listener.data_transports = {known for known in listener.data_transports if not known.is_closing()}


class Listener:
    """The manager's door: accepts, authenticates, and keeps one `Link` per session."""

    def __init__(
        self,
        authority: Authority,
        handler: Handler,
        *,
        serve_data: Callable[[Hello], asyncio.BaseProtocol] | None = None,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        max_handshakes: int = MAX_HANDSHAKES,
    ) -> None:
        self.authority = authority
        self.handler = handler
        #: Makes the protocol of a data connection (`windlass.dataplane.DataServer`).
        self.serve_data = serve_data
        self.handshake_timeout = handshake_timeout
        self.connections: set[_Accepted] = set()
        self.data_transports: set[asyncio.Transport] = set()
        #: By session id.
        self.links: dict[str, Link] = {}
        #: Where it listens: host as it was given, and port.
        self.addresses: list[Address] = []
        self._context = authority.server_context()
        self._room = asyncio.Semaphore(max_handshakes)
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, hosts: Sequence[str], port: int | tuple[int, int] = 0) -> list[Address]:
        """Listen on these hosts (never on more), at a port, the first free one of a range, or (0) any; may be called again to add hosts.

        Raises:
            UsageError: no such port is free, or the host is not this machine's; the text names both.
        """
        loop = asyncio.get_running_loop()
        fresh: list[Address] = []
        for host in hosts:
            try:
                found = await loop.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            except OSError as error:
                raise UsageError(f"cannot listen on {host!r}: {error}; give a name or an address of this machine") from error
            family, _, _, _, where = found[0]
            listening = _bind(family, str(where[0]), host, port)
            self._sockets.append(listening)
            fresh.append((host, int(listening.getsockname()[1])))
            self._start(self._accept(listening))
        self.addresses += fresh
        return fresh

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except asyncio.CancelledError:
                raise
            except OSError as error:
                self._room.release()
                if error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                    log.warning("cannot accept a connection: %s; trying again in a second", error)
                    await asyncio.sleep(1)
                continue
            self._start(self._serve(accepted))

    async def _serve(self, accepted: socket.socket) -> None:
        """See one connection through its handshake."""
        connection = _Accepted(self)
        try:
            async with asyncio.timeout(self.handshake_timeout):
                accepted.setblocking(False)
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection,
                    accepted,
                    ssl=self._context,
                    ssl_handshake_timeout=self.handshake_timeout,
                    ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
                )
                await connection.greeted
        except (OSError, TimeoutError) as error:
            log.info("a connection ended in its handshake: %s", error if str(error) else f"it took over {self.handshake_timeout:g} s")
            connection.abort(f"no Hello within {self.handshake_timeout:g} s")
        finally:
            self._room.release()

    def judge(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        """What the rules of certificates, and then the handler, say to this peer."""
        text = _disagreement(hello, identity)
        if text:
            return Refused(text)
        known = self.links.get(hello.session) if hello.session else None
        if known is not None and not _may_resume(known, hello, identity):
            return Refused(f"session {hello.session} is not one of {hello.role} {hello.peer!r} with this certificate")
        if identity.role == ENROL:
            if hello.purpose == "data" and known is None:
                return Refused("a worker that has not enrolled yet gets no data")
            others = [link for link in self.links.values() if link.role == "worker" and link.peer == hello.peer and link is not known]
            # A session whose peer never said anything may be one whose Welcome was lost; its peer has only this credential to ask again with.
            if any(link.session.received or link.identity != identity for link in others):
                return Refused(f"worker id {hello.peer!r} is taken: choose another one")
        try:
            return self.handler.hello(hello, identity)
        except Exception:
            log.exception("a defect of Windlass: the Hello of %s %s was not dealt with", hello.role, hello.peer)
            return Refused("a defect of Windlass at the manager; see its log", retry=True)

    def link_for(self, hello: Hello, identity: Identity, welcome: Welcome) -> tuple[Link, list[bytes], bool]:
        """The link of the session that was agreed on, frames to send again, and whether it is new.

        Raises:
            ProtocolError: the peer has lost its memory of the session.
        """
        link = self.links.get(welcome.session)
        if link is not None:
            if welcome.session != hello.session:
                raise ProtocolError("it is another peer's")
            try:
                resend = link.session.resume(hello.received)
            except ProtocolError as error:
                link.fail(str(error))
                raise
            link.hello, link.identity = hello, identity
            return link, resend, False
        if hello.role == "worker":
            # A worker has one session: beginning another one, it has given up the old one.
            for old in [link for link in self.links.values() if link.role == "worker" and link.peer == hello.peer]:
                old.fail(f"worker {hello.peer} began a new session")
        link = Link(Session(said_by(hello.role)), hello.peer, hello.role)
        link.session_id, link.hello, link.identity = welcome.session, hello, identity
        link._released = self._forget  # pyright: ignore[reportPrivateUsage]
        self.links[welcome.session] = link
        return link, [], True

    def _forget(self, link: Link) -> None:
        self.links.pop(link.session_id, None)

    async def close(self) -> None:
        """Stop listening, send what the links still have, and end all connections; none of their callbacks is called."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()
        for link in list(self.links.values()):
            link.close()
        open_ones = list(self.connections)
        for connection in open_ones:
            connection.close()
        for transport in self.data_transports:
            transport.abort()
        if open_ones:
            await asyncio.wait([connection.gone for connection in open_ones], timeout=SHUTDOWN_TIMEOUT + 1)
        for connection in list(self.connections):
            connection.abort("the manager is closed")
        await asyncio.sleep(0)


def _bind(family: int, address: str, host: str, port: int | tuple[int, int]) -> socket.socket:
    low, high = port if isinstance(port, tuple) else (port, port)
    for number in range(low, high + 1):
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address, number))
            listening.listen(1024)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                continue
            raise UsageError(f"cannot listen on {host!r}, port {number}: {os.strerror(error.errno or 0)}; choose another host or port") from error
        except OverflowError as error:
            listening.close()
            raise UsageError(f"there is no port {number}: choose one from 1 to 65535, or 0 for any free one") from error
        return listening
    if low == high:
        raise UsageError(f"port {low} on {host!r} is in use: choose another one, a range like port=({low}, {low + 99}), or port=0 for any")
    raise UsageError(f"all ports from {low} to {high} on {host!r} are in use: choose a wider range, or port=0 for any free one")


# ---------------------------------------------------------------- the side that dials


class Dialled(_Connection):
    """A connection made from here, up to the manager's answer."""

    def __init__(self, manager: str, hello: Hello) -> None:
        super().__init__()
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
            self._reader.limit = FrameReader().limit
            self.answer.set_result(answer)
            bodies = bodies[1:]
        self._early += bodies
        return []

    def early(self) -> list[memoryview]:
        """Frames that came right behind the Welcome."""
        early, self._early = self._early, []
        return early

    @property
    def transport(self) -> asyncio.Transport | None:
        """For who goes on with another protocol after the answer."""
        return self._transport

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.answer.done():
            self.answer.set_exception(ConnectionResetError(self.gone.result()))
            self.answer.exception()  # nobody may be waiting any more


async def dial(
    manager: str, addresses: Sequence[Address], context: ssl.SSLContext, hello: Hello, timeout: float = HANDSHAKE_TIMEOUT
) -> tuple[Dialled, Welcome | Refused, Address]:
    """Say Hello at the first of these addresses that answers; ``timeout`` in seconds for each.

    Raises:
        ConnectionError: none does; the text has each one's reason.
    """
    loop = asyncio.get_running_loop()
    reasons: list[str] = []
    for host, port in addresses:
        connection = Dialled(manager, hello)
        try:
            async with asyncio.timeout(timeout):
                await loop.create_connection(
                    lambda connection=connection: connection,  # type: ignore[misc]
                    host,
                    port,
                    ssl=context,
                    server_hostname=manager,
                    ssl_handshake_timeout=timeout,
                    ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
                )
                return connection, await connection.answer, (host, port)
        except TimeoutError:
            reason = f"no answer within {timeout:g} s"
        except (OSError, WindlassError) as error:
            reason = str(error) or type(error).__name__
        except asyncio.CancelledError:
            connection.abort("given up")
            raise
        connection.abort(reason)
        reasons.append(f"{host} port {port}: {reason}")
    raise ConnectionError("; ".join(reasons) or "no address is known yet")
