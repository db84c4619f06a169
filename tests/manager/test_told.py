"""A worker is given what it was told of, and nothing else: objects and files, as the core sees it, and over real connections."""

# pyright: reportPrivateUsage=false
# The manager's authority makes the certificates of workers that are not there.

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from windlass import Manager
from windlass.bulk import ObjectGone
from windlass.dataplane import DataClient
from windlass.identity import WORKER, read_connection_file
from windlass.manager.core import Core
from windlass.manager.told import was_told_of_object
from windlass.manager.workers import RECENT
from windlass.messages import (
    PROTOCOL,
    CallEnd,
    CallId,
    CallsEnded,
    CallSpec,
    FetchFile,
    FileLost,
    FileName,
    FileOrigin,
    FileRef,
    FunctionDef,
    FunctionId,
    Hello,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    Message,
    ObjectName,
    ObjectRef,
    PoolEnvironment,
    Resources,
    StartLibrary,
    WantFiles,
    WorkerId,
    WorkerInfo,
)
from windlass.object_store import ObjectStore

LIB = LibraryId("lib@1")
F = FunctionId(b"f" * 16)


def name_of(digit: str) -> ObjectName:
    return ObjectName("b3-" + digit * 32)


ARGUMENT, CODE, BLOB, LATER = (ObjectRef(name_of(digit), 100_000) for digit in "1234")
FILE, OTHER, PACKED, ROOM = (FileRef(FileName("b3-" + digit * 32), 5, "x") for digit in "5678")
UNPACKED = FileRef(FileName("u3-" + "9" * 32), -1, "x")


class Bench:
    """A core with two workers and a library; everything goes to the first one, as the second has no cores."""

    def __init__(self) -> None:
        self.core = Core()
        for ref in (FILE, OTHER, PACKED, ROOM):
            self.core.declare_file(ref, FileOrigin(path="/x", stamp=(1, 5)))
        self.core.declare_file(UNPACKED, FileOrigin(archive=PACKED))
        functions = (FunctionDef(F, "f", b"", BLOB),)
        self.core.install(LibrarySpec(LIB, "lib", (3, 11), functions, code=(CODE,), environment=UNPACKED), 0.0)
        for name, cores in (("w1", 1.0), ("w2", 0.0)):
            self.core.worker_joined(WorkerId(name), WorkerInfo("h", 1, Resources(cores), accepting=bool(cores)), 0.0)

    def submit(self, number: int, *spans: ObjectRef, inputs: tuple[FileRef, ...] = ()) -> None:
        self.core.submit([CallSpec(CallId(number), LIB, F, b"", spans, inputs=inputs)], 0.0)
        self.step()

    def say(self, worker: str, *messages: Message) -> dict[WorkerId, list[Message]]:
        self.core.worker_said(WorkerId(worker), messages, 0.0)
        return self.step()

    def step(self) -> dict[WorkerId, list[Message]]:
        self.core.pump(0.0)
        sent = self.core.take_outbox()
        for worker, messages in sent.items():
            for message in messages:
                if isinstance(message, StartLibrary):
                    self.core.worker_said(worker, [LibraryReady(message.instance, 7)], 0.0)
        self.core.pump(0.0)
        for worker, messages in self.core.take_outbox().items():
            sent.setdefault(worker, []).extend(messages)
        return sent

    def may_have(self, ref: ObjectRef, worker: str = "w1") -> bool:
        return was_told_of_object(self.core, worker, ref.name)

    def wants(self, ref: FileRef, worker: str = "w1") -> Message:
        [message] = [one for one in self.say(worker, WantFiles((ref.name,)))[WorkerId(worker)] if isinstance(one, FetchFile | FileLost)]
        return message


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_objects_of_a_library_and_of_a_call_are_for_the_worker_that_has_them(bench: Bench) -> None:
    assert not bench.may_have(CODE)
    bench.submit(1, ARGUMENT)
    for ref in (ARGUMENT, CODE, BLOB):
        assert bench.may_have(ref)
        assert not bench.may_have(ref, "w2"), "which holds no call and no library"
        assert not bench.may_have(ref, "w3"), "whom nobody knows"
    assert not bench.may_have(LATER)


def test_an_object_may_be_asked_for_a_little_after_its_call(bench: Bench) -> None:
    """The request comes over another connection, and the next call may need the same."""
    bench.submit(1, ARGUMENT)
    bench.say("w1", CallsEnded([CallEnd(CallId(1), 1, 0)]))
    assert bench.may_have(ARGUMENT)
    for number in range(2, RECENT + 2):
        bench.submit(number, LATER)
        bench.say("w1", CallsEnded([CallEnd(CallId(number), 1, 0)]))
    assert not bench.may_have(ARGUMENT)
    assert bench.may_have(LATER)


def test_files_of_its_calls_and_of_its_environment_are_for_a_worker_and_no_others(bench: Bench) -> None:
    """The archive that an environment is unpacked from too."""
    bench.submit(1, inputs=(FILE,))
    for ref in (FILE, UNPACKED, PACKED):
        assert isinstance(bench.wants(ref), FetchFile)
        refused = bench.wants(ref, "w2")
        assert isinstance(refused, FileLost)
        assert refused.text == "worker w2 was not told of this file, or needs it no more"
    assert isinstance(bench.wants(OTHER), FileLost)


def test_a_file_is_not_for_a_worker_whose_call_has_ended(bench: Bench) -> None:
    bench.submit(1, inputs=(FILE,))
    bench.say("w1", CallsEnded([CallEnd(CallId(1), 1, 0)]))
    assert isinstance(bench.wants(FILE), FileLost)


class Looked(tuple[FileRef, ...]):
    """Inputs of a call that count how often they are looked through."""

    __slots__ = ()
    times = 0

    def __iter__(self) -> Iterator[FileRef]:
        Looked.times += 1
        return super().__iter__()


def test_what_a_worker_was_told_of_is_looked_through_once_for_all_files_that_it_asks_for(bench: Bench) -> None:
    """A call may have ten thousand, and so may those beside it: for each of them, that stops a manager for seconds."""
    refs = [FileRef(FileName(f"b3-{number:032x}"), 5, "x") for number in range(1000)]
    for ref in refs:
        bench.core.declare_file(ref, FileOrigin(path="/x"))
    bench.submit(1, inputs=Looked(refs))
    Looked.times = 0
    bench.say("w1", WantFiles(tuple(ref.name for ref in (*refs, OTHER, PACKED))))
    assert Looked.times <= 3
    assert all(bench.core.replicas.files[ref.name].waiting or bench.core.replicas.files[ref.name].fetching for ref in (*refs, PACKED))
    assert not bench.core.replicas.files[OTHER.name].waiting


def test_over_a_connection_a_worker_gets_no_object_whose_name_it_merely_knows(tmp_path: Path) -> None:
    """Nor what is no object: paths, the store's token."""
    with Manager() as manager:
        kept = manager._store.put(os.urandom(100_000), pin=True)
        server = manager._server
        certificate, key = server.authority.credential(WORKER, "w1")
        known = msgspec.structs.replace(read_connection_file(manager.pilot_file), path="")
        store = ObjectStore(tmp_path / "store", 1 << 30)

        async def work() -> None:
            client = DataClient(known, lambda: Hello("worker", PROTOCOL, "0", sys.version_info[:2], "w1"), store)
            client.use_certificate(certificate, key)
            for name in (kept.name, ".token", "../" + kept.name, "r-" + "0" * 32):
                with pytest.raises(ObjectGone, match="worker w1 was not told of it, or needs it no more"):
                    await client.get(ObjectRef(ObjectName(name), kept.size))
            await client.close()

        asyncio.run(work())
        store.close()


def test_the_environment_of_its_pool_is_for_a_worker_that_has_one(bench: Bench) -> None:
    """It said so as it joined, and asks for archive and what is unpacked of it before anything is sent to it; no other worker has it."""
    unpacked, packed = FileRef(FileName("u3-" + "7" * 32), -1, "env"), FileRef(FileName("b3-" + "7" * 32), 9, "env.tar.gz")
    environment = PoolEnvironment(unpacked, packed, "/env")
    info = WorkerInfo("h", 1, Resources(0.0), accepting=False, environment=environment)
    bench.core.worker_joined(WorkerId("w3"), info, 0.0)
    assert isinstance(bench.wants(environment.packed, "w3"), FetchFile)
    assert isinstance(bench.wants(environment.packed, "w2"), FileLost)
