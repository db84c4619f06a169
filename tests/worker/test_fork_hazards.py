"""Mode "fork" where a fork would not be safe: as JAX, polars and OpenMP do, the context has started threads on which calls depend."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from windlass.messages import CANCELLED, ImportSpec


def add(a: int, b: int) -> int:
    """A call."""
    return a + b


def start_pool() -> dict[str, Any]:
    """A pool with a thread, without which no work that it is given is ever done."""
    pool = ThreadPoolExecutor(1)
    pool.submit(os.getpid).result()
    return {"pool": pool}


def ask(pool: Any) -> tuple[int, int]:
    """Work for the pool's thread, and who is asked."""
    return pool.submit(pow, 2, 5).result(), os.getpid()


@pytest.mark.asyncio
@pytest.mark.parametrize("shared", [False, True])
async def test_calls_whose_context_has_threads_have_a_slot_each(bench: Any, shared: bool) -> None:
    """In a fork the threads are missing and each call would wait for ever; that each has a fresh process stays true."""
    spec = bench.spec(ask, context=(start_pool, (), {}), share_context=shared, mode="fork")
    await bench.serving(spec)
    answers = [bench.value(await bench.run(ask)) for _ in range(3)]
    assert [value for value, _ in answers] == [32, 32, 32]
    assert len({pid for _, pid in answers}) == 3
    (noted,) = bench.events.noteds
    why = "1 thread besides the main one after its context"
    assert noted.notes == (
        *([f"spawn instead of fork: {why}"] if shared else []),
        f"a new slot for each call instead of a fork: {why}",
    )


@pytest.mark.asyncio
async def test_why_no_fork_is_safe_is_told_once(bench: Any, tmp_path: Path) -> None:
    """Pools that grow as they are used have another number of threads in each slot, and each call has a slot."""

    def start_pools(folder: str) -> dict[str, Any]:
        with open(f"{folder}/slots", "a") as file:
            file.write(".")
        return {"pools": [start_pool() for _ in range(os.stat(f"{folder}/slots").st_size)]}

    await bench.serving(bench.spec(add, context=(start_pools, (str(tmp_path),), {}), mode="fork"))
    assert [bench.value(await bench.run(add, 1, i)) for i in range(3)] == [1, 2, 3]
    ((note,),) = [noted.notes for noted in bench.events.noteds]
    assert note == "a new slot for each call instead of a fork: 1 thread besides the main one after its context"


@pytest.mark.asyncio
async def test_calls_that_import_threads_have_a_slot_each(bench: Any, tmp_path: Path) -> None:
    """A slot that is an interpreter of its own for the threads of an import is as unsafe to fork as its zygote was."""
    pool = "from concurrent.futures import ThreadPoolExecutor\nPOOL = ThreadPoolExecutor(1)\nPOOL.submit(int).result()\n"
    (tmp_path / "pooled.py").write_text(pool)

    def use() -> int:
        import pooled  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

        return pooled.POOL.submit(pow, 2, 5).result()  # type: ignore[no-any-return]  # pyright: ignore

    await bench.serving(bench.spec(use, imports=(ImportSpec("pooled", True),), paths=(str(tmp_path),), mode="fork"))
    assert [bench.value(await bench.run(use)) for _ in range(2)] == [32, 32]


@pytest.mark.asyncio
async def test_what_a_function_refers_to_is_named_where_it_starts_threads(bench: Any) -> None:
    """An array of JAX among a script's globals: it is the loading of the function that starts what makes a fork unsafe."""

    class Starts:
        def __reduce__(self) -> tuple[Callable[[], dict[str, Any]], tuple[()]]:
            return start_pool, ()

    kept = Starts()

    def use() -> str:
        return type(kept).__name__

    await bench.serving(bench.spec(use))
    (ready,) = bench.events.readies
    assert ready.notes == ("spawn instead of fork: 1 thread besides the main one after loading what function 'use' refers to",)
    assert bench.value(await bench.run(use)) == "dict"


@pytest.mark.asyncio
async def test_such_a_call_is_cancelled_at_once_and_the_next_one_runs(bench: Any, tmp_path: Path) -> None:
    """Its process is the slot, which is not waited for to fork another."""

    def wait(path: str, pool: Any) -> None:
        Path(path).touch()
        pool.submit(time.sleep, 60).result()

    instance = await bench.serving(bench.spec(wait, add, context=(start_pool, (), {}), mode="fork"))
    call = bench.call(wait, str(tmp_path / "runs"))
    slot = instance.slot_pids()[0]
    instance.feed([call])
    await bench.until((tmp_path / "runs").exists)
    assert instance._ground.rows.child(0, 1) == slot
    assert instance.kill_call(call.call, 1, CANCELLED, None)
    assert (await bench.end(call)).outcome == CANCELLED
    assert bench.value(await bench.run(add, 1, 2)) == 3
    assert instance.slot_pids()[0] != slot


@pytest.mark.asyncio
async def test_what_each_call_imports_anew_is_told_once(bench: Any, tmp_path: Path) -> None:
    """PyTorch imports hundreds of modules at its first optimizer, pyarrow pandas at its first table: in mode "fork" that is each call's."""
    (tmp_path / "light.py").write_text("")
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "__init__.py").write_text("import importlib\nfor i in range(60): importlib.import_module(f'large.part{i}')\n")
    for i in range(60):
        (tmp_path / "large" / f"part{i}.py").touch()

    def use(module: str) -> int:
        import importlib

        return len(vars(importlib.import_module(module)))

    await bench.serving(bench.spec(use, imports=(ImportSpec("importlib"),), paths=(str(tmp_path),), mode="fork"))
    for module in ("light", "large", "large"):
        assert bench.value(await bench.run(use, module)) > 0
    ((note,),) = [noted.notes for noted in bench.events.noteds]
    assert re.fullmatch(r"mode='fork': each call of 'use' imports 6\d modules anew; imports=\['large', 'auto'\] hoists them", note)


@pytest.mark.asyncio
async def test_an_answer_is_not_lost_for_what_its_call_puts_among_the_modules(bench: Any) -> None:
    """What each call imports anew is told after it has computed: a mistake there is none of the call's."""

    def strew() -> int:
        import sys
        import types

        for i in range(60):
            sys.modules[(i, "part")] = types.ModuleType("part")  # type: ignore[index]  # pyright: ignore[reportArgumentType]
        return os.getppid()

    instance = await bench.serving(bench.spec(strew, imports=(ImportSpec("os"),), mode="fork"))
    slot = instance.slot_pids()[0]
    assert [bench.value(await bench.run(strew)) for _ in range(2)] == [slot, slot]
    assert not bench.events.noteds
