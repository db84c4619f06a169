"""A program of TaskVine's users on real Slurm: workers from a factory, and nodes that are not wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import windlass.taskvine as vine
from windlass.testing import SlurmCluster

Until = Callable[..., None]


def test_tasks_run_in_jobs_that_keep_away_from_blocked_hosts(slurm: SlurmCluster, tmp_path: Path, until: Until) -> None:
    """The names of hosts reach Slurm as nodes to exclude; the output of tasks comes here as it does from anywhere."""
    with vine.Manager(0) as m:
        m.block_host("n1")
        m.block_host("n2")
        with vine.Factory("slurm", manager=m, cores=1, min_workers=2, max_workers=2, scratch_dir=tmp_path / "pilots", timeout=30):
            for number in range(6):
                t = vine.Task("echo $SLURMD_NODENAME > out; sleep 0.1", tag=str(number))
                t.add_output(m.declare_file(tmp_path / f"node-{number}"), "out")
                m.submit(t)
            until("both serve", lambda: len(m.status("workers")) == 2, timeout=60)
            nodes = set(slurm.run("squeue", "-h", "-t", "running", "-o", "%N").stdout.split())
            while not m.empty():
                done = m.wait(60)
                assert done is not None
                assert done.successful(), (done.result, done.error)
    assert nodes <= {"n3", "n4"}
    assert {(tmp_path / f"node-{number}").read_text().strip() for number in range(6)} <= {"n3", "n4"}
    until("the pilots have ended", lambda: not slurm.run("squeue", "-h").stdout)
