"""CPython's own tests of futures, run on ours: a program that test_stock_tests.py starts, once for each group of them.

Theory of operation
-------------------
The tests are not ours and not here: the interpreter's own ``test`` package has them, or a distribution's package of the same minor version.
`where_they_are` looks. Before they are loaded, the class in `concurrent.futures._base` is replaced by a `CallFuture` of the stock one's
name, so that the tests, `ThreadPoolExecutor`, `wait` and `as_completed` all know ours alone. One line of JSON says what came of each test.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures._base
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import threading
import time
import traceback
import unittest
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import windlass
from windlass.manager.future import CallFuture

#: Seconds that a test waits for what a second brings, unless it is one that has to fail.
PATIENCE = 8.0


def where_they_are() -> Path | None:
    """The folder of a ``test`` package with test_concurrent_futures, of this very minor version."""
    minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    folders = [Path(f"/usr/lib/{minor}/test"), Path(f"/usr/local/lib/{minor}/test")]
    spec = importlib.util.find_spec("test")
    if spec is None or importlib.util.find_spec("test.support") is None:
        return None  # they lean on it
    folders[:0] = map(Path, spec.submodule_search_locations or ())
    names = ("test_concurrent_futures.py", "test_concurrent_futures/test_future.py")
    return next((folder for folder in folders if any((folder / name).exists() for name in names)), None)


class Future(CallFuture[Any]):
    """Ours under the name that texts in the tests have."""


class Everything:
    """The names of all modules of the tests: from 3.12 on they are a package."""

    def __init__(self, folder: Path) -> None:
        package = importlib.import_module("test")
        if str(folder) not in package.__path__:
            package.__path__.append(str(folder))
        name = "test.test_concurrent_futures"
        parts = [""]
        if (folder / "test_concurrent_futures").is_dir():
            parts += [".util", ".test_future", ".test_wait", ".test_as_completed"]
        self.modules = [importlib.import_module(name + part) for part in parts]

    def __getattr__(self, name: str) -> Any:
        for module in self.modules:
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(name)

    def replace(self, name: str, value: object) -> None:
        for module in self.modules:
            if hasattr(module, name):
                setattr(module, name, value)


class Told(unittest.TestResult):
    """Prints what came of each test. What a thread of a test raises is the test's."""

    def startTest(self, test: unittest.TestCase) -> None:
        self._of_threads: list[str] = []
        threading.excepthook = lambda raised: self._of_threads.append(repr(raised.exc_value))

    def tell(self, test: unittest.TestCase, error: Any = None) -> None:
        text = "".join(self._of_threads) if error is None else "".join(traceback.format_exception(*error))
        print(json.dumps({"test": test.id().rpartition(".")[2], "error": text}), flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.tell(test)

    def addError(self, test: Any, err: Any) -> None:
        self.tell(test, err)

    addFailure = addError


def multiply(x: int, y: int) -> int:
    return x * y


def sleep_and_fail(seconds: float) -> None:
    time.sleep(seconds)
    raise Exception("this is an exception")


def executor(max_workers: int) -> windlass.Executor:
    return windlass.Executor("local", cores=max_workers, max_pilots=1)


class Event:
    """What 3.14's tests hold calls back by: an event that is shared with pilots of this machine, as a file."""

    def __init__(self) -> None:
        self.path = os.path.join(tempfile.mkdtemp(), "set")

    def set(self) -> None:
        Path(self.path).touch()

    def wait(self) -> bool:
        while not os.path.exists(self.path):
            time.sleep(0.01)
        return True


def cases(tests: Everything, group: str) -> Iterable[type[unittest.TestCase]]:
    """What a group runs: tests of a future alone; of `wait` and `as_completed`, with calls in threads and with calls on pilots."""
    if group == "futures":
        yield tests.FutureTests
        return
    if group == "threads":
        yield tests.ThreadPoolWaitTests
        yield type("AsCompleted", (tests.ThreadPoolMixin, tests.AsCompletedTests, tests.BaseTestCase), {})
        return
    tests.replace("mul", multiply)
    tests.replace("sleep_and_raise", sleep_and_fail)
    ours: dict[str, Any] = {"executor_type": staticmethod(executor), "create_event": staticmethod(Event)}
    for case in (tests.WaitTests, tests.AsCompletedTests):
        yield type(case.__name__, (tests.ExecutorMixin, case, tests.BaseTestCase), ours)


def main(group: str) -> None:
    folder = where_they_are()
    assert folder is not None
    concurrent.futures._base.Future = concurrent.futures.Future = Future  # type: ignore[misc]
    support: Any = importlib.import_module("test.support")
    support.SHORT_TIMEOUT, support.verbose = PATIENCE, False
    tests = Everything(folder)
    suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, cases(tests, group)))
    suite.run(Told())


if __name__ == "__main__":
    main(sys.argv[1])
