"""TaskVine's executor: ``vine.FuturesExecutor``, whose ``submit`` gives futures.

Theory of operation
-------------------
A `FuturesExecutor` has a `windlass.taskvine.Manager` and, unless told otherwise, a `Factory` for it.  What it submits, functions and tasks
that were made by `FuturesExecutor.future_task` and `FuturesExecutor.future_funcall`, are calls of the `windlass.Manager` as those of
`windlass.Executor` are: their futures are `windlass.CallFuture`, which may be arguments of further calls, be awaited, and be given to
`concurrent.futures.wait` and ``as_completed`` (which are here, too, as TaskVine has its own).  The tasks are not the manager's: no ``wait``
of that gives them back, and what only it does for tasks (to bring files, to end them at a time) is refused.

Who begins anew writes `windlass.Executor`, whose ``map`` is lazy, as that of `concurrent.futures` is; here it is TaskVine's, which gives
one future of all.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Executor, as_completed, wait
from typing import Any, NoReturn

import windlass
from windlass.errors import Closed, UsageError
from windlass.manager.call import read_count
from windlass.manager.future import CallFuture as VineFuture
from windlass.taskvine.factory import Factory
from windlass.taskvine.facts import KEPT
from windlass.taskvine.files import File
from windlass.taskvine.manager import FOREVER, Manager
from windlass.taskvine.outcomes import Outcome, no_effect
from windlass.taskvine.pythontasks import FunctionCall, PythonTask

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "FutureFunctionCall",
    "FuturePythonTask",
    "FuturesExecutor",
    "VineFuture",
    "as_completed",
    "wait",
]


class _OfFuture(PythonTask):
    """What holds for tasks whose end is told by a future alone."""

    @property
    def _ended(self) -> Outcome | None:
        if self._outcome is None and self._future is not None and self._future.done():
            self.end(self._future)
        return self._outcome

    # A method, as TaskVine has it there.
    def output(self, timeout: float | str | None = FOREVER) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What its function returned, or its exception. Waits for it, at most ``timeout`` seconds; raises `TimeoutError` then."""
        future = self._future
        if future is None:
            raise UsageError(f"{self!r} has no output before it is submitted: write executor.submit(task)")
        seconds = None if timeout is None or isinstance(timeout, str) else timeout
        if not future.wait(seconds):
            raise TimeoutError(f"{self!r} has not ended within {timeout} s")
        ended = self._ended
        assert ended is not None
        return future.result() if ended.output is KEPT else ended.output

    def add_output(
        self, file: File, remote_name: str, watch: bool = False, failure_only: bool | None = None, success_only: bool | None = None
    ) -> None:
        """A file that stays on workers (``declare_temp``), for other tasks. Raises `UsageError` for others: let the function return it."""
        if isinstance(file, File) and file.comes_back:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{file!r} as the output of a future's task: let the function return it, or declare_temp() one")
        super().add_output(file, remote_name, watch, failure_only, success_only)

    def submitted(self, manager: windlass.Manager, category: Mapping[str, Any]) -> VineFuture[Any]:
        for file in self._inputs.values():
            file.settled()  # nobody holds it
        return super().submitted(manager, category)

    def set_time_end(self, useconds: float) -> NoReturn:
        raise UsageError("set_time_end() of a future's task is not here: future.cancel() it then, or set_time_max()")


class FuturePythonTask(_OfFuture):
    """``func(*args, **kwargs)``, made by `FuturesExecutor.future_task`; futures may be among the arguments."""

    def __init__(self, manager: Manager, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        del manager  # that of the executor which it is submitted to
        super().__init__(func, *args, **kwargs)


class FutureFunctionCall(_OfFuture, FunctionCall):  # pyright: ignore[reportIncompatibleVariableOverride]  # output, as above
    """A call of a library's function, made by `FuturesExecutor.future_funcall`."""

    def __init__(self, manager: Manager, library_name: str, fn: str, *args: Any, **kwargs: Any) -> None:
        del manager
        FunctionCall.__init__(self, library_name, fn, *args, **kwargs)


class FuturesExecutor(Executor):
    """Runs functions on workers, with futures. ``batch_type``: as of `Factory`; ``opts``: its attributes (``{"cores": 8}``).

    ``factory=False``: workers are started apart. Else they come when there is work: for some that are always there say
    ``{"min-workers": 5}``.
    """

    def __init__(
        self,
        port: Any = 9123,
        batch_type: str = "local",
        manager: Manager | None = None,
        manager_host_port: str | None = None,
        manager_name: str | None = None,
        factory_binary: str | None = None,
        worker_binary: str | None = None,
        log_file: str | None = None,
        factory: bool = True,
        opts: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("factory_binary", factory_binary), ("worker_binary", worker_binary), ("log_file", log_file)):
            if value is not None:
                no_effect(f"FuturesExecutor({name}={value!r})", "factory and workers are Python modules, and log by Python's logging")
        if manager_host_port is not None:
            raise UsageError("FuturesExecutor(manager_host_port=): its manager is in this program; give manager_name=, or nothing")
        self.manager = Manager(port, manager_name) if manager is None else manager
        self._own = manager is None
        self._calls: weakref.WeakSet[VineFuture[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False
        self.factory: Factory | None = None
        try:
            if factory:
                options = {name.replace("-", "_"): value for name, value in (opts or {}).items()}
                self.factory = Factory(batch_type, self.manager, **options).start()
        except BaseException:
            if self._own:
                self.manager.close()
            raise

    @property
    def manager_name(self) -> str:
        """What workers and the command line find it by."""
        return self.manager.name

    @property
    def port(self) -> int:
        """The port that its manager listens on."""
        return self.manager.port

    # ------------------------------------------------------------ calls

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> VineFuture[Any]:
        """The future of ``fn(*args, **kwargs)``, or of a task of `future_task` or `future_funcall`.

        Raises as `windlass.Manager.submit`, and `windlass.Closed` after `shutdown`.
        """
        if isinstance(fn, PythonTask):
            if not isinstance(fn, _OfFuture) or args or kwargs:
                raise UsageError(f"submit({fn!r}): write submit(executor.future_task(function, ...)), or submit(function, ...)")
            task = fn
        else:
            task = self.future_task(fn, *args, **kwargs)
        with self._lock:
            if self._closed:
                raise Closed("cannot submit after shutdown of its FuturesExecutor; make another one")
        task.withdraw()  # it may be under way: of many submissions it tells the end of the last
        task.begin(self.manager.take_number())
        try:
            future = task.submitted(self.manager.manager, self.manager.category_options(task.category))
        except BaseException:
            task.withdraw()
            raise
        future.collect()  # no wait() of the manager gives it back
        self._calls.add(future)
        return future

    def future_task(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> FuturePythonTask:
        """A task with setters (``set_cores``, ...), for `submit`."""
        return FuturePythonTask(self.manager, fn, *args, **kwargs)

    def future_funcall(self, library_name: str, fn: str, *args: Any, **kwargs: Any) -> FutureFunctionCall:
        """A call of a library's function, for `submit`."""
        return FutureFunctionCall(self.manager, library_name, fn, *args, **kwargs)

    task = future_task

    def create_library_from_functions(self, name: str, *function_list: Callable[..., Any], **options: Any) -> windlass.Library:
        """As the manager's."""
        return self.manager.create_library_from_functions(name, *function_list, **options)

    def install_library(self, libtask: windlass.Library) -> None:
        """As the manager's."""
        self.manager.install_library(libtask)

    # ------------------------------------------------------------ functions over sequences

    def map(self, fn: Callable[[Any], Any], iterable: Iterable[Any], library_name: str | None = None, chunk_size: int = 1) -> Any:  # type: ignore[override]
        """One future: the list of ``fn`` of each, in order."""
        _no_library(library_name)

        def each(items: Sequence[Any]) -> list[Any]:
            return [fn(item) for item in items]

        return self.submit(_joined, [self.submit(each, chunk) for chunk in _chunks(iterable, chunk_size, 1)])

    def reduce(
        self,
        fn: Callable[[list[Any]], Any],
        iterable: Iterable[Any],
        library_name: str | None = None,
        chunk_size: int = 2,
        fn_arity: int = 2,
    ) -> VineFuture[Any]:
        """One future: ``fn`` of lists of at most ``fn_arity``, of these results again, until there is one.

        ``chunk_size``: items that one call takes.
        """
        _no_library(library_name)
        arity = read_count("fn_arity", fn_arity)

        def reduced(items: list[Any]) -> Any:
            while len(items) > 1:
                items = [fn(items[start : start + arity]) for start in range(0, len(items), arity)]
            return items[0]

        level = list(iterable)
        if arity < 2 or not level:
            raise UsageError(f"reduce() of {len(level)} with fn_arity={arity} has no end: give it items, and fn_arity=2 or more")
        while True:
            level = [self.submit(reduced, chunk) for chunk in _chunks(level, max(chunk_size, arity), 2)]
            if len(level) == 1:
                last: VineFuture[Any] = level[0]
                return last

    def allpairs(
        self,
        fn: Callable[[Any, Any], Any],
        iterable_rows: Iterable[Any],
        iterable_cols: Iterable[Any],
        library_name: str | None = None,
        chunk_size: int = 1,
    ) -> VineFuture[Any]:
        """One future: a list for each row with ``fn(row, column)`` for each column."""
        rows, columns = list(iterable_rows), list(iterable_cols)
        values = self.map(lambda pair: fn(*pair), [(row, column) for row in rows for column in columns], library_name, chunk_size)
        width = len(columns)

        def in_rows(found: list[Any]) -> list[list[Any]]:
            return [found[row * width : (row + 1) * width] for row in range(len(rows))]

        return self.submit(in_rows, values)

    # ------------------------------------------------------------ life

    def set(self, name: str, value: Any) -> None:
        """An attribute of the factory."""
        if self.factory is not None:
            setattr(self.factory, name.replace("-", "_"), value)

    def get(self, name: str) -> Any:
        """An attribute of the factory."""
        return getattr(self.factory, name.replace("-", "_")) if self.factory is not None else None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; when those there are have ended, send the workers away.

        ``wait=False``: in a thread, for which the program's end waits. ``cancel_futures``: cancel what has not ended.
        """
        with self._lock:
            first, self._closed = not self._closed, True
        if cancel_futures:
            for future in list(self._calls):
                future.cancel()
        if wait:
            self._finish()
        elif first:
            threading.Thread(target=self._finish, name="windlass-shutdown", daemon=False).start()

    def _finish(self) -> None:
        for future in list(self._calls):
            future.wait()
        if self.factory is not None:
            self.factory.stop()
        if self._own:
            self.manager.close()


def _joined(lists: list[list[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


def _chunks(items: Iterable[Any], size: int, least: int) -> list[list[Any]]:
    known = list(items)
    if read_count("chunk_size", size) < least:
        raise UsageError(f"chunk_size={size!r} would never come to an end: write chunk_size={least}")
    return [known[start : start + size] for start in range(0, len(known), size)]


def _no_library(name: str | None) -> None:
    if name is not None:
        raise UsageError(f"library_name={name!r} is not here: submit(executor.future_funcall({name!r}, 'function', x)) for each")
