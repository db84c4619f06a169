"""Factories that this program has made and not started: the ``with`` is easily forgotten, and nothing starts pilots then.

A factory says so itself, by name; whoever tells a program that its calls wait for pilots looks here. What was made and dropped stays: it
was meant to be started.
"""

from __future__ import annotations

from typing import Final

#: By the names of their managers. Few: of a manager with more than one the latest is named.
_made: Final[dict[str, str]] = {}


def note(manager: str, factory: str) -> None:
    """A factory has been made."""
    _made[manager] = factory


def forget(manager: str) -> None:
    """One was started."""
    _made.pop(manager, None)


def of(manager: str) -> str:
    """The name of the latest that was made for this manager and not started; "": none."""
    return _made.get(manager, "")
