"""Other projects' own tests, run on Windlass: a program that the tests here start, once for each project.

Theory of operation
-------------------
The tests are not ours and not here: they come with the installed packages. What they are run on is put in place before pytest looks at
them: for joblib, the lists of backends that its tests are parametrized with; for Dask, the scheduler that is used where none is named;
Parsl's take a configuration. One line of JSON says what came of each test."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import windlass


class Told:
    """A plugin that prints what came of each test, and gives up none."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self._texts[name] = report.longreprtext
        if report.when == "teardown":
            outcome = "failed" if name in self._texts else "passed"
            print("\n" + json.dumps({"test": name, "outcome": outcome, "text": self._texts.get(name, "")[-3000:]}), flush=True)
        elif report.skipped:
            self._texts.pop(name, None)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            print("\n" + json.dumps({"test": "collection", "outcome": "failed", "text": report.longreprtext[-3000:]}), flush=True)


def run(*words: str, plugins: Sequence[Any] = ()) -> None:
    """Run tests, under no configuration of ours."""
    common = ["-q", "-c", "/dev/null", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=60", "-W", "ignore", "--rootdir", "."]
    pytest.main([*common, *words], plugins=[Told(), *plugins])


def joblib(words: list[str]) -> None:
    """The tests of `joblib.Parallel` that are run for each backend."""
    importlib.import_module("windlass.joblib")
    tests: Any = importlib.import_module("joblib.test.test_parallel")
    for backends in (tests.PROCESS_BACKENDS, tests.PARALLEL_BACKENDS):
        backends.append("windlass")
    with windlass.Executor("local", cores=2, max_pilots=1):
        run("--pyargs", "joblib.test.test_parallel", *words)


def dask(words: list[str]) -> None:
    """The tests of `dask.delayed`, of bags and of arrays that use whatever scheduler there is."""
    library: Any = importlib.import_module("dask")
    scheduler: Any = importlib.import_module("windlass.dask")
    with windlass.Executor("local", cores=2, max_pilots=1), library.config.set(scheduler=scheduler.get):
        run("--pyargs", *words)


def parsl(words: list[str]) -> None:
    """Parsl's tests of apps, on a configuration with our executor."""
    [home] = importlib.import_module("parsl").__path__
    files = [str(Path(home, "tests", word)) if word.startswith("test_") else word for word in words]
    # Its hooks and fixtures, but two that pytest 9 does not take: one skips folders, one has an option that must be given always.
    conftest: Any = importlib.import_module("parsl.tests.conftest")
    if hasattr(conftest, "pytest_ignore_collect"):
        del conftest.pytest_ignore_collect

    def options(parser: pytest.Parser) -> None:
        parser.addoption("--config", nargs=1)
        parser.addoption("--show-filtered-tests", action="store_true")

    conftest.pytest_addoption = options
    run(
        "--noconftest",
        "-m",
        "not unix_filesystem_permissions_required and not cleannet",
        "--config",
        str(Path(__file__).with_name("parsl_config.py")),
        *files,
        plugins=[conftest],
    )


if __name__ == "__main__":
    project: Callable[[list[str]], None] = {"joblib": joblib, "dask": dask, "parsl": parsl}[sys.argv[1]]
    project(sys.argv[2:])
