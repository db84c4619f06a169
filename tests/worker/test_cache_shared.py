"""The level `forever`: one folder for all workers of a node, with real processes that fill, pin, wait and are killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3
import pytest

from windlass.errors import CacheBusy, CacheFull, Closed, Damaged, UsageError
from windlass.objects import content_name
from windlass.trees import scan
from windlass.worker import cache_entries as entries
from windlass.worker.cache import Cache
from windlass.worker.cache_entries import Facts
from windlass.worker.cache_shared import SharedCache

DATA = b"shared content"
NAME = "b3-" + blake3.blake3(DATA).hexdigest(16)
X3, R = "x3-" + "0" * 32, "r-" + "1" * 32

#: A worker that does what it is told, a line at a time, and says when it has.
WORKER = """if True:
    import sys
    from pathlib import Path
    from windlass.errors import CacheFull
    from windlass.worker.cache import Cache
    from windlass.worker.cache_shared import SharedCache
    shared = SharedCache(Path(sys.argv[1]), int(sys.argv[2]))
    cache = Cache(Path(sys.argv[3]), 0, shared)
    filling = None
    for line in sys.stdin:
        word, name, size = line.split()
        said = word
        if word == "fill":
            try:
                filling = cache.fill(name, int(size), "forever")
            except CacheFull:
                said = "full"
            else:
                said = "there" if filling is None else "filling"
        elif word == "write":
            filling.path.write_bytes(b"shared content")
        elif word == "commit":
            filling.commit("data", int(size))
        elif word == "pin":
            cache.pin(name)
        elif word == "unpin":
            cache.unpin(name)
        elif word == "has":
            said = str(cache.has(name))
        print(said, flush=True)
    """


class Worker:
    """Another worker of this node."""

    def __init__(self, folder: Path, limit: int, own: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, folder, str(limit), own], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def say(self, word: str, name: str = NAME, size: int = len(DATA)) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word} {name} {size}\n")

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, word: str, name: str = NAME, size: int = len(DATA)) -> str:
        self.say(word, name, size)
        return self.hear()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Starts further workers on the same folder."""
    workers: list[Worker] = []

    def start(limit: int = 1000) -> Worker:
        workers.append(Worker(tmp_path / "shared", limit, tmp_path / f"own{len(workers)}"))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    shared = SharedCache(tmp_path / "shared", 1000)
    cache = Cache(tmp_path / "own", 1000, shared)
    yield cache
    cache.check()
    cache.close()


def shared_of(cache: Cache) -> SharedCache:
    assert cache.forever is not None
    return cache.forever


def put(cache: Cache, data: bytes = DATA, name: str = NAME, *, pin: bool = False, content: str = "") -> str:
    filling = cache.fill(name, len(data), "forever")
    assert filling is not None
    filling.path.write_bytes(data)
    filling.commit("data", len(data), pin=pin, content=content)
    return name


def left_in(folder: Path) -> list[str]:
    """What is in the folder beside entries, and its locks."""
    return sorted(name for name in os.listdir(folder) if name.startswith((".t-", ".dead-"))) + sorted(os.listdir(folder / ".locks"))


def waits(worker: Worker, which: str) -> None:
    """Until the worker waits for this lock: it has it open."""
    folder = Path(f"/proc/{worker.process.pid}/fd")
    while True:  # the test's time limit is the limit
        assert worker.process.poll() is None
        for each in folder.iterdir():
            try:
                if os.readlink(each).endswith(which):
                    return
            except FileNotFoundError:
                pass


# ---------------------------------------------------------------- one worker


def test_what_is_filled_forever_is_in_the_shared_folder(cache: Cache, tmp_path: Path) -> None:
    put(cache)
    assert cache.path(NAME, "data") == tmp_path / "shared" / NAME / "data"
    assert cache.path(NAME, "model.pkl").read_bytes() == DATA
    assert (cache.has(NAME), cache.names(), cache.used, shared_of(cache).used) == (True, [NAME], 0, len(DATA))
    assert cache.facts(NAME).level == "forever"
    assert cache.fill(NAME, 1, "workflow") is None
    cache.close()
    again = SharedCache(tmp_path / "shared", 1000)
    assert again.has(NAME)
    assert left_in(tmp_path / "shared") == ["room"]


def test_the_folder_is_private(cache: Cache, tmp_path: Path) -> None:
    """Anybody can make a folder in /tmp before the user does."""
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    text = r"open cannot be a cache: it must be a folder of user \d+ that nobody else may write to, and is of user \d+ with mode 0o777"
    with pytest.raises(UsageError, match=text):
        SharedCache(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    with pytest.raises(UsageError, match="link cannot be a cache"):
        SharedCache(tmp_path / "link")
    (tmp_path / "readable").mkdir(mode=0o755)
    SharedCache(tmp_path / "readable")
    assert (tmp_path / "readable").stat().st_mode & 0o777 == 0o700
    if os.getuid() == 0:
        (tmp_path / "theirs").mkdir(mode=0o700)
        os.chown(tmp_path / "theirs", 65534, 65534)
        with pytest.raises(UsageError, match=r"theirs cannot be a cache: .* and is of user 65534"):
            SharedCache(tmp_path / "theirs")


def test_it_has_a_limit_of_its_own(cache: Cache) -> None:
    first, second = put(cache, bytes(400), X3), put(cache, b"2" * 400, "u3-" + "2" * 32)
    os.utime(shared_of(cache).folder / second / ".windlass-facts", (1, 1))
    cache.pin(first)
    put(cache, b"3" * 400, R)
    assert (cache.has(first), cache.has(second), cache.has(R)) == (True, False, True)
    cache.pin(R)
    text = r"no room for file b3-\S+ \(14B\) in the cache \S+: 990B of 1KB are used by calls on this node or on their way; raise its"
    filling = cache.fill("u3-" + "4" * 32, 190, "forever")
    with pytest.raises(CacheFull, match=text):
        cache.fill(NAME, 14, "forever")
    assert filling is not None
    filling.abort()
    put(cache)
    cache.unpin(R)
    cache.unpin(first)


def test_room_is_found_without_reading_again_what_each_entry_takes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """With thousands of entries that takes longer than their files, and all workers of the node wait for it; but others may change them, so
    what was read is not believed for long."""
    contents = [b"%d" % number for number in range(40)]
    read: list[str] = []
    read_facts = entries.read_facts

    def note(place: str) -> Facts | None:
        read.append(place)
        return read_facts(place)

    monkeypatch.setattr(entries, "read_facts", note)
    for content in contents:
        put(cache, content, content_name(content))
    assert len(read) <= 10 * len(contents)
    read.clear()
    monkeypatch.setattr(shared_of(cache), "_sizes_until", 0.0)
    put(cache, b"another", content_name(b"another"))
    assert len({*read}) > len(contents)
    monkeypatch.undo()
    for content in contents[:30]:
        cache.discard(content_name(content))
    shared_of(cache).limit = shared_of(cache).used + 1
    put(cache, b"x", content_name(b"x"))
    assert len(cache.names()) == 12


def test_content_of_unknown_size_takes_room_as_it_grows(cache: Cache) -> None:
    filling = cache.fill(X3, -1, "forever")
    assert filling is not None
    filling.grow(600)
    with pytest.raises(CacheFull):
        filling.grow(600)
    with pytest.raises(CacheFull):
        cache.fill(R, 600, "forever")
    filling.path.write_bytes(bytes(100))
    filling.commit("data", 100)
    assert shared_of(cache).used == 100


def test_pins_are_counted_and_discarding_respects_them(cache: Cache) -> None:
    put(cache, pin=True)
    cache.pin(NAME)
    for _ in range(2):
        cache.discard(NAME)
        assert cache.has(NAME)
        cache.unpin(NAME)
    cache.discard(NAME)
    assert not cache.has(NAME)
    cache.unpin(NAME)
    for ask in (cache.pin, cache.facts, cache.manifest):
        with pytest.raises(KeyError):
            ask(NAME)


def test_a_damaged_entry_is_filled_again_though_it_is_pinned(cache: Cache) -> None:
    put(cache, pin=True)
    path = cache.path(NAME, "data")
    assert not cache.damaged(NAME)
    path.chmod(0o700)
    path.write_bytes(b"wrong")
    assert cache.damaged(NAME)
    assert not cache.has(NAME)
    assert not cache.damaged(NAME)
    put(cache)
    with pytest.raises(CacheFull):
        cache.fill(X3, 1000, "forever")
    cache.unpin(NAME)


def test_a_deleted_folder_is_noticed_and_made_again(cache: Cache) -> None:
    put(cache)
    filling = cache.fill(X3, 1, "forever")
    assert filling is not None
    shutil.rmtree(shared_of(cache).folder)
    assert not cache.has(NAME)
    assert cache.names() == []
    with pytest.raises(Damaged, match="was removed while it was written"):
        filling.commit("data", 1)
    put(cache)
    assert cache.path(NAME, "data").read_bytes() == DATA


def test_a_tree_has_a_manifest_here_too(cache: Cache) -> None:
    filling = cache.fill("u3-" + "0" * 32, 3, "forever")
    assert filling is not None
    filling.path.mkdir()
    (filling.path / "file").write_bytes(b"123")
    name = scan(filling.path).name
    filling.commit("tree", 3, content=name)
    assert cache.manifest("u3-" + "0" * 32).name == name
    assert not cache.damaged("u3-" + "0" * 32)


def test_a_tree_that_a_cleaner_of_old_files_has_begun_to_take_is_filled_again(cache: Cache) -> None:
    """Whose facts are young, as each use touches them: a mark that is as old as the first of its files goes with that."""
    name = "u3-" + "0" * 32
    for _ in range(2):
        filling = cache.fill(name, 3, "forever")
        assert filling is not None
        filling.path.mkdir()
        (filling.path / "file").write_bytes(b"123")
        tree = filling.commit("tree", 3, pin=True)
        cache.unpin(name)
        assert cache.fill(name, 3, "forever") is None
        times = {each: max(each.stat().st_atime_ns, each.stat().st_ctime_ns) for each in tree.parent.rglob("*") if each.is_file()}
        for each, used in times.items():
            if used <= times[tree / "file"] and each.name != ".windlass-facts":
                each.unlink()
        assert not cache.has(name)
        with pytest.raises(KeyError):
            cache.pin(name)


def test_cleaners_of_old_files_leave_the_folder_alone_while_a_worker_lives(cache: Cache, tmp_path: Path) -> None:
    """The real one of systemd, where there is one."""
    put(cache)
    folder = os.open(shared_of(cache).folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(folder)
    if shutil.which("systemd-tmpfiles") is None:
        return
    words = tmp_path / "words"
    words.write_text(f"d {tmp_path} - - - 0\nx {words}\n")
    clean = ["systemd-tmpfiles", "--clean", str(words)]
    subprocess.run(clean, check=True)
    assert cache.path(NAME, "data").read_bytes() == DATA
    cache.close()
    subprocess.run(clean, check=True)
    assert not shared_of(cache).folder.exists()


@pytest.mark.parametrize("broken", [False, True])
def test_after_a_boot_an_entry_is_compared_with_its_name_before_it_is_used(cache: Cache, broken: bool) -> None:
    """A node that crashed may have names of files without their bytes."""
    put(cache)
    put(cache, b"unknown", X3)
    for name in (NAME, X3):
        place = os.fspath(shared_of(cache).folder / name)
        facts = entries.read_facts(place)
        assert facts is not None
        entries.write_facts(place, entries.Facts(facts.size, facts.level, facts.base, facts.content, "another boot"))
        assert not cache.has(name)
    if broken:
        (shared_of(cache).folder / NAME / "data").chmod(0o600)
        (shared_of(cache).folder / NAME / "data").write_bytes(bytes(len(DATA)))
        put(cache)
    else:
        assert cache.fill(NAME, len(DATA), "forever") is None
    assert cache.path(NAME, "data").read_bytes() == DATA
    put(cache, b"made new", X3)  # nothing says what it must be
    assert cache.path(X3, "data").read_bytes() == b"made new"


def test_a_file_that_was_written_to_is_made_anew_also_by_a_later_worker(cache: Cache, tmp_path: Path) -> None:
    """The name says what is in it, and root may write to it whatever its mode."""
    put(cache)
    path = cache.path(NAME, "data")
    path.touch()
    assert not cache.is_untouched(NAME)
    assert cache.fill(NAME, len(DATA), "forever") is None  # only touched
    assert cache.is_untouched(NAME)
    path.chmod(0o700)
    path.write_bytes(DATA[::-1])
    path.chmod(0o500)
    later = Cache(tmp_path / "later", 1000, SharedCache(tmp_path / "shared", 1000))
    assert later.has(NAME)
    assert not later.is_untouched(NAME)
    put(later)
    assert later.is_untouched(NAME)
    assert path.read_bytes() == DATA
    later.close()


# ---------------------------------------------------------------- several


def test_one_fills_and_the_others_wait_and_find_it(cache: Cache, another: Callable[[], Worker]) -> None:
    one, two = another(), another()
    assert one.do("fill") == "filling"
    two.say("fill")
    waits(two, f"{NAME}.fill")
    assert one.do("write") == "write"
    assert not cache.has(NAME)
    assert one.do("commit") == "commit"
    assert two.hear() == "there"
    assert two.do("has") == "True"
    assert cache.path(NAME, "data").read_bytes() == DATA
    assert left_in(shared_of(cache).folder) == ["room"]


def test_many_at_once_fill_an_entry_once(cache: Cache, another: Callable[[], Worker]) -> None:
    workers = [another() for _ in range(4)]
    for worker in workers:
        worker.say("fill")
    heard: dict[int, str] = {}
    fillers = 0

    def hear(index: int, worker: Worker) -> None:
        heard[index] = worker.hear()
        if heard[index] == "filling":
            worker.do("write")
            worker.do("commit")

    threads = [threading.Thread(target=hear, args=each) for each in enumerate(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fillers = sum(word == "filling" for word in heard.values())
    assert (fillers, len(heard)) == (1, 4), heard
    assert all(worker.do("has") == "True" for worker in workers)
    assert not cache.damaged(NAME)


def test_a_filler_that_is_killed_lets_the_next_one_fill(cache: Cache, another: Callable[[], Worker]) -> None:
    """And what it left is gone, though nobody started anew."""
    one, two = another(), another()
    assert one.do("fill") == "filling"
    assert one.do("write") == "write"
    two.say("fill")
    waits(two, f"{NAME}.fill")
    one.kill()
    assert two.hear() == "filling"
    assert len([name for name in os.listdir(shared_of(cache).folder) if name.startswith(".t-")]) == 1
    two.do("write")
    two.do("commit")
    assert cache.path(NAME, "data").read_bytes() == DATA
    assert left_in(shared_of(cache).folder) == ["room"]


def test_what_dead_workers_left_is_removed_by_the_next_that_starts(cache: Cache, another: Callable[[], Worker], tmp_path: Path) -> None:
    """And not what living ones are making."""
    dead, alive = another(), another()
    assert dead.do("fill", X3) == "filling"
    assert alive.do("fill") == "filling"
    dead.kill()
    (shared_of(cache).folder / ".dead-1234").mkdir()
    SharedCache(tmp_path / "shared", 1000)
    left = left_in(shared_of(cache).folder)
    assert [name[: len(NAME) + 3] for name in left] == [f".t-{NAME}", f"{NAME}.fill"[: len(NAME) + 3], "room"]
    alive.do("write")
    assert alive.do("commit") == "commit"
    assert cache.has(NAME)


def test_what_another_worker_has_pinned_stays_until_it_dies(cache: Cache, another: Callable[[], Worker]) -> None:
    put(cache)
    other = another()
    assert other.do("pin") == "pin"
    cache.discard(NAME)
    assert cache.has(NAME)
    with pytest.raises(CacheFull):
        cache.fill(X3, 1000, "forever")
    other.kill()
    put(cache, bytes(1000), X3)
    assert not cache.has(NAME)


def test_the_limit_holds_for_all_together(cache: Cache, another: Callable[[], Worker]) -> None:
    """What another worker is making counts, as long as it lives."""
    other = another()
    assert other.do("fill", X3, 900) == "filling"
    with pytest.raises(CacheFull):
        cache.fill(R, 200, "forever")
    other.kill()
    put(cache, bytes(200), R)
    assert shared_of(cache).used == 200


def test_waiting_has_an_end(cache: Cache, another: Callable[[], Worker]) -> None:
    """Patience that is over, or the worker's own end."""
    other = another()
    assert other.do("fill") == "filling"
    text = rf"another worker of this node has been filling {NAME} in \S+ for over 0.1 s; see which process has \S+/{NAME}.fill open"
    with pytest.raises(CacheBusy, match=text) as caught:
        cache.fill(NAME, 1, "forever", patience=0.1)
    assert isinstance(caught.value, TimeoutError)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            cache.fill(NAME, 1, "forever")
        except Closed as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    shared_of(cache).close()
    thread.join(20)
    assert [str(error) for error in ended] == [f"the worker ends; {shared_of(cache).folder} was not waited for any longer"]
