"""TaskVine's words for Windlass: a program written for TaskVine runs with ``import windlass.taskvine as vine``.

Theory of operation
-------------------
The names here mean what TaskVine's manual says that they mean, and stand on Windlass's own: a `Manager` has a `windlass.Manager` (its
`manager`), a task becomes a call when it is submitted, and ``wait`` gives back the very object that was submitted, with what became of it.
Who begins anew writes `windlass.Manager`, `windlass.Command` and futures instead, which say more.

What has no meaning here is either refused (`windlass.UsageError`, with what to write instead) or, where a program can do without, passed
over with a `NoEffect` warning.  docs/from-taskvine.md has the whole list.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from windlass.manager.library import Library as LibraryTask
from windlass.taskvine import futures
from windlass.taskvine.factory import Factory
from windlass.taskvine.files import File
from windlass.taskvine.futures import FutureFunctionCall, FuturePythonTask, FuturesExecutor, VineFuture
from windlass.taskvine.manager import Manager
from windlass.taskvine.outcomes import FunctionCallNoResult, NoEffect, PythonTaskNoResult
from windlass.taskvine.pythontasks import FunctionCall, PythonTask
from windlass.taskvine.tasks import Task
from windlass.worker.slot_api import load_variable_from_library

if TYPE_CHECKING:
    from windlass.taskvine.dask import DaskVine as DaskVine

__all__ = [
    "Factory",
    "File",
    "FunctionCall",
    "FunctionCallNoResult",
    "FutureFunctionCall",
    "FuturePythonTask",
    "FuturesExecutor",
    "LibraryTask",
    "Manager",
    "NoEffect",
    "PythonTask",
    "PythonTaskNoResult",
    "Task",
    "VineFuture",
    "futures",
    "load_variable_from_library",
]

#: What TaskVine has under these names.
_ELSEWHERE = {
    "Executor": "write FuturesExecutor, as TaskVine has it now, or windlass.Executor('slurm', max_pilots=20)",
    "Graph": "futures may be arguments of calls, which run when these have ended: windlass explain futures",
}


if not TYPE_CHECKING:  # so that type checkers find slips

    def __getattr__(name: str) -> Any:
        if name == "DaskVine":  # which needs Dask, so that it is not among those of an  import *
            return importlib.import_module("windlass.taskvine.dask").DaskVine
        if name in _ELSEWHERE:
            raise AttributeError(f"windlass.taskvine has no {name!r}: {_ELSEWHERE[name]}")
        import difflib

        near = difflib.get_close_matches(name, __all__, n=2)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise AttributeError(f"module 'windlass.taskvine' has no attribute {name!r}{hint}")
