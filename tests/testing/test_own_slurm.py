"""What `SlurmCluster` says where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from windlass.errors import UsageError
from windlass.testing import SlurmCluster
from windlass.testing.slurm import PACKAGES, how_to_install


def test_missing_programs_are_told_with_the_packages_that_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has no Slurm reads which command brings it; nothing was started, and a folder of its own is gone."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("windlass.testing.slurm.DAEMON_PATH", str(tmp_path))
    cluster = SlurmCluster(nodes=1)
    with pytest.raises(
        UsageError, match=r"no munged, slurmctld, .* on this machine, .*: apt-get install slurmctld slurmd slurm-client munge"
    ):
        cluster.__enter__()
    assert not cluster.folder.exists()
    (tmp_path / "dnf").touch(0o755)
    assert how_to_install() == f"dnf install {PACKAGES['dnf']}"


def test_a_folder_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    """Slurm's own failure would be a job that is held, minutes later."""
    with pytest.raises(UsageError, match="whose paths would be too long; give one of at most 80 letters, or none"):
        SlurmCluster(tmp_path / ("x" * 80))


def test_lines_take_the_place_of_what_is_configured_else(tmp_path: Path) -> None:
    """Of a name that stood there twice each command of Slurm's complained on its stderr."""
    lines = {"TaskPlugin": "task/affinity", "KillWait": "7", "PrologFlags": "Contain"}
    conf = SlurmCluster(tmp_path, nodes=1, lines=lines).conf.read_text()
    names = [line.partition("=")[0] for line in conf.splitlines() if not line.startswith("PartitionName")]
    assert len(names) == len(set(names))
    assert {"TaskPlugin=task/affinity", "KillWait=7", "PrologFlags=Contain"} <= set(conf.splitlines())
