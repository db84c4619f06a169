"""Who may act as a program at a manager, over real connections."""

# pyright: reportPrivateUsage=false
# What the manager's core holds is the proof.

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest

from windlass import Manager
from windlass.bulk import ObjectGone
from windlass.dataplane import DataClient
from windlass.identity import CLIENT, ENROL, FACTORY, WORKER, ConnectionFile, read_connection_file
from windlass.manager.attachments import Attachments
from windlass.manager.core import Core
from windlass.manager.programs import SHIFT, Program
from windlass.messages import (
    PROTOCOL,
    CallId,
    CallOptions,
    CallSent,
    CancelSubmitted,
    DefineFunctions,
    EndManager,
    EndsRead,
    FunctionId,
    GetStatus,
    Hello,
    InstallLibrary,
    KeepCalls,
    LibraryId,
    LibrarySpec,
    Message,
    ObjectName,
    PilotId,
    PoolName,
    Refused,
    ReleaseObjects,
    RemoveLibrary,
    Resources,
    Status,
    SubmitCalls,
    Welcome,
    WorkerInfo,
)
from windlass.nearby import Process
from windlass.object_store import ObjectStore
from windlass.objects import content_name
from windlass.session import heard_by, said_by
from windlass.transport import connect, dial

LIBRARY = LibraryId("lib@1")
SAYINGS: list[Message] = [
    SubmitCalls(LIBRARY, CallOptions(), [CallSent(CallId(1), FunctionId(b"f" * 16), b"")]),
    CancelSubmitted((CallId(1),)),
    InstallLibrary(LibrarySpec(LIBRARY, "lib", sys.version_info[:2])),
    RemoveLibrary(LIBRARY),
    DefineFunctions(()),
    ReleaseObjects((ObjectName("r-" + "0" * 32),)),
    KeepCalls(True),
    EndsRead((CallId(1),)),
    EndManager("because"),
    GetStatus(),
]


@pytest.fixture
def manager() -> Iterator[Manager]:
    with Manager(reconnect_grace=0.2) as manager:
        yield manager


def credential(manager: Manager, role: str, name: str) -> ConnectionFile:
    certificate, key = manager._server.authority.credential(role, name)
    known = read_connection_file(manager.connection_file)
    return msgspec.structs.replace(known, role=role, certificate=certificate.decode(), key=key.decode(), path="")


def hello(role: str, name: str) -> Hello:
    info = WorkerInfo("host", 1, Resources(2.0), (), PoolName("pool"), PilotId("p1")) if role == "worker" else None
    return Hello(role, PROTOCOL, "0", sys.version_info[:2], name, worker=info)


@pytest.mark.parametrize("role", [WORKER, ENROL, FACTORY])
def test_only_the_users_own_credential_may_act_as_a_program(manager: Manager, role: str) -> None:
    """Pilots hold certificates of the same authority; with them nobody gets a connection of the role client, nor its data."""

    async def ask(purpose: str) -> Any:
        known = credential(manager, role, "w1")
        said = msgspec.structs.replace(hello("client", "w1"), purpose=purpose)
        connection, answer, _ = await dial(known.manager, known.addresses, known.client_context(), said)
        connection.close()
        await connection.gone
        return answer

    for purpose in ("control", "data"):
        answer = asyncio.run(ask(purpose))
        assert isinstance(answer, Refused)
        assert "may not be used as 'client'" in answer.text


@pytest.mark.parametrize(("role", "certificate"), [("worker", WORKER), ("factory", CLIENT)])
@pytest.mark.parametrize("message", SAYINGS, ids=lambda message: type(message).__name__)
def test_what_a_program_says_is_refused_from_other_roles_unread(manager: Manager, role: str, certificate: str, message: Message) -> None:
    """The decoder made for a role knows no other role's messages: the session of who says one is over, and nothing was done."""
    lost: list[str] = []

    async def say() -> None:
        ended = asyncio.Event()

        def gone(reason: str) -> None:
            lost.append(reason)
            ended.set()

        link = connect(
            credential(manager, certificate, "w1"),
            lambda: hello(role, "w1"),
            lambda batch: None,
            on_cut=gone,
            on_lost=gone,
        )
        while not link.connected:
            await asyncio.sleep(0.002)
        link.send(message)
        await asyncio.wait_for(ended.wait(), 10)
        link.close()
        await link.gone(2)

    asyncio.run(say())
    assert lost
    assert not manager._core.calls
    assert not manager._core.libraries
    assert not manager.closed


def test_the_messages_of_a_program_are_those_and_no_others() -> None:
    """A message that is added to the role is added to the tests of who may not say it."""
    allowed = msgspec.msgpack.encode([*SAYINGS])
    assert said_by("client").decode(allowed) == SAYINGS
    for role in ("worker", "factory"):
        with pytest.raises(msgspec.ValidationError):
            said_by(role).decode(allowed)
    with pytest.raises(msgspec.ValidationError):
        heard_by("client").decode(msgspec.msgpack.encode([GetStatus()]))
    assert heard_by("client").decode(msgspec.msgpack.encode([Status(b"{}")])) == [Status(b"{}")]


class Peer:
    """A program's link, as far as its calls go on."""

    def __init__(self, peer: str) -> None:
        self.peer, self.session_id, self.mute, self.closed = peer, "", False, False

    def send(self, *_: Message) -> None:
        pass

    def process(self) -> Process | None:
        return None

    def unheard(self) -> list[Message]:
        return []

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("how", ["mute", "leaving", "late"])
def test_what_a_life_left_is_the_next_ones_although_its_connection_was_there_still(how: str) -> None:
    """Its machine has crashed, it is about to say goodbye, or that it had crashed turned out when the next one was there."""
    core = Core()
    nothing: Any = None
    here = Attachments(core, nothing, nothing, nothing, nothing, nothing, nothing)
    core.install(LibrarySpec(LIBRARY, "lib", sys.version_info[:2]), 1.0)
    links = [cast("Any", Peer(f"life {number}")) for number in range(2)]

    def begin(link: Any) -> Program:
        program = here.join(link)
        here.said(program, KeepCalls(True, journal="j"), 1.0)
        return program

    def submit(program: Program) -> None:
        call = CallSent(CallId(1), FunctionId(b"f" * 16), b"", key=b"k")
        here.said(program, SubmitCalls(LIBRARY, CallOptions(), [call]), 1.0)

    first = begin(links[0])
    submit(first)
    links[0].mute = how == "mute"
    if how == "leaving":
        here.said(first, KeepCalls(True, leaving=True), 1.0)
    second = begin(links[1])
    assert links[0].closed is (how != "late")
    if how == "late":
        here.left(first, "its connection was cut", 1.0)
    submit(second)
    assert list(core.calls) == [second.number << SHIFT | 1]
    assert not first.calls


def test_a_manager_that_is_part_of_a_program_is_not_ended_from_elsewhere(manager: Manager) -> None:
    """It ends with its program; only one that runs on its own can be told to end."""
    link_name = "program"

    async def say() -> None:
        heard: list[Message] = []
        link = connect(read_connection_file(manager.connection_file), lambda: hello("client", link_name), heard.extend)
        while not link.connected:
            await asyncio.sleep(0.002)
        link.send(EndManager("because"), GetStatus())
        while not heard:
            await asyncio.sleep(0.002)
        link.close()
        await link.gone(2)

    asyncio.run(say())
    assert not manager.closed


def test_objects_are_put_only_by_programs_that_are_attached(manager: Manager, tmp_path: Any) -> None:
    """A data connection without a program's session could fill the store with what nobody ever lets go."""

    async def put() -> None:
        store = ObjectStore(tmp_path / "store")
        data = b"x" * 1000
        client = DataClient(read_connection_file(manager.connection_file), lambda: hello("client", "stranger"), store)
        try:
            with pytest.raises(ObjectGone, match="its program is not attached any more"):
                await client.put_bytes(content_name(data), memoryview(data))
        finally:
            await client.close()
            store.close()

    asyncio.run(put())


def test_what_is_put_again_as_its_answer_was_lost_is_released_once(manager: Manager, tmp_path: Any) -> None:
    """Else arguments would fill the store that nobody needs any more. What is put for another use is another."""
    data = b"x" * 1000
    name = content_name(data)

    async def put() -> None:
        store, known = ObjectStore(tmp_path / "store"), read_connection_file(manager.connection_file)
        link = connect(known, lambda: hello("client", "program"), lambda batch: None)
        client = DataClient(known, lambda: hello("client", "program"), store)

        def pins() -> list[int]:
            return [program.pins[name] for program in manager._server.attachments.programs.known.values()]

        try:
            while not link.connected:
                await asyncio.sleep(0.002)
            client.use_welcome(Welcome(link.session_id, 0, known.manager, "0"))
            for use, held in ((1, 1), (1, 1), (2, 2)):
                await client.put_bytes(name, memoryview(data), use)
                assert pins() == [held]
            for held in (1, 0):
                link.send(ReleaseObjects((name,)))
                assert await link.acknowledged(10)
                assert pins() == [held]
            await client.put_bytes(name, memoryview(data), 1)
            assert pins() == [1], "all was released, so that it is another use"
        finally:
            await client.close()
            link.close()
            await link.gone(2)
            store.close()

    asyncio.run(put())
