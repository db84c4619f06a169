"""Rules of `windlass.worker.libraries` that need no process: functions that cannot be had."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from tests.worker.test_backlog import FUNCTION, LIB, Desk, Queue, call

from windlass.bulk import ObjectGone
from windlass.errors import StoreFull
from windlass.messages import BAD_CALL, DIED, AddFunctions, FunctionDef, Message, ObjectName, ObjectRef
from windlass.objects import ObjectStore
from windlass.worker.backlog import Backlog
from windlass.worker.gpus import Gpus
from windlass.worker.libraries import Libraries
from windlass.worker.transfers import Transfers

pytestmark = pytest.mark.asyncio


class Wire:
    """A way to the manager by which no object comes."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def get(self, ref: ObjectRef, /) -> None:
        raise self._error

    async def put(self, name: ObjectName, path: str, /) -> None:
        raise AssertionError(name)


class Ground:
    """The libraries of a worker with one instance, whose queue is played, and a function that comes as an object of 100 bytes."""

    def __init__(self, folder: Path, error: Exception, limit: int = 1000) -> None:
        self.desk, self.troubles, self.said = Desk(), list[str](), list[Message]()
        self.backlog = Backlog(self.desk)
        told = {"arrived": self.backlog.arrived, "failed": self.backlog.failed, "room_made": self.backlog.room_made}
        transfers = Transfers(ObjectStore(folder / "store", limit), Wire(error), **cast("Any", told))
        says = self.said.append, lambda _: None, self._trouble
        gpus = Gpus()
        libraries = Libraries(self.backlog, transfers, *says, folder, folder, folder, None, gpus, files=lambda: cast("Any", None))
        self.backlog.add(LIB, Queue(), 1)
        self.backlog.serves(LIB)
        libraries.add_functions(AddFunctions((FunctionDef(FUNCTION, "f", b"", ObjectRef(ObjectName("b3-" + "0" * 32), 100)),)))
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
    ground = Ground(tmp_path, OSError(28, "No space left on device"))
    assert await ground.settle() == [("draining", 1)]
    (trouble,) = ground.troubles
    assert trouble.startswith("function f: object b3-")
    assert "No space left on device" in trouble
    assert ground.said == []


@pytest.mark.parametrize(
    ("error", "limit", "outcome"),
    [(ObjectGone("the manager does not have it"), 1000, BAD_CALL), (StoreFull("too large"), 99, DIED)],
    ids=["that is nowhere", "too large for any"],
)
async def test_a_function_that_will_never_come_ends_its_calls(tmp_path: Path, error: Exception, limit: int, outcome: int) -> None:
    """Also later ones: other workers would meet the same."""
    ground = Ground(tmp_path, error, limit)
    assert await ground.settle() == [("ended", 1, outcome)]
    ground.backlog.run([call(2)])
    assert await ground.settle() == [("ended", 2, outcome)]
    assert ground.troubles == []
