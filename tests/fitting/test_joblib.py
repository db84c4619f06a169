"""joblib's tasks on pilots: results, errors, nesting, arrays, which executor, and scikit-learn on top of it."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import operator
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass
from windlass.errors import NotPicklable, RemoteTraceback, UsageError
from windlass.joblib import WindlassBackend
from windlass.objects import content_name
from windlass.worker.slot_api import current_call

#: Without types, as it has none.
joblib: Any = importlib.import_module("joblib")
Parallel: Any = joblib.Parallel
delayed: Any = joblib.delayed


def sklearn(part: str) -> Any:
    """A part of scikit-learn, likewise."""
    return importlib.import_module(f"sklearn.{part}")


@pytest.fixture
def backend(pool: windlass.Executor) -> Iterator[windlass.Executor]:
    """The backend for all of the test; gives the executor."""
    with joblib.parallel_config("windlass", executor=pool):
        yield pool


def done(executor: Any) -> int:
    """Calls that its manager has had."""
    return int(executor.manager.stats.done)


def where(number: int) -> tuple[int, int]:
    return number, os.getpid()


def mapped_at(array: np.ndarray[Any, Any]) -> tuple[str, int]:
    """The file that an array's memory is, and who looks."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return line.split()[-1], os.getpid()
    raise LookupError(hex(address))


def test_tasks_run_in_slots_and_give_their_results_in_order(backend: windlass.Executor) -> None:
    """Not in this process, and all slots that there are take part."""
    found = Parallel()(delayed(where)(number) for number in range(200))
    assert [number for number, _ in found] == list(range(200))
    assert os.getpid() not in {process for _, process in found}


COMPARISON = """
import joblib, numpy, windlass
from joblib import Parallel, delayed

def work(array, power, *, scale=1):
    return {"sum": float((array ** power).sum()) * scale, "shape": array.shape, "array": array[:3] * scale}

def results():
    array = numpy.arange(300_000, dtype=float)
    found = [Parallel(n_jobs=2)(delayed(work)(array, power, scale=3) for power in range(6))]
    found.append(list(Parallel(n_jobs=2, return_as="generator")(delayed(lambda x: x + len(found))(x) for x in range(20))))
    found.append(sorted(Parallel(n_jobs=2, return_as="generator_unordered")(delayed(divmod)(x, 7) for x in range(20))))
    found.append(Parallel(n_jobs=2, batch_size=3, pre_dispatch="all")(delayed(str.upper)(word) for word in "wind lass".split()))
    return repr(found)

own = results()
with windlass.Executor("local", cores=2, max_pilots=1), joblib.parallel_config("windlass"):
    assert results() == own
from joblib.externals.loky import get_reusable_executor
get_reusable_executor().shutdown(wait=True)
print(len(own))
"""


def test_a_program_prints_what_it_does_with_joblibs_own_backend(run_program: Callable[..., str]) -> None:
    """By joblib's default, processes of its own, and on pilots; here the backend is known without an import of `windlass.joblib`."""
    assert int(run_program(COMPARISON)) > 500


def test_scikit_learn_finds_what_it_does_alone(backend: windlass.Executor) -> None:
    """A grid search, cross-validation and a forest, each on pilots and as it runs without."""
    images, digits = (part[:600] for part in sklearn("datasets").load_digits(return_X_y=True))
    selection: Any = sklearn("model_selection")

    def found() -> tuple[Any, ...]:
        search = selection.GridSearchCV(sklearn("svm").SVC(), {"C": [1, 10], "gamma": [0.001, 0.01]}, cv=3).fit(images, digits)
        forest = sklearn("ensemble").RandomForestClassifier(12, random_state=3, n_jobs=-1)
        return (
            search.best_params_,
            search.cv_results_["mean_test_score"].tolist(),
            selection.cross_val_score(forest, images, digits, cv=3).tolist(),
            forest.fit(images, digits).predict_proba(images).tolist(),
        )

    on_pilots = found()
    ran = done(backend)
    with joblib.parallel_config("sequential"):
        assert found() == on_pilots
    assert done(backend) == ran > 12


def test_a_function_may_have_a_class_in_its_closure(backend: windlass.Executor) -> None:
    """As ``dtype = np.float32`` in the function that makes it."""
    kind = np.float32

    def converted(value: float) -> Any:
        return kind(value)

    assert Parallel(n_jobs=2)(delayed(converted)(value) for value in (1.5, 2.5)) == [1.5, 2.5]


def warned(number: int) -> int:
    print("task", number)
    warnings.warn(f"number {number} is odd", stacklevel=1)
    return number


def test_what_tasks_print_and_warn_of_is_shown(backend: windlass.Executor, capsys: pytest.CaptureFixture[str]) -> None:
    """As with joblib's own processes: nobody has the futures of the batches."""
    assert Parallel()(delayed(warned)(number) for number in (1, 3)) == [1, 3]
    shown = capsys.readouterr()
    assert sorted(shown.out.splitlines()) == ["task 1", "task 3"]
    assert "UserWarning: number 1 is odd" in shown.err
    assert "UserWarning: number 3 is odd" in shown.err


def test_an_error_is_the_tasks_own(backend: windlass.Executor) -> None:
    """With the traceback of the slot for its cause."""
    with pytest.raises(ZeroDivisionError) as raised:
        Parallel()(delayed(divmod)(1, number) for number in (1, 2, 0))
    assert isinstance(raised.value.__cause__, RemoteTraceback)


def wait_for_ever(folder: Path, number: int) -> None:
    (folder / str(number)).touch()
    if number == 0:
        while not (folder / "1").exists():
            time.sleep(0.01)
        raise KeyError("mine")
    while True:
        time.sleep(0.01)


def test_the_first_error_cancels_what_runs(backend: windlass.Executor, tmp_path: Path) -> None:
    """joblib aborts; calls that would never end have ended when the pool is asked, and it takes more work."""
    with pytest.raises(KeyError, match="mine"):
        Parallel(n_jobs=2, batch_size=1)(delayed(wait_for_ever)(tmp_path, number) for number in range(8))
    assert Parallel()(delayed(abs)(number) for number in range(-4, 0)) == [4, 3, 2, 1]


def test_a_later_task_that_cannot_be_handed_over_is_told(backend: windlass.Executor) -> None:
    """joblib hands it over on the thread of callbacks, where an error would be logged, and waited for it for ever."""
    with pytest.raises(NotPicklable, match="lock"):
        Parallel(n_jobs=2, batch_size=1)(delayed(id)(threading.Lock() if number == 20 else number) for number in range(30))


def wait_for_file(path: Path, number: int) -> int:
    while not path.exists():
        time.sleep(0.01)
    return number


class PickledSlowly:
    """Whose pickling lasts until something has been closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.reached = threading.Event()

    def __reduce__(self) -> Any:
        self.reached.set()
        assert self.closed.wait(60)
        return PickledSlowly, ()


def test_one_that_aborts_cancels_its_own_tasks_only(backend: windlass.Executor, tmp_path: Path) -> None:
    """All of one ``parallel_config`` share a backend. A task that was being handed over meanwhile is cancelled too."""
    few: Any = functools.partial(Parallel, n_jobs=2, batch_size=1, pre_dispatch=1, return_as="generator")
    mine = few()(delayed(wait_for_file)(tmp_path / "go", number) for number in range(4))
    (tmp_path / "is there").touch()
    odd = PickledSlowly()
    other = few()(delayed(wait_for_file)(tmp_path / name, each) for name, each in (("is there", 1), ("never", odd)))
    assert odd.reached.wait(60)
    with pytest.warns(UserWarning, match="cancelled"):
        other.close()
    odd.closed.set()
    (tmp_path / "go").touch()
    assert list(mine) == list(range(4))
    manager: Any = backend.manager
    assert all(future.done() for future in manager._client.pending())  # pyright: ignore[reportPrivateUsage]


def test_a_task_that_somebody_else_cancels_is_told(backend: windlass.Executor, tmp_path: Path) -> None:
    """Also as `shutdown(cancel_futures=True)` of another thread does."""
    found = Parallel(n_jobs=2, batch_size=1, return_as="generator")(delayed(wait_for_file)(tmp_path / "never", n) for n in range(8))
    manager: Any = backend.manager
    manager.cancel_all()
    with pytest.raises(CancelledError):
        list(found)


def test_a_second_executor_may_be_opened_while_tasks_are_handed_out(pool: windlass.Executor) -> None:
    """Those that are left go where the first ones went."""
    with joblib.parallel_config("windlass"):
        found = Parallel(n_jobs=2, batch_size=1, return_as="generator")(delayed(abs)(number) for number in iter(range(20)))
        with windlass.Executor(None):
            assert list(found) == list(range(20))


def test_a_task_that_takes_too_long_is_told(backend: windlass.Executor, tmp_path: Path) -> None:
    """joblib's own ``timeout``."""
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(n_jobs=2, timeout=0.5)(delayed(wait_for_ever)(tmp_path, number) for number in (1, 2))


def test_a_large_array_is_one_object_that_slots_map(backend: windlass.Executor) -> None:
    """Of whatever order in memory; a view of it is another object. What a task writes into it stays in the task."""
    array = np.asfortranarray(np.arange(2_000_000, dtype=float).reshape(1000, 2000))
    for given in (array, np.ascontiguousarray(array)):
        found = Parallel(n_jobs=4, batch_size=1)(delayed(mapped_at)(given) for _ in range(12))
        [path] = {path for path, _ in found}
        assert re.search(r"/b3-[0-9a-f]{32}$", path)

    def write(array: np.ndarray[Any, Any]) -> float:
        array[0, 0] += 1.0
        return float(array[0, 0])

    assert Parallel(n_jobs=2, batch_size=1)(delayed(write)(array) for _ in range(6)) == [1.0] * 6
    assert array[0, 0] == 0.0


def nested(depth: int) -> tuple[int, int, set[tuple[int, int]]]:
    inner = Parallel(n_jobs=-1)(delayed(whoami)() for _ in range(8))
    return joblib.cpu_count(), joblib.effective_n_jobs(-1), set(inner)


def whoami() -> tuple[int, int]:
    time.sleep(0.05)
    return os.getpid(), threading.get_ident()


def test_nested_parallelism_stays_in_the_slot(backend: windlass.Executor) -> None:
    """A slot is one core: what is nested runs in sequence."""
    for cores, jobs, who in Parallel(n_jobs=2)(delayed(nested)(1) for _ in range(2)):
        assert (cores, jobs, len(who)) == (1, 1, 1)


def test_nested_parallelism_has_the_cores_of_its_call(pool: windlass.Executor) -> None:
    """Threads, as many as the cores that the options say."""
    with joblib.parallel_config("windlass", executor=pool.with_options(cores=2)):
        for cores, jobs, who in Parallel(n_jobs=2)(delayed(nested)(1) for _ in range(2)):
            assert (cores, jobs, len(who), len({process for process, _ in who})) == (2, 2, 2, 1)


def named_inside() -> list[int]:
    assert current_call() is not None
    found: list[int] = Parallel(n_jobs=2, backend="windlass")(delayed(abs)(number) for number in (-1, -2))
    return found


def test_a_slot_does_itself_what_names_the_backend_inside(backend: windlass.Executor) -> None:
    """It has no executor."""
    assert Parallel(n_jobs=2)(delayed(named_inside)() for _ in range(2)) == [[1, 2], [1, 2]]


def threads_here() -> tuple[str | None, set[int]]:
    threadpoolctl: Any = importlib.import_module("threadpoolctl")
    np.dot(np.ones((2, 2)), np.ones((2, 2)))
    return os.environ.get("OMP_NUM_THREADS"), set(map(operator.itemgetter("num_threads"), threadpoolctl.threadpool_info()))


def test_inner_max_num_threads_limits_numerical_libraries(pool: windlass.Executor) -> None:
    """For those that are loaded, and for processes that a task starts; afterwards the slot is as it was."""
    with joblib.parallel_config("windlass", executor=pool, inner_max_num_threads=2):
        assert Parallel(n_jobs=2)(delayed(threads_here)() for _ in range(2)) == [("2", {2})] * 2
    with joblib.parallel_config("windlass", executor=pool):
        assert {variable for variable, _ in Parallel(n_jobs=2)(delayed(threads_here)() for _ in range(4))} == {"1"}


def note_start(folder: Path) -> None:
    (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()


def test_an_initializer_is_called_once_in_each_slot(pool: windlass.Executor, tmp_path: Path) -> None:
    """Before its first batch, however many there are."""
    with joblib.parallel_config("windlass", executor=pool, initializer=note_start, initargs=(tmp_path,)):
        processes = {process for _, process in Parallel(n_jobs=2, batch_size=1)(delayed(where)(number) for number in range(20))}
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == sorted(map(str, processes))


def test_short_tasks_go_in_batches(backend: windlass.Executor) -> None:
    """By joblib's own rule, fed with how long batches ran, not how long they waited."""
    before = done(backend)
    assert len(Parallel(n_jobs=2)(delayed(abs)(number) for number in range(3000))) == 3000
    assert done(backend) - before < 600


def test_all_jobs_are_the_slots_that_there_can_be(pool: windlass.Executor) -> None:
    """Fewer with more cores each; at least two, as joblib would do the work of one in the program; any number may be named."""
    backend = WindlassBackend(executor=pool)
    assert [backend.effective_n_jobs(jobs) for jobs in (-1, 1, 7, None)] == [2, 1, 7, 1]
    assert WindlassBackend(executor=pool.with_options(cores=2)).effective_n_jobs(-1) == 2
    with pytest.raises(ValueError, match="no meaning"):
        backend.effective_n_jobs(0)


def test_a_manager_can_be_named(pool: windlass.Executor) -> None:
    """In place of an executor."""
    with joblib.parallel_config("windlass", executor=pool.manager):
        assert Parallel(n_jobs=2)(delayed(abs)(number) for number in (-1, -2)) == [1, 2]


def test_a_program_that_is_attached_can_send_an_array_again(pool: windlass.Executor) -> None:
    """Each task is handed out when the one before has ended, with which the array was let go: it is not taken to be there still."""
    manager: Any = pool.manager
    array = np.arange(300_000, dtype=float)
    with windlass.attach(manager.name) as attached, joblib.parallel_config("windlass", executor=attached):
        totals = Parallel(n_jobs=2, batch_size=1, pre_dispatch=1)(delayed(np.sum)(array) for _ in range(5))
        with pytest.raises(KeyError):
            attached._client.store.pin(content_name(array.tobytes()))  # pyright: ignore[reportPrivateUsage]
    assert totals == [array.sum()] * 5


def test_where_several_executors_are_open_one_must_be_named(pool: windlass.Executor) -> None:
    """Nor is anything taken for one that is none."""
    two = pytest.raises(UsageError, match=r"2 executors are open; say which one.*executor=pool")
    with windlass.Executor(None), joblib.parallel_config("windlass"), two:
        Parallel(n_jobs=2)(delayed(abs)(number) for number in (-1, -2))
    with joblib.parallel_config("windlass", executor="slurm"), pytest.raises(UsageError, match="no executor of Windlass"):
        Parallel(n_jobs=2)(delayed(abs)(number) for number in (-1, -2))


JOURNALED = """
import os, joblib, windlass

def where(number):
    return number, os.getpid()

with windlass.Executor("local", cores=2, max_pilots=1, journal="j"), joblib.parallel_config("windlass"):
    print(joblib.Parallel(n_jobs=2, batch_size=1)(joblib.delayed(where)(number) for number in range(200)))
"""


def test_a_program_that_is_started_again_with_its_journal_remembers_all_batches(run_program: Callable[..., str]) -> None:
    """However many: each of them has ended when it is submitted, and none is submitted from inside of the one before."""
    found = run_program(JOURNALED)
    assert found.count("(") == 200
    assert run_program(JOURNALED) == found


NO_EXECUTOR = """
import joblib, windlass.joblib
try:
    with joblib.parallel_config("windlass"):
        joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(x) for x in (-1, -2))
except windlass.UsageError as error:
    print(error)
"""


def test_without_an_executor_nothing_starts_by_itself(run_program: Callable[..., str]) -> None:
    """And the text says what to write."""
    assert "no executor is open; write this inside of 'with windlass.Executor(" in run_program(NO_EXECUTOR)
