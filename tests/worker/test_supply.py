"""Rules of `windlass.worker.supply` about objects and results that the node does not take."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from tests.worker.test_backlog import LIB, Queue, call
from tests.worker.test_libraries import Room
from tests.worker.test_orphans import unheard

from windlass.errors import CacheFull, StoreFull
from windlass.messages import (
    DIED,
    RETURNED,
    CallEnd,
    CallId,
    DropFiles,
    FileHere,
    FileName,
    FilePushed,
    FileRef,
    Message,
    ObjectName,
    ObjectRef,
    PushFile,
)
from windlass.object_store import ObjectStore
from windlass.worker import cache_entries, supply
from windlass.worker.backlog import Backlog
from windlass.worker.slotlink import kept_folder
from windlass.worker.supply import Supply

pytestmark = pytest.mark.asyncio


def read(path: Path) -> tuple[str, bytes]:
    """The last part of a regular file's path, and what is in it."""
    assert not path.is_symlink()
    return path.name, path.read_bytes()


class Wire:
    """Data connections to a manager of this host; what comes by them finds the disk full. From which paths objects went to the manager,
    with what in them, and which of them as bytes."""

    shares_host = True

    def __init__(self) -> None:
        self.put_from: list[tuple[str, bytes]] = []
        self.as_bytes: list[str] = []

    async def put(self, name: ObjectName, path: str, /, *, as_bytes: bool = False) -> None:
        self.put_from.append(read(Path(path)))
        if as_bytes:
            self.as_bytes.append(os.path.basename(path))

    async def get(self, ref: ObjectRef, /) -> None:
        error = StoreFull(f"no room for an object of {ref.size} bytes in /dev/shm/x")
        error.errno = errno.ENOSPC
        raise error


async def test_a_disk_that_is_full_ends_no_call_for_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker drains, and they go back: one that ended them, each at once, would get all that there are."""
    desk, troubles = Room(), list[str]()
    backlog = Backlog(desk)

    def trouble(text: str) -> None:
        troubles.append(text)
        backlog.drain()

    supply = Supply("w", *cast("tuple[Any, Any, Any]", (None, None, None)), unheard, trouble)
    supply.store = ObjectStore(tmp_path, 1000)
    monkeypatch.setattr(supply, "_data", Wire())
    desk.moves = supply.new_session(backlog)
    backlog.add(LIB, Queue(), 1)
    backlog.run([call(1, spans=["b3-a"]), call(2, spans=["b3-a"])])
    async with asyncio.timeout(10):
        while not desk.said:
            await asyncio.sleep(0)
    assert desk.take() == [("draining", 1, 2)]
    assert troubles == [f"files cannot be kept on {os.uname().nodename}: no room for an object of 100 bytes in /dev/shm/x"]


class Kept:
    """A worker's supply whose cache has room for 1,000 bytes, and what a call has left for it: 600 bytes by this name."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.troubles, self.told, self.said = list[str](), list[CallEnd](), list[Message]()
        self.ref = FileRef(FileName("r-" + "1" * 32), 600, "out")
        self.supply = Supply("w", *cast("tuple[Any, Any, Any]", (None, None, None)), self.said.append, self.troubles.append)
        monkeypatch.setattr(self.supply, "_scratch", str(folder))
        self.supply.store = ObjectStore(folder / "store", 1000)
        self.supply.new_session(Backlog(Room()))
        self.cache = self.supply.files.cache
        self.cache.limit = 1000
        self.left = Path(kept_folder(str(self.cache.folder)), self.ref.name)

    async def keep(self, *names: str) -> CallEnd:
        """The end of the call, when it is told. With names it has left a folder of files of 100 bytes."""
        self.left.parent.mkdir()
        if names:
            self.left.mkdir()
            for name in names:
                (self.left / name).write_bytes(bytes(100))
        else:
            self.left.write_bytes(bytes(600))
        self.supply.keep(CallEnd(CallId(1), 1, RETURNED, outputs=(self.ref,)), self.told.append)
        async with asyncio.timeout(10):
            while not self.told:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)  # a drain comes a turn later
        return self.told[0]


async def test_a_file_that_was_here_before_is_told_before_its_call_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wanted waits until peers can reach this worker. Waiting for that too, it was told of when its program had pruned it."""
    kept = Kept(tmp_path, monkeypatch)
    here, gone = FileRef(FileName("x3-" + "1" * 32), 3, "here", "worker"), FileRef(FileName("x3-" + "2" * 32), 3, "gone", "worker")
    filling = kept.cache.fill(here.name, 3, "worker")
    assert filling is not None
    filling.path.write_bytes(b"old")
    filling.commit("here", 3)
    kept.supply.hold([gone, here])
    assert kept.said == [FileHere(here.name, 3)]
    assert kept.supply.needed.is_set()
    kept.supply.release([gone, here])
    kept.supply.heard(DropFiles((here.name,)))
    assert not kept.cache.has(here.name)


async def test_what_lies_on_the_disk_already_asks_it_for_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes were asked for twice: others' results went for nothing, or a call that had run for hours failed."""

    def full(folder: str) -> int:
        return 0

    kept = Kept(tmp_path, monkeypatch)
    other = kept.cache.fill("r-" + "2" * 32, 100)
    assert other is not None
    other.path.write_bytes(bytes(100))
    other.commit("before", 100)
    monkeypatch.setattr(cache_entries, "free_bytes", full)
    assert (await kept.keep()).outcome == RETURNED
    assert set(kept.cache.names()) == {other.name, kept.ref.name}


@pytest.mark.parametrize(("number", "drains"), [(None, False), (errno.ENOSPC, True)])
async def test_a_result_that_finds_no_room_may_be_tried_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, drains: bool
) -> None:
    """And where it is the disk that is full, the worker takes no more, which it would run in vain."""

    def full(*args: object, **named: object) -> None:
        error = CacheFull("no room for it")
        error.errno = number
        raise error

    kept = Kept(tmp_path, monkeypatch)
    monkeypatch.setattr(kept.cache, "fill", full)
    end = await kept.keep()
    assert end.outcome == DIED
    assert end.detail is not None
    assert end.detail.text == f"the result could not be kept on {os.uname().nodename}: no room for it"
    assert not kept.left.exists()
    assert bool(kept.troubles) is drains


async def test_results_of_a_session_before_do_not_crowd_out_what_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path, monkeypatch)
    assert (await kept.keep()).outcome == RETURNED
    kept.supply.new_session(Backlog(Room()))
    for name in ("b3-" + "1" * 32, "b3-" + "2" * 32):
        filling = kept.cache.fill(name, 300)
        assert filling is not None
        filling.path.write_bytes(bytes(300))
        filling.commit("data", 300)
    assert kept.cache.names() == ["b3-" + "1" * 32, "b3-" + "2" * 32]


async def test_results_that_would_fill_the_pilots_memory_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each later call of a pilot ended for want of memory as the program kept what earlier ones had returned. A file on disk counts to
    nobody's."""

    class Heavy:
        sizes: ClassVar[list[int]] = []

        def is_heavy(self, size: int) -> bool:
            self.sizes.append(size)
            return True

    kept, wire = Kept(tmp_path, monkeypatch), Wire()
    monkeypatch.setattr(kept.supply, "_data", wire)
    ref = kept.supply.store.put_result(bytes(700))
    await kept.supply.put(ref.name, str(kept.supply.store.folder / ref.name))
    assert wire.as_bytes == []
    monkeypatch.setattr(kept.supply, "_burden", Heavy())
    await kept.supply.put(ref.name, str(kept.supply.store.folder / ref.name))
    assert wire.as_bytes == [ref.name]
    assert Heavy.sizes == [700]
    (tmp_path / "out").write_bytes(bytes(600))
    await kept.supply.put(ref.name, str(tmp_path / "out"))
    assert wire.as_bytes == [ref.name]


@pytest.mark.parametrize("links", [True, False])
async def test_a_result_goes_to_the_manager_from_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """By way of the store, in memory, what was larger than that could not be had at all, and the loop stood still for the rest."""

    def no_link(*args: object, **named: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    kept, wire = Kept(tmp_path, monkeypatch), Wire()
    kept.supply.store.limit = 500
    monkeypatch.setattr(kept.supply, "_data", wire)
    assert (await kept.keep()).outcome == RETURNED
    assert kept.said == [FileHere(kept.ref.name, 600)]
    kept.said.clear()
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    kept.supply.heard(PushFile(kept.ref.name))
    async with asyncio.timeout(10):
        while not kept.said:
            await asyncio.sleep(0)
    assert kept.said == [FilePushed(kept.ref.name, "")]
    assert wire.put_from == [(kept.ref.name if links else "out", bytes(600))]
    kept.cache.check()


@pytest.mark.parametrize("large", [True, False])
async def test_a_large_folder_is_read_before_somebody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    """Its first readers heard nothing for half a minute and gave it up; a small one is read when it is asked for, if it ever is."""

    def read_now(path: str) -> None:
        raise BlockingIOError(path)

    names = ["a", "b", "c"]
    kept = Kept(tmp_path, monkeypatch)
    monkeypatch.setattr(supply, "LARGE_TREE_FILES", 3 if large else 4)
    assert (await kept.keep(*names)).outcome == RETURNED
    monkeypatch.setattr(cache_entries, "scan", read_now)
    if large:
        assert [os.fsdecode(entry.path) for entry in kept.cache.manifest(kept.ref.name).entries] == names
    else:
        with pytest.raises(BlockingIOError):
            kept.cache.manifest(kept.ref.name)


async def test_a_worker_that_leaves_looks_for_what_others_have_left_in_memory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder on a disk may be large, and its node is held until it is gone."""
    looked: list[str] = []

    class NoGuardian:
        def folder(self, path: Path) -> None:
            pass

    def look(base: str) -> list[str]:
        looked.append(base)
        return []

    monkeypatch.setattr(supply, "remove_dead_folders", look)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    leaving = Supply("w", *cast("tuple[Any, Any, Any]", (None, None, None)), unheard, unheard)
    leaving.remove()
    leaving.set_up(str(scratch), 0, cast("Any", NoGuardian()))
    folder = leaving.store.folder
    async with asyncio.timeout(10):
        while set(looked) != {str(tmp_path), "/tmp", "/dev/shm"}:
            await asyncio.sleep(0.001)
    looked.clear()
    leaving.remove()
    assert looked == ["/dev/shm"]
    assert not folder.exists()
