"""TaskVine's manager: tasks by number, and ``wait``.

Theory of operation
-------------------
A task is *held* (its category has enough under way, too few workers are there, or it needs what a held one is to make, or what one that
has not ended writes on this machine), *under way* (a call of the `windlass.Manager`), or *ready* (it has ended, and nobody has waited for
it yet).  The manager hears of a call's end on the thread of the `windlass.Manager`, and has one of a few threads of its own fill in the
task, as what it returned is to be unpickled and its outputs are to be brought here and written; only then the task is ready.  So outputs
of many tasks come beside each other, whether or not the program is in ``wait``.

What was to be written here and has not been leaves something older in its place, or nothing.  Until the program is given the task that
was to write it, those that read it are not run; afterwards it is for the program to say what is to be.

All that is known of tasks is under one lock, which is held for moments only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Final, Self

from windlass.errors import UsageError, WindlassError
from windlass.manager.future import CallFuture
from windlass.sums import count_workers
from windlass.taskvine import tuning
from windlass.taskvine.alarms import Alarms
from windlass.taskvine.categories import Categories, Category
from windlass.taskvine.declaring import Declares
from windlass.taskvine.files import Places
from windlass.taskvine.functions import Functions
from windlass.taskvine.gathering import Gathering
from windlass.taskvine.passed_over import PassedOver
from windlass.taskvine.seeing import Seeing
from windlass.taskvine.settings import Settings
from windlass.taskvine.takers import Takers
from windlass.taskvine.tasks import Task

log = logging.getLogger("windlass.taskvine")

#: Seconds between looks at how many workers there are, while tasks are held for them.
_LOOK_SECONDS: Final = 0.2
FOREVER: Final = "wait_forever"


class _Ended:
    """Hears of the end of one task's call."""

    def __init__(self, tell: Callable[[CallFuture[Any]], None]) -> None:
        self.add_result = self.add_exception = self.add_cancelled = tell


class Manager(Declares, Functions, Settings, Seeing, PassedOver):
    """Runs tasks on workers, and gives them back by `wait`.

    ``port`` (a number, 0 for any free one, or ``[low, high]``) and ``name`` are as TaskVine's (`set_name`, too); further ``options``
    are those of `windlass.Manager`, which is `manager` of this one. TaskVine's other arguments are passed over with a `NoEffect`.
    """

    def __init__(self, port: Any = 9123, name: str | None = None, **options: Any) -> None:
        options = self._passed_over_at_start(options)
        self._stand(port, name, options)
        self._categories = Categories()
        self._places = Places()
        self._tuned = dict(tuning.MEANT)
        self._lock = threading.Condition(threading.RLock())
        self._next = 1
        #: Held or under way, and ready, by number, in the order of submission and of their ends.
        self._open: dict[int, Task] = {}
        #: By numbers of held tasks: those of tasks that need what they make on workers.
        self._needed_by: dict[int, list[int]] = {}
        #: By numbers of tasks that have not ended: those of tasks that need what they write here.
        self._awaited_by: dict[int, list[int]] = {}
        self._ready: OrderedDict[int, Task] = OrderedDict()
        self._takers: Takers | None = None
        self._alarms = Alarms(self.cancel_by_task_id)
        #: Workers that tasks are held for, and the factories of this program.
        self.gathering = Gathering()

    # ------------------------------------------------------------ life

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End: tasks that have not ended are cancelled, workers are sent away."""
        self._alarms.close()
        self._native.close()
        with self._lock:
            takers, self._takers = self._takers, None
        if takers is not None:
            takers.close()
        with self._lock:
            self._open.clear()
            self._lock.notify_all()

    def __repr__(self) -> str:
        return f"<windlass.taskvine.Manager {self.name!r}, {len(self._open)} tasks under way, {len(self._ready)} ready>"

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
        if task.time_end:
            self._alarms.begin()
        with self._lock:
            number = self._next
            needs = task.begin(number)
            self._next += 1
            self._open[number] = task
            blockers: set[int] = set()
            for each, read_here in needs.items():
                maker = self._open.get(each)
                # Only what was submitted before can be needed, so there is no ring of tasks that wait for each other.
                if maker is not None and each < number and (read_here or maker.future is None):
                    blockers.add(each)
                    (self._awaited_by if read_here else self._needed_by).setdefault(each, []).append(number)
                elif maker is None and (ended := self._ready.get(each)) is not None and task.misses(ended):
                    task.lacks = ended  # nobody has been told yet that what lies here is older
            if blockers:
                category.blocked[number] = blockers
            else:
                category.held[number] = task
        try:
            self._let_go_on(category, task)
        except BaseException:
            with self._lock:
                self._open.pop(number, None)
                category.drop(number)
                task.withdraw()
                self._unblock(task, number, ended=True)
            raise
        if task.time_end:
            with self._lock:
                if number in self._open:
                    self._alarms.set(number, task.time_end)
        return number

    def _let_go_on(self, category: Category, mine: Task | None = None) -> None:
        """Submit what need not be held any more. Raises what is wrong with ``mine``; others come back with what is wrong with them."""
        if not self._enough_workers():
            return
        todo, wrong = [category], None
        while todo:
            category = todo[-1]
            with self._lock:
                if not category.held or (category.max_concurrent and category.under_way >= category.max_concurrent):
                    todo.pop()
                    continue
                number, task = category.held.popitem(last=False)
                category.under_way += 1
            try:
                future = task.submitted(self.manager, category.options(self._categories.default))
            except BaseException as error:
                with self._lock:
                    category.under_way -= 1
                if not isinstance(error, WindlassError | OSError):
                    raise
                if task is mine and task.lacks is None:
                    wrong = error
                else:
                    todo += self._end(task, number, None, error)
                continue
            future.watch(_Ended(lambda ended, task=task, number=number: self._has_ended(task, number, ended)))  # type: ignore[misc]
            with self._lock:
                todo += self._unblock(task, number)
        if wrong is not None:
            raise wrong

    def _unblock(self, task: Task, number: int, *, ended: bool = False) -> list[Category]:
        """It is held no more. Categories with tasks that need what it makes, and have nothing else to wait for. Holding the lock."""
        found: list[Category] = []
        waiting = self._needed_by.pop(number, [])
        if ended:
            waiting += self._awaited_by.pop(number, [])
        for each in waiting:
            waits = self._open.get(each)
            category = self._categories[waits.category] if waits is not None else None
            if waits is None or category is None or each not in category.blocked:
                continue
            if task.future is None or (ended and waits.misses(task)):
                waits.lacks = task
            category.blocked[each].discard(number)
            if not category.blocked[each]:
                del category.blocked[each]
                category.held[each] = waits
                found.append(category)
        return found

    def _let_held_go_on(self) -> None:
        for _, category in self._categories.items():
            if category.held:
                self._let_go_on(category)

    def _enough_workers(self) -> bool:
        return self.gathering.enough(self._connected, time.monotonic())

    def _connected(self) -> int:
        return count_workers(self.manager.status(), connected=True)

    def _has_ended(self, task: Task, number: int, future: CallFuture[Any]) -> None:
        """On the manager's thread, or on that which cancels."""
        with self._lock:
            if self._takers is None:
                if self.manager.closed:
                    return
                self._takers = Takers()
            takers = self._takers
        takers(lambda: self._take(task, number, future))

    def _take(self, task: Task, number: int, future: CallFuture[Any]) -> None:
        category = self._categories[task.category]
        with self._lock:
            category.under_way -= 1
        self._end(task, number, future, None)
        self._let_held_go_on()

    def _end(self, task: Task, number: int, future: CallFuture[Any] | None, error: BaseException | None) -> list[Category]:
        """Take it in; categories of tasks that waited for it to be let go."""
        late = "max end time" if task.time_end and time.time() >= task.time_end else ""
        try:
            task.end(future, error, late)
        except Exception:  # a defect must not hang the program
            log.exception("task %s could not be taken in", number)
        with self._lock:
            category = self._categories[task.category]
            if task.successful():
                category.done += 1
            else:
                category.failed += 1
            if self._open.pop(number, None) is not None:
                self._ready[number] = task
            unblocked = self._unblock(task, number, ended=True)
            self._lock.notify_all()
        self._alarms.drop(number)
        return unblocked

    # ------------------------------------------------------------ waiting

    def wait(self, timeout: float | str | None = FOREVER) -> Task | None:
        """The next task that has ended; None when none does within ``timeout`` seconds (fractions are fine; below 0: for
        ever), or when there is none."""
        return self._wait(timeout, lambda task: True)

    def wait_for_tag(self, tag: str | None, timeout: float | str | None = FOREVER) -> Task | None:
        """The next one with this tag; None: with any, or none."""
        return self._wait(timeout, lambda task: tag is None or task.tag == tag)

    def wait_for_task_id(self, task_id: int, timeout: float | str | None = FOREVER) -> Task | None:
        """This one."""
        return self._wait(timeout, lambda task: task.id == task_id)

    def _wait(self, timeout: float | str | None, wanted: Callable[[Task], bool]) -> Task | None:
        seconds = None if timeout in (None, FOREVER) else timeout
        if seconds is not None and (isinstance(seconds, bool | str) or seconds != seconds):
            raise UsageError(f"wait({timeout!r}): give seconds, or 'wait_forever'")
        if seconds is not None and seconds < 0:  # as TaskVine's number for it
            seconds = None
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            if self.gathering.wanted:
                self._let_held_go_on()
            with self._lock:
                for number, task in self._ready.items():
                    if wanted(task):
                        del self._ready[number]
                        return task
                if not any(wanted(task) for task in self._open.values()) or self.manager.closed:
                    return None
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._lock.wait(min(_LOOK_SECONDS, left or _LOOK_SECONDS) if self.gathering.wanted else left)

    def empty(self) -> bool:
        """No task is under way, or has ended without having been waited for."""
        with self._lock:
            return not self._open and not self._ready

    def hungry(self) -> int:
        """How many tasks more could be used well now."""
        held = sum(category.waiting for _, category in self._categories.items())
        return max(0, self.manager.hungry(int(self._tuned["hungry-minimum"]), self._tuned["hungry-minimum-factor"]) - held)

    def task_state(self, task_id: int) -> str:
        """As `Task.state`; ``unknown`` for a number that no task has that is here."""
        with self._lock:
            task = self._open.get(task_id) or self._ready.get(task_id)
        return task.state if task is not None else "unknown"

    # ------------------------------------------------------------ cancelling

    def cancel_by_task_id(self, id: int) -> int:
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
        """Those that have not ended: some that have may still be taken in."""
        with self._lock:
            return [task for task in self._open.values() if wanted(task) and (task.future is None or not task.future.done())]

    def _cancel(self, tasks: Iterable[Task]) -> int:
        count, unblocked = 0, list[Category]()
        for task in reversed(list(tasks)):
            with self._lock:
                waits = self._categories[task.category].drop(task.id)
            if waits:
                unblocked += self._end(task, task.id, None, CancelledError())
                count += 1
            elif task.future is not None and not task.future.done():
                count += task.future.cancel()
        for category in unblocked:  # they end too
            self._let_go_on(category)
        return count
