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

from typing import NoReturn

from windlass.manager.library import Library as LibraryTask
from windlass.taskvine.factory import Factory
from windlass.taskvine.files import File
from windlass.taskvine.manager import Manager
from windlass.taskvine.outcomes import FunctionCallNoResult, NoEffect, PythonTaskNoResult
from windlass.taskvine.pythontasks import FunctionCall, PythonTask
from windlass.taskvine.tasks import Task
from windlass.worker.slot_api import load_variable_from_library

__all__ = [
    "Factory",
    "File",
    "FunctionCall",
    "FunctionCallNoResult",
    "LibraryTask",
    "Manager",
    "NoEffect",
    "PythonTask",
    "PythonTaskNoResult",
    "Task",
    "load_variable_from_library",
]

#: What TaskVine has under these names.
_ELSEWHERE = {
    "FuturesExecutor": "windlass.Executor('slurm', max_pilots=20) is a concurrent.futures executor, with map(), and needs no tasks",
    "FutureFunctionCall": "windlass.Manager.submit(windlass.FunctionCall(...)) gives a future",
    "FuturePythonTask": "windlass.Executor.submit(function, ...) gives a future",
    "VineFuture": "windlass.CallFuture is a concurrent.futures.Future",
    "DaskVine": "there is no scheduler of Dask's graphs in this module; windlass.Executor runs functions, with futures as arguments",
    "Graph": "futures may be arguments of calls, which run when these have ended: windlass explain futures",
}


def __getattr__(name: str) -> NoReturn:
    if name in _ELSEWHERE:
        raise AttributeError(f"windlass.taskvine has no {name!r}: {_ELSEWHERE[name]}")
    import difflib

    near = difflib.get_close_matches(name, __all__, n=2)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise AttributeError(f"module 'windlass.taskvine' has no attribute {name!r}{hint}")
