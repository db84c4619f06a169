"""What the benchmarks on Slurm judge by: counts of commands in a window, Slurm's log of ended jobs, and the books of a soak."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from windlass.testing import SlurmCluster

ROOT = Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    import recording
    import soak
    import trouble


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports as the benchmarks have them, forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    global recording, soak, trouble
    import recording
    import soak
    import trouble

    yield
    for name in set(sys.modules) - before:
        if name in ("common", "recording", "soak", "trouble"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ([], 0),
        ([5.0], 1),
        ([0.0, 1.0, 2.0, 3.0, 4.0], 5),
        ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 5),  # the sixth is 10 s after the first
        ([0.0, 2.0, 4.0, 6.0, 8.0, 9.9], 5),  # noted late
        ([0.0, 2.0, 4.0, 6.0, 8.0, 9.0], 6),
        ([9.0, 0.0, 100.0, 8.0], 3),  # in any order
    ],
)
def test_the_busiest_window_is_found(times: list[float], most: int) -> None:
    """Of ten seconds, less the quarter of one that a note may be late."""
    assert recording.most_within(times, 10.0) == most


def test_commands_are_noted_on_their_way(tmp_path: Path) -> None:
    """Each of the site's commands that this machine has is noted with its arguments and then becomes itself."""
    log = recording.CommandLog(tmp_path / "commands")
    assert log.read() == []
    log.log.write_text("12.5 squeue --me -o %i\n11.0 sbatch --parsable\nsecond line of an argument\n")
    assert log.read() == [recording.Command(11.0, "sbatch", "--parsable"), recording.Command(12.5, "squeue", "--me -o %i")]
    assert log.environment({"PATH": "/bin"}, A="b") == {"PATH": f"{log.folder}:/bin", "A": "b"}


def test_ended_jobs_are_read_from_slurms_own_log(tmp_path: Path) -> None:
    """A job that never had a node did not run, whatever times stand there."""
    log = tmp_path / "jobcomp.log"
    assert recording.ended_jobs(log) == []
    log.write_text(
        "JobId=7 UserId=a(1) Name=a b JobState=COMPLETED StartTime=2026-11-26T00:27:05 EndTime=2026-11-26T00:27:19 NodeList=n1 \n"
        "JobId=8 UserId=a(1) Name=c JobState=CANCELLED StartTime=2026-11-26T00:27:05 EndTime=2026-11-26T00:27:19 NodeList=(null) \n"
    )
    first, second = recording.ended_jobs(log)
    assert (first.id, first.state, first.ran) == ("7", "COMPLETED", 14.0)
    assert (second.began, second.ran) == (0.0, 0.0)


GOOD: dict[str, Any] = {
    "calls": 2,
    "lost": [],
    "failed": [],
    "wrong": [],
    "ended_twice": [],
    "never_told": 0,
    "phases": {},
    "counted": {"query": 1},
    "turnaround_p50_s": 1.0,
    "turnaround_p99_s": 1.0,
    "turnaround_longest_s": 1.0,
    "program_cpu_s": 1.0,
    "program_peak_mb": 1,
}


@pytest.mark.parametrize(
    ("found", "runs", "commands", "left", "violation"),
    [
        ({}, "1 0 5\n2 1 5\n", 5, [], None),
        ({"lost": [1]}, "1 0 5\n", 1, [], "calls were lost: [1]"),
        ({"wrong": [1]}, "1 0 5\n2 1 5\n", 1, [], "calls gave a wrong result: [1]"),
        ({"failed": ["1: E"]}, "1 0 5\n2 1 5\n", 1, [], "calls failed: ['1: E']"),
        ({"ended_twice": [0]}, "1 0 5\n2 1 5\n", 1, [], "calls ended more than once: [0]"),
        ({"never_told": 1}, "1 0 5\n2 1 5\n", 1, [], "calls whose end nobody was told: [1]"),
        ({}, "1 0 5\n", 1, [], "calls never ran and have a result: [1]"),
        ({}, "1 0 5\n2 1 5\n3 1 5\n", 1, [], "calls ran again without a fault: [1]"),
        ({}, "1 0 5\n2 1 6\n3 1 5\n", 1, [], None),  # 6 was hit
        ({}, "1 0 5\n2 1 6+1\n3 1 5\n", 1, [], None),
        ({}, "1 0 5\n2 1 5\n", 6, [], "commands in 10 s, too many: [6]"),
        ({}, "1 0 5\n2 1 5\n", 1, ["5 RUNNING"], "pilots are left: ['5 RUNNING']"),
    ],
)
def test_a_soak_finds_what_is_wrong(
    tmp_path: Path, found: dict[str, Any], runs: str, commands: int, left: list[str], violation: str | None
) -> None:
    """Each of the promises, broken alone, is a violation; a call may run again where a fault hit the pilot that it ran in first."""
    (tmp_path / "runs").write_text(runs)
    log = recording.CommandLog(tmp_path / "commands")
    log.log.write_text("".join(f"{at}.0 squeue --me\n" for at in range(commands)))
    made = trouble.Trouble(SlurmCluster(tmp_path / "slurm", nodes=1), random.Random(1), (1, 1), (1, 1))
    made.hit.add("6")
    judged = soak.judge({**GOOD, **found}, made, log, tmp_path / "runs", left, [], 60.0)
    assert judged.violations == ([violation] if violation else [])
