"""The tutorial for Slurm, as a newcomer follows it: each command and program of docs/tutorial-slurm.md on a real Slurm, unchanged."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_the_tutorial_for_slurm_holds(nothing_left_running: None, page: Any, tmp_path: Path) -> None:
    """Dry run, probe, doctor, a program, a named pool; what the page shows as output is printed. Only Slurm is asked more often."""
    (tmp_path / "windlass.toml").write_text("[backends.slurm]\nquery_interval = 0.5\n\n")
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "WINDLASS_STATE_DIR": str(tmp_path / "state")}
    dry, probed, doctor, areas, shown = page(ROOT / "docs/tutorial-slurm.md").follow("slurm", tmp_path, env)
    assert "#SBATCH --partition=short" in dry
    assert "#SBATCH --partition=short" in probed
    assert "queue" in doctor
    assert areas.count("in a job") == 3
    assert "windlass.toml [pools.short]" in shown
