"""Declared files on real workers: what functions see, how often a source is read, and what becomes of it when something is in the way."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.shared.ports import silent

import windlass
from windlass import Factory, File, FileUnavailable, FunctionCall, LibraryFailed, Manager, NotPicklable, UsageError

Start = Callable[..., windlass.Factory]
Until = Callable[..., None]
MB = 1 << 20


def read(path: Path) -> bytes:
    return path.read_bytes()


def read_below(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def look(path: Path, *others: Any, **named: Any) -> dict[str, Any]:
    """What a function can see of a file."""
    about = path.lstat()
    return {"path": str(path), "name": path.name, "mode": stat.S_IMODE(about.st_mode), "pid": os.getpid(), "others": (others, named)}


def walk(path: Path) -> dict[str, str]:
    """What is below a folder: by relative path a mode, a link's target, or "dir"."""
    found: dict[str, str] = {}
    for each in path.rglob("*"):
        kind = f"-> {os.readlink(each)}" if each.is_symlink() else "dir" if each.is_dir() else f"{stat.S_IMODE(each.stat().st_mode):o}"
        found[str(each.relative_to(path))] = kind
    return found


def hold(path: Path, gate: Path, folder: Path) -> tuple[int, int, str]:
    """Say that this worker has it, wait for the gate; worker's process, bytes, where it was."""
    size = path.stat().st_size
    (folder / f"{os.getpid()}").write_text(str(path))
    while not gate.exists():
        time.sleep(0.01)
    return os.getpid(), size, str(path)


@pytest.fixture
def run(manager: Manager, start_factory: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs one function with these arguments on a pilot of one core, and gives its result. Workers' folders are in ``node``."""
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    start_factory(cores=1)
    manager.install_library("lib", read, read_below, look, walk)

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return manager.submit(FunctionCall("lib", function.__name__, *args, **kwargs)).result(60)

    return call


# ---------------------------------------------------------------- what functions get


@pytest.mark.parametrize("name", ["data.csv", "with space", "new\nline", "Grüße 你好", "-rf"])
def test_a_function_gets_the_path_of_a_copy_with_the_files_own_name(
    manager: Manager, run: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    """Read-only, as all calls there share it."""
    source = tmp_path / name
    source.write_bytes(b"content")
    file = manager.declare_file(source)
    assert (file.size, file.name[:3]) == (7, "b3-")
    seen = run(look, file)
    assert (seen["name"], seen["mode"] & 0o222) == (name, 0)
    assert seen["path"].startswith(str(tmp_path / "node"))
    assert run(read, file) == b"content"


def test_a_tree_keeps_links_modes_and_empty_folders(manager: Manager, run: Callable[..., Any], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "sub" / "plain").write_text("x" * 100_000)
    (tree / "sub" / "plain").chmod(0o644)
    (tree / "link").symlink_to("sub/plain")
    file = manager.declare_file(tree)
    assert run(walk, file) == {
        "sub": "dir",
        "sub/empty": "dir",
        "run.sh": "755",
        "sub/plain": "644",
        "link": "-> sub/plain",
    }
    assert run(look, file)["name"] == "tree"


def test_files_may_stand_anywhere_in_the_arguments(manager: Manager, run: Callable[..., Any], tmp_path: Path) -> None:
    """In containers, by keyword, twice; and two names for one content are two paths."""
    one, two = manager.declare_buffer("same", "one.txt"), manager.declare_buffer(b"same", "two.txt")
    seen = run(look, one, [one, {"k": two}], key=(two,))
    (args, kwargs) = seen["others"]
    assert [path.name for path in (args[0][0], args[0][1]["k"], kwargs["key"][0])] == ["one.txt", "two.txt", "two.txt"]
    assert args[0][0].parent == args[0][1]["k"].parent
    three, four = manager.declare_buffer("other", "three.txt"), manager.declare_buffer(b"other", "four.txt")
    (args, _) = run(look, one, 7, three, "a", four, three, None)["others"]
    assert (args[0], args[2], args[5]) == (7, "a", None)
    assert [(path.name, path.read_text()) for path in (args[1], args[3], args[4])] == [
        (name, "other") for name in ("three.txt", "four.txt", "three.txt")
    ]


def test_a_shared_path_is_read_in_place_or_copied_to_the_node_once(manager: Manager, run: Callable[..., Any], tmp_path: Path) -> None:
    """As asked; by itself small files are copied, and what is not there yet or is a folder is not."""
    shared = tmp_path / "shared.bin"
    shared.write_bytes(b"s" * 1000)
    assert run(look, manager.declare_shared(shared, stage="never"))["path"] == str(shared)
    for stage in ("node", "auto"):
        file = manager.declare_shared(shared, stage=stage)
        assert run(look, file)["path"].startswith(str(tmp_path / "node"))
        assert run(read, file) == b"s" * 1000
    assert run(look, manager.declare_shared(tmp_path))["path"] == str(tmp_path)
    assert manager.declare_shared(tmp_path / "later").name == ""
    shared.write_bytes(b"new")  # another version is another file
    assert run(read, manager.declare_shared(shared)) == b"new"
    (folder := tmp_path / "folder").mkdir()
    (folder / "one").write_bytes(b"one")
    (folder / "sub").mkdir()
    declared = manager.declare_shared(folder, stage="node")
    assert sorted(run(walk, declared)) == ["one", "sub"]
    assert manager.declare_shared(folder, stage="node").name == declared.name
    (folder / "one").write_bytes(b"two")
    changed = manager.declare_shared(folder, stage="node")
    assert run(read_below, changed, "one") == b"two"
    (folder / "sub" / "more").touch()
    assert sorted(run(walk, manager.declare_shared(folder, stage="node"))) == ["one", "sub", "sub/more"]


@pytest.mark.parametrize("size", [3, 100_000])
def test_a_file_whose_name_is_no_text_goes_to_calls_or_is_refused(
    manager: Manager, run: Callable[..., Any], tmp_path: Path, size: int
) -> None:
    """In messages its path cannot stand; nobody's session ends by it, or the status."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = folder / "data"
    path.write_bytes(b"x" * size)
    assert run(read, manager.declare_file(path)) == b"x" * size
    assert sorted(run(walk, manager.declare_file(folder))) == ["data"]
    assert run(read, manager.declare_shared(path, stage="never")) == b"x" * size
    with pytest.raises(UsageError, match="that is not UTF-8, so no message can say it; declare a link to it with another name"):
        manager.declare_shared(path)
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert run(read, manager.declare_shared(link / "data", stage="node")) == b"x" * size
    with windlass.attach(manager.connection_file) as attached:
        attached.install_library("theirs", read)
        file = attached.declare_file(path)
        assert attached.submit(FunctionCall("theirs", "read", file)).result(60) == b"x" * size
        with pytest.raises(UsageError, match="is not UTF-8, so no message can tell the manager where this directory tree is"):
            attached.declare_file(folder)
        assert attached.status()["files"]


def test_an_archive_is_unpacked_once_for_each_worker(manager: Manager, run: Callable[..., Any], tmp_path: Path) -> None:
    packed = tmp_path / "models.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        for name, data in (("a/b.txt", b"b"), ("c", b"c" * 10_000)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    file = manager.declare_archive(packed)
    assert sorted(run(walk, file)) == ["a", "a/b.txt", "c"]
    assert run(look, file)["name"] == "models"
    first = run(look, file)
    assert run(look, manager.declare_archive(packed))["path"] == first["path"]


def test_a_file_is_served_as_long_as_a_call_that_waits_needs_it(manager: Manager, start_factory: Start, tmp_path: Path) -> None:
    """Nobody has to keep the object that declared it."""
    manager.install_library("lib", read)
    source = tmp_path / "data"
    source.write_bytes(b"kept")
    future = manager.submit(FunctionCall("lib", "read", manager.declare_file(source)))
    start_factory(cores=1)
    assert future.result(60) == b"kept"


def test_programs_that_attach_declare_files_too(manager: Manager, run: Callable[..., Any], tmp_path: Path) -> None:
    """Paths on the manager's machine, trees, and buffers."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "x").write_text("x")
    with windlass.attach(manager.connection_file) as attached:
        attached.install_library("theirs", read, walk)
        assert attached.submit(FunctionCall("theirs", "read", attached.declare_buffer("theirs"))).result(60) == b"theirs"
        assert attached.submit(FunctionCall("theirs", "walk", attached.declare_file(tmp_path / "tree"))).result(60)["x"]
        assert attached.submit(FunctionCall("theirs", "read", attached.declare_file(tmp_path / "tree" / "x"))).result(60) == b"x"
        with pytest.raises(UsageError, match="was declared at another manager"):
            attached.submit(FunctionCall("theirs", "read", manager.declare_buffer("mine")))


# ---------------------------------------------------------------- many workers


@pytest.fixture
def several(manager: Manager, start_factory: Start, tmp_path: Path, until: Until) -> Iterator[Callable[..., list[Any]]]:
    """Gives a file to four workers of one core at once: what `hold` says on each, when all have it and ``meanwhile`` is over."""
    manager.install_library("holds", hold)
    folder, gate = tmp_path / "have", tmp_path / "gate"
    folder.mkdir()
    started: list[Factory] = []

    def give(file: File, meanwhile: Callable[[], object] = lambda: None) -> list[Any]:
        if not started:
            started.append(start_factory(cores=1, max_pilots=4))
        futures = [manager.submit(FunctionCall("holds", "hold", file, gate, folder)) for _ in range(4)]
        meanwhile()
        until("all have it", lambda: len(list(folder.iterdir())) >= 4)
        gate.touch()
        return [future.result(60) for future in futures]

    yield give
    gate.touch()


def test_one_copy_comes_from_the_source_and_the_others_from_workers(
    manager: Manager, several: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """The bytes leave the program's machine once, whatever the number of workers."""
    source = tmp_path / "big"
    source.write_bytes(os.urandom(20 * MB))
    file = manager.declare_file(source)
    told = several(file)
    assert len({pid for pid, _, _ in told}) == 4
    assert {size for _, size, _ in told} == {20 * MB}
    assert len({path for _, _, path in told}) == 4
    [status] = manager.status()["files"]
    assert (status["source"], status["origin_reads"], status["replicas"]) == (str(source), 1, 4)
    assert manager.status()["transfers"]["bytes_from_manager"] == 20 * MB


class Web(ThreadingHTTPServer):
    """Serves ``pages``; counts what is asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.busy = False
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                page = web.pages.get(self.path)
                self.send_response(503 if web.busy else 200 if page is not None else 404)
                self.send_header("Content-Length", str(len(page or b"")))
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        thread = threading.Thread(target=partial(web.serve_forever, poll_interval=0.05))
        thread.start()
        yield web
        web.shutdown()
        thread.join()


def test_a_url_is_asked_once_for_all_workers(manager: Manager, several: Callable[..., list[Any]], web: Web) -> None:
    """Its size is not known before."""
    web.pages["/data/set.bin"] = os.urandom(3 * MB)
    file = manager.declare_url(f"{web.address}/data/set.bin?v=1")
    web.pages["/data/set.bin?v=1"] = web.pages["/data/set.bin"]
    told = several(file)
    assert {size for _, size, _ in told} == {3 * MB}
    assert {os.path.basename(path) for _, _, path in told} == {"set.bin"}
    assert web.asked == ["/data/set.bin?v=1"]


def test_a_worker_that_is_killed_while_it_serves_others_delays_them_only(
    manager: Manager, several: Callable[..., list[Any]], tmp_path: Path, until: Until
) -> None:
    """Its own call runs again elsewhere; who was fetching from it goes on from another source at the byte it had reached."""
    source = tmp_path / "big"
    source.write_bytes(os.urandom(64 * MB))

    def kill_the_first() -> None:
        until("one has it", lambda: any(file["replicas"] for file in manager.status()["files"]))
        [holder] = [worker for worker in manager.status()["workers"] if worker["files"]][:1]
        os.kill(holder["pid"], signal.SIGKILL)

    told = several(manager.declare_file(source), kill_the_first)
    assert {size for _, size, _ in told} == {64 * MB}


def test_a_damaged_replica_is_found_by_who_fetches_it_and_is_fetched_again(
    manager: Manager, several: Callable[..., list[Any]], run: Callable[..., Any], tmp_path: Path, until: Until
) -> None:
    """Nobody gets wrong bytes, and the replica goes."""
    source = tmp_path / "big"
    source.write_bytes(os.urandom(4 * MB))
    file = manager.declare_file(source)
    held = Path(run(look, file)["path"])
    manager.install_library("busy", hold)
    (tmp_path / "here").mkdir()
    busy = manager.submit(FunctionCall("busy", "hold", manager.declare_buffer("x"), tmp_path / "gate", tmp_path / "here"))
    until("the first worker is busy", lambda: list((tmp_path / "here").iterdir()))
    held.chmod(0o600)
    with held.open("r+b") as changed:
        changed.write(b"damage")
    for _, _, path in several(file, lambda: until("it is removed", lambda: not held.exists())):
        assert Path(path).read_bytes() == source.read_bytes()
    assert busy.result(60)


# ---------------------------------------------------------------- what is in the way


@pytest.mark.parametrize("what", ["changed", "deleted", "tree"])
def test_a_source_that_is_not_what_was_declared_ends_the_call_with_that(
    manager: Manager, run: Callable[..., Any], tmp_path: Path, what: str
) -> None:
    """It names the path, and other calls go on. Declared again it is what it is now."""
    source = tmp_path / "source" / "data"
    source.parent.mkdir()
    source.write_bytes(b"before" * 20_000)
    file = manager.declare_file(source.parent if what == "tree" else source)
    if what == "deleted":
        source.unlink()
    else:
        source.write_bytes(b"and after")
    with pytest.raises(FileUnavailable, match=f"{source}.*(has changed|is gone|changed).*declare"):
        run(look, file)
    assert run(read, manager.declare_buffer("others")) == b"others"
    if what == "changed":
        assert run(read, manager.declare_file(source)) == b"and after"


def test_small_files_come_with_the_call(manager: Manager, run: Callable[..., Any], tmp_path: Path) -> None:
    """As they were when they were declared, and no worker asks for them."""
    source = tmp_path / "a setting.ini"
    source.write_bytes(b"before" * 10_000)
    small = [manager.declare_file(source), manager.declare_buffer(b"a buffer", "b"), manager.declare_buffer(b"", "nothing")]
    source.write_bytes(b"after")
    assert [run(read, file) for file in small] == [b"before" * 10_000, b"a buffer", b""]
    assert run(read, manager.declare_file(source)) == b"after"
    assert manager.status()["transfers"]["bytes_from_manager"] == 0


def test_a_url_that_is_not_there_ends_the_call_with_the_servers_answer(manager: Manager, run: Callable[..., Any], web: Web) -> None:
    with pytest.raises(FileUnavailable, match=r"/nothing.*404"):
        run(read, manager.declare_url(f"{web.address}/nothing"))


def test_a_server_that_is_not_there_is_asked_again_and_then_told() -> None:
    with silent() as port, Manager(file_patience=5.0) as manager, Factory(manager, "local", cores=1):
        manager.install_library("lib", read)
        call = FunctionCall("lib", "read", manager.declare_url(f"http://127.0.0.1:{port}/page"))
        with pytest.raises(FileUnavailable, match=r"127.0.0.1.*refused.*tried for .*file_patience") as caught:
            manager.submit(call).result(60)
    assert "file x" not in str(caught.value)  # no name that nobody gave


def test_a_server_that_does_not_answer_for_a_while_is_waited_for_and_other_calls_go_on(
    manager: Manager, run: Callable[..., Any], web: Web, until: Until, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On the only slot. What is unpacked of such a file is no other matter."""
    with tarfile.open(tmp_path / "soft.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("program"))
    urls = [manager.declare_url(f"{web.address}/{name}") for name in ("page", "soft.tar")]
    calls = [FunctionCall("lib", "read", urls[0]), FunctionCall("lib", "walk", manager.declare_archive(urls[1]))]
    web.busy = True
    waiting = [manager.submit(call) for call in calls]
    until("both are given back", lambda: manager.status()["calls"]["waiting_for_files"] == 2)
    assert run(read, manager.declare_buffer(b"meanwhile", "other")) == b"meanwhile"
    assert [row["away"] for row in manager.status()["files"] if "/page" in row["source"]] == [
        f"{web.address}/page: 503 Service Unavailable"
    ]
    [warning] = [record.message for record in caplog.records if "a file cannot be had now" in record.message]
    assert "503 Service Unavailable; what needs it waits up to 10min" in warning
    web.pages["/page"], web.pages["/soft.tar"] = b"at last", (tmp_path / "soft.tar").read_bytes()
    web.busy = False
    assert waiting[0].result(60) == b"at last"
    assert waiting[1].result(60) == {"program": "644"}


@pytest.mark.parametrize("name", ["../out", "/tmp/out"])
def test_an_archive_that_would_write_elsewhere_is_refused(manager: Manager, run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    packed = tmp_path / "evil.tar"
    with tarfile.open(packed, "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(FileUnavailable, match="out"):
        run(walk, manager.declare_archive(packed))


def test_a_cache_that_somebody_deletes_is_filled_again(manager: Manager, run: Callable[..., Any], tmp_path: Path) -> None:
    """Also while its worker knows the file as here: the call is given back and runs again, without the user's doing."""
    source = tmp_path / "data"
    source.write_bytes(b"again")
    file = manager.declare_file(source)
    path = Path(run(look, file)["path"])
    for _ in range(2):
        path.parent.chmod(0o700)
        path.unlink()
        future = manager.submit(FunctionCall("lib", "read", file))
        assert future.result(60) == b"again"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "small", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_file_that_does_not_fit_ends_its_call_and_hurts_nothing_else(
    manager: Manager, start_factory: Start, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text says how much there is, and what to do."""
    monkeypatch.setenv("TMPDIR", str(small_disk))
    start_factory(cores=1)
    manager.install_library("lib", read)
    (tmp_path / "large").write_bytes(bytes(20 * MB))
    small = manager.submit(FunctionCall("lib", "read", manager.declare_buffer("fits")))
    large = manager.submit(FunctionCall("lib", "read", manager.declare_file(tmp_path / "large")))
    with pytest.raises(FileUnavailable, match=r"no room for file .* \(21MB\) in the cache .*small.* of 4\.19MB are used"):
        large.result(60)
    assert small.result(60) == b"fits"
    assert manager.submit(FunctionCall("lib", "read", manager.declare_buffer("fits too"))).result(60) == b"fits too"
    assert manager.stats.workers == 1


def stay(text: str) -> bytes:
    """Enough to be kept where it is."""
    return text.encode() * MB


def held(gate: Path) -> int:
    """Wait for the gate; how often this has begun."""
    with open(f"{gate}.begun", "a") as begun:
        begun.write(".")
    while not gate.exists():
        time.sleep(0.01)
    return Path(f"{gate}.begun").stat().st_size


@pytest.fixture
def without_cache(manager: Manager, start_factory: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pilot serves, and its cache cannot be made when it is first needed."""
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    start_factory(max_pilots=2)
    manager.install_library("lib", read, held, stay)
    assert manager.submit(FunctionCall("lib", "read", tmp_path / "node" / "none")).exception(60) is not None
    [cache] = [scratch / "cache" for scratch in (tmp_path / "node").glob("windlass-scratch-*")]
    shutil.rmtree(cache, ignore_errors=True)
    cache.touch()


def test_a_cache_that_cannot_be_made_hangs_nobody_who_needs_it(manager: Manager, without_cache: None, tmp_path: Path) -> None:
    """A call whose result is to stay ends with the reason; a library with an environment is tried on the next worker."""
    future = manager.submit(FunctionCall("lib", "stay", "x").with_options(keep="worker"))
    with pytest.raises(FileUnavailable, match=r"the result could not be kept on .*File exists.*cache"):
        future.result(30)
    with tarfile.open(tmp_path / "environment.tar", "w"):
        pass
    manager.install_library("packed", stay, environment=tmp_path / "environment.tar")
    with pytest.raises(LibraryFailed, match=r"the environment of library packed: environment has no bin/python3"):
        manager.submit(FunctionCall("packed", "stay", "x")).result(30)


def test_where_the_cache_cannot_be_made_calls_with_files_go_elsewhere_and_nothing_is_cut_off(
    manager: Manager, without_cache: None, tmp_path: Path, until: Until
) -> None:
    """What runs on that worker runs on."""
    running = manager.submit(FunctionCall("lib", "held", tmp_path / "gate"))
    until("it runs", (tmp_path / "gate.begun").exists)
    assert manager.submit(FunctionCall("lib", "read", manager.declare_buffer("elsewhere"))).result(30) == b"elsewhere"
    (tmp_path / "gate").touch()
    assert running.result(30) == 1


def test_a_file_for_ever_is_there_for_the_next_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same node: its workers share a private folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    source = tmp_path / "model"
    source.write_bytes(b"m" * 100_000)
    paths: list[str] = []
    for expected in (100_000, 0):
        with Manager() as manager, Factory(manager, "local", cores=1):
            manager.install_library("lib", look)
            paths.append(manager.submit(FunctionCall("lib", "look", manager.declare_file(source, "forever"))).result(60)["path"])
            assert manager.status()["transfers"]["bytes_from_manager"] == expected
            for folder in (*tmp_path.glob("windlass-files-*"), *tmp_path.glob("windlass-scratch-*")):
                descriptor = os.open(folder, os.O_RDONLY)
                with pytest.raises(BlockingIOError):  # it is locked: cleaners of /tmp leave it alone
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.close(descriptor)
    assert os.path.dirname(os.path.dirname(os.path.dirname(paths[0]))) != os.path.dirname(os.path.dirname(os.path.dirname(paths[1])))
    [shared] = tmp_path.glob("windlass-files-*")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o700


def test_a_pruned_file_leaves_its_workers_and_a_released_one_stays(manager: Manager, run: Callable[..., Any], until: Until) -> None:
    """Declared again, the one that stayed is not sent again."""
    for prune in (False, True):
        file = manager.declare_buffer(f"here {prune}", f"{prune}.txt")
        path = Path(run(look, file)["path"])
        file.prune() if prune else file.release()
        if prune:
            until("it is gone", lambda path=path: not path.exists())
        else:
            before = manager.status()["transfers"]["bytes_from_manager"]
            again = manager.declare_buffer(f"here {prune}", f"{prune}.txt")
            assert run(look, again)["path"] == str(path)
            assert manager.status()["transfers"]["bytes_from_manager"] == before


# ---------------------------------------------------------------- refused where it is written


def test_a_file_in_a_closure_is_refused_where_it_is_submitted(manager: Manager) -> None:
    """Nobody would see that the call needs it."""
    file = manager.declare_buffer("x")
    with pytest.raises((NotPicklable, UsageError), match="can only be passed as an argument of a call"):
        manager.submit_function(lambda: file)


WRONG_DECLARATIONS: list[tuple[Callable[[Any, Path], object], str]] = [
    (lambda m, p: m.declare_file(p / "no"), "No such file or directory; declare a file or folder of this machine"),
    (lambda m, p: m.declare_file(""), "give a path"),
    (lambda m, p: m.declare_file(7), "give a path"),
    (lambda m, p: m.declare_file("/dev/null"), "neither a regular file nor a folder"),
    (lambda m, p: m.declare_file(p, "always"), "is no level of a file: write level= one of 'call', 'workflow', 'worker', 'forever'"),
    (lambda m, p: m.declare_buffer(7), "takes bytes or text, not int"),
    (lambda m, p: m.declare_buffer("x", "a/b"), "cannot be a file's name"),
    (lambda m, p: m.declare_buffer("x", ".."), r"cannot be a file's name"),
    (lambda m, p: m.declare_url("ftp://x/y"), "begins with http://, https:// or file://"),
    (lambda m, p: m.declare_url("data"), "begins with http://, https:// or file://"),
    (lambda m, p: m.declare_shared(p / "no", stage="node"), "No such file or directory; it cannot be copied"),
    (lambda m, p: m.declare_shared(p, stage="once"), "write stage='auto', 'node' or 'never'"),
    (lambda m, p: m.declare_archive(m.declare_shared(p)), "it is read in place; declare it with stage='node'"),
]


@pytest.mark.parametrize(("declare", "text"), WRONG_DECLARATIONS)
def test_a_wrong_declaration_is_refused_with_the_right_line(
    manager: Manager, tmp_path: Path, declare: Callable[[Any, Path], object], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        declare(manager, tmp_path)


def test_taskvines_words_are_understood(manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    levels = [manager.declare_file(tmp_path / "x", cache=word).ref.level for word in (True, False, "workflow", "always", "forever")]  # type: ignore[union-attr]
    assert levels == ["workflow", "call", "workflow", "forever", "forever"]
