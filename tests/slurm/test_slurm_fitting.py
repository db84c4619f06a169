"""joblib, Dask and Parsl on real Slurm: one manager, one pool of pilots, three libraries that know nothing of each other."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import windlass

StartFactory = Callable[..., windlass.Factory]


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
