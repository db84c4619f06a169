"""Each batch backend keeps the contract that the factory relies on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from windlass.factory.fake import FakeBackend
from windlass.factory.htcondor import HTCondorBackend
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


@pytest.fixture
def condor_standin(tmp_path: Path, nothing_left_running: None) -> Iterator[Any]:
    """A running stand-in for a schedd."""
    path = Path(__file__).parent.parent / "htcondor" / "standin.py"
    spec = importlib.util.spec_from_file_location("windlass_test_standin", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there for their module
    spec.loader.exec_module(module)
    running = module.Running(tmp_path)
    yield running
    running.close()


@pytest.mark.parametrize("files", ["shared", "transfer"])
def test_the_htcondor_backend_keeps_the_contract_on_a_stand_in(
    check_backend: CheckBackend, tmp_path: Path, condor_standin: Any, files: str
) -> None:
    """Where nodes share no files, the script, the modules and the log travel; a pilot that fails has last words all the same."""
    backend = HTCondorBackend(condor_standin.helper, collector=condor_standin.place, query_interval=0.01, files=files)
    check_backend(backend, tmp_path / "contract")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("files", ["shared", "transfer"])
def test_the_htcondor_backend_keeps_the_contract_on_a_real_pool(check_backend: CheckBackend, condor_pool: Path, files: str) -> None:
    """On the pool of this machine, as the user who runs the tests; a real negotiator takes its time."""
    check_backend(HTCondorBackend(query_interval=1.0, files=files), condor_pool / "contract", patience=180.0)
