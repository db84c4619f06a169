"""Real sockets, real TLS, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from windlass.errors import Closed, ConnectionRefused, InternalError, UsageError
from windlass.identity import CLIENT, ENROL, FACTORY, WORKER, Authority, ConnectionFile, Identity, new_key_and_request, read_connection_file
from windlass.links import Link
from windlass.listener import Listener
from windlass.messages import (
    MAX_FRAME_BYTES,
    PROTOCOL,
    CallId,
    CallRun,
    CallsEnded,
    CertificateRequest,
    Drain,
    FunctionId,
    GetStatus,
    Goodbye,
    Hello,
    InstanceId,
    Leave,
    Message,
    Refused,
    RunCalls,
    Status,
    Welcome,
    WorkerReport,
)
from windlass.session import encode_one
from windlass.transport import connect, open_port

LIMIT = 10.0  # seconds that anything may take that is to happen


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
        self.refuse = ""
        self.answer: Callable[[Link, Message], None] = lambda link, message: None

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        self.identities.append(identity)
        if self.refuse:
            return Refused(self.refuse)
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
