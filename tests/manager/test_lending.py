"""Slots that libraries take from one another as calls come, over simulated workers (`conftest.Cluster`)."""

from __future__ import annotations

from typing import Any

import pytest

from windlass.manager.books import LOOKED_AT
from windlass.manager.placement import fits
from windlass.messages import (
    CallOptions,
    LibraryId,
    LibrarySpec,
    Message,
    RecallCalls,
    Resources,
    WorkerDraining,
    WorkerId,
    WorkerReport,
)

TWO_CORES = CallOptions(needs=Resources(2))


def test_calls_that_come_after_none_waited_find_workers_that_came_meanwhile(cluster: Any) -> None:
    """A call that stood behind another one has got its slot by then, and nobody had reason to look any further."""
    cluster.once = True
    library = cluster.library("l")
    cluster.worker("w1", 1)
    cluster.submit_once(library, 3600.0, 2)
    cluster.run(0.2)
    for name in ("w2", "w3", "w4"):
        cluster.worker(name, 1)
    cluster.run(0.1)
    cluster.submit_once(library, 3600.0, 50)
    cluster.run(1.0)
    assert [one.outstanding for one in cluster.core.libraries[library].instances.values()] == [1, 1, 1, 1]


def test_nothing_is_recalled_from_slots_that_are_to_go_but_run(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four calls run on four slots of which one is wanted by another library: there is nothing to give back, so nobody asks on and on."""
    cluster.once = True
    first, second = cluster.library("first"), cluster.library("second")
    cluster.worker("w1", 4)
    asked: list[Message] = []
    worker: Any = cluster.workers[WorkerId("w1")].__class__
    take: Any = worker.take

    def noted(self: Any, message: Message, now: float) -> Any:
        if isinstance(message, RecallCalls):
            asked.append(message)
        return take(self, message, now)

    monkeypatch.setattr(worker, "take", noted)
    cluster.submit_once(first, 600.0, 4)
    cluster.run(1.5)
    cluster.submit_once(second, 600.0, 1)
    cluster.run(3.0)
    cluster.worker("w2", 2)
    cluster.submit_once(first, 0.5, 1)
    cluster.run(20.0)
    assert len(asked) <= 3


def test_slots_are_moved_for_as_many_calls_as_they_are_worth(cluster: Any) -> None:
    """A hundred calls of a twentieth of a second are five seconds of work: they are not worth a slot on each of twenty busy workers."""
    cluster.stream("long", cluster.library("long"), (0.3, 0.5, 0.7), depth=200)
    for number in range(20):
        cluster.worker(f"w{number}", 4)
    quick = cluster.library("quick")
    cluster.stream("quick", quick, (0.05,), depth=5)
    cluster.run(5)
    cluster.once = True
    cluster.submit("quick", 100)
    most = 0
    while "quick" in cluster.stream_of.values():
        cluster.run(0.1)
        most = max(most, sum(one.target for one in cluster.core.libraries[quick].instances.values()))
    assert 1 <= most <= 8


def test_idle_slots_of_others_are_taken_while_its_own_run_what_takes_long(cluster: Any) -> None:
    """By the mean its calls are short, so its slots seem to be enough; but the only one runs for hours."""
    cluster.once = True
    a, b = cluster.library("a"), cluster.library("b")
    cluster.worker("w1", 2)
    for name, library in (("b", b), ("a", a)):
        cluster.stream(name, library, (0.1,), depth=4)
        cluster.run(3)
    cluster.stream("long", a, (7200.0,), depth=1)
    cluster.run(2)
    cluster.submit("b", 3)
    cluster.run(2)
    assert [one.target for one in cluster.core.workers[WorkerId("w1")].instances.values()] == [1, 1]
    cluster.submit("a", 1)
    cluster.run(3)
    assert len(cluster.ended["a"]) == 5


def test_slots_that_run_what_takes_long_are_not_counted_on_for_short_calls(cluster: Any) -> None:
    """Another library has three slots and calls without end: it gives one, though short ones are worth no more than the one there is."""
    a, b = cluster.library("a"), cluster.library("b")
    cluster.worker("w1", 4)
    cluster.once = True
    cluster.stream("a", a, (0.1,), depth=4)
    cluster.run(1)
    cluster.stream("long", a, (7200.0,), depth=1)
    cluster.run(0.5)
    cluster.once = False
    cluster.stream("b", b, (0.5, 0.6, 0.7))
    cluster.run(5)
    cluster.once = True
    cluster.submit("a", 5)
    cluster.run(10)
    assert len(cluster.ended["a"]) == 9


def test_slots_where_too_little_time_is_left_are_no_slots_for_long_calls(cluster: Any) -> None:
    """Its library has a slot, but no call of this kind may go there: so it may have the last slot of another one."""
    a = cluster.library("a")
    cluster.worker("short", 1, seconds_left=500.0)
    cluster.stream("a", a, (0.1,), depth=5)
    cluster.run(2)
    cluster.worker("long", 1, seconds_left=50_000.0)
    cluster.stream("b", cluster.library("b"), (0.3,))
    cluster.run(1)
    cluster.stream("needs time", a, (0.2,), CallOptions(expected_time=1000.0, priority=1), depth=2)
    cluster.run(10)
    assert cluster.ended["needs time"]


def test_slots_of_a_worker_that_drains_are_no_slots_for_calls_that_wait(cluster: Any) -> None:
    """It runs a call for hours, and takes no other: the library is as one that has nothing."""
    a = cluster.library("a")
    cluster.once = True
    cluster.worker("w1", 1)
    cluster.stream("long", a, (7200.0,), depth=1)
    cluster.run(1)
    cluster.once = False
    cluster.worker("w2", 1)
    cluster.stream("b", cluster.library("b"), (0.3,))
    cluster.run(2)
    cluster.core.worker_said(WorkerId("w1"), [WorkerDraining("its pilot ends", 0.0)], cluster.now)
    cluster.stream("a", a, (0.1,), depth=3)
    cluster.run(10)
    assert cluster.ended["a"]
    assert cluster.ended["b"][-1] > cluster.now - 5


def test_idle_slots_go_to_others_where_too_little_time_is_left_for_those_that_wait(cluster: Any) -> None:
    """Calls wait, but not for these slots."""
    a, b = cluster.library("a"), cluster.library("b")
    cluster.worker("w1", 2, seconds_left=500.0)
    cluster.once = True
    for name, library, depth in (("b", b, 2), ("a", a, 1)):
        cluster.stream(name, library, (0.1,), depth=depth)
        cluster.run(2)
    assert (cluster.target(a), cluster.target(b)) == (1, 1)
    cluster.stream("needs time", b, (0.3,), CallOptions(expected_time=1000.0), depth=5)
    cluster.submit("a", 200)
    cluster.run(5)
    assert cluster.target(a) == 2


def test_slots_that_are_enough_only_with_what_is_free_do_not_go_to_and_fro(cluster: Any) -> None:
    """One library's slots need cores and GPUs, the others' more of one of them; what it takes from one of these, the other has at once."""
    cluster.once = True
    cluster.worker("w1", 8, gpus=4)
    cluster.core.worker_said(WorkerId("w1"), [WorkerReport(0, 0, 0.0, 0, 0, busy=1.0)], cluster.now)
    cluster.stream("gpus", cluster.library("gpus", gpus=2), (0.5,), depth=40)
    cluster.act()
    cluster.stream("cores", cluster.library("cores"), (0.5,), TWO_CORES, depth=10)
    cluster.act()
    cluster.stream("both", cluster.library("both", cores=2, gpus=2), (0.5,), depth=8)
    cluster.act()
    cluster.core.worker_said(WorkerId("w1"), [WorkerReport(0, 0, 0.0, 0, 0)], cluster.now)
    cluster.run(30)
    assert not cluster.stream_of, cluster.gaps()


def test_a_library_with_slots_enough_does_not_look_at_all_workers_at_each_event(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its few calls are worth no slots of others; that is not found out anew from one worker after the other which it has wholly."""
    for name, number, depth in (("other", 10, 10), ("lib", 100, 110)):
        for one in range(number):
            cluster.worker(f"{name}{one}", 1)
        cluster.stream(name, cluster.library(name), (0.3, 0.31, 0.33), depth=depth)
        cluster.run(0.5)
    looked: list[int] = []

    def counted(spec: LibrarySpec, needs: Resources, of: Resources) -> int:
        looked.append(1)
        return fits(spec, needs, of)

    monkeypatch.setattr("windlass.manager.dispatch.fits", counted)
    for number in range(10):
        looked.clear()
        cluster.worker(f"late{number}", 0.5)
        cluster.core.pump(cluster.now)
        assert len(looked) <= 2 * LOOKED_AT, number


def test_a_library_never_has_more_slots_than_it_is_to_have_at_most(cluster: Any) -> None:
    """Also where it is to lose one, whose call runs on, and another library's fall free: it has as many as its licences allow."""
    cluster.once = True
    licensed, other = cluster.library("licensed", slots=4), cluster.library("other", slots=4)
    cluster.worker("w1", 8)
    cluster.submit_once(licensed, 3600.0, 8)
    cluster.submit_once(other, 10.0, 4)
    cluster.run(2)
    cluster.submit_once(cluster.library("third", slots=1), 3600.0, 1)
    cluster.run(4)
    instance = cluster.core.workers[WorkerId("w1")].by_library[licensed]
    assert (instance.target, instance.slots) == (3, 4)
    cluster.core.remove(other, cluster.now)
    cluster.run(10)
    assert instance.slots == 4
    assert instance.outstanding == 4


def test_a_library_at_its_limit_does_not_take_back_what_another_needs_beside_what_is_free(cluster: Any) -> None:
    """The heir's slot is larger than what is free, which alone is of no use to it."""
    cluster.once = True
    limited, large = cluster.library("limited", slots=4), cluster.library("large", cores=2)
    cluster.worker("w1", 5)
    cluster.submit_once(limited, 5.0, 40)
    cluster.run(1)
    cluster.submit_once(large, 5.0, 1)
    cluster.run(2)
    instance = cluster.core.workers[WorkerId("w1")].by_library[limited]
    for _ in range(4):
        cluster.run(0.5)
        assert instance.target == 3
    cluster.run(2)
    assert cluster.target(large) == 1


def started_by_turns(cluster: Any, libraries: list[LibraryId], used: int) -> int:
    """How many instances start when each library has a call, one after the other, where so many of 1000 bytes of memory are in use."""
    begun = cluster.core._next_instance
    for library in libraries:
        cluster.core.worker_said(WorkerId("w1"), [WorkerReport(used, 1000, 0.0, 0, 0)], cluster.now)
        cluster.submit_once(library, 0.01, 1)
        cluster.run(0.3)
    return int(cluster.core._next_instance - begun)


def test_libraries_that_are_called_by_turns_keep_their_imports_while_there_is_memory(cluster: Any) -> None:
    """Each call of the fifth and of those after it would import anew, however much memory lies idle."""
    cluster.once = True
    cluster.worker("w1", 2)
    libraries = [cluster.library(f"l{number}") for number in range(10)]
    assert started_by_turns(cluster, libraries, 249) == 10
    assert started_by_turns(cluster, libraries, 249) == 0
    # One more goes for each that comes, and none because of calls that have a part of the memory themselves.
    more = [cluster.library(f"m{number}") for number in range(3)]
    assert started_by_turns(cluster, more, 499) == 3
    instances = cluster.core.workers[WorkerId("w1")].instances
    assert len(instances) == 10
    assert started_by_turns(cluster, more, 499) == 0
    # Calls need it: the few that were used last are kept.
    started_by_turns(cluster, more[-1:], 500)
    assert {one.library for one in instances.values()} >= set(more)
    assert len(instances) <= 6


def test_few_libraries_are_kept_warm_where_memory_is_not_known(cluster: Any) -> None:
    """As before the first report of what it uses."""
    cluster.once = True
    cluster.worker("w1", 1)
    libraries = [cluster.library(f"l{number}") for number in range(10)]
    assert started_by_turns(cluster, libraries, 0) == 10
    assert started_by_turns(cluster, libraries, 0) == 10
    assert len(cluster.core.workers[WorkerId("w1")].instances) <= 5
