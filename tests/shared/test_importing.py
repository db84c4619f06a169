"""What a module makes when it is imported: welcome in programs, refused in the processes of a worker."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from windlass.errors import UsageError
from windlass.worker.slot_api import STATE

Write = Callable[[str], str]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Write]:
    """Writes a module that can be imported; gives its name."""
    monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]

    def write_it(text: str) -> str:
        (tmp_path / "makes_one.py").write_text(text)
        importlib.invalidate_caches()
        return "makes_one"

    yield write_it
    sys.modules.pop("makes_one", None)


@pytest.fixture
def in_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a zygote or a slot."""
    monkeypatch.setattr(STATE, "rows", object())


ASKS = """
from windlass.importing import refuse_on_import
def make(): refuse_on_import("a Manager")
def make_at_import(): make()
{line}
"""


@pytest.mark.usefixtures("in_worker")
@pytest.mark.parametrize("line", ["make_at_import()", "class Lab:\n    make()"])
def test_a_module_that_makes_a_manager_when_a_worker_imports_it_is_refused(write: Write, line: str) -> None:
    """Whatever is between its top and the manager."""
    with pytest.raises(UsageError, match=r"module 'makes_one' makes a Manager when it is imported.*make it in a function, or below"):
        importlib.import_module(write(ASKS.format(line=line)))


@pytest.mark.usefixtures("in_worker")
def test_a_function_may_make_one_in_a_worker(write: Write) -> None:
    """A call, or the function of a context."""
    importlib.import_module(write(ASKS.format(line=""))).make_at_import()


def test_a_program_may_make_one_when_it_imports(write: Write) -> None:
    importlib.import_module(write(ASKS.format(line="make_at_import()")))


@pytest.mark.usefixtures("in_worker")
@pytest.mark.parametrize(
    ("code", "what"), [("Manager()", "a Manager"), ("Factory('night')", "a Factory"), ("Executor('slurm', manager=lab)", "an Executor")]
)
def test_managers_factories_and_executors_ask(write: Write, code: str, what: str) -> None:
    """The first thing that they do: nothing has been made that would have to go."""
    text = f"import windlass\nlab = None\nwindlass.{code}\n"
    with pytest.raises(UsageError, match=f"module 'makes_one' makes {what} when it is imported"):
        importlib.import_module(write(text))
