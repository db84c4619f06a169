"""Spares: an object's memory is written anew when nobody has it any more, and never before."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from windlass import spares
from windlass.object_store import ObjectStore
from windlass.objects import SPARE_BYTES, map_object, write_results

SIZE = 1 << 20


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory, as stores are."""
    with tempfile.TemporaryDirectory(prefix="windlass-test-", dir="/dev/shm") as folder:
        if not spares._believed(folder):  # pyright: ignore[reportPrivateUsage]
            pytest.skip("no tmpfs with leases here")
        yield Path(folder)


class Eager(dict[str, tuple[int, int]]):
    """Nothing was in vain."""

    def get(self, key: str, default: Any = None) -> Any:
        return 0, 0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "ALONE_NS", 0)
    monkeypatch.setattr(spares, "_PAUSE_MOST", 0)
    monkeypatch.setattr(spares, "_in_vain", Eager())


def content(letter: str, size: int = SIZE) -> bytes:
    return letter.encode() * size


def spare(folder: Path, letter: str = "a", size: int = SIZE) -> int:
    """A spare of this folder; its inode's number."""
    path = folder / f"object-{os.urandom(4).hex()}"
    path.write_bytes(content(letter, size))
    number = path.stat().st_ino
    spares.keep(os.fspath(folder), os.fspath(path), size)
    assert not path.exists()
    return number


def take(folder: Path, size: int = SIZE) -> Path | None:
    """A spare under a name of its own."""
    path = folder / f".t-{os.urandom(4).hex()}"
    descriptor = spares.take(os.fspath(folder), os.fspath(path), size, os.O_WRONLY)
    if descriptor is None:
        assert not path.exists()
        return None
    os.close(descriptor)
    assert path.stat().st_size == size
    return path


def left(folder: Path) -> int:
    return len(os.listdir(folder / spares.FOLDER))


def test_what_went_is_written_anew(tmp_path: Path) -> None:
    number = spare(tmp_path)
    taken = take(tmp_path)
    assert taken is not None
    assert taken.stat().st_ino == number
    assert left(tmp_path) == 0


@pytest.mark.parametrize("size", [SIZE // 2, SIZE + 4096, 2 * SIZE])
def test_it_need_not_be_of_the_very_size(tmp_path: Path, size: int) -> None:
    spare(tmp_path)
    assert take(tmp_path, size) is not None


@pytest.mark.parametrize("size", [SIZE // 3, 3 * SIZE])
def test_one_of_quite_another_size_stays(tmp_path: Path, size: int) -> None:
    spare(tmp_path)
    assert take(tmp_path, size) is None
    assert left(tmp_path) == 1


def test_what_is_mapped_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(content("a"))
    view = map_object(path)
    spares.keep(os.fspath(tmp_path), os.fspath(path), SIZE)
    assert take(tmp_path) is None
    assert bytes(view) == content("a")
    assert left(tmp_path) == 1
    view.release()
    del view
    assert take(tmp_path) is not None


def test_what_another_process_has_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.write_bytes(content("a"))
    script = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY); file.close(); "
        "print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        spares.keep(os.fspath(tmp_path), os.fspath(path), SIZE)
        assert take(tmp_path) is None
        other.communicate(b"\n")
    assert take(tmp_path) is not None


def test_what_has_another_name_stays_as_it_is(tmp_path: Path) -> None:
    path, other = tmp_path / "one", tmp_path / "other"
    path.write_bytes(content("a"))
    os.link(path, other)
    spares.keep(os.fspath(tmp_path), os.fspath(path), SIZE)
    assert take(tmp_path) is None
    assert other.read_bytes() == content("a")
    other.unlink()
    assert take(tmp_path) is not None


def test_what_is_no_file_of_ours_is_not_taken(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(content("a"))
    (tmp_path / spares.FOLDER).mkdir()
    (tmp_path / spares.FOLDER / f"1-{SIZE}-00").symlink_to(target)
    assert take(tmp_path) is None
    assert target.read_bytes() == content("a")


def test_who_is_opening_it_has_a_moment_for_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spare(tmp_path)
    monkeypatch.setattr(spares, "ALONE_NS", 10**12)
    assert take(tmp_path) is None
    assert left(tmp_path) == 1


def test_a_folder_on_no_tmpfs_has_no_spares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its file system says of leases: overlayfs grants them on files that are mapped."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        if spares._is_tmpfs(folder):  # pyright: ignore[reportPrivateUsage]
            pytest.skip("the tests lie on a tmpfs")
        path = Path(folder) / "object"
        path.write_bytes(content("a"))
        spares.keep(folder, os.fspath(path), SIZE)
        assert os.listdir(folder) == []


@pytest.mark.parametrize("granted", [True, False])
def test_where_leases_say_nothing_there_are_no_spares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granted: bool) -> None:
    """Kernels before 5.3 grant none on tmpfs; one that grants all of them would be worse."""
    monkeypatch.setattr(spares, "_trusted", {})

    def answer(descriptor: int) -> bool:
        return granted

    monkeypatch.setattr(spares, "_alone", answer)
    path = tmp_path / "object"
    path.write_bytes(content("a"))
    spares.keep(os.fspath(tmp_path), os.fspath(path), SIZE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["mkdir", "rename"])
def test_a_full_disk_has_no_room_for_spares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "object"
    path.write_bytes(content("a"))
    monkeypatch.setattr(os, what, full)
    spares.keep(os.fspath(tmp_path), os.fspath(path), SIZE)
    assert not path.exists()


def test_names_that_are_not_ours_are_passed_over(tmp_path: Path) -> None:
    spare(tmp_path)
    for name in (".nfs0001", "1-2", "a-b-c", "--", "5"):
        (tmp_path / spares.FOLDER / name).write_bytes(b"")
    spare(tmp_path)
    assert take(tmp_path) is not None
    assert take(tmp_path) is not None
    assert take(tmp_path) is None
    assert spares.sweep(os.fspath(tmp_path)) is False


def test_who_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    spare(tmp_path)
    monkeypatch.setattr(os, "ftruncate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path)
    assert os.listdir(tmp_path) == [spares.FOLDER]
    assert left(tmp_path) == 0


def test_without_leases_there_is_nothing_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EINVAL, "no leases here")

    spare(tmp_path)
    monkeypatch.setattr(fcntl, "fcntl", refused)
    assert take(tmp_path) is None
    assert left(tmp_path) == 1


def test_one_in_use_does_not_hide_one_that_is_free(tmp_path: Path) -> None:
    paths = [tmp_path / f"object-{number}" for number in range(4)]
    views: list[memoryview] = []
    for path in paths:
        path.write_bytes(content("a"))
        views.append(map_object(path))
        spares.keep(os.fspath(tmp_path), os.fspath(path), SIZE)
    views[2].release()
    del views[2]
    assert take(tmp_path) is not None
    assert take(tmp_path) is None


def test_where_all_are_in_use_it_is_tried_ever_more_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def own(path: str, access: int) -> None:
        tried.append(turn)

    number = spare(tmp_path)
    monkeypatch.setattr(spares, "_in_vain", {})
    monkeypatch.setattr(spares, "_PAUSE_MOST", 4)
    with monkeypatch.context() as patch:
        patch.setattr(spares, "_own", own)
        for turn in range(20):  # noqa: B007 - `own` reads it
            assert take(tmp_path) is None
    assert tried == [0, 2, 5, 10, 15]
    found = [path for path in (take(tmp_path) for _ in range(5)) if path is not None]
    assert [path.stat().st_ino for path in found] == [number]


def test_they_are_few(tmp_path: Path) -> None:
    numbers = [spare(tmp_path, size=SPARE_BYTES) for _ in range(spares.MOST + 3)]
    kept = {os.stat(tmp_path / spares.FOLDER / name).st_ino for name in os.listdir(tmp_path / spares.FOLDER)}
    assert len(kept) == spares.MOST
    assert numbers[-1] in kept


def test_their_bytes_are_bounded(tmp_path: Path) -> None:
    for _ in range(5):
        path = tmp_path / "object"
        path.write_bytes(content("a"))
        spares.keep(os.fspath(tmp_path), os.fspath(path), SIZE, 3 * SIZE)
    assert left(tmp_path) == 3


@pytest.mark.parametrize("size", [SPARE_BYTES - 1, 4 * SIZE])
def test_too_small_or_too_large_ones_go(tmp_path: Path, size: int) -> None:
    path = tmp_path / "object"
    path.write_bytes(content("a", size))
    spares.keep(os.fspath(tmp_path), os.fspath(path), size, 3 * SIZE)
    assert not path.exists()
    assert not (tmp_path / spares.FOLDER).exists()


def test_an_object_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spares.keep(os.fspath(tmp_path), os.fspath(tmp_path / "gone"), SIZE)


def test_sweeping_removes_what_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.fspath(tmp_path)
    assert not spares.sweep(folder)
    spare(tmp_path)
    assert spares.sweep(folder)
    assert left(tmp_path) == 1
    monkeypatch.setattr(spares, "SECONDS", 0.0)
    assert not spares.sweep(folder)
    assert left(tmp_path) == 0


def test_no_two_take_one(tmp_path: Path) -> None:
    numbers = [spare(tmp_path) for _ in range(20)]
    taken: list[Path] = []

    def run() -> None:
        for _ in range(20):
            path = take(tmp_path)
            if path is not None:
                taken.append(path)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [path.stat().st_ino for path in taken]
    assert len(found) == len(set(found))
    assert set(found) <= set(numbers)


# ---------------------------------------------------------------- in a store


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


def number_of(store: ObjectStore, name: str) -> int:
    return store.path(name).stat().st_ino


def test_a_result_is_written_where_one_was_discarded(store: ObjectStore) -> None:
    first = store.put_result(content("a"))
    number = number_of(store, first.name)
    store.discard(first.name)
    second = store.put_result(content("b", SIZE - 5))
    assert number_of(store, second.name) == number
    assert bytes(store.open(second.name)) == content("b", SIZE - 5)


def test_a_slot_writes_where_the_store_has_discarded(store: ObjectStore) -> None:
    first = store.put_result(content("a"))
    number = number_of(store, first.name)
    store.discard(first.name)
    (second,) = write_results(store.folder, [content("b")])
    assert number_of(store, second.name) == number
    assert bytes(store.open(second.name)) == content("b")


def test_what_arrives_is_written_where_something_was(store: ObjectStore) -> None:
    first = store.put_result(content("a"))
    number = number_of(store, first.name)
    store.discard(first.name)
    incoming = store.receive("r-" + "0" * 32, SIZE)
    incoming.write(content("b"))
    ref = incoming.commit()
    assert number_of(store, ref.name) == number
    assert bytes(store.open(ref.name)) == content("b")


def test_a_linked_object_leaves_its_memory_to_the_other_folder(store: ObjectStore, tmp_path: Path) -> None:
    other = ObjectStore(tmp_path / "other")
    ref = other.put_result(content("a"))
    store.adopt(ref.name, other.path(ref.name))
    store.discard(ref.name)
    assert not (store.folder / spares.FOLDER).exists()
    store.adopt(ref.name, other.path(ref.name))
    number = number_of(other, ref.name)
    other.discard(ref.name)
    assert number_of(other, other.put_result(content("b")).name) != number, "the store that has taken it in still has it"
    assert bytes(store.open(ref.name)) == content("a")
    store.discard(ref.name)
    assert number_of(other, other.put_result(content("c")).name) == number


def test_a_disk_that_is_full_has_the_spares_for_what_comes(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import windlass.objects as objects

    ref = store.put_result(content("a", 4 * SIZE))
    store.discard(ref.name)

    def write_all(descriptor: int, data: bytes) -> None:
        if left(store.folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        os.write(descriptor, data)

    monkeypatch.setattr(objects, "write_all", write_all)
    (written,) = write_results(store.folder, [content("b")])
    assert bytes(store.open(written.name)) == content("b")


def test_a_store_sweeps(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not store.sweep()
    store.discard(store.put_result(content("a")).name)
    assert store.sweep()
    monkeypatch.setattr(spares, "SECONDS", 0.0)
    assert not store.sweep()
    assert left(store.folder) == 0


def test_views_never_change(store: ObjectStore) -> None:
    """Whatever comes and goes: what somebody has opened stays what it was."""
    chance = random.Random(20261127)
    objects: dict[str, int] = {}
    views: list[tuple[int, memoryview]] = []
    reused = 0
    for step in range(1, 600):
        size = chance.choice((SPARE_BYTES, SPARE_BYTES + 1000, 2 * SPARE_BYTES))
        stamp = step.to_bytes(4, "big")
        before = left(store.folder) if (store.folder / spares.FOLDER).exists() else 0
        ref = store.put_result(stamp * (size // 4))
        reused += before > left(store.folder) if before else 0
        objects[ref.name] = step
        if chance.random() < 0.5:
            views.append((step, store.open(ref.name)))
        if chance.random() < 0.9:
            name = chance.choice(list(objects))
            store.discard(name)
            del objects[name]
        while len(views) > 20:
            views.pop(chance.randrange(len(views)))
        for known, view in views:
            assert bytes(view[:4]) == bytes(view[-4:]) == known.to_bytes(4, "big")
    for name, known in objects.items():
        assert bytes(store.open(name)[:4]) == known.to_bytes(4, "big")
    store.check()
    assert reused > 100


# ---------------------------------------------------------------- what was needed once


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """With room for two idle objects."""
    monkeypatch.setattr("windlass.object_store.IDLE_BYTES", 2 * SIZE)
    return ObjectStore(tmp_path / "small")


def use(store: ObjectStore, letter: str) -> str:
    ref = store.put(content(letter), pin=True)
    store.unpin(ref.name)
    store.check()
    return ref.name


def test_of_what_was_needed_once_the_newest_stay(small: ObjectStore) -> None:
    names = [use(small, letter) for letter in "abcd"]
    assert [small.has(name) for name in names] == [False, False, True, True]


def test_what_was_needed_again_stays(small: ObjectStore) -> None:
    first, again = use(small, "a"), use(small, "a")
    assert first == again
    for letter in "bcd":
        use(small, letter)
    assert small.has(first)


def test_what_comes_again_after_it_went_stays(small: ObjectStore) -> None:
    """A model and a batch for each call: together they are more than what may rest."""
    model = use(small, "m")
    for letter in "abc":
        use(small, letter)
    assert not small.has(model)
    use(small, "m")
    for letter in "defg":
        use(small, letter)
    assert small.has(model)


def test_what_somebody_asks_for_stays_for_them(small: ObjectStore) -> None:
    """A program that says it puts something hears that it is here, and pins it a moment later."""
    first = use(small, "a")
    use(small, "b")
    assert small.has(first)
    for letter in "cd":
        use(small, letter)
    small.pin(first)


def test_what_is_needed_does_not_count_as_idle(small: ObjectStore) -> None:
    held: list[Callable[[], object]] = []
    for letter in "abcd":
        ref = small.put(content(letter), pin=True)
        held.append(lambda name=ref.name: small.unpin(name))  # type: ignore[misc]
    assert len(small.names()) == 4
    for let_go in held:
        let_go()
    assert len(small.names()) == 2


def test_a_large_one_alone_stays(small: ObjectStore) -> None:
    ref = small.put(content("a", 3 * SIZE), pin=True)
    small.unpin(ref.name)
    assert small.names() == [ref.name]
    use(small, "b")
    assert ref.name not in small.names()


def test_results_are_not_idle_but_waited_for(small: ObjectStore) -> None:
    names: list[str] = []
    for letter in "abcd":
        ref = small.put_result(content(letter), pin=True)
        small.unpin(ref.name)
        names.append(ref.name)
    assert all(small.has(name) for name in names)
