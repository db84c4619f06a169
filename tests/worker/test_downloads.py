"""Files from web servers and from paths: what is followed, what is noticed, and what a transfer costs its source."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import blake3
import pytest
from tests.shared.ports import silent

from windlass.errors import Damaged
from windlass.files import shown
from windlass.identity import WORKER, Authority, read_connection_file
from windlass.messages import FileName, FileRef, FileSource
from windlass.trees import scan
from windlass.worker.arrivals import Arrival, Arrived
from windlass.worker.fetching import Fetcher, SourceFailed, SourceGone

LIMIT = 30.0
CONTENT = os.urandom(1_000_000)
X3 = FileName("x3-" + "0" * 32)
REF = FileRef(X3, -1, "data.bin")


def digest_of(content: bytes) -> str:
    return blake3.blake3(content).hexdigest(16)


class Request(BaseHTTPRequestHandler):
    """Answers as the test says that the path be answered."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        web = self.server.web
        web.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        web.answers[self.path](self)

    def answer(self, status: int, content: bytes, sent: int = -1, **headers: str) -> None:
        """``sent``: as many bytes of the content as come before the connection ends."""
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content if sent < 0 else content[:sent])

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nobody reads it."""


class Server(ThreadingHTTPServer):
    web: Web

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is what some tests are about."""


class Web:
    """A web server."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Callable[[Request], None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.over = threading.Event()
        self._server = Server(("127.0.0.1", 0), Request)
        self._server.web = self
        self._server.daemon_threads = False
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"{'http' if context is None else 'https'}://localhost:{self._server.server_port}"

    def serve(self, path: str, answer: Callable[[Request], None]) -> FileSource:
        self.answers[path] = answer
        return FileSource("", url=self.url + path)

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Its manager's certificate is also one for a web server on this machine."""
    return Authority.create("localhost", tmp_path_factory.mktemp("state") / "localhost")


class Side:
    """A worker that fetches."""

    def __init__(self, authority: Authority, folder: Path, silence: float, hang: float) -> None:
        self.folder = folder / "cache"
        self.folder.mkdir()
        connection = read_connection_file(authority.pilot_file)
        trusted = ssl.create_default_context(cadata=connection.ca)
        self.fetcher = Fetcher(connection, "w1", *authority.credential(WORKER, "w1"), silence=silence, hang=hang, url_context=trusted)
        self.count = 0

    def arrival(self, ref: FileRef = REF, **options: Any) -> Arrival:
        self.count += 1
        return Arrival(ref, self.folder / f"here-{self.count}", **options)

    async def fetch(self, source: FileSource, ref: FileRef = REF, **options: Any) -> bytes:
        arrival = self.arrival(ref, **options)
        arrived = await self.fetcher.fetch(arrival, source)
        content = content_of(arrival)
        assert arrived == Arrived(len(content), digest_of(content), False)
        return content

    def left(self) -> list[str]:
        return os.listdir(self.folder)


@asynccontextmanager
async def side(authority: Authority, folder: Path, silence: float = 20.0, hang: float = 20.0) -> AsyncGenerator[Side]:
    one = Side(authority, folder, silence, hang)
    try:
        async with asyncio.timeout(LIMIT):
            yield one
    finally:
        await one.fetcher.close()


def content_of(arrival: Arrival) -> bytes:
    return Path(arrival.path).read_bytes()


# ---------------------------------------------------------------- URLs


def test_a_url_is_fetched_whole(authority: Authority, tmp_path: Path, web: Web) -> None:
    """With a length, in chunks, until the end of the connection, and empty; and its content is known then."""

    def chunked(request: Request) -> None:
        request.answer(200, b"", Content_Length="", Transfer_Encoding="chunked")
        for at in range(0, len(CONTENT), 99_999):
            piece = CONTENT[at : at + 99_999]
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        request.wfile.write(b"0\r\n\r\n")

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            answers: list[tuple[Callable[[Request], None], bytes]] = [
                (lambda request: request.answer(200, CONTENT), CONTENT),
                (chunked, CONTENT),
                (lambda request: request.answer(200, CONTENT, Content_Length=""), CONTENT),
                (lambda request: request.answer(200, b""), b""),
            ]
            for answer, content in answers:
                assert await one.fetch(web.serve("/file", answer)) == content
            assert one.fetcher.bytes_in["other"] == 3 * len(CONTENT)

    asyncio.run(work())


def test_a_url_declared_with_its_content_must_have_it(authority: Authority, tmp_path: Path, web: Web) -> None:
    async def work() -> None:
        async with side(authority, tmp_path) as one:
            source = web.serve("/file", lambda request: request.answer(200, CONTENT))
            await one.fetch(source, digest=digest_of(CONTENT))
            with pytest.raises(Damaged, match=rf"{X3} was damaged on its way, or has changed"):
                await one.fetch(source, digest="f" * 32)
            with pytest.raises(Damaged, match=rf"{X3} has 5 bytes, and 1,000,000 were to come"):
                await one.fetch(source, FileRef(X3, 5, "x"))
            assert len(one.left()) == 1

    asyncio.run(work())


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, SourceGone),
        (410, SourceGone),
        (403, SourceGone),
        (501, SourceGone),
        (505, SourceGone),
        (503, SourceFailed),
        (429, SourceFailed),
    ],
)
def test_what_a_server_says_is_told(authority: Authority, tmp_path: Path, web: Web, status: int, error: type[Exception]) -> None:
    """With the URL. Its being overloaded is another thing than its not having the file."""

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            with pytest.raises(error, match=rf"{web.url}/file: {status} \w+"):
                await one.fetch(web.serve("/file", lambda request: request.answer(status, b"sorry")))
            assert one.left() == []

    asyncio.run(work())


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"])
def test_a_server_that_hangs_is_given_up(authority: Authority, tmp_path: Path, web: Web, said: bytes) -> None:
    """Before it says anything, or amid the file; so is one that lets a byte go now and then."""

    def hang(request: Request) -> None:
        request.wfile.write(said)
        request.wfile.flush()
        web.over.wait(LIMIT)

    async def work() -> None:
        async with side(authority, tmp_path, silence=1.5) as one:
            so_far = "; 4 of 100 bytes are here" if said else ""
            with pytest.raises(SourceFailed, match=rf"{web.url}/file: nothing came for 1.5 s{so_far}\n"):
                await one.fetch(web.serve("/file", hang))

    asyncio.run(work())


def test_a_server_that_lets_a_byte_go_now_and_then_is_given_up(authority: Authority, tmp_path: Path, web: Web) -> None:
    def trickle(request: Request) -> None:
        request.answer(200, CONTENT, 0)
        try:
            while not web.over.wait(0.02):
                request.wfile.write(b"x")
        except OSError:
            pass

    async def work() -> None:
        async with side(authority, tmp_path, silence=0.5) as one:
            with pytest.raises(SourceFailed, match=r"fewer than \d+,\d+ bytes came in 2 s"):
                await one.fetch(web.serve("/file", trickle))

    asyncio.run(work())


def test_a_download_goes_on_where_it_was_cut(authority: Authority, tmp_path: Path, web: Web) -> None:
    """Of a server that names the version of what it sends, only the rest is asked for."""

    def cut(request: Request) -> None:
        wanted = request.headers.get("Range")
        if wanted is None:
            request.answer(200, CONTENT, 600_000, ETag='"v1"')
            return
        assert request.headers["If-Range"] == '"v1"'
        at = int(wanted.removeprefix("bytes=").removesuffix("-"))
        request.answer(206, CONTENT[at:], 300_000, ETag='"v1"', Content_Range=f"bytes {at}-999999/1000000")

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            assert await one.fetch(web.serve("/file", cut)) == CONTENT
            assert [headers.get("Range") for _, headers in web.requests] == [None, "bytes=600000-", "bytes=900000-"]

    asyncio.run(work())


@pytest.mark.parametrize("etag", ["", 'W/"v1"', '"v1"'])
def test_a_download_begins_anew_where_it_cannot_go_on(authority: Authority, tmp_path: Path, web: Web, etag: str) -> None:
    """No version, a weak one, or another version by now: nothing of what came before is kept."""
    other = os.urandom(1_000_000)

    def cut(request: Request) -> None:
        if len(web.requests) == 1:
            request.answer(200, CONTENT, 600_000, ETag=etag)
        else:
            request.answer(200, other, ETag='"v2"')

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            assert await one.fetch(web.serve("/file", cut)) == other

    asyncio.run(work())


def test_a_download_that_is_always_cut_has_failed(authority: Authority, tmp_path: Path, web: Web) -> None:
    """An end before the Content-Length, or in a chunk, is a cut; what the server sent is not taken for the file."""

    def chunk_cut(request: Request) -> None:
        request.answer(200, b"", Content_Length="", Transfer_Encoding="chunked")
        request.wfile.write(b"1000\r\nonly this")

    def no_http(request: Request) -> None:
        request.wfile.write(b"SSH-2.0\r\n")

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            with pytest.raises(SourceFailed, match=r"the response ended after 100 of 1,000,000 bytes; 100 of 1,000,000 bytes are here\n"):
                await one.fetch(web.serve("/file", lambda request: request.answer(200, CONTENT, 100)))
            with pytest.raises(SourceFailed, match="the response was cut off"):
                await one.fetch(web.serve("/file", chunk_cut))
            with pytest.raises(SourceFailed, match="what came is no response"):
                await one.fetch(web.serve("/file", no_http))

    asyncio.run(work())


def test_redirects_are_followed(authority: Authority, tmp_path: Path, web: Web) -> None:
    """But not for ever, and not to what is no URL of the web."""

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            web.serve("/file", lambda request: request.answer(200, CONTENT))
            web.serve("/there", lambda request: request.answer(307, b"", Location="/file"))
            assert await one.fetch(web.serve("/here", lambda request: request.answer(301, b"", Location=web.url + "/there"))) == CONTENT
            with pytest.raises(SourceGone, match=rf"{web.url}/loop: 302 .*redirect"):
                await one.fetch(web.serve("/loop", lambda request: request.answer(302, b"", Location="/loop")))
            with pytest.raises(SourceGone, match=r"302 Found - Redirection to url 'file:///etc/passwd' is not allowed"):
                await one.fetch(web.serve("/file", lambda request: request.answer(302, b"", Location="file:///etc/passwd")))

    asyncio.run(work())


def test_https_is_verified_and_does_not_lead_to_http(authority: Authority, tmp_path: Path, web: Web) -> None:
    context = authority.server_context()
    context.verify_mode = ssl.CERT_NONE
    safe = Web(context)

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            source = safe.serve("/file", lambda request: request.answer(200, CONTENT))
            assert await one.fetch(source) == CONTENT
            with pytest.raises(SourceGone, match=r"its certificate is not accepted here: .*mismatch"):
                await one.fetch(FileSource("", url=source.url.replace("localhost", "127.0.0.1")))
            one.fetcher._url_context = None  # pyright: ignore[reportPrivateUsage]
            with pytest.raises(SourceGone, match=rf"{safe.url}/file: its certificate is not accepted here: "):
                await one.fetch(source)
            one.fetcher._url_context = ssl.create_default_context(  # pyright: ignore[reportPrivateUsage]
                cadata=read_connection_file(authority.pilot_file).ca
            )
            with pytest.raises(SourceGone, match=rf"{safe.url}/down leads to {web.url}/file, which is not followed from https"):
                await one.fetch(safe.serve("/down", lambda request: request.answer(302, b"", Location=web.url + "/file")))

    try:
        asyncio.run(work())
    finally:
        safe.close()


def test_a_name_and_password_in_a_url_are_shown_to_its_server_only(authority: Authority, tmp_path: Path, web: Web) -> None:
    """Not to one that it redirects to, and never in a text."""
    other = Web()

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            web.serve("/file", lambda request: request.answer(302, b"", Location=other.url + "/there"))
            other.serve("/there", lambda request: request.answer(404, b""))
            with pytest.raises(SourceGone) as error:
                await one.fetch(FileSource("", url=web.url.replace("://", "://me:s%40cret@") + "/file"))
            assert str(error.value) == f"{other.url}/there: 404 Not Found"
            assert web.requests[0][1]["Authorization"] == "Basic " + base64.b64encode(b"me:s@cret").decode()
            assert "Authorization" not in other.requests[0][1]
            assert shown("http://me:secret@host:1/x?y@z") == "http://host:1/x?y@z"
            assert [shown(f"http://host{rest}") for rest in ("?x=a@b", "#a@b", "")] == [
                "http://host?x=a@b",
                "http://host#a@b",
                "http://host",
            ]
            assert shown("/a@b") == "/a@b"

    try:
        asyncio.run(work())
    finally:
        other.close()


def test_where_no_server_is_is_said(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with side(authority, tmp_path) as one:
            text = "http://localhost:[0-9]+/file: Connection refused\\n"
            with silent() as port, pytest.raises(SourceFailed, match=text):
                await one.fetch(FileSource("", url=f"http://localhost:{port}/file"))
            with pytest.raises(SourceGone, match=r"ftp://host/file is no URL of http, https or file"):
                await one.fetch(FileSource("", url="ftp://host/file"))

    asyncio.run(work())


@pytest.mark.parametrize(("number", "error"), [(socket.EAI_NONAME, SourceGone), (socket.EAI_AGAIN, SourceFailed)])
def test_a_host_that_nobody_knows_is_not_waited_for(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    """One whose name could not be asked for is."""

    def resolve(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(number, "no such luck")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            with pytest.raises(error, match=r"http://no-such-host.invalid/: .*no such luck"):
                await one.fetch(FileSource("", url="http://no-such-host.invalid/"))

    asyncio.run(work())


def test_a_download_that_is_given_up_ends_its_thread(authority: Authority, tmp_path: Path, web: Web) -> None:
    def hang(request: Request) -> None:
        request.answer(200, CONTENT, 2 << 18)
        web.over.wait(LIMIT)

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            arrival = one.arrival()
            task = asyncio.create_task(one.fetcher.fetch(arrival, web.serve("/file", hang)))
            while arrival.offset < 2 << 18:
                await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while any(thread.name == "windlass-fetch" for thread in threading.enumerate()):
                await asyncio.sleep(0.002)
            arrival.abandon()
            assert one.left() == []

    asyncio.run(work())


# ---------------------------------------------------------------- paths


def test_a_shared_file_is_copied(authority: Authority, tmp_path: Path) -> None:
    """By its path or as a file URL, with any name."""
    path = tmp_path / "a name\nwith ünicode %41"
    path.write_bytes(CONTENT)

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            assert await one.fetch(FileSource("", path=str(path))) == CONTENT
            assert await one.fetch(FileSource("", url=path.as_uri())) == CONTENT
            with pytest.raises(SourceGone, match=r"names the host elsewhere: a file URL is read on the node itself, file:///path"):
                await one.fetch(FileSource("", url="file://elsewhere/file"))

    asyncio.run(work())


def test_a_shared_tree_is_copied_as_it_is(authority: Authority, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "closed").mkdir(mode=0o555)
    (root / "a" / "b" / "run.sh").write_text("#!/bin/sh\n")
    (root / "a" / "b" / "run.sh").chmod(0o755)
    (root / "a" / "data").write_bytes(CONTENT)
    (root / "a" / "link").symlink_to("b/run.sh")

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            manifest = scan(root)
            arrival = one.arrival()
            arrived = await one.fetcher.fetch(arrival, FileSource("", path=str(root)))
            assert arrived == Arrived(manifest.size, manifest.name[3:], True, manifest.encode())
            assert scan(arrival.path).name == manifest.name

    asyncio.run(work())


def test_a_path_that_is_not_there_or_cannot_be_copied_is_named(authority: Authority, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "pipe")
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to("../../elsewhere")

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            for path, text in (
                (tmp_path / "nothing", "is not there on "),
                (tree / "pipe", "is neither a regular file nor a folder"),
            ):
                with pytest.raises(SourceGone, match=rf"{path} {text}"):
                    await one.fetch(FileSource("", path=str(path)))
            with pytest.raises(SourceGone, match=r"/proc/self/stat has more in it than the 0 bytes that its file system says"):
                await one.fetch(FileSource("", path="/proc/self/stat"))
            with pytest.raises(SourceGone, match=rf"{tree}/pipe is neither .* and cannot go to workers"):
                await one.fetch(FileSource("", path=str(tree)))
            with pytest.raises(SourceGone, match=rf"the tree {out} has a link link that leads out of it"):
                await one.fetch(FileSource("", path=str(out)))
            assert one.left() == []

    asyncio.run(work())


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ESTALE, SourceFailed), (errno.EIO, SourceFailed), (errno.EACCES, SourceGone), (errno.ENOTDIR, SourceGone)]
)
def test_what_a_file_system_says_of_itself_passes_and_what_it_says_of_a_path_does_not(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    path = tmp_path / "data"
    path.write_bytes(CONTENT)

    def refuse(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("windlass.worker.downloads._open_file", refuse)

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            with pytest.raises(error, match=rf"{path}.*{os.strerror(number)}"):
                await one.fetch(FileSource("", path=str(path)))

    asyncio.run(work())


@pytest.mark.parametrize("tree", [False, True])
def test_a_file_system_that_hangs_is_given_up(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: bool) -> None:
    """Its thread is left behind, and does no harm when it wakes. Until then no other one begins."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "data").write_bytes(CONTENT)
    path = str(tmp_path / "tree" if tree else tmp_path / "tree" / "data")
    over, read, hung = threading.Event(), os.read, threading.Event()

    def hang(descriptor: int, count: int) -> bytes:
        if threading.current_thread().name == "windlass-fetch" and not over.is_set():
            hung.set()
            over.wait(LIMIT)
        return read(descriptor, count)

    monkeypatch.setattr(os, "read", hang)

    async def work() -> None:
        async with side(authority, tmp_path, hang=0.2) as one:
            arrival = one.arrival()
            with pytest.raises(SourceFailed, match=rf"{path}: its file system gave no answer for 0.2 s\n"):
                await one.fetcher.fetch(arrival, FileSource("", path=path))
            assert hung.is_set()
            hung.clear()
            with pytest.raises(SourceFailed, match=rf"{path}: its file system gave no answer for 0.2 s\n"):
                await one.fetcher.fetch(arrival, FileSource("", path=path))
            assert not hung.is_set()
            over.set()
            arrived = await one.fetcher.fetch(arrival, FileSource("", path=path))
            assert arrived.size == len(CONTENT)
            assert scan(arrival.path).size == len(CONTENT) if tree else content_of(arrival) == CONTENT
            while any(thread.name == "windlass-fetch" for thread in threading.enumerate()):
                await asyncio.sleep(0.002)

    asyncio.run(work())


def test_room_for_what_tells_no_size_is_asked_for_as_it_comes(authority: Authority, tmp_path: Path, web: Web) -> None:
    """In all, as many bytes as there are; for those that come again after a cut there is room already."""
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(3):
        (root / f"file {number}").write_bytes(CONTENT[:400_000])
    asked: list[int] = []

    def cut(request: Request) -> None:
        request.answer(200, CONTENT, 600_000 if len(web.requests) == 1 else -1, Content_Length="" if len(web.requests) > 1 else "1000000")

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            await one.fetch(web.serve("/file", cut), reserve=asked.append)
            assert sum(asked) == len(CONTENT)
            asked.clear()
            await one.fetcher.fetch(one.arrival(reserve=asked.append), FileSource("", path=str(root)))
            assert sum(asked) == 1_200_000

    asyncio.run(work())


def test_a_shared_file_that_changes_while_it_is_copied_is_noticed(authority: Authority, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)

    def change(size: int) -> None:
        assert size == len(CONTENT)
        path.write_bytes(CONTENT + b"more")

    async def work() -> None:
        async with side(authority, tmp_path) as one:
            with pytest.raises(SourceGone, match=rf"{path} changed while it was copied"):
                await one.fetch(FileSource("", path=str(path)), reserve=change)
            assert one.left() == []

    asyncio.run(work())
