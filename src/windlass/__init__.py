"""Windlass runs Python functions on HTCondor and Slurm, from one call to millions, with imports hoisted once per node.

Theory of operation: this module has the public names and no logic.  A worker imports the package too, and must say hello before
it loads anything that it does not need, so a name is loaded when it is first asked for (PEP 562); type checkers see
plain imports.  The one thing that it does is to refuse a Python on which nothing was tried: without the interpreter's lock, threads
that share books would fail now and then, and not at once.
"""

from __future__ import annotations

import os
import sys

if not getattr(sys, "_is_gil_enabled", lambda: True)() and os.environ.get("WINDLASS_FREE_THREADED") != "1":
    raise ImportError(
        f"Windlass is not tried on free-threaded Python, and {sys.executable} runs without the interpreter's lock: use an ordinary build, "
        "or PYTHON_GIL=1 in the environment of the program and of pilots (WINDLASS_FREE_THREADED=1 instead tries it without the lock)"
    )

TYPE_CHECKING = False  # checkers take it for True; `typing` itself is not needed here
if TYPE_CHECKING:
    from windlass import environment
    from windlass.commands import CommandResult
    from windlass.errors import (
        BadTree,
        BatchError,
        CacheBusy,
        CacheFull,
        CallFailed,
        CallTimeout,
        CallTooLong,
        Closed,
        CommandFailed,
        ConnectionRefused,
        Damaged,
        FileUnavailable,
        InputFailed,
        InternalError,
        LibraryFailed,
        NotPicklable,
        NotPossible,
        OutOfMemory,
        OverLimit,
        Rejected,
        RemoteError,
        RemoteTraceback,
        SlotDied,
        SourceChanged,
        StoreFull,
        UnknownName,
        Unreachable,
        UsageError,
        WindlassError,
        WorkersLost,
    )
    from windlass.factory.factory import Factory, Pool
    from windlass.files import File
    from windlass.manager.attached import AttachedManager, attach
    from windlass.manager.call import FunctionCall
    from windlass.manager.command import Command
    from windlass.manager.executor import Executor
    from windlass.manager.future import CallFuture
    from windlass.manager.library import Library
    from windlass.manager.manager import Manager
    from windlass.pilot_end import on_warning, time_left
    from windlass.traces import traceparent
    from windlass.worker.slot_api import current_call, load_variable_from_library

#: The one place of the version: pyproject.toml reads it from here.
__version__ = "0.1.0"

_HOMES = {
    "Manager": "windlass.manager.manager",
    "attach": "windlass.manager.attached",
    "AttachedManager": "windlass.manager.attached",
    "Factory": "windlass.factory.factory",
    "Pool": "windlass.factory.factory",
    "File": "windlass.files",
    "Executor": "windlass.manager.executor",
    "FunctionCall": "windlass.manager.call",
    "Command": "windlass.manager.command",
    "CommandResult": "windlass.commands",
    "Library": "windlass.manager.library",
    "CallFuture": "windlass.manager.future",
    "load_variable_from_library": "windlass.worker.slot_api",
    "current_call": "windlass.worker.slot_api",
    "traceparent": "windlass.traces",
    "time_left": "windlass.pilot_end",
    "on_warning": "windlass.pilot_end",
}

#: Modules that are names of their own: ``windlass.environment.pack()``.
_MODULES = ("environment",)

__all__ = [
    "AttachedManager",
    "BadTree",
    "BatchError",
    "CacheBusy",
    "CacheFull",
    "CallFailed",
    "CallFuture",
    "CallTimeout",
    "CallTooLong",
    "Closed",
    "Command",
    "CommandFailed",
    "CommandResult",
    "ConnectionRefused",
    "Damaged",
    "Executor",
    "Factory",
    "File",
    "FileUnavailable",
    "FunctionCall",
    "InputFailed",
    "InternalError",
    "Library",
    "LibraryFailed",
    "Manager",
    "NotPicklable",
    "NotPossible",
    "OutOfMemory",
    "OverLimit",
    "Pool",
    "Rejected",
    "RemoteError",
    "RemoteTraceback",
    "SlotDied",
    "SourceChanged",
    "StoreFull",
    "UnknownName",
    "Unreachable",
    "UsageError",
    "WindlassError",
    "WorkersLost",
    "__version__",
    "attach",
    "current_call",
    "environment",
    "load_variable_from_library",
    "on_warning",
    "time_left",
    "traceparent",
]


if not TYPE_CHECKING:  # so that checkers know a misspelt name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            hint = ": write  import windlass.taskvine as vine" if name in ("Task", "PythonTask") else ""
            raise AttributeError(f"module 'windlass' has no attribute {name!r}{hint}")
        import importlib

        if name in _MODULES:
            return importlib.import_module(f"windlass.{name}")
        value: object = getattr(importlib.import_module(_HOMES.get(name, "windlass.errors")), name)
        globals()[name] = value  # asked for once
        return value


def __dir__() -> list[str]:
    """The public names, and what every module has; not what this one is made of."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
