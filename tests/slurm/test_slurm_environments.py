"""Environments on real Slurm: pilots on nodes that have no Python."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import windlass

StartFactory = Callable[..., windlass.Factory]


def where(number: int) -> tuple[int, str]:
    import numpy

    return int(numpy.dot([number], [number])), sys.executable


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_pilot_without_python_runs_calls_from_a_pack(
    manager: windlass.Manager,
    start_factory: StartFactory,
    packed_environment: Path,
    shell_without_python: Path,
    tmp_path: Path,
    nodes: int,
) -> None:
    """Also one of several nodes, each of which unpacks for itself."""
    start_factory(environment=packed_environment, shell=str(shell_without_python), scratch=str(tmp_path), nodes=nodes, max_pilots=1)
    manager.install_library("lib", where)
    futures = [manager.submit(windlass.FunctionCall("lib", "where", number)) for number in range(4)]
    [unpacked] = {future.result(timeout=100)[1] for future in futures}
    assert [future.result()[0] for future in futures] == [0, 1, 4, 9]
    assert unpacked.startswith(f"{tmp_path}/windlass-files-")
