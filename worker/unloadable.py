"""What is told of a function, of arguments or of a library that could not be loaded: why, and whose fault it was.

Theory of operation
-------------------
What is unpickled imports modules of the user's and runs code of theirs, so the exception may have any type. Of its traceback a user gets
the frames that are theirs: the first ones are ours and cloudpickle's, and tell them nothing. Nor would it help to hear of pickling where it
is a module that failed as it was imported, or that lacks a name: these are told as what they are, and are no `NotPicklable`.

Slots and zygotes load this module when something has failed.
"""

from __future__ import annotations

import os
import re
from types import ModuleType, TracebackType
from typing import Final

from windlass import raised, snapshots
from windlass.messages import EndDetail
from windlass.worker.slotlink import bounded

_MOST: Final = 24 << 10
#: What pickle says of a module that does not have what it is asked for.
_LACKS: Final = re.compile(r"Can't get attribute '(?P<name>[^']+)' on <module '(?P<module>[^']+)'(?: from '(?P<file>[^']*)')?")


def detail_of(what: str, error: BaseException) -> EndDetail:
    """Why ``what`` could not be loaded, in a sentence, and the user's frames."""
    if type(error).__name__ == "NotPicklable" and error.__cause__ is not None:  # it says no more than its cause, and the frames are there
        error = error.__cause__
    why = _import_failed(error) or _lacks(error)
    node = f"; {raised.where(error)}" if isinstance(error, ImportError) else ""
    text = bounded(f"{what} cannot be loaded on the worker: {why or raised.summary(error)}{node}", _MOST)
    unpicklable = not why and (not isinstance(error, OSError) or raised.users_frames(error) is not None)
    return EndDetail(text=text + traced(error), unpicklable=unpicklable)


def reason(error: BaseException) -> str:
    """The same of a function of a library, without its frames."""
    return bounded(_import_failed(error) or _lacks(error) or raised.summary(error))


def traced(error: BaseException) -> str:
    """The traceback, on lines of its own, without frames of ours; nothing if it has no others."""
    return "\n" + bounded(raised.format_exception(error), _MOST) if raised.users_frames(error) is not None else ""


def _import_failed(error: BaseException) -> str:
    """That a module could not be imported, if it was that."""
    name, file = "", ""
    frames: TracebackType | None = raised.users_frames(error)
    while frames is not None:
        frame, frames = frames.tb_frame, frames.tb_next
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__spec__") is not None:
            name, file = str(frame.f_globals.get("__name__")), frame.f_code.co_filename
    if isinstance(error, SyntaxError) and error.filename and _travelled(error.filename):
        name, file = os.path.basename(error.filename).removesuffix(".py"), error.filename
    if not name:
        return ""
    text = f"module {name!r} cannot be imported there: {raised.summary(error)}"
    if isinstance(error, FileNotFoundError) and _travelled(file):
        text += "; a module beside the script travels alone, a package with all its files: see windlass explain calls"
    return text


def _lacks(error: BaseException) -> str:
    """That a module lacks a name, if it was that."""
    if type(error) is not AttributeError or raised.users_frames(error) is not None:
        return ""
    found = _LACKS.match(str(error))
    if found is not None:
        module, name, file = found["module"], found["name"], found["file"]
    elif isinstance(error.obj, ModuleType):  # since Python 3.15 pickle leaves it to the module to say so
        module, name, file = error.obj.__name__, error.name, getattr(error.obj, "__file__", None)
    else:
        return ""
    if module == "__main__":
        return ""
    text = f"module {module!r} has no {name!r} there"
    if _travelled(file or ""):
        return f"{text}: the file was edited since the program imported it, or makes that in the program only; start the program again"
    return f"{text}: another version of it is installed than in the program; see: windlass explain environments"


def _travelled(file: str) -> bool:
    """It is a module of the user's that came along."""
    return bool(snapshots.call_code_folder) and file.startswith(snapshots.call_code_folder + os.sep)
