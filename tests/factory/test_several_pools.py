"""A factory of several pools: who gets the calls' pilots, one query for a whole batch system, and one budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from windlass.errors import UnknownName, UsageError
from windlass.factory import history
from windlass.factory.backend import OWN_MACHINE, CommandLimits, PilotState
from windlass.factory.factory import Factory, Pool
from windlass.factory.fake import FakeBackend, Fault
from windlass.messages import Demand, Leave, Message, PoolReport, Resources, Shape


@dataclass
class Ports:
    """A manager that is only its ports: the newest report of each pool, and demand for all."""

    pilot_file: Path
    reports: dict[str, PoolReport] = field(default_factory=dict[str, PoolReport])
    closed: set[str] = field(default_factory=set[str])
    _hear: dict[str, Callable[[Message], None]] = field(default_factory=dict[str, Callable[[Message], None]])
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def open_port(
        self,
        role: str,
        name: str,
        on_message: Callable[[Message], None],
        on_cut: Callable[[str], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> OnePort:
        assert role == "factory"
        self._hear[name] = on_message
        return OnePort(self, name)

    def tell(self, message: Message) -> None:
        for hear in self._hear.values():
            hear(message)

    def heard(self, name: str, messages: Sequence[Message]) -> None:
        with self._changed:
            for message in messages:
                if isinstance(message, PoolReport):
                    self.reports[name] = message
            self._changed.notify_all()

    def counts(self, name: str) -> dict[str, int]:
        report = self.reports.get(name)
        return {state: number for _, state, number in report.counts} if report else {}

    def until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 20), self.reports


@dataclass
class OnePort:
    manager: Ports
    name: str

    def send(self, *messages: Message) -> None:
        self.manager.heard(self.name, messages)

    def close(self, timeout: float = 0.0) -> None:
        self.manager.closed.add(self.name)


@pytest.fixture
def manager(tmp_path: Path) -> Ports:
    return Ports(tmp_path / "manager" / "pilot.json")


class Cluster(FakeBackend):
    """Fake backends of one batch system: one of them asks for all."""

    limits: ClassVar[CommandLimits] = CommandLimits(burst=20, sustained=1000)
    site = "the cluster"

    def __init__(self) -> None:
        super().__init__(processes=False)
        self.query_interval = 0.05
        #: How many backends each query asked for.
        self.asked: list[int] = []

    def query(self) -> Sequence[PilotState]:
        self.asked.append(1)
        return super().query()

    def query_with(self, others: Sequence[Cluster]) -> list[Sequence[PilotState]]:
        self.asked.append(1 + len(others))
        return [super(Cluster, one).query() for one in (self, *others)]


def some(waiting: int, cores: float = 1.0) -> Demand:
    return Demand((Shape(Resources(cores), waiting, 0),))


def pool(name: str, backend: FakeBackend | None = None, **options: object) -> Pool:
    return Pool(backend or FakeBackend(processes=False), pool=name, cores=4, hold=0, **options)


@pytest.fixture
def start(manager: Ports) -> Iterator[Callable[..., Factory]]:
    """Starts factories; afterwards their threads have ended and their ports are closed."""
    started: list[Factory] = []

    def start(*pools: Pool, **options: object) -> Factory:
        factory = Factory(manager, list(pools), name="f", **options).start()  # type: ignore[arg-type]
        started.append(factory)
        return factory

    yield start
    for factory in started:
        factory.close(0)
        assert factory.wait(0)
        assert manager.closed == {f"f.{one.name}" for one in factory.pools}


def test_the_first_pool_gets_the_pilots_and_the_next_what_is_left(manager: Ports, start: Callable[..., Factory]) -> None:
    """Sixteen calls on pilots of four cores; the first pool may have three."""
    start(pool("first", max_pilots=3), pool("second", max_pilots=10))
    manager.tell(some(16))
    manager.until(lambda: manager.counts("f.first") == {"queued": 3} and manager.counts("f.second") == {"queued": 1})


def test_a_pool_that_is_paused_leaves_its_part_to_the_next(manager: Ports, start: Callable[..., Factory]) -> None:
    """Whatever keeps the first from submitting: the second does not wait for it."""
    first = FakeBackend(processes=False)
    first.cluster.fail("submit", Fault.REJECTED)
    start(pool("first", first, max_pilots=4), pool("second", max_pilots=4))
    manager.tell(some(16))
    manager.until(lambda: manager.counts("f.second") == {"queued": 4})
    assert manager.reports["f.first"].offers[0].paused != ""


def test_pilots_that_wait_for_long_are_not_waited_for(manager: Ports, start: Callable[..., Factory]) -> None:
    """After ``patience`` the next pool may start its own."""
    start(pool("first", max_pilots=4, patience=0.2), pool("second", max_pilots=4))
    manager.tell(some(16))
    manager.until(lambda: manager.counts("f.first") == {"queued": 4})
    manager.until(lambda: manager.counts("f.second") == {"queued": 4})


def test_calls_that_fit_only_the_second_are_its_own(manager: Ports, start: Callable[..., Factory]) -> None:
    start(pool("small"), Pool(FakeBackend(processes=False), pool="large", cores=8))
    manager.tell(some(1, cores=6))
    manager.until(lambda: manager.counts("f.large") == {"queued": 1})
    assert manager.counts("f.small") == {}


def test_pools_of_one_batch_system_share_its_queries_and_its_budget(manager: Ports, start: Callable[..., Factory]) -> None:
    """One query tells of both pools, and what both send is in one record."""
    one, other = Cluster(), Cluster()
    factory = start(pool("first", one, max_pilots=1), pool("second", other, max_pilots=1))
    manager.tell(some(16))
    manager.until(lambda: manager.counts("f.first") == {"queued": 1} and manager.counts("f.second") == {"queued": 1})
    assert set(one.asked + other.asked) == {2}
    first, second = (kept.core for kept in factory._kept)  # pyright: ignore[reportPrivateUsage]
    assert first.budget.times is second.budget.times
    assert (first.budget.sent["submit"], second.budget.sent["submit"]) == (1, 1)


def test_a_pool_that_a_limit_leaves_without_pilots_is_tried_again_when_another_s_pilot_ends(
    manager: Ports, start: Callable[..., Factory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on jobs may be that of all pools of the batch system."""
    monkeypatch.setattr(history, "OVER_LIMIT_ALONE", 1e6)
    first, second = Cluster(), Cluster()
    second.cluster.standing["submit"] = (Fault.OVER_LIMIT, "")
    start(pool("first", first, max_pilots=1), pool("second", second, max_pilots=1))
    manager.tell(some(16))
    manager.until(lambda: manager.counts("f.first") == {"queued": 1} and bool(manager.reports["f.second"].failures))
    second.cluster.standing.clear()
    first.act(lambda cluster, now: cluster.cancel(None, now))
    manager.until(lambda: manager.counts("f.second") == {"queued": 1})


def test_pools_of_different_batch_systems_have_their_own(manager: Ports, start: Callable[..., Factory]) -> None:
    one, other = Cluster(), Cluster()
    other.site = "another"
    start(pool("first", one, max_pilots=1), pool("second", other, max_pilots=1))
    manager.tell(some(16))
    manager.until(lambda: manager.counts("f.first") == {"queued": 1} and manager.counts("f.second") == {"queued": 1})
    assert {1} == set(one.asked) == set(other.asked)
    assert one.limits is not OWN_MACHINE


def test_one_that_is_silent_holds_up_no_pool_of_another_batch_system(manager: Ports, start: Callable[..., Factory]) -> None:
    """Its thread waits for the answer; the other's does not."""
    released = threading.Event()

    class Mute(FakeBackend):
        def query(self) -> Sequence[PilotState]:
            released.wait(20)
            return super().query()

    try:
        start(pool("mute", Mute(processes=False), max_pilots=1), pool("well", max_pilots=4))
        manager.tell(some(16))
        manager.until(lambda: manager.counts("f.well") == {"queued": 3})
    finally:
        released.set()


def test_all_pools_end_with_the_manager(manager: Ports, start: Callable[..., Factory]) -> None:
    factory = start(pool("first", max_pilots=1), pool("second", max_pilots=1))
    manager.tell(some(16))
    manager.until(lambda: bool(manager.counts("f.first") and manager.counts("f.second")))
    manager.tell(Leave("over"))
    assert factory.wait(20)


def test_which_pool_is_meant_must_be_said(manager: Ports, start: Callable[..., Factory]) -> None:
    factory = start(pool("first"), pool("second"))
    assert [one.name for one in factory.pools] == ["first", "second"]
    assert factory.status("second")["pool"] == "second"
    factory.set_limits(max_pilots=7, pool="second")
    factory.resume()
    with pytest.raises(UsageError, match="this factory has several pools, so name one of them: pool='first'; they are first, second"):
        factory.status()
    with pytest.raises(UnknownName, match="there is no pool 'secnd' in factory 'f'; did you mean 'second'"):
        factory.set_limits(max_pilots=7, pool="secnd")


def test_pools_that_cannot_be_together_are_refused(manager: Ports) -> None:
    with pytest.raises(UsageError, match=r"two pools of this factory are named 'local'; name each: Pool\('slurm', pool='short'\)"):
        Factory(manager, ["local", "local"])
    with pytest.raises(UsageError, match=r"pool='x' would be the name of 2 pools; name each: Pool\('slurm', pool='short'\)"):
        Factory(manager, ["local", "fake"], pool="x")
    with pytest.raises(UsageError, match="a factory needs a pool; write for example"):
        Factory(manager, [])
    assert repr(Pool("slurm", cores=4)) == "Pool('slurm', cores=4)"
