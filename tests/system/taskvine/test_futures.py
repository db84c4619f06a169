"""TaskVine's executor as its manual uses it: futures, futures as arguments, tasks with needs, calls of libraries, trees."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import windlass
import windlass.taskvine as vine
from windlass import UsageError

Matrix = list[list[float]]


@pytest.fixture(scope="module")
def executor(leaves_nothing_running: None) -> Iterator[vine.FuturesExecutor]:
    """With workers of a factory of its own."""
    with vine.FuturesExecutor(port=0, manager_name="futures-of-a-test", opts={"cores": 2, "max-workers": 1, "min-workers": 1}) as executor:
        yield executor


def my_sum(x: int, y: int) -> int:
    return x + y


def test_futures_are_arguments_of_further_calls(executor: vine.FuturesExecutor) -> None:
    """The manual's first program; the manager has the name that was given, the factory the attributes."""
    a = executor.submit(my_sum, 3, 4)
    b = executor.submit(my_sum, 5, y=2)
    assert executor.submit(my_sum, a, b).result() == 14
    assert (executor.manager_name, executor.get("max-workers"), executor.get("cores")) == ("futures-of-a-test", 1, 2)
    assert executor.port == executor.manager.port
    assert executor.manager.empty(), "its calls are no tasks that wait() would give back"


def test_a_task_has_needs_and_a_function_call_its_library(executor: vine.FuturesExecutor) -> None:
    """`future_task` and `future_funcall` give tasks with setters; both become futures when they are submitted."""
    t = executor.future_task(my_sum, 3, 4)
    t.set_cores(2)
    t.set_memory(50)
    t.set_env_var("WORD", "lass")
    executor.manager.set_category_resources_max("some", {"memory": 70})
    other = executor.future_task(os.environ.get, "WORD")
    other.set_category("some")
    executor.install_library(executor.create_library_from_functions("sums", my_sum))
    first, call = executor.submit(t), executor.submit(executor.future_funcall("sums", "my_sum", executor.submit(t), 1))
    assert (first.result(), call.result(), executor.submit(other).result()) == (7, 8, None)
    assert (t.resources_requested.cores, t.resources_requested.memory, other.resources_requested.memory) == (2, 50, 70)
    with pytest.raises(ValueError, match="did you mean 'my_sum'"):
        executor.submit(executor.future_funcall("sums", "my_sun", 1, 2))


def test_a_task_of_an_executor_tells_its_end(executor: vine.FuturesExecutor, tmp_path: Path) -> None:
    """As those that a manager gives back; its output is a method, which waits, as TaskVine's has it there."""
    first = executor.future_task(my_sum, 7, 4)
    with pytest.raises(UsageError, match=r"write executor\.submit"):
        first.output()
    second = executor.future_task(my_sum, executor.submit(first), 22)
    second.enable_temp_output()
    future = executor.submit(second)
    assert (second.output(), future.result(), first.output(timeout="wait_forever")) == (33, 33, 11)
    assert (second.result, second.exit_code, second.successful(), second.state) == ("success", 0, True, "done")
    assert 0 < first.id < second.id
    bad = executor.future_task(fail, 7)
    executor.submit(bad)
    assert isinstance(bad.output(60), KeyError)
    assert (bad.completed(), bad.exit_code, bad.successful(), type(bad.error)) == (True, 1, False, KeyError)
    assert "KeyError: 7" in bad.std_output
    endless = executor.future_task(stay, tmp_path)
    running = executor.submit(endless)
    with pytest.raises(TimeoutError, match=r"has not ended within 0 s"):
        endless.output(0)
    assert (endless.result, endless.successful()) == ("unknown", False)
    assert running.cancel()
    assert endless.result == "cancelled"
    assert [executor.submit(first).result() for _ in range(2)] == [11, 11], "one may be submitted again"
    assert first.output() == 11


def multiply(a: Matrix, b: Matrix) -> Matrix:
    return [[sum(left * right for left, right in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def test_a_tree_of_products_of_matrices(executor: vine.FuturesExecutor) -> None:
    """Sixteen matrices, each product a call that waits for two others."""
    level: list[vine.VineFuture[Matrix]] | list[Matrix] = [[[1.0, float(number)], [0.0, 1.0]] for number in range(16)]
    while len(level) > 1:
        level = [executor.submit(executor.future_task(multiply, *level[pair : pair + 2])) for pair in range(0, len(level), 2)]
    assert executor.submit(multiply, level[0], [[1.0, 0.0], [0.0, 1.0]]).result() == [[1.0, 120.0], [0.0, 1.0]]


def fail(number: int) -> None:
    raise KeyError(number)


def stay(folder: Path) -> None:
    (folder / "here").touch()
    while True:
        time.sleep(0.01)


def test_futures_are_waited_for_as_they_end(executor: vine.FuturesExecutor, tmp_path: Path) -> None:
    """By TaskVine's functions of the module, which are those of `concurrent.futures`; one may be cancelled while it runs."""
    endless = executor.submit(stay, tmp_path)
    while not (tmp_path / "here").exists():
        time.sleep(0.01)
    quick = [executor.submit(my_sum, number, 1) for number in range(5)]
    told: list[int] = []
    quick[0].add_done_callback(lambda future: told.append(future.result()))
    bad = executor.submit(fail, 7)
    done, rest = vine.futures.wait([*quick, bad, endless], return_when=vine.futures.FIRST_EXCEPTION)
    assert bad in done
    assert rest >= {endless}
    assert sorted(future.result() for future in vine.futures.as_completed(quick)) == [1, 2, 3, 4, 5]
    with pytest.raises(KeyError, match="7"):
        bad.result()
    assert endless.cancel()
    assert endless.cancelled()
    vine.futures.wait(quick)
    while not told:
        time.sleep(0.01)
    assert told == [1]


def test_functions_over_sequences_give_one_future(executor: vine.FuturesExecutor) -> None:
    """In chunks, and with futures among the items."""
    three: vine.VineFuture[int] = executor.submit(my_sum, 1, 2)
    assert executor.map(abs, [-1, -2, three], chunk_size=2).result() == [1, 2, 3]
    assert executor.reduce(sum, range(10), chunk_size=4).result() == 45
    assert executor.reduce(max, [three], fn_arity=3).result() == 3
    assert executor.allpairs(my_sum, [10, 20], [1, 2, 3], chunk_size=4).result() == [[11, 12, 13], [21, 22, 23]]


REFUSED: list[tuple[Callable[[vine.FuturesExecutor], object], str]] = [
    (lambda e: e.submit(vine.PythonTask(my_sum, 1, 2)), "write submit\\(executor.future_task"),
    (lambda e: e.map(abs, [1], library_name="sums"), "future_funcall\\('sums'"),
    (lambda e: e.map(abs, [1], chunk_size=0), "write chunk_size=1"),
    (lambda e: e.reduce(max, []), "has no end"),
    (lambda e: e.future_task(abs, 1).set_time_end(1e15), "set_time_max"),
    (lambda e: e.future_task(abs, 1).add_output(e.manager.declare_buffer(), "out"), "let the function return it"),
    (lambda e: e.set("core", 2), "did you mean 'cores'"),
    (lambda e: vine.FuturesExecutor(0, manager_host_port="host:9123"), "its manager is in this program"),
    (lambda e: vine.FuturesExecutor(0, opts={"max-worker": 2}), "did you mean 'max_workers'"),
]


def test_what_is_not_here_is_refused_with_what_to_write(executor: vine.FuturesExecutor) -> None:
    """Where it is written."""
    for write, text in REFUSED:
        with pytest.raises(UsageError, match=text):
            write(executor)
    with pytest.warns(vine.NoEffect, match="worker_binary"):
        vine.FuturesExecutor(0, worker_binary="vine_worker", factory=False).shutdown()


def test_after_its_shutdown_an_executor_takes_nothing(executor: vine.FuturesExecutor) -> None:
    """And a manager that it was given stays open."""
    other = vine.FuturesExecutor(manager=executor.manager, factory=False)
    one = other.submit(my_sum, 1, 2)
    other.shutdown(wait=False)
    assert one.result() == 3
    with pytest.raises(windlass.Closed):
        other.submit(my_sum, 1, 2)
    assert other.get("cores") is None
    assert executor.submit(my_sum, 2, 2).result() == 4
