"""The layers: cores do no I/O, parts depend one way, and what a worker loads is light.

The modules are read, not imported, so that nothing here depends on what they do when loaded.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Modules that decide: plain state in, instructions out.
CORES = (
    "manager/books.py",
    "manager/dispatch.py",
    "manager/recalls.py",
    "manager/heldup.py",
    "manager/prefetch.py",
    "manager/near.py",
    "manager/attempts.py",
    "manager/starts.py",
    "manager/core.py",
    "manager/libraries.py",
    "manager/calls.py",
    "manager/placement.py",
    "manager/workers.py",
    "manager/demand.py",
    "manager/means.py",
    "manager/failures.py",
    "manager/names.py",
    "manager/listing.py",
    "manager/pilots.py",
    "manager/advice.py",
    "manager/programs.py",
    "manager/unread.py",
    "manager/inputs.py",
    "worker/backlog.py",
    "worker/lifetime.py",
    "worker/lines.py",
    "factory/core.py",
    "factory/history.py",
    "factory/planner.py",
    "factory/pilots.py",
    "factory/telling.py",
    "factory/htcondor_options.py",
    "factory/htcondor_words.py",
    "factory/slurm_words.py",
    "factory/spending.py",
    "factory/pool.py",
    "factory/values.py",
    "src/windlass/session.py",
    "src/windlass/framing.py",
    "src/windlass/strangers.py",
    "src/windlass/permits.py",
    "src/windlass/addresses.py",
    "src/windlass/manifests.py",
    "manager/lineage.py",
    "manager/blocked.py",
    "manager/replicas.py",
    "manager/fetches.py",
    "manager/away.py",
    "manager/ties.py",
    "manager/told.py",
    "manager/causes.py",
    "manager/timeline.py",
    "manager/recorder.py",
    "manager/views.py",
    "src/windlass/elf.py",
    "src/windlass/testing/faults.py",
    "src/windlass/testing/story.py",
)

#: Sockets, processes, threads, clocks, files, log handlers: what a core asks its shell for.
# fmt: off
IO = {
    "_thread", "asyncio", "concurrent", "contextvars", "ctypes", "fcntl", "http", "io", "logging", "mmap", "multiprocessing", "os",
    "pathlib", "psutil", "queue", "rich", "sched", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "subprocess",
    "sys", "tempfile", "threading", "time", "urllib",
}
# fmt: on

#: Each knows one batch system.
BACKENDS = {f"windlass.factory.{name}" for name in ("local", "fake", "slurm", "htcondor")} | {"htcondor", "htcondor2"}


def module_name(path: str) -> str:
    """``manager/core.py`` → ``windlass.manager.core``; ``src/windlass/session.py`` → ``windlass.session``."""
    return ".".join(("windlass", *Path(path.removeprefix("src/windlass/")).with_suffix("").parts))


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports when it runs, wherever in it; imports for type checkers only are left out."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names


def modules(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).glob("*.py"))
    assert found
    return found


def path_of(name: str) -> Path | None:
    """The file of a module of Windlass; None for a name that is none."""
    found = (ROOT / "src" / Path(*name.split("."))).with_suffix(".py")
    package = ROOT / "src" / Path(*name.split(".")) / "__init__.py"
    return next((path for path in (found, package) if path.is_file()), None)


def reached(core: str) -> dict[str, set[str]]:
    """What a core imports, and what the modules of Windlass that it so reaches import, by module."""
    found: dict[str, set[str]] = {}
    waiting = [module_name(core)]
    while waiting:
        module = waiting.pop()
        path = path_of(module)
        if path is not None and module not in found:
            found[module] = imported(path)
            waiting += [name for name in found[module] if name.split(".")[0] == "windlass"]
    return found


@pytest.mark.parametrize("core", CORES)
def test_a_core_does_no_io(core: str) -> None:
    """A core takes `now` as an argument and returns what is to be done; nor does it reach a socket by way of a neighbour."""
    found = reached(core)
    assert module_name(core) in found, f"{core} is not there"
    found.pop("windlass", None)  # its lazy names are loaded by whoever asks for one
    found["windlass.factory.backend"] = found.get("windlass.factory.backend", set()) - {
        "pathlib",
        "pathlib.Path",
    }  # names paths, opens none
    wrong = {module: sorted(name for name in names if name.split(".")[0] in IO) for module, names in found.items()}
    assert {module: names for module, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("manager", ("windlass.worker", "windlass.cli", "windlass.testing")),
        ("worker", ("windlass.manager", "windlass.factory", "windlass.cli", "windlass.testing")),
        ("factory", ("windlass.worker", "windlass.cli", "windlass.testing")),
        ("src/windlass", ("windlass.cli", "windlass.testing")),
    ],
)
def test_dependence_goes_one_way(part: str, forbidden: tuple[str, ...]) -> None:
    """Manager and worker know the messages and never each other; nothing imports the command line."""
    for module in modules(part):
        if module.name == "__main__.py":
            continue  # it is the command line
        wrong = {name for name in imported(module) if any(name == one or name.startswith(one + ".") for one in forbidden)}
        assert wrong == set(), module


@pytest.mark.parametrize("part", ["manager", "worker"])
def test_only_the_factory_knows_batch_systems(part: str) -> None:
    """The executor may start a factory; it names no backend module."""
    for module in modules(part):
        assert imported(module) & BACKENDS == set(), module


@pytest.mark.parametrize("name", ["windlass", "windlass.messages", "windlass.worker.slot_api"])
def test_what_every_process_loads_is_light(name: str) -> None:
    """A worker says hello before it loads anything that it does not need for it; slots load this too."""
    heavy = {"cloudpickle", "numpy", "psutil", "cryptography", "jinja2", "rich", "asyncio", "argparse", "logging", "subprocess"}
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys, {name}; print(*sys.modules)"], capture_output=True, text=True, check=True, timeout=30
    )
    assert heavy & set(ran.stdout.split()) == set()
