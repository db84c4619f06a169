"""A store that goes on, on disk, when its memory is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from windlass import Manager
from windlass.dataplane import DataServer
from windlass.errors import StoreFull
from windlass.messages import ObjectName, PutObject
from windlass.spooling import SpoolingStore
from windlass.worker import memory


@pytest.fixture
def store(tmp_path: Path) -> SpoolingStore:
    """100 bytes in memory, 200 on disk."""
    return SpoolingStore(tmp_path / "memory", 100, tmp_path / "disk", 200)


def test_what_does_not_fit_in_memory_goes_to_disk_and_what_fits_nowhere_is_refused(store: SpoolingStore, tmp_path: Path) -> None:
    """Nothing pinned is evicted for it; the folder on disk is made when it is first needed."""
    first = store.put(b"a" * 80, pin=True)
    assert not (tmp_path / "disk").exists()
    second, third = store.put(b"b" * 80, pin=True), store.put(b"c" * 80, pin=True)
    assert store.path(first.name).parent == tmp_path / "memory"
    assert store.path(second.name).parent == store.path(third.name).parent == tmp_path / "disk"
    assert [bytes(store.open(ref.name))[:1] for ref in (first, second, third)] == [b"a", b"b", b"c"]
    with pytest.raises(StoreFull):
        store.put(b"d" * 80, pin=True)
    assert [store.could_hold(size) for size in (100, 200, 201)] == [True, True, False]
    store.unpin(second.name)
    fourth = store.put(b"d" * 80, pin=True)
    assert store.path(fourth.name).parent == tmp_path / "disk"
    assert not store.has(second.name)
    store.check()


def test_what_is_too_large_for_both_may_use_more_of_the_memory(tmp_path: Path) -> None:
    """A large result was refused where the disk is small, and nothing else was there. Others keep to the lower limit, and wait for room."""
    store = SpoolingStore(tmp_path / "memory", 100, tmp_path / "disk", 50, 200)
    large = store.put_result(b"r" * 150)
    assert store.path(large.name).parent == tmp_path / "memory"
    assert store.path(store.put(b"a" * 40, pin=True).name).parent == tmp_path / "disk"
    with pytest.raises(StoreFull, match=r"an object of 40 bytes does not fit into .*disk: 40 of 50 bytes are in use; wait"):
        store.put(b"c" * 40)
    with pytest.raises(StoreFull, match=r"an object of 110 bytes does not fit into .*memory: 150 of 200 bytes are in use; wait"):
        store.put(b"c" * 110)
    assert [store.could_hold(size) for size in (200, 201)] == [True, False]
    store.discard(large.name)
    incoming = store.receive("r-" + "0" * 32, 160)
    incoming.write(b"s" * 160)
    incoming.commit()
    assert store.limit == 100
    store.check()


def test_a_manager_in_a_job_has_a_quarter_of_it_and_half_for_what_fits_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = memory.Cgroup(str(tmp_path / "limit"), "", "", "")
    (tmp_path / "limit").write_text("400000\n")
    monkeypatch.setattr(memory, "own_cgroups", lambda: [group])
    with Manager() as manager:
        store = manager._store  # pyright: ignore[reportPrivateUsage]
        if not store.folder.is_relative_to("/dev/shm"):
            pytest.skip("/dev/shm is not roomy here")
        assert (store.limit, store.most) == (100_000, 200_000)


def test_an_object_on_disk_is_used_again_and_not_kept_twice(store: SpoolingStore) -> None:
    """Also when there is room in memory by then."""
    first, second = store.put(b"a" * 80, pin=True), store.put(b"b" * 80, pin=True)
    store.discard(first.name)
    store.unpin(first.name)
    again = store.put(b"b" * 80, pin=True)
    assert again == second
    assert store.names() == [second.name]
    store.unpin(second.name)
    store.discard(second.name)
    assert store.has(second.name), "it has a second pin"
    store.unpin(second.name)
    assert not store.has(second.name)
    store.check()


def test_results_are_not_evicted_before_they_are_read(store: SpoolingStore) -> None:
    """Arguments can be sent again, results cannot be made again."""
    result = store.put_result(b"r" * 80)
    argument = store.put(b"a" * 80)
    assert store.has(result.name)
    assert store.has(argument.name)
    incoming = store.receive("r-" + "0" * 32, 180)
    incoming.write(b"s" * 180)
    incoming.commit()
    assert store.has(result.name)
    assert not store.has(argument.name), "there was an argument without a pin to make room"
    store.discard(result.name)
    assert not store.has(result.name)
    store.check()


def test_closing_removes_both_folders(store: SpoolingStore, tmp_path: Path) -> None:
    """Nothing stays on disk."""
    for letter in b"abc":
        store.put(bytes([letter]) * 80, pin=True)
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_without_a_spool_the_memory_is_all_there_is(tmp_path: Path) -> None:
    """For a store that is on disk already."""
    store = SpoolingStore(tmp_path / "only", 100, None)
    store.put(b"a" * 80, pin=True)
    with pytest.raises(StoreFull):
        store.put(b"b" * 80)
    assert not store.could_hold(101)


@pytest.mark.parametrize(("what", "where"), [("makedirs", "disk"), ("open", "disk/.token")])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_where_the_disk_has_no_room_for_a_folder_the_store_is_full(
    store: SpoolingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, where: str, number: int
) -> None:
    """Then `submit` waits, and so does a worker with a result; when there is room, it goes on, and nothing was left of the attempt."""
    real = getattr(os, what)

    def full(path: str, *words: object, **more: object) -> object:
        if str(path) == str(tmp_path / where):
            raise OSError(number, os.strerror(number))
        return real(path, *words, **more)

    store.put(b"a" * 80, pin=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, what, full)
        with pytest.raises(StoreFull, match=r"an object of 80 bytes does not fit into .*memory: 80 of 100 bytes are in use"):
            store.put(b"b" * 80, pin=True)
        assert DataServer(store).offer(PutObject(ObjectName("r-" + "0" * 32), 80))[2], "it may be otherwise later"
    assert os.listdir(tmp_path) == ["memory"]
    assert store.path(store.put(b"b" * 80, pin=True).name).parent == tmp_path / "disk"
    store.check()


def test_what_is_on_disk_is_not_taken_in_a_second_time(store: SpoolingStore, tmp_path: Path) -> None:
    first, second = store.put(b"a" * 80, pin=True), store.put(b"b" * 80)
    (tmp_path / "again").write_bytes(b"b" * 80)
    store.unpin(first.name)
    store.discard(first.name)
    assert store.adopt(second.name, tmp_path / "again", pin=True) == second
    store.check()
    store.unpin(second.name)
    store.discard(second.name)
    assert not store.has(second.name)
