"""Connections for files: what they have on the wire besides files, on blocking sockets.

Theory of operation
-------------------
A file is moved by a thread with a blocking TLS socket of its own at each end, because that is what measures best: OpenSSL, the hash and
the disk all work without the GIL, and an event loop is not touched by any byte.  The connection begins like every other (TLS 1.3, `Hello`
with purpose "data", `Welcome`); then come `GetFile`, and for each a `FileHead` and raw bytes, or `ObjectMissing`, one after the other.

At the manager such connections come in by the same port as all others, since it may be the only one that a firewall lets through.  They are
told apart before TLS begins, by the protocol (ALPN) that a client's first record names: `asks_for_files` peeks at it.  What is named there
only chooses who does the handshake; both ask for the same certificates.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final, TypeVar

import msgspec

from windlass.framing import LENGTH_BYTES, body_length, frame, unpacked
from windlass.messages import Message
from windlass.session import encode_one

T = TypeVar("T", bound=Message)

#: What a client names in its TLS hello to be served files.
ALPN: Final = "windlass-files/1"
#: It, as it stands in that record: with its length before it. No name of a manager can hold it.
_NAMED: Final = bytes([len(ALPN)]) + ALPN.encode()
#: Bytes of the first record that are looked at; a client's hello has some hundreds, and 2,000 with keys for the time after quantum
#: computers.
_PEEKED: Final = 8192
#: First and longest pause, in seconds, while the rest of a client's hello is under way.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.25

#: Bytes of a file that are read, sent, hashed and written at a time.
CHUNK_BYTES: Final = 256 << 10


async def asks_for_files(accepted: socket.socket) -> bool:
    """Whether the client of this socket (non-blocking, just accepted) wants files. Waits for its first record, and leaves it unread."""
    await _readable(accepted)
    pause = _FIRST_PAUSE
    while True:
        try:
            start = accepted.recv(_PEEKED, socket.MSG_PEEK)
        except BlockingIOError:
            start = b"\x16"
        if start[:1] != b"\x16":  # no handshake of TLS, or the end
            return False
        wanted = min(5 + int.from_bytes(start[3:5], "big") if len(start) >= 5 else _PEEKED, _PEEKED)
        if _NAMED in start or len(start) >= wanted:
            return _NAMED in start
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _readable(one: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    here: asyncio.Future[None] = loop.create_future()
    loop.add_reader(one.fileno(), lambda: None if here.done() else here.set_result(None))
    try:
        await here
    finally:
        loop.remove_reader(one.fileno())


def say(sock: ssl.SSLSocket, message: Message) -> None:
    """Send one frame. Raises `OSError`."""
    sock.sendall(frame(encode_one(message)))


def hear(sock: ssl.SSLSocket, decoder: msgspec.msgpack.Decoder[T], limit: int) -> T | None:
    """The next frame, of at most ``limit`` bytes; None at an orderly end. Raises `OSError`, `ProtocolError`."""
    body = hear_bytes(sock, limit)
    if body is None:
        return None
    return unpacked(decoder, body, "what came on a connection for files")


def hear_bytes(sock: ssl.SSLSocket, limit: int) -> bytearray | None:
    """The body of the next frame; None at an orderly end. Raises `OSError`, `ProtocolError`."""
    head = bytearray(LENGTH_BYTES)
    if not read_into(sock, memoryview(head)):
        return None
    body = bytearray(body_length(head, limit))
    if not read_into(sock, memoryview(body)):
        raise ConnectionResetError("the connection was cut in a frame")
    return body


def read_into(sock: ssl.SSLSocket, view: memoryview) -> bool:
    """Fill ``view``; False when the other side ended the connection before its first byte. Raises `OSError`, also for an end amid it."""
    have, size = 0, len(view)
    while have < size:
        count = sock.recv_into(view[have:])
        if not count:
            if have:
                raise ConnectionResetError(f"the connection was cut after {have} of {size} bytes")
            return False
        have += count
    return True


def hang_up(sock: socket.socket) -> None:
    """Have whatever another thread does on this socket end now. (`ssl.SSLSocket.shutdown` would let that thread go on without TLS.)"""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass  # it was not connected any more


def parse_address(text: str) -> tuple[str, int]:
    """``"host:port"`` or ``"[host]:port"`` → host, port. Raises `ValueError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise ValueError(f"{text!r} is no address: it should be 'host:port'")
    return host.removeprefix("[").removesuffix("]"), int(port)


def format_address(host: str, port: int) -> str:
    """The contrary of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
