"""What the tests of library instances share: an instance with real processes, and a record of what it says."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from windlass import pickling
from windlass.messages import (
    CallEnd,
    CallId,
    CallRun,
    FunctionDef,
    FunctionId,
    HeldCall,
    ImportSpec,
    InstanceId,
    LibraryFailed,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    ObjectName,
    ObjectRef,
)
from windlass.objects import open_in, write_results
from windlass.worker.gpus import Gpus
from windlass.worker.instance import LibraryInstance

PYTHON = sys.version_info[:2]
#: cloudpickle, which has no types.
CLOUD: Any = importlib.import_module("cloudpickle")


class Record:
    """`InstanceEvents` that keeps everything and can be waited on."""

    def __init__(self) -> None:
        self.readies: list[LibraryReady] = []
        self.noteds: list[LibraryReady] = []
        self.failures: list[LibraryFailed] = []
        self.ends: dict[tuple[int, int], CallEnd] = {}
        self.ended_twice: list[tuple[int, int]] = []
        self.given_back: list[tuple[int, int]] = []
        self.reasons: dict[int, str] = {}
        self.rooms = 0
        self.troubles: list[str] = []
        self.changed = asyncio.Event()

    def ready(self, message: LibraryReady) -> None:
        self.readies.append(message)
        self.changed.set()

    def noted(self, message: LibraryReady) -> None:
        self.noteds.append(message)
        self.changed.set()

    def failed(self, message: LibraryFailed) -> None:
        self.failures.append(message)
        self.changed.set()

    def ended(self, ends: list[CallEnd]) -> None:
        for end in ends:
            key = (end.call, end.attempt)
            if key in self.ends:
                self.ended_twice.append(key)
            self.ends[key] = end
        self.changed.set()

    def lost(self, calls: list[HeldCall], reason: str = "instance") -> None:
        self.given_back += [(item.call, item.attempt) for item in calls]
        self.reasons.update((item.call, reason) for item in calls)
        self.changed.set()

    def room(self) -> None:
        self.rooms += 1
        self.changed.set()

    def trouble(self, text: str) -> None:
        self.troubles.append(text)
        self.changed.set()

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for an event after which `condition` holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Bench:
    """Makes instances in a folder of the test's own, and calls for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.functions = folder / "store", folder / "functions"
        for path in (self.store, self.functions):
            path.mkdir()
        self.events = Record()
        self.instances: list[LibraryInstance] = []
        self.next_call = 0
        self.gpus = Gpus()
        self.ids: dict[Callable[..., Any], FunctionId] = {}

    def function(self, function: Callable[..., Any]) -> FunctionDef:
        """A definition with a content name of its own."""
        module = sys.modules[function.__module__]
        if "test_" in module.__name__:  # slots cannot import it
            CLOUD.register_pickle_by_value(module)
        identity = FunctionId(os.urandom(16))
        self.ids[function] = identity
        return FunctionDef(identity, function.__name__, CLOUD.dumps(function))

    def add_function(self, function: Callable[..., Any]) -> None:
        """As `AddFunctions` leaves it for slots."""
        definition = self.function(function)
        (self.functions / definition.id.hex()).write_bytes(msgspec.msgpack.encode(definition))

    def spec(self, *functions: Callable[..., Any], imports: tuple[ImportSpec, ...] = (), context: Any = None, **more: Any) -> LibrarySpec:
        """A library of these functions."""
        return LibrarySpec(
            LibraryId("lib@1"),
            "lib",
            more.pop("python", PYTHON),
            tuple(self.function(function) for function in functions),
            imports,
            self.context_blob(context) if context else b"",
            **more,
        )

    def context_blob(self, context: tuple[Any, ...]) -> bytes:
        """``(function, args, kwargs)`` by value."""
        CLOUD.register_pickle_by_value(sys.modules[context[0].__module__])
        return CLOUD.dumps(context)  # type: ignore[no-any-return]

    def start(self, spec: LibrarySpec, slots: int = 1, gpu_ids: tuple[str, ...] = (), **more: Any) -> LibraryInstance:
        """An instance that has been told to start."""
        instance = LibraryInstance(
            spec,
            InstanceId(len(self.instances) + 1),
            scratch=self.folder,
            store_folder=self.store,
            functions_folder=self.functions,
            events=self.events,
            gpus=self.gpus,
            **more,
        )
        self.instances.append(instance)
        instance.start(slots, gpu_ids)
        return instance

    async def serving(self, spec: LibrarySpec, slots: int = 1, gpu_ids: tuple[str, ...] = (), **more: Any) -> LibraryInstance:
        """An instance whose slots all serve."""
        instance = self.start(spec, slots, gpu_ids, **more)
        await self.events.until(lambda: bool(self.events.readies or self.events.failures))
        assert not self.events.failures, self.events.failures
        await self.until(lambda: instance.slots == slots)
        return instance

    def put(self, data: Any) -> ObjectRef:
        """An object in the worker's store."""
        return write_results(self.store, [data])[0]

    def open(self, name: ObjectName) -> memoryview:
        """An object from the worker's store."""
        return open_in(self.store, name)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> CallRun:
        """A call with the next number."""
        self.next_call += 1
        payload, spans = pickling.pack_call(args, kwargs, self.put)
        return CallRun(CallId(self.next_call), 1, self.instances[-1].instance, self.ids[function], payload, spans)

    async def end(self, call: CallRun) -> CallEnd:
        """The end of a call that was fed."""
        key = (call.call, call.attempt)
        await self.events.until(lambda: key in self.events.ends)
        return self.events.ends[key]

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> CallEnd:
        """Feed one call and wait for its end."""
        call = self.call(function, *args, **kwargs)
        assert self.instances[-1].feed([call]) == 1
        return await self.end(call)

    def value(self, end: CallEnd) -> Any:
        """The result of a call that has returned."""
        assert end.outcome == 0, (end.outcome, end.detail, end.stderr)
        return pickling.unpack_result(end.payload, end.spans, self.open)

    def living(self) -> Counter[str]:
        """Processes that instances have started and that have not ended."""
        return _living()

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for something of which only /proc or shared memory can tell."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)


def _living() -> Counter[str]:
    """Processes of instances, by command line, that live on this machine below this process or without a parent."""
    found: Counter[str] = Counter()
    me = str(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"WINDLASS_TEST_OF={me}".encode() in environment.split(b"\0") and state not in "ZX":
                found[name] += 1
    return found


@pytest_asyncio.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A `Bench`; after the test its instances are stopped, and nothing that they started is running."""
    monkeypatch.setenv("WINDLASS_TEST_OF", str(os.getpid()))
    bench = Bench(tmp_path)
    yield bench
    for instance in bench.instances:
        await instance.stop()
        assert not instance.folder.exists()
    assert not _living()
    assert not bench.events.ended_twice
