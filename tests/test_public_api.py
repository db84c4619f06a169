"""What programs may build on: every public name is documented and typed, is there under `windlass`, and says so where it cannot travel.

CONTRIBUTING.md says what is public, and what becomes of a name that is to go.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import windlass
from windlass import errors
from windlass.commands import CommandResult
from windlass.factory.keeper import Kept
from windlass.messages import Goodbye

#: Packages and modules that are public beside `windlass` itself.
MODULES = ("environment", "testing")
ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


def own(thing: object) -> bool:
    """Whether it is ours: not inherited from the standard library."""
    return str(getattr(thing, "__module__", "")).startswith("windlass")


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, and the methods and properties of classes, that a program may call, with their dotted names."""
    for name in windlass.__all__:
        value = getattr(windlass, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value.__init__
            for word, member in inspect.getmembers(value):
                called = member.fget if isinstance(member, property) else member
                if not word.startswith("_") and inspect.isroutine(called):
                    yield f"{name}.{word}", called


def test_dir_shows_the_public_names_and_nothing_else() -> None:
    """Whoever types ``windlass.`` and Tab sees what there is to use."""
    shown = [name for name in dir(windlass) if not name.startswith("__")]
    assert shown == sorted(name for name in windlass.__all__ if not name.startswith("__"))


def test_what_is_printed_leaves_out_what_nobody_would_read() -> None:
    """The whole status within the numbers, and of a command what Windlass notes for itself."""
    with windlass.Manager() as manager:
        assert "status" not in repr(manager.stats)
        assert manager.stats.status["calls"]["submitted"] == 0
    assert repr(CommandResult(0, host="n1", packed=("out",))).endswith("host='n1')")


@pytest.mark.parametrize("name", [name for name in windlass.__all__ if not name.startswith("__")])
def test_a_public_name_is_documented(name: str) -> None:
    """With a docstring of its own: a first line that ends as a sentence, or goes on."""
    value = getattr(windlass, name)
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text, name
    first, _, more = text.strip().partition("\n")
    assert first.rstrip().endswith((".", ":")) or more.strip(), first


def test_what_may_be_called_is_documented() -> None:
    """Methods, properties and functions; an ``__init__`` may be explained by its class."""
    bare = [name for name, called in public_functions() if own(called) and "." in name and not inspect.getdoc(called)]
    assert not bare


def test_what_may_be_called_is_typed() -> None:
    """Each argument and each result."""
    bare: list[str] = []
    for name, called in public_functions():
        if own(called):
            signature = inspect.signature(called)
            bare += [
                f"{name}({each.name})" for each in signature.parameters.values() if each.annotation is each.empty and each.name != "self"
            ]
            bare += [f"{name} ->"] if signature.return_annotation is signature.empty else []
    assert not bare


@pytest.mark.parametrize("name", MODULES)
def test_public_modules_are_there(name: str) -> None:
    """By ``import windlass.NAME``, with a docstring."""
    assert importlib.import_module(f"windlass.{name}").__doc__


def test_public_names_stand_where_their_types_say() -> None:
    """A pickle names a class by its home: that is an import path as well, and leads to the same class."""
    for name in windlass.__all__:
        value = getattr(windlass, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert getattr(importlib.import_module(value.__module__), name) is value


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_travels_between_processes(kind: type[Exception]) -> None:
    """With its text and its facts: a process pool hangs on an exception that it cannot read."""
    error = kind("pool", "shrot", ["short"], "(a hint)") if kind is errors.UnknownName else kind("what happened")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (kind, str(error), vars(error))


def double(number: int) -> int:
    return 2 * number


def test_plain_descriptions_travel() -> None:
    """What only says what is wanted can be pickled: calls, libraries, pools."""
    for thing in (windlass.FunctionCall("lib", "double", 1), windlass.Library("lib", double), windlass.Pool("slurm", cores=8)):
        assert repr(pickle.loads(pickle.dumps(thing))) == repr(thing)


def test_what_belongs_to_a_process_says_so(nothing_left_running: None) -> None:
    """A function with a manager, a factory or an executor among its globals is refused with what to do instead."""
    with windlass.Manager() as manager, windlass.Factory(manager, "fake") as factory:
        pool = windlass.Executor(None, manager=manager)
        for thing, words in (
            (manager, "a manager"),
            (factory, "a factory"),
            (pool, "an executor"),
            (pool.with_options(retries=1), "an executor"),
        ):
            with pytest.raises(windlass.NotPicklable, match=f"^{words} cannot be pickled, as it belongs to the process that made it"):
                pickle.dumps(thing)
            with pytest.raises(windlass.NotPicklable, match=f"^{words} cannot be pickled.*submit\\(f, future\\)"):
                pool.submit(lambda: thing)  # noqa: B023
        pool.shutdown()


def test_a_factory_that_outlives_its_manager_says_nothing() -> None:
    """What it has to tell when the manager closes is told to nobody, and is no failure of the factory."""
    with windlass.Manager() as manager:
        port = manager.open_port("factory", "f", lambda message: None)
    core = SimpleNamespace(pool=None)
    kept = Kept("f", 0, core, None, port=port)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    kept.send(Goodbye("the factory closed"))
    assert kept.manager_gone


@pytest.mark.parametrize(("setting", "status"), [("", 1), ("1", 0)])
def test_python_without_the_interpreters_lock_is_refused(setting: str, status: int) -> None:
    """With what to do; who wants to try it can."""
    program = "import sys; sys._is_gil_enabled = lambda: False; import windlass"
    env = {**os.environ, "WINDLASS_FREE_THREADED": setting}
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == status
    assert ("Windlass is not tried on free-threaded Python" in ran.stderr) == (status == 1)


def test_everything_imports_without_a_warning() -> None:
    """Of a newer Python, say: each module, with warnings as errors."""
    program = (
        "import importlib, pkgutil, windlass\n"
        "for one in pkgutil.walk_packages(windlass.__path__, 'windlass.'):\n"
        "    if not one.name.endswith(('__main__', 'condor_helper')):\n"
        "        importlib.import_module(one.name)\n"
        "[getattr(windlass, name) for name in windlass.__all__]\n"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert (ran.returncode, ran.stderr) == (0, "")
