"""Large objects: written while their name is found, and still kept once, refused whole, and known again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from windlass import objects
from windlass.errors import StoreFull
from windlass.naming import Naming, Seen
from windlass.object_store import ObjectStore
from windlass.objects import LARGE_BYTES, content_name
from windlass.spooling import SpoolingStore

SIZE = LARGE_BYTES + 12_345


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIZE // 4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    store = ObjectStore(tmp_path / "store", 3 * SIZE)
    yield store
    store.check()
    assert not [name for name in os.listdir(store.folder) if name.startswith(".t-")]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each object that was written."""
    sizes: list[int] = []
    write = objects.write_all

    def noted(descriptor: int, data: Any) -> None:
        sizes.append(memoryview(data).nbytes)
        write(descriptor, data)

    monkeypatch.setattr(objects, "write_all", noted)
    return sizes


def test_a_large_object_is_kept_under_its_contents_name_and_written_once(store: ObjectStore, written: list[int]) -> None:
    data = content(1)
    first, second = store.put(data), store.put(bytearray(data))
    assert first == second
    assert first.name == content_name(data)
    assert store.path(first.name).read_bytes() == data
    assert (written, store.used) == ([len(data)], len(data))


def test_its_name_is_found_while_it_is_written(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash begins before the write ends: each waits for the other here."""
    both = threading.Barrier(2, timeout=30)
    write, name = objects.write_all, content_name

    def writes(descriptor: int, data: Any) -> None:
        both.wait()
        write(descriptor, data)

    def names(data: Any) -> Any:
        both.wait()
        return name(data)

    monkeypatch.setattr(objects, "write_all", writes)
    monkeypatch.setattr("windlass.naming.content_name", names)
    assert store.put(content(1)).name == name(content(1))


def test_pins_count_however_it_came(store: ObjectStore) -> None:
    refs = [store.put(content(1), pin=True) for _ in range(2)]
    store.put(content(2))
    store.put(content(3))
    store.unpin(refs[0].name)
    store.put(content(4))
    assert store.has(refs[1].name), "one pin is left"
    store.unpin(refs[0].name)
    for number in (5, 6, 7):
        store.put(content(number))
    assert not store.has(refs[1].name)


def test_one_that_is_here_by_another_way_is_found_in_a_full_store(store: ObjectStore) -> None:
    data = content(1)
    incoming = store.receive(content_name(data), len(data))
    incoming.write(data)
    incoming.commit()
    store.pin(content_name(data))
    for number in (2, 3):
        store.put(content(number), pin=True)
    assert store.put(data).name == content_name(data)
    with pytest.raises(StoreFull):
        store.put(content(4))


def test_a_disk_that_is_full_leaves_nothing(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_descriptor: int, _data: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(objects, "write_all", no_room)
        with pytest.raises(StoreFull):
            store.put(content(1))
    assert store.used == 0
    assert store.put(content(1)).name == content_name(content(1))


def test_a_name_that_cannot_be_found_leaves_nothing(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: Naming) -> Any:
        raise MemoryError

    monkeypatch.setattr(Naming, "name", broken)
    with pytest.raises(MemoryError):
        store.put(content(1))
    assert store.used == 0


def test_without_a_thread_the_name_is_found_all_the_same(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    assert store.put(content(1)).name == content_name(content(1))


def test_what_is_on_disk_already_is_not_written_into_memory(tmp_path: Path) -> None:
    store = SpoolingStore(tmp_path / "memory", 2 * SIZE, tmp_path / "disk", 0)
    kept = [store.put(content(number), pin=True) for number in range(3)]
    for ref in kept[:2]:
        store.unpin(ref.name)
        store.discard(ref.name)
    assert store.put(content(2)) == kept[2]
    assert not store.has(kept[0].name)
    store.check()
    store.close()


def test_the_same_array_given_by_many_threads_at_once_is_kept_once(store: ObjectStore) -> None:
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(store.put(content(1), pin=True).name)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names) == {content_name(content(1))}
    assert store.used == len(content(1))


@pytest.mark.parametrize("place", [0, SIZE - 1])
def test_what_differs_where_one_looks_is_new_and_what_was_put_is_not(place: int) -> None:
    seen, data = Seen(), bytearray(SIZE)
    assert seen.is_new(data)
    assert not seen.is_new(bytes(data))
    data[place] = 1
    assert seen.is_new(data)
    assert seen.is_new(data[:-1]), "of another length"
    assert seen.is_new(b"")
    assert not seen.is_new(b"")


def test_samples_are_forgotten_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windlass.naming._REMEMBERED", 2)
    seen = Seen()
    assert [seen.is_new(bytes([number])) for number in (1, 2, 1, 3, 1, 3)] == [True, True, False, True, True, False]
