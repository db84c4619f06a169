"""The short way between processes of one host: a Unix-domain socket beside each port that a manager listens on.

Theory of operation
-------------------
A packet to one's own host goes through all of TCP, which costs a message there and back some 10 µs, and 64 KiB another 10. So whoever
listens on a port listens under a name as well, which follows from the port and from who listens (an *abstract* name: it is no file, it goes
with the process, and it is seen in this host's network namespace alone), and whoever dials asks for that name first. Where nobody has it
the other is elsewhere, or behind a proxy or a tunnel, and is dialled as ever. What is said is the same, TLS with both certificates too.

Anybody on the host may take a name, so a socket counts only if a process of one's own user has it at the other end.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from windlass.store_folders import has_ended, start_time

#: What is on its way in one direction at most; by default it would be 200 kB, three frames.
BUFFER_BYTES: Final = 2 << 20

#: Where Linux's ``struct tcp_info`` has the shortest round trip of late, in microseconds; and what stands there while none was measured.
_MIN_RTT: Final = slice(148, 152)
_UNMEASURED: Final = 0xFFFFFFFF


def round_trip_of(sock: socket.socket) -> float:
    """Seconds that a packet takes to the other end and back at least; 0.0 where that is this host, or is not to be known."""
    with suppress(OSError):
        known = int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT.stop)[_MIN_RTT], sys.byteorder)
        return known / 1e6 if known != _UNMEASURED else 0.0
    return 0.0


def listening(manager: str, port: int) -> socket.socket | None:
    """Listens beside this port; None where that cannot be."""
    with suppress(OSError), ExitStack() as trouble:
        sock = trouble.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.bind(_name(manager, port))
        sock.listen(1024)
        sock.setblocking(False)
        trouble.pop_all()
        return sock
    return None


def dialled(manager: str, port: int) -> socket.socket | None:
    """Connected with what listens beside this port on this host; None where nobody does."""
    with suppress(OSError), ExitStack() as trouble:  # also for want of a descriptor: then who dials the port says so
        sock = trouble.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.setblocking(False)
        sock.connect(_name(manager, port))
        widen(sock)
        if is_ours(sock):
            trouble.pop_all()
            return sock
    return None


def widen(sock: socket.socket) -> None:
    """Have it take as much at a time as one of TCP would: who writes a batch of results is not to wait until the other side reads."""
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)  # the kernel gives what it allows


def is_ours(sock: socket.socket) -> bool:
    """Whether a process of this user, or of root, is at the other end of a Unix-domain socket. Raises `OSError`."""
    _, user = _peer(sock)
    return user in (0, os.geteuid())


class Process(NamedTuple):
    """A process of this host; with its start, as its number is another's when it is gone."""

    pid: int
    start: str

    def has_ended(self) -> bool:
        """It is surely not there any more."""
        return has_ended(self.pid, self.start)


def process_at(sock: socket.socket) -> Process | None:
    """Who dialled this connection; None where that is not to be known, as of another host or container. Raises `OSError`."""
    if sock.family != socket.AF_UNIX:
        return None
    pid, _ = _peer(sock)
    start = start_time(pid) if pid > 0 else ""
    return Process(pid, start) if start else None


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end."""
    pid, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, user


def _name(manager: str, port: int) -> bytes:
    return f"\0windlass.{manager}.{port}".encode()[:100]
