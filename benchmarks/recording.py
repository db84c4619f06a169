"""What a benchmark on real Slurm is judged by, without asking the system under test: commands, jobs, processes, runs of calls.

Theory of operation
-------------------
*Commands* are counted on their way: `CommandLog` makes a folder with a script for each of Slurm's commands, which notes the time and
then becomes the real one.  A program that has this folder first in its PATH is counted, whatever it says itself.  A command is noted a
process start after its sender decided on it, so that two notes may be closer together than the decisions were: `most_within` takes `JITTER`
off the window.

*Jobs* are read from Slurm's own log of ended jobs (``JobCompType=jobcomp/filetxt``), whole seconds.

*Processes* are found by a variable in their environment (`MARK`), which everything inherits that a program or its pilots start.

*Runs* of calls are lines that the calls themselves append to one file; short appends do not mix.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from windlass.testing import DAEMON_PATH, SlurmCluster

COMMANDS: Final = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr", "sstat", "srun", "salloc")
#: Seconds that the note of a command may be late.
JITTER: Final = 0.25
#: In the environment of all that a benchmark has started.
MARK: Final = "WINDLASS_BENCHMARK"
#: States in which a job is out of the way.
OVER: Final = frozenset({"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY"})

SCRIPT: Final = """\
#!/bin/sh
printf '%s %s %s\\n' "$(date +%s.%N)" {name} "$*" >>{log}
exec {program} "$@"
"""


@dataclass(frozen=True, slots=True)
class Command:
    """One command that was sent to Slurm."""

    #: Seconds since the epoch.
    at: float
    name: str
    arguments: str


class CommandLog:
    """Counts what a program sends to Slurm, as long as ``folder`` is first in its PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "commands.log"
        folder.mkdir(parents=True)
        self.log.touch()
        for name in COMMANDS:
            program = shutil.which(name, path=DAEMON_PATH)
            if program is not None:
                script = folder / name
                script.write_text(SCRIPT.format(name=name, log=self.log, program=program))
                script.chmod(0o755)

    def environment(self, environ: Mapping[str, str], **extra: str) -> dict[str, str]:
        """``environ`` for a program that is to be counted."""
        return {**environ, "PATH": f"{self.folder}:{environ.get('PATH', DAEMON_PATH)}", **extra}

    def read(self) -> list[Command]:
        """All commands until now, in the order of time."""
        commands: list[Command] = []
        for line in self.log.read_text(errors="replace").splitlines():
            at, name, arguments = [*line.split(" ", 2), ""][:3]
            with contextlib.suppress(ValueError):  # the second line of an argument
                commands.append(Command(float(at), name, arguments))
        return sorted(commands, key=lambda command: command.at)


def most_within(times: Iterable[float], seconds: float) -> int:
    """The most of these ``times`` that lie within any ``seconds``, less `JITTER`."""
    ordered = sorted(times)
    most, first = 0, 0
    for last, at in enumerate(ordered):
        while ordered[first] <= at - (seconds - JITTER):
            first += 1
        most = max(most, last - first + 1)
    return most


@dataclass(frozen=True, slots=True)
class Job:
    """A job that Slurm lists."""

    #: As squeue prints it: ``17``, ``17_3``.
    id: str
    state: str
    name: str
    node: str


def live_jobs(cluster: SlurmCluster) -> list[Job]:
    """Jobs that have not ended; those that are completing have not. Raises `CalledProcessError` or `TimeoutExpired` without an answer."""
    rows = cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N|%j").stdout.splitlines()
    jobs = [Job(id, state, name, node) for id, state, node, name in (row.split("|", 3) for row in rows)]
    return [job for job in jobs if job.state not in OVER]


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended, from Slurm's own log."""

    id: str
    state: str
    #: When it started, in seconds since the epoch; 0: it never did.
    began: float
    #: Seconds that it ran; of a job that was queued again, from its last start.
    ran: float


def ended_jobs(log: Path) -> list[Ended]:
    """What ``jobcomp/filetxt`` has written."""
    ended: list[Ended] = []
    for line in log.read_text().splitlines() if log.exists() else ():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        start, end = (_moment(fields.get(name, "")) for name in ("StartTime", "EndTime"))
        if fields.get("NodeList", "") in ("", "(null)"):
            start = 0.0
        ended.append(Ended(fields.get("JobId", ""), fields.get("JobState", ""), start, max(0.0, end - start) if start else 0.0))
    return ended


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty where it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def words_of(pid: int) -> list[str]:
    """The command line of a process; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def marked_processes(mark: str) -> list[int]:
    """Processes that carry this mark and have not ended."""
    own = os.getpid()
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and int(entry.name) != own]
    return [pid for pid in found if environment_of(pid).get(MARK) == mark and words_of(pid)]


def wait_until(condition: Callable[[], object], timeout: float, pause: float = 0.2) -> bool:
    """Ask again until it is so (True), or ``timeout`` seconds are over (False)."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a call."""

    at: float
    call: int
    pilot: str


def read_runs(path: Path) -> Iterator[Run]:
    """What calls have written with `note_run`."""
    for line in path.read_text().splitlines() if path.exists() else ():
        at, call, pilot = line.split(" ", 2)
        yield Run(float(at), int(call), pilot)
