"""Rules of `windlass.worker.supply` about objects that the node does not take."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any, cast

import pytest
from tests.worker.test_backlog import LIB, Queue, call
from tests.worker.test_libraries import Room
from tests.worker.test_orphans import unheard

from windlass.errors import StoreFull
from windlass.messages import ObjectRef
from windlass.objects import ObjectStore
from windlass.worker.backlog import Backlog
from windlass.worker.supply import Supply

pytestmark = pytest.mark.asyncio


class Wire:
    """Data connections; what comes by them finds the disk full."""

    async def get(self, ref: ObjectRef, /) -> None:
        error = StoreFull(f"no room for an object of {ref.size} bytes in /dev/shm/x")
        error.errno = errno.ENOSPC
        raise error


async def test_a_disk_that_is_full_ends_no_call_for_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker drains, and they go back: one that ended them, each at once, would get all that there are."""
    desk, troubles = Room(), list[str]()
    backlog = Backlog(desk)

    def trouble(text: str) -> None:
        troubles.append(text)
        backlog.drain()

    supply = Supply("w", *cast("tuple[Any, Any, Any]", (None, None, None)), unheard, trouble)
    supply.store = ObjectStore(tmp_path, 1000)
    monkeypatch.setattr(supply, "_data", Wire())
    desk.moves = supply.new_session(backlog)
    backlog.add(LIB, Queue(), 1)
    backlog.run([call(1, spans=["b3-a"]), call(2, spans=["b3-a"])])
    async with asyncio.timeout(10):
        while not desk.said:
            await asyncio.sleep(0)
    assert desk.take() == [("draining", 1, 2)]
    assert troubles == [f"files cannot be kept on {os.uname().nodename}: no room for an object of 100 bytes in /dev/shm/x"]
