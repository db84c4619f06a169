"""Rules of `windlass.worker.libraries`: functions that cannot be had, and what is let go at the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.worker.test_backlog import FUNCTION, LIB, Desk, Queue, call, end
from tests.worker.test_instance import wait_for
from tests.worker.test_orphans import unheard

from windlass import pickling
from windlass.bulk import ObjectGone
from windlass.errors import ConnectionRefused, StoreFull
from windlass.messages import (
    BAD_CALL,
    DIED,
    AddFunctions,
    CallId,
    CallRun,
    FileName,
    FileRef,
    FunctionDef,
    LibraryFailed,
    Message,
    ObjectName,
    ObjectRef,
    PoolEnvironment,
    StartLibrary,
    StopLibrary,
)
from windlass.object_store import ObjectStore
from windlass.objects import content_name
from windlass.worker import transfers
from windlass.worker.backlog import Backlog
from windlass.worker.gpus import Gpus
from windlass.worker.instance import State
from windlass.worker.libraries import Entry, Libraries
from windlass.worker.transfers import REFUSALS, Transfers

pytestmark = pytest.mark.asyncio

#: What the function comes as.
CODE = bytes(100)


class Wire:
    """A way to the manager by which objects come after these errors."""

    def __init__(self, store: ObjectStore, errors: Iterable[Exception]) -> None:
        self._store, self._errors = store, iter(errors)
        self.content = {content_name(CODE): CODE}

    async def get(self, ref: ObjectRef, /) -> None:
        error = next(self._errors, None)
        if error is not None:
            raise error
        self._store.put(self.content[ref.name])

    async def put(self, name: ObjectName, path: str, /) -> None:
        raise AssertionError(name)


def transfers_for(backlog: Backlog, store: ObjectStore, wire: Wire) -> Transfers:
    """They tell this backlog what has come, what will not, and of room."""
    told = {"arrived": backlog.arrived, "failed": backlog.failed, "room_made": backlog.room_made}
    return Transfers(store, wire, **cast("Any", told))


class Room(Desk):
    """Asks the worker's transfers for room."""

    moves: Transfers

    def lacks_room(self, refs: Sequence[ObjectRef], /) -> str:
        return self.moves.lacks_room(refs)

    def hold(self, refs: Sequence[ObjectRef], /) -> list[ObjectName]:
        return self.moves.hold(refs)

    def release(self, refs: Sequence[ObjectRef], /) -> None:
        self.moves.release(refs)


class Ground:
    """The libraries of a worker with one instance, whose queue is played, and a function that comes as an object of 100 bytes."""

    def __init__(self, folder: Path, errors: Iterable[Exception], limit: int = 1000) -> None:
        self.desk, self.troubles, self.said = Room(), list[str](), list[Message]()
        self.backlog = Backlog(self.desk)
        store = ObjectStore(folder / "store", limit)
        self.wire = Wire(store, errors)
        moves = self.desk.moves = transfers_for(self.backlog, store, self.wire)
        says = self.said.append, unheard, self._trouble
        gpus = Gpus()
        libraries = Libraries(self.backlog, moves, *says, folder, folder, folder, None, gpus, files=lambda: cast("Any", None))
        self.queue = Queue()
        self.backlog.add(LIB, self.queue, 1)
        self.backlog.serves(LIB)
        libraries.add_functions(AddFunctions((FunctionDef(FUNCTION, "f", b"", ObjectRef(content_name(CODE), len(CODE))),)))
        self.backlog.run([call(1)])

    def _trouble(self, text: str) -> None:
        self.troubles.append(text)
        self.backlog.drain()

    async def settle(self) -> list[tuple[object, ...]]:
        """What became of the call."""
        async with asyncio.timeout(10):
            while not self.desk.said:
                await asyncio.sleep(0)
        return self.desk.take()


async def test_a_function_that_the_node_has_no_room_for_ends_no_call(tmp_path: Path) -> None:
    """Its calls go back and the worker drains: one that ended them, each at once, would get all that there are."""
    ground = Ground(tmp_path, [OSError(28, "No space left on device")])
    assert await ground.settle() == [("draining", 1)]
    (trouble,) = ground.troubles
    assert trouble.startswith("function f: object b3-")
    assert "No space left on device" in trouble
    assert ground.said == []


async def test_a_function_has_its_room_before_arguments_that_came_with_it(tmp_path: Path) -> None:
    """Else these would fill the store, and wait for the function, which would wait for them."""
    ground = Ground(tmp_path, [])
    arguments = [bytes([number]) * 500 for number in (2, 3)]
    ground.wire.content |= {content_name(data): data for data in arguments}
    calls = [call(number) for number in (2, 3)]
    for each, data in zip(calls, arguments, strict=True):
        each.spans = (ObjectRef(content_name(data), len(data)),)
    ground.backlog.run(calls)
    for number in (1, 2, 3):
        async with asyncio.timeout(10):
            while not ground.queue.queue:
                await asyncio.sleep(0)
        assert ground.queue.queue.popleft().call == number
        ground.backlog.ended(LIB, [end(number)])
    assert ground.troubles == []


@pytest.mark.parametrize(
    ("error", "limit", "outcome"),
    [(ObjectGone("the manager does not have it"), 1000, BAD_CALL), (StoreFull("too large"), 99, DIED)],
    ids=["that is nowhere", "too large for any"],
)
async def test_a_function_that_will_never_come_ends_its_calls(tmp_path: Path, error: Exception, limit: int, outcome: int) -> None:
    """Also later ones: other workers would meet the same."""
    ground = Ground(tmp_path, [error], limit)
    assert await ground.settle() == [("ended", 1, outcome)]
    ground.backlog.run([call(2)])
    assert await ground.settle() == [("ended", 2, outcome)]
    assert ground.troubles == []


async def test_a_function_that_the_manager_refused_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was started anew does not know the worker at first. Calls that have waited so long end; the worker stays."""
    monkeypatch.setattr(transfers, "FIRST_PAUSE", 0.001)
    ground = Ground(tmp_path, [ConnectionRefused("no data for you")] * REFUSALS)
    assert await ground.settle() == [("ended", 1, DIED)]
    ground.backlog.run([call(2)])
    async with asyncio.timeout(10):
        while not ground.queue.queue:
            await asyncio.sleep(0)
    assert ground.troubles == []


@pytest.mark.parametrize("full", ["the store", "the scratch folder"])
async def test_a_node_that_is_full_drains_before_it_says_that_a_library_cannot_start(bench: Any, tmp_path: Path, full: str) -> None:
    """Else the manager would start it here again at once, three times, and the library would fail everywhere."""
    heard: list[object] = []
    backlog, store = Backlog(Desk()), ObjectStore(tmp_path / "store")
    moves = transfers_for(backlog, store, Wire(store, [OSError(28, "No space left on device")]))
    (tmp_path / "file").touch()
    scratch = tmp_path / "file" if full == "the scratch folder" else tmp_path  # no folder can be made there
    says = heard.append, unheard, heard.append
    folders = scratch, tmp_path / "store", bench.functions
    libraries = Libraries(backlog, moves, *says, *folders, None, bench.gpus, files=lambda: cast("Any", None))
    code = (ObjectRef(content_name(CODE), len(CODE)),) if full == "the store" else ()
    libraries.start(StartLibrary(LIB, bench.spec(wait_for, code=code), 1))
    await bench.until(lambda: len(heard) == 2)
    text, failure = heard
    assert isinstance(failure, LibraryFailed)
    assert failure.kind == "crash", "which older managers know"
    assert failure.text == text
    await libraries.close(0.0)


async def test_an_instance_in_its_grace_ends_when_all_do(bench: Any, tmp_path: Path) -> None:
    """Its slots have GPUs, which those of the next session wait for."""
    backlog = Backlog(Desk())
    moves = transfers_for(backlog, ObjectStore(bench.store), Wire(ObjectStore(bench.store), ()))
    folders = bench.folder, bench.store, bench.functions
    says = unheard, unheard, unheard
    libraries = Libraries(backlog, moves, *says, *folders, None, bench.gpus, files=lambda: cast("Any", None))
    libraries.start(StartLibrary(LIB, bench.spec(wait_for), 1))
    library = libraries.entries[LIB].library
    bench.instances.append(library)
    path = tmp_path / "held"
    payload, _ = pickling.pack_call((str(path),), {}, bench.put)
    backlog.run([CallRun(CallId(1), 1, LIB, bench.ids[wait_for], payload)])
    await bench.until(path.exists)
    libraries.stop(StopLibrary(LIB))
    await bench.until(lambda: library.state is State.STOPPING)
    await libraries.close(0.0)
    assert library.state is State.GONE
    assert not library.folder.exists()


@pytest.mark.parametrize("own", [True, False])
async def test_an_environment_where_no_program_can_be_started_is_the_nodes_trouble(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """On a disk that is mounted noexec; the library is as well as its archive, and another node may do."""
    python = tmp_path / "env" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)

    class Files:
        async def obtain(self, ref: FileRef, *, patient: bool = False) -> str:
            return str(tmp_path / "env")

        def release(self, refs: list[FileRef]) -> None: ...

    ref = FileRef(FileName("b3-e"), 1, "env")
    pool = None if own else PoolEnvironment(ref, ref, "/shared/env.tar.gz")
    said, troubles = list[Message](), list[str]()
    says = cast("Any", None), said.append, unheard, troubles.append
    folders = bench.folder, bench.folder, bench.folder
    libraries = Libraries(Backlog(Desk()), *says, *folders, pool, bench.gpus, files=lambda: cast("Any", Files()))
    library = bench.start(msgspec.structs.replace(bench.spec(), environment=ref if own else None), 0)
    entry = libraries.entries[LIB] = Entry(StartLibrary(LIB, library.spec, 0), library, ref)

    def access(path: str, mode: int) -> bool:
        return not (path == str(python) and mode == os.X_OK)  # as with noexec

    monkeypatch.setattr("os.access", access)
    assert not await libraries._enter_environment(LIB, entry, ref)  # pyright: ignore[reportPrivateUsage]
    [failed] = said
    assert isinstance(failed, LibraryFailed)
    assert (failed.kind, troubles) == ("crash", [failed.text])
    whose = (
        "the environment of library lib" if own else f"the environment's archive /shared/env.tar.gz cannot be had on {os.uname().nodename}"
    )
    why = f"programs in {tmp_path} cannot be started (is it mounted noexec?); scratch= names a folder where they can"
    assert failed.text == f"{whose}: {why}"
    await libraries.close(0.0)


async def test_an_environment_is_let_go_where_it_was_held(bench: Any) -> None:
    """An instance that outlives its session has the cache's knowledge of that session."""
    released: list[str] = []

    class Files:
        def __init__(self, name: str) -> None:
            self.name = name

        def release(self, refs: list[FileRef]) -> None:
            released.append(f"{self.name}: {refs[0].name}")

    says = cast("Any", None), unheard, unheard, unheard
    folders = bench.folder, bench.folder, bench.folder
    libraries = Libraries(Backlog(Desk()), *says, *folders, None, bench.gpus, files=lambda: cast("Any", None))
    library = bench.start(bench.spec(), 0)
    entry = libraries.entries[LIB] = Entry(StartLibrary(LIB, library.spec, 0), library, FileRef(FileName("b3-e"), 1, "env"))
    entry.kept_by = cast("Any", Files("old"))
    libraries.stop(StopLibrary(LIB))
    assert released == ["old: b3-e"]
    await libraries.close(0.0)
