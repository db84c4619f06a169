"""An executor for Parsl: ``parsl.Config(executors=[WindlassExecutor(backend="slurm", max_pilots=20, cores=8)])``.

Theory of operation
-------------------
Parsl keeps the graph of apps and hands over what can run; each is a call of an executor of Windlass, whose factory keeps the pilots. So
there are no blocks, and Parsl's strategies of scaling have nothing to do here. When Parsl says `start`, the executor is made; when it says
`shutdown`, what has not ended is cancelled and the pilots leave.

Apps expect to run in the program's folder, which is on a file system that the nodes see: there they write the files that the next app
reads. A call therefore goes there first (``task_dir``); where a node has no such folder, it stays in its slot's own.

``parsl_resource_specification`` has Parsl's words: ``cores``, ``memory`` in MB, ``gpus``, ``priority`` (the larger first), and
``running_time_min`` in seconds, which Windlass takes for the time that it will need. ``disk`` is accepted, but nothing is reckoned with
it.

With Parsl's ``MonitoringHub`` tasks tell of their beginning and end by a *radio*: by default files in Parsl's ``run_dir``, which is where
the program runs, too."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from parsl.executors.base import ParslExecutor
from parsl.executors.errors import ExecutorError, InvalidResourceSpecification
from parsl.utils import RepresentationMixin

from windlass.errors import UsageError
from windlass.fitting import executor_for
from windlass.manager.executor import Executor
from windlass.manager.future import CallFuture

if TYPE_CHECKING:
    from windlass.factory.factory import PoolWord
    from windlass.manager.executor import Submitter
    from windlass.manager.manager import Manager

__all__ = ["WindlassExecutor"]

_HOW: Final = "WindlassExecutor(executor=pool)"
#: Parsl's words of a resource specification, and the options of a call; None: there is none.
_WORDS: Final = {
    "cores": "cores",
    "memory": "memory",
    "gpus": "gpus",
    "priority": "priority",
    "running_time_min": "expected_time",
    "disk": None,
}
#: Functions whose wrappers are kept, so that they are known as the same again.
_KEPT_MOST: Final = 1000


class WindlassExecutor(ParslExecutor, RepresentationMixin):
    """Runs apps on pilots of Windlass."""

    def __init__(
        self,
        label: str = "windlass",
        backend: PoolWord | list[PoolWord] = "local",
        *,
        executor: Submitter | Manager | None = None,
        task_dir: str | None = "",
        working_dir: str | None = None,
        storage_access: list[Any] | None = None,
        remote_monitoring_radio: Any = None,
        **pool: Any,
    ) -> None:
        """``backend`` and ``pool``: as `windlass.Executor` takes them (``max_pilots=20, cores=8``). ``executor``: one that you have
        instead, or a manager; it stays open. ``task_dir``: the folder in which apps run, by default the program's own; None: the
        slot's. ``working_dir`` and ``storage_access`` are Parsl's, for the staging of files, and so is ``remote_monitoring_radio``: how
        tasks report to Parsl's monitoring, by default by files in its ``run_dir``.
        """
        ParslExecutor.__init__(self)
        if executor is not None and (pool or backend != "local"):
            raise UsageError("executor= has its pilots already, so options of a pool would change nothing; leave one of them out")
        self.label, self.backend, self.executor, self.task_dir = label, backend, executor, task_dir
        self.working_dir, self.storage_access, self.pool = working_dir, storage_access, pool
        radio = remote_monitoring_radio if remote_monitoring_radio is not None else _radio()
        if radio is not None:
            self.remote_monitoring_radio = radio
        self._submitter: Submitter | None = None
        self._own: Executor | None = None
        self._calls: weakref.WeakSet[CallFuture[Any]] = weakref.WeakSet()
        self._kept: OrderedDict[int, tuple[Callable[..., Any], Callable[..., Any]]] = OrderedDict()

    def start(self) -> None:
        """Make the executor. Raises `UsageError` for options that it does not know."""
        if self.executor is None:
            self._submitter = self._own = Executor(self.backend, **self.pool)
        else:
            self._submitter = executor_for(self.executor, _HOW)
        self._folder = os.getcwd() if self.task_dir == "" else self.task_dir

    def submit(self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any) -> CallFuture[Any]:
        """Call ``func`` on a pilot. Raises `InvalidResourceSpecification`, and what `windlass.Executor.submit` raises."""
        submitter = self._submitter
        if submitter is None:
            raise ExecutorError(self, "it is not started, or has been shut down")
        if resource_specification:
            submitter = submitter.with_options(**self._options(resource_specification))
        future = submitter.submit(self._in_folder(func), *args, **kwargs)
        self._calls.add(future)
        vars(future)["parsl_executor_task_id"] = int(future.call_id)
        return future

    def shutdown(self) -> None:
        """Cancel what has not ended; send the pilots away, unless the executor was given."""
        self._submitter, own = None, self._own
        if own is not None:
            own.shutdown(cancel_futures=True)
        else:
            for future in list(self._calls):
                future.cancel()
        super().shutdown()

    @property
    def outstanding(self) -> int:
        """How many tasks are waiting or running."""
        return sum(not future.done() for future in list(self._calls))

    def monitor_resources(self) -> bool:
        """False: Parsl watches a task's processes from one that it forks, which is not for slots; `future.timings` and the manager's
        status tell of calls."""
        return False

    def _options(self, specification: dict[str, Any]) -> Any:
        unknown = {str(word) for word in specification} - _WORDS.keys()
        if unknown:
            raise InvalidResourceSpecification(unknown, f"{self.label} knows {', '.join(_WORDS)}")
        options = {name: specification[word] for word, name in _WORDS.items() if name is not None and word in specification}
        if isinstance(options.get("memory"), int | float):
            options["memory"] = int(options["memory"] * (1 << 20))
        return options

    def _in_folder(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """The function, to be called in the tasks' folder; the same one for the same function, which need not be pickled anew."""
        folder = self._folder
        if folder is None:
            return func
        kept = self._kept.get(id(func))
        if kept is not None and kept[0] is func:
            return kept[1]

        @wraps(func)
        def call(*args: Any, **kwargs: Any) -> Any:
            with in_folder(folder):
                return func(*args, **kwargs)

        self._kept[id(func)] = func, call
        if len(self._kept) > _KEPT_MOST:
            with contextlib.suppress(KeyError):
                self._kept.popitem(last=False)
        return call


def _radio() -> Any:
    try:
        from parsl.monitoring.radios.filesystem import FilesystemRadio
    except ImportError:  # older ones have a word for it, which the base class sets
        return None
    return FilesystemRadio()


@contextlib.contextmanager
def in_folder(folder: str) -> Generator[None]:
    """In a slot: be in a folder, if there is one of this name here."""
    before = os.getcwd()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
