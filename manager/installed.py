"""The libraries that a program has installed, each with what its calls are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from windlass.errors import UnknownName
from windlass.manager.call import Target
from windlass.manager.library import Library
from windlass.messages import LibrarySpec


class Installed:
    """The newest version under a library's name."""

    __slots__ = ("library", "spec", "targets")

    def __init__(self, spec: LibrarySpec, library: Library, remembered: Mapping[str, bytes]) -> None:
        self.spec = spec
        self.library = library
        self.targets = {
            one.name: Target(
                spec.id,
                one.id,
                (library.name, one.name),
                _parameters(library.functions[one.name]),
                spec.code,
                spec=spec,
                content=remembered.get(one.name, b""),
            )
            for one in spec.functions
        }

    def has_no(self, function: str) -> UnknownName:
        """What is raised for a function that it does not have."""
        return UnknownName("function", function, self.targets, within=f"in library {self.library.name!r}")


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()  # some functions written in C
