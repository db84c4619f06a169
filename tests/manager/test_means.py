"""What attached programs are told of what there is to run calls with: messages and looks are counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.manager.test_core import Bench

from windlass.identity import Authority
from windlass.manager.attachments import Attachments
from windlass.manager.core import Core
from windlass.manager.filedesk import FileDesk
from windlass.manager.libraries import LibraryState
from windlass.manager.means import EXACT_MOST, ToldMeans
from windlass.messages import KeepCalls, LibraryId, Means, Message, PoolName, PoolOffer, PoolReport, Resources, WorkerId, WorkerInfo
from windlass.object_store import ObjectStore
from windlass.session import encode_one

GB = 10**9


class Looked(dict[LibraryId, LibraryState]):
    """Libraries, and how often somebody looked at all of them."""

    looks = 0

    def values(self) -> Any:
        self.looks += 1
        return super().values()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A manager with a library that has two slots."""
    one = Bench()
    library = one.library()
    one.worker()
    one.submit(library)
    one.serve()
    yield one
    one.core.check()


def state_of(bench: Bench) -> LibraryState:
    [state] = bench.core.libraries.values()
    return state


def join(core: Core, number: int, of: Resources) -> None:
    core.worker_joined(WorkerId(f"w{number}"), WorkerInfo("host", 1, of), 1000.0)


@pytest.mark.parametrize(("programs", "messages"), [(3, 5), (1000, 1)])
def test_what_changes_all_the_time_is_told_at_a_pace(bench: Bench, programs: int, messages: int) -> None:
    """As the number of calls that may wait at a worker does, by what they take; and for more programs there is less time for each."""
    told, state = ToldMeans(bench.core), state_of(bench)
    libraries = bench.core.libraries = Looked(bench.core.libraries)
    heard: list[Means] = []
    for turn in range(100):  # a second
        state.ahead = 50 * (turn % 2)
        means = told.news(programs, 1000.0 + turn / 100)
        if means is not None:
            heard.append(means)
    assert len(heard) == libraries.looks == messages


def test_room_that_is_about_the_same_is_not_told_again(bench: Bench) -> None:
    """And what programs know of workers and pools is as new as it was."""
    told, state, heard = ToldMeans(bench.core), state_of(bench), list[tuple[int, int]]()
    for turn, ahead in enumerate((99, 110, 118, 81, 119, 119, 99)):
        state.ahead = ahead
        means = told.news(1, 1000.0 + turn)
        if means is not None:
            heard.append((means.capacity, means.version))
    assert heard == [(200, 1), (240, 1)]
    bench.core.worker_lost(WorkerId("w1"), "killed", bench.now)
    means = told.news(1, 2000.0)
    assert means is not None
    assert (means.capacity, means.version, means.workers) == (0, 2, ())


def test_one_worker_more_of_a_kind_is_no_news(bench: Bench) -> None:
    """One of another kind is, and so is a pool that offers something else."""
    core, told = bench.core, ToldMeans(bench.core)
    first = told.news(1, 1000.0)
    assert first is not None
    assert first.workers == (Resources(2.0),)
    join(core, 2, Resources(2.0))
    assert told.news(1, 1001.0) is None
    join(core, 3, Resources(1.0, GB))
    second = told.news(1, 1002.0)
    assert second is not None
    assert second.workers == (Resources(1.0, GB), Resources(2.0))
    offers = (PoolOffer(PoolName("pool"), Resources(2.0)),)
    core.pools_reported("factory", PoolReport(offers), bench.now)
    third = told.news(1, 1003.0)
    assert third is not None
    assert third.offers == offers
    assert first.version < second.version < third.version


def test_workers_whose_memory_differs_by_bytes_are_few_kinds() -> None:
    """None of them is told as less than it is, or programs would refuse what can run."""
    core = Core()
    for number in range(5000):
        join(core, number, Resources(8.0, 16 * GB + 9_999_991 * number))
    means = ToldMeans(core).news(1, 1000.0)
    assert means is not None
    assert len(encode_one(means)) < 3000
    kinds = [kind.memory for kind in means.workers]
    for of in core.shapes:
        assert any(of.memory <= memory <= 1.035 * of.memory for memory in kinds)


def test_a_few_kinds_of_workers_are_told_as_they_are() -> None:
    core = Core()
    shapes = [Resources(8.0, 16 * GB + number) for number in range(EXACT_MOST)]
    for number, of in enumerate(shapes):
        join(core, number, of)
    means = ToldMeans(core).news(1, 1000.0)
    assert means is not None
    assert list(means.workers) == shapes


class Program:
    """The link of a program that keeps what it hears."""

    def __init__(self, name: str) -> None:
        self.peer = name
        self.heard: list[Message] = []

    def process(self) -> None:
        """It is of no process."""

    def send(self, *messages: Message) -> None:
        self.heard += messages

    def news(self) -> list[Message]:
        heard, self.heard = self.heard, []
        return heard


def test_who_comes_hears_what_all_know_and_all_hear_what_is_news(tmp_path: Path) -> None:
    """A thousand programs that come at once are no news to one another."""
    core, store = Core(), ObjectStore(tmp_path / "store", 1 << 20)
    nothing: Any = None
    desk = FileDesk(core, store, Authority.create("m1", tmp_path / "m1"))
    attachments = Attachments(core, store, nothing, nothing, nothing, desk, nothing)

    def come(name: str, now: float) -> Program:
        program = Program(name)
        link: Any = program
        attachments.said(attachments.join(link), KeepCalls(False), now)
        return program

    one = come("one", 1000.0)
    assert one.news() == [Means(0, 0)]
    join(core, 1, Resources(4.0))
    assert not attachments.tell_means(1000.1)
    two = come("two", 1000.1)
    assert two.news() == [Means(0, 0)]
    assert attachments.tell_means(1000.3)
    now = Means(0, 1, (), (Resources(4.0),))
    assert one.news() == two.news() == [now]
    assert not attachments.tell_means(1010.0)
    three = come("three", 1020.0)
    assert (one.news(), two.news(), three.news()) == ([], [], [now])
    join(core, 2, Resources(1.0))
    four = come("four", 1030.0)
    both = Means(0, 2, (), (Resources(1.0), Resources(4.0)))
    assert [each.news() for each in (one, two, three, four)] == [[both]] * 4
    store.close()
