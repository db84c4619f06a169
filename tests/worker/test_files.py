"""Rules of `windlass.worker.files`, with a real cache: the manager is what the test says, a source is a function of it."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from windlass.messages import FetchFile, FileHere, FileName, FileRef, FilesGone, FileSource, Message, WantFiles
from windlass.worker.arrivals import Arrival, Arrived
from windlass.worker.cache import Cache
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
        self.source: Callable[[Arrival], Arrived] = lambda arrival: arrival.take(arrival.next_turn(), b"")
        self.files = Files(
            Cache(folder), self._fetch, self._say, self._arrived, self._failed, lambda key: self._failed(key, 0, "later"), self._share
        )

    async def _fetch(self, arrival: Arrival, source: FileSource, /) -> Arrived:
        return self.source(arrival)

    def _say(self, message: Message) -> None:
        self.said.append(message)
        self.changed.set()

    def _arrived(self, key: str) -> None:
        self.ended[key] = ""

    def _failed(self, key: str, _outcome: int, text: str) -> None:
        self.ended[key] = text

    def _share(self) -> None:
        pass

    async def next_said(self) -> Message:
        """What is told to the manager next."""
        async with asyncio.timeout(10):
            while not self.said:
                self.changed.clear()
                await self.changed.wait()
        return self.said.pop(0)


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
