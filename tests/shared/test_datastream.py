"""Data connections that have much to do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.shared.test_dataplane import ends

from windlass import dataplane
from windlass.datastream import Stream
from windlass.identity import Authority


def test_of_one_who_needs_thousands_at_once_no_connection_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager has a limit for what waits there, and here its network takes nothing for a while."""
    monkeypatch.setattr(dataplane, "MAX_WAITING", 8)
    go_on, held = Stream._pump_soon, set[Stream]()  # pyright: ignore[reportPrivateUsage]

    def hold(stream: Stream) -> None:
        held.add(stream)

    async def work() -> None:
        async with ends(Authority.create("m1", tmp_path / "m1"), tmp_path) as both:
            refs = [both.theirs.put(os.urandom(1000)) for _ in range(60)]
            monkeypatch.setattr(dataplane._Served, "_pump_soon", hold)  # pyright: ignore[reportPrivateUsage]
            getting = asyncio.gather(*(both.client.get(ref) for ref in refs))
            await asyncio.sleep(0.3)
            monkeypatch.setattr(dataplane._Served, "_pump_soon", go_on)  # pyright: ignore[reportPrivateUsage]
            assert held
            for stream in held:
                go_on(stream)
            await getting
            assert all(both.ours.verify(ref.name) for ref in refs)

    asyncio.run(work())
