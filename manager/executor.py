"""One object for people who know `concurrent.futures`: a manager, a factory, and a library that fills itself.

Theory of operation
-------------------
`Executor` owns a `Manager` and a `Factory` and passes functions to the manager's implicit library (`Manager.submit_function`).
`submit`, `map` and `shutdown` mean what they mean in `concurrent.futures`; `with_options` gives a view of the same pool whose calls
have options.

`map` reads its inputs lazily: see `windlass.manager.mapping`.

`shutdown` has to wait for calls that it does not keep alive: it holds weak references, swept as their number doubles.

A program that ends without `shutdown` waits for its calls too, as with the executors of `concurrent.futures`; unless it ends by Ctrl-C. One
that is interrupted meanwhile has ended by it as well: its exit status says so, for what a shell would run next counts on the results. So
pools are held until they are shut down, whoever has their executors still: one that a function made and left may have work under way.
When that has ended nobody can use it any more, and it goes, as one of `concurrent.futures` does: with its pilots, and with a manager of
its own. That is seen to when the executor is dropped, and when the next one is made. Whoever has asked for its manager or its factory,
though, or has results that stay on its pilots, may use these still: they stay.

An exception that leaves the ``with`` block waits for calls as well, for the same reason: they may write files that somebody counts on. As
Python shows the exception only after that, and pilots may be hours away, it is said what is waited for when it takes a while.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent import futures
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

from windlass.errors import Closed, UnknownName, UsageError, refuse_unknown, require_flag, stays_here
from windlass.importing import refuse_on_import
from windlass.interrupted import ends_by_interrupt
from windlass.leaving import LeavesInThread
from windlass.manager.call import DEFAULT_OPTIONS, OPTIONS, CallKeywords, FunctionCall, merge_options, read_count, refuse_as_arguments
from windlass.manager.future import CallFuture
from windlass.manager.library import read_concurrency
from windlass.manager.mapping import MapResults, cancel_all, in_chunks
from windlass.manager.progress import Progress
from windlass.messages import CallOptions
from windlass.prompts import ends_by_ctrl_c, in_notebook

if TYPE_CHECKING:
    from windlass.factory.factory import PoolWord

log = logging.getLogger("windlass.manager")
#: Seconds that a block which an exception has left, or the end of a program, waits before it says so.
_TELL_AFTER: Final = 2.0
#: Seconds that what pilots run has at the end of a notebook's kernel, which itself has little more.
_KERNEL_SECONDS: Final = 1.0
#: Seconds in which a factory that was let go has ended: two for its pilots, and its last commands.
_LEAVING_SECONDS: Final = 30.0
#: Seconds to wait for the first word of a factory about its pools.
_FIRST_WORD: Final = 5.0
_AS_CORES: Final = "as many calls run at once as pilots have cores; write cores=4 for pilots of four, and max_pilots=2 for two of them"
_AS_CONTEXT: Final = (
    "an executor has none; what each slot does once, before its calls, is a library's context:"
    " pool.manager.install_library('lib', f, context=(init, [3], {}))"
)
#: What people know from the executors of `concurrent.futures` and Dask, and what there is here.
_OF_OTHERS: Final = {
    "max_workers": _AS_CORES,
    "n_workers": _AS_CORES,
    "initializer": _AS_CONTEXT,
    "initargs": _AS_CONTEXT,
    "max_tasks_per_child": "an executor has none; a library's slots are replaced after so many calls:"
    " pool.manager.install_library('lib', f, max_calls=100)",
    "mp_context": "pilots start their own processes; where a fork does harm write pool.manager.install_library('lib', f, start='spawn')",
    "thread_name_prefix": "calls run in processes on pilots, not in threads; leave it out",
}

P = ParamSpec("P")
R = TypeVar("R")


class CallManager(Protocol):
    """What an executor needs of a `Manager`."""

    def submit_function(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions | None = None,
        tag: str | None = None,
        *,
        memoize: bool = False,
    ) -> CallFuture[Any]: ...
    def hungry(self) -> int: ...
    def slots(self, options: CallOptions = ...) -> int: ...
    def close(self) -> None: ...


def _living(calls: list[weakref.ref[CallFuture[Any]]]) -> list[weakref.ref[CallFuture[Any]]]:
    """Those of them that have not ended."""
    return [reference for reference in calls if (future := reference()) is not None and not future.done()]


class Pool:
    """The pool behind an executor and its views: the manager, what else to close, and the calls that have not ended."""

    def __init__(self, manager: CallManager, closing: contextlib.ExitStack, *, memoize: bool = False, concurrency: int = 1) -> None:
        self.manager = manager
        self.memoize = memoize
        self._more: dict[str, Any] = {"concurrency": concurrency} if concurrency > 1 else {}
        self.closed = False
        self.pid = os.getpid()
        #: Of its own: it will tell the manager of its pools.
        self.factory: Any = None
        self.owns_manager = False
        #: Its manager, its factory or results on its pilots may be in somebody's hands.
        self.lent = False
        #: Calls that have been cancelled, as somebody did not wait for them.
        self.cut = 0
        #: Executors and views of it that somebody has.
        self.users: weakref.WeakSet[Submitter] = weakref.WeakSet()
        #: The executor, where it is one's: its views do not hold it.
        self.executor: weakref.ref[Executor] | None = None
        self._closing = closing
        # A thread never waits for itself: a signal handler may submit or shut down in the midst of what it does here.
        self._sweeping = threading.Lock()
        self._finishing = threading.RLock()
        #: In order. `submit` appends, a sweep removes; each is one step, so that whoever looks finds all that have not ended.
        self._calls: list[weakref.ref[CallFuture[Any]]] = []
        self._sweep_at = 1024

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions, tag: str | None
    ) -> CallFuture[Any]:
        """A call of ``fn``. Raises Closed after `shutdown`, and what the manager raises."""
        if self.closed:
            raise Closed("cannot submit a call after shutdown of its Executor; submit inside the with block, or make another Executor")
        if isinstance(fn, FunctionCall):
            raise UsageError(f"{fn!r} is no function, but a call: submit it to the executor's manager, as in pool.manager.submit(call)")
        if kwargs and not OPTIONS.isdisjoint(kwargs):
            refuse_as_arguments(fn, kwargs, "pool.with_options({}).submit(f, ...)")
        future = self.manager.submit_function(fn, args, kwargs, options, tag, memoize=self.memoize, **self._more)
        future.collect()  # nobody calls wait() on an executor: what its program drops is to go
        self._calls.append(weakref.ref(future))
        if len(self._calls) > self._sweep_at:
            self._sweep()
        return future

    def slots(self, options: CallOptions) -> int:
        """See `Submitter.slots`."""
        end = time.monotonic() + _FIRST_WORD
        while True:
            slots = self.manager.slots(options)
            if slots or self.factory is None or time.monotonic() > end:
                return slots
            time.sleep(0.005)

    def _sweep(self) -> None:
        """Forget calls that have ended, if that is not being done already."""
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            known = len(self._calls)
            self._calls[:known] = _living(self._calls[:known])
            self._sweep_at = max(1024, 2 * len(self._calls))
        finally:
            self._sweeping.release()

    def cancel(self) -> None:
        """Cancel all calls that have not ended."""
        self.cut += len(_living(self._calls[:]))
        # The last first: one that waits for another's result is to be cancelled, not to fail for want of it.
        cancel_all([future for reference in reversed(self._calls[:]) if (future := reference()) is not None])

    def finish(self, why: str = "", *, cancel: bool = False) -> None:
        """Wait for all calls, or ``cancel`` them, then close. When the wait is interrupted, cancel what is left and close.

        ``why`` it waits is said when that takes a while: nobody sees an exception, or the end of the program, before this is over.
        """
        try:
            if cancel:
                self.cancel()  # also those for which somebody waits here already
        finally:  # Ctrl-C comes again from those to whom all that takes too long: then, too, nothing may stay open
            with self._finishing:  # whoever comes second returns when the first is through
                self._finish(why)

    def _finish(self, why: str) -> None:
        tell_at = time.monotonic() + _TELL_AFTER
        try:
            while calls := _living(self._calls[:]):
                for reference in calls:
                    future = reference()
                    if future is None:
                        continue
                    if why and not future.wait(max(0.0, tell_at - time.monotonic())):
                        self._tell(why)
                        why = ""
                    future.wait()
            self._sweep()
        except BaseException:
            self.cancel()
            raise
        finally:
            _open.discard(self)
            self._closing.close()

    def is_over(self) -> bool:
        """Nobody has it, and all its calls have ended: it goes, and with it a manager of its own, as it would without being held."""
        return not (any(True for _ in self.users) or _living(self._calls[:]))

    def _tell(self, why: str) -> None:
        count = len(_living(self._calls[:]))
        waits, them = ("1 call that has", "it") if count == 1 else (f"{count:,} calls that have", "them")
        log.warning("%s of an Executor, which waits for %s not ended: Ctrl-C cancels %s", why, waits, them)


#: Pools of executors that nobody has shut down yet.
_open: set[Pool] = set()


#: Factories of pools that were let go, until they have ended; none of a program that this one is a fork of.
_leaving: deque[weakref.ref[Any]] = deque(maxlen=1000)
os.register_at_fork(after_in_child=_leaving.clear)


def open_pools() -> list[Pool]:
    """Those of this program's executors that somebody has and nobody has shut down."""
    return [pool for pool in list(_open) if pool.users and not pool.closed and pool.pid == os.getpid()]


def _let_go(*pools: Pool) -> None:
    """Hold those no longer that are over. Takes no lock: a finaliser comes here, at any moment of any thread."""
    for pool in pools:
        if pool.is_over():
            _open.discard(pool)
            # Pilots of a manager that was given serve all that it has.
            if pool.owns_manager and pool.factory is not None and not (pool.lent or pool.closed) and pool.pid == os.getpid():
                pool.factory.let_go()
                _leaving.append(weakref.ref(pool.factory))


def _wait_for_leaving() -> None:
    """An executor with a journal has the names of its earlier life: factories of that end all pilots that are called so, as they leave."""
    end = time.monotonic() + _LEAVING_SECONDS
    while _leaving:
        factory = _leaving.popleft()()
        if factory is not None:
            factory.wait(max(0.0, end - time.monotonic()))


def _at_exit() -> None:
    """The program ends: finish the pools that nobody has shut down."""
    interrupted = ends_by_ctrl_c()
    # A forked child has its parent's handlers, but the calls are the parent's.
    pools = [pool for pool in list(_open) if not pool.closed and pool.pid == os.getpid()]
    if in_notebook():
        # Nobody can wait here. Managers and factories end after this; but first, and in all pools at once, goes what is in the queue of a
        # batch system, where it would stay.
        for pool in pools:
            if pool.factory is not None:
                pool.factory.begin_close(_KERNEL_SECONDS)
        return
    told = interrupted  # with a traceback
    for pool in pools:
        pool.closed = True
        try:
            pool.finish("the program ends without the shutdown", cancel=interrupted)
        except KeyboardInterrupt:  # it has cancelled the rest and closed; a traceback from here helps nobody
            interrupted = True
    count = sum(pool.cut for pool in pools)
    if count and not told:
        log.warning("Ctrl-C has cancelled %s not ended", "1 call that had" if count == 1 else f"{count:,} calls that had")
        ends_by_interrupt()


class Submitter(futures.Executor, LeavesInThread):
    """Submits calls to a pool, all with the same options."""

    def __init__(self, pool: Pool, options: CallOptions = DEFAULT_OPTIONS, tag: str | None = None) -> None:
        self._pool = pool
        self._options = options
        self._tag = tag
        pool.users.add(self)
        if options.keep:
            pool.lent = True

    def __reduce__(self) -> NoReturn:
        raise stays_here("an executor")

    # An async function's call gives what it returns, not a coroutine.
    @overload
    def submit(self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[R]: ...
    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[R]: ...
    def submit(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[Any]:
        """Call ``fn(*args, **kwargs)`` on a pilot. Options are given by `with_options`: all keywords are the function's.

        Futures of calls of the same pool, anywhere in the arguments, are given as what those calls return, and the call runs when they
        have. (Type checkers know of values only: for them write ``cast(Any, future)``.)

        Raises `NotPicklable` for what cannot travel, `Closed` after `shutdown`.
        """
        return self._pool.submit(fn, args, kwargs, self._options, self._tag)

    def slots(self) -> int:
        """How many calls can run at once, on the pilots that there are or on all that the pools may have; 0: there are neither."""
        return self._pool.slots(self._options)

    @property
    def cores(self) -> float:
        """Cores of each call, as ``with_options(cores=...)`` says; by default 1, a slot's."""
        return self._options.needs.cores or 1.0

    @property
    def _max_workers(self) -> int:
        """At least 1, for those who look for it where the pools of `concurrent.futures` have it: Dask and others."""
        return max(1, self.slots())

    def with_options(self, **options: Unpack[CallKeywords]) -> View:
        """The same pool, for calls with these options besides those there are; UsageError for what cannot be."""
        return View(self._pool, *merge_options(self._options, self._tag, options))

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        ordered: bool = True,
        progress: bool | str | None = None,
        buffersize: int | None = None,
    ) -> MapResults[R]: ...
    @overload
    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        ordered: bool = True,
        progress: bool | str | None = None,
        buffersize: int | None = None,
    ) -> MapResults[R]: ...
    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        ordered: bool = True,
        progress: bool | str | None = None,
        buffersize: int | None = None,
        **others: object,
    ) -> MapResults[Any]:
        """The results of ``fn`` for each of the inputs, which are read lazily.

        ``timeout``: seconds from now until the last result, else TimeoutError. ``chunksize``: inputs per call, for tiny functions.
        ``ordered=False``: results as they come. ``progress``: True or a title shows a bar, False never; by default one appears in a
        terminal when work is long. ``buffersize``: calls ahead of the consumer; by default as many as keep all slots busy.

        The first error ends it, and cancels what has not ended; so does ``close()`` on the results, and dropping them half-way. Raises
        `UsageError` for counts that cannot be; errors of calls are raised where their results are asked for.
        """
        for name in others:
            if name in OPTIONS:
                raise UsageError(f"map(f, ..., {name}=): options of calls are given by pool.with_options({name}=...).map(f, ...)")
            refuse_unknown("option of map", others, Submitter.map)
        if not read_count("chunksize", chunksize):
            raise UsageError("chunksize=0 makes no calls; it is the number of inputs per call: write chunksize=1 or more")
        if buffersize is not None and not read_count("buffersize", buffersize):
            raise UsageError("buffersize=0 makes no calls; it is the number of calls ahead: write buffersize=100, or leave it out")
        if not isinstance(progress, bool | str | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"progress={progress!r}; write progress=True, progress=False, or a title")
        total = min((len(each) for each in iterables if isinstance(each, Sized)), default=None)
        title = progress if isinstance(progress, str) else getattr(fn, "__name__", "map")
        bar = Progress(total, title, show=True if isinstance(progress, str) else progress)
        try:
            inputs: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        except TypeError as error:
            raise UsageError(f"map(f, ...): {error}: inputs are lists or other iterables; for one call write submit(f, x)") from None
        if chunksize == 1:

            def submit(args: tuple[Any, ...]) -> CallFuture[Any]:
                return self._pool.submit(fn, args, {}, self._options, self._tag)

            return MapResults(submit, inputs, self._pool.manager.hungry, bar, timeout, ordered, buffersize)
        whole = in_chunks(fn)

        def submit_chunk(chunk: tuple[Any, ...]) -> CallFuture[Any]:
            return self._pool.submit(whole, (chunk,), {}, self._options, self._tag)

        chunks = iter(lambda: tuple(itertools.islice(inputs, chunksize)), ())
        return MapResults(submit_chunk, chunks, self._pool.manager.hungry, bar, timeout, ordered, buffersize, chunksize=chunksize)


def _tell_joblib() -> None:
    """A program that uses joblib can say ``joblib.parallel_config("windlass")``; what that needs is loaded when it does."""
    parallel: Any = sys.modules.get("joblib.parallel")
    if parallel is not None:
        parallel.EXTERNAL_BACKENDS.setdefault("windlass", lambda: importlib.import_module("windlass.joblib"))


class View(Submitter):
    """An executor's pool with options for its calls. `shutdown` and a block of a view do nothing: the pool is the `Executor`'s."""

    def __enter__(self) -> Self:
        executor = self._pool.executor
        if executor is not None and executor() is None and not self._pool.closed:
            raise UsageError(
                "this is a view of an Executor that nobody has, so the end of the block would neither wait for calls nor send pilots away;"
                " write 'with windlass.Executor(...) as pool:', and inside of it 'view = pool.with_options(...)'"
            )
        return super().__enter__()

    def __repr__(self) -> str:
        tag = f" with the tag {self._tag!r}" if self._tag else ""
        return f"<View of an executor{tag}, {'closed' if self._pool.closed else repr(self._pool.manager)}>"


class Executor(Submitter):
    """Runs functions on pilots: a `concurrent.futures.Executor`."""

    def __init__(
        self,
        backend: PoolWord | Sequence[PoolWord] | None = "local",
        *,
        max_pilots: int | None = None,
        manager: CallManager | None = None,
        manager_options: Mapping[str, Any] | None = None,
        journal: str | os.PathLike[str] | None = None,
        memoize: bool = False,
        concurrency: int = 1,
        **pool: Any,
    ) -> None:
        """Pilots come from ``backend``: ``"slurm"``, ``"htcondor"``, ``"local"``, ``"fake"``, the name of a configured pool, or
        whatever else `Factory` takes, a list of several included; further keywords are options of `Factory`.

        ``manager``: one that you have, which stays open after `shutdown`; otherwise one is made with ``manager_options``. ``backend=None``
        starts no factory. ``journal``: a folder for the results of calls, which the same program finds when it is started again;
        ``memoize``: equal calls are run once (docs/journal.md). ``concurrency``: so many calls of async functions run at once in one slot
        (docs/async.md); plain functions as ever. Raises UsageError for options that the factory does not know.
        """
        refuse_on_import("an Executor")
        require_flag("memoize", memoize)
        concurrency = read_concurrency(concurrency)
        for name in (name for name in pool if name in _OF_OTHERS):
            raise UsageError(f"{name}={pool[name]!r}: {_OF_OTHERS[name]}")
        if manager_options is not None and not isinstance(manager_options, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"manager_options={manager_options!r} is not a mapping; write for example manager_options={{'port': 9123}}")
        if manager is not None and not hasattr(manager, "submit_function"):
            raise UsageError(f"manager={manager!r} is no manager; give a Manager, or windlass.attach('NAME')")
        _let_go(*_open)  # calls of some that were dropped have ended since; one may have the journal that this one is to have
        owns_manager, factory = manager is None, cast("Any", None)
        with contextlib.ExitStack() as opening:
            if manager is None:
                more = {} if journal is None else {"journal": journal}
                if more or "journal" in (manager_options or ()):
                    _wait_for_leaving()
                manager = self._make_manager({**(manager_options or {}), **more})
                opening.callback(manager.close)
            elif journal is not None:
                raise UsageError(
                    "manager= is a manager that is there already: give journal= to that one, as in Manager(journal='run.journal')"
                )
            elif manager_options:
                raise UsageError(
                    "manager= is a manager that is there already, so manager_options= would change nothing; leave one of them out"
                )
            if backend is not None:
                if max_pilots is not None:
                    pool["max_pilots"] = max_pilots
                factory = opening.enter_context(self._make_factory(manager, backend, pool))
            elif pool or max_pilots is not None:
                raise UsageError(
                    "backend=None starts no pilots, so options of a pool would change nothing; leave them out, or name a backend"
                )
            super().__init__(Pool(manager, opening.pop_all(), memoize=memoize, concurrency=concurrency))
        self._pool.factory, self._pool.owns_manager = factory, owns_manager
        self._pool.executor = weakref.ref(self)
        _open.add(self._pool)
        weakref.finalize(self, _let_go, self._pool).atexit = False
        # Registered after those of manager and factory, it runs before them.
        atexit.unregister(_at_exit)
        atexit.register(_at_exit)
        _tell_joblib()

    @property
    def manager(self) -> CallManager:
        """What runs its calls, for what an executor has no method for."""
        self._pool.lent = True
        return self._pool.manager

    @property
    def factory(self) -> Any:
        """What keeps its pilots; None without a backend."""
        self._pool.lent = True
        return self._pool.factory

    def _make_manager(self, options: dict[str, Any]) -> CallManager:
        from windlass.manager.manager import Manager

        return Manager(**options)

    def _make_factory(
        self, manager: CallManager, backend: PoolWord | Sequence[PoolWord], options: dict[str, Any]
    ) -> contextlib.AbstractContextManager[Any]:
        from windlass.factory.factory import Factory

        try:
            return cast("contextlib.AbstractContextManager[Any]", Factory(cast("Any", manager), backend, **options))
        except UnknownName as error:
            if error.name not in options or not error.kind.startswith("option"):
                raise
            import inspect

            # Whoever misspelt it may have meant one of ours.
            ours = [*inspect.signature(type(self)).parameters.values(), *inspect.signature(Factory).parameters.values()]
            more = {one.name for one in ours if one.kind is one.KEYWORD_ONLY}
            raise UnknownName(error.kind, error.name, more.union(error.known)) from None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; when those there are have ended, send the pilots away and close the manager.

        ``wait=False`` returns at once and does that in a thread, for which the program's end waits. ``cancel_futures`` cancels all
        calls that have not ended, running ones too.
        """
        pool = self._pool
        first, pool.closed = not pool.closed, True
        if wait:
            pool.finish(cancel=cancel_futures)
            return
        try:
            if cancel_futures:
                pool.cancel()
        finally:
            if first:
                threading.Thread(target=pool.finish, name="windlass-shutdown", daemon=False).start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # As in concurrent.futures, an error in the block waits for calls; but whoever presses Ctrl-C wants to leave now.
        leaving = kind is not None and not issubclass(kind, Exception) and not issubclass(kind, GeneratorExit)
        if kind is not None and not leaving and not self._pool.closed:
            self._pool.closed = True
            self._pool.finish(f"{kind.__name__} has left the with block")
        else:
            self.shutdown(wait=True, cancel_futures=leaving)

    def _hurry(self) -> None:
        self._pool.cancel()

    def __repr__(self) -> str:
        pool = self._pool
        factory = f"{pool.factory!r}, " if pool.factory is not None else ""
        return f"<Executor, {'closed' if pool.closed else f'{factory}{pool.manager!r}'}>"

    def _repr_html_(self) -> str:
        from windlass.notebook import card

        pool = self._pool
        if pool.closed:
            return card("Executor", "closed")
        views = [getattr(one, "_repr_html_", lambda: "") for one in (pool.factory, pool.manager) if one is not None]
        return "<br>".join(view() for view in views)
