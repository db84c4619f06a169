"""Streams of data connections: frames that raw bytes may follow, both ways, on an event loop.

Theory of operation
-------------------
A `Stream` reads a frame's length, its body, or the raw bytes that a frame has announced, each straight into its buffer, and sends what is
posted to it: frames, and behind each the bytes of a mapped file. It moves at most `CHUNK_BYTES` per turn of the loop, and sends only while
the socket takes it, so that no object delays anything else there. What frames mean is its subclasses' matter (`windlass.dataplane`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from windlass import turns
from windlass.framing import LENGTH_BYTES, MAX_HELLO_BYTES, ProtocolError, body_length
from windlass.nearby import round_trip_of

if TYPE_CHECKING:
    from windlass.incoming import Incoming

#: At most so many bytes of an object are sent, or taken in, per turn of the loop.
CHUNK_BYTES: Final = 256 << 10


class Outgoing:
    """Something to send: a frame, then the bytes of a mapped file, if any. ``open`` gives both when its turn has come."""

    __slots__ = ("open",)

    def __init__(self, open: Callable[[], tuple[bytes, memoryview | None]]) -> None:
        self.open = open


class Stream(asyncio.BufferedProtocol):
    """Frames that raw bytes may follow, both ways; what they mean is the two subclasses' matter."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._spell = turns.on_loop()
        self._transport: asyncio.Transport | None = None
        self._reason = ""
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        #: What is being read: a frame's length, its body, or raw bytes; how many bytes that has, and how many are here.
        self._reading = "length"
        self._size, self._have = LENGTH_BYTES, 0
        #: Takes the raw bytes; None: they are thrown away.
        self._incoming: Incoming | None = None
        self._queue: deque[Outgoing] = deque()
        self._sending: memoryview | None = None
        self._sent = 0
        self._paused = False
        self._pumping = False
        #: Called when the connection is gone: for who keeps a list of them.
        self.left: Callable[[], object] = lambda: None
        #: Bytes moved so far; does not move when the connection is half-open.
        self.moved = 0

    @property
    def round_trip(self) -> float:
        """Seconds that a packet takes to the other side and back, at least, of late (`nearby.round_trip_of`)."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return round_trip_of(sock) if sock is not None else 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def abort(self, reason: str) -> None:
        """End it now."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.left()
        self._queue.clear()
        self._sending = None
        incoming, self._incoming = self._incoming, None
        try:
            if incoming is not None:
                incoming.abort()
        finally:  # whoever waits must hear of it
            self.ended(self._reason or (str(exc) if exc is not None else "") or "the other side closed the data connection")

    def ended(self, reason: str) -> None:
        """The connection is gone."""

    # -- in

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._reading == "raw":
            return self._buffer[: min(CHUNK_BYTES, self._size - self._have)]
        return self._buffer[self._have : self._size]

    def buffer_updated(self, nbytes: int) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._spell.moved()
        self.moved += nbytes
        self._have += nbytes
        try:
            if self._reading == "raw":
                self._take_raw(self._buffer[:nbytes])
            elif self._have < self._size:
                return
            elif self._reading == "length":
                self._expect("body", body_length(self._buffer, MAX_HELLO_BYTES))
            else:
                body = self._buffer[: self._size]
                self._expect("length", LENGTH_BYTES)
                self.heard(body)
        except ProtocolError as error:
            self.abort(f"the other side of a data connection broke the protocol: {error}")

    def _expect(self, what: str, size: int) -> None:
        if what == "body" and not size:
            raise ProtocolError("an empty frame was sent")
        self._reading, self._size, self._have = what, size, 0

    def heard(self, body: memoryview) -> None:
        """A frame has arrived; a call of `take_in` says that raw bytes follow it."""
        raise NotImplementedError

    def take_in(self, incoming: Incoming | None, size: int) -> None:
        """So many raw bytes follow, for ``incoming`` or for nobody."""
        self._incoming = incoming
        if size:
            self._expect("raw", size)
        else:
            self._raw_is_here()

    def _take_raw(self, chunk: memoryview) -> None:
        incoming = self._incoming
        if incoming is not None:
            try:
                incoming.write(chunk)
            except (OSError, ValueError) as error:
                self._incoming = None
                incoming.abort()
                self.kept(str(error), error)
        if self._have == self._size:
            self._expect("length", LENGTH_BYTES)
            self._raw_is_here()

    def _raw_is_here(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            return
        try:
            incoming.commit()
        except (OSError, ValueError) as error:
            self.kept(str(error), error)
        else:
            self.kept("")

    def kept(self, trouble: str, error: Exception | None = None) -> None:
        """The object that `take_in` was for is in the store, or (``trouble`` not empty) is not."""
        raise NotImplementedError

    # -- out

    def post(self, outgoing: Outgoing) -> None:
        """Send this after what waits already."""
        self._queue.append(outgoing)
        self._pump_soon()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pumping and not self._paused:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send up to one chunk; others get their turn before the next."""
        self._pumping = False
        transport = self._transport
        if transport is None or self._paused:
            return
        self._spell.moved()
        room = CHUNK_BYTES
        while room > 0 and not self._paused:
            view = self._sending
            if view is None:
                if not self._queue:
                    return
                head, view = self._queue.popleft().open()
                transport.write(head)
                room -= len(head)
                self._sending, self._sent = view, 0
                continue
            chunk = view[self._sent : self._sent + room]
            transport.write(chunk)
            room -= len(chunk)
            self.moved += len(chunk)
            self._sent += len(chunk)
            if self._sent == len(view):
                self._sending = None
        self._pump_soon()
