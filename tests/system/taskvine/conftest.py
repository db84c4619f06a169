"""What tests of `windlass.taskvine` share: one manager with a pilot for each module of tests, which nobody leaves work at."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import windlass.taskvine as vine


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of a module share a manager and a pilot."""


@pytest.fixture(scope="module")
def vine_served(leaves_nothing_running: None) -> Iterator[vine.Manager]:
    """A manager with one local worker of two cores to come."""
    with vine.Manager(0) as manager, vine.Factory("local", manager=manager, cores=2, max_workers=1):
        yield manager


@pytest.fixture
def m(vine_served: vine.Manager) -> Iterator[vine.Manager]:
    """That manager, with nothing under way before and after."""
    assert vine_served.empty()
    yield vine_served
    vine_served.cancel_all()
    while vine_served.wait(60):
        pass
    assert vine_served.empty()


@pytest.fixture
def alone() -> Iterator[vine.Manager]:
    """A manager without workers."""
    with vine.Manager(0) as manager:
        yield manager


@pytest.fixture
def run(m: vine.Manager) -> Callable[[vine.Task], vine.Task]:
    """Submits a task, and waits for it as programs do."""

    def submit_and_wait(task: vine.Task) -> vine.Task:
        number = m.submit(task)
        while not m.empty():
            done = m.wait(5)
            if done:
                assert done is task
                assert done.id == number
                return task
        raise AssertionError("it never came back")

    return submit_and_wait
