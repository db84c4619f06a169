"""A worker's door for its peers: who is let in, and what they get."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from windlass.errors import UsageError
from windlass.fileserver import PlainFile, ServedFile
from windlass.filewire import ALPN, asks_for_files, format_address, hear_bytes, parse_address, say
from windlass.identity import CLIENT, ENROL, FACTORY, WORKER, Authority, ConnectionFile, context_for, read_connection_file
from windlass.manager.addresses import name_address
from windlass.messages import (
    PROTOCOL,
    FileHead,
    FileName,
    FileRef,
    FileSource,
    GetFile,
    Hello,
    Message,
    ObjectMissing,
    Refused,
    ToFileReader,
    Welcome,
)
from windlass.session import decode_answer
from windlass.worker.arrivals import Arrival
from windlass.worker.fetching import Fetcher, SourceFailed
from windlass.worker.peers import PeerDoor, address_towards

NAME = FileName("b3-" + "a" * 32)
OTHER = FileName("b3-" + "b" * 32)
CONTENT = b"what is served"
Connect = Callable[..., "Reader"]
HELLO = Hello("worker", PROTOCOL, "0", (3, 11), "w2", purpose="data")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create("m1", tmp_path_factory.mktemp("state") / "m1")


@pytest.fixture(scope="module")
def connection(authority: Authority) -> ConnectionFile:
    return read_connection_file(authority.pilot_file)


@pytest.fixture
def find() -> list[str]:
    """What was looked for in the cache."""
    return []


@pytest.fixture
def door(authority: Authority, connection: ConnectionFile, tmp_path: Path, find: list[str]) -> Iterator[PeerDoor]:
    """Worker ``w1``, which has `NAME`."""
    (tmp_path / "file").write_bytes(CONTENT)

    def look(name: FileName) -> ServedFile | None:
        find.append(name)
        return PlainFile(tmp_path / "file", len(CONTENT)) if name == NAME else None

    door = PeerDoor(connection, "w1", *authority.credential(WORKER, "w1"), look, handshake_timeout=5, idle=5)
    door.open("127.0.0.1")
    yield door
    door.close()
    assert [thread.name for thread in threading.enumerate() if thread.name in ("windlass-file", "windlass-peers")] == []


class Reader:
    """A peer that says what it likes."""

    def __init__(self, door: PeerDoor, context: ssl.SSLContext) -> None:
        raw = socket.create_connection(parse_address(door.addresses[0]), 5)
        self.sock = context.wrap_socket(raw, server_hostname="w1")

    def ask(self, message: Message) -> bytes:
        say(self.sock, message)
        body = hear_bytes(self.sock, 1 << 16)
        assert body is not None
        return bytes(body)

    def greet(self, hello: Hello = HELLO) -> Welcome | Refused:
        return decode_answer(self.ask(hello))

    def get(self, request: GetFile) -> FileHead | ObjectMissing:
        answer: FileHead | ObjectMissing = msgspec.msgpack.decode(self.ask(request), type=ToFileReader)
        return answer

    def is_hung_up_on(self) -> bool:
        try:
            return hear_bytes(self.sock, 1 << 16) is None
        except (ssl.SSLEOFError, ConnectionResetError):
            return True


@pytest.fixture
def connect(authority: Authority, connection: ConnectionFile, door: PeerDoor) -> Iterator[Connect]:
    """Makes a reader: with a context, or a certificate for a role and name."""
    with ExitStack() as readers:

        def make(role: str = WORKER, name: str = "w2", context: ssl.SSLContext | None = None) -> Reader:
            reader = Reader(door, context or context_for(connection, *authority.credential(role, name)))
            readers.callback(reader.sock.close)
            return reader

        yield make


def test_a_permitted_peer_gets_the_file(authority: Authority, connect: Connect) -> None:
    """From the byte that it asks for on; and then another file on the same connection."""
    peer = connect()
    welcome = peer.greet()
    assert isinstance(welcome, Welcome)
    assert welcome.manager == "m1"
    permit = authority.permit(NAME, "w1", "w2")
    for offset in (0, 5, len(CONTENT)):
        assert peer.get(GetFile(NAME, offset, permit)) == FileHead(NAME, len(CONTENT), offset)
        assert offset == len(CONTENT) or peer.sock.recv(100) == CONTENT[offset:]


def test_without_a_certificate_nobody_is_let_in(connection: ConnectionFile, connect: Connect, find: list[str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=connection.ca)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        connect(context=context).greet()
    assert find == []


def test_a_certificate_of_another_manager_is_refused(connection: ConnectionFile, connect: Connect, tmp_path: Path, find: list[str]) -> None:
    """Though its authority has the same name."""
    foreign = Authority.create("m1", tmp_path / "m1").credential(WORKER, "w2")
    with pytest.raises(ssl.SSLError, match=r"UNKNOWN_CA|DECRYPT_ERROR|BAD_CERTIFICATE"):
        connect(context=context_for(connection, *foreign)).greet()
    assert find == []


@pytest.mark.parametrize("role", [CLIENT, ENROL, FACTORY])
def test_only_workers_are_let_in(connect: Connect, role: str) -> None:
    """The enrolling credential, which all pilots share, gives nothing; nor does the user's own."""
    answer = connect(role).greet()
    assert answer == Refused(f"a certificate for role {role!r} gets no files here: only workers do")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peer": "w3"}, "the certificate belongs to worker 'w2' and may not be used by 'w3'"),
        ({"role": "client"}, "a certificate for role 'worker' gets no files here: only workers do"),
        ({"purpose": "control"}, "there are no connections for 'control' between workers: use 'data'"),
        (
            {"protocol": PROTOCOL + 1},
            rf"worker w1 is .* speaks protocol {PROTOCOL}; worker w2 is .* protocol {PROTOCOL + 1}: update",
        ),
    ],
)
def test_what_a_peer_says_must_be_what_it_may_say(connect: Connect, change: dict[str, Any], text: str) -> None:
    answer = connect().greet(msgspec.structs.replace(HELLO, **change))
    assert isinstance(answer, Refused)
    assert re.match(text, answer.text)


def test_without_a_permit_for_just_that_nothing_is_looked_for(
    authority: Authority, connect: Connect, tmp_path: Path, find: list[str]
) -> None:
    """None, one that has ended, another manager's, another reader's, another file's, another source's: all are refused in words."""
    foreign = Authority.create("m1", tmp_path / "m1")
    peer = connect()
    peer.greet()
    for permit, text in (
        (b"", f"w2 showed no permit to read {NAME} from w1: ask the manager for one"),
        (authority.permit(NAME, "w1", "w2", seconds=-10_000), f"the permit of w2 to read {NAME} ended 10,000 s ago by the clock of w1: "),
        (foreign.permit(NAME, "w1", "w2"), f"what w2 showed to read {NAME} is no permit of this manager"),
        (authority.permit(NAME, "w1", "w3"), "the permit that w2 showed is for reader w3, not for w2"),
        (authority.permit(OTHER, "w1", "w2"), f"the permit that w2 showed is for file {OTHER}, not for {NAME}"),
        (authority.permit(NAME, "w4", "w2"), "the permit that w2 showed is for source w4, not for w1"),
    ):
        answer = peer.get(GetFile(NAME, 0, permit))
        assert isinstance(answer, ObjectMissing)
        assert answer.text.startswith(text)
    assert find == []
    assert isinstance(peer.get(GetFile(NAME, 0, authority.permit(NAME, "w1", "w2"))), FileHead)


def test_nonsense_ends_the_connection_and_nothing_else(authority: Authority, door: PeerDoor, connect: Connect) -> None:
    """A message that is not allowed, an offset that cannot be, a frame without end, bytes that are not TLS."""
    permit = authority.permit(NAME, "w1", "w2")
    for nonsense in (HELLO, GetFile(NAME, -1, permit), GetFile(NAME, 100, permit)):
        peer = connect()
        peer.greet()
        say(peer.sock, nonsense)
        assert peer.is_hung_up_on()
    peer = connect()
    peer.sock.sendall(b"\xff" * 100)
    assert peer.is_hung_up_on()
    with socket.create_connection(parse_address(door.addresses[0]), 5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(1000):
            pass
    assert isinstance(connect().greet(), Welcome)


def test_a_reader_sees_that_it_is_another_worker_that_answers(
    authority: Authority, connection: ConnectionFile, door: PeerDoor, tmp_path: Path
) -> None:
    """Addresses can be wrong or forged; it is the certificate that must name the source, as a worker."""

    async def work() -> None:
        fetcher = Fetcher(connection, "w2", *authority.credential(WORKER, "w2"))
        for peer, role in (("w3", "worker"), ("W1", "worker"), ("m1", "manager")):
            with pytest.raises(SourceFailed, match=rf"127.0.0.1 port \d+: what answers is worker w1, not {role} {peer}\n"):
                await fetcher.fetch(Arrival(FileRef(NAME, -1, "x"), tmp_path / "here"), FileSource(peer, door.addresses))
        await fetcher.close()

    asyncio.run(work())


@pytest.mark.parametrize("name", ["node_1.cluster:7@pool-3", "127.0.0.1"])
def test_workers_may_have_odd_names(authority: Authority, connection: ConnectionFile, tmp_path: Path, name: str) -> None:
    """All that `Authority.issue` accepts, also what looks like an address."""
    (tmp_path / "file").write_bytes(CONTENT)
    door = PeerDoor(connection, name, *authority.credential(WORKER, name), lambda _: PlainFile(tmp_path / "file", len(CONTENT)))

    async def work() -> None:
        fetcher = Fetcher(connection, "w2", *authority.credential(WORKER, "w2"))
        file = FileName("r-" + "0" * 32)
        source = FileSource(name, door.open("127.0.0.1"), authority.permit(file, name, "w2"))
        assert (await fetcher.fetch(Arrival(FileRef(file, -1, "x"), tmp_path / "here"), source)).size == len(CONTENT)
        await fetcher.close()

    try:
        asyncio.run(work())
    finally:
        door.close()


def test_a_door_that_has_its_hands_full_hangs_up(authority: Authority, connection: ConnectionFile) -> None:
    """Strangers who connect and say nothing cost no more than so many threads, and only until the handshake's time is over."""
    door = PeerDoor(connection, "w1", *authority.credential(WORKER, "w1"), lambda _: None, connections=3, handshake_timeout=0.5)
    try:
        address = parse_address(door.open("127.0.0.1")[0])
        silent = [socket.create_connection(address, 5) for _ in range(4)]
        assert silent[3].recv(1) == b""
        for one in silent[:3]:
            assert one.recv(1) == b""
        for one in silent:
            one.close()
    finally:
        door.close()


def test_a_door_opens_on_an_address_of_this_node_only(authority: Authority, connection: ConnectionFile) -> None:
    door = PeerDoor(connection, "w1", *authority.credential(WORKER, "w1"), lambda _: None)
    with pytest.raises(UsageError, match=r"peers cannot be served on 192.0.2.1, port 0: Cannot assign requested address"):
        door.open("192.0.2.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"peers cannot be served on 127.0.0.1, port {port}: Address already in use"):
            door.open("127.0.0.1", port)
    door.close()


def test_the_address_towards_the_manager_is_found_without_asking_anybody() -> None:
    assert address_towards([("127.0.0.1", 1)]) == "127.0.0.1"
    assert address_towards([("no such host.invalid", 1), ("127.0.0.1", 1)]) == "127.0.0.1"
    with pytest.raises(OSError, match="no address of the manager is known"):
        address_towards([])


def test_a_door_is_on_loopback_only_where_there_is_no_other_way_to_the_manager() -> None:
    """A manager listens there for programs of its own host, and says so to every node; no peer elsewhere would find a door there."""
    outside = name_address()
    if not outside:
        pytest.skip("this machine has no network")
    for addresses in ([("127.0.0.1", 1), (outside, 1)], [(outside, 1), ("127.0.0.1", 1)], [("localhost", 1), ("::1", 1), (outside, 1)]):
        assert address_towards(addresses) == outside


def test_addresses_are_read_as_they_are_written() -> None:
    for host in ("10.0.0.1", "node-1", "fe80::1"):
        assert parse_address(format_address(host, 99)) == (host, 99)
    for bad in ("", "host", ":1", "host:", "host:x", "host:-1"):
        with pytest.raises(ValueError, match="is no address: it should be 'host:port'"):
            parse_address(bad)


# ---------------------------------------------------------------- who asks for files, at the manager's port


def client_hello(context: ssl.SSLContext) -> bytes:
    """What a TLS client says first."""
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="m1").do_handshake()
    return out.read()


@pytest.mark.parametrize("files", [True, False])
def test_a_clients_first_record_tells_whether_it_wants_files(connection: ConnectionFile, files: bool) -> None:
    """Whole, or byte by byte, as far as a socket holds it so; and it stays to be read by who does the handshake."""
    context = connection.client_context()
    if files:
        context.set_alpn_protocols([ALPN])
    hello = client_hello(context)

    async def work() -> None:
        bytewise = [*(hello[at : at + 1] for at in range(200)), hello[200:]]
        for pieces in ([hello], [hello[:3], hello[3:200], hello[200:]], bytewise):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                theirs.setblocking(False)
                asking = asyncio.create_task(asks_for_files(theirs))
                for piece in pieces:
                    ours.sendall(piece)
                    await asyncio.sleep(0)
                assert await asking is files
                assert theirs.recv(10_000) == hello

    asyncio.run(work())


def test_what_is_no_tls_wants_no_files() -> None:
    """Nonsense, nothing at all, and half a record whose end never comes, which is the handshake's time limit's matter."""

    async def work() -> None:
        for said in (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x00\x05hello", b"", ALPN.encode()):
            ours, theirs = socket.socketpair()
            with theirs:
                theirs.setblocking(False)
                with ours:
                    ours.sendall(said)
                assert not await asks_for_files(theirs)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            ours.sendall(b"\x16\x03\x01\x02\x00")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await asks_for_files(theirs)

    asyncio.run(work())
