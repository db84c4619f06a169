"""Fetching files: from the manager, from a peer, from a URL, from a shared path.

Theory of operation
-------------------
`Fetcher.fetch` brings one `windlass.worker.arrivals.Arrival` here from one source.  The loop only waits: a thread of its own does the work,
with a blocking socket (why: `windlass.filewire`).  A cut is no failure as long as bytes come: the stream goes on at the byte that it has
reached, up to `TRIES` times.  `BARREN` attempts without a byte, or a silence of ``silence`` seconds, are a failure of this source
(`SourceFailed`): another one may do, and goes on at the same byte.  Which source comes next is not decided here.

A connection that has served a file is kept for the next one (`windlass.blocking`).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from windlass import __version__
from windlass.blocking import Call, Idle, OutOfTurn, dial, in_thread, plain
from windlass.errors import CacheFull, Damaged, WindlassError
from windlass.files import shown
from windlass.filewire import ALPN, CHUNK_BYTES, hear, parse_address, say
from windlass.framing import MAX_HELLO_BYTES, ProtocolError
from windlass.identity import MANAGER, WORKER, Address, ConnectionFile, Identity, context_for
from windlass.messages import PROTOCOL, FileHead, FileSource, GetFile, Hello, ObjectMissing, Refused, ToFileReader
from windlass.worker.arrivals import Arrival, Arrived

if TYPE_CHECKING:
    from windlass.worker.downloads import Downloader

log = logging.getLogger("windlass.files")

#: Seconds that one address may take to connect and answer.
DIAL_TIMEOUT: Final = 10.0
#: Seconds without a byte, or with less than a chunk in `SLOW` times as many, after which a source has failed.
SILENCE: Final = 30.0
SLOW: Final = 4
#: Seconds that one step of reading a path may take: file systems bring files from tape, and stand still while a server is taken over.
HANG: Final = 60.0
#: Attempts at one source, and those in a row that bring no byte.
TRIES: Final = 10
BARREN: Final = 2
#: First and longest pause between two attempts, in seconds.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0


class SourceGone(WindlassError):
    """This source does not have the file, or does not give it: not there, changed, not permitted."""


class SourceFailed(WindlassError):
    """This source was not reached, was cut off too often, or said nothing: another one may do, or the same one later."""


class Fetcher:
    """A worker's way to files. Belongs to one event loop.

    ``connection`` says who the manager is and where; ``certificate`` and ``key`` (PEM) are this worker's own.
    """

    def __init__(
        self,
        connection: ConnectionFile,
        worker: str,
        certificate: bytes,
        key: bytes,
        *,
        session: str = "",
        silence: float = SILENCE,
        dial_timeout: float = DIAL_TIMEOUT,
        hang: float = HANG,
        url_context: ssl.SSLContext | None = None,
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._silence, self._dial_timeout, self._hang = silence, dial_timeout, hang
        self._context = context_for(connection, certificate, key)
        self._context.set_alpn_protocols([ALPN])
        self._context.check_hostname = False  # `dial` compares role and name
        self._url_context = url_context
        #: The worker's session with its manager, which a manager asks for.
        self.session = session
        self._calls: set[Call] = set()
        #: Threads that were left behind with their file system, by the path that they read.
        self._behind: dict[str, asyncio.Future[Arrived]] = {}
        self._idle = Idle()
        self._closed = False
        #: For the status: bytes that came from the manager, from peers, from elsewhere.
        self.bytes_in = {"manager": 0, "worker": 0, "other": 0}

    async def fetch(self, arrival: Arrival, source: FileSource) -> Arrived:
        """Bring it here from this source, or what is missing of it. The `Arrival` is good for another source after `SourceGone` and
        `SourceFailed`; and so it is after a cancellation.

        Raises:
            SourceGone: the source does not have it, or does not give it.
            SourceFailed: the source was not reached, was cut off, or said nothing for too long.
            Damaged: what came is not what was asked for.
            CacheFull, CannotKeep: it cannot be written here.
        """
        kind = "other" if not source.peer else "manager" if source.peer == self._connection.manager else "worker"
        place = shown(source.url) or source.path or f"{'manager' if kind == 'manager' else 'worker'} {source.peer}"
        barren, pause, tries = 0, FIRST_PAUSE, 0
        while True:
            before = arrival.offset
            try:
                return await self._attempt(arrival, source)
            except TimeoutError as error:
                raise SourceFailed(f"{place}: {error or f'nothing came for {self._silence:g} s'}{_so_far(arrival)}") from error
            except CacheFull:
                raise
            except (OSError, ProtocolError) as error:
                tries += 1
                barren = 0 if arrival.offset > before else barren + 1
                if barren == BARREN or tries == TRIES:
                    raise SourceFailed(f"{place}: {plain(error)}{_so_far(arrival)}") from error
                log.info("file %s from %s: %s; going on at byte %d", arrival.ref.name, place, plain(error), arrival.offset)
            finally:
                self.bytes_in[kind] += max(0, arrival.offset - before)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def close(self) -> None:
        """Give up all that is under way, and close the idle connections."""
        self._closed = True
        for call in list(self._calls):
            call.cancel()
        for work in list(self._behind.values()):
            work.cancel()
        self._idle.close()

    async def _attempt(self, arrival: Arrival, source: FileSource) -> Arrived:
        if self._closed:
            raise SourceFailed("this worker is leaving")
        call, turn = Call(), arrival.next_turn()
        self._calls.add(call)
        try:
            if source.peer:
                work = partial(self._from_peer, call, arrival, turn, source)
            elif source.url and not source.url.startswith("file:"):
                work = partial(self._downloader().from_url, call, arrival, turn, source.url)
            else:
                return await self._from_path(call, arrival, turn, source.path or source.url)
            return await in_thread(work)
        except asyncio.CancelledError:
            arrival.next_turn()
            call.cancel()
            raise
        except OutOfTurn as error:
            raise SourceFailed(str(error)) from error
        finally:
            self._calls.discard(call)
            self._idle.sweep_soon()

    async def _from_path(self, call: Call, arrival: Arrival, turn: int, path: str) -> Arrived:
        """The thread may hang with its file system, for as long as that does: then it is left behind. Nor does another one begin before
        that has its answer: it would hang as well, and where a file comes from tape that would ask for it once more."""
        silent = f"its file system gave no answer for {self._hang:g} s"
        before = self._behind.get(path)
        if before is not None and not (await asyncio.wait([before], timeout=self._hang))[0]:
            raise TimeoutError(silent)
        work = asyncio.ensure_future(in_thread(partial(self._downloader().from_path, call, arrival, turn, path)))
        try:
            while not (await asyncio.wait([work], timeout=self._hang / 4))[0]:
                if call.hangs(self._hang):
                    arrival.next_turn()
                    call.cancel()
                    raise TimeoutError(silent)
            return work.result()
        finally:
            if self._closed:
                work.cancel()
            elif not work.done():
                self._behind[path] = work
                work.add_done_callback(partial(self._woke, path))

    def _woke(self, path: str, work: asyncio.Future[Arrived]) -> None:
        """A thread that was left behind has its answer, which nobody wants any more."""
        if self._behind.get(path) is work:
            del self._behind[path]
        if not work.cancelled():
            work.exception()

    def _downloader(self) -> Downloader:
        from windlass.worker.downloads import Downloader

        return Downloader(self._silence, self._url_context)

    # ------------------------------------------------------------ on a thread

    def _from_peer(self, call: Call, arrival: Arrival, turn: int, source: FileSource) -> Arrived:
        offset = arrival.start(turn)
        sock, head = self._ask(call, source, GetFile(arrival.ref.name, offset, source.permit))
        good = False
        try:
            if isinstance(head, ObjectMissing):
                good = True
                raise (SourceFailed if head.full else SourceGone)(f"{head.text} (so says {source.peer} of {head.name})")
            if head.name != arrival.ref.name or head.offset != offset:
                raise ProtocolError(
                    f"{arrival.ref.name} from byte {offset} was asked for, and {head.name} from byte {head.offset} was sent"
                )
            if head.size < offset:
                raise Damaged(f"{arrival.ref.name} has {head.size:,} bytes at {source.peer}, and {offset:,} are here")
            arrival.begin(turn, head.size, head.tree)
            self._take(sock, arrival, turn, head.size - offset)
            good = True
        finally:
            call.release()
            if good:
                self._idle.put(source.peer, sock)
            else:
                sock.close()
        return arrival.finish(turn)

    def _take(self, sock: ssl.SSLSocket, arrival: Arrival, turn: int, left: int) -> None:
        """So many raw bytes follow."""
        sock.settimeout(self._silence)
        view = memoryview(bytearray(min(left, CHUNK_BYTES)))
        while left:
            have, wanted = 0, min(left, CHUNK_BYTES)
            end = time.monotonic() + SLOW * self._silence
            try:
                while have < wanted:
                    count = sock.recv_into(view[have:wanted])
                    if not count:
                        raise ConnectionResetError("it ended the connection")
                    have += count
                    if have < wanted and time.monotonic() > end:
                        raise TimeoutError(f"fewer than {wanted:,} bytes came in {SLOW * self._silence:g} s")
            except TimeoutError as error:
                raise TimeoutError(str(error) if "fewer" in str(error) else f"nothing came for {self._silence:g} s") from error
            finally:
                if have:
                    arrival.feed(turn, view[:have])
            left -= have

    def _ask(self, call: Call, source: FileSource, request: GetFile) -> tuple[ssl.SSLSocket, FileHead | ObjectMissing]:
        """Make the request on an idle connection or a new one, and hear the answer."""
        while (sock := self._idle.take(source.peer)) is not None:
            try:
                return sock, self._request(call, sock, request)
            except (OSError, ProtocolError) as error:
                sock.close()
                log.debug("a connection to %s was kept too long: %s", source.peer, error)
                if isinstance(error, TimeoutError):
                    raise
            except BaseException:
                sock.close()
                raise
        sock = self._dial(call, source)
        try:
            return sock, self._request(call, sock, request)
        except BaseException:
            sock.close()
            raise

    def _request(self, call: Call, sock: ssl.SSLSocket, request: GetFile) -> FileHead | ObjectMissing:
        call.hold(sock)
        sock.settimeout(self._silence)
        say(sock, request)
        try:
            decoder: msgspec.msgpack.Decoder[FileHead | ObjectMissing] = msgspec.msgpack.Decoder(ToFileReader)
            answer = hear(sock, decoder, MAX_HELLO_BYTES)
        except TimeoutError as error:
            raise TimeoutError(f"no answer came for {self._silence:g} s") from error
        if answer is None:
            raise ConnectionResetError("it ended the connection instead of answering")
        return answer

    def _dial(self, call: Call, source: FileSource) -> ssl.SSLSocket:
        """Say hello at the first of the addresses that answers. Raises `OSError`, `SourceFailed`."""
        role = MANAGER if source.peer == self._connection.manager else WORKER
        addresses: Iterable[str | Address] = source.addresses
        if not source.addresses and role == MANAGER:
            addresses = self._connection.addresses
        reasons: list[str] = []
        slow = 0
        for address in addresses:
            place = str(address)
            try:
                host, port = parse_address(address) if isinstance(address, str) else address
                place = f"{host} port {port}"
                return self._dial_one(call, host, port, Identity(role, source.peer))
            except TimeoutError:
                slow += 1
                reasons.append(f"{place}: no answer within {self._dial_timeout:g} s")
            except (OSError, ProtocolError) as error:
                reasons.append(f"{place}: {plain(error)}")
            except ValueError as error:
                reasons.append(str(error))
        text = "; ".join(reasons) or "no address of it is known"
        raise TimeoutError(text) if 0 < slow == len(reasons) else ConnectionError(text)

    def _dial_one(self, call: Call, host: str, port: int, whom: Identity) -> ssl.SSLSocket:
        session = self.session if whom.role == MANAGER else ""
        hello = Hello(WORKER, PROTOCOL, __version__, sys.version_info[:2], self._worker, session, purpose="data")
        sock, answer = dial(call, (host, port), self._context, whom, hello, self._dial_timeout)
        if isinstance(answer, Refused):
            sock.close()
            raise SourceFailed(f"{whom.role} {whom.name} refused a connection for files: {answer.text}")
        return sock


def _so_far(arrival: Arrival) -> str:
    """What has come, for people. How often it was tried is the manager's to tell, which has it tried again."""
    if not arrival.offset:
        return ""
    return f"; {arrival.offset:,} bytes are here" if arrival.size < 0 else f"; {arrival.offset:,} of {arrival.size:,} bytes are here"
