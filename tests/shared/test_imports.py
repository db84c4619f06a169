"""Imports: those that are found in functions and all that travels with them, and those that are asked for."""

# Functions and values of any type are what is tested here, and what a module keeps to itself.
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportPrivateUsage=false

from __future__ import annotations

import functools
import importlib.machinery
import os
import pickle
import sys
import types
import xml.dom.minidom as some_dom
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from windlass.errors import NotPicklable, UsageError
from windlass.functions import look_at
from windlass.imports import explicit_imports, find_imports
from windlass.messages import ImportSpec

here = sys.modules[__name__]


def found(fn: Callable[..., Any]) -> set[str]:
    specs = find_imports(fn)
    assert not any(spec.explicit for spec in specs)
    assert list(specs) == sorted(specs, key=lambda spec: spec.module)
    return {spec.module for spec in specs}


def helper(x: object) -> object:
    import wave

    return wave, x


def test_a_function_of_nothing_needs_nothing() -> None:
    def plain(x: int) -> int:
        return os.getpid() + len(sys.argv) + x

    assert found(plain) == set()


def test_modules_among_the_globals_are_found() -> None:
    def uses(x: Any) -> Any:
        return np.dot(x, x)

    assert found(uses) == {"numpy"}


def test_a_module_under_another_name_is_found_by_its_own() -> None:
    assert found(lambda: some_dom.parse) == {"xml.dom.minidom"}


def test_what_was_imported_from_a_module_needs_that_module() -> None:
    assert found(lambda x: Decimal(x)) == {"decimal"}


def test_imports_in_bodies_are_found_with_the_submodules_that_they_use() -> None:
    def body() -> None:
        import csv
        import email.message  # pyright: ignore[reportUnusedImport]
        import xml.etree.ElementTree as tree
        from concurrent import futures
        from json import decoder, loads

        print(csv, email, tree, futures, loads, decoder)

    assert found(body) == {"csv", "email.message", "xml.etree.ElementTree", "concurrent", "concurrent.futures", "json", "json.decoder"}


def test_a_submodule_that_is_not_loaded_here_is_found_without_loading_it() -> None:
    def body() -> None:
        from wsgiref import handlers

        print(handlers)

    loaded = "wsgiref.handlers" in sys.modules, "wsgiref" in sys.modules
    assert found(body) == {"wsgiref", "wsgiref.handlers"}
    assert ("wsgiref.handlers" in sys.modules, "wsgiref" in sys.modules) == loaded


def test_functions_inside_functions_are_looked_into() -> None:
    def outer() -> object:
        def inner() -> object:
            return [__import__ for _ in (lambda: helper_import(),)]

        def helper_import() -> object:
            import sndhdr_like as likely  # type: ignore[import-not-found]

            return likely

        return inner

    assert found(outer) == {"sndhdr_like"}


def test_helpers_that_travel_along_are_looked_into() -> None:
    assert found(lambda x: helper(x)) == {"wave"}


def test_methods_of_classes_that_travel_along_are_looked_into() -> None:
    class Thing:
        def method(self) -> object:
            import plistlib

            return plistlib

        @staticmethod
        def other() -> object:
            import quopri

            return quopri

    assert found(lambda: Thing().method()) >= {"plistlib", "quopri"}
    assert found(Thing) >= {"plistlib", "quopri"}
    assert found(Thing().method) >= {"plistlib", "quopri"}


def test_closures_partials_and_decorated_functions_are_looked_into() -> None:
    def decorate(function: Callable[[], object]) -> Callable[[], object]:
        @functools.wraps(function)
        def wrapper() -> object:
            import stringprep

            return stringprep, function()

        return wrapper

    @decorate
    def decorated() -> object:
        import colorsys

        return colorsys

    assert found(decorated) == {"stringprep", "colorsys"}
    assert found(functools.partial(helper, Decimal(1))) == {"wave", "decimal"}


def test_an_import_that_may_fail_is_found_too_and_automatic() -> None:
    def tries() -> object:
        try:
            import no_such_module_here  # type: ignore[import-not-found]
        except ImportError:
            no_such_module_here = None
        return no_such_module_here

    assert find_imports(tries) == (ImportSpec("no_such_module_here", explicit=False),)


def test_an_installed_function_needs_its_module_and_no_more() -> None:
    assert found(np.linalg.norm) == {"numpy.linalg"}
    assert found(len) == set()


def test_relative_imports_start_at_the_functions_package() -> None:
    space: dict[str, Any] = {"__package__": "email", "__name__": "email.made_up"}
    exec("def relative():\n    from . import message\n    from .mime import text\n    return message, text\n", space)
    assert found(space["relative"]) == {"email", "email.message", "email.mime", "email.mime.text"}


def test_many_constants_before_an_import_do_not_confuse() -> None:
    lines = "\n".join(f"    x = ({number!r}, 'text {number}')" for number in range(600))
    space: dict[str, Any] = {}
    exec(f"def long():\n{lines}\n    import csv, bz2\n    from json import tool as t\n    return x, csv, bz2, t\n", space)
    assert found(space["long"]) == {"csv", "bz2", "json", "json.tool"}


def test_explicit_imports_are_modules_or_names_in_order_without_duplicates() -> None:
    assert explicit_imports([np, "scipy.stats", "numpy"]) == (ImportSpec("numpy", True), ImportSpec("scipy.stats", True))
    assert explicit_imports("csv") == explicit_imports(__import__("csv")) == (ImportSpec("csv", True),)
    assert explicit_imports([]) == ()


@pytest.mark.parametrize("name", ["", "a b", "a..b", ".a", "a.", "import", "a-b", "a.class", "1a", "os.path.join()"])
def test_names_that_no_module_can_have_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be the name of a module; write a dotted name, such as 'scipy\.stats'"):
        explicit_imports([name])


def test_an_import_statement_is_answered_with_the_name() -> None:
    with pytest.raises(UsageError, match="'import numpy as np' cannot be the name of a module; write a dotted name, such as 'numpy'"):
        explicit_imports(["import numpy as np"])


@pytest.mark.parametrize("value", [3, None, b"numpy", np.dot])
def test_things_that_are_no_modules_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"imports: .* is of type .*; write a module or its dotted name"):
        explicit_imports([value])


def test_what_is_no_list_is_refused() -> None:
    with pytest.raises(UsageError, match="imports=3 is no list of modules"):
        explicit_imports(3)  # type: ignore[arg-type]


def test_a_module_that_only_this_process_has_is_refused() -> None:
    for module in (types.ModuleType("made_here"), sys.modules["__main__"], here):
        with pytest.raises(UsageError, match="no other process can import"):
            explicit_imports([module])


def test_a_function_of_an_installed_module_goes_by_name_and_its_body_is_searched_all_the_same() -> None:
    """Its module's own imports load with it; those inside its body would otherwise be done by the first call of each slot."""
    from windlass.demo import tile

    assert [spec.module for spec in find_imports(tile)] == ["rich.text"]


LAZY = """
lazy import colorsys as colours
lazy import xml.dom.pulldom
lazy from textwrap import dedent
lazy import of_nobody

def uses(x):
    return colours, xml.dom.pulldom.parse, dedent, helper(x)

def helper(x):
    lazily = of_nobody if x else None
    return lazily

def plain(x):
    return colours, xml.dom.pulldom.parse, dedent
"""


@pytest.mark.skipif(sys.version_info < (3, 15), reason="lazy imports came with Python 3.15")
def test_lazy_imports_are_made_when_the_function_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its first use would: what travels is the module, with the submodules that are used; one that cannot be had is told."""
    script = types.ModuleType("script_with_lazy_imports")
    monkeypatch.setitem(sys.modules, "script_with_lazy_imports", script)
    script.__spec__ = importlib.machinery.ModuleSpec(script.__name__, importlib.machinery.SourceFileLoader(script.__name__, "script.py"))
    exec(compile(LAZY, "script.py", "exec"), script.__dict__)
    assert found(script.plain) >= {"colorsys", "xml.dom.pulldom", "textwrap"}
    assert pickle.loads(look_at(script.plain).blob)(1)[1].__name__ == "parse"
    with pytest.raises(NotPicklable, match=r"global 'of_nobody' .*No module named 'of_nobody'"):
        find_imports(script.uses)
