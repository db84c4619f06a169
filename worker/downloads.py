"""Files from elsewhere than Windlass: web servers, and paths on a file system that nodes share.

Theory of operation
-------------------
Everything here runs on the thread of a `windlass.worker.fetching.Fetcher`'s attempt and feeds its `windlass.worker.arrivals.Arrival`.

A URL is fetched with the standard library, which knows the proxies of the environment and the system's certificates.  Redirects are
followed, but never from https to http.  A server that says what makes this version of the file its own (a strong ETag) is asked for the
rest after a cut; with any other one the transfer begins anew.  A response that ends before its Content-Length is a cut.

A shared path is copied, a file by its bytes, a tree entry by entry (modes and links kept), and hashed as it is written: the source is read
once.  A file that changes meanwhile is noticed by its size and time of change.
"""

from __future__ import annotations

import base64
import errno
import http.client
import logging
import os
import socket
import ssl
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, TYPE_CHECKING, Any, Final, cast

from windlass import __version__
from windlass.errors import BadTree, SourceChanged
from windlass.files import shown
from windlass.filewire import CHUNK_BYTES
from windlass.worker.arrivals import Arrival, Arrived
from windlass.worker.fetching import SLOW, SourceFailed, SourceGone

if TYPE_CHECKING:
    from windlass.blocking import Call

log = logging.getLogger("windlass.files")

#: Statuses that say nothing about the file: later, or from another place, it may be there.
_LATER: Final = (408, 425, 429)
#: And those above 499 that do: the server cannot do that at all.
_NEVER: Final = (501, 505)
#: What a file system says of a path, and not of itself.
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class _Slow(TimeoutError):
    """Bytes come, but too few."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            fp.close()
            raise SourceGone(
                f"{shown(req.full_url)} leads to {shown(newurl)}, which is not followed from {req.type}: declare that URL itself"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Downloader:
    """Fetches URLs and shared paths. ``silence`` in seconds; ``context``: which certificates of web servers count."""

    def __init__(self, silence: float, context: ssl.SSLContext | None = None) -> None:
        self._silence = silence
        self._context = context

    def from_url(self, call: Call, arrival: Arrival, turn: int, url: str) -> Arrived:
        """Bring it here. Raises `SourceGone`, `SourceFailed`, `OSError` (cut off; what has come may do), and as `Arrival.feed`."""
        offset = arrival.start(turn)
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise SourceGone(f"{shown(url)} is no URL of http, https or file")
        if offset and not arrival.version:
            arrival.again(turn)
            offset = 0
        response = self._open(_request(url, offset, arrival.version))
        with response:
            call.hold(_socket_of(response))
            try:
                self._begin(response, arrival, turn, offset)
                self._take(response, arrival, turn)
            finally:
                call.release()
        if 0 <= arrival.size != arrival.offset:
            raise ConnectionResetError(f"the response ended after {arrival.offset:,} of {arrival.size:,} bytes")
        return arrival.finish(turn)

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=self._context),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(),
        ):
            opener.add_handler(handler)
        try:
            return cast("http.client.HTTPResponse", opener.open(request, timeout=self._silence))
        except urllib.error.HTTPError as error:
            with error:
                text = f"{shown(error.url)}: {error.code} {error.reason}"
                if error.code in _LATER or (error.code >= 500 and error.code not in _NEVER):
                    raise SourceFailed(text) from error
                raise SourceGone(text) from error
        except urllib.error.URLError as error:
            reason = error.reason
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise SourceGone(f"{shown(request.full_url)}: its certificate is not accepted here: {reason.verify_message}") from error
            if isinstance(reason, TimeoutError):
                raise self._silent() from error
            if isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME:
                raise SourceGone(f"{shown(request.full_url)}: {reason.strerror}, says {os.uname().nodename} of its host") from error
            raise reason if isinstance(reason, OSError) else ConnectionError(str(reason)) from error
        except TimeoutError as error:
            raise self._silent() from error
        except http.client.HTTPException as error:
            raise ConnectionError(f"what came is no response: {error!r}") from error

    def _begin(self, response: http.client.HTTPResponse, arrival: Arrival, turn: int, offset: int) -> None:
        """What comes is the rest from ``offset`` on, or all of it."""
        length = response.headers.get("Content-Length")
        whole = int(length) if length is not None and length.isdigit() else -1
        if response.status == 206:
            start, _, total = (response.headers.get("Content-Range") or "").removeprefix("bytes ").partition("/")
            if start.partition("-")[0] != str(offset) or not total.isdigit():
                arrival.again(turn)
                raise ConnectionError(f"bytes from {offset} on were asked for, and {start or 'others'} were sent")
            arrival.begin(turn, int(total), False)
            return
        if offset:
            arrival.again(turn)
        etag = response.headers.get("ETag") or ""
        arrival.version = etag if whole >= 0 and etag and not etag.startswith("W/") else ""
        arrival.begin(turn, whole, False)

    def _take(self, response: http.client.HTTPResponse, arrival: Arrival, turn: int) -> None:
        """All that comes, in chunks; what has come of one when it is cut too."""
        view = memoryview(bytearray(CHUNK_BYTES))
        more = True
        while more:
            have, end = 0, time.monotonic() + SLOW * self._silence
            try:
                while have < CHUNK_BYTES and more:
                    piece = response.read1(CHUNK_BYTES - have)  # unlike `readinto`, which waits until all is there
                    view[have : have + len(piece)] = piece
                    have += len(piece)
                    more = bool(piece)
                    if more and have < CHUNK_BYTES and time.monotonic() > end:
                        raise _Slow(f"fewer than {CHUNK_BYTES:,} bytes came in {SLOW * self._silence:g} s")
            except _Slow:
                raise
            except TimeoutError as error:
                raise self._silent() from error
            except http.client.IncompleteRead as error:
                raise ConnectionResetError("the response was cut off") from error
            except http.client.HTTPException as error:
                raise ConnectionError(f"the response is damaged: {error!r}") from error
            finally:
                if have:
                    arrival.feed(turn, view[:have])

    def _silent(self) -> TimeoutError:
        return TimeoutError(f"nothing came for {self._silence:g} s")

    # ------------------------------------------------------------ paths

    def from_path(self, call: Call, arrival: Arrival, turn: int, path: str) -> Arrived:
        """Copy it here. Raises `SourceGone`, `OSError`, and as `Arrival.feed`."""
        if path.startswith("file:"):
            path = _path_of(path)
        arrival.again(turn)  # an attempt that hung may have left something
        try:
            with call.waiting():
                folder = os.path.isdir(path)
            if folder:
                return self._copy_tree(call, arrival, turn, path)
            return self._copy_file(call, arrival, turn, path)
        except FileNotFoundError as error:
            raise SourceGone(f"{path} is not there on {os.uname().nodename}") from error
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            raise SourceGone(f"{path} cannot be read on {os.uname().nodename}: {error.strerror}") from error
        except (BadTree, SourceChanged) as error:
            raise SourceGone(str(error).replace(arrival.path, path)) from error
        finally:
            arrival.tidy(turn)

    def _copy_file(self, call: Call, arrival: Arrival, turn: int, path: str) -> Arrived:
        descriptor = _open_file(call, path)
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise SourceGone(f"{path} is neither a regular file nor a folder")
            arrival.begin(turn, before.st_size, False)
            while arrival.offset < before.st_size:
                call.check()
                data = _read(call, descriptor, min(CHUNK_BYTES, before.st_size - arrival.offset))
                if not data:
                    break
                arrival.feed(turn, memoryview(data))
            more = arrival.offset == before.st_size and os.read(descriptor, 1)
            _compare(path, before, os.fstat(descriptor))
            if more:
                size = f"{before.st_size:,} bytes"
                raise SourceGone(f"{path} has more in it than the {size} that its file system says, as files of /proc have: declare a copy")
        finally:
            os.close(descriptor)
        return arrival.finish(turn)

    def _copy_tree(self, call: Call, arrival: Arrival, turn: int, path: str) -> Arrived:
        from windlass.trees import scan

        folders: list[tuple[str, int]] = []
        size = 0
        waiting = [("", path)]
        for below, source in waiting:  # which grows: trees may be deep
            here = os.path.join(arrival.path, below) if below else arrival.path
            with call.waiting(), os.scandir(source) as children:
                folders.append((here, stat.S_IMODE(os.stat(source).st_mode) & 0o777 | 0o500))
                listed = list(children)
            with arrival.writing(turn):
                os.mkdir(here, 0o700)
            for child in listed:
                inner = os.path.join(below, child.name)
                if child.is_symlink():
                    target = os.readlink(child.path)
                    with arrival.writing(turn):
                        os.symlink(target, os.path.join(arrival.path, inner))
                elif child.is_dir(follow_symlinks=False):
                    waiting.append((inner, child.path))
                else:
                    size = self._copy_entry(call, arrival, turn, child.path, os.path.join(arrival.path, inner), size)
        for here, mode in reversed(folders):  # a folder may forbid writing
            with arrival.writing(turn):
                os.chmod(here, mode)
        manifest = scan(arrival.path)
        return arrival.finish_with(turn, Arrived(manifest.size, manifest.name.partition("-")[2], True, manifest.encode()))

    def _copy_entry(self, call: Call, arrival: Arrival, turn: int, source: str, to: str, size: int) -> int:
        """Copy one file of a tree of which ``size`` bytes are here already: how many there are then."""
        descriptor = _open_file(call, source)
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise SourceGone(f"{source} is neither a regular file nor a folder nor a link, and cannot go to workers")
            with arrival.writing(turn):
                target = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                while data := _read(call, descriptor):
                    call.check()
                    size += len(data)
                    with arrival.writing(turn, size):
                        view = memoryview(data)
                        while view:
                            view = view[os.write(target, view) :]
                with arrival.writing(turn):
                    os.fchmod(target, stat.S_IMODE(before.st_mode) & 0o777 | 0o400)
            finally:
                os.close(target)
            _compare(source, before, os.fstat(descriptor))
            return size
        finally:
            os.close(descriptor)


def _request(url: str, offset: int, version: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    request = urllib.request.Request(shown(url), headers={"User-Agent": f"windlass/{__version__}", "Accept-Encoding": "identity"})
    if parts.username is not None:
        secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(secret.encode()).decode())
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", version)
    return request


def _socket_of(response: http.client.HTTPResponse) -> socket.socket | None:
    """What a thread that reads this waits on; None where the library hides it."""
    raw: Any = getattr(getattr(response, "fp", None), "raw", None)
    return cast("socket.socket | None", getattr(raw, "_sock", None))


def _path_of(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SourceGone(f"{url} names the host {parts.netloc}: a file URL is read on the node itself, file:///path")
    return urllib.request.url2pathname(parts.path)


def _open_file(call: Call, path: str) -> int:
    with call.waiting():
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold us up until we have seen what it is


def _read(call: Call, descriptor: int, most: int = CHUNK_BYTES) -> bytes:
    with call.waiting():
        return os.read(descriptor, most)


def _compare(path: str, before: os.stat_result, after: os.stat_result) -> None:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise SourceChanged(f"{path} changed while it was copied: run again when nothing writes into it")
