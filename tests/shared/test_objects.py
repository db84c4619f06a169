"""The object store: content names, eviction, pins, arrivals, other processes, and folders that dead ones left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from windlass import store_folders
from windlass.errors import StoreFull, WindlassError
from windlass.object_store import ObjectStore
from windlass.objects import content_name, map_object, open_in, write_results
from windlass.ownership import NotOurs, same_host
from windlass.worker import memory

NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    store = ObjectStore(tmp_path / "store", 1000)
    yield store
    store.check()
    assert not [name for name in os.listdir(store.folder) if name.startswith(".t-")]


def test_the_same_content_is_kept_once_under_its_name(store: ObjectStore) -> None:
    first, second = store.put(b"x" * 100), store.put(bytearray(b"x" * 100))
    assert first == second
    assert first.name == content_name(b"x" * 100)
    assert first.name.startswith("b3-")
    assert (store.used, first.size) == (100, 100)
    assert store.path(first.name).read_bytes() == b"x" * 100


def test_results_have_random_names(store: ObjectStore) -> None:
    first, second = store.put_result(b"x"), store.put_result(b"x")
    assert first.name != second.name
    assert first.name.startswith("r-")


def test_folder_and_files_are_private(store: ObjectStore) -> None:
    ref = store.put(b"secret")
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert store.path(ref.name).stat().st_mode & 0o777 == 0o600
    assert (store.folder / ".token").stat().st_mode & 0o777 == 0o600


def test_what_nothing_may_be_evicted_for_is_not_looked_for_again(store: ObjectStore) -> None:
    """A million results that wait to be read are not looked at for each one that comes, whether or not something else may go."""

    class Counted(OrderedDict[str, Any]):
        def items(self) -> Any:
            raise AssertionError("all were looked at")

    results = [store.put_result(b"x" * 100) for _ in range(10)]
    store._entries = Counted(store._entries)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(StoreFull):
        store.receive("r-" + "0" * 32, 50)
    store.discard(results.pop().name)
    ref = store.put(b"z" * 100)
    for number in range(5):
        ref = store.put(bytes([number]) * 100, pin=True)
        with pytest.raises(StoreFull):
            store.receive("r-" + "0" * 32, 50)
        store.unpin(ref.name)
    store.discard(ref.name)
    results.append(store.put_result(b"x" * 100))
    store._entries = OrderedDict(store._entries)  # pyright: ignore[reportPrivateUsage]
    store.fetched(results[0].name)
    store.receive("r-" + "0" * 32, 50).abort()
    assert not store.has(results[0].name)
    for pins in (True, False):
        ref = store.put(b"y" * 100, pin=True) if pins else store.put(b"y" * 100)
        with pytest.raises(StoreFull):
            store.receive("r-" + "0" * 32, 150)
        if pins:
            store.unpin(ref.name)
        store.receive("r-" + "0" * 32, 50).abort()
        assert not store.has(ref.name)


MANY = """
import resource, sys
from windlass import descriptors
from windlass.objects import map_object

soft, hard = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
views = [map_object(sys.argv[1], foreign=True) for _ in range(300)]
for number, view in enumerate(views):
    view[0] = number % 256
print([view[0] for view in views] == [number % 256 for number in range(300)], {bytes(view[1:]) for view in views} == {b"x" * 99_999})
print(descriptors.limit())
"""


@pytest.mark.parametrize(("soft", "hard"), [(64, 64), (64, 200), (64, 4096)])
def test_more_objects_may_be_open_than_there_may_be_descriptors(tmp_path: Path, soft: int, hard: int) -> None:
    """A program that keeps a thousand results has them all; it is allowed more descriptors first, where that can be."""
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    words = [sys.executable, "-c", MANY, str(tmp_path / "file"), str(soft), str(hard)]
    ran = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == (f"True True\n{hard}\n", "")


BRIEFLY = """
import resource, sys
from pathlib import Path
from windlass import descriptors
from windlass.object_store import ObjectStore

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = ObjectStore(Path(sys.argv[1]))
ref = store.put(b"x" * 100_000)
kept = [store.open(ref.name) for _ in range(40)]
print(type(kept[-1].obj).__name__, type(store.open(ref.name, briefly=True).obj).__name__)
del kept
descriptors.MAPPED_MOST, descriptors._plenty = 20, 0
kept = [store.open(ref.name) for _ in range(30)]
print([type(view.obj).__name__ for view in (kept[0], kept[-1])])
"""


def test_what_is_only_sent_is_not_copied_and_mappings_are_left_for_others(tmp_path: Path) -> None:
    """A manager of thousands of workers has half of its descriptors in use, and sends each of them gigabytes."""
    ran = subprocess.run([sys.executable, "-c", BRIEFLY, str(tmp_path / "s")], check=False, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("bytearray mmap\n['mmap', 'bytearray']\n", "")


def test_a_view_is_private_writable_and_outlives_the_object(store: ObjectStore) -> None:
    ref = store.put(b"hello")
    view, other = store.open(ref.name), store.open(ref.name)
    store.discard(ref.name)
    assert not store.has(ref.name)
    view[0] = ord("j")
    assert (bytes(view), bytes(other)) == (b"jello", b"hello")


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    ref = store.put(b"")
    assert ref.size == 0
    assert bytes(store.open(ref.name)) == b""
    assert store.receive(ref.name, 0).commit() == ref


@pytest.mark.parametrize("name", ["b3-" + "0" * 32, "r-" + "a" * 32])
def test_what_is_absent_is_a_key_error(store: ObjectStore, name: str) -> None:
    assert not store.has(name)
    store.discard(name)
    store.unpin(name)
    for ask in (store.path, store.open, store.pin, store.size):
        with pytest.raises(KeyError):
            ask(name)


@pytest.mark.parametrize(
    "name", ["", ".token", "../store/.token", "b3-../../../../../../../../etc/passwd", "b3-" + "G" * 32, "r-/" + "0" * 31]
)
def test_a_name_that_could_be_another_path_is_none(store: ObjectStore, name: str, tmp_path: Path) -> None:
    assert not store.has(name)
    with pytest.raises(KeyError):
        store.open(name)
    with pytest.raises(KeyError):
        open_in(store.folder, name)
    with pytest.raises(ValueError, match="names are b3- or r- and 32 hexadecimal digits"):
        store.receive(name, 1)
    with pytest.raises(ValueError, match="names are b3- or r- and 32 hexadecimal digits"):
        store.adopt(name, tmp_path)


def test_past_the_limit_the_least_recently_used_goes_first(store: ObjectStore) -> None:
    refs = [store.put(bytes([number]) * 400) for number in range(2)]
    store.open(refs[0].name)
    new = store.put(b"n" * 400)
    assert [store.has(ref.name) for ref in (*refs, new)] == [True, False, True]
    assert store.used == 800


def test_what_is_pinned_stays_and_the_newcomer_is_refused(store: ObjectStore) -> None:
    ref = store.put(b"a" * 900, pin=True)
    with pytest.raises(StoreFull, match=r"an object of 200 bytes does not fit .*900 of 1000 bytes are in use; wait until calls") as caught:
        store.put(b"b" * 200)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, WindlassError)
    store.unpin(ref.name)
    store.put(b"b" * 200)
    assert not store.has(ref.name)


def test_pins_are_counted(store: ObjectStore) -> None:
    ref = store.put(b"a" * 900, pin=True)
    assert store.put(b"a" * 900, pin=True) == ref
    store.unpin(ref.name)
    with pytest.raises(StoreFull):
        store.put(b"b" * 200)


def test_a_pinned_object_that_is_discarded_goes_with_its_last_pin(store: ObjectStore) -> None:
    ref = store.put(b"a", pin=True)
    store.discard(ref.name)
    assert store.has(ref.name)
    store.unpin(ref.name)
    assert not store.has(ref.name)
    ref = store.put(b"a", pin=True)
    store.discard(ref.name)
    store.put(b"a")  # wanted again
    store.unpin(ref.name)
    assert store.has(ref.name)


def test_an_arrival_is_seen_when_it_is_whole(store: ObjectStore) -> None:
    data = bytes(range(200))
    name = content_name(data)
    incoming = store.receive(name, 200)
    incoming.write(data[:120])
    assert not store.has(name)
    incoming.write(memoryview(data)[120:])
    ref = incoming.commit()
    assert (ref.name, ref.size) == (name, 200)
    assert bytes(store.open(name)) == data
    assert store.used == 200


def test_an_arrival_can_be_filled_in_place(store: ObjectStore) -> None:
    data = bytes(range(200))
    incoming = store.receive(content_name(data), 200)
    view = incoming.view()
    view[100:] = data[100:]
    view[:100] = data[:100]
    assert bytes(store.open(incoming.commit().name)) == data


def test_a_damaged_arrival_is_not_kept(store: ObjectStore) -> None:
    name = content_name(b"right")
    for fill in ("write", "view"):
        incoming = store.receive(name, 5)
        if fill == "write":
            incoming.write(b"wrong")
        else:
            incoming.view()[:] = b"wrong"
        with pytest.raises(ValueError, match="was damaged on its way"):
            incoming.commit()
    short = store.receive(name, 5)
    short.write(b"rig")
    with pytest.raises(ValueError, match="has 3 bytes instead of 5"):
        short.commit()
    long = store.receive(name, 5)
    with pytest.raises(ValueError, match="was announced with 5 bytes and has more"):
        long.write(b"right?")
    long.abort()
    long.abort()
    assert not store.has(name)
    assert store.used == 0
    store.put(b"x" * 1000)  # nothing stays reserved


def test_arrivals_take_their_room_when_they_begin(store: ObjectStore) -> None:
    incoming = store.receive("r-" + "0" * 32, 900)
    with pytest.raises(StoreFull):
        store.put(b"b" * 200)
    incoming.abort()
    store.put(b"b" * 200)


def test_two_arrivals_of_one_object_are_one(store: ObjectStore) -> None:
    name = content_name(b"twice")
    both = [store.receive(name, 5), store.receive(name, 5)]
    for incoming in both:
        incoming.write(b"twice")
    assert both[0].commit() == both[1].commit()
    assert store.used == 5


def test_a_result_of_another_process_is_met_in_the_folder(store: ObjectStore) -> None:
    code = "import sys, windlass.objects as o; ref = o.write_results(sys.argv[1], [b'made there'])[0]; print(ref.name, ref.size)"
    done = subprocess.run([sys.executable, "-c", code, str(store.folder)], capture_output=True, text=True, check=True)
    name, size = done.stdout.split()
    assert store.used == 0
    assert (bytes(store.open(name)), store.size(name), store.used) == (b"made there", int(size), 10)


def test_a_folder_that_was_deleted_is_made_again_until_the_store_is_closed(store: ObjectStore, tmp_path: Path) -> None:
    """Private, by whatever writes into it next: slots, and objects that arrive."""
    ref = store.put(b"hello", pin=True)
    shutil.rmtree(store.folder)
    assert not store.has(ref.name)
    assert store.used == 0
    assert store.put(b"hello") == ref
    shutil.rmtree(store.folder)
    (result,) = write_results(store.folder, [b"made there"])
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert bytes(store.open(result.name)) == b"made there"
    shutil.rmtree(store.folder)
    incoming = store.receive(ref.name, 5)
    incoming.write(b"hello")
    assert incoming.commit() == ref
    other = ObjectStore(tmp_path / "other")
    other.close()
    with pytest.raises(FileNotFoundError, match="closed"):
        other.put(b"late")
    assert not other.folder.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what is another user's")
def test_a_folder_that_another_user_has_made_since_is_not_used(store: ObjectStore) -> None:
    """Everybody could read its name before somebody cleaned it away; who puts an object there has it unpickled."""
    ref = store.put(b"hello")
    shutil.rmtree(store.folder)
    store.folder.mkdir()
    os.chown(store.folder, NOBODY, NOBODY)
    writes: list[Callable[[], object]] = [
        lambda: store.put(b"hello"),
        lambda: write_results(store.folder, [b"x"]),
        lambda: store.receive(ref.name, 5),
    ]
    for write in writes:
        with pytest.raises(NotOurs, match=rf"it belongs to another user \(number {NOBODY}\), who has made it since ours was cleaned away"):
            write()
    assert os.listdir(store.folder) == []
    (forged := store.folder / ref.name).write_bytes(b"world")
    os.chown(forged, NOBODY, NOBODY)
    for _ in ("in his folder", "in ours"):
        assert not store.has(ref.name)
        with pytest.raises(KeyError):
            store.open(ref.name)
        with pytest.raises(KeyError):
            open_in(store.folder, ref.name)
        with pytest.raises(NotOurs):
            map_object(forged)
        assert bytes(map_object(forged, foreign=True)) == b"world"
        os.chown(store.folder, os.getuid(), -1)


def test_adopting_links_the_file_and_the_other_name_may_go(store: ObjectStore, tmp_path: Path) -> None:
    (ref,) = write_results(tmp_path, [b"elsewhere"])
    source = tmp_path / ref.name
    assert store.adopt(ref.name, source) == ref
    assert store.path(ref.name).stat().st_ino == source.stat().st_ino
    source.unlink()
    assert bytes(store.open(ref.name)) == b"elsewhere"
    assert store.adopt(ref.name, source) == ref  # it is here already


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_adopting_copies_where_no_link_is_possible(tmp_path: Path) -> None:
    other = store_folders.default_store_folder("test", scratch="/dev/shm")
    try:
        if os.stat(other).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("needs a second file system")
        (ref,) = write_results(other, [b"far away"])
        store = ObjectStore(tmp_path / "store")
        store.adopt(ref.name, other / ref.name)
        assert bytes(store.open(ref.name)) == b"far away"
    finally:
        ObjectStore(other).close()


def test_only_plain_files_are_adopted(store: ObjectStore, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc/hostname")
    for path in (link, tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match="is no regular file"):
            store.adopt("r-" + "1" * 32, path)
    with pytest.raises(FileNotFoundError):
        store.adopt("r-" + "1" * 32, tmp_path / "absent")


def test_a_damaged_object_is_found_and_removed(store: ObjectStore) -> None:
    good, bad = store.put(b"good"), store.put(b"bad")
    store.path(bad.name).write_bytes(b"bAd")
    assert store.verify(good.name)
    assert not store.verify(bad.name)
    assert not store.has(bad.name)


def test_a_store_takes_up_what_is_in_its_folder(tmp_path: Path) -> None:
    ref = ObjectStore(tmp_path).put(b"kept")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".t-{gone.pid}-00").write_bytes(b"half a file")
    (tmp_path / f".t-{os.getpid()}-00").write_bytes(b"somebody writes this")
    store = ObjectStore(tmp_path)
    assert (store.names(), store.used) == ([ref.name], 4)
    assert sorted(os.listdir(tmp_path)) == sorted([".token", ref.name, f".t-{os.getpid()}-00"])


def test_the_token_proves_the_same_host(store: ObjectStore, tmp_path: Path) -> None:
    folder = str(store.folder)
    assert same_host(folder, store.token)
    assert not same_host(folder, "guessed")
    assert not same_host(folder, "")
    assert not same_host("", store.token)
    assert not same_host(str(tmp_path), store.token)


def test_a_full_disk_is_said_to_be_full(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreFull, match=r"no room for an object of 5 bytes in .*: No space left on device; free some space there"):
            store.put(b"hello")
        with pytest.raises(StoreFull):
            write_results(store.folder, [b"hello"])
    assert store.used == 0
    store.put(b"x" * 1000)


def test_a_disk_without_room_for_another_file_is_full(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where inodes are counted, or a quota is over, the file cannot even be made."""

    def full(*words: object) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "open", full)
    for write in (
        lambda: store.put(b"hello"),
        lambda: write_results(store.folder, [b"hello"]),
        lambda: store.receive("r-" + "0" * 32, 5),
    ):
        with pytest.raises(StoreFull, match=r"no room for an object of 5 bytes in .*: Disk quota exceeded; free some space there"):
            write()


def test_an_arrival_whose_folder_was_cleaned_away_can_be_given_up(store: ObjectStore) -> None:
    """As when its connection is cut."""
    incoming = store.receive("r-" + "0" * 32, 1000)
    shutil.rmtree(store.folder)
    incoming.abort()
    store.put(b"another")  # which makes the folder again
    store.check()


def test_a_disk_that_others_filled_is_helped_by_eviction(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old = store.put(b"old")
    write = os.write

    def full_until_evicted(descriptor: int, data: memoryview) -> int:
        if store.folder.joinpath(old.name).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full_until_evicted)
    new = store.put(b"new")
    assert (store.has(old.name), store.has(new.name)) == (False, True)


def test_threads_can_share_a_store(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, 50_000)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(60):
                data = bytes([step % 7]) * 1000
                ref = store.put(data, pin=True)
                assert bytes(store.open(ref.name)) == data
                store.unpin(ref.name)
                store.discard(store.put_result(bytes([number]) * 500).name)
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    store.check()
    assert store.used == 7000


def test_folders_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    code = """
import sys
import windlass.store_folders as folders
folders._shm_is_roomy = lambda: False
print(folders.default_store_folder("test", sys.argv[1]), flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders: list[Path] = []
    for process in processes:
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().strip()))
    assert all(folder.is_dir() and folder.parent == tmp_path for folder in folders)
    processes[0].communicate()
    unrelated = tmp_path / "windlass-of-somebody"
    unrelated.mkdir()
    assert store_folders.remove_dead_folders(str(tmp_path)) == [str(folders[0])]
    assert (folders[0].exists(), folders[1].exists(), unrelated.exists()) == (False, True, True)
    processes[1].communicate()


def test_a_process_that_starts_itself_anew_removes_the_folders_of_its_earlier_life(tmp_path: Path) -> None:
    """By `os.execv`, as a server that reloads does; but none of its own, also when the module is loaded anew."""
    code = """
import importlib, os, sys
import windlass.store_folders as folders
folders._shm_is_roomy = lambda: False
mine = folders.default_store_folder("test", sys.argv[1])
importlib.reload(folders).remove_dead_folders(sys.argv[1])
print(mine, flush=True)
if len(sys.argv) == 2:
    os.execv(sys.executable, [*sys.orig_argv, "again"])
"""
    written = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    before, after = map(Path, written.split())
    assert (before.exists(), after.exists()) == (False, True)


def test_folders_that_others_made_under_such_names_are_let_alone_and_keep_nobody_from_beginning(tmp_path: Path) -> None:
    """User id, boot and namespace are known to all, and the place is everybody's: neither is a number what only looks like one, nor is
    a folder ours by its name."""
    words = store_folders.folder_name("x").split("-")
    odd = tmp_path / "-".join([*words[:5], "²", *words[6:]])
    linked = tmp_path / "-".join([*words[:6], "1", "0"])
    foreign = tmp_path / "-".join([*words[:6], "2", "0"])
    odd.mkdir()
    (foreign / "kept").mkdir(parents=True)
    linked.symlink_to(foreign)
    left = [odd, linked, foreign]
    if os.getuid() == 0:
        os.chown(foreign, NOBODY, NOBODY)
    else:  # nobody else's can be made
        shutil.rmtree(foreign)
        left.remove(foreign)
    assert store_folders.remove_dead_folders(str(tmp_path)) == []
    assert all(os.path.lexists(path) for path in left)


def test_short_links_to_folders_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    """Also where the folder is elsewhere: a job's own folder went with the job, its link in /tmp would stay for ever."""
    name = store_folders.folder_name("scratch")
    words = name.split("-")
    dead, living, unnamed, foreign = (tmp_path / store_folders.link_name() for _ in range(4))
    dead.symlink_to("/gone/" + "-".join([*words[:6], "1", "0"]))
    living.symlink_to(f"/gone/{name}")
    unnamed.symlink_to(tmp_path)
    foreign.mkdir()
    left = [living, unnamed, foreign]
    if os.getuid() == 0:
        others = tmp_path / store_folders.link_name()
        others.symlink_to("/gone/" + "-".join([*words[:6], "2", "0"]))
        os.chown(others, NOBODY, NOBODY, follow_symlinks=False)
        left.append(others)
    assert store_folders.remove_dead_folders(str(tmp_path)) == [str(dead)]
    assert not os.path.lexists(dead)
    assert all(os.path.lexists(path) for path in left)


def test_a_thousand_folders_in_each_other_keep_nobody_from_beginning(tmp_path: Path) -> None:
    """A call that was killed with its worker may have left them; `shutil.rmtree` gives up there, on Python before 3.13."""
    words = store_folders.folder_name("x").split("-")
    (dead := tmp_path / "-".join([*words[:6], "1", "0"])).mkdir()
    inner = os.open(dead, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=inner)
        deeper = os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner = deeper
    os.close(inner)
    try:
        assert store_folders.remove_dead_folders(str(tmp_path)) == [str(dead)]
    finally:
        subprocess.run(["rm", "-rf", dead], check=True)


def test_nobody_can_tell_from_a_store_in_memory_where_it_will_go_on_on_disk(tmp_path: Path) -> None:
    """The first folder's name is there for all to see; a folder of that name, made by somebody else before us, would be his."""
    shown = Path("/dev/shm") / tmp_path.name / f"windlass-manager-{os.getuid()}-boot-1-2-3-0123456789abcdef"
    first, second = (store_folders.default_spool_folder(shown) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first != second
    assert shown.name not in (first.name, second.name)
    assert first.name.startswith(f"windlass-manager-{os.getuid()}-")
    assert store_folders.default_spool_folder(tmp_path / "windlass-manager-x") is None


def test_a_closed_store_leaves_nothing(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    view = store.open(store.put(b"still here").name)
    store.close()
    assert not store.folder.exists()
    assert bytes(view) == b"still here"


def test_the_default_limit_is_part_of_what_is_free(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert 0 < store_folders.default_store_limit(tmp_path) <= status.f_blocks * status.f_frsize


def test_the_default_limit_in_memory_is_part_of_what_the_job_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in a job of the batch system was ended for want of memory when results had come that it had not read yet: the limit went by
    the memory of the node, so that none of them went to its disk."""
    groups = [memory.Cgroup(str(tmp_path / name), "", "", "") for name in ("task", "job")]
    (tmp_path / "task").write_text(f"{memory.UNLIMITED}\n")
    (tmp_path / "job").write_text("4000\n")
    monkeypatch.setattr(memory, "own_cgroups", lambda: groups)
    assert store_folders.default_store_limit("/dev/shm") == 1000
    assert store_folders.default_store_limit("/dev/shm", 0.5) == 2000
    assert store_folders.default_store_limit(tmp_path) > 1000
    groups.clear()
    assert store_folders.default_store_limit("/dev/shm") != 1000
