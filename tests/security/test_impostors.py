"""Who is not what he says he is: replayed, downgraded and expired connections, workers that play the manager, a client or one another."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from windlass import messages
from windlass.dataplane import DataServer
from windlass.fileserver import FileServer
from windlass.filewire import ALPN, parse_address
from windlass.framing import ProtocolError
from windlass.identity import CLIENT, ENROL, WORKER, Authority, ConnectionFile, Identity, read_connection_file, serving_context
from windlass.links import Link
from windlass.listener import Listener
from windlass.manager.sources import Sources
from windlass.messages import PROTOCOL, FileName, FileOrigin, GetFile, Hello, Refused, Welcome, WorkerId
from windlass.object_store import ObjectStore
from windlass.session import Session, encode_one, said_by
from windlass.transport import dial
from windlass.worker.peers import PeerDoor

LIMIT = 10.0
FILE = FileName("b3-" + "0" * 32)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create("m1", tmp_path_factory.mktemp("state") / "m1")


class Shell:
    """A handler that counts those who come as far as a decoded Hello."""

    def __init__(self) -> None:
        self.hellos: list[Hello] = []
        self.heard: list[messages.Message] = []

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        self.hellos.append(hello)
        return Welcome(f"s{len(self.hellos)}", 0, "m1", "0")

    def attach(self, session: str, link: Link) -> None:
        link.on_messages = self.heard.extend


def shown(authority: Authority, role: str, name: str, *addresses: tuple[str, int]) -> ConnectionFile:
    """A connection file with a certificate for this role and name."""
    known = read_connection_file(authority.client_file)
    certificate, key = authority.credential(role, name)
    return msgspec.structs.replace(known, role=role, certificate=certificate.decode(), key=key.decode(), addresses=addresses, path="")


class Recorder:
    """A proxy that keeps what the dialling side sends."""

    def __init__(self, to: tuple[str, int]) -> None:
        self.recorded = b""
        self._to = to

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        back, there = await asyncio.open_connection(*self._to)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bool) -> None:
            with suppress(OSError):
                while data := await source.read(1 << 16):
                    if keep:
                        self.recorded += data
                    sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, there, True), pump(back, writer, False))


def test_what_was_recorded_of_a_connection_is_of_no_use_again(authority: Authority) -> None:
    """TLS 1.3 without tickets and early data: the same bytes do not come as far as a decoder."""

    async def work() -> None:
        shell = Shell()
        listener = Listener(authority, shell)
        [to] = await listener.listen(["127.0.0.1"])
        recorder = Recorder(to)
        proxy = await asyncio.start_server(recorder.carry, "127.0.0.1", 0)
        through = shown(authority, CLIENT, "c", proxy.sockets[0].getsockname()[:2])
        hello = Hello("client", PROTOCOL, "0", (3, 11), "c")
        connection, answer, _ = await dial("m1", through.addresses, through.client_context(), hello)
        assert isinstance(answer, Welcome)
        connection.close()
        await connection.gone
        assert len(recorder.recorded) > 500
        for piece in (1 << 20, 300):  # as a whole, and as slowly as it came
            reader, writer = await asyncio.open_connection(*to)
            for first in range(0, len(recorder.recorded), piece):
                writer.write(recorder.recorded[first : first + piece])
                await asyncio.sleep(0)
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
        assert len(shell.hellos) == 1
        proxy.close()
        await listener.close()

    asyncio.run(work())


@contextmanager
def answering(context: ssl.SSLContext) -> Generator[tuple[tuple[str, int], bytearray]]:
    """Somebody who answers at an address, and what was said to him inside TLS."""
    said = bytearray()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            plain, _ = listening.accept()
            with plain, suppress(OSError), context.wrap_socket(plain, server_side=True) as sock:
                while data := sock.recv(1000):
                    said.extend(data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname(), said
    finally:
        listening.close()
        thread.join()


@pytest.mark.parametrize("name", ["w1", "M1", "m1.example.org", "127.0.0.1"])
def test_a_worker_cannot_play_the_manager(authority: Authority, name: str) -> None:
    """Whatever its id is, and wherever it answers: nothing is said to it."""
    known = read_connection_file(authority.client_file)
    certificate, key = authority.credential(WORKER, name)
    with answering(serving_context(known.ca, certificate, key)) as (address, said):
        victim = shown(authority, CLIENT, "c", address)

        async def work() -> None:
            with pytest.raises(ConnectionError):
                await dial("m1", victim.addresses, victim.client_context(), Hello("client", PROTOCOL, "0", (3, 11), "c"))

        asyncio.run(work())
    assert said == b""


@pytest.mark.parametrize("role", ["worker", "factory", "client"])
def test_no_role_can_say_what_another_one_says(role: str) -> None:
    """The decoder of a role knows no other messages, so nobody has to look."""
    unions: list[Any] = [messages.FromWorker, messages.FromFactory, messages.FromClient, messages.ToWorker, messages.ToClient]
    own = set(get_args({"worker": messages.FromWorker, "factory": messages.FromFactory, "client": messages.FromClient}[role]))
    others = {one.__name__ for union in unions for one in get_args(union) if one not in own}
    assert len(others) > 15
    for name in others:
        body = msgspec.msgpack.encode((1, 0, [[name]]))
        with pytest.raises(ProtocolError, match=f"frame 1 has a message that is not allowed here: Invalid value '{name}'"):
            Session(said_by(role)).take(body, 0.0)


def test_the_manager_gives_files_to_workers_that_it_has_told_and_to_nobody_else(authority: Authority, tmp_path: Path) -> None:
    """Not to the credential that only enrols, nor to a program by this way, nor to another worker."""
    store = ObjectStore(tmp_path / "store", 1 << 20)
    sources = Sources(store)
    sources.add(FILE, FileOrigin(object=store.put(b"content")))
    sources.told(WorkerId("w1"), FILE)
    assert sources.allowed(Identity(WORKER, "w1"), GetFile(FILE)) == ""
    for who in (Identity(WORKER, "w2"), Identity(ENROL, "w1"), Identity(CLIENT, "w1")):
        assert sources.allowed(who, GetFile(FILE)) == f"{who.role} {who.name} was not told to fetch this file here"
    assert "was not told" in sources.allowed(Identity(WORKER, "w1"), GetFile(FileName("b3-" + "1" * 32)))
    sources.done(WorkerId("w1"), FILE)
    assert "was not told" in sources.allowed(Identity(WORKER, "w1"), GetFile(FILE))


@contextmanager
def doors(authority: Authority, tmp_path: Path) -> Generator[dict[str, tuple[str, int]]]:
    """Every door that Windlass opens, by what it is for."""
    store = ObjectStore(tmp_path / "store", 1 << 20)
    loop = asyncio.new_event_loop()
    files = FileServer(lambda name: None, lambda identity, request: "no")

    async def open_listener() -> Listener:
        listener = Listener(authority, Shell(), serve_data=DataServer(store), files=files)
        await listener.listen(["127.0.0.1"])
        return listener

    listener = loop.run_until_complete(open_listener())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    peers = PeerDoor(read_connection_file(authority.pilot_file), "w9", *authority.credential(WORKER, "w9"), lambda name: None)
    try:
        [address] = peers.open("127.0.0.1")
        yield {"the manager's": listener.addresses[0], "files of the manager": listener.addresses[0], "a worker's": parse_address(address)}
    finally:
        peers.close()
        files.close()
        asyncio.run_coroutine_threadsafe(listener.close(), loop).result(LIMIT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def attempt(context: ssl.SSLContext, address: tuple[str, int], body: bytes) -> bytes:
    """All that is heard of this door, as plain bytes."""
    heard = b""
    with suppress(OSError), socket.create_connection(address, LIMIT) as plain, context.wrap_socket(plain, server_hostname="m1") as sock:
        sock.sendall(len(body).to_bytes(4, "big") + body)
        while data := sock.recv(1000):
            heard += data
    return heard


@pytest.mark.parametrize("how", ["TLS 1.2", "no certificate", "another authority", "an expired certificate"])
def test_every_door_is_shut_to(authority: Authority, tmp_path: Path, how: str) -> None:
    """Nothing is heard from any of them; one that is as it should be is answered, so the doors are open."""
    good = shown(authority, WORKER, "w1")
    body = encode_one(Hello("worker", PROTOCOL, "0", (3, 11), "w1", purpose="data"))

    def context(bad: bool) -> ssl.SSLContext:
        if not bad or how == "TLS 1.2":
            made = good.client_context()
        elif how == "no certificate":
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            made.load_verify_locations(cadata=good.ca)
        elif how == "another authority":
            certificate, key = Authority.create("m1", tmp_path / "other").credential(WORKER, "w1")
            made = msgspec.structs.replace(good, certificate=certificate.decode(), key=key.decode()).client_context()
        else:
            old = authority.credential(WORKER, "w1", lifetime=-10.0)
            made = msgspec.structs.replace(good, certificate=old[0].decode(), key=old[1].decode()).client_context()
        if bad and how == "TLS 1.2":
            made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_2
        made.check_hostname = False
        return made

    with doors(authority, tmp_path) as found:
        for what, address in found.items():
            for bad in (True, False):
                tried = context(bad)
                if what == "files of the manager":
                    tried.set_alpn_protocols([ALPN])
                heard = attempt(tried, address, body) if bad else first_answer(tried, address, body)
                assert (b"Welcome" in heard) is not bad, (what, heard)
                assert not (bad and heard), what


def first_answer(context: ssl.SSLContext, address: tuple[str, int], body: bytes) -> bytes:
    """What is heard first."""
    with socket.create_connection(address, LIMIT) as plain, context.wrap_socket(plain, server_hostname="m1") as sock:
        sock.sendall(len(body).to_bytes(4, "big") + body)
        return sock.recv(1000)
