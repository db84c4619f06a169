"""Hoisted imports, proved by processes: modules that write down which process loads them, and how often.

Theory of operation: a *loud* module appends a line with its name and process id to the file that ``IMPORT_LOG`` names when it is loaded.
The variable is set by a library's ``env=``, so that loads in the program leave no line.
"""

# pyright: reportUnknownMemberType=false
# pytest's syspath_prepend has no types.

from __future__ import annotations

import itertools
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import windlass
from windlass import FunctionCall

LOUD = """
import os
if "IMPORT_LOG" in os.environ:
    with open(os.environ["IMPORT_LOG"], "a") as log:
        log.write(f"{__name__} {os.getpid()}\\n")
LOADED_BY = os.getpid()
def loaded_by():
    return LOADED_BY
"""
numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of this module share a manager and its pilot."""


@pytest.fixture
def manager(shared_manager: windlass.Manager) -> Iterator[windlass.Manager]:
    """The shared manager; the test's libraries are removed after it."""
    yield shared_manager
    for name in shared_manager.libraries:
        shared_manager.remove_library(name)


class Modules:
    """A folder on the program's path, with modules of names that were never used before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.parent / "import.log"
        self.env = {"IMPORT_LOG": str(self.log)}

    def write(self, source: str = LOUD, *, package: bool = False) -> str:
        """A new module, or a package whose ``sub`` has this source; its name."""
        name = f"loud_{next(numbers)}"
        path = self.folder / f"{name}.py"
        if package:
            (self.folder / name).mkdir()
            (self.folder / name / "__init__.py").touch()
            path = self.folder / name / "sub.py"
        path.write_text(source)
        return name

    def loads(self, name: str) -> list[int]:
        """The processes that have loaded a module, outside of the program."""
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [int(pid) for module, pid in lines if module == name]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    """Loud modules that the program can import, as from beside its script."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Modules(folder)
    for name in [name for name in sys.modules if name.startswith("loud_")]:
        del sys.modules[name]


def program(source: str, name: str = "function") -> Callable[..., Any]:
    """A function as a program in ``__main__`` would have it."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "<the program>", "exec"), namespace)
    found: Callable[..., Any] = namespace[name]
    return found


STYLES = {
    "a global": "import {m}\ndef use(): return {m}.LOADED_BY",
    "an alias": "import {m} as other\ndef use(): return other.LOADED_BY",
    "a from-import": "from {m} import loaded_by as other\ndef use(): return other()",
    "a body": "def use():\n    import {m}\n    return {m}.LOADED_BY",
    "a from-import in a body": "def use():\n    from {m} import LOADED_BY\n    return LOADED_BY",
    "a helper": "def help():\n    import {m}\n    return {m}.LOADED_BY\ndef use(): return help()",
    "an inner function": "def use():\n    def inner():\n        import {m}\n        return {m}.LOADED_BY\n    return inner()",
    "a lambda in a list": "import {m}\nhelpers = [lambda: {m}.LOADED_BY]\ndef use(): return helpers[0]()",
    "a closure": "def make():\n    import {m}\n    def use(): return {m}.LOADED_BY\n    return use\nuse = make()",
    "a method": "class Tool:\n    def do(self):\n        import {m}\n        return {m}.LOADED_BY\nuse = Tool().do",
    "a default": "import {m}\ndef use(m={m}): return m.LOADED_BY",
    "a submodule": "import {p}.sub\ndef use(): return {p}.sub.LOADED_BY",
    "a submodule in a body": "def use():\n    from {p} import sub\n    return sub.LOADED_BY",
}


@pytest.mark.parametrize("style", STYLES)
def test_automatic_imports_are_found_and_loaded_once_per_instance(
    manager: windlass.Manager, modules: Modules, gate: Any, style: str
) -> None:
    """However a function comes by a module, the zygote loads it, once, and both slots have that one."""
    package = "{p}" in STYLES[style]
    name = modules.write(package=package)
    function = program(
        "import os\n"
        + STYLES[style].format(m=name, p=name)
        + "\ndef function(gate):\n    gate.meet(2)\n    return os.getpid(), os.getppid(), use()"
    )
    manager.install_library("lib", function, env=modules.env, slots=2)
    futures = [manager.submit(FunctionCall("lib", "function", gate)) for _ in range(4)]
    seen = [future.result(20) for future in futures]
    assert len({slot for slot, _, _ in seen}) == 2
    [zygote] = {zygote for _, zygote, _ in seen}
    assert {loader for _, _, loader in seen} == {zygote}
    assert modules.loads(f"{name}.sub" if package else name) == [zygote]


@pytest.mark.parametrize("as_module", [True, False])
def test_explicit_imports_are_modules_or_names(manager: windlass.Manager, modules: Modules, gate: Any, as_module: bool) -> None:
    """``imports=`` hoists what the functions never mention; modules and dotted names are the same."""
    name = modules.write(package=True)
    module = f"{name}.sub"

    def function(gate: Any, module: str) -> tuple[int, int, int]:
        import importlib

        gate.meet(2)
        loaded: int = importlib.import_module(module).LOADED_BY
        return os.getpid(), os.getppid(), loaded

    given: str | ModuleType = __import__(module, fromlist=["sub"]) if as_module else module
    manager.install_library("lib", function, imports=[given], env=modules.env, slots=2)
    futures = [manager.submit(FunctionCall("lib", "function", gate, module)) for _ in range(4)]
    seen = [future.result(20) for future in futures]
    [zygote] = {zygote for _, zygote, _ in seen}
    assert {loader for _, _, loader in seen} == {zygote}
    assert modules.loads(module) == [zygote]


def test_auto_may_stand_among_explicit_imports(manager: windlass.Manager, modules: Modules) -> None:
    """``imports=["auto", name]`` hoists what is named and what is found."""
    named, found = modules.write(), modules.write()
    function = program(f"def function():\n    import {found}\n    import os\n    return os.getpid(), os.getppid(), {found}.LOADED_BY")
    manager.install_library("lib", function, imports=["auto", named], env=modules.env)
    [(_, zygote, _)] = {manager.submit(FunctionCall("lib", "function")).result(20)}
    assert modules.loads(named) == modules.loads(found) == [zygote]


def test_without_imports_the_call_loads_for_itself(manager: windlass.Manager, modules: Modules) -> None:
    """``imports=None`` hoists nothing: the evidence above is not there by chance."""
    name = modules.write()
    function = program(f"def function():\n    import {name}, os\n    return os.getpid(), os.getppid(), {name}.LOADED_BY")
    # The call's own import finds the module, since the code of a local one comes with the function.
    manager.install_library("lib", function, imports=None, env=modules.env, slots=1)
    slot, _, loader = manager.submit(FunctionCall("lib", "function")).result(20)
    assert slot == loader
    assert modules.loads(name) == [slot]


def test_spawned_slots_load_for_themselves(manager: windlass.Manager, modules: Modules, gate: Any) -> None:
    """With ``start="spawn"`` there is no fork to share through: each slot loads the module once, before its first call."""
    name = modules.write()
    function = program(f"import os\ndef function(gate):\n    import {name}\n    gate.meet(2)\n    return os.getpid(), {name}.LOADED_BY")
    manager.install_library("lib", function, env=modules.env, slots=2, start="spawn")
    futures = [manager.submit(FunctionCall("lib", "function", gate)) for _ in range(6)]
    seen = {future.result(20) for future in futures}
    assert len(seen) == 2
    assert all(slot == loader for slot, loader in seen)
    assert sorted(modules.loads(name)) == sorted(slot for slot, _ in seen)


def test_mode_fork_shares_the_module_with_every_call(manager: windlass.Manager, modules: Modules) -> None:
    """A call in a fresh fork finds the module loaded by the zygote."""
    name = modules.write()
    function = program(f"def function():\n    import {name}, os\n    return os.getpid(), {name}.LOADED_BY")
    manager.install_library("lib", function, env=modules.env, mode="fork")
    futures = [manager.submit(FunctionCall("lib", "function")) for _ in range(5)]
    seen = [future.result(20) for future in futures]
    assert len({child for child, _ in seen}) == 5
    assert modules.loads(name) == list({loader for _, loader in seen})


def test_an_explicit_import_that_fails_fails_all_calls_at_once_after_one_try(manager: windlass.Manager, modules: Modules) -> None:
    """Calls that wait and calls that come later end with `LibraryFailed`: module, traceback, its own line; it was tried once."""
    name = modules.write(LOUD + "raise RuntimeError('no licence found')\n")
    manager.install_library("lib", program("def function(): return 1"), imports=[name], env=modules.env)
    futures = [manager.submit(FunctionCall("lib", "function")) for _ in range(10)]
    for future in futures:
        with pytest.raises(windlass.LibraryFailed, match=f"(?s)import of '{name}' for library 'lib' failed.*{name}.py.*no licence found"):
            future.result(20)
    with pytest.raises(windlass.LibraryFailed, match="no licence found"):
        manager.submit(FunctionCall("lib", "function")).result(20)
    assert len(modules.loads(name)) == 1


def test_an_explicit_import_that_does_not_exist_says_so(manager: windlass.Manager) -> None:
    """The worker's own words, with the name."""
    manager.install_library("lib", program("def function(): return 1"), imports=["no_such_module_here"])
    with pytest.raises(windlass.LibraryFailed, match="No module named 'no_such_module_here'"):
        manager.submit(FunctionCall("lib", "function")).result(20)


def test_a_library_mended_after_a_failed_import_works(manager: windlass.Manager, modules: Modules) -> None:
    """A failed version does not stand in the way of the next one of the same name."""
    name = modules.write("raise ImportError('not yet')")
    function = program("def function(): return 1")
    manager.install_library("lib", function, imports=[name])
    with pytest.raises(windlass.LibraryFailed, match="not yet"):
        manager.submit(FunctionCall("lib", "function")).result(20)
    manager.install_library("lib", function)
    assert manager.submit(FunctionCall("lib", "function")).result(20) == 1


@pytest.mark.parametrize("broken", ["missing", "raises"])
def test_an_automatic_import_that_fails_is_left_to_the_call(manager: windlass.Manager, modules: Modules, broken: str) -> None:
    """A function that copes with the failure runs; one that does not gets it as its own exception."""
    name = "no_such_module_here" if broken == "missing" else modules.write("raise ImportError('broken here')")
    cope = program(f"def cope():\n    try:\n        import {name}\n    except ImportError:\n        return 'coped'", "cope")
    need = program(f"def need():\n    import {name}", "need")
    manager.install_library("lib", cope, need)
    assert manager.submit(FunctionCall("lib", "cope")).result(20) == "coped"
    with pytest.raises(ImportError, match="No module named 'no_such_module_here'" if broken == "missing" else "broken here"):
        manager.submit(FunctionCall("lib", "need")).result(20)


def test_an_automatic_import_that_ends_the_interpreter_is_dropped(manager: windlass.Manager, modules: Modules) -> None:
    """A module that kills whoever loads it costs the library nothing but that import."""
    name = modules.write("import os\nos._exit(7)")
    function = program(f"def function(load):\n    if load:\n        import {name}\n    return 'alive'")
    manager.install_library("lib", function)
    assert manager.submit(FunctionCall("lib", "function", False)).result(20) == "alive"
    with pytest.raises(windlass.SlotDied, match="status 7"):
        manager.submit(FunctionCall("lib", "function", True)).result(20)


def test_the_modules_of_a_context_are_hoisted(manager: windlass.Manager, modules: Modules) -> None:
    """What the context function imports is loaded by the zygote although each slot makes a context of its own."""
    name = modules.write()
    context = program(f"def context():\n    import {name}\n    return {name}.LOADED_BY", "context")
    function = program("import os\ndef function(context):\n    return os.getppid(), context")
    manager.install_library("lib", function, context=context, env=modules.env)
    zygote, loader = manager.submit(FunctionCall("lib", "function")).result(20)
    assert zygote == loader
    assert modules.loads(name) == [zygote]


def test_an_executor_hoists_what_a_new_function_needs_without_disturbing_busy_slots(
    pool: windlass.Executor, modules: Modules, gate: Any
) -> None:
    """The call that runs stays where it is, as long as it likes; the new function finds its module loaded by a new zygote."""
    name = modules.write()

    def hold() -> int:
        gate.pass_through("held")
        return os.getpid()

    held = pool.submit(hold)
    gate.wait_for(1)
    function = program(f"def function():\n    import {name}, os\n    return os.getpid(), os.getppid(), {name}.LOADED_BY")
    slot, zygote, loader = pool.submit(function).result(20)
    assert loader == zygote
    assert not held.done()
    gate.open()
    assert held.result(20) not in (slot, zygote)


def test_many_closures_start_one_zygote(pool: windlass.Executor) -> None:
    """Functions of a loop differ in content and share one instance: they are sent, not started."""

    def make(number: int) -> Callable[[], tuple[int, int]]:
        def function() -> tuple[int, int]:
            return number, os.getppid()

        return function

    futures = [pool.submit(make(number)) for number in range(400)]
    seen = [future.result(20) for future in futures]
    assert [number for number, _ in seen] == list(range(400))
    assert len({zygote for _, zygote in seen}) == 1
