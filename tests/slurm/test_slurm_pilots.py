"""The whole of it on real Slurm: a manager, a factory, real pilots, real calls."""

from __future__ import annotations

import os
from collections.abc import Callable

import windlass


def where(number: int) -> tuple[int, str | None, str | None]:
    return number * number, os.environ.get("SLURMD_NODENAME"), os.environ.get("SLURM_JOB_NAME")


def test_calls_run_in_pilots_that_the_factory_submits(manager: windlass.Manager, start_factory: Callable[..., windlass.Factory]) -> None:
    """Demand brings pilots, each a job of the user's, calls run in them on the nodes, and closing the factory ends them all."""
    factory = start_factory(name="night-shift")
    manager.install_library("lib", where)
    futures = [manager.submit(windlass.FunctionCall("lib", "where", number)) for number in range(20)]
    answers = [future.result(timeout=60) for future in futures]
    assert [answer[0] for answer in answers] == [number * number for number in range(20)]
    assert {answer[1] for answer in answers} <= {"n1", "n2", "n3", "n4"}
    assert {str(answer[2]).rsplit(":", 1)[0] for answer in answers} == {f"windlass:night-shift:{manager.name}"}
    assert factory.status()["paused"] == ""
