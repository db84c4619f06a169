"""What the tests of the HTCondor backend share: a schedd that is a stand-in, and the backend on it."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from windlass.factory.backend import JobId, PilotRequest, PilotState, Tag
from windlass.factory.htcondor import HTCondorBackend
from windlass.messages import PoolName, Resources


class Schedd(Protocol):
    """A running stand-in."""

    place: str
    helper: tuple[str, ...]

    def tell(self, do: str, **arguments: Any) -> Any: ...

    def mute(self) -> AbstractContextManager[None]: ...

    def close(self) -> None: ...


def load(path: Path, name: str) -> Any:
    """A module of the tests by its path: they are in no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look there for their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def standin() -> Any:
    """The module of the stand-in."""
    return load(Path(__file__).with_name("standin.py"), "windlass_test_standin")


@pytest.fixture
def schedd(standin: Any, tmp_path: Path, nothing_left_running: None) -> Iterator[Schedd]:
    """A schedd with one machine, which tests may change and kill."""
    running: Schedd = standin.Running(tmp_path)
    yield running
    running.close()


MakeBackend = Callable[..., HTCondorBackend]
TAG = Tag("f1", "m1")


@pytest.fixture
def make_backend(schedd: Schedd, tmp_path: Path) -> Iterator[MakeBackend]:
    """Makes a backend on the schedd, opened unless ``tag`` is None; what it left is removed in the end."""
    made: list[HTCondorBackend] = []

    def make(tag: Tag | None = TAG, **options: Any) -> HTCondorBackend:
        given: dict[str, Any] = {"collector": schedd.place, "query_interval": 0.01, **options}
        backend = HTCondorBackend(schedd.helper, **given)
        if tag is not None:
            backend.open(tag, tmp_path / "pilots" / tag.factory, lambda: None)
            made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def backend(make_backend: MakeBackend) -> HTCondorBackend:
    return make_backend()


@pytest.fixture
def request_of() -> Callable[..., PilotRequest]:
    """Makes a request whose pilots run shell instead of a worker."""

    def make(body: str = "sleep 600", **changes: Any) -> PilotRequest:
        request = PilotRequest(
            ticket="t-1", pool=PoolName("p"), command=("/bin/sh", "-c", body), resources=Resources(1.0), walltime=600.0, grace=5.0
        )
        return replace(request, **changes)

    return make


def states_until(backend: HTCondorBackend, condition: Callable[[dict[JobId, PilotState]], object]) -> dict[JobId, PilotState]:
    """Ask until the newest states of all pilots, listed or not any more, meet a condition."""
    seen: dict[JobId, PilotState] = {}
    limit = time.monotonic() + 20
    while True:
        seen.update({state.job: state for state in backend.query()})
        if condition(seen):
            return seen
        assert time.monotonic() < limit, f"never; the last states were {seen}"
        time.sleep(0.005)


@pytest.fixture
def until() -> Callable[..., dict[JobId, PilotState]]:
    """``until(backend, condition)``: `states_until`."""
    return states_until
