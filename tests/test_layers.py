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
    "manager/core.py",
    "manager/calls.py",
    "manager/placement.py",
    "manager/workers.py",
    "manager/demand.py",
    "worker/backlog.py",
    "worker/lifetime.py",
    "factory/planner.py",
    "factory/pilots.py",
    "src/windlass/session.py",
    "src/windlass/framing.py",
)

#: Sockets, processes, threads, clocks, files, log handlers: what a core asks its shell for.
# fmt: off
IO = {
    "_thread", "asyncio", "concurrent", "contextvars", "ctypes", "fcntl", "http", "io", "logging", "mmap", "multiprocessing", "os",
    "pathlib", "psutil", "queue", "rich", "sched", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "subprocess",
    "sys", "tempfile", "threading", "time", "urllib",
}
# fmt: on

#: What a core may know of Windlass besides other cores: records, errors, pure helpers.
PURE = {
    "windlass.messages",
    "windlass.errors",
    "windlass.units",
    "windlass.manager.libraries",
    "windlass.factory.pool",
    "windlass.factory.backend",
}

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


@pytest.mark.parametrize("core", CORES)
def test_a_core_does_no_io(core: str) -> None:
    """A core takes `now` as an argument and returns what is to be done; a test drives it with plain calls."""
    assert {name for name in imported(ROOT / core) if name.split(".")[0] in IO} == set()


@pytest.mark.parametrize("core", CORES)
def test_a_core_knows_only_cores_and_records(core: str) -> None:
    """Else it would reach a socket by way of a neighbour."""
    allowed = PURE | {module_name(other) for other in CORES}
    own = {name for name in imported(ROOT / core) if name.split(".")[0] == "windlass"}
    assert {name for name in own if name not in allowed and name.rpartition(".")[0] not in allowed} == set()


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("manager", ("windlass.worker", "windlass.cli")),
        ("worker", ("windlass.manager", "windlass.factory", "windlass.cli")),
        ("factory", ("windlass.worker", "windlass.cli")),
        ("src/windlass", ("windlass.cli",)),
    ],
)
def test_dependence_goes_one_way(part: str, forbidden: tuple[str, ...]) -> None:
    """Manager and worker know the messages and never each other; nothing imports the command line."""
    for module in modules(part):
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
