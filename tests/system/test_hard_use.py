"""Hostile and unlucky use: functions that attack their slot, programs that fork. Every future ends, no call is answered twice."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass import CallFailed, Closed, FunctionCall, SlotDied


@pytest.fixture(autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The manager and its pilot are the module's: looked at after the last test."""


KEEPS = """
import resource
import numpy, windlass

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

def make(number):
    return numpy.full(20_000, number)

if __name__ == "__main__":
    with windlass.Executor("local", cores=1, max_pilots=1) as pool:
        arrays = list(pool.map(make, range(400)))
        assert int(pool.submit(lambda arrays: sum(array[0] for array in arrays), arrays[:300]).result()) == sum(range(300))
    print(all((array == number).all() for number, array in enumerate(arrays)))
"""


def test_a_program_may_keep_more_large_results_than_it_may_have_descriptors() -> None:
    ran = subprocess.run([sys.executable, "-c", KEEPS], check=False, capture_output=True, text=True, timeout=100)
    assert (ran.stdout, ran.stderr) == ("True\n", "")


def double(number: int) -> int:
    return 2 * number


def fork_and(how: str, path: str) -> str:
    """Fork; the child leaves the function as `how` says and the parent waits for it."""
    pid = os.fork()
    if pid == 0:
        Path(path).write_text("child")
        if how == "exits":
            sys.exit(3)
        if how == "raises":
            raise ValueError("in the child")
        return "child"
    _, status = os.waitpid(pid, 0)
    return f"parent, {os.waitstatus_to_exitcode(status)}"


def spoil_clock() -> str:
    time.time = lambda: "never"  # type: ignore[assignment,return-value]
    return "spoiled"


def spoil_blocking() -> str:
    """Set every socket of the process, the slot's own among them, to not block."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(entry))) as one:
                one.setblocking(False)
        except OSError:
            continue
    return "spoiled"


def spoil_types() -> str:
    """Make the slot's next answers unreadable."""
    slot: Any = sys.modules["windlass.worker.slot"]
    made: Any = slot.CallEnd

    def spoiled(*fields: Any) -> Any:
        return made(*fields[:-4], "never", *fields[-3:])

    slot.CallEnd = spoiled
    return "spoiled"


def write_into_connections(words: bytes) -> None:
    """Write into every stream socket of the process, the one for the slot's answers among them."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(entry))) as one:
                if one.type == socket.SOCK_STREAM:
                    one.send(words)
        except OSError:
            continue
    time.sleep(60)


@pytest.fixture(scope="module")
def lib(shared_manager: windlass.Manager) -> windlass.Manager:
    for mode in ("direct", "fork"):
        shared_manager.install_library(mode, double, fork_and, spoil_clock, spoil_blocking, spoil_types, write_into_connections, mode=mode)
    return shared_manager


def check(manager: windlass.Manager, library: str) -> None:
    """All slots of the library answer, each call once and rightly."""
    futures = [manager.submit(FunctionCall(library, "double", number)) for number in range(50)]
    assert [future.result(30) for future in futures] == [2 * number for number in range(50)]


@pytest.mark.parametrize(("how", "status"), [("returns", 0), ("exits", 3), ("raises", 1)])
@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_a_process_forked_by_a_function_ends_where_the_function_does(
    lib: windlass.Manager, mode: str, how: str, status: int, tmp_path: Path
) -> None:
    """It answers nothing and claims no calls: the parent's answer is the call's, and the child's status is as of any process."""
    path = tmp_path / "child"
    future = lib.submit(FunctionCall(mode, "fork_and", how, str(path)))
    assert future.result(30) == f"parent, {status}"
    assert path.read_text() == "child"
    assert ("in the child" in future.stderr) == (how == "raises")
    check(lib, mode)


@pytest.mark.parametrize("spoiler", ["spoil_clock", "spoil_blocking"])
def test_a_function_that_spoils_what_the_slot_uses_gets_its_answer_and_so_do_the_next(lib: windlass.Manager, spoiler: str) -> None:
    """A replaced ``time.time`` or sockets set to not block must not silence the slot."""
    futures = [lib.submit(FunctionCall("direct", spoiler)) for _ in range(4)]
    assert [future.result(30) for future in futures] == ["spoiled"] * 4
    check(lib, "direct")


@pytest.mark.parametrize("words", [b"\4\0\0\0oops", b"a long number of bytes", b"\2\0\0\x80no"])
def test_a_slot_that_talks_nonsense_is_replaced_and_its_call_says_so(lib: windlass.Manager, words: bytes) -> None:
    """What a function wrote into the slot's connection: the slot's answers cannot be trusted any more."""
    with pytest.raises(SlotDied, match="wrote into the connection to its worker"):
        lib.submit(FunctionCall("direct", "write_into_connections", words)).result(30)
    check(lib, "direct")


def test_an_answer_with_wrong_types_is_a_failed_call(lib: windlass.Manager) -> None:
    """Its call number is still readable, so the call ends and says why; the worker goes on."""
    with pytest.raises(CallFailed, match="has changed something that its slot needs"):
        lib.submit(FunctionCall("fork", "spoil_types")).result(30)
    check(lib, "fork")


# ---------------------------------------------------------------- programs that fork


def _outcome(work: Callable[[], Any]) -> str:
    try:
        return repr(work())
    except BaseException as error:  # noqa: BLE001 - it is told to the parent
        return f"{type(error).__name__}: {error}"


def in_a_fork(work: Callable[[], Any]) -> str:
    """What ``work`` gave or raised in a forked process, which must end by itself."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(_outcome(work)))
    process.start()
    theirs.close()
    try:
        assert ours.poll(20), "the forked process hangs"
        return str(ours.recv())
    finally:
        process.join(20)
        process.kill()
        process.join()
        ours.close()


@pytest.fixture
def pair() -> Iterator[tuple[windlass.Manager, windlass.Factory]]:
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1, max_pilots=1) as factory:
        manager.install_library("lib", double)
        yield manager, factory


def test_a_forked_process_can_neither_use_nor_end_its_parents_manager(pair: tuple[windlass.Manager, windlass.Factory]) -> None:
    """There `submit` and a pending future say `Closed` and why; `close` returns at once and takes nothing from the parent."""
    manager, factory = pair
    waiting = manager.submit(FunctionCall("lib", "double", 1).with_options(cores=1))
    assert waiting.result(30) == 2
    never = windlass.Manager()
    never.install_library("lib", double)
    pending = never.submit(FunctionCall("lib", "double", 1))

    def leave() -> bool:
        factory.close()
        manager.close()
        return manager.closed

    with never:
        for work in (lambda: manager.submit(FunctionCall("lib", "double", 1)), lambda: pending.result(10), manager.status):
            text = in_a_fork(work)
            assert text.startswith(Closed.__name__)
            assert f"a fork of the program that has it, process {os.getpid()}" in text
        assert in_a_fork(leave) == "True"
        assert not pending.done()
    assert not manager.closed
    assert manager.pilot_file.exists()
    assert manager.submit(FunctionCall("lib", "double", 4)).result(30) == 8
    assert manager.submit(FunctionCall("lib", "double", 5)).result(30) == 10


def test_a_forked_process_that_runs_exit_handlers_leaves_the_manager_alone(pair: tuple[windlass.Manager, windlass.Factory]) -> None:
    """`os.fork` and an ordinary end of the interpreter: with handlers of `atexit` and finalisers."""
    import atexit
    import signal

    manager, _ = pair
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a child that hangs ends by this
        try:
            atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
        finally:
            os._exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert manager.submit(FunctionCall("lib", "double", 4)).result(30) == 8
