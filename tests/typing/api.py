"""What type checkers make of the public API. Never run: `test_typing.py` gives it to mypy, and pyright reads all tests."""

from __future__ import annotations

import asyncio
import concurrent.futures
from pathlib import Path
from typing import Any, assert_type, cast

from windlass import (
    AttachedManager,
    CallFuture,
    Command,
    CommandResult,
    Executor,
    Factory,
    File,
    FunctionCall,
    Library,
    Manager,
    Pool,
    attach,
    environment,
    on_warning,
    time_left,
)
from windlass.environment import Packed
from windlass.manager.executor import View
from windlass.manager.future import Timings
from windlass.manager.mapping import MapResults
from windlass.messages import CallId
from windlass.pilot_end import Registration


def packing() -> Packed:
    made = environment.pack("e.tar.gz", exclude=["mypy"], say=print)
    assert_type(made.path, Path)
    Factory(Manager(), "slurm", environment=made)
    Factory(Manager(), "slurm", container="image.sif")
    return made


def length(text: str, *, strip: bool = False) -> int:
    return len(text.strip() if strip else text)


async def later(text: str) -> int:
    return len(text)


def coroutines(pool: Executor) -> None:
    """A call gives what the async function returns."""
    assert_type(pool.submit(later, "x"), CallFuture[int])
    assert_type(pool.map(later, ["x"]), MapResults[int])
    pool.submit(later, 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def futures(pool: Executor) -> None:
    future = pool.submit(length, "x", strip=True)
    assert_type(future, CallFuture[int])
    assert_type(future.result(timeout=1.5), int)
    assert_type(future.exception(), BaseException | None)
    assert_type(future.output, int)
    assert_type(future.error, BaseException | None)
    assert_type(future.stdout, str)
    assert_type(future.timings, Timings)
    assert_type(future.timings.running, float)
    assert_type(future.call_id, CallId)
    assert_type(future.cancel(), bool)
    stock: concurrent.futures.Future[int] = future
    stock.add_done_callback(lambda done: assert_type(done.result(), int))
    pool.submit(length, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    pool.submit(length, "x", strip="y")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def add(left: int, right: int = 0) -> int:
    return left + right


def futures_as_arguments(pool: Executor, manager: Manager) -> None:
    first = pool.submit(length, "x")
    assert_type(pool.submit(add, cast("Any", first), right=cast("Any", first)), CallFuture[int])
    assert_type(manager.submit(FunctionCall("lib", "add", first, [first])), CallFuture[Any])


def many_futures(pool: Executor) -> None:
    several = [pool.submit(length, text) for text in "abc"]
    done, _ = concurrent.futures.wait(several)
    for future in done:
        assert_type(future.result(), int)
    for future in concurrent.futures.as_completed(several):
        assert_type(future.result(), int)


async def awaited(pool: Executor) -> None:
    future = pool.submit(length, "x")
    assert_type(await future, int)
    assert_type(await asyncio.wrap_future(future), int)
    assert_type(await asyncio.gather(future, future), tuple[int, int])
    async with Executor("local") as other, Manager() as manager, Factory(manager) as factory:
        assert_type(other, Executor)
        assert_type(manager, Manager)
        assert_type(factory, Factory)
        assert_type([number async for number in other.map(length, "abc")], list[int])


def options(pool: Executor) -> None:
    view = pool.with_options(timeout="10min", retries=2, retry_on=(OSError, "package.Error"), memory="auto", tag="x")
    assert_type(view, View)
    assert_type(view.submit(length, "x"), CallFuture[int])
    pool.with_options(timout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    pool.with_options(retries="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def mapping(pool: Executor) -> None:
    results = pool.map(length, ["a", "b"], timeout=3, ordered=False, progress="lengths", buffersize=10)
    assert_type(results, MapResults[int])
    for value in results:
        assert_type(value, int)
    results.close()


def for_any_executor(stock: concurrent.futures.Executor) -> None:
    assert_type(stock.submit(length, "x"), concurrent.futures.Future[int])


def everywhere(pool: Executor) -> None:
    for_any_executor(pool)
    for_any_executor(pool.with_options(timeout=3))


def calls(library: Library) -> None:
    call = FunctionCall("lib", "length", "x", strip=True)
    assert_type(call.with_options(retries=1, cores=2.5), FunctionCall)
    FunctionCall(library, length, "x", timeout=3)
    FunctionCall(3, "length")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    call.with_options(priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def in_functions() -> None:
    assert_type(time_left(), float)
    with on_warning(lambda seconds: assert_type(seconds, float)) as registration:
        assert_type(registration, Registration)
    on_warning(print).cancel()
    on_warning("save")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def libraries() -> None:
    Library("lib", length, imports=[asyncio, "json"], context=(length, ["x"], {}), slots=2, memory="2GB", env={"A": "1"})
    Library("lib", length, imports="auto", start_timeout="10min", python="3.11")
    Library("lib", length, env={"A": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]


def pools(manager: Manager) -> None:
    Factory(manager, ["short", Pool("slurm", cores=8)], max_pilots=4)
    Executor([Pool("htcondor"), "gpu"])
    Factory(manager, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def attached() -> None:
    with attach("night", state_dir="/shared/state", keep=True) as manager:
        assert_type(manager, AttachedManager)
        Factory(manager, "local")
        Executor("local", manager=manager)
        assert_type(manager.submit(FunctionCall("lib", "f", 1)), CallFuture[Any])
        manager.detach()
    attach(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Manager(state_dir="/shared/state", trust_state_dir=True)


def files(manager: Manager, file: File) -> None:
    """What is declared is a File, and nothing says that the function gets a Path."""
    assert_type(manager.declare_file("data.csv"), File)
    assert_type(manager.declare_file(Path("tree"), level="forever"), File)
    assert_type(manager.declare_buffer(b"bytes", "name"), File)
    assert_type(manager.declare_url("https://example.org/data"), File)
    assert_type(manager.declare_shared("/shared/data", stage="node"), File)
    assert_type(manager.declare_archive(file), File)
    assert_type(manager.declare_temp("part"), File)
    assert_type(manager.declare_minitask(FunctionCall("lib", "table")), File)
    assert_type(manager.fetch_file(file), bytes)
    manager.declare_file("data.csv", level="always")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    call = FunctionCall("lib", "f", file).with_options(keep="worker")
    call.add_input(file, "in")
    call.add_output(manager.declare_temp(), "out")


def commands(manager: Manager, file: File) -> None:
    """A command's result has a type; `Manager.submit` takes commands and calls."""
    command = Command("gzip < in > out", inputs={"in": file}, outputs=["out"], env={"LANG": None}, timeout="1min", cores=2)
    assert_type(manager.submit(command), CallFuture[CommandResult])
    assert_type(manager.submit(command.with_options(retries=2)), CallFuture[CommandResult])
    assert_type(manager.submit(command).result().exit_code, int)
    Command(["gzip", "in"], outputs={"in.gz": manager.declare_temp()}, check=False)
    manager.save_file(command.outputs["out"], Path("here"))
    manager.block_host("node7", "1h")
    Command(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Command("x", timeuot=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
