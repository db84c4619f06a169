"""The `windlass.Manager` behind TaskVine's, and the name that it is found by.

Theory of operation
-------------------
TaskVine's programs name their manager when it is there already (``m.set_name("blast")``), Windlass's has its name from the start, as its
state folder and its certificate have it.  Until somebody has done something with the manager nobody can know it, so it may be ended, and
another one made under the new name at the same port.  Whoever takes the `manager` may do something with it: from then on its name stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import windlass
from windlass.errors import UsageError


class Standing:
    """A part of `windlass.taskvine.Manager`: what all other parts stand on."""

    def _stand(self, port: Any, name: str | None, options: Mapping[str, Any]) -> None:
        """Begin. Raises what `windlass.Manager` raises."""
        self._options = options
        self._native = windlass.Manager(port, name, **options)
        self._used = False

    @property
    def manager(self) -> windlass.Manager:
        """The manager of which this one is a view."""
        self._used = True
        return self._native

    @property
    def name(self) -> str:
        """What workers and the command line find it by."""
        return self._native.name

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._native.port

    def set_name(self, name: str) -> None:
        """Give it the name by which workers and the command line find it: before anything else is done with it.

        Raises `windlass.UsageError` later than that, and if another manager of yours has the name; this one is then closed.
        """
        if name == self.name:
            return
        if self._used:
            raise UsageError(f"set_name({name!r}): the manager is in use already; say it before, or write Manager(name={name!r})")
        port = self.port
        self._native.close()
        self._native = windlass.Manager(port, name, **self._options)
