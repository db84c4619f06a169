"""Serving files: to workers, by the manager from where files were declared, and by workers from their caches.

Theory of operation
-------------------
`FileServer.serve` takes over a connection that was just accepted, before TLS, and answers it on a thread of its own until its reader
leaves, is idle for `IDLE` seconds, or takes nothing for ``silence`` seconds.  Threads share the processor by themselves, so no stream waits
for another one, and a chunk is as much as any of them does between two looks at whether it should end.  How many streams one source serves
is not decided here: the manager, which tells readers where to go, keeps to a cap.  ``connections`` only bounds what a stranger could cost:
past it the oldest of those leaves that have not shown a certificate yet, and where there is none the newcomer is hung up on.  Connections
do not stay open for a next request once half of it is used.

The first chunk is read before the head is sent, so that a file that is gone or has changed is said so in words (`ObjectMissing`).  When
that happens later the connection is cut; the reader asks again for the rest, and then hears the words.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from windlass.errors import SourceChanged, WindlassError
from windlass.filewire import CHUNK_BYTES, hang_up, hear, hear_bytes, say
from windlass.framing import MAX_HELLO_BYTES, ProtocolError
from windlass.identity import Identity, peer_of
from windlass.messages import (
    FileHead,
    FileName,
    FromFileReader,
    GetFile,
    GetObject,
    Hello,
    ObjectMissing,
    ObjectName,
    PutObject,
    Refused,
    Welcome,
)
from windlass.passing import may_pass
from windlass.session import decode_hello
from windlass.trees import TreeStream
from windlass.turns import prompt

log = logging.getLogger("windlass.files")

#: Seconds from accept to a good Hello.
HANDSHAKE_TIMEOUT: Final = 10.0
#: Seconds that a connection may wait for its next request.
IDLE: Final = 5.0
#: Seconds in which a reader must take a chunk.
SILENCE: Final = 60.0
#: Seconds that the other side of a failed handshake has to hear so.
LINGER: Final = 1.0
#: Connections at one time, each with a thread.
CONNECTIONS: Final = 256


class ServedFile(Protocol):
    """A file's stream, to be read on a thread. Whatever it raises as `OSError` or `WindlassError` is told to the reader."""

    @property
    def size(self) -> int:
        """Bytes of the whole stream."""
        ...

    @property
    def tree(self) -> bool:
        """The stream is a tree's."""
        ...

    def read(self, offset: int, count: int, /) -> bytes:
        """So many bytes from there; fewer only at the end."""
        ...

    def close(self) -> None:
        """It will not be read any more."""
        ...


class Objects(Protocol):
    """Who answers requests for objects, on the connection's thread: `windlass.bulk.BulkServer`."""

    def answer(self, sock: ssl.SSLSocket, hello: Hello, request: GetObject | PutObject, /) -> None:
        """Raises `OSError`, `ProtocolError`: then the connection is of no use any more."""
        ...


Find = Callable[[FileName], ServedFile | None]
#: Who asks (by its certificate), and for what: "" to serve it, or why not.
Allowed = Callable[[Identity, GetFile], str]
Judge = Callable[[Hello, Identity], Welcome | Refused]


class PlainFile:
    """A regular file as a stream, as long as it stays what it was: of ``size`` bytes, last written at ``mtime_ns`` (0: whenever).

    Raises:
        SourceChanged: it is gone, or is not what it was. `read` too.
        OSError: it cannot be read.
    """

    tree = False

    def __init__(self, path: str | os.PathLike[str], size: int, mtime_ns: int = 0) -> None:
        self.path = os.fspath(path)
        self.size = size
        self._mtime_ns = mtime_ns
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # or a FIFO would wait for its writer
        except FileNotFoundError as error:
            raise SourceChanged(f"{self.path} is gone; it was there when it was declared: put it back, or declare it anew") from error
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, count: int, /) -> bytes:
        data = os.pread(self._descriptor, min(count, self.size - offset), offset)
        self._check()
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check(self) -> None:
        now = os.fstat(self._descriptor)
        if not stat.S_ISREG(now.st_mode):
            raise SourceChanged(f"{self.path} is not a regular file any more; declare it anew")
        if now.st_size != self.size:
            raise SourceChanged(
                f"{self.path} has changed since it was declared: it has {now.st_size:,} bytes and had {self.size:,}; declare it anew"
            )
        if self._mtime_ns and now.st_mtime_ns != self._mtime_ns:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now.st_mtime))
            raise SourceChanged(f"{self.path} has changed since it was declared: it was written at {when}; declare it anew")


class ServedTree(TreeStream):
    """A directory tree as a stream, as long as it stays what was scanned. Reading raises `SourceChanged` when it does not."""

    tree = True


class FileServer:
    """Serves what ``find`` finds to whom ``allowed`` allows it; both are called on threads, and may block."""

    def __init__(
        self,
        find: Find,
        allowed: Allowed,
        *,
        silence: float = SILENCE,
        idle: float = IDLE,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        connections: int = CONNECTIONS,
    ) -> None:
        self._find = find
        self._allowed = allowed
        #: Set where objects are served too.
        self.objects: Objects | None = None
        self._silence, self._idle, self._handshake_timeout = silence, idle, handshake_timeout
        self._connections = connections
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, socket.socket] = {}
        #: Those of which nobody knows yet whose they are, oldest first.
        self._strangers: dict[threading.Thread, None] = {}
        self._closed = False
        #: Connections taken over so far.
        self.accepted = 0
        #: For the status: bytes of files sent, streams that were begun, and those that are under way.
        self.bytes_out = 0
        self.served = 0
        self.sending = 0

    def serve(self, accepted: socket.socket, context: ssl.SSLContext, judge: Judge) -> None:
        """Take over a connection that was just accepted. ``judge`` is called on its thread. Does not block."""
        accepted.settimeout(self._handshake_timeout)
        thread = threading.Thread(target=self._run, args=(accepted, context, judge), name="windlass-file", daemon=True)
        with self._lock:
            # Those that were asked to leave count no more: their threads are about to end.
            room = not self._closed and (len(self._threads) < self._connections or self._send_stranger_away())
            if room:
                self._threads[thread] = accepted
                self._strangers[thread] = None
                self.accepted += 1
        if not room:
            log.warning("%d connections for files are open, which is the most: one was hung up on", len(self._threads))
            accepted.close()
            return
        try:
            thread.start()
        except RuntimeError as error:
            log.warning("no thread could be started for a connection for files: %s", error)
            accepted.close()
            with self._lock:
                self._threads.pop(thread, None)
                self._strangers.pop(thread, None)

    def _send_stranger_away(self) -> bool:
        """Hang up on who has been here for longest without a certificate; with the lock held."""
        oldest = next(iter(self._strangers), None)
        if oldest is None:
            return False
        del self._strangers[oldest]
        hang_up(self._threads[oldest])
        return True

    def cut_all(self) -> list[threading.Thread]:
        """End all connections; gives the threads that will end therefore."""
        with self._lock:
            threads = dict(self._threads)
        for sock in threads.values():
            hang_up(sock)
        return list(threads)

    def close(self, timeout: float = 2.0) -> None:
        """Cut all streams and wait up to so many seconds for their threads."""
        self._closed = True
        threads = self.cut_all()
        end = time.monotonic() + timeout
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))

    # ------------------------------------------------------------ on a connection's thread

    def _run(self, accepted: socket.socket, context: ssl.SSLContext, judge: Judge) -> None:
        peer = "somebody"
        try:
            accepted.getpeername()  # or it has left again, and `wrap_socket` would make of it what nobody closes
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as sock:
                self._became(sock)
                try:
                    sock.do_handshake()
                except ssl.SSLError:
                    _linger(sock)
                    raise
                identity = peer_of(sock)
                with self._lock:
                    self._strangers.pop(threading.current_thread(), None)
                peer = f"{identity.role} {identity.name}"
                hello = hear_bytes(sock, MAX_HELLO_BYTES)
                if hello is None:
                    return
                said = decode_hello(hello)
                answer = judge(said, identity)
                say(sock, answer)
                if isinstance(answer, Refused):
                    log.info("refused a connection for files of %s: %s", peer, answer.text)
                    return
                self._serve_requests(sock, identity, said)
        except (OSError, WindlassError) as error:
            log.info("a connection for files of %s has ended: %s", peer, error)
        except Exception:
            log.exception("a defect of Windlass: a connection for files of %s was dropped", peer)
        finally:
            accepted.close()
            with self._lock:
                self._threads.pop(threading.current_thread(), None)
                self._strangers.pop(threading.current_thread(), None)

    def _became(self, sock: ssl.SSLSocket) -> None:
        """From now on it is this socket that `close` hangs up."""
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the server is closed")
            self._threads[threading.current_thread()] = sock

    def _serve_requests(self, sock: ssl.SSLSocket, identity: Identity, hello: Hello) -> None:
        decoder: msgspec.msgpack.Decoder[GetFile | GetObject | PutObject] = msgspec.msgpack.Decoder(FromFileReader)
        while True:
            sock.settimeout(self._idle)
            try:
                request = hear(sock, decoder, MAX_HELLO_BYTES)
            except TimeoutError:
                return
            if request is None:
                return
            sock.settimeout(self._silence)
            if isinstance(request, GetFile):
                self._answer(sock, identity, request)
            elif self.objects is not None:
                if len(self._threads) > self._connections // 2:
                    return  # objects have another way, and files have none
                self.objects.answer(sock, hello, request)
            else:
                raise ProtocolError(f"{identity.name} asked for an object where there are files only")
            if len(self._threads) > self._connections // 2:
                return

    def _answer(self, sock: ssl.SSLSocket, identity: Identity, request: GetFile) -> None:
        name = request.name
        file: ServedFile | None = None
        later = False
        try:
            trouble = self._allowed(identity, request)
            if not trouble:
                try:
                    file = self._find(name)
                    if file is None:
                        trouble = f"file {name} is not here, or not any more"
                    elif not 0 <= request.offset <= file.size:
                        raise ProtocolError(f"{identity.name} asked for {name} from byte {request.offset}, and it has {file.size}")
                    else:
                        self._send(sock, file, request, file.read(request.offset, CHUNK_BYTES))
                        return
                except (_Cut, ProtocolError):
                    raise
                except (OSError, WindlassError) as error:
                    trouble, later = str(error), may_pass(error)
            log.info("%s %s was not given %s: %s", identity.role, identity.name, name, trouble)
            say(sock, ObjectMissing(ObjectName(name), trouble, later))
        finally:
            if file is not None:
                file.close()

    def _send(self, sock: ssl.SSLSocket, file: ServedFile, request: GetFile, data: bytes) -> None:
        """The head and all bytes from ``data`` on."""
        at, size = request.offset, file.size
        with self._lock:
            self.served += 1
            self.sending += 1
        try:
            with prompt():
                say(sock, FileHead(request.name, size, at, file.tree))
                while at < size:
                    if not data:
                        raise SourceChanged(f"file {request.name} ended at byte {at:,} of {size:,}")
                    sock.sendall(data)
                    at += len(data)
                    if at < size:
                        data = file.read(at, CHUNK_BYTES)
        except (OSError, WindlassError) as error:
            raise _Cut(f"{request.name} was cut at byte {at:,} of {size:,}: {error}") from error
        finally:
            with self._lock:
                self.bytes_out += at - request.offset
                self.sending -= 1


def _linger(sock: ssl.SSLSocket) -> None:
    """Let the other side hear why the handshake failed: a reset, for what it has said meanwhile, would overtake it."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_WR)
        sock.settimeout(LINGER)
        for _ in range(16):
            if not socket.socket.recv(sock, 4096):
                return
    except OSError:
        pass  # it has left


class _Cut(WindlassError):
    """The head is sent, so there is no other way left to say that something is wrong than to end the connection."""
