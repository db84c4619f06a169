"""Loading a library into this process: code, imports, functions, context; and whether the process may be forked afterwards.

Theory of operation
-------------------
The same steps run in a zygote, once for all its slots, and in a slot that is an interpreter of its own (``start="spawn"``):

1. put the code snapshots first on ``sys.path``, then the program's own entries;
2. do the hoisted imports, each with its time. An explicit one that fails ends everything (`CannotStart`); an automatic one is noted and
   left to the calls;
3. load the library's functions; one that needs a module whose automatic import has failed is left to the calls as well;
4. compute the context, if this process is the one to have it.

Each step is announced before it is done, so that the worker can name the step that hung or killed the interpreter.

A fork copies only the thread that forks. Threads of a library that does not expect this leave locks taken and work undone in the child,
so a process that has such threads must not be forked. Some libraries do expect it: OpenBLAS ends its threads before each fork and
starts them again when needed. So threads are judged by a trial: fork a child that leaves at once, and see whether they are still there.
Those of an allocator that takes its locks before a fork, and does without the thread in the child, are known by their name.
An open device (GPU drivers) and an initialised MPI do not survive a fork either.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from windlass import __version__, snapshots
from windlass.coroutines import is_async
from windlass.errors import FULL
from windlass.messages import FunctionDef, FunctionId, HoistedImport, LibrarySpec, ObjectRef
from windlass.objects import map_object, open_in
from windlass.ownership import NotOurs, make_ours
from windlass.worker import importcost, namespaces
from windlass.worker.slotlink import Setup, Step, bounded

#: Devices that survive a fork; anything else below /dev belongs to a driver that may not.
_HARMLESS_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/console")
_HARMLESS_FOLDERS: Final = ("/dev/shm/", "/dev/pts/", "/dev/fd/", "/dev/mqueue/", "/dev/hugepages/")

#: Threads that survive a fork, by what their process calls them: jemalloc's tidy up, and its child has new locks and tidies up itself. It
#: comes with pyarrow, and so with pandas and all that imports that.
_HARMLESS_THREADS: Final = frozenset(["jemalloc_bg_thd"])

#: A full or broken disk, or a table of the node's that is full.
_NODES_TROUBLE: Final = (*FULL, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ESTALE)


class CannotStart(Exception):
    """The library cannot start; `kind` and the text are those of `LibraryFailed`, or the kind is "node": the trouble is this node's."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Library:
    """A library as it is loaded in this process."""

    def __init__(self, spec: LibrarySpec) -> None:
        self.spec = spec
        self.imports: tuple[HoistedImport, ...] = ()
        self.functions: dict[FunctionId, Callable[..., Any]] = {}
        self.context: Any = None
        self.has_context = False
        self.context_seconds = 0.0
        #: The step after which this process had more threads than before, as in "import of numpy".
        self.threads_after = ""
        #: What its user should know, one a line.
        self.notes: tuple[str, ...] = ()


def load(setup: Setup, announce: Callable[[Step], None], *, with_context: bool) -> Library:
    """Do all steps. Raises `CannotStart`."""
    spec = setup.spec
    if tuple(spec.python) != sys.version_info[:2]:
        raise CannotStart(
            "python",
            f"library {spec.name!r} comes from Python {spec.python[0]}.{spec.python[1]}, and this worker runs Python {sys.version_info[0]}."
            f"{sys.version_info[1]} ({sys.executable}); give the pool an environment with the program's version of Python",
        )
    if setup.version != __version__:
        raise CannotStart(
            "python",
            f"the environment of library {spec.name!r} has Windlass {__version__} and the worker has {setup.version}: pack the environment "
            "again, with the worker's version in it",
        )
    library = Library(spec)
    snapshots.on_worker, snapshots.call_code_folder, snapshots.library_code = True, setup.code_folder, spec.code
    try:
        add_code(spec.code, setup.store_folder, setup.code_folder, spec.paths)
    except Exception as error:
        kind = "node" if is_the_nodes(error) else "import"  # other workers may do better
        raise CannotStart(kind, f"the code of library {spec.name!r} cannot be unpacked on the worker: {error!r}{_traced(error)}") from error
    # Objects made while loading live as long as the process: looking for garbage among them is wasted, also afterwards. The first look of
    # a collector that finds them all new takes as long as a tenth of the imports; so they are put out of its sight before it is on again.
    gc.disable()
    try:
        _hoist(library, setup, announce)
        _load_functions(library, setup, announce)
        if with_context and spec.context:
            compute_context(library, announce)
            gc.collect()  # what a computation leaves may be large
    finally:
        gc.freeze()
        gc.enable()
    told = importcost.note(importcost.own_cost())
    library.notes = (told,) if told else ()
    return library


def add_code(refs: Sequence[ObjectRef], store_folder: str, code_folder: str, paths: Sequence[str] = ()) -> None:
    """Put snapshots (zip archives in the store), and then `paths`, first on ``sys.path``; what is on it stays where it is."""
    new = [_unpacked(ref, store_folder, code_folder) for ref in refs]
    new = [path for path in (*new, *paths) if path not in sys.path]
    if new:
        sys.path[:0] = new
        importlib.invalidate_caches()


def is_the_nodes(error: BaseException | None) -> bool:
    """Whether this says that the node is full or broken, rather than that what it was asked for cannot be done anywhere."""
    return isinstance(error, NotOurs) or (isinstance(error, OSError) and error.errno in _NODES_TROUBLE)


def load_function(definition: FunctionDef, setup: Setup) -> Callable[..., Any]:
    """The function of a definition. Raises whatever unpickling does."""
    add_code(definition.code, setup.store_folder, setup.code_folder)
    blob = definition.blob if definition.object is None else open_in(setup.store_folder, definition.object.name)
    function: Callable[..., Any] = pickle.loads(blob)
    return function


def compute_context(library: Library, announce: Callable[[Step], None]) -> None:
    """Run the library's context function, if it has one. Raises `CannotStart`."""
    if not library.spec.context:
        return
    announce(Step("context"))
    begin = time.perf_counter()
    try:
        with _looking_for_threads(library, "its context"):
            function, args, kwargs = pickle.loads(library.spec.context)
            if is_async(function):
                from windlass.worker.own_loop import to_its_end

                function = to_its_end(function, keep_tasks=True)  # on the loop of the slot's calls, so what it opens there serves them
            library.context = function(*args, **kwargs)
    except BaseException as error:  # a context that calls sys.exit must not look like a crash
        raise CannotStart(
            "context", f"the context function of library {library.spec.name!r} failed: {_short(error)}{_traced(error)}"
        ) from error
    library.has_context = True
    library.context_seconds = time.perf_counter() - begin


def tell_traceback() -> None:
    """Write the traceback of what is being handled to standard error: for processes that end by ``os._exit``."""
    with suppress(Exception):
        traceback.print_exc()
        sys.stderr.flush()


def thread_count() -> int:
    """Threads of this process, Python's and others, but for such as survive a fork."""
    threads = os.listdir("/proc/self/task")
    return len(threads) if len(threads) == 1 else len(threads) - sum(map(_is_harmless, threads))


def fork_quietly() -> int:
    """As `os.fork`. Newer Pythons warn of forks with threads, by which those are meant that have been looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def fork_hazards(library: Library) -> list[str]:
    """Why a fork of this process would not be safe, one reason a line; empty when it is."""
    hazards: list[str] = []
    if thread_count() > 1:
        _trial_fork()
        count = thread_count()
        if count > 1:
            after = f" after {library.threads_after}" if library.threads_after else ""
            hazards.append(f"{count - 1} thread{'s' if count > 2 else ''} besides the main one{after}")
    devices = sorted(set(_devices()))
    if devices:
        hazards.append(f"open device {', '.join(devices)}")
    mpi: Any = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        hazards.append("MPI is initialised")
    return hazards


# ---------------------------------------------------------------- steps


def _hoist(library: Library, setup: Setup, announce: Callable[[Step], None]) -> None:
    done: list[HoistedImport] = []
    dropped = {item.module: item for item in setup.dropped}
    for item in library.spec.imports:
        if item.module in dropped:
            done.append(dropped[item.module])
            continue
        announce(Step("import", item.module, item.explicit))
        begin = time.perf_counter()
        failure = ""
        try:
            with _looking_for_threads(library, f"import of {item.module}"):
                importlib.import_module(item.module)
        except BaseException as error:  # modules raise anything, and some call sys.exit
            failure = _short(error)
            if item.explicit:
                raise CannotStart(
                    "import", f"import of {item.module!r} for library {library.spec.name!r} failed: {failure}{_traced(error)}"
                ) from error
        done.append(HoistedImport(item.module, time.perf_counter() - begin, failure))
    library.imports = tuple(done)


def _load_functions(library: Library, setup: Setup, announce: Callable[[Step], None]) -> None:
    announce(Step("functions"))
    # Nearly every function is made by cloudpickle, also those that come later: once here instead of once in each slot.
    try:
        namespaces.prepare()
    except ImportError:
        pass
    if library.spec.concurrency > 1:
        importlib.import_module("windlass.worker.slot_tasks")
    if setup.dropped:
        return  # the functions may import what killed the interpreter before
    failed_imports = any(item.error for item in library.imports)
    for definition in library.spec.functions:
        try:
            with _looking_for_threads(library, f"loading what function {definition.name!r} refers to"):
                library.functions[definition.id] = load_function(definition, setup)
        except BaseException as error:
            if failed_imports and isinstance(error, ImportError):
                continue  # the call says so, if one comes
            from windlass.worker.unloadable import reason

            told = f"function {definition.name!r} of library {library.spec.name!r} cannot be loaded: {reason(error)}{_traced(error)}"
            raise CannotStart("function", told) from error
    if any(map(is_async, library.functions.values())):
        importlib.import_module("windlass.worker.own_loop")


def _unpacked(ref: ObjectRef, store_folder: str, code_folder: str) -> str:
    """The folder with the content of a snapshot, unpacked by the first process of the worker that needs it."""
    for folder in (os.path.dirname(code_folder), code_folder):
        make_ours(folder)
    folder = snapshots.code_folder(code_folder, ref.name)
    return folder if os.path.isdir(folder) else snapshots.unpack(map_object(os.path.join(store_folder, ref.name)), folder)


@contextmanager
def _looking_for_threads(library: Library, step: str) -> Generator[None]:
    before = thread_count()
    try:
        yield
    finally:
        if thread_count() > before:
            library.threads_after = step


def _is_harmless(thread: str) -> bool:
    try:
        with open(f"/proc/self/task/{thread}/comm") as file:
            return file.read().strip() in _HARMLESS_THREADS
    except OSError:  # it has ended since
        return True


def _trial_fork() -> None:
    pid = fork_quietly()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    # A thread that was told to end may need a moment to leave the kernel's list.
    until = time.monotonic() + 0.2
    while thread_count() > 1 and time.monotonic() < until:
        time.sleep(0.002)


def _devices() -> list[str]:
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("/dev/") and target not in _HARMLESS_DEVICES and not target.startswith(_HARMLESS_FOLDERS):
            found.append(target)
    return found


def _short(error: BaseException) -> str:
    return bounded(f"{type(error).__name__}: {error}") if str(error) else type(error).__name__


def _traced(error: BaseException) -> str:
    from windlass.worker.unloadable import traced

    return traced(error)
