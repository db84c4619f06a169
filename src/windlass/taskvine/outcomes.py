"""What became of a task, in TaskVine's words.

Theory of operation
-------------------
TaskVine tells the end of a task by three things: a *result* (one of few words), an *exit code*, and an *output*.  A Windlass call ends
with a value or an exception; `told` makes the one of the other.  A command that ended with any exit code, and a function that raised,
*were run*: their result is ``"success"``, and the exit code says the rest.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from concurrent.futures import CancelledError
from typing import Any, Final, NamedTuple

from windlass.commands import CommandResult
from windlass.errors import (
    CallFailed,
    CallTimeout,
    CallTooLong,
    Closed,
    CommandFailed,
    FileUnavailable,
    InputFailed,
    LibraryFailed,
    NotPossible,
    OutOfMemory,
    SlotDied,
    WindlassError,
    WorkersLost,
)

#: The result of a task that was run.
SUCCESS: Final = "success"
CANCELLED: Final = "cancelled"
INPUT_MISSING: Final = "input missing"
OUTPUT_MISSING: Final = "output missing"
TRANSFER_ERROR: Final = "output transfer error"
#: By exception, the first that fits.
_RESULTS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (CancelledError, CANCELLED),
    (Closed, CANCELLED),
    (CallTimeout, "max wall time"),
    (CallTooLong, "max end time"),
    (OutOfMemory, "resource exhaustion"),
    (NotPossible, "resource exhaustion"),
    (WorkersLost, "max retries"),
    (InputFailed, INPUT_MISSING),
    (FileUnavailable, INPUT_MISSING),
    (LibraryFailed, "library exit"),
    (SlotDied, "signal"),
)
#: The exit code of what was not run to its end.
NOT_RUN: Final = -1
#: Of a function that raised.
RAISED: Final = 1


class NoEffect(UserWarning):
    """Something of TaskVine's has no meaning here, and a program can do without: the text says why."""


def no_effect(what: str, why: str) -> None:
    """Warn of it, at the program's line."""
    level, frame = 2, sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # it is documented
    while frame.f_back is not None and frame.f_back.f_globals.get("__name__", "").startswith("windlass.taskvine"):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{what} has no effect here: {why}", NoEffect, stacklevel=level + 1)


class _AnyException(type):
    """TaskVine's manual says that the output of a function that failed is the exception, its code gives one of this class: it is both."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, BaseException)


class PythonTaskNoResult(Exception, metaclass=_AnyException):
    """``isinstance(task.output, PythonTaskNoResult)``: the function has no result; ``task.output`` is the exception that says why."""


class FunctionCallNoResult(PythonTaskNoResult):
    """The same of a `FunctionCall`."""


class Outcome(NamedTuple):
    """The end of a task."""

    result: str
    exit_code: int
    #: What its function returned, the exception, or what its command wrote.
    output: Any
    std_output: str
    #: What it ended with, if that was no value.
    error: BaseException | None = None
    #: Of a command.
    details: CommandResult | None = None


def told(value: Any, error: BaseException | None, stdout: str, stderr: str, *, command: bool) -> Outcome:
    """An end, of a command or of a function."""
    if isinstance(value, CommandResult):
        result = OUTPUT_MISSING if value.missing else SUCCESS
        return Outcome(result, value.exit_code, value.stdout, value.stdout, None, value)
    text = stdout + stderr
    if error is None:
        return Outcome(SUCCESS, 0, value, text)
    if isinstance(error, CommandFailed):  # it could not be started
        return Outcome(SUCCESS, error.exit_code, text or str(error), text or str(error), error)
    result = next((word for kind, word in _RESULTS if isinstance(error, kind)), "unknown")
    exit_code = NOT_RUN
    if isinstance(error, SlotDied):
        exit_code = -error.signal or error.exit_status
    elif result == "unknown" and type(error) is CallFailed and "its output" in str(error):
        result = OUTPUT_MISSING
    elif result == "unknown" and not isinstance(error, CallFailed | WindlassError):
        # The function's own exception.
        result, exit_code = SUCCESS, RAISED
    text += "".join(traceback.format_exception(error)) if exit_code == RAISED and not command else f"{error}\n" if str(error) else ""
    return Outcome(result, exit_code, text if command else error, text, error)
