"""The program's side of a manager, against a store in a folder and a manager that says what the test wants."""

from __future__ import annotations

import asyncio
import gc
import importlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy
import pytest

from windlass import content, objects, snapshots
from windlass.errors import Closed, FileUnavailable, InputFailed, NotPicklable, UsageError
from windlass.files import File
from windlass.manager import journal
from windlass.manager.call import Target
from windlass.manager.client import Client
from windlass.manager.future import CallFuture
from windlass.manager.inbox import Inbox
from windlass.manager.journal import Journal
from windlass.manager.keeping import inputs_that_fit
from windlass.manager.memory import Memory
from windlass.messages import (
    CANCELLED,
    DIED,
    RETURNED,
    CallDone,
    CallEnd,
    CallId,
    CallSpec,
    CancelSubmitted,
    EndOrphans,
    FileName,
    FileRef,
    FunctionId,
    LibraryId,
    ObjectName,
    ObjectRef,
    Sandbox,
    WorkerId,
)
from windlass.objects import write_results
from windlass.pickling import pack_result, pack_scalars
from windlass.spooling import SpoolingStore

Finish = Callable[[CallFuture[Any], CallDone], bool]
TARGET = Target(LibraryId("lib@1"), FunctionId(b"f" * 16))


class Bench:
    """A client whose messages go nowhere; ``wake`` is called as the manager's loop would be."""

    def __init__(self, store: SpoolingStore) -> None:
        self.refuse = ""
        self.store = store
        self.client = Client(store, Inbox(self.wake), lambda: 0.0)

    def wake(self) -> None:
        if self.refuse:
            raise Closed(self.refuse)

    def submit(self, *args: Any) -> CallFuture[Any]:
        return self.client.submit(TARGET, args, {})

    def end(self, future: CallFuture[Any], value: Any = None, before: Callable[[], None] = lambda: None) -> None:
        payload, spans = pack_result(value, partial(write_results, self.store.folder))
        before()
        self.client.deliver([CallDone(CallEnd(CallId(future.call_id), 1, RETURNED, payload, spans))])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = SpoolingStore(tmp_path / "store", 0, None)
    yield Bench(store)
    store.close()


#: A function whose calls a journal remembers, and one that is memoized.
REMEMBERED, MEMOIZED = (TARGET._replace(content=kind + b"c" * 16) for kind in (b"j", b"m"))


def remembering(bench: Bench, folder: Path) -> Memory:
    """Give the client a journal there; whoever asks closes it."""
    memory = bench.client.memory = Memory(Journal(folder / "journal"), bench.client, lambda: 0.0, all_calls=True)
    return memory


def test_a_call_is_neither_lost_from_sight_nor_handed_out_before_it_has_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's thread may look at any moment while the manager's thread ends a call: `empty` is false from `submit` until somebody
    has collected the end, and `wait` gives out ended calls only."""
    looks: list[str] = []

    def look(where: str) -> None:
        if client.empty():
            looks.append(f"{where}: empty() says that nothing is to come")
        future = client.wait(0)
        if future is not None and not future.done():
            looks.append(f"{where}: wait() gave out a call that has not ended")

    class Watched(dict[CallId, CallFuture[Any]]):
        def pop(self, *key: Any) -> Any:
            value = super().pop(*key)
            looks.extend(["taken from the waiting ones: empty() says that nothing is to come"] if client.empty() else [])
            return value

    client = bench.client
    client._futures = Watched()  # pyright: ignore[reportPrivateUsage]
    real: Finish = CallFuture[Any].finish

    def finish(future: CallFuture[Any], done: CallDone) -> bool:
        look("before its end is noted")
        ended = real(future, done)
        if client.empty():
            looks.append("when its end is noted: empty() says that nothing is to come")
        return ended

    monkeypatch.setattr(CallFuture, "finish", finish)
    future = bench.submit(1)
    bench.end(future, "result")
    assert looks == []
    assert client.wait(0) is future
    assert client.empty()


def test_a_call_that_was_collected_while_it_ended_is_not_handed_out_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits in `result` may be quicker than the manager's thread is done with the call; then nothing of it stays."""
    real: Finish = CallFuture[Any].finish

    def finish(future: CallFuture[Any], done: CallDone) -> bool:
        ended = real(future, done)
        assert future.result(0) == "result"
        return ended

    monkeypatch.setattr(CallFuture, "finish", finish)
    bench.end(bench.submit(1), "result")
    assert bench.client.empty()
    assert bench.client.wait(0) is None


def test_it_is_told_of_each_end_that_is_read_or_that_nobody_wants_but_not_by_a_forked_copy(bench: Bench) -> None:
    """A manager keeps the rest for others. A fork would write into what is the program's."""
    told: list[tuple[int, str | None]] = []
    bench.client.on_read = lambda call, tag: told.append((call, tag))
    read, cancelled, unread, later = (bench.client.submit(TARGET, (), {}, tag="t") for _ in range(4))
    cancelled.cancel()
    for future in (read, cancelled, unread):
        bench.end(future)
    assert told == [(cancelled.call_id, "")]
    assert read.result() is None
    assert told[1:] == [(read.call_id, "t")]
    bench.client.deliver([CallDone(CallEnd(CallId(99), 1, RETURNED), tag="u")])  # it was withdrawn here
    assert told[2:] == [(99, "u")]
    bench.client.leave_to_program("a fork")
    assert unread.result() is None
    with pytest.raises(Closed):
        later.result()
    assert len(told) == 3


def test_an_end_that_was_collected_before_it_came_is_read_when_it_is_there(bench: Bench) -> None:
    """As executors do for all their calls when they submit them: there is nothing yet that could be read."""
    told: list[tuple[int, str | None]] = []
    bench.client.on_read = lambda call, tag: told.append((call, tag))
    future: CallFuture[Any] = bench.client.submit(TARGET, (), {}, tag="t")
    assert future.collect()
    assert told == []
    bench.end(future)
    assert told == [(future.call_id, "")]
    assert future.result() is None
    assert len(told) == 1


def test_a_call_that_could_not_be_handed_over_was_never_submitted(bench: Bench) -> None:
    """The manager's loop may end between the look whether it is open and the handing over: then nothing stays that would never end, and the
    arguments' room is given back."""
    bench.refuse = "the manager is closed"
    with pytest.raises(Closed, match="the manager is closed"):
        bench.submit(b"x" * 200_000)
    assert bench.client.empty()
    assert bench.client.wait(0) is None
    (name,) = bench.store.names()
    bench.store.discard(name)
    assert bench.store.names() == [], "the object has a pin that nobody will take away"


def test_a_call_can_be_cancelled_while_its_program_leaves(bench: Bench) -> None:
    """Nothing more can be said to the manager then, which ends the call itself; whoever waits for it hears that it is cancelled."""
    first, second = bench.submit(1), bench.submit(2)
    seen: list[object] = []
    first.add_done_callback(seen.append)
    bench.client._inbox.drain()  # pyright: ignore[reportPrivateUsage]
    bench.refuse = "the port is closed"
    assert first.cancel()
    assert seen == [first]
    assert bench.client.cancel_all([second]) == 1


class Interrupting:
    """Ctrl-C comes when it is unpickled for the first time."""

    times = 0

    def __reduce__(self) -> Any:
        return Interrupting.again, ()

    @staticmethod
    def again() -> str:
        Interrupting.times += 1
        if Interrupting.times == 1:
            raise KeyboardInterrupt
        return "read"


def test_who_is_interrupted_while_reading_a_large_result_may_ask_again(bench: Bench) -> None:
    """Fetching it may take long, or have to wait for a connection: Ctrl-C is the asking thread's, and the result stays."""
    future = bench.submit(1)
    bench.end(future, (Interrupting(), b"x" * 200_000))
    with pytest.raises(KeyboardInterrupt):
        future.result(0)
    assert future.result(0) == ("read", b"x" * 200_000)
    assert bench.store.names() == []


class NeedsModule:
    """Unpickling it imports a module."""

    def __reduce__(self) -> Any:
        return importlib.import_module, ("not_here_yet",)


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_result_that_could_not_be_read_may_be_asked_for_again(bench: Bench, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """As when what it needs was installed meanwhile. Until then its bytes stay."""
    future, other = bench.submit(1), bench.submit(2)
    for one in (future, other):
        bench.end(one, (NeedsModule(), b"x" * size))
    for _ in range(2):
        with pytest.raises(NotPicklable, match="No module named 'not_here_yet'; is it installed on this side too"):
            future.result(0)
        assert isinstance(future.exception(0), NotPicklable)
        assert future.state == "failed"
    assert isinstance(other.exception(0), NotPicklable)
    module = ModuleType("not_here_yet")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert future.result(0) == (module, b"x" * size)
    assert future.exception(0) is None
    assert future.state == "done"
    assert future.result(0) is future.result(0)
    assert len(bench.store.names()) == (1 if size > 1 else 0)
    bench.client.settle()  # the store is about to go
    assert other.result(0) == (module, b"x" * size)
    assert bench.store.names() == []


def test_a_result_that_could_never_be_read_says_why_when_the_store_is_gone(bench: Bench) -> None:
    future = bench.submit(1)
    bench.end(future, (NeedsModule(), b"x" * 200_000))
    bench.client.settle()
    bench.store.close()
    for _ in range(2):
        with pytest.raises(NotPicklable, match="No module named 'not_here_yet'"):
            future.result(0)


def test_a_result_that_could_not_be_read_is_given_to_a_call(bench: Bench) -> None:
    """Its worker may have what is missing here."""
    future = bench.submit(1)
    bench.end(future, NeedsModule())
    assert isinstance(future.exception(0), NotPicklable)
    assert not bench.submit(future).done()


def test_what_could_not_be_read_goes_with_its_future(bench: Bench) -> None:
    future = bench.submit(1)
    bench.end(future, (NeedsModule(), b"x" * 200_000))
    with pytest.raises(NotPicklable):
        future.result(0)
    del future
    gc.collect()
    bench.client.tidy()
    assert bench.store.names() == []


def test_a_large_result_is_shared_without_room_in_the_store(bench: Bench, tmp_path: Path) -> None:
    """An equal call of a memoized function waits for the first one's large result, and reads it in the journal. What its own program
    does with it is in no other's; when it is dropped nothing of it stays but the journal's."""
    store, target, memory = bench.store, MEMOIZED, remembering(bench, tmp_path)

    def handed_over() -> list[CallId]:
        return [item.call for item in bench.client._inbox.drain() if isinstance(item, CallSpec)]  # pyright: ignore[reportPrivateUsage]

    first, second = (bench.client.submit(target, (1,), {}) for _ in range(2))
    assert handed_over() == [first.call_id]
    bench.end(first, b"x" * 200_000)
    memory.close()
    assert handed_over() == []
    assert len(first.result(0)) == 200_000
    assert store.names() == []
    packed = second.packed()
    assert packed is not None
    [buffer] = packed[1]
    content = bench.client.recalled(buffer.name)
    assert content
    assert second.result(0) == b"x" * 200_000
    store.put(b"x" * 200_000)
    kept = [bench.client.put_joined(CallId(number), b"not looked at", content) for number in (90, 91)]
    assert {ref.name for ref in kept} == {content}, "calls that are given it name what is there already"
    store.discard(content)
    bench.client.tidy()
    assert not bench.client.recalled(buffer.name)
    third = bench.client.submit(target, (1,), {})
    shutil.rmtree(tmp_path / "journal" / "objects")
    with pytest.raises(FileUnavailable, match=r"where its buffer b3-.* is gone or damaged: the next run makes it again"):
        third.result(0)


@pytest.mark.parametrize("target", [REMEMBERED, MEMOIZED])
def test_large_arguments_are_not_read_back_for_their_key(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    """A list or a dict may have a stream as long as an array, and a manager on another machine gives out results only."""

    def refuse(name: str) -> memoryview:
        raise KeyError(name)

    memory = remembering(bench, tmp_path)
    with monkeypatch.context() as far:
        far.setattr(bench.store, "open", refuse)
        first = bench.client.submit(target, (list(range(100_000)),), {})
    bench.end(first, "kept")
    memory.close()
    memory = remembering(bench, tmp_path)
    monkeypatch.setattr(bench.store, "open", refuse)
    again, other = (bench.client.submit(target, (list(range(number)),), {}) for number in (100_000, 100_001))
    assert again.result(0) == "kept"
    assert not other.done()
    memory.close()


def test_an_argument_of_a_local_module_counts_by_the_source_and_not_by_its_archive(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose name is in the call's stream: it depends on modes, and on what packed it."""
    source, memory = tmp_path / "things_of_ours.py", remembering(bench, tmp_path)
    source.write_text("class Thing:\n    pass\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    thing = importlib.import_module("things_of_ours").Thing()

    def key() -> bytes | None:
        snapshots._snapshots.clear()  # pyright: ignore[reportPrivateUsage]
        return bench.client.submit(MEMOIZED, (thing,), {}).key

    first = key()
    source.chmod(0o755)
    assert key() == first is not None
    source.write_text("class Thing:\n    more = 1\n")
    assert key() != first
    memory.close()
    del sys.modules["things_of_ours"]


def test_a_package_whose_class_is_an_argument_counts_with_its_version(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = remembering(bench, tmp_path)

    def keys() -> list[bytes | None]:
        return [bench.client.submit(MEMOIZED, (value, [1]), {}).key for value in (numpy.float64(1), 1.0)]

    before = keys()
    assert keys() == before
    content._versions.cache_clear()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(content, "versions_of", "{} is another".format)
    after = keys()
    content._versions.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]
    memory.close()


class State:
    """As of a script."""

    def __init__(self, temperature: int) -> None:
        self.temperature = temperature


def test_a_result_that_was_changed_is_another_argument(bench: Bench, tmp_path: Path) -> None:
    """What the program has read goes along as it is now, and what it has not as it was returned."""
    memory = remembering(bench, tmp_path)

    def key(*args: Any) -> bytes:
        key = bench.client.submit(MEMOIZED, args, {}).key
        assert key is not None
        return key

    future = bench.client.submit(REMEMBERED, (1,), {})
    unread = key({1}, future)
    bench.end(future, State(100))
    assert key({1}, future) == unread
    state = future.result(0)
    read = key({1}, future)
    assert key({1}, future) == read
    state.temperature = 300
    assert key({1}, future) != read
    state.temperature = 100
    assert key({1}, future) == read
    memory.close()


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the buffers whose content the journal has looked at."""
    sizes: list[int] = []

    def content_name(data: Any) -> ObjectName:
        sizes.append(len(data))
        return objects.content_name(data)

    monkeypatch.setattr(journal, "content_name", content_name)
    return sizes


def left_by_an_earlier_life(bench: Bench, folder: Path, content: Target) -> None:
    """A large result of the call with 1."""
    memory = remembering(bench, folder)
    bench.end(bench.client.submit(content, (1,), {}), b"x" * 200_000)
    memory.close()


def test_large_results_are_looked_at_when_they_are_read_and_not_when_they_are_submitted(
    bench: Bench, tmp_path: Path, looked_at: list[int]
) -> None:
    """A campaign of a terabyte is submitted again for its last step. Also the program's end reads none: they stay where they are."""
    left_by_an_earlier_life(bench, tmp_path, REMEMBERED)
    memory = remembering(bench, tmp_path)
    looked_at.clear()
    future = bench.client.submit(REMEMBERED, (1,), {})
    assert future.done()
    bench.client.settle()
    memory.close()
    bench.store.close()
    assert looked_at == []
    assert future.result(0) == b"x" * 200_000
    assert looked_at == [200_000]


def test_what_equal_calls_share_is_looked_at_once(bench: Bench, tmp_path: Path, looked_at: list[int]) -> None:
    """Without a journal it goes with the memory, so it is read before."""
    left_by_an_earlier_life(bench, tmp_path, MEMOIZED)
    memory = remembering(bench, tmp_path)
    memory.all_calls = False
    looked_at.clear()
    first, second = (bench.client.submit(MEMOIZED, (1,), {}) for _ in range(2))
    assert looked_at == []
    assert first.result(0) == b"x" * 200_000
    bench.client.settle()
    memory.close()
    assert second.result(0) == b"x" * 200_000
    assert looked_at == [200_000]


def test_a_task_that_awaits_a_remembered_result_does_not_read_it_on_its_loop(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be gigabytes, on a disk that takes its time."""
    left_by_an_earlier_life(bench, tmp_path, REMEMBERED)
    memory = remembering(bench, tmp_path)
    here, readers = threading.current_thread(), list[bool]()
    real = memory.journal.open

    def opened(name: ObjectName) -> memoryview:
        readers.append(threading.current_thread() is here)
        return real(name)

    monkeypatch.setattr(memory.journal, "open", opened)

    async def read() -> Any:
        return await bench.client.submit(REMEMBERED, (1,), {})

    assert asyncio.run(read()) == b"x" * 200_000
    assert readers == [False]
    memory.close()


def test_who_submits_a_call_while_the_end_of_its_earlier_run_is_written_waits_for_that(bench: Bench, tmp_path: Path) -> None:
    """A worker tells of a large result for an earlier life of the program, and leaves; the disk takes its time."""
    store, target, memory = bench.store, REMEMBERED, remembering(bench, tmp_path)
    disk = threading.Event()

    def slow(name: ObjectName) -> bytes:
        assert disk.wait(30)
        return b"what is written before"

    other = CallEnd(CallId(90), 1, RETURNED, b"", (ObjectRef(ObjectName("r-" + "0" * 32), 22),))
    memory.journal.append_large(b"another", other, slow, lambda: None)
    key, worker = target.content + pack_scalars((1,), {}), WorkerId("w1")
    payload, spans = pack_result(b"x" * 200_000, partial(write_results, store.folder))
    memory.orphans_held(worker, [key], {}, lambda calls: [])
    futures = bench.client._futures  # pyright: ignore[reportPrivateUsage]
    memory.orphans_ended([CallEnd(CallId(1), 1, RETURNED, payload, tuple(spans), key=key)], futures)
    memory.orphans_lost(worker)
    future = bench.client.submit(target, (1,), {})
    [spec] = bench.client._inbox.drain()  # pyright: ignore[reportPrivateUsage]
    assert bench.client.is_seen_to(spec)
    disk.set()
    memory.close()
    assert not bench.client._inbox.drain(), "it is run again"  # pyright: ignore[reportPrivateUsage]
    assert future.result(0) == b"x" * 200_000
    assert store.names() == []


def test_a_result_that_the_journal_has_already_is_not_written_again(bench: Bench, tmp_path: Path) -> None:
    """The life before had written it, and was killed before the worker heard that it had it."""
    store, target, memory = bench.store, REMEMBERED, remembering(bench, tmp_path)
    key, worker = target.content + pack_scalars((1,), {}), WorkerId("w1")
    memory.journal.append(
        [(key, CallEnd(CallId(1), 1, RETURNED, *pack_result("written", partial(write_results, store.folder))))], index=True
    )
    _, spans = pack_result(b"x" * 200_000, partial(write_results, store.folder))
    memory.orphans_held(worker, [key], {}, lambda calls: [])
    memory.orphans_ended([CallEnd(CallId(1), 1, RETURNED, b"", tuple(spans), key=key)], {})
    assert store.names() == []
    assert bench.client.submit(target, (1,), {}).result(0) == "written"
    memory.close()


@pytest.mark.parametrize("ended", [False, True])
def test_a_call_that_is_on_its_way_to_the_manager_when_a_worker_tells_that_it_runs_is_not_run(
    bench: Bench, tmp_path: Path, ended: bool
) -> None:
    """It is not among those that can be taken back then; it waits for its earlier run all the same, unless that has ended by now."""
    store, target, memory = bench.store, REMEMBERED, remembering(bench, tmp_path)
    futures, inbox = bench.client._futures, bench.client._inbox  # pyright: ignore[reportPrivateUsage]
    future, cancelled = bench.client.submit(target, (1,), {}), bench.client.submit(target, (2,), {})
    keys = [target.content + pack_scalars((number,), {}) for number in (1, 2)]
    memory.orphans_held(WorkerId("w1"), keys, futures, lambda calls: [])
    assert cancelled.cancel()
    end = CallEnd(CallId(1), 1, RETURNED, *pack_result("result", partial(write_results, store.folder)), key=keys[0])
    if ended:
        memory.orphans_ended([end], futures)
    specs = [item for item in inbox.drain() if isinstance(item, CallSpec)]
    assert [bench.client.is_seen_to(spec) for spec in specs] == [True, False], "one that is cancelled ends at the manager"
    if not ended:
        memory.orphans_ended([end], futures)
    assert future.result(0) == "result"
    memory.close()


class Unlooked(dict[bytes, CallSpec]):
    """What may be asked for by key only."""

    def items(self) -> Any:
        raise AssertionError("all were looked at")

    values = __iter__ = items


def test_a_cancelled_call_is_not_looked_for_among_all_that_wait_for_an_earlier_life(bench: Bench, tmp_path: Path) -> None:
    """Ctrl-C cancels a million, while thousands of them wait."""
    memory = remembering(bench, tmp_path)
    futures, inbox = bench.client._futures, bench.client._inbox  # pyright: ignore[reportPrivateUsage]
    waits, other = bench.client.submit(REMEMBERED, (1,), {}), bench.client.submit(REMEMBERED, (2,), {})
    specs = [item for item in inbox.drain() if isinstance(item, CallSpec)]
    memory.orphans_held(WorkerId("w1"), [specs[0].key], futures, lambda calls: specs[:1])
    memory._parked = Unlooked(memory._parked)  # pyright: ignore[reportPrivateUsage]
    assert other.cancel()
    assert waits.cancel()
    assert waits.done()
    said = [("client", CancelSubmitted((other.call_id,))), ("client", EndOrphans([specs[0].key]))]
    assert inbox.drain() == said, "the manager does not have the one that waits, and its run is ended"
    memory.close()


class Restarted:
    """A program that was killed while calls with these arguments ran at w1, and was started again."""

    def __init__(self, bench: Bench, memory: Memory) -> None:
        self.bench, self.memory, self.client = bench, memory, bench.client

    def submit(self, number: int) -> CallFuture[Any]:
        return self.client.submit(REMEMBERED, (number,), {})

    def tell(self, *numbers: int) -> None:
        """A worker does."""
        keys = [key_of(number) for number in numbers]
        self.memory.orphans_held(WorkerId("w1"), keys, self.client._futures, lambda calls: [])  # pyright: ignore[reportPrivateUsage]

    def ended(self) -> list[bytes]:
        """The keys of those that are ended, so far."""
        said = self.client._inbox.drain()  # pyright: ignore[reportPrivateUsage]
        return [key for item in said if isinstance(item, tuple) and isinstance(item[1], EndOrphans) for key in item[1].keys]


def key_of(number: int) -> bytes:
    return REMEMBERED.content + pack_scalars((number,), {})


@pytest.fixture
def restarted(bench: Bench, tmp_path: Path) -> Iterator[Restarted]:
    memory = remembering(bench, tmp_path)
    yield Restarted(bench, memory)
    memory.close()


def test_a_cancelled_call_ends_its_run_of_an_earlier_life_when_it_had_been_sent_too(restarted: Restarted) -> None:
    """It was sent before the worker came back: it runs twice."""
    sent = restarted.submit(1)
    restarted.tell(1)
    assert restarted.ended() == []
    assert sent.cancel()
    assert restarted.ended() == [key_of(1)]


def test_a_call_that_has_ended_when_a_worker_tells_of_its_earlier_run_ends_that(restarted: Restarted) -> None:
    """It ran elsewhere, or was cancelled: nobody waits for it any more."""
    restarted.bench.end(restarted.submit(1))
    cancelled, waits = restarted.submit(2), restarted.submit(3)
    restarted.bench.client.deliver([CallDone(CallEnd(cancelled.call_id, 0, CANCELLED))])
    restarted.tell(1, 2, 3, 4)
    assert restarted.ended() == [key_of(1), key_of(2)], "not what is awaited, or may be submitted later"
    assert not waits.done()


def test_what_is_not_submitted_is_ended_when_the_program_says_so_also_when_it_is_told_of_later(restarted: Restarted) -> None:
    """Its function has changed, so nobody would ever ask for that. What was submitted goes on."""
    restarted.submit(1)
    restarted.tell(1, 2)
    assert restarted.ended() == []
    assert restarted.memory.end_earlier() == 1
    assert restarted.ended() == [key_of(2)]
    restarted.submit(3)
    restarted.tell(3, 4)
    assert restarted.ended() == [key_of(4)]
    places = restarted.memory.where([key_of(2), key_of(4), key_of(5)])
    assert places == {WorkerId("w1"): [key_of(2), key_of(4)]}


def test_what_runs_while_a_program_closes_is_left_to_the_next_life(restarted: Restarted) -> None:
    """Its futures end then, and it wants none of their runs ended."""
    restarted.submit(1)
    restarted.client.close("the manager was closed")
    restarted.tell(1, 2)
    assert restarted.ended() == []


@pytest.mark.parametrize(("outcome", "state"), [(CANCELLED, "cancelled"), (RETURNED, "done"), (DIED, "failed")])
def test_a_call_that_runs_twice_over_a_restart_is_counted_once(bench: Bench, tmp_path: Path, outcome: int, state: str) -> None:
    """It had been sent when a worker told that it runs for the life before; however its second run ends, it has returned once."""
    store, target, memory = bench.store, REMEMBERED, remembering(bench, tmp_path)
    futures, inbox = bench.client._futures, bench.client._inbox  # pyright: ignore[reportPrivateUsage]

    def counted(**core: int) -> dict[str, int]:
        calls = dict.fromkeys(("submitted", "waiting", "waiting_for_inputs", "running", "done", "failed", "cancelled"), 0) | core
        bench.client.count_in({"calls": calls})
        return {name: number for name, number in calls.items() if number}

    sent, parked = bench.client.submit(target, (1,), {}), bench.client.submit(target, (2,), {})
    keys = [target.content + pack_scalars((number,), {}) for number in (1, 2)]
    specs = [item for item in inbox.drain() if isinstance(item, CallSpec)]
    memory.orphans_held(WorkerId("w1"), keys, futures, lambda calls: specs[1:])
    for number, key in enumerate(keys, 1):
        payload, spans = pack_result(number, partial(write_results, store.folder))
        memory.orphans_ended([CallEnd(CallId(number), 1, RETURNED, payload, tuple(spans), key=key)], futures)
    assert (sent.result(0), parked.result(0)) == (1, 2)
    assert inbox.drain() == [("client", CancelSubmitted((sent.call_id,)))]
    bench.client.deliver([CallDone(CallEnd(sent.call_id, 1, outcome))])
    assert counted(**{"submitted": 1, state: 1}) == {"submitted": 2, "done": 2, "remembered": 2}
    memory.close()


@pytest.fixture
def memoizing(bench: Bench, tmp_path: Path) -> Iterator[Memoizing]:
    memory = remembering(bench, tmp_path)
    yield Memoizing(bench, memory)
    memory.close()


class Memoizing:
    """A client with calls of a memoized function, all equal."""

    def __init__(self, bench: Bench, memory: Memory) -> None:
        self.bench, self.memory = bench, memory

    def submit(self) -> CallFuture[Any]:
        return self.bench.client.submit(MEMOIZED, (1,), {})

    def handed_over(self) -> list[int]:
        return [item.call for item in self.bench.client._inbox.drain() if isinstance(item, CallSpec)]  # pyright: ignore[reportPrivateUsage]


def test_an_equal_call_that_comes_while_the_large_result_is_copied_is_not_run(
    memoizing: Memoizing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy takes seconds where the journal's disk is slow; the first call's own future has its result at once."""
    copy, do = threading.Event(), memoizing.memory.journal._do  # pyright: ignore[reportPrivateUsage]

    def late(work: Callable[[], None]) -> None:
        assert copy.wait(30)
        do(work)

    monkeypatch.setattr(memoizing.memory.journal, "_do", late)
    first = memoizing.submit()
    memoizing.bench.end(first, b"x" * 200_000)
    assert len(first.result(0)) == 200_000
    second = memoizing.submit()
    assert not second.done()
    copy.set()
    assert second.result(30) == b"x" * 200_000
    assert memoizing.handed_over() == [first.call_id]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_equal_call_that_comes_while_a_result_is_noted_is_not_run(
    memoizing: Memoizing, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is in the journal, and when it is."""
    append, late = memoizing.memory.journal.append, list[CallFuture[Any]]()

    def noted(*args: Any, **kwargs: Any) -> None:
        if when == "before":
            late.append(memoizing.submit())
        append(*args, **kwargs)
        if when == "after":
            late.append(memoizing.submit())

    monkeypatch.setattr(memoizing.memory.journal, "append", noted)
    first = memoizing.submit()
    memoizing.bench.end(first, 7)
    assert [future.result(0) for future in (first, *late, memoizing.submit())] == [7, 7, 7]
    assert memoizing.handed_over() == [first.call_id]


def test_an_equal_call_that_was_looked_up_too_early_finds_what_has_come_since(memoizing: Memoizing) -> None:
    """Between two steps of its `submit` the first one has ended; who came after it follows it."""
    memory, client = memoizing.memory, memoizing.bench.client
    first = memoizing.submit()
    [spec] = [item for item in client._inbox.drain() if isinstance(item, CallSpec)]  # pyright: ignore[reportPrivateUsage]
    memoizing.bench.end(first, 7)
    second: CallFuture[Any] = CallFuture(client, CallId(900))
    client._futures[second.call_id] = second  # pyright: ignore[reportPrivateUsage]
    assert first.key is not None
    assert memory.follow(msgspec.structs.replace(spec, call=second.call_id), first.key)
    assert second.result(0) == 7
    assert memory.following == 0


def test_a_follower_that_is_cancelled_leaves_the_others_where_they_are(memoizing: Memoizing) -> None:
    """They go on following the first, which runs: none of them is run beside it."""
    first, second, third = (memoizing.submit() for _ in range(3))
    assert second.cancel()
    assert memoizing.handed_over() == [first.call_id]
    memoizing.bench.end(first, 7)
    assert third.result(0) == 7
    assert memoizing.handed_over() == []


def many(number: int, width: int) -> list[File]:
    """Declared files of one content, under names that long."""
    return [File(0, FileRef(FileName("b3-" + "0" * 32), 1, f"{one:0{width}}"), "it") for one in range(number)]


def test_a_call_with_more_files_than_a_message_can_tell_of_is_refused_where_it_is_submitted(bench: Bench) -> None:
    """Else each worker that it is sent to would lose its session, with all others that run there."""
    bench.client.owner = 0
    with pytest.raises(UsageError, match=r"the call has 20,000 files, and to tell a worker of them takes [\d,]+ bytes, of 983,040"):
        bench.submit(many(20_000, 8))
    with pytest.raises(UsageError, match=r"the call has 20,000 files"):
        bench.submit(*many(20_000, 8))
    with pytest.raises(UsageError, match=r"the call has 300 files"):  # their names are long
        bench.submit(many(300, 4000))
    assert bench.client.empty()
    bench.submit(many(8_000, 8))
    made = tuple((f"{number}", FileName("r3-" + "0" * 32)) for number in range(20_000))
    with pytest.raises(UsageError, match=r"the call has 20,000 files"):
        inputs_that_fit({}, 0, b"", (), Sandbox(outputs=made))
    assert inputs_that_fit({}, 0, b"", (), Sandbox(outputs=made[:10_000])) == ()


def test_a_call_whose_files_and_kept_results_are_too_many_together_is_not_run(bench: Bench) -> None:
    """Either alone can be told of."""
    bench.client.owner = 0
    producer = bench.submit(1)
    alone, both = bench.submit(producer), bench.submit(producer, many(10_000, 8))
    spans = tuple(ObjectRef(ObjectName(f"r-{number:032}"), 100_000) for number in range(5_000))
    bench.client.deliver([CallDone(CallEnd(CallId(producer.call_id), 1, RETURNED, b"", spans, kept=True))])
    text = r"call 3 .*no message can tell of all that it was given: the call has 10,000 files and 5,000 parts of results that are kept"
    with pytest.raises(InputFailed, match=text):
        both.result(30)
    assert not alone.done()
    handed_over = [item.call for item in bench.client._inbox.drain() if isinstance(item, CallSpec)]  # pyright: ignore[reportPrivateUsage]
    assert handed_over == [producer.call_id, alone.call_id]
