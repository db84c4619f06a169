"""Libraries on a real pilot: versions, context, slots, modes, resources, several on one worker, and their end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import windlass
from windlass import FunctionCall


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of this module share a manager and its pilot."""


@pytest.fixture
def manager(shared_manager: windlass.Manager) -> Iterator[windlass.Manager]:
    """The shared manager; the test's libraries are removed after it."""
    yield shared_manager
    for name in shared_manager.libraries:
        shared_manager.remove_library(name)


def call(manager: windlass.Manager, function: str, *args: Any, library: str = "lib") -> Any:
    return manager.submit(FunctionCall(library, function, *args)).result(20)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes do."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come true within 20 s"
        time.sleep(0.005)


def where() -> tuple[int, int]:
    """The slot and its zygote."""
    return os.getpid(), os.getppid()


# ---------------------------------------------------------------- install, remove, versions


def test_a_library_is_created_installed_called_and_removed(manager: windlass.Manager) -> None:
    """After `remove_library` its name is unknown, and slots and zygote end."""
    library = manager.create_library("lib", where)
    assert not manager.check_library_exists("lib")
    manager.install_library(library)
    assert manager.check_library_exists("lib")
    slot, zygote = call(manager, "where")
    assert psutil.pid_exists(slot)
    manager.remove_library(library)
    assert not manager.check_library_exists("lib")
    with pytest.raises(windlass.UnknownName, match="no library 'lib'"):
        call(manager, "where")
    until(lambda: not psutil.pid_exists(slot) and not psutil.pid_exists(zygote))


def test_calls_that_were_submitted_before_a_removal_still_run(manager: windlass.Manager, gate: Any) -> None:
    """Removal takes the name away at once, and the processes when the last call has ended."""
    manager.install_library("lib", gate.pass_through, where, slots=1)
    held = manager.submit(FunctionCall("lib", "pass_through", "held"))
    queued = [manager.submit(FunctionCall("lib", "where")) for _ in range(5)]
    gate.wait_for(1)
    manager.remove_library("lib")
    gate.open()
    assert held.result(20) is None
    [processes] = {future.result(20) for future in queued}
    until(lambda: not any(map(psutil.pid_exists, processes)))


def test_the_same_library_installed_again_keeps_its_processes(manager: windlass.Manager) -> None:
    """Equal descriptions are one version: nothing starts anew."""
    manager.install_library("lib", where, slots=1)
    before = call(manager, "where")
    manager.install_library("lib", where, slots=1)
    assert call(manager, "where") == before


def test_queued_calls_keep_their_version_of_the_library(manager: windlass.Manager, gate: Any) -> None:
    """A new version under the same name serves what is submitted from then on; what was queued before gets the old one's answers."""

    def version_1() -> int:
        return 1

    def version_2() -> int:
        return 2

    version_1.__name__ = version_2.__name__ = "version"
    manager.install_library("lib", version_1, gate.pass_through, slots=1)
    held = manager.submit(FunctionCall("lib", "pass_through", "held"))
    gate.wait_for(1)
    old = [manager.submit(FunctionCall("lib", "version")) for _ in range(30)]
    manager.install_library("lib", version_2, slots=1)
    new = [manager.submit(FunctionCall("lib", "version")) for _ in range(30)]
    assert {future.result(20) for future in new} == {2}
    assert not held.done()
    gate.open()
    assert {future.result(20) for future in old} == {1}
    assert held.result(20) is None


# ---------------------------------------------------------------- context


def load_context(size: int, name: str = "none") -> dict[str, Any]:
    return {"numbers": list(range(size)), "name": name, "made_in": os.getpid()}


def use_context(gate: Any, numbers: list[int], *, made_in: int) -> tuple[int, int, int, int, str]:
    gate.meet(2)
    name = windlass.load_variable_from_library("name")
    return os.getpid(), os.getppid(), made_in, sum(numbers), name


@pytest.mark.parametrize("shared", [False, True])
def test_a_context_is_made_once_per_slot_or_once_for_all(manager: windlass.Manager, gate: Any, shared: bool) -> None:
    """Its variables come as keyword arguments and by `load_variable_from_library`; a shared one was made in the zygote."""
    manager.install_library("lib", use_context, context=(load_context, [5], {"name": "n"}), share_context=shared, slots=2)
    futures = [manager.submit(FunctionCall("lib", "use_context", gate)) for _ in range(2)]
    seen = [future.result(20) for future in futures]
    gate.open()
    assert len({pid for pid, *_ in seen}) == 2
    for pid, zygote, made_in, total, name in seen:
        assert made_in == (zygote if shared else pid)
        assert (total, name) == (10, "n")


def test_a_context_that_is_no_dict_is_called_context_and_arguments_go_before_it(manager: windlass.Manager) -> None:
    """What the caller gives wins over a variable of the same name."""

    def make() -> str:
        return "made"

    def take(context: str) -> str:
        return context

    manager.install_library("lib", take, context=make)
    assert call(manager, "take") == "made"
    assert call(manager, "take", "given") == "given"


@pytest.mark.parametrize("shared", [False, True])
def test_a_context_that_fails_fails_the_calls_at_once_with_its_traceback(manager: windlass.Manager, shared: bool) -> None:
    """Calls queued and calls submitted later end with `LibraryFailed`, which shows where the context failed."""

    def broken_context() -> None:
        raise RuntimeError("no data here")

    manager.install_library("lib", where, context=broken_context, share_context=shared)
    for _ in range(2):
        with pytest.raises(windlass.LibraryFailed, match=r"(?s)context.*in broken_context.*no data here"):
            call(manager, "where")


# ---------------------------------------------------------------- slots, modes, starts


def test_slots_run_at_once_in_processes_of_one_zygote(manager: windlass.Manager, gate: Any) -> None:
    """Two calls that wait for each other end, in two slots with the same parent, and in the same working folder, as docs/calls.md warns."""

    def meet() -> tuple[int, int, str]:
        gate.meet(2)
        return os.getpid(), os.getppid(), os.getcwd()

    manager.install_library("lib", meet, slots=2)
    futures = [manager.submit(FunctionCall("lib", "meet")) for _ in range(2)]
    (slot_1, zygote_1, folder_1), (slot_2, zygote_2, folder_2) = [future.result(20) for future in futures]
    assert slot_1 != slot_2
    assert zygote_1 == zygote_2
    assert folder_1 == folder_2 != os.getcwd()


def count_calls() -> tuple[int, int, int]:
    """How often it ran in this process's memory, the process and its parent."""
    number: int = count_calls.__dict__.get("number", 0) + 1
    count_calls.__dict__["number"] = number
    return number, os.getpid(), os.getppid()


def test_mode_direct_keeps_the_state_of_a_slot_and_mode_fork_forgets_it(manager: windlass.Manager) -> None:
    """With ``mode="fork"`` each call is a new child of the one warm slot, and what it changes is gone with it."""
    manager.install_library("direct", count_calls, slots=1)
    manager.install_library("fork", count_calls, slots=1, mode="fork")
    direct = [call(manager, "count_calls", library="direct") for _ in range(4)]
    assert [number for number, _, _ in direct] == [1, 2, 3, 4]
    assert len({pid for _, pid, _ in direct}) == 1
    forked = [call(manager, "count_calls", library="fork") for _ in range(4)]
    assert [number for number, _, _ in forked] == [1, 1, 1, 1]
    assert len({pid for _, pid, _ in forked}) == 4
    assert len({parent for _, _, parent in forked}) == 1


def test_start_spawn_gives_each_slot_an_interpreter_of_its_own(manager: windlass.Manager, gate: Any) -> None:
    """No zygote is forked: each slot is a program that was executed, below the worker."""

    def command() -> tuple[int, str]:
        gate.meet(2)
        return os.getpid(), Path("/proc/self/cmdline").read_bytes().decode().replace("\0", " ")

    manager.install_library("lib", command, start="spawn", slots=2)
    futures = [manager.submit(FunctionCall("lib", "command")) for _ in range(2)]
    seen = [future.result(20) for future in futures]
    assert len({pid for pid, _ in seen}) == 2
    assert all("windlass.worker.slot" in words for _, words in seen)


@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_max_calls_replaces_a_slot(manager: windlass.Manager, mode: str) -> None:
    """With ``max_calls=3`` each slot process serves three calls, and none is lost in the exchange."""

    def slot() -> int:
        return os.getpid() if mode == "direct" else os.getppid()

    manager.install_library("lib", slot, slots=1, max_calls=3, mode=mode)
    futures = [manager.submit(FunctionCall("lib", "slot")) for _ in range(9)]
    pids = [future.result(20) for future in futures]
    assert sorted(pids.count(pid) for pid in set(pids)) == [3, 3, 3]


# ---------------------------------------------------------------- resources


def test_cores_per_slot_limit_the_slots(manager: windlass.Manager) -> None:
    """A slot of two cores is alone on a worker of two cores: calls run one after the other in one process."""
    manager.install_library("lib", where, cores=2)
    futures = [manager.submit(FunctionCall("lib", "where")) for _ in range(20)]
    assert len({future.result(20) for future in futures}) == 1


def threads_of_blas() -> tuple[dict[str, str | None], int]:
    """The limits in the environment, and how many threads this process has after a product that BLAS would share among them."""
    matrix = np.ones((600, 600))
    assert np.dot(matrix, matrix)[0, 0] == 600
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {name: os.environ.get(name) for name in names}, len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize(("options", "limit"), [({}, 1), ({"cores": 2}, 2), ({"threads": 2}, 2), ({"cores": 2, "threads": 1}, 1)])
def test_blas_has_as_many_threads_as_its_slot_has_cores(manager: windlass.Manager, options: dict[str, Any], limit: int) -> None:
    """The limits are set before NumPy is imported, so they hold: the process has no more threads than that."""
    manager.install_library("lib", threads_of_blas, **options)
    limits, threads = call(manager, "threads_of_blas")
    assert set(limits.values()) == {str(limit)}
    assert threads <= limit


def test_variables_of_env_are_there_from_the_start(manager: windlass.Manager) -> None:
    """``env=`` is the environment of imports, context and calls, and of that library alone."""

    def context() -> str:
        return os.environ["COLOUR"]

    def colour(context: str = "") -> tuple[str | None, str]:
        return os.environ.get("COLOUR"), context

    manager.install_library("green", colour, env={"COLOUR": "green"}, context=context)
    manager.install_library("plain", colour)
    assert call(manager, "colour", library="green") == ("green", "green")
    assert call(manager, "colour", library="plain") == (None, "")


@pytest.mark.parametrize(
    ("assigned", "ids"),
    [pytest.param({}, ["0", "1", "2"], id="as-asked"), pytest.param({"CUDA_VISIBLE_DEVICES": "4,6,7"}, ["4", "6", "7"], id="as-assigned")],
)
def test_each_slot_sees_gpus_of_its_own(gate: Any, assigned: dict[str, str], ids: list[str]) -> None:
    """A pilot with three GPUs has three slots with one each; with two per slot there is one slot with two.

    The ids are those that the batch system assigned to the pilot, if it did.
    """

    def visible(count: int) -> str:
        if count:
            gate.meet(count)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=4, gpus=3, env=assigned):
        manager.install_library("one", visible, gpus=1)
        futures = [manager.submit(FunctionCall("one", "visible", 3)) for _ in range(3)]
        assert sorted(future.result(20) for future in futures) == ids
        manager.install_library("two", visible, gpus=2)
        futures = [manager.submit(FunctionCall("two", "visible", 0)) for _ in range(3)]
        seen = {future.result(20) for future in futures}
        assert len(seen) == 1
        assert len(set(seen.pop().split(",")) & set(ids)) == 2
        manager.install_library("four", visible, gpus=4)
        with pytest.raises(windlass.NotPossible, match="GPU"):
            manager.submit(FunctionCall("four", "visible", 0)).result(20)


def test_a_gpu_that_a_call_runs_on_is_not_given_to_another_library(tmp_path: Path) -> None:
    """One of two slots falls idle, whichever it is: its GPU is the one that the next library gets."""

    def hold(folder: Path) -> str:
        mine = folder / os.environ["CUDA_VISIBLE_DEVICES"]
        mine.touch()
        while mine.exists():
            time.sleep(0.002)
        return mine.name

    def visible() -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=2, gpus=2):
        manager.install_library("train", hold, gpus=1)
        manager.install_library("infer", visible, gpus=1)
        calls = [manager.submit(FunctionCall("train", "hold", tmp_path)) for _ in range(2)]
        until(lambda: len(list(tmp_path.iterdir())) == 2)
        (tmp_path / "0").unlink()  # the one that the manager would have kept
        assert call(manager, "visible", library="infer") == "0"
        (tmp_path / "1").unlink()
        assert {each.result(20) for each in calls} == {"0", "1"}


def test_functions_without_a_library_get_gpus_that_are_asked_for(gate: Any) -> None:
    """Beside calls of the same function that want none, which see none; more than a pilot has are refused."""

    def visible(count: int) -> str:
        if count:
            gate.meet(count)
        return os.environ.get("CUDA_VISIBLE_DEVICES", "none")

    with windlass.Executor("local", cores=4, gpus=2, max_pilots=1) as pool:
        with_one = pool.with_options(gpus=1)
        assert sorted(with_one.map(visible, [2, 2], timeout=20)) == ["0", "1"]
        assert len(pool.with_options(gpus=2).submit(visible, 0).result(20).split(",")) == 2
        assert pool.submit(visible, 0).result(20) not in ("0", "1", "0,1", "1,0")
        assert with_one.submit(visible, 0).result(20) in ("0", "1")
        with pytest.raises(windlass.NotPossible, match="GPU"):
            pool.with_options(gpus=3).submit(visible, 0).result(20)


# ---------------------------------------------------------------- several at once


def test_several_libraries_run_at_once_on_one_worker(manager: windlass.Manager, gate: Any) -> None:
    """Calls of two libraries wait for each other on the one pilot: in two zygotes of the same worker."""

    def meet() -> tuple[int, int]:
        gate.meet(2)
        return os.getppid(), psutil.Process(os.getppid()).ppid()

    manager.install_library("left", meet, slots=1)
    manager.install_library("right", meet, slots=1)
    futures = [manager.submit(FunctionCall(name, "meet")) for name in ("left", "right")]
    (zygote_1, worker_1), (zygote_2, worker_2) = [future.result(20) for future in futures]
    assert zygote_1 != zygote_2
    assert worker_1 == worker_2


def test_an_idle_library_makes_room_for_another_and_stays_warm(manager: windlass.Manager, gate: Any) -> None:
    """The second library gets both cores while the first one is idle; the first one comes back from the same zygote."""

    def meet() -> int:
        gate.meet(2)
        return os.getppid()

    manager.install_library("first", where)
    zygote = call(manager, "where", library="first")[1]
    manager.install_library("second", meet)
    futures = [manager.submit(FunctionCall("second", "meet")) for _ in range(2)]
    others = {future.result(20) for future in futures}
    assert len(others) == 1
    assert zygote not in others
    assert call(manager, "where", library="first")[1] == zygote


def test_a_call_does_not_wait_behind_a_long_one_while_another_librarys_slot_is_idle(manager: windlass.Manager, gate: Any) -> None:
    """The library that has one slot, busy for long, gets the other one from a library that is idle."""
    manager.install_library("short", where, slots=1)
    manager.install_library("long", where, gate.pass_through)
    for _ in range(3):
        call(manager, "where", library="short")
        call(manager, "where", library="long")
    held = manager.submit(FunctionCall("long", "pass_through"))
    gate.wait_for(1)
    assert call(manager, "where", library="long")
    assert not held.done()


def test_more_libraries_than_a_worker_keeps_all_get_their_turn(manager: windlass.Manager) -> None:
    """Eight libraries with interleaved calls on two cores: every call ends, and idle zygotes give way."""
    names = [f"lib{number}" for number in range(8)]
    for name in names:
        manager.install_library(name, where)
    futures = [(name, manager.submit(FunctionCall(name, "where"))) for _ in range(5) for name in names]
    zygotes = {(name, future.result(30)[1]) for name, future in futures}
    assert len({zygote for _, zygote in zygotes}) >= 8
