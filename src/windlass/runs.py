"""Runs that have ended: how each stood at its end, in a file of the state folder, found by ``windlass report``.

Theory of operation: a run is one life of a manager that was recorded (`windlass.manager.recorder`).  Its file holds the view of
docs/dashboard.md as JSON.  The manager writes it when it ends; when it was killed, a dashboard that looked on writes what it saw last.  The
newest `RUNS_KEPT` are kept.  Tracebacks may hold what is nobody else's business, so folder and files are their owner's only.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from windlass.errors import UnknownName, UsageError
from windlass.identity import state_folder, write_private

RUNS_KEPT: Final = 50
_SUFFIX: Final = ".json"


def runs_folder(state_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the files are, there or not."""
    return state_folder(state_dir) / "runs"


def run_name(manager: str, began_at: float) -> str:
    """``night-20261126-143502``: the manager's name, and when it began (local time)."""
    return f"{manager}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(began_at))}"


def write_run(folder: Path, run: str, data: bytes, *, replace: bool = True) -> Path:
    """Keep how a run stood at its end, and forget the oldest ones. Raises `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{run}{_SUFFIX}"
    if replace or not path.exists():
        write_private(path, data)
    for old in _newest_first(folder)[RUNS_KEPT:]:
        old.unlink(missing_ok=True)
    return path


def known_runs(folder: Path) -> list[str]:
    """Names of runs, the newest first."""
    return [path.name.removesuffix(_SUFFIX) for path in _newest_first(folder)]


def find_run(folder: Path, name: str | None) -> Path:
    """The file of a run by its name, by its manager's name (the newest), or of the newest of all.

    Raises:
        UnknownName: there is none of that name.
        UsageError: there is none at all yet, and no name was given.
    """
    paths = _newest_first(folder)
    for path in paths:
        run = path.name.removesuffix(_SUFFIX)
        # What follows the manager's name is the time: -YYYYmmdd-HHMMSS.
        if name is None or name in (run, run[:-16]):
            return path
    hint = f"(runs are looked for in {folder}; only those of managers with record=True or a dashboard are kept)"
    if name is None:
        raise UsageError(f"there is no run yet {hint}")
    known = known_runs(folder)
    raise UnknownName("run", name, {*known, *(run[:-16] for run in known)}, hint=hint)


def read_run(path: Path) -> dict[str, Any]:
    """The run that this file holds. Raises `UsageError` if it holds none; `OSError`."""
    try:
        whole: Any = msgspec.json.decode(path.read_bytes())
        if whole["record"].keys() >= {"run", "names", "sampled"} and whole.keys() >= {"manager", "calls", "samples", "lanes"}:
            return cast("dict[str, Any]", whole)
        why = "it is something else"
    except msgspec.MsgspecError as error:
        why = f"it is damaged or something else: {error}"
    except (AttributeError, KeyError, TypeError):
        why = "it is something else"
    raise UsageError(
        f"{path} holds no run ({why}); give one that windlass report --state has written, or a name that windlass report --list shows"
    )


def _newest_first(folder: Path) -> list[Path]:
    found: list[tuple[float, Path]] = []
    for path in folder.glob(f"*{_SUFFIX}"):
        try:
            found.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue  # removed meanwhile
    return [path for _, path in sorted(found, reverse=True)]
