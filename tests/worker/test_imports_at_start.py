"""What a worker and a slot import before they serve: each module costs time and operations on the shared file system, in every pilot.

Counts and names are judged, never seconds. When one of these fails, import the module where it is needed, or raise the budget in the commit
that says why.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import windlass

#: Modules of a worker that has connected and has no library yet (218 with Python 3.11), and of a slot that has served (146).
WORKER_MODULES, SLOT_MODULES = 235, 165
#: What is the interpreter's, and that of some systems.
INTERPRETERS = {"sitecustomize", "usercustomize", "_distutils_hack", "apport_python_hook"}
#: Other packages that are not the standard library's.
WORKER_PACKAGES = {"windlass", "msgspec", "uvloop"} | INTERPRETERS
SLOT_PACKAGES = {"windlass", "msgspec", "cloudpickle"} | INTERPRETERS
#: Large parts of the standard library that neither has any use for at its start.
HEAVY = {"argparse", "email", "http", "json", "multiprocessing", "pydoc", "sqlite3", "unittest", "urllib.request", "xml"}
#: And what slots have no use for besides: they do no input and output but their own.
HEAVY_IN_SLOTS = HEAVY | {"asyncio", "concurrent", "ssl", "subprocess", "tempfile", "random", "shutil"}


#: Its list of its own modules lacks these; the last since 3.15, where a distribution has one that names its packages.
_OF_PYTHON = {"__main__", "__mp_main__", "_frozen_importlib", "_frozen_importlib_external", "_missing_stdlib_info"}


def strangers(modules: set[str], packages: set[str]) -> set[str]:
    """Top-level modules that are neither of these nor the standard library's."""
    names = {name.partition(".")[0] for name in modules}
    return names - packages - set(sys.stdlib_module_names) - _OF_PYTHON


def heavy(modules: set[str], names: set[str]) -> set[str]:
    return {module for module in modules if module in names}


def test_a_worker_imports_little_before_it_is_connected(tmp_path: Path) -> None:
    """Told by the interpreter's own log of imports, up to the moment at which the manager knows the worker."""
    log = tmp_path / "imports"
    with windlass.Manager() as manager, log.open("wb") as errors:
        words = ["-X", "importtime", "-m", "windlass.worker", "--connection", str(manager.pilot_file), "--scratch", str(tmp_path)]
        worker = subprocess.Popen([sys.executable, *words], stdin=subprocess.DEVNULL, stderr=errors)
        try:
            while not any(one["connected"] for one in manager.status()["workers"]):
                assert worker.poll() is None, log.read_text()
                time.sleep(0.01)  # only asking tells
            lines = log.read_text().splitlines()
        finally:
            worker.terminate()
            worker.wait()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    looked_for = {"_winapi", "_wmi", "nt", "msvcrt", "_overlapped", "typing_extensions"}  # and not there, or hidden
    modules -= looked_for | {"imported package"}
    assert "windlass.worker.main" in modules
    assert strangers(modules, WORKER_PACKAGES) == set()
    assert heavy(modules, HEAVY) == set()
    assert len(modules) <= WORKER_MODULES, sorted(modules)


def test_a_slot_has_little_but_what_its_library_imports() -> None:
    """A library of a function that imports nothing."""

    def loaded() -> list[str]:
        import sys

        return list(sys.modules)

    with windlass.Executor("local", cores=1) as pool:
        modules = set(pool.submit(loaded).result(60))
    assert "windlass.worker.slot" in modules
    assert strangers(modules, SLOT_PACKAGES) == set()
    assert heavy(modules, HEAVY_IN_SLOTS) == set()
    assert len(modules) <= SLOT_MODULES, sorted(modules)
