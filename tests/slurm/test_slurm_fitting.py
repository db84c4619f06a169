"""joblib, Dask and Parsl on real Slurm: one pool of pilots, three libraries that know nothing of each other. And async functions."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import windlass
from windlass.testing import SlurmCluster

StartFactory = Callable[..., windlass.Factory]
Until = Callable[..., None]


def where(number: int) -> tuple[int, str]:
    return number, os.environ.get("SLURM_JOB_ID", "")


def test_others_run_their_tasks_in_pilots_of_slurm(manager: windlass.Manager, start_factory: StartFactory, tmp_path: Path) -> None:
    """Each task in a job; the pool says how many slots there can be before the first pilot runs."""
    start_factory(max_pilots=2, cores=2)
    pool = windlass.Executor(None, manager=manager)
    joblib: Any = importlib.import_module("joblib")
    dask: Any = importlib.import_module("dask")
    parsl: Any = importlib.import_module("parsl")
    for part in ("joblib", "dask", "parsl"):
        importlib.import_module(f"windlass.{part}")
    ours: Any = windlass

    with joblib.parallel_config("windlass", executor=pool):
        assert joblib.effective_n_jobs(-1) >= 2  # 4 as soon as the factory has told of its pool
        found = joblib.Parallel()(joblib.delayed(where)(number) for number in range(20))
    tasks = [dask.delayed(where)(number) for number in range(20)]
    found += dask.compute(*tasks, scheduler=ours.dask.get, executor=pool)
    executor = ours.parsl.WindlassExecutor(executor=manager, task_dir=str(tmp_path))
    config = parsl.Config(executors=[executor], run_dir=str(tmp_path / "runinfo"), strategy="none", initialize_logging=False)
    with parsl.DataFlowKernel(config) as kernel:
        app = parsl.python_app(where, data_flow_kernel=kernel)
        found += [future.result(timeout=60) for future in [app(number) for number in range(20)]]
    assert [number for number, _ in found] == [*range(20)] * 3
    assert all(job for _, job in found)
    assert pool.slots() == 4


async def wait_here(folder: Path, number: int) -> tuple[str, int]:
    """Says that it is here, and waits for the others; gives its job and its process."""
    job = os.environ["SLURM_JOB_ID"]
    (folder / f"here-{job}-{number}").touch()
    while not (folder / "open").exists():
        await asyncio.sleep(0.01)
    return job, os.getpid()


def test_async_calls_that_share_a_slot_go_on_in_the_next_job_when_theirs_is_cancelled(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, tmp_path: Path, until: Until
) -> None:
    """Twenty at once in the one slot of a job of one core; nobody's try is spent when Slurm ends it."""
    start_factory(max_pilots=1, cores=1)
    pool = windlass.Executor(None, manager=manager, concurrency=20)
    calls = [pool.submit(wait_here, tmp_path, number) for number in range(20)]

    def jobs() -> list[str]:
        """The job of each call that has come here."""
        return [path.name.split("-")[1] for path in tmp_path.glob("here-*")]

    until("all are here at once", lambda: len(jobs()) == 20, timeout=60)
    [first] = set(jobs())
    slurm.run("scancel", first)
    until("all are here again", lambda: len(jobs()) == 40, timeout=60)
    (tmp_path / "open").touch()
    [(job, _)] = {call.result(60) for call in calls}
    assert {first, job} == set(jobs())
    assert first != job
    assert all(call.attempts[0].outcome.startswith("lost with its worker (SIGTERM") for call in calls)
