"""What a worker tells a later life of its manager."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.worker.test_backlog import LIB, Desk, Queue, call, ref

from windlass import pickling
from windlass.messages import (
    CANCELLED,
    DIED,
    RETURNED,
    CallEnd,
    CallId,
    CallRun,
    CallsEnded,
    FileName,
    FileRef,
    InstanceId,
    LibraryId,
    LibrarySpec,
    Message,
    ObjectName,
    ObjectRef,
    OrphansEnded,
    OrphansHeld,
    Resources,
    StartLibrary,
    WorkerDraining,
)
from windlass.object_store import ObjectStore
from windlass.session import encode_one
from windlass.worker.backlog import Backlog
from windlass.worker.gpus import Gpus
from windlass.worker.libraries import Entry, Libraries
from windlass.worker.orphans import EarlierLives, ends_to_tell_again
from windlass.worker.outbox import ENDS_BYTES
from windlass.worker.transfers import Transfers


class NoData:
    """A data connection over which nothing comes."""

    async def get(self, ref: ObjectRef, /) -> None:
        await asyncio.Event().wait()

    async def put(self, name: ObjectName, path: str, /) -> None:
        raise AssertionError("nothing is put")


LARGE = (ObjectRef(ObjectName("a" * 32), 800_000),)


def end(call: int, spans: tuple[ObjectRef, ...] = (), *, kept: bool = False) -> CallEnd:
    return CallEnd(CallId(call), 1, RETURNED, spans=spans, kept=kept, key=b"key%d" % call)


def test_results_that_may_not_have_been_heard_are_told_again_large_ones_too() -> None:
    """A large one may have been put to the later life already, by a data connection that found it before the worker was welcomed."""
    unheard = [CallsEnded([end(1), end(2, LARGE)]), WorkerDraining("a word"), CallsEnded([]), CallsEnded([end(3)])]
    assert [[one.call for one in ends] for ends in ends_to_tell_again(unheard)] == [[1, 2, 3]]


def test_what_is_told_again_fits_into_messages() -> None:
    """What had gathered when the session ended had not been cut into any."""
    ends = [msgspec.structs.replace(end(number), payload=bytes(60_000)) for number in range(20)]
    again = ends_to_tell_again([CallsEnded(ends[:1]), CallsEnded(ends[1:])])
    assert [one for ends in again for one in ends] == ends
    assert max(len(encode_one(OrphansEnded(ends))) for ends in again) <= ENDS_BYTES


def test_what_a_later_life_cannot_take_is_not_told() -> None:
    """It runs again what did not return, and knows nothing of calls without keys and of files that have stayed on a worker."""
    died = CallEnd(CallId(1), 1, DIED, key=b"key1")
    without_key = CallEnd(CallId(2), 1, RETURNED)
    with_files = CallEnd(CallId(4), 1, RETURNED, outputs=(FileRef(FileName("f" * 32), 1, "out"),), key=b"key4")
    assert ends_to_tell_again([CallsEnded([died, without_key, end(3, LARGE, kept=True), with_files])]) == []


def test_ends_of_an_earlier_life_that_the_last_one_may_not_have_heard_are_told_again() -> None:
    """They come from calls of the life before it."""
    assert [[one.call for one in ends] for ends in ends_to_tell_again([OrphansEnded([end(1)]), OrphansHeld([b"key2"])])] == [[1]]


def unheard(_: object) -> None:
    """What nobody is told."""


class Ground:
    """A worker's earlier lives, whose instances are played."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[Message] = []
        self.queues: list[Queue] = []
        self.over: list[Coroutine[Any, Any, None]] = []
        self.lives = EarlierLives(self.said.append, self.over.append, lambda: None)

    def life(self, *running: int, waiting: tuple[int, ...] = ()) -> Backlog:
        """A session ends in which these calls ran."""
        transfers = Transfers(
            ObjectStore(self.folder), cast("Any", None), arrived=lambda _: None, failed=lambda _, __, ___: None, room_made=lambda: None
        )
        backlog, queue = Backlog(cast("Any", None)), Queue()
        self.queues.append(queue)
        says = transfers, unheard, unheard, unheard
        folders = self.folder, self.folder, self.folder
        libraries = Libraries(backlog, *says, *folders, None, Gpus(), files=lambda: cast("Any", None))
        libraries.entries[LIB] = Entry(StartLibrary(LIB, LibrarySpec(LibraryId("lib@1"), "lib", (3, 11)), 4), cast("Any", queue), None)
        backlog.add(LIB, queue, 4)
        backlog.serves(LIB)
        backlog.run([msgspec.structs.replace(call(number), key=b"key%d" % number) for number in (*running, *waiting)])
        for _ in running:
            queue.start()
        self.lives.add(backlog, libraries, transfers, None, [])
        return backlog

    def take(self) -> list[Message]:
        said = list(self.said)
        self.said.clear()
        return said

    async def settle(self) -> int:
        """How many lives are over."""
        await asyncio.sleep(0)
        for work in self.over:
            work.close()
        return len(self.over)


def test_each_later_life_hears_of_all_that_still_runs(tmp_path: Path) -> None:
    """Whichever life it began in; not of what has been told, and not of what had not started."""

    async def go() -> None:
        ground = Ground(tmp_path)
        first = ground.life(1, 2, waiting=(3,))
        assert ground.take() == [OrphansHeld([b"key1", b"key2"], ends=True)]
        assert ground.lives.occupied.cores == 2.0
        first.ended(LIB, [end(1)])
        assert [type(one) for one in ground.take()] == [OrphansEnded]
        assert ground.lives.occupied.cores == 1.0, "cores are free when their calls have ended, not when all have"
        second = ground.life(7)
        assert ground.take() == [OrphansHeld([b"key2"], ends=True), OrphansHeld([b"key7"], ends=True)]
        assert ground.lives.occupied.cores == 2.0
        for backlog, number in ((first, 2), (second, 7)):
            backlog.ended(LIB, [end(number)])
        assert await ground.settle() == 2

    asyncio.run(go())


def test_what_nobody_wants_any_more_is_ended(tmp_path: Path) -> None:
    """Whichever life it began in; what has ended by then, or is not known, is not told of again."""

    async def go() -> None:
        ground = Ground(tmp_path)
        first, second = ground.life(1, 2, 3), ground.life(7)
        first.ended(LIB, [end(3)])
        ground.take()
        ground.lives.end([b"key2", b"key3", b"key7", b"key9"])
        assert [queue.killed for queue in ground.queues] == [[(2, 1, CANCELLED)], [(7, 1, CANCELLED)]]
        assert ground.take() == []
        for backlog, number in ((first, 2), (second, 7)):
            backlog.ended(LIB, [CallEnd(CallId(number), 1, CANCELLED)])
        told = [one for message in ground.take() if isinstance(message, OrphansEnded) for one in message.ends]
        assert [(one.key, one.outcome) for one in told] == [(b"key2", CANCELLED), (b"key7", CANCELLED)]
        assert ground.lives.occupied.cores == 1.0
        assert await ground.settle() == 1

    asyncio.run(go())


def test_what_an_instance_gives_back_is_run_again_by_the_later_life(tmp_path: Path) -> None:
    """As when a slot that runs many is killed for the sake of one of them: nobody else would ever end these."""

    async def go() -> None:
        ground = Ground(tmp_path)
        backlog = ground.life(1, 2)
        ground.take()
        backlog.lost(LIB, [ref(2)], "neighbour")
        [told] = ground.take()
        assert isinstance(told, OrphansEnded)
        assert [(one.key, one.outcome) for one in told.ends] == [(b"key2", CANCELLED)]
        backlog.gone(LIB)
        assert [one.key for message in ground.take() if isinstance(message, OrphansEnded) for one in message.ends] == [b"key1"]
        assert await ground.settle() == 1

    asyncio.run(go())


def hold(path: str) -> str:
    """Says which GPUs it has, and waits until that is deleted."""
    import os
    import time

    Path(path).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    while Path(path).exists():
        time.sleep(0.002)
    return path


@pytest.mark.asyncio
async def test_idle_slots_of_an_earlier_life_leave_their_gpus_to_the_next(bench: Any, tmp_path: Path) -> None:
    """One slot runs a call of hours; the GPU of the other is not kept until that has ended. What waits for its objects does not start."""
    said: list[Message] = []
    over: list[Coroutine[Any, Any, None]] = []
    lives = EarlierLives(said.append, over.append, lambda: None)
    first, second = tmp_path / "first", tmp_path / "second"
    spec = bench.spec(hold, per_slot=Resources(gpus=1))

    def life(*starts: StartLibrary) -> tuple[Backlog, Libraries, Transfers]:
        backlog = Backlog(Desk())
        transfers = Transfers(
            ObjectStore(bench.store), NoData(), arrived=lambda _: None, failed=lambda _, __, ___: None, room_made=lambda: None
        )
        says = transfers, unheard, unheard, unheard
        folders = bench.folder, bench.store, bench.functions
        libraries = Libraries(backlog, *says, *folders, None, bench.gpus, files=lambda: cast("Any", None))
        for start in starts:
            libraries.start(start)
        bench.instances += [entry.library for entry in libraries.entries.values()]
        return backlog, libraries, transfers

    def begin(backlog: Backlog, path: Path) -> None:
        bench.next_call += 1
        payload, _ = pickling.pack_call((str(path),), {}, bench.put)
        number = bench.next_call
        backlog.run([CallRun(CallId(number), 1, LIB, bench.ids[hold], payload, (), key=b"key%d" % number)])

    lacking = msgspec.structs.replace(spec, code=LARGE)
    old = life(StartLibrary(LIB, spec, 2, ("0", "1")), StartLibrary(InstanceId(2), lacking, 1, ("0",)))
    begin(old[0], first)
    await bench.until(lambda: first.exists() and first.read_text() and old[1].entries[LIB].library.slots == 2)
    lives.add(*old, None, [])
    assert list(old[1].entries) == [LIB]
    new = life(StartLibrary(LIB, spec, 1, (first.read_text(),)))
    begin(new[0], second)
    await bench.until(lambda: second.exists() and second.read_text())
    assert {first.read_text(), second.read_text()} == {"0", "1"}
    assert lives.occupied == Resources(1.0, 0, 1), "what runs is counted, and nothing else"
    second.unlink()
    first.unlink()
    await bench.until(lambda: bool(over))
    [told] = [message for message in said if isinstance(message, OrphansEnded)]
    assert [(end.key, end.outcome) for end in told.ends] == [(b"key1", RETURNED)]
    await over[0]
    await new[1].close(0.0)
