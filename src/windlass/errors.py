"""What can go wrong, split by what whoever catches it can do.

::

    WindlassError
    ├── UsageError (also ValueError)       you asked for something that cannot be: mend the program
    │   ├── UnknownName                    no such library, function, pool, manager; has near names
    │   ├── NotPossible                    no pool can ever run this call, and why
    │   ├── NotPicklable (also TypeError)  a function, argument or result that cannot travel
    │   └── BadTree                        a directory tree or archive that cannot go to workers as it is, and why
    ├── CallFailed                         the call ended without a result, and not by its own exception
    │   ├── SlotDied                       the process that ran it died: signal, exit status, stderr
    │   ├── OutOfMemory                    it used more than its share when memory ran short
    │   ├── CommandFailed                  a command ended with an exit code that is not 0, or without having made its outputs
    │   ├── CallTimeout (also TimeoutError)
    │   ├── CallTooLong                    longer than any pool's walltime
    │   ├── FileUnavailable                a file that it needs could not be had, or does not fit
    │   ├── WorkersLost                    lost with its worker more than `max_losses` times
    │   ├── InputFailed                    a call whose result it was to get has failed or was cancelled; names that one
    │   └── LibraryFailed                  its library cannot start: import error, context error, crash
    ├── RemoteError                        the function's own exception, where its type cannot travel
    ├── Closed                             the manager is closed
    ├── StoreFull (also OSError)           no room for an object: a limit or a full disk
    │   └── CacheFull                      no room for a file in a worker's cache
    ├── CacheBusy (also TimeoutError)      another worker of this node has been filling the same entry of the cache for too long
    ├── SourceChanged                      a file is no longer what it was when it was declared
    ├── Damaged                            content is not what its name says; it was not kept, fetch it again
    ├── ConnectionRefused                  the other side does not accept us: versions, certificates; names both
    ├── BatchError                         a batch system said no, or nothing
    │   ├── Rejected                       refused as asked; asking again gives the same
    │   ├── OverLimit                      a limit on jobs is reached; wait for own pilots to end
    │   └── Unreachable                    no answer; nothing is known to have changed
    └── InternalError                      a defect of Windlass

Each has a place in docs/troubleshooting.md, which says when it comes and what to do: ``error.page``. A traceback ends with the command that
shows it (``windlass explain``), as a note: texts stay what happened, and an error costs no more to make.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

#: The page that says of each error what to do.
PAGE = "docs/troubleshooting.md"
#: What a file system says that has no room.
FULL = (errno.ENOSPC, errno.EDQUOT)


class _Notes:
    """Notes of an error (`BaseException.add_note`), made when somebody looks: Python where it shows a traceback, or adds one."""

    def __get__(self, error: WindlassError | None, kind: type[WindlassError]) -> _Notes | list[str]:
        if error is None:
            return self
        notes = error.__dict__["__notes__"] = [error.advice]
        return notes


class WindlassError(Exception):
    """Root of all errors that Windlass raises."""

    #: Where its kind is explained: a page of the documentation, with an anchor.
    page = f"{PAGE}#windlasserror"
    #: What ``windlass explain`` shows of it.
    topic = "WindlassError"
    #: What a traceback of it ends with.
    advice = "what to do: windlass explain WindlassError"
    # No data descriptor: once made, or brought along by a pickle, they are the instance's own.
    __notes__: list[str] = _Notes()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        if cls.__module__ == __name__:  # others, of Windlass's parts and of users, are explained where their base is
            cls.page, cls.topic = f"{PAGE}#{cls.__name__.lower()}", cls.__name__
            cls.advice = f"what to do: windlass explain {cls.topic}"


class UsageError(WindlassError, ValueError):
    """You asked for something that cannot be."""


class UnknownName(UsageError, KeyError):
    """There is no such library, function, pool or manager."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "", *, within: str = "") -> None:
        """``within``: where it was looked for, as in "in library 'lib'"."""
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        import difflib  # only when something is wrong: workers load this module before they say hello

        near = difflib.get_close_matches(name, self.known, n=3)
        if near:
            tail = "did you mean " + " or ".join(repr(word) for word in near) + "?"
        elif self.known:
            tail = f"known: {', '.join(self.known[:10])}" + (f" and {len(self.known) - 10} more" if len(self.known) > 10 else "")
        else:
            tail = f"there is no {kind} yet"
        place = f" {within}" if within else ""
        super().__init__(f"there is no {kind} {name!r}{place}; {tail}" + (f" {hint}" if hint else ""))

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show its repr

    def __reduce__(self) -> tuple[Callable[..., UnknownName], tuple[object, ...], dict[str, object]]:
        """Its ``__init__`` takes no text, and a process pool that cannot read an exception hangs."""
        return UnknownName.__new__, (type(self), *self.args), dict(vars(self))


def refuse_unknown(kind: str, given: Iterable[str], function: Callable[..., object]) -> None:
    """Raise `UnknownName`, with near names, for the first keyword ``given`` that ``function`` does not have."""
    for name in given:
        import inspect

        takes = inspect.signature(function).parameters.values()
        raise UnknownName(kind, name, [each.name for each in takes if each.name != "self" and each.kind not in (2, 4)])


def require_flag(name: str, value: object) -> None:
    """Raise `UsageError` for what is neither True nor False: a text like "no" would count as True."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}={value!r}; write {name}=True or {name}=False")


class NotPossible(UsageError):
    """No pool can ever run this call."""


class NotPicklable(UsageError, TypeError):
    """A function, an argument or a result cannot travel between processes."""


def stays_here(what: str) -> NotPicklable:
    """Why a manager, a factory or an executor does not travel: for their ``__reduce__``."""
    return NotPicklable(
        f"{what} cannot be pickled, as it belongs to the process that made it (a function takes its globals along, a method its object): "
        "submit there, and give calls the results of others as arguments: submit(f, future)"
    )


class BadTree(UsageError):
    """A directory tree, its manifest or an archive cannot go to workers as it is."""


class CallFailed(WindlassError):
    """The call ended without a result, and not by an exception of its own function."""


class SlotDied(CallFailed):
    """The process that ran the call died in it."""

    def __init__(self, text: str, *, signal: int = 0, exit_status: int = -1, peak_memory: int = 0, stderr: str = "") -> None:
        super().__init__(text)
        self.signal, self.exit_status, self.peak_memory, self.stderr = signal, exit_status, peak_memory, stderr


class CommandFailed(CallFailed):
    """A command ended with an exit code that is not 0 (below 0: a signal killed it), or without having made its outputs (``missing``)."""

    def __init__(
        self, text: str, *, exit_code: int = 0, signal: int = 0, stdout: str = "", stderr: str = "", missing: tuple[str, ...] = ()
    ) -> None:
        super().__init__(text)
        self.exit_code, self.signal, self.stdout, self.stderr, self.missing = exit_code, signal, stdout, stderr, missing


class OutOfMemory(CallFailed):
    """The call was ended because memory ran short and it was furthest over its share. Figures in bytes."""

    def __init__(self, text: str, *, peak: int = 0, share: int = 0, limit: int = 0) -> None:
        super().__init__(text)
        self.peak, self.share, self.limit = peak, share, limit


class CallTimeout(CallFailed, TimeoutError):
    """The call ran longer than its ``timeout``."""


class CallTooLong(CallFailed):
    """The call needs longer than any pool's walltime."""


class FileUnavailable(CallFailed):
    """A file that the call needs could not be had: it has changed, is gone, could not be fetched, or does not fit; the text says which."""


class WorkersLost(CallFailed):
    """The call was lost with its worker too often; the text tells of each attempt."""


class InputFailed(CallFailed):
    """The call was not run: a call whose future was among its arguments has failed, or was cancelled.

    ``call``, ``library``, ``function`` and ``tag`` are of the call that failed first, and ``__cause__`` is what that one raised.
    """

    def __init__(self, text: str, *, call: int = 0, library: str = "", function: str = "", tag: str | None = None) -> None:
        super().__init__(text)
        self.call, self.library, self.function, self.tag = call, library, function, tag


class LibraryFailed(CallFailed):
    """The call's library cannot start; the text has the reason and the remote traceback."""


class RemoteError(WindlassError):
    """Stands for an exception of the function's own whose type cannot travel; the text has its type, message and traceback."""


class RemoteTraceback(Exception):
    """The cause of a function's exception: the traceback as text, as it was on the worker."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0]) if self.args else ""


class Closed(WindlassError, RuntimeError):
    """The manager is closed."""


class ConnectionRefused(WindlassError, ConnectionError):
    """The other side does not accept this connection."""


class BatchError(WindlassError):
    """A batch system said no, or nothing."""


class Rejected(BatchError):
    """Refused as asked: bad account, partition, constraint. Asking again gives the same answer."""


class OverLimit(BatchError):
    """A limit on jobs is reached."""


class Unreachable(BatchError):
    """No answer, or an answer that says nothing: what was asked may or may not have happened."""


class InternalError(WindlassError):
    """A defect of Windlass; please report it with this text."""


class StoreFull(WindlassError, OSError):
    """No room for an object: its store is at its limit, or the disk is full."""


class CacheFull(StoreFull):
    """No room for a file in a worker's cache: the cache is at its limit, or the disk is full."""


class CacheBusy(WindlassError, TimeoutError):
    """Another process of this node fills the same entry of the shared cache, and did not end in time."""


class SourceChanged(WindlassError):
    """A file is gone or is no longer what it was when it was declared."""


class Damaged(WindlassError):
    """What was written is not what its name says; it was not kept and can be fetched again."""
