"""Links: one peer's session over the connections that come and go.

Theory of operation
-------------------
A `Link` is one peer's standing here: a `Session` and, most of the time, a connection.  `Link.send` puts messages into an outbox; once per
turn of the event loop all of it becomes frames and goes out in one write, which is what makes small messages cheap.  What arrives
in one read goes to ``on_messages`` as one list.  When a connection is cut the link lives on, and `Session.resume` sends again what
the other side lacks.

Silence tells a half-open connection from an idle one: each side sends at least a bare frame per ``heartbeat`` seconds and cuts a connection
that brought nothing for ``silence`` seconds.  A loop that was itself held up (a stopped process, a long pause) does not judge: what it
missed may be waiting in the socket.

A `Connection` is the socket's half of that: frames in, bytes out, how it ended.  `windlass.listener` and `windlass.transport` add the
handshakes of the accepting and of the dialling side.  Everything here belongs to one event loop and is not safe for threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, cast

from windlass import turns
from windlass.errors import InternalError, WindlassError
from windlass.framing import MAX_HELLO_BYTES, FrameReader, Piece, ProtocolError, frame, frame_head
from windlass.identity import Identity, peer_of
from windlass.messages import Hello, Message
from windlass.nearby import Process, process_at, round_trip_of
from windlass.session import BARE_BYTES, Event, Handshake, Session, heard_by, said_by

log = logging.getLogger("windlass.transport")

#: A link with more unacknowledged bytes than this counts as congested.
MUCH_UNACKED: Final = 16 << 20


def _nothing(*_: Any) -> None:
    """The callback of who wants none."""


#: Read at once at most.
READ_BYTES: Final = 256 << 10
#: A body of so many bytes is rather a TLS record behind its length than copied behind it.
APART_BYTES: Final = 32 << 10


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
        self._connection: Connection | None = None
        #: The connection that is ending after `close`, `fail` or a refusal; `gone` waits for it.
        self.closing: Connection | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._said_congested = False
        #: On the dialling side, when the manager has begun a new session: what of the old one it may not have heard.
        self.dropped: list[Message] = []
        self._waiters: list[asyncio.Future[bool]] = []
        #: For the listener and the dialler that own it: called when the link is closed, and what `use_certificate` does.
        self.released: Callable[[Link], None] = _nothing
        self.certificate_user: Callable[[bytes, bytes], None] | None = None

    # -- what owners call

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    @property
    def round_trip(self) -> float:
        """Seconds that a packet of its connection takes there and back at least; 0.0 where that is not to be known."""
        sock = self._socket()
        return round_trip_of(sock) if sock is not None else 0.0

    def process(self) -> Process | None:
        """Of this host, at the other end of its connection; None where that is not to be known."""
        sock = self._socket()
        try:
            return process_at(sock) if sock is not None else None
        except OSError:
            return None

    def _socket(self) -> Any:
        """What is like a socket; None where there is none."""
        transport = self._connection.transport if self._connection is not None else None
        # One that has just ended, of which nobody was told yet, has none.
        return transport.get_extra_info("socket") if transport is not None else None

    def where(self) -> str:
        """Where the other end of its connection is, in words; "": that is not to be known."""
        process = self.process()
        if process is not None:
            return f"process {process.pid} of the manager's host"
        transport = self._connection.transport if self._connection is not None else None
        address = transport.get_extra_info("peername") if transport is not None else None
        return f"connected from {address[0]}" if isinstance(address, tuple) else ""

    @property
    def mute(self) -> bool:
        """Whether the other side has missed its heartbeats: it may be gone, which a cut connection would tell later."""
        return self._connection is None or self._loop.time() - self.last_heard > 2 * self.heartbeat

    @property
    def patience(self) -> float:
        """Seconds until its connection counts as cut, if nothing comes."""
        return max(0.0, self.last_heard + self.silence - self._loop.time())

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

    def send_now(self, *messages: Message) -> None:
        """As `send`, but written at once: for who has gathered everything already and wants it there a turn of the loop sooner."""
        if not self.closed:
            self._outbox.extend(messages)
            self._flush()

    def unheard(self, says: str | None = None) -> Iterator[Message]:
        """What the other side has not acknowledged: of a session that is lost, what it may never have heard. ``says``: the role of this
        side; without one it is the manager's."""
        return chain(self.session.unheard(heard_by(self.role) if says is None else said_by(says)), self._outbox)

    def begin_anew(self, session: Session, says: str) -> list[Message]:
        """On the dialling side: go on with this session, in which nothing was said; what of the one before may not have been heard."""
        unheard = list(self.unheard(says))
        self.session, self._outbox = session, []
        return unheard

    async def acknowledged(self, within: float) -> bool:
        """Wait up to so many seconds until the other side has all that was sent: True if it has."""
        self._flush()
        if not self.session.unacked or self.closed:
            return not self.session.unacked
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(within):
                return bool(await waiter)
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
            self.closing = connection
            connection.close()

    async def gone(self, within: float) -> None:
        """After `close`: wait up to so many seconds until the connection has sent everything and has ended."""
        if self.closing is not None and not self.closing.gone.done():
            await asyncio.wait([self.closing.gone], timeout=within)

    def use_certificate(self, certificate: bytes, key: bytes) -> None:
        """On the dialling side: reconnects show this certificate (PEM both)."""
        if self.certificate_user is None:
            raise InternalError(f"the link to {self.peer} was not dialled from here, so it shows no certificate of its own")
        self.certificate_user(certificate, key)

    # -- what connections call

    def begin(self, connection: Connection, heartbeat: float, silence: float, first: bytes, resend: Sequence[Piece]) -> None:
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
        if first:
            connection.write(first)
        connection.write_frames(resend)
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

    def cut(self, connection: Connection, reason: str) -> None:
        """A connection has ended; if it was ours, the session waits for another one."""
        if connection is not self._connection:
            return
        self._connection = None
        self._quiet()
        if not self.closed:
            self.on_cut(reason)

    def fail(self, reason: str) -> None:
        """The session cannot go on."""
        if not self.closed:
            self._break(reason)
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
        bodies: list[Piece] = []
        if self._outbox:
            batch, self._outbox = self._outbox, []
            try:
                bodies = self.session.encode(batch)
            except (InternalError, TypeError, ValueError, OverflowError) as error:
                log.exception("messages for %s %s cannot be sent; its session ends", self.role, self.peer)
                reason = f"messages for it cannot be sent: {error}"
                self._break(reason)
                self._loop.call_soon(self.on_lost, reason)  # who sends is in the middle of something
                return
        connection = self._connection
        if connection is None:
            return
        if not bodies and self.session.ack_at is not None and self.session.ack_at <= self._loop.time():
            bodies = [self.session.bare()]
        if bodies:
            connection.write_frames(bodies)

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

    def _break(self, reason: str) -> None:
        connection = self._connection
        self._end()
        if connection is not None:
            self.closing = connection
            connection.abort(reason)

    def _end(self) -> None:
        self.closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.link = None
        self._quiet()
        self._wake(False)
        self.released(self)


class Connection(asyncio.BufferedProtocol):
    """What both sides' connections have in common: frames in, bytes out, and how it ended.

    ``buffer`` is what it reads into, and may be shared by all connections of a loop: what was read is dealt with before anything else is
    read. (A protocol that is given new bytes each time costs an allocation of 256 KiB per read, whatever is in them.)
    """

    def __init__(self, buffer: bytearray | None = None) -> None:
        self._buffer = memoryview(bytearray(READ_BYTES) if buffer is None else buffer)
        self.link: Link | None = None
        self.paused = False
        self.last_sent = 0.0
        self._loop = asyncio.get_running_loop()
        self._spell = turns.on_loop()
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

    def write(self, data: Piece) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self.last_sent = self._loop.time()
            if len(data) > BARE_BYTES:  # heartbeats need no haste
                self._spell.moved()
            self._transport.write(data)

    def write_frames(self, bodies: Sequence[Piece]) -> None:
        """Send these bodies, one frame each; large ones from where they are."""
        for body in bodies:
            if len(body) < APART_BYTES:
                self.write(frame(body))
            else:
                self.write(frame_head(body))
                self.write(body)

    @property
    def transport(self) -> asyncio.Transport | None:
        """For who goes on with another protocol after the handshake; None when it has ended."""
        return self._transport

    def close(self) -> None:
        """End it when all that was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End it now; ``reason`` is what its link and `gone` are told."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        link = self.link
        if nbytes > BARE_BYTES:
            self._spell.moved()
        try:
            bodies = self._reader.feed(self._buffer[:nbytes])
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
