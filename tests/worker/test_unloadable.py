"""What is told of what could not be loaded."""

from __future__ import annotations

import time
import types

import pytest

from windlass.worker.unloadable import detail_of


@pytest.mark.parametrize("module", [time, types.ModuleType("of_a_namespace")])
def test_a_module_without_a_file_lacks_a_name(module: types.ModuleType) -> None:
    """As pickle of Python 3.15 has it: the module itself says so."""
    error = AttributeError(f"module {module.__name__!r} has no attribute 'nowhere'", name="nowhere", obj=module)
    detail = detail_of("the function 'x'", error)
    assert detail.text.startswith(
        f"the function 'x' cannot be loaded on the worker: module {module.__name__!r} has no 'nowhere' there: another version"
    )
    assert not detail.unpicklable
