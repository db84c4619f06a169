"""Real sockets, real TLS, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.shared.ports import silent

import windlass
from windlass import transport
from windlass.errors import Closed, ConnectionRefused, UsageError
from windlass.identity import CLIENT, ENROL, FACTORY, WORKER, Authority, ConnectionFile, Identity, new_key_and_request, read_connection_file
from windlass.links import Link
from windlass.listener import Listener
from windlass.messages import (
    MAX_FRAME_BYTES,
    PROTOCOL,
    CallId,
    CallRun,
    CertificateRequest,
    Drain,
    FunctionId,
    GetStatus,
    Goodbye,
    Hello,
    InstanceId,
    Message,
    Refused,
    RunCalls,
    Status,
    Welcome,
    WorkerReport,
)
from windlass.session import encode_one
from windlass.transport import connect, open_port

LIMIT = 30.0  # seconds that anything may take that is to happen


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(3 * LIMIT):
            await work()

    asyncio.run(limited())


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another task is about to bring about."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.001)


def report(number: int) -> WorkerReport:
    return WorkerReport(memory_used=number, memory_limit=0, seconds_left=0.0, running=0, queued=0)


def hello(peer: str = "w1", role: str = "worker", **more: Any) -> Hello:
    return Hello(role, PROTOCOL, "0", (3, 11), peer, **more)


class Shell:
    """A handler that keeps what it is told."""

    def __init__(self, **welcome: Any) -> None:
        self.welcome = welcome
        self.links: dict[str, Link] = {}
        self.heard: list[tuple[str, Message]] = []
        self.cuts: list[str] = []
        self.resumed: list[Hello | None] = []
        self.lost: list[str] = []
        self.identities: list[Identity] = []
        self.refuse, self.retry = "", False
        self.answer: Callable[[Link, Message], None] = lambda link, message: None

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        self.identities.append(identity)
        if self.refuse:
            return Refused(self.refuse, self.retry)
        session = hello.session if hello.session in self.links else f"s-{os.urandom(8).hex()}"
        return Welcome(session=session, received=0, manager="m1", version="0", **self.welcome)

    def attach(self, session: str, link: Link) -> None:
        self.links[session] = link

        def incoming(batch: list[Message]) -> None:
            for message in batch:
                self.heard.append((link.peer, message))
                self.answer(link, message)

        link.on_messages = incoming
        link.on_cut = self.cuts.append
        link.on_resumed = self.resumed.append
        link.on_lost = self.lost.append

    @property
    def numbers(self) -> list[int]:
        return [message.memory_used for _, message in self.heard if isinstance(message, WorkerReport)]

    @property
    def link(self) -> Link:
        (link,) = self.links.values()
        return link


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create("m1", tmp_path_factory.mktemp("state") / "m1", [])


@asynccontextmanager
async def listening(authority: Authority, shell: Shell, **options: Any) -> AsyncGenerator[Listener]:
    listener = Listener(authority, shell, **options)
    await listener.listen(["127.0.0.1"])
    try:
        yield listener
    finally:
        await listener.close()


def at(authority: Authority, listener: Listener, role: str = CLIENT, name: str = "", port: int = 0) -> ConnectionFile:
    """A connection file for any role, with a certificate of its own."""
    known = read_connection_file(authority.client_file)
    certificate, key = authority.credential(role, name or role)
    addresses = (("127.0.0.1", port or listener.addresses[0][1]),)
    return msgspec.structs.replace(known, role=role, certificate=certificate.decode(), key=key.decode(), addresses=addresses, path="")


class Peer:
    """A dialling side that keeps what it is told."""

    def __init__(self, connection: ConnectionFile, hello: Hello, **options: Any) -> None:
        self.heard: list[Message] = []
        self.welcomes: list[tuple[Welcome, bool]] = []
        self.cuts: list[str] = []
        self.lost: list[str] = []
        self.refused: list[Refused] = []
        self.troubles: list[str] = []
        self.link = connect(
            connection,
            lambda: hello,
            self.heard.extend,
            on_welcome=lambda welcome, fresh: self.welcomes.append((welcome, fresh)),
            on_cut=self.cuts.append,
            on_lost=self.lost.append,
            on_refused=self.refused.append,
            on_trouble=self.troubles.append,
            **options,
        )

    async def close(self) -> None:
        self.link.close()
        await self.link.gone(LIMIT)


def test_messages_travel_both_ways_in_order(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        shell.answer = lambda link, message: link.send(Drain(f"{message.memory_used}" if isinstance(message, WorkerReport) else "?"))
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            for number in range(200):
                peer.link.send(report(number))
            await until(lambda: len(peer.heard) == 200)
            assert shell.numbers == list(range(200))
            assert peer.heard == [Drain(str(number)) for number in range(200)]
            assert shell.identities == [Identity(WORKER, "w1")]
            await peer.close()

    run(work)


class Proxy:
    """A TCP proxy that can cut its connections after so many bytes, or let nothing through."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.cuts = 0
        self.connections = 0
        #: Bytes that a connection may carry before it is cut; 0: any number.
        self.budget = 0
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self.cuts += 1
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        mine = [writer, back]
        self._writers += mine
        left = self.budget or 1 << 60

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal left
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    await self.flowing.wait()
                    left -= len(data)
                    sink.write(data[:left] if left < 0 else data)
                    if left < 0:
                        break
                    await sink.drain()
            for end in mine:
                end.transport.abort() if left < 0 else end.close()

        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(pump(source, sink))
            self._tasks.add(task)


def test_cuts_lose_and_repeat_nothing(authority: Authority) -> None:
    """A link that is cut over and over, at any byte, in both directions at once."""

    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener, Proxy(listener.addresses[0][1]) as proxy:
            proxy.budget = 30_000
            peer = Peer(at(authority, listener, WORKER, "w1", proxy.port), hello())
            await until(lambda: shell.links)
            for number in range(600):
                peer.link.send(report(number))
                shell.link.send(Drain(f"{number} " + "x" * 150))
                if number % 50 == 0:
                    await until(lambda: shell.link.connected and peer.link.connected)
            proxy.budget = 0
            await until(lambda: len(peer.heard) >= 600 and len(shell.numbers) >= 600)
            assert shell.numbers == list(range(600))
            assert [int(message.reason.split()[0]) for message in peer.heard if isinstance(message, Drain)] == list(range(600))
            proxy.cut()
            peer.link.send(report(600))
            await until(lambda: len(shell.numbers) == 601)
            assert len(shell.resumed) == len(shell.cuts) >= 2
            assert len(shell.links) == 1
            assert not any(fresh for _, fresh in peer.welcomes)
            assert await peer.link.acknowledged(LIMIT)
            peer.link.session.check()
            await peer.close()

    run(work)


def test_who_is_at_the_other_end_may_be_asked_at_any_moment(authority: Authority) -> None:
    """Also between the end of a connection and the word of it, when it has no socket any more."""

    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener, Proxy(listener.addresses[0][1]) as proxy:
            peer = Peer(at(authority, listener, WORKER, "w1", proxy.port), hello())
            await until(lambda: shell.links and peer.link.connected)
            proxy.cut()
            said = set[str]()
            while shell.link.connected:
                said.add(shell.link.where())
                await asyncio.sleep(0)
            assert "connected from 127.0.0.1" in said
            await peer.close()

    run(work)


def test_a_half_open_connection_is_noticed_by_silence_on_both_sides(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell(heartbeat=0.05, silence=0.3)
        async with listening(authority, shell) as listener, Proxy(listener.addresses[0][1]) as proxy:
            peer = Peer(at(authority, listener, WORKER, "w1", proxy.port), hello(), dial_timeout=0.3)
            await until(lambda: shell.links and peer.link.connected)
            proxy.flowing.clear()
            await until(lambda: shell.cuts and peer.cuts)
            assert "nothing was heard from worker w1" in shell.cuts[0]
            assert "nothing was heard from manager m1" in peer.cuts[0]
            peer.link.send(report(1))
            proxy.flowing.set()
            await until(lambda: shell.numbers == [1])
            await peer.close()

    run(work)


def test_an_idle_connection_lives_on_heartbeats(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell(heartbeat=0.02, silence=5)
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: shell.links)
            heard = shell.link.last_heard
            await until(lambda: shell.link.last_heard > heard + 0.1)
            assert (shell.cuts, peer.cuts) == ([], [])
            assert shell.link.session.received == 0
            await peer.close()

    run(work)


def test_what_was_sent_before_there_is_a_connection_arrives(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            peer.link.send(report(1))
            assert not peer.link.connected
            assert await peer.link.acknowledged(LIMIT)
            assert shell.numbers == [1]
            await peer.close()

    run(work)


def test_closing_sends_what_is_left(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: peer.link.connected)
            peer.link.send(*(report(number) for number in range(5)), Goodbye("done"))
            await peer.close()
            await until(lambda: len(shell.heard) == 6)
            assert shell.heard[-1] == ("w1", Goodbye("done"))
            assert peer.lost == []

    run(work)


def test_large_frames_right_behind_the_welcome_are_taken(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        attach = shell.attach
        calls = [CallRun(CallId(number), 1, InstanceId(1), FunctionId(bytes(16)), bytes(100)) for number in range(5000)]

        def attach_and_talk(session: str, link: Link) -> None:
            attach(session, link)
            link.send(RunCalls(calls))

        shell.attach = attach_and_talk  # type: ignore[method-assign]
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: peer.heard)
            assert peer.heard == [RunCalls(calls)]
            assert peer.troubles == []
            await peer.close()

    run(work)


def test_a_worker_enrols_and_comes_back_with_its_own_certificate(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener, Proxy(listener.addresses[0][1]) as proxy:
            peer = Peer(at(authority, listener, ENROL, "", proxy.port), hello())
            await until(lambda: shell.links)
            key, request = new_key_and_request("w1")
            peer.link.send(CertificateRequest(request))
            await until(lambda: shell.heard)
            peer.link.use_certificate(authority.issue(request, "w1"), key)
            proxy.cut()
            await until(lambda: shell.resumed)
            assert shell.identities == [Identity(ENROL, ENROL), Identity(WORKER, "w1")]
            # From now on the credential that all pilots share does not do.
            thief = Peer(at(authority, listener, ENROL), hello(session=shell.link.session_id))
            await until(lambda: thief.refused)
            await thief.close()
            assert thief.refused[0].text == "worker id 'w1' is taken: choose another one"
            await peer.close()

    run(work)


@pytest.mark.parametrize(
    ("role", "name", "says", "text"),
    [
        (CLIENT, "", hello(), "a certificate for role 'client' may not be used as 'worker': use the manager's client.json or pilot.json"),
        (
            ENROL,
            "",
            hello("c", "client"),
            "a certificate for role 'enrol' may not be used as 'client': use the manager's client.json or pilot.json",
        ),
        (WORKER, "w2", hello("w1"), "the certificate belongs to worker 'w2' and may not be used by 'w1'"),
        (FACTORY, "f1", hello("f2", "factory"), "the certificate belongs to factory 'f1' and may not be used by 'f2'"),
        (WORKER, "w1", hello("w1", purpose="gossip"), "there are no connections for 'gossip': use 'control' or 'data'"),
        (WORKER, "w1", hello("w1", purpose="data"), "this listener serves no objects"),
        (ENROL, "", hello("w1", purpose="data"), "a worker that has not enrolled yet gets no data"),
    ],
)
def test_what_a_certificate_does_not_allow_is_refused(authority: Authority, role: str, name: str, says: Hello, text: str) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, role, name), says)
            await until(lambda: peer.refused)
            await peer.close()
            assert peer.refused == [Refused(text)]
            assert shell.links == {}
            assert peer.link.closed

    run(work)


def test_another_protocol_is_refused_naming_both(authority: Authority) -> None:
    async def work() -> None:
        async with listening(authority, Shell()) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), msgspec.structs.replace(hello(), protocol=99, version="9.9"))
            await until(lambda: peer.refused)
            await peer.close()
            assert peer.refused[0].text == (
                f"this manager is Windlass {windlass.__version__} and speaks protocol 1; worker w1 is Windlass 9.9 and speaks protocol 99: "
                "update the older one"
            )

    run(work)


def test_a_session_cannot_be_taken_by_another_worker(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: shell.links)
            connection = at(authority, listener, WORKER, "w2")
            sock = await asyncio.to_thread(tls, connection)
            answer = await asyncio.to_thread(talk, sock, encode_one(hello("w2", session=shell.link.session_id)))
            assert b"is not one of worker 'w2'" in answer
            assert shell.link.connected
            await peer.close()

    run(work)


def test_a_worker_that_begins_anew_ends_its_old_session(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            first = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: shell.links)
            second = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: second.welcomes)
            assert shell.lost == ["worker w1 began a new session"]
            assert len(listener.links) == 1
            first.link.close()
            await second.close()

    run(work)


def test_a_manager_that_does_not_know_the_session_welcomes_afresh(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            peer.link.send(report(1))
            await until(lambda: shell.numbers)
            old = shell.link
            shell.links.clear()
            old.close()
            await until(lambda: len(peer.welcomes) == 2)
            assert [fresh for _, fresh in peer.welcomes] == [False, True]
            peer.link.send(report(2))
            await until(lambda: shell.numbers == [1, 2])
            await peer.close()

    run(work)


def test_what_is_said_while_a_new_session_begins_is_not_said_in_it(authority: Authority) -> None:
    """It is of the session before, whose numbers of calls and instances mean others now."""

    async def work() -> None:
        shell = Shell(adopts=True)
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            peer.link.send(report(1))
            await until(lambda: shell.numbers)
            link, old, judge = peer.link, shell.link, shell.hello

            def meanwhile(hello: Hello, identity: Identity) -> Welcome | Refused:
                link._outbox.append(report(2))  # pyright: ignore[reportPrivateUsage]  # in the turn in which the answer is dealt with
                return judge(hello, identity)

            shell.hello = meanwhile  # type: ignore[method-assign]
            shell.links.clear()
            old.close()
            await until(lambda: len(peer.welcomes) == 2)
            assert link.dropped[-1] == report(2)
            link.send(report(3))
            await until(lambda: len(shell.numbers) > 1)
            assert shell.numbers == [1, 3]
            await peer.close()

    run(work)


def test_a_welcome_that_cannot_be_dealt_with_ends_the_session_aloud(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """Even one that looks like trouble with dialling: another welcome would find half of it done."""

    async def work() -> None:
        shell = Shell()
        lost: list[str] = []

        def welcomed(welcome: Welcome, fresh: bool) -> None:
            raise OSError("no room")

        async with listening(authority, shell) as listener:
            client = hello("c1", "client")
            link = connect(at(authority, listener), lambda: client, lambda batch: None, on_welcome=welcomed, on_lost=lost.append)
            await until(lambda: lost)
            assert "a defect of Windlass" in lost[0]
            assert link.closed
            assert len(shell.links) == 1

    run(work)
    assert "no room" in caplog.text


def test_the_connection_file_is_read_afresh_when_the_manager_moves(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as first:
            authority.set_addresses(first.addresses)
            peer = Peer(read_connection_file(authority.pilot_file), hello())
            await until(lambda: shell.links)
        async with listening(authority, shell) as second:
            authority.set_addresses(second.addresses)
            await until(lambda: len(peer.welcomes) == 2)
            await peer.close()

    run(work)


def test_a_manager_that_stays_away_is_given_up(authority: Authority) -> None:
    async def work() -> None:
        async with listening(authority, Shell(manager_timeout=1.5)) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: peer.welcomes)
        await until(lambda: peer.lost)
        assert "manager m1 was not reached for" in peer.lost[0]
        assert "1.5 s is the limit; the last try: 127.0.0.1 port" in peer.lost[0]
        assert peer.link.closed

    run(work)


def stand_still(seconds: float) -> None:
    """For the loop this process has been stopped for so long, and goes on now."""
    loop = asyncio.get_running_loop()
    clock = loop.time
    loop.time = lambda: clock() + seconds  # type: ignore[method-assign]


@pytest.mark.parametrize("stopped", ["in a connection", "while it dials"])
def test_who_stood_still_for_longer_than_the_limit_dials_before_it_gives_up(authority: Authority, stopped: str) -> None:
    """The manager has cut the silent one meanwhile, and is well: nobody has tried to reach it."""

    async def work() -> None:
        shell = Shell(manager_timeout=5.0)
        async with listening(authority, shell) as listener, Proxy(listener.addresses[0][1]) as proxy:
            peer = Peer(at(authority, listener, WORKER, "w1", proxy.port), hello(), manager_timeout=5.0, dial_timeout=6.0)
            if stopped == "in a connection":
                await until(lambda: peer.link.connected)
            else:
                proxy.flowing.clear()
                await until(lambda: proxy.connections)
            before = len(peer.welcomes)
            stand_still(8.0)
            proxy.cut()
            proxy.flowing.set()
            await until(lambda: len(peer.welcomes) > before or peer.lost)
            assert peer.lost == []
            peer.link.send(report(1))
            await until(lambda: shell.numbers == [1])
            await peer.close()

    run(work)


def test_who_stood_still_and_is_to_ask_again_does_so(authority: Authority) -> None:
    """The manager is there, and has something to find out first: it is not lost."""

    async def work() -> None:
        shell = Shell(manager_timeout=5.0)
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello(), manager_timeout=5.0)
            await until(lambda: peer.link.connected)
            shell.refuse, shell.retry = "not yet", True
            stand_still(8.0)
            shell.links.popitem()[1].fail("a newer one is here")
            await until(lambda: len(peer.troubles) > 1 or peer.lost)
            assert peer.lost == []
            shell.refuse = ""
            await until(lambda: len(peer.welcomes) > 1)
            await peer.close()

    run(work)


@pytest.mark.parametrize(("role", "who", "longest"), [("factory", CLIENT, 1.5), ("worker", WORKER, 7.5)])
def test_a_factory_that_is_to_ask_again_does_so_soon(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, role: str, who: str, longest: float
) -> None:
    """The place of one that is gone is its own after some seconds, and it is given up after ten. Pilots are many, and have time."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def work() -> None:
        shell = Shell(manager_timeout=60.0)
        shell.refuse, shell.retry = "not yet", True
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, who, "w1"), hello("w1", role), manager_timeout=60.0)
            monkeypatch.setattr(asyncio, "sleep", noted)
            await until(lambda: len([pause for pause in pauses if pause > 0.3]) > 12)
            monkeypatch.undo()
            await peer.close()
            assert longest / 3 <= max(pauses) <= longest

    run(work)


def test_who_is_put_off_for_longer_than_the_limit_gives_up(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell(manager_timeout=0.5)
        shell.refuse, shell.retry = "not yet", True
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello(), manager_timeout=0.5)
            await until(lambda: peer.lost)

    run(work)


def test_who_stood_still_and_finds_nobody_gives_up_after_one_round(authority: Authority) -> None:
    async def work() -> None:
        async with listening(authority, Shell(manager_timeout=5.0)) as listener, Proxy(listener.addresses[0][1]) as proxy:
            peer = Peer(at(authority, listener, WORKER, "w1", proxy.port), hello(), dial_timeout=0.5)
            await until(lambda: peer.link.connected)
            before = len(peer.troubles)
            stand_still(8.0)
            proxy.flowing.clear()
            proxy.cut()
            await until(lambda: peer.lost)
            assert f"s, and 5 s is the limit; the last try: 127.0.0.1 port {proxy.port}: no answer within 0.5 s" in peer.lost[0]
            assert len(peer.troubles) == before + 1

    run(work)


def test_the_last_try_to_reach_a_manager_is_at_the_limit(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a pause before it: one that is back in time is found, however long the pauses are by then."""
    monkeypatch.setattr(transport, "FIRST_PAUSE", 60.0)

    async def work() -> None:
        shell = Shell(manager_timeout=1.5)
        async with listening(authority, shell) as first:
            authority.set_addresses(first.addresses)
            peer = Peer(read_connection_file(authority.pilot_file), hello())
            await until(lambda: peer.welcomes)
        async with listening(authority, shell) as second:
            authority.set_addresses(second.addresses)
            await until(lambda: len(peer.welcomes) == 2)
            assert not peer.lost
            await peer.close()

    run(work)


def test_addresses_are_tried_in_turn(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses
            async with listening(authority, shell) as listener:
                good = at(authority, listener, WORKER, "w1")
                both = msgspec.structs.replace(good, addresses=(("127.0.0.1", unused.getsockname()[1]), *good.addresses))
                peer = Peer(both, hello())
                await until(lambda: peer.welcomes)
                assert peer.troubles == []
                await peer.close()

    run(work)


# ---------------------------------------------------------------- strangers


def tls(connection: ConnectionFile, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    plain = socket.create_connection(connection.addresses[0], timeout=LIMIT)
    try:
        return (context or connection.client_context()).wrap_socket(plain, server_hostname=connection.manager)
    except BaseException:
        plain.close()
        raise


def talk(sock: socket.socket, *bodies: bytes, raw: bytes = b"") -> bytes:
    """Say this, and hear all until the other side closes."""
    heard = b""
    with sock:
        try:
            sock.sendall(b"".join(struct.pack(">I", len(body)) + body for body in bodies) + raw)
            while data := sock.recv(65536):
                heard += data
        except (ConnectionError, ssl.SSLError):
            pass
    return heard


def strangers_are_shut_out(authority: Authority, stranger: Callable[[ConnectionFile], bytes], expected: bytes = b"") -> None:
    """The stranger hears nothing but ``expected``, the handler hears nothing at all, and others are served."""

    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            answer = await asyncio.to_thread(stranger, at(authority, listener, WORKER, "w1"))
            assert expected in answer
            assert expected or not answer
            assert shell.identities == []
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: peer.welcomes)
            await peer.close()

    run(work)


def test_another_authoritys_certificate_is_shut_out(authority: Authority, tmp_path: Path) -> None:
    other = read_connection_file(Authority.create("m1", tmp_path / "other").client_file)

    def stranger(connection: ConnectionFile) -> bytes:
        forged = msgspec.structs.replace(connection, certificate=other.certificate, key=other.key)
        return talk(tls(forged), encode_one(hello()))

    strangers_are_shut_out(authority, stranger)


def test_who_shows_no_certificate_is_shut_out(authority: Authority) -> None:
    def stranger(connection: ConnectionFile) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=connection.ca)
        return talk(tls(connection, context), encode_one(hello()))

    strangers_are_shut_out(authority, stranger)


def test_older_tls_is_shut_out(authority: Authority) -> None:
    def stranger(connection: ConnectionFile) -> bytes:
        context = connection.client_context()
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            tls(connection, context)
        return b""

    strangers_are_shut_out(authority, stranger)


def test_cleartext_is_shut_out(authority: Authority) -> None:
    def stranger(connection: ConnectionFile) -> bytes:
        body = encode_one(hello())
        heard = talk(socket.create_connection(connection.addresses[0], timeout=LIMIT), body)
        assert len(heard) < 20  # a TLS alert at most
        return b""

    strangers_are_shut_out(authority, stranger)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\xff\xff\xff\xff", b"a frame of 4,294,967,295 bytes was announced, and 65,536 is the most"),
        (b"\0\0\0\5hello", b"the first frame is not a Hello of this protocol"),
        (b"\0\0\0\0", b"the first frame is not a Hello of this protocol"),
        (b"GET / HTTP/1.1\r\n\r\n", b"is the most"),
    ],
)
def test_hostile_bytes_before_hello_are_answered_and_cut(authority: Authority, raw: bytes, text: bytes) -> None:
    strangers_are_shut_out(authority, lambda connection: talk(tls(connection), raw=raw), expected=text)


@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xff", b"\0\0\0\5hello", b"\0\0\0\4\x93\x05\x00\x90"])
def test_hostile_bytes_after_hello_end_the_session(authority: Authority, raw: bytes) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            sock = await asyncio.to_thread(tls, at(authority, listener, WORKER, "w1"))
            with sock:
                body = encode_one(hello())
                await asyncio.to_thread(sock.sendall, struct.pack(">I", len(body)) + body)
                await until(lambda: shell.links)
                await asyncio.to_thread(talk, sock, raw=raw)
            await until(lambda: shell.lost)
            assert "worker w1 broke the protocol" in shell.lost[0]
            assert listener.links == {}

    run(work)


def test_who_says_nothing_is_cut_and_others_are_served(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell, handshake_timeout=0.3, max_handshakes=2) as listener:
            connection = at(authority, listener, WORKER, "w1")
            silent = [socket.create_connection(listener.addresses[0]) for _ in range(4)]
            peer = Peer(connection, hello())
            await until(lambda: peer.welcomes)
            for sock in silent:
                assert await asyncio.to_thread(sock.recv, 1) == b""
                sock.close()
            await peer.close()

    run(work)


def test_a_stranger_may_have_to_leave_just_when_his_time_has_run_out(authority: Authority) -> None:
    """Both in one turn of the loop, which was held up: he leaves once, and the door goes on."""

    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell, handshake_timeout=0.05) as listener:
            loop, told = asyncio.get_running_loop(), asyncio.Event()
            with socket.create_connection(listener.addresses[0]):
                await until(lambda: len(listener.strangers))

                def make_room() -> None:
                    assert listener.strangers.send_one_away(loop.time())
                    told.set()

                loop.call_later(0.06, make_room)
                time.sleep(0.1)  # noqa: ASYNC251 - both timers are due when the loop goes on, in their order
                async with asyncio.timeout(LIMIT):
                    await told.wait()
                await until(lambda: not listener.connections and not len(listener.strangers))
            listener.handshake_timeout = LIMIT
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: peer.welcomes)
            await peer.close()

    run(work)


# ---------------------------------------------------------------- the rest of a link


def test_a_message_that_cannot_be_sent_ends_the_session_aloud(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            await until(lambda: shell.links)
            shell.link.send_now(Drain("x" * (MAX_FRAME_BYTES + 1)))
            assert shell.link.closed
            assert not shell.lost, "who sends is in the middle of something"
            await until(lambda: shell.lost)
            assert "a Drain of 1,048," in shell.lost[0]
            await peer.close()

    run(work)
    assert "cannot be sent; its session ends" in caplog.text


def test_a_handler_that_raises_ends_that_session_only(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        shell = Shell()

        def answer(link: Link, message: Message) -> None:
            if link.peer == "w1":
                raise ValueError("a defect")

        shell.answer = answer
        async with listening(authority, shell) as listener:
            good, bad = (Peer(at(authority, listener, WORKER, name), hello(name)) for name in ("w2", "w1"))
            bad.link.send(report(1))
            await until(lambda: shell.lost)
            good.link.send(report(2))
            await until(lambda: len(shell.heard) == 2)
            await bad.close()
            await good.close()

    run(work)
    assert "a defect of Windlass: messages of worker w1 were not dealt with" in caplog.text


def test_a_link_says_when_it_is_congested_and_when_no_more(authority: Authority) -> None:
    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener, Proxy(listener.addresses[0][1]) as proxy:
            peer = Peer(at(authority, listener, WORKER, "w1", proxy.port), hello())
            await until(lambda: shell.links)
            writable = asyncio.Event()
            shell.link.on_writable = writable.set
            assert not shell.link.congested
            proxy.flowing.clear()
            for _ in range(40):
                shell.link.send(Drain("x" * 500_000))
            await until(lambda: shell.link.congested)
            proxy.flowing.set()
            await asyncio.wait_for(writable.wait(), LIMIT)
            await until(lambda: len(peer.heard) == 40)
            await peer.close()

    run(work)


def test_a_port_in_use_is_named(authority: Authority) -> None:
    async def work() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            listener = Listener(authority, Shell())
            with pytest.raises(UsageError, match=rf"port {port} on '127.0.0.1' is in use: choose another one, a range like"):
                await listener.listen(["127.0.0.1"], port)
            with pytest.raises(UsageError, match=r"cannot listen on '192.0.2.1'"):
                await listener.listen(["192.0.2.1"])
            ((_, found),) = await listener.listen(["127.0.0.1"], (port, min(port + 50, 65535)))
            assert port < found <= port + 50
            await listener.close()

    run(work)


def test_one_that_was_just_accepted_is_hung_up_on_when_all_ends(authority: Authority) -> None:
    """Its task is cancelled before its first step, so only the listener can close its socket."""

    async def work() -> None:
        clients: list[socket.socket] = []
        async with listening(authority, Shell()) as listener:
            just_accepted = listener._unserved  # pyright: ignore[reportPrivateUsage]
            while not just_accepted:
                clients.append(socket.create_connection(listener.addresses[0]))
                for _ in range(4):
                    if not just_accepted:
                        await asyncio.sleep(0)
        assert [one.recv(1) for one in clients] == [b""] * len(clients)
        for one in clients:
            one.close()

    run(work)


# ---------------------------------------------------------------- ports for threads


class Threaded:
    """A manager's listener on a thread of its own."""

    def __init__(self, authority: Authority, shell: Shell) -> None:
        self._authority, self._shell = authority, shell
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with listening(self._authority, self._shell) as self.listener:
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> Threaded:
        self._thread.start()
        assert self._ready.wait(LIMIT)
        return self

    def end_session(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(lambda: self._shell.link.fail(reason))  # when it is there, which its peer hears a moment before

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(LIMIT)

    def __exit__(self, *_: object) -> None:
        self.stop()


def test_a_port_talks_from_any_thread_and_says_goodbye(authority: Authority) -> None:
    shell = Shell()
    shell.answer = lambda link, message: link.send(Status(b"{}")) if isinstance(message, GetStatus) else None
    heard: list[Message] = []
    both = threading.Event()

    def hear(message: Message) -> None:
        heard.append(message)
        if len(heard) == 2:
            both.set()

    lost: list[str] = []
    with Threaded(authority, shell) as manager:
        port = open_port(at(authority, manager.listener), "client", "me", hear, lost.append)
        port.send(GetStatus(), GetStatus())
        assert both.wait(LIMIT)
        port.send(GetStatus())
        port.close()
        assert [message for _, message in shell.heard] == [GetStatus()] * 3 + [Goodbye("closed")]
        with pytest.raises(Closed, match="the port to manager m1 is closed"):
            port.send(GetStatus())
        port.close()
    assert lost == []


def test_a_port_tells_when_its_manager_is_gone(authority: Authority) -> None:
    shell = Shell(manager_timeout=0.2)
    cut: list[str] = []
    lost: list[str] = []
    gone = threading.Event()

    def lose(reason: str) -> None:
        assert cut, "the cut comes first"
        lost.append(reason)
        gone.set()

    with Threaded(authority, shell) as manager:
        port = open_port(at(authority, manager.listener), "client", "me", lambda message: None, lose, on_cut=cut.append)
        manager.stop()
        assert gone.wait(LIMIT)
        port.close()
    assert "manager m1 was not reached" in lost[0]
    assert len(cut) == 1


@pytest.mark.parametrize("own", [True, False])
def test_a_port_tells_that_it_is_welcome_no_more(authority: Authority, own: bool) -> None:
    """Who is above would wait for ever: with a word for it, or as for a manager that is lost."""
    shell = Shell()
    said: list[str] = []
    told = threading.Event()

    def tell(text: str) -> None:
        said.append(text)
        told.set()

    with Threaded(authority, shell) as manager:
        ways: Any = (said.append, tell) if own else (tell, None)
        port = open_port(at(authority, manager.listener), "factory", "me", lambda message: None, ways[0], on_refused=ways[1])
        shell.refuse = "not any more"
        manager.end_session("another one is here")
        assert told.wait(LIMIT)
        port.close()
    assert said == ["not any more" if own else "manager m1 refuses this factory now: not any more"]


def test_a_port_that_is_refused_or_reaches_nobody_says_why(authority: Authority) -> None:
    shell = Shell()
    shell.refuse = "not today"
    with Threaded(authority, shell) as manager:
        connection = at(authority, manager.listener)
        with pytest.raises(ConnectionRefused, match="manager m1 refused this client: not today"):
            open_port(connection, "client", "me", lambda message: None, lambda reason: None)
    text = r"manager m1 was not reached at 127.0.0.1 port \d+ within 2 s: .*Connection refused; check that it still"
    with silent(connection.addresses[0][1]), pytest.raises(ConnectionRefused, match=text):
        open_port(connection, "client", "me", lambda message: None, lambda reason: None, timeout=2.0)
