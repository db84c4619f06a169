"""A backend for joblib: ``joblib.parallel_config("windlass")``, for scikit-learn's ``n_jobs`` and whatever else uses joblib.

Theory of operation
-------------------
joblib cuts its tasks into batches, and a batch is a call. A batch is made longer while its calls take less than 0.2 s: by joblib's own
rule, but by how long calls ran in their slots, since what joblib measures has the queue of the batch system in it. Results are read on
the thread that runs callbacks, where joblib hands out the next batches too. It has counted a batch when it hands it over, and waits for its
end from then on: so whatever goes wrong here is a future that has failed, and joblib is told of each end, also of what others cancel. It is
told from that thread's queue, never from inside of `submit`, where the next batch would be submitted, and the next from there.

All ``Parallel`` of one ``parallel_config`` share a backend. When one of them aborts, its own batches are cancelled.

*Large arrays.* joblib's own backends write them to files which their processes map. Here they are objects, which go to a worker once,
whatever the number of its batches, and which slots map; not read-only, but so that what is written stays in the call. To know that an
array is one that went before, its bytes are hashed; within one ``Parallel(...)(...)`` an array of the program is hashed once
(`KnownBuffers`).

*Nested parallelism.* A slot is one core, unless the executor's options say ``cores=``. Inside of a batch a ``Parallel`` without a backend
of its own runs in sequence, or in as many threads as there are cores; `joblib.cpu_count()` there gives that number, and so what
``n_jobs=-1`` means. ``inner_max_num_threads`` limits the threads of numerical libraries; without it a slot has its share of the pilot.

``n_jobs=1`` is a loop in the program and does not come here: that is joblib's doing. All other numbers say how many batches joblib hands
out ahead; how many run is up to the pools."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportIncompatibleMethodOverride=false
# joblib has no types.

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import uuid
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    ThreadingBackend,
    register_parallel_backend,
)

from windlass.fitting import Runner, executor_for
from windlass.manager.buffers import KnownBuffers
from windlass.manager.callbacks import hand_over
from windlass.manager.future import CallFuture
from windlass.worker.slot_api import current_call

if TYPE_CHECKING:
    from windlass.manager.executor import Submitter
    from windlass.manager.manager import Manager

__all__ = ["WindlassBackend"]

_HOW: Final = 'joblib.parallel_config("windlass", executor=pool)'
#: Batches that joblib keeps ahead where nobody knows of pools or pilots yet.
_UNKNOWN_SLOTS: Final = 16
#: What `joblib.cpu_count` heeds.
_CPU_COUNT: Final = "LOKY_MAX_CPU_COUNT"


class Setting(NamedTuple):
    """What batches of one backend run in."""

    #: What `joblib.cpu_count` says there.
    cores: int
    #: Of numerical libraries; None: as they are.
    threads: int | None
    #: Called once in each slot, before its first batch.
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    #: By which a slot knows that it has called the initializer.
    key: str


#: In a slot: keys of settings whose initializer was called.
_initialized: set[str] = set()


def run_batch(batch: Callable[[], list[Any]], setting: Setting) -> list[Any]:
    """In a slot: the results of a batch."""
    with _environment({_CPU_COUNT: str(setting.cores)}), _limited(setting.threads):
        if setting.initializer is not None and setting.key not in _initialized:
            setting.initializer(*setting.initargs)
            _initialized.add(setting.key)
        return batch()


class WindlassBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs batches as calls of an executor."""

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    uses_threads = False
    supports_sharedmem = False
    #: What ``n_jobs=None`` means.
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        executor: Submitter | Manager | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        """``executor``: the `Executor`, one with options (``pool.with_options(cores=4)``), or a `Manager`; default: the one that is open.
        ``initializer``: called with ``initargs`` once in each slot before its first batch."""
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._executor = executor
        self._initializer = (initializer, initargs)
        self._runner = Runner(run_batch)
        self._known = KnownBuffers()
        self._lock = threading.Lock()
        #: Batches that have not ended, and what joblib wants to be told by.
        self._batches: dict[CallFuture[Any], Any] = {}
        self._executor_now: Submitter | None = None
        self._ran = 0.0

    @property
    def executor(self) -> Submitter:
        """Where calls go now. Raises `UsageError` where none is open, or several are."""
        return executor_for(self._executor, _HOW)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """-1: as many as slots that there are or may be, but at least 2, as joblib would do the work of one in the program."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or n_jobs > 0:
            return n_jobs or 1
        slots = self.executor.slots() or _UNKNOWN_SLOTS
        return max(2, slots + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **_: Any,
    ) -> int:
        """joblib begins; its options for processes of its own (temporary folders, memory maps) change nothing here."""
        if current_call() is not None:  # a slot has no executor, and does what is named for it itself
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._executor_now = self.executor
        first, args = (initializer, initargs) if initializer is not None else self._initializer
        self._setting = Setting(self._cores, self.inner_max_num_threads, first, args, uuid.uuid4().hex if first is not None else "")
        return self.effective_n_jobs(n_jobs)

    def start_call(self) -> None:
        self._known.clear()

    def stop_call(self) -> None:
        self._known.clear()

    def terminate(self) -> None:
        """The pool is not ours: it stays. joblib learns the length of batches anew."""
        self._known.clear()
        self.reset_batch_stats()

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> CallFuture[Any]:
        """Hand a batch over. What goes wrong is in the future: where joblib calls this, nobody may hear of it."""
        future: CallFuture[Any]
        try:
            for function, args, kwargs in func.items:
                self._runner.look_at((function,), (*args, *kwargs.values()))
            with self._known:
                future = (self._executor_now or self.executor).submit(self._runner.function, func, self._setting)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the batch's
            future = CallFuture()
            future.set_exception(error)
        with self._lock:
            self._batches[future] = callback
        if _aborts(callback):  # meanwhile
            future.cancel()

        def ended() -> None:
            with self._lock:
                self._batches.pop(future, None)
            _show(future)
            if callback is not None:
                self._ran = future.timings.running
                callback(future)

        future.add_done_callback(lambda _: hand_over(ended))
        return future

    def apply_async(self, func: Any, callback: Callable[[Any], object] | None = None) -> CallFuture[Any]:
        """What `submit` was called before joblib 1.5."""
        return self.submit(func, callback)

    def retrieve_result_callback(self, out: CallFuture[Any]) -> Any:
        """What the batch returned, or raise what it raised."""
        return out.result()

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """On the thread that runs callbacks, just after `ended`."""
        super().batch_completed(batch_size, self._ran or duration)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what has not ended of the ``Parallel`` that aborts, running calls too."""
        with self._lock:
            batches = [each for each, callback in self._batches.items() if callback is None or _aborts(callback)]
        for future in batches:
            future.cancel()

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Sequential in a slot of one core; else threads, which joblib does not nest any further."""
        level = (self.nesting_level or 0) + 1
        kind = ThreadingBackend if self._cores > 1 else SequentialBackend
        return kind(nesting_level=level), None

    @property
    def _cores(self) -> int:
        return max(1, math.floor((self._executor_now or self.executor).cores))


def _show(future: CallFuture[Any]) -> None:
    """What a batch wrote, where that of joblib's own processes appears: `Parallel` gives its user no futures that would have it."""
    with contextlib.suppress(Exception):  # nobody reads it any more, or the stream is the program's own; the batch has ended all the same
        print(future.stdout, end="", file=sys.stdout)
        print(future.stderr, end="", file=sys.stderr)


def _aborts(callback: Any) -> bool:
    """Its ``Parallel`` takes no notice of results any more."""
    return callback is not None and callback.parallel._aborting is True


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _limited(threads: int | None) -> Generator[None]:
    if threads is None:
        yield
        return
    names = [*ParallelBackendBase.MAX_NUM_THREADS_VARS]
    with _environment(dict.fromkeys(names, str(threads))), contextlib.ExitStack() as stack:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            pass  # then it holds for libraries that are loaded from now on
        else:
            stack.enter_context(threadpool_limits(threads))
        yield


register_parallel_backend("windlass", WindlassBackend)
