"""Echo over bare blocking TLS: what Python's ``ssl`` gives two processes that do nothing else, with the certificates of Windlass.

Theory of operation: a process per stream sends back what it gets, and the program has a thread per stream, as blocking sockets want it.
What comes is read into memory that is there already; nothing is kept, hashed, pickled or scheduled.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import ssl
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from common import check, clock
from windlass.identity import WORKER, Authority, context_for, read_connection_file

HOST = "127.0.0.1"
_HEAD = 8


def _fill(sock: ssl.SSLSocket, view: memoryview) -> bool:
    have = 0
    while have < len(view):
        count = sock.recv_into(view[have:])
        if not count:
            return False
        have += count
    return True


def _echo(listening: socket.socket, authority: Path, largest: int) -> None:
    context = Authority.load(authority).server_context()
    accepted, _ = listening.accept()
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head, room = memoryview(bytearray(_HEAD)), memoryview(bytearray(largest))
    with context.wrap_socket(accepted, server_side=True) as sock:
        while _fill(sock, head):
            size = int.from_bytes(head, "big")
            _fill(sock, room[:size])
            sock.sendall(room[:size])


class Streams:
    """Connected streams, each to a process of its own."""

    def __init__(self, streams: Sequence[ssl.SSLSocket], largest: int) -> None:
        self._streams = streams
        self._room = [memoryview(bytearray(largest)) for _ in streams]

    def seconds(self, arrays: Sequence[Any], at_once: int) -> float:
        """There and back of all arrays over so many streams."""
        began = clock()
        threads = [threading.Thread(target=self._run, args=(number, arrays[number::at_once])) for number in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return clock() - began

    def _run(self, number: int, arrays: Sequence[Any]) -> None:
        sock, room = self._streams[number], self._room[number]
        for array in arrays:
            view = memoryview(array).cast("B")
            sock.sendall(len(view).to_bytes(_HEAD, "big"))
            sock.sendall(view)
            back = room[: len(view)]
            check(_fill(sock, back) and back[:8] == view[:8])


@contextlib.contextmanager
def streams(count: int, largest: int, folder: Path) -> Generator[Streams]:
    """So many streams for up to ``largest`` bytes at a time; ``folder`` is for certificates."""
    authority = Authority.create("bare", folder / "bare")
    connection = read_connection_file(authority.pilot_file)
    start = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as open_:
        made: list[ssl.SSLSocket] = []
        for number in range(count):
            listening = open_.enter_context(socket.create_server((HOST, 0)))
            process = start.Process(target=_echo, args=(listening, authority.folder, largest))
            process.start()
            open_.callback(process.join)
            raw = socket.create_connection(listening.getsockname())
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = context_for(connection, *authority.credential(WORKER, f"w{number}"))
            made.append(open_.enter_context(context.wrap_socket(raw, server_hostname=connection.manager)))
        yield Streams(made, largest)
