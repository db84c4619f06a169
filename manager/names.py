"""How people read what a call calls: the names of its library and its function. Pure.

Every list, page, report and record of a failure asks here, so that one function has one name everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from windlass.manager.libraries import LibraryState
from windlass.messages import FunctionDef, FunctionId, LibraryId

#: Characters of one name: programs may give any.
NAME_MOST: Final = 300
#: A function whose definition the manager has forgotten.
UNKNOWN: Final = "?"


class Names:
    """Of what stands in a manager's books, which it looks up there."""

    def __init__(self, libraries: Mapping[LibraryId, LibraryState], functions: Mapping[FunctionId, FunctionDef]) -> None:
        self._libraries, self._functions = libraries, functions

    def library(self, library: LibraryId) -> str:
        """Of a version, also of one that is not installed: its id begins with it."""
        state = self._libraries.get(library)
        return (state.spec.name if state is not None else library.rpartition("@")[0] or library)[:NAME_MOST]

    def function(self, function: FunctionId) -> str:
        """Without its library."""
        known = self._functions.get(function)
        return known.name[:NAME_MOST] if known is not None else UNKNOWN

    def whole(self, library: LibraryId, function: FunctionId) -> str:
        """``library.function``."""
        return f"{self.library(library)}.{self.function(function)}"
