"""What calls of async functions that share a slot can do to each other, and to the slot."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.worker.test_slot_tasks import begun, nap, until_there
from windlass.messages import CANCELLED, DIED, TIMED_OUT, EndDetail, FunctionDef, Sandbox
from windlass.worker import slotset


class Loads:
    """What does this when it is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.does = function, args

    def __reduce__(self) -> Any:
        return self.does


async def never() -> None:
    """What cannot be loaded."""


def add_function_that(bench: Any, loads: Loads) -> None:
    """`never`, as one that comes later, whose loading does this."""
    definition: FunctionDef = bench.function(never)
    definition = msgspec.structs.replace(definition, blob=pickle.dumps(loads))
    (bench.functions / definition.id.hex()).write_bytes(msgspec.msgpack.encode(definition))


@pytest.mark.asyncio
async def test_a_call_whose_function_ends_the_process_as_it_is_loaded_is_charged(bench: Any) -> None:
    """As in any slot: it would be given back for nothing, and run again, for ever."""
    await bench.serving(bench.spec(nap, concurrency=8))
    add_function_that(bench, Loads(os._exit, 3))
    end = await bench.run(never)
    assert (end.outcome, end.detail.exit_status) == (DIED, 3)
    assert bench.value(await bench.run(nap, 0)) == 1
    assert not bench.events.given_back


@pytest.mark.asyncio
@pytest.mark.parametrize("alone", [False, True])
async def test_a_call_whose_function_hangs_as_it_is_loaded_runs(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """So its timeout ends it, and not those of its neighbours, which go back; with a directory of its own it is loaded when it is alone."""
    monkeypatch.setattr(slotset, "CANCEL_SECONDS", 0.1)
    instance = await bench.serving(bench.spec(until_there, concurrency=8))
    add_function_that(bench, Loads(time.sleep, 600))
    neighbour, hangs = bench.call(until_there, str(tmp_path / "go")), bench.call(never)
    if alone:
        hangs.sandbox = Sandbox()
    else:
        instance.feed([neighbour])
        await begun(tmp_path / "go")
    instance.feed([hangs])
    await bench.until(lambda: hangs.call in {one.call for one in instance.running()})
    assert instance.kill_call(hangs.call, 1, TIMED_OUT, EndDetail(text="too long"))
    end = await bench.end(hangs)
    assert (end.outcome, end.detail.text) == (TIMED_OUT, "too long")
    if not alone:
        await bench.events.until(lambda: bench.events.given_back == [(neighbour.call, 1)])
        assert bench.events.reasons == {neighbour.call: "neighbour"}
