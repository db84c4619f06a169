"""One side of `factory.py`: a program that submits a load through Windlass, dask-jobqueue or Parsl, and says when things happened.

    python benchmarks/factory_side.py SYSTEM LOAD OPTIONS

Theory of operation: this file is executed by the interpreter of the system's own environment, so it loads nothing but the standard library
until it knows its system.  The loads are the same for all, line by line; a system is a context manager that gives a function ``submit``.
Events go to stdout, one JSON object a line; who counts commands and pilots is `factory.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

#: ``submit(function, *arguments)`` gives a future.
Submit = Callable[..., Any]


def work(number: int, seconds: float, runs: str) -> int:
    """A call: notes in which pilot it runs, and takes so long."""
    import os
    import time

    file = os.open(runs, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{time.time():.3f} {number} {os.environ['SLURM_JOB_ID']}\n".encode())
    os.close(file)
    time.sleep(seconds)
    return number


def hold(number: int, go: str, runs: str) -> int:
    """A long call: the same, until a file says that it may end (200 s at most)."""
    import os
    import time

    file = os.open(runs, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{time.time():.3f} {number} {os.environ['SLURM_JOB_ID']}\n".encode())
    os.close(file)
    end = time.time() + 200
    while not os.path.exists(go) and time.time() < end:
        time.sleep(0.5)
    return number


# ---------------------------------------------------------------- the systems


@contextlib.contextmanager
def windlass_side(options: Mapping[str, Any]) -> Generator[Submit]:
    """Windlass with its default budget of commands and interval of queries."""
    windlass = importlib.import_module("windlass")
    pool: dict[str, Any] = {
        "max_pilots": options["most"],
        "min_pilots": options["least"],
        "cores": 1,
        "walltime": "30min",
        "idle_timeout": options["idle"],
        "hold": options["idle"],
        "start_cost": 5,
    }
    with windlass.Manager() as manager, windlass.Factory(manager, "slurm", **pool):
        manager.install_library("lib", work, hold)

        def submit(function: Callable[..., Any], *arguments: Any) -> Any:
            return manager.submit(windlass.FunctionCall("lib", function.__name__, *arguments))

        yield submit


@contextlib.contextmanager
def dask_side(options: Mapping[str, Any]) -> Generator[Submit]:
    """dask-jobqueue's ``SLURMCluster.adapt()``: jobs of one worker, without a nanny, so one interpreter a pilot; others as by default."""
    dask, jobqueue = importlib.import_module("dask"), importlib.import_module("dask_jobqueue")
    distributed = importlib.import_module("distributed")
    if options["long"]:  # the user knows that calls are long; the default is half a second
        dask.config.set({"distributed.scheduler.unknown-task-duration": "60s"})
    folder = Path(options["folder"])
    with (
        jobqueue.SLURMCluster(
            cores=1,
            processes=1,
            memory="400MB",
            walltime="00:30:00",
            interface="lo",
            nanny=False,
            death_timeout=150,
            local_directory=str(folder / "local"),
            log_directory=str(folder / "logs"),
            scheduler_options={"dashboard": False, "dashboard_address": None},
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        cluster.adapt(minimum_jobs=options["least"], maximum_jobs=options["most"], interval="1s", wait_count=options["idle"])

        def submit(function: Callable[..., Any], *arguments: Any) -> Any:
            return client.submit(function, *arguments, pure=False)

        yield submit


@contextlib.contextmanager
def parsl_side(options: Mapping[str, Any]) -> Generator[Submit]:
    """Parsl's ``HighThroughputExecutor`` with ``SlurmProvider``, one worker a block, and the strategy that also scales in."""
    parsl, executors = importlib.import_module("parsl"), importlib.import_module("parsl.executors")
    providers, launchers = importlib.import_module("parsl.providers"), importlib.import_module("parsl.launchers")
    folder = Path(options["folder"])
    provider = providers.SlurmProvider(
        cores_per_node=1,
        nodes_per_block=1,
        init_blocks=options["least"],
        min_blocks=options["least"],
        max_blocks=options["most"],
        parallelism=1,
        walltime="00:30:00",
        exclusive=False,
        launcher=launchers.SimpleLauncher(),
        worker_init=f"export PATH={os.path.dirname(sys.executable)}:$PATH",
    )
    executor = executors.HighThroughputExecutor(
        label="htex", address="127.0.0.1", max_workers_per_node=1, cores_per_worker=1, provider=provider, worker_logdir_root=str(folder)
    )
    config = importlib.import_module("parsl.config").Config(
        executors=[executor],
        strategy="htex_auto_scale",
        max_idletime=options["idle"],
        run_dir=str(folder / "runinfo"),
        initialize_logging=False,
    )
    with parsl.load(config):
        apps: dict[Callable[..., Any], Any] = {function: parsl.python_app(function) for function in (work, hold)}

        def submit(function: Callable[..., Any], *arguments: Any) -> Any:
            return apps[function](*arguments)

        yield submit


SYSTEMS: dict[str, Callable[[Mapping[str, Any]], contextlib.AbstractContextManager[Submit]]] = {
    "windlass": windlass_side,
    "dask": dask_side,
    "parsl": parsl_side,
}


# ---------------------------------------------------------------- the loads


def say(event: str, **more: float) -> None:
    print(json.dumps({"event": event, "at": time.time(), **more}), flush=True)


def check(right: bool) -> None:
    if not right:
        raise SystemExit("a call gave a wrong result; the figures are void")


def pilots_seen(runs: str) -> int:
    return len({line.split()[2] for line in Path(runs).read_text().splitlines()}) if os.path.exists(runs) else 0


def ramp(submit: Submit, options: Mapping[str, Any]) -> None:
    """Rest without pilots; then long calls for all pilots at once, until all serve; a minute from the first submission on is watched."""
    time.sleep(3)
    say("rest begins")
    time.sleep(options["rest"])
    say("rest ends")
    go, runs, target = options["go"], options["runs"], options["most"]
    say("first submit")
    first = time.time()
    futures = [submit(hold, number, go, runs) for number in range(target * 3 // 2)]
    while pilots_seen(runs) < target and time.time() < first + 170:
        time.sleep(0.1)
    say("target", reached=pilots_seen(runs))
    time.sleep(max(0.0, first + options["window"] - time.time()))
    say("window ends")
    Path(go).touch()
    check([future.result() for future in futures] == list(range(len(futures))))


def minimum(submit: Submit, options: Mapping[str, Any]) -> None:
    """A few calls, then rest with the least number of pilots."""
    futures = [submit(work, number, 1.0, options["runs"]) for number in range(2 * options["least"])]
    check([future.result() for future in futures] == list(range(len(futures))))
    time.sleep(options["settle"])
    say("rest begins")
    time.sleep(options["rest"])
    say("rest ends")


def bursts(submit: Submit, options: Mapping[str, Any]) -> None:
    """Bursts of calls at given times: (seconds from the start, calls, seconds of each)."""
    began = time.time()
    given: list[tuple[int, float, Any]] = []
    number = 0
    for at, calls, seconds in options["bursts"]:
        time.sleep(max(0.0, began + at - time.time()))
        for _ in range(calls):
            given.append((number, time.time(), submit(work, number, seconds, options["runs"])))
            given[-1][2].add_done_callback(Ended(given[-1][1]))
            number += 1
    check([future.result() for _, _, future in given] == list(range(number)))
    end = time.time() + 5
    while len(Ended.took) < number and time.time() < end:  # callbacks may come a moment after results
        time.sleep(0.01)
    took = sorted(Ended.took)
    say("bursts", turnaround=sum(took) / len(took), longest=took[-1], calls=number)


class Ended:
    """Notes how long a call took."""

    took: list[float] = []  # noqa: RUF012  one for the program

    def __init__(self, submitted: float) -> None:
        self.submitted = submitted

    def __call__(self, _: object) -> None:
        self.took.append(time.time() - self.submitted)


def main() -> None:
    system, load, text = sys.argv[1:]
    options = json.loads(text)
    say("starts")
    with SYSTEMS[system](options) as submit:
        {"ramp": ramp, "minimum": minimum, "bursts": bursts}[load](submit, options)
        say("closing")
    say("closed")


if __name__ == "__main__":
    main()
