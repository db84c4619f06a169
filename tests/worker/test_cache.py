"""A worker's cache of files: entries, pins, limits, levels; damage, deleted folders, full disks and killed workers."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.errors import CacheFull, Damaged, StoreFull, UsageError
from windlass.trees import TreeStream, TreeWriter, scan
from windlass.unpacking import unpack
from windlass.worker.cache import Cache
from windlass.worker.cache_entries import Filling

X3, U3, R = "x3-" + "0" * 32, "u3-" + "1" * 32, "r-" + "2" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache", 1000)
    yield cache
    cache.check()
    cache.sweep()
    if cache.folder.exists():
        assert not [name for name in os.listdir(cache.folder) if name.startswith((".t-", ".dead-"))]
    cache.close()


def name_of(data: bytes) -> str:
    return "b3-" + blake3.blake3(data).hexdigest(16)


def put(
    cache: Cache, data: bytes, level: str = "workflow", *, name: str = "", base: str = "data", content: str = "", pin: bool = False
) -> str:
    """Fill an entry with these bytes; returns its name."""
    name = name or name_of(data)
    filling = cache.fill(name, len(data), level)
    assert filling is not None, "it was there"
    with filling:
        filling.path.write_bytes(data)
        filling.commit(base, len(data), content=content, pin=pin)
    return name


def put_tree(cache: Cache, tree: Path, level: str = "workflow") -> str:
    manifest = scan(tree)
    filling = cache.fill(manifest.name, manifest.size, level)
    assert filling is not None
    with filling:
        writer, stream = filling.writer(), TreeStream(manifest, tree)
        assert isinstance(writer, TreeWriter)
        writer.feed(stream.read(0, stream.size))
        assert writer.commit() == manifest.name
        filling.commit("tree", manifest.size, manifest=manifest.encode())
    return manifest.name


def some_tree(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "file").write_bytes(b"x" * 100)
    (path / "link").symlink_to("sub/file")
    (path / "sub").chmod(0o555)
    return path


# ---------------------------------------------------------------- entries


def test_what_is_filled_is_there_under_its_name(cache: Cache) -> None:
    """A file that nobody may write to: calls share it. Whether it may be run its name does not say, so it may."""
    name = put(cache, b"content", base="model.pkl")
    path = cache.path(name, "model.pkl")
    assert path == cache.folder / name / "model.pkl"
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o500
    assert (cache.has(name), cache.used, cache.names()) == (True, 7, [name])
    assert (cache.facts(name).size, cache.facts(name).content, cache.facts(name).level) == (7, name, "workflow")
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_a_tree_is_there_with_its_links_and_modes(cache: Cache, tmp_path: Path) -> None:
    tree = some_tree(tmp_path / "tree")
    name = put_tree(cache, tree)
    copy = cache.path(name, "tree")
    assert scan(copy).name == name
    assert (copy / "link").read_bytes() == b"x" * 100
    assert cache.used == 100


def test_a_trees_manifest_is_kept_or_made_once(cache: Cache, tmp_path: Path) -> None:
    """So that it can be served to other workers without being hashed each time; one that is broken is made anew."""
    tree = some_tree(tmp_path / "tree")
    name = put_tree(cache, tree)
    assert cache.manifest(name).name == name
    kept = cache.folder / name / ".windlass-manifest"
    kept.write_bytes(b"junk")
    assert cache.manifest(name).name == name
    assert kept.read_bytes() == cache.manifest(name).encode()
    with pytest.raises(KeyError):
        cache.manifest(X3)


def test_nothing_is_seen_before_it_is_whole_or_after_it_was_given_up(cache: Cache) -> None:
    filling = cache.fill(X3, 100)
    assert filling is not None
    filling.path.write_bytes(b"half")
    assert not cache.has(X3)
    assert cache.names() == []
    filling.abort()
    filling.abort()
    assert not cache.has(X3)
    assert os.listdir(cache.folder) == []
    put(cache, bytes(1000))


def test_an_error_while_filling_keeps_nothing(cache: Cache) -> None:
    filling = cache.fill(X3, 100)
    assert filling is not None
    with pytest.raises(RuntimeError), filling:
        raise RuntimeError
    assert os.listdir(cache.folder) == []
    filling = cache.fill(X3, 100)
    assert filling is not None
    os.symlink("/etc/passwd", filling.path)
    with pytest.raises(Damaged, match=f"what was made for {X3} is neither file nor folder; it is not kept"):
        filling.commit("x", 100)


def test_what_is_here_is_not_filled_again(cache: Cache) -> None:
    """But it stays for the longer of the two levels."""
    name = put(cache, b"x", "call")
    assert cache.fill(name, 1, "workflow") is None
    assert cache.facts(name).level == "workflow"
    assert cache.fill(name, 1, "call") is None
    assert cache.facts(name).level == "workflow"


def test_two_fillings_of_one_entry_are_both_fine(cache: Cache) -> None:
    """The second finds the first's."""
    one, two = cache.fill(X3, 1), cache.fill(X3, 1)
    assert one is not None
    assert two is not None
    one.path.write_bytes(b"1")
    two.path.write_bytes(b"2")
    assert one.commit("data", 1) == two.commit("data", 1)
    assert cache.path(X3, "data").read_bytes() == b"1"
    assert cache.used == 1


def test_a_writer_checks_what_it_is_fed(cache: Cache) -> None:
    filling = cache.fill(name_of(b"right"), 5)
    assert filling is not None
    with filling:
        writer = filling.writer()
        writer.feed(b"wrong")
        with pytest.raises(Damaged, match="was damaged on its way"):
            writer.commit()
    assert cache.names() == []


@pytest.mark.parametrize("base", ["a b", "line\nbreak", "é", os.fsdecode(b"\xff\xfe"), "-rf", "...", "x" * 255])
def test_a_file_can_be_called_almost_anything(cache: Cache, tmp_path: Path, base: str) -> None:
    name = put(cache, b"content", base=base)
    assert cache.path(name, base).read_bytes() == b"content"
    assert cache.path(name, "other").read_bytes() == b"content"
    tree = put_tree(cache, some_tree(tmp_path / "tree"))
    assert (cache.path(tree, base) / "link").read_bytes() == b"x" * 100
    assert scan(cache.path(tree, base)).name == tree
    assert not cache.damaged(name)
    assert not cache.damaged(tree)


@pytest.mark.parametrize("base", ["", ".", "..", "a/b", "/etc", "a\0b", "x" * 256, ".windlass-facts"])
def test_a_base_that_is_no_last_part_of_a_path_is_refused(cache: Cache, base: str) -> None:
    with pytest.raises(UsageError, match=r"a file cannot be called .* on a worker: that is no last part of a path, or Windlass's own"):
        put(cache, b"content", base=base)
    name = put(cache, b"content")
    with pytest.raises(UsageError, match="a file cannot be called"):
        cache.path(name, base)


@pytest.mark.parametrize(
    "name", ["", ".lock", "../cache/.lock", "b3-" + "G" * 32, "z3-" + "0" * 32, "b3-../../../../../../../../etc/passwd"]
)
def test_a_name_that_could_be_another_path_is_none(cache: Cache, name: str) -> None:
    assert not cache.has(name)
    assert not cache.damaged(name)
    cache.discard(name)
    with pytest.raises(KeyError):
        cache.path(name, "data")
    with pytest.raises(ValueError, match="names are b3-, t3-, u3-, x3- or r- and 32 hexadecimal digits"):
        cache.fill(name, 1)


def test_what_is_absent_is_a_key_error(cache: Cache) -> None:
    cache.discard(X3)
    cache.unpin(X3)
    for ask in (cache.pin, cache.facts, cache.manifest):
        with pytest.raises(KeyError):
            ask(X3)
    with pytest.raises(KeyError):
        cache.keep(X3, "worker")
    with pytest.raises(ValueError, match="'always' is no level of the cache; there are call, workflow, worker, forever"):
        cache.fill(X3, 1, "always")


# ---------------------------------------------------------------- room


def test_past_the_limit_the_least_recently_used_goes_first(cache: Cache) -> None:
    names = [put(cache, bytes([number]) * 400) for number in range(2)]
    cache.has(names[0])
    new = put(cache, b"n" * 400)
    assert [cache.has(name) for name in (*names, new)] == [True, False, True]
    assert cache.used == 800


def test_results_go_last(cache: Cache) -> None:
    """They cost a call to make again."""
    put(cache, bytes(400), name=R)
    other = put(cache, b"o" * 400)
    put(cache, b"n" * 400)
    assert (cache.has(R), cache.has(other)) == (True, False)
    put(cache, b"m" * 1000)
    assert not cache.has(R)


def test_what_is_pinned_stays_and_the_newcomer_is_refused(cache: Cache) -> None:
    name = put(cache, b"a" * 900, pin=True)
    cache.pin(name)
    text = (
        rf"no room for file {X3} \(200B\) in the cache {cache.folder}: 900B of 1KB are used, 900B of that by calls that hold it, "
        r"and 0B are kept for files on their way; raise the worker's disk limit, or run fewer such calls at once"
    )
    for _ in range(2):
        with pytest.raises(CacheFull, match=text) as caught:
            cache.fill(X3, 200)
        assert isinstance(caught.value, StoreFull)
        cache.unpin(name)
    put(cache, bytes(200), name=X3)
    assert not cache.has(name)


def test_room_is_kept_for_what_is_on_its_way(cache: Cache) -> None:
    filling = cache.fill(X3, 900)
    assert filling is not None
    with pytest.raises(CacheFull, match="0B of 1KB are used, 0B of that by calls that hold it, and 900B are kept for files on their way"):
        cache.fill(R, 200)
    filling.abort()
    put(cache, bytes(1000), name=R)


def test_content_of_unknown_size_takes_room_as_it_grows(cache: Cache) -> None:
    """And what it needed is what it has in the end."""
    put(cache, b"a" * 300, pin=True)
    filling = cache.fill(X3, -1)
    assert filling is not None
    filling.grow(300)
    filling.grow(400)
    with pytest.raises(CacheFull):
        filling.grow(1)
    filling.path.write_bytes(bytes(500))
    filling.commit("data", 500)
    assert cache.used == 800
    put(cache, b"n" * 200)
    assert cache.has(X3)


def test_without_a_limit_there_is_none_but_the_disk(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    put(cache, bytes(100_000))
    with pytest.raises(CacheFull, match="its disk has not so much free; free some space there, or give the worker another folder"):
        cache.fill(X3, 1 << 60)
    cache.check()
    cache.close()
    assert not cache.folder.exists()


def test_a_full_disk_fails_one_file_and_hurts_nothing_else(mounted: Path) -> None:
    """Announced or not; the others stay, unless they are needed by nobody and room is."""
    cache = Cache(mounted / "cache", 100 << 20)
    kept, free = put(cache, b"k" * 300_000, pin=True), put(cache, b"f" * 300_000)
    with pytest.raises(CacheFull, match="its disk has not so much free"):
        cache.fill(X3, 1_000_000)
    assert cache.has(kept)
    assert not cache.has(free)
    filling = cache.fill(X3, -1)
    assert filling is not None
    with pytest.raises(CacheFull, match=r"No space left on device; nothing of it is kept: free some space there"), filling:
        filling.writer().feed(bytes(2_000_000))
    assert cache.path(kept, "data").read_bytes() == b"k" * 300_000
    put(cache, b"n" * 500_000)
    cache.check()
    cache.close()


def test_an_archive_is_unpacked_into_an_entry_as_far_as_there_is_room(cache: Cache, tmp_path: Path) -> None:
    """Its content's size is known only afterwards; what does not fit leaves nothing."""
    (tmp_path / "files").mkdir()
    for number in range(5):
        (tmp_path / "files" / str(number)).write_bytes(bytes(100))
    archive = shutil.make_archive(os.fspath(tmp_path / "a"), "gztar", tmp_path / "files")
    put(cache, b"h" * 600, pin=True)
    filling = cache.fill(U3, -1)
    assert filling is not None
    with pytest.raises(CacheFull), filling:
        unpack(archive, filling.path, filling.grow)
    cache.unpin(name_of(b"h" * 600))
    filling = cache.fill(U3, -1)
    assert filling is not None
    with filling:
        filling.commit("files", unpack(archive, filling.path, filling.grow))
    assert (cache.path(U3, "files") / "4").read_bytes() == bytes(100)
    assert cache.used == 500


# ---------------------------------------------------------------- levels


def test_an_entry_for_a_call_goes_with_its_last_pin(cache: Cache) -> None:
    name = put(cache, b"x", "call", pin=True)
    cache.pin(name)
    cache.unpin(name)
    assert cache.has(name)
    cache.unpin(name)
    assert not cache.has(name)
    assert cache.used == 0


def test_of_two_levels_an_entry_has_the_longer_one(cache: Cache) -> None:
    stays, longer = put(cache, b"4", "worker"), put(cache, b"5", "call")
    cache.keep(stays, "call")
    cache.keep(longer, "workflow")
    assert (cache.facts(stays).level, cache.facts(longer).level) == ("worker", "workflow")
    cache.pin(longer)
    cache.unpin(longer)
    assert cache.has(longer)


def test_results_of_an_earlier_life_of_the_manager_go_like_any_other_entry(cache: Cache) -> None:
    """They have new names in each life: kept to the last, they would leave less room in each for what is in use. Not one that is wanted."""
    again, other = "r-" + "3" * 32, "r-" + "4" * 32
    for name in (R, again, other):
        put(cache, bytes(200), name=name)
    cache.forget_results()
    cache.pin(other)
    cache.unpin(other)
    assert cache.fill(again, 200) is None
    used = put(cache, b"u" * 400)
    put(cache, b"n" * 200)
    assert [cache.has(name) for name in (R, again, other, used)] == [False, True, True, True]
    put(cache, b"o" * 400)
    assert [cache.has(name) for name in (again, other, used)] == [True, True, False]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK])
def test_where_there_are_no_hard_links_a_second_name_is_a_symbolic_one(cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It is no full disk, for which a worker would leave."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    name = put(cache, b"data", base="a.txt")
    monkeypatch.setattr(os, "link", refuse)
    other = cache.path(name, "b.txt")
    assert (other.name, other.is_symlink(), other.read_bytes()) == ("b.txt", True, b"data")


def test_what_is_let_go_while_no_thread_can_be_had_goes_later(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of processes counts threads: who lets go is in the middle of telling how calls have ended."""

    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    name = put(cache, b"x" * 400, "call", pin=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        cache.unpin(name)
    assert not cache.has(name)
    put(cache, b"y" * 900)  # which needs the room


def test_a_pinned_entry_that_is_discarded_goes_with_its_last_pin(cache: Cache) -> None:
    name = put(cache, b"a", pin=True)
    cache.discard(name)
    assert cache.has(name)
    cache.unpin(name)
    assert not cache.has(name)
    name = put(cache, b"a", pin=True)
    cache.discard(name)
    assert cache.fill(name, 1) is None  # wanted again
    cache.unpin(name)
    assert cache.has(name)
    cache.discard(name)
    assert not cache.has(name)


# ---------------------------------------------------------------- damage


def test_a_damaged_entry_is_found_removed_and_filled_again(cache: Cache, tmp_path: Path) -> None:
    """Its pins stay with the name: the calls that hold it are still there."""
    file, tree = put(cache, b"content", pin=True), put_tree(cache, some_tree(tmp_path / "tree"))
    known, unknown = put(cache, b"known", name=X3, content=name_of(b"known")), put(cache, b"four", name=R)
    assert not any(cache.damaged(name) for name in (file, tree, known, unknown))
    for name, inside in ((file, "data"), (tree, "tree/sub/file"), (known, "data")):
        path = cache.folder / name / inside
        path.chmod(0o700)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"!")
        assert cache.has(name)
        assert cache.damaged(name)
        assert not cache.has(name)
        assert not cache.damaged(name)
    (cache.folder / unknown / "data").chmod(0o700)
    (cache.folder / unknown / "data").write_bytes(b"five!")
    assert cache.damaged(unknown)
    put(cache, b"content")
    with pytest.raises(CacheFull):
        cache.fill(U3, 1000)
    cache.unpin(file)
    put(cache, bytes(1000), name=U3)


def write_into(path: Path, data: bytes) -> None:
    """As a call can in a container, where it is root."""
    path.chmod(0o700)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(0o500)


def test_a_file_that_was_written_to_is_not_settled(cache: Cache) -> None:
    """Though it has its size, and was written to at once; one that was only touched is."""
    name = put(cache, b"content", pin=True)
    assert cache.is_untouched(name)
    assert cache.fill(name, 7) is None
    cache.keep(name, "worker")
    assert cache.is_untouched(name)
    (cache.folder / name / "data").touch()
    assert not cache.is_untouched(name)
    assert cache.settle(name)
    assert cache.is_untouched(name)
    write_into(cache.folder / name / "data", b"CONTENT")
    assert not cache.is_untouched(name)
    assert not cache.settle(name)
    assert not cache.is_untouched(name)
    cache.unpin(name)
    assert not cache.settle(X3)
    with pytest.raises(KeyError):
        cache.is_untouched(X3)


def test_a_file_missing_from_a_tree_is_damage(cache: Cache, tmp_path: Path) -> None:
    tree = put_tree(cache, some_tree(tmp_path / "tree"))
    (cache.folder / tree / "tree" / "link").unlink()
    assert cache.damaged(tree)


def test_a_folder_deleted_under_the_worker_is_noticed_and_filled_again(cache: Cache) -> None:
    """The whole folder, one entry, or what is in it."""
    names = [put(cache, bytes([number]) * 100, pin=number == 0) for number in range(3)]
    shutil.rmtree(cache.folder / names[0])
    (cache.folder / names[1] / "data").unlink()
    assert [cache.has(name) for name in names] == [False, False, True]
    assert cache.used == 100
    with pytest.raises(KeyError):
        cache.pin(names[1])
    shutil.rmtree(cache.folder)
    assert not cache.has(names[2])
    assert cache.used == 0
    for number in range(3):
        put(cache, bytes([number]) * 100)
    assert all(cache.has(name) for name in names)
    cache.unpin(names[0])


def test_a_folder_deleted_while_an_entry_is_filled_is_told(cache: Cache) -> None:
    filling = cache.fill(X3, 10)
    assert filling is not None
    filling.path.write_bytes(bytes(10))
    shutil.rmtree(cache.folder)
    with pytest.raises(Damaged, match="was removed while it was written; nothing of it is kept: fetch it again"):
        filling.commit("data", 10)
    assert not cache.has(X3)
    put(cache, bytes(10), name=X3)


# ---------------------------------------------------------------- processes and threads

KILLED = """if True:
    import sys
    from pathlib import Path
    from windlass.worker.cache import Cache
    cache = Cache(Path(sys.argv[1]), 1000)
    for name, level in (("x3-" + "0" * 32, "worker"), ("u3-" + "1" * 32, "workflow")):
        filling = cache.fill(name, 10, level)
        filling.path.write_bytes(bytes(10))
        filling.commit("data", 10)
    filling = cache.fill("r-" + "2" * 32, 900, "worker")
    filling.path.write_bytes(bytes(450))
    print("half", flush=True)
    sys.stdin.read()
    """


def test_a_worker_that_is_killed_leaves_whole_entries_or_none(tmp_path: Path) -> None:
    """The next one in the folder takes up what was for workers, and removes the rest; what is not the cache's stays."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    worker = subprocess.Popen([sys.executable, "-c", KILLED, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"half\n"
        with pytest.raises(UsageError, match=rf"another worker uses the cache folder {folder}; give each worker one of its own"):
            Cache(folder)
        worker.send_signal(signal.SIGKILL)
    assert worker.returncode == -signal.SIGKILL
    assert [name for name in os.listdir(folder) if name.startswith(".t-")]
    cache = Cache(folder, 1000)
    assert cache.names() == [X3]
    assert cache.used == 10
    assert set(os.listdir(folder)) == {"notes.txt", X3}
    cache.check()
    cache.close()


def test_threads_may_do_all_of_it_at_once(tmp_path: Path) -> None:
    """Nothing over the limit, nothing lost that is pinned, sums right."""
    cache = Cache(tmp_path / "cache", 2000)
    contents = {name_of(data): data for data in (bytes([number]) * (100 + number) for number in range(20))}
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        choice = random.Random(seed)
        try:
            for _ in range(60):
                name = choice.choice(list(contents))
                filling = cache.fill(name, len(contents[name]), choice.choice(["call", "workflow", "worker"]))
                if filling is not None:
                    filling.path.write_bytes(contents[name])
                    filling.commit("data", len(contents[name]), pin=True)
                else:
                    try:
                        cache.pin(name)
                    except KeyError:
                        continue
                assert cache.path(name, f"as{seed}").read_bytes() == contents[name]
                assert cache.used <= 2000
                if choice.random() < 0.1:
                    cache.discard(name)
                cache.unpin(name)
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    cache.check()
    cache.close()


actions = st.tuples(
    st.sampled_from(["fill", "begin", "commit", "abort", "pin", "unpin", "discard", "forget", "delete", "damage", "keep"]),
    st.integers(0, 5),
    st.sampled_from(["call", "workflow", "worker"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(actions, max_size=40))
def test_whatever_happens_the_sums_are_right_and_pins_hold(steps: list[tuple[str, int, str]]) -> None:
    """Against a model that knows of each entry only whether it must be there."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder, "cache"), 1000)
        data = {name_of(content): content for content in (bytes([number]) * (150 + number) for number in range(6))}
        names = list(data)
        pins = dict.fromkeys(names, 0)
        sure = set[str]()  # pinned, and nobody deleted it
        open_fillings: list[Filling] = []
        for action, number, level in steps:
            name = names[number]
            if action in ("fill", "begin"):
                try:
                    filling = cache.fill(name, len(data[name]), level)
                except CacheFull:
                    continue
                if filling is not None:
                    open_fillings.append(filling)
                    filling.path.write_bytes(data[name])
            if action in ("fill", "commit") and open_fillings:
                done = open_fillings.pop()
                done.commit("data", len(data[done.name]))
                assert cache.has(done.name)
                if pins[done.name]:
                    sure.add(done.name)
            elif action == "abort" and open_fillings:
                open_fillings.pop().abort()
            elif action == "pin" and cache.has(name):
                cache.pin(name)
                pins[name] += 1
                sure.add(name)
            elif action == "unpin" and pins[name]:
                cache.unpin(name)
                pins[name] -= 1
                if not pins[name]:
                    sure.discard(name)
            elif action == "discard":
                cache.discard(name)
            elif action == "forget":
                cache.forget_results()
            elif action == "delete":
                shutil.rmtree(cache.folder / name, ignore_errors=True)
                sure.discard(name)
            elif action == "damage" and cache.has(name):
                path = cache.folder / name / "data"
                path.chmod(0o700)
                path.write_bytes(b"wrong")
                assert cache.damaged(name)
                sure.discard(name)
            elif action == "keep" and cache.has(name):
                cache.keep(name, level)
            cache.check()
            assert cache.used <= 1000
            for each in sure:
                assert cache.path(each, "data").read_bytes() == data[each]
        for filling in open_fillings:
            filling.abort()
        cache.check()
        for name in names:
            for _ in range(pins[name]):
                cache.unpin(name)
        put(cache, bytes(1000), name=X3)  # nothing is left that keeps room
        cache.close()
