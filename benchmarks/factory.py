"""Factories on a real Slurm: commands sent, pilot time wasted, seconds until 32 pilots serve; beside dask-jobqueue and Parsl.

Theory of operation
-------------------
Each measurement is a program of its own (`factory_side.py`) that submits one load through one system to one Slurm cluster
(`windlass.testing.SlurmCluster`, 4 nodes of 8 CPUs that are made of this machine's).  Systems take turns, round after round; figures are
medians.  Nothing is asked of the systems themselves: commands are noted by scripts in the program's PATH, the lives of pilots come from
Slurm's own log of ended jobs, and calls note in which pilot they run (`recording.py`).

* ``commands_per_minute``: with 4 pilots idle at the minimum.  ``commands_per_minute_without_pilots``: after the start, before any demand.
  ``commands_per_minute_at_ramp``: in the minute that begins with the first of 48 long calls.
* ``seconds_to_target``: from that first submission until 32 pilots have begun a call.  32 interpreters that start at once on two cores get
  a sixteenth of a core each, so most of this is the CPU time of a pilot's start, times 32, by 2; on nodes of their own pilots start side by
  side.  ``seconds_to_running``: until Slurm had started the 32nd job (whole seconds), which is the factory's part.
* ``wasted_pilot_seconds``: seconds that pilots existed, from Slurm's start of the job to its end, beyond the seconds of the calls that they
  ran, per second of those calls; starts, idling and ends together.  Bursts of calls of 1 to 3 s with pauses, up to 16 pilots.  Beside it
  ``turnaround_s``, the mean from a call's submission to its result: who starts no pilots wastes nothing.

All let idle pilots go after 15 s, may start 32 (bursts: 16), and have one core and one slot a pilot.  Windlass: ``hold`` as
``idle_timeout``, ``start_cost=5`` (as Dask's ``target_duration``), else defaults.  dask-jobqueue: ``adapt(minimum_jobs, maximum_jobs,
interval="1s", wait_count=15)``, ``nanny=False``, and for the long calls ``unknown-task-duration`` of 60 s, without which it asks for a few
jobs only.  Parsl: ``htex_auto_scale``, ``max_idletime=15``, ``parallelism=1``, ``SimpleLauncher``, ``exclusive=False``.

The peers are installed from PyPI into environments of their own (``python -m venv``) below ``--environments``, once; Windlass imports
neither.  ``--peers none`` installs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from common import median, report
from peers import environments_folder, interpreter, say, version
from recording import MARK, CommandLog, ended_jobs, live_jobs, marked_processes, read_runs, wait_until
from windlass.testing import SlurmCluster, missing_programs

PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {"dask": ("dask-jobqueue",), "parsl": ("parsl", "numpy")}
TITLES: Final = {"windlass": "Windlass", "dask": "dask-jobqueue", "parsl": "Parsl"}
#: Slurm's own, as sites have them.
SITE: Final = {"MinJobAge": "300", "KillWait": "5", "MessageTimeout": "10", "SlurmdTimeout": "300"}
IDLE: Final = 15
#: (seconds from the start, calls, seconds of each)
BURSTS: Final = ((0, 48, 2.0), (25, 16, 1.0), (55, 64, 1.5), (100, 24, 3.0))
BURSTS_SHORT: Final = ((0, 6, 0.2),)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. Seconds."""

    target: int
    #: At rest with pilots; and without any.
    rest: float
    rest_empty: float
    window: float
    settle: float
    least: int
    most_in_bursts: int
    bursts: Sequence[tuple[float, int, float]]


FULL: Final = Sizes(target=32, rest=300, rest_empty=30, window=60, settle=20, least=4, most_in_bursts=16, bursts=BURSTS)
SHORT: Final = Sizes(target=2, rest=1, rest_empty=1, window=2, settle=1, least=1, most_in_bursts=2, bursts=BURSTS_SHORT)


class Bench:
    """A cluster, and the interpreters of the systems."""

    def __init__(self, folder: Path, cluster: SlurmCluster, pythons: Mapping[str, str], sizes: Sizes) -> None:
        self.folder = folder
        self.cluster = cluster
        self.pythons = pythons
        self.sizes = sizes
        self._sessions = 0

    def session(self, system: str, load: str, **options: Any) -> Session:
        """Run one load through one system, and wait until nothing of it is left."""
        self._sessions += 1
        folder = self.folder / f"{self._sessions}-{system}-{load}"
        commands = CommandLog(folder / "commands")
        jobs_before = len(ended_jobs(self.folder / "jobcomp.log"))
        given = {
            "folder": str(folder),
            "runs": str(folder / "runs"),
            "go": str(folder / "go"),
            "idle": IDLE,
            "long": load == "ramp",
            **options,
        }
        words = [self.pythons[system], str(Path(__file__).with_name("factory_side.py")), system, load, json.dumps(given)]
        extra = {MARK: str(folder), "SLURM_CONF": str(self.cluster.conf), "WINDLASS_STATE_DIR": str(folder / "state")}
        say(f"{TITLES[system]}: {load}")
        with (folder / "stderr").open("wb") as stderr:
            # As in an activated environment.
            path = f"{Path(self.pythons[system]).parent}:{os.environ.get('PATH', '')}"
            environment = commands.environment({**os.environ, "PATH": path}, **extra)
            ran = subprocess.run(words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, check=False, timeout=600)
        left = [f"{job.id} {job.state}" for job in live_jobs(self.cluster)]
        if not wait_until(lambda: not live_jobs(self.cluster), 20):
            self.cluster.run("scancel", *(job.id for job in live_jobs(self.cluster)))
            wait_until(lambda: not live_jobs(self.cluster), 60)
        wait_until(lambda: not marked_processes(str(folder)), 20)
        if ran.returncode != 0:
            raise SystemExit(f"{TITLES[system]}: {load} ended with status {ran.returncode}: {(folder / 'stderr').read_text()[-2000:]}")
        events = {event["event"]: event for event in map(json.loads, ran.stdout.splitlines())}
        return Session(folder, events, commands, jobs_before, self.folder / "jobcomp.log", left)

    # ---------------------------------------------------------------- the three loads

    def ramp(self, system: str) -> dict[str, float]:
        sizes = self.sizes
        found = self.session(system, "ramp", least=0, most=sizes.target, rest=sizes.rest_empty, window=sizes.window)
        first, reached = found.at("first submit"), int(found.events["target"]["reached"])
        running = sorted(job.began for job in found.jobs() if job.began)[: sizes.target]
        seconds = found.at("target") - first
        say(f"  {reached} pilots after {seconds:.1f} s; {found.text()}")
        return {
            "commands_per_minute_without_pilots": found.per_minute("rest begins", "rest ends"),
            "commands_per_minute_at_ramp": found.commands_between(first, first + sizes.window) * 60 / sizes.window,
            "seconds_to_target": seconds if reached >= sizes.target else float("inf"),
            "seconds_to_running": running[-1] - first if len(running) == sizes.target else float("inf"),
        }

    def minimum(self, system: str) -> dict[str, float]:
        sizes = self.sizes
        found = self.session(system, "minimum", least=sizes.least, most=sizes.least, rest=sizes.rest, settle=sizes.settle)
        say(f"  {found.text()}")
        return {"commands_per_minute": found.per_minute("rest begins", "rest ends")}

    def bursts(self, system: str) -> dict[str, float]:
        found = self.session(system, "bursts", least=0, most=self.sizes.most_in_bursts, bursts=self.sizes.bursts)
        work = sum(calls * seconds for _, calls, seconds in self.sizes.bursts)
        pilots = sum(job.ran for job in found.jobs())
        say(f"  {pilots:.0f} pilot seconds for {work:.0f} s of work; {found.text()}")
        return {
            "wasted_pilot_seconds": max(0.0, pilots - work) / work,
            "turnaround_s": found.events["bursts"]["turnaround"],
            "pilots_for_bursts": float(len(found.jobs())),
        }


class Session:
    """What was seen of one program."""

    def __init__(
        self,
        folder: Path,
        events: Mapping[str, Mapping[str, float]],
        commands: CommandLog,
        jobs_before: int,
        log: Path,
        left: Sequence[str],
    ) -> None:
        self.folder, self.events, self.commands, self.left = folder, events, commands.read(), left
        self._log, self._before = log, jobs_before

    def at(self, event: str) -> float:
        return self.events[event]["at"]

    def jobs(self) -> list[Any]:
        return ended_jobs(self._log)[self._before :]

    def commands_between(self, start: float, end: float) -> int:
        return sum(start <= command.at < end for command in self.commands)

    def per_minute(self, start: str, end: str) -> float:
        return self.commands_between(self.at(start), self.at(end)) * 60 / (self.at(end) - self.at(start))

    def text(self) -> str:
        names = [command.name for command in self.commands]
        counts = ", ".join(f"{name} {names.count(name)}" for name in sorted(set(names)))
        pilots = len({run.pilot for run in read_runs(self.folder / "runs")})
        jobs = f"{len(self.jobs())} jobs, {pilots} ran calls, {len(self.left)} still listed when the program had ended"
        return f"commands in all: {counts}; {jobs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that each system runs; figures are medians (default: %(default)s)")
    parser.add_argument(
        "--peers", choices=("none", "dask", "parsl", "all"), default="all", help="whom to measure beside (default: %(default)s)"
    )
    parser.add_argument("--environments", type=Path, default=environments_folder(), help="where peers are installed (default: %(default)s)")
    parser.add_argument("--loads", default="ramp,minimum,bursts", help="which to run (default: %(default)s)")
    parser.add_argument("--rest", type=float, default=FULL.rest, help="seconds at rest with pilots (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="a folder for logs, which stays (default: a temporary one)")
    parser.add_argument("--short", action="store_true", help="very little of each, as the tests run it")
    chosen = parser.parse_args()
    if missing := missing_programs():
        raise SystemExit(f"this machine has no {', '.join(missing)}; apt-get install slurmctld slurmd slurm-client munge")
    pythons = {"windlass": sys.executable}
    for peer in PACKAGES if chosen.peers == "all" else [chosen.peers] if chosen.peers != "none" else []:
        if python := interpreter(PACKAGES[peer], chosen.environments):
            pythons[peer] = python
            TITLES[peer] += f" {version(python, PACKAGES[peer][0])}"
    found: dict[str, dict[str, list[float]]] = {system: {} for system in pythons}
    with contextlib.ExitStack() as opened:
        folder = chosen.keep or Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="factory-")))
        lines = {**SITE, "JobCompType": "jobcomp/filetxt", "JobCompLoc": str(folder / "jobcomp.log")}
        cluster = opened.enter_context(SlurmCluster(folder / "slurm", nodes=4, cpus=8, memory=16_000, lines=lines))
        bench = Bench(folder, cluster, pythons, SHORT if chosen.short else replace(FULL, rest=chosen.rest))
        for number in range(chosen.rounds):
            for load in chosen.loads.split(","):
                for system in list(pythons) if number % 2 == 0 else reversed(pythons):
                    for name, value in getattr(bench, load)(system).items():
                        found[system].setdefault(name, []).append(value)
    names = list(found["windlass"])
    medians = {system: {name: median(values) for name, values in of.items()} for system, of in found.items()}
    figures = {
        name if system == "windlass" else f"{system}_{name}": round(value, 3)
        for system, of in medians.items()
        for name, value in of.items()
    }
    rows = [(TITLES[system], *(medians[system][name] for name in names)) for system in pythons]
    note = "commands: per minute; wasted: pilot seconds beyond the work, per second of work; a figure of inf was not reached within 170 s"
    report(chosen, "Factories on a real Slurm", ("system", *(name.replace("_", " ") for name in names)), rows, figures, note)


if __name__ == "__main__":
    main()
