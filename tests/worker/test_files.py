"""Rules of `windlass.worker.files`, with a real cache: the manager is what the test says, a source is a function of it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from windlass.errors import CacheBusy
from windlass.messages import (
    MAX_FRAME_BYTES,
    DropFiles,
    FetchFile,
    FileFailed,
    FileHere,
    FileLost,
    FileName,
    FileRef,
    FilesGone,
    FileSource,
    Message,
    WantFiles,
)
from windlass.objects import content_name
from windlass.session import encode_one
from windlass.worker.arrivals import Arrival, Arrived
from windlass.worker.cache import Cache
from windlass.worker.cache_entries import Filling
from windlass.worker.cache_shared import SharedCache
from windlass.worker.fetching import SourceFailed
from windlass.worker.files import Files, key_of

pytestmark = pytest.mark.asyncio
SOURCE = FileSource("m")


class Desk:
    """A worker's files, what they told, and the source that they fetch from."""

    def __init__(self, folder: Path) -> None:
        self.said: list[Message] = []
        #: By key what has ended waiting for it: "" when it came.
        self.ended: dict[str, str] = {}
        self.changed = asyncio.Event()
        self.fails = Exception()
        self.shared = 0
        self.files = Files(
            Cache(folder), self._fetch, self._say, self._arrived, self._failed, lambda key: self._failed(key, 0, "later"), self._share
        )

    async def _fetch(self, arrival: Arrival, source: FileSource, /) -> Arrived:
        raise self.fails

    def _say(self, message: Message) -> None:
        self.said.append(message)
        self.changed.set()

    def _arrived(self, key: str) -> None:
        self._failed(key, 0, "")

    def _failed(self, key: str, _outcome: int, text: str) -> None:
        self.ended[key] = text
        self.changed.set()

    def _share(self) -> None:
        self.shared += 1

    async def next_said(self) -> Message:
        """What is told to the manager next."""
        await self.until(lambda: bool(self.said))
        return self.said.pop(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what something that is told brings about."""
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@pytest_asyncio.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path / "cache")
    yield desk
    await desk.files.close()
    assert desk.said == []
    desk.files.cache.check()
    desk.files.cache.close()


def packed(path: Path, *names: str) -> bytes:
    """The bytes of an archive with these empty files."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return path.read_bytes()


@pytest.mark.parametrize("level", ["call", "workflow"])
async def test_an_archive_is_fetched_once_to_be_unpacked(desk: Desk, tmp_path: Path, level: str) -> None:
    """One that nobody else needs goes when that is done."""
    data = packed(tmp_path / "soft.tar", "program")
    archive = FileRef(FileName("x3-" + "1" * 32), len(data), "soft.tar", level)
    ref = FileRef(FileName("u3-" + "2" * 32), -1, "soft", "workflow")
    assert desk.files.hold([ref]) == [key_of(ref.name)]
    assert await desk.next_said() == WantFiles((ref.name,))
    desk.files.heard(FetchFile(ref, FileSource(archive=archive)))
    assert await desk.next_said() == WantFiles((archive.name,))
    desk.files.heard(FetchFile(archive, SOURCE, data=data))
    here = await desk.next_said()
    assert isinstance(here, FileHere)
    assert (here.name, here.size) == (archive.name, len(data))
    if level == "call":
        assert await desk.next_said() == FilesGone((archive.name,))
    assert await desk.next_said() == FileHere(ref.name, 0)
    assert (desk.files.cache.path(ref.name, "soft") / "program").exists()
    assert desk.files.cache.has(archive.name) is (level == "workflow")
    desk.files.release([ref])


async def test_hundreds_of_small_files_come_on_few_threads(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start holds up the loop, and with threads by the hundred everything waits for the interpreter's lock."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    contents = [b"%d" % number for number in range(300)]
    refs = [FileRef(FileName(content_name(content)), len(content), "data", "workflow") for content in contents]
    desk.files.hold(refs)
    assert await desk.next_said() == WantFiles(tuple(ref.name for ref in refs))
    for ref, content in zip(refs, contents, strict=True):
        desk.files.heard(FetchFile(ref, SOURCE, data=content))
    await desk.until(lambda: len(desk.ended) == 300)
    assert set(desk.ended.values()) == {""}
    assert [desk.files.cache.path(ref.name, "data").read_bytes() for ref in refs] == contents
    assert len(started) <= 20
    assert len(desk.said) == 300
    desk.said.clear()
    desk.files.release(refs)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), CacheBusy("another worker has it"), ZeroDivisionError("a defect")]
)
async def test_whatever_goes_wrong_is_told_and_ends_who_waits_and_the_next_one_asks_again(
    desk: Desk, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Or a file would be on its way for ever."""
    ref = FileRef(FileName("x3-" + "1" * 32), 3, "data", "workflow")
    desk.fails = error
    for _ in range(2):
        assert desk.files.hold([ref]) == [key_of(ref.name)]
        assert await desk.next_said() == WantFiles((ref.name,))
        desk.files.heard(FetchFile(ref, SOURCE))
        told = await desk.next_said()
        assert isinstance(told, FileFailed)
        assert (told.name, told.kind) == (ref.name, "full")
        assert str(error) in told.text
        await desk.until(lambda: key_of(ref.name) in desk.ended)
        assert str(error) in desk.ended.pop(key_of(ref.name))
        desk.files.release([ref])
    assert ("defect" in caplog.text) is isinstance(error, ZeroDivisionError)


async def test_who_waits_for_another_source_does_not_hold_up_the_nodes_other_workers(desk: Desk, tmp_path: Path) -> None:
    """The manager may give the next source to one of these, and both would wait for each other for an hour."""
    other = Desk(tmp_path / "other")
    ref = FileRef(FileName("x3-" + "1" * 32), 3, "data", "forever")
    for one in (desk, other):
        one.files.cache.forever = SharedCache(tmp_path / "shared")
        one.files.hold([ref])
        assert await one.next_said() == WantFiles((ref.name,))
    desk.fails = SourceFailed("503 Service Unavailable")
    desk.files.heard(FetchFile(ref, SOURCE))
    assert await desk.next_said() == FileFailed(ref.name, SOURCE, "failed", "503 Service Unavailable")
    for one in (other, desk):
        one.files.heard(FetchFile(ref, SOURCE, data=b"new"))
        assert isinstance(await one.next_said(), FileHere)
    await other.files.close()
    other.files.cache.close()


@pytest.mark.parametrize("patient", [False, True])
async def test_a_file_that_is_long_in_coming_is_asked_for_again_by_who_has_no_call_to_give_back(desk: Desk, patient: bool) -> None:
    """As a library for its environment; what waits for an archive to unpack it tells the manager, whose calls go back."""
    ref = FileRef(FileName("x3-" + "3" * 32), 0, "f")
    task = asyncio.create_task(desk.files.obtain(ref, patient=patient))
    assert await desk.next_said() == WantFiles((ref.name,))
    desk.files.heard(FileLost(ref.name, "its server is away", later=True))
    if not patient:
        with pytest.raises(SourceFailed, match="its server is away"):
            await task
        return
    assert await desk.next_said() == WantFiles((ref.name,))
    desk.files.heard(FetchFile(ref, SOURCE, data=b""))
    assert isinstance(await desk.next_said(), FileHere)
    assert await task
    desk.files.release([ref])


async def test_a_file_that_is_sent_while_it_is_looked_at_is_fetched_then(desk: Desk) -> None:
    """The manager has told it to look at what is here, and has sent it anew."""
    ref = FileRef(FileName("x3-" + "1" * 32), 3, "data", "workflow")
    filling = desk.files.cache.fill(ref.name, 3)
    assert filling is not None
    filling.path.write_bytes(b"bad")
    filling.commit("data", 3, content="b3-" + "2" * 32)
    desk.files.made(ref.name, 3)
    assert await desk.next_said() == FileHere(ref.name, 3)
    desk.files.heard(DropFiles((ref.name,), damaged=True))
    desk.files.heard(FetchFile(ref, SOURCE, data=b"new"))
    said = [await desk.next_said() for _ in range(2)]
    assert [type(one) for one in said] == [FilesGone, FileHere]
    assert desk.files.cache.path(ref.name, "data").read_bytes() == b"new"


async def test_a_file_that_is_wanted_at_two_levels_stays_as_long_as_the_longer_one_says(desk: Desk) -> None:
    """It went with the last call that needed it, when it had come for a call."""
    ref = FileRef(FileName("x3-" + "1" * 32), 3, "data", "call")
    longer = FileRef(ref.name, 3, "data", "worker")
    desk.files.hold([ref])
    assert await desk.next_said() == WantFiles((ref.name,))
    desk.files.heard(FetchFile(ref, SOURCE, data=b"new"))
    assert isinstance(await desk.next_said(), FileHere)
    desk.files.hold([longer])
    assert desk.files.cache.facts(ref.name).level == "worker"
    desk.files.release([longer, ref])
    assert desk.files.cache.has(ref.name)
    assert desk.said == []


@pytest.mark.parametrize("data", [b"bad", b"longer"])
async def test_a_file_that_a_call_has_written_to_is_fetched_anew_once_nobody_holds_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """Where calls are root, for whom no mode is anything; under those that hold it, it stays."""
    ref = FileRef(FileName(content_name(b"old")), 3, "data", "workflow")
    desk.files.heard(FetchFile(ref, SOURCE, data=b"old"))
    assert isinstance(await desk.next_said(), FileHere)
    await asyncio.sleep(0)  # what brought it has ended
    assert desk.files.hold([ref, ref]) == []
    path = desk.files.cache.path(ref.name, "data")
    path.chmod(0o700)
    path.write_bytes(data)
    desk.files.release([ref])
    assert desk.files.hold([ref]) == []
    assert path.read_bytes() == data
    desk.files.release([ref, ref])
    assert desk.said == []
    assert desk.files.hold([ref]) == desk.files.hold([ref]) == [key_of(ref.name)]
    assert await desk.next_said() == FilesGone((ref.name,))
    assert await desk.next_said() == WantFiles((ref.name,))
    assert not desk.files.cache.has(ref.name)
    desk.files.heard(FetchFile(ref, SOURCE, data=b"old"))
    assert isinstance(await desk.next_said(), FileHere)
    desk.files.release([ref, ref])
    assert desk.files.cache.path(ref.name, "data").read_bytes() == b"old"
    desk.files.cache.check()


@pytest.mark.parametrize("level", ["call", "workflow"])
async def test_a_file_that_was_only_touched_is_used_on(desk: Desk, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """As before an index is made; of a result, which has no name of its content, too: its call is not made again."""
    cache = desk.files.cache
    for ref in (FileRef(FileName(content_name(b"old")), 3, "data", level), FileRef(FileName("r-" + "1" * 32), 3, "data", level)):
        filling = cache.fill(ref.name, 3, level)
        assert filling is not None
        filling.path.write_bytes(b"old")
        os.utime(filling.commit("data", 3, pin=True))
        assert not cache.is_untouched(ref.name)
        assert desk.files.hold([ref]) == desk.files.hold([ref]) == [key_of(ref.name)]
        await desk.until(partial(desk.ended.__contains__, key_of(ref.name)))
        cache.unpin(ref.name)
        assert desk.ended.pop(key_of(ref.name)) == ""
        assert desk.said == [FileHere(ref.name, 3)]
        desk.said.clear()
        assert desk.files.hold([ref]) == []
        assert cache.is_untouched(ref.name)
        desk.files.release([ref] * 3)
        assert cache.has(ref.name) is (level == "workflow")
        desk.said.clear()
        cache.check()


@pytest.mark.parametrize("level", ["worker", "forever"])
async def test_a_file_that_no_call_here_needs_is_fetched_for_others(desk: Desk, level: str) -> None:
    """Where other workers of the node look for it, if it is to outlive this one."""
    ref = FileRef(FileName("x3-" + "1" * 32), 3, "data", level)
    desk.files.heard(FetchFile(ref, SOURCE, data=b"new"))
    assert desk.shared == (level == "forever")
    here = await desk.next_said()
    assert isinstance(here, FileHere)
    assert desk.files.cache.has(ref.name)
    desk.files.heard(FileLost(ref.name, "and lost meanwhile"))
    assert desk.files.hold([ref]) == []
    desk.files.release([ref])


async def test_the_loss_of_a_whole_cache_is_told_in_messages_that_can_be_sent(desk: Desk) -> None:
    """Of tens of thousands of kept results, when somebody has deleted the folder."""
    names = [FileName(f"r-{number:032}") for number in range(40_000)]
    for name in names:
        desk.files.made(name, 1)
    desk.said.clear()
    desk.files.look_again()
    gone: list[FileName] = []
    for message in desk.said:
        assert isinstance(message, FilesGone)
        assert len(encode_one(message)) < MAX_FRAME_BYTES
        gone += message.names
    desk.said.clear()
    assert sorted(gone) == names


async def test_the_end_waits_for_the_removal_of_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is shared with other workers of the node they would stay."""
    abort, begun = Filling.abort, asyncio.Event()

    def slow(filling: Filling) -> None:
        time.sleep(0.3)
        abort(filling)

    async def hangs(desk: Desk, arrival: Arrival, source: FileSource, /) -> Arrived:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(Filling, "abort", slow)
    monkeypatch.setattr(Desk, "_fetch", hangs)
    desk = Desk(tmp_path / "cache")
    ref = FileRef(FileName("x3-" + "1" * 32), 5, "a.txt", "workflow")
    desk.files.hold([ref])
    assert await desk.next_said() == WantFiles((ref.name,))
    desk.files.heard(FetchFile(ref, SOURCE))
    await asyncio.wait_for(begun.wait(), 20)
    await desk.files.close()
    assert not list(desk.files.cache.folder.glob(".t-*"))


async def test_small_files_that_are_on_their_way_at_the_end_are_neither_written_nor_pinned(tmp_path: Path) -> None:
    """The cache goes on in the worker's next session, which knows of no such pin; or its folder is removed, and would be made anew."""
    desk = Desk(tmp_path / "cache")
    contents = [b"%d" % number for number in range(300)]
    refs = [FileRef(FileName(content_name(content)), len(content), "data", "workflow") for content in contents]
    desk.files.hold(refs)
    for ref, content in zip(refs, contents, strict=True):
        desk.files.heard(FetchFile(ref, SOURCE, data=content))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await desk.files.close()
    cache = desk.files.cache
    assert len(cache.names()) < 100
    for name in cache.names():
        cache.discard(name)
    assert cache.names() == [], "nothing is pinned"
    cache.check()
    cache.close()
    assert not cache.folder.exists()


async def test_small_files_do_not_wait_for_one_that_another_worker_has(desk: Desk, tmp_path: Path) -> None:
    """What is in the cache that a node's workers share comes from there at any level, when nobody is busy with it."""
    shared = desk.files.cache.forever = SharedCache(tmp_path / "shared")
    contents = [b"busy", *(b"%d" % number for number in range(50))]
    refs = [FileRef(FileName(content_name(content)), len(content), "data", "workflow") for content in contents]
    busy = refs[0].name
    filling = shared.fill(busy, 4)
    assert filling is not None
    filling.path.write_bytes(contents[0])
    filling.commit("data", 4)
    with open(shared.folder / ".locks" / f"{busy}.fill", "w") as lock:  # noqa: ASYNC230 - made, and not read
        fcntl.flock(lock, fcntl.LOCK_EX)
        for ref, content in zip(refs, contents, strict=True):
            desk.files.heard(FetchFile(ref, SOURCE, data=content))
        await desk.until(lambda: len(desk.ended) == 50)
        assert key_of(busy) not in desk.ended
    await desk.until(lambda: len(desk.ended) == 51)
    desk.said.clear()
