"""Transfer: one large file from the manager to eight workers with caches of their own, against eight streams of blocking Python ``ssl``.

A figure is megabytes (10^6 bytes) that arrived at all workers together per second of wall clock.  Both sides move the same file over TLS
1.3 with the same cipher, from processes to processes of this machine, hash what arrives (BLAKE3) and write it to files in one folder.
Windlass reads its source once; then workers that have the file serve those that have not, ``--cap`` streams each (with
``--source-streams 8`` the manager serves all).  The bare streams all read the source.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import socket
import tempfile
import threading
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3

from common import arguments, check, clock, in_turns, median, report
from windlass.fileserver import FileServer, PlainFile
from windlass.filewire import CHUNK_BYTES
from windlass.identity import WORKER, Authority, ConnectionFile, Identity, context_for, read_connection_file
from windlass.listener import Listener
from windlass.messages import FileName, FileRef, FileSource, Hello, Refused, Welcome
from windlass.worker.arrivals import Arrival
from windlass.worker.fetching import Fetcher
from windlass.worker.peers import PeerDoor

if TYPE_CHECKING:
    from windlass.links import Link

MEGABYTE = 10**6
HOST = "127.0.0.1"
START = multiprocessing.get_context("spawn")


class Shell:
    """A manager that welcomes whom its listener lets in."""

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        return Welcome(hello.session, 0, "m1", "0")

    def attach(self, session: str, link: Link) -> None:
        raise AssertionError("there are data connections only")


def make_source(path: Path, size: int) -> FileRef:
    """A file that nothing can compress."""
    hasher, left = blake3.blake3(), size
    with path.open("wb") as file:
        while left:
            piece = os.urandom(min(left, MEGABYTE))
            file.write(piece)
            hasher.update(piece)
            left -= len(piece)
    return FileRef(FileName("b3-" + hasher.hexdigest(16)), size, "data.bin")


# ---------------------------------------------------------------- Windlass


def worker(name: str, connection: ConnectionFile, credential: tuple[bytes, bytes], ref: FileRef, folder: Path, orders: Connection) -> None:
    """A worker's data side: fetches when it is told to, and serves what it has."""
    path = folder / name
    door = PeerDoor(connection, name, *credential, lambda _: PlainFile(path, ref.size) if path.exists() else None)
    orders.send(door.open(HOST))

    async def work() -> None:
        fetcher = Fetcher(connection, name, *credential)
        while (source := await asyncio.to_thread(orders.recv)) is not None:
            await fetcher.fetch(Arrival(ref, path), source)
            orders.send("here")
        await fetcher.close()

    asyncio.run(work())
    door.close()


class Manager:
    """Serves the source from a thread with a loop, as the manager does."""

    def __init__(self, authority: Authority, source: Path, ref: FileRef) -> None:
        self.server = FileServer(lambda _: PlainFile(source, ref.size), lambda _, __: "")
        self.addresses: list[tuple[str, int]] = []
        self._authority = authority
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        self._ready.wait()

    async def _run(self) -> None:
        listener = Listener(self._authority, Shell(), files=self.server)
        self.addresses = await listener.listen([HOST])
        self._ready.set()
        await asyncio.to_thread(self._over.wait)
        await listener.close()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.server.close()


def spread(
    authority: Authority, source: Path, ref: FileRef, workers: int, cap: int, streams: int, folder: Path, reads: list[float]
) -> float:
    """Megabytes per second of all workers together."""
    manager = Manager(authority, source, ref)
    connection = read_connection_file(authority.pilot_file)
    lines: dict[Connection, str] = {}
    processes: list[Any] = []
    for number in range(workers):
        name = f"w{number}"
        ours, theirs = START.Pipe()
        words = (name, connection, authority.credential(WORKER, name), ref, folder, theirs)
        processes.append(START.Process(target=worker, args=words))
        processes[-1].start()
        lines[ours] = name
    addresses = {name: line.recv() for line, name in lines.items()}
    manager_at = tuple(f"{host}:{port}" for host, port in manager.addresses)
    began = clock()
    waiting, free = list(lines), ["m1"] * streams
    under_way: dict[Any, str] = {}
    while waiting or under_way:
        while waiting and free:
            line, server = waiting.pop(0), free.pop(0)
            permit = authority.permit(ref.name, server, lines[line])
            line.send(FileSource(server, manager_at if server == "m1" else addresses[server], permit))
            under_way[line] = server
        for ready in wait(list(under_way)):
            assert isinstance(ready, Connection)
            check(ready.recv() == "here")
            server = under_way.pop(ready)
            free += [lines[ready]] * cap + ([server] if server != "m1" else [])
    took = clock() - began
    for line in lines:
        line.send(None)
    for process in processes:
        process.join()
    manager.close()
    reads.append(manager.server.bytes_out / ref.size)
    return finish(folder, ref, workers, took)


# ---------------------------------------------------------------- bare streams


def sender(listening: socket.socket, authority: Path, source: Path, orders: Connection) -> None:
    context = Authority.load(authority).server_context()
    orders.send("ready")
    accepted, _ = listening.accept()
    with context.wrap_socket(accepted, server_side=True) as sock, source.open("rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES):
            sock.sendall(data)


def receiver(port: int, connection: ConnectionFile, credential: tuple[bytes, bytes], ref: FileRef, path: Path, orders: Connection) -> None:
    context = context_for(connection, *credential)
    orders.send("ready")
    orders.recv()
    hasher, left, view = blake3.blake3(), ref.size, memoryview(bytearray(CHUNK_BYTES))
    raw = socket.create_connection((HOST, port))
    with context.wrap_socket(raw, server_hostname=connection.manager) as sock, path.open("wb", buffering=0) as file:
        while left:
            have = 0
            while have < min(left, CHUNK_BYTES):
                have += sock.recv_into(view[have : min(left, CHUNK_BYTES)])
            file.write(view[:have])
            hasher.update(view[:have])
            left -= have
    check("b3-" + hasher.hexdigest(16) == ref.name)
    orders.send("here")


def bare(authority: Authority, source: Path, ref: FileRef, workers: int, folder: Path) -> float:
    """The same by one blocking stream for each worker."""
    connection = read_connection_file(authority.pilot_file)
    senders: list[Connection] = []
    lines: list[Connection] = []
    processes: list[Any] = []
    sockets: list[socket.socket] = []
    for number in range(workers):
        listening = socket.create_server((HOST, 0))
        sockets.append(listening)
        sends, ours = START.Pipe(), START.Pipe()
        senders.append(sends[0])
        lines.append(ours[0])
        credential = authority.credential(WORKER, f"w{number}")
        words = (listening.getsockname()[1], connection, credential, ref, folder / f"w{number}", ours[1])
        processes.append(START.Process(target=sender, args=(listening, authority.folder, source, sends[1])))
        processes.append(START.Process(target=receiver, args=words))
    for process in processes:
        process.start()
    for line in senders + lines:
        check(line.recv() == "ready")
    began = clock()
    for line in lines:
        line.send("go")
    for line in lines:
        check(line.recv() == "here")
    took = clock() - began
    for process in processes:
        process.join()
    for listening in sockets:
        listening.close()
    return finish(folder, ref, workers, took)


def finish(folder: Path, ref: FileRef, workers: int, took: float) -> float:
    """Count what is there, and take it away."""
    for number in range(workers):
        path = folder / f"w{number}"
        check(path.stat().st_size == ref.size)
        path.unlink()
    return workers * ref.size / MEGABYTE / took


def main() -> None:
    chosen = arguments(__doc__, rounds=3, megabytes=1000, workers=8, cap=2, source_streams=1)
    folder = Path(tempfile.mkdtemp(prefix="windlass-transfer-"))
    try:
        source = folder / "source"
        ref = make_source(source, chosen.megabytes * MEGABYTE)
        authority = Authority.create("m1", folder / "m1")
        reads: list[float] = []
        runs = in_turns(
            chosen.rounds,
            {
                "Windlass": lambda: spread(authority, source, ref, chosen.workers, chosen.cap, chosen.source_streams, folder, reads),
                "ssl": lambda: bare(authority, source, ref, chosen.workers, folder),
            },
        )
    finally:
        shutil.rmtree(folder)
    ours, theirs = median(runs["Windlass"]), median(runs["ssl"])
    ratio = median([one / other for one, other in zip(runs["Windlass"], runs["ssl"], strict=True)])
    figures = {
        "mb_per_s_total": round(ours),
        "mb_per_s_ssl": round(theirs),
        "vs_ssl": round(ratio, 2),
        "source_reads": round(max(reads), 3),
    }
    report(
        chosen,
        "Transfer",
        ("file", "Windlass MB/s", "blocking ssl MB/s", "ratio"),
        [(f"{chosen.megabytes} MB to {chosen.workers}", ours, theirs, ratio)],
        figures,
        f"one file to {chosen.workers} workers, {chosen.cap} stream(s) from each that has it; ratio: median of the rounds'",
    )


if __name__ == "__main__":
    main()
