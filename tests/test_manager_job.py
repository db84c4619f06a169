"""What a manager's job is submitted as; the job itself is in tests/slurm."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from windlass.errors import Rejected, UsageError
from windlass.factory import launch
from windlass.factory.backend import PilotRequest
from windlass.factory.environment import Environment
from windlass.factory.slurm import SlurmBackend
from windlass.manager_job import of_one_job, submit_manager

ENVIRONMENT = Environment("/shared/env.tar.gz", "u3-e", "0" * 64, 1, 2, "gzip")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def requests(state: Path, monkeypatch: pytest.MonkeyPatch) -> list[PilotRequest]:
    """What Slurm is asked for; it refuses all."""
    made: list[PilotRequest] = []

    def submit(backend: SlurmBackend, request: PilotRequest, count: int) -> None:
        made.append(request)
        raise Rejected("no")

    def read_environment(path: str, scratch: str) -> Environment:
        return ENVIRONMENT

    def with_boot(environment: Environment, folder: Path) -> Environment:
        return replace(environment, boot=ENVIRONMENT)

    monkeypatch.setattr(SlurmBackend, "require_commands", staticmethod(lambda: None))
    monkeypatch.setattr(SlurmBackend, "submit", submit)
    monkeypatch.setattr(launch, "read_environment", read_environment)
    monkeypatch.setattr(launch, "with_boot", with_boot)
    return made


@pytest.mark.parametrize(
    ("options", "python"),
    [
        ({}, sys.executable),
        ({"environment": "env.tar.gz"}, "python3"),
        ({"container": "docker://debian:12"}, "python3"),
        ({"container": "docker://debian:12", "python": "/opt/python"}, "/opt/python"),
    ],
)
def test_its_python_is_that_of_the_pool_s_environment_or_image(
    requests: list[PilotRequest], state: Path, options: dict[str, object], python: str
) -> None:
    """The program's own is not there. A boot is enough for workers only, and a manager writes into the state folder."""
    with pytest.raises(Rejected, match="no"):
        submit_manager("night", "slurm", options, [], lambda text: None)
    [request] = requests
    assert request.command[:5] == (python, "-P", "-m", "windlass.cli", "manager")
    assert (request.environment is None) == ("environment" not in options)
    assert request.environment is None or request.environment.boot is None
    assert request.container is None or str(state) in request.container.binds


def test_a_pool_that_shares_no_files_is_refused_also_where_the_configuration_says_so(tmp_path: Path) -> None:
    """The manager would start where nobody sees its state folder."""
    config = tmp_path / "windlass.toml"
    config.write_text('[backends.htcondor]\nfiles = "transfer"\n[pools.grid]\nbackend = "htcondor"\n')
    for pool in ("htcondor", "grid"):
        with pytest.raises(UsageError, match=f"pool '{pool}' has files='transfer': a manager in a job keeps .* so the node must share it"):
            of_one_job(pool, {"config": config})
        assert of_one_job(pool, {"config": config, "files": "shared"})["files"] == "shared"
