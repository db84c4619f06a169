"""Sessions: every message arrives once and in order, however often the connection is cut.

Theory of operation
-------------------
Each side of a session numbers the frames that it sends, from 1, and keeps the encoded bytes until the other side has said that it
received them.  Every frame carries the number of the newest frame received (the acknowledgement), so traffic in both directions needs no
frames of its own for that; a *bare* frame, number 0 and without messages, says it when nothing else is sent, and is also the heartbeat.
Bare frames are neither kept nor acknowledged, so two idle sides do not acknowledge each other for ever.

A bare frame is due `ACK_SECONDS` after the first frame that has not been acknowledged, or at once after `ACK_FRAMES` frames or
`ACK_BYTES` bytes: that bounds what the other side must keep.

After a cut both sides say, in the handshake, the newest number they received; `Session.resume` drops what arrived and gives the rest to be
sent again.  A frame whose number was seen is dropped; one that leaves a number out cannot come from an honest link, and is a
`ProtocolError`: the session is over.

`Handshake` is the table of what may be said when at the beginning of a connection; see `NEXT`.  The accepting side goes
NEW → GREETED → OPEN, the dialling side NEW → WAITING → OPEN.  CLOSED accepts a further LOST, because both a
timer and the socket may report the same end; nothing else leaves it.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, cast

import msgspec

from windlass import messages
from windlass.errors import InternalError
from windlass.framing import LENGTH_BYTES, UNREADABLE, Piece, ProtocolError
from windlass.messages import MAX_FRAME_BYTES, Frame, Hello, Message, Refused, Welcome

#: An acknowledgement may be late by this many seconds, frames and bytes; whichever comes first.
ACK_SECONDS: Final = 0.2
ACK_FRAMES: Final = 64
ACK_BYTES: Final = 1 << 20
#: A message that would make a frame longer than so many bytes begins the next one: what is that long gains nothing by company, and who
#: reads has each whole sooner, and near at hand.
FULL_BYTES: Final = 64 << 10
#: The beginning of an array of messages.
_ARRAY_BYTES: Final = 5

#: A frame's beginning: an array of three, two unsigned 64-bit numbers, and how many messages follow. Of fixed size, so that messages are
#: encoded to where they belong, behind it, and one call packs it.
_HEAD: Final = struct.Struct(">BBQBQBI")
#: A frame without messages, as it travels.
BARE_BYTES: Final = LENGTH_BYTES + _HEAD.size
_ENCODER: Final = msgspec.msgpack.Encoder()

MessageDecoder = msgspec.msgpack.Decoder[list[Message]]

_SAID: Final[Mapping[str, Any]] = {
    "worker": list[messages.FromWorker],
    "factory": list[messages.FromFactory],
    "client": list[messages.FromClient],
}
_HEARD: Final[Mapping[str, Any]] = {
    "worker": list[messages.ToWorker],
    "factory": list[messages.ToFactory],
    "client": list[messages.ToClient],
}
ROLES: Final = frozenset(_SAID)


@cache
def said_by(role: str) -> MessageDecoder:
    """What the manager accepts from a peer of this role. Made when first needed, for import time."""
    return msgspec.msgpack.Decoder(_SAID[role])


@cache
def heard_by(role: str) -> MessageDecoder:
    """What a peer of this role accepts from the manager."""
    return msgspec.msgpack.Decoder(_HEARD[role])


@cache
def _frame_decoder() -> msgspec.msgpack.Decoder[Frame]:
    return msgspec.msgpack.Decoder(Frame)


@cache
def _hello_decoder() -> msgspec.msgpack.Decoder[Hello]:
    return msgspec.msgpack.Decoder(Hello)


@cache
def _answer_decoder() -> msgspec.msgpack.Decoder[Welcome | Refused]:
    return msgspec.msgpack.Decoder(Welcome | Refused)


def encode_one(message: Message) -> bytes:
    """The body of a frame that holds one message and no numbers: handshakes and data connections."""
    try:
        return _ENCODER.encode(message)
    except UnicodeEncodeError:
        return _ENCODER.encode(_in_utf8(message))


def _in_utf8(message: Message) -> Any:
    """What can be encoded in its place, with '?' for what is no text in its texts. Names of files may have that (PEP 383), and who tells of
    one, as errors of the system do, must not lose a session by it."""
    return _mended(msgspec.to_builtins(message, builtin_types=(bytes, bytearray, memoryview)))


def _mended(value: object) -> object:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list | tuple):
        return [_mended(one) for one in cast("Sequence[object]", value)]
    if isinstance(value, dict):
        return {_mended(key): _mended(one) for key, one in cast("dict[object, object]", value).items()}
    return value


def decode_hello(body: Piece) -> Hello:
    """Read the first frame of a connection, at the manager.

    Raises:
        ProtocolError: it is not a `Hello`.
    """
    try:
        return _hello_decoder().decode(body)
    except UNREADABLE as error:
        raise ProtocolError(f"the first frame is not a Hello of this protocol: {error}") from error


def decode_answer(body: Piece) -> Welcome | Refused:
    """Read the manager's answer to `Hello`.

    Raises:
        ProtocolError: it is neither `Welcome` nor `Refused`.
    """
    try:
        return _answer_decoder().decode(body)
    except UNREADABLE as error:
        raise ProtocolError(f"the answer to Hello is neither Welcome nor Refused: {error}") from error


def _bodies(batch: Sequence[Message]) -> list[tuple[bytearray, int]]:
    """The batch as bodies, whose heads are still to be written, and how many messages are in each; about `FULL_BYTES` of small ones."""
    begun: list[tuple[bytearray, int]] = []
    body, count = bytearray(_HEAD.size), 0
    for message in batch:
        start = len(body)
        try:
            _ENCODER.encode_into(message, body, start)
        except UnicodeEncodeError:
            _ENCODER.encode_into(_in_utf8(message), body, start)
        size = len(body) - start
        if size > MAX_FRAME_BYTES - _ARRAY_BYTES:
            raise InternalError(
                f"a {type(message).__name__} of {size:,} bytes cannot be sent: a frame holds {MAX_FRAME_BYTES:,}. "
                "Its sender should have split it, or sent its data as objects; please report this"
            )
        if count and len(body) > FULL_BYTES:
            begun.append((body, count))
            body, count, rest = bytearray(_HEAD.size), 0, body[start:]
            del begun[-1][0][start:]
            body += rest
        count += 1
    begun.append((body, count))
    return begun


class Session:
    """One side of a session: numbers, what is not acknowledged, and when an acknowledgement is due."""

    __slots__ = ("_decoder", "_sent", "_since_ack_bytes", "_since_ack_frames", "_unacked", "ack_at", "received", "unacked_bytes")

    def __init__(self, decoder: MessageDecoder) -> None:
        self._decoder = decoder
        self._sent = 0
        #: (number, body) of frames that the other side has not acknowledged, oldest first.
        self._unacked: deque[tuple[int, Piece]] = deque()
        self.unacked_bytes = 0
        #: Number of the newest frame received.
        self.received = 0
        #: When a bare frame is due; None: nothing waits for an acknowledgement.
        self.ack_at: float | None = None
        self._since_ack_frames = 0
        self._since_ack_bytes = 0

    @property
    def sent(self) -> int:
        """Number of the newest frame made."""
        return self._sent

    @property
    def unacked(self) -> int:
        """How many frames the other side has not acknowledged."""
        return len(self._unacked)

    def encode(self, batch: Sequence[Message]) -> list[Piece]:
        """Frames (bodies, without their length) that carry these messages in this order; they are kept until acknowledged, so nobody may
        change them.

        Raises:
            InternalError: one message is over `MAX_FRAME_BYTES`; then nothing has changed.
        """
        if not batch:
            return []
        bodies: list[Piece] = []
        for body, count in _bodies(batch):
            self._sent += 1
            _HEAD.pack_into(body, 0, 0x93, 0xCF, self._sent, 0xCF, self.received, 0xDD, count)
            self._unacked.append((self._sent, body))
            self.unacked_bytes += len(body)
            bodies.append(body)
        self._acknowledged_ours()
        return bodies

    def bare(self) -> bytes:
        """A frame without messages: an acknowledgement, a heartbeat."""
        self._acknowledged_ours()
        return _HEAD.pack(0x93, 0xCF, 0, 0xCF, self.received, 0xDD, 0)

    def take(self, body: Piece, now: float) -> list[Message]:
        """Take a frame in, and give out its messages: none if it is bare or was received before. ``now`` in seconds.

        Raises:
            ProtocolError: the frame cannot be read, leaves a number out, or acknowledges what was never sent. Then nothing has changed.
        """
        try:
            frame = _frame_decoder().decode(body)
        except UNREADABLE as error:
            raise ProtocolError(f"a frame cannot be read: {error}") from error
        if not 0 <= frame.received <= self._sent:
            raise ProtocolError(f"the other side acknowledges frame {frame.received}, and {self._sent} is the newest that was sent to it")
        number = frame.number
        if number > self.received + 1 or number < 0:
            raise ProtocolError(f"frame {number} came after frame {self.received}: what is between was lost, so this session cannot go on")
        if number <= self.received:
            self._drop_acknowledged(frame.received)
            if number:
                # Sent again because our acknowledgement was lost in the cut: say it again soon.
                self.ack_at = now
            return []
        try:
            batch = self._decoder.decode(frame.messages)
        except UNREADABLE as error:
            raise ProtocolError(f"frame {number} has a message that is not allowed here: {error}") from error
        self._drop_acknowledged(frame.received)
        self.received = number
        self._since_ack_frames += 1
        self._since_ack_bytes += len(body)
        if self._since_ack_frames >= ACK_FRAMES or self._since_ack_bytes >= ACK_BYTES:
            self.ack_at = now
        elif self.ack_at is None:
            self.ack_at = now + ACK_SECONDS
        return batch

    def resume(self, peer_received: int) -> list[Piece]:
        """Frames to send again, given the newest number that the other side says it received.

        Raises:
            ProtocolError: it received more than was sent, or less than it acknowledged before: it is not the side we knew.
        """
        oldest = self._unacked[0][0] if self._unacked else self._sent + 1
        if not oldest - 1 <= peer_received <= self._sent:
            raise ProtocolError(
                f"the other side says it received frame {peer_received}, but frames {oldest} to {self._sent} are what it can lack: "
                "it has lost its memory of this session"
            )
        self._drop_acknowledged(peer_received)
        return [body for _, body in self._unacked]

    def unheard(self, decoder: MessageDecoder) -> Iterator[Message]:
        """What was sent and not acknowledged, so that the other side may never have heard it; oldest first. ``decoder``: of what this
        side says. One frame after the other is decoded, as there may be much."""
        for _, body in self._unacked:
            yield from decoder.decode(_frame_decoder().decode(body).messages)

    def _drop_acknowledged(self, number: int) -> None:
        unacked = self._unacked
        while unacked and unacked[0][0] <= number:
            self.unacked_bytes -= len(unacked.popleft()[1])

    def _acknowledged_ours(self) -> None:
        self.ack_at = None
        self._since_ack_frames = 0
        self._since_ack_bytes = 0

    def check(self) -> None:
        """Assert what must hold between the collections."""
        numbers = [number for number, _ in self._unacked]
        assert numbers == list(range(self._sent - len(numbers) + 1, self._sent + 1)), numbers
        assert self.unacked_bytes == sum(len(body) for _, body in self._unacked)
        assert self._since_ack_frames == 0 or self.ack_at is not None


class Phase(enum.Enum):
    """Where a connection stands."""

    NEW = "new"
    #: Accepting side: a Hello was heard and is being judged.
    GREETED = "greeted"
    #: Dialling side: Hello was said, the answer is awaited.
    WAITING = "waiting"
    OPEN = "open"
    CLOSED = "closed"


class Event(enum.Enum):
    """What happens to a connection."""

    SAID_HELLO = "said Hello"
    HEARD_HELLO = "heard Hello"
    SAID_WELCOME = "said Welcome"
    HEARD_WELCOME = "heard Welcome"
    SAID_REFUSED = "said Refused"
    HEARD_REFUSED = "heard Refused"
    FRAME = "a numbered frame"
    LOST = "the connection ended"


NEXT: Final[Mapping[tuple[Phase, Event], Phase]] = {
    (Phase.NEW, Event.HEARD_HELLO): Phase.GREETED,
    (Phase.GREETED, Event.SAID_WELCOME): Phase.OPEN,
    (Phase.GREETED, Event.SAID_REFUSED): Phase.CLOSED,
    (Phase.NEW, Event.SAID_REFUSED): Phase.CLOSED,  # what came was no Hello of this protocol
    (Phase.NEW, Event.SAID_HELLO): Phase.WAITING,
    (Phase.WAITING, Event.HEARD_WELCOME): Phase.OPEN,
    (Phase.WAITING, Event.HEARD_REFUSED): Phase.CLOSED,
    (Phase.OPEN, Event.FRAME): Phase.OPEN,
    (Phase.NEW, Event.LOST): Phase.CLOSED,
    (Phase.GREETED, Event.LOST): Phase.CLOSED,
    (Phase.WAITING, Event.LOST): Phase.CLOSED,
    (Phase.OPEN, Event.LOST): Phase.CLOSED,
    (Phase.CLOSED, Event.LOST): Phase.CLOSED,
}


class Handshake:
    """The phase of one connection; refuses what `NEXT` lacks."""

    __slots__ = ("phase",)

    def __init__(self) -> None:
        self.phase = Phase.NEW

    def note(self, event: Event) -> Phase:
        """Go to the next phase.

        Raises:
            ProtocolError: the event has no place in this phase; then nothing has changed.
        """
        after = NEXT.get((self.phase, event))
        if after is None:
            raise ProtocolError(f"{event.value} has no place on a connection that is {self.phase.value}")
        self.phase = after
        return after
