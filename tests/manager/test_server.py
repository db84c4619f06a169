"""The manager's thread: what becomes of peers that are cut off for good, and of a defect on its loop. Real sockets, real threads."""

# pyright: reportPrivateUsage=false
# What the manager keeps for peers that are gone is seen nowhere else.

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from windlass import Closed, Factory, FunctionCall, Manager, WorkersLost, links
from windlass.errors import ConnectionRefused, UsageError
from windlass.identity import CLIENT, WORKER, Address, Authority, ConnectionFile, Identity, read_connection_file
from windlass.links import Link
from windlass.manager import addresses, server
from windlass.messages import (
    PROTOCOL,
    CallId,
    CallsReturned,
    CancelSubmitted,
    Demand,
    FileName,
    GetFile,
    Goodbye,
    Hello,
    LibraryReady,
    Message,
    PilotId,
    PoolName,
    PoolOffer,
    PoolReport,
    Refused,
    Resources,
    RunCalls,
    StartLibrary,
    Welcome,
    WorkerDraining,
    WorkerId,
    WorkerInfo,
)
from windlass.transport import connect, dial

GRACE = 0.2


def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def manager() -> Iterator[Manager]:
    with Manager(reconnect_grace=GRACE, heartbeat=0.2, silence=5.0) as manager:
        manager.install_library("lib", double)
        yield manager


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"waited until {what}"
        time.sleep(0.005)


def hello(role: str, peer: str, session: str = "") -> Hello:
    info = WorkerInfo("host", 1, Resources(2.0), (), PoolName("pool"), PilotId("p1")) if role == "worker" else None
    return Hello(role, PROTOCOL, "0", sys.version_info[:2], peer, session, worker=info)


def credential(manager: Manager, role: str, peer: str) -> ConnectionFile:
    """A connection file with a certificate of the peer's own."""
    authority = manager._server.authority
    certificate, key = authority.credential(role, peer)
    known = read_connection_file(manager.connection_file)
    return msgspec.structs.replace(known, role=role, certificate=certificate.decode(), key=key.decode(), path="")


class Peer:
    """A peer of the manager that keeps what it hears and vanishes without a goodbye."""

    def __init__(self, connection: ConnectionFile, role: str, name: str) -> None:
        self.connection, self.role, self.name = connection, role, name
        self.heard: list[Message] = []
        self.session = ""

    async def visit(self, *say: Message, hear: type[Message] | None = None) -> None:
        """Be there until this was said and such a message was heard, then be gone."""
        link = connect(self.connection, lambda: hello(self.role, self.name), self.heard.extend)
        try:
            async with asyncio.timeout(10):
                while not link.connected:
                    await asyncio.sleep(0.002)
                self.session = link.session_id
                link.send(*say)
                assert await link.acknowledged(10)
                while hear is not None and not any(isinstance(message, hear) for message in self.heard):
                    await asyncio.sleep(0.002)
        finally:
            link.close()
            await link.gone(2)

    async def welcome(self) -> Welcome:
        """What the manager says to this peer when it comes back with its session."""
        asked = hello(self.role, self.name, self.session)
        connection, answer, _ = await dial(self.connection.manager, self.connection.addresses, self.connection.client_context(), asked)
        connection.abort("seen enough")
        await connection.gone
        assert isinstance(answer, Welcome)
        return answer


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def sessions(manager: Manager) -> int:
    listener = manager._server._listener
    assert listener is not None
    return len(listener.links)


def test_a_worker_that_comes_back_after_its_session_was_given_up_begins_anew(manager: Manager) -> None:
    """Its calls went back to the queue when the grace was over, so it must not go on as if nothing had been: it gets another session, and
    is used again."""
    manager.submit(FunctionCall("lib", "double", 21))
    peer = Peer(credential(manager, WORKER, "w1"), "worker", "w1")
    run(peer.visit(hear=StartLibrary))
    until(lambda: not manager.status()["workers"], "the manager gives the worker up")
    first = peer.session
    peer.heard.clear()
    assert run(peer.welcome()).session not in ("", first)
    run(peer.visit(hear=StartLibrary))


async def leave_as_calls_come(peer: Peer, idle: bool) -> None:
    """Serve the library, and say goodbye when its calls come."""
    link = connect(peer.connection, lambda: hello(peer.role, peer.name), peer.heard.extend)

    async def heard(kind: type[Any]) -> Any:
        while not (found := [message for message in peer.heard if isinstance(message, kind)]):
            await asyncio.sleep(0.002)
        return found[0]

    try:
        async with asyncio.timeout(10):
            link.send(LibraryReady((await heard(StartLibrary)).instance, 1))
            await heard(RunCalls)
            link.send(Goodbye("idle for 60 s", idle=idle))
            assert await link.acknowledged(10)
    finally:
        link.close()
        await link.gone(2)


@pytest.mark.parametrize("idle", [True, False])
def test_only_a_worker_that_held_calls_may_have_lost_them(manager: Manager, idle: bool) -> None:
    """One that says goodbye while they are on their way to it has run nothing, if it says so; older ones do not."""
    future = manager.submit(FunctionCall("lib", "double", 21).with_options(max_losses=0))
    run(leave_as_calls_come(Peer(credential(manager, WORKER, "w1"), "worker", "w1"), idle))
    until(lambda: not manager.status()["workers"], "the worker is gone")
    if idle:
        run(Peer(credential(manager, WORKER, "w2"), "worker", "w2").visit(hear=StartLibrary))
        assert not future.done()
        assert future.cancel()
    else:
        with pytest.raises(WorkersLost, match="1 times while it ran"):
            future.result(20)


def test_a_worker_that_was_given_up_may_fetch_no_more_what_it_was_told_to(manager: Manager) -> None:
    """Nor is that remembered, which would be more with each cut for as long as the manager lives."""
    sources, file = manager._server.files.sources, FileName("b3-" + "0" * 32)
    sources.told(WorkerId("w1"), file)
    run(Peer(credential(manager, WORKER, "w1"), "worker", "w1").visit())
    until(lambda: sources.allowed(Identity(WORKER, "w1"), GetFile(file)), "the manager gives the worker up")


def test_a_worker_that_comes_back_within_the_grace_keeps_its_session() -> None:
    """As long as the manager has not given the session up, it goes on."""
    with Manager(reconnect_grace=60.0) as patient:
        peer = Peer(credential(patient, WORKER, "w1"), "worker", "w1")
        run(peer.visit())
        assert run(peer.welcome()).session == peer.session
        until(lambda: not patient.status()["workers"][0]["connected"], "the manager sees that it is gone")


def test_of_who_leaves_with_nothing_to_do_no_goodbye_is_missed(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    """As one that a factory kills since it has not ended in time: a cut is told of as a warning of any other only."""

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "its session waits" in record.getMessage()]

    with caplog.at_level(logging.INFO):
        run(Peer(credential(manager, WORKER, "w1"), "worker", "w1").visit())
        run(Peer(credential(manager, WORKER, "w2"), "worker", "w2").visit(WorkerDraining("SIGTERM")))
        until(lambda: len(told()) == 2, "both cuts are seen")
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text.split(":")[0] for text in warned] == ["worker w1"]


def test_that_a_worker_drains_as_its_node_cannot_serve_is_told(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    """Pilot after pilot may do so, while their calls wait. A drain that was asked for, or that comes with the walltime, is not told."""
    run(Peer(credential(manager, WORKER, "w1"), "worker", "w1").visit(WorkerDraining("near the end of walltime", 60.0)))
    run(Peer(credential(manager, WORKER, "w2"), "worker", "w2").visit(WorkerDraining("its disk is full", trouble=True)))
    until(lambda: caplog.text.count("takes no more calls") == 1, "the second one is told of")
    told = [record.getMessage() for record in caplog.records if "takes no more calls" in record.getMessage()]
    assert told == ["worker w2 on host takes no more calls: its disk is full"]


def test_that_calls_find_no_room_at_workers_is_told_once(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    """They come back every few seconds."""
    run(Peer(credential(manager, WORKER, "w1"), "worker", "w1").visit(*[CallsReturned((), "room")] * 2, CallsReturned((), "recalled")))
    until(lambda: "its session waits" in caplog.text, "all of it was heard")
    [told] = [record.getMessage() for record in caplog.records if "given calls back" in record.getMessage()]
    assert told.startswith("worker w1 on host has given calls back, as their large arguments find no room in its store")


@pytest.mark.parametrize(("role", "certificate"), [("worker", WORKER), ("factory", CLIENT), ("client", CLIENT)])
def test_nothing_is_kept_for_a_peer_that_is_gone_for_good(manager: Manager, role: str, certificate: str) -> None:
    """Whoever vanishes without a goodbye, as killed processes do, has its session for the grace; then that is forgotten with all that was
    to be sent again."""
    run(Peer(credential(manager, certificate, "p1"), role, "p1").visit())
    until(lambda: sessions(manager) == 0, "its session is forgotten")


def test_pools_of_a_factory_that_is_gone_for_good_are_forgotten() -> None:
    """A killed factory submits no more pilots, so its pools promise nothing, and the demand is told to nobody."""
    report = PoolReport((PoolOffer(PoolName("pool"), Resources(4.0)),))
    with Manager(reconnect_grace=2.0, heartbeat=0.2, silence=5.0) as manager:
        run(Peer(credential(manager, CLIENT, CLIENT), "factory", "night-shift").visit(report))
        assert [pool["name"] for pool in manager.status()["pools"]] == ["pool"]
        until(lambda: not manager.status()["pools"], "its pools are forgotten")
        assert not manager._server.factories


def test_a_factory_that_was_cut_off_is_told_the_demand_again(manager: Manager) -> None:
    """It does nothing by what it heard before the cut."""
    connection = credential(manager, CLIENT, CLIENT)
    heard: list[Message] = []

    async def be_cut_off() -> None:
        link = connect(connection, lambda: hello("factory", "night-shift"), heard.extend)
        async with asyncio.timeout(10):
            for _ in range(2):
                while not any(isinstance(message, Demand) for message in heard):
                    await asyncio.sleep(0.002)
                heard.clear()
                assert link._connection is not None
                link._connection.abort("as if somebody had")
        link.close()

    run(be_cut_off())


def test_of_factories_with_one_name_the_second_is_refused_and_one_that_was_killed_is_followed(manager: Manager) -> None:
    """Each would cancel the other's pilots. The one that comes back when another one has its place is refused, too."""
    connection = credential(manager, CLIENT, CLIENT)

    async def work() -> None:
        refused: list[Refused] = []
        heard: dict[str, list[Message]] = {"first": [], "second": [], "third": []}

        links: list[Link] = []

        def begin(name: str) -> Link:
            links.append(connect(connection, lambda: hello("factory", "night"), heard[name].extend, on_refused=refused.append))
            return links[-1]

        async with asyncio.timeout(20):
            first = begin("first")
            while not heard["first"]:
                await asyncio.sleep(0.002)
            begin("second")
            while not refused:
                await asyncio.sleep(0.002)
            assert refused.pop().text.startswith("a factory 'night' is here already, process ")
            assert first.connected
            assert not heard["second"]
            assert first._connection is not None
            first._connection.abort("as if its process had ended")
            await asyncio.sleep(0)
            third = begin("third")
            while not heard["third"]:
                await asyncio.sleep(0.002)
            assert not refused
            while not refused:
                await asyncio.sleep(0.002)
            assert first.closed
            assert third.connected
            for link in links:
                link.close()
                await link.gone(2)

    run(work())


def test_a_second_factory_of_a_name_in_one_program_is_refused(manager: Manager) -> None:
    """Also once the first is closed the name is free."""
    with Factory(manager, "fake", name="night"):
        with pytest.raises(UsageError, match="this program has a factory 'night' already, or one that has not ended yet: close"):
            Factory(manager, "fake", name="night").start()
        with pytest.raises(ConnectionRefused, match="a factory 'night' is here already, in the manager's own program: end that one"):
            Factory(str(manager.connection_file), "fake", name="night").start()
        assert len(list((manager.pilot_file.parent / "pilots" / "night").iterdir())) == 1, "those that were refused leave nothing"
    with Factory(manager, "fake", name="night") as factory:
        port = factory._kept[0].port
        assert port is not None
    with Factory(manager, "fake", name="night"):
        port.close()  # once more, as an end in a hurry may: the name is another one's now
        with pytest.raises(UsageError, match="this program has a factory"):
            Factory(manager, "fake", name="night").start()


def test_a_factory_of_the_managers_own_program_does_not_throw_out_one_that_lives(manager: Manager) -> None:
    """Its pilots would go on without their factory, or end with it. One that has ended is followed."""
    with Factory(str(manager.connection_file), "fake", name="night") as elsewhere:
        for _ in range(2):
            with pytest.raises(
                UsageError, match=f"a factory 'night' is here already, process {os.getpid()} of the manager's host: end that"
            ):
                Factory(manager, "fake", name="night").start()
        assert not elsewhere.lost
    with Factory(manager, "fake", name="night"):
        pass


def test_pilots_learn_where_the_manager_listens_when_that_can_be_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The user's quota is over when a pool on other machines attaches: that is said, and made good when there is room."""

    def choose_address(wanted: str) -> str:
        return "127.0.0.2"

    monkeypatch.setattr(addresses, "choose_address", choose_address)
    monkeypatch.setattr(server, "WRITE_AGAIN_SECONDS", 0.01)
    full, threads = True, set[str]()
    write = Authority.set_addresses

    def quota(authority: Authority, known: Sequence[Address]) -> None:
        threads.add(threading.current_thread().name)
        if full and len(known) > 1:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        write(authority, known)

    monkeypatch.setattr(Authority, "set_addresses", quota)
    with Manager() as manager:
        file = manager._server.authority.pilot_file
        report = PoolReport((PoolOffer(PoolName("pool"), Resources(4.0), listen="ib0"),))
        run(Peer(credential(manager, CLIENT, CLIENT), "factory", "night-shift").visit(report))
        until(lambda: caplog.records, "it is said")
        assert [host for host, _ in read_connection_file(file).addresses] == ["127.0.0.1"]
        full = False
        until(lambda: len(read_connection_file(file).addresses) == 2, "it is written")
    assert [record.getMessage() for record in caplog.records] == [
        "pilots of other machines cannot reach the manager: its address cannot be written into "
        f"{file} ([Errno {errno.EDQUOT}] Disk quota exceeded); see to that, and it is done"
    ]
    assert threads == {"windlass-manager", "windlass-fetch"}, "once before it serves, and then never on the loop's thread"


@pytest.mark.parametrize("where", ["submit", "tick", "pump"])
def test_a_defect_on_the_managers_loop_ends_every_future(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in the core leaves it in a state that nobody knows: rather than futures that never end, all end with a text that says
    what happened, and the log has the traceback."""

    def broken(*args: Any) -> None:
        raise RuntimeError("the core is broken")

    with Manager() as manager:
        manager.install_library("lib", double)
        waiting = manager.submit(FunctionCall("lib", "double", 1))
        until(lambda: manager._core.calls, "the call is in the core")
        with caplog.at_level(logging.ERROR, "windlass.manager"):
            monkeypatch.setattr(manager._core, where, broken)
            with pytest.raises(Closed, match="the core is broken"):
                manager.submit(FunctionCall("lib", "double", 2)).result(20)
            with pytest.raises(Closed, match="by a defect of Windlass"):
                waiting.result(20)
        assert manager.closed
        assert "the core is broken" in caplog.text


def test_calls_that_are_cancelled_one_by_one_are_cancelled_together(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their worker gets one message: for each it takes back, and gives out again, all that it holds."""
    told: list[list[CallId]] = []

    def cancel(calls: Iterable[CallId], now: float) -> None:
        told.append(list(calls))

    monkeypatch.setattr(manager._core, "cancel", cancel)
    numbers = [CallId(number) for number in range(1000)]
    manager._server.inbox.put_all([("client", CancelSubmitted((number,))) for number in numbers])
    until(lambda: told, "the manager has taken them")
    assert told == [numbers]


def test_a_defect_while_a_worker_tells_of_ends_ends_every_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch of a worker's had beside is not in the core any more, and was not delivered: it would never end."""
    with Manager() as manager, Factory(manager, "local", cores=2, max_pilots=1):

        def broken(ends: Any) -> None:
            monkeypatch.undo()
            raise RuntimeError("the client is broken")

        monkeypatch.setattr(manager._client, "deliver_noted", broken)
        for future in [manager.submit_function(double, (number,)) for number in range(2)]:
            with pytest.raises(Closed, match=r"by a defect of Windlass: .*the client is broken"):
                future.result(20)


def test_how_far_off_a_worker_is_its_connection_tells(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """And more calls are sent ahead there."""
    seen: list[float] = []

    def round_trip_of(sock: object) -> float:
        return 0.1

    def worker_is_away(worker: WorkerId, seconds: float) -> None:
        seen.append(seconds)

    monkeypatch.setattr(links, "round_trip_of", round_trip_of)
    monkeypatch.setattr(manager._core, "worker_is_away", worker_is_away)
    connection = credential(manager, WORKER, "w1")
    run(Peer(connection, "worker", "w1").visit())
    until(lambda: seen == [0.1], "the core is told")


def test_the_core_hears_how_late_the_turns_of_the_timer_are(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may keep the interpreter's lock in C, again and again: the loop then stands still for as long."""
    late: list[float] = []

    def tick(_: float, seconds: float) -> None:
        late.append(seconds)

    monkeypatch.setattr(manager._core, "tick", tick)
    loop = manager._server._loop
    assert loop is not None
    loop.call_soon_threadsafe(lambda: manager._server._tick(loop.time() - 100.0))
    until(lambda: max(late, default=0.0) >= 100.0, "the turn that was due long ago")
    until(lambda: late[-1] < 50.0, "the next one, which is not")
