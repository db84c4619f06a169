"""Parsl's apps on pilots: programs as Parsl's documentation has them, with our executor in the configuration."""

# mypy: disable-error-code="untyped-decorator"
# Parsl's decorators.

from __future__ import annotations

import importlib
import os
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from parsl.executors.errors import ExecutorError, InvalidResourceSpecification
from parsl.executors.threads import ThreadPoolExecutor

import windlass
from windlass.errors import UsageError
from windlass.parsl import WindlassExecutor

#: Without types: those of its decorators are not those of what they give.
parsl: Any = importlib.import_module("parsl")
File: Any = parsl.File
bash_app: Any = parsl.bash_app
join_app: Any = parsl.join_app
python_app: Any = parsl.python_app


@pytest.fixture(scope="module")
def kernel(pool: windlass.Executor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Parsl with our executor, and with its threads for comparison."""
    folder = tmp_path_factory.mktemp("parsl")
    ours = WindlassExecutor(executor=pool, task_dir=str(folder))
    config = parsl.Config(
        executors=[ours, ThreadPoolExecutor(label="threads")],
        run_dir=str(folder / "runinfo"),
        strategy="none",
        retries=1,
        initialize_logging=False,
    )
    with parsl.load(config) as kernel:
        yield kernel


def labels(where: str) -> dict[str, Any]:
    return {"executors": [where]}


@pytest.mark.parametrize("where", ["windlass", "threads"])
def test_monte_carlo_of_the_tutorial(kernel: Any, where: str) -> None:
    """Apps whose futures are arguments of apps; the same with Parsl's own executor."""

    @python_app(**labels(where))
    def pi(points: int, seed: int) -> float:
        from random import Random

        chance = Random(seed)
        inside = sum(chance.random() ** 2 + chance.random() ** 2 < 1 for _ in range(points))
        return inside * 4 / points

    @python_app(**labels(where))
    def mean(a: float, b: float, c: float) -> float:
        return (a + b + c) / 3

    assert mean(*(pi(10_000, seed) for seed in range(3))).result() == pytest.approx(3.14, abs=0.05)


def test_apps_run_in_slots(kernel: Any) -> None:
    """Not in this process, and in the tasks' folder."""

    @python_app(executors=["windlass"])
    def here() -> tuple[int, str]:
        import os

        return os.getpid(), os.getcwd()

    process, folder = here().result()
    assert process != os.getpid()
    assert folder == kernel.executors["windlass"].task_dir


def test_bash_apps_pass_files_on(kernel: Any) -> None:
    """What one writes by a relative name the next one reads."""

    @bash_app(executors=["windlass"])
    def generate(outputs: Any = ()) -> str:
        return f"echo $((6 * 7)) > {outputs[0]}"

    @bash_app(executors=["windlass"])
    def concat(inputs: Any = (), outputs: Any = ()) -> str:
        return f"cat {' '.join(map(str, inputs))} > {outputs[0]}"

    @python_app(executors=["windlass"])
    def total(inputs: Any = ()) -> int:
        with open(inputs[0]) as numbers:
            return sum(map(int, numbers))

    made = [generate(outputs=[File(f"random-{number}.txt")]) for number in range(3)]
    joined = concat(inputs=[one.outputs[0] for one in made], outputs=[File("all.txt")])
    assert total(inputs=[joined.outputs[0]]).result() == 3 * 42


def test_join_apps_wait_for_what_they_start(kernel: Any) -> None:
    """Fibonacci, as in the documentation."""

    @python_app(executors=["windlass"])
    def add(*values: int) -> int:
        return sum(values)

    @join_app
    def fibonacci(number: int) -> Any:
        if number < 2:
            return add(number)
        return add(fibonacci(number - 1), fibonacci(number - 2))

    assert fibonacci(6).result() == 8


def test_an_error_is_the_apps_own_and_is_tried_again_as_parsl_says(kernel: Any, tmp_path: Path) -> None:
    """``retries=1`` of its configuration."""

    @python_app(executors=["windlass"])
    def fail(folder: Path) -> None:
        import uuid

        (folder / uuid.uuid4().hex).touch()
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fail(tmp_path).result()
    assert len(list(tmp_path.iterdir())) == 2


def test_resource_specifications_are_options_of_calls(pool: windlass.Executor) -> None:
    """Parsl's words in Parsl's units; what it does not know is refused, and what no pool has is told."""
    executor = WindlassExecutor(executor=pool)
    executor.start()
    spec = {"cores": 2, "memory": 100, "disk": 5, "priority": 3, "running_time_min": 60}
    future = executor.submit(os.getpid, spec)
    assert future.result() != os.getpid()
    assert executor._options(spec) == {"cores": 2, "memory": 100 << 20, "priority": 3, "expected_time": 60}  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(InvalidResourceSpecification, match="cpus"):
        executor.submit(os.getpid, {"cpus": 2})
    with pytest.raises(windlass.NotPossible, match="cores"):
        executor.submit(os.getpid, {"cores": 64})
    executor.shutdown()


def test_tasks_tell_parsls_monitoring_of_their_beginning_and_end(kernel: Any, tmp_path: Path) -> None:
    """Wrapped as Parsl's kernel does it where there is a `MonitoringHub`: by default they write files, which a process of Parsl's reads."""
    ours = kernel.executors["windlass"]
    radio = ours.remote_monitoring_radio
    radio.run_dir = str(tmp_path)
    remote: Any = importlib.import_module("parsl.monitoring.remote")
    ids = {"x_try_id": 0, "x_task_id": 7, "run_id": "run", "run_dir": str(tmp_path), "radio_config": radio, "logging_level": 0}
    wrapped, args, kwargs = remote.monitor_wrapper(
        f=pow, args=(2, 5), kwargs={}, sleep_dur=1, monitor_resources=ours.monitor_resources(), **ids
    )
    assert ours.submit(wrapped, {}, *args, **kwargs).result() == 32
    told = [pickle.loads(path.read_bytes())[1] for path in (tmp_path / "monitor-fs-radio" / "new").iterdir()]
    assert sorted((each["task_id"], each["first_msg"], each["last_msg"]) for each in told) == [(7, False, True), (7, True, False)]


def wait_for_ever(folder: Path) -> None:
    (folder / "here").touch()
    while True:
        time.sleep(0.01)


def test_shutdown_cancels_what_runs_and_sends_the_pilots_away(nothing_left_running: None, tmp_path: Path) -> None:
    """An executor of its own has a factory of its own."""
    config = parsl.Config(
        executors=[WindlassExecutor(cores=1, max_pilots=1)], run_dir=str(tmp_path / "runinfo"), strategy="none", initialize_logging=False
    )
    kernel = parsl.DataFlowKernel(config)
    future = python_app(wait_for_ever, data_flow_kernel=kernel)(tmp_path)
    while not (tmp_path / "here").exists():
        time.sleep(0.01)
    executor: Any = kernel.executors["windlass"]
    assert executor.outstanding == 1
    kernel.cleanup()
    with pytest.raises(CancelledError):
        future.result(timeout=20)
    with pytest.raises(ExecutorError, match="shut down"):
        executor.submit(os.getpid, {})


def test_options_of_a_pool_beside_an_executor_are_refused(pool: windlass.Executor) -> None:
    """They would change nothing."""
    with pytest.raises(UsageError, match="leave one of them out"):
        WindlassExecutor(executor=pool, max_pilots=3)
