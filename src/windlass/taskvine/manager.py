"""TaskVine's manager: tasks by number, and ``wait``.

Theory of operation
-------------------
A task is *held* (its category has enough under way, or too few workers are there), *under way* (a call of the `windlass.Manager` below), or
*ready* (it has ended, and nobody has waited for it yet).  The manager hears of a call's end on the thread of the `windlass.Manager`, and has
one of a few threads of its own fill in the task, as what it returned is to be unpickled and its outputs are to be brought here and written;
only then the task is ready.  So outputs of many tasks come beside each other, whether or not the program is in ``wait``.

All that is known of tasks is under one lock, which is held for moments only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Self

import windlass
from windlass.errors import Closed, UnknownName, UsageError, WindlassError
from windlass.manager.call import read_count
from windlass.manager.future import CallFuture
from windlass.taskvine import tuning
from windlass.taskvine.categories import Categories, Category, read_mode, read_resources
from windlass.taskvine.declaring import Declares
from windlass.taskvine.outcomes import no_effect
from windlass.taskvine.passed_over import PassedOver
from windlass.taskvine.tasks import FunctionCall, PythonTask, Task

log = logging.getLogger("windlass.taskvine")

#: Threads that take in what ended tasks have made.
_TAKERS: Final = 4
#: Seconds between looks at how many workers there are, while tasks are held for them.
_LOOK_SECONDS: Final = 0.2
FOREVER: Final = "wait_forever"


class _Ended:
    """Hears of the end of one task's call."""

    def __init__(self, tell: Callable[[CallFuture[Any]], None]) -> None:
        self.add_result = self.add_exception = self.add_cancelled = tell


class Manager(Declares, PassedOver):
    """Runs tasks on workers, and gives them back by `wait`.

    ``port`` (a number, 0 for any free one, or ``[low, high]``) and ``name`` are as TaskVine's; further ``options`` are those of
    `windlass.Manager`, which is `windlass` of this one. TaskVine's other arguments are passed over with a `NoEffect`.
    """

    def __init__(self, port: Any = 9123, name: str | None = None, **options: Any) -> None:
        options = self._passed_over_at_start(options)
        self.windlass = windlass.Manager(port, name, **options)
        self._categories = Categories()
        self._tuned = dict(tuning.MEANT)
        self._lock = threading.Condition(threading.RLock())
        self._next = 1
        #: Held or under way, and ready, by number, in the order of submission and of their ends.
        self._open: dict[int, Task] = {}
        self._ready: OrderedDict[int, Task] = OrderedDict()
        self._takers: ThreadPoolExecutor | None = None
        self._timers: dict[int, threading.Timer] = {}
        self._workers_seen = False

    # ------------------------------------------------------------ life

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End: tasks that have not ended are cancelled, workers are sent away."""
        with self._lock:
            timers, self._timers = list(self._timers.values()), {}
        for timer in timers:
            timer.cancel()
        self.windlass.close()
        with self._lock:
            takers, self._takers = self._takers, None
        if takers is not None:
            takers.shutdown()

    def __repr__(self) -> str:
        return f"<windlass.taskvine.Manager {self.name!r}, {len(self._open)} tasks under way, {len(self._ready)} ready>"

    @property
    def name(self) -> str:
        """What workers and the command line find it by."""
        return self.windlass.name

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.windlass.port

    # ------------------------------------------------------------ tasks

    def submit(self, task: Task) -> int:
        """Queue a task; its number. One that was waited for may be submitted again, and has another number.

        Raises `windlass.UsageError` for what cannot be, `windlass.UnknownName` for a library or function that there is not.
        """
        if not isinstance(task, Task):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"submit({task!r}): write submit(Task('command')), PythonTask(function, ...) or FunctionCall('lib', 'function', ...)"
            )
        category = self._categories[task.category]
        with self._lock:
            number = self._next
            task.begin(number)
            self._next += 1
            self._open[number] = task
            category.held.append(task)
        try:
            self._let_go_on(category)
        except BaseException:
            with self._lock:
                self._open.pop(number, None)
                task.withdraw()
            raise
        if task.time_end:
            self._end_in_time(task, number)
        return number

    def _let_go_on(self, category: Category) -> None:
        """Submit what need not be held any more."""
        if not self._enough_workers():
            return
        while True:
            with self._lock:
                if not category.held or (category.max_concurrent and category.under_way >= category.max_concurrent):
                    return
                task = category.held.popleft()
                category.under_way += 1
            try:
                future = task.submitted(self.windlass, category.options(self._categories.default))
            except BaseException:
                with self._lock:
                    category.under_way -= 1
                raise
            number = task.id
            future.watch(_Ended(lambda ended, task=task, number=number: self._has_ended(task, number, ended)))  # type: ignore[misc]

    def _let_held_go_on(self) -> None:
        for _, category in self._categories.items():
            while category.held:
                first = category.held[0]
                try:
                    self._let_go_on(category)
                    break
                except (WindlassError, OSError) as error:  # nobody's submit() would hear it
                    self._end(first, first.id, None, error)

    def _enough_workers(self) -> bool:
        wanted = self._tuned["wait-for-workers"]
        if wanted > 0 and not self._workers_seen:
            self._workers_seen = self._connected() >= wanted
            return self._workers_seen
        return True

    def _connected(self) -> int:
        return sum(bool(worker["connected"]) for worker in self.windlass.status()["workers"])

    def _has_ended(self, task: Task, number: int, future: CallFuture[Any]) -> None:
        """On the manager's thread, or on that which cancels."""
        with self._lock:
            if self._takers is None:
                if self.windlass.closed:
                    return
                self._takers = ThreadPoolExecutor(_TAKERS, "windlass-taskvine")
            takers = self._takers
        try:
            takers.submit(self._take, task, number, future)
        except RuntimeError:
            pass  # the program ends

    def _take(self, task: Task, number: int, future: CallFuture[Any]) -> None:
        category = self._categories[task.category]
        with self._lock:
            category.under_way -= 1
        self._end(task, number, future, None)
        if category.held:
            self._let_held_go_on()

    def _end(self, task: Task, number: int, future: CallFuture[Any] | None, error: BaseException | None) -> None:
        late = "max end time" if task.time_end and time.time() >= task.time_end else ""
        try:
            task.end(future, error, late)
        except Exception:  # a defect must not hang the program
            log.exception("task %s could not be taken in", number)
        with self._lock:
            timer = self._timers.pop(number, None)
            category = self._categories[task.category]
            if task.successful():
                category.done += 1
            else:
                category.failed += 1
            if self._open.pop(number, None) is not None:
                self._ready[number] = task
            self._lock.notify_all()
        if timer is not None:
            timer.cancel()

    def _end_in_time(self, task: Task, number: int) -> None:
        timer = threading.Timer(max(0.0, task.time_end - time.time()), self.cancel_by_task_id, (number,))
        timer.daemon = True
        with self._lock:
            if number in self._open:
                self._timers[number] = timer
                timer.start()

    # ------------------------------------------------------------ waiting

    def wait(self, timeout: float | str | None = FOREVER) -> Task | None:
        """The next task that has ended; None when none does within ``timeout`` seconds (fractions are fine), or when there is none."""
        return self._wait(timeout, lambda task: True)

    def wait_for_tag(self, tag: str, timeout: float | str | None = FOREVER) -> Task | None:
        """The next one with this tag."""
        return self._wait(timeout, lambda task: task.tag == tag)

    def wait_for_task_id(self, task_id: int, timeout: float | str | None = FOREVER) -> Task | None:
        """This one."""
        return self._wait(timeout, lambda task: task.id == task_id)

    def _wait(self, timeout: float | str | None, wanted: Callable[[Task], bool]) -> Task | None:
        seconds = None if timeout in (None, FOREVER) else timeout
        if seconds is not None and (isinstance(seconds, bool | str) or seconds != seconds):
            raise UsageError(f"wait({timeout!r}): give seconds, or 'wait_forever'")
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            if self._tuned["wait-for-workers"] > 0 and not self._workers_seen:
                self._let_held_go_on()
            with self._lock:
                for number, task in self._ready.items():
                    if wanted(task):
                        del self._ready[number]
                        return task
                if not any(wanted(task) for task in self._open.values()) or self.windlass.closed:
                    return None
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return None
                looks = self._tuned["wait-for-workers"] > 0 and not self._workers_seen
                self._lock.wait(min(_LOOK_SECONDS, left or _LOOK_SECONDS) if looks else left)

    def empty(self) -> bool:
        """No task is under way, or has ended without having been waited for."""
        with self._lock:
            return not self._open and not self._ready

    def hungry(self) -> int:
        """How many tasks more could be used well now."""
        least, times = int(self._tuned["hungry-minimum"]), self._tuned["hungry-minimum-factor"]
        if self.windlass.closed:
            return 0
        workers = self._connected()
        with self._lock:
            return max(0, max(least, int(times * workers), self.windlass.hungry() + len(self._open)) - len(self._open))

    def task_state(self, task_id: int) -> str:
        """As `Task.state`; ``unknown`` for a number that no task has that is here."""
        with self._lock:
            task = self._open.get(task_id) or self._ready.get(task_id)
        return task.state if task is not None else "unknown"

    # ------------------------------------------------------------ cancelling

    def cancel_by_task_id(self, id: int) -> int:  # noqa: A002 - TaskVine's name
        """Cancel a task, also one that runs: it comes back by `wait`, with result ``cancelled``. 1, or 0 if there is none to cancel."""
        with self._lock:
            task = self._open.get(id)
        return self._cancel([task] if task is not None else [])

    def cancel_by_task_tag(self, tag: str) -> int:
        """The first one with this tag: 1, or 0 if there is none."""
        return self._cancel(self._those(lambda task: task.tag == tag)[:1])

    def cancel_all_by_tag(self, tag: str) -> int:
        """All with this tag; how many."""
        return self._cancel(self._those(lambda task: task.tag == tag))

    def cancel_by_category(self, category: str) -> int:
        """All of a category; how many."""
        return self._cancel(self._those(lambda task: task.category == category))

    def cancel_all(self) -> int:
        """All; how many."""
        return self._cancel(self._those(lambda task: True))

    cancel_by_taskid, cancel_by_tasktag = cancel_by_task_id, cancel_by_task_tag

    def _those(self, wanted: Callable[[Task], bool]) -> list[Task]:
        with self._lock:
            return [task for task in self._open.values() if wanted(task)]

    def _cancel(self, tasks: Iterable[Task]) -> int:
        count = 0
        for task in reversed(list(tasks)):
            with self._lock:
                held = self._categories[task.category].held
                waits = task in held
                if waits:
                    held.remove(task)
            if waits:
                self._end(task, task.id, None, CancelledError())
                count += 1
            elif task.future is not None and not task.future.done():
                count += task.future.cancel()
        return count

    # ------------------------------------------------------------ libraries

    def create_library_from_functions(
        self,
        library_name: str,
        *function_list: Callable[..., Any],
        poncho_env: Any = None,
        init_command: str | None = None,
        add_env: bool = True,
        hoisting_modules: Any = None,
        exec_mode: str = "fork",
        library_context_info: Any = None,
        **options: Any,
    ) -> windlass.Library:
        """A library of functions, for `install_library`. ``poncho_env``: an archive of conda-pack or ``windlass environment pack``."""
        if init_command is not None:
            raise UsageError(
                "init_command= is not here: setup= lines of the pool run before its pilots, environment= gives a library its Python"
            )
        if poncho_env is not None:
            options["environment"] = poncho_env
        return windlass.Library.from_functions(
            library_name,
            *function_list,
            add_env=add_env,
            hoisting_modules=hoisting_modules,
            exec_mode=exec_mode,
            library_context_info=library_context_info,
            **options,
        )

    def create_library(self, name: str, *functions: Callable[..., Any], **options: Any) -> windlass.Library:
        """As `windlass.Manager.create_library`."""
        return self.windlass.create_library(name, *functions, **options)

    def install_library(self, task: windlass.Library) -> None:
        """Make a library callable."""
        self.windlass.install_library(task)

    def remove_library(self, name: str | windlass.Library) -> None:
        """No more calls of it."""
        self.windlass.remove_library(name)

    def check_library_exists(self, library_name: str) -> bool:
        """It is installed."""
        return self.windlass.check_library_exists(library_name)

    # ------------------------------------------------------------ functions over sequences

    def map(self, fn: Callable[[Any], Any], seq: Iterable[Any], chunksize: int = 1) -> list[Any]:
        """``fn`` of each, in order. Raises what a call raises."""
        return list(self._executor().map(fn, seq, chunksize=chunksize))

    def pair(self, fn: Callable[[tuple[Any, Any]], Any], seq1: Iterable[Any], seq2: Iterable[Any], chunksize: int = 1) -> list[Any]:
        """``fn`` of each pair of one of the first and one of the second."""
        import itertools

        return self.map(fn, itertools.product(seq1, seq2), chunksize)

    def tree_reduce(self, fn: Callable[[list[Any]], Any], seq: Iterable[Any], chunksize: int = 2) -> Any:
        """``fn`` of ``chunksize`` each, of these results again, until there is one."""
        if read_count("chunksize", chunksize) < 2:
            raise UsageError(f"chunksize={chunksize!r} would never come to an end: write chunksize=2")
        items: list[Any] = list(seq)
        executor = self._executor()
        while len(items) > 1:
            items = [executor.submit(fn, items[start : start + chunksize]) for start in range(0, len(items), chunksize)]
        if not items:
            raise UsageError("tree_reduce() of nothing has no result")
        return items[0].result() if isinstance(items[0], CallFuture) else items[0]

    def remote_map(self, fn: str, seq: Iterable[Any], library: str, name: str = "", chunksize: int = 1) -> list[Any]:
        """The library's function of each, in order."""
        del name, chunksize
        futures = [self.windlass.submit(windlass.FunctionCall(library, fn, item)) for item in seq]
        return [future.result() for future in futures]

    def _executor(self) -> windlass.Executor:
        return windlass.Executor(None, manager=self.windlass)

    # ------------------------------------------------------------ categories

    def set_resources_max(self, rmd: dict[str, Any]) -> None:
        """What tasks get that set nothing, in categories that set nothing: cores, memory and disk (MB), gpus."""
        self._categories.default.most = read_resources("set_resources_max", rmd)

    def set_resources_min(self, rmd: dict[str, Any]) -> None:
        """And at least."""
        self._categories.default.least = read_resources("set_resources_min", rmd)

    def set_category_resources_max(self, category: str, rmd: dict[str, Any]) -> None:
        """What tasks of a category get that set nothing."""
        self._categories[category].most = read_resources("set_category_resources_max", rmd)

    def set_category_resources_min(self, category: str, rmd: dict[str, Any]) -> None:
        """And at least."""
        self._categories[category].least = read_resources("set_category_resources_min", rmd)

    def set_category_first_allocation_guess(self, category: str, rmd: dict[str, Any]) -> None:
        """What they get at first, in modes other than ``fixed``."""
        self._categories[category].guess = read_resources("set_category_first_allocation_guess", rmd)

    def set_category_mode(self, category: str, mode: str) -> None:
        """``fixed``, or any other of TaskVine's: tasks that run out of memory are tried again with more."""
        self._categories[category].mode = read_mode(mode)

    def set_category_autolabel_resource(self, category: str, resource: str, autolabel: bool) -> None:
        """Whether memory grows; other resources do not."""
        if resource == "memory":
            self._categories[category].mode = "max" if autolabel else "fixed"
        elif resource not in ("cores", "disk", "gpus"):
            raise UnknownName("resource", resource, ("cores", "memory", "disk", "gpus"))
        elif autolabel:
            no_effect(f"autolabel of {resource}", "only memory grows")

    def set_category_max_concurrent(self, category: str, max_concurrent: int) -> None:
        """Tasks of a category that are under way at a time; 0 or less: any number."""
        if isinstance(max_concurrent, bool) or not isinstance(max_concurrent, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"max_concurrent={max_concurrent!r} is no whole number")
        self._categories[category].max_concurrent = max(0, max_concurrent)
        self._let_held_go_on()

    # ------------------------------------------------------------ workers

    def block_host(self, host: str) -> None:
        """Run nothing more on this host; its workers leave when what they run has ended, and factories avoid it."""
        self.windlass.block_host(host)

    def block_host_with_timeout(self, host: str, timeout: float) -> None:
        """For so many seconds; under 1: until it is unblocked."""
        self.windlass.block_host(host, timeout if timeout >= 1 else None)

    def unblock_host(self, host: str | None = None) -> None:
        """Use this host again, or all."""
        self.windlass.unblock_host(host)

    def set_draining_by_hostname(self, hostname: str, drain_mode: bool = True) -> None:
        """As `block_host`, or `unblock_host`."""
        self.windlass.block_host(hostname) if drain_mode else self.windlass.unblock_host(hostname)

    blacklist, blacklist_with_timeout, blacklist_clear = block_host, block_host_with_timeout, unblock_host

    def tune(self, name: str, value: float) -> int:
        """Set a parameter; 0. Those without a meaning here warn, with the reason; unknown names raise `windlass.UnknownName`."""
        known, number, reason = tuning.read(name, value)
        if reason:
            no_effect(f"tune({known!r}, {value!r})", reason)
        else:
            self._tuned[known] = number
            self._let_held_go_on()
        return 0

    def set_min_task_id(self, minid: int) -> int:
        """Numbers of tasks begin here, if that is not below what they have reached; the next one."""
        with self._lock:
            self._next = max(self._next, read_count("minid", minid))
            return self._next

    # ------------------------------------------------------------ seeing

    @property
    def stats(self) -> SimpleNamespace:
        """Numbers now, by TaskVine's names, as far as they are known here (times in microseconds)."""
        status = self.windlass.status()
        calls, workers = status["calls"], [worker for worker in status["workers"] if worker["connected"]]
        with self._lock:
            done, failed = (sum(getattr(one, what) for _, one in self._categories.items()) for what in ("done", "failed"))
            return SimpleNamespace(
                tasks_waiting=calls["waiting"] + sum(len(one.held) for _, one in self._categories.items()),
                tasks_running=calls["running"],
                tasks_on_workers=calls["running"],
                tasks_with_results=len(self._ready),
                tasks_submitted=self._next - 1,
                tasks_done=done + failed,
                tasks_failed=failed,
                tasks_cancelled=calls["cancelled"],
                tasks_dispatched=calls["running"] + calls["done"] + calls["failed"],
                workers_connected=len(workers),
                workers_busy=sum(bool(worker.get("running")) for worker in workers),
                total_cores=sum(worker["cores"] for worker in workers),
                total_gpus=sum(worker.get("gpus", 0) for worker in workers),
            )

    def stats_category(self, category: str) -> SimpleNamespace:
        """Numbers of a category."""
        one = self._categories[category]
        with self._lock:
            return SimpleNamespace(
                tasks_waiting=len(one.held),
                tasks_running=one.under_way,
                tasks_done=one.done + one.failed,
                tasks_failed=one.failed,
            )

    def status(self, request: str = "manager") -> list[dict[str, Any]]:
        """``manager``, ``workers``, ``tasks`` or ``categories``: one dictionary each (docs/status.md)."""
        if request == "tasks":
            with self._lock:
                tasks = [*self._open.values(), *self._ready.values()]
            return [
                {"id": task.id, "state": task.state, "category": task.category, "tag": task.tag, "command": task.command} for task in tasks
            ]
        if request == "categories":
            return [{"category": name, **vars(self.stats_category(name)), **one.most} for name, one in self._categories.items()]
        found = self.windlass.status()
        if request == "workers":
            return list(found["workers"])
        if request in ("manager", "queue"):
            return [{**found["manager"], **vars(self.stats)}]
        raise UnknownName("status", request, ("manager", "workers", "tasks", "categories"))

    def summarize_workers(self) -> list[dict[str, Any]]:
        """How many workers there are with so many cores and so much memory (MB)."""
        count: dict[tuple[float, int], int] = {}
        for worker in self.status("workers"):
            key = (worker["cores"], int(worker.get("memory", 0)) >> 20)
            count[key] = count.get(key, 0) + 1
        return [{"workers": number, "cores": cores, "memory": memory} for (cores, memory), number in count.items()]


__all__ = ["Closed", "FunctionCall", "Manager", "PythonTask"]
