"""Turns of calls that need several slots at once, over simulated workers (`conftest.Cluster`)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from tests.manager.test_core import Bench

from windlass.manager import claims
from windlass.manager.libraries import LibraryState
from windlass.messages import (
    CallOptions,
    Resources,
    WorkerId,
)

TWO_CORES = CallOptions(needs=Resources(2))


@pytest.mark.parametrize("where", ["in a library of its own", "among narrow calls of its library", "in a library with wide slots"])
@pytest.mark.parametrize("lengths", [(0.01, 0.02, 0.05, 0.1, 0.3, 0.7), (0.3,) * 6, (0.01,) * 6])
def test_wide_calls_and_six_narrow_libraries_all_get_their_turns(cluster: Any, where: str, lengths: tuple[float, ...]) -> None:
    """Two cores, six libraries with one-core calls without end, and calls that need both cores: none waits longer than each of the others
    has had its turn of a second or so."""
    libraries = [cluster.library(f"lib{number}") for number in range(6)]
    for number, (library, seconds) in enumerate(zip(libraries, lengths, strict=True)):
        cluster.stream(f"narrow {number}", library, (seconds,))
    if where == "in a library with wide slots":
        cluster.stream("wide", cluster.library("wide", cores=2.0), (0.05,), depth=5)
    else:
        library = cluster.library("wide") if where == "in a library of its own" else libraries[1]
        cluster.stream("wide", library, (0.05,), TWO_CORES, depth=5)
    cluster.worker()
    cluster.run(40)
    late = {name: gap for name, gap in cluster.gaps().items() if gap > 10}
    assert not late, f"of {cluster.gaps()}"


def test_a_wide_call_gets_its_turn_among_narrow_ones_of_one_library(cluster: Any) -> None:
    """One library, one worker: narrow calls, submitted first and without end, leave no two slots idle by chance."""
    library = cluster.library("lib")
    cluster.stream("narrow", library, (0.1, 0.13, 0.17))
    cluster.stream("wide", library, (0.2,), TWO_CORES)
    cluster.worker()
    cluster.run(20)
    assert max(cluster.gaps().values()) < 3, cluster.gaps()


def test_two_kinds_of_wide_calls_take_turns_with_narrow_ones(cluster: Any) -> None:
    """What waits longest comes first: wide calls of two libraries do not hand the worker to each other for ever."""
    cluster.stream("narrow a", cluster.library("a"), (0.1,))
    cluster.stream("narrow b", cluster.library("b"), (0.03,))
    cluster.stream("narrow c", cluster.library("c"), (0.4,))
    cluster.stream("wide d", cluster.library("d"), (0.1,), CallOptions(needs=Resources(3)))
    cluster.stream("wide e", cluster.library("e"), (0.2,), CallOptions(needs=Resources(4)))
    cluster.worker(cores=4)
    cluster.run(40)
    late = {name: gap for name, gap in cluster.gaps().items() if gap > 10}
    assert not late, f"of {cluster.gaps()}"


def test_a_wide_call_does_not_overtake_calls_of_higher_priority_in_its_library(cluster: Any) -> None:
    library = cluster.library("lib")
    cluster.stream("urgent", library, (0.1, 0.13), CallOptions(priority=1))
    cluster.stream("wide", library, (0.1,), TWO_CORES)
    cluster.worker()
    cluster.run(5)
    assert not cluster.ended["wide"]
    assert len(cluster.ended["urgent"]) > 60


def test_slots_kept_for_a_wide_call_are_let_go_when_it_is_cancelled(cluster: Any) -> None:
    """A slot is kept idle only as long as a call waits for it."""
    cluster.stream("long", cluster.library("long"), (3.0,), depth=1)
    cluster.stream("narrow", cluster.library("narrow"), (0.05,))
    cluster.worker()
    cluster.run(2)
    cluster.stream("wide", cluster.library("wide"), (1.0,), TWO_CORES, depth=1)
    while cluster.core.workers[WorkerId("w1")].claim is None:
        cluster.run(cluster.step)
        assert cluster.now < 1060
    [wide] = [call for call, stream in cluster.stream_of.items() if stream == "wide"]
    cluster.streams["wide"] = cluster.streams["narrow"]
    cluster.core.cancel([wide], cluster.now)
    cluster.run(2)
    assert cluster.core.workers[WorkerId("w1")].claim is None
    before = len(cluster.ended["narrow"])
    cluster.run(3)
    assert len(cluster.ended["narrow"]) > before + 20


def test_a_worker_that_is_lost_takes_its_claim_with_it(cluster: Any) -> None:
    """What is kept on it is kept for nobody, and nobody looks for slots there any more."""
    cluster.stream("narrow", cluster.library("narrow"), (0.3,))
    cluster.worker("w1")
    cluster.run(1.0)
    cluster.stream("wide", cluster.library("wide"), (1.0,), TWO_CORES, depth=3)
    while cluster.core.workers[WorkerId("w1")].claim is None:
        cluster.run(cluster.step)
    del cluster.workers[WorkerId("w1")]
    cluster.core.worker_lost(WorkerId("w1"), "killed", cluster.now)
    cluster.run(1.0)
    cluster.core.check()
    cluster.worker("w2")
    cluster.run(5.0)
    assert all(ended for ended in cluster.ended.values())


@pytest.mark.parametrize("seed", range(8))
def test_calls_of_all_widths_in_four_libraries_end_while_workers_come_and_go(cluster: Any, seed: int) -> None:
    """What one library gives, another takes at once, and so on: it must settle, at each instant, and every call must end."""
    random = Random(seed)
    cluster.once = True
    libraries = [cluster.library(f"lib{number}", random.choice([0.0, 0.0, 2.0])) for number in range(4)]
    for number in range(200):
        event = random.random()
        if event < 0.12 or not cluster.workers:
            cluster.worker(f"w{number}", random.choice([1, 2, 4]))
        elif event < 0.2 and len(cluster.workers) > 1:
            lost = random.choice(list(cluster.workers))
            del cluster.workers[lost]
            cluster.core.worker_lost(lost, "killed", cluster.now)
        elif event < 0.5:
            options = random.choice([CallOptions(), CallOptions(), TWO_CORES, CallOptions(priority=1)])
            seconds = random.choice([0.01, 0.05, 0.5, 3.0])
            cluster.stream(f"calls {number}", random.choice(libraries), (seconds,), options, depth=random.randint(1, 12))
        cluster.run(random.choice([0.01, 0.05, 0.2]))
    for number in range(4):
        cluster.worker(f"late{number}", 4)
    began = cluster.now
    while cluster.stream_of and cluster.now < began + 100:
        cluster.run(1.0)
    assert not cluster.stream_of, [(one.spec.name, one.waiting, one.running) for one in cluster.core.libraries.values()]


def test_a_wide_kind_gets_an_equal_part_of_the_cores(cluster: Any) -> None:
    """One claim after another, while its library has less than the others have; and no slots that are too few for one of its calls."""
    for name in ("a", "b"):
        cluster.stream(f"narrow {name}", cluster.library(name), (1.0, 1.3), depth=100)
    wide = cluster.library("wide")
    cluster.stream("wide", wide, (1.5,), CallOptions(needs=Resources(4)), depth=30)
    for number in range(6):
        cluster.worker(f"w{number}", 8)
    cluster.run(30)
    slots = [one.target for one in cluster.core.libraries[wide].instances.values() if one.target]
    assert all(number >= 4 for number in slots), slots
    assert 12 <= sum(slots) <= 24, slots


def test_slots_of_two_gpus_get_their_turns_among_slots_of_one(cluster: Any) -> None:
    """A slot that needs more of anything than those of others have needs several of theirs at once: also where that is GPUs alone."""
    cluster.stream("one", cluster.library("one", gpus=1), (0.1, 0.13))
    cluster.worker(gpus=2)
    cluster.run(2)
    cluster.stream("two", cluster.library("two", gpus=2), (0.2,), depth=2)
    cluster.run(20)
    assert all(gap < 10 for gap in cluster.gaps().values()), cluster.gaps()


def test_a_wide_call_gets_slots_beside_a_call_that_runs_for_hours(cluster: Any) -> None:
    """It began before, and the other three slots there are enough."""
    cluster.worker("w1", 4)
    cluster.stream("narrow", cluster.library("narrow"), (0.3, 0.4))
    cluster.run(2)
    cluster.stream("long", cluster.library("long"), (7200.0,), depth=1)
    cluster.run(3)
    cluster.stream("wide", cluster.library("wide"), (0.2,), TWO_CORES, depth=2)
    cluster.run(20)
    assert len(cluster.ended["wide"]) > 10
    assert len(cluster.ended["narrow"]) > 100


def test_there_are_no_more_claims_than_calls_that_wait(cluster: Any) -> None:
    """One wide call needs one worker, even if an equal part of the cores were many."""
    for name in ("a", "b"):
        cluster.stream(name, cluster.library(name), (1.5, 1.7, 2.1), depth=100)
    for number in range(10):
        cluster.worker(f"w{number}", 4)
    cluster.run(5)
    cluster.once = True
    cluster.stream("wide", cluster.library("wide"), (0.2,), CallOptions(needs=Resources(4)), depth=1)
    for _ in range(100):
        cluster.run(0.05)
        assert sum(worker.claim is not None for worker in cluster.core.workers.values()) <= 1
        if cluster.ended["wide"]:
            break
    assert cluster.ended["wide"]


def test_wide_calls_take_all_workers_at_once_while_their_library_starts(cluster: Any) -> None:
    """A call that occupies four slots is not content with one of those that are coming."""
    cluster.once = True
    for number in range(12):
        cluster.worker(f"w{number}", 4)
    cluster.stream("wide", cluster.library("wide"), (5.0,), CallOptions(needs=Resources(4)), depth=12)
    cluster.run(cluster.hoist + 2 * cluster.tick)
    assert all(len(worker.calls) == 1 for worker in cluster.core.workers.values())


def test_a_call_that_names_memory_has_its_cores_where_nothing_is_known_of_memory(cluster: Any) -> None:
    """It occupies as many slots as its cores are."""
    cluster.stream("calls", cluster.library("lib"), (0.5,), CallOptions(needs=Resources(2, 1 << 30)), depth=8)
    cluster.worker("w1", 4)
    cluster.run(1.0)
    assert len(cluster.core.workers[WorkerId("w1")].calls) == 2


def test_slots_of_a_claim_stay_together_for_a_turn_from_when_its_call_is_sent(cluster: Any) -> None:
    """The last of them was waited for longer than a turn; a library that has nothing would take one at once, and the call come back."""
    library = cluster.library("lib", gpus=2)
    cluster.stream("narrow", library, (1.0,), depth=4)
    cluster.stream("wide", library, (0.1,), TWO_CORES, depth=1)
    cluster.worker("w1", 8, gpus=4)
    cluster.run(1.5)
    cluster.stream("other", cluster.library("other", gpus=1), (1.0,), CallOptions(needs=Resources(0, 0, 2)), depth=1)
    cluster.run(30)
    assert all(gap < 10 for gap in cluster.gaps().values()), cluster.gaps()


@pytest.mark.parametrize("depth", [20, 3])
@pytest.mark.parametrize("needs", [Resources(), Resources(0, 1 << 20)], ids=["plain", "named"])
def test_kinds_of_calls_of_one_library_take_turns(cluster: Any, depth: int, needs: Resources) -> None:
    """First come, first served, also where calls of one kind come without end, and never all have a slot."""
    library = cluster.library("lib")
    cluster.stream("first", library, (0.1,), depth=depth)
    cluster.worker("w1", 2)
    cluster.run(1.0)
    cluster.stream("second", library, (0.1,), CallOptions(needs=needs, timeout=60.0), depth=1)
    cluster.run(5.0)
    assert all(gap < 3 for gap in cluster.gaps().values()), cluster.gaps()


def test_large_slots_get_an_equal_part_of_one_worker(cluster: Any) -> None:
    """Each of them is two of the others' slots: a claim is for one more than there are."""
    cluster.stream("small", cluster.library("small"), (0.5, 0.6), depth=60)
    cluster.worker("w1", 16)
    cluster.run(2)
    large = cluster.library("large", cores=2)
    cluster.stream("large", large, (0.5, 0.7))
    cluster.run(20)
    assert 3 <= cluster.target(large) <= 5


def test_waiting_calls_are_not_gone_through_where_none_could_need_several_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each tick: no two of them may have equal options, and then there are as many queues as calls."""
    bench, looked = Bench(), [0]
    library = bench.library()
    bench.worker("w1", cores=2, seconds_left=3600.0)
    for number in range(20):
        bench.submit(library, 1, CallOptions(expected_time=1.0 + number))
    bench.serve()

    def count(state: LibraryState) -> Iterator[claims.Wait]:
        looked[0] += 1
        return waits(state)

    waits = claims._waits  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(claims, "_waits", count)
    for _ in range(5):
        bench.step(1.0)
        bench.core.tick(bench.now)
    assert bench.core.libraries[library].waiting
    assert not looked[0]
    bench.submit(library, 1, TWO_CORES)
    bench.step(1.0)
    bench.core.tick(bench.now)
    assert looked[0]
