"""`windlass.loops`: our loops take no processor from what computes, and what they start is scheduled as usual."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import windlass
from windlass import loops
from windlass.manager.callbacks import CallbackThread

TELL = "import os; print(os.sched_getscheduler(0))"


def in_a_thread(do: Callable[[], list[int]]) -> list[int]:
    """The policy is a thread's: the test's own must not change."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(do).result()


def policies() -> list[int]:
    """Before, inside and after a loop: this thread's policy; and that of two programs that the loop starts, as usual and plainly."""

    def child() -> int:
        return int(subprocess.run([sys.executable, "-S", "-c", TELL], stdout=subprocess.PIPE, check=True).stdout)

    async def inside() -> list[int]:
        with loops.scheduled_as_usual():
            usual = child()
        return [os.sched_getscheduler(0), usual, child()]

    return [os.sched_getscheduler(0), *loops.run(inside()), os.sched_getscheduler(0)]


def test_a_loops_thread_is_patient_and_what_it_starts_is_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own thread stays as it is."""
    monkeypatch.setattr(loops, "_patient", False)
    own = os.sched_getscheduler(0)
    assert own == os.SCHED_OTHER
    assert in_a_thread(policies) == [os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == own


def test_callbacks_are_scheduled_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop's thread starts theirs. What they start, perhaps a pool of workers, takes no loop's patience over."""
    monkeypatch.setattr(loops, "_patient", False)
    seen: list[int] = []

    async def hand_over() -> None:
        callbacks = CallbackThread()
        callbacks(lambda: seen.append(os.sched_getscheduler(0)))
        callbacks.close(10)
        seen.append(os.sched_getscheduler(0))

    def do() -> list[int]:
        loops.run(hand_over())
        return seen

    assert in_a_thread(do) == [os.SCHED_OTHER, os.SCHED_BATCH]


@pytest.mark.parametrize("chosen", [os.SCHED_IDLE, os.SCHED_BATCH])
def test_what_somebody_has_chosen_stays(chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with chrt; what the loop starts has it too."""
    monkeypatch.setattr(loops, "_patient", False)

    def do() -> list[int]:
        os.sched_setscheduler(0, chosen, os.sched_param(0))
        return policies()

    assert in_a_thread(do) == [chosen] * 5


@pytest.mark.parametrize("missing", [PermissionError(1, "Operation not permitted"), AttributeError("no such policy here")])
def test_where_the_system_says_no_the_loop_runs_as_it_is(missing: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sandboxes forbid it, other systems do not have it."""

    def refuse(*_: object) -> None:
        raise missing

    monkeypatch.setattr(loops, "_patient", False)
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert in_a_thread(policies) == [os.SCHED_OTHER] * 5


def of_the_call_and_its_worker(worker: int) -> tuple[int, int]:
    """Policies, by process."""
    import os

    return os.sched_getscheduler(0), os.sched_getscheduler(worker)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_calls_are_scheduled_as_usual_beside_a_patient_worker(start: str) -> None:
    """Also where they are forked: what a call sees is what a shell would give it."""
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1, max_pilots=1):
        manager.install_library("lib", of_the_call_and_its_worker, start=start)
        first = manager.submit(windlass.FunctionCall("lib", "of_the_call_and_its_worker", os.getpid()))
        assert first.result(timeout=60)[0] == os.SCHED_OTHER
        [worker] = manager.status()["workers"]
        second = manager.submit(windlass.FunctionCall("lib", "of_the_call_and_its_worker", worker["pid"]))
        assert second.result(timeout=60) == (os.SCHED_OTHER, os.SCHED_BATCH)
