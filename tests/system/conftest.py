"""Fixtures of the system tests: real managers, real local pilots, and proof after each test that no process stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import windlass


@pytest.fixture(autouse=True)
def leaves_nothing_running(nothing_left_running: None) -> None:
    """Every system test is followed by a look at the processes."""


@pytest.fixture
def manager(leaves_nothing_running: None) -> Iterator[windlass.Manager]:
    """A manager without pilots."""
    with windlass.Manager() as manager:
        yield manager


@pytest.fixture
def start_factory(manager: windlass.Manager) -> Iterator[Callable[..., windlass.Factory]]:
    """Starts a factory for the manager, local unless told otherwise, and ends it after the test."""
    with ExitStack() as factories:

        def start(backend: str = "local", **options: Any) -> windlass.Factory:
            if backend == "local":
                options = {"cores": 2, "max_pilots": 1, **options}
            return factories.enter_context(windlass.Factory(manager, backend, **options))

        yield start


@pytest.fixture
def served(manager: windlass.Manager, start_factory: Callable[..., windlass.Factory]) -> windlass.Manager:
    """A manager with one local pilot of two cores to come."""
    start_factory()
    return manager
