"""The manager's door: accepts connections, authenticates them, and keeps one link per session.

Theory of operation
-------------------
The `Listener` gives each connection `handshake_timeout` seconds from accept to a good `Hello`.  Until then it is a *stranger*, of whom
there are few at a time (`windlass.strangers`), and of whom `MAX_HANDSHAKES` speak TLS, in turn.  TLS asks for a certificate of the
manager's authority, so what is not authenticated never reaches a decoder; `Hello` must then agree with the certificate
(`_disagreement`).  The *handler*, the manager's shell, judges the rest: it answers `Welcome`, with a new session's id or the one asked
for, or `Refused`.

A session is resumed by who began it: the same role, name and certificate, except that a worker which began with the enrolling credential
comes back with a certificate of its own.  All pilots share that credential, so with it alone nobody can take a session, or a
worker's id, that is in use.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from windlass import descriptors, nearby, turns, versions
from windlass.blocking import in_thread
from windlass.errors import UsageError, WindlassError
from windlass.filewire import asks_for_files
from windlass.framing import FrameReader, Piece, ProtocolError, frame
from windlass.identity import CLIENT, ENROL, FACTORY, WORKER, Address, Authority, Identity
from windlass.links import READ_BYTES, Connection, Link
from windlass.messages import Hello, Refused, Welcome
from windlass.session import Event, Phase, Session, decode_hello, encode_one, said_by
from windlass.strangers import MOST, PATIENCE, Stranger, Strangers

if TYPE_CHECKING:
    from windlass.datastream import Stream
    from windlass.fileserver import FileServer

log = logging.getLogger("windlass.transport")

#: Seconds from accept to a good Hello.
HANDSHAKE_TIMEOUT: Final = 10.0
#: Handshakes at one time; each costs a TLS state of some 300 KiB.
MAX_HANDSHAKES: Final = 256
#: Seconds that a closing connection may take to send what it has.
SHUTDOWN_TIMEOUT: Final = 2.0
#: Whether a silent peer's host is still there is asked after so many seconds, then in such intervals, so often at most.  Links
#: notice it sooner, by heartbeats; data connections have none, and would stay for as long as the manager.
KEEPALIVE: Final = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
#: Connections that are accepted before the loop's other work has its turn.
ACCEPTS_PER_TURN: Final = 32
#: Seconds until the first word about strangers that had to leave, and between two of them.
FIRST_TELL_SECONDS: Final = 5.0
TELL_SECONDS: Final = 60.0
#: As what it speaks of itself.
HERE: Final = "this manager"

_ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    CLIENT: frozenset({"client", "factory"}),
    FACTORY: frozenset({"factory"}),
    ENROL: frozenset({"worker"}),
    WORKER: frozenset({"worker"}),
}


class Handler(Protocol):
    """What the manager's shell does for a `Listener`; called on its loop, must be quick."""

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        """Judge a peer. ``Welcome.session`` is the session asked for, to resume it, or a new unguessable id; ``received`` is
        filled in here. For ``purpose`` "data" there is no session: give back what was asked for. A worker that begins a new
        session loses its old one, whose ``on_lost`` comes after this and before `attach`.
        """
        ...

    def attach(self, session: str, link: Link) -> None:
        """A new session has begun; set the link's callbacks."""
        ...


def _disagreement(hello: Hello, identity: Identity) -> str:
    """Why this certificate may not say this Hello; empty if it may."""
    text = versions.disagreement(hello, HERE)
    if text:
        return text
    if hello.role not in _ALLOWED.get(identity.role, ()):
        return f"a certificate for role {identity.role!r} may not be used as {hello.role!r}: use the manager's client.json or pilot.json"
    named = identity.role == WORKER or (identity.role == FACTORY and identity.name != FACTORY)
    if named and hello.peer != identity.name:
        return f"the certificate belongs to {identity.role} {identity.name!r} and may not be used by {hello.peer!r}"
    if hello.purpose not in ("control", "data"):
        return f"there are no connections for {hello.purpose!r}: use 'control' or 'data'"
    return ""


def hello_of(body: Piece) -> Hello:
    """The Hello of a peer. Raises `ProtocolError`, which names both versions where it is one of another protocol."""
    try:
        return decode_hello(body)
    except ProtocolError as error:
        text = versions.about_start(body, HERE)
        raise (ProtocolError(text) if text else error) from None


def _may_resume(link: Link, hello: Hello, identity: Identity) -> bool:
    """Whether this is the peer that began the session. A worker that has enrolled comes back with a certificate of its own, and
    from then on the enrolling credential, which all pilots have, does not do."""
    assert link.identity is not None
    same = hello.role == link.role and hello.peer == link.peer
    return same and (identity == link.identity or (link.identity.role == ENROL and identity.role == WORKER))


class _Accepted(Connection):
    """A connection that a peer made to the listener."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener.buffer)
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
        hello, identity = hello_of(bodies[0]), self.identity
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
            try:
                if new:
                    self._listener.handler.attach(link.session_id, link)
                else:
                    link.on_resumed(hello)
            except Exception:
                log.exception("a defect of Windlass: %s %s was not attached; its session ends", link.role, link.peer)
                link.fail("a defect of Windlass while attaching it; see the log")
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
        stream = make(hello)
        listener, transport = self._listener, self._transport
        listener.connections.discard(self)
        listener.data_transports.add(transport)
        stream.left = lambda: listener.data_transports.discard(transport)
        transport.set_protocol(stream)
        stream.connection_made(transport)


class Listener:
    """The manager's door: accepts, authenticates, and keeps one `Link` per session."""

    def __init__(
        self,
        authority: Authority,
        handler: Handler,
        *,
        serve_data: Callable[[Hello], Stream] | None = None,
        files: FileServer | None = None,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        max_handshakes: int = MAX_HANDSHAKES,
        max_strangers: int = MOST,
    ) -> None:
        self.authority = authority
        self.handler = handler
        #: Makes the protocol of a data connection (`windlass.dataplane.DataServer`).
        self.serve_data = serve_data
        #: Takes over connections for files, which it serves on threads (`windlass.filewire`).
        self.files = files
        self.handshake_timeout = handshake_timeout
        self.connections: set[_Accepted] = set()
        #: All of its connections read into this one.
        self.buffer = bytearray(READ_BYTES)
        self.data_transports: set[asyncio.Transport] = set()
        #: By session id.
        self.links: dict[str, Link] = {}
        #: Those of workers, by who they are: one, but for moments.
        self._of_workers: dict[str, list[Link]] = {}
        #: Where it listens: host as it was given, and port.
        self.addresses: list[Address] = []
        self._context = authority.server_context()
        self._turns = asyncio.Semaphore(max_handshakes)
        self._descriptors = descriptors.limit()
        # Most descriptors are for workers.
        self.strangers = Strangers(min(max_strangers, max(16, self._descriptors // 4)))
        self._stranger_left = asyncio.Event()
        #: When it is to be told that strangers had to leave, and how many had when it last was.
        self._telling: asyncio.TimerHandle | None = None
        self._told_away = 0
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        #: Accepted, of which no task has taken hold yet: one that is cancelled before its first step never does.
        self._unserved: set[socket.socket] = set()

    async def listen(self, hosts: Sequence[str], port: int | tuple[int, int] = 0) -> list[Address]:
        """Listen on these hosts (never on more), at a port, the first free one of a range, or (0) any; may be called again to add hosts.

        Raises:
            UsageError: no such port is free, or the host is not this machine's; the text names both.
        """
        fresh: list[Address] = []
        for host in hosts:
            try:
                look_up = partial(socket.getaddrinfo, host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
                found = await in_thread(look_up)
            except OSError as error:
                raise UsageError(f"cannot listen on {host!r}: {error}; give a name or an address of this machine") from error
            family, _, _, _, where = found[0]
            listening = _bind(family, str(where[0]), host, port)
            self._sockets.append(listening)
            fresh.append((host, int(listening.getsockname()[1])))
            self._start(self._accept(listening))
            beside = nearby.listening(self.authority.manager_id, fresh[-1][1])
            if beside is not None:
                self._sockets.append(beside)
                self._start(self._accept(beside))
        self.addresses += fresh
        return fresh

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        accepts = 0
        while True:
            while not self.strangers.make_room(loop.time()):
                self._stranger_left.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stranger_left.wait(), PATIENCE)
            if self._telling is None and self.strangers.sent_away > self._told_away:
                self._telling = loop.call_later(TELL_SECONDS if self._told_away else FIRST_TELL_SECONDS, self._tell_sent_away)
            try:
                accepted, _ = await loop.sock_accept(listening)
            except asyncio.CancelledError:
                raise
            except OSError as error:
                if error.errno == errno.EMFILE and descriptors.raised():
                    self._descriptors = descriptors.limit()
                elif error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                    log.warning("cannot accept a connection: %s; trying again in a second", error)
                    while self.strangers.send_one_away(loop.time()):
                        pass  # their descriptors are wanted
                    await asyncio.sleep(1)
                continue
            if accepted.fileno() > self._descriptors // 2:
                self._descriptors = descriptors.allow_many()
            self._unserved.add(accepted)
            self._start(self._serve(accepted))
            accepts += 1
            if not accepts % ACCEPTS_PER_TURN:
                await asyncio.sleep(0)

    def _tell_sent_away(self) -> None:
        """Seldom, lest the log be flooded as well."""
        self._telling = None
        count = self.strangers.sent_away - self._told_away
        self._told_away = self.strangers.sent_away
        log.warning("%d connections that did not say whose they are were closed to make room for others", count)

    async def _serve(self, accepted: socket.socket) -> None:
        """See one connection through its handshake."""
        self._unserved.discard(accepted)
        connection = _Accepted(self)
        loop, strangers = asyncio.get_running_loop(), self.strangers
        stranger: Stranger | None = None
        try:
            async with asyncio.timeout(self.handshake_timeout) as limit:
                # One whose time has just run out is about to leave anyway.
                stranger = strangers.came(lambda: None if limit.expired() else limit.reschedule(loop.time()))
                accepted.setblocking(False)
                nearby.widen(accepted)
                try:
                    wants_files = await asks_for_files(accepted)
                    strangers.spoke(stranger)
                    if wants_files and self.files is not None:
                        self._hand_over(accepted, self.files)
                        return
                    if self._turns.locked():
                        strangers.hurry(loop.time())
                    await self._turns.acquire()
                except BaseException:
                    accepted.close()  # asyncio does that only to those that it knows
                    raise
                try:
                    strangers.begins(stranger, now := loop.time())
                    if strangers.waiting and not limit.expired():
                        limit.reschedule(min(limit.when() or now, now + PATIENCE))
                    with turns.prompt():
                        await loop.connect_accepted_socket(
                            lambda: connection,
                            accepted,
                            ssl=self._context,
                            ssl_handshake_timeout=self.handshake_timeout,
                            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
                        )
                        await connection.greeted
                finally:
                    self._turns.release()
                    strangers.gone(stranger)
        except (OSError, TimeoutError) as error:
            level = logging.DEBUG if strangers.sent_away else logging.INFO  # in a flood nobody wants to read of each
            log.log(level, "a connection ended in its handshake: %s", str(error) or f"no Hello within {self.handshake_timeout:g} s")
            connection.abort(f"no Hello within {self.handshake_timeout:g} s")
        finally:
            if stranger is not None:
                strangers.gone(stranger)
            self._stranger_left.set()

    def _hand_over(self, accepted: socket.socket, files: FileServer) -> None:
        """Leave this connection to who serves files."""
        loop = asyncio.get_running_loop()
        files.serve(accepted, self._context, lambda hello, identity: self._judge_on(loop, hello, identity))

    def _judge_on(self, loop: asyncio.AbstractEventLoop, hello: Hello, identity: Identity) -> Welcome | Refused:
        """`judge`, for a thread that serves files."""
        if hello.purpose != "data":
            return Refused(f"a connection for files was opened, and then used for {hello.purpose!r}")

        async def judge() -> Welcome | Refused:
            return self.judge(hello, identity)

        return asyncio.run_coroutine_threadsafe(judge(), loop).result(self.handshake_timeout)

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
            others = [link for link in self._of_workers.get(hello.peer, ()) if link is not known]
            # A session whose peer never said anything may be one whose Welcome was lost, and its peer asks again.
            if any(link.session.received or link.identity != identity for link in others):
                return Refused(f"worker id {hello.peer!r} is taken: choose another one")
        try:
            return self.handler.hello(hello, identity)
        except Exception:
            log.exception("a defect of Windlass: the Hello of %s %s was not dealt with", hello.role, hello.peer)
            return Refused("a defect of Windlass at the manager; see its log", retry=True)

    def link_for(self, hello: Hello, identity: Identity, welcome: Welcome) -> tuple[Link, list[Piece], bool]:
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
            for old in list(self._of_workers.get(hello.peer, ())):
                old.fail(f"worker {hello.peer} began a new session")
        link = Link(Session(said_by(hello.role)), hello.peer, hello.role)
        link.session_id, link.hello, link.identity = welcome.session, hello, identity
        link.released = self._forget
        self.links[welcome.session] = link
        if link.role == "worker":
            self._of_workers.setdefault(link.peer, []).append(link)
        return link, [], True

    def _forget(self, link: Link) -> None:
        self.links.pop(link.session_id, None)
        same = self._of_workers.get(link.peer, [])
        if link in same:
            same.remove(link)
            if not same:
                del self._of_workers[link.peer]

    def leave_to_program(self) -> None:
        """This process is a forked copy of the program: the ports are not to be taken for as long as it lives."""
        for listening in self._sockets:
            with suppress(OSError):  # it was just being closed
                os.close(listening.detach())  # `close` would wait for the loop, which accepts from it

    async def close(self) -> None:
        """Stop listening, send what the links still have, and end all connections; none of their callbacks is called."""
        if self._telling is not None:
            self._telling.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for accepted in self._unserved:
            accepted.close()
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()
        for link in list(self.links.values()):
            link.close()
        open_ones = list(self.connections)
        for connection in open_ones:
            connection.close()
        for transport in list(self.data_transports):
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
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():  # what is accepted inherits them
                listening.setsockopt(socket.IPPROTO_TCP, option, value)
            listening.bind((address, number))
            listening.listen(1024)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                continue
            raise UsageError(
                f"cannot listen on {host!r}, port {number}: {os.strerror(error.errno or 0)}; choose another host or port"
            ) from error
        except OverflowError as error:
            listening.close()
            raise UsageError(f"there is no port {number}: choose one from 1 to 65535, or 0 for any free one") from error
        return listening
    if low == high:
        raise UsageError(f"port {low} on {host!r} is in use: choose another one, a range like port=({low}, {low + 99}), or port=0 for any")
    raise UsageError(f"all ports from {low} to {high} on {host!r} are in use: choose a wider range, or port=0 for any free one")
