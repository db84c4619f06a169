"""Who gets a file from where: one read of the source, a tree of peers, and what becomes of each kind of failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from windlass.manager.away import PATIENCE, PROBE_SECONDS
from windlass.manager.fetches import MANAGER_FETCHES, ORIGIN_FETCHES, PEER_FETCHES
from windlass.manager.reaching import IN_VAIN, PAUSE
from windlass.manager.replicas import Replicas
from windlass.manager.ties import ORIGIN_PAUSE, ORIGIN_TRIES, SMALL_BYTES, File
from windlass.messages import (
    DropFiles,
    FetchFile,
    FileFailed,
    FileLost,
    FileName,
    FileOrigin,
    FileRef,
    FileSource,
    ObjectName,
    ObjectRef,
    PoolEnvironment,
    PushFile,
    WorkerId,
)

BIG = FileRef(FileName("b3-" + "1" * 32), 50 * SMALL_BYTES, "big.bin")
SMALL = FileRef(FileName("b3-" + "2" * 32), 10, "small.txt")
AT_MANAGER = FileOrigin(path="/data/big.bin", stamp=(1, BIG.size))
WORKERS = [WorkerId(f"w{number}") for number in range(8)]


@pytest.fixture
def replicas() -> Iterator[Replicas]:
    """With eight workers that serve; checked after the test."""
    replicas = Replicas("m")
    for worker in WORKERS:
        replicas.serving(worker, (f"{worker}:1",))
    replicas.declare(BIG, AT_MANAGER)
    replicas.declare(SMALL, FileOrigin(path="/data/small.txt"))
    yield replicas
    replicas.check()


def fetches(replicas: Replicas, now: float = 0.0) -> dict[WorkerId, FileSource]:
    """Who is told to fetch from where; nothing else may have been said."""
    replicas.pump(now)
    said, replicas.out = replicas.out, []
    assert all(isinstance(message, FetchFile) for _, message in said), said
    return {worker: message.source for worker, message in said if isinstance(message, FetchFile)}


def lost(replicas: Replicas) -> dict[WorkerId, str]:
    said, replicas.out = replicas.out, []
    return {worker: message.text for worker, message in said if isinstance(message, FileLost)}


def test_an_environment_of_a_pool_is_declared_once(replicas: Replicas) -> None:
    """By whichever worker comes first, who then reads its archive; again where it was lost; what a program has declared holds."""
    packed, unpacked = FileRef(FileName("b3-" + "3" * 32), BIG.size, "e.tar.gz"), FileRef(FileName("u3-" + "4" * 32), -1, "e")
    pools = PoolEnvironment(unpacked, packed, "/shared/e.tar.gz")
    for _ in range(2):
        replicas.declare_environment(pools)
    assert replicas.files[packed.name].declared == 1
    replicas.wanted(WORKERS[0], [unpacked.name])
    assert fetches(replicas) == {WORKERS[0]: FileSource(archive=packed)}
    for worker in WORKERS[:2]:
        replicas.wanted(worker, [packed.name])
    source = FileSource(path="/shared/e.tar.gz")
    assert fetches(replicas) == {WORKERS[0]: source}
    for worker in WORKERS[2:]:
        replicas.worker_lost(worker)
    replicas.failed(WORKERS[0], FileFailed(packed.name, source, "gone", "it is not there"), 0.0)
    assert fetches(replicas) == {WORKERS[1]: source}
    replicas.failed(WORKERS[1], FileFailed(packed.name, source, "gone", "it is not there"), 0.0)
    assert lost(replicas) == {WORKERS[1]: "it is not there", WORKERS[0]: "it is not there"}
    replicas.declare_environment(pools)
    replicas.wanted(WORKERS[1], [packed.name])
    assert fetches(replicas) == {WORKERS[1]: source}
    replicas.declare_environment(PoolEnvironment(unpacked, BIG, "/elsewhere"))
    assert replicas.files[BIG.name].origin == AT_MANAGER


def test_a_file_that_is_declared_at_two_levels_has_the_longer_one(replicas: Replicas) -> None:
    """Or copies of it would go with the calls that need them now."""
    levels = ["call", "worker", "workflow"]
    refs = [FileRef(FileName("b3-" + "3" * 32), 10, "a", level) for level in levels]
    for ref in refs:
        replicas.declare(ref, FileOrigin(path="/data/a"))
    assert replicas.files[refs[0].name].ref.level == "worker"
    replicas.here(WORKERS[0], refs[0].name, 10)
    replicas.release([refs[0].name] * 3)
    assert replicas.out == []


def test_a_file_is_read_once_from_its_origin_and_then_from_workers(replicas: Replicas) -> None:
    """Eight workers make a tree: 1, then 2 more from the first, then from three."""
    for worker in WORKERS:
        replicas.wanted(worker, [BIG.name])
    assert fetches(replicas) == {WORKERS[0]: FileSource("m")}
    assert fetches(replicas) == {}
    under_way, rounds = {WORKERS[0]: FileSource("m")}, 0
    while under_way:
        for worker in under_way:
            replicas.here(worker, BIG.name, BIG.size)
        under_way, rounds = fetches(replicas), rounds + 1
        assert all(source.peer in replicas.files[BIG.name].holders for source in under_way.values())
        assert all(source.addresses == (f"{source.peer}:1",) for source in under_way.values())
    assert replicas.files[BIG.name].origin_reads == 1
    assert len(replicas.files[BIG.name].holders) == 8
    assert rounds == 3  # 1, 3, 8 of them have it


def test_a_small_object_rides_with_a_call_once(replicas: Replicas) -> None:
    """Only what the manager has in its store, and only where it is not already, or on its way."""
    first, second = WORKERS[:2]
    assert replicas.ride(first, SMALL.name) is None
    replicas.declare(SMALL, FileOrigin(object=ObjectRef(ObjectName(SMALL.name), SMALL.size)))
    assert replicas.ride(first, SMALL.name) == FetchFile(SMALL, FileSource("m"))
    assert replicas.ride(first, SMALL.name) is None
    replicas.wanted(first, [SMALL.name])
    assert fetches(replicas) == {}
    replicas.here(first, SMALL.name, SMALL.size)
    assert replicas.ride(first, SMALL.name) is None
    assert replicas.ride(second, SMALL.name) is not None
    replicas.release([SMALL.name], prune=True)
    replicas.release([SMALL.name], prune=True)
    replicas.out = []
    replicas.here(second, SMALL.name, SMALL.size)
    assert replicas.out == [(second, DropFiles((SMALL.name,)))]
    replicas.out = []
    replicas.declare(SMALL, FileOrigin(object=ObjectRef(ObjectName(SMALL.name), SMALL.size)))
    assert replicas.ride(second, SMALL.name) is not None
    replicas.failed(second, FileFailed(SMALL.name, FileSource("m"), "failed", "a disk with moods"), 0.0)
    assert fetches(replicas) == {}
    assert fetches(replicas, ORIGIN_PAUSE) == {second: FileSource("m")}


def test_a_worker_serves_few_at_a_time(replicas: Replicas) -> None:
    replicas.here(WORKERS[0], BIG.name, BIG.size)
    for worker in WORKERS[1:]:
        replicas.wanted(worker, [BIG.name])
    assert len(fetches(replicas)) == PEER_FETCHES


def test_small_files_come_from_the_manager_at_once(replicas: Replicas) -> None:
    """A tree would cost round trips."""
    for worker in WORKERS:
        replicas.wanted(worker, [SMALL.name])
    assert fetches(replicas) == dict.fromkeys(WORKERS, FileSource("m"))


def test_a_door_on_loopback_is_for_workers_of_that_host(replicas: Replicas) -> None:
    """Those of a local pool, which came before one on other machines made the manager listen elsewhere, too."""
    near, beside, elsewhere, boxed = WORKERS[:4]
    for worker, address, host in (
        (near, "127.0.0.1:5", "login"),
        (beside, "[::1]:5", "login"),
        (elsewhere, "10.0.0.7:5", "n7"),
        (boxed, "127.0.0.1:6", "box"),  # a container of the host, with a name of its own
    ):
        replicas.serving(worker, (address,), host)
    replicas.here(near, BIG.name, BIG.size)
    replicas.wanted(elsewhere, [BIG.name])
    assert fetches(replicas) == {elsewhere: FileSource("m")}
    replicas.wanted(beside, [BIG.name])
    replicas.wanted(boxed, [BIG.name])
    assert fetches(replicas) == dict.fromkeys((beside, boxed), FileSource(near, ("127.0.0.1:5",)))


def test_workers_that_cannot_be_reached_do_not_serve(replicas: Replicas) -> None:
    """Without listeners all read from the origin, some at a time."""
    for worker in WORKERS:
        replicas.serving(worker, ())
        replicas.wanted(worker, [BIG.name])
    assert fetches(replicas) == dict.fromkeys(WORKERS[:MANAGER_FETCHES], FileSource("m"))
    replicas.here(WORKERS[0], BIG.name, BIG.size)
    assert fetches(replicas) == {WORKERS[MANAGER_FETCHES]: FileSource("m")}


def test_one_that_cannot_reach_a_peer_gets_it_elsewhere(replicas: Replicas) -> None:
    """From another peer, or from the origin after all."""
    replicas.here(WORKERS[0], BIG.name, BIG.size)
    replicas.here(WORKERS[1], BIG.name, BIG.size)
    replicas.wanted(WORKERS[2], [BIG.name])
    tried: list[str] = []
    for _ in range(2):
        source = fetches(replicas)[WORKERS[2]]
        tried.append(source.peer)
        replicas.failed(WORKERS[2], FileFailed(BIG.name, source, "failed", "no route to host"), 0.0)
    assert sorted(tried) == WORKERS[:2]
    assert fetches(replicas) == {WORKERS[2]: FileSource("m")}
    replicas.wanted(WORKERS[3], [BIG.name])
    assert fetches(replicas)[WORKERS[3]].peer in WORKERS[:2]  # which does not hold for others


def test_where_workers_cannot_reach_each_other_some_find_out_and_all_read_from_the_origin(replicas: Replicas) -> None:
    """Some at a time, the next file too; after a while it is tried again, until one gets it from a peer."""
    now = 0.0

    def fetched_by_all(number: int, reach: bool) -> tuple[int, int]:
        """How many fetches failed, and how many read from the origin at once."""
        nonlocal now
        ref = FileRef(FileName(f"b3-{number:032x}"), BIG.size, "file.bin")
        replicas.declare(ref, AT_MANAGER)
        for worker in WORKERS:
            replicas.wanted(worker, [ref.name])
        in_vain, at_once = 0, 0
        while sources := fetches(replicas, now):
            now += 10.0 * any(source.peer != "m" for source in sources.values())
            at_once = max(at_once, Counter(source.peer for source in sources.values())["m"])
            for worker, source in sources.items():
                if source.peer == "m" or reach:
                    replicas.here(worker, ref.name, BIG.size)
                else:
                    in_vain += 1
                    replicas.failed(worker, FileFailed(ref.name, source, "failed", "no answer within 10 s"), now)
        assert len(replicas.files[ref.name].holders) == len(WORKERS)
        return in_vain, at_once

    assert [fetched_by_all(number, reach=False) for number in (1, 2)] == [(IN_VAIN, MANAGER_FETCHES), (0, MANAGER_FETCHES)]
    now += PAUSE
    assert [fetched_by_all(number, reach=False) for number in (3, 4)] == [(PEER_FETCHES, MANAGER_FETCHES), (0, MANAGER_FETCHES)]
    now += PAUSE
    assert [fetched_by_all(number, reach=True) for number in (5, 6)] == [(0, 1), (0, 1)]
    assert fetched_by_all(7, reach=False)[0] == IN_VAIN


def test_a_worker_that_reaches_nobody_reads_from_the_origin_and_others_go_on(replicas: Replicas) -> None:
    """Also when it is the only one that fetches, so that nobody has a success meanwhile."""
    first, *peers, walled = WORKERS
    for worker in (first, *peers):
        replicas.here(worker, BIG.name, BIG.size)
    for number, worker in enumerate(peers):
        ref = FileRef(FileName(f"b3-{number:032x}"), BIG.size, "file.bin")
        replicas.declare(ref, AT_MANAGER)
        replicas.here(first, ref.name, BIG.size)
        replicas.wanted(worker, [ref.name])
        assert fetches(replicas)[worker].peer == first
        replicas.here(worker, ref.name, BIG.size)
    replicas.wanted(walled, [BIG.name])
    for number in range(IN_VAIN):
        source = fetches(replicas, 10.0 * number)[walled]
        assert source.peer != "m"
        replicas.failed(walled, FileFailed(BIG.name, source, "failed", "no route to host"), 10.0 * number)
    assert fetches(replicas, 10.0 * IN_VAIN) == {walled: FileSource("m")}
    fresh = WorkerId("w99")
    replicas.serving(fresh, ("h99:1",))
    replicas.wanted(fresh, [BIG.name])
    assert fetches(replicas, 10.0 * IN_VAIN)[fresh].peer in WORKERS


def test_one_that_reaches_nobody_waits_for_no_peer_with_its_other_files(replicas: Replicas) -> None:
    """Which it did until then."""
    *peers, busy, walled = WORKERS
    other = FileRef(FileName("b3-" + "7" * 32), BIG.size, "other")
    replicas.declare(other, AT_MANAGER)
    replicas.here(busy, other.name, other.size)
    for worker in peers:
        replicas.here(worker, BIG.name, BIG.size)
    for worker in peers[:PEER_FETCHES]:
        replicas.wanted(worker, [other.name])
    assert {source.peer for source in fetches(replicas).values()} == {busy}
    replicas.wanted(walled, [other.name, BIG.name])
    for _ in range(IN_VAIN):
        source = fetches(replicas)[walled]
        assert source.peer in peers
        replicas.failed(walled, FileFailed(BIG.name, source, "failed", "no route to host"), 0.0)
    replicas.pump(0.0)
    assert {message.ref.name for _, message in replicas.out if isinstance(message, FetchFile)} == {other.name, BIG.name}
    assert fetches(replicas) == {walled: FileSource("m")}


def test_a_peer_that_has_it_no_more_is_not_asked_again(replicas: Replicas) -> None:
    replicas.here(WORKERS[0], BIG.name, BIG.size)
    replicas.wanted(WORKERS[1], [BIG.name])
    source = fetches(replicas)[WORKERS[1]]
    replicas.failed(WORKERS[1], FileFailed(BIG.name, source, "gone", "evicted"), 0.0)
    assert fetches(replicas) == {WORKERS[1]: FileSource("m")}


def test_who_sent_damaged_bytes_is_told_to_look_at_its_replica(replicas: Replicas) -> None:
    replicas.here(WORKERS[0], BIG.name, BIG.size)
    replicas.wanted(WORKERS[1], [BIG.name])
    source = fetches(replicas)[WORKERS[1]]
    replicas.failed(WORKERS[1], FileFailed(BIG.name, source, "damaged", "other content"), 0.0)
    assert replicas.out == [(WORKERS[0], DropFiles((BIG.name,), damaged=True))]
    replicas.out = []
    assert fetches(replicas) == {WORKERS[1]: FileSource("m")}


def test_a_source_that_changed_loses_the_file_for_all_who_wait(replicas: Replicas) -> None:
    """And for all who come later, until it is declared anew."""
    replicas.wanted(WORKERS[0], [BIG.name])
    replicas.wanted(WORKERS[1], [BIG.name])
    fetches(replicas)
    replicas.failed(WORKERS[0], FileFailed(BIG.name, FileSource("m"), "gone", "/data/big.bin has changed"), 0.0)
    assert lost(replicas) == dict.fromkeys(WORKERS[:2], "/data/big.bin has changed")
    replicas.wanted(WORKERS[2], [BIG.name])
    assert lost(replicas) == {WORKERS[2]: "/data/big.bin has changed"}
    replicas.declare(BIG, AT_MANAGER)
    replicas.wanted(WORKERS[2], [BIG.name])
    assert fetches(replicas) == {WORKERS[2]: FileSource("m")}


PATH = "/scratch/db.fa"
THERE = FileSource(path=PATH)


def not_there(replicas: Replicas, worker: WorkerId, name: FileName) -> None:
    replicas.failed(worker, FileFailed(name, THERE, "gone", f"{PATH} is not there on {worker}"), 0.0)


@pytest.mark.parametrize("size", [10, BIG.size])
def test_a_node_that_does_not_see_a_shared_path_has_the_file_from_another_one(replicas: Replicas, size: int) -> None:
    """As by a mount that it lacks: it waits for who reads it, and has it from a peer then, also if it is small."""
    ref = FileRef(FileName("x3-" + "5" * 32), size, "db.fa")
    bad, good, later = WORKERS[:3]
    replicas.declare(ref, FileOrigin(shared=PATH))
    for worker in (bad, good):
        replicas.wanted(worker, [ref.name])
    assert fetches(replicas).get(bad) == THERE
    not_there(replicas, bad, ref.name)
    assert fetches(replicas) == ({good: THERE} if size > SMALL_BYTES else {})
    replicas.here(good, ref.name, size, "d")
    assert fetches(replicas) == {bad: FileSource(good, (f"{good}:1",))}
    replicas.here(bad, ref.name, size, "d")
    replicas.wanted(later, [ref.name])
    assert fetches(replicas)[later] in (THERE, FileSource(bad, (f"{bad}:1",)), FileSource(good, (f"{good}:1",)))


def test_where_only_a_node_that_does_not_see_the_path_wants_it_another_one_reads_it(replicas: Replicas) -> None:
    """On another host, and not behind a wall; if it has no room another one. It stays there until it is released, whatever its level."""
    ref = FileRef(FileName("x3-" + "5" * 32), BIG.size, "db.fa", "call")
    bad, beside, walled, *others = WORKERS
    for worker in (bad, beside):
        replicas.serving(worker, (f"{worker}:1",), "node17")
    replicas.serving(walled, (), "wall")
    replicas.declare(ref, FileOrigin(shared=PATH))
    replicas.wanted(bad, [ref.name])
    assert fetches(replicas) == {bad: THERE}
    not_there(replicas, bad, ref.name)
    replicas.pump(0.0)
    [(first, message)] = replicas.out
    assert isinstance(message, FetchFile)
    assert (message.source, message.ref.level) == (THERE, "workflow")
    replicas.out = []
    replicas.failed(first, FileFailed(ref.name, THERE, "full", "no room"), 0.0)
    [second] = fetches(replicas)
    assert {first, second} <= set(others)
    assert first != second
    replicas.here(second, ref.name, ref.size, "d")
    source = FileSource(second, (f"{second}:1",))
    assert fetches(replicas) == {bad: source}
    replicas.failed(bad, FileFailed(ref.name, source, "gone", "evicted"), 0.0)
    [third] = fetches(replicas)
    assert third != second  # lest the two go on like that for ever
    replicas.here(third, ref.name, ref.size, "d")
    assert fetches(replicas) == {bad: FileSource(third, (f"{third}:1",))}
    replicas.here(bad, ref.name, ref.size, "d")
    replicas.release([ref.name])
    assert sorted(worker for worker, message in replicas.out if isinstance(message, DropFiles)) == sorted([bad, third])


def test_a_path_that_several_hosts_in_a_row_do_not_see_is_lost(replicas: Replicas) -> None:
    """Not for those of one host, and not while somebody has it, from whom others have it then."""
    ref = FileRef(FileName("x3-" + "5" * 32), BIG.size, "db.fa")
    for number, worker in enumerate(WORKERS):
        replicas.serving(worker, (f"{worker}:1",), f"node{number // 2}")
    replicas.declare(ref, FileOrigin(shared=PATH))
    replicas.wanted(WORKERS[0], [ref.name])
    asked: list[WorkerId] = []
    while found := fetches(replicas):
        [worker] = found
        asked.append(worker)
        not_there(replicas, worker, ref.name)
        if len(asked) == ORIGIN_TRIES:
            break
    assert {WORKERS.index(worker) // 2 for worker in asked} == {0, 1, 2, 3}
    assert set(lost(replicas)) == set(asked)
    replicas.declare(ref, FileOrigin(shared=PATH))
    replicas.wanted(WORKERS[0], [ref.name])
    assert fetches(replicas) == {WORKERS[0]: THERE}
    replicas.here(WORKERS[0], ref.name, ref.size, "d")
    replicas.serving(WORKERS[0], ())  # so that nobody has it from there
    texts: dict[WorkerId, str] = {}
    for worker in WORKERS[1:]:
        replicas.wanted(worker, [ref.name])
        while worker not in texts:
            replicas.pump(0.0)
            said, replicas.out = replicas.out, []
            assert said
            for one, message in said:
                if isinstance(message, FetchFile):
                    not_there(replicas, one, ref.name)
                else:
                    assert isinstance(message, FileLost)
                    texts[one] = message.text
    assert all(text.endswith("; nor can it be had there from another worker") for text in texts.values())
    assert not replicas.files[ref.name].lost


@pytest.mark.parametrize("why", ["it failed", "of an earlier manager"])
def test_a_node_that_can_have_a_file_from_no_holder_has_it_from_who_reads_the_origin(replicas: Replicas, why: str) -> None:
    """A holder has crashed and its session lasts, say, or has what nobody can tell to be the right one."""
    ref = FileRef(FileName("x3-" + "5" * 32), BIG.size, "db.fa")
    bad, holder = WORKERS[:2]
    replicas.declare(ref, FileOrigin(shared=PATH))
    if why == "it failed":
        replicas.wanted(holder, [ref.name])
        assert fetches(replicas) == {holder: THERE}
    replicas.here(holder, ref.name, ref.size, "d")
    replicas.wanted(bad, [ref.name])
    [(_, source)] = fetches(replicas).items()
    if why == "it failed":
        replicas.failed(bad, FileFailed(ref.name, source, "failed", "no route to host"), 0.0)
        assert fetches(replicas) == {bad: THERE}
    not_there(replicas, bad, ref.name)
    [(scout, source)] = fetches(replicas).items()
    assert scout not in (bad, holder)
    assert source == THERE
    replicas.here(scout, ref.name, ref.size, "d")
    [(worker, source)] = fetches(replicas).items()
    assert worker == bad
    assert source.peer in ((scout,) if why == "it failed" else (scout, holder))


def test_a_small_file_that_has_changed_at_the_manager_comes_from_who_has_it(replicas: Replicas) -> None:
    """Its name is its content's."""
    first, second = WORKERS[:2]
    replicas.here(first, SMALL.name, SMALL.size)
    replicas.wanted(second, [SMALL.name])
    assert fetches(replicas) == {second: FileSource("m")}
    replicas.failed(second, FileFailed(SMALL.name, FileSource("m"), "gone", "/data/small.txt has changed"), 0.0)
    assert fetches(replicas) == {second: FileSource(first, (f"{first}:1",))}
    replicas.gone(first, [SMALL.name])
    replicas.failed(second, FileFailed(SMALL.name, FileSource(first), "gone", "evicted"), 0.0)
    replicas.pump(0.0)
    assert lost(replicas) == {second: "/data/small.txt has changed; nor can it be had there from another worker"}


def test_an_archive_that_one_worker_cannot_have_is_not_lost_to_others(replicas: Replicas) -> None:
    """A node that sees neither the path nor those that have it."""
    packed, unpacked = FileRef(FileName("b3-" + "3" * 32), BIG.size, "e.tar.gz"), FileRef(FileName("u3-" + "4" * 32), -1, "e")
    replicas.declare_environment(PoolEnvironment(unpacked, packed, PATH))
    bad, good, *others = WORKERS
    for worker in others:
        replicas.worker_lost(worker)
    replicas.serving(bad, ())
    replicas.serving(good, ())
    for worker in (good, bad):
        replicas.wanted(worker, [packed.name])
    assert fetches(replicas) == {good: THERE, bad: THERE}
    replicas.here(good, packed.name, packed.size)
    not_there(replicas, bad, packed.name)
    replicas.pump(0.0)
    assert list(lost(replicas)) == [bad]
    for worker in (good, bad):
        replicas.wanted(worker, [unpacked.name])
    source = FileSource(archive=packed)
    assert fetches(replicas) == {good: source, bad: source}
    replicas.failed(bad, FileFailed(unpacked.name, source, "gone", f"{PATH} is not there"), 0.0)
    assert lost(replicas) == {bad: f"{PATH} is not there"}
    assert not replicas.files[unpacked.name].lost


PAGE = FileRef(FileName("x3-" + "3" * 32), -1, "page")
AT_SERVER = FileSource(url="http://x/page")


def let_fail(replicas: Replicas, times: int, now: float = 0.0) -> float:
    """The server does not answer who is sent there, so many times; when that was over."""
    for _ in range(times):
        while not (asked := fetches(replicas, now)):
            now += 1.0
        [(worker, source)] = asked.items()
        assert source == AT_SERVER
        replicas.failed(worker, FileFailed(PAGE.name, source, "failed", "503"), now)
    return now


def given_back(replicas: Replicas) -> list[WorkerId]:
    """Who is to give back what needs a file."""
    said, replicas.out = replicas.out, []
    assert all(isinstance(message, FileLost) and message.later for _, message in said), said
    return [worker for worker, _ in said]


def test_an_origin_that_fails_is_tried_again_after_pauses_and_what_needs_it_given_back(replicas: Replicas) -> None:
    """So that slots run others; and one worker after the other sees whether it is back."""
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    for worker in WORKERS[:2]:
        replicas.wanted(worker, [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    assert now == ORIGIN_PAUSE * (2 ** (ORIGIN_TRIES - 1) - 1)
    assert sorted(given_back(replicas)) == WORKERS[:2]
    assert replicas.awaited(PAGE.name) == PAGE.name
    [told] = replicas.away.warnings
    assert "503" in told
    asked: list[WorkerId] = []
    for _ in range(4):
        now = let_fail(replicas, 1, now)
        asked += given_back(replicas)
    assert len(set(asked)) == 4
    while not (found := fetches(replicas, now)):
        now += 1.0
    [worker] = found
    replicas.here(worker, PAGE.name, 100, "d")
    assert replicas.away.returned == [PAGE.name]
    assert replicas.awaited(PAGE.name) == ""
    assert len(replicas.away.warnings) == 1
    assert fetches(replicas, now + 1000.0) == {}


def test_an_origin_that_fails_for_too_long_is_lost(replicas: Replicas) -> None:
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    while given_back(replicas) and now < PATIENCE - ORIGIN_PAUSE * 2 ** (ORIGIN_TRIES + 1):
        now = let_fail(replicas, 1, now)
    assert not replicas.files[PAGE.name].lost
    replicas.pump(PATIENCE)
    assert replicas.files[PAGE.name].lost == "503 (tried for 10min; Manager(file_patience=...) waits longer)"
    assert replicas.away.returned == [PAGE.name]


def test_a_pause_of_hours_between_two_failures_is_not_time_for_which_an_origin_failed(replicas: Replicas) -> None:
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.wanted(WORKERS[0], [PAGE.name])
    let_fail(replicas, 1)
    replicas.worker_lost(WORKERS[0])
    replicas.wanted(WORKERS[1], [PAGE.name])
    now = let_fail(replicas, 1, 10 * PATIENCE)
    assert lost(replicas) == {}
    assert now == replicas.files[PAGE.name].since


def test_many_files_of_a_place_that_is_away_are_lost_in_the_end_however_seldom_each_is_tried(replicas: Replicas) -> None:
    """A try of each takes half a minute, and one of all of them is made at a time."""
    refs = [FileRef(FileName(f"x3-{number:032d}"), -1, f"f{number}") for number in range(20)]
    replicas.away.patience = 3600.0
    for number, ref in enumerate(refs):
        replicas.declare(ref, FileOrigin(url=f"http://x/{number}"))
        replicas.wanted(WORKERS[0], [ref.name])
    now, under_way = 0.0, list[tuple[WorkerId, FetchFile]]()
    while now < 2 * replicas.away.patience and not all(replicas.files[ref.name].lost for ref in refs):
        for worker, asked in under_way:
            replicas.failed(worker, FileFailed(asked.ref.name, asked.source, "failed", "nothing came for 30 s"), now)
        replicas.pump(now)
        under_way, replicas.out = [(worker, said) for worker, said in replicas.out if isinstance(said, FetchFile)], []
        now += 31.0
    assert now < replicas.away.patience + 100.0


def test_files_of_a_place_are_away_together_and_come_back_together(replicas: Replicas) -> None:
    """One failure is enough for another one; one of them at a time is looked for, each in its turn."""
    other = FileRef(FileName("x3-" + "4" * 32), -1, "other")
    elsewhere = FileRef(FileName("x3-" + "5" * 32), -1, "elsewhere")
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.declare(other, FileOrigin(url="http://x/other"))
    replicas.declare(elsewhere, FileOrigin(url="http://y/page"))
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    given_back(replicas)
    for ref, source in ((other, FileSource(url="http://x/other")), (elsewhere, FileSource(url="http://y/page"))):
        replicas.wanted(WORKERS[1], [ref.name])
        assert fetches(replicas, now) == {WORKERS[1]: source}
        replicas.failed(WORKERS[1], FileFailed(ref.name, source, "failed", "503"), now)
        assert replicas.awaited(ref.name) == (other.name if ref is other else "")
        assert given_back(replicas) == ([WORKERS[1]] if ref is other else [])
    replicas.worker_lost(WORKERS[1])
    looked: list[FileName] = []
    while True:
        now += ORIGIN_PAUSE * 2**ORIGIN_TRIES
        replicas.pump(now)
        [(worker, message)] = replicas.out
        assert isinstance(message, FetchFile)
        replicas.out = []
        looked.append(message.ref.name)
        replicas.pump(now)
        assert replicas.out == []
        if len(looked) == 3:
            break
        replicas.failed(worker, FileFailed(message.ref.name, message.source, "failed", "503"), now)
        assert given_back(replicas) == [worker]
    assert looked == [PAGE.name, other.name, PAGE.name]
    replicas.here(worker, PAGE.name, 100, "d")
    assert sorted(replicas.away.returned) == [PAGE.name, other.name]


def test_a_file_that_fails_while_others_come_from_there_is_waited_for_by_itself(replicas: Replicas) -> None:
    """A web server has one page that it cannot make: others that come wake nothing that waits for it, nor begin its time anew."""
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    given_back(replicas)
    woken = 0
    while not replicas.files[PAGE.name].lost and now < 2 * PATIENCE:
        good = FileRef(FileName(f"x3-{int(now):032d}"), -1, "good")
        replicas.declare(good, FileOrigin(url=f"http://x/{int(now)}"))
        replicas.wanted(WORKERS[1], [good.name])
        replicas.pump(now)
        asked = [(worker, said) for worker, said in replicas.out if isinstance(said, FetchFile)]
        replicas.out = []
        for worker, fetch in asked:
            if fetch.ref == good:
                replicas.here(worker, good.name, 100, "d")
        woken += replicas.away.returned.count(PAGE.name)
        if replicas.away.returned and not replicas.files[PAGE.name].lost:
            replicas.wanted(WORKERS[0], [PAGE.name])
        replicas.away.returned = []
        for worker, fetch in asked:
            if fetch.ref == PAGE:
                replicas.failed(worker, FileFailed(PAGE.name, fetch.source, "failed", "500"), now)
        now += 10.0
    assert now <= PATIENCE + 40.0
    assert woken == 2, "when the first other one came, and when it was lost"
    assert len(replicas.away.warnings) <= 2
    assert not replicas.away.places


def test_where_nobody_can_look_whether_an_origin_is_back_calls_that_need_it_are_sent_again(replicas: Replicas) -> None:
    """Or those who come would never try. So it is where four in a row have no room: the call is to hear that."""
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    given_back(replicas)
    now += ORIGIN_PAUSE * 2**ORIGIN_TRIES
    told: list[WorkerId] = []
    while asked := fetches(replicas, now):  # each at once, as that says nothing about the server
        assert replicas.away.returned == []
        [worker] = asked
        told.append(worker)
        replicas.failed(worker, FileFailed(PAGE.name, AT_SERVER, "full", "no room"), now)
    assert len(set(told)) == len(told) == ORIGIN_TRIES
    assert replicas.away.returned == [PAGE.name]
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, 1, now)
    assert given_back(replicas) == [WORKERS[0]]
    for worker in WORKERS:
        replicas.worker_lost(worker)
    replicas.pump(now + 100.0)
    assert replicas.away.returned == [PAGE.name] * 2
    assert not replicas.files[PAGE.name].lost


def test_who_looks_and_hangs_is_not_the_only_one_to_look(replicas: Replicas) -> None:
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    given_back(replicas)
    while not (asked := fetches(replicas, now)):
        now += 1.0
    assert fetches(replicas, now + PROBE_SECONDS - 1.0) == {}
    second = fetches(replicas, now + PROBE_SECONDS)
    assert len(second) == 1
    assert second.keys() != asked.keys()
    replicas.worker_lost(*asked)


@pytest.mark.parametrize("origin", [AT_MANAGER, FileOrigin(url=AT_SERVER.url)])
def test_a_file_that_another_worker_is_reading_is_not_lost_when_one_fails_at_the_end_of_its_time(
    replicas: Replicas, origin: FileOrigin
) -> None:
    replicas.declare(PAGE, origin)
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = 0.0
    while not replicas.away.places:
        for worker, source in fetches(replicas, now).items():
            replicas.failed(worker, FileFailed(PAGE.name, source, "failed", "503"), now)
        now += 1.0
    given_back(replicas)
    now += ORIGIN_PAUSE * 2**ORIGIN_TRIES
    [first] = fetches(replicas, now)
    [(second, source)] = fetches(replicas, now + PROBE_SECONDS).items()
    replicas.failed(second, FileFailed(PAGE.name, source, "failed", "503"), PATIENCE + 60.0)
    assert given_back(replicas) == [second]
    fetches(replicas, PATIENCE + 60.0)
    replicas.here(first, PAGE.name, 100, "d")
    assert replicas.away.returned == [PAGE.name]
    assert not replicas.files[PAGE.name].lost


@pytest.mark.parametrize("workers", [1, len(WORKERS)])
def test_a_large_file_that_is_looked_for_is_not_read_by_one_worker_after_the_other(replicas: Replicas, workers: int) -> None:
    """Nobody can tell whether the first two hang. Nor are calls sent to wait for it in slots."""
    for worker in WORKERS[workers:]:
        replicas.worker_lost(worker)
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    given_back(replicas)
    for _ in range(20):
        now += PROBE_SECONDS
        fetches(replicas, now)
    assert len(replicas.files[PAGE.name].fetching) == min(workers, ORIGIN_FETCHES)
    assert replicas.away.returned == []


@pytest.mark.parametrize("well", [False, True])
def test_files_of_a_place_from_which_one_is_on_its_way_are_not_lost_meanwhile(replicas: Replicas, well: bool) -> None:
    """A large one takes its time; where nothing comes of it they are."""
    other = FileRef(FileName("x3-" + "4" * 32), -1, "other")
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.declare(other, FileOrigin(url="http://x/other"))
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    replicas.wanted(WORKERS[1], [other.name])
    replicas.pump(now)
    replicas.failed(WORKERS[1], FileFailed(other.name, FileSource(url="http://x/other"), "failed", "503"), now)
    replicas.out = []
    while not (asked := fetches(replicas, now)):
        now += 1.0
    [worker] = asked
    now += PATIENCE
    fetches(replicas, now)
    assert replicas.awaited(PAGE.name)
    assert replicas.awaited(other.name)
    if well:
        replicas.here(worker, PAGE.name, 100, "d")
        assert sorted(replicas.away.returned) == [PAGE.name, other.name]
    else:
        for one in tuple(replicas.files[PAGE.name].fetching):
            replicas.failed(one, FileFailed(PAGE.name, AT_SERVER, "failed", "cut off"), now)
    replicas.out = []
    replicas.pump(now)
    assert [bool(replicas.files[ref.name].lost) for ref in (PAGE, other)] == [not well] * 2


def test_a_file_that_is_released_while_its_origin_is_away_is_forgotten(replicas: Replicas) -> None:
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    given_back(replicas)
    while not (asked := fetches(replicas, now)):
        now += 1.0
    replicas.release([PAGE.name])
    [worker] = asked
    replicas.failed(worker, FileFailed(PAGE.name, AT_SERVER, "failed", "503"), now)
    replicas.pump(now)
    assert PAGE.name not in replicas.files
    assert not replicas.away.places


def test_what_is_unpacked_of_a_file_that_is_away_is_given_back_too(replicas: Replicas) -> None:
    unpacked = FileRef(FileName("u3-" + "4" * 32), -1, "e")
    replicas.declare(PAGE, FileOrigin(url=AT_SERVER.url))
    replicas.declare(unpacked, FileOrigin(archive=PAGE))
    replicas.wanted(WORKERS[0], [unpacked.name])
    source = FileSource(archive=PAGE)
    assert fetches(replicas) == {WORKERS[0]: source}
    replicas.wanted(WORKERS[0], [PAGE.name])
    now = let_fail(replicas, ORIGIN_TRIES)
    given_back(replicas)
    replicas.failed(WORKERS[0], FileFailed(unpacked.name, source, "failed", "503"), now)
    assert given_back(replicas) == [WORKERS[0]]
    assert replicas.awaited(unpacked.name) == PAGE.name


@pytest.mark.parametrize("held", [False, True])
def test_a_url_that_changed_is_what_it_is_now_when_it_is_declared_again(replicas: Replicas, held: bool) -> None:
    """While others have what it was, who declares it again is given that."""
    ref, source = FileRef(FileName("x3-" + "3" * 32), -1, "set.bin"), FileSource(url="http://somewhere/set.bin")
    first, second, third = WORKERS[:3]
    replicas.declare(ref, FileOrigin(url=source.url))
    replicas.wanted(first, [ref.name])
    assert fetches(replicas) == {first: source}
    replicas.here(first, ref.name, BIG.size, "a")
    if not held:
        replicas.worker_lost(first)
        replicas.wanted(second, [ref.name])
        for number in range(ORIGIN_TRIES):
            assert fetches(replicas, 100.0 * number) == {second: source}
            replicas.failed(second, FileFailed(ref.name, source, "damaged", "it has changed"), 100.0 * number)
        assert "it has changed" in lost(replicas)[second]
    replicas.release([ref.name] if held else [])
    replicas.declare(ref, FileOrigin(url=source.url))
    replicas.wanted(third, [ref.name])
    replicas.pump(1000.0)
    said, replicas.out = replicas.out, []
    [(_, message)] = said
    assert isinstance(message, FetchFile)
    assert message.digest == ("a" if held else "")


def test_a_small_file_whose_origin_goes_on_failing_comes_from_who_has_it(replicas: Replicas) -> None:
    """After the first failure nobody waits for the pause to be over; nor does it grow with each worker that comes."""
    ref = FileRef(FileName("x3-" + "5" * 32), 10, "small")
    replicas.declare(ref, FileOrigin(url="http://example.org/small"))
    replicas.wanted(WORKERS[0], [ref.name])
    replicas.pump(0.0)
    replicas.here(WORKERS[0], ref.name, 10, "digest")
    for number in range(1, 40):
        worker, now = WorkerId(f"late{number}"), float(number)
        replicas.serving(worker, (f"10.0.0.1:{number}",), f"host{number}")
        for _ in range(2):
            replicas.out.clear()
            replicas.wanted(worker, [ref.name])
            replicas.pump(now)
            [fetch] = [message for who, message in replicas.out if who == worker and isinstance(message, FetchFile)]
            if fetch.source.peer:
                break
            replicas.failed(worker, FileFailed(ref.name, fetch.source, "failed", "503"), now)
        else:
            pytest.fail("it was sent to the origin again")
        replicas.here(worker, ref.name, 10, "digest")
        assert replicas.files[ref.name].not_before <= now + ORIGIN_PAUSE * 2**ORIGIN_TRIES


def test_fetches_that_fail_together_are_one_failure_of_the_origin(replicas: Replicas) -> None:
    """A moment in which the manager takes no connections must not use up all its chances."""
    replicas.declare(SMALL, FileOrigin(path="/data/small.bin"))
    for worker in WORKERS:
        replicas.wanted(worker, [SMALL.name])
    asked = fetches(replicas, 10.0)
    assert len(asked) > 1
    for worker, source in asked.items():
        replicas.failed(worker, FileFailed(SMALL.name, source, "failed", "hung up"), 10.1)
    assert replicas.files[SMALL.name].failures == 1
    assert lost(replicas) == {}


def test_a_size_that_was_not_known_is_learned(replicas: Replicas) -> None:
    url = FileRef(FileName("x3-" + "3" * 32), -1, "page")
    replicas.declare(url, FileOrigin(url="http://x/page"))
    replicas.wanted(WORKERS[0], [url.name])
    fetches(replicas)
    replicas.here(WORKERS[0], url.name, 77)
    assert replicas.files[url.name].ref.size == 77


def test_what_is_in_a_file_of_a_url_is_said_by_who_was_told_to_read_it(replicas: Replicas) -> None:
    """Its name does not tell, and who has it serves it to all others: a worker that says that it has one is not believed before that."""
    url, source = FileRef(FileName("x3-" + "3" * 32), -1, "page"), FileSource(url="http://x/page")
    replicas.declare(url, FileOrigin(url="http://x/page"))
    reader, early, third, fourth = WORKERS[:4]
    replicas.wanted(reader, [url.name])
    assert fetches(replicas) == {reader: source}
    replicas.here(early, url.name, 1 << 60, "e" * 32)
    file = replicas.files[url.name]
    assert (file.digest, file.ref.size) == ("", -1)
    replicas.wanted(third, [url.name])
    assert fetches(replicas) == {}  # it waits for the reader, and does not go to the early one
    replicas.here(reader, url.name, SMALL_BYTES, "d" * 32)
    assert (file.digest, file.ref.size) == ("d" * 32, SMALL_BYTES)
    replicas.pump(0.0)
    ((_, fetch),) = replicas.out
    assert isinstance(fetch, FetchFile)
    assert fetch.digest == "d" * 32  # whoever it is from, it must be that
    replicas.out = []
    replicas.worker_lost(reader)
    replicas.wanted(fourth, [url.name])
    assert fetches(replicas) == {fourth: FileSource(early, (f"{early}:1",))}
    replicas.failed(fourth, FileFailed(url.name, FileSource(early), "damaged", "not what it should be"), 0.0)
    assert replicas.out.pop(0) == (early, DropFiles((url.name,), damaged=True))
    assert fetches(replicas) == {}  # for the third one, who has what the reader had


def test_a_worker_that_had_a_file_of_a_shared_path_before_is_no_source_until_one_has_read_that(replicas: Replicas) -> None:
    """As when it outlives workers: nothing is said of its content."""
    kept, source = FileRef(FileName("x3-" + "4" * 32), 50 * SMALL_BYTES, "data", "forever"), FileSource(path="/shared/data")
    replicas.declare(kept, FileOrigin(shared="/shared/data"))
    replicas.here(WORKERS[0], kept.name, kept.size)
    replicas.wanted(WORKERS[1], [kept.name])
    assert fetches(replicas) == {WORKERS[1]: source}
    replicas.here(WORKERS[1], kept.name, kept.size, "d" * 32)
    for worker in WORKERS[2:4]:
        replicas.wanted(worker, [kept.name])
    replicas.pump(0.0)
    said = [message for _, message in replicas.out if isinstance(message, FetchFile)]
    assert {fetch.source.peer for fetch in said} == {WORKERS[0], WORKERS[1]}
    assert all(fetch.digest == "d" * 32 for fetch in said)


def test_a_full_worker_is_given_no_other_source(replicas: Replicas) -> None:
    """It ends by itself what needed the file."""
    replicas.wanted(WORKERS[0], [BIG.name])
    replicas.failed(WORKERS[0], FileFailed(BIG.name, fetches(replicas)[WORKERS[0]], "full", "no room"), 0.0)
    assert fetches(replicas) == {}


def test_replicas_stay_for_who_declares_the_file_again_but_those_for_one_call(replicas: Replicas) -> None:
    """A loop that declares a file in each turn sends it once. Pruned ones go."""
    passing = FileRef(FileName("b3-" + "4" * 32), 10, "part", "call")
    replicas.declare(passing, AT_MANAGER)
    for ref in (BIG, passing):
        replicas.here(WORKERS[0], ref.name, ref.size)
        replicas.release([ref.name])
    assert replicas.out == [(WORKERS[0], DropFiles((passing.name,)))]
    assert passing.name not in replicas.files
    assert list(replicas.holders(BIG.name)) == [WORKERS[0]]
    replicas.declare(BIG, AT_MANAGER)
    replicas.release([BIG.name], prune=True)
    assert replicas.out[1:] == [(WORKERS[0], DropFiles((BIG.name,)))]
    replicas.out = []


def test_a_file_that_two_programs_declared_stays_for_the_second(replicas: Replicas) -> None:
    replicas.declare(BIG, AT_MANAGER)
    replicas.release([BIG.name])
    replicas.wanted(WORKERS[0], [BIG.name])
    assert fetches(replicas) == {WORKERS[0]: FileSource("m")}


def test_one_that_wants_what_nobody_knows_is_told_so(replicas: Replicas) -> None:
    replicas.wanted(WORKERS[0], [FileName("b3-" + "9" * 32)])
    assert lost(replicas) == {WORKERS[0]: "the manager does not know this file any more: it was released"}


def test_a_lost_workers_fetch_frees_its_source(replicas: Replicas) -> None:
    replicas.wanted(WORKERS[0], [BIG.name])
    replicas.wanted(WORKERS[1], [BIG.name])
    assert list(fetches(replicas)) == [WORKERS[0]]
    replicas.worker_lost(WORKERS[0])
    assert fetches(replicas) == {WORKERS[1]: FileSource("m")}


@pytest.mark.parametrize("second_holder", [False, True])
def test_who_waits_for_a_busy_worker_that_is_lost_looks_elsewhere_at_once(replicas: Replicas, *, second_holder: bool) -> None:
    """And not when those end that fetch from there."""
    busy, beside, last, *others = WORKERS
    other = FileRef(FileName("b3-" + "7" * 32), BIG.size, "other")
    replicas.declare(other, AT_MANAGER)
    replicas.here(busy, BIG.name, BIG.size)
    replicas.here(busy, other.name, other.size)
    for worker in others[:PEER_FETCHES]:
        replicas.wanted(worker, [other.name])
    assert {source.peer for source in fetches(replicas).values()} == {busy}
    replicas.wanted(last, [BIG.name])
    assert fetches(replicas) == {}
    if second_holder:
        replicas.serving(beside, ())
        replicas.here(beside, BIG.name, BIG.size)
    replicas.worker_lost(busy)
    assert fetches(replicas) == {last: FileSource("m")}


def test_an_archive_is_unpacked_where_it_is_needed(replicas: Replicas) -> None:
    unpacked = FileRef(FileName("u3-" + "5" * 32), -1, "env")
    replicas.declare(unpacked, FileOrigin(archive=BIG))
    for worker in WORKERS:
        replicas.wanted(worker, [unpacked.name])
    assert fetches(replicas) == dict.fromkeys(WORKERS, FileSource(archive=BIG))


# ---------------------------------------------------------------- results that stay


RESULT = FileRef(FileName("r-" + "6" * 32), 5 * SMALL_BYTES, "data")


def test_a_kept_result_is_fetched_from_who_made_it(replicas: Replicas) -> None:
    """There is no other source, however small it is."""
    replicas.keep(RESULT, WORKERS[0])
    replicas.wanted(WORKERS[1], [RESULT.name])
    assert fetches(replicas) == {WORKERS[1]: FileSource(WORKERS[0], (f"{WORKERS[0]}:1",))}


def test_a_result_waits_for_its_holder_to_say_how_it_is_reached(replicas: Replicas) -> None:
    """Its door opens with the first file, a little later than the result is known."""
    late = WorkerId("late")
    replicas.keep(RESULT, late)
    replicas.wanted(WORKERS[1], [RESULT.name])
    assert fetches(replicas) == {}
    replicas.serving(late, ("late:1",))
    assert fetches(replicas) == {WORKERS[1]: FileSource(late, ("late:1",))}


def test_a_holder_that_cannot_be_reached_sends_the_result_by_way_of_the_manager(replicas: Replicas) -> None:
    """Firewalls, two batch systems: it is put into the manager's store, and fetched from there."""
    replicas.serving(WORKERS[0], ())
    replicas.keep(RESULT, WORKERS[0])
    for worker in WORKERS[1:3]:
        replicas.wanted(worker, [RESULT.name])
    replicas.pump(0.0)
    assert replicas.out == [(WORKERS[0], PushFile(RESULT.name))]
    replicas.out = []
    replicas.pushed(WORKERS[0], RESULT.name, "", 0.0)
    assert replicas.brought == [(RESULT.name, "")]
    assert list(fetches(replicas).values()) == [FileSource("m")]


def test_one_that_could_not_fetch_from_the_only_holder_gets_it_by_way_of_the_manager(replicas: Replicas) -> None:
    replicas.keep(RESULT, WORKERS[0])
    replicas.wanted(WORKERS[1], [RESULT.name])
    source = fetches(replicas)[WORKERS[1]]
    replicas.failed(WORKERS[1], FileFailed(RESULT.name, source, "failed", "no route to host"), 0.0)
    replicas.pump(0.0)
    assert replicas.out == [(WORKERS[0], PushFile(RESULT.name))]
    replicas.out = []


def test_a_result_that_nobody_can_get_is_lost_in_the_end(replicas: Replicas) -> None:
    """Its holder is asked a few times, with pauses."""
    replicas.serving(WORKERS[0], ())
    replicas.keep(RESULT, WORKERS[0])
    replicas.wanted(WORKERS[1], [RESULT.name])
    now = 0.0
    for number in range(ORIGIN_TRIES):
        replicas.pump(now)
        assert replicas.out == [(WORKERS[0], PushFile(RESULT.name))]
        replicas.out = []
        replicas.pushed(WORKERS[0], RESULT.name, "disk on fire", now)
        if number < ORIGIN_TRIES - 1:
            replicas.pump(now)
            assert replicas.out == []
            now += ORIGIN_PAUSE * 2**number
    assert lost(replicas) == {WORKERS[1]: "it cannot be had from the worker that has it: disk on fire"}


def test_a_fetch_that_fails_when_the_file_is_lost_is_the_last(replicas: Replicas) -> None:
    """Two fetch it from its origin; one finds that it is gone, and then the other fails: it does not wait for what nobody will serve."""
    for worker in WORKERS[:2]:
        replicas.wanted(worker, [SMALL.name])
    assert len(fetches(replicas)) == 2
    replicas.failed(WORKERS[0], FileFailed(SMALL.name, FileSource("m"), "gone", "no such file"), 0.0)
    replicas.failed(WORKERS[1], FileFailed(SMALL.name, FileSource("m"), "failed", "no answer"), 0.0)
    assert lost(replicas) == {WORKERS[0]: "no such file", WORKERS[1]: "no such file"}
    replicas.check()


def test_who_waits_for_a_peer_whose_disk_is_full_gets_it_elsewhere(replicas: Replicas) -> None:
    """One fetches it from the origin, another one waits to have it from there."""
    for worker in WORKERS[:2]:
        replicas.wanted(worker, [BIG.name])
    assert fetches(replicas) == {WORKERS[0]: FileSource("m")}
    replicas.failed(WORKERS[0], FileFailed(BIG.name, FileSource("m"), "full", "no space left"), 0.0)
    assert fetches(replicas) == {WORKERS[1]: FileSource("m")}


def test_what_was_released_while_it_was_fetched_is_dropped_when_it_is_there(replicas: Replicas) -> None:
    replicas.keep(RESULT, WORKERS[0])
    replicas.wanted(WORKERS[1], [RESULT.name])
    fetches(replicas)
    replicas.release([RESULT.name])
    replicas.out = []
    replicas.here(WORKERS[1], RESULT.name, RESULT.size)
    assert replicas.out == [(WORKERS[1], DropFiles((RESULT.name,)))]
    replicas.out = []
    assert RESULT.name not in replicas.files


def test_a_result_that_is_asked_for_comes_once(replicas: Replicas) -> None:
    """Into the manager's store, from the first who has it."""
    replicas.keep(RESULT, WORKERS[0])
    replicas.bring([RESULT.name])
    replicas.bring([RESULT.name])
    assert replicas.out == [(WORKERS[0], PushFile(RESULT.name))]
    replicas.out = []
    replicas.pushed(WORKERS[0], RESULT.name, "", 0.0)
    replicas.bring([RESULT.name])
    assert replicas.brought == [(RESULT.name, "")] * 2
    assert replicas.out == []


def test_a_result_whose_holder_is_lost_while_it_is_asked_for_is_an_orphan(replicas: Replicas) -> None:
    """The core has it made again; then it comes."""
    replicas.keep(RESULT, WORKERS[0])
    replicas.bring([RESULT.name])
    replicas.out = []
    replicas.worker_lost(WORKERS[0])
    assert RESULT.name in replicas.orphaned
    assert replicas.absent(RESULT.name)
    replicas.keep(RESULT, WORKERS[1])
    assert replicas.out == [(WORKERS[1], PushFile(RESULT.name))]
    replicas.out = []


def test_who_waits_for_an_orphan_is_told_to_come_back(replicas: Replicas) -> None:
    """So that it holds no slot that the remake might need; a lost one ends what needs it."""
    replicas.keep(RESULT, WORKERS[0])
    replicas.worker_lost(WORKERS[0])
    replicas.declare(RESULT, FileOrigin())  # a call still names it
    replicas.wanted(WORKERS[1], [RESULT.name])
    assert replicas.orphaned == [RESULT.name]
    replicas.orphan(RESULT.name)
    assert replicas.out == [(WORKERS[1], FileLost(RESULT.name, "it is made again", later=True))]
    replicas.out = []
    replicas.lose(RESULT.name, "its function raised")
    assert not replicas.absent(RESULT.name)
    replicas.wanted(WORKERS[1], [RESULT.name])
    assert lost(replicas) == {WORKERS[1]: "its function raised"}


def test_a_released_result_leaves_its_workers(replicas: Replicas) -> None:
    replicas.keep(RESULT, WORKERS[0])
    replicas.release([RESULT.name])
    assert replicas.out == [(WORKERS[0], DropFiles((RESULT.name,)))]
    replicas.out = []
    assert RESULT.name not in replicas.files


@pytest.mark.parametrize("kind", ["full", "gone", "failed"])
def test_what_was_released_while_it_was_fetched_in_vain_is_forgotten(replicas: Replicas, kind: str) -> None:
    """That was the end of the last that there was of it, and it may be long before a worker is lost."""
    replicas.wanted(WORKERS[0], [BIG.name])
    source = fetches(replicas)[WORKERS[0]]
    replicas.release([BIG.name])
    if kind == "failed":
        replicas.lose(BIG.name, "another one has found that it is gone")
    assert BIG.name in replicas.files
    replicas.failed(WORKERS[0], FileFailed(BIG.name, source, kind, "no"), 0.0)
    assert set(lost(replicas)) == (set() if kind == "full" else {WORKERS[0]})
    assert fetches(replicas) == {}
    assert BIG.name not in replicas.files


class Watched(dict[FileName, File]):
    """Files that are not to be looked through; ``asked``: which were looked at."""

    def __init__(self, files: dict[FileName, File]) -> None:
        super().__init__(files)
        self.asked: set[FileName] = set()

    def __getitem__(self, name: FileName) -> File:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: FileName, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def __iter__(self) -> Any:
        raise AssertionError("all files are looked at")

    def keys(self) -> Any:
        return iter(self)

    values = items = keys


def test_a_worker_that_says_how_it_is_reached_or_is_lost_costs_a_look_at_its_own_files(replicas: Replicas) -> None:
    """Whatever it has to do with them, and however many others there are and are waited for."""
    first, second, third = WORKERS[:3]
    late = WorkerId("late")
    mine = [FileRef(FileName(f"r-{number:032x}"), BIG.size, "r") for number in range(5)]
    held, fetched, awaited, pushed, apart = (ref.name for ref in mine)
    others = [FileRef(FileName(f"r-{number:032x}"), BIG.size, "r") for number in range(5, 50)]
    for ref, holder in zip([*mine, *others], [second, first, late, second, first, *[late] * len(others)], strict=True):
        replicas.keep(ref, holder)
    replicas.bring([pushed])
    replicas.gone(second, [pushed])
    replicas.out = []
    replicas.wanted(second, [apart])
    replicas.failed(second, FileFailed(apart, fetches(replicas)[second], "failed", "no route to host"), 0.0)
    replicas.orphan(apart)
    replicas.out = []
    replicas.wanted(third, [ref.name for ref in others])
    replicas.wanted(second, [fetched, awaited])
    assert fetches(replicas) == {second: FileSource(first, (f"{first}:1",))}
    assert replicas.moving() == (1, len(others) + 1)
    files, watched = replicas.files, Watched(replicas.files)
    assert files[pushed].pushing == second
    assert files[apart].apart
    replicas.files = watched
    replicas.serving(second, ("elsewhere:1",))
    replicas.worker_lost(second)
    replicas.files = files
    assert watched.asked == {held, fetched, awaited, pushed, apart}
    assert replicas.moving() == (0, len(others))
    assert replicas.counts() == {first: 2, late: len(others) + 1}
    assert not files[pushed].pushing
    assert not files[apart].apart


def test_nothing_is_kept_of_a_worker_that_was_lost_when_one_tells_that_it_could_not_fetch_from_there(replicas: Replicas) -> None:
    """Nothing would ever end that."""
    first, second = WORKERS[:2]
    replicas.here(first, BIG.name, BIG.size)
    replicas.wanted(second, [BIG.name])
    source = fetches(replicas)[second]
    assert source.peer == first
    replicas.worker_lost(first)
    replicas.failed(second, FileFailed(BIG.name, source, "failed", "no route to host"), 0.0)
    replicas.check(WORKERS[1:])
    assert fetches(replicas) == {second: FileSource("m")}


class Machine(RuleBasedStateMachine):
    """Any order of events: the books agree, limits hold, and who waits for what can be had is served in the end."""

    names = Bundle("names")
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.replicas = Replicas("m")
        self.now = 0.0
        self.told = set(WORKERS[:5])
        for worker in WORKERS[:5]:
            self.replicas.serving(worker, (f"{worker}:1",))

    @rule(target=names, number=st.integers(0, 3), size=st.sampled_from([10, BIG.size]), stored=st.booleans())
    def declare(self, number: int, size: int, stored: bool) -> FileName:
        name = FileName(f"b3-{number:032x}")
        self.replicas.declare(FileRef(name, size, "f"), FileOrigin(object=ObjectRef(ObjectName(name), size)) if stored else AT_MANAGER)
        return name

    @rule(target=names, number=st.integers(0, 1), size=st.sampled_from([10, BIG.size]))
    def declare_shared(self, number: int, size: int) -> FileName:
        name = FileName(f"x3-{number:032x}")
        self.replicas.declare(FileRef(name, size, "f"), FileOrigin(shared=f"/shared/{number}"))
        return name

    @rule(target=names, number=st.integers(0, 2), worker=st.sampled_from(WORKERS))
    def keep(self, number: int, worker: WorkerId) -> FileName:
        name = FileName(f"r-{number:032x}")
        known = self.replicas.files.get(name)
        if known is None or worker not in known.waiting:  # it would have made what it waits for
            self.replicas.keep(FileRef(name, BIG.size, "r"), worker)
        return name

    @rule(name=names)
    def bring(self, name: FileName) -> None:
        if name.startswith("r-"):
            self.replicas.bring([name])

    @rule(text=st.sampled_from(["", "no"]))
    def push(self, text: str) -> None:
        for name, file in list(self.replicas.files.items()):
            if file.pushing:
                self.replicas.pushed(file.pushing, name, text, self.now)

    @rule(again=st.booleans())
    def orphans(self, again: bool) -> None:
        orphaned, self.replicas.orphaned = self.replicas.orphaned, []
        for name in orphaned:
            if again:
                self.replicas.orphan(name)
            elif self.replicas.absent(name):
                self.replicas.lose(name, "nobody makes it again")

    @rule(target=running, name=names, worker=st.sampled_from(WORKERS))
    def ride(self, name: FileName, worker: WorkerId) -> list[tuple[WorkerId, FetchFile]]:
        message = self.replicas.ride(worker, name)
        return [(worker, message)] if message is not None else []

    @rule(worker=st.sampled_from(WORKERS), reached=st.booleans(), host=st.sampled_from(["a", "b", ""]))
    def serve(self, worker: WorkerId, reached: bool, host: str) -> None:
        self.replicas.serving(worker, (f"{worker}:1",) if reached else (), host)
        self.told.add(worker)

    @rule(name=names, worker=st.sampled_from(WORKERS))
    def want(self, name: FileName, worker: WorkerId) -> None:
        self.replicas.wanted(worker, [name])

    @rule(target=running, seconds=st.sampled_from([15.0, 100.0]))
    def pump(self, seconds: float) -> list[tuple[WorkerId, FetchFile]]:
        self.now += seconds
        self.replicas.pump(self.now)
        said, self.replicas.out = self.replicas.out, []
        return [(worker, message) for worker, message in said if isinstance(message, FetchFile)]

    @rule(what=consumes(running), kind=st.sampled_from(["", "gone", "failed", "damaged", "full"]))
    def end(self, what: list[tuple[WorkerId, FetchFile]], kind: str) -> None:
        for worker, message in what:
            file = self.replicas.files.get(message.ref.name)
            if file is None or worker not in file.fetching:
                continue
            if kind:
                self.replicas.failed(worker, FileFailed(message.ref.name, message.source, kind, "text"), self.now)
            else:
                self.replicas.here(worker, message.ref.name, message.ref.size, "digest")

    @rule(name=names, prune=st.booleans())
    def release(self, name: FileName, prune: bool) -> None:
        self.replicas.release([name], prune=prune)

    @rule(name=names, worker=st.sampled_from(WORKERS))
    def gone(self, name: FileName, worker: WorkerId) -> None:
        self.replicas.gone(worker, [name])

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker: WorkerId) -> None:
        """Whom that gives a source is served at once: a look at all who wait finds nothing more to say."""
        self.look_at_all()
        self.replicas.worker_lost(worker)
        self.told.discard(worker)
        self.replicas.pump(self.now)
        said = len(self.replicas.out)
        self.look_at_all()
        assert self.replicas.out[said:] == []

    def look_at_all(self) -> None:
        self.replicas._touched.update(dict.fromkeys(self.replicas.files))  # pyright: ignore[reportPrivateUsage]
        self.replicas.pump(self.now)

    @invariant()
    def agrees(self) -> None:
        self.replicas.check()
        self.replicas.pump(self.now)
        self.replicas.check()
        under_way, waiting = self.replicas.moving()
        assert under_way == sum(len(file.fetching) for file in self.replicas.files.values())
        assert waiting == sum(len(file.waiting) for file in self.replicas.files.values())
        for name, file in self.replicas.files.items():
            assert file.declared or file.holders or file.fetching or file.waiting, "nothing is left of it"
            if file.waiting and not file.fetching and self.now >= file.not_before:
                made = file.origin == FileOrigin() or any(map(file.blind, file.waiting))
                to_come = made and (file.pushing or self.replicas.absent(name) or file.holders.keys() - self.told)
                assert under_way or to_come, "somebody waits, and nothing is under way"


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
