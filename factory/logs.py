"""The logs of a factory's pilots: a folder for each run, found by job, bounded in number and size.

Theory of operation
-------------------
Below a factory's folder each life of it, a *run*, has a folder of its own, named by when it began, so that the logs of yesterday do not
lie among today's.  A pilot's output is in ``RUN/NAME.log``, where the name is its job's.  A pilot that an earlier run submitted writes
where that one said, so its log is looked for in all runs.

`looked_after` is called with each answer of the batch system.  It says in each state where the log is; it cuts logs that grow too long,
writes the names of pilots that ended badly into ``RUN/failed``, and, when some have ended, removes what is too much: beyond `LOGS_KEPT`
logs or `BYTES_KEPT` bytes of all runs together the oldest go, those of failed pilots last, those of pilots that live never.  What was
written to start pilots (scripts, archives) goes with the last pilot that may need it.

A queued pilot needs the folder of its log when it starts, and Slurm fails it without.  So folders of earlier runs are removed only when all
pilots that live are of this one."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from windlass.factory.backend import Cause, JobId, Listed, PilotState
from windlass.factory.processes import LOG_LIMIT, trim_log

#: Logs of ended pilots that a factory keeps, and their bytes: a few megabytes tell all that somebody will ever read.
LOGS_KEPT: Final = 200
BYTES_KEPT: Final = 50 << 20
#: Folders of other factories of a manager that are kept, and the seconds for which younger ones are.
FACTORIES_KEPT: Final = 20
FACTORY_AGE: Final = 7 * 86_400.0
#: Seconds for which a script is kept that no listed pilot came from: a submission without an answer may still turn up.
SCRIPT_AGE: Final = 3600.0
#: The file with the names of pilots that ended badly.
FAILED: Final = "failed"
#: What the HTCondor backend's helper writes, which is no pilot's.
OWN_LOG: Final = "htcondor.log"
#: What the folder of a run is called: local time, and a number where two began in one second.
RUN: Final = re.compile(r"\d{8}-\d{6}(-\d+)?\Z")


def ended_badly(state: PilotState) -> bool:
    """An end that its log may explain: not one that somebody wanted, nor the fault of a node."""
    return state.listed is Listed.ENDED and state.cause in (Cause.EXIT, Cause.SIGNAL, Cause.UNKNOWN) and state.exit_status != 0


@dataclass(frozen=True, slots=True)
class _Kept:
    """One log of a pilot that has ended."""

    path: Path
    size: int
    written_at: float
    failed: bool


class PilotLogs:
    """Where the pilots of one factory write. One thread at a time may call it."""

    def __init__(self, folder: Path, *, name_of: Callable[[JobId], str] = str, trims: bool = True) -> None:
        """``name_of``: what a job's log is called; ``trims``: logs of running pilots are cut here when they are too long."""
        self.folder = folder.absolute()
        self._name_of, self._trims = name_of, trims
        self.run = _new_run(self.folder)
        self._earlier = [run for run in reversed(self._runs()) if run != self.run]
        #: Names of pilots that this run submitted.
        self._own: set[str] = set()
        self._found: dict[str, Path] = {}
        self._noted: set[str] = set()
        #: Some have ended since it was last looked for what is too much.
        self._ends = True
        self._live: frozenset[str] = frozenset()
        _forget_factories(self.folder)

    def close(self) -> None:
        """The run is over: without a pilot it leaves no folder, as that of a factory which is refused each time that it is started."""
        if not self._own:
            with contextlib.suppress(OSError):  # something is in it, as the script of a submission without an answer
                self.run.rmdir()

    def submitted(self, jobs: Collection[JobId]) -> None:
        """This run has submitted these."""
        self._own.update(map(self._name_of, jobs))

    def place(self, job: JobId) -> Path:
        """Where the log of a pilot is; of one that this run has submitted: where it will be."""
        own = self.run / f"{self._name_of(job)}.log"
        return own if own.stem in self._own else self._find(own) or own

    def _find(self, own: Path) -> Path | None:
        found = self._found.get(own.stem)
        if found is None:
            found = next((place for run in (self.run, *self._earlier) if (place := run / own.name).exists()), None)
            if found is not None:
                self._found[own.stem] = found
        return found

    def _told(self, state: PilotState) -> str:
        """The log of a listed pilot; "" where nobody knows yet which run submitted it."""
        own = self.run / f"{self._name_of(state.job)}.log"
        if own.stem in self._own:
            return str(own)
        return "" if state.listed is Listed.QUEUED else str(self._find(own) or "")

    # ---------------------------------------------------------------- at each answer of the batch system

    def looked_after(self, states: Sequence[PilotState]) -> list[PilotState]:
        """The same states with their logs; see the theory of operation. An error of the filesystem costs no more than the order there."""
        live = {state.job: self._name_of(state.job) for state in states if state.listed is not Listed.ENDED}
        named = [replace(state, log=self._told(state)) for state in states]
        with contextlib.suppress(OSError):
            for state in named:
                if not state.log:
                    continue
                if state.listed is Listed.RUNNING and self._trims:
                    trim_log(Path(state.log))
                elif ended_badly(state):
                    self._note_failed(self._name_of(state.job), state)
            names = frozenset(live.values())
            self._ends = self._ends or bool(self._live - names)
            self._live = names
            if self._ends:
                self._ends = False
                self._bound(names, {state.ticket for state in states if state.listed is not Listed.ENDED})
        return named

    def _note_failed(self, name: str, state: PilotState) -> None:
        """So that the next run knows it, too, and people who look into the folder."""
        if name in self._noted:
            return
        self._noted.add(name)
        log = Path(state.log)
        if log.exists():
            with (log.parent / FAILED).open("a") as file:
                file.write(f"{name}\t{state.node}\t{' '.join(state.reason.split())}\n")

    def _bound(self, live: Collection[str], tickets: Collection[str]) -> None:
        now = time.time()
        kept: list[_Kept] = []
        for run in self._runs():
            failed = _names_in(run / FAILED)
            for path in run.iterdir():
                if path.suffix == ".log" and path.stem not in live and path.name != OWN_LOG:
                    with contextlib.suppress(FileNotFoundError):
                        if path.stat().st_size > LOG_LIMIT:
                            trim_log(path)
                        about = path.stat()
                        kept.append(_Kept(path, about.st_size, about.st_mtime, path.stem in failed))
                elif path.suffix == ".sh" and path.stem not in live and path.stem not in tickets:
                    with contextlib.suppress(FileNotFoundError):
                        if path.stat().st_mtime < now - SCRIPT_AGE:
                            path.unlink()
        for log in _too_much(kept):
            log.path.unlink(missing_ok=True)
            name = log.path.stem
            self._own.discard(name)
            self._found.pop(name, None)
        if self._own.issuperset(live):
            for run in self._runs():
                if run != self.run and not any(path.suffix == ".log" and path.name != OWN_LOG for path in run.iterdir()):
                    shutil.rmtree(run, ignore_errors=True)

    def _runs(self) -> list[Path]:
        """Folders of all runs, the oldest first."""
        return sorted(path for path in self.folder.iterdir() if RUN.match(path.name) and path.is_dir())


def _too_much(kept: Sequence[_Kept]) -> list[_Kept]:
    """Which logs have to go."""
    number, size = len(kept), sum(log.size for log in kept)
    gone: list[_Kept] = []
    for log in sorted(kept, key=lambda log: (log.failed, log.written_at)):
        if number <= LOGS_KEPT and size <= BYTES_KEPT:
            break
        gone.append(log)
        number -= 1
        size -= log.size
    return gone


def _names_in(failed: Path) -> frozenset[str]:
    try:
        return frozenset(line.partition("\t")[0] for line in failed.read_text().splitlines())
    except OSError:
        return frozenset()


def _new_run(folder: Path) -> Path:
    """A new folder, named by the time."""
    folder.mkdir(parents=True, exist_ok=True)
    name = time.strftime("%Y%m%d-%H%M%S")
    number = 1
    while True:
        run = folder / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir()
        except FileExistsError:
            number += 1
        else:
            return run


def _forget_factories(folder: Path) -> None:
    """Remove what factories of the same manager left long ago: one without a name has a folder that no later one looks into.

    Only in a manager's own state folder, and there only folders that have nothing but runs in them.
    """
    if folder.parent.name != "pilots" or not (folder.parent.parent / "pilot.json").exists():
        return
    with contextlib.suppress(OSError):
        others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
        newest = sorted(((_last_used(path), path) for path in others), reverse=True)
        for used, path in newest[FACTORIES_KEPT:]:
            if used < time.time() - FACTORY_AGE and all(RUN.match(entry.name) for entry in path.iterdir()):
                shutil.rmtree(path, ignore_errors=True)


def _last_used(folder: Path) -> float:
    """When something was last made or removed in a factory's runs: their own times change with each log, not with each line."""
    return max((path.stat().st_mtime for path in (folder, *folder.iterdir())), default=0.0)
