"""Each batch backend keeps the contract that the factory relies on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from windlass.factory.fake import FakeBackend
from windlass.factory.local import LocalBackend
from windlass.factory.slurm import SlurmBackend
from windlass.testing import SlurmCluster

CheckBackend = Callable[..., None]


def test_the_local_backend_keeps_the_contract(check_backend: CheckBackend, tmp_path: Path) -> None:
    check_backend(LocalBackend(), tmp_path)


def test_the_fake_backend_keeps_the_contract(check_backend: CheckBackend, tmp_path: Path) -> None:
    check_backend(FakeBackend(kill_wait=1.0), tmp_path)


def test_the_fake_backend_keeps_the_contract_when_its_queue_is_slow_and_its_memory_short(
    check_backend: CheckBackend, tmp_path: Path
) -> None:
    check_backend(FakeBackend(kill_wait=1.0, queue_delay=(0.05, 0.2), forget_after=0.0), tmp_path)


def test_the_slurm_backend_keeps_the_contract_on_real_slurm(
    check_backend: CheckBackend, tmp_path: Path, slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.conf))
    check_backend(SlurmBackend(query_interval=0.2), tmp_path)
