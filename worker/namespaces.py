"""Which classes are meant by the numbers that programs give to theirs.

Theory of operation
-------------------
A class that travels by value has a number, given by the program that has it. cloudpickle keeps a table of them for the whole process, and
whenever a class of a known number comes, the class that is there is made to what has come. A slot runs functions of many times, each of
which may know the class in another state. So each function has a *namespace*: a table of its own, which is put in the place of
cloudpickle's. A class goes back to the program by its number, which it has in all of them.

cloudpickle makes a new class before it looks whether it has one of that number, so that ``__init_subclass__`` and metaclasses note one
that nobody will see, with each argument. Here it looks first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakValueDictionary

from windlass.pickling import NUMBER_PLACES

#: Classes by number. The functions that have a class keep it.
Namespace = WeakValueDictionary[str, Any]

_cloudpickle: Any = None


def prepare() -> None:
    """Load cloudpickle, once per process and its forks. Raises `ImportError` where the environment has none."""
    global _cloudpickle
    if _cloudpickle is None:
        _cloudpickle = importlib.import_module("cloudpickle.cloudpickle")
        for make, place in NUMBER_PLACES.items():
            setattr(_cloudpickle, make, _looks_first(getattr(_cloudpickle, make), place))


def in_use() -> Namespace:
    """The namespace from which classes are taken now."""
    found: Namespace = Namespace() if _cloudpickle is None else _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
    return found


def use(namespace: Namespace) -> None:
    """Take classes from this one, in all threads. Nothing happens where there is no cloudpickle, as no class comes by value."""
    if _cloudpickle is not None:
        _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID = namespace


def _looks_first(make: Callable[..., type], place: int) -> Callable[..., type]:
    """As `make`, but for a class that is there; ``place``: of the number among its arguments."""

    @wraps(make)
    def make_or_find(*arguments: Any) -> type:
        known: type | None = in_use().get(arguments[place])
        return make(*arguments) if known is None else known

    return make_or_find
