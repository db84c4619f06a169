"""The worker as pilots run it, a real process, against a small manager made of the real listener.

Each way that a call can go, and each way that a worker can end.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from tests.shared.ports import silent

from windlass import __version__, nearby, pickling
from windlass.dataplane import DataServer
from windlass.identity import Authority, Identity
from windlass.links import Link
from windlass.listener import Listener
from windlass.messages import (
    BAD_CALL,
    CANCELLED,
    CANNOT_SERVE,
    DIED,
    OUT_OF_BAND_BYTES,
    OUT_OF_MEMORY,
    RETURNED,
    TIMED_OUT,
    AddFunctions,
    CallEnd,
    CallId,
    CallRun,
    CallsEnded,
    CallsReturned,
    CancelCalls,
    CertificateIssued,
    CertificateRequest,
    Drain,
    FunctionDef,
    FunctionId,
    Goodbye,
    HeldCall,
    Hello,
    InstanceId,
    Leave,
    LibraryFailed,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    LibraryStopped,
    Message,
    ObjectName,
    ObjectRef,
    RecallCalls,
    Refused,
    RunCalls,
    StartLibrary,
    StopLibrary,
    Welcome,
    WorkerDraining,
    WorkerReport,
)
from windlass.object_store import ObjectStore
from windlass.store_folders import named_folders
from windlass.worker.guardian import VARIABLE
from windlass.worker.shortcut import PLACES

cloudpickle: Any = importlib.import_module("cloudpickle")  # it has no types
# Slots cannot import this file, so its functions travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

M = TypeVar("M", bound=Message)
LIB = InstanceId(7)


def add(left: int, right: int) -> int:
    return left + right


def double(data: Any) -> Any:
    return data * 2


def length(data: Any) -> int:
    return len(data)


def wait_for(path: str) -> str:
    """Say that it runs, and wait until a file is there."""
    import pathlib
    import time

    pathlib.Path(path + ".started").touch()
    while not pathlib.Path(path).exists():
        time.sleep(0.002)
    return "seen"


def hog(size: int) -> int:
    """Use memory and keep it."""
    import time

    kept = bytearray(size)
    kept[::4096] = b"x" * len(kept[::4096])
    time.sleep(600)
    return len(kept)


def nest(depth: int) -> None:
    """Leave a folder in a folder in a folder."""
    import os

    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")


def save_and_wait_for(path: str) -> tuple[float, float]:
    """Leave a checkpoint when warned, and say how much time was left before and after that."""
    import pathlib
    import time

    import windlass

    before = windlass.time_left()
    with windlass.on_warning(lambda seconds: pathlib.Path(path + ".saved").write_text(f"{seconds}")):
        pathlib.Path(path + ".started").touch()
        while not pathlib.Path(path).exists():
            time.sleep(0.002)
    return before, windlass.time_left()


class Manager:
    """Welcomes workers, records what they say, and says what a test tells it to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: What workers write to stderr.
        self.errors = folder / "stderr"
        self.authority = Authority.create("test-manager", folder / "state")
        self.store = ObjectStore(folder / "store", 1 << 30)
        self.listener = Listener(self.authority, self, serve_data=DataServer(self.store))
        self.hellos: list[Hello] = []
        self.identities: list[Identity] = []
        self.heard: list[Message] = []
        self.ends: dict[int, CallEnd] = {}
        self.returned: list[tuple[str, int]] = []
        self.changed = asyncio.Event()
        self.link: Link | None = None
        self.refusal: Refused | None = None
        self.manager_timeout = 60.0
        self.shares_host = True
        self.sessions = 0
        self.processes: list[asyncio.subprocess.Process] = []
        self.functions: dict[Callable[..., Any], FunctionId] = {}

    # -- the listener's handler

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        self.identities.append(identity)
        if hello.purpose == "control":
            self.hellos.append(hello)
        if self.refusal is not None:
            return self.refusal
        known = hello.session in self.listener.links
        self.sessions += not known and hello.purpose == "control"
        session = hello.session if known else f"session-{self.sessions}"
        store, token = (str(self.store.folder), self.store.token) if self.shares_host else ("", "")
        return Welcome(session, 0, "test-manager", __version__, 0.5, 10.0, self.manager_timeout, store, token)

    def attach(self, session: str, link: Link) -> None:
        self.link = link
        link.on_messages = self._hear
        link.on_resumed = lambda _: self.changed.set()
        self.changed.set()

    def _hear(self, batch: list[Message]) -> None:
        self.heard += batch
        for message in batch:
            if isinstance(message, CallsEnded):
                for end in message.ends:
                    assert end.call not in self.ends, "ended twice"
                    self.ends[end.call] = end
            elif isinstance(message, CallsReturned):
                self.returned += [(message.reason, item.call) for item in message.calls]
        self.changed.set()

    # -- what tests do

    async def worker(self, *options: str, attached: bool = True) -> asyncio.subprocess.Process:
        """Start a worker; with `attached`, wait until it has said hello."""
        if not self.listener.addresses:
            await self.listener.listen(["127.0.0.1"])
            self.authority.set_addresses(self.listener.addresses)
        words = ["--connection", str(self.authority.pilot_file), "--scratch", str(self.folder / "scratch"), "--cores", "2", *options]
        with self.errors.open("ab") as err:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "windlass.worker", *words, stdin=asyncio.subprocess.DEVNULL, stderr=err
            )
        self.processes.append(process)
        if attached:
            await self.until(lambda: self.link is not None)
        return process

    def say(self, *messages: Message) -> None:
        assert self.link is not None
        self.link.send(*messages)

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for this to be true."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self.changed.clear()
                    with contextlib.suppress(TimeoutError):  # that a connection has ended is not heard
                        await asyncio.wait_for(self.changed.wait(), 0.05)
        except TimeoutError:
            pytest.fail(f"not within {seconds:g} s; heard: {self.heard}; the worker wrote: {self.errors.read_text()}")

    async def hear(self, kind: type[M]) -> M:
        """The first message of this kind."""
        await self.until(lambda: any(isinstance(message, kind) for message in self.heard))
        return next(message for message in self.heard if isinstance(message, kind))

    def define(self, function: Callable[..., Any]) -> FunctionDef:
        self.functions[function] = FunctionId(os.urandom(16))
        return FunctionDef(self.functions[function], function.__name__, cloudpickle.dumps(function))

    async def library(self, *functions: Callable[..., Any], slots: int = 1) -> LibraryReady:
        """Have an instance with these functions that serves."""
        definitions = tuple(self.define(function) for function in functions)
        spec = LibrarySpec(LibraryId("lib@1"), "lib", sys.version_info[:2], definitions)
        self.say(StartLibrary(LIB, spec, slots))
        return await self.hear(LibraryReady)

    def call(self, number: int, function: Callable[..., Any], *args: Any, timeout: float = 0.0) -> CallRun:
        payload, spans = pickling.pack_call(args, {}, self.store.put)
        return CallRun(CallId(number), 1, LIB, self.functions[function], payload, spans, timeout)

    async def end(self, number: int) -> CallEnd:
        await self.until(lambda: number in self.ends)
        return self.ends[number]

    def value(self, end: CallEnd) -> Any:
        assert end.outcome == RETURNED, end
        return pickling.unpack_result(end.payload, end.spans, self.store.open)

    async def started(self, *paths: Path) -> None:
        """Wait until calls of `wait_for` run; only the file tells."""
        async with asyncio.timeout(20):
            while not all(os.path.exists(f"{path}.started") for path in paths):  # noqa: ASYNC240 (a local file)
                await asyncio.sleep(0.002)

    async def saved(self, path: Path) -> float:
        """The seconds that a call of `save_and_wait_for` was warned with; only the file tells."""
        text = ""
        async with asyncio.timeout(20):
            while not text:
                await asyncio.sleep(0.002)
                with contextlib.suppress(FileNotFoundError):
                    text = Path(f"{path}.saved").read_text()  # noqa: ASYNC240 (a local file)
        return float(text)

    async def close(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await self.listener.close()
        self.store.close()


def marked(mark: bytes) -> list[int]:
    found: list[int] = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(int(name))
    return found


async def all_gone(mark: bytes, seconds: float = 20.0) -> None:
    """Wait until no process bears the mark; only /proc tells."""
    async with asyncio.timeout(seconds):
        while marked(mark):
            await asyncio.sleep(0.005)


def mark_of(pid: int) -> bytes:
    block = Path(f"/proc/{pid}/environ").read_bytes()
    return next(word for word in block.split(b"\0") if word.startswith(f"{VARIABLE}=".encode()))


async def status(process: asyncio.subprocess.Process, seconds: float = 15.0) -> int:
    """Exit status of a worker that is about to end."""
    async with asyncio.timeout(seconds):
        return await process.wait()


@pytest_asyncio.fixture
async def manager(tmp_path: Path, nothing_left_running: None) -> AsyncIterator[Manager]:
    (tmp_path / "scratch").mkdir()
    it = Manager(tmp_path)
    yield it
    await it.close()


def store_of(process: asyncio.subprocess.Process, manager: Manager) -> Path:
    name = f"windlass-worker-*-{process.pid}-*-*"
    (folder,) = (*Path("/dev/shm").glob(name), *(manager.folder / "scratch").rglob(name))
    return folder


def left_for_the_cache(scratch: Path) -> list[list[str]]:
    return [os.listdir(folder) for folder in scratch.glob("windlass-scratch-*/cache-kept")]


def is_there(folder: Path) -> bool:
    return folder.is_dir()


def scratch_is_empty(manager: Manager) -> bool:
    """Nor is there a link to what was there."""
    scratch = manager.folder / "scratch"
    links = [path for place in PLACES for path, is_link, _ in named_folders(place) if is_link]
    return not list(scratch.iterdir()) and not [path for path in links if os.path.realpath(path).startswith(f"{scratch}/")]


pytestmark = pytest.mark.asyncio


# ---------------------------------------------------------------- calls


async def test_calls_run_and_each_ends_once(manager: Manager) -> None:
    """Many calls over two slots; then the instance is stopped, and the worker leaves with nothing behind."""
    process = await manager.worker("--pool", "p", "--pilot", "12.0", "--worker-id", "w1")
    info = manager.hellos[0].worker
    assert info is not None
    assert (info.pool, info.pilot, info.resources.cores, info.pid) == ("p", "12.0", 2.0, process.pid)
    assert info.resources.memory > 0
    ready = await manager.library(add, slots=2)
    assert ready.pid
    manager.say(RunCalls([manager.call(number, add, number, 1) for number in range(3000)]))
    await manager.until(lambda: len(manager.ends) == 3000)
    assert [manager.value(manager.ends[number]) for number in (0, 1, 2999)] == [1, 2, 3000]
    manager.say(StopLibrary(LIB))
    await manager.hear(LibraryStopped)
    manager.say(Leave("the run is over"))
    assert await status(process) == 0
    assert (await manager.hear(Goodbye)).reason == "the run is over"
    assert scratch_is_empty(manager)


@pytest.mark.parametrize("shares_host", [True, False], ids=["by path", "by bytes"])
async def test_large_arguments_come_first_and_large_results_go_first(manager: Manager, shares_host: bool) -> None:
    """When the end of the call is told, the manager has the object of its result. That somebody removes the worker's store meanwhile, as
    epilogs of other jobs do, costs nothing but that arguments come once more."""
    manager.shares_host = shares_host
    process = await manager.worker()
    await manager.library(double)
    data = os.urandom(3 * OUT_OF_BAND_BYTES)
    call = manager.call(1, double, data)
    assert call.spans
    manager.say(RunCalls([call]))
    end = await manager.end(1)
    assert end.spans
    assert all(manager.store.has(ref.name) for ref in end.spans)
    assert manager.value(end) == data * 2
    shutil.rmtree(store_of(process, manager))
    manager.say(RunCalls([manager.call(2, double, data)]))
    assert manager.value(await manager.end(2)) == data * 2
    assert not manager.returned


async def test_large_arguments_that_do_not_fit_together_come_one_after_the_other(manager: Manager) -> None:
    """A worker is sent more calls than its store has room for: they wait for each other, and none is lost by it."""
    await manager.worker("--memory", str(512 << 20))  # of which objects get a quarter
    await manager.library(length)
    calls = [manager.call(number, length, os.urandom(16 << 20)) for number in range(12)]
    manager.say(RunCalls(calls))
    await manager.until(lambda: len(manager.ends) == len(calls))
    assert {manager.value(end) for end in manager.ends.values()} == {16 << 20}
    assert not manager.returned


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what is another user's")
async def test_a_store_that_another_user_has_made_anew_is_not_used_and_the_worker_drains(manager: Manager) -> None:
    """Its name was there for all to see; what is in it is unpickled. Neither arguments nor results go there, and others are to serve."""
    process = await manager.worker()
    await manager.library(double)
    store = store_of(process, manager)
    shutil.rmtree(store)
    store.mkdir()
    store.chmod(0o777)
    os.chown(store, 65534, 65534)
    manager.say(RunCalls([manager.call(1, double, 21)]))  # needs no store; in one message with the other it might come back too
    assert manager.value(await manager.end(1)) == 42
    manager.say(RunCalls([manager.call(2, double, os.urandom(OUT_OF_BAND_BYTES))]))
    draining = (await manager.hear(WorkerDraining)).reason
    assert f"{store}: it belongs to another user (number 65534), who has made it since ours was cleaned away" in draining
    await manager.hear(Goodbye)
    assert manager.returned == [("draining", 2)]


async def test_a_result_that_cannot_stay_leaves_nothing(manager: Manager, mounted: Path) -> None:
    """The cache has no room for it, and nothing else counts what slots leave for the cache."""
    process = await manager.worker("--scratch", str(mounted))
    await manager.library(double)
    call = manager.call(1, double, b"x" * 300_000)
    call.keep = "0" * 24
    manager.say(RunCalls([call]))
    end = await manager.end(1)
    assert end.outcome == DIED  # so that retries hold, which may go elsewhere
    assert end.detail is not None
    assert end.detail.text.startswith("the result could not be kept on ")
    assert left_for_the_cache(mounted) == [[]]
    manager.say(Leave("the run is over"))
    assert await status(process) == 0


async def test_a_call_whose_object_is_nowhere_fails_with_a_text(manager: Manager) -> None:
    """And the next call runs."""
    await manager.worker()
    await manager.library(double)
    lost = ObjectRef(ObjectName("b3-" + "0" * 32), 100_000)
    manager.say(RunCalls([CallRun(CallId(1), 1, LIB, manager.functions[double], b"", (lost,)), manager.call(2, double, 4)]))
    end = await manager.end(1)
    assert end.outcome == BAD_CALL
    assert end.detail is not None
    assert lost.name in end.detail.text
    assert manager.value(await manager.end(2)) == 8


async def test_functions_are_added_to_a_live_instance(manager: Manager) -> None:
    """Small ones in the message, large ones as objects that are fetched first."""
    await manager.worker()
    await manager.library()
    small = manager.define(add)
    large = manager.define(double)
    ref = manager.store.put(large.blob)
    manager.say(AddFunctions((small, FunctionDef(large.id, large.name, b"", ref))))
    manager.say(RunCalls([manager.call(1, add, 1, 2), manager.call(2, double, 3)]))
    assert manager.value(await manager.end(1)) == 3
    assert manager.value(await manager.end(2)) == 6


async def test_a_library_whose_code_is_nowhere_fails(manager: Manager) -> None:
    """Its calls go back."""
    await manager.worker()
    lost = ObjectRef(ObjectName("b3-" + "0" * 32), 100_000)
    spec = LibrarySpec(LibraryId("lib@1"), "lib", sys.version_info[:2], (manager.define(add),), code=(lost,))
    manager.say(StartLibrary(LIB, spec, 1), RunCalls([manager.call(1, add, 1, 2)]))
    failed = await manager.hear(LibraryFailed)
    assert lost.name in failed.text
    await manager.until(lambda: manager.returned == [("instance", 1)])


async def test_running_calls_end_at_their_timeout_and_when_cancelled(manager: Manager, tmp_path: Path) -> None:
    """Unstarted ones are cancelled without running, unknown ones come back as unknown; the slot works on."""
    await manager.worker()
    await manager.library(wait_for, add)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate), timeout=0.2)]))
    end = await manager.end(1)
    assert end.outcome == TIMED_OUT
    assert end.detail is not None
    assert "timeout of 0.2 s" in end.detail.text
    other = tmp_path / "other"
    manager.say(RunCalls([manager.call(2, wait_for, str(other)), manager.call(3, add, 1, 1), manager.call(4, add, 2, 2)]))
    await manager.started(other)
    manager.say(CancelCalls((HeldCall(CallId(3), 1), HeldCall(CallId(2), 1), HeldCall(CallId(99), 1))))
    assert (await manager.end(3)).outcome == CANCELLED
    assert (await manager.end(2)).outcome == CANCELLED
    assert manager.value(await manager.end(4)) == 4
    assert ("unknown", 99) in manager.returned


async def test_a_stopped_slot_is_ended_at_the_timeout_of_its_call(manager: Manager, tmp_path: Path) -> None:
    """SIGSTOP from outside does not keep a call for ever."""
    process = await manager.worker()
    ready = await manager.library(wait_for, add)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate), timeout=3.0)]))
    await manager.started(gate)
    slots = [pid for pid in marked(mark_of(ready.pid)) if pid != ready.pid]
    assert slots
    for pid in slots:
        os.kill(pid, signal.SIGSTOP)
    assert (await manager.end(1)).outcome == TIMED_OUT
    manager.say(RunCalls([manager.call(2, add, 1, 1)]))
    assert manager.value(await manager.end(2)) == 2
    assert process.returncode is None


async def test_reports_say_how_things_stand(manager: Manager, tmp_path: Path) -> None:
    """What runs, what waits, and the memory of all processes against the limit."""
    await manager.worker("--memory", str(8 << 30), "--walltime", "3600")
    await manager.library(wait_for, add)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate)), manager.call(2, add, 1, 1)]))
    await manager.started(gate)
    manager.heard.clear()
    report = await manager.hear(WorkerReport)
    assert (report.running, report.queued) == (1, 1)
    assert 0 < report.memory_used < report.memory_limit <= 8 << 30
    assert 3000 < report.seconds_left < 3600


async def test_recalled_calls_are_the_newest_and_have_not_run(manager: Manager, tmp_path: Path) -> None:
    """Up to the number asked for; the rest runs."""
    await manager.worker()
    await manager.library(wait_for, add)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate)), *(manager.call(number, add, 1, number) for number in range(2, 6))]))
    await manager.started(gate)
    manager.say(RecallCalls(LIB, 2))
    await manager.until(lambda: manager.returned == [("recalled", 5), ("recalled", 4)])
    gate.touch()
    await manager.until(lambda: len(manager.ends) == 3)
    assert sorted(manager.ends) == [1, 2, 3]


async def test_the_call_that_takes_the_memory_is_ended_and_not_its_neighbour(manager: Manager, tmp_path: Path) -> None:
    """It says how much it used, its share, and the limit."""
    limit = 400 << 20
    await manager.worker("--memory", str(limit))
    await manager.library(wait_for, hog, slots=2)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate)), manager.call(2, hog, 390 << 20)]))
    end = await manager.end(2)
    assert end.outcome == OUT_OF_MEMORY
    assert end.detail is not None
    assert (end.detail.share, end.detail.limit) == (limit // 2, limit)
    assert end.detail.peak_memory > end.detail.share  # it may be caught before it has all that it wants
    assert "the call used" in end.detail.text
    gate.touch()
    assert manager.value(await manager.end(1)) == "seen"


# ---------------------------------------------------------------- the connection


async def test_the_session_outlives_a_cut_and_goes_on_with_a_certificate_of_its_own(manager: Manager, tmp_path: Path) -> None:
    """A call that ran through the cut ends once."""
    await manager.worker("--worker-id", "w1")
    request = await manager.hear(CertificateRequest)
    manager.say(CertificateIssued(manager.authority.issue(request.request, "w1")))
    await manager.library(wait_for)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    for connection in list(manager.listener.connections):
        connection.abort("cut by the test")
    gate.touch()
    assert manager.value(await manager.end(1)) == "seen"
    assert manager.sessions == 1
    assert manager.hellos[-1].session == "session-1"
    assert manager.identities[-1] == Identity("worker", "w1")


async def test_a_worker_that_its_manager_has_forgotten_begins_anew(manager: Manager, tmp_path: Path) -> None:
    """What it ran is ended, for it has been queued again; it serves the new session."""
    await manager.worker()
    await manager.library(wait_for, add)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    link = manager.link
    assert link is not None
    manager.link = None
    manager.heard.clear()
    link.fail("given up by the test")
    await manager.until(lambda: manager.link is not None)
    await manager.library(add)
    manager.say(RunCalls([manager.call(2, add, 1, 1)]))
    assert manager.value(await manager.end(2)) == 2
    gate.touch()
    manager.say(Drain("enough"))
    await manager.hear(Goodbye)
    assert list(manager.ends) == [2]


async def test_a_manager_that_begins_anew_hears_that_a_worker_drains(manager: Manager, tmp_path: Path) -> None:
    """The worker's Hello may have been said before it did."""
    process = await manager.worker()
    await manager.library(wait_for)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    manager.say(Drain("enough"))
    await manager.hear(WorkerDraining)
    link = manager.link
    assert link is not None
    manager.heard.clear()
    link.fail("given up by the test")
    assert (await manager.hear(WorkerDraining)).reason == "enough"
    await manager.hear(Goodbye)
    assert await status(process) == 0


async def test_a_worker_that_cannot_begin_anew_leaves(manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scratch is full when its manager has been started anew. It says so, and nothing of the calls of the session before."""
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os, pathlib\n"
        "mkdir = pathlib.Path.mkdir\n"
        "def full(path, *words, **more):\n"
        f"    if path.name.startswith('functions-') and os.path.exists({str(tmp_path / 'full')!r}):\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    mkdir(path, *words, **more)\n"
        "pathlib.Path.mkdir = full\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = await manager.worker()
    await manager.library(wait_for)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    (tmp_path / "full").touch()
    link = manager.link
    assert link is not None
    manager.heard.clear()
    link.fail("given up by the test")
    assert (await manager.hear(Goodbye)).reason == "cannot serve: [Errno 28] No space left on device"
    assert await status(process) == CANNOT_SERVE
    assert [type(message) for message in manager.heard] == [Goodbye]
    assert not manager.ends
    assert scratch_is_empty(manager)


async def test_a_refused_worker_says_why_and_exits_3(manager: Manager) -> None:
    """The text is the manager's."""
    manager.refusal = Refused("this pool is closed")
    assert await status(await manager.worker(attached=False)) == 3
    err = manager.errors.read_text()
    assert "refused by manager test-manager: this pool is closed" in err
    assert scratch_is_empty(manager)


async def test_a_worker_whose_manager_is_gone_exits_4(manager: Manager) -> None:
    """After manager_timeout, with what it started."""
    manager.manager_timeout = 0.5
    process = await manager.worker()
    ready = await manager.library(add)
    mark = mark_of(ready.pid)
    await manager.listener.close()
    assert await status(process) == 4
    err = manager.errors.read_text()
    assert "was not reached for" in err
    assert marked(mark) == []
    assert scratch_is_empty(manager)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["--connection", "/nonexistent/pilot.json"],
            "there is no /nonexistent/pilot.json: give the pilot.json in the manager's state folder",
        ),
        (["--scratch", "/nonexistent"], "no folder for scratch can be made (/nonexistent: No such file or directory)"),
        (["--core", "2"], "there is no option '--core'; did you mean '--cores'?"),
        (["--walltime", "soon"], "--walltime 'soon' cannot be used: give a number of seconds, as in --walltime 3600"),
        (["--memory"], "--memory needs a value: --memory BYTES"),
    ],
)
async def test_a_worker_that_cannot_start_says_why_and_exits_5(manager: Manager, options: list[str], text: str) -> None:
    """What is wrong, and what to give instead."""
    assert await status(await manager.worker(*options, attached=False)) == 5
    err = manager.errors.read_text()
    assert text in err


async def test_a_worker_that_cannot_be_set_up_leaves_whatever_it_was(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would stay connected, and what it is told to start would never start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import windlass.store_folders as folders\n"
        "def fail(*words):\n"
        "    raise ValueError('this folder has an odd name')\n"
        "folders.default_store_folder = fail\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert await status(await manager.worker(attached=False)) == 5
    assert (await manager.hear(Goodbye)).reason == "cannot serve: this folder has an odd name"
    assert "windlass worker: this folder has an odd name" in manager.errors.read_text()
    assert scratch_is_empty(manager)


# ---------------------------------------------------------------- the end


async def drain_by_message(manager: Manager, process: asyncio.subprocess.Process) -> None:
    manager.say(Drain("scale down"))


async def drain_by_signal(manager: Manager, process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGTERM)


async def drain_by_warning(manager: Manager, process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGUSR1)


Way = Callable[[Manager, asyncio.subprocess.Process], Awaitable[None]]


@pytest.mark.parametrize("way", [drain_by_message, drain_by_signal, drain_by_warning])
async def test_a_draining_worker_finishes_what_runs_and_gives_the_rest_back(manager: Manager, tmp_path: Path, way: Way) -> None:
    """It says so first, and leaves with a goodbye."""
    process = await manager.worker()
    await manager.library(wait_for, add)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate)), manager.call(2, add, 1, 1)]))
    await manager.started(gate)
    await way(manager, process)
    await manager.until(lambda: manager.returned == [("draining", 2)])
    kinds = [type(message) for message in manager.heard]
    assert kinds.index(WorkerDraining) < kinds.index(CallsReturned)
    manager.say(RunCalls([manager.call(3, add, 1, 1)]))
    await manager.until(lambda: manager.returned[-1] == ("draining", 3))
    gate.touch()
    assert manager.value(await manager.end(1)) == "seen"
    assert await status(process) == 0
    assert isinstance(manager.heard[-1], Goodbye)
    assert scratch_is_empty(manager)


def signal_to(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, to one that may be ending: `Process.send_signal` takes the exit status of one that has, and asyncio then misses it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)


async def test_a_second_sigterm_ends_running_calls(manager: Manager, tmp_path: Path) -> None:
    """At once; the goodbye gives them back."""
    process = await manager.worker()
    ready = await manager.library(wait_for)
    mark = mark_of(ready.pid)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    process.send_signal(signal.SIGTERM)
    await manager.hear(WorkerDraining)
    # An echo of the first does nothing; one that comes later does.
    begin = time.monotonic()
    while process.returncode is None and time.monotonic() - begin < 10:
        signal_to(process)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.1)
    assert await status(process) == 0
    assert await manager.hear(Goodbye) == Goodbye("SIGTERM received again", idle=False)
    assert manager.ends == {}
    assert marked(mark) == []


async def test_impatient_signals_do_not_take_the_goodbye(manager: Manager, tmp_path: Path) -> None:
    """However many come while its processes are ended: without a goodbye its calls would wait for `reconnect_grace`."""
    process = await manager.worker()
    await manager.library(wait_for)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    async with asyncio.timeout(20):
        while process.returncode is None:
            signal_to(process)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 0.001)
    assert await status(process) == 0
    assert (await manager.hear(Goodbye)).reason == "SIGTERM received again"


async def test_folders_in_folders_hold_up_no_end(manager: Manager) -> None:
    """Calls may leave more of them in each other than Python functions may call each other."""
    process = await manager.worker()
    await manager.library(nest)
    manager.say(RunCalls([manager.call(1, nest, 1200)]))
    await manager.end(1)
    manager.say(StopLibrary(LIB))
    await manager.hear(LibraryStopped)
    manager.say(Leave("over"))
    assert await status(process) == 0
    assert scratch_is_empty(manager)


async def test_a_log_that_takes_nothing_more_keeps_no_worker(manager: Manager) -> None:
    """Its disk may be full, or the quota over: the text is lost, and the worker leaves all the same."""
    await manager.listener.listen(["127.0.0.1"])
    manager.authority.set_addresses(manager.listener.addresses)
    manager.refusal = Refused("not today")
    words = ["-m", "windlass.worker", "--connection", str(manager.authority.pilot_file), "--scratch", str(manager.folder / "scratch")]
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230 (a device)
        process = await asyncio.create_subprocess_exec(sys.executable, *words, stdin=asyncio.subprocess.DEVNULL, stderr=full)
    manager.processes.append(process)
    assert await status(process, 60) == 3


async def test_one_that_never_reached_its_manager_leaves_at_once(manager: Manager) -> None:
    """It has nothing to tell, and who ends it, as a factory whose manager is gone, waits for it."""
    await manager.listener.listen(["127.0.0.1"])
    address = manager.listener.addresses[0]
    manager.authority.set_addresses([address])
    await manager.listener.close()
    with silent(address[1]):
        process = await manager.worker("--grace", "600", "--log-level", "info", attached=False)
        await manager.until(lambda: "dialling again" in manager.errors.read_text())
        process.send_signal(signal.SIGTERM)
        assert await status(process) == 0
    assert scratch_is_empty(manager)


async def test_the_grace_ends_running_calls(manager: Manager, tmp_path: Path) -> None:
    """A call that does not finish in time goes back with the goodbye."""
    process = await manager.worker("--grace", "0.3")
    await manager.library(wait_for)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    process.send_signal(signal.SIGTERM)
    assert await status(process) == 0
    assert (await manager.hear(Goodbye)).reason == "SIGTERM received; grace of 0.3 s is over"


async def test_it_drains_before_its_walltime(manager: Manager) -> None:
    """By itself, in time."""
    process = await manager.worker("--walltime", "2")
    assert (await manager.hear(WorkerDraining)).reason == "near the end of walltime"
    assert await status(process) == 0


@pytest.mark.parametrize("way", [drain_by_signal, drain_by_warning])
async def test_running_calls_are_warned_by_a_signal_and_know_their_time(manager: Manager, tmp_path: Path, way: Way) -> None:
    """The callback is told the grace; a call that asks afterwards is, too, though there was no end in sight before."""
    process = await manager.worker("--grace", "25")
    await manager.library(save_and_wait_for, slots=2)
    gates = [tmp_path / "one", tmp_path / "two"]
    manager.say(RunCalls([manager.call(number, save_and_wait_for, str(gate)) for number, gate in enumerate(gates)]))
    await manager.started(*gates)
    await way(manager, process)
    for number, gate in enumerate(gates):
        assert 0 < await manager.saved(gate) <= 25
        gate.touch()
        before, after = manager.value(await manager.end(number))
        assert before == math.inf
        assert 0 < after <= 25
    assert await status(process) == 0


async def test_running_calls_are_warned_when_the_walltime_is_as_near_as_the_grace(manager: Manager, tmp_path: Path) -> None:
    """By the worker's own clock; the call is ended at the hard end if it does not return."""
    process = await manager.worker("--walltime", "6", "--grace", "2")
    await manager.library(save_and_wait_for)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, save_and_wait_for, str(gate))]))
    await manager.started(gate)
    assert 0 < await manager.saved(gate) <= 2
    assert await status(process) == 0
    assert (await manager.hear(Goodbye)).reason == "end of walltime"
    assert manager.ends == {}
    assert manager.returned == [("warned", 1)]


async def test_a_drain_by_the_manager_is_no_warning(manager: Manager, tmp_path: Path) -> None:
    """Running calls have all the time that there was."""
    process = await manager.worker()
    await manager.library(save_and_wait_for)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, save_and_wait_for, str(gate))]))
    await manager.started(gate)
    manager.say(Drain("scale down"))
    await manager.hear(WorkerDraining)
    gate.touch()
    assert manager.value(await manager.end(1)) == (math.inf, math.inf)
    assert not (tmp_path / "gate.saved").exists()
    assert await status(process) == 0


async def test_it_stops_accepting_when_no_further_call_would_have_its_expected_time(manager: Manager, tmp_path: Path) -> None:
    """Before any call has ended; the one that runs goes on."""
    process = await manager.worker("--walltime", "60")
    await manager.library(wait_for)
    gate = tmp_path / "gate"
    call = manager.call(1, wait_for, str(gate))
    call.least_seconds = 57.5
    manager.say(RunCalls([call]))
    await manager.started(gate)
    assert (await manager.hear(WorkerDraining)).reason == "near the end of walltime"
    gate.touch()
    assert manager.value(await manager.end(1)) == "seen"
    assert await status(process) == 0


async def test_a_stagger_makes_it_drain_earlier(manager: Manager) -> None:
    """Here by half of the time in which it accepts, which is the most; it would have drained with a second left. The hard end stays."""
    await manager.worker("--walltime", "8", "--stagger", "1e6")
    draining = await manager.hear(WorkerDraining)
    assert draining.reason == "near the end of walltime"
    assert draining.seconds_left > 2
    assert not draining.trouble


async def test_a_call_whose_slot_was_killed_with_its_whole_job_is_not_charged(manager: Manager, tmp_path: Path) -> None:
    """Batch systems kill process by process: a worker that is killed a moment after its slot has told nobody that the call died."""
    process = await manager.worker()
    ready = await manager.library(wait_for)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    [slot] = [pid for pid in marked(mark_of(ready.pid)) if pid != ready.pid]
    os.kill(slot, signal.SIGKILL)
    async with asyncio.timeout(10):
        while os.path.exists(f"/proc/{slot}"):  # noqa: ASYNC240 (only /proc tells)
            await asyncio.sleep(0.001)
    process.kill()
    await process.wait()
    await manager.until(lambda: not manager.listener.connections)
    assert manager.ends == {}


async def test_a_slot_that_was_killed_alone_is_told_when_the_worker_has_lived_on(manager: Manager, tmp_path: Path) -> None:
    """And a worker that drains does not leave before."""
    process = await manager.worker()
    ready = await manager.library(wait_for)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    [slot] = [pid for pid in marked(mark_of(ready.pid)) if pid != ready.pid]
    os.kill(slot, signal.SIGKILL)
    manager.say(Drain("scale down"))
    end = await manager.end(1)
    assert end.outcome == DIED
    assert end.detail is not None
    assert end.detail.signal == signal.SIGKILL
    assert await status(process) == 0


async def test_a_worker_whose_scratch_takes_nothing_more_drains(manager: Manager) -> None:
    """Rather than fail one call after the other: they go back, and the reason is told."""
    process = await manager.worker()
    await manager.library()
    shutil.rmtree(next((manager.folder / "scratch").glob("windlass-*/functions-*")))
    function = manager.define(add)
    manager.say(AddFunctions((function,)), RunCalls([manager.call(1, add, 1, 2)]))
    draining = await manager.hear(WorkerDraining)
    assert "function add could not be stored" in draining.reason
    assert draining.trouble
    await manager.until(lambda: manager.returned == [("draining", 1)])
    assert await status(process) == CANNOT_SERVE


async def test_an_idle_worker_leaves(manager: Manager) -> None:
    """With a goodbye that says so."""
    process = await manager.worker("--idle-timeout", "2")
    await manager.library(add)
    assert await status(process) == 0
    assert await manager.hear(Goodbye) == Goodbye("idle for 2 s", idle=True)


async def test_a_killed_worker_leaves_no_process_and_no_folder(manager: Manager, tmp_path: Path) -> None:
    """The guardian ends slots, zygotes and what calls have started."""
    process = await manager.worker()
    ready = await manager.library(wait_for)
    mark = mark_of(ready.pid)
    gate = tmp_path / "gate"
    manager.say(RunCalls([manager.call(1, wait_for, str(gate))]))
    await manager.started(gate)
    assert len(marked(mark)) >= 2
    process.kill()
    await all_gone(mark)
    async with asyncio.timeout(5):
        while not scratch_is_empty(manager):
            await asyncio.sleep(0.005)


async def test_a_worker_leaves_when_its_parent_dies(manager: Manager) -> None:
    """A local pilot does not outlive the program that started it, and removes what that one, which was killed, has left in memory."""
    await manager.listener.listen(["127.0.0.1"])
    manager.authority.set_addresses(manager.listener.addresses)
    script = """
import subprocess, sys
from windlass.store_folders import default_store_folder
subprocess.Popen([sys.executable, "-m", "windlass.worker", *sys.argv[1:]], stdout=subprocess.DEVNULL)
print(default_store_folder("manager"), flush=True)
sys.stdin.read()
"""
    words = ["--connection", str(manager.authority.pilot_file), "--scratch", str(manager.folder / "scratch")]
    pipe = asyncio.subprocess.PIPE
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, *words, stdin=pipe, stdout=pipe)
    manager.processes.append(parent)
    assert parent.stdout is not None
    left = Path((await parent.stdout.readline()).decode().strip())
    await manager.until(lambda: manager.link is not None)
    assert is_there(left)
    parent.kill()
    assert (await manager.hear(Goodbye)).reason == "the pilot's parent process has ended"
    async with asyncio.timeout(20):
        while is_there(left):
            await asyncio.sleep(0.005)
        await parent.stdout.read()  # its pipe has an end when nobody has it any more


def calls_until_hello(folder: Path) -> int:
    """File-system calls of the first process in these traces, until it had sent its Hello."""
    traces = sorted(folder.glob("trace.*"), key=lambda path: int(path.suffix[1:]))
    calls = [line for line in traces[0].read_text().splitlines() if re.match(r"\w+\(", line)]
    other = ("socket(", "sendto(", "write(")
    number = next(match[1] for line in calls if (match := re.match(r"socket\(AF_INET\b.* = (\d+)", line)))
    # asyncio's own loop sends by sendto, uvloop by write.
    sends = [index for index, line in enumerate(calls) if line.startswith((f"sendto({number},", f"write({number},"))]
    # TLS: the client's hello, and then its finish together with our first frame.
    return sum(not line.startswith(other) for line in calls[: sends[1]])


@pytest.mark.skipif(shutil.which("strace") is None, reason="counts file-system calls with strace")
async def test_a_worker_says_hello_within_its_budget_of_file_system_calls(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,200 from exec to hello: a thousand workers that start at once all load the same shared filesystem."""

    def nobody(manager: str, port: int) -> None:
        return None

    monkeypatch.setattr(nearby, "listening", nobody)  # as to a worker of another host
    await manager.listener.listen(["127.0.0.1"])
    manager.authority.set_addresses(manager.listener.addresses)
    manager.refusal = Refused("counted")
    words = ["-m", "windlass.worker", "--connection", str(manager.authority.pilot_file), "--scratch", str(manager.folder / "scratch")]
    trace = ["strace", "-f", "-ff", "-e", "trace=file,socket,sendto,write", "-s", "0", "-o", str(tmp_path / "trace")]
    # Once without counting, so that there is bytecode, as where Windlass is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for before in ([], trace):
        process = await asyncio.create_subprocess_exec(
            *before, sys.executable, *words, env=environment, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        manager.processes.append(process)
        assert await status(process, 60) == 3
    count = calls_until_hello(tmp_path)
    assert 300 < count <= 1200, count
