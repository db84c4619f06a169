"""Which functions are async: what both ends ask of a function before they call it. Costs slots no import."""

from __future__ import annotations

import functools
from typing import Any, Final, cast

#: The flag of a code object that was made by ``async def``, from the interpreter's code.h.
_CO_COROUTINE: Final = 0x80


def is_async(function: Any) -> bool:
    """True if a call of it gives a coroutine, as far as can be seen: an ``async def``, also inside of partials and methods, or an object
    with an async ``__call__``, or what `inspect.markcoroutinefunction` has marked."""
    while isinstance(function, functools.partial):
        function = function.func
    if getattr(function, "_is_coroutine_mark", None) is not None:
        return True
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None and not isinstance(function, type):
        code = getattr(getattr(cast("Any", type(function)), "__call__", None), "__code__", None)  # noqa: B004
    return bool(getattr(code, "co_flags", 0) & _CO_COROUTINE)
