"""Frames: how a stream of bytes is cut into pieces of known length.

Theory of operation
-------------------
A frame is a length, four bytes big-endian, and that many bytes of body.  Nothing else is known here: not what a body holds, not
where bytes come from.  `FrameReader` takes bytes in whatever pieces the network delivers and gives out whole bodies.

Most pieces hold many whole frames, so the bodies are given out as slices of the piece itself, without a copy; only a frame that two
pieces share is put together in a buffer of its own.  The length is judged as soon as its four bytes are there, so a peer cannot make us
wait for, or store, more than the limit.  The limit is small until the handshake is over and `MAX_FRAME_BYTES` after it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec

from windlass.errors import WindlassError
from windlass.messages import MAX_FRAME_BYTES

#: Room for what surrounds the messages in a frame (numbers, array headers).
FRAME_SLACK: Final = 1 << 10
#: A handshake frame may have this many bytes at most: nobody is known yet.
MAX_HELLO_BYTES: Final = 64 << 10

_LENGTH: Final = struct.Struct(">I")
LENGTH_BYTES: Final = _LENGTH.size

Piece = bytes | bytearray | memoryview

T = TypeVar("T")


class ProtocolError(WindlassError):
    """The other side said what the protocol does not allow; the connection, or the session, cannot go on."""


#: What a decoder raises for bytes that are not what they should be. Text that is no UTF-8 is a `ValueError`, and what is nested deeper
#: than the interpreter's stack a `RecursionError`, which its kind of errors does not include.
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


def unpacked(decoder: msgspec.msgpack.Decoder[T], body: Piece, what: str) -> T:
    """A body as what ``decoder`` makes of it. Raises `ProtocolError`, which says that ``what`` cannot be read."""
    try:
        return decoder.decode(body)
    except UNREADABLE as error:
        raise ProtocolError(f"{what} is not one that is allowed here: {error}") from error


def batches(items: list[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """These in order, for messages of at most ``most`` bytes; what is larger by itself goes alone, and not behind others."""
    size = first = 0
    for index, item in enumerate(items):
        more = size_of(item)
        if size + more > most and index > first:
            yield items[first:index]
            size, first = 0, index
        size += more
    if first < len(items):
        yield items[first:] if first else items


def frame_head(body: Piece) -> bytes:
    """What is to be sent before this body."""
    return _LENGTH.pack(len(body))


def frame(body: Piece) -> bytes:
    """All that is to be sent for this body, in one piece."""
    return frame_head(body) + body


def body_length(prefix: Piece, limit: int = MAX_FRAME_BYTES + FRAME_SLACK, offset: int = 0) -> int:
    """The length that a frame's first four bytes announce.

    Raises:
        ProtocolError: it is over ``limit``.
    """
    (length,) = _LENGTH.unpack_from(prefix, offset)
    if length > limit:
        raise ProtocolError(
            f"a frame of {length:,} bytes was announced, and {limit:,} is the most; "
            "the other side is not a Windlass of this protocol, or the stream is damaged"
        )
    return int(length)


class FrameReader:
    """Cuts a stream into frames. ``limit`` (bytes of a body) may be changed between two calls of `feed`."""

    __slots__ = ("_need", "_tail", "limit")

    def __init__(self, limit: int = MAX_FRAME_BYTES + FRAME_SLACK) -> None:
        self.limit = limit
        #: The beginning of a frame that is not all here, and how many bytes must be here before looking again.
        self._tail = bytearray()
        self._need = LENGTH_BYTES

    @property
    def waiting(self) -> int:
        """Bytes of an unfinished frame that are kept."""
        return len(self._tail)

    def feed(self, data: Piece) -> list[memoryview]:
        """The bodies that ``data`` completes, in order; they may be slices of ``data``, so use them before changing it.

        Raises:
            ProtocolError: a frame over the limit was announced; the reader is of no use after that.
        """
        if self._tail:
            self._tail += data
            if len(self._tail) < self._need:
                return []
            # The slices given out keep the old buffer alive; it is never written again.
            data, self._tail = self._tail, bytearray()
        view = memoryview(data)
        end = len(view)
        at = 0
        bodies: list[memoryview] = []
        need = LENGTH_BYTES
        while end - at >= LENGTH_BYTES:
            length = body_length(view, self.limit, at)
            start = at + LENGTH_BYTES
            if end - start < length:
                need = LENGTH_BYTES + length
                break
            bodies.append(view[start : start + length])
            at = start + length
        if at < end:
            self._tail = bytearray(view[at:])
        self._need = need
        return bodies
