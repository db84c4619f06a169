"""A scheduler for Dask: ``dask.compute(x, scheduler=windlass.dask.get)``, or ``dask.config.set(scheduler=windlass.dask.get)``.

Theory of operation
-------------------
A task of the graph is a call, and what it needs of other tasks are their *futures*: the manager hands results on when they exist, and
large ones stay on the workers that made them (``keep="worker"``) and go from there to where they are needed. Only what was asked for
comes to the program.

Tasks of a chain, each of which is needed by the next alone, are one call. Calls are submitted in Dask's own order, which goes through a
graph in depth, and only so many ahead of those that have ended, so that inputs of a large graph are not all made before the first of them
is used up. A future is dropped when the last call that needs it is submitted, and with the end of that call its result is gone.

The first error ends it: what has not ended is cancelled, and the task's own exception is raised.

*Callbacks*. What Dask's callbacks (progress bars, profilers, caches) are told of a task has its result in it, which is not here; nor
can a task be done again here when it fails (``rerun_exceptions_locally``). With these Dask's own loop runs, `dask.local.get_async`, by
which each result passes through the program. It is what ``scheduler=pool`` does, too.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportPrivateImportUsage=false
# Dask is marked as typed, and for the most part is not.

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import dask
from dask._task_spec import Alias, DataNode, convert_legacy_graph, fuse_linear_task_spec
from dask.callbacks import Callback
from dask.core import flatten
from dask.local import get_async, nested_get
from dask.order import order

from windlass.errors import InputFailed
from windlass.fitting import Runner, executor_for
from windlass.manager.buffers import KnownBuffers
from windlass.manager.future import CallFuture

if TYPE_CHECKING:
    from types import ModuleType

    from windlass.manager.executor import Submitter
    from windlass.manager.manager import Manager

__all__ = ["get"]

_HOW: Final = "dask.compute(..., scheduler=windlass.dask.get, executor=pool)"
#: Calls ahead of those that have ended, for each slot; and at least.
_AHEAD_TIMES: Final = 4
_AHEAD_LEAST: Final = 32
#: What a task may be given of Dask's that this does otherwise than Dask's own loop.
_OWN_LOOP: Final = ("cache", "callbacks", "rerun_exceptions_locally")

_runner: Runner


def run_task(task: Callable[[Mapping[Any, Any]], Any], keys: list[Any], values: list[Any]) -> Any:
    """In a slot: what a task gives, with the values of the tasks that it needs."""
    return task(dict(zip(keys, values, strict=True)))


_runner = Runner(run_task)


def get(
    dsk: Any, keys: Any, *, executor: Submitter | Manager | None = None, imports: Iterable[str | ModuleType] = (), **options: Any
) -> Any:
    """The values of ``keys``, a key or lists of them in lists, of a graph: Dask's function of a scheduler.

    ``executor``: the `Executor`, one with options (``pool.with_options(cores=4)``), or a `Manager`; default: the one that is open.
    ``imports``: modules to be hoisted beside those that are found.

    Other ``options`` are those of Dask's schedulers. Raises what a task raises, `KeyError` for a key that is not in the graph.
    """
    pool = executor_for(executor, _HOW)
    _runner.hoist(imports)
    asked: Callable[[str], Any] = lambda name: options.get(name, dask.config.get(name, None))  # noqa: E731
    if Callback.active or any(asked(name) for name in _OWN_LOOP):
        if asked("rerun_exceptions_locally"):  # Dask's default raises what a task raises, which ends the graph before it is run again
            options.setdefault("pack_exception", _packed)
        return get_async(pool.submit, options.pop("num_workers", None) or max(1, pool.slots()), dsk, keys, **options)
    wanted: set[Hashable] = set(flatten(keys)) if isinstance(keys, list) else {keys}
    if not isinstance(dsk, Mapping):
        dsk = dsk.__dask_graph__()
    graph = fuse_linear_task_spec(_needed(convert_legacy_graph(dsk), wanted), wanted)
    return nested_get(keys, _Run(pool, graph, wanted).values())


def _packed(error: BaseException, _: object) -> tuple[BaseException, None]:
    """In a slot: an exception and its traceback, which cannot travel."""
    return error, None


def _needed(graph: Mapping[Any, Any], wanted: Iterable[Hashable]) -> dict[Any, Any]:
    """The tasks that the wanted ones need, and these. Raises `KeyError`."""
    found: dict[Any, Any] = {}
    todo = list(wanted)
    while todo:
        key = todo.pop()
        if key not in found:
            found[key] = task = graph[key]
            todo += task.dependencies
    return found


class _Run:
    """One graph on its way through an executor."""

    def __init__(self, pool: Submitter, graph: Mapping[Any, Any], wanted: set[Hashable]) -> None:
        self._graph, self._wanted = graph, wanted
        self._pool, self._keeping = pool, pool.with_options(keep="worker")
        self._ahead = max(_AHEAD_LEAST, _AHEAD_TIMES * pool.slots())
        #: Futures, and values that need no call, by key; and how many tasks yet to be submitted need them.
        self._known: dict[Any, Any] = {}
        self._needed_by = Counter(each for task in graph.values() for each in task.dependencies)
        self._ended: queue.SimpleQueue[CallFuture[Any]] = queue.SimpleQueue()
        self._running: set[CallFuture[Any]] = set()

    def values(self) -> dict[Any, Any]:
        """Run it; the values of what is wanted."""
        rank = order(self._graph)
        _runner.look_at(
            (each.func for task in self._graph.values() for each in _tasks_in(task)),
            (value for task in self._graph.values() for value in _values_in(task)),
        )
        try:
            with KnownBuffers():
                for key in sorted(self._graph, key=rank.__getitem__):
                    self._start(key, self._graph[key])
            while self._running:
                self._wait_for_one()
            return {key: self._value(key) for key in self._wanted}
        except BaseException:
            for future in self._running:
                future.cancel()
            raise

    def _start(self, key: Any, task: Any) -> None:
        if isinstance(task, DataNode):
            self._known[key] = task.value
        elif isinstance(task, Alias):
            self._known[key] = self._known[task.target]
        else:
            while len(self._running) >= self._ahead:
                self._wait_for_one()
            needs = list(task.dependencies)
            pool = self._pool if key in self._wanted else self._keeping
            future = pool.submit(_runner.function, task, needs, [self._known[each] for each in needs])
            self._running.add(future)
            future.watch(self)
            self._known[key] = future
        for each in task.dependencies:
            self._needed_by[each] -= 1
            if not self._needed_by[each] and each not in self._wanted:
                del self._known[each]

    # Told of ends on the manager's thread.
    def add_result(self, future: CallFuture[Any]) -> None:
        self._ended.put(future)

    add_exception = add_cancelled = add_result

    def _wait_for_one(self) -> None:
        future = self._ended.get()
        self._running.discard(future)
        if future.cancelled() or future.state == "failed":
            error = future.exception()
            raise error.__cause__ if isinstance(error, InputFailed) and error.__cause__ is not None else error  # type: ignore[misc]

    def _value(self, key: Any) -> Any:
        known = self._known[key]
        return known.result() if isinstance(known, CallFuture) else known


def _tasks_in(task: Any) -> Iterable[Any]:
    """A task with a function, and those that were made one with it."""
    if hasattr(task, "func"):
        yield task
        if task.args and isinstance(task.args[0], dict):
            yield from (each for each in task.args[0].values() if hasattr(each, "func"))


def _values_in(task: Any) -> Iterable[Any]:
    """What a task's function is given that is no other task's result."""
    for each in _tasks_in(task):
        yield from each.args
        yield from each.kwargs.values()
